//! `hoplite policy`: check policies before they are saved, and see what every proxy enforces.

mod check;
mod diff;
mod elsewhere;
mod explain;
mod fmt;
mod grant;
mod history;
pub(crate) mod key;
mod matrix;
mod publish;
mod published;
mod replay;
mod routes;
mod signers;
mod suggest;
mod test;
mod unused;
mod who;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};
use hoplite_decision::PolicyFiles;
use hoplite_host::socket;
use hoplite_policy::files::HEADERS_FILE;
use hoplite_policy::{Fault, SelectedHeaders, Snapshot, Source};
use serde_json::{Value, json};

use crate::command::MeshDir;
use crate::command::admin::ListArgs;
use crate::command::fleet::ask::CANNOT_TELL;
use crate::command::reach::CaArgs;
use crate::output::{Column, Form, Listing, failure, moment, one_line, part, plain, print, verdict};

/// The exit code of a comparison that could not be made, apart from that of one that found a difference.
const COULD_NOT: u8 = 2;

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Parse, validate and lint a directory of policies; exit 1 and show each line that is wrong
    #[command(
        after_help = "Examples:\n  hoplite policy check ~/.local/state/hoplite/policies\n  hoplite policy check policies --output json"
    )]
    Check(check::Args),
    /// Lay out the policies of a directory in Cedar's own style; routes.toml and modules.toml are left alone
    #[command(
        after_help = "Examples:\n  hoplite policy fmt ~/.local/state/hoplite/policies\n  hoplite policy fmt policies --check"
    )]
    Fmt(fmt::Args),
    /// Run the tables of requests and expected outcomes that lie beside the policies; exit 1 if one comes out otherwise
    #[command(after_help = "Example:\n  hoplite policy test ~/.local/state/hoplite/policies")]
    Test(test::TestArgs),
    /// Routes of services: read them out of OpenAPI documents
    #[command(subcommand)]
    Routes(routes::RoutesCommand),
    /// Say why a request was, or would be, decided as it is: which policies, which conditions, and what was near
    #[command(
        after_help = "Examples:\n  hoplite policy explain ledger-9f3c2a7be1d04455-42\n  hoplite policy explain --as spiffe://demo.hoplite/shop \\\n    \
        --do 'GET ledger /accounts/7' --policies policies"
    )]
    Explain(explain::Args),
    /// Decide the requests of the log again, by other policies, and compare with what was answered then (two sets: `diff --since`); exit 1 if any would flip, 2 if it cannot be done
    #[command(
        after_help = "Examples:\n  hoplite policy replay policies --since 7d\n  hoplite policy replay policies --audit /var/lib/hoplite/audit --output json"
    )]
    Replay(replay::Args),
    /// Say who can do something, and on what conditions
    #[command(
        after_help = "Examples:\n  hoplite policy who-can GET ledger /accounts/7\n  hoplite policy who-can connect postgres --registered"
    )]
    WhoCan(who::WhoArgs),
    /// Say what somebody can do, and on what conditions
    #[command(after_help = "Example:\n  hoplite policy what-can spiffe://demo.hoplite/shop")]
    WhatCan(who::WhatArgs),
    /// Show who can call what, callers down and services across
    #[command(
        after_help = "Examples:\n  hoplite policy matrix\n  hoplite policy matrix --policies policies --among callers.txt --output csv"
    )]
    Matrix(matrix::Args),
    /// Propose permits for calls that nothing permitted, for a person to read; writes nothing. Exit 1 if there is none
    #[command(
        after_help = "Examples:\n  hoplite policy suggest --from-denials\n  hoplite policy suggest --from-denials --since yesterday > proposal.cedar"
    )]
    Suggest(suggest::Args),
    /// Compare two sets of policies by what they mean; exit 1 if they differ, 2 if it cannot be done
    #[command(after_help = "Examples:\n  hoplite policy diff old new\n  hoplite policy diff 41 policies --since 7d")]
    Diff(diff::Args),
    /// List the policies that decided nothing for a long time, by the logs and by what the proxies have counted
    #[command(
        after_help = "Examples:\n  hoplite policy unused policies --since 30d\n  hoplite policy unused policies --audit /var/lib/hoplite/audit \\\n    \
        --proxy /run/hoplite/ledger.sock"
    )]
    Unused(unused::Args),
    /// Keys with which people sign policies
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// Who may sign policy: list them, and change them with the signatures of those there are
    #[command(subcommand)]
    Signers(signers::SignersCommand),
    /// Check, test, compare, replay and sign policies, and send them to every proxy; stops at the first step that fails. Exit 0 also
    /// if nothing changed, 1 if nothing was published, 3 if it was and a proxy does not follow in time
    #[command(
        after_help = "Example:\n  hoplite policy publish policies --note 'INC-7: refunds read the ledger' \\\n      --key alice.key \\\n    \
        --accept 'allow spiffe://prod.acme/ns/pay/* × ledger:*'"
    )]
    Publish(publish::Args),
    /// Publish an earlier revision's content again, as a new revision; exits as `publish` does
    #[command(after_help = "Examples:\n  hoplite policy rollback\n  hoplite policy rollback 41 --key alice.key")]
    Rollback(publish::rollback::Args),
    /// List what was published, newest first
    #[command(after_help = "Examples:\n  hoplite policy history\n  hoplite policy history --limit 1000 --output json")]
    History(history::Args),
    /// Stop trying the shadow policy beside the one in force
    #[command(after_help = "Example:\n  hoplite policy clear-shadow")]
    ClearShadow(ListArgs),
    /// Break-glass: permits for a few hours that two people sign
    #[command(subcommand)]
    Grant(grant::GrantCommand),
    /// Show which policies each proxy of a mesh enforces: those of this machine by asking them, those of other nodes by what they
    /// report to the CA; exit 1 if one holds on to old ones, denies all, or obeys a directory though there is a signed bundle
    #[command(
        after_help = "Examples:\n  hoplite policy status\n  hoplite policy status --proxy /run/hoplite/orders.sock --output json"
    )]
    Status(StatusArgs),
    /// Print the schema that policies are validated against
    #[command(
        after_help = "Examples:\n  hoplite policy schema > hoplite.cedarschema\n  hoplite policy schema policies > hoplite.cedarschema"
    )]
    Schema(SchemaArgs),
}

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    ca: CaArgs,
    #[command(flatten)]
    proxies: ProxyArgs,
    #[command(flatten)]
    form: Form,
}

