//! The frames of HTTP/2 on a connection: ours as we write them, with the errors by which we refuse what the peer sent, and
//! the peer's before the library reads them.

use std::collections::BTreeSet;

use hoplite_host::clock;

use crate::http::fields::{self, Block};
use crate::http::frame::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, FrameHead, GOAWAY, HEAD_BYTES, HEADERS, PADDED, RST_STREAM, Role,
    WINDOW_UPDATE, WITH_PRIORITY,
};
use crate::http::half_close::Open;
use crate::http::hpack::Decoder;
use crate::http::reading::HEADER_BYTES_MAX;
use crate::http::useless::Budget;
use crate::http::windows::Meter;

/// As much of a payload as holds an error code.
const ERROR_BYTES: usize = 8;

/// The longest frame that we let a peer send, which is what RFC 9113 (4.2) begins with.
const FRAME_BYTES_MAX: usize = 16 << 10;

/// A header block before it is decompressed. Huffman's code makes few of them longer than what they say.
const BLOCK_BYTES_MAX: usize = 2 * HEADER_BYTES_MAX as usize;

const PROTOCOL_ERROR: u32 = 1;
const COMPRESSION_ERROR: u32 = 9;
const ENHANCE_YOUR_CALM: u32 = 11;

/// What a client sends first (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Streams that we remember to have answered: more than there may be at a time.
const ANSWERED_MAX: usize = 512;

/// How much of what was looked at goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Passed {
    /// So many bytes as they are, and then what was written instead of others.
    pub(crate) through: usize,
    /// The bytes behind so many are to be shown again, with more.
    pub(crate) used: usize,
}

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
    /// Takes note of the next bytes, and tells of each frame, with the error it names or the window it grants, and of each
    /// refusal in them.
    pub(crate) fn see(
        &mut self,
        mut bytes: &[u8],
        mut sent: impl FnMut(&FrameHead, Option<u32>),
        mut refuse: impl FnMut(Reset),
    ) {
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
                self.whole(&mut sent, &mut refuse);
            }
        }
    }

    /// How many more bytes of this frame are of interest.
    fn missing(&self) -> usize {
        let wanted = match self.head.as_slice() {
            [a, b, c, RST_STREAM | GOAWAY | WINDOW_UPDATE, ..] => {
                let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
                HEAD_BYTES + length.min(ERROR_BYTES)
            }
            _ => HEAD_BYTES,
        };
        wanted.saturating_sub(self.head.len())
    }

    /// Whether a frame of another's could stand here.
    pub(crate) fn at_boundary(&self) -> bool {
        self.skip == 0 && self.head.is_empty()
    }

    fn whole(&mut self, sent: &mut impl FnMut(&FrameHead, Option<u32>), refuse: &mut impl FnMut(Reset)) {
        let Some((frame, payload)) = FrameHead::parse(&self.head) else {
            return;
        };
        let FrameHead { kind, stream, .. } = frame;
        let code = match (kind, payload) {
            // In a GOAWAY it is behind the last stream that was heard.
            (RST_STREAM | WINDOW_UPDATE, [a, b, c, d]) | (GOAWAY, [_, _, _, _, a, b, c, d]) => {
                Some(u32::from_be_bytes([*a, *b, *c, *d]))
            }
            _ => None,
        };
        sent(&frame, code);
        let of_answered = kind == RST_STREAM && self.answered.remove(&stream);
        if kind == HEADERS {
            self.answered.insert(stream);
            if self.answered.len() > ANSWERED_MAX {
                self.answered.pop_first();
            }
        }
        if let Some(error) = code
            .filter(|_| kind != WINDOW_UPDATE && !of_answered)
            .and_then(blamed_on_peer)
        {
            refuse(Reset { stream, error });
        }
        self.skip = (frame.length as usize).saturating_sub(payload.len());
        self.head.clear();
    }
}

/// Cuts what a peer writes into frames. Header blocks are read and written anew for the library (`fields.rs`); the rest goes
/// on as it is, and is counted.
#[derive(Debug)]
pub(crate) struct PeerFrames {
    role: Role,
    /// What is left of the current frame, or of the preface.
    skip: usize,
    /// A header block without its end.
    block: Option<HeaderBlock>,
    decoder: Decoder,
    /// The stream that the peer has begun last.
    newest: u32,
    /// The library refuses what has come, and the connection with it: nothing is looked at any more.
    refused: bool,
    /// The error with which the connection has to end. Nothing goes on any more.
    end: Option<u32>,
}

