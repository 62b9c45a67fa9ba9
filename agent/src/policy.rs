//! Policy on this node: fetched from the CA, verified here, kept on disk, and handed to those who enforce it.
//!
//! What is kept outlives the CA's absence and a restart. It is verified again when it is read back, and nothing older
//! than what was ever accepted takes its place, whatever the CA says.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hoplite_decision::{Keeper, Signers, SignersRefused};
use hoplite_host::backoff::jitter;
use hoplite_host::clock;
use hoplite_host::files::FileError;
use hoplite_host::shutdown::Shutdown;
use hoplite_identity::TrustDomain;
use hoplite_policy::bundle::{Refused, Stage};
use hoplite_policy::holding::{HeldBundle, Holding, NotTaken, PolicyTrust};
use hoplite_seal::{BadSet, SealBroken, SignerChain, TrustedSigners};
use hoplite_wire::ca::node_client::NodeClient;
use hoplite_wire::ca::{FetchPolicyRequest, FetchSignersRequest, PolicyRef, PolicyState, SignersRef};
use prost::bytes::Bytes;
use tokio::sync::watch;
use tonic::transport::Channel;

use crate::node::link::{CaError, CaLink, RETRY};

/// A CA that needs longer for one piece of a bundle is stuck.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(10);

/// What proxies on this node are told.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Feed {
    pub(crate) live: Option<FeedBundle>,
    pub(crate) shadow: Option<FeedBundle>,
    /// Signed envelopes.
    pub(crate) grants: Vec<Vec<u8>>,
    /// Whom this agent believes: who is told nothing by a configuration of its own begins with them.
    pub(crate) signers: Option<Arc<SignerChain>>,
}

/// A bundle that was verified, as it travels.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct FeedBundle {
    pub(crate) revision: u64,
    /// Shared by all who are told.
    pub(crate) bytes: Bytes,
}

/// The one holding of this node's policy, its keeper, and who hears of it: proxies by the feed, and whoever decides in this
/// process by the holding itself, so that nothing is verified or kept twice.
pub(crate) struct PolicyHolder {
    holding: Holding,
    keeper: Keeper,
    signers: Signers,
    /// Others are believed than when what is held was verified.
    doubted: bool,
    data_dir: PathBuf,
    /// Whose policy this is.
    trust_domain: TrustDomain,
    max_bytes: usize,
    holdings: watch::Sender<Arc<Holding>>,
    feed: watch::Sender<Arc<Feed>>,
}

/// What this node's own configuration says of policy, and may say anew while the agent runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Whose policy is taken at first; nobody named when empty.
    pub(crate) signers: TrustedSigners,
    /// The longest bundle.
    pub(crate) max_bytes: usize,
}

