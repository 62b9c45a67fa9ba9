//! What the proxies of this machine enforce from directories of their own, before the first revision: the first one takes their
//! place, and a forbid that only they have is lost with it.

use std::collections::BTreeSet;
use std::path::PathBuf;

use hoplite_policy::Snapshot;
use serde_json::Value;

use super::steps::Steps;
use crate::command::runtime;
use crate::output::{count, part, plain};

/// The forbids that proxies enforce by themselves and that a set of policies does not have. Says of each proxy what it has.
pub(crate) fn forbids_beside(
    sockets: &[PathBuf],
    candidate: &Snapshot,
    steps: &mut Steps,
) -> anyhow::Result<BTreeSet<String>> {
    let answers: Vec<Value> = runtime()?.block_on(async {
        let mut answers = Vec::new();
        for socket in sockets {
            answers.extend(hoplite_proxy::admin_policies(socket).await.ok());
        }
        answers
    });
    if answers.len() < sockets.len() || sockets.is_empty() {
        let (asked, all) = (answers.len(), sockets.len());
        steps.show(&format!(
            "local    {asked} of {all} proxies say what they enforce until now; a forbid that only others have is lost unseen\n"
        ))?;
    }
    let mut beside = BTreeSet::new();
    for answer in &answers {
        let (name, revision) = (plain(part(answer, "/name")), plain(part(answer, "/revision")));
        if revision == candidate.revision() {
            steps.show(&format!(
                "local    {name} enforces these very files from its own directory\n"
            ))?;
            continue;
        }
        let policies = part(answer, "/policies")
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        if policies.is_empty() {
            steps.show(&format!("local    {name} has no policy yet\n"))?;
            continue;
        }
        // Where a proxy does not say what a policy does, it may forbid.
        let forbids = policies.iter().filter(|policy| part(policy, "/effect") != "permit");
        let ids = forbids.filter_map(|policy| part(policy, "/id").as_str());
        let missing: Vec<&str> = ids.filter(|id| !candidate.has_policy(id)).collect();
        steps.show(&format!(
            "local    {name} enforces another set from its own directory, with {} that this one lacks\n",
            count(missing.len() as u64, "forbid")
        ))?;
        beside.extend(missing.into_iter().map(str::to_owned));
    }
    Ok(beside)
}
