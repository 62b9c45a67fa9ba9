//! Whole worlds for tests: a trust domain in one process, services behind it, callers of every kind, foreign judges.
//!
//! A test is three lines from a mesh with real sockets:
//!
//! ```no_run
//! # use hoplite_tests::{HttpApp, World};
//! # async fn test() {
//! let world = World::start().await;
//! let app = HttpApp::start().await;
//! let orders = world.proxy("orders").http("orders", &app).start().await;
//! # }
//! ```
//!
//! All proxies of a world run in the test's own process, so the agent attests them as that process: each picks its
//! identity by name among those the process is entitled to. Processes of their own are told apart by what they run.

#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking, its helpers too"
)]

mod app;
mod client;
pub mod frames;
mod load;
pub mod peers;
pub mod rpc;
mod world;

use std::time::{Duration, Instant};

pub use app::{HttpApp, TcpApp};
pub use client::{Answer, CallError, PlainClient, TestClient, exchange, get};
pub use load::{Load, Tally};
pub use world::{Proxy, ProxyBuilder, TRUST_DOMAIN, World, id, own_selectors, policy_key};

/// Nothing that works takes longer, on a machine with other work to do.
const PATIENCE: Duration = Duration::from_secs(30);

/// Tries until there is a value.
///
/// # Panics
/// When there is none after 30 s; `what` says what was waited for.
pub async fn until<T>(what: &str, mut attempt: impl AsyncFnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = attempt().await {
            return value;
        }
        assert!(started.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain: {what}");
        // The wall clock: a test may have stopped the runtime's.
        tokio::task::spawn_blocking(|| std::thread::sleep(Duration::from_millis(20)))
            .await
            .unwrap();
    }
}
