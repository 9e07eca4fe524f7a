//! A simulated disk: what a file system and a device may do to those who do not sync.
//!
//! Each file has what the process sees and what would be there after a power cut; in between lie
//! the writes that were not synced. A crash of the machine keeps any of their sectors and loses the
//! others, in no order; one of the process keeps them all. An operation under way at a crash may
//! have happened in part. A write that fails may have happened in part. A sync that fails forgets
//! what it should have written: the process still sees it, and it will never be on disk. Names last
//! when their directory was synced.
//!
//! Invariant: the same seed and the same calls give the same disk.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::random::Random;
use crate::io::{FileDone, FileId, FileOp};

/// What is written whole or not at all, in bytes.
pub const SECTOR: usize = 512;

/// What may go wrong, in a thousand.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trouble {
    /// A write fails with EIO.
    pub write_error: u32,
    /// A read, or opening what is there, fails with EIO.
    pub read_error: u32,
    /// A read gives other bytes somewhere than those that stand there; if always, then everywhere.
    pub misread: u32,
    /// A sync, or a write that should be on disk at its end, fails with EIO.
    pub sync_error: u32,
    /// There is no room: files do not grow, none is made.
    pub is_full: bool,
    /// Nothing can be written: EROFS.
    pub is_read_only: bool,
    /// Operations do not end for now.
    pub is_stuck: bool,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Disk {
    random: Random,
    files: Vec<File>,
    /// What the process sees, and what would be there after a power cut.
    names: BTreeMap<PathBuf, Name>,
    open: BTreeMap<(usize, FileId), usize>,
    under_way: Vec<(usize, FileOp)>,
    /// What goes wrong from now on.
    pub trouble: Trouble,
}

#[derive(Clone, Copy, Debug)]
struct Name {
    now: Option<usize>,
    stable: Option<usize>,
}

#[derive(Debug, Default)]
struct File {
    now: Vec<u8>,
    stable: Vec<u8>,
    /// Sectors that were written and not synced: offset and bytes, in order.
    dirty: Vec<(usize, Vec<u8>)>,
}

impl File {
    fn write(&mut self, offset: usize, bytes: &[u8]) {
        put(&mut self.now, offset, bytes);
        let sectors = bytes.chunks(SECTOR).enumerate();
        self.dirty.extend(sectors.map(|(i, sector)| (offset + i * SECTOR, sector.to_vec())));
    }

    /// What this range holds is on disk.
    fn settle(&mut self, offset: usize, len: usize) {
        let (settled, dirty) = std::mem::take(&mut self.dirty)
            .into_iter()
            .partition::<Vec<_>, _>(|(at, _)| (offset..offset + len).contains(at));
        self.dirty = dirty;
        for (at, bytes) in settled {
            put(&mut self.stable, at, &bytes);
        }
    }
}

fn put(file: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if file.len() < end {
        file.resize(end, 0);
    }
    file[offset..end].copy_from_slice(bytes);
}

impl Disk {
    /// An empty one.
    pub fn new(seed: u64) -> Self {
        Self {
            random: Random::new(seed, 0x6469_736b),
            files: Vec::new(),
            names: BTreeMap::new(),
            open: BTreeMap::new(),
            under_way: Vec::new(),
            trouble: Trouble::default(),
        }
    }

    /// One that holds these files, all of them on disk.
    pub fn holding(seed: u64, files: impl IntoIterator<Item = (PathBuf, Vec<u8>)>) -> Self {
        let mut disk = Self::new(seed);
        for (path, bytes) in files {
            let inode = Some(disk.files.len());
            disk.names.insert(path, Name { now: inode, stable: inode });
            disk.files.push(File { stable: bytes.clone(), now: bytes, dirty: Vec::new() });
        }
        disk
    }

    /// An operation of one process's (or shard's) backend.
    pub fn submit(&mut self, user: usize, op: FileOp) {
        self.under_way.push((user, op));
    }

    /// Whether this user has operations under way.
    pub fn is_busy(&self, user: usize) -> bool {
        self.under_way.iter().any(|(whose, _)| *whose == user)
    }

