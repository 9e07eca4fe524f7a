//! `noctule sub`: prints the messages of topic filters.
//!
//! A message is acknowledged after it was written out, so that a session that is kept (`-c`) loses
//! none to an end of the program. A lost connection is made again.
#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::connect::{ConnectFlags, parse_qos};
use super::connection::{Connection, Ended, Failure};
use super::format::{self, Format};
use super::properties::Given;
use crate::client::{Client, Event, Message, RequestError, borrow_pairs};
use crate::clock::{self, Time};
use crate::codec::mqtt::topic::{check_filter, matches};
use crate::codec::mqtt::{
    Disconnect, Publish, QoS, ReasonCode, RetainHandling, SubscribeFilter, SubscriptionOptions,
    UserProperties, Version,
};

const TIME_OVER: &str = "the time (-W) is over";
/// With `--retained-only --remove-retained`: once all deletions have come back, how long another
/// retained message may take. A broker may send them in several pieces, and nothing says which is
/// the last.
const QUIET: Duration = Duration::from_millis(500);
/// Between tries to connect again.
const RETRY: Duration = Duration::from_secs(1);

/// Flags of `noctule sub`, named as those of `mosquitto_sub`.
#[derive(Args, Debug)]
#[command(after_help = format::HELP)]
pub struct SubFlags {
    /// Topic filter to subscribe to; may be repeated
    #[arg(short = 't', long = "topic", value_name = "FILTER", allow_hyphen_values = true)]
    topics: Vec<String>,
    /// Highest QoS to receive with
    #[arg(short = 'q', long, value_name = "0|1|2", default_value = "0", value_parser = parse_qos)]
    qos: QoS,
    /// Unsubscribe from a filter (of a kept session); may be repeated
    #[arg(short = 'U', long = "unsubscribe", value_name = "FILTER")]
    unsubscribe: Vec<String>,
    /// Do not print messages whose topic matches; may be repeated
    #[arg(short = 'T', long = "filter-out", value_name = "FILTER")]
    filter_out: Vec<String>,
    /// Exit after this many messages
    #[arg(short = 'C', value_name = "COUNT")]
    count: Option<u64>,
    /// Exit after this many seconds, with code 27; may have a fraction
    #[arg(short = 'W', value_name = "SECONDS")]
    timeout: Option<f64>,
    /// Exit once the broker has acknowledged the subscriptions
    #[arg(short = 'E')]
    exit_when_subscribed: bool,
    /// Do not print retained messages
    #[arg(short = 'R', conflicts_with = "retained_only")]
    no_retained: bool,
    /// Print retained messages only, and exit at the first other one
    #[arg(long)]
    retained_only: bool,
    /// Delete the retained messages that come
    #[arg(long)]
    remove_retained: bool,
    /// Ask the broker to leave the retain flag as it was published (version 5)
    #[arg(long)]
    retain_as_published: bool,
    /// Which retained messages to send: always, new (subscriptions only) or never (version 5)
    #[arg(long, value_name = "WHEN", default_value = "always", value_parser = parse_handling)]
    retain_handling: RetainHandling,
    /// Do not send back what this client publishes (version 5)
    #[arg(long)]
    no_local: bool,
    /// Print the topic before the payload
    #[arg(short = 'v', long)]
    verbose: bool,
    /// Print messages in this format, see below
    #[arg(short = 'F', value_name = "FORMAT", allow_hyphen_values = true)]
    format: Option<String>,
    /// Print no new line after each message
    #[arg(short = 'N')]
    no_new_line: bool,
    /// Indent JSON (%j, %J)
    #[arg(long)]
    pretty: bool,
    #[command(flatten)]
    connect: ConnectFlags,
}

fn parse_handling(text: &str) -> Result<RetainHandling, String> {
    match text {
        "always" | "0" => Ok(RetainHandling::Send),
        "new" | "1" => Ok(RetainHandling::SendIfNew),
        "never" | "2" => Ok(RetainHandling::DoNotSend),
        _ => Err("expected always, new or never".into()),
    }
}

/// Prints messages until it is told to stop.
pub fn run(flags: &SubFlags) -> ExitCode {
    super::end_client(subscribe(flags), flags.connect.quiet)
}

