//! The node's side: its TPM's two keys, what is shown of them, and the answer to a challenge.

use std::io::{Read, Write};

use ring::rand::{SecureRandom, SystemRandom};
use serde::Deserialize;

use crate::bytes::{Malformed, Reader, Writer};
use crate::commands::{ACTIVATE_CREDENTIAL, Authorization, Commands, NV_READ, NV_READ_PUBLIC, QUOTE, TpmError};
use crate::credential::{Challenge, SECRET_BYTES};
use crate::public::{self, EndorsementKey, NULL};
use crate::quote::{self, bound};

/// Where certificates of endorsement keys lie (EK Credential Profile, 2.2.1.4).
const P256_CERTIFICATE: u32 = 0x01c0_000a;
const RSA_CERTIFICATE: u32 = 0x01c0_0002;

/// The longest certificate that is read, in bytes.
const CERTIFICATE_BYTES_MAX: u16 = 8192;

/// What is read at once: each TPM gives so much.
const PIECE: u16 = 512;

/// "There is nothing of this handle": the first one.
const NO_HANDLE: u32 = 0x18b;

/// The kinds of endorsement keys that a TPM has by the default templates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Endorsement {
    /// On the curve P-256.
    P256,
    /// RSA with 2048 bits.
    Rsa2048,
}

/// A TPM with both keys in it. What is loaded is freed when this is dropped.
pub struct NodeTpm<D: Read + Write> {
    commands: Commands<D>,
    endorsement: (u32, Vec<u8>),
    attestation: (u32, Vec<u8>),
    certificate: Option<Vec<u8>>,
}

// === impl NodeTpm ===

impl<D: Read + Write> NodeTpm<D> {
    /// Has both keys made: they come of the chip's own seed, so that they are the same each time, and nothing is kept in it. Which
    /// endorsement key: where that is left open, the one whose certificate is in the TPM, P-256 first, and RSA without any.
    ///
    /// # Errors
    /// The TPM does not answer, refuses, or has no such key.
    pub fn prepare(device: D, which: Option<Endorsement>) -> Result<Self, TpmError> {
        let mut commands = Commands::new(device);
        let (is_rsa, certificate) = match which {
            Some(Endorsement::P256) => (false, read_certificate(&mut commands, P256_CERTIFICATE)?),
            Some(Endorsement::Rsa2048) => (true, read_certificate(&mut commands, RSA_CERTIFICATE)?),
            None => match read_certificate(&mut commands, P256_CERTIFICATE)? {
                Some(certificate) => (false, Some(certificate)),
                None => (true, read_certificate(&mut commands, RSA_CERTIFICATE)?),
            },
        };
        Ok(Self {
            endorsement: commands.create_primary(&public::endorsement_template(is_rsa))?,
            attestation: commands.create_primary(&public::attestation_template())?,
            certificate,
            commands,
        })
    }

    /// The endorsement key.
    ///
    /// # Errors
    /// The TPM made another key than it was asked for.
    pub fn endorsement_key(&self) -> Result<EndorsementKey, TpmError> {
        Ok(EndorsementKey::from_public(&self.endorsement.1)?)
    }

    /// The certificate of the endorsement key that lies in the TPM, DER.
    pub fn certificate(&self) -> Option<&[u8]> {
        self.certificate.as_deref()
    }

    /// What is shown at first: the public areas of the attestation key and of the endorsement key.
    pub fn shown(&self) -> [Vec<u8>; 2] {
        [self.attestation.1.clone(), self.endorsement.1.clone()]
    }

    /// The answer to a challenge, for this signing request (DER).
    ///
    /// # Errors
    /// The challenge is none for this TPM's two keys, or the TPM fails.
    pub fn answer(&mut self, challenge: &[u8], csr: &[u8]) -> Result<Vec<u8>, TpmError> {
        let secret = self.activate(&Challenge::parse(challenge)?)?;
        self.quote(&bound(&secret, csr))
    }

