//! Which life of the CA's store it is: a restore from a backup begins a higher one.

use hoplite_wire::ca;
use serde::{Deserialize, Serialize};

/// The CA says it with each update, and the agent keeps the highest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Epoch {
    /// 0 for a CA that was never restored.
    pub(crate) number: u64,
    /// Tells two restores in one second apart.
    pub(crate) tie: u64,
}

impl Epoch {
    /// As a message says it; the first where it says nothing.
    pub(crate) fn of(message: Option<ca::Epoch>) -> Self {
        message.map(Self::from).unwrap_or_default()
    }
}

impl From<ca::Epoch> for Epoch {
    fn from(message: ca::Epoch) -> Self {
        let ca::Epoch { number, tie } = message;
        Self { number, tie }
    }
}

impl From<Epoch> for ca::Epoch {
    fn from(epoch: Epoch) -> Self {
        let Epoch { number, tie } = epoch;
        Self { number, tie }
    }
}

impl std::fmt::Display for Epoch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{:016x}", self.number, self.tie)
    }
}