fn subscribe(flags: &SubFlags) -> Result<(), Failure> {
    let mut resolved = flags.connect.resolve("sub")?;
    let mut topics = flags.topics.clone();
    topics.extend(resolved.topic.take());
    for filter in topics.iter().chain(&flags.unsubscribe).chain(&flags.filter_out) {
        check_filter(filter)
            .map_err(|error| Failure::usage(format!("topic filter {filter:?}: {error}")))?;
    }
    if topics.is_empty() && flags.unsubscribe.is_empty() {
        return Err(Failure::usage("which topics? -t FILTER is missing"));
    }
    let until = flags.timeout.map(|seconds| deadline(seconds, "-W")).transpose()?;
    let new_line = !flags.no_new_line;
    let mut subscriber = Subscriber {
        flags,
        topics,
        given: resolved.given,
        format: match &flags.format {
            None => Format::simple(flags.verbose, new_line),
            Some(format) => {
                Format::parse(format, new_line, flags.pretty).map_err(Failure::usage)?
            }
        },
        out: Vec::new(),
        printed: 0,
        subscribed: false,
        deleted: 0,
        quiet_until: None,
        ended: None,
        failure: None,
    };
    resolved.options.manual_acks = true;
    let connection = Connection::open(resolved.target, flags.connect.bind, resolved.options)?;
    drive(connection, &mut subscriber, until)?;
    subscriber.failure.map_or(Ok(()), Err)
}

/// The point `seconds` from now.
pub(super) fn deadline(seconds: f64, flag: &str) -> Result<Time, Failure> {
    let time = Duration::try_from_secs_f64(seconds);
    Ok(clock::now() + time.map_err(|_| Failure::usage(format!("{flag}: not a time")))?)
}

fn drive(
    mut connection: Connection,
    subscriber: &mut Subscriber<'_>,
    until: Option<Time>,
) -> Result<(), Failure> {
    let mut timed_out = false;
    loop {
        while connection.is_open() {
            let wake = [until, subscriber.quiet_until].into_iter().flatten().min();
            let turn = connection
                .turn(wake, None, &mut |client, event| subscriber.on_event(client, event))?;
            // Acknowledgements leave in the next turn, after what they acknowledge.
            if !write_out(&mut subscriber.out)? {
                subscriber.stop(&mut connection.client);
            }
            let now = clock::now();
            let quiet = subscriber.quiet_until.is_some_and(|quiet| now >= quiet);
            if turn.interrupted || quiet {
                subscriber.quiet_until = None;
                subscriber.stop(&mut connection.client);
            } else if until.is_some_and(|until| now >= until) && !timed_out {
                timed_out = true;
                subscriber.stop(&mut connection.client);
            }
        }
        if timed_out {
            return Err(Failure::timeout(TIME_OVER));
        }
        let Some(ended) = subscriber.ended.take() else { return Ok(()) };
        let Some(failure) = connection.describe(&ended) else { return Ok(()) };
        if !ended.passing || !subscriber.subscribed {
            return Err(failure);
        }
        if !subscriber.flags.connect.quiet {
            eprintln!("noctule: {failure}; connecting again");
        }
        // A session that outlived the connection goes on; -x alone asked for a clean beginning.
        let options = connection.client.options_mut();
        options.clean_start = !options.session_outlives_connection();
        if !reconnect(&mut connection, until)? {
            return Ok(());
        }
    }
}

/// Tries until it works; false when the user wants to stop.
fn reconnect(connection: &mut Connection, until: Option<Time>) -> Result<bool, Failure> {
    loop {
        if connection.pause(RETRY)? {
            return Ok(false);
        }
        if until.is_some_and(|until| clock::now() >= until) {
            return Err(Failure::timeout(TIME_OVER));
        }
        if connection.reopen().is_ok() {
            return Ok(true);
        }
    }
}

/// Writes to the standard output; false when nobody reads it any more.
pub(super) fn write_out(out: &mut Vec<u8>) -> Result<bool, Failure> {
    if out.is_empty() {
        return Ok(true);
    }
    let mut stdout = io::stdout().lock();
    let result = stdout.write_all(out).and_then(|()| stdout.flush());
    out.clear();
    out.shrink_to(64 * 1024);
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::failed(format!("standard output: {error}"))),
    }
}

struct Subscriber<'a> {
    flags: &'a SubFlags,
    topics: Vec<String>,
    given: Given,
    format: Format,
    /// Printed, not yet written.
    out: Vec<u8>,
    printed: u64,
    /// Whether the broker has ever acknowledged the subscriptions.
    subscribed: bool,
    /// Retained messages that were deleted, and whose deletion has not come back.
    deleted: u64,
    quiet_until: Option<Time>,
    ended: Option<Ended>,
    failure: Option<Failure>,
}

