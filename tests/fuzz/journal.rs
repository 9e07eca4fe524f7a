//! Fuzz target of the journal: records, and recovery. Run it by `scripts/fuzz.sh journal 60`.
//!
//! The input is cut into pieces. Each is decoded as a record as it stands; all of them, with their
//! checksums made right, stand in a segment that is then damaged and recovered. Nothing may panic,
//! what is decoded must survive being written again, and every recovery comes to an end.
#![no_main]

use std::cell::RefCell;
use std::io;

use libfuzzer_sys::fuzz_target;
use noctule::io::file::BLOCK;
use noctule::journal::log::Options;
use noctule::journal::record::{self, decode, encode};
use noctule::journal::recover::recover;
use noctule::journal::scan::Store;
use noctule::journal::segment::{FRAME_HEADER, Frame, Header, VERSION};

struct Memory(RefCell<Vec<u8>>);

impl Store for Memory {
    fn list(&self) -> io::Result<Vec<(u32, u64)>> {
        Ok(vec![(1, self.0.borrow().len() as u64)])
    }

    fn read(&self, _file: u32, offset: u64, len: usize, into: &mut Vec<u8>) -> io::Result<()> {
        let all = self.0.borrow();
        let rest = all.get(offset as usize..).unwrap_or_default();
        into.clear();
        into.extend_from_slice(&rest[..rest.len().min(len)]);
        Ok(())
    }

    fn name(&self, file: u32) -> String {
        format!("{file}")
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((&damage, mut rest)) = input.split_first() else { return };
    let mut frames: Vec<Vec<u8>> = vec![Vec::new()];
    while let Some((&len, behind)) = rest.split_first() {
        let (body, behind) = behind.split_at(usize::from(len).min(behind.len()));
        rest = behind;
        if let Ok((origin, entry)) = decode(body) {
            let mut again = Vec::new();
            encode(&mut again, origin, &entry);
            assert_eq!(decode(&again), Ok((origin, entry)));
        }
        if len == 0 {
            frames.push(Vec::new());
        } else if let Some(frame) = frames.last_mut() {
            frame.push(len);
            frame.extend_from_slice(body);
        }
    }
    let mut file = vec![0; BLOCK];
    let header = Header {
        version: VERSION,
        sequence: 1,
        placement: 0,
        created_ms: 0,
        first_commit: 1,
        last_sequence: 0,
        next_number: 1,
    };
    header.encode(&mut file);
    for (commit, bodies) in (1..).zip(&frames) {
        append(&mut file, commit, bodies);
    }
    if damage > 0 && file.len() > BLOCK {
        // Mostly a frame, sometimes the segment's header.
        let from = if damage > 0xf0 { 0 } else { BLOCK };
        let until = if damage > 0xf0 { 64 } else { file.len() };
        let at = from + usize::from(damage) * 37 % (until - from);
        file[at] ^= damage;
    }
    let options = Options {
        folder: "/journal".into(),
        placement: 0,
        segment_bytes_first: 1 << 20,
        segment_bytes_max: 1 << 20,
        direct: true,
    };
    let recovered = recover(&Memory(RefCell::new(file)), options, 1).expect("it always starts");
    let _ = recovered.state.partition(noctule::ids::PlacementKey(1), 3);
});

fn append(file: &mut Vec<u8>, commit: u64, mut bodies: &[u8]) {
    let mut records = Vec::new();
    let mut count = 0;
    while let Some((&len, rest)) = bodies.split_first() {
        let (body, rest) = rest.split_at(usize::from(len).min(rest.len()));
        bodies = rest;
        record::put(&mut records, commit, |out| out.extend_from_slice(body));
        count += 1;
    }
    let frame = Frame {
        segment: 1,
        commit,
        oldest: 1,
        place: 0,
        len: records.len() as u32,
        records: count,
    };
    let mut head = [0; FRAME_HEADER];
    frame.encode(&mut head);
    file.extend_from_slice(&head);
    file.extend_from_slice(&records);
    file.resize(file.len().next_multiple_of(BLOCK), 0);
}
