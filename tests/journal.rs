//! `noctule journal` on journals that are whole, torn and damaged; and what a recovery makes of
//! them.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::rc::Rc;

use bytes::Bytes;
use noctule::broker::durable::MessageId;
use noctule::broker::{Content, QoS, Record};
use noctule::clock::Time;
use noctule::ids::ShardId;
use noctule::io::{FileDone, FileId, FileOp};
use noctule::journal::log::{Log, Options};
use noctule::journal::record::{Batch, Clocks};
use noctule::journal::recover::{self, Recovered};

const ORIGIN: ShardId = ShardId::new(0);
const PLACEMENT: u64 = 0x1234;
/// The time of [`Host::commit`].
const BEGUN: &str = "2023-11-14T22:13:20Z";

fn options(folder: &Path) -> Options {
    Options {
        folder: folder.to_owned(),
        placement: PLACEMENT,
        segment_bytes_first: 64 * 1024,
        segment_bytes_max: 64 * 1024,
        direct: true,
    }
}

/// A log, and who does its file operations.
struct Host {
    log: Log,
    files: HashMap<FileId, File>,
    number: u64,
}

impl Host {
    fn open(folder: &Path) -> (Self, Found) {
        let Recovered { state, log, report } =
            recover::open(options(folder), 1).expect("the test's own set-up");
        let mut host = Self { log, files: HashMap::new(), number: 0 };
        host.work();
        (host, Found { state, report })
    }

    /// One commit with these.
    fn commit(&mut self, records: &[Record]) {
        let clocks = Clocks { monotonic: Time::from_nanos(1), unix_ms: 1_700_000_000_000 };
        self.log.set_clocks(clocks);
        let mut batch = Batch::default();
        batch.sync = true;
        for record in records {
            self.number += 1;
            batch.push(ORIGIN, self.number, record, clocks);
        }
        self.log.append(ORIGIN, &batch);
        self.work();
        assert_eq!(self.log.committed(ORIGIN), self.number);
    }

    fn work(&mut self) {
        while let Some(mut op) = self.log.next_op() {
            let result = self.perform(&mut op);
            self.log.handle_done(FileDone { op, result });
        }
        assert!(self.log.is_idle());
    }

    fn perform(&mut self, op: &mut FileOp) -> std::io::Result<usize> {
        match op {
            FileOp::Open { file, path, create, .. } => {
                let opened =
                    OpenOptions::new().read(true).write(true).create(*create).open(path)?;
                self.files.insert(*file, opened);
                Ok(0)
            }
            FileOp::Write { file, offset, buf, from, .. } => {
                let bytes = &buf.as_slice()[*from..];
                self.files[file].write_all_at(bytes, *offset).map(|()| bytes.len())
            }
            FileOp::Read { file, offset, buf } => {
                self.files[file].read_at(buf.as_mut_slice(), *offset)
            }
            FileOp::Close { file } => {
                self.files.remove(file);
                Ok(0)
            }
            FileOp::Remove { file, path } => {
                self.files.remove(file);
                std::fs::remove_file(path).map(|()| 0)
            }
            FileOp::Sync { .. } | FileOp::SyncDir { .. } => Ok(0),
        }
    }
}

struct Found {
    state: noctule::broker::durable::DurableState,
    report: recover::Report,
}

fn session(client_id: &str) -> [Record; 2] {
    let client_id: Rc<str> = Rc::from(client_id);
    [
        Record::Session { client_id: client_id.clone(), expiry_secs: 60, offline_since: None },
        Record::Subscribe {
            client_id,
            filter: "t/#".into(),
            options: 1,
            subscription_id: None,
            seen: Box::default(),
        },
    ]
}

fn publish(sequence: u64) -> Record {
    Record::Publish {
        message: MessageId::new(ORIGIN, sequence),
        publisher: Rc::from("p"),
        packet_id: None,
        content: Content::new(
            &format!("t/{sequence}"),
            &[],
            Bytes::from(format!("payload {sequence}")),
        ),
        qos: QoS::AtLeastOnce,
        retain: false,
        deadline: None,
        is_will: false,
        groups: None,
    }
}

/// Ten messages for one session, three in each commit.
fn journal() -> (tempfile::TempDir, PathBuf) {
    let data = tempfile::tempdir().expect("the test's own set-up");
    let folder = data.path().join("journal");
    let (mut host, _) = Host::open(&folder);
    host.commit(&session("c"));
    for start in [1, 4, 7] {
        host.commit(&[publish(start), publish(start + 1), publish(start + 2)]);
    }
    host.commit(&[publish(10)]);
    let file = folder.join("00000001.journal");
    assert!(file.exists());
    (data, file)
}

