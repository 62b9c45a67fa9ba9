//! Registration entries as people write them: what is accepted reads back as it was written, and what is refused is named, within bounds
//! and on one line.

use hoplite_identity::{EntryId, Selector, SpiffeId, TrustDomain};

use super::signature;

/// What a refusal may quote of its input: an excerpt, and never a second line.
const REASON_BYTES_MAX: usize = 2_048;

/// SPIFFE IDs, selectors, node names and ids of entries: each line is read as every one of them.
pub fn entry(input: &[u8]) -> String {
    let Ok(text) = str::from_utf8(input) else {
        return "no text".to_owned();
    };
    let mut said = String::new();
    for line in text.split('\n').take(8) {
        let id = SpiffeId::parse(line).map(|id| {
            assert_eq!(id.as_str(), line, "an ID is not as it was written");
            let parts = format!("spiffe://{}{}", id.trust_domain(), id.path());
            assert_eq!(parts, line, "an ID is not its parts");
            let segments = id.path().split('/').skip(1);
            assert!(
                segments.clone().all(|segment| !["", ".", ".."].contains(&segment)),
                "{line}"
            );
            assert!(!line.contains(['%', '?', '#', '@']), "{line}");
            format!("id {} {}", id.is_reserved(), id.is_agent())
        });
        let selector = Selector::parse(line).map(|selector| {
            assert_eq!(selector.to_string(), line, "a selector is not as it was written");
            let again = Selector::new(selector.kind(), selector.value());
            assert_eq!(again.as_ref(), Ok(&selector), "kind and value are not the selector");
            format!("selector {}", selector.kind().as_str())
        });
        let entry = EntryId::parse(line).map(|id| {
            assert_eq!(id.as_str(), line);
            "entry".to_owned()
        });
        let node = TrustDomain::parse("example.org").map(|domain| domain.agent(line));
        if let Ok(Ok(agent)) = &node {
            assert!(
                agent.is_agent() && agent.as_str().ends_with(&format!("/hoplite/agent/{line}")),
                "{line}"
            );
        }
        let refusals = [
            id.as_ref().err().map(ToString::to_string),
            selector.as_ref().err().map(ToString::to_string),
            entry.as_ref().err().map(ToString::to_string),
        ];
        for reason in refusals.iter().flatten() {
            assert!(!reason.contains('\n') && reason.len() <= REASON_BYTES_MAX, "{reason}");
        }
        let words = [id.ok(), selector.ok(), entry.ok()];
        let words = words.into_iter().zip(refusals);
        let words = words.map(|(word, refused)| word.unwrap_or_else(|| signature(&refused.unwrap_or_default())));
        said.push_str(&words.collect::<Vec<_>>().join("; "));
    }
    said
}
