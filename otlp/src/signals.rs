//! The two things that are sent, each by a task of its own: spans as they end, metrics once an interval.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use hoplite_host::backoff::{Backoff, jitter};
use hoplite_host::clock;
use hoplite_host::shutdown::Shutdown;
use hoplite_telemetry::{Format, Site};
use hoplite_wire::otlp::collector::metrics::v1::metrics_service_client::MetricsServiceClient;
use hoplite_wire::otlp::collector::metrics::v1::{ExportMetricsServiceRequest, ResourceMetrics, ScopeMetrics};
use hoplite_wire::otlp::collector::trace::v1::trace_service_client::TraceServiceClient;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, sleep_until, timeout};
use tonic::transport::Channel;
use tonic::{Code, Status};
use tracing::{info, warn};

use crate::encoding::Origin;
use crate::reading::{self, Times};
use crate::sent::Sent;
use crate::span::{Span, cut_to};
use crate::tracer::Queue;

/// Spans in one message.
const BATCH_MAX: usize = 512;

/// How long the first span of a message waits for others.
const GATHERING: Duration = Duration::from_secs(1);

/// How soon it is tried again. A collector that comes back gets what waits within the longest.
const RETRY: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));

/// What of a collector's reason is said in the log.
const REASON_BYTES_MAX: usize = 500;

/// What a collector may answer: it has nothing to say but that some were not taken.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// What both have in common: who is told how it goes.
pub(crate) struct Signal {
    name: &'static str,
    endpoint: String,
    timeout: Duration,
    sent: Sent,
    stop: Shutdown,
    /// Whether the last attempt failed, which has been said then.
    failing: bool,
    /// Spans that were lost before that.
    lost: u64,
}

/// Spans.
pub(crate) struct Spans {
    client: TraceServiceClient<Channel>,
    signal: Signal,
    origin: Arc<Origin>,
    waiting: mpsc::Receiver<Span>,
    /// Whether it has been said that there are too many.
    said: Arc<AtomicBool>,
}

/// Metrics.
pub(crate) struct Metrics {
    client: MetricsServiceClient<Channel>,
    signal: Signal,
    origin: Arc<Origin>,
    site: Arc<Site>,
    began: SystemTime,
}

/// Why nothing was taken.
struct NotTaken {
    reason: String,
    /// It may be taken another time.
    again: bool,
}

// === impl Signal ===

impl Signal {
    pub(crate) fn new(name: &'static str, endpoint: String, timeout: Duration, sent: Sent, stop: Shutdown) -> Self {
        Self {
            name,
            endpoint,
            timeout,
            sent,
            stop,
            failing: false,
            lost: 0,
        }
    }

    /// Waits for the collector's answer, which is `(not taken, why)`, and says how it went when that changes.
    async fn answered<F>(&mut self, answer: F) -> Result<(u64, String), NotTaken>
    where
        F: Future<Output = Result<(u64, String), Status>>,
    {
        let answer = match timeout(self.timeout, answer).await {
            Ok(answer) => answer.map_err(|status| NotTaken::of(&status)),
            Err(_) => Err(NotTaken {
                reason: format!("no answer within {:?}", self.timeout),
                again: true,
            }),
        };
        match &answer {
            Ok((rejected, why)) => self.succeeded(*rejected, why),
            Err(NotTaken { reason, .. }) => self.failed(reason),
        }
        answer
    }

    fn succeeded(&mut self, rejected: u64, why: &str) {
        let Self { name, endpoint, .. } = self;
        if rejected > 0 {
            self.sent.exported(name, "partial");
            warn!(signal = name, %endpoint, rejected, why, "the collector did not take all");
        } else {
            self.sent.exported(name, "sent");
        }
        if std::mem::take(&mut self.failing) {
            let spans_lost = self.sent.lost() - self.lost;
            info!(signal = name, %endpoint, spans_lost, "the collector takes what it is sent again");
        }
    }

    fn failed(&mut self, reason: &str) {
        let Self { name, endpoint, .. } = self;
        self.sent.exported(name, "failed");
        if !std::mem::replace(&mut self.failing, true) {
            self.lost = self.sent.lost();
            warn!(
                signal = name, %endpoint, reason,
                "the collector takes nothing: it is tried again and again, requests go on, and spans that find no room are dropped and counted"
            );
        }
    }
}

// === impl Spans ===

