//! `noctule rr`: publishes a request and prints the response.
//!
//! In version 5 the request carries its response topic and correlation data. A message with other
//! correlation data is not the response; one without any is, on a topic that the user has chosen
//! (`-e`): its responder may know nothing of them. Before version 5, the first message on the
//! response topic is the response.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::Read;
use std::process::ExitCode;

use clap::Args;

use super::connect::ConnectFlags;
use super::connection::{Connection, Ended, Failure};
use super::format::{self, Format};
use super::message::{MessageFlags, Source};
use super::sub::{deadline, write_out};
use crate::client::{Client, Event, Message, Properties};
use crate::clock::{self, Time};
use crate::codec::mqtt::topic::check_topic_name;
use crate::codec::mqtt::{
    Publish, QoS, ReasonCode, SubscribeFilter, SubscriptionOptions, UserProperties, Version,
};

/// Flags of `noctule rr`, named as those of `mosquitto_rr`.
#[derive(Args, Debug)]
#[command(after_help = format::HELP)]
pub struct RrFlags {
    #[command(flatten)]
    message: MessageFlags,
    /// Topic of the response [default: one of its own]
    #[arg(short = 'e', value_name = "TOPIC")]
    response_topic: Option<String>,
    /// Give up after this many seconds, with code 27; may have a fraction
    #[arg(short = 'W', value_name = "SECONDS")]
    timeout: Option<f64>,
    /// Do not take a retained message for the response
    #[arg(short = 'R')]
    no_retained: bool,
    /// Print the topic before the payload, and on stderr how long it took
    #[arg(short = 'v', long)]
    verbose: bool,
    /// Print the response in this format, see below
    #[arg(short = 'F', value_name = "FORMAT", allow_hyphen_values = true)]
    format: Option<String>,
    /// Print no new line after the response
    #[arg(short = 'N')]
    no_new_line: bool,
    /// Indent JSON (%j, %J)
    #[arg(long)]
    pretty: bool,
    #[command(flatten)]
    connect: ConnectFlags,
}

/// Asks, waits, prints.
pub fn run(flags: &RrFlags) -> ExitCode {
    super::end_client(ask(flags), flags.connect.quiet)
}

fn ask(flags: &RrFlags) -> Result<(), Failure> {
    let resolved = flags.connect.resolve("rr")?;
    let topic = flags.message.topic(resolved.topic.as_deref())?;
    let Source::Payload(payload) = flags.message.source()? else {
        return Err(Failure::usage("one request at a time: -l is for noctule pub"));
    };
    let until = flags.timeout.map(|seconds| deadline(seconds, "-W")).transpose()?;
    let new_line = !flags.no_new_line;
    let token = random_token()?;
    let response_topic = match &flags.response_topic {
        Some(topic) => topic.clone(),
        None => format!("noctule/rr/{token}"),
    };
    check_topic_name(&response_topic)
        .map_err(|error| Failure::usage(format!("response topic {response_topic:?}: {error}")))?;
    let mut properties = resolved.given.publish;
    if resolved.options.version == Version::V5 {
        properties.response_topic = Some(response_topic.clone());
        properties.correlation_data.get_or_insert_with(|| token.into_bytes());
    }
    let mut asker = Asker {
        flags,
        topic,
        payload,
        response_topic,
        properties,
        format: match &flags.format {
            None => Format::simple(flags.verbose, new_line),
            Some(format) => {
                Format::parse(format, new_line, flags.pretty).map_err(Failure::usage)?
            }
        },
        asked: None,
        out: Vec::new(),
        answered: false,
        failure: None,
        ended: None,
    };
    let mut connection = Connection::open(resolved.target, flags.connect.bind, resolved.options)?;
    while connection.is_open() {
        let turn =
            connection.turn(until, None, &mut |client, event| asker.on_event(client, event))?;
        let read = write_out(&mut asker.out)?;
        let late = until.is_some_and(|until| clock::now() >= until);
        if late && !asker.answered && asker.failure.is_none() {
            asker.failure = Some(Failure::timeout("no response in time (-W)"));
        }
        if turn.interrupted || late || !read {
            connection.client.disconnect(clock::now(), ReasonCode::NORMAL_DISCONNECTION);
        }
    }
    if let Some(failure) = asker.failure {
        return Err(failure);
    }
    match asker.ended.and_then(|ended| connection.describe(&ended)) {
        Some(failure) if !asker.answered => Err(failure),
        _ => Ok(()),
    }
}

