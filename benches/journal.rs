//! What does a durable message cost: its record, its commit on this disk, and its recovery?
//!
//! `cargo bench --bench journal`. Commits go through the real backend to a directory under the
//! target directory; their time is the disk's as much as ours.
#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "criterion's macros")]

use std::path::Path;
use std::rc::Rc;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use noctule::broker::durable::MessageId;
use noctule::broker::{QoS, Record};
use noctule::clock;
use noctule::ids::ShardId;
use noctule::io::{Backend, Completion, Epoll, Settings, Uring, Wait};
use noctule::journal::log::{Log, Options};
use noctule::journal::record::{Batch, Clocks};
use noctule::journal::recover;
use noctule::limits::{JOURNAL_SEGMENT_BYTES_FIRST, JOURNAL_SEGMENT_BYTES_MAX};

const ORIGIN: ShardId = ShardId::new(0);

fn clocks() -> Clocks {
    Clocks { monotonic: clock::now(), unix_ms: clock::unix_time().as_millis() as u64 }
}

fn publish(sequence: u64) -> Record {
    Record::Publish {
        message: MessageId::new(ORIGIN, sequence),
        publisher: Rc::from("sensor-0001"),
        packet_id: None,
        topic: "building/floor-2/room-17/temperature".into(),
        forwarded: Box::default(),
        payload: Bytes::from_static(&[7; 128]),
        qos: QoS::AtLeastOnce,
        retain: false,
        deadline: None,
        is_will: false,
    }
}

fn options(folder: &Path) -> Options {
    Options {
        folder: folder.to_owned(),
        placement: 1,
        segment_bytes_first: JOURNAL_SEGMENT_BYTES_FIRST,
        segment_bytes_max: JOURNAL_SEGMENT_BYTES_MAX,
    }
}

/// A host with one shard.
struct Host<B> {
    backend: B,
    log: Log,
    number: u64,
    batch: Batch,
}

impl<B: Backend> Host<B> {
    fn new(backend: B, folder: &Path) -> Self {
        let log = recover::open(options(folder), 1).expect("an empty journal").log;
        let mut host = Self { backend, log, number: 0, batch: Batch::default() };
        // A durable session that wants all of it.
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

    fn bring(&mut self, record: &Record) {
        self.number += 1;
        self.batch.push(ORIGIN, self.number, record, clocks());
    }

    fn commit(&mut self) {
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
                    let record = publish(sequence);
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
    let record = publish(1);
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
    const MESSAGES: u64 = 500_000;
    let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a directory");
    let backend = Epoll::new(&Settings::default()).expect("a backend");
    let mut host = Host::new(backend, folder.path());
    for sequence in 1..=MESSAGES {
        host.bring(&publish(sequence));
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

fn disk(c: &mut Criterion) {
    commits(c, "uring", || Uring::new(&Settings::default()).ok());
    commits(c, "epoll", || Epoll::new(&Settings::default()).ok());
}

criterion_group!(benches, encode, disk, recovery);
criterion_main!(benches);
