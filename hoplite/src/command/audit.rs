//! `hoplite audit`: query, follow and verify decision logs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use hoplite_audit::{DecisionId, Outcome, Query, Tail, find_logs, read_log, verify_log};
use hoplite_identity::ServiceName;
use serde_json::{Value, json};

use crate::command::MeshDir;
use crate::output::waiting::Waiting;
use crate::output::{
    Column, Form, Listing, Output, Reader, coloured, count, moment, plain, print, print_json, print_while_read, verdict,
};

/// Words of a kind that are remembered to tell which is near another; with more, none is looked for.
const WORDS_MAX: usize = 100_000;

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
    /// From when on: `10m` (ago), `yesterday 18:00`, `2026-11-28`, `2026-11-28T18:00:00+01:00`; a day is its beginning
    #[arg(long, value_name = "MOMENT", value_parser = moment::parse)]
    since: Option<SystemTime>,
    /// Until when, in the same forms
    #[arg(long, value_name = "MOMENT", value_parser = moment::parse)]
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
    #[command(flatten)]
    form: Form,
}

#[derive(Debug, Args)]
pub(crate) struct TailArgs {
    #[command(flatten)]
    filter: FilterArgs,
    #[command(flatten)]
    log: LogArgs,
    #[command(flatten)]
    form: Form,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    log: LogArgs,
    /// The form of the answer
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

pub(crate) fn run(command: AuditCommand) -> anyhow::Result<ExitCode> {
    match command {
        AuditCommand::Query(args) => query(args),
        AuditCommand::Tail(args) => tail(args),
        AuditCommand::Verify(args) => verify(&args),
    }
}

fn query(args: QueryArgs) -> anyhow::Result<ExitCode> {
    if let (Some(since), Some(until)) = (args.since, args.until)
        && since > until
    {
        bail!("--since is after --until, so no record can be between; exchange them");
    }
    let logs = args.log.directories()?;
    let waiting = Waiting::new("reading decision logs");
    let query = Query {
        since: args.since,
        until: args.until,
        id: args.id,
        ..args.filter.into_query()
    };
    let mut records = Vec::new();
    let mut unknown = 0;
    for log in &logs {
        let mut decisions = read_log(log, &query)?;
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
    if records.is_empty() {
        unknown_words(&logs, &query)?;
        eprintln!(
            "no record matches in the {} below `{}`; a call is recorded by the proxy that decided, on its own node",
            count(logs.len() as u64, "log"),
            args.log.root()?.display()
        );
    }
    drop(waiting);
    let mut listing = Listing::new(&COLUMNS);
    for record in records {
        listing.row(record);
    }
    print(&listing.render(args.form, coloured())?)?;
    Ok(ExitCode::SUCCESS)
}

/// Whether nothing was found because a word of the question stands in no record; then that is said, with what is near it.
fn unknown_words(logs: &[PathBuf], query: &Query) -> anyhow::Result<()> {
    let mut principals = BTreeSet::new();
    let mut services = BTreeSet::new();
    let mut routes = BTreeSet::new();
    let mut policies = BTreeSet::new();
    for log in logs {
        // What is damaged was said above, or is not what was asked for.
        for record in read_log(log, &Query::default())?.flatten() {
            principals.extend(record.principal);
            services.insert(record.service);
            routes.extend(record.route);
            policies.extend(record.determining);
            let known = [&principals, &services, &routes, &policies];
            if known.iter().any(|words| words.len() > WORDS_MAX) {
                return Ok(());
            }
        }
    }
    let asked = [
        ("principal", &query.principal, &principals),
        ("service", &query.service, &services),
        ("route", &query.route, &routes),
        ("policy", &query.policy, &policies),
    ];
    for (what, word, known) in asked {
        let Some(word) = word else { continue };
        let there = |known: &String| known == word || (word.ends_with('/') && known.starts_with(word.as_str()));
        if known.iter().any(there) {
            continue;
        }
        let near = known
            .iter()
            .map(|known| (strsim::damerau_levenshtein(known, word), known))
            .min();
        let near = near.filter(|(distance, known)| distance * 3 <= known.chars().count());
        let remedy = match near {
            Some((_, near)) => format!("did you mean `{near}`?"),
            None => "`hoplite audit query` without it shows those that are named".to_owned(),
        };
        bail!("no record names the {what} `{word}`; {remedy}");
    }
    Ok(())
}

fn tail(args: TailArgs) -> anyhow::Result<ExitCode> {
    let query = args.filter.into_query();
    let root = args.log.root()?;
    if let Err(unknown) = unknown_words(&find_logs(&root)?, &query) {
        eprintln!("note: {unknown}");
    }
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
            let line = args.form.line(&COLUMNS, record)?;
            if print_while_read(&format!("{line}\n"))? == Reader::Gone {
                return Ok(ExitCode::SUCCESS);
            }
        }
        std::thread::sleep(TAIL_INTERVAL);
    }
}

/// Says what is not shown, so that nobody takes it for all there is.
fn passed_over(unknown: u64) -> String {
    format!(
        "passed over, because this version does not know them: {}; a newer `hoplite` does",
        count(unknown, "record")
    )
}

fn verify(args: &VerifyArgs) -> anyhow::Result<ExitCode> {
    let mut good = true;
    let mut reports = Vec::new();
    let waiting = Waiting::new("verifying decision logs");
    for log in args.log.directories()? {
        let report = verify_log(&log).with_context(|| format!("cannot read the log `{}`", log.display()))?;
        good &= report.findings.is_empty();
        reports.push((log, report));
    }
    drop(waiting);
    if args.output == Output::Json {
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
                "{}: {state}: {} in {}, {}\n",
                log.display(),
                count(report.records, "record"),
                count(report.segments, "segment"),
                count(report.boots, "boot")
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

/// What people see of a decision.
const COLUMNS: [Column; 7] = [
    Column::moment("TIME", "at"),
    Column::new("DECISION", "id"),
    Column::new("OUTCOME", "outcome").coloured(verdict),
    Column::made("PRINCIPAL", "principal", |record| {
        first(record, &["principal", "source"])
    }),
    Column::new("ACTION", "action"),
    Column::made("RESOURCE", "route", resource),
    Column::made("BY", "determining", why),
];

/// The first of these keys that says something.
fn first(record: &Value, keys: &[&str]) -> String {
    let said = keys
        .iter()
        .map(|key| plain(&record[*key]))
        .find(|text| !text.is_empty());
    said.unwrap_or_default()
}

fn why(record: &Value) -> String {
    let why = match plain(&record["determining"]) {
        by if !by.is_empty() => by,
        _ => match record["errors"].get(0) {
            Some(error) => plain(error),
            None => plain(&record["reason"]),
        },
    };
    match record["suppressed"].as_u64() {
        Some(others @ 1..) => format!("{why}  (stands for {others} more)"),
        _ => why,
    }
}

/// The route with the headers that policy looked at, or the service.
fn resource(record: &Value) -> String {
    let mut text = first(record, &["route", "service"]);
    for (name, value) in record["headers"].as_object().into_iter().flatten() {
        match value {
            Value::Null => text.push_str(&format!("  no {name}")),
            value => text.push_str(&format!("  {name}: {}", plain(value))),
        }
    }
    text
}

// === impl LogArgs ===

impl LogArgs {
    fn root(&self) -> anyhow::Result<PathBuf> {
        match &self.log {
            Some(root) => Ok(root.clone()),
            None => self.dir.logs(),
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
