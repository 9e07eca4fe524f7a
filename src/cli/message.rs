//! The flags that say what to publish, shared by `pub` and `rr`.
#![forbid(unsafe_code)]

use std::io::Read;
use std::path::PathBuf;

use clap::Args;

use super::connect::parse_qos;
use super::connection::Failure;
use crate::codec::mqtt::QoS;
use crate::codec::mqtt::topic::check_topic_name;

/// See the [module](self).
#[derive(Args, Debug)]
pub(super) struct MessageFlags {
    /// Topic to publish to
    #[arg(short = 't', long, value_name = "TOPIC", allow_hyphen_values = true)]
    topic: Option<String>,
    /// QoS of the message
    #[arg(short = 'q', long, value_name = "0|1|2", default_value = "0", value_parser = parse_qos)]
    pub(super) qos: QoS,
    /// Retain the message
    #[arg(short = 'r', long)]
    pub(super) retain: bool,
    #[command(flatten)]
    source: SourceFlags,
}

#[derive(Args, Debug)]
#[group(multiple = false)]
struct SourceFlags {
    /// The message
    #[arg(short = 'm', long, value_name = "TEXT", allow_hyphen_values = true)]
    message: Option<String>,
    /// Send the contents of a file
    #[arg(short = 'f', long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Send an empty message; with -r it deletes the retained one
    #[arg(short = 'n', long)]
    null_message: bool,
    /// Send all of the standard input as one message
    #[arg(short = 's', long)]
    stdin_file: bool,
    /// Send each line of the standard input as a message
    #[arg(short = 'l', long)]
    stdin_line: bool,
}

/// What to publish.
#[derive(Debug)]
pub(super) enum Source {
    /// One payload.
    Payload(Vec<u8>),
    /// Lines of the standard input, each one.
    Lines,
}

impl MessageFlags {
    /// The topic, by flag or by URL.
    pub(super) fn topic(&self, url: Option<&str>) -> Result<String, Failure> {
        let topic = self.topic.as_deref().or(url);
        let topic = topic.ok_or_else(|| Failure::usage("which topic? -t TOPIC is missing"))?;
        check_topic_name(topic)
            .map_err(|error| Failure::usage(format!("cannot publish to {topic:?}: {error}")))?;
        Ok(topic.to_owned())
    }

    /// What to publish; reads a file or, for `-s`, the standard input.
    pub(super) fn source(&self) -> Result<Source, Failure> {
        let from = &self.source;
        if let Some(text) = &from.message {
            return Ok(Source::Payload(text.clone().into_bytes()));
        }
        if let Some(file) = &from.file {
            let payload = std::fs::read(file)
                .map_err(|error| Failure::usage(format!("{}: {error}", file.display())))?;
            return Ok(Source::Payload(payload));
        }
        if from.stdin_file {
            let mut payload = Vec::new();
            std::io::stdin()
                .lock()
                .read_to_end(&mut payload)
                .map_err(|error| Failure::failed(format!("standard input: {error}")))?;
            return Ok(Source::Payload(payload));
        }
        if from.stdin_line {
            return Ok(Source::Lines);
        }
        if from.null_message {
            return Ok(Source::Payload(Vec::new()));
        }
        Err(Failure::usage("what to send? One of -m, -f, -l, -n and -s is needed"))
    }
}
