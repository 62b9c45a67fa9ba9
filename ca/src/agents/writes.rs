//! What is written of agents that have joined: the use of a new certificate, a renewal, a ban, an eviction.

use std::collections::BTreeMap;
use std::time::SystemTime;

use hoplite_identity::SpiffeId;

use crate::agents::agent::{Agent, Denied, Issued};
use crate::tokens::token::Token;
use crate::write::{Changes, ReadError, View, Write};

/// Why nothing was written of an agent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AgentError {
    #[error("`{0}` is not a known agent; `hoplite agent list` shows those that joined")]
    NoSuchAgent(SpiffeId),
    #[error(transparent)]
    Denied(#[from] Denied),
}

/// Notes a new certificate of an agent, which asked for it with the certificate `shown`. Its standing is decided here
/// once more: since the call began another key may have joined in its place, or an operator have banned it.
pub(crate) struct Renew {
    pub(crate) id: SpiffeId,
    /// The serial number.
    pub(crate) shown: String,
    pub(crate) issued: Issued,
}

/// Notes that an agent used its newest certificate.
pub(crate) struct Activate {
    pub(crate) id: SpiffeId,
    pub(crate) serial: String,
}

/// Notes that two have an agent's key.
pub(crate) struct Contest {
    pub(crate) id: SpiffeId,
    pub(crate) now: SystemTime,
}

/// Refuses an agent from now on, and its tokens.
pub(crate) struct Ban {
    pub(crate) id: SpiffeId,
}

/// Forgets an agent, and its tokens: one it joined with would let it in again.
pub(crate) struct Evict {
    pub(crate) id: SpiffeId,
}

// === impl Renew ===

impl Write for Renew {
    type Reads = Option<Agent>;
    type Answer = ();
    type Error = AgentError;

    fn read(&self, view: &mut View<'_>) -> Result<Self::Reads, ReadError> {
        view.one(self.id.as_str())
    }

    fn decide(&self, agent: Self::Reads) -> Result<(Changes, ()), AgentError> {
        let agent = known(agent, &self.id)?;
        let renewed = agent.clone().renewed(&self.shown, self.issued.clone())?;
        Ok((changed(&agent, &renewed), ()))
    }
}

// === impl Activate ===

impl Write for Activate {
    type Reads = Option<Agent>;
    type Answer = ();
    type Error = AgentError;

    fn read(&self, view: &mut View<'_>) -> Result<Self::Reads, ReadError> {
        view.one(self.id.as_str())
    }

    fn decide(&self, agent: Self::Reads) -> Result<(Changes, ()), AgentError> {
        let agent = known(agent, &self.id)?;
        let active = agent.clone().activate(&self.serial);
        Ok((changed(&agent, &active), ()))
    }
}

// === impl Contest ===

impl Write for Contest {
    type Reads = Option<Agent>;
    type Answer = ();
    type Error = AgentError;

    fn read(&self, view: &mut View<'_>) -> Result<Self::Reads, ReadError> {
        view.one(self.id.as_str())
    }

    fn decide(&self, agent: Self::Reads) -> Result<(Changes, ()), AgentError> {
        let agent = known(agent, &self.id)?;
        let contested = agent.clone().contested(self.now);
        Ok((changed(&agent, &contested), ()))
    }
}

// === impl Ban ===

impl Write for Ban {
    type Reads = (Option<Agent>, BTreeMap<String, Token>);
    type Answer = ();
    type Error = AgentError;

    fn read(&self, view: &mut View<'_>) -> Result<Self::Reads, ReadError> {
        Ok((view.one(self.id.as_str())?, view.all()?))
    }

    fn decide(&self, (agent, tokens): Self::Reads) -> Result<(Changes, ()), AgentError> {
        let agent = known(agent, &self.id)?.banned();
        let changes = Changes::none().put(self.id.as_str(), &agent);
        Ok((without_tokens(changes, &tokens, &self.id), ()))
    }
}

// === impl Evict ===

impl Write for Evict {
    type Reads = (Option<Agent>, BTreeMap<String, Token>);
    type Answer = ();
    type Error = AgentError;

    fn read(&self, view: &mut View<'_>) -> Result<Self::Reads, ReadError> {
        Ok((view.one(self.id.as_str())?, view.all()?))
    }

    fn decide(&self, (agent, tokens): Self::Reads) -> Result<(Changes, ()), AgentError> {
        known(agent, &self.id)?;
        let changes = Changes::none().delete::<Agent>(self.id.as_str());
        Ok((without_tokens(changes, &tokens, &self.id), ()))
    }
}

fn known(agent: Option<Agent>, id: &SpiffeId) -> Result<Agent, AgentError> {
    agent.ok_or_else(|| AgentError::NoSuchAgent(id.clone()))
}

fn changed(before: &Agent, after: &Agent) -> Changes {
    match before == after {
        true => Changes::none(),
        false => Changes::none().put(after.spiffe_id.as_str(), after),
    }
}

fn without_tokens(changes: Changes, tokens: &BTreeMap<String, Token>, agent: &SpiffeId) -> Changes {
    let theirs = tokens.iter().filter(|(_, token)| token.admits == *agent);
    theirs.fold(changes, |changes, (name, _)| changes.delete::<Token>(name))
}
