//! The machine beneath: private files, Unix sockets with peer credentials, configuration files, process hardening.
//!
//! What the daemons share of the operating system, each thing in one place, so that a permission or an error text is
//! decided once.

#![cfg_attr(test, expect(clippy::disallowed_methods, reason = "a test's now is its own"))]

pub mod accept;
pub mod backoff;
pub mod bucket;
pub mod clock;
pub mod config;
pub mod credentials;
pub mod daemon;
pub mod files;
pub mod give;
pub mod hand;
pub mod held;
mod hpack;
pub mod http_authority;
pub mod liveness;
pub mod local_connection;
pub mod logging;
pub mod manager;
pub mod peer_process;
pub mod places;
pub mod process;
pub mod program;
pub mod refusals;
pub mod reload;
pub mod shutdown;
pub mod slots;
pub mod socket;
pub mod tell;
pub mod undo;
