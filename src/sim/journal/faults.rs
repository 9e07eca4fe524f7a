//! The journal on a disk that fails in one chosen way: what was acknowledged stays, and nobody is
//! kept busy by it.

use std::cell::RefCell;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use super::super::disk::Disk;
use super::super::folder::{self, Folder};
use super::OPEN_MAX;
use crate::broker::durable::MessageId;
use crate::broker::evict::Asker;
use crate::broker::{Content, Record};
use crate::clock::Time;
use crate::codec::mqtt::QoS;
use crate::ids::ShardId;
use crate::io::file::{BLOCK, FileOp};
use crate::journal::log::{Log, Options};
use crate::journal::read::{Answer, Question, Record as Read};
use crate::journal::record::{Batch, Clocks};
use crate::journal::recover::{Recovered, Report, recover};
use crate::journal::scan::Store;
use crate::journal::segment;
use crate::limits::{JOURNAL_DISK_FACTOR, JOURNAL_DISK_SEGMENTS};

const ORIGIN: ShardId = ShardId::new(0);

/// A host of one shard.
struct Host {
    disk: Disk,
    log: Log,
    now: Time,
    number: u64,
    /// What is brought asks to survive the power, not only the process.
    sync: bool,
    answers: Vec<Answer>,
}

fn options() -> Options {
    Options {
        folder: folder::PATH.into(),
        placement: 1,
        segment_bytes_first: 16 * 1024,
        segment_bytes_max: 16 * 1024,
        direct: true,
    }
}

fn publish(sequence: u64, len: usize) -> Record {
    Record::Publish {
        message: MessageId::new(ORIGIN, sequence),
        publisher: Rc::from("p"),
        packet_id: None,
        content: Content::new("t", &[], vec![sequence as u8; len].into()),
        qos: QoS::AtLeastOnce,
        retain: false,
        deadline: None,
        is_will: false,
        groups: None,
    }
}

fn acked(sequence: u64) -> Record {
    Record::Acked { client_id: Rc::from("c"), message: MessageId::new(ORIGIN, sequence) }
}

fn session() -> [Record; 2] {
    let client_id: Rc<str> = Rc::from("c");
    [
        Record::Session { client_id: client_id.clone(), expiry_secs: 60, offline_since: None },
        Record::Subscribe {
            client_id,
            filter: "t".into(),
            options: 1,
            subscription_id: None,
            seen: Box::default(),
        },
    ]
}

impl Host {
    fn new() -> Self {
        Self::starting(Disk::new(1), options(), true)
    }

    fn starting(disk: Disk, options: Options, sync: bool) -> Self {
        let Recovered { log, .. } = recover(&Folder(&disk), options, 1).unwrap();
        let now = Time::from_nanos(1_000_000_000_000);
        let mut host = Self { disk, log, now, number: 0, sync, answers: Vec::new() };
        host.commit(&session());
        host
    }

    /// The process is killed, and the next one starts and goes on until all that it found may be
    /// answered for.
    fn start_again(&mut self, options: Options) {
        self.disk.kill();
        let store = Syncing { inner: Folder(&self.disk), synced: RefCell::default() };
        self.log = recover(&store, options, 1).unwrap().log;
        for file in store.synced.into_inner() {
            self.disk.sync_file(&segment::path(Path::new(folder::PATH), file));
        }
        self.number = 0;
        self.go(200);
        assert!(self.log.is_idle(), "{:?}", self.log.last_error());
    }

    /// One with so many messages, of which three fill a segment.
    fn with_messages(count: u64) -> Self {
        let mut host = Self::new();
        (1..=count).for_each(|sequence| host.commit(&[publish(sequence, 3000)]));
        host
    }

    fn bring(&mut self, records: &[Record]) {
        let mut batch = Batch::default();
        batch.sync = self.sync;
        for record in records {
            self.number += 1;
            batch.push(ORIGIN, self.number, record, self.clocks());
        }
        self.log.append(ORIGIN, &batch);
    }

    fn commit(&mut self, records: &[Record]) {
        self.bring(records);
        self.go(200);
        assert_eq!(self.log.committed(ORIGIN), self.number, "{:?}", self.log.last_error());
    }

