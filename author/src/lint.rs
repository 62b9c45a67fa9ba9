//! What is legal in a policy and still a mistake: faults for people, which fail a check and a publication, not a proxy.
//!
//! A proxy that has been given a policy set must enforce it or say that it cannot, so [`Snapshot::compile`](hoplite_policy::Snapshot::compile) is strict about
//! what a policy *means*, dead words among it, and silent about what is unwise. This is the rest:
//!
//! | what | why it fails a check |
//! |---|---|
//! | no `@owner` | nobody can be asked about it |
//! | an unscoped permit that is not security's | see below |
//! | text that is a path or a SPIFFE ID | one path has many spellings, and `like` crosses `/`: routes, segments and `in` do not |
//! | a service that neither routes nor modules name | misspelt, it is a silent "no", and in a forbid a silent "yes" |
//! | `:id` or `*` in a route, `%20` or `{id}` as a segment | they are compared by their letters |
//! | an address range with host bits | it covers more than is written |
//! | a forbid that may fail to evaluate | a forbid that cannot be evaluated denies whoever it meets |
//! | characters that hide, reorder or imitate others | what is reviewed is not what is enforced |
//!
//! **Unscoped** is a permit whose scope does not say what it opens, or does not say to whom: its `resource` is not `==` or
//! `in` a service or route; or its `principal` is not `==` or `in` anything, and its `resource` is more than the one
//! route that it `==`s. So anybody may be let to `GET /health` by its team, and to a whole service by security alone.
//! Conditions do not count: they can be wrong, and an index does not see them. Security is the owner of a module with
//! `security = true`, or where there are no modules, [`SECURITY_OWNER`](hoplite_policy::text::SECURITY_OWNER).
//!
//! There is no lint for cycles among entities, because none can be written: a policy directory holds no entity data. What
//! a request's principal and resource are in is worked out from their names (`request.rs`), each parent shorter than its
//! child.

use crate::lookalike::{Lookalikes, imitation};
use cedar_policy::pst::{BinaryOp, Clause, Expr, Literal, PatternElem, UnaryOp, Var};
use cedar_policy::{
    Effect, EntityUid, Policy, PolicySet, PrincipalConstraint, ResourceConstraint, ValidationMode, ValidationWarning,
    Validator,
};
use hoplite_identity::ServiceName;
use hoplite_policy::files::{BREAK_GLASS_MODULE, MODULES_FILE, ROUTES_FILE};
use hoplite_policy::text::{
    Anatomy, COMPILE_STACK_BYTES, FAULTS_MAX, Modules, Span, Statement, Team, Text, VOCABULARY, WrittenParameter,
    annotation, diagnosed, enough, hides, on_stack, parse, statements, validator,
};
use hoplite_policy::{Fault, RouteTable, SelectedHeaders, Source};
use std::borrow::Cow;
use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Finds what is legal and still a mistake, in the order of sources and of their text. For sources that
/// [`Snapshot::compile`](hoplite_policy::Snapshot::compile) accepts; of others it says what it can. The first thousand are told.
pub fn lint(sources: &[Source]) -> Vec<Fault> {
    on_stack(COMPILE_STACK_BYTES, || lint_here(sources)).unwrap_or_else(|error| {
        let file = sources.first().map_or("", |source| &source.name);
        vec![Fault::whole(
            file,
            format!("the policies could not be checked: {error}; try again"),
        )]
    })
}

fn lint_here(sources: &[Source]) -> Vec<Fault> {
    let mut sources: Vec<&Source> = sources.iter().collect();
    sources.sort_by(|a, b| a.name.cmp(&b.name));
    let modules = Modules::of(&sources).unwrap_or_default();
    let named = Named::of(&sources, &modules);
    // What of these cannot be read, compiling has told.
    let headers = SelectedHeaders::of(&sources).unwrap_or_default();
    let validator = validator(&headers).unwrap_or(Cow::Borrowed(&VOCABULARY.validator));
    let mut lookalikes = Lookalikes::default();
    let mut faults = Vec::new();
    for source in &sources {
        let text = Text::new(&source.name, &source.text);
        let mut found = unseen(&text);
        let grants = source
            .name
            .split_once('/')
            .is_some_and(|(folder, _)| folder == BREAK_GLASS_MODULE);
        if grants {
            let message = "a grant is signed by two people and not written into a file; remove it";
            found.push(text.fault(0, message));
        }
        if source.name == ROUTES_FILE {
            found.extend(literal_parameters(&text));
        }
        if source.name.ends_with(".cedar") {
            let team = modules.team(&source.name).unwrap_or(Team::Anyone);
            for statement in statements(&source.text) {
                if found.len() > FAULTS_MAX {
                    break;
                }
                if let Some(mut review) = Review::new(&text, &statement, team) {
                    review.all(&named, &validator, &mut lookalikes);
                    found.append(&mut review.faults);
                }
            }
        }
        found.sort_by_key(|fault| (fault.line, fault.column));
        found.dedup();
        faults.append(&mut found);
        if faults.len() > FAULTS_MAX {
            return enough(faults, &source.name);
        }
    }
    faults
}

