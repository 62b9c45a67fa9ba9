//! Prometheus as a judge: it scrapes a CA, an agent and proxies; and no document names a metric that is not there.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hoplite_tests::peers::{self, Process};
use hoplite_tests::{HttpApp, Proxy, World, exchange, get, id, until};
use http::{Request, StatusCode};
use http_body_util::Full;
use serde_json::Value;
use tokio::net::TcpStream;

const POLICY: &str = r#"
@id("shop/reads") permit (principal == Hoplite::Workload::"spiffe://world.test/orders",
    action in [Hoplite::Action::"read"], resource in Hoplite::Service::"ledger");
"#;

/// A ledger, who calls it, and an agent that decides too.
struct Shop {
    world: World,
    orders: Proxy,
    ledger: Proxy,
    _app: HttpApp,
}

impl Shop {
    async fn start() -> Self {
        let mut world = World::start().await;
        world.policy(POLICY);
        world.authorize("billing", "/billing").await;
        let app = HttpApp::start().await;
        let ledger = world.proxy("ledger").http("ledger", &app).start().await;
        let orders = world
            .proxy("orders")
            .calls("ledger", ledger.inbound("ledger"))
            .start()
            .await;
        let shop = Self {
            world,
            orders,
            ledger,
            _app: app,
        };
        until("a call is allowed", async || {
            let answer = get(shop.orders.outbound("ledger"), "/accounts/7").await.ok()?;
            (answer.status == StatusCode::OK).then_some(())
        })
        .await;
        shop
    }

    /// Every part, by the job that scrapes it.
    fn parts(&self) -> [(&'static str, SocketAddr); 4] {
        [
            ("hoplite-ca", self.world.ca_metrics()),
            ("hoplite-agent", self.world.agent_metrics()),
            ("hoplite-proxy", self.orders.metrics()),
            ("hoplite-proxy", self.ledger.metrics()),
        ]
    }

    async fn texts(&self) -> Vec<String> {
        let mut texts = Vec::new();
        for (_, address) in self.parts() {
            texts.push(get(address, "/metrics").await.unwrap().body);
        }
        texts
    }
}

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
}

fn read(name: &str) -> String {
    fs::read_to_string(file(name)).unwrap()
}

/// Kinds by name, as the form 0.0.4 says them; an info is a gauge there.
fn kinds(texts: &[String]) -> BTreeMap<String, String> {
    let types = texts
        .iter()
        .flat_map(|text| text.lines())
        .filter_map(|line| line.strip_prefix("# TYPE "));
    types
        .filter_map(|line| line.split_once(' '))
        .map(|(name, kind)| (name.to_owned(), kind.to_owned()))
        .collect()
}

/// Label names by metric, of the samples that there are.
fn labels(texts: &[String]) -> BTreeMap<String, BTreeSet<String>> {
    let mut all = BTreeMap::<String, BTreeSet<String>>::new();
    for line in texts
        .iter()
        .flat_map(|text| text.lines())
        .filter(|line| !line.starts_with('#'))
    {
        let (name, rest) = line.split_once('{').unwrap_or((line.split(' ').next().unwrap(), ""));
        let name = ["_bucket", "_sum", "_count"]
            .iter()
            .fold(name, |name, end| name.strip_suffix(end).unwrap_or(name));
        let found = all.entry(name.to_owned()).or_default();
        found.extend(
            rest.split("=\"")
                .map(|text| text.rsplit([',', ' ', '"']).next().unwrap().to_owned()),
        );
        found.retain(|label| {
            !label.is_empty() && label != "le" && label.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
        });
    }
    all
}

