//! How an attested node becomes an agent: one identity is one live agent, and a proof counts for one key.

use std::time::SystemTime;

use hoplite_identity::{Selector, SpiffeId};
use serde::{Deserialize, Serialize};

use crate::agents::agent::{Agent, Attested, Issued};
use crate::attestors::Bearer;
use crate::issuance::{MintError, Minted};
use crate::record::{self, Record};
use crate::tokens::token::Token;
use crate::tokens::writes::without;
use crate::write::{Changes, ReadError, View, Write};

/// Which agent an attested identity is. Named by the digest of the identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Holds {
    agent: SpiffeId,
}

/// Admits a node that was attested.
pub(crate) struct Admit<F> {
    /// What it is called.
    pub(crate) agent: SpiffeId,
    /// The attestor.
    pub(crate) by: String,
    /// The digest of its identity.
    pub(crate) identity: String,
    pub(crate) selectors: Vec<Selector>,
    pub(crate) bearer: Option<Bearer>,
    /// The fingerprint.
    pub(crate) key: String,
    pub(crate) now: SystemTime,
    /// Names of tokens that have had their time.
    pub(crate) expired: Vec<String>,
    pub(crate) mint: F,
}

/// Why an attested node is not admitted. Each is a sentence for the log, and a short one for the peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotAdmitted {
    #[error(
        "the proof was shown before with another key; if that was not this node, somebody else has its token: ban `{0}`, and find out where the token \
         was read"
    )]
    Replayed(SpiffeId),
    #[error("`{0}` is banned; an operator must evict it before it can join anew")]
    Banned(SpiffeId),
    #[error(
        "another node is `{0}` already, and is not gone yet: two nodes with one name, or one that was made anew; `hoplite agent evict` makes room, and \
         so does the end of the other's certificate"
    )]
    Taken(SpiffeId),
    #[error("this node is `{0}` already, and is not gone yet; `hoplite agent evict` makes room under another name")]
    IsOther(SpiffeId),
    #[error(transparent)]
    Mint(#[from] MintError),
}

/// What is known of a node before it is admitted.
pub(crate) struct Known {
    /// The proof, if somebody has shown it before.
    shown: Option<Token>,
    /// Who has the name.
    agent: Option<Agent>,
    /// Who the identity is, if that is another.
    other: Option<Agent>,
}

// === impl Admit ===

impl<F> Write for Admit<F>
where
    F: Fn(&SpiffeId) -> Result<Minted, MintError> + Send + 'static,
{
    type Reads = Known;
    type Answer = Minted;
    type Error = NotAdmitted;

    fn read(&self, view: &mut View<'_>) -> Result<Self::Reads, ReadError> {
        let shown = match &self.bearer {
            Some(bearer) => view.one::<Token>(&bearer.digest)?,
            None => None,
        };
        let other = match view.one::<Holds>(&self.identity)? {
            Some(holds) if holds.agent != self.agent => view.one(holds.agent.as_str())?,
            _ => None,
        };
        Ok(Known {
            shown,
            agent: view.one(self.agent.as_str())?,
            other,
        })
    }

    fn decide(&self, known: Self::Reads) -> Result<(Changes, Minted), NotAdmitted> {
        let Known { shown, agent, other } = known;
        if let Some(banned) = [&agent, &other].into_iter().flatten().find(|agent| agent.banned) {
            return Err(NotAdmitted::Banned(banned.spiffe_id.clone()));
        }
        let now = record::unix_seconds(self.now);
        let is_live = |agent: &Agent| now < agent.newest().not_after;
        // The same identity, if it was the other still: an evicted one whose name another has got since is not.
        let is_it = |agent: &Agent| {
            agent
                .attested
                .as_ref()
                .is_some_and(|attested| attested.identity == self.identity)
        };
        if let Some(other) = other.filter(|other| is_it(other) && is_live(other)) {
            return Err(NotAdmitted::IsOther(other.spiffe_id));
        }
        if agent.as_ref().is_some_and(|agent| !is_it(agent) && is_live(agent)) {
            return Err(NotAdmitted::Taken(self.agent.clone()));
        }
        let mut changes = without(&self.expired);
        if let Some(bearer) = &self.bearer {
            let ends = record::unix_seconds(bearer.expires_at).saturating_add(1); // whole seconds, and not one too few
            let token = shown.unwrap_or_else(|| Token::shown(self.agent.clone(), ends, self.by.clone()));
            let replayed = |_| NotAdmitted::Replayed(token.admits.clone());
            let token = token.clone().admit(&self.key, false, self.now).map_err(replayed)?;
            changes = changes.put(&bearer.digest, &token);
        }
        let minted = (self.mint)(&self.agent)?;
        let before = agent.filter(is_it);
        let agent = Agent::joined(before, self.agent.clone(), self.key.clone(), Issued::from(&minted.leaf));
        let attested = Attested {
            by: self.by.clone(),
            identity: self.identity.clone(),
            at: now,
        };
        let agent = agent.attested(attested, self.selectors.iter().cloned());
        let holds = Holds {
            agent: self.agent.clone(),
        };
        let changes = changes.put(self.agent.as_str(), &agent).put(&self.identity, &holds);
        Ok((changes, minted))
    }
}

impl Record for Holds {
    /// Their names are digests of identities.
    const PREFIX: &'static str = "attested/";
}

// === impl NotAdmitted ===

impl NotAdmitted {
    /// For the peer, who is who it says, and may be somebody who has its token.
    pub(crate) fn short(&self) -> &'static str {
        match self {
            Self::Replayed(_) => {
                "what this node shows was shown before with another key; wait for a new token, or ask the CA's operator"
            }
            Self::Banned(_) => "this node is banned",
            Self::Taken(_) => "another node has this one's name; the CA's log says more",
            Self::IsOther(_) => "this node has joined under another name; the CA's log says more",
            Self::Mint(_) => "the CA cannot do this now; its log says why",
        }
    }
}
