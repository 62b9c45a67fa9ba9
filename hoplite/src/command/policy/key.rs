//! `hoplite policy key`: the keys with which people sign policies.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Subcommand;
use hoplite_host::files;
use hoplite_identity::TrustDomain;
use hoplite_seal::SigningKey;
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::json;
use zeroize::Zeroizing;

use crate::command::MeshDir;
use crate::output::{Output, print, print_json};

#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Make a signing key; prints the line that CA, agents and proxies need in `policy_signers`
    #[command(after_help = "Example:\n  hoplite policy key create --name alice ~/.hoplite/alice.key")]
    Create(CreateArgs),
    /// Print the public half of a signing key
    #[command(after_help = "Example:\n  hoplite policy key show ~/.hoplite/alice.key")]
    Show(ShowArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct CreateArgs {
    /// The file to write; it must not exist yet
    file: PathBuf,
    /// Whose key it is [default: the file's name without its ending]
    #[arg(long)]
    name: Option<String>,
    /// The form of the answer
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ShowArgs {
    #[command(flatten)]
    key: KeyFile,
    /// The form of the answer
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// Whose key signs.
#[derive(Debug, clap::Args)]
pub(crate) struct KeyFile {
    /// The file of the signing key, which only its owner may read
    #[arg(id = "key_file", value_name = "KEY")]
    file: PathBuf,
    /// Whose key it is [default: the file's name without its ending]
    #[arg(long)]
    name: Option<String>,
}

/// A signing key, named by an option.
#[derive(Debug, clap::Args)]
pub(crate) struct KeyArgs {
    /// The file of the signing key, which only its owner may read [default: keys/alice.key of the mesh in --dir]
    #[arg(long, value_name = "FILE", env = "HOPLITE_POLICY_KEY")]
    key: Option<PathBuf>,
    /// Whose key it is [default: the file's name without its ending]
    #[arg(long, value_name = "NAME")]
    signer: Option<String>,
    /// Sign for this trust domain only [default: the one that the CA names]
    #[arg(long, value_name = "NAME")]
    trust_domain: Option<String>,
}

pub(crate) fn run(command: KeyCommand) -> anyhow::Result<ExitCode> {
    match command {
        KeyCommand::Create(args) => {
            let key = create(&args.file, args.name.as_deref())?;
            hoplite_host::tell!(
                "wrote `{}`; keep it to yourself. Put this line into `policy_signers` of CA, agents and proxies:",
                args.file.display()
            );
            show(&key, args.output)?;
        }
        KeyCommand::Show(args) => {
            let key = load(&args.key.file, args.key.name.as_deref())?;
            show(&key, args.output)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn show(key: &SigningKey, output: Output) -> anyhow::Result<()> {
    let signer = key.signer();
    match output {
        Output::Json => print_json(&json!({"name": signer.name(), "signer": signer.to_string()})),
        Output::Table => Ok(print(&format!("{signer}\n"))?),
    }
}

/// A new key in a file of its own.
pub(crate) fn create(file: &Path, name: Option<&str>) -> anyhow::Result<SigningKey> {
    let name = name_of(file, name)?;
    let mut seed = Zeroizing::new([0; 32]);
    if SystemRandom::new().fill(&mut *seed).is_err() {
        bail!("the system gives no random numbers; try again");
    }
    let key = SigningKey::from_seed(&name, seed)?;
    // A key that is written over is lost, and with it the right to sign.
    if file.symlink_metadata().is_ok() {
        bail!("`{}` exists already; choose another file", file.display());
    }
    files::write_private(file, key.to_pem().as_bytes())?;
    Ok(key)
}

// === impl KeyArgs ===

impl KeyArgs {
    pub(crate) fn load(&self, mesh: &MeshDir) -> anyhow::Result<SigningKey> {
        match &self.key {
            Some(file) => load(file, self.signer.as_deref()),
            None => load(&mesh.path()?.join("keys/alice.key"), self.signer.as_deref())
                .context("say with --key which key signs; `hoplite policy key create` makes one"),
        }
    }

    /// The trust domain that somebody else named, if it is the one that is demanded.
    pub(crate) fn trust_domain(&self, named: &str) -> anyhow::Result<TrustDomain> {
        if let Some(demanded) = &self.trust_domain {
            anyhow::ensure!(
                demanded == named,
                "this is for the trust domain `{named}`, not for `{demanded}`; nothing was signed"
            );
        }
        Ok(TrustDomain::parse(named)?)
    }
}

pub(crate) fn load(file: &Path, name: Option<&str>) -> anyhow::Result<SigningKey> {
    let name = name_of(file, name)?;
    let pem = Zeroizing::new(files::read_private(file)?);
    let pem = std::str::from_utf8(&pem).with_context(|| format!("`{}` is not a signing key", file.display()))?;
    SigningKey::from_pem(&name, pem).with_context(|| format!("`{}` cannot be used", file.display()))
}

fn name_of(file: &Path, name: Option<&str>) -> anyhow::Result<String> {
    if let Some(name) = name {
        return Ok(name.to_owned());
    }
    let stem = file.file_stem().and_then(|stem| stem.to_str());
    stem.map(str::to_owned)
        .with_context(|| format!("`{}` has no name; say whose key it is with --name", file.display()))
}
