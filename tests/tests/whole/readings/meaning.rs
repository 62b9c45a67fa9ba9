//! Classes 11 to 14: which path, which host and which caller a request speaks of.

use hoplite_audit::Outcome;
use hoplite_policy::{CanonicalRequest, RouteTable};
use hoplite_tests::{id, until};

use super::scene::{ANSWERED, Field, ROUTES, Said, Scene, and, lines, with};

// === 11: paths ===

/// With the reason for which each is refused.
const AMBIGUOUS: &[(&str, &[&str])] = &[
    (
        "encoded_dots",
        &["/%2e%2e/admin", "/a/%2E%2e", "/a/.%2e/admin", "/%2e/admin", "/a/%2e"],
    ),
    (
        "encoded_separator",
        &[
            "/a%2fadmin",
            "/a%2Fb",
            "/..%2fadmin",
            "/a%5cb",
            "/..%5Cadmin",
            "/%2f%2fadmin",
        ],
    ),
    (
        "path_parameter",
        &["/admin;x=1", "/a;/admin", "/public/..;/admin", "/;a/admin", "/a;"],
    ),
    (
        "control_character",
        &["/admin%00", "/admin%00.html", "/a%0d%0ahost:%20b", "/a%09", "/a%7f"],
    ),
    (
        "not_utf8",
        &[
            "/%c0%ae%c0%ae/admin",
            "/%c0%afadmin",
            "/%e0%80%af",
            "/%ff",
            "/%ed%a0%80",
        ],
    ),
    ("bad_escape", &["/%", "/%2", "/%zz", "/%u002e/admin"]),
    ("escapes_root", &["/..", "/../admin", "/a/../../admin", "//../admin"]),
    ("backslash", &["/a\\admin", "/..\\admin", "\\admin"]),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h1_paths() {
    let scene = Scene::start().await;
    for (code, paths) in AMBIGUOUS {
        for path in *paths {
            // What does not even begin with a slash is no target to the library.
            let code = if path.starts_with('/') { code } else { "unparsed" };
            scene
                .refuses_h1(code, format!("GET {path} HTTP/1.1\r\nhost: backend\r\n\r\n"))
                .await;
        }
    }
    for target in ["/a#b", "/a#/../admin", "/a?b#c", "http://backend/a#b"] {
        scene
            .refuses_h1("fragment", format!("GET {target} HTTP/1.1\r\nhost: backend\r\n\r\n"))
            .await;
    }
    scene
        .refuses_h1("asterisk", "GET * HTTP/1.1\r\nhost: backend\r\n\r\n")
        .await;
    scene
        .refuses_h1(
            "too_many_segments",
            format!("GET {} HTTP/1.1\r\nhost: backend\r\n\r\n", "/a".repeat(65)),
        )
        .await;
}

/// RFC 9110, 15.5.15.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rfc9110_15_5_15_a_target_too_long_is_414() {
    let scene = Scene::start().await;
    for target in [format!("/{}", "a".repeat(8192)), format!("/?{}", "a".repeat(8193))] {
        let said = scene
            .h1(format!("GET {target} HTTP/1.1\r\nhost: backend\r\n\r\n").as_bytes())
            .await;
        assert!(said.starts_with("HTTP/1.1 414 "), "{said}");
        assert!(
            said.contains("\"error\":\"too_long\"") && said.contains("x-hoplite-decision: "),
            "{said}"
        );
    }
    // Longer than the library takes: it has a record and an id all the same.
    let target = "a".repeat(200 << 10);
    let said = scene
        .h1(format!("GET /{target} HTTP/1.1\r\nhost: backend\r\n\r\n").as_bytes())
        .await;
    assert!(said.is_empty() || said.starts_with("HTTP/1.1 414 "), "{said}");
    assert!(said.is_empty() || said.contains("x-hoplite-decision: "), "{said}");
    let reasons = until("three records", async || {
        let records = scene.records(Some(Outcome::Malformed));
        (records.len() == 3).then_some(records)
    })
    .await;
    assert!(
        reasons
            .iter()
            .all(|record| record.reason.as_deref().unwrap().starts_with("too_long: "))
    );
}

