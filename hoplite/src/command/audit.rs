//! `hoplite audit`: query, follow and verify logs: of decisions, and of what was done at the CA.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use hoplite_audit::{AnyRecord, DecisionId, Kind, Outcome, Query, ReadError, Stage, Tail, find, find_logs, verify_log};
use hoplite_identity::ServiceName;
use serde_json::{Value, json};

use crate::command::MeshDir;
use crate::output::waiting::Waiting;
use crate::output::{
    Column, Form, Listing, Output, Reader, coloured, count, failed, moment, nearest, plain, print, print_json,
    print_while_read, verdict,
};

/// Words of a kind that are remembered to tell which is near another; with more, none is looked for.
const WORDS_MAX: usize = 100_000;

/// How often `tail` looks for new records.
const TAIL_INTERVAL: Duration = Duration::from_millis(100);

#[derive(Debug, Subcommand)]
pub(crate) enum AuditCommand {
    /// Find decisions, and what was done at the CA
    #[command(
        after_help = "Examples:\n  hoplite audit query --since 10m --outcome forbid --outcome no_permit\n  \
        hoplite audit query --id ledger-9f3c2a7be1d04455-42 --output json\n  hoplite audit query --principal spiffe://demo.hoplite/shop/ --service ledger\n  \
        hoplite audit query --kind control --since yesterday\n  hoplite audit query --kind issuance --limit 10"
    )]
    Query(QueryArgs),
    /// Follow decisions, and what is done at the CA, as they come
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
    /// The kind: decision, control (what was done at the CA), issuance, loss or heartbeat; may be repeated [default: decision and
    /// loss; what was done at the CA is counted]
    #[arg(long)]
    kind: Vec<Kind>,
    /// Who called: a SPIFFE ID, or a prefix that ends in `/`; of what was done at the CA, who did it
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
    let waiting = Waiting::new("reading logs");
    let no_kind = args.filter.kind.is_empty() && args.id.is_none();
    let query = Query {
        since: args.since,
        until: args.until,
        id: args.id,
        ..args.filter.into_query()
    };
    let mut records = Vec::new();
    let (mut unknown, mut acts) = (0, 0);
    let mut damaged = Vec::new();
    for log in &logs {
        let mut found = find(log, &query)?;
        for record in found.by_ref() {
            match record {
                Ok(AnyRecord::Control(act)) if no_kind => {
                    acts += u64::from(act.stage != Stage::Begun && !act.detail.contains_key("entry"))
                }
                Ok(record) => records.push(record),
                // What stands before and behind it is shown: one byte must not hide a log.
                Err(damage @ ReadError::Damaged { .. }) => damaged.push(damage),
                Err(error) => return Err(error.into()),
            }
        }
        unknown += found.unknown();
    }
    if query.id.is_none() {
        hide_begun(&mut records);
    }
    if unknown > 0 {
        hoplite_host::tell!("{}", passed_over(unknown));
    }
    // Stable: of one moment they stay in their log's order, which no id tells.
    records.sort_by_key(AnyRecord::at);
    let surplus = records.len().saturating_sub(args.limit);
    if surplus > 0 {
        hoplite_host::tell!("{surplus} earlier records are not shown; --limit shows more");
        records.drain(..surplus);
    }
    if records.is_empty() {
        unknown_words(&logs, &query)?;
        hoplite_host::tell!(
            "no record matches in the {} below {}; a call is recorded by the proxy that decided, on its own node",
            count(logs.len() as u64, "log"),
            shown(&args.log.roots()?)
        );
    }
    drop(waiting);
    if acts > 0 {
        hoplite_host::tell!(
            "{} at the CA; `--kind control` shows what was done there",
            count(acts, "act")
        );
    }
    let mut listing = Listing::new(&COLUMNS);
    for record in records {
        listing.row(record);
    }
    print(&listing.render(args.form, coloured())?)?;
    let Some(first) = damaged.first() else {
        return Ok(ExitCode::SUCCESS);
    };
    let more = match damaged.len() - 1 {
        0 => String::new(),
        more => format!(", and {more} more are"),
    };
    failed(&format!("{first}{more}; what can be read is shown"), 1);
    Ok(ExitCode::FAILURE)
}

/// Leaves out how an act began where its end is there too: only what nobody finished is worth seeing by itself.
fn hide_begun(records: &mut Vec<AnyRecord>) {
    let ends = records.iter().filter_map(|record| match record {
        AnyRecord::Control(control) => Some(DecisionId {
            seq: control.began?,
            ..control.id.clone()
        }),
        _ => None,
    });
    let ended: BTreeSet<String> = ends.map(|id| id.to_string()).collect();
    let has_begun = |record: &AnyRecord| matches!(record, AnyRecord::Control(act) if act.stage == Stage::Begun);
    records.retain(|record| !has_begun(record) || !ended.contains(&record.id().to_string()));
}

