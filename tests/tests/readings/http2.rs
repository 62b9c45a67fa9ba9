//! Class 8: what HTTP/2 can say that would be something else in HTTP/1.1.

use hoplite_audit::Outcome;

use crate::scene::{ANSWERED, ENDED, Field, RESET, SMUGGLED, Scene, and, is_whole, with};

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
    ] {
        scene.refuses_h2("unparsed", ENDED(), &and(&[field]), None).await;
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
    scene.refuses_h2("unparsed", ENDED(), &with(b"/\xff", &[]), None).await;
    let change = |changed: &'static [u8], value: &'static [u8]| -> Vec<Field<'static>> {
        and(&[])
            .into_iter()
            .map(|(name, old)| (name, if name == changed { value } else { old }))
            .collect()
    };
    reset(&change(b":authority", b"a b")).await;
    reset(&change(b":authority", b"a\r\nb")).await;
    reset(&change(b":scheme", b"ht tp")).await;
    scene
        .refuses_h2("unparsed", ENDED(), &change(b":method", b"G T"), None)
        .await;
    scene
        .refuses_h2("unparsed", ENDED(), &and(&[(b":unknown", b"a")]), None)
        .await;
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
