//! OpenID Connect discovery: who knows no SPIFFE, but OpenID Connect, verifies JWT-SVIDs by these two pages.
//!
//! Public keys and nothing else: whoever reaches the address may read them. They are the trust bundle's, as of the moment.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hoplite_host::config::{self, ConfigError};
use hoplite_host::shutdown::Shutdown;
use hoplite_host::slots::Bounds;
use hoplite_identity::TrustBundle;
use hoplite_telemetry::{Counter, Family, Page};
use rustls::ServerConfig;
use serde::Deserialize;
use serde::de::{self, Deserializer};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::web::{self, WebError, WebTls};

/// Who reads at a time. A verifier reads once in a while, and keeps what it read.
const CONNECTIONS_MAX: usize = 64;

/// From one address. Verifiers behind one share it.
const CONNECTIONS_PER_ADDRESS_MAX: usize = 16;

/// A new key is in here long before it signs anything, and one that is revoked stops to count within this.
const CACHE: &str = "public, max-age=60";

/// Where the description of the issuer is, after the issuer's own path.
const DISCOVERY: &str = "/.well-known/openid-configuration";

/// Where the keys are, after the issuer's own path.
const KEYS: &str = "/keys";

/// An issuer is written into each token.
const ISSUER_BYTES_MAX: usize = 512;

/// The section `[oidc]`. Without it nothing is served, and tokens name no issuer.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OidcSettings {
    /// By what address verifiers know it: `https://oidc.example.org`, with a path perhaps. It is the `iss` of every JWT-SVID.
    pub issuer: IssuerUrl,
    /// Where it is served. Port 0 takes a free one.
    #[serde(deserialize_with = "config::listen")]
    pub listen: SocketAddr,
    /// The web certificate's chain, PEM. Without it plain HTTP is served, on the loopback interface alone, for a server before it that ends TLS.
    #[serde(default)]
    pub certificate: Option<PathBuf>,
    /// Its key, PEM.
    #[serde(default)]
    pub key: Option<PathBuf>,
}

/// The address of an issuer: `https`, a host, and a path without a slash at its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuerUrl(String);

/// Why it cannot be served. One sentence for the operator.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OidcError {
    /// Somebody else has the address, or it is none of this machine's.
    #[error("cannot listen on `oidc.listen = {listen}`: {source}; choose another address, or stop who uses it")]
    Listen {
        /// The address.
        listen: SocketAddr,
        /// The system's reason.
        source: io::Error,
    },
    /// Certificate or key cannot be used.
    #[error("`oidc.certificate` and `oidc.key`: {0}")]
    Web(#[from] WebError),
}

/// The listener before it serves: its address is taken, its files are read.
pub(crate) struct OidcDoor {
    listener: TcpListener,
    address: SocketAddr,
    issuer: IssuerUrl,
    tls: WebTls,
}

// === impl IssuerUrl ===

impl IssuerUrl {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn parse(text: &str) -> Result<Self, &'static str> {
        let rest = text
            .strip_prefix("https://")
            .ok_or("it does not begin with `https://`, as every issuer of OpenID Connect does")?;
        let host = rest.split('/').next().unwrap_or_default();
        if host.is_empty() || host.contains('@') {
            return Err("it has no host, or a user before it");
        }
        if text.ends_with('/') {
            return Err("it ends with a slash; verifiers compare it letter by letter, so leave that out");
        }
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:/[]%".contains(&byte);
        if !rest.bytes().all(is_plain) || text.len() > ISSUER_BYTES_MAX {
            return Err("it has a query, a fragment or another character that no issuer has, or more than 512");
        }
        Ok(Self(text.to_owned()))
    }

    /// What stands after the host.
    fn path(&self) -> &str {
        let rest = self.0.strip_prefix("https://").unwrap_or_default();
        rest.find('/').and_then(|at| rest.get(at..)).unwrap_or_default()
    }
}

