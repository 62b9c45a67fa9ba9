//! What is written of registration entries: new ones and deletions, many in one commit.

use std::collections::BTreeMap;
use std::convert::Infallible;

use hoplite_identity::{Difference, Entry, EntryId};
use hoplite_store::Revision;
use serde::{Deserialize, Serialize};

use crate::entries::may::May;
use crate::record::Record;
use crate::rights::Refused;
use crate::write::{Changes, ReadError, View, Write};

/// Registers entries, all in one commit, and answers for each in order.
pub(crate) struct CreateEntries {
    /// Each with the id it has if it is new.
    pub(crate) entries: Vec<(EntryId, Entry)>,
}

/// Deletes entries, all in one commit. For each in order: whether it was there.
pub(crate) struct DeleteEntries {
    pub(crate) ids: Vec<EntryId>,
    /// Asked of each that is there.
    pub(crate) may: May,
}

/// What became of one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Created {
    pub(crate) id: EntryId,
    pub(crate) entry: Entry,
    /// The commit that wrote it; `None` for the one that is being put together.
    pub(crate) revision: Option<Revision>,
    pub(crate) fate: Fate,
}

/// Whether an entry was registered, and if not, why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is new.
    New,
    /// The entry that is asked for was there already.
    Existed,
    /// Its SPIFFE ID, parent and selectors are those of an entry that differs in the rest.
    Differs(Vec<Difference>),
}

/// What makes an entry unique: no two have one subject, whose digest is the name of this.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Subject {
    pub(crate) id: EntryId,
}

/// An entry with its id and the commit that wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) id: EntryId,
    pub(crate) entry: Entry,
    pub(crate) revision: Revision,
}

// === impl Found ===

impl Found {
    /// The entry with this id, if there is one.
    pub(crate) fn of_id(view: &mut View<'_>, id: &EntryId) -> Result<Option<Self>, ReadError> {
        let found = view.one_at::<Entry>(id)?;
        Ok(found.map(|(entry, revision)| Self {
            id: id.clone(),
            entry,
            revision,
        }))
    }

    /// The entry with this subject, if there is one.
    pub(crate) fn of_subject(view: &mut View<'_>, subject: &str) -> Result<Option<Self>, ReadError> {
        match view.one(subject)? {
            // Both are written and deleted in one commit; between two readings it may have been deleted.
            Some(Subject { id }) => Self::of_id(view, &id),
            None => Ok(None),
        }
    }
}

// === impl CreateEntries ===

impl Write for CreateEntries {
    /// For each entry in order: the one there is with its subject.
    type Reads = Vec<Option<Found>>;
    type Answer = Vec<Created>;
    type Error = Infallible;

    fn read(&self, view: &mut View<'_>) -> Result<Self::Reads, ReadError> {
        let find = |(_, entry): &(EntryId, Entry)| Found::of_subject(view, &entry.subject());
        self.entries.iter().map(find).collect()
    }

    fn decide(&self, found: Self::Reads) -> Result<(Changes, Vec<Created>), Infallible> {
        let mut changes = Changes::none();
        let mut answers = Vec::with_capacity(self.entries.len());
        // A batch may say one thing twice; the first is then what the second finds.
        let mut new = BTreeMap::<String, (&EntryId, &Entry)>::new();
        for ((id, entry), found) in self.entries.iter().zip(found) {
            let subject = entry.subject();
            let earlier = new
                .get(&subject)
                .map(|(id, entry)| ((*id).clone(), (*entry).clone(), None));
            let found = earlier.or_else(|| found.map(|found| (found.id, found.entry, Some(found.revision))));
            answers.push(match found {
                None => {
                    changes = changes.put(&subject, &Subject { id: id.clone() }).put(id, entry);
                    new.insert(subject, (id, entry));
                    Created {
                        id: id.clone(),
                        entry: entry.clone(),
                        revision: None,
                        fate: Fate::New,
                    }
                }
                Some((id, there, revision)) => Created {
                    fate: match there.differences(&asked_of(&there, entry)) {
                        none if none.is_empty() => Fate::Existed,
                        differences => Fate::Differs(differences),
                    },
                    id,
                    entry: there,
                    revision,
                },
            });
        }
        Ok((changes, answers))
    }
}

/// Whoever names no owner asks for none: the entry keeps the one it has.
fn asked_of(there: &Entry, entry: &Entry) -> Entry {
    let mut asked = entry.clone();
    if asked.owner.is_empty() {
        asked.owner.clone_from(&there.owner);
    }
    asked
}

// === impl DeleteEntries ===

impl Write for DeleteEntries {
    type Reads = Vec<Option<Entry>>;
    type Answer = Vec<bool>;
    type Error = Refused;

    fn read(&self, view: &mut View<'_>) -> Result<Self::Reads, ReadError> {
        self.ids.iter().map(|id| view.one(id)).collect()
    }

    fn decide(&self, found: Self::Reads) -> Result<(Changes, Vec<bool>), Refused> {
        found.iter().flatten().try_for_each(|entry| self.may.check(entry))?;
        let answers = found.iter().map(Option::is_some).collect();
        let there = self
            .ids
            .iter()
            .zip(&found)
            .filter_map(|(id, entry)| Some((id, entry.as_ref()?)));
        let changes = there.fold(Changes::none(), |changes, (id, entry)| {
            changes.delete::<Subject>(&entry.subject()).delete::<Entry>(id)
        });
        Ok((changes, answers))
    }
}

impl Record for Entry {
    /// Their names are their ids.
    const PREFIX: &'static str = "entry/";
    /// The first had selectors of any kind, parted anywhere.
    const FORMAT: u32 = 2;
}

impl Record for Subject {
    const PREFIX: &'static str = "entry-subject/";
}
