//! The X.509 authority that signs here: a P-256 key and its certificate, the first made on the first start. It is signed by itself, or by an
//! upstream authority.
//!
//! The keys lie in a keyring, the certificates in the store. The key is written first, so a crash between the two leaves a
//! key that nothing depends on yet, and the next start takes it. The other way round there would be a root nobody can
//! sign for; that state is refused with a remedy, because a new root in silence would cut every agent off.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use data_encoding::HEXLOWER;
use hoplite_identity::{CertificateDer, TrustDomain};
use hoplite_store::Store;
use rcgen::string::{Ia5String, PrintableString};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue, IsCa, Issuer, KeyUsagePurpose,
    PublicKeyData, SanType,
};
use ring::rand::{SecureRandom, SystemRandom};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::Config;
use crate::authority::course::LAST_PART;
use crate::authority::keyring::{Keyring, Made};
use crate::authority::link::Link;
use crate::authority::signer::{Signer, SignerError};
use crate::authority::taking::{TrustError, course};
use crate::authority::trust::{Certified, Trust, Trusted};
use crate::authority::upstream::{self, Upstream, UpstreamError};
use crate::authority::writes::{Found, New, Step, What};
use crate::config::UpstreamConfig;
use crate::record;
use crate::write::{self, ReadError, View, WriteError};

/// Machines whose clocks are this much behind ours accept the new root at once.
pub(crate) const BACK_DATED: Duration = Duration::from_secs(300);

/// An authority that can sign: certificate and key belong together, and the certificate is the trust domain's.
#[derive(Debug)]
pub(crate) struct Authority {
    certified: Certified,
    signer: Signer,
    /// Of these rcgen needs the subject, and how key identifiers are made.
    params: CertificateParams,
    not_before: SystemTime,
    not_after: SystemTime,
}

/// What authorities are made by here, and found.
#[derive(Debug, Clone)]
pub(crate) struct Maker {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) keyring: Keyring,
    /// Who signs them; they do so themselves without one.
    pub(crate) upstream: Option<Arc<dyn Upstream>>,
    /// The way to the CA above, if this one is nested.
    pub(crate) link: Option<Link>,
    /// What they have to live at least.
    pub(crate) least: Duration,
}

impl Maker {
    /// As the configuration says.
    pub(crate) fn new(config: &Config, keyring: Keyring) -> Self {
        let longest = config.x509_ttl.0.max(config.agent_ttl.0);
        let link = match &config.upstream {
            Some(UpstreamConfig::Hoplite(upstream)) => Some(Link::new(upstream.clone(), config.trust_domain.clone())),
            _ => None,
        };
        let upstream: Option<Arc<dyn Upstream>> = match &config.upstream {
            Some(UpstreamConfig::Disk(upstream)) => Some(Arc::new(upstream.clone())),
            _ => link.clone().map(|link| Arc::new(link) as Arc<dyn Upstream>),
        };
        Self {
            trust_domain: config.trust_domain.clone(),
            keyring,
            upstream,
            link,
            least: longest * LAST_PART,
        }
    }
}

/// A certificate's serial number: positive, always 16 bytes, never guessed (126 random bits).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Serial([u8; 16]);