    /// Ends one of the user's operations, whichever chance picks.
    pub fn finish_one(&mut self, user: usize) -> Option<FileDone> {
        if self.trouble.is_stuck {
            return None;
        }
        let mine: Vec<usize> =
            (0..self.under_way.len()).filter(|i| self.under_way[*i].0 == user).collect();
        if mine.is_empty() {
            return None;
        }
        let (_, mut op) = self.under_way.remove(self.random.pick(&mine));
        let result = self.perform(user, &mut op);
        Some(FileDone { op, result })
    }

    /// Ends the operation that `is_it` names, as it should or with an error.
    pub fn finish(&mut self, user: usize, is_it: impl Fn(&FileOp) -> bool, is_ok: bool) {
        let found = self.under_way.iter().position(|(whose, op)| *whose == user && is_it(op));
        let Some((_, mut op)) = found.map(|index| self.under_way.remove(index)) else { return };
        if is_ok {
            // Where it was done before there was trouble or there was not; here there is none.
            let _ = self.perform(user, &mut op);
        } else if let FileOp::Write { file, offset, buf, from, .. } = &op
            && let Ok(inode) = self.inode(user, *file)
        {
            self.write_some(inode, *offset as usize, &buf.as_slice()[*from..]);
        }
    }

    /// How many files this user has open.
    #[cfg(test)]
    pub fn open_files(&self, user: usize) -> usize {
        self.open.keys().filter(|(whose, _)| *whose == user).count()
    }

    /// All that was written to the file of this name is on disk.
    #[cfg(test)]
    pub fn sync_file(&mut self, path: &Path) {
        if let Some(inode) = self.names.get(path).and_then(|name| name.now) {
            self.files[inode].settle(0, usize::MAX);
        }
    }

    /// Whether something is being written that a crash may tear: what says anything of it stands in
    /// more than one sector.
    pub fn is_writing(&self) -> bool {
        self.under_way.iter().any(|(_, op)| match op {
            FileOp::Write { buf, from, .. } => {
                let behind_first = buf.as_slice().get(from + SECTOR..).unwrap_or_default();
                behind_first.iter().any(|byte| *byte != 0)
            }
            _ => false,
        })
    }

    /// Bytes that were written, or are being written, and not synced.
    pub fn unsynced_bytes(&self) -> u64 {
        let dirty = self.files.iter().flat_map(|file| &file.dirty);
        let written: usize = dirty.map(|(_, bytes)| bytes.len()).sum();
        let under_way = self.under_way.iter().map(|(_, op)| match op {
            FileOp::Write { buf, from, .. } => buf.len() - from,
            _ => 0,
        });
        (written + under_way.sum::<usize>()) as u64
    }

    fn perform(&mut self, user: usize, op: &mut FileOp) -> io::Result<usize> {
        if self.trouble.is_read_only
            && !matches!(
                op,
                FileOp::Read { .. } | FileOp::Open { create: false, .. } | FileOp::Close { .. }
            )
        {
            return Err(error(rustix::io::Errno::ROFS));
        }
        match op {
            FileOp::Open { create: false, .. } | FileOp::Read { .. }
                if self.strikes(self.trouble.read_error) =>
            {
                Err(error(rustix::io::Errno::IO))
            }
            FileOp::Open { file, path, create, .. } => self.open(user, *file, path, *create),
            FileOp::Write { file, offset, buf, from, sync } => {
                let inode = self.inode(user, *file)?;
                let bytes = &buf.as_slice()[*from..];
                let offset = *offset as usize;
                if self.trouble.is_full && offset + bytes.len() > self.files[inode].now.len() {
                    return Err(error(rustix::io::Errno::NOSPC));
                }
                if self.strikes(self.trouble.write_error) {
                    self.write_some(inode, offset, bytes);
                    return Err(error(rustix::io::Errno::IO));
                }
                self.files[inode].write(offset, bytes);
                if *sync {
                    self.sync(inode, offset, bytes.len())?;
                }
                Ok(bytes.len())
            }
            FileOp::Read { file, offset, buf } => {
                let inode = self.inode(user, *file)?;
                let all = &self.files[inode].now;
                let rest = all.get(*offset as usize..).unwrap_or_default();
                let n = rest.len().min(buf.len());
                buf.as_mut_slice()[..n].copy_from_slice(&rest[..n]);
                if n > 0 && self.strikes(self.trouble.misread) {
                    let sector = self.random.index(n) / SECTOR * SECTOR;
                    let is_all = self.trouble.misread >= 1000;
                    let wrong = if is_all { 0..n } else { sector..n.min(sector + SECTOR) };
                    buf.as_mut_slice()[wrong].fill(0xa5);
                }
                Ok(n)
            }
            FileOp::Sync { file } => {
                let inode = self.inode(user, *file)?;
                self.sync(inode, 0, usize::MAX).map(|()| 0)
            }
            FileOp::SyncDir { path } => {
                for (name, inode) in &mut self.names {
                    if name.parent() == Some(path) {
                        inode.stable = inode.now;
                    }
                }
                Ok(0)
            }
            FileOp::Close { file } => {
                self.open.remove(&(user, *file));
                Ok(0)
            }
            FileOp::Remove { file, path } => {
                self.open.remove(&(user, *file));
                let name = self.names.get_mut(path).filter(|name| name.now.is_some());
                name.ok_or(io::ErrorKind::NotFound)?.now = None;
                Ok(0)
            }
        }
    }

