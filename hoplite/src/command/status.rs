//! `hoplite status`: the mesh at a glance, and whether all is well.

use std::process::ExitCode;

use clap::Args;
use hoplite_wire::ca::{ListReportsRequest, Mesh, Restored, Stranger};
use serde_json::json;

use super::fleet::ask::{self, CANNOT_TELL, Seen};
use super::fleet::text::{ago, columns, many, short, shown, span};
use super::fleet::{again, json as as_json, of_node, who};
use crate::command::reach::CaArgs;
use crate::output::{Output, print_while_read, wrapped};

/// Nodes whose troubles are shown: one screen.
const NODES_SHOWN: u32 = 10;

/// Lines of them.
const TROUBLES_SHOWN: usize = 12;

/// Addresses that are named.
const STRANGERS_SHOWN: usize = 3;

/// Where values stand.
const INDENT: usize = 11;

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Show it again each second, until Ctrl-C
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    ca: CaArgs,
    /// The form of the answer
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// What it comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Well,
    Wrong,
    /// Whoever joined is banned: nobody is served.
    AllBanned,
    /// The CA has just started, and has not heard of all.
    Unknown,
}

pub(crate) fn run(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let request = ListReportsRequest {
        troubled: true,
        limit: NODES_SHOWN,
        ..ListReportsRequest::default()
    };
    ask::ask(&args.ca, &request, args.watch, |seen| {
        let verdict = Verdict::of(&seen.mesh);
        let text = match args.output {
            Output::Table => again(args.watch, &text(seen, verdict, columns())),
            Output::Json => {
                let value = document(seen, verdict);
                if args.watch {
                    format!("{value}\n")
                } else {
                    format!("{}\n", serde_json::to_string_pretty(&value)?)
                }
            }
        };
        Ok((verdict.code(), print_while_read(&text)?))
    })
}

fn document(seen: &Seen, verdict: Verdict) -> serde_json::Value {
    let mut value = as_json::mesh(&seen.mesh);
    let troubles = seen.nodes.iter().flat_map(|node| {
        let troubles = node.troubles.iter();
        troubles.map(move |trouble| of_node(node, as_json::trouble(trouble)))
    });
    if let Some(fields) = value.as_object_mut() {
        fields.insert("verdict".to_owned(), json!(verdict.as_str()));
        fields.insert("worst".to_owned(), troubles.collect());
    }
    value
}

fn text(seen: &Seen, verdict: Verdict, columns: usize) -> String {
    let mesh = &seen.mesh;
    let mut text = String::new();
    let mut line = |what: &str, value: &str| {
        let first = format!("{what:<INDENT$}");
        text.push_str(&wrapped(&first, INDENT, value, columns));
    };
    let program = mesh.program.clone().unwrap_or_default();
    line(
        "mesh",
        &format!(
            "{}, by a CA of version {} ({}), up {}",
            mesh.trust_domain,
            program.version,
            short(&program.sha256),
            ago(program.started_at_unix)
        ),
    );
    for why in &mesh.not_ready {
        line("NOT READY", why);
    }
    line("agents", &agents(mesh));
    line("policy", &policy(mesh));
    line("authority", &authority(mesh));
    for warning in &mesh.federation_warnings {
        line("federation", warning);
    }
    line("decisions", &decisions(mesh));
    line(
        "store",
        &format!(
            "revision {}, reports {} KiB",
            mesh.store_revision,
            mesh.report_bytes.div_ceil(1024)
        ),
    );
    if let Some(restored) = &mesh.restored {
        line("restored", &restoration(restored));
    }
    if !mesh.strangers.is_empty() {
        line("strangers", &strangers(&mesh.strangers));
    }
    for (level, heading) in [("wrong", "WRONG"), ("notice", "notice")] {
        troubles(&mut text, seen, level, heading, columns);
    }
    text.push('\n');
    text.push_str(&wrapped("", 0, verdict.sentence(), columns));
    text
}