/// Why there is no authority to sign with. One sentence for the operator.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthorityError {
    /// The certificate is there, its key is not.
    #[error(
        "the signing key {place} is missing, but the store holds its certificate; restore the key from a backup, or \
         move the data directory away to begin with a new authority that every agent must join anew"
    )]
    KeyMissing {
        /// Where it should be.
        place: String,
    },
    /// The key file holds another key.
    #[error(
        "the signing key {place} is not the one of the certificate in the store; restore both from the same backup"
    )]
    KeyMismatch {
        /// Where it should be.
        place: String,
    },
    /// The data directory belongs to another trust domain.
    #[error(
        "`trust_domain = {configured}`, but the data directory belongs to `{stored}`; set it back, or choose another `data_dir`"
    )]
    OtherTrustDomain {
        /// What the configuration says.
        configured: TrustDomain,
        /// What the store says.
        stored: TrustDomain,
    },
    /// The clock is wrong, or the certificate is from the future.
    #[error("the clock says {now}, but the authority is valid only from {not_before}; set the clock")]
    ClockBehind {
        /// RFC 3339.
        now: String,
        /// RFC 3339.
        not_before: String,
    },
    /// The certificate has expired.
    #[error(
        "the authority expired at {not_after}, the clock says {now}; if the clock is right, `hoplite ca run --new-authority` makes another one: \
         entries, operators and bans stay, and every agent must join anew"
    )]
    Expired {
        /// RFC 3339.
        now: String,
        /// RFC 3339.
        not_after: String,
    },
    /// The certificate in the store is not one of ours.
    #[error("the authority's certificate in the store cannot be used ({0}); restore the store from a backup")]
    Certificate(String),
    /// The key file cannot be used, or a new one cannot be written.
    #[error(transparent)]
    Key(#[from] SignerError),
    /// The upstream authority does not sign.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] ReadError),
    /// The store did not take the new authority.
    #[error(transparent)]
    Write(#[from] WriteError<TrustError>),
}

// === impl Maker ===

impl Maker {
    /// The authority that signs here, made if this is the first start.
    pub(crate) fn open(&self, store: &dyn Store, ttl: Duration, now: SystemTime) -> Result<Authority, AuthorityError> {
        let Some((trust, trusted)) = stored(store)? else {
            // Of a start that ended between key and certificate, perhaps.
            let made = self.keyring.first()?;
            let (made, new) = self.certify(made, ttl, now)?;
            let found = Found {
                trust_domain: self.trust_domain.clone(),
                new,
                now,
            };
            write::commit(store, &found)?;
            tracing::info!(trust_domain = %self.trust_domain, not_after = %rfc3339(made.not_after), "made a new authority");
            return Ok(made);
        };
        if trust.trust_domain != self.trust_domain {
            return Err(AuthorityError::OtherTrustDomain {
                configured: self.trust_domain.clone(),
                stored: trust.trust_domain,
            });
        }
        if let Some(upstream) = &self.upstream {
            upstream.look()?;
        }
        let mut course = course(&trusted);
        course.leave(now);
        let active = course.active().map(|(name, life)| (name.clone(), *life));
        // The CA was away while its authority ended, and had a successor.
        if let (Some((_, life)), Some((next, _))) = (&active, course.prepared())
            && life.not_after <= record::unix_seconds(now)
        {
            let authority = self.held(&trusted, next)?;
            let what = What::<Trusted>::Activate {
                name: next.clone(),
                word: None,
            };
            let known = 0;
            write::commit(store, &Step { what, now, known })?;
            tracing::warn!(
                authority = next,
                "the authority ended while the CA was away; its successor signs"
            );
            authority.check_clock(now)?;
            return Ok(authority);
        }
        let name = active.map(|(name, _)| name).unwrap_or_default();
        let authority = self.held(&trusted, &name)?;
        authority.check_clock(now)?;
        Ok(authority)
    }

    /// Makes another authority in the place of one that ended while the CA was away, if there is no successor.
    pub(crate) fn replace_ended(
        &self,
        store: &dyn Store,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<(), AuthorityError> {
        let Some((_, trusted)) = stored(store)? else {
            return Ok(());
        };
        let mut course = course(&trusted);
        course.leave(now);
        let active = course.active().map(|(name, life)| (name.clone(), *life));
        let is_over = (active.as_ref()).is_none_or(|(_, life)| life.not_after <= record::unix_seconds(now));
        if !is_over || course.prepared().is_some() {
            return Ok(());
        }
        let (made, new) = self.make(ttl, now)?;
        let instead_of = active.map(|(name, _)| name);
        let what = What::Found { new, instead_of };
        let known = 0;
        write::commit(store, &Step { what, now, known })?;
        tracing::warn!(
            target: "hoplite::audit",
            not_after = %rfc3339(made.not_after),
            "the authority had ended, and another one takes its place by the operator's word: every agent joins anew"
        );
        Ok(())
    }

    /// The one with this name, with its key.
    pub(crate) fn held(&self, trusted: &BTreeMap<String, Trusted>, name: &str) -> Result<Authority, AuthorityError> {
        let there = trusted.get(name);
        let there = there.ok_or_else(|| AuthorityError::Certificate("it is not there".to_owned()))?;
        let certified = there.certified(name).map_err(ReadError::from)?;
        let point = point(&certified.certificate)?;
        let place = || self.keyring.place();
        match self.keyring.find(&point, there.sealed())? {
            Some(signer) => {
                let held = Authority::from_parts(certified, signer)?;
                held.ok_or_else(|| AuthorityError::KeyMismatch { place: place() })
            }
            None if self.keyring.is_empty()? => Err(AuthorityError::KeyMissing { place: place() }),
            None => Err(AuthorityError::KeyMismatch { place: place() }),
        }
    }

    /// One more, with a key of its own that is in its place.
    pub(crate) fn make(&self, ttl: Duration, now: SystemTime) -> Result<(Authority, New<Trusted>), AuthorityError> {
        self.certify(self.keyring.make()?, ttl, now)
    }

    fn certify(
        &self,
        Made { signer, sealed }: Made,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<(Authority, New<Trusted>), AuthorityError> {
        let authority = match &self.upstream {
            None => Authority::self_signed(&self.trust_domain, signer, Serial::random()?, now, ttl)?,
            Some(upstream) => {
                let (params, not_after) = described(&self.trust_domain, Serial::random()?, now, ttl)?;
                let (certified, not_after) = upstream.sign(params, &signer, not_after, now)?;
                // Certificates know whole seconds.
                if record::unix_seconds(not_after) < record::unix_seconds(now).saturating_add(self.least.as_secs()) {
                    return Err(upstream.ends_too_soon(not_after, self.least).into());
                }
                let authority = Authority::from_parts(certified, signer)?
                    .ok_or_else(|| AuthorityError::Certificate("it does not carry its key".into()))?;
                let leaf = authority.leaf_of_the_ca(&self.trust_domain, now)?;
                upstream::check(&self.trust_domain, &authority.certified, &leaf, now)?;
                authority
            }
        };
        let new = New {
            made: authority.certified.clone(),
            not_after: authority.not_after,
            sealed,
        };
        Ok((authority, new))
    }
}

// === impl Authority ===

impl Authority {
    /// Its name: the SHA-256 of its certificate, in hex.
    pub(crate) fn name(&self) -> String {
        Trusted::name_of(&self.certified.certificate)
    }

    /// What stands between a leaf of its and those whom members trust; nothing if it is one of them.
    pub(crate) fn below_the_root(&self) -> Vec<CertificateDer<'static>> {
        self.certified.below_the_root()
    }

    /// By whose fingerprint a CA is known to those who have no trust bundle yet: its own certificate, or the root above it.
    pub(crate) fn root(&self) -> &CertificateDer<'static> {
        self.certified.roots.first().unwrap_or(&self.certified.certificate)
    }

    /// Whether others are above it.
    pub(crate) fn is_under(&self) -> bool {
        self.certified.is_under()
    }

    /// Why its key cannot sign now, if it lies in hardware that is away.
    pub(crate) fn away(&self) -> Option<String> {
        self.signer.away()
    }

    /// A certificate of the CA itself that nobody has the key of: to find out whether it would be accepted.
    fn leaf_of_the_ca(
        &self,
        trust_domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<CertificateDer<'static>, AuthorityError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let id = Ia5String::try_from(trust_domain.ca().as_str()).map_err(unbuildable)?;
        params.subject_alt_names = vec![SanType::URI(id)];
        params.not_before = self.not_before.max(now - BACK_DATED).into();
        params.not_after = self.not_after.into();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            rcgen::ExtendedKeyUsagePurpose::ServerAuth,
            rcgen::ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        let key = rcgen::KeyPair::generate().map_err(|_| SignerError::Generate)?;
        let leaf = params.signed_by(&key, &self.issuer()).map_err(unbuildable)?;
        Ok(leaf.der().clone())
    }

    /// The identifier of a certificate's key, lower-case hex, and the first moment of its life.
    pub(crate) fn about(certificate: &CertificateDer<'_>) -> Option<(String, SystemTime)> {
        let (_, x509) = X509Certificate::from_der(certificate).ok()?;
        let id = x509
            .extensions()
            .iter()
            .find_map(|extension| match extension.parsed_extension() {
                ParsedExtension::SubjectKeyIdentifier(id) => Some(HEXLOWER.encode(id.0)),
                _ => None,
            });
        let not_before = u64::try_from(x509.validity().not_before.timestamp()).ok()?;
        Some((id.unwrap_or_default(), record::from_unix_seconds(not_before)))
    }

    /// The public key of a certificate: a point.
    pub(crate) fn point_of(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
        let (_, x509) = X509Certificate::from_der(certificate).ok()?;
        Some(x509.public_key().subject_public_key.data.to_vec())
    }

    /// Whether both certificates are about the same authority.
    pub(crate) fn has_subject_of(one: &CertificateDer<'_>, other: &CertificateDer<'_>) -> bool {
        match (X509Certificate::from_der(one), X509Certificate::from_der(other)) {
            (Ok((_, one)), Ok((_, other))) => one.subject().as_raw() == other.subject().as_raw(),
            _ => false,
        }
    }

    /// A certificate of its successor's key, for those who know only this one: they believe the other by it.
    pub(crate) fn vouch(&self, successor: &Self) -> Result<CertificateDer<'static>, AuthorityError> {
        let mut params = successor.params.clone();
        params.not_before = self.not_before.max(successor.not_before).into();
        params.not_after = self.not_after.min(successor.not_after).into();
        params.serial_number = Some(Serial::random()?.0.to_vec().into());
        let id = successor.id()?;
        params.subject_alt_names = vec![SanType::URI(id)];
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.use_authority_key_identifier_extension = true;
        let certificate = params
            .signed_by(&successor.signer, &self.issuer())
            .map_err(unbuildable)?;
        Ok(certificate.der().clone())
    }

    fn id(&self) -> Result<Ia5String, AuthorityError> {
        let (_, x509) = X509Certificate::from_der(&self.certified.certificate)
            .map_err(|e| AuthorityError::Certificate(e.to_string()))?;
        let names = x509.subject_alternative_name().ok().flatten();
        let uri = names
            .iter()
            .flat_map(|names| &names.value.general_names)
            .find_map(|name| match name {
                GeneralName::URI(uri) => Some(*uri),
                _ => None,
            });
        Ia5String::try_from(uri.unwrap_or_default()).map_err(unbuildable)
    }

    fn self_signed(
        trust_domain: &TrustDomain,
        signer: Signer,
        serial: Serial,
        now: SystemTime,
        ttl: Duration,
    ) -> Result<Self, AuthorityError> {
        let (params, _) = described(trust_domain, serial, now, ttl)?;
        let certificate = params.self_signed(&signer).map_err(unbuildable)?;
        Self::from_parts(Certified::itself(certificate.der().clone()), signer)?
            .ok_or_else(|| AuthorityError::Certificate("it does not carry its key".into()))
    }

    /// `None` when the key is not the certificate's.
    fn from_parts(certified: Certified, signer: Signer) -> Result<Option<Self>, AuthorityError> {
        let unusable = |reason: &str| AuthorityError::Certificate(reason.to_owned());
        let (rest, x509) = X509Certificate::from_der(&certified.certificate)
            .map_err(|e| AuthorityError::Certificate(e.to_string()))?;
        if !rest.is_empty() {
            return Err(unusable("bytes after its end"));
        }
        if x509.public_key().raw != signer.subject_public_key_info() {
            return Ok(None);
        }
        if !x509.is_ca() || (!certified.is_under() && x509.verify_signature(None).is_err()) {
            return Err(unusable("not a self-signed authority"));
        }
        let serial = x509
            .subject()
            .iter_by_oid(&x509_parser::oid_registry::OID_X509_SERIALNUMBER)
            .next()
            .and_then(|attribute| attribute.as_str().ok())
            .ok_or_else(|| unusable("no serial number in its subject"))?;
        let params = params(serial)?;
        let time = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).map(record::from_unix_seconds);
        let (Ok(not_before), Ok(not_after)) = (time(x509.validity().not_before), time(x509.validity().not_after))
        else {
            return Err(unusable("valid before 1970"));
        };
        Ok(Some(Self {
            certified,
            signer,
            params,
            not_before,
            not_after,
        }))
    }

    /// Whether it is valid now. Signing with a wrong clock makes certificates nobody accepts.
    pub(crate) fn check_clock(&self, now: SystemTime) -> Result<(), AuthorityError> {
        if now < self.not_before {
            return Err(AuthorityError::ClockBehind {
                now: rfc3339(now),
                not_before: rfc3339(self.not_before),
            });
        }
        if now >= self.not_after {
            return Err(AuthorityError::Expired {
                now: rfc3339(now),
                not_after: rfc3339(self.not_after),
            });
        }
        Ok(())
    }

    /// The certificate.
    pub(crate) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certified.certificate
    }

    /// The first moment of its life.
    pub(crate) fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// The end of its life.
    pub(crate) fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// What rcgen signs with.
    pub(crate) fn issuer(&self) -> Issuer<'_, &Signer> {
        Issuer::from_params(&self.params, &self.signer)
    }

    /// An authority of a CA that is nested under another one, and that nothing stores.
    #[cfg(test)]
    pub(crate) fn ephemeral_nested(above: &Self, now: SystemTime) -> Self {
        let signer = Signer::ephemeral();
        let id = TrustDomain::parse("prod.example").unwrap();
        let (mut params, _) = described(&id, Serial::random().unwrap(), now, Duration::from_secs(60)).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let certificate = params.signed_by(&signer, &above.issuer()).unwrap().der().clone();
        let certified = Certified {
            certificate,
            above: Vec::new(),
            roots: vec![above.certificate().clone()],
            is_nested: true,
        };
        Self::from_parts(certified, signer).unwrap().unwrap()
    }

    /// An authority that nothing stores.
    #[cfg(test)]
    pub(crate) fn ephemeral(trust_domain: &TrustDomain, now: SystemTime, ttl: Duration) -> Self {
        Self::self_signed(trust_domain, Signer::ephemeral(), Serial::random().unwrap(), now, ttl).unwrap()
    }
}

