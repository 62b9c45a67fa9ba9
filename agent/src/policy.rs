//! Policy on this node: fetched from the CA, verified here, kept on disk, and handed to those who enforce it.
//!
//! What is kept outlives the CA's absence and a restart. It is verified again when it is read back, and nothing older
//! than what was ever accepted takes its place, whatever the CA says.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hoplite_host::backoff::jitter;
use hoplite_host::clock;
use hoplite_host::files::{self, FileError};
use hoplite_host::shutdown::Shutdown;
use hoplite_identity::TrustDomain;
use hoplite_policy::bundle::{Acceptance, Bundle, EngineVersion, KNOWN_CRITICAL, Refused, Seen, Stage};
use hoplite_policy::grant::Grant;
use hoplite_seal::{Hash, TrustedSigners};
use hoplite_wire::ca::node_client::NodeClient;
use hoplite_wire::ca::{FetchPolicyRequest, PolicyRef, PolicyState};
use prost::bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::node::link::{CaError, CaLink, RETRY};

/// Beside the bundles: what was accepted last, and the grants.
const STATE_FILE: &str = "policy.json";

/// A CA that needs longer for one piece of a bundle is stuck.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(10);

/// Grants held at once; the CA has fewer.
const GRANTS_MAX: usize = 256;

/// What those who enforce policy on this node are told.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Feed {
    pub(crate) live: Option<Held>,
    pub(crate) shadow: Option<Held>,
    /// Signed envelopes.
    pub(crate) grants: Vec<Vec<u8>>,
}

/// A bundle that was verified.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) seen: Seen,
    /// As it travels; shared by all who are told.
    pub(crate) bytes: Bytes,
}

/// Whose policy is taken.
#[derive(Debug, Clone)]
pub(crate) struct Trust {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) signers: TrustedSigners,
    pub(crate) max_bytes: usize,
}

