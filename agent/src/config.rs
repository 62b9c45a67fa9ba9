//! The agent's configuration file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use hoplite_audit::is_recorder_name;
use hoplite_decision::OnStale;
use hoplite_host::config::{self, ConfigError};
use hoplite_host::logging::Levels;
use hoplite_host::peer_process::PeerProcess;
use hoplite_identity::{ServiceName, SpiffeId, TrustDomain};
use hoplite_otlp::OtlpSettings;
use hoplite_policy::bundle::BUNDLE_BYTES_MAX;
use hoplite_seal::TrustedSigners;
use hoplite_telemetry::MetricsListen;
use serde::Deserialize;

use crate::addresses::CaAddresses;
use crate::attest::k8s::KubernetesSettings;
use crate::policy::Wanted;
use crate::proofs::JoinSettings;

/// Any local user may connect: attestation decides what each gets.
const SOCKET_MODE: u32 = 0o666;

/// A bundle of nothing has half as much.
const BUNDLE_BYTES_LEAST: usize = 1 << 10;

/// What those that enforce it take.
const BUNDLE_BYTES_MOST: usize = BUNDLE_BYTES_MAX;

/// What an agent must know to start. See [`Config::load`] for the file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The trust domain this node belongs to, for example `prod.example`.
    pub trust_domain: TrustDomain,
    /// Where the agent keeps its own key and SVID; made with mode 0700 when missing.
    pub data_dir: PathBuf,
    /// The CA's address for nodes, `host:port`, or a list of those of its replicas.
    pub ca: CaAddresses,
    /// A PEM file with the authorities by which the CA is known at first. Later the CA's own word is kept in `data_dir`,
    /// until this file changes.
    pub trust_bundle: PathBuf,
    /// A file (0600) with a one-time token from `hoplite token create`. Needed to join; may be written later. May be a
    /// credential of systemd, `${CREDENTIALS_DIRECTORY}/NAME`.
    #[serde(default, deserialize_with = "hoplite_host::credentials::optional_path")]
    pub join_token_file: Option<PathBuf>,
    /// By what this node joins when nobody has invited it. Needs an attestor in the CA's configuration.
    #[serde(default)]
    pub join: Option<JoinSettings>,
    /// The kubelet of this node, where workloads are pods.
    #[serde(default)]
    pub kubernetes: Option<KubernetesSettings>,
    /// A file (0600) with at least 32 random bytes that seal what is kept in `data_dir` for a start without the CA. May be a
    /// credential of systemd, `${CREDENTIALS_DIRECTORY}/NAME`. Without it the agent makes one in `data_dir`.
    #[serde(default, deserialize_with = "hoplite_host::credentials::optional_path")]
    pub supply_key_file: Option<PathBuf>,
    /// The Unix socket for workloads.
    pub socket: PathBuf,
    /// The socket's mode, `0o666` when left out: any local user may connect, attestation decides.
    #[serde(default)]
    pub socket_mode: Option<u32>,
    /// Where `/live`, `/ready` and `/metrics` are served to the tools that people have; nowhere when left out.
    #[serde(default)]
    pub metrics_listen: Option<MetricsListen>,
    /// Where metrics are sent; nowhere when left out.
    #[serde(default)]
    pub otlp: Option<OtlpSettings>,
    /// What is logged: `info,hoplite_proxy=debug`. `HOPLITE_LOG` goes before it.
    #[serde(default)]
    pub log_levels: Option<Levels>,
    /// How it is known which process calls: by the kernel's word, or, on kernels before Linux 6.5, by its number.
    #[serde(default)]
    pub peer_process: PeerProcess,
    /// Whose policy is taken at first: `["alice=ed25519:…"]`. When left out, that of those whom the CA names when the node
    /// joins. Later whomever a quorum of those before has signed for.
    #[serde(default)]
    pub policy_signers: TrustedSigners,
    /// The longest policy bundle, in bytes; the CA's setting of this name is not above it.
    #[serde(default = "max_bundle_bytes")]
    pub policy_max_bytes: usize,
    /// Decisions for proxies that are not ours, and who may ask for them. Without it nobody may.
    #[serde(default)]
    pub authorization: Option<Authorization>,
}

