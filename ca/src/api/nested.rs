//! What CAs that are nested under this one ask: that their authorities are signed, that their keys for JWT-SVIDs are published, and the trust
//! bundle.
//!
//! They are workloads of an agent of this CA, and known by their SVIDs. Whether one may still is asked at every call and on every turn of a
//! stream: its entry may have gone, its agent may be banned.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use data_encoding::HEXLOWER;
use hoplite_host::bucket::{Bucket, Rate};
use hoplite_host::clock;
use hoplite_host::refusals::Refusals;
use hoplite_host::shutdown::Shutdown;
use hoplite_identity::{EntryId, SpiffeId, VerifiedPeer};
use hoplite_wire::ca as wire;
use ring::agreement::{ECDH_P256, EphemeralPrivateKey, UnparsedPublicKey, agree_ephemeral};
use ring::rand::SystemRandom;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::acts::{Acts, Asked};
use crate::api::messages;
use crate::api::status::ours;
use crate::config::TTL_MIN;
use crate::issuance::{self, SubjectKey};
use crate::issuer::Issuer;
use crate::listener::AgentCaller;
use crate::nested::record::{JWT_KEYS_MAX, Signed};
use crate::nested::writes::{NoteSigned, PublishKeys};
use crate::record;
use crate::registry::Registry;
use crate::rotation::Rotation;

/// How often one nested CA may publish other keys: each time, everybody gets another trust bundle. Its keys turn with its authorities.
const PUBLISHES: Rate = Rate {
    burst: 16,
    every: Duration::from_secs(30),
};

/// The service. Clones are the same one.
#[derive(Clone)]
pub(crate) struct NestedCas(Arc<Shared>);

struct Shared {
    registry: Registry,
    issuer: Issuer,
    acts: Acts,
    rotation: Rotation,
    /// By the names of nested CAs that are registered.
    publishes: Mutex<HashMap<String, Bucket>>,
    /// Calls that were refused, by who called and what, for the log.
    refused: Refusals<(SpiffeId, &'static str)>,
    shutdown: Shutdown,
}

/// A nested CA that may ask.
struct Nested {
    id: SpiffeId,
    name: String,
    /// The entry that vouches for it.
    entry: EntryId,
}

/// Why somebody is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum NotNested {
    #[error("this call needs the SVID of a nested CA; show it in the handshake")]
    NoCertificate,
    #[error("`{0}` is no nested CA; only `/hoplite/nested/<name>` may call this")]
    Other(SpiffeId),
    #[error("the SVID has ended; connect with a newer one")]
    Expired,
    #[error("this CA did not sign the SVID of `{0}`; a nested CA has it from an agent of the CA above it")]
    NotOfThisCa(SpiffeId),
    #[error(
        "no entry of `{0}` is registered, or it was after this SVID, or twice, or its agent was banned or evicted, or two have its key"
    )]
    NotRegistered(SpiffeId),
}

// === impl NotNested ===

impl From<NotNested> for Status {
    fn from(error: NotNested) -> Self {
        let text = error.to_string();
        match error {
            NotNested::NoCertificate | NotNested::Expired => Self::unauthenticated(text),
            NotNested::Other(_) | NotNested::NotOfThisCa(_) | NotNested::NotRegistered(_) => {
                Self::permission_denied(text)
            }
        }
    }
}

// === impl NestedCas ===

impl NestedCas {
    pub(crate) fn new(registry: Registry, issuer: Issuer, acts: Acts, rotation: Rotation, shutdown: Shutdown) -> Self {
        Self(Arc::new(Shared {
            registry,
            issuer,
            acts,
            rotation,
            publishes: Mutex::default(),
            refused: Refusals::default(),
            shutdown,
        }))
    }

    /// Whether the owner of a verified certificate is a nested CA that may ask now.
    fn nested(&self, peer: &VerifiedPeer) -> Result<Nested, NotNested> {
        let id = peer.spiffe_id();
        let name = id.nested_ca().ok_or_else(|| NotNested::Other(id.clone()))?;
        if clock::now() >= peer.not_after() {
            return Err(NotNested::Expired);
        }
        let index = self.0.registry.index();
        // INVARIANT: a CA that is nested here may sign any SPIFFE ID, also that of another nested CA.
        if !index.authority.is_own(peer.signer()) {
            return Err(NotNested::NotOfThisCa(id.clone()));
        }
        let not_registered = || NotNested::NotRegistered(id.clone());
        // One alone vouches, so that all that is signed goes with it.
        let mut registered = index.entries.nested(name);
        let (Some(entry), None) = (registered.next(), registered.next()) else {
            return Err(not_registered());
        };
        let agent = entry.parent.agent().and_then(|agent| index.agents.get(agent));
        let is_there = agent.is_some_and(|agent| !agent.banned && agent.contested.is_none());
        // An SVID of an entry that went before this one came is nobody's.
        let issued_at_latest = record::unix_seconds(peer.leaf().not_before() + issuance::BACK_DATED);
        if !is_there || issued_at_latest < entry.created_at {
            return Err(not_registered());
        }
        Ok(Nested {
            id: id.clone(),
            name: name.to_owned(),
            entry: entry.id.clone(),
        })
    }

