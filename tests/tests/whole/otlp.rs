//! OpenTelemetry's own Collector as a judge: what it gets of CA, agent and proxies, and that nobody waits for it.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, its helpers too"
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use data_encoding::BASE64;
use hoplite_audit::Query;
use hoplite_host::config::Span;
use hoplite_identity::HostPort;
use hoplite_otlp::OtlpSettings;
use hoplite_tests::peers::{self, Process};
use hoplite_tests::{HttpApp, PlainClient, Proxy, World, exchange, get, id, until};
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};

const POLICY: &str = r#"
@id("shop/reads") permit (principal == Hoplite::Workload::"spiffe://world.test/orders",
    action in [Hoplite::Action::"read"], resource in Hoplite::Service::"ledger");
"#;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// A ledger and who calls it.
struct Shop {
    world: World,
    orders: Proxy,
    ledger: Proxy,
    _app: HttpApp,
}

/// A collector that writes what it gets to a file.
struct Collector {
    program: PathBuf,
    dir: PathBuf,
    port: u16,
    /// What its receiver's TLS is made of, in its own words.
    tls: String,
    runs: u32,
    process: Option<Process>,
}

/// A span as the collector has it.
#[derive(Debug, Clone)]
struct Seen {
    of: String,
    trace: String,
    id: String,
    parent: String,
    state: String,
    name: String,
    kind: u64,
    attributes: BTreeMap<String, String>,
}

// === impl Shop ===

impl Shop {
    async fn start(otlp: OtlpSettings) -> Self {
        let mut world = World::start().await;
        world.policy(POLICY);
        world.send(otlp).await;
        let app = HttpApp::start().await;
        let ledger = world.proxy("ledger").http("ledger", &app).start().await;
        let calls = ledger.inbound("ledger");
        let orders = world.proxy("orders").calls("ledger", calls).start().await;
        let shop = Self {
            world,
            orders,
            ledger,
            _app: app,
        };
        until("a call is allowed", async || {
            (shop.call(&[]).await == StatusCode::OK).then_some(())
        })
        .await;
        shop
    }

    /// One call of the ledger, with these headers.
    async fn call(&self, headers: &[(&str, &str)]) -> StatusCode {
        self.answer("GET", headers).await.status
    }

    async fn answer(&self, method: &str, headers: &[(&str, &str)]) -> hoplite_tests::Answer {
        let mut request = Request::builder()
            .method(method)
            .uri("/accounts/7?token=secret")
            .header("host", "ledger");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let stream = TcpStream::connect(self.orders.outbound("ledger")).await.unwrap();
        exchange(stream, false, request.body(Full::default()).unwrap())
            .await
            .unwrap()
    }

    async fn metric(&self, proxy: &Proxy, line: &str) -> u64 {
        let text = get(proxy.metrics(), "/metrics").await.unwrap().body;
        let found = text
            .lines()
            .find_map(|found| found.strip_prefix(line)?.strip_prefix(' '));
        found.map_or(0, |value| value.parse().unwrap())
    }
}

// === impl Collector ===

impl Collector {
    fn start(program: &Path, dir: &Path, tls: String) -> Self {
        let mut collector = Self {
            program: program.to_owned(),
            dir: dir.to_owned(),
            port: peers::free_port(),
            tls,
            runs: 0,
            process: None,
        };
        collector.go_on();
        collector
    }

    fn go_on(&mut self) {
        self.runs += 1;
        let Self {
            dir, port, tls, runs, ..
        } = self;
        let config = format!(
            "receivers:
  otlp:
    protocols:
      grpc:
        endpoint: 127.0.0.1:{port}
        {tls}
exporters:
  file:
    path: {}
    flush_interval: 100ms
service:
  telemetry:
    metrics: {{level: none}}
    logs: {{level: warn}}
  pipelines:
    traces: {{receivers: [otlp], exporters: [file]}}
    metrics: {{receivers: [otlp], exporters: [file]}}
",
            dir.join(format!("{runs}.json")).display()
        );
        let file = dir.join("collector.yaml");
        fs::write(&file, config).unwrap();
        let mut command = Command::new(&self.program);
        command.arg(format!("--config=file:{}", file.display()));
        self.process = Some(Process::start(command, dir.join(format!("{runs}.log"))));
    }

    fn stop(&mut self) {
        self.process = None;
    }

    fn address(&self, host: &str) -> HostPort {
        HostPort::parse(&format!("{host}:{}", self.port)).unwrap()
    }

