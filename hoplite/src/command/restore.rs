//! `hoplite ca restore`: a CA made of a backup, where none is.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use hoplite_ca::Config;
use hoplite_ca::backup::{self, LaterBans, Restored};
use hoplite_host::process::{self, Hardening};
use hoplite_host::{clock, files, undo};
use hoplite_identity::SpiffeId;
use serde_json::json;

use crate::command::backup::{document, text};
use crate::command::places::PlacesArgs;
use crate::command::secret::SecretArgs;
use crate::output::{Output, count, print, print_json};

pub(crate) const HELP: &str = "Examples:\n  hoplite ca restore ca.backup --key-file backup.key --no-later-bans\n  \
    hoplite ca restore ca.backup --banned banned.txt \\\n      --banned spiffe://prod.example/hoplite/agent/n7\n  \
    hoplite ca restore ca.backup --no-later-bans --revoked 3f8a1c5e90b2\n  \
    hoplite ca restore ca.backup --print-config > /etc/hoplite/ca.toml\n\n\
    Exit codes: 0 restored, 1 not restored and nothing was changed, 2 wrong usage.";

#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// The backup
    file: PathBuf,
    /// An agent or operator that was banned, evicted, removed or found to have two holders after the backup: its SPIFFE ID, or a file
    /// with one on each line; may be repeated
    #[arg(long, value_name = "ID|FILE")]
    banned: Vec<String>,
    /// An authority that was tainted or revoked after the backup: the beginning of its fingerprint; may be repeated
    #[arg(long, value_name = "FINGERPRINT")]
    revoked: Vec<String>,
    /// Nobody was banned, evicted, removed or found to have two holders after the backup; and but for those of --revoked no authority was
    /// tainted or revoked
    #[arg(long, conflicts_with = "banned")]
    no_later_bans: bool,
    /// The highest epoch or trust bundle that agents follow, where that is ahead of the clock: `hoplite agent status` on a node
    /// names it. The restored CA begins above
    #[arg(long, value_name = "EPOCH", default_value_t = 0, hide_default_value = true)]
    after: u64,
    /// Read the backup to its end, and change nothing
    #[arg(long)]
    check: bool,
    /// Print the configuration that is in the backup, and change nothing
    #[arg(long, conflicts_with = "check")]
    print_config: bool,
    #[command(flatten)]
    secret: SecretArgs,
    /// The CA's configuration file [default: that of the CA installed on this machine, or below --dir]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The form of the answer
    #[arg(long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    places: PlacesArgs,
}

