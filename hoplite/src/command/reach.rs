//! How each command that asks the CA reaches it: on its Unix socket, or over the network with an operator's or a workload's SVID.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use hoplite_host::clock;
use hoplite_host::places::Places;
use hoplite_identity::{BundleSet, HostPort};
use hoplite_wire::ca::admin_client::AdminClient;
use hoplite_wire::{POLICY_BYTES_MAX, WorkloadApi, channel};
use tonic::Status;
use tonic::transport::Channel;

use crate::command::MeshDir;
use crate::command::dial::{causes, last, network, refusal};
use crate::command::sign_in::{self, SignIn};
use crate::output::waiting::Waiting;

/// How to reach the CA.
#[derive(Debug, Clone, Args)]
pub(crate) struct CaArgs {
    /// The CA over the network, where `hoplite login` signed in: its address, or its trust domain [env: HOPLITE_CA]
    #[arg(long, value_name = "HOST:PORT")]
    ca: Option<String>,
    /// With --ca HOST:PORT: call as a workload, with the SVID of this Workload API, not as an operator who has signed in
    #[arg(long, value_name = "ADDRESS")]
    workload_api: Option<String>,
    /// The CA's admin socket [default: that of --dir, of the CA installed on this machine or of the user's mesh, or the CA where this user has signed in]
    #[arg(long, value_name = "PATH", env = "HOPLITE_CA_SOCKET")]
    ca_socket: Option<PathBuf>,
    #[command(flatten)]
    dir: MeshDir,
}

/// Where the CA is, and who one is there.
enum Road {
    Socket(PathBuf),
    Operator(Box<SignIn>),
    Workload { ca: HostPort, workload_api: String },
}

// === impl CaArgs ===

impl CaArgs {
    /// The mesh whose CA it is.
    pub(crate) fn mesh(&self) -> &MeshDir {
        &self.dir
    }

    /// Asks the CA. The one place from which commands do.
    pub(crate) fn call<T>(
        &self,
        rpc: impl AsyncFnOnce(AdminClient<Channel>) -> Result<T, Status>,
    ) -> anyhow::Result<T> {
        let road = self.road()?;
        let _waiting = Waiting::new("asking the CA");
        super::runtime()?.block_on(async {
            let channel = road.channel().await?;
            // A policy bundle is longer than what gRPC takes by itself.
            let client = AdminClient::new(channel)
                .max_decoding_message_size(POLICY_BYTES_MAX)
                .max_encoding_message_size(POLICY_BYTES_MAX);
            rpc(client).await.map_err(|status| refusal(&status, &road.name()))
        })
    }

    /// How sentences name the CA.
    pub(crate) fn name(&self) -> anyhow::Result<String> {
        Ok(self.road()?.name())
    }

    /// The sign-in with which it is asked, if it is one.
    pub(crate) fn sign_in(&self) -> anyhow::Result<Option<SignIn>> {
        Ok(match self.road()? {
            Road::Operator(sign_in) => Some(*sign_in),
            Road::Socket(_) | Road::Workload { .. } => None,
        })
    }

    /// A flag goes before the environment, and what is named before what is found.
    fn road(&self) -> anyhow::Result<Road> {
        let named = std::env::var("HOPLITE_CA").ok().filter(|ca| !ca.is_empty());
        if let Some(ca) = &self.ca {
            return self.network(ca);
        }
        if self.workload_api.is_some() {
            let ca = named.context("`--workload-api` calls a CA over the network; say which with --ca HOST:PORT")?;
            return self.network(&ca);
        }
        if let Some(socket) = &self.ca_socket {
            return Ok(Road::Socket(socket.clone()));
        }
        if self.dir.is_given() {
            return Ok(Road::Socket(self.dir.ca_socket()?));
        }
        if let Some(ca) = named {
            return self.network(&ca).context("as HOPLITE_CA says");
        }
        let socket = self.dir.ca_socket()?;
        if !socket.exists()
            && let Some(sign_in) = SignIn::current()?
        {
            return Ok(Road::Operator(Box::new(sign_in)));
        }
        Ok(Road::Socket(socket))
    }

    fn network(&self, ca: &str) -> anyhow::Result<Road> {
        if let Some(workload_api) = &self.workload_api {
            let (ca, workload_api) = (HostPort::parse(ca)?, workload_api.clone());
            return Ok(Road::Workload { ca, workload_api });
        }
        match SignIn::at(ca)? {
            Some(sign_in) => Ok(Road::Operator(Box::new(sign_in))),
            None => bail!(
                "this user has not signed in at the CA `{ca}`{}; ask an admin for an invitation (`hoplite token create --operator \
                 NAME`) and run `hoplite login INVITATION`",
                sign_in::known()?
            ),
        }
    }
}

// === impl Road ===

impl Road {
    async fn channel(&self) -> anyhow::Result<Channel> {
        match self {
            Self::Socket(socket) => socket_channel(socket).await,
            Self::Operator(sign_in) => {
                sign_in.check(clock::now())?;
                let sign_in = sign_in.fresh().await;
                let bundles = BundleSet::from_iter([sign_in.bundle.clone()]);
                network(&sign_in.address, &sign_in.svid, bundles).await
            }
            Self::Workload { ca, workload_api } => {
                let identity = WorkloadApi::open(workload_api).await?.next().await?;
                let svid = identity.svids.first().context("the agent gave no SVID")?;
                network(ca, svid, identity.bundles).await
            }
        }
    }

    /// As sentences name it.
    fn name(&self) -> String {
        match self {
            Self::Socket(socket) => socket.display().to_string(),
            Self::Operator(sign_in) => sign_in.address.to_string(),
            Self::Workload { ca, .. } => ca.to_string(),
        }
    }
}

/// A client on the CA's admin socket.
pub(crate) async fn connect(socket: &Path) -> anyhow::Result<AdminClient<Channel>> {
    Ok(AdminClient::new(socket_channel(socket).await?))
}

async fn socket_channel(socket: &Path) -> anyhow::Result<Channel> {
    let channel = channel::unix(socket).await;
    channel.map_err(|error| anyhow::anyhow!(unreachable_by(&error, socket)))
}

/// What to do about a CA that cannot be reached.
fn unreachable_by(error: &(dyn Error + 'static), socket: &Path) -> String {
    let socket = socket.display();
    match causes(error).find_map(|cause| Some(cause.downcast_ref::<io::Error>()?.kind())) {
        Some(io::ErrorKind::PermissionDenied) => {
            format!(
                "this user may not open the CA's socket `{socket}`; run the command as the CA's own user or as root, or sign in as an \
                 operator with `hoplite login`"
            )
        }
        Some(io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => format!(
            "the CA at `{socket}` closed the connection before it answered, so nothing was done; it has too many \
             connections or is stopping, which its log says; try again"
        ),
        _ => format!(
            "no CA answers at `{socket}` ({}); {}",
            last(error),
            match installed_agents_ca() {
                Some(ca) => format!("this machine is a node of the CA at {ca}: ask an admin there for an invitation and run `hoplite login`"),
                None => "is it running (`hoplite up`, `hoplite ca run`), and is this its user? A CA elsewhere is reached with --ca after \
                         `hoplite login`"
                    .to_owned(),
            }
        ),
    }
}

/// Where the CA of this machine's agent is, on a machine that has an agent and no CA of its own.
fn installed_agents_ca() -> Option<HostPort> {
    let places = Places::installed();
    if places.ca_config().exists() {
        return None;
    }
    let config = hoplite_agent::Config::load(&places.agent_config()).ok()?;
    config.ca.iter().next().cloned()
}
