//! A quote (`TPMS_ATTEST`) by an attestation key over a secret and a signing request: the answer to a challenge.

use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};

use crate::bytes::{Malformed, Reader, Writer};
use crate::credential::SECRET_BYTES;
use crate::public::{AttestationKey, ECDSA, SHA_256, sha256};

/// What each structure begins with that a TPM has made itself: a restricted key signs nothing else that begins so.
const GENERATED: u32 = 0xff54_4347;

/// A quote (`TPM_ST_ATTEST_QUOTE`).
const QUOTE: u16 = 0x8018;

/// The most bytes of the structure.
const ATTEST_BYTES_MAX: usize = 512;

/// What the digest that is quoted begins with, so that no quote for anybody else is one for us.
const CONTEXT: &[u8] = b"hoplite tpm attestation v1\0";

/// The answer to a challenge, not verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer<'a> {
    attest: &'a [u8],
    qualifying: &'a [u8],
    signature: [u8; 64],
}

/// Why an answer is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotAnswered {
    /// It is no answer.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// It is for another challenge, or for another request.
    #[error("the quote is not for this challenge and this signing request")]
    Other,
    /// It is not signed by the attestation key.
    #[error("the quote is not signed by the attestation key")]
    Signature,
}

/// What is quoted: the secret of the challenge and the signing request (DER) that the answer is for.
pub fn bound(secret: &[u8; SECRET_BYTES], csr: &[u8]) -> [u8; 32] {
    sha256(&[CONTEXT, secret, &sha256(&[csr])])
}

// === impl Answer ===

impl<'a> Answer<'a> {
    /// Reads what was sent.
    ///
    /// # Errors
    /// It is no quote of a TPM's, or it is signed in another way.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new("a quote, signed with ECDSA and SHA-256,", bytes);
        let attest = reader.sized(ATTEST_BYTES_MAX)?;
        reader.expect_u16(ECDSA)?;
        reader.expect_u16(SHA_256)?;
        let (r, s) = (reader.number::<32>()?, reader.number::<32>()?);
        reader.end()?;
        let mut signature = [0; 64];
        for (to, from) in signature.iter_mut().zip(r.into_iter().chain(s)) {
            *to = from;
        }
        Ok(Self {
            attest,
            qualifying: qualifying(attest)?,
            signature,
        })
    }

    /// Whether the TPM that has `key` says it of this secret and this signing request (DER).
    ///
    /// # Errors
    /// It does not.
    pub fn verify(&self, key: &AttestationKey, secret: &[u8; SECRET_BYTES], csr: &[u8]) -> Result<(), NotAnswered> {
        let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &key.point);
        let verified = public.verify(self.attest, &self.signature);
        verified.map_err(|_| NotAnswered::Signature)?;
        (self.qualifying == bound(secret, csr))
            .then_some(())
            .ok_or(NotAnswered::Other)
    }
}

/// What the asker had quoted (`extraData`), of a structure that is a quote to its end.
fn qualifying(attest: &[u8]) -> Result<&[u8], Malformed> {
    let mut reader = Reader::new("a quote", attest);
    if reader.u32()? != GENERATED {
        return Err(reader.malformed());
    }
    reader.expect_u16(QUOTE)?;
    reader.sized(66)?; // the signer's qualified name
    let qualifying = reader.sized(64)?;
    reader.take(8 + 4 + 4 + 1)?; // the clock, its resets and restarts, whether it is safe
    reader.take(8)?; // the firmware's version
    let banks = reader.u32()?;
    if banks > 16 {
        return Err(reader.malformed());
    }
    for _ in 0..banks {
        reader.u16()?;
        let selected = reader.u8()?;
        reader.take(usize::from(selected))?;
    }
    reader.sized(64)?; // the digest of the registers
    reader.end()?;
    Ok(qualifying)
}

/// The two parts of an answer, one after the other.
pub(crate) fn encode(attest: &[u8], signature: &[u8]) -> Vec<u8> {
    Writer::default().sized(attest).raw(signature).done()
}
