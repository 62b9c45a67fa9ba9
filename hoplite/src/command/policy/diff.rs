//! `hoplite policy diff`: what is different between two sets of policies, by what they mean.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::Context;
use hoplite_author::difference::{Difference, PolicySet};
use hoplite_author::replay::{Baseline, Comparison};
use serde_json::json;

use super::{AuditArgs, compile, published, replay};
use crate::command::reach::CaArgs;
use crate::output::capped::All;
use crate::output::{Output, print, print_json};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The old policies: a directory, a bundle's file, or the number of a revision that the CA keeps
    old: String,
    /// The new ones
    new: String,
    /// Also decide the requests of the log from then on by both, and say which answers differ: a length of time ago or a moment
    #[arg(long, value_parser = crate::output::moment::parse)]
    since: Option<SystemTime>,
    #[command(flatten)]
    audit: AuditArgs,
    #[command(flatten)]
    ca: CaArgs,
    /// The form of the answer
    #[arg(long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    all: All,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let (old, new) = (
        published::read(&args.old, &args.ca)?,
        published::read(&args.new, &args.ca)?,
    );
    let before = compile(&old).with_context(|| format!("the policies of `{}`", args.old))?;
    let after = compile(&new).with_context(|| format!("the policies of `{}`", args.new))?;
    let set = |snapshot, sources| PolicySet { snapshot, sources };
    let difference = Difference::of(set(&before, &old), set(&after, &new));
    let comparison = Comparison {
        before: Baseline::Set(&before),
        after: &after,
        trust_domain: None,
        examples: 3,
    };
    let replayed = match args.since {
        Some(since) => {
            let replayed = replay::with_progress(&args.audit.logs(args.ca.mesh())?, since, &comparison);
            replay::readable(&replayed)?;
            Some((since, replayed))
        }
        None => None,
    };
    if args.output == Output::Json {
        let replayed = replayed.as_ref();
        let replayed = replayed.map(|(since, replayed)| replay::as_json(replayed, &comparison, *since));
        print_json(&json!({
            "old": before.revision(), "new": after.revision(), "difference": difference.json(), "replay": replayed,
        }))?;
    } else {
        let mut findings = args.all.capped();
        for finding in difference.findings() {
            findings.add(&finding.owner, &finding.text);
        }
        let mut page = match difference.is_empty() {
            true => difference.page(),
            false => format!("{}{}\n", findings.end(), difference.counted()),
        };
        if let Some((since, replayed)) = &replayed {
            let _ = write!(
                page,
                "\nBy the old policies, and by the new ones:\n{}",
                replay::page(replayed, *since, args.all)
            );
        }
        print(&page)?;
    }
    Ok(if difference.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