/// Characters of a file, comments included, that show a reader something else than what is enforced.
fn unseen(source: &Text<'_>) -> Vec<Fault> {
    let found = source.text.char_indices().filter(|&(_, c)| hides(c));
    found
        .take(FAULTS_MAX + 1)
        .map(|(at, c)| {
            let reason = format!(
                "the character `{}` cannot be seen, or changes what is seen; remove it",
                c.escape_unicode()
            );
            source.fault(at, reason).spanning(c.len_utf8())
        })
        .collect()
}

/// The services that are named outside policies; nobody can say what is misspelt where there is no such file.
struct Named(Option<HashSet<ServiceName>>);

// === impl Named ===

impl Named {
    fn of(sources: &[&Source], modules: &Modules) -> Self {
        let routes = RouteTable::of_sources(sources).unwrap_or_default();
        let is_table = |source: &Source| source.name == ROUTES_FILE || source.name == MODULES_FILE;
        let named = || routes.services().chain(modules.services()).cloned().collect();
        Self(sources.iter().any(|source| is_table(source)).then(named))
    }

    /// What to say of a name of a service, or of a route of one, that stands in no other file.
    fn unknown(&self, uid: &EntityUid) -> Option<String> {
        let (kind, id) = (uid.type_name(), uid.id().unescaped());
        let service = match () {
            () if *kind == VOCABULARY.service => id,
            () if *kind == VOCABULARY.route => id.split(':').next().unwrap_or_default(),
            () => return None,
        };
        let named = self.0.as_ref()?;
        (!named.contains(service)).then(|| {
            format!(
                "neither `{ROUTES_FILE}` nor `{MODULES_FILE}` names the service `{service}`; if it is not misspelt, add \
                 `[{service}]` with its routes to `{ROUTES_FILE}`, or with `routes = []` if it has none"
            )
        })
    }
}

/// One policy and what is found in it.
struct Review<'a> {
    source: &'a Text<'a>,
    offset: usize,
    policy: Policy,
    conditions: Vec<Clause>,
    anatomy: Anatomy<'a>,
    team: Team<'a>,
    faults: Vec<Fault>,
}

// === impl Review ===

impl<'a> Review<'a> {
    /// Nothing for what is no policy; compiling it says so.
    fn new(source: &'a Text<'a>, statement: &Statement<'a>, team: Team<'a>) -> Option<Self> {
        let policy = parse(statement, &|_, reason| Fault::whole(source.file, reason)).ok()?;
        let conditions = policy.to_pst().ok()?.body().clauses().clone();
        Some(Self {
            source,
            offset: statement.offset,
            policy,
            conditions,
            anatomy: Anatomy::of(statement.text),
            team,
            faults: Vec::new(),
        })
    }

    fn all(&mut self, named: &Named, validator: &Validator, lookalikes: &mut Lookalikes) {
        self.owner();
        self.scope();
        self.names(named, lookalikes);
        self.raw_text();
        self.odd_text();
        self.may_fail();
        self.cedar_s_warnings(validator);
    }

    fn fault(&mut self, span: Option<Span>, message: impl AsRef<str>) {
        let span = span.unwrap_or_else(|| self.anatomy.effect().unwrap_or(0..0));
        let at = self.offset + span.start;
        let fault = self.source.fault(at, message);
        self.faults.push(fault.spanning(span.len()));
    }

