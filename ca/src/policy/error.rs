//! Why policy was not changed.

use hoplite_policy::bundle::Refused;
use hoplite_seal::{BadSet, NotFollowed};

/// Grants at one time: break-glass is for emergencies, and every agent holds all of them.
pub(crate) const GRANTS_MAX: usize = 64;

/// Why policy was not changed. All of it is the operator's to mend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PolicyError {
    #[error(
        "the current policy revision is {current}, and this bundle was made when it was {expected}; look at what changed and publish again"
    )]
    Outdated { current: u64, expected: u64 },
    #[error("revision {got} does not follow {current}; number the bundle {next}", next = .current.saturating_add(1))]
    Revision { current: u64, got: u64 },
    #[error(
        "the bundle does not name the manifest of revision {current} as its parent; make it anew from the current one"
    )]
    Parent { current: u64 },
    #[error(
        "this CA trusts nobody to sign policy; put the output of `hoplite policy key create` into `policy_signers` and restart it"
    )]
    NoSigners,
    #[error("{0}")]
    NotFollowed(#[from] NotFollowed),
    #[error(
        "the policy of revision {revision} is in force, and `{signer}`, who signed it, is not to be believed any more: every node would deny everything; publish it again with a key that stays, then send these signers"
    )]
    Strands { revision: u64, signer: String },
    #[error("the signers changed while this was on its way; look who they are, and send it again")]
    SignersChanged,
    /// What agents would say of it.
    #[error(transparent)]
    NotTaken(#[from] Refused),
    #[error("the grant `{0}` was revoked; make a new one with another id if it is still needed")]
    Revoked(String),
    #[error("there is another grant `{0}`; choose another id")]
    GrantTaken(String),
    #[error("there are {GRANTS_MAX} grants already; revoke some, or write a policy")]
    TooManyGrants,
    #[error("there is no grant `{0}`; `hoplite policy grant list` shows those there are")]
    NoSuchGrant(String),
}

impl From<BadSet> for PolicyError {
    fn from(bad: BadSet) -> Self {
        NotFollowed::Bad { version: 1, bad }.into()
    }
}