/// The trust bundle's record, and those of all authorities.
type Stored = (Trust, BTreeMap<String, Trusted>);

fn stored(store: &dyn Store) -> Result<Option<Stored>, AuthorityError> {
    let mut view = View::new(store);
    let Some(trust) = view.one::<Trust>("")? else {
        return Ok(None);
    };
    Ok(Some((trust, view.all::<Trusted>()?)))
}

/// All of an authority's certificate but who signs it; and its end.
pub(crate) fn described(
    trust_domain: &TrustDomain,
    serial: Serial,
    now: SystemTime,
    ttl: Duration,
) -> Result<(CertificateParams, SystemTime), AuthorityError> {
    let mut params = params(&serial.to_string())?;
    let now = record::from_unix_seconds(record::unix_seconds(now));
    let not_after = now
        .checked_add(ttl)
        .ok_or_else(|| AuthorityError::Certificate("it would never expire".into()))?;
    params.not_before = (now - BACK_DATED).into();
    params.not_after = not_after.into();
    params.serial_number = Some(serial.0.to_vec().into());
    // X-7: the signer is an SVID itself, of the trust domain and without a path.
    let id = Ia5String::try_from(trust_domain.id().as_str()).map_err(unbuildable)?;
    params.subject_alt_names = vec![SanType::URI(id)];
    // X-4. There are no name constraints (X-8 is a MAY): rustls-webpki refuses chains with URI constraints.
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok((params, not_after))
}

