//! `hoplite policy suggest`: permits for calls that nothing permitted, for a person to read.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::bail;
use hoplite_audit::{Query, ReadError, read_log};
use hoplite_author::{Advice, Denials, Suggestion};
use serde_json::{Value, json};

use super::{AuditArgs, PoliciesArgs, compile};
use crate::command::reach::CaArgs;
use crate::output::waiting::Waiting;
use crate::output::{Output, count, moment, print, print_json};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Look at the calls that no policy permitted; there is nothing else to look at yet, and it is said so that it is meant
    #[arg(long, required = true)]
    from_denials: bool,
    /// From when on: `7d` (ago), `yesterday 18:00`, `2026-11-28`
    #[arg(long, value_name = "MOMENT", value_parser = moment::parse, default_value = "7d")]
    since: SystemTime,
    #[command(flatten)]
    policies: PoliciesArgs,
    #[command(flatten)]
    audit: AuditArgs,
    #[command(flatten)]
    ca: CaArgs,
    /// The form of the answer: policies with comments, or JSON
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// Exit 1 when there is nothing to suggest.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let snapshot = compile(&args.policies.sources(&args.ca)?)?;
    let mut denials = Denials::default();
    let mut damaged = 0_u64;
    let query = Query {
        since: Some(args.since),
        ..Query::default()
    };
    let logs = args.audit.logs(args.ca.mesh())?;
    let waiting = Waiting::new("reading decision logs");
    for log in logs {
        for record in read_log(&log, &query)? {
            match record {
                Ok(record) => denials.add(&record),
                Err(ReadError::Damaged { .. } | ReadError::OtherFormat { .. }) => damaged += 1,
                Err(error @ ReadError::Io { .. }) => return Err(error.into()),
            }
        }
    }
    let (suggestions, left_out) = denials.suggest(&snapshot);
    drop(waiting);
    if damaged > 0 {
        hoplite_host::tell!(
            "{} cannot be read and are left out; `hoplite audit verify` names them",
            count(damaged, "record")
        );
    }
    if left_out > 0 {
        hoplite_host::tell!(
            "{} left out: there are too many kinds, or what they name is no caller or service",
            count(left_out, "call")
        );
    }
    if args.output == Output::Json {
        print_json(&suggestions.iter().map(listed).collect::<Vec<_>>())?;
    } else if suggestions.is_empty() {
        bail!(
            "no call since {} was refused for want of a permit; `hoplite audit query --outcome forbid` shows those that are forbidden",
            moment::shown(&humantime::format_rfc3339_seconds(args.since).to_string())
        );
    } else {
        print(&page(&suggestions))?;
    }
    Ok(if suggestions.is_empty() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// A policy file, with what cannot be one as comments.
fn page(suggestions: &[Suggestion]) -> String {
    let mut page = String::from(
        "// Calls that nothing permitted, and what would permit them. Whoever attacks you is refused too: read each before you keep it.\n",
    );
    for suggestion in suggestions {
        let last = moment::shown(&humantime::format_rfc3339_seconds(suggestion.last).to_string());
        let what = suggestion.route.as_ref().unwrap_or(&suggestion.service);
        let _ = writeln!(
            page,
            "\n// {}: {} {what}; {} refused, the last at {last}",
            suggestion.principal,
            suggestion.actions.join(" "),
            count(suggestion.calls, "call"),
        );
        match &suggestion.advice {
            Advice::Permit(text) => page.push_str(text),
            Advice::ListRoute => page.push_str(
                "// No permit: routes.toml does not list what was asked. List it first; `hoplite audit query` has the paths.\n",
            ),
            Advice::Conditions(conditions) => {
                page.push_str("// No permit: one nearly fits. If it is to, change its conditions:\n");
                for condition in conditions {
                    let _ = writeln!(page, "//   {condition}");
                }
            }
            Advice::Forbidden(by) => {
                let _ = writeln!(page, "// No permit: it is forbidden by {}.", by.join(", "));
            }
            Advice::Permitted => page.push_str("// No permit: these policies permit it.\n"),
        }
    }
    page
}

fn listed(suggestion: &Suggestion) -> Value {
    let (advice, policy, by): (&str, Option<&str>, &[String]) = match &suggestion.advice {
        Advice::Permit(text) => ("permit", Some(text), &[]),
        Advice::ListRoute => ("list_route", None, &[]),
        Advice::Conditions(by) => ("conditions", None, by),
        Advice::Forbidden(by) => ("forbidden", None, by),
        Advice::Permitted => ("permitted", None, &[]),
    };
    json!({
        "principal": suggestion.principal, "service": suggestion.service, "route": suggestion.route, "actions": suggestion.actions,
        "calls": suggestion.calls, "last": humantime::format_rfc3339_seconds(suggestion.last).to_string(),
        "advice": advice, "policy": policy, "by": by,
    })
}
