//! What is asked about operators: an invitation, who there is, who am I, a newer certificate, a ban.

use std::collections::BTreeSet;
use std::time::Duration;

use hoplite_host::clock;
use hoplite_identity::{NODE_SELECTORS_MAX, Selector, SelectorKind, SpiffeId, TrustDomain};
use hoplite_wire::ca as wire;
use tonic::Status;

use crate::api::admin_call::{AdminCall, Done};
use crate::api::gate::Shown;
use crate::api::invites::Invites;
use crate::api::messages::{self, unix_i64};
use crate::api::status::ours;
use crate::issuance::SubjectKey;
use crate::issuer::Issuer;
use crate::operators::operator;
use crate::operators::writes::{BanOperator, Invite, Prolong, RemoveOperator, SignOut};
use crate::record;
use crate::registry::Registry;
use crate::rights::words::{What, Who};
use crate::tokens::token::{TTL_DEFAULT, TTL_MAX, TokenText, digest_of, id_of};

/// The operators' part of the admin API.
pub(super) struct Operators {
    registry: Registry,
    trust_domain: TrustDomain,
    issuer: Issuer,
    invites: Invites,
}

/// What labels an invitation grants a node.
pub(super) fn granted(labels: &[String]) -> Result<BTreeSet<Selector>, Status> {
    let of = |label: &String| Selector::new(SelectorKind::TokenLabel, label);
    let granted: BTreeSet<_> = (labels.iter().map(of).collect::<Result<_, _>>())
        .map_err(|error| Status::invalid_argument(format!("`labels`: {error}")))?;
    if granted.len() > NODE_SELECTORS_MAX {
        let text = format!("`labels`: {} given; at most {NODE_SELECTORS_MAX}", granted.len());
        return Err(Status::invalid_argument(text));
    }
    Ok(granted)
}

/// How long a token lives; 0 for the usual time.
pub(super) fn token_ttl(ttl_seconds: u32) -> Result<Duration, Status> {
    let ttl = match ttl_seconds {
        0 => TTL_DEFAULT,
        seconds => Duration::from_secs(seconds.into()),
    };
    if ttl > TTL_MAX {
        let text = format!(
            "a token that lives for {} is too long-lived; at most {}",
            humantime::format_duration(ttl),
            humantime::format_duration(TTL_MAX)
        );
        return Err(Status::invalid_argument(text));
    }
    Ok(ttl)
}

// === impl Operators ===

impl Operators {
    pub(super) fn new(registry: Registry, trust_domain: TrustDomain, issuer: Issuer, invites: Invites) -> Self {
        Self {
            registry,
            trust_domain,
            issuer,
            invites,
        }
    }

    pub(super) fn who_am_i(&self, call: &AdminCall, bundle: wire::Bundle) -> wire::WhoAmIResponse {
        let (roles, paths) = match call.who() {
            Who::Operator(operator) => (operator.roles.iter().cloned(), operator.paths.iter().cloned()),
            Who::Local { .. } | Who::Workload(_) => Default::default(),
        };
        let shown = call.shown();
        wire::WhoAmIResponse {
            who: call.who().to_string(),
            spiffe_id: shown.map(|shown| shown.spiffe_id.to_string()).unwrap_or_default(),
            roles: roles.collect(),
            paths: paths.collect(),
            actions: call.actions(),
            expires_at_unix: shown.map_or(0, |shown| unix_i64(record::unix_seconds(shown.not_after))),
            trust_domain: self.trust_domain.to_string(),
            bundle: Some(bundle),
        }
    }

