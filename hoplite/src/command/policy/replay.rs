//! `hoplite policy replay`: what other policies would have decided, over the decision log.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use hoplite_author::replay::{Baseline, Comparison, Flip, Group, Replayed, Who};
use hoplite_host::clock;
use serde_json::{Value, json};

use super::{AuditArgs, compile, sources};
use crate::command::MeshDir;
use crate::output::capped::All;
use crate::output::{Output, print, print_json, thousands};
use crate::replay::replay;

/// How often the bar moves.
const TICK: Duration = Duration::from_millis(200);
const BAR: usize = 24;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The directory of the new policies
    directory: PathBuf,
    /// From when on: a length of time ago (`7d`) or a moment (`2026-11-23T12:00:00Z`)
    #[arg(long, value_parser = crate::output::moment::parse, default_value = "7d")]
    since: SystemTime,
    #[command(flatten)]
    audit: AuditArgs,
    #[command(flatten)]
    dir: MeshDir,
    /// At most so many decisions are named for each group
    #[arg(long, value_name = "N", default_value_t = 3)]
    limit_examples: usize,
    /// The form of the answer
    #[arg(long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    all: All,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let snapshot = compile(&sources(&args.directory)?)?;
    let logs = args.audit.logs(&args.dir)?;
    let comparison = Comparison {
        before: Baseline::Recorded,
        after: &snapshot,
        trust_domain: None,
        examples: args.limit_examples,
    };
    let replayed = with_progress(&logs, args.since, &comparison);
    readable(&replayed)?;
    if args.output == Output::Json {
        print_json(&as_json(&replayed, &comparison, args.since))?;
    } else {
        print(&page(&replayed, args.since, args.all))?;
    }
    Ok(if replayed.flips.total() == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Whether every log could be read to its end: a comparison of a part of them could not be made.
pub(crate) fn readable(replayed: &Replayed) -> anyhow::Result<()> {
    match replayed.unread.first() {
        Some(error) => anyhow::bail!("{error}"),
        None => Ok(()),
    }
}

/// Replays, with a bar on the terminal if there is one.
pub(crate) fn with_progress(logs: &[PathBuf], since: SystemTime, comparison: &Comparison<'_>) -> Replayed {
    let mut bar = std::io::stderr().is_terminal().then(|| Bar::new(logs, since));
    let replayed = replay(logs, Some(since), comparison, |records, log, at| {
        if let Some(bar) = &mut bar {
            bar.advance(records, log, at);
        }
    });
    if let Some(bar) = bar {
        bar.finish();
    }
    replayed
}

/// How far a replay is. A log does not say how many records it holds, so it is guessed from its bytes and the times.
struct Bar {
    since: SystemTime,
    /// Of each log its bytes, and when it was last written.
    logs: Vec<(u64, SystemTime)>,
    records: usize,
    /// The first time seen of the log being read.
    first: Option<(usize, SystemTime)>,
    started: Instant,
    drawn: Instant,
}

// === impl Bar ===

impl Bar {
    fn new(logs: &[PathBuf], since: SystemTime) -> Self {
        Self {
            since,
            logs: logs.iter().map(|log| size(log)).collect(),
            records: 0,
            first: None,
            started: clock::moment(),
            drawn: clock::moment(),
        }
    }

    fn advance(&mut self, records: usize, log: usize, at: SystemTime) {
        self.records += records;
        if self.first.is_none_or(|(number, _)| number != log) {
            self.first = Some((log, at.max(self.since)));
        }
        if self.drawn.elapsed() < TICK {
            return;
        }
        self.drawn = clock::moment();
        let done = self.share(log, at);
        let filled = (done * BAR as f64) as usize;
        let line: String = (0..BAR).map(|n| if n < filled { '█' } else { '░' }).collect();
        let _ = write!(
            std::io::stderr(),
            "\r\x1b[K{line} {:3.0} %  {} records, {} a second",
            done * 100.0,
            thousands(self.records as u64),
            thousands((self.records as f64 / self.started.elapsed().as_secs_f64()) as u64)
        );
    }

    /// How much of everything is done, from 0 to 1.
    fn share(&self, log: usize, at: SystemTime) -> f64 {
        let seconds = |from: SystemTime, to: SystemTime| to.duration_since(from).unwrap_or_default().as_secs_f64();
        let total: u64 = self.logs.iter().map(|(bytes, _)| bytes).sum();
        let before: u64 = self.logs.iter().take(log).map(|(bytes, _)| bytes).sum();
        let Some((bytes, end)) = self.logs.get(log) else {
            return 0.0;
        };
        let within = self.first.map_or(0.0, |(_, first)| {
            let all = seconds(first, *end);
            if all > 0.0 {
                (seconds(first, at) / all).min(1.0)
            } else {
                0.0
            }
        });
        (before as f64 + *bytes as f64 * within) / (total.max(1) as f64)
    }

    fn finish(self) {
        let _ = write!(std::io::stderr(), "\r\x1b[K");
    }
}

fn size(log: &Path) -> (u64, SystemTime) {
    let mut found = (0, SystemTime::UNIX_EPOCH);
    for entry in log.read_dir().into_iter().flatten().flatten() {
        if let Ok(metadata) = entry.metadata()
            && entry.path().extension().is_some_and(|extension| extension == "seg")
        {
            found.0 += metadata.len();
            found.1 = found.1.max(metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH));
        }
    }
    found
}

