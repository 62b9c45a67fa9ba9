//! Nodes that have a certificate of another authority already, a company's own: by that, and by proof of its key.

use std::path::PathBuf;
use std::time::SystemTime;

use hoplite_identity::{CHALLENGE_BYTES, Fingerprint, SelectorKind, proof_of_possession};
use ring::rand::{SecureRandom, SystemRandom};
use rustls::pki_types::SignatureVerificationAlgorithm;
use serde::Deserialize;
use webpki::{EndEntityCert, KeyUsage, aws_lc_rs};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use crate::attestors::roots::{self, Roots};
use crate::attestors::{Attest, BadSetting, Node, NotProven, Proven, Shown, selector};

/// DNS names of one certificate that become selectors.
const NAMES_MAX: usize = 32;

/// How possession is proved: by the algorithm that belongs to the kind of key, never by one that the node names.
static ALGORITHMS: &[&dyn SignatureVerificationAlgorithm] = &[
    aws_lc_rs::ECDSA_P256_SHA256,
    aws_lc_rs::ECDSA_P384_SHA384,
    aws_lc_rs::ED25519,
    aws_lc_rs::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
];

/// `kind = "x509pop"`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct X509popSettings {
    /// By which agents ask for it; `x509pop` when left out.
    #[serde(default)]
    pub name: Option<String>,
    /// What its nodes are called, `corp-{x509pop:cn}`; `NAME-{identity}` when left out.
    #[serde(default)]
    pub node: Option<String>,
    /// The authorities that vouch for its nodes, PEM. All that they have certified for clients are nodes then: have one for nodes alone.
    pub roots: PathBuf,
}

/// The attestor.
pub(crate) struct X509pop {
    roots: Roots,
}

// === impl X509popSettings ===

impl X509popSettings {
    pub(crate) fn open(&self) -> Result<X509pop, BadSetting> {
        Ok(X509pop {
            roots: Roots::read("roots", &self.roots)?,
        })
    }
}

// === impl X509pop ===

#[tonic::async_trait]
impl Attest for X509pop {
    async fn attest(&self, shown: Shown<'_>, node: &mut dyn Node, now: SystemTime) -> Result<Proven, NotProven> {
        let refused = |reason: String| NotProven::Refused(format!("the certificate is not believed: {reason}"));
        let chain = roots::chain(shown.proof)?;
        let (first, others) = chain.split_first().ok_or(NotProven::Malformed("certificate"))?;
        let leaf = EndEntityCert::try_from(first).map_err(|error| refused(error.to_string()))?;
        let root = self
            .roots
            .vouches(&leaf, others, KeyUsage::client_auth(), now)
            .map_err(|error| refused(error.to_string()))?;

        let mut challenge = [0; CHALLENGE_BYTES];
        let filled = SystemRandom::new().fill(&mut challenge);
        filled.map_err(|_| NotProven::Unavailable("the system gives no random bytes".to_owned()))?;
        let answer = node.challenge(challenge.to_vec()).await;
        let answer = answer.ok_or_else(|| refused("its key was not proved: no answer to the challenge".to_owned()))?;
        let message = proof_of_possession(&challenge, shown.csr);
        let is_signed = ALGORITHMS
            .iter()
            .any(|algorithm| leaf.verify_signature(*algorithm, &message, &answer).is_ok());
        if !is_signed {
            return Err(refused(
                "its key was not proved: the answer to the challenge is not signed by it".to_owned(),
            ));
        }

        // From here on it is the root's word, about who has just signed.
        let parsed = X509Certificate::from_der(first);
        let (_, parsed) = parsed.map_err(|error| refused(error.to_string()))?;
        let names = parsed.subject_alternative_name().ok().flatten();
        let names = names.map(|names| names.value.general_names.clone()).unwrap_or_default();
        let dns = names.iter().filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.to_lowercase()),
            _ => None,
        });
        let dns: Vec<String> = dns.take(NAMES_MAX).collect();
        let subject = parsed.subject();
        if subject.as_raw().len() <= 2 && names.is_empty() {
            return Err(refused(
                "it names nobody: it has neither a subject nor other names".to_owned(),
            ));
        }
        // What the root names: a certificate that is renewed with another key is the same node's.
        let named = names.iter().map(|name| format!("{name:?}"));
        let identity = [
            "x509".to_owned(),
            root.fingerprint.clone(),
            data_encoding::HEXLOWER.encode(subject.as_raw()),
        ];
        let identity = identity.into_iter().chain(named).collect();
        // One of several common names could be anybody's.
        let mut common_names = subject.iter_common_name();
        let common_name = common_names.next().filter(|_| common_names.next().is_none());
        let common_name = common_name.and_then(|name| name.as_str().ok());
        let mut selectors = vec![
            selector(SelectorKind::X509popRoot, &root.fingerprint),
            selector(SelectorKind::X509popFingerprint, &Fingerprint::of(first).to_string()),
            common_name.and_then(|name| selector(SelectorKind::X509popCn, name)),
        ];
        selectors.extend(dns.iter().map(|name| selector(SelectorKind::X509popDns, name)));
        Ok(Proven {
            identity,
            selectors: selectors.into_iter().flatten().collect(),
            bearer: None,
        })
    }
}
