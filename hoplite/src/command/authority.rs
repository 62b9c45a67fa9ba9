//! `hoplite authority list|prepare|activate|taint|revoke`: who signs for the trust domain, and who comes after it.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use hoplite_wire::ca::{
    Authority, AuthorityRequest, ListAuthoritiesRequest, PrepareAuthorityRequest, WhoAmIRequest, WhoAmIResponse,
};
use serde_json::{Value, json};
use tonic::Response;

use crate::command::admin::{ListArgs, ListingArgs, rfc3339};
use crate::command::reach::CaArgs;
use crate::output::{Column, Listing, Output, print, print_json, verdict};

/// How much of a fingerprint people read.
const SHORT: usize = 12;

#[derive(Debug, Subcommand)]
pub(crate) enum AuthorityCommand {
    /// List the authorities: the one that signs, its successor, and those that signed before
    #[command(
        after_help = "Examples:\n  hoplite authority list\n  hoplite authority list --output json\n  hoplite authority list --jwt\n\n\
        prepared: it is in the trust bundle and signs nothing yet. active: it signs. old: it signs no more, and what it signed is good. \
        tainted: what it signed is good and is replaced at once. revoked: nothing trusts it."
    )]
    List(AuthorityListArgs),
    /// Make one more authority, which is in the trust bundle from now on and signs later
    #[command(
        after_help = "Examples:\n  hoplite authority prepare\n  hoplite authority prepare --jwt\n\n\
        The CA does this by itself at half of the life of the authority that signs, unless `authority_rotates = false`."
    )]
    Prepare(PrepareArgs),
    /// Have the prepared authority sign; waits until agents know it, half a minute at most
    #[command(
        after_help = "Examples:\n  hoplite authority activate\n  hoplite authority activate 5f0c91\n\n\
        The CA does this by itself with a sixth of the life of the authority that signs left, unless `authority_rotates = false`."
    )]
    Activate(ActivateArgs),
    /// Have everything replaced that an authority signed, as after a theft of its key; it stays in the trust bundle until it is revoked
    #[command(after_help = "Example:\n  hoplite authority taint 5f0c91\n\n\
        If it is the one that signs, a prepared one signs in its place first, or one that is made now. Agents make new keys for \
        themselves and their workloads at once; other operators than you are invited anew.")]
    Taint(OneArgs),
    /// Take a prepared or tainted authority out of the trust bundle for good: what it signed counts for nothing
    #[command(
        after_help = "Examples:\n  hoplite authority revoke 5f0c91\n  hoplite authority revoke 5f0c91 --force\n\n\
        It is refused while agents, or SVIDs of workloads, are under it still; `--force` cuts them off: those agents come back by their keys, \
        and their workloads a moment later."
    )]
    Revoke(RevokeArgs),
}

#[derive(Debug, Args)]
pub(crate) struct AuthorityListArgs {
    /// The keys for JWT-SVIDs, in the place of the X.509 authorities
    #[arg(long)]
    jwt: bool,
    #[command(flatten)]
    list: ListingArgs,
}

