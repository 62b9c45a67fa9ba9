//! Publishing policy: verified here before it is stored, handed to agents as it came.
//!
//! The CA signs no policy and could not: what it keeps is what people signed, and whoever enforces it verifies that anew.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use hoplite_host::clock;
use hoplite_identity::TrustDomain;
use hoplite_policy::bundle::{Refused, Stage};
use hoplite_policy::grant::GrantRefused;
use hoplite_policy::holding::{HeldBundle, Holding, KeptPolicy, PolicyTrust, Unreadable};
use hoplite_policy::{Fault, Snapshot};
use hoplite_seal::{Hash, TrustedSigners};
use hoplite_store::{CommitError, LargeId};

use crate::policy::bundles::{BundleCache, KeepError};
use crate::policy::error::PolicyError;
use crate::policy::grant::GrantRecord;
use crate::policy::published::Published;
use crate::policy::signers::AddSigners;
use crate::policy::writes::{AddGrant, Publish};
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
    bytes_max: usize,
    /// What was compiled last: the next publication is mostly the same.
    compiled: Mutex<Snapshot>,
}

/// A bundle that was verified, and that can be enforced. It may be put into the store and then in force.
struct Candidate {
    bundle: HeldBundle,
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
    #[error(
        "the policy of revision `{0}` is lost: the store no longer has its manifest; restore the store from a backup if it is needed"
    )]
    Lost(u64),
    #[error("`{0}`, which this publication does not need, is said to be gone from the store again and again")]
    LostAgain(LargeId),
    #[error("the work on a policy bundle died")]
    Died,
}

// === impl Publishing ===

impl Publishing {
    /// Who may sign, and what was published before, is in the store.
    pub(crate) fn new(registry: Registry, bundles: BundleCache, trust_domain: TrustDomain, bytes_max: usize) -> Self {
        Self(Arc::new(Shared {
            registry,
            bundles,
            trust_domain,
            bytes_max,
            compiled: Mutex::new(Snapshot::deny_all("nothing is published yet")),
        }))
    }

    /// Removes the bundles that no publication names any more, and returns when that is done.
    pub(crate) async fn sweep(&self) {
        // A failed join is a panic of ours in there, which was reported; the next sweep does the work.
        let _ = self.blocking(|shared| shared.bundles.sweep(clock::now())).await;
    }

    /// Whose policies these are.
    pub(crate) fn trust_domain(&self) -> &TrustDomain {
        &self.0.trust_domain
    }

    /// Who may publish here.
    pub(crate) fn signers(&self) -> TrustedSigners {
        self.0.trust().0.signers
    }

    /// The signer sets from a version on, as they travel.
    pub(crate) fn signer_sets(&self, from_version: u64) -> Vec<Vec<u8>> {
        let chain = self.0.registry.index().policy.signers().cloned();
        let sets = chain.iter().flat_map(|chain| chain.since(from_version));
        sets.map(<[u8]>::to_vec).collect()
    }

    /// Takes the next signer set. Its version, and the grants that ended with it.
    pub(crate) async fn add_signers(&self, set: Vec<u8>) -> Result<(u64, Vec<String>), PublishError> {
        let (version, ended) = self.0.registry.write(AddSigners(set)).await?;
        tracing::warn!(target: "hoplite::audit", version, signers = ?self.signers(), ended_grants = ?ended, "signers of policy: these count from now on");
        Ok((version, ended))
    }

    /// The longest bundle, in bytes.
    pub(crate) fn bytes_max(&self) -> usize {
        self.0.bytes_max
    }

    /// What is in force and would not be believed if it came today, each in a sentence: a signer may have left, or the store
    /// may have lost it. Agents that start anew refuse it, so this is said when the CA starts.
    pub(crate) async fn doubts_at(&self, now: SystemTime) -> Vec<String> {
        let doubts = self.blocking(move |shared| shared.doubts(now)).await;
        doubts.unwrap_or_else(|error| vec![error.to_string()])
    }

    /// Puts a bundle in force: verified, compiled, put into the store, committed, and then what nobody needs any more
    /// is swept.
    pub(crate) async fn publish(&self, bytes: Vec<u8>, expected: u64, now: SystemTime) -> Result<u64, PublishError> {
        self.somebody_may()?;
        // Compiling takes seconds for tens of thousands of policies.
        let candidate = self.blocking(move |shared| {
            let (trust, signers) = shared.trust();
            let bundle = trust.open(&bytes, now)?;
            shared.can_be_enforced(&bundle)?;
            Ok::<_, PublishError>(Candidate::new(bundle, signers, expected, now))
        });
        let revision = self.put_in_force(candidate.await??).await?;
        self.sweep().await;
        Ok(revision)
    }

    /// Puts and commits; again when a sweep came between, on this replica or another.
    async fn put_in_force(&self, candidate: Candidate) -> Result<u64, PublishError> {
        let Candidate { bundle, mut publish } = candidate;
        let mut puts = 0;
        while puts < PUTS_MAX {
            let put = bundle.clone();
            self.blocking(move |shared| shared.bundles.put(put.bytes(), &put.manifest().encode(), clock::now()))
                .await??;
            puts += 1;
            loop {
                match self.0.registry.write(publish.clone()).await {
                    Err(WriteError::Commit(CommitError::MissingLarge(id))) => {
                        if publish.published.large().contains(&id) {
                            break; // it was swept
                        }
                        give_up_for_lost(&mut publish, id)?;
                    }
                    written => return Ok(written?),
                }
            }
        }
        Err(PublishError::Swept)
    }

