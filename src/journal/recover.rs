//! What a start makes of the journal: the durable state, and a log that goes on behind it.
//!
//! Segments are read in the order of their numbers, from the oldest that is needed. Commits are
//! numbered without gaps and only one is ever under way, so what is damaged tells by what follows:
//! - The last commit of all is torn: nothing in it was promised to anybody. It is left out, and the
//!   next start finds another under its number.
//! - A commit under the same number follows: it had failed, and was written again.
//! - Later commits follow: the disk has damaged it. The records of it that hold are taken, the
//!   others are quarantined: left where they are, counted, and named with file and offset.
//!
//! What was read of the last commit may be in memory alone, when its sync had failed or was under way
//! as the process ended: the log writes it again before it builds on it.
//!
//! Where the medium gives nothing, zeros are taken for it: what stands there is damaged, as above.
//!
//! Nothing of this keeps a broker from starting. What does: a directory or a file that it may not or
//! cannot open, which somebody can mend, and a segment of a newer version, which would be lost.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use foldhash::fast::FixedState;

use super::fold::export::Bodies;
use super::fold::{At, Fold};
use super::log::{Log, Options, Resume, Segment, Tail};
use super::record::{self, Entry};
use super::scan::{self, Bad, Directory, Frames, Store, read_what_comes};
use super::segment::{BadHeader, FRAME_HEADER, Frame, Header, VERSION};
use crate::broker::durable::DurableState;
use crate::io::file::BLOCK;
use crate::limits::{JOURNAL_DAMAGE_REPORTED, JOURNAL_READ_BYTES};

/// What a start has found.
#[derive(Debug)]
pub struct Recovered {
    /// What lasts.
    pub state: DurableState,
    /// Goes on behind it.
    pub log: Log,
    /// What there is to say.
    pub report: Report,
}

/// What there is to say about a recovery.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Segments that were read.
    pub segments: u64,
    /// Commits in them.
    pub commits: u64,
    /// Records in those.
    pub records: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// The last commit, which is not whole: which file, and from which byte on.
    pub torn: Option<(String, u64)>,
    /// Pieces that are no records, with commits behind them.
    pub quarantined: u64,
    /// Bytes of those.
    pub quarantined_bytes: u64,
    /// Commits that are missing.
    pub missing_commits: u64,
    /// The first of what is damaged, for people: file, offset, and in which way.
    pub damage: Vec<String>,
    /// Messages that are owed and could not be read again.
    pub unreadable: u64,
}

impl Report {
    /// Whether all that was committed is there.
    pub const fn is_whole(&self) -> bool {
        self.quarantined == 0 && self.missing_commits == 0 && self.unreadable == 0
    }

    const fn is_damaged(&self) -> bool {
        self.quarantined > 0 || self.missing_commits > 0
    }

    fn damaged(&mut self, text: impl FnOnce() -> String) {
        if self.damage.len() < JOURNAL_DAMAGE_REPORTED {
            self.damage.push(text());
        }
    }
}

/// Why there is no recovery.
#[derive(Debug)]
pub enum RecoverError {
    /// The directory cannot be read or made.
    Folder(PathBuf, io::Error),
    /// A segment cannot be read.
    File(String, io::Error),
    /// A newer Noctule has written a segment.
    Version(String, u16),
}

impl fmt::Display for RecoverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path, error) => {
                write!(f, "the journal's directory {} cannot be used: {error}", path.display())
            }
            Self::File(name, error) => write!(f, "{name} cannot be read: {error}"),
            Self::Version(name, version) => write!(
                f,
                "{name} has format version {version}, and this Noctule reads up to {VERSION}: \
                 start the version that wrote it, or a newer one"
            ),
        }
    }
}

impl std::error::Error for RecoverError {}

/// Opens the journal of a directory, making it if there is none. Tables hash with `seed`.
///
/// # Errors
/// See [`RecoverError`].
pub fn open(options: Options, seed: u64) -> Result<Recovered, RecoverError> {
    open_some(options, seed, u64::MAX)
}

/// A directory whose name lasts.
fn make_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    std::fs::create_dir_all(folder)?;
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty());
    std::fs::File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

/// The same from any store.
///
/// # Errors
/// See [`RecoverError`].
pub fn recover(store: &dyn Store, options: Options, seed: u64) -> Result<Recovered, RecoverError> {
    recover_some(store, options, seed, u64::MAX)
}

