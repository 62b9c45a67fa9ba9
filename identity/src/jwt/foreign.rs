//! Tokens of other issuers, by which nodes prove who they are: believed in one step by [`verify_foreign`]. They are no
//! JWT-SVIDs: their subject is no SPIFFE ID, and what it means is for whoever configured the issuer to say.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::jwt::jwk::{InvalidJwk, Jwk, JwtAlgorithm, JwtKey};
use crate::jwt::token::{LEEWAY, Object, TOKEN_BYTES_MAX, audiences, part, shown, time};

/// Keys of one issuer. Real ones have two or three.
const KEYS_MAX: usize = 64;

/// The longest key id, in bytes.
const KEY_ID_BYTES_MAX: usize = 256;

/// The keys of an issuer that is not SPIFFE, by key id, and the algorithm of each where the issuer says one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ForeignKeys(BTreeMap<String, (JwtKey, Option<JwtAlgorithm>)>);

/// What a token must be to count.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    /// Its `iss`, letter by letter.
    pub issuer: &'a str,
    /// One of its `aud`.
    pub audience: &'a str,
    /// How long after it was made, or after now where it does not say when that was, it may end at the latest.
    pub longest: Duration,
}

/// A token of another issuer that was verified.
#[derive(Debug, Clone, PartialEq)]
pub struct ForeignToken {
    subject: String,
    expires_at: SystemTime,
    claims: Map<String, Value>,
    signed: String,
}

/// Why a JWK Set cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidForeignKeys {
    /// It is no JSON, or no JWK Set.
    #[error("it is no JWK Set: {0}")]
    Json(String),
    /// None of its keys verifies tokens here.
    #[error("it has no key for signatures with a `kid`, of type RSA or EC")]
    Empty,
    /// More keys than an issuer has.
    #[error("it has more than {KEYS_MAX} keys")]
    TooMany,
    /// Two keys with one id: which of them a token means, nobody can say.
    #[error("two of its keys have one `kid`")]
    Twice,
    /// A key that cannot be verified with.
    #[error("one of its keys cannot be used: {0}")]
    Key(#[from] InvalidJwk),
}

/// Why a token is not believed. The token itself is in none of these.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ForeignRejected {
    /// Anything but the compact serialisation.
    #[error("it is not three parts of unpadded base64url with dots between them")]
    NotCompact,
    /// Longer than is looked at.
    #[error("it is longer than 16384 bytes")]
    TooLong,
    /// The header is not JSON, demands what is not understood here, or is of another type of token.
    #[error("its header is no JSON object of a JWT that can be understood here")]
    Header,
    /// `none` and `HS256` are among these.
    #[error("its algorithm is none of ES256, ES384, RS256 to RS512 and PS256 to PS512")]
    Algorithm,
    /// Which key signed it, nobody can say.
    #[error("its header has no `kid`")]
    NoKeyId,
    /// The issuer's keys, as they are known here, have none of this id.
    #[error("its issuer has no key of its `kid`")]
    NoSuchKey,
    /// The algorithm comes from the key, and the header says another.
    #[error("its algorithm is not the one of the key that its `kid` names")]
    OtherAlgorithm,
    /// Somebody else signed it, or it was changed.
    #[error("its signature is not one by the key that its `kid` names")]
    Signature,
    /// The claims are no JSON object, or one stands there twice.
    #[error("its claims are no JSON object in which each claim stands once")]
    Claims,
    /// A claim that it must have is missing or of another type.
    #[error("its claim `{0}` is missing or of another type")]
    Claim(&'static str),
    /// Another issuer's.
    #[error("its issuer is `{0}`")]
    Issuer(String),
    /// It is meant for somebody else.
    #[error("it is not meant for this audience, but for `{0}`")]
    Audience(String),
    /// It has ended.
    #[error("it ended at {ended}; it is {now} now")]
    Expired {
        /// When, as people read it.
        ended: String,
        /// Our clock.
        now: String,
    },
    /// It has not begun.
    #[error("it counts from {begins} on; it is {now} now")]
    NotYet {
        /// When, as people read it.
        begins: String,
        /// Our clock.
        now: String,
    },
    /// Whoever has it would be that node for too long.
    #[error("it lives until {ends}, longer than tokens of nodes may")]
    TooLongLived {
        /// When it ends, as people read it.
        ends: String,
    },
}

/// Members that are not known are passed over, but for `crit` (RFC 7515 §4.1.11).
#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    typ: Option<String>,
    crit: Option<Value>,
}

/// A JWK Set (RFC 7517 §5).
#[derive(Deserialize)]
struct Set {
    keys: Vec<Jwk>,
}

// === impl ForeignKeys ===

