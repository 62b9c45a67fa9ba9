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
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;
    use crate::segment::HEADER_BYTES;
    use crate::testing::{copy, files, open, read, write};
    use crate::{Class, Record};

    /// Two segments of boot 1 (records 0–2 and 3–4), one of boot 2 (0–1).
    fn log() -> (tempfile::TempDir, Vec<Record>) {
        let directory = tempfile::tempdir().unwrap();
        let written = write(directory.path(), &[5, 2]);
        let names = [
            "0000000001-0000000000000001-00000000000000000000.seg",
            "0000000001-0000000000000001-00000000000000000003.seg",
            SECOND_BOOT,
            "head",
        ];
        assert_eq!(files(directory.path()), names);
        (directory, written)
    }

    const FIRST: &str = "0000000001-0000000000000001-00000000000000000000.seg";
    const SECOND: &str = "0000000001-0000000000000001-00000000000000000003.seg";
    const SECOND_BOOT: &str = "0000000002-0000000000000002-00000000000000000000.seg";

    const NOWHERE: SegmentName = SegmentName {
        place: 0,
        boot: BootId::from_bits(0),
        first_seq: 0,
    };

    /// `ledger-2-1` as it is in full.
    fn full(id: &str) -> String {
        match id.split('-').collect::<Vec<_>>()[..] {
            [recorder, boot, seq] => format!("{recorder}-{boot:0>16}-{seq}"),
            _ => id.to_owned(),
        }
    }

    fn found(directory: &Path) -> Vec<String> {
        let findings = verify_log(directory).unwrap().findings.into_iter();
        findings
            .map(|finding| format!("{} {}", finding.segment, finding.id.unwrap_or_default()))
            .collect()
    }

    /// Header and frames of a segment, each as its bytes.
    fn parts(path: &Path) -> Vec<Vec<u8>> {
        let bytes = fs::read(path).unwrap();
        let segment = Segment::from_bytes(NOWHERE, bytes.clone());
        let mut parts = vec![bytes[..HEADER_BYTES].to_vec()];
        let mut at = HEADER_BYTES;
        for piece in segment.pieces() {
            parts.push(bytes[at..piece.end()].to_vec());
            at = piece.end();
        }
        parts
    }

    fn edit(path: &Path, change: impl FnOnce(&mut Vec<Vec<u8>>)) {
        let mut parts = parts(path);
        change(&mut parts);
        fs::write(path, parts.concat()).unwrap();
    }

    /// Another payload in a frame, with a checksum that holds; the hash is recomputed from the one before, or kept.
    fn forge(parts: &mut [Vec<u8>], index: usize, recompute: bool) {
        let frame = &parts[index];
        let length = frame.len() - 40;
        let mut payload = frame[8..8 + length].to_vec();
        let at = payload.windows(8).position(|text| text == b"accounts").unwrap();
        payload[at] = b'A';
        let previous: Hash = parts[index - 1][parts[index - 1].len() - 32..].try_into().unwrap();
        let (mut forged, _) = Frame::encode(&previous, Kind::Decision, &payload);
        if !recompute {
            let hash: Hash = frame[frame.len() - 32..].try_into().unwrap();
            let crc = crc32c::crc32c(&[&forged[..4], &payload, &hash].concat());
            forged[4..8].copy_from_slice(&crc.to_be_bytes());
            let end = forged.len() - 32;
            forged[end..].copy_from_slice(&hash);
        }
        parts[index] = forged;
    }

    const RENAMED: &str = "0000000009-0000000000000009-00000000000000000000.seg";
    const THIRD_COPY: &str = "0000000003-0000000000000002-00000000000000000000.seg";
    const SECOND_PLACE: &str = "0000000002-0000000000000007-00000000000000000000.seg";

    fn resealed(mut bytes: Vec<u8>) -> Vec<u8> {
        let end = bytes.len() - 4;
        let crc = crc32c::crc32c(&bytes[..end]);
        bytes[end..].copy_from_slice(&crc.to_be_bytes());
        bytes
    }

    /// Another kind in a frame, with a checksum that holds.
    fn turn(frame: &mut [u8]) {
        frame[0] = Kind::Control.number();
        let crc = crc32c::crc32c(&[&frame[..4], &frame[8..]].concat());
        frame[4..8].copy_from_slice(&crc.to_be_bytes());
    }

    /// Another first time of the segment before, in a header whose checksum holds.
    fn misdate(header: &mut Vec<u8>) {
        header[8 + 64 + 6 * 8 + 7] ^= 1;
        *header = resealed(header.clone());
    }

    /// The segment under the name of another boot, with a checksum that holds.
    fn as_boot(path: &Path, place: u64, boot: u64) -> Vec<u8> {
        let mut parts = parts(path);
        parts[0][72..80].copy_from_slice(&place.to_be_bytes());
        parts[0][80..88].copy_from_slice(&boot.to_be_bytes());
        parts[0] = resealed(parts[0].clone());
        parts.concat()
    }

    #[test]
    fn an_intact_log_has_no_findings() {
        let (directory, written) = log();
        let report = verify_log(directory.path()).unwrap();
        assert_eq!(
            report,
            Report {
                records: 7,
                segments: 3,
                boots: 2,
                kinds: [(Kind::Decision, 7)].into(),
                unknown: 0,
                findings: Vec::new(),
                torn_bytes: 0
            }
        );
        assert_eq!(read(directory.path()), (written, 0));
    }

    #[test]
    fn a_directory_without_a_log_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(
            verify_log(directory.path()).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
        assert_eq!(
            verify_log(&directory.path().join("none")).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }

    /// What it is, how it is done, and the findings it must give: segment and decision id.
    type Harm = (&'static str, fn(&Path), &'static [(&'static str, &'static str)]);

    /// One harm, one finding, and it names the record.
    const HARMS: &[Harm] = &[
        (
            "payload changed",
            |d| edit(&d.join(FIRST), |parts| parts[2][30] ^= 1),
            &[(FIRST, "ledger-1-1")],
        ),
        (
            "hash changed",
            |d| edit(&d.join(FIRST), |parts| *parts[2].last_mut().unwrap() ^= 1),
            &[(FIRST, "ledger-1-1")],
        ),
        (
            "checksum changed",
            |d| edit(&d.join(FIRST), |parts| parts[2][5] ^= 1),
            &[(FIRST, "ledger-1-1")],
        ),
        (
            "length changed",
            |d| edit(&d.join(FIRST), |parts| parts[2][3] ^= 1),
            &[(FIRST, "ledger-1-1")],
        ),
        (
            "length huge",
            |d| edit(&d.join(FIRST), |parts| parts[1][1] = 0xff),
            &[(FIRST, "ledger-1-0")],
        ),
        (
            "kind changed",
            |d| edit(&d.join(FIRST), |parts| parts[2][0] ^= 3),
            &[(FIRST, "ledger-1-1")],
        ),
        (
            "kind changed to none",
            |d| edit(&d.join(FIRST), |parts| parts[2][0] = 0),
            &[(FIRST, "ledger-1-1")],
        ),
        (
            "kind changed, checksum too",
            |d| edit(&d.join(FIRST), |parts| turn(&mut parts[2])),
            &[(FIRST, "ledger-1-1")],
        ),
        (
            "times changed, checksum too",
            |d| edit(&d.join(SECOND), |parts| misdate(&mut parts[0])),
            &[(SECOND, "")],
        ),
        (
            "boots swapped",
            |d| {
                let (first, second) = (parts(&d.join(FIRST)).concat(), parts(&d.join(SECOND_BOOT)).concat());
                fs::write(d.join(FIRST), second).unwrap();
                fs::write(d.join(SECOND_BOOT), first).unwrap();
            },
            &[(FIRST, ""), (SECOND, "ledger-1-2"), (SECOND_BOOT, "")],
        ),
        (
            "boots swapped, headers too",
            |d| {
                fs::write(d.join("x"), as_boot(&d.join(SECOND_BOOT), 1, 1)).unwrap();
                fs::write(d.join(SECOND_BOOT), as_boot(&d.join(FIRST), 2, 2)).unwrap();
                fs::rename(d.join("x"), d.join(FIRST)).unwrap();
            },
            &[
                (FIRST, ""),
                (FIRST, "ledger-1-0"),
                (SECOND, "ledger-1-2"),
                (SECOND_BOOT, ""),
                (SECOND_BOOT, "ledger-2-0"),
            ],
        ),
        (
            "boot twice",
            |d| fs::write(d.join(THIRD_COPY), as_boot(&d.join(SECOND_BOOT), 3, 2)).unwrap(),
            &[(THIRD_COPY, ""), (THIRD_COPY, "ledger-2-0")],
        ),
        (
            "two boots in one place",
            |d| fs::write(d.join(SECOND_PLACE), as_boot(&d.join(SECOND_BOOT), 2, 7)).unwrap(),
            &[(SECOND_PLACE, ""), (SECOND_PLACE, "ledger-7-0"), (SECOND_BOOT, "")],
        ),
        (
            "newest changed",
            |d| edit(&d.join(SECOND_BOOT), |parts| parts[2][30] ^= 1),
            &[(SECOND_BOOT, "ledger-2-1")],
        ),
        (
            "last of a segment changed",
            |d| edit(&d.join(FIRST), |parts| parts[3][30] ^= 1),
            &[(FIRST, "ledger-1-2")],
        ),
        (
            "forged, hash kept",
            |d| edit(&d.join(FIRST), |parts| forge(parts, 2, false)),
            &[(FIRST, "ledger-1-1")],
        ),
        (
            "forged, hash too",
            |d| edit(&d.join(FIRST), |parts| forge(parts, 2, true)),
            &[(FIRST, "ledger-1-2")],
        ),
        (
            "last forged, hash too",
            |d| edit(&d.join(FIRST), |parts| forge(parts, 3, true)),
            &[(SECOND, "ledger-1-3")],
        ),
        (
            "newest forged, hash too",
            |d| edit(&d.join(SECOND_BOOT), |parts| forge(parts, 2, true)),
            &[(SECOND_BOOT, "ledger-2-1")],
        ),
        (
            "record removed",
            |d| edit(&d.join(FIRST), |parts| drop(parts.remove(2))),
            &[(FIRST, "ledger-1-1")],
        ),
        (
            "first removed",
            |d| edit(&d.join(FIRST), |parts| drop(parts.remove(1))),
            &[(FIRST, "ledger-1-0")],
        ),
        (
            "last of a segment removed",
            |d| edit(&d.join(FIRST), |parts| drop(parts.pop())),
            &[(SECOND, "ledger-1-2")],
        ),
        (
            "last of a boot removed",
            |d| edit(&d.join(SECOND), |parts| drop(parts.pop())),
            &[(SECOND_BOOT, "ledger-1-4")],
        ),
        (
            "newest removed",
            |d| edit(&d.join(SECOND_BOOT), |parts| drop(parts.pop())),
            &[(SECOND_BOOT, "ledger-2-1")],
        ),
        (
            "newest cut in half",
            |d| edit(&d.join(SECOND_BOOT), |parts| parts[2].truncate(50)),
            &[(SECOND_BOOT, "ledger-2-1")],
        ),
        (
            "older cut in half",
            |d| edit(&d.join(FIRST), |parts| parts[3].truncate(50)),
            &[(FIRST, "ledger-1-2")],
        ),
        (
            "two swapped",
            |d| edit(&d.join(FIRST), |parts| parts.swap(1, 2)),
            &[(FIRST, "ledger-1-0")],
        ),
        (
            "last two swapped",
            |d| edit(&d.join(FIRST), |parts| parts.swap(2, 3)),
            &[(FIRST, "ledger-1-1")],
        ),
        (
            "one repeated",
            |d| edit(&d.join(FIRST), |parts| parts.insert(3, parts[2].clone())),
            &[(FIRST, "ledger-1-1")],
        ),
        (
            "first segment removed",
            |d| fs::remove_file(d.join(FIRST)).unwrap(),
            &[(SECOND, "ledger-1-0")],
        ),
        (
            "last of a boot's segments removed",
            |d| fs::remove_file(d.join(SECOND)).unwrap(),
            &[(SECOND_BOOT, "ledger-1-3")],
        ),
        (
            "newest boot removed",
            |d| fs::remove_file(d.join(SECOND_BOOT)).unwrap(),
            &[(SECOND_BOOT, "")],
        ),
        (
            "first boot removed",
            |d| {
                [FIRST, SECOND]
                    .iter()
                    .for_each(|name| fs::remove_file(d.join(name)).unwrap())
            },
            &[(SECOND_BOOT, "")],
        ),
        (
            "header changed",
            |d| edit(&d.join(SECOND), |parts| parts[0][90] ^= 1),
            &[(SECOND, "")],
        ),
        (
            "segment renamed",
            |d| fs::rename(d.join(SECOND), d.join(RENAMED)).unwrap(),
            &[(SECOND_BOOT, "ledger-1-3"), (RENAMED, "")],
        ),
        (
            "head removed",
            |d| fs::remove_file(d.join("head")).unwrap(),
            &[("head", "")],
        ),
        (
            "head emptied",
            |d| fs::write(d.join("head"), "").unwrap(),
            &[("head", "")],
        ),
        (
            "head too long",
            |d| fs::write(d.join("head"), [0; 1000]).unwrap(),
            &[("head", "")],
        ),
        (
            "a stranger",
            |d| fs::write(d.join("1-0.seg"), "").unwrap(),
            &[("1-0.seg", "")],
        ),
    ];

    #[test]
    fn one_harm_gives_one_finding_that_names_it() {
        for (name, harm, expected) in HARMS {
            let (directory, _) = log();
            harm(directory.path());
            let expected: Vec<String> = expected
                .iter()
                .map(|(segment, id)| format!("{segment} {}", full(id)))
                .collect();
            assert_eq!(
                found(directory.path()),
                expected,
                "{name}: {:#?}",
                verify_log(directory.path())
            );
        }
    }

    /// Opening neither stops at damage nor hides it.
    #[test]
    fn harm_stays_visible_after_the_next_boot() {
        for (name, harm, _) in HARMS {
            let (directory, written) = log();
            harm(directory.path());
            // A head that is missing or damaged is written anew; the rest was whole in those cases.
            if name.starts_with("head") {
                continue;
            }
            let (recorder, _) = open(directory.path());
            let mut last = crate::testing::record(9);
            recorder.append(&mut last, Class::Full).unwrap();
            drop(recorder);
            assert!(!found(directory.path()).is_empty(), "{name}");
            let (records, _) = read(directory.path());
            assert_eq!(records.last(), Some(&last), "{name}");
            // The copied segment has two.
            let copied = [THIRD_COPY, SECOND_PLACE].map(|name| directory.path().join(name).exists());
            let copied = if copied.contains(&true) { 2 } else { 0 };
            assert!(records.len() < written.len() + copied + 3, "{name}");
        }
    }

    #[test]
    fn every_flipped_byte_is_found_and_none_makes_a_wrong_record() {
        let (directory, written) = log();
        for file in files(directory.path()) {
            let path = directory.path().join(file);
            let original = fs::read(&path).unwrap();
            for at in 0..original.len() {
                for bit in [0x01, 0x80] {
                    let mut bytes = original.clone();
                    bytes[at] ^= bit;
                    fs::write(&path, bytes).unwrap();
                    let context = format!("{} byte {at}", path.display());
                    assert!(!found(directory.path()).is_empty(), "{context}");
                    let (records, _) = read(directory.path());
                    assert!(records.iter().all(|record| written.contains(record)), "{context}");
                }
            }
            fs::write(&path, original).unwrap();
        }
        assert_eq!(found(directory.path()), Vec::<String>::new());
    }

    #[test]
    fn every_cut_is_found() {
        let (directory, written) = log();
        let last = directory.path().join(SECOND_BOOT);
        let original = fs::read(&last).unwrap();
        for length in 0..original.len() {
            fs::write(&last, &original[..length]).unwrap();
            assert!(!found(directory.path()).is_empty(), "at {length}");
            let (records, _) = read(directory.path());
            assert_eq!(records, written[..records.len()], "at {length}");
        }
    }

    /// Without a head that says otherwise, a cut end is what a crash leaves: cut off, counted, and written on.
    #[test]
    fn a_torn_tail_is_mended() {
        let (directory, written) = log();
        fs::remove_file(directory.path().join("head")).unwrap();
        let whole = fs::read(directory.path().join(SECOND_BOOT)).unwrap().len();
        let frames = parts(&directory.path().join(SECOND_BOOT));
        for length in 0..whole {
            let copy = copy(directory.path());
            let last = copy.path().join(SECOND_BOOT);
            let bytes = fs::read(&last).unwrap();
            fs::write(&last, &bytes[..length]).unwrap();
            let kept = match length.checked_sub(frames[0].len()) {
                None => 0,
                Some(rest) => usize::from(rest >= frames[1].len()),
            };
            let sound = if length < HEADER_BYTES {
                0
            } else {
                frames[..=kept].iter().map(Vec::len).sum()
            };
            let (recorder, repair) = open(copy.path());
            assert_eq!(
                (repair.torn_bytes, repair.missing),
                ((length - sound) as u64, 0),
                "at {length}"
            );
            let boots = if length < HEADER_BYTES { 2 } else { 3 };
            assert_eq!(recorder.boot().bits(), boots, "at {length}");
            let mut next = crate::testing::record(0);
            recorder.append(&mut next, Class::Full).unwrap();
            drop(recorder);
            assert_eq!(found(copy.path()), Vec::<String>::new(), "at {length}");
            let expected: Vec<Record> = written[..5 + kept].iter().cloned().chain([next]).collect();
            assert_eq!(read(copy.path()), (expected, 0), "at {length}");
        }
    }

    #[test]
    fn a_record_being_written_is_torn_not_wrong() {
        let (directory, _) = log();
        let last = directory.path().join(SECOND_BOOT);
        let mut bytes = fs::read(&last).unwrap();
        let half = parts(&last)[1][..60].to_vec();
        bytes.extend_from_slice(&half);
        fs::write(&last, bytes).unwrap();
        let report = verify_log(directory.path()).unwrap();
        assert_eq!((report.torn_bytes, report.findings.len(), report.records), (60, 0, 7));
        assert_eq!(read(directory.path()).1, 0);
    }

    /// Killed after a segment was begun and before its first record was flushed.
    #[test]
    fn a_crash_between_segments_is_no_finding() {
        let directory = tempfile::tempdir().unwrap();
        let head_path = Head::path(directory.path());
        let (recorder, _) = open(directory.path());
        for n in 0..3 {
            recorder.append(&mut crate::testing::record(n), Class::Full).unwrap();
        }
        recorder.wait_durable(2).unwrap();
        let head = fs::read(&head_path).unwrap();
        recorder.append(&mut crate::testing::record(3), Class::Full).unwrap();
        drop(recorder);
        let second = directory.path().join(SECOND);
        let bytes = fs::read(&second).unwrap();
        for length in [0, 50, HEADER_BYTES, HEADER_BYTES + 20, bytes.len()] {
            let copy = copy(directory.path());
            fs::write(copy.path().join(SECOND), &bytes[..length]).unwrap();
            fs::write(Head::path(copy.path()), &head).unwrap();
            assert_eq!(found(copy.path()), Vec::<String>::new(), "at {length}");
            let (recorder, repair) = open(copy.path());
            assert_eq!(repair.missing, 0, "at {length}");
            recorder.append(&mut crate::testing::record(9), Class::Full).unwrap();
            drop(recorder);
            assert_eq!(
                found(copy.path()),
                Vec::<String>::new(),
                "at {length}, after the next boot"
            );
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn arbitrary_bytes_are_no_panic(
            header in any::<bool>(),
            bytes in proptest::collection::vec(prop_oneof![Just(0u8), any::<u8>()], 0..2000),
        ) {
            let (directory, written) = log();
            let path = directory.path().join(SECOND_BOOT);
            let kept = if header { parts(&path)[0].clone() } else { Vec::new() };
            fs::write(&path, [kept, bytes].concat()).unwrap();
            prop_assert!(!found(directory.path()).is_empty());
            prop_assert_eq!(&read(directory.path()).0, &written[..5]);
            let (recorder, _) = open(directory.path());
            recorder.append(&mut crate::testing::record(0), Class::Full).unwrap();
            drop(recorder);
            prop_assert!(!found(directory.path()).is_empty());
        }

        #[test]
        fn no_mix_of_harms_makes_a_wrong_record(
            harms in proptest::collection::vec((0..4usize, any::<proptest::sample::Index>(), any::<u8>(), 0..3u8), 1..6),
        ) {
            let (directory, written) = log();
            let names = files(directory.path());
            for (file, at, byte, kind) in harms {
                let path = directory.path().join(&names[file]);
                let mut bytes = fs::read(&path).unwrap();
                if bytes.is_empty() {
                    continue;
                }
                let at = at.index(bytes.len());
                match kind {
                    0 => bytes[at] = byte,
                    1 => bytes.truncate(at),
                    _ => bytes.insert(at, byte),
                }
                fs::write(&path, bytes).unwrap();
            }
            let _ = verify_log(directory.path());
            let (records, _) = read(directory.path());
            prop_assert!(records.iter().all(|record| written.contains(record)));
        }
    }
}
