//! `hoplite policy signers`: who may sign policy, and how that changes: signed by those who may until then.

use std::io::{BufRead as _, IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Subcommand;
use hoplite_host::files;
use hoplite_seal::{SIGNER_SET_BYTES_MAX, Signer, SignerChain, SignerSet, TrustedSet, TrustedSigners};
use hoplite_wire::ca::{ListSignersRequest, PublishSignersRequest};
use serde_json::{Value, json};

use super::key::KeyArgs;
use crate::command::admin::ListArgs;
use crate::command::reach::CaArgs;
use crate::output::{Column, Form, Listing, Output, print, print_json};

#[derive(Debug, Subcommand)]
pub(crate) enum SignersCommand {
    /// List who may sign policy now, and how many of them must sign a change
    #[command(after_help = "Examples:\n  hoplite policy signers list\n  hoplite policy signers list --output json")]
    List(ListArgs),
    /// Write the next signer set, and sign it; more of those who may sign now have to sign it too
    #[command(
        after_help = "Examples:\n  hoplite policy signers propose \\\n      --add 'carol=ed25519:Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=' \\\n      --key alice.key\n  \
        hoplite policy signers propose --remove bob --quorum 1 --key alice.key \\\n      --out next.signers"
    )]
    Propose(ProposeArgs),
    /// Show a signer set that somebody else wrote, and sign it too
    #[command(after_help = "Example:\n  hoplite policy signers sign next.signers --key bob.key")]
    Sign(SignArgs),
    /// Send a signer set that enough people signed to the CA, and so to every agent and proxy
    #[command(after_help = "Example:\n  hoplite policy signers publish next.signers")]
    Publish(PublishArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct ProposeArgs {
    /// Somebody who may sign from then on, as `hoplite policy key show` prints them; may be repeated
    #[arg(long, value_name = "SIGNER")]
    add: Vec<Signer>,
    /// The name of somebody who may sign no longer; may be repeated
    #[arg(long, value_name = "NAME")]
    remove: Vec<String>,
    /// How many of the new ones must sign the change after this [default: more than half]
    #[arg(long, value_name = "N")]
    quorum: Option<u32>,
    /// The file to write
    #[arg(long, value_name = "FILE", default_value = "next.signers")]
    out: PathBuf,
    #[command(flatten)]
    key: KeyArgs,
    #[command(flatten)]
    list: ListArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct SignArgs {
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
pub(crate) struct PublishArgs {
    /// The file that enough people signed
    file: PathBuf,
    #[command(flatten)]
    list: ListArgs,
}

pub(crate) fn run(command: SignersCommand) -> anyhow::Result<ExitCode> {
    match command {
        SignersCommand::List(args) => list(&args),
        SignersCommand::Propose(args) => propose(&args),
        SignersCommand::Sign(args) => sign(&args),
        SignersCommand::Publish(args) => publish(&args),
    }
}

/// The chain as the CA has it; it is this CA's word, and each set in it is signed by the one before.
fn chain(ca: &CaArgs) -> anyhow::Result<SignerChain> {
    let sets = ca.call(async |mut ca| Ok(ca.list_signers(ListSignersRequest {}).await?.into_inner().sets))?;
    if sets.is_empty() {
        bail!(
            "this CA trusts nobody to sign policy; put the output of `hoplite policy key create` into its `policy_signers` and restart it"
        );
    }
    Ok(SignerChain::linked_from_first(&sets)?)
}

fn list(args: &ListArgs) -> anyhow::Result<ExitCode> {
    let chain = chain(&args.ca)?;
    let newest = chain.newest();
    if args.output == Output::Json {
        print_json(&listed(newest.set(), &newest.digest().to_string()))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut listing = Listing::new(&[Column::new("SIGNER", "name"), Column::new("KEY", "signer")]);
    for signer in newest.signers().signers() {
        listing.row(json!({"name": signer.name(), "signer": signer.to_string()}));
    }
    listing.print(Form::default())?;
    print(&format!(
        "\nversion {} of {}; {} of these must sign a change\n",
        newest.version(),
        newest.set().trust_domain(),
        newest.quorum()
    ))?;
    Ok(ExitCode::SUCCESS)
}

fn propose(args: &ProposeArgs) -> anyhow::Result<ExitCode> {
    if args.out.symlink_metadata().is_ok() {
        bail!(
            "`{}` exists already; choose another file with --out",
            args.out.display()
        );
    }
    let chain = chain(&args.list.ca)?;
    let newest = chain.newest();
    for name in &args.remove {
        if newest.member(name).is_none() {
            bail!("`{name}` is no signer; `hoplite policy signers list` shows those there are");
        }
    }
    let stay = newest
        .signers()
        .signers()
        .filter(|signer| !args.remove.iter().any(|name| name == signer.name()));
    let signers = TrustedSigners::new(stay.chain(args.add.iter().cloned()))?;
    let key = args.key.load(args.list.ca.mesh())?;
    args.key.trust_domain(newest.set().trust_domain())?;
    if newest.member(key.signer().name()).as_ref() != Some(key.signer()) {
        bail!(
            "`{}` is no signer now, and only those who are may sign who comes next",
            key.signer().name()
        );
    }
    let draft = SignerSet::after(newest, &signers, args.quorum)?;
    let bytes = SignerSet::sign_too(&draft.encode(), &key)?;
    files::write_public(&args.out, &bytes)?;
    told(&args.out, &bytes, newest, args.list.output)
}

fn sign(args: &SignArgs) -> anyhow::Result<ExitCode> {
    let chain = chain(&args.list.ca)?;
    let newest = chain.newest();
    let bytes = read(&args.file)?;
    let (set, signed_by) = SignerSet::danger_read_unverified(&bytes)?;
    if set.previous() != Some(newest.digest()) {
        bail!(
            "it follows version {}, and the signers have version {} now; propose it anew",
            set.version().saturating_sub(1),
            newest.version()
        );
    }
    let key = args.key.load(args.list.ca.mesh())?;
    args.key.trust_domain(set.trust_domain())?;
    if newest.member(key.signer().name()).as_ref() != Some(key.signer()) {
        bail!(
            "`{}` is no signer now, and only those who are may sign who comes next",
            key.signer().name()
        );
    }
    if signed_by.iter().any(|name| name == key.signer().name()) {
        bail!("`{}` signed it already; it takes another person", key.signer().name());
    }
    hoplite_host::tell::text(&shown(&set, newest));
    if !args.yes && !agreed(set.version())? {
        bail!("not agreed; nothing was signed");
    }
    let bytes = SignerSet::sign_too(&bytes, &key)?;
    files::write_public(&args.file, &bytes)?;
    told(&args.file, &bytes, newest, args.list.output)
}

fn publish(args: &PublishArgs) -> anyhow::Result<ExitCode> {
    let request = PublishSignersRequest { set: read(&args.file)? };
    let answer = args
        .list
        .ca
        .call(async |mut ca| Ok(ca.publish_signers(request.clone()).await?.into_inner()))?;
    if args.list.output == Output::Json {
        print_json(&json!({"version": answer.version, "ended_grants": answer.ended_grants}))?;
        return Ok(ExitCode::SUCCESS);
    }
    print(&format!(
        "version {} of the signers is published; every agent and proxy follows that has no `policy_signers` of its own\n",
        answer.version
    ))?;
    for grant in answer.ended_grants {
        print(&format!(
            "the grant {grant} has ended: who signed it is no signer any more\n"
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What was written, and what is to be done next.
fn told(file: &Path, bytes: &[u8], before: &TrustedSet, output: Output) -> anyhow::Result<ExitCode> {
    let (set, signed_by) = SignerSet::danger_read_unverified(bytes)?;
    let needed = usize::try_from(before.quorum()).unwrap_or(usize::MAX);
    let missing = needed.saturating_sub(signed_by.len());
    let file = file.display();
    if output == Output::Json {
        let mut value = listed(&set, "");
        if let Value::Object(fields) = &mut value {
            fields.remove("digest");
            fields.insert("file".to_owned(), json!(file.to_string()));
            fields.insert("signed_by".to_owned(), json!(signed_by));
            fields.insert("signatures_missing".to_owned(), json!(missing));
        }
        print_json(&value)?;
        return Ok(ExitCode::SUCCESS);
    }
    let next = match missing {
        0 => format!("put it in force with: hoplite policy signers publish {file}"),
        _ => {
            format!("{missing} more of the present signers must sign it: hoplite policy signers sign {file} --key KEY")
        }
    };
    print(&format!(
        "{}wrote `{file}`, signed by {}\n{next}\n",
        shown(&set, before),
        signed_by.join(" and ")
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// What a person signs, in words.
fn shown(set: &SignerSet, before: &TrustedSet) -> String {
    let mut text = format!("version {} of the signers of {}\n", set.version(), set.trust_domain());
    let mut stay = Vec::new();
    for (name, signer) in set.members() {
        stay.push(name);
        let sign = match before.member(name) {
            Some(known) if known.to_string() == signer => "   stays ",
            Some(_) => "NEW KEY  ",
            None => "    NEW  ",
        };
        text.push_str(&format!("{sign} {signer}\n"));
    }
    for name in before.signers().names().filter(|name| !stay.contains(name)) {
        text.push_str(&format!("   GOES   {name}\n"));
    }
    text.push_str(&format!("{} of them must sign the next change\n", set.quorum()));
    text
}

fn agreed(version: u64) -> anyhow::Result<bool> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        bail!("there is nobody to ask; run it on a terminal, or say --yes");
    }
    hoplite_host::tell::text("Type the version to sign it: ");
    let mut line = String::new();
    stdin.lock().read_line(&mut line)?;
    Ok(line.trim() == version.to_string())
}

/// A file a little larger than any set; what is longer is refused when it is read.
fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let opened = std::fs::File::open(file).with_context(|| format!("cannot read `{}`", file.display()))?;
    opened.take(SIGNER_SET_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn listed(set: &SignerSet, digest: &str) -> Value {
    let signers: Vec<Value> = set
        .members()
        .map(|(name, signer)| json!({"name": name, "signer": signer}))
        .collect();
    json!({
        "trust_domain": set.trust_domain(),
        "version": set.version(),
        "digest": digest,
        "quorum": set.quorum(),
        "signers": signers,
    })
}