    /// Work that waits for the disk or takes long: not for async threads.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared) -> T + Send + 'static,
    ) -> Result<T, PublishError> {
        let shared = Arc::clone(&self.0);
        let done = tokio::task::spawn_blocking(move || work(&shared));
        done.await.map_err(|_| PublishError::Died)
    }

    /// What is left of a bundle of the history.
    pub(crate) async fn contents(&self, published: &Published) -> Result<Contents, PublishError> {
        if published.kept {
            return Ok(Contents::Bundle(self.bundle(published).await?));
        }
        if published.lost {
            return Err(PublishError::Lost(published.revision));
        }
        let id = published.manifest_id();
        Ok(Contents::Manifest(
            self.blocking(move |shared| shared.bundles.manifest(&id)).await??,
        ))
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
        let id = published.bundle_id();
        Ok(self.blocking(move |shared| shared.bundles.bundle(&id)).await??)
    }

    /// Verifies a grant, and puts it in force.
    pub(crate) async fn add_grant(&self, bytes: &[u8], now: SystemTime) -> Result<GrantRecord, PublishError> {
        self.somebody_may()?;
        let (trust, signers) = self.0.trust();
        let grant = GrantRecord::new(&trust.open_grant(bytes, now)?);
        let add = AddGrant {
            grant: grant.clone(),
            signers,
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
        if self.0.trust().0.signers.is_empty() {
            return Err(PublishError::NoSigners);
        }
        Ok(())
    }
}

// === impl Shared ===

impl Shared {
    /// Whom agents believe now, and the digest of that set.
    fn trust(&self) -> (PolicyTrust, Option<Hash>) {
        let chain = self.registry.index().policy.signers().cloned();
        let signers = chain.as_ref().map(|chain| chain.newest().signers().clone());
        let trust = PolicyTrust {
            max_bytes: self.bytes_max,
            ..PolicyTrust::new(signers.unwrap_or_default(), self.trust_domain.clone())
        };
        (trust, chain.map(|chain| chain.digest()))
    }

    /// Whether whoever gets this bundle can compile it.
    fn can_be_enforced(&self, bundle: &HeldBundle) -> Result<(), PublishError> {
        let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        *compiled = compiled.recompile(bundle.sources()).map_err(PublishError::Faults)?;
        Ok(())
    }

    fn doubts(&self, now: SystemTime) -> Vec<String> {
        let in_force = self.registry.index().policy.in_force(now);
        if in_force.live.is_none() && in_force.shadow.is_none() && in_force.grants.is_empty() {
            return Vec::new();
        }
        // The store is what the CA's keeper is: what it has is examined as whatever a disk kept.
        let kept = |published: &Option<Arc<Published>>| {
            let bundle = self.bundles.bundle(&published.as_deref()?.bundle_id());
            Some(bundle.map(|bytes| bytes.to_vec()).map_err(Unreadable::of))
        };
        let kept = KeptPolicy {
            state: None,
            live: kept(&in_force.live),
            shadow: kept(&in_force.shadow),
        };
        let (holding, _) = Holding::restore(Some(self.trust().0), kept, now);
        let grants: Vec<_> = in_force.grants.iter().filter_map(|grant| grant.envelope()).collect();
        let (_, refused) = holding.examine_grants(grants.iter().map(Vec::as_slice), now);
        let revision = |stage| match stage {
            Stage::Live => in_force.live.as_ref(),
            Stage::Shadow => in_force.shadow.as_ref(),
        };
        let doubted = [Stage::Live, Stage::Shadow].into_iter().filter_map(|stage| {
            let (why, published) = (holding.lost(stage)?, revision(stage)?);
            Some(format!("the {stage} policy of revision {}: {why}", published.revision))
        });
        doubted.chain(refused.iter().map(ToString::to_string)).collect()
    }
}

// === impl Candidate ===

impl Candidate {
    fn new(bundle: HeldBundle, signers: Option<Hash>, expected: u64, now: SystemTime) -> Self {
        let publish = Publish {
            published: Published::new(&bundle, now),
            parent: bundle.manifest().parent,
            expected,
            signers,
            lost: BTreeSet::new(),
        };
        Self { bundle, publish }
    }
}

/// The manifest of an earlier publication is gone. It must not keep a later one away: it is said, and the history says it.
fn give_up_for_lost(publish: &mut Publish, manifest: LargeId) -> Result<(), PublishError> {
    if !publish.lost.insert(manifest) {
        return Err(PublishError::LostAgain(manifest));
    }
    tracing::error!(
        target: "hoplite::audit",
        %manifest,
        "the manifest of an earlier publication is gone from the store: `hoplite policy history` calls it lost; check the disk, and restore the store from a backup if it is needed"
    );
    Ok(())
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
mod tests;