/// Why an agent cannot hold policy.
#[derive(Debug, thiserror::Error)]
pub enum HolderError {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// What the configuration names is no signer set.
    #[error("`policy_signers`: {0}")]
    Signers(#[from] BadSet),
}

/// Why what the CA names cannot be taken.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Ca(#[from] CaError),
    #[error(transparent)]
    NotTaken(#[from] NotTaken),
    #[error("the signers that the CA names are not followed: {0}")]
    Signers(#[from] SignersRefused),
    #[error("the CA named revision {named} a {stage} bundle, and it is another")]
    Other { named: u64, stage: Stage },
    #[error("what is accepted cannot be kept: {0}")]
    Disk(#[from] FileError),
}

/// Follows what the CA says is in force until the agent stops.
pub(crate) async fn run(
    mut holder: PolicyHolder,
    link: CaLink,
    mut states: watch::Receiver<Option<Arc<PolicyState>>>,
    mut wanted: watch::Receiver<Wanted>,
    mut shutdown: Shutdown,
) {
    let mut backoff = RETRY;
    let mut retry = false;
    loop {
        let wait = backoff_or_forever(retry.then(|| backoff.failed(jitter())));
        tokio::select! {
            changed = states.changed() => if changed.is_err() { return },
            Ok(()) = wanted.changed() => {
                let wanted = wanted.borrow_and_update().clone();
                if let Err(error) = holder.configure(&wanted) {
                    tracing::error!(target: "hoplite::audit", %error, "the signers that the configuration names cannot be followed; those of before are believed");
                }
            }
            () = wait => {}
            () = shutdown.wait() => return,
        }
        let Some(state) = states.borrow_and_update().clone() else {
            holder.doubt();
            continue;
        };
        let followed = tokio::select! {
            followed = holder.follow(&link, &state) => followed,
            () = shutdown.wait() => return,
        };
        holder.doubt();
        // What was refused stays refused until the CA says something else; what failed is tried again.
        retry = followed.is_err();
        match followed {
            Ok(()) => backoff.succeeded(),
            Err(error) => tracing::warn!(%error, "cannot get the policy; what is held stays in force"),
        }
    }
}

async fn backoff_or_forever(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}

// === impl Feed ===

impl Feed {
    fn of(holding: &Holding, signers: &Signers) -> Self {
        let bundle = |held: &HeldBundle| FeedBundle {
            revision: held.revision(),
            bytes: Bytes::from_owner(held.clone()),
        };
        Self {
            live: holding.live().map(bundle),
            shadow: holding.shadow().map(bundle),
            grants: holding.grants().iter().map(|grant| grant.bytes().to_vec()).collect(),
            signers: signers.chain().cloned().map(Arc::new),
        }
    }
}

// === impl PolicyHolder ===

impl PolicyHolder {
    /// Reads what was kept. What is damaged, or signed by somebody who is trusted no longer, is left out and said: it
    /// must not keep the agent from serving identities.
    ///
    /// # Errors
    /// The state cannot be read, so that what was ever accepted is not known.
    pub(crate) fn open(
        data_dir: &Path,
        configured: &TrustedSigners,
        trust_domain: &TrustDomain,
        max_bytes: usize,
        now: SystemTime,
    ) -> Result<Self, HolderError> {
        let named = (!configured.is_empty()).then_some((trust_domain, configured));
        let (mut signers, doubt) = Signers::open(data_dir, named)?;
        if let Some(doubt) = doubt {
            tracing::error!(target: "hoplite::audit", "{doubt}");
        }
        // What the configuration names must be followed over the next start, too.
        signers.keep()?;
        let trust = signers.trust().map(|trust| PolicyTrust { max_bytes, ..trust });
        let (keeper, kept) = Keeper::open(data_dir)?;
        let (holding, lost) = Holding::restore(trust, kept, now);
        for why in lost {
            tracing::error!(%why, "signed policy that was kept here is not used");
        }
        let revision = |held: Option<&HeldBundle>| held.map(HeldBundle::revision);
        let (live, shadow) = (revision(holding.live()), revision(holding.shadow()));
        if live.is_some() || shadow.is_some() {
            tracing::info!(live, shadow, "policy kept from before");
        }
        Ok(Self {
            holdings: watch::Sender::new(Arc::new(holding.clone())),
            feed: watch::Sender::new(Arc::new(Feed::of(&holding, &signers))),
            holding,
            keeper,
            signers,
            doubted: false,
            data_dir: data_dir.to_owned(),
            trust_domain: trust_domain.clone(),
            max_bytes,
        })
    }

    /// Takes what the configuration says anew, as the next start would.
    fn configure(&mut self, wanted: &Wanted) -> Result<(), HolderError> {
        let named = (!wanted.signers.is_empty()).then_some((&self.trust_domain, &wanted.signers));
        let (signers, doubt) = Signers::open(&self.data_dir, named)?;
        if let Some(doubt) = doubt {
            tracing::error!(target: "hoplite::audit", "{doubt}");
        }
        let before = self.signers.chain().map(SignerChain::digest);
        self.max_bytes = wanted.max_bytes;
        if let Some(trust) = signers.trust() {
            let names: Vec<&str> = trust.signers.names().collect();
            if signers.chain().map(SignerChain::digest) != before {
                tracing::warn!(target: "hoplite::audit", signers = ?names, "signers of policy: the configuration names these from now on");
            }
            let max_bytes = self.max_bytes;
            self.holding.believe(PolicyTrust { max_bytes, ..trust });
        }
        self.signers = signers;
        self.doubted = true;
        self.signers.keep()?;
        self.publish();
        Ok(())
    }

    /// Verifies again what is held, if others are believed than before.
    fn doubt(&mut self) {
        if !std::mem::take(&mut self.doubted) {
            return;
        }
        for why in self.holding.doubt(clock::now()) {
            tracing::error!(%why, "signed policy that was held is not believed any more");
        }
        self.publish();
        if let Err(error) = self.keep() {
            tracing::warn!(%error, "what is held of policy is not kept yet");
        }
    }

    /// What proxies are told, now and at each change.
    pub(crate) fn feed(&self) -> watch::Receiver<Arc<Feed>> {
        self.feed.subscribe()
    }

    /// What is held, now and at each change.
    pub(crate) fn holdings(&self) -> watch::Receiver<Arc<Holding>> {
        self.holdings.subscribe()
    }

    /// Brings what is held to what the CA names. A refusal is said and is no error: asking again would bring the same.
    /// What is taken is in force before it is kept, so that a full disk keeps no revocation away; keeping is tried again.
    async fn follow(&mut self, link: &CaLink, state: &PolicyState) -> Result<(), Trouble> {
        let signers = match &state.signers {
            Some(named) => self.follow_signers(link, named).await,
            None => Ok(false),
        };
        let (others, signers) = match signers {
            Ok(others) => (others, Ok(())),
            Err(refused @ Trouble::Signers(_)) => {
                tracing::error!(target: "hoplite::audit", "ALARM: {refused}; those of before are believed");
                (false, Ok(()))
            }
            Err(error) => (false, Err(error)),
        };
        self.doubted |= others;
        let followed = self.follow_policy(link, state).await;
        // After what they have signed could be taken.
        self.doubt();
        followed.and(signers).and(self.keep())
    }

    /// Walks to the newest signers. Whether others are believed now.
    async fn follow_signers(&mut self, link: &CaLink, named: &SignersRef) -> Result<bool, Trouble> {
        let own = self.signers.chain().map(|chain| (chain.version(), chain.digest()));
        if own.is_some_and(|(version, digest)| version == named.version && digest.0[..] == named.sha256[..]) {
            return Ok(false);
        }
        let first = self.signers.trust().is_none();
        // All of them: signers that a configuration names have yet to find their place.
        let sets = fetch_signers(link).await?;
        if !self.signers.follow(&sets, &self.trust_domain)? {
            return Ok(false);
        }
        if let Some(trust) = self.signers.trust() {
            let version = self.signers.chain().map(SignerChain::version);
            let names: Vec<&str> = trust.signers.names().collect();
            if first {
                tracing::info!(target: "hoplite::audit", version, signers = ?names, "signers of policy: these are the first");
            } else {
                tracing::warn!(target: "hoplite::audit", version, signers = ?names, "signers of policy: these are believed from now on");
            }
            let max_bytes = self.max_bytes;
            self.holding.believe(PolicyTrust { max_bytes, ..trust });
        }
        self.publish();
        let _ = self.keep(); // what fails is tried again below
        Ok(true)
    }

    async fn follow_policy(&mut self, link: &CaLink, state: &PolicyState) -> Result<(), Trouble> {
        // First what costs no call, and narrows.
        let (grants, refused) = self
            .holding
            .examine_grants(state.grants.iter().map(Vec::as_slice), clock::now());
        for error in refused {
            tracing::warn!(%error, "a grant is not used");
        }
        let mut changed = grants != self.holding.grants();
        self.holding.take_grants(grants);
        if state.shadow.is_none() && self.holding.clear_shadow() {
            tracing::info!("the shadow policy has ended");
            changed = true;
        }
        if changed {
            self.publish();
        }
        // Whatever the CA takes its time for; what fails is tried again below.
        let _ = self.keep();
        let taken = self.take_all(link, state).await;
        taken.and(self.keep())
    }

    async fn take_all(&mut self, link: &CaLink, state: &PolicyState) -> Result<(), Trouble> {
        for (stage, named) in [(Stage::Live, &state.live), (Stage::Shadow, &state.shadow)] {
            if let Some(named) = named {
                match self.take(link, stage, named).await {
                    Err(error @ (Trouble::NotTaken(_) | Trouble::Other { .. })) => {
                        tracing::error!(revision = named.revision, %stage, %error, "policy is refused; what is held stays in force");
                    }
                    result => result?,
                }
            }
        }
        Ok(())
    }

    async fn take(&mut self, link: &CaLink, stage: Stage, named: &PolicyRef) -> Result<(), Trouble> {
        let holds = self.holding.bundle(stage).is_some_and(|held| {
            let seen = held.seen();
            seen.revision == named.revision && seen.manifest.0.as_slice() == named.manifest_sha256
        });
        if holds {
            return Ok(());
        }
        // What would be refused is not worth a fetch.
        let max_bytes = self.holding.trust().ok_or(NotTaken::NoSigner)?.max_bytes;
        if named.bytes > max_bytes as u64 {
            let too_large = SealBroken::TooLarge {
                bytes: usize::try_from(named.bytes).unwrap_or(usize::MAX),
                max: max_bytes,
            };
            return Err(NotTaken::from(Refused::Seal(too_large)).into());
        }
        if let Some(seen) = self.holding.seen(stage)
            && named.revision < seen.revision
        {
            let lower = Refused::LowerRevision {
                have: seen.revision,
                got: named.revision,
            };
            return Err(NotTaken::from(lower).into());
        }
        let bytes = fetch(link, named, max_bytes).await?;
        self.accept(stage, named, &bytes, clock::now())
    }

    /// Verifies a bundle and puts it in force; what cannot be kept on the disk is in force all the same.
    fn accept(&mut self, stage: Stage, named: &PolicyRef, bytes: &[u8], now: SystemTime) -> Result<(), Trouble> {
        let examined = self.holding.examine(bytes, now)?;
        let bundle = examined.bundle();
        if bundle.stage() != stage || bundle.revision() != named.revision {
            return Err(Trouble::Other {
                named: named.revision,
                stage,
            });
        }
        let held = self.holding.take(examined).map_err(NotTaken::from)?;
        tracing::info!(
            target: "hoplite::audit",
            revision = held.revision(),
            manifest = %held.seen().manifest,
            %stage,
            signed_by = ?held.signed_by(),
            "policy is accepted"
        );
        self.publish();
        self.keep()
    }

    /// Writes down what is not yet.
    fn keep(&mut self) -> Result<(), Trouble> {
        self.signers.keep()?;
        Ok(self.keeper.keep(&self.holding)?)
    }

    fn publish(&self) {
        self.holdings.send_replace(Arc::new(self.holding.clone()));
        self.feed.send_replace(Arc::new(Feed::of(&self.holding, &self.signers)));
    }
}

/// Every signer set that the CA has. None is believed yet.
async fn fetch_signers(link: &CaLink) -> Result<Vec<Vec<u8>>, CaError> {
    let mut client = client(link).await?;
    let request = FetchSignersRequest { from_version: 0 };
    let fetched = tokio::time::timeout(CHUNK_TIMEOUT, client.fetch_signers(request)).await;
    Ok(fetched.map_err(|_| CaError::Timeout)??.into_inner().sets)
}

async fn client(link: &CaLink) -> Result<NodeClient<Channel>, CaError> {
    let mut credentials = link.credentials();
    let own = credentials.wait_for(Option::is_some).await.map(|own| own.clone());
    let Ok(Some(own)) = own else {
        return Err(CaError::Timeout); // the agent is stopping
    };
    Ok(NodeClient::new(link.connect(&own).await?))
}

/// All pieces of a bundle. Nothing in it is believed yet.
async fn fetch(link: &CaLink, named: &PolicyRef, max_bytes: usize) -> Result<Vec<u8>, CaError> {
    let mut client = client(link).await?;
    let request = FetchPolicyRequest {
        revision: named.revision,
    };
    let in_time = |_| CaError::Timeout;
    let opened = tokio::time::timeout(CHUNK_TIMEOUT, client.fetch_policy(request)).await;
    let mut pieces = opened.map_err(in_time)??.into_inner();
    let mut bytes = Vec::new();
    while let Some(piece) = tokio::time::timeout(CHUNK_TIMEOUT, pieces.message())
        .await
        .map_err(in_time)??
    {
        bytes.extend(piece.data);
        if bytes.len() > max_bytes {
            return Err(CaError::Answer(
                "more of a policy bundle than it said there is".to_owned(),
            ));
        }
    }
    Ok(bytes)
}

// === Debug: bundles are long ===

impl fmt::Debug for FeedBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FeedBundle({}, {} bytes)", self.revision, self.bytes.len())
    }
}

impl fmt::Debug for Feed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Feed")
            .field("live", &self.live)
            .field("shadow", &self.shadow)
            .field("grants", &self.grants.len())
            .finish()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use hoplite_host::files;
    use hoplite_identity::TrustDomain;
    use hoplite_policy::Source;
    use hoplite_policy::bundle::{BUNDLE_BYTES_MAX, Bundle, EngineVersion, Meta};
    use hoplite_policy::grant::{GrantDraft, GrantScope};
    use hoplite_seal::SigningKey;

