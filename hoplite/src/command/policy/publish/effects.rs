//! What a publication would change: by what the policies mean, and by the requests of the log, decided by what is in force and
//! by the candidate; and what of it nobody has accepted.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use hoplite_author::difference::{Difference, PolicySet};
use hoplite_author::gap::{Gap, gaps_of, unseen_services};
use hoplite_author::publication::{Accepted, Compared, Evidence, NotAccepted, NotReplayed, Ready, Tested};
use hoplite_author::replay::{Comparison, Flip, Replayed, parts};
use hoplite_host::clock;
use hoplite_identity::TrustDomain;
use hoplite_policy::Snapshot;
use serde_json::json;

use super::in_force::InForce;
use super::local::forbids_beside;
use super::steps::Steps;
use crate::command::MeshDir;
use crate::command::policy::{AuditArgs, Logs, replay};
use crate::output::capped::All;
use crate::output::thousands;
use crate::replay::oldest;

/// How far back a replay goes unless told otherwise. Who looks at less says so.
const USUAL_WINDOW: Duration = Duration::from_secs(7 * 24 * 3600);
/// What passes between reading the command line and this.
const WINDOW_SLACK: Duration = Duration::from_secs(3600);

/// What may change, and where it is looked for.
#[derive(Debug, clap::Args)]
pub(crate) struct EffectArgs {
    /// Answers that may flip: `allow PRINCIPAL × ROUTE`, or `deny` for what is allowed in force; `*` stands for any text; may be repeated
    #[arg(long, value_name = "PATTERN", value_parser = pattern)]
    accept: Vec<String>,
    /// A forbid, by its `@id`, that may stop less than it does in force: it is gone, turned or changed; `*` stands for any text; may be repeated
    #[arg(long, value_name = "ID")]
    accept_removed: Vec<String>,
    /// A module whose owner may speak of more than in force; `modules.toml` where that is gone; `*` stands for any text; may be repeated
    #[arg(long, value_name = "MODULE")]
    accept_module: Vec<String>,
    /// Publish also if the replay has not seen everything, or nothing: no log, no decision in it, damage, unknown records, services without a log
    #[arg(long)]
    accept_unreplayed: bool,
    /// From when on logged requests are replayed
    #[arg(long, value_parser = crate::output::moment::parse, default_value = "7d")]
    since: SystemTime,
    #[command(flatten)]
    audit: AuditArgs,
    #[command(flatten)]
    pub(crate) all: All,
}

/// What a candidate is compared with, and by which logs.
#[derive(Clone, Copy)]
pub(crate) struct Ground<'a> {
    pub(crate) in_force: &'a InForce,
    pub(crate) mesh: &'a MeshDir,
    pub(crate) trust_domain: &'a TrustDomain,
    /// The proxies that are known here.
    pub(crate) proxies: &'a [PathBuf],
}

/// A replay with all that stands beside it.
struct Replay {
    replayed: Replayed,
    gaps: Vec<Gap>,
    /// `3 of 4 decisions replayed`.
    counted: String,
}

/// Shows what is different and what would flip, for a candidate that is to be in force. Nothing comes of it if a part of that is
/// not accepted.
pub(crate) fn live<'a>(
    tested: Tested<'a>,
    ground: Ground<'_>,
    args: &EffectArgs,
    steps: &mut Steps,
) -> anyhow::Result<Option<Ready<'a>>> {
    let difference = difference(&tested, ground, args.all, steps)?;
    let replay = replay_of(&tested, ground, args, steps)?;
    match tested.compared(&difference, &args.accept_removed, &args.accept_module) {
        Ok(compared) => {
            steps.done("compare", &difference.counted())?;
            replayed(compared, &replay, args, steps)
        }
        Err(refused) => {
            refuse(&difference, &refused, args.all, steps)?;
            Ok(None)
        }
    }
}

