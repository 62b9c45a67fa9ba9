//! A request and its answer on their way: when each last moved, and which limit has ended it.
//!
//! Silence alone ends nothing that moves as it should. A call of gRPC, and an answer that has begun, may be silent for as
//! long as they like: whether the other side is still there is asked by HTTP/2's PING. What is limited is waiting: for a body that
//! was announced, for an answer's beginning, for a reader. A call of gRPC that has named its end ends by that.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::Context;
use std::time::Duration;

use hoplite_audit::Outcome;
use hoplite_decision::{Tally, Unasked};
use hoplite_host::config::Span;
use hoplite_host::slots::Busy;
use hoplite_otlp::{Hop, Span as TraceSpan};
use hoplite_telemetry::Histogram;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, StatusCode};
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::http::exchange::Exchange;
use crate::limits::{AHEAD, Limits, limit};
use crate::metrics::{Counted, Metrics};

/// Transfers of one connection that were cut off and wait to be recorded.
pub(crate) const CUTS_WAITING_MAX: usize = 64;

const GRPC_TIMEOUT: &str = "grpc-timeout";

/// One request and its answer. As long as either is under way its connection is not idle.
#[derive(Debug)]
pub(crate) struct Transfer {
    limits: Limits,
    /// Its ends decide by themselves how long they are silent.
    streaming: bool,
    /// When its caller has given it up, by its own word.
    deadline: Option<Instant>,
    began: Instant,
    /// Nanoseconds since `began`.
    moved: AtomicU64,
    /// The request's body is waited for.
    wanting: AtomicBool,
    answered: AtomicBool,
    late: OnceLock<Late>,
    exchange: OnceLock<Arc<Exchange>>,
    cuts: Option<mpsc::Sender<Cut>>,
    tally: OnceLock<Tally>,
    /// How long calls of the own service take, where it is one.
    calls: Option<Histogram>,
    /// Of one that is traced.
    hop: Option<Box<Mutex<Hop>>>,
    metrics: Arc<Metrics>,
    _counted: Counted,
    _busy: Busy,
}

/// Whose request it is.
pub(crate) enum Way {
    /// A peer's. Whoever records hears of what was cut off.
    In(mpsc::Sender<Cut>),
    /// The own service's: how long it takes is counted here.
    Out(Histogram),
}

/// Which limit has ended it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Late {
    RequestBody,
    ResponseHead,
    ResponseWrite,
    Stream,
    Deadline,
}

/// One that was cut off when no head could be sent any more: it is recorded all the same.
#[derive(Debug)]
pub(crate) struct Cut {
    pub(crate) late: Late,
    pub(crate) exchange: Arc<Exchange>,
}

