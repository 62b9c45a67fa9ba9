//! The snapshot: a validated policy set, its routes and its revision; immutable, shared, swapped whole.

use crate::anatomy::Anatomy;
use crate::cedar::{annotation, without_text};
use crate::counters::{Counter, PolicyCounts};
use crate::dead;
use crate::evaluate::{CallFacts, Evaluator};
use crate::fault::{FAULTS_MAX, Fault, Text, check_mark, enough};
use crate::headers::SelectedHeaders;
use crate::ids::{BadId, Ids};
use crate::modules::{Modules, Team};
use crate::parse::{COMPILE_STACK_BYTES, diagnosed, on_stack, parse};
use crate::routes::RouteTable;
use crate::schema::validator;
use crate::source::{HEADERS_FILE, MODULES_FILE, ROUTES_FILE, Source, TOTAL_BYTES_MAX};
use crate::statement::{Statement, statements};
use cedar_policy::{Effect, Policy, PolicyId, PolicySet, ValidationMode, Validator};
use data_encoding::HEXLOWER;
use hoplite_seal::Hash;
use ring::digest;
use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

/// Everything a decision needs besides the request.
pub struct Snapshot {
    revision: Arc<str>,
    /// Sorted.
    ids: Vec<String>,
    routes: RouteTable,
    headers: SelectedHeaders,
    /// By the number of the policy.
    counters: Vec<Arc<Counter>>,
    /// Whose text is which, so that the next snapshot takes over what stays.
    texts: HashMap<Hash, PolicyId>,
    /// Of the route table: where it stays, the routes that its policies name stay too.
    routes_text: Option<Hash>,
    verdict: Verdict,
}

enum Verdict {
    Ask(Box<Evaluator>),
    /// The reason. Not an empty policy set: a policy that is missing or broken is not a policy that says no.
    DenyAll(String),
}

// === impl Snapshot ===

impl Snapshot {
    /// Parses every source on its own and validates every policy strictly against the [`schema`](crate::schema()) of the
    /// headers that are selected. Every policy needs an `@id` that no other has. No sources at all are legal and permit nothing.
    ///
    /// # Errors
    /// The faults of every source, in the order of sources and of their text: the first thousand.
    pub fn compile(sources: &[Source]) -> Result<Self, Vec<Fault>> {
        Self::deny_all("nothing").recompile(sources)
    }

    /// Compiles sources, but policies whose text is in this snapshot too are neither parsed nor validated again, which is nine
    /// parts in ten of the work: a change of one policy among thousands is in force as soon as one of a few.
    ///
    /// # Errors
    /// As [`compile`](Self::compile).
    pub fn recompile(&self, sources: &[Source]) -> Result<Self, Vec<Fault>> {
        on_stack(COMPILE_STACK_BYTES, || self.compile_here(sources)).unwrap_or_else(|error| {
            let file = sources.first().map_or("", |source| &source.name);
            Err(vec![Fault::at(
                file,
                "",
                0,
                format!("the policies could not be compiled: {error}; try again"),
            )])
        })
    }

