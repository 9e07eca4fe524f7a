//! What does it cost to append to an outbox and to hand out what is to be sent, small frames copied
//! and large payloads shared?
//!
//! `cargo bench --bench outbox`. Without the send itself. Appending stands for many messages of one
//! turn; flushing is what the backends do: all of it, and the rest after the kernel took a part.
//! Quote medians of an idle machine, and ratios within one run.
#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "criterion's macros")]

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use noctule::buf::OutBuf;
use std::hint::black_box;

/// Frames of one turn.
const FRAMES: usize = 64;
/// What stands before a shared payload.
const HEAD: [u8; 24] = [0x30; 24];

/// The bytes that a send would hand over.
fn flush(outbox: &OutBuf, skip: usize) -> usize {
    if outbox.is_contiguous() {
        return black_box(&outbox.contiguous()[skip..]).len();
    }
    outbox.slices_from(skip).map(|slice| black_box(slice).len()).sum()
}

fn outbox(c: &mut Criterion) {
    let mut group = c.benchmark_group("outbox");
    group.throughput(Throughput::Elements(FRAMES as u64));
    let mut outbox = OutBuf::new();
    for size in [16, 88, 1024, 4096] {
        let frame = vec![0x55; size];
        let append = |outbox: &mut OutBuf| {
            for _ in 0..FRAMES {
                outbox.extend_from_slice(black_box(&frame));
            }
        };
        group.bench_function(format!("append and flush {FRAMES} copied frames of {size} B"), |b| {
            b.iter(|| {
                outbox.clear();
                append(&mut outbox);
                assert_eq!(flush(&outbox, 0), FRAMES * size);
            });
        });
    }
    for size in [4096, 65_536] {
        let payload = Bytes::from(vec![0x55; size]);
        let all = FRAMES * (HEAD.len() + size);
        let append = |outbox: &mut OutBuf| {
            for _ in 0..FRAMES {
                outbox.extend_from_slice(black_box(&HEAD));
                outbox.push_shared(payload.clone());
            }
        };
        group.bench_function(format!("append {FRAMES} shared payloads of {size} B"), |b| {
            b.iter(|| {
                outbox.clear();
                append(&mut outbox);
                assert_eq!(outbox.len(), all);
            });
        });
        outbox.clear();
        append(&mut outbox);
        for (name, skip) in [("all", 0), ("the second half", all / 2)] {
            group.bench_function(format!("flush {name} of {FRAMES} payloads of {size} B"), |b| {
                b.iter(|| assert_eq!(flush(&outbox, black_box(skip)), all - skip));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, outbox);
criterion_main!(benches);
