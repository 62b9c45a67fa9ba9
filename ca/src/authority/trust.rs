//! What the store holds of the trust bundle: its sequence number, and the certificate of each authority.

use std::collections::BTreeMap;

use data_encoding::HEXLOWER;
use hoplite_identity::{CertificateDer, Fingerprint, InvalidBundle, TrustBundle, TrustDomain, pem};
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use crate::authority::course::{Course, Life, State};
use crate::record::{self, BadRecord, Record};

/// The trust bundle, but for the certificates. There is one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Trust {
    pub(crate) trust_domain: TrustDomain,
    /// Grows with every change of the bundle (B-2).
    pub(crate) sequence: u64,
}

/// An authority of the trust domain, and how far it has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Trusted {
    /// PEM.
    certificate: String,
    pub(crate) life: Life,
    /// What it signed last: its successor's key, PEM. Whoever knows only this authority believes the successor by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    vouches: Option<String>,
}

impl Record for Trust {
    const PREFIX: &'static str = "authority/x509";
    /// The first was the certificate itself, of the only authority; the second named the one that signs.
    const FORMAT: u32 = 3;
}

impl Record for Trusted {
    /// Their names are the digests of the certificates.
    const PREFIX: &'static str = "authority/certificate/";
    /// The first had no course.
    const FORMAT: u32 = 2;
    const COUNTED: bool = true;
}

// === impl Trusted ===

impl Trusted {
    /// Only of what members can be verified with: nobody would have a bundle with anything else in it.
    pub(crate) fn new(
        trust_domain: &TrustDomain,
        certificate: &CertificateDer<'static>,
        life: Life,
    ) -> Result<Self, InvalidBundle> {
        let alone = TrustBundle::new(trust_domain.clone(), vec![certificate.clone()], 0)?;
        Ok(Self {
            certificate: alone.to_pem(),
            life,
            vouches: None,
        })
    }

    /// With a certificate of its successor's key, which it signed.
    pub(crate) fn vouching(self, successor: &CertificateDer<'_>) -> Self {
        let vouches = Some(pem::write_certificates(std::slice::from_ref(successor)));
        Self { vouches, ..self }
    }

    /// What it signed of its successor.
    pub(crate) fn vouches(&self) -> Option<CertificateDer<'static>> {
        pem::certificates(self.vouches.as_ref()?).ok()?.pop()
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

/// The course of these.
pub(crate) fn course(trusted: &BTreeMap<String, Trusted>) -> Course {
    Course(
        trusted
            .iter()
            .map(|(name, trusted)| (name.clone(), trusted.life))
            .collect(),
    )
}

/// The trust bundle that the store's records make.
pub(crate) fn bundle(trust: &Trust, trusted: &BTreeMap<String, Trusted>) -> Result<TrustBundle, BadRecord> {
    let counts = trusted.iter().filter(|(_, trusted)| trusted.life.state.is_trusted());
    let certificates = counts.map(|(name, trusted)| Ok((trusted.certificate(name)?, trusted.life.state)));
    let certificates: Vec<_> = certificates.collect::<Result<_, BadRecord>>()?;
    let tainted = certificates.iter().filter(|(_, state)| *state == State::Tainted);
    let tainted: Vec<_> = tainted.map(|(certificate, _)| Fingerprint::of(certificate)).collect();
    let certificates = certificates.into_iter().map(|(certificate, _)| certificate).collect();
    let bundle = TrustBundle::new(trust.trust_domain.clone(), certificates, trust.sequence);
    let bundle = bundle.map_err(|error| BadRecord::Malformed {
        key: record::key::<Trusted>(""),
        reason: error.to_string(),
    })?;
    Ok(bundle.with_tainted(tainted))
}
