//! What operators ask about registration entries: each is parsed, all are written in one commit, and each is answered.

use std::collections::BTreeSet;
use std::time::Duration;

use hoplite_host::clock;
use hoplite_identity::{Difference, Entry, EntryId, InvalidEntry, RegisteredEntry, TrustDomain, check_owner};
use hoplite_store::Revision;
use hoplite_wire::ca as wire;
use hoplite_wire::ca::applied_entry::Action;
use tonic::Status;

use crate::api::admin_call::{AdminCall, Done};
use crate::api::status::ours;
use crate::entries::apply::{ApplyEntries, Step};
use crate::entries::asked::{Filter, Page};
use crate::entries::entry;
use crate::entries::update::{Update, UpdateEntries, Updated};
use crate::entries::writes::{CreateEntries, Created, DeleteEntries, Fate};
use crate::registry::Registry;
use crate::rights::words::What;

/// One commit stays a short pause for everybody else.
const ITEMS_MAX: usize = 1000;

/// Of a list that is applied. It is read and decided as a whole; a commit takes some 20 000 entries of the usual length.
const APPLIED_MAX: usize = 20_000;

/// The entries' part of the admin API.
pub(super) struct Entries {
    registry: Registry,
    trust_domain: TrustDomain,
    /// An entry's own TTL is below this.
    ttl_limit: Duration,
}

/// Why an entry is not registered.
#[derive(Debug, thiserror::Error)]
enum NotRegistrable {
    #[error(transparent)]
    Invalid(#[from] InvalidEntry),
    #[error(
        "entry `{id}` is that of the nested CA `{name}` already, and two would cut it off; delete that one first, which revokes what was signed \
         for it"
    )]
    SecondOfNested { id: EntryId, name: String },
}

// === impl Entries ===

impl Entries {
    pub(super) fn new(registry: Registry, trust_domain: TrustDomain, ttl_limit: Duration) -> Self {
        Self {
            registry,
            trust_domain,
            ttl_limit,
        }
    }

    /// Registers what is not there yet.
    pub(super) async fn create(
        &self,
        call: &AdminCall,
        messages: Vec<wire::Entry>,
    ) -> Result<Done<wire::CreateEntriesResponse>, Status> {
        at_most(messages.len())?;
        let parsed = self.sole(self.parsed(messages));
        let allowed = call.may_all(parsed.iter().flatten().map(What::Entry))?;
        let mut entries = Vec::with_capacity(parsed.len());
        for entry in parsed.iter().flatten() {
            entries.push((new_id()?, entry.clone()));
        }
        let unknown_parents = self.unknown_parents(parsed.iter().flatten());
        let (created, revision) = self.registry.write_at(CreateEntries { entries }).await?;
        let mut created = created.into_iter();
        let mut results = Vec::with_capacity(parsed.len());
        for parsed in parsed {
            results.push(match parsed {
                Err(error) => refused(error.to_string()),
                Ok(_) => created_result(call, created.next().ok_or_else(unanswered)?, revision),
            });
        }
        Ok(allowed.done(wire::CreateEntriesResponse {
            results,
            unknown_parents,
        }))
    }

    /// Changes entries by their ids.
    pub(super) async fn update(
        &self,
        call: &AdminCall,
        messages: Vec<wire::Entry>,
    ) -> Result<Done<wire::UpdateEntriesResponse>, Status> {
        at_most(messages.len())?;
        let named: Vec<_> = messages
            .iter()
            .map(|message| (EntryId::parse(&message.id), message.revision))
            .collect();
        let parsed: Vec<Result<Update, InvalidEntry>> = named
            .into_iter()
            .zip(self.parsed(messages))
            .map(|((id, revision), entry)| {
                Ok(Update {
                    id: id?,
                    entry: entry?,
                    expected: (revision != 0).then_some(revision),
                })
            })
            .collect();
        let mut results: Vec<Result<EntryId, InvalidEntry>> = Vec::with_capacity(parsed.len());
        let mut entries = Vec::with_capacity(parsed.len());
        for update in parsed {
            results.push(match update {
                Ok(update) => {
                    let id = update.id.clone();
                    entries.push(update);
                    Ok(id)
                }
                Err(error) => Err(error),
            });
        }
        let unknown_parents = self.unknown_parents(entries.iter().map(|update| &update.entry));
        let (may, allowed) = call.entries()?;
        let (updated, revision) = self.registry.write_at(UpdateEntries { entries, may }).await?;
        let mut updated = updated.into_iter();
        let mut answers = Vec::with_capacity(results.len());
        for result in results {
            answers.push(match result {
                Err(error) => refused(error.to_string()),
                Ok(id) => updated_result(call, id, updated.next().ok_or_else(unanswered)?, revision),
            });
        }
        Ok(allowed.done(wire::UpdateEntriesResponse {
            results: answers,
            unknown_parents,
        }))
    }

