//! JWT-SVIDs in a whole world: fetched, validated, refused, over rotations, restarts and bans; and verified by people who know
//! OpenID Connect and no SPIFFE.

#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking, its helpers too"
)]

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use data_encoding::BASE64URL_NOPAD;
use hoplite_host::config::Span;
use hoplite_host::files;
use hoplite_identity::jwt::{JwtClaims, verify};
use hoplite_identity::{BundleSet, PeerVerifier, SpiffeId, X509Svid, pem, tls};
use hoplite_tests::{World, get, id, own_selectors, peers, until};
use hoplite_wire::ca::node_client::NodeClient;
use hoplite_wire::ca::{AuthorityRequest, IssueJwtRequest, ListAuthoritiesRequest, PrepareAuthorityRequest};
use hoplite_wire::channel;
use hoplite_wire::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use hoplite_wire::workload::{JwtBundlesRequest, Jwtsvid, JwtsvidRequest, ValidateJwtsvidRequest};
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair};
use ring::hmac;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use serde_json::{Value, json};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

type Client = SpiffeWorkloadApiClient<Channel>;

async fn client(world: &World) -> Client {
    SpiffeWorkloadApiClient::new(channel::unix(world.agent_socket()).await.unwrap())
}

fn with_header<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request
        .metadata_mut()
        .insert("workload.spiffe.io", "true".parse().unwrap());
    request
}

async fn fetch(client: &mut Client, audience: &[&str], spiffe_id: &str) -> Result<Vec<Jwtsvid>, Status> {
    let asked = JwtsvidRequest {
        audience: audience.iter().map(|name| (*name).to_owned()).collect(),
        spiffe_id: spiffe_id.to_owned(),
    };
    Ok(client.fetch_jwtsvid(with_header(asked)).await?.into_inner().svids)
}

/// One token, once it can be had.
async fn token(world: &World, audience: &[&str], path: &str) -> String {
    until("a JWT-SVID", async || {
        let mut svids = fetch(&mut client(world).await, audience, &id(path)).await.ok()?;
        Some(svids.remove(0).svid)
    })
    .await
}

async fn validate(client: &mut Client, audience: &str, svid: &str) -> Result<(String, Value), Status> {
    let asked = ValidateJwtsvidRequest {
        audience: audience.to_owned(),
        svid: svid.to_owned(),
    };
    let answer = client.validate_jwtsvid(with_header(asked)).await?.into_inner();
    let claims = answer.claims.unwrap();
    let text = |name: &str| match claims.fields.get(name).and_then(|value| value.kind.clone()) {
        Some(prost_types::value::Kind::StringValue(text)) => json!(text),
        Some(prost_types::value::Kind::NumberValue(number)) => json!(number),
        Some(prost_types::value::Kind::ListValue(list)) => json!(list.values.len()),
        other => panic!("{name}: {other:?}"),
    };
    let claims = json!({"sub": text("sub"), "exp": text("exp"), "aud": text("aud")});
    Ok((answer.spiffe_id, claims))
}

/// A part of a token.
fn part(token: &str, number: usize) -> Value {
    let text = token.split('.').nth(number).unwrap();
    serde_json::from_slice(&BASE64URL_NOPAD.decode(text.as_bytes()).unwrap()).unwrap()
}

fn kid(token: &str) -> String {
    part(token, 0)["kid"].as_str().unwrap().to_owned()
}

