//! What is written of authorities: the first one, and another beside it.

use hoplite_identity::{CertificateDer, InvalidBundle, TrustDomain};

use crate::authority::trust::{Trust, Trusted};
use crate::write::{Changes, ReadError, View, Write};

/// Notes the first authority of a trust domain.
pub(crate) struct Found {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) certificate: CertificateDer<'static>,
}

/// Why an authority was not noted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TrustError {
    /// Another process founded one.
    #[error("there is an authority already; stop the other CA that uses this data directory")]
    Founded,
    /// Members could not be verified with it.
    #[error(transparent)]
    Certificate(#[from] InvalidBundle),
    /// Nothing it could stand beside.
    #[cfg(any(test, feature = "testing"))]
    #[error("there is no authority yet; start the CA first")]
    NotFounded,
    /// More would slow each handshake down.
    #[cfg(any(test, feature = "testing"))]
    #[error("there are {AUTHORITIES_MAX} authorities already; take one away first")]
    TooMany,
}

// === impl Found ===

impl Write for Found {
    type Reads = Option<Trust>;
    type Answer = ();
    type Error = TrustError;

    fn read(&self, view: &mut View<'_>) -> Result<Self::Reads, ReadError> {
        view.one("")
    }

    fn decide(&self, trust: Self::Reads) -> Result<(Changes, ()), TrustError> {
        if trust.is_some() {
            return Err(TrustError::Founded);
        }
        let name = Trusted::name_of(&self.certificate);
        let trust = Trust {
            trust_domain: self.trust_domain.clone(),
            sequence: 1,
            signing: name.clone(),
        };
        let trusted = Trusted::new(&self.trust_domain, &self.certificate)?;
        Ok((Changes::none().put("", &trust).put(&name, &trusted), ()))
    }
}

/// Each is tried with every handshake of every workload.
#[cfg(any(test, feature = "testing"))]
pub(crate) const AUTHORITIES_MAX: usize = 16;

/// Has members of the trust domain verified with one more authority, which does not sign here. Answers with the trust
/// bundle's sequence number.
#[cfg(any(test, feature = "testing"))]
pub(crate) struct Trusting {
    pub(crate) certificate: CertificateDer<'static>,
}

// === impl Trusting ===

#[cfg(any(test, feature = "testing"))]
impl Write for Trusting {
    type Reads = (Option<Trust>, std::collections::BTreeMap<String, Trusted>);
    type Answer = u64;
    type Error = TrustError;

    fn read(&self, view: &mut View<'_>) -> Result<Self::Reads, ReadError> {
        Ok((view.one("")?, view.all()?))
    }

    fn decide(&self, (trust, trusted): Self::Reads) -> Result<(Changes, u64), TrustError> {
        let trust = trust.ok_or(TrustError::NotFounded)?;
        let name = Trusted::name_of(&self.certificate);
        if trusted.contains_key(&name) {
            return Ok((Changes::none(), trust.sequence));
        }
        if trusted.len() >= AUTHORITIES_MAX {
            return Err(TrustError::TooMany);
        }
        let sequence = trust.sequence + 1;
        let trusted = Trusted::new(&trust.trust_domain, &self.certificate)?;
        let trust = Trust { sequence, ..trust };
        Ok((Changes::none().put("", &trust).put(&name, &trusted), sequence))
    }
}