    /// A signer's key, always the same for the same name.
    pub(crate) fn key(name: &str) -> SigningKey {
        let mut seed = [7; 32];
        seed[..name.len()].copy_from_slice(name.as_bytes());
        SigningKey::from_seed(name, seed.into()).unwrap()
    }

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    pub(crate) fn bundle(revision: u64, stage: Stage, change: impl FnOnce(&mut Meta), by: &str) -> Vec<u8> {
        let text = format!("@id(\"a{revision}\") permit (principal, action, resource);");
        bundle_of(&text, revision, stage, change, by)
    }

    pub(crate) fn bundle_of(
        text: &str,
        revision: u64,
        stage: Stage,
        change: impl FnOnce(&mut Meta),
        by: &str,
    ) -> Vec<u8> {
        let mut meta = Meta {
            trust_domain: TrustDomain::parse("prod.example").unwrap(),
            revision,
            parent: None,
            created: now(),
            expires: now() + Duration::from_secs(3600),
            min_engine: EngineVersion::THIS,
            critical: Vec::new(),
            stage,
            note: None,
        };
        change(&mut meta);
        let source = Source {
            name: "a.cedar".into(),
            text: text.into(),
        };
        Bundle::build(&[source], meta).unwrap().sign(&[&key(by)]).unwrap()
    }

