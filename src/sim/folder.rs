//! The journal's folder on the simulated disk.
#![forbid(unsafe_code)]

use std::io;
use std::path::Path;

use super::disk::Disk;
use crate::journal::scan::Store;
use crate::journal::segment;

/// Where it is.
pub(super) const PATH: &str = "/journal";

/// It, as recovery reads it.
pub(super) struct Folder<'a>(pub(super) &'a Disk);

impl Store for Folder<'_> {
    fn list(&self) -> io::Result<Vec<(u32, u64)>> {
        let number =
            |(path, bytes): (&Path, &[u8])| Some((segment::number_of(path)?, bytes.len() as u64));
        Ok(self.0.files().filter_map(number).collect())
    }

    fn read(&self, file: u32, offset: u64, len: usize, into: &mut Vec<u8>) -> io::Result<()> {
        let path = segment::path(Path::new(PATH), file);
        let (_, bytes) = self.0.files().find(|(p, _)| *p == path).ok_or(io::ErrorKind::NotFound)?;
        into.clear();
        let rest = bytes.get(offset as usize..).unwrap_or_default();
        into.extend_from_slice(&rest[..rest.len().min(len)]);
        Ok(())
    }

    fn name(&self, file: u32) -> String {
        format!("{file:08}.journal")
    }
}
