//! The writer: appends records of any kind, chains them and makes them durable.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::future::Future;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::fields::to_micros;
use crate::id::{BootId, DecisionId, is_recorder_name};
use crate::kind::{self, Kind, Recordable};
use crate::mend::{Mended, Repair, mend};
use crate::segment::{
    Before, FORMAT, Frame, HEADER_BYTES, Hash, Head, Header, PAYLOAD_BYTES_MAX, SEGMENT_BYTES_MAX, SegmentName, Span,
};

/// How much a record must have survived before the answer may go out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Denies and errors: flushed at once, and the caller waits for `durable`.
    Must,
    /// Allows: written at once (a killed process loses nothing), flushed to the disk within `Options::flush_after`.
    Full,
}

/// How to write.
#[derive(Debug, Clone)]
pub struct Options {
    /// A segment ends before it would grow beyond this many bytes; at most 1 GiB.
    pub segment_bytes_max: u64,
    /// The longest a record of [`Class::Full`] stays unflushed.
    pub flush_after: Duration,
}

/// A record that is written, and not yet known to be durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Appended {
    /// Its name.
    pub id: DecisionId,
    /// What to wait for: see [`Recorder::durable`].
    pub seq: u64,
}

/// Why a record cannot be written.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RecorderError {
    /// The name would not survive in a decision id.
    #[error("recorder name `{0}` is not usable: 1 to 64 of a-z, 0-9, `.` and `-`")]
    InvalidName(String),
    /// Another recorder has the directory.
    #[error("log directory `{directory}` is in use: stop the process that writes it, or choose another directory")]
    InUse {
        /// The log directory.
        directory: String,
    },
    /// The directory holds the log of somebody else.
    #[error("log directory `{directory}` holds the log of `{found}`, not of `{wanted}`: choose another directory")]
    OtherRecorder {
        /// The log directory.
        directory: String,
        /// Whose log it is.
        found: String,
        /// Who wanted to write.
        wanted: String,
    },
    /// The directory holds a log that another version wrote.
    #[error(
        "log directory `{directory}` holds a log in format {found} (`{segment}`), and this version writes format {FORMAT}: move the directory aside (`mv {directory} {directory}-format{found}`), or choose another; the version that wrote it reads it"
    )]
    OtherFormat {
        /// The log directory.
        directory: String,
        /// The file that says so.
        segment: String,
        /// Its format.
        found: u8,
    },
    /// The system gives no randomness to name a boot with.
    #[error("the system gives no random bytes to name this start of the log with: check `/dev/urandom`")]
    NoRandomness,
    /// The operating system refused. For an append this is final: open the recorder again.
    #[error("log directory `{directory}`: cannot {action}: {problem}; check its owner, its mode and the free space")]
    Io {
        /// The log directory.
        directory: String,
        /// What was being done.
        action: &'static str,
        /// What the system said.
        problem: String,
    },
    /// The record is too large to be one. Others can still be written.
    #[error("a record of {0} bytes is too large: at most {PAYLOAD_BYTES_MAX}, shorten its texts")]
    TooLarge(usize),
    /// Nothing with this sequence number was appended.
    #[error("record {0} was not appended in this boot: wait for what `append` returned")]
    NotAppended(u64),
}

/// One per process and directory (locked). Cheap to share; `append` is one short critical section and one `write`.
/// The last one dropped flushes everything.
#[derive(Clone)]
pub struct Recorder {
    owner: Arc<Owner>,
}

/// Ends the flusher when the last recorder goes.
struct Owner {
    shared: Arc<Shared>,
    flusher: Option<JoinHandle<()>>,
}

struct Shared {
    name: String,
    place: u64,
    boot: BootId,
    directory: PathBuf,
    options: Options,
    head: File,
    _lock: File,
    state: Mutex<State>,
    /// There is something to flush, or the end has come.
    work: Condvar,
    /// More is durable, or a write failed.
    settled: Condvar,
}

