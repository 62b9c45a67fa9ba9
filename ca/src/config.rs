//! What the operator decides about a CA, and the file it is written in.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hoplite_host::config::{self, ConfigError, Span};
use hoplite_host::credentials;
use hoplite_host::logging::Levels;
use hoplite_identity::{HostPort, JWT_TTL, TrustDomain};
use hoplite_otlp::OtlpSettings;
use hoplite_pkcs11::Settings as Pkcs11Settings;
use hoplite_policy::bundle::BUNDLE_BYTES_MAX;
use hoplite_postgres::Settings as PostgresSettings;
use hoplite_seal::TrustedSigners;
use hoplite_telemetry::MetricsListen;
use hoplite_wire::socket_path;
use serde::Deserialize;

use crate::attestors::AttestorSettings;
use crate::authority::course::LAST_PART;
use crate::authority::link::HopliteUpstream;
use crate::authority::upstream::DiskUpstream;
use crate::federation::settings::{BundleEndpointSettings, FederationSettings};
use crate::founding::Founding;
use crate::oidc::OidcSettings;
use crate::operators::operator::PROLONGED_MAX;

/// Shorter-lived certificates could not be renewed before they expire.
pub(crate) const TTL_MIN: Duration = Duration::from_secs(5);

/// A typing error's bound: dates stay far from where X.509's encoding of them ends (the year 9999).
const AUTHORITY_TTL_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// A machine that was off for longer is another one.
const REATTEST_WITHIN_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// Agents that report more often say nothing new.
const REPORT_PERIOD_MIN: Duration = Duration::from_secs(1);

/// Nobody waits longer to hear that an agent is gone.
const REPORT_PERIOD_MAX: Duration = Duration::from_secs(3600);

/// Names of one template and node, each of which is counted in memory.
const TEMPLATE_NAMES: RangeInclusive<usize> = 1..=100_000;

/// A bundle of nothing has half as much.
const BUNDLE_BYTES_MIN: usize = 1 << 10;

/// As many as an agent takes.
const REPLICAS_MAX: usize = 8;

