//! Asks Cedar about a call, at a cost that grows with what matches and not with what exists.
//!
//! Three steps, the first two once per call and then kept:
//! 1. the [`ScopeIndex`] finds the policies whose scope covers the call;
//! 2. those whose conditions do not look at the context are settled: the authorizer is asked about them there and then;
//! 3. for each request the unmodified authorizer is asked about the others, without their scopes, which are known to be
//!    true. (Cedar rebuilds and evaluates the scope of every policy for every request: measured, 1.4 of 2.1 µs each.)
//!
//! The answer is that of the authorizer over every policy: the same decision, the same reasons, the same errors. The
//! tests compare them on generated hierarchies and policies, and in production one request in so many is asked both ways.

use crate::cedar::{Residual, without_text};
use crate::index::{Number, ScopeIndex};
use crate::schema::VOCABULARY;
use crate::undecidable::Undecidable;
use cedar_policy::{
    AuthorizationError, Context, Decision, Effect, Entities, EntityUid, Policy, PolicyId, PolicySet, Request, Response,
};
use quick_cache::Equivalent;
use quick_cache::sync::Cache;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

/// The most calls kept prepared. A proxy sees as many as it has callers times routes; each takes some KiB.
const CALLS_MAX: usize = 8_192;
/// The most sets of open policies kept to be shared: all callers of a group see the same.
const SETS_MAX: usize = 4_096;

/// A set of policies, ready to be asked.
pub(crate) struct Evaluator {
    /// All of them, untouched, for the reference.
    policies: PolicySet,
    residuals: Vec<Residual>,
    numbers: HashMap<PolicyId, Number>,
    index: ScopeIndex,
    calls: Cache<CallKey, Arc<Prepared>>,
    sets: Cache<Box<[Number]>, Arc<Open>>,
}

/// Who does what to what: a request without its context. The entities are these three, and all their ancestors.
#[derive(Debug, Clone)]
pub struct CallFacts {
    /// Who.
    pub principal: EntityUid,
    /// Does what.
    pub action: EntityUid,
    /// To what.
    pub resource: EntityUid,
    /// These three with all that they are in.
    pub entities: Entities,
}

/// The names of a call, by which it is looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct CallName<'a> {
    pub(crate) principal: &'a str,
    pub(crate) action: &'static str,
    pub(crate) resource: &'a str,
}

/// A [`CallName`] of its own. It must hash as that does: same fields, same order.
#[derive(Debug, PartialEq, Eq, Hash)]
struct CallKey {
    principal: Box<str>,
    action: &'static str,
    resource: Box<str>,
}

/// All that can be known about a call before its context is.
#[derive(Debug)]
pub(crate) struct Prepared {
    call: CallFacts,
    candidates: Box<[Number]>,
    /// What the policies say that do not look at the context.
    settled: Answer,
    /// The others, without their scopes.
    open: Arc<Open>,
    /// Whether one of them may look at a selected header.
    reads_headers: bool,
}

/// Policies without their scopes, shared by all calls that leave these open.
#[derive(Debug)]
struct Open {
    policies: PolicySet,
    /// The permits among them alone, once a forbid has stopped a call.
    permits: OnceLock<PolicySet>,
}

/// Which policies are satisfied, and which failed.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) forbids: Vec<PolicyId>,
    /// Where a forbid is satisfied these settle nothing, and some may be missing.
    pub(crate) permits: Vec<PolicyId>,
    /// What could not be evaluated, with the reason.
    pub(crate) errors: Vec<(PolicyId, String)>,
}

// === impl Evaluator ===

impl Evaluator {
    /// The policies of a set, indexed and ready.
    pub(crate) fn new(policies: PolicySet) -> Self {
        let residuals: Vec<Residual> = policies.policies().map(Residual::of).collect();
        let numbers = (0..).zip(policies.policies());
        Self {
            index: ScopeIndex::new(policies.policies()),
            numbers: numbers.map(|(number, policy)| (policy.id().clone(), number)).collect(),
            residuals,
            policies,
            calls: Cache::new(CALLS_MAX),
            sets: Cache::new(SETS_MAX),
        }
    }

    /// Everything about the call of this name; `call` makes it if it is not known yet.
    pub(crate) fn prepared(
        &self,
        name: CallName<'_>,
        call: impl FnOnce() -> Result<CallFacts, Undecidable>,
    ) -> Result<Arc<Prepared>, Undecidable> {
        if let Some(prepared) = self.calls.get(&name) {
            return Ok(prepared);
        }
        let prepared = Arc::new(self.prepare(call()?)?);
        self.calls.insert(name.into(), Arc::clone(&prepared));
        Ok(prepared)
    }

    pub(crate) fn forget_calls(&self) {
        self.calls.clear();
        self.sets.clear();
    }

    fn prepare(&self, call: CallFacts) -> Result<Prepared, Undecidable> {
        let candidates = self.covering(&call);
        let (open, settled): (Vec<Number>, Vec<Number>) = candidates
            .iter()
            .partition(|&&number| self.residual(number).is_none_or(|residual| residual.contextual));
        let mut residuals = open.iter().filter_map(|&number| self.residual(number));
        let reads_headers = residuals.any(|residual| residual.reads_headers);
        Ok(Prepared {
            reads_headers,
            settled: self.settle(&call, &settled)?,
            open: self.set(open)?,
            candidates: candidates.into(),
            call,
        })
    }

    /// Asks about permits and forbids apart, so that a forbid does not hide which permits are satisfied.
    fn settle(&self, call: &CallFacts, settled: &[Number]) -> Result<Answer, Undecidable> {
        let mut answer = Answer::default();
        for effect in [Effect::Permit, Effect::Forbid] {
            let policies = settled.iter().filter_map(|&number| self.residual(number));
            let policies = policies
                .map(|residual| &residual.policy)
                .filter(|policy| policy.effect() == effect);
            let policies = collected(policies)?;
            if !policies.is_empty() {
                answer.add(ask(&policies, call, Context::empty())?);
            }
        }
        Ok(answer)
    }

