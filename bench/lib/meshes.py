"""The ways that a call can take: straight to the service, or by two proxies of one kind, the caller's and the service's."""

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from processes import Processes, Told, free_port, listens, run

WAYS = ["direct", "hoplite", "envoy", "haproxy"]
DOMAIN = "bench.example"
ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass
class Way:
    """One way, and the processes that are on it and nowhere else."""

    name: str
    ports: dict[str, int]
    proxies: list[str] = field(default_factory=list)

    def port(self, kind: str) -> int | None:
        return self.ports.get("tcp" if kind == "tcp" else "http")


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown processor"


def service(directory: Path, processes: Processes) -> int:
    """nginx, in one process, that answers with 100 bytes or a mebibyte and writes no log."""
    port = free_port()
    site = directory / "site"
    site.mkdir()
    (site / "100").write_bytes(b"x" * 99 + b"\n")
    (site / "1mib").write_bytes(os.urandom(1 << 20))
    for path in (directory, site):
        path.chmod(0o755)
    config = f"""
daemon off; master_process off; worker_processes 1; pid {directory}/nginx.pid; error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
  access_log off; sendfile on; tcp_nodelay on; keepalive_requests 100000000; keepalive_timeout 600s;
  client_body_temp_path {directory}/nginx-1; proxy_temp_path {directory}/nginx-2; fastcgi_temp_path {directory}/nginx-3;
  uwsgi_temp_path {directory}/nginx-4; scgi_temp_path {directory}/nginx-5;
  server {{ listen 127.0.0.1:{port}; root {site}; }}
}}
"""
    (directory / "nginx.conf").write_text(config)
    processes.start("nginx", find("nginx") or "nginx", "-c", directory / "nginx.conf", "-p", directory)
    processes.until("listens", "nginx", lambda: listens(port))
    return port


def start(chosen, directory: Path, processes: Processes, service: int, left_out: list[str], say: Callable[[str], None]):
    """Starts what was asked for and is installed, and gives the ways and Hoplite's mesh."""
    wanted = chosen.only or WAYS
    ways, mesh = [], None
    if "direct" in wanted:
        ways.append(Way("direct", {"http": service, "tcp": service}))
    if "hoplite" in wanted:
        say("  hoplite: a CA, an agent, two proxies")
        mesh = Mesh(chosen.hoplite, directory, processes)
        ways.append(mesh.pair(service))
    others = [name for name in ("envoy", "haproxy") if name in wanted]
    certificates = None
    for name in others:
        program = find(name)
        if not program:
            left_out.append(f"{name} is not installed; {REMEDY[name]}")
            continue
        certificates = certificates or Certificates(directory)
        say(f"  {name}: two proxies")
        ways.append(PAIRS[name](program, directory, processes, service, certificates))
    return ways, mesh


REMEDY = {"envoy": "tests/lib/peers installs it", "haproxy": "tests/lib/packages haproxy"}


def find(name: str) -> str | None:
    peers = Path(os.environ.get("HOPLITE_PEERS", ROOT / "target/peers"))
    for place in (peers / name, peers / "bin" / name):
        if place.is_file() and os.access(place, os.X_OK):
            return str(place)
    # Debian has servers where only root looks.
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")