/// [`open`], which reads of what only queues hold the first `most` bytes, and leaves the rest where
/// it lies: memory is not to depend on how much that is.
///
/// # Errors
/// See [`RecoverError`].
pub fn open_some(options: Options, seed: u64, most: u64) -> Result<Recovered, RecoverError> {
    let folder = options.folder.clone();
    make_folder(&folder).map_err(|error| RecoverError::Folder(folder.clone(), error))?;
    recover_some(&Directory(folder), options, seed, most)
}

/// The same from any store.
///
/// # Errors
/// See [`RecoverError`].
pub fn recover_some(
    store: &dyn Store,
    options: Options,
    seed: u64,
    most: u64,
) -> Result<Recovered, RecoverError> {
    let found = find(store, &options)?;
    let reading = Reading::all(store, seed, &found.needed)?;
    let numbers_from = reading.tail_numbers_from;
    let Reading { fold, mut report, mut segments, last_commit, place, tail, tail_live, .. } =
        reading;
    let report_to = &mut report;
    let mut bodies =
        Window { store, segments: &segments, bytes: Vec::new(), at: None, report: report_to };
    let state = fold.export(&mut bodies, most);
    if options.direct {
        // An earlier run may have promised less, and what it has written is built upon now.
        for segment in &segments {
            if let Err(error) = store.sync(segment.file) {
                let name = store.name(segment.file);
                report.damaged(|| format!("{name}: what stands in it cannot be synced: {error}"));
            }
        }
    }
    let tail = match tail {
        Some((index, frame)) => {
            let records = reading.tail_records;
            segments[index].offsets.pop();
            // It will stand in a segment behind all of these.
            for segment in &mut segments {
                segment.first_commit = segment.first_commit.min(frame.commit);
            }
            Some(Tail {
                number: frame.commit,
                place: frame.place,
                numbers_from,
                count: frame.records,
                records,
                live: tail_live,
            })
        }
        None => None,
    };
    let resume = Resume {
        segments,
        spares: found.spares,
        useless: found.useless,
        last_file: found.last_file,
        last_segment: found.last_segment,
        last_commit,
        place,
        tail,
    };
    Ok(Recovered { state, log: Log::new(options, fold, resume), report })
}

/// A segment that is to be read.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// Its place among all.
    pub sequence: u64,
    /// Its file's number.
    pub file: u32,
    /// Its size.
    pub bytes: u64,
    /// What its header says; None if that is damaged.
    pub header: Option<Header>,
}

/// What a directory holds.
#[derive(Debug, Default)]
pub struct Contents {
    /// The segments that are needed, in order.
    pub needed: Vec<Found>,
    /// Files that may be used as segments: number and size.
    pub spares: Vec<(u32, u64)>,
    /// Files that are none.
    pub useless: Vec<u32>,
    last_file: u32,
    last_segment: u64,
}

/// Looks through a directory.
///
/// # Errors
/// See [`RecoverError`].
pub fn find(store: &dyn Store, options: &Options) -> Result<Contents, RecoverError> {
    let folder = |error| RecoverError::Folder(options.folder.clone(), error);
    let mut contents = Contents::default();
    let mut all = Vec::new();
    let mut block = Vec::new();
    for (file, bytes) in store.list().map_err(folder)? {
        contents.last_file = contents.last_file.max(file);
        let name = || store.name(file);
        let unread = read_some(store, file, BLOCK as u64, &mut block)?;
        let header =
            if unread.is_empty() { Header::decode(&block) } else { Err(BadHeader::Damaged) };
        match header {
            Ok(header) => {
                all.push(Found { sequence: header.sequence, file, bytes, header: Some(header) });
            }
            Err(BadHeader::Version(version)) => {
                return Err(RecoverError::Version(name(), version));
            }
            // Its first commit, which is written in one with the header, has not succeeded. Whether
            // it was zeroed to its end nobody knows.
            Err(BadHeader::Unused) => contents.useless.push(file),
            Err(BadHeader::NotOurs | BadHeader::Damaged) => {
                // Its frames say what it is, if it has any. What cannot be read is left where it is.
                match greatest_segment(store, file, bytes)? {
                    (Some(sequence), _) => all.push(Found { sequence, file, bytes, header: None }),
                    (None, true) => contents.useless.push(file),
                    (None, false) => {}
                }
            }
        }
    }
    all.sort_unstable_by_key(|found| found.sequence);
    contents.last_segment = all.last().map_or(0, |found| found.sequence);
    let oldest = oldest_needed(store, &all)?;
    for found in all {
        if found.sequence >= oldest {
            contents.needed.push(found);
        } else if found.bytes >= options.segment_bytes_first && found.header.is_some() {
            contents.spares.push((found.file, found.bytes));
        } else {
            contents.useless.push(found.file);
        }
    }
    Ok(contents)
}

