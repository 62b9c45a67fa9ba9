//! What operators ask, on the CA's own Unix socket. Whoever may connect is the CA's own user, or root.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hoplite_host::accept::Acceptor;
use hoplite_host::clock;
use hoplite_host::held::Held;
use hoplite_host::local_connection::LocalConnection;
use hoplite_host::refusals::Refusals;
use hoplite_host::shutdown::Shutdown;
use hoplite_host::slots::{Bounds, Busy, Slot, Slots};
use hoplite_identity::{Fingerprint, HostPort, SpiffeId, TrustDomain};
use hoplite_wire::{Begins, Served, ca as wire};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

use crate::agents::writes::{Ban, Evict};
use crate::api::entries::Entries;
use crate::api::messages::{self, unix_i64};
use crate::api::status::ours;
use crate::policy::writes::{ClearShadow, RevokeGrant};
use crate::publishing::{Contents, PublishError, Publishing};
use crate::record;
use crate::registry::Registry;
use crate::tokens::token::{TTL_DEFAULT, TTL_MAX, TokenText, digest_of};
use crate::tokens::writes::CreateToken;

/// Policies listed when it is not said how many.
const LIST_DEFAULT: u32 = 100;

/// Policies listed in one call.
const LIST_MAX: u32 = 1_000;

/// Connections of operators at once. A command line needs one, for a moment.
const CONNECTIONS_MAX: usize = 512;

/// Those of one process.
const CONNECTIONS_PER_PROCESS_MAX: usize = 64;

/// Those of one user: the CA's own and root never keep each other out.
const CONNECTIONS_PER_USER_MAX: usize = CONNECTIONS_MAX / 2;

/// Long enough to send a request and to read that it is refused.
const STRANGER_STAYS: Duration = Duration::from_secs(10);

/// The service.
pub(crate) struct Admin {
    registry: Registry,
    invites: Invites,
    trust_domain: TrustDomain,
    entries: Entries,
    publishing: Publishing,
}

/// What invitations say of this CA.
#[derive(Debug, Clone)]
pub(crate) struct Invites {
    /// Where agents connect, as the system says it.
    pub(crate) listen: SocketAddr,
    /// How they reach that, as the configuration says it.
    pub(crate) advertise: Option<HostPort>,
    /// Of the authority.
    pub(crate) fingerprint: Fingerprint,
}

/// Who called, as the kernel names them, and whether they may.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    uid: u32,
    own_uid: u32,
    /// The connection's place. Those who may not call stay newcomers there, and take no operator's.
    slot: Arc<Slot>,
    refusals: Arc<Refusals<u32>>,
}

/// A user who may call. Only [`operators_only`] makes one.
#[derive(Debug, Clone, Copy)]
struct Operator {
    uid: u32,
}

/// Accepts until the shutdown, and hands over all connections: those who may not call are told so on them.
pub(crate) async fn accept(
    listener: UnixListener,
    accepted: mpsc::Sender<io::Result<Served<Held<LocalConnection>, Caller>>>,
    shutdown: Shutdown,
) {
    let own_uid = rustix::process::geteuid().as_raw();
    let bounds = Bounds::local(CONNECTIONS_MAX, CONNECTIONS_PER_PROCESS_MAX, CONNECTIONS_PER_USER_MAX);
    let mut acceptor = Acceptor::new(listener, "admin", Slots::new("admin", bounds), shutdown);
    let refusals = Arc::<Refusals<u32>>::default();
    while let Some((mut connection, slot)) = acceptor.next().await {
        let uid = connection.peer().uid;
        let slot = Arc::new(slot);
        let caller = Caller {
            uid,
            own_uid,
            slot: slot.clone(),
            refusals: Arc::clone(&refusals),
        };
        if !caller.may_call() {
            connection = connection.for_no_longer_than(STRANGER_STAYS);
        }
        let connection = Served::new(Held::new(connection, slot), caller);
        let _ = accepted.send(Ok(connection)).await; // nobody listens any more while stopping
    }
}

