//! What came of every test table of a policy set.

use crate::cases::{CaseResult, CaseTable};
use crate::view::Places;
use hoplite_policy::{Fault, Snapshot, Source};
use std::collections::BTreeSet;

/// What came of every table.
#[derive(Debug)]
pub struct TestReport {
    /// By table, in the order in which they were given.
    pub tables: Vec<TableReport>,
    /// Policies that decided no case: nothing would notice if they were gone.
    pub untested: Vec<String>,
}

/// What came of one table.
#[derive(Debug)]
pub struct TableReport {
    /// The table's name.
    pub name: String,
    /// What came of each case, or the faults of a table that cannot be read.
    pub outcome: Result<Vec<CaseResult>, Vec<Fault>>,
}

// === impl TestReport ===

impl TestReport {
    /// Runs every table.
    pub fn new(tables: &[Source], snapshot: &Snapshot, places: &Places<'_>) -> Self {
        let tables: Vec<TableReport> = tables
            .iter()
            .map(|source| TableReport {
                name: source.name.clone(),
                outcome: CaseTable::parse(source, snapshot.headers()).map(|table| table.run(snapshot, places)),
            })
            .collect();
        let results = tables.iter().flat_map(TableReport::results);
        let tested: BTreeSet<&str> = results
            .flat_map(|result| result.determining.iter().map(String::as_str))
            .collect();
        let untested = snapshot.policy_ids().filter(|id| !tested.contains(id));
        Self {
            untested: untested.map(str::to_owned).collect(),
            tables,
        }
    }

    /// Whether every table could be read and every case came out as expected.
    pub fn passed(&self) -> bool {
        self.tables.iter().all(TableReport::passed)
    }

    /// Whether nothing was tested, for nothing is there.
    pub fn is_empty(&self) -> bool {
        self.cases() == 0 && self.passed()
    }

    /// How many cases were run.
    pub fn cases(&self) -> usize {
        self.tables.iter().map(|table| table.results().len()).sum()
    }
}

// === impl TableReport ===

impl TableReport {
    /// What came of each case; none of a table that cannot be read.
    pub fn results(&self) -> &[CaseResult] {
        self.outcome.as_deref().unwrap_or_default()
    }

    /// The cases that came out otherwise.
    pub fn failed(&self) -> impl Iterator<Item = &CaseResult> {
        self.results().iter().filter(|result| !result.passed)
    }

    /// Whether it could be read and every case came out as expected.
    pub fn passed(&self) -> bool {
        self.outcome.is_ok() && self.failed().next().is_none()
    }
}