/// Which proxies are asked.
#[derive(Debug, Args)]
pub(crate) struct ProxyArgs {
    /// A proxy's admin socket; may be repeated [default: every proxy of the mesh in --dir]
    #[arg(long = "proxy", value_name = "SOCKET")]
    proxies: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct SchemaArgs {
    /// A directory of policies: with the headers that its headers.toml selects
    directory: Option<PathBuf>,
}

/// Where the policies lie that are asked.
#[derive(Debug, Args)]
pub(crate) struct PoliciesArgs {
    /// A directory of policies, a bundle's file, or the number of a revision that the CA keeps [default: the directory of the mesh
    /// in --dir; where there is none, what the CA has in force]
    #[arg(long, value_name = "DIR|FILE|REVISION")]
    policies: Option<String>,
}

/// Where the decision logs lie.
#[derive(Debug, Args)]
pub(crate) struct AuditArgs {
    /// A log directory, or a tree of them; may be repeated [default: those of the mesh in --dir]
    #[arg(long = "audit", value_name = "DIR")]
    audit: Vec<PathBuf>,
}

/// What was found of decision logs.
#[derive(Debug, Default)]
struct Logs {
    /// Their directories.
    found: Vec<PathBuf>,
    /// Where one was looked for in vain, or could not be read; each with the reason.
    missing: Vec<String>,
}

pub(crate) fn run(command: PolicyCommand) -> anyhow::Result<ExitCode> {
    match command {
        PolicyCommand::Check(args) => check::run(&args),
        PolicyCommand::Fmt(args) => fmt::run(&args),
        PolicyCommand::Test(args) => test::run(&args),
        PolicyCommand::Routes(command) => routes::run(command),
        PolicyCommand::Explain(args) => explain::run(&args),
        PolicyCommand::Replay(args) => Ok(compared(replay::run(&args))),
        PolicyCommand::WhoCan(args) => who::who(&args),
        PolicyCommand::WhatCan(args) => who::what(&args),
        PolicyCommand::Matrix(args) => matrix::run(&args),
        PolicyCommand::Suggest(args) => suggest::run(&args),
        PolicyCommand::Diff(args) => Ok(compared(diff::run(&args))),
        PolicyCommand::Unused(args) => unused::run(&args),
        PolicyCommand::Key(command) => key::run(command),
        PolicyCommand::Signers(command) => signers::run(command),
        PolicyCommand::Publish(args) => publish::run(&args),
        PolicyCommand::Rollback(args) => publish::rollback::run(&args),
        PolicyCommand::History(args) => history::run(&args),
        PolicyCommand::ClearShadow(args) => history::clear_shadow(&args),
        PolicyCommand::Grant(command) => grant::run(command),
        PolicyCommand::Status(args) => status(&args),
        PolicyCommand::Schema(args) => schema(&args),
    }
}

/// The exit code of a comparison: whoever stops at 1 wants to know that it was made.
fn compared(outcome: anyhow::Result<ExitCode>) -> ExitCode {
    match outcome {
        Ok(code) => code,
        Err(error) => {
            failure(&error, COULD_NOT);
            ExitCode::from(COULD_NOT)
        }
    }
}

/// The choice of headers alone must be good: whoever needs the schema may be about to mend the policies.
fn schema(args: &SchemaArgs) -> anyhow::Result<ExitCode> {
    let sources = args.directory.as_deref().map_or(Ok(Vec::new()), sources)?;
    let chosen = sources.iter().find(|source| source.name == HEADERS_FILE);
    let headers = chosen.map_or(Ok(SelectedHeaders::default()), |source| {
        SelectedHeaders::parse(&source.text)
    });
    match headers {
        Ok(headers) => {
            print(&hoplite_policy::schema(&headers))?;
            Ok(ExitCode::SUCCESS)
        }
        Err(faults) => {
            for fault in faults {
                hoplite_host::tell::text(&fault.render());
            }
            Ok(ExitCode::FAILURE)
        }
    }
}

/// The policies of a directory, as a proxy would read them.
fn sources(directory: &Path) -> anyhow::Result<Vec<Source>> {
    Ok(policy_files(directory)?.sources)
}

/// The policies of a directory, with what else lies there.
fn policy_files(directory: &Path) -> anyhow::Result<PolicyFiles> {
    hoplite_decision::read_policies(directory)
        .map_err(|reason| anyhow::anyhow!("cannot read the policy directory `{}`: {reason}", directory.display()))
}

/// The lines of a file of names, without comments.
fn names_in(file: &Path) -> anyhow::Result<Vec<String>> {
    let text = hoplite_host::files::read_text(file)?;
    let lines = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim());
    Ok(lines.filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

/// The snapshot of policies that have to be good.
fn compile(sources: &[Source]) -> anyhow::Result<Snapshot> {
    Snapshot::compile(sources).map_err(|faults| uncompiled(&faults))
}

/// What is said of policies that had to be good and have faults.
fn uncompiled(faults: &[Fault]) -> anyhow::Error {
    let more = match faults.len().saturating_sub(1) {
        0 => String::new(),
        more => format!(" (and {more} more)"),
    };
    match faults.first() {
        Some(fault) => anyhow::anyhow!("{fault}{more}; `hoplite policy check` shows all"),
        None => anyhow::anyhow!("the policies cannot be compiled"),
    }
}

/// Digits of a revision that tell it from others.
const REVISION_SHOWN: usize = 12;

/// What people see of a proxy's status.
const COLUMNS: [Column; 6] = [
    Column::new("PROXY", "name"),
    Column::made("IN FORCE", "policy", state).coloured(verdict),
    Column::made("FROM", "policy", origin),
    Column::made("REVISION", "policy", |status| {
        plain(part(status, "/policy/revision"))
            .chars()
            .take(REVISION_SHOWN)
            .collect()
    }),
    Column::made("POLICIES", "policy", |status| plain(part(status, "/policy/policies"))),
    Column::made("LOADED", "policy", |status| {
        moment::shown(&plain(part(status, "/policy/loaded_at")))
    }),
];

/// What a proxy's policy is worth, in a word or two.
fn state(status: &Value) -> String {
    if let Some(error) = part(status, "/error").as_str() {
        return format!("away: {error}");
    }
    match part(status, "/policy/in_force").as_str() {
        Some("live") if !alarms(status).is_empty() => "ALARM".to_owned(),
        Some("live") if faults(status).is_empty() => "live".to_owned(),
        Some("live") => "the last good one".to_owned(),
        _ => format!("deny all: {}", plain(part(status, "/policy/reason"))),
    }
}

fn status(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let elsewhere = args
        .proxies
        .named()
        .is_empty()
        .then(|| elsewhere::Elsewhere::ask(&args.ca, false));
    let sockets = match args.proxies.sockets(args.ca.mesh()) {
        Ok(sockets) => sockets,
        // No mesh lies here, and the CA is asked.
        Err(error) => match &elsewhere {
            Some(Ok(_)) => Vec::new(),
            _ => return Err(error),
        },
    };
    let mut statuses: Vec<Value> = super::runtime()?.block_on(async {
        let mut statuses = Vec::new();
        for socket in &sockets {
            statuses.push(match hoplite_proxy::admin_status(socket).await {
                Ok(status) => status,
                Err(error) => json!({"name": socket.display().to_string(), "error": error.to_string()}),
            });
        }
        statuses
    });
    match elsewhere {
        Some(Ok(others)) => {
            others.say_unheard();
            statuses.extend(others.statuses(&statuses));
        }
        Some(Err(error)) => hoplite_host::tell!("only proxies of this machine are seen: {}", one_line(&error)),
        None => {}
    }
    let good = |status: &Value| {
        part(status, "/policy/in_force") == "live" && faults(status).is_empty() && alarms(status).is_empty()
    };
    let code = match statuses.as_slice() {
        [] => ExitCode::from(CANNOT_TELL),
        all if all.iter().all(good) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    };
    let (mut not_applied, mut alarmed) = (String::new(), String::new());
    for status in &statuses {
        for alarm in alarms(status) {
            alarmed.push_str(&format!("{}: {}\n", plain(part(status, "/name")), plain(alarm)));
        }
        // The proxies of a mesh read the same directory: each fault once.
        for line in faults(status).iter().map(fault_line) {
            if !not_applied.contains(&line) {
                not_applied.push_str(&line);
            }
        }
    }
    let mut listing = Listing::new(&COLUMNS);
    for status in statuses {
        listing.row(status);
    }
    listing.print(args.form)?;
    if !args.form.is_table() {
        return Ok(code);
    }
    if !alarmed.is_empty() {
        print(&format!("\nAlarm:\n{alarmed}"))?;
    }
    if !not_applied.is_empty() {
        print(&format!("\nNot applied:\n{not_applied}"))?;
    }
    Ok(code)
}

/// `directory` or the bundle, with what is special about it.
fn origin(status: &Value) -> String {
    let mut text = match part(status, "/policy/bundle_revision").as_u64() {
        Some(revision) => format!("bundle {revision}"),
        // It is away.
        None if part(status, "/policy").is_null() => String::new(),
        None => "directory".to_owned(),
    };
    if part(status, "/policy/stale") == true {
        text.push_str(", stale");
    }
    if part(status, "/policy/shadow").is_string() {
        text.push_str(", with shadow");
    }
    match part(status, "/policy/grants").as_array().map_or(0, Vec::len) {
        0 => {}
        grants => text.push_str(&format!(", BREAK-GLASS ×{grants}")),
    }
    text
}

fn faults(status: &Value) -> &[Value] {
    listed(status, "/policy/faults")
}

/// What somebody has to look at, until it is mended.
fn alarms(status: &Value) -> &[Value] {
    listed(status, "/policy/alarms")
}

fn listed<'a>(status: &'a Value, pointer: &str) -> &'a [Value] {
    part(status, pointer).as_array().map(Vec::as_slice).unwrap_or_default()
}

