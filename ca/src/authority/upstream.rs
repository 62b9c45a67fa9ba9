//! Authorities of others above the CA's own: who signs its certificates then, and whom members trust.
//!
//! An upstream authority from disk is a company's: its certificate, with those above it, and its key. Another Hoplite CA signs over the
//! network. Each authority that the CA makes is an intermediate under it. All that an upstream forbids is found out here, before anything
//! is signed that nobody would accept.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use hoplite_host::files::{self, FileError};
use hoplite_identity::{
    BundleSet, CertificateDer, InvalidBundle, Moment, PeerRejected, PeerRole, PeerVerifier, TrustBundle, TrustDomain,
    pem,
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PublicKeyData};
use serde::Deserialize;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::time::ASN1Time;

use crate::authority::link::{Link, LinkError};
use crate::authority::signer::Signer;
use crate::authority::trust::Certified;
use crate::record;

/// The certificates of a chain, without the roots: what every verifier of ours takes.
const CHAIN_MAX: usize = 6;

/// An upstream authority whose certificate and key lie in files. They are read for each signature: whoever replaces them need not
/// start the CA anew.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskUpstream {
    /// PEM: the certificate that signs, and after it those that connect it to a root.
    pub certificate: PathBuf,
    /// PEM, PKCS#8: its key.
    pub key: PathBuf,
    /// PEM: whom members of the trust domain trust. The certificate itself when left out, which has to be a root then.
    #[serde(default)]
    pub roots: Option<PathBuf>,
}

/// Signs the CA's authorities.
pub(crate) trait Upstream: fmt::Debug + Send + Sync {
    /// A certificate of this signer's key; `params` says all but who signs it, how long it may live, and how many authorities may be below
    /// it. It ends at `not_after`, or with what is above it. Blocks.
    fn sign(
        &self,
        params: CertificateParams,
        signer: &Signer,
        not_after: SystemTime,
        now: SystemTime,
    ) -> Result<(Certified, SystemTime), UpstreamError>;

    /// What the operator is told when what it signs ends too soon.
    fn ends_too_soon(&self, not_after: SystemTime, least: Duration) -> UpstreamError;

    /// Since when it cannot be asked, and why, if that is known.
    fn away(&self) -> Option<String> {
        None
    }
}

/// Why an upstream authority does not sign. One sentence for the operator.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UpstreamError {
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is not what it should be.
    #[error("`{file}` {problem}", file = .file.display())]
    Unusable {
        /// The file.
        file: PathBuf,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// It ends too soon.
    #[error(
        "the upstream authority of `{file}` ends at {not_after}, and what is signed below it has to live for {least} at least; put a newer certificate, and its key, in its place, or \
         lower `x509_ttl` and `agent_ttl`",
        file = .file.display()
    )]
    Ends {
        /// Its file.
        file: PathBuf,
        /// When.
        not_after: Moment,
        /// What is needed.
        least: String,
    },
    /// What the CA above signs ends too soon.
    #[error(
        "what the CA above signs now ends at {not_after}, and an authority here has to live for {least} at least; the CA above signs for longer \
         after its own authority's next turn: raise its `authority_ttl`, or lower `x509_ttl` and `agent_ttl` here"
    )]
    EndsAbove {
        /// When.
        not_after: Moment,
        /// What is needed.
        least: String,
    },
    /// The CA above does not do what is asked.
    #[error(transparent)]
    Above(#[from] LinkError),
    /// Nobody would accept what is below it.
    #[error(
        "nobody would accept a member of this trust domain under the upstream authority: {0}; it needs a certificate that may sign authorities below itself (path length 1 or more) and \
         whose name constraints, if it has any, permit the URI of the trust domain, and `roots` has to hold the root that it ends at"
    )]
    Refused(PeerRejected),
    /// The roots cannot be used.
    #[error(
        "the roots of the upstream authority cannot be used: {0}; they are in the file that `roots` names, and without it in that of `certificate`"
    )]
    Roots(#[from] InvalidBundle),
    /// A certificate could not be built.
    #[error("the upstream authority cannot sign: {0}")]
    Build(#[from] rcgen::Error),
}

// === impl DiskUpstream ===

impl DiskUpstream {
    fn read(&self, file: &Path) -> Result<Vec<CertificateDer<'static>>, UpstreamError> {
        let unusable = |problem: String| UpstreamError::Unusable {
            file: file.to_owned(),
            problem,
        };
        let text = files::read_text(file)?;
        let found =
            pem::certificates(&text).map_err(|error| unusable(format!("is no PEM file of certificates: {error}")))?;
        match found.len() {
            0 => Err(unusable("has no certificate in it".to_owned())),
            1..=CHAIN_MAX => Ok(found),
            count => Err(unusable(format!(
                "has {count} certificates, and {CHAIN_MAX} are the most"
            ))),
        }
    }

    fn key(&self) -> Result<KeyPair, UpstreamError> {
        let unusable = |problem: &str| UpstreamError::Unusable {
            file: self.key.clone(),
            problem: problem.to_owned(),
        };
        let bytes = zeroize::Zeroizing::new(files::read_private(&self.key)?);
        let text = std::str::from_utf8(&bytes).map_err(|_| unusable("is no text"))?;
        let remedy = "is no PKCS#8 key in PEM that is not encrypted; `openssl pkcs8 -topk8 -nocrypt -in KEY` makes one of other forms";
        let der = pem::private_key(text).map_err(|_| unusable(remedy))?;
        KeyPair::try_from(der.as_slice()).map_err(|_| unusable(remedy))
    }
}