/// The public key of a certificate: a point.
fn point(certificate: &CertificateDer<'_>) -> Result<Vec<u8>, AuthorityError> {
    Authority::point_of(certificate).ok_or_else(|| AuthorityError::Certificate("not a certificate".to_owned()))
}

/// What an authority's certificate and an issuer have in common. The serial number makes the subject unique, so that
/// path building never confuses two authorities of one trust domain.
fn params(serial: &str) -> Result<CertificateParams, AuthorityError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Hoplite");
    params.distinguished_name.push(DnType::CommonName, "Hoplite authority");
    let serial = PrintableString::try_from(serial).map_err(unbuildable)?;
    params
        .distinguished_name
        .push(DnType::CustomDnType(vec![2, 5, 4, 5]), DnValue::PrintableString(serial));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    Ok(params)
}

fn unbuildable(error: impl std::fmt::Display) -> AuthorityError {
    AuthorityError::Certificate(error.to_string())
}

fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

// === impl Serial ===

impl Serial {
    /// From the system's random numbers.
    pub(crate) fn random() -> Result<Self, SignerError> {
        let mut bytes = [0; 16];
        SystemRandom::new()
            .fill(&mut bytes)
            .map_err(|_| SignerError::Generate)?;
        Ok(Self::from_entropy(bytes))
    }