/// What a body breaks off with.
#[derive(Debug, thiserror::Error)]
#[error("nothing of it has come for too long")]
pub(crate) struct TooLate(#[source] h2::Error);

/// When to look again whether anything has moved.
#[derive(Debug, Default)]
pub(crate) struct Due(Option<Pin<Box<Sleep>>>);

// === impl Transfer ===

impl Transfer {
    /// Of a request with this head.
    pub(crate) fn new(
        head: &HeaderMap,
        limits: Limits,
        busy: Busy,
        metrics: Arc<Metrics>,
        direction: Way,
        hop: Option<Hop>,
    ) -> Arc<Self> {
        let (cuts, calls) = match direction {
            Way::In(cuts) => (Some(cuts), None),
            Way::Out(calls) => (None, Some(calls)),
        };
        let kind = head.get(CONTENT_TYPE).map(|kind| kind.as_bytes());
        let streaming = kind.is_some_and(|kind| kind.starts_with(b"application/grpc"));
        let began = Instant::now();
        let timeout = head.get(GRPC_TIMEOUT).filter(|_| streaming).and_then(grpc_timeout);
        Arc::new(Self {
            limits,
            streaming,
            deadline: timeout.and_then(|timeout| began.checked_add(timeout + AHEAD)),
            began,
            moved: AtomicU64::new(0),
            wanting: AtomicBool::new(false),
            answered: AtomicBool::new(false),
            late: OnceLock::new(),
            exchange: OnceLock::new(),
            cuts,
            tally: OnceLock::new(),
            calls,
            hop: hop.map(|hop| Box::new(Mutex::new(hop))),
            _counted: metrics.request(),
            metrics,
            _busy: busy,
        })
    }

    /// What was granted, for the record.
    pub(crate) fn is_of(&self, exchange: &Arc<Exchange>) {
        let _ = self.exchange.set(exchange.clone());
    }

    /// Where it is counted, and how long it took, once it has ended.
    pub(crate) fn is_counted_in(&self, tally: Option<&Tally>) {
        if let Some(tally) = tally {
            let _ = self.tally.set(tally.clone());
        }
    }

    /// Says something of it, if it is traced.
    pub(crate) fn tell(&self, say: impl FnOnce(&mut TraceSpan)) {
        if let Some(hop) = &self.hop {
            hop.lock().unwrap_or_else(PoisonError::into_inner).tell(say);
        }
    }

    /// Something of it has moved.
    pub(crate) fn moves(&self) {
        let nanos = self.began.elapsed().as_nanos();
        self.moved.store(u64::try_from(nanos).unwrap_or(u64::MAX), Relaxed);
    }

    /// Its answer has begun.
    pub(crate) fn answers(&self) {
        self.answered.store(true, Relaxed);
        self.moves();
    }

    /// Whether its request's body was waited for in vain.
    pub(crate) fn is_late(&self) -> bool {
        self.late.get() == Some(&Late::RequestBody)
    }

    /// How long its reader may take none of it.
    pub(crate) fn write_idle(&self) -> Option<Duration> {
        limit(self.limits.response_write_idle)
    }

    /// Returns when no answer has begun for too long after the request was sent.
    pub(crate) async fn head_late(&self) -> Late {
        let (idle_max, late) = match self.streaming {
            true => (self.limits.stream_idle, Late::Stream),
            false => (self.limits.response_head, Late::ResponseHead),
        };
        loop {
            // As long as it is a body with a limit of its own that is waited for, this one stands still.
            let wanting = self.wanting.load(Relaxed) && !self.streaming;
            let since = if wanting { Instant::now() } else { self.moved_at() };
            let Some((due, late)) = self.due(idle_max, since, late) else {
                return std::future::pending().await;
            };
            if due <= Instant::now() {
                self.end(late);
                return late;
            }
            sleep_until(due).await;
        }
    }

    /// What ends it next, if nothing moves.
    fn due(&self, idle_max: Span, since: Instant, late: Late) -> Option<(Instant, Late)> {
        let idle = limit(idle_max).map(|idle_max| (since + idle_max, late));
        let deadline = self.deadline.map(|deadline| (deadline, Late::Deadline));
        [idle, deadline].into_iter().flatten().min_by_key(|(due, _)| *due)
    }

    /// It ends here, and nothing can be said of that to who asked.
    pub(crate) fn cut(&self, late: Late) {
        self.end(late);
        if let (Some(cuts), Some(exchange)) = (&self.cuts, self.exchange.get()) {
            let exchange = exchange.clone();
            // What finds no room is counted all the same.
            let _ = cuts.try_send(Cut { late, exchange });
        }
    }

    fn end(&self, late: Late) {
        if self.late.set(late).is_ok() {
            self.metrics.timed_out(late.name());
        }
    }

    fn moved_at(&self) -> Instant {
        self.began + Duration::from_nanos(self.moved.load(Relaxed))
    }

    /// Looks at what came of the request's body.
    pub(crate) fn requested(&self, due: &mut Due, moved: bool, context: &mut Context<'_>) -> Result<(), TooLate> {
        self.wanting.store(!moved, Relaxed);
        if moved {
            self.moves();
            due.clear();
            return Ok(());
        }
        let limit = limit(self.limits.request_body_idle).filter(|_| !self.streaming);
        // Since when it is waited for: bytes that wait for the service are not late.
        match limit {
            Some(limit) if due.is_over(limit, context) && !self.answered.load(Relaxed) => {
                self.end(Late::RequestBody);
                Err(TooLate(h2::Reason::CANCEL.into()))
            }
            _ => Ok(()),
        }
    }

    /// Looks at what came of the answer's body.
    pub(crate) fn responded(&self, due: &mut Due, moved: bool, context: &mut Context<'_>) -> Result<(), TooLate> {
        if moved {
            self.moves();
            return Ok(());
        }
        loop {
            // The request may have moved meanwhile.
            let Some((end, late)) = self.due(self.limits.stream_idle, self.moved_at(), Late::Stream) else {
                return Ok(());
            };
            let now = Instant::now();
            if end <= now {
                self.cut(late);
                return Err(TooLate(h2::Reason::CANCEL.into()));
            }
            if !due.is_over(end - now, context) {
                return Ok(());
            }
            due.clear();
        }
    }
}

/// How long a call may take, as its caller says it: up to eight digits and a unit. What says nothing is no limit.
fn grpc_timeout(value: &HeaderValue) -> Option<Duration> {
    let (digits, unit) = value.to_str().ok()?.split_at_checked(value.len().checked_sub(1)?)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count * 3_600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        if let Some(tally) = self.tally.get() {
            tally.observe(self.began.elapsed());
        }
        if let Some(calls) = &self.calls {
            calls.observe(self.began.elapsed());
        }
        let (late, answered) = (self.late.get(), self.answered.load(Relaxed));
        self.tell(|span| match late {
            Some(late) => span.failed(late.name()),
            // Who asked has gone before there was an answer.
            None if !answered => span.failed("cancelled"),
            None => {}
        });
    }
}

