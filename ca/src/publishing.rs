//! Publishing policy: verified here before it is stored, handed to agents as it came.
//!
//! The CA signs no policy and could not: what it keeps is what people signed, and whoever enforces it verifies that anew.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use hoplite_identity::TrustDomain;
use hoplite_policy::Snapshot;
use hoplite_policy::bundle::{Acceptance, Bundle, EngineVersion, KNOWN_CRITICAL};
use hoplite_policy::grant::Grant;
use hoplite_seal::TrustedSigners;
use hoplite_wire::ca as wire;
use tonic::Status;

use crate::library::{Library, LibraryError};
use crate::policy::published::{
    GrantRecord, Published, decide_add_grant, decide_clear_shadow, decide_publish, decide_revoke_grant,
};
use crate::registry::{Registry, RegistryError};

/// Faults told to the publisher; the rest is for `hoplite policy check`.
const FAULTS_TOLD: usize = 5;
const LIST_DEFAULT: u32 = 100;
const LIST_MAX: u32 = 1_000;

/// Who may publish here, and where what they published lies. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Publishing(Arc<Shared>);

struct Shared {
    registry: Registry,
    library: Library,
    trust_domain: TrustDomain,
    signers: TrustedSigners,
    max_bytes: usize,
    /// What was compiled last: the next publication is mostly the same.
    compiled: Mutex<Snapshot>,
}

// === impl Publishing ===

