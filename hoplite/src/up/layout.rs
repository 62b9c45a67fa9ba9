//! What lies where in a mesh's directory, which port is whose, and the configuration files made from both.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use hoplite_host::config::Span;
use hoplite_host::peer_process::PeerProcess;
use hoplite_host::{files, socket};
use hoplite_otlp::Collector;

use crate::command::policy::key;

/// The demo's trust domain.
pub(crate) const TRUST_DOMAIN: &str = "demo.hoplite";

/// The demo's node.
pub(crate) const NODE: &str = "local";

/// The three demo services, in calling order.
pub(crate) const SERVICES: [&str; 3] = ["edge", "orders", "ledger"];

/// Who calls whom: caller, callee. `edge` → `ledger` is there to be refused.
pub(crate) const CALLS: [(&str, &str); 3] = [("edge", "orders"), ("edge", "ledger"), ("orders", "ledger")];

/// The policies a new mesh starts with, and what they are to say.
const POLICIES: [(&str, &str); 6] = [
    ("edge.cedar", include_str!("../../demo/policies/edge.cedar")),
    ("orders.cedar", include_str!("../../demo/policies/orders.cedar")),
    ("ledger.cedar", include_str!("../../demo/policies/ledger.cedar")),
    ("security.cedar", include_str!("../../demo/policies/security.cedar")),
    ("routes.toml", include_str!("../../demo/policies/routes.toml")),
    ("demo.test", include_str!("../../demo/policies/demo.test")),
];

/// Who signs policy here. Two, for a break-glass grant needs two people.
const SIGNERS: [&str; 2] = ["alice", "bob"];

/// The directory of one mesh.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    dir: PathBuf,
}

/// One loopback port for each listener: three runs of ten from a base.
#[derive(Debug, Clone)]
pub(crate) struct Ports {
    pub(crate) ca: u16,
    services: [u16; 3],
    inbound: [u16; 3],
    outbound: [u16; 3],
    /// Of CA, agent and services, where their metrics are shown.
    metrics: Option<[u16; 5]>,
    /// Where all of them send spans and metrics.
    otlp: Option<Collector>,
}

// === impl Ports ===

impl Ports {
    /// `base` for the CA, +1… for the services, +11… for inbound listeners, +21… for outbound ones.
    pub(crate) fn from_base(base: u16) -> Self {
        let run = |offset: u16| [base + offset, base + offset + 1, base + offset + 2];
        Self {
            ca: base,
            services: run(1),
            inbound: run(11),
            outbound: run(21),
            metrics: None,
            otlp: None,
        }
    }

    /// Has each part send to this collector.
    pub(crate) fn send_to(&mut self, collector: Option<Collector>) {
        self.otlp = collector;
    }

    /// Shows the metrics of each part, on five ports from the base + 4 on.
    pub(crate) fn show_metrics(&mut self) {
        self.metrics = Some(std::array::from_fn(|n| self.ca + 4 + n as u16));
    }

    /// The lines of a part's configuration that say where its metrics are shown, and sent.
    fn telemetry(&self, name: &str) -> String {
        let sent = self.otlp.as_ref();
        let sent = sent.map(|collector| format!("otlp = {{ endpoint = \"{collector}\" }}\n"));
        format!("{}{}", self.metrics_listen(name), sent.unwrap_or_default())
    }

    fn metrics_listen(&self, name: &str) -> String {
        let [edge, orders, ledger] = SERVICES;
        let parts = ["ca", "agent", edge, orders, ledger];
        let port = self.metrics.into_iter().flat_map(|ports| parts.into_iter().zip(ports));
        let line = |port| format!("metrics_listen = \"{}\"\n", loopback(port));
        port.into_iter()
            .find(|(part, _)| *part == name)
            .map(|(_, port)| line(port))
            .unwrap_or_default()
    }

    /// Ports that are free at this moment.
    pub(crate) fn free() -> anyhow::Result<Self> {
        // Held together until all are chosen, so that none is given twice.
        let listeners = (0..10)
            .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
            .collect::<Result<Vec<_>, _>>()
            .context("there is no free port on the loopback interface")?;
        let ports = listeners
            .iter()
            .map(|l| Ok(l.local_addr()?.port()))
            .collect::<std::io::Result<Vec<_>>>()?;
        let [ca, s1, s2, s3, i1, i2, i3, o1, o2, o3] = ports.as_slice() else {
            bail!("too few ports")
        };
        Ok(Self {
            ca: *ca,
            services: [*s1, *s2, *s3],
            inbound: [*i1, *i2, *i3],
            outbound: [*o1, *o2, *o3],
            metrics: None,
            otlp: None,
        })
    }

