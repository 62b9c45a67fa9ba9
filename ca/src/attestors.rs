//! Who attests nodes: the table of attestors, and what each gives. A join token is for one machine that somebody has invited; the
//! others admit nodes that nobody invited, because somebody whom the operator trusts vouches for them.
//!
//! An attestor is one file and one row: its settings, which read what they need at the start, and an [`Attest`], which turns what
//! a node shows into [`Proven`]. What an attested node is called, that one identity is one live agent, that a proof counts for one
//! key, and what of it stands in the log, is the same for all, in [`admit`] and in `api/attesting.rs`.
//! `docs/guide/add-an-attestor.md` says how to add one.

pub(crate) mod admit;
pub(crate) mod claims;
pub(crate) mod jwks;
pub(crate) mod k8s;
pub(crate) mod name;
pub(crate) mod oidc;
pub(crate) mod roots;
pub(crate) mod tpm;
pub(crate) mod x509pop;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use data_encoding::HEXLOWER;
use hoplite_host::config::ConfigError;
use hoplite_identity::{Selector, SelectorKind, ServiceName, SpiffeId, TrustDomain};
use ring::digest::{Context, SHA256};
use serde::Deserialize;

use crate::attestors::name::{BY_TOKEN, NoName, NodeName};

/// Attestors of one CA. A company has a handful of places where nodes come from.
const ATTESTORS_MAX: usize = 64;

/// What a node shows at first, all of it, in bytes: a chain of certificates.
pub(crate) const PROOF_BYTES_MAX: usize = 64 << 10;

/// One `[[attestor]]` of the configuration. The table: a row is an attestor.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum AttestorSettings {
    /// A certificate of another authority, and proof of its key.
    X509pop(x509pop::X509popSettings),
    /// A token of an OpenID Connect issuer.
    Oidc(oidc::OidcNodeSettings),
    /// A projected service-account token of a Kubernetes cluster.
    K8s(k8s::K8sSettings),
    /// The machine's TPM 2.0.
    Tpm(tpm::TpmSettings),
}

/// What an attestor has found out of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Proven {
    /// Which node it is, whatever its key: of each there is one live agent. Parts, so that none runs into the next.
    pub(crate) identity: Vec<String>,
    pub(crate) selectors: Vec<Selector>,
    /// Of a proof that whoever has it can show: it counts for the first key that comes with it.
    pub(crate) bearer: Option<Bearer>,
}

/// A proof that whoever has it can show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bearer {
    /// By which it is known again, whoever shows it.
    pub(crate) digest: String,
    pub(crate) expires_at: SystemTime,
}

/// Why a node is not believed, for the log. Its peer hears [`NotProven::short`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotProven {
    /// What it shows is not what this attestor takes.
    #[error("it shows no {0}")]
    Malformed(&'static str),
    /// What it shows is not believed.
    #[error("{0}")]
    Refused(String),
    /// Whether to believe it cannot be known now.
    #[error("{0}")]
    Unavailable(String),
}

/// The node at the other end.
#[tonic::async_trait]
pub(crate) trait Node: Send {
    /// Sends it a challenge, and gives its answer; none when it hung up.
    async fn challenge(&mut self, challenge: Vec<u8>) -> Option<Vec<u8>>;
}

/// What a node shows at first.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shown<'a> {
    /// What the attestor makes of it: a token, or certificates.
    pub(crate) proof: &'a [Vec<u8>],
    /// What it asks a certificate with: an answer to a challenge must name it.
    pub(crate) csr: &'a [u8],
}

/// One attestor at work.
#[tonic::async_trait]
pub(crate) trait Attest: Send + Sync {
    /// Who the node is, if what it shows is believed.
    async fn attest(&self, shown: Shown<'_>, node: &mut dyn Node, now: SystemTime) -> Result<Proven, NotProven>;
}

/// One attestor: its name, its kind, and what nodes are called that it admits.
pub(crate) struct Attestor {
    pub(crate) name: String,
    pub(crate) kind: &'static str,
    node: NodeName,
    attest: Box<dyn Attest>,
}

/// All attestors of a CA, by name. Clones are the same ones.
#[derive(Clone, Default)]
pub(crate) struct Attestors(Arc<BTreeMap<String, Attestor>>);

// === impl AttestorSettings ===

impl AttestorSettings {
    fn kind(&self) -> &'static str {
        match self {
            Self::X509pop(_) => "x509pop",
            Self::Oidc(_) => "oidc",
            Self::K8s(_) => "k8s",
            Self::Tpm(_) => "tpm",
        }
    }

    fn name(&self) -> &str {
        let name = match self {
            Self::X509pop(settings) => &settings.name,
            Self::Oidc(settings) => &settings.name,
            Self::K8s(settings) => &settings.name,
            Self::Tpm(settings) => &settings.name,
        };
        name.as_deref().unwrap_or(self.kind())
    }

    fn node(&self) -> Option<&str> {
        match self {
            Self::X509pop(settings) => settings.node.as_deref(),
            Self::Oidc(settings) => settings.node.as_deref(),
            Self::K8s(settings) => settings.node.as_deref(),
            Self::Tpm(settings) => settings.node.as_deref(),
        }
    }