    fn clocks(&self) -> Clocks {
        Clocks { monotonic: self.now, unix_ms: 1_000_000 }
    }

    /// Turns of a host that sleeps until something is over or its deadline has come; how many there
    /// were within so many milliseconds.
    fn go(&mut self, millis: u64) -> usize {
        let end = self.now + Duration::from_millis(millis);
        let mut turns = 0;
        while turns < 10_000 {
            turns += 1;
            self.log.set_clocks(self.clocks());
            while let Some(op) = self.log.next_op() {
                self.disk.submit(0, op);
            }
            assert!(self.disk.open_files(0) <= OPEN_MAX);
            self.answers.extend(self.log.take_answers());
            if let Some(done) = self.disk.finish_one(0) {
                self.log.handle_done(done);
                continue;
            }
            match self.log.deadline() {
                Some(at) if at <= end => self.now = self.now.max(at),
                _ => break,
            }
        }
        self.now = end;
        turns
    }

    fn ask(&mut self, sequences: impl Iterator<Item = u64>) {
        let messages = sequences.map(|sequence| MessageId::new(ORIGIN, sequence)).collect();
        self.log.ask(Question { from: ORIGIN, asker: Asker::nobody(), messages });
    }

    /// What became of what was asked for, and was answered.
    fn read(&mut self) -> Vec<(u64, &'static str)> {
        let all = self.answers.drain(..).flat_map(|answer| {
            let of = |(id, record): (MessageId, Read<'_>)| {
                let what = match record {
                    Read::Body(_) => "read",
                    Read::Gone => "gone",
                    Read::Unreadable => "lost",
                };
                (id.sequence(), what)
            };
            answer.records().map(of).collect::<Vec<_>>()
        });
        all.collect()
    }

    fn restart(&self) -> (Vec<u64>, Report) {
        let Recovered { state, report, .. } = recover(&Folder(&self.disk), options(), 1).unwrap();
        (state.messages.iter().map(|message| message.id.sequence()).collect(), report)
    }
}

/// Two messages that are each a little more than a block are together less than half a segment, and
/// fit into no one segment: with a free segment and two spares that is more than there should be on
/// disk, and emptying one only moves its message behind the other. That ends.
#[test]
fn emptying_ends_when_nothing_is_won() {
    for len in (BLOCK - 96..BLOCK).step_by(4) {
        let mut host = Host::new();
        for sequence in 1..=40 {
            let len = if sequence % 20 == 0 { len } else { 3000 };
            host.commit(&[publish(sequence, len)]);
        }
        let acks: Vec<Record> = (1..=40).filter(|n| n % 20 > 0).map(acked).collect();
        host.commit(&acks);
        let turns = host.go(1000);
        assert!(turns < 1000, "two of {len} bytes: {turns} turns");
    }
}

/// What is on disk stays within its bound, whatever part of a segment is needed, and whatever spares a
/// start has found.
#[test]
fn what_is_on_disk_is_bounded() {
    for kept in 1..12 {
        let mut host = Host::new();
        for round in 0..4 {
            let first = round * 40 + 1;
            (first..first + 40).for_each(|sequence| host.commit(&[publish(sequence, 3000)]));
            let acks: Vec<Record> = (first + kept..first + 40).map(acked).collect();
            host.commit(&acks);
            if round % 2 == 1 {
                // What was free is a spare, however much that is.
                host.disk.kill();
                let Recovered { log, .. } = recover(&Folder(&host.disk), options(), 1).unwrap();
                (host.log, host.number) = (log, 0);
                host.commit(&[acked(first + kept)]);
            }
            let turns = host.go(1000);
            assert!(turns < 1000, "{kept} of {round}: {turns} turns");
            // What is free is used again, or removed, when a commit says so.
            (0..4).for_each(|_| host.commit(&[acked(first)]));
            let some = (JOURNAL_DISK_SEGMENTS + 1) * 16 * 1024;
            let bound = JOURNAL_DISK_FACTOR * host.log.live_bytes() + some;
            assert!(host.log.disk_bytes() <= bound, "{kept}: {} of {bound}", host.log.disk_bytes());
            let acks: Vec<Record> = (first..first + kept).map(acked).collect();
            host.commit(&acks);
        }
    }
}