    /// The caller, if it is one.
    fn caller<T>(&self, request: &Request<T>, call: &'static str) -> Result<(VerifiedPeer, Nested, String), Status> {
        let caller: Option<&AgentCaller> = request.extensions().get();
        let caller = caller.ok_or_else(|| ours(&"the connection has no caller"))?;
        let peer = caller.peer.clone().ok_or(NotNested::NoCertificate)?;
        let nested = self
            .nested(&peer)
            .map_err(|error| self.refused(peer.spiffe_id(), call, error))?;
        Ok((peer, nested, caller.address.ip().to_string()))
    }

    /// Whoever is refused asks again: one line in a while.
    fn refused(&self, id: &SpiffeId, call: &'static str, refused: impl Into<Status>) -> Status {
        let refused = refused.into();
        if let Some(times) = self.0.refused.count((id.clone(), call), clock::moment()) {
            let reason = refused.message();
            tracing::warn!(target: "hoplite::audit", nested = %id, call, outcome = "refused", reason, times, "call");
        }
        refused
    }

    async fn sign(
        &self,
        nested: &Nested,
        source: String,
        request: wire::SignAuthorityRequest,
    ) -> Result<wire::SignAuthorityResponse, Status> {
        let key = SubjectKey::from_csr(&request.csr)?;
        let ttl = Duration::from_secs(request.ttl_seconds);
        if ttl < TTL_MIN {
            let text = format!("`ttl_seconds`: {}; at least {}", request.ttl_seconds, TTL_MIN.as_secs());
            return Err(Status::invalid_argument(text));
        }
        let (now, ttl) = (clock::now(), ttl.min(self.0.rotation.plan().ttl));
        let (issuer, domain) = (self.0.issuer.clone(), nested.id.trust_domain().clone());
        let minting = tokio::task::spawn_blocking(move || issuer.nested_authority(&domain, &key, ttl, now));
        let minted = minting.await.map_err(|_| ours(&"the CA failed while signing"))??;
        let signed = Signed {
            key: minted.key.to_string(),
            serial: minted.serial.clone(),
            entry: nested.entry.to_string(),
            not_after: record::unix_seconds(minted.not_after),
            revoked: false,
            ended: false,
        };
        let note = NoteSigned {
            name: nested.name.clone(),
            entry: nested.entry.clone(),
            signed,
            now,
        };
        self.0.registry.write(note).await?;
        let asked = Asked {
            requester: nested.id.to_string(),
            how: "sign_authority",
            source: Some(source),
        };
        let written = self.0.acts.issued_authority(&minted, asked, &nested.entry)?;
        tracing::warn!(
            target: "hoplite::audit",
            nested = %nested.id,
            entry = %nested.entry,
            serial = minted.serial,
            key = %minted.key,
            not_after = record::unix_seconds(minted.not_after),
            outcome = "issued",
            "sign_authority"
        );
        let leaving = minted.leaves(&self.0.acts.settled([written]).await?);
        Ok(wire::SignAuthorityResponse {
            chain: leaving.chain.iter().map(|der| der.to_vec()).collect(),
            root: leaving.root.to_vec(),
            bundle: Some(self.bundle()?),
        })
    }

    async fn publish(&self, nested: &Nested, points: Vec<Vec<u8>>) -> Result<(), Status> {
        if points.len() > JWT_KEYS_MAX {
            let text = format!("{} keys for JWT-SVIDs; publish at most {JWT_KEYS_MAX}", points.len());
            return Err(Status::invalid_argument(text));
        }
        let mut known = BTreeSet::new();
        for point in &points {
            // Whoever reads the bundle could stumble over one, and read none of the others.
            if !is_p256(point) {
                let text = "a key for JWT-SVIDs cannot be used: it is no point of P-256";
                return Err(Status::invalid_argument(text));
            }
            known.insert(HEXLOWER.encode(point));
        }
        if !self.publishes(&nested.name, |bucket, now| bucket.has_token(now)) {
            let every = PUBLISHES.every.as_secs();
            let text = format!(
                "other keys for JWT-SVIDs were published too often; the next may come in {every} s at the latest"
            );
            return Err(Status::resource_exhausted(text));
        }
        let count = known.len().to_string();
        let publish = PublishKeys {
            name: nested.name.clone(),
            entry: nested.entry.clone(),
            points: known,
            now: clock::now(),
        };
        if self.0.registry.write(publish).await? {
            self.publishes(&nested.name, Bucket::charge);
            tracing::info!(target: "hoplite::audit", nested = %nested.id, keys = count, outcome = "done", "publish_jwt_keys");
            let detail = [("keys", count), ("entry", nested.entry.to_string())];
            self.0
                .acts
                .own_act("PublishNestedJwtKeys", nested.id.to_string(), detail);
        }
        Ok(())
    }

