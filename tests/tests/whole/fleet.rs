//! Reports over real sockets: who may say what, how much of it, and what becomes of it.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, its helpers too"
)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use hoplite_identity::{BundleSet, PeerVerifier, SpiffeId, X509Svid, tls};
use hoplite_policy::bundle::Stage;
use hoplite_tests::{TcpApp, World, id, own_selectors, until};
use hoplite_wire::ca::admin_client::AdminClient;
use hoplite_wire::ca::node_client::NodeClient;
use hoplite_wire::ca::{Goal, ListReportsRequest, Mesh, NodeReport, ReportAck, ShowMeshRequest};
use hoplite_wire::channel;
use hoplite_wire::report::reports_client::ReportsClient;
use hoplite_wire::report::{
    Count, NodeAbout, Point, PointAbout, PointCounters, PointPolicy, Program, PutRequest, Report,
};
use hoplite_wire::reporting::REPORT_BYTES_MAX;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};

/// An agent that says whatever the test wants.
struct Liar {
    reports: mpsc::Sender<Report>,
    acks: Streaming<ReportAck>,
}

async fn dial(world: &World, svid: &X509Svid) -> NodeClient<Channel> {
    let verifier = Arc::new(PeerVerifier::new(BundleSet::from_iter([world.bundle()])).unwrap());
    let ca = SpiffeId::parse(&id("/hoplite/ca")).unwrap();
    let config = tls::client_config(Some(svid), verifier, ca, &[b"h2"]).unwrap();
    NodeClient::new(channel::tls(world.ca_address(), config).await.unwrap())
}

async fn admin(world: &World) -> AdminClient<Channel> {
    AdminClient::new(channel::unix(world.admin_socket()).await.unwrap())
}

async fn mesh(world: &World, goal: Option<Goal>) -> Mesh {
    let request = ShowMeshRequest { watch: false, goal };
    let mut answers = admin(world).await.show_mesh(request).await.unwrap().into_inner();
    answers.message().await.unwrap().unwrap()
}

async fn nodes(world: &World) -> Vec<NodeReport> {
    let mut answers = admin(world)
        .await
        .list_reports(ListReportsRequest::default())
        .await
        .unwrap()
        .into_inner();
    let mut nodes = Vec::new();
    while let Some(node) = answers.message().await.unwrap() {
        nodes.push(node);
    }
    nodes.sort_by(|a: &NodeReport, b| a.node.cmp(&b.node));
    nodes
}

/// What is told of a node, once it is that.
async fn node(world: &World, name: &str, what: &str, is_it: impl Fn(&NodeReport) -> bool) -> NodeReport {
    until(what, async || {
        nodes(world)
            .await
            .into_iter()
            .find(|node| node.node == name && is_it(node))
    })
    .await
}

fn has(node: &NodeReport, kind: &str) -> bool {
    node.troubles.iter().any(|trouble| trouble.kind == kind)
}

fn points(node: &NodeReport) -> usize {
    node.report.as_ref().map_or(0, |report| report.points.len())
}

fn point(key: &str, revision: u64, manifest: &[u8]) -> Point {
    Point {
        key: key.to_owned(),
        about: Some(PointAbout {
            kind: "proxy".to_owned(),
            name: key.to_owned(),
            spiffe_id: id("/made-up"),
            program: None,
        }),
        policy: Some(PointPolicy {
            source: "bundle".to_owned(),
            revision,
            manifest_sha256: manifest.to_vec(),
            ..PointPolicy::default()
        }),
        ..Point::default()
    }
}

fn full(points: Vec<Point>) -> Report {
    let now = std::time::UNIX_EPOCH.elapsed().unwrap();
    Report {
        sequence: 1,
        full: true,
        sent_at_unix_ms: i64::try_from(now.as_millis()).unwrap(),
        about: Some(NodeAbout::default()),
        points,
        ..Report::default()
    }
}

impl Liar {
    async fn open(world: &World, svid: &X509Svid) -> Self {
        let (reports, receiver) = mpsc::channel(1);
        let acks = dial(world, svid)
            .await
            .report(ReceiverStream::new(receiver))
            .await
            .unwrap();
        Self {
            reports,
            acks: acks.into_inner(),
        }
    }

    async fn say(&mut self, report: Report) -> Result<ReportAck, Status> {
        let _ = self.reports.send(report).await;
        let ack = tokio::time::timeout(Duration::from_secs(20), self.acks.message()).await;
        ack.unwrap().map(Option::unwrap)
    }
}

