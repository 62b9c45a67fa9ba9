//! What callers are told when something fails, by blame. What is ours is logged here and not told.

use std::convert::Infallible;
use std::fmt::Display;

use hoplite_store::{CommitError, StoreError};
use tonic::Status;

use crate::acts::Unwritten;
use crate::agents::agent::Denied;
use crate::agents::writes::AgentError;
use crate::authority::course::CourseError;
use crate::authority::taking::TrustError;
use crate::federation::writes::FederationError;
use crate::issuance::authority::MintAuthorityError;
use crate::issuance::{BadCsr, MintError};
use crate::nested::writes::NestedError;
use crate::operators::operator::NoOperator;
use crate::operators::writes::OperatorError;
use crate::policy::error::PolicyError;
use crate::publishing::PublishError;
use crate::rights::Refused;
use crate::tokens::writes::TokenError;
use crate::write::{ReadError, WriteError};

/// A noun's error, as its caller is told.
pub(crate) trait Blame: Display {
    fn status(&self) -> Status;
}

/// The CA's own fault: the text is for its log.
pub(super) fn ours(error: &dyn Display) -> Status {
    tracing::error!(%error, "the CA failed");
    Status::unavailable("the CA cannot do this now; its log says why")
}

impl<E: Blame> From<WriteError<E>> for Status {
    fn from(error: WriteError<E>) -> Self {
        match &error {
            WriteError::Refused(refused) => refused.status(),
            WriteError::Commit(CommitError::TooLarge(_)) => Self::out_of_range("too much for one commit; split it"),
            WriteError::Contention => Self::aborted(error.to_string()),
            // The log has it once, and the address is nobody's matter.
            WriteError::Read(ReadError::Store(StoreError::Away { .. }))
            | WriteError::Commit(CommitError::Store(StoreError::Away { .. })) => Self::unavailable(
                "the CA cannot reach its database, so nothing can be registered, joined, renewed or banned until that is back; \
                 what is registered goes on getting certificates",
            ),
            WriteError::Read(_) | WriteError::Commit(_) | WriteError::NotFollowing => ours(&error),
        }
    }
}

impl Blame for Infallible {
    fn status(&self) -> Status {
        match *self {}
    }
}

impl Blame for AgentError {
    fn status(&self) -> Status {
        match self {
            Self::NoSuchAgent(_) => Status::not_found(self.to_string()),
            Self::Denied(denied) => denied.clone().into(),
            Self::Mint(error) => ours(error),
        }
    }
}

impl Blame for TokenError {
    fn status(&self) -> Status {
        match self {
            Self::Banned(_) | Self::Used(_) => Status::failed_precondition(self.to_string()),
            Self::NoSuchToken => Status::not_found(self.to_string()),
            Self::Refused(_) => Status::permission_denied(self.to_string()),
            Self::Mint(error) => ours(error),
        }
    }
}

impl Blame for CourseError {
    fn status(&self) -> Status {
        let text = self.to_string();
        match self {
            Self::NoSuch(_) => Status::not_found(text),
            Self::Several(_) => Status::invalid_argument(text),
            Self::NonePrepared | Self::NotNow { .. } | Self::NotKnown { .. } | Self::TooMany | Self::TooShort => {
                Status::failed_precondition(text)
            }
        }
    }
}

impl Blame for TrustError {
    fn status(&self) -> Status {
        match self {
            Self::Course(error) => error.status(),
            Self::Founded | Self::NotFounded | Self::Certificate(_) | Self::Key(_) => ours(self),
        }
    }
}

impl Blame for NestedError {
    fn status(&self) -> Status {
        let text = self.to_string();
        match self {
            Self::NotRegistered(_) => Status::permission_denied(text),
            Self::TooMany(_) | Self::NoAuthority(_) => Status::failed_precondition(text),
            Self::Trust(error) => error.status(),
        }
    }
}

impl From<MintAuthorityError> for Status {
    fn from(error: MintAuthorityError) -> Self {
        match error {
            MintAuthorityError::MayNot => Self::failed_precondition(error.to_string()),
            MintAuthorityError::Mint(error) => error.into(),
        }
    }
}

