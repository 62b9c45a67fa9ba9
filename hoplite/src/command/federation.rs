//! `hoplite federation add|list|show|refresh|delete|set`: foreign trust domains, and whose workloads verify theirs.

use std::fmt::{self, Write as _};
use std::io::Read as _;
use std::path::Path;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context as _;
use clap::{ArgGroup, Args, Subcommand};
use hoplite_host::config::Span;
use hoplite_host::undo;
use hoplite_identity::{BUNDLE_DOCUMENT_BYTES_MAX, TrustDomain};
use hoplite_wire::ca::{
    AddFederationRequest, DeleteFederationSetRequest, Federation, FederationRequest, FederationSet,
    ListFederationsRequest, ListFederationsResponse, SetForeignBundleRequest,
};
use serde_json::{Value, json};

use crate::command::admin::{ListArgs, ListingArgs, rfc3339};
use crate::command::reach::CaArgs;
use crate::output::{Column, Listing, Output, print, print_json, verdict};

/// What was asked for is so already.
const WAS_SO: u8 = 3;

#[derive(Debug, Subcommand)]
pub(crate) enum FederationCommand {
    /// Federate with a foreign trust domain, whose bundle is fetched from its endpoint from now on
    #[command(
        after_help = "Examples:\n  hoplite federation add partner.example \\\n    --url https://ca.partner.example:8443 \\\n    --spiffe-id spiffe://partner.example/hoplite/ca --bundle partner.json\n  \
        hoplite federation add partner.example \\\n    --url https://bundle.partner.example --web\n  \
        hoplite federation add partner.example --url https://10.1.2.3:8443 --web \\\n    --allow-network 10.1.2.3\n\n\
        --spiffe-id (profile https_spiffe): the endpoint proves to be that SPIFFE ID by the newest bundle that is held of its trust domain. The \
        first one is got from there some other way, `hoplite bundle show --format spiffe`, and given with --bundle. --web (https_web): the \
        authorities of the web vouch for the endpoint's name.\n\n\
        By itself this gives no workload anything: name the trust domain at entries (`--federates-with`), or in a federation set.\n\n\
        Said again it says anew where the bundle is. Exit 3 when it was so already; exit 1 when it is noted and the bundle could not be \
        fetched now, which is tried again."
    )]
    Add(AddArgs),
    /// List the foreign trust domains, and how it stands with the bundle of each
    #[command(
        after_help = "Examples:\n  hoplite federation list\n  hoplite federation list --output json\n\n\
        fresh: the endpoint was asked within three refreshes. by_hand: nobody is asked. stale: it did not answer three times; the bundle is \
        believed still. withdrawn: for so long that nobody is given it (`federation.stale_max`). ended: every X.509 authority in it has ended. \
        empty: it says that nobody is to be trusted. missing: there is none yet."
    )]
    List(ListingArgs),
    /// Show one of them
    #[command(after_help = "Example:\n  hoplite federation show partner.example")]
    Show(OneArgs),
    /// Fetch its bundle now
    #[command(
        after_help = "Example:\n  hoplite federation refresh partner.example\n\nExit 0 when a new bundle came, 3 when it is the one that is held, 1 when it could not be fetched."
    )]
    Refresh(OneArgs),
    /// End a federation: its bundle goes with it, and connections of its workloads end
    #[command(after_help = "Example:\n  hoplite federation delete partner.example\n\n\
        Entries and sets that name the trust domain keep naming it: if it is added again, they are given its bundle again.")]
    Delete(OneArgs),
    /// Federation sets: foreign trust domains for every entry below a prefix, without naming them at each
    #[command(subcommand)]
    Set(SetCommand),
}