/// Returns when a transfer waits for its answer's beginning for too long.
pub(crate) async fn head_late(transfer: Option<&Arc<Transfer>>) -> Late {
    match transfer {
        Some(transfer) => transfer.head_late().await,
        None => std::future::pending().await,
    }
}

// === impl Late ===

impl Late {
    /// As the setting is called.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::RequestBody => "request_body_idle",
            Self::ResponseHead => "response_head",
            Self::ResponseWrite => "response_write_idle",
            Self::Stream => "stream_idle",
            Self::Deadline => "grpc_timeout",
        }
    }

    /// As who asked is told, where that can be, and as it is recorded.
    pub(crate) fn unasked(self) -> Unasked {
        let ours = |reason: &str| Unasked {
            status: StatusCode::GATEWAY_TIMEOUT,
            outcome: Outcome::Error,
            code: self.name(),
            reason: reason.to_owned(),
        };
        match self {
            Self::RequestBody => Unasked::malformed(self.name(), "the request's body stopped coming")
                .with_status(StatusCode::REQUEST_TIMEOUT),
            Self::ResponseHead => ours("no answer has begun within the time for it"),
            Self::ResponseWrite => ours("who asked has stopped reading the answer"),
            Self::Stream => ours("nothing has moved in either direction"),
            Self::Deadline => ours("the call's own `grpc-timeout` has passed"),
        }
    }
}

// === impl Due ===

impl Due {
    /// Whether so much time has passed since it was first asked.
    pub(crate) fn is_over(&mut self, limit: Duration, context: &mut Context<'_>) -> bool {
        let due = self
            .0
            .get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + limit)));
        due.as_mut().poll(context).is_ready()
    }

    /// Time begins anew with the next question.
    pub(crate) fn clear(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_says_how_long_it_may_take() {
        let check = |value: &'static str, expected: Option<u64>| {
            let read = grpc_timeout(&HeaderValue::from_static(value));
            assert_eq!(read, expected.map(Duration::from_micros), "{value}");
        };
        check("1S", Some(1_000_000));
        check("250m", Some(250_000));
        check("99999999u", Some(99_999_999));
        check("5000n", Some(5));
        check("2M", Some(120_000_000));
        check("1H", Some(3_600_000_000));
        for none in ["", "S", "1", "1s", "-1S", "+1S", "100000000S", "1 S", "1.5S"] {
            check(none, None);
        }
    }
}
