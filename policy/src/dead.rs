//! Finds the dead words of a policy: literals that no request, clock or identity ever equals, attributes that nothing has, and
//! policies that apply to nothing. Each is a fault that keeps a policy set from being loaded.

use crate::anatomy::{Anatomy, Span};
use crate::cedar::HEADERS;
use crate::headers::SelectedHeaders;
use crate::routes::RouteTable;
use crate::schema::VOCABULARY;
use crate::source::HEADERS_FILE;
use crate::values::{ANY_HEADER, DeadText, NoSuchName, Values, check_name, check_route, values_of};
use cedar_policy::pst::{BinaryOp, Clause, Expr, Literal, PatternElem, UnaryOp, Var};
use cedar_policy::{
    ActionConstraint, EntityUid, Policy, PrincipalConstraint, ResourceConstraint, ValidationResult, ValidationWarning,
};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// How many seconds a day has.
const DAY_SECONDS: i64 = 86_400;
/// Milliseconds, in which Cedar counts.
const SECOND: i64 = 1_000;

/// A fault within a policy: where in its text, and what is wrong with what to do.
pub(crate) type Found = (Option<Span>, String);

/// Why a part of a condition is dead.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Dead {
    #[error(transparent)]
    Text(#[from] DeadText),
    #[error("there is no `{0}`, so this is never so; {1}")]
    Attribute(String, String),
    #[error("`{0}` is from {1} to {2}, and this is the same for every request; compare it with one of these")]
    Number(String, String, String),
    #[error(
        "`context.conn.src` is one address and never equals `{0}`; write `context.conn.src.isInRange(ip(\"{0}\"))`"
    )]
    RangeEquals(String),
    #[error("no connection comes from `{0}`: an IPv4 peer is given as IPv4; write it as IPv4, as `10.0.0.0/8`")]
    Mapped(String),
    #[error("`{0}` is in whole seconds and never equals this; leave out the fraction, or compare with `<` and `>=`")]
    Fraction(String),
    #[error("`{0}` is midnight and never equals `{1}`; write the date alone")]
    NotMidnight(String, String),
}

/// The names that no request has, whatever routes there are; of routes those of no shape that one could have are left to
/// [`routes`].
pub(crate) fn names(policy: &Policy, anatomy: &Anatomy<'_>) -> Vec<Found> {
    named(policy, anatomy, &|uid| check_name(uid))
}

/// The routes that the table does not have.
pub(crate) fn routes(policy: &Policy, text: &str, table: &RouteTable) -> Vec<Found> {
    let check = |uid: &EntityUid| check_route(uid, table);
    // Most have none to tell of, and then nobody needs to know where their words stand.
    if policy.entity_literals().iter().all(|uid| check(uid).is_ok()) {
        return Vec::new();
    }
    named(policy, &Anatomy::of(text), &check)
}

fn named(policy: &Policy, anatomy: &Anatomy<'_>, check: &dyn Fn(&EntityUid) -> Result<(), NoSuchName>) -> Vec<Found> {
    let mut names = policy.entity_literals();
    names.sort_by_cached_key(ToString::to_string);
    names.dedup();
    let faults = names.iter().filter_map(|uid| {
        let why = check(uid).err()?;
        let span = anatomy.entity(&uid.type_name().to_string(), uid.id().unescaped());
        Some((span, why.message()))
    });
    faults.collect()
}

/// What in a policy's conditions is never so, or the same for every request.
pub(crate) fn conditions(policy: &Policy, anatomy: &Anatomy<'_>, headers: &SelectedHeaders) -> Vec<Found> {
    let Ok(policy) = policy.to_pst() else {
        return Vec::new();
    };
    let mut found = Search {
        anatomy,
        headers,
        found: Vec::new(),
    };
    for clause in policy.body().clauses() {
        let (Clause::When(condition) | Clause::Unless(condition)) = clause;
        found.look(condition);
    }
    found.found
}

/// What the validator says of a policy that can never apply. It is told of whole policies; what is dead within one, it does
/// not tell.
pub(crate) fn applies_to_nothing(policy: &Policy, anatomy: &Anatomy<'_>, result: &ValidationResult) -> Vec<Found> {
    let never = |warning: &&ValidationWarning| matches!(warning, ValidationWarning::InvalidActionApplication(_));
    if result.validation_warnings().any(|warning| never(&warning)) {
        let message = format!(
            "this policy can never apply: no action in its scope is done by such a principal to such a resource; {}",
            applicable(policy)
        );
        return vec![(anatomy.scope("action"), message)];
    }
    let impossible = |warning: &ValidationWarning| matches!(warning, ValidationWarning::ImpossiblePolicy(_));
    if result.validation_warnings().any(impossible) {
        let message = "this policy can never apply: its scope and conditions are false for every request; remove it, or the \
                       condition that contradicts";
        return vec![(anatomy.effect(), message.to_owned())];
    }
    Vec::new()
}

