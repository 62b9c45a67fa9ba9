//! What someone may do: the canonical request, the policy snapshot and the decision.
//!
//! A decision is a pure function of a snapshot and a request. Nothing in this crate reads a file, a clock or a socket.
//! Deny is a value: a missing or broken policy is a [`Snapshot`] that denies and says why. A [`Permit`] can be made
//! only from a decision that allows, and what forwards a request takes one by value.

mod anatomy;
mod ask;
mod bundle;
mod canonical;
mod cedar;
mod counters;
mod decide;
mod evaluate;
mod fault;
mod grant;
mod header_nature;
mod headers;
mod ids;
mod index;
mod modules;
mod parse;
#[cfg(test)]
mod people;
mod request;
mod routes;
mod schema;
mod snapshot;
mod source;
mod statement;
mod unseen;

pub use ask::{Ask, Asked, WhatIf, WhatIfGiven};
pub use bundle::{
    Acceptance, Bundle, BundleContents, CRITICAL_HEADERS, CRITICAL_SHADOW, Draft, EngineVersion, KNOWN_CRITICAL,
    MAX_BUNDLE_BYTES, MAX_NOTE_BYTES, Manifest, ManifestFile, Meta, Refused, Seen, Stage, Unbuildable,
};
pub use canonical::{
    Ambiguous, CanonicalPath, CanonicalRequest, MAX_HOST_BYTES, MAX_METHOD_BYTES, MAX_PATH_BYTES, MAX_QUERY_BYTES,
    MAX_SEGMENTS, canonical_method,
};
pub use counters::PolicyCounts;
pub use decide::{Decision, Denied, Permit, Verdict, decide, decide_by_reference};
pub use evaluate::CallFacts;
pub use fault::Fault;
pub use grant::{GRANT_IDS, Grant, GrantDraft, GrantRefused, GrantScope, MAX_GRANT, MAX_GRANT_BYTES};
pub use header_nature::{HeaderNature, KNOWN_HEADERS, KnownHeader, Spelling};
pub use headers::{HEADER_VALUE_BYTES_MAX, SELECTED_HEADERS_MAX, SelectedHeaders};
pub use ids::MAX_ID_BYTES;
pub use modules::SECURITY_OWNER;
pub use request::{AuthzRequest, Caller, MAX_PATH_GROUPS, Transport};
pub use routes::{MAX_ROUTES_PER_SERVICE, Route, RouteTable};
pub use schema::{SCHEMA, schema};
pub use snapshot::Snapshot;
pub use source::{
    BREAK_GLASS_MODULE, FILE_NAME_BYTES_MAX, HEADERS_FILE, MODULES_FILE, ROUTES_FILE, Source, TOTAL_BYTES_MAX,
};

/// How the text of policies is read: for those who check it, lay it out and show it. A decision needs nothing of this.
pub mod text {
    pub use crate::anatomy::{Anatomy, Span};
    pub use crate::cedar::annotation;
    pub use crate::fault::{FAULTS_MAX, Text, enough};
    pub use crate::modules::{Modules, Team};
    pub use crate::parse::{CHAIN_MAX, COMPILE_STACK_BYTES, NESTING_MAX, POLICY_BYTES_MAX, diagnosed, on_stack, parse};
    pub use crate::routes::check_service_name;
    pub use crate::schema::{VOCABULARY, Vocabulary, validator};
    pub use crate::statement::{Statement, statements, token_length};
    pub use crate::unseen::hides;
}
