//! `hoplite ca init` and `hoplite ca show`: a trust domain begins on this machine, and what it is known by.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use hoplite_ca::Config;
use hoplite_host::daemon::{Manner, PlacedArguments};
use hoplite_host::logging::Format;
use hoplite_host::places::Places;
use hoplite_host::process::{self, Hardening};
use hoplite_host::{config, files};
use hoplite_identity::{Fingerprint, HostPort, TrustBundle, TrustDomain};
use hoplite_seal::{Signer, TrustedSigners};
use serde_json::json;

use crate::command::places::{PlacesArgs, quoted};
use crate::command::policy::key;
use crate::command::section;
use crate::output::{NOTHING_DONE, Output, print, print_json};

/// Where agents connect unless it is said.
const PORT: u16 = 7443;

pub(crate) const HELP: &str = "Examples:\n  hoplite ca init --trust-domain prod.example --advertise ca.prod.example:7443\n  \
    hoplite ca init --trust-domain prod.example --advertise 10.0.0.1:7443 \\\n      --signer-key alice.key --run\n  \
    hoplite ca init --trust-domain prod.example --advertise 10.0.0.1:7443 \\\n      --print-config\n\n\
    Exit codes: 0 founded, 1 not founded, 2 wrong usage, 3 a CA is here already and nothing was done.";

#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// The name of the trust domain, for ever: the first part of each SPIFFE ID
    #[arg(long, value_name = "NAME", value_parser = founded_name)]
    trust_domain: TrustDomain,
    /// How other machines reach this CA; it stands in the invitations [default: what --listen says]
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<HostPort>,
    /// Where agents connect [default: every address of this machine, and the port of --advertise or 7443]
    #[arg(long, value_name = "IP:PORT", value_parser = config::listen_address)]
    listen: Option<SocketAddr>,
    /// Whose policies count: a key to sign with, made if there is no such file; the name is that of the file without its ending.
    /// May be repeated
    #[arg(long, value_name = "FILE")]
    signer_key: Vec<PathBuf>,
    /// Whose policies count, by the public half that `hoplite policy key create` prints; may be repeated
    #[arg(long, value_name = "NAME=KEY")]
    signer: Vec<Signer>,
    /// A file with more settings for the CA's file, such as `x509_ttl = "10m"`: they are written as they are
    #[arg(long, value_name = "FILE")]
    settings: Option<PathBuf>,
    /// A file with the section `[store]` of the CA's file: the database of several CAs
    #[arg(long, value_name = "FILE")]
    store: Option<PathBuf>,
    /// A file with the section `[keys]` of the CA's file: what seals its keys, or the token that holds them
    #[arg(long, value_name = "FILE")]
    keys: Option<PathBuf>,
    /// A file with the section `[upstream]` of the CA's file: the authority above its own
    #[arg(long, value_name = "FILE")]
    upstream: Option<PathBuf>,
    /// One more CA over the database of another: a copy of its `authority.key`, with its `jwt.key` beside it
    #[arg(long, value_name = "FILE", requires = "store")]
    authority_key: Option<PathBuf>,
    /// Print the file that would be written, and do nothing
    #[arg(long)]
    print_config: bool,
    /// Then run the CA, as `hoplite ca run` does; also when it was founded before
    #[arg(long, conflicts_with = "print_config")]
    run: bool,
    /// The form of the CA's log lines on standard error
    #[arg(long, value_enum, default_value_t, requires = "run")]
    log: Format,
    /// The form of the answer
    #[arg(long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    places: PlacesArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    #[command(flatten)]
    places: PlacesArgs,
    /// The form of the answer
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// What the files that are given say. Each is read once: it may be a pipe.
struct Given {
    settings: String,
    sections: String,
}

