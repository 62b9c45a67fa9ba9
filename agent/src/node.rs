//! The node's own identity: joined with a one-time token or by a proof of who it is, renewed at half life, kept on disk.

pub(crate) mod epoch;
mod held;
pub(crate) mod keeper;
pub(crate) mod key;
pub(crate) mod link;
mod step;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hoplite_host::backoff::jitter;
use hoplite_host::clock;
use hoplite_host::shutdown::Shutdown;
use hoplite_identity::Moment;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::watch;

use crate::node::keeper::{Keeper, Vouched};
use crate::node::link::{CaError, CaLink, RETRY};
use crate::node::step::{Facts, REATTEST_AGAIN, Step, Validity};
use crate::proofs::JoinSettings;

/// The longest sleep: clocks are set and machines suspended, and both must be noticed.
const SLEEP_MAX: Duration = Duration::from_secs(10);

/// While a token is awaited: how often its file is looked at.
const TOKEN_POLL: Duration = Duration::from_secs(1);

/// Keeps the node's identity until the agent stops.
pub(crate) async fn run(
    keeper: Arc<Keeper>,
    link: CaLink,
    (token_files, proof): (watch::Receiver<Option<PathBuf>>, Option<JoinSettings>),
    mut shutdown: Shutdown,
) {
    let mut backoff = RETRY;
    let mut facts = Facts {
        svid: keeper.validity(),
        ..Facts::default()
    };
    let mut said = None;
    let mut news = keeper.credentials();
    let mut distrusted = link.distrusted();
    loop {
        news.mark_unchanged();
        keeper.save_again();
        let vouched = keeper.vouched();
        let was_tainted = vouched == Some(Vouched::Tainted);
        if was_tainted {
            facts.svid = facts.svid.map(|svid| Validity {
                renew_at: UNIX_EPOCH,
                ..svid
            });
        }
        if vouched == Some(Vouched::Not) && !facts.cut_off {
            tracing::error!("the authority of this node's SVID counts no more, and so the CA does not let it in by it");
        }
        facts.cut_off = vouched == Some(Vouched::Not) || keeper.is_serial(distrusted.borrow_and_update().as_deref());
        let token_file = token_files.borrow().clone();
        let token = token_file.as_deref().and_then(|file| keeper.unspent_token(file));
        facts.token = token.is_some() || proof.is_some();
        link.troubles().node_ends(facts.svid.map(|svid| svid.not_after));
        let now = clock::now();
        let step = facts.next(now);
        if said != Some(step) {
            say(step, token_file.as_deref(), facts.svid, now);
            said = Some(step);
        }
        let work = async {
            match (step, token, &proof) {
                // Somebody has put a token there for this very moment.
                (Step::Join, Some(token), _) => Some(keeper.join(&link, &token).await),
                (Step::Join, None, Some(proof)) => Some(keeper.attest(&link, proof).await),
                (Step::Renew, ..) => Some(keeper.renew(&link).await),
                (Step::Reattest, ..) => Some(keeper.reattest(&link).await),
                (Step::Sleep { until }, ..) => {
                    tokio::time::sleep(until.duration_since(now).unwrap_or_default().min(SLEEP_MAX)).await;
                    None
                }
                (Step::Join | Step::NeedToken | Step::ClockBehind, ..) => {
                    tokio::time::sleep(TOKEN_POLL).await;
                    None
                }
            }
        };
        let outcome = tokio::select! {
            outcome = work => outcome,
            // Another trust bundle may ask for another SVID.
            Ok(()) = news.changed(), if !matches!(step, Step::Join | Step::Renew | Step::Reattest) => None,
            () = link.when_refused() => {
                facts.refused = true;
                None
            }
            Ok(()) = distrusted.changed(), if step != Step::Reattest => None,
            () = shutdown.wait() => return,
        };
        if let Some(outcome) = &outcome {
            link.troubles().node(outcome.as_ref().err().and_then(CaError::trouble));
            let kind = match step {
                Step::Join => "join",
                Step::Reattest => "reattest",
                _ => "renew",
            };
            link.metrics().asked(kind, outcome.is_ok());
        }
        match outcome {
            None if (facts.refused || step == Step::NeedToken) && keeper.take_over() => {
                backoff.succeeded();
                facts = Facts {
                    svid: keeper.validity(),
                    ..Facts::default()
                };
                tracing::info!(notice = true, "this node has joined anew");
            }
            None => {}
            Some(Ok(())) => {
                let crowd = backoff.is_failing() || step == Step::Join;
                backoff.succeeded();
                // What everybody renews because of a taint is a crowd, too.
                let issued = |svid: Validity| svid.just_issued(clock::now(), (crowd || was_tainted).then(jitter));
                // A CA that signs with an authority that is tainted, or counts for nothing, is not asked again without a rest.
                let is_sound = keeper.vouched() == Some(Vouched::Sound);
                facts = Facts {
                    svid: keeper.validity().map(issued),
                    retry_at: (!is_sound).then(|| clock::now() + backoff.failed(jitter())),
                    ..Facts::default()
                };
            }
            Some(Err(error)) => {
                facts.refused |= step == Step::Renew && matches!(error, CaError::Refused(_) | CaError::Dismissed(_));
                if step == Step::Reattest && matches!(error, CaError::Refused(_) | CaError::Dismissed(_)) {
                    facts.no_reattest_before = Some(clock::now() + REATTEST_AGAIN);
                }
                if let (Step::Reattest, CaError::Dismissed(reason)) = (step, &error) {
                    link.dismissed(reason);
                }
                facts.retry_at = Some(clock::now() + backoff.failed(jitter()));
                complain(step, &error, facts.svid);
            }
        }
    }
}

