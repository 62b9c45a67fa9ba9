//! Who may sign: people's Ed25519 keys, and the list of those that are trusted.
//!
//! A trusted signer is written `alice=ed25519:<base64 of the 32 bytes of the public key>`.

use data_encoding::BASE64;
use hoplite_identity::pem;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use zeroize::Zeroizing;

/// The most signers anybody trusts: a team, not a directory.
pub const SIGNERS_MAX: usize = 256;
const NAME_BYTES_MAX: usize = 64;
const ALGORITHM: &str = "ed25519:";
/// The base64 of 32 bytes.
const KEY_DIGITS: usize = 44;

/// The points of Ed25519 whose order is at most 8, by their y, low byte first and without the sign of x; the last two
/// are 0 and 1 written otherwise. Under such a key anybody can make a signature that holds.
const SMALL_ORDER: [[u8; 32]; 7] = [
    [0; 32],
    ends(1, 0, 0),
    [
        0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98, 0xf0, 0xd5, 0xdf,
        0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53, 0xfc, 0x05,
    ],
    [
        0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67, 0x0f, 0x2a, 0x20,
        0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac, 0x03, 0x7a,
    ],
    ends(0xec, 0xff, 0x7f),
    ends(0xed, 0xff, 0x7f),
    ends(0xee, 0xff, 0x7f),
];

const SEED_BYTES: usize = 32;
/// What stands before the seed in PKCS#8 version 1 (RFC 8410 §7), the form OpenSSL writes.
const PKCS8_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// A person who signs, by name and public key.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Signer {
    name: String,
    key: [u8; 32],
}

/// The signers whose signatures count. Names differ and keys differ, so that two signatures are two people's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustedSigners {
    keys: BTreeMap<String, [u8; 32]>,
}

/// A person's secret key. It prints nothing, and the seed it keeps is wiped when it is dropped.
pub struct SigningKey {
    signer: Signer,
    seed: Zeroizing<[u8; SEED_BYTES]>,
}

/// Why a signer or a signing key cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadSigner {
    /// The text has another form.
    #[error("`{0}` is not a signer; write `name=ed25519:` and the base64 that `hoplite policy key create` printed")]
    Form(String),
    /// The name cannot be used.
    #[error("`{0}` is not a signer's name; use 1 to 64 of a-z, 0-9, `.`, `_` and `-`")]
    Name(String),
    /// The key is no Ed25519 public key.
    #[error("the key of the signer `{0}` is not the base64 of an Ed25519 public key; copy it again, whole")]
    Key(String),
    /// Two signers have one name.
    #[error("two signers are named `{0}`; rename one")]
    SameName(String),
    /// Two signers have one key.
    #[error("the signers `{0}` and `{1}` have the same key; each person needs a key of their own")]
    SameKey(String, String),
    /// There are more than [`SIGNERS_MAX`].
    #[error("`{0}` signers are more than {SIGNERS_MAX}; trust fewer people")]
    TooMany(usize),
    /// The secret is no Ed25519 key.
    #[error("this is not an Ed25519 private key in PKCS#8; make one with `hoplite policy key create`")]
    Secret,
}

// === impl Signer ===

impl Signer {
    /// A signer of this name with this public key.
    ///
    /// # Errors
    /// The name is not 1 to 64 of `[a-z0-9._-]`, or the key is one for which anybody can sign.
    pub fn new(name: &str, key: [u8; 32]) -> Result<Self, BadSigner> {
        let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
        if !(1..=NAME_BYTES_MAX).contains(&name.len()) || !name.bytes().all(word) {
            return Err(BadSigner::Name(name.escape_debug().take(80).collect()));
        }
        if is_small_order(key) {
            return Err(BadSigner::Key(name.to_owned()));
        }
        Ok(Self {
            name: name.to_owned(),
            key,
        })
    }

    /// The name by which people know them.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl FromStr for Signer {
    type Err = BadSigner;

    fn from_str(text: &str) -> Result<Self, BadSigner> {
        let form = || BadSigner::Form(text.escape_debug().take(80).collect());
        let (name, key) = text.split_once('=').ok_or_else(form)?;
        let key = key.strip_prefix(ALGORITHM).ok_or_else(form)?;
        // Their length first: a line may be any, and a key is short.
        let key = (key.len() == KEY_DIGITS).then(|| BASE64.decode(key.as_bytes()).ok());
        let key = key.flatten().and_then(|key| key.try_into().ok());
        // The name first: it is what the other message speaks of.
        Self::new(name, [1; 32])?;
        Self::new(name, key.ok_or_else(|| BadSigner::Key(name.to_owned()))?)
    }
}

impl fmt::Display for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={ALGORITHM}{}", self.name, BASE64.encode(&self.key))
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

// === impl TrustedSigners ===

impl TrustedSigners {
    /// Reads `name=ed25519:<base64>` texts. None at all is legal, and trusts nobody.
    ///
    /// # Errors
    /// The first text that is no signer, or that has the name or the key of one before it.
    pub fn parse<S: AsRef<str>>(texts: &[S]) -> Result<Self, BadSigner> {
        let signers: Result<Vec<Signer>, _> = texts.iter().map(|text| text.as_ref().parse()).collect();
        Self::new(signers?)
    }