/// Who connects and is not of this CA.
fn strangers(all: &[Stranger]) -> String {
    let shown: Vec<String> = all
        .iter()
        .take(STRANGERS_SHOWN)
        .map(|stranger| {
            format!(
                "{}, {}: {}",
                stranger.address,
                many(u32::try_from(stranger.times).unwrap_or(u32::MAX), "time", "times"),
                stranger.why
            )
        })
        .collect();
    let more = match all.len().saturating_sub(STRANGERS_SHOWN) {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    format!(
        "in the last ten minutes, refused: {}{more}. Nodes of a CA of before? Then this is another one: restore that from a backup, or let them join anew",
        shown.join("; ")
    )
}

fn restoration(restored: &Restored) -> String {
    let epoch = restored.epoch.unwrap_or_default().number;
    format!(
        "epoch {epoch}, of the backup begun {} at revision {}; {} came back by certificates of which it knows nothing",
        shown(restored.backup_at_unix),
        restored.revision,
        many(restored.adopted, "agent", "agents"),
    )
}

fn decisions(mesh: &Mesh) -> String {
    match (mesh.points, mesh.banned) {
        (0, 0) => return "no proxy reports".to_owned(),
        (0, _) => return "no proxy reports; those on banned nodes are not heard".to_owned(),
        _ => {}
    }
    format!(
        "{} since the proxies started, {} of them denials; {} in the last minute",
        mesh.decisions,
        mesh.denials,
        many(mesh.denials_per_minute, "denial", "denials")
    )
}

fn agents(mesh: &Mesh) -> String {
    match (mesh.agents, mesh.banned) {
        (0, 0) => return "none has joined yet; `hoplite token create` makes a token with which one may".to_owned(),
        (0, banned) => {
            return format!(
                "0 of {banned} heard, {banned} banned: no workload gets a new certificate; `hoplite agent evict NODE` lets a node join anew, \
                 `hoplite agent list` shows them"
            );
        }
        _ => {}
    }
    let mut text = format!("{} of {} heard, {} in step", mesh.heard, mesh.agents, mesh.in_step);
    for (count, what) in [
        (mesh.silent, "silent"),
        (mesh.not_heard, "not heard since the CA started"),
    ] {
        if count > 0 {
            text.push_str(&format!(", {count} {what}"));
        }
    }
    if mesh.banned > 0 {
        text.push_str(&format!("; {} more banned", mesh.banned));
    }
    text
}

fn policy(mesh: &Mesh) -> String {
    let points = format!(
        "{} of {} on {}",
        mesh.points_with_live,
        many(mesh.points, "proxy", "proxies"),
        many(mesh.nodes_with_points, "node", "nodes")
    );
    let mut text = match (mesh.live_revision, mesh.points) {
        (0, 0) => "nothing was published, and no proxy reports".to_owned(),
        (0, _) => format!(
            "nothing was published: {} on {} {} by directories",
            many(mesh.points, "proxy", "proxies"),
            many(mesh.nodes_with_points, "node", "nodes"),
            if mesh.points == 1 { "goes" } else { "go" }
        ),
        (revision, 0) => format!("revision {revision} is in force, and no proxy reports"),
        (revision, _) => format!("revision {revision} is in force at {points}"),
    };
    if mesh.shadow_revision > 0 {
        text.push_str(&format!(", revision {} is tried beside it", mesh.shadow_revision));
    }
    if mesh.signers_version > 0 {
        text.push_str(&format!("; signers version {}", mesh.signers_version));
    }
    text
}

fn troubles(text: &mut String, seen: &Seen, level: &str, heading: &str, columns: usize) {
    let counted = seen.mesh.troubles.iter().filter(|trouble| trouble.level == level);
    let all: u32 = counted.map(|trouble| trouble.count).sum();
    let found = seen.nodes.iter().flat_map(|node| {
        let of_level = node.troubles.iter().filter(|trouble| trouble.level == level);
        of_level.map(move |trouble| (node, trouble))
    });
    let mut shown = 0_u32;
    for (node, trouble) in found.take(TROUBLES_SHOWN) {
        if shown == 0 {
            text.push_str(&format!("\n{heading}\n"));
        }
        shown += 1;
        let who = who(node, &trouble.point);
        text.push_str(&wrapped("  ", 4, &format!("{who}: {}", trouble.text), columns));
    }
    match all.saturating_sub(shown) {
        0 => {}
        more if shown == 0 => text.push_str(&format!("\n{heading}\n  {more}; `hoplite fleet` shows them\n")),
        more => text.push_str(&format!("  and {more} more; `hoplite fleet` shows them\n")),
    }
}

/// The one that signs, and the one after it.
fn authority(mesh: &Mesh) -> String {
    let left = mesh.authority_not_after_unix.saturating_sub(mesh.now_unix);
    let mut text = format!(
        "ends {}, in {}",
        shown(mesh.authority_not_after_unix),
        span(u64::try_from(left).unwrap_or_default()),
    );
    match (mesh.successor_not_after_unix, mesh.successor_signs_unix) {
        (0, _) => {}
        (_, 0) => text.push_str("; the next one is prepared, and signs when somebody activates it"),
        (_, signs) => text.push_str(&format!("; the next one is prepared, and signs from {}", shown(signs))),
    }
    if !mesh.authority_warning.is_empty() {
        text = mesh.authority_warning.clone();
    }
    text
}

// === impl Verdict ===

impl Verdict {
    fn of(mesh: &Mesh) -> Self {
        let is_wrong = mesh.troubles.iter().any(|trouble| trouble.level == "wrong");
        let is_told = !mesh.authority_warning.is_empty() || !mesh.federation_warnings.is_empty();
        if is_wrong || is_told || !mesh.not_ready.is_empty() {
            Self::Wrong
        } else if mesh.agents == 0 && mesh.banned > 0 {
            Self::AllBanned
        } else if mesh.not_heard > 0 {
            Self::Unknown
        } else {
            Self::Well
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Well => "well",
            Self::Wrong | Self::AllBanned => "wrong",
            Self::Unknown => "unknown",
        }
    }

    fn sentence(self) -> &'static str {
        match self {
            Self::Well => "all is well",
            Self::Wrong => "something is wrong",
            Self::AllBanned => "something is wrong: every agent that joined is banned",
            Self::Unknown => "nobody can tell yet: the CA has just started, and not every agent has been heard",
        }
    }

    fn code(self) -> ExitCode {
        match self {
            Self::Well => ExitCode::SUCCESS,
            Self::Wrong | Self::AllBanned => ExitCode::FAILURE,
            Self::Unknown => ExitCode::from(CANNOT_TELL),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hoplite_wire::ca::{NodeReport, Trouble, TroubleCount};

    fn mesh() -> Mesh {
        Mesh {
            trust_domain: "prod.example".into(),
            now_unix: 1_800_000_000,
            authority_not_after_unix: 1_800_000_000 + 86_400,
            agents: 3,
            heard: 3,
            in_step: 3,
            points: 6,
            points_with_live: 6,
            nodes_with_points: 3,
            live_revision: 7,
            ..Mesh::default()
        }
    }

    fn trouble(level: &str, count: u32) -> TroubleCount {
        TroubleCount {
            kind: "clock".into(),
            level: level.into(),
            count,
        }
    }

    #[test]
    fn what_it_comes_to() {
        let check = |change: &dyn Fn(&mut Mesh), expected: Verdict| {
            let mut mesh = mesh();
            change(&mut mesh);
            assert_eq!(Verdict::of(&mesh), expected);
        };
        check(&|_| (), Verdict::Well);
        check(&|mesh| mesh.troubles = vec![trouble("notice", 4)], Verdict::Well);
        check(&|mesh| mesh.troubles = vec![trouble("wrong", 1)], Verdict::Wrong);
        check(&|mesh| mesh.not_heard = 1, Verdict::Unknown);
        check(
            &|mesh| {
                mesh.not_heard = 1;
                mesh.troubles = vec![trouble("wrong", 1)];
            },
            Verdict::Wrong,
        );
        check(
            &|mesh| mesh.authority_warning = "it has no successor".into(),
            Verdict::Wrong,
        );
        check(&|mesh| mesh.not_ready = vec!["the disk is full".into()], Verdict::Wrong);
        check(
            &|mesh| {
                *mesh = Mesh {
                    agents: 0,
                    ..mesh.clone()
                }
            },
            Verdict::Well,
        );
        check(&|mesh| mesh.banned = 1, Verdict::Well);
        check(&|mesh| (mesh.agents, mesh.banned) = (0, 1), Verdict::AllBanned);
        assert_eq!(Verdict::AllBanned.as_str(), "wrong");
    }

    #[test]
    fn agents_that_are_banned_are_counted_and_not_forgotten() {
        let check = |joined: u32, banned: u32, points: u32, expected: [&str; 2]| {
            let mesh = Mesh {
                agents: joined,
                heard: joined,
                in_step: joined,
                banned,
                points,
                ..mesh()
            };
            let said = [agents(&mesh), decisions(&mesh)];
            for (said, expected) in said.iter().zip(expected) {
                assert!(said.starts_with(expected), "{said}");
            }
        };
        check(0, 0, 0, ["none has joined yet", "no proxy reports"]);
        check(
            0,
            1,
            0,
            [
                "0 of 1 heard, 1 banned: no workload",
                "no proxy reports; those on banned nodes are not heard",
            ],
        );
        check(2, 1, 3, ["2 of 2 heard, 2 in step; 1 more banned", "0 since"]);
        check(2, 0, 3, ["2 of 2 heard, 2 in step", "0 since"]);
    }

    #[test]
    fn it_fits_any_terminal() {
        let long = "decides by an unsigned directory on its node, and revision 7 is in force since yesterday";
        let nodes = (0..20).map(|n| NodeReport {
            node: format!("web-{n}"),
            troubles: vec![Trouble {
                level: "wrong".into(),
                point: "ledger".into(),
                text: long.into(),
                ..Trouble::default()
            }],
            ..NodeReport::default()
        });
        let seen = Seen {
            mesh: Mesh {
                troubles: vec![trouble("wrong", 40), trouble("notice", 2)],
                ..mesh()
            },
            nodes: nodes.collect(),
        };
        for columns in [60, 80, 120] {
            let text = text(&seen, Verdict::Wrong, columns);
            assert!(
                text.lines().all(|line| line.chars().count() <= columns),
                "{columns}:\n{text}"
            );
            assert!(text.contains("and 28 more; `hoplite fleet` shows them"), "{text}");
            assert!(text.contains("6 of 6 proxies on 3 nodes") || columns == 60, "{text}");
            assert!(text.ends_with("something is wrong\n"), "{text}");
        }
    }
}
