//! The operators' part of the index.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::operators::operator::Operator;
use crate::record::{BadRecord, Mutation};

/// All operators, at one revision.
#[derive(Debug, Default)]
pub(crate) struct OperatorIndex(BTreeMap<String, Arc<Operator>>);

// === impl OperatorIndex ===

impl OperatorIndex {
    /// One write of the store.
    pub(crate) fn put(&mut self, mutation: Mutation<'_>) -> Result<(), BadRecord> {
        match mutation.of::<Operator>()? {
            Some((name, Some(operator))) => drop(self.0.insert(name.to_owned(), Arc::new(operator))),
            Some((name, None)) => drop(self.0.remove(name)),
            None => {}
        }
        Ok(())
    }

    /// One operator.
    pub(crate) fn get(&self, name: &str) -> Option<&Arc<Operator>> {
        self.0.get(name)
    }

    /// All operators, by name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Operator>> {
        self.0.values()
    }
}