#[tokio::test]
async fn what_every_node_does_is_known_and_what_is_foreign_is_named() {
    let world = World::start().await;
    let app = TcpApp::start().await;
    let one = world.proxy("one").signed().tcp("one", &app).start().await;
    let policy = "@id(\"p\") permit (principal, action, resource);";
    let revision = world.publish(&[("a.cedar", policy)], Stage::Live).await;
    let goal = |names: &[&str]| Goal {
        live_revision: revision,
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        ..Goal::default()
    };
    let now = until("the proxy follows, and it is reported", async || {
        let mesh = mesh(&world, Some(goal(&["one", "else"]))).await;
        (mesh.following == 1).then_some(mesh)
    })
    .await;
    assert_eq!(
        (now.points, now.points_with_live, now.nodes_with_points),
        (1, 1, 1),
        "{now:?}"
    );
    assert_eq!(
        (now.agents, now.heard, now.in_step, &*now.known),
        (1, 1, 1, &["one".to_owned()][..]),
        "{now:?}"
    );
    let own = node(&world, "node", "its report", |node| points(node) == 1).await;
    let report = own.report.unwrap();
    let about = report.points[0].about.clone().unwrap();
    assert_eq!(about.spiffe_id, id("/one"));
    let binary = std::fs::read("/proc/self/exe").unwrap();
    let digest = ring_digest(&binary);
    assert_eq!(about.program.unwrap().sha256, digest);
    assert_eq!(
        report.points[0].listeners.clone().unwrap().listeners[0].address,
        one.inbound("one").to_string()
    );

    // Another node: one that follows, one that is behind, one that was fed by somebody else.
    let manifest = report.points[0].policy.clone().unwrap().manifest_sha256;
    let svid = world.join("n2").await;
    let mut liar = Liar::open(&world, &svid).await;
    let said = vec![
        point("follows", revision, &manifest),
        point("foreign", revision, &[9; 32]),
        point("unknown", revision + 7, &[9; 32]),
    ];
    let ack = liar.say(full(said)).await.unwrap();
    assert_eq!((ack.sequence, ack.send_full, ack.period_ms), (1, false, 2_000));
    let other = node(&world, "n2", "what the other said", |node| points(node) == 3).await;
    let foreign: Vec<&str> = other
        .troubles
        .iter()
        .filter(|trouble| trouble.kind == "foreign-policy")
        .map(|trouble| trouble.point.as_str())
        .collect();
    assert_eq!(foreign, ["foreign", "unknown"], "{other:?}");
    let both = mesh(&world, Some(goal(&[]))).await;
    assert_eq!(
        (both.points, both.points_with_live, both.nodes_with_points),
        (4, 2, 2),
        "{both:?}"
    );

    // What changed is put in its place; what does not follow is asked for as a whole.
    let news = Report {
        sequence: 2,
        points: vec![point("foreign", revision, &manifest)],
        gone: vec!["unknown".to_owned()],
        ..Report::default()
    };
    assert!(!liar.say(news.clone()).await.unwrap().send_full);
    let mended = node(&world, "n2", "what changed", |node| points(node) == 2).await;
    assert!(!has(&mended, "foreign-policy"), "{mended:?}");
    assert!(liar.say(news).await.unwrap().send_full, "said twice");
    one.stop().await;
    node(&world, "node", "a proxy that left is forgotten", |node| {
        points(node) == 0
    })
    .await;
}

fn ring_digest(bytes: &[u8]) -> Vec<u8> {
    hoplite_seal::Hash::of(bytes).0.to_vec()
}