/// `file:line:column: reason`; line 0 is the file or directory as a whole.
fn fault_line(fault: &Value) -> String {
    let cell = |pointer| plain(part(fault, pointer));
    if part(fault, "/line").as_u64().unwrap_or(0) == 0 {
        format!("{}: {}\n", cell("/file"), cell("/reason"))
    } else {
        format!(
            "{}:{}:{}: {}\n",
            cell("/file"),
            cell("/line"),
            cell("/column"),
            cell("/reason")
        )
    }
}

/// The admin sockets of a mesh's proxies: every one that is configured there, so that a proxy that is away is shown as away,
/// and every other whose socket lies there, since somebody may have put their own service behind one.
fn mesh_proxies(mesh: &MeshDir) -> anyhow::Result<Vec<PathBuf>> {
    let (dir, others) = (mesh.path()?, mesh.run_proxies()?);
    if !others.is_empty() && !dir.join("config").exists() {
        return Ok(others);
    }
    let configs = std::fs::read_dir(dir.join("config")).with_context(|| {
        format!(
            "there is no mesh in `{}`; start one with `hoplite up` or say where with --dir",
            dir.display()
        )
    })?;
    let mut names: Vec<String> = Vec::new();
    for config in configs {
        let path = config?.path();
        if let Some(name) = path.file_stem().and_then(|name| name.to_str())
            && !matches!(name, "ca" | "agent")
        {
            names.push(name.to_owned());
        }
    }
    if let Ok(sockets) = std::fs::read_dir(dir.join("run")) {
        let paths = sockets.filter_map(|socket| Some(socket.ok()?.path()));
        let sockets = paths.filter(|path| path.extension().is_some_and(|ending| ending == "sock"));
        for path in sockets {
            let Some(name) = path.file_stem().and_then(|name| name.to_str()) else {
                continue;
            };
            if matches!(name, "ca" | "agent") || names.iter().any(|known| known == name) {
                continue;
            }
            // Nobody configured it here, and nobody holds it any more: that is no proxy that is away.
            match socket::is_gone(&path) {
                Ok(true) => {
                    hoplite_host::tell!("note: `{}` was left by a proxy that is gone; remove it", path.display())
                }
                _ => names.push(name.to_owned()),
            }
        }
    }
    names.sort();
    names.dedup();
    let sockets = names.iter().map(|name| dir.join("run").join(format!("{name}.sock")));
    Ok(sockets.chain(others).collect())
}

