//! One caller's view: who it is now, what it may have now, and when to look again.
//!
//! The services on the socket are written on top of this, so that an entitlement is decided in one place.
//!
//! A caller waits for its own entries only. An answer is the full state, and what is not in it counts as taken back (W-7): so who
//! comes anew while some of its SVIDs are being minted waits a moment for all of them, and is then told those that are there;
//! who is being told already is told each one when it is there.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use hoplite_host::clock;
use hoplite_host::peer_process::PeerProcess;
use hoplite_host::shutdown::Shutdown;
use hoplite_identity::{BundleSet, TrustBundle, TrustDomain, X509Svid};
use ring::digest::{Context, SHA256};
use tokio::sync::{mpsc, watch};
use tonic::{Code, Status};

use crate::attest::{Attestor, LocalProcess};
use crate::kept::Kept;
use crate::refused::Refused;
use crate::supply::SupplyReceiver;
use crate::supply::crowds::Place;
use crate::supply::named::NamedEntry;
use crate::supply::shelf::{Fitting, Supplied};
use crate::tokens::Tokens;
use crate::troubles::Troubles;

/// Who comes for an SVID that is still to be minted, or read, waits so long for it.
const PATIENCE: Duration = Duration::from_secs(2);

/// What changes about a caller itself (it becomes another program, its user gets another name) is seen when something changes
/// that concerned it before, and after this at the latest.
const LOOK_EVERY: Duration = Duration::from_secs(300);

/// Begins sessions, and has what they share.
#[derive(Debug, Clone)]
pub(crate) struct Sessions {
    pub(crate) attestor: Arc<Attestor>,
    pub(crate) supply: SupplyReceiver,
    pub(crate) shutdown: Shutdown,
    /// Whom the socket refused, for the log and for those who ask.
    pub(crate) refused: Arc<Refused>,
    /// How it is known which process calls.
    pub(crate) peer_process: PeerProcess,
    /// What outlives the agent.
    pub(crate) kept: Kept,
    /// JWT-SVIDs.
    pub(crate) tokens: Tokens,
    /// What stands between the agent and its CA.
    pub(crate) troubles: Troubles,
}

/// One call of one process.
#[derive(Debug)]
pub(crate) struct Session {
    caller: Arc<LocalProcess>,
    attestor: Arc<Attestor>,
    supply: SupplyReceiver,
    /// Where it hears of changes: among those with the selectors that it had when it was looked at last.
    place: Option<Place>,
    launches: watch::Receiver<()>,
    shutdown: Shutdown,
    refused: Arc<Refused>,
    kept: Kept,
}

/// What a look at the supply finds.
enum Found {
    Is(Entitlement),
    /// Some of it, and the rest is coming.
    Part(Entitlement),
    /// It may come: wait, or be told this.
    NotYet(Status),
    /// It will not.
    Not(Status),
}

/// All that a caller may have at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Entitlement {
    /// Never empty; the first is the default identity.
    pub(crate) identities: Vec<Identity>,
    bundles: Arc<BundleSet>,
}

/// One identity of a caller.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) svid: Arc<X509Svid>,
    /// What it was minted for.
    pub(crate) entry: Arc<NamedEntry>,
    /// Unique among the caller's, or empty.
    pub(crate) hint: String,
}

/// Why a session wakes up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wake {
    /// Something changed that may concern the caller.
    Look,
    /// The caller has exited, has hung up, or the agent stops.
    End,
}

// === impl Sessions ===

impl Sessions {
    pub(crate) fn session(&self, caller: &Arc<LocalProcess>) -> Session {
        Session {
            caller: Arc::clone(caller),
            attestor: Arc::clone(&self.attestor),
            supply: self.supply.clone(),
            place: None,
            launches: self.attestor.launches().changes(),
            shutdown: self.shutdown.clone(),
            refused: Arc::clone(&self.refused),
            kept: self.kept.clone(),
        }
    }
}

// === impl Session ===

impl Session {
    /// Attests the caller and looks up what it may have. The error is what it is told (W-6).
    pub(crate) async fn entitlement(&mut self) -> Result<Entitlement, Status> {
        let looked = self.look().await;
        let result = match &looked {
            Ok(_) => "identity",
            Err(status) if status.code() == Code::PermissionDenied => "no_identity",
            Err(status) if status.code() == Code::Aborted => "exited",
            Err(_) => "not_yet",
        };
        self.attestor.results().get([result]).inc();
        looked
    }

