//! What agents ask: to join, to renew, what they are entitled to, and certificates for it.

use std::future::Future;
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hoplite_host::backoff::jitter;
use hoplite_host::clock;
use hoplite_host::refusals::Refusals;
use hoplite_host::shutdown::Shutdown;
use hoplite_host::slots::Source;
use hoplite_identity::{
    BundleSet, CertificateDer, HostPort, Leaf, Moment, PeerRejected, PeerRole, PeerVerifier, RegisteredEntry, SpiffeId,
    TrustBundle, VerifiedPeer,
};
use hoplite_wire::ca::attest_response::Step as Answer;
use hoplite_wire::{ca as wire, report as wire_report};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::acts::written::Written;
use crate::acts::{Acts, Asked};
use crate::agents::agent::{Denied, Issued, Standing, authorize};
use crate::agents::holders::{Holders, Place};
use crate::agents::writes::{Activate, Adopt, AgentError, Contest, Reattest, Renew};
use crate::api::attesting::{Attested, Attesting, Line};
use crate::api::jwt::JwtCalls;
use crate::api::messages;
use crate::api::mint::{Item, Mint, NotIssued};
use crate::api::reporting::Reporting;
use crate::api::status::{Blame, ours};
use crate::attestors::Attestors;
use crate::attestors::name::BY_TOKEN;
use crate::epoch::EpochName;
use crate::fleet::Fleet;
use crate::index::{Held, Update};
use crate::issuance::{Minted, SubjectKey};
use crate::issuer::Issuer;
use crate::limit::Failures;
use crate::listener::AgentCaller;
use crate::metrics::{Metrics, Watching};
use crate::operators::writes::SignIn;
use crate::policy::index::InForce;
use crate::publishing::Publishing;
use crate::registry::Registry;
use crate::tokens::token::{JoinRefused, digest_of};
use crate::tokens::writes::{Join, KnowsToken, TokenError};
use crate::wakes::Wake;
use crate::write::WriteError;

/// The piece of a policy bundle in one message: well below what any gRPC client takes.
const CHUNK_BYTES_MAX: usize = 256 << 10;

/// Pieces that wait for a slow agent.
const CHUNKS_WAITING_MAX: usize = 2;

/// One call's work stays short beside other agents' calls.
const ISSUE_ITEMS_MAX: usize = 500;

/// An agent for which nothing is new hears so at least this often, and so knows how fresh it is.
const HEARTBEAT: Duration = Duration::from_secs(30);

/// A reason in a log line is cut at this.
const REASON_CHARS_MAX: usize = 200;

/// The service. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Node(Arc<Shared>);

struct Shared {
    registry: Registry,
    issuer: Issuer,
    acts: Acts,
    attestors: Attestors,
    publishing: Publishing,
    fleet: Fleet,
    /// Of attestations that were refused, by where they come from.
    attestations: Mutex<Failures<Source>>,
    /// Of joins with tokens that are not known, by where they come from.
    guesses: Mutex<Failures<Source>>,
    /// Of joins with tokens that are known, by the token's digest.
    failures: Mutex<Failures<String>>,
    metrics: Metrics,
    /// Where the CAs over this store are.
    replicas: Vec<HostPort>,
    /// Calls of agents that were refused, by agent and call, for the log.
    refused: Refusals<(SpiffeId, &'static str)>,
    /// Who watches with which key.
    holders: Holders,
    /// For JWT-SVIDs.
    jwt: JwtCalls,
    shutdown: Shutdown,
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
    wake: Wake,
    shutdown: Shutdown,
    /// What the agent holds.
    held: Held,
    /// Nothing was sent yet.
    first: bool,
    /// It knows no other CA, or none that sees the database.
    stays_when_cut_off: bool,
    place: Place,
    _counted: Watching,
}

/// What the node API is made of.
pub(crate) struct Parts {
    pub(crate) registry: Registry,
    pub(crate) issuer: Issuer,
    pub(crate) acts: Acts,
    pub(crate) attestors: Attestors,
    pub(crate) publishing: Publishing,
    pub(crate) fleet: Fleet,
    pub(crate) metrics: Metrics,
    /// The addresses of all CAs of the trust domain, as agents are told them.
    pub(crate) replicas: Vec<HostPort>,
    pub(crate) shutdown: Shutdown,
}

// === impl Node ===

impl Node {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts {
            registry,
            issuer,
            acts,
            attestors,
            publishing,
            fleet,
            metrics,
            replicas,
            shutdown,
        } = parts;
        Self(Arc::new(Shared {
            registry,
            issuer,
            acts,
            attestors,
            publishing,
            fleet,
            attestations: Mutex::default(),
            guesses: Mutex::default(),
            failures: Mutex::default(),
            metrics,
            replicas,
            refused: Refusals::default(),
            holders: Holders::default(),
            jwt: JwtCalls::default(),
            shutdown,
        }))
    }

