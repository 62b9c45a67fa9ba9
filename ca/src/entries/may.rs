//! Whether whoever asks may touch an entry: asked of what a write finds, in the same commit that changes it.

use std::fmt;
use std::sync::Arc;

use hoplite_identity::Entry;

use crate::rights::Refused;

/// The question, for entries as they are stored and as they would be. Clones are the same one.
#[derive(Clone)]
pub(crate) struct May(Option<Arc<Question>>);

type Question = dyn Fn(&Entry) -> Result<(), Refused> + Send + Sync;

// === impl May ===

impl May {
    /// Of somebody who may touch every entry.
    pub(crate) fn anything() -> Self {
        Self(None)
    }

    pub(crate) fn new(question: impl Fn(&Entry) -> Result<(), Refused> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(question)))
    }

    /// Whether this one may be touched.
    pub(crate) fn check(&self, entry: &Entry) -> Result<(), Refused> {
        match &self.0 {
            Some(question) => question(entry),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for May {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("May").field("anything", &self.0.is_none()).finish()
    }
}
