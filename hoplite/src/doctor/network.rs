//! Names that resolve, peers that answer, ports and who holds them, and whether the CA is who it should be.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use hoplite_host::daemon::one_line;
use hoplite_host::files::open_regular;
use hoplite_identity::{BundleSet, PeerVerifier, TrustBundle, tls};
use hoplite_wire::channel;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

use super::daemons::Lives;
use super::finding::{CHECK_MAX, Finding, fail, ok, unseen, warn};
use super::part::Part;
use crate::command::dial;

/// Upstreams, ports, and of an agent its CA.
pub(super) async fn look(part: &Part, lives: Lives, findings: &mut Vec<Finding>) {
    match part {
        Part::Ca(ca) => findings.push(port(&part.name(), ca.listen, lives)),
        Part::Agent(agent) => {
            for address in agent.ca.iter() {
                findings.push(upstream("the CA", address.as_str()).await);
            }
            findings.push(ca(agent).await);
        }
        Part::Proxy(proxy) => {
            let inbound = proxy
                .inbound
                .iter()
                .map(|inbound| (inbound.service.to_string(), inbound.listen));
            let outbound = proxy
                .outbound
                .iter()
                .map(|outbound| (outbound.name.to_string(), outbound.listen));
            for (name, listen) in inbound.chain(outbound) {
                findings.push(port(&format!("{} for `{name}`", part.name()), listen, lives));
            }
            for inbound in &proxy.inbound {
                findings.push(upstream(&format!("the service `{}`", inbound.service), &inbound.forward_to).await);
            }
            for outbound in &proxy.outbound {
                findings.push(upstream(&format!("the peer `{}`", outbound.name), &outbound.connect_to).await);
            }
        }
    }
}

/// Whether a name resolves, and somebody takes connections there.
pub(super) async fn upstream(who: &str, address: &str) -> Finding {
    let what = format!("{who} at {address}");
    let resolved = match timeout(CHECK_MAX, lookup_host(address)).await {
        Err(_) => {
            return fail(
                "upstream",
                format!("{what}: no name server answers"),
                "look at /etc/resolv.conf",
            );
        }
        Ok(Err(error)) => {
            return fail(
                "upstream",
                format!("{what}: {error}"),
                "mend the name in the file, or its record",
            );
        }
        Ok(Ok(addresses)) => addresses.collect::<Vec<_>>(),
    };
    match timeout(CHECK_MAX, TcpStream::connect(&resolved[..])).await {
        Err(_) => fail(
            "upstream",
            format!("{what} does not answer"),
            "look whether it runs, and at firewalls between",
        ),
        Ok(Err(error)) => warn(
            "upstream",
            format!("{what}: {error}"),
            "start it, or mend the address in the file",
        ),
        Ok(Ok(_)) => ok("upstream", format!("{what} takes connections")),
    }
}

/// Who the CA proves to be, which also compares its clock with ours: its certificate must be valid by this one.
async fn ca(agent: &hoplite_agent::Config) -> Finding {
    let who = format!("the CA at {}", agent.ca);
    let bundle = open_regular(&agent.trust_bundle)
        .and_then(io::read_to_string)
        .map_err(|error| error.to_string())
        .and_then(|text| {
            TrustBundle::from_pem(agent.trust_domain.clone(), &text, 0).map_err(|error| error.to_string())
        });
    let bundle = match bundle {
        Ok(bundle) => bundle,
        Err(error) => return unseen("CA", format!("{who}: {error}"), "see the line `trust bundle`"),
    };
    let mut bundles = BundleSet::default();
    bundles.insert(Arc::new(bundle));
    let made = PeerVerifier::new(bundles)
        .map_err(|error| error.to_string())
        .and_then(|verifier| {
            let id = agent.trust_domain.ca();
            tls::client_config(None, Arc::new(verifier), id, &[b"h2"]).map_err(|error| error.to_string())
        });
    let config = match made {
        Ok(config) => config,
        Err(error) => {
            return fail(
                "CA",
                format!("{who}: {error}"),
                "fetch the bundle anew: hoplite bundle show",
            );
        }
    };
    match timeout(CHECK_MAX, channel::tls(agent.ca.to_string(), config)).await {
        Ok(Ok(_)) => ok(
            "CA",
            format!("{who} is the one of {}, by this clock too", agent.trust_domain.as_str()),
        ),
        Ok(Err(error)) => match dial::rejection(&error) {
            None => fail(
                "CA",
                format!("{who}: {}", one_line(&error)),
                "look whether it runs, and at firewalls between",
            ),
            Some(rejected) => fail(
                "CA",
                format!("{who}: {rejected}"),
                "a wrong clock, another CA or an old trust bundle: compare the clocks, then `hoplite bundle show`",
            ),
        },
        Err(_) => fail(
            "CA",
            format!("{who} does not answer"),
            "look whether it runs, and at firewalls between",
        ),
    }
}