// === impl ProxyArgs ===

impl ProxyArgs {
    /// Those that were named.
    fn named(&self) -> &[PathBuf] {
        &self.proxies
    }

    /// Those that were named, or all of the mesh.
    fn sockets(&self, dir: &MeshDir) -> anyhow::Result<Vec<PathBuf>> {
        if self.proxies.is_empty() {
            mesh_proxies(dir)
        } else {
            Ok(self.proxies.clone())
        }
    }
}

// === impl PoliciesArgs ===

impl PoliciesArgs {
    fn sources(&self, ca: &CaArgs) -> anyhow::Result<Vec<Source>> {
        Ok(self.read(ca)?.1)
    }

    /// With what sentences call them.
    fn read(&self, ca: &CaArgs) -> anyhow::Result<(String, Vec<Source>)> {
        if let Some(what) = &self.policies {
            return Ok((what.clone(), published::read(what, ca)?));
        }
        let directory = ca.mesh().path()?.join("policies");
        if directory.is_dir() || ca.mesh().is_given() {
            return Ok((directory.display().to_string(), sources(&directory)?));
        }
        let asked = published::state(ca);
        let live = asked.with_context(|| {
            format!(
                "there is no policy directory `{}`, so the CA is asked what is in force; --policies DIR names another directory",
                directory.display()
            )
        })?;
        let Some(live) = live.live else {
            anyhow::bail!("nothing is published yet; name a directory with --policies DIR")
        };
        let sources = published::sources(ca, live.revision)?;
        Ok((format!("the policies of revision {}", live.revision), sources))
    }
}