#[derive(Debug, Subcommand)]
pub(crate) enum SetCommand {
    /// Make a set, or change it wholly
    #[command(
        after_help = "Examples:\n  hoplite federation set put partners --for / --with partner.example\n  \
        hoplite federation set put banks --for /payments \\\n    --with bank-a.example --with bank-b.example\n\nExit 3 when it was so already."
    )]
    Put(SetPutArgs),
    /// List the sets
    #[command(after_help = "Example:\n  hoplite federation set list")]
    List(ListingArgs),
    /// Delete a set
    #[command(after_help = "Example:\n  hoplite federation set delete partners")]
    Delete(SetDeleteArgs),
}

/// The name of a trust domain; `spiffe://` before it is taken off.
#[derive(Debug, Clone)]
pub(crate) struct TrustDomainArg(TrustDomain);

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("source").required(true).multiple(true).args(["url", "bundle"]))]
#[command(group = ArgGroup::new("profile").args(["web", "spiffe_id"]))]
pub(crate) struct AddArgs {
    /// The foreign trust domain
    trust_domain: TrustDomainArg,
    /// Where its bundle is published
    #[arg(long, value_name = "URL", requires = "profile")]
    url: Option<String>,
    /// The endpoint is known by its name, for which authorities of the web vouch
    #[arg(long, requires = "url")]
    web: bool,
    /// The endpoint is known by this SPIFFE ID
    #[arg(long, value_name = "ID", requires = "url")]
    spiffe_id: Option<String>,
    /// A first bundle from some other way, a SPIFFE bundle or PEM; `-` for standard input
    #[arg(long, value_name = "FILE")]
    bundle: Option<std::path::PathBuf>,
    /// A range of addresses that may be dialled although it is not in the open, as 10.1.0.0/16; may be repeated
    #[arg(long = "allow-network", value_name = "RANGE", requires = "url")]
    allow_networks: Vec<String>,
    #[command(flatten)]
    list: ListArgs,
}

#[derive(Debug, Args)]
pub(crate) struct OneArgs {
    /// The foreign trust domain
    trust_domain: TrustDomainArg,
    #[command(flatten)]
    list: ListArgs,
}

#[derive(Debug, Args)]
pub(crate) struct SetPutArgs {
    /// The set's name
    name: String,
    /// For workloads whose SPIFFE ID's path begins so: `/` for all, or whole segments
    #[arg(long = "for", value_name = "PREFIX")]
    prefix: String,
    /// A foreign trust domain; may be repeated
    #[arg(long = "with", value_name = "TRUST_DOMAIN", required = true)]
    trust_domains: Vec<TrustDomainArg>,
    #[command(flatten)]
    list: ListArgs,
}

#[derive(Debug, Args)]
pub(crate) struct SetDeleteArgs {
    /// The set's name
    name: String,
    #[command(flatten)]
    list: ListArgs,
}

/// What people see of a federation.
const COLUMNS: [Column; 5] = [
    Column::new("TRUST DOMAIN", "trust_domain"),
    Column::new("BUNDLE", "state").coloured(verdict),
    Column::made("SEQUENCE", "sequence", |row| match row["sequence"].as_u64() {
        Some(sequence) => sequence.to_string(),
        None => "-".to_owned(),
    }),
    Column::moment("REFRESHED", "refreshed_at"),
    Column::made("ENDPOINT", "url", |row| match row["url"].as_str() {
        Some(url) => format!("{} {url}", row["profile"].as_str().unwrap_or_default()),
        None => "-".to_owned(),
    }),
];

/// What people see of a set.
const SET_COLUMNS: [Column; 3] = [
    Column::new("SET", "name"),
    Column::new("FOR", "prefix"),
    Column::made("WITH", "trust_domains", |row| {
        let names = row["trust_domains"].as_array().map(Vec::as_slice).unwrap_or_default();
        let names: Vec<&str> = names.iter().filter_map(Value::as_str).collect();
        names.join(", ")
    }),
];

