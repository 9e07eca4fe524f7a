//! What does a durable message cost: its record, its commit on this disk, and its recovery?
//!
//! `cargo bench --bench journal`. Commits go through the real backend to a directory under the
//! target directory; their time is the disk's as much as ours.
//!
//! `cargo bench --bench journal -- pauses` shows for how long the journal keeps its shard from other
//! work while it frees segments with a million messages queued: a histogram of its turns.
#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "criterion's macros")]
#![allow(clippy::print_stdout, reason = "a histogram of its own")]

mod host;

use std::rc::Rc;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use noctule::broker::Record;
use noctule::broker::durable::MessageId;
use noctule::clock;
use noctule::io::{Backend, Completion, Epoll, Settings, Uring, Wait};
use noctule::journal::log::Options;
use noctule::journal::record::Batch;
use noctule::journal::recover;
use noctule::limits::{JOURNAL_COMMIT_BYTES, JOURNAL_SEGMENT_BYTES_FIRST};

use host::{Host, ORIGIN, clocks, options, publish};

const PAYLOAD: [u8; 128] = [7; 128];

fn commits<B: Backend>(c: &mut Criterion, name: &str, backend: impl Fn() -> Option<B>) {
    let mut group = c.benchmark_group(format!("journal on {name}"));
    group.sample_size(20);
    for records in [1u64, 10, 100, 1000] {
        let Some(backend) = backend() else { return };
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a directory");
        let mut host = Host::new(backend, folder.path());
        let mut sequence = 0;
        group.throughput(Throughput::Elements(records));
        group.bench_function(format!("append, commit and acknowledge {records}"), |bench| {
            bench.iter(|| {
                for _ in 0..records {
                    sequence += 1;
                    let record = publish(sequence, &PAYLOAD);
                    host.bring(&record);
                    let Record::Publish { message, .. } = record else { return };
                    let client_id = Rc::from("archive");
                    host.bring(&Record::Acked { client_id, message });
                }
                host.commit();
            });
        });
    }
    group.finish();
}

fn encode(c: &mut Criterion) {
    let mut group = c.benchmark_group("journal");
    group.throughput(Throughput::Elements(100));
    let record = publish(1, &PAYLOAD);
    let mut batch = Batch::default();
    let now = clocks();
    group.bench_function("encode 100 messages of 128 bytes", |bench| {
        bench.iter(|| {
            batch.clear(1 << 20);
            for number in 1..=100 {
                batch.push(ORIGIN, number, &record, now);
            }
        });
    });
    group.finish();
}