/// The greatest segment that a frame belongs to, in a file whose header is damaged; and whether all
/// of the file could be read.
fn greatest_segment(
    store: &dyn Store,
    file: u32,
    bytes: u64,
) -> Result<(Option<u64>, bool), RecoverError> {
    let mut all = Vec::new();
    let unread = read_some(store, file, bytes, &mut all)?;
    let mut best = None;
    for start in (BLOCK..all.len()).step_by(BLOCK) {
        if let Ok(frame) = Frame::decode(&all[start..]) {
            best = best.max(Some(frame.segment));
        }
    }
    Ok((best, unread.is_empty()))
}

/// What the last commit says.
fn oldest_needed(store: &dyn Store, all: &[Found]) -> Result<u64, RecoverError> {
    let mut bytes = Vec::new();
    for found in all.iter().rev() {
        let mut frames = frames_of(store, found, &mut bytes);
        let mut oldest = None;
        while let Some((_, frame, records)) =
            frames.next_frame().map_err(unreadable(store, found))?
        {
            // Only later commits say more: the last that is whole says it.
            if is_whole(&frame, records) {
                oldest = Some(frame.oldest);
            }
        }
        if let Some(oldest) = oldest {
            return Ok(oldest);
        }
    }
    Ok(0)
}

fn frames_of<'a>(store: &'a dyn Store, found: &Found, bytes: &'a mut Vec<u8>) -> Frames<'a> {
    Frames::new(store, (found.file, found.bytes), found.sequence, bytes)
}

fn unreadable<'a>(
    store: &'a dyn Store,
    found: &Found,
) -> impl FnOnce(io::Error) -> RecoverError + 'a {
    let file = found.file;
    move |error| RecoverError::File(store.name(file), error)
}

/// Whether all of a frame's records are there.
fn is_whole(frame: &Frame, records: &[u8]) -> bool {
    let mut is_whole = true;
    let count = scan::records(frame, records, |_, _| {}, |_| is_whole = false);
    is_whole && count == frame.records
}

/// The first bytes of a file; zeros where the medium gives nothing, and where that is: offset and
/// length.
fn read_some(
    store: &dyn Store,
    file: u32,
    len: u64,
    bytes: &mut Vec<u8>,
) -> Result<Vec<(u64, u64)>, RecoverError> {
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    let read = read_what_comes(store, file, 0, len, bytes);
    read.map_err(|error| RecoverError::File(store.name(file), error))
}

/// What a record says of whether a session or a group was there before it.
enum Existence {
    /// It was, with this number.
    Session(Box<str>, u64),
    /// No session of this client, or not the one that it has from here on.
    NoSession(Box<str>),
    Group(Box<str>, u64),
    NoGroup(Box<str>),
}

impl Existence {
    /// Those before its segment were given numbers below `before`, if that is known.
    fn of(entry: &Entry<'_>, before: Option<u64>) -> Option<Self> {
        let was_there = |number: &u64| before.is_none_or(|before| *number < before);
        match entry {
            Entry::Session { client_id, expiry_secs: 0, .. }
            | Entry::SessionEnded { client_id } => Some(Self::NoSession((*client_id).into())),
            Entry::Session { client_id, number, .. } => Some(match was_there(number) {
                true => Self::Session((*client_id).into(), *number),
                false => Self::NoSession((*client_id).into()),
            }),
            Entry::Group { group, number } => Some(match was_there(number) {
                true => Self::Group((*group).into(), *number),
                false => Self::NoGroup((*group).into()),
            }),
            _ => None,
        }
    }
}

/// The first that a log has.
const FIRST_SEGMENT: u64 = 1;

/// More commits than a log has in its life.
const COMMITS_MAX: u64 = 1 << 56;

/// A commit that is not whole, until what follows says why.
struct Pending {
    frame: Frame,
    file: u32,
    offset: u64,
    records: Vec<u8>,
}

