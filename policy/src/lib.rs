//! What someone may do: the canonical request, the policy snapshot and the decision.
//!
//! A decision is a pure function of a snapshot and a request. Nothing in this crate reads a file, a clock or a socket.
//! Deny is a value: a missing or broken policy is a [`Snapshot`] that denies and says why. A [`Permit`] can be made
//! only from a decision that allows, and what forwards a request takes one by value.

mod anatomy;
mod ask;
pub mod authzen;
mod bundle;
mod canonical;
mod cases;
mod cedar;
mod counters;
mod decide;
mod evaluate;
mod explain;
mod fault;
mod format;
mod grant;
mod headers;
mod ids;
mod index;
mod lint;
mod lookalike;
mod modules;
mod openapi;
#[cfg(test)]
mod people;
mod possible;
mod request;
mod routes;
mod schema;
mod snapshot;
mod statement;
mod unseen;
mod view;
mod yaml;

pub use ask::{Ask, Asked, WhatIf};
pub use bundle::{
    Acceptance, Bundle, BundleContents, CRITICAL_HEADERS, CRITICAL_SHADOW, Draft, EngineVersion, KNOWN_CRITICAL,
    MAX_BUNDLE_BYTES, MAX_FILE_NAME_BYTES, MAX_NOTE_BYTES, Manifest, ManifestFile, Meta, Refused, Seen, Stage,
    Unbuildable,
};
pub use canonical::{
    Ambiguous, CanonicalRequest, MAX_HOST_BYTES, MAX_METHOD_BYTES, MAX_PATH_BYTES, MAX_QUERY_BYTES, MAX_SEGMENTS,
    OVERRIDE_HEADERS,
};
pub use cases::{CaseResult, CaseTable, MAX_TABLE_BYTES};
pub use counters::PolicyCounts;
pub use decide::{Decision, Denied, Permit, Verdict, decide, decide_by_reference};
pub use explain::{Candidate, Explanation, Finding, MAX_NEAR_MISSES, Miss, NearMiss, Unmet};
pub use fault::Fault;
pub use format::format;
pub use grant::{GRANT_IDS, Grant, GrantDraft, GrantRefused, GrantScope, MAX_GRANT, MAX_GRANT_BYTES};
pub use headers::{HEADERS_FILE, MAX_HEADER_VALUE_BYTES, MAX_SELECTED_HEADERS, SelectedHeaders};
pub use ids::MAX_ID_BYTES;
pub use lint::lint;
pub use modules::{BREAK_GLASS_MODULE, MODULES_FILE, SECURITY_OWNER};
pub use openapi::{ImportedRoutes, routes_from_openapi};
pub use possible::{Deed, Depends, Possible};
pub use request::{AuthzRequest, Caller, MAX_PATH_GROUPS, Transport};
pub use routes::{MAX_ROUTES_PER_SERVICE, ROUTES_FILE, Route, RouteTable};
pub use schema::{SCHEMA, schema};
pub use snapshot::{MAX_CHAIN, MAX_NESTING, MAX_POLICY_BYTES, MAX_TOTAL_BYTES, Snapshot, Source};
pub use view::{Effect, Place, Places, PolicyView};
