//! `-F`: how a received message is printed. The sequences are those of `mosquitto_sub`; times are
//! UTC. Help for users is in [`HELP`].
#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::time::Duration;

use crate::codec::mqtt::{Publish, PublishProperties};

/// What `--help` says.
pub(super) const HELP: &str = "\
Formats (-F):
  %t topic                    %p payload               %x %X payload in hexadecimal
  %l payload length           %q QoS                   %r retained, 1 or 0
  %m packet id (QoS 1, 2)     %I time, ISO 8601        %U time, seconds since 1970
  %j all as JSON              %J the same, of a payload that is JSON
  %A topic alias              %C content type          %D correlation data
  %E expiry interval          %F payload format        %P user properties
  %R response topic           %S subscription ids      %% a percent sign
  A width may follow the percent sign, after 0 (zeros) or - (left); .N cuts: %-20.20t
  @Y @m @d @H @M @S @N (nanoseconds) @F @T @s @z are parts of the time, @@ is an @;
  \\\\ \\0 \\a \\e \\n \\r \\t \\v are escapes. All times are UTC.";

/// A format, taken apart once.
#[derive(Debug)]
pub(super) struct Format {
    pieces: Vec<Piece>,
    /// End each message with a new line.
    new_line: bool,
    pretty: bool,
}

#[derive(Debug)]
enum Piece {
    Literal(Vec<u8>),
    /// `%`
    Field {
        letter: char,
        layout: Layout,
    },
    /// `@`
    Clock(char),
    /// The payload; nothing at all is printed for an empty one.
    Plain,
    /// Topic and payload.
    Verbose,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Layout {
    zeros: bool,
    left: bool,
    width: usize,
    longest: Option<usize>,
}

impl Layout {
    fn put(self, text: &str, out: &mut Vec<u8>) {
        let text = match self.longest.and_then(|longest| text.char_indices().nth(longest)) {
            Some((cut, _)) => &text[..cut],
            None => text,
        };
        let padding = self.width.saturating_sub(text.chars().count());
        let fill = if self.zeros && !self.left { b'0' } else { b' ' };
        if self.left {
            out.extend_from_slice(text.as_bytes());
        }
        out.extend(std::iter::repeat_n(fill, padding));
        if !self.left {
            out.extend_from_slice(text.as_bytes());
        }
    }
}

impl Format {
    /// The payload alone, or behind its topic.
    pub(super) fn simple(verbose: bool, new_line: bool) -> Self {
        let pieces = vec![if verbose { Piece::Verbose } else { Piece::Plain }];
        Self { pieces, new_line, pretty: false }
    }

