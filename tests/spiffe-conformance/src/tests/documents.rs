//! Bundles, bundle maps, SVIDs and tokens of files: each clause that they can break, broken.

use std::time::{Duration, SystemTime};

use data_encoding::BASE64;
use serde_json::{Value, json};

use super::maker::{Authority, TokenKey, bundle};
use crate::{JwtFile, Limits, Outcome, SvidFile, Targets, authorities_of, judge};

const LIMITS: Limits = Limits {
    patience: Duration::from_secs(5),
    delay: Duration::from_secs(5),
    watch: Duration::ZERO,
};

/// What changes a good document: its JSON, or the text of it.
enum Change {
    Value(fn(&mut Value)),
    Text(fn(String) -> String),
}

use Change::{Text, Value as Json};

const BUNDLES: &[(&str, Change)] = &[
    (
        "B-1a",
        Json(|bundle| _ = bundle.as_object_mut().unwrap().remove("keys")),
    ),
    ("B-1a", Json(|bundle| bundle["keys"] = json!({}))),
    ("B-1a", Text(|_| "no JSON".to_owned())),
    ("B-1b", Text(|text| text.replacen('{', "{\"keys\":[],", 1))),
    (
        "B-2a",
        Json(|bundle| _ = bundle.as_object_mut().unwrap().remove("spiffe_sequence")),
    ),
    ("B-2b", Json(|bundle| bundle["spiffe_sequence"] = json!("7"))),
    ("B-2b", Json(|bundle| bundle["spiffe_sequence"] = json!(7.5))),
    (
        "B-3a",
        Json(|bundle| _ = bundle.as_object_mut().unwrap().remove("spiffe_refresh_hint")),
    ),
    ("B-3b", Json(|bundle| bundle["spiffe_refresh_hint"] = json!("5m"))),
    (
        "B-4a",
        Json(|bundle| _ = bundle["keys"][1].as_object_mut().unwrap().remove("kty")),
    ),
    (
        "B-4b",
        Json(|bundle| _ = bundle["keys"][0].as_object_mut().unwrap().remove("use")),
    ),
    ("B-4b", Json(|bundle| bundle["keys"][0]["use"] = json!("X509-SVID"))),
    ("B-4c", Json(|bundle| bundle["keys"][0]["d"] = json!("AAAA"))),
    ("B-4d", Json(|bundle| bundle["keys"][1]["owner"] = json!("us"))),
    ("X-10a", Json(|bundle| bundle["keys"][0]["kid"] = json!("one"))),
    (
        "X-10b",
        Json(|bundle| _ = bundle["keys"][0].as_object_mut().unwrap().remove("x5c")),
    ),
    (
        "X-10b",
        Json(|bundle| {
            let twice = bundle["keys"][0]["x5c"][0].clone();
            bundle["keys"][0]["x5c"] = json!([twice, twice]);
        }),
    ),
    ("X-10b", Json(|bundle| bundle["keys"][0]["x5c"] = json!(["AAAA"]))),
    (
        "X-10b",
        Json(|bundle| {
            let leaf = Authority::new("own.test", |_| ()).leaf("/one", |_| ()).0;
            bundle["keys"][0]["x5c"] = json!([BASE64.encode(&leaf)]);
        }),
    ),
    (
        "X-10c",
        Json(|bundle| {
            let above = Authority::new("own.test", |_| ());
            bundle["keys"][0] = above.below("own.test", |_| ()).jwk();
        }),
    ),
    (
        "X-10d",
        Json(|bundle| bundle["keys"][0]["x"] = bundle["keys"][1]["x"].clone()),
    ),
    (
        "J-11a",
        Json(|bundle| _ = bundle["keys"][1].as_object_mut().unwrap().remove("kid")),
    ),
    (
        "J-11b",
        Json(|bundle| {
            let twice = bundle["keys"][1].clone();
            bundle["keys"].as_array_mut().unwrap().push(twice);
        }),
    ),
    (
        "F-7",
        Json(|bundle| bundle["keys"][0] = Authority::new("other.test", |_| ()).jwk()),
    ),
];

const MAPS: &[(&str, Change)] = &[
    (
        "B-5a",
        Json(|map| _ = map.as_object_mut().unwrap().remove("trust_domains")),
    ),
    (
        "B-5a",
        Json(|map| map["trust_domains"]["spiffe://c.test"] = json!({"keys": []})),
    ),
    ("B-5a", Text(|_| "[".to_owned())),
    (
        "B-5b",
        Text(|text| text.replacen("\"trust_domains\":{", "\"trust_domains\":{\"a.test\":{\"keys\":[]},", 1)),
    ),
    (
        "B-5c",
        Json(|map| map["trust_domains"]["a.test"]["spiffe_refresh_hint"] = json!(300)),
    ),
    (
        "F-7",
        Json(|map| map["trust_domains"]["b.test"] = map["trust_domains"]["a.test"].clone()),
    ),
];

async fn failed(targets: Targets) -> Vec<String> {
    let verdicts = judge(&targets, &[], LIMITS, SystemTime::now).await.verdicts();
    let failed = verdicts.iter().filter(|verdict| verdict.outcome == Outcome::Fail);
    failed
        .map(|verdict| format!("{} {:?}", verdict.clause.name, verdict.details))
        .collect()
}

