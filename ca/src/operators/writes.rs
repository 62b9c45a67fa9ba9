//! What is written of operators: an invitation, a sign-in and its end, a newer certificate, a ban, a removal.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use hoplite_identity::SpiffeId;

use crate::issuance::{MintError, Minted};
use crate::operators::operator::{NoOperator, Operator};
use crate::tokens::token::{JoinRefused, Token};
use crate::tokens::writes::without;
use crate::write::{Changes, ReadError, View, Write};

/// Why an operator is not invited, signed in, prolonged or kept out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OperatorError {
    #[error("there is no operator `{0}`; `hoplite operator list` shows those there are")]
    NoSuchOperator(String),
    #[error("operator `{0}` is banned; `hoplite operator remove {0}` forgets it, then it can be invited anew")]
    Banned(String),
    #[error("there is no operator `{0}` yet, so name what it may do: `--role ROLE`")]
    NoRoles(String),
    #[error("there are {OPERATORS_MAX} operators already; remove those who are gone with `hoplite operator remove`")]
    TooMany,
    #[error(
        "this invitation was used already, with another key: each is for one sign-in; if that was not you, have the operator banned, and \
         ask for a new one"
    )]
    OtherKey,
    #[error(transparent)]
    Refused(#[from] JoinRefused),
    #[error("{0}")]
    Denied(#[from] NoOperator),
    #[error("this sign-in is older than 30 days and cannot be prolonged; sign in anew with a new token")]
    TooOld,
    #[error(transparent)]
    Mint(#[from] MintError),
}

/// More people than this do not administer one CA.
const OPERATORS_MAX: usize = 10_000;

/// A token for an operator, who is made if there is none of this name. Clears away some tokens that have expired.
pub(crate) struct Invite {
    /// Of the token's text.
    pub(crate) digest: String,
    pub(crate) id: SpiffeId,
    pub(crate) name: String,
    /// Those of a new operator, and of an old one from now on; `None` leaves an old one's as they are.
    pub(crate) rights: Option<(BTreeSet<String>, BTreeSet<String>)>,
    /// Unix seconds.
    pub(crate) expires_at: u64,
    /// Names of tokens that have had their time.
    pub(crate) expired: Vec<String>,
}

/// Signs somebody in by a token, once. `mint` makes the certificate of the operator that the token names.
pub(crate) struct SignIn<F> {
    /// Of the token's text.
    pub(crate) digest: String,
    /// The fingerprint.
    pub(crate) key: String,
    pub(crate) now: SystemTime,
    pub(crate) mint: F,
}

/// Gives a newer certificate to whoever shows one that counts.
pub(crate) struct Prolong<F> {
    pub(crate) name: String,
    /// The serial number of the one that was shown.
    pub(crate) shown: String,
    pub(crate) now: SystemTime,
    pub(crate) mint: F,
}

/// Ends a sign-in.
pub(crate) struct SignOut {
    pub(crate) name: String,
    pub(crate) shown: String,
}

/// Keeps an operator out.
pub(crate) struct BanOperator {
    pub(crate) name: String,
}

/// Forgets an operator.
pub(crate) struct RemoveOperator {
    pub(crate) name: String,
}

// === impl Invite ===

impl Write for Invite {
    type Reads = (Option<Operator>, usize);
    /// The operator as it is now.
    type Answer = Operator;
    type Error = OperatorError;

    fn read(&self, view: &mut View<'_>) -> Result<Self::Reads, ReadError> {
        let operator = view.one(&self.name)?;
        Ok((operator, view.passing::<Operator>()?.len()))
    }

    fn decide(&self, (operator, count): Self::Reads) -> Result<(Changes, Operator), OperatorError> {
        if operator.as_ref().is_some_and(|operator| operator.banned) {
            return Err(OperatorError::Banned(self.name.clone()));
        }
        let rights = self.rights.clone();
        let operator = match (operator, rights) {
            (Some(operator), None) => operator,
            (Some(operator), Some((roles, paths))) => operator.with(roles, paths),
            (None, None) => return Err(OperatorError::NoRoles(self.name.clone())),
            (None, Some(_)) if count >= OPERATORS_MAX => return Err(OperatorError::TooMany),
            (None, Some((roles, paths))) => Operator::invited(self.name.clone(), roles, paths),
        };
        let token = Token::new(self.id.clone(), self.expires_at);
        let changes = without(&self.expired)
            .put(&self.digest, &token)
            .put(&self.name, &operator);
        Ok((changes, operator))
    }
}

// === impl SignIn ===

impl<F> Write for SignIn<F>
where
    F: Fn(&SpiffeId) -> Result<Minted, MintError> + Send + 'static,
{
    type Reads = Option<(Token, Option<Operator>)>;
    type Answer = Minted;
    type Error = OperatorError;

    fn read(&self, view: &mut View<'_>) -> Result<Self::Reads, ReadError> {
        let Some(token) = view.one::<Token>(&self.digest)? else {
            return Ok(None);
        };
        let operator = match token.admits.operator() {
            Some(name) => view.one(name)?,
            None => None,
        };
        Ok(Some((token, operator)))
    }

    fn decide(&self, found: Self::Reads) -> Result<(Changes, Minted), OperatorError> {
        let (token, operator) = found.ok_or(JoinRefused::Unknown)?;
        let name = token.admits.operator().ok_or(JoinRefused::NotAnOperators)?.to_owned();
        // Removed since it was invited.
        let operator = operator.ok_or(JoinRefused::Unknown)?;
        if operator.banned {
            return Err(NoOperator::Banned(name).into());
        }
        let token = token
            .admit(&self.key, false, self.now)
            .map_err(|refused| match refused {
                JoinRefused::OtherKey => OperatorError::OtherKey,
                refused => refused.into(),
            })?;
        let minted = (self.mint)(&token.admits)?;
        let operator = operator.signed_in(&minted.leaf, self.now);
        let changes = Changes::none().put(&self.digest, &token).put(&name, &operator);
        Ok((changes, minted))
    }
}

// === impl Prolong ===

impl<F> Write for Prolong<F>
where
    F: Fn(std::time::Duration) -> Result<Minted, MintError> + Send + 'static,
{
    type Reads = Option<Operator>;
    type Answer = Minted;
    type Error = OperatorError;

    fn read(&self, view: &mut View<'_>) -> Result<Self::Reads, ReadError> {
        view.one(&self.name)
    }

    fn decide(&self, operator: Self::Reads) -> Result<(Changes, Minted), OperatorError> {
        let operator = operator.ok_or_else(|| NoOperator::Unknown(self.name.clone()))?;
        if operator.banned {
            return Err(NoOperator::Banned(self.name.clone()).into());
        }
        let left = operator
            .prolongable(&self.shown, self.now)
            .ok_or(OperatorError::TooOld)?;
        let minted = (self.mint)(left)?;
        let operator = operator.prolonged(&self.shown, &minted.leaf, self.now)?;
        Ok((Changes::none().put(&self.name, &operator), minted))
    }
}

// === impl SignOut ===

impl Write for SignOut {
    type Reads = Option<Operator>;
    type Answer = ();
    type Error = OperatorError;

    fn read(&self, view: &mut View<'_>) -> Result<Self::Reads, ReadError> {
        view.one(&self.name)
    }

    fn decide(&self, operator: Self::Reads) -> Result<(Changes, ()), OperatorError> {
        let operator = operator.ok_or_else(|| NoOperator::Unknown(self.name.clone()))?;
        Ok((Changes::none().put(&self.name, &operator.signed_out(&self.shown)), ()))
    }
}

// === impl BanOperator ===

impl Write for BanOperator {
    type Reads = (Option<Operator>, BTreeMap<String, Token>);
    /// Whether it was banned already.
    type Answer = bool;
    type Error = OperatorError;

    fn read(&self, view: &mut View<'_>) -> Result<Self::Reads, ReadError> {
        Ok((view.one(&self.name)?, view.all()?))
    }

    fn decide(&self, (operator, tokens): Self::Reads) -> Result<(Changes, bool), OperatorError> {
        let operator = operator.ok_or_else(|| OperatorError::NoSuchOperator(self.name.clone()))?;
        let (already, changes) = (operator.banned, without_tokens(&tokens, &self.name));
        Ok(match already {
            true => (changes, true),
            false => (changes.put(&self.name, &operator.banned()), false),
        })
    }
}

/// The tokens of this operator go: they would let in whoever has one.
fn without_tokens(tokens: &BTreeMap<String, Token>, name: &str) -> Changes {
    let its = tokens.iter().filter(|(_, token)| token.admits.operator() == Some(name));
    its.fold(Changes::none(), |changes, (digest, _)| changes.delete::<Token>(digest))
}

// === impl RemoveOperator ===

impl Write for RemoveOperator {
    type Reads = (Option<Operator>, BTreeMap<String, Token>);
    type Answer = ();
    type Error = OperatorError;

    fn read(&self, view: &mut View<'_>) -> Result<Self::Reads, ReadError> {
        Ok((view.one(&self.name)?, view.all()?))
    }

    fn decide(&self, (operator, tokens): Self::Reads) -> Result<(Changes, ()), OperatorError> {
        operator.ok_or_else(|| OperatorError::NoSuchOperator(self.name.clone()))?;
        Ok((without_tokens(&tokens, &self.name).delete::<Operator>(&self.name), ()))
    }
}
