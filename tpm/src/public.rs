//! Public areas of keys (`TPMT_PUBLIC`): which are an endorsement key, which an attestation key of ours, and the templates of both.

use ring::digest::{SHA256, digest};

use crate::bytes::{Malformed, Reader, Writer};

/// Algorithms (part 2, `TPM_ALG_ID`) and the curve.
pub(crate) const RSA: u16 = 0x0001;
pub(crate) const AES: u16 = 0x0006;
pub(crate) const SHA_256: u16 = 0x000b;
pub(crate) const NULL: u16 = 0x0010;
pub(crate) const ECDSA: u16 = 0x0018;
pub(crate) const ECC: u16 = 0x0023;
pub(crate) const CFB: u16 = 0x0043;
pub(crate) const P256: u16 = 0x0003;

/// Attributes of an endorsement key by the default templates: fixedTPM, fixedParent, sensitiveDataOrigin, adminWithPolicy, restricted, decrypt.
const ENDORSEMENT_ATTRIBUTES: u32 = 0x0003_00b2;

/// Its policy, `PolicyA`: TPM2_PolicySecret of the endorsement hierarchy (EK Credential Profile, B.6.2).
const ENDORSEMENT_POLICY: [u8; 32] = [
    0x83, 0x71, 0x97, 0x67, 0x44, 0x84, 0xb3, 0xf8, 0x1a, 0x90, 0xcc, 0x8d, 0x46, 0xa5, 0xd7, 0x24, 0xfd, 0x52, 0xd7,
    0x6e, 0x06, 0x52, 0x0b, 0x64, 0xf2, 0xa1, 0xda, 0x1b, 0x33, 0x14, 0x69, 0xaa,
];

/// Attributes of an attestation key (part 2, `TPMA_OBJECT`), each of which the CA demands.
const ATTRIBUTES: [(u32, &str); 6] = [
    (1 << 1, "fixedTPM: it could be copied to another TPM"),
    (1 << 4, "fixedParent: it could be copied to another TPM"),
    (1 << 5, "sensitiveDataOrigin: it was not made in the TPM"),
    (1 << 6, "userWithAuth"),
    (
        1 << 16,
        "restricted: it signs whatever it is given, and not only what the TPM says",
    ),
    (1 << 18, "sign: it cannot sign"),
];

/// That it does not count for the lockout of those who guess passwords: it has none.
const NO_DA: u32 = 1 << 10;

/// What the policy of our attestation keys is the digest of. Nothing satisfies that policy; it marks the key as one made for a CA of
/// Hoplite, so that another verifier, who can have the TPM activate credentials for *its* keys, can have none activated for ours.
const PURPOSE: &[u8] = b"hoplite attestation key v1";

/// The most bytes of a public area: an RSA key of 4096 bits.
const PUBLIC_BYTES_MAX: usize = 700;

/// What the distinguished encoding of an RSA key of 2048 bits begins with, up to the modulus.
const RSA_SPKI: [u8; 33] = [
    0x30, 0x82, 0x01, 0x22, 0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00,
    0x03, 0x82, 0x01, 0x0f, 0x00, 0x30, 0x82, 0x01, 0x0a, 0x02, 0x82, 0x01, 0x01, 0x00,
];

/// What follows the modulus: the exponent 65537.
const RSA_EXPONENT: [u8; 5] = [0x02, 0x03, 0x01, 0x00, 0x01];

/// Bytes of [`RSA_SPKI`] before the key itself, which is what a certificate has as its BIT STRING.
const RSA_SPKI_HEAD: usize = 24;

/// What the encoding of a key on P-256 begins with, up to the point.
const EC_SPKI: [u8; 27] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00, 0x04,
];

/// Bytes of [`EC_SPKI`] before the point with its mark.
const EC_SPKI_HEAD: usize = 26;

