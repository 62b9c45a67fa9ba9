//! JWT-SVIDs judged (J-1 to J-9), and forged, to see who believes them.

use std::time::{SystemTime, UNIX_EPOCH};

use data_encoding::BASE64URL_NOPAD;
use ring::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm};
use serde_json::{Map, Value, json};

use crate::bundle::{JwtKey, KeyKind};
use crate::clause::Id;
use crate::der::Unreadable;
use crate::findings::Findings;
use crate::{json, spiffe_id};

/// Clocks may differ by this much.
const LEEWAY_SECONDS: u64 = 60;

const ALGORITHMS: [&str; 9] = [
    "RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "PS256", "PS384", "PS512",
];

/// What is expected of a token.
pub(crate) struct Expected<'a> {
    /// What it is called in reports.
    pub(crate) what: &'a str,
    pub(crate) audiences: &'a [String],
    /// The SPIFFE ID beside it.
    pub(crate) spiffe_id: Option<&'a str>,
    /// The keys of its subject's trust domain; `None` if nobody said which.
    pub(crate) keys: Option<&'a [JwtKey]>,
}

/// A token in its parts.
#[derive(Debug, Clone)]
pub(crate) struct Token {
    pub(crate) header: Map<String, Value>,
    pub(crate) claims: Map<String, Value>,
    /// What is signed.
    pub(crate) signed: String,
    pub(crate) signature: Vec<u8>,
}

/// Takes a token apart.
pub(crate) fn read(token: &str) -> Result<Token, Unreadable> {
    let parts: Vec<_> = token.split('.').collect();
    let [header, claims, signature] = parts.as_slice() else {
        return Err(Unreadable(format!("it has {} parts", parts.len())));
    };
    let bytes = |name: &str, part: &str| {
        let bytes = BASE64URL_NOPAD.decode(part.as_bytes());
        bytes.map_err(|_| Unreadable(format!("its {name} is no base64url without padding")))
    };
    let object = |name: &str, part: &str| match json::read(&bytes(name, part)?) {
        Ok(document) if !document.twice.is_empty() => {
            Err(Unreadable(format!("its {name} has twice: {:?}", document.twice)))
        }
        Ok(document) => match document.value {
            Value::Object(object) => Ok(object),
            _ => Err(Unreadable(format!("its {name} is no JSON object"))),
        },
        Err(why) => Err(Unreadable(format!("its {name}: {why}"))),
    };
    Ok(Token {
        header: object("header", header)?,
        claims: object("claims", claims)?,
        signed: format!("{header}.{claims}"),
        signature: bytes("signature", signature)?,
    })
}

/// Judges a token that somebody gave out.
pub(crate) fn judge(findings: &mut Findings, token: &str, expected: &Expected<'_>, now: SystemTime) {
    let what = expected.what;
    let token = match read(token) {
        Ok(token) => token,
        Err(why) => {
            findings.fail(Id::J1a, format!("{what}: {why}"));
            return;
        }
    };
    findings.pass(Id::J1a);
    let text = |name: &str| token.header.get(name).and_then(Value::as_str);
    let algorithm = text("alg").unwrap_or_default();
    findings.check(Id::J2a, ALGORITHMS.contains(&algorithm), || {
        format!("{what} has the algorithm `{algorithm}`")
    });
    findings.check(Id::J3, text("kid").is_some_and(|kid| !kid.is_empty()), || {
        format!("{what} has no `kid`")
    });
    let kind = token.header.get("typ");
    let is_good = kind.is_none_or(|kind| kind == "JWT" || kind == "JOSE");
    findings.check(Id::J4, is_good, || {
        format!("`typ` of {what} is {}", kind.unwrap_or(&Value::Null))
    });
    let more: Vec<_> = token
        .header
        .keys()
        .filter(|name| !["alg", "kid", "typ"].contains(&name.as_str()))
        .collect();
    findings.check(Id::J5, more.is_empty(), || {
        format!("the header of {what} has {more:?} too")
    });
    let subject = token.claims.get("sub").and_then(Value::as_str);
    match (subject, expected.spiffe_id) {
        (None, _) => findings.fail(Id::J6, format!("{what} has no `sub`")),
        (Some(subject), Some(id)) if subject != id => {
            findings.fail(
                Id::J6,
                format!("`sub` of {what} is `{subject}`, and it came for `{id}`"),
            );
        }
        (Some(subject), _) => {
            findings.check(Id::J6, spiffe_id::parts(subject).is_some(), || {
                format!("`sub` of {what} is `{subject}`")
            });
            spiffe_id::judge(findings, subject);
        }
    }
    judge_audience(findings, &token, expected);
    judge_times(findings, what, &token, now);
    judge_signature(findings, &token, algorithm, expected);
}

