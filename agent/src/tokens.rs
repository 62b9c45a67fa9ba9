//! JWT-SVIDs for the workloads of this node: minted by the CA when somebody asks, and at hand for as long as they serve.
//!
//! While the CA is away, a token that is at hand is given as long as it lives.

pub(crate) mod cache;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use hoplite_host::clock;
use hoplite_host::shutdown::Shutdown;
use hoplite_identity::jwt::{self, JwtRejected};
use hoplite_identity::{EntryId, SpiffeId, TrustBundle};
use hoplite_wire::ca::node_client::NodeClient;
use hoplite_wire::ca::{AttestedValues, IssueJwtRequest};
use tokio::sync::{Semaphore, watch};
use tonic::transport::Channel;
use tonic::{Code, Status};
use zeroize::Zeroizing;

use crate::metrics::Metrics;
use crate::supply::SupplyReceiver;
use crate::supply::named::NamedEntry;
use crate::tokens::cache::{AtHand, Audience, Cache, Token};

/// A signature takes less than a millisecond. A CA that needs longer than this is stuck, and somebody waits.
const ISSUE_TIMEOUT: Duration = Duration::from_secs(3);

/// Entries in one call; a workload has one identity, or a few.
const BATCH: usize = 64;

/// Calls to the CA under way: the CA lets an agent have 8.
const CALLS_MAX: usize = 8;

/// Of one user, so that it leaves some to others.
const CALLS_PER_USER_MAX: usize = 4;

/// However often the supply changes, what went is looked for no more often than this. It is not given to anybody meanwhile.
const FORGET_EVERY: Duration = Duration::from_secs(1);

/// Tokens at hand, and the way to more. Clones are the same ones.
#[derive(Debug, Clone)]
pub(crate) struct Tokens(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// The connection that the CA is watched on.
    connections: watch::Receiver<Option<Channel>>,
    cache: Mutex<Cache>,
    calls: Semaphore,
    /// Calls of each user, so that who has many under way waits for its own, and nobody else does.
    by_user: Mutex<HashMap<u32, Weak<Semaphore>>>,
    /// Who asks for what somebody asks for already waits for the answer to that.
    flights: Mutex<HashMap<Flight, Weak<Line>>>,
    metrics: Arc<Metrics>,
}

/// What one call to the CA is for.
type Flight = (Vec<RegisteredKey>, Audience);

type RegisteredKey = (EntryId, u64);

/// Those who wait for one call: when it last failed, and why.
type Line = tokio::sync::Mutex<Option<(Instant, Arc<NotMinted>)>>;

/// What is asked for.
pub(crate) struct Asked<'a> {
    /// Never empty.
    pub(crate) entries: Vec<Arc<NamedEntry>>,
    /// For whom; never empty.
    pub(crate) audience: &'a [String],
    /// Of the entries' trust domain.
    pub(crate) bundle: &'a TrustBundle,
    /// Who asks.
    pub(crate) uid: u32,
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
enum NotMinted {
    #[error("the CA is away")]
    Away,
    #[error("the CA did not answer in time")]
    Timeout,
    #[error("the CA answered: {0}")]
    Failed(String),
    #[error("the CA refused: {0}")]
    Refused(String),
    #[error("the CA issued a token that the trust bundle does not vouch for: {0}")]
    Unverified(#[from] JwtRejected),
    #[error("the CA issued a token that is not meant for all who were named")]
    Audience,
    #[error("the CA issued `{got}` where `{wanted}` was asked for")]
    Other { wanted: SpiffeId, got: SpiffeId },
    #[error("too many calls for JWT-SVIDs are under way")]
    Busy,
}

// === impl Tokens ===

impl Tokens {
    pub(crate) fn new(connections: watch::Receiver<Option<Channel>>, metrics: Arc<Metrics>) -> Self {
        Self(Arc::new(Shared {
            connections,
            cache: Mutex::default(),
            calls: Semaphore::new(CALLS_MAX),
            by_user: Mutex::default(),
            flights: Mutex::default(),
            metrics,
        }))
    }