    /// Makes what is registered like a list.
    pub(super) async fn apply(
        &self,
        call: &AdminCall,
        request: wire::ApplyEntriesRequest,
    ) -> Result<Done<wire::ApplyEntriesResponse>, Status> {
        let wire::ApplyEntriesRequest {
            entries: messages,
            owner,
            prune,
            dry_run,
        } = request;
        if messages.len() > APPLIED_MAX {
            let count = messages.len();
            return Err(Status::out_of_range(format!(
                "{count} entries in one call; send at most {APPLIED_MAX}"
            )));
        }
        if !owner.is_empty() {
            check_owner(&owner).map_err(|error| Status::invalid_argument(error.to_string()))?;
        } else if prune {
            return Err(Status::invalid_argument(
                "`prune` deletes what is an owner's and not in the list; name the owner",
            ));
        }
        let (may, allowed) = call.entries()?;
        let parsed = self.sole(self.parsed(messages));
        if parsed.iter().any(Result::is_err) {
            // Nothing is done, so nothing is known of the others.
            let told = |parsed: Result<Entry, NotRegistrable>| wire::AppliedEntry {
                error: parsed.err().map(|error| error.to_string()).unwrap_or_default(),
                ..wire::AppliedEntry::default()
            };
            return Ok(allowed.done(wire::ApplyEntriesResponse {
                results: parsed.into_iter().map(told).collect(),
                ..wire::ApplyEntriesResponse::default()
            }));
        }
        let mut entries = Vec::with_capacity(parsed.len());
        for entry in parsed.into_iter().flatten() {
            entries.push((new_id()?, entry));
        }
        let unknown_parents = self.unknown_parents(entries.iter().map(|(_, entry)| entry));
        let prune = match prune {
            true => self.surplus(&owner, &entries),
            false => Vec::new(),
        };
        let write = ApplyEntries {
            entries,
            owner,
            prune,
            dry_run,
            may,
        };
        let (plan, _) = self.registry.write_at(write).await?;
        let is_done = !dry_run && !plan.is_refused();
        let mut results = Vec::with_capacity(plan.steps.len());
        for step in plan.steps {
            results.push(applied(is_done.then_some(call), step));
        }
        let mut deleted = Vec::with_capacity(plan.deleted.len());
        for found in plan.deleted {
            if is_done {
                call.tell("deleted", &found.id, &found.entry);
            }
            let registered = RegisteredEntry {
                id: found.id,
                entry: found.entry,
                revision: found.revision,
            };
            deleted.push(wire::Entry::from(&registered));
        }
        Ok(allowed.done(wire::ApplyEntriesResponse {
            results,
            deleted,
            unknown_parents,
        }))
    }

    /// What is registered, or the part of it that is asked for.
    pub(super) async fn list(
        &self,
        call: &AdminCall,
        asked: &wire::ListEntriesRequest,
    ) -> Result<Done<wire::ListEntriesResponse>, Status> {
        let filter = Filter::try_from(asked).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let page = {
            let index = self.registry.index();
            match asked.id.as_str() {
                "" => filter.page(&index.entries, &asked.page, asked.page_size as usize),
                id => Page {
                    entries: index
                        .entries
                        .get(id)
                        .filter(|found| filter.has(found))
                        .cloned()
                        .into_iter()
                        .collect(),
                    next: None,
                },
            }
        };
        let (allowed, registered) = call.sift(page.entries).await?;
        let entries = registered.iter().map(|registered| wire::Entry::from(&**registered));
        Ok(allowed.done(wire::ListEntriesResponse {
            entries: entries.collect(),
            next_page: page.next.map(|id| id.to_string()).unwrap_or_default(),
        }))
    }

