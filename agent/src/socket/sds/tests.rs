//! Secret discovery as Envoy asks for it: by stream, by delta and by fetch.

use super::*;
use crate::socket::session::Identity;
use crate::testing::{World, own};
use hoplite_identity::BundleSet;
use hoplite_identity::testing::TestAuthority;
use hoplite_wire::sds::secret_discovery_service_client::SecretDiscoveryServiceClient;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

const WEB: &str = "spiffe://prod.example/web";
const DOMAIN: &str = "spiffe://prod.example";

struct Domains {
    own: TestAuthority,
    other: TestAuthority,
}

impl Domains {
    fn new() -> Self {
        Self {
            own: TestAuthority::new("prod.example"),
            other: TestAuthority::new("other.example"),
        }
    }

    /// Fresh SVIDs for these paths, and both bundles.
    fn entitlement(&self, paths: &[&str]) -> Entitlement {
        let identity = |path: &&str| Identity {
            svid: Arc::new(self.own.svid(path, Duration::from_secs(3600))),
            entry: Arc::new(crate::supply::testing::entry(
                "e",
                &self.own.trust_domain().member(path).unwrap(),
                &[],
            )),
            hint: String::new(),
        };
        let bundles: BundleSet = [self.own.bundle(), self.other.bundle()].into_iter().collect();
        Entitlement::for_test(paths.iter().map(identity).collect(), bundles)
    }
}

fn ask(names: &[&str], nonce: &str) -> DiscoveryRequest {
    DiscoveryRequest {
        resource_names: names.iter().map(|name| (*name).to_owned()).collect(),
        type_url: SECRET.to_owned(),
        response_nonce: nonce.to_owned(),
        ..DiscoveryRequest::default()
    }
}

fn subscribe(names: &[&str], nonce: &str) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        resource_names_subscribe: names.iter().map(|name| (*name).to_owned()).collect(),
        type_url: SECRET.to_owned(),
        response_nonce: nonce.to_owned(),
        ..DeltaDiscoveryRequest::default()
    }
}

fn secrets(response: &DiscoveryResponse) -> Vec<Secret> {
    assert!(response.resources.iter().all(|any| any.type_url == SECRET) && response.type_url == SECRET);
    response
        .resources
        .iter()
        .map(|any| Secret::decode(&*any.value).unwrap())
        .collect()
}

fn names(response: &DiscoveryResponse) -> Vec<String> {
    secrets(response).into_iter().map(|secret| secret.name).collect()
}

fn errors(errors: &[ResourceError]) -> Vec<&str> {
    assert!(
        errors
            .iter()
            .all(|e| e.error_detail.as_ref().unwrap().code == i32::from(Code::NotFound))
    );
    errors
        .iter()
        .map(|error| error.resource_name.as_ref().unwrap().name.as_str())
        .collect()
}

fn text(source: Option<DataSource>) -> String {
    let Some(data_source::Specifier::InlineBytes(bytes)) = source.unwrap().specifier else {
        panic!("no bytes")
    };
    String::from_utf8(bytes).unwrap()
}

