//! One admin call: what its caller may do of it, and its line in the log. There is no answer without the question whether it may.

use std::sync::Arc;

use hoplite_identity::RegisteredEntry;
use tonic::{Code, Request, Response, Status};

use crate::api::gate::{Admitted, Shown};
use crate::api::status::ours;
use crate::entries::may::May;
use crate::rights::action::Action;
use crate::rights::words::{What, Who};

/// A call that has passed the gate.
pub(super) struct AdminCall(Admitted);

/// Evidence that the policies permit what is asked. Made only by asking them.
pub(super) struct Allowed {
    by: Vec<String>,
}

/// An answer that was allowed.
pub(super) struct Done<T> {
    answer: T,
    by: Vec<String>,
}

// === impl Allowed ===

impl Allowed {
    /// Where each entry is asked about by itself, some by one policy and some by another.
    fn one_by_one() -> Self {
        let by = vec!["each entry by itself".to_owned()];
        Self { by }
    }

    /// What was done under it.
    pub(super) fn done<T>(self, answer: T) -> Done<T> {
        Done { answer, by: self.by }
    }
}

// === impl AdminCall ===

impl AdminCall {
    /// That of a request which the gate let through for this action. Any other gets no further.
    pub(super) fn new<T>(request: &Request<T>, action: Action) -> Result<Self, Status> {
        match request.extensions().get::<Admitted>() {
            Some(admitted) if admitted.action == action => Ok(Self(admitted.clone())),
            _ => Err(ours(&"an admin call came past the gate")),
        }
    }

    pub(super) fn who(&self) -> &Who {
        &self.0.who
    }

    pub(super) fn shown(&self) -> Option<&Shown> {
        self.0.shown.as_ref()
    }

    /// Whether this may be done.
    pub(super) fn may(&self, what: What<'_>) -> Result<Allowed, Status> {
        let Admitted {
            who, action, way, held, ..
        } = &self.0;
        Ok(Allowed {
            by: held.ask(who, *action, what, *way)?,
        })
    }

    /// Whether all of this may be done.
    pub(super) fn may_all<'a>(&self, all: impl IntoIterator<Item = What<'a>>) -> Result<Allowed, Status> {
        let Admitted {
            who, action, way, held, ..
        } = &self.0;
        Ok(Allowed {
            by: held.ask_all(who, *action, all, *way)?,
        })
    }

    /// What the caller may see of these entries: all, where the policies say so of the trust domain.
    pub(super) async fn sift(
        &self,
        entries: Vec<Arc<RegisteredEntry>>,
    ) -> Result<(Allowed, Vec<Arc<RegisteredEntry>>), Status> {
        if let Ok(allowed) = self.may(What::TrustDomain) {
            return Ok((allowed, entries));
        }
        let (may, allowed) = self.entries();
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
    pub(super) fn entries(&self) -> (May, Allowed) {
        let Admitted {
            who, action, way, held, ..
        } = self.0.clone();
        if let Some(by) = held.always(&who, action) {
            return (May::anything(), Allowed { by: vec![by] });
        }
        let may = May::new(move |entry| held.ask(&who, action, What::Entry(entry), way).map(drop));
        (may, Allowed::one_by_one())
    }

    /// The RPCs that the caller may call on something at least.
    pub(super) fn actions(&self) -> Vec<String> {
        let Admitted { who, held, .. } = &self.0;
        let actions = Action::ALL.iter().filter(|action| held.may_ever(who, **action).is_ok());
        actions.map(|action| action.name().to_owned()).collect()
    }

    /// The roles that the policies speak of.
    pub(super) fn known_roles(&self) -> Vec<String> {
        self.0.held.roles()
    }

    /// Runs it and logs who did what to what, by which policy, and how it ended. Never what was answered: a token may be in it.
    pub(super) async fn answer<T>(
        &self,
        subject: &str,
        call: impl Future<Output = Result<Done<T>, Status>>,
    ) -> Result<Response<T>, Status> {
        let Admitted { who, action, gate, .. } = &self.0;
        let action = action.name();
        match call.await {
            Ok(Done { answer, by }) => {
                tracing::info!(target: "hoplite::audit", %who, action, ?subject, ?by, outcome = "done", "admin");
                Ok(Response::new(answer))
            }
            Err(status) if status.code() == Code::PermissionDenied => {
                gate.tell(&who.to_string(), action, &status);
                Err(status)
            }
            Err(status) => {
                tracing::warn!(target: "hoplite::audit", %who, action, ?subject, outcome = "refused", reason = status.message(), "admin");
                Err(status)
            }
        }
    }
}
