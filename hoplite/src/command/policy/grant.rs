//! `hoplite policy grant`: break-glass, a permit for a few hours that two people sign.

use std::io::{BufRead as _, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Subcommand;
use hoplite_host::clock;
use hoplite_host::files;
use hoplite_identity::{ServiceName, SpiffeId};
use hoplite_policy::grant::{GrantDraft, GrantScope};
use hoplite_wire::ca::{AddGrantRequest, Grant, ListGrantsRequest, RevokeGrantRequest};
use serde_json::{Value, json};

use super::key::KeyArgs;
use super::published::state;
use crate::command::admin::{ListArgs, ListingArgs, rfc3339};
use crate::output::{Column, Listing, Output, print, print_json, verdict};

#[derive(Debug, Subcommand)]
pub(crate) enum GrantCommand {
    /// Write a grant and sign it; it needs a second person's signature
    #[command(
        after_help = "Example:\n  hoplite policy grant create --ticket INC-1 --reason 'ledger is down' \\\n      --who prod.acme/ns/ops \\\n    \
        --service ledger --for 1h --key alice.key"
    )]
    Create(CreateArgs),
    /// Show a grant that somebody else signed, sign it too, and put it in force
    #[command(after_help = "Example:\n  hoplite policy grant approve inc-1.grant --key bob.key")]
    Approve(ApproveArgs),
    /// List the grants that are not over
    #[command(after_help = "Example:\n  hoplite policy grant list")]
    List(ListingArgs),
    /// End a grant before its time
    #[command(after_help = "Example:\n  hoplite policy grant revoke inc-1")]
    Revoke(RevokeArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct CreateArgs {
    /// Where the emergency is written down
    #[arg(long)]
    ticket: String,
    /// Why, in one line
    #[arg(long)]
    reason: String,
    /// To whom: a SPIFFE ID, or a prefix of some without `spiffe://`
    #[arg(long, value_name = "WHO")]
    who: String,
    /// The service, with all its routes
    #[arg(long)]
    service: ServiceName,
    /// For how long from now on; 8 hours at most
    #[arg(long = "for", value_name = "TIME", value_parser = crate::output::moment::seconds)]
    duration: Duration,
    /// The grant's name [default: the ticket in lower case]
    #[arg(long)]
    id: Option<String>,
    /// The file to write [default: the name with `.grant`]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    key: KeyArgs,
    #[command(flatten)]
    list: ListArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ApproveArgs {
    /// The file that the first person wrote
    file: PathBuf,
    /// Sign without being asked; for scripts that have asked already
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    key: KeyArgs,
    #[command(flatten)]
    list: ListArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct RevokeArgs {
    /// The grant's name
    id: String,
    #[command(flatten)]
    list: ListArgs,
}

pub(crate) fn run(command: GrantCommand) -> anyhow::Result<ExitCode> {
    match command {
        GrantCommand::Create(args) => create(&args),
        GrantCommand::Approve(args) => approve(&args),
        GrantCommand::List(args) => list(&args),
        GrantCommand::Revoke(args) => {
            let request = RevokeGrantRequest { id: args.id.clone() };
            args.list
                .ca
                .call(async |mut ca| Ok(ca.revoke_grant(request.clone()).await?))?;
            match args.list.output {
                Output::Json => print_json(&json!({"id": args.id, "revoked": true}))?,
                Output::Table => print(&format!("ended the grant {}\n", args.id))?,
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn create(args: &CreateArgs) -> anyhow::Result<ExitCode> {
    let key = args.key.load(args.list.ca.mesh())?;
    let trust_domain = args.key.trust_domain(&state(&args.list.ca)?.trust_domain)?;
    let scope = if args.who.starts_with("spiffe://") {
        SpiffeId::parse(&args.who).with_context(|| format!("`{}` is not a SPIFFE ID", args.who))?;
        GrantScope::Workload(args.who.clone())
    } else {
        GrantScope::Path(args.who.clone())
    };
    let id = args.id.clone().unwrap_or_else(|| args.ticket.to_ascii_lowercase());
    let now = clock::now();
    let until = now.checked_add(args.duration).context("--for is too long")?;
    let draft = GrantDraft::new(
        &trust_domain,
        &id,
        &args.ticket,
        &args.reason,
        scope,
        &args.service,
        (now, until),
        now,
    )?;
    // On standard error, so that it is read before the signature and does not meet a script's JSON.
    hoplite_host::tell::text(&shown(&draft));
    let file = args.out.clone().unwrap_or_else(|| PathBuf::from(format!("{id}.grant")));
    files::write_public(&file, &draft.sign(&key)?)?;
    if args.list.output == Output::Json {
        let (GrantScope::Workload(who) | GrantScope::Path(who)) = &draft.principal;
        print_json(&json!({
            "id": draft.id, "trust_domain": draft.trust_domain, "ticket": draft.ticket, "reason": draft.reason, "principal": who, "service": draft.service,
            "not_before": time(draft.not_before), "until": time(draft.until), "signed_by": [key.signer().name()],
            "file": file.display().to_string(), "in_force": false,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    print(&format!(
        "\n`{file}` is signed by {name} and gives nothing yet. A second person puts it in force:\n  \
         hoplite policy grant approve {file} --key KEY\n",
        file = file.display(),
        name = key.signer().name()
    ))?;
    Ok(ExitCode::SUCCESS)
}

fn approve(args: &ApproveArgs) -> anyhow::Result<ExitCode> {
    let key = args.key.load(args.list.ca.mesh())?;
    let bytes = read(&args.file)?;
    let (draft, signed_by) = GrantDraft::danger_read_unverified(&bytes)?;
    hoplite_host::tell::text(&shown(&draft));
    hoplite_host::tell!("signed by  {}\n", signed_by.join(", "));
    args.key.trust_domain(&draft.trust_domain)?;
    if signed_by.iter().any(|name| name == key.signer().name()) {
        bail!(
            "`{}` signed this grant already; it takes a second person",
            key.signer().name()
        );
    }
    if !args.yes && !agreed(&draft.ticket)? {
        bail!("not approved; nothing was signed");
    }
    let request = AddGrantRequest {
        grant: GrantDraft::sign_too(&bytes, &key)?,
    };
    let grant = args
        .list
        .ca
        .call(async |mut ca| Ok(ca.add_grant(request.clone()).await?.into_inner()))?;
    if args.list.output == Output::Json {
        print_json(&listed(&grant))?;
        return Ok(ExitCode::SUCCESS);
    }
    print(&format!(
        "BREAK-GLASS {} is in force until {}: {} may do anything to {} that no policy forbids\n\
         signed by {}; end it with: hoplite policy grant revoke {}\n",
        grant.id,
        rfc3339(grant.until_unix),
        grant.principal,
        grant.service,
        grant.signed_by.join(" and "),
        grant.id
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// A person reads what they sign: they type the ticket.
fn agreed(ticket: &str) -> anyhow::Result<bool> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        bail!("there is nobody to ask; run it on a terminal, or say --yes");
    }
    hoplite_host::tell::text("Type the ticket to sign and put it in force: ");
    let mut line = String::new();
    stdin.lock().read_line(&mut line)?;
    Ok(line.trim() == ticket)
}

/// A file a little larger than any grant; what is longer is refused when it is read.
fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    let opened = std::fs::File::open(file).with_context(|| format!("cannot read `{}`", file.display()))?;
    opened
        .take(hoplite_policy::grant::GRANT_BYTES_MAX as u64 + 1)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn shown(draft: &GrantDraft) -> String {
    let (GrantScope::Workload(who) | GrantScope::Path(who)) = &draft.principal;
    format!(
        "grant      {}\nfor        the trust domain {}\nticket     {}\nreason     {}\nwho        {who}\nservice    {}, all routes\nfrom       {}\nuntil      {}\n",
        draft.id,
        draft.trust_domain,
        draft.ticket,
        draft.reason,
        draft.service,
        time(draft.not_before),
        time(draft.until),
    )
}

fn time(seconds: u64) -> String {
    rfc3339(i64::try_from(seconds).unwrap_or(i64::MAX))
}

fn listed(grant: &Grant) -> Value {
    json!({
        "id": grant.id, "ticket": grant.ticket, "reason": grant.reason, "principal": grant.principal,
        "service": grant.service, "not_before": rfc3339(grant.not_before_unix), "until": rfc3339(grant.until_unix),
        "signed_by": grant.signed_by, "revoked": grant.revoked,
    })
}

/// What people see of a grant.
const COLUMNS: [Column; 7] = [
    Column::new("GRANT", "id"),
    Column::new("TICKET", "ticket"),
    Column::new("WHO", "principal"),
    Column::new("SERVICE", "service"),
    Column::moment("UNTIL", "until"),
    Column::new("SIGNED BY", "signed_by"),
    Column::made("STATE", "revoked", |grant| {
        if grant["revoked"] == true {
            "revoked"
        } else {
            "IN FORCE"
        }
        .to_owned()
    })
    .coloured(verdict),
];

fn list(args: &ListingArgs) -> anyhow::Result<ExitCode> {
    let grants = args
        .ca
        .call(async |mut ca| Ok(ca.list_grants(ListGrantsRequest {}).await?.into_inner().grants))?;
    let mut listing = Listing::new(&COLUMNS).like(&listed(&Grant::default()));
    for grant in &grants {
        listing.row(listed(grant));
    }
    listing.print(args.form)?;
    Ok(ExitCode::SUCCESS)
}
