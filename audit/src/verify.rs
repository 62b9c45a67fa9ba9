//! Checks a log directory: every frame, every checksum, every link of the chain, every sequence number.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use crate::id::{BootId, DecisionId};
use crate::kind::Kind;
use crate::segment::{self, FORMAT, Frame, Hash, Head, Header, Piece, Segment, SegmentName, Span, genesis};

/// One thing that is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The segment's file, or `head`.
    pub segment: String,
    /// The decision id of the record, or of the first of several.
    pub id: Option<String>,
    /// What is wrong with it.
    pub problem: String,
}

/// What a check of a log directory found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// Records that were read, of every kind.
    pub records: u64,
    /// How many there are of each kind that is known.
    pub kinds: BTreeMap<Kind, u64>,
    /// Records of a kind or version that this program does not know. Their chain was checked; what they say was not.
    pub unknown: u64,
    /// Segments that were read.
    pub segments: u64,
    /// Boots they are of.
    pub boots: u64,
    /// Everything that is wrong; empty when nothing is.
    pub findings: Vec<Finding>,
    /// Bytes of an unfinished last record: normal after a crash, and while somebody writes.
    pub torn_bytes: u64,
}

/// Checks everything in `directory`, also while its recorder writes. One change gives one finding: behind a changed
/// record the check goes on with the hash that is stored there.
///
/// # Errors
/// When the directory cannot be read, or holds no log.
pub fn verify_log(directory: &Path) -> io::Result<Report> {
    // The head first: what it says was durable is then surely in what is read after it.
    let head = Head::read(directory)?;
    let (segments, strangers) = segment::list(directory)?;
    if segments.is_empty() && strangers.is_empty() && head.is_none() {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            "no decision log in this directory",
        ));
    }
    let sound_head = head.and_then(Result::ok);
    let mut check = Check::default();
    for (index, name) in segments.iter().enumerate() {
        let last = index + 1 == segments.len();
        match Segment::read(directory, *name) {
            Ok(segment) => check.segment(&segment, last, sound_head.as_ref()),
            Err(e) => {
                check.at = name.file_name();
                check.find(None, format!("the segment cannot be read: {e}"));
                check.lose_track(*name);
            }
        }
    }
    match head {
        Some(Ok(head)) => check.head(&head),
        Some(Err(())) => check.find_in(
            "head",
            "the head file is changed or cut: the newest records may be missing",
        ),
        None => check.find_in(
            "head",
            "the head file is missing: the newest records may be missing too",
        ),
    }
    for stranger in strangers {
        let problem = match segment::other_format(directory, &[], std::slice::from_ref(&stranger)) {
            Ok(Some((_, found))) => in_format(found),
            Ok(None) | Err(_) => "the file is not named like a segment and was not read".to_owned(),
        };
        check.find_in(&stranger, &problem);
    }
    Ok(check.report)
}

fn in_format(found: u8) -> String {
    format!(
        "the segment is in format {found}, and this version reads format {FORMAT}: verify it with the version that wrote it"
    )
}

/// The check as far as it has come.
#[derive(Default)]
struct Check {
    report: Report,
    /// The file that is being read.
    at: String,
    recorder: Option<String>,
    /// The boot's place in the log; 0 before the first.
    place: u64,
    boot: BootId,
    /// All boots so far.
    boots: BTreeSet<BootId>,
    next_seq: u64,
    /// The links that the next one may continue; none when that is not known.
    links: Vec<Hash>,
    /// What the segment continues, as long as it has no record: the head may still name the record before it.
    before_empty: Option<Hash>,
    /// From when to when the records of the segment are; none when something is wrong with it.
    span: Option<Span>,
    /// Bytes that could not be read stand before the next record: the finding that tells of them.
    gap: Option<usize>,
}

// === impl Check ===