    /// Fails with the name of the first port that somebody else listens on.
    pub(crate) fn ensure_free(&self) -> anyhow::Result<()> {
        let mut wanted = vec![(self.ca, "the CA".to_owned())];
        for name in SERVICES {
            wanted.push((self.service(name).port(), format!("the service {name}")));
            wanted.push((self.inbound(name).port(), format!("the inbound listener of {name}")));
        }
        for port in self.metrics.into_iter().flatten() {
            wanted.push((port, "metrics".to_owned()));
        }
        for (caller, callee) in CALLS {
            wanted.push((
                self.outbound(caller, callee).port(),
                format!("the outbound listener from {caller} to {callee}"),
            ));
        }
        for (port, whose) in wanted {
            TcpListener::bind((Ipv4Addr::LOCALHOST, port)).with_context(|| {
                format!(
                    "port {port}, for {whose}, is taken; stop what listens there or choose other ports with --base-port"
                )
            })?;
        }
        Ok(())
    }

    /// Where a demo service listens, in plaintext, for its own proxy.
    pub(crate) fn service(&self, name: &str) -> SocketAddr {
        loopback(pick(&self.services, &SERVICES, &name))
    }

    /// Where a service's proxy accepts mutual TLS.
    pub(crate) fn inbound(&self, name: &str) -> SocketAddr {
        loopback(pick(&self.inbound, &SERVICES, &name))
    }

    /// Where a caller reaches a callee, in plaintext, through its own proxy.
    pub(crate) fn outbound(&self, caller: &str, callee: &str) -> SocketAddr {
        loopback(pick(&self.outbound, &CALLS, &(caller, callee)))
    }
}

fn pick<T: PartialEq>(ports: &[u16; 3], names: &[T; 3], name: &T) -> u16 {
    names
        .iter()
        .zip(ports)
        .find(|(known, _)| *known == name)
        .map_or(0, |(_, port)| *port)
}

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

// === impl Layout ===

impl Layout {
    /// Makes the directories that are missing, and the demo's policies if there are none yet.
    pub(crate) fn create(dir: &Path) -> anyhow::Result<Self> {
        let layout = Self { dir: dir.to_owned() };
        if dir.to_str().is_none_or(|name| name.chars().any(char::is_control)) {
            bail!("the directory {dir:?} cannot stand in a configuration file; choose a name of printable characters");
        }
        // Before anything is made: the longest of the sockets must be possible.
        socket::ensure_fits(&layout.socket("orders"))?;
        files::private_dir(dir)?;
        for part in ["run", "config", "logs", "audit", "state", "keys"] {
            files::private_dir(&dir.join(part))?;
        }
        for name in SIGNERS {
            if !layout.key(name).exists() {
                key::create(&layout.key(name), None)?;
            }
        }
        // Only as a whole: what a person deleted on purpose stays deleted.
        if !layout.policies().exists() {
            files::private_dir(&layout.policies())?;
            for (name, text) in POLICIES {
                files::write_public(&layout.policies().join(name), text.as_bytes())?;
            }
        }
        Ok(layout)
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn policies(&self) -> PathBuf {
        self.dir.join("policies")
    }

    pub(crate) fn config(&self, name: &str) -> PathBuf {
        self.dir.join("config").join(format!("{name}.toml"))
    }

    pub(crate) fn socket(&self, name: &str) -> PathBuf {
        self.dir.join("run").join(format!("{name}.sock"))
    }

    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.dir.join("logs").join(format!("{name}.log"))
    }

    fn key(&self, name: &str) -> PathBuf {
        self.dir.join("keys").join(format!("{name}.key"))
    }

    /// As a line of the CA's configuration file. Agent and proxies follow whom it names.
    fn policy_signers(&self) -> anyhow::Result<String> {
        let signers = SIGNERS
            .iter()
            .map(|name| Ok(format!("\"{}\"", key::load(&self.key(name), None)?.signer())));
        let signers: Vec<String> = signers.collect::<anyhow::Result<_>>()?;
        Ok(format!("policy_signers = [{}]\n", signers.join(", ")))
    }

    pub(crate) fn join_token(&self) -> PathBuf {
        self.dir.join("run/join-token")
    }

