//! `hoplite run`: a proxy before a service, from flags and what `hoplite join` wrote.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::str::FromStr;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use hoplite_host::daemon::{Arguments, Manner};
use hoplite_host::logging::Format;
use hoplite_host::places::Places;
use hoplite_host::{config, files, give};
use hoplite_identity::{HostPort, ServiceName, SpiffeId, TrustDomain};

use crate::command::places::{PlacesArgs, quoted};
use crate::command::user::User;
use crate::output::print;

/// Where peers call the service unless it is said.
const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8443);

/// Local ports for calls to other services: below those that the system gives away by itself.
const LOCAL_PORTS: std::ops::Range<u16> = 20_000..30_000;

/// The longest name of a recorder.
const RECORDER_BYTES_MAX: usize = 64;

pub(crate) const HELP: &str = "Examples:\n  hoplite run --service ledger --port 9000\n  \
    hoplite run --service billing --to ledger=10.0.0.1:8443@9001\n  \
    hoplite run --service edge --port 8080 --protocol http2 \\\n      --to ledger=10.0.0.1:8443 --to db=tcp://10.0.0.2:8443 --print-config\n\n\
    The service gets the SPIFFE ID spiffe://TRUST_DOMAIN/SERVICE, as `hoplite token create --service` and `hoplite entry create --service`\n\
    register it, and expects spiffe://TRUST_DOMAIN/NAME of each --to NAME. As root it runs the proxy as the service's user.\n\
    Policy is what the CA publishes; until there is one, everything is denied.";

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The service's name in policies and records
    #[arg(long, value_name = "NAME")]
    service: ServiceName,
    /// The port on which the service itself listens, on the loopback interface; without it nobody can call it
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..), required_unless_present = "to")]
    port: Option<u16>,
    /// What the service speaks on that port
    #[arg(long, value_enum, default_value_t = Protocol::Http, requires = "port")]
    protocol: Protocol,
    /// Where peers call it, by mutual TLS
    #[arg(long, value_name = "IP:PORT", default_value_t = LISTEN)]
    listen: SocketAddr,
    /// A service that it calls: where that one's proxy listens, and at which local port it is to be reached here
    #[arg(long, value_name = "NAME=HOST:PORT[@LOCAL_PORT]")]
    to: Vec<To>,
    /// The SPIFFE ID of a service of --to, when it is not spiffe://TRUST_DOMAIN/NAME
    #[arg(long, value_name = "NAME=SPIFFE_ID")]
    expect: Vec<Expect>,
    /// Its own SPIFFE ID, when it is not spiffe://TRUST_DOMAIN/SERVICE
    #[arg(long, value_name = "SPIFFE_ID")]
    spiffe_id: Option<SpiffeId>,
    /// As root: the user, by name or number, as whom the proxy runs [default: the one with the service's name]
    #[arg(long, value_name = "USER")]
    user: Option<User>,
    /// A directory of policies that is followed until the CA publishes the first
    #[arg(long, value_name = "DIR")]
    policy_dir: Option<PathBuf>,
    /// Print the configuration that all this amounts to, for `hoplite proxy run --config`, and do nothing
    #[arg(long)]
    print_config: bool,
    /// The form of log lines on standard error
    #[arg(long, value_enum, default_value_t)]
    log: Format,
    #[command(flatten)]
    places: PlacesArgs,
}

/// What a service speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Protocol {
    /// HTTP/1.1
    Http,
    /// HTTP/2 with prior knowledge: gRPC
    Http2,
    /// Any TCP, decided once a connection
    Tcp,
}

/// A service that is called.
#[derive(Debug, Clone, PartialEq, Eq)]
struct To {
    name: ServiceName,
    is_tcp: bool,
    address: HostPort,
    local: Option<u16>,
}

/// Who a service that is called must be.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Expect {
    name: ServiceName,
    id: SpiffeId,
}

/// What all the flags amount to.
#[derive(Debug)]
struct Plan {
    text: String,
    /// For people: what goes in and out.
    told: String,
}