/// 16 random hexadecimal digits.
fn random_token() -> Result<String, Failure> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|error| Failure::failed(format!("/dev/urandom: {error}")))?;
    Ok(format!("{:016x}", u64::from_ne_bytes(bytes)))
}

struct Asker<'a> {
    flags: &'a RrFlags,
    topic: String,
    payload: Vec<u8>,
    response_topic: String,
    properties: Properties,
    format: Format,
    /// When the request was published.
    asked: Option<Time>,
    out: Vec<u8>,
    answered: bool,
    failure: Option<Failure>,
    ended: Option<Ended>,
}

impl Asker<'_> {
    fn on_event(&mut self, client: &mut Client, event: Event<'_>) {
        match event {
            Event::Connected { .. } => self.subscribe(client),
            Event::Subscribed { codes, .. } => {
                let reason = ReasonCode(codes.first().copied().unwrap_or(0));
                if reason.is_error() {
                    let message = format!("the server refused {:?}: {reason}", self.response_topic);
                    self.fail(client, Failure::refused(reason, message));
                } else {
                    self.publish(client);
                }
            }
            Event::Acked { reason, .. } if reason.is_error() => {
                let message = format!("the server refused the request: {reason}");
                self.fail(client, Failure::refused(reason, message));
            }
            Event::Acked { reason: ReasonCode::NO_MATCHING_SUBSCRIBERS, .. }
                if self.flags.verbose =>
            {
                eprintln!("noctule: nobody has subscribed to {:?}", self.topic);
            }
            Event::Message(publish) => self.on_message(client, &publish),
            Event::Disconnected(ending) => {
                self.ended = Some(Ended::new(&ending, client.options().version));
            }
            _ => {}
        }
    }

    fn subscribe(&mut self, client: &mut Client) {
        let options = SubscriptionOptions::new(self.qos());
        let filters = [SubscribeFilter { filter: &self.response_topic, options }];
        if let Err(error) = client.subscribe(clock::now(), &filters, None, UserProperties::EMPTY) {
            self.fail(client, Failure::failed(format!("cannot subscribe: {error}")));
        }
    }

    fn qos(&self) -> QoS {
        self.flags.message.qos
    }

    fn publish(&mut self, client: &mut Client) {
        let now = clock::now();
        let pairs = self.properties.borrowed_pairs();
        let message = Message {
            topic: &self.topic,
            payload: &self.payload,
            qos: self.qos(),
            retain: self.flags.message.retain,
            properties: self.properties.borrow(&pairs),
        };
        match client.publish(now, &message) {
            Ok(_) => self.asked = Some(now),
            Err(error) => {
                let failure = Failure::failed(format!("cannot publish: {error}"));
                self.fail(client, failure);
            }
        }
    }

    fn on_message(&mut self, client: &mut Client, publish: &Publish<'_>) {
        let asked = match (self.asked, self.objection(publish)) {
            (Some(asked), None) => asked,
            (_, objection) => {
                if self.flags.connect.debug {
                    let why = objection.unwrap_or("nothing was asked yet");
                    eprintln!("noctule: discarded a message on {:?}: {why}", publish.topic);
                }
                return;
            }
        };
        self.answered = true;
        if let Err(error) = self.format.write(publish, clock::unix_time(), &mut self.out) {
            self.failure = Some(Failure::failed(error));
        }
        if self.flags.verbose {
            let micros = clock::now().since(asked).as_micros();
            eprintln!("response after {micros} µs");
        }
        client.disconnect(clock::now(), ReasonCode::NORMAL_DISCONNECTION);
    }

    /// Why this is not the response.
    fn objection(&self, publish: &Publish<'_>) -> Option<&'static str> {
        // Only version 5 asks with them.
        let wanted = self.properties.response_topic.as_ref().map(|_| &self.properties);
        match (wanted, publish.properties.correlation_data) {
            _ if self.answered => Some("the response has come already"),
            _ if publish.retain && self.flags.no_retained => Some("it is retained (-R)"),
            (Some(_), None) if self.flags.response_topic.is_none() => {
                Some("it has no correlation data")
            }
            (Some(wanted), Some(data)) if wanted.correlation_data.as_deref() != Some(data) => {
                Some("its correlation data are another request's")
            }
            _ => None,
        }
    }

    fn fail(&mut self, client: &mut Client, failure: Failure) {
        self.failure = Some(failure);
        client.disconnect(clock::now(), ReasonCode::NORMAL_DISCONNECTION);
    }
}