/// A disk that cannot be read for a while, with nothing being written meanwhile, costs time and no
/// message.
#[test]
fn a_queue_waits_until_the_disk_can_be_read() {
    let mut host = Host::with_messages(8);
    host.disk.trouble.read_error = 1000;
    host.ask(1..=8);
    host.go(60_000);
    assert_eq!(host.read(), []);
    assert_eq!(host.log.take_troubles().len(), 1, "people are told, once");
    host.disk.trouble.read_error = 0;
    host.go(10_000);
    let found = host.read();
    assert_eq!(found, [(1, "read"), (2, "read")], "in parts rather than late");
    host.ask(3..=8);
    host.go(10_000);
    assert_eq!(host.read(), (3..=8).map(|n| (n, "read")).collect::<Vec<_>>());
    assert_eq!(host.log.counters().unreadable, 0);
}

/// What reads as something else, however often, is given up and named.
#[test]
fn what_is_damaged_is_given_up_and_named() {
    let mut host = Host::with_messages(4);
    host.disk.trouble.misread = 1000;
    host.ask(1..=1);
    host.go(10_000);
    assert_eq!(host.read(), [(1, "lost")]);
    let troubles = host.log.take_troubles();
    assert!(troubles.len() == 1 && troubles[0].contains(".journal: byte "), "{troubles:?}");
}

/// Many segments are read through few descriptors.
#[test]
fn few_segments_are_open_at_once() {
    let mut host = Host::with_messages(150);
    for from in [1, 40, 80, 120] {
        host.ask(from..=from + 20);
        host.ask((from..=from + 20).rev());
    }
    host.go(60_000);
    let found = host.read();
    assert!(found.len() >= 8 && found.iter().all(|(_, what)| *what == "read"), "{found:?}");
    assert!(host.log.wrong_books().is_none());
}

/// The oldest segment cannot be read as it is to be freed; then it is free by itself. Nobody waits
/// for the read any more.
#[test]
fn a_read_that_is_no_longer_needed_is_not_waited_for() {
    let mut host = Host::with_messages(3);
    // The first stays, the others make room that is to be reclaimed.
    for sequence in 4..40 {
        if sequence == 10 {
            host.disk.trouble.read_error = 1000;
        }
        host.commit(&[publish(sequence, 3000), acked(sequence)]);
    }
    assert!(host.log.counters().clean_errors > 0);
    host.commit(&[acked(1), acked(2), acked(3)]);
    host.commit(&session());
    let turns = host.go(600_000);
    assert!(turns < 2000, "{turns} turns with nothing to do");
}

/// One bad read of a segment that is to be freed loses nothing.
#[test]
fn a_bad_read_loses_nothing_that_is_needed() {
    let mut host = Host::with_messages(3);
    host.disk.trouble.misread = 1000;
    for sequence in 4..40 {
        host.commit(&[publish(sequence, 3000), acked(sequence)]);
        if host.log.counters().clean_errors > 1 {
            host.disk.trouble.misread = 0;
        }
    }
    host.go(60_000);
    assert!(host.log.counters().clean_errors > 1 && host.log.counters().segments_cleaned > 0);
    assert_eq!(host.log.wrong_books(), None);
    let (found, report) = host.restart();
    assert_eq!((found, report.quarantined), (vec![1, 2, 3], 0));
}

/// A segment that stays unreadable is given up at last, and people are told where.
#[test]
fn a_segment_that_stays_damaged_is_named() {
    let mut host = Host::with_messages(3);
    host.disk.trouble.misread = 1000;
    for sequence in 4..40 {
        host.commit(&[publish(sequence, 3000), acked(sequence)]);
    }
    host.go(60_000);
    assert!(host.log.counters().lost_bytes > 0);
    let troubles = host.log.take_troubles();
    assert!(troubles.iter().any(|text| text.contains("0000") && text.contains("lost")));
}

