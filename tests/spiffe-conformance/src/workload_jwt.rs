//! The JWT half of a Workload API judged: tokens, bundles, and who believes a forged one.

use std::collections::BTreeSet;
use std::time::SystemTime;

use prost::Message;
use prost_types::value::Kind;
use tonic::Code;

use crate::bundle::{self, JwtKey, Set};
use crate::clause::Id;
use crate::client::{Answer, Client};
use crate::findings::Findings;
use crate::messages::{
    JwtBundlesResponse, JwtSvid, JwtSvidRequest, JwtSvidResponse, ValidateJwtSvidRequest, ValidateJwtSvidResponse,
};
use crate::spiffe_id::{self, ID_BYTES_MAX};
use crate::token::{self, Expected};
use crate::workload::{Given, judge_fields, judge_hints, judge_names};

const AUDIENCES: [&str; 2] = ["spiffe-conformance-a", "spiffe-conformance-b"];

/// Whoever was made for the first audience was not made for these.
const OTHER_AUDIENCES: [&str; 5] = [
    "spiffe-conformance",
    "spiffe-conformance-",
    "spiffe-conformance-aa",
    "SPIFFE-CONFORMANCE-A",
    "spiffe-conformance-a,spiffe-conformance-b",
];

/// Judges all of it. `given` is what X.509 was given.
pub(crate) async fn judge(findings: &mut Findings, client: &Client, given: Option<&Given>, clock: fn() -> SystemTime) {
    judge_mandatory(findings, client, given.is_some()).await;
    let Some(given) = given else { return };
    judge_ids(findings, client, given).await;
    let keys = judge_bundles(findings, client, given).await;
    let Some(svids) = fetch(client, &AUDIENCES, "")
        .await
        .and_then(|answer| read(findings, &answer))
    else {
        return;
    };
    let audiences = AUDIENCES.map(str::to_owned);
    findings.check(Id::W11a, !svids.is_empty(), || "FetchJWTSVID gives no token".to_owned());
    for svid in &svids {
        let what = format!("the token of `{}`", svid.spiffe_id);
        let expected = Expected {
            what: &what,
            audiences: &audiences,
            spiffe_id: Some(&svid.spiffe_id),
            keys: Some(&keys),
        };
        token::judge(findings, &svid.svid, &expected, clock());
    }
    let ids: BTreeSet<_> = svids.iter().map(|svid| &svid.spiffe_id).collect();
    let missing: Vec<_> = given.ids.iter().filter(|id| !ids.contains(id)).collect();
    findings.check(Id::W11a, missing.is_empty(), || {
        format!("there is no token for {missing:?}")
    });
    if let Some(first) = given.ids.first() {
        let one = fetch(client, &AUDIENCES, first)
            .await
            .and_then(|answer| read(findings, &answer));
        let one: Vec<_> = one.into_iter().flatten().map(|svid| svid.spiffe_id).collect();
        findings.check(Id::W11b, !one.is_empty() && one.iter().all(|id| id == first), || {
            format!("who asks for `{first}` is given tokens of {one:?}")
        });
    }
    if let Some(svid) = svids.first() {
        judge_validation(findings, client, svid, &keys, clock()).await;
    }
}

async fn fetch(client: &Client, audiences: &[&str], id: &str) -> Option<Answer> {
    let request = JwtSvidRequest {
        audience: audiences.iter().map(|&name| name.to_owned()).collect(),
        spiffe_id: id.to_owned(),
    };
    let answer = client.call("FetchJWTSVID", &request).await;
    (answer.code() != Some(Code::Unimplemented)).then_some(answer)
}

fn read(findings: &mut Findings, answer: &Answer) -> Option<Vec<JwtSvid>> {
    let Answer::Message(bytes, _) = answer else {
        findings.fail(Id::W11a, format!("FetchJWTSVID is answered with {}", answer.shown()));
        return None;
    };
    judge_fields(
        findings,
        "JWTSVIDResponse",
        bytes,
        &[1],
        Some((1, "JWTSVID", &[1, 2, 3])),
    );
    match JwtSvidResponse::decode(bytes.as_slice()) {
        Ok(response) => {
            judge_hints(findings, response.svids.iter().map(|svid| svid.hint.as_str()));
            Some(response.svids)
        }
        Err(error) => {
            findings.fail(Id::W11a, format!("the answer of FetchJWTSVID cannot be read: {error}"));
            None
        }
    }
}

async fn validate(client: &Client, audience: &str, svid: &str) -> Answer {
    let request = ValidateJwtSvidRequest {
        audience: audience.to_owned(),
        svid: svid.to_owned(),
    };
    client.call("ValidateJWTSVID", &request).await
}

