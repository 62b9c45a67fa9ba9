//! The configuration file of a proxy: who it is, what it listens on, whom it forwards to.

use std::collections::HashSet;
use std::fmt::{self, Display};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use hoplite_audit::is_recorder_name;
use hoplite_decision::OnStale;
use hoplite_host::config::{self, ConfigError};
use hoplite_host::logging::Levels;
use hoplite_identity::{InvalidServiceName, ServiceName, SpiffeId, TrustDomain};
use hoplite_otlp::OtlpSettings;
use hoplite_policy::header_nature::RemovedHeaders;
use hoplite_policy::holding::PolicyTrust;
use hoplite_seal::TrustedSigners;
use hoplite_telemetry::MetricsListen;
use serde::{Deserialize, Serialize};

use crate::limits::Limits;
use crate::peer::destination::{BadDestination, Destination, is_address};

/// A connection with more useless frames than work and time give back is ended: see `docs/reference/answers.md`.
pub const USELESS_FRAMES_MAX: u32 = 1_000;

/// Fewer are in use by clients that mean well, more bound nothing.
const USELESS_FRAMES: RangeInclusive<u32> = 100..=1_000_000;

/// More workers than this is a typing error.
const WORKERS_MAX: usize = 64;

/// The whole file. Relative paths are relative to the file it came from.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The recorder's name, `[a-z0-9.-]{1,64}`: it stands in every decision id.
    pub name: String,
    /// Where the agent's Workload API is, as in `SPIFFE_ENDPOINT_SOCKET`.
    pub workload_api: String,
    /// Which SVID to take when the agent gives several; it must be among them. Without it the first, which is the
    /// default identity.
    #[serde(default)]
    pub spiffe_id: Option<SpiffeId>,
    /// Directory of `*.cedar` files and `routes.toml`; followed while the proxy runs, until the agent sends a first
    /// signed bundle. Without it, everything is denied until then.
    pub policy_dir: Option<PathBuf>,
    /// Whose policy bundles and grants are believed, `name=ed25519:KEY` each, and nobody else ever. Without it those that
    /// the agent named first, and whomever a quorum of them has signed for since.
    #[serde(default)]
    pub policy_signers: TrustedSigners,
    /// Whose policies these have to be. Needed with `policy_signers`, unless `spiffe_id` says it.
    #[serde(default)]
    pub trust_domain: Option<TrustDomain>,
    /// What a bundle that has expired does: decide on, with `stale` in every record, or deny everything.
    #[serde(default)]
    pub on_stale_policy: OnStale,
    /// One decision in so many is also made by the reference, over every policy; 0 for none.
    #[serde(default = "hoplite_decision::reference_every")]
    pub reference_check_every: u64,
    /// Directory of decision records; this process is its only writer.
    pub audit_dir: PathBuf,
    /// Directory of what is kept for the next start: the policy that was last in force. Outside `audit_dir`; a file that
    /// leaves it out means [`beside`] that.
    #[serde(default)]
    pub state_dir: PathBuf,
    /// Unix socket for `/status`, `/policies` and `/metrics`; only the own user may connect.
    pub admin_socket: PathBuf,
    /// Where `/live`, `/ready` and `/metrics` are served to the tools that people have; nowhere when left out.
    #[serde(default)]
    pub metrics_listen: Option<MetricsListen>,
    /// Where spans and metrics are sent; nowhere when left out.
    #[serde(default)]
    pub otlp: Option<OtlpSettings>,
    /// Headers that no request takes to the service, in whatever spelling, beside those of `docs/reference/headers.md`.
    #[serde(default)]
    pub removed_headers: RemovedHeaders,
    /// What is logged: `info,hoplite_proxy=debug`. `HOPLITE_LOG` goes before it.
    #[serde(default)]
    pub log_levels: Option<Levels>,
    /// Frames of HTTP/2 that belong to no request, above what work and time give back: a connection with more is ended.
    #[serde(default = "useless_frames")]
    pub useless_frames_max: u32,
    /// Threads that carry traffic.
    #[serde(default = "one")]
    pub workers: usize,
    /// How much there may be of what callers take, and for how long.
    #[serde(default)]
    pub limits: Limits,
    /// Where peers call the service behind this proxy.
    #[serde(default)]
    pub inbound: Vec<Inbound>,
    /// Where the service behind this proxy calls others.
    #[serde(default)]
    pub outbound: Vec<Outbound>,
}

/// Mutual TLS comes in, is authorised, and goes on to a local service.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inbound {
    /// Where to listen; port 0 takes a free one.
    #[serde(deserialize_with = "config::listen")]
    pub listen: SocketAddr,
    /// The service's name in policies and records.
    pub service: ServiceName,
    /// What the service speaks.
    pub protocol: InboundProtocol,
    /// The service's own `host:port`.
    pub forward_to: String,
}

