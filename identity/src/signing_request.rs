//! A signing request (PKCS#10), read: the public key in it, whose owner has shown that it holds the private one, and nothing else.

use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

/// Of a signing request only the key is used; anything longer than this is not one of ours.
pub const SIGNING_REQUEST_BYTES_MAX: usize = 8192;

/// The kinds of keys that are certified, and how a SubjectPublicKeyInfo of each begins. One key has one encoding: one with
/// parameters that it should not have, or with a point in another form, is none.
const KINDS: [(KeyKind, &[u8], usize); 3] = [
    (
        KeyKind::P256,
        b"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00\x04",
        91,
    ),
    (
        KeyKind::P384,
        b"\x30\x76\x30\x10\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x05\x2b\x81\x04\x00\x22\x03\x62\x00\x04",
        120,
    ),
    (
        KeyKind::Ed25519,
        b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00",
        44,
    ),
];

/// A kind of public key that is certified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    /// ECDSA on P-256.
    P256,
    /// ECDSA on P-384.
    P384,
    /// Ed25519.
    Ed25519,
}

/// What a signing request says that counts. It is signed by the key that it carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SigningRequest {
    kind: KeyKind,
    point: Vec<u8>,
    spki: Vec<u8>,
}

/// Why bytes are no signing request. The requester's fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSigningRequest {
    /// Longer than [`SIGNING_REQUEST_BYTES_MAX`].
    #[error("the signing request has {0} bytes; send at most {SIGNING_REQUEST_BYTES_MAX}")]
    TooLong(usize),
    /// Not PKCS#10.
    #[error("the signing request is not a DER PKCS#10 structure")]
    Malformed,
    /// A kind of key that is not certified.
    #[error("the signing request's key is of an unsupported kind; use P-256, P-384 or Ed25519")]
    UnsupportedKey,
    /// Not signed by the key it carries.
    #[error("the signing request is not signed by the key it carries")]
    Signature,
}

// === impl SigningRequest ===

impl SigningRequest {
    /// Reads a DER PKCS#10 request, and verifies that the requester holds the private half of its key.
    ///
    /// # Errors
    /// It is too long or no such request, its key is of another kind, or did not sign it.
    pub fn parse(der: &[u8]) -> Result<Self, InvalidSigningRequest> {
        if der.len() > SIGNING_REQUEST_BYTES_MAX {
            return Err(InvalidSigningRequest::TooLong(der.len()));
        }
        let (rest, request) = X509CertificationRequest::from_der(der).map_err(|_| InvalidSigningRequest::Malformed)?;
        if !rest.is_empty() {
            return Err(InvalidSigningRequest::Malformed);
        }
        let key = &request.certification_request_info.subject_pki;
        let kind = KINDS
            .iter()
            .find(|(_, head, length)| key.raw.starts_with(head) && key.raw.len() == *length);
        let (kind, ..) = kind.ok_or(InvalidSigningRequest::UnsupportedKey)?;
        request
            .verify_signature()
            .map_err(|_| InvalidSigningRequest::Signature)?;
        Ok(Self {
            kind: *kind,
            point: key.subject_public_key.data.to_vec(),
            spki: key.raw.to_vec(),
        })
    }

    /// The kind of its key.
    pub fn kind(&self) -> KeyKind {
        self.kind
    }

    /// The key itself: an uncompressed point, or the 32 bytes of Ed25519.
    pub fn point(&self) -> &[u8] {
        &self.point
    }

    /// The key's SubjectPublicKeyInfo, DER.
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }
}