/// What is held, in memory and on disk.
pub(crate) struct Shelf {
    directory: PathBuf,
    trust: Trust,
    disk: OnDisk,
    /// Whether `disk` is not on the disk yet, and the stages of which the bundle that is held is not.
    unsaved: bool,
    unkept: Vec<Stage>,
    feed: watch::Sender<Arc<Feed>>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OnDisk {
    /// The highest that was ever accepted.
    live: Option<SeenOnDisk>,
    shadow: Option<SeenOnDisk>,
    grants: Vec<Vec<u8>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SeenOnDisk {
    revision: u64,
    manifest: [u8; 32],
}

/// Why what the CA names cannot be taken.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Ca(#[from] CaError),
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("the CA named revision {named} a {stage} bundle, and it is another")]
    Other { named: u64, stage: Stage },
    #[error("what is accepted cannot be kept: {0}")]
    Disk(#[from] FileError),
    #[error("what is accepted cannot be kept: {0}")]
    State(#[from] serde_json::Error),
}

/// Follows what the CA says is in force until the agent stops.
pub(crate) async fn run(
    mut shelf: Shelf,
    link: CaLink,
    mut states: watch::Receiver<Option<Arc<PolicyState>>>,
    mut shutdown: Shutdown,
) {
    let mut backoff = RETRY;
    let mut retry = false;
    loop {
        let wait = backoff_or_forever(retry.then(|| backoff.failed(jitter())));
        tokio::select! {
            changed = states.changed() => if changed.is_err() { return },
            () = wait => {}
            () = shutdown.wait() => return,
        }
        let Some(state) = states.borrow_and_update().clone() else {
            continue;
        };
        let followed = tokio::select! {
            followed = shelf.follow(&link, &state) => followed,
            () = shutdown.wait() => return,
        };
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

// === impl Shelf ===

impl Shelf {
    /// Reads what was kept. What is damaged, or signed by somebody who is trusted no longer, is left out and said: it
    /// must not keep the agent from serving identities.
    ///
    /// # Errors
    /// The state cannot be read, so that what was ever accepted is not known.
    pub(crate) fn open(data_dir: &Path, trust: Trust, now: SystemTime) -> Result<Self, FileError> {
        let disk = match files::read_private(&data_dir.join(STATE_FILE)) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::error!(file = STATE_FILE, %error, "what policy was accepted before is not known any more");
                OnDisk::default()
            }),
            Err(error) if error.is_not_found() => OnDisk::default(),
            Err(error) => return Err(error),
        };
        let mut shelf = Self {
            directory: data_dir.to_owned(),
            trust,
            disk,
            unsaved: false,
            unkept: Vec::new(),
            feed: watch::Sender::new(Arc::default()),
        };
        let mut feed = Feed {
            live: shelf.kept(Stage::Live, now),
            shadow: shelf.kept(Stage::Shadow, now),
            grants: Vec::new(),
        };
        feed.grants = shelf.sound_grants(&shelf.disk.grants, now);
        // A file that was written just before the end counts, though the state does not know of it yet.
        for held in [&feed.live, &feed.shadow].into_iter().flatten() {
            let stage = if Some(held) == feed.live.as_ref() {
                Stage::Live
            } else {
                Stage::Shadow
            };
            if shelf.seen(stage).is_none_or(|seen| seen.revision < held.seen.revision) {
                shelf.note(stage, held.seen);
                shelf.unsaved = true;
            }
        }
        if feed != Feed::default() {
            let revision = |held: &Option<Held>| held.as_ref().map(|held| held.seen.revision);
            tracing::info!(
                live = revision(&feed.live),
                shadow = revision(&feed.shadow),
                "policy kept from before"
            );
        }
        shelf.feed.send_replace(Arc::new(feed));
        Ok(shelf)
    }

    pub(crate) fn feed(&self) -> watch::Receiver<Arc<Feed>> {
        self.feed.subscribe()
    }

    /// Brings what is held to what the CA names. A refusal is said and is no error: asking again would bring the same.
    /// What is taken is in force before it is kept, so that a full disk keeps no revocation away; keeping is tried again.
    async fn follow(&mut self, link: &CaLink, state: &PolicyState) -> Result<(), Trouble> {
        let now = clock::now();
        // First what costs no call, and narrows.
        let grants = self.sound_grants(&state.grants, now);
        if grants != self.feed.borrow().grants {
            self.disk.grants.clone_from(&grants);
            self.unsaved = true;
            self.publish(|feed| feed.grants = grants);
        }
        if state.shadow.is_none() && self.feed.borrow().shadow.is_some() {
            tracing::info!("the shadow policy has ended");
            self.unkept.push(Stage::Shadow);
            self.publish(|feed| feed.shadow = None);
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
                    Err(error @ (Trouble::Refused(_) | Trouble::Other { .. })) => {
                        tracing::error!(revision = named.revision, %stage, %error, "policy is refused; what is held stays in force");
                    }
                    result => result?,
                }
            }
        }
        Ok(())
    }

    async fn take(&mut self, link: &CaLink, stage: Stage, named: &PolicyRef) -> Result<(), Trouble> {
        let holds = self.held(stage).is_some_and(|held| {
            held.seen.revision == named.revision && held.seen.manifest.0.as_slice() == named.manifest_sha256
        });
        if holds {
            return Ok(());
        }
        if named.bytes > self.trust.max_bytes as u64 {
            return Err(Refused::Seal(hoplite_seal::SealBroken::TooLarge {
                bytes: usize::try_from(named.bytes).unwrap_or(usize::MAX),
                max: self.trust.max_bytes,
            })
            .into());
        }
        if let Some(seen) = self.seen(stage)
            && named.revision < seen.revision
        {
            // Not worth a fetch: it would be refused.
            return Err(Refused::LowerRevision {
                have: seen.revision,
                got: named.revision,
            }
            .into());
        }
        let bytes = fetch(link, named, self.trust.max_bytes).await?;
        self.accept(stage, named, bytes, clock::now())
    }

    /// Verifies a bundle and puts it in force; what cannot be kept on the disk is in force all the same.
    fn accept(&mut self, stage: Stage, named: &PolicyRef, bytes: Vec<u8>, now: SystemTime) -> Result<(), Trouble> {
        let bundle =
            Bundle::open(&bytes, &self.acceptance(self.seen(stage), now)).or_else(|refused| match refused {
                // Its file was damaged or cannot be read: it was accepted once, and is welcome again.
                Refused::AlreadyHave(_) if self.held(stage).is_none() => {
                    Bundle::open_kept(&bytes, &self.acceptance(None, now))
                }
                refused => Err(refused),
            })?;
        if bundle.manifest().stage != stage || bundle.manifest().revision != named.revision {
            return Err(Trouble::Other {
                named: named.revision,
                stage,
            });
        }
        let seen = bundle.seen();
        self.note(stage, seen);
        self.unsaved = true;
        self.unkept.push(stage);
        tracing::info!(
            target: "hoplite::audit",
            revision = seen.revision,
            manifest = %seen.manifest,
            %stage,
            signed_by = ?bundle.signed_by(),
            "policy is accepted"
        );
        let held = Some(Held {
            seen,
            bytes: bytes.into(),
        });
        self.publish(|feed| match stage {
            Stage::Live => feed.live = held,
            Stage::Shadow => feed.shadow = held,
        });
        self.keep()
    }

    fn kept(&self, stage: Stage, now: SystemTime) -> Option<Held> {
        let path = self.file(stage);
        let bytes = match files::read_private(&path) {
            Ok(bytes) => bytes,
            Err(error) => {
                if !error.is_not_found() {
                    tracing::error!(%error, "the policy kept here cannot be used");
                }
                return None;
            }
        };
        match Bundle::open_kept(&bytes, &self.acceptance(None, now)) {
            Ok(bundle) if bundle.manifest().stage == stage => {
                // Somebody put an older file in its place: what was accepted later must not be undone.
                let lower = self
                    .seen(stage)
                    .is_some_and(|seen| bundle.seen().revision < seen.revision);
                if lower {
                    tracing::error!(file = %path.display(), "the policy kept here is older than what was accepted; it is not used");
                    return None;
                }
                Some(Held {
                    seen: bundle.seen(),
                    bytes: bytes.into(),
                })
            }
            Ok(_) => {
                tracing::error!(file = %path.display(), "the policy kept here is of another stage; it is not used");
                None
            }
            Err(error) => {
                tracing::error!(file = %path.display(), %error, "the policy kept here cannot be used");
                None
            }
        }
    }

    fn sound_grants(&self, grants: &[Vec<u8>], now: SystemTime) -> Vec<Vec<u8>> {
        let is_sound = |bytes: &&Vec<u8>| match Grant::open(bytes, &self.trust.signers, &self.trust.trust_domain, now) {
            Ok(_) => true,
            Err(error) => {
                tracing::warn!(%error, "a grant is not used");
                false
            }
        };
        grants.iter().take(GRANTS_MAX).filter(is_sound).cloned().collect()
    }

    fn acceptance(&self, highest_seen: Option<Seen>, now: SystemTime) -> Acceptance<'_> {
        Acceptance {
            signers: &self.trust.signers,
            trust_domain: &self.trust.trust_domain,
            highest_seen,
            now,
            engine_version: EngineVersion::THIS,
            known_critical: KNOWN_CRITICAL,
            max_bytes: self.trust.max_bytes,
        }
    }

    fn held(&self, stage: Stage) -> Option<Held> {
        let feed = self.feed.borrow();
        match stage {
            Stage::Live => feed.live.clone(),
            Stage::Shadow => feed.shadow.clone(),
        }
    }

    fn seen(&self, stage: Stage) -> Option<Seen> {
        let seen = match stage {
            Stage::Live => &self.disk.live,
            Stage::Shadow => &self.disk.shadow,
        };
        seen.as_ref().map(|seen| Seen {
            revision: seen.revision,
            manifest: Hash(seen.manifest),
        })
    }

    fn note(&mut self, stage: Stage, seen: Seen) {
        let seen = Some(SeenOnDisk {
            revision: seen.revision,
            manifest: seen.manifest.0,
        });
        match stage {
            Stage::Live => self.disk.live = seen,
            Stage::Shadow => self.disk.shadow = seen,
        }
    }

    /// Writes down what is not yet; the bundles first, since they say themselves what was accepted.
    fn keep(&mut self) -> Result<(), Trouble> {
        while let Some(&stage) = self.unkept.last() {
            match self.held(stage) {
                Some(held) => files::write_private(&self.file(stage), &held.bytes)?,
                None => files::remove(&self.file(stage))?,
            }
            self.unkept.pop();
        }
        if self.unsaved {
            let bytes = serde_json::to_vec(&self.disk)?;
            files::write_private(&self.directory.join(STATE_FILE), &bytes)?;
            self.unsaved = false;
        }
        Ok(())
    }

    fn publish(&self, change: impl FnOnce(&mut Feed)) {
        self.feed.send_modify(|feed| {
            let mut next = Feed::clone(feed);
            change(&mut next);
            *feed = Arc::new(next);
        });
    }

    fn file(&self, stage: Stage) -> PathBuf {
        self.directory.join(format!("policy-{stage}.bundle"))
    }
}

