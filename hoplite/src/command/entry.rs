//! `hoplite entry`: which workload on which node is who; registered one by one, changed in place, or kept like a file.

mod apply;
mod service;

pub(crate) use service::ServiceOfUser;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{ArgGroup, Args, Subcommand};
use hoplite_host::config::Span;
use hoplite_identity::{Selector, ServiceName};
use hoplite_wire::ca::{
    self, CreateEntriesRequest, DeleteEntriesRequest, Entry, EntryResult, ListEntriesRequest, UpdateEntriesRequest,
};
use serde::Serialize;
use serde_json::json;

use crate::command::admin::{ListArgs, ListingArgs, rfc3339};
use crate::command::reach::CaArgs;
use crate::command::{admin, diagnosis};
use crate::output::shown::Shown;
use crate::output::{Column, Listing, NOTHING_DONE, Output, failed, print, print_json};

/// Deleted in one call.
const DELETED_AT_ONCE: usize = 1_000;

/// Parents of which it is said one by one that they never joined.
const UNKNOWN_SHOWN_MAX: usize = 10;

#[derive(Debug, Subcommand)]
pub(crate) enum EntryCommand {
    /// Register a workload; exit 3 if it is registered already the same way, 1 if it differs
    #[command(
        after_help = "Examples:\n  hoplite entry create --service billing --node n2 --user www-data\n  hoplite entry create --spiffe-id spiffe://demo.hoplite/billing \\\n    \
        --parent spiffe://demo.hoplite/hoplite/agent/local \\\n      --selector unix:uid:1000 --selector unix:path:/opt/billing-proxy\n  \
        hoplite entry create --spiffe-id spiffe://demo.hoplite/node-exporter \\\n      --node-selector token:label:web --selector unix:user:exporter\n  \
        hoplite entry create \\\n      --spiffe-id 'spiffe://demo.hoplite/k8s/{k8s:ns}/{k8s:sa}' \\\n      --node-selector token:label:k8s"
    )]
    Create(CreateArgs),
    /// Change a registration in place: what is not named stays, and at no moment is it away; exit 3 if it was like this already
    #[command(
        after_help = "Examples:\n  hoplite entry update 3f2a… --ttl 10m --dns-name billing.internal\n  \
        hoplite entry update 3f2a… --ttl default --no-dns-names --owner ''"
    )]
    Update(UpdateArgs),
    /// Make what is registered like a TOML file: registers what is new, updates what differs
    #[command(after_help = apply::HELP)]
    Apply(apply::ApplyArgs),
    /// List the registrations
    #[command(
        after_help = "Examples:\n  hoplite entry list --output json\n  hoplite entry list --owner infra\n  hoplite entry list --node web-1\n  hoplite entry list --under /ns/pay --selector unix:user:billing"
    )]
    List(ListEntriesArgs),
    /// Show one registration
    #[command(after_help = "Example:\n  hoplite entry show 3f2a…")]
    Show(ShowArgs),
    /// Delete registrations; their SVIDs are withdrawn from the agents at once
    #[command(after_help = "Example:\n  hoplite entry delete 3f2a…")]
    Delete(DeleteArgs),
    /// Ask this node's agent why a process has its identities, or none: which entries nearly fit, and what each lacks
    #[command(
        after_help = "Example:\n  hoplite entry why --pid 4711\n\nThe agent's own user and root may ask about every process. Exit 1 when it has none."
    )]
    Why(diagnosis::WhyArgs),
}