fn recovery(c: &mut Criterion) {
    if std::env::args().any(|arg| arg == "pauses") {
        return;
    }
    const MESSAGES: u64 = 500_000;
    let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a directory");
    let backend = Epoll::new(&Settings::default()).expect("a backend");
    let mut host = Host::new(backend, folder.path());
    for sequence in 1..=MESSAGES {
        host.bring(&publish(sequence, &PAYLOAD));
        if sequence % 4000 == 0 {
            host.commit();
        }
    }
    host.commit();
    drop(host);
    let mut group = c.benchmark_group("journal");
    group.sample_size(10);
    group.throughput(Throughput::Elements(MESSAGES));
    group.bench_function("recover 500,000 queued messages", |bench| {
        bench.iter_batched(
            || options(folder.path()),
            |options| recover::open(options, 1).expect("it is whole").state.messages.len(),
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

/// How long a turn's work for the journal took: on the clock, and of the processor.
#[derive(Default)]
struct Pauses {
    wall: Vec<Duration>,
    cpu: Vec<Duration>,
}

impl Pauses {
    fn measure<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let (wall, cpu) = (clock::now(), clock::thread_cpu());
        let result = work();
        self.cpu.push(clock::thread_cpu() - cpu);
        self.wall.push(clock::now().since(wall));
        result
    }

    fn show(&mut self, what: &str) {
        for (clock, all) in [("clock", &mut self.wall), ("processor", &mut self.cpu)] {
            all.sort_unstable();
            let at = |part: f64| all[((all.len() - 1) as f64 * part) as usize];
            println!(
                "{what}, by the {clock}: {} turns, p50 {:?}, p99 {:?}, p99.9 {:?}, max {:?}",
                all.len(),
                at(0.5),
                at(0.99),
                at(0.999),
                at(1.0)
            );
            for limit_us in [50, 100, 200, 500, 1000, 2000, 5000, 10_000] {
                let above = all.iter().filter(|t| t.as_micros() > limit_us).count();
                println!("  above {limit_us:>6} us: {above}");
            }
        }
    }
}

impl<B: Backend> Host<B> {
    /// One turn of the shard, with all of what the journal does in it measured.
    fn turn(&mut self, pauses: &mut Pauses) {
        let mut completions = Vec::new();
        self.backend.poll(Wait::None, &mut completions).expect("it polls");
        let Self { backend, log, batch, .. } = self;
        pauses.measure(|| {
            log.set_clocks(clocks());
            for completion in completions.drain(..) {
                if let Completion::File(done) = completion {
                    log.handle_done(*done);
                }
            }
            log.append(ORIGIN, batch);
            batch.clear(1 << 20);
            while let Some(op) = log.next_op() {
                backend.file(op);
            }
        });
    }
}

/// A million messages are queued; four of five are acknowledged in no order, so that segments have
/// to be freed by copying, while others come.
fn pauses<B: Backend>(name: &str, backend: B) {
    const MESSAGES: u64 = 1_000_000;
    let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a directory");
    // Small segments, so that many have to be freed.
    let segment_bytes_max = 8 * JOURNAL_SEGMENT_BYTES_FIRST;
    let mut host = Host::with(backend, Options { segment_bytes_max, ..options(folder.path()) });
    let mut queueing = Pauses::default();
    let bring_in = |host: &mut Host<B>, pauses: &mut Pauses, sequence: u64| {
        host.bring(&publish(sequence, &PAYLOAD));
        if sequence.is_multiple_of(50) {
            host.batch.sync = true;
            while host.log.gathered_bytes() >= JOURNAL_COMMIT_BYTES {
                host.turn(pauses);
            }
            host.turn(pauses);
        }
    };
    for sequence in 1..=MESSAGES {
        bring_in(&mut host, &mut queueing, sequence);
    }
    host.commit();
    queueing.show(&format!("{name}: queueing {MESSAGES} messages"));
    println!("  memory of the fold: {} bytes", host.log.fold().message_bytes());
    let mut reclaiming = Pauses::default();
    let client_id: Rc<str> = Rc::from("archive");
    // Visits each once.
    let (mut which, mut sequence) = (0, MESSAGES);
    for turn in 0..MESSAGES / 5 * 4 {
        which = (which + 611_953) % MESSAGES;
        let message = MessageId::new(ORIGIN, which + 1);
        host.bring(&Record::Acked { client_id: client_id.clone(), message });
        if turn % 5 == 0 {
            sequence += 1;
            bring_in(&mut host, &mut reclaiming, sequence);
        }
    }
    for _ in 0..2000 {
        host.turn(&mut reclaiming);
    }
    reclaiming.show(&format!("{name}: freeing segments"));
    println!("  {:?}", host.log.counters());
    assert!(host.log.counters().segments_cleaned > 0, "nothing had to be freed by copying");
}

fn disk(c: &mut Criterion) {
    if std::env::args().any(|arg| arg == "pauses") {
        if let Ok(uring) = Uring::new(&Settings::default()) {
            pauses("uring", uring);
        }
        return pauses("epoll", Epoll::new(&Settings::default()).expect("a backend"));
    }
    commits(c, "uring", || Uring::new(&Settings::default()).ok());
    commits(c, "epoll", || Epoll::new(&Settings::default()).ok());
}

criterion_group!(benches, encode, disk, recovery);
criterion_main!(benches);
