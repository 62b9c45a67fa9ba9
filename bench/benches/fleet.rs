//! What reports cost: bytes of each kind, and the CA's processor time and memory with thousands of agents.
//!
//! `cargo bench -p hoplite-bench --bench fleet [-- AGENTS] [--program HOPLITE]`. The CA is a process of its own: this program's, or `HOPLITE ca run`,
//! so that an optimised one is measured by whatever build of this. Each agent joins by token, has an SVID, an address
//! and a TLS connection of its own, on which it reports as agents do; it watches on the same connection, so that a report takes
//! no place of its own. There are 20 000 agents, or as many as this machine gives descriptors for: a connection costs one at
//! the CA and one here.

#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "a measurement that cannot start has nothing to measure, and prints what it saw"
)]

mod crowd;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use hoplite_host::process::{self, Hardening};
use hoplite_identity::{PeerVerifier, X509Svid};
use hoplite_wire::ca::admin_client::AdminClient;
use hoplite_wire::ca::node_client::NodeClient;
use hoplite_wire::ca::{ListReportsRequest, ReportAck, ShowMeshRequest, WatchRequest};
use hoplite_wire::report::{
    Count, Fired, Listener, Listeners, NodeAbout, NodeCounters, NodeState, Point, PointAbout, PointCounters,
    PointPolicy, PointState, Program, Report,
};
use hoplite_wire::{channel, reporting};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crowd::{AT_ONCE, Ca, DOMAIN, dial, join};

const AGENTS: usize = 20_000;
const PERIODS: u32 = 3;

/// One agent, with its stream.
struct Agent {
    number: usize,
    reports: mpsc::Sender<Report>,
    acks: Streaming<ReportAck>,
    sequence: u64,
    _watch: Streaming<hoplite_wire::ca::Update>,
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    // `cargo test --benches` asks with `--test` whether it starts.
    if arguments.iter().any(|argument| argument == "--test") {
        return;
    }
    process::harden(Hardening::NoCore).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    if let [_, flag, dir, port] = arguments.as_slice()
        && flag == "--ca"
    {
        return runtime.block_on(crowd::ca(Path::new(dir), port.parse().unwrap()));
    }
    let program = arguments.iter().skip_while(|argument| *argument != "--program").nth(1);
    let wanted = arguments
        .iter()
        .find_map(|argument| argument.parse().ok())
        .unwrap_or(AGENTS);
    // As many as the CA has places for, and this process descriptors.
    let possible = process::places(1, 1).saturating_sub(16);
    let agents = wanted.min(possible);
    println!(
        "{agents} agents (asked for {wanted}; {} descriptors a process)",
        process::descriptors_max()
    );
    runtime.block_on(measure(agents, program.map(Path::new)));
}

async fn measure(agents: usize, program: Option<&Path>) {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::start(dir.path(), program, None);
    let (socket, address) = (dir.path().join("ca.sock"), ca.address());
    let verifier = ca.verifier(dir.path());

    // Sizes, before anything is sent.
    let first = whole(1, 0, 0);
    let size = |report: &Report| reporting::length(report) + 5; // gRPC's own five
    println!(
        "bytes: full {} (an agent, 3 proxies with 3 listeners, 20 policies that fired), counters of all proxies {}, \
         a policy that all take {}, nothing new {}",
        size(&first),
        size(&reporting::difference(&first, &whole(1, 0, 1))),
        size(&reporting::difference(&first, &whole(1, 1, 0))),
        size(&keepalive(2)),
    );

    let (began, before) = (Instant::now(), ca.cpu());
    let svids = join(agents, &socket, address, &verifier).await;
    println!(
        "a token made and a node joined by it, each: in {:.1?}, CA's CPU {:.1} s",
        began.elapsed(),
        ca.cpu() - before
    );
    ca.told("with agents registered, none connected");
    let (began, before) = (Instant::now(), ca.cpu());
    let mut agents = connect(svids, address, &verifier).await;
    println!(
        "connected, watching and reporting in {:.1?}, CA's CPU {:.1} s",
        began.elapsed(),
        ca.cpu() - before
    );
    ca.told("with all connected");

    phase(&ca, &mut agents, "full reports", |n, _| whole(n, 0, 0)).await;
    ca.told("with all reports held");
    phase(&ca, &mut agents, "a period of nothing new", |_, sequence| {
        keepalive(sequence)
    })
    .await;
    for period in 1..=PERIODS {
        phase(&ca, &mut agents, "a period with counters", move |n, _| {
            reporting::difference(&whole(n, 0, period - 1), &whole(n, 0, period))
        })
        .await;
    }
    phase(&ca, &mut agents, "a policy that all take at once", |n, _| {
        reporting::difference(&whole(n, 0, PERIODS), &whole(n, 1, PERIODS))
    })
    .await;
    ca.told("after that");

    let mut admin = AdminClient::new(channel::unix(&socket).await.unwrap());
    let (began, before) = (Instant::now(), ca.cpu());
    let mesh = admin
        .show_mesh(ShowMeshRequest::default())
        .await
        .unwrap()
        .into_inner()
        .message()
        .await;
    let mesh = mesh.unwrap().unwrap();
    println!(
        "status: {} heard, {} proxies, {} KiB of reports; {:.0?}, CA's CPU {:.2} s",
        mesh.heard,
        mesh.points,
        mesh.report_bytes / 1024,
        began.elapsed(),
        ca.cpu() - before
    );
    assert_eq!(mesh.heard as usize, agents.len());
    let (began, before) = (Instant::now(), ca.cpu());
    let mut listed = admin
        .list_reports(ListReportsRequest::default())
        .await
        .unwrap()
        .into_inner();
    let mut nodes = 0;
    while let Some(_node) = listed.message().await.unwrap() {
        nodes += 1;
    }
    println!(
        "fleet --limit 0: {nodes} nodes; {:.1?}, CA's CPU {:.2} s",
        began.elapsed(),
        ca.cpu() - before
    );
}

