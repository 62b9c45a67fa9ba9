//! What this node says of itself to the CA, and what those that decide on it say to the agent.
//!
//! `points` keeps what each attested process said last; `node` describes the agent; `pace` says when the CA is told. One stream
//! beside the watch, on the same connection: first everything, then what changed.

pub(crate) mod node;
pub(crate) mod pace;
pub(crate) mod points;

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use hoplite_decision::reporting::{self as describing, unix};
use hoplite_host::backoff::jitter;
use hoplite_host::clock;
use hoplite_host::program::Program;
use hoplite_host::shutdown::Shutdown;
use hoplite_wire::ca::ReportAck;
use hoplite_wire::ca::node_client::NodeClient;
use hoplite_wire::report::{Point, PointAbout, PointState, Report};
use hoplite_wire::reporting;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use crate::authorize::authorizer::Authorizer;
use crate::reports::node::NodeFacts;
use crate::reports::pace::{Pace, TOGETHER};
use crate::reports::points::Points;

/// A CA that does not answer a report within this is stuck; the next connection gets all of it.
const ACK_TIMEOUT: Duration = Duration::from_secs(20);

/// After a stream that broke, on a connection that did not.
const AGAIN: Duration = Duration::from_secs(5);

/// The key of the agent's own decision point.
const OWN_KEY: &str = "agent";

/// All that is told.
pub(crate) struct Reporter {
    pub(crate) facts: NodeFacts,
    pub(crate) points: Arc<Points>,
    pub(crate) authorizer: Option<Arc<Authorizer>>,
}

/// Why a stream of reports ended.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("the CA takes no reports: it is older than this agent")]
    NotTaken,
    #[error("the CA ended it: {0}")]
    Ended(Status),
    #[error("the CA did not answer in time")]
    Late,
}

