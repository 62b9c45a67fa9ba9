//! The canonical request: what is accepted reads the same again, leads nowhere else and can be sent as it stands.

use hoplite_policy::limits::{HEADER_VALUE_BYTES_MAX, PATH_BYTES_MAX, QUERY_BYTES_MAX, SEGMENTS_MAX};
use hoplite_policy::{CanonicalRequest, SelectedHeaders};
use http::uri::PathAndQuery;

/// What parts the target from the fields, and one field from the next.
const FIELD: &[u8] = b"\r\n";

/// A method, a host and any number of other hosts on the first line, with one space between; then the target, as it is;
/// then fields, each behind a carriage return and a line feed.
pub fn request(input: &[u8]) -> String {
    let mut halves = input.splitn(2, |&b| b == b'\n');
    let (head, rest) = (halves.next().unwrap_or_default(), halves.next().unwrap_or_default());
    let end = rest
        .windows(FIELD.len())
        .position(|part| part == FIELD)
        .unwrap_or(rest.len());
    let (target, fields) = rest.split_at(end);
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
    let again = CanonicalRequest::parse(once.method(), &[once.authority().as_bytes()], sent.as_bytes());
    assert_eq!(again.as_ref(), Ok(&once), "a second reading differs");

    let path = once.path();
    assert!(path.len() <= PATH_BYTES_MAX && once.query().is_none_or(|query| query.len() <= QUERY_BYTES_MAX));
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
    assert!(once.segments().len() <= SEGMENTS_MAX);
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
    let headers = headers(&once, fields);
    format!("{} {} {headers}", once.segments().len(), sent.as_bytes() == target)
}

/// Reads the fields, and what came of them once more.
fn headers(request: &CanonicalRequest, fields: &[u8]) -> String {
    let selected = SelectedHeaders::parse("headers = ['x-tenant', 'content-type']").expect("names of headers");
    let Ok(text) = std::str::from_utf8(fields) else {
        return String::new();
    };
    let fields: Vec<(&str, &[u8])> = text
        .split("\r\n")
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name, value.as_bytes()))
        .collect();
    let once = match request.clone().with_headers(&selected, fields.iter().copied()) {
        Ok(once) => once,
        Err(ambiguous) => return ambiguous.code().to_owned(),
    };
    let read: Vec<_> = once.headers().collect();
    assert!(read.iter().map(|(name, _)| *name).eq(selected.iter()), "{read:?}");
    for &(name, value) in &read {
        let meant: Vec<_> = fields
            .iter()
            .filter(|(field, _)| field.eq_ignore_ascii_case(name))
            .collect();
        match value {
            None => assert!(meant.is_empty(), "`{name}` was lost"),
            Some(value) => {
                assert!(
                    meant.len() == 1 && meant[0].1 == value.as_bytes(),
                    "`{name}` is not as it was sent"
                );
                assert!((1..=HEADER_VALUE_BYTES_MAX).contains(&value.len()));
                assert!(value.bytes().all(|b| matches!(b, b' '..=b'~') && b != b','), "{value}");
                assert_eq!(value, value.trim());
            }
        }
    }
    let again = read
        .iter()
        .filter_map(|(name, value)| Some((*name, (*value)?.as_bytes())));
    let again = request.clone().with_headers(&selected, again);
    assert_eq!(again.as_ref(), Ok(&once), "a second reading differs");
    format!(
        "{:?}",
        read.iter().map(|(_, value)| value.is_some()).collect::<Vec<_>>()
    )
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
