//! How much there may be of what callers take, and for how long they may keep it: the table `[limits]`.

use std::time::Duration;

use hoplite_host::config::Span;
use serde::Deserialize;

/// Connections of one listener at a time, where the system gives as many descriptors.
const CONNECTIONS_MAX: usize = 10_000;

/// Enough for a thousand streams that stand still with all they may hold.
const UNREAD_BYTES_MAX: usize = 256 << 20;

/// Nothing moved for this long after one side has said its end: the other has most likely gone.
pub(crate) const HALF_CLOSED_IDLE_MAX: Duration = Duration::from_secs(300);

/// A peer's proxy has the same limits, and answers a little earlier than we would give up.
pub(crate) const AHEAD: Duration = Duration::from_secs(5);

/// The table. Of a length of time, nothing (`"0s"`) is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Connections of one listener that are worth keeping, at a time. There are fewer where the system gives fewer
    /// descriptors.
    pub connections_max: usize,
    /// Bytes that have come over HTTP/2 and that nobody has read, on all connections together, beyond the 64 KiB that each
    /// may always have.
    pub unread_bytes_max: usize,
    /// A request's body is waited for, and none of it comes for so long.
    pub request_body_idle: Span,
    /// A request is sent, and no answer begins for so long.
    pub response_head: Span,
    /// There is something to send of an answer, and who asked takes none of it for so long.
    pub response_write_idle: Span,
    /// Nothing of an answer that has begun, or of a gRPC call, moves for so long.
    pub stream_idle: Span,
    /// Nothing is asked on a connection for so long.
    pub connection_idle: Span,
    /// Nobody needs a connection of ours to a peer for so long.
    pub upstream_idle: Span,
    /// Nothing moves on a TCP connection for so long.
    pub tcp_idle: Span,
}

// === impl Limits ===

impl Default for Limits {
    fn default() -> Self {
        let minutes = |minutes: u64| Span(Duration::from_secs(60 * minutes));
        Self {
            connections_max: CONNECTIONS_MAX,
            unread_bytes_max: UNREAD_BYTES_MAX,
            request_body_idle: minutes(1),
            response_head: minutes(1),
            response_write_idle: minutes(1),
            stream_idle: minutes(0),
            connection_idle: minutes(60),
            upstream_idle: minutes(5),
            tcp_idle: minutes(60),
        }
    }
}

impl Limits {
    /// For those who ask other proxies, which answer first when it is they who have waited in vain.
    pub(crate) fn of_outbound(mut self) -> Self {
        if let Some(head) = limit(self.response_head) {
            self.response_head = Span(head + AHEAD);
        }
        self
    }
}

/// No time is no limit.
pub(crate) fn limit(span: Span) -> Option<Duration> {
    (!span.0.is_zero()).then_some(span.0)
}