    /// Deletes entries by their ids.
    pub(super) async fn delete(
        &self,
        call: &AdminCall,
        ids: &[String],
    ) -> Result<Done<wire::DeleteEntriesResponse>, Status> {
        at_most(ids.len())?;
        let (may, allowed) = call.entries()?;
        let parsed: Vec<_> = ids.iter().map(|id| EntryId::parse(id).ok()).collect();
        let delete = DeleteEntries {
            ids: parsed.iter().flatten().cloned().collect(),
            may,
        };
        let mut known = self.registry.write(delete).await?.into_iter();
        let mut errors = Vec::with_capacity(ids.len());
        for (id, parsed) in ids.iter().zip(parsed) {
            let was_there = parsed.is_some() && known.next().unwrap_or(false);
            errors.push(match was_there {
                true => {
                    call.tell_part(id, [("entry", "deleted".to_owned())]);
                    String::new()
                }
                false => no_such_entry(id),
            });
        }
        Ok(allowed.done(wire::DeleteEntriesResponse { errors }))
    }

    fn parsed(&self, messages: Vec<wire::Entry>) -> Vec<Result<Entry, InvalidEntry>> {
        let now = clock::now();
        let parse = |message| entry::parse(message, &self.trust_domain, self.ttl_limit, now);
        messages.into_iter().map(parse).collect()
    }

    /// The same without second entries of nested CAs: two of one name vouch for nobody, and would cut off the CA that runs.
    fn sole(&self, parsed: Vec<Result<Entry, InvalidEntry>>) -> Vec<Result<Entry, NotRegistrable>> {
        let index = self.registry.index();
        let sole = |parsed: Result<Entry, InvalidEntry>| {
            let entry = parsed?;
            let name = entry.spiffe_id.nested_ca().unwrap_or_default().to_owned();
            let mut others = index.entries.nested(&name);
            match others.find(|other| other.subject() != entry.subject()) {
                Some(other) => Err(NotRegistrable::SecondOfNested {
                    id: other.id.clone(),
                    name: name.clone(),
                }),
                None => Ok(entry),
            }
        };
        parsed.into_iter().map(sole).collect()
    }

    /// The parents that never joined, each once.
    fn unknown_parents<'a>(&self, entries: impl Iterator<Item = &'a Entry>) -> Vec<String> {
        let parents: BTreeSet<_> = entries.filter_map(|entry| entry.parent.agent()).collect();
        let index = self.registry.index();
        let unknown = parents.into_iter().filter(|parent| index.agents.get(parent).is_none());
        unknown.map(ToString::to_string).collect()
    }

    /// What is this owner's and not in the list, as far as the index knows.
    fn surplus(&self, owner: &str, entries: &[(EntryId, Entry)]) -> Vec<EntryId> {
        let listed: BTreeSet<String> = entries.iter().map(|(_, entry)| entry.subject()).collect();
        let index = self.registry.index();
        let owned = index.entries.iter().filter(|registered| registered.owner == owner);
        let surplus = owned.filter(|registered| !listed.contains(&registered.subject()));
        surplus.map(|registered| registered.id.clone()).collect()
    }
}

fn at_most(items: usize) -> Result<(), Status> {
    if items > ITEMS_MAX {
        return Err(Status::invalid_argument(format!(
            "{items} items in one call; send at most {ITEMS_MAX}"
        )));
    }
    Ok(())
}

fn new_id() -> Result<EntryId, Status> {
    entry::new_id().ok_or_else(|| ours(&"the system gives no random numbers"))
}

fn unanswered() -> Status {
    ours(&"an entry has no answer")
}

fn no_such_entry(id: &str) -> String {
    format!("there is no entry `{id}`; `hoplite entry list` shows what there is")
}

