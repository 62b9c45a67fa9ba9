//! The enforcement point on every hop: mutual TLS, one Cedar decision, one record, then forward.
//!
//! [`run`] is the daemon, [`start`] the same inside a runtime that is already there. Nothing is accepted before an
//! identity is held, nothing is forwarded before a decision is recorded, and nothing stays open after trust has ended.

mod admin;
mod answer;
mod body;
mod config;
mod destination;
mod dial;
mod error;
mod exchange;
mod frames;
mod handshake;
mod headers;
mod heads;
mod identity_feed;
mod inbound;
mod listener;
mod metrics;
mod outbound;
mod reading;
mod refusals;
mod relay;
mod running;
mod service;
mod session;
mod tcp;
mod upstream;
mod worker;

pub use admin::{AdminError, admin_policies, admin_status};
pub use config::{Config, Inbound, InboundProtocol, Outbound, OutboundProtocol};
pub use error::StartError;
pub use running::{CannotRedirect, Running, run, start};
