//! Nodes by a token of an OpenID Connect issuer: a cloud's instance identity, a build service, a company's own.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use hoplite_identity::SelectorKind;
use hoplite_identity::jwt::Expected;
use serde::Deserialize;

use crate::attestors::claims::{self, Bounds, VALUES_MAX};
use crate::attestors::jwks::{IssuerKeys, KeySettings};
use crate::attestors::{Attest, BadSetting, Node, NotProven, Proven, Shown, selector};

/// A token that lives longer is a password.
pub(crate) const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// Claims that become selectors.
const CLAIMS_MAX: usize = 16;

/// `kind = "oidc"`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OidcNodeSettings {
    /// By which agents ask for it; `oidc` when left out.
    #[serde(default)]
    pub name: Option<String>,
    /// What its nodes are called, `ci-{oidc:claim:environment}`; `NAME-{identity}` when left out.
    #[serde(default)]
    pub node: Option<String>,
    /// The `iss` of its tokens, letter by letter.
    pub issuer: String,
    /// The `aud` that its tokens have.
    pub audience: String,
    /// The issuer's JWK Set on the web, `https://…`.
    #[serde(default)]
    pub jwks_url: Option<String>,
    /// The authorities by which that server is known, PEM; those of the web when left out.
    #[serde(default)]
    pub jwks_ca: Option<PathBuf>,
    /// The issuer's JWK Set as a file, in place of `jwks_url`.
    #[serde(default)]
    pub jwks_file: Option<PathBuf>,
    /// What its nodes' tokens have that others of this issuer do not: claims, each with the values that count.
    pub bounds: Bounds,
    /// Claims that become selectors, `oidc:claim:NAME=VALUE`.
    #[serde(default)]
    pub claims: Vec<String>,
}

/// The attestor.
pub(crate) struct Oidc {
    issuer: String,
    audience: String,
    keys: IssuerKeys,
    bounds: Bounds,
    claims: Vec<String>,
}

// === impl OidcNodeSettings ===

impl OidcNodeSettings {
    pub(crate) fn open(&self) -> Result<Oidc, BadSetting> {
        let bad = |key: &'static str, value: &str, reason: &str| BadSetting {
            key,
            value: value.to_owned(),
            reason: reason.to_owned(),
        };
        for (key, value) in [("issuer", &self.issuer), ("audience", &self.audience)] {
            if value.is_empty() {
                return Err(bad(key, value, "write what the tokens say, letter by letter"));
            }
        }
        let is_empty = |(_, values): (&String, &Vec<String>)| values.is_empty() || values.len() > VALUES_MAX;
        if self.bounds.is_empty() || self.bounds.iter().any(is_empty) {
            let reason = "everybody who has a token of this issuer would be a node; write what tokens of nodes have, for example `bounds = { sub = [\"instance-17\"] }`, with 1 to 32 values each";
            return Err(bad("bounds", "", reason));
        }
        if self.claims.len() > CLAIMS_MAX {
            return Err(bad("claims", "", "at most 16 of them"));
        }
        let keys = IssuerKeys::open(KeySettings {
            file: self.jwks_file.as_ref(),
            url: self.jwks_url.as_deref(),
            authorities: self.jwks_ca.as_ref(),
            token_file: None,
        })?;
        Ok(Oidc {
            issuer: self.issuer.clone(),
            audience: self.audience.clone(),
            keys,
            bounds: self.bounds.clone(),
            claims: self.claims.clone(),
        })
    }
}

// === impl Oidc ===

#[tonic::async_trait]
impl Attest for Oidc {
    async fn attest(&self, shown: Shown<'_>, _: &mut dyn Node, now: SystemTime) -> Result<Proven, NotProven> {
        let token = claims::token(shown.proof).ok_or(NotProven::Malformed("token"))?;
        let expected = Expected {
            issuer: &self.issuer,
            audience: &self.audience,
            longest: LONGEST,
        };
        let token = self.keys.verify(token, expected, now).await?;
        if let Some(claim) = claims::outside(token.claims(), &self.bounds) {
            let text = format!(
                "the token is `{}`'s, and its claim `{claim}` has none of the values in `bounds`",
                token.subject()
            );
            return Err(NotProven::Refused(text));
        }
        let mut selectors = vec![
            selector(SelectorKind::OidcIss, &self.issuer),
            selector(SelectorKind::OidcSub, token.subject()),
        ];
        for name in &self.claims {
            let values = claims::texts(token.claims(), name).into_iter();
            selectors.extend(values.map(|value| selector(SelectorKind::OidcClaim, &format!("{name}={value}"))));
        }
        Ok(Proven {
            identity: vec![self.issuer.clone(), token.subject().to_owned()],
            selectors: selectors.into_iter().flatten().collect(),
            bearer: Some(claims::bearer(&token)),
        })
    }
}
