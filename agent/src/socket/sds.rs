//! Envoy's secret discovery service, v3: the same SVIDs and bundles as the Workload API serves, in Envoy's words.
//!
//! | name asked for | secret |
//! |---|---|
//! | a SPIFFE ID | the certificate and key of that identity of the caller |
//! | `default` | those of its default identity |
//! | `spiffe://<trust domain>`, or the bare name | the trust domain's authorities |
//! | `ROOTCA` | those of the caller's own trust domain |
//! | `ALL` | a SPIFFE validator with every bundle, each for its own trust domain only |
//!
//! A name the caller may not have is as unknown as one that nobody has: an error for that name, while the others are
//! answered and the stream goes on; should the caller become entitled to it, it is delivered.

use std::collections::{BTreeMap, BTreeSet};

use data_encoding::HEXLOWER;
use hoplite_host::slots::Slot;
use hoplite_identity::{SpiffeId, TrustBundle, TrustDomain, X509Svid};
use hoplite_wire::sds::secret_discovery_service_server::SecretDiscoveryService;
use hoplite_wire::sds::{
    CertificateValidationContext, DataSource, DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest,
    DiscoveryResponse, Resource, ResourceError, ResourceName, Secret, SpiffeCertValidatorConfig, TlsCertificate,
    TypedExtensionConfig, data_source, secret, spiffe_cert_validator_config,
};
use prost::Message;
use ring::digest::{Context, SHA256};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::socket::admission::{Responses, admit};
use crate::socket::session::{Entitlement, Session, Sessions, Wake};

/// The only type this service has.
const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";

const SPIFFE_VALIDATOR: &str = "envoy.tls.cert_validator.spiffe";
const SPIFFE_VALIDATOR_CONFIG: &str =
    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig";

/// Names on one stream. Envoy asks for one or two.
const NAMES_MAX: usize = 1024;

/// A SPIFFE ID has at most 2048 bytes (ID-4), and no other name is longer.
const NAME_BYTES_MAX: usize = 2048;

/// In a delta subscription: everything.
const WILDCARD: &str = "*";

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct SdsService {
    sessions: Sessions,
}

/// A secret under the name it was asked for, and a version that changes when, and only when, its content does.
#[derive(Debug, Clone, PartialEq)]
struct Named {
    name: String,
    version: String,
    secret: Secret,
}

/// What a state-of-the-world stream is subscribed to and was told. Pure.
#[derive(Debug, Default)]
struct WorldStream {
    /// None before the first request; empty for everything.
    names: Option<Vec<String>>,
    nonce: String,
    version: u64,
    /// The versions sent, by name; unknown names are not among them.
    told: BTreeMap<String, String>,
}

/// What a delta stream is subscribed to and was told. Pure.
#[derive(Debug, Default)]
struct DeltaStream {
    wildcard: bool,
    names: BTreeSet<String>,
    /// The versions the client has, by name.
    told: BTreeMap<String, String>,
    /// Names whose absence the client has been told of.
    missing: BTreeSet<String>,
    nonce: String,
    version: u64,
    begun: bool,
}

/// What a request calls for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reaction {
    /// An acknowledgement, or an answer to something long superseded.
    Nothing,
    /// The subscription changed: answer, even if with nothing new.
    Answer,
}

// === impl SdsService ===

impl SdsService {
    pub(crate) fn new(sessions: Sessions) -> Self {
        Self { sessions }
    }
}

