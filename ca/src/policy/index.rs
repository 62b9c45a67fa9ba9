//! The policy's part of the index: what was published, and what agents are told of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use hoplite_policy::holding::GrantRef;
use hoplite_seal::SignerChain;
use hoplite_store::Revision;

use crate::policy::grant::GrantRecord;
use crate::policy::published::{Head, Published};
use crate::policy::signers::{self, SetRecord};
use crate::record::{BadRecord, Mutation};

/// Everything about policy, at one revision of the store.
#[derive(Debug, Default)]
pub(crate) struct PolicyIndex {
    head: Head,
    published: BTreeMap<u64, Arc<Published>>,
    grants: BTreeMap<String, Arc<GrantRecord>>,
    sets: BTreeMap<String, SetRecord>,
    /// What the sets are, verified.
    signers: Option<Arc<SignerChain>>,
    /// When anything of it last changed.
    changed: Revision,
}

/// What is in force.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct InForce {
    pub(crate) live: Option<Arc<Published>>,
    pub(crate) shadow: Option<Arc<Published>>,
    /// Those that are neither over nor revoked.
    pub(crate) grants: Vec<Arc<GrantRecord>>,
    /// Who may sign.
    pub(crate) signers: Option<Arc<SignerChain>>,
}

// === impl PolicyIndex ===

impl PolicyIndex {
    /// One write of the store.
    pub(crate) fn put(&mut self, mutation: Mutation<'_>) -> Result<(), BadRecord> {
        if let Some((_, head)) = mutation.of::<Head>()? {
            self.head = head.unwrap_or_default();
        } else if let Some((name, published)) = mutation.of::<Published>()? {
            let Ok(revision) = name.parse() else {
                return Ok(()); // no name of ours
            };
            match published {
                Some(published) => self.published.insert(revision, Arc::new(published)),
                None => self.published.remove(&revision),
            };
        } else if let Some((name, grant)) = mutation.of::<GrantRecord>()? {
            match grant {
                Some(grant) => self.grants.insert(name.to_owned(), Arc::new(grant)),
                None => self.grants.remove(name),
            };
        } else if let Some((name, set)) = mutation.of::<SetRecord>()? {
            match set {
                Some(set) => self.sets.insert(name.to_owned(), set),
                None => self.sets.remove(name),
            };
            let chain = signers::chain(self.sets.values()).map_err(|why| BadRecord::Malformed {
                key: mutation.key.to_owned(),
                reason: why.to_string(),
            })?;
            self.signers = chain.map(Arc::new);
        } else {
            return Ok(());
        }
        self.changed = self.changed.max(mutation.revision);
        Ok(())
    }

    /// When anything of it last changed.
    pub(crate) fn changed(&self) -> Revision {
        self.changed
    }

    /// What agents are told.
    pub(crate) fn in_force(&self, now: SystemTime) -> InForce {
        let one = |revision: Option<u64>| self.published(revision?).cloned();
        let grants = self.current_grants(now).filter(|grant| !grant.revoked);
        InForce {
            live: one(self.head.live),
            shadow: one(self.head.shadow),
            grants: grants.cloned().collect(),
            signers: self.signers.clone(),
        }
    }

    /// Who may sign, and who might before; none when nobody was ever named.
    pub(crate) fn signers(&self) -> Option<&Arc<SignerChain>> {
        self.signers.as_ref()
    }

    /// Which bundles are in force.
    pub(crate) fn head(&self) -> &Head {
        &self.head
    }

    /// One bundle of the history.
    pub(crate) fn published(&self, revision: u64) -> Option<&Arc<Published>> {
        self.published.get(&revision)
    }

    /// The whole history, oldest first.
    pub(crate) fn history(&self) -> impl DoubleEndedIterator<Item = &Arc<Published>> {
        self.published.values()
    }

    /// Grants that are not over, revoked ones among them.
    pub(crate) fn current_grants(&self, now: SystemTime) -> impl Iterator<Item = &Arc<GrantRecord>> {
        self.grants.values().filter(move |grant| !grant.is_over(now))
    }
}