impl ForeignKeys {
    /// From a JWK Set as issuers publish it. Keys that are not for signatures, that have no id or that are of a type that is
    /// not verified with here are passed over (RFC 7517 §5).
    ///
    /// # Errors
    /// It is no JWK Set, none of its keys is left, or one is damaged.
    pub fn from_jwks(json: &[u8]) -> Result<Self, InvalidForeignKeys> {
        let set: Set = serde_json::from_slice(json).map_err(|error| InvalidForeignKeys::Json(error.to_string()))?;
        if set.keys.len() > KEYS_MAX {
            return Err(InvalidForeignKeys::TooMany);
        }
        let mut keys = BTreeMap::new();
        for jwk in &set.keys {
            let is_for_signatures = jwk.usage.as_deref().is_none_or(|usage| usage == "sig");
            let Some(kid) = jwk
                .kid
                .as_ref()
                .filter(|kid| (1..=KEY_ID_BYTES_MAX).contains(&kid.len()))
            else {
                continue;
            };
            // A key whose algorithm is not one of ours verifies nothing here.
            let algorithm = jwk.alg.as_deref().map(JwtAlgorithm::parse);
            if !is_for_signatures || algorithm == Some(None) {
                continue;
            }
            let key = match JwtKey::try_from(jwk) {
                Err(InvalidJwk::KeyType | InvalidJwk::Curve) => continue,
                key => key?,
            };
            let algorithm = algorithm.flatten();
            if algorithm.is_some_and(|algorithm| !key.suits(algorithm)) {
                continue;
            }
            if keys.insert(kid.clone(), (key, algorithm)).is_some() {
                return Err(InvalidForeignKeys::Twice);
            }
        }
        match keys.is_empty() {
            true => Err(InvalidForeignKeys::Empty),
            false => Ok(Self(keys)),
        }
    }

    /// All ids, in order.
    pub fn key_ids(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

// === impl ForeignToken ===

impl ForeignToken {
    /// Its `sub`.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// When it ends.
    pub fn expires_at(&self) -> SystemTime {
        self.expires_at
    }

    /// All that it says.
    pub fn claims(&self) -> &Map<String, Value> {
        &self.claims
    }

    /// What was signed: header and claims, without the signature. Of one signed text there can be several signatures, so it
    /// is by this that a token is known again.
    pub fn signed(&self) -> &str {
        &self.signed
    }
}

/// Believes a token of another issuer, by the issuer's keys. A clock may be behind the one of who signed it by a minute; the end is
/// the end.
///
/// # Errors
/// The first rule that it breaks. [`ForeignRejected::NoSuchKey`] says that newer keys might help.
pub fn verify_foreign(
    token: &str,
    expected: Expected<'_>,
    keys: &ForeignKeys,
    now: SystemTime,
) -> Result<ForeignToken, ForeignRejected> {
    if token.len() > TOKEN_BYTES_MAX {
        return Err(ForeignRejected::TooLong);
    }
    let not_compact = |_| ForeignRejected::NotCompact;
    let (signed, signature) = token.rsplit_once('.').ok_or(ForeignRejected::NotCompact)?;
    let (header, claims) = signed.split_once('.').ok_or(ForeignRejected::NotCompact)?;
    let header = part(header).map_err(not_compact)?;
    let (claims, signature) = (
        part(claims).map_err(not_compact)?,
        part(signature).map_err(not_compact)?,
    );

    let header: Header = serde_json::from_slice(&header).map_err(|_| ForeignRejected::Header)?;
    let is_jwt = |typ: &str| typ.eq_ignore_ascii_case("JWT") || typ.eq_ignore_ascii_case("JOSE");
    if header.crit.is_some() || header.typ.as_deref().is_some_and(|typ| !is_jwt(typ)) {
        return Err(ForeignRejected::Header);
    }
    let algorithm = JwtAlgorithm::parse(&header.alg).ok_or(ForeignRejected::Algorithm)?;
    let kid = header
        .kid
        .filter(|kid| !kid.is_empty())
        .ok_or(ForeignRejected::NoKeyId)?;
    let (key, of_key) = keys.0.get(&kid).ok_or(ForeignRejected::NoSuchKey)?;
    if !key.suits(algorithm) || of_key.is_some_and(|of_key| of_key != algorithm) {
        return Err(ForeignRejected::OtherAlgorithm);
    }
    if !key.verifies(algorithm, signed.as_bytes(), &signature) {
        return Err(ForeignRejected::Signature);
    }

    // From here on it is the issuer's word.
    let Object(claims) = serde_json::from_slice(&claims).map_err(|_| ForeignRejected::Claims)?;
    let text = |name| claims.get(name).and_then(Value::as_str);
    let issuer = text("iss").ok_or(ForeignRejected::Claim("iss"))?;
    if issuer != expected.issuer {
        return Err(ForeignRejected::Issuer(excerpt(issuer)));
    }
    let meant_for = audiences(&claims).ok_or(ForeignRejected::Claim("aud"))?;
    if !meant_for.iter().any(|name| name == expected.audience) {
        return Err(ForeignRejected::Audience(excerpt(&meant_for.join(", "))));
    }
    let moment = |name| time(&claims, name).map_err(|_| ForeignRejected::Claim(name));
    let expires_at = moment("exp")?.ok_or(ForeignRejected::Claim("exp"))?;
    let (not_before, issued_at) = (moment("nbf")?, moment("iat")?);
    if expires_at <= now {
        return Err(ForeignRejected::Expired {
            ended: shown(expires_at),
            now: shown(now),
        });
    }
    if let Some(begins) = not_before.max(issued_at).filter(|begins| now + LEEWAY < *begins) {
        return Err(ForeignRejected::NotYet {
            begins: shown(begins),
            now: shown(now),
        });
    }
    if issued_at.unwrap_or(now) + expected.longest < expires_at {
        return Err(ForeignRejected::TooLongLived {
            ends: shown(expires_at),
        });
    }
    let subject = text("sub").filter(|subject| !subject.is_empty());
    let subject = subject.ok_or(ForeignRejected::Claim("sub"))?.to_owned();
    Ok(ForeignToken {
        subject,
        expires_at,
        claims,
        signed: signed.to_owned(),
    })
}

fn excerpt(text: &str) -> String {
    text.escape_debug().take(120).collect()
}

#[cfg(test)]
mod tests;