/// Shows the same of a candidate that is only tried beside what is in force: it changes no answer, so nothing has to be accepted.
pub(crate) fn shadow<'a>(
    tested: Tested<'a>,
    ground: Ground<'_>,
    args: &EffectArgs,
    steps: &mut Steps,
) -> anyhow::Result<Ready<'a>> {
    let difference = difference(&tested, ground, args.all, steps)?;
    steps.done("compare", &difference.counted())?;
    let Replay {
        replayed,
        gaps,
        counted,
    } = replay_of(&tested, ground, args, steps)?;
    if replayed.flips.total() > 0 {
        steps.show(&replay::page(&replayed, args.since, args.all))?;
    }
    for gap in &gaps {
        steps.show(&format!("not seen {gap}\n"))?;
    }
    let flips = thousands(replayed.flips.total());
    steps.done(
        "replay",
        &format!("{counted}, {flips} would flip; a shadow changes no answer"),
    )?;
    Ok(tested.shadow())
}

/// What is different between what is in force and the candidate, shown. Before the first revision all of it is new.
fn difference(tested: &Tested<'_>, ground: Ground<'_>, all: All, steps: &mut Steps) -> anyhow::Result<Difference> {
    let in_force = ground.in_force;
    let nothing = Snapshot::deny_all("nothing was published yet");
    let before = PolicySet {
        snapshot: in_force.snapshot().unwrap_or(&nothing),
        sources: in_force.sources(),
    };
    let after = PolicySet {
        snapshot: tested.snapshot(),
        sources: tested.sources(),
    };
    let mut difference = Difference::of(before, after);
    if matches!(in_force, InForce::Nothing) {
        difference = difference.without(forbids_beside(ground.proxies, tested.snapshot(), steps)?);
    }
    steps.fact("difference", difference.json());
    if in_force.snapshot().is_some() && !difference.is_empty() {
        let mut findings = all.capped();
        for finding in difference.findings() {
            findings.add(&finding.owner, &finding.text);
        }
        steps.show(&findings.end())?;
    }
    Ok(difference)
}

/// What of a difference nobody has accepted, and what to say to accept it.
fn refuse(difference: &Difference, refused: &NotAccepted, all: All, steps: &mut Steps) -> anyhow::Result<()> {
    let (forbids, modules) = (&refused.forbids, &refused.modules);
    let what = match (forbids.len(), modules.len()) {
        (_, 0) => "a forbid may stop less than it does in force",
        (0, _) => "an owner may speak of more than in force",
        _ => "a forbid may stop less than it does in force, and an owner may speak of more",
    };
    steps.failed("compare", &format!("{}: {what}", difference.counted()))?;
    let ids = forbids.iter().map(|lost| lost.id.as_str());
    steps.fact("unaccepted_removed", ids.collect::<Vec<_>>());
    let names = modules.iter().map(|module| module.name.as_str());
    steps.fact("unaccepted_modules", names.collect::<Vec<_>>());
    steps.show("If that is meant, accept it:\n")?;
    let mut findings = all.capped();
    for lost in forbids {
        let owner = lost.id.split('/').next().unwrap_or_default();
        findings.add(owner, &format!("  --accept-removed '{}'   {}\n", lost.id, lost.why));
    }
    for module in modules {
        findings.add(&module.name, &format!("  --accept-module '{}'\n", module.name));
    }
    steps.show(&findings.end())
}

/// Decides the logged requests by both sets.
fn replay_of(tested: &Tested<'_>, ground: Ground<'_>, args: &EffectArgs, steps: &mut Steps) -> anyhow::Result<Replay> {
    let logs = args.audit.look(ground.mesh)?;
    let comparison = Comparison {
        before: ground.in_force.baseline(),
        after: tested.snapshot(),
        trust_domain: Some(ground.trust_domain),
        examples: 3,
    };
    let replayed = replay::with_progress(&logs.found, args.since, &comparison);
    let gaps = gaps(&logs, &replayed, ground.in_force, &comparison, args.since);
    steps.fact("replay", replay::as_json(&replayed, &comparison, args.since));
    steps.fact("gaps", gaps.iter().map(ToString::to_string).collect::<Vec<_>>());
    let counted = format!(
        "{} of {} decisions replayed",
        thousands(replayed.replayed()),
        thousands(replayed.records)
    );
    Ok(Replay {
        replayed,
        gaps,
        counted,
    })
}