impl Check {
    fn segment(&mut self, segment: &Segment, last: bool, head: Option<&Head>) {
        if last && segment.is_unborn(head) {
            self.report.torn_bytes += segment.len() as u64;
            return;
        }
        self.at = segment.name.file_name();
        self.report.segments += 1;
        match &segment.header {
            Some(header) if header.name == segment.name => self.header(header),
            Some(header) => {
                self.find(
                    None,
                    format!("the file was renamed: its header says `{}`", header.name.file_name()),
                );
                self.lose_track(segment.name);
                self.next_seq = header.name.first_seq;
            }
            None => {
                let problem = match segment.other_format() {
                    Some(found) => in_format(found),
                    None => "its header is changed or cut".to_owned(),
                };
                self.find(None, problem);
                self.lose_track(segment.name);
            }
        }
        if segment.header.is_some() {
            self.span = Some(Span::EMPTY);
        }
        for piece in segment.pieces() {
            match piece {
                Piece::Frame(frame) => self.frame(&frame, segment.header.as_ref()),
                Piece::Bad { at, end, .. } if last && segment.is_torn(at, end, head) => {
                    self.report.torn_bytes += (end - at) as u64;
                }
                Piece::Bad { frame: Some(frame), .. } => {
                    self.find(
                        Some(self.next_seq),
                        "the record was changed: its checksum does not match".into(),
                    );
                    self.close_gap(self.next_seq);
                    // Either its payload was changed or its hash: the next record continues the one that was not.
                    self.links = self.links.iter().map(|link| frame.link(link)).collect();
                    self.links.push(frame.hash);
                    self.next_seq = self.next_seq.saturating_add(1);
                }
                Piece::Bad { at, end, frame: None } => {
                    if self.gap.is_none() {
                        let length = end - at;
                        let problem = format!("the record was changed or cut: {length} bytes at {at} cannot be read");
                        self.find(Some(self.next_seq), problem);
                        self.gap = Some(self.report.findings.len() - 1);
                    }
                    self.links.clear();
                }
            }
        }
    }

    /// A segment that cannot say what it continues.
    fn lose_track(&mut self, name: SegmentName) {
        if (name.place, name.boot) != (self.place, self.boot) {
            self.report.boots += 1;
            self.boots.insert(name.boot);
        }
        (self.place, self.boot, self.next_seq) = (name.place, name.boot, name.first_seq);
        self.links.clear();
        self.gap = None;
    }

    fn header(&mut self, header: &Header) {
        let before = self.report.findings.len();
        let span = self.span.take();
        let recorder = self.recorder.get_or_insert_with(|| header.recorder.clone()).clone();
        if recorder != header.recorder {
            self.find(
                None,
                format!("the segment is of another recorder, `{}`", header.recorder),
            );
        }
        let SegmentName { place, boot, first_seq } = header.name;
        let first = self.place == 0;
        if (place, boot) == (self.place, self.boot) {
            self.missing_before(first_seq);
        } else {
            self.boot(header);
            (self.place, self.boot, self.next_seq, self.gap) = (place, boot, 0, None);
            self.missing_before(first_seq);
        }
        if first {
            self.links = vec![genesis(&header.recorder)];
        }
        let follows = self.links.is_empty() || self.links.contains(&header.before.hash);
        if !follows && self.report.findings.len() == before {
            self.find(
                Some(first_seq),
                "the segment does not continue the record before it: one was changed".into(),
            );
        }
        self.next_seq = first_seq;
        self.gap = None;
        self.links = vec![header.hash()];
        self.before_empty = Some(header.before.hash);
        let told = header.before.span;
        if self.report.findings.len() == before && told != Span::UNKNOWN && span.is_some_and(|span| span != told) {
            self.find(
                None,
                "its header says wrongly from when to when the records of the segment before it are: it was changed"
                    .into(),
            );
            self.links.clear();
        }
    }

    /// The first segment of another boot that is here: whether that boot may follow the one before.
    fn boot(&mut self, header: &Header) {
        let SegmentName { place, boot, first_seq } = header.name;
        self.report.boots += 1;
        if !self.boots.insert(boot) {
            self.find(
                None,
                format!("boot `{boot}` is here twice: one is a copy, and its decision ids name two records each"),
            );
        } else if place == self.place {
            let problem = format!(
                "boots `{}` and `{boot}` both have place {place}: the log was continued from a copy, and here are both",
                self.boot
            );
            self.find(None, problem);
            self.links.clear();
        } else if place != self.place.saturating_add(1) {
            let missing = place.saturating_sub(self.place).saturating_sub(1);
            let last = header.before.boot;
            self.find(
                None,
                format!("before it {missing} boots are missing, the last of them `{last}`"),
            );
        } else if first_seq == 0 && header.before.boot != self.boot {
            let (told, found) = (header.before.boot, self.boot);
            let problem = if self.place == 0 {
                format!("it continues boot `{told}`, and nothing is before it")
            } else {
                format!(
                    "it continues boot `{told}`, and before it is boot `{found}`: one of the two is of another copy of the log"
                )
            };
            self.find(None, problem);
        } else if first_seq == 0 {
            // Only the first segment of a boot speaks of the boot before.
            self.missing_before(header.before.records);
        }
    }

