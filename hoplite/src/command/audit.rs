//! `hoplite audit`: query, follow and verify decision logs.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use hoplite_audit::{DecisionId, Outcome, Query, Record, Tail, find_logs, read_log, verify_log};
use hoplite_host::clock;
use hoplite_identity::ServiceName;
use serde_json::json;

use crate::command::MeshDir;
use crate::output::{Output, Reader, Table, print, print_json, print_while_read};

/// How often `tail` looks for new records.
const TAIL_INTERVAL: Duration = Duration::from_millis(100);

#[derive(Debug, Subcommand)]
pub(crate) enum AuditCommand {
    /// Find decisions
    #[command(
        after_help = "Examples:\n  hoplite audit query --since 10m --outcome forbid --outcome no_permit\n  \
        hoplite audit query --id ledger-9f3c2a7be1d04455-42 --output json\n  hoplite audit query --principal spiffe://demo.hoplite/shop/ --service ledger"
    )]
    Query(QueryArgs),
    /// Follow decisions as they are made
    #[command(after_help = "Example:\n  hoplite audit tail --outcome forbid")]
    Tail(TailArgs),
    /// Check that no record was changed, removed or reordered; exit 1 and name it otherwise
    #[command(after_help = "Example:\n  hoplite audit verify --log /var/lib/hoplite/audit")]
    Verify(VerifyArgs),
}

