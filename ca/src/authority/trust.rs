//! What the store holds of the trust bundle: its sequence number, and the certificate of each authority.

use std::collections::BTreeMap;

use data_encoding::HEXLOWER;
use hoplite_identity::{CertificateDer, InvalidBundle, TrustBundle, TrustDomain, pem};
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use crate::record::{self, BadRecord, Record};

/// The trust bundle, but for the certificates. There is one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Trust {
    pub(crate) trust_domain: TrustDomain,
    /// Grows with every change of the bundle (B-2).
    pub(crate) sequence: u64,
    /// The name of the authority that signs here.
    pub(crate) signing: String,
}

/// An authority that members of the trust domain are verified with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Trusted {
    /// PEM.
    certificate: String,
}

impl Record for Trust {
    const PREFIX: &'static str = "authority/x509";
    /// The first was the certificate itself, of the only authority.
    const FORMAT: u32 = 2;
}

impl Record for Trusted {
    /// Their names are the digests of the certificates.
    const PREFIX: &'static str = "authority/certificate/";
    const COUNTED: bool = true;
}

// === impl Trusted ===

impl Trusted {
    /// Only of what members can be verified with: nobody would have a bundle with anything else in it.
    pub(crate) fn new(
        trust_domain: &TrustDomain,
        certificate: &CertificateDer<'static>,
    ) -> Result<Self, InvalidBundle> {
        let alone = TrustBundle::new(trust_domain.clone(), vec![certificate.clone()], 0)?;
        Ok(Self {
            certificate: alone.to_pem(),
        })
    }

    /// SHA-256 of a certificate, in hex.
    pub(crate) fn name_of(certificate: &CertificateDer<'_>) -> String {
        HEXLOWER.encode(digest(&SHA256, certificate).as_ref())
    }

    /// The certificate of the record with this name.
    pub(crate) fn certificate(&self, name: &str) -> Result<CertificateDer<'static>, BadRecord> {
        pem::certificates(&self.certificate)
            .ok()
            .and_then(|mut certificates| certificates.pop())
            .filter(|certificate| Self::name_of(certificate) == name)
            .ok_or_else(|| BadRecord::Malformed {
                key: record::key::<Self>(name),
                reason: "its certificate is not the one of its name".to_owned(),
            })
    }
}

/// The trust bundle that the store's records make.
pub(crate) fn bundle(trust: &Trust, trusted: &BTreeMap<String, Trusted>) -> Result<TrustBundle, BadRecord> {
    let certificates = trusted.iter().map(|(name, trusted)| trusted.certificate(name));
    let certificates = certificates.collect::<Result<_, _>>()?;
    TrustBundle::new(trust.trust_domain.clone(), certificates, trust.sequence).map_err(|error| BadRecord::Malformed {
        key: record::key::<Trusted>(""),
        reason: error.to_string(),
    })
}