class Mesh:
    """A CA and an agent of Hoplite, and a proxy on each side."""

    def __init__(self, program: Path, directory: Path, processes: Processes) -> None:
        self.program, self.directory, self.processes = program, directory, processes
        self.ca_socket, self.agent_socket = directory / "ca.sock", directory / "agent.sock"
        port = free_port()
        (directory / "ca.toml").write_text(
            f'founds = true\ntrust_domain = "{DOMAIN}"\ndata_dir = "ca"\nlisten = "127.0.0.1:{port}"\nadmin_socket = "ca.sock"\n'
        )
        processes.start("ca", program, "ca", "run", "--config", directory / "ca.toml")
        processes.until("is up", "ca", lambda: (directory / "ca/bundle.pem").exists() and self.ca_socket.exists())
        made = run(program, "token", "create", "--node", "n1", "--ca-socket", self.ca_socket, "--output", "json")
        token = json.loads(made)["token"]
        (directory / "token").touch(0o600)
        (directory / "token").write_text(token + "\n")
        (directory / "agent.toml").write_text(
            f'trust_domain = "{DOMAIN}"\ndata_dir = "agent"\nca = "127.0.0.1:{port}"\ntrust_bundle = "ca/bundle.pem"\n'
            f'join_token_file = "token"\nsocket = "{self.agent_socket}"\n'
        )
        processes.start("agent", program, "agent", "run", "--config", directory / "agent.toml")
        processes.until("is up", "agent", self.agent_socket.exists)
        policies = directory / "policies"
        policies.mkdir()
        (policies / "routes.toml").write_text('[http]\nroutes = ["GET /100", "GET /1mib"]\n')
        (policies / "bench.cedar").write_text(
            f'@id("caller")\npermit (principal == Hoplite::Workload::"spiffe://{DOMAIN}/caller", action, resource);\n'
        )

    def register(self, name: str) -> Path:
        """A program of its own for each proxy, by which the agent knows it."""
        program = self.directory / name
        try:
            os.link(self.program.resolve(), program)
        except OSError:
            shutil.copy(self.program, program)
        run(
            self.program, "entry", "create", "--spiffe-id", f"spiffe://{DOMAIN}/{name}",
            "--parent", f"spiffe://{DOMAIN}/hoplite/agent/n1", "--selector", f"unix:uid:{os.getuid()}",
            "--selector", f"unix:path:{program}", "--ca-socket", self.ca_socket,
        )  # fmt: skip
        return program

    def proxy(self, name: str, tables: str, port: int) -> None:
        program = self.register(name)
        config = self.directory / f"{name}.toml"
        config.write_text(
            f'name = "{name}"\nworkload_api = "unix://{self.agent_socket}"\npolicy_dir = "policies"\n'
            f'audit_dir = "{name}-audit"\nadmin_socket = "{name}.sock"\n{tables}'
        )
        (self.directory / f"{name}-audit").mkdir(0o700)
        self.processes.start(f"hoplite {name}", program, "proxy", "run", "--config", config)
        self.processes.until("listens", f"hoplite {name}", lambda: listens(port))

    def pair(self, service: int) -> Way:
        into, out = {}, {}
        ins = outs = ""
        for protocol in ("http", "tcp"):
            into[protocol], out[protocol] = free_port(), free_port()
            ins += (
                f'[[inbound]]\nlisten = "127.0.0.1:{into[protocol]}"\nservice = "{protocol}"\nprotocol = "{protocol}"\n'
                f'forward_to = "127.0.0.1:{service}"\n'
            )
            outs += (
                f'[[outbound]]\nname = "{protocol}"\nlisten = "127.0.0.1:{out[protocol]}"\nprotocol = "{protocol}"\n'
                f'connect_to = "127.0.0.1:{into[protocol]}"\nexpect = "spiffe://{DOMAIN}/service"\n'
            )
        self.proxy("service", ins, into["tcp"])
        self.proxy("caller", outs, out["tcp"])
        return Way("hoplite", out, ["hoplite caller", "hoplite service"])

    def held(self) -> int:
        """How many certificates the agent has."""
        # It exits with 1 while one is missing, and says which all the same.
        status = json.loads(run(
            self.program, "agent", "status", "--socket", f"unix://{self.agent_socket}", "--output", "json", codes=(0, 1),
        ))  # fmt: skip
        return int(status["entries"]) - int(status["without_svid"])

    def workloads(self, count: int, silent: dict[str, float]) -> dict:
        """Registers so many more at this node, and waits until the agent has a certificate for each."""
        # Of users that nobody is: what is measured is what is kept ready for them.
        entries = "".join(
            f'[[entry]]\nspiffe_id = "spiffe://{DOMAIN}/workload-{number}"\n'
            f'parent = "spiffe://{DOMAIN}/hoplite/agent/n1"\nselectors = ["unix:uid:{200_000 + number}"]\n'
            for number in range(count)
        )
        (self.directory / "entries.toml").write_text(entries)
        before = {name: (self.processes.cpu(name), self.processes.memory(name)) for name in ("ca", "agent")}
        held, began = self.held(), time.monotonic()
        run(self.program, "entry", "apply", self.directory / "entries.toml", "--ca-socket", self.ca_socket)
        self.processes.until(f"has {count} more certificates", "agent", lambda: self.held() >= held + count)
        took = (time.monotonic() - began) * 1e3
        rows = []
        for name in ("ca", "agent"):
            cpu, memory = before[name]
            rows.append({
                "process": name,
                "bytes": memory,
                "more_bytes": self.processes.memory(name) - memory,
                "cpu_ms": (self.processes.cpu(name) - cpu) / 1e6,
                "idle_cpu_ms": round(silent[name], 1),
            })  # fmt: skip
        return {"node": rows, "all_served_ms": took}