/// A name for this process, which no other ever has. Without randomness there is none.
pub(crate) fn process_name() -> Vec<u8> {
    let mut name = vec![0; 16];
    match SystemRandom::new().fill(&mut name) {
        Ok(()) => name,
        Err(_) => Vec::new(),
    }
}

/// A node that waits for a human must say for what.
fn say(step: Step, token_file: Option<&Path>, svid: Option<Validity>, now: SystemTime) {
    match (step, token_file) {
        (Step::NeedToken, Some(file)) => tracing::warn!(
            "this node has no valid SVID and no unused token; put one from `hoplite token create` into `{}`",
            file.display()
        ),
        (Step::NeedToken, None) => tracing::error!(
            "this node has no valid SVID; run `hoplite join` with an invitation from `hoplite token create`, and this agent goes on with what it brings"
        ),
        (Step::ClockBehind, _) => {
            let starts = svid.map(|svid| Moment::from(svid.not_before).to_string());
            tracing::error!(
                starts,
                now = %Moment::from(now),
                "this machine's clock is before the start of the node's certificate; set this clock, or the CA's"
            );
        }
        (Step::Reattest, _) => tracing::warn!(
            "this node's SVID has ended, or its authority counts no more; the CA is asked whether it may come back by the key of it, without a token"
        ),
        (Step::Join | Step::Renew | Step::Sleep { .. }, _) => {}
    }
}

/// The less life is left, the louder.
fn complain(step: Step, error: &CaError, svid: Option<Validity>) {
    let left = svid
        .and_then(|svid| svid.not_after.duration_since(clock::now()).ok())
        .map(|left| left.as_secs());
    match (step, left) {
        (Step::Renew, Some(seconds_left)) => {
            tracing::warn!(%error, seconds_left, "cannot renew the node's SVID; it stays in use while it is valid");
        }
        (Step::Reattest, _) => {
            tracing::error!(%error, "the node's SVID counts no more, and the CA does not let it in by its key");
        }
        (Step::Renew, None) => tracing::error!(%error, "cannot renew the node's SVID, and it has expired"),
        _ => tracing::error!(%error, "cannot join the trust domain"),
    }
}
