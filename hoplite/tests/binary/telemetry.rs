//! What the tools people have see of a mesh of real processes: the totals are those of the decision log, exactly; and
//! whether each part is ready.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::support::{PATIENCE, Up, hoplite, kill, until};

/// Connections that ask side by side.
const CLIENTS: usize = 8;

/// By caller, service, route and outcome.
type Totals = BTreeMap<[String; 4], u64>;

/// What is asked at an outbound listener over one connection, and how often.
fn ask(port: u16, request: &str, times: usize) -> BTreeMap<u16, u64> {
    let mut answers = BTreeMap::new();
    let mut connection: Option<BufReader<TcpStream>> = None;
    for _ in 0..times {
        let reader = connection.get_or_insert_with(|| {
            let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            BufReader::new(stream)
        });
        reader.get_mut().write_all(request.as_bytes()).unwrap();
        let (mut head, mut length, mut closes) = (String::new(), 0, false);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap() == 0 || line == "\r\n" {
                break;
            }
            let lower = line.to_ascii_lowercase();
            if let Some(value) = lower.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            closes |= lower.starts_with("connection: close");
            head.push_str(&line);
        }
        std::io::copy(&mut reader.by_ref().take(length), &mut std::io::sink()).unwrap();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        *answers.entry(status.unwrap_or(0)).or_default() += 1;
        if closes || status.is_none() {
            connection = None;
        }
    }
    answers
}

/// `times` in all, divided among several connections at once.
fn ask_together(port: u16, request: &str, times: usize) -> BTreeMap<u16, u64> {
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| scope.spawn(|| ask(port, request, times / CLIENTS)))
            .collect();
        let mut all = BTreeMap::new();
        for client in clients {
            for (status, count) in client.join().unwrap() {
                *all.entry(status).or_default() += count;
            }
        }
        all
    })
}

/// A proxy's metrics, as its admin socket gives them.
fn scrape(socket: &Path) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nhost: proxy\r\nconnection: close\r\n\r\n")
        .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// The decisions among them.
fn decisions(text: &str) -> Totals {
    let samples = text
        .lines()
        .filter_map(|line| line.strip_prefix("hoplite_proxy_decisions_total{"));
    samples
        .map(|sample| {
            let (labels, count) = sample.rsplit_once("} ").unwrap();
            let label = |name: &str| {
                let value = labels.split_once(&format!("{name}=\"")).unwrap().1;
                value.split('"').next().unwrap().to_owned()
            };
            (
                ["caller", "service", "route", "outcome"].map(label),
                count.parse().unwrap(),
            )
        })
        .filter(|(_, count)| *count > 0)
        .collect()
}

/// Each histogram's samples: the buckets in order, the count and the sum, by name and labels.
fn histograms(text: &str) -> BTreeMap<String, (Vec<u64>, u64, f64)> {
    let mut found = BTreeMap::<String, (Vec<u64>, u64, f64)>::new();
    for line in text.lines().filter(|line| line.contains("_duration_seconds_")) {
        let (sample, value) = line.rsplit_once(' ').unwrap();
        let (name, labels) = sample.split_once('{').unwrap_or((sample, "}"));
        let labels: Vec<&str> = labels
            .trim_end_matches('}')
            .split(',')
            .filter(|label| !label.starts_with("le="))
            .collect();
        let (family, kind) = name.rsplit_once('_').unwrap();
        let of = found.entry(format!("{family}{{{}}}", labels.join(","))).or_default();
        match kind {
            "bucket" => of.0.push(value.parse().unwrap()),
            "count" => of.1 = value.parse().unwrap(),
            "sum" => of.2 = value.parse().unwrap(),
            _ => {}
        }
    }
    found
}

