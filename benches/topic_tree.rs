//! What does it cost to find the filters that match a topic, among 1, a thousand, a million?
//!
//! `cargo bench --bench topic_tree`. One filter matches each topic; the topics go through all the
//! filters in an order that caches cannot guess, so large trees show what memory costs, as a broker
//! does whose clients all have something to say. (One that publishes the same topic again does not
//! come here: `route::find` remembers.) Quote medians of an idle machine, and ratios within one run.
#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "criterion's macros")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use noctule::broker::topic_tree::TopicTree;
use std::hint::black_box;

const SEED: u64 = 1;
/// Topics to ask for, at most; more than a processor's caches hold of a large tree.
const TOPICS_MAX: usize = 1 << 16;
/// Coprime to all sizes: the order of the topics.
const STRIDE: usize = 611_953;

/// The topic that belongs to a filter: levels as deployments have them.
fn topic(index: usize) -> String {
    format!("plant/{}/line/{}/machine/{}/temperature", index % 10, index / 10 % 100, index / 1000)
}

/// Filters that match one topic each, by what their last level is; a plain one has the topic's.
const KINDS: [(&str, &str); 3] = [("plain", "temperature"), ("+", "+"), ("#", "#")];

fn count(tree: &TopicTree<usize>, topic: &str) -> usize {
    let mut count = 0;
    tree.visit_matches(topic, |_, value| {
        black_box(value);
        count += 1;
    });
    count
}

fn topic_tree(c: &mut Criterion) {
    let mut group = c.benchmark_group("match");
    group.throughput(Throughput::Elements(1));
    for (kind, last_level) in KINDS {
        for size in [1, 1_000, 100_000, 1_000_000] {
            let name = format!("{kind}, {size} filters");
            let mut tree = TopicTree::new(SEED);
            for index in 0..size {
                let filter = topic(index).replace("temperature", last_level);
                tree.insert_with(&filter, || index);
            }
            assert_eq!(tree.len(), size, "all filters differ");
            let topics: Vec<String> =
                (0..size.min(TOPICS_MAX)).map(|n| topic(n * STRIDE % size)).collect();
            assert!(topics.iter().all(|topic| count(&tree, topic) == 1), "{name}");
            let mut next = topics.iter().cycle();
            group.bench_function(name, |b| {
                b.iter(|| count(&tree, next.next().expect("a cycle")));
            });
        }
    }
    // What nobody wants, and what a filter for all topics adds.
    let mut tree = TopicTree::new(SEED);
    for index in 0..100_000 {
        tree.insert_with(&topic(index), || index);
    }
    group.bench_function("nothing, 100000 filters", |b| {
        b.iter(|| count(&tree, black_box("plant/3/line/7/office/1/temperature")));
    });
    tree.insert_with("#", || 0);
    tree.insert_with("+/+/line/#", || 0);
    group.bench_function("plain and two wildcards, 100002 filters", |b| {
        b.iter(|| count(&tree, black_box("plant/3/line/7/machine/1/temperature")));
    });
    group.finish();
}

criterion_group!(benches, topic_tree);
criterion_main!(benches);