/// Reports on each connection to the CA, until the agent stops.
pub(crate) async fn run(
    mut reporter: Reporter,
    mut connections: watch::Receiver<Option<Channel>>,
    mut shutdown: Shutdown,
) {
    // It reads the whole binary.
    let _ = tokio::task::spawn_blocking(Program::this).await;
    loop {
        let channel = tokio::select! {
            channel = connections.wait_for(Option::is_some) => channel.ok().and_then(|channel| channel.clone()),
            () = shutdown.wait() => return,
        };
        let Some(channel) = channel else { return };
        connections.mark_unchanged();
        let broken = tokio::select! {
            broken = reporter.report_on(channel) => broken,
            changed = connections.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
            () = shutdown.wait() => return,
        };
        let next = match broken {
            Broken::NotTaken => {
                tracing::info!("{broken}; it is tried again at the next connection");
                None
            }
            _ => {
                tracing::debug!(error = %broken, "the CA is not told how this node is; it is tried again");
                Some(AGAIN.mul_f64(0.5 + jitter()))
            }
        };
        let wait = async {
            match next {
                Some(wait) => tokio::time::sleep(wait).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = wait => {}
            changed = connections.changed() => if changed.is_err() { return },
            () = shutdown.wait() => return,
        }
    }
}

// === impl Reporter ===

impl Reporter {
    /// Until the stream breaks.
    async fn report_on(&mut self, channel: Channel) -> Broken {
        let (sender, receiver) = mpsc::channel(1);
        let mut pace = Pace::new(self.points.period());
        let mut last = self.whole();
        let mut sequence = 1;
        // Before the stream is opened: whoever opens it waits for nothing.
        let first = Report {
            sequence,
            ..last.clone()
        };
        if sender.try_send(first).is_err() {
            return Broken::Late; // a channel of one that is new has room
        }
        pace.sent(clock::moment());
        let mut client = NodeClient::new(channel);
        let opened = tokio::time::timeout(ACK_TIMEOUT, client.report(ReceiverStream::new(receiver))).await;
        let mut acks = match opened {
            Ok(Ok(acks)) => acks.into_inner(),
            Ok(Err(status)) if status.code() == Code::Unimplemented => return Broken::NotTaken,
            Ok(Err(status)) => return Broken::Ended(status),
            Err(_) => return Broken::Late,
        };
        let mut full = match self.acknowledged(&mut acks, &mut pace).await {
            Ok(full) => full,
            Err(broken) => return broken,
        };
        loop {
            let whole = self.whole();
            let mut news = if full {
                whole.clone()
            } else {
                reporting::difference(&last, &whole)
            };
            let wait = pace.wait(clock::moment(), full || reporting::is_urgent(&news), jitter());
            if wait.is_zero() {
                sequence += 1;
                news.sequence = sequence;
                pace.sent(clock::moment());
                if sender.send(news).await.is_err() {
                    return Broken::Ended(Status::unavailable("it reads no more"));
                }
                last = whole;
                full = match self.acknowledged(&mut acks, &mut pace).await {
                    Ok(full) => full,
                    Err(broken) => return broken,
                };
                continue;
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.changed() => tokio::time::sleep(TOGETHER.min(wait)).await,
                // Nothing is expected: it is an error, or the end.
                ended = acks.message() => match ended {
                    Ok(Some(_)) => {}
                    Ok(None) => return Broken::Ended(Status::unavailable("it ended the stream")),
                    Err(status) => return Broken::Ended(status),
                },
            }
        }
    }

    /// Whether the CA wants all of it.
    async fn acknowledged(&self, acks: &mut Streaming<ReportAck>, pace: &mut Pace) -> Result<bool, Broken> {
        match tokio::time::timeout(ACK_TIMEOUT, acks.message()).await {
            Ok(Ok(Some(ack))) => {
                let period = Duration::from_millis(ack.period_ms.into());
                pace.set_period(period);
                self.points.set_period(pace.period());
                Ok(ack.send_full)
            }
            Ok(Ok(None)) => Err(Broken::Ended(Status::unavailable("it ended the stream"))),
            Ok(Err(status)) => Err(Broken::Ended(status)),
            Err(_) => Err(Broken::Late),
        }
    }

    /// Everything, as it is now.
    fn whole(&self) -> Report {
        let now = clock::now();
        let mut points = self.points.now(now);
        if let Some(authorizer) = &self.authorizer {
            let at = points.partition_point(|point| point.key.as_str() < OWN_KEY);
            points.insert(at, self.own_point(authorizer));
        }
        let mut report = Report {
            full: true,
            sent_at_unix_ms: points::unix_ms(now),
            about: Some(self.facts.about()),
            state: Some(self.facts.state()),
            counters: Some(self.facts.counters()),
            points,
            ..Report::default()
        };
        reporting::bound(&mut report);
        report
    }

    /// What the agent decides by, for other people's proxies.
    fn own_point(&self, authorizer: &Authorizer) -> Point {
        let (begins, ends) = self.facts.svid_life().unwrap_or((UNIX_EPOCH, UNIX_EPOCH));
        let mut point = describing::describe(authorizer.point(), clock::now());
        if let Some(counters) = &mut point.counters {
            counters.records_lost = authorizer.records_lost();
        }
        Point {
            key: OWN_KEY.to_owned(),
            about: Some(PointAbout {
                kind: "agent".to_owned(),
                name: authorizer.name().to_owned(),
                spiffe_id: self.facts.spiffe_id(),
                program: self.facts.about().program,
            }),
            state: Some(PointState {
                svid_not_before_unix: unix(begins),
                svid_not_after_unix: unix(ends),
                pid: i32::try_from(std::process::id()).unwrap_or_default(),
                ..PointState::default()
            }),
            ..point
        }
    }

    /// Returns when something may have changed.
    async fn changed(&mut self) {
        let authorizer = self.authorizer.clone();
        let decides_otherwise = async {
            match authorizer {
                Some(authorizer) => authorizer.changed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.points.changed() => {}
            () = self.facts.changed() => {}
            () = decides_otherwise => {}
        }
    }
}
