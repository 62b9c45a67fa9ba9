//! A trust bundle as the SPIFFE standard writes it, read: what a bundle endpoint serves, and what is exchanged by hand.

use std::collections::BTreeSet;
use std::time::Duration;

use data_encoding::BASE64;
use ring::digest::{SHA256, digest};
use rustls::pki_types::CertificateDer;
use serde::Deserialize;

use crate::jwt::{Jwk, JwtAuthorities, X509_SVID};
use crate::profile;
use crate::{Excerpt, Fingerprint, InvalidBundle, TrustBundle, TrustDomain};

/// The longest document that is read, in bytes. One with a hundred authorities has a tenth of it.
pub const BUNDLE_DOCUMENT_BYTES_MAX: usize = 1 << 20;

/// Keys that are looked at. A trust domain with more has lost count of its authorities, and each costs every handshake.
const KEYS_MAX: usize = 256;

/// A bundle, and what its document says besides (B-1 to B-4). Whose bundle it is no document says: who asked for it knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundleDocument {
    /// The authorities. Its sequence number is the document's, 0 if there is none.
    pub bundle: TrustBundle,
    /// When to look again, if the document says so (B-3).
    pub refresh_hint: Option<Duration>,
}

/// What is read of a document; members that are not known are passed over, and one that stands there twice is an error.
#[derive(Deserialize)]
struct Document {
    keys: Vec<Jwk>,
    #[serde(default)]
    spiffe_sequence: Option<u64>,
    #[serde(default)]
    spiffe_refresh_hint: Option<u64>,
}

// === impl BundleDocument ===

impl BundleDocument {
    /// Reads a document of this trust domain's bundle.
    ///
    /// A key of a type or use that is not known is passed over (B-4), and so is an X.509 authority without a certificate.
    /// What is left must be usable: one authority that is none makes the whole document none, so that nobody trusts half of it.
    ///
    /// # Errors
    /// It is too long, no JSON, has no `keys` (B-1), or an authority that cannot be one.
    pub fn parse(trust_domain: TrustDomain, json: &[u8]) -> Result<Self, InvalidBundle> {
        let bad = |reason: String| InvalidBundle::Document(trust_domain.clone(), reason);
        if json.len() > BUNDLE_DOCUMENT_BYTES_MAX {
            return Err(bad(format!("it is longer than {BUNDLE_DOCUMENT_BYTES_MAX} bytes")));
        }
        let document: Document = serde_json::from_slice(json).map_err(|error| bad(error.to_string()))?;
        if document.keys.len() > KEYS_MAX {
            return Err(bad(format!(
                "it has {} keys; at most {KEYS_MAX} are read",
                document.keys.len()
            )));
        }
        let mut authorities: Vec<CertificateDer<'static>> = Vec::new();
        for (position, jwk) in document.keys.iter().enumerate() {
            // B-4: a key without a type counts for nothing, whatever certificate stands beside it.
            let is_x509 = jwk.usage.as_deref() == Some(X509_SVID) && jwk.kty.is_some();
            // none is passed over, and of several the first counts.
            let Some(text) = jwk.x5c.as_ref().and_then(|chain| chain.first()).filter(|_| is_x509) else {
                continue;
            };
            let der = BASE64
                .decode(text.as_bytes())
                .map_err(|error| bad(format!("the `x5c` of key {position} is not padded base64: {error}")))?;
            let der = CertificateDer::from(der);
            if !authorities.contains(&der) {
                authorities.push(der);
            }
        }
        let jwt = JwtAuthorities::of_jwks(&document.keys).map_err(|error| bad(error.to_string()))?;
        let bundle = TrustBundle::new(trust_domain, authorities, document.spiffe_sequence.unwrap_or(0))?;
        Ok(Self {
            bundle: bundle.with_jwt(jwt),
            refresh_hint: document.spiffe_refresh_hint.map(Duration::from_secs),
        })
    }

