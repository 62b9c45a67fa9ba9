//! `hoplite fleet`: what each node of the mesh said last, and what is wrong there.

pub(crate) mod ask;
pub(crate) mod json;
mod show;
pub(crate) mod text;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use hoplite_wire::ca::{Build, ListReportsRequest, NodeReport, Trouble};
use serde_json::{Value, json};

use self::ask::Seen;
use self::text::{columns, many};
use crate::command::reach::CaArgs;
use crate::output::capped::All;
use crate::output::{Column, Form, Listing, Output, Reader, coloured, part, plain, print_while_read, verdict, wrapped};

/// How many nodes people are shown.
const NODES_SHOWN_MAX: u32 = 50;

/// What makes a node another than it should be is all that is wrong, and, though it may be meant, another program than others run.
const DRIFT: [&str; 2] = ["old-version", "other-build"];

/// What ends.
const ENDS: [&str; 2] = ["ends", "policy-stale"];

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct FleetArgs {
    #[command(subcommand)]
    command: Option<FleetCommand>,
    #[command(flatten)]
    list: FleetList,
}

#[derive(Debug, Subcommand)]
pub(crate) enum FleetCommand {
    /// Which programs run, and where another build than most
    #[command(after_help = "Example:\n  hoplite fleet versions --output json")]
    Versions(FleetList),
    /// Nodes and proxies that are not what they should be: all that `status` calls WRONG, and other binaries; exit 1 if there is one
    #[command(after_help = "Examples:\n  hoplite fleet drift\n  hoplite fleet drift --output jsonl")]
    Drift(FleetList),
    /// Certificates, authorities and policies that end soon; exit 1 if there is one
    #[command(after_help = "Example:\n  hoplite fleet expiring --within 12h")]
    Expiring(Expiring),
    /// All that one node said: its agent, its proxies, their listeners and policies
    #[command(after_help = "Examples:\n  hoplite fleet show local\n  hoplite fleet show local --output json")]
    Show(ShowArgs),
}

#[derive(Debug, Args)]
pub(crate) struct FleetList {
    /// Only nodes whose name has this in it
    #[arg(long, value_name = "TEXT", default_value = "")]
    node: String,
    /// Only nodes with something wrong or to notice
    #[arg(long)]
    troubled: bool,
    /// At most so many nodes; 0 for all [default: 50 for people, all for programs]
    #[arg(long, value_name = "N")]
    limit: Option<u32>,
    #[command(flatten)]
    all: All,
    /// Show it again each second, until Ctrl-C
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    ca: CaArgs,
    #[command(flatten)]
    form: Form,
}

#[derive(Debug, Args)]
pub(crate) struct Expiring {
    /// What ends within this time
    #[arg(long, value_name = "TIME", default_value = "7d", value_parser = crate::output::moment::span)]
    within: Duration,
    #[command(flatten)]
    list: FleetList,
}

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// The node's name, or its agent's SPIFFE ID
    node: String,
    #[command(flatten)]
    ca: CaArgs,
    /// The form of the answer
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// What people see of a node.
const COLUMNS: [Column; 6] = [
    Column::new("NODE", "node"),
    Column::made("HEARD", "heard_at", |node| match part(node, "/heard_at").as_str() {
        Some(at) => format!("{} ago", text::since(at)),
        None => "never".to_owned(),
    }),
    Column::made("PROXIES", "proxies", |node| {
        part(node, "/proxies").as_array().map_or(0, Vec::len).to_string()
    }),
    Column::made("POLICY", "proxies", policy),
    Column::new("DENIED/MIN", "denials_per_minute"),
    Column::made("STATE", "troubles", state).coloured(verdict),
];

/// … and of a program.
const BUILD_COLUMNS: [Column; 6] = [
    Column::new("PROGRAM", "kind"),
    Column::new("VERSION", "version"),
    Column::made("BUILD", "sha256", |build| {
        plain(part(build, "/sha256")).chars().take(12).collect()
    }),
    Column::new("FOR", "target"),
    Column::new("RUNS", "count"),
    Column::made("", "usual", |build| {
        if part(build, "/usual") == true { "usual" } else { "" }.to_owned()
    }),
];

