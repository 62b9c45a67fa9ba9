//! `Via` (RFC 9110, 7.6.3): each proxy says that it has passed a request on, so that a circle of them is noticed.

use hoplite_audit::Outcome;
use hoplite_decision::Unasked;
use http::header::VIA;
use http::{HeaderMap, HeaderValue, StatusCode, Version};

/// How our proxies call themselves there.
const PSEUDONYM: &str = "hoplite";

/// Proxies of ours that one request may cross. A call between two services crosses two; only gateways that pass on what
/// they received make it more.
const HOPS_MAX: usize = 20;

/// Refuses what goes round in a circle.
pub(crate) fn check(headers: &HeaderMap) -> Result<(), Unasked> {
    if hops(headers) < HOPS_MAX {
        return Ok(());
    }
    Err(Unasked {
        status: StatusCode::LOOP_DETECTED,
        outcome: Outcome::Error,
        code: "loop",
        reason: format!("it has crossed {HOPS_MAX} proxies of ours: do two of them forward to each other?"),
    })
}

/// Says that the request was received, and is passed on, by us.
pub(crate) fn add(headers: &mut HeaderMap, received: Version) {
    let own = match received {
        Version::HTTP_2 => "2 hoplite",
        Version::HTTP_10 => "1.0 hoplite",
        _ => "1.1 hoplite",
    };
    headers.append(VIA, HeaderValue::from_static(own));
}

fn hops(headers: &HeaderMap) -> usize {
    let fields = headers.get_all(VIA).iter().filter_map(|field| field.to_str().ok());
    let members = fields.flat_map(|field| field.split(','));
    members
        .filter(|member| member.split_ascii_whitespace().nth(1) == Some(PSEUDONYM))
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_hops_are_counted_and_nobody_elses() {
        let mut headers = HeaderMap::new();
        headers.append(
            VIA,
            HeaderValue::from_static("1.1 nginx, 2 hoplite,1.1 hoplite (a comment)"),
        );
        headers.append(VIA, HeaderValue::from_static("1.1 not-hoplite"));
        add(&mut headers, Version::HTTP_2);
        assert_eq!(hops(&headers), 3);
        for _ in hops(&headers)..HOPS_MAX {
            check(&headers).unwrap();
            add(&mut headers, Version::HTTP_11);
        }
        assert_eq!(check(&headers).unwrap_err().status, 508);
    }
}