/// The life of an entry's certificates, in whole seconds; 0 for the CA's default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ttl(u32);

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// In short, a service by its name: gives spiffe://TRUST_DOMAIN/NAME on --node to processes of --user
    #[arg(long, value_name = "NAME", requires = "node", conflicts_with_all = ["spiffe_id", "parent", "selectors"])]
    service: Option<ServiceName>,
    /// The node on which that service runs, by its name
    #[arg(long, value_name = "NODE", requires = "service")]
    node: Option<String>,
    /// The user, by name or number, as whom that service and its proxy run [default: the one with the service's name]
    #[arg(long, value_name = "USER", requires = "service")]
    user: Option<String>,
    /// The identity to give, or a template of identities: spiffe://prod.example/user/{unix:user}
    #[arg(long, required_unless_present = "service")]
    spiffe_id: Option<String>,
    /// The agent on whose node the workload runs
    #[arg(long, required_unless_present_any = ["service", "node_selectors"])]
    parent: Option<String>,
    /// Instead of one agent, every node of which all of these are attested: token:label:LABEL, node:name:NODE; may be repeated
    #[arg(long = "node-selector", value_name = "KIND:VALUE", conflicts_with_all = ["parent", "service"])]
    node_selectors: Vec<Selector>,
    /// What the workload must be, all of them; beside a template there may be none: unix:uid:N, unix:gid:N, unix:user:NAME, unix:path:PATH, unix:sha256:HEX, launch:name:NAME
    #[arg(long = "selector", value_name = "KIND:VALUE")]
    selectors: Vec<Selector>,
    /// How long each SVID lives: a time, or `default` for what the CA says [default: default]
    #[arg(long, value_name = "TIME")]
    ttl: Option<Ttl>,
    /// How long each JWT-SVID lives: a time, or `default` for what the CA says [default: default]
    #[arg(long, value_name = "TIME")]
    jwt_ttl: Option<Ttl>,
    /// A DNS name to put into the certificate besides
    #[arg(long = "dns-name", value_name = "NAME")]
    dns_names: Vec<String>,
    /// A foreign trust domain whose workloads it is to verify, besides those of federation sets; may be repeated
    #[arg(long = "federates-with", value_name = "TRUST_DOMAIN")]
    federates_with: Vec<String>,
    /// A word that tells the workload's identities apart; up to 64 characters it is the certificate's common name, too
    #[arg(long, default_value = "")]
    hint: String,
    /// Whose list it stands in, for `entry apply --owner`
    #[arg(long, default_value = "")]
    owner: String,
    /// When a process has several identities, those registered with this come first; the first is its default identity
    #[arg(long)]
    default: bool,
    #[command(flatten)]
    list: ListingArgs,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("change").required(true).multiple(true))]
pub(crate) struct UpdateArgs {
    /// The registration's id
    id: String,
    /// Another identity
    #[arg(long, group = "change")]
    spiffe_id: Option<String>,
    /// Another agent, or an agent in the place of a group
    #[arg(long, group = "change")]
    parent: Option<String>,
    /// The nodes of which all of these are attested, in the place of the agent or group that there was; may be repeated
    #[arg(
        long = "node-selector",
        value_name = "KIND:VALUE",
        group = "change",
        conflicts_with = "parent"
    )]
    node_selectors: Vec<Selector>,
    /// What the workload must be, in the place of all that it had to be
    #[arg(long = "selector", value_name = "KIND:VALUE", group = "change")]
    selectors: Vec<Selector>,
    /// How long each SVID lives: a time, or `default` for what the CA says
    #[arg(long, value_name = "TIME", group = "change")]
    ttl: Option<Ttl>,
    /// How long each JWT-SVID lives: a time, or `default` for what the CA says
    #[arg(long, value_name = "TIME", group = "change")]
    jwt_ttl: Option<Ttl>,
    /// The DNS names, in the place of all that there were; may be repeated
    #[arg(
        long = "dns-name",
        value_name = "NAME",
        group = "change",
        conflicts_with = "no_dns_names"
    )]
    dns_names: Vec<String>,
    /// No DNS names any more
    #[arg(long, group = "change")]
    no_dns_names: bool,
    /// The foreign trust domains, in the place of all that there were; may be repeated
    #[arg(
        long = "federates-with",
        value_name = "TRUST_DOMAIN",
        group = "change",
        conflicts_with = "no_federation"
    )]
    federates_with: Vec<String>,
    /// No foreign trust domains of its own any more
    #[arg(long, group = "change")]
    no_federation: bool,
    /// Another hint; '' for none
    #[arg(long, group = "change")]
    hint: Option<String>,
    /// Another owner; '' for none
    #[arg(long, group = "change")]
    owner: Option<String>,
    /// Whether it comes first when a process has several identities
    #[arg(long, value_name = "true|false", group = "change")]
    default: Option<bool>,
    #[command(flatten)]
    list: ListingArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ListEntriesArgs {
    /// Only those of this owner
    #[arg(long, value_name = "NAME", default_value = "")]
    owner: String,
    /// Only those whose SPIFFE ID begins with this: `/ns/pay`, or a whole SPIFFE ID
    #[arg(long, value_name = "PREFIX", default_value = "")]
    under: String,
    /// Only what this node has: what is registered under its agent, and for the groups it is in
    #[arg(long, value_name = "NODE", conflicts_with = "parent")]
    node: Option<String>,
    /// Only those registered under this agent alone, by its SPIFFE ID
    #[arg(long, value_name = "AGENT", default_value = "")]
    parent: String,
    /// Only those for groups with this node selector; may be repeated
    #[arg(long = "node-selector", value_name = "KIND:VALUE")]
    node_selectors: Vec<Selector>,
    /// Only those that demand this of a process; may be repeated
    #[arg(long = "selector", value_name = "KIND:VALUE")]
    selectors: Vec<Selector>,
    /// Only those with this hint
    #[arg(long, value_name = "HINT", default_value = "")]
    hint: String,
    #[command(flatten)]
    shown: Shown,
    #[command(flatten)]
    list: ListingArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// The registration's id
    id: String,
    #[command(flatten)]
    list: ListArgs,
}

