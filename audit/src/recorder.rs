//! The writer: appends records of any kind, chains them and makes them durable.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{DirBuilder, File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::error::{RecorderError, io_error, private};
use crate::fields::to_micros;
use crate::id::{BootId, DecisionId, is_recorder_name};
use crate::kind::{self, Kind, Recordable};
use crate::last_boot::LastBoot;
use crate::mend::{Mended, Repair, mend};
use crate::presence::{Disturbed, Place, check_length};
use crate::segment::{
    Before, Frame, HEADER_BYTES, Hash, Head, Header, PAYLOAD_BYTES_MAX, SEGMENT_BYTES_MAX, SegmentName, Span,
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

/// How far a recorder is, since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Records written.
    pub written: u64,
    /// Of these, those that are on the disk.
    pub durable: u64,
    /// Bytes written, frames and headers of segments.
    pub bytes: u64,
    /// Those who wait until their record is on the disk.
    pub waiting: usize,
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
    /// Where the files are that stay as long as this boot.
    kept: [Place; 2],
    state: Mutex<State>,
    /// There is something to flush, or the end has come.
    work: Condvar,
    /// More is durable, or a write failed.
    settled: Condvar,
}

struct State {
    segment: SegmentName,
    file: Arc<File>,
    /// Where the segment's file is.
    at: Place,
    /// Where the segment ends.
    end: u64,
    /// From when to when its records are.
    span: Span,
    /// The last link.
    hash: Hash,
    /// Records of this boot that are written; the next one's sequence number.
    written: u64,
    /// Bytes of this boot that are written.
    bytes: u64,
    /// Records of this boot that are durable.
    durable: u64,
    /// Records of this boot that somebody waits for.
    wanted: u64,
    /// When the oldest record that is not durable was written.
    dirty_since: Option<Instant>,
    /// When it is to be looked next whether the files are still there.
    look_at: Instant,
    waiting: BTreeMap<u64, Waiting>,
    next_waiting: u64,
    failed: Option<RecorderError>,
    closing: bool,
}

struct Waiting {
    seq: u64,
    waker: Waker,
}

/// How often it is looked whether the files are still where they were opened, busy or not: well within a second, and
/// nothing beside a flush. Until then ids may have been given out for records that are gone.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// … and after how many records the time is asked for it by those who write.
const LOOK_RECORDS: u64 = 1_024;

/// A sequence number that no record gets: who waits for it hears of a failure only.
const NEVER: u64 = u64::MAX;

