//! What `hoplite up` looks after once the mesh is up: an agent that outlived its certificate, and what is true of policy.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hoplite_host::clock;
use hoplite_host::files;
use hoplite_wire::ca::{Agent, CreateTokenRequest, ListAgentsRequest};

use super::layout::{NODE, SERVICES, TRUST_DOMAIN};
use super::mesh::{Mesh, PolicySource, TOKEN_TTL_SECONDS};
use super::picture;
use crate::command::reach::connect;

/// How often it is looked: a machine that slept has its mesh back within a minute.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The CA and we have one clock, read one after the other.
const CLOCKS_DIFFER: Duration = Duration::from_secs(30);

/// An answer from a part on this machine takes milliseconds.
const ANSWERS_WITHIN: Duration = Duration::from_secs(4);

impl Mesh {
    /// Looks after the mesh for as long as it is polled.
    pub(crate) async fn look_after(&self) {
        let mut source = self.policy_source;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let looked = async {
                if let Some(now) = self.policy_source().await
                    && now != source
                {
                    source = now;
                    let dir = self.layout.dir();
                    let said = picture::how_to_change(now, &picture::program(), &picture::dir_flag(dir));
                    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
                    self.events().say("policy", "INFO", &said);
                }
                match self.let_agent_join_again().await {
                    Ok(false) => {}
                    Ok(true) => self.events().say(
                        "agent",
                        "WARN",
                        "its certificate is not valid now, as after a long sleep of this machine; it joins anew with a token from the CA",
                    ),
                    // The CA is being started again, most likely; the next look is soon.
                    Err(_) => {}
                }
            };
            let _ = tokio::time::timeout(ANSWERS_WITHIN, looked).await;
        }
    }

    /// Where the first proxy has its policy from; none while it does not answer.
    pub(crate) async fn policy_source(&self) -> Option<PolicySource> {
        let [first, ..] = SERVICES;
        let status = self.proxy_status(first).await.ok()?;
        let revision = status
            .pointer("/policy/bundle_revision")
            .and_then(serde_json::Value::as_u64);
        Some(revision.map_or(PolicySource::Directory, PolicySource::Bundle))
    }

    /// Gives the agent another token when the CA would not take its certificate any more for its age. We hold both: the CA
    /// is ours to ask, and the agent reads tokens from a file of ours.
    async fn let_agent_join_again(&self) -> anyhow::Result<bool> {
        let mut ca = connect(&self.layout.socket("ca")).await?;
        let listed = ca.list_agents(ListAgentsRequest::default()).await?.into_inner();
        let own = format!("spiffe://{TRUST_DOMAIN}/hoplite/agent/{NODE}");
        let agent = listed.agents.iter().find(|agent| agent.spiffe_id == own);
        if !agent.is_some_and(|agent| needs_token(agent, self.agent_ttl, clock::now())) {
            return Ok(false);
        }
        let request = CreateTokenRequest {
            node: NODE.to_owned(),
            ttl_seconds: TOKEN_TTL_SECONDS,
            ..CreateTokenRequest::default()
        };
        let token = ca.create_token(request).await?.into_inner();
        files::write_private(&self.layout.join_token(), token.token.as_bytes())?;
        Ok(true)
    }
}

/// Whether its certificate has ended, or is of a time that the clock has been set back from. Whoever was banned stays out.
fn needs_token(agent: &Agent, ttl: Duration, now: SystemTime) -> bool {
    let ends = UNIX_EPOCH + Duration::from_secs(u64::try_from(agent.expires_at_unix).unwrap_or_default());
    let valid = now < ends && ends <= now + ttl + CLOCKS_DIFFER;
    !valid && !agent.banned
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_is_too_old_gets_another_token() {
        let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let check = |expires_at_unix, banned, expected| {
            let agent = Agent {
                expires_at_unix,
                banned,
                ..Agent::default()
            };
            let day = Duration::from_secs(86_400);
            assert_eq!(needs_token(&agent, day, now), expected, "{expires_at_unix}");
        };
        check(1_800_000_001, false, false);
        check(1_800_000_000, false, true);
        check(0, false, true);
        check(1_800_086_400, false, false);
        check(1_800_090_000, false, true);
        check(0, true, false);
    }
}
