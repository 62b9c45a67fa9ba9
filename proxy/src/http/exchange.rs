//! A request and its answer under way: what was permitted, so that it can be decided again, and ended.
//!
//! An exchange lasts from its decision to the end of both its bodies. It costs one allocation, which the two bodies
//! share, and a place in its connection's list, whose room is used again: no task, no timer, and nothing to take out
//! when it ends. Only a change of policy looks at the list.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll, Waker};

use hoplite_audit::{DecisionId, Outcome};
use hoplite_decision::Refused;
use hoplite_policy::CanonicalRequest;

use crate::share::Place;

/// One request that was permitted.
#[derive(Debug)]
pub(crate) struct Exchange {
    /// What was asked.
    pub(crate) canonical: CanonicalRequest,
    /// The record of its being permitted.
    pub(crate) decision: DecisionId,
    /// The policy's epoch as of which it is permitted.
    epoch: AtomicU64,
    revoked: OnceLock<Revoked>,
    malformed: AtomicBool,
    answered: AtomicBool,
    waiting: Mutex<Waiting>,
    /// What it takes of what its caller may have.
    _place: Option<Place>,
}

/// That it is no longer permitted.
#[derive(Debug)]
pub(crate) struct Revoked {
    /// Policy's answer now.
    pub(crate) outcome: Outcome,
    /// The record of it, unless that could not be written.
    pub(crate) decision: Option<DecisionId>,
}