#[test]
fn what_each_name_means() {
    let domains = Domains::new();
    let entitlement = domains.entitlement(&["/web", "/api"]);
    let check = |name: &str, expected: &str| {
        let named = resolve(&entitlement, name);
        let got = named.map(|named| {
            assert_eq!(
                (&*named.name, &*named.secret.name),
                (name, name),
                "the name is the one asked for"
            );
            match named.secret.r#type.unwrap() {
                secret::Type::TlsCertificate(certificate) => {
                    assert!(text(certificate.private_key).starts_with("-----BEGIN PRIVATE KEY-----"));
                    let chain = text(certificate.certificate_chain);
                    let is = |i: &&Identity| i.svid.chain_pem() == chain;
                    entitlement
                        .identities
                        .iter()
                        .find(is)
                        .unwrap()
                        .svid
                        .spiffe_id()
                        .path()
                        .to_owned()
                }
                secret::Type::ValidationContext(context) => match context.custom_validator_config {
                    None => {
                        let pem = text(context.trusted_ca);
                        entitlement
                            .bundles()
                            .find(|b| b.to_pem() == pem)
                            .unwrap()
                            .trust_domain()
                            .to_string()
                    }
                    Some(custom) => {
                        assert_eq!((&*custom.name, context.trusted_ca), (SPIFFE_VALIDATOR, None));
                        let any = custom.typed_config.unwrap();
                        assert_eq!(any.type_url, SPIFFE_VALIDATOR_CONFIG);
                        let config = SpiffeCertValidatorConfig::decode(&*any.value).unwrap();
                        config
                            .trust_domains
                            .into_iter()
                            .map(|d| d.name)
                            .collect::<Vec<_>>()
                            .join("+")
                    }
                },
            }
        });
        assert_eq!(got.as_deref().unwrap_or("unknown"), expected, "{name}");
    };
    check(WEB, "/web");
    check("spiffe://prod.example/api", "/api");
    check("default", "/web");
    check(DOMAIN, "prod.example");
    check("prod.example", "prod.example");
    check("ROOTCA", "prod.example");
    check("spiffe://other.example", "other.example");
    check("ALL", "other.example+prod.example");
    for name in [
        "spiffe://prod.example/ledger",
        "spiffe://third.example",
        "third.example",
        "rootca",
        "file-root:system",
        "",
        "*",
        "spiffe://prod.example/",
    ] {
        check(name, "unknown");
    }
}

fn secret_of(resource: &Resource) -> Secret {
    Secret::decode(&*resource.resource.as_ref().unwrap().value).unwrap()
}

fn vouches_for_nobody(secret: &Secret) -> bool {
    match secret.r#type.as_ref().unwrap() {
        secret::Type::ValidationContext(context) => {
            context.verify_certificate_hash == ["0".repeat(64)] && context.custom_validator_config.is_none()
        }
        secret::Type::TlsCertificate(_) => false,
    }
}

/// Envoy takes an empty `trusted_ca` for none, and refuses a SPIFFE validator with an empty bundle.
#[test]
fn a_trust_domain_without_authorities_has_nobody_vouched_for() {
    let domains = Domains::new();
    let full = domains.entitlement(&["/web"]);
    let empty = TrustBundle::new(domains.other.trust_domain().clone(), Vec::new(), 2).unwrap();
    let bundles = [Arc::unwrap_or_clone(domains.own.bundle().into()), empty].into_iter();
    let entitlement = Entitlement::for_test(full.identities.clone(), bundles.collect());
    let named = resolve(&entitlement, "spiffe://other.example").unwrap();
    assert!(vouches_for_nobody(&named.secret));
    let all = resolve(&entitlement, "ALL").unwrap();
    let own_alone = Entitlement::for_test(full.identities.clone(), [domains.own.bundle()].into_iter().collect());
    assert_eq!(all, resolve(&own_alone, "ALL").unwrap());
}

/// Envoy keeps what it is told is gone, and an earlier stream may have brought it.
#[test]
fn authorities_that_a_client_may_have_no_more_vouch_for_nobody() {
    let domains = Domains::new();
    let now = domains.entitlement(&["/web"]);
    let fewer = Entitlement::for_test(now.identities.clone(), [domains.own.bundle()].into_iter().collect());
    for name in ["spiffe://other.example", "other.example"] {
        let mut stream = WorldStream::default();
        stream.request(ask(&[name], ""), 1).unwrap();
        assert!(!vouches_for_nobody(&secrets(&stream.answer(&now, true).unwrap())[0]));
        let without = stream.answer(&fewer, false).unwrap();
        assert!(vouches_for_nobody(&secrets(&without)[0]), "{name}");
        assert_eq!(stream.answer(&fewer, false), None, "said once");
        assert!(!vouches_for_nobody(&secrets(&stream.answer(&now, false).unwrap())[0]));
        // It was taken away while the client was not here.
        for (version_info, expected) in [("", 0), ("3", 1)] {
            let mut resumed = WorldStream::default();
            let request = DiscoveryRequest {
                version_info: version_info.to_owned(),
                ..ask(&[name], "")
            };
            resumed.request(request, 1).unwrap();
            let answer = resumed.answer(&fewer, true).unwrap();
            assert_eq!(
                (answer.resources.len(), answer.resource_errors.len()),
                (expected, 1 - expected)
            );
        }
    }
    // All that there is, and less of it.
    let mut stream = WorldStream::default();
    stream.request(ask(&[], ""), 1).unwrap();
    let _ = stream.answer(&now, true);
    let less = stream.answer(&fewer, false).unwrap();
    let other = secrets(&less)
        .into_iter()
        .find(|secret| secret.name == "spiffe://other.example");
    assert!(vouches_for_nobody(&other.unwrap()));
}