/// RFC 6585, 5. The connection of HTTP/2 lives on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rfc6585_5_a_head_too_large_is_431() {
    let scene = Scene::start().await;
    let many: String = (0..101).map(|n| format!("x{n}: a\r\n")).collect();
    let said = scene.h1(lines(&many).as_bytes()).await;
    assert!(
        said.starts_with("HTTP/1.1 431 ") && said.contains("x-hoplite-decision: "),
        "{said}"
    );
    let long = format!("x: {}\r\n", "a".repeat(200 << 10));
    let said = scene.h1(lines(&long).as_bytes()).await;
    assert!(said.is_empty() || said.starts_with("HTTP/1.1 431 "), "{said}");
    assert!(said.is_empty() || said.contains("x-hoplite-decision: "), "{said}");
    let mut connection = scene.open_h2().await;
    let value = [b'a'; 120];
    let field: Field<'_> = (b"x", &value);
    for (stream, count) in [(1, 101), (3, 600)] {
        connection.headers(stream, &and(&vec![field; count]), true).await;
        assert_eq!(connection.said(stream).await, Said::Status(0), "{count}");
        assert!(
            connection.body(stream).await.contains("\"error\":\"head_too_large\""),
            "{count}"
        );
    }
    connection.headers(5, &and(&[]), true).await;
    assert_eq!(connection.said(5).await, Said::Status(200));
    let records = scene.records(Some(Outcome::Malformed));
    assert_eq!(records.len(), 4);
    assert!(
        records
            .iter()
            .all(|record| record.reason.as_deref().unwrap().starts_with("head_too_large: "))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h2_paths() {
    let scene = Scene::start().await;
    for (code, paths) in AMBIGUOUS {
        for path in paths.iter().filter(|path| path.starts_with('/')) {
            scene
                .refuses_h2(code, ANSWERED(), &with(path.as_bytes(), &[]), None)
                .await;
        }
    }
    scene.refuses_h2("asterisk", ANSWERED(), &with(b"*", &[]), None).await;
    // RFC 9113, 8.3.1: a fragment is no part of `:path`.
    for path in [b"/a#b" as &[u8], b"/a#/../admin", b"/a?b#c", b"#"] {
        scene.refuses_h2("fragment", ANSWERED(), &with(path, &[]), None).await;
    }
}

/// However it is written, what policy decides on is what is recorded and what the service is asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spellings_of_one_path() {
    let scene = Scene::start().await;
    for (written, one) in [
        ("//a", "/a"),
        ("/./a", "/a"),
        ("/x/../a", "/a"),
        ("/%61", "/a"),
        ("/a/.", "/a/"),
        ("/a/", "/a/"),
        ("/a.", "/a."),
        ("/A", "/A"),
        ("/Admin", "/Admin"),
        ("/a%3ab", "/a%3Ab"),
        ("/a%252fb", "/a%252fb"),
        ("/{a}", "/%7Ba%7D"),
        ("/a?..%2f;\\x=%zz", "/a?..%2f;\\x=%zz"),
        ("http://backend/a", "/a"),
        ("HTTPS://BACKEND/a", "/a"),
    ] {
        let said = scene
            .h1(format!("GET {written} HTTP/1.1\r\nhost: backend\r\nconnection: close\r\n\r\n").as_bytes())
            .await;
        assert!(said.starts_with("HTTP/1.1 200 "), "{written}: {said}");
        let seen = scene.app.last();
        assert!(
            seen.starts_with(&format!("GET {one} HTTP/1.1\r\n")),
            "{written}: {seen}"
        );
        let records = scene.records(Some(Outcome::Allow));
        let path = one.split('?').next();
        assert_eq!(records.last().unwrap().path.as_deref(), path, "{written}");
        if written.starts_with('/') {
            assert_eq!(
                scene.h2(&with(written.as_bytes(), &[]), None).await,
                Said::Status(200),
                "{written}"
            );
            assert!(
                scene.app.last().starts_with(&format!("GET {one} HTTP/1.1\r\n")),
                "{written}"
            );
        }
    }
    // And none leads past what forbids.
    let allowed = scene.records(Some(Outcome::Allow)).len();
    for written in [
        "/admin",
        "//admin",
        "/./admin",
        "/x/../admin",
        "/%61dmin",
        "/admin/",
        "/admin/.",
        "/admin/x/..",
        "/%61%64%6D%69%6E",
        "/admin?a",
        "http://backend/admin",
        "http://backend//admin",
    ] {
        let said = scene
            .h1(format!("GET {written} HTTP/1.1\r\nhost: backend\r\nconnection: close\r\n\r\n").as_bytes())
            .await;
        assert!(said.starts_with("HTTP/1.1 403 "), "{written}: {said}");
        let records = scene.records(Some(Outcome::Forbid));
        assert_eq!(records.last().unwrap().determining, ["backend/no-admin"], "{written}");
    }
    assert_eq!(scene.records(Some(Outcome::Allow)).len(), allowed);
}

