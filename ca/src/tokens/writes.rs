//! What is written of join tokens: a new one, its withdrawal, and the join that uses it.

use std::collections::BTreeSet;
use std::time::SystemTime;

use hoplite_identity::{Selector, SpiffeId};

use crate::agents::agent::{Agent, Attested, Issued};
use crate::attestors::name::BY_TOKEN;
use crate::issuance::{MintError, Minted};
use crate::record;
use crate::tokens::token::{JoinRefused, Token};
use crate::write::{Changes, ReadError, View, Write};

/// Why there is no token, or no join.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenError {
    #[error("`{0}` is banned; evict it before it may join anew")]
    Banned(SpiffeId),
    #[error("there is no such invitation; `hoplite token list` shows those there are")]
    NoSuchToken,
    #[error("this invitation was used already, and withdrawing it keeps nobody out; {}", keep_out(.0))]
    Used(SpiffeId),
    #[error(transparent)]
    Refused(#[from] JoinRefused),
    #[error(transparent)]
    Mint(#[from] MintError),
}

/// A new join token. Clears away some that have expired.
pub(crate) struct CreateToken {
    /// Of its text.
    pub(crate) digest: String,
    pub(crate) agent_id: SpiffeId,
    /// What the node has from then on.
    pub(crate) grants: BTreeSet<Selector>,
    /// Unix seconds.
    pub(crate) expires_at: u64,
    /// Names of tokens that have had their time.
    pub(crate) expired: Vec<String>,
}

/// How whoever came by an invitation is kept out.
fn keep_out(admitted: &SpiffeId) -> String {
    match admitted.operator() {
        Some(name) => format!("`hoplite operator ban {name}` does"),
        None => format!("`hoplite agent ban {admitted}` does"),
    }
}

/// Withdraws a token that nobody has used. Answers whom it would have admitted.
pub(crate) struct DeleteToken {
    /// As it is stored.
    pub(crate) name: String,
}

/// Whether there is a token with this digest. Writes nothing.
pub(crate) struct KnowsToken {
    /// Of the token's text.
    pub(crate) digest: String,
}

/// Admits a key by a token, once. `mint` makes the certificate of the agent that the token names.
pub(crate) struct Join<F> {
    /// Of the token's text.
    pub(crate) digest: String,
    /// The fingerprint.
    pub(crate) key: String,
    pub(crate) now: SystemTime,
    pub(crate) mint: F,
}

// === impl CreateToken ===

impl Write for CreateToken {
    type Reads = Option<Agent>;
    type Answer = ();
    type Error = TokenError;

    fn read(&self, view: &mut View<'_>) -> Result<Self::Reads, ReadError> {
        view.one(self.agent_id.as_str())
    }

    fn decide(&self, agent: Self::Reads) -> Result<(Changes, ()), TokenError> {
        if agent.is_some_and(|agent| agent.banned) {
            return Err(TokenError::Banned(self.agent_id.clone()));
        }
        let token = Token::new(self.agent_id.clone(), self.expires_at).granting(self.grants.clone());
        let cleared = without(&self.expired);
        Ok((cleared.put(&self.digest, &token), ()))
    }
}

/// Tokens that are of no more use go.
pub(crate) fn without(expired: &[String]) -> Changes {
    let gone = |changes: Changes, name: &String| changes.delete::<Token>(name);
    expired.iter().fold(Changes::none(), gone)
}

// === impl DeleteToken ===

impl Write for DeleteToken {
    type Reads = Option<Token>;
    type Answer = SpiffeId;
    type Error = TokenError;

    fn read(&self, view: &mut View<'_>) -> Result<Self::Reads, ReadError> {
        view.one(&self.name)
    }

    fn decide(&self, token: Self::Reads) -> Result<(Changes, SpiffeId), TokenError> {
        match token {
            None => Err(TokenError::NoSuchToken),
            Some(token) if token.is_used() => Err(TokenError::Used(token.admits)),
            Some(token) => Ok((Changes::none().delete::<Token>(&self.name), token.admits)),
        }
    }
}

// === impl KnowsToken ===

impl Write for KnowsToken {
    type Reads = bool;
    type Answer = bool;
    type Error = TokenError;

    fn read(&self, view: &mut View<'_>) -> Result<bool, ReadError> {
        Ok(view.one::<Token>(&self.digest)?.is_some())
    }

    fn decide(&self, known: bool) -> Result<(Changes, bool), TokenError> {
        Ok((Changes::none(), known))
    }
}

// === impl Join ===

impl<F> Write for Join<F>
where
    F: Fn(&SpiffeId) -> Result<Minted, MintError> + Send + 'static,
{
    /// The token, and the agent it is for.
    type Reads = Option<(Token, Option<Agent>)>;
    type Answer = Minted;
    type Error = TokenError;

    fn read(&self, view: &mut View<'_>) -> Result<Self::Reads, ReadError> {
        let Some(token) = view.one::<Token>(&self.digest)? else {
            return Ok(None);
        };
        let agent = view.one(token.admits.as_str())?;
        Ok(Some((token, agent)))
    }

    fn decide(&self, found: Self::Reads) -> Result<(Changes, Minted), TokenError> {
        let (token, agent) = found
            .filter(|(token, _)| token.is_invitation())
            .ok_or(JoinRefused::Unknown)?;
        if !token.admits.is_agent() {
            return Err(JoinRefused::NotAnAgents.into());
        }
        let is_banned = agent.as_ref().is_some_and(|agent| agent.banned);
        let mut grants = token.grants.clone();
        if token.is_used() {
            // A retry brings nothing back that a later join took away.
            grants.retain(|grant| agent.as_ref().is_some_and(|agent| agent.selectors.contains(grant)));
        }
        let token = token.admit(&self.key, is_banned, self.now)?;
        let id = token.admits.clone();
        let minted = (self.mint)(&id)?;
        let agent = Agent::joined(agent, id.clone(), self.key.clone(), Issued::from(&minted.leaf));
        let by_token = Attested {
            by: BY_TOKEN.to_owned(),
            identity: String::new(),
            at: record::unix_seconds(self.now),
        };
        let agent = agent.attested(by_token, grants);
        let changes = Changes::none().put(&self.digest, &token).put(id.as_str(), &agent);
        // `Barred` stays: it speaks of certificates from before the restore, and this one is of now.
        Ok((changes, minted))
    }
}
