//! Whether a Workload API, a bundle endpoint, an SVID, a token or a bundle keeps SPIFFE's rules.
//!
//! It judges from outside: it knows nothing of an implementation but its socket, its URL or its files. Each clause of the
//! specifications has a name (`X-4b`), a sentence and a verdict; [`CLAUSES`] has them all.

#![cfg_attr(test, expect(clippy::disallowed_methods, reason = "a test's now is its own"))]

mod address;
mod bundle;
mod clause;
pub mod cli;
mod client;
mod der;
mod files;
mod findings;
mod https;
mod json;
mod messages;
mod path;
pub mod report;
mod spiffe_id;
mod token;
mod workload;
mod workload_jwt;
mod x509;

#[cfg(test)]
mod tests;

use std::time::SystemTime;

pub use clause::{CLAUSES, Clause, Id, Level, Needs};
pub use files::{InvalidFile, JwtFile, SvidFile, authorities_of};
pub use findings::{Findings, Outcome, Verdict};
pub use https::{Endpoint, Profile};
pub use report::Summary;
pub use workload::Limits;

/// What is to be judged.
#[derive(Debug, Default)]
pub struct Targets {
    /// A Workload API, as `SPIFFE_ENDPOINT_SOCKET` names one.
    pub socket: Option<String>,
    /// A bundle endpoint.
    pub endpoint: Option<Endpoint>,
    /// X.509-SVIDs of files.
    pub svids: Vec<SvidFile>,
    /// JWT-SVIDs of files.
    pub jwts: Vec<JwtFile>,
    /// Trust bundles: what each is called, and its JSON.
    pub bundles: Vec<(String, Vec<u8>)>,
    /// Bundle maps, likewise.
    pub maps: Vec<(String, Vec<u8>)>,
    /// Whose bundles those are, if anybody said.
    pub trust_domain: Option<String>,
}

/// Judges all of it by the clauses that one of the patterns names, by all if there is none.
pub async fn judge(targets: &Targets, only: &[String], limits: Limits, clock: fn() -> SystemTime) -> Findings {
    let mut findings = Findings::only(only);
    if let Some(socket) = &targets.socket
        && let Some((client, given)) = workload::judge(&mut findings, socket, limits, clock).await
    {
        workload_jwt::judge(&mut findings, &client, given.as_ref(), clock).await;
    }
    if let Some(endpoint) = &targets.endpoint {
        https::judge(&mut findings, endpoint, limits.patience, clock).await;
    }
    for (what, bytes) in &targets.bundles {
        bundle::judge(
            &mut findings,
            what,
            bytes,
            bundle::Set::Bundle,
            targets.trust_domain.as_deref(),
        );
    }
    for (what, bytes) in &targets.maps {
        bundle::judge_map(&mut findings, what, bytes);
    }
    for svid in &targets.svids {
        files::judge_svid(&mut findings, svid, clock());
    }
    for jwt in &targets.jwts {
        files::judge_jwt(&mut findings, jwt, clock());
    }
    findings
}
