//! The few things taken from cedar-policy-core, below Cedar's public interface, each because the public way costs more
//! than the decision. All that a decision needs of the exact version of Cedar is in this file; the tests of [`evaluate`] compare
//! what comes of it with the untouched authorizer over untouched policies.
//!
//! [`evaluate`]: crate::evaluate

use crate::undecidable::Undecidable;
use cedar_policy::{Context, Entities, EntityUid, Policy, RestrictedExpression};
use cedar_policy_core::ast::{self, Expr, ExprKind, Var};
use cedar_policy_core::entities::{self, NoEntitiesSchema, TCComputation};
use cedar_policy_core::extensions::Extensions;
use smol_str::SmolStr;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

/// The attribute of the context that holds the selected headers.
pub(crate) const HEADERS: &str = "hdr";

/// A value for the context, evaluated. Cloning shares it.
#[derive(Debug, Clone)]
pub(crate) struct Value(ast::Value);

/// An entity without attributes, with everything that it is in. Cloning shares it.
#[derive(Debug, Clone)]
pub(crate) struct Node(Arc<ast::Entity>);

/// What a policy still asks once its scope is known to cover the call.
pub(crate) struct Residual {
    /// The policy with an unconstrained scope: same id, effect, annotations and conditions, which it shares. Where the
    /// scope is true, `true && (true && (true && conditions))` is the value, and the error, of the policy itself.
    pub(crate) policy: Policy,
    /// Whether the conditions look at the context. What does not has one answer per call.
    pub(crate) contextual: bool,
    /// Whether they may look at a selected header.
    pub(crate) reads_headers: bool,
}

// === impl Value ===

impl Value {
    pub(crate) fn string(text: &str) -> Self {
        Self(ast::Value::from(text))
    }

    pub(crate) fn long(number: i64) -> Self {
        Self(ast::Value::from(number))
    }

    /// Later fields win over earlier ones of the same name.
    pub(crate) fn record<'a>(fields: impl IntoIterator<Item = (&'a str, Self)>) -> Self {
        Self(ast::Value::record_arc(Arc::new(map(fields)), None))
    }

    /// Evaluates what has no cheaper constructor: an address or an instant costs some 5 µs.
    pub(crate) fn evaluate(expression: RestrictedExpression) -> Result<Self, Undecidable> {
        let context = Context::from_pairs([("value".to_owned(), expression)]).map_err(Undecidable::cedar)?;
        let context: &ast::Context = context.as_ref();
        let value = match context {
            ast::Context::Value(fields) => fields.get("value").cloned(),
            ast::Context::RestrictedResidual(_) => None,
        };
        value.map(Self).ok_or(Undecidable::UnknownValue)
    }
}

/// A context of evaluated values. `Context::from_pairs` would evaluate them again, at 14 µs a request.
pub(crate) fn context<'a>(fields: impl IntoIterator<Item = (&'a str, Value)>) -> Context {
    ast::Context::Value(Arc::new(map(fields))).into()
}

fn map<'a>(fields: impl IntoIterator<Item = (&'a str, Value)>) -> BTreeMap<SmolStr, ast::Value> {
    fields
        .into_iter()
        .map(|(name, value)| (SmolStr::new(name), value.0))
        .collect()
}

// === impl Node ===

impl Node {
    /// `ancestors` are all of them, at any distance: nothing is added to them later.
    pub(crate) fn new(uid: EntityUid, ancestors: impl IntoIterator<Item = EntityUid>) -> Self {
        Self(Arc::new(ast::Entity::new_with_attr_partial_value(
            uid.into(),
            [],
            HashSet::new(),
            ancestors.into_iter().map(Into::into).collect(),
            [],
        )))
    }

    pub(crate) fn uid(&self) -> EntityUid {
        self.0.uid().clone().into()
    }
}

