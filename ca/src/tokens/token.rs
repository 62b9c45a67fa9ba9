//! Tokens: a secret that admits one key, once, for a while, as an agent or as an operator.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use data_encoding::HEXLOWER;
use hoplite_identity::{Selector, SpiffeId};
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::record::{self, Record};

/// Time enough to carry a token to a machine.
pub(crate) const TTL_DEFAULT: Duration = Duration::from_secs(600);

/// A token that lies about for longer is a password.
pub(crate) const TTL_MAX: Duration = Duration::from_secs(24 * 3600);

/// Digits of a token's id, as many as other ids have: half of its name.
pub(crate) const ID_DIGITS: usize = 32;

/// The secret itself, shown once. Only its digest is stored.
pub(crate) struct TokenText(Zeroizing<String>);

/// What is known of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Token {
    /// Whom it admits: an agent, or an operator.
    #[serde(alias = "agent_id")]
    pub(crate) admits: SpiffeId,
    /// Unix seconds.
    pub(crate) expires_at: u64,
    /// What it grants the node that joins by it.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(crate) grants: BTreeSet<Selector>,
    /// Fingerprint of the key that used it.
    used_by: Option<String>,
    /// The attestor to whom it was shown, of a token that somebody else has made. It is no invitation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    shown_to: Option<String>,
}

/// Why a join is refused. Whoever lacks the token learns nothing but the first.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum JoinRefused {
    #[error(
        "the join token is not known here; create one with `hoplite token create`, it can be used once and only for a while"
    )]
    Unknown,
    #[error("the join token has expired; create a new one with `hoplite token create`")]
    Expired,
    #[error("the join token was used with another key; if that was not this agent, ban it, and create a new token")]
    OtherKey,
    #[error("`{0}` is banned; an operator must evict it before it can join anew")]
    Banned(SpiffeId),
    #[error(
        "this token is an operator's, who signs in with it by `hoplite login`; create one for the agent with `hoplite token create --node NODE`"
    )]
    NotAnAgents,
    #[error(
        "this token is an agent's, and no operator can sign in with it; create one with `hoplite token create --operator NAME`"
    )]
    NotAnOperators,
}

// === impl TokenText ===

impl TokenText {
    /// 256 random bits in hex; `None` when the system gives none.
    pub(crate) fn generate() -> Option<Self> {
        let mut bytes = Zeroizing::new([0; 32]);
        SystemRandom::new().fill(&mut *bytes).ok()?;
        Some(Self(Zeroizing::new(HEXLOWER.encode(&*bytes))))
    }

    /// For the one answer that carries it.
    pub(crate) fn reveal(&self) -> String {
        self.0.to_string()
    }
}

/// The name under which a token's record is stored: its SHA-256. With 256 bits of entropy nothing slower is needed,
/// and a look-up by digest tells nothing by its timing.
pub(crate) fn digest_of(token: &str) -> String {
    HEXLOWER.encode(digest(&SHA256, token.as_bytes()).as_ref())
}

/// By what operators name a token: the beginning of its name.
pub(crate) fn id_of(name: &str) -> &str {
    name.get(..ID_DIGITS).unwrap_or(name)
}

// === impl Token ===

impl Token {
    /// An unused one.
    pub(crate) fn new(admits: SpiffeId, expires_at: u64) -> Self {
        Self {
            admits,
            expires_at,
            grants: BTreeSet::new(),
            used_by: None,
            shown_to: None,
        }
    }

    /// One that grants the node so much.
    pub(crate) fn granting(self, grants: BTreeSet<Selector>) -> Self {
        Self { grants, ..self }
    }

    /// One that somebody else has made, shown to this attestor.
    pub(crate) fn shown(admits: SpiffeId, expires_at: u64, attestor: String) -> Self {
        Self {
            shown_to: Some(attestor),
            ..Self::new(admits, expires_at)
        }
    }

    /// Whether it was made here, to invite somebody.
    pub(crate) fn is_invitation(&self) -> bool {
        self.shown_to.is_none()
    }

    /// Whether it is of no more use.
    pub(crate) fn is_expired(&self, now: SystemTime) -> bool {
        record::unix_seconds(now) >= self.expires_at
    }

    /// Whether somebody joined or signed in with it.
    pub(crate) fn is_used(&self) -> bool {
        self.used_by.is_some()
    }

    /// Whether it may still be used by somebody new.
    pub(crate) fn is_open(&self, now: SystemTime) -> bool {
        !self.is_used() && !self.is_expired(now)
    }

    /// The token after this key used it, unless the agent it is for is banned. A key that used it may try again: an
    /// answer can be lost.
    pub(crate) fn admit(self, key: &str, is_banned: bool, now: SystemTime) -> Result<Self, JoinRefused> {
        if self.is_expired(now) {
            return Err(JoinRefused::Expired);
        }
        if self.used_by.as_deref().is_some_and(|used_by| used_by != key) {
            return Err(JoinRefused::OtherKey);
        }
        if is_banned {
            return Err(JoinRefused::Banned(self.admits));
        }
        Ok(Self {
            used_by: Some(key.to_owned()),
            ..self
        })
    }
}

impl Record for Token {
    /// Their names are the digests of their texts.
    const PREFIX: &'static str = "token/";
    const COUNTED: bool = true;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_key_for_a_while() {
        let id = SpiffeId::parse("spiffe://prod.example/hoplite/agent/n1").unwrap();
        let fresh = Token::new(id.clone(), 100);
        let at = record::from_unix_seconds;
        let used = fresh.clone().admit("a", false, at(10)).unwrap();
        assert_eq!(used.clone().admit("a", false, at(99)).unwrap(), used, "a retry");
        assert_eq!(used.clone().admit("b", false, at(10)), Err(JoinRefused::OtherKey));
        assert_eq!(used.admit("a", false, at(100)), Err(JoinRefused::Expired));
        assert_eq!(fresh.clone().admit("a", false, at(100)), Err(JoinRefused::Expired));
        assert_eq!(fresh.admit("a", true, at(10)), Err(JoinRefused::Banned(id)));
    }

    #[test]
    fn tokens_are_long_and_never_the_same() {
        let (a, b) = (
            TokenText::generate().unwrap().reveal(),
            TokenText::generate().unwrap().reveal(),
        );
        assert_eq!(a.len(), 64);
        assert_ne!(a, b);
        assert_ne!(digest_of(&a), a);
    }
}
