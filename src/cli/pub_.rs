//! `noctule pub`: publishes a message, several times, or the lines of the standard input.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::connect::ConnectFlags;
use super::connection::{Connection, Ended, Failure, read_fd};
use super::message::{MessageFlags, Source};
use crate::client::{Client, Event, Message, Properties, RequestError};
use crate::clock::{self, Time};
use crate::codec::mqtt::{Disconnect, QoS, ReasonCode, UserProperties};
use crate::limits::REMAINING_LENGTH_MAX;

/// Bytes waiting to be sent above which no more input is read.
const OUT_MARK: usize = 1024 * 1024;

/// Flags of `noctule pub`, named as those of `mosquitto_pub`.
#[derive(Args, Debug)]
pub struct PubFlags {
    #[command(flatten)]
    message: MessageFlags,
    /// Publish the message this many times
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    repeat: u64,
    /// Seconds between repetitions; may have a fraction
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0)]
    repeat_delay: f64,
    #[command(flatten)]
    connect: ConnectFlags,
}

/// Publishes and waits for the acknowledgements.
pub fn run(flags: &PubFlags) -> ExitCode {
    super::end_client(publish(flags), flags.connect.quiet)
}

fn publish(flags: &PubFlags) -> Result<(), Failure> {
    let resolved = flags.connect.resolve("pub")?;
    let topic = flags.message.topic(resolved.topic.as_deref())?;
    let source = flags.message.source()?;
    let delay = Duration::try_from_secs_f64(flags.repeat_delay)
        .map_err(|_| Failure::usage("--repeat-delay: not a time"))?;
    let given = resolved.given;
    let mut connection = Connection::open(resolved.target, flags.connect.bind, resolved.options)?;
    let mut publisher = Publisher {
        topic,
        qos: flags.message.qos,
        retain: flags.message.retain,
        properties: given.publish,
        input: match source {
            Source::Payload(payload) => Input::Payload { payload, left: flags.repeat, delay },
            Source::Lines => Input::Lines(Lines::default()),
        },
        next_at: Time::ZERO,
        debug: flags.connect.debug,
        ended: None,
        refused: None,
    };
    let stdin = io::stdin();
    let mut interrupted = false;
    while connection.is_open() {
        let now = clock::now();
        if !interrupted {
            publisher.publish_some(&mut connection.client, now)?;
        }
        if interrupted || publisher.is_done(&connection.client) {
            let pairs = crate::client::borrow_pairs(&given.disconnect);
            let disconnect = Disconnect {
                session_expiry_interval: given.disconnect_expiry,
                user_properties: UserProperties::new(&pairs),
                ..Disconnect::new(ReasonCode::NORMAL_DISCONNECTION)
            };
            connection.client.disconnect_with(now, &disconnect);
        }
        let input = publisher.wants_input(&connection.client).then(|| stdin.as_fd());
        let until = publisher.wakes_at(now);
        let turn = connection
            .turn(until, input, &mut |client, event| publisher.on_event(client, event))?;
        if turn.input
            && let Input::Lines(lines) = &mut publisher.input
        {
            lines.read(&stdin)?;
        }
        interrupted |= turn.interrupted;
    }
    if interrupted && !(publisher.input_is_done() && connection.client.unacknowledged() == 0) {
        return Err(Failure::failed("interrupted before everything was published"));
    }
    if let Some(failure) = publisher.ended.and_then(|ended| connection.describe(&ended)) {
        return Err(failure);
    }
    match publisher.refused {
        Some(failure) => Err(failure),
        None => Ok(()),
    }
}

enum Input {
    Payload { payload: Vec<u8>, left: u64, delay: Duration },
    Lines(Lines),
}

struct Publisher {
    topic: String,
    qos: QoS,
    retain: bool,
    properties: Properties,
    input: Input,
    next_at: Time,
    debug: bool,
    ended: Option<Ended>,
    /// The first message that the server did not take.
    refused: Option<Failure>,
}

