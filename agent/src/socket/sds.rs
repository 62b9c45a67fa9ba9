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
//!
//! Envoy keeps a secret that it is told is gone. So authorities that a client has, and may have no more, are replaced by a validation
//! context that vouches for nobody; so are those of a trust domain that has none.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use data_encoding::HEXLOWER;
use hoplite_host::slots::Slot;
use hoplite_identity::{SpiffeId, TrustBundle, TrustDomain, X509Svid};
use hoplite_wire::sds::secret_discovery_service_server::{SERVICE_NAME, SecretDiscoveryService};
use hoplite_wire::sds::{
    CertificateValidationContext, DataSource, DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest,
    DiscoveryResponse, Resource, ResourceError, ResourceName, Secret, SpiffeCertValidatorConfig, TlsCertificate,
    TypedExtensionConfig, data_source, secret, spiffe_cert_validator_config,
};
use prost::Message;
use ring::digest::{Context, SHA256};
use ring::rand::{SecureRandom, SystemRandom};
use tonic::{Code, Request, Response, Status, Streaming};

use crate::attest::LocalProcess;
use crate::refused::Refused;
use crate::socket::admission::admit;
use crate::socket::session::{Entitlement, Session, Sessions, Wake};
use crate::socket::turns::{Teller, Turns};

/// The only type this service has.
const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";

const SPIFFE_VALIDATOR: &str = "envoy.tls.cert_validator.spiffe";
const SPIFFE_VALIDATOR_CONFIG: &str =
    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig";

/// Names on one stream. Envoy asks for one or two.
const NAMES_MAX: usize = 1024;

/// A SPIFFE ID has at most 2048 bytes (ID-4), and no other name is longer.
const NAME_BYTES_MAX: usize = 2048;

/// The SHA-256 of no certificate.
const NO_CERTIFICATE: &str = "0000000000000000000000000000000000000000000000000000000000000000";

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
pub(crate) struct WorldStream {
    /// None before the first request; empty for everything.
    names: Option<Vec<String>>,
    nonce: String,
    version: u64,
    /// The versions sent, by name; unknown names are not among them.
    told: BTreeMap<String, String>,
    /// It has secrets of an earlier stream, of these or other names.
    resumes: bool,
}

/// What a delta stream is subscribed to and was told. Pure.
#[derive(Debug, Default)]
pub(crate) struct DeltaStream {
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
pub(crate) enum Reaction {
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
    type StreamSecretsStream = Turns<Conversation<WorldStream>>;
    type DeltaSecretsStream = Turns<Conversation<DeltaStream>>;

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        let (caller, slot) = admit(request.extensions())?;
        Ok(Response::new(Turns::new(Conversation {
            session: self.sessions.session(&caller),
            refused: Arc::clone(&self.sessions.refused),
            _slot: slot,
            requests: request.into_inner(),
            protocol: WorldStream::default(),
        })))
    }

    async fn delta_secrets(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        let (caller, slot) = admit(request.extensions())?;
        Ok(Response::new(Turns::new(Conversation {
            session: self.sessions.session(&caller),
            refused: Arc::clone(&self.sessions.refused),
            _slot: slot,
            requests: request.into_inner(),
            protocol: DeltaStream::default(),
        })))
    }

    async fn fetch_secrets(&self, request: Request<DiscoveryRequest>) -> Result<Response<DiscoveryResponse>, Status> {
        let (caller, _slot) = admit(request.extensions())?;
        let mut stream = WorldStream::default();
        let refused = &self.sessions.refused;
        let asked = stream.request(request.into_inner(), caller.pid);
        asked.inspect_err(|status| refused.call(&caller, SERVICE_NAME, status.message()))?;
        let entitlement = self.sessions.session(&caller).entitlement().await?;
        let answer = stream.answer(&entitlement, true);
        let answer = answer.ok_or_else(|| Status::internal("there is no answer"))?;
        tell_unknown(refused, &caller, WorldStream::unknown(&answer));
        Ok(Response::new(answer))
    }
}