/// Lets the calls of operators through, and answers those of others.
pub(crate) fn operators_only(mut request: Request<()>) -> Result<Request<()>, Status> {
    let caller = request.extensions().get::<Caller>();
    let &Caller { uid, own_uid, .. } = caller.ok_or_else(|| ours(&"the caller of this connection is not known"))?;
    if !may_call(uid, own_uid) {
        tracing::warn!(target: "hoplite::audit", uid, outcome = "denied", "admin call");
        return Err(Status::permission_denied(format!(
            "user {uid} may not call this CA; only its own user ({own_uid}) and root may: run the command as one of them"
        )));
    }
    request.extensions_mut().insert(Operator { uid });
    Ok(request)
}

fn may_call(uid: u32, own_uid: u32) -> bool {
    uid == own_uid || uid == 0
}

// === impl Caller ===

impl Caller {
    fn may_call(&self) -> bool {
        may_call(self.uid, self.own_uid)
    }
}

impl Begins for Caller {
    type UnderWay = Busy;

    /// Of those who may call: others do not come as far as this.
    fn begin(&self) -> Result<Busy, Status> {
        self.slot.settle().map_err(|full| {
            let text = format!("the CA's admin socket has no place for this connection: {full}; try again");
            Status::resource_exhausted(text)
        })?;
        Ok(self.slot.begin())
    }

    fn refused(&self, path: &str, reason: &str) {
        if let Some(refused) = self.refusals.count(self.uid, clock::moment()) {
            tracing::warn!(
                uid = self.uid,
                path,
                reason,
                refused,
                "an admin call was refused by a bound"
            );
        }
    }
}

// === impl Invites ===

impl Invites {
    /// How nodes reach this CA: as the operator says, or else as the configuration does.
    fn address(&self, wanted: &str) -> Result<HostPort, Status> {
        if !wanted.is_empty() {
            return HostPort::parse(wanted).map_err(|e| Status::invalid_argument(format!("`address`: {e}")));
        }
        match &self.advertise {
            Some(address) => Ok(address.clone()),
            None => HostPort::try_from(self.listen).map_err(|_| {
                Status::failed_precondition(format!(
                    "this CA listens on `{}`, every address of its machine, and does not know by which one other machines reach it: set \
                     `advertise = \"HOST:{}\"` in its configuration, or say it with `--address HOST:{}`; no token was made",
                    self.listen,
                    self.listen.port(),
                    self.listen.port()
                ))
            }),
        }
    }
}

// === impl Admin ===

impl Admin {
    /// An entry's own TTL is below `ttl_limit`.
    pub(crate) fn new(registry: Registry, ttl_limit: Duration, publishing: Publishing, invites: Invites) -> Self {
        let trust_domain = publishing.trust_domain().clone();
        Self {
            entries: Entries::new(registry.clone(), trust_domain.clone(), ttl_limit),
            registry,
            invites,
            trust_domain,
            publishing,
        }
    }

    /// An agent of the trust domain, from an operator's text.
    fn agent_id(&self, text: &str) -> Result<SpiffeId, Status> {
        let id = SpiffeId::parse(text).map_err(|e| Status::invalid_argument(e.to_string()))?;
        if id.trust_domain() != &self.trust_domain || !id.is_agent() {
            let domain = &self.trust_domain;
            let text = format!("`{id}` is not an agent of `{domain}`; `hoplite agent list` shows those that joined");
            return Err(Status::invalid_argument(text));
        }
        Ok(id)
    }
}

