//! The enforcement point on every hop: mutual TLS, one Cedar decision, one record, then forward.
//!
//! [`run`] is the daemon, [`start`] the same inside a runtime that is already there. Nothing is accepted before an
//! identity is held, nothing is forwarded before a decision is recorded, and nothing stays open after trust has ended.

mod admin;
#[path = "http/answer.rs"]
mod answer;
#[path = "http/body.rs"]
mod body;
mod config;
#[path = "peer/destination.rs"]
mod destination;
#[path = "peer/dial.rs"]
mod dial;
mod error;
#[path = "http/exchange.rs"]
mod exchange;
#[path = "http/frames.rs"]
mod frames;
#[path = "peer/handshake.rs"]
mod handshake;
#[path = "http/hygiene.rs"]
mod headers;
#[path = "http/heads.rs"]
mod heads;
#[path = "peer/identity_feed.rs"]
mod identity_feed;
#[path = "http/inbound.rs"]
mod inbound;
mod listener;
mod metrics;
#[path = "http/outbound.rs"]
mod outbound;
#[path = "http/reading.rs"]
mod reading;
#[path = "http/unparsed.rs"]
mod refusals;
#[path = "tcp/relay.rs"]
mod relay;
mod running;
#[path = "http/service.rs"]
mod service;
#[path = "peer/session.rs"]
mod session;
mod tcp;
#[path = "http/upstream.rs"]
mod upstream;
mod worker;

pub use admin::{AdminError, admin_policies, admin_status};
pub use config::{Config, Inbound, InboundProtocol, Outbound, OutboundProtocol};
pub use error::StartError;
pub use running::{CannotRedirect, Running, run, start};
