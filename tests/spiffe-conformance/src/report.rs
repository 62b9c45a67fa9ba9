//! The report: for people, for programs as JSON, for build servers as JUnit.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::clause::{CLAUSES, Level};
use crate::findings::{Outcome, Verdict};

/// The version of the JSON's form: a change that breaks readers makes it the next number.
const SCHEMA: u32 = 1;

/// How many of each there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Clauses that were kept.
    pub passed: usize,
    /// Clauses that were broken and must be kept.
    pub must_failed: usize,
    /// Clauses that were broken and should be kept.
    pub should_failed: usize,
    /// Clauses that could not be judged.
    pub skipped: usize,
    /// Clauses that say nothing about what was shown.
    pub not_applicable: usize,
}

impl Summary {
    /// Counts.
    pub fn of(verdicts: &[Verdict]) -> Self {
        let mut summary = Self::default();
        for verdict in verdicts {
            match (verdict.outcome, verdict.clause.level) {
                (Outcome::Pass, _) => summary.passed += 1,
                (Outcome::Fail, Level::Must) => summary.must_failed += 1,
                (Outcome::Fail, Level::Should) => summary.should_failed += 1,
                (Outcome::Skip, _) => summary.skipped += 1,
                (Outcome::NotApplicable, _) => summary.not_applicable += 1,
            }
        }
        summary
    }

    /// Whether anything was judged at all.
    pub fn is_empty(&self) -> bool {
        self.passed + self.must_failed + self.should_failed == 0
    }
}

/// For people: what failed in full, the rest a line each.
pub fn text(verdicts: &[Verdict], targets: &[String]) -> String {
    let mut text = format!(
        "spiffe-conformance {}: {}\n\n",
        env!("CARGO_PKG_VERSION"),
        targets.join(", ")
    );
    for verdict in verdicts {
        let word = match verdict.outcome {
            Outcome::Fail => "FAIL",
            Outcome::NotApplicable => "n/a",
            other => other.as_str(),
        };
        let clause = verdict.clause;
        let _ = writeln!(
            text,
            "{word:<4}  {:<6} {:<6}  {} ({})",
            clause.name,
            clause.level.as_str(),
            clause.text,
            clause.section
        );
        if verdict.outcome != Outcome::Pass {
            for detail in &verdict.details {
                let _ = writeln!(text, "          {detail}");
            }
        }
    }
    let summary = Summary::of(verdicts);
    let failed = summary.must_failed + summary.should_failed;
    let _ = writeln!(
        text,
        "\n{} passed, {failed} failed ({} MUST, {} SHOULD), {} skipped, {} not applicable",
        summary.passed, summary.must_failed, summary.should_failed, summary.skipped, summary.not_applicable
    );
    text
}

/// For programs.
pub fn json(verdicts: &[Verdict], targets: &[String]) -> Value {
    let summary = Summary::of(verdicts);
    let clauses = verdicts.iter().map(|verdict| {
        json!({
            "id": verdict.clause.name,
            "level": verdict.clause.level.as_str(),
            "needs": verdict.clause.needs.as_str(),
            "section": verdict.clause.section,
            "text": verdict.clause.text,
            "result": verdict.outcome.as_str(),
            "details": verdict.details,
        })
    });
    json!({
        "schema": SCHEMA,
        "suite": "spiffe-conformance",
        "version": env!("CARGO_PKG_VERSION"),
        "targets": targets,
        "summary": {
            "passed": summary.passed,
            "failed": summary.must_failed + summary.should_failed,
            "must_failed": summary.must_failed,
            "should_failed": summary.should_failed,
            "skipped": summary.skipped,
            "not_applicable": summary.not_applicable,
        },
        "clauses": clauses.collect::<Vec<_>>(),
    })
}

/// For build servers. What is not applicable is skipped there: JUnit has no other word.
pub fn junit(verdicts: &[Verdict], targets: &[String]) -> String {
    let summary = Summary::of(verdicts);
    let mut text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuite name=\"spiffe-conformance {}\" tests=\"{}\" failures=\"{}\" skipped=\"{}\">\n",
        escaped(&targets.join(", ")),
        verdicts.len(),
        summary.must_failed + summary.should_failed,
        summary.skipped + summary.not_applicable
    );
    for verdict in verdicts {
        let clause = verdict.clause;
        let _ = write!(
            text,
            "  <testcase classname=\"{}\" name=\"{} {}\"",
            escaped(clause.section),
            clause.name,
            escaped(clause.text)
        );
        let details = escaped(&verdict.details.join("\n"));
        let _ = match verdict.outcome {
            Outcome::Pass => writeln!(text, "/>"),
            Outcome::Fail => writeln!(
                text,
                ">\n    <failure type=\"{}\">{details}</failure>\n  </testcase>",
                clause.level.as_str()
            ),
            Outcome::Skip | Outcome::NotApplicable => {
                writeln!(text, ">\n    <skipped message=\"{details}\"/>\n  </testcase>")
            }
        };
    }
    text.push_str("</testsuite>\n");
    text
}

fn escaped(text: &str) -> String {
    let entity = |c: char| match c {
        '&' => "&amp;".to_owned(),
        '<' => "&lt;".to_owned(),
        '>' => "&gt;".to_owned(),
        '"' => "&quot;".to_owned(),
        c => c.to_string(),
    };
    text.chars().map(entity).collect()
}

/// The clauses that these patterns name, for people.
pub fn list(only: &[String]) -> String {
    let mut text = String::new();
    for clause in CLAUSES
        .iter()
        .filter(|clause| only.is_empty() || only.iter().any(|it| clause.matches(it)))
    {
        let _ = writeln!(
            text,
            "{:<6} {:<6}  {:<10}  {} ({})",
            clause.name,
            clause.level.as_str(),
            clause.needs.as_str(),
            clause.text,
            clause.section
        );
    }
    text
}

/// The same for programs.
pub fn list_json(only: &[String]) -> Value {
    let clauses = CLAUSES
        .iter()
        .filter(|clause| only.is_empty() || only.iter().any(|it| clause.matches(it)));
    let shown = clauses.map(|clause| {
        json!({
            "id": clause.name,
            "level": clause.level.as_str(),
            "needs": clause.needs.as_str(),
            "section": clause.section,
            "text": clause.text,
        })
    });
    json!({ "schema": SCHEMA, "clauses": shown.collect::<Vec<_>>() })
}
