//! What someone may do: the canonical request, the policy snapshot and the decision.
//!
//! A decision is a pure function of a snapshot and a request. Nothing in this crate reads a file, a clock or a socket.
//! Deny is a value: a missing or broken policy is a [`Snapshot`] that denies and says why. A [`Permit`] can be made
//! only from a decision that allows, and what forwards a request takes one by value.

mod ambiguous;
mod anatomy;
mod ask;
pub mod bundle;
mod calendar;
mod canonical;
mod cedar;
mod counters;
mod dead;
mod decide;
mod evaluate;
mod fault;
pub mod grant;
pub mod header_nature;
mod headers;
pub mod holding;
mod ids;
mod index;
mod modules;
mod parse;
#[cfg(test)]
mod people;
mod request;
mod routes;
pub mod rules;
mod schema;
mod snapshot;
mod source;
mod statement;
mod undecidable;
mod unseen;
mod values;

pub use ambiguous::Ambiguous;
pub use ask::{Ask, Asked, WhatIf, WhatIfGiven};
pub use canonical::{CanonicalRequest, canonical_method};
pub use counters::PolicyCounts;
pub use decide::{Decision, Denied, Permit, Verdict, decide, decide_by_reference};
pub use evaluate::CallFacts;
pub use fault::Fault;
pub use headers::SelectedHeaders;
pub use request::{AuthzRequest, Caller, Transport};
pub use routes::{BadTemplate, Route, RoutePattern, RouteTable};
pub use schema::schema;
pub use snapshot::Snapshot;
pub use source::Source;
pub use undecidable::Undecidable;

/// The names of the files that are no policies, and of the folder that is nobody's module.
pub mod files {
    pub use crate::source::{BREAK_GLASS_MODULE, HEADERS_FILE, MODULES_FILE, ROUTES_FILE};
}

/// How long, how many and how deep: the bounds of what policies and requests may be.
pub mod limits {
    pub use crate::ambiguous::HEADER_VALUE_BYTES_MAX;
    pub use crate::canonical::{HOST_BYTES_MAX, METHOD_BYTES_MAX, PATH_BYTES_MAX, QUERY_BYTES_MAX, SEGMENTS_MAX};
    pub use crate::headers::SELECTED_HEADERS_MAX;
    pub use crate::ids::ID_BYTES_MAX;
    pub use crate::parse::{CHAIN_MAX, NESTING_MAX, POLICY_BYTES_MAX};
    pub use crate::request::PATH_GROUPS_MAX;
    pub use crate::routes::ROUTES_PER_SERVICE_MAX;
    pub use crate::source::{FILE_NAME_BYTES_MAX, TOTAL_BYTES_MAX};
}

/// How the text of policies is read: for those who check it, lay it out and show it. A decision needs nothing of this.
pub mod text {
    pub use crate::anatomy::{Anatomy, Span};
    pub use crate::canonical::CanonicalPath;
    pub use crate::cedar::annotation;
    pub use crate::fault::{FAULTS_MAX, Text, enough};
    pub use crate::modules::{Modules, NoTeam, SECURITY_OWNER, Team};
    pub use crate::parse::{COMPILE_STACK_BYTES, diagnosed, on_stack, parse};
    pub use crate::routes::WrittenParameter;
    pub use crate::schema::{BadSchema, SCHEMA, VOCABULARY, Vocabulary, validator};
    pub use crate::statement::{Statement, statements, token_length};
    pub use crate::unseen::hides;
}