/// W-6a.
async fn judge_mandatory(findings: &mut Findings, client: &Client, has_identity: bool) {
    let check = |findings: &mut Findings, what: &str, answer: Answer| match answer.code() {
        Some(Code::Unimplemented) => findings.skip(Id::W6a, "the JWT profile is not there"),
        // Whoever is nobody may be told that first.
        Some(Code::PermissionDenied) if !has_identity => findings.skip(Id::W6a, "this caller has no identity"),
        code => findings.check(Id::W6a, code == Some(Code::InvalidArgument), || {
            format!("{what} is answered with {}", answer.shown())
        }),
    };
    let request = JwtSvidRequest::default();
    let answer = client.call("FetchJWTSVID", &request).await;
    check(findings, "FetchJWTSVID without an audience", answer);
    let answer = validate(client, "", "a.b.c").await;
    check(findings, "ValidateJWTSVID without an audience", answer);
    let answer = validate(client, "a", "").await;
    check(findings, "ValidateJWTSVID without a token", answer);
}

/// ID-4 to ID-6, and W-6b: what is asked for by an ID that is nobody's, or none.
async fn judge_ids(findings: &mut Findings, client: &Client, given: &Given) {
    let Some(own) = given.ids.first() else { return };
    let Some(parts) = spiffe_id::parts(own) else { return };
    let foreign = format!("{own}-of-somebody-else");
    let Some(answer) = fetch(client, &AUDIENCES, &foreign).await else {
        return;
    };
    findings.check(Id::W6b, answer.code() == Some(Code::PermissionDenied), || {
        format!("who asks for `{foreign}` is answered with {}", answer.shown())
    });
    let long = format!("spiffe://{}/", parts.trust_domain);
    let long = format!("{long}{}", "a".repeat(ID_BYTES_MAX.saturating_sub(long.len())));
    if let Some(answer) = fetch(client, &AUDIENCES, &long).await {
        findings.check(Id::Id4b, answer.code() == Some(Code::PermissionDenied), || {
            format!(
                "who asks for an ID of {} bytes is answered with {}",
                long.len(),
                answer.shown()
            )
        });
    }
    let swapped: String = parts.path.chars().map(swap_case).collect();
    let swapped = format!("spiffe://{}{swapped}", parts.trust_domain);
    if given.ids.contains(&swapped) {
        findings.skip(
            Id::Id5,
            "the caller has both IDs that differ in case alone, or an ID without letters",
        );
    } else if let Some(answer) = fetch(client, &AUDIENCES, &swapped).await {
        findings.check(Id::Id5, !matches!(answer, Answer::Message(..)), || {
            format!("who asks for `{swapped}` and is `{own}` is given a token")
        });
    }
    if !findings.wants(Id::Id6) {
        return;
    }
    let (trust_domain, path) = (parts.trust_domain, parts.path);
    let mut wrong = vec![
        format!("{own}/"),
        format!("spiffe://{trust_domain}/{path}"),
        format!("spiffe://{trust_domain}/.{path}"),
        format!("spiffe://{trust_domain}/x/..{path}"),
        format!("spiffe://{trust_domain}:443{path}"),
        format!("spiffe://user@{trust_domain}{path}"),
        format!("spiffe://{}{path}", percent(trust_domain, 0)),
        format!("spiffe://{trust_domain}{}", percent(path, 1)),
        format!(" {own}"),
    ];
    for c in (0..=255).map(char::from) {
        if !spiffe_id::is_of_trust_domain(c) && c != '/' {
            wrong.push(format!("spiffe://{trust_domain}{c}{path}"));
        }
        if !spiffe_id::is_of_path(c) && c != '/' {
            wrong.push(format!("{own}{c}"));
        }
    }
    for id in wrong {
        match fetch(client, &AUDIENCES, &id).await {
            Some(Answer::Refused(status)) if status.code() == Code::ResourceExhausted => {
                findings.skip(Id::Id6, "the server asks for less haste");
                break;
            }
            Some(Answer::Refused(_)) => findings.pass(Id::Id6),
            Some(answer) => findings.fail(
                Id::Id6,
                format!("who asks for `{id}` is answered with {}", answer.shown()),
            ),
            None => {}
        }
    }
}

fn swap_case(c: char) -> char {
    if c.is_ascii_lowercase() {
        c.to_ascii_uppercase()
    } else {
        c.to_ascii_lowercase()
    }
}

/// The text with one of its bytes percent-encoded.
fn percent(text: &str, at: usize) -> String {
    let encoded = |(place, byte): (usize, u8)| match place == at {
        true => format!("%{byte:02X}"),
        false => char::from(byte).to_string(),
    };
    text.bytes().enumerate().map(encoded).collect()
}