#[test]
fn a_world_stream() {
    let domains = Domains::new();
    let now = domains.entitlement(&["/web"]);
    let mut stream = WorldStream::default();
    assert!(!stream.is_subscribed());
    assert_eq!(
        stream
            .request(ask(&[WEB, "ROOTCA", "ALL", "nobody", WEB], ""), 1)
            .unwrap(),
        Reaction::Answer
    );
    let first = stream.answer(&now, true).unwrap();
    assert_eq!(names(&first), [WEB, "ROOTCA", "ALL"], "several kinds in one request");
    assert_eq!(errors(&first.resource_errors), ["nobody"]);

    let same = [WEB, "ROOTCA", "ALL", "nobody", WEB];
    assert_eq!(
        stream.request(ask(&same, &first.nonce), 1).unwrap(),
        Reaction::Nothing,
        "acknowledged"
    );
    assert_eq!(stream.answer(&now, false), None, "nothing changed");

    let rotated = domains.entitlement(&["/web"]);
    let second = stream.answer(&rotated, false).unwrap();
    assert_ne!(secrets(&second)[0], secrets(&first)[0]);
    assert!(second.version_info.parse::<u64>().unwrap() > first.version_info.parse().unwrap());
    assert_ne!(second.nonce, first.nonce);

    assert_eq!(
        stream.request(ask(&["default"], &first.nonce), 1).unwrap(),
        Reaction::Nothing,
        "a stale nonce"
    );
    let mut refusal = ask(&same, &second.nonce);
    refusal.error_detail = Some(hoplite_wire::sds::Status {
        code: 3,
        message: "no".into(),
    });
    assert_eq!(
        stream.request(refusal.clone(), 1).unwrap(),
        Reaction::Nothing,
        "a refusal is not answered"
    );
    refusal.resource_names = vec!["default".into()];
    assert_eq!(
        stream.request(refusal, 1).unwrap(),
        Reaction::Answer,
        "but its subscription counts"
    );
    assert_eq!(names(&stream.answer(&rotated, true).unwrap()), ["default"]);
    assert_eq!(
        stream
            .answer(&domains.entitlement(&["/web", "/api"]), false)
            .map(|r| names(&r))
            .unwrap(),
        ["default"]
    );
}

#[test]
fn a_world_stream_hears_of_what_it_is_subscribed_to_only() {
    let domains = Domains::new();
    let mut stream = WorldStream::default();
    stream
        .request(ask(&["ROOTCA", "spiffe://prod.example/api"], ""), 1)
        .unwrap();
    stream.answer(&domains.entitlement(&["/web"]), true).unwrap();
    assert_eq!(
        stream.answer(&domains.entitlement(&["/web"]), false),
        None,
        "another name was rotated"
    );
    let appeared = stream.answer(&domains.entitlement(&["/web", "/api"]), false).unwrap();
    assert_eq!(names(&appeared), ["ROOTCA", "spiffe://prod.example/api"]);
    let gone = stream.answer(&domains.entitlement(&["/web"]), false).unwrap();
    assert_eq!(errors(&gone.resource_errors), ["spiffe://prod.example/api"]);
}

/// A client that lost its stream names the nonce of that one.
#[test]
fn the_first_request_of_a_stream_subscribes_whatever_nonce_it_names() {
    let domains = Domains::new();
    let now = domains.entitlement(&["/web"]);
    let mut world = WorldStream::default();
    assert_eq!(
        world.request(ask(&["ROOTCA"], "of another stream"), 1).unwrap(),
        Reaction::Answer
    );
    assert_eq!(names(&world.answer(&now, true).unwrap()), ["ROOTCA"]);
    assert_eq!(
        world.request(ask(&["default"], "of another stream"), 1).unwrap(),
        Reaction::Nothing,
        "only the first"
    );
    let mut delta = DeltaStream::default();
    assert_eq!(
        delta.request(subscribe(&["ROOTCA"], "of another stream"), 1).unwrap(),
        Reaction::Answer
    );
    assert_eq!(delta_names(&delta.answer(&now, true).unwrap()), ["ROOTCA"]);
}

