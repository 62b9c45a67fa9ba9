//! Authorities of others above the CA's own: who signs its certificates then, and whom members trust.
//!
//! An upstream authority from disk is a company's: its certificate, with those above it, and its key. Another Hoplite CA signs over the
//! network. Each authority that the CA makes is an intermediate under it. All that an upstream forbids is found out here, before anything
//! is signed that nobody would accept.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use hoplite_host::config::printable;
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

    /// Whether what is known of it without its key can be used: looked at when the CA starts. Blocks.
    fn look(&self) -> Result<(), UpstreamError> {
        Ok(())
    }

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
    /// One of its certificates has ended.
    #[error(
        "the certificate `{subject}` in `{file}` has ended at {not_after}, and nothing that is signed below it is believed; put a newer one in its place \
         (if the clock is right, which says {now})",
        file = .file.display()
    )]
    Ended {
        /// Its file.
        file: PathBuf,
        /// Whose it is.
        subject: String,
        /// When.
        not_after: Moment,
        /// What the clock says.
        now: Moment,
    },
    /// It ends too soon.
    #[error(
        "the certificate `{subject}` in `{file}` ends at {not_after}, and what is signed below it has to live for {least} at least; put a newer one in its place, or \
         lower `x509_ttl` and `agent_ttl`",
        file = .file.display()
    )]
    Ends {
        /// Its file.
        file: PathBuf,
        /// Whose it is.
        subject: String,
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

    /// Whom members trust. Each is signed by itself: who joins believes nobody else by a fingerprint.
    fn roots(&self, file: &Path) -> Result<Vec<CertificateDer<'static>>, UpstreamError> {
        let roots = self.read(file)?;
        for root in &roots {
            let problem = match X509Certificate::from_der(root) {
                Ok((_, certificate)) if signs_itself(&certificate) => continue,
                Ok((_, certificate)) => format!(
                    "has the certificate `{}`, which is not signed by itself, so it is no root, and nobody could join; write the root that it ends at in its place, \
                     and the certificates between in the file of `certificate`",
                    name(&certificate)
                ),
                Err(_) => "has something in it that is no certificate".to_owned(),
            };
            let file = file.to_owned();
            return Err(UpstreamError::Unusable { file, problem });
        }
        Ok(roots)
    }

    /// The file that has the certificate which ends at this moment, and whose it is.
    fn ending(&self, not_after: SystemTime) -> (PathBuf, String) {
        let ends = |der: &&CertificateDer<'static>| life(der).is_some_and(|life| life.end == not_after);
        let mut files = [&self.certificate].into_iter().chain(&self.roots);
        let found = files.find_map(|file| {
            let ders = self.read(file).ok()?;
            Some((file.clone(), subject(ders.iter().find(ends)?)))
        });
        found.unwrap_or_else(|| {
            let ders = self.read(&self.certificate).unwrap_or_default();
            let subject = ders.first().map(subject).unwrap_or_default();
            (self.certificate.clone(), subject)
        })
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
        now: SystemTime,
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
        let is_root = signs_itself(&signer);
        let roots = match &self.roots {
            Some(file) => self.roots(file)?,
            None if is_root => vec![signs.clone()],
            None => {
                return Err(unusable(
                    "is no root: say with `roots` whom members of the trust domain trust",
                ));
            }
        };
        let has_ended = |der: &&CertificateDer<'static>| life(der).is_some_and(|life| life.end <= now);
        if let Some(der) = chain.iter().find(has_ended) {
            return Err(ended(&self.certificate, der, now));
        }
        let above = roots_above(&chain, &roots);
        if let (Some(file), Some(der)) = (&self.roots, above.first())
            && above.iter().all(has_ended)
        {
            return Err(ended(file, der, now));
        }
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

    fn look(&self) -> Result<(), UpstreamError> {
        match self.roots.as_deref().map(|file| self.roots(file)) {
            // Whoever signs next needs it; a start does not.
            None | Some(Ok(_) | Err(UpstreamError::File(_))) => Ok(()),
            Some(Err(error)) => Err(error),
        }
    }

    fn ends_too_soon(&self, not_after: SystemTime, least: Duration) -> UpstreamError {
        let (file, subject) = self.ending(not_after);
        UpstreamError::Ends {
            file,
            subject,
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

/// The roots that a chain may end at: those that its last certificate names as its issuer; all where none is named so.
fn roots_above<'a>(
    chain: &[CertificateDer<'_>],
    roots: &'a [CertificateDer<'static>],
) -> Vec<&'a CertificateDer<'static>> {
    let issuer = chain.last().and_then(|last| {
        let (_, last) = X509Certificate::from_der(last).ok()?;
        Some(last.issuer().as_raw().to_owned())
    });
    let is_named = |root: &&CertificateDer<'static>| {
        let read = X509Certificate::from_der(root);
        read.is_ok_and(|(_, root)| issuer.as_deref() == Some(root.subject().as_raw()))
    };
    let named: Vec<_> = roots.iter().filter(is_named).collect();
    match named.is_empty() {
        true => roots.iter().collect(),
        false => named,
    }
}

fn ended(file: &Path, der: &CertificateDer<'_>, now: SystemTime) -> UpstreamError {
    UpstreamError::Ended {
        file: file.to_owned(),
        subject: subject(der),
        not_after: life(der).map_or(now, |life| life.end).into(),
        now: now.into(),
    }
}

/// As `hoplite join` asks of the authority whose fingerprint is in an invitation.
fn signs_itself(certificate: &X509Certificate<'_>) -> bool {
    certificate.subject().as_raw() == certificate.issuer().as_raw() && certificate.verify_signature(None).is_ok()
}

/// Whose certificate it is, for people.
fn subject(der: &CertificateDer<'_>) -> String {
    let read = X509Certificate::from_der(der);
    read.map(|(_, certificate)| name(&certificate)).unwrap_or_default()
}

fn name(certificate: &X509Certificate<'_>) -> String {
    printable(certificate.subject().to_string().chars())
}

/// From its first second to its last.
fn life(der: &CertificateDer<'_>) -> Option<Range<SystemTime>> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let at = |time: ASN1Time| u64::try_from(time.timestamp()).ok().map(record::from_unix_seconds);
    let validity = certificate.validity();
    Some(at(validity.not_before)?..at(validity.not_after)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::keyring::Keyring;
    use rcgen::{DnType, KeyUsagePurpose, date_time_ymd};

    /// In the year 2027.
    fn now() -> SystemTime {
        record::from_unix_seconds(1_800_000_000)
    }

    /// A root and an intermediate below it, which end in these years, in files of a directory.
    fn company(dir: &Path, root_ends: i32, ends: i32) -> DiskUpstream {
        let authority = |name: &str, year: i32| {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(year, 1, 1);
            (params, KeyPair::generate().unwrap())
        };
        let write = |name: &str, der: &CertificateDer<'static>| {
            let text = pem::write_certificates(std::slice::from_ref(der));
            files::write_public(&dir.join(name), text.as_bytes()).unwrap();
        };
        let (root, root_key) = authority("Example Root", root_ends);
        write("root.pem", root.self_signed(&root_key).unwrap().der());
        let (below, key) = authority("Example Machines", ends);
        let below = below.signed_by(&key, &Issuer::new(root, root_key)).unwrap();
        write("int.pem", below.der());
        let key_file = dir.join("int.key");
        files::write_private(&key_file, pem::write_private_key(&key.serialize_der()).as_bytes()).unwrap();
        DiskUpstream {
            certificate: dir.join("int.pem"),
            key: key_file,
            roots: Some(dir.join("root.pem")),
        }
    }

    fn sign(dir: &Path, upstream: &DiskUpstream) -> Result<SystemTime, UpstreamError> {
        let keys = dir.join("keys");
        files::private_dir(&keys).unwrap();
        let made = Keyring::of(&keys).make().unwrap();
        let year = Duration::from_secs(365 * 24 * 3600);
        let signed = upstream.sign(CertificateParams::default(), &made.signer, now() + year, now());
        signed.map(|(_, not_after)| not_after)
    }

    #[test]
    fn a_certificate_that_has_ended_is_named_with_its_file() {
        let check = |root_ends: i32, ends: i32, expected: &[&str]| {
            let dir = tempfile::tempdir().unwrap();
            match sign(dir.path(), &company(dir.path(), root_ends, ends)) {
                Ok(_) => assert!(expected.is_empty(), "{root_ends} {ends}"),
                Err(error) => {
                    let said = error.to_string();
                    assert!(!expected.is_empty() && !said.contains("x509_ttl"), "{said}");
                    for part in [expected, &["put a newer one in its place"]].concat() {
                        assert!(said.contains(part), "`{part}` is missing from `{said}`");
                    }
                }
            }
        };
        check(2040, 2030, &[]);
        check(2021, 2030, &["Example Root", "/root.pem`", "2021-01-01"]);
        check(2040, 2022, &["Example Machines", "/int.pem`", "2022-01-01"]);
    }

    #[test]
    fn what_ends_too_soon_is_named_with_its_file() {
        let check = |root_ends: i32, ends: i32, expected: &[&str]| {
            let dir = tempfile::tempdir().unwrap();
            let upstream = company(dir.path(), root_ends, ends);
            let not_after = sign(dir.path(), &upstream).unwrap();
            let said = upstream.ends_too_soon(not_after, Duration::from_secs(3600)).to_string();
            for part in [expected, &["x509_ttl"]].concat() {
                assert!(said.contains(part), "`{part}` is missing from `{said}`");
            }
        };
        check(2028, 2030, &["Example Root", "/root.pem`", "2028-01-01"]);
        check(2030, 2028, &["Example Machines", "/int.pem`", "2028-01-01"]);
    }

    #[test]
    fn roots_are_signed_by_themselves() {
        let dir = tempfile::tempdir().unwrap();
        let good = company(dir.path(), 2040, 2040);
        good.look().unwrap();
        let intermediate = DiskUpstream {
            roots: Some(good.certificate.clone()),
            ..good.clone()
        };
        for refused in [
            intermediate.look().unwrap_err(),
            sign(dir.path(), &intermediate).unwrap_err(),
        ] {
            let said = refused.to_string();
            for part in ["/int.pem`", "Example Machines", "is no root", "in its place"] {
                assert!(said.contains(part), "`{part}` is missing from `{said}`");
            }
        }
        // Whoever signs next needs the file; a start does not.
        let away = DiskUpstream {
            roots: Some(dir.path().join("away.pem")),
            ..good
        };
        away.look().unwrap();
        assert!(matches!(sign(dir.path(), &away), Err(UpstreamError::File(_))));
    }
}