pub(crate) fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let places = args.places.places()?;
    let plan = args.plan(&places)?;
    let file = places.proxy_data(args.service.as_str()).join("proxy.toml");
    // A proxy's own reader has the last word, before anything is shown or made.
    let parsed: hoplite_proxy::Config = config::parse(Path::new("--print-config"), &plan.text)?;
    parsed.validate(Path::new("--print-config"))?;
    if args.print_config {
        print(&plan.text)?;
        return Ok(ExitCode::SUCCESS);
    }
    if is_running(&places.proxy_socket(args.service.as_str())) {
        bail!(
            "the proxy of `{}` runs already, by `{}`, which stays as it is; stop that one first, or change the file and send it SIGHUP",
            args.service,
            file.display()
        );
    }
    let user = args.user()?;
    let dirs = [
        places.proxy_data(args.service.as_str()),
        places
            .proxy_socket(args.service.as_str())
            .parent()
            .unwrap_or(Path::new("/"))
            .to_owned(),
    ];
    for dir in &dirs {
        own_dir(dir, user.as_ref())?;
    }
    files::write_public(&file, plan.text.as_bytes())?;
    print(&format!(
        "{}{}\n  file    {}\n{}",
        args.service,
        user.as_ref()
            .map(|user| format!(", as user {user}"))
            .unwrap_or_default(),
        file.display(),
        plan.told,
    ))?;
    match user {
        Some(user) => {
            give::to_owner(dirs.first().context("there is a data directory")?)?;
            Err(become_proxy(&user, &file, args.log))
        }
        None => {
            let manner = Manner {
                log: args.log,
                supervised: false,
            };
            hoplite_proxy::run(&Arguments { config: file, manner })?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Whether somebody serves a proxy's admin socket.
fn is_running(socket: &Path) -> bool {
    std::os::unix::net::UnixStream::connect(socket).is_ok()
}

/// This process goes on as the proxy, and as its user. Returns only why it does not.
fn become_proxy(user: &User, file: &Path, log: Format) -> anyhow::Error {
    let log = log
        .to_possible_value()
        .map(|value| value.get_name().to_owned())
        .unwrap_or_default();
    // As root `uid` drops the supplementary groups, too. The link leads to this program wherever it lies.
    let error = Command::new("/proc/self/exe")
        .arg0("hoplite")
        .args(["proxy", "run", "--config"])
        .arg(file)
        .args(["--log", &log])
        .uid(user.uid)
        .gid(user.gid)
        .exec();
    anyhow::Error::new(error).context(format!("cannot go on as user {user}"))
}

/// A directory of the proxy's own: made, and given to its user.
fn own_dir(dir: &Path, user: Option<&User>) -> anyhow::Result<()> {
    let is_there = dir.try_exists()?;
    let made = files::private_dir_among_others(dir);
    let Some(user) = user else {
        return made.context("run this as root, which makes it for the service's user, or say where with --dir DIR");
    };
    made?;
    let owner = std::fs::metadata(dir)?.uid();
    if owner == user.uid {
        return Ok(());
    }
    if is_there && owner != 0 {
        bail!(
            "`{}` belongs to user {owner}, and the proxy is to run as {user}; say --user {owner}, or give the directory to {user}",
            dir.display()
        );
    }
    std::os::unix::fs::chown(dir, Some(user.uid), Some(user.gid))
        .with_context(|| format!("cannot give `{}` to user {user}", dir.display()))
}

// === impl RunArgs ===

impl RunArgs {
    /// As whom the proxy runs, when that is not whoever calls.
    fn user(&self) -> anyhow::Result<Option<User>> {
        let own = rustix::process::geteuid().as_raw();
        if own != 0 {
            match &self.user {
                Some(user) if user.uid != own => {
                    bail!("only root can run the proxy as user {user}; leave `--user` out, or run this as root")
                }
                _ => return Ok(None),
            }
        }
        let user = match &self.user {
            Some(user) => user.clone(),
            None => User::from_str(self.service.as_str()).context("as whom does the proxy run? Say it with --user")?,
        };
        if user.uid == 0 {
            bail!(
                "a proxy does not run as root: any program of root's would have its identity; say another user with --user"
            );
        }
        Ok(Some(user))
    }

    fn plan(&self, places: &Places) -> anyhow::Result<Plan> {
        let service = self.service.as_str();
        // Below the directory, or else of this machine: one agent serves all.
        let mut agent = places.agent_config();
        if !agent.try_exists()? && Places::installed().agent_config().try_exists()? {
            agent = Places::installed().agent_config();
        }
        if !agent.try_exists()? {
            bail!(
                "this machine is no node yet, as there is no `{}`; run `hoplite join` with an invitation{}",
                agent.display(),
                if self.places.flag().is_empty() {
                    ", or say where it lies with --dir"
                } else {
                    ""
                }
            );
        }
        let agent = hoplite_agent::Config::load(&agent)?;
        let trust_domain = &agent.trust_domain;
        let own = match &self.spiffe_id {
            Some(id) => id.clone(),
            None => member(trust_domain, &self.service)?,
        };
        let data = places.proxy_data(service);
        let mut text = format!(
            "# Written by `hoplite run`. Every key: docs/reference/configuration.md\n\
             name = \"{}\"\n\
             workload_api = {}\n\
             spiffe_id = \"{own}\"\n\
             audit_dir = {}\n\
             state_dir = {}\n\
             admin_socket = {}\n",
            recorder(service, &hostname()),
            quoted(Path::new(&format!("unix://{}", agent.socket.display())))?,
            quoted(&data.join("audit"))?,
            quoted(&data.join("state"))?,
            quoted(&places.proxy_socket(service))?,
        );
        if let Some(dir) = &self.policy_dir {
            let _ = writeln!(text, "policy_dir = {}", quoted(&std::path::absolute(dir)?)?);
        }
        let mut told = format!("  is      {own}\n");
        if let Some(port) = self.port {
            let protocol = self.protocol.name();
            let _ = write!(
                text,
                "\n[[inbound]]\nlisten = \"{}\"\nservice = \"{service}\"\nprotocol = \"{protocol}\"\nforward_to = \"127.0.0.1:{port}\"\n",
                self.listen
            );
            let _ = writeln!(
                told,
                "  in      {} by mutual TLS, to {protocol} at 127.0.0.1:{port}",
                self.listen
            );
        }
        for known in &self.expect {
            if !self.to.iter().any(|to| to.name == known.name) {
                bail!("`--expect {}`: there is no `--to {}`", known.name, known.name);
            }
        }
        let mut taken = Vec::new();
        for to in &self.to {
            let expected = self.expect.iter().find(|known| known.name == to.name);
            let id = match expected {
                Some(known) => known.id.clone(),
                None => member(trust_domain, &to.name)?,
            };
            let local = to.local.unwrap_or_else(|| local_port(service, to.name.as_str()));
            if taken.contains(&local) {
                bail!(
                    "two services would be at the local port {local}; say another for one of them, `--to {}={}@PORT`",
                    to.name,
                    to.address
                );
            }
            taken.push(local);
            let protocol = if to.is_tcp { "tcp" } else { "http" };
            let _ = write!(
                text,
                "\n[[outbound]]\nname = \"{}\"\nlisten = \"127.0.0.1:{local}\"\nprotocol = \"{protocol}\"\nconnect_to = \"{}\"\nexpect = \"{id}\"\n",
                to.name, to.address
            );
            let scheme = if to.is_tcp { "tcp" } else { "http" };
            let _ = writeln!(
                told,
                "  out     {} is at {scheme}://127.0.0.1:{local}, through {} if that is {id}",
                to.name, to.address
            );
        }
        told.push_str("  policy  what the CA publishes; until the first everything is denied\n");
        Ok(Plan { text, told })
    }
}

/// The SPIFFE ID of a service, by convention.
fn member(trust_domain: &TrustDomain, service: &ServiceName) -> anyhow::Result<SpiffeId> {
    let id = trust_domain.member(&format!("/{service}"));
    id.with_context(|| {
        format!("the service `{service}` has no SPIFFE ID of its name; say it with --spiffe-id or --expect")
    })
}

/// The name of the proxy's decision log: of all proxies of the trust domain only this one has it.
fn recorder(service: &str, host: &str) -> String {
    let legal = |character: char| match character.to_ascii_lowercase() {
        legal @ ('a'..='z' | '0'..='9' | '-' | '.') => legal,
        _ => '-',
    };
    let name: String = format!("{service}.{host}")
        .chars()
        .map(legal)
        .take(RECORDER_BYTES_MAX)
        .collect();
    name.trim_matches(['.', '-']).to_owned()
}

fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// The local port at which a service calls another: the same after every start, on every machine, and whatever else it calls.
fn local_port(from: &str, to: &str) -> u16 {
    // FNV-1a: a hash that no release of anything changes.
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in from.bytes().chain([b'>']).chain(to.bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    let offset = hash % u64::try_from(LOCAL_PORTS.len()).unwrap_or(1);
    LOCAL_PORTS.start + u16::try_from(offset).unwrap_or_default()
}

// === impl Protocol ===

impl Protocol {
    fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Http2 => "http2",
            Self::Tcp => "tcp",
        }
    }
}

// === impl To ===

impl FromStr for To {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (name, rest) = text.split_once('=').context(
            "write NAME=HOST:PORT, for example ledger=10.0.0.1:8443, or with the local port ledger=10.0.0.1:8443@9001",
        )?;
        let (address, local) = match rest.split_once('@') {
            Some((address, port)) => (address, Some(port)),
            None => (rest, None),
        };
        let (is_tcp, address) = match address.strip_prefix("tcp://") {
            Some(address) => (true, address),
            None => (false, address.strip_prefix("http://").unwrap_or(address)),
        };
        let local = local.map(|port| match port.parse::<u16>() {
            Ok(port) if port > 0 => Ok(port),
            _ => bail!("`{port}` is no local port; write a number from 1 to 65535 after the `@`"),
        });
        Ok(Self {
            name: ServiceName::parse(name)?,
            is_tcp,
            address: HostPort::parse(address)?,
            local: local.transpose()?,
        })
    }
}

