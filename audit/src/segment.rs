//! The bytes of a log directory: segments, the frames in them, and the head file. Format only; no policy about damage.
//!
//! ```text
//! <boot>-<first seq>.seg   header | frame | frame | …
//! header                   magic 8 | name 64 | boot 8 | first seq 8 | records before 8 | previous hash 32 | crc 4
//! frame                    length 4 | crc 4 | payload | hash 32
//! head                     magic 8 | boot 8 | records 8 | segment's first seq 8 | end 8 | hash 32 | crc 4
//! ```
//!
//! Numbers are big-endian. A frame's hash is SHA-256(hash before ‖ payload); a header is a link of the same chain: the
//! hash before its first frame is SHA-256(header). Every checksum (CRC-32C) covers all of its header, frame or head.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ring::digest::{Context, SHA256};

use crate::record::{Record, is_recorder_name};

/// Largest payload, in bytes: a record is names and short texts; more is a mistake.
pub(crate) const PAYLOAD_BYTES_MAX: usize = 64 << 10;

/// Largest segment a reader takes into memory, in bytes; writers stay far below it.
pub(crate) const SEGMENT_BYTES_MAX: u64 = 1 << 30;

pub(crate) const HEADER_BYTES: usize = 132;
pub(crate) const HEAD_BYTES: usize = 76;
const FRAME_BYTES: usize = 4 + 4 + 32;

/// A head that looks damaged is looked at so often, with this pause, before it is believed to be.
const HEAD_LOOKS: usize = 5;
const HEAD_PAUSE: Duration = Duration::from_millis(1);

const NAME_BYTES: usize = 64;

// The last byte is the format's version.
const SEGMENT_MAGIC: [u8; 8] = *b"hopseg\x00\x01";
const HEAD_MAGIC: [u8; 8] = *b"hophead\x01";

/// A link of the chain.
pub(crate) type Hash = [u8; 32];

/// Where a segment stands in its log; its file name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SegmentName {
    pub(crate) boot: u64,
    pub(crate) first_seq: u64,
}

/// What a segment says of itself and of what came before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) recorder: String,
    pub(crate) name: SegmentName,
    /// How many records the boot had that the segment before this one belongs to.
    pub(crate) records_before: u64,
    pub(crate) previous: Hash,
}

/// What was durable when it was last written: rewritten in place after every flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) boot: u64,
    /// How many records of that boot were durable.
    pub(crate) records: u64,
    /// The segment of the last of them …
    pub(crate) segment_first_seq: u64,
    /// … and where it ends there.
    pub(crate) end: u64,
    /// The last link.
    pub(crate) hash: Hash,
}

/// A segment's bytes.
pub(crate) struct Segment {
    pub(crate) name: SegmentName,
    /// `None` when it is torn or damaged.
    pub(crate) header: Option<Header>,
    bytes: Vec<u8>,
}

/// What stands at one place of a segment.
pub(crate) enum Piece<'a> {
    /// A frame whose checksum holds.
    Frame(Frame<'a>),
    /// Bytes that are no frame, up to the next one or the end.
    Bad {
        /// Where they begin.
        at: usize,
        /// Where they end.
        end: usize,
        /// Most likely one frame with changed bytes: what it would be.
        frame: Option<Frame<'a>>,
    },
}

/// One record as it lies on the disk.
#[derive(Clone, Copy)]
pub(crate) struct Frame<'a> {
    pub(crate) end: usize,
    pub(crate) payload: &'a [u8],
    pub(crate) hash: Hash,
}

// === impl SegmentName ===

impl SegmentName {
    pub(crate) fn file_name(self) -> String {
        format!("{:010}-{:020}.seg", self.boot, self.first_seq)
    }

    fn parse(file_name: &str) -> Option<Self> {
        let (boot, first_seq) = file_name.strip_suffix(".seg")?.split_once('-')?;
        let name = Self {
            boot: boot.parse().ok()?,
            first_seq: first_seq.parse().ok()?,
        };
        (name.file_name() == file_name).then_some(name)
    }
}

/// The segments of a directory in order, and the files that end like one but are not named so.
pub(crate) fn list(directory: &Path) -> io::Result<(Vec<SegmentName>, Vec<String>)> {
    let (mut segments, mut strangers) = (Vec::new(), Vec::new());
    for entry in directory.read_dir()? {
        let file_name = entry?.file_name().to_string_lossy().into_owned();
        match SegmentName::parse(&file_name) {
            Some(name) => segments.push(name),
            None if file_name.ends_with(".seg") => strangers.push(file_name),
            None => {}
        }
    }
    segments.sort_unstable();
    strangers.sort_unstable();
    Ok((segments, strangers))
}

// === impl Header ===