pub(crate) fn run(args: &RestoreArgs) -> anyhow::Result<ExitCode> {
    process::harden(Hardening::Sealed).context("cannot harden the process, which is to hold the authority's key")?;
    undo::watch().context("cannot wait for signals")?;
    if args.check || args.print_config {
        return look(args);
    }
    // That an authority was revoked says nothing of who was banned.
    if args.banned.is_empty() && !args.no_later_bans {
        crate::output::failed(
            "who was banned, evicted, removed or found to have two holders after the backup, and which authority was tainted or revoked? It \
             knows nothing of that and would let them in again: name each with --banned ID or --banned FILE, or say --no-later-bans; and name \
             each authority with --revoked FINGERPRINT. Nothing was done",
            2,
        );
        return Ok(ExitCode::from(2));
    }
    let file = match &args.config {
        Some(file) => file.clone(),
        None => args.places.own("hoplite ca restore")?.ca_config(),
    };
    if !file.try_exists()? {
        bail!(
            "there is no `{}`, which says where the CA is to be; `hoplite ca restore {} --print-config` prints the one of the backup",
            file.display(),
            args.file.display()
        );
    }
    let next = match &args.config {
        Some(file) => format!("hoplite ca run --config {}", file.display()),
        None => format!("hoplite ca run{}", args.places.flag()),
    };
    let config = Config::load(&file)?;
    let later_bans = later_bans(&args.banned)?;
    let passphrase = args.secret.passphrase(&args.file, false)?;
    let restored = backup::restore(
        &config,
        &args.file,
        &passphrase,
        &later_bans,
        args.after,
        &args.revoked,
        clock::now(),
    )?;
    match args.output {
        Output::Json => {
            let mut value = document(&restored.summary);
            if let Some(fields) = value.as_object_mut() {
                fields.extend(
                    [
                        ("epoch", json!(restored.epoch)),
                        ("data_dir", json!(restored.data_dir)),
                        ("agents", json!(restored.agents)),
                        ("banned", json!(restored.banned)),
                        ("revoked_authorities", json!(restored.revoked)),
                        ("signing_authority", json!(restored.signs)),
                        ("joins_anew", json!(restored.is_fresh)),
                        ("void_tokens", json!(restored.tokens)),
                        ("operators", json!(restored.operators)),
                        ("policy_revision", json!(restored.policy_revision)),
                        ("signers_version", json!(restored.signers_version)),
                    ]
                    .map(|(name, value)| (name.to_owned(), value)),
                );
            }
            print_json(&value)?;
        }
        Output::Table => print(&said(&restored, &next))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// What changes nothing.
fn look(args: &RestoreArgs) -> anyhow::Result<ExitCode> {
    let passphrase = args.secret.passphrase(&args.file, false)?;
    let summary = backup::check(&args.file, &passphrase)?;
    if args.print_config {
        let Some(config) = &summary.config else {
            bail!("there is no configuration in `{}`", args.file.display());
        };
        print(config)?;
        return Ok(ExitCode::SUCCESS);
    }
    match args.output {
        Output::Json => print_json(&document(&summary))?,
        Output::Table => print(&format!(
            "`{}` can be restored\n{}",
            args.file.display(),
            text(&summary)
        ))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn said(restored: &Restored, next: &str) -> String {
    let policy = match restored.policy_revision {
        Some(revision) => format!(
            "revision {revision} was in force; proxies that enforce a newer one keep it, and `hoplite fleet` names them: publish it again with `hoplite policy publish DIR --above REVISION`"
        ),
        None => "nothing was published; proxies that enforce something keep it".to_owned(),
    };
    let signers = match restored.signers_version {
        Some(version) => {
            format!("  signers      version {version}; publish those sets again that were published since\n")
        }
        None => String::new(),
    };
    let short = |fingerprint: &String| fingerprint.chars().take(12).collect::<String>();
    let authority = match (restored.revoked.is_empty(), restored.is_fresh) {
        (true, _) => String::new(),
        (false, is_fresh) => format!(
            "  revoked      authority {}; {} signs{}\n",
            Vec::from_iter(restored.revoked.iter().map(short)).join(", "),
            short(&restored.signs),
            match is_fresh {
                true =>
                    ", which was made just now: no node knows it, and each has to join anew (`hoplite join --again`)",
                false => "",
            }
        ),
    };
    format!(
        "a CA was restored into `{}`, as epoch {}\n{}  agents       {}, {} banned by your word; those of which the backup knows nothing come back by their certificates\n  \
         void         {}; {} must sign in anew\n  policy       {policy}\n{signers}{authority}next: {next}; then register, ban and publish again what was done after the backup\n",
        restored.data_dir.display(),
        restored.epoch,
        text(&restored.summary),
        restored.agents,
        restored.banned,
        count(restored.tokens as u64, "token"),
        count(restored.operators as u64, "operator"),
    )
}

/// Each is a SPIFFE ID, or a file of them.
fn later_bans(given: &[String]) -> anyhow::Result<LaterBans> {
    let mut banned = BTreeSet::new();
    for word in given {
        if word.starts_with("spiffe://") {
            banned.insert(SpiffeId::parse(word)?);
            continue;
        }
        let text = files::read_text(Path::new(word))
            .with_context(|| format!("`{word}` is neither a SPIFFE ID nor a file of them"))?;
        for (at, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if !line.is_empty() {
                let id = SpiffeId::parse(line).with_context(|| format!("`{word}`, line {}", at + 1))?;
                banned.insert(id);
            }
        }
    }
    if banned.is_empty() && !given.is_empty() {
        bail!(
            "{} names nobody; if nobody was banned, evicted or removed after the backup, say --no-later-bans",
            given
                .iter()
                .map(|word| format!("`{word}`"))
                .collect::<Vec<_>>()
                .join(", ")
        );
    }
    Ok(match given.is_empty() {
        true => LaterBans::None,
        false => LaterBans::These(banned),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Command;

    #[test]
    fn a_revoked_authority_goes_with_either_answer_about_bans() {
        let is_taken = |words: &[&str]| {
            let command = RestoreArgs::augment_args(Command::new("restore"));
            let line = [&["restore", "ca.backup"][..], words].concat();
            command.try_get_matches_from(line).is_ok()
        };
        let bans: [&[&str]; 2] = [&["--banned", "banned.txt"], &["--no-later-bans"]];
        for bans in bans {
            assert!(
                is_taken(bans) && is_taken(&[bans, &["--revoked", "3f8a"]].concat()),
                "{bans:?}"
            );
        }
        assert!(!is_taken(&bans.concat()));
    }
}