/// A spare that cannot be opened, or not be written to, is put away and another taken.
#[test]
fn a_bad_spare_does_not_stop_the_journal() {
    // Bytes that no segment has yet, and one that cannot be opened.
    for what in ["open", "write to", "sync", "sync the directory"] {
        let mut host = Host::new();
        let mut bad = None;
        for sequence in 1..20 {
            host.bring(&[publish(sequence, 3000)]);
            for _ in 0..50 {
                host.log.set_clocks(host.clocks());
                while let Some(op) = host.log.next_op() {
                    // The first file that is prepared is bad for ever.
                    let file = match &op {
                        FileOp::Open { file, create: true, .. } if bad.is_none() => {
                            bad = Some(*file);
                            Some(*file)
                        }
                        FileOp::Open { file, .. }
                        | FileOp::Write { file, .. }
                        | FileOp::Sync { file } => Some(*file),
                        _ => None,
                    };
                    let is_bad = op.verb() == what
                        && (file == bad || file.is_none() && sequence < 4)
                        && bad.is_some();
                    let result =
                        if is_bad { Err(std::io::ErrorKind::Other.into()) } else { Ok(()) };
                    match result {
                        Ok(()) => host.disk.submit(0, op),
                        Err(error) => {
                            let done = crate::io::FileDone { op, result: Err(error) };
                            host.log.handle_done(done);
                        }
                    }
                }
                if let Some(done) = host.disk.finish_one(0) {
                    host.log.handle_done(done);
                }
                host.now = host.now + Duration::from_millis(100);
            }
            assert_eq!(host.log.committed(ORIGIN), host.number, "{what}");
        }
        assert!(host.log.counters().errors > 0, "{what}");
    }
}

/// A folder on a medium of which some blocks cannot be read.
struct Scratched<'a> {
    inner: Folder<'a>,
    /// File, and the first byte of a block.
    blocks: Vec<(u32, u64)>,
    /// Files that cannot be opened.
    closed: Vec<u32>,
}

impl Store for Scratched<'_> {
    fn list(&self) -> io::Result<Vec<(u32, u64)>> {
        self.inner.list()
    }

    fn read(&self, file: u32, offset: u64, len: usize, into: &mut Vec<u8>) -> io::Result<()> {
        if self.closed.contains(&file) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let range = offset..offset.saturating_add(len as u64);
        let is_in = |at: u64| at < range.end && at + BLOCK as u64 > range.start;
        if self.blocks.iter().any(|(of, at)| *of == file && is_in(*at)) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        self.inner.read(file, offset, len, into)
    }

    fn name(&self, file: u32) -> String {
        self.inner.name(file)
    }
}

/// Whatever block cannot be read, a start costs what is in it at most, and says where.
#[test]
fn one_unreadable_block_does_not_keep_a_broker_from_starting() {
    let mut host = Host::with_messages(8);
    host.commit(&[acked(1), acked(2), acked(3)]);
    host.go(10_000);
    let files = Folder(&host.disk).list().unwrap();
    assert!(files.len() > 3, "segments and spares: {files:?}");
    for (file, bytes) in files {
        for at in (0..bytes).step_by(BLOCK) {
            let blocks = vec![(file, at)];
            let store = Scratched { inner: Folder(&host.disk), blocks, closed: Vec::new() };
            let found = recover(&store, options(), 1);
            let Recovered { state, report, mut log } = found.unwrap_or_else(|e| panic!("{e}"));
            let known: Vec<u64> = state.messages.iter().map(|m| m.id.sequence()).collect();
            // The first block of a frame costs the whole commit.
            assert!(known.len() >= 3 || state.sessions.is_empty(), "{file}, {at}: {known:?}");
            let is_lost = known != [4, 5, 6, 7, 8];
            assert!(!is_lost || !report.is_whole() || report.torn.is_some(), "{file}, {at}");
            assert_eq!(report.is_whole(), report.damage.is_empty(), "{report:?}");
            // Nothing that could not be read is removed or used again before it was looked at.
            log.set_clocks(host.clocks());
            while let Some(op) = log.next_op() {
                let is_it = matches!(&op, FileOp::Remove { file: f, .. } if f.0 == file);
                assert!(!is_it || at > 0 || known == [4, 5, 6, 7, 8], "{file} is removed");
            }
        }
        let closed = vec![file];
        let store = Scratched { inner: Folder(&host.disk), blocks: Vec::new(), closed };
        assert!(recover(&store, options(), 1).is_err(), "somebody can mend that");
    }
}

