//! The cases with messages for sessions without a connection: with a journal, whose files take
//! everything at once and keep nothing, and without one.

use std::io;

use noctule::broker::{Broker, Config, Disconnection, Record};
use noctule::codec::mqtt::{Connect, Packet, Version};
use noctule::ids::{PlacementKey, ShardId};
use noctule::io::file::{FileDone, FileOp};
use noctule::journal::log::{Log, Options};
use noctule::journal::record::Clocks;
use noctule::journal::recover;
use noctule::journal::scan::Store;
use noctule::limits::{CONTENTS_KEPT, JOURNAL_SEGMENT_BYTES_FIRST, JOURNAL_SEGMENT_BYTES_MAX};

use super::{NOW, acknowledge, conn, connect, flush, handle, publish, subscribe, topic};
use crate::clients;

/// One case.
pub struct Case {
    pub name: &'static str,
    has_journal: bool,
    /// The sessions come back and take it all.
    is_drained: bool,
}

pub const CASES: &[Case] = &[
    Case { name: "queued-qos1", has_journal: false, is_drained: false },
    Case { name: "stored-qos1", has_journal: true, is_drained: false },
    Case { name: "queued-drained-qos1", has_journal: false, is_drained: true },
    Case { name: "stored-drained-qos1", has_journal: true, is_drained: true },
];

const ORIGIN: ShardId = ShardId::new(0);
const PUBLISHERS: u32 = 100;
const UNACKNOWLEDGED: usize = 20;
const PAYLOAD: usize = 64;
const VERSION: Version = Version::V311;

/// What the journal begins with.
struct Nothing;

impl Store for Nothing {
    fn list(&self) -> io::Result<Vec<(u32, u64)>> {
        Ok(Vec::new())
    }

    fn read(&self, _: u32, _: u64, _: usize, _: &mut Vec<u8>) -> io::Result<()> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn name(&self, file: u32) -> String {
        file.to_string()
    }
}

/// The journal with its host's part, as the shard has it.
struct Journal {
    log: Log,
    ops: Vec<FileOp>,
}

impl Journal {
    fn new() -> Self {
        let options = Options {
            folder: "journal".into(),
            placement: 1,
            segment_bytes_first: JOURNAL_SEGMENT_BYTES_FIRST,
            segment_bytes_max: JOURNAL_SEGMENT_BYTES_MAX,
            direct: true,
        };
        let log = recover::recover(&Nothing, options, 1).expect("there is nothing").log;
        Self { log, ops: Vec::new() }
    }

    /// What a tick does at its end, and the next one at its beginning.
    fn commit(&mut self, broker: &mut Broker) {
        let clocks = Clocks { monotonic: NOW, unix_ms: 1_000_000 };
        self.log.set_clocks(clocks);
        for change in broker.out.changes.drain(..) {
            self.log.append_own(ORIGIN, &change, clocks);
            if let Record::Publish { mut content, .. } = change.record
                && broker.out.contents.len() < CONTENTS_KEPT
            {
                content.clear();
                broker.out.contents.push(content);
            }
        }
        while !self.log.is_idle() {
            while let Some(op) = self.log.next_op() {
                self.ops.push(op);
            }
            for op in self.ops.drain(..) {
                let result = match &op {
                    FileOp::Write { buf, from, .. } => buf.len() - from,
                    FileOp::Read { .. } => panic!("nothing is read back"),
                    _ => 0,
                };
                self.log.handle_done(FileDone { op, result: Ok(result) });
            }
        }
        broker.handle_committed(NOW, self.log.committed(ORIGIN));
    }
}

fn come(broker: &mut Broker, index: u32, id: u32) {
    clients::open(broker, index);
    let client_id = format!("client-{id}");
    let connect = Connect { clean_start: false, ..Connect::new(VERSION, &client_id) };
    let mut frame = Vec::new();
    Packet::Connect(connect).encode(VERSION, &mut frame);
    clients::first(broker, index, &frame);
}

/// Stores about so many messages, of publishers that each have an absent session for them.
pub fn run(case: &Case, messages: usize) {
    let config = Config {
        record_changes: case.has_journal,
        queue_len_max: usize::MAX,
        queue_bytes_max: usize::MAX,
        memory_budget: usize::MAX / 2,
        ..Config::default()
    };
    let mut broker = Broker::new(config, ORIGIN, 1, PlacementKey(1), 1);
    let mut journal = case.has_journal.then(Journal::new);
    let mut commit = |broker: &mut Broker| {
        if let Some(journal) = &mut journal {
            journal.commit(broker);
        }
    };
    for id in 0..PUBLISHERS {
        connect(&mut broker, id, VERSION, None);
        let index = PUBLISHERS + id;
        come(&mut broker, index, index);
        commit(&mut broker);
        subscribe(&mut broker, index, VERSION, &topic(id), 1);
        commit(&mut broker);
        flush(&mut broker, |_, _| {});
        broker.handle_closed(NOW, conn(index), Disconnection::Eof);
    }
    let inputs: Vec<Vec<u8>> = (0..PUBLISHERS)
        .map(|id| {
            let ids = 1..=UNACKNOWLEDGED as u16;
            ids.flat_map(|packet| publish(VERSION, 1, &topic(id), packet, PAYLOAD)).collect()
        })
        .collect();
    let mut stored = 0;
    while stored < messages {
        for (id, input) in inputs.iter().enumerate() {
            handle(&mut broker, conn(id as u32), input);
        }
        stored += inputs.len() * UNACKNOWLEDGED;
        commit(&mut broker);
        flush(&mut broker, |_, _| {});
    }
    assert_eq!(broker.stats().messages_queued, stored as u64, "all are queued");
    if case.is_drained {
        drain(&mut broker, &mut commit, stored);
    }
    println!("{stored}");
}

fn drain(broker: &mut Broker, commit: &mut impl FnMut(&mut Broker), stored: usize) {
    for id in 0..PUBLISHERS {
        come(broker, 2 * PUBLISHERS + id, PUBLISHERS + id);
    }
    acknowledge(broker, VERSION, commit);
    assert_eq!(broker.stats().messages_out_qos1, stored as u64, "all were delivered");
}
