//! The conditions of a policy one by one, with their text and what of the context each looks at.
//!
//! Where a condition stands is known to cedar-policy-core alone, below Cedar's public interface: what depends on the exact
//! version of Cedar is in this file, and in `cedar.rs` of the policy crate.

use cedar_policy::{Expression, Policy};
use cedar_policy_core::ast::{self, Expr, ExprKind, Var};
use cedar_policy_core::parser::Loc;
use hoplite_policy::text::Anatomy;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

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

/// One of these conditions, as far as two of them are compared.
#[derive(Debug, Clone)]
pub(crate) struct Condition {
    /// Equal for two that differ only in spaces and comments.
    pub(crate) meaning: String,
    /// Whether there may be a request for which it is neither true nor false.
    pub(crate) may_fail: bool,
}

/// Where a policy stands, if it was made from text.
pub(crate) fn stretch_of(policy: &Policy) -> Option<Stretch> {
    let ast: &ast::Policy = policy.as_ref();
    ast.loc().map(Stretch::from)
}

/// The conditions of a policy in the order in which they are evaluated.
pub(crate) fn conjuncts(policy: &Policy) -> Vec<Conjunct> {
    expressions(policy).into_iter().map(Conjunct::of).collect()
}

/// The conditions of a policy in the order in which they are evaluated, to be compared with others'.
pub(crate) fn conditions(policy: &Policy) -> Vec<Condition> {
    let expressions = expressions(policy).into_iter();
    let condition = |expression: &Expr| Condition {
        meaning: expression.to_string(),
        may_fail: expression.subexpressions().any(may_fail),
    };
    expressions.map(condition).collect()
}

/// Whether an operator can fail where validation found nothing wrong: arithmetic overflows, text may be no address, an
/// entity may not be there. What is not known here may.
fn may_fail(part: &Expr) -> bool {
    const CERTAIN: [&str; 10] = [
        "isIpv4",
        "isIpv6",
        "isLoopback",
        "isMulticast",
        "isInRange",
        "lessThan",
        "lessThanOrEqual",
        "greaterThan",
        "greaterThanOrEqual",
        "toTime",
    ];
    match part.expr_kind() {
        ExprKind::Lit(_)
        | ExprKind::Var(_)
        | ExprKind::If { .. }
        | ExprKind::And { .. }
        | ExprKind::Or { .. }
        | ExprKind::HasAttr { .. }
        | ExprKind::Like { .. }
        | ExprKind::Is { .. }
        | ExprKind::Set(_)
        | ExprKind::Record(_) => false,
        ExprKind::UnaryApp { op, .. } => matches!(op, ast::UnaryOp::Neg),
        ExprKind::BinaryApp { op, .. } => matches!(
            op,
            ast::BinaryOp::Add | ast::BinaryOp::Sub | ast::BinaryOp::Mul | ast::BinaryOp::GetTag
        ),
        // A literal that is no address does not validate.
        ExprKind::ExtensionFunctionApp { fn_name, args } => {
            !CERTAIN.contains(&fn_name.to_string().as_str())
                && !args.iter().all(|arg| matches!(arg.expr_kind(), ExprKind::Lit(_)))
        }
        ExprKind::GetAttr { .. } => chain(part).is_none(),
        _ => true,
    }
}

fn expressions(policy: &Policy) -> Vec<&Expr> {
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
            _ => found.push(expression),
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
        let (all, values) = looks_at(expression);
        Self {
            text: Anatomy::of(&text).one_line(),
            place: expression.source_loc().map(Stretch::from),
            looks_at: longest
                .map(|(names, part)| (written(names), Expression::from((*part).clone())))
                .collect(),
            looks_at_all: all > values,
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

/// How often an expression looks at the context, and how often of these at the value of an attribute of it.
fn looks_at(expression: &Expr) -> (usize, usize) {
    let (mut all, mut values) = (0, 0);
    for part in expression.subexpressions() {
        match part.expr_kind() {
            ExprKind::Var(Var::Context) => all += 1,
            ExprKind::GetAttr { expr, .. } if matches!(expr.expr_kind(), ExprKind::Var(Var::Context)) => values += 1,
            _ => {}
        }
    }
    (all, values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_condition_looks_at_is_told_or_is_all() {
        for (condition, looks_at, all) in [
            ("context.host == \"a\"", vec!["host"], false),
            ("context.conn.src.isIpv4()", vec!["conn.src"], false),
            ("context.hdr has \"x-tenant\"", vec!["hdr"], false),
            ("context.hdr[\"x-tenant\"] == \"a\"", vec!["hdr[\"x-tenant\"]"], false),
            ("context has host", vec![], true),
            ("context has hdr.a", vec![], true),
            ("context has host && context.host == \"a\"", vec!["host"], true),
            ("principal == principal", vec![], false),
        ] {
            let text = format!("permit(principal, action, resource) when {{ ({condition}) || false }};");
            let policy: Policy = text.parse().unwrap();
            let [conjunct] = <[_; 1]>::try_from(conjuncts(&policy)).ok().unwrap();
            let found: Vec<_> = conjunct.looks_at.iter().map(|(name, _)| name.as_str()).collect();
            assert_eq!((found, conjunct.looks_at_all), (looks_at, all), "{condition}");
        }
    }
}
