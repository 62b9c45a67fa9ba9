//! `hoplite join`: this machine becomes a node of the CA that invited it, or that believes its proof.

use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use hoplite_agent::{Config, JoinSettings, JoinWith, Joined, Membership, PeerProcess};
use hoplite_host::logging::Format;
use hoplite_host::places::Places;
use hoplite_host::process::{self, Hardening};
use hoplite_host::{clock, config, files, give};
use hoplite_identity::{Fingerprint, HostPort, Invitation, Moment};
use serde::Deserialize;
use serde_json::{Value, json};
use toml_edit::{Array, DocumentMut, value};
use zeroize::Zeroizing;

use crate::command::places::{PlacesArgs, quoted};
use crate::command::section;
use crate::output::{NOTHING_DONE, Output, print, print_json};

/// An invitation is one line of some hundred characters.
const INVITATION_BYTES_MAX: u64 = 64 << 10;

pub(crate) const HELP: &str = "Examples:\n  hoplite join 4f1c…@ca.prod.example:7443#9be2…\n  hoplite join @invitation\n  \
    ssh ca-1 hoplite token create --node web-1 | hoplite join -\n  hoplite join ca.prod.example:7443#9be2… --by join.toml --run\n\n\
    The CA is believed only if its authority has this fingerprint; nothing is sent before that.\n\
    Exit codes: 0 joined, 1 not joined, 2 wrong usage, 3 this machine is a node already and nothing was done.";

#[derive(Debug, Args)]
pub(crate) struct JoinArgs {
    /// The invitation that `hoplite token create` prints; `-` reads it from standard input, `@FILE` from a file that only its
    /// owner may read. With --by it has no token: what `hoplite ca show` prints, `HOST:PORT#FINGERPRINT`
    #[arg(value_name = "TOKEN@HOST:PORT#FINGERPRINT")]
    invitation: String,
    /// Join without a token: a file with the section `[join]` of the agent's file, by what this node proves who it is
    #[arg(long, value_name = "FILE")]
    by: Option<PathBuf>,
    #[command(flatten)]
    places: PlacesArgs,
    /// Join anew although this machine is a node already: the CA evicted it, or it is to be another's
    #[arg(long)]
    again: bool,
    /// Then run the agent, as `hoplite agent run` does; also when this machine has joined before
    #[arg(long)]
    run: bool,
    /// The form of the agent's log lines on standard error
    #[arg(long, value_enum, default_value_t, requires = "run")]
    log: Format,
    /// The form of the answer
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

pub(crate) fn run(args: &JoinArgs) -> anyhow::Result<ExitCode> {
    let places = args.places.own("hoplite join")?;
    let config_file = places.agent_config();
    let invited = Invited::read(args)?;
    let existing = existing(&config_file)?;
    let is_member = |membership: &&Membership| clock::now() < membership.not_after && !args.again;
    let member = existing.as_ref().and_then(Option::as_ref).filter(is_member);
    match member {
        Some(membership) => say_already(args, &places, &invited, membership)?,
        None => join(args, &places, &invited, existing.is_some())?,
    }
    if args.run {
        return Err(become_agent(&config_file, args.log));
    }
    Ok(match member {
        Some(_) => ExitCode::from(NOTHING_DONE),
        None => ExitCode::SUCCESS,
    })
}

/// The CA that this machine is to join, and what it shows.
struct Invited {
    address: HostPort,
    fingerprint: Fingerprint,
    by: By,
}

enum By {
    Token(Zeroizing<String>),
    Proof {
        settings: JoinSettings,
        /// As it is written, for the agent's file.
        section: String,
    },
}

/// A file with the one section.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Section {
    join: JoinSettings,
}

/// This process goes on as the agent, with a command line that has no invitation in it. Returns only why it does not.
fn become_agent(config_file: &Path, log: Format) -> anyhow::Error {
    let log = log.to_possible_value();
    let log = log.map(|value| value.get_name().to_owned()).unwrap_or_default();
    let error = Command::new("/proc/self/exe")
        .arg0("hoplite")
        .args(["agent", "run", "--config"])
        .arg(config_file)
        .args(["--log", &log])
        .exec();
    anyhow::Error::new(error).context("cannot go on as the agent")
}

