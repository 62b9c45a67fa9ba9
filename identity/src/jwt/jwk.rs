//! Public keys as JSON Web Keys (RFC 7517, RFC 7518 §6), and what signatures they verify.

use std::fmt;

use data_encoding::{BASE64, BASE64URL_NOPAD};
use ring::signature::{
    self, ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey,
    VerificationAlgorithm,
};
use serde::{Deserialize, Serialize};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;

/// What the key of an X.509 authority says that it is for.
pub(crate) const X509_SVID: &str = "x509-svid";
/// The smallest and the largest RSA modulus, in bits. A larger one costs its verifier too much.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;
/// The longest RSA exponent, in bytes. Real ones have three.
const EXPONENT_BYTES_MAX: usize = 4;

/// The algorithms of RFC 7518 §3.3 to §3.5 whose keys can be verified with here. `ES512` is not among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JwtAlgorithm {
    /// ECDSA with P-256 and SHA-256.
    Es256,
    /// ECDSA with P-384 and SHA-384.
    Es384,
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// RSASSA-PKCS1-v1_5 with SHA-384.
    Rs384,
    /// RSASSA-PKCS1-v1_5 with SHA-512.
    Rs512,
    /// RSASSA-PSS with SHA-256.
    Ps256,
    /// RSASSA-PSS with SHA-384.
    Ps384,
    /// RSASSA-PSS with SHA-512.
    Ps512,
}

/// A public key that signatures of JWT-SVIDs are verified with.
#[derive(Clone, PartialEq, Eq)]
pub struct JwtKey(Key);

#[derive(Clone, PartialEq, Eq)]
enum Key {
    /// An uncompressed point.
    Ec { curve: Curve, point: Vec<u8> },
    /// Big-endian, without leading zeros.
    Rsa { n: Vec<u8>, e: Vec<u8> },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Curve {
    P256,
    P384,
}

/// Why a JSON Web Key is no key of a JWT authority.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidJwk {
    /// A parameter that its kind must have.
    #[error("the parameter `{0}` is missing")]
    Missing(&'static str),
    /// A parameter is not unpadded base64url, or has another length than its kind has.
    #[error("the parameter `{0}` is not the unpadded base64url of a number of its length")]
    Number(&'static str),
    /// An EC key on a curve that is not verified with here.
    #[error("keys on its curve are not verified with here; P-256 and P-384 are")]
    Curve,
    /// An RSA key that is too short to trust or too long to bear.
    #[error("an RSA key of {0} bits is not taken; 2048 to 8192 bits are")]
    RsaBits(usize),
    /// An RSA exponent that no generator chooses.
    #[error("its RSA exponent is even, below 3 or longer than 32 bits")]
    RsaExponent,
    /// A key of another type.
    #[error("its key type is neither EC nor RSA")]
    KeyType,
}

/// A JSON Web Key as it is written. Members that are not known are passed over (RFC 7517 §4).
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Jwk {
    #[serde(rename = "use", skip_serializing_if = "Option::is_none")]
    pub(crate) usage: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) kid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) alg: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) kty: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) crv: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) x: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) y: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) n: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) e: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) x5c: Option<Vec<String>>,
}

// === impl JwtAlgorithm ===

impl JwtAlgorithm {
    const ALL: [Self; 8] = [
        Self::Es256,
        Self::Es384,
        Self::Rs256,
        Self::Rs384,
        Self::Rs512,
        Self::Ps256,
        Self::Ps384,
        Self::Ps512,
    ];

