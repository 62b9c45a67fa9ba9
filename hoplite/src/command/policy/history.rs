//! `hoplite policy history` and `clear-shadow`: what was published, and the end of a trial.

use std::process::ExitCode;

use hoplite_wire::ca::{ClearShadowRequest, ListPoliciesRequest, PublishedPolicy};
use serde_json::{Value, json};

use crate::command::admin::{CaArgs, ListArgs, rfc3339};
use crate::output::{Output, Table, print, print_json};

/// What is asked for at once; the CA gives no more.
const PAGE: u32 = 1_000;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    #[command(flatten)]
    list: ListArgs,
}

/// What was published below a revision (0: all), newest first, and no more than so many.
pub(crate) fn before(ca: &CaArgs, revision: u64, limit: Option<u32>) -> anyhow::Result<Vec<PublishedPolicy>> {
    let mut all: Vec<PublishedPolicy> = Vec::new();
    loop {
        let left = limit.map_or(PAGE, |limit| {
            limit.saturating_sub(u32::try_from(all.len()).unwrap_or(u32::MAX))
        });
        let request = ListPoliciesRequest {
            limit: left.min(PAGE),
            before_revision: all.last().map_or(revision, |policy| policy.revision),
        };
        if request.limit == 0 {
            return Ok(all);
        }
        let page = ca.call(async |mut ca| Ok(ca.list_policies(request).await?.into_inner().policies))?;
        if page.is_empty() {
            return Ok(all);
        }
        all.extend(page);
    }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let history = before(&args.list.ca, 0, Some(args.limit))?;
    let older = match history.last() {
        Some(last) => !before(&args.list.ca, last.revision, Some(1))?.is_empty(),
        None => false,
    };
    if older {
        let shown = history.len();
        eprintln!("only the newest {shown} are shown; --limit N shows more");
    }
    if args.list.output == Output::Json {
        let all: Vec<Value> = history.iter().map(listed).collect();
        print_json(&all)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(&[
        "REVISION",
        "STAGE",
        "POLICIES",
        "SIGNED BY",
        "PUBLISHED",
        "EXPIRES",
        "NOTE",
    ]);
    for policy in &history {
        table.row([
            policy.revision.to_string(),
            policy.stage.clone(),
            policy.policies.to_string(),
            policy.signed_by.join(", "),
            rfc3339(policy.published_at_unix),
            rfc3339(policy.expires_at_unix),
            if policy.lost {
                "lost: the store no longer has its manifest".to_owned()
            } else {
                policy.note.clone()
            },
        ]);
    }
    table.print()?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn clear_shadow(args: &ListArgs) -> anyhow::Result<ExitCode> {
    let answer = args
        .ca
        .call(async |mut ca| Ok(ca.clear_shadow(ClearShadowRequest {}).await?.into_inner()))?;
    match (args.output, answer.cleared) {
        (Output::Json, cleared) => print_json(&json!({"cleared": cleared}))?,
        (Output::Table, true) => print("the shadow is no longer tried\n")?,
        (Output::Table, false) => print("there was no shadow\n")?,
    }
    Ok(ExitCode::SUCCESS)
}

fn listed(policy: &PublishedPolicy) -> Value {
    json!({
        "revision": policy.revision,
        "stage": policy.stage,
        "policies": policy.policies,
        "files": policy.files,
        "bytes": policy.bytes,
        "signed_by": policy.signed_by,
        "created": rfc3339(policy.created_at_unix),
        "published": rfc3339(policy.published_at_unix),
        "expires": rfc3339(policy.expires_at_unix),
        "note": policy.note,
        "kept": policy.kept,
        "lost": policy.lost,
    })
}