/// What a CA needs to know before it starts. Made in code, or by [`Config::load`] from a file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The trust domain it signs for. Fixed once the authority exists.
    pub trust_domain: TrustDomain,
    /// Where the key, the store and `bundle.pem` lie. Made, mode 0700, if it does not exist.
    pub data_dir: PathBuf,
    /// Whether a start founds a CA in a data directory in which none is. Without it that is refused: where one was, its disk may not be
    /// mounted, and `hoplite ca init` founds.
    #[serde(default)]
    pub founds: bool,
    /// Where agents connect. Port 0 takes a free one.
    #[serde(deserialize_with = "config::listen")]
    pub listen: SocketAddr,
    /// How other machines reach `listen`, `host:port`: it stands in the invitations. `listen` itself when left out, unless
    /// that is every address of this machine.
    #[serde(default)]
    pub advertise: Option<HostPort>,
    /// The addresses of all CAs over the same store, its own among them: nodes learn them when they join, and at each renewal.
    #[serde(default)]
    pub replicas: Vec<HostPort>,
    /// The operators' Unix socket.
    pub admin_socket: PathBuf,
    /// Where all that is registered lies.
    #[serde(default)]
    pub store: StoreConfig,
    /// Where the keys that sign are made and lie.
    #[serde(default)]
    pub keys: KeysConfig,
    /// Who signs the CA's authorities; they are roots, signed by themselves, when left out.
    #[serde(default)]
    pub upstream: Option<UpstreamConfig>,
    /// Life of a workload's certificate whose entry does not say otherwise.
    #[serde(default = "one_hour")]
    pub x509_ttl: Span,
    /// Life of a workload's JWT-SVID whose entry does not say otherwise. A token cannot be called back, so it is short.
    #[serde(default = "five_minutes")]
    pub jwt_ttl: Span,
    /// Life of an agent's certificate: how long an agent, or the CA, can be away before the agent must join anew.
    #[serde(default = "one_day")]
    pub agent_ttl: Span,
    /// How long after the end of its certificate an agent may still come back by the key of it, without a token; "0s" for never.
    #[serde(default = "thirty_days")]
    pub reattest_within: Span,
    /// Who vouches for nodes that nobody has invited. Without any, nodes join with tokens alone.
    #[serde(default, rename = "attestor")]
    pub attestors: Vec<AttestorSettings>,
    /// How many names of one entry that is a template a node may have in use at once: what a node that is somebody else's can call itself.
    #[serde(default = "a_thousand_names")]
    pub template_names_per_node: usize,
    /// Life of an operator's certificate. While it lasts it is prolonged by use, for 30 days at most.
    #[serde(default = "eight_hours")]
    pub operator_ttl: Span,
    /// The log of what is done at this CA; `audit` in `data_dir` when left out.
    #[serde(default)]
    pub audit_dir: Option<PathBuf>,
    /// The admin policies, `*.cedar`, in place of the default. Read at the start and at SIGHUP.
    #[serde(default)]
    pub admin_policy_dir: Option<PathBuf>,
    /// Life of an authority's certificate, when it is made: at half of it the next one is made, which signs from a sixth before
    /// its end.
    #[serde(default = "one_year")]
    pub authority_ttl: Span,
    /// Whether time alone prepares and activates authorities. If not, people do, and are warned in time.
    #[serde(default = "yes")]
    pub authority_rotates: bool,
    /// Where `/live`, `/ready` and `/metrics` are served to the tools that people have; nowhere when left out.
    #[serde(default)]
    pub metrics_listen: Option<MetricsListen>,
    /// OpenID Connect discovery for those who verify JWT-SVIDs by it; not served when left out.
    #[serde(default)]
    pub oidc: Option<OidcSettings>,
    /// Where the trust bundle is published for those who federate with this trust domain; nowhere when left out.
    #[serde(default)]
    pub bundle_endpoint: Option<BundleEndpointSettings>,
    /// How the bundles of foreign trust domains are fetched.
    #[serde(default)]
    pub federation: FederationSettings,
    /// Where metrics are sent; nowhere when left out.
    #[serde(default)]
    pub otlp: Option<OtlpSettings>,
    /// What is logged: `info,hoplite_proxy=debug`. `HOPLITE_LOG` goes before it.
    #[serde(default)]
    pub log_levels: Option<Levels>,
    /// The file that it was read from; a backup keeps what is in it.
    #[serde(skip)]
    pub file: Option<PathBuf>,
    /// Who may publish policy: `["alice=ed25519:…"]`. Nobody when left out.
    #[serde(default)]
    pub policy_signers: TrustedSigners,
    /// The longest policy bundle, in bytes.
    #[serde(default = "max_bundle_bytes")]
    pub policy_max_bytes: usize,
    /// How often agents say how they are when nothing changes. One that says nothing for a little longer is silent.
    #[serde(default = "half_a_minute")]
    pub report_period: Span,
}

/// Where all that is registered lies.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum StoreConfig {
    /// In `data_dir`, for one CA.
    #[default]
    Sled,
    /// In a database, for several.
    Postgres(PostgresSettings),
}

/// Where the keys that sign are made and lie.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum KeysConfig {
    /// In files of `data_dir`.
    File(FileKeys),
    /// In the store, sealed: for all CAs that have it.
    Store(StoreKeys),
    /// In a PKCS#11 token.
    Pkcs11(Pkcs11Settings),
}

/// Keys in files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileKeys {
    /// A file with the secret that seals them; they lie there in the clear when left out.
    #[serde(default, deserialize_with = "credentials::optional_path")]
    pub secret_file: Option<PathBuf>,
}

/// Keys in the store.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreKeys {
    /// A file with the secret that seals them, the same at each CA.
    #[serde(deserialize_with = "required_path")]
    pub secret_file: PathBuf,
}

/// Who signs the CA's authorities.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum UpstreamConfig {
    /// A certificate and its key in files: a company's.
    Disk(DiskUpstream),
    /// Another Hoplite CA of the same trust domain.
    Hoplite(HopliteUpstream),
}

fn required_path<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    let path = credentials::optional_path(deserializer)?;
    path.ok_or_else(|| serde::de::Error::missing_field("secret_file"))
}

