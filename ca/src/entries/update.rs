//! Changing entries in place, each wholly and all in one commit: there is no moment without one of them.

use std::collections::BTreeMap;

use hoplite_identity::{Entry, EntryId};
use hoplite_store::Revision;

use crate::entries::may::May;
use crate::entries::writes::{Found, Subject};
use crate::rights::Refused;
use crate::write::{Changes, ReadError, View, Write};

/// Puts entries in the place of those with their ids, and answers for each in order.
pub(crate) struct UpdateEntries {
    pub(crate) entries: Vec<Update>,
    /// Asked of each as it is and as it would be.
    pub(crate) may: May,
}

/// One entry as it is to be.
pub(crate) struct Update {
    pub(crate) id: EntryId,
    pub(crate) entry: Entry,
    /// Only if the entry was last written by this commit.
    pub(crate) expected: Option<Revision>,
}

/// What became of one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Updated {
    /// It is now what was asked for.
    Changed(Entry),
    /// It was already, since a commit.
    Unchanged(Entry, Revision),
    /// There is none with this id.
    NoSuchEntry,
    /// Somebody else changed it since it was looked at.
    Outdated(Revision),
    /// Another entry has this SPIFFE ID, parent and selectors.
    Taken(EntryId),
    /// It is a nested CA's, or would be, and is to have another name or node. What was signed for that CA is bound to this entry, and
    /// would be vouched for by a node that had nothing to do with it.
    Bound,
}

// === impl UpdateEntries ===

impl Write for UpdateEntries {
    /// For each in order: the entry there is, and which one has the subject that it is to have.
    type Reads = Vec<(Option<Found>, Option<EntryId>)>;
    type Answer = Vec<Updated>;
    type Error = Refused;

    fn read(&self, view: &mut View<'_>) -> Result<Self::Reads, ReadError> {
        let find = |update: &Update| {
            let found = Found::of_id(view, &update.id)?;
            let holder: Option<Subject> = view.one(&update.entry.subject())?;
            Ok((found, holder.map(|subject| subject.id)))
        };
        self.entries.iter().map(find).collect()
    }

    fn decide(&self, reads: Self::Reads) -> Result<(Changes, Vec<Updated>), Refused> {
        let mut changes = Changes::none();
        let mut answers = Vec::with_capacity(self.entries.len());
        // What those before in the batch made of it.
        let mut now = BTreeMap::<&EntryId, Entry>::new();
        let mut holders = BTreeMap::<String, Option<&EntryId>>::new();
        for (Update { id, entry, expected }, (found, holder)) in self.entries.iter().zip(&reads) {
            self.may.check(entry)?;
            let Some(Found {
                entry: stored,
                revision,
                ..
            }) = found
            else {
                answers.push(Updated::NoSuchEntry);
                continue;
            };
            self.may.check(stored)?;
            if expected.is_some_and(|expected| expected != *revision) {
                answers.push(Updated::Outdated(*revision));
                continue;
            }
            let there = now.get(id).unwrap_or(stored);
            let entry = Entry {
                created_at: there.created_at,
                ..entry.clone()
            };
            if *there == entry {
                answers.push(Updated::Unchanged(entry, *revision));
                continue;
            }
            if is_bound(there, &entry) {
                answers.push(Updated::Bound);
                continue;
            }
            let (before, after) = (there.subject(), entry.subject());
            let holder = holders.get(&after).copied().unwrap_or(holder.as_ref());
            if let Some(other) = holder.filter(|holder| *holder != id) {
                answers.push(Updated::Taken(other.clone()));
                continue;
            }
            if before != after {
                changes = changes
                    .delete::<Subject>(&before)
                    .put(&after, &Subject { id: id.clone() });
                holders.insert(before, None);
                holders.insert(after, Some(id));
            }
            changes = changes.put(id, &entry);
            now.insert(id, entry.clone());
            answers.push(Updated::Changed(entry));
        }
        Ok((changes, answers))
    }
}