/// The records of a frame, and what is none of it.
struct Pieces<'a> {
    whole: Vec<(At, &'a [u8])>,
    bad: Vec<Bad>,
}

impl<'a> Pieces<'a> {
    fn of(frame: &Frame, records: &'a [u8]) -> Self {
        let mut pieces = Self { whole: Vec::new(), bad: Vec::new() };
        let Self { whole, bad } = &mut pieces;
        scan::records(frame, records, |at, body| whole.push((at, body)), |piece| bad.push(piece));
        pieces
    }
}

struct Reading<'a> {
    store: &'a dyn Store,
    fold: Fold,
    report: Report,
    segments: Vec<Segment>,
    last_commit: u64,
    place: u64,
    pending: Option<Pending>,
    /// The last commit that was taken, and its segment.
    tail: Option<(usize, Frame)>,
    /// Its records' bytes.
    tail_records: Vec<u8>,
    /// What numbers were given before it.
    tail_numbers_from: u64,
    /// What of it is live.
    tail_live: i64,
}

impl<'a> Reading<'a> {
    /// Reads these segments.
    fn all(store: &'a dyn Store, seed: u64, needed: &[Found]) -> Result<Self, RecoverError> {
        let mut bytes = Vec::new();
        // Nothing was freed yet: what there is stands in its order, and one look is enough. Unless
        // something of it is damaged: what is said twice may stand further on.
        if needed.first().is_some_and(|first| first.sequence == FIRST_SEGMENT) {
            let reading = Self::new(store, seed).read(needed, &mut bytes)?;
            if !reading.report.is_damaged() {
                return Ok(reading);
            }
        }
        let mut reading = Self::new(store, seed);
        reading.expect(needed, &mut bytes)?;
        reading.read(needed, &mut bytes)
    }

    fn new(store: &'a dyn Store, seed: u64) -> Self {
        Self {
            store,
            fold: Fold::replaying(seed),
            report: Report::default(),
            segments: Vec::new(),
            last_commit: 0,
            place: 0,
            pending: None,
            tail: None,
            tail_records: Vec::new(),
            tail_numbers_from: 0,
            tail_live: 0,
        }
    }

    fn read(mut self, needed: &[Found], bytes: &mut Vec<u8>) -> Result<Self, RecoverError> {
        for (index, segment) in needed.iter().enumerate() {
            // While this one is looked through, the disk gets the next.
            if let Some(next) = needed.get(index + 1) {
                self.store.prefetch(next.file);
            }
            self.read_segment(segment, bytes)?;
        }
        self.finish();
        Ok(self)
    }

    /// Freeing segments copies the record of a session behind others of that session: what stands
    /// first of it says, by its number, whether it was there from the beginning of what is left.
    fn expect(&mut self, needed: &[Found], bytes: &mut Vec<u8>) -> Result<(), RecoverError> {
        let mut by_commit: BTreeMap<u64, (bool, Vec<Existence>)> = BTreeMap::new();
        let mut last = 0;
        for (index, found) in needed.iter().enumerate() {
            if let Some(next) = needed.get(index + 1) {
                self.store.prefetch(next.file);
            }
            let before = found.header.map(|header| header.next_number);
            let mut frames = frames_of(self.store, found, bytes);
            while let Some((_, frame, records)) =
                frames.next_frame().map_err(unreadable(self.store, found))?
            {
                let mut said = Vec::new();
                scan::of_kinds(&frame, records, record::SESSION_KINDS, |entry| {
                    said.extend(Existence::of(&entry, before));
                });
                last = last.max(frame.commit);
                let before = by_commit.get(&frame.commit).map(|(is_whole, _)| *is_whole);
                // One that was whole counts, although its write had failed. Mostly nothing is said,
                // and whether it is whole is looked at when its records are taken.
                if before != Some(true) && !(before.is_none() && said.is_empty()) {
                    by_commit.insert(frame.commit, (is_whole(&frame, records), said));
                }
            }
        }
        // The last one, if it is not whole, is not taken.
        if by_commit.get(&last).is_some_and(|(is_whole, _)| !is_whole) {
            by_commit.remove(&last);
        }
        let mut met: HashSet<Box<str>, FixedState> = HashSet::default();
        let mut met_groups = met.clone();
        for existence in by_commit.into_values().flat_map(|(_, said)| said) {
            match existence {
                Existence::Session(client_id, number) => {
                    if met.insert(client_id.clone()) {
                        self.fold.expect_session(&client_id, number);
                    }
                }
                Existence::NoSession(client_id) => {
                    met.insert(client_id);
                }
                Existence::Group(key, number) => {
                    if met_groups.insert(key.clone()) {
                        self.fold.expect_group(&key, number);
                    }
                }
                Existence::NoGroup(key) => {
                    met_groups.insert(key);
                }
            }
        }
        Ok(())
    }

