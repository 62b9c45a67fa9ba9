//! What `hoplite up` shows: what runs, where, and what to try.

use std::net::SocketAddr;
use std::path::Path;

use hoplite_host::peer_process::PeerProcess;

use super::layout::{CALLS, Ports, SERVICES, TRUST_DOMAIN};
use super::mesh::{Mesh, PolicySource};

/// Columns that the drawing needs; where there are fewer, its lines would break, and a list stands in its place.
const DRAWING_COLUMNS: usize = 78;

/// What is assumed of a terminal that does not say how wide it is.
const COLUMNS: usize = 80;

/// What is said where callers are known by their process numbers: nobody is to find out later.
pub(crate) const BY_NUMBER: &str = "  Callers are known by process number, user and group, since this kernel is older
  than Linux 6.5 or it was asked for: peer_process = \"pid\". What that leaves open
  is in docs/threat-model.md; `hoplite agent status` shows it.
";

/// The picture, the addresses, three commands, and where everything lies.
pub(crate) fn picture(mesh: &Mesh) -> String {
    let columns = terminal_size::terminal_size_of(std::io::stderr()).map(|(width, _)| usize::from(width.0));
    let shown = Shown {
        ports: &mesh.ports,
        dir: mesh.layout.dir(),
        program: &program(),
        flag: &dir_flag(mesh.layout.dir()),
        seconds: mesh.took.as_secs_f64(),
        source: mesh.policy_source,
        peer_process: mesh.peer_process,
    };
    shown.at(columns.unwrap_or(COLUMNS))
}

/// What is said of the policy that is in force, and how it is changed.
pub(crate) fn how_to_change(source: PolicySource, program: &str, flag: &str) -> String {
    match source {
        PolicySource::Directory => {
            format!("save an edit in policies/ and it is in force:\n    {program} policy status{flag}")
        }
        PolicySource::Bundle(revision) => format!(
            "signed revision {revision} is in force: edits change nothing until they\n    are published;\n    \
             see  {program} policy publish --help"
        ),
    }
}

/// All that the picture depends on.
struct Shown<'a> {
    ports: &'a Ports,
    dir: &'a Path,
    program: &'a str,
    flag: &'a str,
    seconds: f64,
    source: PolicySource,
    peer_process: PeerProcess,
}

// === impl Shown ===

impl Shown<'_> {
    fn at(&self, columns: usize) -> String {
        let Self {
            dir,
            program,
            flag,
            seconds,
            source,
            peer_process,
            ..
        } = *self;
        let by_number = match peer_process {
            PeerProcess::Kernel => String::new(),
            PeerProcess::Pid => format!("\n{BY_NUMBER}"),
        };
        let mesh = if columns >= DRAWING_COLUMNS {
            self.drawing()
        } else {
            self.list()
        };
        let shop = self.ports.service("edge");
        let policies = how_to_change(source, program, flag);
        let dir = dir.display();
        format!(
            r"
  Hoplite runs a mesh for spiffe://{TRUST_DOMAIN}, up after {seconds:.2} s
{mesh}
  Try
    an allowed call      curl http://{shop}/orders/42
    a refused one        curl http://{shop}/ledger/42
    who, what and why    {program} audit query --since 5m{flag}

  Policies
    {policies}

  Everything is in       {dir}
    policies, audit, logs, keys, config, run
{by_number}
  Ctrl-C stops all of it.
"
        )
    }

    fn drawing(&self) -> String {
        // Each port in a place of five digits, so that the lines meet.
        let wide = |address: SocketAddr| format!(":{:<5}", address.port());
        let [edge, orders, ledger] = SERVICES.map(|name| wide(self.ports.service(name)));
        let [edge_in, orders_in, ledger_in] = SERVICES.map(|name| wide(self.ports.inbound(name)));
        let [to_orders, direct, to_ledger] = CALLS.map(|(caller, callee)| wide(self.ports.outbound(caller, callee)));
        let ca = self.ports.ca;
        format!(
            r"
    edge {edge}            orders {orders}          ledger {ledger}
      ▲ │                      ▲ │                      ▲
      │ ▼ {to_orders}               │ ▼ {to_ledger}               │
    ┌───────┐              ┌───────┐              ┌───────┐
    │ proxy │════ mTLS ═══►│ proxy │════ mTLS ═══►│ proxy │
    └───────┘ {edge_in}       └───────┘ {orders_in}       └───────┘ {ledger_in}
        ╚═══ {direct} ═══ mTLS, refused by policy ═════╝
      ▲
      │ SVIDs, renewed at half their life
    agent ═══ mTLS ═══ CA :{ca}

    services: plain HTTP, unchanged; proxies: verify, decide, record, forward
"
        )
    }

    fn list(&self) -> String {
        let mut list = String::from("\n");
        for name in SERVICES {
            let (service, proxy) = (self.ports.service(name).port(), self.ports.inbound(name).port());
            list.push_str(&format!("    {name:<7} service :{service:<5}  proxy :{proxy}\n"));
        }
        for (caller, callee) in CALLS {
            let port = self.ports.outbound(caller, callee).port();
            list.push_str(&format!("    {caller} calls {callee} at :{port}\n"));
        }
        list.push_str(&format!("    CA :{}\n", self.ports.ca));
        list
    }
}