#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    /// The registrations' ids
    #[arg(required = true)]
    ids: Vec<String>,
    #[command(flatten)]
    list: ListArgs,
}

/// A registration as people read it.
#[derive(Debug, Serialize)]
struct EntryRow {
    id: String,
    spiffe_id: String,
    /// Empty for a group's.
    parent: String,
    node_selectors: Vec<String>,
    selectors: Vec<String>,
    ttl_seconds: u32,
    jwt_ttl_seconds: u32,
    hint: String,
    dns_names: Vec<String>,
    federates_with: Vec<String>,
    owner: String,
    default: bool,
    revision: u64,
    created_at: String,
}

pub(crate) fn run(command: EntryCommand) -> anyhow::Result<ExitCode> {
    match command {
        EntryCommand::Create(args) => create(args),
        EntryCommand::Update(args) => update(args),
        EntryCommand::Apply(args) => Ok(apply::run(&args)),
        EntryCommand::List(args) => {
            let ca = &args.list.ca;
            let agent_id = match &args.node {
                Some(node) => admin::trust_domain(ca)?.agent(node)?.to_string(),
                None => String::new(),
            };
            let spiffe_id_prefix = match args.under.starts_with('/') {
                true => format!("{}{}", admin::trust_domain(ca)?.id(), args.under),
                false => args.under,
            };
            let asked = ListEntriesRequest {
                owner: args.owner,
                spiffe_id_prefix,
                agent_id,
                parent_id: args.parent,
                node_selectors: args.node_selectors.iter().map(Into::into).collect(),
                selectors: args.selectors.iter().map(Into::into).collect(),
                hint: args.hint,
                ..ListEntriesRequest::default()
            };
            args.shown.print(listing(admin::entries(ca, asked)?), args.list.form)?;
            Ok(ExitCode::SUCCESS)
        }
        EntryCommand::Show(args) => {
            let row = EntryRow::from(one(&args.list.ca, &args.id)?);
            match args.list.output {
                Output::Json => print_json(&row)?,
                Output::Table => print(&row.text())?,
            }
            Ok(ExitCode::SUCCESS)
        }
        EntryCommand::Delete(args) => delete(&args),
        EntryCommand::Why(args) => diagnosis::why(&args),
    }
}

