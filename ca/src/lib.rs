//! The trust domain's signer: authority, registration, node attestation, issuance.
//!
//! The core is pure: `issuance` makes a certificate of values, `index` says what an agent is entitled to, `entries`,
//! `agents`, `tokens` and `policy` decide. `registry` keeps their decisions in the store and reads from memory;
//! `library` keeps the published bundles. The shell is two
//! gRPC services in `api`: `node` for agents over TLS, `admin` for operators on a Unix socket. `server` puts them together.

mod agents;
mod api;
mod authority;
mod config;
mod entries;
mod index;
mod issuance;
mod library;
mod limit;
mod listener;
mod policy;
mod publishing;
mod record;
mod registry;
mod server;
mod tokens;

pub use authority::x509::AuthorityError;
pub use config::Config;
pub use server::{Running, StartError, start};
