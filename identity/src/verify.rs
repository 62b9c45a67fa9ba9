//! The one way to learn who a peer is: path validation against its own trust domain's bundle, then the SVID profile.

mod signers;
mod uri_constraints;

use self::signers::{Fault, Signer};
use self::uri_constraints::{ForbiddenUri, OverOriginals, Renamed, UriConstraints, constraints_of, uris};
use crate::profile::{self, CERTIFICATE_BYTES_MAX, CHAIN_MAX, CheckedLeaf, InvalidAuthority};
use crate::{BundleSet, InvalidBundle, InvalidSvid, KeyDigest, Leaf, SpiffeId, TrustBundle, TrustDomain};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, SignatureVerificationAlgorithm, TrustAnchor, UnixTime};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use webpki::{EndEntityCert, KeyUsage, VerifiedPath};
use x509_parser::extensions::ExtendedKeyUsage;

/// Verifies peers of every trust domain in a [`BundleSet`], each against its own bundle only.
#[derive(Debug)]
pub struct PeerVerifier {
    bundles: BundleSet,
    /// The authorities of the bundles, prepared: there is no list of the authorities of more than one trust domain.
    anchors: BTreeMap<TrustDomain, Anchors>,
    algorithms: WebPkiSupportedAlgorithms,
}

/// Proof that a peer showed a chain its own trust domain vouches for, at the time it was checked.
///
/// Made only by [`PeerVerifier`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedPeer {
    leaf: Leaf,
    signer: KeyDigest,
}

/// What the peer was in the handshake: decides which extended key usage is asked of its chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerRole {
    /// The peer opened the connection.
    Client,
    /// The peer accepted the connection.
    Server,
}

/// A second of a certificate's or a clock's, since 1970. Its text is RFC 3339, in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment(pub i64);

/// Why a peer was refused. The text is for our log; a peer is told only a TLS alert.
///
/// What it says of the peer's certificate is what the peer claims: nothing is proved when a peer is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerRejected {
    /// It showed no certificate.
    #[error("the peer showed no certificate")]
    NoCertificate,
    /// More, or larger, certificates than are looked at; or not certificates.
    #[error("the peer's certificates are malformed: {0}")]
    Malformed(String),
    /// Its leaf breaks the X509-SVID profile.
    #[error("the peer's certificate is no X.509-SVID: {0}")]
    Profile(#[source] InvalidSvid),
    /// There is no bundle for the trust domain it claims.
    #[error("there is no trust bundle for the peer's trust domain `{0}`; federate with it to accept its workloads")]
    UnknownTrustDomain(TrustDomain),
    /// No authority of its own trust domain vouches for it.
    #[error("no authority in the trust bundle of `{0}` signed the peer's certificate")]
    UnknownAuthority(TrustDomain),
    /// A certificate between the leaf and the trust bundle may not vouch for others.
    #[error("a certificate in the peer's chain signed another, but {0}")]
    NotAnAuthority(InvalidAuthority),
    /// An authority between the leaf and the trust bundle was revoked.
    #[error("an authority in the peer's chain was revoked; the peer's issuer has to give it another certificate")]
    RevokedAuthority,
    /// A certificate of the chain, authority included, has expired.
    #[error(
        "a certificate in the peer's chain expired at {not_after}, and the clock here says {now}; the peer must renew it, or one of the clocks is wrong"
    )]
    Expired {
        /// The end that its issuer gave it.
        not_after: Moment,
        /// What the clock here says.
        now: Moment,
    },
    /// A certificate of the chain, authority included, is not valid yet.
    #[error(
        "a certificate in the peer's chain is valid only from {not_before}, and the clock here says {now}; set this clock, or its issuer's"
    )]
    NotYetValid {
        /// The beginning that its issuer gave it.
        not_before: Moment,
        /// What the clock here says.
        now: Moment,
    },
    /// A signature of the chain is wrong, or of an algorithm that is not accepted.
    #[error("a signature in the peer's chain is wrong or of an unaccepted algorithm: {0}")]
    BadSignature(String),
    /// An authority of the chain lacks the extended key usage for the peer's role.
    #[error("an authority in the peer's chain is not for TLS peers of this role")]
    AuthorityExtendedKeyUsage,
    /// RFC 5280 forbids the chain for another reason: path length, name constraints, complexity.
    #[error("the peer's chain is not valid: {0}")]
    InvalidPath(String),
    /// It proved to be somebody else than was asked for.
    #[error("the peer is `{found}`, not `{expected}`")]
    UnexpectedPeer {
        /// Who was wanted.
        expected: SpiffeId,
        /// Who it proved to be.
        found: SpiffeId,
    },
}