// === impl KeysConfig ===

impl Default for KeysConfig {
    fn default() -> Self {
        Self::File(FileKeys::default())
    }
}

impl KeysConfig {
    /// The file with the secret that seals keys.
    pub(crate) fn secret_file(&self) -> Option<&Path> {
        match self {
            Self::File(keys) => keys.secret_file.as_deref(),
            Self::Store(keys) => Some(&keys.secret_file),
            Self::Pkcs11(_) => None,
        }
    }

    /// Whether each CA that has the same store has the keys.
    pub(crate) fn are_shared(&self) -> bool {
        matches!(self, Self::Store(_) | Self::Pkcs11(_))
    }
}

// === impl StoreConfig ===

impl StoreConfig {
    /// Whether other CAs may have the same.
    pub(crate) fn is_shared(&self) -> bool {
        matches!(self, Self::Postgres(_))
    }
}

// === impl Config ===

impl Config {
    /// Reads and checks a TOML file.
    ///
    /// # Errors
    /// [`ConfigError`] names file, key and value, and says what to write instead.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let config: Self = config::load(path)?;
        config.check(path)?;
        let file = Some(path.to_owned());
        Ok(Self { file, ..config })
    }

    /// Whether it founds.
    pub(crate) fn founding(&self) -> Founding {
        match self.founds {
            true => Founding::WhereNoneWas,
            false => Founding::Never,
        }
    }

    /// What may be right and is worth a look. Sentences for the log.
    pub(crate) fn doubts(&self) -> Vec<String> {
        let own = match &self.advertise {
            Some(address) => Some(address.to_string()),
            None if self.listen.ip().is_unspecified() || self.listen.port() == 0 => None,
            None => Some(self.listen.to_string()),
        };
        let is_named = |own: &String| self.replicas.is_empty() || self.replicas.iter().any(|one| one.as_str() == own);
        let unnamed = own.filter(|own| !is_named(own)).map(|own| {
            format!(
                "`replicas` does not name this CA, `{own}`: nodes that join at another one never come to it; write its address there, at each CA, or in `advertise` how `replicas` names it"
            )
        });
        unnamed.into_iter().collect()
    }

    /// What every start checks too: a configuration made in code has no file that was read.
    pub(crate) fn check(&self, file: &Path) -> Result<(), ConfigError> {
        self.otlp.iter().try_for_each(|otlp| otlp.check(file, false))?;
        self.oidc.iter().try_for_each(|oidc| oidc.check(file))?;
        AttestorSettings::check(&self.attestors, file)?;
        let ttl = self.authority_ttl.0;
        self.bundle_endpoint
            .iter()
            .try_for_each(|endpoint| endpoint.check(file, ttl))?;
        self.federation.check(file)?;
        if let StoreConfig::Postgres(settings) = &self.store {
            settings.check(file)?;
            if self.authority_rotates && !self.keys.are_shared() {
                let reason = "with a database there may be several CAs, and the key of an authority that one of them makes by itself would be in files of that one \
                     alone; write `[keys]` with `kind = \"store\"` and a `secret_file`, or `authority_rotates = false` and rotate by hand: docs/guide/several-cas.md";
                return Err(ConfigError::unusable(file, "authority_rotates", true, reason));
            }
        }
        if let Some(UpstreamConfig::Hoplite(upstream)) = &self.upstream {
            let count = upstream.addresses.len();
            if !(1..=REPLICAS_MAX).contains(&count) {
                let reason = format!("name 1 to {REPLICAS_MAX} addresses of the CA above, `host:port`");
                return Err(ConfigError::unusable(file, "upstream.addresses", count, reason));
            }
            if let Err(error) = socket_path(&upstream.workload_api) {
                let value = format!("\"{}\"", upstream.workload_api);
                return Err(ConfigError::unusable(file, "upstream.workload_api", value, error));
            }
        }
        let bounds = [
            ("x509_ttl", self.x509_ttl),
            ("agent_ttl", self.agent_ttl),
            ("operator_ttl", self.operator_ttl),
            ("authority_ttl", self.authority_ttl),
        ];
        for (key, span) in bounds {
            if span.0 < TTL_MIN {
                let reason = format!("too short to renew in time; write at least \"{}\"", Span(TTL_MIN));
                return Err(ConfigError::unusable(file, key, span, reason));
            }
            // An operator's certificate simply ends with the authority: a CA that has no operators need not think of it.
            let longest = self.authority_ttl.0 / LAST_PART;
            if !matches!(key, "authority_ttl" | "operator_ttl") && span.0 > longest {
                let reason = format!(
                    "too long for authorities that live \"{}\": from a sixth of that before its end, \"{}\", an authority signs no more, \
                     and what it signed has to end with it; write at most that, or `authority_ttl = \"{}\"`",
                    self.authority_ttl,
                    Span(Duration::from_secs(longest.as_secs())),
                    Span(span.0 * LAST_PART)
                );
                return Err(ConfigError::unusable(file, key, span, reason));
            }
        }
        let (least, most) = (Duration::from_secs(JWT_TTL.start), Duration::from_secs(JWT_TTL.end - 1));
        if !(least..=most).contains(&self.jwt_ttl.0) {
            let reason = format!("write between \"{}\" and \"{}\"", Span(least), Span(most));
            return Err(ConfigError::unusable(file, "jwt_ttl", self.jwt_ttl, reason));
        }
        if self.authority_ttl.0 > AUTHORITY_TTL_MAX {
            let reason = "longer than 100 years; write for example \"365d\"";
            return Err(ConfigError::unusable(file, "authority_ttl", self.authority_ttl, reason));
        }
        if self.operator_ttl.0 > PROLONGED_MAX {
            let reason = "longer than 30 days; write for example \"8h\"";
            return Err(ConfigError::unusable(file, "operator_ttl", self.operator_ttl, reason));
        }
        if self.reattest_within.0 > REATTEST_WITHIN_MAX {
            let reason = "longer than a year; write for example \"30d\"";
            return Err(ConfigError::unusable(
                file,
                "reattest_within",
                self.reattest_within,
                reason,
            ));
        }
        if !(BUNDLE_BYTES_MIN..=BUNDLE_BYTES_MAX).contains(&self.policy_max_bytes) {
            let reason = format!("write between {BUNDLE_BYTES_MIN} and {BUNDLE_BYTES_MAX}");
            return Err(ConfigError::unusable(
                file,
                "policy_max_bytes",
                self.policy_max_bytes,
                reason,
            ));
        }
        if !TEMPLATE_NAMES.contains(&self.template_names_per_node) {
            let (least, most) = (TEMPLATE_NAMES.start(), TEMPLATE_NAMES.end());
            let reason = format!(
                "write between {least} and {most}; for templates that a node may not use, register them for others"
            );
            return Err(ConfigError::unusable(
                file,
                "template_names_per_node",
                self.template_names_per_node,
                reason,
            ));
        }
        if self.replicas.len() > REPLICAS_MAX {
            let reason = format!("more addresses than agents try; write at most {REPLICAS_MAX}");
            return Err(ConfigError::unusable(file, "replicas", self.replicas.len(), reason));
        }
        let again = self.replicas.iter().enumerate().find(|(at, address)| {
            let mut before = self.replicas.iter().take(*at);
            before.any(|before| before == *address)
        });
        if let Some((_, address)) = again {
            let reason = "it is there twice; write the address of each CA once";
            return Err(ConfigError::unusable(
                file,
                "replicas",
                format!("\"{address}\""),
                reason,
            ));
        }
        if !(REPORT_PERIOD_MIN..=REPORT_PERIOD_MAX).contains(&self.report_period.0) {
            let (least, most) = (Span(REPORT_PERIOD_MIN), Span(REPORT_PERIOD_MAX));
            let reason = format!("write between \"{least}\" and \"{most}\"");
            return Err(ConfigError::unusable(file, "report_period", self.report_period, reason));
        }
        if let Some(audit_dir) = self.audit_dir.as_ref().filter(|dir| self.data_dir.starts_with(dir)) {
            let reason = format!(
                "the log's directory is the log's alone, and `data_dir = {}` is in it; choose another one, or leave it out: the log is in `audit` in `data_dir` then",
                self.data_dir.display()
            );
            let value = audit_dir.display();
            return Err(ConfigError::unusable(file, "audit_dir", value, reason));
        }
        for (key, path) in [("data_dir", &self.data_dir), ("admin_socket", &self.admin_socket)] {
            if path.as_os_str().is_empty() {
                return Err(ConfigError::unusable(
                    file,
                    key,
                    "\"\"",
                    "no path; write for example \"/var/lib/hoplite/ca\"",
                ));
            }
        }
        Ok(())
    }
}

