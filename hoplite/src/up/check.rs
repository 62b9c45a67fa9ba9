//! `hoplite up --check`: the same mesh on free ports in a temporary directory, and proof that it does what it says.

use std::io::Write as _;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use hoplite_host::clock;
use hoplite_host::peer_process::PeerProcess;
use hoplite_identity::X509Svid;
use hoplite_wire::{Identity, WorkloadApi};
use http::{Method, StatusCode};
use serde::Serialize;
use serde_json::Value;
use tokio::sync::watch;

use super::client::{self, Answer};
use super::layout::{Layout, Ports, SERVICES, spiffe_id, visitor_id};
use super::mesh::{Mesh, Settings};
use super::relay::Relay;
use crate::output::part;

/// Short enough to see a rotation within seconds.
const SVID_TTL: Duration = Duration::from_secs(10);
/// Between two calls of the steady traffic.
const CALL_EVERY: Duration = Duration::from_millis(25);
/// What must never be seen on the wire.
const MARKER: &str = "hoplite-check-marker-6b1e";

/// The whole outcome, as JSON on standard output.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) ok: bool,
    /// From the start of the first process until every proxy held its SVID.
    pub(crate) up_seconds: f64,
    /// How the agent knew which process called.
    pub(crate) peer_process: String,
    pub(crate) checks: Vec<Check>,
}

/// One check.
#[derive(Debug, Serialize)]
pub(crate) struct Check {
    pub(crate) name: &'static str,
    pub(crate) ok: bool,
    /// What was seen, or why it failed.
    pub(crate) detail: String,
}

/// The mesh with its onlookers, and who calls it.
struct Scene {
    mesh: Mesh,
    relays: [Relay; 2],
    visitor: watch::Receiver<Arc<Identity>>,
}

/// Runs every check. A check that fails does not keep the others from running.
pub(crate) async fn check(peer_process: PeerProcess) -> anyhow::Result<Report> {
    let dir = tempfile::Builder::new()
        .prefix("hoplite-")
        .tempdir()
        .context("cannot make a temporary directory")?;
    let ports = Ports::free()?;
    let relays = [
        Relay::start(ports.inbound("orders")).await?,
        Relay::start(ports.inbound("ledger")).await?,
    ];
    let detours = vec![
        ("edge", "orders", relays[0].address()),
        ("orders", "ledger", relays[1].address()),
    ];
    let settings = Settings {
        svid_ttl: Some(SVID_TTL),
        visitor: true,
        detours,
        peer_process,
        ..Settings::new(ports)
    };
    let mesh = Mesh::start(dir.path(), settings).await?;
    let up_seconds = mesh.took.as_secs_f64();
    let visitor = follow_identity(&mesh.layout).await;
    let mut checks = Vec::new();
    if peer_process == PeerProcess::Pid {
        let _ = writeln!(std::io::stderr(), "{}", super::picture::BY_NUMBER);
    }
    match visitor {
        Ok(visitor) => {
            let scene = Scene { mesh, relays, visitor };
            scene.run(&mut checks).await;
            scene.mesh.stop().await;
        }
        Err(error) => {
            mesh.stop().await;
            return Err(error.context("this process got no SVID"));
        }
    }
    Ok(Report {
        ok: checks.iter().all(|check| check.ok),
        up_seconds,
        peer_process: peer_process.to_string(),
        checks,
    })
}

