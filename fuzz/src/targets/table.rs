//! Test tables: what is read can be run, line by line, against a policy that permits nothing.

use hoplite_author::{CaseTable, Places};
use hoplite_policy::{SelectedHeaders, Snapshot, Source};

use super::{is_place, signature};

/// A table; one of Cedar's own if it begins with `[` or `{`.
pub fn table(input: &[u8]) -> String {
    let Ok(text) = std::str::from_utf8(input) else {
        return String::new();
    };
    let name = if text.starts_with(['[', '{']) && !text.starts_with("[t") {
        "a.json"
    } else {
        "a.table"
    };
    let source = Source {
        name: name.to_owned(),
        text: text.to_owned(),
    };
    let headers = SelectedHeaders::parse("headers = ['x-tenant', 'content-type']").expect("names of headers");
    let table = match CaseTable::parse(&source, &headers) {
        Ok(table) => table,
        Err(faults) => {
            for fault in &faults {
                assert!(is_place(text, fault), "{fault}: there is no such place");
                assert!(!fault.reason.contains('\n'), "{fault}");
            }
            let first = faults.first().expect("what is refused has a fault");
            return signature(&first.reason);
        }
    };
    let results = table.run(&Snapshot::deny_all("a test"), &Places::default());
    assert_eq!(results.len(), table.len());
    for result in &results {
        assert!(!result.found.starts_with("allow"), "nothing permits `{}`", result.case);
        assert!(
            result.line >= 1 && result.line <= text.split('\n').count(),
            "{result:?}"
        );
    }
    format!("{} cases", results.len().min(4))
}
