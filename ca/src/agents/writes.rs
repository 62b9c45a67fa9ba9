//! What is written of agents that have joined: the use of a new certificate, a renewal, a ban, an eviction.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use hoplite_identity::{Leaf, SpiffeId};

use crate::agents::agent::{self, Agent, Denied, Issued, Readmission, Standing};
use crate::epoch::{Barred, Epoch, Since};
use crate::issuance::{MintError, Minted};
use crate::tokens::token::Token;
use crate::write::{Changes, ReadError, View, Write};

/// Why nothing was written of an agent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AgentError {
    #[error("`{0}` is not a known agent; `hoplite agent list` shows those that joined")]
    NoSuchAgent(SpiffeId),
    #[error(transparent)]
    Denied(#[from] Denied),
    #[error(transparent)]
    Mint(#[from] MintError),
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

/// Takes the authority's word for a certificate that a restored store may lack. Whether it may is decided here once more.
pub(crate) struct Adopt {
    pub(crate) shown: Leaf,
    pub(crate) now: SystemTime,
}

/// Admits an agent whose certificate has ended by the key of it, which signed the request. `mint` makes its next certificate.
pub(crate) struct Reattest<F> {
    pub(crate) shown: Leaf,
    pub(crate) now: SystemTime,
    /// How long ago it may have ended.
    pub(crate) within: Duration,
    pub(crate) mint: F,
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

/// An agent, and what a restore left open of it.
pub(crate) struct Held {
    agent: Option<Agent>,
    epoch: Option<Epoch>,
    barred: Option<Barred>,
}

impl Held {
    fn read(view: &mut View<'_>, id: &SpiffeId) -> Result<Self, ReadError> {
        Ok(Self {
            agent: view.one(id.as_str())?,
            epoch: view.one("")?,
            barred: view.one(id.as_str())?,
        })
    }

    fn since(&self) -> Since<'_> {
        Since {
            epoch: self.epoch.as_ref(),
            is_barred: self.barred.is_some(),
        }
    }
}

// === impl Adopt ===

impl Write for Adopt {
    type Reads = Held;
    /// Whether it was news.
    type Answer = bool;
    type Error = AgentError;

    fn read(&self, view: &mut View<'_>) -> Result<Self::Reads, ReadError> {
        Held::read(view, self.shown.spiffe_id())
    }

    fn decide(&self, held: Self::Reads) -> Result<(Changes, bool), AgentError> {
        if agent::authorize(held.agent.as_ref(), held.since(), &self.shown, self.now)? != Standing::Unseen {
            return Ok((Changes::none(), false)); // another call of its was faster
        }
        let adopted = Agent::adopted(held.agent, &self.shown, self.now).readmitted(Readmission::Adopted, self.now);
        Ok((Changes::none().put(self.shown.spiffe_id().as_str(), &adopted), true))
    }
}

// === impl Reattest ===

impl<F> Write for Reattest<F>
where
    F: Fn(&SpiffeId) -> Result<Minted, MintError> + Send + 'static,
{
    type Reads = Held;
    type Answer = Minted;
    type Error = AgentError;

    fn read(&self, view: &mut View<'_>) -> Result<Self::Reads, ReadError> {
        Held::read(view, self.shown.spiffe_id())
    }

    fn decide(&self, held: Self::Reads) -> Result<(Changes, Minted), AgentError> {
        let (id, serial) = (self.shown.spiffe_id(), self.shown.serial());
        let standing = agent::standing(held.agent.as_ref(), held.since(), &self.shown);
        let is_of_this_agent = matches!(&standing, Ok(_) | Err(Denied::TwoHolders | Denied::Superseded));
        if is_of_this_agent && self.now >= self.shown.not_after() + self.within {
            let not_after = self.shown.not_after().into();
            return Err(Denied::TooLate { not_after }.into());
        }
        // One in whose place another is in use already is a sign of two holders, here as at a renewal.
        let agent = match (standing?, held.agent) {
            (Standing::Unseen, agent) => Agent::adopted(agent, &self.shown, self.now),
            (Standing::Known | Standing::FirstUse, Some(agent)) => agent,
            (Standing::Known | Standing::FirstUse, None) => return Err(Denied::Unknown(id.clone()).into()),
        };
        let minted = (self.mint)(id)?;
        let renewed = agent.renewed(serial, Issued::from(&minted.leaf))?;
        let agent = renewed.readmitted(Readmission::Reattested, self.now);
        Ok((Changes::none().put(id.as_str(), &agent), minted))
    }
}

// === impl Ban ===

impl Write for Ban {
    type Reads = (Option<Agent>, BTreeMap<String, Token>);
    /// Whether it was banned already.
    type Answer = bool;
    type Error = AgentError;

    fn read(&self, view: &mut View<'_>) -> Result<Self::Reads, ReadError> {
        Ok((view.one(self.id.as_str())?, view.all()?))
    }

    fn decide(&self, (agent, tokens): Self::Reads) -> Result<(Changes, bool), AgentError> {
        let agent = known(agent, &self.id)?;
        let banned = agent.clone().banned();
        let changes = without_tokens(changed(&agent, &banned), &tokens, &self.id);
        Ok((changes, agent.banned))
    }
}

// === impl Evict ===

impl Write for Evict {
    type Reads = (Option<Agent>, BTreeMap<String, Token>, Option<Epoch>);
    type Answer = ();
    type Error = AgentError;

    fn read(&self, view: &mut View<'_>) -> Result<Self::Reads, ReadError> {
        Ok((view.one(self.id.as_str())?, view.all()?, view.one("")?))
    }

    fn decide(&self, (agent, tokens, epoch): Self::Reads) -> Result<(Changes, ()), AgentError> {
        known(agent, &self.id)?;
        let changes = Changes::none().delete::<Agent>(self.id.as_str());
        // Else what was issued to it between backup and restore would let it in again.
        let changes = match epoch {
            Some(_) => changes.put(self.id.as_str(), &Barred {}),
            None => changes,
        };
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