impl Spans {
    pub(crate) fn new(channel: Channel, signal: Signal, origin: Arc<Origin>, queue: Queue) -> Self {
        Self {
            client: TraceServiceClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX),
            signal,
            origin,
            waiting: queue.spans,
            said: queue.said,
        }
    }

    /// Sends what ends until the stop, and then what is left.
    pub(crate) async fn send(mut self) {
        let mut batch = Vec::new();
        while self.gather(&mut batch).await {
            self.deliver(&mut batch).await;
        }
        // At the stop each is tried once.
        self.waiting.close();
        loop {
            while batch.len() < BATCH_MAX
                && let Ok(span) = self.waiting.try_recv()
            {
                batch.push(span);
            }
            if batch.is_empty() {
                return;
            }
            if self.attempt(&batch).await.is_err() {
                self.signal.sent.dropped((batch.len() + self.waiting.len()) as u64);
                return;
            }
            batch.clear();
        }
    }

    /// Waits until there is something to send. False at the stop.
    async fn gather(&mut self, batch: &mut Vec<Span>) -> bool {
        let mut until = None;
        while batch.len() < BATCH_MAX {
            let room = BATCH_MAX - batch.len();
            let gathered = async {
                match until {
                    Some(until) => sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.signal.stop.wait() => return false,
                got = self.waiting.recv_many(batch, room) => match got {
                    0 => return false,
                    _ => drop(until.get_or_insert(Instant::now() + GATHERING)),
                },
                () = gathered => break,
            }
        }
        true
    }

    /// Sends it, however long the collector is away. At the stop it is left as it is.
    async fn deliver(&mut self, batch: &mut Vec<Span>) {
        let mut retry = RETRY;
        loop {
            match self.attempt(batch).await {
                Ok(()) => break,
                Err(again) => {
                    let mut stop = self.signal.stop.clone();
                    tokio::select! {
                        () = stop.wait() => return,
                        () = sleep(retry.failed(jitter())) => {}
                    }
                    if !again {
                        self.signal.sent.dropped(batch.len() as u64);
                        break;
                    }
                }
            }
        }
        batch.clear();
    }

    /// Sends it once. Otherwise it is said whether another attempt may do better.
    async fn attempt(&mut self, batch: &[Span]) -> Result<(), bool> {
        let request = self.origin.spans(batch.to_vec());
        let answer = async {
            let answer = self.client.export(request).await?.into_inner();
            let partial = answer.partial_success.unwrap_or_default();
            Ok((
                u64::try_from(partial.rejected_spans).unwrap_or(0),
                partial.error_message,
            ))
        };
        let (rejected, _) = self.signal.answered(answer).await.map_err(|not| not.again)?;
        let spans = batch.len() as u64;
        let rejected = rejected.min(spans);
        self.signal.sent.delivered(spans - rejected);
        self.signal.sent.dropped(rejected);
        self.said.store(false, Relaxed);
        Ok(())
    }
}

// === impl Metrics ===

impl Metrics {
    pub(crate) fn new(channel: Channel, signal: Signal, origin: Arc<Origin>, site: Arc<Site>) -> Self {
        Self {
            client: MetricsServiceClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX),
            signal,
            origin,
            site,
            began: clock::now(),
        }
    }

    /// Sends what is shown until the stop, and then once more.
    pub(crate) async fn send(mut self, every: Duration) {
        // Not all daemons that start at once at once.
        let first = Instant::now() + every.mul_f64(jitter());
        let mut due = interval_at(first, every);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let stops = tokio::select! {
                () = self.signal.stop.wait() => true,
                _ = due.tick() => false,
            };
            self.attempt().await;
            if stops {
                return;
            }
        }
    }

    async fn attempt(&mut self) {
        let times = Times {
            began: self.began,
            now: clock::now(),
        };
        let metrics = ScopeMetrics {
            scope: self.origin.scope(),
            metrics: reading::read(&self.site.text(Format::OpenMetrics), times),
        };
        let request = ExportMetricsServiceRequest {
            resource_metrics: vec![ResourceMetrics {
                resource: self.origin.resource(),
                scope_metrics: vec![metrics],
            }],
        };
        let answer = async {
            let answer = self.client.export(request).await?.into_inner();
            let partial = answer.partial_success.unwrap_or_default();
            Ok((
                u64::try_from(partial.rejected_data_points).unwrap_or(0),
                partial.error_message,
            ))
        };
        // What was not taken is said anew the next time, with what came since.
        let _ = self.signal.answered(answer).await;
    }
}

// === impl NotTaken ===

impl NotTaken {
    /// Which codes are worth another attempt is OTLP's to say; those that only a broken connection gives are ours.
    fn of(status: &Status) -> Self {
        let again = matches!(
            status.code(),
            Code::Cancelled
                | Code::DeadlineExceeded
                | Code::Aborted
                | Code::OutOfRange
                | Code::Unavailable
                | Code::DataLoss
                | Code::ResourceExhausted
                | Code::Unknown
        );
        let mut reason = format!("{:?}: {}", status.code(), status.message().escape_debug());
        let mut source = std::error::Error::source(status);
        while let Some(error) = source {
            reason = format!("{reason}: {error}");
            source = error.source();
        }
        Self {
            reason: cut_to(reason, REASON_BYTES_MAX),
            again,
        }
    }
}
