//! Whom this agent refused, and for what: counted by cause, and told in the log once in a while. And how calls were
//! answered at all.

use hoplite_host::clock;
use hoplite_host::refusals::Refusals;
use hoplite_telemetry::{Counter, Family};

use crate::attest::LocalProcess;

/// A name or a path in a log line is cut at this; whoever asks may write anything.
const NAME_CHARS_MAX: usize = 200;

/// RPCs, times the codes they are answered with.
const CALLS_MAX: usize = 500;

/// By cause. Those of one process share a line, and those of one user and one name.
#[derive(Debug, Default)]
pub(crate) struct Refused {
    no_identity: Refusals<i32>,
    unknown_secret: Refusals<(u32, String)>,
    calls: Refusals<i32>,
    answered: Calls,
    questions: Refusals<(i32, u16)>,
}

/// How calls on the socket were answered.
#[derive(Debug)]
struct Calls(Family<2, Counter>);

// === impl Refused ===

impl Refused {
    /// A process that fits no entry.
    pub(crate) fn no_identity(&self, caller: &LocalProcess, selectors: &str) {
        let LocalProcess { pid, uid, .. } = *caller;
        if let Some(refused) = self.no_identity.count(pid, clock::moment()) {
            tracing::info!(
                pid,
                uid,
                selectors,
                refused,
                "no identity issued; `hoplite entry why --pid {pid}` says why"
            );
        }
    }

    /// A secret that is not there, or not for this caller.
    pub(crate) fn unknown_secret(&self, caller: &LocalProcess, name: &str) {
        let LocalProcess { pid, uid, .. } = *caller;
        let name: String = name.chars().take(NAME_CHARS_MAX).collect();
        if let Some(refused) = self.unknown_secret.count((uid, name.clone()), clock::moment()) {
            tracing::warn!(
                pid,
                uid,
                ?name,
                refused,
                "a secret was asked for that is not there for this process; `hoplite entry why --pid {pid}` says what is"
            );
        }
    }

    /// A call that a bound of the socket stands against: its streams, a length, a time.
    pub(crate) fn call(&self, caller: &LocalProcess, path: &str, reason: &str) {
        let LocalProcess { pid, uid, .. } = *caller;
        if let Some(refused) = self.calls.count(pid, clock::moment()) {
            let path: String = path.chars().take(NAME_CHARS_MAX).collect();
            tracing::warn!(pid, uid, ?path, reason, refused, "a call was refused by a bound");
        }
    }

    /// A call was answered, well or not.
    pub(crate) fn answered(&self, rpc: &str, code: &str) {
        self.answered.0.get([rpc, code]).inc();
    }

    /// How many calls were answered how, by RPC and code.
    pub(crate) fn calls(&self) -> &Family<2, Counter> {
        &self.answered.0
    }

    /// A question about a decision that got none: the asker is at fault, or this agent cannot answer now.
    pub(crate) fn question(&self, caller: &LocalProcess, protocol: &'static str, status: u16, reason: &str) {
        let LocalProcess { pid, uid, .. } = *caller;
        if let Some(refused) = self.questions.count((pid, status), clock::moment()) {
            let reason: String = reason.chars().take(NAME_CHARS_MAX).collect();
            tracing::warn!(
                pid,
                uid,
                protocol,
                status,
                reason,
                refused,
                "no decision for a process that asks for one"
            );
        }
    }

    /// How many of each cause, since the start.
    pub(crate) fn counts(&self) -> [(&'static str, u64); 4] {
        [
            ("no identity", self.no_identity.total()),
            ("unknown secret", self.unknown_secret.total()),
            ("call beyond a bound", self.calls.total()),
            ("no decision", self.questions.total()),
        ]
    }
}

// === impl Calls ===

impl Default for Calls {
    fn default() -> Self {
        Self(Family::new(["rpc", "code!"], CALLS_MAX))
    }
}