/// Plain text comes in from the own machine and goes on by mutual TLS to one expected peer.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outbound {
    /// The upstream's name in logs and status.
    pub name: UpstreamName,
    /// Where to listen: loopback only.
    #[serde(deserialize_with = "config::listen")]
    pub listen: SocketAddr,
    /// What the local caller speaks.
    pub protocol: OutboundProtocol,
    /// The peer proxy's `host:port`.
    pub connect_to: String,
    /// The one identity the peer may have.
    pub expect: SpiffeId,
}

/// The name of an upstream, in logs and status: by the rule of service names, since it mostly is that of the service called.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(transparent)]
pub struct UpstreamName(ServiceName);

/// What stands behind an inbound listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InboundProtocol {
    /// HTTP/1.1.
    Http,
    /// HTTP/2 with prior knowledge: gRPC.
    Http2,
    /// Any TCP; decided once per connection.
    Tcp,
}

/// What an outbound listener accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutboundProtocol {
    /// HTTP/1.1, and HTTP/2 with prior knowledge.
    Http,
    /// Any TCP.
    Tcp,
}

// === impl Config ===

impl Config {
    /// Reads and checks a file. Errors name file, key, value and remedy.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let mut config: Self = config::load(path)?;
        let base = path.parent().unwrap_or(Path::new(""));
        for relative in [&mut config.audit_dir, &mut config.admin_socket] {
            *relative = base.join(&*relative);
        }
        if let Some(relative) = &mut config.policy_dir {
            *relative = base.join(&*relative);
        }
        config.state_dir = match config.state_dir.as_os_str().is_empty() {
            true => beside(&config.audit_dir),
            false => base.join(&config.state_dir),
        };
        config.validate(path)?;
        Ok(config)
    }

    /// Whose bundles are believed, if it is said here.
    pub(crate) fn bundle_trust(&self) -> Option<PolicyTrust> {
        let own = self.spiffe_id.as_ref().map(|id| id.trust_domain().clone());
        let trust_domain = self.trust_domain.clone().or(own)?;
        (!self.policy_signers.is_empty()).then(|| PolicyTrust::new(self.policy_signers.clone(), trust_domain))
    }

    /// Checks what the types cannot say; `path` is named in errors.
    ///
    /// # Errors
    /// The first key whose value cannot be used.
    pub fn validate(&self, path: &Path) -> Result<(), ConfigError> {
        let checked = self
            .check_process()
            .and_then(|()| self.check_policy())
            .and_then(|()| self.check_listeners());
        checked.map_err(|Unusable { key, value, remedy }| ConfigError::unusable(path, key, &value, &remedy))?;
        self.otlp.iter().try_for_each(|otlp| otlp.check(path, true))
    }

    /// What the process itself needs.
    fn check_process(&self) -> Result<(), Unusable> {
        let socket = self
            .workload_api
            .strip_prefix("unix://")
            .or_else(|| self.workload_api.strip_prefix("unix:"));
        check(
            is_recorder_name(&self.name),
            "name",
            &self.name,
            "write 1 to 64 of `a-z`, `0-9`, `-`, `.`: the name stands in decision ids",
        )?;
        check(
            !self.state_dir.starts_with(&self.audit_dir),
            "state_dir",
            &self.state_dir.display(),
            "the log's directory is the log's alone; choose a directory outside `audit_dir`",
        )?;
        check(
            socket.unwrap_or(&self.workload_api).starts_with('/'),
            "workload_api",
            &self.workload_api,
            "write `unix:///absolute/path/to/agent.sock`",
        )?;
        check(
            USELESS_FRAMES.contains(&self.useless_frames_max),
            "useless_frames_max",
            &self.useless_frames_max,
            "write a number from 100 to 1000000; 1000 is right for all clients that are known",
        )?;
        check(
            (1..=WORKERS_MAX).contains(&self.workers),
            "workers",
            &self.workers,
            "write a number from 1 to 64; 1 is right beside one service",
        )
    }

    /// Whose policy it has to be.
    fn check_policy(&self) -> Result<(), Unusable> {
        let signed = !self.policy_signers.is_empty();
        check(
            !signed || self.bundle_trust().is_some(),
            "trust_domain",
            &"",
            "bundles are signed for one trust domain; write its name, for example `prod.example`",
        )
    }

    fn check_listeners(&self) -> Result<(), Unusable> {
        let some = !self.inbound.is_empty() || !self.outbound.is_empty();
        check(
            some,
            "inbound",
            &"[]",
            "write at least one `[[inbound]]` or `[[outbound]]` table",
        )?;
        let mut addresses = HashSet::new();
        for inbound in &self.inbound {
            inbound.check(&mut addresses)?;
        }
        let mut names = HashSet::new();
        for outbound in &self.outbound {
            outbound.check(&mut addresses, &mut names)?;
        }
        self.check_circles()
    }

    /// What an inbound listener forwards to must not come back to it by way of our own listeners. A circle through other
    /// proxies is noticed when a request goes round in it.
    fn check_circles(&self) -> Result<(), Unusable> {
        let targets = |listen: SocketAddr| {
            let inbound = self.inbound.iter().map(|inbound| (inbound.listen, &inbound.forward_to));
            let outbound = self
                .outbound
                .iter()
                .map(|outbound| (outbound.listen, &outbound.connect_to));
            inbound
                .chain(outbound)
                .find(|(own, _)| *own == listen)
                .map(|(_, target)| target)
        };
        let listeners = || {
            let inbound = self.inbound.iter().map(|inbound| inbound.listen);
            inbound.chain(self.outbound.iter().map(|outbound| outbound.listen))
        };
        let next = |target: &str| listeners().find(|listen| reaches(target, *listen));
        let circular = |key: &'static str, listen: SocketAddr, target: &str| {
            let mut at = next(target);
            for _ in listeners() {
                match at {
                    Some(there) if there == listen => {
                        let remedy = "this leads back to its own listener; write where the service itself listens";
                        return Err(Unusable::new(key, &target, remedy));
                    }
                    Some(there) => at = targets(there).and_then(|target| next(target)),
                    None => break,
                }
            }
            Ok(())
        };
        for inbound in &self.inbound {
            circular("inbound.forward_to", inbound.listen, &inbound.forward_to)?;
        }
        for outbound in &self.outbound {
            circular("outbound.connect_to", outbound.listen, &outbound.connect_to)?;
        }
        Ok(())
    }
}

