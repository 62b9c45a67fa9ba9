//! A connection with a verified peer, watched for as long as it lives: it ends when trust ends.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hoplite_host::clock;
use hoplite_host::shutdown::Shutdown;
use hoplite_identity::{CertificateDer, PeerRole, VerifiedPeer};
use tokio::sync::watch;

use crate::peer::identity_feed::{Generation, IdentityFeed};

/// New work stops this long before a connection must end, at least …
const LEAD_MIN: Duration = Duration::from_millis(500);

/// … and at most. Between them it is a tenth of what is left.
const LEAD_MAX: Duration = Duration::from_secs(30);

/// Until when it holds who is at the other end.
#[derive(Debug)]
pub(crate) struct Session {
    /// When the first of both leaves ends, and the connection with it.
    pub(crate) not_after: SystemTime,
    role: PeerRole,
    chain: Vec<CertificateDer<'static>>,
    /// From when on whoever asks is told that the connection will end, if anybody wants to say so.
    tell_at: SystemTime,
    /// None wants to, or it was said.
    tells: bool,
    drain_at: SystemTime,
    draining: bool,
    identity: Arc<IdentityFeed>,
    generations: watch::Receiver<u64>,
    policies: Option<watch::Receiver<u64>>,
    stop: Option<Stop>,
}

/// The two steps of stopping.
#[derive(Debug, Clone)]
pub(crate) struct Stop {
    /// Finish what is under way.
    pub(crate) drain: Shutdown,
    /// Close.
    pub(crate) close: Shutdown,
}

/// Something that concerns a live connection.
#[derive(Debug)]
pub(crate) enum Event {
    /// The end is near: say so with each answer. Only after [`Session::tell_ahead`].
    Tell,
    /// Take on nothing new, finish what is under way.
    Drain,
    /// Policy has changed: decide again. Only after [`Session::watch_policy`].
    Redecide,
    /// End now; for the log, why.
    Close(String),
}

// === impl Session ===

impl Session {
    /// Begins to watch. What changed since `generation` is noticed at the first [`Session::event`].
    pub(crate) fn new(
        peer: &VerifiedPeer,
        role: PeerRole,
        chain: Vec<CertificateDer<'static>>,
        identity: Arc<IdentityFeed>,
        generation: &Generation,
    ) -> Self {
        let not_after = peer.not_after().min(generation.svid.leaf().not_after());
        let mut generations = identity.subscribe();
        // The identity may have been replaced during the handshake; then what it said of the peer is not what the one in force says.
        if *generations.borrow_and_update() != generation.number {
            generations.mark_changed();
        }
        let lead = lead(not_after, role, clock::now());
        let before_end = |lead| not_after.checked_sub(lead).unwrap_or(not_after);
        let (tell_at, drain_at) = (before_end(lead), before_end(lead));
        Self {
            not_after,
            role,
            chain,
            tell_at,
            tells: false,
            drain_at,
            draining: false,
            identity,
            generations,
            policies: None,
            stop: None,
        }
    }

    /// Asks for [`Event::Redecide`]. Call it before the first decision: a policy that comes in between is not missed.
    pub(crate) fn watch_policy(&mut self, policies: watch::Receiver<u64>) {
        self.policies = Some(policies);
    }

    /// Asks for [`Event::Tell`], which comes when new work would stop, and that stops halfway from there to the end: who keeps a
    /// connection that is between two requests learns of its end with an answer, and does not send into a closing one.
    pub(crate) fn tell_ahead(&mut self) {
        let left = self.not_after.duration_since(self.drain_at).unwrap_or_default();
        self.tells = true;
        self.drain_at = self.not_after.checked_sub(left / 2).unwrap_or(self.not_after);
    }

    /// Ends with the proxy. Connections to upstreams do without: they end when nobody needs them.
    pub(crate) fn end_with(&mut self, stop: Stop) {
        self.stop = Some(stop);
    }

    /// The next thing that concerns this connection. Cancel safe.
    pub(crate) async fn event(&mut self) -> Event {
        loop {
            let due = match (self.draining, self.tells) {
                (true, _) => self.not_after,
                (false, true) => self.tell_at,
                (false, false) => self.drain_at,
            };
            tokio::select! {
                () = clock::reached(due) => {
                    if self.tells && !self.draining {
                        self.tells = false;
                        return Event::Tell;
                    }
                    if self.draining {
                        return Event::Close("its certificate, or ours, has expired".to_owned());
                    }
                    self.draining = true;
                    return Event::Drain;
                }
                _ = self.generations.changed() => {
                    let now = clock::now();
                    if let Err(rejected) = self.identity.current().verifier.verify(&self.chain, self.role, now) {
                        return Event::Close(format!("the trust bundle no longer vouches for it: {rejected}"));
                    }
                }
                () = changed(&mut self.policies) => return Event::Redecide,
                drain = stopping(&mut self.stop, self.draining) => {
                    if drain {
                        self.draining = true;
                        return Event::Drain;
                    }
                    return Event::Close("the proxy stops".to_owned());
                }
            }
        }
    }
}

/// How long before the end new work stops. Callers stop first, so that they rarely meet a closing server.
fn lead(not_after: SystemTime, role: PeerRole, now: SystemTime) -> Duration {
    let left = not_after.duration_since(now).unwrap_or_default();
    let lead = (left / 10).clamp(LEAD_MIN, LEAD_MAX);
    match role {
        PeerRole::Client => lead,
        PeerRole::Server => lead * 2,
    }
}

async fn changed(policies: &mut Option<watch::Receiver<u64>>) {
    if let Some(policies) = policies
        && policies.changed().await.is_ok()
    {
        return;
    }
    // Nobody asked, or nobody can announce anything any more.
    std::future::pending().await
}

/// True when draining begins, false when the end has come.
async fn stopping(stop: &mut Option<Stop>, draining: bool) -> bool {
    let Some(stop) = stop else {
        return std::future::pending().await;
    };
    tokio::select! {
        () = stop.close.wait() => false,
        () = stop.drain.wait(), if !draining => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lead_is_a_tenth_within_bounds() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        let check = |left: u64, role, expected: u64| {
            assert_eq!(
                lead(now + Duration::from_millis(left), role, now),
                Duration::from_millis(expected),
                "{left}"
            );
        };
        check(5_000, PeerRole::Client, 500);
        check(60_000, PeerRole::Client, 6_000);
        check(3_600_000, PeerRole::Client, 30_000);
        check(3_600_000, PeerRole::Server, 60_000);
        check(0, PeerRole::Client, 500);
    }
}
