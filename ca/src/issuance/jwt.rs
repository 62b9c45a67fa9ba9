//! JWT-SVIDs: every claim but the audience is the entry's.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use hoplite_identity::SpiffeId;
use hoplite_identity::jwt::{InvalidAudience, JwtClaims};
use hoplite_seal::Hash;
use zeroize::Zeroizing;

use crate::acts::written::Settled;
use crate::authority::jwt::JwtSigner;
use crate::record;

/// What signs JWT-SVIDs, and who it says has issued them. Clones are the same one.
#[derive(Debug, Clone, Default)]
pub(crate) struct JwtSigning {
    signer: Arc<RwLock<Option<Arc<JwtSigner>>>>,
    /// The address of OpenID Connect discovery, if there is one.
    issuer: Option<Arc<str>>,
}

/// A token, and what the log says of it. The token itself is in no message and no `Debug`.
pub(crate) struct MintedJwt {
    token: Zeroizing<String>,
    pub(crate) kid: String,
    pub(crate) issued_at: SystemTime,
    pub(crate) expires_at: SystemTime,
}

// === impl MintedJwt ===

impl MintedJwt {
    /// SHA-256 of the token, hex: who has the token finds its record by it, and nobody the token by the record.
    pub(crate) fn digest(&self) -> String {
        Hash::of(self.token.as_bytes()).to_string()
    }

    /// The token, once its record is on the disk.
    pub(crate) fn leaves(self, _recorded: &Settled) -> Zeroizing<String> {
        self.token
    }
}

/// Why there is no token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum JwtMintError {
    /// Nobody it could be meant for.
    #[error(transparent)]
    Audience(#[from] InvalidAudience),
    /// No key signs now.
    #[error("no key for JWT-SVIDs signs now; the CA's log says why")]
    NoKey,
    /// The key cannot be used.
    #[error("the key for JWT-SVIDs cannot sign")]
    Unsigned,
}

// === impl JwtSigning ===

impl JwtSigning {
    /// Signs with this key; the tokens name this issuer.
    pub(crate) fn new(signer: JwtSigner, issuer: Option<&str>) -> Self {
        Self {
            signer: Arc::new(RwLock::new(Some(Arc::new(signer)))),
            issuer: issuer.map(Into::into),
        }
    }

    /// The key id of what signs now.
    pub(crate) fn kid(&self) -> Option<String> {
        Some(self.signer()?.kid().to_owned())
    }

    /// This signs from now on.
    pub(crate) fn sign_with(&self, signer: JwtSigner) {
        *self.signer.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(signer));
    }

    fn signer(&self) -> Option<Arc<JwtSigner>> {
        self.signer.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A token for a workload. However long it is to live, never longer than the key that signs it.
    pub(crate) fn mint(
        &self,
        spiffe_id: &SpiffeId,
        ttl: Duration,
        audience: &[String],
        now: SystemTime,
    ) -> Result<MintedJwt, JwtMintError> {
        let signer = self.signer().ok_or(JwtMintError::NoKey)?;
        // Whole seconds, as the token has them: what is reported is what it says.
        let now = record::from_unix_seconds(record::unix_seconds(now));
        let expires_at = (now + ttl).min(signer.not_after());
        if expires_at <= now {
            return Err(JwtMintError::NoKey);
        }
        let claims = JwtClaims::new(spiffe_id.clone(), audience.to_vec(), now, expires_at)?;
        let claims = match &self.issuer {
            Some(issuer) => claims.issued_by(issuer.to_string()),
            None => claims,
        };
        let input = Zeroizing::new(claims.signing_input(signer.kid(), signer.algorithm()));
        let signature = signer.sign(input.as_bytes()).ok_or(JwtMintError::Unsigned)?;
        Ok(MintedJwt {
            token: Zeroizing::new(JwtClaims::signed(&input, &signature)),
            kid: signer.kid().to_owned(),
            issued_at: now,
            expires_at,
        })
    }
}