/// The authorities of one trust domain as path validation takes them.
#[derive(Debug)]
struct Anchors {
    anchors: Vec<TrustAnchor<'static>>,
    /// Of the anchor in the same place, what webpki does not look at.
    beside: Vec<BesideAnchor>,
    /// Of the anchor in the same place, its name and key.
    signers: Vec<Signer>,
    /// Keys below them that vouch for nobody.
    revoked: BTreeSet<KeyDigest>,
}

/// What an authority of a bundle says besides what a [`TrustAnchor`] holds.
#[derive(Debug)]
struct BesideAnchor {
    /// Seconds since 1970.
    not_before: i64,
    not_after: i64,
    uri_constraints: UriConstraints,
    key: KeyDigest,
}

// === impl PeerVerifier ===

impl PeerVerifier {
    /// A verifier for the peers of these trust domains. No bundle, or an empty one, means that nobody is trusted.
    ///
    /// # Errors
    /// An authority that path validation cannot use.
    pub fn new(bundles: BundleSet) -> Result<Self, InvalidBundle> {
        let anchors = bundles
            .iter()
            .map(|bundle| Ok((bundle.trust_domain().clone(), Anchors::new(bundle)?)))
            .collect::<Result<_, _>>()?;
        let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms;
        Ok(Self {
            bundles,
            anchors,
            algorithms,
        })
    }

    /// The bundles that peers are verified against.
    pub fn bundles(&self) -> &BundleSet {
        &self.bundles
    }

    /// Verifies a chain, leaf first, as presented.
    ///
    /// The identity is the leaf's; whatever else the peer sends can only help to connect the leaf to an authority
    /// of the leaf's own trust domain.
    ///
    /// # Errors
    /// The first reason to refuse the peer: malformed, then profile, then trust domain, then path.
    pub fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        role: PeerRole,
        now: SystemTime,
    ) -> Result<VerifiedPeer, PeerRejected> {
        let (leaf, intermediates) = chain.split_first().ok_or(PeerRejected::NoCertificate)?;
        // Before 1970 nothing is valid, so that a clock that is so wrong trusts nobody.
        let now = UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO));
        self.verify_parts(leaf, intermediates, role, now)
    }

    pub(crate) fn verify_parts(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        role: PeerRole,
        now: UnixTime,
    ) -> Result<VerifiedPeer, PeerRejected> {
        // Caps, before any work.
        if intermediates.len() >= CHAIN_MAX {
            let count = intermediates.len() + 1;
            return Err(PeerRejected::Malformed(format!(
                "{count} certificates are more than {CHAIN_MAX}"
            )));
        }
        if intermediates
            .iter()
            .any(|certificate| certificate.len() > CERTIFICATE_BYTES_MAX)
        {
            return Err(PeerRejected::Malformed(format!(
                "one is larger than {CERTIFICATE_BYTES_MAX} bytes"
            )));
        }

        // The profile before the path: it is cheaper, and its reasons are more exact.
        let CheckedLeaf { leaf: claimed, .. } = profile::leaf(leaf).map_err(PeerRejected::Profile)?;

        // the leaf's OWN trust domain. INVARIANT: nothing below sees the authorities of another.
        let trust_domain = claimed.spiffe_id.trust_domain();
        let anchors = self
            .anchors
            .get(trust_domain)
            .ok_or_else(|| PeerRejected::UnknownTrustDomain(trust_domain.clone()))?;
        let signer = anchors
            .validate(leaf, intermediates, self.algorithms, role, now)
            .map_err(|refusal| match refusal {
                ChainFault::Path(error) => rejected(&error, trust_domain),
                ChainFault::Rejected(reason) => reason,
            })?;
        Ok(VerifiedPeer { leaf: claimed, signer })
    }

    pub(crate) fn algorithms(&self) -> &WebPkiSupportedAlgorithms {
        &self.algorithms
    }
}

// === impl Anchors ===

enum ChainFault {
    Path(webpki::Error),
    Rejected(PeerRejected),
}