// === impl Expect ===

impl FromStr for Expect {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (name, id) = text
            .split_once('=')
            .context("write NAME=SPIFFE_ID, for example ledger=spiffe://prod.example/shop/ledger")?;
        Ok(Self {
            name: ServiceName::parse(name)?,
            id: SpiffeId::parse(id)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whom_it_calls() {
        let check = |text: &str, name: &str, is_tcp: bool, address: &str, local: Option<u16>| {
            let to = To::from_str(text).unwrap();
            assert_eq!(
                (to.name.as_str(), to.is_tcp, to.address.as_str(), to.local),
                (name, is_tcp, address, local)
            );
        };
        check("ledger=10.0.0.1:8443", "ledger", false, "10.0.0.1:8443", None);
        check(
            "ledger=10.0.0.1:8443@9001",
            "ledger",
            false,
            "10.0.0.1:8443",
            Some(9001),
        );
        check("db=tcp://[::1]:1@2", "db", true, "[::1]:1", Some(2));
        check("web=http://web.example:80", "web", false, "web.example:80", None);
        for (bad, expected) in [
            ("ledger", "NAME=HOST:PORT"),
            ("Ledger=h:1", "`Ledger` is not a service name"),
            ("ledger=h", "no port"),
            ("ledger=h:1@0", "no local port"),
            ("ledger=h:1@", "no local port"),
            ("ledger=https://h:1", "no host"),
        ] {
            let error = To::from_str(bad).unwrap_err().to_string();
            assert!(error.contains(expected), "{bad}: {error}");
        }
    }

    #[test]
    fn local_ports_stay_what_they_are() {
        // People write them into their programs' settings: these numbers never change.
        assert_eq!(local_port("billing", "ledger"), local_port("billing", "ledger"));
        assert_ne!(local_port("billing", "ledger"), local_port("billing", "orders"));
        assert_ne!(local_port("billing", "ledger"), local_port("bill", "ingledger"));
        for service in ["a", "ledger", "orders"] {
            assert!(LOCAL_PORTS.contains(&local_port("billing", service)));
        }
    }

    #[test]
    fn recorders_have_legal_names() {
        assert_eq!(recorder("ledger", "Node_1.example"), "ledger.node-1.example");
        assert_eq!(recorder("a_b", ""), "a-b");
        let long = recorder(&"a".repeat(64), "host");
        assert!(hoplite_audit::is_recorder_name(&long), "{long}");
    }
}
