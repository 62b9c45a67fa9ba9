//! Publishing policy: verified here before it is stored, handed to agents as it came.
//!
//! The CA signs no policy and could not: what it keeps is what people signed, and whoever enforces it verifies that anew.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use hoplite_host::clock;
use hoplite_identity::TrustDomain;
use hoplite_policy::bundle::{Acceptance, Bundle, EngineVersion, KNOWN_CRITICAL, Refused};
use hoplite_policy::grant::{Grant, GrantRefused};
use hoplite_policy::{Fault, Snapshot};
use hoplite_seal::TrustedSigners;
use hoplite_store::{CommitError, LargeId};

use crate::policy::bundles::{BundleCache, KeepError};
use crate::policy::grant::GrantRecord;
use crate::policy::published::Published;
use crate::policy::writes::{AddGrant, PolicyError, Publish};
use crate::record::Record;
use crate::registry::Registry;
use crate::write::WriteError;

/// Faults told to the publisher; the rest is for `hoplite policy check`.
const FAULTS_TOLD_MAX: usize = 5;

/// A publication whose bundle was swept this often before its commit gives up. A sweep spares what is young, so once is a
/// clock that jumped.
const PUTS_MAX: usize = 4;

/// Who may publish here, and where what they published lies. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Publishing(Arc<Shared>);

struct Shared {
    registry: Registry,
    bundles: BundleCache,
    trust_domain: TrustDomain,
    signers: TrustedSigners,
    bytes_max: usize,
    /// What was compiled last: the next publication is mostly the same.
    compiled: Mutex<Snapshot>,
}

/// A bundle that may be published.
struct Checked {
    bundle: Vec<u8>,
    manifest: Vec<u8>,
    publish: Publish,
}

/// What is left of a published bundle.
pub(crate) enum Contents {
    Bundle(Arc<Vec<u8>>),
    /// The bundle itself is no longer kept.
    Manifest(Vec<u8>),
}