    pub(crate) fn feed_bundle(revision: u64, stage: Stage) -> FeedBundle {
        FeedBundle {
            revision,
            bytes: bundle(revision, stage, |_| (), "alice").into(),
        }
    }

    pub(crate) fn trusted(signers: &[&str]) -> TrustedSigners {
        TrustedSigners::new(signers.iter().map(|name| key(name).signer().clone())).unwrap()
    }

    pub(crate) fn trust(signers: &[&str]) -> PolicyTrust {
        PolicyTrust::new(trusted(signers), TrustDomain::parse("prod.example").unwrap())
    }

    fn open_trusting(directory: &Path, signers: &[&str], at: SystemTime) -> PolicyHolder {
        let trust_domain = TrustDomain::parse("prod.example").unwrap();
        PolicyHolder::open(directory, &trusted(signers), &trust_domain, BUNDLE_BYTES_MAX, at).unwrap()
    }

    fn open(directory: &Path) -> PolicyHolder {
        open_trusting(directory, &["alice", "bob"], now())
    }

    fn take(holder: &mut PolicyHolder, revision: u64, bytes: Vec<u8>) -> Result<(), String> {
        let named = PolicyRef {
            revision,
            ..PolicyRef::default()
        };
        holder
            .accept(Stage::Live, &named, &bytes, now())
            .map_err(|error| error.to_string())
    }