    async fn look(&mut self) -> Result<Entitlement, Status> {
        let started = clock::moment();
        let is_new = self.place.is_none();
        // Whatever is on the disk is read within a moment of the start.
        let _ = tokio::time::timeout(PATIENCE, self.kept.is_read()).await;
        loop {
            self.launches.mark_unchanged();
            let so_far = match self.look_once().await? {
                Found::Is(entitlement) => return Ok(entitlement),
                Found::Part(entitlement) if is_new => Ok(entitlement),
                Found::Part(entitlement) => return Ok(entitlement),
                Found::Not(status) => return Err(status),
                Found::NotYet(status) => Err(status),
            };
            if !self.has_changed_since(started).await {
                return so_far;
            }
        }
    }

    /// Waits for another supply, for as long as who comes first has patience.
    async fn has_changed_since(&mut self, started: Instant) -> bool {
        let left = PATIENCE.saturating_sub(started.elapsed());
        let changed = async {
            match &mut self.place {
                Some(place) => place.changed().await,
                // Of the first supply.
                None => drop(self.supply.changed().await),
            }
        };
        tokio::select! {
            changed = tokio::time::timeout(left, changed) => changed.is_ok(),
            () = self.caller.exited() => false,
            () = self.shutdown.wait() => false,
        }
    }

    async fn look_once(&mut self) -> Result<Found, Status> {
        let Some(supply) = self.supply.borrow_and_update().clone() else {
            let status = Status::unavailable("the agent has not heard from its CA since it started; try again soon");
            return match self.kept.is_being_taken_over() {
                true => Ok(self.look_early().await?.unwrap_or(Found::NotYet(status))),
                false => Ok(Found::Not(status)),
            };
        };
        if let Some(reason) = supply.dismissed() {
            return Ok(Found::Not(Status::permission_denied(format!(
                "no identity issued: the CA has dismissed this node: {reason}"
            ))));
        }
        let seen = self
            .attestor
            .attest(&self.caller)
            .await
            .map_err(|e| Status::aborted(e.to_string()))?;
        // From here on nothing is missed: what changes after this is heard of.
        match &mut self.place {
            Some(place) if place.is_among(&seen.selectors) => place.mark_unchanged(),
            place => *place = Some(supply.join(&seen.selectors)),
        }
        let Fitting {
            supplied: matching,
            bundles,
            unnamed,
        } = supply.matching(&seen.selectors);
        let now = clock::now();
        let identities = identities(&matching, now);
        let is_missing = |supplied: &&Supplied| supplied.svid.as_ref().is_none_or(|svid| svid.get(now).is_none());
        let missing: Vec<&Supplied> = matching.iter().filter(is_missing).collect();
        let is_coming = missing.iter().any(|supplied| supplied.is_coming());
        if !missing.is_empty() {
            supply.ask_for(missing.iter().map(|supplied| Arc::clone(&supplied.entry)));
        }
        if !identities.is_empty() {
            let entitlement = Entitlement { identities, bundles };
            return Ok(match is_coming && !supply.is_dry() {
                true => Found::Part(entitlement),
                false => Found::Is(entitlement),
            });
        }
        if let Some(supplied) = missing.first() {
            let id = &supplied.entry.spiffe_id;
            let why = supplied.refused.as_ref().map(|why| format!(": {why}"));
            let status = Status::unavailable(format!(
                "the SVID for `{id}` is not issued yet{}; try again soon",
                why.unwrap_or_default()
            ));
            return Ok(match is_coming {
                true => Found::NotYet(status),
                false => Found::Not(status),
            });
        }
        let list = |items: Vec<String>| {
            if items.is_empty() {
                "nothing".to_owned()
            } else {
                items.join(" ")
            }
        };
        let selectors = list(seen.selectors.iter().map(ToString::to_string).collect());
        let unknown = if seen.unknown.is_empty() {
            String::new()
        } else {
            format!("; not known: {}", seen.unknown.join(", "))
        };
        // What fits, and names nobody: the nearest that there is to say.
        let unnamed: String = (unnamed.iter())
            .map(|(id, reason)| format!("; the entry `{id}` fits, and gives no name: {reason}"))
            .collect();
        self.refused.no_identity(&self.caller, &selectors);
        Ok(Found::Not(Status::permission_denied(format!(
            "no identity issued: no entry matches {selectors}{unknown}{unnamed}; `hoplite entry why --pid {}` shows the nearest while that process lives",
            self.caller.pid
        ))))
    }

