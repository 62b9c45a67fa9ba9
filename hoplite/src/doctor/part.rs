//! The parts that a machine has, by their configuration files.

use std::path::Path;

use hoplite_host::config;
use serde_json::Value;

use super::finding::{Finding, Verdict, fail, ok};

/// A file that its daemon would take.
#[derive(Debug, Clone)]
pub(crate) enum Part {
    Ca(Box<hoplite_ca::Config>),
    Agent(Box<hoplite_agent::Config>),
    Proxy(Box<hoplite_proxy::Config>),
}

/// Reads a file as its daemon would.
pub(super) fn load(file: &Path) -> Result<(Finding, Part), Finding> {
    let bad = |error: &dyn std::error::Error| {
        let seen = error.to_string();
        let what = if seen.contains("ermission denied") {
            Verdict::Unseen
        } else {
            Verdict::Fail
        };
        let remedy = match what {
            Verdict::Unseen => "run this as the daemon's user or as root",
            _ => "mend the file; the daemon would not start with it",
        };
        Finding {
            verdict: what,
            check: "configuration",
            seen,
            remedy: Some(remedy.to_owned()),
        }
    };
    let keys: Value = config::load(file).map_err(|error| bad(&error))?;
    let has = |key: &str| keys.get(key).is_some();
    let (kind, part) = if has("workload_api") || has("inbound") || has("outbound") {
        let loaded = hoplite_proxy::Config::load(file).map_err(|error| bad(&error))?;
        ("a proxy", Part::Proxy(Box::new(loaded)))
    } else if has("ca") || has("trust_bundle") {
        let loaded = hoplite_agent::Config::load(file).map_err(|error| bad(&error))?;
        ("an agent", Part::Agent(Box::new(loaded)))
    } else if has("listen") || has("admin_socket") {
        let loaded = hoplite_ca::Config::load(file).map_err(|error| bad(&error))?;
        ("a CA", Part::Ca(Box::new(loaded)))
    } else {
        let seen = format!("`{}` is no CA's, agent's or proxy's", file.display());
        return Err(fail(
            "configuration",
            seen,
            "docs/reference/configuration.md has the keys of each",
        ));
    };
    let seen = format!("{}: {kind}", file.display());
    Ok((ok("configuration", seen), part))
}

// === impl Part ===

impl Part {
    /// Where it answers.
    pub(super) fn socket(&self) -> &Path {
        match self {
            Self::Ca(ca) => &ca.admin_socket,
            Self::Agent(agent) => &agent.socket,
            Self::Proxy(proxy) => &proxy.admin_socket,
        }
    }

    /// For people.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Ca(_) => "the CA".to_owned(),
            Self::Agent(_) => "the agent".to_owned(),
            Self::Proxy(proxy) => format!("the proxy `{}`", proxy.name),
        }
    }
}