struct State {
    segment: SegmentName,
    file: Arc<File>,
    /// Where the segment ends.
    end: u64,
    /// From when to when its records are.
    span: Span,
    /// The last link.
    hash: Hash,
    /// Records of this boot that are written; the next one's sequence number.
    written: u64,
    /// Records of this boot that are durable.
    durable: u64,
    /// Records of this boot that somebody waits for.
    wanted: u64,
    /// When the oldest record that is not durable was written.
    dirty_since: Option<Instant>,
    waiting: BTreeMap<u64, Waiting>,
    next_waiting: u64,
    failed: Option<RecorderError>,
    closing: bool,
}

struct Waiting {
    seq: u64,
    waker: Waker,
}

/// A sequence number that no record gets: who waits for it hears of a failure only.
const NEVER: u64 = u64::MAX;

struct Durable<'a> {
    shared: &'a Shared,
    seq: u64,
    place: Option<u64>,
}

// === impl Options ===

impl Default for Options {
    /// Segments of 64 MiB, flushed every 100 ms.
    fn default() -> Self {
        Self {
            segment_bytes_max: 64 << 20,
            flush_after: Duration::from_millis(100),
        }
    }
}

// === impl Recorder ===

impl Recorder {
    /// Opens the log in `directory`, made (mode 0700) if it is not there, mends its torn tail and begins a new boot under
    /// a random name.
    /// `name` is `[a-z0-9.-]{1,64}`: it stands in every decision id. Damage does not keep it from writing: see
    /// [`crate::verify_log`].
    ///
    /// # Errors
    /// [`RecorderError::InvalidName`], `InUse`, `OtherRecorder`, `OtherFormat`, or `NoRandomness` or `Io` when the system
    /// refuses.
    pub fn open(directory: &Path, name: &str, options: Options) -> Result<(Self, Repair), RecorderError> {
        let boot = BootId::random().ok_or(RecorderError::NoRandomness)?;
        Self::open_as(directory, name, options, boot)
    }