    /// Forgets what nobody may have any more, until the agent stops.
    pub(crate) async fn run(self, mut supply: SupplyReceiver, mut shutdown: Shutdown) {
        loop {
            let changed = tokio::select! {
                changed = supply.changed() => changed,
                () = shutdown.wait() => return,
            };
            if changed.is_err() {
                return;
            }
            let now = supply.borrow_and_update().clone();
            match now.filter(|supply| supply.dismissed().is_none()) {
                Some(supply) => self
                    .cache()
                    .retain(clock::now(), |id, revision| supply.holds(id, revision)),
                None => self.cache().clear(),
            }
            tokio::select! {
                () = tokio::time::sleep(FORGET_EVERY) => {}
                () = shutdown.wait() => return,
            }
        }
    }

    /// How many are at hand.
    pub(crate) fn len(&self) -> usize {
        self.cache().len()
    }

    /// A token for each entry, in order. The error is what the caller is told.
    pub(crate) async fn get(&self, asked: &Asked<'_>) -> Result<Vec<Token>, Status> {
        let audience = Audience::of(asked.audience);
        if let Some(fresh) = self.fresh(asked, audience) {
            return Ok(fresh);
        }
        let keys = asked.entries.iter().map(|entry| (entry.id.clone(), entry.revision));
        let flight = self.flight((keys.collect(), audience));
        let since = clock::moment();
        let mut line = flight.lock().await;
        // Whoever was before has perhaps brought it.
        if let Some(fresh) = self.fresh(asked, audience) {
            return Ok(fresh);
        }
        let mut tokens = Vec::with_capacity(asked.entries.len());
        for entries in asked.entries.chunks(BATCH) {
            // What failed while this one waited for it is not tried again by each of those who waited.
            let failed = line.as_ref().filter(|(at, _)| *at >= since);
            let minted = match failed.map(|(_, error)| Arc::clone(error)) {
                Some(error) => Err(error),
                None => self.mint(asked, entries, audience).await.map_err(Arc::new),
            };
            if let Err(error) = &minted {
                *line = Some((clock::moment(), Arc::clone(error)));
            }
            let at_hand = |entry: &NamedEntry, error: &NotMinted| match self.look(asked, entry, audience) {
                AtHand::Fresh(token) | AtHand::Aged(token) => Ok(token),
                AtHand::Nothing => Err(error.status(&entry.spiffe_id)),
            };
            match minted {
                Ok(minted) => {
                    for (entry, token) in entries.iter().zip(minted) {
                        tokens.push(token.or_else(|error| at_hand(entry, &error))?);
                    }
                }
                Err(error) => {
                    for entry in entries {
                        tokens.push(at_hand(entry, &error)?);
                    }
                }
            }
        }
        Ok(tokens)
    }

    /// If all of them are.
    fn fresh(&self, asked: &Asked<'_>, audience: Audience) -> Option<Vec<Token>> {
        let fresh = asked
            .entries
            .iter()
            .map(|entry| match self.look(asked, entry, audience) {
                AtHand::Fresh(token) => Some(token),
                AtHand::Aged(_) | AtHand::Nothing => None,
            });
        fresh.collect()
    }

    fn look(&self, asked: &Asked<'_>, entry: &NamedEntry, audience: Audience) -> AtHand {
        let keys = (asked.bundle.jwt(), asked.bundle.sequence());
        self.cache().look(entry, audience, keys, clock::now())
    }

    /// One call. Fails as a whole only when the CA cannot be asked.
    async fn mint(
        &self,
        asked: &Asked<'_>,
        entries: &[Arc<NamedEntry>],
        audience: Audience,
    ) -> Result<Vec<Result<Token, NotMinted>>, NotMinted> {
        let shared = &self.0;
        let own = self.calls_of(asked.uid);
        let places = async { Some((own.acquire().await.ok()?, shared.calls.acquire().await.ok()?)) };
        let places = tokio::time::timeout(ISSUE_TIMEOUT, places).await;
        let _places = places.map_err(|_| NotMinted::Busy)?;
        let answer = self.ask(asked, entries).await.inspect_err(|error| {
            for _ in entries {
                shared.metrics.asked("jwt", false);
            }
            tracing::warn!(%error, "no JWT-SVIDs could be issued; what is at hand is given while it lives");
        })?;
        let now = clock::now();
        let mut tokens = Vec::with_capacity(entries.len());
        for (entry, result) in entries.iter().zip(answer) {
            let accepted = match result.error.is_empty() {
                true => accept(asked, entry, result.token, now),
                false => Err(NotMinted::Refused(result.error)),
            };
            shared.metrics.asked("jwt", accepted.is_ok());
            match &accepted {
                Ok(token) => self.cache().keep(entry, audience, token, asked.bundle.sequence(), now),
                Err(error) => {
                    tracing::warn!(%error, spiffe_id = %entry.spiffe_id, entry = %entry.registered_id(), "no JWT-SVID");
                }
            }
            tokens.push(accepted);
        }
        Ok(tokens)
    }

