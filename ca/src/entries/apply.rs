//! Making what is registered like a list, in one commit or not at all.

use std::collections::{BTreeMap, BTreeSet};

use hoplite_identity::{Entry, EntryId};

use crate::entries::may::May;
use crate::entries::writes::{Found, Subject};
use crate::rights::Refused;
use crate::write::{Changes, ReadError, View, Write};

/// Registers what is new in a list, updates what differs, and deletes what is an owner's and not in it. When one of the
/// list is refused, nothing is done.
pub(crate) struct ApplyEntries {
    /// Each with the id it has if it is new.
    pub(crate) entries: Vec<(EntryId, Entry)>,
    /// Of each of them from then on; empty when owners stay as they are.
    pub(crate) owner: String,
    /// What goes if it is this owner's still, and not in the list.
    pub(crate) prune: Vec<EntryId>,
    /// Only says what it would do.
    pub(crate) dry_run: bool,
    /// Asked of each that is there, and of each as it would be.
    pub(crate) may: May,
}

/// What is done, or would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    /// In the order of the list.
    pub(crate) steps: Vec<Step>,
    pub(crate) deleted: Vec<Found>,
}

/// What becomes of one of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// It is new.
    Create(EntryId, Box<Entry>),
    /// It differs from what was there, and is now this.
    Update {
        id: EntryId,
        was: Box<Entry>,
        now: Box<Entry>,
    },
    /// It is there already.
    Unchanged(EntryId),
    /// It is another owner's.
    Foreign { id: EntryId, owner: String },
    /// The list has it twice: this place, counted from 0, is the first.
    Twice(usize),
}

// === impl Plan ===

impl Plan {
    /// Whether one of the list stands against it.
    pub(crate) fn is_refused(&self) -> bool {
        let is_bad = |step: &Step| matches!(step, Step::Foreign { .. } | Step::Twice(_));
        self.steps.iter().any(is_bad)
    }
}

// === impl ApplyEntries ===

impl Write for ApplyEntries {
    /// For each of the list, the entry there is with its subject; and what may have to go.
    type Reads = (Vec<Option<Found>>, Vec<Found>);
    type Answer = Plan;
    type Error = Refused;

    fn read(&self, view: &mut View<'_>) -> Result<Self::Reads, ReadError> {
        let mut found = Vec::with_capacity(self.entries.len());
        for (_, entry) in &self.entries {
            found.push(Found::of_subject(view, &entry.subject())?);
        }
        let mut prune = Vec::with_capacity(self.prune.len());
        for id in &self.prune {
            prune.extend(Found::of_id(view, id)?);
        }
        Ok((found, prune))
    }

