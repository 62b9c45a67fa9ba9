//! AuthZEN: the standard's own scenario in our words, its MUSTs over real sockets, and what a decision leaves behind.

use std::process::Command;

use super::*;
use crate::policy::tests::{bundle_of, key, trust};
use crate::testing::{World, own};
use hoplite_audit::{Outcome, Phase};
use hoplite_identity::TrustDomain;
use hoplite_policy::bundle::{Meta, Stage};
use hoplite_policy::grant::{GrantDraft, GrantScope};
use hoplite_policy::holding::Holding;
use hoplite_wire::ext_authz::address::Address;
use hoplite_wire::ext_authz::attribute_context::Peer;
use hoplite_wire::ext_authz::authorization_client::AuthorizationClient;
use hoplite_wire::ext_authz::socket_address::PortSpecifier;
use hoplite_wire::ext_authz::{AttributeContext, CheckRequest, SocketAddress};
use http_body_util::Full;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::time::SystemTime;
use tonic::codegen::Bytes;

const POLICY: &str = r#"
    @id("ledger/web") permit (principal == Hoplite::Workload::"spiffe://prod.example/web",
        action in [Hoplite::Action::"read", Hoplite::Action::"write", Hoplite::Action::"connect"],
        resource in Hoplite::Service::"ledger") when { context.conn.src.isInRange(ip("10.0.0.0/8")) };
    @id("ledger/bob-reads") permit (principal == Hoplite::Workload::"spiffe://prod.example/bob",
        action in Hoplite::Action::"read", resource in Hoplite::Service::"ledger");
    @id("ledger/no-admin") forbid (principal, action, resource == Hoplite::Route::"ledger:GET /admin");
"#;
const ROUTES: &str = "[ledger]\nroutes = [\"GET /admin\", \"GET /accounts/{id}\"]\n";

/// The parts of questions.
const WEB: &str = r#""subject":{"type":"workload","id":"spiffe://prod.example/web"}"#;
const BOB: &str = r#""subject":{"type":"workload","id":"spiffe://prod.example/bob"}"#;
const GET: &str = r#""action":{"name":"GET"}"#;
const PUT: &str = r#""action":{"name":"PUT"}"#;
const SEVEN: &str =
    r#""resource":{"type":"service","id":"ledger","properties":{"path":"/accounts/7?all","host":"ledger.test"}}"#;
const ADMIN: &str =
    r#""resource":{"type":"service","id":"ledger","properties":{"path":"/admin","host":"ledger.test"}}"#;
const FROM: &str = r#""context":{"source":"10.1.2.3:4711"}"#;

/// An answer in short.
struct Told {
    status: u16,
    head: String,
    body: String,
}

// === impl Told ===

impl Told {
    fn json(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.body);
        assert!(self.head.contains("content-type: application/json"), "{}", self.head);
        serde_json::from_str(&self.body).unwrap()
    }

    /// `true`, `false`, or those of a list with commas between.
    fn decisions(&self) -> String {
        let json = self.json();
        let one = |decision: &Value| decision["decision"].as_bool().unwrap().to_string();
        match json.get("evaluations") {
            Some(list) => {
                assert!(json.get("decision").is_none(), "{json}");
                list.as_array().unwrap().iter().map(one).collect::<Vec<_>>().join(",")
            }
            None => one(&json),
        }
    }
}

fn world() -> World {
    let world = World::start_authorizing(
        &[
            ("ledger", "spiffe://prod.example/ledger"),
            ("refunds", "spiffe://prod.example/refunds"),
        ],
        POLICY,
        ROUTES,
    );
    world.publish([world.entry("/ledger", &[own()])]);
    world
}