class Certificates:
    """What the others prove themselves with: P-256, one authority, a SPIFFE ID each, as Hoplite's."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "certificates"
        self.directory.mkdir(0o755)
        at = self.directory
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
        run("openssl", "req", "-x509", *key, "-subj", "/O=bench", "-keyout", at / "ca.key", "-out", at / "ca.pem",
            "-addext", f"subjectAltName=URI:spiffe://{DOMAIN}")  # fmt: skip
        for name in ("caller", "service"):
            (at / f"{name}.ext").write_text(
                f"subjectAltName=URI:spiffe://{DOMAIN}/{name}\nkeyUsage=critical,digitalSignature\n"
                "extendedKeyUsage=serverAuth,clientAuth\n"
            )
            run("openssl", "req", *key, "-subj", f"/O=bench/CN={name}", "-keyout", at / f"{name}.key", "-out", at / f"{name}.csr")
            run("openssl", "x509", "-req", "-in", at / f"{name}.csr", "-CA", at / "ca.pem", "-CAkey", at / "ca.key",
                "-CAcreateserial", "-days", "2", "-extfile", at / f"{name}.ext", "-out", at / f"{name}.crt")  # fmt: skip
            both = (at / f"{name}.crt").read_text() + (at / f"{name}.key").read_text()
            (at / f"{name}.pem").write_text(both)
        for path in at.iterdir():
            path.chmod(0o644)


def haproxy(program: str, directory: Path, processes: Processes, service: int, certificates: Certificates) -> Way:
    at = certificates.directory
    out, into = {"http": free_port(), "tcp": free_port()}, {"http": free_port(), "tcp": free_port()}
    head = """
global
  nbthread 1
  maxconn 4000
  ssl-default-bind-options ssl-min-ver TLSv1.3 no-tls-tickets
  ssl-default-server-options ssl-min-ver TLSv1.3
defaults
  timeout connect 5s
  timeout client 600s
  timeout server 600s
  http-reuse always