impl Anchors {
    fn new(bundle: &TrustBundle) -> Result<Self, InvalidBundle> {
        let mut all = Self {
            anchors: Vec::new(),
            beside: Vec::new(),
            signers: Vec::new(),
            revoked: bundle.revoked_keys().clone(),
        };
        for (position, der) in bundle.authorities().iter().enumerate() {
            let unusable = |source| InvalidBundle::Authority {
                trust_domain: bundle.trust_domain().clone(),
                position,
                source,
            };
            let certificate = profile::authority(der).map_err(unusable)?;
            let renamed = Renamed::of(der);
            let anchor = webpki::anchor_from_trusted_cert(renamed.as_ref().map_or(der, |renamed| &renamed.der))
                .map_err(|error| unusable(InvalidAuthority::Malformed(error.to_string())))?;
            all.anchors.push(anchor.to_owned());
            all.beside.push(BesideAnchor {
                not_before: certificate.validity().not_before.timestamp(),
                not_after: certificate.validity().not_after.timestamp(),
                uri_constraints: renamed.map(|renamed| renamed.constraints).unwrap_or_default(),
                key: KeyDigest::of_key(certificate.public_key().raw),
            });
            all.signers.push(Signer::of(&certificate));
        }
        Ok(all)
    }

    /// RFC 5280 path validation: webpki's, and what it leaves out. Gives the key that signed the leaf.
    fn validate(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        algorithms: WebPkiSupportedAlgorithms,
        role: PeerRole,
        now: UnixTime,
    ) -> Result<KeyDigest, ChainFault> {
        let found = self.find_path(leaf, intermediates, algorithms, role, now);
        found.map_err(|refused| match refused {
            ChainFault::Path(webpki::Error::InvalidSignatureForPublicKey) => {
                let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
                let is_for_role = |usage: &ExtendedKeyUsage<'_>| match role {
                    PeerRole::Client => usage.client_auth,
                    PeerRole::Server => usage.server_auth,
                };
                signers::reason(leaf, intermediates, &self.signers, &algorithms, is_for_role, now)
                    .map_or(refused, |fault| ChainFault::Rejected(fault.into()))
            }
            refused => refused,
        })
    }

    fn find_path(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        algorithms: WebPkiSupportedAlgorithms,
        role: PeerRole,
        now: UnixTime,
    ) -> Result<KeyDigest, ChainFault> {
        let usage = match role {
            PeerRole::Client => KeyUsage::client_auth(),
            PeerRole::Server => KeyUsage::server_auth(),
        };
        let renamed: Vec<Renamed> = intermediates.iter().filter_map(Renamed::of).collect();
        // Intermediates are rare, and constrained ones rarer: nothing is copied for the others.
        let (mut shown, mut over_originals) = (Vec::new(), Vec::new());
        if !renamed.is_empty() {
            let others = intermediates.iter().filter(|der| Renamed::of(der).is_none()).cloned();
            shown.extend(renamed.iter().map(|renamed| renamed.der.clone()).chain(others));
            over_originals.extend(algorithms.all.iter().map(|algorithm| OverOriginals {
                algorithm: *algorithm,
                renamed: &renamed,
            }));
        }
        let over_originals: Vec<&dyn SignatureVerificationAlgorithm> =
            over_originals.iter().map(|algorithm| algorithm as _).collect();
        let (shown, algorithms): (&[CertificateDer<'_>], &[&dyn SignatureVerificationAlgorithm]) = if renamed.is_empty()
        {
            (intermediates, algorithms.all)
        } else {
            (&shown, &over_originals)
        };

        let end_entity = EndEntityCert::try_from(leaf).map_err(ChainFault::Path)?;
        // The reason why a path whose signatures are right was refused: it beats what webpki made of it.
        let refused = RefCell::new(None);
        let check_path = |path: &VerifiedPath<'_>| {
            self.check_path(leaf, path, &renamed, now).map_err(|reason| {
                refused.replace(Some(reason));
                webpki::Error::UnknownIssuer
            })
        };
        end_entity
            .verify_for_usage(algorithms, &self.anchors, shown, now, usage, None, Some(&check_path))
            .map_err(|error| refused.take().map_or(ChainFault::Path(error), ChainFault::Rejected))
            .and_then(|path| self.signer(&path).map_err(ChainFault::Rejected))
    }

    /// The key of what stands next above the leaf.
    fn signer(&self, path: &VerifiedPath<'_>) -> Result<KeyDigest, PeerRejected> {
        if let Some(intermediate) = path.intermediate_certificates().next() {
            let der = intermediate.der();
            let certificate = profile::authority(&der).map_err(PeerRejected::NotAnAuthority)?;
            return Ok(KeyDigest::of_key(certificate.public_key().raw));
        }
        self.beside(path).map(|beside| beside.key)
    }

    /// What webpki does not look at of the authority that a path ends at.
    fn beside(&self, path: &VerifiedPath<'_>) -> Result<&BesideAnchor, PeerRejected> {
        let mut anchors = self.anchors.iter().zip(&self.beside);
        let found = anchors.find(|(anchor, _)| std::ptr::eq(*anchor, path.anchor()));
        let no_authority = || PeerRejected::InvalidPath("it ends at no authority of the bundle".to_owned());
        found.map(|(_, beside)| beside).ok_or_else(no_authority)
    }

    /// What webpki leaves out: key usage, the anchor's own dates, and what is constrained about URIs.
    fn check_path(
        &self,
        leaf: &CertificateDer<'_>,
        path: &VerifiedPath<'_>,
        renamed: &[Renamed],
        now: UnixTime,
    ) -> Result<(), PeerRejected> {
        let beside = self.beside(path)?;
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        if now < beside.not_before {
            return Err(PeerRejected::NotYetValid {
                not_before: Moment(beside.not_before),
                now: Moment(now),
            });
        }
        if now > beside.not_after {
            return Err(PeerRejected::Expired {
                not_after: Moment(beside.not_after),
                now: Moment(now),
            });
        }
        // From the leaf up: each authority binds what is below it.
        let leaf = profile::leaf(leaf).map_err(PeerRejected::Profile)?.leaf;
        let mut below = vec![leaf.spiffe_id.as_str().to_owned()];
        for intermediate in path.intermediate_certificates() {
            let der = intermediate.der();
            let certificate = profile::authority(&der).map_err(PeerRejected::NotAnAuthority)?;
            if !self.revoked.is_empty() && self.revoked.contains(&KeyDigest::of_key(certificate.public_key().raw)) {
                return Err(PeerRejected::RevokedAuthority);
            }
            if let Some(constraints) = constraints_of(renamed, certificate.tbs_certificate.as_ref()) {
                check_uris(constraints, &below)?;
            }
            below.extend(uris(&certificate)?.into_iter().map(str::to_owned));
        }
        check_uris(&beside.uri_constraints, &below)
    }
}