#[tonic::async_trait]
impl wire::admin_server::Admin for Admin {
    async fn create_token(
        &self,
        request: Request<wire::CreateTokenRequest>,
    ) -> Result<Response<wire::CreateTokenResponse>, Status> {
        let call = AdminCall::new(&request, "create token")?;
        let wire::CreateTokenRequest {
            node,
            ttl_seconds,
            address,
        } = request.into_inner();
        call.answer(&node, async {
            let agent_id = self
                .trust_domain
                .agent(&node)
                .map_err(|e| Status::invalid_argument(e.to_string()))?;
            let ttl = match ttl_seconds {
                0 => TTL_DEFAULT,
                seconds => Duration::from_secs(seconds.into()),
            };
            if ttl > TTL_MAX {
                let text = format!(
                    "`ttl_seconds`: `{ttl_seconds}` is too long; at most {}",
                    TTL_MAX.as_secs()
                );
                return Err(Status::invalid_argument(text));
            }
            let address = self.invites.address(&address)?;
            let now = clock::now();
            let expires_at = record::unix_seconds(now) + ttl.as_secs();
            let token = TokenText::generate().ok_or_else(no_entropy)?.reveal();
            let create = CreateToken {
                digest: digest_of(&token),
                agent_id: agent_id.clone(),
                expires_at,
                now,
            };
            self.registry.write(create).await?;
            Ok(wire::CreateTokenResponse {
                token,
                agent_id: agent_id.to_string(),
                expires_at_unix: unix_i64(expires_at),
                address: address.to_string(),
                fingerprint: self.invites.fingerprint.to_string(),
            })
        })
        .await
    }

    async fn list_agents(
        &self,
        request: Request<wire::ListAgentsRequest>,
    ) -> Result<Response<wire::ListAgentsResponse>, Status> {
        let call = AdminCall::new(&request, "list agents")?;
        let agents = self
            .registry
            .index()
            .agents
            .iter()
            .map(|agent| wire::Agent::from(&**agent))
            .collect();
        call.answer("", async { Ok(wire::ListAgentsResponse { agents }) }).await
    }

    async fn ban_agent(&self, request: Request<wire::AgentRequest>) -> Result<Response<wire::AgentResponse>, Status> {
        let call = AdminCall::new(&request, "ban agent")?;
        let text = request.into_inner().spiffe_id;
        call.answer(&text, async {
            let id = self.agent_id(&text)?;
            self.registry.write(Ban { id }).await?;
            Ok(wire::AgentResponse {})
        })
        .await
    }

    async fn evict_agent(&self, request: Request<wire::AgentRequest>) -> Result<Response<wire::AgentResponse>, Status> {
        let call = AdminCall::new(&request, "evict agent")?;
        let text = request.into_inner().spiffe_id;
        call.answer(&text, async {
            let id = self.agent_id(&text)?;
            self.registry.write(Evict { id }).await?;
            Ok(wire::AgentResponse {})
        })
        .await
    }

    async fn create_entries(
        &self,
        request: Request<wire::CreateEntriesRequest>,
    ) -> Result<Response<wire::CreateEntriesResponse>, Status> {
        let call = AdminCall::new(&request, "create entries")?;
        let entries = request.into_inner().entries;
        let subject = format!("{} entries", entries.len());
        call.answer(&subject, self.entries.create(call.uid, entries)).await
    }

    async fn update_entries(
        &self,
        request: Request<wire::UpdateEntriesRequest>,
    ) -> Result<Response<wire::UpdateEntriesResponse>, Status> {
        let call = AdminCall::new(&request, "update entries")?;
        let entries = request.into_inner().entries;
        let subject = format!("{} entries", entries.len());
        call.answer(&subject, self.entries.update(call.uid, entries)).await
    }

    async fn apply_entries(
        &self,
        request: Request<wire::ApplyEntriesRequest>,
    ) -> Result<Response<wire::ApplyEntriesResponse>, Status> {
        let call = AdminCall::new(&request, "apply entries")?;
        let list = request.into_inner();
        let subject = format!("{} entries of owner {:?}", list.entries.len(), list.owner);
        call.answer(&subject, self.entries.apply(call.uid, list)).await
    }

    async fn list_entries(
        &self,
        request: Request<wire::ListEntriesRequest>,
    ) -> Result<Response<wire::ListEntriesResponse>, Status> {
        let call = AdminCall::new(&request, "list entries")?;
        let listed = self.entries.list(request.get_ref());
        call.answer("", async { Ok(listed) }).await
    }