pub(crate) fn run(command: FederationCommand) -> anyhow::Result<ExitCode> {
    match command {
        FederationCommand::Add(args) => add(args),
        FederationCommand::List(args) => {
            let mut listing = Listing::new(&COLUMNS);
            for federation in all(&args.ca)?.federations {
                listing.row(row(&federation));
            }
            listing.print(args.form)?;
            Ok(ExitCode::SUCCESS)
        }
        FederationCommand::Show(args) => show(&args),
        FederationCommand::Refresh(args) => {
            let asked = args.request();
            let ca = &args.list.ca;
            let federation = ca.call(async |mut ca| Ok(ca.refresh_federation(asked.clone()).await?.into_inner()))?;
            let what = match federation.was_so {
                true => "is the one that is held",
                false => "is new",
            };
            let name = &federation.trust_domain;
            warn_of_empty(&federation);
            let text = format!(
                "the bundle of {name}, sequence number {}, {what}\n",
                federation.sequence
            );
            done(&args.list, &federation, &text)
        }
        FederationCommand::Delete(args) => {
            let asked = args.request();
            let ca = &args.list.ca;
            let federation = ca.call(async |mut ca| Ok(ca.delete_federation(asked.clone()).await?.into_inner()))?;
            let name = &federation.trust_domain;
            let mut text = format!("ended the federation with {name}: its workloads are refused from now on\n");
            if federation.entries > 0 || federation.sets > 0 {
                let (entries, sets) = (federation.entries, federation.sets);
                let _ = writeln!(text, "still named by entries: {entries}, by sets: {sets}");
            }
            done(&args.list, &federation, &text)
        }
        FederationCommand::Set(command) => set(command),
    }
}

fn set(command: SetCommand) -> anyhow::Result<ExitCode> {
    match command {
        SetCommand::List(args) => {
            let mut listing = Listing::new(&SET_COLUMNS);
            for set in all(&args.ca)?.sets {
                listing.row(set_row(&set));
            }
            listing.print(args.form)?;
            Ok(ExitCode::SUCCESS)
        }
        SetCommand::Put(args) => {
            let asked = FederationSet {
                name: args.name,
                prefix: args.prefix,
                trust_domains: args.trust_domains.iter().map(ToString::to_string).collect(),
            };
            let ca = &args.list.ca;
            let answer = ca.call(async |mut ca| Ok(ca.put_federation_set(asked.clone()).await?.into_inner()))?;
            let known = all(ca).map(|all| all.federations).unwrap_or_default();
            for name in &asked.trust_domains {
                if !known.iter().any(|federation| federation.trust_domain == *name) {
                    hoplite_host::tell!(
                        "warning: there is no federation with `{name}` yet; `hoplite federation add` begins one"
                    );
                }
            }
            let what = if answer.was_so { "was so already" } else { "is in force" };
            let text = format!("the set {} {what}\n", asked.name);
            set_done(&args.list, &set_row(&asked), &text, answer.was_so)
        }
        SetCommand::Delete(args) => {
            let asked = DeleteFederationSetRequest { name: args.name };
            let ca = &args.list.ca;
            ca.call(async |mut ca| Ok(ca.delete_federation_set(asked.clone()).await?))?;
            let text = format!("deleted the set {}\n", asked.name);
            set_done(&args.list, &json!({"name": asked.name, "deleted": true}), &text, false)
        }
    }
}