    fn compile_here(&self, sources: &[Source]) -> Result<Self, Vec<Fault>> {
        let mut sources: Vec<&Source> = sources.iter().collect();
        sources.sort_by(|a, b| a.name.cmp(&b.name));
        check_size(&sources)?;

        let texts: Vec<Text<'_>> = sources
            .iter()
            .map(|source| Text::new(&source.name, &source.text))
            .collect();
        let mut faults = Vec::new();
        let mut previous = None;
        let modules = Modules::of(&sources);
        // Policies are checked even where the choice of headers is at fault, as if there were none.
        let headers = SelectedHeaders::of(&sources);
        let selected = headers.clone().unwrap_or_default();
        let routes = RouteTable::of_sources(&sources);
        let routes_text = sources
            .iter()
            .find(|source| source.name == ROUTES_FILE)
            .map(|source| Hash::of(source.text.as_bytes()));
        let known = Known {
            headers: &selected,
            // Where the table is at fault, that is told and nothing of its routes.
            routes: routes.as_ref().ok(),
            same_routes: routes_text == self.routes_text,
        };
        let mut policies = Policies::new(known, self)?;
        for (source, text) in sources.iter().zip(&texts) {
            let fault = |reason: &str| text.fault(0, reason);
            if previous.replace(&source.name) == Some(&source.name) {
                faults.push(fault("there are two sources of this name; rename one"));
            } else if source.name == ROUTES_FILE {
                faults.extend(routes.as_ref().err().into_iter().flatten().cloned());
            } else if source.name == MODULES_FILE {
                faults.extend(modules.as_ref().err().into_iter().flatten().cloned());
            } else if source.name == HEADERS_FILE {
                faults.extend(headers.as_ref().err().into_iter().flatten().cloned());
            } else if source.name.ends_with(".cedar") {
                let team = modules
                    .as_ref()
                    .map_or(Ok(Team::Anyone), |modules| modules.team(&source.name));
                let team = team.unwrap_or_else(|reason| {
                    faults.push(fault(&reason.to_string()));
                    Team::Anyone
                });
                if let Err(mark) = check_mark(text) {
                    faults.extend(mark);
                    continue;
                }
                for statement in statements(&source.text) {
                    policies
                        .add(text, &statement, team)
                        .unwrap_or_else(|found| faults.extend(found));
                    if faults.len() > FAULTS_MAX {
                        return Err(enough(faults, &source.name));
                    }
                }
            } else {
                faults.push(fault(
                    "this is neither `routes.toml`, `modules.toml`, `headers.toml` nor `*.cedar`; rename or remove it",
                ));
            }
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let Policies { set, ids, texts, .. } = policies;
        let ids = ids.into_sorted();
        let evaluator = Evaluator::new(set);
        Ok(Self {
            revision: revision(&sources).into(),
            ids,
            routes: routes.unwrap_or_default(),
            headers: selected,
            counters: evaluator.policies().policies().map(|_| Arc::default()).collect(),
            texts,
            routes_text,
            verdict: Verdict::Ask(Box::new(evaluator)),
        })
    }

    /// Denies everything and says why. For a start without policies, or with broken ones.
    pub fn deny_all(reason: impl Into<String>) -> Self {
        Self {
            revision: "none".into(),
            ids: Vec::new(),
            routes: RouteTable::default(),
            headers: SelectedHeaders::default(),
            counters: Vec::new(),
            texts: HashMap::new(),
            routes_text: None,
            verdict: Verdict::DenyAll(reason.into()),
        }
    }

    /// The first 32 hexadecimal digits of SHA-256 over names and texts in the order of names, whatever order the
    /// sources came in; `none` for [`deny_all`](Self::deny_all).
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// Whether a policy has this `@id`.
    pub fn has_policy(&self, id: &str) -> bool {
        self.ids.binary_search_by(|known| known.as_str().cmp(id)).is_ok()
    }

    /// Whether the policy of this `@id` forbids; one that nobody knows counts as a forbid.
    pub fn has_forbid(&self, id: &str) -> bool {
        self.is_forbid(&PolicyId::new(id))
    }

    /// The `@id` of every policy, sorted.
    pub fn policy_ids(&self) -> impl ExactSizeIterator<Item = &str> {
        self.ids.iter().map(String::as_str)
    }

    /// The routes of every service.
    pub fn routes(&self) -> &RouteTable {
        &self.routes
    }

    /// The headers that policies may look at, and that a request therefore has to be read with.
    pub fn headers(&self) -> &SelectedHeaders {
        &self.headers
    }

    /// Why everything is denied, if it is.
    pub fn deny_all_reason(&self) -> Option<&str> {
        match &self.verdict {
            Verdict::Ask(_) => None,
            Verdict::DenyAll(reason) => Some(reason),
        }
    }

    pub(crate) fn shared_revision(&self) -> Arc<str> {
        Arc::clone(&self.revision)
    }

    /// What to ask, or why nothing can be.
    pub(crate) fn evaluator(&self) -> Result<&Evaluator, &str> {
        match &self.verdict {
            Verdict::Ask(evaluator) => Ok(evaluator),
            Verdict::DenyAll(reason) => Err(reason),
        }
    }

    /// Every policy as it was written; none where everything is denied.
    pub fn policies(&self) -> impl Iterator<Item = &Policy> {
        let evaluator = self.evaluator().into_iter();
        evaluator.flat_map(|evaluator| evaluator.policies().policies())
    }

    /// The policies whose scope covers a call, in the order of their numbers; none where everything is denied.
    pub fn covering(&self, call: &CallFacts) -> Vec<&Policy> {
        let evaluator = self.evaluator().into_iter();
        evaluator
            .flat_map(|evaluator| {
                let numbers = evaluator.covering(call).into_iter();
                numbers.filter_map(|number| evaluator.policy(number))
            })
            .collect()
    }

    /// How often each policy mattered, by id, in no order.
    pub fn counts(&self) -> impl Iterator<Item = (&str, PolicyCounts)> {
        let policies = self
            .evaluator()
            .into_iter()
            .flat_map(|evaluator| evaluator.policies().policies());
        let ids = policies.map(|policy| policy.id().as_ref());
        ids.zip(self.counters.iter().map(|counter| counter.read()))
    }

    /// Goes on counting where another snapshot stands, for policies of the same id. Call it before the first decision.
    pub fn count_on(&mut self, before: &Self) {
        let (Ok(evaluator), Ok(old)) = (self.evaluator(), before.evaluator()) else {
            return;
        };
        let counters = evaluator.policies().policies().map(|policy| {
            let counter = old.number(policy.id()).and_then(|number| before.counter(number));
            counter.cloned().unwrap_or_default()
        });
        self.counters = counters.collect();
    }

    /// Forgets what was prepared for calls seen before. For measurements.
    pub fn forget_calls(&self) {
        if let Ok(evaluator) = self.evaluator() {
            evaluator.forget_calls();
        }
    }

    pub(crate) fn counter(&self, number: u32) -> Option<&Arc<Counter>> {
        self.counters.get(number as usize)
    }

    pub(crate) fn is_forbid(&self, id: &PolicyId) -> bool {
        match &self.verdict {
            // An id nobody knows counts as a forbid: the safe side for what is asked here.
            Verdict::Ask(evaluator) => evaluator
                .policies()
                .policy(id)
                .is_none_or(|policy| policy.effect() == Effect::Forbid),
            Verdict::DenyAll(_) => true,
        }
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot")
            .field("revision", &self.revision)
            .field("policies", &self.ids.len())
            .field("deny_all", &self.deny_all_reason())
            .finish()
    }
}

fn check_size(sources: &[&Source]) -> Result<(), Vec<Fault>> {
    let mut total = 0_usize;
    for source in sources {
        total = total.saturating_add(source.text.len());
        if total > TOTAL_BYTES_MAX {
            let reason = format!("the sources up to this one exceed {TOTAL_BYTES_MAX} bytes; remove policies");
            return Err(vec![Fault::at(&source.name, "", 0, reason)]);
        }
    }
    Ok(())
}

/// How much of the digest a revision keeps: 128 bits. Of 48, two sound policy sets with one revision were found in 25
/// seconds, and a record would not have said which of them decided.
const REVISION_BYTES: usize = 16;

fn revision(sources: &[&Source]) -> String {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in sources.iter().flat_map(|source| [&source.name, &source.text]) {
        // The length keeps two different lists from running into the same bytes.
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part.as_bytes());
    }
    HEXLOWER.encode(context.finish().as_ref().get(..REVISION_BYTES).unwrap_or_default())
}

