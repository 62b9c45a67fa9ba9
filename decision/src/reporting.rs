//! What a decision point says of itself, and how it is told to the agent: at once when something changes, else every few seconds.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hoplite_host::backoff::{Backoff, jitter};
use hoplite_host::program::Program;
use hoplite_host::shutdown::Shutdown;
use hoplite_wire::report::{self, Count, Fired, Point, PointCounters, PointPolicy};
use hoplite_wire::reporting::{FIRED_MAX, SHORT_LIST_MAX};
use hoplite_wire::{FetchError, ReportLink};
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::debug;

use crate::point::DecisionPoint;

/// To an agent on the same machine it costs nothing to be told more often than the CA is, and one that was started again knows
/// all after this time.
const PERIOD_MAX: Duration = Duration::from_secs(5);

/// What changes together is told together.
const TOGETHER: Duration = Duration::from_millis(200);

/// A stop does not wait longer for an agent.
const GOODBYE_MAX: Duration = Duration::from_millis(500);

/// Whoever reports more often than the agent hears is refused, and says goodbye a moment later.
const GOODBYE_AGAIN: Duration = Duration::from_millis(120);

/// An agent that is back is told within this time.
const RETRY: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));

/// The running program, for a report.
#[must_use]
pub fn program(started: SystemTime) -> report::Program {
    let this = Program::this();
    report::Program {
        version: this.version.to_owned(),
        sha256: this.sha256.map(|digest| digest.to_vec()).unwrap_or_default(),
        target: this.target.clone(),
        started_at_unix: unix(started),
    }
}

/// Unix seconds; 0 for what is before.
#[must_use]
pub fn unix(at: SystemTime) -> i64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// What a decision point enforces, has counted, and which policies have decided there: the parts of a report that all of them
/// have. Of `records_lost` and `connections` it knows nothing.
#[must_use]
pub fn describe(point: &DecisionPoint, now: SystemTime) -> Point {
    let (status, in_force) = (point.policy().status(), point.policy().in_force());
    let live = in_force.live();
    let denies_all = point.denies_all(&in_force, now);
    let is_bundle = in_force.bundle_revision().is_some();
    let source = match (is_bundle, live.deny_all_reason()) {
        (true, _) => "bundle",
        (false, None) => "directory",
        (false, Some(_)) => "",
    };
    let faults = status.faults.iter().rev().take(SHORT_LIST_MAX);
    let policy = PointPolicy {
        source: source.to_owned(),
        revision: in_force.bundle_revision().unwrap_or_default(),
        manifest_sha256: in_force
            .bundle_manifest()
            .map(|digest| digest.to_vec())
            .unwrap_or_default(),
        snapshot: live.revision().to_owned(),
        policies: count(live.policy_ids().count()),
        loaded_at_unix: unix(status.loaded_at),
        expires_unix: in_force.expires().map(unix).unwrap_or_default(),
        denies_all: denies_all.unwrap_or_default().to_owned(),
        alarms: status.alarms,
        faults: faults.map(ToString::to_string).collect(),
        shadow: in_force
            .shadow()
            .map(|shadow| shadow.revision().to_owned())
            .unwrap_or_default(),
        grants: count(status.grants.len()),
        signers_version: status.signers_version.unwrap_or_default(),
        signed_by: status.signed_by,
    };
    let mut fired: Vec<&str> = live
        .counts()
        .filter(|(_, counts)| counts.determining > 0)
        .map(|(id, _)| id)
        .collect();
    fired.sort_unstable();
    let left_out = count(fired.len().saturating_sub(FIRED_MAX));
    let fired = Fired {
        ids: fired.into_iter().take(FIRED_MAX).map(str::to_owned).collect(),
        left_out,
    };
    let totals = point.metrics().totals();
    let decisions = totals
        .decisions
        .into_iter()
        .map(|(outcome, count)| Count { name: outcome, count });
    let counters = PointCounters {
        decisions: decisions.filter(|decided| decided.count > 0).collect(),
        records: totals.records,
        record_failures: totals.record_failures,
        rolled_up: totals.rolled_up,
        ..PointCounters::default()
    };
    Point {
        policy: Some(policy),
        counters: Some(counters),
        fired: Some(fired),
        ..Point::default()
    }
}

/// Tells the agent at `address` (as in `SPIFFE_ENDPOINT_SOCKET`) what `describe` gives, at once, at each change of `epoch`, and
/// every few seconds, until the stop, and then that it leaves, with the error of `failure` if there is one. What goes wrong is tried
/// again: a report that is late harms nobody.
pub async fn keep_reporting(
    address: String,
    describe: impl Fn() -> Point + Send + Sync + 'static,
    mut epoch: watch::Receiver<u64>,
    failure: Arc<OnceLock<String>>,
    mut shutdown: Shutdown,
) {
    // It reads the whole binary.
    let _ = tokio::task::spawn_blocking(Program::this).await;
    let describe = Arc::new(describe);
    let mut link = ReportLink::new(&address);
    let mut backoff = RETRY;
    loop {
        epoch.borrow_and_update();
        let describing = Arc::clone(&describe);
        // Of many thousand policies each is looked at.
        let told = match tokio::task::spawn_blocking(move || describing()).await {
            Ok(point) => link.put(point).await,
            Err(error) => Err(FetchError::Unavailable(error.to_string())),
        };
        let wait = match told {
            Ok(asked) => {
                backoff.succeeded();
                asked.clamp(TOGETHER, PERIOD_MAX).mul_f64(0.75 + jitter() / 4.0)
            }
            // There is nobody there who wants it; a newer agent may come.
            Err(FetchError::Closed) => PERIOD_MAX,
            Err(error) => {
                debug!(%error, "the agent was not told how this is");
                backoff.failed(jitter()).max(TOGETHER)
            }
        };
        tokio::select! {
            () = sleep(wait) => {}
            changed = epoch.changed() => {
                if changed.is_err() {
                    return;
                }
                sleep(TOGETHER).await;
            }
            () = shutdown.wait() => {}
        }
        if shutdown.is_stopping() {
            let failure = failure.get().map(String::as_str).unwrap_or_default();
            let goodbye = async {
                while let Err(error) = link.leave(describe(), failure).await {
                    debug!(%error, "the agent was not told that this ends");
                    sleep(GOODBYE_AGAIN).await;
                }
            };
            let _ = tokio::time::timeout(GOODBYE_MAX, goodbye).await;
            return;
        }
    }
}

fn count(of: usize) -> u32 {
    u32::try_from(of).unwrap_or(u32::MAX)
}
