//! Tokens of other issuers: those that are believed, and each forgery.

use super::*;
use data_encoding::BASE64URL_NOPAD;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use serde_json::json;
use std::time::UNIX_EPOCH;

const NOW: u64 = 1_800_000_000;

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn pair() -> EcdsaKeyPair {
    let pkcs8 = rcgen::KeyPair::generate().unwrap().serialize_der();
    EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &pkcs8, &SystemRandom::new()).unwrap()
}

fn encode(bytes: &[u8]) -> String {
    BASE64URL_NOPAD.encode(bytes)
}

fn jwk(pair: &EcdsaKeyPair, kid: &str) -> Value {
    let point = pair.public_key().as_ref();
    json!({"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": kid, "x": encode(&point[1..33]), "y": encode(&point[33..])})
}

fn keys(jwks: &[Value]) -> Result<ForeignKeys, InvalidForeignKeys> {
    ForeignKeys::from_jwks(json!({ "keys": jwks }).to_string().as_bytes())
}

fn signed(pair: &EcdsaKeyPair, header: &Value, claims: &Value) -> String {
    let input = format!(
        "{}.{}",
        encode(header.to_string().as_bytes()),
        encode(claims.to_string().as_bytes())
    );
    let signature = pair.sign(&SystemRandom::new(), input.as_bytes()).unwrap();
    format!("{input}.{}", encode(signature.as_ref()))
}

fn header() -> Value {
    json!({"alg": "ES256", "kid": "k"})
}

fn claims() -> Value {
    json!({"iss": "https://k8s.example", "aud": ["hoplite"], "sub": "system:serviceaccount:a:b", "iat": NOW, "exp": NOW + 600})
}

fn with(mut value: Value, name: &str, to: Value) -> Value {
    value[name] = to;
    value
}

fn without(mut value: Value, name: &str) -> Value {
    value.as_object_mut().unwrap().remove(name);
    value
}