#[tonic::async_trait]
impl SecretDiscoveryService for SdsService {
    type StreamSecretsStream = Responses<DiscoveryResponse>;
    type DeltaSecretsStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        let (caller, slot) = admit(request.extensions())?;
        let (sender, receiver) = mpsc::channel(1);
        let protocol = Conversation {
            session: self.sessions.session(&caller),
            _slot: slot,
            sender,
        };
        tokio::spawn(protocol.run(request.into_inner(), WorldStream::default()));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn delta_secrets(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        let (caller, slot) = admit(request.extensions())?;
        let (sender, receiver) = mpsc::channel(1);
        let protocol = Conversation {
            session: self.sessions.session(&caller),
            _slot: slot,
            sender,
        };
        tokio::spawn(protocol.run(request.into_inner(), DeltaStream::default()));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn fetch_secrets(&self, request: Request<DiscoveryRequest>) -> Result<Response<DiscoveryResponse>, Status> {
        let (caller, _slot) = admit(request.extensions())?;
        let mut stream = WorldStream::default();
        stream.request(request.into_inner(), caller.pid)?;
        let entitlement = self.sessions.session(&caller).entitlement().await?;
        stream
            .answer(&entitlement, true)
            .map(Response::new)
            .ok_or_else(|| Status::internal("there is no answer"))
    }
}

/// The two stream protocols, as far as the shell can see.
trait Protocol {
    type Request: Send;
    type Response: Send;
    /// Takes a request; the error ends the stream.
    fn request(&mut self, request: Self::Request, pid: i32) -> Result<Reaction, Status>;
    /// Whether there is a subscription that could be answered.
    fn is_subscribed(&self) -> bool;
    /// What to tell now: when `asked`, in any case; else only when something subscribed to has changed.
    fn answer(&mut self, entitlement: &Entitlement, asked: bool) -> Option<Self::Response>;
}

/// One stream and its two ends.
struct Conversation<T> {
    session: Session,
    _slot: Slot,
    sender: mpsc::Sender<Result<T, Status>>,
}

impl<T: Send> Conversation<T> {
    async fn run<P: Protocol<Response = T> + Send>(mut self, mut requests: Streaming<P::Request>, mut protocol: P) {
        loop {
            let asked = tokio::select! {
                wake = self.session.wake() => match wake {
                    Wake::Look => false,
                    Wake::End => return,
                },
                () = self.sender.closed() => return,
                request = requests.message() => match request {
                    Ok(Some(request)) => match protocol.request(request, self.session.pid()) {
                        Ok(Reaction::Answer) => true,
                        Ok(Reaction::Nothing) => continue,
                        Err(status) => {
                            self.session.deliver(&self.sender, Err(status)).await;
                            return;
                        }
                    },
                    Ok(None) | Err(_) => return,
                },
            };
            if !protocol.is_subscribed() {
                continue;
            }
            let item = match self.session.entitlement().await {
                Ok(entitlement) => protocol.answer(&entitlement, asked).map(Ok),
                Err(status) => Some(Err(status)),
            };
            let Some(item) = item else { continue };
            let last = item.is_err();
            if self.session.deliver(&self.sender, item).await == Wake::End || last {
                return;
            }
        }
    }
}

// === impl WorldStream ===

impl Protocol for WorldStream {
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;

    fn request(&mut self, request: DiscoveryRequest, pid: i32) -> Result<Reaction, Status> {
        check_type(&request.type_url)?;
        check_names(&request.resource_names)?;
        if !request.response_nonce.is_empty() && request.response_nonce != self.nonce {
            return Ok(Reaction::Nothing); // about an answer that has been superseded meanwhile
        }
        if let Some(error) = &request.error_detail {
            refused(pid, &self.told, &error.message);
        }
        let mut names = request.resource_names;
        let mut seen = BTreeSet::new();
        names.retain(|name| seen.insert(name.clone()));
        // A request without a nonce begins the conversation, whatever was said before.
        let same = self.names.as_ref() == Some(&names) && !request.response_nonce.is_empty();
        self.names = Some(names);
        Ok(if same { Reaction::Nothing } else { Reaction::Answer })
    }

    fn is_subscribed(&self) -> bool {
        self.names.is_some()
    }

    fn answer(&mut self, entitlement: &Entitlement, asked: bool) -> Option<DiscoveryResponse> {
        let names = self.names.as_ref()?;
        let all = if names.is_empty() {
            everything(entitlement)
        } else {
            names.clone()
        };
        let (mut resources, mut resource_errors, mut told) = (Vec::new(), Vec::new(), BTreeMap::new());
        for name in &all {
            match resolve(entitlement, name) {
                Some(named) => {
                    told.insert(named.name, named.version);
                    resources.push(any(SECRET, &named.secret));
                }
                None => resource_errors.push(unknown(name)),
            }
        }
        if !asked && told == self.told {
            return None;
        }
        self.told = told;
        self.version += 1;
        self.nonce = nonce();
        Some(DiscoveryResponse {
            version_info: self.version.to_string(),
            resources,
            type_url: SECRET.to_owned(),
            nonce: self.nonce.clone(),
            resource_errors,
        })
    }
}

// === impl DeltaStream ===

impl Protocol for DeltaStream {
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;

