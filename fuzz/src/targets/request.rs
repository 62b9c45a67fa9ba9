//! The canonical request: what is accepted reads the same again, leads nowhere else and can be sent as it stands.

use hoplite_policy::{CanonicalRequest, MAX_PATH_BYTES, MAX_QUERY_BYTES, MAX_SEGMENTS};
use http::uri::PathAndQuery;

/// A method, a host and any number of other hosts on the first line, with one space between; then the target, as it is.
pub fn request(input: &[u8]) -> String {
    let mut halves = input.splitn(2, |&b| b == b'\n');
    let (head, target) = (halves.next().unwrap_or_default(), halves.next().unwrap_or_default());
    let mut words = head.split(|&b| b == b' ');
    let Ok(method) = std::str::from_utf8(words.next().unwrap_or_default()) else {
        return String::new();
    };
    let hosts: Vec<&[u8]> = words.collect();
    let once = match CanonicalRequest::parse(method, &hosts, target) {
        Ok(once) => once,
        Err(ambiguous) => return ambiguous.code().to_owned(),
    };

    let sent = once.path_and_query();
    let again = CanonicalRequest::parse(once.method(), &[once.host().as_bytes()], sent.as_bytes());
    assert_eq!(again.as_ref(), Ok(&once), "a second reading differs");

    let path = once.path();
    assert!(path.len() <= MAX_PATH_BYTES && once.query().is_none_or(|query| query.len() <= MAX_QUERY_BYTES));
    assert!(
        path.bytes().all(|b| b.is_ascii_graphic() && !b"\\;#?".contains(&b)),
        "{path}"
    );
    assert!(
        !path.split('/').any(|segment| segment == "." || segment == ".."),
        "{path}"
    );
    assert!(!path.contains("//"), "{path}");
    let upper = path.to_ascii_uppercase();
    for separator in ["%2F", "%5C", "%00"] {
        assert!(!upper.contains(separator), "{path}");
    }
    if path == "*" {
        assert_eq!(once.method(), "OPTIONS");
        assert_eq!(once.segments().len(), 0);
    } else {
        assert!(path.starts_with('/'), "{path}");
        // The segments are the written ones, decoded once: nothing else, and in the same order.
        let written = path.split('/').filter(|segment| !segment.is_empty()).map(decoded);
        assert!(once.segments().map(|s| s.as_bytes().to_vec()).eq(written), "{path}");
    }
    assert!(once.segments().len() <= MAX_SEGMENTS);
    for segment in once.segments() {
        assert!(!segment.is_empty() && segment != "." && segment != ".." && !segment.contains(['/', '\\', '\0']));
    }
    assert!(!once.host().is_empty() && once.host() == once.host().to_ascii_lowercase());

    // What the library took in as it was written, it can send as we write it.
    if PathAndQuery::try_from(target).is_ok_and(|read| read.as_str().as_bytes() == target) {
        let read = PathAndQuery::try_from(sent.as_str());
        assert_eq!(
            read.as_ref().map(PathAndQuery::as_str).ok(),
            Some(sent.as_str()),
            "it cannot be sent"
        );
    }
    format!("{} {}", once.segments().len(), sent.as_bytes() == target)
}

/// A reference for tests: every `%xx` replaced once.
fn decoded(segment: &str) -> Vec<u8> {
    let mut parts = segment.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (escape, rest) = part.split_at(2);
        bytes.push(u8::from_str_radix(escape, 16).expect("the path holds whole escapes only"));
        bytes.extend(rest.as_bytes());
    }
    bytes
}
