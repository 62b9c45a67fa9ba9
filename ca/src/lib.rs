//! The trust domain's signer: authority, registration, node attestation, issuance.
//!
//! The core is pure: `issuance` makes a certificate of values, `index` says what an agent is entitled to, `entry`,
//! `agent` and `join` decide, as does `policy` about what is published. `registry` keeps their decisions in the store and reads from memory;
//! `library` keeps the published bundles. The shell is two
//! gRPC services: `node` for agents over TLS, `admin` for operators on a Unix socket. `server` puts them together.

mod admin;
mod agent;
mod authority;
mod config;
mod entry;
mod index;
mod issuance;
mod join;
mod library;
mod limit;
mod listener;
mod node;
mod policy;
mod publishing;
mod record;
mod registry;
mod server;
mod signer;

pub use authority::AuthorityError;
pub use config::Config;
pub use server::{Running, StartError, start};
