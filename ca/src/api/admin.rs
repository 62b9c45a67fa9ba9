//! What operators ask, on the CA's own Unix socket and on its port. Whoever may connect to the socket is the CA's own user, or root.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hoplite_host::accept::Acceptor;
use hoplite_host::clock;
use hoplite_host::held::Held;
use hoplite_host::local_connection::LocalConnection;
use hoplite_host::refusals::Refusals;
use hoplite_host::shutdown::Shutdown;
use hoplite_host::slots::{Bounds, Busy, Slot, Slots};
use hoplite_identity::{SpiffeId, TrustDomain};
use hoplite_wire::{Begins, Served, ca as wire};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::agents::writes::{Ban, Evict};
use crate::api::admin_call::AdminCall;
use crate::api::authorities::Authorities;
use crate::api::backups::Backups;
use crate::api::entries::Entries;
use crate::api::federations::Federations;
use crate::api::fleet::Reported;
use crate::api::gate::{Calls, Gate, Shown};
use crate::api::invites::Invites;
use crate::api::messages::{self, unix_i64};
use crate::api::operators::{Operators, granted, token_ttl};
use crate::api::status::{Blame, ours};
use crate::federation::keeper::Federation;
use crate::metrics;
use crate::policy::published::Published;
use crate::policy::writes::{ClearShadow, RevokeGrant};
use crate::publishing::{Contents, PublishError, Publishing};
use crate::record;
use crate::registry::Registry;
use crate::rights::action::Action;
use crate::rights::words::{Way, What, Who};
use crate::rotation::Rotation;
use crate::tokens::token::{TokenText, digest_of, id_of};
use crate::tokens::writes::{CreateToken, DeleteToken, TokenError};

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
    operators: Operators,
    publishing: Publishing,
    reported: Reported,
    backups: Backups,
    authorities: Authorities,
    federations: Federations,
}

/// Who called, as the kernel names them, and whether they may.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    uid: u32,
    own_uid: u32,
    /// The connection's place. Those who may not call stay newcomers there, and take no operator's.
    slot: Arc<Slot>,
    refusals: Arc<Refusals<u32>>,
    calls: metrics::Calls,
}

/// Accepts until the shutdown, and hands over all connections: those who may not call are told so on them.
pub(crate) async fn accept(
    listener: UnixListener,
    accepted: mpsc::Sender<io::Result<Served<Held<LocalConnection>, Caller>>>,
    calls: metrics::Calls,
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
            calls: calls.clone(),
        };
        if !caller.may_call() {
            connection = connection.for_no_longer_than(STRANGER_STAYS);
        }
        let connection = Served::new(Held::new(connection, slot), caller);
        let _ = accepted.send(Ok(connection)).await; // nobody listens any more while stopping
    }
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

impl Calls for Caller {
    /// The socket's mode keeps others out already; this holds where somebody changed it.
    fn who(&self, _: &Gate) -> Result<Who, Status> {
        let Self { uid, own_uid, .. } = *self;
        if self.may_call() {
            return Ok(Who::Local { uid });
        }
        Err(Status::permission_denied(format!(
            "user {uid} may not call this CA on its socket; only its own user ({own_uid}) and root may: run the command as one of \
             them, or sign in as an operator with `hoplite login`"
        )))
    }

    fn way(&self) -> Way {
        Way::Socket
    }

    fn shown(&self) -> Option<Shown> {
        None
    }

