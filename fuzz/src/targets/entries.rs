//! The file of `hoplite entry apply`: what is read is the same each time, and what is refused has a reason.

use hoplite_author::EntryFile;
use hoplite_identity::{EntryName, SpiffeId, TrustDomain};

use super::signature;

/// A file of registration entries.
pub fn entries(input: &[u8]) -> String {
    let Ok(text) = str::from_utf8(input) else {
        return "no text".to_owned();
    };
    let file = match toml::from_str::<EntryFile>(text) {
        Ok(file) => file,
        Err(refused) => {
            assert!(!refused.message().is_empty(), "refused without a reason");
            assert!(
                refused.span().is_none_or(|span| span.start <= text.len()),
                "a place that is not in the file"
            );
            return signature(refused.message());
        }
    };
    assert_eq!(
        toml::from_str::<EntryFile>(text).as_ref().ok(),
        Some(&file),
        "a second reading differs"
    );
    let Some(entries) = file.entry else {
        return "no entries".to_owned();
    };
    let mut said = format!("{} entries", entries.len().min(3));
    for entry in entries.iter().take(3) {
        let name = EntryName::parse(&entry.spiffe_id)
            .map_or_else(|refused| signature(&refused.to_string()), |_| "name".into());
        let parent =
            SpiffeId::parse(&entry.parent).map_or_else(|refused| signature(&refused.to_string()), |_| "parent".into());
        let foreign = entry
            .federates_with
            .iter()
            .filter(|name| TrustDomain::parse(name).is_ok())
            .count();
        said.push_str(&format!(
            " {name} {parent} {} {} {foreign} {} {}",
            entry.selectors.len().min(3),
            entry.node_selectors.len().min(3),
            entry.ttl.is_some(),
            entry.default
        ));
    }
    said
}
