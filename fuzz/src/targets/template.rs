//! Templates of SPIFFE IDs, and what values make of them: a name is beneath the prefix, is nobody else's, and says each value as it is.

use std::collections::BTreeSet;

use hoplite_identity::{EntryName, Selector, SpiffeIdTemplate};

use super::signature;

/// The first line is a template, those after it are what is attested of a process.
pub fn template(input: &[u8]) -> String {
    let Ok(text) = str::from_utf8(input) else {
        return "no text".to_owned();
    };
    let mut lines = text.split('\n');
    let line = lines.next().unwrap_or_default();
    let template = match SpiffeIdTemplate::parse(line) {
        Ok(template) => template,
        Err(refused) => {
            assert!(!line.contains(['{', '}']) || EntryName::parse(line).is_err(), "{line}");
            return signature(&refused.to_string());
        }
    };
    assert_eq!(template.as_str(), line, "a template is not as it was written");
    assert!(
        !template.prefix().is_trust_domain() && !template.prefix().is_reserved(),
        "{line}"
    );
    let attested: BTreeSet<Selector> = lines.take(8).filter_map(|line| line.parse().ok()).collect();
    let name = match template.name(&attested) {
        Ok(name) => name,
        Err(refused) => return signature(&refused.to_string()),
    };
    let beneath = format!("{}/", template.prefix());
    assert!(
        name.spiffe_id().as_str().starts_with(&beneath),
        "{line}: {}",
        name.spiffe_id()
    );
    assert!(template.could_be(name.spiffe_id()) && !name.spiffe_id().is_reserved());
    assert!(name.values().is_subset(&attested) && name.values().len() == template.kinds().count());
    assert_eq!(
        template.expand(name.values().clone()).as_ref(),
        Ok(&name),
        "the CA makes another name than the agent"
    );
    // Put back into the template, the values are those of the name.
    let filled = template.kinds().fold(line.to_owned(), |filled, kind| {
        let value = name.values().iter().find(|value| value.kind() == kind);
        filled.replace(&format!("{{{kind}}}"), value.map_or("", Selector::value))
    });
    assert_eq!(filled, name.spiffe_id().as_str());
    format!("name of {}", name.values().len())
}
