//! TPM2_MakeCredential without a TPM: a secret that a chip gives away only where a certain attestation key is in it (part 1, 24).

use aws_lc_rs::cipher::{AES_128, EncryptingKey, EncryptionContext, UnboundCipherKey};
use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey};
use ring::agreement::{ECDH_P256, EphemeralPrivateKey, UnparsedPublicKey, agree_ephemeral};
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};

use crate::bytes::{Malformed, Reader, Writer};
use crate::public::{AttestationKey, EndorsementKey, EndorsementPublic, sha256};

/// The length of the secret, in bytes.
pub const SECRET_BYTES: usize = 32;

/// The most bytes of an encrypted credential: a digest of SHA-512 and its integrity.
const BLOB_BYTES_MAX: usize = 132;

/// The most bytes of an encrypted seed: by an RSA key of 4096 bits.
const SEED_BYTES_MAX: usize = 512;

/// What is sent to a node: TPM2_ActivateCredential turns it into the secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    /// The secret, encrypted, and what binds it to the attestation key's name (`TPMS_ID_OBJECT`).
    pub(crate) blob: Vec<u8>,
    /// What decrypts that, encrypted to the endorsement key (`TPM2B_ENCRYPTED_SECRET`).
    pub(crate) seed: Vec<u8>,
}

/// A challenge, and the secret in it.
pub struct Credential {
    /// For the node.
    pub challenge: Challenge,
    /// What only its TPM can find out.
    pub secret: [u8; SECRET_BYTES],
}

/// Why there is no credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoCredential {
    /// Numbers that are no key.
    #[error("nothing can be encrypted to the endorsement key: it is no point of the curve, or no modulus")]
    Key,
    /// The system gives no random bytes.
    #[error("the system gives no random bytes")]
    Random,
}

// === impl Credential ===

impl Credential {
    /// A new secret for whoever has both keys in one TPM.
    ///
    /// # Errors
    /// The endorsement key is none, or the system gives no random bytes.
    pub fn make(to: &EndorsementKey, for_key: &AttestationKey) -> Result<Self, NoCredential> {
        let random = SystemRandom::new();
        let mut secret = [0; SECRET_BYTES];
        random.fill(&mut secret).map_err(|_| NoCredential::Random)?;
        let (seed, encrypted) = match &to.0 {
            EndorsementPublic::Rsa(_) => by_rsa(to, &random)?,
            EndorsementPublic::P256(x, y) => by_p256(x, y, &random)?,
        };
        let blob = enclosed(&seed, &secret, &for_key.name)?;
        Ok(Self {
            challenge: Challenge { blob, seed: encrypted },
            secret,
        })
    }
}

/// A seed, and the same encrypted with RSA-OAEP (part 1, B.10.4).
fn by_rsa(to: &EndorsementKey, random: &SystemRandom) -> Result<([u8; 32], Vec<u8>), NoCredential> {
    let mut seed = [0; 32];
    random.fill(&mut seed).map_err(|_| NoCredential::Random)?;
    let key = PublicEncryptingKey::from_der(&to.spki()).map_err(|_| NoCredential::Key)?;
    let key = OaepPublicEncryptingKey::new(key).map_err(|_| NoCredential::Key)?;
    let mut encrypted = vec![0; key.ciphertext_size()];
    let written = key.encrypt(&OAEP_SHA256_MGF1SHA256, &seed, &mut encrypted, Some(b"IDENTITY\0"));
    let length = written.map_err(|_| NoCredential::Key)?.len();
    encrypted.truncate(length);
    Ok((seed, encrypted))
}

/// A seed by a Diffie-Hellman exchange, and our part of that (part 1, C.6.1 and 11.4.10.3).
fn by_p256(x: &[u8; 32], y: &[u8; 32], random: &SystemRandom) -> Result<([u8; 32], Vec<u8>), NoCredential> {
    let ours = EphemeralPrivateKey::generate(&ECDH_P256, random).map_err(|_| NoCredential::Random)?;
    let public = ours.compute_public_key().map_err(|_| NoCredential::Random)?;
    let (our_x, our_y) = public.as_ref().split_at_checked(33).ok_or(NoCredential::Random)?;
    let our_x = our_x.get(1..).ok_or(NoCredential::Random)?;
    let point = [&[4], x.as_slice(), y].concat();
    let kdfe = |shared: &[u8]| sha256(&[&1_u32.to_be_bytes(), shared, b"IDENTITY\0", our_x, x]);
    let seed = agree_ephemeral(ours, &UnparsedPublicKey::new(&ECDH_P256, &point), kdfe);
    let seed = seed.map_err(|_| NoCredential::Key)?;
    Ok((seed, Writer::default().sized(our_x).sized(our_y).done()))
}

/// The secret, encrypted and bound to the name (part 1, 24.4 and 24.5).
fn enclosed(seed: &[u8; 32], secret: &[u8], name: &[u8]) -> Result<Vec<u8>, NoCredential> {
    let storage = kdfa(seed, b"STORAGE\0", name, 128);
    let key = storage
        .get(..16)
        .and_then(|key| UnboundCipherKey::new(&AES_128, key).ok());
    let key = key
        .and_then(|key| EncryptingKey::cfb128(key).ok())
        .ok_or(NoCredential::Random)?;
    let mut identity = Writer::default().sized(secret).done();
    // The key serves for this one message, so that its initial vector may be zero, as it must be.
    let vector = EncryptionContext::Iv128([0; 16].into());
    key.less_safe_encrypt(&mut identity, vector)
        .map_err(|_| NoCredential::Random)?;
    let key = hmac::Key::new(hmac::HMAC_SHA256, &kdfa(seed, b"INTEGRITY\0", &[], 256));
    let integrity = hmac::sign(&key, &[&identity, name].concat());
    Ok(Writer::default().sized(integrity.as_ref()).raw(&identity).done())
}

/// KDFa by HMAC-SHA-256, of at most one digest (part 1, 11.4.10.2).
fn kdfa(seed: &[u8; 32], label: &[u8], context: &[u8], bits: u32) -> [u8; 32] {
    let key = hmac::Key::new(hmac::HMAC_SHA256, seed);
    let signed = hmac::sign(
        &key,
        &[&1_u32.to_be_bytes(), label, context, &bits.to_be_bytes()].concat(),
    );
    let mut bytes = [0; 32];
    for (to, from) in bytes.iter_mut().zip(signed.as_ref()) {
        *to = *from;
    }
    bytes
}

// === impl Challenge ===

impl Challenge {
    /// As it is sent: both byte strings.
    pub fn encode(&self) -> Vec<u8> {
        Writer::default().sized(&self.blob).sized(&self.seed).done()
    }

    /// Reads what was sent.
    ///
    /// # Errors
    /// It is no credential.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new("a credential", bytes);
        let challenge = Self {
            blob: reader.sized(BLOB_BYTES_MAX)?.to_vec(),
            seed: reader.sized(SEED_BYTES_MAX)?.to_vec(),
        };
        reader.end()?;
        Ok(challenge)
    }
}