    /// Writes the configuration of every part. The lives are those of services' SVIDs and of the agent's. `via` is where a proxy dials a callee, when not its listener itself.
    pub(crate) fn write_configs(
        &self,
        ports: &Ports,
        lives: [(&str, Option<Duration>); 3],
        peer_process: PeerProcess,
        via: impl Fn(&str, &str) -> Option<SocketAddr>,
    ) -> anyhow::Result<()> {
        // As TOML writes it between quotes.
        let dir = self.dir.display().to_string().replace('\\', r"\\").replace('"', "\\\"");
        let signers = self.policy_signers()?;
        let mut ca = format!(
            "# Written by `hoplite up` at each start.\n\
             trust_domain = \"{TRUST_DOMAIN}\"\n\
             data_dir = \"{dir}/ca\"\n\
             founds = true\n\
             listen = \"{}\"\n\
             admin_socket = \"{dir}/run/ca.sock\"\n\
             report_period = \"2s\"\n\
             {}{signers}",
            loopback(ports.ca),
            ports.telemetry("ca"),
        );
        for (name, ttl) in lives {
            if let Some(ttl) = ttl {
                let _ = writeln!(ca, "{name} = \"{}\"", Span(ttl));
            }
        }
        let agent = format!(
            "# Written by `hoplite up` at each start.\n\
             trust_domain = \"{TRUST_DOMAIN}\"\n\
             data_dir = \"{dir}/agent\"\n\
             ca = \"{}\"\n\
             trust_bundle = \"{dir}/ca/bundle.pem\"\n\
             join_token_file = \"{dir}/run/join-token\"\n\
             socket = \"{dir}/run/agent.sock\"\n\
             socket_mode = 0o600\n\
             peer_process = \"{peer_process}\"\n{}",
            loopback(ports.ca),
            ports.telemetry("agent"),
        );
        self.write_config("ca", &ca)?;
        self.write_config("agent", &agent)?;
        for name in SERVICES {
            let mut proxy = format!(
                "# Written by `hoplite up` at each start.\n\
                 name = \"{name}\"\n\
                 workload_api = \"unix://{dir}/run/agent.sock\"\n\
                 spiffe_id = \"{}\"\n\
                 policy_dir = \"{dir}/policies\"\n\
                 audit_dir = \"{dir}/audit/{name}\"\n\
                 state_dir = \"{dir}/state/{name}\"\n\
                 admin_socket = \"{dir}/run/{name}.sock\"\n\
                 {}\n\
                 [[inbound]]\n\
                 listen = \"{}\"\n\
                 service = \"{name}\"\n\
                 protocol = \"http\"\n\
                 forward_to = \"{}\"\n",
                spiffe_id(name),
                ports.telemetry(name),
                ports.inbound(name),
                ports.service(name),
            );
            for (_, callee) in CALLS.iter().filter(|(caller, _)| *caller == name) {
                let _ = write!(
                    proxy,
                    "\n[[outbound]]\n\
                     name = \"{callee}\"\n\
                     listen = \"{}\"\n\
                     protocol = \"http\"\n\
                     connect_to = \"{}\"\n\
                     expect = \"{}\"\n",
                    ports.outbound(name, callee),
                    via(name, callee).unwrap_or_else(|| ports.inbound(callee)),
                    spiffe_id(callee),
                );
            }
            self.write_config(name, &proxy)?;
        }
        Ok(())
    }

    fn write_config(&self, name: &str, text: &str) -> anyhow::Result<()> {
        Ok(files::write_public(&self.config(name), text.as_bytes())?)
    }
}

/// The identity of a demo service.
pub(crate) fn spiffe_id(name: &str) -> String {
    format!("spiffe://{TRUST_DOMAIN}/shop/{name}")
}

/// The identity of who calls `edge` in `--check`.
pub(crate) fn visitor_id() -> String {
    format!("spiffe://{TRUST_DOMAIN}/visitor")
}

#[cfg(test)]
mod tests {
    use hoplite_policy::{Snapshot, Source};

    use super::*;

    #[test]
    fn the_demo_policies_are_good() {
        let sources: Vec<Source> = POLICIES
            .iter()
            .filter(|(name, _)| !name.ends_with(".test"))
            .map(|(name, text)| Source {
                name: (*name).to_owned(),
                text: (*text).to_owned(),
            })
            .collect();
        Snapshot::compile(&sources).unwrap();
    }

    #[test]
    fn every_config_file_is_accepted_by_its_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::create(&dir.path().join(r#"a "strange\name"#)).unwrap();
        layout
            .write_configs(
                &Ports::from_base(7700),
                [
                    ("x509_ttl", Some(Duration::from_secs(10))),
                    ("agent_ttl", None),
                    ("authority_ttl", None),
                ],
                PeerProcess::Pid,
                |_, _| None,
            )
            .unwrap();
        hoplite_ca::Config::load(&layout.config("ca")).unwrap();
        hoplite_agent::Config::load(&layout.config("agent")).unwrap();
        for name in SERVICES {
            hoplite_proxy::Config::load(&layout.config(name)).unwrap();
        }
    }

    #[test]
    fn no_port_is_given_twice() {
        for ports in [Ports::from_base(7700), Ports::free().unwrap()] {
            let mut all: Vec<u16> = [&ports.services[..], &ports.inbound, &ports.outbound, &[ports.ca]].concat();
            all.sort_unstable();
            all.dedup();
            assert_eq!(all.len(), 10);
        }
    }
}
