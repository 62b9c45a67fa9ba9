//! Lets every gRPC client in that calls a Unix socket: in HTTP/2 it names the socket in `:authority`, each in its own way,
//! and our HTTP/2 library resets what is no authority of a URI before any service sees it.
//!
//! gRPC's C core (Python, C++, Ruby) says `run%2Fagent.sock`, grpc-java `/run/agent.sock`, both perhaps in Huffman's code.
//! On a Unix socket the authority means nothing: who calls is known from the socket. So one that would be refused becomes
//! `localhost`.
//!
//! Each header block is decoded whole and written anew, in literals only ([`crate::hpack`]). So it does not matter how the
//! client wrote the authority, nor that the new one has another length: the library's dynamic table stays empty, and
//! cannot differ from the client's. All other frames pass as they are.

use crate::hpack::{BlockFault, Decoder, Field};

const AUTHORITY: &[u8] = b":authority";

/// What an authority becomes that HTTP cannot read.
const LOCALHOST: &[u8] = b"localhost";

/// What an HTTP/2 connection begins with (RFC 9113, 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const FRAME_HEADER_BYTES: usize = 9;
const PRIORITY_BYTES: usize = 5;

/// The largest frame that a client may send as long as nothing else was agreed (RFC 9113, 6.5.2), and the largest that we
/// write.
const FRAME_BYTES_MAX: usize = 16_384;

/// A header block as it came, and its fields as they are counted. Our servers answer 431 to a quarter of it.
const BLOCK_BYTES_MAX: usize = 64 << 10;

/// Frames of one header block: small ones cost work and say nothing.
const BLOCK_FRAMES_MAX: usize = 64;

/// A block that nobody can decode: it has index 0 (RFC 7541, 6.1). The library ends the connection as it should.
const REFUSED_BLOCK: &[u8] = &[0x80];

const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// Follows what one client sends, from the first byte of the connection on.
#[derive(Debug)]
pub struct HttpAuthorityMender {
    part: Part,
    /// What there is of the part so far, where it is needed whole.
    gathered: Vec<u8>,
    /// A header block of which more frames must follow.
    block: Option<Block>,
    decoder: Decoder,
}

/// Where in the connection the next byte is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// This much of it has been seen.
    Preface(usize),
    FrameHeader,
    /// The payload of a frame of a header block.
    Fields(FrameHeader),
    /// The payload of another frame, of which this much is to come.
    Passing(usize),
    /// No HTTP/2, or an error that the library sees for itself: all the rest passes as it is.
    Foreign,
    /// A block was refused: the rest of the connection is nobody's.
    Refused,
}

/// RFC 9113, 4.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FrameHeader {
    length: usize,
    kind: u8,
    flags: u8,
    stream: [u8; 4],
}

/// A header block and what its HEADERS frame said besides.
#[derive(Debug)]
struct Block {
    flags: u8,
    stream: [u8; 4],
    priority: Vec<u8>,
    fields: Vec<u8>,
    frames: usize,
}

// === impl HttpAuthorityMender ===

impl Default for HttpAuthorityMender {
    fn default() -> Self {
        Self {
            part: Part::Preface(0),
            gathered: Vec::new(),
            block: None,
            decoder: Decoder::new(),
        }
    }
}

impl HttpAuthorityMender {
    /// Whether the connection speaks something else, so that bytes need not come here any more.
    pub fn is_foreign(&self) -> bool {
        self.part == Part::Foreign
    }

    /// Takes the next bytes as they came, and appends what is to be read in their place.
    pub fn take(&mut self, mut bytes: &[u8], mended: &mut Vec<u8>) {
        while !bytes.is_empty() {
            match self.part {
                Part::Preface(seen) => {
                    let expected = PREFACE.get(seen..).unwrap_or_default();
                    let same = bytes.iter().zip(expected).take_while(|(a, b)| a == b).count();
                    self.part = if same == expected.len() {
                        Part::FrameHeader
                    } else if same == bytes.len() {
                        Part::Preface(seen + same)
                    } else {
                        Part::Foreign
                    };
                    pass(&mut bytes, same, mended);
                }
                Part::FrameHeader => {
                    if self.gather(&mut bytes, FRAME_HEADER_BYTES) {
                        let header = std::mem::take(&mut self.gathered);
                        self.begin_frame(&header, mended);
                    }
                }
                Part::Fields(header) => {
                    if self.gather(&mut bytes, header.length) {
                        self.end_fields(header, mended);
                    }
                }
                Part::Passing(left) => {
                    let passed = pass(&mut bytes, left, mended);
                    self.part = match left - passed {
                        0 => Part::FrameHeader,
                        left => Part::Passing(left),
                    };
                }
                Part::Foreign => {
                    let all = bytes.len();
                    pass(&mut bytes, all, mended);
                }
                Part::Refused => return,
            }
        }
    }

    /// Whether all of a part is there now.
    fn gather(&mut self, bytes: &mut &[u8], whole: usize) -> bool {
        let missing = whole.saturating_sub(self.gathered.len());
        pass(bytes, missing, &mut self.gathered);
        self.gathered.len() >= whole
    }