impl fmt::Display for IssuerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for IssuerUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(|reason| {
            de::Error::custom(format_args!(
                "`{}` is no issuer: {reason}; write for example \"https://oidc.example.org\"",
                text.escape_debug()
            ))
        })
    }
}

// === impl OidcSettings ===

impl OidcSettings {
    pub(crate) fn check(&self, file: &Path) -> Result<(), ConfigError> {
        let (key, reason) = match (&self.certificate, &self.key) {
            (Some(_), Some(_)) => return Ok(()),
            (None, None) if self.listen.ip().is_loopback() => return Ok(()),
            (None, None) => (
                "listen",
                "plain HTTP is for the loopback interface alone: write `certificate` and `key`, or an address such as \"127.0.0.1:8081\" \
                 and a server before it that ends TLS",
            ),
            (Some(_), None) => ("certificate", "its key is missing; write `key`, too"),
            (None, Some(_)) => ("key", "its certificate is missing; write `certificate`, too"),
        };
        Err(ConfigError::unusable(file, &format!("oidc.{key}"), self.listen, reason))
    }

    /// The files as they are now; none for plain HTTP.
    pub(crate) fn tls(&self) -> Result<Option<Arc<ServerConfig>>, OidcError> {
        match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => Ok(Some(web::server_config(certificate, key)?)),
            _ => Ok(None),
        }
    }
}

// === impl OidcDoor ===

