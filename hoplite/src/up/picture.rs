//! What `hoplite up` shows: what runs, where, and what to try.

use std::path::Path;

use super::layout::TRUST_DOMAIN;
use super::mesh::Mesh;

/// The picture, the addresses, three commands, and where the policies lie.
pub(crate) fn picture(mesh: &Mesh) -> String {
    let ports = &mesh.ports;
    let port = |address: std::net::SocketAddr| address.port();
    let (edge, orders, ledger) = (
        port(ports.service("edge")),
        port(ports.service("orders")),
        port(ports.service("ledger")),
    );
    let (edge_in, orders_in, ledger_in) = (
        port(ports.inbound("edge")),
        port(ports.inbound("orders")),
        port(ports.inbound("ledger")),
    );
    let (to_orders, to_ledger) = (
        port(ports.outbound("edge", "orders")),
        port(ports.outbound("orders", "ledger")),
    );
    let direct = port(ports.outbound("edge", "ledger"));
    let ca = ports.ca;
    let dir = mesh.layout.dir().display();
    let program = program();
    let seconds = mesh.took.as_secs_f64();
    format!(
        r"
  Hoplite runs a mesh for spiffe://{TRUST_DOMAIN}, up after {seconds:.2} s

          CA :{ca}  ══ mTLS ══  agent          each SVID lives an hour and is renewed at half its life
                                │ Workload API
            ┌───────────────────┼───────────────────┐
          proxy               proxy               proxy
       :{edge_in} ▲ ▼ :{to_orders}  ═mTLS═ :{orders_in} ▲ ▼ :{to_ledger}  ═mTLS═ :{ledger_in} ▼
          edge :{edge}          orders :{orders}        ledger :{ledger}
            └─ ▼ :{direct} ════════ mTLS, refused ═════════ ▲

  Try
    an allowed call     curl http://127.0.0.1:{edge}/orders/42
    a refused one       curl http://127.0.0.1:{edge}/ledger/42
    who, what and why   {program} audit query --since 5m{dir_flag}

  Policies   {dir}/policies   save an edit and it is in force; `{program} policy status{dir_flag}` shows it
  Logs       {dir}/logs

  Ctrl-C stops all of it.
",
        dir_flag = dir_flag(mesh.layout.dir()),
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