/// What is counted of a peer's frames.
pub(crate) struct Counts<'c> {
    pub(crate) budget: &'c mut Budget,
    pub(crate) open: &'c mut Open,
    pub(crate) meter: &'c Meter,
}

#[derive(Debug)]
struct HeaderBlock {
    stream: u32,
    /// END_STREAM or nothing.
    end: u8,
    bytes: Vec<u8>,
}

// === impl PeerFrames ===

impl PeerFrames {
    pub(crate) fn new(role: Role) -> Self {
        Self {
            role,
            skip: match role {
                Role::Server => PREFACE.len(),
                Role::Client => 0,
            },
            block: None,
            decoder: Decoder::default(),
            newest: 0,
            refused: false,
            end: None,
        }
    }

    /// Whether the peer has said whole frames only. What ends in the middle of one has broken off.
    pub(crate) fn at_boundary(&self) -> bool {
        self.skip == 0 && self.block.is_none() && !self.refused && self.end.is_none()
    }

    /// The connection has to end, because of how much there is in it.
    pub(crate) fn calm(&mut self) {
        self.end.get_or_insert(ENHANCE_YOUR_CALM);
    }

    /// The GOAWAY with which the connection has to end, if it has to.
    pub(crate) fn goaway(&self) -> Option<Vec<u8>> {
        let error = self.end?;
        let last = match self.role {
            Role::Server => self.newest,
            Role::Client => 0,
        };
        let mut frame = Vec::new();
        let payload = [last.to_be_bytes(), error.to_be_bytes()].concat();
        FrameHead::write(GOAWAY, 0, 0, &payload, &mut frame);
        Some(frame)
    }

    /// Looks at the next bytes, of which some come again. What stands in their place is added to `instead`.
    pub(crate) fn pass(&mut self, bytes: &[u8], instead: &mut Vec<u8>, counts: Counts<'_>) -> Passed {
        let Counts { budget, open, meter } = counts;
        let (mut at, mut through) = (0, 0);
        let mut anew = false;
        loop {
            let rest = bytes.get(at..).unwrap_or_default();
            if rest.is_empty() {
                break;
            }
            let on = match self.next(rest, instead, Counts { budget, open, meter }) {
                Next::As(length) => length,
                Next::Anew(length) => {
                    anew = true;
                    at += length;
                    continue;
                }
                Next::Wait => break,
                Next::End => {
                    return Passed {
                        through,
                        used: bytes.len(),
                    };
                }
            };
            let on = on.min(rest.len());
            if anew {
                instead.extend_from_slice(rest.get(..on).unwrap_or(rest));
            } else {
                through += on;
            }
            at += on;
        }
        Passed { through, used: at }
    }

    /// What becomes of the next bytes.
    fn next(&mut self, rest: &[u8], instead: &mut Vec<u8>, counts: Counts<'_>) -> Next {
        let Counts { budget, open, meter } = counts;
        if self.end.is_some() {
            return Next::End;
        }
        if self.refused {
            return Next::As(rest.len());
        }
        if self.skip > 0 {
            let skipped = self.skip.min(rest.len());
            self.skip -= skipped;
            return Next::As(skipped);
        }
        let Some((head, payload)) = FrameHead::parse(rest) else {
            return Next::Wait;
        };
        let length = head.length as usize;
        let in_block = head.kind == CONTINUATION || head.kind == HEADERS;
        // Of these the library says what is wrong, and the connection ends.
        if length > FRAME_BYTES_MAX
            || (in_block && head.stream == 0)
            || (head.kind == CONTINUATION && self.block.is_none())
            || (head.kind == HEADERS && self.role == Role::Server && head.stream % 2 == 0)
        {
            self.refused = true;
            return Next::As(rest.len());
        }
        if let Some(block) = &self.block
            && (head.kind != CONTINUATION || head.stream != block.stream)
        {
            return self.end(PROTOCOL_ERROR);
        }
        if in_block {
            let Some(payload) = payload.get(..length) else {
                return Next::Wait;
            };
            budget.received(&head, clock::moment);
            if let Err(error) = self.add(&head, payload, instead, Counts { budget, open, meter }) {
                return self.end(error);
            }
            if budget.is_spent() {
                return self.end(ENHANCE_YOUR_CALM);
            }
            return Next::Anew(HEAD_BYTES + length);
        }
        budget.received(&head, clock::moment);
        open.received(&head);
        if head.kind == DATA {
            meter.received(head.length);
        }
        if self.role == Role::Client && head.ends_stream() {
            budget.answered();
        }
        if budget.is_spent() {
            return self.end(ENHANCE_YOUR_CALM);
        }
        let whole = HEAD_BYTES + length;
        let here = whole.min(rest.len());
        self.skip = whole - here;
        Next::As(here)
    }