/// One message of every agent, each answered, as fast as it goes.
async fn phase(ca: &Ca, agents: &mut Vec<Agent>, what: &str, say: impl Fn(usize, u64) -> Report + Copy) {
    // What the CA lets pass of one agent in a second is no matter here.
    tokio::time::sleep(Duration::from_millis(250)).await;
    let (began, before) = (Instant::now(), ca.cpu());
    let at_once = Arc::new(Semaphore::new(1024));
    let mut saying = JoinSet::new();
    for mut agent in agents.drain(..) {
        agent.sequence += 1;
        let mut report = say(agent.number, agent.sequence);
        (report.sequence, report.sent_at_unix_ms) = (agent.sequence, now_ms());
        let at_once = at_once.clone();
        saying.spawn(async move {
            let _permit = at_once.acquire_owned().await.unwrap();
            agent.reports.send(report).await.unwrap();
            let ack = agent.acks.message().await.unwrap().unwrap();
            assert!(!ack.send_full);
            agent
        });
    }
    agents.extend(saying.join_all().await);
    let (took, cpu) = (began.elapsed(), ca.cpu() - before);
    println!(
        "{what}: {took:.1?}, CA's CPU {cpu:.2} s, {:.0} µs an agent; once in 30 s that is {:.1} % of a processor",
        cpu * 1e6 / agents.len() as f64,
        cpu / 30.0 * 100.0
    );
}

async fn connect(svids: Vec<X509Svid>, address: SocketAddr, verifier: &Arc<PeerVerifier>) -> Vec<Agent> {
    let at_once = Arc::new(Semaphore::new(AT_ONCE));
    let mut connecting = JoinSet::new();
    for (number, svid) in svids.into_iter().enumerate() {
        let (at_once, verifier) = (at_once.clone(), verifier.clone());
        connecting.spawn(async move {
            let _permit = at_once.acquire_owned().await.unwrap();
            let mut node = NodeClient::new(dial(number, Some(&svid), address, &verifier).await.unwrap());
            let watch = node.watch(WatchRequest::default()).await.unwrap();
            let (reports, receiver) = mpsc::channel(1);
            let acks = node.report(ReceiverStream::new(receiver)).await.unwrap();
            Agent {
                number,
                reports,
                acks: acks.into_inner(),
                sequence: 0,
                _watch: watch.into_inner(),
            }
        });
    }
    connecting.join_all().await
}

/// What an agent with three proxies says, after so many policies and periods.
fn whole(number: usize, policies: u64, periods: u32) -> Report {
    let program = Some(Program {
        version: "0.1.0".into(),
        sha256: vec![7; 32],
        target: "x86_64-linux".into(),
        started_at_unix: 1_800_000_000,
    });
    let points = (0..3).map(|point| Point {
        key: format!("p{point:08}"),
        about: Some(PointAbout {
            kind: "proxy".into(),
            name: format!("service-{point}"),
            spiffe_id: format!("spiffe://{DOMAIN}/ns/shop/service-{point}"),
            program: program.clone(),
        }),
        listeners: Some(Listeners {
            listeners: vec![
                Listener {
                    kind: "outbound".into(),
                    name: "ledger".into(),
                    address: "127.0.0.1:17713".into(),
                    to: "ledger.shop.internal:7713".into(),
                    expect: format!("spiffe://{DOMAIN}/ns/shop/ledger"),
                };
                3
            ],
            left_out: 0,
        }),
        policy: Some(PointPolicy {
            source: "bundle".into(),
            revision: policies,
            manifest_sha256: vec![9; 32],
            snapshot: "b".repeat(64),
            policies: 120,
            loaded_at_unix: 1_800_000_000,
            expires_unix: 4_000_000_000,
            signers_version: 1,
            signed_by: vec!["alice".into()],
            ..PointPolicy::default()
        }),
        counters: Some(PointCounters {
            decisions: ["allow", "forbid", "no_permit"]
                .map(|name| Count {
                    name: name.into(),
                    count: 1_000_000 + u64::from(periods) * 977,
                })
                .into(),
            records: 3_000_000 + u64::from(periods),
            ..PointCounters::default()
        }),
        fired: Some(Fired {
            ids: (0..20).map(|n| format!("shop/orders-read-{n:02}")).collect(),
            left_out: 0,
        }),
        state: Some(PointState {
            svid_not_after_unix: 4_000_000_000,
            pid: 4_711,
            ..PointState::default()
        }),
    });
    Report {
        full: true,
        about: Some(NodeAbout {
            program: program.clone(),
            kernel: "Linux 6.12.41".into(),
            os: "Debian GNU/Linux 13 (trixie)".into(),
        }),
        state: Some(NodeState {
            live_revision: policies,
            live_manifest_sha256: vec![9; 32],
            signers_version: 1,
            svid_not_before_unix: 1_800_000_000,
            svid_not_after_unix: 4_000_000_000,
            authority_not_after_unix: 4_000_000_000,
            entries: u32::try_from(number % 100).unwrap(),
            entries_digest: vec![5; 32],
            entries_revision: 1 << 40,
            ..NodeState::default()
        }),
        counters: Some(NodeCounters::default()),
        points: points.collect(),
        ..Report::default()
    }
}

fn keepalive(sequence: u64) -> Report {
    Report {
        sequence,
        sent_at_unix_ms: now_ms(),
        ..Report::default()
    }
}

fn now_ms() -> i64 {
    UNIX_EPOCH.elapsed().unwrap().as_millis() as i64
}
