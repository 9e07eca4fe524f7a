//! What does an item cost on its way from one shard to another, while both are awake?
//!
//! `cargo bench --bench lanes`. On one thread: the rings' own work, without the cache lines that
//! travel between two cores.
#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "criterion's macros")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use noctule::ids::ShardId;
use noctule::mesh::mesh;

fn lanes(c: &mut Criterion) {
    let mut group = c.benchmark_group("lanes");
    for batch in [1, 16, 64] {
        let [mut a, mut b]: [_; 2] = mesh::<Vec<u8>>(2, 64).try_into().expect("two ends");
        let (from, to) = (ShardId::new(0), ShardId::new(1));
        group.throughput(Throughput::Elements(batch));
        group.bench_function(format!("push, wake, pop and recycle {batch}"), |bench| {
            bench.iter(|| {
                for _ in 0..batch {
                    let item = a.reuse(to).unwrap_or_default();
                    a.push(to, item).expect("the lane has room");
                }
                assert!(a.take_wakes().is_empty(), "both are awake");
                while let Some(item) = b.pop(from) {
                    b.recycle(from, item);
                }
                b.take_wakes()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, lanes);
criterion_main!(benches);
