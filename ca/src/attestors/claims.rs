//! What the claims of a token must be before it admits a node, and what is made of them.

use std::collections::BTreeMap;

use data_encoding::HEXLOWER;
use hoplite_identity::jwt::ForeignToken;
use ring::digest::{SHA256, digest};
use serde_json::{Map, Value};

use crate::attestors::Bearer;

/// Values of one claim that count. More are a directory, and no node has one.
pub(crate) const VALUES_MAX: usize = 32;

/// By which claims nodes are told from everybody else who has a token of this issuer: each with the values that count.
pub(crate) type Bounds = BTreeMap<String, Vec<String>>;

/// The values of a claim as texts: of a list each, of anything else but texts, numbers and truths none.
pub(crate) fn texts(claims: &Map<String, Value>, name: &str) -> Vec<String> {
    let text = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    };
    match claims.get(name) {
        Some(Value::Array(several)) => several.iter().take(VALUES_MAX).filter_map(text).collect(),
        Some(one) => text(one).into_iter().collect(),
        None => Vec::new(),
    }
}

/// Whether each bounded claim has one of its values; the first that has not. Values count letter by letter.
pub(crate) fn outside<'a>(claims: &Map<String, Value>, bounds: &'a Bounds) -> Option<&'a str> {
    let fits = |(name, values): &(&String, &Vec<String>)| texts(claims, name).iter().any(|text| values.contains(text));
    bounds.iter().find(|bound| !fits(bound)).map(|(name, _)| name.as_str())
}

/// A token of somebody else's by which it is known again, whatever signature is at its end.
pub(crate) fn bearer(token: &ForeignToken) -> Bearer {
    Bearer {
        digest: HEXLOWER.encode(digest(&SHA256, token.signed().as_bytes()).as_ref()),
        expires_at: token.expires_at(),
    }
}

/// The one proof, as text.
pub(crate) fn token(proof: &[Vec<u8>]) -> Option<&str> {
    match proof {
        [one] => str::from_utf8(one).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn claims_are_compared_letter_by_letter() {
        let Value::Object(claims) = json!({
            "repository": "acme/infra", "groups": ["nodes", "web"], "protected": true, "run": 7, "nested": {"a": "b"}, "none": null
        }) else {
            panic!("an object")
        };
        let check = |name: &str, values: &[&str], expected: bool| {
            let bounds = Bounds::from([(
                name.to_owned(),
                values.iter().map(|value| (*value).to_owned()).collect(),
            )]);
            assert_eq!(outside(&claims, &bounds).is_none(), expected, "{name} {values:?}");
        };
        check("repository", &["acme/infra"], true);
        check("repository", &["other", "acme/infra"], true);
        check("groups", &["nodes"], true);
        check("protected", &["true"], true);
        check("run", &["7"], true);
        check("repository", &["acme/infra2"], false);
        check("repository", &["acme"], false);
        check("repository", &["acme/*"], false);
        check("repository", &["ACME/infra"], false);
        check("repository", &[], false);
        check("nested", &["b"], false);
        check("none", &["", "null"], false);
        check("missing", &["", "null"], false);
        assert!(outside(&claims, &Bounds::new()).is_none());
    }
}