    /// What one nested CA may publish yet.
    fn publishes<T>(&self, name: &str, of: impl FnOnce(&mut Bucket, Instant) -> T) -> T {
        let now = clock::moment();
        let mut all = self.0.publishes.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, bucket| !bucket.is_full(now));
        let bucket = all
            .entry(name.to_owned())
            .or_insert_with(|| Bucket::new(PUBLISHES, now));
        of(bucket, now)
    }

    fn bundle(&self) -> Result<wire::Bundle, Status> {
        let bundle = self.0.registry.index().authority.bundle().cloned();
        let bundle = bundle.ok_or_else(|| ours(&"there is no trust bundle"))?;
        Ok(messages::bundle(&bundle))
    }

    /// Sends each trust bundle, until the caller may ask no more.
    async fn tell(self, peer: VerifiedPeer, to: mpsc::Sender<Result<wire::Bundle, Status>>) {
        let mut bundles = self.0.registry.bundles();
        let mut revisions = self.0.registry.revisions();
        let mut shutdown = self.0.shutdown.clone();
        bundles.mark_changed();
        loop {
            revisions.borrow_and_update();
            if let Err(error) = self.nested(&peer) {
                let refused = self.refused(peer.spiffe_id(), "watch_bundle", error);
                let _ = to.send(Err(refused)).await; // it may have gone
                return;
            }
            if bundles.has_changed().unwrap_or(false) {
                let bundle = messages::bundle(&bundles.borrow_and_update());
                if to.send(Ok(bundle)).await.is_err() {
                    return;
                }
            }
            let why = tokio::select! {
                changed = bundles.changed() => match changed {
                    Ok(()) => {
                        bundles.mark_changed();
                        continue;
                    }
                    Err(_) => "the CA no longer follows its store; connect again",
                },
                changed = revisions.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => "the CA no longer follows its store; connect again",
                },
                () = clock::reached(peer.not_after()) => continue,
                () = to.closed() => return,
                () = shutdown.wait() => "the CA is stopping; connect again",
            };
            let _ = to.send(Err(Status::unavailable(why))).await; // it may have gone
            return;
        }
    }
}

/// Whether it is a point of the curve: nobody agrees on anything with another.
fn is_p256(point: &[u8]) -> bool {
    let own = EphemeralPrivateKey::generate(&ECDH_P256, &SystemRandom::new());
    own.is_ok_and(|own| agree_ephemeral(own, &UnparsedPublicKey::new(&ECDH_P256, point), |_| ()).is_ok())
}

#[tonic::async_trait]
impl wire::nested_server::Nested for NestedCas {
    async fn sign_authority(
        &self,
        request: Request<wire::SignAuthorityRequest>,
    ) -> Result<Response<wire::SignAuthorityResponse>, Status> {
        let (_, nested, source) = self.caller(&request, "sign_authority")?;
        let signed = self.sign(&nested, source, request.into_inner()).await;
        let signed = signed.map_err(|status| self.refused(&nested.id, "sign_authority", status))?;
        Ok(Response::new(signed))
    }

    async fn publish_jwt_keys(
        &self,
        request: Request<wire::PublishJwtKeysRequest>,
    ) -> Result<Response<wire::PublishJwtKeysResponse>, Status> {
        let (_, nested, _) = self.caller(&request, "publish_jwt_keys")?;
        let published = self.publish(&nested, request.into_inner().points).await;
        published.map_err(|status| self.refused(&nested.id, "publish_jwt_keys", status))?;
        Ok(Response::new(wire::PublishJwtKeysResponse {}))
    }

    type WatchBundleStream = ReceiverStream<Result<wire::Bundle, Status>>;

    async fn watch_bundle(
        &self,
        request: Request<wire::WatchBundleRequest>,
    ) -> Result<Response<Self::WatchBundleStream>, Status> {
        let (peer, _, _) = self.caller(&request, "watch_bundle")?;
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(self.clone().tell(peer, sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}
