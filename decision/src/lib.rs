//! The decision point: which policy is in force, what it decides, and the record of it.
//!
//! The proxy and the agent's authorization services both decide here, so that one request gets one answer, one record
//! and one kind of decision id, whoever enforces it. Policy comes from a directory or in signed bundles
//! ([`PolicyFeed`]); a [`Question`] goes to the [`DecisionPoint`], and a `Permit` comes back or does not.

mod answer;
mod current;
mod directory;
mod follow;
mod keeper;
mod metrics;
mod point;
mod policy_files;
mod reference;
mod settings;
mod strangers;
mod trace;

pub use answer::{DECISION_HEADER, refusal};
pub use current::{BundleTrust, InForce, PolicyFeed, PolicyStatus};
pub use directory::Follower;
pub use follow::follow_bundles;
pub use metrics::{Family, Metrics};
pub use point::{DecisionPoint, Fields, Question, Refusal};
pub use policy_files::read_policies;
pub use settings::{OnStale, reference_every};
pub use trace::trace_id;
