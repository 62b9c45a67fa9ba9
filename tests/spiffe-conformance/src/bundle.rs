//! Trust bundles and bundle maps judged (B-1 to B-5, X-10, J-11, F-7).

use std::collections::{BTreeMap, BTreeSet};

use data_encoding::{BASE64, BASE64URL_NOPAD};
use serde_json::{Map, Value};
use x509_parser::public_key::PublicKey;

use crate::clause::Id;
use crate::der::{self, Unreadable};
use crate::findings::Findings;
use crate::{json, spiffe_id, x509};

/// What a bundle says, as far as it can be used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Bundle {
    /// DER certificates.
    pub(crate) x509: Vec<Vec<u8>>,
    pub(crate) jwt: Vec<JwtKey>,
    pub(crate) sequence: Option<u64>,
}

/// A key that signs tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct JwtKey {
    pub(crate) id: String,
    pub(crate) kind: KeyKind,
}

/// What a key is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum KeyKind {
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
    /// A point on a curve, uncompressed.
    Ec {
        curve: String,
        point: Vec<u8>,
    },
    /// Of another kind.
    Other(String),
}

/// Who the keys of a set are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Set {
    /// A trust bundle, with its own members.
    Bundle,
    /// What the Workload API gives: keys for tokens and nothing more.
    Jwks,
}

const USES: [&str; 3] = ["x509-svid", "jwt-svid", "wit-svid"];

/// What has a name in RFC 7517, RFC 7518 and SPIFFE's specifications.
const MEMBERS: [&str; 15] = [
    "kty", "use", "key_ops", "alg", "kid", "x5u", "x5c", "x5t", "x5t#S256", "crv", "x", "y", "n", "e", "pub",
];

/// What is the private half of a key.
const PRIVATE: [&str; 9] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv"];

/// Judges a set of keys. `what` is what it is called in reports.
pub(crate) fn judge(findings: &mut Findings, what: &str, bytes: &[u8], set: Set, trust_domain: Option<&str>) -> Bundle {
    let document = match json::read(bytes) {
        Ok(document) => document,
        Err(why) => {
            findings.fail(Id::B1a, format!("{what}: {why}"));
            return Bundle::default();
        }
    };
    findings.check(Id::B1b, document.twice.is_empty(), || {
        format!("{what} has twice: {:?}", document.twice)
    });
    judge_value(findings, what, &document.value, set, trust_domain)
}

fn judge_value(findings: &mut Findings, what: &str, value: &Value, set: Set, trust_domain: Option<&str>) -> Bundle {
    let mut bundle = Bundle::default();
    let keys = value.get("keys").and_then(Value::as_array);
    findings.check(Id::B1a, keys.is_some(), || format!("{what} has no array `keys`"));
    if set == Set::Bundle {
        bundle.sequence = judge_number(findings, what, value, "spiffe_sequence", (Id::B2a, Id::B2b));
        judge_number(findings, what, value, "spiffe_refresh_hint", (Id::B3a, Id::B3b));
    }
    let mut ids = BTreeSet::new();
    for (number, key) in keys.into_iter().flatten().enumerate() {
        let what = format!("key {number} of {what}");
        let Some(key) = key.as_object() else {
            findings.fail(Id::B4a, format!("{what} is no object"));
            continue;
        };
        let kind = key.get("kty").and_then(Value::as_str).unwrap_or_default();
        findings.check(Id::B4a, !kind.is_empty(), || format!("{what} has no `kty`"));
        let shown: Vec<_> = PRIVATE.iter().filter(|name| key.contains_key(**name)).collect();
        findings.check(Id::B4c, shown.is_empty() && kind != "oct", || {
            format!("{what} shows its private half: {shown:?}")
        });
        let unknown: Vec<_> = key.keys().filter(|name| !MEMBERS.contains(&name.as_str())).collect();
        let unknown: Vec<_> = unknown
            .into_iter()
            .filter(|name| !PRIVATE.contains(&name.as_str()))
            .collect();
        findings.check(Id::B4d, unknown.is_empty(), || {
            format!("{what} has members of its own: {unknown:?}")
        });
        let usage = key.get("use").and_then(Value::as_str);
        if set == Set::Bundle {
            judge_use(findings, &what, usage);
        }
        match (set, usage) {
            (Set::Bundle, Some("x509-svid")) => judge_x509(findings, &what, key, trust_domain, &mut bundle),
            (Set::Bundle, Some("jwt-svid")) | (Set::Jwks, None | Some("jwt-svid")) => {
                let id = judge_jwt(findings, &what, key, &mut bundle);
                findings.check(Id::J11b, id.is_none() || ids.insert(id.clone()), || {
                    format!("{what} has the `kid` of another one, {id:?}")
                });
                if set == Set::Jwks {
                    findings.pass(Id::W11c);
                }
            }
            (Set::Jwks, Some(other)) => findings.fail(Id::W11c, format!("{what} has the use `{other}`")),
            (Set::Bundle, _) => {}
        }
    }
    bundle
}