/// The CA's node API as this agent sees it.
async fn as_agent(world: &World, svid: &X509Svid) -> NodeClient<Channel> {
    let verifier = Arc::new(PeerVerifier::new(BundleSet::from_iter([world.bundle()])).unwrap());
    let ca = SpiffeId::parse(&id("/hoplite/ca")).unwrap();
    let config = tls::client_config(Some(svid), verifier, ca, &[b"h2"]).unwrap();
    NodeClient::new(channel::tls(world.ca_address(), config).await.unwrap())
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn j_3_to_8_and_w_11_a_workload_gets_tokens_that_others_believe() {
    let world = World::start().await;
    let entry = world.register("/web", &own_selectors(), None).await;
    world.register("/api", &own_selectors(), None).await;
    world
        .update(&entry, |entry| {
            entry.jwt_ttl_seconds = 60;
            entry.hint = "front".to_owned();
        })
        .await;
    let mut client = client(&world).await;
    let svids = until("both tokens", async || {
        let svids = fetch(&mut client, &["vault", "https://api"], "").await.ok()?;
        let is_changed = svids.iter().any(|svid| svid.hint == "front");
        (svids.len() == 2 && is_changed).then_some(svids)
    })
    .await;
    for svid in &svids {
        let (header, claims) = (part(&svid.svid, 0), part(&svid.svid, 1));
        assert_eq!((&header["alg"], &header["typ"]), (&"ES256".into(), &"JWT".into()));
        assert_eq!(header.as_object().unwrap().len(), 3, "alg, kid and typ alone (J-5)");
        assert_eq!(claims["sub"], svid.spiffe_id);
        assert_eq!(claims["aud"], json!(["https://api", "vault"]));
        let life = claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap();
        assert_eq!(life, if svid.spiffe_id == id("/web") { 60 } else { 300 });
        assert!(claims.get("iss").is_none(), "no issuer is configured");
        for audience in ["vault", "https://api"] {
            let (who, said) = validate(&mut client, audience, &svid.svid).await.unwrap();
            assert_eq!((who.as_str(), &said["sub"]), (svid.spiffe_id.as_str(), &claims["sub"]));
            assert_eq!(said["exp"].as_f64(), claims["exp"].as_f64());
        }
        let other = validate(&mut client, "bank", &svid.svid).await.unwrap_err();
        assert_eq!(other.code(), Code::InvalidArgument);
        assert!(
            other.message().contains("not meant for the audience `bank`"),
            "{other:?}"
        );
        // The bundle of the Workload API is what verifies it.
        let mut stream = client
            .fetch_jwt_bundles(with_header(JwtBundlesRequest {}))
            .await
            .unwrap()
            .into_inner();
        let bundles = stream.message().await.unwrap().unwrap().bundles;
        let jwks = hoplite_identity::jwt::JwtAuthorities::from_jwks(&bundles["spiffe://world.test"]).unwrap();
        verify(&svid.svid, "vault", |_| Some(&jwks), SystemTime::now()).unwrap();
    }
    // What was had is had again, in whatever order the audience is named; other audiences are other tokens.
    let again = fetch(&mut client, &["https://api", "vault"], &id("/web"))
        .await
        .unwrap();
    assert!(svids.iter().any(|svid| svid.svid == again[0].svid), "of the cache");
    let other = fetch(&mut client, &["vault"], &id("/web")).await.unwrap();
    assert!(svids.iter().all(|svid| svid.svid != other[0].svid));
    let denied = fetch(&mut client, &["vault"], &id("/bank")).await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied, "{denied:?}");

    // An entry that changed, and one that went.
    world.update(&entry, |entry| entry.jwt_ttl_seconds = 30).await;
    until("the entry's new life", async || {
        let svids = fetch(&mut client, &["vault"], &id("/web")).await.ok()?;
        let claims = part(&svids[0].svid, 1);
        (claims["exp"].as_u64()? - claims["iat"].as_u64()? == 30).then_some(())
    })
    .await;
    world.unregister(&entry).await;
    until("nobody is given a token of what went", async || {
        let refused = fetch(&mut client, &["vault"], &id("/web")).await.err()?;
        (refused.code() == Code::PermissionDenied).then_some(())
    })
    .await;
}