fn yes() -> bool {
    true
}

fn max_bundle_bytes() -> usize {
    BUNDLE_BYTES_MAX
}

fn eight_hours() -> Span {
    Span(Duration::from_secs(8 * 3600))
}

fn five_minutes() -> Span {
    Span(Duration::from_secs(300))
}

fn half_a_minute() -> Span {
    Span(Duration::from_secs(30))
}

fn a_thousand_names() -> usize {
    1000
}

fn thirty_days() -> Span {
    Span(Duration::from_secs(30 * 24 * 3600))
}

fn one_hour() -> Span {
    Span(Duration::from_secs(3600))
}

fn one_day() -> Span {
    Span(Duration::from_secs(24 * 3600))
}

fn one_year() -> Span {
    Span(Duration::from_secs(365 * 24 * 3600))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
trust_domain = "prod.example"
data_dir = "/var/lib/hoplite/ca"
listen = "127.0.0.1:0"
admin_socket = "/run/hoplite/ca.sock"
"#;

    fn load(more: &str) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.toml");
        std::fs::write(&path, format!("{GOOD}{more}")).unwrap();
        Config::load(&path).map_err(|e| e.to_string())
    }

    #[test]
    fn defaults() {
        let config = load("").unwrap();
        assert_eq!(config.x509_ttl, one_hour());
        assert_eq!(config.agent_ttl, one_day());
        assert_eq!(config.operator_ttl, eight_hours());
        assert_eq!(config.authority_ttl, one_year());
        let short = "x509_ttl = \"10s\"\nagent_ttl = \"20s\"\nauthority_ttl = \"120s\"";
        assert!(config.authority_rotates && load(short).is_ok());
        assert_eq!(load("x509_ttl = \"5s\"").unwrap().x509_ttl, Span(TTL_MIN));
    }

    #[test]
    fn errors_name_key_and_value() {
        let check = |more: &str, expected: &[&str]| {
            let error = load(more).unwrap_err();
            assert!(!error.contains('\n'), "one sentence: {error}");
            for part in ["ca.toml"].iter().chain(expected) {
                assert!(error.contains(part), "`{part}` is missing from `{error}`");
            }
        };
        check("x509_ttl = \"4s\"", &["x509_ttl", "4s", "5s"]);
        check("agent_ttl = \"1ms\"", &["agent_ttl", "1ms"]);
        check("authority_ttl = \"1s\"", &["x509_ttl", "authority_ttl"]);
        check("authority_ttl = \"1h\"", &["x509_ttl", "1h", "authority_ttl"]);
        check(
            "agent_ttl = \"2h\"\nauthority_ttl = \"90m\"",
            &["x509_ttl", "1h", "15m", "6h"],
        );
        check(
            "agent_ttl = \"2h\"\nauthority_ttl = \"10h\"",
            &["agent_ttl", "2h", "1h 40m", "12h"],
        );
        check("authority_rotates = 1", &["authority_rotates"]);
        check("operator_ttl = \"31d\"", &["operator_ttl", "30 days"]);
        check("operator_ttl = \"1s\"", &["operator_ttl", "5s"]);
        check("authority_ttl = \"101 years\"", &["authority_ttl", "100 years"]);
        check(
            "reattest_within = \"2 years\"",
            &["reattest_within", "2years", "a year"],
        );
        check("x509_ttl = 3600", &["x509_ttl"]);
        check(
            "policy_signers = [\"alice\"]",
            &["ca.toml:6", "`alice` is not a signer"],
        );
        check("report_period = \"500ms\"", &["report_period", "500ms", "\"1s\""]);
        check("policy_max_bytes = 9", &["policy_max_bytes = 9", "1024"]);
        check("tll = \"1h\"", &["tll"]);
        check("[store]\nkind = \"mysql\"", &["mysql", "postgres"]);
        check("[keys]\nkind = \"tpm\"", &["tpm", "pkcs11"]);
        check("[keys]\nkind = \"store\"", &["secret_file"]);
        check("[keys]\nkind = \"file\"\nsecret = \"x\"", &["secret"]);
        check(
            "[keys]\nkind = \"pkcs11\"\nmodule = \"/m\"\ntoken = \"t\"\npin = \"1\"",
            &["pin"],
        );
        check("[upstream]\nkind = \"disk\"\ncertificate = \"/c\"", &["key"]);
        check("[upstream]\nkind = \"vault\"", &["vault", "disk"]);
        let postgres = "[store]\nkind = \"postgres\"\nhosts = [\"db:5432\"]\ndatabase = \"ca\"\nuser = \"ca\"\n";
        check(postgres, &["store.tls_ca", "authorities"]);
        check(
            &format!("{postgres}tls = \"none\""),
            &["store.tls", "`db:5432` is another machine"],
        );
        check(&format!("{postgres}pasword_file = \"/p\""), &["pasword_file"]);
        check(&postgres.replace("db:5432", "db"), &["`db`", "HOST:PORT"]);
        check(
            &format!("{postgres}tls_ca = \"/db.pem\""),
            &["authority_rotates", "by hand", "kind = \"store\""],
        );
        let sealed = format!("{postgres}tls_ca = \"/db.pem\"\n[keys]\nkind = \"store\"\nsecret_file = \"/s\"");
        let config = load(&sealed).unwrap();
        assert!(config.authority_rotates && config.keys.are_shared());
        check(
            "advertise = \"ca.prod.example\"",
            &["ca.toml:6", "`ca.prod.example` has no port"],
        );
        check("advertise = \"0.0.0.0:7443\"", &["every address of a machine"]);
        check(
            "[bundle_endpoint]\nlisten = \"localhost:1\"",
            &["`localhost:1` is no IP address", "write for example"],
        );
        check(
            "replicas = [\"ca1:7443\", \"ca2:7443\", \"ca1:7443\"]",
            &["replicas", "`replicas = \"ca1:7443\"`", "twice", "once"],
        );
        for dir in ["/var/lib/hoplite/ca", "/var/lib/hoplite/ca/", "/var/lib/hoplite"] {
            check(
                &format!("audit_dir = \"{dir}\""),
                &["`audit_dir = ", "data_dir", "choose another one"],
            );
        }
        assert!(load("audit_dir = \"/var/lib/hoplite/ca/log\"").is_ok());
    }

    #[test]
    fn a_ca_that_its_replicas_do_not_name_is_told() {
        let check = |more: &str, expected: Option<&str>| {
            let doubts = load(more).unwrap().doubts();
            assert_eq!(doubts.len(), usize::from(expected.is_some()), "{more}: {doubts:?}");
            if let Some(own) = expected {
                assert!(
                    doubts
                        .iter()
                        .all(|doubt| doubt.contains(own) && doubt.contains("`replicas`")),
                    "{doubts:?}"
                );
            }
        };
        let (own, others) = ("advertise = \"ca1:7443\"\n", "replicas = [\"ca2:7443\", \"ca3:7443\"]");
        check("", None);
        check(own, None);
        check(&format!("{own}{others}"), Some("`ca1:7443`"));
        check(&format!("{own}replicas = [\"ca2:7443\", \"ca1:7443\"]"), None);
        check(others, None); // port 0: nobody knows the address yet
    }

    #[test]
    fn a_bad_trust_domain_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.toml");
        std::fs::write(&path, GOOD.replace("prod.example", "Prod Example")).unwrap();
        let error = Config::load(&path).unwrap_err().to_string();
        assert!(error.contains("ca.toml:2") && error.contains("Prod Example"), "{error}");
    }
}
