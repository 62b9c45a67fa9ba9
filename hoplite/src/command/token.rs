//! `hoplite token`: invitations, for nodes and for operators; those that are out, and taking one back.

use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgGroup, Args, Subcommand};
use hoplite_host::clock;
use hoplite_identity::{Fingerprint, HostPort, Invitation};
use hoplite_wire::ca::{
    CreateEntriesRequest, CreateOperatorTokenRequest, CreateTokenRequest, CreateTokenResponse, DeleteTokenRequest,
    Entry, ListTokensRequest, Token,
};
use serde_json::json;
use tonic::Code;

use crate::command::admin::{ListArgs, ListingArgs, rfc3339, trust_domain};
use crate::command::entry::ServiceOfUser;
use crate::command::reach::CaArgs;
use crate::output::shown::Shown;
use crate::output::{Column, Listing, Output, failed, print, print_json, verdict};

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Invite one node, or one operator: prints the command with which it joins or signs in, once
    #[command(after_help = "Examples:\n  hoplite token create --node web-1\n  \
        hoplite token create --operator alice --role policy --role auditor\n  \
        hoplite token create --operator bob --role entries --path /ns/pay\n  \
        hoplite token create --node web-1 --label web --label eu\n  \
        hoplite token create --node web-1 --address ca.prod.example:7443 --ttl 1h\n  \
        hoplite token create --node ca-1 | hoplite join -\n\n\
        The last line of the answer is the command to run on that node, or by that person. The word in it is a secret, until it is used or over: \
        TOKEN@HOST:PORT#FINGERPRINT, the token, where the CA is, and the SHA-256 of the authority's certificate.")]
    Create(CreateTokenArgs),
    /// List the invitations that are out, and those that were used or had their time and are not cleared away yet; never a secret
    #[command(after_help = "Examples:\n  hoplite token list\n  hoplite token list --open --output json")]
    List(ListTokensArgs),
    /// Take invitations back that nobody has used
    #[command(
        after_help = "Example:\n  hoplite token delete 3f2a…\n\nExit 1 if one of them is not there or was used; the others are taken back."
    )]
    Delete(DeleteTokensArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ListTokensArgs {
    /// Only those that may still be used
    #[arg(long)]
    open: bool,
    #[command(flatten)]
    shown: Shown,
    #[command(flatten)]
    list: ListingArgs,
}

#[derive(Debug, Args)]
pub(crate) struct DeleteTokensArgs {
    /// Their ids, as `hoplite token list` and `token create` show them
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
    #[command(flatten)]
    list: ListArgs,
}

/// What people see of an invitation.
const COLUMNS: [Column; 5] = [
    Column::new("ID", "id"),
    Column::new("ADMITS", "admits"),
    Column::moment("UNTIL", "expires_at"),
    Column::new("STATE", "state").coloured(verdict),
    Column::new("GRANTS", "grants"),
];

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("whom").required(true).args(["node", "operator"])))]
pub(crate) struct CreateTokenArgs {
    /// The node's name: the agent becomes spiffe://TRUST_DOMAIN/hoplite/agent/NODE
    #[arg(long)]
    node: Option<String>,
    /// The operator's name: it becomes spiffe://TRUST_DOMAIN/hoplite/operator/NAME
    #[arg(long, value_name = "NAME")]
    operator: Option<String>,
    /// What the operator may do: admin, auditor, policy, nodes or entries, or a role of the CA's own admin policies; may be given
    /// several times. Without it an operator that there is keeps what it has
    #[arg(long = "role", value_name = "ROLE", requires = "operator", conflicts_with = "node")]
    roles: Vec<String>,
    /// Below which paths of SPIFFE IDs the role `entries` holds; may be given several times
    #[arg(long = "path", value_name = "PATH", requires = "roles")]
    paths: Vec<String>,
    /// How long the token may wait to be used
    #[arg(long, default_value = "10m", value_parser = crate::output::moment::seconds)]
    ttl: Duration,
    /// What the node has from then on as token:label:LABEL, by which it is in groups (`hoplite entry create --node-selector`); may
    /// be repeated
    #[arg(long = "label", value_name = "LABEL", requires = "node", conflicts_with = "operator")]
    labels: Vec<String>,
    /// How that machine reaches the CA [default: what the CA's configuration says by `advertise`, or `listen`]
    #[arg(long, value_name = "HOST:PORT")]
    address: Option<HostPort>,
    /// Register a service that is to run on that node, and its user, as `hoplite entry create --service` does; may be repeated
    #[arg(long, value_name = "NAME[=USER]", requires = "node")]
    service: Vec<ServiceOfUser>,
    #[command(flatten)]
    list: ListArgs,
}