// === 12: fields twice ===

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h1_single_fields_twice() {
    let scene = Scene::start().await;
    for name in [
        "authorization",
        "content-type",
        "host",
        "Origin",
        "User-Agent",
        "range",
        "referer",
    ] {
        let head = format!("GET / HTTP/1.1\r\nhost: backend\r\n{name}: backend\r\n{name}: backend\r\n\r\n");
        scene.refuses_h1("duplicate_field", head).await;
    }
    scene
        .refuses_h1("duplicate_field", lines("authorization: a\r\nAuthorization: b\r\n"))
        .await;
    scene.refuses_h1("duplicate_field", lines("content_type: a\r\n")).await;
    for name in [
        "x-http-method-override",
        "X_HTTP_Method_Override",
        "x-original-url",
        "x-rewrite-url",
    ] {
        scene
            .refuses_h1("override_refused", lines(&format!("{name}: DELETE\r\n")))
            .await;
    }
    // Lists may come in pieces, and do.
    let said = scene
        .h1(lines("accept: a\r\naccept: b\r\ncookie: a\r\ncookie: b\r\nconnection: close\r\n").as_bytes())
        .await;
    assert!(said.starts_with("HTTP/1.1 200 "), "{said}");
    let seen = scene.app.last();
    assert!(
        seen.contains("accept: a\r\naccept: b\r\n") && seen.contains("cookie: a; b\r\n"),
        "{seen}"
    );
}

/// Browsers send a crumb for each pair, more of them than a request may have fields.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rfc9113_8_2_3_cookie_crumbs_are_joined() {
    let scene = Scene::start().await;
    let crumbs: Vec<String> = (0..150).map(|n| format!("c{n}={n}")).collect();
    let mut fields = and(&[]);
    fields.extend(crumbs.iter().map(|crumb| (b"cookie" as &[u8], crumb.as_bytes())));
    assert_eq!(scene.h2(&fields, None).await, Said::Status(200));
    let seen = scene.app.last();
    let joined = format!("\r\ncookie: {}\r\n", crumbs.join("; "));
    assert!(
        seen.contains(&joined) && seen.matches("cookie: ").count() == 1,
        "{seen}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h2_single_fields_twice() {
    let scene = Scene::start().await;
    for name in [b"authorization" as &[u8], b"content-type", b"host", b"origin"] {
        let fields = and(&[(name, b"backend"), (name, b"backend")]);
        scene.refuses_h2("duplicate_field", ANSWERED(), &fields, None).await;
    }
    scene
        .refuses_h2(
            "override_refused",
            ANSWERED(),
            &and(&[(b"x-original-url", b"/admin")]),
            None,
        )
        .await;
}

