//! Class 8: what HTTP/2 can say that would be something else in HTTP/1.1.

use hoplite_audit::Outcome;

use super::scene::{ANSWERED, Field, RESET, SMUGGLED, Said, Scene, and, is_whole, with};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h2_fields_that_are_none() {
    let scene = Scene::start().await;
    for field in [
        (b"x" as &[u8], b"a\r\nhost: other" as &[u8]),
        (b"x", b"a\nb"),
        (b"x", b"a\rb"),
        (b"x", b"a\0b"),
        (b"x", b"a\x7fb"),
        (b"x\r\ny", b"a"),
        (b"x: y", b"a"),
        (b"x y", b"a"),
        (b"x\0", b"a"),
        (b"X", b"a"),
        (b"Content-Length", b"44"),
        (b"", b"a"),
        (b"x:", b"a"),
        (b"transfer-encoding: chunked\r\nx", b"a"),
        (b"x", b" a"),
        (b"x", b"a\t"),
    ] {
        scene.refuses_h2("unparsed", RESET(), &and(&[field]), None).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h2_fields_of_a_connection() {
    let scene = Scene::start().await;
    for field in [
        (b"connection" as &[u8], b"close" as &[u8]),
        (b"transfer-encoding", b"chunked"),
        (b"upgrade", b"websocket"),
        (b"keep-alive", b"1"),
        (b"proxy-connection", b"close"),
        (b"te", b"chunked"),
        (b"te", b"trailers, chunked"),
    ] {
        scene.refuses_h2("unparsed", RESET(), &and(&[field]), None).await;
    }
    scene
        .refuses_h2(
            "duplicate_field",
            ANSWERED(),
            &and(&[(b"transfer_encoding", b"chunked")]),
            None,
        )
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h2_pseudo_fields() {
    let scene = Scene::start().await;
    let reset = async |fields: &[Field<'_>]| scene.refuses_h2("unparsed", RESET(), fields, None).await;
    for path in [
        b"/a b" as &[u8],
        b"/ HTTP/1.1\r\nx: y",
        b"/a\tb",
        b"/a\0b",
        b"/a\x7f",
        b"",
    ] {
        reset(&with(path, &[])).await;
    }
    for twice in [
        (b":path" as &[u8], b"/b" as &[u8]),
        (b":authority", b"backend"),
        (b":method", b"GET"),
        (b":scheme", b"https"),
    ] {
        reset(&and(&[twice])).await;
    }
    reset(&and(&[(b"x", b"a"), (b":path", b"/b")])).await;
    reset(&and(&[(b":status", b"200")])).await;
    reset(&and(&[(b":protocol", b"websocket")])).await;
    for missing in [b":method" as &[u8], b":scheme", b":path"] {
        let fields: Vec<_> = and(&[]).into_iter().filter(|(name, _)| *name != missing).collect();
        reset(&fields).await;
    }
    reset(&with(b"/\xff", &[])).await;
    let change = |changed: &'static [u8], value: &'static [u8]| -> Vec<Field<'static>> {
        and(&[])
            .into_iter()
            .map(|(name, old)| (name, if name == changed { value } else { old }))
            .collect()
    };
    reset(&change(b":authority", b"a b")).await;
    reset(&change(b":authority", b"a\r\nb")).await;
    reset(&change(b":scheme", b"ht tp")).await;
    reset(&change(b":method", b"G T")).await;
    reset(&and(&[(b":unknown", b"a")])).await;
    reset(&and(&[(b":", b"")])).await;
    scene
        .refuses_h2("method", ANSWERED(), &change(b":method", b"get"), None)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h2_lengths_that_the_body_has_not() {
    let scene = Scene::start().await;
    let length = |length: &'static [u8]| and(&[(b"content-length", length)]);
    scene.refuses_h2("unparsed", RESET(), &length(b"5"), None).await;
    for none in [b"-1" as &[u8], b"+0", b"a", b"0, 0"] {
        scene
            .refuses_h2("unparsed", RESET(), &and(&[(b"content-length", none)]), None)
            .await;
    }
    scene
        .refuses_h2("conflicting_length", ANSWERED(), &length(b""), None)
        .await;
    let two: [Field<'_>; 2] = [(b"content-length", b"2"), (b"content-length", b"3")];
    scene.refuses_h2("unparsed", RESET(), &and(&two), Some(b"ab")).await;

    // A body that is longer or shorter than it was said to be: its request was decided on, and it never ends upstream.
    for body in [SMUGGLED.as_bytes(), b"a"] {
        let before = scene.records(Some(Outcome::Malformed)).len();
        let connections = scene.app.connections.lock().unwrap().len();
        assert_eq!(scene.h2(&length(b"2"), Some(body)).await, RESET());
        scene.malformed("a body of another length", before).await;
        let all = scene.app.connections.lock().unwrap()[connections..].concat();
        assert!(all.is_empty() || !is_whole(&all), "{}", all.escape_ascii());
    }
}

/// The connection and its other streams, begun before and after, live on; so does the table of HPACK.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rfc9113_8_1_1_what_is_malformed_costs_its_own_stream() {
    let scene = Scene::start().await;
    let mut connection = scene.open_h2().await;
    let upload: Vec<Field<'_>> = and(&[])
        .into_iter()
        .map(|(name, value)| (name, if name == b":method" { b"POST" } else { value }))
        .collect();
    connection.headers(1, &upload, false).await;
    let mut stream = 3;
    for fields in [
        and(&[(b"X", b"a")]),
        and(&[(b"", b"a")]),
        and(&[(b"x", b"a\r\nb")]),
        and(&[(b":unknown", b"a")]),
        and(&[(b":status", b"200")]),
        and(&[(b"connection", b"close")]),
        with(b"/\xff", &[]),
    ] {
        connection.headers(stream, &fields, true).await;
        assert_eq!(connection.said(stream).await, RESET(), "{fields:?}");
        stream += 2;
    }
    for trailer in [b":path" as &[u8], b":status", b":unknown", b"X"] {
        connection.headers(stream, &upload, false).await;
        connection.data(stream, b"ab", false).await;
        connection.headers(stream, &[(trailer, b"/")], true).await;
        assert_eq!(
            connection.said(stream).await,
            RESET(),
            "in trailers: {}",
            trailer.escape_ascii()
        );
        stream += 2;
    }
    // A field that is none may be in the table, and is none again for whoever names it there.
    for block in [b"\x40\x01X\x01a" as &[u8], &[0x80 | 62]] {
        connection
            .block(stream, &[b"\x82\x87\x84\x41\x07backend", block].concat(), true)
            .await;
        assert_eq!(connection.said(stream).await, RESET(), "{}", block.escape_ascii());
        stream += 2;
    }
    connection.headers(stream, &and(&[]), true).await;
    assert_eq!(connection.said(stream).await, Said::Status(200));
    connection.data(1, b"late", true).await;
    assert_eq!(connection.said(1).await, Said::Status(200));
    let connections = scene.app.connections.lock().unwrap();
    assert!(connections.iter().any(|seen| seen.ends_with(b"4\r\nlate\r\n0\r\n\r\n")));
}

/// RFC 9113, 4.3: of what cannot be decompressed nobody can read what follows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rfc9113_4_3_what_cannot_be_decompressed_ends_the_connection() {
    const COMPRESSION_ERROR: u32 = 9;
    let scene = Scene::start().await;
    for block in [b"\x80" as &[u8], b"\x82\xff\xff\xff\xff\xff\xff", b"\x3f\xe2\x1f\x82"] {
        let mut connection = scene.open_h2().await;
        connection.block(1, block, true).await;
        assert_eq!(
            connection.said(1).await,
            Said::Ended(COMPRESSION_ERROR),
            "{}",
            block.escape_ascii()
        );
    }
    assert_eq!(scene.app.bytes(), b"");
}
