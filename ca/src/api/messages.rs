//! The CA's words as protobuf has them.

use std::time::SystemTime;

use hoplite_identity::{FederationSet, TrustBundle};
use hoplite_policy::holding::BundleRef;
use hoplite_wire::ca as wire;

use crate::agents::agent::Agent;
use crate::epoch::EpochName;
use crate::federation::index::ForeignUpdate;
use crate::operators::operator::Operator;
use crate::policy::grant::GrantRecord;
use crate::policy::index::{InForce, PolicyIndex};
use crate::policy::published::Published;
use crate::tokens::token::{Token, id_of};

/// The protobuf form of a time.
pub(super) fn unix_i64(seconds: u64) -> i64 {
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

/// The trust bundle.
pub(super) fn bundle(bundle: &TrustBundle) -> wire::Bundle {
    wire::Bundle {
        trust_domain: bundle.trust_domain().to_string(),
        authorities: bundle
            .authorities()
            .iter()
            .map(|authority| authority.to_vec())
            .collect(),
        sequence: bundle.sequence(),
        tainted: bundle
            .tainted()
            .iter()
            .map(|fingerprint| fingerprint.as_bytes().to_vec())
            .collect(),
        jwks: bundle.jwt().to_jwks(),
        tainted_keys: bundle
            .tainted_keys()
            .iter()
            .map(|key| key.as_bytes().to_vec())
            .collect(),
        revoked_keys: bundle
            .revoked_keys()
            .iter()
            .map(|key| key.as_bytes().to_vec())
            .collect(),
    }
}

/// What an agent is to hold of foreign trust domains.
pub(super) fn foreign(update: &ForeignUpdate) -> wire::Foreign {
    let bundles = update.bundles.iter().map(|part| wire::ForeignBundle {
        trust_domain: part.trust_domain.to_string(),
        revision: part.revision,
        bundle: part.bundle.as_deref().map(bundle),
    });
    wire::Foreign {
        bundles: bundles.collect(),
        sets: update
            .sets
            .iter()
            .map(|(name, set)| federation_set(name, set))
            .collect(),
    }
}

/// A federation set, by its name.
pub(super) fn federation_set(name: &str, set: &FederationSet) -> wire::FederationSet {
    wire::FederationSet {
        name: name.to_owned(),
        prefix: set.prefix.to_string(),
        trust_domains: set.trust_domains.iter().map(ToString::to_string).collect(),
    }
}

impl From<EpochName> for wire::Epoch {
    fn from(name: EpochName) -> Self {
        let EpochName { number, tie } = name;
        Self { number, tie }
    }
}

impl From<wire::Epoch> for EpochName {
    fn from(message: wire::Epoch) -> Self {
        let wire::Epoch { number, tie } = message;
        Self { number, tie }
    }
}

impl From<&Agent> for wire::Agent {
    /// What operators see: the newest certificate.
    fn from(agent: &Agent) -> Self {
        let newest = agent.newest();
        Self {
            spiffe_id: agent.spiffe_id.to_string(),
            serial: newest.serial.clone(),
            expires_at_unix: unix_i64(newest.not_after),
            banned: agent.banned,
            contested_at_unix: agent.contested.map_or(0, unix_i64),
            selectors: agent.selectors.iter().map(wire::Selector::from).collect(),
            attested_by: agent
                .attested
                .as_ref()
                .map(|attested| attested.by.clone())
                .unwrap_or_default(),
            attested_at_unix: agent.attested.as_ref().map_or(0, |attested| unix_i64(attested.at)),
        }
    }
}

/// What other operators see of one.
pub(super) fn operator(operator: &Operator, now: SystemTime) -> wire::Operator {
    wire::Operator {
        name: operator.name.clone(),
        roles: operator.roles.iter().cloned().collect(),
        paths: operator.paths.iter().cloned().collect(),
        banned: operator.banned,
        signed_in: u32::try_from(operator.signed_in_at(now)).unwrap_or(u32::MAX),
    }
}

/// What operators see of an invitation, by its name in the store.
pub(super) fn token((name, token): (&str, &Token)) -> wire::Token {
    wire::Token {
        id: id_of(name).to_owned(),
        admits: token.admits.to_string(),
        expires_at_unix: unix_i64(token.expires_at),
        used: token.is_used(),
        node_selectors: token.grants.iter().map(wire::Selector::from).collect(),
    }
}

impl From<&InForce> for wire::PolicyState {
    fn from(state: &InForce) -> Self {
        let reference = |published: &Option<_>| published.as_deref().map(wire::PolicyRef::from);
        Self {
            live: reference(&state.live),
            shadow: reference(&state.shadow),
            grants: state.grants.iter().filter_map(|grant| grant.envelope()).collect(),
            signers: state.signers.as_ref().map(|chain| wire::SignersRef {
                version: chain.version(),
                sha256: chain.digest().0.to_vec(),
            }),
        }
    }
}

impl From<&Published> for wire::PolicyRef {
    fn from(published: &Published) -> Self {
        Self {
            revision: published.revision,
            manifest_sha256: published.manifest.0.to_vec(),
            bytes: published.bytes,
        }
    }
}

impl From<&GrantRecord> for wire::Grant {
    fn from(grant: &GrantRecord) -> Self {
        Self {
            id: grant.id.clone(),
            ticket: grant.ticket.clone(),
            reason: grant.reason.clone(),
            principal: grant.principal.clone(),
            service: grant.service.to_string(),
            not_before_unix: unix_i64(grant.not_before),
            until_unix: unix_i64(grant.until),
            signed_by: grant.signed_by.clone(),
            revoked: grant.revoked,
        }
    }
}

/// A bundle of the history, and whether it is in force.
pub(super) fn published(policy: &PolicyIndex, published: &Published) -> wire::PublishedPolicy {
    wire::PublishedPolicy {
        revision: published.revision,
        stage: published.stage().to_string(),
        signed_by: published.signed_by.clone(),
        created_at_unix: unix_i64(published.created),
        expires_at_unix: unix_i64(published.expires),
        published_at_unix: unix_i64(published.published),
        manifest_sha256: published.manifest.0.to_vec(),
        note: published.note.clone().unwrap_or_default(),
        policies: published.policies,
        files: published.files,
        bytes: published.bytes,
        kept: published.kept,
        lost: published.lost,
        current: policy.head().is_current(published.revision),
    }
}

/// Live, shadow and the newest of all, of either stage.
pub(super) fn present_policy(policy: &PolicyIndex) -> wire::ShowPolicyResponse {
    let head = policy.head();
    let one = |revision: Option<u64>| Some(published(policy, policy.published(revision?)?));
    let newest = policy.published(head.highest);
    wire::ShowPolicyResponse {
        live: one(head.live),
        shadow: one(head.shadow),
        highest_revision: head.highest,
        highest_manifest_sha256: newest.map(|newest| newest.manifest.0.to_vec()).unwrap_or_default(),
        ..wire::ShowPolicyResponse::default()
    }
}
