//! The judge is the HTTP/2 library itself: what it reads behind the mender is what the client wrote, but for an authority
//! that it would have refused.

use super::*;
use crate::hpack::testing::{Encoder, Form, Indexing};
use proptest::prelude::*;
use tokio::io::AsyncWriteExt;

const FORM: Form = Form {
    indexing: Indexing::Incremental,
    by_index: true,
    huffman: true,
};

/// Every form that one field can be written in.
const FORMS: [Form; 12] = {
    let (mut forms, mut n) = ([FORM; 12], 0);
    while n < 12 {
        forms[n] = Form {
            indexing: [Indexing::Incremental, Indexing::Without, Indexing::Never][n % 3],
            by_index: n / 3 % 2 == 0,
            huffman: n / 6 == 0,
        };
        n += 1;
    }
    forms
};

/// What a client sends before its first request: the preface and its SETTINGS.
fn hello() -> Vec<u8> {
    let mut sent = PREFACE.to_vec();
    frame_of(4, 0, [0; 4], &[], &mut sent);
    sent
}

fn mend_in_pieces(sent: &[u8], piece: usize) -> Vec<u8> {
    let (mut mender, mut mended) = (HttpAuthorityMender::default(), Vec::new());
    sent.chunks(piece).for_each(|piece| mender.take(piece, &mut mended));
    mended
}

/// The requests that our HTTP/2 library reads: of each its authority, and its fields as they were told.
async fn read_by_library(bytes: Vec<u8>, requests: usize) -> Vec<(String, Vec<(String, Vec<u8>)>)> {
    let (mut client, server) = tokio::io::duplex(1 << 20);
    client.write_all(&bytes).await.unwrap();
    let mut connection = h2::server::handshake(server).await.unwrap();
    let mut read = Vec::new();
    while read.len() < requests
        && let Some(request) = connection.accept().await
    {
        let (request, _respond) = request.unwrap();
        let authority = request.uri().authority().map(ToString::to_string).unwrap_or_default();
        let fields = request
            .headers()
            .iter()
            .map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()));
        read.push((authority, fields.collect()));
    }
    read
}

/// How a block comes: in how many frames, with how much padding, with a priority or without.
#[derive(Debug, Clone)]
struct Framing {
    fragments: usize,
    padding: Option<u8>,
    priority: bool,
}

fn frames(block: &[u8], stream: u32, framing: &Framing) -> Vec<u8> {
    let mut sent = Vec::new();
    let stream = stream.to_be_bytes();
    let mut fragments: Vec<_> = block.chunks(block.len().div_ceil(framing.fragments)).collect();
    let first = fragments.remove(0);
    let mut flags = 1; // END_STREAM
    let mut payload = Vec::new();
    if let Some(padding) = framing.padding {
        flags |= PADDED;
        payload.push(padding);
    }
    if framing.priority {
        flags |= PRIORITY;
        payload.extend([0, 0, 0, 0, 9]);
    }
    payload.extend(first);
    payload.extend(vec![0; framing.padding.unwrap_or(0).into()]);
    if fragments.is_empty() {
        flags |= END_HEADERS;
    }
    frame_of(HEADERS, flags, stream, &payload, &mut sent);
    let last = fragments.len();
    for (n, fragment) in fragments.into_iter().enumerate() {
        frame_of(
            CONTINUATION,
            if n + 1 == last { END_HEADERS } else { 0 },
            stream,
            fragment,
            &mut sent,
        );
    }
    sent
}

fn request(encoder: &mut Encoder, authority: &[u8], form: Form) -> Vec<u8> {
    [
        encoder.write(b":method", b"POST", FORM),
        encoder.write(b":scheme", b"http", FORM),
        encoder.write(b":path", b"/S/M", FORM),
        encoder.write(b":authority", authority, form),
        encoder.write(b"te", b"trailers", FORM),
    ]
    .concat()
}

const ONE_FRAME: Framing = Framing {
    fragments: 1,
    padding: None,
    priority: false,
};