// === 13: hosts ===

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h1_hosts() {
    let scene = Scene::start().await;
    let get = |target: &str, hosts: &str| format!("GET {target} HTTP/1.1\r\n{hosts}\r\n");
    for (code, target, hosts) in [
        ("no_host", "/", ""),
        ("no_host", "/", "host:\r\n"),
        ("duplicate_field", "/", "host: backend\r\nhost: other\r\n"),
        ("duplicate_field", "/", "host: backend\r\nhost: backend\r\n"),
        ("duplicate_field", "/", "host: backend\r\nHost: other\r\n"),
        ("host", "/", "host: backend, other\r\n"),
        ("host", "/", "host: backend other\r\n"),
        ("host", "/", "host: user@backend\r\n"),
        ("host", "/", "host: backend:\r\n"),
        ("host", "/", "host: backend:0\r\n"),
        ("host", "/", "host: backend:99999\r\n"),
        ("host", "/", "host: backend:80:80\r\n"),
        ("host", "/", "host: backend..\r\n"),
        ("host", "/", "host: backend/a\r\n"),
        ("host", "/", "host: back%65nd\r\n"),
        ("host", "/", "host: bäckend\r\n"),
        ("host", "/", "host: ::1\r\n"),
        // RFC 9112, 3.2: without Host, or with one that is none, whatever the target says.
        ("no_host", "http://backend/", ""),
        ("host", "http://backend/", "host: other/\r\n"),
        ("no_host", "http://backend/", "host:\r\n"),
        (
            "duplicate_field",
            "http://backend/",
            "host: backend\r\nhost: backend\r\n",
        ),
        ("target", "ftp://backend/", "host: backend\r\n"),
        ("host", "http://backend@other/", "host: backend\r\n"),
        ("unparsed", "http:///a", "host: backend\r\n"),
        ("host", "ftp:a", "host: backend\r\n"),
    ] {
        scene.refuses_h1(code, get(target, hosts)).await;
    }
}

