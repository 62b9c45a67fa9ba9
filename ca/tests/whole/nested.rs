//! CAs that are nested under this one: what they are given, and that nobody else is, not even one of them who calls itself somebody else.

use std::time::Duration;

use hoplite_host::config::Span;
use hoplite_identity::testing::TestAuthority;
use hoplite_identity::{BundleSet, CertificateDer, PeerRole, PeerVerifier, PrivatePkcs8KeyDer, X509Svid};
use hoplite_wire::ca::admin_client::AdminClient;
use hoplite_wire::ca::nested_client::NestedClient;
use hoplite_wire::ca::{
    AgentRequest, Bundle, CreateTokenRequest, DeleteEntriesRequest, ListAgentsRequest, ListEntriesRequest,
    PublishJwtKeysRequest, RenewRequest, SignAuthorityRequest, SignAuthorityResponse, WatchBundleRequest,
};
use hoplite_wire::channel;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType};
use ring::digest::{SHA256, digest};
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::acts::{acts, issuances};
use crate::world::{Agent, DOMAIN, World, agent_id, config, csr, entry, svid};

/// A CA that is nested, as far as this CA sees it.
struct Nested {
    client: NestedClient<Channel>,
    entry_id: String,
}

/// An authority that was signed for one.
struct Signed {
    key: KeyPair,
    response: SignAuthorityResponse,
}

async fn client(world: &World, svid: Option<&X509Svid>) -> NestedClient<Channel> {
    NestedClient::new(dial(world, svid).await)
}

async fn dial(world: &World, svid: Option<&X509Svid>) -> Channel {
    try_dial(world, svid).await.unwrap()
}

async fn try_dial(world: &World, svid: Option<&X509Svid>) -> Result<Channel, tonic::transport::Error> {
    let bundle = world.ca.bundle();
    let ca = bundle.trust_domain().ca();
    let verifier = std::sync::Arc::new(PeerVerifier::new(BundleSet::from_iter([bundle])).unwrap());
    let config = hoplite_identity::tls::client_config(svid, verifier, ca, &[b"h2"]).unwrap();
    channel::tls(world.ca.node_address().to_string(), config).await
}

/// An SVID of an entry that is registered under an agent.
async fn issued(world: &World, agent: &mut Agent, path: &str, node: &str) -> (String, X509Svid) {
    let id = world.register(entry(path, node)).await;
    let (pair, request) = csr();
    let mut results = agent.issue(vec![(id.clone(), request)]).await.unwrap();
    let result = results.remove(0);
    assert_eq!(result.error, "");
    (id, svid(&pair, result.chain))
}

async fn nested(world: &World, agent: &mut Agent, name: &str, node: &str) -> Nested {
    let (entry_id, svid) = issued(world, agent, &format!("/hoplite/nested/{name}"), node).await;
    let client = client(world, Some(&svid)).await;
    Nested { client, entry_id }
}

impl Nested {
    async fn sign(&mut self, ttl_seconds: u64) -> Result<Signed, Status> {
        let (key, csr) = csr();
        let response = self
            .client
            .sign_authority(SignAuthorityRequest { csr, ttl_seconds })
            .await?;
        let response = response.into_inner();
        Ok(Signed { key, response })
    }

    async fn publish(&mut self, points: Vec<Vec<u8>>) -> Result<(), Status> {
        self.client
            .publish_jwt_keys(PublishJwtKeysRequest { points })
            .await
            .map(drop)
    }

    async fn watch(&mut self) -> Streaming<Bundle> {
        self.client
            .watch_bundle(WatchBundleRequest {})
            .await
            .unwrap()
            .into_inner()
    }
}