    fn live(holder: &PolicyHolder) -> Option<u64> {
        holder.holding.live().map(HeldBundle::revision)
    }

    #[test]
    fn nothing_that_is_wrong_takes_the_place_of_what_is_held() {
        let dir = tempfile::tempdir().unwrap();
        let mut holder = open(dir.path());
        assert_eq!(holder.feed().borrow().live, None);
        take(&mut holder, 5, bundle(5, Stage::Live, |_| (), "alice")).unwrap();
        let expired = |meta: &mut Meta| {
            meta.created = now() - Duration::from_secs(9);
            meta.expires = now() - Duration::from_secs(1);
        };
        let foreign = |meta: &mut Meta| meta.trust_domain = TrustDomain::parse("other.example").unwrap();
        let critical = |meta: &mut Meta| meta.critical = vec!["time-travel".into()];
        let newer = |meta: &mut Meta| meta.min_engine = "999.0.0".parse().unwrap();
        let mut altered = bundle(6, Stage::Live, |_| (), "alice");
        altered[80] ^= 1;
        for (named, bytes, expected) in [
            (4, bundle(4, Stage::Live, |_| (), "alice"), "revision 4 is lower than 5"),
            (5, bundle(5, Stage::Live, |_| (), "alice"), "already accepted"),
            (
                5,
                bundle(5, Stage::Live, |m| m.note = Some("x".into()), "bob"),
                "another bundle of revision 5",
            ),
            (6, bundle(6, Stage::Live, |_| (), "mallory"), "`mallory` signed it"),
            (6, bundle(6, Stage::Live, expired, "alice"), "it expired at"),
            (6, bundle(6, Stage::Live, foreign, "alice"), "`other.example`"),
            (6, bundle(6, Stage::Live, critical, "alice"), "`time-travel`"),
            (6, bundle(6, Stage::Live, newer, "alice"), "needs engine 999.0.0"),
            (6, altered, "refused"),
            (6, Vec::new(), "not whole"),
            (
                6,
                bundle(6, Stage::Shadow, |_| (), "alice"),
                "named revision 6 a live bundle, and it is another",
            ),
            (6, bundle(7, Stage::Live, |_| (), "alice"), "named revision 6"),
        ] {
            let error = take(&mut holder, named, bytes).unwrap_err();
            assert!(error.contains(expected), "{error}\nis not {expected}");
            assert_eq!(live(&holder), Some(5));
        }
        take(&mut holder, 6, bundle(6, Stage::Live, |_| (), "bob")).unwrap();
        assert_eq!(live(&holder), Some(6));
    }

