//! No key and no token in any log, at any level: a world lives through a rotation while everything it says is kept.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, its helpers too"
)]

use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use data_encoding::{BASE64, HEXLOWER};
use hoplite_identity::X509Svid;
use hoplite_tests::{HttpApp, World, get, id, until};
use hoplite_wire::{WorkloadApi, WorkloadJwt};
use http::StatusCode;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// All that was logged.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<u8>>>);

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Kept {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// How a secret would look in a log: as text, in base64 at each alignment, in hex, as a list of numbers.
fn spellings(secret: &[u8]) -> Vec<String> {
    // Its middle: the ends of a key's encoding are the same for every key.
    let middle = &secret[secret.len() / 2 - 12..secret.len() / 2 + 12];
    let hex = HEXLOWER.encode(middle);
    let list = |separator: &str| {
        middle[..8]
            .iter()
            .map(u8::to_string)
            .collect::<Vec<_>>()
            .join(separator)
    };
    let mut spellings = vec![hex.to_uppercase(), hex, list(", "), list(",")];
    spellings.extend((0..3).map(|skip| BASE64.encode(&middle[skip..skip + 21])));
    spellings
}

#[test]
fn the_search_finds_a_key_in_each_spelling() {
    let secret: Vec<u8> = (100..240).collect();
    let found = |log: &str| {
        spellings(&secret)
            .iter()
            .any(|spelling| log.contains(spelling.as_str()))
    };
    assert!(found(&format!("key={secret:?}")));
    assert!(found(&HEXLOWER.encode(&secret)));
    for lead in 0..3 {
        let moved: Vec<u8> = std::iter::repeat_n(b'x', lead).chain(secret.iter().copied()).collect();
        assert!(found(&BASE64.encode(&moved)), "{lead} bytes before it");
    }
    assert!(!found("nothing of it"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neither_keys_nor_tokens_are_logged() {
    let kept = Kept::default();
    let filter = EnvFilter::new(
        "debug,hoplite_ca=trace,hoplite_agent=trace,hoplite_proxy=trace,hoplite_wire=trace,hoplite_host=trace",
    );
    tracing_subscriber::fmt()
        .json()
        .with_env_filter(filter)
        .with_writer(kept.clone())
        .try_init()
        .unwrap();

    let world = World::start().await;
    let token = std::fs::read(world.dir().join("token"));
    world.policy(r#"@id("all") permit (principal, action in [Hoplite::Action::"anyHttp"], resource);"#);
    let app = HttpApp::start().await;
    let ttl = Duration::from_secs(5);
    let backend = world.proxy("backend").http("backend", &app).ttl(ttl).start().await;
    let front = world
        .proxy("front")
        .calls("backend", backend.inbound("backend"))
        .ttl(ttl)
        .start()
        .await;
    let stranger = world
        .proxy("stranger")
        .calls("nobody", backend.inbound("backend"))
        .start()
        .await;

    // Every key this process is given, until each proxy has had two.
    let mut svids: Vec<X509Svid> = Vec::new();
    let (first, mut api) = (
        front.serial().await,
        WorkloadApi::open(&world.workload_api()).await.unwrap(),
    );
    while front.serial().await == first {
        svids.extend(api.next().await.unwrap().svids);
        assert_eq!(
            get(front.outbound("backend"), "/").await.unwrap().status,
            StatusCode::OK
        );
    }
    // JWT-SVIDs: issued, believed, forged.
    let mut jwt = WorkloadJwt::connect(&world.workload_api()).await.unwrap();
    let mut tokens: Vec<String> = Vec::new();
    for audience in ["first", "second"] {
        let issued = until("a JWT-SVID", async || {
            jwt.fetch(vec![audience.to_owned()], None).await.ok()
        });
        tokens.extend(issued.await.into_iter().map(|svid| svid.svid));
    }
    for token in tokens.clone() {
        let forged = format!("{token}AA");
        for shown in [&token, &forged] {
            for audience in ["first", "third"] {
                jwt.validate(audience.to_owned(), shown.clone()).await.unwrap().ok();
            }
        }
    }
    // A handshake that fails has the most to tell.
    assert_eq!(
        get(stranger.outbound("nobody"), "/").await.unwrap().status,
        StatusCode::BAD_GATEWAY
    );
    let decided = get(front.outbound("backend"), "/").await.unwrap();
    assert_eq!(world.record(decided.decision().unwrap()).principal, Some(id("/front")));

    let log = until("the log tells of a rotation", async || {
        let log = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
        log.contains("identity rotated").then_some(log)
    })
    .await;
    assert!(tokens.len() >= 2 && log.contains("issue_jwt"), "{}", tokens.len());
    for token in &tokens {
        // Neither the token, nor the signature without which it is none.
        let signature = token.rsplit_once('.').unwrap().1;
        assert!(!log.contains(signature), "a JWT-SVID is in the log");
        for metrics in [world.ca_metrics(), world.agent_metrics()] {
            let shown = get(metrics, "/metrics").await.unwrap().body;
            assert!(shown.contains("jwt") && !shown.contains(signature));
        }
    }
    let mut secrets: Vec<(String, Vec<u8>)> = Vec::new();
    for svid in &svids {
        secrets.push((
            format!("the key of {}", svid.spiffe_id()),
            svid.key().secret_pkcs8_der().to_vec(),
        ));
    }
    keys_below(world.dir(), &mut secrets);
    assert!(
        svids.len() >= 4 && secrets.len() >= svids.len() + 2,
        "too few secrets to look for: {}",
        secrets.len()
    );
    for (whose, secret) in &secrets {
        for spelling in spellings(secret) {
            assert!(!log.contains(&spelling), "{whose} is in the log");
        }
    }
    assert!(!log.contains("PRIVATE KEY"));
    let token = String::from_utf8(token.unwrap()).unwrap();
    assert!(
        token.len() >= 16 && !log.contains(token.trim()),
        "the join token is in the log"
    );
}

/// The private keys that lie in files: the CA's and the agent's.
fn keys_below(dir: &Path, secrets: &mut Vec<(String, Vec<u8>)>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            keys_below(&path, secrets);
            continue;
        }
        let Some(bytes) = path.is_file().then(|| std::fs::read(&path).ok()).flatten() else {
            continue;
        };
        let begin = b"-----BEGIN PRIVATE KEY-----";
        if let Some(at) = bytes.windows(begin.len()).position(|window| window == begin) {
            // The agent's key lies in JSON, where a line feed is two characters.
            let text = String::from_utf8_lossy(&bytes[at + begin.len()..]).replace("\\n", "\n");
            let base64: String = text.split("-----").next().unwrap().split_whitespace().collect();
            secrets.push((path.display().to_string(), BASE64.decode(base64.as_bytes()).unwrap()));
        } else if path.to_string_lossy().contains("key") {
            secrets.push((path.display().to_string(), bytes));
        }
    }
}