#[tokio::test]
async fn an_agent_speaks_for_itself_alone_and_only_while_it_may() {
    let world = World::start().await;
    let own = node(&world, "node", "the agent's own report", |node| node.report.is_some()).await;
    let svid = world.join("evil").await;
    let mut liar = Liar::open(&world, &svid).await;
    // There is no field for another's name; what it makes up stands under its own.
    liar.say(full(vec![point("ledger", 1, &[1; 32])])).await.unwrap();
    let evil = node(&world, "evil", "what it said", |node| points(node) == 1).await;
    assert_eq!(evil.spiffe_id, id("/hoplite/agent/evil"));
    let after = node(&world, "node", "the other is as before", |_| true).await;
    assert_eq!(points(&after), points(&own));

    // A newer stream of the same agent ends the older one.
    let mut newer = Liar::open(&world, &svid).await;
    newer.say(full(vec![])).await.unwrap();
    let old = liar.say(full(vec![])).await.unwrap_err();
    assert_eq!(old.code(), Code::Aborted, "{old:?}");

    // Banned, it is heard no more, and forgotten at once.
    world.ban("evil").await;
    until("it is gone", async || {
        nodes(&world).await.iter().all(|node| node.node != "evil").then_some(())
    })
    .await;
    let denied = newer.say(full(vec![])).await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied, "{denied:?}");
    let refused = dial(&world, &svid)
        .await
        .report(tokio_stream::iter([full(vec![])]))
        .await;
    assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn floods_and_lengths_cost_others_nothing() {
    let world = World::start().await;
    let svid = world.join("evil").await;
    let mut liar = Liar::open(&world, &svid).await;
    // As long as gRPC takes it: kept is what a report may be.
    let long = (0..50).map(|n| Point {
        about: Some(PointAbout {
            name: "\u{1b}[31m".repeat(10_000),
            program: Some(Program {
                version: "9".repeat(10_000),
                ..Program::default()
            }),
            ..PointAbout::default()
        }),
        counters: Some(PointCounters {
            decisions: vec![
                Count {
                    name: "x".repeat(100),
                    count: u64::MAX,
                };
                100
            ],
            ..PointCounters::default()
        }),
        ..point(&format!("p{n:03}"), 1, &[1; 100])
    });
    liar.say(full(long.collect())).await.unwrap();
    let evil = node(&world, "evil", "what is left of it", |node| points(node) > 0).await;
    let report = evil.report.unwrap();
    assert!(hoplite_wire::reporting::length(&report) <= REPORT_BYTES_MAX);
    let name = &report.points[0].about.as_ref().unwrap().name;
    assert!(name.len() <= 256 && !name.contains('\u{1b}'), "{name:?}");
    let decisions = mesh(&world, None).await.decisions;
    assert!(
        (1..1 << 62).contains(&decisions),
        "{decisions}: a number that nobody has spoils no sum"
    );

    // Beyond that the stream ends.
    let huge = full(vec![Point {
        key: "x".repeat(5 << 20),
        ..Point::default()
    }]);
    let mut other = Liar::open(&world, &svid).await;
    let _ = other.reports.send(huge).await;
    let ended = tokio::time::timeout(Duration::from_secs(20), other.acks.message())
        .await
        .unwrap();
    assert!(!matches!(ended, Ok(Some(_))), "{ended:?}");

    // A flood is taken five times a second, whatever is sent; another agent is heard meanwhile.
    let mut flood = Liar::open(&world, &svid).await;
    let sender = flood.reports.clone();
    let flooding = tokio::spawn(async move {
        let mut sequence = 1;
        while sender
            .send(Report {
                sequence,
                ..full(vec![])
            })
            .await
            .is_ok()
        {
            sequence += 1;
        }
    });
    let began = Instant::now();
    let mut good = Liar::open(&world, &world.join("good").await).await;
    good.say(full(vec![point("ledger", 1, &[1; 32])])).await.unwrap();
    node(&world, "good", "who is honest is heard", |node| points(node) == 1).await;
    let took = began.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    let (began, mut taken) = (Instant::now(), 0);
    while began.elapsed() < Duration::from_secs(2) {
        let ack = tokio::time::timeout(Duration::from_secs(1), flood.acks.message()).await;
        taken += u32::from(matches!(ack, Ok(Ok(Some(_)))));
    }
    assert!(taken <= 12, "{taken} messages in two seconds");
    flooding.abort();
}

#[tokio::test]
async fn a_workload_reports_as_itself_and_as_nobody_else() {
    let world = World::start().await;
    let app = TcpApp::start().await;
    let ledger = world.proxy("ledger").signed().tcp("ledger", &app).start().await;
    let before = node(&world, "node", "the proxy's report", |node| points(node) == 1).await;
    let real = before.report.unwrap().points[0].clone();
    // This process is the proxy's too, so it has its name; it has no other.
    world.register("/evil", &own_selectors(), None).await;
    until("an SVID for it", async || world.fetch("/evil").await.ok().flatten()).await;
    let socket = world.workload_api();
    let mut client = ReportsClient::new(
        channel::unix(std::path::Path::new(socket.trim_start_matches("unix://")))
            .await
            .unwrap(),
    );
    let mut put = async |spiffe_id: String, name: &str| {
        let mut request = Request::new(PutRequest {
            point: Some(Point {
                about: Some(PointAbout {
                    kind: "proxy".to_owned(),
                    name: name.to_owned(),
                    spiffe_id,
                    ..PointAbout::default()
                }),
                ..point("key of its own", 1, &[1; 32])
            }),
            leaving: false,
            failure: String::new(),
        });
        request
            .metadata_mut()
            .insert("workload.spiffe.io", "true".parse().unwrap());
        client
            .put(request)
            .await
            .map_or_else(|status| status.code(), |_| Code::Ok)
    };
    assert_eq!(put(id("/orders"), "orders").await, Code::PermissionDenied);
    assert_eq!(put(String::new(), "ledger").await, Code::PermissionDenied);
    // Under its own name it may call itself what it likes: people see whose word it is.
    until("it is taken", async || {
        (put(id("/evil"), "ledger").await == Code::Ok).then_some(())
    })
    .await;
    let both = node(&world, "node", "both", |node| points(node) == 2).await;
    let report = both.report.unwrap();
    let own = report.points.iter().find(|point| point.key == real.key).unwrap();
    assert_eq!(own.about, real.about, "the real one is as it was");
    let evil = report.points.iter().find(|point| point.key != real.key).unwrap();
    assert_eq!(evil.about.as_ref().unwrap().spiffe_id, id("/evil"));
    ledger.stop().await;
}