    async fn delete_entries(
        &self,
        request: Request<wire::DeleteEntriesRequest>,
    ) -> Result<Response<wire::DeleteEntriesResponse>, Status> {
        let call = AdminCall::new(&request, "delete entries")?;
        let ids = request.into_inner().ids;
        call.answer(&format!("{ids:?}"), self.entries.delete(&ids)).await
    }

    async fn show_bundle(&self, request: Request<wire::ShowBundleRequest>) -> Result<Response<wire::Bundle>, Status> {
        let call = AdminCall::new(&request, "show bundle")?;
        let bundle = self.registry.bundles().borrow().clone();
        call.answer("", async { Ok(messages::bundle(&bundle)) }).await
    }

    async fn publish_policy(
        &self,
        request: Request<wire::PublishPolicyRequest>,
    ) -> Result<Response<wire::PublishPolicyResponse>, Status> {
        let call = AdminCall::new(&request, "publish policy")?;
        let wire::PublishPolicyRequest {
            bundle,
            expected_revision,
        } = request.into_inner();
        call.answer(&format!("after revision {expected_revision}"), async {
            let revision = self.publishing.publish(bundle, expected_revision, clock::now()).await?;
            tracing::info!(target: "hoplite::audit", uid = call.uid, revision, "policy is in force");
            Ok(wire::PublishPolicyResponse { revision })
        })
        .await
    }

    async fn show_policy(
        &self,
        request: Request<wire::ShowPolicyRequest>,
    ) -> Result<Response<wire::ShowPolicyResponse>, Status> {
        let call = AdminCall::new(&request, "show policy")?;
        let shown = wire::ShowPolicyResponse {
            trust_domain: self.trust_domain.to_string(),
            signers: self.publishing.signers().names().map(str::to_owned).collect(),
            max_bundle_bytes: self.publishing.bytes_max() as u64,
            ..messages::present_policy(&self.registry.index().policy)
        };
        call.answer("", async { Ok(shown) }).await
    }

    async fn list_policies(
        &self,
        request: Request<wire::ListPoliciesRequest>,
    ) -> Result<Response<wire::ListPoliciesResponse>, Status> {
        let call = AdminCall::new(&request, "list policies")?;
        let wire::ListPoliciesRequest { limit, before_revision } = request.into_inner();
        let limit = if limit == 0 { LIST_DEFAULT } else { limit.min(LIST_MAX) };
        let policies = {
            let index = self.registry.index();
            let is_older = |revision: u64| before_revision == 0 || revision < before_revision;
            let older = index.policy.history().rev().filter(|p| is_older(p.revision));
            let page = older.take(limit as usize);
            page.map(|published| messages::published(&index.policy, published))
                .collect()
        };
        call.answer("", async { Ok(wire::ListPoliciesResponse { policies }) })
            .await
    }

    async fn get_policy(
        &self,
        request: Request<wire::GetPolicyRequest>,
    ) -> Result<Response<wire::GetPolicyResponse>, Status> {
        let call = AdminCall::new(&request, "get policy")?;
        let revision = request.into_inner().revision;
        call.answer(&revision.to_string(), async {
            let (published, policy) = {
                let index = self.registry.index();
                let found = index.policy.published(revision).cloned();
                let published = found.ok_or(PublishError::NoSuchPolicy(revision))?;
                let policy = messages::published(&index.policy, &published);
                (published, Some(policy))
            };
            let (bundle, manifest) = match self.publishing.contents(&published).await? {
                Contents::Bundle(bundle) => (bundle.to_vec(), Vec::new()),
                Contents::Manifest(manifest) => (Vec::new(), manifest),
            };
            Ok(wire::GetPolicyResponse {
                policy,
                bundle,
                manifest,
            })
        })
        .await
    }

