//! Trust bundles on the wire, as a CA sends them.

use hoplite_identity::jwt::{InvalidJwtAuthorities, JwtAuthorities};
use hoplite_identity::{Fingerprint, InvalidBundle, KeyDigest, TrustBundle, TrustDomain};

use crate::ca;

/// Why it is none that is believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadTrustBundle {
    /// It is of another trust domain.
    #[error("a trust bundle of `{0}`")]
    OtherTrustDomain(String),
    /// It trusts nobody, not even who sent it.
    #[error("a trust bundle without authorities")]
    Empty,
    /// An authority cannot be used.
    #[error(transparent)]
    Authorities(#[from] InvalidBundle),
    /// A key for JWT-SVIDs cannot be used.
    #[error(transparent)]
    Jwt(#[from] InvalidJwtAuthorities),
}

/// A trust bundle; it must be of this trust domain, and trust somebody.
///
/// # Errors
/// What is wrong with it.
pub fn trust_bundle(message: ca::Bundle, trust_domain: &TrustDomain) -> Result<TrustBundle, BadTrustBundle> {
    if message.trust_domain != trust_domain.as_str() {
        let other = message.trust_domain.escape_default().to_string();
        return Err(BadTrustBundle::OtherTrustDomain(other));
    }
    if message.authorities.is_empty() {
        return Err(BadTrustBundle::Empty);
    }
    let digest = |bytes: Vec<u8>| <[u8; 32]>::try_from(bytes).ok();
    let tainted = message.tainted.into_iter().filter_map(digest).map(Fingerprint::from);
    let tainted_keys = message.tainted_keys.into_iter().filter_map(digest).map(KeyDigest::from);
    let revoked_keys = message.revoked_keys.into_iter().filter_map(digest).map(KeyDigest::from);
    let jwt = jwt_authorities(&message.jwks)?;
    let authorities = message.authorities.into_iter().map(Into::into).collect();
    let bundle = TrustBundle::new(trust_domain.clone(), authorities, message.sequence)?;
    Ok(bundle
        .with_tainted(tainted)
        .with_keys(tainted_keys, revoked_keys)
        .with_jwt(jwt))
}

/// The keys for JWT-SVIDs in a JWK Set; none when nothing was said of them.
///
/// # Errors
/// It is no JWK Set, or a key in it cannot be used.
pub fn jwt_authorities(jwks: &str) -> Result<JwtAuthorities, InvalidJwtAuthorities> {
    match jwks {
        "" => Ok(JwtAuthorities::default()),
        jwks => JwtAuthorities::from_jwks(jwks.as_bytes()),
    }
}