pub(crate) fn token(command: TokenCommand) -> anyhow::Result<ExitCode> {
    match command {
        TokenCommand::Create(args) => create(args),
        TokenCommand::List(args) => list(&args),
        TokenCommand::Delete(args) => delete(&args),
    }
}

fn list(args: &ListTokensArgs) -> anyhow::Result<ExitCode> {
    let ca = &args.list.ca;
    let tokens = ca.call(async |mut ca| Ok(ca.list_tokens(ListTokensRequest {}).await?.into_inner().tokens))?;
    let now = clock::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let row = |token: Token, state: &str| {
        json!({
            "id": token.id, "admits": token.admits, "expires_at": rfc3339(token.expires_at_unix), "state": state,
            "grants": token.node_selectors.iter().map(|s| format!("{}:{}", s.kind, s.value)).collect::<Vec<_>>(),
        })
    };
    let mut listing = Listing::new(&COLUMNS).like(&row(Token::default(), ""));
    for token in tokens {
        let has_ended = u64::try_from(token.expires_at_unix).unwrap_or_default() <= now.as_secs();
        let state = match (token.used, has_ended) {
            (true, _) => "used",
            (false, true) => "expired",
            (false, false) => "open",
        };
        if state == "open" || !args.open {
            listing.row(row(token, state));
        }
    }
    args.shown.print(listing, args.list.form)?;
    Ok(ExitCode::SUCCESS)
}

fn delete(args: &DeleteTokensArgs) -> anyhow::Result<ExitCode> {
    let (mut rows, mut code) = (Vec::new(), ExitCode::SUCCESS);
    for id in &args.ids {
        let request = DeleteTokenRequest { id: id.clone() };
        let ca = &args.list.ca;
        let deleted = ca.call(async |mut ca| {
            let answer = ca.delete_token(request).await;
            // One that is not there is no reason to leave the others.
            Ok(match answer {
                Ok(answer) => Ok(answer.into_inner().admits),
                Err(status) if matches!(status.code(), Code::NotFound | Code::FailedPrecondition) => {
                    Err(status.message().to_owned())
                }
                Err(status) => return Err(status),
            })
        })?;
        match &deleted {
            Ok(admits) if args.list.output == Output::Table => {
                print(&format!(
                    "withdrew {id}, which nobody has used: it would have admitted {admits}\n"
                ))?;
            }
            Ok(_) => {}
            Err(why) => {
                failed(&format!("`{id}`: {why}"), 1);
                code = ExitCode::FAILURE;
            }
        }
        rows.push(json!({"id": id, "deleted": deleted.is_ok(), "admits": deleted.as_ref().ok(), "error": deleted.as_ref().err()}));
    }
    if args.list.output == Output::Json {
        print_json(&rows)?;
    }
    Ok(code)
}

fn create(args: CreateTokenArgs) -> anyhow::Result<ExitCode> {
    let ttl_seconds = seconds(args.ttl)?;
    let address = args.address.as_ref().map(ToString::to_string).unwrap_or_default();
    let ca = &args.list.ca;
    let (token, does, runs) = match (&args.operator, args.node) {
        (Some(name), _) => {
            let request = CreateOperatorTokenRequest {
                name: name.clone(),
                roles: args.roles.clone(),
                paths: args.paths.clone(),
                ttl_seconds,
                address,
            };
            let token = ca.call(async |mut ca| Ok(ca.create_operator_token(request).await?.into_inner()))?;
            tell_of_paths(&args.roles, &args.paths);
            (token, "sign in", ("on its own machine that person runs", "login"))
        }
        (None, node) => {
            let node = node.unwrap_or_default();
            register(ca, &node, &args.service)?;
            let request = CreateTokenRequest {
                node,
                ttl_seconds,
                address,
                labels: args.labels,
            };
            let token = ca.call(async |mut ca| Ok(ca.create_token(request).await?.into_inner()))?;
            (token, "join", ("on that node run", "join"))
        }
    };
    print_invitation(&token, does, runs, args.list.output)
}