fn create(args: CreateArgs) -> anyhow::Result<ExitCode> {
    let named = match (args.service, args.node) {
        (Some(service), Some(node)) => {
            let trust_domain = admin::trust_domain(&args.list.ca)?;
            ServiceOfUser::new(service, args.user).entry(&trust_domain, &node)?
        }
        _ => Entry {
            spiffe_id: args.spiffe_id.unwrap_or_default(),
            parent_id: args.parent.unwrap_or_default(),
            node_selectors: args.node_selectors.iter().map(Into::into).collect(),
            selectors: args.selectors.iter().map(Into::into).collect(),
            ..Entry::default()
        },
    };
    let entry = Entry {
        x509_ttl_seconds: args.ttl.map_or(0, |ttl| ttl.0),
        jwt_ttl_seconds: args.jwt_ttl.map_or(0, |ttl| ttl.0),
        hint: args.hint,
        dns_names: args.dns_names,
        federates_with: args.federates_with,
        owner: args.owner,
        is_default: args.default,
        ..named
    };
    let spiffe_id = entry.spiffe_id.clone();
    let request = CreateEntriesRequest { entries: vec![entry] };
    let response = args
        .list
        .ca
        .call(async |mut ca| Ok(ca.create_entries(request.clone()).await?.into_inner()))?;
    warn_of_unknown(&response.unknown_parents);
    let (entry, existed) = done(&spiffe_id, response.results)?;
    if existed {
        hoplite_host::tell!(
            "`{spiffe_id}` is registered already, the same way, as `{}`; nothing was done",
            entry.id
        );
    }
    listing(vec![entry]).print(args.list.form)?;
    Ok(done_or_not(existed))
}

fn update(args: UpdateArgs) -> anyhow::Result<ExitCode> {
    let ca = &args.list.ca;
    let was = one(ca, &args.id)?;
    let mut entry = was.clone();
    entry.spiffe_id = args.spiffe_id.unwrap_or(entry.spiffe_id);
    if let Some(parent) = args.parent {
        (entry.parent_id, entry.node_selectors) = (parent, Vec::new());
    } else if !args.node_selectors.is_empty() {
        entry.parent_id.clear();
        entry.node_selectors = args.node_selectors.iter().map(Into::into).collect();
    }
    if !args.selectors.is_empty() {
        entry.selectors = args.selectors.iter().map(Into::into).collect();
    }
    entry.x509_ttl_seconds = args.ttl.map_or(entry.x509_ttl_seconds, |ttl| ttl.0);
    entry.jwt_ttl_seconds = args.jwt_ttl.map_or(entry.jwt_ttl_seconds, |ttl| ttl.0);
    if args.no_dns_names || !args.dns_names.is_empty() {
        entry.dns_names = args.dns_names;
    }
    if args.no_federation || !args.federates_with.is_empty() {
        entry.federates_with = args.federates_with;
    }
    entry.hint = args.hint.unwrap_or(entry.hint);
    entry.owner = args.owner.unwrap_or(entry.owner);
    entry.is_default = args.default.unwrap_or(entry.is_default);
    // Its revision goes along: what somebody else changed meanwhile is not overwritten.
    let request = UpdateEntriesRequest { entries: vec![entry] };
    let response = ca.call(async |mut ca| Ok(ca.update_entries(request.clone()).await?.into_inner()))?;
    warn_of_unknown(&response.unknown_parents);
    let (entry, existed) = done(&args.id, response.results)?;
    if existed {
        hoplite_host::tell!("`{}` was like this already; nothing was changed", args.id);
    }
    if let (Ok(was), Ok(now)) = (hoplite_identity::Entry::try_from(was), entry.clone().try_into()) {
        for difference in was.differences(&now) {
            hoplite_host::tell!("{difference}");
        }
    }
    listing(vec![entry]).print(args.list.form)?;
    Ok(done_or_not(existed))
}

/// Scripts see by the code whether anything was done.
fn done_or_not(existed: bool) -> ExitCode {
    match existed {
        true => ExitCode::from(NOTHING_DONE),
        false => ExitCode::SUCCESS,
    }
}

