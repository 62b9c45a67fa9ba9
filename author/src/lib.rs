//! What authors of policy need: lint, layout, test tables, explanations, replay, and the steps of a publication. And the form of the file in
//! which they write registration entries.
//!
//! What decides is in `hoplite-policy`; a node needs nothing of this. Nothing in this crate reads a file, a clock or a
//! socket: sources, records and the time are arguments. A question asked here opens nothing: all of them are
//! [`WhatIf`](hoplite_policy::WhatIf)s.

#![cfg_attr(test, expect(clippy::disallowed_methods, reason = "a test's now is its own"))]

mod cases;
mod conjunct;
pub mod difference;
mod entries;
mod explain;
mod format;
pub mod gap;
mod lint;
mod lookalike;
mod openapi;
mod possible;
pub mod publication;
mod registered;
pub mod replay;
mod report;
#[cfg(test)]
mod samples;
mod suggest;
mod view;
mod wider;
mod yaml;

pub use cases::{CaseResult, CaseTable, TABLE_BYTES_MAX};
pub use entries::{EntryFile, EntryText, Life};
pub use explain::{Candidate, Explanation, Finding, Miss, NEAR_MISSES_MAX, NearMiss, Unmet, explain};
pub use format::format;
pub use lint::lint;
pub use openapi::{ImportedRoutes, Selection, routes_from_openapi};
pub use possible::{Deed, Depends, Possible, about, possible, services};
pub use registered::{named_callers, names_of, unregistered};
pub use report::{TableReport, TestReport};
pub use suggest::{Advice, Denials, Suggestion};
pub use view::{Effect, Place, Places, PolicyView};