impl Publishing {
    /// Removes from the library what a publication left behind that never was.
    pub(crate) fn new(
        registry: Registry,
        library: Library,
        trust_domain: TrustDomain,
        signers: TrustedSigners,
        max_bytes: usize,
    ) -> Self {
        let (bundles, manifests): (BTreeSet<_>, BTreeSet<_>) = {
            let index = registry.index();
            let history = || index.policy().history();
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
            max_bytes,
            compiled: Mutex::new(Snapshot::deny_all("nothing is published yet")),
        }))
    }

    /// Verifies a bundle, checks that its policies can be enforced, and puts it in force.
    pub(crate) async fn publish(&self, bytes: Vec<u8>, expected: u64) -> Result<u64, Status> {
        self.somebody_may()?;
        let (this, now) = (self.clone(), SystemTime::now());
        // Compiling takes seconds for tens of thousands of policies, and writing waits for the disk.
        let written = tokio::task::spawn_blocking(move || this.write(&bytes, now));
        let (published, parent) = written.await.map_err(|_| failed())??;

        let history: Vec<_> = self.0.registry.index().policy().history().cloned().collect();
        let record = published.clone();
        let done = self
            .0
            .registry
            .write(move |store| decide_publish(store, &record, parent, expected, &history))
            .await?;
        for bundle in done.unnamed {
            self.0.library.remove_bundle(&bundle);
        }
        Ok(done.revision)
    }

    fn write(&self, bytes: &[u8], now: SystemTime) -> Result<(Published, Option<hoplite_seal::Hash>), Status> {
        let acceptance = Acceptance {
            signers: &self.0.signers,
            trust_domain: &self.0.trust_domain,
            // Which revision may follow is decided with the commit.
            highest_seen: None,
            now,
            engine_version: EngineVersion::THIS,
            known_critical: KNOWN_CRITICAL,
            max_bytes: self.0.max_bytes,
        };
        let bundle =
            Bundle::open(bytes, &acceptance).map_err(|refused| Status::invalid_argument(refused.to_string()))?;
        let mut compiled = self.0.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        *compiled = compiled.recompile(bundle.sources()).map_err(|faults| {
            let told: Vec<_> = faults.iter().take(FAULTS_TOLD).map(ToString::to_string).collect();
            let more = match faults.len().saturating_sub(FAULTS_TOLD) {
                0 => String::new(),
                more => format!("; and {more} more"),
            };
            let told = told.join("; ");
            Status::invalid_argument(format!(
                "its policies cannot be enforced: {told}{more}; run `hoplite policy check`"
            ))
        })?;
        drop(compiled);
        let manifest = bundle.manifest().encode();
        self.0.library.put(bytes, &manifest).map_err(|error| {
            tracing::error!(%error, "cannot keep a policy bundle");
            failed()
        })?;
        Ok((Published::new(&bundle, bytes, now), bundle.manifest().parent))
    }

    pub(crate) fn show(&self) -> wire::ShowPolicyResponse {
        wire::ShowPolicyResponse {
            trust_domain: self.0.trust_domain.to_string(),
            signers: self.0.signers.names().map(str::to_owned).collect(),
            max_bundle_bytes: self.0.max_bytes as u64,
            ..self.0.registry.index().policy().show()
        }
    }

    pub(crate) fn list(&self, limit: u32, before: u64) -> Vec<wire::PublishedPolicy> {
        let limit = if limit == 0 { LIST_DEFAULT } else { limit.min(LIST_MAX) };
        let index = self.0.registry.index();
        let policy = index.policy();
        let older = policy.history().rev().filter(|p| before == 0 || p.revision < before);
        older.take(limit as usize).map(|p| policy.to_wire(p)).collect()
    }

    pub(crate) async fn get(&self, revision: u64) -> Result<wire::GetPolicyResponse, Status> {
        let (published, policy) = {
            let index = self.0.registry.index();
            let found = index.policy().published(revision).cloned();
            let published = found.ok_or_else(|| no_such(revision))?;
            let policy = index.policy().to_wire(&published);
            (published, Some(policy))
        };
        if published.kept {
            let bundle = self.bytes(&published).await?.to_vec();
            return Ok(wire::GetPolicyResponse {
                policy,
                bundle,
                manifest: Vec::new(),
            });
        }
        let this = self.clone();
        let hash = published.manifest_hash().ok_or_else(failed)?;
        let read = tokio::task::spawn_blocking(move || this.0.library.manifest(&hash));
        let manifest = read.await.map_err(|_| failed())?.map_err(unreadable)?;
        Ok(wire::GetPolicyResponse {
            policy,
            bundle: Vec::new(),
            manifest,
        })
    }

    /// A bundle that is in force, for an agent.
    pub(crate) async fn current(&self, revision: u64) -> Result<Arc<Vec<u8>>, Status> {
        let published = {
            let index = self.0.registry.index();
            let policy = index.policy();
            let found = policy.published(revision).filter(|_| policy.is_current(revision));
            found.cloned().ok_or_else(|| no_such(revision))?
        };
        self.bytes(&published).await
    }

    async fn bytes(&self, published: &Published) -> Result<Arc<Vec<u8>>, Status> {
        let this = self.clone();
        let hash = published.bundle_hash().ok_or_else(failed)?;
        let read = tokio::task::spawn_blocking(move || this.0.library.bundle(&hash));
        read.await.map_err(|_| failed())?.map_err(unreadable)
    }

    pub(crate) async fn clear_shadow(&self) -> Result<bool, RegistryError> {
        self.0.registry.write(decide_clear_shadow).await
    }

    pub(crate) async fn add_grant(&self, bytes: &[u8]) -> Result<wire::Grant, Status> {
        self.somebody_may()?;
        let now = SystemTime::now();
        let grant = Grant::open(bytes, &self.0.signers, &self.0.trust_domain, now)
            .map_err(|refused| Status::invalid_argument(refused.to_string()))?;
        let record = GrantRecord::new(&grant, bytes);
        let message = record.to_wire();
        self.0
            .registry
            .write(move |store| decide_add_grant(store, &record, now))
            .await?;
        let draft = grant.draft();
        tracing::warn!(
            target: "hoplite::audit",
            grant = draft.id,
            ticket = draft.ticket,
            reason = draft.reason,
            service = draft.service,
            signed_by = ?grant.signed_by(),
            until = message.until_unix,
            "break-glass: access is granted"
        );
        Ok(message)
    }

    pub(crate) fn grants(&self) -> Vec<wire::Grant> {
        let index = self.0.registry.index();
        let grants = index.policy().current_grants(SystemTime::now());
        grants.map(|grant| grant.to_wire()).collect()
    }

    pub(crate) async fn revoke_grant(&self, id: String) -> Result<(), RegistryError> {
        self.0
            .registry
            .write(move |store| decide_revoke_grant(store, &id))
            .await
    }

    fn somebody_may(&self) -> Result<(), Status> {
        if self.0.signers.is_empty() {
            return Err(Status::failed_precondition(
                "this CA trusts nobody to sign policy; put the output of `hoplite policy key create` into `policy_signers` and restart it",
            ));
        }
        Ok(())
    }
}

fn no_such(revision: u64) -> Status {
    Status::not_found(format!(
        "there is no policy of revision `{revision}`; `hoplite policy history` shows those there are"
    ))
}

fn unreadable(error: LibraryError) -> Status {
    tracing::error!(%error, "a policy bundle cannot be read");
    failed()
}

fn failed() -> Status {
    Status::unavailable("the CA cannot do this now; its log says why")
}