/// The entry of the one result there is, and whether it was there already. An error counts, whatever comes with it.
fn done(asked: &str, results: Vec<EntryResult>) -> anyhow::Result<(Entry, bool)> {
    let result = results.into_iter().next().context("the CA gave no answer")?;
    match result.entry {
        Some(entry) if result.error.is_empty() => Ok((entry, result.existed)),
        _ => bail!("`{asked}`: {}", result.error),
    }
}

fn delete(args: &DeleteArgs) -> anyhow::Result<ExitCode> {
    let mut rows = Vec::new();
    let mut code = ExitCode::SUCCESS;
    let (mut all, mut seen) = (args.ids.clone(), BTreeSet::new());
    all.retain(|id| seen.insert(id.clone()));
    for ids in all.chunks(DELETED_AT_ONCE) {
        let request = DeleteEntriesRequest { ids: ids.to_vec() };
        let errors = args
            .list
            .ca
            .call(async |mut ca| Ok(ca.delete_entries(request.clone()).await?.into_inner().errors))?;
        for (id, error) in ids.iter().zip(errors) {
            if !error.is_empty() {
                failed(&format!("`{id}`: {error}"), 1);
                code = ExitCode::FAILURE;
            } else if args.list.output == Output::Table {
                print(&format!("deleted {id}\n"))?;
            }
            let why = (!error.is_empty()).then_some(&error);
            rows.push(json!({"id": id, "deleted": why.is_none(), "error": why}));
        }
    }
    if args.list.output == Output::Json {
        print_json(&rows)?;
    }
    Ok(code)
}

fn one(ca: &CaArgs, id: &str) -> anyhow::Result<Entry> {
    let asked = ListEntriesRequest {
        id: id.to_owned(),
        ..ListEntriesRequest::default()
    };
    let found = match id {
        "" => None, // would be all
        _ => admin::entries(ca, asked)?.pop(),
    };
    found.with_context(|| {
        let what = match id.starts_with("spiffe://") {
            true => "that is no id of a registration; one identity may have several",
            false => "there is no registration of that id",
        };
        format!("`{id}`: {what}; `hoplite entry list` shows the ids")
    })
}

/// Nothing is wrong with it: an agent may join later. But a misspelt one never will.
fn warn_of_unknown(parents: &[String]) {
    for parent in parents.iter().take(UNKNOWN_SHOWN_MAX) {
        hoplite_host::tell!(
            "warning: no agent `{parent}` has joined, and until it does nobody is given what is registered under it; \
             `hoplite agent list` shows who has"
        );
    }
    if let more @ 1.. = parents.len().saturating_sub(UNKNOWN_SHOWN_MAX) {
        hoplite_host::tell!("warning: nor have {more} other parents");
    }
}

/// What people see of an entry.
const COLUMNS: [Column; 6] = [
    Column::new("ID", "id"),
    Column::new("SPIFFE ID", "spiffe_id"),
    Column::new("SELECTORS", "selectors"),
    Column::made("PARENT", "parent", parent_of),
    Column::made("TTL", "ttl_seconds", |row| {
        ttl_of(row["ttl_seconds"].as_u64().unwrap_or_default())
    }),
    Column::new("OWNER", "owner"),
];

fn listing(entries: Vec<Entry>) -> Listing<EntryRow> {
    let mut listing = Listing::new(&COLUMNS).like(&EntryRow::from(Entry::default()));
    for entry in entries {
        listing.row(EntryRow::from(entry));
    }
    listing
}

fn selector_text(selector: &ca::Selector) -> String {
    format!("{}:{}", selector.kind, selector.value)
}

/// A text that is no life of a certificate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadTtl {
    #[error("`{0}` is not a length of time; write for example `30s` or `1h`, or `default`")]
    NoTime(String),
    #[error("`{0}` is no life of an SVID; write whole seconds, at least one")]
    NoLife(Span),
}

// === impl Ttl ===

