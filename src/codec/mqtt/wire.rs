//! The data types of section 1.5: reading them from a slice, and writing them twice, once to be
//! counted and once for good, by the same code.
#![forbid(unsafe_code)]

use super::PacketId;
use super::error::Cause;
use crate::limits::REMAINING_LENGTH_MAX;

/// Largest value of a Variable Byte Integer.
pub(super) const VBI_MAX: u32 = REMAINING_LENGTH_MAX as u32;

/// What is left of a frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// What has not been read.
    pub(super) const fn rest(&self) -> &'a [u8] {
        self.bytes
    }

    /// Reads the rest.
    pub(super) fn take_rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.bytes)
    }

    /// Fails when something is left.
    pub(super) fn finish(&self) -> Result<(), Cause> {
        if self.bytes.is_empty() { Ok(()) } else { Err(Cause::TrailingBytes) }
    }

    #[inline]
    pub(super) fn take(&mut self, len: usize) -> Result<&'a [u8], Cause> {
        let (head, rest) = self.bytes.split_at_checked(len).ok_or(Cause::Truncated)?;
        self.bytes = rest;
        Ok(head)
    }

    #[inline]
    pub(super) fn u8(&mut self) -> Result<u8, Cause> {
        let (&first, rest) = self.bytes.split_first().ok_or(Cause::Truncated)?;
        self.bytes = rest;
        Ok(first)
    }

    #[inline]
    pub(super) fn u16(&mut self) -> Result<u16, Cause> {
        let (head, rest) = self.bytes.split_first_chunk().ok_or(Cause::Truncated)?;
        self.bytes = rest;
        Ok(u16::from_be_bytes(*head))
    }

    #[inline]
    pub(super) fn u32(&mut self) -> Result<u32, Cause> {
        let (head, rest) = self.bytes.split_first_chunk().ok_or(Cause::Truncated)?;
        self.bytes = rest;
        Ok(u32::from_be_bytes(*head))
    }

    /// A packet identifier, never zero `[MQTT-2.2.1-3]`.
    #[inline]
    pub(super) fn packet_id(&mut self) -> Result<PacketId, Cause> {
        PacketId::new(self.u16()?).ok_or(Cause::PacketIdZero)
    }

    /// A Variable Byte Integer in its shortest form `[MQTT-1.5.5-1]`.
    #[inline]
    pub(super) fn vbi(&mut self) -> Result<u32, Cause> {
        let (value, len) = read_vbi(self.bytes)?.ok_or(Cause::Truncated)?;
        self.bytes = &self.bytes[len..];
        Ok(value)
    }

    /// Binary Data.
    #[inline]
    pub(super) fn binary(&mut self) -> Result<&'a [u8], Cause> {
        let len = self.u16()?;
        self.take(usize::from(len))
    }

    /// A UTF-8 Encoded String `[MQTT-1.5.4-1]` without U+0000 `[MQTT-1.5.4-2]`.
    #[inline]
    pub(super) fn string(&mut self) -> Result<&'a str, Cause> {
        let bytes = self.binary()?;
        let string = std::str::from_utf8(bytes).map_err(|_| Cause::Utf8)?;
        if bytes.contains(&0) {
            return Err(Cause::NullCharacter);
        }
        Ok(string)
    }
}

/// The Variable Byte Integer at the start of `bytes` and its length; `None` when it goes on beyond
/// them.
#[inline]
pub(super) fn read_vbi(bytes: &[u8]) -> Result<Option<(u32, usize)>, Cause> {
    let mut value = 0;
    for (index, &byte) in bytes.iter().take(4).enumerate() {
        value |= u32::from(byte & 0x7F) << (7 * index);
        if byte & 0x80 == 0 {
            if byte == 0 && index > 0 {
                return Err(Cause::VariableByteIntegerNotMinimal);
            }
            return Ok(Some((value, index + 1)));
        }
    }
    if bytes.len() >= 4 { Err(Cause::VariableByteIntegerTooLong) } else { Ok(None) }
}

/// Length of a Variable Byte Integer.
pub(super) const fn vbi_len(value: usize) -> usize {
    match value {
        0..=0x7F => 1,
        0x80..=0x3FFF => 2,
        0x4000..=0x1F_FFFF => 3,
        _ => 4,
    }
}

/// Where encoded bytes go: into a buffer, or into a count of them.
pub(super) trait Sink {
    fn bytes(&mut self, bytes: &[u8]);

    #[inline]
    fn u8(&mut self, value: u8) {
        self.bytes(&[value]);
    }

    #[inline]
    fn u16(&mut self, value: u16) {
        self.bytes(&value.to_be_bytes());
    }

    #[inline]
    fn u32(&mut self, value: u32) {
        self.bytes(&value.to_be_bytes());
    }

    /// A Variable Byte Integer in its shortest form.
    #[inline]
    fn vbi(&mut self, value: usize) {
        assert!(value <= REMAINING_LENGTH_MAX, "invariant: lengths and identifiers fit 28 bits");
        let mut rest = value;
        while rest > 0x7F {
            self.u8(rest as u8 | 0x80);
            rest >>= 7;
        }
        self.u8(rest as u8);
    }

