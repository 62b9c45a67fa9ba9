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
    /// One write of the store. Says which agent it is of.
    pub(crate) fn put(&mut self, mutation: Mutation<'_>) -> Result<Option<SpiffeId>, BadRecord> {
        let Some((id, agent)) = mutation.of::<Agent>()? else {
            return Ok(None);
        };
        match agent {
            Some(agent) => drop(self.0.insert(id.to_owned(), Arc::new(agent))),
            None => drop(self.0.remove(id)),
        }
        // A name that is none is nobody's who could watch.
        Ok(SpiffeId::parse(id).ok())
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