    fn owner(&mut self) {
        match annotation(&self.policy, "owner") {
            Some(owner) if !owner.trim().is_empty() => {}
            Some(_) => self.fault(
                self.anatomy.annotation("owner"),
                "the `@owner` is empty; name the team that answers for this policy",
            ),
            None => self.fault(
                self.anatomy.annotation("id").or(Some(0..0)),
                "the policy has no `@owner`; put `@owner(\"team\")` before it, naming who answers for it",
            ),
        }
    }

    fn scope(&mut self) {
        if self.policy.effect() == Effect::Forbid || self.team.is_security(annotation(&self.policy, "owner")) {
            return;
        }
        let whom = match self.policy.principal_constraint() {
            PrincipalConstraint::Eq(_) | PrincipalConstraint::In(_) | PrincipalConstraint::IsIn(..) => true,
            PrincipalConstraint::Any | PrincipalConstraint::Is(_) => false,
        };
        let (what, one_route) = match self.policy.resource_constraint() {
            ResourceConstraint::Eq(uid) => {
                let id = uid.id().unescaped();
                (
                    true,
                    *uid.type_name() == VOCABULARY.route && !id.ends_with(":unmatched"),
                )
            }
            ResourceConstraint::In(_) | ResourceConstraint::IsIn(..) => (true, false),
            ResourceConstraint::Any | ResourceConstraint::Is(_) => (false, false),
        };
        if !what {
            self.fault(
                self.anatomy.scope("resource"),
                "this permit opens every service, and is not security's; write `resource in Hoplite::Service::\"…\"`",
            );
        }
        if !whom && !one_route {
            self.fault(
                self.anatomy.scope("principal"),
                "this permit is for anybody, and is not security's; write `principal in Hoplite::Path::\"…\"`, or open one \
                 route with `resource == Hoplite::Route::\"…\"`",
            );
        }
    }

    /// Names of services that nothing else names, and names that look like others.
    fn names(&mut self, named: &Named, lookalikes: &mut Lookalikes) {
        let mut names = self.policy.entity_literals();
        names.sort_by_cached_key(ToString::to_string);
        names.dedup();
        for uid in &names {
            let (type_name, id) = (uid.type_name().to_string(), uid.id().unescaped());
            let message = self.imitates(&type_name, id, lookalikes).or_else(|| named.unknown(uid));
            // To find a name takes Cedar's parser for each string: only for what is told.
            if let Some(message) = message {
                self.fault(self.anatomy.entity(&type_name, id), message);
            }
        }
        for kind in ["id", "owner"] {
            let Some(value) = self.policy.annotation(kind).map(ToOwned::to_owned) else {
                continue;
            };
            if let Some(message) = self.imitates(kind, &value, lookalikes) {
                self.fault(self.anatomy.annotation(kind), message);
            }
        }
    }

    /// What a name of this kind is taken for.
    fn imitates(&self, kind: &str, name: &str, lookalikes: &mut Lookalikes) -> Option<String> {
        let odd = imitation(name).filter(|_| !self.hides(name));
        odd.or_else(|| {
            let other = lookalikes.other(kind, name)?;
            Some(format!("`{name}` looks like `{other}`; give one of them another name"))
        })
    }

    /// Whether a name has unseen characters of which the file's text told already.
    fn hides(&self, name: &str) -> bool {
        name.chars().any(|c| hides(c) && self.source.text.contains(c))
    }

    fn raw_text(&mut self) {
        let mut found: Vec<(Option<Span>, String)> = Vec::new();
        for clause in &self.conditions {
            let (Clause::When(condition) | Clause::Unless(condition)) = clause;
            visit(condition, &mut |expr| match expr {
                Expr::Like { pattern, .. } => {
                    let text: String = pattern.iter().map(shown).collect();
                    if is_raw(text.trim_start_matches('*')) {
                        found.push((self.anatomy.pattern(pattern), raw_message(&text)));
                    }
                }
                Expr::Literal(Literal::String(text)) if is_raw(text) => {
                    found.push((self.anatomy.string(text), raw_message(text)));
                }
                _ => {}
            });
        }
        for (span, message) in found {
            self.fault(span, message);
        }
    }