    async fn ask(
        &self,
        asked: &Asked<'_>,
        entries: &[Arc<NamedEntry>],
    ) -> Result<Vec<hoplite_wire::ca::IssueJwtResult>, NotMinted> {
        let channel = self.0.connections.borrow().clone().ok_or(NotMinted::Away)?;
        let mut request = tonic::Request::new(IssueJwtRequest {
            entry_ids: entries.iter().map(|entry| entry.registered_id().to_string()).collect(),
            audience: asked.audience.to_vec(),
            values: match entries.iter().any(|entry| entry.origin.is_some()) {
                true => entries
                    .iter()
                    .map(|entry| AttestedValues {
                        selectors: entry.values(),
                    })
                    .collect(),
                false => Vec::new(),
            },
        });
        request.set_timeout(ISSUE_TIMEOUT);
        let call = NodeClient::new(channel).issue_jwt(request).await;
        let results = match call {
            Ok(response) => response.into_inner().results,
            Err(status) if matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled) => {
                return Err(NotMinted::Timeout);
            }
            Err(status) if matches!(status.code(), Code::PermissionDenied | Code::Unauthenticated) => {
                // The watch hears it too, and the whole node has nothing any more.
                self.cache().clear();
                return Err(NotMinted::Refused(status.message().to_owned()));
            }
            Err(status) => return Err(NotMinted::Failed(status.message().to_owned())),
        };
        match results.len() == entries.len() {
            true => Ok(results),
            false => Err(NotMinted::Failed(format!(
                "{} results for {} entries",
                results.len(),
                entries.len()
            ))),
        }
    }

    fn flight(&self, of: Flight) -> Arc<Line> {
        let mut flights = self.0.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = flights.get(&of).and_then(Weak::upgrade) {
            return flight;
        }
        flights.retain(|_, flight| flight.strong_count() > 0);
        let flight = Arc::default();
        flights.insert(of, Arc::downgrade(&flight));
        flight
    }

    fn calls_of(&self, uid: u32) -> Arc<Semaphore> {
        let mut by_user = self.0.by_user.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(calls) = by_user.get(&uid).and_then(Weak::upgrade) {
            return calls;
        }
        by_user.retain(|_, calls| calls.strong_count() > 0);
        let calls = Arc::new(Semaphore::new(CALLS_PER_USER_MAX));
        by_user.insert(uid, Arc::downgrade(&calls));
        calls
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.0.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Believes nothing that can be checked: it is the entry's, for whom it was asked for, and the trust bundle vouches for it.
fn accept(asked: &Asked<'_>, entry: &NamedEntry, token: String, now: SystemTime) -> Result<Token, NotMinted> {
    let token = Zeroizing::new(token);
    let first = asked.audience.first().map_or("", String::as_str);
    let keys = |domain: &_| (domain == asked.bundle.trust_domain()).then(|| asked.bundle.jwt());
    let svid = jwt::verify(&token, first, keys, now)?;
    if !asked.audience.iter().all(|name| svid.audience().contains(name)) {
        return Err(NotMinted::Audience);
    }
    if *svid.spiffe_id() != entry.spiffe_id {
        return Err(NotMinted::Other {
            wanted: entry.spiffe_id.clone(),
            got: svid.spiffe_id().clone(),
        });
    }
    Ok(Token {
        kid: jwt::key_id(&token).unwrap_or_default(),
        text: Arc::new(token),
        expires_at: svid.expires_at(),
    })
}

// === impl NotMinted ===

impl NotMinted {
    fn status(&self, id: &SpiffeId) -> Status {
        match self {
            Self::Refused(_) => Status::permission_denied(format!("no JWT-SVID for `{id}`: {self}")),
            Self::Busy => Status::resource_exhausted(format!("no JWT-SVID for `{id}`: {self}; try again")),
            _ => Status::unavailable(format!(
                "no JWT-SVID for `{id}` is at hand, and none can be had: {self}; try again soon"
            )),
        }
    }
}