/// Whether who connects to `target` meets a listener with this address, as far as the text tells.
fn reaches(target: &str, listen: SocketAddr) -> bool {
    let Some((host, port)) = target.rsplit_once(':') else {
        return false;
    };
    if port.parse() != Ok(listen.port()) || listen.port() == 0 {
        return false;
    }
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let (local, ip) = match host.parse::<IpAddr>() {
        Ok(ip) => (ip.is_loopback() || ip.is_unspecified(), Some(ip)),
        Err(_) => (host == "localhost", None),
    };
    ip == Some(listen.ip()) || (local && (listen.ip().is_loopback() || listen.ip().is_unspecified()))
}

// === impl Inbound ===

impl Inbound {
    /// Beside listeners with these addresses.
    fn check(&self, addresses: &mut HashSet<SocketAddr>) -> Result<(), Unusable> {
        check_free("inbound.listen", self.listen, addresses)?;
        check(
            is_address(&self.forward_to),
            "inbound.forward_to",
            &self.forward_to,
            "write `host:port`, for example `127.0.0.1:8080`",
        )
    }
}

// === impl Outbound ===

impl Outbound {
    /// Whom it calls at first.
    pub(crate) fn destination(&self) -> Result<Destination, BadDestination> {
        Destination::new(&self.connect_to, &self.expect)
    }

    /// Beside listeners with these addresses, and upstreams of these names.
    fn check<'c>(
        &'c self,
        addresses: &mut HashSet<SocketAddr>,
        names: &mut HashSet<&'c UpstreamName>,
    ) -> Result<(), Unusable> {
        check(
            self.listen.ip().is_loopback(),
            "outbound.listen",
            &self.listen,
            "whoever reaches this port speaks with this workload's identity; listen on `127.0.0.1` or `[::1]`",
        )?;
        check_free("outbound.listen", self.listen, addresses)?;
        check(
            names.insert(&self.name),
            "outbound.name",
            &self.name,
            "another `[[outbound]]` table has this name; write each name once",
        )?;
        match self.destination() {
            Ok(_) => Ok(()),
            Err(bad @ BadDestination::Address) => Err(Unusable::new("outbound.connect_to", &self.connect_to, bad)),
            Err(bad @ BadDestination::TrustDomain) => Err(Unusable::new("outbound.expect", &self.expect, bad)),
        }
    }
}

// === impl UpstreamName ===