    fn end(&mut self, error: u32) -> Next {
        self.end = Some(error);
        Next::End
    }

    /// HEADERS or CONTINUATION, whole.
    fn add(&mut self, head: &FrameHead, payload: &[u8], instead: &mut Vec<u8>, counts: Counts<'_>) -> Result<(), u32> {
        match &mut self.block {
            Some(block) => block.bytes.extend_from_slice(payload),
            None => {
                self.block = Some(HeaderBlock {
                    stream: head.stream,
                    end: head.flags & END_STREAM,
                    bytes: fragment(head.flags, payload).ok_or(PROTOCOL_ERROR)?.to_owned(),
                });
            }
        }
        match self.block.take_if(|_| head.flags & END_HEADERS != 0) {
            Some(block) => self.finish(&block, instead, counts),
            None => match &self.block {
                Some(block) if block.bytes.len() > BLOCK_BYTES_MAX => Err(ENHANCE_YOUR_CALM),
                _ => Ok(()),
            },
        }
    }

    fn finish(&mut self, block: &HeaderBlock, instead: &mut Vec<u8>, counts: Counts<'_>) -> Result<(), u32> {
        let Counts { budget, open, .. } = counts;
        let kind = match self.role {
            Role::Client => Block::Answer,
            Role::Server if block.stream > self.newest => Block::Head,
            Role::Server => Block::Trailers,
        };
        if kind == Block::Head {
            self.newest = block.stream;
            budget.opened(block.stream, clock::moment());
        }
        open.received_head(block.stream, block.end != 0);
        if kind == Block::Answer && block.end != 0 {
            budget.answered();
        }
        let anew = fields::rewrite(&mut self.decoder, &block.bytes, kind, HEADER_BYTES_MAX as usize)
            .map_err(|_| COMPRESSION_ERROR)?;
        let mut kind = HEADERS;
        let mut flags = block.end;
        let mut pieces = anew.chunks(FRAME_BYTES_MAX).peekable();
        if pieces.peek().is_none() {
            FrameHead::write(HEADERS, flags | END_HEADERS, block.stream, &[], instead);
        }
        while let Some(piece) = pieces.next() {
            let last = if pieces.peek().is_none() { END_HEADERS } else { 0 };
            FrameHead::write(kind, flags | last, block.stream, piece, instead);
            (kind, flags) = (CONTINUATION, 0);
        }
        Ok(())
    }
}

/// What becomes of bytes.
enum Next {
    /// So many go on as they are.
    As(usize),
    /// So many have become others.
    Anew(usize),
    /// They are the beginning of something.
    Wait,
    /// Nothing goes on any more.
    End,
}

