//! One case: what is asked, what should come out, and what did.

use crate::explain::{Explanation, explain};
use crate::view::Places;
use cedar_policy::Context;
use hoplite_policy::{Ambiguous, Ask, CallFacts, Decision, Snapshot, Verdict, WhatIfGiven};
use std::fmt;

/// The most lines of what nearly decided one case.
const NEARLY_MAX: usize = 8;

/// What came of one case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaseResult {
    /// The line of the table, from 1.
    pub line: usize,
    /// The column, from 1.
    pub column: usize,
    /// The case as it is written, without what is expected.
    pub case: String,
    /// What is expected, as a table writes it.
    pub expected: String,
    /// What came out, as a table writes it.
    pub found: String,
    /// Whether the two agree.
    pub passed: bool,
    /// What helps to understand it, a sentence each.
    pub why: Vec<String>,
    /// The policies that decided.
    pub determining: Vec<String>,
}

/// One case, ready to be asked.
#[derive(Debug, Clone)]
pub(super) struct Case {
    pub(super) place: (usize, usize),
    pub(super) text: String,
    pub(super) question: Question,
    pub(super) expected: Expected,
}

/// What is asked.
#[derive(Debug, Clone)]
pub(super) enum Question {
    Ask(Box<Ask>),
    /// A request that no policy is asked about.
    Malformed(Ambiguous),
    /// Request and entities as Cedar's tests give them.
    Given(Box<GivenCase>),
}

/// What should come out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Expected {
    /// One word, and policies that must be among those which settle it.
    Word { word: Word, by: Vec<String> },
    /// Cedar's words.
    Cedar {
        allow: bool,
        reason: Vec<String>,
        errors: usize,
    },
}

/// The last word of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    Decided(Verdict),
    /// Refused with 400 before any policy is asked.
    Malformed,
}

/// Request and entities of one test, checked against the schema.
#[derive(Debug, Clone)]
pub(super) struct GivenCase {
    pub(super) call: CallFacts,
    pub(super) context: Context,
}

/// Where in the table, and what is wrong there.
pub(super) type Wrong = (usize, String);

// === impl Word ===

impl Word {
    pub(super) const REMEDY: &str = "is no outcome; write `allow`, `forbid` (a forbid applies), `no_permit` (nothing permits it), \
                          `error` (it cannot be decided) or `malformed` (refused before any policy)";

    pub(super) fn parse(text: &str) -> Option<Self> {
        let decided = [Verdict::Allow, Verdict::Forbid, Verdict::NoPermit, Verdict::Error];
        match text {
            "malformed" => Some(Self::Malformed),
            _ => decided
                .into_iter()
                .find(|verdict| verdict.as_str() == text)
                .map(Self::Decided),
        }
    }
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Decided(verdict) => verdict.as_str(),
            Self::Malformed => "malformed",
        })
    }
}

// === impl Case ===

impl Case {
    /// With `places`, a case that fails says what nearly decided it.
    pub(super) fn run(&self, snapshot: &Snapshot, places: Option<&Places<'_>>) -> CaseResult {
        let mut why = Vec::new();
        let (supposed, given);
        let decision = match &self.question {
            Question::Malformed(ambiguous) => {
                why.push(ambiguous.to_string());
                None
            }
            Question::Ask(ask) => {
                supposed = snapshot.what_if(ask);
                why.extend(supposed.route().map(|route| format!("the route is `{route}`")));
                Some(supposed.decision())
            }
            Question::Given(case) => {
                given = case.decide(snapshot);
                Some(given.decision())
            }
        };
        if let Some(decision) = decision {
            why.extend(decision.reason().map(str::to_owned));
            why.extend(decision.errors().iter().map(|error| format!("not evaluated: {error}")));
        }
        let named = match &self.expected {
            Expected::Word { by, .. } => by,
            Expected::Cedar { reason, .. } => reason,
        };
        for id in named.iter().filter(|id| !snapshot.has_policy(id)) {
            why.push(format!("no policy has the `@id` `{id}`"));
        }
        let passed = self.expected.is(decision);
        if let (false, Question::Ask(ask), Some(places)) = (passed, &self.question, places) {
            why.extend(nearly(explain(snapshot, ask, places)));
        }
        CaseResult {
            line: self.place.0,
            column: self.place.1,
            case: self.text.clone(),
            expected: self.expected.to_string(),
            found: self.expected.said(decision),
            passed,
            why,
            determining: decision
                .map(|decision| decision.determining().to_vec())
                .unwrap_or_default(),
        }
    }
}

/// What nearly decided, as far as a table shows it.
fn nearly(explanation: Explanation) -> Vec<String> {
    let mut lines = explanation.nearly();
    let further = match explanation.what_if.decision().verdict() {
        Verdict::NoPermit => explanation.further_misses,
        _ => 0,
    };
    let more = lines.len().saturating_sub(NEARLY_MAX) + further;
    lines.truncate(NEARLY_MAX);
    if more > 0 {
        lines.push(format!("and {more} more; `hoplite policy explain` shows them"));
    }
    lines
}

// === impl Expected ===

impl Expected {
    /// Whether this came out. No decision is a malformed request.
    fn is(&self, decision: Option<&Decision>) -> bool {
        match self {
            Self::Word { word, by } => match (word, decision) {
                (Word::Malformed, None) => true,
                (Word::Decided(verdict), Some(decision)) => {
                    *verdict == decision.verdict() && by.iter().all(|id| settled(decision).contains(&id.as_str()))
                }
                _ => false,
            },
            Self::Cedar { allow, reason, errors } => decision.is_some_and(|decision| {
                *allow == (decision.verdict() == Verdict::Allow)
                    && reason.iter().all(|id| decision.determining().contains(id))
                    && *errors == decision.errors().len()
            }),
        }
    }

    /// What came out in the words of what was expected.
    fn said(&self, decision: Option<&Decision>) -> String {
        let Some(decision) = decision else {
            return Word::Malformed.to_string();
        };
        match self {
            Self::Word { .. } => words(decision.verdict(), &settled(decision)),
            Self::Cedar { .. } => {
                let allow = decision.verdict() == Verdict::Allow;
                cedars_words(allow, decision.determining(), decision.errors().len())
            }
        }
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&match self {
            Self::Word { word, by } => words(word, by),
            Self::Cedar { allow, reason, errors } => cedars_words(*allow, reason, *errors),
        })
    }
}

/// The policies that settled a decision: of an error those that could not be evaluated.
fn settled(decision: &Decision) -> Vec<&str> {
    if decision.verdict() == Verdict::Error {
        // An id holds no space, so the first colon and space end it.
        let errors = decision.errors().iter();
        errors.filter_map(|error| error.split(": ").next()).collect()
    } else {
        decision.determining().iter().map(String::as_str).collect()
    }
}

fn words<S: AsRef<str>>(word: impl fmt::Display, by: &[S]) -> String {
    let by: Vec<&str> = by.iter().map(AsRef::as_ref).collect();
    if by.is_empty() {
        word.to_string()
    } else {
        format!("{word} by {}", by.join(", "))
    }
}

fn cedars_words(allow: bool, reason: &[String], errors: usize) -> String {
    let word = words(if allow { "allow" } else { "deny" }, reason);
    format!("{word}, errors: {errors}")
}

// === impl GivenCase ===

impl GivenCase {
    fn decide(&self, snapshot: &Snapshot) -> WhatIfGiven {
        snapshot.what_if_given(&self.call, &self.context)
    }
}