/// Waits until a record is on the disk. May be dropped at any time.
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
        Self::open_as(directory, name, options, boot, None)
    }

    /// As [`Recorder::open`], for a log that must not be begun anew unnoticed: the file `note`, outside of `directory`,
    /// says which boot of it was the last.
    ///
    /// # Errors
    /// As [`Recorder::open`], and [`RecorderError::Behind`]: the log is gone, or older than what was written there.
    pub fn open_noted(
        directory: &Path,
        name: &str,
        options: Options,
        note: &Path,
    ) -> Result<(Self, Repair), RecorderError> {
        let boot = BootId::random().ok_or(RecorderError::NoRandomness)?;
        Self::open_as(directory, name, options, boot, Some(note))
    }

    /// As [`Recorder::open`], with the name of the boot.
    pub(crate) fn open_as(
        directory: &Path,
        name: &str,
        options: Options,
        boot: BootId,
        note: Option<&Path>,
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
        if let Some(note) = note {
            LastBoot::check(note, directory, place, before.boot)?;
        }

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
        let (file, at) = create_segment(directory, &header).map_err(io("begin a segment"))?;
        let head = private()
            .create(true)
            .open(Head::path(directory))
            .map_err(io("open the head file"))?;
        let state = State {
            segment: header.name,
            file: Arc::new(file),
            at,
            end: HEADER_BYTES as u64,
            span: Span::EMPTY,
            hash: header.hash(),
            written: 0,
            bytes: 0,
            durable: 0,
            wanted: 0,
            dirty_since: None,
            look_at: moment() + LOOK_EVERY,
            waiting: BTreeMap::new(),
            next_waiting: 0,
            failed: None,
            closing: false,
        };
        write_head(&head, &state.head())
            .and_then(|()| head.sync_all())
            .map_err(io("write the head file"))?;
        if let Some(note) = note {
            let noted = LastBoot::new(directory, place, boot).write(note);
            noted.map_err(io("note its last boot elsewhere"))?;
        }
        let kept = [("lock", &lock), ("head", &head)].map(|(name, file)| Place::of(directory.join(name), file));
        let [lock_at, head_at] = kept;
        let kept = [
            lock_at.map_err(io("look at the lock file"))?,
            head_at.map_err(io("look at the head file"))?,
        ];
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            place,
            boot,
            directory: directory.to_owned(),
            options,
            head,
            _lock: lock,
            kept,
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
        // The flusher looks, but writers that never pause may keep the lock from it.
        if state.written.is_multiple_of(LOOK_RECORDS) && state.look_at <= moment() {
            shared.look(&mut state);
        }
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
        if let Err(failure) = shared.write(&mut state, R::KIND, &payload, to_micros(record.at())) {
            return Err(shared.fail(&mut state, failure));
        }
        if class == Class::Must {
            state.wanted = state.written;
        }
        let newly_dirty = state.dirty_since.is_none();
        if newly_dirty {
            state.dirty_since = Some(moment());
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

    /// Why nothing can be recorded any more, if it has come to that.
    #[must_use]
    pub fn failure(&self) -> Option<RecorderError> {
        self.owner.shared.lock().failed.clone()
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let state = self.owner.shared.lock();
        Progress {
            written: state.written,
            durable: state.durable,
            bytes: state.bytes,
            // Who waits for a failure waits for no record.
            waiting: state.waiting.values().filter(|waiting| waiting.seq != NEVER).count(),
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

    fn write(&self, state: &mut State, kind: Kind, payload: &[u8], at: i64) -> Result<(), RecorderError> {
        let (mut frame, mut hash) = Frame::encode(&state.hash, kind, payload);
        let max = self.options.segment_bytes_max.min(SEGMENT_BYTES_MAX);
        if state.end > HEADER_BYTES as u64 && state.end + frame.len() as u64 > max {
            // What is left now is looked at no more.
            self.undisturbed(state)?;
            self.rotate(state).map_err(|e| self.io("begin a segment", &e))?;
            (frame, hash) = Frame::encode(&state.hash, kind, payload);
        }
        if let Err(e) = (&*state.file).write_all(&frame) {
            // Whatever part of it got there is no record. When this fails too, opening finds a torn tail.
            let _ = state.file.set_len(state.end);
            return Err(self.io("write a record", &e));
        }
        state.end += frame.len() as u64;
        state.bytes += frame.len() as u64;
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
        let (file, at) = create_segment(&self.directory, &header)?;
        (state.file, state.at) = (Arc::new(file), at);
        state.segment = header.name;
        state.end = HEADER_BYTES as u64;
        state.bytes += HEADER_BYTES as u64;
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
            let until_look = state.look_at.saturating_duration_since(moment());
            if until_look.is_zero() {
                self.look(&mut state);
                continue;
            }
            let Some(since) = state.dirty_since else {
                if state.closing {
                    break;
                }
                state = self.wait(state, until_look);
                continue;
            };
            let left = self.options.flush_after.saturating_sub(since.elapsed());
            if state.wanted <= state.durable && !state.closing && !left.is_zero() {
                state = self.wait(state, left.min(until_look));
                continue;
            }
            let (file, head) = (Arc::clone(&state.file), state.head());
            state.dirty_since = None;
            drop(state);
            let flushed = file.sync_data();
            state = self.lock();
            if let Err(e) = flushed.and_then(|()| self.made_durable(&mut state, head)) {
                let failure = self.io("flush", &e);
                self.fail(&mut state, failure);
            }
        }
        // So that a clean end leaves a head that shows every record, also after a power cut.
        let _ = self.head.sync_all();
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, longest: Duration) -> MutexGuard<'a, State> {
        let waited = self.work.wait_timeout(state, longest);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Looks whether the files are still what this recorder opened and wrote, and fails if they are not.
    fn look(&self, state: &mut State) {
        state.look_at = moment() + LOOK_EVERY;
        if let Err(disturbed) = self.undisturbed(state) {
            self.fail(state, disturbed);
        }
    }

    fn undisturbed(&self, state: &State) -> Result<(), RecorderError> {
        // Under the lock nobody writes, so the length is exact.
        check_length(state.at.path(), &state.file, state.end)
            .and_then(|()| state.at.check())
            .and_then(|()| self.kept.iter().try_for_each(Place::check))
            .map_err(|Disturbed { file, problem }| RecorderError::Disturbed {
                directory: self.directory.display().to_string(),
                file,
                problem,
            })
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
    fn fail(&self, state: &mut State, failure: RecorderError) -> RecorderError {
        let first = state.failed.get_or_insert(failure).clone();
        self.settled.notify_all();
        self.work.notify_one();
        first
    }

    fn io(&self, action: &'static str, error: &io::Error) -> RecorderError {
        io_error(&self.directory, action, error)
    }
}

/// How long bytes have waited for the disk is measured where they wait: it is nobody's argument.
#[expect(clippy::disallowed_methods, reason = "no record and no name depends on it")]
fn moment() -> Instant {
    Instant::now()
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

/// On the disk, with its name, when it returns. It is only ever appended to: when somebody cuts it, it stays too short.
fn create_segment(directory: &Path, header: &Header) -> io::Result<(File, Place)> {
    let path = directory.join(header.name.file_name());
    let mut file = private().append(true).create_new(true).open(&path)?;
    file.write_all(&header.encode())?;
    file.sync_all()?;
    File::open(directory)?.sync_all()?;
    let place = Place::of(path, &file)?;
    Ok((file, place))
}

fn write_head(file: &File, head: &Head) -> io::Result<()> {
    file.write_all_at(&head.encode(), 0)
}

#[cfg(test)]
mod tests;
