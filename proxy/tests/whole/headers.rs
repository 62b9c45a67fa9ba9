//! Headers by their nature, over real sockets: whatever sign stands for `-`, a header is the one it could be taken for.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use std::convert::Infallible;

use bytes::Bytes;
use hoplite_policy::header_nature::{HeaderNature, KNOWN_HEADERS, KnownHeader};
use hoplite_proxy::InboundProtocol;
use http::{HeaderMap, HeaderName, HeaderValue, Request};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::support::{App, Proxy, World, inbound, status};

const POLICY: &str =
    r#"@id("all") permit (principal, action, resource) when { principal in Hoplite::TrustDomain::"demo.hoplite" };"#;

/// What a field's name may hold beside letters and digits (RFC 9110, 5.6.2).
const SIGNS: &str = "!#$%&'*+-.^_`|~";

/// Fields of one request: fewer than the proxy's bound.
const FIELDS: usize = 80;

/// Names whose value has a meaning of its own in their own spelling: other tests send them.
const MEANT: [&str; 8] = [
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "upgrade",
    "expect",
    "te",
    "trailer",
];

type Sender = http2::SendRequest<BoxBody<Bytes, Infallible>>;

async fn world(protocol: InboundProtocol) -> (World, App, Proxy) {
    let world = World::new();
    world.policy("orders.cedar", POLICY);
    let app = App::http().await;
    let proxy = world.inbound("orders", protocol, app.address).await;
    (world, app, proxy)
}

async fn http2(world: &World, proxy: &Proxy) -> Sender {
    let svid = world.svid("/edge");
    let stream = world
        .connect_by(&[b"h2"], proxy.inbound("orders"), Some(&svid), "/orders")
        .await
        .unwrap();
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    sender
}