    fn read_segment(&mut self, found: &Found, bytes: &mut Vec<u8>) -> Result<(), RecoverError> {
        self.report.segments += 1;
        self.report.bytes += found.bytes;
        match &found.header {
            Some(header) => self.fold.begin_after(header.last_sequence, header.next_number),
            None => {
                let name = self.store.name(found.file);
                self.report.quarantined += 1;
                self.report.damaged(|| format!("{name}: byte 0: the header is damaged"));
            }
        }
        // What it repeats of the segment before is not taken from it.
        let said = found.header.map_or(0, |header| header.first_commit);
        let first = said.max(self.last_commit + 1);
        self.segments.push(Segment {
            sequence: found.sequence,
            file: found.file,
            bytes: found.bytes,
            used: BLOCK as u64,
            first_commit: first,
            offsets: Vec::new(),
            live: 0,
            is_open: false,
            is_opening: false,
            last_read: 0,
        });
        let store = self.store;
        let mut frames = frames_of(store, found, bytes);
        while let Some((offset, frame, records)) =
            frames.next_frame().map_err(unreadable(store, found))?
        {
            self.read_frame(found.file, offset, &frame, records);
        }
        for (offset, len) in frames.unread() {
            let name = store.name(found.file);
            self.report.quarantined += 1;
            self.report.quarantined_bytes += len;
            self.report.damaged(|| format!("{name}: byte {offset}: {len} bytes cannot be read"));
        }
        Ok(())
    }

    fn read_frame(&mut self, file: u32, offset: u64, frame: &Frame, records: &[u8]) {
        if frame.commit <= self.last_commit {
            // It was on disk although its write had failed.
            return;
        }
        // A commit takes a block at least: no log has so many before this one.
        let first = self.segments.last().filter(|segment| !segment.offsets.is_empty());
        let most = first.map_or(COMMITS_MAX, |s| s.first_commit + offset / BLOCK as u64);
        if frame.commit > most {
            self.report.quarantined += 1;
            let name = self.store.name(file);
            self.report.damaged(|| format!("{name}: byte {offset}: a commit of no log"));
            return;
        }
        if self.pending.as_ref().is_some_and(|pending| pending.frame.commit < frame.commit) {
            self.take_damaged();
        }
        let pieces = Pieces::of(frame, records);
        if !pieces.bad.is_empty() || pieces.whole.len() != frame.records as usize {
            let records = records.to_vec();
            self.pending = Some(Pending { frame: *frame, file, offset, records });
            return;
        }
        self.pending = None;
        self.take_frame(file, offset, frame, records, pieces);
    }

    /// Takes what holds of a frame.
    fn take_frame(
        &mut self,
        file: u32,
        offset: u64,
        frame: &Frame,
        records: &[u8],
        pieces: Pieces<'_>,
    ) {
        let expected = self.last_commit + 1;
        if frame.commit > expected && self.report.commits > 0 {
            self.report.missing_commits += frame.commit - expected;
            let name = self.store.name(file);
            self.report.damaged(|| {
                format!(
                    "{name}: byte {offset}: the {} commits before it are missing",
                    frame.commit - expected
                )
            });
        }
        let live = std::mem::take(&mut self.tail_live);
        if let Some((index, _)) = self.tail {
            self.segments[index].live += live;
        }
        let index = self.segments.iter().rposition(|segment| segment.file == file);
        self.tail = index.map(|index| (index, *frame));
        self.tail_records.clear();
        self.tail_records.extend_from_slice(records);
        if let Some(segment) = index.map(|index| &mut self.segments[index]) {
            if segment.offsets.is_empty() {
                segment.first_commit = frame.commit;
            }
            let place = (frame.commit - segment.first_commit) as usize;
            segment.offsets.resize(place.max(segment.offsets.len()), Segment::LOST);
            segment.offsets.push((offset / BLOCK as u64) as u32);
            segment.used = segment.used.max(offset + frame.span());
        }
        self.last_commit = frame.commit;
        self.place = frame.place.wrapping_add(u64::from(frame.records));
        self.report.commits += 1;
        self.tail_numbers_from = self.fold.next_number();
        let Self { fold, report, segments, store, tail_live, .. } = self;
        let Pieces { whole, mut bad } = pieces;
        report.records += whole.len() as u64;
        for (at, body) in whole {
            match record::decode(body) {
                Ok((_, entry)) => fold.apply(at, &entry),
                Err(why) => bad.push(Bad { offset: at.offset, len: at.len, why }),
            }
        }
        account(fold, segments, frame.commit, tail_live);
        bad.sort_unstable_by_key(|piece| piece.offset);
        for Bad { offset: at, len, why } in bad {
            report.quarantined += 1;
            report.quarantined_bytes += u64::from(len);
            let start = offset + FRAME_HEADER as u64 + u64::from(at);
            let name = store.name(file);
            report.damaged(|| format!("{name}: byte {start}: {len} bytes are no record: {why}"));
        }
    }