    /// The secret in a challenge (TPM2_ActivateCredential).
    fn activate(&mut self, challenge: &Challenge) -> Result<[u8; SECRET_BYTES], TpmError> {
        let mut nonce = [0; 16];
        let filled = SystemRandom::new().fill(&mut nonce);
        filled.map_err(|_| std::io::Error::other("the system gives no random bytes"))?;
        let session = self.commands.endorsement_session(&nonce)?;
        let parameters = Writer::default().sized(&challenge.blob).sized(&challenge.seed).done();
        let handles = [self.attestation.0, self.endorsement.0];
        let by = [Authorization::Password, Authorization::Policy(session)];
        let activated = self
            .commands
            .run(ACTIVATE_CREDENTIAL, &handles, &by, &parameters, false);
        let (_, parameters) = activated?;
        let mut reader = Reader::new("a secret of 32 bytes", &parameters);
        let secret = reader.sized(SECRET_BYTES)?.try_into().map_err(|_| reader.malformed())?;
        reader.end()?;
        Ok(secret)
    }

    /// What the TPM says of itself, with this digest in it (TPM2_Quote, of no register).
    fn quote(&mut self, qualifying: &[u8; 32]) -> Result<Vec<u8>, TpmError> {
        let parameters = Writer::default().sized(qualifying).u16(NULL).u32(0).done();
        let by = [Authorization::Password];
        let (_, parameters) = self
            .commands
            .run(QUOTE, &[self.attestation.0], &by, &parameters, false)?;
        let mut reader = Reader::new("a quote", &parameters);
        let attest = reader.sized(parameters.len())?;
        Ok(quote::encode(attest, reader.rest()))
    }
}

/// The certificate at an index of the TPM's memory, without what stands behind it; none if there is nothing.
fn read_certificate<D: Read + Write>(commands: &mut Commands<D>, index: u32) -> Result<Option<Vec<u8>>, TpmError> {
    let (_, public) = match commands.run(NV_READ_PUBLIC, &[index], &[], &[], false) {
        Err(TpmError::Refused { code: NO_HANDLE, .. }) => return Ok(None),
        other => other?,
    };
    let mut reader = Reader::new("a public area of its memory", &public);
    let mut area = Reader::new("a public area of its memory", reader.sized(public.len())?);
    area.u32()?;
    area.u16()?;
    area.u32()?;
    area.sized(64)?;
    let size = area.u16()?;
    if size > CERTIFICATE_BYTES_MAX {
        return Err(Malformed("a certificate of an endorsement key, of at most 8192 bytes").into());
    }
    let mut whole = Vec::with_capacity(usize::from(size));
    let mut offset = 0;
    while offset < size {
        let piece = PIECE.min(size - offset);
        let parameters = Writer::default().u16(piece).u16(offset).done();
        let (_, read) = commands.run(NV_READ, &[index, index], &[Authorization::Password], &parameters, false)?;
        let mut reader = Reader::new("a piece of its memory", &read);
        whole.extend_from_slice(reader.sized(usize::from(piece))?);
        offset += piece;
    }
    Ok(first_der(&whole).map(<[u8]>::to_vec))
}

/// The DER SEQUENCE at the beginning. Makers fill the rest of the index with what they like.
fn first_der(bytes: &[u8]) -> Option<&[u8]> {
    let length = match bytes {
        [0x30, 0x82, high, low, ..] => 4 + usize::from(u16::from_be_bytes([*high, *low])),
        [0x30, 0x81, length, ..] => 3 + usize::from(*length),
        [0x30, length @ 0..=0x7f, ..] => 2 + usize::from(*length),
        _ => return None,
    };
    bytes.get(..length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_behind_a_certificate_is_left_out() {
        let check = |bytes: &[u8], expected: Option<usize>| {
            assert_eq!(first_der(bytes).map(<[u8]>::len), expected, "{bytes:x?}")
        };
        check(&[0x30, 2, 5, 0, 0xff, 0xff], Some(4));
        check(&[0x30, 0x81, 2, 5, 0, 0xff], Some(5));
        check(&[0x30, 0x82, 0, 2, 5, 0], Some(6));
        check(&[0x30, 0x82, 0, 2, 5], None);
        check(&[0x30, 0x84, 0, 0, 0, 1, 5], None);
        check(&[0xff; 8], None);
        check(&[], None);
    }
}
