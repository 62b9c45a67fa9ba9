//! Reading records back: filters, whole trees of logs, and following a live one.

use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::any_record::AnyRecord;
use crate::id::DecisionId;
use crate::kind::Kind;
use crate::record::{Outcome, Record};
use crate::segment::{self, FORMAT, HEADER_BYTES, Head, Header, Piece, Segment, SegmentName};

/// How deep below a directory logs are looked for: `<mesh>/<node>/<recorder>` and some room.
const DEPTH_MAX: usize = 8;

/// What to look for; everything given must match.
#[derive(Debug, Clone, Default)]
pub struct Query {
    /// Not before this moment.
    pub since: Option<SystemTime>,
    /// Before this moment.
    pub until: Option<SystemTime>,
    /// A SPIFFE ID, or a prefix of some that ends in `/`.
    pub principal: Option<String>,
    /// The service, exactly.
    pub service: Option<String>,
    /// The route, exactly.
    pub route: Option<String>,
    /// One of these; none given means any.
    pub outcome: Vec<Outcome>,
    /// The id of a policy that decided, or that failed to.
    pub policy: Option<String>,
    /// This one record.
    pub id: Option<DecisionId>,
    /// Only those that a shadow policy would have answered otherwise.
    pub shadow_differs: bool,
    /// One of these kinds; none given means any. [`read_log`] gives decisions whatever stands here.
    pub kinds: Vec<Kind>,
}

/// Why a log cannot be read, or not all of it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// The operating system refused.
    #[error("cannot read `{path}`: {problem}; check that it exists and who may read it")]
    Io {
        /// The file or directory.
        path: String,
        /// What the system said.
        problem: String,
    },
    /// Records are changed or missing.
    #[error("segment `{segment}` is damaged at {place}: run `hoplite audit verify` for all findings")]
    Damaged {
        /// The segment's file.
        segment: String,
        /// The decision id of the first record that cannot be read, or the header.
        place: String,
    },
    /// A segment is in a format that this version does not read.
    #[error(
        "segment `{segment}` is in format {found}, and this version reads format {FORMAT}: read it with the version that wrote it"
    )]
    OtherFormat {
        /// The segment's file.
        segment: String,
        /// Its format.
        found: u8,
    },
}

/// Follows a log directory: each call gives what was written since the last one, through rotations and restarts.
pub struct Tail {
    directory: PathBuf,
    /// The segment that is being read, once it has a header, and how far.
    current: Option<(Header, u64)>,
    /// Damage behind the records that the last call gave.
    damage: Option<ReadError>,
    unknown: u64,
}

/// Matching decisions of one log directory, in the log's order: see [`read_log`].
pub struct Decisions {
    records: Records,
    query: Query,
    unknown: u64,
}

/// Matching records of one log directory, of every kind, in the log's order: see [`find`].
pub struct Found {
    records: Records,
    query: Query,
    unknown: u64,
}

/// Records of every kind of one log directory, in the log's order: see [`read_records`].
pub struct Records {
    directory: PathBuf,
    since: Option<SystemTime>,
    until: Option<SystemTime>,
    head: Option<Head>,
    segments: std::iter::Peekable<std::vec::IntoIter<SegmentName>>,
    current: Option<Open>,
    recorder: Option<String>,
}

/// A segment half read.
struct Open {
    segment: Segment,
    header: Header,
    at: usize,
    next_seq: u64,
}

// === impl Query ===

impl Query {
    /// Whether a record is what is looked for. What only decisions have (service, route, outcome, a shadow policy's answer), no
    /// record of another kind matches.
    #[must_use]
    pub fn matches_any(&self, record: &AnyRecord) -> bool {
        if !self.kinds.is_empty() && !record.kind().is_some_and(|kind| self.kinds.contains(&kind)) {
            return false;
        }
        let about_decisions =
            self.service.is_some() || self.route.is_some() || !self.outcome.is_empty() || self.shadow_differs;
        let (who, by) = match record {
            AnyRecord::Decision(record) => return self.matches(record),
            _ if about_decisions => return false,
            AnyRecord::Control(control) => (Some(&control.actor), control.by.as_slice()),
            AnyRecord::Issuance(issuance) => (Some(&issuance.requester), [].as_slice()),
            AnyRecord::Loss(_) | AnyRecord::Heartbeat(_) | AnyRecord::Unknown { .. } => (None, [].as_slice()),
        };
        self.is_when(record.at())
            && self.is_who(who.map(String::as_str))
            && self.policy.as_ref().is_none_or(|policy| by.contains(policy))
            && self.id.as_ref().is_none_or(|id| record.id() == id)
    }