/// An agent that decides for other people's proxies is a decision point like a proxy: what it decides by is seen, and named when it is
/// another than what is in force.
#[tokio::test]
async fn an_agents_own_decision_point_is_seen_and_named() {
    let mut world = World::start().await;
    world.policy("@id(\"own\") permit (principal, action, resource);");
    world.authorize("billing", "/billing").await;
    let seen = node(&world, "node", "the agent's own point", |node| points(node) == 1).await;
    let point = seen.report.clone().unwrap().points.remove(0);
    let about = point.about.unwrap();
    assert_eq!(
        (about.kind.as_str(), about.name.as_str()),
        ("agent", "node"),
        "{about:?}"
    );
    assert_eq!(about.spiffe_id, id("/hoplite/agent/node"));
    assert_eq!(point.policy.unwrap().source, "directory");
    assert!(
        !has(&seen, "unsigned-directory") && !has(&seen, "foreign-identity"),
        "{seen:?}"
    );

    // As soon as there is a signed policy, the directory is another one.
    let began = Instant::now();
    let revision = world
        .publish(
            &[("a.cedar", "@id(\"p\") permit (principal, action, resource);")],
            Stage::Live,
        )
        .await;
    let named = node(&world, "node", "its directory is named", |node| {
        has(node, "unsigned-directory")
    })
    .await;
    let took = began.elapsed();
    assert!(took < Duration::from_secs(4), "{took:?}: more than a period");
    let trouble = named
        .troubles
        .iter()
        .find(|trouble| trouble.kind == "unsigned-directory")
        .unwrap();
    assert_eq!(
        (trouble.point.as_str(), trouble.level.as_str()),
        ("node", "wrong"),
        "{trouble:?}"
    );
    let goal = Goal {
        live_revision: revision,
        ..Goal::default()
    };
    let mesh = mesh(&world, Some(goal)).await;
    assert_eq!((mesh.points, mesh.following), (1, 0), "{mesh:?}");
}

/// A lower version of agent or proxy, and a proxy that says it is of another trust domain, are told with the first report.
#[tokio::test]
async fn an_older_program_and_a_foreign_name_are_named() {
    let world = World::start().await;
    let mut liar = Liar::open(&world, &world.join("old").await).await;
    let program = |version: &str| {
        Some(Program {
            version: version.to_owned(),
            ..Program::default()
        })
    };
    let mut said = full(vec![
        point("older", 0, &[]),
        point("newer", 0, &[]),
        point("foreign", 0, &[]),
    ]);
    said.about.as_mut().unwrap().program = program("0.0.9");
    let about = |said: &mut Report, n: usize| said.points[n].about.clone().unwrap();
    for (n, version) in [(0, "0.0.9"), (1, "99.0.0"), (2, "")] {
        said.points[n].policy = None;
        said.points[n].about = Some(PointAbout {
            program: program(version).filter(|program| !program.version.is_empty()),
            ..about(&mut said, n)
        });
    }
    said.points[2].about = Some(PointAbout {
        spiffe_id: "spiffe://elsewhere.test/ledger".to_owned(),
        ..about(&mut said, 2)
    });
    liar.say(said).await.unwrap();
    let old = node(&world, "old", "what it said", |node| points(node) == 3).await;
    let told: Vec<(&str, &str, &str)> = old
        .troubles
        .iter()
        .map(|trouble| (trouble.kind.as_str(), trouble.point.as_str(), trouble.level.as_str()))
        .filter(|(kind, ..)| ["old-version", "foreign-identity"].contains(kind))
        .collect();
    assert_eq!(
        told,
        [
            ("foreign-identity", "foreign", "wrong"),
            ("old-version", "", "notice"),
            ("old-version", "older", "notice"),
        ],
        "{old:?}"
    );
}