    /// The caller, if it is an agent in good standing.
    async fn agent<T>(&self, request: &Request<T>) -> Result<VerifiedPeer, Status> {
        let peer = caller(request)?.peer.clone().ok_or(Denied::NoCertificate)?;
        let standing = self.standing(&peer).inspect_err(|denied| {
            tracing::warn!(target: "hoplite::audit", agent = %peer.spiffe_id(), serial = peer.serial(), outcome = "denied", reason = %denied, "call");
        })?;
        if standing == Standing::Unseen {
            let adopt = Adopt {
                shown: peer.leaf().clone(),
                now: clock::now(),
            };
            if self.0.registry.write(adopt).await? {
                tracing::warn!(
                    target: "hoplite::audit",
                    agent = %peer.spiffe_id(), serial = peer.serial(), issued = %Moment::from(peer.leaf().not_before()), outcome = "adopted",
                    "the CA was restored from a backup that knows nothing of this agent's certificate, and takes its authority's word for it"
                );
                let detail = [("serial", peer.serial().to_owned())];
                self.0.acts.own_act("Adopt", peer.spiffe_id().to_string(), detail);
            }
        }
        if standing == Standing::FirstUse {
            // When this cannot be noted now, the next call notes it: the certificate is good either way.
            let activate = Activate {
                id: peer.spiffe_id().clone(),
                serial: peer.serial().to_owned(),
            };
            if let Err(error) = self.0.registry.write(activate).await {
                tracing::warn!(agent = %peer.spiffe_id(), %error, "cannot note the use of a new agent certificate");
            }
        }
        Ok(peer)
    }

    /// What an agent in good standing is refused, it asks for again: one line in a while.
    fn tell(&self, agent: &SpiffeId, call: &'static str, refused: &Status) {
        if let Some(times) = self.0.refused.count((agent.clone(), call), clock::moment()) {
            let reason: String = refused.message().chars().take(REASON_CHARS_MAX).collect();
            tracing::warn!(target: "hoplite::audit", %agent, call, outcome = "refused", reason, times, "call");
        }
    }

    fn standing(&self, peer: &VerifiedPeer) -> Result<Standing, Denied> {
        let index = self.0.registry.index();
        if !index.authority.is_own(peer.signer()) {
            return Err(Denied::NotOfThisCa(peer.spiffe_id().clone()));
        }
        authorize(
            index.agents.get(peer.spiffe_id()).map(Arc::as_ref),
            index.epoch.since(peer.spiffe_id()),
            peer.leaf(),
            clock::now(),
        )
    }

    /// Two have an agent's key: neither gets another certificate, and an operator is told.
    async fn contest(&self, agent: &SpiffeId, how: String) {
        tracing::error!(
            target: "hoplite::audit",
            %agent,
            how,
            "ALARM: two have this agent's key; neither gets another certificate. Find out which is the node, join that one anew with a new \
             token (`hoplite token create`), and ban it before if the other is not known"
        );
        self.0.metrics.two_holders();
        self.0.acts.own_act("Contest", agent.to_string(), [("how", how)]);
        let contest = Contest {
            id: agent.clone(),
            now: clock::now(),
        };
        if let Err(error) = self.0.registry.write(contest).await {
            tracing::error!(%agent, %error, "that two have this agent's key cannot be noted");
        }
    }

    /// The same, of one who would have something for a certificate that another's has replaced.
    async fn contest_replaced(&self, agent: &SpiffeId, serial: &str, from: IpAddr) {
        let how = format!("{from} comes with certificate {serial}, in whose place a newer one is in use");
        self.contest(agent, how).await;
    }

