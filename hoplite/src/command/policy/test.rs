//! `hoplite policy test`: runs the test tables that lie beside the policies.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use hoplite_author::{CaseResult, Places, TableReport, TestReport};
use hoplite_host::files;
use hoplite_policy::{Snapshot, Source};
use serde_json::{Value, json};

use crate::output::capped::{All, Capped, folder};
use crate::output::report::{self, Checked, ReportOutput, Wrong};
use crate::output::{count, cut, print, print_json};

/// The deepest folder that tables are looked for in: a directory of policies has folders, and these have none.
const DEPTH_MAX: usize = 1;
/// More tables than this are a mistake in the directory's name.
const TABLES_MAX: usize = 4_096;

#[derive(Debug, Args)]
pub(crate) struct TestArgs {
    /// The directory: *.cedar, routes.toml, headers.toml, and beneath it *.test and *.test.json
    directory: PathBuf,
    /// The form of the answer
    #[arg(long, value_enum, default_value_t)]
    output: ReportOutput,
    #[command(flatten)]
    all: All,
}

pub(crate) fn run(args: &TestArgs) -> anyhow::Result<ExitCode> {
    let directory = &args.directory;
    let shown = directory.display();
    let sources = super::sources(directory)?;
    let snapshot = match Snapshot::compile(&sources) {
        Ok(snapshot) => snapshot,
        Err(faults) => {
            // A report that names no file tells a CI system nothing.
            let checked = || super::check::not_loaded(&sources, &faults);
            match args.output {
                ReportOutput::Junit => print(&report::junit("policy test", &checked()))?,
                ReportOutput::Sarif => print_json(&report::sarif(&checked()))?,
                ReportOutput::Table | ReportOutput::Json => {}
            }
            let first = faults.first().map(ToString::to_string).unwrap_or_default();
            anyhow::bail!(
                "the policies do not compile, so there is nothing to test: {first}; see `hoplite policy check {shown}`"
            );
        }
    };
    let tables = tables(directory)?;
    anyhow::ensure!(
        !tables.is_empty(),
        "there are no tests beneath `{shown}`; write a table into a file that ends in `.test`: one line per request, like \
         `spiffe://prod.acme/ns/web GET ledger /accounts/7 allow`"
    );
    let report = TestReport::new(&tables, &snapshot, &Places::of(&sources));
    anyhow::ensure!(
        !report.is_empty(),
        "there is no case in the {} beneath `{shown}`; write one line per request",
        counted(tables.len(), "table")
    );
    match args.output {
        ReportOutput::Json => print_json(&as_json(&report))?,
        ReportOutput::Table => print(&text(&report, args.all))?,
        ReportOutput::Junit => print(&report::junit("policy test", &checked(&report)))?,
        ReportOutput::Sarif => print_json(&report::sarif(&checked(&report)))?,
    }
    Ok(if report.passed() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The test tables beneath a directory, by name.
pub(crate) fn tables(directory: &Path) -> anyhow::Result<Vec<Source>> {
    let mut paths = Vec::new();
    collect(directory, 0, &mut paths)?;
    paths.sort();
    paths
        .iter()
        .map(|path| {
            let name = path.strip_prefix(directory).unwrap_or(path).display().to_string();
            Ok(Source {
                name,
                text: files::read_text(path)?,
            })
        })
        .collect()
}

/// Links to directories are not followed: they may lead in a circle.
fn collect(directory: &Path, depth: usize, paths: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot read `{}`", directory.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot read `{}`", directory.display()))?;
        let (name, path) = (entry.file_name(), entry.path());
        let name = name.to_string_lossy();
        if name.starts_with('.') {
            continue;
        }
        if entry.file_type()?.is_dir() {
            if depth < DEPTH_MAX {
                collect(&path, depth + 1, paths)?;
            }
        } else if name.ends_with(".test") || name.ends_with(".test.json") {
            anyhow::ensure!(
                paths.len() < TABLES_MAX,
                "there are more than {TABLES_MAX} tables beneath the directory; is it the right one?"
            );
            paths.push(path);
        }
    }
    Ok(())
}

/// The report for people.
pub(crate) fn text(report: &TestReport, all: All) -> String {
    let width = report.tables.iter().map(|table| table.name.chars().count()).max();
    let mut text = String::new();
    // Those that are well hide none that are not.
    for passed in [true, false] {
        let mut findings = all.capped();
        for table in report.tables.iter().filter(|table| table.passed() == passed) {
            describe(table, &mut findings, width.unwrap_or(0));
        }
        text.push_str(&findings.end());
    }
    let failed = report.tables.iter().filter(|table| !table.passed()).count();
    let (cases, files) = (report.cases(), report.tables.len());
    let _ = match failed {
        0 => writeln!(
            text,
            "\n{} in {} came out as expected",
            counted(cases, "case"),
            counted(files, "table")
        ),
        _ => writeln!(text, "\n{failed} of {} failed", counted(files, "table")),
    };
    if !report.untested.is_empty() {
        let _ = writeln!(text, "No case is decided by: {}", report.untested.join(", "));
    }
    text
}

/// The report for scripts.
pub(crate) fn as_json(report: &TestReport) -> Value {
    let tables: Vec<Value> = report.tables.iter().map(table_as_json).collect();
    json!({"ok": report.passed(), "cases": report.cases(), "tables": tables, "untested": report.untested})
}