/// What was counted of lengths of time: the buckets only grow, the last is the count, and a request that policy was asked about is in
/// exactly one of them.
#[track_caller]
fn durations_are_exact(name: &str, text: &str, counted: &Totals) {
    let all = histograms(text);
    for family in ["decision", "handshake"] {
        assert!(
            all.keys().any(|key| key.contains(&format!("_{family}_duration"))),
            "{name}: none of {family}"
        );
    }
    for (labels, (buckets, count, sum)) in &all {
        assert_eq!(buckets.last(), Some(count), "{name}: {labels}");
        assert!(buckets.is_sorted(), "{name}: {labels}: {buckets:?}");
        assert_eq!(*count == 0, *sum == 0.0, "{name}: {labels}: {sum} s of {count}");
    }
    for ([caller, service, route, outcome], decided) in counted {
        // What goes round in a circle is an error before there is a request to anybody.
        if ["allow", "forbid", "no_permit"].contains(&outcome.as_str()) {
            let labels = format!("caller=\"{caller}\",service=\"{service}\",route=\"{route}\",outcome=\"{outcome}\"");
            let took = all.get(&format!("hoplite_proxy_request_duration_seconds{{{labels}}}"));
            assert_eq!(took.map(|(_, count, _)| count), Some(decided), "{name}: {labels}");
        }
    }
}

/// The decisions of a log, as `audit query` counts them.
fn recorded(dir: &Path) -> (Totals, usize) {
    let log = dir.display().to_string();
    let output = hoplite(&[
        "audit", "query", "--log", &log, "--limit", "1000000", "--output", "json",
    ]);
    assert!(output.status.success(), "{output:?}");
    let records: Vec<serde_json::Map<String, Value>> = serde_json::from_slice(&output.stdout).unwrap();
    let (mut totals, mut rolled_up) = (Totals::new(), 0);
    for record in records {
        let text = |name: &str| record.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let suppressed = record.get("suppressed").and_then(Value::as_u64).unwrap_or_default();
        rolled_up += usize::from(suppressed > 0);
        *totals
            .entry(["principal", "service", "route", "outcome"].map(text))
            .or_default() += 1 + suppressed;
    }
    (totals, rolled_up)
}

#[test]
fn the_totals_are_those_of_the_decision_log() {
    let dir = tempfile::tempdir().unwrap();
    let mut up = Up::start(dir.path());
    let (orders, ledger, inbound) = (up.base + 21, up.base + 22, up.base + 12);

    // Allowed, on two hops. The answer's route is the template, whatever the id.
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: orders\r\n\r\n");
    let allowed = ask_together(orders, &get("/orders/17"), 4_000);
    assert_eq!(allowed, [(200, 4_000)].into(), "{}", up.terminal());
    // Refused, more often than each can have a record of its own; and on two routes.
    for path in ["/accounts/17", "/nothing/like/it"] {
        let denied = ask_together(ledger, &get(path), 2_400);
        assert_eq!(denied, [(403, 2_400)].into());
    }
    // Read in no way, or in two.
    let malformed = ask_together(orders, "GET /a%2fb HTTP/1.1\r\nhost: orders\r\n\r\n", 1_200);
    assert_eq!(malformed.get(&400), Some(&1_200), "{malformed:?}");
    // What no policy speaks of.
    let unspoken = ask_together(
        up.base + 23,
        "PUT /entries HTTP/1.1\r\nhost: ledger\r\ncontent-length: 0\r\n\r\n",
        800,
    );
    assert_eq!(unspoken, [(403, 800)].into());
    // What goes round in a circle, as far as anybody can tell: an error of nobody's.
    let circle = format!(
        "GET /orders/17 HTTP/1.1\r\nhost: orders\r\nvia: {}\r\n\r\n",
        ["1.1 hoplite"; 20].join(", ")
    );
    let circling = ask_together(orders, &circle, 800);
    assert_eq!(circling, [(508, 800)].into());
    // Cut off by who asks, with half a body.
    for _ in 0..100 {
        let mut stream = TcpStream::connect(("127.0.0.1", orders)).unwrap();
        stream
            .write_all(b"POST /orders HTTP/1.1\r\nhost: orders\r\ncontent-length: 100\r\n\r\nhalf of it")
            .unwrap();
    }
    // Nobody we know.
    for _ in 0..200 {
        let mut stream = TcpStream::connect(("127.0.0.1", inbound)).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    }

    let names = ["edge", "orders", "ledger"];
    let socket = |name: &str| dir.path().join(format!("run/{name}.sock"));
    // What is rolled up is written once a second.
    let mut before = Vec::new();
    let scraped: Vec<String> = until("nothing is decided any more", || {
        let now: Vec<String> = names.iter().map(|name| scrape(&socket(name))).collect();
        let totals: Vec<Totals> = now.iter().map(|text| decisions(text)).collect();
        let is_quiet = totals == before;
        before = totals;
        std::thread::sleep(Duration::from_millis(1_500));
        is_quiet.then_some(now)
    });
    assert!(up.interrupt().success(), "{}", up.terminal());

    let (mut requests, mut outcomes, mut rolled_up) = (0, std::collections::BTreeSet::new(), 0);
    for (name, text) in names.iter().zip(&scraped) {
        let counted = decisions(text);
        let (logged, summed) = recorded(&dir.path().join("audit").join(name));
        assert_eq!(counted, logged, "{name}");
        durations_are_exact(name, text, &counted);
        requests += counted.values().sum::<u64>();
        outcomes.extend(counted.keys().map(|[.., outcome]| outcome.clone()));
        rolled_up += summed;
        // No raw path is anywhere, and no more label sets than there are templates.
        assert!(!text.contains("/orders/17") && !text.contains("/accounts/17"), "{name}");
        assert!(counted.len() < 20, "{name}: {counted:?}");
    }
    assert!(requests >= 10_000, "{requests}");
    assert!(rolled_up > 0, "no refusal was rolled up");
    for outcome in ["allow", "forbid", "no_permit", "error", "malformed", "unauthenticated"] {
        assert!(outcomes.contains(outcome), "{outcome} is not among {outcomes:?}");
    }
    // How long requests took is counted for each that was decided, allowed and refused.
    let took = "hoplite_proxy_request_duration_seconds_count{";
    let orders = scraped[1]
        .lines()
        .find(|line| line.starts_with(took) && line.contains("GET /orders/{id}"));
    assert!(orders.is_some_and(|line| line.ends_with(" 4000")), "{orders:?}");
}