    fn decide(&self, (found, prune): Self::Reads) -> Result<(Changes, Plan), Refused> {
        let mut changes = Changes::none();
        let mut steps = Vec::with_capacity(self.entries.len());
        let mut listed = BTreeMap::<String, usize>::new();
        let mut kept = BTreeSet::<EntryId>::new();
        for (place, ((new_id, entry), found)) in self.entries.iter().zip(found).enumerate() {
            let subject = entry.subject();
            if let Some(first) = listed.get(&subject) {
                steps.push(Step::Twice(*first));
                continue;
            }
            listed.insert(subject.clone(), place);
            let Some(Found { id, entry: was, .. }) = found else {
                let now = Entry {
                    owner: self.owner.clone(),
                    ..entry.clone()
                };
                self.may.check(&now)?;
                let subject_of_new = Subject { id: new_id.clone() };
                changes = changes.put(&subject, &subject_of_new).put(new_id, &now);
                steps.push(Step::Create(new_id.clone(), Box::new(now)));
                continue;
            };
            kept.insert(id.clone());
            let now = Entry {
                created_at: was.created_at,
                owner: match self.owner.is_empty() {
                    true => was.owner.clone(),
                    false => self.owner.clone(),
                },
                ..entry.clone()
            };
            self.may.check(&was)?;
            self.may.check(&now)?;
            if now == was {
                steps.push(Step::Unchanged(id));
            } else if !was.owner.is_empty() && was.owner != self.owner {
                let owner = was.owner;
                steps.push(Step::Foreign { id, owner });
            } else {
                changes = changes.put(&id, &now);
                let (was, now) = (Box::new(was), Box::new(now));
                steps.push(Step::Update { id, was, now });
            }
        }
        let is_surplus = |found: &Found| found.entry.owner == self.owner && !kept.contains(&found.id);
        let deleted: Vec<Found> = prune.into_iter().filter(is_surplus).collect();
        for Found { id, entry, .. } in &deleted {
            self.may.check(entry)?;
            changes = changes.delete::<Subject>(&entry.subject()).delete::<Entry>(id);
        }
        let plan = Plan { steps, deleted };
        if self.dry_run || plan.is_refused() {
            changes = Changes::none();
        }
        Ok((changes, plan))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entries::entry::tests::{parse, sample};
    use crate::write::commit;
    use hoplite_store::{MemoryStore, Revision, Store};

    fn id(text: &str) -> EntryId {
        EntryId::parse(text).unwrap()
    }

    fn entry(path: &str, owner: &str) -> Entry {
        Entry {
            owner: owner.to_owned(),
            ..parse(sample(path, "n1")).unwrap()
        }
    }

    /// Applies a list of `/paths`, each with its name for an id if it is new, and prunes what may be.
    fn apply(store: &MemoryStore, owner: &str, paths: &[&str], prune: &[&str], dry_run: bool) -> (String, Revision) {
        apply_entries(store, owner, paths.iter().map(|path| entry(path, "")), prune, dry_run)
    }

    fn apply_entries(
        store: &MemoryStore,
        owner: &str,
        entries: impl Iterator<Item = Entry>,
        prune: &[&str],
        dry_run: bool,
    ) -> (String, Revision) {
        let name = |entry: &Entry| id(&entry.spiffe_id.fixed().path().replace('/', ""));
        let apply = ApplyEntries {
            entries: entries.map(|entry| (name(&entry), entry)).collect(),
            owner: owner.to_owned(),
            prune: prune.iter().map(|text| id(text)).collect(),
            dry_run,
            may: May::anything(),
        };
        let (plan, revision) = commit(store, &apply).unwrap();
        let mut told: Vec<String> = plan.steps.iter().map(told).collect();
        told.extend(plan.deleted.iter().map(|found| format!("-{}", found.id)));
        (told.join(" "), revision)
    }

    fn told(step: &Step) -> String {
        match step {
            Step::Create(id, _) => format!("+{id}"),
            Step::Update { id, was, now } => format!("~{id}({})", was.differences(now).len()),
            Step::Unchanged(id) => format!("={id}"),
            Step::Foreign { id, owner } => format!("!{id}:{owner}"),
            Step::Twice(first) => format!("!twice:{first}"),
        }
    }

    #[test]
    fn a_list_becomes_what_is_registered_in_one_commit() {
        let store = MemoryStore::new();
        let said = |text: &str, revision: Revision| (text.to_owned(), revision);
        assert_eq!(apply(&store, "infra", &["/a", "/b"], &[], true), said("+a +b", 0));
        assert_eq!(apply(&store, "infra", &["/a", "/b"], &[], false), said("+a +b", 1));
        assert_eq!(
            apply(&store, "infra", &["/a", "/b"], &["a", "b"], false),
            said("=a =b", 0)
        );
        assert_eq!(apply(&store, "", &["/x"], &[], false), said("+x", 2));
        assert_eq!(apply(&store, "web", &["/y"], &[], false), said("+y", 3));
        // Nobody's becomes the owner's, another owner's stays, and then nothing at all is done.
        assert_eq!(
            apply(&store, "infra", &["/x", "/y"], &[], false),
            said("~x(1) !y:web", 0)
        );
        assert_eq!(
            apply(&store, "infra", &["/x", "/x"], &[], false),
            said("~x(1) !twice:0", 0)
        );
        // Whoever names no owner may repeat, and not change, what has one.
        assert_eq!(apply(&store, "", &["/y"], &[], false), said("=y", 0));
        let other = || Entry {
            x509_ttl: 60,
            ..entry("/y", "")
        };
        let by = |owner: &str| apply_entries(&store, owner, [other()].into_iter(), &[], false);
        assert_eq!((by(""), by("web")), (said("!y:web", 0), said("~y(1)", 4)));
        // Update, creation and deletion are seen together.
        let mut watch = store.watch(4).unwrap();
        let list = ["/a", "/c"].map(|path| Entry {
            hint: "h".into(),
            ..entry(path, "")
        });
        let prune = ["a", "b", "x", "y", "gone"];
        let done = apply_entries(&store, "infra", list.into_iter(), &prune, false);
        assert_eq!(done, said("~a(1) +c -b", 5), "only the owner's own go");
        let change = watch.next(std::time::Duration::ZERO).unwrap().unwrap();
        assert_eq!(change.mutations.len(), 5, "a, c and its subject, b and its subject");
        // What was deleted is free, what was made is taken.
        assert_eq!(apply(&store, "", &["/b"], &[], true), said("+b", 0));
    }
}
