//! The enforcement point on every hop: mutual TLS, one Cedar decision, one record, then forward.
//!
//! [`run`] is the daemon, [`start`] the same inside a runtime that is already there. Nothing is accepted before an
//! identity is held, nothing is forwarded before a decision is recorded, and nothing stays open after trust has ended.

mod admin;
mod config;
mod error;
mod forward;
mod http;
mod limits;
mod listener;
mod listening;
mod metrics;
mod peer;
mod port;
mod reload;
mod report;
mod running;
mod share;
mod shown;
mod tcp;
mod worker;

pub use admin::{AdminError, admin_policies, admin_status};
pub use config::{Config, Inbound, InboundProtocol, Outbound, OutboundProtocol, USELESS_FRAMES_MAX, UpstreamName};
pub use error::StartError;
pub use limits::Limits;
pub use running::{CannotRedirect, Running, run, start};