    #[inline]
    fn binary(&mut self, value: &[u8]) {
        self.u16(u16::try_from(value.len()).expect("invariant: fields fit 16 bits of length"));
        self.bytes(value);
    }

    #[inline]
    fn string(&mut self, value: &str) {
        self.binary(value.as_bytes());
    }
}

impl Sink for Vec<u8> {
    #[inline]
    fn bytes(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }

    #[inline]
    fn u8(&mut self, value: u8) {
        self.push(value);
    }
}

/// Counts.
struct Count(usize);

impl Sink for Count {
    #[inline]
    fn bytes(&mut self, bytes: &[u8]) {
        self.0 += bytes.len();
    }
}

/// Something that can be written to either sink. One body for both is what keeps the announced and
/// the written length the same.
pub(super) trait Encode {
    fn put<S: Sink>(&self, out: &mut S);

    /// Bytes that [`Encode::put`] writes.
    fn len(&self) -> usize {
        let mut count = Count(0);
        self.put(&mut count);
        count.0
    }

    /// Behind its length, as property sections are.
    fn put_with_len<S: Sink>(&self, out: &mut S) {
        out.vbi(self.len());
        self.put(out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `[MQTT-1.5.5-1]` and table 1-1.
    #[test]
    fn variable_byte_integers() {
        for (value, bytes) in [
            (0, &[0x00][..]),
            (127, &[0x7F]),
            (128, &[0x80, 0x01]),
            (16_383, &[0xFF, 0x7F]),
            (16_384, &[0x80, 0x80, 0x01]),
            (2_097_151, &[0xFF, 0xFF, 0x7F]),
            (2_097_152, &[0x80, 0x80, 0x80, 0x01]),
            (268_435_455, &[0xFF, 0xFF, 0xFF, 0x7F]),
        ] {
            assert_eq!(read_vbi(bytes), Ok(Some((value, bytes.len()))));
            assert_eq!(vbi_len(value as usize), bytes.len());
            let mut out = Vec::new();
            out.vbi(value as usize);
            assert_eq!(out, bytes);
            for cut in 0..bytes.len() {
                assert_eq!(read_vbi(&bytes[..cut]), Ok(None));
            }
        }
        assert_eq!(read_vbi(&[0x80, 0x00]), Err(Cause::VariableByteIntegerNotMinimal));
        assert_eq!(read_vbi(&[0xFF, 0xFF, 0x80, 0x00]), Err(Cause::VariableByteIntegerNotMinimal));
        assert_eq!(read_vbi(&[0xFF, 0xFF, 0xFF, 0xFF]), Err(Cause::VariableByteIntegerTooLong));
        assert_eq!(
            read_vbi(&[0x80, 0x80, 0x80, 0x80, 0x01]),
            Err(Cause::VariableByteIntegerTooLong)
        );
    }

    /// `[MQTT-1.5.4-1]`, `[MQTT-1.5.4-2]`, `[MQTT-1.5.4-3]`.
    #[test]
    fn strings() {
        let read = |bytes: &[u8]| Reader::new(bytes).string().map(str::to_owned);
        assert_eq!(read(b"\0\0"), Ok(String::new()));
        assert_eq!(read(b"\0\x01a"), Ok("a".into()));
        assert_eq!(read(b"\0\x05A\xF0\xAA\x9B\x94"), Ok("A\u{2A6D4}".into()));
        assert_eq!(read(b"\0\x03\xEF\xBB\xBF"), Ok("\u{FEFF}".into()), "a BOM is kept");
        assert_eq!(read(b"\0\x03\xEF\xBF\xBF"), Ok("\u{FFFF}".into()), "a non-character may pass");
        assert_eq!(read(b"\0\x01\x01"), Ok("\u{1}".into()), "a control character may pass");
        assert_eq!(read(b"\0\x03\xED\xA0\x80"), Err(Cause::Utf8), "surrogate");
        assert_eq!(read(b"\0\x03\xED\xBF\xBF"), Err(Cause::Utf8), "surrogate");
        assert_eq!(read(b"\0\x02\xC0\x80"), Err(Cause::Utf8), "overlong null");
        assert_eq!(read(b"\0\x03\xE0\x80\xAF"), Err(Cause::Utf8), "overlong");
        assert_eq!(read(b"\0\x04\xF4\x90\x80\x80"), Err(Cause::Utf8), "beyond U+10FFFF");
        assert_eq!(read(b"\0\x01\xFF"), Err(Cause::Utf8));
        assert_eq!(read(b"\0\x01\xC3"), Err(Cause::Utf8), "cut character");
        assert_eq!(read(b"\0\x03a\0b"), Err(Cause::NullCharacter));
        assert_eq!(read(b"\0\x02a"), Err(Cause::Truncated));
        assert_eq!(read(b"\0"), Err(Cause::Truncated));
        assert_eq!(read(b""), Err(Cause::Truncated));
    }
}
