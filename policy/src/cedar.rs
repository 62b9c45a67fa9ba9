//! The few things taken from cedar-policy-core, below Cedar's public interface, each because the public way costs more
//! than the decision. All that depends on the exact version of Cedar is in this file; the tests of [`evaluate`] compare
//! what comes of it with the untouched authorizer over untouched policies.
//!
//! [`evaluate`]: crate::evaluate

use cedar_policy::{Context, Policy, RestrictedExpression};
use cedar_policy_core::ast::{self, Expr, ExprKind, Var};
use smol_str::SmolStr;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A value for the context, evaluated. Cloning shares it.
#[derive(Debug, Clone)]
pub(crate) struct Value(ast::Value);

/// What a policy still asks once its scope is known to cover the call.
pub(crate) struct Residual {
    /// The policy with an unconstrained scope: same id, effect, annotations and conditions, which it shares. Where the
    /// scope is true, `true && (true && (true && conditions))` is the value, and the error, of the policy itself.
    pub(crate) policy: Policy,
    /// Whether the conditions look at the context. What does not has one answer per call.
    pub(crate) contextual: bool,
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

// === impl Residual ===

impl Residual {
    pub(crate) fn of(policy: &Policy) -> Self {
        let ast: &ast::Policy = policy.as_ref();
        let conditions = ast.non_scope_constraints_arc();
        let looks_at_context = |expression: &Arc<Expr>| {
            expression
                .subexpressions()
                .any(|part| matches!(part.expr_kind(), ExprKind::Var(Var::Context)))
        };
        let residual = ast::Policy::from_when_clause_annos(
            ast.effect(),
            conditions.cloned().unwrap_or_else(|| Arc::new(Expr::val(true))),
            ast.id().clone(),
            None,
            ast.annotations_arc().clone(),
        );
        Self {
            policy: residual.into(),
            contextual: conditions.is_some_and(looks_at_context),
        }
    }
}

/// The policy without its text, which the authorizer does not need and every copy would copy.
pub(crate) fn without_text(policy: &Policy) -> Policy {
    let ast: &ast::Policy = policy.as_ref();
    ast.clone().into()
}
