//! Opening after a crash: cuts off what was never acknowledged, and finds what the next boot continues.

use std::io;
use std::path::{Path, PathBuf};

use crate::error::{RecorderError, io_error, private};
use crate::segment::{self, Before, Hash, Head, Header, Piece, Segment, SegmentName, Span};

/// What opening found and mended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Repair {
    /// Bytes of an unfinished last record, never acknowledged, that were cut off.
    pub torn_bytes: u64,
    /// Records the head file says were durable but that are gone or cannot be read. `verify_log` names them.
    pub missing: u64,
    /// The segment that was cut, or removed because it had no record yet.
    pub segment: Option<PathBuf>,
}

/// What the next boot continues.
pub(crate) struct Mended {
    pub(crate) before: Before,
    /// The place of the boot before; 0 for none.
    pub(crate) place: u64,
    pub(crate) repair: Repair,
}

/// What can be read of a segment.
struct Survey {
    /// How many records its boot had at its end.
    records: u64,
    span: Span,
    hash: Hash,
    /// Where a torn tail begins.
    torn: Option<usize>,
}

/// Cuts the torn tail and finds what the next boot continues. The caller holds the directory's lock.
pub(crate) fn mend(directory: &Path, name: &str) -> Result<Mended, RecorderError> {
    let io = |action| move |e: io::Error| io_error(directory, action, &e);
    let (mut segments, strangers) = segment::list(directory).map_err(io("list the segments"))?;
    let other = segment::other_format(directory, &segments, &strangers).map_err(io("read a segment"))?;
    if let Some((segment, found)) = other {
        return Err(RecorderError::OtherFormat {
            directory: directory.display().to_string(),
            segment,
            found,
        });
    }
    let head = Head::read(directory)
        .map_err(io("read the head file"))?
        .and_then(Result::ok);
    let mut repair = Repair::default();
    let (mut place, mut before) = (0, Before::genesis(name));
    while let Some(last) = segments.pop() {
        let segment = Segment::read(directory, last).map_err(io("read the last segment"))?;
        let path = directory.join(last.file_name());
        if segment.is_unborn(head.as_ref()) {
            std::fs::remove_file(&path).map_err(io("remove an unfinished segment"))?;
            repair.torn_bytes += segment.len() as u64;
            repair.segment = Some(path);
            continue;
        }
        if let Some(header) = &segment.header
            && header.recorder != name
        {
            return Err(RecorderError::OtherRecorder {
                directory: directory.display().to_string(),
                found: header.recorder.clone(),
                wanted: name.to_owned(),
            });
        }
        let survey = Survey::of(&segment, head.as_ref());
        let file = private().open(&path).map_err(io("open the last segment"))?;
        if let Some(at) = survey.torn {
            repair.torn_bytes += (segment.len() - at) as u64;
            repair.segment = Some(path);
            file.set_len(at as u64).map_err(io("cut an unfinished record"))?;
        }
        // What a killed process wrote is not on the disk yet, and is about to be built upon.
        file.sync_all().map_err(io("flush the last segment"))?;
        place = last.place;
        before = Before {
            boot: last.boot,
            first_seq: last.first_seq,
            records: survey.records,
            span: survey.span,
            hash: survey.hash,
        };
        break;
    }
    if let Some(head) = head {
        let last = SegmentName {
            place,
            boot: before.boot,
            first_seq: before.first_seq,
        };
        let same_boot = (head.place, head.boot) == (place, before.boot);
        let ahead = (head.place, head.records) > (place, before.records);
        // In the same place the two agree, unless what the log says there is damaged.
        if ahead || (head.segment(), head.records) == (last, before.records) {
            // Continue what was there, not what is left: so the hole stays visible for ever.
            let here = if same_boot { before.records } else { 0 };
            repair.missing = head.records.saturating_sub(here);
            place = head.place;
            before = Before {
                boot: head.boot,
                first_seq: head.segment_first_seq,
                records: head.records,
                span: if ahead { Span::UNKNOWN } else { before.span },
                hash: head.hash,
            };
        }
    }
    Ok(Mended { before, place, repair })
}

// === impl Survey ===

impl Survey {
    fn of(segment: &Segment, head: Option<&Head>) -> Self {
        let mut survey = Self {
            records: segment.name.first_seq,
            span: Span::EMPTY,
            hash: segment.header.as_ref().map_or([0; 32], Header::hash),
            torn: None,
        };
        for piece in segment.pieces() {
            match piece {
                Piece::Frame(frame) => {
                    // The record's own number, so that damage before it does not shift the count.
                    let common = frame.common();
                    let seq = common.map_or(survey.records, |common| common.seq);
                    survey.records = seq.saturating_add(1);
                    survey.hash = frame.hash;
                    match common {
                        Some(common) => survey.span.include(common.at),
                        None => survey.span = Span::UNKNOWN,
                    }
                }
                Piece::Bad { at, end, .. } if segment.is_torn(at, end, head) => survey.torn = Some(at),
                Piece::Bad { .. } => survey.span = Span::UNKNOWN,
            }
        }
        survey
    }
}