    /// A disk that is full keeps no policy away, and what it did not take is written when it can be.
    #[test]
    fn what_cannot_be_kept_is_in_force() {
        let dir = tempfile::tempdir().unwrap();
        let mut holder = open(dir.path());
        take(&mut holder, 5, bundle(5, Stage::Live, |_| (), "alice")).unwrap();
        let (file, aside) = (dir.path().join("policy-live.bundle"), dir.path().join("aside"));
        std::fs::rename(&file, &aside).unwrap();
        std::fs::create_dir(&file).unwrap();
        let error = take(&mut holder, 6, bundle(6, Stage::Live, |_| (), "alice")).unwrap_err();
        assert!(error.contains("cannot be kept"), "{error}");
        assert_eq!(live(&holder), Some(6));
        holder.keep().unwrap_err();
        take(&mut holder, 7, bundle(7, Stage::Live, |_| (), "alice")).unwrap_err();
        assert_eq!(live(&holder), Some(7), "and it does not stand in the way of the next");

        std::fs::remove_dir(&file).unwrap();
        holder.keep().unwrap();
        assert_eq!(live(&open(dir.path())), Some(7));
    }

    #[test]
    fn what_was_accepted_outlives_restarts_expiry_and_damage() {
        let dir = tempfile::tempdir().unwrap();
        let mut holder = open(dir.path());
        take(&mut holder, 5, bundle(5, Stage::Live, |_| (), "alice")).unwrap();
        let much_later = now() + Duration::from_secs(1_000_000);
        let mut holder = open_trusting(dir.path(), &["alice"], much_later);
        assert_eq!(live(&holder), Some(5), "expired, and in force");
        assert!(
            take(&mut holder, 4, bundle(4, Stage::Live, |_| (), "alice"))
                .unwrap_err()
                .contains("lower")
        );
        assert_eq!(
            live(&open_trusting(dir.path(), &["bob"], now())),
            None,
            "trusted no longer"
        );

        // The bundle is damaged: it is gone, and what was accepted is still known.
        let file = dir.path().join("policy-live.bundle");
        let good = std::fs::read(&file).unwrap();
        files::write_private(&file, &good[..good.len() / 2]).unwrap();
        let mut holder = open(dir.path());
        assert_eq!(live(&holder), None);
        assert!(
            take(&mut holder, 4, bundle(4, Stage::Live, |_| (), "alice"))
                .unwrap_err()
                .contains("lower")
        );
        take(&mut holder, 5, good.clone()).unwrap();
        assert_eq!(live(&holder), Some(5), "welcome again");

        // Somebody puts an older file there.
        files::write_private(&file, &bundle(4, Stage::Live, |_| (), "alice")).unwrap();
        assert_eq!(live(&open(dir.path())), None);
        // The process died between the bundle and the state: the bundle counts.
        files::write_private(&file, &bundle(9, Stage::Live, |_| (), "alice")).unwrap();
        let mut holder = open(dir.path());
        assert_eq!(live(&holder), Some(9));
        assert!(
            take(&mut holder, 8, bundle(8, Stage::Live, |_| (), "alice"))
                .unwrap_err()
                .contains("lower than 9")
        );
        // The state is damaged: the bundle still says what was accepted.
        files::write_private(&dir.path().join("policy.state"), b"{").unwrap();
        let mut holder = open(dir.path());
        assert!(
            take(&mut holder, 8, bundle(8, Stage::Live, |_| (), "alice"))
                .unwrap_err()
                .contains("lower than 9")
        );
    }