/// All pieces of a bundle. Nothing in it is believed yet.
async fn fetch(link: &CaLink, named: &PolicyRef, max_bytes: usize) -> Result<Vec<u8>, CaError> {
    let mut credentials = link.credentials();
    let own = credentials.wait_for(Option::is_some).await.map(|own| own.clone());
    let Ok(Some(own)) = own else {
        return Err(CaError::Timeout); // the agent is stopping
    };
    let mut client = NodeClient::new(link.connect(&own).await?);
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

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Held({}, {} bytes)", self.seen.revision, self.bytes.len())
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
    use hoplite_policy::Source;
    use hoplite_policy::bundle::{BUNDLE_BYTES_MAX, Meta};
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

    pub(crate) fn held(revision: u64, stage: Stage) -> Held {
        held_as(bundle(revision, stage, |_| (), "alice"))
    }

    pub(crate) fn held_as(bytes: Vec<u8>) -> Held {
        let contents =
            hoplite_policy::bundle::BundleContents::danger_read_unverified(&bytes, BUNDLE_BYTES_MAX).unwrap();
        Held {
            seen: contents.seen(),
            bytes: bytes.into(),
        }
    }

    fn open_trusting(directory: &Path, signers: &[&str], at: SystemTime) -> Shelf {
        let signers = TrustedSigners::new(signers.iter().map(|name| key(name).signer().clone())).unwrap();
        let trust = Trust {
            trust_domain: TrustDomain::parse("prod.example").unwrap(),
            signers,
            max_bytes: BUNDLE_BYTES_MAX,
        };
        Shelf::open(directory, trust, at).unwrap()
    }

    fn open(directory: &Path) -> Shelf {
        open_trusting(directory, &["alice", "bob"], now())
    }

    fn take(shelf: &mut Shelf, revision: u64, bytes: Vec<u8>) -> Result<(), String> {
        let named = PolicyRef {
            revision,
            ..PolicyRef::default()
        };
        shelf
            .accept(Stage::Live, &named, bytes, now())
            .map_err(|error| error.to_string())
    }

    fn live(shelf: &Shelf) -> Option<u64> {
        shelf.held(Stage::Live).map(|held| held.seen.revision)
    }

    #[test]
    fn nothing_that_is_wrong_takes_the_place_of_what_is_held() {
        let dir = tempfile::tempdir().unwrap();
        let mut shelf = open(dir.path());
        assert_eq!(shelf.feed().borrow().live, None);
        take(&mut shelf, 5, bundle(5, Stage::Live, |_| (), "alice")).unwrap();
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
            let error = take(&mut shelf, named, bytes).unwrap_err();
            assert!(error.contains(expected), "{error}\nis not {expected}");
            assert_eq!(live(&shelf), Some(5));
        }
        take(&mut shelf, 6, bundle(6, Stage::Live, |_| (), "bob")).unwrap();
        assert_eq!(live(&shelf), Some(6));
    }

    /// A disk that is full keeps no policy away, and what it did not take is written when it can be.
    #[test]
    fn what_cannot_be_kept_is_in_force() {
        let dir = tempfile::tempdir().unwrap();
        let mut shelf = open(dir.path());
        take(&mut shelf, 5, bundle(5, Stage::Live, |_| (), "alice")).unwrap();
        let (file, aside) = (dir.path().join("policy-live.bundle"), dir.path().join("aside"));
        std::fs::rename(&file, &aside).unwrap();
        std::fs::create_dir(&file).unwrap();
        let error = take(&mut shelf, 6, bundle(6, Stage::Live, |_| (), "alice")).unwrap_err();
        assert!(error.contains("cannot be kept"), "{error}");
        assert_eq!(live(&shelf), Some(6));
        shelf.keep().unwrap_err();
        take(&mut shelf, 7, bundle(7, Stage::Live, |_| (), "alice")).unwrap_err();
        assert_eq!(live(&shelf), Some(7), "and it does not stand in the way of the next");

        std::fs::remove_dir(&file).unwrap();
        shelf.keep().unwrap();
        assert_eq!(live(&open(dir.path())), Some(7));
    }

    #[test]
    fn what_was_accepted_outlives_restarts_expiry_and_damage() {
        let dir = tempfile::tempdir().unwrap();
        let mut shelf = open(dir.path());
        take(&mut shelf, 5, bundle(5, Stage::Live, |_| (), "alice")).unwrap();
        let much_later = now() + Duration::from_secs(1_000_000);
        let mut shelf = open_trusting(dir.path(), &["alice"], much_later);
        assert_eq!(live(&shelf), Some(5), "expired, and in force");
        assert!(
            take(&mut shelf, 4, bundle(4, Stage::Live, |_| (), "alice"))
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
        let mut shelf = open(dir.path());
        assert_eq!(live(&shelf), None);
        assert!(
            take(&mut shelf, 4, bundle(4, Stage::Live, |_| (), "alice"))
                .unwrap_err()
                .contains("lower")
        );
        take(&mut shelf, 5, good.clone()).unwrap();
        assert_eq!(live(&shelf), Some(5), "welcome again");

        // Somebody puts an older file there.
        files::write_private(&file, &bundle(4, Stage::Live, |_| (), "alice")).unwrap();
        assert_eq!(live(&open(dir.path())), None);
        // The process died between the bundle and the state: the bundle counts.
        files::write_private(&file, &bundle(9, Stage::Live, |_| (), "alice")).unwrap();
        let mut shelf = open(dir.path());
        assert_eq!(live(&shelf), Some(9));
        assert!(
            take(&mut shelf, 8, bundle(8, Stage::Live, |_| (), "alice"))
                .unwrap_err()
                .contains("lower than 9")
        );
        // The state is damaged: the bundle still says what was accepted.
        files::write_private(&dir.path().join(STATE_FILE), b"{").unwrap();
        let mut shelf = open(dir.path());
        assert!(
            take(&mut shelf, 8, bundle(8, Stage::Live, |_| (), "alice"))
                .unwrap_err()
                .contains("lower than 9")
        );
    }

    #[tokio::test]
    async fn grants_and_the_end_of_a_shadow_need_no_fetch() {
        let dir = tempfile::tempdir().unwrap();
        let domain = TrustDomain::parse("prod.example").unwrap();
        let credentials = watch::Sender::new(None);
        let link = CaLink::new("127.0.0.1:1".into(), &domain, credentials.subscribe());
        let mut shelf = open(dir.path());
        let named = PolicyRef {
            revision: 3,
            ..PolicyRef::default()
        };
        let shadow = bundle(3, Stage::Shadow, |_| (), "alice");
        shelf.accept(Stage::Shadow, &named, shadow, now()).unwrap();
        assert!(open(dir.path()).held(Stage::Shadow).is_some());

        let at = SystemTime::now();
        let path = GrantScope::Path("prod.example/ops".into());
        let times = (at, at + Duration::from_secs(3600));
        let draft = GrantDraft::new(&domain, "g", "INC-1", "why", path, "ledger", times, at).unwrap();
        let one = draft.sign(&key("alice")).unwrap();
        let two = GrantDraft::sign_too(&one, &key("bob")).unwrap();
        let state = PolicyState {
            grants: vec![one, b"junk".to_vec(), two.clone()],
            ..PolicyState::default()
        };
        shelf.follow(&link, &state).await.unwrap();
        let feed = shelf.feed().borrow().clone();
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
        shelf.follow(&link, &PolicyState::default()).await.unwrap();
        assert!(shelf.feed().borrow().grants.is_empty(), "revoked");
        assert!(open(dir.path()).feed().borrow().grants.is_empty());
    }
}
