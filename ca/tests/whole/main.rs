//! The whole CA over real sockets: joining, watching, issuing, administration, restarts, and strangers.

#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic is how a test fails, in its helpers too"
)]

mod acts;
mod attesting;
mod crowds;
mod groups;
mod nested;
mod operators;
mod policy;
mod templates;
mod tpm;
mod world;

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use hoplite_ca::{AuthorityError, Founding, StartError};
use hoplite_host::config::Span;
use hoplite_identity::testing::TestAuthority;
use hoplite_identity::{Leaf, TrustDomain, X509Svid};
use hoplite_wire::ca::{
    AgentRequest, CreateEntriesRequest, CreateTokenRequest, DeleteEntriesRequest, Entry, IssueRequest,
    ListAgentsRequest, ListEntriesRequest, RenewRequest, ShowBundleRequest, WatchRequest,
};
use tonic::Code;

use world::{DOMAIN, World, agent_id, config, csr, entry, next, svid};

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_joins_and_renews() {
    let world = World::start().await;
    let agent = world.join("n1").await;
    assert_eq!(agent.svid.spiffe_id().as_str(), agent_id("n1"));

    let (pair, request) = csr();
    let mut client = agent.client;
    let response = client.renew(RenewRequest { csr: request }).await.unwrap().into_inner();
    assert_eq!(
        response.bundle.unwrap().authorities,
        [world.ca.bundle().authorities()[0].to_vec()]
    );
    let renewed = svid(&pair, response.chain);
    assert_eq!(renewed.spiffe_id(), agent.svid.spiffe_id());
    assert_ne!(renewed.leaf().serial(), agent.svid.leaf().serial());

    // The new certificate counts from its first use. One that was never used is lost when it is asked again.
    let mut second = world.connect(Some(&renewed)).await.unwrap();
    let (pair, request) = csr();
    let response = second.renew(RenewRequest { csr: request }).await.unwrap().into_inner();
    let (_, request) = csr();
    let _lost = second.renew(RenewRequest { csr: request }).await.unwrap();
    let never_used = svid(&pair, response.chain);
    let error = world
        .connect(Some(&never_used))
        .await
        .unwrap()
        .renew(RenewRequest { csr: csr().1 })
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::Unauthenticated, "{error}");
    // Whoever still has the one before has what its owner no longer needs.
    let error = client.renew(RenewRequest { csr: csr().1 }).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    assert!(error.message().contains("two have its key"), "{error}");

    let agents = world
        .admin()
        .await
        .list_agents(ListAgentsRequest {})
        .await
        .unwrap()
        .into_inner()
        .agents;
    assert_eq!(agents.len(), 1);
    assert_eq!(agents[0].spiffe_id, agent_id("n1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_admits_one_key() {
    let world = World::start().await;
    let token = world.token("n1").await;
    let (_, mine) = csr();
    world.try_join(&token, mine.clone()).await.unwrap();
    world.try_join(&token, mine).await.expect("a retry with the same key");
    let error = world.try_join(&token, csr().1).await.unwrap_err();
    assert_eq!(error.code(), Code::PermissionDenied);
    assert!(
        error.message().contains("another key") && !error.message().contains(&token),
        "{error}"
    );
    let error = world.try_join("0123", csr().1).await.unwrap_err();
    assert!(
        error.code() == Code::PermissionDenied && error.message().contains("not known"),
        "{error}"
    );
    let error = world
        .try_join(&world.token("n2").await, b"not a request".to_vec())
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn guessing_is_slowed_down() {
    let world = World::start().await;
    let mut codes = Vec::new();
    for _ in 0..40 {
        codes.push(world.try_join("a guess", csr().1).await.unwrap_err().code());
    }
    assert_eq!(codes[0], Code::PermissionDenied);
    assert!(codes.contains(&Code::ResourceExhausted), "{codes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_sees_what_is_registered_and_deleted() {
    let world = World::start().await;
    let before = world.register(entry("/before", "n1")).await;
    let mut agent = world.join("n1").await;
    let mut updates = agent.watch(0).await;
    let first = next(&mut updates).await.unwrap();
    assert!(first.full && first.bundle.is_some() && first.deletes.is_empty());
    assert_eq!(first.upserts.iter().map(|e| &e.id).collect::<Vec<_>>(), [&before]);
    assert_eq!(first.upserts[0].x509_ttl_seconds, 3600, "the life it will have");

    let other = world.register(entry("/other", "n2")).await;
    let after = world.register(entry("/after", "n1")).await;
    let second = next(&mut updates).await.unwrap();
    assert!(!second.full && second.bundle.is_none() && second.deletes.is_empty());
    assert_eq!(second.upserts.iter().map(|e| &e.id).collect::<Vec<_>>(), [&after]);
    assert!(second.revision > first.revision && second.digest != first.digest);

    let request = DeleteEntriesRequest {
        ids: vec![after.clone(), other],
    };
    world.admin().await.delete_entries(request).await.unwrap();
    let third = next(&mut updates).await.unwrap();
    assert!(!third.full && third.upserts.is_empty());
    assert_eq!(third.deletes, [after]);
    assert_eq!(third.digest, first.digest);

    // Another stream, from a revision on; and one from a revision that never was.
    let delta = next(&mut agent.watch(second.revision).await).await.unwrap();
    assert!(!delta.full && delta.deletes == third.deletes && delta.digest == third.digest);
    let nothing_new = next(&mut agent.watch(third.revision).await).await.unwrap();
    assert!(!nothing_new.full && nothing_new.upserts.is_empty() && nothing_new.digest == third.digest);
    assert!(next(&mut agent.watch(1_000_000).await).await.unwrap().full);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_mints_what_is_registered_under_it_and_nothing_else() {
    let world = World::start().await;
    let mut own = entry("/orders", "n1");
    own.x509_ttl_seconds = 60;
    own.dns_names = vec!["orders.internal".into()];
    let own = world.register(own).await;
    let foreign = world.register(entry("/ledger", "n2")).await;
    let mut agent = world.join("n1").await;
    let ((pair, good), (_, other)) = (csr(), csr());
    let items = vec![
        (own.clone(), good),
        (foreign, other.clone()),
        ("no such".into(), other.clone()),
        (own.clone(), b"no request".to_vec()),
    ];
    let results = agent.issue(items).await.unwrap();
    assert_eq!(results.len(), 4);
    let minted = svid(&pair, results[0].chain.clone());
    assert_eq!(minted.spiffe_id().as_str(), format!("spiffe://{DOMAIN}/orders"));
    let life = minted
        .leaf()
        .not_after()
        .duration_since(minted.leaf().not_before())
        .unwrap();
    assert_eq!(
        life,
        Duration::from_secs(72),
        "the entry's, and a fifth of it back-dated"
    );
    for refused in &results[1..] {
        assert!(refused.chain.is_empty());
    }
    assert!(
        results[1].error.contains("registered under this agent"),
        "{}",
        results[1].error
    );
    assert_eq!(results[1].error, results[2].error, "whether it exists is not told");
    assert!(results[3].error.contains("PKCS#10"), "{}", results[3].error);

    let error = agent.issue(vec![(own, other); 501]).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(agent.issue(Vec::new()).await.unwrap().is_empty());
}

/// Every call but Join, by one caller; each must be refused, for the given reason if the caller got as far as that.
async fn refused_everywhere(world: &World, svid: Option<&X509Svid>, expected: Option<Code>) {
    let Ok(mut client) = world.connect(svid).await else {
        assert_eq!(expected, None, "refused in the handshake");
        return;
    };
    let codes = [
        client
            .renew(RenewRequest { csr: csr().1 })
            .await
            .map(|_| ())
            .unwrap_err(),
        client.watch(WatchRequest::default()).await.map(|_| ()).unwrap_err(),
        client.issue(IssueRequest::default()).await.map(|_| ()).unwrap_err(),
    ];
    for status in codes {
        match expected {
            Some(expected) => assert_eq!(status.code(), expected, "{status}"),
            // TLS 1.3: the client learns of the refusal at its first read.
            None => assert!(
                matches!(
                    status.code(),
                    Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal
                ),
                "{status:?}"
            ),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_refused_on_each_call() {
    let world = World::start().await;
    let own = world.register(entry("/orders", "n1")).await;
    let mut agent = world.join("n1").await;
    let (pair, request) = csr();
    let chain = agent.issue(vec![(own, request)]).await.unwrap().remove(0).chain;
    let workload = svid(&pair, chain);
    // Another CA for the same trust domain, and the very name of our agent.
    let hour = Duration::from_secs(3600);
    let impostor = TestAuthority::new(DOMAIN).svid("/hoplite/agent/n1", hour);
    let foreigner = TestAuthority::new("other.example").svid("/hoplite/agent/n1", hour);

    refused_everywhere(&world, None, Some(Code::Unauthenticated)).await;
    refused_everywhere(&world, Some(&workload), Some(Code::PermissionDenied)).await;
    refused_everywhere(&world, Some(&impostor), None).await;
    refused_everywhere(&world, Some(&foreigner), None).await;
    agent.issue(Vec::new()).await.expect("the agent itself is served");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ban_and_an_eviction_end_streams_and_calls_at_once() {
    let world = World::start().await;
    let (mut banned, mut evicted) = (world.join("n1").await, world.join("n2").await);
    let (mut of_banned, mut of_evicted) = (banned.watch(0).await, evicted.watch(0).await);
    next(&mut of_banned).await.unwrap();
    next(&mut of_evicted).await.unwrap();
    let mut admin = world.admin().await;
    admin
        .ban_agent(AgentRequest {
            spiffe_id: agent_id("n1"),
        })
        .await
        .unwrap();
    assert_eq!(next(&mut of_banned).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(
        banned.issue(Vec::new()).await.unwrap_err().code(),
        Code::PermissionDenied
    );
    evicted.issue(Vec::new()).await.expect("the other one is served");
    admin
        .evict_agent(AgentRequest {
            spiffe_id: agent_id("n2"),
        })
        .await
        .unwrap();
    let error = next(&mut of_evicted).await.unwrap_err();
    assert!(
        error.code() == Code::PermissionDenied && error.message().contains("new token"),
        "{error}"
    );
    refused_everywhere(&world, Some(&evicted.svid), Some(Code::PermissionDenied)).await;

    // A ban outlives the process; an eviction lifts it.
    let world = world.restart().await.unwrap();
    refused_everywhere(&world, Some(&banned.svid), Some(Code::PermissionDenied)).await;
    let mut admin = world.admin().await;
    let request = CreateTokenRequest {
        node: "n1".into(),
        ttl_seconds: 0,
        ..CreateTokenRequest::default()
    };
    let error = admin.create_token(request).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    admin
        .evict_agent(AgentRequest {
            spiffe_id: agent_id("n1"),
        })
        .await
        .unwrap();
    world.join("n1").await.issue(Vec::new()).await.unwrap();
    refused_everywhere(&world, Some(&banned.svid), Some(Code::Unauthenticated)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn administration() {
    let world = World::start().await;
    let mut admin = world.admin().await;
    let mode = fs::metadata(world.dir.path().join("ca.sock"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);

    let (good, mut bad, mut differs) = (entry("/a", "n1"), entry("/hoplite/ca", "n1"), entry("/a", "n1"));
    bad.x509_ttl_seconds = 60;
    differs.hint = "other".into();
    let create = |entries: Vec<Entry>| CreateEntriesRequest { entries };
    let request = create(vec![good.clone(), bad, good.clone(), differs]);
    let results = admin.create_entries(request).await.unwrap().into_inner().results;
    let id = results[0].entry.as_ref().unwrap().id.clone();
    assert_eq!(id.len(), 32);
    assert!(results[0].error.is_empty() && !results[0].existed);
    assert!(
        results[1].entry.is_none() && results[1].error.contains("Hoplite's own parts"),
        "{}",
        results[1].error
    );
    assert!(results[2].existed && results[2].error.is_empty() && results[2].entry == results[0].entry);
    assert!(
        !results[3].existed && results[3].error.contains(&id),
        "{}",
        results[3].error
    );

    let entries = admin
        .list_entries(ListEntriesRequest::default())
        .await
        .unwrap()
        .into_inner()
        .entries;
    assert_eq!(entries, [results[0].entry.clone().unwrap()]);
    let errors = admin
        .delete_entries(DeleteEntriesRequest {
            ids: vec!["x".into(), id.clone(), id],
        })
        .await
        .unwrap();
    let errors = errors.into_inner().errors;
    assert!(errors[0].contains("no entry `x`") && errors[1].is_empty(), "{errors:?}");

    let too_many = create(vec![good; 1001]);
    assert_eq!(
        admin.create_entries(too_many).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    for (node, ttl_seconds) in [("", 0), ("a/b", 0), ("..", 0), ("n1", 86_401)] {
        let error = admin
            .create_token(CreateTokenRequest {
                node: node.into(),
                ttl_seconds,
                ..CreateTokenRequest::default()
            })
            .await
            .unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    }
    let unknown = AgentRequest {
        spiffe_id: agent_id("n9"),
    };
    assert_eq!(
        admin.ban_agent(unknown.clone()).await.unwrap_err().code(),
        Code::NotFound
    );
    assert_eq!(admin.evict_agent(unknown).await.unwrap_err().code(), Code::NotFound);
    for spiffe_id in [
        "n1",
        "spiffe://prod.example/a",
        "spiffe://other.example/hoplite/agent/n1",
    ] {
        let error = admin
            .ban_agent(AgentRequest {
                spiffe_id: spiffe_id.into(),
            })
            .await
            .unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    }
    let bundle = admin.show_bundle(ShowBundleRequest {}).await.unwrap().into_inner();
    assert_eq!(bundle.trust_domain, DOMAIN);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_authority_entries_and_agents() {
    let world = World::start().await;
    let id = world.register(entry("/orders", "n1")).await;
    let mut agent = world.join("n1").await;
    let mut updates = agent.watch(0).await;
    next(&mut updates).await.unwrap();
    let bundle = world.ca.bundle();
    let world = world.restart().await.unwrap();
    assert_eq!(
        next(&mut updates).await.unwrap_err().code(),
        Code::Unavailable,
        "the stream ended with a word"
    );
    assert_eq!(world.ca.bundle(), bundle);
    agent.client = world.connect(Some(&agent.svid)).await.unwrap();
    let first = next(&mut agent.watch(0).await).await.unwrap();
    assert_eq!(first.upserts.iter().map(|e| &e.id).collect::<Vec<_>>(), [&id]);
    assert!(agent.issue(vec![(id, csr().1)]).await.unwrap()[0].error.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_start_says_why() {
    let World { dir, ca } = World::start().await;
    let address = ca.node_address();
    let data = dir.path().join("data");
    let start = async |change: &dyn Fn(&mut hoplite_ca::Config)| {
        let mut config = config(dir.path());
        change(&mut config);
        hoplite_ca::start(config).await.expect_err("it must not start")
    };
    let error = start(&|_| ()).await;
    assert!(
        matches!(error, StartError::Store(_)),
        "the directory is in use: {error}"
    );
    let error = start(&|c| (c.listen, c.data_dir) = (address, dir.path().join("other"))).await;
    assert!(
        matches!(error, StartError::Listen { .. }) && error.to_string().contains(&address.to_string()),
        "{error}"
    );
    ca.stop().await;

    let error = start(&|c| c.x509_ttl = Span(Duration::from_secs(1))).await;
    assert!(error.to_string().contains("x509_ttl"), "{error}");
    let error = start(&|c| c.trust_domain = TrustDomain::parse("other.example").unwrap()).await;
    assert!(error.to_string().contains("other.example"), "{error}");
    let error = start(&|c| c.admin_socket = dir.path().join("x".repeat(200))).await;
    assert!(matches!(error, StartError::AdminSocket(_)), "{error}");
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let error = start(&|c| c.data_dir = file.clone()).await;
    assert!(matches!(error, StartError::File(_)), "{error}");

    fs::set_permissions(data.join("authority.key"), fs::Permissions::from_mode(0o644)).unwrap();
    let error = start(&|_| ()).await.to_string();
    assert!(error.contains("0644"), "{error}");
    fs::remove_file(data.join("authority.key")).unwrap();
    let error = start(&|_| ()).await;
    assert!(
        matches!(error, StartError::Authority(AuthorityError::KeyMissing { .. })),
        "{error}"
    );
    assert!(!data.join("authority.key").exists(), "no new key in silence");
}

#[tokio::test(flavor = "multi_thread")]
async fn openssl_reads_the_authority_and_a_leaf() {
    if Command::new("openssl").arg("version").output().is_err() {
        skip("openssl_reads_the_authority_and_a_leaf", "openssl is not installed");
        return;
    }
    let world = World::start().await;
    let mut own = entry("/orders", "n1");
    own.dns_names = vec!["orders.internal".into()];
    let own = world.register(own).await;
    let mut agent = world.join("n1").await;
    let (pair, request) = csr();
    let chain = agent.issue(vec![(own, request)]).await.unwrap().remove(0).chain;
    let leaf = world.dir.path().join("leaf.pem");
    fs::write(&leaf, svid(&pair, chain.clone()).chain_pem()).unwrap();
    let bundle = world.dir.path().join("data/bundle.pem");
    assert_eq!(fs::metadata(&bundle).unwrap().permissions().mode() & 0o777, 0o644);

    let openssl = |arguments: &[&str]| {
        let output = Command::new("openssl").args(arguments).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "openssl {arguments:?}: {text}");
        text
    };
    let (leaf, bundle) = (leaf.to_str().unwrap(), bundle.to_str().unwrap());
    for purpose in ["sslserver", "sslclient"] {
        openssl(&["verify", "-x509_strict", "-purpose", purpose, "-CAfile", bundle, leaf]);
    }
    let text = openssl(&["x509", "-in", leaf, "-noout", "-text"]);
    for part in [
        "URI:spiffe://prod.example/orders, DNS:orders.internal",
        "X509v3 Subject Alternative Name: critical",
        "X509v3 Key Usage: critical",
        "CA:FALSE",
        "TLS Web Server Authentication, TLS Web Client Authentication",
    ] {
        assert!(text.contains(part), "`{part}` is missing from {text}");
    }
    let text = openssl(&["x509", "-in", bundle, "-noout", "-text"]);
    for part in [
        "URI:spiffe://prod.example",
        "CA:TRUE",
        "Certificate Sign, CRL Sign",
        "serialNumber",
    ] {
        assert!(text.contains(part), "`{part}` is missing from {text}");
    }
    let serial = openssl(&["x509", "-in", leaf, "-noout", "-serial"]).to_lowercase();
    assert!(serial.contains(Leaf::parse(&chain[0]).unwrap().serial()), "{serial}");
}

/// A test that could not run is counted, not forgotten.
fn skip(test: &str, reason: &str) {
    eprintln!("SKIPPED {test}: {reason}");
    if let Some(path) = std::env::var_os("HOPLITE_SKIPS") {
        let mut file = fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
        writeln!(file, "{test}: {reason}").unwrap();
    }
}

/// What is lost is said, and not made anew: each thing that may be missing from a data directory, or be an older one.
#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_that_is_not_whole_is_refused() {
    let world = World::start().await;
    let create = async |world: &World, path: &str| {
        let entries = vec![entry(path, "n1")];
        let request = CreateEntriesRequest { entries };
        let created = world.admin().await.create_entries(request).await.unwrap().into_inner();
        assert!(created.results[0].error.is_empty());
    };
    create(&world, "/first").await;
    let data = world.dir.path().join("data");
    let (store, aside) = (data.join("store"), world.dir.path().join("aside"));
    let bundle = world.ca.bundle();

    // A copy of the store, as a backup has it; then one more entry, which it lacks, and another start.
    let World { dir, ca } = world;
    ca.stop().await;
    assert!(
        Command::new("cp")
            .arg("-a")
            .args([&store, &aside])
            .status()
            .unwrap()
            .success()
    );
    let world = World {
        ca: hoplite_ca::start(config(dir.path())).await.unwrap(),
        dir,
    };
    create(&world, "/second").await;
    let world = world.restart().await.unwrap();
    let World { dir, ca } = world;
    ca.stop().await;

    let refused = async || {
        hoplite_ca::start(config(dir.path()))
            .await
            .expect_err("it must not start")
            .to_string()
    };
    let newest = dir.path().join("newest");
    let says = |error: String, parts: &[&str]| assert!(parts.iter().all(|part| error.contains(part)), "{error}");

    // The store is gone; an empty directory is in its place, as under a disk that is not mounted; only the bundle is left.
    fs::rename(&store, &newest).unwrap();
    says(refused().await, &["no store in", "authority.key", "--init"]);
    fs::create_dir(&store).unwrap();
    says(refused().await, &["no store in", "--init"]);
    fs::rename(data.join("authority.key"), dir.path().join("key")).unwrap();
    says(refused().await, &["no store in", "jwt.key"]);
    fs::rename(data.join("jwt.key"), dir.path().join("jwt-key")).unwrap();
    says(refused().await, &["no store in", "bundle.pem"]);
    fs::rename(dir.path().join("key"), data.join("authority.key")).unwrap();
    fs::rename(dir.path().join("jwt-key"), data.join("jwt.key")).unwrap();

    // An older copy.
    fs::remove_dir(&store).unwrap();
    fs::rename(&aside, &store).unwrap();
    says(refused().await, &["older copy", "store-revision"]);

    // What was there is as good as it was.
    fs::remove_dir_all(&store).unwrap();
    fs::rename(&newest, &store).unwrap();
    let ca = hoplite_ca::start(config(dir.path())).await.unwrap();
    assert_eq!(ca.bundle(), bundle);
    let world = World { dir, ca };
    let listed = world
        .admin()
        .await
        .list_entries(ListEntriesRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(listed.entries.len(), 2);

    // Told so, it begins anew.
    let World { dir, ca } = world;
    ca.stop().await;
    fs::remove_dir_all(&store).unwrap();
    let ca = hoplite_ca::start_founding(config(dir.path()), Founding::Anew)
        .await
        .unwrap();
    assert_ne!(ca.bundle(), bundle);
    ca.stop().await;
    hoplite_ca::start(config(dir.path())).await.unwrap().stop().await;
}

/// A first start that was killed leaves a store and a key, or a store alone; it goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_first_start_that_was_interrupted_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    drop(hoplite_store::SledStore::open(data.join("store")).unwrap());
    fs::set_permissions(&data, fs::Permissions::from_mode(0o700)).unwrap();
    hoplite_ca::start(config(dir.path())).await.unwrap().stop().await;
}
