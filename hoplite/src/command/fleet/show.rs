//! `hoplite fleet show`: all that one node said.

use std::fmt::Write as _;
use std::process::ExitCode;

use hoplite_wire::ca::NodeReport;
use hoplite_wire::report::{Count, Listener, Point, Program};

use super::text::{ago, columns, many, short, shown};
use super::{ask, is_wrong, json};
use crate::command::reach::CaArgs;
use crate::output::{Output, failure, print, print_json, wrapped};

/// Where values stand.
const INDENT: usize = 14;

pub(crate) fn run(ca: &CaArgs, node: &str, output: Output) -> anyhow::Result<ExitCode> {
    let node = match ask::one(ca, node) {
        Ok(node) => node,
        Err(error) => {
            failure(&error, ask::CANNOT_TELL);
            return Ok(ExitCode::from(ask::CANNOT_TELL));
        }
    };
    match output {
        Output::Json => print_json(&json::node(&node))?,
        Output::Table => print(&text(&node, columns()))?,
    }
    Ok(if is_wrong(&node) {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn text(node: &NodeReport, columns: usize) -> String {
    let mut text = String::new();
    let mut line = |what: &str, value: &str| {
        let first = format!("{what:<INDENT$}");
        text.push_str(&wrapped(&first, INDENT, value, columns));
    };
    line("node", &node.node);
    line("agent", &node.spiffe_id);
    match node.standing.as_str() {
        "not heard" => line("heard", "never since the CA started"),
        standing => line(
            "heard",
            &format!("{} ago ({standing})", ago(node.heard_at_unix_ms / 1000)),
        ),
    }
    if let Some(report) = &node.report {
        let (about, state) = (
            report.about.clone().unwrap_or_default(),
            report.state.clone().unwrap_or_default(),
        );
        line("program", &program(about.program.as_ref()));
        line("system", &format!("{}, {}", about.kernel, about.os));
        line(
            "clock",
            &format!("{} ms from the CA's, the report's way included", node.clock_offset_ms),
        );
        line("SVID", &format!("ends {}", shown(state.svid_not_after_unix)));
        line("authority", &format!("ends {}", shown(state.authority_not_after_unix)));
        let entries = many(state.entries, "entry", "entries");
        let step = if node.in_step { "in step" } else { "not in step" };
        line(
            "entries",
            &format!("{entries}, {} without SVID, {step}", state.entries_without_svid),
        );
        let policy = match state.live_revision {
            0 => "no bundle".to_owned(),
            revision => format!("revision {revision} ({})", short(&state.live_manifest_sha256)),
        };
        let signers = match state.signers_version {
            0 => "no signers".to_owned(),
            version => format!("signers version {version}"),
        };
        line("policy", &format!("{policy}, {signers}"));
        if let Some(refused) = report
            .counters
            .as_ref()
            .filter(|counters| !counters.refusals.is_empty())
        {
            line("refused", &counts(&refused.refusals));
        }
    }
    let mut points: Vec<&Point> = node.report.iter().flat_map(|report| &report.points).collect();
    points.sort_by_key(|point| point.about.as_ref().map(|about| &about.name));
    for point in points {
        text.push('\n');
        self::point(&mut text, point, columns);
    }
    text.push('\n');
    if node.troubles.is_empty() {
        text.push_str("nothing is wrong by what it said\n");
    }
    for trouble in &node.troubles {
        let who = if trouble.point.is_empty() {
            String::new()
        } else {
            format!("{}: ", trouble.point)
        };
        let first = format!("{:<8}", trouble.level);
        text.push_str(&wrapped(
            &first,
            8,
            &format!("{} – {who}{}", trouble.kind, trouble.text),
            columns,
        ));
    }
    text
}

fn point(text: &mut String, point: &Point, columns: usize) {
    let about = point.about.clone().unwrap_or_default();
    let (policy, state) = (
        point.policy.clone().unwrap_or_default(),
        point.state.clone().unwrap_or_default(),
    );
    let kind = if about.kind == "agent" {
        "decides here"
    } else {
        &about.kind
    };
    let mut line = |what: &str, value: &str| {
        let first = format!("{what:<INDENT$}");
        text.push_str(&wrapped(&first, INDENT, value, columns));
    };
    line(kind, &about.name);
    line(
        "  identity",
        &format!("{}, ends {}", about.spiffe_id, shown(state.svid_not_after_unix)),
    );
    line(
        "  program",
        &format!("{}, process {}", program(about.program.as_ref()), state.pid),
    );
    let from = match policy.source.as_str() {
        "bundle" => format!("revision {} ({})", policy.revision, short(&policy.manifest_sha256)),
        "" => "none".to_owned(),
        source => format!("{source}, unsigned"),
    };
    let policies = many(policy.policies, "policy", "policies");
    line(
        "  policy",
        &format!("{from}, {policies}, loaded {}", shown(policy.loaded_at_unix)),
    );
    let listeners = point.listeners.clone().unwrap_or_default();
    for listener in &listeners.listeners {
        line(&format!("  {}", listener.kind), &self::listener(listener));
    }
    if listeners.left_out > 0 {
        line("", &format!("and {} more", listeners.left_out));
    }
    let counters = point.counters.clone().unwrap_or_default();
    line("  decisions", &counts(&counters.decisions));
}

fn listener(listener: &Listener) -> String {
    let Listener {
        name,
        address,
        to,
        expect,
        ..
    } = listener;
    let mut text = format!("{name} at {address} to {to}");
    if !expect.is_empty() {
        let _ = write!(text, ", expects {expect}");
    }
    text
}

fn program(program: Option<&Program>) -> String {
    match program {
        Some(program) => format!(
            "{} ({}), up {}",
            program.version,
            short(&program.sha256),
            ago(program.started_at_unix)
        ),
        None => "not told".to_owned(),
    }
}

fn counts(counts: &[Count]) -> String {
    if counts.is_empty() {
        return "none yet".to_owned();
    }
    let counts = counts.iter().map(|count| format!("{} {}", count.count, count.name));
    counts.collect::<Vec<_>>().join(", ")
}
