//! A token, read and believed in one step: [`verify`] is the only way to a [`JwtSvid`].

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use data_encoding::BASE64URL_NOPAD;
use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value};

use crate::jwt::authority::JwtAuthorities;
use crate::jwt::jwk::JwtAlgorithm;
use crate::{InvalidSpiffeId, SpiffeId, TrustDomain};

/// The longest token that is looked at, in bytes.
pub const TOKEN_BYTES_MAX: usize = 16 * 1024;
/// How far another machine's clock may be ahead of ours.
pub(super) const LEEWAY: Duration = Duration::from_secs(60);
/// The last second that has four digits of a year. A later one is a mistake, or milliseconds.
const SECONDS_MAX: f64 = 253_402_300_799.0;

/// A JWT-SVID that was verified: its subject's own trust domain vouches for it, it is meant for the audience that was asked
/// for, and it has not ended.
#[derive(Debug, Clone, PartialEq)]
pub struct JwtSvid {
    spiffe_id: SpiffeId,
    audience: Vec<String>,
    expires_at: SystemTime,
    claims: Map<String, Value>,
}

/// Why a token is not believed. The token itself is in none of these: who has it could use it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JwtRejected {
    /// J-1: anything but the compact serialisation.
    #[error("it is not three parts of unpadded base64url with dots between them")]
    NotCompact,
    /// Longer than is looked at.
    #[error("it is longer than 16384 bytes")]
    TooLong,
    /// J-5: the header is not a JSON object of `alg`, `kid` and `typ`.
    #[error("its header is not a JSON object of `alg`, `kid` and `typ` alone")]
    Header,
    /// J-2: an algorithm that is not taken; `none` and `HS256` are among these.
    #[error("its algorithm is none of ES256, ES384, RS256 to RS512 and PS256 to PS512")]
    Algorithm,
    /// J-3: which key signed it.
    #[error("its header has no `kid`, so nobody can say which key signed it")]
    NoKeyId,
    /// J-4: another type of token.
    #[error("its `typ` is neither `JWT` nor `JOSE`")]
    Type,
    /// The claims are no JSON object, or one stands there twice.
    #[error("its claims are no JSON object in which each claim stands once")]
    Claims,
    /// A claim that it must have is missing or of another type.
    #[error("its claim `{0}` is missing or is not what the JWT-SVID standard says")]
    Claim(&'static str),
    /// J-6: the subject is no SPIFFE ID.
    #[error("its subject is no SPIFFE ID: {0}")]
    Subject(#[from] InvalidSpiffeId),
    /// J-6: the subject names a trust domain, not a workload.
    #[error("its subject `{0}` has no path, so it names no workload")]
    TrustDomainId(SpiffeId),
    /// J-9: nobody is known who could vouch for the subject.
    #[error("there is no trust bundle of `{0}`, its subject's trust domain")]
    NoBundle(TrustDomain),
    /// J-9: the key is not one of the subject's own trust domain.
    #[error("the trust bundle of `{0}` has no key of its `kid`")]
    NoSuchKey(TrustDomain),
    /// J-2: the algorithm comes from the key, and the header says another.
    #[error("its algorithm is not one of the key that its `kid` names")]
    OtherAlgorithm,
    /// Somebody else signed it, or it was changed.
    #[error("its signature is not one by the key that its `kid` names")]
    Signature,
    /// J-8: it has ended.
    #[error("it ended at {}; it is {} now", .ended, .now)]
    Expired {
        /// When, as people read it.
        ended: String,
        /// Our clock.
        now: String,
    },
    /// J-8: it has not begun.
    #[error("it counts from {} on; it is {} now", .begins, .now)]
    NotYet {
        /// When, as people read it.
        begins: String,
        /// Our clock.
        now: String,
    },
    /// J-7: it is meant for somebody else.
    #[error("it is not meant for the audience `{0}`")]
    Audience(String),
}

/// J-5: nothing else may stand in a header.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    alg: String,
    kid: Option<String>,
    typ: Option<String>,
}

/// A JSON object in which no name stands twice: which of the two counts, readers disagree.
pub(super) struct Object(pub(super) Map<String, Value>);

// === impl JwtSvid ===

impl JwtSvid {
    /// Whose it is.
    pub fn spiffe_id(&self) -> &SpiffeId {
        &self.spiffe_id
    }

    /// For whom it is meant.
    pub fn audience(&self) -> &[String] {
        &self.audience
    }

    /// When it ends.
    pub fn expires_at(&self) -> SystemTime {
        self.expires_at
    }

    /// All that it says.
    pub fn claims(&self) -> &Map<String, Value> {
        &self.claims
    }
}

