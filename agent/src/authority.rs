//! Lets gRPC's C core in (Python, C++, Ruby): it calls a Unix socket by its escaped path, which our HTTP/2 library refuses.
//!
//! To those clients the `:authority` of `unix:/run/agent.sock` is `run%2Fagent.sock`. RFC 3986 allows that in a host, the
//! `http` crate does not, and resets the stream before any service sees it. Nothing here looks at the authority: who
//! calls is known from the socket. So on its way in each `%` of an authority becomes `-`. That keeps every length, and
//! with them the frames and both sides' HPACK tables (RFC 7541, 4.1), so nothing needs to be decoded or encoded again.

const NAME: &[u8] = b":authority";

/// The index of `:authority` in HPACK's static table (RFC 7541, appendix A).
const STATIC_INDEX: u8 = 1;

/// What an HTTP/2 connection begins with (RFC 9113, 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEADER_BYTES: u64 = 9;

const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// Follows what one client sends, from the first byte of the connection on.
#[derive(Debug)]
pub(crate) struct Repair {
    part: Part,
    /// Bytes of the part that are still to come.
    left: u64,
    length: u64,
    kind: u8,
    flags: u8,
    /// Bytes at the end of a HEADERS frame that are padding.
    padding: u64,
    field: Field,
}

/// Where in the connection the next byte is (RFC 9113, 4.1 and 6.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Preface,
    FrameHeader,
    PadLength,
    Priority(u8),
    Block,
    Other,
    /// No HTTP/2: all the rest passes as it is.
    Foreign,
}

/// Where in a header block the next byte is (RFC 7541, 5 and 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Start,
    /// In the rest of an index or of a table size.
    Index,
    /// In the rest of a name's index; a value follows.
    NameIndex,
    Length(Text),
    LengthMore {
        text: Text,
        length: u64,
        shift: u32,
    },
    Bytes {
        text: Text,
        left: u64,
    },
}

/// A string of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Text {
    /// How much of [`NAME`] it has been so far; none if it is another.
    Name(Option<usize>),
    /// Of a value: whether it is an authority.
    Value(bool),
}

// === impl Repair ===

impl Repair {
    pub(crate) fn new() -> Self {
        Self {
            part: Part::Preface,
            left: PREFACE.len() as u64,
            length: 0,
            kind: 0,
            flags: 0,
            padding: 0,
            field: Field::Start,
        }
    }

    /// Takes the next bytes as they came.
    pub(crate) fn apply(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            *byte = self.step(*byte);
        }
    }

    fn step(&mut self, byte: u8) -> u8 {
        if self.part == Part::Preface {
            let expected = usize::try_from(self.left)
                .ok()
                .and_then(|left| PREFACE.iter().nth_back(left - 1));
            if expected != Some(&byte) {
                self.part = Part::Foreign;
            }
        }
        if self.part == Part::Foreign {
            return byte;
        }
        let position = FRAME_HEADER_BYTES.saturating_sub(self.left);
        self.left = self.left.saturating_sub(1);
        let mut repaired = byte;
        match self.part {
            Part::Preface | Part::Other | Part::Foreign => {}
            Part::FrameHeader => match position {
                0..3 => self.length = self.length << 8 | u64::from(byte),
                3 => self.kind = byte,
                4 => self.flags = byte,
                _ => {} // the stream: a connection has one header block at a time
            },
            Part::PadLength => {
                self.padding = byte.into();
                self.part = self.after_padding();
            }
            Part::Priority(1) => self.part = Part::Block,
            Part::Priority(left) => self.part = Part::Priority(left - 1),
            Part::Block if self.left < self.padding => {}
            Part::Block => (self.field, repaired) = self.field.step(byte),
        }
        if self.left == 0 {
            self.next_part();
        }
        repaired
    }

    fn next_part(&mut self) {
        if self.part != Part::FrameHeader || self.length == 0 {
            (self.part, self.left, self.length) = (Part::FrameHeader, FRAME_HEADER_BYTES, 0);
            return;
        }
        self.left = self.length;
        self.padding = 0;
        self.part = match self.kind {
            HEADERS => {
                self.field = Field::Start;
                if self.flags & PADDED != 0 {
                    Part::PadLength
                } else {
                    self.after_padding()
                }
            }
            CONTINUATION => Part::Block,
            _ => Part::Other,
        };
    }

    fn after_padding(&self) -> Part {
        if self.flags & PRIORITY != 0 {
            Part::Priority(5)
        } else {
            Part::Block
        }
    }
}

