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
    /// It is under another Hoplite CA's: whom members trust for it is that one's word, which changes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    nested: bool,
}

/// An authority's certificate, and what connects it to those that members trust.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Certified {
    pub(crate) certificate: CertificateDer<'static>,
    /// The next one first, without the roots. Empty of one that is signed by itself, or directly by a root.
    pub(crate) above: Vec<CertificateDer<'static>>,
    /// Empty of one that is signed by itself: it is the root. Otherwise the one under which it is comes first.
    pub(crate) roots: Vec<CertificateDer<'static>>,
    /// Another Hoplite CA has signed it.
    pub(crate) is_nested: bool,
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

// === impl Trust ===

impl Trust {
    /// After a change of the bundle.
    #[must_use]
    pub(crate) fn grown(&self) -> Self {
        Self {
            sequence: self.sequence.saturating_add(1),
            ..self.clone()
        }
    }
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
            nested: false,
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
            nested: made.is_nested,
            ..self
        })
    }

    /// Whether another Hoplite CA has signed it.
    pub(crate) fn is_nested(&self) -> bool {
        self.nested
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
            is_nested: self.nested,
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
            is_nested: false,
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

impl Certified {
    /// Whether what the CA above has signed may go on by that one's bundle: neither what is above it nor its own key is tainted, revoked or
    /// gone.
    pub(crate) fn is_vouched_for(&self, above: &TrustBundle) -> bool {
        let stands = (self.roots.first()).is_some_and(|root| {
            above.authorities().contains(root) && !above.tainted().contains(&Fingerprint::of(root))
        });
        let mut keys = self.below_the_root().into_iter().filter_map(|der| KeyDigest::of(&der));
        stands && !keys.any(|key| above.tainted_keys().contains(&key) || above.revoked_keys().contains(&key))
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

/// The trust bundle that the store's records make. `above` is that of the CA above, while this one is nested; `revoked_keys` are those of CAs that are
/// nested here and count no more.
pub(crate) fn bundle(
    trust: &Trust,
    trusted: &BTreeMap<String, Trusted>,
    above: Option<&TrustBundle>,
    mut revoked_keys: Vec<KeyDigest>,
) -> Result<TrustBundle, BadRecord> {
    let mut certificates: Vec<CertificateDer<'static>> = Vec::new();
    let (mut tainted, mut tainted_keys) = (Vec::new(), Vec::new());
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
        let counts = match (certified.is_under(), above) {
            // Whom the CA above has in its bundle by now.
            (true, Some(above)) if certified.is_nested => above.authorities().to_vec(),
            (true, _) => certified.roots,
            (false, _) => vec![certified.certificate],
        };
        for certificate in counts {
            if !certificates.contains(&certificate) {
                certificates.push(certificate);
            }
        }
    }
    if let Some(above) = above {
        revoked_keys.extend(above.revoked_keys());
        // A taint has members replace what they have: not before there is something else here to replace it with.
        if !has_to_turn(trusted, above)? {
            tainted.extend(above.tainted());
            tainted_keys.extend(above.tainted_keys());
        }
    }
    let bundle = TrustBundle::new(trust.trust_domain.clone(), certificates, trust.sequence);
    let bundle = bundle.map_err(|error| BadRecord::Malformed {
        key: record::key::<Trusted>(""),
        reason: error.to_string(),
    })?;
    Ok(bundle.with_tainted(tainted).with_keys(tainted_keys, revoked_keys))
}

/// Whether the authority that signs here is one for which the CA above vouches no more, or not for long.
fn has_to_turn(trusted: &BTreeMap<String, Trusted>, above: &TrustBundle) -> Result<bool, BadRecord> {
    let signs = trusted.iter().find(|(_, one)| one.life.state == State::Active);
    Ok(match signs {
        Some((name, one)) if one.nested => !one.certified(name)?.is_vouched_for(above),
        _ => false,
    })
}