impl Blame for OperatorError {
    fn status(&self) -> Status {
        let text = self.to_string();
        match self {
            Self::NoSuchOperator(_) => Status::not_found(text),
            Self::Banned(_) | Self::TooMany | Self::TooOld => Status::failed_precondition(text),
            Self::NoRoles(_) => Status::invalid_argument(text),
            Self::OtherKey | Self::Refused(_) => Status::permission_denied(text),
            Self::Denied(denied) => denied.clone().into(),
            Self::Mint(error) => ours(error),
        }
    }
}

impl Blame for FederationError {
    fn status(&self) -> Status {
        let text = self.to_string();
        match self {
            Self::NoSuch(_) | Self::NoSuchSet(_) => Status::not_found(text),
            Self::Own(_) | Self::NoAuthority(_) => Status::invalid_argument(text),
            Self::NoEndpoint(_)
            | Self::NoFirstBundle(_)
            | Self::TooMany
            | Self::TooManySets
            | Self::Lower { .. }
            | Self::SharedKey { .. } => Status::failed_precondition(text),
            Self::Stored(error) => ours(error),
        }
    }
}

impl Blame for Refused {
    fn status(&self) -> Status {
        self.clone().into()
    }
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        Self::permission_denied(refused.to_string())
    }
}

impl From<NoOperator> for Status {
    /// `Unauthenticated` asks for another certificate, `PermissionDenied` says that none of this name will help.
    fn from(error: NoOperator) -> Self {
        let text = error.to_string();
        match error {
            NoOperator::NoCertificate | NoOperator::Expired { .. } | NoOperator::SignedOut(_) => {
                Self::unauthenticated(text)
            }
            NoOperator::Unknown(_) | NoOperator::Banned(_) | NoOperator::Reserved(_) | NoOperator::NotOfThisCa(_) => {
                Self::permission_denied(text)
            }
        }
    }
}

impl Blame for PolicyError {
    fn status(&self) -> Status {
        let text = self.to_string();
        match self {
            Self::Outdated { .. } | Self::SignersChanged => Status::aborted(text),
            Self::NoSuchGrant(_) => Status::not_found(text),
            Self::Revision { .. }
            | Self::Parent { .. }
            | Self::NotTaken(_)
            | Self::NoSigners
            | Self::NotFollowed(_)
            | Self::Strands { .. }
            | Self::Revoked(_)
            | Self::GrantTaken(_)
            | Self::TooManyGrants => Status::failed_precondition(text),
        }
    }
}

impl From<Denied> for Status {
    /// `Unauthenticated` asks for another certificate, `PermissionDenied` says that none will help.
    fn from(denied: Denied) -> Self {
        let text = denied.to_string();
        match denied {
            Denied::NoCertificate
            | Denied::Expired { .. }
            | Denied::Superseded
            | Denied::OtherKey
            | Denied::Forged(_) => Self::unauthenticated(text),
            Denied::TwoHolders | Denied::Contested(_) => Self::failed_precondition(text),
            Denied::NotAnAgent(_)
            | Denied::Unknown(_)
            | Denied::Banned(_)
            | Denied::TooLate { .. }
            | Denied::NotOfThisCa(_) => Self::permission_denied(text),
        }
    }
}

impl From<BadCsr> for Status {
    fn from(error: BadCsr) -> Self {
        Self::invalid_argument(error.to_string())
    }
}

impl From<Unwritten> for Status {
    fn from(error: Unwritten) -> Self {
        Self::unavailable(error.to_string())
    }
}

impl From<MintError> for Status {
    fn from(error: MintError) -> Self {
        ours(&error)
    }
}

impl From<PublishError> for Status {
    fn from(error: PublishError) -> Self {
        let text = error.to_string();
        match error {
            PublishError::NoSigners => Self::failed_precondition(text),
            PublishError::Bundle(_) | PublishError::Grant(_) | PublishError::Faults(_) => Self::invalid_argument(text),
            PublishError::NoSuchPolicy(_) | PublishError::Lost(_) => Self::not_found(text),
            PublishError::Write(error) => error.into(),
            PublishError::Swept => Self::aborted(text),
            PublishError::Kept(_) | PublishError::LostAgain(_) | PublishError::Died => ours(&text),
        }
    }
}