fn check_uris(constraints: &UriConstraints, below: &[String]) -> Result<(), PeerRejected> {
    constraints.check(below.iter().map(String::as_str))?;
    Ok(())
}

impl From<ForbiddenUri> for PeerRejected {
    fn from(error: ForbiddenUri) -> Self {
        Self::InvalidPath(error.to_string())
    }
}

impl From<Fault> for PeerRejected {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::NotYetValid { not_before, now } => Self::NotYetValid {
                not_before: Moment(not_before),
                now: Moment(now),
            },
            Fault::Expired { not_after, now } => Self::Expired {
                not_after: Moment(not_after),
                now: Moment(now),
            },
            Fault::PathLength { below, allowed } => Self::InvalidPath(format!(
                "{below} authorities are below one that allows {allowed} (path length)"
            )),
            Fault::ExtendedKeyUsage => Self::AuthorityExtendedKeyUsage,
        }
    }
}

// === impl Moment ===

/// The last second that RFC 3339, and X.509, can say: of the year 9999.
const MOMENT_MAX: u64 = 253_402_300_799;

impl std::fmt::Display for Moment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = u64::try_from(self.0).unwrap_or_default().min(MOMENT_MAX);
        humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + Duration::from_secs(seconds)).fmt(f)
    }
}

impl From<SystemTime> for Moment {
    fn from(time: SystemTime) -> Self {
        let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Self(i64::try_from(seconds).unwrap_or(i64::MAX))
    }
}

impl From<&UnixTime> for Moment {
    fn from(time: &UnixTime) -> Self {
        Self(i64::try_from(time.as_secs()).unwrap_or(i64::MAX))
    }
}

/// What webpki found, in our words.
fn rejected(error: &webpki::Error, trust_domain: &TrustDomain) -> PeerRejected {
    use webpki::Error;
    match error {
        Error::UnknownIssuer => PeerRejected::UnknownAuthority(trust_domain.clone()),
        Error::CertExpired { not_after, time } => PeerRejected::Expired {
            not_after: not_after.into(),
            now: time.into(),
        },
        Error::CertNotValidYet { not_before, time } => PeerRejected::NotYetValid {
            not_before: not_before.into(),
            now: time.into(),
        },
        Error::EndEntityUsedAsCa => PeerRejected::NotAnAuthority(InvalidAuthority::NotCa),
        Error::CaUsedAsEndEntity => PeerRejected::Profile(InvalidSvid::CertificateAuthority),
        Error::RequiredEkuNotFoundContext(_) | Error::EmptyEkuExtension => PeerRejected::AuthorityExtendedKeyUsage,
        Error::InvalidSignatureForPublicKey
        | Error::SignatureAlgorithmMismatch
        | Error::UnsupportedSignatureAlgorithmContext(_)
        | Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => PeerRejected::BadSignature(error.to_string()),
        Error::PathLenConstraintViolated
        | Error::NameConstraintViolation
        | Error::MaximumNameConstraintComparisonsExceeded
        | Error::MaximumPathBuildCallsExceeded
        | Error::MaximumPathDepthExceeded
        | Error::MaximumSignatureChecksExceeded
        | Error::CertDistrusted => PeerRejected::InvalidPath(error.to_string()),
        _ => PeerRejected::Malformed(error.to_string()),
    }
}

