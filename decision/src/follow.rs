//! Follows the agent's policy feed: what the security team publishes reaches this process within a second.

use std::sync::Arc;
use std::time::Duration;

use hoplite_host::backoff::{Backoff, jitter};
use hoplite_host::clock;
use hoplite_identity::TrustDomain;
use hoplite_wire::PolicyFeed;
use hoplite_wire::policy::WatchRequest;
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tracing::{debug, info, warn};

use crate::current::CurrentPolicy;

/// How long to wait before the feed is opened again: at first, and at most.
const RETRY: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));

/// The clock that ends a grant, or a bundle, may be set while we wait: it is looked at this often.
const LOOK: Duration = Duration::from_secs(10);

/// A grant that could not be taken away is tried again, but not at once.
const LOOK_MIN: Duration = Duration::from_millis(50);

/// Offers every bundle and grant that the agent at `address` (as in `SPIFFE_ENDPOINT_SOCKET`) sends, for as
/// long as it is polled. While the agent is away, what is in force stays so; but a grant ends when it says. Signers that
/// nobody named before have to be those of `trust_domain`.
pub async fn follow_bundles(policy: Arc<CurrentPolicy>, address: String, trust_domain: TrustDomain) {
    tokio::select! {
        () = follow(&policy, address, trust_domain) => {}
        () = end_what_is_over(&policy) => {}
    }
}

/// Takes every grant away as it ends, and says when the bundle has expired.
async fn end_what_is_over(policy: &Arc<CurrentPolicy>) {
    let mut changes = policy.subscribe();
    loop {
        changes.borrow_and_update();
        let ending = policy.clone();
        // It may wait for a compilation, and may be one.
        let next = spawn_blocking(move || ending.end_what_is_over(clock::now())).await;
        let due = async {
            match next.ok().flatten() {
                Some(end) => {
                    let left = end.duration_since(clock::now()).unwrap_or_default();
                    sleep(left.clamp(LOOK_MIN, LOOK)).await;
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = due => {}
        }
    }
}

async fn follow(policy: &Arc<CurrentPolicy>, address: String, trust_domain: TrustDomain) {
    let mut stream = PolicyFeed::new(&address);
    let mut backoff = RETRY;
    let mut believed = policy.believed();
    loop {
        let next = tokio::select! {
            next = stream.next(held(policy)) => next,
            Ok(()) = believed.changed() => {
                // What was not believed is believed now, or is not held any more.
                stream = PolicyFeed::new(&address);
                continue;
            }
        };
        match next {
            Ok(update) => {
                if backoff.is_at_longest() {
                    info!("the agent's policy feed is back");
                }
                backoff.succeeded();
                policy.contact().heard();
                let (policy, trust_domain) = (policy.clone(), trust_domain.clone());
                // Verifying and compiling a large bundle takes seconds.
                let offered = spawn_blocking(move || {
                    let now = clock::now();
                    // First whom to believe; what they have signed comes with them.
                    if !update.signers.is_empty() {
                        policy.offer_signers(&update.signers, &trust_domain);
                    }
                    for bundle in [&update.live, &update.shadow].into_iter().flatten() {
                        // Refusals are in the log and in the status.
                        let _ = policy.offer(bundle, now);
                    }
                    if update.shadow_cleared {
                        policy.clear_shadow(now);
                    }
                    policy.offer_grants(&update.grants, now);
                    policy.doubt(now);
                });
                if let Err(error) = offered.await {
                    debug!(%error, "a policy update was lost; the stream is opened again");
                    stream = PolicyFeed::new(&address);
                }
            }
            Err(error) => {
                debug!(%error, "the agent's policy feed is away");
                policy.contact().lost();
                let was_at_longest = backoff.is_at_longest();
                sleep(backoff.failed(jitter())).await;
                // Not worth a word when it is restarted; but a feed that never works is.
                if !was_at_longest && backoff.is_at_longest() {
                    warn!(address, %error, "the agent's policy feed is away; what is in force stays so, and nothing new comes");
                }
            }
        }
    }
}

fn held(policy: &CurrentPolicy) -> WatchRequest {
    let (live_revision, shadow_revision) = policy.revisions();
    let (signers_version, signers_sha256) = policy
        .signers()
        .map_or((0, Vec::new()), |(version, digest)| (version, digest.0.to_vec()));
    WatchRequest {
        live_revision,
        shadow_revision,
        signers_version,
        signers_sha256: signers_sha256.into(),
    }
}