/// Whether an entry may not become another one in place.
fn is_bound(there: &Entry, entry: &Entry) -> bool {
    let is_nested = |entry: &Entry| entry.spiffe_id.nested_ca().is_some();
    let is_moved = there.spiffe_id != entry.spiffe_id || there.parent != entry.parent;
    (is_nested(there) || is_nested(entry)) && is_moved
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entries::entry::tests::{parse, sample};
    use crate::entries::writes::CreateEntries;
    use crate::write::commit;
    use hoplite_store::{MemoryStore, Store};

    fn id(text: &str) -> EntryId {
        EntryId::parse(text).unwrap()
    }

    fn entry(path: &str) -> Entry {
        parse(sample(path, "n1")).unwrap()
    }

    fn update(name: &str, entry: Entry) -> Update {
        Update {
            id: id(name),
            entry,
            expected: None,
        }
    }

    /// A store with `/a` as `a` and `/b` as `b`, in commit 1.
    fn store() -> MemoryStore {
        let store = MemoryStore::new();
        let entries = ["a", "b"].map(|name| (id(name), entry(&format!("/{name}")))).into();
        commit(&store, &CreateEntries { entries }).unwrap();
        store
    }

    fn updated(store: &MemoryStore, entries: Vec<Update>) -> (Vec<Updated>, Revision) {
        commit(
            store,
            &UpdateEntries {
                entries,
                may: May::anything(),
            },
        )
        .unwrap()
    }

    #[test]
    fn an_update_is_one_commit_and_keeps_when_it_was_registered() {
        let store = store();
        let mut watch = store.watch(1).unwrap();
        let later = |change: &dyn Fn(&mut Entry)| {
            let mut entry = Entry {
                created_at: 99,
                ..entry("/a")
            };
            change(&mut entry);
            entry
        };
        let asked = later(&|e| e.dns_names = vec!["a".into()]);
        let (answers, revision) = updated(&store, vec![update("a", asked.clone())]);
        let expected = Entry {
            created_at: 0,
            ..asked.clone()
        };
        assert_eq!((answers, revision), (vec![Updated::Changed(expected.clone())], 2));
        let change = watch.next(std::time::Duration::ZERO).unwrap().unwrap();
        let written: Vec<_> = change
            .mutations
            .iter()
            .map(|m| (String::from_utf8_lossy(&m.key).into_owned(), m.value.is_some()))
            .collect();
        assert_eq!(written, [("entry/a".to_owned(), true)]);
        let (again, nothing) = updated(&store, vec![update("a", asked)]);
        assert_eq!((again, nothing), (vec![Updated::Unchanged(expected, 2)], 0));
    }

    #[test]
    fn the_entry_of_a_nested_ca_stays_what_and_where_it_is() {
        let store = store();
        let at = |path: &str, node: &str| parse(sample(path, node)).unwrap();
        let new = |name: &str, entry: Entry| vec![(id(name), entry)];
        let entries = new("n", at("/hoplite/nested/eu", "n1"));
        commit(&store, &CreateEntries { entries }).unwrap();
        let answers = |name: &str, entry: Entry| updated(&store, vec![update(name, entry)]).0;
        for moved in [
            at("/hoplite/nested/eu", "n2"),
            at("/hoplite/nested/us", "n1"),
            at("/a2", "n1"),
        ] {
            assert_eq!(answers("n", moved), [Updated::Bound]);
        }
        assert_eq!(answers("a", at("/hoplite/nested/us", "n1")), [Updated::Bound]);
        let longer = Entry {
            x509_ttl: 60,
            ..at("/hoplite/nested/eu", "n1")
        };
        assert_eq!(answers("n", longer.clone()), [Updated::Changed(longer)]);
        assert_eq!(answers("a", at("/a", "n2")), [Updated::Changed(at("/a", "n2"))]);
    }

    #[test]
    fn what_cannot_be_updated_is_told_and_the_rest_is() {
        let store = store();
        let outdated = Update {
            expected: Some(9),
            ..update("a", entry("/x"))
        };
        let right = Update {
            expected: Some(1),
            ..update("b", entry("/y"))
        };
        let (answers, _) = updated(
            &store,
            vec![update("none", entry("/n")), outdated, update("a", entry("/b")), right],
        );
        assert_eq!(
            answers,
            [
                Updated::NoSuchEntry,
                Updated::Outdated(1),
                Updated::Taken(id("b")),
                Updated::Changed(entry("/y")),
            ]
        );
        // The name that became free is another's now, and the old holder is not it any more.
        let (answers, _) = updated(
            &store,
            vec![
                update("a", entry("/b")),
                update("b", entry("/a")),
                update("b", entry("/b")),
            ],
        );
        assert_eq!(
            answers,
            [
                Updated::Changed(entry("/b")),
                Updated::Changed(entry("/a")),
                Updated::Taken(id("a")),
            ]
        );
        let created = |path: &str| {
            let entries = vec![(id("new"), entry(path))];
            commit(&store, &CreateEntries { entries }).unwrap().0[0].id.clone()
        };
        assert_eq!(
            (created("/b"), created("/a")),
            (id("a"), id("b")),
            "who has which subject"
        );
    }
}