/// The names of metrics in a text.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let ours = words.filter(|word| {
        ["hoplite_proxy_", "hoplite_agent_", "hoplite_ca_", "process_"]
            .iter()
            .any(|start| word.starts_with(start))
    });
    ours.map(|word| word.strip_suffix("_bucket").unwrap_or(word).to_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_metric_is_in_the_reference_and_every_named_one_is_there() {
    let shop = Shop::start().await;
    let texts = shop.texts().await;
    let shown = kinds(&texts);
    let mut told = BTreeMap::new();
    for row in read("docs/reference/metrics.md")
        .lines()
        .filter(|line| line.starts_with("| `"))
    {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let name = cells[1].trim_matches('`');
        if name.starts_with('/') {
            continue;
        }
        let kind = if cells[2] == "info" { "gauge" } else { cells[2] };
        let names: BTreeSet<String> = cells[3]
            .split(", ")
            .map(|label| label.trim_matches('`').to_owned())
            .filter(|label| !label.is_empty())
            .collect();
        assert!(
            told.insert(name.to_owned(), (kind.to_owned(), names)).is_none(),
            "{name} is there twice"
        );
    }
    let labels = labels(&texts);
    for (name, (kind, names)) in &told {
        assert_eq!(shown.get(name), Some(kind), "{name} of the reference");
        if let Some(found) = labels.get(name) {
            assert_eq!(found, names, "labels of {name}");
        }
    }
    // What an agent counts of its decisions has the proxy's names.
    for name in shown.keys() {
        let of_proxy = name.replace("hoplite_agent_", "hoplite_proxy_");
        assert!(
            told.contains_key(name) || told.contains_key(&of_proxy),
            "{name} is not in the reference"
        );
    }
    // Whatever is named elsewhere is there.
    let documents = [
        "packaging/observability/alerts.yml",
        "packaging/observability/alerts.test.yml",
        "packaging/observability/dashboard.json",
        "docs/guide/observe.md",
        "docs/reference/configuration.md",
        "docs/reference/answers.md",
        "docs/threat-model.md",
    ];
    for document in documents {
        for name in named(&read(document)) {
            assert!(shown.contains_key(&name), "{document} names {name}, which is not there");
        }
    }
    // What has an alarm has a rule.
    let rules = named(&read("packaging/observability/alerts.yml"));
    for row in read("docs/reference/metrics.md")
        .lines()
        .filter(|line| line.ends_with("| yes |"))
    {
        let name = row.split('`').nth(1).unwrap();
        let watched = rules.contains(name);
        let by_its_silence = name.ends_with("authority_not_after_timestamp_seconds")
            || name == "hoplite_agent_svid_not_after_timestamp_seconds";
        assert!(
            watched || by_its_silence,
            "{name} should have an alarm, and no rule names it"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ready_says_why_not() {
    let mut world = World::start().await;
    let app = HttpApp::start().await;
    let ledger = world.proxy("ledger").http("ledger", &app).start().await;
    // There is no policy yet.
    let ready = get(ledger.metrics(), "/ready").await.unwrap();
    assert_eq!(ready.status, StatusCode::SERVICE_UNAVAILABLE, "{ready:?}");
    assert!(
        ready.body.starts_with("not ready: everything is denied: "),
        "{}",
        ready.body
    );
    assert_eq!(get(ledger.metrics(), "/live").await.unwrap().status, StatusCode::OK);
    world.policy(POLICY);
    until("the proxy is ready", async || {
        let ready = get(ledger.metrics(), "/ready").await.unwrap();
        (ready.status == StatusCode::OK).then_some(())
    })
    .await;
    for address in [world.ca_metrics(), world.agent_metrics()] {
        assert_eq!(get(address, "/ready").await.unwrap().body, "ready\n");
    }
    // Without its CA an agent goes on, and counts for how long.
    world.stop_ca().await;
    until("the agent counts the silence", async || {
        let text = get(world.agent_metrics(), "/metrics").await.unwrap().body;
        let silence = text
            .lines()
            .find_map(|line| line.strip_prefix("hoplite_agent_ca_silence_seconds "))?;
        (silence.parse::<f64>().unwrap() > 0.0).then_some(())
    })
    .await;
    assert_eq!(
        get(world.agent_metrics(), "/ready").await.unwrap().status,
        StatusCode::OK
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prometheus_scrapes_all_and_answers() {
    let Some([prometheus, promtool]) = peers::prometheus("prometheus_scrapes_all_and_answers") else {
        return;
    };
    let shop = Shop::start().await;
    // What it judges without a server.
    for arguments in [
        ["check", "rules", "packaging/observability/alerts.yml"],
        ["test", "rules", "packaging/observability/alerts.test.yml"],
        ["check", "config", "packaging/observability/prometheus.yml"],
    ] {
        let mut command = Command::new(&promtool);
        command.args(&arguments[..2]).arg(file(arguments[2]));
        let output = peers::output(command).await;
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    }
    for text in shop.texts().await {
        let mut child = Command::new(&promtool)
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        assert!(
            output.status.success() && said.is_empty(),
            "{}",
            String::from_utf8_lossy(&said)
        );
    }

    let dir = tempfile::tempdir().unwrap();
    let mut config = "global: {scrape_interval: 1s, scrape_timeout: 1s}\nscrape_configs:\n".to_owned();
    for (n, (job, address)) in shop.parts().into_iter().enumerate() {
        config += &format!("  - {{job_name: {job}-{n}, static_configs: [{{targets: [\"{address}\"]}}]}}\n");
    }
    fs::write(dir.path().join("prometheus.yml"), config).unwrap();
    let api: SocketAddr = ([127, 0, 0, 1], peers::free_port()).into();
    let mut command = Command::new(&prometheus);
    command.arg(format!("--config.file={}", dir.path().join("prometheus.yml").display()));
    command.arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()));
    command.arg(format!("--web.listen-address={api}"));
    let process = Process::start(command, dir.path().join("log"));

    let query = async |expression: &str| -> Option<Value> {
        let escaped: String = expression.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let answer = get(api, &format!("/api/v1/query?query={escaped}")).await.ok()?;
        if answer.status == StatusCode::SERVICE_UNAVAILABLE {
            // It listens before it can answer.
            return None;
        }
        let answer = answer.json();
        assert_eq!(answer["status"], "success", "{expression}: {answer}");
        Some(answer["data"]["result"].clone())
    };
    let parts = shop.parts().len();
    until("all targets are up", async || {
        let up = query("up == 1").await?;
        (up.as_array()?.len() == parts).then_some(())
    })
    .await;
    let targets = get(api, "/api/v1/targets").await.unwrap().json();
    for target in targets["data"]["activeTargets"].as_array().unwrap() {
        assert_eq!(
            (&target["health"], &target["lastError"]),
            (&"up".into(), &"".into()),
            "{target}"
        );
    }
    // What was called once before is counted under who called what.
    let decided = format!(
        "hoplite_proxy_decisions_total{{caller=\"{}\",service=\"ledger\",outcome=\"allow\"}} >= 1",
        id("/orders")
    );
    assert_eq!(
        query(&decided).await.unwrap().as_array().unwrap().len(),
        1,
        "{}",
        process.said()
    );
    for (expression, least) in [
        ("hoplite_agent_svids >= 2", 1),
        ("hoplite_ca_issued_total{kind=\"workload\",result=\"issued\"} >= 2", 1),
        ("hoplite_ca_agents{state=\"active\"} == 1", 1),
        ("hoplite_proxy_svid_not_after_timestamp_seconds - time() > 60", 2),
        ("hoplite_ca_authority_not_after_timestamp_seconds - time() > 60", 1),
        ("process_start_time_seconds > 1.7e9", parts),
        ("hoplite_build_info == 1", parts),
    ] {
        let found = query(expression).await.unwrap();
        assert_eq!(found.as_array().unwrap().len(), least, "{expression}: {found}");
    }
    // Each expression of the dashboard is one.
    let dashboard: Value = serde_json::from_str(&read("packaging/observability/dashboard.json")).unwrap();
    let mut asked = 0;
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expression = target["expr"].as_str().unwrap();
            let expression = expression.replace("$__rate_interval", "1m").replace("$service", ".*");
            query(&expression).await.unwrap();
            asked += 1;
        }
    }
    assert!(asked > 30, "{asked}");
}

/// What W3C Trace Context and Baggage say arrives as it was sent, and the record knows the trace.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_trace_context_crosses_the_hops_and_is_in_the_record() {
    let shop = Shop::start().await;
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let context = [
        ("traceparent", format!("00-{trace}-00f067aa0ba902b7-01")),
        ("tracestate", "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7".to_owned()),
        ("baggage", "tenant=7".to_owned()),
    ];
    let mut request = Request::get("/accounts/7").header("host", "ledger");
    for (name, value) in &context {
        request = request.header(*name, value);
    }
    let stream = TcpStream::connect(shop.orders.outbound("ledger")).await.unwrap();
    let answer = exchange(stream, false, request.body(Full::default()).unwrap())
        .await
        .unwrap();
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    let seen = answer.json();
    for (name, value) in context {
        assert_eq!(seen["headers"][name][0], value, "{name}");
    }
    let record = shop.world.record(answer.decision().unwrap());
    assert_eq!(record.trace_id.as_deref(), Some(trace));
}