/// What policies may speak of, besides the schema itself.
#[derive(Clone, Copy)]
struct Known<'a> {
    headers: &'a SelectedHeaders,
    routes: Option<&'a RouteTable>,
    /// Whether the routes are those of the snapshot before.
    same_routes: bool,
}

/// Policies as they are gathered.
struct Policies<'a> {
    set: PolicySet,
    ids: Ids<'a>,
    words: Known<'a>,
    validator: Cow<'static, Validator>,
    texts: HashMap<Hash, PolicyId>,
    /// Whose policies are valid here too.
    before: Option<&'a Snapshot>,
}

// === impl Policies ===

impl<'a> Policies<'a> {
    fn new(words: Known<'a>, before: &'a Snapshot) -> Result<Self, Vec<Fault>> {
        let headers = words.headers;
        let validator = validator(headers).map_err(|error| vec![Fault::whole(HEADERS_FILE, error.to_string())])?;
        Ok(Self {
            set: PolicySet::default(),
            ids: Ids::default(),
            words,
            validator,
            texts: HashMap::new(),
            // INVARIANT: the schema depends on nothing else.
            before: Some(before).filter(|before| before.headers == *headers),
        })
    }

    fn add(&mut self, source: &'a Text<'a>, statement: &Statement<'_>, team: Team<'_>) -> Result<(), Vec<Fault>> {
        let fault = |offset: usize, reason: String| source.fault(statement.offset.saturating_add(offset), reason);
        let hash = Hash::of(statement.text.as_bytes());
        let known = self.known(&hash);
        let is_new = known.is_none();
        let policy = known.map_or_else(|| parse(statement, &fault), Ok)?;
        let mut faults = Vec::new();
        let policy = match self.claim(&policy, source, statement) {
            Ok(id) if is_new => policy.new_id(id),
            Ok(_) => policy,
            Err(reason) => {
                let place = Anatomy::of(statement.text).annotation("id");
                faults.push(fault(place.map_or(0, |place| place.start), reason.to_string()));
                policy
            }
        };
        if is_new {
            faults.extend(validate(
                &policy,
                &self.validator,
                self.words.headers,
                statement,
                &fault,
            ));
        }
        // Routes are in another file, which may be another than before.
        if let Some(routes) = self.words.routes
            && (is_new || !self.words.same_routes)
        {
            let found = dead::routes(&policy, statement.text, routes);
            faults.extend(found.into_iter().map(|found| placed(found, &fault)));
        }
        // What a team may say is in another file, which may be another than before.
        faults.extend(team.check(&policy, statement, &fault));
        if faults.is_empty() {
            // Without the copy of its text that Cedar keeps beside it. What it was parsed from its places still share.
            let policy = without_text(&policy);
            self.texts.insert(hash, policy.id().clone());
            self.set.add(policy).map_err(|error| vec![fault(0, error.to_string())])
        } else {
            Err(faults)
        }
    }

