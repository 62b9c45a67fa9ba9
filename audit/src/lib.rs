//! What happened: decisions, and records of other kinds, in hash-chained segments; their query and their verification.
//!
//! One process writes one log directory. A record is chained to the one before it (across segments and boots), framed
//! with a checksum, and appended; it is durable when `durable` says so. No runtime, no async: readers and writers are
//! plain files and threads, so that an auditor's tool links nothing of ours but this.
//!
//! What the chain shows and what it does not: a record that was changed, removed or moved without rewriting everything
//! after it is found, and so is a cut end. Somebody who may write the directory and rewrites all of it, `head` too, is
//! not found by this crate alone; that takes a copy of a hash kept elsewhere.

#![cfg_attr(test, expect(clippy::disallowed_methods, reason = "a test's now is its own"))]

mod any_record;
mod error;
mod event;
mod fields;
mod id;
mod kind;
mod last_boot;
mod mend;
mod presence;
mod query;
mod record;
mod recorder;
mod segment;
mod verify;

#[cfg(test)]
mod testing;

pub use any_record::AnyRecord;
pub use error::RecorderError;
pub use event::{Control, Heartbeat, Issuance, Loss, Stage};
pub use id::{BootId, DecisionId, InvalidDecisionId, is_recorder_name};
pub use kind::{InvalidKind, Kind, Recordable};
pub use mend::Repair;
pub use query::{Decisions, Found, Query, ReadError, Records, Tail, find, find_logs, read_log, read_records};
pub use record::{InvalidOutcome, Outcome, Phase, Record};
pub use recorder::{Appended, Class, Options, Progress, Recorder};
pub use verify::{Finding, Report, verify_log};
