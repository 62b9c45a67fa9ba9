//! The writer: appends records, chains them, makes them durable, and repairs its own torn tail.

use std::path::Path;
use std::time::Duration;
use crate::{DecisionId, Record};

/// How much a record must have survived before the answer may go out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class { /// denies and errors: the caller waits for `durable`
    Must, /// allows: written at once (a killed process loses nothing), flushed to the disk within `Options::flush_after`
    Full }

#[derive(Debug, Clone)]
pub struct Options { pub segment_bytes_max: u64, pub flush_after: Duration /* 100 ms */ }

/// What opening found and mended.
#[derive(Debug, Clone)]
pub struct Repair { pub torn_bytes: u64, /// records the head file says were durable but that are gone
    pub missing: u64, pub segment: Option<std::path::PathBuf> }

#[derive(Debug, Clone)]
pub struct Appended { pub id: DecisionId, pub seq: u64 }

#[derive(Debug, Clone, thiserror::Error)]
pub enum RecorderError { #[error("{0}")] Other(String) }

/// One per process and directory (locked). Cheap to share; `append` is one short critical section and one `write`.
#[derive(Clone)]
pub struct Recorder { /* helper */ }
impl Recorder {
    /// `name` is `[a-z0-9.-]{1,64}`: it stands in every decision id.
    pub fn open(dir: &Path, name: &str, options: Options) -> Result<(Self, Repair), RecorderError> { todo!() }
    /// Gives the record its id and writes it. After an error every later append fails too: the caller fails closed.
    pub fn append(&self, record: &mut Record, class: Class) -> Result<Appended, RecorderError> { todo!() }
    /// Ready when the record is on the disk (group commit). A plain std future: works on any runtime.
    pub async fn durable(&self, seq: u64) -> Result<(), RecorderError> { todo!() }
    /// The same, blocking.
    pub fn wait_durable(&self, seq: u64) -> Result<(), RecorderError> { todo!() }
    pub fn name(&self) -> &str { todo!() }
}
impl Default for Options { fn default() -> Self { Self { segment_bytes_max: 64 << 20, flush_after: Duration::from_millis(100) } } }