#[test]
fn health_is_asked_by_file_and_by_directory() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(dir.path());
    let well = up.tool(&["healthcheck"]);
    let said = String::from_utf8_lossy(&well.stdout).into_owned();
    assert!(well.status.success(), "{well:?}");
    assert_eq!(
        (said.lines().count(), said.matches(": ready").count()),
        (5, 5),
        "{said}"
    );

    // Each by its own file; and one that hangs, or is gone, is not well.
    let processes = up.processes();
    for name in ["ca", "agent", "orders"] {
        let file = dir.path().join(format!("config/{name}.toml")).display().to_string();
        let check = || hoplite(&["healthcheck", "--config", &file, "--output", "json"]);
        let answer: Value = serde_json::from_slice(&check().stdout).unwrap();
        assert_eq!(
            (&answer[0]["ready"], answer[0]["reasons"].as_array().unwrap().len()),
            (&true.into(), 0)
        );
        kill("-STOP", processes[name]);
        let hanging = check();
        assert_eq!(hanging.status.code(), Some(1), "{name}: {hanging:?}");
        let answer: Value = serde_json::from_slice(&hanging.stdout).unwrap();
        assert!(
            answer[0]["reasons"][0].as_str().unwrap().contains("no answer within"),
            "{answer}"
        );
        kill("-CONT", processes[name]);
        until("it answers again", || check().status.success().then_some(()));
    }
    drop(up);
    let gone = hoplite(&["healthcheck", "--dir", &dir.path().display().to_string()]);
    let said = String::from_utf8_lossy(&gone.stdout).into_owned();
    assert_eq!(
        (gone.status.code(), said.matches("not ready").count()),
        (Some(1), 5),
        "{gone:?}"
    );
    let nonsense = Command::new(env!("CARGO_BIN_EXE_hoplite"))
        .args(["healthcheck", "--config", "/nothing.toml"])
        .output()
        .unwrap();
    assert!(!nonsense.status.success() && String::from_utf8_lossy(&nonsense.stderr).contains("/nothing.toml"));
}