fn judge_number(
    findings: &mut Findings,
    what: &str,
    value: &Value,
    name: &str,
    (is_there, is_number): (Id, Id),
) -> Option<u64> {
    let found = value.get(name);
    findings.check(is_there, found.is_some(), || format!("{what} has no `{name}`"));
    let found = found?;
    findings.check(is_number, found.is_u64(), || format!("`{name}` of {what} is {found}"));
    found.as_u64()
}

fn judge_use(findings: &mut Findings, what: &str, usage: Option<&str>) {
    match usage {
        None | Some("") => findings.fail(Id::B4b, format!("{what} has no `use`")),
        Some(usage) => {
            let meant = USES.iter().find(|known| known.eq_ignore_ascii_case(usage));
            findings.check(Id::B4b, meant.is_none_or(|known| *known == usage), || {
                format!("the use of {what} is `{usage}`: write {meant:?}")
            });
        }
    }
}

fn judge_x509(
    findings: &mut Findings,
    what: &str,
    key: &Map<String, Value>,
    trust_domain: Option<&str>,
    bundle: &mut Bundle,
) {
    findings.check(Id::X10a, !key.contains_key("kid"), || {
        format!("{what} is for X.509 and has a `kid`")
    });
    let chain = key
        .get("x5c")
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default();
    findings.check(Id::X10b, chain.len() == 1, || {
        format!("{what} has {} certificates in `x5c`", chain.len())
    });
    let Some(first) = chain.first() else { return };
    let der = first.as_str().and_then(|text| BASE64.decode(text.as_bytes()).ok());
    let Some(der) = der else {
        findings.fail(Id::X10b, format!("{what} has an `x5c` that is no base64 with padding"));
        return;
    };
    let certificate = match der::certificate(&der) {
        Ok(certificate) => certificate,
        Err(why) => {
            findings.fail(Id::X10b, format!("{what}: {why}"));
            return;
        }
    };
    x509::judge_authority(findings, what, &certificate, trust_domain);
    let is_ca = certificate
        .basic_constraints()
        .ok()
        .flatten()
        .is_some_and(|constraints| constraints.value.ca);
    findings.check(Id::X10b, is_ca, || format!("the certificate of {what} is no CA"));
    let is_own = certificate.subject() == certificate.issuer() && certificate.verify_signature(None).is_ok();
    findings.check(Id::X10c, is_own, || {
        format!("the certificate of {what} is signed by `{}`", certificate.issuer())
    });
    let own = match certificate.public_key().parsed() {
        Ok(PublicKey::EC(point)) => Some(point.data().to_vec()),
        Ok(PublicKey::RSA(key)) => Some(without_zeros(key.modulus).to_vec()),
        _ => None,
    };
    let written = match kind(key) {
        Ok(KeyKind::Ec { point, .. }) => Some(point),
        Ok(KeyKind::Rsa { n, .. }) => Some(n),
        _ => None,
    };
    match own {
        Some(own) => findings.check(Id::X10d, written.as_ref() == Some(&own), || {
            format!("the members of {what} are another key than its certificate's")
        }),
        None => findings.skip(
            Id::X10d,
            format!("the key of {what} is of a kind that this suite does not know"),
        ),
    }
    if let (Some(trust_domain), Some(parts)) = (trust_domain, x509::spiffe_id(&certificate).and_then(spiffe_id::parts))
    {
        findings.check(Id::F7, parts.trust_domain == trust_domain, || {
            format!(
                "{what} is an authority of `{}` in the bundle of `{trust_domain}`",
                parts.trust_domain
            )
        });
    }
    bundle.x509.push(der.clone());
}