    fn take_damaged(&mut self) {
        if let Some(Pending { frame, file, offset, records }) = self.pending.take() {
            self.take_frame(file, offset, &frame, &records, Pieces::of(&frame, &records));
        }
    }

    /// What is not whole, and nothing follows, is torn.
    fn finish(&mut self) {
        if let Some(pending) = self.pending.take() {
            self.report.torn = Some((self.store.name(pending.file), pending.offset));
        }
        self.fold.confirm();
        account(&mut self.fold, &mut self.segments, self.last_commit, &mut self.tail_live);
    }
}

fn account(fold: &mut Fold, segments: &mut [Segment], last: u64, tail_live: &mut i64) {
    let mut live = std::mem::take(&mut fold.live);
    for (commit, bytes) in live.drain(..) {
        if commit == last {
            *tail_live += bytes;
            continue;
        }
        let behind = segments.partition_point(|segment| segment.first_commit <= commit);
        if let Some(segment) = behind.checked_sub(1).and_then(|index| segments.get_mut(index)) {
            segment.live += bytes;
        }
    }
    fold.live = live;
}

/// Reads records in the order of the log, many at a time.
struct Window<'a> {
    store: &'a dyn Store,
    segments: &'a [Segment],
    bytes: Vec<u8>,
    /// File and offset of the bytes.
    at: Option<(u32, u64)>,
    report: &'a mut Report,
}

impl Bodies for Window<'_> {
    fn body(&mut self, at: At) -> Option<&[u8]> {
        let found = self.load(at);
        let body = found.and_then(|start| record::take(&self.bytes[start..], at.commit).ok());
        if body.is_none() {
            self.report.unreadable += 1;
            let Self { store, segments, report, .. } = self;
            report.damaged(|| match locate(segments, at) {
                Some((segment, start)) => {
                    let name = store.name(segment.file);
                    format!("{name}: byte {start}: a record that is needed cannot be read")
                }
                None => format!("commit {}, which is needed, is missing", at.commit),
            });
        }
        body
    }
}

impl Window<'_> {
    /// Where in the window the record begins, which is whole in it.
    fn load(&mut self, at: At) -> Option<usize> {
        let (segment, start) = locate(self.segments, at)?;
        if let Some((file, from)) = self.at
            && file == segment.file
            && start >= from
            && start + u64::from(at.len) <= from + self.bytes.len() as u64
        {
            return Some((start - from) as usize);
        }
        let len = (at.len as usize).max(JOURNAL_READ_BYTES);
        let file = segment.file;
        // Where one block near it cannot be read, it alone.
        let read = self.store.read(file, start, len, &mut self.bytes);
        read.or_else(|_| self.store.read(file, start, at.len as usize, &mut self.bytes)).ok()?;
        self.at = Some((file, start));
        (self.bytes.len() >= at.len as usize).then_some(0)
    }
}

/// In which segment a record lies, and at which byte of its file.
fn locate(segments: &[Segment], at: At) -> Option<(&Segment, u64)> {
    let behind = segments.partition_point(|segment| segment.first_commit <= at.commit);
    let segment = &segments[behind.checked_sub(1)?];
    let frame = segment.offset_of(at.commit)?;
    Some((segment, frame + FRAME_HEADER as u64 + u64::from(at.offset)))
}
