//! What was found of each clause: it was kept so many times, broken like this, or could not be judged.

use std::collections::BTreeMap;
use std::fmt::Display;

use crate::clause::{CLAUSES, Clause, Id, Needs};

/// Faults of one clause are told up to this many: the rest says no more.
const DETAILS_MAX: usize = 8;

/// A detail is told up to this many characters: it quotes what a server said.
const DETAIL_CHARS_MAX: usize = 400;

/// What came of a clause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was kept, whenever it was looked at.
    Pass,
    /// It was broken.
    Fail,
    /// It could not be judged, and another run might.
    Skip,
    /// There is nothing that it says anything about.
    NotApplicable,
}

/// What came of a clause, and why.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// Which clause.
    pub clause: &'static Clause,
    /// What came of it.
    pub outcome: Outcome,
    /// The faults, or the reason for which it was not judged.
    pub details: Vec<String>,
}

/// What was found so far.
#[derive(Debug, Default)]
pub struct Findings {
    found: BTreeMap<Id, Found>,
    /// Patterns of clauses; none means all.
    only: Vec<String>,
}

#[derive(Debug, Default)]
struct Found {
    is_kept: bool,
    faults: Vec<String>,
    skips: Vec<String>,
    not_applicable: Vec<String>,
}

// === impl Findings ===

impl Findings {
    /// Findings of the clauses that one of these patterns names; of all if there is none.
    pub(crate) fn only(only: &[String]) -> Self {
        Self {
            found: BTreeMap::new(),
            only: only.to_vec(),
        }
    }

    /// Whether anybody asked for a clause: what costs hundreds of calls is left out otherwise.
    pub(crate) fn wants(&self, id: Id) -> bool {
        let clause = Clause::of(id);
        self.only.is_empty() || self.only.iter().any(|pattern| clause.matches(pattern))
    }

    pub(crate) fn pass(&mut self, id: Id) {
        self.found.entry(id).or_default().is_kept = true;
    }

    pub(crate) fn fail(&mut self, id: Id, what: impl Display) {
        note(&mut self.found.entry(id).or_default().faults, &what);
    }

    /// One look at a clause.
    pub(crate) fn check(&mut self, id: Id, is_kept: bool, otherwise: impl FnOnce() -> String) {
        if is_kept {
            self.pass(id);
        } else {
            self.fail(id, otherwise());
        }
    }

    pub(crate) fn skip(&mut self, id: Id, reason: impl Display) {
        note(&mut self.found.entry(id).or_default().skips, &reason);
    }

    pub(crate) fn not_applicable(&mut self, id: Id, reason: impl Display) {
        note(&mut self.found.entry(id).or_default().not_applicable, &reason);
    }

    /// Takes over what somebody else found, but for some clauses that do not count there.
    pub(crate) fn take(&mut self, other: Self, except: &[Id]) {
        for (id, found) in other.found {
            if !except.contains(&id) {
                let own = self.found.entry(id).or_default();
                own.is_kept |= found.is_kept;
                found.faults.iter().for_each(|what| note(&mut own.faults, what));
                found.skips.iter().for_each(|what| note(&mut own.skips, what));
                found
                    .not_applicable
                    .iter()
                    .for_each(|what| note(&mut own.not_applicable, what));
            }
        }
    }

    /// What came of each clause that was asked for.
    pub fn verdicts(&self) -> Vec<Verdict> {
        let asked = CLAUSES.iter().filter(|clause| self.wants(clause.id));
        asked.map(|clause| self.verdict(clause)).collect()
    }

    fn verdict(&self, clause: &'static Clause) -> Verdict {
        let (outcome, details) = match self.found.get(&clause.id) {
            Some(found) if !found.faults.is_empty() => (Outcome::Fail, found.faults.clone()),
            Some(found) if found.is_kept => (Outcome::Pass, Vec::new()),
            Some(found) if !found.skips.is_empty() => (Outcome::Skip, found.skips.clone()),
            Some(found) => (Outcome::NotApplicable, found.not_applicable.clone()),
            None if clause.needs == Needs::Client => (Outcome::NotApplicable, vec![clause.needs.missing().to_owned()]),
            None => (Outcome::Skip, vec![clause.needs.missing().to_owned()]),
        };
        Verdict {
            clause,
            outcome,
            details,
        }
    }
}

impl Outcome {
    /// The word in reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::Skip => "skip",
            Self::NotApplicable => "not applicable",
        }
    }
}

/// Keeps a detail once, on one line and within bounds: much of it comes from somebody else's server.
fn note(details: &mut Vec<String>, what: &impl Display) {
    let text = what.to_string();
    let shown = text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c });
    let text: String = shown.take(DETAIL_CHARS_MAX).collect();
    if details.len() < DETAILS_MAX && !details.contains(&text) {
        details.push(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_fault_outweighs_all_else_and_what_nobody_looked_at_says_what_it_needs() {
        let mut findings = Findings::default();
        findings.pass(Id::X1);
        findings.skip(Id::X1, "no");
        findings.fail(Id::X1, "two\nlines");
        findings.fail(Id::X1, "two\nlines");
        findings.skip(Id::X2, "why");
        findings.pass(Id::X2);
        findings.not_applicable(Id::X3, "none");
        let check = |name: &str, outcome: Outcome, details: &[&str]| {
            let verdicts = findings.verdicts();
            let verdict = verdicts.iter().find(|verdict| verdict.clause.name == name).unwrap();
            let said: Vec<_> = verdict.details.iter().map(String::as_str).collect();
            assert_eq!((verdict.outcome, said.as_slice()), (outcome, details), "{name}");
        };
        check("X-1", Outcome::Fail, &["two\u{fffd}lines"]);
        check("X-2", Outcome::Pass, &[]);
        check("X-3", Outcome::NotApplicable, &["none"]);
        check("W-3", Outcome::Skip, &[Needs::Socket.missing()]);
        check("F-6", Outcome::NotApplicable, &[Needs::Client.missing()]);
    }
}
