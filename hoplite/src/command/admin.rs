//! `hoplite token|bundle` and `hoplite agent list|ban|evict`, and how each command that asks the CA reaches its socket.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use clap::{Args, Subcommand};
use hoplite_identity::{CertificateDer, Fingerprint, HostPort, Invitation, TrustBundle, TrustDomain};
use hoplite_wire::POLICY_BYTES_MAX;
use hoplite_wire::ca::admin_client::AdminClient;
use hoplite_wire::ca::{AgentRequest, CreateTokenRequest, ListAgentsRequest, ListEntriesRequest, ShowBundleRequest};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::command::MeshDir;
use crate::output::{Column, Form, Listing, Output, print, print_json, verdict};

/// How to reach the CA.
#[derive(Debug, Clone, Args)]
pub(crate) struct CaArgs {
    /// The CA's admin socket [default: that of the mesh in --dir]
    #[arg(long, value_name = "PATH", env = "HOPLITE_CA_SOCKET")]
    ca_socket: Option<PathBuf>,
    #[command(flatten)]
    dir: MeshDir,
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    pub(crate) ca: CaArgs,
    /// The form of the answer
    #[arg(long, value_enum, default_value_t)]
    pub(crate) output: Output,
}

/// Of a listing that the CA is asked for.
#[derive(Debug, Args)]
pub(crate) struct ListingArgs {
    #[command(flatten)]
    pub(crate) ca: CaArgs,
    #[command(flatten)]
    pub(crate) form: Form,
}

#[derive(Debug, Args)]
pub(crate) struct AgentArgs {
    /// The agent's SPIFFE ID
    spiffe_id: String,
    #[command(flatten)]
    ca: CaArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Invite one node: prints the command with which it joins, once
    #[command(after_help = "Examples:\n  hoplite token create --node web-1\n  \
        hoplite token create --node web-1 --address ca.prod.example:7443 --ttl 1h\n  \
        hoplite token create --node ca-1 | hoplite join -\n\n\
        The last line of the answer is the command to run on that node. The word in it is a secret, until it is used or over: \
        TOKEN@HOST:PORT#FINGERPRINT, the token, where the CA is, and the SHA-256 of the authority's certificate.")]
    Create(CreateTokenArgs),
}