impl Signed {
    fn der(&self) -> CertificateDer<'static> {
        self.response.chain.first().unwrap().clone().into()
    }

    /// What whoever has its key can make: an SVID of any name.
    fn forges(&self, path: &str, serial: Option<&str>) -> X509Svid {
        let issuer = Issuer::from_ca_cert_der(&self.der(), &self.key).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let uri = format!("spiffe://{DOMAIN}{path}");
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = serial.map(|serial| {
            let bytes = data_encoding::HEXLOWER.decode(serial.as_bytes()).unwrap();
            rcgen::SerialNumber::from_slice(&bytes)
        });
        let key = KeyPair::generate().unwrap();
        let now = std::time::SystemTime::now();
        params.not_before = now.into();
        params.not_after = (now + Duration::from_secs(600)).into();
        let leaf = params.signed_by(&key, &issuer).unwrap();
        let chain = vec![leaf.der().clone(), self.der()];
        X509Svid::from_parts(chain, PrivatePkcs8KeyDer::from(key.serialize_der())).unwrap()
    }
}

/// Waits until the trust bundle is as it should be.
async fn until_bundle(world: &World, what: &str, holds: impl Fn(&hoplite_identity::TrustBundle) -> bool) {
    let waiting = async {
        while !holds(&world.ca.bundle()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let in_time = tokio::time::timeout(Duration::from_secs(20), waiting).await;
    assert!(in_time.is_ok(), "{what}: not in time");
}

async fn delete(world: &World, id: &str) {
    let ids = vec![id.to_owned()];
    let deleted = world.admin().await.delete_entries(DeleteEntriesRequest { ids }).await;
    assert_eq!(deleted.unwrap().into_inner().errors, [""]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nested_ca_gets_an_authority_that_may_sign_members_and_nothing_else() {
    let world = World::start().await;
    let mut agent = world.join("n1").await;
    let mut eu = nested(&world, &mut agent, "eu", "n1").await;
    // A request that asks for all that it could.
    let key = KeyPair::generate().unwrap();
    let mut greedy = CertificateParams::new(vec!["other.example".to_owned()]).unwrap();
    greedy.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    greedy
        .subject_alt_names
        .push(SanType::URI("spiffe://other.example".try_into().unwrap()));
    let csr = greedy.serialize_request(&key).unwrap().der().to_vec();
    let request = SignAuthorityRequest {
        csr,
        ttl_seconds: u64::MAX,
    };
    let response = eu.client.sign_authority(request).await.unwrap().into_inner();
    let signed = Signed { key, response };

    let der = signed.der();
    let (_, x509) = X509Certificate::from_der(&der).unwrap();
    let constraints = x509.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && constraints.value.ca && constraints.value.path_len_constraint == Some(0));
    let usage = x509.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.key_cert_sign() && usage.value.crl_sign());
    assert_eq!(usage.value.flags.count_ones(), 2);
    let names = x509.subject_alternative_name().unwrap().unwrap();
    let names = format!("{:?}", names.value.general_names);
    assert_eq!(names, format!("[URI(\"spiffe://{DOMAIN}\")]"));
    assert_eq!(x509.public_key().raw, signed.key.subject_public_key_info());
    let root = world.ca.bundle().authorities()[0].clone();
    let (_, above) = X509Certificate::from_der(&root).unwrap();
    assert!(x509.validity().not_after <= above.validity().not_after);
    assert_eq!(signed.response.root, root.to_vec());
    assert_eq!(signed.response.chain.len(), 1, "the root is above it");
    assert_eq!(signed.response.bundle.as_ref().unwrap().authorities, [root.to_vec()]);

    // What it signs is believed by the root alone.
    let verifier = PeerVerifier::new(BundleSet::from_iter([world.ca.bundle()])).unwrap();
    let member = signed.forges("/orders", None);
    let peer = verifier
        .verify(member.chain(), PeerRole::Server, std::time::SystemTime::now())
        .unwrap();
    assert_eq!(peer.spiffe_id().path(), "/orders");

    // Who, by which entry, and what.
    let serial = member.chain()[1].to_vec();
    assert_eq!(serial, der.to_vec());
    let mut logged = issuances(world.dir.path()).into_iter();
    let logged = logged.find(|issuance| issuance.how == "sign_authority");
    let logged = logged.expect("it is in the CA's log");
    let expected = format!("spiffe://{DOMAIN}/hoplite/nested/eu");
    assert_eq!((&logged.requester, &logged.subject), (&expected, &expected));
    assert_eq!(logged.entry.as_deref(), Some(eu.entry_id.as_str()));
    assert_eq!(logged.serial, data_encoding::HEXLOWER.encode(x509.raw_serial()));

    // A life that is asked for, and one that is none.
    let short = eu.sign(60).await.unwrap();
    let (der, now) = (short.der(), std::time::SystemTime::now());
    let (_, x509) = X509Certificate::from_der(&der).unwrap();
    let left = u64::try_from(x509.validity().not_after.timestamp()).unwrap();
    let now = now.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!((now + 30..=now + 60).contains(&left), "{left} {now}");
    assert_eq!(eu.sign(0).await.err().unwrap().code(), Code::InvalidArgument);

    // Not without end.
    let mut refused = None;
    for _ in 0..20 {
        refused = eu.sign(3600).await.err();
        if refused.is_some() {
            break;
        }
    }
    let refused = refused.expect("there is a bound");
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(refused.message().contains("16 authorities"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_gets_an_authority() {
    let world = World::start().await;
    let mut agent = world.join("n1").await;
    let refusal = async |svid: Option<&X509Svid>| {
        let mut client = client(&world, svid).await;
        let request = SignAuthorityRequest {
            csr: csr().1,
            ttl_seconds: 60,
        };
        let signed = client.sign_authority(request).await.map(drop);
        let published = client
            .publish_jwt_keys(PublishJwtKeysRequest::default())
            .await
            .map(drop);
        let watched = client.watch_bundle(WatchBundleRequest {}).await.map(drop);
        let all = [signed, published, watched].map(|answer| answer.expect_err("it is refused"));
        assert!(all.iter().all(|status| status.code() == all[0].code()), "{all:?}");
        (all[0].code(), all[0].message().to_owned())
    };
    let check = async |svid: Option<&X509Svid>, code: Code, says: &str| {
        let (found, text) = refusal(svid).await;
        assert!(found == code && text.contains(says), "{found:?}: {text}");
    };
    check(None, Code::Unauthenticated, "the SVID of a nested CA").await;
    check(Some(&agent.svid), Code::PermissionDenied, "is no nested CA").await;
    let (_, plain) = issued(&world, &mut agent, "/orders", "n1").await;
    check(Some(&plain), Code::PermissionDenied, "is no nested CA").await;

    // An agent has it for entries that are registered under it, and only while they are.
    let mut other = world.join("n2").await;
    let (id, eu) = issued(&world, &mut agent, "/hoplite/nested/eu", "n1").await;
    let stolen = other.issue(vec![(id.clone(), csr().1)]).await.unwrap();
    assert!(stolen[0].error.contains("no such entry"), "{}", stolen[0].error);
    let mut signs = Nested {
        client: client(&world, Some(&eu)).await,
        entry_id: id.clone(),
    };
    let hostile = signs.sign(3600).await.unwrap();

    // A nested CA can name anybody, and is nobody here by that: neither another nested CA, nor an agent, an operator, a workload with
    // rights. Also with the serial number of the one that was given here.
    let _us = nested(&world, &mut other, "us", "n2").await;
    let says = "this CA did not sign";
    check(
        Some(&hostile.forges("/hoplite/nested/us", None)),
        Code::PermissionDenied,
        says,
    )
    .await;
    check(
        Some(&hostile.forges("/hoplite/nested/eu", None)),
        Code::PermissionDenied,
        says,
    )
    .await;
    let serial = agent.svid.leaf().serial().to_owned();
    for serial in [None, Some(serial.as_str())] {
        let forged = hostile.forges("/hoplite/agent/n1", serial);
        let refused = world
            .connect(Some(&forged))
            .await
            .unwrap()
            .renew(RenewRequest { csr: csr().1 })
            .await
            .unwrap_err();
        assert!(
            refused.code() == Code::PermissionDenied && refused.message().contains(says),
            "{refused}"
        );
    }
    for path in ["/hoplite/operator/ann", "/ci/deploy", "/hoplite/ca"] {
        let forged = hostile.forges(path, None);
        let mut admin = AdminClient::new(dial(&world, Some(&forged)).await);
        let refused = admin.list_entries(ListEntriesRequest::default()).await.unwrap_err();
        assert!(
            refused.code() == Code::PermissionDenied && refused.message().contains(says),
            "{refused}"
        );
    }
    // Nobody's agent is in doubt because of it.
    let agents = world
        .admin()
        .await
        .list_agents(ListAgentsRequest {})
        .await
        .unwrap()
        .into_inner()
        .agents;
    assert!(agents.iter().all(|agent| agent.contested_at_unix == 0), "{agents:?}");
    agent.client.renew(RenewRequest { csr: csr().1 }).await.unwrap();

    // A stranger who calls itself so does not come through the handshake.
    let stranger = TestAuthority::new(DOMAIN).svid("/hoplite/nested/eu", Duration::from_secs(60));
    if let Ok(channel) = try_dial(&world, Some(&stranger)).await {
        let answer = NestedClient::new(channel).watch_bundle(WatchBundleRequest {}).await;
        assert!(answer.is_err());
    }

    // Whose agent is banned has nothing more signed.
    let spiffe_id = other.svid.spiffe_id().to_string();
    let (_, us) = {
        let (pair, request) = csr();
        let listed = world
            .admin()
            .await
            .list_entries(ListEntriesRequest::default())
            .await
            .unwrap()
            .into_inner();
        let us = listed
            .entries
            .iter()
            .find(|entry| entry.spiffe_id.ends_with("/us"))
            .unwrap()
            .id
            .clone();
        let mut results = other.issue(vec![(us.clone(), request)]).await.unwrap();
        (us, svid(&pair, results.remove(0).chain))
    };
    world.admin().await.ban_agent(AgentRequest { spiffe_id }).await.unwrap();
    check(Some(&us), Code::PermissionDenied, "was banned").await;
    delete(&world, &id).await;
    check(Some(&eu), Code::PermissionDenied, "no entry").await;
}

/// Several nodes of a group could be it: that would be whoever joins the group.
#[tokio::test(flavor = "multi_thread")]
async fn a_nested_ca_is_registered_under_one_agent() {
    let world = World::start().await;
    let refused = async |change: &dyn Fn(&mut hoplite_wire::ca::Entry)| {
        let mut entry = entry("/hoplite/nested/eu", "n1");
        change(&mut entry);
        let request = hoplite_wire::ca::CreateEntriesRequest { entries: vec![entry] };
        let mut answer = world.admin().await.create_entries(request).await.unwrap().into_inner();
        answer.results.remove(0).error
    };
    let said = refused(&|entry| {
        entry.parent_id.clear();
        entry.node_selectors = vec![hoplite_wire::ca::Selector {
            kind: "token:label".into(),
            value: "web".into(),
        }];
    });
    assert!(said.await.contains("registered under one agent"));
    for path in ["/hoplite/nested", "/hoplite/nested/eu/x", "/hoplite/nestedd/eu"] {
        let said = refused(&|entry| entry.spiffe_id = format!("spiffe://{DOMAIN}{path}")).await;
        assert!(said.contains("Hoplite's own parts"), "{path}: {said}");
    }
    assert_eq!(refused(&|_| ()).await, "");

    // The same once more is what is there; another one would cut off the CA that runs. Another CA is another one.
    assert_eq!(refused(&|_| ()).await, "");
    let elsewhere = |entry: &mut hoplite_wire::ca::Entry| entry.parent_id = agent_id("n2");
    let said = refused(&elsewhere).await;
    assert!(
        said.contains("is that of the nested CA `eu` already") && said.contains("delete that one first"),
        "{said}"
    );
    let applied = hoplite_wire::ca::ApplyEntriesRequest {
        entries: vec![hoplite_wire::ca::Entry {
            parent_id: agent_id("n2"),
            ..entry("/hoplite/nested/eu", "n1")
        }],
        ..hoplite_wire::ca::ApplyEntriesRequest::default()
    };
    let answer = world.admin().await.apply_entries(applied).await.unwrap().into_inner();
    assert!(
        answer.results[0].error.contains("would cut it off"),
        "{:?}",
        answer.results
    );
    let other = refused(&|entry| entry.spiffe_id = format!("spiffe://{DOMAIN}/hoplite/nested/us"));
    assert_eq!(other.await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_nested_ca_publishes_and_has_signed_goes_with_its_entry() {
    let world = World::start().await;
    let mut agent = world.join("n1").await;
    let mut eu = nested(&world, &mut agent, "eu", "n1").await;
    let mut us = nested(&world, &mut agent, "us", "n1").await;
    let point = || KeyPair::generate().unwrap().der_bytes().to_vec();
    let kid = |point: &[u8]| data_encoding::HEXLOWER.encode(digest(&SHA256, point).as_ref());
    let keys = [point(), point()];
    let refused = eu.publish(vec![keys[0].clone()]).await.unwrap_err();
    assert!(refused.message().contains("no authority here"), "{refused}");
    let signed = eu.sign(3600).await.unwrap();
    us.sign(3600).await.unwrap();

    let mut watch = eu.watch().await;
    let before = watch.message().await.unwrap().unwrap();
    eu.publish(keys.to_vec()).await.unwrap();
    let after = watch.message().await.unwrap().unwrap();
    assert_eq!(after.sequence, before.sequence + 1);
    for key in &keys {
        assert!(after.jwks.contains(&kid(key)) && !before.jwks.contains(&kid(key)));
    }
    eu.publish(keys.to_vec()).await.unwrap();
    us.publish(vec![keys[1].clone(), point()]).await.unwrap();
    // All that it has, each time.
    eu.publish(vec![keys[0].clone()]).await.unwrap();
    until_bundle(&world, "the key of both stays", |bundle| {
        bundle.jwt().to_jwks().contains(&kid(&keys[1]))
    })
    .await;
    let sequence = world.ca.bundle().sequence();
    assert_eq!(sequence, before.sequence + 3, "what was there is no news");
    for (bad, says) in [
        ((0..9).map(|_| point()).collect(), "at most 8"),
        (vec![vec![4; 65]], "cannot be used"),
    ] {
        let refused = eu.publish(bad).await.unwrap_err();
        assert!(
            refused.code() == Code::InvalidArgument && refused.message().contains(says),
            "{refused}"
        );
    }

    // The entry goes: with it all that counts by it, and nothing of the other's.
    let member = signed.forges("/orders", None);
    let verify = |bundle| {
        let verifier = PeerVerifier::new(BundleSet::from_iter([bundle])).unwrap();
        verifier
            .verify(member.chain(), PeerRole::Client, std::time::SystemTime::now())
            .map(drop)
    };
    verify(world.ca.bundle()).unwrap();
    delete(&world, &eu.entry_id).await;
    let ended = loop {
        match watch.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it ends with a word"),
            Err(status) => break status,
        }
    };
    assert_eq!(ended.code(), Code::PermissionDenied, "{ended}");
    until_bundle(&world, "its key is revoked", |bundle| bundle.revoked_keys().len() == 1).await;
    let bundle = world.ca.bundle();
    assert!(!bundle.jwt().to_jwks().contains(&kid(&keys[0])) && bundle.jwt().to_jwks().contains(&kid(&keys[1])));
    let refused = verify(bundle).unwrap_err();
    assert_eq!(refused.code(), "revoked_authority", "{refused}");
    let logged = acts(world.dir.path());
    assert!(
        logged
            .iter()
            .any(|act| act.action == "RevokeNestedAuthority" && act.subject == "eu")
    );

    // Registered anew it begins anew: nothing of before comes back.
    let mut again = nested(&world, &mut agent, "eu", "n1").await;
    let refused = again.publish(vec![keys[0].clone()]).await.unwrap_err();
    assert!(refused.message().contains("no authority here"), "{refused}");
    let new = again.sign(3600).await.unwrap();
    again.publish(vec![keys[0].clone()]).await.unwrap();
    assert!(verify(world.ca.bundle()).is_err());
    let world = world.restart().await.unwrap();
    assert!(verify(world.ca.bundle()).is_err(), "a restart forgets nothing");
    let verifier = PeerVerifier::new(BundleSet::from_iter([world.ca.bundle()])).unwrap();
    let member = new.forges("/orders", None);
    verifier
        .verify(member.chain(), PeerRole::Client, std::time::SystemTime::now())
        .unwrap();
}

/// Whoever may let nodes in makes no CA by that: who joins as the node of a nested CA can be that CA.
#[tokio::test(flavor = "multi_thread")]
async fn an_invitation_for_the_node_of_a_nested_ca_needs_the_right_to_register_it() {
    let world = World::start().await;
    let mut agent = world.join("n1").await;
    let (_, mut nodes) = world.sign_in("ann", &["nodes"], &[]).await;
    let invitation = |node: &str| CreateTokenRequest {
        node: node.to_owned(),
        ..CreateTokenRequest::default()
    };
    nodes.create_token(invitation("n1")).await.unwrap();
    let eu = nested(&world, &mut agent, "eu", "n1").await;
    let refused = nodes.create_token(invitation("n1")).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("`RegisterNestedCa`"), "{refused}");
    nodes.create_token(invitation("n2")).await.unwrap();
    let (_, mut admin) = world.sign_in("bob", &["admin"], &[]).await;
    admin.create_token(invitation("n1")).await.unwrap();
    delete(&world, &eu.entry_id).await;
    nodes.create_token(invitation("n1")).await.unwrap();
    world.ca.stop().await;
}

/// Each publication is another trust bundle for everybody, so there are not many in a short time.
#[tokio::test(flavor = "multi_thread")]
async fn keys_are_not_published_as_often_as_one_likes() {
    let world = World::start().await;
    let mut agent = world.join("n1").await;
    let mut eu = nested(&world, &mut agent, "eu", "n1").await;
    let mut us = nested(&world, &mut agent, "us", "n1").await;
    eu.sign(3600).await.unwrap();
    us.sign(3600).await.unwrap();
    let key = || KeyPair::generate().unwrap().der_bytes().to_vec();
    let mut published = 0;
    let (last, refused) = loop {
        let keys = vec![key()];
        match eu.publish(keys.clone()).await {
            Ok(()) => published += 1,
            Err(refused) => break (keys, refused),
        }
        assert!(published < 100, "there is no end");
    };
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(published >= 8, "{published}: authorities that turn need some");
    assert!(eu.publish(last).await.is_err());
    us.publish(vec![key()]).await.unwrap();
    world.ca.stop().await;
}

/// What has ended is in no list.
#[tokio::test(flavor = "multi_thread")]
async fn what_has_ended_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.x509_ttl = Span(Duration::from_secs(600));
    let world = World {
        ca: hoplite_ca::start(config).await.unwrap(),
        dir,
    };
    let mut agent = world.join("n1").await;
    let mut eu = nested(&world, &mut agent, "eu", "n1").await;
    eu.sign(12).await.unwrap();
    eu.publish(vec![KeyPair::generate().unwrap().der_bytes().to_vec()])
        .await
        .unwrap();
    let own = world.ca.bundle().jwt().algorithms().count();
    assert_eq!(own, 2);
    delete(&world, &eu.entry_id).await;
    until_bundle(&world, "it is revoked", |bundle| bundle.revoked_keys().len() == 1).await;
    until_bundle(&world, "and has ended", |bundle| bundle.revoked_keys().is_empty()).await;
    assert_eq!(world.ca.bundle().jwt().algorithms().count(), 1);
}
