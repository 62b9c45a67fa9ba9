//! How a node joins before any agent runs on it: the CA is checked by its fingerprint, a token or a proof traded for the
//! node's SVID, and all of it kept where the agent finds it.

use std::path::{Path, PathBuf};

use hoplite_host::clock;
use hoplite_host::files::{self, FileError};
use hoplite_identity::{Fingerprint, HostPort, NotIntroduced};
use hoplite_wire::channel::{self, IntroduceError};

use crate::addresses::CaAddresses;
use crate::config::Config;
use crate::node::keeper::{self, Keeper, Membership, NodeError, Token};
use crate::node::link::{CaError, CaLink};
use crate::proofs::JoinSettings;

/// In the data directory: the authority that the invitation named, by which the CA is known at first.
pub(crate) const FIRST_BUNDLE: &str = "first-bundle.pem";

/// In the data directory: what is not whole yet.
pub(crate) const SCRATCH: &str = "joining";

/// What a node has to show to a CA that does not know it.
#[derive(Clone, Copy)]
pub enum JoinWith<'a> {
    /// The token of an invitation.
    Token(&'a str),
    /// A proof of who it is, for one of the CA's attestors.
    Proof(&'a JoinSettings),
}

/// What the configuration of an agent says of the CA that it joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// What the node is now.
    pub membership: Membership,
    /// For `trust_bundle`.
    pub trust_bundle: PathBuf,
    /// Of the CA: that of the invitation first, and those that it named.
    pub ca: CaAddresses,
}

/// Why a node has not joined. One sentence for the operator, with what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// The CA cannot be reached.
    #[error(transparent)]
    Introduce(IntroduceError),
    /// Somebody else answers.
    #[error(
        "the CA at `{address}` has an authority with the fingerprint {shown}, and {expected} was said: that is mistyped or of \
         another CA, or somebody stands between; nothing was sent to it. `hoplite ca show` on the CA's machine prints the right one"
    )]
    OtherAuthority {
        /// Where.
        address: String,
        /// What was said.
        expected: Fingerprint,
        /// What is there.
        shown: Fingerprint,
    },
    /// The clocks of node and CA differ.
    #[error(
        "the clocks of this machine and of the CA at `{address}` differ: {reason}; then run the same command again"
    )]
    Clock {
        /// The CA's.
        address: String,
        /// What is not valid when.
        reason: String,
    },
    /// The CA does not take the token, or the proof.
    #[error("{0}")]
    Refused(String),
    /// Another word of the CA, or none.
    #[error(
        "the CA at `{address}` was asked, and {reason}; run the same command again: an invitation's token still counts for this machine"
    )]
    Failed {
        /// The CA's.
        address: String,
        /// What it said.
        reason: String,
    },
    /// The data directory.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
}

/// What a node is already, by what lies in its agent's data directory. None without an SVID of its trust domain.
///
/// # Errors
/// The directory, or what is in it, cannot be read.
pub fn membership(config: &Config) -> Result<Option<Membership>, NodeError> {
    match Keeper::open(&config.data_dir, &config.trust_domain, &config.trust_bundle) {
        Ok(keeper) => Ok(keeper.membership()),
        // It was purged, and its configuration stayed. Whatever else is there, no agent runs by it.
        Err(NodeError::NoTrustBundle(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Joins. May be tried again with the same token whatever failed: the key stays the same until it succeeded.
///
/// # Errors
/// [`JoinError`]. Nothing was sent unless the CA was believed, and the data directory is as it was.
pub async fn join(
    address: &HostPort,
    fingerprint: Fingerprint,
    shown: JoinWith<'_>,
    data_dir: &Path,
) -> Result<Joined, JoinError> {
    let introducing = channel::introduce(address, fingerprint, clock::now());
    let first = introducing.await.map_err(JoinError::from)?;
    // Beside what is there, which stays in force until this one is whole.
    files::private_dir_among_others(data_dir)?;
    let scratch = data_dir.join(SCRATCH);
    files::private_dir(&scratch)?;
    files::write_private(&scratch.join(FIRST_BUNDLE), first.to_pem().as_bytes())?;
    let keeper = Keeper::open(&scratch, first.trust_domain(), &scratch.join(FIRST_BUNDLE))?;
    let link = CaLink::new(address.clone().into(), first.trust_domain(), keeper.credentials());
    let joined = match shown {
        JoinWith::Token(token) => keeper.join(&link, &Token::new(token)).await,
        JoinWith::Proof(proof) => keeper.attest(&link, proof).await,
    };
    joined.map_err(|error| JoinError::of(error, address.as_str()))?;
    keeper.ensure_saved()?;
    let membership = keeper.membership().ok_or_else(|| JoinError::Failed {
        address: address.to_string(),
        reason: "it gave no SVID".to_owned(),
    })?;
    // The bundle first: with it alone an agent begins as before it had ever heard from its CA.
    for name in [FIRST_BUNDLE, keeper::FILE] {
        files::rename(&scratch.join(name), &data_dir.join(name))?;
    }
    files::remove_dir(&scratch)?;
    Ok(Joined {
        membership,
        trust_bundle: data_dir.join(FIRST_BUNDLE),
        ca: CaAddresses::from(address.clone()).with(&keeper.addresses()),
    })
}

// === impl JoinError ===

impl JoinError {
    fn of(error: CaError, address: &str) -> Self {
        let address = address.to_owned();
        match error {
            CaError::Refused(reason) | CaError::Dismissed(reason) => Self::Refused(reason),
            CaError::Clock(reason) => Self::Clock {
                address,
                reason: reason.to_string(),
            },
            other => Self::Failed {
                address,
                reason: other.to_string(),
            },
        }
    }
}

impl From<IntroduceError> for JoinError {
    fn from(error: IntroduceError) -> Self {
        let IntroduceError::Refused { address, reason } = &error else {
            return Self::Introduce(error);
        };
        let address = address.to_string();
        match reason {
            NotIntroduced::OtherAuthority { expected, shown } => Self::OtherAuthority {
                address,
                expected: *expected,
                shown: *shown,
            },
            NotIntroduced::Rejected(reason) if matches!(reason.code(), "expired" | "not_yet_valid") => Self::Clock {
                address,
                reason: reason.to_string(),
            },
            _ => Self::Introduce(error),
        }
    }
}
