//! Rules: policies over a schema of somebody else's, about other things than calls. The CA decides its operators' requests by them.
//!
//! What must hold of a decision about a call holds here too: deny is the default, a forbid that cannot be evaluated denies,
//! and whatever breaks down denies. Whoever asks names things by words of the schema; a word it does not have denies.

use crate::anatomy::Anatomy;
use crate::cedar::annotation;
use crate::fault::{FAULTS_MAX, Fault, Text, check_mark, enough};
use crate::ids::{BadId, Ids};
use crate::parse::{COMPILE_STACK_BYTES, diagnosed, on_stack, parse};
use crate::schema::uid;
use crate::source::Source;
use crate::statement::{Statement, statements};
use crate::undecidable::Undecidable;
use cedar_policy::{
    ActionConstraint, AuthorizationError, Authorizer, Context, Decision, Effect, Entities, Entity, EntityTypeName,
    EntityUid, Policy, PolicyId, PolicySet, PrincipalConstraint, Request, ResourceConstraint, RestrictedExpression,
    Schema, ValidationMode, ValidationWarning, Validator,
};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::str::FromStr;

/// The most text of a set of rules. They are a page, not a mesh's policies.
pub const RULES_BYTES_MAX: usize = 1 << 20;

/// A compiled set of rules, with the schema they speak of.
pub struct Rules {
    schema: Schema,
    /// Entity types by their last word.
    types: HashMap<String, EntityTypeName>,
    /// Actions by their names.
    actions: HashMap<String, Action>,
    authorizer: Authorizer,
    policies: PolicySet,
}

/// An action with all the groups it is in, at any distance.
struct Action {
    entity: Entity,
    groups: HashSet<EntityUid>,
}

/// The name of a thing: its type, by the last word, and its id.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Name {
    /// As in `Operator`.
    pub kind: &'static str,
    /// As in `alice`.
    pub id: String,
}

/// A thing that rules speak of: who asks, or what is asked about.
#[derive(Debug, Clone)]
pub struct Thing {
    /// Which one.
    pub name: Name,
    /// Its attributes.
    pub attributes: Vec<(&'static str, Fact)>,
    /// All that it is in, at any distance.
    pub within: Vec<Name>,
}

/// The value of an attribute.
#[derive(Debug, Clone)]
pub enum Fact {
    /// A string.
    Text(String),
    /// A whole number.
    Number(i64),
    /// True or false.
    Is(bool),
    /// An IP address.
    Address(IpAddr),
    /// Another thing.
    Thing(Name),
    /// A set of other things.
    Things(Vec<Name>),
}

/// What the rules say. The ids are those of the policies that led to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ruling {
    /// A permit applies, and no forbid.
    Permitted(Vec<String>),
    /// A forbid applies.
    Forbidden(Vec<String>),
    /// No policy says anything of it.
    NotPermitted,
    /// It could not be decided, for this reason.
    Undecided(String),
}

// === impl Rules ===

impl Rules {
    /// Parses every source on its own, and validates every policy strictly against the schema. Each needs an `@id` that no other
    /// has.
    ///
    /// # Errors
    /// The faults of every source, the first thousand.
    pub fn compile(schema: &str, sources: &[Source]) -> Result<Self, Vec<Fault>> {
        let file = sources.first().map_or("", |source| &source.name);
        on_stack(COMPILE_STACK_BYTES, || Self::compile_here(schema, sources)).unwrap_or_else(|error| {
            let message = format!("the policies could not be compiled: {error}; try again");
            Err(vec![Fault::whole(file, message)])
        })
    }