    fn frame(&mut self, frame: &Frame<'_>, header: Option<&Header>) {
        self.report.records += 1;
        self.before_empty = None;
        let expected = self.next_seq;
        let Some(common) = frame.common() else {
            self.find(Some(expected), "what stands in its place is no record".into());
            self.links = vec![frame.hash];
            self.next_seq = expected.saturating_add(1);
            return;
        };
        let seq = common.seq;
        if let Some(span) = &mut self.span {
            span.include(common.at);
        }
        match header.and_then(|header| frame.entry(header)?.kind()) {
            Some(kind) => *self.report.kinds.entry(kind).or_default() += 1,
            None => self.report.unknown += 1,
        }
        if seq < expected {
            let problem = "the record is out of place: moved or repeated";
            // Where it should have been, its absence has been noticed already.
            let id = self.id(seq);
            match self
                .report
                .findings
                .iter_mut()
                .find(|finding| finding.id.as_deref() == Some(&id))
            {
                Some(finding) => finding.problem = problem.into(),
                None => self.find(Some(seq), problem.into()),
            }
            self.links.push(frame.hash);
            return;
        }
        let before = self.report.findings.len();
        self.missing_before(seq);
        let follows = self.links.is_empty() || self.links.iter().any(|link| frame.link(link) == frame.hash);
        if !follows && self.report.findings.len() == before {
            self.find(
                Some(seq),
                "the record was changed: its hash does not continue the one before it".into(),
            );
        }
        self.links = vec![frame.hash];
        self.next_seq = seq.saturating_add(1);
    }

    fn head(&mut self, head: &Head) {
        self.at = head.segment().file_name();
        if head.place > self.place {
            let missing = head.place.saturating_sub(self.place);
            self.find(
                None,
                format!(
                    "the {missing} newest boots are missing, the last of them `{}`",
                    head.boot
                ),
            );
        } else if head.place == self.place && head.boot != self.boot {
            self.find(
                None,
                format!(
                    "the head file says that boot `{}` is the newest, and here it is `{}`: one of the two is of a copy",
                    head.boot, self.boot
                ),
            );
        } else if head.boot == self.boot && head.records > self.next_seq {
            self.missing_before(head.records);
        } else if head.boot == self.boot
            && head.records == self.next_seq
            && !self.links.is_empty()
            && !self.links.contains(&head.hash)
            && self.before_empty != Some(head.hash)
        {
            self.find(
                head.records.checked_sub(1),
                "the newest record is not the one the head file names".into(),
            );
        }
    }

    /// `seq` is the next that is there: whatever lies between has been found missing.
    fn missing_before(&mut self, seq: u64) {
        let expected = self.next_seq;
        if self.close_gap(seq) || seq == expected {
            return;
        }
        let to = self.id(seq.saturating_sub(1));
        match seq.checked_sub(expected) {
            Some(1) => self.find(Some(expected), "the record is missing".into()),
            Some(count) => self.find(
                Some(expected),
                format!("{count} records are missing, the last of them {to}"),
            ),
            None => self.find(
                Some(seq),
                "the segment begins before the end of the one before it".into(),
            ),
        }
        self.next_seq = seq;
    }

    /// Completes the finding about unreadable bytes, if there is one, now that it is known what follows them.
    fn close_gap(&mut self, seq: u64) -> bool {
        let Some(index) = self.gap.take() else { return false };
        let last = self.id(seq.saturating_sub(1));
        if seq > self.next_seq.saturating_add(1)
            && let Some(finding) = self.report.findings.get_mut(index)
        {
            finding.problem = format!("{}; with it all records to {last}", finding.problem);
        }
        true
    }

    fn find(&mut self, seq: Option<u64>, problem: String) {
        self.span = None;
        let id = seq.map(|seq| self.id(seq));
        self.report.findings.push(Finding {
            segment: self.at.clone(),
            id,
            problem,
        });
    }

    fn find_in(&mut self, file: &str, problem: &str) {
        self.report.findings.push(Finding {
            segment: file.to_owned(),
            id: None,
            problem: problem.to_owned(),
        });
    }

    fn id(&self, seq: u64) -> String {
        let recorder = self.recorder.clone().unwrap_or_else(|| "?".into());
        DecisionId {
            recorder,
            boot: self.boot,
            seq,
        }
        .to_string()
    }
}

#[cfg(test)]
mod tests;