/// Whether a port is held by who should hold it.
pub(super) fn port(whose: &str, listen: SocketAddr, lives: Lives) -> Finding {
    if listen.port() == 0 {
        return ok("port", format!("{whose} takes any that is free"));
    }
    let free = match TcpListener::bind(listen) {
        Ok(_) => true,
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => false,
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            return unseen(
                "port",
                format!("{listen}, of {whose}: {error}"),
                "run this as the daemon's user or as root",
            );
        }
        Err(error) => {
            return fail(
                "port",
                format!("{listen}, of {whose}: {error}"),
                "this machine has no such address",
            );
        }
    };
    let held = holder(listen.port());
    let holder = || held.clone().unwrap_or_else(|| "another user's process".to_owned());
    match (lives, free) {
        (Lives::Yes | Lives::Unknown, false) if held.is_none() => unseen(
            "port",
            format!("{listen}, of {whose}, is held by a process that this user cannot see"),
            "run this as the daemon's user or as root",
        ),
        (Lives::Yes | Lives::Unknown, false) => ok("port", format!("{listen}, of {whose}, is held by {}", holder())),
        (Lives::Yes, true) => fail(
            "port",
            format!("nobody listens on {listen}, though {whose} runs"),
            "it waits for its identity, or its file has changed since: look at its log, or send it SIGHUP",
        ),
        (Lives::No, true) => ok("port", format!("{listen}, of {whose}, is free")),
        (Lives::No, false) => fail(
            "port",
            format!("{listen}, of {whose}, which does not run, is held by {}", holder()),
            "stop that, or choose another port",
        ),
        (Lives::Unknown, true) => warn("port", format!("nobody listens on {listen}, of {whose}"), "start it"),
    }
}

/// The process that listens on a port, as far as `/proc` lets us see.
fn holder(port: u16) -> Option<String> {
    let inodes: BTreeSet<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok())
        .flat_map(|text| {
            text.lines()
                .filter_map(|line| listening(line, port))
                .collect::<Vec<_>>()
        })
        .collect();
    let processes = fs::read_dir("/proc").ok()?.flatten();
    processes.into_iter().find_map(|process| {
        let pid: u32 = process.file_name().to_str()?.parse().ok()?;
        let mut descriptors = fs::read_dir(process.path().join("fd")).ok()?.flatten();
        descriptors.find(|descriptor| {
            let target = fs::read_link(descriptor.path()).unwrap_or_default();
            let inode = target
                .to_str()
                .and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']'));
            inode.is_some_and(|inode| inodes.contains(inode))
        })?;
        let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
        Some(format!("process {pid} ({})", name.trim()))
    })
}

/// The inode of a line of `/proc/net/tcp` that listens on this port.
pub(super) fn listening(line: &str, port: u16) -> Option<String> {
    let mut fields = line.split_ascii_whitespace();
    let (local, state) = (fields.nth(1)?, fields.nth(1)?);
    let (_, number) = local.rsplit_once(':')?;
    let is_it = u16::from_str_radix(number, 16) == Ok(port) && state == "0A";
    is_it.then(|| fields.nth(5).map(str::to_owned))?
}
