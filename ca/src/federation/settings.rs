//! The sections `[bundle_endpoint]` and `[federation]` of the configuration.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hoplite_host::config::{self, ConfigError, Span};
use serde::Deserialize;

use crate::federation::web::{self, WebAuthoritiesError};

/// Shorter hints would have every federated CA ask for nothing else.
const HINT_MIN: Duration = Duration::from_secs(5);

/// A key that is revoked is believed elsewhere for no longer than this, and a few times that.
const HINT_MAX: Duration = Duration::from_secs(24 * 3600);

/// New authorities are published this many refreshes before they sign (F-6).
const REFRESHES_AHEAD: u32 = 4;

/// Between an authority is prepared and it signs lies this part of its life.
const AHEAD_PART: u32 = 3;

/// Nobody notices a federation that is dead for longer.
const STALE_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// The section `[bundle_endpoint]`. Without it no bundle is served.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BundleEndpointSettings {
    /// Where it is served. Port 0 takes a free one.
    #[serde(deserialize_with = "config::listen")]
    pub listen: SocketAddr,
    /// The web certificate's chain, PEM: the profile is `https_web` then. Without it the CA shows its own SVID, `https_spiffe`.
    #[serde(default)]
    pub certificate: Option<PathBuf>,
    /// Its key, PEM.
    #[serde(default)]
    pub key: Option<PathBuf>,
    /// How often others are to look. It stands in the bundle.
    #[serde(default = "five_minutes")]
    pub refresh_hint: Span,
}

/// The section `[federation]`: how the bundles of others are fetched.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FederationSettings {
    /// A foreign bundle that could not be refreshed for so long is given to nobody any more.
    pub stale_max: Span,
    /// The authorities of the web that vouch for `https_web` endpoints, PEM; the system's when left out.
    pub web_authorities: Option<PathBuf>,
}

// === impl BundleEndpointSettings ===

impl BundleEndpointSettings {
    pub(crate) fn check(&self, file: &Path, authority_ttl: Duration) -> Result<(), ConfigError> {
        let unusable = |key: &str, value: &dyn std::fmt::Display, reason: String| {
            Err(ConfigError::unusable(
                file,
                &format!("bundle_endpoint.{key}"),
                value,
                reason,
            ))
        };
        match (&self.certificate, &self.key) {
            (Some(path), None) => {
                return unusable(
                    "certificate",
                    &path.display(),
                    "its key is missing; write `key`, too".to_owned(),
                );
            }
            (None, Some(path)) => {
                let reason =
                    "its certificate is missing; write `certificate`, too, or neither: then the CA shows its own SVID";
                return unusable("key", &path.display(), reason.to_owned());
            }
            _ => {}
        }
        let hint = self.refresh_hint;
        if !(HINT_MIN..=HINT_MAX).contains(&hint.0) || hint.0.subsec_nanos() != 0 {
            let reason = format!(
                "write whole seconds, from \"{}\" to \"{}\"",
                Span(HINT_MIN),
                Span(HINT_MAX)
            );
            return unusable("refresh_hint", &hint, reason);
        }
        let longest = authority_ttl / AHEAD_PART / REFRESHES_AHEAD;
        if hint.0 > longest {
            let reason = format!(
                "too long for authorities that live \"{}\": others must have looked {REFRESHES_AHEAD} times between a new authority is \
                 published and it signs, which is a third of that; write at most \"{}\", or a longer `authority_ttl`",
                Span(authority_ttl),
                Span(Duration::from_secs(longest.as_secs()))
            );
            return unusable("refresh_hint", &hint, reason);
        }
        Ok(())
    }
}

// === impl FederationSettings ===

impl Default for FederationSettings {
    fn default() -> Self {
        Self {
            stale_max: Span(Duration::from_secs(30 * 24 * 3600)),
            web_authorities: None,
        }
    }
}

impl FederationSettings {
    /// Whether the authorities of the web that it names can be had. Those of the system are looked for when an endpoint needs them.
    pub(crate) fn read(&self) -> Result<(), WebAuthoritiesError> {
        match &self.web_authorities {
            Some(file) => web::roots(file).map(|_| ()),
            None => Ok(()),
        }
    }

    pub(crate) fn check(&self, file: &Path) -> Result<(), ConfigError> {
        let (least, most) = (HINT_MIN, STALE_MAX);
        if (least..=most).contains(&self.stale_max.0) {
            return Ok(());
        }
        let reason = format!("write between \"{}\" and \"{}\"", Span(least), Span(most));
        Err(ConfigError::unusable(
            file,
            "federation.stale_max",
            self.stale_max,
            reason,
        ))
    }
}

fn five_minutes() -> Span {
    Span(Duration::from_secs(300))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_authorities_of_the_web_are_there() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("web.pem");
        let settings = FederationSettings {
            web_authorities: Some(file.clone()),
            ..FederationSettings::default()
        };
        let refused = || settings.read().unwrap_err().to_string();
        assert!(refused().contains("web.pem") && refused().contains("`federation.web_authorities`"));
        std::fs::write(&file, "no certificate").unwrap();
        assert!(refused().contains("it holds no certificate of an authority"));
        let bundle = hoplite_identity::testing::TestAuthority::new("web.example").bundle();
        std::fs::write(&file, bundle.to_pem()).unwrap();
        settings.read().unwrap();
        FederationSettings::default().read().unwrap();
    }

    #[test]
    fn a_hint_leaves_others_time_to_look() {
        let check = |hint: u64, ttl: u64, key: bool, expected: &str| {
            let settings = BundleEndpointSettings {
                listen: "127.0.0.1:0".parse().unwrap(),
                certificate: None,
                key: key.then(|| "k.pem".into()),
                refresh_hint: Span(Duration::from_secs(hint)),
            };
            match settings.check(Path::new("ca.toml"), Duration::from_secs(ttl)) {
                Ok(()) => assert_eq!(expected, ""),
                Err(error) => assert!(!expected.is_empty() && error.to_string().contains(expected), "{error}"),
            }
        };
        check(300, 365 * 86400, false, "");
        check(4, 365 * 86400, false, "\"5s\"");
        check(86401, 365 * 86400, false, "\"1day\"");
        check(10, 120, false, "");
        check(11, 120, false, "at most \"10s\"");
        check(10, 120, true, "`certificate`, too");
    }
}
