//! What agents ask: to join, to renew, what they are entitled to, and certificates for it.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant, SystemTime};

use hoplite_host::shutdown::Shutdown;
use hoplite_identity::{SpiffeId, TrustBundle, VerifiedPeer};
use hoplite_store::Revision;
use hoplite_wire::ca as wire;
use tokio::sync::{mpsc, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::agents::agent::{Denied, Issued, Standing, authorize};
use crate::authority::x509::{Authority, Serial};
use crate::index::{Registered, Update};
use crate::issuance::{BadCsr, MintError, Minted, SubjectKey, Template, mint};
use crate::limit::Failures;
use crate::listener::Caller;
use crate::publishing::Publishing;
use crate::registry::{Registry, RegistryError};

/// The piece of a policy bundle in one message: well below what any gRPC client takes.
const CHUNK_BYTES: usize = 256 << 10;

/// Pieces that wait for a slow agent.
const CHUNKS_WAITING: usize = 2;

/// One call's work stays short beside other agents' calls.
const ISSUE_ITEMS_MAX: usize = 500;

/// The service. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Node(Arc<Shared>);

struct Shared {
    registry: Registry,
    mint: Mint,
    bundle: TrustBundle,
    publishing: Publishing,
    failures: Mutex<Failures>,
    shutdown: Shutdown,
}

/// The one place that takes the authority, the clock and entropy together.
#[derive(Clone)]
pub(crate) struct Mint {
    pub(crate) authority: Arc<Authority>,
    pub(crate) agent_ttl: Duration,
    /// Of entries that do not say.
    pub(crate) x509_ttl: Duration,
}

/// The stream of an agent's updates. It computes the next one when it is asked for it, so that nothing queues for a
/// slow agent, and so that each is preceded by a look at the agent's standing.
pub(crate) struct Updates(Option<Turn>);

/// The next message, and who makes the one after it.
type Turn = Pin<Box<dyn Future<Output = (Result<wire::Update, Status>, Watcher)> + Send>>;

/// One agent's place in the sequence of revisions.
struct Watcher {
    node: Node,
    peer: VerifiedPeer,
    revisions: watch::Receiver<Revision>,
    shutdown: Shutdown,
    /// What the agent holds.
    held: Option<Revision>,
    /// Nothing was sent yet.
    first: bool,
}

// === impl Node ===

impl Node {
    pub(crate) fn new(
        registry: Registry,
        mint: Mint,
        bundle: TrustBundle,
        publishing: Publishing,
        shutdown: Shutdown,
    ) -> Self {
        Self(Arc::new(Shared {
            registry,
            mint,
            bundle,
            publishing,
            failures: Mutex::default(),
            shutdown,
        }))
    }

    /// The caller, if it is an agent in good standing.
    async fn agent<T>(&self, request: &Request<T>) -> Result<VerifiedPeer, Status> {
        let peer = caller(request)?.peer.clone().ok_or(Denied::NoCertificate)?;
        let standing = self.standing(&peer).inspect_err(|denied| {
            tracing::warn!(target: "hoplite::audit", agent = %peer.spiffe_id(), serial = peer.serial(), outcome = "denied", reason = %denied, "call");
        })?;
        if standing == Standing::FirstUse {
            // When this cannot be noted now, the next call notes it: the certificate is good either way.
            if let Err(error) = self.0.registry.activate(peer.spiffe_id(), peer.serial()).await {
                tracing::warn!(agent = %peer.spiffe_id(), %error, "cannot note the use of a new agent certificate");
            }
        }
        Ok(peer)
    }

    fn standing(&self, peer: &VerifiedPeer) -> Result<Standing, Denied> {
        let index = self.0.registry.index();
        authorize(
            index.agent(peer.spiffe_id()).map(Arc::as_ref),
            peer.leaf(),
            SystemTime::now(),
        )
    }

    fn failures(&self) -> std::sync::MutexGuard<'_, Failures> {
        self.0.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn try_join(&self, request: wire::JoinRequest) -> Result<(SpiffeId, wire::SvidResponse), Status> {
        let key = SubjectKey::from_csr(&request.csr)?;
        let mint = self.0.mint.clone();
        let (fingerprint, now) = (key.fingerprint(), SystemTime::now());
        let minted = self
            .0
            .registry
            .join(&request.token, fingerprint, now, move |agent| {
                mint.agent(agent, &key, now)
            })
            .await?;
        Ok((minted.leaf.spiffe_id().clone(), self.svid(&minted)))
    }

    fn svid(&self, minted: &Minted) -> wire::SvidResponse {
        wire::SvidResponse {
            chain: vec![minted.der.to_vec()],
            bundle: Some(bundle(&self.0.bundle)),
        }
    }

    fn update(&self, update: Update, from: Option<Revision>, policy: Option<wire::PolicyState>) -> wire::Update {
        let is_new = update.full || from.is_none_or(|from| from < self.0.bundle.sequence());
        wire::Update {
            revision: update.revision,
            full: update.full,
            upserts: update.upserts.iter().map(|registered| self.entry(registered)).collect(),
            deletes: update.deletes,
            bundle: is_new.then(|| bundle(&self.0.bundle)),
            digest: update.digest.to_vec(),
            policy,
        }
    }

    /// Agents see the life a certificate will have, not that the entry leaves it open.
    fn entry(&self, registered: &Registered) -> wire::Entry {
        let ttl = registered.entry.ttl(self.0.mint.x509_ttl).as_secs();
        let mut message = registered.entry.to_wire(&registered.id, registered.revision);
        message.x509_ttl_seconds = u32::try_from(ttl).unwrap_or(u32::MAX);
        message
    }
}

#[tonic::async_trait]
impl wire::node_server::Node for Node {
    async fn join(&self, request: Request<wire::JoinRequest>) -> Result<Response<wire::SvidResponse>, Status> {
        let address = caller(&request)?.address;
        if !self.failures().may_try(address.ip(), Instant::now()) {
            tracing::warn!(target: "hoplite::audit", %address, outcome = "limited", "join");
            return Err(Status::resource_exhausted(
                "too many failed attempts from this address; wait a minute",
            ));
        }
        match self.try_join(request.into_inner()).await {
            Ok((agent, response)) => {
                tracing::info!(target: "hoplite::audit", %address, %agent, outcome = "joined", "join");
                Ok(Response::new(response))
            }
            Err(status) => {
                self.failures().failed(address.ip(), Instant::now());
                tracing::warn!(target: "hoplite::audit", %address, outcome = "refused", reason = status.message(), "join");
                Err(status)
            }
        }
    }

    async fn renew(&self, request: Request<wire::RenewRequest>) -> Result<Response<wire::SvidResponse>, Status> {
        let peer = self.agent(&request).await?;
        let key = SubjectKey::from_csr(&request.into_inner().csr)?;
        let minted = self
            .0
            .mint
            .agent(peer.spiffe_id(), &key, SystemTime::now())
            .map_err(RegistryError::from)?;
        self.0
            .registry
            .renewed(peer.spiffe_id(), peer.serial(), Issued::from(&minted.leaf))
            .await?;
        tracing::info!(target: "hoplite::audit", agent = %peer.spiffe_id(), serial = minted.leaf.serial(), outcome = "issued", "renew");
        Ok(Response::new(self.svid(&minted)))
    }

    type WatchStream = Updates;

    async fn watch(&self, request: Request<wire::WatchRequest>) -> Result<Response<Updates>, Status> {
        let peer = self.agent(&request).await?;
        let from = request.into_inner().from_revision;
        tracing::info!(target: "hoplite::audit", agent = %peer.spiffe_id(), from, "watch");
        let watcher = Watcher {
            node: self.clone(),
            peer,
            revisions: self.0.registry.revisions(),
            shutdown: self.0.shutdown.clone(),
            held: (from != 0).then_some(from),
            first: true,
        };
        Ok(Response::new(Updates(Some(Box::pin(watcher.next())))))
    }

    async fn issue(&self, request: Request<wire::IssueRequest>) -> Result<Response<wire::IssueResponse>, Status> {
        let peer = self.agent(&request).await?;
        let items = request.into_inner().items;
        if items.len() > ISSUE_ITEMS_MAX {
            let text = format!("{} items in one call; send at most {ISSUE_ITEMS_MAX}", items.len());
            return Err(Status::invalid_argument(text));
        }
        let items: Vec<_> = {
            let index = self.0.registry.index();
            // An agent can mint only what is registered under it, whatever it asks for.
            let own = |registered: &&Arc<Registered>| registered.entry.parent_id == *peer.spiffe_id();
            items
                .into_iter()
                .map(|item| (index.entry(&item.entry_id).filter(own).cloned(), item.csr))
                .collect()
        };
        let (mint, now) = (self.0.mint.clone(), SystemTime::now());
        // Some milliseconds of signing would hold up everybody else on this thread.
        let signing = tokio::task::spawn_blocking(move || {
            items
                .iter()
                .map(|(registered, csr)| mint.item(peer.spiffe_id(), registered.as_deref(), csr, now))
                .collect()
        });
        let results = signing
            .await
            .map_err(|_| Status::internal("the CA failed while signing; its log says why"))?;
        Ok(Response::new(wire::IssueResponse { results }))
    }

    type FetchPolicyStream = ReceiverStream<Result<wire::PolicyChunk, Status>>;

    async fn fetch_policy(
        &self,
        request: Request<wire::FetchPolicyRequest>,
    ) -> Result<Response<Self::FetchPolicyStream>, Status> {
        self.agent(&request).await?;
        let bundle = self.0.publishing.current(request.into_inner().revision).await?;
        let (sender, receiver) = mpsc::channel(CHUNKS_WAITING);
        tokio::spawn(async move {
            for data in bundle.chunks(CHUNK_BYTES) {
                let chunk = wire::PolicyChunk { data: data.to_vec() };
                if sender.send(Ok(chunk)).await.is_err() {
                    return; // the agent hung up
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

fn caller<T>(request: &Request<T>) -> Result<&Caller, Status> {
    request
        .extensions()
        .get()
        .ok_or_else(|| Status::internal("the connection has no caller"))
}

/// The wire's form of a bundle.
pub(crate) fn bundle(bundle: &TrustBundle) -> wire::Bundle {
    wire::Bundle {
        trust_domain: bundle.trust_domain().to_string(),
        authorities: bundle
            .authorities()
            .iter()
            .map(|authority| authority.to_vec())
            .collect(),
        sequence: bundle.sequence(),
    }
}

// === impl Mint ===

impl Mint {
    fn agent(&self, id: &SpiffeId, key: &SubjectKey, now: SystemTime) -> Result<Minted, MintError> {
        let template = Template {
            spiffe_id: id,
            dns_names: &[],
            ttl: self.agent_ttl,
        };
        mint(&self.authority, &template, key, serial()?, now)
    }

    fn workload(&self, registered: &Registered, key: &SubjectKey, now: SystemTime) -> Result<Minted, MintError> {
        let entry = &registered.entry;
        let template = Template {
            spiffe_id: &entry.spiffe_id,
            dns_names: &entry.dns_names,
            ttl: entry.ttl(self.x509_ttl),
        };
        mint(&self.authority, &template, key, serial()?, now)
    }

    /// One answer of an issue call, and its line in the log.
    fn item(
        &self,
        agent: &SpiffeId,
        registered: Option<&Registered>,
        csr: &[u8],
        now: SystemTime,
    ) -> wire::IssueResult {
        let refused = |error: String| {
            let entry = registered.map(|registered| registered.id.as_str());
            tracing::warn!(target: "hoplite::audit", %agent, entry, outcome = "refused", reason = error, "issue");
            wire::IssueResult {
                chain: Vec::new(),
                error,
            }
        };
        let Some(registered) = registered else {
            return refused("no such entry is registered under this agent".into());
        };
        let key = match SubjectKey::from_csr(csr) {
            Ok(key) => key,
            Err(error) => return refused(error.to_string()),
        };
        match self.workload(registered, &key, now) {
            Ok(Minted { der, leaf }) => {
                tracing::info!(
                    target: "hoplite::audit",
                    %agent,
                    entry = registered.id,
                    spiffe_id = %leaf.spiffe_id(),
                    serial = leaf.serial(),
                    outcome = "issued",
                    "issue"
                );
                wire::IssueResult {
                    chain: vec![der.to_vec()],
                    error: String::new(),
                }
            }
            Err(error) => refused(error.to_string()),
        }
    }
}

fn serial() -> Result<Serial, MintError> {
    Serial::random().map_err(|e| MintError::Unbuildable(e.to_string()))
}

// === impl Watcher ===

impl Watcher {
    /// The next message, as soon as there is one. After an error there is none.
    async fn next(mut self) -> (Result<wire::Update, Status>, Self) {
        let result = self.turn().await;
        (result, self)
    }

    async fn turn(&mut self) -> Result<wire::Update, Status> {
        loop {
            // Seen before looking, so that a change in between wakes us.
            let seen = *self.revisions.borrow_and_update();
            self.node.standing(&self.peer).inspect_err(|denied| {
                tracing::warn!(target: "hoplite::audit", agent = %self.peer.spiffe_id(), outcome = "ended", reason = %denied, "watch");
            })?;
            let update = {
                let index = self.node.0.registry.index();
                // The first message comes at once, even when it only confirms by its digest what the agent holds.
                let is_news = self.first
                    || self
                        .held
                        .is_none_or(|held| index.has_changed(self.peer.spiffe_id(), held));
                // Always in the first: an agent may have been told of a bundle, and broken off before it had it.
                let has_policy = self.first || self.held.is_none_or(|held| index.policy().changed > held);
                let policy = has_policy.then(|| index.policy().state(SystemTime::now()));
                is_news.then(|| (index.update(self.peer.spiffe_id(), self.held), policy))
            };
            if let Some((update, policy)) = update {
                let message = self.node.update(update, self.held, policy);
                self.held = Some(message.revision);
                self.first = false;
                return Ok(message);
            }
            let left = self
                .peer
                .not_after()
                .duration_since(SystemTime::now())
                .unwrap_or_default();
            tokio::select! {
                changed = self.revisions.wait_for(|revision| *revision != seen) => {
                    changed.map_err(|_| Status::unavailable("the CA no longer follows its store; connect again"))?;
                }
                () = tokio::time::sleep(left) => {}
                () = self.shutdown.wait() => {
                    return Err(Status::unavailable("the CA is stopping; connect again"));
                }
            }
        }
    }
}

// === impl Updates ===

impl Stream for Updates {
    type Item = Result<wire::Update, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(turn) = &mut self.0 else {
            return Poll::Ready(None);
        };
        let (result, watcher) = ready!(turn.as_mut().poll(cx));
        self.0 = result.is_ok().then(|| Box::pin(watcher.next()) as Turn);
        Poll::Ready(Some(result))
    }
}

// === Blame ===

impl From<BadCsr> for Status {
    fn from(error: BadCsr) -> Self {
        Self::invalid_argument(error.to_string())
    }
}