fn judge_audience(findings: &mut Findings, token: &Token, expected: &Expected<'_>) {
    let audiences: Vec<&str> = match token.claims.get("aud") {
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    let is_good = !audiences.is_empty() && expected.audiences.iter().all(|name| audiences.contains(&name.as_str()));
    findings.check(Id::J7a, is_good, || {
        format!(
            "`aud` of {} is {audiences:?}, and {:?} was asked for",
            expected.what, expected.audiences
        )
    });
}

fn judge_times(findings: &mut Findings, what: &str, token: &Token, now: SystemTime) {
    let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let seconds = |name: &str| {
        token
            .claims
            .get(name)
            .map(|value| value.as_f64().ok_or_else(|| value.clone()))
    };
    match seconds("exp") {
        Some(Ok(end)) => findings.check(Id::J8a, end > now as f64, || {
            format!("{what} ended at {end}, it is {now}")
        }),
        Some(Err(value)) => findings.fail(Id::J8a, format!("`exp` of {what} is {value}")),
        None => findings.fail(Id::J8a, format!("{what} has no `exp`")),
    }
    for name in ["nbf", "iat"] {
        match seconds(name) {
            Some(Ok(begin)) => findings.check(Id::J8b, begin <= (now + LEEWAY_SECONDS) as f64, || {
                format!("`{name}` of {what} is {begin}, it is {now}")
            }),
            Some(Err(value)) => findings.fail(Id::J8b, format!("`{name}` of {what} is {value}")),
            None => findings.not_applicable(Id::J8b, "tokens have neither `nbf` nor `iat`"),
        }
    }
}

fn judge_signature(findings: &mut Findings, token: &Token, algorithm: &str, expected: &Expected<'_>) {
    let what = expected.what;
    let Some(keys) = expected.keys else {
        findings.skip(
            Id::J9a,
            format!("nobody said who signs {what}: name a file with `--bundle`"),
        );
        return;
    };
    let id = token.header.get("kid").and_then(Value::as_str);
    let mut tried: Vec<_> = keys.iter().filter(|key| id.is_none_or(|id| key.id == id)).collect();
    tried.retain(|key| !matches!(key.kind, KeyKind::Other(_)));
    if tried.is_empty() {
        findings.fail(
            Id::J9a,
            format!("no key of its trust domain's bundle is that of {what}, {id:?}"),
        );
        return;
    }
    let verdicts: Vec<_> = tried.iter().map(|key| verify(&key.kind, algorithm, token)).collect();
    if verdicts.contains(&Some(true)) {
        findings.pass(Id::J9a);
    } else if verdicts.contains(&None) {
        findings.skip(
            Id::J9a,
            format!("{what} is signed with `{algorithm}`, which this suite cannot verify"),
        );
    } else {
        findings.fail(Id::J9a, format!("the signature of {what} is wrong"));
    }
}

/// Whether the signature is this key's; `None` if we cannot tell.
pub(crate) fn verify(key: &KeyKind, algorithm: &str, token: &Token) -> Option<bool> {
    let (message, signed) = (token.signed.as_bytes(), token.signature.as_slice());
    match key {
        KeyKind::Ec { curve, point } => {
            let algorithm: &dyn VerificationAlgorithm = match (curve.as_str(), algorithm) {
                ("P-256", "ES256") => &signature::ECDSA_P256_SHA256_FIXED,
                ("P-384", "ES384") => &signature::ECDSA_P384_SHA384_FIXED,
                (_, "ES512") => return None,
                _ => return Some(false),
            };
            Some(UnparsedPublicKey::new(algorithm, point).verify(message, signed).is_ok())
        }
        KeyKind::Rsa { n, e } => {
            let algorithm = match algorithm {
                "RS256" => &signature::RSA_PKCS1_2048_8192_SHA256,
                "RS384" => &signature::RSA_PKCS1_2048_8192_SHA384,
                "RS512" => &signature::RSA_PKCS1_2048_8192_SHA512,
                "PS256" => &signature::RSA_PSS_2048_8192_SHA256,
                "PS384" => &signature::RSA_PSS_2048_8192_SHA384,
                "PS512" => &signature::RSA_PSS_2048_8192_SHA512,
                _ => return Some(false),
            };
            Some(
                RsaPublicKeyComponents { n, e }
                    .verify(algorithm, message, signed)
                    .is_ok(),
            )
        }
        KeyKind::Other(_) => None,
    }
}

// === forgeries ===

/// What a thief makes of a good token, each with the clause that refuses it and what it is called.
pub(crate) fn forgeries(good: &str, keys: &[JwtKey], now: SystemTime) -> Vec<(Id, &'static str, String)> {
    let Ok(token) = read(good) else { return Vec::new() };
    let parts: Vec<_> = good.split('.').collect();
    let [header, claims, signature] = parts.as_slice() else {
        return Vec::new();
    };
    let encode =
        |object: &Map<String, Value>| BASE64URL_NOPAD.encode(Value::Object(object.clone()).to_string().as_bytes());
    let with = |object: &Map<String, Value>, name: &str, value: Value| {
        let mut object = object.clone();
        object.insert(name.to_owned(), value);
        encode(&object)
    };
    let without = |object: &Map<String, Value>, name: &str| {
        let mut object = object.clone();
        object.remove(name);
        encode(&object)
    };
    let mut flipped = token.signature.clone();
    if let Some(last) = flipped.last_mut() {
        *last ^= 1;
    }
    let flipped = BASE64URL_NOPAD.encode(&flipped);
    let zeros = BASE64URL_NOPAD.encode(&vec![0; token.signature.len()]);
    let none = |name: &str| with(&token.header, "alg", json!(name));
    let mut found = vec![
        (
            Id::J1b,
            "JSON serialisation",
            json!({"payload": claims, "protected": header, "signature": signature}).to_string(),
        ),
        (
            Id::J1b,
            "JSON serialisation with two signatures",
            json!({"payload": claims, "signatures": [{"protected": header, "signature": signature}]}).to_string(),
        ),
        (Id::J1b, "four parts", format!("{good}.{signature}")),
        (Id::J1b, "two parts", format!("{header}.{claims}")),
        (
            Id::J1b,
            "base64 with padding",
            format!("{header}=.{claims}.{signature}"),
        ),
        (
            Id::J2b,
            "`none` without a signature",
            format!("{}.{claims}.", none("none")),
        ),
        (
            Id::J2b,
            "`None` without a signature",
            format!("{}.{claims}.", none("None")),
        ),
        (
            Id::J2b,
            "`none` with the signature",
            format!("{}.{claims}.{signature}", none("none")),
        ),
        (
            Id::J2b,
            "no algorithm",
            format!("{}.{claims}.{signature}", without(&token.header, "alg")),
        ),
        (
            Id::J2b,
            "an algorithm of nobody's",
            format!("{}.{claims}.{signature}", none("ES256K")),
        ),
        (Id::J9b, "another signature", format!("{header}.{claims}.{flipped}")),
        (Id::J9b, "a signature of zeros", format!("{header}.{claims}.{zeros}")),
        (Id::J9b, "no signature", format!("{header}.{claims}.")),
        (
            Id::J9b,
            "another header",
            format!("{}.{claims}.{signature}", with(&token.header, "x", json!(1))),
        ),
        (
            Id::J9b,
            "another audience",
            format!("{header}.{}.{signature}", with(&token.claims, "aud", json!(["x"]))),
        ),
        (
            Id::J9b,
            "no `exp`",
            format!("{header}.{}.{signature}", without(&token.claims, "exp")),
        ),
        (Id::J9b, "another subject", {
            let subject = token.claims.get("sub").and_then(Value::as_str).unwrap_or_default();
            format!(
                "{header}.{}.{signature}",
                with(&token.claims, "sub", json!(format!("{subject}x")))
            )
        }),
    ];
    // The key that verifies is public: who takes it for a secret believes everybody.
    let later = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()) + 300;
    let claims = with(&token.claims, "exp", json!(later));
    for key in keys {
        let secrets = match &key.kind {
            KeyKind::Ec { point, .. } => vec![point.clone()],
            KeyKind::Rsa { n, .. } => vec![n.clone()],
            KeyKind::Other(_) => Vec::new(),
        };
        for secret in secrets.iter().map(Vec::as_slice).chain([&[][..]]) {
            let signed = format!("{}.{claims}", with(&token.header, "alg", json!("HS256")));
            let tag = ring::hmac::sign(
                &ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret),
                signed.as_bytes(),
            );
            let forged = format!("{signed}.{}", BASE64URL_NOPAD.encode(tag.as_ref()));
            found.push((Id::J2b, "HMAC with the public key", forged));
        }
    }
    found
}
