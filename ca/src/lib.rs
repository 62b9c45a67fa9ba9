//! The trust domain's signer: authority, registration, node attestation, issuance.
//!
//! The core is pure: [`issuance`] makes a certificate of values, [`index`] says what an agent is entitled to,
//! [`join`] and [`entry`] decide. [`registry`] keeps their decisions in the store, and reads from memory. The shell
//! is two gRPC services: [`node`] for agents over TLS, [`admin`] for operators on a Unix socket.

mod config;
mod server;

pub use config::Config;
pub use server::{Running, StartError, start};