fn bound(id: &EntryId) -> String {
    format!(
        "entry `{id}` is that of a nested CA, or would become one, and keeps its SPIFFE ID and its node; delete it, which revokes what was \
         signed for that CA, and register another"
    )
}

fn refused(error: String) -> wire::EntryResult {
    wire::EntryResult {
        error,
        ..wire::EntryResult::default()
    }
}

/// What differs, and how to change it.
fn differs(id: &EntryId, differences: &[Difference]) -> String {
    let told: Vec<String> = differences.iter().map(ToString::to_string).collect();
    let flags: Vec<&str> = differences.iter().map(|difference| difference.flags.as_str()).collect();
    format!(
        "entry `{id}` has this SPIFFE ID, parent and selectors and differs in the rest ({}); nothing was changed. \
         To change it in place: `hoplite entry update {id} {}`",
        told.join("; "),
        flags.join(" ")
    )
}

/// The answer for one entry of a call that committed `revision`.
fn created_result(call: &AdminCall, created: Created, revision: Revision) -> wire::EntryResult {
    let Created {
        id,
        entry,
        fate,
        revision: written,
    } = created;
    let error = match &fate {
        Fate::New => {
            call.tell("created", &id, &entry);
            String::new()
        }
        Fate::Existed => String::new(),
        Fate::Differs(differences) => differs(&id, differences),
    };
    wire::EntryResult {
        entry: Some(message(id, entry, written.unwrap_or(revision))),
        error,
        existed: fate == Fate::Existed,
    }
}

fn updated_result(call: &AdminCall, id: EntryId, updated: Updated, revision: Revision) -> wire::EntryResult {
    match updated {
        Updated::Changed(entry) => {
            call.tell("updated", &id, &entry);
            wire::EntryResult {
                entry: Some(message(id, entry, revision)),
                ..wire::EntryResult::default()
            }
        }
        Updated::Unchanged(entry, since) => wire::EntryResult {
            entry: Some(message(id, entry, since)),
            existed: true,
            ..wire::EntryResult::default()
        },
        Updated::NoSuchEntry => refused(no_such_entry(&id)),
        Updated::Outdated(now) => refused(format!(
            "entry `{id}` was changed since it was looked at (it has revision {now}); look at it and update it again"
        )),
        Updated::Taken(other) => refused(format!(
            "entry `{other}` has this SPIFFE ID, parent and selectors already; delete one of the two"
        )),
        Updated::Bound => refused(bound(&id)),
    }
}

fn message(id: EntryId, entry: Entry, revision: Revision) -> wire::Entry {
    wire::Entry::from(&RegisteredEntry { id, entry, revision })
}

/// The answer for one of a list. It is written down if it was done.
fn applied(done_by: Option<&AdminCall>, step: Step) -> wire::AppliedEntry {
    let answer = |action: Action| wire::AppliedEntry {
        action: action.into(),
        ..wire::AppliedEntry::default()
    };
    match step {
        Step::Create(id, entry) => {
            if let Some(call) = done_by {
                call.tell("created", &id, &entry);
            }
            wire::AppliedEntry {
                id: done_by.map(|_| id.to_string()).unwrap_or_default(),
                ..answer(Action::Created)
            }
        }
        Step::Update { id, was, now } => {
            if let Some(call) = done_by {
                call.tell("updated", &id, &now);
            }
            wire::AppliedEntry {
                id: id.to_string(),
                differences: was.differences(&now).iter().map(ToString::to_string).collect(),
                ..answer(Action::Updated)
            }
        }
        Step::Unchanged(id) => wire::AppliedEntry {
            id: id.to_string(),
            ..answer(Action::Unchanged)
        },
        Step::Foreign { id, owner } => wire::AppliedEntry {
            error: format!(
                "entry `{id}` belongs to `{owner}`; apply the list with `--owner {owner}`, or hand it over first with \
                 `hoplite entry update {id} --owner NAME`"
            ),
            id: id.to_string(),
            ..answer(Action::Refused)
        },
        Step::Twice(first) => wire::AppliedEntry {
            error: format!(
                "the list has this SPIFFE ID, parent and selectors twice, first as number {}",
                first + 1
            ),
            ..answer(Action::Refused)
        },
    }
}
