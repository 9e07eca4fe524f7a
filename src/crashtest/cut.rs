//! What a power cut leaves of the journal: a copy of its files with everything that had been synced
//! when the broker was killed, and any part of the rest.
//!
//! The broker has recorded each operation on its files ([`crate::io::tap`]). They are done again on
//! a simulated disk, which holds what stood there when the broker was started; what was not synced
//! is then kept or lost, sector by sector and name by name, as chance has it. What the device does
//! with its own flush is not seen here.
#![forbid(unsafe_code)]

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use crate::io::tap::{Line, read_tape};
use crate::sim::disk::Disk;

/// The journal's folder in a data directory.
const JOURNAL: &str = "journal";
/// What else a data directory holds that lasts.
const KEY: &str = "placement.key";

/// Copies of the files of a data directory's journal, by name.
pub(super) fn files_of(data: &Path) -> io::Result<Vec<(PathBuf, Vec<u8>)>> {
    let folder = data.join(JOURNAL);
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(&folder)? {
        let path = entry?.path();
        let bytes = std::fs::read(&path)?;
        files.push((path, bytes));
    }
    files.sort();
    Ok(files)
}

/// What is left of `files` after what the tape says and a power cut, as the data directory `to`.
/// How many bytes of its writes had not been synced.
pub(super) fn cut(
    seed: u64,
    files: Vec<(PathBuf, Vec<u8>)>,
    tape: &Path,
    from: &Path,
    to: &Path,
) -> io::Result<u64> {
    let mut disk = Disk::holding(seed, files);
    // Without a tape the broker was killed before it had done anything.
    let lines = if tape.exists() { read_tape(tape)? } else { Vec::new() };
    for line in lines {
        match line {
            Line::Asked(op) => disk.submit(0, op),
            Line::Over { is_it, is_ok } => disk.finish(0, |op| is_it.is(op), is_ok),
        }
    }
    let unsynced = disk.unsynced_bytes();
    disk.cut_power();
    let folder = to.join(JOURNAL);
    std::fs::create_dir_all(&folder)?;
    for (path, bytes) in disk.files() {
        let name = path.file_name().ok_or(ErrorKind::InvalidData)?;
        std::fs::write(folder.join(name), bytes)?;
    }
    let key = from.join(KEY);
    if key.exists() {
        std::fs::copy(key, to.join(KEY))?;
    }
    Ok(unsynced)
}