    pub(super) async fn create_token(
        &self,
        call: &AdminCall,
        asked: wire::CreateOperatorTokenRequest,
    ) -> Result<Done<wire::CreateTokenResponse>, Status> {
        let wire::CreateOperatorTokenRequest {
            name,
            roles,
            paths,
            ttl_seconds,
            address,
        } = asked;
        let address = self.invites.address(&address)?;
        let id = self.id(&name)?;
        let allowed = call.may(What::Operator(&name))?;
        let rights = match roles.is_empty() && paths.is_empty() {
            true => None,
            false => {
                let parsed = operator::parse(roles, paths, &call.known_roles(), &self.trust_domain);
                Some(parsed.map_err(|error| Status::invalid_argument(error.to_string()))?)
            }
        };
        let now = clock::now();
        let expires_at = record::unix_seconds(now) + token_ttl(ttl_seconds)?.as_secs();
        let token = TokenText::generate().ok_or_else(|| ours(&"the system gives no random numbers"))?;
        let token = token.reveal();
        let digest = digest_of(&token);
        let token_id = id_of(&digest).to_owned();
        let invite = Invite {
            digest,
            id: id.clone(),
            name,
            rights,
            expires_at,
            expired: self.registry.index().tokens.expired(now),
        };
        self.registry.write(invite).await?;
        Ok(allowed.done(wire::CreateTokenResponse {
            token,
            agent_id: id.to_string(),
            expires_at_unix: unix_i64(expires_at),
            address: address.to_string(),
            fingerprint: self.invites.fingerprint().to_string(),
            id: token_id,
            has_joined: false,
        }))
    }

    pub(super) fn list(&self) -> wire::ListOperatorsResponse {
        let now = clock::now();
        let index = self.registry.index();
        let operators = index.operators.iter();
        wire::ListOperatorsResponse {
            operators: operators.map(|operator| messages::operator(operator, now)).collect(),
        }
    }

    pub(super) async fn ban(&self, call: &AdminCall, name: &str) -> Result<Done<wire::OperatorResponse>, Status> {
        self.id(name)?;
        let allowed = call.may(What::Operator(name))?;
        let already = self.registry.write(BanOperator { name: name.to_owned() }).await?;
        Ok(allowed.done(wire::OperatorResponse { already }))
    }

    pub(super) async fn remove(&self, call: &AdminCall, name: &str) -> Result<Done<wire::OperatorResponse>, Status> {
        self.id(name)?;
        let allowed = call.may(What::Operator(name))?;
        self.registry.write(RemoveOperator { name: name.to_owned() }).await?;
        Ok(allowed.done(wire::OperatorResponse { already: false }))
    }

    pub(super) async fn renew(&self, call: &AdminCall, csr: &[u8]) -> Result<Done<wire::SvidResponse>, Status> {
        let allowed = call.may(What::TrustDomain)?;
        let (name, shown) = own(call)?;
        let key = SubjectKey::from_csr(csr)?;
        let (issuer, id, now) = (self.issuer.clone(), shown.spiffe_id.clone(), clock::now());
        let prolong = Prolong {
            name,
            shown: shown.serial.clone(),
            now,
            mint: move |left: Duration| issuer.operator(&id, Some(left), &key, now),
        };
        let minted = self.registry.write(prolong).await?;
        let chain = call.release(minted, "prolong").await?;
        let bundle = self.registry.bundles().borrow().clone();
        Ok(allowed.done(wire::SvidResponse {
            chain: chain.iter().map(|certificate| certificate.to_vec()).collect(),
            bundle: Some(messages::bundle(&bundle)),
            addresses: Vec::new(),
        }))
    }

    pub(super) async fn sign_out(&self, call: &AdminCall) -> Result<Done<wire::SignOutResponse>, Status> {
        let allowed = call.may(What::TrustDomain)?;
        let (name, shown) = own(call)?;
        let shown = shown.serial.clone();
        self.registry.write(SignOut { name, shown }).await?;
        Ok(allowed.done(wire::SignOutResponse {}))
    }

    fn id(&self, name: &str) -> Result<SpiffeId, Status> {
        let id = self.trust_domain.operator(name);
        id.map_err(|error| Status::invalid_argument(error.to_string()))
    }
}

/// The name and the certificate of the calling operator.
fn own(call: &AdminCall) -> Result<(String, &Shown), Status> {
    match (call.who(), call.shown()) {
        (Who::Operator(operator), Some(shown)) => Ok((operator.name.clone(), shown)),
        (who, _) => {
            let text = format!("{who} has no operator certificate; `hoplite login` gets one");
            Err(Status::failed_precondition(text))
        }
    }
}