    fn request(&mut self, request: DeltaDiscoveryRequest, pid: i32) -> Result<Reaction, Status> {
        check_type(&request.type_url)?;
        check_names(&request.resource_names_subscribe)?;
        check_names(&request.resource_names_unsubscribe)?;
        if let Some(error) = request.error_detail.filter(|_| request.response_nonce == self.nonce) {
            refused(pid, &self.told, &error.message);
        }
        let changes = !request.resource_names_subscribe.is_empty() || !request.resource_names_unsubscribe.is_empty();
        if !self.begun {
            // A first request that names nothing subscribes to everything.
            self.wildcard = request.resource_names_subscribe.is_empty();
            // What the client kept from an earlier stream need not be sent again, if it is still what it was.
            let kept = request.initial_resource_versions;
            if kept.len() > NAMES_MAX {
                return Err(too_many());
            }
            self.told = kept.into_iter().collect();
        }
        let first = !std::mem::replace(&mut self.begun, true);
        for name in request.resource_names_unsubscribe {
            if name == WILDCARD {
                self.wildcard = false;
            }
            self.names.remove(&name);
            self.missing.remove(&name);
            self.told.remove(&name);
        }
        for name in request.resource_names_subscribe {
            if name == WILDCARD {
                self.wildcard = true;
                continue;
            }
            if !first {
                self.told.remove(&name); // asked for again, so sent again
            }
            self.missing.remove(&name);
            self.names.insert(name);
        }
        if self.names.len() > NAMES_MAX {
            return Err(too_many());
        }
        Ok(if first || changes {
            Reaction::Answer
        } else {
            Reaction::Nothing
        })
    }

    fn is_subscribed(&self) -> bool {
        self.begun
    }