    /// Takes a format apart.
    pub(super) fn parse(text: &str, new_line: bool, pretty: bool) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut literal = Vec::new();
        let mut chars = text.chars().peekable();
        while let Some(char) = chars.next() {
            let piece = match char {
                '%' => {
                    let layout = parse_layout(&mut chars);
                    match chars.next() {
                        Some('%') => {
                            literal.push(b'%');
                            continue;
                        }
                        Some(letter) if "tpxXlqrmIUjJACDEFPRS".contains(letter) => {
                            Piece::Field { letter, layout }
                        }
                        letter => return Err(unknown('%', letter)),
                    }
                }
                '@' => match chars.next() {
                    Some('@') => {
                        literal.push(b'@');
                        continue;
                    }
                    Some(letter) if "YmdHMSNFTsz".contains(letter) => Piece::Clock(letter),
                    letter => return Err(unknown('@', letter)),
                },
                '\\' => {
                    literal.push(match chars.next() {
                        Some('\\') => b'\\',
                        Some('0') => 0,
                        Some('a') => 7,
                        Some('e') => 27,
                        Some('n') => b'\n',
                        Some('r') => b'\r',
                        Some('t') => b'\t',
                        Some('v') => 11,
                        letter => return Err(unknown('\\', letter)),
                    });
                    continue;
                }
                other => {
                    literal.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes());
                    continue;
                }
            };
            if !literal.is_empty() {
                pieces.push(Piece::Literal(std::mem::take(&mut literal)));
            }
            pieces.push(piece);
        }
        if !literal.is_empty() {
            pieces.push(Piece::Literal(literal));
        }
        Ok(Self { pieces, new_line, pretty })
    }

    /// Appends the message. `time` is that of its arrival, since 1970.
    pub(super) fn write(
        &self,
        message: &Publish<'_>,
        time: Duration,
        out: &mut Vec<u8>,
    ) -> Result<(), String> {
        let start = out.len();
        for piece in &self.pieces {
            match piece {
                Piece::Literal(text) => out.extend_from_slice(text),
                Piece::Clock(letter) => out.extend_from_slice(clock(*letter, time).as_bytes()),
                Piece::Plain if message.payload.is_empty() => return Ok(()),
                Piece::Plain => out.extend_from_slice(message.payload),
                Piece::Verbose => {
                    out.extend_from_slice(message.topic.as_bytes());
                    out.push(b' ');
                    let empty = message.payload.is_empty();
                    out.extend_from_slice(if empty { b"(null)" } else { message.payload });
                }
                Piece::Field { letter: letter @ ('j' | 'J'), .. } => {
                    if let Err(error) = self.write_json(message, time, *letter == 'J', out) {
                        out.truncate(start);
                        return Err(error);
                    }
                }
                Piece::Field { letter, layout } => {
                    write_field(*letter, *layout, message, time, out);
                }
            }
        }
        if self.new_line {
            out.push(b'\n');
        }
        Ok(())
    }

    fn write_json(
        &self,
        message: &Publish<'_>,
        time: Duration,
        payload_is_json: bool,
        out: &mut Vec<u8>,
    ) -> Result<(), String> {
        let payload = if payload_is_json {
            let text = std::str::from_utf8(message.payload).ok();
            let text =
                text.filter(|text| serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok());
            let bad = || format!("message payload is not valid JSON on topic {}", message.topic);
            text.ok_or_else(bad)?.to_owned()
        } else {
            json_string(&String::from_utf8_lossy(message.payload))
        };
        let mut fields = vec![
            ("tst", json_string(&iso_8601(time, true))),
            ("topic", json_string(message.topic)),
            ("qos", (message.qos as u8).to_string()),
            ("retain", u8::from(message.retain).to_string()),
            ("payloadlen", message.payload.len().to_string()),
        ];
        if let Some(id) = message.packet_id {
            fields.push(("mid", id.get().to_string()));
        }
        let properties = json_properties(&message.properties);
        if !properties.is_empty() {
            fields.push(("properties", self.json_object(&properties, 1)));
        }
        fields.push(("payload", payload));
        out.extend_from_slice(self.json_object(&fields, 0).as_bytes());
        Ok(())
    }

    fn json_object(&self, fields: &[(&str, String)], depth: usize) -> String {
        let mut text = String::from("{");
        let indent = "  ".repeat(depth);
        for (index, (name, value)) in fields.iter().enumerate() {
            if index > 0 {
                text.push(',');
            }
            if self.pretty {
                let _ = write!(text, "\n{indent}  \"{name}\": {value}");
            } else {
                let _ = write!(text, "\"{name}\":{value}");
            }
        }
        if self.pretty {
            let _ = write!(text, "\n{indent}");
        }
        text.push('}');
        text
    }
}