impl Upstream for DiskUpstream {
    fn sign(
        &self,
        mut params: CertificateParams,
        signer_here: &Signer,
        not_after: SystemTime,
        _: SystemTime,
    ) -> Result<(Certified, SystemTime), UpstreamError> {
        let unusable = |problem: &str| UpstreamError::Unusable {
            file: self.certificate.clone(),
            problem: problem.to_owned(),
        };
        let chain = self.read(&self.certificate)?;
        let (signs, others) = chain
            .split_first()
            .ok_or_else(|| unusable("has no certificate in it"))?;
        let (_, signer) =
            X509Certificate::from_der(signs).map_err(|_| unusable("begins with something that is no certificate"))?;
        let is_root = signer.subject().as_raw() == signer.issuer().as_raw() && signer.verify_signature(None).is_ok();
        let roots = match &self.roots {
            Some(file) => self.read(file)?,
            None if is_root => vec![signs.clone()],
            None => {
                return Err(unusable(
                    "is no root: say with `roots` whom members of the trust domain trust",
                ));
            }
        };
        let upstream_key = self.key()?;
        if signer.public_key().raw != upstream_key.subject_public_key_info() {
            let problem = format!(
                "is not the key of the first certificate in `{}`",
                self.certificate.display()
            );
            let file = self.key.clone();
            return Err(UpstreamError::Unusable { file, problem });
        }
        let below = match signer.basic_constraints() {
            Ok(Some(constraints)) if constraints.value.ca => constraints.value.path_len_constraint,
            _ => {
                return Err(unusable(
                    "begins with a certificate that may not sign others (`CA:TRUE` is missing)",
                ));
            }
        };
        params.is_ca = match below {
            None => IsCa::Ca(BasicConstraints::Unconstrained),
            Some(0) => {
                return Err(unusable(
                    "begins with a certificate that may sign no authority below itself (path length 0); ask for one with a path length of 1 or more",
                ));
            }
            Some(length) => IsCa::Ca(BasicConstraints::Constrained(
                u8::try_from(length - 1).unwrap_or(u8::MAX),
            )),
        };
        // Nothing outlives what it is under, and nothing is older.
        let lives = |chain: &[CertificateDer<'_>]| chain.iter().filter_map(life).collect::<Vec<_>>();
        let (above, roots_live) = (lives(&chain), lives(&roots));
        let begins = above.iter().map(|life| life.start).max();
        let a_root_begins = roots_live.iter().map(|life| life.start).min();
        for begins in begins.into_iter().chain(a_root_begins) {
            params.not_before = params.not_before.max(begins.into());
        }
        let ends = above.iter().map(|life| life.end).min();
        let a_root_ends = roots_live.iter().map(|life| life.end).max();
        let not_after = ends.into_iter().chain(a_root_ends).fold(not_after, SystemTime::min);
        params.not_after = not_after.into();
        params.use_authority_key_identifier_extension = true;
        let issuer = Issuer::from_ca_cert_der(signs, upstream_key)?;
        let certificate = params.signed_by(signer_here, &issuer)?.der().clone();
        let is_a_root = |der: &&CertificateDer<'static>| !roots.contains(der);
        let certified = Certified {
            certificate,
            above: std::iter::once(signs)
                .chain(others)
                .filter(is_a_root)
                .cloned()
                .collect(),
            roots,
            is_nested: false,
        };
        Ok((certified, not_after))
    }

    fn ends_too_soon(&self, not_after: SystemTime, least: Duration) -> UpstreamError {
        UpstreamError::Ends {
            file: self.certificate.clone(),
            not_after: not_after.into(),
            least: humantime::format_duration(least).to_string(),
        }
    }
}

// === impl Link ===

impl Upstream for Link {
    fn sign(
        &self,
        _: CertificateParams,
        signer: &Signer,
        not_after: SystemTime,
        now: SystemTime,
    ) -> Result<(Certified, SystemTime), UpstreamError> {
        let csr = CertificateParams::default().serialize_request(signer)?.der().to_vec();
        let ttl = record::unix_seconds(not_after).saturating_sub(record::unix_seconds(now));
        let certified = self.ask(csr, ttl)?;
        let life = life(&certified.certificate).filter(|_| certified.above.len() < CHAIN_MAX);
        let end = life
            .map(|life| life.end)
            .ok_or_else(|| LinkError::Answer("no certificate, or too many above it".to_owned()))?;
        Ok((certified, end))
    }

    fn ends_too_soon(&self, not_after: SystemTime, least: Duration) -> UpstreamError {
        UpstreamError::EndsAbove {
            not_after: Moment::from(not_after),
            least: humantime::format_duration(least).to_string(),
        }
    }

    fn away(&self) -> Option<String> {
        Self::away(self)
    }
}

/// That members are accepted under it: by the verifier that all of them have.
pub(crate) fn check(
    trust_domain: &TrustDomain,
    certified: &Certified,
    leaf: &CertificateDer<'_>,
    now: SystemTime,
) -> Result<(), UpstreamError> {
    let bundle = TrustBundle::new(trust_domain.clone(), certified.roots.clone(), 0)?;
    let chain: Vec<CertificateDer<'_>> = std::iter::once(leaf.clone())
        .chain(certified.below_the_root())
        .collect();
    let verifier = PeerVerifier::new(BundleSet::from_iter([bundle]))?;
    for role in [PeerRole::Server, PeerRole::Client] {
        verifier.verify(&chain, role, now).map_err(UpstreamError::Refused)?;
    }
    Ok(())
}

/// From its first second to its last.
fn life(der: &CertificateDer<'_>) -> Option<Range<SystemTime>> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let at = |time: ASN1Time| u64::try_from(time.timestamp()).ok().map(record::from_unix_seconds);
    let validity = certificate.validity();
    Some(at(validity.not_before)?..at(validity.not_after)?)
}