/// What to write so that a policy applies to something.
fn applicable(policy: &Policy) -> &'static str {
    let is_connect = |uid: &EntityUid| uid.id().unescaped() == "connect";
    let (connects, requests) = match policy.action_constraint() {
        ActionConstraint::Any => (true, true),
        ActionConstraint::Eq(uid) => (is_connect(&uid), !is_connect(&uid)),
        ActionConstraint::In(uids) => (uids.iter().any(is_connect), !uids.iter().all(is_connect)),
    };
    match policy.principal_constraint() {
        PrincipalConstraint::Eq(uid) if *uid.type_name() != VOCABULARY.workload => {
            return "a principal `==` only a `Hoplite::Workload`; for a path or trust domain write `in`";
        }
        _ => {}
    }
    match policy.resource_constraint() {
        ResourceConstraint::Eq(uid) if requests && *uid.type_name() == VOCABULARY.service => {
            "an HTTP request is to a route of a service: write `resource in`"
        }
        _ if connects && !requests => {
            "`connect` is to a service, not to a route: write `resource == Hoplite::Service::\"…\"`"
        }
        _ => "`connect` is by a Workload to a Service, every other action by a Workload to a Route",
    }
}

struct Search<'a> {
    anatomy: &'a Anatomy<'a>,
    headers: &'a SelectedHeaders,
    found: Vec<Found>,
}

// === impl Search ===