fn describe(table: &TableReport, findings: &mut Capped, width: usize) {
    let name = &table.name;
    let mut text = String::new();
    let _ = match (&table.outcome, table.failed().count()) {
        (Err(_), _) => writeln!(text, "FAILED  {name:<width$}  it cannot be read"),
        (Ok(results), 0) => writeln!(text, "ok      {name:<width$}  {}", counted(results.len(), "case")),
        (Ok(results), failed) => writeln!(
            text,
            "FAILED  {name:<width$}  {failed} of {}",
            counted(results.len(), "case")
        ),
    };
    // The heading goes with what stands below it first.
    let mut told = |text: &mut String| {
        findings.add(folder(name), text);
        text.clear();
    };
    for fault in table.outcome.as_ref().err().into_iter().flatten() {
        text.push_str(&fault.render());
        told(&mut text);
    }
    for result in table.failed() {
        let CaseResult {
            line,
            column,
            case,
            expected,
            found,
            why,
            ..
        } = result;
        let _ = writeln!(text, "  {name}:{line}:{column}: {case}");
        let _ = writeln!(text, "    expected  {expected}\n    came out  {found}");
        for reason in why {
            let _ = writeln!(text, "    {}", cut(reason));
        }
        told(&mut text);
    }
    if !text.is_empty() {
        told(&mut text);
    }
}

fn table_as_json(table: &TableReport) -> Value {
    let faults = table.outcome.as_ref().err().into_iter().flatten();
    let faults: Vec<Value> = faults
        .map(|f| json!({"line": f.line, "column": f.column, "reason": f.message()}))
        .collect();
    let failed: Vec<Value> = table
        .failed()
        .map(|r| {
            json!({
                "line": r.line, "column": r.column, "case": r.case, "expected": r.expected, "found": r.found,
                "why": r.why, "determining": r.determining,
            })
        })
        .collect();
    json!({
        "file": table.name, "ok": table.passed(), "cases": table.results().len(), "failed": failed, "faults": faults,
    })
}

/// Every case, and what came of it; a table that cannot be read is one case.
fn checked(report: &TestReport) -> Vec<Checked> {
    let mut checked = Vec::new();
    for table in &report.tables {
        let one = |name: String, wrong| Checked {
            file: table.name.clone(),
            name,
            wrong,
        };
        for fault in table.outcome.as_ref().err().into_iter().flatten() {
            let wrong = Wrong {
                level: "error",
                rule: "policy/table",
                message: fault.message(),
                line: fault.line,
                column: fault.column,
            };
            checked.push(one("can be read".to_owned(), Some(wrong)));
        }
        for result in table.results() {
            let wrong = (!result.passed).then(|| Wrong {
                level: "error",
                rule: "policy/case",
                message: format!(
                    "expected {}, came out {}; {}",
                    result.expected,
                    result.found,
                    result.why.join("; ")
                ),
                line: result.line,
                column: result.column,
            });
            checked.push(one(format!("{}: {}", result.line, result.case), wrong));
        }
    }
    checked
}

fn counted(number: usize, what: &str) -> String {
    count(number as u64, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(name: &str, text: &str) -> Source {
        Source {
            name: name.to_owned(),
            text: text.to_owned(),
        }
    }

    #[test]
    fn a_report_names_what_failed_and_what_nothing_tests() {
        let policies = "@id(\"a\") permit (principal, action in Hoplite::Action::\"read\", resource);\n\
                        @id(\"b\") forbid (principal, action == Hoplite::Action::\"PUT\", resource);";
        let policies = [source("p.cedar", policies)];
        let snapshot = Snapshot::compile(&policies).unwrap();
        let tables = [
            source("good.test", "spiffe://x/y GET s / allow by a\n"),
            source(
                "pay/bad.test",
                "spiffe://x/y GET s / allow\nspiffe://x/y POST s / allow by c\n",
            ),
            source("unread.test", "x\n"),
        ];
        let report = TestReport::new(&tables, &snapshot, &Places::of(&policies));
        assert!(!report.passed());
        let text = text(&report, All::default());
        for part in [
            "ok      good.test     1 case\n",
            "FAILED  pay/bad.test  1 of 2 cases\n  pay/bad.test:2:1: spiffe://x/y POST s /\n    expected  allow by c\n    came out  no_permit\n",
            "    the route is `s:unmatched`\n    no policy has the `@id` `c`\n    permit `a` is about another action (p.cedar:1:1): ",
            "FAILED  unread.test   it cannot be read\nunread.test:1:1: ",
            "\n2 of 3 tables failed\nNo case is decided by: b\n",
        ] {
            assert!(text.contains(part), "{part}is missing from\n{text}");
        }
        let json = as_json(&report);
        assert_eq!(json["ok"], false);
        assert_eq!(json["cases"], 3);
        assert_eq!(json["untested"], json!(["b"]));
        assert_eq!(json["tables"][1]["failed"][0]["found"], "no_permit");
        assert_eq!(json["tables"][2]["faults"][0]["line"], 1);
        let report = TestReport::new(&tables[..1], &snapshot, &Places::default());
        assert!(
            report.passed() && super::text(&report, All::default()).contains("1 case in 1 table came out as expected")
        );
    }
}