#[derive(Debug, Args)]
pub(crate) struct PrepareArgs {
    /// A key for JWT-SVIDs, in the place of an X.509 authority
    #[arg(long)]
    jwt: bool,
    #[command(flatten)]
    list: ListArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ActivateArgs {
    /// The beginning of its fingerprint [default: the prepared one that was made first]
    fingerprint: Option<String>,
    /// The prepared key for JWT-SVIDs, when no fingerprint is given
    #[arg(long)]
    jwt: bool,
    #[command(flatten)]
    list: ListArgs,
}

#[derive(Debug, Args)]
pub(crate) struct OneArgs {
    /// The beginning of its fingerprint
    fingerprint: String,
    #[command(flatten)]
    list: ListArgs,
}

#[derive(Debug, Args)]
pub(crate) struct RevokeArgs {
    #[command(flatten)]
    one: OneArgs,
    /// Although something is under it still
    #[arg(long)]
    force: bool,
}

/// What people see of an authority.
const COLUMNS: [Column; 5] = [
    Column::made("AUTHORITY", "fingerprint", |authority| {
        short(authority["fingerprint"].as_str().unwrap_or_default()).to_owned()
    }),
    Column::new("STATE", "state").coloured(verdict),
    Column::moment("ENDS", "not_after"),
    Column::made("UNDER IT", "agents", |authority| {
        let count = |key: &str| authority[key].as_u64().filter(|count| *count > 0);
        let parts = [
            count("agents").map(|count| many(count, "agent")),
            count("operators").map(|count| many(count, "operator")),
            count("svids").map(|count| many(count, "SVID")),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        if parts.is_empty() {
            "-".to_owned()
        } else {
            parts.join(", ")
        }
    }),
    Column::moment("NEXT", "next_at"),
];

pub(crate) fn authority(command: AuthorityCommand) -> anyhow::Result<ExitCode> {
    match command {
        AuthorityCommand::List(args) => list(args),
        AuthorityCommand::Prepare(args) => {
            let then = match args.jwt {
                true => "it is in the trust bundle; `hoplite authority activate --jwt` has it sign",
                false => "it is in the trust bundle; `hoplite authority activate` has it sign",
            };
            let (asked, args) = (PrepareAuthorityRequest { jwt: args.jwt }, args.list);
            let (made, me) = args.ca.call(async |mut ca| {
                let done = ca.prepare_authority(asked).await?.into_inner();
                Ok((done, ca.who_am_i(WhoAmIRequest {}).await.ok()))
            })?;
            learn(&args.ca, me, false)?;
            done(&args, &made, "prepared", then)
        }
        AuthorityCommand::Activate(args) => {
            let asked = AuthorityRequest {
                jwt: args.jwt,
                ..request(args.fingerprint.as_deref().unwrap_or_default(), false)
            };
            let ca = &args.list.ca;
            let (signs, me) = ca.call(async |mut ca| {
                let done = ca.activate_authority(asked.clone()).await?.into_inner();
                Ok((done, ca.who_am_i(WhoAmIRequest {}).await.ok()))
            })?;
            learn(ca, me, false)?;
            done(&args.list, &signs, "activated", "it signs from now on")
        }
        AuthorityCommand::Taint(args) => {
            let asked = request(&args.fingerprint, false);
            let ca = &args.list.ca;
            let (tainted, me) = ca.call(async |mut ca| {
                let done = ca.taint_authority(asked.clone()).await?.into_inner();
                Ok((done, ca.who_am_i(WhoAmIRequest {}).await.ok()))
            })?;
            learn(ca, me, true)?;
            done(&args.list, &tainted, "tainted", &under(&tainted))
        }
        AuthorityCommand::Revoke(args) => {
            let asked = request(&args.one.fingerprint, args.force);
            let ca = &args.one.list.ca;
            let (revoked, me) = ca.call(async |mut ca| {
                let done = ca.revoke_authority(asked.clone()).await?.into_inner();
                Ok((done, ca.who_am_i(WhoAmIRequest {}).await.ok()))
            })?;
            learn(ca, me, false)?;
            done(&args.one.list, &revoked, "revoked", "it is in no trust bundle any more")
        }
    }
}

fn list(args: AuthorityListArgs) -> anyhow::Result<ExitCode> {
    let (jwt, args) = (args.jwt, args.list);
    let asked = ListAuthoritiesRequest {};
    let answer = args
        .ca
        .call(async |mut ca| Ok(ca.list_authorities(asked).await?.into_inner()))?;
    let mut listing = Listing::new(&COLUMNS).like(&row(&Authority::default()));
    let shown = if jwt { &answer.jwt } else { &answer.authorities };
    for authority in shown {
        listing.row(row(authority));
    }
    listing.print(args.form)?;
    if !answer.warning.is_empty() {
        hoplite_host::tell!("warning: {}", answer.warning);
    }
    Ok(ExitCode::SUCCESS)
}

/// Whoever asks from elsewhere knows the CA by the new authority, too, and after a taint has a certificate under it.
fn learn(ca: &CaArgs, me: Option<Response<WhoAmIResponse>>, renews: bool) -> anyhow::Result<()> {
    let (Some(mut sign_in), Some(me)) = (ca.sign_in()?, me) else {
        return Ok(());
    };
    sign_in.learn(me.into_inner().bundle)?;
    if renews {
        super::runtime()?.block_on(sign_in.renewed());
    }
    Ok(())
}

fn request(fingerprint: &str, force: bool) -> AuthorityRequest {
    AuthorityRequest {
        fingerprint: fingerprint.to_owned(),
        force,
        jwt: false,
    }
}

fn row(authority: &Authority) -> Value {
    let next = (authority.next_unix != 0).then(|| rfc3339(authority.next_unix));
    json!({
        "fingerprint": authority.fingerprint, "state": authority.state, "since": rfc3339(authority.since_unix),
        "not_before": rfc3339(authority.not_before_unix), "not_after": rfc3339(authority.not_after_unix),
        "agents": authority.agents, "agent_ids": authority.agent_ids,
        "operators": authority.operators, "operator_names": authority.operator_names, "svids": authority.svids,
        "next_at": next, "next": authority.next,
    })
}

/// Who has to be given something else.
fn under(tainted: &Authority) -> String {
    let mut text = "what it signed is replaced; back the CA up now, a backup of before trusts it".to_owned();
    if tainted.agents > 0 {
        text += &format!("; under it still: {}", many(tainted.agents.into(), "agent"));
    }
    if tainted.operators > 0 {
        text += &format!(
            "; of operators, under it are: {} (invite anew whoever cannot reach the CA any more)",
            tainted.operator_names.join(", ")
        );
    }
    text + "; `hoplite authority list` shows when nothing is, and `hoplite authority revoke` takes it out of the trust bundle"
}

fn done(args: &ListArgs, authority: &Authority, what: &str, then: &str) -> anyhow::Result<ExitCode> {
    if args.output == Output::Json {
        let mut value = row(authority);
        if let Some(fields) = value.as_object_mut() {
            fields.insert("done".to_owned(), json!(what));
            fields.insert("was_so".to_owned(), json!(authority.was_so));
            fields.insert("bundle_sequence".to_owned(), json!(authority.sequence));
        }
        print_json(&value)?;
    } else if authority.was_so {
        print(&format!(
            "authority {} was {what} already\n",
            short(&authority.fingerprint)
        ))?;
    } else {
        print(&format!("{what} authority {}: {then}\n", short(&authority.fingerprint)))?;
    }
    // What is done already is no failure, and is told apart from what was done now.
    Ok(if authority.was_so {
        ExitCode::from(3)
    } else {
        ExitCode::SUCCESS
    })
}

fn short(fingerprint: &str) -> &str {
    fingerprint.get(..SHORT).unwrap_or(fingerprint)
}

fn many(count: u64, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}