impl FromStr for Ttl {
    type Err = BadTtl;

    fn from_str(text: &str) -> Result<Self, BadTtl> {
        if text == "default" {
            return Ok(Self(0));
        }
        let span = humantime::parse_duration(text).map_err(|_| BadTtl::NoTime(text.to_owned()))?;
        Self::try_from(Span(span))
    }
}

impl TryFrom<Span> for Ttl {
    type Error = BadTtl;

    fn try_from(span: Span) -> Result<Self, BadTtl> {
        let seconds = u32::try_from(span.0.as_secs()).ok();
        match seconds.filter(|seconds| *seconds > 0 && span.0.subsec_nanos() == 0) {
            Some(seconds) => Ok(Self(seconds)),
            None => Err(BadTtl::NoLife(span)),
        }
    }
}

// === impl EntryRow ===

impl From<Entry> for EntryRow {
    fn from(entry: Entry) -> Self {
        Self {
            id: entry.id,
            spiffe_id: entry.spiffe_id,
            parent: entry.parent_id,
            node_selectors: entry.node_selectors.iter().map(selector_text).collect(),
            selectors: entry.selectors.iter().map(selector_text).collect(),
            ttl_seconds: entry.x509_ttl_seconds,
            jwt_ttl_seconds: entry.jwt_ttl_seconds,
            hint: entry.hint,
            dns_names: entry.dns_names,
            federates_with: entry.federates_with,
            owner: entry.owner,
            default: entry.is_default,
            revision: entry.revision,
            created_at: rfc3339(entry.created_at_unix),
        }
    }
}

impl EntryRow {
    /// All of it, a line for each thing: for one entry there is room.
    fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: &str| {
            if !value.is_empty() {
                let _ = writeln!(text, "{name:<10} {value}");
            }
        };
        line("ID", &self.id);
        line("SPIFFE ID", &self.spiffe_id);
        line("PARENT", &self.parent);
        for selector in &self.node_selectors {
            line("NODES", selector);
        }
        for selector in &self.selectors {
            line("SELECTOR", selector);
        }
        line("TTL", &ttl_of(self.ttl_seconds.into()));
        if self.jwt_ttl_seconds != 0 {
            line("JWT TTL", &ttl_of(self.jwt_ttl_seconds.into()));
        }
        line("HINT", &self.hint);
        for name in &self.dns_names {
            line("DNS NAME", name);
        }
        for domain in &self.federates_with {
            line("FEDERATES", domain);
        }
        line("OWNER", &self.owner);
        if self.default {
            line("DEFAULT", "yes");
        }
        line("REVISION", &self.revision.to_string());
        line("CREATED", &self.created_at);
        text
    }
}

/// The agent, or what its nodes must have.
fn parent_of(row: &serde_json::Value) -> String {
    match row["parent"].as_str() {
        Some(parent) if !parent.is_empty() => parent.to_owned(),
        _ => {
            let selectors = row["node_selectors"].as_array().into_iter().flatten();
            selectors
                .filter_map(serde_json::Value::as_str)
                .collect::<Vec<_>>()
                .join(" ")
        }
    }
}

/// Under whom an entry is registered, for people.
fn parent_text(entry: &Entry) -> String {
    match entry.node_selectors.is_empty() {
        true => entry.parent_id.clone(),
        false => {
            let texts: Vec<String> = entry.node_selectors.iter().map(selector_text).collect();
            texts.join(" ")
        }
    }
}

/// The life of an entry's certificates, for people.
fn ttl_of(seconds: u64) -> String {
    match seconds {
        0 => "the CA's".to_owned(),
        seconds => Span(Duration::from_secs(seconds)).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ttls() {
        let check =
            |text: &str, expected: Option<u32>| assert_eq!(text.parse::<Ttl>().ok(), expected.map(Ttl), "{text}");
        check("default", Some(0));
        check("1h 1s", Some(3601));
        check("0s", None);
        check("500ms", None);
        check("1500ms", None);
        check("200years", None);
        check("soon", None);
    }
}