/// The invitation's text, from wherever it is.
fn read(argument: &str) -> anyhow::Result<Zeroizing<String>> {
    let bytes = if argument == "-" {
        let mut bytes = Zeroizing::new(Vec::new());
        let stdin = io::stdin().lock().take(INVITATION_BYTES_MAX).read_to_end(&mut bytes);
        if stdin.context("standard input cannot be read")? == 0 {
            bail!("standard input is empty; write `hoplite token create --node NAME | hoplite join -`");
        }
        bytes
    } else if let Some(file) = argument.strip_prefix('@') {
        Zeroizing::new(files::read_private(Path::new(file))?)
    } else {
        return Ok(Zeroizing::new(argument.to_owned()));
    };
    match str::from_utf8(&bytes) {
        Ok(text) => Ok(Zeroizing::new(text.to_owned())),
        Err(_) => bail!("this is no invitation: it is no text"),
    }
}

/// The one word: what `hoplite token create` prints ends with it.
fn word(text: &str) -> &str {
    let last = text.split_whitespace().next_back();
    last.unwrap_or_default().trim_matches('\'')
}

/// Whether an agent is configured here, and what this machine is then.
fn existing(config_file: &Path) -> anyhow::Result<Option<Option<Membership>>> {
    if !config_file.try_exists()? {
        return Ok(None);
    }
    Ok(Some(hoplite_agent::membership(&Config::load(config_file)?)?))
}

fn say_already(args: &JoinArgs, places: &Places, invited: &Invited, membership: &Membership) -> anyhow::Result<()> {
    if args.output == Output::Json {
        print_json(&as_json(places, invited, membership))?;
    }
    let what = match invited.by {
        By::Token(_) => "invitation",
        By::Proof { .. } => "proof for a CA",
    };
    let other = match membership.authorities.contains(&invited.fingerprint) {
        true => "",
        false => " of another CA",
    };
    hoplite_host::tell!(
        "this machine is a node already: {}, until {} unless its agent renews that; its file is `{}`. The {what}{other} was not used. \
         `hoplite agent run` runs the agent, `hoplite join --again` joins anew",
        membership.spiffe_id,
        Moment::from(membership.not_after),
        places.agent_config().display(),
    );
    Ok(())
}

fn as_json(places: &Places, invited: &Invited, node: &Membership) -> Value {
    json!({
        "spiffe_id": node.spiffe_id.as_str(), "trust_domain": node.spiffe_id.trust_domain().as_str(),
        "valid_until": Moment::from(node.not_after).to_string(),
        "ca": invited.address, "fingerprint": invited.fingerprint.to_string(),
        "config": places.agent_config(), "socket": places.agent_socket(),
    })
}

fn join(args: &JoinArgs, places: &Places, invited: &Invited, is_configured: bool) -> anyhow::Result<()> {
    process::harden(Hardening::Sealed).context("cannot harden the process, which is to hold the node's key")?;
    let (config_file, data_dir) = (places.agent_config(), places.agent_data());
    // What can fail is tried before the token is spent.
    let new = Settings::new(places)?;
    let before = match is_configured {
        true => Some(files::read_text(&config_file)?.parse::<DocumentMut>()?),
        false => None,
    };
    if let Some(parent) = config_file.parent() {
        files::shared_dir(parent)?;
    }
    let shown = match &invited.by {
        By::Token(token) => JoinWith::Token(token),
        By::Proof { settings, .. } => JoinWith::Proof(settings),
    };
    let joining = hoplite_agent::join(&invited.address, invited.fingerprint, shown, &data_dir);
    let joined = super::runtime()?.block_on(joining)?;
    let text = match before {
        Some(document) => new.edited(document, &joined, &invited.by)?,
        None => new.text(&joined, &invited.by)?,
    };
    files::write_public(&config_file, text.as_bytes())?;
    give::to_owner(&data_dir)?;
    say_joined(args, places, invited, &joined.membership)
}

fn say_joined(args: &JoinArgs, places: &Places, invited: &Invited, node: &Membership) -> anyhow::Result<()> {
    let (config_file, trust_domain) = (places.agent_config(), node.spiffe_id.trust_domain());
    let kernel = PeerProcess::Kernel.ensure_possible().err();
    if args.output == Output::Json {
        return print_json(&as_json(places, invited, node));
    }
    let mut told = format!(
        "joined {trust_domain} as {}\n  CA      {}, known by its fingerprint\n  file    {}\n  socket  {}\n",
        node.spiffe_id,
        invited.address,
        config_file.display(),
        places.agent_socket().display(),
    );
    if let Some(reason) = kernel {
        told.push_str(&format!("  note    {reason}\n"));
    }
    if !args.run {
        told.push_str(&format!(
            "next: hoplite agent run{}; one that runs already goes on as this\n",
            args.places.flag()
        ));
    }
    Ok(print(&told)?)
}