    fn open(&mut self, user: usize, file: FileId, path: &Path, create: bool) -> io::Result<usize> {
        let inode = match self.names.get(path).and_then(|name| name.now) {
            Some(inode) => inode,
            None if !create => return Err(io::ErrorKind::NotFound.into()),
            None if self.trouble.is_full => return Err(error(rustix::io::Errno::NOSPC)),
            None => {
                self.files.push(File::default());
                let inode = self.files.len() - 1;
                let name = self.names.entry(path.to_owned());
                name.or_insert(Name { now: None, stable: None }).now = Some(inode);
                inode
            }
        };
        let old = self.open.insert((user, file), inode);
        assert!(old.is_none(), "invariant: a number is used again only after Close or Remove");
        Ok(0)
    }

    fn inode(&self, user: usize, file: FileId) -> io::Result<usize> {
        self.open.get(&(user, file)).copied().ok_or_else(|| error(rustix::io::Errno::BADF))
    }

    fn strikes(&mut self, per_mille: u32) -> bool {
        per_mille > 0 && self.random.chance(per_mille)
    }

    fn sync(&mut self, inode: usize, offset: usize, len: usize) -> io::Result<()> {
        let fails = self.strikes(self.trouble.sync_error);
        let len = len.min(usize::MAX - offset);
        if fails {
            // The pages are clean now, as the kernel sees it, and some have never been written.
            let all = std::mem::take(&mut self.files[inode].dirty);
            for (at, bytes) in all {
                let is_meant = (offset..offset + len).contains(&at);
                if !is_meant {
                    self.files[inode].dirty.push((at, bytes));
                } else if self.random.chance(300) {
                    put(&mut self.files[inode].stable, at, &bytes);
                }
            }
            return Err(error(rustix::io::Errno::IO));
        }
        self.files[inode].settle(offset, len);
        Ok(())
    }

    /// Any sectors of it.
    fn write_some(&mut self, inode: usize, offset: usize, bytes: &[u8]) {
        let kept = self.random.pick(&[0, 100, 500, 900]);
        for (i, sector) in bytes.chunks(SECTOR).enumerate() {
            if self.random.chance(kept) {
                self.files[inode].write(offset + i * SECTOR, sector);
            }
        }
    }

    /// The process is gone: what was under way has happened in part, what it had written stays.
    pub fn kill(&mut self) {
        for (user, op) in std::mem::take(&mut self.under_way) {
            if let FileOp::Write { file, offset, buf, from, .. } = &op
                && let Ok(inode) = self.inode(user, *file)
            {
                self.write_some(inode, *offset as usize, &buf.as_slice()[*from..]);
            }
        }
        self.open.clear();
    }

    /// The power is cut: of what was not synced any part is left.
    pub fn cut_power(&mut self) {
        self.kill();
        for file in &mut self.files {
            let kept = self.random.pick(&[0, 300, 700, 1000]);
            for (at, bytes) in std::mem::take(&mut file.dirty) {
                if self.random.chance(kept) {
                    put(&mut file.stable, at, &bytes);
                }
            }
            file.now.clone_from(&file.stable);
        }
        for name in self.names.values_mut() {
            // A name that was not synced is there, or not; so is one that was taken away.
            name.now = if self.random.chance(500) { name.now } else { name.stable };
            name.stable = name.now;
        }
        self.names.retain(|_, name| name.now.is_some());
    }

