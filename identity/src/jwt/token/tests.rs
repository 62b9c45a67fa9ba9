//! Tokens that are believed, and each way in which one is not.

use super::*;
use crate::jwt::{InvalidAudience, InvalidJwtAuthorities, JwtClaims, JwtKey};
use proptest::prelude::*;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use serde_json::json;

const NOW: u64 = 1_800_000_000;

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

/// Somebody with a key.
struct Signing {
    pair: EcdsaKeyPair,
}

impl Signing {
    fn new() -> Self {
        let pkcs8 = rcgen::KeyPair::generate().unwrap().serialize_der();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &pkcs8, &SystemRandom::new()).unwrap();
        Self { pair }
    }

    fn key(&self) -> JwtKey {
        JwtKey::p256(self.pair.public_key().as_ref()).unwrap()
    }

    fn authorities(&self, kid: &str) -> JwtAuthorities {
        JwtAuthorities::new([(kid.to_owned(), self.key())]).unwrap()
    }

    fn sign(&self, input: &str) -> String {
        let signature = self.pair.sign(&SystemRandom::new(), input.as_bytes()).unwrap();
        JwtClaims::signed(input, signature.as_ref())
    }

    /// A token that says just this.
    fn token(&self, header: &str, claims: &str) -> String {
        let encode = |text: &str| BASE64URL_NOPAD.encode(text.as_bytes());
        self.sign(&format!("{}.{}", encode(header), encode(claims)))
    }
}

const HEADER: &str = r#"{"alg":"ES256","kid":"k","typ":"JWT"}"#;

fn claims(change: impl FnOnce(&mut Map<String, Value>)) -> String {
    let value = json!({"sub": "spiffe://example.org/web", "aud": ["ledger"], "exp": NOW + 60, "iat": NOW});
    let Value::Object(mut members) = value else {
        panic!("an object")
    };
    change(&mut members);
    Value::Object(members).to_string()
}

fn read(signing: &Signing, token: &str) -> Result<JwtSvid, JwtRejected> {
    let known = signing.authorities("k");
    verify(
        token,
        "ledger",
        |domain| (domain.as_str() == "example.org").then_some(&known),
        at(NOW),
    )
}

/// What we make is what we believe.
#[test]
fn j_3_4_6_7_8_what_is_made_is_believed() {
    let signing = Signing::new();
    let id = SpiffeId::parse("spiffe://example.org/web").unwrap();
    let audience = vec!["ledger".to_owned(), "https://b".to_owned(), "ledger".to_owned()];
    let made = JwtClaims::new(id.clone(), audience, at(NOW), at(NOW + 300)).unwrap();
    let made = made.issued_by("https://oidc.example.org".to_owned());
    let input = made.signing_input("k", JwtAlgorithm::Es256);
    let believed = read(&signing, &signing.sign(&input)).unwrap();
    assert_eq!(believed.spiffe_id(), &id);
    assert_eq!(believed.audience(), ["ledger", "https://b"]);
    assert_eq!(believed.expires_at(), at(NOW + 300));
    assert_eq!(
        Value::Object(believed.claims().clone()),
        json!({"sub": id.as_str(), "aud": ["ledger", "https://b"], "exp": NOW + 300, "iat": NOW, "iss": "https://oidc.example.org"})
    );
}

#[test]
fn j_7_nobody_signs_for_no_audience() {
    let check = |audience: &[&str], expected: &InvalidAudience| {
        let id = SpiffeId::parse("spiffe://example.org/web").unwrap();
        let audience = audience.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(&JwtClaims::new(id, audience, at(NOW), at(NOW)).unwrap_err(), expected);
    };
    check(&[], &InvalidAudience::None);
    check(&["a", ""], &InvalidAudience::Empty);
    let long = "x".repeat(1025);
    check(&[&long], &InvalidAudience::Long(crate::Excerpt::of(&long)));
    check(&["a"; 33], &InvalidAudience::TooMany(33));
}

