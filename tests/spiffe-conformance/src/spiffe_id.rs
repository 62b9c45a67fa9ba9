//! SPIFFE IDs, read strictly; a reading of our own, so that the judge has not the faults of whom it judges.

use crate::clause::Id;
use crate::findings::Findings;

/// The longest SPIFFE ID that everybody must take.
pub(crate) const ID_BYTES_MAX: usize = 2048;

const TRUST_DOMAIN_BYTES_MAX: usize = 255;

/// A SPIFFE ID in its parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Parts<'a> {
    pub(crate) trust_domain: &'a str,
    /// With its slash; empty for the ID of a trust domain.
    pub(crate) path: &'a str,
}

/// The parts, whatever is in them: only the scheme is looked at.
pub(crate) fn parts(id: &str) -> Option<Parts<'_>> {
    let rest = id.strip_prefix("spiffe://")?;
    let (trust_domain, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    Some(Parts { trust_domain, path })
}

/// Whether a name is one of a trust domain.
pub(crate) fn is_trust_domain(name: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte);
    !name.is_empty() && name.len() <= TRUST_DOMAIN_BYTES_MAX && name.bytes().all(legal)
}

/// Whether this byte may stand in a trust domain.
pub(crate) fn is_of_trust_domain(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit() || ".-_".contains(c)
}

/// Whether this byte may stand in a segment of a path.
pub(crate) fn is_of_path(c: char) -> bool {
    c.is_ascii_alphanumeric() || ".-_".contains(c)
}

/// Judges one SPIFFE ID that somebody gave out (ID-1 to ID-4).
pub(crate) fn judge(findings: &mut Findings, id: &str) {
    let Some(Parts { trust_domain, path }) = parts(id) else {
        findings.fail(Id::Id1, format!("`{id}` does not begin with `spiffe://`"));
        return;
    };
    let has_more = trust_domain.contains(['@', ':', '[']) || id.contains(['?', '#']) || trust_domain.is_empty();
    findings.check(Id::Id1, !has_more, || {
        format!("`{id}` has more than a trust domain and a path, or less")
    });
    findings.check(
        Id::Id2,
        trust_domain.chars().all(is_of_trust_domain) && !trust_domain.is_empty(),
        || format!("the trust domain of `{id}` has other characters than a-z, 0-9, dot, dash and underscore"),
    );
    let mut segments = path.split('/').skip(1);
    let is_good =
        |segment: &str| !segment.is_empty() && segment != "." && segment != ".." && segment.chars().all(is_of_path);
    findings.check(Id::Id3, segments.all(is_good), || {
        format!("the path of `{id}` has an empty or relative segment, or a character that is none of a path")
    });
    findings.check(
        Id::Id4a,
        id.len() <= ID_BYTES_MAX && trust_domain.len() <= TRUST_DOMAIN_BYTES_MAX,
        || {
            format!(
                "a SPIFFE ID has {} bytes, its trust domain {}",
                id.len(),
                trust_domain.len()
            )
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::findings::Outcome;

    #[test]
    fn ids() {
        let check = |id: &str, broken: &[&str]| {
            let mut findings = Findings::default();
            judge(&mut findings, id);
            let verdicts = findings.verdicts();
            let failed = verdicts.iter().filter(|verdict| verdict.outcome == Outcome::Fail);
            assert_eq!(
                failed.map(|verdict| verdict.clause.name).collect::<Vec<_>>(),
                broken,
                "{id}"
            );
        };
        check("spiffe://example.org/a/b.c-d_E", &[]);
        check("spiffe://example.org", &[]);
        check("spiffe://10.0.0.1/...", &[]);
        check("https://example.org/a", &["ID-1"]);
        check("Spiffe://example.org/a", &["ID-1"]);
        check("spiffe:///a", &["ID-1", "ID-2"]);
        check("spiffe://u@example.org/a", &["ID-1", "ID-2"]);
        check("spiffe://example.org:1/a", &["ID-1", "ID-2"]);
        check("spiffe://example.org/a?b", &["ID-1", "ID-3"]);
        check("spiffe://example.org/a#b", &["ID-1", "ID-3"]);
        check("spiffe://[::1]/a", &["ID-1", "ID-2"]);
        check("spiffe://Example.org/a", &["ID-2"]);
        check("spiffe://ex%61mple.org/a", &["ID-2"]);
        for path in [
            "/", "//", "/a/", "/a//b", "/.", "/..", "/a/../b", "/%61", "/ä", "/a b", "/a:b",
        ] {
            check(&format!("spiffe://example.org{path}"), &["ID-3"]);
        }
        check(&format!("spiffe://example.org/{}", "a".repeat(2048)), &["ID-4a"]);
        check(&format!("spiffe://{}/a", "a".repeat(256)), &["ID-4a"]);
    }
}
