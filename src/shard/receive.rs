//! From received bytes to packets in the broker.
//!
//! A frame that lies whole in the received buffer is decoded where it lies. A frame cut by the end
//! of the buffer is the only thing that is copied aside; a large one into a buffer of exactly its
//! size, which its receivers then share.
#![forbid(unsafe_code)]

use super::conn::{Conn, Spares};
use crate::broker::{Broker, Frame, Step};
use crate::clock::Time;
use crate::codec::mqtt::{self, DecodeError};
use crate::ids::ConnId;
use crate::limits::SHARE_PAYLOAD_FROM;
use bytes::Bytes;

/// What was read of `conn` and may be handled now is handled; the rest waits in its input. How many
/// bytes were put there.
pub(super) fn receive(
    broker: &mut Broker,
    conn: &mut Conn,
    now: Time,
    id: ConnId,
    data: &[u8],
    spares: &mut Spares,
) -> usize {
    let mut data = data;
    let mut copied = 0;
    while !data.is_empty() && !conn.input.is_empty() && conn.may_parse() {
        // The rest of the frame that the last buffer's end has cut.
        let have = conn.input.len();
        let frame_len = mqtt::frame_len(conn.input.unread());
        let expect = expected_len(broker, conn, id, frame_len, have).unwrap_or(have + 1);
        let (piece, rest) = data.split_at(expect.saturating_sub(have).min(data.len()));
        conn.input.append(piece, expect);
        copied += piece.len();
        data = rest;
        if conn.input.len() >= expect {
            handle_input(broker, conn, now, id, spares);
        }
    }
    if conn.input.is_empty() {
        let handled = handle_frames(broker, conn, now, id, data);
        data = &data[handled..];
    }
    if !data.is_empty() {
        let frame_len = mqtt::frame_len(data);
        let expect = expected_len(broker, conn, id, frame_len, data.len()).unwrap_or(0);
        conn.input.lend(expect.max(data.len()), spares);
        conn.input.append(data, expect);
        copied += data.len();
    }
    copied
}

/// Handles what waits in the input of `conn`, as far as it may.
pub(super) fn handle_input(
    broker: &mut Broker,
    conn: &mut Conn,
    now: Time,
    id: ConnId,
    spares: &mut Spares,
) {
    if conn.input.is_empty() {
        return;
    }
    let taken = conn.input.take();
    if taken.len() >= SHARE_PAYLOAD_FROM
        && mqtt::frame_len(taken.unread()) == Ok(Some(taken.len()))
        && conn.may_parse()
        && !is_too_large(broker, conn, id, taken.len())
    {
        let frame = Bytes::from(taken.into_vec());
        let info = Frame { bytes: &frame, shared: Some(&frame) };
        let step = broker.handle_frame(now, id, conn.version, info, &mut "");
        if apply(conn, step) {
            conn.handled += frame.len() as u64;
        } else {
            conn.input = super::conn::Input::from_vec(Vec::from(frame));
        }
        return;
    }
    let handled = handle_frames(broker, conn, now, id, taken.unread());
    conn.handled += handled as u64;
    if handled == taken.len() {
        taken.give_up(spares);
    } else {
        conn.input.restore(taken, handled);
    }
}

/// Handles whole frames from the start of `data` while the connection may go on; how many bytes.
fn handle_frames(
    broker: &mut Broker,
    conn: &mut Conn,
    now: Time,
    id: ConnId,
    data: &[u8],
) -> usize {
    let mut at = 0;
    let mut topic = "";
    while conn.may_parse() {
        let rest = &data[at..];
        let len = match mqtt::frame_len(rest) {
            Ok(Some(len)) if is_too_large(broker, conn, id, len) => {
                let step = broker.handle_decode_error(
                    now,
                    id,
                    &DecodeError::packet_too_large(rest[0], conn.version),
                );
                apply(conn, step);
                return data.len();
            }
            Ok(Some(len)) if len <= rest.len() => len,
            Ok(_) => break,
            Err(error) => {
                let step = broker.handle_decode_error(now, id, &error);
                apply(conn, step);
                return data.len();
            }
        };
        let frame = Frame { bytes: &rest[..len], shared: None };
        let step = broker.handle_frame(now, id, conn.version, frame, &mut topic);
        if step == Step::Close {
            apply(conn, step);
            return data.len();
        }
        if apply(conn, step) {
            at += len;
        }
    }
    at
}

/// Takes note of what the broker said of a packet; whether it was consumed.
pub(super) fn apply(conn: &mut Conn, step: Step) -> bool {
    match step {
        Step::Next => true,
        Step::Wait => {
            conn.paused = true;
            false
        }
        // After Close nothing is parsed, ever; the broker has named the connection in `out.close`.
        Step::Pause | Step::Close => {
            conn.paused = true;
            true
        }
    }
}

/// The length of the frame that `have` bytes begin, where it can be known and is one that the
/// connection may send.
fn expected_len(
    broker: &Broker,
    conn: &mut Conn,
    id: ConnId,
    frame_len: Result<Option<usize>, DecodeError>,
    have: usize,
) -> Option<usize> {
    match frame_len {
        Ok(Some(len)) if !is_too_large(broker, conn, id, len) => Some(len),
        // Refused when it is looked at: no further byte is needed for that.
        Ok(Some(_)) | Err(_) => Some(have),
        Ok(None) => None,
    }
}

/// Whether a connection may not send a frame of this length now. What it may grows when it comes
/// online, which may be at any packet; so the broker is asked again before it is refused.
fn is_too_large(broker: &Broker, conn: &mut Conn, id: ConnId, len: usize) -> bool {
    if len > conn.frame_max as usize {
        conn.frame_max = broker.packet_size_max(id) as u32;
    }
    len > conn.frame_max as usize
}