    /// These signers.
    ///
    /// # Errors
    /// Two have one name or one key, or there are more than [`SIGNERS_MAX`].
    pub fn new(signers: impl IntoIterator<Item = Signer>) -> Result<Self, BadSigner> {
        let mut keys: BTreeMap<String, [u8; 32]> = BTreeMap::new();
        for Signer { name, key } in signers {
            if let Some((other, _)) = keys.iter().find(|(other, known)| **known == key && **other != name) {
                return Err(BadSigner::SameKey(other.clone(), name));
            }
            if keys.contains_key(&name) {
                return Err(BadSigner::SameName(name));
            }
            keys.insert(name, key);
            if keys.len() > SIGNERS_MAX {
                return Err(BadSigner::TooMany(keys.len()));
            }
        }
        Ok(Self { keys })
    }

    /// Whether nobody is trusted, so that nothing signed can be accepted.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// The signers, sorted by name.
    pub fn signers(&self) -> impl Iterator<Item = Signer> {
        self.keys.iter().map(|(name, key)| Signer {
            name: name.clone(),
            key: *key,
        })
    }

    /// Names and keys, sorted by name.
    pub(crate) fn keys(&self) -> impl Iterator<Item = (&str, &[u8; 32])> {
        self.keys.iter().map(|(name, key)| (name.as_str(), key))
    }

    /// The names, sorted.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.keys.keys().map(String::as_str)
    }

    /// Whether the signer of this name signed these bytes; `None` when nobody of this name is trusted.
    pub(crate) fn verify(&self, name: &str, message: &[u8], signature: &[u8]) -> Option<bool> {
        let key = self.keys.get(name)?;
        Some(UnparsedPublicKey::new(&ED25519, key).verify(message, signature).is_ok())
    }
}

impl<'de> Deserialize<'de> for TrustedSigners {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&Vec::<String>::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

// === impl SigningKey ===

impl SigningKey {
    /// The key that this seed makes. The caller brings the 32 random bytes.
    ///
    /// # Errors
    /// The name is not that of a signer.
    pub fn from_seed(name: &str, seed: Zeroizing<[u8; SEED_BYTES]>) -> Result<Self, BadSigner> {
        let key = pair(&seed)?.public_key().as_ref().try_into();
        Ok(Self {
            signer: Signer::new(name, key.map_err(|_| BadSigner::Secret)?)?,
            seed,
        })
    }

    /// Reads a key in PKCS#8 DER, as [`to_pem`](Self::to_pem) and OpenSSL write it, with or without the public key.
    ///
    /// # Errors
    /// The name is not that of a signer, or the bytes are no such key.
    pub fn from_pkcs8(name: &str, der: &[u8]) -> Result<Self, BadSigner> {
        let checked = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).map_err(|_| BadSigner::Secret)?;
        let seed = der
            .get(PKCS8_PREFIX.len()..)
            .and_then(|rest| rest.first_chunk::<SEED_BYTES>())
            .ok_or(BadSigner::Secret)?;
        let key = Self::from_seed(name, Zeroizing::new(*seed))?;
        // The seed stands at the same place in both versions; if ever it does not, this is not the key ring read.
        if key.signer.key != checked.public_key().as_ref() {
            return Err(BadSigner::Secret);
        }
        Ok(key)
    }

    /// Reads one PEM section `PRIVATE KEY`.
    ///
    /// # Errors
    /// As [`from_pkcs8`](Self::from_pkcs8).
    pub fn from_pem(name: &str, text: &str) -> Result<Self, BadSigner> {
        let der = pem::private_key(text).map_err(|_| BadSigner::Secret)?;
        Self::from_pkcs8(name, &der)
    }

    /// The key as one PEM section, which OpenSSL reads too.
    pub fn to_pem(&self) -> Zeroizing<String> {
        let mut der = Zeroizing::new([0; PKCS8_PREFIX.len() + SEED_BYTES]);
        for (to, from) in der.iter_mut().zip(PKCS8_PREFIX.iter().chain(self.seed.iter())) {
            *to = *from;
        }
        pem::write_private_key(&*der)
    }

    /// Whose key it is, with the public half: what others put among those they trust.
    pub fn signer(&self) -> &Signer {
        &self.signer
    }

    pub(crate) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, BadSigner> {
        Ok(pair(&self.seed)?.sign(message).as_ref().to_vec())
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.signer.name)
    }
}

/// A number whose first byte and last byte are these, and all between them this one.
const fn ends(first: u8, between: u8, last: u8) -> [u8; 32] {
    let mut number = [between; 32];
    let [low, .., high] = &mut number;
    *low = first;
    *high = last;
    number
}

fn is_small_order(mut key: [u8; 32]) -> bool {
    let [.., high] = &mut key;
    // The sign of x.
    *high &= 0x7f;
    SMALL_ORDER.contains(&key)
}