/// What a thief, or somebody with a good token of another place, shows to `ValidateJWTSVID`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forged_tokens_are_refused() {
    let world = World::start().await;
    world.register("/web", &own_selectors(), None).await;
    let good = token(&world, &["vault"], "/web").await;
    let mut client = client(&world).await;
    validate(&mut client, "vault", &good).await.unwrap();
    let (head, rest) = good.split_once('.').unwrap();
    let (body, signature) = rest.split_once('.').unwrap();
    let encode = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
    let (header, claims) = (part(&good, 0), part(&good, 1));
    let kid = header["kid"].as_str().unwrap();
    let with = |of: &Value, change: &[(&str, Value)]| {
        let mut of = of.clone();
        for (name, value) in change {
            of[*name] = value.clone();
        }
        of
    };
    let thief = EcdsaKeyPair::from_pkcs8(
        &ECDSA_P256_SHA256_FIXED_SIGNING,
        &KeyPair::generate().unwrap().serialize_der(),
        &SystemRandom::new(),
    )
    .unwrap();
    let signed = |header: &Value, claims: &Value| {
        let input = format!("{}.{}", encode(header), encode(claims));
        let signature = thief.sign(&SystemRandom::new(), input.as_bytes()).unwrap();
        JwtClaims::signed(&input, signature.as_ref())
    };
    // The public key is known to everybody: with it a thief makes an HMAC, in each spelling of the key.
    let jwks = world.bundle().jwt().to_jwks();
    let hs256 = |secret: &[u8]| {
        let input = format!("{}.{}", encode(&with(&header, &[("alg", json!("HS256"))])), body);
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), input.as_bytes());
        JwtClaims::signed(&input, tag.as_ref())
    };
    let none = |alg: &str| format!("{}.{body}.", encode(&json!({"alg": alg, "kid": kid, "typ": "JWT"})));
    let jwk: Value = serde_json::from_str(&jwks).unwrap();
    let headed = |name: &str, value: Value| signed(&with(&header, &[(name, value)]), &claims);
    let mut forged = vec![
        ("alg none", none("none")),
        ("alg None", none("None")),
        ("alg none, the signature kept", format!("{}{signature}", none("none"))),
        ("HMAC by the JWK Set", hs256(jwks.as_bytes())),
        ("HMAC by x", hs256(jwk["keys"][0]["x"].as_str().unwrap().as_bytes())),
        (
            "the algorithm of another key",
            signed(&with(&header, &[("alg", json!("ES384"))]), &claims),
        ),
        (
            "an RSA algorithm",
            signed(&with(&header, &[("alg", json!("RS256"))]), &claims),
        ),
        ("another's key under our kid", signed(&header, &claims)),
        (
            "an unknown kid",
            signed(&with(&header, &[("kid", json!("mine"))]), &claims),
        ),
        ("no kid", signed(&json!({"alg": "ES256", "typ": "JWT"}), &claims)),
        ("an empty kid", signed(&with(&header, &[("kid", json!(""))]), &claims)),
        ("jku", headed("jku", json!("https://thief.example/keys"))),
        ("jwk", headed("jwk", jwk["keys"][0].clone())),
        ("x5u", headed("x5u", json!("https://thief.example/chain"))),
        ("crit", headed("crit", json!(["exp"]))),
        ("another type", headed("typ", json!("wit+jwt"))),
        (
            "a changed subject",
            format!(
                "{head}.{}.{signature}",
                encode(&with(&claims, &[("sub", json!(id("/bank")))]))
            ),
        ),
        (
            "a longer life",
            format!(
                "{head}.{}.{signature}",
                encode(&with(&claims, &[("exp", json!(now() + 9999))]))
            ),
        ),
        (
            "another trust domain",
            signed(&header, &with(&claims, &[("sub", json!("spiffe://other.test/web"))])),
        ),
        (
            "no workload",
            signed(&header, &with(&claims, &[("sub", json!("spiffe://world.test"))])),
        ),
        (
            "no SPIFFE ID",
            signed(&header, &with(&claims, &[("sub", json!("admin"))])),
        ),
        ("no signature", format!("{head}.{body}.")),
        ("two parts", format!("{head}.{body}")),
        ("four parts", format!("{good}.{signature}")),
        ("padding", format!("{good}=")),
        (
            "JSON",
            json!({"payload": body, "signatures": [{"protected": head, "signature": signature}]}).to_string(),
        ),
        ("17 KiB", format!("{head}.{}.{signature}", "A".repeat(17 * 1024))),
        (
            "deep claims",
            format!(
                "{head}.{}.{signature}",
                BASE64URL_NOPAD.encode("[".repeat(4000).as_bytes())
            ),
        ),
    ];
    let middle = signature.len() / 2;
    let flipped = if signature.as_bytes()[middle] == b'A' { "B" } else { "A" };
    let mut broken = signature.to_owned();
    broken.replace_range(middle..=middle, flipped);
    forged.push(("one letter of the signature", format!("{head}.{body}.{broken}")));
    for (how, token) in &forged {
        let refused = validate(&mut client, "vault", token).await;
        let status = refused.map(|_| ()).expect_err(how);
        assert_eq!(status.code(), Code::InvalidArgument, "{how}: {status:?}");
        assert!(!status.message().contains(body), "{how}: the token is in the answer");
    }
    println!("{} forged tokens were refused", forged.len());
    // The good one is good all the same.
    validate(&mut client, "vault", &good).await.unwrap();
}