/// This process's own identity, kept current.
async fn follow_identity(layout: &Layout) -> anyhow::Result<watch::Receiver<Arc<Identity>>> {
    let mut api = WorkloadApi::open(&layout.socket("agent").display().to_string()).await?;
    let (sender, receiver) = watch::channel(Arc::new(api.next().await?));
    tokio::spawn(async move {
        while let Ok(identity) = api.next().await {
            if sender.send(Arc::new(identity)).is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}

// === impl Scene ===

impl Scene {
    async fn run(&self, checks: &mut Vec<Check>) {
        let mut note = |name: &'static str, outcome: anyhow::Result<String>| {
            let (ok, detail) = match outcome {
                Ok(detail) => (true, detail),
                Err(error) => (false, crate::output::one_line(&error)),
            };
            let _ = writeln!(
                std::io::stderr(),
                "{}  {name}: {detail}",
                if ok { "ok  " } else { "FAIL" }
            );
            checks.push(Check { name, ok, detail });
        };
        note("an allowed call through all three hops is 200", self.allowed().await);
        note(
            "a refused call is 403 with a decision id and no policy text",
            self.refused().await.map(|(_, said)| said),
        );
        note(
            "the refusal is in the audit log with the policies that decided",
            self.refusal_is_logged().await,
        );
        note("no process gets another service's SVID", self.own_svid_only());
        note(
            "a client without a certificate is refused, and the log says why",
            self.without_certificate().await,
        );
        note(
            "a certificate of a foreign CA is refused, and the log says why",
            self.foreign_ca().await,
        );
        note(
            "a plaintext client is refused, and the log says why",
            self.plaintext().await,
        );
        note(
            "a valid SVID that policy does not allow is refused, and the log says why",
            self.not_permitted().await,
        );
        note(
            "no marker of a request body is visible between the proxies",
            self.nothing_readable().await,
        );
        note(
            "SVIDs rotate during traffic and no request fails",
            self.rotation().await,
        );
        note(
            "the audit log verifies",
            self.audit(&["verify"]).map(|_| "every record, every link".to_owned()),
        );
    }

    async fn allowed(&self) -> anyhow::Result<String> {
        let answer = self.visit((Method::GET, "/orders/42", "")).await?;
        ensure!(answer.status == StatusCode::OK, "{} {}", answer.status, answer.body);
        let caller = part(&serde_json::from_str(&answer.body)?, "/account/caller").clone();
        ensure!(caller == spiffe_id("orders"), "ledger saw the caller `{caller}`");
        Ok("visitor → edge → orders → ledger".to_owned())
    }

    async fn refused(&self) -> anyhow::Result<(String, String)> {
        let answer = client::call_plain(self.mesh.ports.service("edge"), "/ledger/42").await?;
        ensure!(
            answer.status == StatusCode::FORBIDDEN,
            "{} {}",
            answer.status,
            answer.body
        );
        let body: Value = serde_json::from_str(&answer.body)?;
        let id = part(&body, "/decision")
            .as_str()
            .context("the answer has no decision id")?
            .to_owned();
        ensure!(
            answer.decision.as_deref() == Some(&id),
            "header and body name different decisions"
        );
        for secret in ["security/", "permit", "forbid (", "Hoplite::"] {
            ensure!(
                !answer.body.contains(secret),
                "the answer tells about policy: {}",
                answer.body
            );
        }
        let said = format!("decision {id}");
        Ok((id, said))
    }

    async fn refusal_is_logged(&self) -> anyhow::Result<String> {
        let (id, _) = self.refused().await?;
        let records = self.query(&["--id", &id])?;
        let [record] = records.as_slice() else {
            bail!("{} records for {id}", records.len())
        };
        let policies = part(record, "/determining");
        ensure!(part(record, "/outcome") == "forbid", "{record}");
        ensure!(
            *policies == serde_json::json!(["security/edge-stays-out-of-the-ledger"]),
            "{record}"
        );
        ensure!(*part(record, "/principal") == spiffe_id("edge"), "{record}");
        Ok(format!("{id}: forbidden by {policies}"))
    }

    /// Another process of the same user and the same binary, that we did not launch, gets nothing at all; we, launched
    /// as the visitor, get the visitor's and nothing else.
    fn own_svid_only(&self) -> anyhow::Result<String> {
        let ids: Vec<String> = self
            .visitor
            .borrow()
            .svids
            .iter()
            .map(|svid| svid.spiffe_id().to_string())
            .collect();
        ensure!(ids == [visitor_id()], "this process got {ids:?}");
        let output = Command::new(std::env::current_exe()?)
            .args(["svid", "fetch", "--socket"])
            .arg(format!("unix://{}", self.mesh.layout.socket("agent").display()))
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            !output.status.success(),
            "a process nobody launched got {}",
            String::from_utf8_lossy(&output.stdout)
        );
        ensure!(said.contains("refused an identity"), "{said}");
        Ok("a process of the same user and binary that was not launched as a service gets none".to_owned())
    }

    async fn without_certificate(&self) -> anyhow::Result<String> {
        let answer = self.call_orders(None).await;
        self.refused_as("no_certificate", answer)
    }

    async fn foreign_ca(&self) -> anyhow::Result<String> {
        let impostor = client::foreign_svid(&spiffe_id("edge"), clock::now())?;
        let answer = self.call_orders(Some(&impostor)).await;
        self.refused_as("unknown_authority", answer)
    }

    async fn plaintext(&self) -> anyhow::Result<String> {
        let answer = client::speak_plaintext(self.mesh.ports.inbound("orders")).await;
        self.refused_as("plaintext", answer)
    }

    async fn call_orders(&self, svid: Option<&X509Svid>) -> anyhow::Result<()> {
        let request = (Method::GET, "/orders/42", "");
        let bundles = &self.current().bundles;
        let answer = client::call(
            self.mesh.ports.inbound("orders"),
            &spiffe_id("orders"),
            svid,
            bundles,
            request,
        )
        .await?;
        bail!("answered {} {}", answer.status, answer.body)
    }

    /// The call must have failed, and the newest refusal in the log must say why.
    fn refused_as(&self, code: &str, answer: anyhow::Result<()>) -> anyhow::Result<String> {
        match answer {
            Ok(()) => bail!("the listener answered"),
            Err(error) if error.to_string().starts_with("answered") => return Err(error),
            Err(_) => {}
        }
        let deadline = clock::moment() + Duration::from_secs(2);
        loop {
            let records = self.query(&["--service", "orders", "--outcome", "unauthenticated"])?;
            let reason = records
                .iter()
                .filter_map(|record| part(record, "/reason").as_str())
                .find(|reason| reason.contains(code));
            if let Some(reason) = reason {
                return Ok(reason.to_owned());
            }
            ensure!(clock::moment() < deadline, "no record says `{code}`: {records:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    async fn not_permitted(&self) -> anyhow::Result<String> {
        let answer = self.call_as_visitor("ledger", (Method::GET, "/accounts/7", "")).await?;
        ensure!(
            answer.status == StatusCode::FORBIDDEN,
            "{} {}",
            answer.status,
            answer.body
        );
        let id = answer.decision.context("the answer names no decision")?;
        let records = self.query(&["--id", &id])?;
        let record = records.first().context("the decision is not in the log")?;
        ensure!(
            part(record, "/outcome") == "no_permit" && *part(record, "/principal") == visitor_id(),
            "{record}"
        );
        Ok(format!("{id}: no policy permits {}", visitor_id()))
    }

    async fn nothing_readable(&self) -> anyhow::Result<String> {
        let answer = self.visit((Method::POST, "/orders", MARKER)).await?;
        ensure!(answer.status == StatusCode::OK, "{} {}", answer.status, answer.body);
        ensure!(
            answer.body.matches(MARKER).count() >= 2,
            "the body did not reach both services: {}",
            answer.body
        );
        let mut total = 0;
        for relay in &self.relays {
            let seen = relay.seen();
            ensure!(seen.len() > MARKER.len(), "the relay saw nothing");
            ensure!(
                !seen.windows(MARKER.len()).any(|bytes| bytes == MARKER.as_bytes()),
                "the body is readable on the wire"
            );
            total += seen.len();
        }
        Ok(format!("{total} bytes recorded on two hops"))
    }

    async fn rotation(&self) -> anyhow::Result<String> {
        let before = self.serials().await?;
        let deadline = clock::moment() + SVID_TTL * 3;
        let mut calls = 0_u32;
        loop {
            let answer = self.visit((Method::GET, "/orders/42", "")).await?;
            calls += 1;
            ensure!(
                answer.status == StatusCode::OK,
                "call {calls}: {} {}",
                answer.status,
                answer.body
            );
            if calls.is_multiple_of(20) {
                let now = self.serials().await?;
                if before.iter().zip(&now).all(|(old, new)| old != new) {
                    return Ok(format!("{calls} calls while every proxy got a new SVID"));
                }
                ensure!(
                    clock::moment() < deadline,
                    "no rotation within {} s",
                    SVID_TTL.as_secs() * 3
                );
            }
            tokio::time::sleep(CALL_EVERY).await;
        }
    }

    async fn serials(&self) -> anyhow::Result<Vec<String>> {
        let mut serials = Vec::new();
        for name in SERVICES {
            let status = self.mesh.proxy_status(name).await?;
            serials.push(
                part(&status, "/svid_serial")
                    .as_str()
                    .context("a proxy without an SVID")?
                    .to_owned(),
            );
        }
        Ok(serials)
    }

    /// A call to `edge` as the visitor.
    async fn visit(&self, request: (Method, &str, &str)) -> anyhow::Result<Answer> {
        self.call_as_visitor("edge", request).await
    }

    async fn call_as_visitor(&self, service: &str, request: (Method, &str, &str)) -> anyhow::Result<Answer> {
        let identity = self.current();
        let address = self.mesh.ports.inbound(service);
        client::call(
            address,
            &spiffe_id(service),
            identity.svids.first(),
            &identity.bundles,
            request,
        )
        .await
    }

    /// The identity of this moment.
    fn current(&self) -> Arc<Identity> {
        Arc::clone(&self.visitor.borrow())
    }

    fn query(&self, arguments: &[&str]) -> anyhow::Result<Vec<Value>> {
        let text = self.audit(&[&["query", "--output", "json"], arguments].concat())?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Runs `hoplite audit` as a person would.
    fn audit(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = Command::new(std::env::current_exe()?)
            .arg("audit")
            .args(arguments)
            .arg("--log")
            .arg(self.mesh.layout.dir().join("audit"))
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "`hoplite audit` failed: {}{said}",
            String::from_utf8_lossy(&output.stdout)
        );
        Ok(String::from_utf8(output.stdout)?)
    }
}
