//! `hoplite policy history` and `clear-shadow`: what was published, and the end of a trial.

use std::process::ExitCode;

use hoplite_wire::ca::{ClearShadowRequest, ListPoliciesRequest, PublishedPolicy};
use serde_json::{Value, json};

use crate::command::admin::{ListArgs, ListingArgs, rfc3339};
use crate::command::reach::CaArgs;
use crate::output::{Column, Listing, Output, plain, print, print_json, verdict};

/// What is asked for at once; the CA gives no more.
const PAGE: u32 = 1_000;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    #[command(flatten)]
    list: ListingArgs,
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

/// What people see of a published bundle.
const COLUMNS: [Column; 7] = [
    Column::new("REVISION", "revision"),
    Column::new("STAGE", "stage").coloured(verdict),
    Column::new("POLICIES", "policies"),
    Column::new("SIGNED BY", "signed_by"),
    Column::moment("PUBLISHED", "published"),
    Column::moment("EXPIRES", "expires"),
    Column::made("NOTE", "note", |policy| {
        if policy["lost"] == true {
            "lost: the store no longer has its manifest".to_owned()
        } else {
            plain(&policy["note"])
        }
    }),
];

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let history = before(&args.list.ca, 0, Some(args.limit))?;
    let older = match history.last() {
        Some(last) => !before(&args.list.ca, last.revision, Some(1))?.is_empty(),
        None => false,
    };
    if older {
        let shown = history.len();
        hoplite_host::tell!("only the newest {shown} are shown; --limit N shows more");
    }
    let mut listing = Listing::new(&COLUMNS).like(&listed(&PublishedPolicy::default()));
    for policy in &history {
        listing.row(listed(policy));
    }
    listing.print(args.list.form)?;
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
