//! Why what was kept of signed policy is not held.

use crate::bundle::{Refused, Stage};
use crate::grant::GrantRefused;

/// Why something that was kept is not held. What was accepted last is known all the same, unless it says otherwise.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotRestored {
    /// The state cannot be read or understood.
    #[error("what policy was accepted before is not known any more: {0}")]
    State(String),
    /// The file cannot be read.
    #[error("{0}")]
    Unreadable(String),
    /// It was accepted, and its file is gone.
    #[error("its file is gone")]
    Missing,
    /// Nobody's signature counts here any more.
    #[error("`policy_signers` is empty, and a bundle has been in force here")]
    NoSigner,
    /// It is damaged, signed by somebody who is trusted no longer, or older than what was accepted.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// A bundle of another stage lies in its place.
    #[error("it is a {0} bundle, which may not decide in the place of another")]
    OtherStage(Stage),
    /// A grant is damaged, or signed by somebody who is trusted no longer.
    #[error(transparent)]
    Grant(#[from] GrantRefused),
}

/// Why what was kept cannot be read, in words for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unreadable(pub(super) String);

// === impl Unreadable ===

impl Unreadable {
    /// For this reason.
    pub fn of(why: impl std::fmt::Display) -> Self {
        Self(why.to_string())
    }
}
