//! What `hoplite up` shows: what runs, where, and what to try.

use std::net::SocketAddr;
use std::path::Path;

use super::layout::{CALLS, SERVICES, TRUST_DOMAIN};
use super::mesh::Mesh;

/// The picture, the addresses, three commands, and where the policies lie.
pub(crate) fn picture(mesh: &Mesh) -> String {
    let ports = &mesh.ports;
    // Each port in a place of five digits, so that the lines meet.
    let wide = |address: SocketAddr| format!(":{:<5}", address.port());
    let [edge, orders, ledger] = SERVICES.map(|name| wide(ports.service(name)));
    let [edge_in, orders_in, ledger_in] = SERVICES.map(|name| wide(ports.inbound(name)));
    let [to_orders, direct, to_ledger] = CALLS.map(|(caller, callee)| wide(ports.outbound(caller, callee)));
    let (shop, ca) = (ports.service("edge"), ports.ca);
    let (dir, flag) = (mesh.layout.dir().display(), dir_flag(mesh.layout.dir()));
    let (program, seconds) = (program(), mesh.took.as_secs_f64());
    format!(
        r"
  Hoplite runs a mesh for spiffe://{TRUST_DOMAIN}, up after {seconds:.2} s

    edge {edge}            orders {orders}          ledger {ledger}     services: plain HTTP, unchanged
      ▲ │                      ▲ │                      ▲
      │ ▼ {to_orders}               │ ▼ {to_ledger}               │
    ┌───────┐              ┌───────┐              ┌───────┐
    │ proxy │════ mTLS ═══►│ proxy │════ mTLS ═══►│ proxy │         proxies: verify, decide, record, forward
    └───────┘ {edge_in}       └───────┘ {orders_in}       └───────┘ {ledger_in}
        ╚═══ {direct} ═══ mTLS, refused by policy ═════╝
      ▲
      │ SVIDs, renewed at half their life
    agent ═══ mTLS ═══ CA :{ca}

  Try
    an allowed call      curl http://{shop}/orders/42
    a refused one        curl http://{shop}/ledger/42
    who, what and why    {program} audit query --since 5m{flag}

  Policies               {dir}/policies
                         save an edit and it is in force; see {program} policy status{flag}
  Logs                   {dir}/logs

  Ctrl-C stops all of it.
"
    )
}

/// How the person called us, as far as it can be known.
fn program() -> String {
    let program = std::env::args().next().unwrap_or_else(|| "hoplite".to_owned());
    let cwd = std::env::current_dir().unwrap_or_default();
    match Path::new(&program).strip_prefix(&cwd) {
        Ok(relative) => relative.display().to_string(),
        Err(_) => program,
    }
}

/// Nothing for the default directory: tools find it by themselves.
fn dir_flag(dir: &Path) -> String {
    match crate::command::MeshDir::default().path() {
        Ok(default) if default == dir => String::new(),
        _ => format!(" --dir {}", dir.display()),
    }
}
