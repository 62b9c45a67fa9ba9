//! What is shown of a proxy to the tools that people have: its metrics, and whether it can do its work now.

use std::sync::{Arc, OnceLock, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use hoplite_decision::DecisionPoint;
use hoplite_host::clock;
use hoplite_host::shutdown::Shutdown;
use hoplite_telemetry::{Exposition, Kind, Samples, Site};

use crate::metrics::Metrics;
use crate::peer::identity_feed::IdentityFeed;

/// The identity in force; empty until the first.
pub(crate) type FirstIdentity = Arc<OnceLock<Arc<IdentityFeed>>>;

/// All of it. Nothing that has to end with the proxy is held.
pub(crate) fn site(
    point: &Arc<DecisionPoint>,
    metrics: &Arc<Metrics>,
    identity: &FirstIdentity,
    workload_api: String,
    drain: Shutdown,
) -> Site {
    let mut exposition = Exposition::new("hoplite_proxy");
    point.register(&mut exposition);
    metrics.register(&mut exposition);
    register_identity(identity, &mut exposition);
    let (identity, point) = (identity.clone(), Arc::downgrade(point));
    Site::new(exposition, move || match drain.is_stopping() {
        true => vec!["the proxy is stopping".to_owned()],
        false => unready(&identity, &point, &workload_api, clock::now()),
    })
}

/// Adds the ends of the certificates in use, once there are any.
fn register_identity(identity: &FirstIdentity, to: &mut Exposition) {
    let mut end = |name, help, of: fn(&IdentityFeed) -> Option<SystemTime>| {
        let identity = identity.clone();
        to.sampled(Kind::Gauge, name, help, move |to: &mut Samples| {
            let end = identity.get().and_then(|feed| of(feed));
            if let Some(end) = end.and_then(|end| end.duration_since(UNIX_EPOCH).ok()) {
                to.put(end.as_secs());
            }
        });
    };
    end(
        "svid_not_after_timestamp_seconds",
        "When the own SVID ends, in seconds since 1970",
        |feed| Some(feed.current().svid.leaf().not_after()),
    );
    end(
        "authority_not_after_timestamp_seconds",
        "When the last authority of the own trust domain ends, in seconds since 1970",
        |feed| feed.current().last_authority_end(),
    );
}

/// Why a proxy cannot do its work now.
fn unready(
    identity: &OnceLock<Arc<IdentityFeed>>,
    point: &Weak<DecisionPoint>,
    workload_api: &str,
    now: SystemTime,
) -> Vec<String> {
    let mut reasons = Vec::new();
    match identity.get().map(|feed| feed.current()) {
        None => reasons.push(format!("there is no SVID yet from the agent at `{workload_api}`")),
        Some(current) if !current.is_valid(now) => {
            reasons.push("the own SVID has expired, and the agent gave no new one".to_owned());
        }
        Some(_) => {}
    }
    let Some(point) = point.upgrade() else {
        reasons.push("the proxy is stopping".to_owned());
        return reasons;
    };
    if let Some(why) = point.denies_all(&point.policy().in_force(), now) {
        reasons.push(format!("everything is denied: {why}"));
    }
    if let Some(failure) = point.unrecorded() {
        reasons.push(format!("nothing can be recorded, so everything is refused: {failure}"));
    }
    reasons
}