impl Search<'_> {
    /// An expression and all within it.
    fn look(&mut self, expr: &Expr) {
        match expr {
            Expr::HasAttr { expr: record, .. } => self.has(expr, record),
            Expr::Like { expr, pattern } => self.like(expr, pattern),
            Expr::BinaryOp { op, left, right } => self.compare(*op, left, right),
            _ => {}
        }
        match expr {
            Expr::UnaryOp { expr, .. }
            | Expr::GetAttr { expr, .. }
            | Expr::HasAttr { expr, .. }
            | Expr::Like { expr, .. } => self.look(expr),
            Expr::BinaryOp { left, right, .. } => {
                self.look(left);
                self.look(right);
            }
            Expr::Is { expr, in_expr, .. } => {
                self.look(expr);
                in_expr.iter().for_each(|expr| self.look(expr));
            }
            Expr::IfThenElse {
                cond,
                then_expr,
                else_expr,
            } => [cond, then_expr, else_expr]
                .into_iter()
                .for_each(|expr| self.look(expr)),
            Expr::Set(elements) => elements.iter().for_each(|expr| self.look(expr)),
            Expr::Record(fields) => fields.values().for_each(|expr| self.look(expr)),
            _ => {}
        }
    }

    fn tell(&mut self, span: Option<Span>, dead: impl Into<Dead>) {
        self.found.push((span, dead.into().to_string()));
    }

    /// `has` of an attribute that the schema does not have is false, and no error.
    fn has(&mut self, test: &Expr, record: &Expr) {
        let Expr::HasAttr { attrs, .. } = test else { return };
        let Some(mut word) = word_of(record) else { return };
        for attr in attrs.iter() {
            let whole = format!("{word}.{attr}");
            let known = match word.as_str() {
                "context.hdr" => self.headers.iter().any(|name| name == attr.as_str()),
                "context" if attr == HEADERS => !self.headers.is_empty(),
                _ => values_of(&whole).is_some(),
            };
            if !known {
                let span = self.anatomy.after("has", attr);
                let there = attributes(&word);
                let remedy = match there.is_empty() {
                    _ if whole.starts_with("context.hdr") => format!("select the header in `{HEADERS_FILE}`"),
                    true => format!("`{word}` has no attributes"),
                    false => format!("`{word}` has {}", there.join(", ")),
                };
                return self.tell(span, Dead::Attribute(whole, remedy));
            }
            word = whole;
        }
    }

    fn like(&mut self, subject: &Expr, pattern: &[PatternElem]) {
        let Some((_, Values::Text(kind))) = subject_of(subject) else {
            return;
        };
        let mut elements: Vec<Option<char>> = Vec::new();
        for element in pattern {
            let element = match element {
                PatternElem::Char(c) => Some(*c),
                PatternElem::Wildcard => None,
            };
            // Two wildcards are one, and looking for a match would take for ever with many.
            if element.is_some() || elements.last() != Some(&None) {
                elements.push(element);
            }
        }
        if let Err(dead) = kind.check_pattern(&elements) {
            self.tell(self.anatomy.pattern(pattern), dead);
        }
    }

    fn compare(&mut self, op: BinaryOp, left: &Expr, right: &Expr) {
        match op {
            BinaryOp::Contains => {
                if let (Expr::Set(elements), Some(subject)) = (left, subject_of(right)) {
                    for element in elements {
                        self.literal(BinaryOp::Eq, &subject, element);
                    }
                }
            }
            BinaryOp::IsInRange => {
                if let Some((_, Values::Address)) = subject_of(left)
                    && let Some(range) = constructed(UnaryOp::Ip, right)
                    && is_mapped(range)
                {
                    let span = self.anatomy.condition_string(range);
                    self.tell(span, Dead::Mapped(range.to_owned()));
                }
            }
            _ => {
                if let Some(subject) = subject_of(left) {
                    self.literal(op, &subject, right);
                } else if let Some(subject) = subject_of(right) {
                    self.literal(flipped(op), &subject, left);
                }
            }
        }
    }

    /// A subject compared with what may be a literal.
    fn literal(&mut self, op: BinaryOp, (word, values): &(String, Values), other: &Expr) {
        let equals = matches!(op, BinaryOp::Eq | BinaryOp::NotEq);
        match (values, other) {
            (Values::Text(kind), Expr::Literal(Literal::String(text))) if equals => {
                if let Err(dead) = kind.check(text) {
                    self.tell(self.anatomy.condition_string(text), dead);
                }
            }
            (Values::Number(least, most), _) => {
                if let Some(number) = number(other)
                    && is_constant(op, (*least, *most, 1), number)
                {
                    let span = self.anatomy.nth(&number.unsigned_abs().to_string(), 0);
                    self.tell(span, Dead::Number(word.clone(), least.to_string(), most.to_string()));
                }
            }
            (Values::TimeOfDay, _) => {
                let Some(text) = constructed(UnaryOp::Duration, other) else {
                    return;
                };
                let Some(length) = milliseconds(text) else { return };
                let last = (DAY_SECONDS - 1) * SECOND;
                let span = self.anatomy.condition_string(text);
                if is_constant(op, (0, last, SECOND), length) {
                    self.tell(
                        span,
                        Dead::Number(word.clone(), "0h".to_owned(), "23h59m59s".to_owned()),
                    );
                } else if equals && length % SECOND != 0 {
                    self.tell(span, Dead::Fraction(word.clone()));
                }
            }
            (Values::Instant | Values::Midnight, _) => {
                let Some(text) = constructed(UnaryOp::Datetime, other) else {
                    return;
                };
                let span = self.anatomy.condition_string(text);
                let (_, clock) = text.split_once('T').unwrap_or((text, ""));
                let fraction = clock.split_once('.').map_or("", |(_, rest)| rest);
                if text.get(..4).is_some_and(|year| year < "1970") {
                    let range = ("the year 1970".to_owned(), "the year 9999".to_owned());
                    self.tell(span, Dead::Number(word.clone(), range.0, range.1));
                } else if equals && fraction.bytes().any(|b| matches!(b, b'1'..=b'9')) && fraction.ends_with('Z') {
                    self.tell(span, Dead::Fraction(word.clone()));
                } else if equals
                    && *values == Values::Midnight
                    && clock.ends_with('Z')
                    && clock.bytes().any(|b| matches!(b, b'1'..=b'9'))
                {
                    self.tell(span, Dead::NotMidnight(word.clone(), text.to_owned()));
                }
            }
            (Values::Address, _) if equals => {
                let Some(text) = constructed(UnaryOp::Ip, other) else {
                    return;
                };
                let span = self.anatomy.condition_string(text);
                if is_mapped(text) {
                    self.tell(span, Dead::Mapped(text.to_owned()));
                } else if text.contains('/') && !text.ends_with("/32") && !text.ends_with("/128") {
                    self.tell(span, Dead::RangeEquals(text.to_owned()));
                }
            }
            _ => {}
        }
    }
}

/// `context.seg.s1` as it is written; nothing for what is computed.
fn word_of(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Var(Var::Context) => Some("context".to_owned()),
        Expr::Var(Var::Principal) => Some("principal".to_owned()),
        Expr::Var(Var::Resource) => Some("resource".to_owned()),
        Expr::Var(Var::Action) => Some("action".to_owned()),
        Expr::GetAttr { expr, attr } => {
            let record = word_of(expr)?;
            if record == "context.hdr" {
                return Some(ANY_HEADER.to_owned());
            }
            Some(format!("{record}.{attr}"))
        }
        _ => None,
    }
}