"""
    tls = f"ssl crt {at}/caller.pem ca-file {at}/ca.pem verify required"
    own = f"ssl crt {at}/service.pem ca-file {at}/ca.pem verify required"
    callers, services = head, head
    for mode in ("http", "tcp"):
        alpn = " alpn h2" if mode == "http" else ""
        callers += f"listen {mode}\n  mode {mode}\n  bind 127.0.0.1:{out[mode]}\n  server s 127.0.0.1:{into[mode]} {tls}{alpn}\n"
        checked = "  http-request deny unless { ssl_c_s_dn(cn) caller }\n" if mode == "http" else "  tcp-request content reject unless { ssl_c_s_dn(cn) caller }\n"
        services += f"listen {mode}\n  mode {mode}\n  bind 127.0.0.1:{into[mode]} {own}{alpn}\n{checked}  server s 127.0.0.1:{service}\n"
    for name, config in (("caller", callers), ("service", services)):
        (directory / f"haproxy-{name}.cfg").write_text(config)
        processes.start(f"haproxy {name}", program, "-db", "-f", directory / f"haproxy-{name}.cfg")
    processes.until("listens", "haproxy caller", lambda: listens(out["http"]))
    processes.until("listens", "haproxy service", lambda: listens(into["http"]))
    return Way("haproxy", out, ["haproxy caller", "haproxy service"])


def envoy(program: str, directory: Path, processes: Processes, service: int, certificates: Certificates) -> Way:
    out, into = {"http": free_port(), "tcp": free_port()}, {"http": free_port(), "tcp": free_port()}

    def address(port: int) -> dict:
        return {"socket_address": {"address": "127.0.0.1", "port_value": port}}

    def context(kind: str, name: str, alpn: list[str]) -> dict:
        at = certificates.directory
        common = {
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
            "alpn_protocols": alpn,
            "tls_certificates": [
                {"certificate_chain": {"filename": f"{at}/{name}.crt"}, "private_key": {"filename": f"{at}/{name}.key"}}
            ],
            "validation_context": {"trusted_ca": {"filename": f"{at}/ca.pem"}},
        }
        typed = {"@type": f"type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{kind}", "common_tls_context": common}
        if kind == "DownstreamTlsContext":
            typed["require_client_certificate"] = True
        return {"name": "envoy.transport_sockets.tls", "typed_config": typed}

    def cluster(name: str, port: int, tls: dict | None, http2: bool) -> dict:
        made = {
            "name": name, "connect_timeout": "5s", "type": "STATIC",
            "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(port)}}]}]},
        }  # fmt: skip
        if tls:
            made["transport_socket"] = tls
        if http2:
            options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
            made["typed_extension_protocol_options"] = {
                options: {
                    "@type": f"type.googleapis.com/{options}",
                    "explicit_http_config": {"http2_protocol_options": {}},
                }
            }
        return made

    def listener(name: str, port: int, cluster: str, tls: dict | None, checked: bool) -> dict:
        rule = {
            "action": "ALLOW",
            "policies": {"caller": {
                "permissions": [{"any": True}],
                "principals": [{"authenticated": {"principal_name": {"exact": f"spiffe://{DOMAIN}/caller"}}}],
            }},
        }  # fmt: skip
        filters = "type.googleapis.com/envoy.extensions.filters"
        if name == "tcp":
            rbac = {"name": "rbac", "typed_config": {"@type": f"{filters}.network.rbac.v3.RBAC", "stat_prefix": "r", "rules": rule}}
            last = {"name": "tcp", "typed_config": {
                "@type": f"{filters}.network.tcp_proxy.v3.TcpProxy", "stat_prefix": "t", "cluster": cluster}}  # fmt: skip
            chain = [rbac, last] if checked else [last]
        else:
            rbac = {"name": "rbac", "typed_config": {"@type": f"{filters}.http.rbac.v3.RBAC", "rules": rule}}
            router = {"name": "router", "typed_config": {"@type": f"{filters}.http.router.v3.Router"}}
            route = {"match": {"prefix": "/"}, "route": {"cluster": cluster}}
            chain = [{"name": "http", "typed_config": {
                "@type": f"{filters}.network.http_connection_manager.v3.HttpConnectionManager", "stat_prefix": "h",
                "http_filters": [rbac, router] if checked else [router],
                "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
            }}]  # fmt: skip
        made = {"filters": chain}
        if tls:
            made["transport_socket"] = tls
        return {"name": name, "address": address(port), "filter_chains": [made]}

    configs = {"caller": ([], []), "service": ([], [])}
    for name in ("http", "tcp"):
        alpn = ["h2"] if name == "http" else []
        listeners, clusters = configs["caller"]
        listeners.append(listener(name, out[name], name, None, False))
        clusters.append(cluster(name, into[name], context("UpstreamTlsContext", "caller", alpn), name == "http"))
        listeners, clusters = configs["service"]
        listeners.append(listener(name, into[name], name, context("DownstreamTlsContext", "service", alpn), True))
        clusters.append(cluster(name, service, None, False))
    for name, (listeners, clusters) in configs.items():
        config = {"static_resources": {"listeners": listeners, "clusters": clusters}}
        path = directory / f"envoy-{name}.json"
        path.write_text(json.dumps(config))
        processes.start(f"envoy {name}", program, "--config-path", path, "--concurrency", "1", "--disable-hot-restart",
                        "--log-level", "warning")  # fmt: skip
    processes.until("listens", "envoy caller", lambda: listens(out["http"]))
    processes.until("listens", "envoy service", lambda: listens(into["http"]))
    return Way("envoy", out, ["envoy caller", "envoy service"])


PAIRS = {"envoy": envoy, "haproxy": haproxy}
