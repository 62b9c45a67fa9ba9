//! `hoplite ca backup`: all that a running CA has, in one encrypted file.

use std::io::BufWriter;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{Context, bail};
use clap::Args;
use hoplite_ca::backup::{self, Passphrase, Sealing, Summary};
use hoplite_host::files::Unfinished;
use hoplite_host::process::{self, Hardening};
use hoplite_host::{clock, undo};
use hoplite_identity::Moment;
use hoplite_wire::ca::backup_part::Part;
use hoplite_wire::ca::{BackUpRequest, BackupEnd, BackupHead};
use hoplite_wire::write_part;
use serde_json::{Value, json};

use crate::command::admin::ListArgs;
use crate::command::secret::SecretArgs;
use crate::output::{Output, count, print, print_json};

pub(crate) const HELP: &str = "Examples:\n  hoplite ca backup ca.backup --key-file backup.key\n  \
    hoplite ca backup ca.backup --ca ca.prod.example:7443\n  hoplite ca backup --verify ca.backup --key-file backup.key\n\n\
    Whoever has the file and its passphrase can be the CA. `openssl rand -hex 32` makes a good key; keep it elsewhere than the file.";

#[derive(Debug, Args)]
pub(crate) struct BackupArgs {
    /// The file to write; with --verify, to read
    file: PathBuf,
    /// Read the file to its end, and write nothing: exit 0 if it can be restored
    #[arg(long, conflicts_with = "replace")]
    verify: bool,
    /// Replace the file if there is one
    #[arg(long)]
    replace: bool,
    #[command(flatten)]
    secret: SecretArgs,
    #[command(flatten)]
    list: ListArgs,
}

pub(crate) fn run(args: &BackupArgs) -> anyhow::Result<ExitCode> {
    process::harden(Hardening::Sealed).context("cannot harden the process, which is to hold the authority's key")?;
    if args.file.as_os_str() == "-" {
        bail!(
            "a backup is not written to standard output, nor read from standard input: name a file (`./-` is one, too)"
        );
    }
    undo::watch().context("cannot wait for signals")?;
    let started = clock::moment();
    let summary = if args.verify {
        let passphrase = args.secret.passphrase(&args.file, false)?;
        backup::check(&args.file, &passphrase)?
    } else {
        // Before a passphrase is asked for.
        let to = Unfinished::begin(&args.file, args.replace)?;
        let passphrase = args.secret.passphrase(&args.file, true)?;
        write(args, to, &passphrase)?
    };
    let took = started.elapsed();
    let done = if args.verify { "can be restored" } else { "written" };
    match args.list.output {
        Output::Json => {
            let mut value = document(&summary);
            if let Some(fields) = value.as_object_mut() {
                fields.insert("file".to_owned(), json!(args.file));
                fields.insert(
                    "took_ms".to_owned(),
                    json!(u64::try_from(took.as_millis()).unwrap_or(u64::MAX)),
                );
            }
            print_json(&value)?;
        }
        Output::Table => print(&format!(
            "`{}` {done}, in {:.1} s\n{}",
            args.file.display(),
            took.as_secs_f64(),
            text(&summary)
        ))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Takes the parts as they come, and lets go of the file unless the end was among them.
fn write(args: &BackupArgs, to: Unfinished, passphrase: &Passphrase) -> anyhow::Result<Summary> {
    // What fails here is no word of the CA's.
    let mut own = None;
    let mut sealing = Sealing::begin(BufWriter::new(to), passphrase)?;
    let (head, end) = args.list.ca.call(async |mut ca| {
        let mut parts = ca.back_up(BackUpRequest {}).await?.into_inner();
        let (mut head, mut end) = (None, None);
        while let Some(part) = parts.message().await? {
            if let Err(error) = write_part(&mut sealing, &part) {
                own = Some(error);
                return Ok((None, None));
            }
            match part.part {
                Some(Part::Head(part)) => head = Some(part),
                Some(Part::End(part)) => end = Some(part),
                _ => {}
            }
        }
        Ok((head, end))
    })?;
    if let Some(error) = own {
        return Err(cannot_write(args, &error));
    }
    let (Some(head), Some(end)) = (head, end) else {
        bail!("the CA broke off the backup, and nothing was written; its log says why");
    };
    let buffered = sealing.finish().map_err(|error| cannot_write(args, &error))?;
    let file = buffered
        .into_inner()
        .map_err(|error| cannot_write(args, error.error()))?;
    let bytes = file.finish()?;
    summary(head, end, bytes)
}

fn cannot_write(args: &BackupArgs, error: &dyn std::fmt::Display) -> anyhow::Error {
    anyhow::anyhow!(
        "cannot write `{}`: {error}; check the directory and free space",
        args.file.display()
    )
}

fn summary(head: BackupHead, end: BackupEnd, bytes: u64) -> anyhow::Result<Summary> {
    let begun_at = u64::try_from(head.begun_at_unix).unwrap_or_default();
    Ok(Summary {
        trust_domain: hoplite_identity::TrustDomain::parse(&head.trust_domain)?,
        begun_at: SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(begun_at),
        version: head.version,
        authorities: head
            .authorities
            .iter()
            .map(|digest| data_encoding::HEXLOWER.encode(digest))
            .collect(),
        config: Some(head.config).filter(|config| !config.is_empty()),
        revision: end.revision,
        entries: end.entries,
        large: end.large,
        files: end.files,
        bytes,
    })
}

pub(crate) fn document(summary: &Summary) -> Value {
    json!({
        "trust_domain": summary.trust_domain.as_str(),
        "begun_at": Moment::from(summary.begun_at).to_string(),
        "version": summary.version,
        "authorities": summary.authorities,
        "revision": summary.revision,
        "entries": summary.entries,
        "policy_bundles": summary.large,
        "files": summary.files,
        "bytes": summary.bytes,
    })
}

pub(crate) fn text(summary: &Summary) -> String {
    format!(
        "  trust domain {}\n  as of        revision {}, {}, begun {}\n  authority    {}\n  size         {} bytes, with {} beside the store\n",
        summary.trust_domain,
        summary.revision,
        count(summary.entries, "entry"),
        Moment::from(summary.begun_at),
        summary.authorities.join("\n               "),
        summary.bytes,
        count(summary.files, "file"),
    )
}
