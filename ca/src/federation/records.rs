//! What the store holds of foreign trust domains: where each publishes its bundle, the bundle that is believed, and the sets.

use std::time::Duration;

use hoplite_identity::jwt::JwtAuthorities;
use hoplite_identity::{BundleDocument, FederationSet, InvalidBundle, SpiffeId, TrustBundle, TrustDomain};
use serde::{Deserialize, Serialize};

use crate::federation::egress::{BundleUrl, Network};
use crate::record::{self, BadRecord, Record};

/// Foreign trust domains that are federated with. Each is looked at every second.
pub(crate) const FEDERATIONS_MAX: usize = 256;

/// Federation sets: every agent is told of all.
pub(crate) const SETS_MAX: usize = 256;

/// When to look again where a bundle does not say so (F-6).
const REFRESH_DEFAULT: Duration = Duration::from_secs(300);

/// Nobody is asked more often.
const REFRESH_MIN: Duration = Duration::from_secs(5);

/// An authority that is taken out is believed no longer than this.
const REFRESH_MAX: Duration = Duration::from_secs(24 * 3600);

/// Refreshes in a row that fail before it is said.
const MISSED_MAX: u32 = 3;

/// That a foreign trust domain is federated with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Federated {
    /// Where its bundle is fetched; none where people exchange it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) endpoint: Option<Endpoint>,
    /// Unix seconds.
    pub(crate) since: u64,
}

/// A bundle endpoint: address and profile are said, and never guessed (F-2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Endpoint {
    pub(crate) url: BundleUrl,
    pub(crate) profile: Profile,
    /// Addresses that are dialled although they are not in the open.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) allowed: Vec<Network>,
}

/// By what an endpoint is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Profile {
    /// By its name, for which authorities of the web vouch.
    HttpsWeb,
    /// By this SPIFFE ID, for which the newest bundle of that trust domain vouches.
    HttpsSpiffe(SpiffeId),
}

/// A foreign bundle that is believed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ForeignBundle {
    /// PEM; empty for none.
    pub(crate) certificates: String,
    /// A JWK Set.
    pub(crate) jwks: String,
    pub(crate) sequence: u64,
    /// Seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) refresh_hint: Option<u64>,
    /// When it was last known to be the newest, Unix seconds.
    pub(crate) checked: u64,
    /// When its content came, Unix seconds.
    pub(crate) changed: u64,
    /// Somebody gave it.
    #[serde(default)]
    pub(crate) by_hand: bool,
    /// Nobody is given it any more: it could not be refreshed for too long.
    #[serde(default)]
    pub(crate) withdrawn: bool,
}

impl Record for Federated {
    /// Their names are trust domains.
    const PREFIX: &'static str = "federation/with/";
    const COUNTED: bool = true;
}

impl Record for ForeignBundle {
    /// Likewise.
    const PREFIX: &'static str = "federation/bundle/";
    const COUNTED: bool = true;
}

impl Record for FederationSet {
    /// Their names are words of operators.
    const PREFIX: &'static str = "federation/set/";
    const COUNTED: bool = true;
}

// === impl Profile ===

impl Profile {
    pub(crate) fn as_str(&self) -> &'static str {
        match self {
            Self::HttpsWeb => "https_web",
            Self::HttpsSpiffe(_) => "https_spiffe",
        }
    }

    pub(crate) fn spiffe_id(&self) -> Option<&SpiffeId> {
        match self {
            Self::HttpsWeb => None,
            Self::HttpsSpiffe(id) => Some(id),
        }
    }
}

// === impl ForeignBundle ===

impl ForeignBundle {
    /// Of a document that came at `now`, Unix seconds.
    pub(crate) fn new(document: &BundleDocument, now: u64, by_hand: bool) -> Self {
        Self {
            certificates: document.bundle.to_pem(),
            jwks: document.bundle.jwt().to_jwks(),
            sequence: document.bundle.sequence(),
            refresh_hint: document.refresh_hint.map(|hint| hint.as_secs()),
            checked: now,
            changed: now,
            by_hand,
            withdrawn: false,
        }
    }

    /// Whether those who are given it are given the same.
    pub(crate) fn has_same_content(&self, other: &Self) -> bool {
        (&self.certificates, &self.jwks, self.sequence, self.withdrawn)
            == (&other.certificates, &other.jwks, other.sequence, other.withdrawn)
    }

    /// Whether it vouches for the same, whatever its number is.
    pub(crate) fn has_same_keys(&self, other: &Self) -> bool {
        (&self.certificates, &self.jwks) == (&other.certificates, &other.jwks)
    }

    /// The bundle, under the name of its record.
    pub(crate) fn bundle(&self, name: &str) -> Result<TrustBundle, BadRecord> {
        let malformed = |reason: String| BadRecord::Malformed {
            key: record::key::<Self>(name),
            reason,
        };
        let domain = TrustDomain::parse(name).map_err(|error| malformed(error.to_string()))?;
        let bundle = match self.certificates.is_empty() {
            true => TrustBundle::new(domain, Vec::new(), self.sequence),
            false => TrustBundle::from_pem(domain, &self.certificates, self.sequence),
        };
        let bundle = bundle.map_err(|error: InvalidBundle| malformed(error.to_string()))?;
        let jwt = JwtAuthorities::from_jwks(self.jwks.as_bytes()).map_err(|error| malformed(error.to_string()))?;
        Ok(bundle.with_jwt(jwt))
    }

    /// How often to look, within bounds (F-6).
    pub(crate) fn refresh(&self) -> Duration {
        let hint = self.refresh_hint.map_or(REFRESH_DEFAULT, Duration::from_secs);
        hint.clamp(REFRESH_MIN, REFRESH_MAX)
    }

    /// How old it may be before that is said.
    pub(crate) fn stale_after(&self) -> Duration {
        self.refresh() * MISSED_MAX
    }
}

/// Before the first bundle came.
pub(crate) fn first_refresh() -> Duration {
    REFRESH_DEFAULT
}
