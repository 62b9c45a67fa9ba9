//! What a JWT-SVID of ours says (J-4, J-6 to J-8), before it is signed.

use std::time::{SystemTime, UNIX_EPOCH};

use data_encoding::BASE64URL_NOPAD;
use serde::Serialize;

use crate::jwt::jwk::JwtAlgorithm;
use crate::{Excerpt, SpiffeId};

/// The longest name of an audience, in bytes.
pub const AUDIENCE_BYTES_MAX: usize = 1024;
/// The most audiences of one token.
pub const AUDIENCES_MAX: usize = 32;

/// What a JWT-SVID is going to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JwtClaims {
    subject: SpiffeId,
    audience: Vec<String>,
    issued_at: SystemTime,
    expires_at: SystemTime,
    issuer: Option<String>,
}

/// Why nobody gets a token for these audiences.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidAudience {
    /// J-7: whoever is shown the token must be named in it.
    #[error("no audience is named; name who will be shown the token")]
    None,
    /// One without a name.
    #[error("an audience is empty; name who will be shown the token")]
    Empty,
    /// Longer than any name.
    #[error("the audience `{0}` is longer than 1024 bytes")]
    Long(Excerpt),
    /// More than one token is good for.
    #[error("{0} audiences are more than the 32 that a token may have")]
    TooMany(usize),
}

#[derive(Serialize)]
struct Header<'a> {
    alg: &'static str,
    kid: &'a str,
    typ: &'static str,
}

#[derive(Serialize)]
struct Body<'a> {
    aud: &'a [String],
    exp: u64,
    iat: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<&'a str>,
    sub: String,
}

// === impl JwtClaims ===

impl JwtClaims {
    /// For these audiences. A name that is there twice counts once. Fractions of seconds are cut off.
    ///
    /// # Errors
    /// The audiences are none, too many, or one has no proper name (J-7).
    pub fn new(
        subject: SpiffeId,
        audience: Vec<String>,
        issued_at: SystemTime,
        expires_at: SystemTime,
    ) -> Result<Self, InvalidAudience> {
        let mut named: Vec<String> = Vec::new();
        if audience.len() > AUDIENCES_MAX {
            return Err(InvalidAudience::TooMany(audience.len()));
        }
        for name in audience {
            if name.is_empty() {
                return Err(InvalidAudience::Empty);
            }
            if name.len() > AUDIENCE_BYTES_MAX {
                return Err(InvalidAudience::Long(Excerpt::of(&name)));
            }
            if !named.contains(&name) {
                named.push(name);
            }
        }
        if named.is_empty() {
            return Err(InvalidAudience::None);
        }
        Ok(Self {
            subject,
            audience: named,
            issued_at,
            expires_at,
            issuer: None,
        })
    }

    /// With the address at which an OpenID Connect verifier finds the keys.
    #[must_use]
    pub fn issued_by(self, issuer: String) -> Self {
        Self {
            issuer: Some(issuer),
            ..self
        }
    }

    /// The text whose signature makes a token of it (RFC 7515 §5.1): [`signed`](Self::signed) takes both.
    pub fn signing_input(&self, kid: &str, algorithm: JwtAlgorithm) -> String {
        let header = Header {
            alg: algorithm.as_str(),
            kid,
            typ: "JWT",
        };
        let body = Body {
            aud: &self.audience,
            exp: unix(self.expires_at),
            iat: unix(self.issued_at),
            iss: self.issuer.as_deref(),
            sub: self.subject.to_string(),
        };
        // Strings and numbers in structs: this cannot fail.
        let header = serde_json::to_vec(&header).unwrap_or_default();
        let body = serde_json::to_vec(&body).unwrap_or_default();
        format!("{}.{}", BASE64URL_NOPAD.encode(&header), BASE64URL_NOPAD.encode(&body))
    }

    /// The token of a signing input and its signature, which for ECDSA is both numbers in a row (RFC 7518 §3.4).
    pub fn signed(signing_input: &str, signature: &[u8]) -> String {
        format!("{signing_input}.{}", BASE64URL_NOPAD.encode(signature))
    }
}

fn unix(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
