//! The machine's TPM 2.0: its keys, the certificate of one, and the answer that only that chip can give.

use std::path::{Path, PathBuf};

use hoplite_host::files;
use hoplite_identity::pem;
use hoplite_tpm::{Device, NodeTpm};

use crate::proofs::{Key, NoProof, Proof, TpmJoin};

/// A TPM with its keys loaded.
pub(super) struct Chip {
    tpm: NodeTpm<Device>,
    device: PathBuf,
}

/// The keys of the TPM, and their certificate if there is one. Takes as long as the chip does to make them: seconds, of RSA.
pub(super) fn proof(settings: &TpmJoin) -> Result<Proof, NoProof> {
    let chain = settings.certificate.as_deref().map(chain).transpose()?;
    let failed = |reason: String| unusable(&settings.device, reason);
    let device = Device::open(&settings.device);
    let device = device.map_err(|error| failed(format!("cannot be opened as a TPM: {error}{}", remedy(&error))))?;
    let tpm = NodeTpm::prepare(device, settings.endorsement_key)
        .map_err(|error| failed(format!("is no TPM that can be used: {error}")))?;
    let in_tpm = || tpm.certificate().map(<[u8]>::to_vec).into_iter().collect();
    let certificates: Vec<Vec<u8>> = chain.unwrap_or_else(in_tpm);
    Ok(Proof {
        shown: tpm.shown().into_iter().chain(certificates).collect(),
        key: Some(Key::Tpm(Box::new(Chip {
            tpm,
            device: settings.device.clone(),
        }))),
    })
}

fn chain(file: &Path) -> Result<Vec<Vec<u8>>, NoProof> {
    let chain = pem::certificates(&files::read_text(file)?);
    let chain = chain.map_err(|error| unusable(file, format!("is no chain of certificates: {error}")))?;
    if chain.is_empty() {
        return Err(unusable(file, "holds no certificate".to_owned()));
    }
    Ok(chain.iter().map(|certificate| certificate.to_vec()).collect())
}

fn unusable(file: &Path, reason: String) -> NoProof {
    NoProof::Unusable {
        file: file.to_owned(),
        reason,
    }
}

fn remedy(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::NotFound => {
            "; has this machine a TPM 2.0, and is it on in the firmware? `[join] device` names another"
        }
        std::io::ErrorKind::PermissionDenied => {
            "; the agent's user must be in the device's group, which is `tss` on Debian"
        }
        _ => "",
    }
}

// === impl Chip ===

impl Chip {
    /// The quote that proves both keys to be in one chip, for this signing request.
    pub(super) fn answer(&mut self, challenge: &[u8], csr: &[u8]) -> Result<Vec<u8>, NoProof> {
        let answer = self.tpm.answer(challenge, csr);
        answer.map_err(|error| unusable(&self.device, format!("does not answer the CA's challenge: {error}")))
    }
}
