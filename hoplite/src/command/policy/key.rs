//! `hoplite policy key`: the keys with which people sign policy.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Subcommand;
use hoplite_host::files;
use hoplite_policy::SigningKey;
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::json;
use zeroize::Zeroizing;

use crate::command::MeshDir;
use crate::output::{Output, print, print_json};

#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Make a signing key, and print the public half for `policy_signers`
    #[command(after_help = "Example:\n  hoplite policy key create ~/.config/hoplite/alice.pem")]
    Create(Args),
    /// Print the public half of a key
    #[command(after_help = "Example:\n  hoplite policy key show ~/.config/hoplite/alice.pem")]
    Show(Args),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The key's file; its name without `.pem` is the signer's
    file: PathBuf,
    /// The form of the answer
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// Which key to sign with.
#[derive(Debug, clap::Args)]
pub(crate) struct KeyArgs {
    /// The file of the signing key [default: keys/alice.pem of the mesh in --dir]
    #[arg(long = "key", value_name = "FILE", env = "HOPLITE_POLICY_KEY")]
    key: Option<PathBuf>,
}

pub(crate) fn run(command: &KeyCommand) -> anyhow::Result<ExitCode> {
    let (args, key) = match command {
        KeyCommand::Create(args) => (args, create(&args.file)?),
        KeyCommand::Show(args) => (args, read(&args.file)?),
    };
    match args.output {
        Output::Json => print_json(&json!({"name": key.signer().name(), "signer": key.signer().to_string()}))?,
        Output::Table => print(&format!("{}\n", key.signer()))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// A new key in a file of its own; one that is there already is never replaced.
pub(crate) fn create(file: &Path) -> anyhow::Result<SigningKey> {
    if file.exists() {
        bail!(
            "`{}` is there already; choose another name, or use that key",
            file.display()
        );
    }
    let mut seed = Zeroizing::new([0; 32]);
    SystemRandom::new()
        .fill(&mut *seed)
        .map_err(|_| anyhow::anyhow!("the system gives no random bytes"))?;
    let key = SigningKey::from_seed(&name(file)?, seed)?;
    files::write_private(file, key.to_pem().as_bytes())?;
    Ok(key)
}

pub(crate) fn read(file: &Path) -> anyhow::Result<SigningKey> {
    let pem = Zeroizing::new(files::read_private(file)?);
    let pem = std::str::from_utf8(&pem).with_context(|| format!("`{}` is no PEM file", file.display()))?;
    SigningKey::from_pem(&name(file)?, pem).with_context(|| format!("`{}` cannot be used", file.display()))
}

fn name(file: &Path) -> anyhow::Result<String> {
    let stem = file.file_stem().and_then(|stem| stem.to_str());
    stem.map(str::to_owned)
        .with_context(|| format!("`{}` has no name for a signer; write `alice.pem`", file.display()))
}

// === impl KeyArgs ===

impl KeyArgs {
    pub(crate) fn read(&self, dir: &MeshDir) -> anyhow::Result<SigningKey> {
        match &self.key {
            Some(file) => read(file),
            None => read(&dir.path()?.join("keys/alice.pem")).context(
                "there is no key to sign with; say which with --key, or make one with `hoplite policy key create`",
            ),
        }
    }
}