// === impl Field ===

impl Field {
    fn step(self, byte: u8) -> (Self, u8) {
        let more = byte & 0x80 != 0;
        let next = match self {
            Self::Start => Self::begin(byte),
            Self::Index if more => self,
            Self::Index => Self::Start,
            Self::NameIndex if more => self,
            // An index of more than one byte is not that of `:authority`.
            Self::NameIndex => Self::Length(Text::Value(false)),
            Self::Length(text) => {
                // A string in Huffman's code is passed as it is: the C core never uses it here.
                let text = if more { text.foreign() } else { text };
                match byte & 0x7f {
                    0x7f => Self::LengthMore {
                        text,
                        length: 0x7f,
                        shift: 0,
                    },
                    length => Self::of(text, length.into()),
                }
            }
            Self::LengthMore { text, length, shift } => {
                let digit = u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(u64::MAX);
                let length = length.saturating_add(digit);
                if more {
                    Self::LengthMore {
                        text,
                        length,
                        shift: shift.saturating_add(7),
                    }
                } else {
                    Self::of(text, length)
                }
            }
            Self::Bytes {
                text: Text::Value(true),
                left,
            } => {
                let repaired = if byte == b'%' { b'-' } else { byte };
                return (Self::of(Text::Value(true), left.saturating_sub(1)), repaired);
            }
            Self::Bytes { text, left } => Self::of(text.and(byte), left.saturating_sub(1)),
        };
        (next, byte)
    }

    /// The first byte of a field tells its form.
    fn begin(byte: u8) -> Self {
        let full = |mask: u8| byte & mask == mask;
        let literal = |mask: u8| match byte & mask {
            0 => Self::Length(Text::Name(Some(0))),
            index if index == mask => Self::NameIndex,
            index => Self::Length(Text::Value(index == STATIC_INDEX)),
        };
        match byte {
            0x80.. => {
                if full(0x7f) {
                    Self::Index
                } else {
                    Self::Start
                }
            }
            0x40.. => literal(0x3f),
            0x20.. => {
                if full(0x1f) {
                    Self::Index
                } else {
                    Self::Start
                }
            }
            _ => literal(0x0f),
        }
    }

    /// In a string of which this much is still to come.
    fn of(text: Text, left: u64) -> Self {
        match (text, left) {
            (Text::Name(seen), 0) => Self::Length(Text::Value(seen == Some(NAME.len()))),
            (Text::Value(_), 0) => Self::Start,
            _ => Self::Bytes { text, left },
        }
    }
}

// === impl Text ===

impl Text {
    /// The same kind of string, but not ours to read.
    fn foreign(self) -> Self {
        match self {
            Self::Name(_) => Self::Name(None),
            Self::Value(_) => Self::Value(false),
        }
    }

