//! Values as people write them: sizes ("2MiB"), durations ("10s"), sets of CPUs ("0,2-5").
//!
//! Each is one type with one grammar, used by flags, environment and configuration file alike.
#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{self, Deserialize, Deserializer, Visitor};

/// A number of bytes: `4096`, `64KiB`, `2MiB`, `1GiB`, or in powers of ten `10MB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

const BINARY_UNITS: [(&str, u64); 4] =
    [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, unit) = split_number(text);
        let factor = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kib" => 1 << 10,
            "m" | "mib" => 1 << 20,
            "g" | "gib" => 1 << 30,
            "kb" => 1_000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            _ => return Err(format!("\"{text}\" is not a size; write it like 64KiB or 2MiB")),
        };
        let number: u64 = number
            .parse()
            .map_err(|_| format!("\"{text}\" is not a size; write it like 64KiB or 2MiB"))?;
        number
            .checked_mul(factor)
            .map(Self)
            .ok_or_else(|| format!("\"{text}\" is larger than any memory"))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, factor) = BINARY_UNITS
            .into_iter()
            .find(|(_, factor)| self.0 >= *factor && self.0.is_multiple_of(*factor))
            .unwrap_or(("B", 1));
        write!(f, "{}{unit}", self.0 / factor)
    }
}

/// A duration: `500ms`, `10s`, `5m`, `12h`, `7d`, or `never` for one without end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl Span {
    /// Longer than every other span.
    pub const NEVER: Self = Self(Duration::MAX);

    /// In whole seconds, rounded up, `u32::MAX` when it cannot be expressed.
    pub fn as_secs(self) -> u32 {
        let up = u64::from(self.0.subsec_nanos() > 0);
        u32::try_from(self.0.as_secs().saturating_add(up)).unwrap_or(u32::MAX)
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.eq_ignore_ascii_case("never") {
            return Ok(Self::NEVER);
        }
        let wrong = || format!("\"{text}\" is not a duration; write it like 500ms, 10s, 5m or 12h");
        let (number, unit) = split_number(text);
        let millis = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(wrong()),
        };
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let millis = number.checked_mul(millis).ok_or_else(wrong)?;
        Ok(Self(Duration::from_millis(millis)))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        match millis {
            _ if *self == Self::NEVER => f.write_str("never"),
            0 => f.write_str("0s"),
            _ if millis.is_multiple_of(86_400_000) => write!(f, "{}d", millis / 86_400_000),
            _ if millis.is_multiple_of(3_600_000) => write!(f, "{}h", millis / 3_600_000),
            _ if millis.is_multiple_of(60_000) => write!(f, "{}m", millis / 60_000),
            _ if millis.is_multiple_of(1_000) => write!(f, "{}s", millis / 1_000),
            _ => write!(f, "{millis}ms"),
        }
    }
}

fn split_number(text: &str) -> (&str, &str) {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    (number, unit.trim_start())
}

/// CPUs by number: `0,2-5`. Not empty, ascending, each once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuList(pub Vec<usize>);

/// CPU numbers are below this (as in the kernel's largest configuration).
const CPUS_MAX: usize = 8192;

impl FromStr for CpuList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("\"{text}\" is not a list of CPUs; write it like 0,2-5");
        let mut cpus = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let first: usize = first.trim().parse().map_err(|_| wrong())?;
            let last: usize = last.trim().parse().map_err(|_| wrong())?;
            if first > last || last >= CPUS_MAX {
                return Err(wrong());
            }
            cpus.extend(first..=last);
        }
        cpus.sort_unstable();
        cpus.dedup();
        Ok(Self(cpus))
    }
}

impl fmt::Display for CpuList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, run) in self.0.chunk_by(|a, b| a + 1 == *b).enumerate() {
            let comma = if i == 0 { "" } else { "," };
            match run {
                [only] => write!(f, "{comma}{only}")?,
                [first, .., last] => write!(f, "{comma}{first}-{last}")?,
                [] => {}
            }
        }
        Ok(())
    }
}

/// Deserializes a value from its text, or from a plain number where that is the same.
pub(super) struct FromText<T>(std::marker::PhantomData<T>);

impl<T> FromText<T> {
    pub(super) const fn new() -> Self {
        Self(std::marker::PhantomData)
    }
}

impl<T: FromStr<Err = String>> Visitor<'_> for FromText<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text in quotes")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        number.to_string().parse().map_err(E::custom)
    }
}

macro_rules! deserialize_from_text {
    ($($name:ty),*) => {$(
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any($crate::server::config::units::FromText::new())
            }
        }
    )*};
}
pub(super) use deserialize_from_text;

deserialize_from_text!(ByteSize, Span, CpuList);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes, shown) in [
            ("0", 0, "0B"),
            ("4096", 4096, "4KiB"),
            ("64 KiB", 65_536, "64KiB"),
            ("2MiB", 2 << 20, "2MiB"),
            ("2m", 2 << 20, "2MiB"),
            ("10MB", 10_000_000, "10000000B"),
            ("1GiB", 1 << 30, "1GiB"),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
            assert_eq!(ByteSize(bytes).to_string(), shown);
        }
        for text in ["", "MiB", "-1", "1.5MiB", "2 parsecs", "99999999999GiB"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn durations() {
        for (text, millis) in
            [("0s", 0), ("500ms", 500), ("10s", 10_000), ("5m", 300_000), ("7d", 604_800_000)]
        {
            let span: Span = text.parse().expect("a duration");
            assert_eq!((span.0, span.to_string().as_str()), (Duration::from_millis(millis), text));
        }
        assert_eq!("Never".parse(), Ok(Span::NEVER));
        assert_eq!(Span::NEVER.to_string(), "never");
        assert_eq!(
            (Span(Duration::from_millis(1)).as_secs(), Span::NEVER.as_secs()),
            (1, u32::MAX)
        );
        for text in ["", "10", "s", "-1s", "1 fortnight", "99999999999999999999s"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }

    #[test]
    fn cpu_lists() {
        let list: CpuList = "5,0, 2-4,3".parse().expect("a list");
        assert_eq!(list.0, [0, 2, 3, 4, 5]);
        assert_eq!(list.to_string(), "0,2-5");
        for text in ["", "a", "3-1", "1-", "0,,1", "99999999"] {
            assert!(text.parse::<CpuList>().is_err(), "{text}");
        }
    }
}
