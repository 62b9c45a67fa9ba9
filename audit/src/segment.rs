//! The bytes of a log directory: segments, the frames in them, and the head file. Format only; no policy about damage.
//!
//! ```text
//! <place>-<boot>-<first seq>.seg   header | frame | frame | …
//! header   magic 8 | name 64 | place 8 | boot 8 | first seq 8 | before | crc 4
//! before   boot 8 | first seq 8 | records 8 | first time 8 | last time 8 | hash 32
//! frame    kind 1 | length 3 | crc 4 | payload | hash 32
//! head     magic 8 | place 8 | boot 8 | records 8 | segment's first seq 8 | end 8 | hash 32 | crc 4
//! ```
//!
//! Numbers are big-endian. A boot has a random name and a place: it follows the boot at the place before, in this log.
//! A frame's hash is SHA-256(hash before ‖ kind ‖ payload); a header is a link of the same chain: the hash before its
//! first frame is SHA-256(header). Every checksum (CRC-32C) covers all of its header, frame or head.
//!
//! What a segment holds is said by the header of the next one, which is written when it is complete: from when to when
//! its records are, so that a reader who wants others need not open it. The newest segment has none after it and is read.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use ring::digest::{Context, SHA256};

use crate::any_record::AnyRecord;
use crate::fields::to_micros;
use crate::id::{BootId, DecisionId, NAME_BYTES_MAX, is_recorder_name};
use crate::kind::{Common, Kind};

/// Largest payload, in bytes: a record is names and short texts; more is a mistake.
pub(crate) const PAYLOAD_BYTES_MAX: usize = 64 << 10;

/// Largest segment a reader takes into memory, in bytes; writers stay far below it.
pub(crate) const SEGMENT_BYTES_MAX: u64 = 1 << 30;

pub(crate) const HEADER_BYTES: usize = 172;
pub(crate) const HEAD_BYTES: usize = 84;
const FRAME_BYTES: usize = 1 + 3 + 4 + 32;

/// A head that looks damaged is looked at so often, with this pause, before it is believed to be.
const HEAD_LOOKS: usize = 5;
const HEAD_PAUSE: Duration = Duration::from_millis(1);

/// The format's version: the last byte of both magics.
pub(crate) const FORMAT: u8 = 2;
const SEGMENT_KIN: [u8; 7] = *b"hopseg\x00";
const SEGMENT_MAGIC: [u8; 8] = *b"hopseg\x00\x02";
const HEAD_MAGIC: [u8; 8] = *b"hophead\x02";

/// A link of the chain.
pub(crate) type Hash = [u8; 32];

/// Where a segment stands in its log; its file name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SegmentName {
    /// The place of its boot among the boots of this log, from 1.
    pub(crate) place: u64,
    pub(crate) boot: BootId,
    pub(crate) first_seq: u64,
}

/// From when to when records are, in microseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    first: i64,
    last: i64,
}

/// What a segment continues: the segment before it, whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Before {
    pub(crate) boot: BootId,
    pub(crate) first_seq: u64,
    /// How many records that boot had at its end.
    pub(crate) records: u64,
    /// From when to when its own records are.
    pub(crate) span: Span,
    /// The last link.
    pub(crate) hash: Hash,
}

/// What a segment says of itself and of what came before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) recorder: String,
    pub(crate) name: SegmentName,
    pub(crate) before: Before,
}

/// What was durable when it was last written: rewritten in place after every flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) place: u64,
    pub(crate) boot: BootId,
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
    pub(crate) kind: u8,
    pub(crate) payload: &'a [u8],
    pub(crate) hash: Hash,
}

// === impl SegmentName ===

impl SegmentName {
    pub(crate) fn file_name(self) -> String {
        format!("{:010}-{}-{:020}.seg", self.place, self.boot, self.first_seq)
    }