    fn answer(&mut self, entitlement: &Entitlement, asked: bool) -> Option<DeltaDiscoveryResponse> {
        let mut wanted = self.names.clone();
        if self.wildcard {
            wanted.extend(everything(entitlement));
        }
        let (mut resources, mut resource_errors, mut removed_resources) = (Vec::new(), Vec::new(), Vec::new());
        for name in &wanted {
            match resolve(entitlement, name) {
                Some(named) => {
                    self.missing.remove(name);
                    if self.told.get(name) != Some(&named.version) {
                        self.told.insert(name.clone(), named.version.clone());
                        let resource = Some(any(SECRET, &named.secret));
                        resources.push(Resource {
                            version: named.version,
                            resource,
                            name: named.name,
                        });
                    }
                }
                None => {
                    if self.told.remove(name).is_some() {
                        removed_resources.push(name.clone());
                        self.missing.insert(name.clone());
                    } else if self.missing.insert(name.clone()) {
                        resource_errors.push(unknown(name));
                    }
                }
            }
        }
        // What the wildcard once brought, or an earlier stream, and is no longer there.
        let gone: Vec<_> = self
            .told
            .keys()
            .filter(|name| !wanted.contains(*name))
            .cloned()
            .collect();
        for name in gone {
            self.told.remove(&name);
            removed_resources.push(name);
        }
        if !asked && resources.is_empty() && resource_errors.is_empty() && removed_resources.is_empty() {
            return None;
        }
        self.version += 1;
        self.nonce = nonce();
        Some(DeltaDiscoveryResponse {
            system_version_info: self.version.to_string(),
            resources,
            type_url: SECRET.to_owned(),
            nonce: self.nonce.clone(),
            removed_resources,
            resource_errors,
        })
    }
}

/// Envoy leaves the type out where the service implies it.
fn check_type(type_url: &str) -> Result<(), Status> {
    if type_url.is_empty() || type_url == SECRET {
        return Ok(());
    }
    let shown: String = type_url.chars().take(200).flat_map(char::escape_default).collect();
    Err(Status::invalid_argument(format!(
        "`{shown}` is not served here, only `{SECRET}`"
    )))
}

fn check_names(names: &[String]) -> Result<(), Status> {
    if names.len() > NAMES_MAX {
        return Err(too_many());
    }
    if names.iter().any(|name| name.len() > NAME_BYTES_MAX) {
        return Err(Status::invalid_argument(format!(
            "a secret's name has more than {NAME_BYTES_MAX} bytes"
        )));
    }
    Ok(())
}

fn too_many() -> Status {
    Status::invalid_argument(format!("more than {NAMES_MAX} secrets are asked for on one stream"))
}

fn refused(pid: i32, told: &BTreeMap<String, String>, reason: &str) {
    let reason: String = reason.chars().take(500).flat_map(char::escape_debug).collect();
    let names: Vec<_> = told.keys().take(5).collect();
    tracing::warn!(
        pid,
        reason,
        ?names,
        "Envoy refuses the secrets it was sent, and keeps those that it had"
    );
}

/// What a caller gets that asks for no names: all of its identities and bundles, each under its own name.
fn everything(entitlement: &Entitlement) -> Vec<String> {
    let mut names = Vec::new();
    for identity in &entitlement.identities {
        let name = identity.svid.spiffe_id().as_str();
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    names.extend(
        entitlement
            .bundles()
            .map(|bundle| bundle.trust_domain().id().to_string()),
    );
    names
}

/// The secret of this name, if the caller may have it.
fn resolve(entitlement: &Entitlement, name: &str) -> Option<Named> {
    let first = entitlement.identities.first()?;
    match name {
        "default" => return Some(certificate(name, &first.svid)),
        "ROOTCA" => {
            return entitlement
                .bundle(first.svid.spiffe_id().trust_domain())
                .map(|bundle| authorities(name, bundle));
        }
        "ALL" => return Some(validator(name, entitlement)),
        _ => {}
    }
    let trust_domain = match SpiffeId::parse(name) {
        Ok(id) if id.is_trust_domain() => id.trust_domain().clone(),
        Ok(id) => {
            let identity = entitlement
                .identities
                .iter()
                .find(|identity| identity.svid.spiffe_id() == &id)?;
            return Some(certificate(name, &identity.svid));
        }
        Err(_) => TrustDomain::parse(name).ok()?,
    };
    entitlement
        .bundle(&trust_domain)
        .map(|bundle| authorities(name, bundle))
}

fn certificate(name: &str, svid: &X509Svid) -> Named {
    let certificate = TlsCertificate {
        certificate_chain: inline(svid.chain_pem().into_bytes()),
        private_key: inline(svid.key_pem().as_bytes().to_vec()),
    };
    named(name, svid.chain_der(), secret::Type::TlsCertificate(certificate))
}

fn authorities(name: &str, bundle: &TrustBundle) -> Named {
    let context = CertificateValidationContext {
        trusted_ca: inline(bundle.to_pem().into_bytes()),
        custom_validator_config: None,
    };
    named(name, bundle.to_der(), secret::Type::ValidationContext(context))
}

/// Envoy's own SPIFFE validator: each peer against the bundle of its own trust domain only.
fn validator(name: &str, entitlement: &Entitlement) -> Named {
    let trust_domains = entitlement
        .bundles()
        .map(|bundle| spiffe_cert_validator_config::TrustDomain {
            name: bundle.trust_domain().to_string(),
            trust_bundle: inline(bundle.to_pem().into_bytes()),
        });
    let config = SpiffeCertValidatorConfig {
        trust_domains: trust_domains.collect(),
    };
    let content = config.encode_to_vec();
    let custom = TypedExtensionConfig {
        name: SPIFFE_VALIDATOR.to_owned(),
        typed_config: Some(any(SPIFFE_VALIDATOR_CONFIG, &config)),
    };
    let context = CertificateValidationContext {
        trusted_ca: None,
        custom_validator_config: Some(custom),
    };
    named(name, content, secret::Type::ValidationContext(context))
}

/// `public` is all of the secret but its key, which a certificate implies.
fn named(name: &str, public: Vec<u8>, content: secret::Type) -> Named {
    let mut context = Context::new(&SHA256);
    context.update(&public);
    let version = HEXLOWER.encode(context.finish().as_ref().get(..16).unwrap_or_default());
    Named {
        name: name.to_owned(),
        version,
        secret: Secret {
            name: name.to_owned(),
            r#type: Some(content),
        },
    }
}

fn unknown(name: &str) -> ResourceError {
    ResourceError {
        resource_name: Some(ResourceName { name: name.to_owned() }),
        error_detail: Some(hoplite_wire::sds::Status {
            code: Code::NotFound.into(),
            message: "this workload has no such secret; it is delivered should it be registered".to_owned(),
        }),
    }
}

fn inline(bytes: Vec<u8>) -> Option<DataSource> {
    Some(DataSource {
        specifier: Some(data_source::Specifier::InlineBytes(bytes)),
    })
}

fn any(type_url: &str, message: &impl Message) -> prost_types::Any {
    prost_types::Any {
        type_url: type_url.to_owned(),
        value: message.encode_to_vec(),
    }
}

/// Unpredictable, so that an acknowledgement can only be of what was received.
fn nonce() -> String {
    let mut bytes = [0; 8];
    let _ = SystemRandom::new().fill(&mut bytes);
    HEXLOWER.encode(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::socket::session::Identity;
    use crate::testing::{World, own};
    use hoplite_identity::BundleSet;
    use hoplite_identity::testing::TestAuthority;
    use hoplite_wire::sds::secret_discovery_service_client::SecretDiscoveryServiceClient;
    use std::collections::HashMap;
    use std::sync::Arc;
    use std::time::Duration;

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
            assert_eq!(
                stream.answer(&fewer, false).unwrap().removed_resources,
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
}