    /// Segments that look escaped or like a template, and address ranges that are wider than they are written.
    fn odd_text(&mut self) {
        let mut found: Vec<(Option<Span>, String)> = Vec::new();
        for clause in &self.conditions {
            let (Clause::When(condition) | Clause::Unless(condition)) = clause;
            visit(condition, &mut |expr| {
                let Expr::BinaryOp { op, left, right } = expr else {
                    return;
                };
                let texts = match (&**left, &**right) {
                    (Expr::Set(texts), other) if *op == BinaryOp::Contains && is_segment(other) => {
                        texts.iter().collect()
                    }
                    (subject, _) if is_segment(subject) => vec![right],
                    (_, subject) if is_segment(subject) => vec![left],
                    _ => Vec::new(),
                };
                for text in texts {
                    if let Expr::Literal(Literal::String(text)) = &**text
                        && let Some(message) = odd_segment(text)
                    {
                        found.push((self.anatomy.condition_string(text), message));
                    }
                }
                if let Expr::UnaryOp { op: UnaryOp::Ip, expr } = &**right
                    && let Expr::Literal(Literal::String(range)) = &**expr
                    && let Some(network) = wider(range)
                {
                    let message =
                        format!("`{range}` is all of `{network}`; write it so, or name a single address without `/`");
                    found.push((self.anatomy.condition_string(range), message));
                }
            });
        }
        for (span, message) in found {
            self.fault(span, message);
        }
    }

    /// Arithmetic in a forbid. Everything else that can fail in Cedar is excluded by strict validation, or by the closure
    /// of a request's entities.
    fn may_fail(&mut self) {
        if self.policy.effect() == Effect::Permit {
            return;
        }
        let mut signs: Vec<&'static str> = Vec::new();
        for clause in &self.conditions {
            let (Clause::When(condition) | Clause::Unless(condition)) = clause;
            visit(condition, &mut |expr| match expr {
                Expr::BinaryOp { op, .. } => signs.extend(match op {
                    BinaryOp::Add => Some("+"),
                    BinaryOp::Sub => Some("-"),
                    BinaryOp::Mul => Some("*"),
                    BinaryOp::Offset => Some("offset"),
                    BinaryOp::DurationSince => Some("durationSince"),
                    _ => None,
                }),
                Expr::UnaryOp { op: UnaryOp::Neg, expr } if !matches!(**expr, Expr::Literal(_)) => signs.push("-"),
                _ => {}
            });
        }
        signs.sort_unstable();
        let mut nth = 0;
        let mut previous = "";
        for sign in signs {
            nth = if sign == previous { nth + 1 } else { 0 };
            previous = sign;
            let instead = match sign {
                "offset" | "durationSince" => {
                    "work out the instant and compare with it: `context.conn.now < datetime(\"2027-01-31\")`"
                }
                _ => "work out the number and compare with it: `context.seg.n > 2`, not `context.seg.n + 1 > 3`",
            };
            let message = format!(
                "`{sign}` may overflow, and a forbid that cannot be evaluated denies every request it meets; {instead}"
            );
            self.fault(self.anatomy.nth(sign, nth), message);
        }
    }

    fn cedar_s_warnings(&mut self, validator: &Validator) {
        let mut alone = PolicySet::new();
        if alone.add(self.policy.clone()).is_err() {
            return;
        }
        let result = validator.validate(&alone, ValidationMode::Strict);
        for warning in result.validation_warnings() {
            match warning {
                // What never applies does not compile.
                ValidationWarning::InvalidActionApplication(_)
                | ValidationWarning::ImpossiblePolicy(_)
                // Names of entities, which `names` has looked at; all other identifiers are the schema's.
                | ValidationWarning::MixedScriptIdentifier(_)
                | ValidationWarning::BidiCharsInIdentifier(_)
                | ValidationWarning::ConfusableIdentifier(_) => {}
                warning => {
                    let (source, offset) = (self.source, self.offset);
                    let prefix = format!("for policy `{}`, ", self.policy.id());
                    let fault = diagnosed(warning, &|at, reason| {
                        let reason = reason.strip_prefix(&prefix).unwrap_or(&reason);
                        let message = format!("{reason}; write it in the letters of one alphabet, without escapes");
                        source.fault(offset + at, message)
                    });
                    self.faults.push(fault);
                }
            }
        }
    }
}

/// Whether a text is, or begins, a path or a SPIFFE ID.
fn is_raw(text: &str) -> bool {
    let scheme = text.get(.."spiffe:".len()).unwrap_or(text);
    text.starts_with('/') || scheme.eq_ignore_ascii_case("spiffe:")
}