#[derive(Debug, Args)]
pub(crate) struct CreateTokenArgs {
    /// The node's name: the agent becomes spiffe://TRUST_DOMAIN/hoplite/agent/NODE
    #[arg(long)]
    node: String,
    /// How long the token may wait to be used
    #[arg(long, default_value = "10m", value_parser = humantime::parse_duration)]
    ttl: Duration,
    /// How that node reaches the CA [default: what the CA's configuration says by `advertise`, or `listen`]
    #[arg(long, value_name = "HOST:PORT")]
    address: Option<HostPort>,
    #[command(flatten)]
    list: ListArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BundleCommand {
    /// Print the trust bundle as PEM
    #[command(after_help = "Example:\n  hoplite bundle show > bundle.pem")]
    Show(ListArgs),
}

pub(crate) fn token(command: TokenCommand) -> anyhow::Result<ExitCode> {
    let TokenCommand::Create(args) = command;
    let ttl_seconds = seconds(args.ttl)?;
    let token = args.list.ca.call(async |mut ca| {
        Ok(ca
            .create_token(CreateTokenRequest {
                node: args.node.clone(),
                ttl_seconds,
                address: args.address.as_ref().map(ToString::to_string).unwrap_or_default(),
            })
            .await?
            .into_inner())
    })?;
    let invitation = Invitation::new(
        &token.token,
        HostPort::parse(&token.address)?,
        Fingerprint::parse(&token.fingerprint)?,
    )?;
    // The one place that shows a token: to the operator who asked for it, once.
    if args.list.output == Output::Json {
        print_json(&serde_json::json!({
            "agent_id": token.agent_id, "expires_at": rfc3339(token.expires_at_unix),
            "invitation": *invitation.reveal(), "token": token.token,
            "address": token.address, "fingerprint": token.fingerprint,
        }))?;
    } else {
        eprintln!(
            "{} may join until {}, once; on that node run",
            token.agent_id,
            rfc3339(token.expires_at_unix)
        );
        print(&format!("hoplite join {}\n", shell_word(&invitation.reveal())))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn bundle(command: BundleCommand) -> anyhow::Result<ExitCode> {
    let BundleCommand::Show(args) = command;
    let message = args
        .ca
        .call(async |mut ca| Ok(ca.show_bundle(ShowBundleRequest {}).await?.into_inner()))?;
    let trust_domain = TrustDomain::parse(&message.trust_domain)?;
    let authorities: Vec<_> = message.authorities.into_iter().map(CertificateDer::from).collect();
    let bundle = TrustBundle::new(trust_domain, authorities, message.sequence)?;
    if args.output == Output::Json {
        print_json(&serde_json::json!({
            "trust_domain": bundle.trust_domain().as_str(),
            "sequence": bundle.sequence(),
            "authorities": bundle.authorities().len(),
            "pem": bundle.to_pem(),
        }))?;
    } else {
        print(&bundle.to_pem())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What people see of an agent.
const AGENT_COLUMNS: [Column; 3] = [
    Column::new("AGENT", "spiffe_id"),
    Column::moment("VALID UNTIL", "expires_at"),
    Column::made("STATE", "banned", |agent| {
        if agent["banned"] == true { "banned" } else { "joined" }.to_owned()
    })
    .coloured(verdict),
];

pub(crate) fn agent_list(args: ListingArgs) -> anyhow::Result<ExitCode> {
    let agents = args
        .ca
        .call(async |mut ca| Ok(ca.list_agents(ListAgentsRequest {}).await?.into_inner().agents))?;
    let mut listing = Listing::new(&AGENT_COLUMNS);
    for agent in agents {
        listing.row(serde_json::json!({
            "spiffe_id": agent.spiffe_id, "serial": agent.serial,
            "expires_at": rfc3339(agent.expires_at_unix), "banned": agent.banned,
        }));
    }
    listing.print(args.form)?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn agent_ban(args: AgentArgs) -> anyhow::Result<ExitCode> {
    let request = AgentRequest {
        spiffe_id: args.spiffe_id.clone(),
    };
    args.ca.call(async |mut ca| Ok(ca.ban_agent(request.clone()).await?))?;
    print(&format!("banned {}\n", args.spiffe_id))?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn agent_evict(args: AgentArgs) -> anyhow::Result<ExitCode> {
    let request = AgentRequest {
        spiffe_id: args.spiffe_id.clone(),
    };
    args.ca
        .call(async |mut ca| Ok(ca.evict_agent(request.clone()).await?))?;
    print(&format!("evicted {}\n", args.spiffe_id))?;
    Ok(ExitCode::SUCCESS)
}

/// The SPIFFE IDs of all registered workloads, each once.
pub(crate) fn registered(ca: &CaArgs) -> anyhow::Result<Vec<String>> {
    let asked = ListEntriesRequest::default();
    let entries = ca.call(async |mut ca| Ok(ca.list_entries(asked.clone()).await?.into_inner().entries))?;
    let mut ids: Vec<String> = entries.into_iter().map(|entry| entry.spiffe_id).collect();
    ids.sort();
    ids.dedup();
    Ok(ids)
}

pub(crate) fn rfc3339(unix: i64) -> String {
    let since = Duration::from_secs(u64::try_from(unix).unwrap_or(0));
    humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + since).to_string()
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
    u32::try_from(span.as_secs()).context("a ttl of more than 136 years is too long")
}

/// A client on the CA's admin socket.
pub(crate) async fn connect(socket: &Path) -> anyhow::Result<AdminClient<Channel>> {
    let channel = hoplite_wire::channel::unix(socket).await.map_err(|error| {
        let text = unreachable_by(&error, socket);
        anyhow::Error::new(error).context(text)
    })?;
    Ok(AdminClient::new(channel))
}

/// What to do about a CA that cannot be reached.
fn unreachable_by(error: &(dyn std::error::Error + 'static), socket: &Path) -> String {
    let socket = socket.display();
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    match causes.find_map(|cause| Some(cause.downcast_ref::<io::Error>()?.kind())) {
        Some(io::ErrorKind::PermissionDenied) => {
            format!(
                "this user may not open the CA's socket `{socket}`; run the command as the CA's own user or as root"
            )
        }
        Some(io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => format!(
            "the CA at `{socket}` closed the connection before it answered, so nothing was done; it has too many \
             connections or is stopping, which its log says; try again"
        ),
        _ => format!(
            "no CA answers at `{socket}`; is it running (`hoplite up`, `hoplite ca run`), and is this its user?"
        ),
    }
}

/// What the CA said, or that the connection broke before it said anything.
fn refusal(status: &Status, socket: &Path) -> anyhow::Error {
    let text = status.message();
    match (std::error::Error::source(status), status.code()) {
        // Made here, of an error of the connection: the CA said nothing.
        (Some(_), _) => anyhow::anyhow!(
            "the connection to the CA at `{}` broke before it answered ({text}); it may have done what was asked or not: \
             look, and run the command again",
            socket.display()
        ),
        (None, Code::PermissionDenied) => anyhow::anyhow!("the CA refused: permission denied: {text}"),
        (None, _) => anyhow::anyhow!("the CA refused: {text}"),
    }
}

// === impl CaArgs ===

impl CaArgs {
    /// The mesh whose CA it is.
    pub(crate) fn mesh(&self) -> &MeshDir {
        &self.dir
    }

    pub(crate) fn call<T>(
        &self,
        rpc: impl AsyncFnOnce(AdminClient<Channel>) -> Result<T, Status>,
    ) -> anyhow::Result<T> {
        let socket = match &self.ca_socket {
            Some(path) => path.clone(),
            None => self.dir.path()?.join("run/ca.sock"),
        };
        super::runtime()?.block_on(async {
            let client = connect(&socket).await?;
            // A policy bundle is longer than what gRPC takes by itself.
            let client = client
                .max_decoding_message_size(POLICY_BYTES_MAX)
                .max_encoding_message_size(POLICY_BYTES_MAX);
            rpc(client).await.map_err(|status| refusal(&status, &socket))
        })
    }
}
