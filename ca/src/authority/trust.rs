//! What the store holds of the trust bundle: its sequence number, and the certificate of each authority.

use std::collections::BTreeMap;

use data_encoding::HEXLOWER;
use hoplite_identity::{CertificateDer, Fingerprint, InvalidBundle, KeyDigest, TrustBundle, TrustDomain, pem};
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use crate::authority::course::{Life, Name, State};
use crate::authority::taking::{Taking, TrustError, Word};
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
    /// Its key, sealed, while it signs or will; none when that lies elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sealed: Option<String>,
    /// PEM, the next one first: the authorities between it and `roots`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    above: Option<String>,
    /// PEM: the authorities of others under which it is. They are in the trust bundle in its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    roots: Option<String>,
}

/// An authority's certificate, and what connects it to those that members trust.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Certified {
    pub(crate) certificate: CertificateDer<'static>,
    /// The next one first, without the roots. Empty of one that is signed by itself, or directly by a root.
    pub(crate) above: Vec<CertificateDer<'static>>,
    /// Empty of one that is signed by itself: it is the root.
    pub(crate) roots: Vec<CertificateDer<'static>>,
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
            sealed: None,
            above: None,
            roots: None,
        })
    }

    /// What is under others says so, and whom members trust for it.
    fn under(self, trust_domain: &TrustDomain, made: &Certified) -> Result<Self, InvalidBundle> {
        if made.roots.is_empty() {
            return Ok(self);
        }
        let pem = |certificates: &Vec<_>| Ok(TrustBundle::new(trust_domain.clone(), certificates.clone(), 0)?.to_pem());
        Ok(Self {
            above: Some(pem(&made.above)?),
            roots: Some(pem(&made.roots)?),
            ..self
        })
    }

    /// Its key, sealed.
    pub(crate) fn sealed(&self) -> Option<&str> {
        self.sealed.as_deref()
    }

    /// All that is known of its certificate.
    pub(crate) fn certified(&self, name: &str) -> Result<Certified, BadRecord> {
        let list = |text: &Option<String>| match text.as_deref() {
            None | Some("") => Ok(Vec::new()),
            Some(text) => pem::certificates(text).map_err(|error| BadRecord::Malformed {
                key: record::key::<Self>(name),
                reason: error.to_string(),
            }),
        };
        Ok(Certified {
            certificate: self.certificate(name)?,
            above: list(&self.above)?,
            roots: list(&self.roots)?,
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

// === impl Certified ===

impl Certified {
    /// One that is signed by itself.
    pub(crate) fn itself(certificate: CertificateDer<'static>) -> Self {
        Self {
            certificate,
            above: Vec::new(),
            roots: Vec::new(),
        }
    }

    /// Whether it is under an authority of others.
    pub(crate) fn is_under(&self) -> bool {
        !self.roots.is_empty()
    }

    /// What stands between a leaf and those whom members trust.
    pub(crate) fn below_the_root(&self) -> Vec<CertificateDer<'static>> {
        match self.is_under() {
            true => std::iter::once(&self.certificate).chain(&self.above).cloned().collect(),
            false => Vec::new(),
        }
    }
}

impl Taking for Trusted {
    type Made = Certified;

    fn name(made: &Certified) -> Name {
        Self::name_of(&made.certificate)
    }

    fn new_one(
        trust_domain: &TrustDomain,
        made: &Certified,
        life: Life,
        sealed: Option<String>,
    ) -> Result<Self, TrustError> {
        let one = Self::new(trust_domain, &made.certificate, life)?.under(trust_domain, made)?;
        Ok(Self { sealed, ..one })
    }

    fn life(&self) -> Life {
        self.life
    }

    fn live(&mut self, life: Life) {
        self.life = life;
        if !life.state.has_key() {
            self.sealed = None;
        }
    }

    fn speak(all: &mut BTreeMap<Name, Self>, word: &Word) {
        // Its word counts if it is the one that has signed until now.
        let by = all.get(&word.by).filter(|by| by.life.state == State::Active);
        if let Some(by) = by.cloned() {
            all.insert(word.by.clone(), by.vouching(&word.certificate));
        }
    }
}

/// The trust bundle that the store's records make.
pub(crate) fn bundle(trust: &Trust, trusted: &BTreeMap<String, Trusted>) -> Result<TrustBundle, BadRecord> {
    let mut certificates: Vec<CertificateDer<'static>> = Vec::new();
    let (mut tainted, mut tainted_keys, mut revoked_keys) = (Vec::new(), Vec::new(), Vec::new());
    for (name, one) in trusted {
        let (certified, state) = (one.certified(name)?, one.life.state);
        let key = KeyDigest::of(&certified.certificate);
        match (certified.is_under(), state) {
            (true, State::Tainted) => tainted_keys.extend(key),
            (true, State::Revoked) => revoked_keys.extend(key),
            (false, State::Tainted) => tainted.push(Fingerprint::of(&certified.certificate)),
            _ => {}
        }
        if !state.is_trusted() {
            continue;
        }
        let counts = match certified.is_under() {
            true => certified.roots,
            false => vec![certified.certificate],
        };
        for certificate in counts {
            if !certificates.contains(&certificate) {
                certificates.push(certificate);
            }
        }
    }
    let bundle = TrustBundle::new(trust.trust_domain.clone(), certificates, trust.sequence);
    let bundle = bundle.map_err(|error| BadRecord::Malformed {
        key: record::key::<Trusted>(""),
        reason: error.to_string(),
    })?;
    Ok(bundle.with_tainted(tainted).with_keys(tainted_keys, revoked_keys))
}
