//! `hoplite policy publish`: policies on their way to every proxy.

mod effects;
mod in_force;
mod local;
pub(crate) mod rollback;
mod sending;
mod steps;
mod wait;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use hoplite_author::publication::{Checked, NotTested, Tested};
use hoplite_decision::PolicyFiles;
use hoplite_host::clock;
use hoplite_policy::Source;

use self::effects::{EffectArgs, Ground};
use self::in_force::{InForce, TrustArgs, has_files, is_young};
use self::sending::{Meta, Office};
use self::steps::{Ended, Steps};
use self::wait::{Goal, WaitArgs};
use super::check::listed;
use super::key::KeyArgs;
use super::test::tables;
use super::{policy_files, test};
use crate::command::admin::ListArgs;
use crate::output::capped::folder;
use crate::output::count;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The directory of the policies
    directory: PathBuf,
    /// What changes, for those who read the history
    #[arg(long)]
    note: Option<String>,
    /// After how long the proxies call these policies stale
    #[arg(long, value_name = "TIME", default_value = "30d", value_parser = crate::output::moment::seconds)]
    expires: Duration,
    /// Only try them beside those in force; no answer changes
    #[arg(long)]
    shadow: bool,
    /// Publish also what is in force already, for a new end or with another signature
    #[arg(long)]
    renew: bool,
    /// After the CA was restored from a backup: give it a revision above this one, which proxies may have, also where nothing changed
    #[arg(long, value_name = "REVISION", default_value_t = 0, hide_default_value = true)]
    above: u64,
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
    let ended = published(args, &mut steps)?;
    steps.end(ended)
}

fn published(args: &Args, steps: &mut Steps) -> anyhow::Result<Ended> {
    let (ca, now) = (&args.list.ca, clock::now());
    let office = Office::open(ca, &args.key, steps)?;
    let PolicyFiles { sources, named } = policy_files(&args.directory)?;
    let named: Vec<String> = named.iter().map(ToString::to_string).collect();
    for named in &named {
        steps.show(&format!("beside   {named}\n"))?;
    }
    steps.fact("beside", named);
    let signers = args.trust.signers(&office.key, ca.mesh(), &office.trust_domain)?;
    let in_force = InForce::obtain(ca, &office.state, &signers, &office.trust_domain, now)?;
    in_force.show(steps)?;
    let Some(checked) = checked(&sources, args, steps)? else {
        return Ok(Ended::NotPublished);
    };
    let Some(tested) = tested(checked, args, steps)? else {
        return Ok(Ended::NotPublished);
    };
    let goal = |revision, digest: &str| {
        if args.shadow {
            Goal::Shadow(revision, digest.to_owned())
        } else {
            Goal::Live(revision)
        }
    };
    let digest = tested.snapshot().revision().to_owned();
    let tried = if args.shadow {
        office.shadow(&signers, now)
    } else {
        None
    };
    let same = match &tried {
        Some(shadow) => Some(shadow).filter(|shadow| has_files(shadow, &sources) && is_young(shadow, now)),
        None if args.shadow => None,
        None => in_force.unchanged(&sources, now),
    };
    if let Some(same) = same.filter(|same| !args.renew && same.manifest().revision > args.above) {
        let revision = office.unchanged(same, steps)?;
        return args.wait.follow(ca, &goal(revision, &digest), args.list.output, steps);
    }
    let proxies = args.wait.proxies(ca.mesh())?;
    let ground = Ground {
        in_force: &in_force,
        mesh: ca.mesh(),
        trust_domain: &office.trust_domain,
        proxies: &proxies,
    };
    let ready = if args.shadow {
        Some(effects::shadow(tested, ground, &args.effects, steps)?)
    } else {
        effects::live(tested, ground, &args.effects, steps)?
    };
    let Some(ready) = ready else {
        return Ok(Ended::NotPublished);
    };
    let meta = Meta {
        expires: args.expires,
        note: args.note.clone(),
        above: args.above,
    };
    let revision = office.send(ready, meta, steps)?;
    args.wait.follow(ca, &goal(revision, &digest), args.list.output, steps)
}

fn checked<'a>(sources: &'a [Source], args: &Args, steps: &mut Steps) -> anyhow::Result<Option<Checked<'a>>> {
    let directory = args.directory.display();
    match Checked::new(sources) {
        Ok(checked) => {
            let (policies, files) = (checked.snapshot().policy_ids().len(), sources.len());
            steps.done(
                "check",
                &format!(
                    "{} in {} {}",
                    count(policies as u64, "policy"),
                    count(files as u64, "file"),
                    if policies == 1 { "is good" } else { "are good" }
                ),
            )?;
            Ok(Some(checked))
        }
        Err(faults) => {
            let mut findings = args.effects.all.capped();
            for fault in &faults {
                findings.add(folder(&fault.file), &format!("{directory}/{}\n", fault.render()));
            }
            steps.show(&findings.end())?;
            steps.fact("faults", faults.iter().map(listed).collect::<Vec<_>>());
            steps.failed("check", &count(faults.len() as u64, "fault"))?;
            Ok(None)
        }
    }
}

fn tested<'a>(checked: Checked<'a>, args: &Args, steps: &mut Steps) -> anyhow::Result<Option<Tested<'a>>> {
    let tables = tables(&args.directory)?;
    match checked.test(&tables) {
        Ok((tested, report)) => {
            let (cases, tables) = (report.cases(), tables.len());
            steps.done(
                "test",
                &format!(
                    "{} in {} are good",
                    count(cases as u64, "case"),
                    count(tables as u64, "table")
                ),
            )?;
            Ok(Some(tested))
        }
        Err(NotTested::NoCase) => {
            let what = "there is no case to test; write one line per request into a file that ends in `.test`, like \
                        `spiffe://prod.acme/ns/web GET ledger /accounts/7 allow`";
            steps.failed("test", what)?;
            Ok(None)
        }
        Err(NotTested::Failed(report)) => {
            steps.show(&test::text(&report, args.effects.all))?;
            steps.fact("tests", test::as_json(&report));
            steps.failed("test", "cases came out otherwise")?;
            Ok(None)
        }
    }
}