/// What a body ends with that may not go on. HTTP/2 resets the stream, HTTP/1.1 breaks the connection off: neither can
/// be taken for a whole message.
#[derive(Debug, thiserror::Error)]
#[error("policy no longer permits it")]
pub(crate) struct NoLongerPermitted(#[source] h2::Error);

/// Held by whoever makes the answer, and then by the answer's body.
#[derive(Debug)]
pub(crate) struct Answering(Arc<Exchange>);

/// The exchanges of one connection.
#[derive(Debug, Default)]
pub(crate) struct Exchanges(Mutex<Vec<Weak<Exchange>>>);

/// The two sides that may have to be woken.
#[derive(Debug, Default)]
struct Waiting {
    request: Option<Waker>,
    answer: Option<Waker>,
}

// === impl Exchange ===

impl Exchange {
    /// Permitted by a policy no older than `epoch`.
    pub(crate) fn new(canonical: CanonicalRequest, decision: DecisionId, epoch: u64, place: Option<Place>) -> Self {
        Self {
            canonical,
            decision,
            epoch: AtomicU64::new(epoch),
            revoked: OnceLock::new(),
            malformed: AtomicBool::new(false),
            answered: AtomicBool::new(false),
            waiting: Mutex::default(),
            _place: place,
        }
    }

    /// It is permitted by a newer policy too.
    pub(crate) fn renew(&self, epoch: u64) {
        self.epoch.fetch_max(epoch, Relaxed);
    }

    /// Ends it, on both sides. What is on its way may still arrive; nothing more is read for it.
    pub(crate) fn revoke(&self, revoked: Revoked) {
        let _ = self.revoked.set(revoked);
        let Waiting { request, answer } = std::mem::take(&mut *self.waiting());
        for waker in [request, answer].into_iter().flatten() {
            waker.wake();
        }
    }

    /// That it was revoked.
    pub(crate) fn revoked(&self) -> Option<&Revoked> {
        self.revoked.get()
    }

    /// An error as soon as the request's body may not go on.
    pub(crate) fn check_request(&self, context: &Context<'_>) -> Result<(), NoLongerPermitted> {
        self.check(|waiting| &mut waiting.request, context)
    }

    /// Waits until it is revoked.
    pub(crate) async fn until_revoked(&self) -> &Revoked {
        std::future::poll_fn(|context| {
            let _ = self.check(|waiting| &mut waiting.answer, context);
            self.revoked.get().map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    /// The request's body broke in a way that nothing but the peer's own bytes explains.
    pub(crate) fn set_malformed(&self) {
        self.malformed.store(true, Relaxed);
    }

    pub(crate) fn is_malformed(&self) -> bool {
        self.malformed.load(Relaxed)
    }

    /// Whether its answer has ended, or nobody waits for it any more.
    pub(crate) fn is_answered(&self) -> bool {
        self.answered.load(Relaxed)
    }

    fn check(
        &self,
        side: fn(&mut Waiting) -> &mut Option<Waker>,
        context: &Context<'_>,
    ) -> Result<(), NoLongerPermitted> {
        // INVARIANT: the waker is there before it is looked whether it was revoked, so that one of both is noticed.
        match side(&mut self.waiting()) {
            Some(waker) => waker.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
        match self.revoked.get() {
            Some(_) => Err(NoLongerPermitted(h2::Reason::CANCEL.into())),
            None => Ok(()),
        }
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Revoked ===

impl From<Refused> for Revoked {
    fn from(refused: Refused) -> Self {
        Self {
            outcome: refused.outcome(),
            decision: refused.decision().cloned(),
        }
    }
}

// === impl Answering ===

impl Answering {
    pub(crate) fn new(exchange: Arc<Exchange>) -> Self {
        Self(exchange)
    }

    /// An error as soon as the answer's body may not go on.
    pub(crate) fn check(&self, context: &Context<'_>) -> Result<(), NoLongerPermitted> {
        self.0.check(|waiting| &mut waiting.answer, context)
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.answered.store(true, Relaxed);
    }
}

// === impl Exchanges ===

impl Exchanges {
    /// Remembers one, for as long as somebody holds it.
    pub(crate) fn add(&self, exchange: &Arc<Exchange>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() == all.capacity() {
            // As much room as is needed is made again, so that this is done once in so many.
            all.retain(|exchange| exchange.strong_count() > 0);
            let left = all.len();
            all.reserve(left + 1);
        }
        all.push(Arc::downgrade(exchange));
    }

    /// Those that are permitted by a policy older than this.
    pub(crate) fn permitted_before(&self, epoch: u64) -> Vec<Arc<Exchange>> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let held = all.iter().filter_map(Weak::upgrade);
        held.filter(|exchange| exchange.epoch.load(Relaxed) < epoch && exchange.revoked().is_none())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exchange(epoch: u64) -> Arc<Exchange> {
        let canonical = CanonicalRequest::parse("GET", &[b"orders"], b"/").unwrap();
        Arc::new(Exchange::new(canonical, DecisionId::default(), epoch, None))
    }

    #[test]
    fn only_those_of_an_older_policy_are_decided_again() {
        let exchanges = Exchanges::default();
        let (old, new, renewed, revoked) = (exchange(1), exchange(2), exchange(1), exchange(1));
        for exchange in [&old, &new, &renewed, &revoked] {
            exchanges.add(exchange);
        }
        renewed.renew(2);
        revoked.revoke(Revoked {
            outcome: Outcome::Forbid,
            decision: None,
        });
        let due = exchanges.permitted_before(2);
        assert!(due.len() == 1 && due.iter().all(|due| Arc::ptr_eq(due, &old)));
        drop((due, old));
        assert!(
            exchanges.permitted_before(2).is_empty(),
            "what has ended is not asked about"
        );
    }

    #[test]
    fn the_list_is_as_long_as_what_is_under_way() {
        let exchanges = Exchanges::default();
        let kept: Vec<_> = (0..100).map(|_| exchange(1)).collect();
        for exchange in &kept {
            exchanges.add(exchange);
        }
        for _ in 0..10_000 {
            exchanges.add(&exchange(1));
        }
        assert!(exchanges.0.lock().unwrap().capacity() <= 512);
        assert_eq!(exchanges.permitted_before(2).len(), kept.len());
    }

    #[test]
    fn both_sides_are_woken_and_end() {
        let exchange = exchange(1);
        let answering = Answering::new(exchange.clone());
        let flags = [(); 2].map(|()| Arc::new(Flag::default()));
        let wakers = flags.each_ref().map(|flag| Waker::from(flag.clone()));
        let [request, answer] = wakers.each_ref().map(Context::from_waker);
        exchange.check_request(&request).unwrap();
        answering.check(&answer).unwrap();
        exchange.revoke(Revoked {
            outcome: Outcome::NoPermit,
            decision: None,
        });
        assert!(flags.iter().all(|flag| flag.0.load(Relaxed)));
        exchange.check_request(&request).unwrap_err();
        answering.check(&answer).unwrap_err();
        assert!(!exchange.is_answered());
        drop(answering);
        assert!(exchange.is_answered());
    }

    #[derive(Default)]
    struct Flag(AtomicBool);

    impl std::task::Wake for Flag {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Relaxed);
        }
    }
}