/// Says what flips. Nothing comes of it if that, or what was not seen, is not accepted.
fn replayed<'a>(
    compared: Compared<'a>,
    replay: &Replay,
    args: &EffectArgs,
    steps: &mut Steps,
) -> anyhow::Result<Option<Ready<'a>>> {
    let Replay {
        replayed,
        gaps,
        counted,
    } = replay;
    let accepted = Accepted {
        patterns: &args.accept,
        unreplayed: args.accept_unreplayed,
    };
    match compared.live(Evidence { replayed, gaps }, accepted) {
        Ok(ready) => {
            for gap in gaps {
                steps.show(&format!("not seen {gap}: accepted\n"))?;
            }
            let what = match replayed.flips.total() {
                0 => "none would flip".to_owned(),
                flips => format!("{} will flip, all accepted", thousands(flips)),
            };
            steps.done("replay", &format!("{counted}, {what}"))?;
            Ok(Some(ready))
        }
        Err(NotReplayed::Gaps(gaps)) => {
            steps.show(&replay::page(replayed, args.since, args.all))?;
            let gaps: Vec<String> = gaps.iter().map(ToString::to_string).collect();
            let gaps = gaps.join("; ");
            let remedy = "--accept-unreplayed publishes all the same";
            steps.failed("replay", &format!("{counted}: {gaps}; {remedy}"))?;
            Ok(None)
        }
        Err(NotReplayed::Flips(unaccepted)) => {
            steps.show(&replay::page(replayed, args.since, args.all))?;
            steps.failed("replay", &format!("{counted}, and answers would flip"))?;
            show_unaccepted(&unaccepted, args.all, steps)?;
            Ok(None)
        }
    }
}

/// All that this replay has not seen.
fn gaps(
    logs: &Logs,
    replayed: &Replayed,
    in_force: &InForce,
    comparison: &Comparison<'_>,
    since: SystemTime,
) -> Vec<Gap> {
    let mut gaps: Vec<Gap> = in_force.gap().into_iter().collect();
    if logs.found.is_empty() {
        gaps.push(Gap::NoLog(logs.missing.clone()));
        return gaps;
    }
    if !logs.missing.is_empty() {
        gaps.push(Gap::Unread(logs.missing.clone()));
    }
    gaps.extend(gaps_of(replayed));
    if replayed.records == 0 && gaps.is_empty() {
        let logs = logs.found.iter().map(|log| format!("`{}`", log.display())).collect();
        gaps.push(Gap::NoDecision { since, logs });
        return gaps;
    }
    let is_narrow = clock::now()
        .duration_since(since)
        .is_ok_and(|window| window + WINDOW_SLACK < USUAL_WINDOW);
    if is_narrow
        && let Some(begins) = oldest(&logs.found)
        && begins < since
    {
        gaps.push(Gap::Window { since, begins });
    }
    let sets: Vec<_> = in_force.snapshot().into_iter().chain([comparison.after]).collect();
    // A log without a decision is named by its directory.
    let is_of = |log: &Path, service: &str| log.file_name().is_some_and(|name| name == service);
    let has_log = |service: &str| logs.found.iter().any(|log| is_of(log, service));
    gaps.extend(unseen_services(&sets, replayed, has_log));
    gaps
}

/// What to say to accept the groups of flips that nobody accepted.
fn show_unaccepted(unaccepted: &[(Flip, String)], all: All, steps: &mut Steps) -> anyhow::Result<()> {
    let patterns: Vec<&String> = unaccepted.iter().map(|(_, pattern)| pattern).collect();
    steps.fact("unaccepted", json!(patterns));
    steps.show("If that is meant, accept it; `*` stands for any text:\n")?;
    for flip in Flip::ALL {
        let mut findings = all.capped();
        for (_, pattern) in unaccepted.iter().filter(|(other, _)| *other == flip) {
            let service = pattern.rsplit("× ").next().and_then(|route| route.split(':').next());
            findings.add(service.unwrap_or_default(), &format!("  --accept '{pattern}'\n"));
        }
        steps.show(&findings.end())?;
    }
    Ok(())
}

/// A text that is no pattern of decisions.
#[derive(Debug, thiserror::Error)]
#[error(
    "write `allow PRINCIPAL × ROUTE` for what becomes allowed, `deny …` for what no longer is, for example `allow \
     spiffe://prod.acme/ns/web/* × ledger:*`"
)]
struct NoPattern;

fn pattern(text: &str) -> Result<String, NoPattern> {
    parts(text).map(|_| text.to_owned()).ok_or(NoPattern)
}