#[test]
fn no_names_means_everything() {
    let domains = Domains::new();
    let mut stream = WorldStream::default();
    stream.request(ask(&[], ""), 1).unwrap();
    let all = stream.answer(&domains.entitlement(&["/web", "/web"]), true).unwrap();
    assert_eq!(names(&all), [WEB, "spiffe://other.example", DOMAIN]);
}

#[test]
fn requests_that_end_the_stream() {
    let check = |request: DiscoveryRequest| {
        let status = WorldStream::default().request(request, 1).unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
    };
    check(DiscoveryRequest {
        type_url: SPIFFE_VALIDATOR_CONFIG.into(),
        ..ask(&[], "")
    });
    check(ask(&vec!["a"; NAMES_MAX + 1], ""));
    check(ask(&[&"a".repeat(NAME_BYTES_MAX + 1)], ""));
    let other = DeltaDiscoveryRequest {
        type_url: "x".into(),
        ..subscribe(&[], "")
    };
    assert_eq!(
        DeltaStream::default().request(other, 1).unwrap_err().code(),
        Code::InvalidArgument
    );
    let mut stream = DeltaStream::default();
    let many: Vec<_> = (0..NAMES_MAX).map(|n| n.to_string()).collect();
    stream
        .request(subscribe(&many.iter().map(String::as_str).collect::<Vec<_>>(), ""), 1)
        .unwrap();
    assert!(stream.request(subscribe(&["one more"], ""), 1).is_err());
}

fn delta_names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    response
        .resources
        .iter()
        .map(|resource| resource.name.as_str())
        .collect()
}

#[test]
fn a_delta_stream() {
    let domains = Domains::new();
    let now = domains.entitlement(&["/web"]);
    let mut stream = DeltaStream::default();
    assert_eq!(
        stream
            .request(subscribe(&[WEB, "ROOTCA", "spiffe://prod.example/api"], ""), 1)
            .unwrap(),
        Reaction::Answer
    );
    let first = stream.answer(&now, true).unwrap();
    assert_eq!(delta_names(&first), ["ROOTCA", WEB]);
    assert_eq!(errors(&first.resource_errors), ["spiffe://prod.example/api"]);
    assert_eq!(
        stream.request(subscribe(&[], &first.nonce), 1).unwrap(),
        Reaction::Nothing,
        "acknowledged"
    );
    assert_eq!(stream.answer(&now, false), None);

    let both = domains.entitlement(&["/web", "/api"]);
    let second = stream.answer(&both, false).unwrap();
    assert_eq!(
        delta_names(&second),
        ["spiffe://prod.example/api", WEB],
        "rotated and appeared; ROOTCA is as it was"
    );
    assert!(second.system_version_info.parse::<u64>().unwrap() > first.system_version_info.parse().unwrap());

    let web_only = Entitlement::for_test(
        both.identities[..1].to_vec(),
        [domains.own.bundle()].into_iter().collect(),
    );
    let third = stream.answer(&web_only, false).unwrap();
    assert_eq!(
        (delta_names(&third), third.removed_resources.clone()),
        (vec![], vec!["spiffe://prod.example/api".to_owned()])
    );
    assert_eq!(stream.answer(&web_only, false), None, "its absence is said once");
    assert_eq!(
        delta_names(&stream.answer(&both, false).unwrap()),
        ["spiffe://prod.example/api"],
        "and it comes back"
    );

    assert_eq!(stream.request(subscribe(&[WEB], "stale"), 1).unwrap(), Reaction::Answer);
    assert_eq!(
        delta_names(&stream.answer(&both, true).unwrap()),
        [WEB],
        "asked for again, sent again"
    );
    let unsubscribe = DeltaDiscoveryRequest {
        resource_names_unsubscribe: vec![WEB.into(), "ROOTCA".into()],
        ..subscribe(&[], "")
    };
    stream.request(unsubscribe, 1).unwrap();
    let last = stream.answer(&domains.entitlement(&["/web", "/api"]), true).unwrap();
    assert_eq!(
        (delta_names(&last), last.removed_resources.len()),
        (vec!["spiffe://prod.example/api"], 0)
    );
}