    /// By its name in a header, letter by letter.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.as_str() == name)
    }

    /// Its name in a header.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::Rs256 => "RS256",
            Self::Rs384 => "RS384",
            Self::Rs512 => "RS512",
            Self::Ps256 => "PS256",
            Self::Ps384 => "PS384",
            Self::Ps512 => "PS512",
        }
    }

    fn rsa(self) -> Option<&'static RsaParameters> {
        match self {
            Self::Es256 | Self::Es384 => None,
            Self::Rs256 => Some(&signature::RSA_PKCS1_2048_8192_SHA256),
            Self::Rs384 => Some(&signature::RSA_PKCS1_2048_8192_SHA384),
            Self::Rs512 => Some(&signature::RSA_PKCS1_2048_8192_SHA512),
            Self::Ps256 => Some(&signature::RSA_PSS_2048_8192_SHA256),
            Self::Ps384 => Some(&signature::RSA_PSS_2048_8192_SHA384),
            Self::Ps512 => Some(&signature::RSA_PSS_2048_8192_SHA512),
        }
    }
}

impl fmt::Display for JwtAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

// === impl JwtKey ===

impl JwtKey {
    /// A P-256 key by its uncompressed point (SEC 1 §2.3.3).
    ///
    /// # Errors
    /// The bytes are not such a point.
    pub fn p256(point: &[u8]) -> Result<Self, InvalidJwk> {
        match point {
            [4, rest @ ..] if rest.len() == 2 * Curve::P256.bytes() => Ok(Self(Key::Ec {
                curve: Curve::P256,
                point: point.to_vec(),
            })),
            _ => Err(InvalidJwk::Number("x")),
        }
    }

    /// Whether this is a signature of `message` by the private half of this key, by this algorithm. An algorithm that is
    /// not of this kind of key verifies nothing.
    pub(crate) fn verifies(&self, algorithm: JwtAlgorithm, message: &[u8], signature: &[u8]) -> bool {
        match &self.0 {
            Key::Ec { curve, point } if curve.algorithm() == algorithm => {
                UnparsedPublicKey::new(curve.verification(), point)
                    .verify(message, signature)
                    .is_ok()
            }
            Key::Ec { .. } => false,
            Key::Rsa { n, e } => algorithm.rsa().is_some_and(|parameters| {
                RsaPublicKeyComponents { n, e }
                    .verify(parameters, message, signature)
                    .is_ok()
            }),
        }
    }

    /// The algorithm of its tokens; of an RSA key, which has several, the one that everybody knows.
    pub fn algorithm(&self) -> JwtAlgorithm {
        match &self.0 {
            Key::Ec { curve, .. } => curve.algorithm(),
            Key::Rsa { .. } => JwtAlgorithm::Rs256,
        }
    }

    /// Whether tokens with this algorithm in their header can be this key's.
    pub(crate) fn suits(&self, algorithm: JwtAlgorithm) -> bool {
        match &self.0 {
            Key::Ec { curve, .. } => curve.algorithm() == algorithm,
            Key::Rsa { .. } => algorithm.rsa().is_some(),
        }
    }
}

impl fmt::Debug for JwtKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Key::Ec { curve, .. } => write!(f, "JwtKey({curve:?})"),
            Key::Rsa { n, .. } => write!(f, "JwtKey(RSA of {} bits)", bits(n)),
        }
    }
}

impl TryFrom<&Jwk> for JwtKey {
    type Error = InvalidJwk;

    fn try_from(jwk: &Jwk) -> Result<Self, InvalidJwk> {
        let number = |name, value: &Option<String>| {
            let text = value.as_ref().ok_or(InvalidJwk::Missing(name))?;
            BASE64URL_NOPAD
                .decode(text.as_bytes())
                .map_err(|_| InvalidJwk::Number(name))
        };
        match jwk.kty.as_deref() {
            Some("EC") => {
                let name = jwk.crv.as_deref().ok_or(InvalidJwk::Missing("crv"))?;
                let curve = Curve::parse(name).ok_or(InvalidJwk::Curve)?;
                let mut point = vec![4];
                for (name, value) in [("x", &jwk.x), ("y", &jwk.y)] {
                    // RFC 7518 §6.2.1.2: as long as the curve's field, leading zeros included.
                    let coordinate = number(name, value)?;
                    if coordinate.len() != curve.bytes() {
                        return Err(InvalidJwk::Number(name));
                    }
                    point.extend(coordinate);
                }
                Ok(Self(Key::Ec { curve, point }))
            }
            Some("RSA") => {
                let (n, e) = (stripped(&number("n", &jwk.n)?), stripped(&number("e", &jwk.e)?));
                if !RSA_BITS.contains(&bits(&n)) {
                    return Err(InvalidJwk::RsaBits(bits(&n)));
                }
                let is_odd = e.last().is_some_and(|last| last % 2 == 1);
                if !is_odd || e.len() > EXPONENT_BYTES_MAX || e == [1] {
                    return Err(InvalidJwk::RsaExponent);
                }
                Ok(Self(Key::Rsa { n, e }))
            }
            Some(_) => Err(InvalidJwk::KeyType),
            None => Err(InvalidJwk::Missing("kty")),
        }
    }
}