/// FetchJWTBundles. Gives the keys of the own trust domain.
async fn judge_bundles(findings: &mut Findings, client: &Client, given: &Given) -> Vec<JwtKey> {
    let answer = client.call_with("FetchJWTBundles", &["true"], Vec::new()).await;
    if answer.code() == Some(Code::Unimplemented) {
        return Vec::new();
    }
    let Answer::Message(bytes, _) = &answer else {
        findings.fail(Id::W12b, format!("FetchJWTBundles is answered with {}", answer.shown()));
        return Vec::new();
    };
    judge_fields(findings, "JWTBundlesResponse", bytes, &[1], None);
    let response = JwtBundlesResponse::decode(bytes.as_slice()).unwrap_or_default();
    judge_names(findings, Id::W12c, "bundle", response.bundles.keys(), None);
    let own = format!("spiffe://{}", given.trust_domain);
    findings.check(Id::W12b, response.bundles.contains_key(&own), || {
        let names: Vec<_> = response.bundles.keys().collect();
        format!("FetchJWTBundles has not the bundle of `{own}`: {names:?}")
    });
    let mut keys = Vec::new();
    for (name, set) in &response.bundles {
        let bundle = bundle::judge(findings, &format!("the JWT bundle of `{name}`"), set, Set::Jwks, None);
        if *name == own {
            keys = bundle.jwt;
        }
    }
    keys
}

/// ValidateJWTSVID (W-11d, J-1b, J-2b, J-7, J-9b).
async fn judge_validation(findings: &mut Findings, client: &Client, svid: &JwtSvid, keys: &[JwtKey], now: SystemTime) {
    let Ok(good) = token::read(&svid.svid) else { return };
    for audience in AUDIENCES {
        let answer = validate(client, audience, &svid.svid).await;
        if answer.code() == Some(Code::Unimplemented) {
            return;
        }
        let is_believed = matches!(answer, Answer::Message(..));
        findings.check(Id::J7c, is_believed, || {
            format!(
                "a token for {AUDIENCES:?} is refused for `{audience}`: {}",
                answer.shown()
            )
        });
        if let Answer::Message(bytes, _) = &answer {
            judge_fields(findings, "ValidateJWTSVIDResponse", bytes, &[1, 2], None);
            judge_claims(findings, bytes, svid, &good);
        }
    }
    let mut refuse = async |id: Id, what: &str, audience: &str, forged: &str| {
        let answer = validate(client, audience, forged).await;
        match answer.code() {
            Some(Code::Unavailable | Code::ResourceExhausted | Code::DeadlineExceeded) => {
                findings.skip(id, format!("{what}: {}", answer.shown()));
            }
            Some(_) => findings.pass(id),
            None => findings.fail(id, format!("a token with {what} is answered with {}", answer.shown())),
        }
    };
    for audience in OTHER_AUDIENCES {
        refuse(
            Id::J7b,
            &format!("audiences other than `{audience}`"),
            audience,
            &svid.svid,
        )
        .await;
    }
    for (id, what, forged) in token::forgeries(&svid.svid, keys, now) {
        refuse(id, what, AUDIENCES[0], &forged).await;
    }
}

fn judge_claims(findings: &mut Findings, bytes: &[u8], svid: &JwtSvid, good: &token::Token) {
    let response = ValidateJwtSvidResponse::decode(bytes).unwrap_or_default();
    findings.check(Id::W11d, response.spiffe_id == svid.spiffe_id, || {
        format!(
            "a token of `{}` is taken for one of `{}`",
            svid.spiffe_id, response.spiffe_id
        )
    });
    let claims = response.claims.unwrap_or_default().fields;
    let kind = |name: &str| claims.get(name).and_then(|value| value.kind.as_ref());
    let is_subject = matches!(kind("sub"), Some(Kind::StringValue(subject)) if *subject == svid.spiffe_id);
    let end = good.claims.get("exp").and_then(serde_json::Value::as_f64);
    let is_end = matches!(kind("exp"), Some(Kind::NumberValue(shown)) if Some(*shown) == end);
    // A list of one may be told as one, and one as a list.
    let is_audience = match kind("aud") {
        Some(Kind::ListValue(list)) => !list.values.is_empty(),
        Some(Kind::StringValue(one)) => !one.is_empty(),
        _ => false,
    };
    findings.check(Id::W11d, is_subject && is_end && is_audience, || {
        format!(
            "the claims of a token are told as {:?}",
            claims.keys().collect::<Vec<_>>()
        )
    });
}