    #[tokio::test]
    async fn grants_and_the_end_of_a_shadow_need_no_fetch() {
        let dir = tempfile::tempdir().unwrap();
        let domain = TrustDomain::parse("prod.example").unwrap();
        let credentials = watch::Sender::new(None);
        let link = CaLink::new(
            hoplite_identity::HostPort::parse("127.0.0.1:1").unwrap().into(),
            &domain,
            credentials.subscribe(),
        );
        let mut holder = open(dir.path());
        let named = PolicyRef {
            revision: 3,
            ..PolicyRef::default()
        };
        let shadow = bundle(3, Stage::Shadow, |_| (), "alice");
        holder.accept(Stage::Shadow, &named, &shadow, now()).unwrap();
        assert!(open(dir.path()).holding.shadow().is_some());

        let at = SystemTime::now();
        let path = GrantScope::Path("prod.example/ops".into());
        let times = (at, at + Duration::from_secs(3600));
        let draft = GrantDraft::new(
            &domain,
            "g",
            "INC-1",
            "why",
            path,
            &"ledger".parse().unwrap(),
            times,
            at,
        )
        .unwrap();
        let one = draft.sign(&key("alice")).unwrap();
        let two = GrantDraft::sign_too(&one, &key("bob")).unwrap();
        let state = PolicyState {
            grants: vec![one, b"junk".to_vec(), two.clone()],
            ..PolicyState::default()
        };
        holder.follow(&link, &state).await.unwrap();
        let feed = holder.feed().borrow().clone();
        assert_eq!(
            (feed.shadow.clone(), feed.grants.as_slice()),
            (None, [two.clone()].as_slice())
        );
        let reopened = open_trusting(dir.path(), &["alice", "bob"], at);
        assert_eq!(*reopened.feed().borrow(), feed, "also after a restart");
        assert!(
            open_trusting(dir.path(), &["alice"], at)
                .feed()
                .borrow()
                .grants
                .is_empty()
        );
        holder.follow(&link, &PolicyState::default()).await.unwrap();
        assert!(holder.feed().borrow().grants.is_empty(), "revoked");
        assert!(open(dir.path()).feed().borrow().grants.is_empty());
    }
}