fn add(args: AddArgs) -> anyhow::Result<ExitCode> {
    let bundle = args.bundle.as_deref().map(read).transpose()?.unwrap_or_default();
    let profile = match (&args.url, args.web) {
        (None, _) => "",
        (Some(_), true) => "https_web",
        (Some(_), false) => "https_spiffe",
    };
    let asked = AddFederationRequest {
        trust_domain: args.trust_domain.to_string(),
        url: args.url.unwrap_or_default(),
        profile: profile.to_owned(),
        endpoint_spiffe_id: args.spiffe_id.unwrap_or_default(),
        allow_networks: args.allow_networks,
        bundle,
    };
    let ca = &args.list.ca;
    // The CA notes it before it asks the endpoint, which may not answer.
    undo::watch().context("cannot wait for signals")?;
    let told = undo::at_signal(|| {
        hoplite_host::tell!("interrupted: the federation may be noted already; `hoplite federation list` shows it");
    });
    let federation = ca.call(async |mut ca| Ok(ca.add_federation(asked.clone()).await?.into_inner()))?;
    drop(told);
    let name = &federation.trust_domain;
    let text = match (federation.was_so, federation.state.as_str()) {
        (true, _) => format!("the federation with {name} was so already\n"),
        (false, "missing") => format!("noted the federation with {name}; there is no bundle of it yet\n"),
        (false, _) => format!(
            "federated with {name}: {} of the bundle with the sequence number {}\n",
            many(federation.authorities, "authority", "authorities"),
            federation.sequence
        ),
    };
    let code = done(&args.list, &federation, &text)?;
    if !federation.failure.is_empty() {
        hoplite_host::tell!(
            "warning: its bundle could not be fetched: {}; it is tried again",
            federation.failure
        );
        return Ok(ExitCode::FAILURE);
    }
    warn_of_empty(&federation);
    Ok(code)
}

/// `hoplite bundle set`.
pub(crate) fn set_bundle(args: &ListArgs, domain: &TrustDomainArg, file: &Path) -> anyhow::Result<ExitCode> {
    let asked = SetForeignBundleRequest {
        trust_domain: domain.to_string(),
        bundle: read(file)?,
    };
    let ca = &args.ca;
    let federation = ca.call(async |mut ca| Ok(ca.set_foreign_bundle(asked.clone()).await?.into_inner()))?;
    let what = if federation.was_so {
        "is held already"
    } else {
        "is held from now on"
    };
    let text = format!(
        "the bundle of {domain}, {}, {what}\n",
        many(federation.authorities, "authority", "authorities")
    );
    done(args, &federation, &text)
}

/// What was fetched may say that nobody is to be believed.
fn warn_of_empty(federation: &Federation) {
    if federation.state == "empty" {
        hoplite_host::tell!(
            "warning: the bundle of {} is without any authority: its workloads are refused",
            federation.trust_domain
        );
    }
}

fn show(args: &OneArgs) -> anyhow::Result<ExitCode> {
    let name = args.trust_domain.to_string();
    let found = all(&args.list.ca)?
        .federations
        .into_iter()
        .find(|federation| federation.trust_domain == name);
    let federation = found.with_context(|| {
        format!("there is no federation with `{name}`; `hoplite federation list` shows those there are")
    })?;
    match args.list.output {
        Output::Json => print_json(&row(&federation))?,
        Output::Table => print(&text(&federation))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// All of it, a line for each thing.
fn text(federation: &Federation) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            let _ = writeln!(text, "{name:<14} {value}");
        }
    };
    let moment = |unix: i64| if unix == 0 { String::new() } else { rfc3339(unix) };
    line("TRUST DOMAIN", &federation.trust_domain);
    line("BUNDLE", &federation.state);
    if federation.state != "missing" {
        line("SEQUENCE", &federation.sequence.to_string());
        line(
            "AUTHORITIES",
            &format!("{} X.509, {} JWT", federation.authorities, federation.jwt_authorities),
        );
    }
    line("ENDS", &moment(federation.not_after_unix));
    line("ENDPOINT", &federation.url);
    line("PROFILE", &federation.profile);
    line("SPIFFE ID", &federation.endpoint_spiffe_id);
    line("ALLOWED", &federation.allow_networks.join(" "));
    line("REFRESHED", &moment(federation.refreshed_unix));
    if !federation.url.is_empty() {
        let every = Span(Duration::from_secs(federation.refresh_seconds.into()));
        line("REFRESH", &format!("every {every}"));
        line("NEXT", &moment(federation.next_unix));
    }
    line("FAILED", &moment(federation.failed_unix));
    line("BECAUSE", &federation.failure);
    line(
        "NAMED BY",
        &format!(
            "{}, {}",
            many(federation.entries, "entry", "entries"),
            many(federation.sets, "set", "sets")
        ),
    );
    text
}