/// Why nothing was published, or what was published cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PublishError {
    #[error(
        "this CA trusts nobody to sign policy; put the output of `hoplite policy key create` into `policy_signers` and restart it"
    )]
    NoSigners,
    #[error(transparent)]
    Bundle(#[from] Refused),
    #[error(transparent)]
    Grant(#[from] GrantRefused),
    #[error("its policies cannot be enforced: {}; run `hoplite policy check`", told(.0))]
    Faults(Vec<Fault>),
    #[error("there is no policy of revision `{0}`; `hoplite policy history` shows those there are")]
    NoSuchPolicy(u64),
    #[error(transparent)]
    Write(#[from] WriteError<PolicyError>),
    #[error("a policy bundle in the store: {0}")]
    Kept(#[from] KeepError),
    #[error(
        "the bundle was swept from the store before it was in force, {PUTS_MAX} times; check the clocks of all CAs and publish again"
    )]
    Swept,
    #[error("`{0}` of an earlier publication is gone from the store; restore the store from a backup")]
    Lost(LargeId),
    /// The store's record of it is not what this program writes.
    #[error("the store's record of the policy of revision `{0}` names no bundle; restore the store from a backup")]
    Unnamed(u64),
    #[error("the work on a policy bundle died")]
    Died,
}

// === impl Publishing ===

impl Publishing {
    /// Who trusts these signers. What was published before is in the store.
    pub(crate) fn new(
        registry: Registry,
        bundles: BundleCache,
        trust_domain: TrustDomain,
        signers: TrustedSigners,
        bytes_max: usize,
    ) -> Self {
        Self(Arc::new(Shared {
            registry,
            bundles,
            trust_domain,
            signers,
            bytes_max,
            compiled: Mutex::new(Snapshot::deny_all("nothing is published yet")),
        }))
    }

    /// Removes the bundles that no publication names any more, and returns when that is done.
    pub(crate) async fn sweep(&self) {
        let (this, now) = (self.clone(), clock::now());
        // A failed join is a panic of ours in there, which was reported; the next sweep does the work.
        let _ = tokio::task::spawn_blocking(move || this.0.bundles.sweep(now)).await;
    }

    /// Whose policies these are.
    pub(crate) fn trust_domain(&self) -> &TrustDomain {
        &self.0.trust_domain
    }

    /// Who may publish here.
    pub(crate) fn signers(&self) -> &TrustedSigners {
        &self.0.signers
    }

    /// The longest bundle, in bytes.
    pub(crate) fn bytes_max(&self) -> usize {
        self.0.bytes_max
    }

    /// Verifies a bundle, checks that its policies can be enforced, and puts it in force.
    pub(crate) async fn publish(&self, bytes: Vec<u8>, expected: u64) -> Result<u64, PublishError> {
        self.somebody_may()?;
        let (this, now) = (self.clone(), clock::now());
        // Compiling takes seconds for tens of thousands of policies.
        let checked = tokio::task::spawn_blocking(move || this.check(bytes, expected, now));
        let checked = checked.await.map_err(|_| PublishError::Died)??;
        let revision = self.put_and_commit(Arc::new(checked)).await?;
        self.sweep().await;
        Ok(revision)
    }

    /// Again from the start when a sweep came between, on this replica or another.
    async fn put_and_commit(&self, checked: Arc<Checked>) -> Result<u64, PublishError> {
        for _ in 0..PUTS_MAX {
            let (this, put) = (self.clone(), Arc::clone(&checked));
            let put = tokio::task::spawn_blocking(move || this.0.bundles.put(&put.bundle, &put.manifest, clock::now()));
            put.await.map_err(|_| PublishError::Died)??;
            match self.0.registry.write(checked.publish.clone()).await {
                Err(WriteError::Commit(CommitError::MissingLarge(id))) => {
                    if !checked.publish.published.large().contains(&id) {
                        return Err(PublishError::Lost(id));
                    }
                }
                written => return Ok(written?),
            }
        }
        Err(PublishError::Swept)
    }

    /// What is to be put and committed, if all of it can be enforced.
    fn check(&self, bytes: Vec<u8>, expected: u64, now: SystemTime) -> Result<Checked, PublishError> {
        let acceptance = Acceptance {
            signers: &self.0.signers,
            trust_domain: &self.0.trust_domain,
            // Which revision may follow is decided with the commit.
            highest_seen: None,
            now,
            engine_version: EngineVersion::THIS,
            known_critical: KNOWN_CRITICAL,
            max_bytes: self.0.bytes_max,
        };
        let bundle = Bundle::open(&bytes, &acceptance)?;
        let mut compiled = self.0.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        *compiled = compiled.recompile(bundle.sources()).map_err(PublishError::Faults)?;
        drop(compiled);
        let publish = Publish {
            published: Published::new(&bundle, &bytes, now),
            parent: bundle.manifest().parent,
            expected,
        };
        Ok(Checked {
            manifest: bundle.manifest().encode(),
            bundle: bytes,
            publish,
        })
    }

    /// What is left of a bundle of the history.
    pub(crate) async fn contents(&self, published: &Published) -> Result<Contents, PublishError> {
        if published.kept {
            return Ok(Contents::Bundle(self.bundle(published).await?));
        }
        let this = self.clone();
        let id = published
            .manifest_id()
            .ok_or(PublishError::Unnamed(published.revision))?;
        let read = tokio::task::spawn_blocking(move || this.0.bundles.manifest(&id));
        Ok(Contents::Manifest(read.await.map_err(|_| PublishError::Died)??))
    }

    /// A bundle that is in force, for an agent.
    pub(crate) async fn current(&self, revision: u64) -> Result<Arc<Vec<u8>>, PublishError> {
        let published = {
            let index = self.0.registry.index();
            let is_current = index.policy.head().is_current(revision);
            let found = index.policy.published(revision).filter(|_| is_current);
            found.cloned().ok_or(PublishError::NoSuchPolicy(revision))?
        };
        self.bundle(&published).await
    }

    async fn bundle(&self, published: &Published) -> Result<Arc<Vec<u8>>, PublishError> {
        let this = self.clone();
        let id = published.bundle_id().ok_or(PublishError::Unnamed(published.revision))?;
        let read = tokio::task::spawn_blocking(move || this.0.bundles.bundle(&id));
        Ok(read.await.map_err(|_| PublishError::Died)??)
    }

    /// Verifies a grant, and puts it in force.
    pub(crate) async fn add_grant(&self, bytes: &[u8]) -> Result<GrantRecord, PublishError> {
        self.somebody_may()?;
        let now = clock::now();
        let signed = Grant::open(bytes, &self.0.signers, &self.0.trust_domain, now)?;
        let grant = GrantRecord::new(&signed, bytes);
        let add = AddGrant {
            grant: grant.clone(),
            now,
        };
        self.0.registry.write(add).await?;
        tracing::warn!(
            target: "hoplite::audit",
            grant = grant.id,
            ticket = grant.ticket,
            reason = grant.reason,
            service = %grant.service,
            signed_by = ?grant.signed_by,
            until = grant.until,
            "break-glass: access is granted"
        );
        Ok(grant)
    }

    fn somebody_may(&self) -> Result<(), PublishError> {
        if self.0.signers.is_empty() {
            return Err(PublishError::NoSigners);
        }
        Ok(())
    }
}

/// The first few faults, and how many there are beyond them.
fn told(faults: &[Fault]) -> String {
    let told: Vec<_> = faults.iter().take(FAULTS_TOLD_MAX).map(ToString::to_string).collect();
    let more = match faults.len().saturating_sub(FAULTS_TOLD_MAX) {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    told.join("; ") + &more
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::writes::Found;
    use crate::authority::x509::Authority;
    use crate::write;
    use hoplite_policy::Source;
    use hoplite_policy::bundle::{BUNDLE_BYTES_MAX, Meta, Stage};
    use hoplite_seal::SigningKey;
    use hoplite_store::{
        Batch, LargeError, MemoryStore, Revision, Snapshot as StoreSnapshot, Store, StoreError, Versioned, Watch,
        WatchError,
    };
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    const HOUR: Duration = Duration::from_secs(3600);

    fn alice() -> SigningKey {
        SigningKey::from_seed("alice", [7; 32].into()).unwrap()
    }

    fn trust_domain() -> TrustDomain {
        TrustDomain::parse("prod.example").unwrap()
    }

    fn bundle() -> Vec<u8> {
        let now = SystemTime::now();
        let meta = Meta {
            trust_domain: trust_domain(),
            revision: 1,
            parent: None,
            created: now,
            expires: now + HOUR,
            min_engine: EngineVersion::THIS,
            critical: Vec::new(),
            stage: Stage::Live,
            note: None,
        };
        let source = Source {
            name: "pay.cedar".into(),
            text: "@id(\"a\") @owner(\"pay\") permit (principal, action, resource);".into(),
        };
        Bundle::build(&[source], meta).unwrap().sign(&[&alice()]).unwrap()
    }

    fn found(store: &dyn Store) {
        let found = Found {
            trust_domain: trust_domain(),
            certificate: Authority::ephemeral(&trust_domain(), SystemTime::now(), HOUR)
                .certificate()
                .clone(),
        };
        write::commit(store, &found).unwrap();
    }

    /// One CA over a store in which an authority is founded. It follows the store for as long as the second of both lives.
    fn replica(store: &Arc<dyn Store>) -> (Publishing, crate::registry::Follower) {
        let (registry, follower) = Registry::open(Arc::clone(store)).unwrap();
        let publishing = Publishing::new(
            registry,
            BundleCache::new(Arc::clone(store)),
            trust_domain(),
            TrustedSigners::new([alice().signer().clone()]).unwrap(),
            BUNDLE_BYTES_MAX,
        );
        (publishing, follower)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn replicas_over_one_store_have_each_others_bundles() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        found(&*store);
        let ((one, _one_follows), (other, _other_follows)) = (replica(&store), replica(&store));
        let bytes = bundle();
        assert_eq!(one.publish(bytes.clone(), 0).await.unwrap(), 1);
        let mut revisions = other.0.registry.revisions();
        revisions
            .wait_for(|reached| *reached >= store.revision())
            .await
            .unwrap();
        assert_eq!(*other.current(1).await.unwrap(), bytes);
    }

    /// Another replica sweeps, with a clock that is far ahead, right before the next so many commits.
    struct Swept {
        store: MemoryStore,
        left: AtomicUsize,
    }

    impl Store for Swept {
        fn revision(&self) -> Revision {
            self.store.revision()
        }

        fn get(&self, key: &[u8]) -> Result<Option<Versioned>, StoreError> {
            self.store.get(key)
        }

        fn range(&self, prefix: &[u8]) -> Result<StoreSnapshot, StoreError> {
            self.store.range(prefix)
        }

        fn commit(&self, batch: Batch) -> Result<Revision, CommitError> {
            let less = |left: usize| left.checked_sub(1);
            if self
                .left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less)
                .is_ok()
            {
                self.store.sweep_large(SystemTime::now() + HOUR)?;
            }
            self.store.commit(batch)
        }

        fn watch(&self, from: Revision) -> Result<Watch, WatchError> {
            self.store.watch(from)
        }

        fn put_large(&self, bytes: &[u8], now: SystemTime) -> Result<LargeId, LargeError> {
            self.store.put_large(bytes, now)
        }

        fn large(&self, id: &LargeId) -> Result<Option<Vec<u8>>, StoreError> {
            self.store.large(id)
        }

        fn sweep_large(&self, put_before: SystemTime) -> Result<usize, StoreError> {
            self.store.sweep_large(put_before)
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_publication_that_was_swept_puts_again() {
        for (sweeps, published) in [(1, true), (PUTS_MAX - 1, true), (PUTS_MAX, false)] {
            let inner = MemoryStore::new();
            found(&inner);
            let store: Arc<dyn Store> = Arc::new(Swept {
                store: inner,
                left: AtomicUsize::new(sweeps),
            });
            let (publishing, _follows) = replica(&store);
            let bytes = bundle();
            match publishing.publish(bytes.clone(), 0).await {
                Ok(revision) => {
                    assert!(published, "after {sweeps} sweeps");
                    assert_eq!(*publishing.current(revision).await.unwrap(), bytes);
                }
                Err(error) => {
                    assert!(!published && matches!(error, PublishError::Swept), "{error}");
                    assert_eq!(publishing.0.registry.index().policy.head().highest, 0);
                }
            }
        }
    }
}