    /// The files as the process finds them, by name.
    pub fn files(&self) -> impl Iterator<Item = (&Path, &[u8])> {
        self.names
            .iter()
            .filter_map(|(path, name)| Some((path.as_path(), self.files[name.now?].now.as_slice())))
    }
}

fn error(errno: rustix::io::Errno) -> io::Error {
    errno.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::file::{BLOCK, BlockBuf};

    const FILE: FileId = FileId(1);

    fn filled(byte: u8) -> BlockBuf {
        let mut buf = BlockBuf::zeroed(BLOCK);
        buf.as_mut_slice().fill(byte);
        buf
    }

    fn run(disk: &mut Disk, op: FileOp) -> io::Result<usize> {
        disk.submit(0, op);
        disk.finish_one(0).unwrap().result
    }

    fn write(disk: &mut Disk, offset: u64, byte: u8, sync: bool) -> io::Result<usize> {
        run(disk, FileOp::Write { file: FILE, offset, buf: filled(byte), from: 0, sync })
    }

    fn opened(seed: u64) -> Disk {
        let mut disk = Disk::new(seed);
        run(
            &mut disk,
            FileOp::Open { file: FILE, path: "/d/f".into(), create: true, direct: true },
        )
        .unwrap();
        run(&mut disk, FileOp::SyncDir { path: "/d".into() }).unwrap();
        disk
    }

    fn bytes(disk: &Disk) -> Vec<u8> {
        disk.files().next().map(|(_, bytes)| bytes.to_vec()).unwrap_or_default()
    }

    /// What was synced is there after a power cut; what was not is lost or torn in some worlds.
    #[test]
    fn only_what_is_synced_lasts() {
        let (mut lost, mut torn) = (0, 0);
        for seed in 0..100 {
            let mut disk = opened(seed);
            write(&mut disk, 0, 1, true).unwrap();
            write(&mut disk, BLOCK as u64, 2, false).unwrap();
            disk.cut_power();
            let bytes = bytes(&disk);
            assert_eq!(bytes[..BLOCK], [1; BLOCK]);
            let kept = bytes[BLOCK..].iter().filter(|b| **b == 2).count();
            lost += u32::from(kept == 0);
            torn += u32::from(kept > 0 && kept < BLOCK);
        }
        assert!(lost > 10 && torn > 10, "{lost} lost, {torn} torn");
    }

    #[test]
    fn a_process_that_is_killed_loses_nothing_that_was_written() {
        let mut disk = opened(1);
        write(&mut disk, 0, 1, false).unwrap();
        disk.kill();
        assert_eq!(bytes(&disk), [1; BLOCK]);
    }

    /// The pages after a sync that failed look fine and are not on disk.
    #[test]
    fn a_failed_sync_is_not_made_good_by_another() {
        let mut lost = 0;
        for seed in 0..50 {
            let mut disk = opened(seed);
            write(&mut disk, 0, 1, false).unwrap();
            disk.trouble.sync_error = 1000;
            assert!(run(&mut disk, FileOp::Sync { file: FILE }).is_err());
            disk.trouble.sync_error = 0;
            run(&mut disk, FileOp::Sync { file: FILE }).unwrap();
            assert_eq!(bytes(&disk), [1; BLOCK]);
            disk.cut_power();
            lost += u32::from(bytes(&disk) != [1; BLOCK]);
        }
        assert!(lost > 40, "{lost}");
    }

    #[test]
    fn a_name_lasts_when_its_directory_is_synced() {
        let mut gone = 0;
        for seed in 0..50 {
            let mut disk = Disk::new(seed);
            run(
                &mut disk,
                FileOp::Open { file: FILE, path: "/d/f".into(), create: true, direct: true },
            )
            .unwrap();
            write(&mut disk, 0, 1, true).unwrap();
            disk.cut_power();
            gone += u32::from(disk.files().next().is_none());
        }
        assert!(gone > 10, "{gone}");
    }

    #[test]
    fn a_full_disk_takes_what_needs_no_room() {
        let mut disk = opened(1);
        write(&mut disk, 0, 1, true).unwrap();
        disk.trouble.is_full = true;
        write(&mut disk, 0, 2, true).unwrap();
        let refused = write(&mut disk, BLOCK as u64, 2, true).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::ENOSPC));
        disk.trouble.is_read_only = true;
        assert_eq!(write(&mut disk, 0, 2, true).unwrap_err().raw_os_error(), Some(libc::EROFS));
    }
}