#[test]
fn a_delta_wildcard_and_a_resumed_stream() {
    let domains = Domains::new();
    let now = domains.entitlement(&["/web"]);
    for first_names in [&[][..], &["*"]] {
        let mut stream = DeltaStream::default();
        stream.request(subscribe(first_names, ""), 1).unwrap();
        let all = stream.answer(&now, true).unwrap();
        assert_eq!(delta_names(&all), ["spiffe://other.example", DOMAIN, WEB]);
        let fewer = Entitlement::for_test(now.identities.clone(), [domains.own.bundle()].into_iter().collect());
        let without = stream.answer(&fewer, false).unwrap();
        assert_eq!(delta_names(&without), ["spiffe://other.example"]);
        assert!(vouches_for_nobody(&secret_of(&without.resources[0])));
        assert!(without.removed_resources.is_empty(), "Envoy would keep it");
        assert_eq!(stream.answer(&fewer, false), None, "said once");
        assert_eq!(
            delta_names(&stream.answer(&now, false).unwrap()),
            ["spiffe://other.example"]
        );

        let mut resumed = DeltaStream::default();
        let kept: HashMap<_, _> = all
            .resources
            .iter()
            .map(|r| (r.name.clone(), r.version.clone()))
            .collect();
        let request = DeltaDiscoveryRequest {
            initial_resource_versions: kept,
            ..subscribe(first_names, "")
        };
        resumed.request(request, 1).unwrap();
        assert!(
            resumed.answer(&now, true).unwrap().resources.is_empty(),
            "the client has it all"
        );
        let rotated = resumed.answer(&domains.entitlement(&["/web"]), false).unwrap();
        assert_eq!(delta_names(&rotated), [WEB]);
    }
}

#[tokio::test]
async fn over_the_socket_stream_delta_and_fetch() {
    let world = World::start();
    let mut client = SecretDiscoveryServiceClient::new(world.dial().await);
    let unavailable = client.fetch_secrets(ask(&["default"], "")).await.unwrap_err();
    assert_eq!(unavailable.code(), Code::Unavailable);
    world.publish([world.entry("/web", &["unix:uid:4000000".into()])]);
    let denied = client.fetch_secrets(ask(&["ROOTCA"], "")).await.unwrap_err();
    assert!(
        denied.code() == Code::PermissionDenied && denied.message().contains(&own()),
        "{denied:?}"
    );

    let (web, ledger) = (
        world.entry("/web", &[own()]),
        world.entry("/ledger", &["unix:uid:4000000".into()]),
    );
    world.publish([web.clone(), ledger.clone()]);
    let fetched = client
        .fetch_secrets(ask(&["default", "spiffe://prod.example/ledger"], ""))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(names(&fetched), ["default"]);
    assert_eq!(
        errors(&fetched.resource_errors),
        ["spiffe://prod.example/ledger"],
        "another's identity is unknown"
    );

    let (to_world, requests) = mpsc::channel(4);
    let mut stream = client
        .stream_secrets(ReceiverStream::new(requests))
        .await
        .unwrap()
        .into_inner();
    to_world.send(ask(&[WEB], "")).await.unwrap();
    let first = stream.message().await.unwrap().unwrap();
    let (to_delta, requests) = mpsc::channel(4);
    let mut delta = client
        .delta_secrets(ReceiverStream::new(requests))
        .await
        .unwrap()
        .into_inner();
    to_delta.send(subscribe(&["default"], "")).await.unwrap();
    assert_eq!(delta_names(&delta.message().await.unwrap().unwrap()), ["default"]);
    world.publish([web, ledger]);
    let second = stream.message().await.unwrap().unwrap();
    assert_ne!(secrets(&first), secrets(&second), "rotation is pushed");
    assert_eq!(delta_names(&delta.message().await.unwrap().unwrap()), ["default"]);
    world.publish([]);
    assert_eq!(stream.message().await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(delta.message().await.unwrap_err().code(), Code::PermissionDenied);
}