    /// With one byte more.
    fn and(self, byte: u8) -> Self {
        match self {
            Self::Name(Some(seen)) => Self::Name((NAME.get(seen) == Some(&byte)).then_some(seen + 1)),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    fn text(text: &[u8]) -> Vec<u8> {
        match u8::try_from(text.len()).unwrap() {
            length @ ..0x7f => [&[length], text].concat(),
            length => [&[0x7f, length - 0x7f], text].concat(),
        }
    }

    /// As the C core writes it: the name in full.
    fn in_full(value: &[u8]) -> Vec<u8> {
        [vec![0x40], text(NAME), text(value)].concat()
    }

    /// HTTP/1.1, or anything else, is not looked into: not even where it holds what would be repaired.
    #[test]
    fn another_protocol_passes_as_it_is() {
        let block = in_full(b"run%2Fagent.sock");
        for head in [&b"POST /access/v1/evalua"[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n"] {
            let sent = [head, b"..", &frame(HEADERS, 4, &block)].concat();
            for piece in [1, 24, sent.len()] {
                let (mut repair, mut got) = (Repair::new(), sent.clone());
                got.chunks_mut(piece).for_each(|piece| repair.apply(piece));
                assert_eq!(got, sent, "in pieces of {piece}");
            }
        }
    }

    #[test]
    fn only_a_plain_authority_is_changed() {
        let check = |frames: &[Vec<u8>], from: &str, to: &str| {
            let sent = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frames.concat()].concat();
            let expected = String::from_utf8_lossy(&sent).replace(from, to);
            for piece in [1, 7, sent.len()] {
                let (mut repair, mut got) = (Repair::new(), sent.clone());
                got.chunks_mut(piece).for_each(|piece| repair.apply(piece));
                assert_eq!(String::from_utf8_lossy(&got), expected, "in pieces of {piece}");
            }
        };
        let settings = frame(4, 0, &[0, 2, 0, 0, 0, 0]);
        let (escaped, repaired) = ("%2Fagent.sock", "-2Fagent.sock");
        let plain = in_full(b"run%2Fagent.sock");
        let indexed = [vec![0x41], text(b"run%2Fagent.sock")].concat();
        let never = [vec![0x11], text(b"run%2Fagent.sock")].concat();
        let other = [
            vec![0x44],
            text(b"/a%2Fb"),
            vec![0x40],
            text(b":authoritx"),
            text(b"c%2Fd"),
        ]
        .concat();
        for block in [&plain, &indexed, &never] {
            let whole = [&[0x83, 0x20][..], &other, block, &[0x86], &other].concat();
            check(
                &[settings.clone(), frame(HEADERS, 4, &whole), frame(0, 1, b"%2F")],
                escaped,
                repaired,
            );
            // Cut in the middle of the authority.
            let cut = whole.windows(escaped.len()).position(|part| part == escaped.as_bytes());
            let (a, b) = whole.split_at(cut.unwrap());
            check(
                &[frame(HEADERS, 0, a), frame(CONTINUATION, 4, b), settings.clone()],
                escaped,
                repaired,
            );
            let padded = [&[3, 0, 0, 0, 0, 9][..], &whole, b"%%%"].concat();
            check(
                &[
                    frame(HEADERS, 4 | PADDED | PRIORITY, &padded),
                    frame(HEADERS, 4, &whole),
                ],
                escaped,
                repaired,
            );
        }
        let long = format!("{}%2Fagent.sock", "d".repeat(200));
        check(&[frame(HEADERS, 4, &in_full(long.as_bytes()))], escaped, repaired);
        // In Huffman's code, as an index of several bytes, empty: not ours.
        let huffman = [&[0x41, 0x83][..], b"%%%"].concat();
        let far = [&[0x7f, 0x81, 0x01][..], &text(b"%")].concat();
        check(
            &[frame(
                HEADERS,
                4,
                &[&huffman[..], &far, &in_full(b""), &other, &[0xff, 0x80, 0x01]].concat(),
            )],
            "nothing",
            "",
        );
    }

    #[test]
    fn any_bytes_are_followed_without_a_panic() {
        for seed in 0..200u32 {
            let mut state = seed;
            let mut bytes: Vec<u8> = (0..4000)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (state >> 24) as u8 & if seed % 2 == 0 { 0xff } else { 0x0f }
                })
                .collect();
            Repair::new().apply(&mut bytes);
        }
    }
}