    fn stranger(&self) -> String {
        format!("local user {}", self.uid)
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

    fn answered(&self, rpc: &str, code: &str) {
        self.calls.answered(rpc, code);
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

/// What the admin API is made of.
pub(crate) struct Parts {
    pub(crate) registry: Registry,
    /// An entry's own TTL is below it.
    pub(crate) ttl_limit: Duration,
    pub(crate) publishing: Publishing,
    pub(crate) invites: Invites,
    pub(crate) reported: Reported,
    pub(crate) backups: Backups,
    pub(crate) rotation: Rotation,
    pub(crate) federation: Federation,
}

// === impl Admin ===

impl Admin {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts {
            registry,
            ttl_limit,
            publishing,
            invites,
            reported,
            backups,
            rotation,
            federation,
        } = parts;
        let trust_domain = publishing.trust_domain().clone();
        let issuer = invites.issuer.clone();
        Self {
            entries: Entries::new(registry.clone(), trust_domain.clone(), ttl_limit),
            operators: Operators::new(registry.clone(), trust_domain.clone(), issuer, invites.clone()),
            federations: Federations::new(registry.clone(), federation),
            registry,
            invites,
            trust_domain,
            publishing,
            reported,
            backups,
            authorities: Authorities::new(rotation),
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
        let call = AdminCall::new(&request, Action::CreateToken)?;
        let wire::CreateTokenRequest {
            node,
            ttl_seconds,
            address,
            labels,
        } = request.into_inner();
        call.answer(&node, async {
            let grants = granted(&labels)?;
            let agent_id = self
                .trust_domain
                .agent(&node)
                .map_err(|e| Status::invalid_argument(e.to_string()))?;
            let ttl = token_ttl(ttl_seconds)?;
            let address = self.invites.address(&address)?;
            let now = clock::now();
            let expires_at = record::unix_seconds(now) + ttl.as_secs();
            let token = TokenText::generate()
                .ok_or_else(|| ours(&"the system gives no random numbers"))?
                .reveal();
            let digest = digest_of(&token);
            let id = id_of(&digest).to_owned();
            let create = CreateToken {
                digest,
                agent_id: agent_id.clone(),
                grants,
                expires_at,
                expired: self.registry.index().tokens.expired(now),
            };
            let (has_joined, nested) = {
                let index = self.registry.index();
                let nested: Vec<_> = index.entries.nested_on(&agent_id).cloned().collect();
                (index.agents.get(&agent_id).is_some(), nested)
            };
            // Whoever joins as the node of a nested CA can be that CA.
            let besides = nested
                .iter()
                .map(|entry| (Action::RegisterNestedCa, What::Entry(entry)));
            let allowed = call.may_besides(What::Agent(&agent_id), besides)?;
            self.registry.write(create).await?;
            Ok(allowed.done(wire::CreateTokenResponse {
                token,
                agent_id: agent_id.to_string(),
                expires_at_unix: unix_i64(expires_at),
                address: address.to_string(),
                fingerprint: self.invites.fingerprint().to_string(),
                id,
                has_joined,
            }))
        })
        .await
    }

    async fn list_tokens(
        &self,
        request: Request<wire::ListTokensRequest>,
    ) -> Result<Response<wire::ListTokensResponse>, Status> {
        let call = AdminCall::new(&request, Action::ListTokens)?;
        let tokens = {
            let index = self.registry.index();
            index.tokens.iter().map(messages::token).collect()
        };
        call.answer("", async {
            Ok(call.may(What::TrustDomain)?.done(wire::ListTokensResponse { tokens }))
        })
        .await
    }

    async fn delete_token(
        &self,
        request: Request<wire::DeleteTokenRequest>,
    ) -> Result<Response<wire::DeleteTokenResponse>, Status> {
        let call = AdminCall::new(&request, Action::DeleteToken)?;
        let id = request.into_inner().id;
        call.answer(&id, async {
            let found = {
                let index = self.registry.index();
                let found = index.tokens.of_id(&id);
                found.map(|(name, token)| (name.to_owned(), token.admits.clone()))
            };
            let (name, admits) = found.ok_or_else(|| TokenError::NoSuchToken.status())?;
            let allowed = call.may(match admits.operator() {
                Some(operator) => What::Operator(operator),
                None => What::Agent(&admits),
            })?;
            let admits = self.registry.write(DeleteToken { name }).await?;
            tracing::info!(target: "hoplite::audit", who = %call.who(), id, %admits, "an invitation is withdrawn");
            Ok(allowed.done(wire::DeleteTokenResponse {
                admits: admits.to_string(),
            }))
        })
        .await
    }

    async fn list_agents(
        &self,
        request: Request<wire::ListAgentsRequest>,
    ) -> Result<Response<wire::ListAgentsResponse>, Status> {
        let call = AdminCall::new(&request, Action::ListAgents)?;
        let agents = self
            .registry
            .index()
            .agents
            .iter()
            .map(|agent| wire::Agent::from(&**agent))
            .collect();
        call.answer("", async {
            Ok(call.may(What::TrustDomain)?.done(wire::ListAgentsResponse { agents }))
        })
        .await
    }

    async fn ban_agent(&self, request: Request<wire::AgentRequest>) -> Result<Response<wire::AgentResponse>, Status> {
        let call = AdminCall::new(&request, Action::BanAgent)?;
        let text = request.into_inner().spiffe_id;
        call.answer(&text, async {
            let id = self.agent_id(&text)?;
            let allowed = call.may(What::Agent(&id))?;
            let already = self.registry.write(Ban { id }).await?;
            Ok(allowed.done(wire::AgentResponse { already }))
        })
        .await
    }

    async fn evict_agent(&self, request: Request<wire::AgentRequest>) -> Result<Response<wire::AgentResponse>, Status> {
        let call = AdminCall::new(&request, Action::EvictAgent)?;
        let text = request.into_inner().spiffe_id;
        call.answer(&text, async {
            let id = self.agent_id(&text)?;
            let allowed = call.may(What::Agent(&id))?;
            self.registry.write(Evict { id }).await?;
            Ok(allowed.done(wire::AgentResponse { already: false }))
        })
        .await
    }

    async fn create_entries(
        &self,
        request: Request<wire::CreateEntriesRequest>,
    ) -> Result<Response<wire::CreateEntriesResponse>, Status> {
        let call = AdminCall::new(&request, Action::CreateEntries)?;
        let entries = request.into_inner().entries;
        let subject = format!("{} entries", entries.len());
        call.answer(&subject, self.entries.create(&call, entries)).await
    }

    async fn update_entries(
        &self,
        request: Request<wire::UpdateEntriesRequest>,
    ) -> Result<Response<wire::UpdateEntriesResponse>, Status> {
        let call = AdminCall::new(&request, Action::UpdateEntries)?;
        let entries = request.into_inner().entries;
        let subject = format!("{} entries", entries.len());
        call.answer(&subject, self.entries.update(&call, entries)).await
    }

    async fn apply_entries(
        &self,
        request: Request<wire::ApplyEntriesRequest>,
    ) -> Result<Response<wire::ApplyEntriesResponse>, Status> {
        let call = AdminCall::new(&request, Action::ApplyEntries)?;
        let list = request.into_inner();
        let dry = if list.dry_run { ", as a trial" } else { "" };
        let subject = format!("{} entries of owner {:?}{dry}", list.entries.len(), list.owner);
        call.answer(&subject, self.entries.apply(&call, list)).await
    }

    async fn list_entries(
        &self,
        request: Request<wire::ListEntriesRequest>,
    ) -> Result<Response<wire::ListEntriesResponse>, Status> {
        let call = AdminCall::new(&request, Action::ListEntries)?;
        let asked = request.into_inner();
        call.answer("", self.entries.list(&call, &asked)).await
    }

    async fn delete_entries(
        &self,
        request: Request<wire::DeleteEntriesRequest>,
    ) -> Result<Response<wire::DeleteEntriesResponse>, Status> {
        let call = AdminCall::new(&request, Action::DeleteEntries)?;
        let ids = request.into_inner().ids;
        call.answer(&format!("{ids:?}"), self.entries.delete(&call, &ids)).await
    }

    async fn show_bundle(&self, request: Request<wire::ShowBundleRequest>) -> Result<Response<wire::Bundle>, Status> {
        let call = AdminCall::new(&request, Action::ShowBundle)?;
        let bundle = self.registry.bundles().borrow().clone();
        call.answer("", async {
            Ok(call.may(What::TrustDomain)?.done(messages::bundle(&bundle)))
        })
        .await
    }

    async fn publish_policy(
        &self,
        request: Request<wire::PublishPolicyRequest>,
    ) -> Result<Response<wire::PublishPolicyResponse>, Status> {
        let call = AdminCall::new(&request, Action::PublishPolicy)?;
        let wire::PublishPolicyRequest {
            bundle,
            expected_revision,
        } = request.into_inner();
        call.answer(&format!("after revision {expected_revision}"), async {
            let allowed = call.may(What::TrustDomain)?;
            let revision = self.publishing.publish(bundle, expected_revision, clock::now()).await?;
            tracing::info!(target: "hoplite::audit", who = %call.who(), revision, "policy is in force");
            let notes = self
                .registry
                .index()
                .policy
                .published(revision)
                .map(|published| noted(published))
                .unwrap_or_default();
            Ok(allowed.done(wire::PublishPolicyResponse { revision }).noting(notes))
        })
        .await
    }

    async fn show_policy(
        &self,
        request: Request<wire::ShowPolicyRequest>,
    ) -> Result<Response<wire::ShowPolicyResponse>, Status> {
        let call = AdminCall::new(&request, Action::ShowPolicy)?;
        let shown = wire::ShowPolicyResponse {
            trust_domain: self.trust_domain.to_string(),
            signers: self.publishing.signers().names().map(str::to_owned).collect(),
            max_bundle_bytes: self.publishing.bytes_max() as u64,
            ..messages::present_policy(&self.registry.index().policy)
        };
        call.answer("", async { Ok(call.may(What::TrustDomain)?.done(shown)) })
            .await
    }

    async fn list_policies(
        &self,
        request: Request<wire::ListPoliciesRequest>,
    ) -> Result<Response<wire::ListPoliciesResponse>, Status> {
        let call = AdminCall::new(&request, Action::ListPolicies)?;
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
        call.answer("", async {
            Ok(call
                .may(What::TrustDomain)?
                .done(wire::ListPoliciesResponse { policies }))
        })
        .await
    }

    async fn get_policy(
        &self,
        request: Request<wire::GetPolicyRequest>,
    ) -> Result<Response<wire::GetPolicyResponse>, Status> {
        let call = AdminCall::new(&request, Action::GetPolicy)?;
        let revision = request.into_inner().revision;
        call.answer(&revision.to_string(), async {
            let allowed = call.may(What::TrustDomain)?;
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
            Ok(allowed.done(wire::GetPolicyResponse {
                policy,
                bundle,
                manifest,
            }))
        })
        .await
    }

    async fn list_signers(
        &self,
        request: Request<wire::ListSignersRequest>,
    ) -> Result<Response<wire::SignerSets>, Status> {
        let call = AdminCall::new(&request, Action::ListSigners)?;
        let sets = self.publishing.signer_sets(0);
        call.answer("", async {
            Ok(call.may(What::TrustDomain)?.done(wire::SignerSets { sets }))
        })
        .await
    }

    async fn publish_signers(
        &self,
        request: Request<wire::PublishSignersRequest>,
    ) -> Result<Response<wire::PublishSignersResponse>, Status> {
        let call = AdminCall::new(&request, Action::PublishSigners)?;
        let set = request.into_inner().set;
        call.answer("", async {
            let allowed = call.may(What::TrustDomain)?;
            let (version, ended_grants) = self.publishing.add_signers(set).await?;
            let notes = [("version", version.to_string())];
            Ok(allowed
                .done(wire::PublishSignersResponse { version, ended_grants })
                .noting(notes))
        })
        .await
    }

    async fn clear_shadow(
        &self,
        request: Request<wire::ClearShadowRequest>,
    ) -> Result<Response<wire::ClearShadowResponse>, Status> {
        let call = AdminCall::new(&request, Action::ClearShadow)?;
        call.answer("", async {
            let allowed = call.may(What::TrustDomain)?;
            let cleared = self.registry.write(ClearShadow).await?;
            Ok(allowed.done(wire::ClearShadowResponse { cleared }))
        })
        .await
    }

    async fn add_grant(&self, request: Request<wire::AddGrantRequest>) -> Result<Response<wire::Grant>, Status> {
        let call = AdminCall::new(&request, Action::AddGrant)?;
        let grant = request.into_inner().grant;
        call.answer("", async {
            let allowed = call.may(What::TrustDomain)?;
            let added = self.publishing.add_grant(&grant, clock::now()).await?;
            let notes = [
                ("grant", added.id.clone()),
                ("signed_by", added.signed_by.join(" ")),
                ("sha256", added.hash.clone()),
                ("reason", added.reason.clone()),
            ];
            Ok(allowed.done(wire::Grant::from(&added)).noting(notes))
        })
        .await
    }

    async fn list_grants(
        &self,
        request: Request<wire::ListGrantsRequest>,
    ) -> Result<Response<wire::ListGrantsResponse>, Status> {
        let call = AdminCall::new(&request, Action::ListGrants)?;
        let grants = {
            let index = self.registry.index();
            let grants = index.policy.current_grants(clock::now());
            grants.map(|grant| wire::Grant::from(&**grant)).collect()
        };
        call.answer("", async {
            Ok(call.may(What::TrustDomain)?.done(wire::ListGrantsResponse { grants }))
        })
        .await
    }

    async fn revoke_grant(
        &self,
        request: Request<wire::RevokeGrantRequest>,
    ) -> Result<Response<wire::RevokeGrantResponse>, Status> {
        let call = AdminCall::new(&request, Action::RevokeGrant)?;
        let id = request.into_inner().id;
        call.answer(&id, async {
            let allowed = call.may(What::TrustDomain)?;
            self.registry.write(RevokeGrant { id: id.clone() }).await?;
            Ok(allowed.done(wire::RevokeGrantResponse {}))
        })
        .await
    }

    type ShowMeshStream = ReceiverStream<Result<wire::Mesh, Status>>;

    async fn show_mesh(
        &self,
        request: Request<wire::ShowMeshRequest>,
    ) -> Result<Response<Self::ShowMeshStream>, Status> {
        let call = AdminCall::new(&request, Action::ShowMesh)?;
        call.answer("", async {
            let allowed = call.may(What::TrustDomain)?;
            let answers = self.reported.mesh(request.into_inner());
            Ok(allowed.done(ReceiverStream::new(answers)))
        })
        .await
    }

    type ListReportsStream = ReceiverStream<Result<wire::NodeReport, Status>>;

    async fn list_reports(
        &self,
        request: Request<wire::ListReportsRequest>,
    ) -> Result<Response<Self::ListReportsStream>, Status> {
        let call = AdminCall::new(&request, Action::ListReports)?;
        call.answer("", async {
            let allowed = call.may(What::TrustDomain)?;
            let answers = self.reported.reports(request.get_ref());
            Ok(allowed.done(ReceiverStream::new(answers)))
        })
        .await
    }

    async fn show_report(
        &self,
        request: Request<wire::ShowReportRequest>,
    ) -> Result<Response<wire::NodeReport>, Status> {
        let call = AdminCall::new(&request, Action::ShowReport)?;
        let node = request.into_inner().node;
        call.answer(&node, async {
            let allowed = call.may(What::TrustDomain)?;
            Ok(allowed.done(self.reported.report(&node)?))
        })
        .await
    }

    async fn who_am_i(&self, request: Request<wire::WhoAmIRequest>) -> Result<Response<wire::WhoAmIResponse>, Status> {
        let call = AdminCall::new(&request, Action::WhoAmI)?;
        let bundle = self.registry.bundles().borrow().clone();
        call.answer("", async {
            let allowed = call.may(What::TrustDomain)?;
            Ok(allowed.done(self.operators.who_am_i(&call, messages::bundle(&bundle))))
        })
        .await
    }

    async fn create_operator_token(
        &self,
        request: Request<wire::CreateOperatorTokenRequest>,
    ) -> Result<Response<wire::CreateTokenResponse>, Status> {
        let call = AdminCall::new(&request, Action::CreateOperatorToken)?;
        let asked = request.into_inner();
        let subject = format!(
            "{} with roles {:?} and paths {:?}",
            asked.name, asked.roles, asked.paths
        );
        call.answer(&subject, self.operators.create_token(&call, asked)).await
    }

    async fn list_operators(
        &self,
        request: Request<wire::ListOperatorsRequest>,
    ) -> Result<Response<wire::ListOperatorsResponse>, Status> {
        let call = AdminCall::new(&request, Action::ListOperators)?;
        call.answer("", async {
            Ok(call.may(What::TrustDomain)?.done(self.operators.list()))
        })
        .await
    }

    async fn ban_operator(
        &self,
        request: Request<wire::OperatorRequest>,
    ) -> Result<Response<wire::OperatorResponse>, Status> {
        let call = AdminCall::new(&request, Action::BanOperator)?;
        let name = request.into_inner().name;
        call.answer(&name, self.operators.ban(&call, &name)).await
    }

    async fn remove_operator(
        &self,
        request: Request<wire::OperatorRequest>,
    ) -> Result<Response<wire::OperatorResponse>, Status> {
        let call = AdminCall::new(&request, Action::RemoveOperator)?;
        let name = request.into_inner().name;
        call.answer(&name, self.operators.remove(&call, &name)).await
    }

    async fn renew_operator(
        &self,
        request: Request<wire::RenewRequest>,
    ) -> Result<Response<wire::SvidResponse>, Status> {
        let call = AdminCall::new(&request, Action::RenewOperator)?;
        let csr = request.into_inner().csr;
        call.answer("", self.operators.renew(&call, &csr)).await
    }

    async fn sign_out(
        &self,
        request: Request<wire::SignOutRequest>,
    ) -> Result<Response<wire::SignOutResponse>, Status> {
        let call = AdminCall::new(&request, Action::SignOut)?;
        call.answer("", self.operators.sign_out(&call)).await
    }

    type BackUpStream = ReceiverStream<Result<wire::BackupPart, Status>>;

    async fn back_up(&self, request: Request<wire::BackUpRequest>) -> Result<Response<Self::BackUpStream>, Status> {
        let call = AdminCall::new(&request, Action::BackUp)?;
        call.answer("", async {
            let allowed = call.may(What::TrustDomain)?;
            let parts = self.backups.begin(call.who().to_string())?;
            Ok(allowed.done(ReceiverStream::new(parts)))
        })
        .await
    }

    async fn list_authorities(
        &self,
        request: Request<wire::ListAuthoritiesRequest>,
    ) -> Result<Response<wire::ListAuthoritiesResponse>, Status> {
        let call = AdminCall::new(&request, Action::ListAuthorities)?;
        call.answer("", async {
            Ok(call.may(What::TrustDomain)?.done(self.authorities.list()))
        })
        .await
    }

    async fn prepare_authority(
        &self,
        request: Request<wire::PrepareAuthorityRequest>,
    ) -> Result<Response<wire::Authority>, Status> {
        let call = AdminCall::new(&request, Action::PrepareAuthority)?;
        call.answer("", self.authorities.prepare(&call, request.into_inner()))
            .await
    }

    async fn activate_authority(
        &self,
        request: Request<wire::AuthorityRequest>,
    ) -> Result<Response<wire::Authority>, Status> {
        let call = AdminCall::new(&request, Action::ActivateAuthority)?;
        let asked = request.into_inner();
        call.answer(&asked.fingerprint, self.authorities.activate(&call, &asked))
            .await
    }

    async fn taint_authority(
        &self,
        request: Request<wire::AuthorityRequest>,
    ) -> Result<Response<wire::Authority>, Status> {
        let call = AdminCall::new(&request, Action::TaintAuthority)?;
        let asked = request.into_inner();
        call.answer(&asked.fingerprint, self.authorities.taint(&call, &asked))
            .await
    }

    async fn revoke_authority(
        &self,
        request: Request<wire::AuthorityRequest>,
    ) -> Result<Response<wire::Authority>, Status> {
        let call = AdminCall::new(&request, Action::RevokeAuthority)?;
        let asked = request.into_inner();
        call.answer(&asked.fingerprint, self.authorities.revoke(&call, &asked))
            .await
    }

    async fn add_federation(
        &self,
        request: Request<wire::AddFederationRequest>,
    ) -> Result<Response<wire::Federation>, Status> {
        let call = AdminCall::new(&request, Action::AddFederation)?;
        let asked = request.into_inner();
        let subject = asked.trust_domain.clone();
        call.answer(&subject, self.federations.add(&call, asked)).await
    }

    async fn list_federations(
        &self,
        request: Request<wire::ListFederationsRequest>,
    ) -> Result<Response<wire::ListFederationsResponse>, Status> {
        let call = AdminCall::new(&request, Action::ListFederations)?;
        call.answer("", async {
            Ok(call.may(What::TrustDomain)?.done(self.federations.list()))
        })
        .await
    }

    async fn refresh_federation(
        &self,
        request: Request<wire::FederationRequest>,
    ) -> Result<Response<wire::Federation>, Status> {
        let call = AdminCall::new(&request, Action::RefreshFederation)?;
        let name = request.into_inner().trust_domain;
        call.answer(&name, self.federations.refresh(&call, &name)).await
    }

    async fn delete_federation(
        &self,
        request: Request<wire::FederationRequest>,
    ) -> Result<Response<wire::Federation>, Status> {
        let call = AdminCall::new(&request, Action::DeleteFederation)?;
        let name = request.into_inner().trust_domain;
        call.answer(&name, self.federations.delete(&call, &name)).await
    }

    async fn set_foreign_bundle(
        &self,
        request: Request<wire::SetForeignBundleRequest>,
    ) -> Result<Response<wire::Federation>, Status> {
        let call = AdminCall::new(&request, Action::SetForeignBundle)?;
        let asked = request.into_inner();
        let subject = asked.trust_domain.clone();
        call.answer(&subject, self.federations.set_bundle(&call, asked)).await
    }

    async fn show_foreign_bundle(
        &self,
        request: Request<wire::FederationRequest>,
    ) -> Result<Response<wire::Bundle>, Status> {
        let call = AdminCall::new(&request, Action::ShowForeignBundle)?;
        let name = request.into_inner().trust_domain;
        call.answer(&name, async {
            let allowed = call.may(What::TrustDomain)?;
            Ok(allowed.done(self.federations.show_bundle(&name)?))
        })
        .await
    }

    async fn put_federation_set(
        &self,
        request: Request<wire::FederationSet>,
    ) -> Result<Response<wire::FederationSetResponse>, Status> {
        let call = AdminCall::new(&request, Action::PutFederationSet)?;
        let asked = request.into_inner();
        let subject = asked.name.clone();
        call.answer(&subject, self.federations.put_set(&call, asked)).await
    }

    async fn delete_federation_set(
        &self,
        request: Request<wire::DeleteFederationSetRequest>,
    ) -> Result<Response<wire::FederationSetResponse>, Status> {
        let call = AdminCall::new(&request, Action::DeleteFederationSet)?;
        let name = request.into_inner().name;
        call.answer(&name.clone(), self.federations.delete_set(&call, name))
            .await
    }
}

/// What the log keeps of a published bundle.
fn noted(published: &Published) -> [(&'static str, String); 4] {
    [
        ("revision", published.revision.to_string()),
        ("manifest", published.manifest.to_string()),
        ("signed_by", published.signed_by.join(" ")),
        ("note", published.note.clone().unwrap_or_default()),
    ]
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
