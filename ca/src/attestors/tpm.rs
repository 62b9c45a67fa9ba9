//! Nodes by their machine's TPM 2.0: its endorsement key, which an operator knows or a maker has certified, and a challenge that only
//! that chip can answer.

mod certificate;
mod known;

use std::path::PathBuf;
use std::time::SystemTime;

use data_encoding::HEXLOWER;
use hoplite_identity::SelectorKind;
use hoplite_tpm::{Answer, AttestationKey, Credential, EndorsementKey, NoCredential};
use serde::Deserialize;

use crate::attestors::roots::Roots;
use crate::attestors::tpm::known::Known;
use crate::attestors::{Attest, BadSetting, Node, NotProven, Proven, Shown, selector};

/// `kind = "tpm"`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TpmSettings {
    /// By which agents ask for it; `tpm` when left out.
    #[serde(default)]
    pub name: Option<String>,
    /// What its nodes are called, `rack-{tpm:ek-sha256}`; `NAME-{identity}` when left out.
    #[serde(default)]
    pub node: Option<String>,
    /// Which TPMs are its nodes: in each line the SHA-256 of an endorsement key. Read again when it changes.
    #[serde(default)]
    pub endorsement_keys: Option<PathBuf>,
    /// The makers that have certified its nodes' endorsement keys, PEM. Without them a key that is known needs no certificate.
    #[serde(default)]
    pub roots: Option<PathBuf>,
    /// All TPMs that these makers have certified are nodes, whoever owns them.
    #[serde(default)]
    pub any_certified: bool,
}

/// The attestor.
pub(crate) struct Tpm {
    /// None where all count that are certified.
    known: Option<Known>,
    roots: Option<Roots>,
}

// === impl TpmSettings ===

impl TpmSettings {
    pub(crate) fn open(&self) -> Result<Tpm, BadSetting> {
        let bad = |key: &'static str, value: &str, reason: &str| BadSetting {
            key,
            value: value.to_owned(),
            reason: reason.to_owned(),
        };
        match (&self.endorsement_keys, &self.roots, self.any_certified) {
            (None, None, _) => {
                let reason = "write which TPMs are nodes: a file with the SHA-256 of one endorsement key in each line";
                return Err(bad("endorsement_keys", "", reason));
            }
            (None, Some(_), false) => {
                let reason = "everybody who has a TPM of these makers would be a node; write which are: a file with the SHA-256 of one \
                              endorsement key in each line, or `any_certified = true` if all of them should be";
                return Err(bad("endorsement_keys", "", reason));
            }
            (Some(_), _, true) => {
                let reason = "with `endorsement_keys` only those count; write one of both";
                return Err(bad("any_certified", "true", reason));
            }
            (None, Some(_), true) | (Some(_), _, false) => {}
        }
        let roots = self.roots.as_deref().map(|file| Roots::read("roots", file));
        let known = self.endorsement_keys.as_deref().map(Known::open);
        Ok(Tpm {
            known: known.transpose()?,
            roots: roots.transpose()?,
        })
    }
}

// === impl Tpm ===

impl Tpm {
    /// Whether this endorsement key is a node's, as far as that can be said without asking its TPM.
    fn believed(&self, key: &EndorsementKey, chain: &[Vec<u8>], now: SystemTime) -> Result<(), NotProven> {
        if let Some(known) = &self.known
            && !known.contains(&key.sha256())
        {
            let digest = HEXLOWER.encode(&key.sha256());
            let text = format!("its TPM's endorsement key, {digest}, is not in `endorsement_keys`");
            return Err(NotProven::Refused(text));
        }
        let Some(roots) = &self.roots else { return Ok(()) };
        let certified = certificate::certified(key, chain, roots, now);
        certified.map_err(|reason| {
            let digest = HEXLOWER.encode(&key.sha256());
            NotProven::Refused(format!(
                "the certificate of its TPM's endorsement key, {digest}, is not believed: {reason}"
            ))
        })
    }
}

#[tonic::async_trait]
impl Attest for Tpm {
    async fn attest(&self, shown: Shown<'_>, node: &mut dyn Node, now: SystemTime) -> Result<Proven, NotProven> {
        let refused = |reason: String| NotProven::Refused(format!("its TPM is not believed: {reason}"));
        let [attestation, endorsement, chain @ ..] = shown.proof else {
            return Err(NotProven::Malformed(
                "public areas of a TPM's attestation key and endorsement key",
            ));
        };
        let attestation = AttestationKey::from_public(attestation).map_err(|error| refused(error.to_string()))?;
        let endorsement = EndorsementKey::from_public(endorsement).map_err(|error| refused(error.to_string()))?;
        self.believed(&endorsement, chain, now)?;

        // Only the chip that has both keys can say what is in it. It lives no longer than this exchange, and in nothing else.
        let credential = Credential::make(&endorsement, &attestation);
        let credential = credential.map_err(|error| match error {
            NoCredential::Key => refused(error.to_string()),
            NoCredential::Random => NotProven::Unavailable(error.to_string()),
        })?;
        let answer = node.challenge(credential.challenge.encode()).await;
        let answer = answer.ok_or_else(|| refused("no answer to the challenge".to_owned()))?;
        let answer = Answer::parse(&answer).map_err(|error| refused(format!("the answer is {error}")))?;
        let verified = answer.verify(&attestation, &credential.secret, shown.csr);
        verified.map_err(|error| refused(error.to_string()))?;

        let digest = HEXLOWER.encode(&endorsement.sha256());
        let selectors = selector(SelectorKind::TpmEkSha256, &digest);
        Ok(Proven {
            identity: vec!["tpm".to_owned(), digest],
            selectors: selectors.into_iter().collect(),
            bearer: None,
        })
    }
}