    /// Before the caller begins or renews: whether it comes with a certificate that was replaced longer ago than by one.
    async fn notice_another<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let caller = caller(request)?;
        if let Some(peer) = &caller.peer
            && self.standing(peer) == Err(Denied::TwoHolders)
        {
            self.contest_replaced(peer.spiffe_id(), peer.serial(), caller.address.ip())
                .await;
        }
        Ok(())
    }

    /// A token of 256 random bits cannot be guessed, at whatever rate: what guesses are bounded for is their cost. So whoever
    /// has a token is never held up by others behind the same address, and those who have none do not learn by time what
    /// others have, because what is looked up is a digest.
    async fn admitted(
        &self,
        token: &str,
        address: SocketAddr,
        attempt: impl Future<Output = Result<(SpiffeId, wire::SvidResponse), Status>>,
    ) -> Result<(SpiffeId, wire::SvidResponse), Status> {
        let digest = digest_of(token);
        let knows = KnowsToken { digest: digest.clone() };
        if self.0.registry.write(knows).await? {
            let by = "with this token";
            limited(&self.0.failures, digest, by, attempt).await
        } else {
            let (by, from) = ("from this address", Source::address(address.ip()));
            limited(&self.0.guesses, from, by, async {
                Err(TokenError::from(JoinRefused::Unknown).status())
            })
            .await
        }
    }

    async fn join_with_token(
        &self,
        request: wire::JoinRequest,
        address: SocketAddr,
    ) -> Result<(SpiffeId, wire::SvidResponse), Status> {
        let key = SubjectKey::from_csr(&request.csr)?;
        let (issuer, now) = (self.0.issuer.clone(), clock::now());
        let join = Join {
            digest: digest_of(&request.token),
            key: key.fingerprint(),
            now,
            mint: move |agent: &SpiffeId| issuer.agent(agent, &key, now),
        };
        let minted = self.0.registry.write(join).await?;
        let detail = [
            ("attestor", BY_TOKEN.to_owned()),
            ("kind", BY_TOKEN.to_owned()),
            ("source", address.ip().to_string()),
        ];
        self.0
            .acts
            .own_act("Attest", minted.leaf.spiffe_id().to_string(), detail);
        self.first(minted, "join", address).await
    }

    /// One exchange with a node that nobody has invited, from its first word to its SVID.
    async fn attested(self, mut line: Line, address: SocketAddr) {
        let from = Source::address(address.ip());
        let attesting = Attesting {
            attestors: self.0.attestors.clone(),
            registry: self.0.registry.clone(),
            issuer: self.0.issuer.clone(),
        };
        let mut about = None;
        // What is refused has cost some signatures to verify, and a line in the log.
        let attempt = async {
            let attested = attesting.run(&mut line).await;
            let Attested {
                attestor,
                agent,
                identity,
                selectors,
                result,
            } = attested;
            let (attestor, kind) = attestor.unwrap_or_default();
            match result {
                Ok(minted) => {
                    about = Some((attestor, kind, identity, selectors));
                    Ok(minted)
                }
                Err(refusal) => {
                    let agent = agent.as_ref().map(tracing::field::display);
                    let reason: String = refusal.reason.chars().take(2 * REASON_CHARS_MAX).collect();
                    tracing::warn!(target: "hoplite::audit", attestor, agent, %address, selectors, outcome = "refused", reason, "attest");
                    Err(refusal.status)
                }
            }
        };
        let admitted = limited(&self.0.attestations, from, "from this address", attempt).await;
        self.0.metrics.joined(match &admitted {
            Ok(_) => "attested",
            Err(status) if status.code() == Code::ResourceExhausted => "limited",
            Err(_) => "refused",
        });
        let answer = match admitted {
            Ok(minted) => {
                let (agent, (attestor, kind, identity, selectors)) =
                    (minted.leaf.spiffe_id().clone(), about.unwrap_or_default());
                tracing::info!(target: "hoplite::audit", %agent, attestor, kind, %address, selectors, outcome = "admitted", "attest");
                let detail = [
                    ("attestor", attestor),
                    ("kind", kind.to_owned()),
                    ("identity", identity),
                    ("selectors", selectors),
                    ("source", address.ip().to_string()),
                ];
                self.0.acts.own_act("Attest", agent.to_string(), detail);
                self.svid(minted, "attest", address).await.map(Answer::Svid)
            }
            Err(status) => Err(status),
        };
        line.says(answer).await;
    }

    /// Whose certificate it is, though it may have ended. One that the store knows to the byte needs nobody to vouch for it: its
    /// authority may have ended, or have been revoked, since.
    fn shown(&self, chain: &[CertificateDer<'_>]) -> Result<Leaf, Status> {
        let leaf = chain.first().and_then(|leaf| Leaf::parse(leaf).ok());
        let known = leaf.as_ref().filter(|leaf| {
            let index = self.0.registry.index();
            let agent = index.agents.get(leaf.spiffe_id());
            agent.is_some_and(|agent| agent.was_given(leaf))
        });
        if let Some(known) = known {
            return Ok(known.clone());
        }
        let bundle = self.bundle().ok_or_else(|| ours(&"there is no trust bundle"))?;
        let verifier = PeerVerifier::new(BundleSet::from_iter([bundle])).map_err(|e| ours(&e))?;
        let rejected = |error: PeerRejected| {
            Status::unauthenticated(format!(
                "this CA does not vouch for the certificate that is shown ({error}); join with a new token"
            ))
        };
        // Within its life, of which only the end may lie behind.
        let last = leaf.and_then(|leaf| leaf.not_after().checked_sub(Duration::from_secs(1)));
        let at = last.map_or(clock::now(), |last| last.min(clock::now()));
        let peer = verifier.verify(chain, PeerRole::Client, at).map_err(rejected)?;
        match self.0.registry.index().authority.is_own(peer.signer()) {
            true => Ok(peer.leaf().clone()),
            false => Err(Denied::NotOfThisCa(peer.spiffe_id().clone()).into()),
        }
    }

    /// By the key of a certificate that may have ended, within bounds. `agent` is who shows it, once that is known.
    async fn admit_by_key(
        &self,
        request: wire::ReattestRequest,
        from: IpAddr,
        agent: &mut Option<SpiffeId>,
    ) -> Result<Minted, Status> {
        let chain: Vec<_> = request.chain.into_iter().map(CertificateDer::from).collect();
        let shown = self.shown(&chain)?;
        let key = SubjectKey::from_csr(&request.csr)?;
        if !chain.first().is_some_and(|leaf| key.is_of(leaf)) {
            return Err(Denied::OtherKey.into());
        }
        let (id, serial) = (shown.spiffe_id().clone(), shown.serial().to_owned());
        *agent = Some(id.clone());
        let (issuer, now) = (self.0.issuer.clone(), clock::now());
        let reattest = Reattest {
            shown,
            now,
            within: self.0.issuer.reattest_within(),
            mint: move |agent: &SpiffeId| issuer.agent(agent, &key, now),
        };
        match self.0.registry.write(reattest).await {
            Err(WriteError::Refused(AgentError::Denied(Denied::TwoHolders))) => {
                self.contest_replaced(&id, &serial, from).await;
                Err(Denied::TwoHolders.into())
            }
            written => Ok(written?),
        }
    }

    async fn sign_in_with_token(
        &self,
        request: wire::JoinRequest,
        address: SocketAddr,
    ) -> Result<(SpiffeId, wire::SvidResponse), Status> {
        let key = SubjectKey::from_csr(&request.csr)?;
        let (issuer, now) = (self.0.issuer.clone(), clock::now());
        let sign_in = SignIn {
            digest: digest_of(&request.token),
            key: key.fingerprint(),
            now,
            mint: move |operator: &SpiffeId| issuer.operator(operator, None, &key, now),
        };
        let minted = self.0.registry.write(sign_in).await?;
        self.first(minted, "login", address).await
    }

    /// What members of the trust domain are verified with now.
    fn bundle(&self) -> Option<Arc<TrustBundle>> {
        self.0.registry.index().authority.bundle().cloned()
    }

    /// What this agent's calls for SVIDs are answered from.
    fn mint(&self, peer: &VerifiedPeer, address: SocketAddr) -> Mint {
        Mint {
            issuer: self.0.issuer.clone(),
            acts: self.0.acts.clone(),
            agent: peer.spiffe_id().clone(),
            source: address.ip().to_string(),
            now: clock::now(),
        }
    }

    /// The certificate of somebody who showed a token.
    async fn first(
        &self,
        minted: Minted,
        how: &'static str,
        address: SocketAddr,
    ) -> Result<(SpiffeId, wire::SvidResponse), Status> {
        let id = minted.leaf.spiffe_id().clone();
        Ok((id, self.svid(minted, how, address).await?))
    }

    /// A certificate of the caller's own leaves.
    async fn svid(&self, minted: Minted, how: &'static str, address: SocketAddr) -> Result<wire::SvidResponse, Status> {
        let asked = Asked {
            requester: minted.leaf.spiffe_id().to_string(),
            how,
            source: Some(address.ip().to_string()),
        };
        let chain = self.0.acts.release(minted, asked).await?;
        Ok(wire::SvidResponse {
            chain: chain.iter().map(|certificate| certificate.to_vec()).collect(),
            bundle: self.bundle().as_deref().map(messages::bundle),
            addresses: self.0.replicas.iter().map(ToString::to_string).collect(),
        })
    }

    fn update(&self, update: Update, epoch: EpochName, policy: Option<&InForce>) -> wire::Update {
        wire::Update {
            epoch: Some(epoch.into()),
            revision: update.revision,
            full: update.full,
            upserts: update.upserts.iter().map(|registered| self.entry(registered)).collect(),
            deletes: update.deletes.iter().map(ToString::to_string).collect(),
            bundle: update.bundle.as_deref().map(messages::bundle),
            digest: update.digest.to_vec(),
            policy: policy.map(wire::PolicyState::from),
            cut_off: self.0.registry.is_lost(),
            foreign: update.foreign.as_ref().map(messages::foreign),
        }
    }

    /// A CA that sees the database may be near: an agent goes there, and comes back with `stays` if none does. That one is served with
    /// what is known.
    fn ensure_sees_the_store(&self, stays: bool) -> Result<(), Status> {
        match !stays && self.0.registry.is_lost() {
            true => Err(Status::unavailable(
                "this CA has lost sight of its database; connect again, to another one if there is one",
            )),
            false => Ok(()),
        }
    }

    /// Agents see the life a certificate will have, not that the entry leaves it open.
    fn entry(&self, registered: &RegisteredEntry) -> wire::Entry {
        let ttl = self.0.issuer.ttl(&registered.entry).as_secs();
        let mut message = wire::Entry::from(registered);
        message.x509_ttl_seconds = u32::try_from(ttl).unwrap_or(u32::MAX);
        message
    }
}

