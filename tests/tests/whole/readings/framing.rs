//! Class 7: where one HTTP/1.1 request ends and the next begins.

use hoplite_audit::Outcome;

use super::scene::{SMUGGLED, Scene, is_whole, lines};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h1_two_lengths() {
    let scene = Scene::start().await;
    let chunked = format!("0\r\n\r\n{SMUGGLED}");
    let length = chunked.len();
    // CL.TE and TE.CL, in both orders.
    let cl_te = [
        format!("content-length: {length}\r\ntransfer-encoding: chunked\r\n"),
        "transfer-encoding: chunked\r\ncontent-length: 4\r\n".to_owned(),
    ];
    // RFC 9112, 6.3: it ought to be handled as an error, and is; nobody means both.
    for head in cl_te {
        scene.refuses_h1("conflicting_length", lines(&head) + &chunked).await;
    }
    for lengths in [
        "content-length: 0\r\ncontent-length: 44\r\n",
        "content-length: 44\r\ncontent-length: 044\r\n",
        "content-length: 44, 0\r\n",
    ] {
        scene.refuses_h1("conflicting_length", lines(lengths) + SMUGGLED).await;
    }
    scene
        .refuses_h1("duplicate_field", lines("content_length: 44\r\n") + SMUGGLED)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h1_a_length_that_is_none() {
    let scene = Scene::start().await;
    for length in [
        "-1",
        "+44",
        "0x2c",
        "44,",
        ",44",
        "44, x",
        "44;",
        "4 4",
        "",
        "1e1",
        "99999999999999999999",
    ] {
        let head = lines(&format!("content-length: {length}\r\n"));
        scene.refuses_h1("unparsed", head + SMUGGLED).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h1_transfer_codings() {
    let scene = Scene::start().await;
    let check = async |code: &str, head: &str| {
        scene.refuses_h1(code, lines(head) + "0\r\n\r\n" + SMUGGLED).await;
    };
    check(
        "transfer_coding",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
    )
    .await;
    check("transfer_coding", "transfer-encoding: gzip, chunked\r\n").await;
    check("transfer_coding", "transfer-encoding: chunked, chunked\r\n").await;
    check(
        "transfer_coding",
        "transfer-encoding: identity\r\ntransfer-encoding: chunked\r\n",
    )
    .await;
    for coding in [
        "xchunked",
        "chunked, identity",
        "identity",
        "\"chunked\"",
        "chunked;q=1",
        "\u{b}chunked",
        "",
    ] {
        check("unparsed", &format!("transfer-encoding: {coding}\r\n")).await;
    }
    check(
        "unparsed",
        "transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n",
    )
    .await;
    check("duplicate_field", "transfer_encoding: chunked\r\n").await;
    let old = lines("transfer-encoding: chunked\r\n").replace("HTTP/1.1", "HTTP/1.0");
    scene.refuses_h1("unparsed", old + "0\r\n\r\n" + SMUGGLED).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h1_lines_that_are_none() {
    let scene = Scene::start().await;
    for head in [
        "x: a\r\n b\r\n",
        "x: a\r\n\tb\r\n",
        "transfer-encoding:\r\n chunked\r\n",
        " x: a\r\n",
        "x: a\rcontent-length: 44\r\n",
        "x: a\r\rb\r\n",
        "x: a\0b\r\n",
        "x\0: a\r\n",
        "x : a\r\n",
        "x\t: a\r\n",
        "transfer-encoding : chunked\r\n",
        "x(y): a\r\n",
        ": a\r\n",
        "no colon\r\n",
    ] {
        scene.refuses_h1("unparsed", lines(head) + "0\r\n\r\n" + SMUGGLED).await;
    }
    for line in [
        "GET  / HTTP/1.1",
        "GET / a HTTP/1.1",
        "GET\t/\tHTTP/1.1",
        " GET / HTTP/1.1",
        "GET / HTTP/1.1 ",
        "G\0ET / HTTP/1.1",
        "GET /\0 HTTP/1.1",
        "GET /a b HTTP/1.1",
        "G@T / HTTP/1.1",
    ] {
        scene
            .refuses_h1("unparsed", format!("{line}\r\nhost: backend\r\n\r\n"))
            .await;
    }
    for line in ["get / HTTP/1.1", "gET / HTTP/1.1", "!GET / HTTP/1.1"] {
        scene
            .refuses_h1("method", format!("{line}\r\nhost: backend\r\n\r\n"))
            .await;
    }
}

/// RFC 9112 (2.2) lets a server take it for a line's end, and those that do not pass it on within a value.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h1_bare_line_feeds() {
    let scene = Scene::start().await;
    for head in [
        "GET /a HTTP/1.1\nhost: backend\n\n",
        "GET /a HTTP/1.1\nhost: backend\r\n\r\n",
        "GET /a HTTP/1.1\r\nhost: backend\n\r\n",
        "GET /a HTTP/1.1\r\nhost: backend\r\n\n",
        "GET /a HTTP/1.1\r\nhost: backend\r\nx: a\ntransfer-encoding: chunked\r\n\r\n",
        "\nGET /a HTTP/1.1\r\nhost: backend\r\n\r\n",
    ] {
        scene.refuses_h1("unparsed", head).await;
    }
    // Behind a request with a body, on a connection that is kept.
    let first = "POST /a HTTP/1.1\r\nhost: backend\r\ncontent-length: 3\r\n\r\na\nb";
    let said = scene
        .h1(format!("{first}GET /smuggled HTTP/1.1\nhost: backend\n\n").as_bytes())
        .await;
    assert!(
        said.starts_with("HTTP/1.1 200 ") && said.contains("okHTTP/1.1 400 "),
        "{said}"
    );
    assert_eq!(said.matches("HTTP/1.1 ").count(), 2, "{said}");
    let seen = scene.app.bytes();
    assert!(seen.ends_with(b"\r\n\r\na\nb"), "{}", seen.escape_ascii());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h1_chunks_that_are_none() {
    let scene = Scene::start().await;
    for chunk in [
        "0x2\r\nab\r\n",
        "+2\r\nab\r\n",
        "-2\r\nab\r\n",
        "\r\nab\r\n",
        "2\nab\r\n",
        "2\rab\r\n",
        "2\r\nabc\r\n",
        "2\r\nab0\r\n",
        "2;a\nb\r\nab\r\n",
        "2 2\r\nab\r\n",
        "fffffffffffffffff\r\nab\r\n",
        "0\nx: a\r\n\r\n",
        "0\r\n\nx: a\r\n\r\n",
        "0\r\nx: a\n\r\n",
        // To one who takes that for the end of the trailers, the next request is a body.
        "0\r\nx: a\n\r\nPOST / HTTP/1.1\r\ncontent-length: 100\r\n\r\nGET /smuggled HTTP/1.1\nhost: backend\n\n",
    ] {
        let before = scene.records(Some(Outcome::Malformed)).len();
        let connections = scene.app.connections.lock().unwrap().len();
        let said = scene
            .h1((lines("transfer-encoding: chunked\r\n") + "1\r\nx\r\n" + chunk + "0\r\n\r\n" + SMUGGLED).as_bytes())
            .await;
        assert!(
            said.starts_with("HTTP/1.1 400 ") && said.matches("HTTP/1.1 ").count() == 1,
            "{chunk:?}: {said}"
        );
        let reason = scene.malformed(chunk, before).await;
        assert!(reason.starts_with("unparsed: "), "{chunk:?}: {reason}");
        // The request was permitted by its head, and its body went on as it came: the service sees that it never ends.
        let all = scene.app.connections.lock().unwrap()[connections..].concat();
        assert!(!is_whole(&all), "{chunk:?}: {}", all.escape_ascii());
        assert!(
            !all.windows(8).any(|bytes| bytes == b"smuggled"),
            "{chunk:?}: {}",
            all.escape_ascii()
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h1_chunk_extensions_go_no_further() {
    let scene = Scene::start().await;
    let body = "2;a=b;c=\"d\"\r\nab\r\n0;last\r\n\r\n";
    let said = scene
        .h1((lines("connection: close\r\ntransfer-encoding: chunked\r\n") + body).as_bytes())
        .await;
    assert!(said.starts_with("HTTP/1.1 200 "), "{said}");
    let seen = scene.app.last();
    assert!(seen.ends_with("\r\n\r\n2\r\nab\r\n0\r\n\r\n"), "{seen}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h1_versions() {
    let scene = Scene::start().await;
    for version in [
        " HTTP/0.9",
        " HTTP/1.2",
        " HTTP/2.0",
        " HTTP/1",
        " http/1.1",
        " HTTP/01.1",
        " HTTPS/1.1",
        "",
    ] {
        scene
            .refuses_h1("unparsed", format!("GET /{version}\r\nhost: backend\r\n\r\n"))
            .await;
    }
    scene.refuses_h1("no_host", "GET / HTTP/1.0\r\n\r\n").await;
}

/// RFC 9112, 7.1.1: a limit on their length, and a 4xx; trailers are bounded alike, by bytes and by number.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rfc9112_7_1_1_chunk_extensions_and_trailers_are_bounded() {
    let scene = Scene::start().await;
    let many: String = (0..200).map(|n| format!("x{n}: a\r\n")).collect();
    for (form, body) in [
        ("one extension", format!("2;{}\r\nab\r\n0\r\n\r\n", "a".repeat(40_000))),
        ("many extensions", "1;aaaaaaaaaa\r\na\r\n".repeat(4_000) + "0\r\n\r\n"),
        (
            "one trailer",
            format!("2\r\nab\r\n0\r\nx: {}\r\n\r\n", "a".repeat(40_000)),
        ),
        ("many trailers", format!("2\r\nab\r\n0\r\n{many}\r\n")),
    ] {
        let before = scene.records(Some(Outcome::Malformed)).len();
        let said = scene
            .h1((lines("transfer-encoding: chunked\r\n") + &body).as_bytes())
            .await;
        assert!(said.is_empty() || said.starts_with("HTTP/1.1 400 "), "{form}: {said}");
        let reason = scene.malformed(form, before).await;
        assert!(reason.starts_with("unparsed: "), "{form}: {reason}");
        assert!(!is_whole(scene.app.last().as_bytes()), "{form}");
    }
}
