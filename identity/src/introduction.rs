//! How a CA that was never seen is believed: by the fingerprint of its authority, and by nothing else.
//!
//! The handshake is one of its own, and nothing is sent in it. What comes of it is a [`TrustBundle`] with which the CA is
//! verified like any peer from then on.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, CommonState, DigitallySignedStruct, Error, OtherError, PeerIncompatible,
    SignatureScheme,
};

use crate::fingerprint::Fingerprint;
use crate::profile::{self, InvalidAuthority, InvalidSvid};
use crate::tls::{PROVIDER, protocols};
use crate::{BundleSet, InvalidBundle, PeerRejected, PeerRole, PeerVerifier, TrustBundle};

/// Why a server is not believed to be the CA of this fingerprint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotIntroduced {
    /// The last certificate that it shows is another one.
    #[error("its authority has the fingerprint `{shown}`, and not `{expected}`")]
    OtherAuthority {
        /// What was asked for.
        expected: Fingerprint,
        /// What it shows.
        shown: Fingerprint,
    },
    /// The certificate has that fingerprint, and may not vouch for others.
    #[error("the certificate of that fingerprint is no authority: {0}")]
    NotAnAuthority(#[from] InvalidAuthority),
    /// The certificate has that fingerprint, and is signed by another.
    #[error("the certificate of that fingerprint is not signed by itself, so it is not the highest authority")]
    NotSelfSigned,
    /// It says for no trust domain, or for several, that it is the authority.
    #[error("the certificate of that fingerprint names no trust domain: {0}")]
    NoTrustDomain(InvalidSvid),
    /// Path validation cannot use it.
    #[error(transparent)]
    Bundle(#[from] InvalidBundle),
    /// Its authority does not vouch for it, or it is somebody else than the CA.
    #[error(transparent)]
    Rejected(#[from] PeerRejected),
}

/// For a client that knows of a server nothing but its authority's fingerprint. It shows no certificate.
///
/// # Errors
/// Only if the cryptography library offers no TLS 1.3.
pub fn client_config(fingerprint: Fingerprint, alpn: &[&[u8]]) -> Result<Arc<ClientConfig>, Error> {
    let provider = PROVIDER.clone();
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])?
        .dangerous() // rustls' word for a verifier of one's own: `introduced`
        .with_custom_certificate_verifier(Arc::new(Introduction { fingerprint, provider }))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.enable_sni = false;
    config.alpn_protocols = protocols(alpn);
    Ok(Arc::new(config))
}

/// After the handshake: the bundle with which the CA was verified. Verifies again rather than trusting that the right
/// verifier was installed.
///
/// # Errors
/// Why the server is not believed.
pub fn introduced(
    fingerprint: Fingerprint,
    connection: &CommonState,
    now: SystemTime,
) -> Result<TrustBundle, NotIntroduced> {
    introduce(fingerprint, connection.peer_certificates().unwrap_or_default(), now)
}

/// The trust bundle of the authority with this fingerprint, if the chain is that of the CA in the trust domain which the
/// authority names: leaf first, then its authority, then older ones, each with what it signed of the one before it. So an
/// invitation of before a rotation is good for as long as its authority is.
///
/// # Errors
/// Why it is not.
pub fn introduce(
    fingerprint: Fingerprint,
    chain: &[CertificateDer<'_>],
    now: SystemTime,
) -> Result<TrustBundle, NotIntroduced> {
    let last = chain.last().ok_or(PeerRejected::NoCertificate)?;
    // For who is refused: the one that signs.
    let shown = chain.iter().find(|der| is_self_signed(der)).unwrap_or(last);
    let named = chain.iter().find(|der| Fingerprint::of(der) == fingerprint);
    let der = named.ok_or_else(|| NotIntroduced::OtherAuthority {
        expected: fingerprint,
        shown: Fingerprint::of(shown),
    })?;
    let authority = profile::authority(der)?;
    if !is_self_signed(der) {
        return Err(NotIntroduced::NotSelfSigned);
    }
    // A company's root names none: then the authority does that signed the CA's own certificate, and the root vouches for it.
    let trust_domain = profile::trust_domain(&authority).or_else(|none| {
        let below = chain.get(1).filter(|below| !is_self_signed(below));
        let below = below.and_then(|below| profile::authority(below).ok());
        below.map_or(Err(none), |below| profile::trust_domain(&below))
    });
    let trust_domain = trust_domain.map_err(NotIntroduced::NoTrustDomain)?;
    let ca = trust_domain.ca();
    // Version 0: whatever the CA says of itself later is newer.
    let bundle = TrustBundle::new(trust_domain, vec![der.clone().into_owned()], 0)?;
    // Another authority proves nothing by what it signed itself.
    let mut shown = chain.to_vec();
    shown.retain(|other| other == der || !is_self_signed(other));
    PeerVerifier::new(BundleSet::from_iter([bundle.clone()]))?
        .verify(&shown, PeerRole::Server, now)?
        .require(&ca)?;
    Ok(bundle)
}

fn is_self_signed(der: &CertificateDer<'_>) -> bool {
    profile::authority(der).is_ok_and(|authority| {
        authority.subject().as_raw() == authority.issuer().as_raw() && authority.verify_signature(None).is_ok()
    })
}

/// The reason inside a failed handshake's error, if that is what failed.
pub fn refusal(error: &Error) -> Option<NotIntroduced> {
    match error {
        Error::InvalidCertificate(CertificateError::Other(OtherError(reason))) => reason.downcast_ref().cloned(),
        _ => None,
    }
}

/// The server that a client was told of.
#[derive(Debug)]
struct Introduction {
    fingerprint: Fingerprint,
    provider: Arc<CryptoProvider>,
}

// === impl Introduction ===

impl ServerCertVerifier for Introduction {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chain = [std::slice::from_ref(end_entity), intermediates].concat();
        let now = UNIX_EPOCH + Duration::from_secs(now.as_secs());
        introduce(self.fingerprint, &chain, now)
            .map_err(|reason| Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(reason)))))?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests;
