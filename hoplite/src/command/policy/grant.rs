//! `hoplite policy grant`: break-glass. Two people let one workload in for a few hours, loudly; a forbid still holds.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use clap::Subcommand;
use hoplite_host::files;
use hoplite_identity::{SpiffeId, TrustDomain};
use hoplite_policy::{GrantDraft, GrantScope};
use hoplite_wire::ca::{AddGrantRequest, Grant, ListGrantsRequest, RevokeGrantRequest};
use serde_json::{Value, json};

use super::key::KeyArgs;
use super::publish::rfc3339;
use crate::command::admin::CaArgs;
use crate::output::{Output, Table, print, print_json};

#[derive(Debug, Subcommand)]
pub(crate) enum GrantCommand {
    /// Write a grant with the first of its two signatures
    #[command(
        after_help = "Example:\n  hoplite policy grant create INC-4711.grant --ticket INC-4711 --reason 'ledger is stuck' \\\n    --who spiffe://demo.hoplite/visitor --service ledger --for 1h --key alice.pem"
    )]
    Create(CreateArgs),
    /// Read a grant, add the second signature, and put it in force
    #[command(after_help = "Example:\n  hoplite policy grant approve INC-4711.grant --key bob.pem")]
    Approve(ApproveArgs),
    /// List the grants that are not over
    #[command(after_help = "Example:\n  hoplite policy grant list")]
    List(ListArgs),
    /// End a grant before its time
    #[command(after_help = "Example:\n  hoplite policy grant revoke inc-4711")]
    Revoke(RevokeArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct CreateArgs {
    /// The file to write; the other person needs it
    file: PathBuf,
    /// Where the emergency is written down
    #[arg(long)]
    ticket: String,
    /// Why, in one line
    #[arg(long)]
    reason: String,
    /// Who gets in: a SPIFFE ID, or a prefix that ends in `/`
    #[arg(long)]
    who: String,
    /// Where: a service, with all its routes
    #[arg(long)]
    service: String,
    /// For how long, at most 8h
    #[arg(long = "for", value_name = "SPAN", value_parser = humantime::parse_duration)]
    span: Duration,
    #[command(flatten)]
    key: KeyArgs,
    #[command(flatten)]
    ca: CaArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ApproveArgs {
    /// What `create` wrote
    file: PathBuf,
    #[command(flatten)]
    key: KeyArgs,
    #[command(flatten)]
    list: ListArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    ca: CaArgs,
    /// The form of the answer
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Debug, clap::Args)]
pub(crate) struct RevokeArgs {
    /// The grant's id
    id: String,
    #[command(flatten)]
    ca: CaArgs,
}

pub(crate) fn run(command: &GrantCommand) -> anyhow::Result<ExitCode> {
    match command {
        GrantCommand::Create(args) => create(args),
        GrantCommand::Approve(args) => approve(args),
        GrantCommand::List(args) => list(args),
        GrantCommand::Revoke(args) => revoke(args),
    }
}

fn create(args: &CreateArgs) -> anyhow::Result<ExitCode> {
    let key = args.key.read(args.ca.dir())?;
    let (trust_domain, principal) = scope(&args.who)?;
    let now = SystemTime::now();
    let id = args.ticket.to_ascii_lowercase();
    let until = now + args.span;
    let draft = GrantDraft::new(
        &trust_domain,
        &id,
        &args.ticket,
        &args.reason,
        principal,
        &args.service,
        (now, until),
        now,
    )?;
    if args.file.exists() {
        bail!("`{}` is there already; choose another name", args.file.display());
    }
    files::write_private(&args.file, &draft.sign(&key)?)?;
    let (file, signer) = (args.file.display(), key.signer().name());
    print(&format!(
        "signed by {signer}; it gives nothing yet. The second person reads and signs it:\n  hoplite policy grant approve {file} --key THEIR-KEY\n"
    ))?;
    Ok(ExitCode::SUCCESS)
}

fn scope(who: &str) -> anyhow::Result<(TrustDomain, GrantScope)> {
    match who.strip_suffix('/') {
        None => {
            let id = SpiffeId::parse(who).with_context(|| format!("`{who}` is no SPIFFE ID"))?;
            Ok((id.trust_domain().clone(), GrantScope::Workload(who.to_owned())))
        }
        Some(prefix) => {
            let id = SpiffeId::parse(prefix).with_context(|| format!("`{who}` is no prefix of SPIFFE IDs"))?;
            let path = prefix.trim_start_matches("spiffe://").to_owned();
            Ok((id.trust_domain().clone(), GrantScope::Path(path)))
        }
    }
}

fn approve(args: &ApproveArgs) -> anyhow::Result<ExitCode> {
    let bytes = files::read_private(&args.file)?;
    let (draft, signed_by) = GrantDraft::danger_read_unverified(&bytes)?;
    let who = match &draft.principal {
        GrantScope::Workload(id) => id.clone(),
        GrantScope::Path(path) => format!("everything below {path}"),
    };
    let until = rfc3339(i64::try_from(draft.until).unwrap_or(i64::MAX));
    // Before the key is used: this is what the second person puts their name under.
    eprintln!(
        "BREAK-GLASS {}: {who} may call every route of `{}` until {until}. Ticket {}: {}. Signed by {}.",
        draft.id,
        draft.service,
        draft.ticket,
        draft.reason,
        signed_by.join(", ")
    );
    let key = args.key.read(args.list.ca.dir())?;
    let grant = GrantDraft::sign_too(&bytes, &key)?;
    let grant = args
        .list
        .ca
        .call(async |mut ca| Ok(ca.add_grant(AddGrantRequest { grant }).await?.into_inner()))?;
    match args.list.output {
        Output::Json => print_json(&listed(&grant))?,
        Output::Table => print(&format!(
            "in force until {until}; end it with `hoplite policy grant revoke {}`\n",
            grant.id
        ))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn list(args: &ListArgs) -> anyhow::Result<ExitCode> {
    let grants = args
        .ca
        .call(async |mut ca| Ok(ca.list_grants(ListGrantsRequest {}).await?.into_inner()))?;
    if args.output == Output::Json {
        print_json(&grants.grants.iter().map(listed).collect::<Vec<_>>())?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(&["ID", "WHO", "SERVICE", "UNTIL", "SIGNED BY", "STATE", "REASON"]);
    for grant in &grants.grants {
        table.row([
            grant.id.clone(),
            grant.principal.clone(),
            grant.service.clone(),
            rfc3339(grant.until_unix),
            grant.signed_by.join(", "),
            if grant.revoked { "revoked" } else { "in force" }.to_owned(),
            grant.reason.clone(),
        ]);
    }
    table.print()?;
    Ok(ExitCode::SUCCESS)
}

fn revoke(args: &RevokeArgs) -> anyhow::Result<ExitCode> {
    let request = RevokeGrantRequest { id: args.id.clone() };
    args.ca
        .call(async |mut ca| Ok(ca.revoke_grant(request).await?.into_inner()))?;
    print(&format!("the grant `{}` is over\n", args.id))?;
    Ok(ExitCode::SUCCESS)
}

fn listed(grant: &Grant) -> Value {
    json!({
        "id": grant.id,
        "ticket": grant.ticket,
        "reason": grant.reason,
        "who": grant.principal,
        "service": grant.service,
        "not_before": rfc3339(grant.not_before_unix),
        "until": rfc3339(grant.until_unix),
        "signed_by": grant.signed_by,
        "revoked": grant.revoked,
    })
}