fn noctule(arguments: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_noctule"))
        .args(arguments)
        .output()
        .expect("the test's own set-up");
    let text = |bytes| String::from_utf8(bytes).expect("the test's own set-up");
    (status.code().expect("the test's own set-up"), text(stdout), text(stderr))
}

fn find(bytes: &[u8], what: &str) -> usize {
    bytes
        .windows(what.len())
        .position(|window| window == what.as_bytes())
        .expect("the test's own set-up")
}

#[test]
fn a_whole_journal_is_said_to_be_whole() {
    let (data, _) = journal();
    let folder = data.path().to_str().unwrap();
    let (code, out, err) = noctule(&["journal", "verify", folder]);
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    assert!(out.contains("whole: 1 segments, 5 commits"), "{out}");
    assert!(out.contains("1 sessions, 10 messages"), "{out}");
    let (code, out, _) = noctule(&["journal", "inspect", "--records", folder]);
    assert_eq!(code, 0);
    assert_eq!(out.matches(" PUB ").count(), 10, "{out}");
    assert!(out.contains("topic=\"t/10\""), "{out}");
    let (code, out, _) = noctule(&["journal", "inspect", "--records", "--json", folder]);
    assert_eq!(code, 0);
    let lines: Vec<serde_json::Value> =
        out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.iter().filter(|line| line["record"] == "PUB").count(), 10);
    let segment = lines.iter().find(|line| line["segment"] == 1).unwrap();
    assert_eq!(segment["begun"], BEGUN, "{segment}");
    assert_eq!(segment["placement"], format!("{PLACEMENT:016x}"), "{segment}");
    let (_, out, _) = noctule(&["journal", "inspect", folder]);
    assert!(out.contains(&format!("segment 1, version 1, begun {BEGUN}, ")), "{out}");
    let (code, out, _) = noctule(&["journal", "export", folder]);
    assert_eq!(code, 0);
    let lines: Vec<serde_json::Value> =
        out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let session = lines.iter().find(|line| line["session"] == "c").unwrap();
    assert_eq!(session["queue"].as_array().unwrap().len(), 10);
    // It knows nothing else, and takes no flag that would change nothing.
    let (code, _, err) = noctule(&["journal", "export", "--json", folder]);
    assert_eq!(code, 2, "{err}");
}

/// A record in the middle that the disk has damaged stops neither the start nor the rest.
#[test]
fn a_damaged_record_is_named_and_the_rest_is_read() {
    let (data, file) = journal();
    let mut bytes = std::fs::read(&file).unwrap();
    let at = find(&bytes, "payload 5");
    bytes[at] ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    let folder = data.path().to_str().unwrap();
    let (code, out, _) = noctule(&["journal", "verify", folder]);
    assert_eq!(code, 1, "{out}");
    assert!(out.contains("00000001.journal: byte "), "{out}");
    assert!(out.contains("1 pieces damaged"), "{out}");
    assert!(out.contains("1 sessions, 9 messages"), "{out}");
    let (code, out, _) = noctule(&["journal", "verify", "--json", folder]);
    assert_eq!(code, 1);
    let verdict: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&verdict["whole"], &verdict["quarantined"]), (&false.into(), &1.into()));
    // And the log goes on behind it.
    let inner = data.path().join("journal");
    let (mut host, found) = Host::open(&inner);
    assert_eq!((found.report.quarantined, found.state.messages.len()), (1, 9));
    host.commit(&[publish(11)]);
    drop(host);
    let (_, found) = Host::open(&inner);
    assert_eq!(found.state.messages.len(), 10);
}

/// Nothing in the last commit was promised to anybody while it was not whole.
#[test]
fn a_torn_last_commit_is_left_out_and_said() {
    let (data, file) = journal();
    let mut bytes = std::fs::read(&file).unwrap();
    let at = find(&bytes, "payload 10");
    bytes[at..].fill(0);
    std::fs::write(&file, &bytes).unwrap();
    let (code, out, _) = noctule(&["journal", "verify", data.path().to_str().unwrap()]);
    assert_eq!(code, 0, "{out}");
    assert!(out.contains("the last commit is torn") && out.contains("9 messages"), "{out}");
    let inner = data.path().join("journal");
    let (mut host, found) = Host::open(&inner);
    assert!(found.report.torn.is_some());
    host.commit(&[publish(11)]);
    drop(host);
    let (_, found) = Host::open(&inner);
    assert_eq!((found.report.torn, found.report.quarantined), (None, 0), "it is forgotten");
    assert_eq!(found.state.messages.len(), 10);
}