// === impl VerifiedPeer ===

impl VerifiedPeer {
    /// Who the peer is.
    pub fn spiffe_id(&self) -> &SpiffeId {
        self.leaf.spiffe_id()
    }

    /// What its leaf says.
    pub fn leaf(&self) -> &Leaf {
        &self.leaf
    }

    /// The key that signed its certificate. Several authorities may vouch for a trust domain, also such as are under another one's: who
    /// takes only what was issued in one place goes by this.
    pub fn signer(&self) -> KeyDigest {
        self.signer
    }

    /// When its certificate ends, and with it what this proves.
    pub fn not_after(&self) -> SystemTime {
        self.leaf.not_after()
    }

    /// Its certificate's serial number, lower-case hex.
    pub fn serial(&self) -> &str {
        self.leaf.serial()
    }

    /// This evidence, if it is about `expected`.
    ///
    /// # Errors
    /// [`PeerRejected::UnexpectedPeer`] if the peer is somebody else.
    pub fn require(self, expected: &SpiffeId) -> Result<Self, PeerRejected> {
        if self.spiffe_id() == expected {
            return Ok(self);
        }
        Err(PeerRejected::UnexpectedPeer {
            expected: expected.clone(),
            found: self.leaf.spiffe_id,
        })
    }
}

// === impl PeerRejected ===

impl PeerRejected {
    /// A stable word for logs, records and metrics: one of `no_certificate`, `malformed`, `no_spiffe_id`,
    /// `several_spiffe_ids`, `trust_domain_id`, `not_a_leaf`, `wrong_key_usage`, `wrong_extended_key_usage`,
    /// `unknown_trust_domain`, `unknown_authority`, `not_an_authority`, `expired`, `not_yet_valid`,
    /// `bad_signature`, `invalid_path`, `unexpected_peer`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::Malformed(_) => "malformed",
            Self::Profile(reason) => profile_code(reason),
            Self::UnknownTrustDomain(_) => "unknown_trust_domain",
            Self::UnknownAuthority(_) => "unknown_authority",
            Self::NotAnAuthority(_) => "not_an_authority",
            Self::RevokedAuthority => "revoked_authority",
            Self::Expired { .. } => "expired",
            Self::NotYetValid { .. } => "not_yet_valid",
            Self::BadSignature(_) => "bad_signature",
            Self::AuthorityExtendedKeyUsage => "wrong_extended_key_usage",
            Self::InvalidPath(_) => "invalid_path",
            Self::UnexpectedPeer { .. } => "unexpected_peer",
        }
    }
}

fn profile_code(reason: &InvalidSvid) -> &'static str {
    match reason {
        InvalidSvid::NoUriSan | InvalidSvid::NotSpiffeId(_) => "no_spiffe_id",
        InvalidSvid::SeveralUriSans(_) => "several_spiffe_ids",
        InvalidSvid::TrustDomainId(_) => "trust_domain_id",
        InvalidSvid::CertificateAuthority | InvalidSvid::KeyCertSign => "not_a_leaf",
        InvalidSvid::NoKeyUsage
        | InvalidSvid::KeyUsageNotCritical
        | InvalidSvid::NoDigitalSignature
        | InvalidSvid::CrlSign => "wrong_key_usage",
        InvalidSvid::ExtendedKeyUsage => "wrong_extended_key_usage",
        InvalidSvid::Malformed(_) | InvalidSvid::SanNotCritical | InvalidSvid::NoLifetime => "malformed",
        // Not about a peer's leaf; named so that a new reason gets a word of its own.
        InvalidSvid::NoCertificate
        | InvalidSvid::MemberId(_)
        | InvalidSvid::ChainTooLong(_)
        | InvalidSvid::Chain { .. }
        | InvalidSvid::Key
        | InvalidSvid::KeyMismatch(_) => "malformed",
    }
}

#[cfg(test)]
mod tests;
