//! JWT-SVIDs for agents: which entries, for whom, and how many calls of one agent at a time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use hoplite_identity::SpiffeId;
use hoplite_identity::jwt::{AUDIENCE_BYTES_MAX, AUDIENCES_MAX};
use hoplite_wire::ca as wire;
use tonic::Status;

use crate::acts::written::Written;
use crate::api::messages::unix_i64;
use crate::api::mint::{Item, Mint, NotIssued};
use crate::issuance::jwt::MintedJwt;
use crate::issuer::SvidKind;
use crate::record::unix_seconds;
use crate::registry::Registry;

/// One call's work stays short beside other agents' calls.
const ENTRIES_MAX: usize = 64;

/// Calls of one agent under way. More would only wait for each other, and hold up the calls of others.
const UNDER_WAY_MAX: usize = 8;

/// Calls under way, by agent. Clones are the same ones.
#[derive(Debug, Clone, Default)]
pub(super) struct JwtCalls(Arc<Mutex<HashMap<SpiffeId, usize>>>);

/// A call under way, for as long as this lives.
#[derive(Debug)]
struct UnderWay {
    calls: JwtCalls,
    agent: SpiffeId,
}

// === impl JwtCalls ===

impl JwtCalls {
    fn begin(&self, agent: &SpiffeId) -> Result<UnderWay, Status> {
        let mut calls = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let under_way = calls.entry(agent.clone()).or_default();
        if *under_way >= UNDER_WAY_MAX {
            return Err(Status::resource_exhausted(format!(
                "{UNDER_WAY_MAX} calls for JWT-SVIDs of this agent are under way; wait for one of them"
            )));
        }
        *under_way += 1;
        Ok(UnderWay {
            calls: self.clone(),
            agent: agent.clone(),
        })
    }

    /// Answers one call of an agent in good standing.
    pub(super) async fn issue(
        &self,
        registry: &Registry,
        mint: Mint,
        request: wire::IssueJwtRequest,
    ) -> Result<wire::IssueJwtResponse, Status> {
        let under_way = self.begin(&mint.agent)?;
        let (ids, audience, mut values) = (request.entry_ids, request.audience, request.values);
        if ids.len() > ENTRIES_MAX {
            let text = format!("{} entries in one call; send at most {ENTRIES_MAX}", ids.len());
            return Err(Status::invalid_argument(text));
        }
        if !values.is_empty() && values.len() != ids.len() {
            let text = format!(
                "`values` for {} of {} entries; send them for each, or for none",
                values.len(),
                ids.len()
            );
            return Err(Status::invalid_argument(text));
        }
        values.resize_with(ids.len(), Default::default);
        check(&audience)?;
        let items: Vec<Item> = {
            let index = registry.index();
            // An agent can mint only what is registered under it, or for a group that its node is in, whatever it asks for.
            let items = ids.iter().zip(values).map(|(id, values)| Item {
                registered: index.entries.of(&mint.agent, id).cloned(),
                values: values.selectors,
            });
            items.collect()
        };
        let acts = mint.acts.clone();
        // Some milliseconds of signing would hold up everybody else on this thread.
        let signing = tokio::task::spawn_blocking(move || {
            let _under_way = under_way;
            items
                .iter()
                .map(|item| mint.one_jwt(item, &audience))
                .collect::<Vec<_>>()
        });
        let items = signing
            .await
            .map_err(|_| Status::internal("the CA failed while signing; its log says why"))?;
        let written = items.iter().flatten().map(|(_, written)| written.clone());
        let settled = acts.settled(written).await?;
        let result = |item: Result<(MintedJwt, Written), NotIssued>| match item {
            Ok((minted, _)) => wire::IssueJwtResult {
                issued_at_unix: unix_i64(unix_seconds(minted.issued_at)),
                expires_at_unix: unix_i64(unix_seconds(minted.expires_at)),
                token: minted.leaves(&settled).to_string(),
                error: String::new(),
            },
            Err(error) => wire::IssueJwtResult {
                error: error.to_string(),
                ..wire::IssueJwtResult::default()
            },
        };
        let results = items.into_iter().map(result).collect();
        Ok(wire::IssueJwtResponse { results })
    }
}

/// Before anything is looked up. What of it is no audience the claims say.
fn check(audience: &[String]) -> Result<(), Status> {
    if audience.is_empty() {
        return Err(Status::invalid_argument(
            "no audience is named; name who will be shown the token",
        ));
    }
    if audience.len() > AUDIENCES_MAX || audience.iter().any(|name| name.len() > AUDIENCE_BYTES_MAX) {
        return Err(Status::invalid_argument(format!(
            "too many audiences, or one that is too long; send at most {AUDIENCES_MAX} of at most {AUDIENCE_BYTES_MAX} bytes"
        )));
    }
    Ok(())
}

// === impl Mint ===

impl Mint {
    /// One token, its record and its line in the log; or why there is none. No token and no audience stands there: an audience may be
    /// a secret address.
    fn one_jwt(&self, item: &Item, audience: &[String]) -> Result<(MintedJwt, Written), NotIssued> {
        self.try_one_jwt(item, audience).inspect_err(|reason| {
            let entry = item.entry();
            let agent = &self.agent;
            tracing::warn!(target: "hoplite::audit", %agent, entry, outcome = "refused", %reason, "issue_jwt");
        })
    }

    fn try_one_jwt(&self, item: &Item, audience: &[String]) -> Result<(MintedJwt, Written), NotIssued> {
        let named = self
            .name(item, SvidKind::Jwt)
            .inspect_err(|_| self.issuer.refused_jwt())?;
        let minted = self.issuer.jwt_svid(&named, audience, self.now)?;
        let written = self.acts.issued_jwt(&minted, self.asked("issue_jwt"), &named)?;
        tracing::info!(
            target: "hoplite::audit",
            agent = %self.agent,
            entry = %named.registered().id,
            spiffe_id = %named.spiffe_id(),
            kid = minted.kid,
            audiences = audience.len(),
            expires_at = unix_seconds(minted.expires_at),
            outcome = "issued",
            "issue_jwt"
        );
        Ok((minted, written))
    }
}

// === impl UnderWay ===

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut calls = self.calls.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(under_way) = calls.get_mut(&self.agent) {
            *under_way -= 1;
            if *under_way == 0 {
                calls.remove(&self.agent);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_agent_does_not_take_the_places_of_another() {
        let calls = JwtCalls::default();
        let agent = |node: &str| SpiffeId::parse(&format!("spiffe://prod.example/hoplite/agent/{node}")).unwrap();
        let held: Vec<_> = (0..UNDER_WAY_MAX).map(|_| calls.begin(&agent("a")).unwrap()).collect();
        assert_eq!(
            calls.begin(&agent("a")).unwrap_err().code(),
            tonic::Code::ResourceExhausted
        );
        drop(calls.begin(&agent("b")).unwrap());
        drop(held);
        assert!(calls.begin(&agent("a")).is_ok());
        assert!(calls.0.lock().unwrap().is_empty());
    }
}
