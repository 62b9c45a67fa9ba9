//! The stream on which an agent reports: taken message by message, for as long as the agent may speak.

use std::time::Duration;

use hoplite_host::clock;
use hoplite_host::shutdown::Shutdown;
use hoplite_identity::VerifiedPeer;
use hoplite_wire::ca::ReportAck;
use hoplite_wire::report::Report;
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use crate::agents::agent::Denied;
use crate::fleet::Fleet;
use crate::fleet::heard::Taken;

/// One message of an agent is handled in this time at the most often: whoever sends more waits, and holds up nobody but itself.
const MESSAGE_EVERY: Duration = Duration::from_millis(200);

/// One agent's stream.
pub(crate) struct Reporting {
    pub(crate) fleet: Fleet,
    pub(crate) peer: VerifiedPeer,
    pub(crate) shutdown: Shutdown,
}

// === impl Reporting ===

impl Reporting {
    /// Listens until the agent ends it or may speak no longer. What is said is the agent's own: its name is that of its
    /// certificate, and there is no other in a report.
    pub(crate) async fn listen(
        mut self,
        mut reports: Streaming<Report>,
        acks: mpsc::Sender<Result<ReportAck, Status>>,
        standing: impl Fn(&VerifiedPeer) -> Result<(), Denied>,
    ) {
        let stream = self.fleet.begin();
        let mut taken_last = 0;
        loop {
            let report = tokio::select! {
                report = reports.message() => report,
                () = acks.closed() => return,
                () = clock::reached(self.peer.not_after()) => Ok(Some(Report::default())), // its standing says it
                () = self.shutdown.wait() => {
                    let _ = acks.send(Err(Status::unavailable("the CA is stopping; connect again"))).await;
                    return;
                }
            };
            let report = match report {
                Ok(Some(report)) => report,
                Ok(None) => return,
                Err(error) => {
                    tracing::debug!(agent = %self.peer.spiffe_id(), %error, "a stream of reports broke");
                    return;
                }
            };
            // At each message: who was banned or evicted is heard no more.
            if let Err(denied) = standing(&self.peer) {
                tracing::warn!(target: "hoplite::audit", agent = %self.peer.spiffe_id(), outcome = "ended", reason = %denied, "report");
                let _ = acks.send(Err(denied.into())).await;
                return;
            }
            let sequence = report.sequence;
            let taken = self.fleet.take(self.peer.spiffe_id(), stream, report, clock::now());
            match taken {
                Taken::Whole => taken_last = sequence,
                Taken::SendFull => {}
                Taken::Superseded => {
                    let text = "this agent reports on a newer stream; use that one";
                    let _ = acks.send(Err(Status::aborted(text))).await;
                    return;
                }
            }
            let ack = ReportAck {
                sequence: taken_last,
                period_ms: u32::try_from(self.fleet.period().as_millis()).unwrap_or(u32::MAX),
                send_full: taken == Taken::SendFull,
            };
            if acks.send(Ok(ack)).await.is_err() {
                return;
            }
            tokio::time::sleep(MESSAGE_EVERY).await;
        }
    }
}
