//! The control thread after the start: waits for signals and for shards that end, and reports.
//!
//! It holds no lock and shares nothing with the shards; it sends a message and wakes them.
#![forbid(unsafe_code)]

use std::io::Write;
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};

use serde_json::{Map, Value, json};

use super::Failure;
use super::instance::replace_file;
use super::signals::Request;
use crate::clock::{self, Time};
use crate::ids::ShardId;
use crate::io::Waker;
use crate::limits::{REPORT_WAIT, STOP_WAIT};
use crate::shard::{ControlMessage, ShardStats};

/// What the control thread waits for.
#[derive(Debug)]
pub enum Event {
    /// A signal.
    Signal(Request),
    /// A shard's thread is over, with its last counters or the reason.
    ShardEnded(ShardId, Result<Box<ShardStats>, String>),
}

/// The control thread's end of one shard.
#[derive(Debug)]
pub struct ShardHandle {
    /// Its mailbox.
    pub control: Sender<ControlMessage>,
    /// What makes it look there.
    pub waker: Waker,
}

impl ShardHandle {
    fn send(&self, message: ControlMessage) {
        // A shard that has ended takes no messages; its end is an event of its own.
        let _ = self.control.send(message);
        self.waker.wake();
    }
}

/// The control thread's state.
#[derive(Debug)]
pub struct Control {
    /// All shards, by number.
    pub shards: Vec<ShardHandle>,
    /// What happens.
    pub events: Receiver<Event>,
    /// Where reports go besides stdout.
    pub stats_file: Option<PathBuf>,
    /// When the broker began to serve.
    pub since: Time,
}

impl Control {
    /// Serves until told to stop and all shards have stopped.
    ///
    /// # Errors
    /// When a shard ends by itself, does not stop in time, or a second signal comes.
    pub fn run(&self) -> Result<(), Failure> {
        loop {
            match self.events.recv().expect("invariant: the signals thread holds a sender") {
                Event::Signal(Request::Report) => self.report(&self.collect()),
                Event::Signal(Request::Stop(signal)) => {
                    tracing::info!(signal, "stopping; a second signal exits at once");
                    let last = self.stop()?;
                    self.report(&last);
                    tracing::info!("stopped");
                    return Ok(());
                }
                Event::ShardEnded(shard, outcome) => return Err(ended(shard, outcome.err())),
            }
        }
    }

    /// Asks all shards to stop, and does not wait.
    pub fn begin_stop(&self) {
        for shard in &self.shards {
            shard.send(ControlMessage::Shutdown);
        }
    }

    /// Stops all shards: their last counters.
    ///
    /// # Errors
    /// As [`Control::run`].
    pub fn stop(&self) -> Result<Vec<ShardStats>, Failure> {
        self.begin_stop();
        let deadline = clock::now() + STOP_WAIT;
        let mut last: Vec<ShardStats> = Vec::with_capacity(self.shards.len());
        while last.len() < self.shards.len() {
            match self.events.recv_timeout(deadline.since(clock::now())) {
                Ok(Event::ShardEnded(_, Ok(stats))) => last.push(*stats),
                Ok(Event::ShardEnded(shard, Err(reason))) => {
                    return Err(ended(shard, Some(reason)));
                }
                Ok(Event::Signal(Request::Stop(signal))) => return Err(Failure::Killed(signal)),
                Ok(Event::Signal(Request::Report)) => {}
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    let late = self.shards.len() - last.len();
                    return Err(Failure::Broken(format!(
                        "{late} of {} shards did not stop within {STOP_WAIT:?}",
                        self.shards.len()
                    )));
                }
            }
        }
        last.sort_by_key(|stats| stats.shard);
        Ok(last)
    }

    /// The counters of all shards that answer in time.
    pub fn collect(&self) -> Vec<ShardStats> {
        let (reply, replies) = mpsc::channel();
        for shard in &self.shards {
            shard.send(ControlMessage::Stats(reply.clone()));
        }
        drop(reply);
        let deadline = clock::now() + REPORT_WAIT;
        let mut all = Vec::with_capacity(self.shards.len());
        while let Ok(stats) = replies.recv_timeout(deadline.since(clock::now())) {
            all.push(stats);
            if all.len() == self.shards.len() {
                break;
            }
        }
        all.sort_by_key(|stats: &ShardStats| stats.shard);
        all
    }

    /// One JSON line to stdout, and the same to the file.
    fn report(&self, stats: &[ShardStats]) {
        let shards: Vec<Value> = stats.iter().map(shard_json).collect();
        let uptime = clock::now().since(self.since);
        let report = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "uptime_ms": u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX),
            "total": total(&shards),
            "shards": shards,
        });
        let line = format!("{report}\n");
        if let Err(error) = std::io::stdout().write_all(line.as_bytes()) {
            tracing::debug!(%error, "cannot print the counters");
        }
        if let Some(path) = &self.stats_file
            && let Err(error) = replace_file(path, line.as_bytes())
        {
            tracing::warn!(path = %path.display(), %error, "cannot write the counters");
        }
    }
}

fn ended(shard: ShardId, reason: Option<String>) -> Failure {
    let reason = reason.unwrap_or_else(|| "it ended without being asked".to_owned());
    Failure::Broken(format!("shard {}: {reason}", shard.index()))
}

fn shard_json(stats: &ShardStats) -> Value {
    let mut broker = Map::new();
    stats.broker.each(|name, count| drop(broker.insert(name.to_owned(), json!(count))));
    // Only those that came: there are many causes, named by sentences.
    let mut decode_errors = Map::new();
    stats.broker.each_decode_error(|cause, count| {
        if count > 0 {
            decode_errors.insert(cause.to_owned(), json!(count));
        }
    });
    let mut all = json!({
        "shard": stats.shard.index(),
        "broker": broker,
        "decode_errors": decode_errors,
        "io": stats.io,
        "loop": stats.shard_loop,
    });
    if let Some(journal) = stats.journal {
        all["journal"] = json!(journal);
    }
    all
}

/// The sum over all shards, counter by counter, in the same groups.
fn total(shards: &[Value]) -> Value {
    let mut sum = Value::Object(Map::new());
    for shard in shards {
        add(&mut sum, shard);
    }
    if let Value::Object(groups) = &mut sum {
        groups.remove("shard");
    }
    sum
}

fn add(sum: &mut Value, more: &Value) {
    match (sum, more) {
        (Value::Object(sum), Value::Object(more)) => {
            for (name, value) in more {
                let empty = if value.is_object() { Value::Object(Map::new()) } else { json!(0) };
                add(sum.entry(name).or_insert(empty), value);
            }
        }
        (sum, more) => {
            if let (Some(a), Some(b)) = (sum.as_u64(), more.as_u64()) {
                *sum = json!(a.saturating_add(b));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_add_up_by_name() {
        let shards = [
            json!({"shard": 0, "io": {"sent": 1, "enters": 2}, "broker": {"drops": {"full": 3}}}),
            json!({"shard": 1, "io": {"sent": 10, "enters": 20}, "broker": {"drops": {"full": 30}}}),
        ];
        let expected = json!({"io": {"sent": 11, "enters": 22}, "broker": {"drops": {"full": 33}}});
        assert_eq!(total(&shards), expected);
        assert_eq!(total(&[]), json!({}));
    }
}