    /// As [`Recorder::open`], with the name of the boot.
    pub(crate) fn open_as(
        directory: &Path,
        name: &str,
        options: Options,
        boot: BootId,
    ) -> Result<(Self, Repair), RecorderError> {
        if !is_recorder_name(name) {
            return Err(RecorderError::InvalidName(name.to_owned()));
        }
        let io = |action| move |e: io::Error| io_error(directory, action, &e);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(io("make the directory"))?;
        let lock = private()
            .create(true)
            .open(directory.join("lock"))
            .map_err(io("open the lock file"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(RecorderError::InUse {
                    directory: directory.display().to_string(),
                });
            }
            Err(TryLockError::Error(e)) => return Err(io("lock the lock file")(e)),
        }
        let Mended { before, place, repair } = mend(directory, name)?;

        let place = place.saturating_add(1);
        let header = Header {
            recorder: name.to_owned(),
            name: SegmentName {
                place,
                boot,
                first_seq: 0,
            },
            before,
        };
        let file = create_segment(directory, &header).map_err(io("begin a segment"))?;
        let head = private()
            .create(true)
            .open(Head::path(directory))
            .map_err(io("open the head file"))?;
        let state = State {
            segment: header.name,
            file: Arc::new(file),
            end: HEADER_BYTES as u64,
            span: Span::EMPTY,
            hash: header.hash(),
            written: 0,
            durable: 0,
            wanted: 0,
            dirty_since: None,
            waiting: BTreeMap::new(),
            next_waiting: 0,
            failed: None,
            closing: false,
        };
        write_head(&head, &state.head())
            .and_then(|()| head.sync_all())
            .map_err(io("write the head file"))?;
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            place,
            boot,
            directory: directory.to_owned(),
            options,
            head,
            _lock: lock,
            state: Mutex::new(state),
            work: Condvar::new(),
            settled: Condvar::new(),
        });
        let flusher = std::thread::Builder::new()
            .name("audit-flush".into())
            .spawn({
                let shared = Arc::clone(&shared);
                move || shared.flush_until_closed()
            })
            .map_err(io("start the flushing thread"))?;
        Ok((
            Self {
                owner: Arc::new(Owner {
                    shared,
                    flusher: Some(flusher),
                }),
            },
            repair,
        ))
    }

    /// Gives the record, of whatever kind, its id and writes it. Times are rounded down to the microsecond.
    ///
    /// # Errors
    /// [`RecorderError::Io`] is final: every later append fails too, so that the caller fails closed.
    /// [`RecorderError::TooLarge`] concerns this record only.
    pub fn append<R: Recordable>(&self, record: &mut R, class: Class) -> Result<Appended, RecorderError> {
        let shared = &self.owner.shared;
        let mut state = shared.lock();
        if let Some(failed) = &state.failed {
            return Err(failed.clone());
        }
        let seq = state.written;
        let id = DecisionId {
            recorder: shared.name.clone(),
            boot: shared.boot,
            seq,
        };
        record.stamp(id.clone());
        let payload = kind::encode(record);
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Err(RecorderError::TooLarge(payload.len()));
        }
        if let Err((action, e)) = shared.write(&mut state, R::KIND, &payload, to_micros(record.at())) {
            return Err(shared.fail(&mut state, action, &e));
        }
        if class == Class::Must {
            state.wanted = state.written;
        }
        let newly_dirty = state.dirty_since.is_none();
        if newly_dirty {
            state.dirty_since = Some(Instant::now());
        }
        if newly_dirty || class == Class::Must {
            shared.work.notify_one();
        }
        Ok(Appended { id, seq })
    }

    /// Ready when the record is on the disk (group commit). A plain std future: works on any runtime, and may be
    /// dropped at any time.
    ///
    /// # Errors
    /// The recorder's failure, or [`RecorderError::NotAppended`].
    pub async fn durable(&self, seq: u64) -> Result<(), RecorderError> {
        Durable {
            shared: &self.owner.shared,
            seq,
            place: None,
        }
        .await
    }

    /// Blocks until the record is on the disk.
    ///
    /// # Errors
    /// As [`Recorder::durable`].
    pub fn wait_durable(&self, seq: u64) -> Result<(), RecorderError> {
        let shared = &self.owner.shared;
        let mut state = shared.lock();
        loop {
            if let Some(settled) = shared.settled(&mut state, seq) {
                return settled;
            }
            state = shared.settled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until nothing can be recorded any more, and says why. What holds the recorder cannot mend that by itself:
    /// it ends, so that whoever watches it starts it again. May be dropped at any time.
    pub async fn failed(&self) -> RecorderError {
        let never = Durable {
            shared: &self.owner.shared,
            seq: NEVER,
            place: None,
        };
        match never.await {
            Err(failed) => failed,
            Ok(()) => std::future::pending().await,
        }
    }

    /// The name that stands in its decision ids.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.owner.shared.name
    }

    /// The name of this start of the recorder.
    #[must_use]
    pub fn boot(&self) -> BootId {
        self.owner.shared.boot
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Recorder(`{}`, boot {})", self.name(), self.boot())
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.work.notify_one();
        if let Some(flusher) = self.flusher.take() {
            // A panic there has been reported where it happened; there is nobody left here to tell.
            let _ = flusher.join();
        }
    }
}

// === impl Durable ===

impl Future for Durable<'_> {
    type Output = Result<(), RecorderError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let mut state = this.shared.lock();
        if let Some(settled) = this.shared.settled(&mut state, this.seq) {
            return Poll::Ready(settled);
        }
        let place = *this.place.get_or_insert_with(|| {
            state.next_waiting += 1;
            state.next_waiting
        });
        state.waiting.insert(
            place,
            Waiting {
                seq: this.seq,
                waker: context.waker().clone(),
            },
        );
        Poll::Pending
    }
}

impl Drop for Durable<'_> {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            self.shared.lock().waiting.remove(&place);
        }
    }
}

