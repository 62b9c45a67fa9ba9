//! Policy sources: what compiles is what Cedar reads in the same text, whatever the order of the files.

use cedar_policy::PolicySet;
use hoplite_policy::limits::ID_BYTES_MAX;
use hoplite_policy::{Snapshot, Source};

use super::{is_place, signature};

/// Begins a source: the rest of the line is its name, what follows its text. Before the first one, the name is `a.cedar`.
const NEXT: &str = "=== ";

/// The files of a policy directory, one after the other.
pub fn policies(input: &[u8]) -> String {
    let Ok(text) = std::str::from_utf8(input) else {
        return String::new();
    };
    let mut sources = sources(text);
    let snapshot = match Snapshot::compile(&sources) {
        Ok(snapshot) => snapshot,
        Err(faults) => {
            for fault in &faults {
                // A name that cannot be shown as it is, is shown otherwise.
                let unseen = sources
                    .iter()
                    .any(|source| !source.name.bytes().all(|b| b.is_ascii_graphic()));
                let mut named = sources.iter().filter(|source| source.name == fault.file).peekable();
                assert!(unseen || named.peek().is_some(), "{fault}: there is no such file");
                let unread = named
                    .peek()
                    .is_some_and(|source| source.text.parse::<PolicySet>().is_err());
                assert!(
                    unseen || named.any(|source| is_place(&source.text, fault)),
                    "{fault}: there is no such place"
                );
                assert!(!fault.reason.contains('\n'), "{fault:?}");
                assert!(!fault.reason.contains("panicked"), "{fault}");
                // Cut in the wrong place, a policy would be no policy.
                let cut = fault.reason.starts_with("unexpected token") && fault.file.ends_with(".cedar");
                assert!(!cut || unseen || unread, "{fault}, but Cedar reads it");
            }
            let first = faults.first().expect("what is refused has a fault");
            return signature(&first.reason);
        }
    };

    let ids: Vec<&str> = snapshot.policy_ids().collect();
    assert!(ids.is_sorted_by(|a, b| a < b), "{ids:?}");
    assert!(
        ids.iter().all(|id| !id.is_empty() && id.len() <= ID_BYTES_MAX),
        "{ids:?}"
    );
    let mut read = 0;
    for source in sources.iter().filter(|source| source.name.ends_with(".cedar")) {
        let set: PolicySet = source.text.parse().unwrap_or_else(|error| {
            panic!("Cedar does not read what was compiled: {error}\n{}", source.text);
        });
        for policy in set.policies() {
            let id = policy.annotation("id").expect("every policy has an id");
            assert!(ids.binary_search(&id).is_ok(), "`{id}` was lost");
            read += 1;
        }
        assert_eq!(set.templates().count(), 0);
    }
    assert_eq!(ids.len(), read, "Cedar reads another number of policies");

    sources.reverse();
    let again = Snapshot::compile(&sources).expect("the order of files means nothing");
    assert_eq!(again.revision(), snapshot.revision());
    format!("{} files, {} policies", sources.len(), ids.len().min(4))
}

fn sources(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    for (n, part) in format!("\n{text}").split(&format!("\n{NEXT}")).enumerate() {
        let (name, text) = match (n, part.split_once('\n')) {
            (0, Some((_, text))) => ("a.cedar", text),
            (_, Some((name, text))) => (name, text),
            (_, None) => (part, ""),
        };
        if n > 0 || !text.is_empty() {
            sources.push(Source {
                name: name.to_owned(),
                text: text.to_owned(),
            });
        }
    }
    sources
}