/// An attempt that is not made where too many have failed, and counts if it fails.
async fn limited<K: Eq + Hash + Clone, T>(
    failures: &Mutex<Failures<K>>,
    by: K,
    what: &str,
    attempt: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    let lock = || failures.lock().unwrap_or_else(PoisonError::into_inner);
    if !lock().may_try(by.clone(), clock::moment()) {
        let text = format!("too many failed attempts {what}; wait a minute");
        return Err(Status::resource_exhausted(text));
    }
    let made = attempt.await;
    if made.is_err() {
        lock().failed(by, clock::moment());
    }
    made
}

#[tonic::async_trait]
impl wire::node_server::Node for Node {
    async fn join(&self, request: Request<wire::JoinRequest>) -> Result<Response<wire::SvidResponse>, Status> {
        let address = caller(&request)?.address;
        let request = request.into_inner();
        let token = request.token.clone();
        let joined = self
            .admitted(&token, address, self.join_with_token(request, address))
            .await;
        self.0.metrics.joined(match &joined {
            Ok(_) => "joined",
            Err(status) if status.code() == Code::ResourceExhausted => "limited",
            Err(_) => "refused",
        });
        told("join", address, joined)
    }

    type AttestStream = ReceiverStream<Result<wire::AttestResponse, Status>>;