/// How the person called us, as far as it can be known.
pub(crate) fn program() -> String {
    let program = std::env::args().next().unwrap_or_else(|| "hoplite".to_owned());
    let cwd = std::env::current_dir().unwrap_or_default();
    match Path::new(&program).strip_prefix(&cwd) {
        Ok(relative) => relative.display().to_string(),
        Err(_) => program,
    }
}

/// Nothing for the default directory: tools find it by themselves.
pub(crate) fn dir_flag(dir: &Path) -> String {
    match crate::command::MeshDir::default().path() {
        Ok(default) if default == dir => String::new(),
        _ => format!(" --dir {}", dir.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(ports: &Ports, source: PolicySource, columns: usize) -> String {
        let shown = Shown {
            ports,
            dir: Path::new("/home/user/.local/share/hoplite"),
            program: "hoplite",
            flag: "",
            seconds: 1.0,
            source,
            peer_process: PeerProcess::Kernel,
        };
        shown.at(columns)
    }

    fn widest(text: &str) -> usize {
        text.lines().map(|line| line.chars().count()).max().unwrap_or_default()
    }

    #[test]
    fn no_line_breaks() {
        for base in [1_024, 65_500] {
            let ports = Ports::from_base(base);
            for source in [PolicySource::Directory, PolicySource::Bundle(1_000_000)] {
                for columns in [DRAWING_COLUMNS, 80, 200] {
                    let text = shown(&ports, source, columns);
                    assert!(text.contains("═══►"), "{text}");
                    assert!(widest(&text) <= DRAWING_COLUMNS, "{}: {text}", widest(&text));
                }
                let text = shown(&ports, source, DRAWING_COLUMNS - 1);
                assert!(!text.contains('═') && text.contains("edge calls ledger at :"), "{text}");
                // A path is as long as it is, and everything else fits the narrowest terminals.
                let rest: Vec<_> = text.lines().filter(|line| !line.contains('/')).collect();
                assert!(widest(&rest.join("\n")) <= 76, "{text}");
            }
        }
    }

    /// Whoever is told to save an edit must not find that it changes nothing.
    #[test]
    fn what_is_said_of_policy_is_true() {
        let ports = Ports::from_base(7_700);
        let directory = shown(&ports, PolicySource::Directory, 80);
        assert!(
            directory.contains("save an edit") && !directory.contains("publish"),
            "{directory}"
        );
        let bundle = shown(&ports, PolicySource::Bundle(7), 80);
        assert!(!bundle.contains("save an edit"), "{bundle}");
        assert!(
            bundle.contains("signed revision 7") && bundle.contains("policy publish"),
            "{bundle}"
        );
        assert!(bundle.contains("/home/user/.local/share/hoplite\n"), "{bundle}");
    }
}
