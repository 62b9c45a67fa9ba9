//! OpenAPI documents: what is imported is a route table.

use hoplite_author::{Selection, routes_from_openapi};
use hoplite_policy::{RouteTable, Source};

use super::signature;

/// A document in YAML; in JSON if it begins with `{`.
pub fn openapi(input: &[u8]) -> String {
    let Ok(text) = std::str::from_utf8(input) else {
        return String::new();
    };
    let name = if text.starts_with('{') { "a.json" } else { "a.yaml" };
    let document = Source {
        name: name.to_owned(),
        text: text.to_owned(),
    };
    let found = match routes_from_openapi(
        &"a.b".parse().expect("it is the name of a service"),
        &[document],
        &Selection::default(),
    ) {
        Ok(found) => found,
        Err(faults) => return signature(&faults.first().expect("what is refused has a fault").reason),
    };
    assert!(RouteTable::parse(&found.section()).is_ok(), "{}", found.section());
    for fault in &found.warnings {
        assert!(fault.line >= 1 && fault.line <= text.split('\n').count(), "{fault}");
    }
    format!(
        "{} routes, {} warnings",
        found.routes.len().min(4),
        found.warnings.len().min(4)
    )
}
