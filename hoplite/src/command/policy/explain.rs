//! `hoplite policy explain`: why a request is decided as it is.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{Context, bail};
use hoplite_audit::{DecisionId, Query, Record, read_log};
use hoplite_author::replay::{ask_of, route_of};
use hoplite_author::{Candidate, Explanation, Finding, NearMiss, Place, Places, Unmet, explain};
use hoplite_host::clock;
use hoplite_identity::{ServiceName, SpiffeId};
use hoplite_policy::files::HEADERS_FILE;
use hoplite_policy::{Ask, Asked, CanonicalRequest, SelectedHeaders, Snapshot};
use serde_json::{Value, json};

use super::{AuditArgs, PoliciesArgs};
use crate::command::reach::CaArgs;
use crate::output::{Output, cut, print, print_json};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A decision of the log, as the answer's header, `hoplite audit query` and the log name it
    #[arg(value_name = "DECISION", conflicts_with_all = ["principal", "deed"], required_unless_present = "principal")]
    decision: Option<DecisionId>,
    /// Or: who would call, a SPIFFE ID
    #[arg(long = "as", value_name = "SPIFFE-ID", requires = "deed")]
    principal: Option<String>,
    /// What they would do: `GET SERVICE PATH` or `connect SERVICE`
    #[arg(long = "do", value_name = "DEED", requires = "principal")]
    deed: Option<String>,
    /// Where from
    #[arg(long, value_name = "IP", default_value = "127.0.0.1", conflicts_with = "decision")]
    from: IpAddr,
    /// When: `2026-11-23T12:00:00Z`, or a length of time ago [default: now]
    #[arg(long, value_name = "TIME", value_parser = crate::output::moment::parse, conflicts_with = "decision")]
    at: Option<SystemTime>,
    /// The host they would name [default: the service]
    #[arg(long, conflicts_with = "decision")]
    host: Option<String>,
    /// A header they would send, of those that headers.toml selects: `x-tenant: acme`; may be repeated
    #[arg(long = "header", value_name = "NAME: VALUE", conflicts_with = "decision")]
    headers: Vec<String>,
    #[command(flatten)]
    policies: PoliciesArgs,
    #[command(flatten)]
    audit: AuditArgs,
    #[command(flatten)]
    ca: CaArgs,
    /// The form of the answer
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let (named, sources) = args.policies.read(&args.ca)?;
    let snapshot = super::compile(&sources)?;
    let (ask, record) = match &args.decision {
        Some(id) => {
            let record = find(id, &args.audit.logs(args.ca.mesh())?)?;
            let Some(ask) = ask_of(&record, snapshot.headers()) else {
                bail!(
                    "policy was not asked about `{id}`: it is a {} that was {}{}",
                    record.phase,
                    record.outcome,
                    record.reason.map(|reason| format!(" ({reason})")).unwrap_or_default()
                );
            };
            (ask, Some(record))
        }
        None => (asked(args, snapshot.headers())?, None),
    };
    if record.is_none() {
        super::who::tell_of_unknown(&snapshot, &ask.service);
    }
    let explanation = explain(&snapshot, &ask, &Places::of(&sources));
    if args.output == Output::Json {
        print_json(&as_json(&explanation, &ask, record.as_ref()))?;
    } else {
        print(&page(&explanation, &ask, record.as_ref(), &snapshot, &named))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn find(id: &DecisionId, logs: &[PathBuf]) -> anyhow::Result<Record> {
    let query = Query {
        id: Some(id.clone()),
        ..Query::default()
    };
    for log in logs {
        // What is damaged is not what is looked for; `audit verify` is there to say so.
        if let Some(record) = read_log(log, &query)?.find_map(Result::ok) {
            return Ok(record);
        }
    }
    bail!("there is no decision `{id}` in these logs; say where with --audit, or look with `hoplite audit query`")
}

fn asked(args: &Args, selected: &SelectedHeaders) -> anyhow::Result<Ask> {
    let (Some(principal), Some(deed)) = (&args.principal, &args.deed) else {
        bail!("say what to explain: a decision id, or --as and --do");
    };
    let (service, mut what) = deed_of(deed, args.host.as_deref())?;
    let fields = args.headers.iter().map(|text| field(text, selected));
    let fields = fields.collect::<anyhow::Result<Vec<_>>>()?;
    what = match what {
        Asked::Http(request) => Asked::Http(
            request
                .with_headers(selected, fields)
                .with_context(|| format!("`{deed}` is refused before policy is asked"))?,
        ),
        Asked::Connect if fields.is_empty() => Asked::Connect,
        Asked::Connect => bail!("a connection has no headers; leave out --header"),
    };
    Ok(Ask {
        principal: SpiffeId::parse(principal).with_context(|| format!("`{principal}` is not a SPIFFE ID"))?,
        service,
        what,
        source: args.from,
        now: args.at.unwrap_or_else(clock::now),
    })
}

/// `x-tenant: acme`, as policy may look at it.
fn field<'a>(text: &'a str, selected: &SelectedHeaders) -> anyhow::Result<(&'a str, &'a [u8])> {
    let (name, value) = text
        .split_once(':')
        .with_context(|| format!("`{text}` is not a header; write `x-tenant: acme`"))?;
    anyhow::ensure!(
        selected.iter().any(|header| header.eq_ignore_ascii_case(name)),
        "`{HEADERS_FILE}` does not select `{name}`, so no policy can look at it; add it there, or leave it out"
    );
    Ok((name, value.trim().as_bytes()))
}