#[test]
fn each_forgery_is_refused_for_its_own_reason() {
    let (pair, other) = (pair(), pair());
    let known = keys(&[jwk(&pair, "k")]).unwrap();
    let expected = Expected {
        issuer: "https://k8s.example",
        audience: "hoplite",
        longest: Duration::from_secs(3600),
    };
    let check = |what: &str, token: &str, reason: &str| {
        let said = match verify_foreign(token, expected, &known, at(NOW)) {
            Ok(token) => format!("believed {}", token.subject()),
            Err(error) => error.to_string(),
        };
        assert!(said.contains(reason), "{what}: expected `{reason}`, got `{said}`");
    };
    let good = signed(&pair, &header(), &claims());
    check("good", &good, "believed system:serviceaccount:a:b");
    check(
        "a header with more in it",
        &signed(&pair, &with(header(), "x5t", json!("a")), &claims()),
        "believed",
    );
    check(
        "one audience",
        &signed(&pair, &header(), &with(claims(), "aud", json!("hoplite"))),
        "believed",
    );

    check("nothing", "", "three parts");
    check("two parts", "a.b", "three parts");
    check("another alphabet", &good.replace('.', "+."), "three parts");
    check("too long", &"a".repeat(TOKEN_BYTES_MAX + 1), "longer");
    let none = format!(
        "{}.{}.",
        encode(br#"{"alg":"none","kid":"k"}"#),
        encode(claims().to_string().as_bytes())
    );
    check("no signature", &none, "three parts");
    for algorithm in ["none", "None", "HS256", "EdDSA", "es256"] {
        check(
            algorithm,
            &signed(&pair, &with(header(), "alg", json!(algorithm)), &claims()),
            "its algorithm is none of",
        );
    }
    check(
        "an algorithm of no EC key",
        &signed(&pair, &with(header(), "alg", json!("RS256")), &claims()),
        "not the one of the key",
    );
    check(
        "without kid",
        &signed(&pair, &without(header(), "kid"), &claims()),
        "no `kid`",
    );
    check(
        "another kid",
        &signed(&pair, &with(header(), "kid", json!("x")), &claims()),
        "no key of its `kid`",
    );
    check(
        "crit",
        &signed(&pair, &with(header(), "crit", json!(["b64"])), &claims()),
        "header",
    );
    check(
        "another type",
        &signed(&pair, &with(header(), "typ", json!("at+jwt")), &claims()),
        "header",
    );
    check("another key", &signed(&other, &header(), &claims()), "signature");
    let (input, signature) = good.rsplit_once('.').unwrap();
    let changed = encode(
        with(claims(), "sub", json!("system:serviceaccount:kube-system:root"))
            .to_string()
            .as_bytes(),
    );
    check(
        "changed",
        &format!("{}.{changed}.{signature}", input.split_once('.').unwrap().0),
        "signature",
    );

    check(
        "another issuer",
        &signed(&pair, &header(), &with(claims(), "iss", json!("https://k8s.example/"))),
        "its issuer is `https://k8s.example/`",
    );
    check(
        "no issuer",
        &signed(&pair, &header(), &without(claims(), "iss")),
        "`iss`",
    );
    check(
        "another audience",
        &signed(&pair, &header(), &with(claims(), "aud", json!(["api", "vault"]))),
        "for `api, vault`",
    );
    check(
        "no audience",
        &signed(&pair, &header(), &without(claims(), "aud")),
        "`aud`",
    );
    check(
        "an empty list",
        &signed(&pair, &header(), &with(claims(), "aud", json!([]))),
        "`aud`",
    );
    check("no end", &signed(&pair, &header(), &without(claims(), "exp")), "`exp`");
    check(
        "an end in words",
        &signed(&pair, &header(), &with(claims(), "exp", json!("soon"))),
        "`exp`",
    );
    check(
        "ended",
        &signed(&pair, &header(), &with(claims(), "exp", json!(NOW))),
        "it ended at",
    );
    check(
        "of tomorrow",
        &signed(&pair, &header(), &with(claims(), "nbf", json!(NOW + 61))),
        "it counts from",
    );
    check(
        "made in the future",
        &signed(&pair, &header(), &with(claims(), "iat", json!(NOW + 61))),
        "it counts from",
    );
    check(
        "a clock that is ahead by a minute",
        &signed(&pair, &header(), &with(claims(), "iat", json!(NOW + 60))),
        "believed",
    );
    check(
        "long-lived",
        &signed(&pair, &header(), &with(claims(), "exp", json!(NOW + 3601))),
        "longer than",
    );
    check(
        "long-lived and silent",
        &signed(
            &pair,
            &header(),
            &without(with(claims(), "exp", json!(NOW + 3601)), "iat"),
        ),
        "longer than",
    );
    check("nobody", &signed(&pair, &header(), &without(claims(), "sub")), "`sub`");
}

#[test]
fn which_keys_count() {
    let pair = pair();
    let check = |jwks: &[Value], expected: &str| {
        let said = match keys(jwks) {
            Ok(keys) => keys.key_ids().collect::<Vec<_>>().join(" "),
            Err(error) => error.to_string(),
        };
        assert!(said.contains(expected), "expected `{expected}`, got `{said}`");
    };
    let good = || jwk(&pair, "k");
    check(&[good(), jwk(&pair, "l")], "k l");
    check(&[without(without(good(), "use"), "alg")], "k");
    check(
        &[good(), json!({"kty": "OKP", "crv": "Ed25519", "kid": "e", "x": "AA"})],
        "k",
    );
    check(&[good(), json!({"kty": "oct", "kid": "s", "k": "AA"})], "k");
    check(&[with(good(), "use", json!("enc"))], "no key for signatures");
    check(&[with(good(), "alg", json!("HS256"))], "no key for signatures");
    check(&[with(good(), "alg", json!("RS256"))], "no key for signatures");
    check(&[without(good(), "kid")], "no key for signatures");
    check(&[], "no key for signatures");
    check(&[good(), good()], "one `kid`");
    check(&[with(good(), "x", json!("AA"))], "cannot be used");
    check(&vec![good(); KEYS_MAX + 1], "more than 64");
    assert!(
        ForeignKeys::from_jwks(b"<html>")
            .unwrap_err()
            .to_string()
            .contains("no JWK Set")
    );
}

/// Of one signed text there can be several signatures: whoever counts tokens must not count by the whole of it.
#[test]
fn a_token_with_another_signature_is_known_again() {
    let pair = pair();
    let known = keys(&[jwk(&pair, "k")]).unwrap();
    let expected = Expected {
        issuer: "https://k8s.example",
        audience: "hoplite",
        longest: Duration::from_secs(3600),
    };
    let (one, two) = (signed(&pair, &header(), &claims()), signed(&pair, &header(), &claims()));
    assert_ne!(one, two);
    let read = |token: &str| {
        verify_foreign(token, expected, &known, at(NOW))
            .unwrap()
            .signed()
            .to_owned()
    };
    assert_eq!(read(&one), read(&two));
}