fn all(ca: &CaArgs) -> anyhow::Result<ListFederationsResponse> {
    ca.call(async |mut ca| Ok(ca.list_federations(ListFederationsRequest {}).await?.into_inner()))
}

fn row(federation: &Federation) -> Value {
    let moment = |unix: i64| (unix != 0).then(|| rfc3339(unix));
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let is_held = federation.state != "missing";
    json!({
        "trust_domain": federation.trust_domain,
        "state": federation.state,
        "sequence": is_held.then_some(federation.sequence),
        "authorities": federation.authorities,
        "jwt_authorities": federation.jwt_authorities,
        "not_after": moment(federation.not_after_unix),
        "url": text(&federation.url),
        "profile": text(&federation.profile),
        "endpoint_spiffe_id": text(&federation.endpoint_spiffe_id),
        "allow_networks": federation.allow_networks,
        "refreshed_at": moment(federation.refreshed_unix),
        "next_at": moment(federation.next_unix),
        "refresh_seconds": federation.refresh_seconds,
        "failure": text(&federation.failure),
        "failed_at": moment(federation.failed_unix),
        "entries": federation.entries,
        "sets": federation.sets,
    })
}

fn set_row(set: &FederationSet) -> Value {
    json!({"name": set.name, "prefix": set.prefix, "trust_domains": set.trust_domains})
}

fn done(args: &ListArgs, federation: &Federation, text: &str) -> anyhow::Result<ExitCode> {
    match args.output {
        Output::Json => {
            let mut value = row(federation);
            if let Some(fields) = value.as_object_mut() {
                fields.insert("was_so".to_owned(), json!(federation.was_so));
            }
            print_json(&value)?;
        }
        Output::Table => print(text)?,
    }
    Ok(code(federation.was_so))
}

fn set_done(args: &ListArgs, value: &Value, text: &str, was_so: bool) -> anyhow::Result<ExitCode> {
    match args.output {
        Output::Json => print_json(value)?,
        Output::Table => print(text)?,
    }
    Ok(code(was_so))
}

/// What is done already is no failure, and is told apart from what was done now.
fn code(was_so: bool) -> ExitCode {
    match was_so {
        true => ExitCode::from(WAS_SO),
        false => ExitCode::SUCCESS,
    }
}

/// A file, or standard input, no longer than a bundle may be.
fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    let most = u64::try_from(BUNDLE_DOCUMENT_BYTES_MAX).unwrap_or(u64::MAX);
    let mut bytes = Vec::new();
    if file == Path::new("-") {
        std::io::stdin().lock().take(most + 1).read_to_end(&mut bytes)?;
    } else {
        let opened = std::fs::File::open(file).with_context(|| format!("cannot read `{}`", file.display()))?;
        opened.take(most + 1).read_to_end(&mut bytes)?;
    }
    anyhow::ensure!(
        !bytes.is_empty(),
        "`{}` is empty; it should hold a trust bundle",
        file.display()
    );
    anyhow::ensure!(
        bytes.len() <= BUNDLE_DOCUMENT_BYTES_MAX,
        "`{}` is longer than {BUNDLE_DOCUMENT_BYTES_MAX} bytes; no trust bundle is",
        file.display()
    );
    Ok(bytes)
}

fn many(count: u32, one: &str, several: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { several })
}

// === impl TrustDomainArg ===

impl FromStr for TrustDomainArg {
    type Err = hoplite_identity::InvalidSpiffeId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        TrustDomain::parse(text.strip_prefix("spiffe://").unwrap_or(text)).map(Self)
    }
}

impl fmt::Display for TrustDomainArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

// === impl OneArgs ===

impl OneArgs {
    fn request(&self) -> FederationRequest {
        FederationRequest {
            trust_domain: self.trust_domain.to_string(),
        }
    }
}
