//! Authorities, SVIDs and tokens, good or bad as a test wants them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use data_encoding::{BASE64, BASE64URL_NOPAD};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::{Map, Value, json};

use crate::bundle::{JwtKey, KeyKind};

/// An authority of a trust domain.
pub(super) struct Authority {
    pub(super) der: Vec<u8>,
    pub(super) name: String,
    pub(super) key: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

/// A key that signs tokens, with the id `key`.
pub(super) struct TokenKey(EcdsaKeyPair);

pub(super) fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

pub(super) fn named(text: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, text);
    name
}

fn hour(params: &mut CertificateParams) {
    let now = SystemTime::now();
    params.not_before = (now - Duration::from_secs(60)).into();
    params.not_after = (now + Duration::from_secs(3600)).into();
}

// === impl Authority ===

impl Authority {
    pub(super) fn new(trust_domain: &str, change: impl Fn(&mut CertificateParams)) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = Self::params(trust_domain);
        change(&mut params);
        let der = params.self_signed(&key).unwrap().der().to_vec();
        Self::of(trust_domain, params, der, key)
    }

    /// One that this one signs.
    pub(super) fn below(&self, trust_domain: &str, change: impl Fn(&mut CertificateParams)) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = Self::params(trust_domain);
        params.distinguished_name = named("below");
        change(&mut params);
        let der = params.signed_by(&key, &self.issuer).unwrap().der().to_vec();
        Self::of(trust_domain, params, der, key)
    }

    fn params(trust_domain: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        hour(&mut params);
        params.distinguished_name = named(&format!("authority of {trust_domain}"));
        params.subject_alt_names = vec![uri(&format!("spiffe://{trust_domain}"))];
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params
    }

    fn of(trust_domain: &str, params: CertificateParams, der: Vec<u8>, key: KeyPair) -> Self {
        // rcgen signs only with what looks like a CA.
        let mut looks = Self::params(trust_domain);
        looks.distinguished_name = params.distinguished_name;
        Self {
            der,
            name: trust_domain.to_owned(),
            key: key.serialize_der(),
            issuer: Issuer::new(looks, key),
        }
    }

    /// A leaf and its key.
    pub(super) fn leaf(&self, path: &str, change: impl Fn(&mut CertificateParams)) -> (Vec<u8>, Vec<u8>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        hour(&mut params);
        params.distinguished_name = named("workload");
        params.subject_alt_names = vec![uri(&format!("spiffe://{}{path}", self.name))];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let der = params.signed_by(&key, &self.issuer).unwrap().der().to_vec();
        (der, key.serialize_der())
    }

    /// As a bundle's key.
    pub(super) fn jwk(&self) -> Value {
        let certificate = crate::der::certificate(&self.der).unwrap();
        let point = certificate.public_key().subject_public_key.data.to_vec();
        json!({
            "kty": "EC",
            "use": "x509-svid",
            "crv": "P-256",
            "x": BASE64URL_NOPAD.encode(&point[1..33]),
            "y": BASE64URL_NOPAD.encode(&point[33..]),
            "x5c": [BASE64.encode(&self.der)],
        })
    }
}

// === impl TokenKey ===

impl TokenKey {
    pub(super) fn new() -> Self {
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        Self(EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.as_ref(), &random).unwrap())
    }

    pub(super) fn key(&self) -> JwtKey {
        JwtKey {
            id: "key".to_owned(),
            kind: KeyKind::Ec {
                curve: "P-256".to_owned(),
                point: self.0.public_key().as_ref().to_vec(),
            },
        }
    }

    pub(super) fn jwk(&self) -> Value {
        let point = self.0.public_key().as_ref();
        json!({
            "kty": "EC",
            "use": "jwt-svid",
            "kid": "key",
            "crv": "P-256",
            "x": BASE64URL_NOPAD.encode(&point[1..33]),
            "y": BASE64URL_NOPAD.encode(&point[33..]),
        })
    }

    /// A token for these audiences that lives five minutes, with these changes.
    pub(super) fn token(
        &self,
        subject: &str,
        audiences: &[String],
        change: fn(&mut Map<String, Value>, &mut Map<String, Value>),
    ) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let header = json!({"alg": "ES256", "kid": "key", "typ": "JWT"});
        let claims = json!({"sub": subject, "aud": audiences, "exp": now + 300, "iat": now});
        let (Value::Object(mut header), Value::Object(mut claims)) = (header, claims) else {
            panic!("it is an object")
        };
        change(&mut header, &mut claims);
        let encode = |object: Map<String, Value>| BASE64URL_NOPAD.encode(Value::Object(object).to_string().as_bytes());
        let signed = format!("{}.{}", encode(header), encode(claims));
        let signature = self.0.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", BASE64URL_NOPAD.encode(signature.as_ref()))
    }
}

/// A trust bundle with these keys.
pub(super) fn bundle(keys: &[Value]) -> Value {
    json!({"keys": keys, "spiffe_sequence": 7, "spiffe_refresh_hint": 300})
}