    fn begin_frame(&mut self, header: &[u8], mended: &mut Vec<u8>) {
        let Some(frame) = FrameHeader::parse(header) else {
            return; // it has nine bytes
        };
        let continues =
            matches!(&self.block, Some(block) if frame.kind == CONTINUATION && block.stream == frame.stream);
        if let Some(block) = self.block.take_if(|_| !continues) {
            // The library sees for itself that something else follows.
            frame_of(HEADERS, 0, block.stream, &[], mended);
            mended.extend_from_slice(header);
            self.part = Part::Foreign;
            return;
        }
        self.part = if frame.kind != HEADERS && !continues {
            mended.extend_from_slice(header);
            match frame.length {
                0 => Part::FrameHeader,
                left => Part::Passing(left),
            }
        } else if frame.length > FRAME_BYTES_MAX {
            mended.extend_from_slice(header); // the library sees that for itself, too
            Part::Foreign
        } else {
            Part::Fields(frame)
        };
        if frame.length == 0 && self.part == Part::Fields(frame) {
            self.end_fields(frame, mended);
        }
    }

    /// A frame of a header block is there, whole.
    fn end_fields(&mut self, frame: FrameHeader, mended: &mut Vec<u8>) {
        let payload = std::mem::take(&mut self.gathered);
        self.part = Part::FrameHeader;
        let block = match self.block.take() {
            Some(mut block) => {
                block.fields.extend_from_slice(&payload);
                block.frames += 1;
                block
            }
            None => {
                let Some(block) = Block::begin(frame, &payload) else {
                    // Padding or priority do not fit in it: the library sees that for itself.
                    frame_of(HEADERS, frame.flags, frame.stream, &payload, mended);
                    self.part = Part::Foreign;
                    return;
                };
                block
            }
        };
        if block.fields.len() > BLOCK_BYTES_MAX || block.frames > BLOCK_FRAMES_MAX {
            self.refuse(&block, mended);
        } else if frame.flags & END_HEADERS == 0 {
            self.block = Some(block);
        } else {
            match self.mend(&block.fields) {
                Ok(fields) => block.write(&fields, mended),
                Err(fault) => {
                    tracing::debug!(%fault, "a header block cannot be decoded");
                    self.refuse(&block, mended);
                }
            }
        }
    }

    fn mend(&mut self, block: &[u8]) -> Result<Vec<u8>, BlockFault> {
        let fields = self.decoder.decode(block, BLOCK_BYTES_MAX)?;
        let mut written = Vec::with_capacity(block.len());
        for mut field in fields {
            if *field.name == *AUTHORITY && is_refused(&field) {
                field.value = LOCALHOST.into();
            }
            field.write(&mut written);
        }
        Ok(written)
    }

    fn refuse(&mut self, block: &Block, mended: &mut Vec<u8>) {
        block.write(REFUSED_BLOCK, mended);
        self.part = Part::Refused;
    }
}

/// As the library judges it, which reads it into the same type.
fn is_refused(field: &Field) -> bool {
    http::uri::Authority::try_from(&*field.value).is_err()
}

/// Moves up to `count` bytes, and says how many.
fn pass(bytes: &mut &[u8], count: usize, to: &mut Vec<u8>) -> usize {
    let (passed, rest) = bytes.split_at_checked(count).unwrap_or((bytes, &[]));
    to.extend_from_slice(passed);
    *bytes = rest;
    passed.len()
}

/// Writes one frame; the payload is no longer than [`FRAME_BYTES_MAX`].
fn frame_of(kind: u8, flags: u8, stream: [u8; 4], payload: &[u8], mended: &mut Vec<u8>) {
    let [_, length @ ..] = u32::try_from(payload.len()).unwrap_or_default().to_be_bytes();
    mended.extend_from_slice(&length);
    mended.extend_from_slice(&[kind, flags]);
    mended.extend_from_slice(&stream);
    mended.extend_from_slice(payload);
}

// === impl FrameHeader ===

impl FrameHeader {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let [a, b, c, kind, flags, stream @ ..] = *<&[u8; FRAME_HEADER_BYTES]>::try_from(bytes).ok()?;
        Some(Self {
            length: usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c),
            kind,
            flags,
            stream,
        })
    }
}

// === impl Block ===

impl Block {
    /// Out of a HEADERS frame, without its padding (RFC 9113, 6.2).
    fn begin(frame: FrameHeader, payload: &[u8]) -> Option<Self> {
        let mut rest = payload;
        if frame.flags & PADDED != 0 {
            let (padding, padded) = rest.split_first()?;
            rest = padded.get(..padded.len().checked_sub((*padding).into())?)?;
        }
        let priority = if frame.flags & PRIORITY != 0 { PRIORITY_BYTES } else { 0 };
        let (priority, fields) = rest.split_at_checked(priority)?;
        Some(Self {
            flags: frame.flags & !(PADDED | END_HEADERS),
            stream: frame.stream,
            priority: priority.to_vec(),
            fields: fields.to_vec(),
            frames: 1,
        })
    }

    /// Writes the frames of a block with these fields in place of its own.
    fn write(&self, fields: &[u8], mended: &mut Vec<u8>) {
        let first = fields.len().min(FRAME_BYTES_MAX - self.priority.len());
        let (first, rest) = fields.split_at_checked(first).unwrap_or_default();
        let first = [&self.priority, first].concat();
        let mut rest = rest.chunks(FRAME_BYTES_MAX).peekable();
        let end = |is_last: bool| if is_last { END_HEADERS } else { 0 };
        frame_of(
            HEADERS,
            self.flags | end(rest.peek().is_none()),
            self.stream,
            &first,
            mended,
        );
        while let Some(more) = rest.next() {
            frame_of(CONTINUATION, end(rest.peek().is_none()), self.stream, more, mended);
        }
    }
}

#[cfg(test)]
mod tests;