    /// What is the caller's of what was kept, before all of that is where it belongs.
    async fn look_early(&mut self) -> Result<Option<Found>, Status> {
        let Some(early) = self.kept.early() else {
            return Ok(None);
        };
        let seen = self.attestor.attest(&self.caller).await;
        let seen = seen.map_err(|exited| Status::aborted(exited.to_string()))?;
        let Fitting { supplied, bundles, .. } = early.matching(&seen.selectors);
        let identities = identities(&supplied, clock::now());
        // Less than all of it is no answer.
        let is_whole = !identities.is_empty() && identities.len() == supplied.len();
        Ok(is_whole.then_some(Found::Is(Entitlement { identities, bundles })))
    }

    /// Waits until there may be something new to tell.
    pub(crate) async fn wake(&mut self) -> Wake {
        let heard = async {
            match &mut self.place {
                Some(place) => place.changed().await,
                // It was told what was kept, or nothing yet: of the supply itself.
                None => match self.supply.changed().await {
                    Ok(()) => {}
                    Err(_) => std::future::pending().await,
                },
            }
        };
        tokio::select! {
            () = heard => Wake::Look,
            () = tokio::time::sleep(LOOK_EVERY) => Wake::Look,
            changed = self.launches.changed() => if changed.is_ok() { Wake::Look } else { Wake::End },
            () = self.caller.exited() => Wake::End,
            () = self.shutdown.wait() => Wake::End,
        }
    }

    /// Hands a message to the caller, or learns that there is nobody to hand it to. A caller that does not read waits
    /// with nothing but this one message in memory.
    pub(crate) async fn deliver<T>(&mut self, to: &mpsc::Sender<Result<T, Status>>, item: Result<T, Status>) -> Wake {
        tokio::select! {
            sent = to.send(item) => if sent.is_ok() { Wake::Look } else { Wake::End },
            () = self.caller.exited() => Wake::End,
            () = self.shutdown.wait() => Wake::End,
        }
    }

    /// Who calls.
    pub(crate) fn caller(&self) -> &LocalProcess {
        &self.caller
    }
}

/// Those of what a caller matches that there are, the default first.
fn identities(matching: &[Supplied], now: SystemTime) -> Vec<Identity> {
    let mut identities: Vec<Identity> = Vec::with_capacity(matching.len());
    for supplied in matching {
        let svid = supplied.svid.as_ref().and_then(|svid| svid.get(now));
        let Some(svid) = svid.cloned() else { continue };
        // W-9: hints are unique in a response, and the first keeps it.
        let taken = identities.iter().any(|identity| identity.hint == supplied.entry.hint);
        let hint = if taken {
            String::new()
        } else {
            supplied.entry.hint.clone()
        };
        let entry = Arc::clone(&supplied.entry);
        identities.push(Identity { svid, entry, hint });
    }
    identities
}

// === impl Entitlement ===

impl Entitlement {
    /// The bundles the caller may verify peers with, sorted by trust domain.
    pub(crate) fn bundles(&self) -> impl Iterator<Item = &Arc<TrustBundle>> {
        self.bundles.iter()
    }

    pub(crate) fn bundle(&self, trust_domain: &TrustDomain) -> Option<&Arc<TrustBundle>> {
        self.bundles.get(trust_domain)
    }

    /// Equal when, and only when, the caller would be told the same.
    pub(crate) fn fingerprint(&self) -> [u8; 32] {
        let mut context = Context::new(&SHA256);
        let mut part = |bytes: &[u8]| {
            context.update(&(bytes.len() as u64).to_be_bytes());
            context.update(bytes);
        };
        for identity in &self.identities {
            part(identity.svid.leaf().fingerprint().as_bytes());
            part(identity.hint.as_bytes());
        }
        for bundle in self.bundles() {
            part(bundle.trust_domain().as_str().as_bytes());
            for authority in bundle.authorities() {
                part(authority);
            }
        }
        let mut bytes = [0; 32];
        bytes.copy_from_slice(context.finish().as_ref());
        bytes
    }

    #[cfg(test)]
    pub(crate) fn for_test(identities: Vec<Identity>, bundles: BundleSet) -> Self {
        Self {
            identities,
            bundles: Arc::new(bundles),
        }
    }
}