    fn is_when(&self, at: SystemTime) -> bool {
        self.since.is_none_or(|since| at >= since) && self.until.is_none_or(|until| at < until)
    }

    fn is_who(&self, found: Option<&str>) -> bool {
        self.principal.as_deref().is_none_or(|wanted| {
            found.is_some_and(|found| found == wanted || (wanted.ends_with('/') && found.starts_with(wanted)))
        })
    }

    /// Whether a decision is what is looked for.
    #[must_use]
    pub fn matches(&self, record: &Record) -> bool {
        let exactly =
            |wanted: &Option<String>, found: Option<&str>| wanted.as_deref().is_none_or(|wanted| found == Some(wanted));
        let policy = self.policy.as_deref().is_none_or(|wanted| {
            let failed = |error: &String| error.strip_prefix(wanted).is_some_and(|rest| rest.starts_with(':'));
            record.determining.iter().any(|id| id == wanted) || record.errors.iter().any(failed)
        });
        self.is_when(record.at)
            && self.is_who(record.principal.as_deref())
            && exactly(&self.service, Some(&record.service))
            && exactly(&self.route, record.route.as_deref())
            && (self.outcome.is_empty() || self.outcome.contains(&record.outcome))
            && policy
            && self.id.as_ref().is_none_or(|id| record.id == *id)
            && (!self.shadow_differs || record.shadow_differs())
    }
}