/// The services that the node is to run, before anybody is invited.
fn register(ca: &CaArgs, node: &str, services: &[ServiceOfUser]) -> anyhow::Result<()> {
    if services.is_empty() {
        return Ok(());
    }
    let trust_domain = trust_domain(ca)?;
    let entries = services.iter().map(|service| service.entry(&trust_domain, node));
    let entries: Vec<Entry> = entries.collect::<anyhow::Result<_>>()?;
    let request = CreateEntriesRequest {
        entries: entries.clone(),
    };
    let answer = ca.call(async |mut ca| Ok(ca.create_entries(request).await?.into_inner()))?;
    for (entry, result) in entries.iter().zip(&answer.results) {
        anyhow::ensure!(
            result.error.is_empty(),
            "`{}` is not registered: {}; nobody was invited",
            entry.spiffe_id,
            result.error
        );
        let already = if result.existed {
            "already registered: "
        } else {
            "registered "
        };
        hoplite_host::tell!("{already}{} on {node}", entry.spiffe_id);
    }
    Ok(())
}

/// What was given and does nothing, under the default admin policies.
fn tell_of_paths(roles: &[String], paths: &[String]) {
    let is_entries = |role: &String| role == "entries";
    if paths.is_empty() && roles.iter().any(is_entries) {
        hoplite_host::tell!(
            "note: the role `entries` holds below the paths that --path names; without one it lets nobody do anything"
        );
    }
    let has_none = |role: &String| ["admin", "auditor", "policy", "nodes"].contains(&role.as_str());
    if !paths.is_empty() && roles.iter().all(has_none) {
        hoplite_host::tell!(
            "note: --path bounds the role `entries` only; {} holds everywhere",
            roles.join(", ")
        );
    }
}

/// The one place that shows a token: to whoever asked for it, once.
fn print_invitation(
    token: &CreateTokenResponse,
    does: &str,
    (who_runs, command): (&str, &str),
    output: Output,
) -> anyhow::Result<ExitCode> {
    let invitation = Invitation::new(
        &token.token,
        HostPort::parse(&token.address)?,
        Fingerprint::parse(&token.fingerprint)?,
    )?;
    if output == Output::Json {
        let id = if command == "join" { "agent_id" } else { "operator_id" };
        print_json(&json!({
            "id": token.id, id: token.agent_id, "expires_at": rfc3339(token.expires_at_unix), "has_joined": token.has_joined,
            "invitation": *invitation.reveal(), "token": token.token,
            "address": token.address, "fingerprint": token.fingerprint,
        }))?;
    } else {
        hoplite_host::tell!(
            "{} may {does} until {}, once (invitation {}); {who_runs}",
            token.agent_id,
            rfc3339(token.expires_at_unix),
            token.id
        );
        if token.has_joined {
            hoplite_host::tell!(
                "note: {} is a node already; whoever uses this takes its place, and the agent that runs there now gets nothing more",
                token.agent_id
            );
        }
        print(&format!("hoplite {command} {}\n", shell_word(&invitation.reveal())))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// As a shell takes it: a pattern, which an IPv6 address looks like, in quotes.
fn shell_word(word: &str) -> String {
    if word.contains('[') {
        format!("'{word}'")
    } else {
        word.to_owned()
    }
}

fn seconds(span: Duration) -> anyhow::Result<u32> {
    u32::try_from(span.as_secs()).map_err(|_| anyhow::anyhow!("a ttl of more than 136 years is too long"))
}
