//! One admin call: what its caller may do of it, its line and its records in the log. There is no answer without the question whether
//! it may, and nothing is changed that was not written down before.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use hoplite_identity::{CertificateDer, Entry, EntryId, RegisteredEntry};
use tonic::{Code, Request, Response, Status};

use crate::acts::written::Written;
use crate::acts::{Act, Asked, Unwritten};
use crate::api::gate::{Admitted, Shown};
use crate::api::status::ours;
use crate::entries::may::May;
use crate::issuance::Minted;
use crate::rights::action::Action;
use crate::rights::words::{What, Who};

/// A call that has passed the gate.
pub(super) struct AdminCall {
    admitted: Admitted,
    /// To what it is done, in the caller's words.
    subject: OnceLock<String>,
    /// The record with which it began: written once the policies permit it.
    began: OnceLock<Written>,
}

/// Evidence that the policies permit what is asked. Made only by asking them.
pub(super) struct Allowed {
    by: Vec<String>,
}

/// An answer that was allowed.
pub(super) struct Done<T> {
    answer: T,
    by: Vec<String>,
    detail: BTreeMap<String, String>,
}

// === impl Allowed ===

impl Allowed {
    /// What was done under it.
    pub(super) fn done<T>(self, answer: T) -> Done<T> {
        Done {
            answer,
            by: self.by,
            detail: BTreeMap::new(),
        }
    }
}

// === impl Done ===

impl<T> Done<T> {
    /// With more for the log, by name. Never what is secret.
    pub(super) fn noting<const N: usize>(self, notes: [(&str, String); N]) -> Self {
        let notes = notes.into_iter().map(|(name, text)| (name.to_owned(), text));
        let detail = notes.filter(|(_, text)| !text.is_empty()).collect();
        Self { detail, ..self }
    }
}

// === impl AdminCall ===

impl AdminCall {
    /// That of a request which the gate let through for this action. Any other gets no further.
    pub(super) fn new<T>(request: &Request<T>, action: Action) -> Result<Self, Status> {
        match request.extensions().get::<Admitted>() {
            Some(admitted) if admitted.action == action => Ok(Self {
                admitted: admitted.clone(),
                subject: OnceLock::new(),
                began: OnceLock::new(),
            }),
            _ => Err(ours(&"an admin call came past the gate")),
        }
    }

    pub(super) fn who(&self) -> &Who {
        &self.admitted.who
    }

    pub(super) fn shown(&self) -> Option<&Shown> {
        self.admitted.shown.as_ref()
    }

    /// Whether this may be done.
    pub(super) fn may(&self, what: What<'_>) -> Result<Allowed, Status> {
        let Admitted {
            who, action, way, held, ..
        } = &self.admitted;
        self.allowed(held.ask(who, *action, what, *way)?)
    }

    /// Whether this may be done, and besides what it amounts to.
    pub(super) fn may_besides<'a>(
        &self,
        what: What<'_>,
        besides: impl IntoIterator<Item = (Action, What<'a>)>,
    ) -> Result<Allowed, Status> {
        let Admitted {
            who, action, way, held, ..
        } = &self.admitted;
        let mut by = held.ask(who, *action, what, *way)?;
        for (action, what) in besides {
            by.extend(held.ask(who, action, what, *way)?);
        }
        by.sort();
        by.dedup();
        self.allowed(by)
    }