/// A request of HTTP/1.1 with these head lines.
async fn http1(world: &World, line: &str, head: &str, body: &str) -> Told {
    let request = format!(
        "{line} HTTP/1.1\r\nhost: pdp.test\r\nconnection: close\r\ncontent-length: {}\r\n{head}\r\n{body}",
        body.len()
    );
    let answer = world.raw(request.as_bytes()).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    Told {
        status: head.split(' ').nth(1).unwrap().parse().unwrap(),
        head: head.to_owned(),
        body: body.to_owned(),
    }
}

async fn ask(world: &World, path: &str, parts: &[&str]) -> Told {
    let body = format!("{{{}}}", parts.join(","));
    http1(
        world,
        &format!("POST {path}"),
        "content-type: application/json\r\n",
        &body,
    )
    .await
}

#[tokio::test]
async fn the_certification_scenario() {
    let world = world();
    let more = r#""foo":"bar","futureField":{"nested":true}"#;
    let list = |items: &str| format!("\"evaluations\":[{items}]");
    let all = r#""options":{"evaluations_semantic":"execute_all"}"#;
    for (id, path, parts, expected) in [
        ("2.2.1 permit", EVALUATION, vec![WEB, GET, SEVEN, FROM], "true"),
        ("2.2.2 deny", EVALUATION, vec![BOB, PUT, SEVEN, FROM], "false"),
        ("1.4 rule 2", EVALUATION, vec![WEB, PUT, SEVEN, FROM], "true"),
        ("1.4 rule 3", EVALUATION, vec![BOB, GET, SEVEN, FROM], "true"),
        ("2.2.5 by a property", EVALUATION, vec![WEB, GET, ADMIN, FROM], "false"),
        (
            "2.2.9 unknown members",
            EVALUATION,
            vec![WEB, GET, SEVEN, FROM, more],
            "true",
        ),
        ("2.6 again", EVALUATION, vec![WEB, GET, SEVEN, FROM], "true"),
        (
            "3.2.1",
            EVALUATIONS,
            vec![WEB, GET, FROM, &list(&format!("{{{SEVEN}}},{{{ADMIN}}}"))],
            "true,false",
        ),
        (
            "3.2.2",
            EVALUATIONS,
            vec![BOB, SEVEN, FROM, &list(&format!("{{{GET}}},{{{PUT}}}"))],
            "true,false",
        ),
        (
            "3.2.5 no defaults",
            EVALUATIONS,
            vec![&list(&format!(
                "{{{WEB},{GET},{SEVEN},{FROM}}},{{{BOB},{PUT},{SEVEN},{FROM}}}"
            ))],
            "true,false",
        ),
        (
            "3.2.6 context is inherited, or one's own",
            EVALUATIONS,
            vec![WEB, GET, SEVEN, FROM, &list(r#"{},{"context":{"source":"192.0.2.1"}}"#)],
            "true,false",
        ),
        (
            "3.2.7 defaults",
            EVALUATIONS,
            vec![WEB, GET, SEVEN, FROM, &list(&format!("{{}},{{{ADMIN}}}"))],
            "true,false",
        ),
        (
            "3.4.1 one is not whole",
            EVALUATIONS,
            vec![WEB, GET, FROM, all, &list(&format!("{{{SEVEN}}},{{}}"))],
            "true,false",
        ),
        ("3.4.2 no list", EVALUATIONS, vec![WEB, GET, SEVEN, FROM], "true"),
        (
            "3.4.3 an empty list",
            EVALUATIONS,
            vec![WEB, GET, SEVEN, FROM, &list("")],
            "true",
        ),
    ] {
        assert_eq!(ask(&world, path, &parts).await.decisions(), expected, "{id}");
    }
    for (id, parts) in [
        ("2.4.1 subject", vec![GET, SEVEN]),
        ("2.4.1 action", vec![WEB, SEVEN]),
        ("2.4.1 resource", vec![WEB, GET]),
        ("2.4.2 subject.type", vec![r#""subject":{"id":"a"}"#, GET, SEVEN]),
        ("2.4.2 subject.id", vec![r#""subject":{"type":"workload"}"#, GET, SEVEN]),
        ("2.4.2 action.name", vec![WEB, r#""action":{}"#, SEVEN]),
        ("2.4.2 resource.type", vec![WEB, GET, r#""resource":{"id":"ledger"}"#]),
        ("2.4.2 resource.id", vec![WEB, GET, r#""resource":{"type":"service"}"#]),
        ("2.4.4 no JSON", vec!["nonsense"]),
        ("2.4.6 subject", vec![r#""subject":"alice""#, GET, SEVEN]),
        ("2.4.6 action.name", vec![WEB, r#""action":{"name":123}"#, SEVEN]),
        (
            "4 semantic",
            vec![
                WEB,
                GET,
                SEVEN,
                r#""options":{"evaluations_semantic":"first"},"evaluations":[{}]"#,
            ],
        ),
    ] {
        let path = if id.starts_with('4') { EVALUATIONS } else { EVALUATION };
        let told = ask(&world, path, &parts).await;
        assert_eq!(told.status, 400, "{id}: {}", told.body);
        assert!(told.head.contains("content-type: text/plain"), "{id}: {}", told.head);
    }
}

#[tokio::test]
async fn a_list_stops_where_it_is_told_to() {
    let world = world();
    let items = format!("\"evaluations\":[{{{SEVEN}}},{{{ADMIN}}},{{{SEVEN}}}]");
    for (semantic, expected) in [
        ("execute_all", "true,false,true"),
        ("deny_on_first_deny", "true,false"),
        ("permit_on_first_permit", "true"),
    ] {
        let before = world.records().len();
        let options = format!("\"options\":{{\"evaluations_semantic\":\"{semantic}\"}}");
        let told = ask(&world, EVALUATIONS, &[WEB, GET, FROM, &items, &options]).await;
        assert_eq!(told.decisions(), expected, "{semantic}");
        let recorded = world.records().len() - before;
        assert_eq!(
            recorded,
            expected.split(',').count(),
            "what is not decided is not recorded"
        );
    }
}

#[tokio::test]
async fn a_decision_is_that_of_our_proxy_and_is_recorded_like_it() {
    let world = world();
    let head = "content-type: Application/JSON; charset=utf-8\r\n\
                traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n";
    let told = http1(
        &world,
        &format!("POST {EVALUATION}"),
        head,
        &format!("{{{WEB},{GET},{SEVEN},{FROM}}}"),
    )
    .await;
    let record = world.records().pop().unwrap();
    assert_eq!(
        told.json(),
        json!({"decision": true, "context": {"id": record.id.to_string()}})
    );
    assert_eq!(
        (record.phase, record.outcome, record.action.as_str()),
        (Phase::Request, Outcome::Allow, "GET")
    );
    assert_eq!(record.principal.as_deref(), Some("spiffe://prod.example/web"));
    assert_eq!(record.vouched_by.as_deref(), Some("spiffe://prod.example/ledger"));
    assert_eq!(record.source.as_deref(), Some("10.1.2.3:4711"));
    assert_eq!(record.route.as_deref(), Some("ledger:GET /accounts/{id}"));
    assert_eq!(
        (record.host.as_deref(), record.path.as_deref()),
        (Some("ledger.test"), Some("/accounts/7"))
    );
    assert_eq!(record.determining, ["ledger/web"]);
    assert_eq!(record.trace_id.as_deref(), Some("4bf92f3577b34da6a3ce929d0e0e4736"));

    let connect =
        r#""action":{"name":"connect"},"resource":{"type":"service","id":"ledger"},"context":{"source":"10.0.0.1"}"#;
    let told = ask(&world, EVALUATION, &[WEB, connect]).await;
    let record = world.records().pop().unwrap();
    assert_eq!(told.json()["context"]["id"], record.id.to_string());
    assert_eq!(
        (record.phase, record.action.as_str(), record.outcome),
        (Phase::Connect, "connect", Outcome::Allow)
    );
    assert_eq!(record.source.as_deref(), Some("10.0.0.1"));
}

/// Of fields that were not told nothing is known, and one that is there twice has no one reading.
#[tokio::test]
async fn headers_are_those_that_were_told() {
    let selected = r#"
        @id("ledger/tenant") permit (principal == Hoplite::Workload::"spiffe://prod.example/web",
            action in Hoplite::Action::"read", resource in Hoplite::Service::"ledger")
            when { context.hdr has "x-tenant" && context.hdr["x-tenant"] == "a" };
    "#;
    let world = World::start_selecting(
        &[("ledger", "spiffe://prod.example/ledger")],
        selected,
        ROUTES,
        Some("headers = ['x-tenant']\n"),
    );
    world.publish([world.entry("/ledger", &[own()])]);
    for (told, decision, code, outcome) in [
        (r#","headers":{"X-Tenant":"a"}"#, true, None, Outcome::Allow),
        (
            r#","headers":{"x-tenant":"b"}"#,
            false,
            Some("denied"),
            Outcome::NoPermit,
        ),
        (r#","headers":{}"#, false, Some("denied"), Outcome::NoPermit),
        ("", false, Some("denied"), Outcome::Error),
        (
            r#","headers":{"x-tenant":"a","X-Tenant":"b"}"#,
            false,
            Some("header_twice"),
            Outcome::Malformed,
        ),
    ] {
        let resource = format!(
            r#""resource":{{"type":"service","id":"ledger","properties":{{"path":"/x","host":"ledger.test"{told}}}}}"#
        );
        let answer = ask(&world, EVALUATION, &[WEB, GET, &resource, FROM]).await.json();
        assert_eq!(answer["decision"], decision, "{told}: {answer}");
        let reason = &answer["context"]["reason_user"];
        let said = reason.as_object().and_then(|reason| reason.values().next()?.as_str());
        assert_eq!(said, code, "{told}: {answer}");
        assert_eq!(world.records().pop().unwrap().outcome, outcome, "{told}");
    }
}

#[tokio::test]
async fn a_refusal_says_a_word_and_no_policy() {
    let world = world();
    let at = |path: &str, host: &str| {
        format!(r#""resource":{{"type":"service","id":"ledger","properties":{{"path":"{path}","host":"{host}"}}}}"#)
    };
    let user = r#""subject":{"type":"user","id":"spiffe://prod.example/web"}"#;
    let nobody = r#""subject":{"type":"workload","id":"web"}"#;
    let bare = r#""resource":{"type":"service","id":"ledger"}"#;
    let verb = r#""action":{"name":"can_read"}"#;
    let connect = r#""action":{"name":"CONNECT"}"#;
    let trace = r#""action":{"name":"TRACE"}"#;
    for (parts, status, code, outcome) in [
        (vec![WEB, GET, ADMIN, FROM], "403", "denied", Outcome::Forbid),
        (vec![BOB, PUT, SEVEN, FROM], "403", "denied", Outcome::NoPermit),
        (vec![WEB, GET, SEVEN], "403", "no_source", Outcome::Malformed),
        (
            vec![WEB, GET, SEVEN, r#""context":{"source":"localhost"}"#],
            "403",
            "no_source",
            Outcome::Malformed,
        ),
        (
            vec![WEB, GET, &at("//accounts/7", "h"), FROM],
            "400",
            "not_canonical",
            Outcome::Malformed,
        ),
        (
            vec![WEB, GET, &at("/accounts%2f7", "h"), FROM],
            "400",
            "encoded_separator",
            Outcome::Malformed,
        ),
        (
            vec![WEB, GET, &at("/accounts/7", ""), FROM],
            "400",
            "no_host",
            Outcome::Malformed,
        ),
        (vec![WEB, GET, bare, FROM], "400", "no_host", Outcome::Malformed),
        (vec![WEB, verb, SEVEN, FROM], "400", "method", Outcome::Malformed),
        (
            vec![WEB, connect, SEVEN, FROM],
            "405",
            "method_refused",
            Outcome::Malformed,
        ),
        (
            vec![WEB, trace, bare, FROM],
            "405",
            "method_refused",
            Outcome::Malformed,
        ),
        (
            vec![user, GET, SEVEN, FROM],
            "401",
            "unauthenticated",
            Outcome::Unauthenticated,
        ),
        (
            vec![nobody, GET, SEVEN, FROM],
            "401",
            "unauthenticated",
            Outcome::Unauthenticated,
        ),
    ] {
        let told = ask(&world, EVALUATION, &parts).await.json();
        let record = world.records().pop().unwrap();
        assert_eq!(record.outcome, outcome, "{parts:?}");
        let expected = json!({"decision": false, "context": {
            "id": record.id.to_string(),
            "reason_user": {status: code},
            "reason_admin": {status: outcome.as_str()},
        }});
        assert_eq!(told, expected, "{parts:?}");
    }

    // The asker's own fault: no policy is asked, and nothing recorded.
    let before = world.records().len();
    for (resource, status, message) in [
        (r#""resource":{"type":"record","id":"1"}"#, 404, "of the type `service`"),
        (
            r#""resource":{"type":"service","id":"refunds"}"#,
            403,
            "only `spiffe://prod.example/refunds` may ask",
        ),
        (
            r#""resource":{"type":"service","id":"elsewhere"}"#,
            403,
            "`elsewhere` is not in",
        ),
    ] {
        let told = ask(&world, EVALUATION, &[WEB, GET, resource, FROM]).await.json();
        assert_eq!(
            (&told["decision"], &told["context"]["error"]["status"]),
            (&json!(false), &json!(status))
        );
        let said = told["context"]["error"]["message"].as_str().unwrap();
        assert!(said.contains(message), "{said}");
    }
    assert_eq!(world.records().len(), before);
}

#[tokio::test]
async fn what_is_no_such_request_has_a_status() {
    let world = world();
    let json = "content-type: application/json\r\n";
    let whole = format!("{{{WEB},{GET},{SEVEN},{FROM}}}");
    let long = format!("{{\"x\":\"{}\"}}", "x".repeat(BODY_BYTES_MAX));
    for (line, head, body, status, said) in [
        ("POST /access/v1/evaluation", json, whole.as_str(), 200, "true"),
        ("POST /access/v1/evaluation", "", &whole, 400, "content type"),
        (
            "POST /access/v1/evaluation",
            "content-type: text/plain\r\n",
            &whole,
            400,
            "content type",
        ),
        ("POST /access/v1/evaluation", json, "", 400, "no JSON object"),
        ("POST /access/v1/evaluation", json, "[1]", 400, "no JSON object"),
        ("POST /access/v1/evaluation", json, &long, 413, "1048576"),
        ("GET /access/v1/evaluation", json, "", 405, "POST"),
        ("PUT /access/v1/evaluations", json, &whole, 405, "POST"),
        ("POST /.well-known/authzen-configuration", json, &whole, 405, "GET"),
        ("POST /access/v1/search/subject", json, &whole, 404, "no searches"),
        (
            "POST /envoy.service.auth.v3.Authorization/Check",
            json,
            &whole,
            404,
            "HTTP/2",
        ),
        ("GET /", "", "", 404, "HTTP/2"),
    ] {
        let told = http1(&world, line, &format!("{head}x-request-id: bfe9 eb29\r\n"), body).await;
        assert_eq!(told.status, status, "{line}: {}", told.body);
        assert!(told.body.contains(said), "{line}: {}", told.body);
        if told.status == 405 {
            assert!(told.head.contains(&format!("allow: {said}")), "{}", told.head);
        }
        if line.contains("access") || line.contains("authzen") {
            assert!(told.head.contains("x-request-id: bfe9 eb29"), "{line}: {}", told.head);
        }
    }
    let metadata = http1(&world, "GET /.well-known/authzen-configuration", "", "")
        .await
        .json();
    let expected = json!({
        "policy_decision_point": "https://pdp.test",
        "access_evaluation_endpoint": "https://pdp.test/access/v1/evaluation",
        "access_evaluations_endpoint": "https://pdp.test/access/v1/evaluations",
    });
    assert_eq!(metadata, expected);
    let told = world
        .raw(b"GET /.well-known/authzen-configuration HTTP/1.1\r\nconnection: close\r\n\r\n")
        .await;
    assert!(told.starts_with("HTTP/1.1 400"), "{told}");
}

#[tokio::test]
async fn http2_is_answered_alike_beside_grpc() {
    let world = world();
    let stream = tokio::net::UnixStream::connect(world.directory.path().join("agent.sock"))
        .await
        .unwrap();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let mut send = async |request: Request<Full<Bytes>>| {
        let (parts, body) = sender.send_request(request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (parts, serde_json::from_slice::<Value>(&body).unwrap())
    };
    let request = Request::post("http://pdp.test/access/v1/evaluation")
        .header("content-type", "application/json")
        .header("x-request-id", "7");
    let body = Full::from(format!("{{{WEB},{GET},{SEVEN},{FROM}}}"));
    let (parts, told) = send(request.body(body).unwrap()).await;
    assert_eq!(
        (parts.status, &parts.headers["x-request-id"]),
        (StatusCode::OK, &HeaderValue::from_static("7"))
    );
    assert_eq!(told["decision"], true);
    let request = Request::get("http://pdp.test/.well-known/authzen-configuration");
    let (_, told) = send(request.body(Full::default()).unwrap()).await;
    assert_eq!(told["policy_decision_point"], "https://pdp.test");
    // gRPC on the same listener.
    let mut envoy = AuthorizationClient::new(world.dial().await);
    assert!(envoy.check(CheckRequest::default()).await.is_ok());
}

#[tokio::test]
async fn who_may_not_ask_is_told_so() {
    let world = world();
    let question = [WEB, GET, SEVEN, FROM];
    world.publish([world.entry("/ledger", &["unix:uid:4294967294".to_owned()])]);
    let told = ask(&world, EVALUATION, &question).await;
    assert_eq!(told.status, 403);
    assert!(told.body.contains("no identity issued"), "{}", told.body);
    world.supply.send_replace(None);
    assert_eq!(ask(&world, EVALUATION, &question).await.status, 503);
    assert!(world.records().is_empty());
    assert_eq!(
        ask(&world, EVALUATION, &["nonsense"]).await.status,
        503,
        "who asks comes first"
    );
    assert_eq!(
        world.refused.counts()[3],
        ("no decision", 3),
        "each is counted, and the log has a line"
    );

    let world = World::start();
    world.publish([world.entry("/ledger", &[own()])]);
    let told = ask(&world, EVALUATION, &question).await;
    assert_eq!(told.status, 404);
    assert!(told.body.contains("[authorization]"), "{}", told.body);
}

/// A thousand at once, and then they are counted.
#[tokio::test]
async fn strangers_do_not_fill_the_disk() {
    let world = Arc::new(world());
    let list = format!("\"evaluations\":[{}]", vec!["{}"; 100].join(","));
    let mut lists = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let (world, list) = (world.clone(), list.clone());
        lists.spawn(async move {
            let nobody = r#""subject":{"type":"workload","id":""}"#;
            ask(&world, EVALUATIONS, &[nobody, GET, SEVEN, FROM, &list])
                .await
                .json()
        });
    }
    let mut without_id = 0;
    for told in lists.join_all().await {
        for decision in told["evaluations"].as_array().unwrap() {
            assert_eq!(decision["decision"], false);
            without_id += usize::from(decision["context"].get("id").is_none());
        }
    }
    assert!(without_id > 0);
    // Those without an id are counted within about a second, each once.
    let refused = || -> u64 { world.records().iter().map(|record| 1 + record.suppressed).sum() };
    timeout(Duration::from_secs(20), async {
        while refused() < 2_000 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("all are counted");
    assert_eq!(refused(), 2_000, "each has an id or is counted");
    assert!(world.records().len() < 2_000);
    let last = ask(&world, EVALUATION, &[WEB, GET, SEVEN, FROM]).await;
    assert_eq!(last.decisions(), "true", "who has a name is heard");
}

#[tokio::test]
async fn bundles_grants_shadow_and_staleness_reach_those_who_ask() {
    let world = World::start_trusting(&[("ledger", "spiffe://prod.example/ledger")]);
    world.publish([world.entry("/ledger", &[own()])]);
    let told = async |expected: &str, what: &str| {
        for _ in 0..200 {
            let told = ask(&world, EVALUATION, &[WEB, GET, SEVEN, FROM]).await.decisions();
            if told == expected {
                return world.records().pop().unwrap();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{what}: {:?}", world.records().pop());
    };
    let now = SystemTime::now();
    let lasting =
        |seconds: u64| move |meta: &mut Meta| (meta.created, meta.expires) = (now, now + Duration::from_secs(seconds));
    let permit = "@id(\"all\") permit (principal, action, resource);";
    let nothing =
        "@id(\"none\") permit (principal, action, resource) when { context.conn.now < datetime(\"1970-01-02\") };";

    let record = told("false", "nothing is in force").await;
    assert_eq!(record.outcome, Outcome::Error, "{record:?}");
    let mut holding = Holding::new(Some(trust(&["alice", "bob"])));
    let take = |holding: &mut Holding, bytes: Vec<u8>| {
        let examined = holding.examine(&bytes, now).unwrap();
        holding.take(examined).unwrap();
    };
    let tell = |holding: &Holding| world.holding.send_replace(Arc::new(holding.clone()));
    take(&mut holding, bundle_of(permit, 1, Stage::Live, lasting(600), "alice"));
    tell(&holding);
    let record = told("true", "a bundle").await;
    assert_eq!(
        (record.bundle_revision, &record.determining[..]),
        (Some(1), &["all".to_owned()][..])
    );

    take(&mut holding, bundle_of(nothing, 2, Stage::Live, lasting(600), "alice"));
    take(&mut holding, bundle_of(permit, 3, Stage::Shadow, lasting(600), "alice"));
    tell(&holding);
    let mut record = told("false", "the next bundle").await;
    while record.shadow_outcome.is_none() {
        record = told("false", "a shadow changes no answer").await;
    }
    assert_eq!(
        (record.bundle_revision, record.shadow_outcome),
        (Some(2), Some(Outcome::Allow))
    );

    let domain = TrustDomain::parse("prod.example").unwrap();
    let scope = GrantScope::Path("prod.example/web".into());
    let times = (now - Duration::from_secs(1), now + Duration::from_secs(600));
    let draft = GrantDraft::new(
        &domain,
        "g",
        "INC-1",
        "why",
        scope,
        &"ledger".parse().unwrap(),
        times,
        now,
    )
    .unwrap();
    let grant = GrantDraft::sign_too(&draft.sign(&key("alice")).unwrap(), &key("bob")).unwrap();
    let (grants, _) = holding.examine_grants([&grant[..]], now);
    holding.take_grants(grants);
    tell(&holding);
    let record = told("true", "a grant").await;
    assert!(record.determining[0].starts_with("break-glass/"), "{record:?}");

    // This agent denies when what it has is stale.
    take(&mut holding, bundle_of(permit, 4, Stage::Live, lasting(3), "alice"));
    holding.take_grants(Vec::new());
    tell(&holding);
    told("true", "a bundle that is about to end").await;
    let record = told("false", "it has ended").await;
    assert!(record.stale && record.outcome == Outcome::Error, "{record:?}");
}

/// The test runs itself again with a bound on the size of files: a write beyond it fails, as on a full disk.
#[test]
fn a_log_that_fails_leaves_no_allow() {
    const AGAIN: &str = "HOPLITE_TEST_LOG_FAILS";
    if std::env::var_os(AGAIN).is_some() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        return runtime.block_on(ask_until_the_log_fails());
    }
    let name = "authorize::authzen::tests::a_log_that_fails_leaves_no_allow";
    let ran = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 32; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name])
        .env(AGAIN, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(
        ran.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&ran.stderr)
    );
}

async fn ask_until_the_log_fails() {
    let world = world();
    let authorizer = world.authorizer.clone().unwrap();
    let failed = tokio::spawn(async move { authorizer.log_failed().await.to_string() });
    // The ninth of each list may be the one that is not recorded: none of the others is told then.
    let list = format!("\"evaluations\":[{}]", ["{}"; 9].join(","));
    assert_eq!(asks_about_a_connection(&world).await.code, 0);
    let mut allowed = 0;
    let told = loop {
        let told = ask(&world, EVALUATIONS, &[WEB, GET, SEVEN, FROM, &list]).await;
        if told.status != 200 {
            break told;
        }
        assert_eq!(told.decisions(), ["true"; 9].join(","));
        allowed += 9;
        assert!(allowed < 5_000, "the log never fails");
    };
    assert!(allowed > 0);
    assert_eq!((told.status, told.body.as_str()), (503, "unrecorded\n"));
    for parts in [[WEB, GET, SEVEN, FROM], [WEB, GET, ADMIN, FROM]] {
        let told = ask(&world, EVALUATION, &parts).await;
        assert_eq!((told.status, told.body.as_str()), (503, "unrecorded\n"), "for good");
    }
    let envoy = asks_about_a_connection(&world).await;
    assert_eq!(envoy.message, "unrecorded", "nor is an Envoy allowed anything");
    let why = timeout(Duration::from_secs(5), failed)
        .await
        .expect("the agent notices")
        .unwrap();
    assert!(why.contains("the decision log in"), "{why}");
}

/// As a proxy's: what is recorded nowhere is not allowed.
#[tokio::test]
async fn a_log_that_is_removed_leaves_no_allow() {
    let world = world();
    let authorizer = world.authorizer.clone().unwrap();
    let asked = [WEB, GET, SEVEN, FROM];
    assert_eq!(ask(&world, EVALUATION, &asked).await.status, 200);
    std::fs::remove_dir_all(world.directory.path().join("audit")).unwrap();
    let why = timeout(Duration::from_secs(1), authorizer.log_failed())
        .await
        .expect("the agent notices")
        .to_string();
    assert!(why.contains("somebody has touched"), "{why}");
    let told = ask(&world, EVALUATION, &asked).await;
    assert_eq!((told.status, told.body.as_str()), (503, "unrecorded\n"));
}

/// What an Envoy is told about a connection that policy permits.
async fn asks_about_a_connection(world: &World) -> hoplite_wire::ext_authz::Status {
    let address = Address::SocketAddress(SocketAddress {
        address: "10.0.0.1".to_owned(),
        port_specifier: Some(PortSpecifier::PortValue(1)),
    });
    let attributes = AttributeContext {
        source: Some(Peer {
            address: Some(hoplite_wire::ext_authz::Address { address: Some(address) }),
            principal: "spiffe://prod.example/web".to_owned(),
        }),
        ..AttributeContext::default()
    };
    let request = CheckRequest {
        attributes: Some(attributes),
    };
    let mut client = AuthorizationClient::new(world.dial().await);
    client.check(request).await.unwrap().into_inner().status.unwrap()
}