/// What is compared, in words for people, and what it can be.
fn subject_of(expr: &Expr) -> Option<(String, Values)> {
    if let Expr::UnaryOp { op, expr } = expr {
        let (word, values) = subject_of(expr)?;
        let last = DAY_SECONDS - 1;
        return match (op, values) {
            (UnaryOp::ToDate, Values::Instant) => Some((format!("{word}.toDate()"), Values::Midnight)),
            (UnaryOp::ToTime, Values::Instant) => Some((format!("{word}.toTime()"), Values::TimeOfDay)),
            (UnaryOp::ToHours, Values::TimeOfDay) => Some((format!("{word}.toHours()"), Values::Number(0, 23))),
            (UnaryOp::ToMinutes, Values::TimeOfDay) => {
                Some((format!("{word}.toMinutes()"), Values::Number(0, last / 60)))
            }
            (UnaryOp::ToSeconds, Values::TimeOfDay) => Some((format!("{word}.toSeconds()"), Values::Number(0, last))),
            (UnaryOp::ToMilliseconds, Values::TimeOfDay) => {
                Some((format!("{word}.toMilliseconds()"), Values::Number(0, last * SECOND)))
            }
            _ => None,
        };
    }
    // What an hour later is, is an instant too.
    if let Expr::BinaryOp {
        op: BinaryOp::Offset,
        left,
        ..
    } = expr
    {
        let (word, values) = subject_of(left)?;
        return (values == Values::Instant).then(|| (format!("{word}.offset(…)"), values));
    }
    let word = word_of(expr)?;
    let values = values_of(&word)?;
    Some((word, values))
}

/// The attributes of a record, in backticks.
fn attributes(word: &str) -> Vec<String> {
    let of = |row: &(&str, Values)| {
        let attribute = row.0.strip_prefix(word)?.strip_prefix('.')?;
        (!attribute.contains('.') && attribute != HEADERS).then(|| format!("`{attribute}`"))
    };
    let all: BTreeSet<String> = crate::values::VALUES.iter().filter_map(of).collect();
    all.into_iter().collect()
}

/// The text of `ip("…")`, `datetime("…")` or `duration("…")`.
fn constructed(constructor: UnaryOp, expr: &Expr) -> Option<&str> {
    match expr {
        Expr::UnaryOp { op, expr } if *op == constructor => match &**expr {
            Expr::Literal(Literal::String(text)) => Some(text),
            _ => None,
        },
        _ => None,
    }
}

fn number(expr: &Expr) -> Option<i64> {
    match expr {
        Expr::Literal(Literal::Long(number)) => Some(*number),
        Expr::UnaryOp { op: UnaryOp::Neg, expr } => number(expr)?.checked_neg(),
        _ => None,
    }
}

/// Whether a comparison with a literal is never so, or with one so far outside that a word is likely to be wrong. The next
/// one outside is a bound like any other: `context.seg.n > -1`.
fn is_constant(op: BinaryOp, (least, most, step): (i64, i64, i64), literal: i64) -> bool {
    let outside = literal < least || literal > most;
    let far = literal < least.saturating_sub(step) || literal > most.saturating_add(step);
    match op {
        BinaryOp::Eq | BinaryOp::NotEq => outside,
        BinaryOp::Less => literal <= least || far,
        BinaryOp::LessEq => literal < least || far,
        BinaryOp::Greater => literal >= most || far,
        BinaryOp::GreaterEq => literal > most || far,
        _ => false,
    }
}

fn flipped(op: BinaryOp) -> BinaryOp {
    match op {
        BinaryOp::Less => BinaryOp::Greater,
        BinaryOp::LessEq => BinaryOp::GreaterEq,
        BinaryOp::Greater => BinaryOp::Less,
        BinaryOp::GreaterEq => BinaryOp::LessEq,
        op => op,
    }
}

/// `1d2h3m4s5ms` in milliseconds; nothing for what is no duration or too long to count.
fn milliseconds(text: &str) -> Option<i64> {
    let (sign, mut rest) = text.strip_prefix('-').map_or((1, text), |rest| (-1, rest));
    let mut sum = 0_i64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let (amount, unit) = rest.split_at_checked(digits)?;
        let end = unit.find(|c: char| c.is_ascii_digit()).unwrap_or(unit.len());
        let (unit, after) = unit.split_at_checked(end)?;
        let factor = match unit {
            "d" => DAY_SECONDS * SECOND,
            "h" => 3_600 * SECOND,
            "m" => 60 * SECOND,
            "s" => SECOND,
            "ms" => 1,
            _ => return None,
        };
        sum = sum.checked_add(amount.parse::<i64>().ok()?.checked_mul(factor)?)?;
        rest = after;
    }
    sum.checked_mul(sign)
}

/// Whether an address or range is of IPv4-mapped IPv6.
fn is_mapped(text: &str) -> bool {
    let (address, length) = text.split_once('/').unwrap_or((text, "128"));
    let is_within = length.parse::<u8>().is_ok_and(|length| length >= 96);
    matches!(address.parse(), Ok(IpAddr::V6(address)) if address.to_ipv4_mapped().is_some()) && is_within
}

#[cfg(test)]
mod tests;
