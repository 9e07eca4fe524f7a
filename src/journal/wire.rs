//! The small pieces that records and frames are made of: little-endian integers, variable-length
//! numbers (LEB128), byte strings behind their length. Reading never panics and never trusts a
//! length.
#![forbid(unsafe_code)]

use std::fmt;

/// Why bytes are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// It ends within a field.
    Short,
    /// A number takes more than 64 bits.
    Number,
    /// Text that is not UTF-8.
    Text,
    /// A kind that this version does not know.
    Kind(u8),
    /// A field has a value that means nothing.
    Value(&'static str),
    /// Bytes are left over behind the last field.
    Trailing(usize),
    /// The checksum is another one.
    Checksum,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short => f.write_str("it ends within a field"),
            Self::Number => f.write_str("a number of more than 64 bits"),
            Self::Text => f.write_str("text that is not UTF-8"),
            Self::Kind(kind) => write!(f, "a record of unknown kind {kind}"),
            Self::Value(field) => write!(f, "a value of {field} that means nothing"),
            Self::Trailing(bytes) => write!(f, "{bytes} bytes behind the last field"),
            Self::Checksum => f.write_str("the checksum does not hold"),
        }
    }
}

impl std::error::Error for Malformed {}

/// Appends a number, 7 bits a byte, the lowest first.
pub(super) fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Appends bytes behind their length.
pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// What is still to be read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn byte(&mut self) -> Result<u8, Malformed> {
        let (first, rest) = self.0.split_first().ok_or(Malformed::Short)?;
        self.0 = rest;
        Ok(*first)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (first, rest) = self.0.split_first_chunk::<N>().ok_or(Malformed::Short)?;
        self.0 = rest;
        Ok(*first)
    }

    pub(super) fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn number(&mut self) -> Result<u64, Malformed> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(Malformed::Number);
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(Malformed::Number)
    }

    pub(super) fn number32(&mut self) -> Result<u32, Malformed> {
        u32::try_from(self.number()?).map_err(|_| Malformed::Number)
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let len = self.number()?;
        let len = usize::try_from(len).ok().filter(|len| *len <= self.0.len());
        let (bytes, rest) = self.0.split_at(len.ok_or(Malformed::Short)?);
        self.0 = rest;
        Ok(bytes)
    }

    pub(super) fn text(&mut self) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Malformed::Text)
    }
}

/// A list of numbers as it stands in a record: checked when it was read, taken apart when it is
/// asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers<'a> {
    count: usize,
    bytes: &'a [u8],
}

impl<'a> Numbers<'a> {
    /// Writes a list of numbers into `out`, behind what stands there, and gives it as it reads.
    pub fn write(numbers: impl IntoIterator<Item = u64>, out: &'a mut Vec<u8>) -> Self {
        let start = out.len();
        let mut count = 0;
        for number in numbers {
            put_number(out, number);
            count += 1;
        }
        Self { count, bytes: &out[start..] }
    }

    /// A list of so many, as [`Numbers::write`] has written it.
    #[cfg(test)]
    pub(super) const fn of(count: usize, bytes: &'a [u8]) -> Self {
        Self { count, bytes }
    }

    /// How many.
    pub const fn len(&self) -> usize {
        self.count
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = u64> + use<'a> {
        let mut reader = Reader(self.bytes);
        (0..self.count).map_while(move |_| reader.number().ok())
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        put_number(out, self.count as u64);
        out.extend_from_slice(self.bytes);
    }

    pub(super) fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        let count = reader.number()?;
        // Each takes a byte at least: a count that was made up ends here.
        let count = usize::try_from(count).ok().filter(|count| *count <= reader.0.len());
        let count = count.ok_or(Malformed::Short)?;
        let all = reader.0;
        for _ in 0..count {
            reader.number()?;
        }
        Ok(Self { count, bytes: &all[..all.len() - reader.0.len()] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_leb128() {
        for (number, hex) in [
            (0u64, &b"\x00"[..]),
            (127, b"\x7f"),
            (128, b"\x80\x01"),
            (300, b"\xac\x02"),
            (u64::MAX, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"),
        ] {
            let mut out = Vec::new();
            put_number(&mut out, number);
            assert_eq!(out, hex);
            assert_eq!(Reader(&out).number(), Ok(number));
            assert_eq!(Reader(&out[..out.len() - 1]).number(), Err(Malformed::Short));
        }
        assert_eq!(
            Reader(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02").number(),
            Err(Malformed::Number)
        );
        assert_eq!(Reader(&[0xff; 11]).number(), Err(Malformed::Number));
    }

    #[test]
    fn a_length_is_not_believed() {
        assert_eq!(Reader(b"\xff\xff\xff\xff\x0fabc").bytes(), Err(Malformed::Short));
        assert_eq!(Reader(b"\x03abc").bytes(), Ok(&b"abc"[..]));
        assert_eq!(Reader(b"\x01\xff").text(), Err(Malformed::Text));
        assert_eq!(Numbers::read(&mut Reader(b"\xff\xff\x03\x01")), Err(Malformed::Short));
    }
}