    /// The policy of this text, if it was found valid before.
    fn known(&self, text: &Hash) -> Option<Policy> {
        let before = self.before?;
        let id = before.texts.get(text)?;
        before.evaluator().ok()?.policies().policy(id).cloned()
    }

    /// The policy's id, which is now taken.
    fn claim(&mut self, policy: &Policy, source: &'a Text<'a>, statement: &Statement<'_>) -> Result<PolicyId, BadId> {
        let id = annotation(policy, "id").ok_or(BadId::None)?;
        self.ids.claim(id, source, statement.offset)?;
        Ok(PolicyId::new(id))
    }
}

/// What strict validation finds, in the order of the text; the validator itself keeps none.
fn validate(
    policy: &Policy,
    validator: &Validator,
    headers: &SelectedHeaders,
    statement: &Statement<'_>,
    fault: &dyn Fn(usize, String) -> Fault,
) -> Vec<Fault> {
    let mut alone = PolicySet::new();
    if let Err(error) = alone.add(policy.clone()) {
        return vec![fault(0, error.to_string())];
    }
    let result = validator.validate(&alone, ValidationMode::Strict);
    let mut faults: Vec<_> = result
        .validation_errors()
        .map(|error| diagnosed(error, fault))
        .collect();
    // The place already says which policy.
    let prefix = format!("for policy `{}`, ", policy.id());
    for fault in &mut faults {
        if let Some(rest) = fault.reason.strip_prefix(&prefix) {
            fault.reason = rest.to_owned();
        }
    }
    let anatomy = Anatomy::of(statement.text);
    let mut dead = dead::names(policy, &anatomy);
    // Of what is no valid policy nothing more can be said.
    if faults.is_empty() {
        dead.extend(dead::conditions(policy, &anatomy, headers));
        // One message is enough, and that of the word is the better one.
        if dead.is_empty() {
            dead.extend(dead::applies_to_nothing(policy, &anatomy, &result));
        }
    }
    faults.extend(dead.into_iter().map(|found| placed(found, fault)));
    faults.sort_by(|a, b| (a.line, a.column, &a.reason).cmp(&(b.line, b.column, &b.reason)));
    faults
}