/// Log directories (those with segments) at or below a path, in order. Symbolic links are not followed.
///
/// # Errors
/// [`ReadError::Io`] when a directory cannot be read.
pub fn find_logs(root: &Path) -> Result<Vec<PathBuf>, ReadError> {
    let mut found = Vec::new();
    let mut left = vec![(root.to_owned(), 0)];
    while let Some((directory, depth)) = left.pop() {
        let io = |e| io_error(&directory, &e);
        let mut has_segments = false;
        for entry in directory.read_dir().map_err(io)? {
            let entry = entry.map_err(io)?;
            if entry.file_type().map_err(io)?.is_dir() {
                if depth < DEPTH_MAX {
                    left.push((entry.path(), depth + 1));
                }
            } else {
                has_segments |= entry.path().extension().is_some_and(|extension| extension == "seg");
            }
        }
        if has_segments {
            found.push(directory);
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Matching decisions of one log directory in order. A torn tail ends the log without an error. Damage elsewhere is an
/// error that names segment and record, and reading goes on behind it. Segments whose records are all before `since` or
/// all from `until` on are not opened. Records that this program does not know are counted: [`Decisions::unknown`].
///
/// # Errors
/// [`ReadError::Io`] when the directory cannot be read, [`ReadError::OtherFormat`] when another version wrote it.
pub fn read_log(directory: &Path, query: &Query) -> Result<Decisions, ReadError> {
    let mut records = read_records(directory, query.since, query.until)?;
    if let Some(id) = &query.id {
        records.only(id);
    }
    Ok(Decisions {
        records,
        query: query.clone(),
        unknown: 0,
    })
}

/// Matching records of one log directory, of whatever kind; as [`read_log`] otherwise.
///
/// # Errors
/// As [`read_log`].
pub fn find(directory: &Path, query: &Query) -> Result<Found, ReadError> {
    let Decisions {
        records,
        query,
        unknown,
    } = read_log(directory, query)?;
    Ok(Found {
        records,
        query,
        unknown,
    })
}

/// Records of every kind, those of segments that may have some between `since` and `until`.
///
/// # Errors
/// As [`read_log`].
pub fn read_records(
    directory: &Path,
    since: Option<SystemTime>,
    until: Option<SystemTime>,
) -> Result<Records, ReadError> {
    let io = |e| io_error(directory, &e);
    // The head first: what it says was durable is then surely in what is read after it. A damaged one is for verify.
    let head = Head::read(directory).map_err(io)?.and_then(Result::ok);
    let (segments, strangers) = segment::list(directory).map_err(io)?;
    if let Some((segment, found)) = segment::other_format(directory, &[], &strangers).map_err(io)? {
        return Err(ReadError::OtherFormat { segment, found });
    }
    Ok(Records {
        directory: directory.to_owned(),
        since,
        until,
        head,
        segments: segments.into_iter().peekable(),
        current: None,
        recorder: None,
    })
}

// === impl Decisions ===

impl Decisions {
    /// Records met so far that are of a kind or version that this program does not know. They are in the log, their
    /// chain can be verified, and whether they match cannot be said.
    #[must_use]
    pub fn unknown(&self) -> u64 {
        self.unknown
    }
}

impl Iterator for Decisions {
    type Item = Result<Record, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.records.next()? {
                Ok(AnyRecord::Decision(record)) if self.query.matches(&record) => return Some(Ok(*record)),
                Ok(AnyRecord::Unknown { .. }) => self.unknown += 1,
                Ok(_) => {}
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

// === impl Found ===

impl Found {
    /// As [`Decisions::unknown`].
    #[must_use]
    pub fn unknown(&self) -> u64 {
        self.unknown
    }
}

impl Iterator for Found {
    type Item = Result<AnyRecord, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.records.next()? {
                Ok(AnyRecord::Unknown { .. }) => self.unknown += 1,
                Ok(record) if self.query.matches_any(&record) => return Some(Ok(record)),
                Ok(_) => {}
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

// === impl Records ===

impl Iterator for Records {
    type Item = Result<AnyRecord, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let Some(open) = &mut self.current else {
                let name = self.segments.next()?;
                if self.skips(name) {
                    continue;
                }
                if let Err(error) = self.open(name) {
                    return Some(Err(error));
                }
                continue;
            };
            let Some(piece) = open.segment.piece(open.at) else {
                self.current = None;
                continue;
            };
            let at = std::mem::replace(&mut open.at, piece.end());
            match piece {
                Piece::Frame(frame) => match frame.entry(&open.header) {
                    Some(entry) => {
                        open.next_seq = entry.id().seq.saturating_add(1);
                        return Some(Ok(entry));
                    }
                    None => return Some(Err(open.damaged())),
                },
                Piece::Bad { end, .. } => {
                    let last = self.segments.peek().is_none();
                    if !(last && open.segment.is_torn(at, end, self.head.as_ref())) {
                        return Some(Err(open.damaged()));
                    }
                }
            }
        }
    }
}

impl Records {
    /// Leaves the segments in which a record may be, by their names.
    fn only(&mut self, id: &DecisionId) {
        let segments: Vec<_> = self.segments.by_ref().collect();
        let ends_before = |index: usize| {
            let (here, next) = (segments.get(index), segments.get(index + 1));
            here.zip(next).is_some_and(|(here, next)| {
                next.boot == here.boot && next.first_seq > here.first_seq && next.first_seq <= id.seq
            })
        };
        let kept: Vec<_> = segments
            .iter()
            .enumerate()
            .filter(|(index, name)| name.boot == id.boot && name.first_seq <= id.seq && !ends_before(*index))
            .map(|(_, name)| *name)
            .collect();
        self.segments = kept.into_iter().peekable();
    }

    /// Whether the header of the next segment says that this one has nothing that is wanted.
    fn skips(&mut self, name: SegmentName) -> bool {
        let (since, until) = (self.since, self.until);
        if since.is_none() && until.is_none() {
            return false;
        }
        let Some(next) = self.segments.peek() else { return false };
        // What cannot be read says nothing, and will be told of when its turn comes.
        let Ok(Some(next)) = Header::read(&self.directory, *next) else {
            return false;
        };
        let before = &next.before;
        (before.boot, before.first_seq) == (name.boot, name.first_seq) && before.span.misses(since, until)
    }

    fn open(&mut self, name: SegmentName) -> Result<(), ReadError> {
        let path = self.directory.join(name.file_name());
        let segment = Segment::read(&self.directory, name).map_err(|e| io_error(&path, &e))?;
        if self.segments.peek().is_none() && segment.is_unborn(self.head.as_ref()) {
            return Ok(());
        }
        if let Some(found) = segment.other_format() {
            return Err(ReadError::OtherFormat {
                segment: name.file_name(),
                found,
            });
        }
        let damaged = ReadError::Damaged {
            segment: name.file_name(),
            place: "its header".into(),
        };
        let sound = segment.header.as_ref().is_some_and(|header| header.name == name);
        // A renamed file is read as what it was. Without a header, its name says which boot it is of, and the segments
        // before it whose.
        let header = segment.header.clone().or_else(|| {
            let recorder = self.recorder.clone()?;
            Some(Header::unreadable(recorder, name))
        });
        if let Some(header) = header {
            self.recorder = Some(header.recorder.clone());
            let next_seq = header.name.first_seq;
            self.current = Some(Open {
                segment,
                header,
                at: HEADER_BYTES,
                next_seq,
            });
        }
        if sound {
            return Ok(());
        }
        Err(damaged)
    }
}

// === impl Open ===

impl Open {
    /// The next record cannot be read; count it as one.
    fn damaged(&mut self) -> ReadError {
        let id = DecisionId {
            recorder: self.header.recorder.clone(),
            boot: self.header.name.boot,
            seq: self.next_seq,
        };
        self.next_seq = self.next_seq.saturating_add(1);
        ReadError::Damaged {
            segment: self.header.name.file_name(),
            place: id.to_string(),
        }
    }
}

// === impl Tail ===

impl Tail {
    /// Begins with the first record, or, `from_end`, with the next one to be written.
    ///
    /// # Errors
    /// [`ReadError::Io`] when the directory cannot be read. It may still be empty.
    pub fn open(directory: &Path, from_end: bool) -> Result<Self, ReadError> {
        let mut tail = Self {
            directory: directory.to_owned(),
            current: None,
            damage: None,
            unknown: 0,
        };
        let segments = tail.segments_from(None)?;
        if from_end
            && let Some(last) = segments.last()
            && let Some(header) = Segment::read(directory, *last)
                .map_err(|e| io_error(directory, &e))?
                .header
        {
            tail.current = Some((header, HEADER_BYTES as u64));
            // Neither records nor damage of the past are asked for.
            tail.poll()?;
            tail.damage = None;
            tail.unknown = 0;
        }
        Ok(tail)
    }

    /// Records met so far that are of a kind or version that this program does not know.
    #[must_use]
    pub fn unknown(&self) -> u64 {
        self.unknown
    }

    /// The records of every kind that were written since the last call, at most the rest of one segment: call again until it gives nothing, then
    /// wait a little.
    ///
    /// # Errors
    /// [`ReadError::Damaged`] when something cannot be read; the next call goes on behind it.
    pub fn poll(&mut self) -> Result<Vec<AnyRecord>, ReadError> {
        if let Some(damage) = self.damage.take() {
            return Err(damage);
        }
        // Listed before anything is read: when there is a later segment, the current one is complete.
        let mut later = self
            .segments_from(self.current.as_ref().map(|(header, _)| header.name))?
            .into_iter()
            .peekable();
        loop {
            if let Some((header, at)) = self.current.clone() {
                let (records, read) = self.read_on(&header, at, later.peek().is_some())?;
                self.current = Some((header, at + read));
                if !records.is_empty() {
                    return Ok(records);
                }
                if let Some(damage) = self.damage.take() {
                    return Err(damage);
                }
            }
            let Some(name) = later.next() else {
                return Ok(Vec::new());
            };
            let path = self.directory.join(name.file_name());
            let segment = Segment::read(&self.directory, name).map_err(|e| io_error(&path, &e))?;
            match segment.header {
                Some(header) => self.current = Some((header, HEADER_BYTES as u64)),
                // About to be written.
                None if later.peek().is_none() && segment.is_unborn(None) => return Ok(Vec::new()),
                None => {
                    // Passed over once: the next call begins behind it.
                    let header = Header::unreadable(String::new(), name);
                    self.current = Some((header, segment.len() as u64));
                    if let Some(found) = segment.other_format() {
                        return Err(ReadError::OtherFormat {
                            segment: name.file_name(),
                            found,
                        });
                    }
                    return Err(ReadError::Damaged {
                        segment: name.file_name(),
                        place: "its header".into(),
                    });
                }
            }
        }
    }

    /// The records behind `at`, and how many bytes they and damage between them take.
    fn read_on(&mut self, header: &Header, at: u64, complete: bool) -> Result<(Vec<AnyRecord>, u64), ReadError> {
        let path = self.directory.join(header.name.file_name());
        let segment = Segment::read_on(&self.directory, header.clone(), at).map_err(|e| io_error(&path, &e))?;
        let (mut records, mut read): (Vec<AnyRecord>, _) = (Vec::new(), 0);
        for piece in segment.pieces_from(0) {
            // The last bytes of a live segment may be a record that is being written.
            if matches!(piece, Piece::Bad { end, .. } if end == segment.len() && !complete) {
                break;
            }
            read = piece.end();
            let entry = match piece {
                Piece::Frame(frame) => frame.entry(header),
                Piece::Bad { .. } => None,
            };
            match entry {
                Some(AnyRecord::Unknown { .. }) => self.unknown += 1,
                Some(record) => records.push(record),
                None => {
                    let place = match records.last() {
                        Some(last) => format!("what follows {}", last.id()),
                        None => format!("byte {at}"),
                    };
                    self.damage = Some(ReadError::Damaged {
                        segment: header.name.file_name(),
                        place,
                    });
                    break;
                }
            }
        }
        Ok((records, read as u64))
    }

    fn segments_from(&self, after: Option<SegmentName>) -> Result<Vec<SegmentName>, ReadError> {
        let io = |e| io_error(&self.directory, &e);
        let (mut segments, strangers) = segment::list(&self.directory).map_err(io)?;
        if let Some((segment, found)) = segment::other_format(&self.directory, &[], &strangers).map_err(io)? {
            return Err(ReadError::OtherFormat { segment, found });
        }
        segments.retain(|name| after.is_none_or(|after| *name > after));
        Ok(segments)
    }
}

fn io_error(path: &Path, error: &io::Error) -> ReadError {
    ReadError::Io {
        path: path.display().to_string(),
        problem: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;
    use crate::testing::{files, open, record, write};
    use crate::{Class, Recorder};

    #[test]
    fn every_filter_must_match() {
        let mut found = record(3);
        found.id = "ledger-0000000000000001-3".parse().unwrap();
        found.principal = Some("spiffe://example.org/ns/orders".into());
        found.route = Some("ledger:GET /accounts/{id}".into());
        found.determining = vec!["forbid-night".into()];
        found.errors = vec!["limit: integer overflow".into()];
        let query = Query::default;
        let text = |text: &str| Some(text.to_owned());
        let later = found.at + Duration::from_micros(1);
        let cases = [
            ("nothing asked", query(), true),
            (
                "since is inclusive",
                Query {
                    since: Some(found.at),
                    ..query()
                },
                true,
            ),
            (
                "since",
                Query {
                    since: Some(later),
                    ..query()
                },
                false,
            ),
            (
                "until is exclusive",
                Query {
                    until: Some(found.at),
                    ..query()
                },
                false,
            ),
            (
                "until",
                Query {
                    until: Some(later),
                    ..query()
                },
                true,
            ),
            (
                "principal",
                Query {
                    principal: text("spiffe://example.org/ns/orders"),
                    ..query()
                },
                true,
            ),
            (
                "prefix",
                Query {
                    principal: text("spiffe://example.org/ns/"),
                    ..query()
                },
                true,
            ),
            (
                "prefix without its end",
                Query {
                    principal: text("spiffe://example.org/ns/ord"),
                    ..query()
                },
                false,
            ),
            (
                "other principal",
                Query {
                    principal: text("spiffe://example.org/ns/edge"),
                    ..query()
                },
                false,
            ),
            (
                "service",
                Query {
                    service: text("ledger"),
                    ..query()
                },
                true,
            ),
            (
                "other service",
                Query {
                    service: text("ledge"),
                    ..query()
                },
                false,
            ),
            (
                "route",
                Query {
                    route: text("ledger:GET /accounts/{id}"),
                    ..query()
                },
                true,
            ),
            (
                "other route",
                Query {
                    route: text("ledger:GET /accounts"),
                    ..query()
                },
                false,
            ),
            (
                "outcome",
                Query {
                    outcome: vec![Outcome::Allow, Outcome::Forbid],
                    ..query()
                },
                true,
            ),
            (
                "other outcome",
                Query {
                    outcome: vec![Outcome::Allow],
                    ..query()
                },
                false,
            ),
            (
                "policy that decided",
                Query {
                    policy: text("forbid-night"),
                    ..query()
                },
                true,
            ),
            (
                "policy that failed",
                Query {
                    policy: text("limit"),
                    ..query()
                },
                true,
            ),
            (
                "part of a policy's id",
                Query {
                    policy: text("lim"),
                    ..query()
                },
                false,
            ),
            (
                "id",
                Query {
                    id: "ledger-0000000000000001-3".parse().ok(),
                    ..query()
                },
                true,
            ),
            (
                "other id",
                Query {
                    id: "ledger-0000000000000001-4".parse().ok(),
                    ..query()
                },
                false,
            ),
            (
                "one of two",
                Query {
                    service: text("ledger"),
                    outcome: vec![Outcome::Error],
                    ..query()
                },
                false,
            ),
        ];
        for (name, query, expected) in cases {
            assert_eq!(query.matches(&found), expected, "{name}");
        }
        let stranger = record(0);
        assert!(
            !Query {
                principal: text("spiffe://example.org/"),
                ..query()
            }
            .matches(&stranger)
        );
    }

    #[test]
    fn one_record_is_found_by_its_id() {
        let directory = tempfile::tempdir().unwrap();
        let written = write(directory.path(), &[5, 5]);
        let query = Query {
            id: Some(written[6].id.clone()),
            ..Query::default()
        };
        let found: Vec<Record> = read_log(directory.path(), &query)
            .unwrap()
            .map(Result::unwrap)
            .collect();
        assert_eq!(found, [written[6].clone()]);
    }

    /// Segments of other times, and of other records, are not opened: that something else stands in their place goes
    /// unnoticed.
    #[test]
    fn segments_without_what_is_wanted_are_not_opened() {
        let directory = tempfile::tempdir().unwrap();
        // Records 0–2 and 3–5 and 6 of one boot, one a second, and of another boot the same times again.
        let written = write(directory.path(), &[7, 7]);
        let all = files(directory.path());
        assert_eq!(all.len(), 3 + 3 + 1, "{all:?}");
        let harm = |kept: &[usize]| {
            let copy = crate::testing::copy(directory.path());
            for (index, name) in all.iter().enumerate().filter(|(_, name)| *name != "head") {
                if !kept.contains(&index) {
                    // Its header stays, for the segment before it; no record can be read.
                    let bytes = fs::read(copy.path().join(name)).unwrap();
                    fs::write(copy.path().join(name), [&bytes[..HEADER_BYTES], &[7; 50]].concat()).unwrap();
                }
            }
            copy
        };
        let found = |directory: &Path, query: &Query| -> Vec<Result<u64, String>> {
            let seq = |record: Record| record.id.seq;
            let found = read_log(directory, query).unwrap();
            found.map(|found| found.map(seq).map_err(|e| e.to_string())).collect()
        };
        let (at, second) = (|n: usize| Some(written[n].at), Duration::from_secs(1));
        let sound = |seqs: &[u64]| seqs.iter().copied().map(Ok::<u64, String>).collect::<Vec<_>>();
        // The newest segment is always read: nobody has said yet what it holds.
        let between = Query {
            since: at(3),
            until: at(5),
            ..Query::default()
        };
        assert_eq!(found(harm(&[1, 4, 5]).path(), &between), sound(&[3, 4, 3, 4]));
        let early = Query {
            until: at(3),
            ..Query::default()
        };
        assert_eq!(found(harm(&[0, 3, 5]).path(), &early), sound(&[0, 1, 2, 0, 1, 2]));
        let late = Query {
            since: at(6),
            ..Query::default()
        };
        assert_eq!(found(harm(&[2, 5]).path(), &late), sound(&[6, 6]));
        let never = Query {
            since: written[6].at.checked_add(second),
            ..Query::default()
        };
        assert_eq!(found(harm(&[5]).path(), &never), sound(&[]));
        let one = Query {
            id: Some(written[4].id.clone()),
            ..Query::default()
        };
        assert_eq!(found(harm(&[1]).path(), &one), sound(&[4]));
        // Without a bound everything is read, and the harm is found.
        assert!(found(harm(&[]).path(), &Query::default()).iter().any(Result::is_err));
    }

    #[test]
    fn damage_is_named_and_the_rest_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let written = write(directory.path(), &[3, 1]);
        let name = files(directory.path())[0].clone();
        let path = directory.path().join(&name);
        let mut bytes = fs::read(&path).unwrap();
        bytes[HEADER_BYTES + 20] ^= 1;
        fs::write(&path, bytes).unwrap();
        let mut found = read_log(directory.path(), &Query::default()).unwrap();
        let error = found.next().unwrap().unwrap_err().to_string();
        assert!(
            error.contains(&name) && error.contains("ledger-0000000000000001-0"),
            "{error}"
        );
        assert_eq!(found.map(Result::unwrap).collect::<Vec<_>>(), written[1..]);
    }

    #[test]
    fn logs_are_found_below() {
        let root = tempfile::tempdir().unwrap();
        let logs = ["a", "b/ledger", "b/orders"].map(|name| root.path().join(name));
        for log in &logs {
            write(log, &[1]);
        }
        fs::create_dir(root.path().join("empty")).unwrap();
        assert_eq!(find_logs(root.path()).unwrap(), logs);
        assert_eq!(find_logs(&logs[1]).unwrap(), [logs[1].clone()]);
        let error = find_logs(&root.path().join("none")).unwrap_err();
        assert!(error.to_string().contains("none`"), "{error}");
    }

    fn append(recorder: &Recorder, n: u64) -> Record {
        let mut record = record(n);
        recorder.append(&mut record, Class::Full).unwrap();
        record
    }

    fn drain(tail: &mut Tail) -> Vec<Record> {
        let mut found = Vec::new();
        loop {
            match tail.poll().unwrap() {
                records if records.is_empty() => return found,
                records => found.extend(records.into_iter().map(|record| match record {
                    AnyRecord::Decision(record) => *record,
                    other => panic!("{other:?}"),
                })),
            }
        }
    }

    #[test]
    fn a_tail_follows_rotation_and_boots() {
        let directory = tempfile::tempdir().unwrap();
        let mut from_nothing = Tail::open(directory.path(), false).unwrap();
        assert_eq!(drain(&mut from_nothing), []);
        let before = write(directory.path(), &[4]);
        let mut from_end = Tail::open(directory.path(), true).unwrap();
        assert_eq!(drain(&mut from_end), []);
        let mut expected = before;
        for boot in 2..4 {
            let (recorder, _) = open(directory.path());
            assert_eq!(drain(&mut from_nothing), expected, "boot {boot}");
            expected.clear();
            for n in 0..8 {
                let record = append(&recorder, n);
                assert_eq!(
                    drain(&mut from_end),
                    std::slice::from_ref(&record),
                    "boot {boot}, record {n}"
                );
                expected.push(record);
            }
        }
    }

    #[test]
    fn a_tail_waits_for_the_rest_of_a_record_and_passes_damage_once() {
        let directory = tempfile::tempdir().unwrap();
        let written = write(directory.path(), &[3]);
        let path = directory.path().join(&files(directory.path())[0]);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 10]).unwrap();
        let mut tail = Tail::open(directory.path(), false).unwrap();
        assert_eq!(drain(&mut tail), written[..2]);
        fs::write(&path, &whole).unwrap();
        assert_eq!(drain(&mut tail), written[2..]);

        let mut damaged = whole.clone();
        damaged[HEADER_BYTES + 20] ^= 1;
        fs::write(&path, damaged).unwrap();
        let mut tail = Tail::open(directory.path(), false).unwrap();
        assert!(matches!(tail.poll(), Err(ReadError::Damaged { .. })));
        assert_eq!(drain(&mut tail), written[1..]);
    }
}