/// `GET ledger /accounts/7` or `connect ledger`.
fn deed_of(deed: &str, host: Option<&str>) -> anyhow::Result<(ServiceName, Asked)> {
    let words: Vec<&str> = deed.split_whitespace().collect();
    match words.as_slice() {
        ["connect", service] => Ok((service.parse()?, Asked::Connect)),
        [method, service, path] => {
            let host = host.unwrap_or(service);
            let request = CanonicalRequest::parse(method, &[host.as_bytes()], path.as_bytes())
                .with_context(|| format!("`{deed}` is refused before policy is asked"))?;
            Ok((service.parse()?, Asked::Http(request)))
        }
        _ => bail!("`{deed}` is not something to do; write `GET ledger /accounts/7` or `connect ledger`"),
    }
}

/// Whether the outcome and what settled it are those of the log.
fn reproduces(explanation: &Explanation, record: &Record) -> bool {
    let decision = explanation.what_if.decision();
    decision.verdict().as_str() == record.outcome.as_str() && decision.determining() == record.determining.as_slice()
}

fn page(explanation: &Explanation, ask: &Ask, record: Option<&Record>, snapshot: &Snapshot, named: &str) -> String {
    let decision = explanation.what_if.decision();
    let mut page = String::new();
    if let Some(record) = record {
        let _ = writeln!(
            page,
            "{}, {}: {}{}, revision {}",
            record.id,
            humantime::format_rfc3339_millis(record.at),
            record.outcome,
            by(&record.determining),
            record.policy_revision.as_deref().unwrap_or("unknown"),
        );
        let same_revision = record.policy_revision.as_deref() == Some(snapshot.revision());
        let which = if same_revision {
            "the same policies".to_owned()
        } else {
            format!("other policies, revision {}", snapshot.revision())
        };
        let says = if reproduces(explanation, record) {
            "decide the same".to_owned()
        } else if same_revision {
            format!(
                "decide {} — part of the answer is not in the log: a grant, or the last good policy",
                decision.verdict()
            )
        } else {
            format!("decide {}{}", decision.verdict(), by(decision.determining()))
        };
        let _ = writeln!(page, "{named} are {which}; they {says}\n");
    }
    let what = match &ask.what {
        Asked::Connect => format!("connect {}", ask.service),
        Asked::Http(http) => format!("{} {} {}", http.method(), ask.service, http.path()),
    };
    let _ = writeln!(page, "{}", ask.principal);
    let _ = writeln!(
        page,
        "  {what}   from {} at {}",
        ask.source,
        humantime::format_rfc3339_seconds(ask.now)
    );
    if let Asked::Http(http) = &ask.what {
        for (name, value) in http.headers() {
            let _ = writeln!(page, "  {name}: {}", value.unwrap_or("(absent)"));
        }
    }
    if let Some(route) = explanation.what_if.route() {
        let hint = if route.as_str().ends_with(":unmatched") {
            "   (no line of routes.toml covers it)"
        } else {
            ""
        };
        let _ = writeln!(page, "  route {route}{hint}");
    }
    let _ = write!(page, "\n{}", decision.verdict());
    let _ = match (decision.verdict(), decision.reason()) {
        (_, Some(reason)) => writeln!(page, ": {reason}"),
        (hoplite_policy::Verdict::NoPermit, None) => writeln!(page, ": nothing permits it"),
        _ => writeln!(page, "{}", by(decision.determining())),
    };

    if explanation.candidates.is_empty() {
        page.push_str("\nNo policy's scope covers it.\n");
    } else {
        page.push_str("\nPolicies whose scope covers it:\n");
    }
    for candidate in &explanation.candidates {
        show_candidate(&mut page, candidate);
    }
    // What was near explains why nothing permits it, and nothing else.
    if decision.verdict() != hoplite_policy::Verdict::NoPermit {
        return page;
    }
    if !explanation.near_misses.is_empty() {
        page.push_str("\nPermits that cover all but one part of it:\n");
    }
    for near in &explanation.near_misses {
        show_near_miss(&mut page, near);
    }
    if explanation.further_misses > 0 {
        let _ = writeln!(page, "  and {} more, further away", explanation.further_misses);
    }
    page
}