    async fn list_signers(
        &self,
        request: Request<wire::ListSignersRequest>,
    ) -> Result<Response<wire::SignerSets>, Status> {
        let call = AdminCall::new(&request, "list signers")?;
        let sets = self.publishing.signer_sets(0);
        call.answer("", async { Ok(wire::SignerSets { sets }) }).await
    }

    async fn publish_signers(
        &self,
        request: Request<wire::PublishSignersRequest>,
    ) -> Result<Response<wire::PublishSignersResponse>, Status> {
        let call = AdminCall::new(&request, "publish signers")?;
        let set = request.into_inner().set;
        call.answer("", async {
            let (version, ended_grants) = self.publishing.add_signers(set).await?;
            Ok(wire::PublishSignersResponse { version, ended_grants })
        })
        .await
    }

    async fn clear_shadow(
        &self,
        request: Request<wire::ClearShadowRequest>,
    ) -> Result<Response<wire::ClearShadowResponse>, Status> {
        AdminCall::new(&request, "clear shadow")?
            .answer("", async {
                let cleared = self.registry.write(ClearShadow).await?;
                Ok(wire::ClearShadowResponse { cleared })
            })
            .await
    }

    async fn add_grant(&self, request: Request<wire::AddGrantRequest>) -> Result<Response<wire::Grant>, Status> {
        let call = AdminCall::new(&request, "add grant")?;
        let grant = request.into_inner().grant;
        call.answer("", async {
            Ok(wire::Grant::from(
                &self.publishing.add_grant(&grant, clock::now()).await?,
            ))
        })
        .await
    }

    async fn list_grants(
        &self,
        request: Request<wire::ListGrantsRequest>,
    ) -> Result<Response<wire::ListGrantsResponse>, Status> {
        let call = AdminCall::new(&request, "list grants")?;
        let grants = {
            let index = self.registry.index();
            let grants = index.policy.current_grants(clock::now());
            grants.map(|grant| wire::Grant::from(&**grant)).collect()
        };
        call.answer("", async { Ok(wire::ListGrantsResponse { grants }) }).await
    }

    async fn revoke_grant(
        &self,
        request: Request<wire::RevokeGrantRequest>,
    ) -> Result<Response<wire::RevokeGrantResponse>, Status> {
        let call = AdminCall::new(&request, "revoke grant")?;
        let id = request.into_inner().id;
        call.answer(&id, async {
            self.registry.write(RevokeGrant { id: id.clone() }).await?;
            Ok(wire::RevokeGrantResponse {})
        })
        .await
    }
}

fn no_entropy() -> Status {
    ours(&"the system gives no random numbers")
}

/// One call and its line in the log.
struct AdminCall {
    action: &'static str,
    uid: u32,
}

// === impl AdminCall ===

impl AdminCall {
    /// Of an operator. Whoever is not known to be one gets no further.
    fn new<T>(request: &Request<T>, action: &'static str) -> Result<Self, Status> {
        match request.extensions().get::<Operator>() {
            Some(Operator { uid }) => Ok(Self { action, uid: *uid }),
            None => Err(ours(&"an admin call came past the check of its caller")),
        }
    }

    /// Runs it and logs who did what to what, and how it ended. Never what was answered: a token may be in it.
    async fn answer<T>(
        &self,
        subject: &str,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<Response<T>, Status> {
        let Self { action, uid } = *self;
        let result = call.await;
        match &result {
            Ok(_) => tracing::info!(target: "hoplite::audit", uid, action, ?subject, outcome = "done", "admin"),
            Err(status) => {
                tracing::warn!(target: "hoplite::audit", uid, action, ?subject, outcome = "refused", reason = status.message(), "admin");
            }
        }
        result.map(Response::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_call() {
        let check = |uid: u32, own: u32, expected: bool| assert_eq!(may_call(uid, own), expected, "{uid} calls {own}");
        check(1000, 1000, true);
        check(0, 1000, true);
        check(1001, 1000, false);
        check(1000, 0, false);
    }
}
