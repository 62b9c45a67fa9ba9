//! A certificate of another authority, and the proof that this node has its key.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use hoplite_host::files;
use hoplite_identity::{CHALLENGE_BYTES, pem, proof_of_possession};
use rustls::SignatureScheme;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::sign::SigningKey;
use zeroize::Zeroizing;

use crate::proofs::{Key, NoProof, Proof};

/// One for each kind of key: what the CA takes.
const SCHEMES: [SignatureScheme; 4] = [
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ED25519,
    SignatureScheme::RSA_PSS_SHA256,
];

/// The key of the certificate that is shown.
pub(super) struct Possession {
    key: Arc<dyn SigningKey>,
    file: PathBuf,
}

/// The chain and the key, as they are in their files now.
pub(super) fn proof(certificate: &Path, key: &Path) -> Result<Proof, NoProof> {
    let unusable = |file: &Path, reason: &str| NoProof::Unusable {
        file: file.to_owned(),
        reason: reason.to_owned(),
    };
    let chain = pem::certificates(&files::read_text(certificate)?);
    let chain = chain.map_err(|error| unusable(certificate, &format!("is no chain of certificates: {error}")))?;
    if chain.is_empty() {
        return Err(unusable(certificate, "holds no certificate"));
    }
    let secret = Zeroizing::new(files::read_private(key)?);
    // What is wrong with it is not said in its words: they might be the key.
    let parsed = PrivateKeyDer::from_pem_slice(&secret);
    let parsed = parsed.map_err(|_| unusable(key, "holds no private key in PEM, or an encrypted one"))?;
    let signing =
        any_supported_type(&parsed).map_err(|_| unusable(key, "holds a key of a kind that cannot sign here"))?;
    Ok(Proof {
        shown: chain.iter().map(|certificate| certificate.to_vec()).collect(),
        key: Some(Key::Certificate(Possession {
            key: signing,
            file: key.to_owned(),
        })),
    })
}

// === impl Possession ===

impl Possession {
    /// The signature that proves the key, for this signing request.
    pub(super) fn answer(&self, challenge: &[u8], csr: &[u8]) -> Result<Vec<u8>, NoProof> {
        let unusable = |reason: &str| NoProof::Unusable {
            file: self.file.clone(),
            reason: reason.to_owned(),
        };
        let challenge: &[u8; CHALLENGE_BYTES] = challenge
            .try_into()
            .map_err(|_| unusable("is asked to sign what is no challenge"))?;
        let signer = self.key.choose_scheme(&SCHEMES);
        let signer = signer.ok_or_else(|| {
            unusable("holds a key of a kind that the CA does not take; use P-256, P-384, Ed25519 or RSA")
        })?;
        let signed = signer.sign(&proof_of_possession(challenge, csr));
        signed.map_err(|_| unusable("holds a key that cannot sign"))
    }
}