#[test]
fn each_rule_refuses() {
    let signing = Signing::new();
    let check = |rule: &str, header: &str, claims: &str, expected: &JwtRejected| {
        let refused = read(&signing, &signing.token(header, claims)).expect_err(rule);
        assert_eq!(&refused, expected, "{rule}");
    };
    let good = claims(|_| ());
    read(&signing, &signing.token(HEADER, &good)).unwrap();

    // J-2: what is no algorithm of the list, in any spelling; and one of the list that is not this key's.
    for alg in ["none", "None", "HS256", "EdDSA", "ES512", "es256", ""] {
        let header = format!(r#"{{"alg":"{alg}","kid":"k"}}"#);
        check("J-2", &header, &good, &JwtRejected::Algorithm);
    }
    for alg in ["ES384", "RS256", "PS512"] {
        let header = format!(r#"{{"alg":"{alg}","kid":"k"}}"#);
        check("J-2", &header, &good, &JwtRejected::OtherAlgorithm);
    }
    check("J-3", r#"{"alg":"ES256"}"#, &good, &JwtRejected::NoKeyId);
    check("J-3", r#"{"alg":"ES256","kid":""}"#, &good, &JwtRejected::NoKeyId);
    check(
        "J-4",
        r#"{"alg":"ES256","kid":"k","typ":"at+jwt"}"#,
        &good,
        &JwtRejected::Type,
    );
    for typ in ["", r#","typ":"JOSE""#, r#","typ":"JWT""#] {
        let header = format!(r#"{{"alg":"ES256","kid":"k"{typ}}}"#);
        read(&signing, &signing.token(&header, &good)).unwrap();
    }
    // J-5, among them the ones by which a token brings its own key.
    for more in [
        r#""jku":"https://evil""#,
        r#""jwk":{}"#,
        r#""x5c":[]"#,
        r#""crit":["b64"]"#,
        r#""b64":false"#,
        r#""kid":"other""#,
    ] {
        let header = format!(r#"{{"alg":"ES256","kid":"k",{more}}}"#);
        check("J-5", &header, &good, &JwtRejected::Header);
    }
    for header in ["[]", "null", "{", r#"{"alg":1,"kid":"k"}"#] {
        check("J-1", header, &good, &JwtRejected::Header);
    }

    // J-6
    check(
        "J-6",
        HEADER,
        &claims(|c| drop(c.remove("sub"))),
        &JwtRejected::Claim("sub"),
    );
    check(
        "J-6",
        HEADER,
        &claims(|c| drop(c.insert("sub".into(), json!(["x"])))),
        &JwtRejected::Claim("sub"),
    );
    let other = |sub: &str| claims(|c| drop(c.insert("sub".into(), json!(sub))));
    let domain = SpiffeId::parse("spiffe://example.org").unwrap();
    check(
        "J-6",
        HEADER,
        &other("spiffe://example.org"),
        &JwtRejected::TrustDomainId(domain),
    );
    let reason = SpiffeId::parse("https://example.org/web").unwrap_err();
    check(
        "J-6",
        HEADER,
        &other("https://example.org/web"),
        &JwtRejected::Subject(reason),
    );
    // J-9: who has a key of one trust domain speaks for nobody of another.
    let foreign = crate::TrustDomain::parse("other.org").unwrap();
    check(
        "J-9",
        HEADER,
        &other("spiffe://other.org/web"),
        &JwtRejected::NoBundle(foreign),
    );
    let own = crate::TrustDomain::parse("example.org").unwrap();
    check(
        "J-9",
        r#"{"alg":"ES256","kid":"l"}"#,
        &good,
        &JwtRejected::NoSuchKey(own),
    );

    // J-7
    for aud in [
        json!(null),
        json!([]),
        json!(""),
        json!([""]),
        json!([1]),
        json!({"a": 1}),
        json!(7),
    ] {
        check(
            "J-7",
            HEADER,
            &claims(|c| drop(c.insert("aud".into(), aud))),
            &JwtRejected::Claim("aud"),
        );
    }
    check(
        "J-7",
        HEADER,
        &claims(|c| drop(c.remove("aud"))),
        &JwtRejected::Claim("aud"),
    );
    for aud in [json!("Ledger"), json!(["ledger "]), json!(["ledgers", "ledge"])] {
        check(
            "J-7",
            HEADER,
            &claims(|c| drop(c.insert("aud".into(), aud))),
            &JwtRejected::Audience("ledger".to_owned()),
        );
    }
    for aud in [json!("ledger"), json!(["x", "ledger"])] {
        read(
            &signing,
            &signing.token(HEADER, &claims(|c| drop(c.insert("aud".into(), aud)))),
        )
        .unwrap();
    }

    // J-8
    check(
        "J-8",
        HEADER,
        &claims(|c| drop(c.remove("exp"))),
        &JwtRejected::Claim("exp"),
    );
    for exp in [json!("1900000000"), json!(-1), json!(1.8e12), json!(null), json!(true)] {
        check(
            "J-8",
            HEADER,
            &claims(|c| drop(c.insert("exp".into(), exp))),
            &JwtRejected::Claim("exp"),
        );
    }
    let ended = |exp: u64| JwtRejected::Expired {
        ended: shown(at(exp)),
        now: shown(at(NOW)),
    };
    for exp in [0, NOW - 1, NOW] {
        check(
            "J-8",
            HEADER,
            &claims(|c| drop(c.insert("exp".into(), json!(exp)))),
            &ended(exp),
        );
    }
    read(
        &signing,
        &signing.token(
            HEADER,
            &claims(|c| drop(c.insert("exp".into(), json!(NOW as f64 + 1.9)))),
        ),
    )
    .unwrap();
    read(
        &signing,
        &signing.token(HEADER, &claims(|c| drop(c.insert("nbf".into(), json!(NOW + 60))))),
    )
    .unwrap();
    check(
        "J-8",
        HEADER,
        &claims(|c| drop(c.insert("nbf".into(), json!(NOW + 61)))),
        &JwtRejected::NotYet {
            begins: shown(at(NOW + 61)),
            now: shown(at(NOW)),
        },
    );
    // Signed in the future: by a clock that nobody can believe, or by somebody who has it be good for longer than it says.
    check(
        "J-8",
        HEADER,
        &claims(|c| drop(c.insert("iat".into(), json!(NOW + 61)))),
        &JwtRejected::NotYet {
            begins: shown(at(NOW + 61)),
            now: shown(at(NOW)),
        },
    );
    check(
        "J-8",
        HEADER,
        &claims(|c| drop(c.insert("iat".into(), json!("now")))),
        &JwtRejected::Claim("iat"),
    );

    // A claim that stands twice means whatever a reader likes.
    let twice = good.replacen('{', r#"{"sub":"spiffe://example.org/admin","#, 1);
    check("twice", HEADER, &twice, &JwtRejected::Claims);
    for text in ["[]", "1", "", "{\"sub\":"] {
        let refused = read(&signing, &signing.token(HEADER, text)).unwrap_err();
        assert!(
            matches!(refused, JwtRejected::Claims | JwtRejected::NotCompact),
            "{refused}"
        );
    }
}

#[test]
fn a_signature_is_of_this_key_over_these_bytes() {
    let (signing, thief) = (Signing::new(), Signing::new());
    let good = signing.token(HEADER, &claims(|_| ()));
    assert_eq!(
        read(&signing, &thief.token(HEADER, &claims(|_| ()))),
        Err(JwtRejected::Signature)
    );
    let admin = claims(|c| drop(c.insert("sub".into(), json!("spiffe://example.org/admin"))));
    let (head, rest) = good.split_once('.').unwrap();
    let (_, signature) = rest.rsplit_once('.').unwrap();
    let spliced = format!("{head}.{}.{signature}", BASE64URL_NOPAD.encode(admin.as_bytes()));
    assert_eq!(read(&signing, &spliced), Err(JwtRejected::Signature));
    // The DER form of an ECDSA signature is not the one of JWS, and zeros are no signature (CVE-2022-21449).
    let zeros = format!(
        "{head}.{}.{}",
        rest.split_once('.').unwrap().0,
        BASE64URL_NOPAD.encode(&[0; 64])
    );
    assert_eq!(read(&signing, &zeros), Err(JwtRejected::Signature));
    for token in [
        format!("{good}."),
        format!(".{good}"),
        format!("{good}="),
        format!(" {good}"),
        good.replace('.', ".."),
        good.replacen('.', "", 1),
        good.rsplit_once('.').unwrap().0.to_owned() + ".",
        format!(r#"{{"payload":"{head}"}}"#),
        String::new(),
    ] {
        assert_eq!(read(&signing, &token), Err(JwtRejected::NotCompact), "{token}");
    }
    assert_eq!(
        read(&signing, &"a".repeat(TOKEN_BYTES_MAX + 1)),
        Err(JwtRejected::TooLong)
    );
}

/// Another library's tokens, by each algorithm.
#[test]
fn j_2_every_algorithm_of_the_list_but_one() {
    let vectors: Value = serde_json::from_str(include_str!("../vectors.json")).unwrap();
    let known = JwtAuthorities::from_jwks(vectors["jwks"].to_string().as_bytes()).unwrap();
    assert_eq!(known.key_ids().collect::<Vec<_>>(), ["p256", "p384", "rsa"]);
    assert_eq!(JwtAuthorities::from_jwks(known.to_jwks().as_bytes()).unwrap(), known);
    let tokens = vectors["tokens"].as_object().unwrap();
    assert_eq!(tokens.len(), 8);
    for (algorithm, token) in tokens {
        let token = token.as_str().unwrap();
        let believed =
            verify(token, "ledger", |_| Some(&known), at(NOW)).unwrap_or_else(|e| panic!("{algorithm}: {e}"));
        assert_eq!(believed.spiffe_id().as_str(), "spiffe://example.org/web");
        let (start, last) = token.split_at(token.len() - 8);
        let changed = format!("{start}{}", if last.starts_with('A') { "BAAAAAAA" } else { "AAAAAAAA" });
        let refused = verify(&changed, "ledger", |_| Some(&known), at(NOW)).unwrap_err();
        assert!(
            matches!(refused, JwtRejected::Signature | JwtRejected::NotCompact),
            "{algorithm}: {refused}"
        );
    }
}

#[test]
fn b_4_j_11_what_is_no_key_of_jwt_svids_is_passed_over_and_a_broken_one_is_not() {
    let key = |change: fn(&mut Map<String, Value>)| {
        let mut jwk = serde_json::to_value(crate::jwt::jwk::Jwk::from(&Signing::new().key())).unwrap();
        let members = jwk.as_object_mut().unwrap();
        members.insert("use".into(), json!("jwt-svid"));
        members.insert("kid".into(), json!("a"));
        change(members);
        jwk
    };
    let read = |keys: Value| JwtAuthorities::from_jwks(json!({"keys": keys}).to_string().as_bytes());
    let other = |change| read(json!([key(change)])).map(|known| known.key_ids().count());
    assert_eq!(read(json!([])), Ok(JwtAuthorities::default()), "B-1");
    assert_eq!(other(|_| ()), Ok(1));
    assert_eq!(other(|k| drop(k.insert("use".into(), json!("x509-svid")))), Ok(0));
    assert_eq!(other(|k| drop(k.insert("use".into(), json!("JWT-SVID")))), Ok(0));
    assert_eq!(other(|k| drop(k.remove("use"))), Ok(0));
    assert_eq!(other(|k| drop(k.insert("kty".into(), json!("OKP")))), Ok(0));
    assert_eq!(other(|k| drop(k.insert("crv".into(), json!("P-521")))), Ok(0));
    assert_eq!(other(|k| drop(k.insert("unknown".into(), json!({"a": [1]})))), Ok(1));
    assert_eq!(other(|k| drop(k.remove("kid"))), Err(InvalidJwtAuthorities::NoKeyId(0)));
    let broken = |result| matches!(result, Err(InvalidJwtAuthorities::Key { .. }));
    assert!(broken(other(|k| drop(k.remove("x")))));
    assert!(broken(other(|k| drop(k.insert("y".into(), json!("AAAA"))))));
    assert!(broken(other(|k| drop(k.insert("x".into(), json!("A=="))))));
    let rsa = |n: usize, e: &str| {
        let n = BASE64URL_NOPAD.encode(&vec![0xff; n]);
        read(json!([{"kty": "RSA", "use": "jwt-svid", "kid": "r", "n": n, "e": e}]))
            .map(|known| known.key_ids().count())
    };
    assert_eq!(rsa(256, "AQAB"), Ok(1));
    for (n, e) in [
        (255, "AQAB"),
        (1025, "AQAB"),
        (256, "AQ"),
        (256, "Ag"),
        (256, ""),
        (256, "AQAAAAAB"),
    ] {
        assert!(matches!(rsa(n, e), Err(InvalidJwtAuthorities::Key { .. })), "{n} {e}");
    }
    assert!(matches!(
        read(json!([key(|_| ()), key(|_| ())])),
        Err(InvalidJwtAuthorities::Twice(_))
    ));
    for text in [r#"{"keys": null}"#, "{}", "[]", r#"{"keys":[],"keys":[]}"#] {
        assert!(JwtAuthorities::from_jwks(text.as_bytes()).is_err(), "{text}");
    }
}

proptest! {
    /// No token but the one that was signed, and no panic.
    #[test]
    fn one_changed_byte_is_refused(at_byte in 0_usize..400, to in 0_u8..128) {
        let signing = Signing::new();
        let token = signing.token(HEADER, &claims(|_| ()));
        let mut bytes = token.clone().into_bytes();
        let position = at_byte % bytes.len();
        bytes[position] = to;
        let changed = String::from_utf8(bytes).unwrap();
        prop_assert_eq!(read(&signing, &changed).is_ok(), changed == token);
    }

    #[test]
    fn whatever_is_read_panics_nowhere(token in "\\PC{0,200}") {
        let signing = Signing::new();
        prop_assert!(read(&signing, &token).is_err());
        let _ = JwtAuthorities::from_jwks(token.as_bytes());
    }
}