/// A name of every row in every spelling, but for the row's own.
fn disguises(known: &KnownHeader) -> Vec<String> {
    let name = known.name.replace('*', "host");
    let whole = SIGNS.chars().map(|sign| name.replace('-', &sign.to_string()));
    let first = SIGNS.chars().map(|sign| name.replacen('-', &sign.to_string(), 1));
    let mut all: Vec<String> = whole.chain(first).filter(|spelt| *spelt != name).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// In its own spelling, and in capitals.
fn own(known: &KnownHeader) -> Vec<String> {
    let name = known.name.replace('*', "host");
    vec![name.to_ascii_uppercase(), name]
}

/// What must not reach the service, and what a request must not have at all, with the code of its refusal.
fn by_fate() -> (Vec<String>, Vec<(String, &'static str)>) {
    let (mut removed, mut refused) = (Vec::new(), Vec::new());
    for known in KNOWN_HEADERS {
        match known.nature {
            HeaderNature::Override => {
                let all = own(known).into_iter().chain(disguises(known));
                refused.extend(all.map(|name| (name, "override_refused")));
            }
            _ if known.once => refused.extend(disguises(known).into_iter().map(|name| (name, "duplicate_field"))),
            HeaderNature::HopByHop | HeaderNature::AnsweredHere | HeaderNature::Identity | HeaderNature::Ours => {
                removed.extend(disguises(known));
            }
            HeaderNature::Account => removed.extend(disguises(known)),
            HeaderNature::Host | HeaderNature::Framing | HeaderNature::Ordinary => {
                assert_eq!(disguises(known), [""; 0], "{}", known.name);
            }
        }
        let taken_off = matches!(
            known.nature,
            HeaderNature::HopByHop | HeaderNature::AnsweredHere | HeaderNature::Identity | HeaderNature::Ours
        );
        if taken_off && !MEANT.contains(&known.name) {
            // Once: twice is another fault.
            removed.extend(own(known).into_iter().take(1));
        }
    }
    (removed, refused)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http1_names_are_what_they_could_be_taken_for() {
    let (world, app, proxy) = world(InboundProtocol::Http).await;
    let (removed, refused) = by_fate();
    for names in removed.chunks(FIELDS) {
        for connection in ["close", "close, x-forwarded-client-cert, x.forwarded.host"] {
            let lies: String = names.iter().map(|name| format!("{name}: spoofed\r\n")).collect();
            let request =
                format!("GET / HTTP/1.1\r\nhost: orders\r\nconnection: {connection}\r\n{lies}x_mine: kept\r\n\r\n");
            let answer = world.raw(proxy.inbound("orders"), "/orders", &request).await;
            assert_eq!(status(&answer), 200, "{names:?}: {answer}");
            assert!(
                !answer.contains("spoofed") && answer.contains("x_mine: kept"),
                "{answer}"
            );
            assert!(answer.contains("x-forwarded-client-cert: By="), "{answer}");
        }
    }
    let reached = app.count();
    for (name, code) in refused {
        let request = format!("GET / HTTP/1.1\r\nhost: orders\r\nconnection: close\r\n{name}: 1\r\n\r\n");
        let answer = world.raw(proxy.inbound("orders"), "/orders", &request).await;
        assert_eq!(status(&answer), 400, "{name}: {answer}");
        assert!(answer.contains(&format!("\"error\":\"{code}\"")), "{name}: {answer}");
    }
    assert_eq!(app.count(), reached, "what is refused does not reach the service");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_names_are_what_they_could_be_taken_for() {
    let (world, app, proxy) = world(InboundProtocol::Http2).await;
    let mut sender = http2(&world, &proxy).await;
    let (removed, refused) = by_fate();
    for names in removed.chunks(FIELDS) {
        let mut request = Request::get("http://orders/").header("x_mine", "kept");
        for name in names {
            request = request.header(name, "spoofed");
        }
        let (status, answer) = send(&mut sender, request.body(empty()).unwrap()).await;
        assert_eq!(status, 200, "{names:?}: {answer}");
        assert!(
            !answer.contains("spoofed") && answer.contains("x_mine: kept"),
            "{answer}"
        );
        assert!(answer.contains("x-forwarded-client-cert: By="), "{answer}");
    }
    let reached = app.count();
    for (name, code) in refused {
        let request = Request::get("http://orders/").header(&name, "1").body(empty()).unwrap();
        let (status, answer) = send(&mut sender, request).await;
        assert_eq!(status, 400, "{name}: {answer}");
        assert!(answer.contains(&format!("\"error\":\"{code}\"")), "{name}: {answer}");
    }
    assert_eq!(app.count(), reached, "what is refused does not reach the service");
}

/// By what else a service knows its callers, its operator says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_that_an_operator_has_named_do_not_reach_the_service_in_any_spelling() {
    let world = World::new();
    world.policy("orders.cedar", POLICY);
    let app = App::http().await;
    let agent = world.agent("orders", &world.svid("/orders")).await;
    let mut config = world.config("orders", &agent);
    config.removed_headers = vec!["x-remote-user".to_owned(), "x-auth-*".to_owned()]
        .try_into()
        .unwrap();
    config
        .inbound
        .push(inbound("orders", InboundProtocol::Http, app.address));
    let proxy = Proxy::start(config, agent).await;
    let names = ["X-Remote-User", "x_remote.user", "X-Auth-Role", "x!auth_role"];
    let lies: String = names.iter().map(|name| format!("{name}: spoofed\r\n")).collect();
    let connection = "connection: close, x-mine\r\n";
    let request = format!("GET / HTTP/1.1\r\nhost: orders\r\n{connection}{lies}x-remote: kept\r\n\r\n");
    let answer = world.raw(proxy.inbound("orders"), "/orders", &request).await;
    assert_eq!(status(&answer), 200, "{answer}");
    assert!(
        !answer.contains("spoofed") && answer.contains("x-remote: kept"),
        "{answer}"
    );
}

/// A repeated length is one (RFC 9110, 8.6; RFC 9112, 6.3), whichever protocol it comes by.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rfc9110_8_6_equal_lengths_are_one() {
    let (world, _app, proxy) = world(InboundProtocol::Http).await;
    for lengths in [
        "content-length: 2\r\nContent-Length: 2\r\n",
        "content-length: 2, 2\r\n",
        "content-length: 2 ,2,2\r\n",
    ] {
        let request = format!("POST / HTTP/1.1\r\nhost: orders\r\nconnection: close\r\n{lengths}\r\nab");
        let answer = world.raw(proxy.inbound("orders"), "/orders", &request).await;
        assert_eq!(status(&answer), 200, "{lengths}: {answer}");
        assert!(
            answer.ends_with("\n\nab") && answer.matches("\ncontent-length: 2\n").count() == 1,
            "{answer}"
        );
    }
    for lengths in [
        "content-length: 2, 3\r\n",
        "content-length: 2\r\ncontent-length: 02\r\n",
        "content-length: 2,\r\n",
    ] {
        let request = format!("POST / HTTP/1.1\r\nhost: orders\r\nconnection: close\r\n{lengths}\r\nab");
        let answer = world.raw(proxy.inbound("orders"), "/orders", &request).await;
        assert_eq!(status(&answer), 400, "{lengths}: {answer}");
    }
    let mut sender = http2(&world, &proxy).await;
    let request = Request::post("http://orders/")
        .header("content-length", "2")
        .header("content-length", "2");
    let (status, answer) = send(&mut sender, request.body(Full::from("ab").boxed()).unwrap()).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer.matches("\ncontent-length: 2\n").count(), 1, "{answer}");
}

/// By then all is decided, so nothing that is in the table comes in trailers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trailers_hold_nothing_that_has_a_nature() {
    let (world, _app, proxy) = world(InboundProtocol::Http2).await;
    let mut sender = http2(&world, &proxy).await;
    let mut names: Vec<String> = KNOWN_HEADERS.iter().flat_map(disguises).collect();
    names.extend(KNOWN_HEADERS.iter().map(|known| known.name.replace('*', "host")));
    // Of these the library makes a protocol error (RFC 9113, 8.2.2).
    names.retain(|name| {
        ![
            "connection",
            "keep-alive",
            "proxy-connection",
            "transfer-encoding",
            "upgrade",
            "te",
        ]
        .contains(&&**name)
    });
    for names in names.chunks(FIELDS) {
        let mut trailers = HeaderMap::new();
        trailers.insert("x_mine", HeaderValue::from_static("kept"));
        for name in names {
            trailers.insert(HeaderName::try_from(name).unwrap(), HeaderValue::from_static("spoofed"));
        }
        let body = Full::new(Bytes::from("body")).with_trailers(async { Some(Ok(trailers)) });
        let request = Request::post("http://orders/").header("te", "trailers");
        let (status, answer) = send(&mut sender, request.body(body.boxed()).unwrap()).await;
        assert_eq!(status, 200, "{names:?}: {answer}");
        assert!(answer.contains("trailer x_mine: kept"), "{answer}");
        assert!(!answer.contains("spoofed"), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connect_and_trace_are_refused_alike() {
    let (world, app, proxy) = world(InboundProtocol::Http).await;
    let refused = "\"error\":\"method_refused\",\"outcome\":\"malformed\"";
    for head in [
        "TRACE / HTTP/1.1\r\nhost: orders\r\n",
        "TRACE / HTTP/1.1\r\nhost: orders\r\nx-original-url: /\r\ncontent_type: a\r\n",
        "TRACE /a%2fb HTTP/1.1\r\nhost: orders\r\n",
        "CONNECT ledger:443 HTTP/1.1\r\nhost: ledger:443\r\n",
        "CONNECT ledger:443 HTTP/1.1\r\nhost: ledger:443\r\nexpect: a-miracle\r\n",
    ] {
        let answer = world
            .raw(proxy.inbound("orders"), "/orders", &format!("{head}\r\n"))
            .await;
        assert_eq!(status(&answer), 405, "{head}: {answer}");
        assert!(answer.contains(refused), "{head}: {answer}");
    }
    let mut sender = http2(&world, &proxy).await;
    let trace = Request::builder().method("TRACE").uri("http://orders/");
    let connect = Request::builder().method("CONNECT").uri("ledger:443");
    for request in [trace, connect] {
        let (status, answer) = send(&mut sender, request.body(empty()).unwrap()).await;
        assert_eq!(status, 405, "{answer}");
        assert!(answer.contains(refused), "{answer}");
    }
    let records = world.records("orders");
    assert_eq!(records.len(), 7);
    for record in records {
        let reason = record.reason.unwrap();
        assert_eq!(reason, "method_refused: `CONNECT` and `TRACE` are not forwarded");
    }
    assert_eq!(app.count(), 0, "nothing reached the service");
}

fn empty() -> BoxBody<Bytes, Infallible> {
    Full::default().boxed()
}

async fn send(sender: &mut Sender, request: Request<BoxBody<Bytes, Infallible>>) -> (u16, String) {
    sender.ready().await.unwrap();
    let response = sender.send_request(request).await.unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}
