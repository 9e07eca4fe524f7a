//! What a commit costs on this disk, and what stores in its place would: the same records, one sync
//! for each group of them, one group under way.
//!
//! `raw` is a block written with O_DIRECT and O_DSYNC into a file that was zeroed before: less than
//! that no store does. `noctule-uring` and `noctule-epoll` are the journal through its backends,
//! without clients; `redb` is a table with `Durability::Immediate`. A line of JSON for each, with the
//! CPU time of all threads and the bytes that the process gave to the file system.
//!
//!     cargo run --release --example commits -- DIRECTORY SECONDS
#![forbid(unsafe_code)]
#![allow(clippy::disallowed_methods, clippy::print_stdout)]

#[path = "../benches/host/mod.rs"]
mod host;

use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use noctule::bench::process::Usage;
use noctule::io::file::{BLOCK, BlockBuf};
use noctule::io::{Backend, Epoll, Settings, Uring};
use noctule::journal::record::Batch;
use redb::{Database, Durability, TableDefinition};

use host::{Host, ORIGIN, clocks, publish};

const PAYLOAD: [u8; 64] = [7; 64];
const TABLE: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("messages");
/// Records in one group.
const GROUPS: [u64; 4] = [1, 10, 100, 1000];
/// A row ends with these, so that it takes little of the disk.
const RECORDS_MAX: u64 = 1_000_000;
const RAW_FILE_BYTES: usize = 32 << 20;

/// Commits one group after the other, which takes from the number of its first record on, and says
/// what that cost.
fn measure(store: &str, records: u64, time: Duration, mut commit: impl FnMut(u64)) {
    for group in 0..20 {
        commit(1 + group * records);
    }
    let usage = || Usage::of(std::process::id()).expect("ourselves");
    let (mut next, mut took) = (1 + 20 * records, Vec::new());
    let (before, began) = (usage(), Instant::now());
    while began.elapsed() < time && next < RECORDS_MAX {
        let start = Instant::now();
        commit(next);
        took.push(start.elapsed());
        next += records;
    }
    let (elapsed, after) = (began.elapsed(), usage());
    took.sort_unstable();
    let at = |part: f64| took[((took.len() - 1) as f64 * part) as usize].as_nanos() as f64 / 1e3;
    let count = took.len() as f64 * records as f64;
    println!(
        "{{\"store\":\"{store}\",\"records\":{records},\"records_per_second\":{:.0},\
         \"p50_us\":{:.1},\"p99_us\":{:.1},\"cpu_us\":{:.3},\"bytes\":{:.0}}}",
        count / elapsed.as_secs_f64(),
        at(0.5),
        at(0.99),
        (after.cpu_nanos - before.cpu_nanos) as f64 / 1e3 / count,
        (after.written_bytes - before.written_bytes) as f64 / count,
    );
}

fn raw(folder: &Path, time: Duration) {
    let path = folder.join("raw");
    std::fs::write(&path, vec![0; RAW_FILE_BYTES]).expect("a file");
    let flags = libc::O_DIRECT | libc::O_DSYNC;
    let opened = std::fs::OpenOptions::new().write(true).custom_flags(flags).open(&path);
    let file = opened.expect("a file system with O_DIRECT");
    file.sync_all().expect("it is zeroed");
    let block = BlockBuf::zeroed(BLOCK);
    measure("raw", 1, time, |number| {
        let at = number as usize * BLOCK % RAW_FILE_BYTES;
        file.write_all_at(block.as_slice(), at as u64).expect("write a block");
    });
}

fn journal<B: Backend>(name: &str, backend: B, folder: &Path, records: u64, time: Duration) {
    let mut host = Host::new(backend, folder);
    measure(name, records, time, |first| {
        (first..first + records).for_each(|number| host.bring(&publish(number, &PAYLOAD)));
        host.commit();
    });
}

fn redb(folder: &Path, records: u64, time: Duration) {
    let database = Database::create(folder.join("redb")).expect("a database");
    let mut batch = Batch::default();
    measure("redb", records, time, |first| {
        let mut write = database.begin_write().expect("a transaction");
        write.set_durability(Durability::Immediate).expect("it is new");
        {
            let mut table = write.open_table(TABLE).expect("a table");
            for number in first..first + records {
                batch.clear(1 << 20);
                batch.push(ORIGIN, number, &publish(number, &PAYLOAD), clocks());
                for (body, _) in batch.entries() {
                    table.insert(number, body).expect("insert");
                }
            }
        }
        write.commit().expect("commit");
    });
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [folder, seconds] = &args[..] else { panic!("usage: commits DIRECTORY SECONDS") };
    let time = Duration::from_secs_f64(seconds.parse().expect("SECONDS is a number"));
    let place = || tempfile::tempdir_in(folder).expect("a directory");
    raw(place().path(), time);
    for records in GROUPS {
        if let Ok(uring) = Uring::new(&Settings::default()) {
            journal("noctule-uring", uring, place().path(), records, time);
        }
        let epoll = Epoll::new(&Settings::default()).expect("epoll");
        journal("noctule-epoll", epoll, place().path(), records, time);
        redb(place().path(), records, time);
    }
}
