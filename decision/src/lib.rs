//! The decision point: which policy is in force, what it decides, and the record of it.
//!
//! The proxy and the agent's authorization services both decide here, so that one request gets one answer, one record
//! and one kind of decision id, whoever enforces it. Policy comes from a directory or in signed bundles
//! ([`CurrentPolicy`]). What is known of a call is a [`Draft`] of its record; policy makes it [`Judged`]; only once that is
//! recorded is there something [`Granted`], and with it the request to forward.

#![cfg_attr(test, expect(clippy::disallowed_methods, reason = "a test's now is its own"))]

mod answer;
mod current;
mod directory;
mod draft;
mod files_error;
mod follow;
mod granted;
mod keeper;
mod listing;
mod log;
mod metrics;
mod point;
mod policy_files;
mod reference;
pub mod reporting;
mod roll_up;
mod settings;
mod shown;
mod signers;
mod trace;

pub use answer::{DECISION_HEADER, refusal};
pub use current::{CurrentPolicy, DirectoryUnusable, InForce, NotInForce, PolicyStatus, Unusable};
pub use directory::Follower;
pub use draft::{Asked, Draft, Facts, HeaderFields, HttpRequest, NoFields, Opaque, Stranger, Unasked, Witness};
pub use files_error::FilesError;
pub use follow::follow_bundles;
pub use granted::{Granted, Judged, Refused, Renewed, Why, Withdrawn};
pub use keeper::Keeper;
pub use listing::Named;
pub use log::LOG_NOTE;
pub use metrics::{Metrics, Tally, Totals};
pub use point::DecisionPoint;
pub use policy_files::{PolicyFiles, check_hand, read_policies};
pub use settings::{OnStale, reference_every};
pub use signers::{Signers, SignersDoubt, SignersRefused};
pub use trace::trace_id;
