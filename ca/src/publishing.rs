//! Publishing policy: verified here before it is stored, handed to agents as it came.
//!
//! The CA signs no policy and could not: what it keeps is what people signed, and whoever enforces it verifies that anew.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use hoplite_host::clock;
use hoplite_identity::TrustDomain;
use hoplite_policy::bundle::{Acceptance, Bundle, EngineVersion, KNOWN_CRITICAL, Refused};
use hoplite_policy::grant::{Grant, GrantRefused};
use hoplite_policy::{Fault, Snapshot};
use hoplite_seal::{Hash, TrustedSigners};

use crate::library::{Library, LibraryError};
use crate::policy::grant::GrantRecord;
use crate::policy::published::Published;
use crate::policy::writes::{AddGrant, PolicyError, Publish};
use crate::registry::Registry;
use crate::write::WriteError;

/// Faults told to the publisher; the rest is for `hoplite policy check`.
const FAULTS_TOLD_MAX: usize = 5;

/// Who may publish here, and where what they published lies. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Publishing(Arc<Shared>);

struct Shared {
    registry: Registry,
    library: Library,
    trust_domain: TrustDomain,
    signers: TrustedSigners,
    bytes_max: usize,
    /// What was compiled last: the next publication is mostly the same.
    compiled: Mutex<Snapshot>,
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
    #[error("the files of a policy bundle: {0}")]
    Library(#[from] LibraryError),
    /// The store's record of it is not what this program writes.
    #[error("the store's record of the policy of revision `{0}` names no file; restore the store from a backup")]
    Unnamed(u64),
    #[error("the work on a policy bundle died")]
    Died,
}

// === impl Publishing ===

impl Publishing {
    /// Removes from the library what a publication left behind that never was.
    pub(crate) fn new(
        registry: Registry,
        library: Library,
        trust_domain: TrustDomain,
        signers: TrustedSigners,
        bytes_max: usize,
    ) -> Self {
        let (bundles, manifests): (BTreeSet<_>, BTreeSet<_>) = {
            let index = registry.index();
            let history = || index.policy.history();
            (
                history().filter(|p| p.kept).filter_map(|p| p.bundle_hash()).collect(),
                history().filter_map(|p| p.manifest_hash()).collect(),
            )
        };
        library.sweep(&bundles, &manifests);
        Self(Arc::new(Shared {
            registry,
            library,
            trust_domain,
            signers,
            bytes_max,
            compiled: Mutex::new(Snapshot::deny_all("nothing is published yet")),
        }))
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
        // Compiling takes seconds for tens of thousands of policies, and writing waits for the disk.
        let written = tokio::task::spawn_blocking(move || this.write(&bytes, now));
        let (published, parent) = written.await.map_err(|_| PublishError::Died)??;
        let publish = Publish {
            published,
            parent,
            expected,
        };
        let done = self.0.registry.write(publish).await?;
        for bundle in done.unnamed {
            self.0.library.remove_bundle(&bundle);
        }
        Ok(done.revision)
    }

    fn write(&self, bytes: &[u8], now: SystemTime) -> Result<(Published, Option<Hash>), PublishError> {
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
        let bundle = Bundle::open(bytes, &acceptance)?;
        let mut compiled = self.0.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        *compiled = compiled.recompile(bundle.sources()).map_err(PublishError::Faults)?;
        drop(compiled);
        let manifest = bundle.manifest().encode();
        self.0.library.put(bytes, &manifest).map_err(LibraryError::from)?;
        Ok((Published::new(&bundle, bytes, now), bundle.manifest().parent))
    }

    /// What is left of a bundle of the history.
    pub(crate) async fn contents(&self, published: &Published) -> Result<Contents, PublishError> {
        if published.kept {
            return Ok(Contents::Bundle(self.bundle(published).await?));
        }
        let this = self.clone();
        let hash = published
            .manifest_hash()
            .ok_or(PublishError::Unnamed(published.revision))?;
        let read = tokio::task::spawn_blocking(move || this.0.library.manifest(&hash));
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
        let hash = published
            .bundle_hash()
            .ok_or(PublishError::Unnamed(published.revision))?;
        let read = tokio::task::spawn_blocking(move || this.0.library.bundle(&hash));
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
            service = grant.service,
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
