//! What happened: decision records in hash-chained segments, their query and their verification.
//!
//! One process writes one log directory. A record is chained to the one before it (across segments and boots), framed
//! with a checksum, and appended; it is durable when `durable` says so. No runtime, no async: readers and writers are
//! plain files and threads, so that an auditor's tool links nothing of ours but this.
//!
//! What the chain shows and what it does not: a record that was changed, removed or moved without rewriting everything
//! after it is found, and so is a cut end. Somebody who may write the directory and rewrites all of it, `head` too, is
//! not found by this crate alone; that takes a copy of a hash kept elsewhere.

mod query;
mod record;
mod recorder;
mod segment;
mod verify;

#[cfg(test)]
mod testing;

pub use query::{Query, ReadError, Tail, find_logs, read_log};
pub use record::{DecisionId, InvalidDecisionId, InvalidOutcome, Outcome, Phase, Record, is_recorder_name};
pub use recorder::{Appended, Class, Options, Recorder, RecorderError, Repair};
pub use verify::{Finding, Report, verify_log};
