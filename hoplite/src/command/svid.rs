//! `hoplite svid`: a Workload API client for people.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use clap::{Args, Subcommand};
use hoplite_identity::X509Svid;
use hoplite_wire::{Identity, WorkloadApi};
use serde::Serialize;

use crate::command::MeshDir;
use crate::output::{Column, Form, Listing, Output, Reader, coloured, print_while_read};

mod files;
mod keep;
mod telling;

#[derive(Debug, Subcommand)]
pub(crate) enum SvidCommand {
    /// Show the SVIDs this process is entitled to, or write one into files; exit 1 if it has none. With somebody to tell of changes the files are
    /// kept fresh, as by `svid watch`
    #[command(
        after_help = "Examples:\n  hoplite svid fetch\n  hoplite svid fetch --pem > chain.pem\n  hoplite svid fetch --write /srv/tls"
    )]
    Fetch(FetchArgs),
    /// Show them, and again whenever they change, or keep one fresh in files
    #[command(
        after_help = "Examples:\n  hoplite svid watch --output json\n  hoplite svid watch --write /srv/tls --exec 'nginx -s reload'\n  hoplite svid watch --write /srv/tls --owner postgres \\\n      --pid-file /var/lib/postgresql/15/main/postmaster.pid"
    )]
    Watch(WatchArgs),
}

#[derive(Debug, Args)]
pub(crate) struct FetchArgs {
    #[command(flatten)]
    socket: SocketArgs,
    /// Print the certificate chain of one SVID as PEM instead (never the key)
    #[arg(long, conflicts_with_all = ["write", "output", "exec", "signal", "pid_file"])]
    pem: bool,
    #[command(flatten)]
    form: Form,
    #[command(flatten)]
    write: keep::WriteArgs,
    #[command(flatten)]
    listeners: telling::Listeners,
}

#[derive(Debug, Args)]
pub(crate) struct SocketArgs {
    /// The agent's socket [default: that of --dir, or of the agent installed on this machine, or of the user's mesh]
    #[arg(long, value_name = "ADDRESS", env = "SPIFFE_ENDPOINT_SOCKET")]
    socket: Option<String>,
    #[command(flatten)]
    dir: MeshDir,
}

/// Of an answer about this node's agent.
#[derive(Debug, Args)]
pub(crate) struct AnswerArgs {
    #[command(flatten)]
    pub(crate) socket: SocketArgs,
    /// The form of the answer
    #[arg(long, value_enum, default_value_t)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    #[command(flatten)]
    socket: SocketArgs,
    #[command(flatten)]
    form: Form,
    #[command(flatten)]
    write: keep::WriteArgs,
    #[command(flatten)]
    listeners: telling::Listeners,
}

#[derive(Debug, Serialize)]
struct Row {
    spiffe_id: String,
    serial: String,
    not_before: String,
    not_after: String,
    trusts: Vec<String>,
}

pub(crate) fn run(command: SvidCommand) -> anyhow::Result<ExitCode> {
    super::runtime()?.block_on(async {
        let (socket, form, write, watch, pem) = match &command {
            SvidCommand::Fetch(args) => (&args.socket, args.form, &args.write, false, args.pem),
            SvidCommand::Watch(args) => (&args.socket, args.form, &args.write, true, false),
        };
        let address = socket.address()?;
        match &command {
            SvidCommand::Fetch(args) => {
                if let Some(dir) = args.write.dir() {
                    // Whoever is to be told of changes is to be told of all of them.
                    return match args.listeners.is_anybody() {
                        true => keep::keep(&args.write, &args.listeners, &address, dir, form).await,
                        false => keep::once(&args.write, &address, dir, form).await,
                    };
                }
            }
            SvidCommand::Watch(args) => {
                if let Some(dir) = args.write.dir() {
                    return keep::keep(&args.write, &args.listeners, &address, dir, form).await;
                }
            }
        }
        let mut api = WorkloadApi::open(&address).await?;
        loop {
            let identity = write.named(api.next().await?)?;
            let text = match identity.svids.first() {
                Some(svid) if pem => svid.chain_pem(),
                _ => shown(&identity, form)?,
            };
            if print_while_read(&text)? == Reader::Gone || !watch {
                return Ok(ExitCode::SUCCESS);
            }
        }
    })
}

/// What people see of an SVID.
const COLUMNS: [Column; 4] = [
    Column::new("SPIFFE ID", "spiffe_id"),
    Column::moment("VALID UNTIL", "not_after"),
    Column::new("SERIAL", "serial"),
    Column::new("TRUSTS", "trusts"),
];

fn shown(identity: &Identity, form: Form) -> anyhow::Result<String> {
    let trusts: Vec<String> = identity
        .bundles
        .iter()
        .map(|bundle| bundle.trust_domain().as_str().to_owned())
        .collect();
    let mut listing = Listing::new(&COLUMNS);
    for svid in &identity.svids {
        listing.row(Row::new(svid, &trusts));
    }
    Ok(listing.render(form, coloured())?)
}

// === impl SocketArgs ===

impl SocketArgs {
    /// The socket as a file.
    pub(crate) fn path(&self) -> anyhow::Result<PathBuf> {
        let address = self.address()?;
        Ok(hoplite_wire::socket_path(&address)?.to_owned())
    }

    pub(crate) fn address(&self) -> anyhow::Result<String> {
        match &self.socket {
            Some(address) => Ok(address.clone()),
            None => Ok(format!("unix://{}", self.dir.agent_socket()?.display())),
        }
    }
}

// === impl Row ===

impl Row {
    fn new(svid: &X509Svid, trusts: &[String]) -> Self {
        let time = |at: SystemTime| humantime::format_rfc3339_seconds(at).to_string();
        Self {
            spiffe_id: svid.spiffe_id().to_string(),
            serial: svid.leaf().serial().to_owned(),
            not_before: time(svid.leaf().not_before()),
            not_after: time(svid.leaf().not_after()),
            trusts: trusts.to_vec(),
        }
    }
}
