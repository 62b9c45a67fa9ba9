//! The frames of HTTP/2 as we write them, and the errors with which they refuse what the peer sent.

use std::collections::BTreeSet;

/// A frame's head (RFC 9113, 4.1), and as much of its payload as holds an error code.
const HEAD_BYTES: usize = 9;
const ERROR_BYTES: usize = 8;

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;

/// Streams that we remember to have answered: more than there may be at a time.
const ANSWERED_MAX: usize = 512;

/// Cuts what we write into frames, whatever pieces it is written in.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    /// The beginning of the current frame.
    head: Vec<u8>,
    /// What is left of it and of no interest.
    skip: usize,
    /// Streams with an answer of ours: if one is reset later, it is not for how it was asked.
    answered: BTreeSet<u32>,
}

/// A stream that was reset, or the whole connection that was ended, because of what the peer sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reset {
    /// 0 is the connection.
    pub(crate) stream: u32,
    /// The error's name.
    pub(crate) error: &'static str,
}

// === impl Frames ===

impl Frames {
    /// Takes note of the next bytes, and tells of each refusal in them.
    pub(crate) fn see(&mut self, mut bytes: &[u8], mut refuse: impl FnMut(Reset)) {
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = bytes.get(skipped..).unwrap_or_default();
            if bytes.is_empty() {
                return;
            }
            let taken = self.missing().min(bytes.len());
            let (head, rest) = bytes.split_at_checked(taken).unwrap_or((bytes, &[]));
            self.head.extend_from_slice(head);
            bytes = rest;
            if self.missing() == 0 {
                self.whole(&mut refuse);
            }
        }
    }

    /// How many more bytes of this frame are of interest.
    fn missing(&self) -> usize {
        let wanted = match self.head.as_slice() {
            [a, b, c, RST_STREAM | GOAWAY, ..] => {
                let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
                HEAD_BYTES + length.min(ERROR_BYTES)
            }
            _ => HEAD_BYTES,
        };
        wanted.saturating_sub(self.head.len())
    }

    fn whole(&mut self, refuse: &mut impl FnMut(Reset)) {
        let [a, b, c, kind, _, s, t, u, v, payload @ ..] = self.head.as_slice() else {
            return;
        };
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        let stream = u32::from_be_bytes([*s, *t, *u, *v]);
        let code = match (*kind, payload) {
            (RST_STREAM, [a, b, c, d]) if !self.answered.remove(&stream) => Some([*a, *b, *c, *d]),
            // First the last stream that was heard.
            (GOAWAY, [_, _, _, _, a, b, c, d]) => Some([*a, *b, *c, *d]),
            (HEADERS, _) => {
                self.answered.insert(stream);
                if self.answered.len() > ANSWERED_MAX {
                    self.answered.pop_first();
                }
                None
            }
            _ => None,
        };
        if let Some(error) = code.map(u32::from_be_bytes).and_then(blamed_on_peer) {
            refuse(Reset { stream, error });
        }
        self.skip = length.saturating_sub(payload.len());
        self.head.clear();
    }
}

/// The errors of RFC 9113 (7) that are about what the peer sent. The others end what was well begun.
fn blamed_on_peer(code: u32) -> Option<&'static str> {
    match code {
        1 => Some("PROTOCOL_ERROR"),
        3 => Some("FLOW_CONTROL_ERROR"),
        6 => Some("FRAME_SIZE_ERROR"),
        9 => Some("COMPRESSION_ERROR"),
        11 => Some("ENHANCE_YOUR_CALM"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, 0], &stream.to_be_bytes(), payload].concat()
    }

    #[test]
    fn refusals_are_seen_however_they_are_written() {
        const DATA: u8 = 0;
        let ends = |stream, code: u32| frame(RST_STREAM, stream, &code.to_be_bytes());
        let goaway = |code: u32| {
            frame(
                GOAWAY,
                0,
                &[&7_u32.to_be_bytes()[..], &code.to_be_bytes(), b"why"].concat(),
            )
        };
        let check = |frames: &[Vec<u8>], expected: &[(u32, &str)]| {
            let bytes = frames.concat();
            for size in [1, 2, 9, 10, 13, bytes.len()] {
                let (mut seen, mut cut) = (Vec::new(), Frames::default());
                for piece in bytes.chunks(size) {
                    cut.see(piece, |reset| seen.push((reset.stream, reset.error)));
                }
                assert_eq!(seen, expected, "in pieces of {size}");
            }
        };
        check(&[ends(1, 1)], &[(1, "PROTOCOL_ERROR")]);
        check(&[ends(1, 8), ends(3, 0), ends(5, 2), ends(7, 7)], &[]);
        check(
            &[frame(DATA, 1, &[3; 30]), ends(5, 1), frame(4, 0, &[]), goaway(9)],
            &[(5, "PROTOCOL_ERROR"), (0, "COMPRESSION_ERROR")],
        );
        // Answered before: how it was asked is not why it ends.
        check(
            &[frame(HEADERS, 3, &[0x88]), ends(3, 1), ends(1, 1)],
            &[(1, "PROTOCOL_ERROR")],
        );
        check(&[goaway(0), goaway(11)], &[(0, "ENHANCE_YOUR_CALM")]);
        // A frame that is too short for its kind holds no code.
        check(&[frame(RST_STREAM, 1, &[0, 0]), frame(GOAWAY, 0, &[1; 5])], &[]);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut frames = Frames::default();
        for stream in 0..100_000 {
            frames.see(&frame(HEADERS, stream * 2 + 1, &[]), |_| {});
        }
        assert_eq!(frames.answered.len(), ANSWERED_MAX);
    }
}