pub(crate) fn init(args: &InitArgs) -> anyhow::Result<ExitCode> {
    let given = Given::read(args)?;
    if args.print_config {
        print(&args.text(&args.places.places()?, &args.signer, &given)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let places = args.places.own("hoplite ca init")?;
    let file = places.ca_config();
    let is_there = file.try_exists()?;
    if is_there {
        let ca = About::read(&file)?;
        if args.output == Output::Json {
            ca.say(args.output, "")?;
        }
        hoplite_host::tell!(
            "a CA is here already, of {} with the fingerprint {}; its file is `{}`. Nothing was done: `hoplite ca run` runs it, and with \
             `--dir` another one lies elsewhere",
            ca.trust_domain,
            ca.fingerprints(),
            file.display()
        );
    } else {
        found(args, &places, &given)?;
    }
    if args.run {
        let daemon = PlacedArguments {
            config: Some(file),
            dir: None,
            manner: Manner {
                log: args.log,
                supervised: false,
            },
        };
        hoplite_ca::run(&hoplite_ca::Arguments {
            daemon,
            init: false,
            new_authority: false,
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    Ok(match is_there {
        true => ExitCode::from(NOTHING_DONE),
        false => ExitCode::SUCCESS,
    })
}

pub(crate) fn show(args: &ShowArgs) -> anyhow::Result<ExitCode> {
    let file = args.places.places()?.ca_config();
    if !file.try_exists()? {
        bail!(
            "there is no CA on this machine, as there is no `{}`; `hoplite ca init` founds one",
            file.display()
        );
    }
    About::read(&file)?.say(args.output, "")?;
    Ok(ExitCode::SUCCESS)
}

fn found(args: &InitArgs, places: &Places, given: &Given) -> anyhow::Result<()> {
    process::harden(Hardening::Sealed).context("cannot harden the process, which is to hold the authority's key")?;
    let file = places.ca_config();
    // Before anything is made: whether the CA will take it.
    parse(&args.text(places, &args.signer, given)?)?;
    let mut signers = args.signer.clone();
    for path in &args.signer_key {
        let key = match path.try_exists()? {
            true => key::load(path, None)?,
            false => key::create(path, None)?,
        };
        signers.push(key.signer().clone());
    }
    TrustedSigners::new(signers.clone())?;
    let text = args.text(places, &signers, given)?;
    if let Some(parent) = file.parent() {
        files::shared_dir(parent)?;
    }
    let config = parse(&text)?;
    let is_new = !config.data_dir.try_exists()?;
    let founded = match &args.authority_key {
        Some(key) => hoplite_ca::found_replica(&config, key),
        None => hoplite_ca::found(&config),
    };
    if founded.is_err() && is_new {
        let _ = fs::remove_dir_all(&config.data_dir); // the first failure is the one to tell
    }
    founded?;
    files::write_public(&file, text.as_bytes())?;
    let mut more = String::new();
    for path in &args.signer_key {
        more.push_str(&format!(
            "  signer       `{}`: keep it to yourself, it signs policy\n",
            path.display()
        ));
    }
    if !args.run {
        more.push_str(&format!(
            "next: hoplite ca run{dir}, and then hoplite token create --node NAME{dir} for each machine\n",
            dir = args.places.flag()
        ));
    }
    About::read(&file)?.say(args.output, &more)
}

/// A trust domain that is founded has a name that can also be that of a directory, and no flag. The standard allows more, which
/// others may have.
fn founded_name(text: &str) -> anyhow::Result<TrustDomain> {
    let name = TrustDomain::parse(text)?;
    if !text.starts_with(|first: char| first.is_ascii_alphanumeric()) || text.contains("..") {
        bail!(
            "a trust domain that is founded begins with a letter or digit and has no `..`; `prod.example` is such a name"
        );
    }
    Ok(name)
}

/// As the CA reads its file, which is not there yet.
fn parse(text: &str) -> anyhow::Result<Config> {
    config::parse(Path::new("ca.toml"), text)
        .context("the CA would not take its file; `--print-config` shows what would be in it")
}

/// What a CA is known by.
struct About {
    trust_domain: TrustDomain,
    address: String,
    authorities: Vec<Fingerprint>,
    file: PathBuf,
}

// === impl InitArgs ===

impl InitArgs {
    /// The CA's file.
    fn text(&self, places: &Places, signers: &[Signer], given: &Given) -> anyhow::Result<String> {
        let port = self.advertise.as_ref().map_or(PORT, HostPort::port);
        let host = self.advertise.as_ref().map(HostPort::host).unwrap_or_default();
        let everywhere: IpAddr = match host.trim_matches(['[', ']']).parse() {
            Ok(IpAddr::V6(_)) => Ipv6Addr::UNSPECIFIED.into(),
            _ => Ipv4Addr::UNSPECIFIED.into(),
        };
        let everywhere = SocketAddr::new(everywhere, port);
        let listen = self.listen.unwrap_or(everywhere);
        let advertise = match &self.advertise {
            Some(address) => format!("advertise = \"{address}\"\n"),
            None if listen.ip().is_unspecified() => bail!(
                "how do other machines reach this CA? It listens on every address of this one: say it with --advertise HOST:{}",
                listen.port()
            ),
            None => String::new(),
        };
        let signers = match signers {
            [] => String::new(),
            signers => {
                let quoted: Vec<String> = signers.iter().map(|signer| format!("\"{signer}\"")).collect();
                format!("policy_signers = [{}]\n", quoted.join(", "))
            }
        };
        // Keys in files are those of one CA, and rotate by hand.
        let rotates = match (&self.store, &self.keys) {
            (Some(_), None) => "authority_rotates = false\n",
            _ => "",
        };
        let Given { settings, sections } = given;
        Ok(format!(
            "# Written by `hoplite ca init`. Every key: docs/reference/configuration.md\n\
             trust_domain = \"{}\"\n\
             listen = \"{listen}\"\n\
             {advertise}\
             data_dir = {}\n\
             admin_socket = {}\n\
             {signers}{rotates}{settings}{sections}",
            self.trust_domain,
            quoted(&places.ca_data())?,
            quoted(&places.ca_socket())?,
        ))
    }
}

// === impl Given ===

impl Given {
    fn read(args: &InitArgs) -> anyhow::Result<Self> {
        let several = "docs/guide/several-cas.md";
        let keys = "docs/guide/keys-and-upstreams.md";
        let settings = match &args.settings {
            Some(file) => format!("{}\n", section::whole(file)?.trim()),
            None => String::new(),
        };
        let sections = [
            section::optional(args.store.as_deref(), "[store]", several)?,
            section::optional(args.keys.as_deref(), "[keys]", keys)?,
            section::optional(args.upstream.as_deref(), "[upstream]", keys)?,
        ]
        .concat();
        Ok(Self { settings, sections })
    }
}

// === impl About ===

impl About {
    /// By the CA's own files: it need not run.
    fn read(file: &Path) -> anyhow::Result<Self> {
        let config = Config::load(file)?;
        let bundle = files::read_text(&config.data_dir.join("bundle.pem"))?;
        let bundle = TrustBundle::from_pem(config.trust_domain.clone(), &bundle, 0)?;
        let listen = config.listen;
        Ok(Self {
            trust_domain: config.trust_domain,
            address: config
                .advertise
                .map_or_else(|| listen.to_string(), |address| address.to_string()),
            authorities: bundle.authorities().iter().map(Fingerprint::of).collect(),
            file: file.to_owned(),
        })
    }

    fn fingerprints(&self) -> String {
        let shown: Vec<String> = self.authorities.iter().map(ToString::to_string).collect();
        shown.join(" or ")
    }

    fn say(&self, output: Output, more: &str) -> anyhow::Result<()> {
        if output == Output::Json {
            let fingerprints: Vec<String> = self.authorities.iter().map(ToString::to_string).collect();
            return print_json(&json!({
                "trust_domain": self.trust_domain.as_str(), "address": self.address,
                "fingerprints": fingerprints, "config": self.file,
            }));
        }
        Ok(print(&format!(
            "the CA of {}\n  address      {}\n  fingerprint  {}\n  file         {}\n{more}",
            self.trust_domain,
            self.address,
            self.fingerprints(),
            self.file.display(),
        ))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The name is that of a directory on the laptops of operators.
    #[test]
    fn a_trust_domain_is_founded_under_a_plain_name() {
        for (name, good) in [
            ("prod.example", true),
            ("a", true),
            ("..", false),
            (".", false),
            ("-", false),
            (".a", false),
            ("a..b", false),
            ("_a", false),
            ("Prod", false),
        ] {
            assert_eq!(founded_name(name).is_ok(), good, "{name}");
        }
    }
}