    /// Reads a document, or PEM certificates, as people exchange them.
    ///
    /// # Errors
    /// It is neither.
    pub fn parse_file(trust_domain: TrustDomain, bytes: &[u8]) -> Result<Self, InvalidBundle> {
        let text = std::str::from_utf8(bytes)
            .map_err(|_| InvalidBundle::Document(trust_domain.clone(), "it is no text".to_owned()))?;
        if !text.contains("-----BEGIN") {
            return Self::parse(trust_domain, bytes);
        }
        Ok(Self {
            bundle: TrustBundle::from_pem(trust_domain, text, 0)?,
            refresh_hint: None,
        })
    }
}

// === impl TrustBundle ===

impl TrustBundle {
    /// The first key that vouches here and there, in words. Of two trust domains each that has the key can be the other.
    pub fn shared_key(&self, other: &Self) -> Option<String> {
        let theirs: BTreeSet<_> = other.authorities().iter().filter_map(|der| key_of(der)).collect();
        let x509 = self.authorities().iter().find_map(|der| {
            let key = key_of(der).filter(|key| theirs.contains(key))?;
            let fingerprint = Fingerprint::of(der);
            drop(key);
            Some(format!("the X.509 authority with the fingerprint {fingerprint}"))
        });
        x509.or_else(|| {
            let kid = self.jwt().key_ids().find(|kid| {
                let ours = self.jwt().get(kid);
                other.jwt().key_ids().any(|theirs| other.jwt().get(theirs) == ours)
            })?;
            Some(format!("the JWT authority `{}`", Excerpt::of(kid)))
        })
    }
}