#[test]
fn a_newer_version_is_refused_with_what_to_do() {
    let (data, file) = journal();
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[8] = 9;
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..64]);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    std::fs::write(&file, &bytes).unwrap();
    let (code, _, err) = noctule(&["journal", "verify", data.path().to_str().unwrap()]);
    assert_eq!(code, 2);
    assert!(err.contains("00000001.journal has format version 9"), "{err}");
    let (code, _, err) = noctule(&["journal", "verify", "/nowhere"]);
    assert_eq!(code, 2);
    assert!(err.contains("/nowhere"), "{err}");
}

/// Files take a bounded multiple of what is needed, however much passes through.
#[test]
fn the_disk_is_used_again() {
    let data = tempfile::tempdir().unwrap();
    let (mut host, _) = Host::open(&data.path().join("journal"));
    host.commit(&session("c"));
    for sequence in 1..=5000 {
        let done = Record::Acked {
            client_id: Rc::from("c"),
            message: MessageId::new(ORIGIN, sequence.max(3) - 2),
        };
        host.commit(&[publish(sequence), done]);
    }
    let counters = host.log.counters();
    assert!(counters.segments_recycled > 100, "{counters:?}");
    assert_eq!(counters.lost_bytes, 0);
    assert!(host.log.disk_bytes() <= 8 * 64 * 1024, "{} bytes", host.log.disk_bytes());
    drop(host);
    let (_, found) = Host::open(&data.path().join("journal"));
    assert_eq!(found.state.messages.len(), 2);
    assert_eq!(found.state.last_sequence, 5000);
}

/// Segments grow by being filled, and not by being left for another reason.
#[test]
fn segments_grow_with_what_is_written() {
    let data = tempfile::tempdir().expect("the test's own set-up");
    let folder = data.path().join("journal");
    let largest = || {
        let files = std::fs::read_dir(&folder).expect("the journal's folder");
        files.map(|file| file.expect("a file").metadata().expect("its size").len()).max()
    };
    let open = || {
        let options = Options { segment_bytes_max: 1024 * 1024, ..options(&folder) };
        let Recovered { log, .. } = recover::open(options, 1).expect("the test's own set-up");
        Host { log, files: HashMap::new(), number: 0 }
    };
    for start in 0..8 {
        open().commit(&[publish(start + 1)]);
    }
    assert_eq!(largest(), Some(64 * 1024));
    let mut host = open();
    host.commit(&session("c"));
    for sequence in 100..200 {
        host.commit(&[publish(sequence)]);
    }
    assert!(largest() >= Some(128 * 1024), "{:?}", largest());
}

/// A segment of version 1, written down when that was new: what follows it reads it.
const HEADER_1: &str = "4e 4f 43 54 4a 52 4e 4c 01 00 00 00 8c 4f f1 02 01 00 00 00 00 00 00 00 07 00 00 00 00 00 00 00 \
     00 68 e5 cf 8b 01 00 00 01 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 01 00 00 00 00 00 00 00";
const FRAME_1: &str = "4e 4a 46 52 f2 0d 75 13 01 00 00 00 00 00 00 00 01 00 00 00 00 00 00 00 01 00 00 00 00 00 00 00 \
     00 00 00 00 00 00 00 00 45 00 00 00 03 00 00 00 07 00 00 00 c5 14 7d d5 02 00 01 63 3c 00 01 0b \
     00 00 00 90 70 96 e1 04 00 01 63 03 74 2f 23 01 00 00 1b 00 00 00 81 ef 49 13 01 00 01 00 05 00 \
     00 00 00 00 00 01 70 03 74 2f 31 00 05 68 65 6c 6c 6f 01 00 00";

fn bytes_of(hex: &str) -> Vec<u8> {
    hex.split(' ')
        .map(|byte| u8::from_str_radix(byte, 16).expect("the test's own set-up"))
        .collect()
}

#[test]
fn the_first_version_is_read() {
    let data = tempfile::tempdir().unwrap();
    let mut segment = vec![0; 64 * 1024];
    let (header, frame) = (bytes_of(HEADER_1), bytes_of(FRAME_1));
    segment[..header.len()].copy_from_slice(&header);
    segment[4096..4096 + frame.len()].copy_from_slice(&frame);
    std::fs::write(data.path().join("00000001.journal"), segment).unwrap();
    let (_, found) = Host::open(data.path());
    assert_eq!((found.report.records, found.report.quarantined, found.report.torn), (3, 0, None));
    let state = found.state;
    assert_eq!((&*state.messages[0].topic, &*state.messages[0].payload), ("t/1", &b"hello"[..]));
    assert_eq!(&*state.sessions[0].client_id, "c");
    assert_eq!(&*state.sessions[0].subscriptions[0].filter, "t/#");
    assert_eq!(state.sessions[0].queue.len(), 1);
    assert_eq!(state.last_sequence, 5);
}