impl UpstreamName {
    /// In records, as the service that is called.
    pub(crate) fn called(&self) -> &ServiceName {
        &self.0
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl fmt::Display for UpstreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for UpstreamName {
    type Err = InvalidServiceName;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        ServiceName::parse(name).map(Self)
    }
}

/// A value that cannot be used, and what to write instead.
struct Unusable {
    key: &'static str,
    value: String,
    remedy: String,
}

// === impl Unusable ===

impl Unusable {
    fn new(key: &'static str, value: &dyn Display, remedy: impl Display) -> Self {
        Self {
            key,
            value: value.to_string(),
            remedy: remedy.to_string(),
        }
    }
}

fn check(good: bool, key: &'static str, value: &dyn Display, remedy: &str) -> Result<(), Unusable> {
    if good {
        Ok(())
    } else {
        Err(Unusable::new(key, value, remedy))
    }
}

/// Port 0 takes a free one.
fn check_free(key: &'static str, listen: SocketAddr, addresses: &mut HashSet<SocketAddr>) -> Result<(), Unusable> {
    let free = listen.port() == 0 || addresses.insert(listen);
    check(
        free,
        key,
        &listen,
        "another listener has this address; choose a free port",
    )
}

/// `/var/lib/hoplite/audit-state` for `/var/lib/hoplite/audit`.
fn beside(audit_dir: &Path) -> PathBuf {
    let mut name = audit_dir.file_name().unwrap_or_default().to_owned();
    name.push("-state");
    audit_dir.with_file_name(name)
}

fn useless_frames() -> u32 {
    USELESS_FRAMES_MAX
}

fn one() -> usize {
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
name = "orders"
workload_api = "unix:///run/agent.sock"
spiffe_id = "spiffe://demo.hoplite/orders"
policy_dir = "policies"
audit_dir = "/var/audit"
admin_socket = "orders.sock"
[[inbound]]
listen = "127.0.0.1:7712"
service = "orders"
protocol = "http"
forward_to = "127.0.0.1:7702"
[[outbound]]
name = "ledger"
listen = "127.0.0.1:7722"
protocol = "tcp"
connect_to = "127.0.0.1:7713"
expect = "spiffe://demo.hoplite/ledger"
"#;

    fn load(text: &str) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("proxy.toml");
        std::fs::write(&path, text).unwrap();
        Config::load(&path)
    }

    #[test]
    fn a_file_is_read() {
        let config = load(GOOD).unwrap();
        assert_eq!(config.workers, 1);
        assert!(
            config
                .policy_dir
                .is_some_and(|dir| dir.is_absolute() && dir.ends_with("policies")),
            "relative to the file"
        );
        assert_eq!(config.audit_dir, Path::new("/var/audit"));
        assert_eq!(config.state_dir, Path::new("/var/audit-state"), "beside the log");
        assert_eq!(config.outbound[0].expect.path(), "/ledger");
    }

    #[test]
    fn errors_name_key_and_value() {
        let check = |from: &str, to: &str, expected: &[&str]| {
            assert!(GOOD.contains(from), "{from}");
            let error = load(&GOOD.replacen(from, to, 1)).unwrap_err().to_string();
            assert!(error.contains("proxy.toml"), "{error}");
            for part in expected {
                assert!(error.contains(part), "`{part}` is missing from `{error}`");
            }
        };
        check(
            "name = \"orders\"",
            "name = \"Orders\"",
            &["name = Orders", "decision ids"],
        );
        check("name = \"orders\"", "nmae = \"orders\"", &["nmae"]);
        check(
            "unix:///run/agent.sock",
            "tcp://1.2.3.4:1",
            &["workload_api = tcp://1.2.3.4:1", "unix:///"],
        );
        check("spiffe://demo.hoplite/orders", "https://demo/orders", &["spiffe_id"]);
        check(
            "spiffe://demo.hoplite/ledger",
            "spiffe://demo.hoplite",
            &["outbound.expect"],
        );
        check(
            "127.0.0.1:7722",
            "0.0.0.0:7722",
            &["outbound.listen = 0.0.0.0:7722", "127.0.0.1"],
        );
        check(
            "127.0.0.1:7722",
            "127.0.0.1:7712",
            &["outbound.listen = 127.0.0.1:7712", "another listener"],
        );
        check("127.0.0.1:7712", "localhost", &["listen"]);
        check(
            "service = \"orders\"",
            "service = \"Orders\"",
            &["`Orders` is not a service name; use 1 to 64"],
        );
        check(
            "name = \"ledger\"",
            "name = \"led ger\"",
            &["`led ger` is not a service name"],
        );
        check(
            "forward_to = \"127.0.0.1:7702\"",
            "forward_to = \"127.0.0.1\"",
            &["inbound.forward_to = 127.0.0.1"],
        );
        check(
            "forward_to = \"127.0.0.1:7702\"",
            "forward_to = \"localhost:7712\"",
            &["inbound.forward_to = localhost:7712", "leads back to its own listener"],
        );
        check(
            "admin_socket = \"orders.sock\"",
            "admin_socket = \"orders.sock\"\nremoved_headers = [\"host\"]",
            &["`host` says where a request goes"],
        );
        check(
            "admin_socket = \"orders.sock\"",
            "admin_socket = \"orders.sock\"\nuseless_frames_max = 10",
            &["useless_frames_max = 10", "100 to 1000000"],
        );
        check("protocol = \"http\"", "protocol = \"https\"", &["https", "http2"]);
        check(
            "admin_socket = \"orders.sock\"",
            "admin_socket = \"orders.sock\"\nworkers = 0",
            &["workers = 0"],
        );
    }
}
