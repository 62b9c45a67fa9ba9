//! Which policies can say anything about a call, found without looking at the others.
//!
//! Cedar evaluates `principal && (action && (resource && conditions))`, and what stands in a scope never fails: `in` on
//! an entity that is absent is false. A policy whose scope does not cover a call is therefore false before its
//! conditions are looked at; it can be neither satisfied nor in error, and leaving it out changes neither decision nor
//! reasons nor errors. The index files each policy under the triple of its scope's bounds; a call asks for every triple
//! that covers it, which are some dozens, however many policies there are.

use cedar_policy::{
    ActionConstraint, Entities, EntityTypeName, EntityUid, Policy, PrincipalConstraint, ResourceConstraint,
};
use std::collections::HashMap;
use std::ops::Range;

/// A policy's place in the set it was filed from.
pub(crate) type Number = u32;

/// Every policy, filed under the bounds of its scope.
#[derive(Debug, Default)]
pub(crate) struct ScopeIndex {
    principals: Bounds,
    actions: Bounds,
    resources: Bounds,
    /// For each triple of bounds its policies: a stretch of `numbers`.
    postings: HashMap<Triple, Range<usize>>,
    numbers: Vec<Number>,
    /// The types that scopes like `principal is T in u` ask for beside their bound.
    types: HashMap<Number, [Option<EntityTypeName>; 2]>,
}

/// Numbers of a bound on the principal, one on the action and one on the resource.
type Triple = [u32; 3];

/// What a scope says about one of the three, leaving out the test of a type beside an `in`.
enum Bound {
    Any,
    Is(EntityTypeName),
    Eq(EntityUid),
    In(EntityUid),
}

/// Every bound that occurs in some scope, numbered from 1; [`ANY`] is 0.
#[derive(Debug, Default)]
struct Bounds {
    is: HashMap<EntityTypeName, u32>,
    eq: HashMap<EntityUid, u32>,
    within: HashMap<EntityUid, u32>,
    count: u32,
}

/// The number of the bound that covers everything.
const ANY: u32 = 0;

// === impl ScopeIndex ===

impl ScopeIndex {
    /// Files the policies, template-linked ones among them, under their places in the iteration.
    pub(crate) fn new<'a>(policies: impl Iterator<Item = &'a Policy>) -> Self {
        let mut this = Self::default();
        let mut filed: Vec<(Triple, Number)> = Vec::new();
        for (number, policy) in (0..).zip(policies) {
            let (principal, principal_type) = of_principal(policy.principal_constraint());
            let (resource, resource_type) = of_resource(policy.resource_constraint());
            if principal_type.is_some() || resource_type.is_some() {
                this.types.insert(number, [principal_type, resource_type]);
            }
            let principal = this.principals.number(principal);
            let resource = this.resources.number(resource);
            let actions = match policy.action_constraint() {
                ActionConstraint::Any => vec![Bound::Any],
                ActionConstraint::Eq(action) => vec![Bound::Eq(action)],
                ActionConstraint::In(actions) => actions.into_iter().map(Bound::In).collect(),
            };
            for action in actions {
                filed.push(([principal, this.actions.number(action), resource], number));
            }
        }
        filed.sort_unstable();
        filed.dedup();
        for stretch in filed.chunk_by(|(a, _), (b, _)| a == b) {
            let Some((triple, _)) = stretch.first() else { continue };
            let start = this.numbers.len();
            this.numbers.extend(stretch.iter().map(|(_, number)| number));
            this.postings.insert(*triple, start..this.numbers.len());
        }
        this
    }

    /// The policies whose scope covers the call: all of them, none else, ascending. Ancestors are those that `entities`
    /// knows, as they are for the authorizer.
    pub(crate) fn covering(
        &self,
        principal: &EntityUid,
        action: &EntityUid,
        resource: &EntityUid,
        entities: &Entities,
    ) -> Vec<Number> {
        let principals = self.principals.covering(principal, entities);
        let actions = self.actions.covering(action, entities);
        let resources = self.resources.covering(resource, entities);
        let mut found = Vec::new();
        for &p in &principals {
            for &a in &actions {
                for &r in &resources {
                    let stretch = self.postings.get(&[p, a, r]).cloned();
                    found.extend(
                        stretch
                            .and_then(|stretch| self.numbers.get(stretch))
                            .unwrap_or_default(),
                    );
                }
            }
        }
        // One policy may name several groups of one action.
        found.sort_unstable();
        found.dedup();
        if !self.types.is_empty() {
            found.retain(|number| {
                self.types.get(number).is_none_or(|types| {
                    let uids = [principal, resource];
                    types
                        .iter()
                        .zip(uids)
                        .all(|(wanted, uid)| wanted.as_ref().is_none_or(|t| t == uid.type_name()))
                })
            });
        }
        found
    }

    /// Forgets one posting list. For the test that shows that such a loss is noticed.
    #[cfg(test)]
    pub(crate) fn drop_posting(&mut self, which: usize) {
        let mut triples: Vec<_> = self.postings.keys().copied().collect();
        triples.sort_unstable();
        if let Some(triple) = triples.get(which % triples.len().max(1)) {
            self.postings.remove(triple);
        }
    }
}

// === impl Bounds ===

impl Bounds {
    fn number(&mut self, bound: Bound) -> u32 {
        let next = self.count + 1;
        let number = match bound {
            Bound::Any => return ANY,
            Bound::Is(name) => *self.is.entry(name).or_insert(next),
            Bound::Eq(uid) => *self.eq.entry(uid).or_insert(next),
            Bound::In(uid) => *self.within.entry(uid).or_insert(next),
        };
        self.count = self.count.max(number);
        number
    }

    /// The numbers of all bounds that cover the entity.
    fn covering(&self, uid: &EntityUid, entities: &Entities) -> Vec<u32> {
        let ancestors = entities.ancestors(uid).into_iter().flatten();
        [self.is.get(uid.type_name()), self.eq.get(uid), self.within.get(uid)]
            .into_iter()
            .chain(ancestors.map(|ancestor| self.within.get(ancestor)))
            .flatten()
            .copied()
            .chain([ANY])
            .collect()
    }
}

fn of_principal(constraint: PrincipalConstraint) -> (Bound, Option<EntityTypeName>) {
    match constraint {
        PrincipalConstraint::Any => (Bound::Any, None),
        PrincipalConstraint::Is(name) => (Bound::Is(name), None),
        PrincipalConstraint::Eq(uid) => (Bound::Eq(uid), None),
        PrincipalConstraint::In(uid) => (Bound::In(uid), None),
        PrincipalConstraint::IsIn(name, uid) => (Bound::In(uid), Some(name)),
    }
}

fn of_resource(constraint: ResourceConstraint) -> (Bound, Option<EntityTypeName>) {
    match constraint {
        ResourceConstraint::Any => (Bound::Any, None),
        ResourceConstraint::Is(name) => (Bound::Is(name), None),
        ResourceConstraint::Eq(uid) => (Bound::Eq(uid), None),
        ResourceConstraint::In(uid) => (Bound::In(uid), None),
        ResourceConstraint::IsIn(name, uid) => (Bound::In(uid), Some(name)),
    }
}