impl Header {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = SEGMENT_MAGIC.to_vec();
        bytes.extend_from_slice(self.recorder.as_bytes());
        bytes.resize(SEGMENT_MAGIC.len() + NAME_BYTES, 0);
        for number in [self.name.boot, self.name.first_seq, self.records_before] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        bytes.extend_from_slice(&self.previous);
        sealed(bytes)
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut fields = unsealed(bytes.get(..HEADER_BYTES)?)?;
        let magic: [u8; 8] = take(&mut fields)?;
        let recorder: [u8; NAME_BYTES] = take(&mut fields)?;
        let mut number = || take(&mut fields).map(u64::from_be_bytes);
        let name = SegmentName {
            boot: number()?,
            first_seq: number()?,
        };
        let records_before = number()?;
        let previous = take(&mut fields)?;
        let length = recorder.iter().position(|byte| *byte == 0).unwrap_or(NAME_BYTES);
        let recorder = str::from_utf8(recorder.get(..length)?).ok()?.to_owned();
        let sound = magic == SEGMENT_MAGIC && is_recorder_name(&recorder) && fields.is_empty();
        sound.then_some(Self {
            recorder,
            name,
            records_before,
            previous,
        })
    }

    /// The link that the first record of the segment continues.
    pub(crate) fn hash(&self) -> Hash {
        sha256(&[&self.encode()])
    }
}

/// What the first segment of a log continues.
pub(crate) fn genesis(recorder: &str) -> Hash {
    sha256(&[b"hoplite decision log\n", recorder.as_bytes()])
}

// === impl Head ===

impl Head {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = HEAD_MAGIC.to_vec();
        for number in [self.boot, self.records, self.segment_first_seq, self.end] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        bytes.extend_from_slice(&self.hash);
        sealed(bytes)
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut fields = unsealed(bytes)?;
        let magic: [u8; 8] = take(&mut fields)?;
        let mut number = || take(&mut fields).map(u64::from_be_bytes);
        let (boot, records, segment_first_seq, end) = (number()?, number()?, number()?, number()?);
        let hash = take(&mut fields)?;
        let sound = magic == HEAD_MAGIC && fields.is_empty();
        sound.then_some(Self {
            boot,
            records,
            segment_first_seq,
            end,
            hash,
        })
    }

    pub(crate) fn path(directory: &Path) -> PathBuf {
        directory.join("head")
    }

    /// `Ok(None)` when there is no such file, `Ok(Some(Err(())))` when it is damaged.
    pub(crate) fn read(directory: &Path) -> io::Result<Option<Result<Self, ()>>> {
        // A recorder at work writes over it in place, and a reader may meet the middle of that. What is damaged stays so.
        for _ in 0..HEAD_LOOKS {
            let head = Self::read_once(directory)?;
            if !matches!(head, Some(Err(()))) {
                return Ok(head);
            }
            std::thread::sleep(HEAD_PAUSE);
        }
        Self::read_once(directory)
    }

    fn read_once(directory: &Path) -> io::Result<Option<Result<Self, ()>>> {
        match read_bounded(&Self::path(directory), HEAD_BYTES as u64) {
            Ok(bytes) => Ok(Some(Self::decode(&bytes).ok_or(()))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) if e.kind() == io::ErrorKind::FileTooLarge => Ok(Some(Err(()))),
            Err(e) => Err(e),
        }
    }

    /// Whether what lies at `at` of a segment was once reported durable.
    pub(crate) fn covers(&self, segment: SegmentName, at: usize) -> bool {
        let here = SegmentName {
            boot: self.boot,
            first_seq: self.segment_first_seq,
        };
        segment < here || (segment == here && (at as u64) < self.end)
    }
}

// === impl Segment ===

impl Segment {
    pub(crate) fn read(directory: &Path, name: SegmentName) -> io::Result<Self> {
        let bytes = read_bounded(&directory.join(name.file_name()), SEGMENT_BYTES_MAX)?;
        Ok(Self::from_bytes(name, bytes))
    }

    pub(crate) fn from_bytes(name: SegmentName, bytes: Vec<u8>) -> Self {
        Self {
            name,
            header: Header::decode(&bytes),
            bytes,
        }
    }