fn changed(document: &Value, change: &Change) -> Vec<u8> {
    let mut document = document.clone();
    match change {
        Json(change) => change(&mut document),
        Text(change) => return change(document.to_string()).into_bytes(),
    }
    document.to_string().into_bytes()
}

fn names(failed: &[String], name: &str) -> bool {
    failed.iter().any(|said| said.starts_with(&format!("{name} ")))
}

#[tokio::test]
async fn each_clause_that_a_bundle_can_break_is_found_broken() {
    let authority = Authority::new("own.test", |_| ());
    let good = bundle(&[authority.jwk(), TokenKey::new().jwk()]);
    let of = |bytes: Vec<u8>| Targets {
        bundles: vec![("the file".to_owned(), bytes)],
        trust_domain: Some("own.test".to_owned()),
        ..Targets::default()
    };
    assert_eq!(failed(of(good.to_string().into_bytes())).await, Vec::<String>::new());
    let empty = json!({"keys": [], "spiffe_sequence": 1, "spiffe_refresh_hint": 1}).to_string();
    assert_eq!(
        failed(of(empty.into_bytes())).await,
        Vec::<String>::new(),
        "an empty bundle revokes all"
    );
    for (number, (name, change)) in BUNDLES.iter().enumerate() {
        let found = failed(of(changed(&good, change))).await;
        assert!(names(&found, name), "fault {number} of {name} was not found: {found:?}");
    }
}

#[tokio::test]
async fn each_clause_that_a_map_can_break_is_found_broken() {
    let of = |bytes: Vec<u8>| Targets {
        maps: vec![("the map".to_owned(), bytes)],
        ..Targets::default()
    };
    let one = |name: &str| json!({"keys": [Authority::new(name, |_| ()).jwk()], "spiffe_sequence": 1});
    let good = json!({"trust_domains": {"a.test": one("a.test"), "b.test": one("b.test")}});
    assert_eq!(failed(of(good.to_string().into_bytes())).await, Vec::<String>::new());
    for (number, (name, change)) in MAPS.iter().enumerate() {
        let found = failed(of(changed(&good, change))).await;
        assert!(names(&found, name), "fault {number} of {name} was not found: {found:?}");
    }
}

#[tokio::test]
async fn svids_and_tokens_of_files() {
    let pem = |label: &str, der: &[u8]| {
        format!(
            "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
            BASE64.encode(der)
        )
    };
    let authority = Authority::new("own.test", |_| ());
    let (leaf, key) = authority.leaf("/one", |_| ());
    let json = bundle(&[authority.jwk(), TokenKey::new().jwk()])
        .to_string()
        .into_bytes();
    let svid = |chain: Vec<u8>, key: Option<Vec<u8>>, authorities: &[u8]| Targets {
        svids: vec![SvidFile {
            name: "the SVID".to_owned(),
            chain,
            key,
            authorities: Some(authorities_of(authorities).unwrap()),
        }],
        ..Targets::default()
    };
    let both = format!("{}{}", pem("CERTIFICATE", &leaf), pem("PRIVATE KEY", &key)).into_bytes();
    assert_eq!(failed(svid(both.clone(), None, &json)).await, Vec::<String>::new());
    assert_eq!(
        failed(svid(leaf.clone(), Some(key.clone()), &authority.der)).await,
        Vec::<String>::new()
    );
    let found = failed(svid(leaf.clone(), Some(authority.key.clone()), &authority.der)).await;
    assert!(found.len() == 1 && names(&found, "W-8c"), "{found:?}");
    let stranger = pem("CERTIFICATE", &Authority::new("own.test", |_| ()).der);
    let found = failed(svid(both, None, stranger.as_bytes())).await;
    assert!(found.len() == 1 && names(&found, "X-9a"), "{found:?}");
    assert!(names(&failed(svid(b"nothing".to_vec(), None, &json)).await, "X-1"));
    assert!(authorities_of(b"").is_err() && authorities_of(br#"{"keys":[]}"#).is_err());

    let signer = TokenKey::new();
    let jwt = |token: String, bundle: &Value| Targets {
        jwts: vec![JwtFile {
            name: "the token".to_owned(),
            token,
            audiences: vec!["a".to_owned()],
            bundle: Some(bundle.to_string().into_bytes()),
        }],
        ..Targets::default()
    };
    let own = bundle(&[signer.jwk()]);
    let audience = ["a".to_owned()];
    let good = signer.token("spiffe://own.test/one", &audience, |_, _| ());
    assert_eq!(failed(jwt(format!("{good}\n"), &own)).await, Vec::<String>::new());
    let other = bundle(&[TokenKey::new().jwk()]);
    assert!(names(&failed(jwt(good, &other)).await, "J-9a"));
    let elsewhere = signer.token("spiffe://own.test/one", &["b".to_owned()], |_, _| ());
    assert!(names(&failed(jwt(elsewhere, &own)).await, "J-7a"));
}

/// Each clause that these tables name.
pub(super) fn covered() -> Vec<&'static str> {
    BUNDLES.iter().chain(MAPS).map(|(name, _)| *name).collect()
}