/// The two stream protocols, as far as the shell can see.
pub(crate) trait Protocol: Send + 'static {
    type Request: Send + 'static;
    type Response: Send;
    /// Takes a request; the error ends the stream.
    fn request(&mut self, request: Self::Request, pid: i32) -> Result<Reaction, Status>;
    /// Whether there is a subscription that could be answered.
    fn is_subscribed(&self) -> bool;
    /// The names in an answer that are not there for its receiver.
    fn unknown(response: &Self::Response) -> &[ResourceError];
    /// What to tell now: when `asked`, in any case; else only when something subscribed to has changed.
    fn answer(&mut self, entitlement: &Entitlement, asked: bool) -> Option<Self::Response>;
}

/// One stream and its two ends.
pub(crate) struct Conversation<P: Protocol> {
    session: Session,
    refused: Arc<Refused>,
    _slot: Slot,
    requests: Streaming<P::Request>,
    protocol: P,
}

impl<P: Protocol> Teller for Conversation<P> {
    type Answer = P::Response;

    async fn next(&mut self) -> Option<Result<P::Response, Status>> {
        loop {
            let asked = tokio::select! {
                wake = self.session.wake() => match wake {
                    Wake::Look => false,
                    Wake::End => return None,
                },
                request = self.requests.message() => match request {
                    Ok(Some(request)) => match self.protocol.request(request, self.session.caller().pid) {
                        Ok(Reaction::Answer) => true,
                        Ok(Reaction::Nothing) => continue,
                        Err(status) => {
                            self.refused.call(self.session.caller(), SERVICE_NAME, status.message());
                            return Some(Err(status));
                        }
                    },
                    Ok(None) => return None,
                    Err(status) => {
                        if matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted) {
                            self.refused.call(self.session.caller(), SERVICE_NAME, status.message());
                        }
                        return None;
                    }
                },
            };
            if !self.protocol.is_subscribed() {
                continue;
            }
            // In a box, because a stream that waits has no use for it.
            let entitlement = match Box::pin(self.session.entitlement()).await {
                Ok(entitlement) => entitlement,
                Err(status) => return Some(Err(status)),
            };
            if let Some(response) = self.protocol.answer(&entitlement, asked) {
                tell_unknown(&self.refused, self.session.caller(), P::unknown(&response));
                return Some(Ok(response));
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
        // A client may name the nonce of an earlier stream when it connects anew: the first request subscribes all the same.
        let begun = self.names.is_some();
        if begun && !request.response_nonce.is_empty() && request.response_nonce != self.nonce {
            return Ok(Reaction::Nothing); // about an answer that has been superseded meanwhile
        }
        if let Some(error) = &request.error_detail {
            refused(pid, &self.told, &error.message);
        }
        self.resumes |= !begun && !request.version_info.is_empty();
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

    fn unknown(response: &DiscoveryResponse) -> &[ResourceError] {
        &response.resource_errors
    }

    fn answer(&mut self, entitlement: &Entitlement, asked: bool) -> Option<DiscoveryResponse> {
        let names = self.names.as_ref()?;
        let all = if names.is_empty() {
            let known = everything(entitlement);
            let gone = self
                .told
                .keys()
                .filter(|name| is_context(name) && !known.contains(name));
            let gone: Vec<String> = gone.cloned().collect();
            [known, gone].concat()
        } else {
            names.clone()
        };
        let (mut resources, mut resource_errors, mut told) = (Vec::new(), Vec::new(), BTreeMap::new());
        for name in &all {
            match resolve_for(entitlement, name, self.resumes || self.told.contains_key(name)) {
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

    fn unknown(response: &DeltaDiscoveryResponse) -> &[ResourceError] {
        &response.resource_errors
    }

    fn answer(&mut self, entitlement: &Entitlement, asked: bool) -> Option<DeltaDiscoveryResponse> {
        let mut wanted = self.names.clone();
        if self.wildcard {
            wanted.extend(everything(entitlement));
            wanted.extend(self.told.keys().filter(|name| is_context(name)).cloned());
        }
        let (mut resources, mut resource_errors, mut removed_resources) = (Vec::new(), Vec::new(), Vec::new());
        for name in &wanted {
            match resolve_for(entitlement, name, self.told.contains_key(name)) {
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

/// A misspelt name is waited for without a word on Envoy's side.
fn tell_unknown(refused: &Refused, caller: &LocalProcess, unknown: &[ResourceError]) {
    for name in unknown.iter().filter_map(|error| error.resource_name.as_ref()) {
        refused.unknown_secret(caller, &name.name);
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

/// The secret of this name for a client that may hold one of before.
fn resolve_for(entitlement: &Entitlement, name: &str, is_held: bool) -> Option<Named> {
    resolve(entitlement, name).or_else(|| (is_held && is_context(name)).then(|| nobody(name, entitlement)))
}

/// Whether a secret of this name is a validation context.
fn is_context(name: &str) -> bool {
    let is_trust_domain = || match SpiffeId::parse(name) {
        Ok(id) => id.is_trust_domain(),
        Err(_) => TrustDomain::parse(name).is_ok(),
    };
    matches!(name, "ROOTCA" | "ALL") || (name != "default" && is_trust_domain())
}

/// The secret of this name, if the caller may have it.
fn resolve(entitlement: &Entitlement, name: &str) -> Option<Named> {
    let first = entitlement.identities.first()?;
    match name {
        "default" => return Some(certificate(name, &first.svid)),
        "ROOTCA" => {
            return entitlement
                .bundle(first.svid.spiffe_id().trust_domain())
                .map(|bundle| authorities(name, bundle, entitlement));
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
        .map(|bundle| authorities(name, bundle, entitlement))
}

fn certificate(name: &str, svid: &X509Svid) -> Named {
    let certificate = TlsCertificate {
        certificate_chain: inline(svid.chain_pem().into_bytes()),
        private_key: inline(svid.key_pem().as_bytes().to_vec()),
    };
    named(name, svid.chain_der(), secret::Type::TlsCertificate(certificate))
}

/// A trust domain without authorities has nobody vouched for. Envoy takes an empty `trusted_ca` for none, and so for everybody.
fn authorities(name: &str, bundle: &TrustBundle, entitlement: &Entitlement) -> Named {
    if bundle.authorities().is_empty() {
        return nobody(name, entitlement);
    }
    let context = CertificateValidationContext {
        trusted_ca: inline(bundle.to_pem().into_bytes()),
        ..CertificateValidationContext::default()
    };
    named(name, bundle.to_der(), secret::Type::ValidationContext(context))
}

/// Only the certificate of a digest that no certificate has, if one of our authorities vouches for it. Those are there because Envoy matches
/// names, which the context is often combined with, only below an authority.
fn nobody(name: &str, entitlement: &Entitlement) -> Named {
    let own = entitlement.identities.first();
    let own = own.and_then(|own| entitlement.bundle(own.svid.spiffe_id().trust_domain()));
    let own = own.filter(|bundle| !bundle.authorities().is_empty());
    let public = own.map(|bundle| bundle.to_der()).unwrap_or_default();
    let context = CertificateValidationContext {
        trusted_ca: own.and_then(|bundle| inline(bundle.to_pem().into_bytes())),
        verify_certificate_hash: vec![NO_CERTIFICATE.to_owned()],
        custom_validator_config: None,
    };
    let content = [NO_CERTIFICATE.as_bytes(), &public].concat();
    named(name, content, secret::Type::ValidationContext(context))
}

/// Envoy's own SPIFFE validator: each peer against the bundle of its own trust domain only.
fn validator(name: &str, entitlement: &Entitlement) -> Named {
    // It refuses a configuration with an empty bundle in it, and then keeps the one of before.
    let with_authorities = (entitlement.bundles()).filter(|bundle| !bundle.authorities().is_empty());
    let trust_domains = with_authorities.map(|bundle| spiffe_cert_validator_config::TrustDomain {
        name: bundle.trust_domain().to_string(),
        trust_bundle: inline(bundle.to_pem().into_bytes()),
    });
    let config = SpiffeCertValidatorConfig {
        trust_domains: trust_domains.collect(),
    };
    if config.trust_domains.is_empty() {
        return nobody(name, entitlement);
    }
    let content = config.encode_to_vec();
    let custom = TypedExtensionConfig {
        name: SPIFFE_VALIDATOR.to_owned(),
        typed_config: Some(any(SPIFFE_VALIDATOR_CONFIG, &config)),
    };
    let context = CertificateValidationContext {
        custom_validator_config: Some(custom),
        ..CertificateValidationContext::default()
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
mod tests;