/// Where the records lie.
#[derive(Debug, Args)]
pub(crate) struct LogArgs {
    /// A log directory, or a tree of them [default: those of the mesh in --dir]
    #[arg(long = "log", value_name = "DIR")]
    log: Option<PathBuf>,
    #[command(flatten)]
    dir: MeshDir,
    /// The form of the answer
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct FilterArgs {
    /// Who called: a SPIFFE ID, or a prefix that ends in `/`
    #[arg(long)]
    principal: Option<String>,
    /// The service that was called
    #[arg(long)]
    service: Option<ServiceName>,
    /// The route, for example `ledger:GET /accounts/{id}`
    #[arg(long)]
    route: Option<String>,
    /// The outcome: allow, forbid, no_permit, error, unauthenticated or malformed; may be repeated
    #[arg(long)]
    outcome: Vec<Outcome>,
    /// A policy that decided
    #[arg(long)]
    policy: Option<String>,
    /// Only what a shadow policy would have answered otherwise
    #[arg(long)]
    shadow_differs: bool,
}

#[derive(Debug, Args)]
pub(crate) struct QueryArgs {
    /// From when on: a length of time ago (`10m`) or a moment (`2026-11-23T12:00:00Z`)
    #[arg(long, value_parser = moment)]
    since: Option<SystemTime>,
    /// Until when, in the same forms
    #[arg(long, value_parser = moment)]
    until: Option<SystemTime>,
    /// The decision's id
    #[arg(long)]
    id: Option<DecisionId>,
    /// At most so many, the latest ones
    #[arg(long, default_value_t = 1000)]
    limit: usize,
    #[command(flatten)]
    filter: FilterArgs,
    #[command(flatten)]
    log: LogArgs,
}

#[derive(Debug, Args)]
pub(crate) struct TailArgs {
    #[command(flatten)]
    filter: FilterArgs,
    #[command(flatten)]
    log: LogArgs,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    log: LogArgs,
}

pub(crate) fn run(command: AuditCommand) -> anyhow::Result<ExitCode> {
    match command {
        AuditCommand::Query(args) => query(args),
        AuditCommand::Tail(args) => tail(args),
        AuditCommand::Verify(args) => verify(&args),
    }
}

fn query(args: QueryArgs) -> anyhow::Result<ExitCode> {
    let logs = args.log.directories()?;
    let query = Query {
        since: args.since,
        until: args.until,
        id: args.id,
        ..args.filter.into_query()
    };
    let mut records = Vec::new();
    let mut unknown = 0;
    for log in logs {
        let mut decisions = read_log(&log, &query)?;
        for record in decisions.by_ref() {
            records.push(record?);
        }
        unknown += decisions.unknown();
    }
    if unknown > 0 {
        eprintln!("{}", passed_over(unknown));
    }
    // Stable: of one moment they stay in their log's order, which no id tells.
    records.sort_by_key(|record| record.at);
    let surplus = records.len().saturating_sub(args.limit);
    if surplus > 0 {
        eprintln!("{surplus} earlier records are not shown; --limit shows more");
        records.drain(..surplus);
    }
    if args.log.output == Output::Json {
        print_json(&records)?;
    } else {
        let mut table = Table::new(HEADINGS);
        for record in &records {
            table.row(row(record));
        }
        table.print()?;
    }
    Ok(ExitCode::SUCCESS)
}

fn tail(args: TailArgs) -> anyhow::Result<ExitCode> {
    let query = args.filter.into_query();
    let root = args.log.root()?;
    let mut tails: Vec<(PathBuf, Tail)> = Vec::new();
    let mut from_end = true;
    let mut told = 0;
    loop {
        // A log that appears while we follow is read from its beginning.
        for log in find_logs(&root)? {
            if !tails.iter().any(|(known, _)| *known == log) {
                let tail = Tail::open(&log, from_end)?;
                tails.push((log, tail));
            }
        }
        from_end = false;
        let mut records = Vec::new();
        for (_, tail) in &mut tails {
            records.extend(tail.poll()?.into_iter().filter(|record| query.matches(record)));
        }
        let unknown = tails.iter().map(|(_, tail)| tail.unknown()).sum();
        if unknown > told {
            eprintln!("{}", passed_over(unknown));
            told = unknown;
        }
        records.sort_by_key(|record| record.at);
        for record in &records {
            let line = if args.log.output == Output::Json {
                serde_json::to_string(record)?
            } else {
                row(record)
                    .into_iter()
                    .filter(|cell| !cell.is_empty())
                    .collect::<Vec<_>>()
                    .join("  ")
            };
            if print_while_read(&format!("{line}\n"))? == Reader::Gone {
                return Ok(ExitCode::SUCCESS);
            }
        }
        std::thread::sleep(TAIL_INTERVAL);
    }
}

/// Says what is not shown, so that nobody takes it for all there is.
fn passed_over(unknown: u64) -> String {
    format!("{unknown} records are passed over, because this version does not know them; a newer `hoplite` does")
}

fn verify(args: &VerifyArgs) -> anyhow::Result<ExitCode> {
    let mut good = true;
    let mut reports = Vec::new();
    for log in args.log.directories()? {
        let report = verify_log(&log).with_context(|| format!("cannot read the log `{}`", log.display()))?;
        good &= report.findings.is_empty();
        reports.push((log, report));
    }
    if args.log.output == Output::Json {
        let rows: Vec<_> = reports
            .iter()
            .map(|(log, report)| {
                let findings: Vec<_> = report
                    .findings
                    .iter()
                    .map(|f| json!({"segment": f.segment, "id": f.id, "problem": f.problem}))
                    .collect();
                let kinds: BTreeMap<&str, u64> = report.kinds.iter().map(|(kind, n)| (kind.as_str(), *n)).collect();
                json!({
                    "log": log, "records": report.records, "kinds": kinds, "unknown": report.unknown, "segments": report.segments, "boots": report.boots,
                    "torn_bytes": report.torn_bytes, "findings": findings,
                })
            })
            .collect();
        print_json(&json!({"ok": good, "logs": rows}))?;
    } else {
        for (log, report) in &reports {
            let state = if report.findings.is_empty() {
                "intact"
            } else {
                "NOT INTACT"
            };
            print(&format!(
                "{}: {state}: {} records in {} segments, {} boots\n",
                log.display(),
                report.records,
                report.segments,
                report.boots
            ))?;
            if report.unknown > 0 {
                print(&format!(
                    "  {} of the records are of a kind or version that this `hoplite` does not know: their chain was checked, \
                     what they say was not\n",
                    report.unknown
                ))?;
            }
            for finding in &report.findings {
                let id = finding.id.as_deref().unwrap_or("-");
                print(&format!("  {}  {id}  {}\n", finding.segment, finding.problem))?;
            }
        }
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

const HEADINGS: &[&str] = &["TIME", "DECISION", "OUTCOME", "PRINCIPAL", "ACTION", "RESOURCE", "BY"];

fn row(record: &Record) -> Vec<String> {
    let why = if record.determining.is_empty() {
        record
            .errors
            .first()
            .cloned()
            .or_else(|| record.reason.clone())
            .unwrap_or_default()
    } else {
        record.determining.join(" ")
    };
    let why = match record.suppressed {
        0 => why,
        others => format!("{why}  (stands for {others} more)"),
    };
    vec![
        humantime::format_rfc3339_millis(record.at).to_string(),
        record.id.to_string(),
        record.outcome.to_string(),
        record
            .principal
            .clone()
            .or_else(|| record.source.clone())
            .unwrap_or_default(),
        record.action.clone(),
        resource(record),
        why,
    ]
}

/// The route with the headers that policy looked at, or the service.
fn resource(record: &Record) -> String {
    let mut text = record.route.as_ref().unwrap_or(&record.service).clone();
    for (name, value) in &record.headers {
        match value {
            Some(value) => text.push_str(&format!("  {name}: {value}")),
            None => text.push_str(&format!("  no {name}")),
        }
    }
    text
}

/// Why a text is no moment.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoMoment {
    #[error("`{0}` is before time began")]
    TooEarly(String),
    #[error("`{0}` is neither a length of time (`10m`) nor a moment (`2026-11-23T12:00:00Z`)")]
    Unknown(String),
}

/// `10m` ago, or an RFC 3339 moment.
pub(crate) fn moment(text: &str) -> Result<SystemTime, NoMoment> {
    if let Ok(ago) = humantime::parse_duration(text) {
        return clock::now()
            .checked_sub(ago)
            .ok_or_else(|| NoMoment::TooEarly(text.to_owned()));
    }
    humantime::parse_rfc3339_weak(text).map_err(|_| NoMoment::Unknown(text.to_owned()))
}

// === impl LogArgs ===

impl LogArgs {
    fn root(&self) -> anyhow::Result<PathBuf> {
        match &self.log {
            Some(root) => Ok(root.clone()),
            None => Ok(self.dir.path()?.join("audit")),
        }
    }

    fn directories(&self) -> anyhow::Result<Vec<PathBuf>> {
        let root = self.root()?;
        let logs = find_logs(&root)?;
        if logs.is_empty() {
            bail!(
                "there is no decision log in `{}`; say where with --log or --dir",
                root.display()
            );
        }
        Ok(logs)
    }
}

// === impl FilterArgs ===

impl FilterArgs {
    fn into_query(self) -> Query {
        Query {
            principal: self.principal,
            service: self.service.map(|service| service.to_string()),
            route: self.route,
            outcome: self.outcome,
            policy: self.policy,
            shadow_differs: self.shadow_differs,
            ..Query::default()
        }
    }
}
