//! The targets for libFuzzer. `policy/tests/fuzz.rs` runs the same functions without it.

mod targets;

pub use targets::{
    TARGETS, Target, bundle, certificate, csr, document, entries, entry, evaluation, foreign, grant, invitation, jwt, openapi, policies, request, routes, signers,
    table,
};