#[tokio::test]
async fn an_authority_that_is_none_becomes_localhost_in_every_form() {
    for (authority, expected) in [
        (&b"/tmp/x/agent.sock"[..], "localhost"), // grpc-java
        (b"tmp%2Fx%2Fagent.sock", "localhost"),   // gRPC's C core
        (b"%2Ftmp%2Fx%2Fagent.sock", "localhost"),
        (b"", "localhost"),
        (b"a b", "localhost"),
        ("/tmp/\u{fc}.sock".as_bytes(), "localhost"),
        (b"\xff\x00", "localhost"),
        (b"localhost", "localhost"),
        (b"agent.example:7443", "agent.example:7443"),
        (b"[::1]:80", "[::1]:80"),
    ] {
        for form in FORMS {
            let mut encoder = Encoder::new();
            let mut sent = hello();
            // Twice: the second may say it by the dynamic table.
            for stream in [1, 3] {
                let block = request(&mut encoder, authority, form);
                sent.extend(frames(&block, stream, &ONE_FRAME));
            }
            for piece in [1, 7, sent.len()] {
                let read = read_by_library(mend_in_pieces(&sent, piece), 2).await;
                let authorities: Vec<_> = read.iter().map(|(authority, _)| &authority[..]).collect();
                assert_eq!(
                    authorities, [expected; 2],
                    "{authority:?} as {form:?} in pieces of {piece}"
                );
            }
        }
    }
}

#[tokio::test]
async fn without_the_mender_the_library_refuses_them() {
    for authority in [&b"/tmp/x/agent.sock"[..], b"tmp%2Fx%2Fagent.sock", b""] {
        let sent = [
            hello(),
            frames(&request(&mut Encoder::new(), authority, FORM), 1, &ONE_FRAME),
        ]
        .concat();
        let read = tokio::time::timeout(std::time::Duration::from_millis(200), read_by_library(sent, 1));
        assert!(
            read.await.is_err(),
            "{authority:?} is let in: then this file is not needed for it"
        );
    }
}

/// HTTP/1.1, or anything else, is not looked into.
#[test]
fn another_protocol_passes_as_it_is() {
    let block = request(&mut Encoder::new(), b"/a", FORM);
    for head in [&b"POST /access/v1/evalua"[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n"] {
        let sent = [head, b"..", &frames(&block, 1, &ONE_FRAME)].concat();
        for piece in [1, 24, sent.len()] {
            assert_eq!(mend_in_pieces(&sent, piece), sent, "in pieces of {piece}");
        }
    }
}

/// What the library must see to refuse it is still there.
#[tokio::test]
async fn errors_of_the_protocol_stay_errors() {
    let block = request(&mut Encoder::new(), b"/a", FORM);
    let frame = |kind, flags, stream, payload: &[u8]| {
        let mut bytes = Vec::new();
        frame_of(kind, flags, [0, 0, 0, stream], payload, &mut bytes);
        bytes
    };
    let ping = frame(6, 0, 0, &[0; 8]);
    let mut long = vec![0x00, 0x41, 0x00, HEADERS, END_HEADERS, 0, 0, 0, 1];
    long.extend([0; 0x4100]);
    let many = [
        frame(HEADERS, 0, 1, &block),
        frame(CONTINUATION, 0, 1, &[]).repeat(BLOCK_FRAMES_MAX),
    ]
    .concat();
    let large = [
        frame(HEADERS, 0, 1, &block),
        frame(CONTINUATION, 0, 1, &[0; FRAME_BYTES_MAX]).repeat(5),
    ]
    .concat();
    for (what, sent) in [
        (
            "another frame within a block",
            [frame(HEADERS, 0, 1, &block), ping].concat(),
        ),
        (
            "another stream's continuation",
            [frame(HEADERS, 0, 1, &block), frame(CONTINUATION, 4, 3, &[])].concat(),
        ),
        ("a continuation of nothing", frame(CONTINUATION, 4, 1, &block)),
        (
            "padding that does not fit",
            frame(HEADERS, END_HEADERS | PADDED, 1, &[9, 0]),
        ),
        (
            "a priority that does not fit",
            frame(HEADERS, END_HEADERS | PRIORITY, 1, &[9, 0]),
        ),
        ("a frame that is too long", long),
        ("no stream", frame(HEADERS, END_HEADERS, 0, &block)),
        ("an index of nothing", frame(HEADERS, END_HEADERS, 1, &[0xbe])),
        ("a block without an end", many),
        ("a block without a bound", large),
    ] {
        let (mut client, server) = tokio::io::duplex(1 << 20);
        let mended = mend_in_pieces(&[hello(), sent].concat(), 1000);
        client.write_all(&mended).await.unwrap();
        let mut connection = h2::server::handshake(server).await.unwrap();
        let outcome = tokio::time::timeout(std::time::Duration::from_secs(5), connection.accept()).await;
        assert!(matches!(outcome, Ok(Some(Err(_)))), "{what}: {outcome:?}");
    }
}

fn names() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(b"user-agent".to_vec()),
        Just(b"grpc-timeout".to_vec()),
        "x-[a-z]{1,30}".prop_map(String::into_bytes),
    ]
}