/// Whether nothing was found because a word of the question stands in no record; then that is said, with what is near it.
fn unknown_words(logs: &[PathBuf], query: &Query) -> anyhow::Result<()> {
    let mut principals = BTreeSet::new();
    let mut services = BTreeSet::new();
    let mut routes = BTreeSet::new();
    let mut policies = BTreeSet::new();
    for log in logs {
        // What is damaged was said above, or is not what was asked for.
        for record in find(log, &Query::default())?.flatten() {
            match record {
                AnyRecord::Decision(record) => {
                    principals.extend(record.principal);
                    services.insert(record.service);
                    routes.extend(record.route);
                    policies.extend(record.determining);
                }
                AnyRecord::Control(control) => {
                    principals.insert(control.actor);
                    policies.extend(control.by);
                }
                AnyRecord::Issuance(issuance) => drop(principals.insert(issuance.requester)),
                _ => {}
            }
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
        let remedy = match nearest(word, known) {
            Some(near) => format!("did you mean `{near}`?"),
            None => "`hoplite audit query` without it shows those that are named".to_owned(),
        };
        bail!("no record names the {what} `{word}`; {remedy}");
    }
    Ok(())
}

fn tail(args: TailArgs) -> anyhow::Result<ExitCode> {
    let no_kind = args.filter.kind.is_empty();
    let is_shown = |record: &AnyRecord| match record {
        AnyRecord::Control(act) => !no_kind && act.stage != Stage::Begun,
        _ => true,
    };
    let query = args.filter.into_query();
    let roots = args.log.roots()?;
    if let Err(unknown) = unknown_words(&all_logs(&roots)?, &query) {
        hoplite_host::tell!("note: {unknown}");
    }
    let mut tails: Vec<(PathBuf, Tail)> = Vec::new();
    let mut from_end = true;
    let mut told = 0;
    loop {
        // A log that appears while we follow is read from its beginning.
        for log in all_logs(&roots)? {
            if !tails.iter().any(|(known, _)| *known == log) {
                let tail = Tail::open(&log, from_end)?;
                tails.push((log, tail));
            }
        }
        from_end = false;
        let mut records = Vec::new();
        for (_, tail) in &mut tails {
            let new = tail.poll()?.into_iter();
            records.extend(new.filter(|record| query.matches_any(record) && is_shown(record)));
        }
        let unknown = tails.iter().map(|(_, tail)| tail.unknown()).sum();
        if unknown > told {
            hoplite_host::tell!("{}", passed_over(unknown));
            told = unknown;
        }
        records.sort_by_key(AnyRecord::at);
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
    let waiting = Waiting::new("verifying logs");
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

/// What people see of a record.
const COLUMNS: [Column; 7] = [
    Column::moment("TIME", "at"),
    Column::new("RECORD", "id"),
    Column::made("OUTCOME", "outcome", outcome).coloured(verdict),
    Column::made("PRINCIPAL", "principal", |record| {
        first(record, &["principal", "actor", "requester", "source"])
    }),
    Column::made("ACTION", "action", |record| match record["kind"].as_str() {
        Some("issuance") => first(record, &["how"]),
        _ => first(record, &["action"]),
    }),
    Column::made("RESOURCE", "route", resource),
    Column::made("BY", "determining", why),
];

/// What a decision answered, and how far something else came.
fn outcome(record: &Value) -> String {
    match record["kind"].as_str() {
        Some("issuance") => "issued".to_owned(),
        Some("loss") => format!("lost {}", plain(&record["count"])),
        Some("heartbeat") => "alive".to_owned(),
        _ => first(record, &["outcome", "stage"]),
    }
}

/// The first of these keys that says something.
fn first(record: &Value, keys: &[&str]) -> String {
    let said = keys
        .iter()
        .map(|key| plain(&record[*key]))
        .find(|text| !text.is_empty());
    said.unwrap_or_default()
}

fn why(record: &Value) -> String {
    if record["kind"] == "issuance" {
        return match first(record, &["entry"]) {
            entry if entry.is_empty() => entry,
            entry => format!("entry {entry}"),
        };
    }
    let why = match first(record, &["determining", "by"]) {
        by if !by.is_empty() && record["stage"] != "refused" => by,
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
    let mut text = first(record, &["route", "service", "subject"]);
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
    /// Where logs are looked for: those of decisions, and that of a CA which is here.
    fn roots(&self) -> anyhow::Result<Vec<PathBuf>> {
        match &self.log {
            Some(root) => Ok(vec![root.clone()]),
            None => {
                let own = self.dir.ca_log()?;
                let decisions = self.dir.logs()?;
                let own = own.exists().then_some(own);
                let decisions = (own.is_none() || decisions.exists()).then_some(decisions);
                Ok(decisions.into_iter().chain(own).collect())
            }
        }
    }

    fn directories(&self) -> anyhow::Result<Vec<PathBuf>> {
        let roots = self.roots()?;
        let logs = all_logs(&roots)?;
        if logs.is_empty() {
            bail!("there is no log in {}; say where with --log or --dir", shown(&roots));
        }
        Ok(logs)
    }
}

fn all_logs(roots: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut logs = Vec::new();
    for root in roots {
        logs.extend(find_logs(root)?);
    }
    Ok(logs)
}

fn shown(roots: &[PathBuf]) -> String {
    let roots: Vec<String> = roots.iter().map(|root| format!("`{}`", root.display())).collect();
    roots.join(" and ")
}

// === impl FilterArgs ===

impl FilterArgs {
    fn into_query(self) -> Query {
        let kinds = match self.kind {
            kinds if kinds.is_empty() => vec![Kind::Decision, Kind::Control, Kind::Loss],
            kinds => kinds,
        };
        Query {
            kinds,
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