/// Judges a key for tokens. Gives its `kid`.
fn judge_jwt(findings: &mut Findings, what: &str, key: &Map<String, Value>, bundle: &mut Bundle) -> Option<String> {
    let id = key.get("kid").and_then(Value::as_str).unwrap_or_default().to_owned();
    findings.check(Id::J11a, !id.is_empty(), || {
        format!("{what} is for JWT and has no `kid`")
    });
    match kind(key) {
        Ok(kind) => bundle.jwt.push(JwtKey { id: id.clone(), kind }),
        Err(why) => findings.fail(Id::B4a, format!("{what}: {why}")),
    }
    (!id.is_empty()).then_some(id)
}

fn kind(key: &Map<String, Value>) -> Result<KeyKind, Unreadable> {
    let text = |name: &str| key.get(name).and_then(Value::as_str);
    let bytes = |name: &str| {
        let text = text(name).ok_or_else(|| Unreadable(format!("it has no `{name}`")))?;
        let bytes = BASE64URL_NOPAD.decode(text.as_bytes());
        bytes.map_err(|_| Unreadable(format!("its `{name}` is no base64url without padding")))
    };
    match text("kty") {
        Some("EC") => Ok(KeyKind::Ec {
            curve: text("crv").unwrap_or_default().to_owned(),
            point: [vec![4], bytes("x")?, bytes("y")?].concat(),
        }),
        Some("RSA") => Ok(KeyKind::Rsa {
            n: without_zeros(&bytes("n")?).to_vec(),
            e: without_zeros(&bytes("e")?).to_vec(),
        }),
        other => Ok(KeyKind::Other(other.unwrap_or_default().to_owned())),
    }
}

fn without_zeros(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    number.get(zeros..).unwrap_or_default()
}

/// Judges a bundle map.
pub(crate) fn judge_map(findings: &mut Findings, what: &str, bytes: &[u8]) {
    let document = match json::read(bytes) {
        Ok(document) => document,
        Err(why) => {
            findings.fail(Id::B5a, format!("{what}: {why}"));
            return;
        }
    };
    findings.check(Id::B5b, document.twice.is_empty(), || {
        format!("{what} has twice: {:?}", document.twice)
    });
    let Some(trust_domains) = document.value.get("trust_domains").and_then(Value::as_object) else {
        findings.fail(Id::B5a, format!("{what} has no object `trust_domains`"));
        return;
    };
    findings.pass(Id::B5a);
    let mut authorities = Vec::new();
    for (name, value) in trust_domains {
        findings.check(Id::B5a, spiffe_id::is_trust_domain(name), || {
            format!("`{name}` in {what} names no trust domain")
        });
        findings.check(Id::B5c, value.get("spiffe_refresh_hint").is_none(), || {
            format!("`{name}` in {what} has a refresh hint of its own")
        });
        // Its own members are those of a bundle; that a hint is missing is as it should be.
        let mut inside = Findings::default();
        let bundle = judge_value(
            &mut inside,
            &format!("`{name}` in {what}"),
            value,
            Set::Bundle,
            Some(name),
        );
        findings.take(inside, &[Id::B3a]);
        authorities.push((name.clone(), bundle.x509));
    }
    judge_shared(findings, &authorities);
}

/// Judges whether an authority stands in the bundles of two trust domains (F-7).
pub(crate) fn judge_shared(findings: &mut Findings, bundles: &[(String, Vec<Vec<u8>>)]) {
    let mut owners: BTreeMap<&[u8], &str> = BTreeMap::new();
    for (name, authorities) in bundles {
        for authority in authorities {
            let other = owners.insert(authority, name).filter(|other| *other != name);
            findings.check(Id::F7, other.is_none(), || {
                format!(
                    "one authority stands in the bundles of `{}` and `{name}`",
                    other.unwrap_or_default()
                )
            });
        }
    }
}