/// … and of a trouble, where it is a row: what it is stands below it.
const TROUBLE_COLUMNS: [Column; 4] = [
    Column::new("NODE", "node"),
    Column::new("PROXY", "proxy"),
    Column::new("KIND", "kind"),
    Column::new("WHAT", "text"),
];

pub(crate) fn run(args: &FleetArgs) -> anyhow::Result<ExitCode> {
    match &args.command {
        None => nodes(&args.list),
        Some(FleetCommand::Versions(list)) => versions(list),
        Some(FleetCommand::Drift(list)) => {
            let drift = ListReportsRequest {
                wrong: true,
                ..of_kinds(&DRIFT)
            };
            troubles(list, drift, "nothing drifts")
        }
        Some(FleetCommand::Expiring(args)) => {
            let within = text::span(args.within.as_secs());
            let ends = ListReportsRequest {
                expiring_within_seconds: u32::try_from(args.within.as_secs()).unwrap_or(u32::MAX),
                ..of_kinds(&ENDS)
            };
            troubles(&args.list, ends, &format!("nothing ends within {within}"))
        }
        Some(FleetCommand::Show(args)) => show::run(&args.ca, &args.node, args.output),
    }
}

fn nodes(args: &FleetList) -> anyhow::Result<ExitCode> {
    let request = ListReportsRequest {
        troubled: args.troubled,
        ..args.request()
    };
    let mut is_headed = false;
    ask::ask(&args.ca, &request, args.watch, |seen| {
        let mut listing = Listing::new(&COLUMNS).like(&json::node(&NodeReport::default()));
        for node in &seen.nodes {
            listing.row(json::node(node));
        }
        if seen.nodes.is_empty() && args.form.is_table() {
            hoplite_host::tell!("{}", nobody(seen));
        }
        let read = args.show(listing.render(args.form, coloured())?, &mut is_headed)?;
        say_more(seen);
        Ok((code(seen.nodes.iter().any(is_wrong)), read))
    })
}

fn of_kinds(kinds: &[&str]) -> ListReportsRequest {
    ListReportsRequest {
        kinds: kinds.iter().map(|kind| (*kind).to_owned()).collect(),
        ..ListReportsRequest::default()
    }
}

/// Each thing that a filter lets pass.
fn troubles(args: &FleetList, filter: ListReportsRequest, none: &str) -> anyhow::Result<ExitCode> {
    let listed = args.request();
    let request = ListReportsRequest {
        node: listed.node,
        limit: listed.limit,
        ..filter
    };
    let mut is_headed = false;
    ask::ask(&args.ca, &request, args.watch, |seen| {
        let text = match args.form.is_table() {
            true if seen.nodes.is_empty() => format!("{none}{}\n", unheard(seen)),
            true => trouble_text(seen, columns(), args.all),
            false => trouble_listing(seen).render(args.form, false)?,
        };
        let read = args.show(text, &mut is_headed)?;
        say_more(seen);
        let code = match (seen.nodes.is_empty(), seen.mesh.not_heard) {
            (false, _) => ExitCode::FAILURE,
            (true, 0) => ExitCode::SUCCESS,
            (true, _) => ExitCode::from(ask::CANNOT_TELL),
        };
        Ok((code, read))
    })
}

fn versions(args: &FleetList) -> anyhow::Result<ExitCode> {
    let request = ListReportsRequest {
        kinds: of_kinds(&DRIFT).kinds,
        ..args.request()
    };
    let mut is_headed = false;
    ask::ask(&args.ca, &request, args.watch, |seen| {
        let mut listing = Listing::new(&BUILD_COLUMNS).like(&json::build(&Build::default()));
        for build in json::builds(&seen.mesh) {
            listing.row(build);
        }
        let mut text = listing.render(args.form, coloured())?;
        if args.form.is_table() && !seen.nodes.is_empty() {
            text.push('\n');
            text.push_str(&trouble_text(seen, columns(), args.all));
        }
        let read = args.show(text, &mut is_headed)?;
        say_more(seen);
        Ok((ExitCode::SUCCESS, read))
    })
}