    /// What has come to its end so far. A line that is not whole yet is none.
    fn got(&self) -> Vec<Value> {
        let files = (1..=self.runs).map(|run| fs::read_to_string(self.dir.join(format!("{run}.json"))));
        let texts = files.map(Result::unwrap_or_default).collect::<Vec<_>>();
        let lines = texts.iter().flat_map(|text| text.lines());
        lines.filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    fn spans(&self) -> Vec<Seen> {
        let mut all = Vec::new();
        for resource in self.got().iter().flat_map(|got| each(&got["resourceSpans"])) {
            let of = attributes(&resource["resource"])["service.instance.id"].clone();
            for span in each(&resource["scopeSpans"]).flat_map(|scope| each(&scope["spans"])) {
                let text = |key: &str| span[key].as_str().unwrap_or_default().to_owned();
                all.push(Seen {
                    of: of.clone(),
                    trace: text("traceId"),
                    id: text("spanId"),
                    parent: text("parentSpanId"),
                    state: text("traceState"),
                    name: text("name"),
                    kind: span["kind"].as_u64().unwrap(),
                    attributes: attributes(span),
                });
            }
        }
        all
    }

    /// Of whom something came, each time that it did.
    fn instances(&self, signal: &str) -> Vec<String> {
        let got = self.got();
        let resources = got.iter().flat_map(|got| each(&got[signal]));
        resources
            .map(|resource| attributes(&resource["resource"])["service.instance.id"].clone())
            .collect()
    }

    fn spans_of(&self, instance: &str) -> u64 {
        self.spans().iter().filter(|span| span.of == instance).count() as u64
    }

    /// The last sums of a counter of one daemon, by outcome.
    fn sums(&self, instance: &str, name: &str) -> BTreeMap<String, u64> {
        let mut sums = BTreeMap::new();
        for resource in self.got().iter().flat_map(|got| each(&got["resourceMetrics"])) {
            if attributes(&resource["resource"])["service.instance.id"] != instance {
                continue;
            }
            for metric in each(&resource["scopeMetrics"]).flat_map(|scope| each(&scope["metrics"])) {
                if metric["name"] == name {
                    sums.clear();
                    for point in each(&metric["sum"]["dataPoints"]) {
                        let outcome = attributes(point).remove("outcome").unwrap_or_default();
                        let value: u64 = point["asInt"].as_str().unwrap().parse().unwrap();
                        *sums.entry(outcome).or_default() += value;
                    }
                }
            }
        }
        sums
    }

    fn metric_names(&self, service: &str) -> Vec<String> {
        let got = self.got();
        let resources = got.iter().flat_map(|got| each(&got["resourceMetrics"]));
        let of = resources.filter(|resource| attributes(&resource["resource"])["service.name"] == service);
        let metrics = of.flat_map(|resource| each(&resource["scopeMetrics"]).flat_map(|scope| each(&scope["metrics"])));
        metrics
            .map(|metric| metric["name"].as_str().unwrap().to_owned())
            .collect()
    }
}

fn pem(kind: &str, der: &[u8]) -> String {
    format!("-----BEGIN {kind}-----\n{}\n-----END {kind}-----\n", BASE64.encode(der))
}

fn each(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn attributes(of: &Value) -> BTreeMap<String, String> {
    let one = |attribute: &Value| {
        let value = &attribute["value"];
        let text = value["stringValue"].as_str().or_else(|| value["intValue"].as_str());
        (
            attribute["key"].as_str().unwrap().to_owned(),
            text.unwrap_or_default().to_owned(),
        )
    };
    each(&of["attributes"]).map(one).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_collector_gets_all_and_nobody_waits_for_it() {
    let Some(program) = peers::collector("a_real_collector_gets_all_and_nobody_waits_for_it") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let mut collector = Collector::start(&program, dir.path(), String::new());
    let shop = Shop::start(OtlpSettings::plain(collector.address("127.0.0.1"))).await;

    // One trace: the caller's span, the calling proxy's, the called proxy's, and what the service is told.
    let traceparent = format!("00-{TRACE}-00f067aa0ba902b7-01");
    let answer = shop
        .answer(
            "GET",
            &[
                ("traceparent", &traceparent),
                ("tracestate", "congo=t61rcWkgMzE"),
                ("baggage", "tenant=7"),
            ],
        )
        .await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    let [client, server] = until("both spans", async || {
        let spans = collector.spans().into_iter().filter(|span| span.trace == TRACE);
        let mut spans: Vec<_> = spans.collect();
        spans.sort_by_key(|span| span.of != "orders");
        spans.try_into().ok()
    })
    .await;
    assert_eq!(
        (&*client.of, client.kind, &*client.parent),
        ("orders", 3, "00f067aa0ba902b7")
    );
    assert_eq!((&*server.of, server.kind, &*server.parent), ("ledger", 2, &*client.id));
    assert_eq!(
        (&*client.state, &*server.state),
        ("congo=t61rcWkgMzE", "congo=t61rcWkgMzE")
    );
    let seen = answer.json();
    assert_eq!(
        seen["headers"]["traceparent"][0],
        format!("00-{TRACE}-{}-01", server.id)
    );
    assert_eq!(seen["headers"]["tracestate"][0], "congo=t61rcWkgMzE");
    assert_eq!(seen["headers"]["baggage"][0], "tenant=7");
    let decision = answer.decision().unwrap().to_owned();
    assert_eq!(shop.world.record(&decision).trace_id.as_deref(), Some(TRACE));
    for span in [&client, &server] {
        for (key, value) in [
            ("http.request.method", "GET"),
            ("http.response.status_code", "200"),
            ("server.address", "ledger"),
            ("hoplite.decision.id", &*decision),
            ("hoplite.principal", &*id("/orders")),
            ("hoplite.service", "ledger"),
        ] {
            assert_eq!(
                span.attributes.get(key).map(String::as_str),
                Some(value),
                "{key} of {span:?}"
            );
        }
        assert!(!format!("{span:?}").contains("secret"), "{span:?}");
    }
    // Where it is decided it is said how.
    assert_eq!(server.attributes["hoplite.outcome"], "allow");
    assert_eq!(server.attributes["hoplite.route"], "ledger:unmatched");
    assert!(!client.attributes.contains_key("hoplite.outcome"), "{client:?}");
    assert_eq!(server.name, "GET");

    // An unsampled trace crosses as it came, and is in no collector.
    let unsampled = format!("00-{}-00f067aa0ba902b7-00", TRACE.replace('4', "5"));
    let answer = shop.answer("GET", &[("traceparent", &unsampled)]).await;
    assert_eq!(answer.json()["headers"]["traceparent"][0], unsampled);

    // What is refused has its span too.
    let refused = shop.answer("DELETE", &[]).await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN);
    let span = until("the span of a refusal", async || {
        let mut spans = collector.spans().into_iter();
        spans.find(|span| {
            span.of == "ledger" && span.attributes.get("hoplite.outcome").is_some_and(|o| o == "no_permit")
        })
    })
    .await;
    assert_eq!(span.attributes["http.response.status_code"], "403");
    assert_eq!(span.attributes["hoplite.decision.id"], refused.decision().unwrap());

    // A thousand calls: a thousand spans on each side, or a counted loss.
    let before = ["orders", "ledger"].map(|of| collector.spans_of(of));
    let mut plain = PlainClient::new(shop.orders.outbound("ledger"));
    for _ in 0..1_000 {
        assert_eq!(
            plain.call(Method::GET, "/accounts/7").await.unwrap().status,
            StatusCode::OK
        );
    }
    for (proxy, (of, before)) in [&shop.orders, &shop.ledger]
        .into_iter()
        .zip(["orders", "ledger"].into_iter().zip(before))
    {
        until("a thousand spans", async || {
            let dropped = shop
                .metric(proxy, "hoplite_proxy_otlp_spans_total{result=\"dropped\"}")
                .await;
            let all = collector.spans_of(of) - before + dropped;
            assert!(all <= 1_000, "{all}");
            (all == 1_000).then(|| println!("{of}: {} spans came, {dropped} were dropped", all - dropped))
        })
        .await;
    }

    // Metrics say what the log says, here as there.
    let mut logged = BTreeMap::<String, u64>::new();
    for record in shop.world.records(&Query::default()) {
        if record.principal.as_deref() == Some(&id("/orders")) && record.service == "ledger" {
            *logged.entry(record.outcome.to_string()).or_default() += 1 + record.suppressed;
        }
    }
    assert!(logged["allow"] >= 1_000 && logged["no_permit"] >= 1, "{logged:?}");
    until("the same totals", async || {
        let sums = collector.sums("ledger", "hoplite_proxy_decisions_total");
        (sums == logged).then_some(())
    })
    .await;
    // Every family that is shown is sent.
    let shown = get(shop.ledger.metrics(), "/metrics").await.unwrap().body;
    let names = collector.metric_names("hoplite-proxy");
    let mut compared = 0;
    for line in shown.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let name = line.split(' ').next().unwrap();
        let has_samples = shown.lines().any(|sample| {
            let rest = sample.strip_prefix(name).unwrap_or_default();
            rest.starts_with(['{', ' ']) || rest.starts_with("_bucket{")
        });
        if has_samples {
            compared += 1;
            assert!(names.iter().any(|sent| sent == name), "{name} is shown, and not sent");
        }
    }
    assert!(compared > 40, "{compared}");
    for service in ["hoplite-ca", "hoplite-agent"] {
        until("metrics of CA and agent", async || {
            let names = collector.metric_names(service);
            let own = service.replace('-', "_");
            names.iter().any(|name| name.starts_with(&own)).then_some(())
        })
        .await;
    }

    // Without it requests go on.
    collector.stop();
    let before = collector.spans_of("ledger");
    for _ in 0..50 {
        let began = Instant::now();
        assert_eq!(
            plain.call(Method::GET, "/accounts/7").await.unwrap().status,
            StatusCode::OK
        );
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    }
    let failed = "hoplite_proxy_otlp_exports_total{signal=\"traces\",result=\"failed\"}";
    until("failures are counted", async || {
        (shop.metric(&shop.ledger, failed).await > 0).then_some(())
    })
    .await;
    // When it is there again it gets them.
    collector.go_on();
    until("what was kept for it", async || {
        (collector.spans_of("ledger") >= before + 50).then_some(())
    })
    .await;
}

/// The ways in which a collector is known, and that another one gets nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_proves_who_it_is() {
    let Some(program) = peers::collector("a_collector_proves_who_it_is") else {
        return;
    };
    let world = World::start().await;
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let file = dir.path().join(name);
        fs::write(&file, text).unwrap();
        file
    };
    // With an SVID, to whoever has one.
    let svid = world.caller("/collector").await.svid.unwrap();
    let cert = write("svid.pem", &svid.chain_pem());
    let key = write("svid.key", &svid.key_pem());
    let bundle = write("bundle.pem", &world.bundle().to_pem());
    let tls = format!(
        "tls: {{cert_file: {}, key_file: {}, client_ca_file: {}}}",
        cert.display(),
        key.display(),
        bundle.display()
    );
    let spiffe_dir = dir.path().join("spiffe");
    fs::create_dir(&spiffe_dir).unwrap();
    let by_svid = Collector::start(&program, &spiffe_dir, tls);

    // With a certificate of the web.
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let pair = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(["localhost".to_owned()]).unwrap();
    let leaf = leaf.signed_by(&pair, &authority).unwrap();
    let ca_file = write("web-ca.pem", &pem("CERTIFICATE", authority.der()));
    let cert = write("web.pem", &pem("CERTIFICATE", leaf.der()));
    let key = write("web.key", &pem("PRIVATE KEY", &pair.serialize_der()));
    let tls = format!("tls: {{cert_file: {}, key_file: {}}}", cert.display(), key.display());
    let web_dir = dir.path().join("web");
    fs::create_dir(&web_dir).unwrap();
    let by_name = Collector::start(&program, &web_dir, tls);

    let setting = |text: String| -> OtlpSettings {
        let table = format!("{text}\ninterval = \"1s\"\ntimeout = \"2s\"\n");
        hoplite_host::config::parse(Path::new("proxy.toml"), &table).unwrap()
    };
    let svids = |expect: &str| {
        setting(format!(
            "endpoint = \"https://127.0.0.1:{}\"\nspiffe_id = \"{}\"",
            by_svid.port,
            id(expect)
        ))
    };
    let names = |host: &str, ca_file: &Path| {
        setting(format!(
            "endpoint = \"https://{host}:{}\"\nca_file = \"{}\"",
            by_name.port,
            ca_file.display()
        ))
    };
    world.policy(POLICY);
    let app = HttpApp::start().await;
    let cases = [
        ("svid", svids("/collector"), true),
        ("another-svid", svids("/orders"), false),
        ("name", names("localhost", &ca_file), true),
        ("another-name", names("127.0.0.1", &ca_file), false),
        ("another-authority", names("localhost", &bundle), false),
    ];
    for (name, otlp, takes) in cases {
        let proxy = world.proxy(name).http("ledger", &app).otlp(otlp).start().await;
        let result = if takes { "sent" } else { "failed" };
        let line = format!("hoplite_proxy_otlp_exports_total{{signal=\"metrics\",result=\"{result}\"}}");
        until(name, async || {
            let text = get(proxy.metrics(), "/metrics").await.unwrap().body;
            text.lines().any(|found| found.starts_with(&line)).then_some(())
        })
        .await;
        let text = get(proxy.metrics(), "/metrics").await.unwrap().body;
        let other = if takes { "result=\"failed\"" } else { "result=\"sent\"" };
        let is_other = |line: &str| line.starts_with("hoplite_proxy_otlp_exports_total") && line.contains(other);
        // The collector may not have listened yet at the first attempt.
        assert!(takes || !text.lines().any(is_other), "{name}: {text}");
        proxy.stop().await;
    }
    let known = |collector: &Collector| -> Vec<String> {
        let mut of: Vec<_> = collector
            .got()
            .iter()
            .flat_map(|got| {
                each(&got["resourceMetrics"])
                    .map(|resource| attributes(&resource["resource"])["service.instance.id"].clone())
                    .collect::<Vec<_>>()
            })
            .collect();
        of.dedup();
        of
    };
    until("what came with an SVID", async || {
        (known(&by_svid) == ["svid"]).then_some(())
    })
    .await;
    until("what came by name", async || {
        (known(&by_name) == ["name"]).then_some(())
    })
    .await;
}