impl Publisher {
    /// Publishes what the input has, the window allows, and the time asks for.
    fn publish_some(&mut self, client: &mut Client, now: Time) -> Result<(), Failure> {
        let pairs = self.properties.borrowed_pairs();
        let properties = self.properties.borrow(&pairs);
        while client.is_connected() && client.out.len() < OUT_MARK {
            let payload = match &self.input {
                Input::Payload { payload, left, .. } => {
                    if *left == 0 || now < self.next_at {
                        break;
                    }
                    payload.as_slice()
                }
                Input::Lines(lines) => match lines.peek() {
                    Some(line) => line,
                    None => break,
                },
            };
            let (topic, qos, retain) = (self.topic.as_str(), self.qos, self.retain);
            match client.publish(now, &Message { topic, payload, qos, retain, properties }) {
                Ok(packet_id) => {
                    if self.debug {
                        let id = packet_id.map_or(0, |id| id.get());
                        let len = payload.len();
                        eprintln!("PUBLISH {topic:?}, QoS {}, id {id}, {len} bytes", qos as u8);
                    }
                }
                Err(RequestError::WindowFull) => break,
                Err(error) => return Err(Failure::failed(format!("cannot publish: {error}"))),
            }
            match &mut self.input {
                Input::Payload { left, delay, .. } => {
                    *left -= 1;
                    self.next_at = now + *delay;
                }
                Input::Lines(lines) => lines.take(),
            }
        }
        Ok(())
    }

    fn input_is_done(&self) -> bool {
        match &self.input {
            Input::Payload { left, .. } => *left == 0,
            Input::Lines(lines) => lines.ended && lines.peek().is_none(),
        }
    }

    fn is_done(&self, client: &Client) -> bool {
        client.is_connected() && self.input_is_done() && client.unacknowledged() == 0
    }

    fn wants_input(&self, client: &Client) -> bool {
        match &self.input {
            Input::Payload { .. } => false,
            Input::Lines(lines) => client.is_connected() && !lines.ended && lines.peek().is_none(),
        }
    }

    /// When the next repetition is due, if that is what is waited for.
    fn wakes_at(&self, now: Time) -> Option<Time> {
        match &self.input {
            Input::Payload { left, .. } if *left > 0 && self.next_at > now => Some(self.next_at),
            _ => None,
        }
    }

    fn on_event(&mut self, client: &Client, event: Event<'_>) {
        let version = client.options().version;
        match event {
            Event::Connected { session_present, .. } if self.debug => {
                let id = &client.options().client_id;
                eprintln!("CONNACK, client id {id:?}, session present {session_present}");
            }
            Event::Acked { packet_id, reason, reason_string } => {
                if self.debug {
                    eprintln!("acknowledged id {}: {reason}", packet_id.get());
                }
                if reason.is_error() && self.refused.is_none() {
                    let why = reason_string.map(|text| format!(", {text:?}")).unwrap_or_default();
                    let message = format!("the server refused the message: {reason}{why}");
                    self.refused = Some(Failure::refused(reason, message));
                }
            }
            Event::Disconnected(ending) => self.ended = Some(Ended::new(&ending, version)),
            _ => {}
        }
    }
}

/// Lines of the standard input.
#[derive(Default)]
struct Lines {
    bytes: Vec<u8>,
    /// Where the first line that was not taken begins.
    start: usize,
    /// The first line's length without its end, when it is whole.
    line: Option<usize>,
    ended: bool,
}

impl Lines {
    fn peek(&self) -> Option<&[u8]> {
        self.line.map(|len| &self.bytes[self.start..self.start + len])
    }

    fn take(&mut self) {
        let Some(len) = self.line else { return };
        self.start = (self.start + len + 1).min(self.bytes.len());
        self.find(self.start);
    }

    /// Looks for the end of the first line, from `from` on.
    fn find(&mut self, from: usize) {
        let end = self.bytes[from..].iter().position(|byte| *byte == b'\n');
        let rest = self.bytes.len() - self.start;
        self.line = match end {
            Some(at) => Some(from + at - self.start),
            None if self.ended && rest > 0 => Some(rest),
            None => None,
        };
    }

    fn read(&mut self, stdin: &io::Stdin) -> Result<(), Failure> {
        self.bytes.drain(..self.start);
        self.start = 0;
        let searched = self.bytes.len();
        if searched > REMAINING_LENGTH_MAX {
            return Err(Failure::failed("standard input: a line is too long for a message"));
        }
        self.bytes.resize(searched + 64 * 1024, 0);
        let count = read_fd(stdin, &mut self.bytes[searched..])
            .map_err(|error| Failure::failed(format!("standard input: {error}")))?;
        self.bytes.truncate(searched + count);
        self.ended = count == 0;
        self.find(searched);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_at_their_ends() {
        let mut lines = Lines { bytes: b"one\n\nlast".to_vec(), ..Lines::default() };
        lines.find(0);
        assert_eq!(lines.peek(), Some(&b"one"[..]));
        lines.take();
        assert_eq!(lines.peek(), Some(&b""[..]));
        lines.take();
        assert_eq!(lines.peek(), None, "it may go on");
        lines.ended = true;
        lines.find(lines.start);
        assert_eq!(lines.peek(), Some(&b"last"[..]));
        lines.take();
        assert_eq!(lines.peek(), None);
    }
}