    fn compile_here(schema: &str, sources: &[Source]) -> Result<Self, Vec<Fault>> {
        let unsound =
            |error: &dyn fmt::Display| vec![Fault::whole("schema", format!("the schema is unsound: {error}"))];
        let schema = Schema::from_str(schema).map_err(|error| unsound(&error))?;
        let entities = schema.action_entities().map_err(|error| unsound(&error))?;
        let types = schema.entity_types();
        let types = types.map(|name| (name.basename().to_owned(), name.clone())).collect();
        let actions = entities.iter().map(|action| {
            let groups: HashSet<EntityUid> = entities
                .ancestors(&action.uid())
                .into_iter()
                .flatten()
                .cloned()
                .collect();
            let name = action.uid().id().unescaped().to_owned();
            // With all of its groups, so that nobody has to work out who is in what.
            let entity = Entity::new_no_attrs(action.uid(), groups.clone());
            (name, Action { entity, groups })
        });
        let actions = actions.collect();
        let validator = Validator::new(schema.clone());
        let mut faults = Vec::new();
        let mut ids = Ids::default();
        let mut policies = PolicySet::new();
        let texts: Vec<Text<'_>> = sources
            .iter()
            .map(|source| Text::new(&source.name, &source.text))
            .collect();
        let mut bytes = 0_usize;
        for text in &texts {
            bytes = bytes.saturating_add(text.text.len());
            if bytes > RULES_BYTES_MAX {
                let message = format!("the files up to this one exceed {RULES_BYTES_MAX} bytes; remove policies");
                return Err(vec![text.fault(0, message)]);
            }
            if let Err(mark) = check_mark(text) {
                faults.extend(mark);
                continue;
            }
            for statement in statements(text.text) {
                match checked(text, &statement, &validator, &mut ids) {
                    Ok(policy) => {
                        if let Err(error) = policies.add(policy) {
                            faults.push(text.fault(statement.offset, error.to_string()));
                        }
                    }
                    Err(found) => faults.extend(found),
                }
                if faults.len() > FAULTS_MAX {
                    return Err(enough(faults, text.file));
                }
            }
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        Ok(Self {
            schema,
            types,
            actions,
            authorizer: Authorizer::new(),
            policies,
        })
    }

    /// What the rules say of this.
    pub fn ask(&self, who: &Thing, action: &str, what: &Thing, context: &[(&str, Fact)]) -> Ruling {
        // Nothing is changed by asking, so nothing is left half-changed by a panic.
        match catch_unwind(AssertUnwindSafe(|| self.try_ask(who, action, what, context))) {
            Ok(Ok(ruling)) => ruling,
            Ok(Err(reason)) => Ruling::Undecided(reason.to_string()),
            Err(_) => Ruling::Undecided("the evaluation of the policies panicked".to_owned()),
        }
    }

    /// Whether some permit speaks of who asks and of the action, whatever it is done to and whatever its conditions are. Where it
    /// is false, [`ask`](Self::ask) permits nothing.
    pub fn may_ever(&self, who: &Thing, action: &str) -> bool {
        !self.covering(who, action, Effect::Permit).is_empty()
    }

    /// The permit by which who asks may do this to anything at all: one without conditions, where no forbid speaks of it. Where
    /// there is one, [`ask`](Self::ask) permits, whatever it is asked about.
    pub fn always(&self, who: &Thing, action: &str) -> Option<&str> {
        if !self.covering(who, action, Effect::Forbid).is_empty() {
            return None;
        }
        let is_plain = |policy: &&Policy| {
            !policy.has_non_scope_constraint() && matches!(policy.resource_constraint(), ResourceConstraint::Any)
        };
        let policy = self.covering(who, action, Effect::Permit).into_iter().find(is_plain)?;
        Some(policy.id().as_ref())
    }

    /// The ids of this type that policies name.
    pub fn named(&self, kind: &str) -> BTreeSet<String> {
        let Some(kind) = self.types.get(kind) else {
            return BTreeSet::new();
        };
        let literals = self.policies.policies().flat_map(Policy::entity_literals);
        let of_kind = literals.filter(|uid| uid.type_name() == kind);
        of_kind.map(|uid| uid.id().unescaped().to_owned()).collect()
    }

    /// The actions of the schema, each with the groups it is in; groups, which are actions too, with theirs.
    pub fn actions(&self) -> BTreeMap<String, BTreeSet<String>> {
        let name = |uid: &EntityUid| uid.id().unescaped().to_owned();
        let groups = |action: &Action| action.groups.iter().map(name).collect();
        let actions = self.actions.iter();
        actions.map(|(name, action)| (name.clone(), groups(action))).collect()
    }

    /// How many policies there are.
    pub fn len(&self) -> usize {
        self.policies.policies().count()
    }

    /// Whether there are none, so that nothing is permitted.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The policies of this effect whose scope covers who asks and the action.
    fn covering(&self, who: &Thing, action: &str, effect: Effect) -> Vec<&Policy> {
        let (Some(Action { entity, groups }), Ok(who_uid)) = (self.actions.get(action), self.uid(&who.name)) else {
            return Vec::new();
        };
        let action = entity.uid();
        let within: HashSet<EntityUid> = who.within.iter().filter_map(|name| self.uid(name).ok()).collect();
        let is_in = |group: &EntityUid| *group == who_uid || within.contains(group);
        let covers = |policy: &&Policy| {
            let covers_who = match policy.principal_constraint() {
                PrincipalConstraint::Any => true,
                PrincipalConstraint::In(group) => is_in(&group),
                PrincipalConstraint::Eq(one) => one == who_uid,
                PrincipalConstraint::Is(kind) => kind == *who_uid.type_name(),
                PrincipalConstraint::IsIn(kind, group) => kind == *who_uid.type_name() && is_in(&group),
            };
            let covers_action = match policy.action_constraint() {
                ActionConstraint::Any => true,
                ActionConstraint::Eq(one) => one == action,
                ActionConstraint::In(some) => some.iter().any(|one| *one == action || groups.contains(one)),
            };
            policy.effect() == effect && covers_who && covers_action
        };
        self.policies.policies().filter(covers).collect()
    }

    fn try_ask(
        &self,
        who: &Thing,
        action: &str,
        what: &Thing,
        context: &[(&str, Fact)],
    ) -> Result<Ruling, Undecidable> {
        let action = self
            .actions
            .get(action)
            .ok_or_else(|| Undecidable::NoWord(action.to_owned()))?;
        let action = &action.entity;
        let mut entities = vec![action.clone(), self.entity(who)?];
        if what.name != who.name {
            entities.push(self.entity(what)?);
        }
        let entities = Entities::from_entities(entities, None).map_err(Undecidable::cedar)?;
        let mut pairs = Vec::with_capacity(context.len());
        for (name, fact) in context {
            pairs.push(((*name).to_owned(), self.expression(fact)?));
        }
        let context = Context::from_pairs(pairs).map_err(Undecidable::cedar)?;
        let (who, what) = (self.uid(&who.name)?, self.uid(&what.name)?);
        let request = Request::new(who, action.uid(), what, context, Some(&self.schema)).map_err(Undecidable::cedar)?;
        let response = self.authorizer.is_authorized(&request, &self.policies, &entities);
        let diagnostics = response.diagnostics();
        let mut ids: Vec<String> = diagnostics.reason().map(ToString::to_string).collect();
        ids.sort();
        // Cedar skips what it cannot evaluate; a forbid that is skipped would let through what it is there to stop.
        let mut failed = diagnostics.errors().map(|error| {
            let AuthorizationError::PolicyEvaluationError(failure) = error;
            (failure.policy_id(), error)
        });
        let decision = response.decision();
        let is_forbid = |id: &PolicyId| self.policies.policy(id).is_none_or(|p| p.effect() == Effect::Forbid);
        let first = match decision {
            Decision::Allow => failed.find(|(id, _)| is_forbid(id)),
            Decision::Deny => failed.next().filter(|_| ids.is_empty()),
        };
        if let Some((_, error)) = first {
            return Err(Undecidable::cedar(error.clone()));
        }
        Ok(match decision {
            Decision::Allow => Ruling::Permitted(ids),
            Decision::Deny if ids.is_empty() => Ruling::NotPermitted,
            Decision::Deny => Ruling::Forbidden(ids),
        })
    }

    fn entity(&self, thing: &Thing) -> Result<Entity, Undecidable> {
        let mut attributes = HashMap::with_capacity(thing.attributes.len());
        for (name, fact) in &thing.attributes {
            attributes.insert((*name).to_owned(), self.expression(fact)?);
        }
        let within: Result<HashSet<EntityUid>, Undecidable> = thing.within.iter().map(|name| self.uid(name)).collect();
        Entity::new(self.uid(&thing.name)?, attributes, within?).map_err(Undecidable::cedar)
    }

    fn expression(&self, fact: &Fact) -> Result<RestrictedExpression, Undecidable> {
        Ok(match fact {
            Fact::Text(text) => RestrictedExpression::new_string(text.clone()),
            Fact::Number(number) => RestrictedExpression::new_long(*number),
            Fact::Is(is) => RestrictedExpression::new_bool(*is),
            Fact::Address(address) => RestrictedExpression::new_ip(address.to_string()),
            Fact::Thing(name) => RestrictedExpression::new_entity_uid(self.uid(name)?),
            Fact::Things(names) => {
                let mut uids = Vec::with_capacity(names.len());
                for name in names {
                    uids.push(RestrictedExpression::new_entity_uid(self.uid(name)?));
                }
                RestrictedExpression::new_set(uids)
            }
        })
    }

    fn uid(&self, name: &Name) -> Result<EntityUid, Undecidable> {
        let kind = self.types.get(name.kind);
        let kind = kind.ok_or_else(|| Undecidable::NoWord(name.kind.to_owned()))?;
        Ok(uid(kind, &name.id))
    }
}

impl fmt::Debug for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rules")
            .field("policies", &self.len())
            .finish_non_exhaustive()
    }
}