    /// From random bytes. The first byte keeps the number positive (RFC 5280 4.1.2.2) and of one length.
    pub(crate) fn from_entropy(mut bytes: [u8; 16]) -> Self {
        bytes[0] = bytes[0] & 0x7f | 0x40;
        Self(bytes)
    }

    /// Big-endian.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Display for Serial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::course::{AUTHORITIES_MAX, CourseError};
    use crate::authority::writes::Trusting;
    use crate::index::Index;
    use hoplite_store::{Batch, MemoryStore};
    use std::path::Path;
    use std::time::UNIX_EPOCH;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn maker(dir: &Path) -> Maker {
        Maker {
            trust_domain: TrustDomain::parse("prod.example").unwrap(),
            keyring: Keyring::of(dir),
            upstream: None,
            link: None,
            least: Duration::ZERO,
        }
    }

    fn open(store: &dyn Store, dir: &Path, at: SystemTime) -> Result<Authority, AuthorityError> {
        maker(dir).open(store, DAY, at)
    }

    /// Whoever was away for longer than the authority lived says so, and loses nothing but the agents' trust.
    #[test]
    fn one_that_has_ended_is_replaced_by_the_operators_word_alone() {
        let (store, dir) = (MemoryStore::new(), tempfile::tempdir().unwrap());
        let first = open(&store, dir.path(), now()).unwrap();
        maker(dir.path()).replace_ended(&store, DAY, now()).unwrap();
        assert_eq!(
            open(&store, dir.path(), now()).unwrap().certificate(),
            first.certificate(),
            "it has not ended"
        );
        let late = now() + DAY + Duration::from_secs(1);
        let refused = open(&store, dir.path(), late).unwrap_err().to_string();
        assert!(refused.contains("`hoplite ca run --new-authority`"), "{refused}");
        maker(dir.path()).replace_ended(&store, DAY, late).unwrap();
        let second = open(&store, dir.path(), late).unwrap();
        assert!(second.certificate() != first.certificate() && second.not_after() > late);
        let index = Index::new(&store.snapshot().unwrap()).unwrap();
        let bundle = index.authority.bundle().unwrap();
        assert!(bundle.authorities().contains(second.certificate()) && bundle.sequence() > 1);
        maker(dir.path()).replace_ended(&store, DAY, late).unwrap();
        let again = open(&store, dir.path(), late).unwrap();
        assert_eq!(again.certificate(), second.certificate(), "nothing is done twice");
    }

