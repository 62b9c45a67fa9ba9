//! `hoplite policy unused`: policies that decided nothing for a long time.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use hoplite_audit::{Query, ReadError, read_log};
use hoplite_author::{Effect, Places, PolicyView};
use serde_json::{Value, json};

use super::elsewhere::{Elsewhere, named};
use super::{AuditArgs, ProxyArgs, compile, sources};
use crate::command::fleet::text::many;
use crate::command::reach::CaArgs;
use crate::output::{Column, Form, Listing, count, one_line, part, print, print_json};

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
    ca: CaArgs,
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
    /// The other nodes', by what they report; none where they have nothing to do with it, or the CA cannot be asked.
    elsewhere: Option<Elsewhere>,
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
    for log in args.audit.logs(args.ca.mesh())? {
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
    let Counted {
        answers,
        away,
        elsewhere,
    } = counted(args)?;
    let policies = answers.iter().filter_map(|answer| part(answer, "/policies").as_array());
    for policy in policies.flatten() {
        let Some(id) = part(policy, "/id").as_str() else {
            continue;
        };
        let each = uses.entry(id.to_owned()).or_default();
        each.determined += part(policy, "/determining").as_u64().unwrap_or(0);
        each.candidate += part(policy, "/candidate").as_u64().unwrap_or(0);
    }
    // Of those only that they decided something is told, and of a proxy with very many not each.
    let (mut reported, mut not_whole) = (Vec::new(), Vec::new());
    for (node, point) in elsewhere.iter().flat_map(|elsewhere| elsewhere.others(&answers)) {
        let about = point.about.clone().unwrap_or_default();
        let name = format!("{}/{}", node.node, about.name);
        let fired = point.fired.clone().unwrap_or_default();
        for id in fired.ids {
            uses.entry(id).or_default().determined += 1;
        }
        if fired.left_out > 0 {
            not_whole.push(name.clone());
        }
        reported.push(name);
    }
    let unheard: Vec<&str> = elsewhere.iter().flat_map(Elsewhere::unheard).collect();
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
            "reported": reported, "reported_in_part": not_whole, "nodes_not_heard": unheard,
            "unused": rows,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let since = humantime::format_rfc3339_seconds(args.since);
    print(&format!(
        "{} of {} decided none of {} since {since}{}\n",
        unused.len(),
        count(snapshot.policy_ids().len() as u64, "policy"),
        count(records, "decision"),
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
    if !reported.is_empty() {
        print(&format!(
            "Nor did they decide at {} of other nodes since their start\n",
            many(reported.len() as u64, "proxy", "proxies")
        ))?;
    }
    if !not_whole.is_empty() {
        let names: Vec<&str> = not_whole.iter().map(String::as_str).collect();
        print(&format!(
            "Not counted in whole, because more decided there than a report holds; ask there: {}\n",
            named(&names)
        ))?;
    }
    if !unheard.is_empty() {
        print(&format!(
            "Not counted, because nothing was heard of these nodes: {}\n",
            named(&unheard)
        ))?;
    }
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
    let elsewhere = if named || !args.audit.audit.is_empty() {
        None
    } else {
        let asked = Elsewhere::ask(&args.ca, true);
        let say = |error: &anyhow::Error| {
            hoplite_host::tell!("only proxies of this machine are counted: {}", one_line(error))
        };
        asked.inspect_err(say).ok()
    };
    let sockets = if named || (args.audit.audit.is_empty() && args.ca.mesh().path()?.join("config").is_dir()) {
        args.proxies.sockets(args.ca.mesh())?
    } else {
        // Logs of other machines: the proxies of this one have counted something else.
        Vec::new()
    };
    let mut counted = Counted {
        answers: Vec::new(),
        away: Vec::new(),
        elsewhere,
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