    /// Whether all of this may be done.
    pub(super) fn may_all<'a>(&self, all: impl IntoIterator<Item = What<'a>>) -> Result<Allowed, Status> {
        let Admitted {
            who, action, way, held, ..
        } = &self.admitted;
        self.allowed(held.ask_all(who, *action, all, *way)?)
    }

    /// What the caller may see of these entries: all, where the policies say so of the trust domain.
    pub(super) async fn sift(
        &self,
        entries: Vec<Arc<RegisteredEntry>>,
    ) -> Result<(Allowed, Vec<Arc<RegisteredEntry>>), Status> {
        if let Ok(allowed) = self.may(What::TrustDomain) {
            return Ok((allowed, entries));
        }
        let (may, allowed) = self.entries()?;
        // Some twenty thousand questions would hold up everybody else on this thread.
        let sifting = tokio::task::spawn_blocking(move || {
            let mut entries = entries;
            entries.retain(|registered| may.check(&registered.entry).is_ok());
            entries
        });
        let entries = sifting
            .await
            .map_err(|_| ours(&"the entries could not be looked through"))?;
        Ok((allowed, entries))
    }

    /// The same question, for a write that learns only while it commits which entries it touches. The evidence is for what the write
    /// asks by itself, before it changes anything.
    pub(super) fn entries(&self) -> Result<(May, Allowed), Status> {
        let Admitted {
            who, action, way, held, ..
        } = self.admitted.clone();
        if let Some(by) = held.always(&who, action) {
            return Ok((May::anything(), self.allowed(vec![by])?));
        }
        let may = May::new(move |entry| held.ask(&who, action, What::Entry(entry), way).map(drop));
        // Some by one policy and some by another.
        Ok((may, self.allowed(vec!["each entry by itself".to_owned()])?))
    }

    /// The RPCs that the caller may call on something at least.
    pub(super) fn actions(&self) -> Vec<String> {
        let Admitted { who, held, .. } = &self.admitted;
        let actions = Action::ALL.iter().filter(|action| held.may_ever(who, **action).is_ok());
        actions.map(|action| action.name().to_owned()).collect()
    }

    /// The roles that the policies speak of.
    pub(super) fn known_roles(&self) -> Vec<String> {
        self.admitted.held.roles()
    }

    /// A certificate of the caller's own leaves.
    pub(super) async fn release(
        &self,
        minted: Minted,
        how: &'static str,
    ) -> Result<Vec<CertificateDer<'static>>, Status> {
        let Admitted { who, gate, way, .. } = &self.admitted;
        let asked = Asked {
            requester: gate.actor(who),
            how,
            source: way.source(),
        };
        Ok(gate.acts().release(minted, asked).await?)
    }

    /// Logs and writes down what was done to one entry.
    pub(super) fn tell(&self, outcome: &'static str, id: &EntryId, entry: &Entry) {
        let Entry { spiffe_id, parent, .. } = entry;
        let who = self.who();
        tracing::info!(target: "hoplite::audit", %who, entry = %id, %spiffe_id, %parent, outcome, "entry");
        let selectors: Vec<String> = entry.selectors.iter().map(ToString::to_string).collect();
        let detail = [
            ("entry", outcome.to_owned()),
            ("spiffe_id", spiffe_id.to_string()),
            (
                parent.agent().map_or("node_selectors", |_| "parent_id"),
                parent.to_string(),
            ),
            ("selectors", selectors.join(" ")),
            ("owner", entry.owner.clone()),
        ];
        self.tell_part(&id.to_string(), detail);
    }

    /// Writes down one of several things that a call does. A failure is the same for what is written after it, the end of the call.
    pub(super) fn tell_part<const N: usize>(&self, subject: &str, detail: [(&str, String); N]) {
        let detail = detail.into_iter().filter(|(_, text)| !text.is_empty());
        let act = Act {
            subject: subject.to_owned(),
            detail: detail.map(|(name, text)| (name.to_owned(), text)).collect(),
            ..self.act(Vec::new())
        };
        let _ = self.admitted.gate.acts().done(act, self.began.get().cloned());
    }

    /// Runs it and logs who did what to what, by which policy, and how it ended. Never what was answered: a token may be in it.
    ///
    /// What changes something is written down before it is done, when the policies permit it, and as done before the caller hears
    /// of it.
    pub(super) async fn answer<T>(
        &self,
        subject: &str,
        call: impl Future<Output = Result<Done<T>, Status>>,
    ) -> Result<Response<T>, Status> {
        let Admitted {
            who, action, gate, way, ..
        } = &self.admitted;
        let (is_look, action) = (action.only_looks(), action.name());
        self.subject.get_or_init(|| subject.to_owned());
        match call.await {
            Ok(Done { answer, by, detail }) => {
                tracing::info!(target: "hoplite::audit", %who, action, ?subject, ?by, outcome = "done", "admin");
                if !is_look {
                    let act = Act { detail, ..self.act(by) };
                    let written = gate.acts().done(act, self.began.get().cloned());
                    self.settled(written).await.map_err(|error| after_all(&error))?;
                }
                Ok(Response::new(answer))
            }
            Err(status) if status.code() == Code::PermissionDenied && self.began.get().is_none() => {
                gate.tell(&gate.actor(who), way.source(), action, &status);
                Err(status)
            }
            Err(status) => {
                tracing::warn!(target: "hoplite::audit", %who, action, ?subject, outcome = "refused", reason = status.message(), "admin");
                // What was only asked changes nothing, and may be asked wrongly as often as one likes.
                if let Some(began) = self.began.get() {
                    let act = self.act(Vec::new());
                    let written = gate.acts().refused(act, status.message(), Some(began.clone()));
                    // It was not done, whether that stands in the log or not.
                    let _ = self.settled(written).await;
                }
                Err(status)
            }
        }
    }

    async fn settled(&self, written: Result<Written, Unwritten>) -> Result<(), Unwritten> {
        self.admitted.gate.acts().settled([written?]).await.map(drop)
    }

    /// The policies permit it: from here on it may be done, so that is written down first.
    fn allowed(&self, by: Vec<String>) -> Result<Allowed, Status> {
        if !self.admitted.action.only_looks() && self.began.get().is_none() {
            let began = self.admitted.gate.acts().begin(self.act(by.clone()));
            let began = began.map_err(|error| Status::unavailable(format!("{error}; nothing was done")))?;
            self.began.get_or_init(|| began);
        }
        Ok(Allowed { by })
    }

    fn act(&self, by: Vec<String>) -> Act {
        let Admitted {
            who, action, gate, way, ..
        } = &self.admitted;
        Act {
            actor: gate.actor(who),
            action: action.name(),
            subject: self.subject.get().cloned().unwrap_or_default(),
            source: way.source(),
            by,
            detail: BTreeMap::new(),
        }
    }
}

/// Of what was done and may not stand in the log.
fn after_all(error: &Unwritten) -> Status {
    Status::unavailable(format!(
        "{error}; what was asked for may have been done: look before you ask again"
    ))
}