/// The part of a header block in a HEADERS frame (RFC 9113, 6.2).
fn fragment(flags: u8, mut payload: &[u8]) -> Option<&[u8]> {
    let mut padding = 0;
    if flags & PADDED != 0 {
        let (length, rest) = payload.split_first()?;
        (padding, payload) = (usize::from(*length), rest);
    }
    if flags & WITH_PRIORITY != 0 {
        payload = payload.get(5..)?;
    }
    payload.get(..payload.len().checked_sub(padding)?)
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
                    cut.see(piece, |_, _| {}, |reset| seen.push((reset.stream, reset.error)));
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
            frames.see(&frame(HEADERS, stream * 2 + 1, &[]), |_, _| {}, |_| {});
        }
        assert_eq!(frames.answered.len(), ANSWERED_MAX);
    }

    /// What the library gets of a client's frames in pieces of this size, and the error with which it all ends.
    fn passed(bytes: &[u8], size: usize) -> (Vec<u8>, Option<u32>) {
        let mut frames = PeerFrames::new(Role::Server);
        let mut budget = Budget::new(100, clock::moment());
        let mut open = Open::new(Role::Server);
        let (mut out, mut held) = (Vec::new(), Vec::new());
        for piece in bytes.chunks(size) {
            held.extend_from_slice(piece);
            let mut instead = Vec::new();
            let Passed { through, used } = frames.pass(
                &held,
                &mut instead,
                Counts {
                    budget: &mut budget,
                    open: &mut open,
                    meter: &Meter::default(),
                },
            );
            out.extend_from_slice(&held[..through]);
            out.extend(instead);
            held.drain(..used);
        }
        (out, frames.end)
    }

    #[track_caller]
    fn check(sent: &[&[u8]], expected: &[&[u8]], end: Option<u32>) {
        let (sent, expected) = (
            [PREFACE, &sent.concat()].concat(),
            [PREFACE, &expected.concat()].concat(),
        );
        for size in [1, 2, 9, 10, 13, 1_000, sent.len()] {
            let (out, ended) = passed(&sent, size);
            assert_eq!(
                (out.escape_ascii().to_string(), ended),
                (expected.escape_ascii().to_string(), end),
                "in pieces of {size}"
            );
        }
    }

    fn headers(flags: u8, stream: u32, block: &[u8]) -> Vec<u8> {
        flagged(HEADERS, flags, stream, block)
    }

    fn flagged(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut frame = frame(kind, stream, payload);
        frame[4] = flags;
        frame
    }

    const GET: &[u8] = &[0x82, 0x87, 0x84, 0x01, 1, b'a'];

    #[test]
    fn rfc9113_6_2_blocks_are_written_anew_and_the_rest_passes() {
        let data = frame(DATA, 1, b"some data that is no header block");
        let settings = frame(4, 0, &[]);
        let whole = headers(END_HEADERS, 1, GET);
        check(
            &[&settings, &whole, &data, &settings],
            &[&settings, &whole, &data, &settings],
            None,
        );
        // Padding, priority and CONTINUATION say nothing.
        let padded = [&[3][..], &[0, 0, 0, 0, 9], &GET[..2], &[0; 3]].concat();
        let split = [
            headers(PADDED | WITH_PRIORITY | END_STREAM, 1, &padded),
            flagged(CONTINUATION, 0, 1, &[]),
            flagged(CONTINUATION, END_HEADERS, 1, &GET[2..]),
        ]
        .concat();
        check(
            &[&split, &data],
            &[&headers(END_HEADERS | END_STREAM, 1, GET), &data],
            None,
        );
        // The second time it is trailers.
        let malformed = headers(END_HEADERS | END_STREAM, 1, &[0x82, 0x82]);
        check(
            &[&whole, &headers(END_HEADERS | END_STREAM, 1, GET)],
            &[&whole, &malformed],
            None,
        );
        // What the library takes by an indexed field it does not get by one.
        let taught = headers(END_HEADERS, 1, b"\x82\x87\x84\x40\x01x\x01y");
        let plain = b"\x82\x87\x84\x00\x01x\x01y";
        check(
            &[&taught, &headers(END_HEADERS, 3, &[0x82, 0x87, 0x84, 0xbe])],
            &[&headers(END_HEADERS, 1, plain), &headers(END_HEADERS, 3, plain)],
            None,
        );
        // One that is longer than a frame.
        let mut long = GET.to_vec();
        (0..200).for_each(|_| crate::http::hpack::put_field(&mut long, b"x", &[b'a'; 100]));
        let (first, second) = long.split_at(FRAME_BYTES_MAX);
        let pieces = [headers(0, 1, first), flagged(CONTINUATION, END_HEADERS, 1, second)].concat();
        check(&[&pieces, &data], &[&pieces, &data], None);
    }

    #[test]
    fn rfc9113_4_3_and_6_10_what_no_stream_survives_ends_the_connection() {
        let open = headers(0, 1, GET);
        check(&[&open, &frame(DATA, 1, b"a")], &[], Some(PROTOCOL_ERROR));
        check(
            &[&open, &flagged(CONTINUATION, END_HEADERS, 3, &[])],
            &[],
            Some(PROTOCOL_ERROR),
        );
        check(&[&headers(PADDED | END_HEADERS, 1, &[9, 0])], &[], Some(PROTOCOL_ERROR));
        check(&[&headers(END_HEADERS, 1, &[0x80])], &[], Some(COMPRESSION_ERROR));
        let more: Vec<u8> = (0..20)
            .flat_map(|_| flagged(CONTINUATION, 0, 1, &[0; 10_000]))
            .collect();
        check(&[&open, &more], &[], Some(ENHANCE_YOUR_CALM));
        let short: Vec<u8> = (0..100).flat_map(|_| flagged(CONTINUATION, 0, 1, &[])).collect();
        check(&[&open, &short], &[], Some(ENHANCE_YOUR_CALM));
        // Of these the library says what is wrong, by their own bytes.
        for bad in [
            flagged(CONTINUATION, END_HEADERS, 1, GET),
            headers(END_HEADERS, 0, GET),
            headers(END_HEADERS, 2, GET),
            vec![1, 0, 0, DATA, 0, 0, 0, 0, 1, 7, 7],
        ] {
            check(&[&bad, &open], &[&bad, &open], None);
        }
    }
}
