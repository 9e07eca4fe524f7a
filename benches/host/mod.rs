//! A journal through its real backend, for what measures it: a host, and records for it.
#![forbid(unsafe_code)]

use std::path::Path;
use std::rc::Rc;

use bytes::Bytes;
use noctule::broker::durable::MessageId;
use noctule::broker::{Content, QoS, Record};
use noctule::clock;
use noctule::ids::ShardId;
use noctule::io::{Backend, Completion, Wait};
use noctule::journal::log::{Log, Options};
use noctule::journal::record::{Batch, Clocks};
use noctule::journal::recover;
use noctule::limits::{JOURNAL_SEGMENT_BYTES_FIRST, JOURNAL_SEGMENT_BYTES_MAX};

/// The one shard.
pub const ORIGIN: ShardId = ShardId::new(0);

/// Now.
pub fn clocks() -> Clocks {
    Clocks { monotonic: clock::now(), unix_ms: clock::unix_time().as_millis() as u64 }
}

/// A message of so many bytes that the session of [`Host`] wants.
pub fn publish(sequence: u64, payload: &'static [u8]) -> Record {
    Record::Publish {
        message: MessageId::new(ORIGIN, sequence),
        publisher: Rc::from("sensor-0001"),
        packet_id: None,
        content: Content::new(
            "building/floor-2/room-17/temperature",
            &[],
            Bytes::from_static(payload),
        ),
        qos: QoS::AtLeastOnce,
        retain: false,
        deadline: None,
        is_will: false,
        groups: None,
    }
}

/// As a broker has them.
pub fn options(folder: &Path) -> Options {
    Options {
        folder: folder.to_owned(),
        placement: 1,
        segment_bytes_first: JOURNAL_SEGMENT_BYTES_FIRST,
        segment_bytes_max: JOURNAL_SEGMENT_BYTES_MAX,
        direct: true,
    }
}

/// A journal with one shard, without clients.
pub struct Host<B> {
    pub backend: B,
    pub log: Log,
    pub number: u64,
    pub batch: Batch,
}

impl<B: Backend> Host<B> {
    /// With the options of a broker.
    pub fn new(backend: B, folder: &Path) -> Self {
        Self::with(backend, options(folder))
    }

    /// A new journal, with a session that wants all of it.
    pub fn with(backend: B, options: Options) -> Self {
        let log = recover::open(options, 1).expect("an empty journal").log;
        let mut host = Self { backend, log, number: 0, batch: Batch::default() };
        let client_id: Rc<str> = Rc::from("archive");
        host.bring(&Record::Session {
            client_id: client_id.clone(),
            expiry_secs: 600,
            offline_since: None,
        });
        host.bring(&Record::Subscribe {
            client_id,
            filter: "building/#".into(),
            options: 1,
            subscription_id: None,
            seen: Box::default(),
        });
        host.commit();
        host
    }

    /// Adds a record to the next commit.
    pub fn bring(&mut self, record: &Record) {
        self.number += 1;
        self.batch.push(ORIGIN, self.number, record, clocks());
    }

    /// Commits what was brought, synced.
    pub fn commit(&mut self) {
        self.batch.sync = true;
        self.log.append(ORIGIN, &self.batch);
        self.batch.clear(1 << 20);
        let mut completions = Vec::new();
        while self.log.committed(ORIGIN) < self.number {
            self.log.set_clocks(clocks());
            while let Some(op) = self.log.next_op() {
                self.backend.file(op);
            }
            self.backend.poll(Wait::Forever, &mut completions).expect("it polls");
            for completion in completions.drain(..) {
                if let Completion::File(done) = completion {
                    self.log.handle_done(*done);
                }
            }
        }
    }
}