// === impl Shared ===

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No step under the lock panics short of the allocator, which aborts.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the wait for `seq` is over; if not, sees to it that somebody flushes.
    fn settled(&self, state: &mut State, seq: u64) -> Option<Result<(), RecorderError>> {
        if state.durable > seq {
            return Some(Ok(()));
        }
        if let Some(failed) = &state.failed {
            return Some(Err(failed.clone()));
        }
        if seq == NEVER {
            return None;
        }
        if seq >= state.written {
            return Some(Err(RecorderError::NotAppended(seq)));
        }
        if state.wanted <= seq {
            state.wanted = seq + 1;
            self.work.notify_one();
        }
        None
    }

    fn write(&self, state: &mut State, kind: Kind, payload: &[u8], at: i64) -> Result<(), (&'static str, io::Error)> {
        let (mut frame, mut hash) = Frame::encode(&state.hash, kind, payload);
        let max = self.options.segment_bytes_max.min(SEGMENT_BYTES_MAX);
        if state.end > HEADER_BYTES as u64 && state.end + frame.len() as u64 > max {
            self.rotate(state).map_err(|e| ("begin a segment", e))?;
            (frame, hash) = Frame::encode(&state.hash, kind, payload);
        }
        if let Err(e) = state.file.write_all_at(&frame, state.end) {
            // Whatever part of it got there is no record. When this fails too, opening finds a torn tail.
            let _ = state.file.set_len(state.end);
            return Err(("write a record", e));
        }
        state.end += frame.len() as u64;
        state.hash = hash;
        state.span.include(at);
        state.written += 1;
        Ok(())
    }

    fn rotate(&self, state: &mut State) -> io::Result<()> {
        state.file.sync_data()?;
        self.made_durable(state, state.head())?;
        let header = Header {
            recorder: self.name.clone(),
            name: SegmentName {
                place: self.place,
                boot: self.boot,
                first_seq: state.written,
            },
            before: Before {
                boot: self.boot,
                first_seq: state.segment.first_seq,
                records: state.written,
                span: state.span,
                hash: state.hash,
            },
        };
        state.file = Arc::new(create_segment(&self.directory, &header)?);
        state.segment = header.name;
        state.end = HEADER_BYTES as u64;
        state.span = Span::EMPTY;
        state.hash = header.hash();
        Ok(())
    }

    /// The flusher thread: one `fdatasync` for everybody who waits, and the only one that wakes them.
    fn flush_until_closed(&self) {
        let mut state = self.lock();
        loop {
            let ready = state.take_ready();
            if !ready.is_empty() {
                // Not under the lock: a waker may run, or drop, the very future that waits.
                drop(state);
                ready.into_iter().for_each(Waker::wake);
                state = self.lock();
                continue;
            }
            if state.failed.is_some() {
                break;
            }
            let Some(since) = state.dirty_since else {
                if state.closing {
                    break;
                }
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = self.options.flush_after.saturating_sub(since.elapsed());
            if state.wanted <= state.durable && !state.closing && !left.is_zero() {
                state = self
                    .work
                    .wait_timeout(state, left)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0;
                continue;
            }
            let (file, head) = (Arc::clone(&state.file), state.head());
            state.dirty_since = None;
            drop(state);
            let flushed = file.sync_data();
            state = self.lock();
            if let Err(e) = flushed.and_then(|()| self.made_durable(&mut state, head)) {
                self.fail(&mut state, "flush", &e);
            }
        }
        // So that a clean end leaves a head that shows every record, also after a power cut.
        let _ = self.head.sync_all();
    }

    /// Everything up to `head` is on the disk: say so there, then to those who wait.
    fn made_durable(&self, state: &mut State, head: Head) -> io::Result<()> {
        if head.records <= state.durable {
            // A rotation was faster, and its head is newer.
            return Ok(());
        }
        write_head(&self.head, &head)?;
        state.durable = head.records;
        self.settled.notify_all();
        self.work.notify_one();
        Ok(())
    }

    /// From here on nothing is written: what the disk holds is not known.
    fn fail(&self, state: &mut State, action: &'static str, error: &io::Error) -> RecorderError {
        let error = io_error(&self.directory, action, error);
        let first = state.failed.get_or_insert(error).clone();
        self.settled.notify_all();
        self.work.notify_one();
        first
    }
}

// === impl State ===

impl State {
    fn head(&self) -> Head {
        let SegmentName { place, boot, first_seq } = self.segment;
        Head {
            place,
            boot,
            records: self.written,
            segment_first_seq: first_seq,
            end: self.end,
            hash: self.hash,
        }
    }

    /// Those whose wait is over.
    fn take_ready(&mut self) -> Vec<Waker> {
        let (failed, durable) = (self.failed.is_some(), self.durable);
        let waiting = std::mem::take(&mut self.waiting).into_iter();
        let (ready, waiting): (BTreeMap<_, _>, _) =
            waiting.partition(|(_, waiting): &(u64, Waiting)| failed || waiting.seq < durable);
        self.waiting = waiting;
        ready.into_values().map(|waiting| waiting.waker).collect()
    }
}