/// Believes a token, if its subject's own trust domain vouches for it and it is meant for `audience` and has not ended.
/// `authorities` gives those of one trust domain, and never of several.
///
/// A clock may be behind the one of who signed it by a minute; the end is the end.
///
/// # Errors
/// The first rule of J-1 to J-9 that it breaks.
pub fn verify<'a>(
    token: &str,
    audience: &str,
    authorities: impl FnOnce(&TrustDomain) -> Option<&'a JwtAuthorities>,
    now: SystemTime,
) -> Result<JwtSvid, JwtRejected> {
    if token.len() > TOKEN_BYTES_MAX {
        return Err(JwtRejected::TooLong);
    }
    let (signed, signature) = token.rsplit_once('.').ok_or(JwtRejected::NotCompact)?;
    let (header, claims) = signed.split_once('.').ok_or(JwtRejected::NotCompact)?;
    let (header, claims, signature) = (part(header)?, part(claims)?, part(signature)?);

    let header: Header = serde_json::from_slice(&header).map_err(|_| JwtRejected::Header)?;
    let algorithm = JwtAlgorithm::parse(&header.alg).ok_or(JwtRejected::Algorithm)?;
    if header.typ.is_some_and(|typ| typ != "JWT" && typ != "JOSE") {
        return Err(JwtRejected::Type);
    }
    let kid = header.kid.filter(|kid| !kid.is_empty()).ok_or(JwtRejected::NoKeyId)?;

    let Object(claims) = serde_json::from_slice(&claims).map_err(|_| JwtRejected::Claims)?;
    let subject = claims.get("sub").and_then(Value::as_str);
    let spiffe_id = SpiffeId::parse(subject.ok_or(JwtRejected::Claim("sub"))?)?;
    if spiffe_id.is_trust_domain() {
        return Err(JwtRejected::TrustDomainId(spiffe_id));
    }
    // Nothing else of it is believed before its signature is.
    let domain = spiffe_id.trust_domain();
    let authorities = authorities(domain).ok_or_else(|| JwtRejected::NoBundle(domain.clone()))?;
    let key = authorities
        .get(&kid)
        .ok_or_else(|| JwtRejected::NoSuchKey(domain.clone()))?;
    if !key.suits(algorithm) {
        return Err(JwtRejected::OtherAlgorithm);
    }
    if !key.verifies(algorithm, signed.as_bytes(), &signature) {
        return Err(JwtRejected::Signature);
    }

    let expires_at = time(&claims, "exp")?.ok_or(JwtRejected::Claim("exp"))?;
    let not_before = time(&claims, "nbf")?;
    let issued_at = time(&claims, "iat")?;
    let meant_for = audiences(&claims).ok_or(JwtRejected::Claim("aud"))?;
    if expires_at <= now {
        return Err(JwtRejected::Expired {
            ended: shown(expires_at),
            now: shown(now),
        });
    }
    // A token from the future is not of a clock that can be believed.
    let begins = not_before.max(issued_at);
    if let Some(begins) = begins.filter(|begins| now + LEEWAY < *begins) {
        return Err(JwtRejected::NotYet {
            begins: shown(begins),
            now: shown(now),
        });
    }
    if !meant_for.iter().any(|name| name == audience) {
        return Err(JwtRejected::Audience(audience.escape_debug().take(80).collect()));
    }
    Ok(JwtSvid {
        spiffe_id,
        audience: meant_for,
        expires_at,
        claims,
    })
}

/// The id of the key that a token says has signed it. Nothing of it is believed by that.
pub fn key_id(token: &str) -> Option<String> {
    let (header, _) = token.split_once('.')?;
    let header: Header = serde_json::from_slice(&part(header).ok()?).ok()?;
    header.kid
}

pub(super) fn part(text: &str) -> Result<Vec<u8>, JwtRejected> {
    if text.is_empty() {
        return Err(JwtRejected::NotCompact);
    }
    BASE64URL_NOPAD
        .decode(text.as_bytes())
        .map_err(|_| JwtRejected::NotCompact)
}

/// A claim that is a time, if it is there (RFC 7519 §2, `NumericDate`).
pub(super) fn time(claims: &Map<String, Value>, name: &'static str) -> Result<Option<SystemTime>, JwtRejected> {
    let Some(value) = claims.get(name) else {
        return Ok(None);
    };
    let seconds = value.as_f64().filter(|seconds| (0.0..=SECONDS_MAX).contains(seconds));
    let seconds = seconds.ok_or(JwtRejected::Claim(name))?;
    Ok(Some(UNIX_EPOCH + Duration::from_secs_f64(seconds.floor())))
}

/// J-7: a string, or a list of strings that is not empty.
pub(super) fn audiences(claims: &Map<String, Value>) -> Option<Vec<String>> {
    let named = match claims.get("aud")? {
        Value::String(one) => vec![one.clone()],
        Value::Array(several) => {
            let names = several.iter().map(|name| name.as_str().map(str::to_owned));
            names.collect::<Option<_>>()?
        }
        _ => return None,
    };
    Some(named).filter(|named| !named.is_empty() && named.iter().all(|name| !name.is_empty()))
}

pub(super) fn shown(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

// === impl Object ===

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Once;

        impl<'de> Visitor<'de> for Once {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Object, A::Error> {
                let mut members = Map::new();
                while let Some((name, value)) = access.next_entry::<String, Value>()? {
                    if members.insert(name, value).is_some() {
                        return Err(de::Error::custom("a name stands there twice"));
                    }
                }
                Ok(Object(members))
            }
        }

        deserializer.deserialize_map(Once)
    }
}

#[cfg(test)]
mod tests;