/// ring's form of the key. It does not wipe itself, so none is kept for longer than one use.
fn pair(seed: &[u8; SEED_BYTES]) -> Result<Ed25519KeyPair, BadSigner> {
    Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| BadSigner::Secret)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The key of a person, always the same for the same name.
    pub(crate) fn key(name: &str) -> SigningKey {
        let mut seed = [7; 32];
        for (to, from) in seed.iter_mut().zip(name.bytes()) {
            *to = from;
        }
        SigningKey::from_seed(name, Zeroizing::new(seed)).unwrap()
    }

    pub(crate) fn trusted(names: &[&str]) -> TrustedSigners {
        TrustedSigners::new(names.iter().map(|name| key(name).signer().clone())).unwrap()
    }

    #[test]
    fn signers_are_read_and_written() {
        let alice = key("alice").signer().to_string();
        assert!(alice.starts_with("alice=ed25519:") && alice.ends_with('='), "{alice}");
        assert_eq!(&alice.parse::<Signer>().unwrap(), key("alice").signer());
        let check = |texts: &[&str], expected: &str| {
            let error = TrustedSigners::parse(texts).unwrap_err().to_string();
            assert!(error.contains(expected), "{texts:?}: {error}");
        };
        let base64 = alice.split_once(':').unwrap().1;
        let zeros = format!("z=ed25519:{}", BASE64.encode(&[0; 32]));
        check(&[""], "`` is not a signer; write");
        check(&["alice"], "`alice` is not a signer");
        check(&[&format!("alice={base64}")], "is not a signer; write `name=ed25519:`");
        check(&[&format!("alice=rsa:{base64}")], "is not a signer");
        check(&[&format!("Alice=ed25519:{base64}")], "`Alice` is not a signer's name");
        check(&[&format!("=ed25519:{base64}")], "`` is not a signer's name");
        check(&[&format!("{}=ed25519:{base64}", "a".repeat(65))], "1 to 64");
        check(&["alice=ed25519:"], "the key of the signer `alice`");
        check(&["alice=ed25519:AAAA"], "the key of the signer `alice`");
        check(&[alice.trim_end_matches('=')], "the key of the signer `alice`");
        check(&[&format!("{alice}\n")], "the key of the signer `alice`");
        check(&[&zeros], "the key of the signer `z`");
        check(&[&alice, &alice], "two signers are named `alice`");
        let twin = format!("bob=ed25519:{base64}");
        check(&[&alice, &twin], "the signers `alice` and `bob` have the same key");
        assert!(TrustedSigners::parse::<&str>(&[]).unwrap().is_empty());
        let both = TrustedSigners::parse(&[key("bob").signer().to_string(), alice]).unwrap();
        assert_eq!(both.names().collect::<Vec<_>>(), ["alice", "bob"]);
    }

    /// For each there is a signature that whoever knows no secret can make: S is 0, and R another such point.
    #[test]
    fn a_key_under_which_anybody_can_sign_is_no_key() {
        for y in SMALL_ORDER {
            for sign in [0, 0x80] {
                let mut key = y;
                key[31] |= sign;
                assert_eq!(
                    Signer::new("mallory", key),
                    Err(BadSigner::Key("mallory".into())),
                    "{key:x?}"
                );
            }
            let forged = SMALL_ORDER.iter().any(|r| {
                let signature = [*r, [0; 32]].concat();
                let holds = |n: u8| UnparsedPublicKey::new(&ED25519, y).verify(&[n], &signature).is_ok();
                (0..=255).any(holds)
            });
            assert!(forged, "{y:x?}");
        }
    }

    #[test]
    fn only_the_named_key_verifies() {
        let both = trusted(&["alice", "bob"]);
        let signature = key("alice").sign(b"message").unwrap();
        assert_eq!(both.verify("alice", b"message", &signature), Some(true));
        assert_eq!(both.verify("bob", b"message", &signature), Some(false));
        assert_eq!(both.verify("alice", b"massage", &signature), Some(false));
        assert_eq!(both.verify("alice", b"message", b""), Some(false));
        assert_eq!(both.verify("carol", b"message", &signature), None);
    }

    #[test]
    fn keys_are_kept_as_openssl_writes_them() {
        // `openssl genpkey -algorithm ed25519`, and what `openssl pkey -pubout` says of it (RFC 8410 §10.3).
        let pem = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n";
        let key = SigningKey::from_pem("alice", pem).unwrap();
        assert_eq!(
            key.signer().to_string(),
            "alice=ed25519:Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE="
        );
        assert_eq!(*key.to_pem(), pem);
        assert_eq!(format!("{key:?}"), "SigningKey(alice)");
        let made = Ed25519KeyPair::generate_pkcs8(&ring::rand::SystemRandom::new()).unwrap();
        assert!(SigningKey::from_pkcs8("alice", made.as_ref()).is_ok(), "version 2");
        for bad in [
            "",
            "secret",
            &pem[..60],
            &pem.replace("PRIVATE", "PUBLIC"),
            &pem.replace("MC4", "MC5"),
        ] {
            assert_eq!(
                SigningKey::from_pem("alice", bad).unwrap_err(),
                BadSigner::Secret,
                "{bad}"
            );
        }
        assert!(SigningKey::from_pem("Alice", pem).is_err());
    }
}
