//! Entries as an agent serves them: each of one name. What a template is registered for is one of these for each workload that came.

use std::collections::BTreeSet;
use std::ops::Deref;
use std::sync::Arc;

use data_encoding::HEXLOWER;
use hoplite_identity::{Entry, EntryId, EntryName, NoName, RegisteredEntry, Selector, SpiffeId, SpiffeIdTemplate};
use hoplite_wire::{ca, entry_message};
use ring::digest::{Context, SHA256};

/// An entry of one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NamedEntry {
    /// What it is known by here: its id at the CA, or of a template's name one that is made of that and of the values.
    pub(crate) id: EntryId,
    /// Of a template's name, the selectors are the template's and the values: who has them all is called so, and nobody else.
    pub(crate) entry: Entry<SpiffeId>,
    /// The revision of the CA's store that wrote it.
    pub(crate) revision: u64,
    /// Of a template's name.
    pub(crate) origin: Option<Origin>,
}

/// What a name of a template was made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Origin {
    /// The template's id at the CA.
    pub(crate) template: EntryId,
    /// Attested of the workload: of each kind that the template names one.
    pub(crate) values: BTreeSet<Selector>,
}

/// An entry that names each of its workloads by what is attested of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Template {
    pub(crate) id: EntryId,
    entry: Entry<SpiffeIdTemplate>,
    revision: u64,
}

/// What the CA has registered, by how it is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Registered {
    /// It has one name.
    Named(Arc<NamedEntry>),
    /// It has one for each set of values.
    Template(Arc<Template>),
}

// === impl NamedEntry ===

impl NamedEntry {
    /// By which the CA knows it.
    pub(crate) fn registered_id(&self) -> &EntryId {
        self.origin.as_ref().map_or(&self.id, |origin| &origin.template)
    }

    /// What the CA makes its name of; nothing, if it has one anyway.
    pub(crate) fn values(&self) -> Vec<ca::Selector> {
        let values = self.origin.iter().flat_map(|origin| &origin.values);
        values.map(ca::Selector::from).collect()
    }

    /// As it is kept. A template's name has the template's id in it, and lies under its own.
    pub(crate) fn message(&self) -> ca::Entry {
        entry_message(self.registered_id(), &self.entry, self.revision)
    }
}

impl Deref for NamedEntry {
    type Target = Entry<SpiffeId>;

    fn deref(&self) -> &Self::Target {
        &self.entry
    }
}

// === impl Template ===

impl Template {
    /// What every process must have that it is for.
    pub(crate) fn selectors(&self) -> &BTreeSet<Selector> {
        &self.entry.selectors
    }

    /// The template itself.
    pub(crate) fn template(&self) -> &SpiffeIdTemplate {
        &self.entry.spiffe_id
    }

    /// Whether a process of which this much is attested is one of its workloads: it has all selectors, and a value of each kind.
    pub(crate) fn fits(&self, attested: &BTreeSet<Selector>) -> bool {
        let mut kinds = self.template().kinds();
        let is_there = |kind| attested.iter().any(|selector| selector.kind() == kind);
        self.selectors().is_subset(attested) && kinds.all(is_there)
    }

    /// The entry of such a process.
    ///
    /// # Errors
    /// A value cannot stand in a SPIFFE ID, or there are two.
    pub(crate) fn named(&self, attested: &BTreeSet<Selector>) -> Result<NamedEntry, NoName> {
        let (spiffe_id, values) = self.template().name(attested)?.into_parts();
        let mut entry = self.entry.clone().named(spiffe_id);
        entry.selectors.extend(values.iter().cloned());
        Ok(NamedEntry {
            id: self.id_of(&values),
            entry,
            revision: self.revision,
            origin: Some(Origin {
                template: self.id.clone(),
                values,
            }),
        })
    }

    /// No two of one agent, and none that the CA gives: those have no `n`.
    fn id_of(&self, values: &BTreeSet<Selector>) -> EntryId {
        let mut context = Context::new(&SHA256);
        context.update(self.id.as_str().as_bytes());
        for value in values {
            // No selector contains NUL, and no id.
            context.update(&[0]);
            context.update(value.to_string().as_bytes());
        }
        let digest = HEXLOWER.encode(context.finish().as_ref());
        // Within the bounds of ids: 2 and 32 characters.
        let id = EntryId::parse(&format!("n-{}", digest.get(..32).unwrap_or_default()));
        id.unwrap_or_else(|_| self.id.clone())
    }
}

// === impl Registered ===

impl Registered {
    /// The revision of the CA's store that wrote it.
    pub(crate) fn revision(&self) -> u64 {
        match self {
            Self::Named(named) => named.revision,
            Self::Template(template) => template.revision,
        }
    }

    /// As the CA says it.
    pub(crate) fn message(&self) -> ca::Entry {
        match self {
            Self::Named(named) => named.message(),
            Self::Template(template) => entry_message(&template.id, &template.entry, template.revision),
        }
    }
}

impl From<RegisteredEntry> for Registered {
    fn from(registered: RegisteredEntry) -> Self {
        let RegisteredEntry { id, entry, revision } = registered;
        match entry.spiffe_id.clone() {
            EntryName::Id(spiffe_id) => NamedEntry {
                id,
                entry: entry.named(spiffe_id),
                revision,
                origin: None,
            }
            .into(),
            EntryName::Template(template) => Self::Template(Arc::new(Template {
                id,
                entry: entry.named(template),
                revision,
            })),
        }
    }
}

impl From<NamedEntry> for Registered {
    fn from(named: NamedEntry) -> Self {
        Self::Named(Arc::new(named))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supply::testing::template;

    #[test]
    fn a_templates_names_are_entries_of_those_who_have_the_values() {
        let template = template("e1", "/user/{unix:user}", &["unix:gid:7"]);
        let attested =
            |texts: &[&str]| -> BTreeSet<Selector> { texts.iter().map(|text| text.parse().unwrap()).collect() };
        let ann = attested(&["unix:gid:7", "unix:user:ann", "unix:uid:1"]);
        assert!(template.fits(&ann));
        assert!(!template.fits(&attested(&["unix:gid:7", "unix:uid:1"])), "no value");
        assert!(!template.fits(&attested(&["unix:user:ann"])), "not all selectors");
        let named = template.named(&ann).unwrap();
        assert_eq!(named.spiffe_id.path(), "/user/ann");
        assert_eq!(named.selectors, attested(&["unix:gid:7", "unix:user:ann"]));
        assert_eq!((named.registered_id().as_str(), named.values().len()), ("e1", 1));
        let bob = template.named(&attested(&["unix:gid:7", "unix:user:bob"])).unwrap();
        assert!(bob.id != named.id && named.id.as_str().starts_with("n-"));
        // What is kept of it says all.
        let kept = RegisteredEntry::try_from(named.message()).unwrap();
        assert_eq!(kept.id, template.id);
        assert_eq!(template.named(&kept.selectors), Ok(named));
        assert!(template.named(&attested(&["unix:gid:7", "unix:user:a@b"])).is_err());
    }
}