fn nobody(seen: &Seen) -> &'static str {
    match (seen.mesh.agents, seen.mesh.banned) {
        (0, 1..) => "every agent that joined is banned; `hoplite agent list` shows them",
        (0, 0) => "no agent has joined yet; `hoplite token create` makes a token with which one may",
        _ => "no node is like that; `hoplite fleet` without filters shows them all",
    }
}

fn trouble_listing(seen: &Seen) -> Listing<Value> {
    let example = of_node(&NodeReport::default(), json::trouble(&Trouble::default()));
    let mut listing = Listing::new(&TROUBLE_COLUMNS).like(&example);
    for node in &seen.nodes {
        for trouble in &node.troubles {
            listing.row(of_node(node, json::trouble(trouble)));
        }
    }
    listing
}

/// With the node's name.
pub(crate) fn of_node(node: &NodeReport, mut value: Value) -> Value {
    if let Some(fields) = value.as_object_mut() {
        fields.insert("node".to_owned(), json!(node.node));
    }
    value
}

/// Each with what it is below it: sentences fit into no column.
fn trouble_text(seen: &Seen, columns: usize, all: All) -> String {
    let mut findings = all.capped();
    for node in &seen.nodes {
        for trouble in &node.troubles {
            let who = who(node, &trouble.point);
            let first = wrapped("", 2, &format!("{who} {}", trouble.kind), columns);
            findings.add(&node.node, &(first + &wrapped("    ", 4, &trouble.text, columns)));
        }
    }
    findings.end()
}

/// `web-1`, or `web-1/ledger`.
pub(crate) fn who(node: &NodeReport, point: &str) -> String {
    match point {
        "" => node.node.clone(),
        point => format!("{}/{point}", node.node),
    }
}

/// What is left out, on standard error.
fn say_more(seen: &Seen) {
    let (shown, all) = (
        seen.nodes.len(),
        seen.nodes.first().map_or(0, |node| node.matches as usize),
    );
    if let more @ 1.. = all.saturating_sub(shown) {
        let more = many(more as u64, "node", "nodes");
        hoplite_host::tell!("and {more} more; --all shows them, --node TEXT some");
    }
}

fn unheard(seen: &Seen) -> String {
    match seen.mesh.not_heard {
        0 => String::new(),
        count => format!(
            ", as far as is known: {} not heard yet",
            many(count, "agent is", "agents are")
        ),
    }
}

/// The revision that its proxies enforce, or several.
fn policy(node: &Value) -> String {
    let points = part(node, "/proxies").as_array().into_iter().flatten();
    let mut sources: Vec<String> = points
        .map(|point| match part(point, "/policy/source").as_str() {
            Some("bundle") => plain(part(point, "/policy/revision")),
            Some("") | None => "none".to_owned(),
            Some(source) => source.to_owned(),
        })
        .collect();
    sources.sort();
    sources.dedup();
    match sources.as_slice() {
        [] => "-".to_owned(),
        some => some.join(","),
    }
}

/// The worst in a word, whose it is, and how many more there are.
fn state(node: &Value) -> String {
    let troubles = part(node, "/troubles")
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let Some(worst) = troubles.first() else {
        return "well".to_owned();
    };
    let mut text = plain(part(worst, "/kind"));
    if let Some(proxy) = part(worst, "/proxy").as_str() {
        text.push_str(&format!(" ({proxy})"));
    }
    if troubles.len() > 1 {
        text.push_str(&format!(" +{}", troubles.len() - 1));
    }
    text
}

/// Whether something on a node is wrong, and not only to be noticed.
pub(crate) fn is_wrong(node: &NodeReport) -> bool {
    node.troubles.iter().any(|trouble| trouble.level == "wrong")
}

