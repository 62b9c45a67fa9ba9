//! `hoplite policy unused`: policies that decided nothing for a long time.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use hoplite_audit::{Query, ReadError, read_log};
use hoplite_author::{Effect, Places, PolicyView};
use serde_json::{Value, json};

use super::{AuditArgs, ProxyArgs, compile, sources};
use crate::command::MeshDir;
use crate::output::{Column, Form, Listing, count, part, print, print_json, thousands};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The directory of the policies
    directory: PathBuf,
    /// From when on: a length of time ago or a moment
    #[arg(long, value_parser = crate::output::moment::parse, default_value = "30d")]
    since: SystemTime,
    #[command(flatten)]
    proxies: ProxyArgs,
    #[command(flatten)]
    audit: AuditArgs,
    #[command(flatten)]
    dir: MeshDir,
    #[command(flatten)]
    form: Form,
}

/// What is known of a policy's use.
#[derive(Debug, Default, Clone)]
struct Use {
    /// Decisions it was among the reasons for, in the log or by a proxy's count.
    determined: u64,
    /// Requests its scope covered, by the proxies' counts.
    candidate: u64,
}

/// What proxies have counted.
struct Counted {
    answers: Vec<Value>,
    /// Proxies of the mesh that do not answer.
    away: Vec<String>,
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
    let (mut damaged, mut damage) = (0_u64, None);
    let mut unknown = 0_u64;
    for log in args.audit.logs(&args.dir)? {
        let mut decisions = read_log(&log, &query)?;
        for record in decisions.by_ref() {
            let record = match record {
                Ok(record) => record,
                // What it would have said is not known; the others still count.
                Err(error @ (ReadError::Damaged { .. } | ReadError::OtherFormat { .. })) => {
                    damaged += 1;
                    damage.get_or_insert(error);
                    continue;
                }
                Err(error @ ReadError::Io { .. }) => return Err(error.into()),
            };
            records += 1;
            for id in record.determining {
                uses.entry(id).or_default().determined += 1;
            }
        }
        unknown += decisions.unknown();
    }
    let Counted { answers, away } = counted(args)?;
    let policies = answers.iter().filter_map(|answer| part(answer, "/policies").as_array());
    for policy in policies.flatten() {
        let Some(id) = part(policy, "/id").as_str() else {
            continue;
        };
        let each = uses.entry(id.to_owned()).or_default();
        each.determined += part(policy, "/determining").as_u64().unwrap_or(0);
        each.candidate += part(policy, "/candidate").as_u64().unwrap_or(0);
    }
    let unused: Vec<_> = PolicyView::all(&snapshot, &Places::of(&sources))
        .into_iter()
        .map(|policy| (uses.get(&policy.id).cloned().unwrap_or_default(), policy))
        .filter(|(each, _)| each.determined == 0)
        .collect();
    let asked = !answers.is_empty();
    let proxies: Vec<_> = answers.iter().map(|answer| part(answer, "/name")).collect();
    let rows: Vec<Value> = unused
        .iter()
        .map(|(each, policy)| {
            json!({
                "id": policy.id, "effect": policy.effect.as_str(), "owner": policy.owner(),
                "place": policy.place.as_ref().map(ToString::to_string),
                "candidate": asked.then_some(each.candidate),
            })
        })
        .collect();
    if args.form.is_json() {
        print_json(&json!({
            "since": humantime::format_rfc3339_seconds(args.since).to_string(), "records": records, "damaged": damaged, "unknown": unknown, "proxies": proxies, "away": away,
            "unused": rows,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let since = humantime::format_rfc3339_seconds(args.since);
    print(&format!(
        "{} of {} policies decided none of {} decisions since {since}{}\n",
        unused.len(),
        snapshot.policy_ids().len(),
        thousands(records),
        match proxies.len() {
            0 => String::new(),
            proxies => format!(
                ", nor anything that {} counted since their start",
                match proxies {
                    1 => "1 proxy has".to_owned(),
                    _ => format!("{proxies} proxies have"),
                }
            ),
        }
    ))?;
    if let Some(damage) = damage {
        print(&format!(
            "Not counted, because they cannot be read: {} ({damage}); `hoplite audit verify` has the findings\n",
            count(damaged, "record")
        ))?;
    }
    if unknown > 0 {
        print(&format!(
            "Not counted, because this version does not know them: {}; a newer `hoplite` does\n",
            count(unknown, "record")
        ))?;
    }
    if !away.is_empty() {
        let away = away.join(", ");
        print(&format!("Not asked, because they do not answer: {away}\n"))?;
    }
    if unused.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let columns = [
        Column::new("POLICY", "id"),
        Column::new("EFFECT", "effect"),
        Column::made("OWNER", "owner", |policy| {
            policy["owner"].as_str().unwrap_or("-").to_owned()
        }),
        Column::new("PLACE", "place"),
        Column::new("COVERED", "candidate"),
    ];
    // Nobody who was not asked has covered anything.
    let mut listing = Listing::new(columns.get(..if asked { 5 } else { 4 }).unwrap_or_default());
    for policy in &rows {
        listing.row(policy);
    }
    listing.print(args.form)?;
    if unused.iter().any(|(_, policy)| policy.effect == Effect::Forbid) {
        print("A forbid that never had to act may be a good one: look at what it guards before you remove it.\n")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The counters of the proxies that were named, each of which must answer; else of those of the mesh whose logs are read.
fn counted(args: &Args) -> anyhow::Result<Counted> {
    let named = !args.proxies.proxies.is_empty();
    let sockets = if named || (args.audit.audit.is_empty() && args.dir.path()?.join("config").is_dir()) {
        args.proxies.sockets(&args.dir)?
    } else {
        // Logs of other machines: the proxies of this one have counted something else.
        Vec::new()
    };
    let mut counted = Counted {
        answers: Vec::new(),
        away: Vec::new(),
    };
    super::super::runtime()?.block_on(async {
        for socket in &sockets {
            match hoplite_proxy::admin_policies(socket).await {
                Ok(answer) => counted.answers.push(answer),
                Err(error) if named => return Err(error),
                Err(_) => counted.away.push(socket.display().to_string()),
            }
        }
        Ok(())
    })?;
    Ok(counted)
}