// === impl AuditArgs ===

impl AuditArgs {
    /// Every log there is; at least one, and each place that was named has some.
    fn logs(&self, dir: &MeshDir) -> anyhow::Result<Vec<PathBuf>> {
        let logs = self.look(dir)?;
        let missing = logs.missing.first().filter(|_| !self.audit.is_empty());
        match missing {
            Some(missing) => anyhow::bail!("{missing}; say where they are with --audit"),
            None if logs.found.is_empty() => anyhow::bail!(
                "there is no decision log in `{}`; say where with --audit or --dir",
                dir.logs()?.display()
            ),
            None => Ok(logs.found),
        }
    }

    /// The logs there are, and the places where there is none.
    fn look(&self, dir: &MeshDir) -> anyhow::Result<Logs> {
        let roots = match self.audit.as_slice() {
            [] => vec![dir.logs()?],
            roots => roots.to_vec(),
        };
        let mut logs = Logs::default();
        for root in roots {
            match hoplite_audit::find_logs(&root) {
                Ok(found) if found.is_empty() => {
                    logs.missing
                        .push(format!("there is no decision log in `{}`", root.display()));
                }
                Ok(found) => logs.found.extend(found),
                Err(error) => logs.missing.push(error.to_string()),
            }
        }
        logs.found.sort();
        logs.found.dedup();
        Ok(logs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_special_stands_beside_the_origin() {
        let grants = json!([{"id": "break-glass/inc-1"}]);
        for (policy, expected) in [
            (json!({"grants": []}), "directory"),
            (json!({"grants": grants}), "directory, BREAK-GLASS ×1"),
            (
                json!({"bundle_revision": 4, "grants": grants}),
                "bundle 4, BREAK-GLASS ×1",
            ),
            (
                json!({"bundle_revision": 4, "stale": true, "shadow": "abc"}),
                "bundle 4, stale, with shadow",
            ),
        ] {
            assert_eq!(origin(&json!({"policy": policy})), expected);
        }
    }
}