// === impl Jwk ===

impl Jwk {
    /// The key of an X.509 authority, with exactly its certificate. Of a kind of key that is not verified with here it
    /// says no more than the certificate does, and readers pass it over (B-4).
    pub(crate) fn of_certificate(der: &[u8]) -> Self {
        let key = X509Certificate::from_der(der).ok().and_then(|(_, certificate)| {
            let key = match certificate.public_key().parsed().ok()? {
                PublicKey::EC(point) => Key::Ec {
                    curve: Curve::of_point(point.data())?,
                    point: point.data().to_vec(),
                },
                PublicKey::RSA(key) => Key::Rsa {
                    n: stripped(key.modulus),
                    e: stripped(key.exponent),
                },
                _ => return None,
            };
            Some(Self::from(&JwtKey(key)))
        });
        Self {
            usage: Some(X509_SVID.to_owned()),
            x5c: Some(vec![BASE64.encode(der)]),
            ..key.unwrap_or_default()
        }
    }
}

impl From<&JwtKey> for Jwk {
    fn from(key: &JwtKey) -> Self {
        let number = |bytes: &[u8]| Some(BASE64URL_NOPAD.encode(bytes));
        match &key.0 {
            Key::Ec { curve, point } => {
                let (x, y) = point.get(1..).unwrap_or_default().split_at(curve.bytes());
                Self {
                    kty: Some("EC".to_owned()),
                    crv: Some(curve.as_str().to_owned()),
                    x: number(x),
                    y: number(y),
                    ..Self::default()
                }
            }
            Key::Rsa { n, e } => Self {
                kty: Some("RSA".to_owned()),
                n: number(n),
                e: number(e),
                ..Self::default()
            },
        }
    }
}

fn stripped(number: &[u8]) -> Vec<u8> {
    number.iter().copied().skip_while(|byte| *byte == 0).collect()
}

/// The length of a number without leading zero bytes.
fn bits(number: &[u8]) -> usize {
    let zeros = number.first().map_or(0, |first| first.leading_zeros() as usize);
    number.len() * 8 - zeros
}

// === impl Curve ===

impl Curve {
    fn parse(name: &str) -> Option<Self> {
        [Self::P256, Self::P384]
            .into_iter()
            .find(|curve| curve.as_str() == name)
    }

    /// Of an uncompressed point.
    fn of_point(point: &[u8]) -> Option<Self> {
        let is = |curve: &Self| point.first() == Some(&4) && point.len() == 1 + 2 * curve.bytes();
        [Self::P256, Self::P384].into_iter().find(is)
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::P256 => "P-256",
            Self::P384 => "P-384",
        }
    }

    /// The length of a coordinate.
    fn bytes(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
        }
    }

    fn algorithm(self) -> JwtAlgorithm {
        match self {
            Self::P256 => JwtAlgorithm::Es256,
            Self::P384 => JwtAlgorithm::Es384,
        }
    }

    fn verification(self) -> &'static dyn VerificationAlgorithm {
        match self {
            Self::P256 => &ECDSA_P256_SHA256_FIXED,
            Self::P384 => &ECDSA_P384_SHA384_FIXED,
        }
    }
}