    fn set(&self, open: Vec<Number>) -> Result<Arc<Open>, Undecidable> {
        if let Some(set) = self.sets.get(&*open) {
            return Ok(set);
        }
        let policies = open.iter().filter_map(|&number| self.residual(number));
        let set = Arc::new(Open {
            policies: collected(policies.map(|residual| &residual.policy))?,
            permits: OnceLock::new(),
        });
        self.sets.insert(open.into(), Arc::clone(&set));
        Ok(set)
    }

    fn residual(&self, number: Number) -> Option<&Residual> {
        self.residuals.get(number as usize)
    }

    /// The unmodified authorizer over every policy as it was written. Slow, and always right.
    pub(crate) fn reference(&self, call: &CallFacts, context: Context) -> Result<Answer, Undecidable> {
        ask(&self.policies, call, context)
    }

    /// Every policy as it was written, in the order of their numbers.
    pub(crate) fn policies(&self) -> &PolicySet {
        &self.policies
    }

    /// The policies whose scope covers the call, ascending.
    pub(crate) fn covering(&self, call: &CallFacts) -> Vec<Number> {
        self.index
            .covering(&call.principal, &call.action, &call.resource, &call.entities)
    }

    /// The policy as it was written.
    pub(crate) fn policy(&self, number: Number) -> Option<&Policy> {
        self.policies.policy(self.residual(number)?.policy.id())
    }

    pub(crate) fn number(&self, id: &PolicyId) -> Option<Number> {
        self.numbers.get(id).copied()
    }
}

/// A set for the evaluator: texts are left behind, for every policy and every set would copy them.
///
/// # Errors
/// Cedar's, if two policies have one id.
pub(crate) fn collected<'a>(policies: impl Iterator<Item = &'a Policy>) -> Result<PolicySet, Undecidable> {
    let mut set = PolicySet::new();
    for policy in policies {
        set.add(without_text(policy)).map_err(Undecidable::cedar)?;
    }
    Ok(set)
}

fn ask(policies: &PolicySet, call: &CallFacts, context: Context) -> Result<Answer, Undecidable> {
    let (principal, action, resource) = (call.principal.clone(), call.action.clone(), call.resource.clone());
    // Not checked against the schema again: calls and contexts are made in one place, whose tests do check.
    let request = Request::new(principal, action, resource, context, None).map_err(Undecidable::cedar)?;
    Ok(VOCABULARY
        .authorizer
        .is_authorized(&request, policies, &call.entities)
        .into())
}

// === impl Prepared ===

impl Prepared {
    /// What all policies say about the call in this context.
    pub(crate) fn answer(&self, context: Context) -> Result<Answer, Undecidable> {
        let mut answer = self.settled.clone();
        if !self.open.policies.is_empty() {
            answer.add(ask(&self.open.policies, &self.call, context)?);
        }
        Ok(answer)
    }

    /// Every satisfied permit, also where a forbid is satisfied.
    pub(crate) fn permits(&self, context: Context) -> Result<Vec<PolicyId>, Undecidable> {
        let permits = self.open.permits()?;
        let mut found = self.settled.permits.clone();
        if !permits.is_empty() {
            found.extend(ask(permits, &self.call, context)?.permits);
        }
        Ok(found)
    }

    /// Whether the answer may depend on a selected header.
    pub(crate) fn reads_headers(&self) -> bool {
        self.reads_headers
    }

    /// The policies whose scope covers the call, ascending.
    pub(crate) fn candidates(&self) -> &[Number] {
        &self.candidates
    }
}

// === impl Open ===

impl Open {
    fn permits(&self) -> Result<&PolicySet, Undecidable> {
        if let Some(permits) = self.permits.get() {
            return Ok(permits);
        }
        let permits = self
            .policies
            .policies()
            .filter(|policy| policy.effect() == Effect::Permit);
        let permits = collected(permits)?;
        Ok(self.permits.get_or_init(|| permits))
    }
}

// === impl Answer ===

impl Answer {
    /// What Cedar decides: any forbid denies, else any permit allows.
    pub(crate) fn allows(&self) -> bool {
        self.forbids.is_empty() && !self.permits.is_empty()
    }

    fn add(&mut self, other: Self) {
        self.forbids.extend(other.forbids);
        self.permits.extend(other.permits);
        self.errors.extend(other.errors);
    }
}

impl From<Response> for Answer {
    fn from(response: Response) -> Self {
        let reasons = response.diagnostics().reason().cloned().collect();
        let (forbids, permits) = match response.decision() {
            Decision::Allow => (Vec::new(), reasons),
            Decision::Deny => (reasons, Vec::new()),
        };
        let errors = response.diagnostics().errors().map(|error| {
            let AuthorizationError::PolicyEvaluationError(error) = error;
            (error.policy_id().clone(), error.inner().to_string())
        });
        Self {
            forbids,
            permits,
            errors: errors.collect(),
        }
    }
}

// === impl CallKey ===

impl From<CallName<'_>> for CallKey {
    fn from(name: CallName<'_>) -> Self {
        Self {
            principal: name.principal.into(),
            action: name.action,
            resource: name.resource.into(),
        }
    }
}

impl Equivalent<CallKey> for CallName<'_> {
    fn equivalent(&self, key: &CallKey) -> bool {
        (self.principal, self.action, self.resource) == (&*key.principal, key.action, &*key.resource)
    }
}

#[cfg(test)]
mod tests;