// === Files ===

/// On the disk, with its name, when it returns.
fn create_segment(directory: &Path, header: &Header) -> io::Result<File> {
    let file = private()
        .create_new(true)
        .open(directory.join(header.name.file_name()))?;
    file.write_all_at(&header.encode(), 0)?;
    file.sync_all()?;
    File::open(directory)?.sync_all()?;
    Ok(file)
}

fn write_head(file: &File, head: &Head) -> io::Result<()> {
    file.write_all_at(&head.encode(), 0)
}

pub(crate) fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).truncate(false).mode(0o600);
    options
}

pub(crate) fn io_error(directory: &Path, action: &'static str, error: &io::Error) -> RecorderError {
    RecorderError::Io {
        directory: directory.display().to_string(),
        action,
        problem: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::task::Wake;
    use std::thread::Thread;

    use super::*;
    use crate::testing::{SMALL, copy, files, open, read, record, write};
    use crate::{Query, ReadError, Record, Tail, read_log, verify_log};

    fn findings(directory: &Path) -> usize {
        verify_log(directory).unwrap().findings.len()
    }

    fn append(recorder: &Recorder, n: u64, class: Class) -> Record {
        let mut record = record(n);
        let appended = recorder.append(&mut record, class).unwrap();
        assert_eq!((&appended.id, appended.seq), (&record.id, record.id.seq));
        record
    }

    #[test]
    fn records_are_named_in_order_through_rotation_and_boots() {
        let directory = tempfile::tempdir().unwrap();
        let written = write(directory.path(), &[7, 0, 2]);
        let ids: Vec<String> = written.iter().map(|record| record.id.to_string()).collect();
        let expected = ["1-0", "1-1", "1-2", "1-3", "1-4", "1-5", "1-6", "3-0", "3-1"]
            .map(|id| format!("ledger-000000000000000{id}"));
        assert_eq!(ids, expected);
        assert_eq!(read(directory.path()), (written, 0));
        let segments = files(directory.path())
            .into_iter()
            .filter(|name| name.ends_with(".seg"))
            .count();
        assert_eq!(segments, 3 + 1 + 1);
        assert_eq!(findings(directory.path()), 0);
    }

    /// Yesterday's copy is put back and written on: nothing gets a name that something else has.
    #[test]
    fn a_restored_directory_repeats_no_id() {
        let directory = tempfile::tempdir().unwrap();
        let boot = |directory: &Path| {
            let (recorder, repair) = Recorder::open(directory, "ledger", SMALL).unwrap();
            assert_eq!(repair, Repair::default());
            (0..5).map(|n| append(&recorder, n, Class::Full).id).collect::<Vec<_>>()
        };
        boot(directory.path());
        let restored = copy(directory.path());
        let lost = boot(directory.path());
        let (mut all, findings) = (boot(restored.path()), findings(restored.path()));
        assert_eq!(findings, 0, "what a copy lacks cannot be seen in it alone");
        all.extend(lost);
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), 10, "{all:?}");
        // Both in one directory are told apart, and told of.
        for name in files(restored.path()).into_iter().filter(|name| name != "head") {
            std::fs::copy(restored.path().join(&name), directory.path().join(&name)).unwrap();
        }
        let report = verify_log(directory.path()).unwrap();
        assert!(report.findings[0].problem.contains("both have place 2"), "{report:?}");
    }

    /// The log of the version before: neither continued nor taken for an empty one.
    #[test]
    fn another_format_is_refused_with_a_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let old = "0000000001-00000000000000000000.seg";
        std::fs::write(directory.path().join(old), [&b"hopseg\x00\x01"[..], &[0; 124]].concat()).unwrap();
        let error = Recorder::open(directory.path(), "ledger", SMALL)
            .unwrap_err()
            .to_string();
        for part in ["format 1", "format 2", old, "mv "] {
            assert!(error.contains(part), "`{part}` is missing from `{error}`");
        }
        assert_eq!(files(directory.path()), [old], "nothing is touched");
        let read = read_log(directory.path(), &Query::default()).map(|_| ());
        assert!(matches!(read, Err(ReadError::OtherFormat { found: 1, .. })), "{read:?}");
        let tail = Tail::open(directory.path(), false).map(|mut tail| tail.poll()).err();
        assert!(matches!(tail, Some(ReadError::OtherFormat { found: 1, .. })));
        let report = verify_log(directory.path()).unwrap();
        assert!(
            report
                .findings
                .iter()
                .any(|finding| finding.problem.contains("format 1")),
            "{report:?}"
        );
        // The next version's, under a name of ours.
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), &[1]);
        let newest = directory.path().join(files(directory.path())[0].clone());
        let mut bytes = std::fs::read(&newest).unwrap();
        bytes[7] = FORMAT + 1;
        std::fs::write(newest, bytes).unwrap();
        let error = Recorder::open(directory.path(), "ledger", SMALL).unwrap_err();
        assert!(matches!(error, RecorderError::OtherFormat { found: 3, .. }), "{error}");
    }

    #[test]
    fn names_that_would_not_survive_in_an_id_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["", "Orders", "orders/1", "orders 1", "ö", &"x".repeat(65)] {
            let error = Recorder::open(directory.path(), name, SMALL).unwrap_err();
            assert!(matches!(error, RecorderError::InvalidName(_)), "{name}: {error}");
        }
    }

    #[test]
    fn one_recorder_to_a_directory() {
        let directory = tempfile::tempdir().unwrap();
        let (first, _) = open(directory.path());
        let clone = first.clone();
        drop(first);
        let error = Recorder::open(directory.path(), "ledger", SMALL).unwrap_err();
        assert!(matches!(error, RecorderError::InUse { .. }), "{error}");
        drop(clone);
        let error = Recorder::open(directory.path(), "orders", SMALL).unwrap_err();
        assert!(matches!(error, RecorderError::OtherRecorder { .. }), "{error}");
        assert_eq!(open(directory.path()).0.boot(), BootId::from_bits(2));
    }

    #[test]
    fn everything_is_private() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("logs/ledger");
        write(&directory, &[5]);
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&directory), 0o700);
        for name in files(&directory).iter().map(String::as_str).chain(["lock"]) {
            assert_eq!(mode(&directory.join(name)), 0o600, "{name}");
        }
    }

    /// What the head covers was flushed: nothing here waits for `flush_after`, which is an hour.
    #[test]
    fn durable_means_that_the_head_covers_it() {
        let directory = tempfile::tempdir().unwrap();
        let (recorder, _) = open(directory.path());
        let covered = || Head::read(directory.path()).unwrap().unwrap().unwrap().records;
        append(&recorder, 0, Class::Full);
        let must = append(&recorder, 1, Class::Must);
        recorder.wait_durable(must.id.seq).unwrap();
        assert_eq!(covered(), 2);
        // A full one that somebody waits for after all.
        let full = append(&recorder, 2, Class::Full);
        block_on(recorder.durable(full.id.seq)).unwrap();
        assert_eq!(covered(), 3);
        block_on(recorder.durable(0)).unwrap();
        append(&recorder, 3, Class::Full);
        assert_eq!(covered(), 3);
        drop(recorder);
        assert_eq!(covered(), 4);
    }

    /// An auditor verifies while records are written: the head in the middle of a write is no damage.
    #[test]
    fn a_head_that_is_being_written_is_no_damage() {
        let directory = tempfile::tempdir().unwrap();
        let options = Options {
            flush_after: Duration::ZERO,
            ..SMALL
        };
        let (recorder, _) = Recorder::open(directory.path(), "ledger", options).unwrap();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for n in 0..300 {
                    append(&recorder, n, Class::Full);
                }
            });
            while !writer.is_finished() {
                assert!(Head::read(directory.path()).unwrap().unwrap().is_ok());
            }
        });
    }

    #[test]
    fn full_records_are_flushed_in_time() {
        let directory = tempfile::tempdir().unwrap();
        let options = Options {
            flush_after: Duration::from_millis(1),
            ..SMALL
        };
        let (recorder, _) = Recorder::open(directory.path(), "ledger", options).unwrap();
        append(&recorder, 0, Class::Full);
        while Head::read(directory.path()).unwrap().unwrap().unwrap().records == 0 {
            std::thread::yield_now();
        }
    }

    #[test]
    fn waiting_for_what_was_never_written_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let (recorder, _) = open(directory.path());
        assert!(matches!(recorder.wait_durable(0), Err(RecorderError::NotAppended(0))));
        assert!(matches!(
            block_on(recorder.durable(7)),
            Err(RecorderError::NotAppended(7))
        ));
    }

    #[test]
    fn many_writers_share_one_order() {
        let directory = tempfile::tempdir().unwrap();
        let (recorder, _) = open(directory.path());
        std::thread::scope(|scope| {
            for writer in 0..8 {
                let recorder = &recorder;
                scope.spawn(move || {
                    for n in 0..25 {
                        let class = if n % 5 == 0 { Class::Must } else { Class::Full };
                        let seq = append(recorder, writer * 100 + n, class).id.seq;
                        if class == Class::Must && writer % 2 == 0 {
                            recorder.wait_durable(seq).unwrap();
                        } else if class == Class::Must {
                            block_on(recorder.durable(seq)).unwrap();
                        }
                    }
                });
            }
        });
        drop(recorder);
        let (records, errors) = read(directory.path());
        assert!(records.iter().map(|record| record.id.seq).eq(0..200));
        let paths: std::collections::BTreeSet<_> = records.iter().map(|record| record.path.clone()).collect();
        assert_eq!((errors, paths.len(), findings(directory.path())), (0, 200, 0));
    }

    #[test]
    fn a_future_that_is_dropped_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        let (recorder, _) = open(directory.path());
        let seq = append(&recorder, 0, Class::Full).id.seq;
        let mut future = Box::pin(recorder.durable(seq));
        let _ = future.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        drop(future);
        assert!(recorder.owner.shared.lock().waiting.is_empty());
        recorder.wait_durable(seq).unwrap();
    }

    #[test]
    fn a_record_too_large_is_refused_alone() {
        let directory = tempfile::tempdir().unwrap();
        let (recorder, _) = open(directory.path());
        let mut large = record(0);
        large.reason = Some("x".repeat(PAYLOAD_BYTES_MAX));
        assert!(matches!(
            recorder.append(&mut large, Class::Must),
            Err(RecorderError::TooLarge(_))
        ));
        assert_eq!(append(&recorder, 1, Class::Must).id.seq, 0);
    }

    #[test]
    fn after_a_failure_every_append_fails() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("log");
        let (recorder, _) = open(&directory);
        let mut kept = Vec::new();
        // The next segment cannot be begun.
        let moved = parent.path().join("moved");
        std::fs::rename(&directory, &moved).unwrap();
        let error = loop {
            let mut record = record(kept.len() as u64);
            match recorder.append(&mut record, Class::Full) {
                Ok(_) => kept.push(record),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, RecorderError::Io { .. }), "{error}");
        assert!(error.to_string().contains(&directory.display().to_string()), "{error}");
        std::fs::rename(&moved, &directory).unwrap();
        for class in [Class::Full, Class::Must] {
            assert!(recorder.append(&mut record(0), class).is_err());
        }
        assert!(recorder.wait_durable(kept.len() as u64).is_err());
        drop(recorder);
        assert_eq!(read(&directory), (kept, 0));
        assert_eq!(findings(&directory), 0);
    }

    #[test]
    fn a_failure_is_told_to_who_waits_for_one() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("log");
        let (recorder, _) = open(&directory);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| block_on(recorder.failed()));
            let seq = append(&recorder, 0, Class::Must).id.seq;
            recorder.wait_durable(seq).unwrap();
            assert!(!waiting.is_finished(), "nothing has failed");
            std::fs::rename(&directory, parent.path().join("moved")).unwrap();
            let error = loop {
                if let Err(error) = recorder.append(&mut record(1), Class::Full) {
                    break error;
                }
            };
            assert_eq!(waiting.join().unwrap().to_string(), error.to_string());
        });
        // Who asks afterwards is told too, and who stops waiting leaves nothing behind.
        let _ = block_on(recorder.failed());
        assert!(recorder.owner.shared.lock().waiting.is_empty());
    }

    struct Unpark(Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    /// The smallest runtime.
    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        let mut future = std::pin::pin!(future);
        loop {
            match future.as_mut().poll(&mut Context::from_waker(&waker)) {
                Poll::Ready(value) => return value,
                Poll::Pending => std::thread::park(),
            }
        }
    }
}