/// One policy that is sound, under its own `@id`.
fn checked<'a>(
    text: &'a Text<'a>,
    statement: &Statement<'_>,
    validator: &Validator,
    ids: &mut Ids<'a>,
) -> Result<Policy, Vec<Fault>> {
    let fault = |offset: usize, reason: String| text.fault(statement.offset.saturating_add(offset), reason);
    let policy = parse(statement, &fault)?;
    let anatomy = Anatomy::of(statement.text);
    let claimed = annotation(&policy, "id").ok_or(BadId::None).and_then(|id| {
        ids.claim(id, text, statement.offset)?;
        Ok(PolicyId::new(id))
    });
    let id = claimed.map_err(|reason| {
        let place = anatomy.annotation("id");
        vec![fault(place.map_or(0, |place| place.start), reason.to_string())]
    })?;
    let policy = policy.new_id(id);
    let mut alone = PolicySet::new();
    alone
        .add(policy.clone())
        .map_err(|error| vec![fault(0, error.to_string())])?;
    let result = validator.validate(&alone, ValidationMode::Strict);
    let mut faults: Vec<Fault> = result
        .validation_errors()
        .map(|error| diagnosed(error, &fault))
        .collect();
    let prefix = format!("for policy `{}`, ", policy.id());
    for fault in &mut faults {
        if let Some(rest) = fault.reason.strip_prefix(&prefix) {
            fault.reason = rest.to_owned();
        }
    }
    let never = |warning: &ValidationWarning| {
        matches!(
            warning,
            ValidationWarning::InvalidActionApplication(_) | ValidationWarning::ImpossiblePolicy(_)
        )
    };
    if faults.is_empty() && result.validation_warnings().any(never) {
        let reason = "this policy can never apply: no action in its scope is done by such a principal to such a resource, or its \
                      conditions are false for every request; correct it, or remove it";
        let span = anatomy.effect().unwrap_or(0..0);
        faults.push(fault(span.start, reason.to_owned()).spanning(span.len()));
    }
    if faults.is_empty() { Ok(policy) } else { Err(faults) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    const SCHEMA: &str = r#"
        namespace Shop {
          entity Role;
          entity Shelf;
          entity Clerk in [Role] = { shelves: Set<Shelf>, age: Long };
          entity Goods in [Shelf] = { owner: Clerk };
          action "all";
          action "write" in ["all"];
          action "Buy" in ["write"] appliesTo { principal: Clerk, resource: Goods, context: { from?: ipaddr } };
          action "Look" in ["all"] appliesTo { principal: Clerk, resource: Goods, context: { from?: ipaddr } };
        }
    "#;

    fn name(kind: &'static str, id: &str) -> Name {
        Name {
            kind,
            id: id.to_owned(),
        }
    }

    fn clerk(id: &str, role: &str) -> Thing {
        Thing {
            name: name("Clerk", id),
            attributes: vec![
                ("shelves", Fact::Things(vec![name("Shelf", "tea")])),
                ("age", Fact::Number(i64::MAX)),
            ],
            within: vec![name("Role", role)],
        }
    }

    fn goods(shelf: &str) -> Thing {
        Thing {
            name: name("Goods", "g"),
            attributes: vec![("owner", Fact::Thing(name("Clerk", "ann")))],
            within: vec![name("Shelf", shelf)],
        }
    }

    fn rules(text: &str) -> Result<Rules, Vec<String>> {
        let source = Source {
            name: "shop.cedar".to_owned(),
            text: text.to_owned(),
        };
        Rules::compile(SCHEMA, &[source]).map_err(|faults| faults.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn what_is_not_permitted_is_not() {
        let text = r#"
            @id("boss") permit (principal in Shop::Role::"boss", action in Shop::Action::"all", resource);
            @id("own") permit (principal is Shop::Clerk in Shop::Role::"tea", action in Shop::Action::"write", resource)
                when { resource in principal.shelves };
            @id("not/from") forbid (principal, action == Shop::Action::"Buy", resource)
                when { context has from && context.from.isLoopback() };
        "#;
        let rules = rules(text).unwrap();
        let permitted = |id: &str| Ruling::Permitted(vec![id.to_owned()]);
        let ask = |role: &str, action: &str, shelf: &str| rules.ask(&clerk("bob", role), action, &goods(shelf), &[]);
        assert_eq!(ask("boss", "Buy", "rum"), permitted("boss"));
        assert_eq!(ask("tea", "Buy", "tea"), permitted("own"));
        assert_eq!(ask("tea", "Buy", "rum"), Ruling::NotPermitted);
        assert_eq!(ask("tea", "Look", "tea"), Ruling::NotPermitted);
        assert_eq!(ask("none", "Buy", "tea"), Ruling::NotPermitted);
        let from = [("from", Fact::Address(Ipv4Addr::LOCALHOST.into()))];
        let forbidden = rules.ask(&clerk("bob", "boss"), "Buy", &goods("rum"), &from);
        assert_eq!(forbidden, Ruling::Forbidden(vec!["not/from".to_owned()]));
        assert!(matches!(ask("boss", "Steal", "tea"), Ruling::Undecided(why) if why.contains("Steal")));

        let ever = |role: &str, action: &str| rules.may_ever(&clerk("bob", role), action);
        assert!(ever("boss", "Look") && ever("tea", "Buy"));
        assert!(!ever("tea", "Look") && !ever("none", "Buy") && !ever("boss", "Steal"));
        let always = |role: &str, action: &str| rules.always(&clerk("bob", role), action);
        assert_eq!(always("boss", "Look"), Some("boss"));
        assert_eq!(always("boss", "Buy"), None, "a forbid may apply");
        assert_eq!(always("tea", "Buy"), None, "it has a condition");
        assert_eq!(rules.named("Role"), ["boss".to_owned(), "tea".to_owned()].into());
        assert_eq!(rules.actions()["Buy"], ["all".to_owned(), "write".to_owned()].into());
    }

    #[test]
    fn what_cannot_be_evaluated_denies() {
        let overflow = "when { principal.age + 1 > 0 }";
        let all = r#"@id("all") permit (principal, action, resource);"#;
        let check = |text: &str, is_permitted: bool| {
            let ruling = rules(text).unwrap().ask(&clerk("bob", "x"), "Buy", &goods("tea"), &[]);
            match is_permitted {
                true => assert!(matches!(ruling, Ruling::Permitted(_)), "{text}: {ruling:?}"),
                false => assert!(matches!(ruling, Ruling::Undecided(_)), "{text}: {ruling:?}"),
            }
        };
        check(
            &format!("{all} @id(\"f\") forbid (principal, action, resource) {overflow};"),
            false,
        );
        check(
            &format!("{all} @id(\"p\") permit (principal, action, resource) {overflow};"),
            true,
        );
        check(
            &format!("@id(\"p\") permit (principal, action, resource) {overflow};"),
            false,
        );
    }

    #[test]
    fn faults_have_their_place() {
        let check = |text: &str, expected: &[&str]| {
            let faults = rules(text).unwrap_err();
            assert_eq!(faults.len(), 1, "{faults:?}");
            for part in expected {
                assert!(faults[0].contains(part), "`{part}` is missing from `{}`", faults[0]);
            }
        };
        check("permit (principal, action, resource);", &["shop.cedar:1:1", "@id"]);
        check("\n@id(\"a\") permit (principal, action, resource)", &["shop.cedar:2"]);
        check(
            "@id(\"a\") permit (principal, action == Shop::Action::\"Byu\", resource);",
            &["shop.cedar:1", "Byu"],
        );
        check(
            "@id(\"a\") permit (principal, action, resource) when { principal.height > 1 };",
            &["shop.cedar:1", "height"],
        );
        let twice = "@id(\"a\") permit (principal, action, resource);".repeat(2);
        check(&twice, &["already used at shop.cedar:1:1"]);
    }
}