fn parse_layout(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Layout {
    let mut layout = Layout::default();
    while let Some(flag) = chars.next_if(|char| matches!(char, '0' | '-')) {
        if flag == '-' { layout.left = true } else { layout.zeros = true }
    }
    layout.width = parse_number(chars).unwrap_or(0);
    if chars.next_if_eq(&'.').is_some() {
        layout.longest = Some(parse_number(chars).unwrap_or(0));
    }
    layout
}

/// At most four digits: nobody means more.
fn parse_number(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<usize> {
    let mut number = None;
    while let Some(digit) = chars.peek().and_then(|char| char.to_digit(10)) {
        chars.next();
        number = Some((number.unwrap_or(0) * 10 + digit as usize).min(9999));
    }
    number
}

fn unknown(sign: char, letter: Option<char>) -> String {
    match letter {
        Some(letter) => format!("-F: {sign}{letter} is not known"),
        None => format!("-F: nothing follows the last {sign}"),
    }
}

fn write_field(
    letter: char,
    layout: Layout,
    message: &Publish<'_>,
    time: Duration,
    out: &mut Vec<u8>,
) {
    let properties = &message.properties;
    let number = |value: Option<u32>| value.map(|value| value.to_string()).unwrap_or_default();
    let hex = |upper: bool| {
        message.payload.iter().fold(String::new(), |mut text, byte| {
            let _ = if upper { write!(text, "{byte:02X}") } else { write!(text, "{byte:02x}") };
            text
        })
    };
    let text = match letter {
        // These may be anything but text.
        'p' if layout == Layout::default() => {
            out.extend_from_slice(message.payload);
            return;
        }
        'D' => {
            out.extend_from_slice(properties.correlation_data.unwrap_or_default());
            return;
        }
        'p' => String::from_utf8_lossy(message.payload).into_owned(),
        't' => message.topic.to_owned(),
        'x' => hex(false),
        'X' => hex(true),
        'l' => message.payload.len().to_string(),
        'q' => (message.qos as u8).to_string(),
        'r' => u8::from(message.retain).to_string(),
        'm' => message.packet_id.map_or(0, |id| id.get()).to_string(),
        'I' => iso_8601(time, false),
        'U' => format!("{}.{:09}", time.as_secs(), time.subsec_nanos()),
        'A' => number(properties.topic_alias.map(|alias| alias.get().into())),
        'C' => properties.content_type.unwrap_or_default().to_owned(),
        'E' => number(properties.message_expiry_interval),
        'F' => number(properties.payload_format.map(u32::from)),
        'R' => properties.response_topic.unwrap_or_default().to_owned(),
        'S' => join(properties.subscription_ids.iter().map(|id| id.to_string())),
        'P' => join(properties.user_properties.iter().map(|(key, value)| format!("{key}:{value}"))),
        other => unreachable!("invariant: parse knows no %{other}"),
    };
    layout.put(&text, out);
}

fn join(texts: impl Iterator<Item = String>) -> String {
    texts.collect::<Vec<_>>().join(" ")
}

fn json_string(text: &str) -> String {
    serde_json::to_string(text).expect("invariant: a string is JSON")
}

fn json_properties<'a>(properties: &PublishProperties<'_>) -> Vec<(&'a str, String)> {
    let mut fields = Vec::new();
    let mut put = |name: &'a str, value: Option<String>| {
        if let Some(value) = value {
            fields.push((name, value));
        }
    };
    let p = properties;
    put("payload-format-indicator", p.payload_format.map(|utf8| u8::from(utf8).to_string()));
    put("message-expiry-interval", p.message_expiry_interval.map(|secs| secs.to_string()));
    put("topic-alias", p.topic_alias.map(|alias| alias.to_string()));
    put("content-type", p.content_type.map(json_string));
    put("response-topic", p.response_topic.map(json_string));
    let correlation = p.correlation_data.map(String::from_utf8_lossy);
    put("correlation-data", correlation.map(|data| json_string(&data)));
    let ids: Vec<_> = p.subscription_ids.iter().map(|id| id.to_string()).collect();
    put("subscription-identifiers", (!ids.is_empty()).then(|| format!("[{}]", ids.join(","))));
    // A list of pairs: keys may repeat, and their order means something.
    let pairs: Vec<_> = p
        .user_properties
        .iter()
        .map(|(key, value)| format!("{{{}:{}}}", json_string(key), json_string(value)))
        .collect();
    put("user-properties", (!pairs.is_empty()).then(|| format!("[{}]", pairs.join(","))));
    fields
}