/// Each signal has a switch of its own: a proxy that sends no spans makes none, and one that sends no metrics sends its spans.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traces_and_metrics_go_one_without_the_other() {
    let Some(program) = peers::collector("traces_and_metrics_go_one_without_the_other") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let collector = Collector::start(&program, dir.path(), String::new());
    let settings = |traces: Option<bool>, metrics: bool| OtlpSettings {
        traces,
        metrics,
        interval: Span(Duration::from_secs(1)),
        ..OtlpSettings::plain(collector.address("127.0.0.1"))
    };
    let world = World::start().await;
    world.policy(POLICY);
    let app = HttpApp::start().await;
    let without_traces = settings(Some(false), true);
    let ledger = world
        .proxy("ledger")
        .http("ledger", &app)
        .otlp(without_traces)
        .start()
        .await;
    let calls = ledger.inbound("ledger");
    let orders = world
        .proxy("orders")
        .calls("ledger", calls)
        .otlp(settings(None, false))
        .start()
        .await;
    until("a call is allowed", async || {
        let answer = get(orders.outbound("ledger"), "/accounts/7").await.ok()?;
        (answer.status == StatusCode::OK).then_some(())
    })
    .await;
    until("the caller's spans", async || {
        (collector.spans_of("orders") > 0).then_some(())
    })
    .await;
    until("the called one's metrics, twice", async || {
        let with_metrics = collector.instances("resourceMetrics");
        (with_metrics.iter().filter(|of| *of == "ledger").count() > 1).then_some(())
    })
    .await;
    assert_eq!(collector.spans_of("ledger"), 0);
    assert!(!collector.instances("resourceMetrics").contains(&"orders".to_owned()));
    for (proxy, signal) in [(&ledger, "traces"), (&orders, "metrics")] {
        let text = get(proxy.metrics(), "/metrics").await.unwrap().body;
        let sent = format!("hoplite_proxy_otlp_exports_total{{signal=\"{signal}\",result=\"sent\"}}");
        let count = text.lines().find_map(|line| line.strip_prefix(&sent)).unwrap_or(" 0");
        assert_eq!(count.trim(), "0", "{signal}: {text}");
    }
}