    async fn attest(
        &self,
        request: Request<Streaming<wire::AttestRequest>>,
    ) -> Result<Response<Self::AttestStream>, Status> {
        let address = caller(&request)?.address;
        let (answers, receiver) = mpsc::channel(1);
        let line = Line::new(request.into_inner(), answers);
        let (node, mut shutdown) = (self.clone(), self.0.shutdown.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = node.attested(line, address) => {}
                () = shutdown.wait() => {}
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn login(&self, request: Request<wire::JoinRequest>) -> Result<Response<wire::SvidResponse>, Status> {
        let address = caller(&request)?.address;
        let request = request.into_inner();
        let token = request.token.clone();
        let signed_in = self
            .admitted(&token, address, self.sign_in_with_token(request, address))
            .await;
        told("login", address, signed_in)
    }

    async fn renew(&self, request: Request<wire::RenewRequest>) -> Result<Response<wire::SvidResponse>, Status> {
        self.notice_another(&request).await?;
        let peer = self.agent(&request).await?;
        let address = caller(&request)?.address;
        let renewed = async {
            let key = SubjectKey::from_csr(&request.into_inner().csr)?;
            let minted = self.0.issuer.agent(peer.spiffe_id(), &key, clock::now())?;
            let renew = Renew {
                id: peer.spiffe_id().clone(),
                shown: peer.serial().to_owned(),
                issued: Issued::from(&minted.leaf),
            };
            match self.0.registry.write(renew).await {
                Err(WriteError::Refused(AgentError::Denied(Denied::TwoHolders))) => {
                    self.contest_replaced(peer.spiffe_id(), peer.serial(), address.ip())
                        .await;
                    return Err(Denied::TwoHolders.into());
                }
                written => written?,
            }
            Ok::<_, Status>(minted)
        };
        let renewed = renewed.await;
        let minted = renewed.inspect_err(|status| self.tell(peer.spiffe_id(), "renew", status))?;
        tracing::info!(target: "hoplite::audit", agent = %peer.spiffe_id(), serial = minted.leaf.serial(), outcome = "issued", "renew");
        Ok(Response::new(self.svid(minted, "renew", address).await?))
    }

    async fn reattest(&self, request: Request<wire::ReattestRequest>) -> Result<Response<wire::SvidResponse>, Status> {
        let address = caller(&request)?.address;
        let request = request.into_inner();
        let from = Source::address(address.ip());
        // What is refused has cost two signatures to verify.
        let mut agent = None;
        let attempt = self.admit_by_key(request, address.ip(), &mut agent);
        let admitted = limited(&self.0.guesses, from, "from this address", attempt).await;
        self.0.metrics.joined(match &admitted {
            Ok(_) => "reattested",
            Err(status) if status.code() == Code::ResourceExhausted => "limited",
            Err(_) => "refused",
        });
        match admitted {
            Ok(minted) => {
                let (agent, serial) = (minted.leaf.spiffe_id(), minted.leaf.serial());
                tracing::warn!(target: "hoplite::audit", %agent, serial, %address, outcome = "admitted", "reattest");
                Ok(Response::new(self.svid(minted, "reattest", address).await?))
            }
            Err(status) => {
                if status.code() != Code::ResourceExhausted {
                    let agent = agent.as_ref().map(tracing::field::display);
                    tracing::warn!(target: "hoplite::audit", agent, %address, outcome = "refused", reason = status.message(), "reattest");
                }
                Err(status)
            }
        }
    }

    type WatchStream = Updates;

    async fn watch(&self, request: Request<wire::WatchRequest>) -> Result<Response<Updates>, Status> {
        self.notice_another(&request).await?;
        let peer = self.agent(&request).await?;
        let address = caller(&request)?.address;
        let request = request.into_inner();
        self.ensure_sees_the_store(request.stays_when_cut_off)?;
        // A revision of another epoch is none.
        let epoch = EpochName::from(request.epoch.unwrap_or_default());
        let now = self.0.registry.index().epoch.name();
        let is_of_now = epoch == now;
        let higher = (epoch > now).then_some(epoch.number);
        self.0.fleet.follows(peer.spiffe_id(), higher);
        let from = if is_of_now { request.from_revision } else { 0 };
        tracing::info!(target: "hoplite::audit", agent = %peer.spiffe_id(), from, "watch");
        let known = {
            let index = self.0.registry.index();
            index
                .agents
                .get(peer.spiffe_id())
                .is_some_and(|agent| agent.contested.is_some())
        };
        let (place, two) = (self.0.holders).watches(peer.spiffe_id(), request.process, address.ip(), known);
        if let Some(two) = two {
            let how = format!("one watches from {}, and one from {}", two.here, two.there);
            self.contest(peer.spiffe_id(), how).await;
        }
        let watcher = Watcher {
            wake: self.0.registry.wakes().wait(peer.spiffe_id()),
            node: self.clone(),
            peer,
            shutdown: self.0.shutdown.clone(),
            held: Held {
                revision: (from != 0).then_some(from),
                digest: (request.digest.as_slice().try_into().ok()).filter(|_| is_of_now),
            },
            first: true,
            stays_when_cut_off: request.stays_when_cut_off,
            place,
            _counted: self.0.metrics.watching(),
        };
        Ok(Response::new(Updates(Some(Box::pin(watcher.next())))))
    }

    async fn issue(&self, request: Request<wire::IssueRequest>) -> Result<Response<wire::IssueResponse>, Status> {
        let peer = self.agent(&request).await?;
        let address = caller(&request)?.address;
        let items = request.into_inner().items;
        if items.len() > ISSUE_ITEMS_MAX {
            let text = format!("{} items in one call; send at most {ISSUE_ITEMS_MAX}", items.len());
            let refused = Status::invalid_argument(text);
            self.tell(peer.spiffe_id(), "issue", &refused);
            return Err(refused);
        }
        let items: Vec<_> = {
            let index = self.0.registry.index();
            // An agent can mint only what is registered under it, or for a group that its node is in, whatever it asks for.
            items
                .into_iter()
                .map(|item| {
                    let registered = index.entries.of(peer.spiffe_id(), &item.entry_id).cloned();
                    let values = item.values;
                    (Item { registered, values }, item.csr)
                })
                .collect()
        };
        let mint = self.mint(&peer, address);
        // Some milliseconds of signing would hold up everybody else on this thread.
        let signing = tokio::task::spawn_blocking(move || {
            let items = items.iter();
            items.map(|(item, csr)| mint.one(item, csr)).collect::<Vec<_>>()
        });
        let items = signing
            .await
            .map_err(|_| Status::internal("the CA failed while signing; its log says why"))?;
        let written = items.iter().flatten().map(|(_, written)| written.clone());
        let settled = self.0.acts.settled(written).await?;
        let issued = items.iter().flatten().count();
        tracing::info!(target: "hoplite::audit", agent = %peer.spiffe_id(), issued, refused = items.len() - issued, "issue");
        let result = |item: Result<(Minted, Written), NotIssued>| match item {
            Ok((minted, _)) => wire::IssueResult {
                chain: (minted.leaves(&settled).iter())
                    .map(|certificate| certificate.to_vec())
                    .collect(),
                error: String::new(),
            },
            Err(error) => wire::IssueResult {
                chain: Vec::new(),
                error: error.to_string(),
            },
        };
        let results = items.into_iter().map(result).collect();
        Ok(Response::new(wire::IssueResponse { results }))
    }

    async fn issue_jwt(
        &self,
        request: Request<wire::IssueJwtRequest>,
    ) -> Result<Response<wire::IssueJwtResponse>, Status> {
        let peer = self.agent(&request).await?;
        let address = caller(&request)?.address;
        let agent = peer.spiffe_id();
        let mint = self.mint(&peer, address);
        let issued = self.0.jwt.issue(&self.0.registry, mint, request.into_inner());
        let issued = issued
            .await
            .inspect_err(|status| self.tell(agent, "issue_jwt", status))?;
        Ok(Response::new(issued))
    }

    type FetchPolicyStream = ReceiverStream<Result<wire::PolicyChunk, Status>>;

    async fn fetch_policy(
        &self,
        request: Request<wire::FetchPolicyRequest>,
    ) -> Result<Response<Self::FetchPolicyStream>, Status> {
        let peer = self.agent(&request).await?;
        let bundle = self.0.publishing.current(request.into_inner().revision).await;
        let bundle = bundle
            .map_err(Status::from)
            .inspect_err(|status| self.tell(peer.spiffe_id(), "fetch_policy", status))?;
        let (sender, receiver) = mpsc::channel(CHUNKS_WAITING_MAX);
        tokio::spawn(async move {
            for data in bundle.chunks(CHUNK_BYTES_MAX) {
                let chunk = wire::PolicyChunk { data: data.to_vec() };
                if sender.send(Ok(chunk)).await.is_err() {
                    return; // the agent hung up
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn fetch_signers(
        &self,
        request: Request<wire::FetchSignersRequest>,
    ) -> Result<Response<wire::SignerSets>, Status> {
        self.agent(&request).await?;
        let sets = self.0.publishing.signer_sets(request.into_inner().from_version);
        Ok(Response::new(wire::SignerSets { sets }))
    }

    type ReportStream = ReceiverStream<Result<wire::ReportAck, Status>>;

    async fn report(
        &self,
        request: Request<Streaming<wire_report::Report>>,
    ) -> Result<Response<Self::ReportStream>, Status> {
        let peer = self.agent(&request).await?;
        let (acks, receiver) = mpsc::channel(1);
        let reporting = Reporting {
            fleet: self.0.fleet.clone(),
            peer,
            shutdown: self.0.shutdown.clone(),
        };
        let node = self.clone();
        tokio::spawn(async move {
            let standing = |peer: &VerifiedPeer| node.standing(peer).map(drop);
            reporting.listen(request.into_inner(), acks, standing).await;
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// The line in the log about somebody with a token, and the answer.
fn told(
    what: &'static str,
    address: SocketAddr,
    admitted: Result<(SpiffeId, wire::SvidResponse), Status>,
) -> Result<Response<wire::SvidResponse>, Status> {
    match admitted {
        Ok((spiffe_id, response)) => {
            tracing::info!(target: "hoplite::audit", what, %address, %spiffe_id, outcome = "admitted", "token");
            Ok(Response::new(response))
        }
        Err(status) => {
            // Of bounds the connection tells, not as often as somebody can guess.
            if status.code() != Code::ResourceExhausted {
                tracing::warn!(target: "hoplite::audit", what, %address, outcome = "refused", reason = status.message(), "token");
            }
            Err(status)
        }
    }
}

fn caller<T>(request: &Request<T>) -> Result<&AgentCaller, Status> {
    request
        .extensions()
        .get()
        .ok_or_else(|| Status::internal("the connection has no caller"))
}

// === impl Watcher ===

impl Watcher {
    /// The next message, as soon as there is one. After an error there is none.
    async fn next(mut self) -> (Result<wire::Update, Status>, Self) {
        let result = self.turn().await;
        (result, self)
    }

    async fn turn(&mut self) -> Result<wire::Update, Status> {
        let mut shutdown = self.shutdown.clone();
        let heartbeat = tokio::time::sleep(HEARTBEAT.mul_f64(0.75 + 0.25 * jitter()));
        tokio::pin!(heartbeat);
        loop {
            let (own, everyone) = self.wake.before_looking();
            self.node.standing(&self.peer).inspect_err(|denied| {
                tracing::warn!(target: "hoplite::audit", agent = %self.peer.spiffe_id(), outcome = "ended", reason = %denied, "watch");
            })?;
            if self.node.0.registry.is_left_behind() {
                return Err(Status::unavailable("the CA no longer follows its store; connect again"));
            }
            self.node.ensure_sees_the_store(self.stays_when_cut_off)?;
            if let Some((update, epoch, policy)) = self.look(heartbeat.is_elapsed()) {
                self.held = Held {
                    revision: Some(update.revision),
                    digest: Some(update.digest),
                };
                self.first = false;
                return Ok(self.node.update(update, epoch, policy.as_ref()));
            }
            tokio::select! {
                () = own => {}
                () = everyone => {}
                () = &mut heartbeat => {}
                () = clock::reached(self.peer.not_after()) => {}
                () = self.place.taken() => {
                    return Err(Status::aborted("another process watches with this agent's key; connect again"));
                }
                () = shutdown.wait() => {
                    return Err(Status::unavailable("the CA is stopping; connect again"));
                }
            }
        }
    }

    /// What is to be said now, if anything is. The first message is always due, even when it only confirms by its digest
    /// what the agent holds.
    fn look(&self, heartbeat: bool) -> Option<(Update, EpochName, Option<InForce>)> {
        let index = self.node.0.registry.index();
        let agent = self.peer.spiffe_id();
        let is_news = |held| index.has_changed(agent, held);
        if !self.first && !heartbeat && !self.held.revision.is_none_or(is_news) {
            return None;
        }
        // Always in the first: an agent may have been told of a policy, and broken off before it had it.
        let has_policy = self.first || self.held.revision.is_none_or(|held| index.policy.changed() > held);
        let policy = has_policy.then(|| index.policy.in_force(clock::now()));
        Some((index.update(agent, self.held), index.epoch.name(), policy))
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