/// A dead word at its place.
fn placed((span, message): dead::Found, fault: &dyn Fn(usize, String) -> Fault) -> Fault {
    let span = span.unwrap_or(0..0);
    fault(span.start, message).spanning(span.len())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::parse::{CHAIN_MAX, NESTING_MAX, POLICY_BYTES_MAX};

    const READ: &str = r#"@id("pay/read") permit (principal, action in Hoplite::Action::"read", resource);"#;

    /// Sources of these names and texts.
    pub(crate) fn sources(files: &[(&str, &str)]) -> Vec<Source> {
        files
            .iter()
            .map(|(name, text)| Source {
                name: (*name).to_owned(),
                text: (*text).to_owned(),
            })
            .collect()
    }

    /// Each expectation is `file:line:column` and, after `…`, a part of the reason.
    #[track_caller]
    fn faults(files: &[(&str, &str)], expected: &[&str]) {
        let faults = Snapshot::compile(&sources(files)).expect_err("it must not compile");
        let faults: Vec<_> = faults.iter().map(ToString::to_string).collect();
        assert_eq!(faults.len(), expected.len(), "{faults:#?}");
        for (fault, expected) in faults.iter().zip(expected) {
            let (place, reason) = expected.split_once('…').unwrap();
            assert!(
                fault.starts_with(&format!("{place}: ")) && fault.contains(reason),
                "{fault}\nis not {expected}"
            );
            assert!(!fault.contains('\n'), "{fault}");
        }
    }

    #[test]
    fn sound_sources_compile() {
        let text = format!("// what pay may read\n{READ}\n@id(\"b\") forbid (principal, action, resource);\n");
        let snapshot = Snapshot::compile(&sources(&[
            ("pay.cedar", &text),
            ("routes.toml", "[ledger]\nroutes = [\"GET /\"]"),
        ]))
        .unwrap();
        assert_eq!(snapshot.policy_ids().collect::<Vec<_>>(), ["b", "pay/read"]);
        assert_eq!(snapshot.deny_all_reason(), None);
        assert_eq!(snapshot.revision().len() * 4, 128, "bits");
    }

    #[test]
    fn no_sources_are_legal() {
        let snapshot = Snapshot::compile(&[]).unwrap();
        assert_eq!(snapshot.policy_ids().len(), 0);
        assert_eq!(snapshot.deny_all_reason(), None);
        assert_ne!(snapshot.revision(), "none");
    }

    #[test]
    fn deny_all_has_a_reason_and_no_revision() {
        let snapshot = Snapshot::deny_all("no policy yet");
        assert_eq!(snapshot.deny_all_reason(), Some("no policy yet"));
        assert_eq!(snapshot.revision(), "none");
    }

    #[test]
    fn the_revision_follows_names_and_texts_not_their_order() {
        let revision = |files: &[(&str, &str)]| Snapshot::compile(&sources(files)).unwrap().revision().to_owned();
        let other = r#"@id("x") permit (principal, action, resource);"#;
        let base = revision(&[("a.cedar", READ), ("b.cedar", other)]);
        assert_eq!(base, revision(&[("b.cedar", other), ("a.cedar", READ)]));
        for files in [
            &[("a.cedar", READ), ("c.cedar", other)] as &[_],
            &[("a.cedar", READ)],
            &[("a.cedar", READ), ("b.cedar", "// nothing")],
            &[("a.cedar", other), ("b.cedar", READ)],
            &[("a.cedar", READ), ("b.cedar", other), ("routes.toml", "")],
        ] {
            assert_ne!(base, revision(files), "{files:?}");
        }
    }

    #[test]
    fn syntax_errors() {
        faults(
            &[("a.cedar", "\n\n@id(\"x\") permit (principal action, resource);")],
            &["a.cedar:3:28…unexpected token"],
        );
        faults(
            &[("a.cedar", "@id(\"x\") permit (principal, action, resource)")],
            &["a.cedar:1:46…unexpected end of input"],
        );
        faults(&[("a.cedar", ";")], &["a.cedar:1:1…unexpected token"]);
        faults(
            &[("a.cedar", "@id(\"x) permit (principal, action, resource);")],
            &["a.cedar:1:5…invalid token"],
        );
        faults(
            &[(
                "a.cedar",
                "// é\n  @id(\"é\") permit (principal, action, resource) when { principal.foo( };",
            )],
            &["a.cedar:2:71…unexpected token"],
        );
    }

    #[test]
    fn unknown_words() {
        faults(
            &[(
                "a.cedar",
                "@id(\"x\")\npermit (principal, action, resource)\nwhen { principal.team == \"a\" };",
            )],
            &["a.cedar:3:8…attribute `team`"],
        );
        faults(
            &[(
                "a.cedar",
                "@id(\"x\")\npermit (principal, action == Hoplite::Action::\"FETCH\", resource);",
            )],
            &["a.cedar:2:30…unrecognized action"],
        );
        faults(
            &[(
                "a.cedar",
                "@id(\"x\") permit (principal == User::\"a\", action, resource);",
            )],
            &["a.cedar:1:31…unrecognized entity type"],
        );
        faults(
            &[(
                "a.cedar",
                "@id(\"x\") permit (principal, action, resource) when { context.host == \"a\" };",
            )],
            &["a.cedar:1:54…attribute `host`"],
        );
    }

    #[test]
    fn ids() {
        let anonymous = "permit (principal, action, resource);";
        faults(&[("a.cedar", &format!("\n  {anonymous}"))], &["a.cedar:2:3…no `@id`"]);
        faults(
            &[("a.cedar", &format!("@id(\"\") {anonymous}"))],
            &["a.cedar:1:1…must be 1 to 256 bytes"],
        );
        faults(
            &[("a.cedar", &format!("@id(\"a b\") {anonymous}"))],
            &["a.cedar:1:1…`a b`"],
        );
        faults(
            &[("a.cedar", READ), ("b.cedar", &format!("//\n {READ}"))],
            &["b.cedar:2:2…`pay/read` is already used at a.cedar:1:1"],
        );
        faults(
            &[("a.cedar", &format!("{READ}\n{READ}"))],
            &["a.cedar:2:1…already used at a.cedar:1:1"],
        );
    }

    #[test]
    fn every_fault_is_reported() {
        let text = format!("permit (principal, action, resource);\n{READ}\npermit;\n{READ}");
        faults(
            &[
                ("a.cedar", &text),
                (
                    "b.cedar",
                    "permit (principal, action, resource) when { principal.a && principal.b };",
                ),
                ("notes.txt", ""),
                ("routes.toml", "[a]\nroutes = [\"x\", \"y\"]"),
            ],
            &[
                "a.cedar:1:1…no `@id`",
                "a.cedar:3:7…unexpected token",
                "a.cedar:4:1…already used",
                "b.cedar:1:1…no `@id`",
                "b.cedar:1:45…attribute `a`",
                "b.cedar:1:60…attribute `b`",
                "notes.txt:1:1…rename or remove",
                "routes.toml:2:11…not a route",
                "routes.toml:2:16…not a route",
            ],
        );
    }

    #[test]
    fn selected_headers_are_words_of_policies() {
        let headers = ("headers.toml", "headers = ['x-tenant']");
        let policy = |action: &str, condition: &str| {
            format!(
                "@id(\"x\") permit (principal, action == Hoplite::Action::\"{action}\", resource)\nwhen {{ {condition} }};"
            )
        };
        let tenant = "context.hdr has \"x-tenant\" && context.hdr[\"x-tenant\"] == \"a\"";
        let good = policy("GET", tenant);
        let snapshot = Snapshot::compile(&sources(&[("a.cedar", &good), headers])).unwrap();
        assert_eq!(snapshot.headers().iter().collect::<Vec<_>>(), ["x-tenant"]);
        assert!(Snapshot::compile(&[]).unwrap().headers().is_empty());

        let unknown = ["a.cedar:2:8…attribute `hdr`", "a.cedar:2:38…attribute `hdr`"];
        faults(&[("a.cedar", &good)], &unknown);
        // A connection has no headers.
        faults(&[("a.cedar", &policy("connect", tenant)), headers], &unknown);
        let unasked = policy("GET", "context.hdr[\"x-tenant\"] == \"a\"");
        faults(
            &[("a.cedar", &unasked), headers],
            &["a.cedar:2:8…optional attribute `hdr[\"x-tenant\"]`"],
        );
        let misspelt = policy(
            "GET",
            "context.hdr has \"x-tenant\" && context.hdr[\"x-tennant\"] == \"a\"",
        );
        faults(
            &[("a.cedar", &misspelt), headers],
            &["a.cedar:2:38…attribute `hdr[\"x-tennant\"]`"],
        );
        faults(
            &[("a.cedar", READ), ("headers.toml", "headers = ['cookie', 'host']")],
            &["headers.toml:1:12…holds a secret", "headers.toml:1:22…`context.host`"],
        );
        faults(
            &[("pay/headers.toml", "headers = ['a']")],
            &["pay/headers.toml:1:1…neither"],
        );
    }

    #[test]
    fn what_stays_is_taken_over_and_checked_where_it_now_stands() {
        let (one, two) = (
            "@id(\"one\") @owner(\"a\") permit (principal, action == Hoplite::Action::\"GET\", resource in Hoplite::Service::\"s\") when { context.hdr has \"x-tenant\" };",
            "@id(\"two\") @owner(\"a\") forbid (principal, action, resource in Hoplite::Service::\"s\");",
        );
        let of_team = |name: &str, services: &str| format!("[{name}]\nowner = \"a\"\nservices = [{services}]");
        let both = format!("{one}\n{two}");
        let headers = ("headers.toml", "headers = ['x-tenant']");
        let modules = of_team("m", "\"s\"");
        let files = [("m/a.cedar", both.as_str()), ("modules.toml", &modules), headers];
        let first = Snapshot::compile(&sources(&files)).unwrap();
        let src = |snapshot: &Snapshot, id: &str| {
            let policy = snapshot
                .evaluator()
                .unwrap()
                .policies()
                .policy(&PolicyId::new(id))
                .unwrap();
            crate::cedar::shared_text(policy).unwrap()
        };

        let changed = two.replace("forbid", "permit");
        let next = format!("{changed}\n// moved\n{one}");
        let files = [("m/b.cedar", next.as_str()), ("modules.toml", &modules), headers];
        let second = first.recompile(&sources(&files)).unwrap();
        assert!(
            Arc::ptr_eq(&src(&first, "one"), &src(&second, "one")),
            "not parsed again"
        );
        assert!(!Arc::ptr_eq(&src(&first, "two"), &src(&second, "two")));
        assert!(!second.is_forbid(&PolicyId::new("two")));
        assert_eq!(
            second.revision(),
            Snapshot::compile(&sources(&files)).unwrap().revision()
        );
        assert!(first.is_forbid(&PolicyId::new("two")), "and the old one is as it was");

        // What depends on more than its text is found as if it were new.
        let others = of_team("m", "\"t\"");
        for (files, expected) in [
            (
                vec![("m/b.cedar", next.as_str()), ("modules.toml", &modules)],
                "attribute `hdr`",
            ),
            (
                vec![("m/b.cedar", &next), ("modules.toml", &others), headers],
                "`s` is not the module `m`'s",
            ),
            (
                vec![
                    ("m/a.cedar", &both),
                    ("m/b.cedar", one),
                    ("modules.toml", &modules),
                    headers,
                ],
                "already used at m/a.cedar:1:1",
            ),
        ] {
            let faults = |result: Result<Snapshot, Vec<Fault>>| {
                let faults = result.expect_err(expected);
                faults.iter().map(ToString::to_string).collect::<Vec<_>>()
            };
            let found = faults(second.recompile(&sources(&files)));
            assert!(found.iter().any(|fault| fault.contains(expected)), "{found:?}");
            assert_eq!(found, faults(Snapshot::compile(&sources(&files))));
        }
    }

    #[test]
    fn sources_that_clash() {
        faults(&[("a.cedar", READ), ("a.cedar", "")], &["a.cedar:1:1…two sources"]);
    }

    #[test]
    fn no_more_faults_are_told_than_anybody_reads() {
        let text = ";\n".repeat(100_000);
        let faults = Snapshot::compile(&sources(&[("a.cedar", &text)])).unwrap_err();
        assert_eq!(faults.len(), FAULTS_MAX + 1);
        assert!(faults[FAULTS_MAX - 1].to_string().starts_with("a.cedar:1000:1: "));
        assert!(faults[FAULTS_MAX].to_string().contains("more than 1000 faults"));
    }

    #[test]
    fn templates_are_refused() {
        faults(
            &[(
                "a.cedar",
                "@id(\"x\") permit (principal == ?principal, action, resource);",
            )],
            &["a.cedar:1:1…in place of `?principal`"],
        );
    }

    #[test]
    fn sizes_are_bounded() {
        let policy =
            |condition: &str| format!("@id(\"x\") permit (principal, action, resource) when {{ {condition} }};");
        let long = policy(&format!("\"{}\" == \"\"", "a".repeat(POLICY_BYTES_MAX)));
        faults(&[("a.cedar", &long)], &["a.cedar:1:1…longer than 10000 bytes"]);
        let comment = format!("//{}", "a".repeat(TOTAL_BYTES_MAX / 2));
        faults(
            &[("a.cedar", &comment), ("b.cedar", &comment)],
            &["b.cedar:1:1…exceed 33554432 bytes"],
        );
        let nested = |depth: usize| policy(&format!("{}true{}", "(".repeat(depth), ")".repeat(depth)));
        faults(
            &[("a.cedar", &nested(NESTING_MAX))],
            &["a.cedar:1:1…nests deeper than 32"],
        );
        Snapshot::compile(&sources(&[("a.cedar", &nested(NESTING_MAX - 1))])).unwrap();
    }

    #[test]
    fn the_deepest_policies_are_still_validated() {
        let compile = |condition: String| {
            let text = format!("@id(\"x\") permit (principal, action, resource) when {{ {condition} }};");
            Snapshot::deny_all("")
                .compile_here(&sources(&[("a.cedar", &text)]))
                .map_err(|faults| faults[0].to_string())
        };
        on_stack(COMPILE_STACK_BYTES / 4, || {
            // Each holds a fault at its very bottom. The operators leave room for the brackets around.
            let links = CHAIN_MAX - 10;
            for (start, link, count, end) in [
                ("principal", ".a", links, ""),
                ("principal.a", " + 1", links, " == 1"),
                ("principal.a", " * 1", links, " == 1"),
                ("principal.a", " && true", links / 2, ""),
                ("principal.a", " || true", links / 2, ""),
                (
                    "",
                    "if context.conn.dow == \"\" then true else ",
                    links / 3,
                    "principal.a",
                ),
                ("principal", "[\"a\"]", links, ""),
                ("principal.a", "} when { true", links, ""),
            ] {
                let result = compile(format!("{start}{}{end}", link.repeat(count)));
                assert!(
                    result.as_ref().is_err_and(|fault| fault.contains("attribute `a`")),
                    "{link}: {result:?}"
                );
                let result = compile(format!("{start}{}{end}", link.repeat(count + 20)));
                assert!(
                    result.as_ref().is_err_and(|fault| fault.contains("chains more")),
                    "{link}: {result:?}"
                );
            }
            for (open, close) in [
                ("(", ")"),
                ("[", "]"),
                ("{a:", "}"),
                ("ip(", ")"),
                ("!(", ")"),
                ("if (", ") then 1 else 2"),
            ] {
                let depth = NESTING_MAX - 1;
                let result = compile(format!("{}principal.a{}", open.repeat(depth), close.repeat(depth)));
                assert!(result.is_err(), "{open}");
            }
        })
        .unwrap();
    }
}
