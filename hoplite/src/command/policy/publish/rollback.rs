//! `hoplite policy rollback`: an earlier revision's content in force again, as a new revision.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use hoplite_author::publication::Tested;
use hoplite_host::clock;
use hoplite_wire::ca::{PublishedPolicy, ShowPolicyResponse};

use super::effects::{self, EffectArgs, Ground};
use super::in_force::{InForce, TrustArgs, verified};
use super::sending::{Meta, Office};
use super::steps::{Ended, Steps};
use super::wait::{Goal, WaitArgs};
use crate::command::admin::ListArgs;
use crate::command::policy::key::KeyArgs;
use crate::command::policy::published::content;
use crate::command::policy::{history, uncompiled};
use crate::command::reach::CaArgs;
use crate::output::count;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The revision whose content comes back [default: the live one before the content in force was first published]
    revision: Option<u64>,
    /// Why, for those who read the history
    #[arg(long)]
    note: Option<String>,
    /// After how long the proxies call these policies stale
    #[arg(long, value_name = "TIME", default_value = "30d", value_parser = crate::output::moment::seconds)]
    expires: Duration,
    #[command(flatten)]
    wait: WaitArgs,
    #[command(flatten)]
    effects: EffectArgs,
    #[command(flatten)]
    trust: TrustArgs,
    #[command(flatten)]
    key: KeyArgs,
    #[command(flatten)]
    list: ListArgs,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut steps = Steps::new(args.list.output);
    let ended = rolled_back(args, &mut steps)?;
    steps.end(ended)
}

fn rolled_back(args: &Args, steps: &mut Steps) -> anyhow::Result<Ended> {
    let (ca, now) = (&args.list.ca, clock::now());
    let office = Office::open(ca, &args.key, steps)?;
    let revision = match args.revision {
        Some(revision) => revision,
        None => before(ca, &office.state)?,
    };
    let signers = args.trust.signers(&office.key, ca.mesh(), &office.trust_domain)?;
    let bundle = verified(ca, revision, &signers, &office.trust_domain, now)?;
    let in_force = InForce::obtain(ca, &office.state, &signers, &office.trust_domain, now)?;
    in_force.show(steps)?;
    let tested = Tested::again(&bundle).map_err(|faults| uncompiled(&faults))?;
    steps.fact("content_of", revision);
    steps.done(
        "check",
        &format!(
            "revision {revision}, signed by {}: {} are good",
            bundle.signed_by().join(", "),
            count(tested.snapshot().policy_ids().len() as u64, "policy")
        ),
    )?;
    if let Some(same) = in_force.unchanged(bundle.sources(), now) {
        let revision = office.unchanged(same, steps)?;
        return args.wait.follow(ca, &Goal::Live(revision), args.list.output, steps);
    }
    let proxies = args.wait.proxies(ca.mesh())?;
    let ground = Ground {
        in_force: &in_force,
        mesh: ca.mesh(),
        trust_domain: &office.trust_domain,
        proxies: &proxies,
    };
    let Some(ready) = effects::live(tested, ground, &args.effects, steps)? else {
        return Ok(Ended::NotPublished);
    };
    let note = args.note.clone();
    let meta = Meta {
        expires: args.expires,
        note: Some(note.unwrap_or_else(|| format!("back to revision {revision}"))),
        above: 0,
    };
    let revision = office.send(ready, meta, steps)?;
    args.wait.follow(ca, &Goal::Live(revision), args.list.output, steps)
}

/// The last live revision before the content in force was first published. What was published since then has been taken back
/// already: a second rollback in a row must not bring it in force again. Only which revision is meant hangs on what the CA says
/// here: that one is verified before it is signed.
fn before(ca: &CaArgs, state: &ShowPolicyResponse) -> anyhow::Result<u64> {
    let live = state
        .live
        .as_ref()
        .context("nothing was published yet, so there is nothing to go back from")?;
    let mut earlier = history::before(ca, live.revision, None)?;
    earlier.retain(|policy| policy.stage == "live");
    let in_force = content(ca, live.revision)?;
    let mut target = earlier.first();
    let mut same = None;
    for (at, policy) in earlier.iter().enumerate() {
        if may_equal(policy, live) && content(ca, policy.revision)? == in_force {
            same = Some(policy.revision);
            target = earlier.get(at + 1);
        }
    }
    let said = same.map(|same| format!(", whose content is that of revision {same}"));
    let target = target.with_context(|| {
        format!(
            "no live revision lies before the one in force{}; say which one to go to",
            said.unwrap_or_default()
        )
    })?;
    Ok(target.revision)
}

/// Whether it is worth comparing what two revisions hold. Of one that is not kept nobody can know, nor go back to it.
fn may_equal(one: &PublishedPolicy, other: &PublishedPolicy) -> bool {
    one.kept && (one.policies, one.files) == (other.policies, other.files)
}