/// The endorsement key of a TPM: RSA of 2048 bits or P-256, by the TCG's default templates (L-1 and L-2). Whether there is a TPM that
/// has it is not said by this type; see [`Credential::make`](crate::Credential::make).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndorsementKey(pub(crate) EndorsementPublic);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EndorsementPublic {
    /// The modulus.
    Rsa(Box<[u8; 256]>),
    /// The coordinates.
    P256([u8; 32], [u8; 32]),
}

/// An attestation key of ours by its public area: P-256, restricted to sign what the TPM itself says. That it is in a TPM is proved by
/// an answer to a credential for its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttestationKey {
    /// As X9.62 has it, uncompressed.
    pub(crate) point: [u8; 65],
    pub(crate) name: [u8; 34],
}

/// Why a public area is not the key that it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKey {
    /// The bytes are no public area, or of another kind of key.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The attestation key lacks an attribute.
    #[error("the attestation key has not the attribute {0}")]
    Lacks(&'static str),
    /// It has one that it must not have.
    #[error("the attestation key has the attributes {0:#010x}, of which some are not those of an attestation key")]
    Attributes(u32),
    /// It was made for something else.
    #[error("the attestation key was not made for this: it has not the policy of attestation keys of Hoplite")]
    Purpose,
}

// === impl EndorsementKey ===

impl EndorsementKey {
    /// Reads a public area.
    ///
    /// # Errors
    /// It is none of a key by the default templates.
    pub fn from_public(public: &[u8]) -> Result<Self, InvalidKey> {
        let mut reader = Reader::new("an endorsement key by a default template (RSA 2048 or P-256)", public);
        let kind = reader.u16()?;
        reader.expect_u16(SHA_256)?;
        if reader.u32()? != ENDORSEMENT_ATTRIBUTES || reader.sized(32)? != ENDORSEMENT_POLICY {
            return Err(reader.malformed().into());
        }
        for expected in [AES, 128, CFB, NULL] {
            reader.expect_u16(expected)?;
        }
        let key = match kind {
            RSA => {
                reader.expect_u16(2048)?;
                if reader.u32()? != 0 {
                    return Err(reader.malformed().into());
                }
                let modulus: [u8; 256] = reader.sized(256)?.try_into().map_err(|_| reader.malformed())?;
                // A smaller number would have another encoding.
                if modulus.first().is_none_or(|first| first & 0x80 == 0) {
                    return Err(reader.malformed().into());
                }
                EndorsementPublic::Rsa(Box::new(modulus))
            }
            ECC => {
                reader.expect_u16(P256)?;
                reader.expect_u16(NULL)?;
                EndorsementPublic::P256(reader.number()?, reader.number()?)
            }
            _ => return Err(reader.malformed().into()),
        };
        reader.end()?;
        Ok(Self(key))
    }

    /// The key's `SubjectPublicKeyInfo` (RFC 5280 4.1.2.7), DER.
    pub fn spki(&self) -> Vec<u8> {
        match &self.0 {
            EndorsementPublic::Rsa(modulus) => [&RSA_SPKI, modulus.as_slice(), &RSA_EXPONENT].concat(),
            EndorsementPublic::P256(x, y) => [EC_SPKI.as_slice(), x, y].concat(),
        }
    }

    /// The key alone, as the BIT STRING of a certificate has it: RSA's is the same where a maker writes another algorithm beside it
    /// (RSAES-OAEP).
    pub fn key_bits(&self) -> Vec<u8> {
        let head = match &self.0 {
            EndorsementPublic::Rsa(_) => RSA_SPKI_HEAD,
            EndorsementPublic::P256(..) => EC_SPKI_HEAD,
        };
        self.spki().split_off(head)
    }

    /// Whether it is one of RSA.
    pub fn is_rsa(&self) -> bool {
        matches!(self.0, EndorsementPublic::Rsa(_))
    }

    /// SHA-256 of [`spki`](Self::spki), by which the TPM is known.
    pub fn sha256(&self) -> [u8; 32] {
        sha256(&[&self.spki()])
    }
}