/// The replay for people.
pub(crate) fn page(replayed: &Replayed, since: SystemTime, all: All) -> String {
    let mut page = format!(
        "{} decisions since {}: {} the same, {} would flip\n",
        thousands(replayed.records),
        humantime::format_rfc3339_seconds(since),
        thousands(replayed.same),
        thousands(replayed.flips.total()),
    );
    for (count, what) in [
        (replayed.other_denial, "denied as before, with another outcome"),
        (replayed.by_grant, "allowed by a break-glass grant, not replayed"),
        (
            replayed.unasked,
            "not asked again: policy was not asked, or was asked the same before",
        ),
        (
            replayed.not_replayable,
            "not replayable: the record does not have all that these policies ask",
        ),
        (replayed.elsewhere, "of another trust domain, not replayed"),
        (
            replayed.damaged,
            "cannot be read; `hoplite audit verify` has the findings",
        ),
        (
            replayed.unknown,
            "passed over: records that this version does not know; a newer `hoplite` does",
        ),
    ] {
        if count > 0 {
            let _ = writeln!(page, "  {} {what}", thousands(count));
        }
    }
    let groups = replayed.groups();
    for flip in Flip::ALL {
        let count = replayed.flips.of(flip);
        if count == 0 {
            continue;
        }
        let _ = writeln!(page, "\n{}: {}", flip.as_str(), thousands(count));
        let mut findings = all.capped();
        for (who, group) in groups.iter().filter(|(who, _)| who.flip == flip) {
            let service = who.route.split(':').next().unwrap_or_default();
            let mut text = String::new();
            show_group(&mut text, who, group);
            findings.add(service, &text);
        }
        page.push_str(&findings.end());
        let ungrouped = replayed.ungrouped.of(flip);
        if ungrouped > 0 {
            let ungrouped = thousands(ungrouped);
            let _ = writeln!(page, "{ungrouped} more flips are in no group: there are too many");
        }
    }
    page
}

fn show_group(page: &mut String, who: &Who, group: &Group) {
    let _ = writeln!(page, "{:>9}  {who}", thousands(group.count));
    let names = |ids: &std::collections::BTreeSet<String>| ids.iter().cloned().collect::<Vec<_>>().join(", ");
    let outcomes: Vec<String> = group
        .outcomes
        .iter()
        .map(|(outcome, count)| {
            if group.outcomes.len() > 1 {
                format!("{outcome} ({})", thousands(*count))
            } else {
                (*outcome).to_owned()
            }
        })
        .collect();
    let mut parts = vec![format!("now {}", outcomes.join(" and "))];
    if !group.now.is_empty() {
        parts.push(format!("by {}", names(&group.now)));
    }
    if !group.before.is_empty() {
        let before = match who.flip {
            Flip::AllowedToDenied => "was permitted by",
            Flip::DeniedToAllowed => "was forbidden by",
        };
        parts.push(format!("{before} {}", names(&group.before)));
    }
    if !group.examples.is_empty() {
        let examples: Vec<_> = group.examples.iter().map(|(_, id)| id.to_string()).collect();
        parts.push(format!("e.g. {}", examples.join(" ")));
    }
    let _ = writeln!(page, "           {}", parts.join("; "));
}

/// The replay for scripts.
pub(crate) fn as_json(replayed: &Replayed, comparison: &Comparison<'_>, since: SystemTime) -> Value {
    let compared_with = match comparison.before {
        Baseline::Recorded => "recorded",
        Baseline::Set(set) => set.revision(),
    };
    let groups: Vec<Value> = replayed
        .groups()
        .into_iter()
        .map(|(who, group)| {
            json!({
                "flip": who.flip, "principal": who.principal, "route": who.route, "count": group.count,
                "outcomes": group.outcomes, "before": group.before, "now": group.now,
                "examples": group.examples.iter().map(|(_, id)| id.to_string()).collect::<Vec<_>>(),
            })
        })
        .collect();
    json!({
        "policy_revision": comparison.after.revision(), "compared_with": compared_with, "since": humantime::format_rfc3339_seconds(since).to_string(),
        "records": replayed.records, "same": replayed.same, "other_denial": replayed.other_denial,
        "by_grant": replayed.by_grant, "unasked": replayed.unasked, "not_replayable": replayed.not_replayable,
        "elsewhere": replayed.elsewhere, "damaged": replayed.damaged, "unknown": replayed.unknown, "unread": replayed.unread,
        "replayed": replayed.replayed(), "flips": replayed.flips.total(),
        "denied_to_allowed": replayed.flips.denied_to_allowed, "allowed_to_denied": replayed.flips.allowed_to_denied,
        "ungrouped": replayed.ungrouped.total(), "groups": groups,
    })
}