    /// What follows `at` in the file, as a segment that begins there: for readers that go on where they were.
    pub(crate) fn read_on(directory: &Path, header: Header, at: u64) -> io::Result<Self> {
        let name = header.name;
        let mut file = File::open(directory.join(name.file_name()))?;
        file.seek(SeekFrom::Start(at))?;
        Ok(Self {
            name,
            header: Some(header),
            bytes: take_bounded(file, SEGMENT_BYTES_MAX)?,
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Everything behind the header, in order.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = Piece<'_>> {
        self.pieces_from(HEADER_BYTES)
    }

    pub(crate) fn pieces_from(&self, mut at: usize) -> impl Iterator<Item = Piece<'_>> {
        std::iter::from_fn(move || {
            let piece = self.piece(at)?;
            at = piece.end();
            Some(piece)
        })
    }

    /// What begins at `at`; `None` at the end.
    pub(crate) fn piece(&self, at: usize) -> Option<Piece<'_>> {
        if at >= self.len() {
            return None;
        }
        if let Some(frame) = self.sound_frame(at) {
            return Some(Piece::Frame(frame));
        }
        // Its length can be believed when a sound frame, or the end, follows where it says.
        if let Some((_, frame)) = self.claimed_frame(at)
            && (frame.end == self.len() || self.sound_frame(frame.end).is_some())
        {
            return Some(Piece::Bad {
                at,
                end: frame.end,
                frame: Some(frame),
            });
        }
        let end = (at + 1..self.len())
            .find(|next| self.sound_frame(*next).is_some())
            .unwrap_or(self.len());
        Some(Piece::Bad { at, end, frame: None })
    }

    /// The bytes that say they are a frame, and whether their checksum holds.
    fn claimed_frame(&self, at: usize) -> Option<(bool, Frame<'_>)> {
        let mut rest = self.bytes.get(at..)?;
        let length_bytes: [u8; 4] = take(&mut rest)?;
        let crc: [u8; 4] = take(&mut rest)?;
        let length = usize::try_from(u32::from_be_bytes(length_bytes)).ok()?;
        if !(1..=PAYLOAD_BYTES_MAX).contains(&length) {
            return None;
        }
        let (payload, mut rest) = rest.split_at_checked(length)?;
        let hash = take(&mut rest)?;
        let sound = frame_crc(length_bytes, payload, &hash) == crc;
        Some((
            sound,
            Frame {
                end: at + FRAME_BYTES + length,
                payload,
                hash,
            },
        ))
    }

    fn sound_frame(&self, at: usize) -> Option<Frame<'_>> {
        self.claimed_frame(at)
            .filter(|(sound, _)| *sound)
            .map(|(_, frame)| frame)
    }

    /// Whether a bad piece of the log's last segment is a record that a crash left unfinished: nothing sound follows
    /// it, and it was never reported durable.
    pub(crate) fn is_torn(&self, at: usize, end: usize, head: Option<&Head>) -> bool {
        end == self.len() && !head.is_some_and(|head| head.covers(self.name, at))
    }

    /// Whether a crash left the segment itself unfinished: no record can be in it.
    pub(crate) fn is_unborn(&self, head: Option<&Head>) -> bool {
        self.header.is_none() && self.len() <= HEADER_BYTES && !head.is_some_and(|head| head.covers(self.name, 0))
    }
}

impl Piece<'_> {
    pub(crate) fn end(&self) -> usize {
        match self {
            Self::Frame(frame) => frame.end,
            Self::Bad { end, .. } => *end,
        }
    }
}

// === impl Frame ===

impl Frame<'_> {
    pub(crate) fn record(&self, header: &Header) -> Option<Record> {
        Record::decode(self.payload, &header.recorder, header.name.boot)
    }

    /// The frame for a payload, and its hash.
    pub(crate) fn encode(previous: &Hash, payload: &[u8]) -> (Vec<u8>, Hash) {
        let hash = chain(previous, payload);
        // Callers keep payloads below PAYLOAD_BYTES_MAX; a longer one would be written unreadable, not wrong.
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
        let crc = frame_crc(length, payload, &hash);
        ([&length[..], &crc, payload, &hash].concat(), hash)
    }
}

/// The link after `previous`.
pub(crate) fn chain(previous: &Hash, payload: &[u8]) -> Hash {
    sha256(&[previous, payload])
}

fn frame_crc(length: [u8; 4], payload: &[u8], hash: &Hash) -> [u8; 4] {
    let crc = crc32c::crc32c_append(crc32c::crc32c(&length), payload);
    crc32c::crc32c_append(crc, hash).to_be_bytes()
}

fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let crc = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&crc.to_be_bytes());
    bytes
}

fn unsealed(bytes: &[u8]) -> Option<&[u8]> {
    let (fields, crc) = bytes.split_last_chunk::<4>()?;
    (crc32c::crc32c(fields).to_be_bytes() == *crc).then_some(fields)
}

fn sha256(parts: &[&[u8]]) -> Hash {
    let mut context = Context::new(&SHA256);
    for part in parts {
        context.update(part);
    }
    let mut hash = [0; 32];
    hash.copy_from_slice(context.finish().as_ref());
    hash
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*taken)
}

fn read_bounded(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    take_bounded(File::open(path)?, max)
}

fn take_bounded(file: File, max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // One byte more than allowed, so that too long is told from exactly as long.
    file.take(max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("more than {max} bytes"),
        ));
    }
    Ok(bytes)
}