fn by(policies: &[String]) -> String {
    if policies.is_empty() {
        String::new()
    } else {
        format!(" by {}", policies.join(", "))
    }
}

fn show_candidate(page: &mut String, candidate: &Candidate) {
    let (mark, finding) = match &candidate.finding {
        Finding::Satisfied => ("✓", "applies"),
        Finding::Unsatisfied(_) => ("·", "does not apply"),
        Finding::Failed { .. } => ("!", "cannot be evaluated"),
    };
    let place = candidate
        .place
        .as_ref()
        .map(|place| format!("   {place}"))
        .unwrap_or_default();
    let _ = writeln!(page, "  {mark} {} {}: {finding}{place}", candidate.effect, candidate.id);
    match &candidate.finding {
        Finding::Satisfied => {}
        Finding::Unsatisfied(conditions) => {
            for condition in conditions {
                show_unmet(page, "✗", condition);
            }
        }
        Finding::Failed { condition, error } => {
            show_unmet(page, "!", condition);
            let _ = writeln!(page, "          {error}");
        }
    }
}

fn show_unmet(page: &mut String, mark: &str, unmet: &Unmet) {
    let place = unmet
        .place
        .as_ref()
        .map(|place| format!("   {}:{}", place.file, place.line));
    let _ = writeln!(page, "      {mark} {}{}", cut(&unmet.text), place.unwrap_or_default());
    for (name, value) in &unmet.values {
        let _ = writeln!(page, "          {} is {}", in_context(name), cut(value));
    }
}

/// What a condition looked at, as a policy writes it.
fn in_context(name: &str) -> String {
    let dot = if name.starts_with('[') { "" } else { "." };
    format!("context{dot}{name}")
}

fn show_near_miss(page: &mut String, near: &NearMiss) {
    let place = near.policy.place.as_ref().map(|place| format!("   {place}"));
    let _ = writeln!(
        page,
        "  · permit {}: another {}{}",
        near.policy.id,
        near.miss.as_str(),
        place.unwrap_or_default()
    );
    let _ = writeln!(page, "      {}", cut(near.scope()));
    let _ = writeln!(page, "      the request has {}", cut(&near.asked));
}

fn as_json(explanation: &Explanation, ask: &Ask, record: Option<&Record>) -> Value {
    let decision = explanation.what_if.decision();
    let place = |place: &Option<Place>| place.as_ref().map(ToString::to_string);
    let unmet = |unmet: &Unmet| {
        let values: serde_json::Map<_, _> = unmet
            .values
            .iter()
            .map(|(name, value)| (in_context(name), value.clone().into()))
            .collect();
        json!({"condition": unmet.text, "place": place(&unmet.place), "values": values})
    };
    let candidates: Vec<Value> = explanation
        .candidates
        .iter()
        .map(|candidate| {
            let (finding, conditions, error) = match &candidate.finding {
                Finding::Satisfied => ("satisfied", Vec::new(), None),
                Finding::Unsatisfied(conditions) => ("unsatisfied", conditions.iter().map(unmet).collect(), None),
                Finding::Failed { condition, error } => ("failed", vec![unmet(condition)], Some(error)),
            };
            json!({
                "id": candidate.id, "effect": candidate.effect.as_str(), "place": place(&candidate.place),
                "finding": finding, "unmet": conditions, "error": error,
            })
        })
        .collect();
    let near: Vec<Value> = explanation
        .near_misses
        .iter()
        .map(|near| {
            json!({
                "id": near.policy.id, "place": place(&near.policy.place), "miss": near.miss.as_str(), "scope": near.scope(),
                "asked": near.asked,
            })
        })
        .collect();
    json!({
        "record": record, "reproduced": record.map(|record| reproduces(explanation, record)),
        "principal": ask.principal.as_str(), "action": explanation.what_if.action(),
        "resource": route_of(&explanation.what_if, ask), "outcome": decision.verdict().as_str(),
        "determining": decision.determining(), "reason": decision.reason(), "errors": decision.errors(),
        "policy_revision": decision.revision(), "candidates": candidates, "near_misses": near,
        "further_misses": explanation.further_misses,
    })
}