/// What a queue holds and could not be read at the start stays in the queue, and is named.
#[test]
fn what_could_not_be_read_at_the_start_is_tried_again() {
    let host = Host::with_messages(3);
    let Recovered { log, .. } = recover(&Folder(&host.disk), options(), 1).unwrap();
    drop(log);
    // It is there when segments are scanned, and not when bodies are read.
    struct Fading<'a>(Folder<'a>, std::cell::Cell<u32>);
    impl Store for Fading<'_> {
        fn list(&self) -> io::Result<Vec<(u32, u64)>> {
            self.0.list()
        }
        fn read(&self, file: u32, offset: u64, len: usize, into: &mut Vec<u8>) -> io::Result<()> {
            self.0.read(file, offset, len, into)?;
            if offset > 0 {
                self.1.set(self.1.get() + 1);
                into.fill(0);
            }
            Ok(())
        }
        fn name(&self, file: u32) -> String {
            self.0.name(file)
        }
    }
    let store = Fading(Folder(&host.disk), std::cell::Cell::new(0));
    let Recovered { state, report, .. } = recover(&store, options(), 1).unwrap();
    assert!(store.1.get() > 0);
    assert_eq!((report.unreadable, report.damage.len(), report.is_whole()), (3, 3, false));
    assert!(report.damage.iter().all(|text| text.contains(".journal: byte ")), "{report:?}");
    let queue: Vec<u64> = state.sessions[0].on_disk.iter().map(|e| e.id.sequence()).collect();
    assert_eq!((queue, state.sessions[0].queue.len()), (vec![1, 2, 3], 0));
}

/// A folder that knows what of it was synced.
struct Syncing<'a> {
    inner: Folder<'a>,
    synced: RefCell<Vec<u32>>,
}

impl Store for Syncing<'_> {
    fn list(&self) -> io::Result<Vec<(u32, u64)>> {
        self.inner.list()
    }

    fn read(&self, file: u32, offset: u64, len: usize, into: &mut Vec<u8>) -> io::Result<()> {
        self.inner.read(file, offset, len, into)
    }

    fn sync(&self, file: u32) -> io::Result<()> {
        self.synced.borrow_mut().push(file);
        Ok(())
    }

    fn name(&self, file: u32) -> String {
        self.inner.name(file)
    }
}

/// What a run has promised to survive the process alone survives the power as well, once a run that
/// promises that has started on it: its clients see the one and cannot tell it from the other.
#[test]
fn what_was_kept_from_the_process_is_kept_from_the_power_by_the_next_start() {
    let mut lost = 0;
    for seed in 0..20 {
        let run = |next: Options| {
            let process = Options { direct: false, ..options() };
            let mut host = Host::starting(Disk::new(seed), process, false);
            (1..=5).for_each(|sequence| host.commit(&[publish(sequence, 3000)]));
            host.start_again(next);
            host.sync = true;
            host.commit(&[publish(6, 3000)]);
            host.disk.cut_power();
            host.restart()
        };
        let (known, report) = run(options());
        assert_eq!(known, [1, 2, 3, 4, 5, 6], "seed {seed}: {report:?}");
        assert!(report.is_whole(), "seed {seed}: {report:?}");
        // It is the start that did it: behind one that promises no more, a power cut takes some.
        let (known, _) = run(Options { direct: false, ..options() });
        lost += u32::from(known.len() < 6);
    }
    assert!(lost > 10, "{lost}");
}

/// A run that writes little leaves little, however large the segments of those before it were.
#[test]
fn starts_that_write_little_leave_little_on_disk() {
    let options = || Options { segment_bytes_max: 1024 * 1024, ..options() };
    let mut host = Host::starting(Disk::new(1), options(), true);
    (1..=100).for_each(|sequence| host.commit(&[publish(sequence, 15_000)]));
    let before = host.log.disk_bytes();
    for sequence in 101..=120 {
        host.start_again(options());
        host.commit(&[publish(sequence, 100)]);
    }
    let after = host.log.disk_bytes();
    assert!(after <= before + 22 * options().segment_bytes_first, "{before}, then {after}");
    assert_eq!(host.restart().0.len(), 120);
}
