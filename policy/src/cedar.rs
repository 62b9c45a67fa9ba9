//! The few things taken from cedar-policy-core, below Cedar's public interface, each because the public way costs more
//! than the decision. All that depends on the exact version of Cedar is in this file; the tests of [`evaluate`] compare
//! what comes of it with the untouched authorizer over untouched policies.
//!
//! [`evaluate`]: crate::evaluate

use crate::anatomy::Anatomy;
use cedar_policy::{Context, Entities, EntityUid, Expression, Policy, RestrictedExpression};
use cedar_policy_core::ast::{self, Expr, ExprKind, Var};
use cedar_policy_core::entities::{self, NoEntitiesSchema, TCComputation};
use cedar_policy_core::extensions::Extensions;
use cedar_policy_core::parser::Loc;
use smol_str::SmolStr;
use std::collections::{BTreeMap, BTreeSet, HashSet};
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

/// A stretch of a policy's text.
#[derive(Debug, Clone)]
pub(crate) struct Stretch {
    /// All of the policy's text, as its file has it.
    pub(crate) statement: Arc<str>,
    /// Where in it the stretch starts, in bytes.
    pub(crate) offset: usize,
}

/// One of the conditions that all have to hold: a part of a `when` between two `&&`, or a whole `unless`.
#[derive(Debug, Clone)]
pub(crate) struct Conjunct {
    pub(crate) text: String,
    pub(crate) place: Option<Stretch>,
    pub(crate) expression: Expression,
    /// What of the context it looks at, as `conn.src` or `hdr["x-tenant"]`; nothing longer of the same is left out.
    pub(crate) looks_at: Vec<(String, Expression)>,
    /// Whether it also looks at the context as a whole.
    pub(crate) looks_at_all: bool,
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
    pub(crate) fn evaluate(expression: RestrictedExpression) -> Result<Self, String> {
        let context = Context::from_pairs([("value".to_owned(), expression)]).map_err(|error| error.to_string())?;
        let context: &ast::Context = context.as_ref();
        let value = match context {
            ast::Context::Value(fields) => fields.get("value").cloned(),
            ast::Context::RestrictedResidual(_) => None,
        };
        value.map(Self).ok_or_else(|| "the value is not known".to_owned())
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
pub(crate) fn entities(nodes: impl IntoIterator<Item = Node>) -> Result<Entities, String> {
    let entities = entities::Entities::new().add_entities(
        nodes.into_iter().map(|node| node.0),
        None::<&NoEntitiesSchema>,
        TCComputation::AssumeAlreadyComputed,
        Extensions::none(),
    );
    let entities = entities.map_err(|error| format!("the entities could not be built: {error}"))?;
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
pub(crate) fn annotation<'a>(policy: &'a Policy, key: &str) -> Option<&'a str> {
    policy
        .annotations()
        .find_map(|(written, value)| (written == key).then_some(value))
}

/// The policy without its text, which the authorizer does not need and every copy would copy.
pub(crate) fn without_text(policy: &Policy) -> Policy {
    let ast: &ast::Policy = policy.as_ref();
    ast.clone().into()
}

/// Where a policy stands, if it was made from text.
pub(crate) fn stretch_of(policy: &Policy) -> Option<Stretch> {
    let ast: &ast::Policy = policy.as_ref();
    ast.loc().map(Stretch::from)
}

/// The conditions of a policy in the order in which they are evaluated.
pub(crate) fn conjuncts(policy: &Policy) -> Vec<Conjunct> {
    let ast: &ast::Policy = policy.as_ref();
    let mut found = Vec::new();
    let mut left: Vec<&Expr> = ast.non_scope_constraints().into_iter().collect();
    while let Some(expression) = left.pop() {
        match expression.expr_kind() {
            // `a is T in b` is two conditions to Cedar and one to whoever wrote it: both halves have its place.
            ExprKind::And { left: first, right }
                if right.source_loc().is_none() || right.source_loc() != expression.source_loc() =>
            {
                left.extend([&**right, &**first]);
            }
            _ => found.push(Conjunct::of(expression)),
        }
    }
    found
}

// === impl Stretch ===

impl From<&Loc> for Stretch {
    fn from(loc: &Loc) -> Self {
        Self {
            statement: Arc::clone(&loc.src),
            offset: loc.start(),
        }
    }
}

// === impl Conjunct ===

impl Conjunct {
    fn of(expression: &Expr) -> Self {
        let text = expression.source_loc().and_then(Loc::snippet);
        let text = text.map_or_else(|| expression.to_string(), str::to_owned);
        let chains: BTreeMap<Vec<&str>, &Expr> = expression
            .subexpressions()
            .filter_map(|part| Some((chain(part)?, part)))
            .collect();
        let longer: BTreeSet<&[&str]> = chains
            .keys()
            .filter_map(|names| names.split_last().map(|(_, shorter)| shorter))
            .collect();
        let longest = chains.iter().filter(|(names, _)| !longer.contains(names.as_slice()));
        let looks = looks_at(expression);
        Self {
            text: Anatomy::of(&text).one_line(),
            place: expression.source_loc().map(Stretch::from),
            looks_at: longest
                .map(|(names, part)| (written(names), Expression::from((*part).clone())))
                .collect(),
            looks_at_all: looks.all > looks.values,
            expression: expression.clone().into(),
        }
    }
}

/// `conn` and `src` for `context.conn.src`; nothing for what is no attribute of the context.
fn chain(mut expression: &Expr) -> Option<Vec<&str>> {
    let mut names = Vec::new();
    loop {
        match expression.expr_kind() {
            ExprKind::GetAttr { expr, attr } => {
                names.push(attr.as_str());
                expression = expr;
            }
            ExprKind::Var(Var::Context) if !names.is_empty() => break,
            _ => return None,
        }
    }
    names.reverse();
    Some(names)
}

/// `conn.src` and `hdr["x-tenant"]`, as a policy writes them after `context.`.
fn written(names: &[&str]) -> String {
    let mut text = String::new();
    for name in names {
        let is_word = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !is_word {
            text.push_str(&format!("[{name:?}]"));
        } else {
            if !text.is_empty() {
                text.push('.');
            }
            text.push_str(name);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_condition_looks_at_is_told_or_is_all() {
        for (condition, looks_at, all, headers) in [
            ("context.host == \"a\"", vec!["host"], false, false),
            ("context.conn.src.isIpv4()", vec!["conn.src"], false, false),
            ("context.hdr has \"x-tenant\"", vec!["hdr"], false, true),
            (
                "context.hdr[\"x-tenant\"] == \"a\"",
                vec!["hdr[\"x-tenant\"]"],
                false,
                true,
            ),
            ("context has host", vec![], true, false),
            ("context has hdr.a", vec![], true, true),
            ("context has host && context.host == \"a\"", vec!["host"], true, false),
            ("principal == principal", vec![], false, false),
        ] {
            let text = format!("permit(principal, action, resource) when {{ ({condition}) || false }};");
            let policy: Policy = text.parse().unwrap();
            let [conjunct] = <[_; 1]>::try_from(conjuncts(&policy)).ok().unwrap();
            let found: Vec<_> = conjunct.looks_at.iter().map(|(name, _)| name.as_str()).collect();
            assert_eq!((found, conjunct.looks_at_all), (looks_at, all), "{condition}");
            assert_eq!(Residual::of(&policy).reads_headers, headers, "{condition}");
        }
    }
}