    fn parse(file_name: &str) -> Option<Self> {
        let mut parts = file_name.strip_suffix(".seg")?.split('-');
        let mut next = || parts.next();
        let name = Self {
            place: next()?.parse().ok()?,
            boot: BootId::from_bits(u64::from_str_radix(next()?, 16).ok()?),
            first_seq: next()?.parse().ok()?,
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

/// A file of this directory that is a segment in another format, and which: of an older version by its name, of a newer
/// one by the version it gives.
pub(crate) fn other_format(
    directory: &Path,
    segments: &[SegmentName],
    strangers: &[String],
) -> io::Result<Option<(String, u8)>> {
    let last = segments.last().map(|name| name.file_name());
    for file_name in strangers.iter().chain(&last) {
        let mut magic = Vec::new();
        File::open(directory.join(file_name))?
            .take(SEGMENT_MAGIC.len() as u64)
            .read_to_end(&mut magic)?;
        let Some(found) = format(&magic) else { continue };
        // One of our own names with an older version is a changed byte.
        if found > FORMAT || (found < FORMAT && strangers.contains(file_name)) {
            return Ok(Some((file_name.clone(), found)));
        }
    }
    Ok(None)
}

/// The version of the format, of bytes that begin like a segment.
fn format(bytes: &[u8]) -> Option<u8> {
    let (kin, version) = bytes.get(..SEGMENT_MAGIC.len())?.split_at_checked(SEGMENT_KIN.len())?;
    (kin == SEGMENT_KIN).then_some(*version.first()?)
}

// === impl Span ===

impl Span {
    /// No record at all.
    pub(crate) const EMPTY: Self = Self {
        first: i64::MAX,
        last: i64::MIN,
    };
    /// Not known: some records cannot be read.
    pub(crate) const UNKNOWN: Self = Self {
        first: i64::MIN,
        last: i64::MAX,
    };

    pub(crate) fn include(&mut self, at: i64) {
        self.first = self.first.min(at);
        self.last = self.last.max(at);
    }

    /// Whether none of its records can be at `since` or after and before `until`.
    pub(crate) fn misses(&self, since: Option<SystemTime>, until: Option<SystemTime>) -> bool {
        since.is_some_and(|since| self.last < to_micros(since))
            || until.is_some_and(|until| self.first >= to_micros(until))
    }
}

// === impl Before ===

impl Before {
    /// Nothing: for the first segment of a log.
    pub(crate) fn genesis(recorder: &str) -> Self {
        Self {
            boot: BootId::default(),
            first_seq: 0,
            records: 0,
            span: Span::EMPTY,
            hash: genesis(recorder),
        }
    }
}

// === impl Header ===

impl Header {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = SEGMENT_MAGIC.to_vec();
        bytes.extend_from_slice(self.recorder.as_bytes());
        bytes.resize(SEGMENT_MAGIC.len() + NAME_BYTES_MAX, 0);
        let (name, before) = (&self.name, &self.before);
        for number in [
            name.place,
            name.boot.bits(),
            name.first_seq,
            before.boot.bits(),
            before.first_seq,
            before.records,
        ] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        for micros in [before.span.first, before.span.last] {
            bytes.extend_from_slice(&micros.to_be_bytes());
        }
        bytes.extend_from_slice(&before.hash);
        sealed(bytes)
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut fields = unsealed(bytes.get(..HEADER_BYTES)?)?;
        let magic: [u8; 8] = take(&mut fields)?;
        let recorder: [u8; NAME_BYTES_MAX] = take(&mut fields)?;
        let mut number = || take(&mut fields).map(u64::from_be_bytes);
        let name = SegmentName {
            place: number()?,
            boot: BootId::from_bits(number()?),
            first_seq: number()?,
        };
        let (boot, first_seq, records) = (BootId::from_bits(number()?), number()?, number()?);
        let span = Span {
            first: i64::from_be_bytes(take(&mut fields)?),
            last: i64::from_be_bytes(take(&mut fields)?),
        };
        let before = Before {
            boot,
            first_seq,
            records,
            span,
            hash: take(&mut fields)?,
        };
        let length = recorder.iter().position(|byte| *byte == 0).unwrap_or(NAME_BYTES_MAX);
        let recorder = str::from_utf8(recorder.get(..length)?).ok()?.to_owned();
        let sound = magic == SEGMENT_MAGIC && is_recorder_name(&recorder) && fields.is_empty();
        sound.then_some(Self { recorder, name, before })
    }

    /// Only the header of a segment; `None` when it is torn or damaged.
    pub(crate) fn read(directory: &Path, name: SegmentName) -> io::Result<Option<Self>> {
        let mut bytes = Vec::new();
        File::open(directory.join(name.file_name()))?
            .take(HEADER_BYTES as u64)
            .read_to_end(&mut bytes)?;
        Ok(Self::decode(&bytes).filter(|header| header.name == name))
    }

    /// What stands in the place of one that cannot be read.
    pub(crate) fn unreadable(recorder: String, name: SegmentName) -> Self {
        Self {
            recorder,
            name,
            before: Before {
                boot: name.boot,
                first_seq: name.first_seq,
                records: 0,
                span: Span::UNKNOWN,
                hash: [0; 32],
            },
        }
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
        for number in [
            self.place,
            self.boot.bits(),
            self.records,
            self.segment_first_seq,
            self.end,
        ] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        bytes.extend_from_slice(&self.hash);
        sealed(bytes)
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut fields = unsealed(bytes)?;
        let magic: [u8; 8] = take(&mut fields)?;
        let mut number = || take(&mut fields).map(u64::from_be_bytes);
        let (place, boot) = (number()?, BootId::from_bits(number()?));
        let (records, segment_first_seq, end) = (number()?, number()?, number()?);
        let hash = take(&mut fields)?;
        let sound = magic == HEAD_MAGIC && fields.is_empty();
        sound.then_some(Self {
            place,
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

    /// The segment of the last record.
    pub(crate) fn segment(&self) -> SegmentName {
        SegmentName {
            place: self.place,
            boot: self.boot,
            first_seq: self.segment_first_seq,
        }
    }

    /// Whether what lies at `at` of a segment was once reported durable.
    pub(crate) fn covers(&self, segment: SegmentName, at: usize) -> bool {
        let here = self.segment();
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

    /// The version of its format, where that is not ours.
    pub(crate) fn other_format(&self) -> Option<u8> {
        format(&self.bytes).filter(|found| *found != FORMAT)
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
        let lead: [u8; 4] = take(&mut rest)?;
        let crc: [u8; 4] = take(&mut rest)?;
        let [kind, length @ ..] = lead;
        let [high, middle, low] = length;
        let length = usize::try_from(u32::from_be_bytes([0, high, middle, low])).ok()?;
        if kind == 0 {
            return None;
        }
        if !(1..=PAYLOAD_BYTES_MAX).contains(&length) {
            return None;
        }
        let (payload, mut rest) = rest.split_at_checked(length)?;
        let hash = take(&mut rest)?;
        let sound = frame_crc(lead, payload, &hash) == crc;
        Some((
            sound,
            Frame {
                end: at + FRAME_BYTES + length,
                kind,
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
    /// `None` when it holds no record of any kind.
    pub(crate) fn entry(&self, header: &Header) -> Option<AnyRecord> {
        let id = DecisionId {
            recorder: header.recorder.clone(),
            boot: header.name.boot,
            seq: 0,
        };
        AnyRecord::decode(self.kind, self.payload, id)
    }

    /// Sequence number and time, of whatever kind.
    pub(crate) fn common(&self) -> Option<Common> {
        Common::decode(self.payload)
    }

    /// The link that it is after `previous`.
    pub(crate) fn link(&self, previous: &Hash) -> Hash {
        link(previous, self.kind, self.payload)
    }

    /// The frame for a payload, and its hash.
    pub(crate) fn encode(previous: &Hash, kind: Kind, payload: &[u8]) -> (Vec<u8>, Hash) {
        Self::encode_numbered(previous, kind.number(), payload)
    }

    /// As [`Frame::encode`], for any kind there may ever be.
    pub(crate) fn encode_numbered(previous: &Hash, kind: u8, payload: &[u8]) -> (Vec<u8>, Hash) {
        let hash = link(previous, kind, payload);
        // Callers keep payloads below PAYLOAD_BYTES_MAX; a longer one would be written unreadable, not wrong.
        let [_, high, middle, low] = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
        let lead = [kind, high, middle, low];
        let crc = frame_crc(lead, payload, &hash);
        ([&lead[..], &crc, payload, &hash].concat(), hash)
    }
}

fn link(previous: &Hash, kind: u8, payload: &[u8]) -> Hash {
    sha256(&[previous, &[kind], payload])
}

fn frame_crc(lead: [u8; 4], payload: &[u8], hash: &Hash) -> [u8; 4] {
    let crc = crc32c::crc32c_append(crc32c::crc32c(&lead), payload);
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