    fn open(&self) -> Result<Box<dyn Attest>, BadSetting> {
        Ok(match self {
            Self::X509pop(settings) => Box::new(settings.open()?),
            Self::Oidc(settings) => Box::new(settings.open()?),
            Self::K8s(settings) => Box::new(settings.open()?),
            Self::Tpm(settings) => Box::new(settings.open()?),
        })
    }

    /// What the types cannot say, of all of them together.
    pub(crate) fn check(all: &[Self], file: &Path) -> Result<(), ConfigError> {
        let bad = |key: &str, value: &str, reason: &str| {
            ConfigError::unusable(file, key, format_args!("\"{value}\""), reason)
        };
        if all.len() > ATTESTORS_MAX {
            let reason = "at most 64 of them, please";
            return Err(ConfigError::unusable(file, "attestor", all.len(), reason));
        }
        let mut before: Vec<(&str, NodeName)> = Vec::new();
        for settings in all {
            let name = settings.name();
            let key = |key: &str| format!("attestor.{name}.{key}");
            if ServiceName::check(name).is_err() || name == BY_TOKEN {
                let reason = "write 1 to 64 of `a-z`, `0-9`, `-`, `_` and `.`, and not `token`, which is the attestor of join tokens";
                return Err(bad("attestor.name", name, reason));
            }
            if before.iter().any(|(other, _)| *other == name) {
                return Err(bad(
                    "attestor.name",
                    name,
                    "two attestors have this name; name each differently",
                ));
            }
            let node = settings.node_name().map_err(|error| {
                let written = settings.node().unwrap_or_default();
                bad(&key("node"), written, &error.to_string())
            })?;
            if let Some((other, _)) = before.iter().find(|(_, other)| other.overlaps(&node)) {
                let reason = format!(
                    "nodes of the attestor `{other}` could be called the same; let each begin with another text, of which none begins with another's"
                );
                return Err(bad(&key("node"), settings.node().unwrap_or(name), &reason));
            }
            settings
                .open()
                .map_err(|error| bad(&key(error.key), &error.value, &error.reason))?;
            before.push((name, node));
        }
        Ok(())
    }

    fn node_name(&self) -> Result<NodeName, NoName> {
        match self.node() {
            Some(text) => NodeName::parse(text),
            None => NodeName::parse(&format!("{}-{{identity}}", self.name())),
        }
    }
}

/// A setting of an attestor that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{key} = {value}`: {reason}")]
pub(crate) struct BadSetting {
    pub(crate) key: &'static str,
    pub(crate) value: String,
    pub(crate) reason: String,
}

// === impl Attestors ===

impl Attestors {
    /// Those of the configuration, which was checked.
    pub(crate) fn open(all: &[AttestorSettings], file: &Path) -> Result<Self, ConfigError> {
        AttestorSettings::check(all, file)?;
        let mut by_name = BTreeMap::new();
        for settings in all {
            let (name, kind) = (settings.name().to_owned(), settings.kind());
            let unusable =
                |key: &str, reason: String| ConfigError::unusable(file, &format!("attestor.{key}"), &name, reason);
            let node = settings
                .node_name()
                .map_err(|error| unusable("node", error.to_string()))?;
            let attest = settings.open().map_err(|error| unusable(error.key, error.reason))?;
            by_name.insert(
                name.clone(),
                Attestor {
                    name,
                    kind,
                    node,
                    attest,
                },
            );
        }
        Ok(Self(Arc::new(by_name)))
    }

    /// The one of this name.
    pub(crate) fn get(&self, name: &str) -> Option<&Attestor> {
        self.0.get(name)
    }
}

// === impl Attestor ===

impl Attestor {
    /// Asks who the node is.
    pub(crate) async fn attest(
        &self,
        shown: Shown<'_>,
        node: &mut dyn Node,
        now: SystemTime,
    ) -> Result<Proven, NotProven> {
        self.attest.attest(shown, node, now).await
    }

    /// What the node is called, and which it is, for the store.
    pub(crate) fn names(&self, trust_domain: &TrustDomain, proven: &Proven) -> Result<(SpiffeId, String), NotProven> {
        let identity = digest(&self.name, &proven.identity);
        let name = self.node.of(&proven.selectors, &identity);
        let name = name.map_err(|error| NotProven::Refused(error.to_string()))?;
        let agent = trust_domain
            .agent(&name)
            .map_err(|error| NotProven::Refused(error.to_string()))?;
        Ok((agent, identity))
    }
}

/// Of all that makes up a node's identity: each part with its length before it.
fn digest(attestor: &str, identity: &[String]) -> String {
    let mut context = Context::new(&SHA256);
    for part in [attestor].into_iter().chain(identity.iter().map(String::as_str)) {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part.as_bytes());
    }
    HEXLOWER.encode(context.finish().as_ref())
}

// === impl NotProven ===

impl NotProven {
    /// For the peer, who may be anybody.
    pub(crate) fn short(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "what this node shows is not what the attestor takes",
            Self::Refused(_) => "what this node shows is not believed; the CA's log says why",
            Self::Unavailable(_) => "the CA cannot tell now whether to believe this node; try again",
        }
    }
}

/// A selector of what was verified. What is no value of the kind is left out: it can be neither matched nor named.
fn selector(kind: SelectorKind, value: &str) -> Option<Selector> {
    Selector::new(kind, value).ok()
}