/// A collector that takes connections and says nothing, or nonsense, costs memory up to a bound and no request its time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hostile_collector_slows_nothing() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    for says in [&b""[..], b"HTTP/1.1 200 OK\r\n\r\n", &[0xff; 4_096]] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let hostile = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    let _ = stream.write_all(says).await;
                    while stream.read(&mut [0; 1_024]).await.is_ok_and(|read| read > 0) {}
                });
            }
        });
        let shop = Shop::start(OtlpSettings::plain(HostPort::parse(&address.to_string()).unwrap())).await;
        let mut plain = PlainClient::new(shop.orders.outbound("ledger"));
        let mut slowest = Duration::ZERO;
        const CALLS: u64 = 3_000;
        for _ in 0..CALLS {
            let began = Instant::now();
            assert_eq!(
                plain.call(Method::GET, "/accounts/7").await.unwrap().status,
                StatusCode::OK
            );
            slowest = slowest.max(began.elapsed());
        }
        assert!(slowest < Duration::from_secs(1), "{slowest:?}");
        // What was made and is neither in the queue (2 048) nor under way (512) is dropped and counted.
        let dropped = shop
            .metric(&shop.ledger, "hoplite_proxy_otlp_spans_total{result=\"dropped\"}")
            .await;
        assert!((CALLS - 2_048 - 512..=CALLS).contains(&dropped), "{dropped}");
        assert_eq!(
            shop.metric(&shop.ledger, "hoplite_proxy_otlp_spans_total{result=\"sent\"}")
                .await,
            0
        );
        // The stop waits for it no longer than it may.
        let began = Instant::now();
        shop.ledger.stop().await;
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        hostile.abort();
    }
}