/// Whether an expression is a segment of the path.
fn is_segment(expr: &Expr) -> bool {
    let Expr::GetAttr { expr, attr } = expr else {
        return false;
    };
    let is_seg =
        matches!(&**expr, Expr::GetAttr { expr, attr } if attr == "seg" && matches!(**expr, Expr::Var(Var::Context)));
    is_seg && attr != "n"
}

/// What is odd about a segment that a request could have all the same, if somebody wrote an escape of an escape.
fn odd_segment(text: &str) -> Option<String> {
    let mut escapes = text.split('%').skip(1);
    if escapes.any(|rest| matches!(rest.as_bytes(), [a, b, ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit())) {
        return Some(format!(
            "segments are decoded, and `{text}` is none that a plain request has; write the character itself, as a space for `%20`"
        ));
    }
    let is_template = WrittenParameter::of(text).is_some() || text.starts_with(':') || text == "*";
    is_template.then(|| {
        format!("`{text}` is compared by its letters; ask with `has` for any segment, or name the route in the scope")
    })
}

/// The range that an address range covers, where it is written with more than its first address.
fn wider(range: &str) -> Option<String> {
    let (address, length) = range.split_once('/')?;
    let (address, length): (IpAddr, u32) = (address.parse().ok()?, length.parse().ok()?);
    let first: IpAddr = match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32_u32.checked_sub(length)?).unwrap_or(0);
            Ipv4Addr::from(u32::from(address) & mask).into()
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128_u32.checked_sub(length)?).unwrap_or(0);
            Ipv6Addr::from(u128::from(address) & mask).into()
        }
    };
    (first != address).then(|| format!("{first}/{length}"))
}

/// Routes with a segment that is taken by its letters and would be a parameter elsewhere.
fn literal_parameters(text: &Text<'_>) -> Vec<Fault> {
    let odd = RouteTable::literals(text.text).into_iter();
    odd.map(|(place, segment)| {
        let message =
            format!("`{segment}` stands for these letters alone; write a parameter as `{{id}}`, one for each segment");
        text.fault(place.start, message).spanning(place.len())
    })
    .collect()
}

fn raw_message(text: &str) -> String {
    let start: String = text.chars().take(80).collect();
    if text.trim_start_matches('*').to_ascii_lowercase().starts_with("spiffe:") {
        format!(
            "an identity is compared as the text `{start}`; write `principal in Hoplite::Path::\"…\"`, or `==` a \
             `Hoplite::Workload`"
        )
    } else {
        format!(
            "a path is compared as the text `{start}`; name a route of `{ROUTES_FILE}` in the scope, or compare segments: \
             `context.seg has s0 && context.seg.s0 == \"admin\"`"
        )
    }
}

/// A pattern's element as it is written, but for escapes.
fn shown(element: &PatternElem) -> char {
    match element {
        PatternElem::Char(c) => *c,
        PatternElem::Wildcard => '*',
    }
}