impl Subscriber<'_> {
    fn debug(&self, text: impl FnOnce() -> String) {
        if self.flags.connect.debug {
            eprintln!("{}", text());
        }
    }

    fn on_event(&mut self, client: &mut Client, event: Event<'_>) {
        match event {
            Event::Connected { session_present, .. } => {
                let id = &client.options().client_id;
                self.debug(|| format!("CONNACK, client id {id:?}, session {session_present}"));
                // A session that was resumed within this run has its subscriptions; asking again
                // would repeat the retained messages.
                if !(self.subscribed && session_present)
                    && let Err(error) = self.request(client)
                {
                    let failure = Failure::failed(format!("cannot subscribe: {error}"));
                    self.fail(client, failure);
                }
            }
            Event::Subscribed { codes, reason_string, .. } => {
                self.on_subscribed(client, codes, reason_string);
            }
            Event::Unsubscribed { codes, .. } => {
                self.debug(|| format!("UNSUBACK, reason codes {codes:?}"));
                self.subscribed = true;
                if self.topics.is_empty() || self.flags.exit_when_subscribed {
                    self.stop(client);
                }
            }
            Event::Message(publish) => self.on_message(client, &publish),
            Event::Disconnected(ending) => {
                self.ended = Some(Ended::new(&ending, client.options().version));
            }
            _ => {}
        }
    }

    fn request(&self, client: &mut Client) -> Result<(), RequestError> {
        let now = clock::now();
        if !self.flags.unsubscribe.is_empty() {
            let filters: Vec<_> = self.flags.unsubscribe.iter().map(String::as_str).collect();
            let pairs = borrow_pairs(&self.given.unsubscribe);
            client.unsubscribe(now, &filters, UserProperties::new(&pairs))?;
        }
        if self.topics.is_empty() {
            return Ok(());
        }
        let v5 = client.options().version == Version::V5;
        let options = SubscriptionOptions {
            no_local: v5 && self.flags.no_local,
            retain_as_published: v5 && self.flags.retain_as_published,
            retain_handling: self.flags.retain_handling,
            ..SubscriptionOptions::new(self.flags.qos)
        };
        let filters: Vec<_> =
            self.topics.iter().map(|filter| SubscribeFilter { filter, options }).collect();
        let pairs = borrow_pairs(&self.given.subscribe);
        client.subscribe(now, &filters, self.given.subscription_id, UserProperties::new(&pairs))?;
        Ok(())
    }

    fn on_subscribed(&mut self, client: &mut Client, codes: &[u8], reason_string: Option<&str>) {
        self.subscribed = true;
        let mut refused = None;
        for (filter, code) in self.topics.iter().zip(codes) {
            let reason = ReasonCode(*code);
            self.debug(|| format!("SUBACK, {filter:?}: {reason}"));
            if reason.is_error() {
                let why = reason_string.map(|text| format!(", {text:?}")).unwrap_or_default();
                let message = format!("the server refused {filter:?}: {reason}{why}");
                if !self.flags.connect.quiet {
                    eprintln!("noctule: {message}");
                }
                refused = Some(Failure::refused(reason, "no subscription was granted"));
            }
        }
        if codes.iter().all(|code| ReasonCode(*code).is_error())
            && let Some(failure) = refused
        {
            self.fail(client, failure);
        } else if self.flags.exit_when_subscribed {
            self.stop(client);
        }
    }

    fn on_message(&mut self, client: &mut Client, publish: &Publish<'_>) {
        let now = clock::now();
        let stop = self.print(client, publish, now);
        if let Some(packet_id) = publish.packet_id {
            client.acknowledge(now, packet_id, ReasonCode::SUCCESS);
        }
        if stop {
            self.stop(client);
        }
    }

    /// Prints it unless the flags say no; whether it was the last one.
    fn print(&mut self, client: &mut Client, publish: &Publish<'_>, now: Time) -> bool {
        let flags = self.flags;
        if flags.remove_retained && publish.payload.is_empty() && self.deleted > 0 {
            self.deleted -= 1;
            if flags.retained_only && self.deleted == 0 {
                self.quiet_until = Some(now + QUIET);
            }
            return false;
        }
        if flags.retained_only && !publish.retain {
            return true;
        }
        if flags.filter_out.iter().any(|filter| matches(filter, publish.topic)) {
            return false;
        }
        if flags.remove_retained && publish.retain && !publish.payload.is_empty() {
            // At QoS 0: no window can be full. A server that refuses it says so by itself.
            let message = Message::new(publish.topic, b"", QoS::AtMostOnce);
            match client.publish(now, &Message { retain: true, ..message }) {
                Ok(_) => {
                    self.deleted += 1;
                    self.quiet_until = None;
                }
                Err(error) => eprintln!("noctule: cannot delete {:?}: {error}", publish.topic),
            }
        }
        if flags.no_retained && publish.retain {
            return false;
        }
        if let Err(error) = self.format.write(publish, clock::unix_time(), &mut self.out)
            && !flags.connect.quiet
        {
            eprintln!("noctule: {error}");
        }
        self.printed += 1;
        flags.count == Some(self.printed)
    }

    fn fail(&mut self, client: &mut Client, failure: Failure) {
        self.failure = Some(failure);
        self.stop(client);
    }

    fn stop(&self, client: &mut Client) {
        let pairs = borrow_pairs(&self.given.disconnect);
        let disconnect = Disconnect {
            session_expiry_interval: self.given.disconnect_expiry,
            user_properties: UserProperties::new(&pairs),
            ..Disconnect::new(ReasonCode::NORMAL_DISCONNECTION)
        };
        client.disconnect_with(clock::now(), &disconnect);
    }
}
