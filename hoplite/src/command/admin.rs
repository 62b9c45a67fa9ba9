//! `hoplite agent list|ban|evict`: what operators ask the CA about nodes.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::Args;
use hoplite_identity::TrustDomain;
use hoplite_wire::ca::{Agent, AgentRequest, Entry, ListAgentsRequest, ListEntriesRequest, ShowBundleRequest};

use crate::command::reach::CaArgs;
use crate::output::shown::Shown;
use crate::output::{Column, Form, Listing, NOTHING_DONE, Output, count, print, print_json, verdict};

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    pub(crate) ca: CaArgs,
    /// The form of the answer
    #[arg(long, value_enum, default_value_t)]
    pub(crate) output: Output,
}

/// Of a listing that the CA is asked for.
#[derive(Debug, Args)]
pub(crate) struct ListingArgs {
    #[command(flatten)]
    pub(crate) ca: CaArgs,
    #[command(flatten)]
    pub(crate) form: Form,
}

/// Of one that may be long.
#[derive(Debug, Args)]
pub(crate) struct AgentListArgs {
    #[command(flatten)]
    shown: Shown,
    #[command(flatten)]
    list: ListingArgs,
}

#[derive(Debug, Args)]
pub(crate) struct AgentArgs {
    /// The node's name, or its agent's SPIFFE ID
    agent: String,
    #[command(flatten)]
    list: ListArgs,
}

/// Asked for in one call: an answer of some megabytes.
const LISTED_AT_ONCE: u32 = 5_000;

/// What people see of an agent.
const AGENT_COLUMNS: [Column; 5] = [
    Column::new("AGENT", "spiffe_id"),
    Column::new("ATTESTED BY", "attested_by"),
    Column::moment("VALID UNTIL", "expires_at"),
    Column::made("STATE", "banned", |agent| {
        let is_contested = !agent["contested_at"].is_null();
        match (agent["banned"] == true, is_contested) {
            (true, _) => "banned",
            (false, true) => "two holders",
            (false, false) => "joined",
        }
        .to_owned()
    })
    .coloured(verdict),
    Column::new("SELECTORS", "selectors"),
];

pub(crate) fn agent_list(args: AgentListArgs) -> anyhow::Result<ExitCode> {
    let (args, shown) = (args.list, args.shown);
    let agents = args
        .ca
        .call(async |mut ca| Ok(ca.list_agents(ListAgentsRequest {}).await?.into_inner().agents))?;
    let row = |agent: Agent| {
        serde_json::json!({
            "spiffe_id": agent.spiffe_id, "serial": agent.serial,
            "expires_at": (agent.expires_at_unix != 0).then(|| rfc3339(agent.expires_at_unix)), "banned": agent.banned,
            "contested_at": (agent.contested_at_unix != 0).then(|| rfc3339(agent.contested_at_unix)),
            "selectors": agent.selectors.iter().map(|s| format!("{}:{}", s.kind, s.value)).collect::<Vec<_>>(),
            "attested_by": (!agent.attested_by.is_empty()).then_some(&agent.attested_by),
            "attested_at": (agent.attested_at_unix != 0).then(|| rfc3339(agent.attested_at_unix)),
        })
    };
    let mut listing = Listing::new(&AGENT_COLUMNS).like(&row(Agent::default()));
    agents.into_iter().for_each(|agent| listing.row(row(agent)));
    shown.print(listing, args.form)?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn agent_ban(args: AgentArgs) -> anyhow::Result<ExitCode> {
    let request = args.request()?;
    let ca = &args.list.ca;
    let answer = ca.call(async |mut ca| Ok(ca.ban_agent(request.clone()).await?.into_inner()))?;
    args.done(&request, "banned", answer.already)
}

pub(crate) fn agent_evict(args: AgentArgs) -> anyhow::Result<ExitCode> {
    let request = args.request()?;
    let ca = &args.list.ca;
    ca.call(async |mut ca| Ok(ca.evict_agent(request.clone()).await?))?;
    args.done(&request, "evicted", false)
}

/// All that is asked for, some at a time.
pub(crate) fn entries(ca: &CaArgs, asked: ListEntriesRequest) -> anyhow::Result<Vec<Entry>> {
    ca.call(async |mut ca| {
        let (mut entries, mut page) = (Vec::new(), String::new());
        loop {
            let asked = ListEntriesRequest {
                page_size: LISTED_AT_ONCE,
                page,
                ..asked.clone()
            };
            let answer = ca.list_entries(asked).await?.into_inner();
            entries.extend(answer.entries);
            if answer.next_page.is_empty() {
                return Ok(entries);
            }
            page = answer.next_page;
        }
    })
}

/// The SPIFFE IDs of all registered workloads, each once. What templates name is known to their nodes alone; that is said.
pub(crate) fn registered(ca: &CaArgs) -> anyhow::Result<Vec<String>> {
    let mut names = registered_names(ca)?;
    let all = names.len();
    // No SPIFFE ID has a brace.
    names.retain(|name| !name.contains('{'));
    if names.len() < all {
        let templates = count((all - names.len()) as u64, "template");
        hoplite_host::tell!("note: the names of {templates} are not among them; list those that you mean in a file");
    }
    Ok(names)
}

/// The SPIFFE IDs and templates of all registrations, each once.
pub(crate) fn registered_names(ca: &CaArgs) -> anyhow::Result<Vec<String>> {
    let asked = ListEntriesRequest::default();
    let entries = entries(ca, asked)?;
    let mut ids: Vec<String> = entries.into_iter().map(|entry| entry.spiffe_id).collect();
    ids.sort();
    ids.dedup();
    Ok(ids)
}

pub(crate) fn rfc3339(unix: i64) -> String {
    let since = Duration::from_secs(u64::try_from(unix).unwrap_or(0));
    humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + since).to_string()
}

/// That of the CA.
pub(crate) fn trust_domain(ca: &CaArgs) -> anyhow::Result<TrustDomain> {
    let bundle = ca.call(async |mut ca| Ok(ca.show_bundle(ShowBundleRequest {}).await?.into_inner()))?;
    Ok(TrustDomain::parse(&bundle.trust_domain)?)
}

// === impl AgentArgs ===

impl AgentArgs {
    /// For the agent of this SPIFFE ID, or of the node of this name in the CA's trust domain.
    fn request(&self) -> anyhow::Result<AgentRequest> {
        let spiffe_id = match self.agent.contains(':') {
            true => self.agent.clone(),
            false => trust_domain(&self.list.ca)?.agent(&self.agent)?.to_string(),
        };
        Ok(AgentRequest { spiffe_id })
    }

    /// Says what became of the agent, or had before.
    fn done(&self, request: &AgentRequest, what: &str, already: bool) -> anyhow::Result<ExitCode> {
        let spiffe_id = &request.spiffe_id;
        match self.list.output {
            Output::Json => print_json(&serde_json::json!({"spiffe_id": spiffe_id, what: true, "already": already}))?,
            Output::Table if already => print(&format!("{spiffe_id} is {what} already; nothing was done\n"))?,
            Output::Table => print(&format!("{what} {spiffe_id}\n"))?,
        }
        Ok(match already {
            true => ExitCode::from(NOTHING_DONE),
            false => ExitCode::SUCCESS,
        })
    }
}
