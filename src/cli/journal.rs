//! `noctule journal`: what a journal holds, whether it is whole, and its durable state, for people
//! and as JSON lines. It only reads, a segment at a time, and takes no lock: of a broker that runs
//! the last commit may look torn. Of what queues hold `verify` keeps little in memory, `export` all.
#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{EXIT_BROKEN, EXIT_USAGE, fail};
use crate::bench::run::environment::rfc3339;
use crate::broker::durable::{DurableMessage, DurableQueued, DurableSession, DurableState};
use crate::journal::log::Options;
use crate::journal::record::{self, Entry};
use crate::journal::recover::{self, Found, Recovered, Report};
use crate::journal::scan::{self, Directory, Frames, Store};
use crate::journal::segment::{FRAME_HEADER, Frame};
use crate::limits::{JOURNAL_SEGMENT_BYTES_FIRST, JOURNAL_SEGMENT_BYTES_MAX};

/// Flags of `noctule journal`.
#[derive(Args, Debug)]
pub struct Flags {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Say what each segment holds
    Inspect {
        #[command(flatten)]
        journal: Place,
        #[command(flatten)]
        format: Format,
        /// Every record too
        #[arg(long)]
        records: bool,
    },
    /// Read everything and say what is damaged; exit code 1 if something is
    Verify {
        #[command(flatten)]
        journal: Place,
        #[command(flatten)]
        format: Format,
    },
    /// Print the durable state as JSON lines: messages, sessions, retained, groups
    Export {
        #[command(flatten)]
        journal: Place,
    },
}

#[derive(Args, Debug)]
struct Place {
    /// The data directory, or the journal's own in it
    folder: PathBuf,
}

#[derive(Args, Clone, Copy, Debug)]
struct Format {
    /// JSON lines instead of text
    #[arg(long)]
    json: bool,
}

impl Place {
    fn folder(&self) -> PathBuf {
        let inner = self.folder.join("journal");
        if inner.is_dir() { inner } else { self.folder.clone() }
    }
}