// === impl Invited ===

impl Invited {
    fn read(args: &JoinArgs) -> anyhow::Result<Self> {
        let text = read(&args.invitation)?;
        let word = word(&text);
        let Some(file) = &args.by else {
            let invitation = Invitation::parse(word).context("this is no invitation")?;
            return Ok(Self {
                address: invitation.address().clone(),
                fingerprint: invitation.fingerprint(),
                by: By::Token(Zeroizing::new(invitation.token().to_owned())),
            });
        };
        if word.contains('@') {
            bail!("with --by there is no token: write HOST:PORT#FINGERPRINT, as `hoplite ca show` prints them");
        }
        let (address, fingerprint) = word.split_once('#').context(
            "the CA is known by no fingerprint; write HOST:PORT#FINGERPRINT, as `hoplite ca show` prints them",
        )?;
        let section = section::named(file, "[join]", "docs/guide/nodes-without-tokens.md")?;
        Ok(Self {
            address: HostPort::parse(address)?,
            fingerprint: Fingerprint::parse(fingerprint)?,
            by: By::Proof {
                settings: config::parse::<Section>(file, &section)?.join,
                section: section::appended(&section),
            },
        })
    }
}

/// What the agent's file says of this machine and its CA.
struct Settings {
    data_dir: String,
    socket: String,
}

// === impl Settings ===

impl Settings {
    fn new(places: &Places) -> anyhow::Result<Self> {
        Ok(Self {
            data_dir: quoted(&places.agent_data())?,
            socket: quoted(&places.agent_socket())?,
        })
    }

    fn text(&self, joined: &Joined, by: &By) -> anyhow::Result<String> {
        let Self { data_dir, socket } = self;
        let ca = match joined.ca.iter().collect::<Vec<_>>().as_slice() {
            [one] => format!("\"{one}\""),
            several => {
                let quoted: Vec<String> = several.iter().map(|address| format!("\"{address}\"")).collect();
                format!("[{}]", quoted.join(", "))
            }
        };
        let trust_domain = joined.membership.spiffe_id.trust_domain();
        let trust_bundle = quoted(&joined.trust_bundle)?;
        let mut text = format!(
            "# Written by `hoplite join`. Every key: docs/reference/configuration.md\n\
             trust_domain = \"{trust_domain}\"\n\
             ca = {ca}\n\
             data_dir = {data_dir}\n\
             trust_bundle = {trust_bundle}\n\
             socket = {socket}\n"
        );
        if PeerProcess::Kernel.ensure_possible().is_err() {
            text.push_str(
                "\n# This kernel cannot say which process connected; Linux 6.5 can. docs/threat-model.md says what the second best\n\
                 # leaves open. Take the mark off this line for it:\n\
                 # peer_process = \"pid\"\n",
            );
        }
        if let By::Proof { section, .. } = by {
            text.push_str(section);
        }
        Ok(text)
    }

    /// The file that is there: people may have written into it, so only what is of the CA changes.
    fn edited(&self, mut document: DocumentMut, joined: &Joined, by: &By) -> anyhow::Result<String> {
        let trust_domain = joined.membership.spiffe_id.trust_domain();
        let trust_bundle = joined
            .trust_bundle
            .to_str()
            .context("the data directory's name is no text")?;
        for (key, text) in [("trust_domain", trust_domain.as_str()), ("trust_bundle", trust_bundle)] {
            document.insert(key, value(text));
        }
        let addresses: Vec<&str> = joined.ca.iter().map(HostPort::as_str).collect();
        match addresses.as_slice() {
            [one] => document.insert("ca", value(*one)),
            several => document.insert("ca", value(several.iter().copied().collect::<Array>())),
        };
        // A section of before would be asked when this one's SVID has ended.
        document.remove("join");
        if let By::Proof { section, .. } = by {
            let written = section.parse::<DocumentMut>()?;
            document.extend(written.iter().map(|(key, item)| (key.to_owned(), item.clone())));
        }
        Ok(document.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_of_what_token_create_prints() {
        for text in [
            "t@h:1#f",
            "t@h:1#f\n",
            "hoplite join t@h:1#f\n",
            "hoplite join 't@h:1#f'\n",
        ] {
            assert_eq!(word(text), "t@h:1#f");
        }
        assert_eq!(word("\n"), "");
    }
}