/// Times of tokens that a key of ours has signed, as if its holder had gone mad: by the key on the CA's disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn j_8_times_and_j_7_audiences_of_our_own_key() {
    let world = World::start().await;
    world.register("/web", &own_selectors(), None).await;
    let good = token(&world, &["vault"], "/web").await;
    let mut client = client(&world).await;
    let text = files::read_private(&world.dir().join("ca/jwt.key")).unwrap();
    let der = pem::private_key(std::str::from_utf8(&text).unwrap()).unwrap();
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der, &SystemRandom::new()).unwrap();
    let mut check = async |change: &[(&str, Value)], expected: Option<&str>| {
        let mut claims = part(&good, 1);
        for (name, value) in change {
            match value {
                Value::Null => drop(claims.as_object_mut().unwrap().remove(*name)),
                value => claims[*name] = value.clone(),
            }
        }
        let header = good.split_once('.').unwrap().0;
        let input = format!("{header}.{}", BASE64URL_NOPAD.encode(claims.to_string().as_bytes()));
        let signature = key.sign(&SystemRandom::new(), input.as_bytes()).unwrap();
        let token = JwtClaims::signed(&input, signature.as_ref());
        match (validate(&mut client, "vault", &token).await, expected) {
            (Ok(_), None) => {}
            (Err(status), Some(expected)) => {
                assert_eq!(status.code(), Code::InvalidArgument);
                assert!(status.message().contains(expected), "{change:?}: {status:?}");
            }
            (answer, expected) => panic!("{change:?}: {answer:?} where {expected:?} was expected"),
        }
    };
    check(&[], None).await;
    check(&[("exp", json!(now() - 1))], Some("it ended at")).await;
    check(&[("exp", Value::Null)], Some("`exp`")).await;
    check(&[("exp", json!("soon"))], Some("`exp`")).await;
    check(&[("nbf", json!(now() + 30))], None).await;
    check(&[("nbf", json!(now() + 300))], Some("it counts from")).await;
    check(&[("iat", json!(now() + 300))], Some("it counts from")).await;
    check(&[("aud", json!("vault"))], None).await;
    check(&[("aud", Value::Null)], Some("`aud`")).await;
    check(&[("aud", json!([]))], Some("`aud`")).await;
    check(&[("aud", json!([""]))], Some("`aud`")).await;
    check(&[("aud", json!(["vaul", "vault2"]))], Some("not meant for")).await;
    check(&[("aud", json!("Vault"))], Some("not meant for")).await;
    check(
        &[("sub", json!("spiffe://other.test/web"))],
        Some("no trust bundle of `other.test`"),
    )
    .await;
    check(&[("sub", Value::Null)], Some("`sub`")).await;
    let deep = (0..40).fold(json!(1), |inner, _| json!([inner]));
    check(&[("deep", deep)], Some("too deep")).await;
    let shallow = (0..20).fold(json!(1), |inner, _| json!({"a": [inner]}));
    check(&[("shallow", shallow)], Some("too deep")).await;
    check(&[("more", json!({"a": [1, null, true, {"b": "c"}]}))], None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_at_hand_serves_while_the_ca_is_away_and_its_keys_outlive_a_restart() {
    let mut world = World::start().await;
    let entry = world.register("/web", &own_selectors(), None).await;
    world.update(&entry, |entry| entry.jwt_ttl_seconds = 15).await;
    until("the life is known", async || {
        let claims = part(&token(&world, &["vault"], "/web").await, 1);
        let life = claims["exp"].as_u64()? - claims["iat"].as_u64()?;
        (life == 15).then_some(())
    })
    .await;
    let before = token(&world, &["vault"], "/web").await;
    let mut client = client(&world).await;
    world.stop_ca().await;
    let mut asked = 0;
    let unknown = until("the agent sees that its CA is away", async || {
        asked += 1;
        fetch(&mut client, &[&format!("other{asked}")], &id("/web")).await.err()
    })
    .await;
    let away = fetch(&mut client, &["vault"], &id("/web")).await.unwrap();
    assert_eq!(away[0].svid, before);
    assert_eq!(unknown.code(), Code::Unavailable, "{unknown:?}");
    assert!(unknown.message().contains("the CA is away"), "{unknown:?}");
    // It is given until its end, and never after it.
    let ended = until("its end", async || {
        fetch(&mut client, &["vault"], &id("/web")).await.err()
    })
    .await;
    assert_eq!(ended.code(), Code::Unavailable);
    assert!(part(&before, 1)["exp"].as_u64().unwrap() <= now());
    // What verifies tokens needs no CA.
    assert!(
        validate(&mut client, "vault", &before)
            .await
            .unwrap_err()
            .message()
            .contains("it ended at")
    );
    world.start_ca().await;
    let after = token(&world, &["vault"], "/web").await;
    assert_eq!(kid(&after), kid(&before), "a restart keeps the key");
    // A restarted agent knows the keys before it has heard the CA.
    world.stop_ca().await;
    world.stop_agent().await;
    world.start_agent().await;
    let believed = until("the agent answers", async || {
        let mut client = self::client(&world).await;
        match validate(&mut client, "vault", &after).await {
            Err(status) if status.code() != Code::InvalidArgument => None,
            answer => Some(answer),
        }
    })
    .await;
    match believed {
        Ok((who, _)) => assert_eq!(who, id("/web")),
        Err(status) => assert!(status.message().contains("it ended at"), "{status:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_banned_node_gives_no_tokens_and_an_agent_mints_only_its_own() {
    let world = World::start().await;
    let own = world.register("/web", &own_selectors(), None).await;
    let others = world.register_under("n2", "/bank", &own_selectors(), None).await;
    token(&world, &["vault"], "/web").await;
    let svid = world.join("n2").await;
    let mut node = as_agent(&world, &svid).await;
    let issue = async |node: &mut NodeClient<Channel>, ids: &[&str], audience: &[&str]| {
        let asked = IssueJwtRequest {
            entry_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
            audience: audience.iter().map(|name| (*name).to_owned()).collect(),
            values: Vec::new(),
        };
        Ok::<_, Status>(node.issue_jwt(asked).await?.into_inner().results)
    };
    let results = issue(&mut node, &[&own, &others, "none"], &["vault"]).await.unwrap();
    assert!(
        results[0].token.is_empty()
            && results[0]
                .error
                .contains("no such entry is registered under this agent")
    );
    assert_eq!(part(&results[1].token, 1)["sub"], id("/bank"));
    assert_eq!(
        results[0].error, results[2].error,
        "whether another's is there is not told"
    );
    let long = "x".repeat(1025);
    for (ids, audience) in [
        (vec!["x"; 65], vec!["a"]),
        (vec![&others], vec![]),
        (vec![&others], vec!["a"; 33]),
        (vec![&others], vec![long.as_str()]),
    ] {
        let refused = issue(&mut node, &ids, &audience).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    }
    let empty = issue(&mut node, &[&others], &[""]).await.unwrap();
    assert!(empty[0].error.contains("an audience is empty"), "{empty:?}");

    // A workload of a node that is banned has no tokens any more, the cached ones included; nor has one that is evicted.
    let began = Instant::now();
    world.ban("node").await;
    let mut client = client(&world).await;
    until("the ban", async || {
        let refused = fetch(&mut client, &["vault"], &id("/web")).await.err()?;
        (refused.code() == Code::PermissionDenied).then_some(())
    })
    .await;
    println!("after a ban no token is given: {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(5));
    world.evict("n2").await;
    let refused = issue(&mut node, &[&others], &["vault"]).await.unwrap_err();
    assert!(
        [Code::PermissionDenied, Code::Unauthenticated].contains(&refused.code()),
        "{refused:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_take_their_turns_and_no_token_is_refused() {
    let world = World::start_with(|config| {
        config.authority_ttl = Span(Duration::from_secs(36));
        config.x509_ttl = Span(Duration::from_secs(6));
        config.agent_ttl = Span(Duration::from_secs(6));
        config.jwt_ttl = Span(Duration::from_secs(5));
    })
    .await;
    world.register("/web", &own_selectors(), None).await;
    token(&world, &["vault"], "/web").await;
    let mut client = client(&world).await;
    let (mut kids, mut fetched, mut stream) = (Vec::new(), 0, None);
    let mut bundles = 0;
    let ends = Instant::now() + Duration::from_secs(80);
    while kids.len() < 3 && Instant::now() < ends {
        let stream = match &mut stream {
            Some(stream) => stream,
            none => {
                let asked = client.fetch_jwt_bundles(with_header(JwtBundlesRequest {})).await;
                none.insert(asked.unwrap().into_inner())
            }
        };
        while let Ok(message) = tokio::time::timeout(Duration::from_millis(100), stream.message()).await {
            let jwks = &message.unwrap().unwrap().bundles["spiffe://world.test"];
            hoplite_identity::jwt::JwtAuthorities::from_jwks(jwks).unwrap();
            bundles += 1;
        }
        let svids = fetch(&mut client, &["vault"], "").await.unwrap();
        validate(&mut client, "vault", &svids[0].svid).await.unwrap();
        fetched += 1;
        let kid = kid(&svids[0].svid);
        if kids.last() != Some(&kid) {
            kids.push(kid);
        }
    }
    println!("{fetched} tokens of {} keys, {bundles} bundles pushed", kids.len());
    assert!(kids.len() >= 3 && bundles >= 4, "{kids:?} {bundles}");
    assert_eq!(kids.iter().collect::<std::collections::BTreeSet<_>>().len(), kids.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stolen_key_is_tainted_and_revoked() {
    let world = World::start().await;
    world.register("/web", &own_selectors(), None).await;
    let stolen = token(&world, &["vault"], "/web").await;
    let mut client = client(&world).await;
    let mut admin = world.admin().await;
    let named = |fingerprint: &str| AuthorityRequest {
        fingerprint: fingerprint.to_owned(),
        ..AuthorityRequest::default()
    };
    let early = admin.revoke_authority(named(&kid(&stolen))).await.unwrap_err();
    assert!(early.message().contains("taint it first"), "{early:?}");
    let prepared = admin
        .prepare_authority(PrepareAuthorityRequest { jwt: true })
        .await
        .unwrap();
    assert_eq!(prepared.into_inner().state, "prepared");
    let began = Instant::now();
    let tainted = admin
        .taint_authority(named(&kid(&stolen)[..16]))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (tainted.state.as_str(), &tainted.fingerprint),
        ("tainted", &kid(&stolen))
    );
    let fresh = until("tokens by another key", async || {
        let svids = fetch(&mut client, &["vault"], "").await.unwrap();
        (kid(&svids[0].svid) != kid(&stolen)).then_some(svids[0].svid.clone())
    })
    .await;
    println!("after a taint another key signs: {:?}", began.elapsed());
    validate(&mut client, "vault", &stolen).await.unwrap();
    admin.revoke_authority(named(&kid(&stolen))).await.unwrap();
    until("nothing of it is believed", async || {
        let refused = validate(&mut client, "vault", &stolen).await.err()?;
        refused.message().contains("no key of its `kid`").then_some(())
    })
    .await;
    validate(&mut client, "vault", &fresh).await.unwrap();
    let listed = admin
        .list_authorities(ListAuthoritiesRequest {})
        .await
        .unwrap()
        .into_inner();
    let states: Vec<&str> = listed.jwt.iter().map(|key| key.state.as_str()).collect();
    assert_eq!(states, ["active", "revoked"]);
    assert_eq!(listed.authorities.len(), 1, "the X.509 authority is another matter");
}

/// A web certificate for the loopback address, and the authority that it is from.
fn web(dir: &std::path::Path) -> std::path::PathBuf {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "The web");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    let authority = params.self_signed(&key).unwrap();
    let issuer = Issuer::new(params, key);
    let server = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(&server, &issuer).unwrap();
    std::fs::create_dir_all(dir).unwrap();
    files::write_public(
        &dir.join("web.pem"),
        pem::write_certificates(&[certificate.der().clone()]).as_bytes(),
    )
    .unwrap();
    files::write_private(
        &dir.join("web.key"),
        pem::write_private_key(&server.serialize_der()).as_bytes(),
    )
    .unwrap();
    files::write_public(
        &dir.join("ca.pem"),
        pem::write_certificates(&[authority.der().clone()]).as_bytes(),
    )
    .unwrap();
    dir.join("ca.pem")
}

/// A CA with discovery over HTTPS: the world, the issuer, and the authority of its web certificate.
async fn discovered(dir: &std::path::Path) -> (World, String, std::path::PathBuf) {
    let ca = web(dir);
    let port = peers::free_port();
    let issuer = format!("https://127.0.0.1:{port}/world");
    let text = format!(
        "issuer = \"{issuer}\"\nlisten = \"127.0.0.1:{port}\"\ncertificate = \"{0}/web.pem\"\nkey = \"{0}/web.key\"\n",
        dir.display()
    );
    let settings = toml::from_str(&text).unwrap();
    let world = World::start_with(|config| config.oidc = Some(settings)).await;
    world.register("/web", &own_selectors(), None).await;
    (world, issuer, ca)
}

/// What a stock library says of these tokens.
async fn judged(mut command: Command, tokens: &[String]) -> Vec<Value> {
    let text = tokens.join("\n") + "\n";
    let judged = tokio::task::spawn_blocking(move || {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    });
    let output = judged.await.unwrap();
    assert!(output.status.success(), "{output:?}");
    let lines = String::from_utf8(output.stdout).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// As Vault does: nothing of SPIFFE, the issuer's address, and a library that everybody has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stock_openid_connect_libraries_verify_by_the_discovery_document() {
    let name = "stock_openid_connect_libraries_verify_by_the_discovery_document";
    let dir = tempfile::tempdir().unwrap();
    let (world, issuer, ca) = discovered(dir.path()).await;
    let good = token(&world, &["vault"], "/web").await;
    assert_eq!(part(&good, 1)["iss"], issuer);
    let other = token(&world, &["bank"], "/web").await;
    let (head, rest) = good.split_once('.').unwrap();
    let body = rest.split_once('.').unwrap().0;
    let thief = EcdsaKeyPair::from_pkcs8(
        &ECDSA_P256_SHA256_FIXED_SIGNING,
        &KeyPair::generate().unwrap().serialize_der(),
        &SystemRandom::new(),
    )
    .unwrap();
    let signature = thief
        .sign(&SystemRandom::new(), format!("{head}.{body}").as_bytes())
        .unwrap();
    let forged = JwtClaims::signed(&format!("{head}.{body}"), signature.as_ref());
    let none = format!("{}.{body}.", BASE64URL_NOPAD.encode(br#"{"alg":"none"}"#));
    let tokens = [good, other, forged, none];
    let mut judges = 0;
    if let Some(python) = peers::python(name) {
        let mut command = Command::new(python);
        command
            .arg("-B")
            .arg(peers::file("jwt_svid.py"))
            .arg("oidc")
            .arg("--ca")
            .arg(&ca);
        command.args(["--issuer", &issuer, "--audience", "vault"]);
        let lines = judged(command, &tokens).await;
        assert_eq!(
            (&lines[0]["subject"], &lines[0]["issuer"]),
            (&id("/web").into(), &issuer.clone().into())
        );
        assert_eq!(lines[0]["cache"], "public, max-age=60");
        assert_eq!(lines[1]["refused"], "InvalidAudienceError");
        assert_eq!(lines[2]["refused"], "InvalidSignatureError");
        assert!(lines[3]["refused"].is_string(), "{lines:?}");
        judges += 1;
    }
    if let Some(go) = peers::go(name) {
        let mut command = Command::new(go);
        command.arg("oidc").arg(&ca).args([&issuer, "vault"]);
        let lines = judged(command, &tokens).await;
        assert_eq!(
            (&lines[0]["subject"], &lines[0]["issuer"]),
            (&id("/web").into(), &issuer.clone().into())
        );
        assert!(lines[1..].iter().all(|line| line["refused"].is_string()), "{lines:?}");
        judges += 1;
    }
    if judges == 0 {
        return;
    }
    let metrics = get(world.ca_metrics(), "/metrics").await.unwrap().body;
    assert!(
        metrics.contains("hoplite_ca_oidc_reads_total{page=\"keys\",result=\"found\"}"),
        "{metrics}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn discovery_over_https_is_bounded_and_says_nothing_else() {
    let Some(curl) = peers::curl("discovery_over_https_is_bounded_and_says_nothing_else") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let (_world, issuer, ca) = discovered(dir.path()).await;
    let run = async |arguments: &[&str], url: String| {
        let mut command = Command::new(&curl);
        command
            .args(["--silent", "--show-error", "--max-time", "15", "--include", "--cacert"])
            .arg(&ca);
        command.args(arguments).arg(url);
        let output = peers::output(command).await;
        String::from_utf8(output.stdout).unwrap()
    };
    // Many who connect and say nothing keep nobody out.
    let address: std::net::SocketAddr = issuer
        .strip_prefix("https://")
        .unwrap()
        .split('/')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    let silent: Vec<_> = (0..300)
        .filter_map(|_| std::net::TcpStream::connect(address).ok())
        .collect();
    assert!(silent.len() > 100);
    let answer = run(&[], format!("{issuer}/.well-known/openid-configuration")).await;
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.contains("cache-control: public, max-age=60"),
        "{answer}"
    );
    assert!(answer.contains("content-type: application/json"), "{answer}");
    let keys = run(&[], format!("{issuer}/keys")).await;
    assert!(keys.contains("\"use\": \"sig\"") && keys.contains("\"kid\""), "{keys}");
    assert!(!keys.contains("\"d\""), "{keys}");
    for (arguments, url, expected) in [
        (&["--head"][..], format!("{issuer}/keys"), "200"),
        (&["--request", "POST", "--data", "x"], format!("{issuer}/keys"), "405"),
        (&[], issuer.clone(), "404"),
        (&[], format!("{issuer}/metrics"), "404"),
        (&["--path-as-is"], format!("{issuer}/../keys"), "404"),
    ] {
        let answer = run(arguments, url.clone()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {expected}")), "{url}: {answer}");
    }
    // Whoever speaks TLS 1.2, or no TLS at all, is told nothing.
    let old = run(&["--tls-max", "1.2"], format!("{issuer}/keys")).await;
    let plain = run(&[], format!("{issuer}/keys").replace("https", "http")).await;
    assert_eq!((old.as_str(), plain.as_str()), ("", ""));
}