/// Why it ended before its time.
enum Failure {
    /// What the user can correct.
    Usage(String),
    /// Nobody reads on.
    Output(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

impl From<recover::RecoverError> for Failure {
    fn from(error: recover::RecoverError) -> Self {
        Self::Usage(error.to_string())
    }
}

/// Runs it.
pub fn run(flags: &Flags) -> ExitCode {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let result = match &flags.action {
        Action::Inspect { journal, format, records } => {
            inspect(journal, *format, *records, &mut out)
        }
        Action::Verify { journal, format } => verify(journal, *format, &mut out),
        Action::Export { journal } => export(journal, &mut out),
    };
    match result.and_then(|code| Ok(out.flush().map(|()| code)?)) {
        Ok(code) => code,
        Err(Failure::Usage(text)) => fail(EXIT_USAGE, text),
        // Whoever closed the pipe has read enough.
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(Failure::Output(error)) => fail(EXIT_BROKEN, error),
    }
}

fn options(folder: &Path) -> Options {
    Options {
        folder: folder.to_owned(),
        placement: 0,
        segment_bytes_first: JOURNAL_SEGMENT_BYTES_FIRST,
        segment_bytes_max: JOURNAL_SEGMENT_BYTES_MAX,
        direct: true,
    }
}

/// The durable state, with the first so many bytes of what only queues hold.
fn recovered(journal: &Place, most: u64) -> Result<Recovered, Failure> {
    let folder = journal.folder();
    Ok(recover::recover_some(&Directory(folder.clone()), options(&folder), 0, most)?)
}

// ---- inspect ----

fn inspect(
    journal: &Place,
    format: Format,
    records: bool,
    out: &mut impl Write,
) -> Result<ExitCode, Failure> {
    let folder = journal.folder();
    let store = Directory(folder.clone());
    let contents = recover::find(&store, &options(&folder))?;
    for found in &contents.needed {
        inspect_segment(&store, found, records, format.json, out)?;
    }
    let spare = contents.spares.len() + contents.useless.len();
    if format.json {
        writeln!(out, "{}", json!({ "files_not_needed": spare }))?;
    } else {
        writeln!(out, "{} segments, {spare} files that are not needed", contents.needed.len())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn inspect_segment(
    store: &Directory,
    found: &Found,
    records: bool,
    json: bool,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let name = store.name(found.file);
    let mut bytes = Vec::new();
    let unreadable = |error| Failure::Usage(format!("{name} cannot be read: {error}"));
    let mut frames = Frames::new(store, (found.file, found.bytes), found.sequence, &mut bytes);
    let (mut commits, mut count, mut bad) = (Vec::new(), 0u64, 0u64);
    while let Some((offset, frame, body)) = frames.next_frame().map_err(unreadable)? {
        commits.push(frame.commit);
        let mut lines = Vec::new();
        count += u64::from(scan::records(
            &frame,
            body,
            |at, body| {
                if records {
                    lines.push(line(
                        &frame,
                        offset + FRAME_HEADER as u64 + u64::from(at.offset),
                        body,
                        json,
                    ));
                }
            },
            |_| bad += 1,
        ));
        for line in lines {
            writeln!(out, "{line}")?;
        }
    }
    bad += frames.unread().len() as u64;
    let (first, last) = (commits.first(), commits.last());
    let version = found.header.map(|header| header.version);
    let begun = found.header.map(|header| rfc3339(Duration::from_millis(header.created_ms)));
    if json {
        // As the data directory's placement.key has it.
        let placement = found.header.map(|header| format!("{:016x}", header.placement));
        let line = json!({
            "segment": found.sequence, "file": name, "bytes": found.bytes, "version": version,
            "begun": begun, "placement": placement,
            "commits": commits.len(), "first_commit": first, "last_commit": last,
            "records": count, "damaged": bad,
        });
        writeln!(out, "{line}")?;
    } else {
        let range = first.zip(last).map_or(String::new(), |(a, b)| format!(" ({a} to {b})"));
        let version = version.zip(begun).map_or_else(
            || "damaged header".to_owned(),
            |(version, begun)| format!("version {version}, begun {begun}"),
        );
        writeln!(
            out,
            "{name}: segment {}, {version}, {} bytes, {} commits{range}, {count} records, {bad} damaged",
            found.sequence,
            found.bytes,
            commits.len(),
        )?;
    }
    Ok(())
}

/// One record, for people or as JSON.
fn line(frame: &Frame, offset: u64, body: &[u8], json: bool) -> String {
    let (origin, entry) = match record::decode(body) {
        Ok((origin, entry)) => (origin.index(), entry),
        Err(why) => return format!("byte {offset}: no record: {why}"),
    };
    let name = entry.name();
    let mut value = json!({
        "offset": offset, "commit": frame.commit, "origin": origin, "record": name,
        "client_id": entry.client_id(),
    });
    match &entry {
        Entry::Publish(publish) => {
            value["message"] = message_name(publish.message);
            value["topic"] = publish.topic.into();
            value["qos"] = publish.qos.into();
            value["retain"] = publish.retain.into();
            value["payload_bytes"] = publish.payload.len().into();
            value["receivers"] = publish.receivers.iter().count().into();
        }
        Entry::Session { expiry_secs, number, .. } => {
            value["expiry_secs"] = (*expiry_secs).into();
            value["number"] = (*number).into();
        }
        Entry::Subscribe { filter, options, .. } => {
            value["filter"] = (*filter).into();
            value["options"] = (*options).into();
        }
        Entry::Unsubscribe { filter, .. } => value["filter"] = (*filter).into(),
        Entry::WillSet(will) => value["topic"] = will.topic.into(),
        Entry::Assign(assign) => {
            value["packet_id"] = assign.packet_id.into();
            value["message"] = assign.message.map_or(Value::Null, message_name);
        }
        Entry::Received { packet_id, message, .. } | Entry::Done { packet_id, message, .. } => {
            value["packet_id"] = (*packet_id).into();
            value["message"] = message.map_or(Value::Null, message_name);
        }
        Entry::Released { packet_id, .. } => value["packet_id"] = (*packet_id).into(),
        Entry::Unreleased { packet_id, message, .. } => {
            value["packet_id"] = (*packet_id).into();
            value["message"] = message_name(*message);
        }
        Entry::Acked { message, .. } => value["message"] = message_name(*message),
        Entry::GroupAck { group, message } => {
            value["group"] = (*group).into();
            value["message"] = message_name(*message);
        }
        Entry::Group { group, number } => {
            value["group"] = (*group).into();
            value["number"] = (*number).into();
        }
        Entry::Ended { messages, .. } => value["messages"] = messages.len().into(),
        Entry::SessionEnded { .. } | Entry::WillDeleted { .. } => {}
    }
    if json {
        return value.to_string();
    }
    let mut text = format!("byte {offset}: commit {} shard {origin} {name}", frame.commit);
    for (key, value) in value.as_object().into_iter().flatten() {
        let is_shown = matches!(key.as_str(), "offset" | "commit" | "origin" | "record");
        if !is_shown && !value.is_null() {
            text += &format!(" {key}={value}");
        }
    }
    text
}

/// `origin/sequence`.
fn message_name(name: u64) -> Value {
    record::message_of(name)
        .map_or(Value::Null, |id| format!("{}/{}", id.origin().index(), id.sequence()).into())
}

// ---- verify ----

fn verify(journal: &Place, format: Format, out: &mut impl Write) -> Result<ExitCode, Failure> {
    // Each record is looked at as segments are read; queues may be larger than memory.
    let Recovered { state, log, report } = recovered(journal, 0)?;
    let messages = log.fold().messages();
    let is_whole = report.is_whole();
    if format.json {
        writeln!(out, "{}", verdict(&report, &state, messages, is_whole))?;
    } else {
        for damage in &report.damage {
            writeln!(out, "{damage}")?;
        }
        if let Some((file, offset)) = &report.torn {
            writeln!(
                out,
                "{file}: byte {offset}: the last commit is torn; nobody was promised it"
            )?;
        }
        writeln!(
            out,
            "{}: {} segments, {} commits, {} records; {} pieces damaged ({} bytes), {} commits \
             missing, {} messages unreadable",
            if is_whole { "whole" } else { "damaged" },
            report.segments,
            report.commits,
            report.records,
            report.quarantined,
            report.quarantined_bytes,
            report.missing_commits,
            report.unreadable,
        )?;
        writeln!(
            out,
            "{} sessions, {} messages, {} of them retained",
            state.sessions.len(),
            messages,
            state.retained.len(),
        )?;
    }
    Ok(if is_whole { ExitCode::SUCCESS } else { ExitCode::from(EXIT_BROKEN) })
}

fn verdict(report: &Report, state: &DurableState, messages: usize, is_whole: bool) -> Value {
    json!({
        "whole": is_whole, "segments": report.segments, "commits": report.commits,
        "records": report.records, "bytes": report.bytes,
        "torn": report.torn.as_ref().map(|(file, offset)| json!({ "file": file, "offset": offset })),
        "quarantined": report.quarantined, "quarantined_bytes": report.quarantined_bytes,
        "missing_commits": report.missing_commits, "unreadable": report.unreadable,
        "damage": report.damage, "sessions": state.sessions.len(),
        "messages": messages, "retained": state.retained.len(),
    })
}

// ---- export ----

fn export(journal: &Place, out: &mut impl Write) -> Result<ExitCode, Failure> {
    let Recovered { state, report, .. } = recovered(journal, u64::MAX)?;
    for (index, message) in state.messages.iter().enumerate() {
        writeln!(out, "{}", exported_message(index, message))?;
    }
    for session in &state.sessions {
        writeln!(out, "{}", exported_session(session))?;
    }
    for place in &state.retained {
        let topic = &*state.messages[*place as usize].topic;
        writeln!(out, "{}", json!({ "retained": topic, "message": place }))?;
    }
    for group in &state.groups {
        writeln!(out, "{}", json!({ "group": group.key, "owed": group.owed }))?;
    }
    Ok(if report.is_whole() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_BROKEN) })
}

fn exported_message(index: usize, message: &DurableMessage) -> Value {
    json!({
        "message": index, "id": message_name(message.id.order()), "publisher": &*message.publisher,
        "topic": &*message.topic, "qos": message.qos as u8, "retain": message.retain,
        "deadline_ms": message.deadline_ms,
        "properties_base64": BASE64.encode(&message.forwarded),
        "payload_base64": BASE64.encode(&message.payload),
    })
}

fn exported_session(session: &DurableSession) -> Value {
    let queued = |queued: &DurableQueued| {
        let extra = queued.extra.as_deref().cloned().unwrap_or_default();
        json!({
            "message": queued.message, "qos": queued.qos as u8, "retain": queued.retain,
            "subscription_ids": extra.subscription_ids, "group": extra.group,
        })
    };
    let subscriptions = session.subscriptions.iter().map(|sub| {
        json!({ "filter": sub.filter, "options": sub.options, "subscription_id": sub.subscription_id })
    });
    let in_flight = session.in_flight.iter().map(|exchange| {
        json!({
            "packet_id": exchange.packet_id.get(), "received": exchange.is_received,
            "message": exchange.message.as_ref().map(queued),
        })
    });
    json!({
        "session": session.client_id, "expiry_secs": session.expiry_secs,
        "offline_since_ms": session.offline_since_ms,
        "subscriptions": subscriptions.collect::<Vec<_>>(),
        "will_topic": session.will.as_ref().map(|will| &will.topic),
        "unreleased": session.unreleased.iter().map(|id| id.get()).collect::<Vec<_>>(),
        "in_flight": in_flight.collect::<Vec<_>>(),
        "queue": session.queue.iter().map(queued).collect::<Vec<_>>(),
    })
}
