//! What a publication would change: the requests of the log, decided by what is in force and by the candidate, and what of it
//! nobody has accepted.

use std::path::Path;
use std::time::{Duration, SystemTime};

use hoplite_author::gap::{Gap, gaps_of, unseen_services};
use hoplite_author::publication::{Accepted, Evidence, NotReplayed, Ready, Tested};
use hoplite_author::replay::{Comparison, Flip, Replayed, parts};
use hoplite_host::clock;
use hoplite_identity::TrustDomain;
use serde_json::json;

use super::in_force::InForce;
use super::steps::Steps;
use crate::command::MeshDir;
use crate::command::policy::{AuditArgs, Logs, replay};
use crate::replay::oldest;

/// The most groups that a refusal names for `--accept`, for each way an answer can flip.
const UNACCEPTED_SHOWN: usize = 10;
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
    /// Publish also if the replay has not seen everything, or nothing: no log, no decision in it, damage, unknown records, services without a log
    #[arg(long)]
    accept_unreplayed: bool,
    /// From when on logged requests are replayed
    #[arg(long, value_parser = crate::command::audit::moment, default_value = "7d")]
    since: SystemTime,
    #[command(flatten)]
    audit: AuditArgs,
}

/// Decides the logged requests by both sets, and says what flips. Nothing comes of it if that, or what was not seen, is not
/// accepted; a shadow changes no answer, so nothing has to be.
pub(crate) fn replayed<'a>(
    tested: Tested<'a>,
    in_force: &InForce,
    args: &EffectArgs,
    (mesh, trust_domain): (&MeshDir, &TrustDomain),
    is_shadow: bool,
    steps: &mut Steps,
) -> anyhow::Result<Option<Ready<'a>>> {
    let logs = args.audit.look(mesh)?;
    let comparison = Comparison {
        before: in_force.baseline(),
        after: tested.snapshot(),
        trust_domain: Some(trust_domain),
        examples: 3,
    };
    let replayed = replay::with_progress(&logs.found, args.since, &comparison);
    let gaps = gaps(&logs, &replayed, in_force, &comparison, args.since);
    steps.fact("replay", replay::as_json(&replayed, &comparison, args.since));
    steps.fact("gaps", gaps.iter().map(ToString::to_string).collect::<Vec<_>>());
    let thousands = replay::thousands;
    let flips = replayed.flips.total();
    let counted = format!(
        "{} of {} decisions replayed",
        thousands(replayed.replayed()),
        thousands(replayed.records)
    );
    if is_shadow {
        if flips > 0 {
            steps.show(&replay::page(&replayed, args.since))?;
        }
        for gap in &gaps {
            steps.show(&format!("not seen {gap}\n"))?;
        }
        let flips = thousands(flips);
        steps.done(
            "replay",
            &format!("{counted}, {flips} would flip; a shadow changes no answer"),
        )?;
        return Ok(Some(tested.shadow()));
    }
    let evidence = Evidence {
        replayed: &replayed,
        gaps: &gaps,
    };
    let accepted = Accepted {
        patterns: &args.accept,
        unreplayed: args.accept_unreplayed,
    };
    match tested.live(evidence, accepted) {
        Ok(ready) => {
            for gap in &gaps {
                steps.show(&format!("not seen {gap}: accepted\n"))?;
            }
            let what = match flips {
                0 => "none would flip".to_owned(),
                flips => format!("{} will flip, all accepted", thousands(flips)),
            };
            steps.done("replay", &format!("{counted}, {what}"))?;
            Ok(Some(ready))
        }
        Err(NotReplayed::Gaps(gaps)) => {
            steps.show(&replay::page(&replayed, args.since))?;
            let gaps: Vec<String> = gaps.iter().map(ToString::to_string).collect();
            let gaps = gaps.join("; ");
            let remedy = "--accept-unreplayed publishes all the same";
            steps.failed("replay", &format!("{counted}: {gaps}; {remedy}"))?;
            Ok(None)
        }
        Err(NotReplayed::Flips(unaccepted)) => {
            steps.show(&replay::page(&replayed, args.since))?;
            steps.failed("replay", &format!("{counted}, and answers would flip"))?;
            show_unaccepted(&unaccepted, steps)?;
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
fn show_unaccepted(unaccepted: &[(Flip, String)], steps: &mut Steps) -> anyhow::Result<()> {
    let patterns: Vec<&String> = unaccepted.iter().map(|(_, pattern)| pattern).collect();
    steps.fact("unaccepted", json!(patterns));
    steps.show("If that is meant, accept it:\n")?;
    for flip in Flip::ALL {
        let mut of_flip = unaccepted.iter().filter(|(other, _)| *other == flip);
        for (_, pattern) in of_flip.by_ref().take(UNACCEPTED_SHOWN) {
            steps.show(&format!("  --accept '{pattern}'\n"))?;
        }
        let more = of_flip.count();
        if more > 0 {
            let way = flip.as_str();
            steps.show(&format!("  and {more} more groups {way}; `*` stands for any text\n"))?;
        }
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