/// The entities of a call. Working out who is in what, which each of them knows already, would cost a third of a
/// decision about a new call: measured, 18 of 54 µs.
pub(crate) fn entities(nodes: impl IntoIterator<Item = Node>) -> Result<Entities, Undecidable> {
    let entities = entities::Entities::new().add_entities(
        nodes.into_iter().map(|node| node.0),
        None::<&NoEntitiesSchema>,
        TCComputation::AssumeAlreadyComputed,
        Extensions::none(),
    );
    let entities = entities.map_err(|error| Undecidable::Entities(Arc::new(error)))?;
    Ok(entities.into())
}

// === impl Residual ===

impl Residual {
    pub(crate) fn of(policy: &Policy) -> Self {
        let ast: &ast::Policy = policy.as_ref();
        let conditions = ast.non_scope_constraints_arc();
        let looks = conditions.map(|conditions| looks_at(conditions));
        let residual = ast::Policy::from_when_clause_annos(
            ast.effect(),
            conditions.cloned().unwrap_or_else(|| Arc::new(Expr::val(true))),
            ast.id().clone(),
            None,
            ast.annotations_arc().clone(),
        );
        Self {
            policy: residual.into(),
            contextual: looks.is_some_and(|looks| looks.all > 0),
            reads_headers: looks.is_some_and(|looks| looks.headers || looks.all > looks.values + looks.presence),
        }
    }
}

/// How an expression looks at the context.
#[derive(Debug, Clone, Copy, Default)]
struct Looks {
    /// How often.
    all: usize,
    /// How often at the value of an attribute of it.
    values: usize,
    /// How often at whether it has an attribute, which no value tells.
    presence: usize,
    /// Whether at the selected headers.
    headers: bool,
}

fn looks_at(expression: &Expr) -> Looks {
    let mut looks = Looks::default();
    for part in expression.subexpressions() {
        match part.expr_kind() {
            ExprKind::Var(Var::Context) => looks.all += 1,
            ExprKind::GetAttr { expr, attr } if matches!(expr.expr_kind(), ExprKind::Var(Var::Context)) => {
                looks.values += 1;
                looks.headers |= attr == HEADERS;
            }
            ExprKind::HasAttr { expr, attr } if matches!(expr.expr_kind(), ExprKind::Var(Var::Context)) => {
                looks.presence += 1;
                looks.headers |= attr == HEADERS;
            }
            ExprKind::ExtHasAttr { expr, attrs } if matches!(expr.expr_kind(), ExprKind::Var(Var::Context)) => {
                looks.presence += 1;
                looks.headers |= attrs.first() == HEADERS;
            }
            _ => {}
        }
    }
    looks
}

/// The value of a policy's annotation. Cedar's own way to ask parses the key each time: in a profile, a tenth of compiling.
pub fn annotation<'a>(policy: &'a Policy, key: &str) -> Option<&'a str> {
    policy
        .annotations()
        .find_map(|(written, value)| (written == key).then_some(value))
}

/// The policy without its text, which the authorizer does not need and every copy would copy.
pub(crate) fn without_text(policy: &Policy) -> Policy {
    let ast: &ast::Policy = policy.as_ref();
    ast.clone().into()
}

/// The text a policy was parsed from, which all that was taken from it share.
#[cfg(test)]
pub(crate) fn shared_text(policy: &Policy) -> Option<Arc<str>> {
    let ast: &ast::Policy = policy.as_ref();
    ast.loc().map(|loc| Arc::clone(&loc.src))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_may_look_at_a_header_is_known_to() {
        for (condition, headers) in [
            ("context.host == \"a\"", false),
            ("context.conn.src.isIpv4()", false),
            ("context.hdr has \"x-tenant\"", true),
            ("context.hdr[\"x-tenant\"] == \"a\"", true),
            ("context has host", false),
            ("context has hdr.a", true),
            ("context has host && context.host == \"a\"", false),
            ("principal == principal", false),
        ] {
            let text = format!("permit(principal, action, resource) when {{ ({condition}) || false }};");
            let policy: Policy = text.parse().unwrap();
            assert_eq!(Residual::of(&policy).reads_headers, headers, "{condition}");
        }
    }
}