/// SHA-256 of a certificate's public key, whatever else the certificate says.
fn key_of(der: &[u8]) -> Option<Vec<u8>> {
    let authority = profile::authority(der).ok()?;
    Some(digest(&SHA256, authority.public_key().raw).as_ref().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jwt::JwtKey;
    use crate::testing::TestAuthority;
    use serde_json::{Value, json};

    fn domain() -> TrustDomain {
        TrustDomain::parse("partner.example").unwrap()
    }

    fn jwt(byte: u8) -> JwtAuthorities {
        let mut point = vec![4; 65];
        point[64] = byte;
        JwtAuthorities::new([("k1".to_owned(), JwtKey::p256(&point).unwrap())]).unwrap()
    }

    fn sample() -> (TrustBundle, Value) {
        let bundle = TestAuthority::new("partner.example").bundle().with_jwt(jwt(9));
        let json = serde_json::from_str(&bundle.to_spiffe_json(Duration::from_secs(300))).unwrap();
        (bundle, json)
    }

    #[test]
    fn b_1_to_b_4_a_document_comes_back() {
        let (bundle, json) = sample();
        let read = BundleDocument::parse(domain(), json.to_string().as_bytes()).unwrap();
        assert_eq!(read.bundle, bundle);
        assert_eq!(read.refresh_hint, Some(Duration::from_secs(300)));
        let pem = BundleDocument::parse_file(domain(), bundle.to_pem().as_bytes()).unwrap();
        assert_eq!(pem.bundle.authorities(), bundle.authorities());
        let same = BundleDocument::parse_file(domain(), json.to_string().as_bytes()).unwrap();
        assert_eq!(same, read);
    }

    #[test]
    fn documents() {
        let check = |change: &dyn Fn(&mut Value), expected: Result<(usize, usize, u64), &str>| {
            let (_, mut json) = sample();
            change(&mut json);
            let read = BundleDocument::parse(domain(), json.to_string().as_bytes());
            match (read, expected) {
                (Ok(read), Ok(expected)) => {
                    let bundle = &read.bundle;
                    let found = (
                        bundle.authorities().len(),
                        bundle.jwt().key_ids().count(),
                        bundle.sequence(),
                    );
                    assert_eq!(found, expected, "{json}");
                }
                (Err(error), Err(part)) => assert!(error.to_string().contains(part), "`{part}` is not in `{error}`"),
                (read, expected) => panic!("{json}: {read:?}, expected {expected:?}"),
            }
        };
        check(&|_| (), Ok((1, 1, 1)));
        check(&|it| it["keys"] = json!([]), Ok((0, 0, 1)));
        check(
            &|it| drop(it.as_object_mut().unwrap().remove("keys")),
            Err("missing field `keys`"),
        );
        check(&|it| it["spiffe_sequence"] = json!(u64::MAX), Ok((1, 1, u64::MAX)));
        check(
            &|it| drop(it.as_object_mut().unwrap().remove("spiffe_sequence")),
            Ok((1, 1, 0)),
        );
        check(&|it| it["spiffe_sequence"] = json!(-1), Err("invalid value"));
        check(&|it| it["spiffe_sequence"] = json!("1"), Err("invalid type"));
        check(&|it| it["spiffe_refresh_hint"] = json!(0.5), Err("invalid type"));
        // B-4: what is not known is passed over, not the set.
        check(&|it| it["keys"][0]["use"] = json!("wit-svid"), Ok((0, 1, 1)));
        check(&|it| it["keys"][0]["use"] = json!("X509-SVID"), Ok((0, 1, 1)));
        check(
            &|it| drop(it["keys"][0].as_object_mut().unwrap().remove("use")),
            Ok((0, 1, 1)),
        );
        check(
            &|it| drop(it["keys"][0].as_object_mut().unwrap().remove("kty")),
            Ok((0, 1, 1)),
        );
        check(&|it| it["keys"][1]["kty"] = json!("OKP"), Ok((1, 0, 1)));
        //
        check(
            &|it| drop(it["keys"][0].as_object_mut().unwrap().remove("x5c")),
            Ok((0, 1, 1)),
        );
        check(&|it| it["keys"][0]["x5c"] = json!([]), Ok((0, 1, 1)));
        check(
            &|it| it["keys"][0]["x5c"].as_array_mut().unwrap().push(json!("no")),
            Ok((1, 1, 1)),
        );
        check(&|it| it["keys"][0]["x5c"] = json!(["no"]), Err("base64"));
        check(&|it| it["keys"][0]["x5c"] = json!(["AAAA"]), Err("is no authority"));
        let twice = |it: &mut Value| {
            let first = it["keys"][0].clone();
            it["keys"].as_array_mut().unwrap().push(first);
        };
        check(&twice, Ok((1, 1, 1)));
        // J-11.
        check(
            &|it| drop(it["keys"][1].as_object_mut().unwrap().remove("kid")),
            Err("`kid`"),
        );
        let many = |it: &mut Value| it["keys"] = Value::Array(vec![json!({"kty": "EC"}); KEYS_MAX + 1]);
        check(&many, Err("at most 256"));
    }

    #[test]
    fn what_is_no_document() {
        let long = format!("{{\"keys\":[],\"x\":\"{}\"}}", "x".repeat(BUNDLE_DOCUMENT_BYTES_MAX));
        for bad in [
            "",
            "null",
            "[]",
            "{}",
            "{\"keys\":[]} x",
            "{\"keys\":[],\"keys\":[]}",
            "{\"keys\":[],\"spiffe_sequence\":1,\"spiffe_sequence\":2}",
            &long,
        ] {
            let read = BundleDocument::parse(domain(), bad.as_bytes());
            assert!(matches!(read, Err(InvalidBundle::Document(..))), "{read:?}");
        }
    }

    #[test]
    fn a_key_of_two_trust_domains_is_found() {
        let (ours, theirs) = (
            TestAuthority::new("prod.example"),
            TestAuthority::new("partner.example"),
        );
        let bundle = |it: &TestAuthority, byte| it.bundle().with_jwt(jwt(byte));
        assert_eq!(bundle(&ours, 1).shared_key(&bundle(&theirs, 2)), None);
        let jwt = bundle(&ours, 1).shared_key(&bundle(&theirs, 1));
        assert!(jwt.is_some_and(|key| key.contains("`k1`")));
        let both = [ours.bundle().authorities(), theirs.bundle().authorities()].concat();
        let both = TrustBundle::new(domain(), both, 1).unwrap();
        let found = both.shared_key(&ours.bundle()).unwrap();
        let print = Fingerprint::of(&ours.bundle().authorities()[0]);
        assert!(found.contains(&print.to_string()), "{found}");
    }
}