fn forms() -> impl Strategy<Value = Form> {
    proptest::sample::select(&FORMS[..])
}

fn authorities() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        "(/[a-z]{1,8}){1,4}\\.sock".prop_map(String::into_bytes),
        "(%2F[a-z]{1,8}){1,4}\\.sock".prop_map(String::into_bytes),
        "[a-z]{1,20}(:[1-9][0-9]{0,3})?".prop_map(String::into_bytes),
        proptest::collection::vec(any::<u8>(), 0..40),
    ]
}

fn framings() -> impl Strategy<Value = Framing> {
    (1..5_usize, proptest::option::of(any::<u8>()), any::<bool>()).prop_map(|(fragments, padding, priority)| Framing {
        fragments,
        padding,
        priority,
    })
}

type Fields = Vec<(Vec<u8>, Vec<u8>, Form)>;

fn fields() -> impl Strategy<Value = Fields> {
    // Long values push others out of the table.
    let values = prop_oneof!["[ -~]{0,20}", "[a-z]{500,900}"].prop_map(|text| text.trim().as_bytes().to_vec());
    proptest::collection::vec((names(), values, forms()), 0..8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A connection of requests in whatever forms: the library reads each as it was, but for the authority.
    #[test]
    fn requests_come_through_as_they_were(
        requests in proptest::collection::vec(
            (authorities(), forms(), fields(), framings(), proptest::option::of(0..=4096_usize)), 1..8,
        ),
        piece in 1..3000_usize,
    ) {
        let mut encoder = Encoder::new();
        let mut sent = hello();
        let mut expected = Vec::new();
        for (n, (authority, form, fields, framing, resize)) in requests.iter().enumerate() {
            let mut block = resize.map(|size| encoder.resize(size)).unwrap_or_default();
            block.extend(request(&mut encoder, authority, *form));
            let mut told = vec![("te".to_owned(), b"trailers".to_vec())];
            for (name, value, form) in fields {
                block.extend(encoder.write(name, value, *form));
                told.push((String::from_utf8(name.clone()).unwrap(), value.clone()));
            }
            told.sort();
            sent.extend(frames(&block, 2 * n as u32 + 1, framing));
            let authority = http::uri::Authority::try_from(&authority[..]).map(|a| a.to_string());
            expected.push((authority.unwrap_or("localhost".to_owned()), told));
        }
        let mended = mend_in_pieces(&sent, piece);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let read = async { tokio::time::timeout(std::time::Duration::from_secs(5), read_by_library(mended, requests.len())).await };
        let mut read = runtime.block_on(read).expect("all are let in");
        for (_, fields) in &mut read {
            fields.sort();
        }
        prop_assert_eq!(read, expected);
    }

    #[test]
    fn any_bytes_are_followed_without_a_panic_and_within_bounds(
        bytes in proptest::collection::vec(any::<u8>(), 0..4000),
        narrow in any::<bool>(),
    ) {
        let bytes: Vec<u8> = bytes.into_iter().map(|byte| if narrow { byte & 0x0f } else { byte }).collect();
        let sent = [hello(), bytes].concat();
        mend_in_pieces(&sent, 100);
    }
}
