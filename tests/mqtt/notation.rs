//! Packets as a person writes them: hex, with strings and property sections that count themselves.

/// A packet: its first byte, then its body in [`bytes`]'s notation. The Remaining Length is added.
pub(crate) fn packet(first: u8, body: &str) -> Vec<u8> {
    let body = bytes(body);
    let mut packet = vec![first];
    packet.extend(length(body.len()));
    packet.extend(body);
    packet
}

/// Hex, where `'text'` is a string with its two bytes of length, and `{…}` a property section with
/// its length.
pub(crate) fn bytes(notation: &str) -> Vec<u8> {
    let mut rest = notation;
    let all = section(&mut rest);
    assert!(rest.is_empty(), "a brace too many in {notation}");
    all
}

fn section(rest: &mut &str) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some(c) = rest.chars().next() {
        match c {
            '}' => return out,
            '{' => {
                *rest = &rest[1..];
                let inner = section(rest);
                *rest = rest.strip_prefix('}').expect("a closing brace");
                out.extend(length(inner.len()));
                out.extend(inner);
            }
            '\'' => {
                let (text, after) = rest[1..].split_once('\'').expect("a closing quote");
                out.extend((text.len() as u16).to_be_bytes());
                out.extend(text.as_bytes());
                *rest = after;
            }
            ' ' => *rest = &rest[1..],
            _ => {
                let digits = rest.get(..2).expect("two hex digits");
                out.push(u8::from_str_radix(digits, 16).expect("hex digits"));
                *rest = &rest[2..];
            }
        }
    }
    out
}

/// A Variable Byte Integer.
fn length(mut len: usize) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        let more = if len > 0x7f { 0x80 } else { 0 };
        out.push((len & 0x7f) as u8 | more);
        len >>= 7;
        if len == 0 {
            return out;
        }
    }
}

#[test]
fn the_notation_counts() {
    assert_eq!(
        packet(0x82, "0001 {0b05} 'a/b' 01"),
        b"\x82\x0b\x00\x01\x02\x0b\x05\x00\x03a/b\x01"
    );
    assert_eq!(length(321), [0xc1, 0x02]);
}
