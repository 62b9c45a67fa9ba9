//! How long a publication takes from before `publish` until every proxy enforces it.
//!
//! `cargo bench -p hoplite-bench --bench publication [-- POLICIES…]`. A CA, an agent and 100 proxies with real sockets share this
//! machine; through each goes a TCP connection that only the policy of before permits, and the proxy that enforces the
//! new one ends it. Every proxy compiles the set for itself: here one after the other on the cores there are, on
//! as many nodes all at once.

#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "a measurement that cannot start has nothing to measure, and prints what it saw"
)]

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hoplite_policy::bundle::Stage;
use hoplite_tests::{Proxy, TcpApp, TestClient, World, id};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::client::TlsStream;

const PROXIES: usize = 100;
const ROUNDS: usize = 5;
const SIZES: [usize; 4] = [1, 100, 1_000, 10_000];
const PATIENCE: Duration = Duration::from_secs(120);

fn main() {
    // `cargo test --benches` asks with `--test` whether it starts.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let wanted: Vec<usize> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let sizes = if wanted.is_empty() { &SIZES } else { wanted.as_slice() };
    tokio::runtime::Runtime::new().unwrap().block_on(measure(sizes));
}

async fn measure(sizes: &[usize]) {
    let world = World::start().await;
    let app = TcpApp::start().await;
    let caller = Arc::new(world.caller("/caller").await);
    let mut proxies = Vec::with_capacity(PROXIES);
    for n in 0..PROXIES {
        proxies.push(world.proxy(&format!("p{n}")).signed().tcp("db", &app).start().await);
    }
    println!("{PROXIES} proxies, {ROUNDS} rounds: from before `publish` to enforced");
    for &policies in sizes {
        let mut took = Vec::new();
        for _ in 0..ROUNDS {
            world
                .publish(&[("db.cedar", &set(policies, "/caller"))], Stage::Live)
                .await;
            let mut opening = JoinSet::new();
            for (n, proxy) in proxies.iter().enumerate() {
                opening.spawn(open(caller.clone(), proxy.inbound("db"), id(&format!("/p{n}"))));
            }
            let open = opening.join_all().await;
            let began = Instant::now();
            let mut ends = JoinSet::new();
            for stream in open {
                ends.spawn(async move { ended(stream).await.duration_since(began) });
            }
            world
                .publish(&[("db.cedar", &set(policies, "/nobody"))], Stage::Live)
                .await;
            took.extend(ends.join_all().await);
        }
        took.sort();
        let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize];
        println!(
            "{policies:>6} policies: p50 {} ms, p99 {} ms, most {} ms",
            at(0.5).as_millis(),
            at(0.99).as_millis(),
            at(1.0).as_millis()
        );
    }
    for proxy in proxies {
        Proxy::stop(proxy).await;
    }
}

/// A connection that carries something, as soon as the policy lets it.
async fn open(caller: Arc<TestClient>, proxy: SocketAddr, expect: String) -> TlsStream<TcpStream> {
    let opened = timeout(PATIENCE, async {
        loop {
            if let Some(stream) = echo(&caller, proxy, &expect).await {
                return stream;
            }
            sleep(Duration::from_millis(100)).await;
        }
    });
    opened.await.expect("the policy that permits it in time")
}

async fn echo(caller: &TestClient, proxy: SocketAddr, expect: &str) -> Option<TlsStream<TcpStream>> {
    let mut stream = caller.connect(proxy, expect, &[]).await.ok()?;
    stream.write_all(b"ping").await.ok()?;
    stream.read_exact(&mut [0; 4]).await.ok()?;
    Some(stream)
}

async fn ended(mut stream: TlsStream<TcpStream>) -> Instant {
    let end = timeout(PATIENCE, stream.read(&mut [0; 4])).await;
    assert!(matches!(end, Ok(Ok(0) | Err(_))), "it was not ended: {end:?}");
    Instant::now()
}

/// As many policies, one of which lets this caller in; the others are of other services.
fn set(policies: usize, caller: &str) -> String {
    let mut text = format!(
        "@id(\"db\") @owner(\"db\") permit (principal == Hoplite::Workload::\"{}\", action == Hoplite::Action::\"connect\", resource == Hoplite::Service::\"db\");\n",
        id(caller)
    );
    for n in 1..policies {
        let _ = writeln!(
            text,
            "@id(\"other/{n}\") @owner(\"other\") permit (principal in Hoplite::Path::\"world.test/ns/n{}\", action in Hoplite::Action::\"read\", resource == Hoplite::Route::\"svc{n}:unmatched\") when {{ context.seg has s1 }};",
            n % 50
        );
    }
    text
}