    #[test]
    fn x_4_x_5_x_7_the_certificate() {
        let authority = Authority::ephemeral(&TrustDomain::parse("prod.example").unwrap(), now(), DAY);
        let (_, x509) = X509Certificate::from_der(authority.certificate()).unwrap();
        let usage = x509.key_usage().unwrap().unwrap();
        assert!(usage.critical && usage.value.key_cert_sign() && usage.value.crl_sign());
        assert_eq!(usage.value.flags.count_ones(), 2, "and nothing else");
        let constraints = x509.basic_constraints().unwrap().unwrap();
        assert!(constraints.critical && constraints.value.ca);
        let names = &x509.subject_alternative_name().unwrap().unwrap().value.general_names;
        assert_eq!(format!("{names:?}"), "[URI(\"spiffe://prod.example\")]");
        assert!(x509.name_constraints().unwrap().is_none());
        assert!(
            x509.extensions()
                .iter()
                .any(|e| e.oid == x509_parser::oid_registry::OID_X509_EXT_SUBJECT_KEY_IDENTIFIER)
        );
        assert_eq!(authority.not_before(), now() - BACK_DATED);
        assert_eq!(authority.not_after(), now() + DAY);
        let other = Authority::ephemeral(&TrustDomain::parse("prod.example").unwrap(), now(), DAY);
        let (_, other) = X509Certificate::from_der(other.certificate()).unwrap();
        assert_ne!(x509.subject().as_raw(), other.subject().as_raw(), "subjects are unique");
    }

    #[test]
    fn it_is_made_once() {
        let (store, dir) = (MemoryStore::new(), tempfile::tempdir().unwrap());
        let first = open(&store, dir.path(), now()).unwrap();
        let revision = store.revision();
        let second = open(&store, dir.path(), now() + Duration::from_secs(1)).unwrap();
        assert_eq!(first.certificate(), second.certificate());
        assert_eq!(store.revision(), revision);
        let bundle = Index::new(&store.snapshot().unwrap())
            .unwrap()
            .authority
            .bundle()
            .cloned()
            .unwrap();
        assert_eq!(
            (bundle.authorities(), bundle.sequence()),
            (&[first.certificate().clone()][..], 1)
        );
    }