/// Decisions for others: with which policy, recorded where, and about which services.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Authorization {
    /// The recorder's name, `[a-z0-9.-]{1,64}`: it stands in every decision id, so no other recorder has it.
    pub name: String,
    /// Directory of decision records; this process is its only writer.
    pub audit_dir: PathBuf,
    /// Directory of what is kept for the next start: the policy that was last in force. Outside `audit_dir`; a file that
    /// leaves it out means `authorization` in the agent's `data_dir`.
    #[serde(default)]
    pub state_dir: PathBuf,
    /// Directory of `*.cedar` files and `routes.toml`; followed until the first signed bundle.
    #[serde(default)]
    pub policy_dir: Option<PathBuf>,
    /// One decision in so many is also made by the reference, over every policy; 0 for none.
    #[serde(default = "hoplite_decision::reference_every")]
    pub reference_check_every: u64,
    /// What a bundle that has expired does: decide on, with `stale` in every record, or deny everything.
    #[serde(default)]
    pub on_stale_policy: OnStale,
    /// By service: the SPIFFE ID of the workload that may ask about it, because it is the one that serves it.
    pub services: BTreeMap<ServiceName, SpiffeId>,
}

// === impl Config ===

impl Config {
    /// Reads a TOML file:
    ///
    /// ```toml
    /// trust_domain = "prod.example"
    /// data_dir = "/var/lib/hoplite/agent"
    /// ca = "ca.prod.example:7443"
    /// trust_bundle = "/etc/hoplite/bundle.pem"
    /// join_token_file = "/etc/hoplite/join-token"
    /// socket = "/run/hoplite/agent/agent.sock"
    /// policy_signers = ["alice=ed25519:Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE="]
    ///
    /// [authorization]
    /// name = "node-7"
    /// audit_dir = "/var/lib/hoplite/audit"
    ///
    /// [authorization.services]
    /// ledger = "spiffe://prod.example/ledger"
    /// ```
    ///
    /// # Errors
    /// Names file, line or key, value and remedy.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let mut config: Self = config::load(path)?;
        if let Some(authorization) = &mut config.authorization
            && authorization.state_dir.as_os_str().is_empty()
        {
            authorization.state_dir = config.data_dir.join("authorization");
        }
        config.check(path)?;
        Ok(config)
    }

    /// What the types cannot say.
    fn check(&self, file: &Path) -> Result<(), ConfigError> {
        self.otlp.iter().try_for_each(|otlp| otlp.check(file, false))?;
        if !self.socket.is_absolute() {
            // Clients name the socket by an absolute path (W-5), so it must not depend on where the agent was started.
            return Err(ConfigError::unusable(
                file,
                "socket",
                format_args!("\"{}\"", self.socket.display()),
                "write an absolute path",
            ));
        }
        if let Some(mode) = self
            .socket_mode
            .filter(|mode| mode & !0o777 != 0 || mode & 0o600 != 0o600)
        {
            return Err(ConfigError::unusable(
                file,
                "socket_mode",
                format_args!("{mode:#o}"),
                "write an octal mode with at least 0o600, for example 0o660",
            ));
        }
        if !(BUNDLE_BYTES_LEAST..=BUNDLE_BYTES_MOST).contains(&self.policy_max_bytes) {
            let reason = format!("write between {BUNDLE_BYTES_LEAST} and {BUNDLE_BYTES_MOST}");
            return Err(ConfigError::unusable(
                file,
                "policy_max_bytes",
                self.policy_max_bytes,
                reason,
            ));
        }
        match &self.authorization {
            Some(authorization) => authorization.check(file),
            None => Ok(()),
        }
    }

    /// What it says of policy.
    pub(crate) fn policy(&self) -> Wanted {
        Wanted {
            signers: self.policy_signers.clone(),
            max_bytes: self.policy_max_bytes,
        }
    }

    pub(crate) fn socket_mode(&self) -> u32 {
        self.socket_mode.unwrap_or(SOCKET_MODE)
    }
}

// === impl Authorization ===

impl Authorization {
    fn check(&self, file: &Path) -> Result<(), ConfigError> {
        let fail = |key: &str, value: &dyn std::fmt::Display, reason: &str| {
            Err(ConfigError::unusable(
                file,
                &format!("authorization.{key}"),
                format_args!("\"{value}\""),
                reason,
            ))
        };
        if !is_recorder_name(&self.name) {
            return fail(
                "name",
                &self.name,
                "write 1 to 64 of `a-z`, `0-9`, `-`, `.`: the name stands in decision ids",
            );
        }
        if self.state_dir.starts_with(&self.audit_dir) {
            return fail(
                "state_dir",
                &self.state_dir.display(),
                "the log's directory is the log's alone; choose a directory outside `audit_dir`",
            );
        }
        if self.services.is_empty() {
            return fail(
                "services",
                &"",
                "nobody could ask; write `service = \"spiffe://…\"`, with the SPIFFE ID of the proxy before it",
            );
        }
        for asker in self.services.values() {
            if asker.is_trust_domain() {
                return fail("services", asker, "a workload's SPIFFE ID has a path");
            }
        }
        Ok(())
    }
}

