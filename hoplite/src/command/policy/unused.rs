//! `hoplite policy unused`: policies that decided nothing for a long time.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use hoplite_audit::{Query, read_log};
use hoplite_policy::{Effect, Places};
use serde_json::{Value, json};

use super::{AuditArgs, compile, sources};
use crate::command::MeshDir;
use crate::output::{Output, Table, part, print, print_json};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The directory of the policies
    directory: PathBuf,
    /// From when on: a length of time ago or a moment
    #[arg(long, value_parser = crate::command::audit::moment, default_value = "30d")]
    since: SystemTime,
    /// A proxy's admin socket, whose counters since its start are asked besides; may be repeated
    #[arg(long = "proxy", value_name = "SOCKET")]
    proxies: Vec<PathBuf>,
    #[command(flatten)]
    audit: AuditArgs,
    #[command(flatten)]
    dir: MeshDir,
    /// The form of the answer
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// What is known of a policy's use.
#[derive(Debug, Default, Clone)]
struct Use {
    /// Decisions it was among the reasons for, in the log or by a proxy's count.
    determined: u64,
    /// Requests its scope covered, by the proxies' counts.
    candidate: u64,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let sources = sources(&args.directory)?;
    let snapshot = compile(&sources)?;
    let mut uses: BTreeMap<String, Use> = BTreeMap::new();
    let query = Query {
        since: Some(args.since),
        ..Query::default()
    };
    let mut records = 0_u64;
    for log in args.audit.logs(&args.dir)? {
        for record in read_log(&log, &query)? {
            let record = record?;
            records += 1;
            for id in record.determining {
                uses.entry(id).or_default().determined += 1;
            }
        }
    }
    let counted = super::super::runtime()?.block_on(async {
        let mut answers = Vec::new();
        for socket in &args.proxies {
            answers.push(hoplite_proxy::admin_policies(socket).await?);
        }
        anyhow::Ok(answers)
    })?;
    for policy in counted
        .iter()
        .filter_map(|answer| part(answer, "/policies").as_array())
        .flatten()
    {
        let Some(id) = part(policy, "/id").as_str() else {
            continue;
        };
        let each = uses.entry(id.to_owned()).or_default();
        each.determined += part(policy, "/determining").as_u64().unwrap_or(0);
        each.candidate += part(policy, "/candidate").as_u64().unwrap_or(0);
    }
    let unused: Vec<_> = snapshot
        .policies(&Places::of(&sources))
        .into_iter()
        .map(|policy| (uses.get(&policy.id).cloned().unwrap_or_default(), policy))
        .filter(|(each, _)| each.determined == 0)
        .collect();
    let asked = !args.proxies.is_empty();
    if args.output == Output::Json {
        let listed: Vec<Value> = unused
            .iter()
            .map(|(each, policy)| {
                json!({
                    "id": policy.id, "effect": policy.effect.as_str(), "owner": policy.owner(),
                    "place": policy.place.as_ref().map(ToString::to_string),
                    "candidate": asked.then_some(each.candidate),
                })
            })
            .collect();
        print_json(&json!({
            "since": humantime::format_rfc3339_seconds(args.since).to_string(), "records": records, "unused": listed,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let since = humantime::format_rfc3339_seconds(args.since);
    print(&format!(
        "{} of {} policies decided none of {} decisions since {since}\n",
        unused.len(),
        snapshot.policy_ids().len(),
        super::replay::thousands(records)
    ))?;
    if unused.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(&["POLICY", "EFFECT", "OWNER", "PLACE", if asked { "COVERED" } else { "" }]);
    for (each, policy) in &unused {
        table.row([
            policy.id.clone(),
            policy.effect.to_string(),
            policy.owner().unwrap_or("-").to_owned(),
            policy.place.as_ref().map(ToString::to_string).unwrap_or_default(),
            if asked {
                each.candidate.to_string()
            } else {
                String::new()
            },
        ]);
    }
    table.print()?;
    if unused.iter().any(|(_, policy)| policy.effect == Effect::Forbid) {
        print("A forbid that never had to act may be a good one: look at what it guards before you remove it.\n")?;
    }
    Ok(ExitCode::SUCCESS)
}