impl OidcDoor {
    pub(crate) async fn bind(settings: &OidcSettings) -> Result<Self, OidcError> {
        let tls = WebTls::default();
        tls.set(settings.tls()?);
        let listen = settings.listen;
        let bound = async {
            let listener = TcpListener::bind(listen).await?;
            let address = listener.local_addr()?;
            Ok((listener, address))
        };
        let (listener, address) = bound.await.map_err(|source| OidcError::Listen { listen, source })?;
        Ok(Self {
            listener,
            address,
            issuer: settings.issuer.clone(),
            tls,
        })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn tls(&self) -> WebTls {
        self.tls.clone()
    }

    /// Answers until the shutdown, and counts what was asked for: `configuration`, `keys`, `other`.
    pub(crate) async fn serve(
        self,
        bundles: watch::Receiver<Arc<TrustBundle>>,
        reads: Family<2, Counter>,
        shutdown: Shutdown,
    ) {
        let is_tls = self.tls.is_some();
        tracing::info!(address = %self.address, issuer = %self.issuer, is_tls, "serving OpenID Connect discovery");
        let bounds = Bounds::network(CONNECTIONS_MAX, CONNECTIONS_PER_ADDRESS_MAX);
        let issuer = self.issuer;
        let page = move |path: &str| {
            let (name, page) = page(&issuer, &bundles.borrow(), path);
            let result = if page.is_some() { "found" } else { "not_found" };
            reads.get([name, result]).inc();
            page
        };
        web::serve(
            self.listener,
            ("oidc", bounds),
            is_tls.then_some(self.tls),
            page,
            shutdown,
        )
        .await;
    }
}

/// The page of a path, and what it is counted as.
fn page(issuer: &IssuerUrl, bundle: &TrustBundle, path: &str) -> (&'static str, Option<Page>) {
    let json = |text: String| Page {
        kind: "application/json",
        cache: CACHE,
        text,
    };
    match path.strip_prefix(issuer.path()) {
        Some(DISCOVERY) => ("configuration", Some(json(configuration(issuer, bundle)))),
        Some(KEYS) => ("keys", Some(json(bundle.jwt().to_oidc_jwks()))),
        _ => ("other", None),
    }
}

/// OpenID Connect Discovery 1.0 §3. There is nowhere to send people to sign in, so that address is empty.
fn configuration(issuer: &IssuerUrl, bundle: &TrustBundle) -> String {
    let mut algorithms: Vec<&str> = bundle.jwt().algorithms().map(|algorithm| algorithm.as_str()).collect();
    algorithms.sort_unstable();
    algorithms.dedup();
    let document = serde_json::json!({
        "issuer": issuer.as_str(),
        "jwks_uri": format!("{issuer}{KEYS}"),
        "authorization_endpoint": "",
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": algorithms,
        "claims_supported": ["sub", "aud", "exp", "iat", "iss"],
    });
    format!("{document:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use hoplite_identity::jwt::{JwtAuthorities, JwtKey};
    use hoplite_identity::testing::TestAuthority;

    #[test]
    fn issuers() {
        let check = |text: &str, path: Option<&str>| {
            let parsed = IssuerUrl::parse(text);
            assert_eq!(parsed.as_ref().ok().map(IssuerUrl::path), path, "{text}: {parsed:?}");
        };
        check("https://oidc.example.org", Some(""));
        check("https://oidc.example.org:8443/prod/a", Some("/prod/a"));
        check("https://[::1]:8443", Some(""));
        for bad in [
            "",
            "http://oidc.example.org",
            "https://",
            "https:///keys",
            "https://oidc.example.org/",
            "https://me@oidc.example.org",
            "https://oidc.example.org?x",
            "https://oidc.example.org#x",
            "https://oidc.example.org/a b",
            &format!("https://{}", "x".repeat(600)),
        ] {
            check(bad, None);
        }
    }

    #[test]
    fn two_pages_below_the_issuer_and_no_others() {
        let mut point = vec![4; 65];
        point[64] = 9;
        let key = JwtKey::p256(&point).unwrap();
        let keys = JwtAuthorities::new([("k1".to_owned(), key)]).unwrap();
        let bundle = TestAuthority::new("prod.example").bundle().with_jwt(keys);
        let issuer = IssuerUrl::parse("https://oidc.example.org/prod").unwrap();
        let text = |path: &str| page(&issuer, &bundle, path).1.map(|page| page.text);
        let found: serde_json::Value =
            serde_json::from_str(&text("/prod/.well-known/openid-configuration").unwrap()).unwrap();
        assert_eq!(found["issuer"], "https://oidc.example.org/prod");
        assert_eq!(found["jwks_uri"], "https://oidc.example.org/prod/keys");
        assert_eq!(
            found["id_token_signing_alg_values_supported"],
            serde_json::json!(["ES256"])
        );
        let keys: serde_json::Value = serde_json::from_str(&text("/prod/keys").unwrap()).unwrap();
        let key = &keys["keys"][0];
        assert_eq!(
            (&key["kid"], &key["use"], &key["alg"]),
            (&"k1".into(), &"sig".into(), &"ES256".into())
        );
        assert!(key.get("d").is_none());
        for other in [
            "/",
            "/keys",
            "/.well-known/openid-configuration",
            "/prod",
            "/prod/keys/",
            "/prod/../keys",
        ] {
            assert_eq!(text(other), None, "{other}");
        }
    }

    #[test]
    fn plain_http_is_for_the_loopback_interface() {
        let check = |listen: &str, certificate: bool, key: bool, expected: &str| {
            let settings = OidcSettings {
                issuer: IssuerUrl::parse("https://oidc.example.org").unwrap(),
                listen: listen.parse().unwrap(),
                certificate: certificate.then(|| "c.pem".into()),
                key: key.then(|| "k.pem".into()),
            };
            match settings.check(Path::new("ca.toml")) {
                Ok(()) => assert_eq!(expected, ""),
                Err(error) => assert!(!expected.is_empty() && error.to_string().contains(expected), "{error}"),
            }
        };
        check("127.0.0.1:0", false, false, "");
        check("[::1]:0", false, false, "");
        check("0.0.0.0:443", true, true, "");
        check("0.0.0.0:443", false, false, "loopback");
        check("127.0.0.1:0", true, false, "its key is missing");
        check("127.0.0.1:0", false, true, "its certificate is missing");
    }
}