fn code(is_wrong: bool) -> ExitCode {
    if is_wrong { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

// === impl FleetList ===

impl FleetList {
    fn request(&self) -> ListReportsRequest {
        ListReportsRequest {
            node: self.node.clone(),
            limit: match self.limit {
                Some(limit) => limit,
                None if self.all.is_said() || !self.form.is_table() => 0,
                None => NODES_SHOWN_MAX,
            },
            ..ListReportsRequest::default()
        }
    }

    /// Again and again, with one heading.
    fn show(&self, text: String, is_headed: &mut bool) -> anyhow::Result<Reader> {
        let text = match std::mem::replace(is_headed, true) {
            true => self.form.without_heading(text),
            false => text,
        };
        Ok(print_while_read(&again(self.watch && self.form.is_table(), &text))?)
    }
}

/// In the place of what was shown before, on a terminal.
pub(crate) fn again(watch: bool, text: &str) -> String {
    match (watch, std::io::stdout().is_terminal()) {
        (true, true) => format!("\x1b[H\x1b[2J{text}"),
        (true, false) => format!("{text}\n"),
        (false, _) => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hoplite_wire::ca::Mesh;
    use hoplite_wire::report::{Point, PointPolicy, Report};

    fn node(name: &str, troubles: &[(&str, &str)], revisions: &[u64]) -> NodeReport {
        let point = |revision: &u64| Point {
            policy: Some(PointPolicy {
                source: if *revision > 0 { "bundle" } else { "directory" }.to_owned(),
                revision: *revision,
                ..PointPolicy::default()
            }),
            ..Point::default()
        };
        NodeReport {
            node: name.to_owned(),
            standing: "heard".to_owned(),
            troubles: troubles
                .iter()
                .map(|(kind, text)| Trouble {
                    kind: (*kind).to_owned(),
                    level: "wrong".to_owned(),
                    text: (*text).to_owned(),
                    point: "ledger".to_owned(),
                    weight: 1,
                })
                .collect(),
            report: Some(Report {
                points: revisions.iter().map(point).collect(),
                ..Report::default()
            }),
            matches: 3,
            ..NodeReport::default()
        }
    }

    #[test]
    fn five_thousand_nodes_are_counted() {
        let names = (0..5_000).map(|number| format!("web-{number}"));
        let nodes: Vec<NodeReport> = names.map(|name| node(&name, &[("clock", "x")], &[7])).collect();
        let seen = Seen {
            mesh: Mesh::default(),
            nodes,
        };
        let text = trouble_text(&seen, 80, All::default());
        assert_eq!(text.lines().count(), 101);
        assert!(text.ends_with("4 940 elsewhere; --all shows them\n"), "{text}");
    }

    #[test]
    fn what_is_listed_fits() {
        let why = "decides by an unsigned directory on its node, and revision 7 is in force since a long time ago";
        let seen = Seen {
            mesh: Mesh::default(),
            nodes: vec![
                node("web-1", &[("unsigned-directory", why), ("clock", "x")], &[0, 7]),
                node("web-2", &[], &[7]),
            ],
        };
        for columns in [60, 80, 120] {
            let text = trouble_text(&seen, columns, All::default());
            assert!(text.lines().all(|line| line.chars().count() <= columns), "{text}");
            assert!(
                text.starts_with("web-1/ledger unsigned-directory\n    decides by"),
                "{text}"
            );
        }
        let rows: Vec<Value> = seen.nodes.iter().map(json::node).collect();
        assert_eq!(
            (state(&rows[0]), policy(&rows[0])),
            ("unsigned-directory (ledger) +1".to_owned(), "7,directory".to_owned())
        );
        assert_eq!((state(&rows[1]), policy(&rows[1])), ("well".to_owned(), "7".to_owned()));
        let mut listing = Listing::new(&COLUMNS);
        rows.into_iter().for_each(|row| listing.row(row));
        let text = listing.render(Form::default(), false).unwrap();
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        let empty = |agents, banned| {
            let mesh = Mesh {
                agents,
                banned,
                ..Mesh::default()
            };
            nobody(&Seen { mesh, nodes: vec![] })
        };
        assert!(empty(0, 0).starts_with("no agent has joined yet"));
        assert!(empty(0, 1).starts_with("every agent that joined is banned"));
        assert!(empty(3, 0).starts_with("no node is like that") && empty(3, 1).starts_with("no node is like that"));
    }
}
