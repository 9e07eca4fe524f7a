//! What one broker owns on disk: the data directory, its lock, and the placement key in it.
//!
//! Invariant: one process at a time uses a data directory. The lock is the kernel's (flock) and
//! ends with the process, however it ends; the pid in the file is for people, and is taken out of it
//! by whoever ends in an orderly way.
#![forbid(unsafe_code)]

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use rustix::rand::GetRandomFlags;

use super::StartError;
use crate::ids::PlacementKey;

const LOCK_FILE: &str = "lock";
const PLACEMENT_FILE: &str = "placement.key";

/// A data directory, ours until this is dropped.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    placement: PlacementKey,
    _lock: Lock,
}

impl DataDir {
    /// Creates the directory when it is missing, locks it, and reads or makes the placement key.
    ///
    /// # Errors
    /// When another process has it, or it cannot be read or written.
    pub fn open(path: &Path) -> Result<Self, StartError> {
        fs::create_dir_all(path).map_err(|error| {
            StartError::new(format!(
                "cannot create the data directory {}: {error}; choose another with --data",
                path.display()
            ))
        })?;
        let lock = lock(path)?;
        let placement = placement_key(&path.join(PLACEMENT_FILE))?;
        Ok(Self { path: path.to_owned(), placement, _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is in memory (tmpfs, ramfs), where nothing outlives the machine's power.
    pub fn is_in_memory(&self) -> bool {
        // statfs(2)
        const TMPFS_MAGIC: u32 = 0x0102_1994;
        const RAMFS_MAGIC: u32 = 0x8584_58f6;
        let kind = rustix::fs::statfs(&self.path).map(|found| found.f_type as u32);
        kind.is_ok_and(|kind| [TMPFS_MAGIC, RAMFS_MAGIC].contains(&kind))
    }

    /// The key of the hashes that place sessions and topics on shards (SHARDS.md H6).
    pub fn placement(&self) -> PlacementKey {
        self.placement
    }
}

/// The open lock file, which holds the lock and our pid until this is dropped.
#[derive(Debug)]
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Still locked: the pid of a process that has gone may soon be another's.
        let _ = self.0.set_len(0);
    }
}

fn lock(dir: &Path) -> Result<Lock, StartError> {
    let path = dir.join(LOCK_FILE);
    let cannot = |error: io::Error| {
        StartError::new(format!(
            "cannot write to the data directory {}: {error}; choose another with --data, or make \
             it writable for this user",
            dir.display()
        ))
    };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(cannot)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _ = file.read_to_string(&mut holder);
            let holder = holder.trim();
            let who =
                if holder.is_empty() { String::new() } else { format!(" by process {holder}") };
            return Err(StartError::new(format!(
                "the data directory {} is in use{who}; stop that broker or choose another \
                 directory with --data",
                dir.display()
            )));
        }
        Err(TryLockError::Error(error)) => return Err(cannot(error)),
    }
    file.set_len(0).map_err(cannot)?;
    writeln!(file, "{}", std::process::id()).map_err(cannot)?;
    Ok(Lock(file))
}

/// Reads the key, or makes and keeps one at the first start.
fn placement_key(path: &Path) -> Result<PlacementKey, StartError> {
    let cannot = |what: &str, error: io::Error| {
        StartError::new(format!("cannot {what} {}: {error}", path.display()))
    };
    match fs::read_to_string(path) {
        Ok(text) => u64::from_str_radix(text.trim(), 16).map(PlacementKey).map_err(|_| {
            StartError::new(format!(
                "{} is damaged: it must hold 16 hexadecimal digits; restore it from a backup (a \
                 new one would separate sessions from their shards)",
                path.display()
            ))
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = random_u64().map_err(|error| cannot("make a key for", error))?;
            replace_file(path, format!("{key:016x}\n").as_bytes())
                .map_err(|error| cannot("write", error))?;
            Ok(PlacementKey(key))
        }
        Err(error) => Err(cannot("read", error)),
    }
}

/// A number that nobody can guess.
///
/// # Errors
/// When the kernel has no randomness to give.
pub fn random_u64() -> io::Result<u64> {
    let mut bytes = [0; 8];
    let got = rustix::rand::getrandom(&mut bytes[..], GetRandomFlags::empty())?;
    // Eight bytes come in one piece (getrandom(2)).
    assert_eq!(got, bytes.len(), "invariant: small random reads are whole");
    Ok(u64::from_ne_bytes(bytes))
}

/// Writes `content` to `path` so that a reader, and a crash, sees the old file or the whole new
/// one.
///
/// # Errors
/// When the directory or the file cannot be written.
pub fn replace_file(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let temporary = path.with_file_name(name);
    let mut file = File::create(&temporary)?;
    file.write_all(content)
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&temporary, path))
        .inspect_err(|_| {
            let _ = fs::remove_file(&temporary);
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_and_the_key_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let first = DataDir::open(&path).unwrap();
        let refused = DataDir::open(&path).unwrap_err().to_string();
        let holder = format!("in use by process {}", std::process::id());
        assert!(refused.contains(&holder), "{refused}");
        let key = first.placement();
        drop(first);
        assert_eq!(fs::read(path.join(LOCK_FILE)).unwrap(), b"");
        assert_eq!(DataDir::open(&path).unwrap().placement(), key);
    }

    #[test]
    fn a_damaged_key_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(PLACEMENT_FILE), "12x").unwrap();
        let refused = DataDir::open(dir.path()).unwrap_err().to_string();
        assert!(refused.contains("placement.key is damaged"), "{refused}");
        assert_eq!(fs::read(dir.path().join(LOCK_FILE)).unwrap(), b"", "no pid stays");
    }

    #[test]
    fn a_file_in_the_way_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "").unwrap();
        let refused = DataDir::open(&path).unwrap_err().to_string();
        assert!(refused.contains("cannot create") && refused.contains("--data"), "{refused}");
    }

    #[test]
    fn replacing_leaves_nothing_beside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.json");
        replace_file(&path, b"1").unwrap();
        replace_file(&path, b"2").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"2");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(replace_file(&dir.path().join("none/f"), b"").is_err());
    }
}
