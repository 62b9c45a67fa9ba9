//! What a CA that is nested under another one does all the time: it hears what that one's trust bundle is, and publishes its own keys for
//! JWT-SVIDs there. While the CA above is away, everything goes on with what was heard last.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::time::Duration;

use hoplite_host::backoff::{Backoff, jitter};
use hoplite_host::clock;
use hoplite_host::daemon::one_line;
use hoplite_wire::ca::{PublishJwtKeysRequest, WatchBundleRequest};
use tokio::time::timeout;

use crate::acts::Acts;
use crate::authority::above::TakeAbove;
use crate::authority::jwt::JwtTrusted;
use crate::authority::link::{Connected, Link, LinkError};
use crate::authority::taking::TrustError;
use crate::nested::record::JWT_KEYS_MAX;
use crate::registry::Registry;
use crate::write::WriteError;

/// How soon the CA above is tried again.
const RETRY: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(15));

/// A call that takes longer is stuck.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection is kept for so long at least.
const RENEW_PAUSE: Duration = Duration::from_secs(2);

/// That it is away is logged again after so many failures: some ten minutes.
const SAID_AGAIN: u32 = 40;

/// Keeps in touch with the CA above.
pub(crate) struct Nesting {
    pub(crate) link: Link,
    pub(crate) registry: Registry,
    pub(crate) acts: Acts,
}

/// Why the connection ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("what it says cannot be noted: {0}")]
    Write(#[from] WriteError<TrustError>),
    #[error("it closed the connection")]
    Closed,
    #[error("a newer SVID is to be shown")]
    Renewed,
    #[error("this CA no longer follows its store")]
    NotFollowing,
}

// === impl Nesting ===

impl Nesting {
    /// Returns never.
    pub(crate) async fn run(self) {
        let (mut retry, mut failures, mut said) = (RETRY, 0_u32, String::new());
        loop {
            let mut heard = false;
            let Err(ended) = self.follow(&mut heard).await;
            if heard {
                (failures, retry) = (0, RETRY);
            }
            if let Ended::Renewed = ended {
                continue;
            }
            let reason = one_line(&ended);
            self.link.is_away(reason.clone(), clock::now());
            if said != reason || failures.is_multiple_of(SAID_AGAIN) {
                tracing::error!(
                    target: "hoplite::audit",
                    notice = true,
                    reason,
                    "the CA above cannot be asked; what is valid stays so, and it is tried again"
                );
                said = reason;
            }
            failures = failures.saturating_add(1);
            tokio::time::sleep(retry.failed(jitter())).await;
        }
    }

    async fn follow(&self, heard: &mut bool) -> Result<Infallible, Ended> {
        let mut bundles = self.registry.bundles();
        let Connected { mut client, renew_at } = self.link.connect().await?;
        // Its agent may have no newer one yet.
        let renew_at = renew_at.max(clock::now() + RENEW_PAUSE);
        let silent = |_| LinkError::Refused(format!("it does not answer within {} s", PATIENCE.as_secs()));
        let watching = timeout(PATIENCE, client.watch_bundle(WatchBundleRequest {})).await;
        let watching = watching.map_err(silent)?.map_err(LinkError::from)?;
        let mut stream = watching.into_inner();
        let mut published = None;
        loop {
            bundles.borrow_and_update();
            let points = self.points();
            if *heard && published != points {
                let request = PublishJwtKeysRequest {
                    points: points.clone().unwrap_or_default(),
                };
                let publishing = timeout(PATIENCE, client.publish_jwt_keys(request)).await;
                publishing.map_err(silent)?.map_err(LinkError::from)?;
                published = points;
            }
            tokio::select! {
                message = stream.message() => {
                    let message = message.map_err(LinkError::from)?.ok_or(Ended::Closed)?;
                    let known = self.take(message).await?;
                    // It lost some: restored from yesterday, or its clock was ahead of their authority.
                    let is_lost = |point: &Vec<u8>| !known.contains(&JwtTrusted::name_of(point));
                    if published.iter().flatten().any(is_lost) {
                        published = None;
                    }
                    if !std::mem::replace(heard, true) {
                        tracing::info!(target: "hoplite::audit", "the CA above is heard");
                    }
                    self.link.is_back();
                }
                changed = bundles.changed() => changed.map_err(|_| Ended::NotFollowing)?,
                () = clock::reached(renew_at) => return Err(Ended::Renewed),
            }
        }
    }

    /// Notes its trust bundle. Answers with the ids of the keys for JWT-SVIDs that are in it.
    async fn take(&self, message: hoplite_wire::ca::Bundle) -> Result<BTreeSet<String>, Ended> {
        let bundle = self.link.bundle(message)?;
        let known = bundle.jwt().key_ids().map(str::to_owned).collect();
        let sequence = bundle.sequence();
        if self.registry.write(TakeAbove { bundle }).await? {
            tracing::info!(target: "hoplite::audit", sequence, "the CA above has another trust bundle");
            let detail = [("sequence", sequence.to_string())];
            self.acts.own_act("TakeBundleAbove", "trust bundle".to_owned(), detail);
        }
        Ok(known)
    }

    /// The keys for JWT-SVIDs that count here, the newest first; none while no authority here is the CA above's.
    fn points(&self) -> Option<Vec<Vec<u8>>> {
        let index = self.registry.index();
        let is_under = |one: &crate::authority::trust::Trusted| one.is_nested() && one.life.state.is_trusted();
        if !index.authority.all().values().any(is_under) {
            return None;
        }
        let jwt = index.authority.jwt().values();
        let mut counts: Vec<_> = jwt.filter(|key| key.life.state.is_trusted()).collect();
        counts.sort_by_key(|key| (!key.life.state.has_key(), std::cmp::Reverse(key.life.made)));
        counts.truncate(JWT_KEYS_MAX);
        Some(counts.into_iter().map(|key| key.public()).collect())
    }
}
