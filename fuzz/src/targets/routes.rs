//! The route table: a template that is accepted is found again by the requests it was written for.

use std::collections::BTreeMap;

use hoplite_policy::files::ROUTES_FILE;
use hoplite_policy::text::WrittenParameter;
use hoplite_policy::{CanonicalRequest, RouteTable};
use serde::Deserialize;

use super::{is_place, signature};

#[derive(Deserialize)]
struct Section {
    routes: Vec<String>,
}

/// The text of `routes.toml`.
pub fn routes(input: &[u8]) -> String {
    let Ok(text) = std::str::from_utf8(input) else {
        return String::new();
    };
    let table = match RouteTable::parse(text) {
        Ok(table) => table,
        Err(faults) => {
            for fault in &faults {
                assert!(is_place(text, fault), "{fault}: there is no such place");
                assert!(fault.file == ROUTES_FILE && !fault.reason.contains('\n'), "{fault}");
            }
            let first = faults.first().expect("what is refused has a fault");
            return signature(&first.reason);
        }
    };
    let written: BTreeMap<String, Section> = toml::from_str(text).expect("what is a route table is TOML");
    for (service, Section { routes }) in &written {
        let called = service.parse().expect("a table has only names of services");
        for template in routes {
            let (method, path) = template.split_once(' ').expect("a template has a method");
            let method = if method == "*" { "GET" } else { method };
            // One word in place of each parameter; no literal segment is likely to be the same.
            let path: Vec<String> = path
                .split('/')
                .map(|segment| {
                    WrittenParameter::of(segment)
                        .map_or_else(|| segment.to_owned(), |written| written.with("zz-any-zz"))
                })
                .collect();
            let path = path.join("/");
            let request = CanonicalRequest::parse(method, &[b"host"], path.as_bytes()).expect("a template's own path");
            let found = table.route(&called, &request);
            assert_eq!(found.service(), &called);
            let name = found
                .as_str()
                .strip_prefix(service)
                .and_then(|rest| rest.strip_prefix(':'));
            let name = name.expect("a route's name begins with its service");
            // Another template may be more specific, but none at all would be a hole.
            assert!(
                routes.iter().any(|route| route == name),
                "`{template}` of `{service}` finds `{found}`"
            );
            let slash = CanonicalRequest::parse(method, &[b"host"], format!("{path}/").as_bytes());
            assert_eq!(
                slash.map(|request| table.route(&called, &request)),
                Ok(found),
                "a slash leads elsewhere"
            );
        }
    }
    format!("{} services", written.len())
}