/// Year, month, day.
fn date(time: Duration) -> (u64, u64, u64) {
    // Days from 1 March of the year 0, in cycles of 400 years (H. Hinnant, "chrono-compatible
    // low-level date algorithms").
    let days = time.as_secs() / 86_400 + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

fn iso_8601(time: Duration, micros: bool) -> String {
    let fraction = if micros { format!(".{:06}", time.subsec_micros()) } else { String::new() };
    format!("{}T{}{fraction}+0000", clock('F', time), clock('T', time))
}

fn clock(letter: char, time: Duration) -> String {
    let (year, month, day) = date(time);
    let second = time.as_secs() % 86_400;
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    match letter {
        'Y' => format!("{year:04}"),
        'm' => format!("{month:02}"),
        'd' => format!("{day:02}"),
        'H' => format!("{hour:02}"),
        'M' => format!("{minute:02}"),
        'S' => format!("{second:02}"),
        'N' => format!("{:09}", time.subsec_nanos()),
        'F' => format!("{year:04}-{month:02}-{day:02}"),
        'T' => format!("{hour:02}:{minute:02}:{second:02}"),
        's' => time.as_secs().to_string(),
        'z' => "+0000".into(),
        other => unreachable!("invariant: parse knows no @{other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::mqtt::{PacketId, QoS, UserProperties};

    fn message(payload: &'static [u8]) -> Publish<'static> {
        Publish {
            dup: false,
            qos: QoS::AtLeastOnce,
            retain: true,
            topic: "a/b",
            packet_id: PacketId::new(12),
            properties: PublishProperties {
                content_type: Some("text"),
                user_properties: UserProperties::new(&[("k", "v"), ("k", "w")]),
                ..PublishProperties::default()
            },
            payload,
        }
    }

    /// 2026-11-21 08:36:37.123456789
    const TIME: Duration = Duration::new(1_795_250_197, 123_456_789);

    fn show(format: &str, payload: &'static [u8]) -> String {
        let mut out = Vec::new();
        let format = Format::parse(format, false, false).unwrap();
        format.write(&message(payload), TIME, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn fields() {
        for (format, expected) in [
            ("%t %p %q %r %l %m", "a/b hi 1 1 2 12"),
            ("%x %X%%", "6869 6869%"),
            ("[%5t][%-5t][%-2.1t][%04l]", "[  a/b][a/b  ][a ][0002]"),
            ("%C|%R|%P|%E", "text||k:v k:w|"),
            ("%I %U", "2026-11-21T08:36:37+0000 1795250197.123456789"),
            (
                "@Y-@m-@d @H:@M:@S.@N @F @T @s @z @@",
                "2026-11-21 08:36:37.123456789 2026-11-21 08:36:37 1795250197 +0000 @",
            ),
            ("\\t\\\\\\e", "\t\\\u{1b}"),
        ] {
            assert_eq!(show(format, b"hi"), expected, "{format}");
        }
        for bad in ["%y", "%", "@x", "\\q", "\\"] {
            assert!(Format::parse(bad, true, false).is_err(), "{bad}");
        }
    }

    #[test]
    fn json() {
        let head = "{\"tst\":\"2026-11-21T08:36:37.123456+0000\",\"topic\":\"a/b\",\"qos\":1,\
                    \"retain\":1,\"payloadlen\":7,\"mid\":12,\"properties\":{\"content-type\":\
                    \"text\",\"user-properties\":[{\"k\":\"v\"},{\"k\":\"w\"}]},\"payload\":";
        assert_eq!(show("%J", b"{\"x\":1}"), format!("{head}{{\"x\":1}}}}"));
        assert_eq!(show("%j", b"{\"x\":1}"), format!("{head}\"{{\\\"x\\\":1}}\"}}"));
        let value: serde_json::Value = serde_json::from_str(&show("%j", b"\xff\n")).unwrap();
        assert_eq!(value["payload"], "\u{fffd}\n");
        let mut out = Vec::new();
        let format = Format::parse("%t %J", true, false).unwrap();
        assert!(format.write(&message(b"{"), TIME, &mut out).is_err());
        assert!(out.is_empty());
        let mut out = Vec::new();
        let pretty = Format::parse("%J", true, true).unwrap();
        pretty.write(&message(b"[]"), TIME, &mut out).unwrap();
        assert!(String::from_utf8(out).unwrap().starts_with("{\n  \"tst\": "));
    }

    #[test]
    fn simple_forms() {
        let show = |verbose, payload| {
            let mut out = Vec::new();
            Format::simple(verbose, true).write(&message(payload), TIME, &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(show(false, b"hi"), "hi\n");
        assert_eq!(show(false, b""), "");
        assert_eq!(show(true, b"hi"), "a/b hi\n");
        assert_eq!(show(true, b""), "a/b (null)\n");
    }

    #[test]
    fn dates() {
        for (secs, expected) in [
            (0, (1970, 1, 1)),
            (951_782_400, (2000, 2, 29)),
            (951_868_800, (2000, 3, 1)),
            (4_107_542_399, (2100, 2, 28)),
            (4_107_542_400, (2100, 3, 1)),
        ] {
            assert_eq!(date(Duration::from_secs(secs)), expected);
        }
    }
}
