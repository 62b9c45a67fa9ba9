//! The trust domain's signer: authority, registration, node attestation, issuance.
//!
//! Each noun has a folder: `agents`, `operators`, `tokens`, `entries`, `authority`, `policy`. There stands what the store keeps of it,
//! which writes there are and what they decide, and its part of the `index` from which agents are answered. A `write`
//! reads, decides and commits; the `registry` does that on the store and follows it. `issuer` alone makes certificates,
//! by `issuance`, and `rotation` has authorities take their turns; `nested` is what is kept of CAs under this one, `nesting` how this one is under another; `oidc` shows who verifies by OpenID Connect the keys for JWT-SVIDs. `fleet` keeps what agents report. Outside are two gRPC services in `api`, `node` for agents over TLS and `admin` for
//! operators on a Unix socket and over TLS, behind a gate that asks `rights`; `acts` is the log of what is done; `server` puts all of it together.

#![cfg_attr(test, expect(clippy::disallowed_methods, reason = "a test's now is its own"))]

mod acts;
mod agents;
mod api;
mod attestors;
mod authority;
pub mod backup;
mod config;
mod door;
mod entries;
mod epoch;
mod federation;
mod fleet;
mod found;
mod founding;
mod health;
mod index;
mod issuance;
mod issuer;
mod limit;
mod listener;
mod metrics;
mod nested;
mod nesting;
mod oidc;
mod operators;
mod policy;
mod publishing;
mod record;
mod registry;
mod rights;
mod rotation;
mod server;
mod storage;
mod tokens;
mod wakes;
mod web;
mod write;

pub use acts::{ActsError, Unwritten};
pub use attestors::AttestorSettings;
pub use attestors::k8s::K8sSettings;
pub use attestors::oidc::OidcNodeSettings;
pub use attestors::tpm::TpmSettings;
pub use attestors::x509pop::X509popSettings;
pub use authority::course::CourseError;
pub use authority::link::{HopliteUpstream, LinkError};
pub use authority::sealing::SealingError;
pub use authority::signer::SignerError;
pub use authority::taking::TrustError;
pub use authority::upstream::{DiskUpstream, UpstreamError};
pub use authority::x509::AuthorityError;
pub use config::{Config, FileKeys, KeysConfig, StoreConfig, StoreKeys, UpstreamConfig};
pub use door::DoorError;
pub use federation::endpoint::BundleEndpointError;
pub use federation::settings::{BundleEndpointSettings, FederationSettings};
pub use federation::web::WebAuthoritiesError;
pub use found::{Founded, found, found_replica};
pub use founding::{Founding, FoundingError};
pub use issuance::MintError;
pub use oidc::{IssuerUrl, OidcError, OidcSettings};
pub use record::BadRecord;
pub use registry::FollowError;
pub use rights::check_admin_policies;
pub use rights::files::RightsError;
pub use server::{Arguments, Running, StartError, run, start, start_founding};
pub use web::WebError;
pub use write::{ReadError, WriteError};
