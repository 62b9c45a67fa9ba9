//! The JWT authorities of one trust domain, by key id.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Excerpt;
use crate::jwt::jwk::{InvalidJwk, Jwk, JwtAlgorithm, JwtKey};

/// The longest key id, in bytes.
const KEY_ID_BYTES_MAX: usize = 256;
/// What a key of JWT-SVIDs says that it is for (B-4, J-11).
pub(crate) const JWT_SVID: &str = "jwt-svid";

/// The keys that vouch for the JWT-SVIDs of one trust domain, by key id. None is legal and trusts nobody (B-1).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JwtAuthorities(BTreeMap<String, JwtKey>);

/// Why these are no JWT authorities.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidJwtAuthorities {
    /// It is no JSON, or no JWK Set.
    #[error("it is no JWK Set: {0}")]
    Json(String),
    /// J-11: a key without an id.
    #[error("key {0} has no `kid`; a key for JWT-SVIDs has one of 1 to 256 bytes")]
    NoKeyId(usize),
    /// Two keys with one id: which of them a token means, nobody can say.
    #[error("two keys have the `kid` `{0}`")]
    Twice(Excerpt),
    /// A key that cannot be verified with.
    #[error("the key `{kid}`: {source}")]
    Key {
        /// Its id.
        kid: Excerpt,
        /// What is wrong with it.
        source: InvalidJwk,
    },
}

/// A JWK Set (RFC 7517 §5).
#[derive(Serialize, Deserialize)]
struct Set {
    keys: Vec<Jwk>,
}

// === impl JwtAuthorities ===

impl JwtAuthorities {
    /// These keys by these ids.
    ///
    /// # Errors
    /// An id is empty, too long, or there twice.
    pub fn new(keys: impl IntoIterator<Item = (String, JwtKey)>) -> Result<Self, InvalidJwtAuthorities> {
        let mut by_id = BTreeMap::new();
        for (position, (kid, key)) in keys.into_iter().enumerate() {
            if kid.is_empty() || kid.len() > KEY_ID_BYTES_MAX {
                return Err(InvalidJwtAuthorities::NoKeyId(position));
            }
            if by_id.contains_key(&kid) {
                return Err(InvalidJwtAuthorities::Twice(Excerpt::of(&kid)));
            }
            by_id.insert(kid, key);
        }
        Ok(Self(by_id))
    }

    /// From a JWK Set whose keys for JWT-SVIDs count, and no others (W-11).
    ///
    /// # Errors
    /// It is no JWK Set, or a key for JWT-SVIDs cannot be used.
    pub fn from_jwks(json: &[u8]) -> Result<Self, InvalidJwtAuthorities> {
        let set: Set = serde_json::from_slice(json).map_err(|error| InvalidJwtAuthorities::Json(error.to_string()))?;
        Self::of_jwks(&set.keys)
    }

    /// Of all those, the ones for JWT-SVIDs.
    pub(crate) fn of_jwks(jwks: &[Jwk]) -> Result<Self, InvalidJwtAuthorities> {
        let ours = jwks.iter().filter(|jwk| jwk.usage.as_deref() == Some(JWT_SVID));
        let keys = ours.enumerate().filter_map(|(position, jwk)| {
            let Some(kid) = jwk.kid.clone() else {
                return Some(Err(InvalidJwtAuthorities::NoKeyId(position)));
            };
            match JwtKey::try_from(jwk) {
                Ok(key) => Some(Ok((kid, key))),
                // B-4: a key of a kind that is not known is passed over, not the set.
                Err(InvalidJwk::KeyType | InvalidJwk::Curve | InvalidJwk::Missing("kty")) => None,
                Err(source) => Some(Err(InvalidJwtAuthorities::Key {
                    kid: Excerpt::of(&kid),
                    source,
                })),
            }
        });
        Self::new(keys.collect::<Result<Vec<_>, _>>()?)
    }

    /// With those of others whose ids are not taken and that are wanted.
    #[must_use]
    pub fn and(mut self, others: &Self, is_wanted: impl Fn(&str) -> bool) -> Self {
        for (kid, key) in others.0.iter().filter(|(kid, _)| is_wanted(kid)) {
            self.0.entry(kid.clone()).or_insert_with(|| key.clone());
        }
        self
    }

    /// As the JWK Set that the Workload API hands out (W-11).
    pub fn to_jwks(&self) -> String {
        let set = Set {
            keys: self.jwks().collect(),
        };
        // Strings in a struct: this cannot fail.
        serde_json::to_string(&set).unwrap_or_default()
    }

    /// As the JWK Set that an OpenID Connect verifier fetches: what the keys are for, and with which algorithm, is said in its
    /// words.
    pub fn to_oidc_jwks(&self) -> String {
        let keys = self.0.iter().map(|(kid, key)| Jwk {
            usage: Some("sig".to_owned()),
            kid: Some(kid.clone()),
            alg: Some(key.algorithm().as_str().to_owned()),
            ..Jwk::from(key)
        });
        serde_json::to_string_pretty(&Set { keys: keys.collect() }).unwrap_or_default()
    }

    /// The algorithm of each key's tokens.
    pub fn algorithms(&self) -> impl Iterator<Item = JwtAlgorithm> {
        self.0.values().map(JwtKey::algorithm)
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn jwks(&self) -> impl Iterator<Item = Jwk> {
        self.0.iter().map(|(kid, key)| Jwk {
            usage: Some(JWT_SVID.to_owned()),
            kid: Some(kid.clone()),
            ..Jwk::from(key)
        })
    }

    /// The key of this id.
    pub fn get(&self, kid: &str) -> Option<&JwtKey> {
        self.0.get(kid)
    }

    /// All ids, in order.
    pub fn key_ids(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}
