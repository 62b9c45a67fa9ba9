//! When a connection has to go: nobody has asked anything on it for too long, or others need its place.

use std::time::Duration;

use hoplite_host::clock;
use hoplite_host::config::Span;
use hoplite_host::slots::Slot;
use tokio::time::{Instant, sleep, sleep_until};

use crate::limits::limit;

/// A peer that reads nothing cannot be told that its stream or its connection has ended. After this the connection does.
pub(crate) const LET_GO_MAX: Duration = Duration::from_millis(300);

/// Returns once nothing has been under way on a connection for so long.
pub(crate) async fn unused(slot: &Slot, idle_max: Span) {
    let Some(idle_max) = limit(idle_max) else {
        return std::future::pending().await;
    };
    loop {
        let idle = slot.idle_for().unwrap_or_default();
        match idle_max.checked_sub(idle) {
            Some(left) if !left.is_zero() => sleep(left).await,
            _ => return,
        }
    }
}

/// Why a connection leaves, and until when it may say so: what its peer does meanwhile gives it no more time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Leaving {
    reason: &'static str,
    until: Instant,
}

impl Leaving {
    /// From now on.
    pub(crate) fn for_reason(reason: &'static str) -> Self {
        Self {
            reason,
            until: Instant::from_std(clock::moment()) + LET_GO_MAX,
        }
    }
}

/// Returns the reason for which a connection leaves, if it does, when it has had time to say so.
pub(crate) async fn let_go(leaving: Option<Leaving>) -> &'static str {
    match leaving {
        Some(Leaving { reason, until }) => {
            sleep_until(until).await;
            reason
        }
        None => std::future::pending().await,
    }
}
