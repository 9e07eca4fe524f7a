//! File operations.
#![forbid(unsafe_code)]

use super::*;

/// Does one file operation to its end.
fn file<B: Open>(rig: &mut Rig<B>, op: FileOp) -> FileDone {
    rig.backend.file(op);
    rig.until("end of a file operation", |rig| !rig.files.is_empty());
    assert_eq!(rig.files.len(), 1);
    rig.files.remove(0)
}

fn block(byte: u8, len: usize) -> BlockBuf {
    let mut buf = BlockBuf::zeroed(len);
    buf.as_mut_slice().fill(byte);
    buf
}

const FILE: FileId = FileId(3);

/// On the disk, directly and through the page cache, and on a file system that has nothing else.
pub(super) fn files_are_written_and_read<B: Open>() {
    let on_disk = [true, false].map(|direct| (tempfile::tempdir().unwrap(), direct));
    let in_memory = tempfile::tempdir_in("/dev/shm").ok().map(|folder| (folder, true));
    for (folder, direct) in on_disk.into_iter().chain(in_memory) {
        let mut rig = Rig::<B>::new(&small_settings());
        let path = folder.path().join("f");
        let open = FileOp::Open { file: FILE, path: path.clone(), create: true, direct };
        file(&mut rig, open).result.unwrap();
        for (sync, byte) in [(false, 1), (true, 2)] {
            let buf = block(byte, 3 * BLOCK);
            let write = FileOp::Write { file: FILE, offset: BLOCK as u64, buf, from: BLOCK, sync };
            let done = file(&mut rig, write);
            assert_eq!(done.result.unwrap(), 2 * BLOCK);
            let FileOp::Write { buf, .. } = done.op else { panic!("another operation") };
            assert_eq!(buf.as_slice(), [byte; 3 * BLOCK], "the buffer comes back");
        }
        file(&mut rig, FileOp::Sync { file: FILE }).result.unwrap();
        file(&mut rig, FileOp::SyncDir { path: folder.path().to_owned() }).result.unwrap();
        let expected = [[0; BLOCK], [2; BLOCK], [2; BLOCK]].concat();
        assert_eq!(std::fs::read(&path).unwrap(), expected);
        let read = FileOp::Read { file: FILE, offset: 2 * BLOCK as u64, buf: block(9, 2 * BLOCK) };
        let done = file(&mut rig, read);
        assert_eq!(done.result.unwrap(), BLOCK, "up to the end");
        let FileOp::Read { buf, .. } = done.op else { panic!("another operation") };
        assert_eq!(buf.as_slice()[..BLOCK], [2; BLOCK]);
        file(&mut rig, FileOp::Remove { file: FILE, path: path.clone() }).result.unwrap();
        assert!(!path.exists());
        assert_eq!(rig.backend.counters().file_ops, 7);
    }
}

pub(super) fn a_file_operation_that_cannot_be_done_says_so<B: Open>() {
    let folder = tempfile::tempdir().unwrap();
    let mut rig = Rig::<B>::new(&small_settings());
    let path = folder.path().join("none");
    let missing = FileOp::Open { file: FILE, path: path.clone(), create: false, direct: true };
    assert_eq!(file(&mut rig, missing).result.unwrap_err().kind(), ErrorKind::NotFound);
    let write = FileOp::Write { file: FILE, offset: 0, buf: block(1, BLOCK), from: 0, sync: true };
    assert_eq!(file(&mut rig, write).result.unwrap_err().raw_os_error(), Some(libc::EBADF));
    let removed = file(&mut rig, FileOp::Remove { file: FILE, path });
    assert_eq!(removed.result.unwrap_err().kind(), ErrorKind::NotFound);
    // A device that is always full.
    let full = FileOp::Open { file: FILE, path: "/dev/full".into(), create: false, direct: true };
    file(&mut rig, full).result.unwrap();
    let write = FileOp::Write { file: FILE, offset: 0, buf: block(1, BLOCK), from: 0, sync: false };
    assert_eq!(file(&mut rig, write).result.unwrap_err().raw_os_error(), Some(libc::ENOSPC));
    assert_eq!(rig.backend.counters().file_errors, 4);
}

pub(super) fn a_write_under_way_is_finished_when_the_backend_is_dropped<B: Open>() {
    const LEN: usize = 8 * 1024 * 1024;
    let folder = tempfile::tempdir().unwrap();
    let mut rig = Rig::<B>::new(&small_settings());
    let path = folder.path().join("f");
    file(&mut rig, FileOp::Open { file: FILE, path: path.clone(), create: true, direct: true })
        .result
        .unwrap();
    let buf = block(7, LEN);
    rig.backend.file(FileOp::Write { file: FILE, offset: 0, buf, from: 0, sync: true });
    rig.poll(Wait::None);
    drop(rig);
    assert_eq!(std::fs::read(&path).unwrap(), vec![7; LEN]);
}

/// A poll that waits for ever ends when the operation does.
pub(super) fn the_end_of_a_file_operation_ends_the_wait<B: Open>() {
    let folder = tempfile::tempdir().unwrap();
    let mut rig = Rig::<B>::new(&small_settings());
    let open =
        FileOp::Open { file: FILE, path: folder.path().join("f"), create: true, direct: true };
    rig.backend.file(open);
    for round in 0..50 {
        while rig.files.is_empty() {
            rig.poll(Wait::Forever);
        }
        rig.files.clear();
        let (offset, buf) = (round * BLOCK as u64, block(1, BLOCK));
        rig.backend.file(FileOp::Write { file: FILE, offset, buf, from: 0, sync: true });
    }
    assert!(rig.polls < 1000, "{} polls", rig.polls);
}

/// Opens a pipe for writing when it is dropped, also by a test that fails.
struct Writer(std::path::PathBuf);

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = std::fs::OpenOptions::new().write(true).open(&self.0);
    }
}

/// A directory that takes its time to be synced, a file that is made and one that is removed: a
/// write, and its sync, pass them.
pub(super) fn what_is_prepared_keeps_no_write_waiting<B: Open>() {
    let folder = tempfile::tempdir().unwrap();
    let mut rig = Rig::<B>::new(&small_settings());
    let path = |name: &str| folder.path().join(name);
    file(&mut rig, FileOp::Open { file: FILE, path: path("f"), create: true, direct: true })
        .result
        .unwrap();
    file(&mut rig, FileOp::SyncDir { path: folder.path().to_owned() }).result.unwrap();
    // Opening it waits until somebody writes to it.
    let mode = rustix::fs::Mode::RWXU;
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, path("pipe"), kind, mode, 0).unwrap();
    rig.backend.file(FileOp::SyncDir { path: path("pipe") });
    let writer = Writer(path("pipe"));
    let other = FileId(FILE.0 + 1);
    rig.backend.file(FileOp::Open { file: other, path: path("g"), create: true, direct: true });
    let buf = block(1, BLOCK);
    rig.backend.file(FileOp::Write { file: FILE, offset: 0, buf, from: 0, sync: true });
    rig.until("end of the write", |rig| !rig.files.is_empty());
    rig.backend.file(FileOp::Sync { file: FILE });
    rig.until("end of the sync", |rig| rig.files.len() > 1);
    assert!(matches!(rig.files[0].op, FileOp::Write { .. }), "{:?}", rig.files[0]);
    assert!(matches!(rig.files[1].op, FileOp::Sync { .. }), "{:?}", rig.files[1]);
    drop(writer);
    rig.until("end of the others", |rig| rig.files.len() == 4);
    assert!(path("g").exists());
}
