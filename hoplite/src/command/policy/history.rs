//! `hoplite policy history` and `clear-shadow`: what was published, and the end of a trial.

use std::process::ExitCode;

use hoplite_wire::ca::{ClearShadowRequest, ListPoliciesRequest, PublishedPolicy};
use serde_json::{Value, json};

use crate::command::admin::{CaArgs, rfc3339};
use crate::output::{Output, Table, print, print_json};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    ca: CaArgs,
    /// The form of the answer
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let history = args
        .ca
        .call(async |mut ca| Ok(ca.list_policies(ListPoliciesRequest::default()).await?.into_inner()))?;
    if args.output == Output::Json {
        let all: Vec<Value> = history.policies.iter().map(listed).collect();
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
    for policy in &history.policies {
        table.row([
            policy.revision.to_string(),
            policy.stage.clone(),
            policy.policies.to_string(),
            policy.signed_by.join(", "),
            rfc3339(policy.published_at_unix),
            rfc3339(policy.expires_at_unix),
            policy.note.clone(),
        ]);
    }
    table.print()?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn clear_shadow(args: &Args) -> anyhow::Result<ExitCode> {
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
    })
}