/// An expression and all within it, from the left; but not the text that an extension's value is made from, which is
/// neither a path nor a SPIFFE ID though an address range has a `/`.
fn visit<'a>(expr: &'a Expr, see: &mut dyn FnMut(&'a Expr)) {
    see(expr);
    match expr {
        Expr::UnaryOp {
            op: UnaryOp::Ip | UnaryOp::Datetime | UnaryOp::Duration | UnaryOp::Decimal,
            ..
        } => {}
        Expr::UnaryOp { expr, .. }
        | Expr::GetAttr { expr, .. }
        | Expr::HasAttr { expr, .. }
        | Expr::Like { expr, .. } => {
            visit(expr, see);
        }
        Expr::BinaryOp { left, right, .. } => {
            visit(left, see);
            visit(right, see);
        }
        Expr::Is { expr, in_expr, .. } => {
            visit(expr, see);
            in_expr.iter().for_each(|expr| visit(expr, see));
        }
        Expr::IfThenElse {
            cond,
            then_expr,
            else_expr,
        } => [cond, then_expr, else_expr]
            .into_iter()
            .for_each(|expr| visit(expr, see)),
        Expr::Set(elements) => elements.iter().for_each(|expr| visit(expr, see)),
        Expr::Record(fields) => fields.values().for_each(|expr| visit(expr, see)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hoplite_policy::Snapshot;

    const ROUTES: &str = "[ledger]\nroutes = [\"GET /accounts/{id}\", \"GET /health\"]";
    const WHO: &str = r#"principal in Hoplite::Path::"prod.acme/ns/pay""#;
    const WHAT: &str = r#"resource in Hoplite::Service::"ledger""#;
    const GET: &str = r#"action == Hoplite::Action::"GET""#;

    /// Each expectation is `line:column` and, after `…`, a part of the message; a fault's caret must be in its line.
    #[track_caller]
    fn check(text: &str, expected: &[&str]) {
        let headers = "headers = [\"x-path\"]";
        let sources =
            [("a.cedar", text), ("headers.toml", headers), ("routes.toml", ROUTES)].map(|(name, text)| Source {
                name: name.to_owned(),
                text: text.to_owned(),
            });
        Snapshot::compile(&sources).unwrap_or_else(|faults| panic!("{text} does not compile: {faults:#?}"));
        let faults = lint(&sources);
        let lines: Vec<_> = faults.iter().map(ToString::to_string).collect();
        assert_eq!(lines.len(), expected.len(), "{text}\n{lines:#?}");
        for (fault, expected) in faults.iter().zip(expected) {
            let (place, message) = expected.split_once('…').unwrap();
            let line = fault.to_string();
            assert!(
                line.starts_with(&format!("a.cedar:{place}: ")) && line.contains(message),
                "{line}\nis not {expected}"
            );
            assert!(
                fault.help.is_some() && fault.render().contains('^'),
                "{}",
                fault.render()
            );
        }
    }

    /// A policy in three lines: its annotations, its scope, its conditions.
    #[track_caller]
    fn policy(effect: &str, scope: &str, conditions: &str, expected: &[&str]) {
        check(
            &format!("@id(\"x\") @owner(\"team-pay\")\n{effect} ({scope})\n{conditions};"),
            expected,
        );
    }

    /// A permit of `GET` with this condition, which starts at column 8 of line 3.
    #[track_caller]
    fn when(condition: &str, expected: &[&str]) {
        policy(
            "permit",
            &format!("{WHO}, {GET}, {WHAT}"),
            &format!("when {{ {condition} }}"),
            expected,
        );
    }

    #[test]
    fn somebody_answers_for_each_policy() {
        let policy = |owner: &str| format!("\n{owner} @id(\"x\") permit ({WHO}, {GET}, {WHAT});");
        check(&policy("@owner(\"team-pay\")"), &[]);
        check(&policy(""), &["2:2…no `@owner`; put `@owner(\"team\")` before it"]);
        check(&policy("@owner"), &["2:1…is empty"]);
        check(&policy("@owner(\" \")"), &["2:1…is empty"]);
    }

    #[test]
    fn a_permit_says_what_it_opens_and_to_whom() {
        let one_route = r#"resource == Hoplite::Route::"ledger:GET /health""#;
        let unmatched = r#"resource == Hoplite::Route::"ledger:unmatched""#;
        for (principal, resource, expected) in [
            (WHO, WHAT, &[][..]),
            (WHO, one_route, &[]),
            (WHO, "resource is Hoplite::Route in Hoplite::Service::\"ledger\"", &[]),
            ("principal in Hoplite::TrustDomain::\"prod.acme\"", WHAT, &[]),
            (
                "principal is Hoplite::Workload in Hoplite::Path::\"prod.acme/ns\"",
                WHAT,
                &[],
            ),
            ("principal", one_route, &[]),
            ("principal", unmatched, &["2:9…for anybody"]),
            ("principal", WHAT, &["2:9…for anybody"]),
            ("principal is Hoplite::Workload", WHAT, &["2:9…for anybody"]),
            (WHO, "resource", &["2:91…opens every service"]),
            (WHO, "resource is Hoplite::Route", &["2:91…opens every service"]),
            (
                "principal",
                "resource",
                &["2:9…for anybody", "2:54…opens every service"],
            ),
        ] {
            let scope = format!("{principal}, {GET}, {resource}");
            policy("permit", &scope, "", expected);
            policy("forbid", &scope, "", &[]);
            let text = format!("@id(\"x\") @owner(\"security\") permit ({scope});");
            check(&text, &[]);
        }
    }

    #[test]
    fn security_is_whoever_the_modules_say() {
        let sources = |module: &str| {
            [
                (
                    "modules.toml".to_owned(),
                    "[m]\nowner = \"wardens\"\nsecurity = true\n[n]\nowner = \"security\"\nservices = [\"ledger\"]",
                ),
                (
                    format!("{}/a.cedar", if module == "wardens" { "m" } else { "n" }),
                    if module == "wardens" {
                        "@id(\"x\") @owner(\"wardens\") permit (principal, action, resource);"
                    } else {
                        "@id(\"x\") @owner(\"security\") permit (principal, action, resource in Hoplite::Service::\"ledger\");"
                    },
                ),
            ]
            .map(|(name, text)| Source {
                name,
                text: text.to_owned(),
            })
        };
        assert_eq!(lint(&sources("wardens")), []);
        let faults = lint(&sources("security"));
        assert!(
            faults.len() == 1 && faults[0].reason.contains("for anybody"),
            "{faults:?}"
        );
    }

    #[test]
    fn paths_and_identities_are_no_text() {
        for good in [
            "context.host like \"*.acme.internal\"",
            "context.host == \"ledger\"",
            "context.seg has s0 && context.seg.s0 == \"admin\"",
            "context.seg has s0 && context.seg.s0 like \"adm*\"",
            "context.conn.src.isInRange(ip(\"10.0.0.0/8\"))",
            "context.conn.now < datetime(\"2027-01-31T00:00:00Z\")",
            "[\"Sat\", \"Sun\"].contains(context.conn.dow)",
        ] {
            when(good, &[]);
        }
        for (comparison, expected) in [
            ("like \"spiffe://*\"", "3:58…`spiffe://*`; write `principal in"),
            ("like \"*SPIFFE://x\"", "3:58…identity is compared"),
            ("== \"spiffe://prod.acme/pay\"", "3:61…identity is compared"),
            ("like \"/admin*\"", "3:58…`/admin*`; name a route"),
            ("like \"*/admin\"", "3:58…name a route"),
            ("== \"/a\"", "3:61…`/a`"),
        ] {
            when(
                &format!("context.hdr has \"x-path\" && context.hdr[\"x-path\"] {comparison}"),
                &[expected],
            );
        }
    }

    #[test]
    fn services_that_nothing_else_names() {
        for (resource, expected) in [
            (
                "resource in Hoplite::Service::\"legder\"",
                &["2:103…names the service `legder`"][..],
            ),
            (
                "resource == Hoplite::Route::\"legder:unmatched\"",
                &["2:103…names the service `legder`"],
            ),
            (WHAT, &[]),
        ] {
            for effect in ["permit", "forbid"] {
                policy(effect, &format!("{WHO}, {GET}, {resource}"), "", expected);
            }
        }
        let sources = [
            ("modules.toml", "[m]\nowner = \"team-pay\"\nservices = [\"legder\"]"),
            (
                "m/a.cedar",
                &*format!(
                    "@id(\"x\") @owner(\"team-pay\") permit ({WHO}, {GET}, resource in Hoplite::Service::\"legder\");"
                ),
            ),
        ];
        assert_eq!(lint(&crate::samples::sources(&sources)), [], "a module names it");
    }

    #[test]
    fn what_is_compared_by_its_letters() {
        let segment = |text: &str| format!("context.seg has s0 && context.seg.s0 == \"{text}\"");
        when(&segment("a%20b"), &["3:48…segments are decoded"]);
        when(&segment("{id}"), &["3:48…compared by its letters"]);
        when(&segment(":id"), &["3:48…compared by its letters"]);
        when(
            "context.seg has s0 && [\"a\", \"*\"].contains(context.seg.s0)",
            &["3:36…compared by its letters"],
        );
        when(&segment("100%"), &[]);
        when(
            "context.conn.src.isInRange(ip(\"10.1.2.3/8\"))",
            &["3:38…is all of `10.0.0.0/8`"],
        );
        when(
            "context.conn.src.isInRange(ip(\"2001:db8::1/32\"))",
            &["3:38…is all of `2001:db8::/32`"],
        );
        when("context.conn.src.isInRange(ip(\"10.0.0.0/8\"))", &[]);
        let routes =
            "[ledger]\nroutes = [\"GET /orders/:id\", \"GET /a/*\", \"GET /b/{id}.json\", \"POST /v1/all:reset\"]";
        let faults: Vec<String> = lint(&crate::samples::sources(&[("routes.toml", routes)]))
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(faults.len(), 2, "{faults:?}");
        assert!(
            faults[0]
                .starts_with("routes.toml:2:11: `:id` stands for these letters alone; write a parameter as `{id}`"),
            "{faults:?}"
        );
        assert!(faults[1].starts_with("routes.toml:2:30: `*` stands"), "{faults:?}");
    }

    #[test]
    fn a_forbid_cannot_fail_to_evaluate() {
        let scope = format!("{WHO}, {GET}, {WHAT}");
        for (condition, expected) in [
            ("context.seg.n > 2", &[][..]),
            ("context.seg.n > -1", &[]),
            ("context.conn.now.toTime() > duration(\"18h\")", &[]),
            ("context.seg.n + 1 > 3", &["3:22…`+` may overflow"]),
            (
                "context.seg.n * 2 - 1 > context.seg.n * 3",
                &["3:22…`*` may", "3:26…`-` may", "3:46…`*` may"],
            ),
            ("-context.seg.n < 0", &["3:8…`-` may overflow"]),
            (
                "context.conn.now.offset(duration(\"1h\")) > datetime(\"2027-01-01\")",
                &["3:25…work out the instant"],
            ),
        ] {
            let conditions = format!("when {{ {condition} }}");
            policy("forbid", &scope, &conditions, expected);
            policy("permit", &scope, &conditions, &[]);
        }
    }

    #[test]
    fn what_is_reviewed_is_what_is_enforced() {
        let text = |comment: &str, id: &str, service: &str| {
            format!(
                "// {comment}\n@id(\"{id}\") @owner(\"team-pay\")\npermit ({WHO}, {GET},\n\
                 resource in Hoplite::Service::\"{service}\");"
            )
        };
        check(&text("équipe, 漢字, кассa", "équipe/été", "ledger"), &[]);
        check(
            &text("\u{202e}esrever", "x", "ledger"),
            &["1:4…`\\u{202e}` cannot be seen"],
        );
        let owner = text("", "x", "ledger").replace("team-pay", "team\u{200b}pay");
        check(&owner, &["2:22…`\\u{200b}` cannot be seen"]);
        check(&text("", "p\u{430}y", "ledger"), &["2:1…mixes letters"]);
        let segment = |text: &str| format!("context.seg has s0 && context.seg.s0 == \"{text}\"");
        when(&segment("p\u{430}y"), &["3:48…mixed scripts"]);
        when(&segment("a\\u{202e}b"), &["3:48…BIDI"]);
        let both = format!(
            "{}\n@id(\"\u{440}\u{430}\u{443}\") @owner(\"team-pay\") forbid ({WHO}, {GET}, {WHAT});",
            text("", "pay", "ledger")
        );
        check(&both, &["5:1…looks like `pay`"]);
    }

    #[test]
    fn the_order_is_that_of_the_text() {
        let text = format!(
            "@id(\"a\") permit ({WHO}, {GET}, {WHAT});\n@id(\"b\") @owner(\"x\") forbid (principal, action, resource)\n\
             when {{ context.conn.src.isInRange(ip(\"10.1.1.1/8\")) }};\n// \u{200b}"
        );
        check(&text, &["1:1…no `@owner`", "3:38…is all of", "4:4…cannot be seen"]);
    }

    #[test]
    fn nobody_writes_a_grant() {
        let sources = [Source {
            name: "break-glass/a.cedar".to_owned(),
            text: format!("@id(\"break-glass/a\") @owner(\"security\") permit ({WHO}, action, {WHAT});"),
        }];
        assert!(Snapshot::compile(&sources).is_ok());
        let faults = lint(&sources);
        assert!(
            faults.len() == 1 && faults[0].reason.contains("two people"),
            "{faults:?}"
        );
    }

    #[test]
    fn what_does_not_compile_is_passed_over() {
        let sources = [
            "permit (",
            "@id(\"x\") permit (principal == ?principal, action, resource);",
        ]
        .map(|text| Source {
            name: "a.cedar".to_owned(),
            text: text.to_owned(),
        });
        assert_eq!(lint(&sources), []);
    }

    #[test]
    fn no_more_faults_are_told_than_anybody_reads() {
        let unseen = "\u{200b}\n".repeat(100_000);
        assert_eq!(
            lint(&crate::samples::sources(&[("a.cedar", &unseen)])).len(),
            FAULTS_MAX + 1
        );
    }
}