    /// What an older program wrote there would look like nothing, and a new root in silence would cut every agent off.
    #[test]
    fn the_authority_of_an_older_program_is_not_overlooked() {
        let (store, dir) = (MemoryStore::new(), tempfile::tempdir().unwrap());
        let old = br#"{"format":1,"trust_domain":"prod.example","certificate":"-----BEGIN CERTIFICATE-----"}"#;
        store.commit(Batch::new().put("authority/x509", &old[..])).unwrap();
        let error = open(&store, dir.path(), now()).unwrap_err().to_string();
        assert!(error.contains("format 1") && error.contains("older program"), "{error}");
    }

    #[test]
    fn another_authority_joins_the_bundle_once() {
        let (store, dir) = (MemoryStore::new(), tempfile::tempdir().unwrap());
        let domain = TrustDomain::parse("prod.example").unwrap();
        let first = open(&store, dir.path(), now()).unwrap();
        let trusting = |certificate: &CertificateDer<'static>| {
            let certificate = certificate.clone();
            write::commit(&store, &Trusting::old(certificate, now())).map(|(sequence, _)| sequence)
        };
        let second = Authority::ephemeral(&domain, now(), DAY);
        assert_eq!(trusting(second.certificate()).unwrap(), 2);
        assert_eq!(trusting(second.certificate()).unwrap(), 2, "it is there");
        assert_eq!(trusting(first.certificate()).unwrap(), 2);
        let error = trusting(&CertificateDer::from(vec![0x30, 0])).unwrap_err();
        assert!(
            matches!(error, WriteError::Refused(TrustError::Certificate(_))),
            "{error}"
        );
        let bundle = Index::new(&store.snapshot().unwrap())
            .unwrap()
            .authority
            .bundle()
            .cloned()
            .unwrap();
        assert_eq!((bundle.authorities().len(), bundle.sequence()), (2, 2));
        // The one that signs is the one it was.
        assert_eq!(
            open(&store, dir.path(), now()).unwrap().certificate(),
            first.certificate()
        );
        for _ in 2..AUTHORITIES_MAX {
            trusting(Authority::ephemeral(&domain, now(), DAY).certificate()).unwrap();
        }
        let error = trusting(Authority::ephemeral(&domain, now(), DAY).certificate()).unwrap_err();
        assert!(
            matches!(error, WriteError::Refused(TrustError::Course(CourseError::TooMany))),
            "{error}"
        );
    }

    #[test]
    fn a_crash_between_key_and_certificate_is_harmless() {
        let (store, dir) = (MemoryStore::new(), tempfile::tempdir().unwrap());
        let signer = Keyring::of(dir.path()).make().unwrap().signer;
        let authority = open(&store, dir.path(), now()).unwrap();
        assert_eq!(authority.signer.der_bytes(), signer.der_bytes());
    }

    #[test]
    fn a_missing_or_foreign_key_is_refused() {
        let (store, dir) = (MemoryStore::new(), tempfile::tempdir().unwrap());
        open(&store, dir.path(), now()).unwrap();
        let path = dir.path().join("authority.key");
        std::fs::remove_file(&path).unwrap();
        let error = open(&store, dir.path(), now()).unwrap_err();
        assert!(matches!(error, AuthorityError::KeyMissing { .. }), "{error}");
        assert!(error.to_string().contains("backup"), "{error}");
        assert!(!path.exists(), "no new key was made");
        Keyring::of(dir.path()).make().unwrap();
        assert!(matches!(
            open(&store, dir.path(), now()),
            Err(AuthorityError::KeyMismatch { .. })
        ));
    }

    #[test]
    fn a_wrong_clock_or_trust_domain_is_refused() {
        let (store, dir) = (MemoryStore::new(), tempfile::tempdir().unwrap());
        open(&store, dir.path(), now()).unwrap();
        let early = now() - BACK_DATED - Duration::from_secs(1);
        assert!(matches!(
            open(&store, dir.path(), early),
            Err(AuthorityError::ClockBehind { .. })
        ));
        assert!(matches!(
            open(&store, dir.path(), now() + DAY),
            Err(AuthorityError::Expired { .. })
        ));
        let other = TrustDomain::parse("other.example").unwrap();
        let other = Maker {
            trust_domain: other,
            ..maker(dir.path())
        };
        let error = other.open(&store, DAY, now()).unwrap_err().to_string();
        assert!(
            error.contains("other.example") && error.contains("prod.example"),
            "{error}"
        );
    }

    /// A CA that is killed between any two writes of a rotation, and started again: it signs with the one that the store names,
    /// which is one, and which all know.
    #[test]
    fn a_restart_at_each_moment_of_a_rotation_signs_with_the_active_one() {
        let (store, dir) = (MemoryStore::new(), tempfile::tempdir().unwrap());
        let first = open(&store, dir.path(), now()).unwrap().name();
        let check = |moment: &str, at: SystemTime, signs: &str| {
            for start in 0..2 {
                let opened =
                    open(&store, dir.path(), at).unwrap_or_else(|error| panic!("{moment}, start {start}: {error}"));
                assert_eq!(opened.name(), signs, "{moment}");
            }
            let index = Index::new(&store.snapshot().unwrap()).unwrap();
            let course = index.authority.course();
            assert_eq!(course.active().map(|(name, _)| name.as_str()), Some(signs), "{moment}");
        };
        let step = |what: What<Trusted>, at: SystemTime| {
            let known = u64::MAX;
            write::commit(&store, &Step { what, now: at, known }).unwrap().0
        };
        let keyring = Keyring::of(dir.path());
        let (half, late) = (now() + DAY / 2, now() + DAY * 5 / 6);
        // A key whose certificate never came into the store; the next try makes another.
        maker(dir.path()).make(DAY, half).unwrap();
        check("its key is made", half, &first);
        let (made, new) = maker(dir.path()).make(DAY, half).unwrap();
        let (next, after) = (made.name(), half + Duration::from_secs(60));
        step(What::Prepare { new, by_hand: false }, half);
        check("it is prepared", after, &first);
        let path = dir.path().join("authority.key");
        let keys = || std::fs::read_to_string(&path).unwrap().matches("BEGIN").count();
        assert_eq!(keys(), 3);
        let word = None;
        step(
            What::Activate {
                name: next.clone(),
                word,
            },
            late,
        );
        check("it is activated", late, &next);
        let needed = point(made.certificate()).unwrap();
        keyring.keep(|point| point == needed).unwrap();
        assert_eq!(keys(), 1);
        check("the other keys are gone", late, &next);
        let word = None;
        step(
            What::Taint {
                name: first.clone(),
                word,
            },
            late,
        );
        check("the first is tainted", late, &next);
        step(What::Revoke { name: first }, late);
        check("the first is revoked", late, &next);
        step(What::Leave, now() + DAY);
        check("the first has left", now() + DAY, &next);
        // Its own key lost: nothing is made in its place.
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(
            open(&store, dir.path(), late),
            Err(AuthorityError::KeyMissing { .. })
        ));
        assert!(!path.exists());
    }

    /// The machine was off when the last sixth came, and past it.
    #[test]
    fn a_ca_that_was_away_while_its_authority_ended_signs_with_the_successor() {
        let (store, dir) = (MemoryStore::new(), tempfile::tempdir().unwrap());
        open(&store, dir.path(), now()).unwrap();
        let half = now() + DAY / 2;
        let (made, new) = maker(dir.path()).make(DAY, half).unwrap();
        let what = What::Prepare { new, by_hand: false };
        let (now, known) = (half, 0);
        write::commit(&store, &Step { what, now, known }).unwrap();
        let opened = open(&store, dir.path(), half + DAY * 3 / 4).unwrap();
        assert_eq!(opened.name(), made.name());
        // And when that has ended, too, there is nobody left to sign: no other is founded in silence.
        let error = open(&store, dir.path(), half + DAY).unwrap_err();
        assert!(matches!(error, AuthorityError::Expired { .. }), "{error}");
    }

    #[test]
    fn serials_are_positive_and_of_one_length() {
        for byte in [0x00, 0x3f, 0x40, 0x7f, 0x80, 0xff] {
            let serial = Serial::from_entropy([byte; 16]);
            assert!((0x40..0x80).contains(&serial.as_bytes()[0]), "{serial}");
            assert_eq!(serial.to_string().len(), 32);
        }
    }
}