// === impl AttestationKey ===

impl AttestationKey {
    /// Reads a public area, and judges what the key may do.
    ///
    /// # Errors
    /// It is none of a key as [`NodeTpm`](crate::NodeTpm) makes them.
    pub fn from_public(public: &[u8]) -> Result<Self, InvalidKey> {
        let mut reader = Reader::new("an attestation key (P-256, ECDSA with SHA-256)", public);
        reader.expect_u16(ECC)?;
        reader.expect_u16(SHA_256)?;
        let attributes = reader.u32()?;
        let policy = reader.sized(32)?;
        for expected in [NULL, ECDSA, SHA_256, P256, NULL] {
            reader.expect_u16(expected)?;
        }
        let (x, y) = (reader.number::<32>()?, reader.number::<32>()?);
        reader.end()?;
        if let Some((_, lacks)) = ATTRIBUTES.iter().find(|(bit, _)| attributes & bit == 0) {
            return Err(InvalidKey::Lacks(lacks));
        }
        if attributes != attestation_attributes() {
            return Err(InvalidKey::Attributes(attributes));
        }
        if policy != sha256(&[PURPOSE]) {
            return Err(InvalidKey::Purpose);
        }
        let mut point = [4; 65];
        for (to, from) in point.iter_mut().skip(1).zip(x.into_iter().chain(y)) {
            *to = from;
        }
        Ok(Self {
            point,
            name: name(public),
        })
    }
}

/// What names an object in a TPM: the algorithm, and the digest of the public area by it (part 1, 16).
fn name(public: &[u8]) -> [u8; 34] {
    let mut name = [0; 34];
    let parts = SHA_256.to_be_bytes().into_iter().chain(sha256(&[public]));
    for (to, from) in name.iter_mut().zip(parts) {
        *to = from;
    }
    name
}

pub(crate) fn attestation_attributes() -> u32 {
    ATTRIBUTES.iter().fold(NO_DA, |all, (bit, _)| all | bit)
}

/// The template of an endorsement key, for TPM2_CreatePrimary (EK Credential Profile, B.3.3 and B.3.4).
pub(crate) fn endorsement_template(rsa: bool) -> Vec<u8> {
    let template = Writer::default()
        .u16(if rsa { RSA } else { ECC })
        .u16(SHA_256)
        .u32(ENDORSEMENT_ATTRIBUTES)
        .sized(&ENDORSEMENT_POLICY)
        .u16(AES)
        .u16(128)
        .u16(CFB)
        .u16(NULL);
    if rsa {
        template.u16(2048).u32(0).sized(&[0; 256]).done()
    } else {
        template.u16(P256).u16(NULL).sized(&[0; 32]).sized(&[0; 32]).done()
    }
}

/// The template of our attestation keys, and the public area of one with this point.
pub(crate) fn attestation_public(attributes: u32, x: &[u8], y: &[u8]) -> Vec<u8> {
    let public = Writer::default()
        .u16(ECC)
        .u16(SHA_256)
        .u32(attributes)
        .sized(&sha256(&[PURPOSE]));
    let public = public.u16(NULL).u16(ECDSA).u16(SHA_256).u16(P256).u16(NULL);
    public.sized(x).sized(y).done()
}

pub(crate) fn attestation_template() -> Vec<u8> {
    attestation_public(attestation_attributes(), &[], &[])
}

/// A public area out of a byte string of a TPM's.
pub(crate) fn public_of(bytes: &[u8]) -> Result<&[u8], Malformed> {
    (1..=PUBLIC_BYTES_MAX)
        .contains(&bytes.len())
        .then_some(bytes)
        .ok_or(Malformed("a public area"))
}

pub(crate) fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let whole = digest(&SHA256, &parts.concat());
    let mut bytes = [0; 32];
    for (to, from) in bytes.iter_mut().zip(whole.as_ref()) {
        *to = *from;
    }
    bytes
}