fn max_bundle_bytes() -> usize {
    BUNDLE_BYTES_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "trust_domain = \"prod.example\"\ndata_dir = \"/d\"\nca = \"ca:7443\"\ntrust_bundle = \"/b.pem\"\nsocket = \"/s\"\n";

    fn load(text: &str) -> Result<Config, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.toml");
        std::fs::write(&path, text).unwrap();
        Config::load(&path).map_err(|e| e.to_string())
    }

    #[test]
    fn the_short_file_is_enough() {
        let config = load(GOOD).unwrap();
        assert_eq!((config.socket_mode(), config.join_token_file), (0o666, None));
        assert_eq!(
            load(&format!("{GOOD}socket_mode = 0o660\n")).unwrap().socket_mode(),
            0o660
        );
    }

    #[test]
    fn wrong_values_are_named_with_a_remedy() {
        let check = |from: &str, to: &str, expected: &[&str]| {
            assert!(GOOD.contains(from), "{from}");
            let error = load(&GOOD.replace(from, to)).unwrap_err();
            for part in expected {
                assert!(error.contains(part), "{to}: {error}");
            }
        };
        check("\"ca:7443\"", "\"ca\"", &[":3:", "`ca` has no port", "HOST:PORT"]);
        check("\"ca:7443\"", "\":7443\"", &["no host"]);
        check("\"ca:7443\"", "\"ca:0\"", &["no port"]);
        check("\"ca:7443\"", "\"ca:70000\"", &["no port"]);
        check("\"/s\"", "\"s\"", &["`socket = \"s\"`", "absolute"]);
        check("\"/s\"", "\"/s\"\nsocket_mode = 0o1666", &["socket_mode"]);
        check("\"/s\"", "\"/s\"\nsocket_mode = 0o066", &["socket_mode"]);
        check("\"/s\"", "\"/s\"\nsokcet = 1", &["sokcet", ":6:"]);
        check("\"prod.example\"", "\"Prod!\"", &[":1:", "Prod!"]);
        check("ca = \"ca:7443\"\n", "", &["missing field `ca`"]);
        check(
            "\"/s\"",
            "\"/s\"\njoin_token_file = \"${CREDENTIALS_DIRECTORY}/a/b\"",
            &[":6:", "is not the name of a credential"],
        );
        check(
            "\"/s\"",
            "\"/s\"\npolicy_signers = [\"alice\"]",
            &[":6:", "`alice` is not a signer"],
        );
        check(
            "\"/s\"",
            "\"/s\"\npolicy_max_bytes = 9",
            &["policy_max_bytes = 9", "1024"],
        );
        check("\"/d\"", "7", &[":2:", "data_dir"]);
    }

    #[test]
    fn who_may_ask_for_decisions() {
        const TABLE: &str = "[authorization]\nname = \"node-7\"\naudit_dir = \"/a\"\npolicy_dir = \"/p\"\n[authorization.services]\nledger = \"spiffe://prod.example/ledger\"\n";
        let config = load(&format!("{GOOD}{TABLE}")).unwrap().authorization.unwrap();
        assert_eq!(
            (config.reference_check_every, config.on_stale_policy),
            (1_000, OnStale::Keep)
        );
        assert_eq!(config.services["ledger"].path(), "/ledger");
        assert_eq!(
            config.state_dir,
            Path::new("/d/authorization"),
            "in the agent's own directory"
        );
        for (from, to, expected) in [
            ("node-7", "Node", "authorization.name = \"Node\""),
            ("ledger = \"spiffe://prod.example/ledger\"\n", "", "nobody could ask"),
            ("ledger =", "Ledger =", "`Ledger` is not a service name; use 1 to 64"),
            ("/ledger\"", "\"", "a workload's SPIFFE ID has a path"),
            ("spiffe://prod", "https://prod", "https://prod"),
            ("policy_dir", "polcy_dir", "polcy_dir"),
            (
                "policy_dir",
                "state_dir = \"/a/state\"\npolicy_dir",
                "authorization.state_dir = \"/a/state\"",
            ),
        ] {
            assert!(TABLE.contains(from), "{from}");
            let error = load(&format!("{GOOD}{}", TABLE.replace(from, to))).unwrap_err();
            assert!(error.contains(expected), "{to}: {error}");
        }
    }
}