/// Of an absolute target the `Host` beside it is ignored, by policy, record and service alike.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rfc9112_3_2_2_an_absolute_target_says_the_host() {
    let scene = Scene::start().await;
    for (target, version, host, one) in [
        ("http://other:81/a", "1.1", "host: backend\r\n", "other:81"),
        ("http://backend/a", "1.1", "host: backend:80\r\n", "backend"),
        ("http://other/a", "1.0", "", "other"),
    ] {
        let request = format!("GET {target} HTTP/{version}\r\n{host}connection: close\r\n\r\n");
        let said = scene.h1(request.as_bytes()).await;
        assert!(said.starts_with(&format!("HTTP/{version} 200 ")), "{target}: {said}");
        let seen = scene.app.last();
        assert!(
            seen.contains(&format!("\r\nhost: {one}\r\n")) && seen.matches("host: ").count() == 1,
            "{target}: {seen}"
        );
        let record = scene.records(Some(Outcome::Allow)).pop().unwrap();
        assert_eq!(record.host.as_deref(), one.split(':').next(), "{target}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h2_hosts() {
    let scene = Scene::start().await;
    let check = async |code: &str, authority: Option<&[u8]>, hosts: &[&[u8]]| {
        let mut fields: Vec<Field<'_>> = vec![(b":method", b"GET"), (b":scheme", b"https"), (b":path", b"/")];
        fields.extend(authority.map(|authority| (b":authority" as &[u8], authority)));
        fields.extend(hosts.iter().map(|host| (b"host" as &[u8], *host)));
        scene.refuses_h2(code, ANSWERED(), &fields, None).await;
    };
    check("no_host", None, &[]).await;
    check("conflicting_hosts", Some(b"backend"), &[b"other"]).await;
    check("conflicting_hosts", Some(b"backend"), &[b"backend:80"]).await;
    check("duplicate_field", Some(b"backend"), &[b"backend", b"backend"]).await;
    check("host", Some(b"user@backend"), &[]).await;
    check("host", Some(b"backend:0"), &[]).await;
    check("host", None, &[b"backend, other"]).await;
    let fields: [Field<'_>; 4] = [
        (b":method", b"GET"),
        (b":scheme", b"ftp"),
        (b":path", b"/"),
        (b":authority", b"backend"),
    ];
    scene.refuses_h2("target", ANSWERED(), &fields, None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spellings_of_one_host() {
    let scene = Scene::start().await;
    for (written, one) in [
        ("backend", "backend"),
        ("BackEnd", "backend"),
        ("backend.", "backend"),
        // RFC 9110, 7.2: the port reaches the service.
        ("backend:8080", "backend:8080"),
        ("Backend.:8080", "backend:8080"),
        ("[0::1]:80", "[::1]:80"),
        // Whatever the name: the TLS hello said `service.test` each time, and neither leads anywhere else.
        ("other.example", "other.example"),
        ("service.test", "service.test"),
    ] {
        let said = scene
            .h1(format!("GET /a HTTP/1.1\r\nhost: {written}\r\nconnection: close\r\n\r\n").as_bytes())
            .await;
        assert!(said.starts_with("HTTP/1.1 200 "), "{written}: {said}");
        let seen = scene.app.last();
        assert!(
            seen.contains(&format!("\r\nhost: {one}\r\n")) && seen.matches("host: ").count() == 1,
            "{written}: {seen}"
        );
        let record = scene.records(Some(Outcome::Allow)).pop().unwrap();
        assert_eq!(
            (record.host.as_deref(), record.service.as_str()),
            (
                one.strip_suffix(":8080").or(one.strip_suffix(":80")).or(Some(one)),
                "backend"
            ),
            "{written}"
        );
        let fields: [Field<'_>; 4] = [
            (b":method", b"GET"),
            (b":scheme", b"https"),
            (b":path", b"/a"),
            (b":authority", written.as_bytes()),
        ];
        assert_eq!(scene.h2(&fields, None).await, Said::Status(200), "{written}");
        assert!(scene.app.last().contains(&format!("\r\nhost: {one}\r\n")), "{written}");
    }
}

// === 14: identity ===

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn identity_is_never_taken_from_a_request() {
    let scene = Scene::start().await;
    let honest = |seen: &str, form: &str| {
        let seen = seen.to_ascii_lowercase();
        assert!(!seen.contains("spoofed"), "{form}: {seen}");
        let told: Vec<_> = seen
            .lines()
            .filter(|line| line.starts_with("x-forwarded-client-cert: "))
            .collect();
        let [told] = told[..] else { panic!("{form}: {told:?}") };
        assert!(
            told.starts_with(&format!("x-forwarded-client-cert: by={};", id("/backend"))),
            "{form}: {told}"
        );
        assert!(told.ends_with(&format!(";uri={}", id("/client"))), "{form}: {told}");
        assert_eq!(seen.matches("x-forwarded-proto: https").count(), 1, "{form}: {seen}");
    };
    let names = [
        "x-forwarded-client-cert",
        "X-Forwarded-Client-Cert",
        "x_forwarded_client_cert",
        "x-forwarded_client-cert",
        "x-forwarded-proto",
        "x-forwarded-host",
        "X_Forwarded_Host",
        "x-forwarded-port",
        "x-forwarded-prefix",
        "forwarded",
        "l5d-client-id",
        "l5d_client_id",
        "x-envoy-external-address",
        "x-envoy-peer-metadata",
        "x_envoy_anything",
        "x-hoplite-decision",
        "X_Hoplite_Caller",
        // CVE-2016-5385, and RFC 9440.
        "Proxy",
        "Client-Cert",
        "client_cert_chain",
        "X-SSL-Client-S-DN",
    ];
    for name in names {
        for connection in ["close", "close, x-forwarded-client-cert, x-forwarded-proto"] {
            let request = format!(
                "GET /a HTTP/1.1\r\nhost: backend\r\nconnection: {connection}\r\n{name}: spoofed\r\n{name}: spoofed\r\n\r\n"
            );
            let said = scene.h1(request.as_bytes()).await;
            assert!(said.starts_with("HTTP/1.1 200 "), "{name}: {said}");
            honest(&scene.app.last(), name);
        }
        let name = name.to_ascii_lowercase();
        let fields = with(b"/a", &[(name.as_bytes(), b"spoofed"), (name.as_bytes(), b"spoofed")]);
        assert_eq!(scene.h2(&fields, None).await, Said::Status(200), "{name}");
        honest(&scene.app.last(), &name);
    }
    let request = lines("connection: close\r\nte: trailers\r\ntrailer: x-mine\r\ntransfer-encoding: chunked\r\n")
        + "1\r\na\r\n0\r\nx-forwarded-client-cert: spoofed\r\nx-mine: kept\r\n\r\n";
    let said = scene.h1(request.as_bytes()).await;
    assert!(said.starts_with("HTTP/1.1 200 "), "{said}");
    honest(&scene.app.last(), "in trailers");
}

// === All of it ===

/// The pieces of which accepted paths, and some refused ones, are made.
const PIECES: [&str; 24] = [
    "a",
    "b",
    "A",
    "admin",
    "%61",
    "%64min",
    ".",
    "..",
    "...",
    "",
    "%3a",
    ":",
    "é",
    "%c3%a9",
    "%252f",
    "~",
    "{x}",
    "%7Bx%7D",
    ".well-known",
    "*",
    "a.b",
    "%41dmin",
    "&=",
    "'",
];

/// A generator whose numbers are the same on every machine (xorshift).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound as u64).unwrap()
    }

    fn target(&mut self) -> String {
        let mut target = String::new();
        for _ in 0..=self.below(4) {
            target.push('/');
            target.push_str(PIECES[self.below(PIECES.len())]);
        }
        if self.below(3) == 0 {
            target.push_str(["/", "?", "?a=/../b;c", "//"][self.below(4)]);
        }
        target
    }
}

/// The bytes that reach the service, read anew, give the record's host, path and route, and what policy decided on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_reading_for_policy_record_and_service() {
    const REQUESTS: usize = 250;
    const SEED: u64 = 0x686f_706c_6974_6521;
    let scene = Scene::start().await;
    let routes = RouteTable::parse(ROUTES).unwrap();
    let mut dice = Dice(SEED);
    let (mut accepted, mut forbidden) = (0, 0);
    for n in 0..REQUESTS {
        let target = dice.target();
        let host = ["backend", "BACKEND.", "other:81", "[::1]"][dice.below(4)];
        let seen = scene.app.connections.lock().unwrap().len();
        let status = if n % 2 == 0 {
            let fields: [Field<'_>; 4] = [
                (b":method", b"GET"),
                (b":scheme", b"https"),
                (b":path", target.as_bytes()),
                (b":authority", host.as_bytes()),
            ];
            match scene.h2(&fields, None).await {
                Said::Status(0) => 403,
                Said::Status(status) => status,
                other => panic!("{target}: {other:?}"),
            }
        } else {
            let said = scene
                .h1(format!("GET {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n").as_bytes())
                .await;
            said["HTTP/1.1 ".len()..][..3].parse().unwrap()
        };
        let record = until("its record", async || {
            let records = scene.records(None);
            (records.len() > n).then(|| records[n].clone())
        })
        .await;
        let received = scene.app.connections.lock().unwrap()[seen..].to_vec();
        let form = format!("seed {SEED:#x}, request {n}: {target} to {host}");
        match status {
            200 => {
                assert_eq!((received.len(), record.outcome), (1, Outcome::Allow), "{form}");
                accepted += 1;
                let text = String::from_utf8(received[0].clone()).unwrap();
                let (line, head) = text.split_once("\r\n").unwrap();
                let target = line
                    .strip_prefix("GET ")
                    .and_then(|line| line.strip_suffix(" HTTP/1.1"))
                    .unwrap();
                let host = head.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
                let read = CanonicalRequest::parse("GET", &[host.as_bytes()], target.as_bytes()).unwrap();
                assert_eq!(
                    read.path_and_query(),
                    target,
                    "{form}: the service is sent another spelling"
                );
                assert_eq!(record.path.as_deref(), target.split('?').next(), "{form}");
                assert_eq!(read.authority(), host, "{form}: the service is sent another host");
                assert_eq!(record.host.as_deref(), Some(read.host()), "{form}");
                assert_eq!(
                    record.route.as_deref(),
                    Some(routes.route(&"backend".parse().unwrap(), &read).as_str()),
                    "{form}"
                );
                assert_ne!(
                    read.segments().next(),
                    Some("admin"),
                    "{form}: policy read another path"
                );
            }
            403 => {
                assert_eq!((received.len(), record.outcome), (0, Outcome::Forbid), "{form}");
                forbidden += 1;
                let first = record.path.as_deref().unwrap().split('/').nth(1);
                assert_eq!(first, Some("admin"), "{form}: policy read another path");
            }
            400 => assert_eq!((received.len(), record.outcome), (0, Outcome::Malformed), "{form}"),
            other => panic!("{form}: {other}"),
        }
    }
    assert!(
        accepted > REQUESTS / 3 && forbidden > 3,
        "{accepted} accepted, {forbidden} forbidden"
    );
}
