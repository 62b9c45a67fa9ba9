//! The agents' part of the index.

use std::collections::BTreeMap;
use std::sync::Arc;

use hoplite_identity::SpiffeId;

use crate::agents::agent::Agent;
use crate::record::{BadRecord, Mutation};

/// All agents, at one revision.
#[derive(Debug, Default)]
pub(crate) struct AgentIndex(BTreeMap<String, Arc<Agent>>);

// === impl AgentIndex ===

impl AgentIndex {
    /// One write of the store.
    pub(crate) fn put(&mut self, mutation: Mutation<'_>) -> Result<(), BadRecord> {
        match mutation.of::<Agent>()? {
            Some((id, Some(agent))) => drop(self.0.insert(id.to_owned(), Arc::new(agent))),
            Some((id, None)) => drop(self.0.remove(id)),
            None => {}
        }
        Ok(())
    }

    /// One agent.
    pub(crate) fn get(&self, id: &SpiffeId) -> Option<&Arc<Agent>> {
        self.0.get(id.as_str())
    }

    /// All agents, by SPIFFE ID.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Agent>> {
        self.0.values()
    }
}
