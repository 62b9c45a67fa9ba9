//! Test tables: what a policy should say to a list of requests, written the way people like to write it.
//!
//! ```text
//! [trust-domain prod.acme]
//! # who              does                       expect
//! /ns/web/sa/shop    GET ledger /accounts/7     allow by pay/read
//! /ns/web/sa/shop    POST ledger /entries       no_permit
//! /ns/bad            connect postgres           forbid by sec/no-bad
//!
//! [from 10.20.0.9 at 2026-11-23T03:00:00Z]      # for the lines that follow
//! spiffe://other.org/x    GET ledger /          no_permit
//! ```
//!
//! Settings in brackets hold until they are changed. Nothing is taken from the machine the table is run on: without
//! settings a call comes from 127.0.0.1 at noon of Monday, 5 January 2026, and its host is the service's name.
//!
//! A source that ends in `.json` is read as Cedar's own tests (`cedar run-tests`).

mod run_tests;

use crate::ask::{Ask, Asked};
use crate::canonical::{Ambiguous, CanonicalRequest};
use crate::decide::{Decision, Outcome};
use crate::explain::Explanation;
use crate::fault::Fault;
use crate::routes::check_service_name;
use crate::snapshot::{Snapshot, Source};
use crate::view::Places;
use hoplite_identity::{SpiffeId, TrustDomain};
use run_tests::GivenCase;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, SystemTime};

/// The longest table; some 50 000 cases.
pub const MAX_TABLE_BYTES: usize = 4 * 1024 * 1024;
/// The most faults told of one table.
const MAX_TABLE_FAULTS: usize = 100;
/// Cases that are explained, of those that fail: it takes a look at every policy.
const MAX_EXPLAINED: usize = 100;
/// The most lines of what nearly decided one case.
const MAX_NEARLY: usize = 8;
/// When a call is made unless the table says: 2026-01-05T12:00:00Z, a Monday.
const DEFAULT_NOW: Duration = Duration::from_secs(1_767_614_400);

/// A table of cases, read and ready to be asked of any snapshot.
#[derive(Debug, Clone)]
pub struct CaseTable {
    name: String,
    cases: Vec<Case>,
}

/// What came of one case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaseResult {
    /// The line of the table, from 1.
    pub line: usize,
    /// The column, from 1.
    pub column: usize,
    /// The case as it is written, without what is expected.
    pub case: String,
    /// What is expected, as a table writes it.
    pub expected: String,
    /// What came out, as a table writes it.
    pub found: String,
    /// Whether the two agree.
    pub passed: bool,
    /// What helps to understand it, a sentence each.
    pub why: Vec<String>,
    /// The policies that decided.
    pub determining: Vec<String>,
}

#[derive(Debug, Clone)]
struct Case {
    place: (usize, usize),
    text: String,
    question: Question,
    expected: Expected,
}

#[derive(Debug, Clone)]
enum Question {
    Ask(Box<Ask>),
    /// A request that no policy is asked about.
    Malformed(Ambiguous),
    /// Request and entities as Cedar's tests give them.
    Given(Box<GivenCase>),
}

/// What should come out.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Expected {
    /// One word, and policies that must be among those which settle it.
    Word { word: Word, by: Vec<String> },
    /// Cedar's words.
    Cedar {
        allow: bool,
        reason: Vec<String>,
        errors: usize,
    },
}

/// The last word of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Decided(Outcome),
    /// Refused with 400 before any policy is asked.
    Malformed,
}

/// What the lines in brackets say.
#[derive(Debug, Clone)]
struct Settings {
    trust_domain: Option<TrustDomain>,
    source: IpAddr,
    now: SystemTime,
    host: Option<String>,
}

/// A word of a line and the byte of the table it starts at.
#[derive(Debug, Clone, Copy)]
struct Token<'a> {
    offset: usize,
    text: &'a str,
}

/// Where in the table, and what is wrong there.
type Wrong = (usize, String);

// === impl CaseTable ===

impl CaseTable {
    /// Reads a table, or Cedar's tests where the name ends in `.json`. A table without cases is legal.
    ///
    /// # Errors
    /// Every fault, in the order of the text. Nothing of a table with a fault can be run.
    pub fn parse(source: &Source) -> Result<Self, Vec<Fault>> {
        if source.text.len() > MAX_TABLE_BYTES {
            let reason = format!("the table is longer than {MAX_TABLE_BYTES} bytes; split it");
            return Err(vec![Fault::at(&source.name, "", 0, reason)]);
        }
        let cases = if source.name.ends_with(".json") {
            run_tests::parse(&source.text)
        } else {
            rows(&source.text)
        };
        match cases {
            Ok(cases) => Ok(Self {
                name: source.name.clone(),
                cases,
            }),
            Err(wrong) => Err(wrong
                .into_iter()
                .take(MAX_TABLE_FAULTS)
                .map(|(offset, reason)| Fault::at(&source.name, &source.text, offset, reason))
                .collect()),
        }
    }

    /// The name of the source it was read from.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many cases there are.
    pub fn len(&self) -> usize {
        self.cases.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.cases.is_empty()
    }

    /// What comes of every case, in order. Nothing is counted or recorded. `places` says where the policies stand that nearly
    /// decided a case which came out otherwise.
    pub fn run(&self, snapshot: &Snapshot, places: &Places<'_>) -> Vec<CaseResult> {
        let mut failed = 0;
        let results = self.cases.iter().map(|case| {
            let result = case.run(snapshot, (failed < MAX_EXPLAINED).then_some(places));
            failed += usize::from(!result.passed);
            result
        });
        results.collect()
    }
}

/// The cases of a plain table.
fn rows(text: &str) -> Result<Vec<Case>, Vec<Wrong>> {
    let mut settings = Settings::default();
    let mut cases = Vec::new();
    let mut wrong = Vec::new();
    let mut offset = text.len() - text.trim_start_matches('\u{feff}').len();
    for (number, line) in text.trim_start_matches('\u{feff}').split('\n').enumerate() {
        let tokens = tokens(line, offset);
        offset += line.len() + 1;
        let Some(first) = tokens.first() else { continue };
        if first.text.starts_with('[') {
            settings.change(&tokens).unwrap_or_else(|fault| wrong.push(fault));
            continue;
        }
        let column = line.chars().take_while(|c| c.is_whitespace()).count() + 1;
        match settings.case((number + 1, column), &tokens) {
            Ok(case) => cases.push(case),
            Err(fault) => wrong.push(fault),
        }
    }
    if wrong.is_empty() { Ok(cases) } else { Err(wrong) }
}

/// The words of a line up to its comment, which starts with a `#` after a space.
fn tokens(line: &str, start: usize) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut at = start;
    for text in line.split(char::is_whitespace) {
        if text.starts_with('#') {
            break;
        }
        if !text.is_empty() {
            tokens.push(Token { offset: at, text });
        }
        // What `split` ate is one character; of what length is only known from what is left.
        at += text.len();
        at += line
            .get(at - start..)
            .and_then(|rest| rest.chars().next())
            .map_or(0, char::len_utf8);
    }
    tokens
}

// === impl Settings ===

impl Default for Settings {
    fn default() -> Self {
        Self {
            trust_domain: None,
            source: Ipv4Addr::LOCALHOST.into(),
            now: SystemTime::UNIX_EPOCH + DEFAULT_NOW,
            host: None,
        }
    }
}

impl Settings {
    /// Takes a line like `[from 10.20.0.9 at 2026-11-23T03:00:00Z]`.
    fn change(&mut self, tokens: &[Token<'_>]) -> Result<(), Wrong> {
        let (Some(first), Some(last)) = (tokens.first(), tokens.last()) else {
            return Ok(());
        };
        if !last.text.ends_with(']') {
            return Err((
                first.offset,
                "the settings have no end; put `]` after the last one".to_owned(),
            ));
        }
        let mut words = tokens.iter().filter_map(|token| {
            let opened = token.text.strip_prefix('[').filter(|_| token.offset == first.offset);
            let text = opened.unwrap_or(token.text);
            let offset = token.offset + token.text.len() - text.len();
            let text = text
                .strip_suffix(']')
                .filter(|_| token.offset == last.offset)
                .unwrap_or(text);
            (!text.is_empty()).then_some(Token { offset, text })
        });
        let mut some = false;
        while let Some(word) = words.next() {
            some = true;
            if !matches!(word.text, "trust-domain" | "from" | "at" | "host") {
                return Err(word.wrong("is no setting; there are `trust-domain`, `from`, `at` and `host`"));
            }
            let value = words
                .next()
                .ok_or_else(|| word.wrong(format!("has no value; write it like `{}`", example(word.text))))?;
            self.set(word.text, value.text).map_err(|why| {
                value.wrong(format!(
                    "is no value for `{}`: {why}; write it like `{}`",
                    word.text,
                    example(word.text)
                ))
            })?;
        }
        if some {
            Ok(())
        } else {
            Err((
                first.offset,
                "there is no setting in the brackets; remove them".to_owned(),
            ))
        }
    }

    fn set(&mut self, setting: &str, value: &str) -> Result<(), String> {
        match setting {
            "trust-domain" => self.trust_domain = Some(TrustDomain::parse(value).map_err(|error| error.to_string())?),
            "from" => self.source = value.parse().map_err(|_| "it is no address".to_owned())?,
            "at" => self.now = instant(value).ok_or("it is no instant in UTC")?,
            _ => {
                let request =
                    CanonicalRequest::parse("GET", &[value.as_bytes()], b"/").map_err(|error| error.to_string())?;
                self.host = Some(request.host().to_owned());
            }
        }
        Ok(())
    }

    /// Reads `who  does  expect`.
    fn case(&self, place: (usize, usize), tokens: &[Token<'_>]) -> Result<Case, Wrong> {
        const FORM: &str = "write a case as `caller METHOD service /path outcome` or `caller connect service outcome`";
        let end = tokens.last().map_or(0, |last| last.offset + last.text.len());
        let missing = |what: &str| (end, format!("the case has no {what}; {FORM}"));
        let mut rest = tokens.iter().copied();
        let caller = rest.next().ok_or_else(|| missing("caller"))?;
        let principal = self.caller(caller)?;
        let action = rest.next().ok_or_else(|| missing("method"))?;
        let service = rest.next().ok_or_else(|| missing("service"))?;
        check_service_name(service.text).map_err(|reason| (service.offset, reason))?;
        let mut last = service;
        let what = if action.text == "connect" {
            Ok(Asked::Connect)
        } else if action.text.starts_with(|c: char| c.is_ascii_uppercase()) {
            let target = rest.next().ok_or_else(|| missing("path"))?;
            if !target.text.starts_with('/') && target.text != "*" {
                return Err(target.wrong(
                    "is no path, which starts with `/`; for a connection without HTTP write `connect service`",
                ));
            }
            last = target;
            let host = self.host.as_deref().unwrap_or(service.text);
            CanonicalRequest::parse(action.text, &[host.as_bytes()], target.text.as_bytes()).map(Asked::Http)
        } else {
            let upper = action.text.to_uppercase();
            return Err(action.wrong(format!(
                "is neither `connect` nor a method, which is in upper case like `{upper}`"
            )));
        };
        let outcome = rest.next().ok_or_else(|| missing("outcome"))?;
        let word = Word::parse(outcome.text).ok_or_else(|| outcome.wrong(Word::REMEDY))?;
        let by = policies(outcome, word, rest)?;
        // As it is written, with one space where there are more.
        let written: Vec<&str> = tokens
            .iter()
            .take_while(|token| token.offset <= last.offset)
            .map(|token| token.text)
            .collect();
        let question = match what {
            Ok(what) => Question::Ask(Box::new(Ask {
                principal,
                service: service.text.to_owned(),
                what,
                source: self.source,
                now: self.now,
            })),
            Err(ambiguous) => Question::Malformed(ambiguous),
        };
        Ok(Case {
            place,
            text: written.join(" "),
            question,
            expected: Expected::Word { word, by },
        })
    }

    fn caller(&self, token: Token<'_>) -> Result<SpiffeId, Wrong> {
        let parsed = match &self.trust_domain {
            Some(trust_domain) if token.text.starts_with('/') => trust_domain.member(token.text),
            None if token.text.starts_with('/') => {
                return Err(token.wrong("has no trust domain; put a line like `[trust-domain prod.acme]` above, or write the whole SPIFFE ID"));
            }
            _ => SpiffeId::parse(token.text),
        };
        parsed.map_err(|error| {
            let reason = format!("{error}; write a caller as `/ns/web/sa/shop` or `spiffe://prod.acme/ns/web/sa/shop`");
            (token.offset, reason)
        })
    }
}

/// What follows an outcome: nothing, or `by` and policies.
fn policies<'a>(
    outcome: Token<'a>,
    word: Word,
    mut rest: impl Iterator<Item = Token<'a>>,
) -> Result<Vec<String>, Wrong> {
    let Some(by) = rest.next() else { return Ok(Vec::new()) };
    if by.text != "by" {
        return Err(
            by.wrong("does not belong here; after the outcome comes `by` with policies, or a comment after `#`")
        );
    }
    if matches!(word, Word::Malformed | Word::Decided(Outcome::NoPermit)) {
        return Err(by.wrong(format!(
            "does not go with `{}`, which no policy decides; remove it",
            outcome.text
        )));
    }
    let ids = rest.flat_map(|token| token.text.split(',')).filter(|id| !id.is_empty());
    let ids: Vec<String> = ids.map(str::to_owned).collect();
    if ids.is_empty() {
        return Err(by.wrong("has no policy after it; write the policy's `@id`, or several with commas"));
    }
    Ok(ids)
}

fn example(setting: &str) -> &'static str {
    match setting {
        "trust-domain" => "[trust-domain prod.acme]",
        "from" => "[from 10.20.0.9]",
        "at" => "[at 2026-11-23T03:00:00Z]",
        _ => "[host ledger.prod.acme]",
    }
}

/// An instant of RFC 3339 in UTC; seconds may be left out.
fn instant(text: &str) -> Option<SystemTime> {
    let with_seconds = text.strip_suffix('Z').map(|minutes| format!("{minutes}:00Z"));
    humantime::parse_rfc3339(text)
        .ok()
        .or_else(|| humantime::parse_rfc3339(&with_seconds?).ok())
}

// === impl Token ===

impl Token<'_> {
    fn wrong(self, what: impl fmt::Display) -> Wrong {
        /// The most of a stranger's word that is repeated.
        const SHOWN: usize = 80;
        let shown: String = self.text.chars().take(SHOWN).flat_map(char::escape_debug).collect();
        (self.offset, format!("`{shown}` {what}"))
    }
}

// === impl Word ===

impl Word {
    const REMEDY: &str = "is no outcome; write `allow`, `forbid` (a forbid applies), `no_permit` (nothing permits it), \
                          `error` (it cannot be decided) or `malformed` (refused before any policy)";

    fn parse(text: &str) -> Option<Self> {
        let decided = [Outcome::Allow, Outcome::Forbid, Outcome::NoPermit, Outcome::Error];
        match text {
            "malformed" => Some(Self::Malformed),
            _ => decided
                .into_iter()
                .find(|outcome| outcome.as_str() == text)
                .map(Self::Decided),
        }
    }
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Decided(outcome) => outcome.as_str(),
            Self::Malformed => "malformed",
        })
    }
}

// === impl Case ===

impl Case {
    /// With `places`, a case that fails says what nearly decided it.
    fn run(&self, snapshot: &Snapshot, places: Option<&Places<'_>>) -> CaseResult {
        let mut why = Vec::new();
        let (supposed, given);
        let decision = match &self.question {
            Question::Malformed(ambiguous) => {
                why.push(ambiguous.to_string());
                None
            }
            Question::Ask(ask) => {
                supposed = snapshot.what_if(ask);
                why.extend(supposed.route().map(|route| format!("the route is `{route}`")));
                Some(supposed.decision())
            }
            Question::Given(case) => {
                given = case.decide(snapshot);
                Some(&given)
            }
        };
        if let Some(decision) = decision {
            why.extend(decision.reason().map(str::to_owned));
            why.extend(decision.errors().iter().map(|error| format!("not evaluated: {error}")));
        }
        let named = match &self.expected {
            Expected::Word { by, .. } => by,
            Expected::Cedar { reason, .. } => reason,
        };
        let known: Vec<&str> = snapshot.policy_ids().collect();
        for id in named.iter().filter(|id| known.binary_search(&id.as_str()).is_err()) {
            why.push(format!("no policy has the `@id` `{id}`"));
        }
        let passed = self.expected.is(decision);
        if let (false, Question::Ask(ask), Some(places)) = (passed, &self.question, places) {
            why.extend(nearly(snapshot.explain(ask, places)));
        }
        CaseResult {
            line: self.place.0,
            column: self.place.1,
            case: self.text.clone(),
            expected: self.expected.to_string(),
            found: self.expected.said(decision),
            passed,
            why,
            determining: decision
                .map(|decision| decision.determining().to_vec())
                .unwrap_or_default(),
        }
    }
}

/// What nearly decided, as far as a table shows it.
fn nearly(explanation: Explanation) -> Vec<String> {
    let mut lines = explanation.nearly();
    let further = match explanation.what_if.decision().outcome() {
        Outcome::NoPermit => explanation.further_misses,
        _ => 0,
    };
    let more = lines.len().saturating_sub(MAX_NEARLY) + further;
    lines.truncate(MAX_NEARLY);
    if more > 0 {
        lines.push(format!("and {more} more; `hoplite policy explain` shows them"));
    }
    lines
}

// === impl Expected ===

impl Expected {
    /// Whether this came out. No decision is a malformed request.
    fn is(&self, decision: Option<&Decision>) -> bool {
        match self {
            Self::Word { word, by } => match (word, decision) {
                (Word::Malformed, None) => true,
                (Word::Decided(outcome), Some(decision)) => {
                    *outcome == decision.outcome() && by.iter().all(|id| settled(decision).contains(&id.as_str()))
                }
                _ => false,
            },
            Self::Cedar { allow, reason, errors } => decision.is_some_and(|decision| {
                *allow == (decision.outcome() == Outcome::Allow)
                    && reason.iter().all(|id| decision.determining().contains(id))
                    && *errors == decision.errors().len()
            }),
        }
    }

    /// What came out in the words of what was expected.
    fn said(&self, decision: Option<&Decision>) -> String {
        let Some(decision) = decision else {
            return Word::Malformed.to_string();
        };
        match self {
            Self::Word { .. } => words(decision.outcome(), &settled(decision)),
            Self::Cedar { .. } => {
                let allow = decision.outcome() == Outcome::Allow;
                cedars_words(allow, decision.determining(), decision.errors().len())
            }
        }
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&match self {
            Self::Word { word, by } => words(word, by),
            Self::Cedar { allow, reason, errors } => cedars_words(*allow, reason, *errors),
        })
    }
}

/// The policies that settled a decision: of an error those that could not be evaluated.
fn settled(decision: &Decision) -> Vec<&str> {
    if decision.outcome() == Outcome::Error {
        // An id holds no space, so the first colon and space end it.
        let errors = decision.errors().iter();
        errors.filter_map(|error| error.split(": ").next()).collect()
    } else {
        decision.determining().iter().map(String::as_str).collect()
    }
}

fn words<S: AsRef<str>>(word: impl fmt::Display, by: &[S]) -> String {
    let by: Vec<&str> = by.iter().map(AsRef::as_ref).collect();
    if by.is_empty() {
        word.to_string()
    } else {
        format!("{word} by {}", by.join(", "))
    }
}

fn cedars_words(allow: bool, reason: &[String], errors: usize) -> String {
    let word = words(if allow { "allow" } else { "deny" }, reason);
    format!("{word}, errors: {errors}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICIES: &str = r#"
@id("pay/read") permit (
  principal in Hoplite::Path::"prod.acme/ns/web", action in [Hoplite::Action::"read"], resource in Hoplite::Service::"ledger");
@id("pay/office") permit (principal, action, resource == Hoplite::Route::"ledger:POST /entries")
when { context.conn.src.isInRange(ip("10.20.0.0/16")) && context.conn.dow == "Mon" && context.host == "ledger" };
@id("pay/night") permit (principal, action, resource == Hoplite::Route::"ledger:POST /entries")
when { context.conn.now.toTime() < duration("6h") };
@id("sec/no-bad") forbid (principal in Hoplite::Path::"prod.acme/ns/bad", action, resource);
@id("sec/broken") forbid (principal, action == Hoplite::Action::"DELETE", resource)
when { context.seg.n * 9223372036854775807 > 0 };
@id("db/connect") permit (principal, action == Hoplite::Action::"connect", resource == Hoplite::Service::"postgres");
"#;

    pub(super) fn source(name: &str, text: &str) -> Source {
        Source {
            name: name.to_owned(),
            text: text.to_owned(),
        }
    }

    pub(super) fn snapshot() -> Snapshot {
        let routes = "[ledger]\nroutes = [\"GET /accounts/{id}\", \"POST /entries\"]";
        Snapshot::compile(&[source("a.cedar", POLICIES), source("routes.toml", routes)]).unwrap()
    }

    /// Runs the table and expects each case to come out as it says, unless it says `!`: then that comes out instead.
    #[track_caller]
    fn check(table: &str) {
        let parsed = CaseTable::parse(&source("a.test", table)).unwrap_or_else(|faults| panic!("{faults:#?}"));
        let results = parsed.run(&snapshot(), &Places::default());
        assert_eq!(results.len(), parsed.len());
        for result in &results {
            let line = table.lines().nth(result.line - 1).unwrap();
            assert_eq!(result.column, line.len() - line.trim_start().len() + 1);
            match line.split_once('!') {
                None => assert!(result.passed, "{line}\n{result:#?}"),
                Some((_, found)) => {
                    assert!(!result.passed, "{line}");
                    assert_eq!(result.found, found.trim(), "{line}\n{result:#?}");
                }
            }
        }
    }

    #[test]
    fn a_table_says_what_comes_out() {
        check(
            "
[trust-domain prod.acme]
# who                    does                        expect
/ns/web/sa/shop          GET ledger /accounts/7      allow by pay/read
/ns/web/sa/shop          GET ledger /accounts/7      allow            # without `by`
/ns/web                  GET ledger /x?y=z           allow by pay/read
/ns/web                  POST ledger /entries        no_permit
/ns/bad                  connect postgres            forbid by sec/no-bad
/ns/web                  connect postgres            allow by db/connect
/ns/web                  DELETE ledger /a/b          error by sec/broken
/ns/web                  GET ledger /a%2fb           malformed
/ns/web                  TRACE ledger /              malformed
/ns/web                  OPTIONS ledger *            allow
spiffe://other.org/x     GET ledger /accounts/7      no_permit
spiffe://prod.acme       GET ledger /accounts/7      no_permit

[from 10.20.0.9]
/ns/web                  POST ledger /entries        allow by pay/office
[at 2026-11-23T03:00Z]
/ns/web                  POST ledger /entries        allow by pay/office, pay/night
/ns/web                  POST ledger /entries        allow by pay/night,pay/office
  [ at 2026-11-22T03:00:00Z from ::1 ]  # a Sunday
\t/ns/web\tPOST ledger /entries\tallow by pay/night
[at 2026-11-23T12:00:00Z from 10.20.0.9 host other.example]
/ns/web                  POST ledger /entries        no_permit
[trust-domain other.org]
/ns/web                  GET ledger /accounts/7      no_permit
",
        );
        check("");
        check("# nothing\r\n\r\n");
        check("\u{feff}spiffe://a/b GET ledger / no_permit\r\n");
    }

    #[test]
    fn a_case_that_fails_says_what_came_out() {
        check(
            "
[trust-domain prod.acme]
/ns/web    GET ledger /accounts/7      no_permit              #! allow by pay/read
/ns/web    GET ledger /accounts/7      allow by pay/night     #! allow by pay/read
/ns/web    GET ledger /accounts/7      malformed              #! allow by pay/read
/ns/web    GET ledger /a%2fb           allow                  #! malformed
/ns/bad    GET ledger /accounts/7      no_permit              #! forbid by sec/no-bad
/ns/web    DELETE ledger /a/b          forbid                 #! error by sec/broken
/ns/web    PUT ledger /a/b             allow by pay/read      #! no_permit
",
        );
    }

    #[test]
    fn what_nearly_decided_is_told_of_what_fails() {
        let policies = [source("a.cedar", POLICIES)];
        let snapshot = Snapshot::compile(&policies).unwrap();
        let table = "[trust-domain prod.acme]\n/ns/web GET ledger / no_permit\n/ns/web PUT ledger / allow by pay/read\n\
                     /ns/web GET ledger / allow by pay/read";
        let table = CaseTable::parse(&source("a.test", table)).unwrap();
        let results = table.run(&snapshot, &Places::of(&policies));
        let nearly: Vec<_> = results.iter().map(|result| result.why.get(1..).unwrap()).collect();
        assert!(nearly[0].is_empty() && nearly[2].is_empty(), "{nearly:?}");
        let near = "permit `pay/read` is about another action (a.cedar:2:1): ";
        assert!(nearly[1].iter().any(|line| line.starts_with(near)), "{nearly:?}");

        let failing = "spiffe://prod.acme/ns/pay POST ledger /entries allow\n".repeat(MAX_EXPLAINED + 1);
        let table = CaseTable::parse(&source("a.test", &failing)).unwrap();
        let results = table.run(&super::tests::snapshot(), &Places::default());
        let office = "permit `pay/office` does not apply: context.conn.src.isInRange(ip(\"10.20.0.0/16\")), context.conn.src is ";
        let told = |result: &CaseResult| result.why.iter().any(|line| line.starts_with(office));
        assert!(told(&results[0]), "{:#?}", results[0]);
        assert!(told(&results[MAX_EXPLAINED - 1]) && !told(&results[MAX_EXPLAINED]));
    }

    #[test]
    fn the_reasons_are_told() {
        let table = "[trust-domain prod.acme]\n/ns/web DELETE ledger /a/b allow by pay/raed\n/x GET ledger /a;b allow";
        let results = CaseTable::parse(&source("a.test", table))
            .unwrap()
            .run(&snapshot(), &Places::default());
        let [decided, malformed] = &results[..] else {
            panic!("{results:?}")
        };
        assert_eq!(decided.case, "/ns/web DELETE ledger /a/b");
        let why = decided.why.join("\n");
        for part in [
            "the route is `ledger:unmatched`",
            "a forbid could not be evaluated: `sec/broken`",
            "not evaluated: sec/broken: ",
            "no policy has the `@id` `pay/raed`",
        ] {
            assert!(why.contains(part), "{part} is missing from {why}");
        }
        assert_eq!(malformed.why, ["the path holds a `;` parameter"]);
    }

    #[test]
    fn a_broken_snapshot_passes_no_table_that_expects_otherwise() {
        let table = CaseTable::parse(&source(
            "a.test",
            "spiffe://a/b GET x / no_permit\nspiffe://a/b GET x / error",
        ))
        .unwrap();
        let passed: Vec<_> = table
            .run(&Snapshot::deny_all("broken"), &Places::default())
            .iter()
            .map(|r| r.passed)
            .collect();
        assert_eq!(passed, [false, true]);
    }

    /// Each expectation is `line:column` and, after `…`, a part of the reason.
    #[track_caller]
    fn faults(table: &str, expected: &[&str]) {
        let faults = CaseTable::parse(&source("a.test", table)).expect_err("it must be refused");
        let faults: Vec<_> = faults.iter().map(ToString::to_string).collect();
        assert_eq!(faults.len(), expected.len(), "{faults:#?}");
        for (fault, expected) in faults.iter().zip(expected) {
            let (place, reason) = expected.split_once('…').unwrap();
            assert!(
                fault.starts_with(&format!("a.test:{place}: ")) && fault.contains(reason),
                "{fault}\nis not {expected}"
            );
            assert!(
                fault.contains("; ") || fault.contains("upper case"),
                "{fault} does not say what to do"
            );
        }
    }

    #[test]
    fn what_is_unknown_is_refused_with_the_remedy() {
        faults(
            "
/ns/web GET ledger / allow
web GET ledger / allow
[trust-domain prod.acme]
/ns//web GET ledger / allow
/ns/web get ledger / allow
/ns/web read ledger allow
/ns/web GET led/ger / allow
/ns/web GET ledger allow
/ns/web connect ledger / allow
/ns/web GET ledger / deny
/ns/web GET ledger / Allow
/ns/web GET ledger / allow pay/read
/ns/web GET ledger / allow by
/ns/web GET ledger / no_permit by pay/read
/ns/web GET ledger /
/ns/web GET ledger # allow
/ns/web GET
  /ns/web
",
            &[
                "2:1…`/ns/web` has no trust domain",
                "3:1…write a caller as",
                "5:1…empty path segment",
                "6:9…`get` is neither `connect` nor a method, which is in upper case like `GET`",
                "7:9…`read` is neither",
                "8:13…not a service name",
                "9:20…`allow` is no path",
                "10:24…`/` is no outcome",
                "11:22…`deny` is no outcome; write `allow`, `forbid`",
                "12:22…`Allow` is no outcome",
                "13:28…`pay/read` does not belong here",
                "14:28…has no policy after it",
                "15:32…does not go with `no_permit`",
                "16:21…no outcome",
                "17:19…no path",
                "18:12…no service",
                "19:10…no method",
            ],
        );
        faults(
            "[]\n[ ]\n[from]\n[from 10.0.0.300]\n[at noon]\n[at 2026-11-23T03:00:00+01:00]\n[trustdomain a]\n[trust-domain A]\n[host a/b]\n[from ::1\n[from ::1 at]",
            &[
                "1:1…no setting in the brackets",
                "2:1…no setting in the brackets",
                "3:2…`from` has no value; write it like `[from 10.20.0.9]`",
                "4:7…`10.0.0.300` is no value for `from`",
                "5:5…`noon` is no value for `at`",
                "6:5…is no value for `at`",
                "7:2…`trustdomain` is no setting; there are",
                "8:15…is no value for `trust-domain`",
                "9:7…is no value for `host`",
                "10:1…have no end",
                "11:11…`at` has no value",
            ],
        );
        faults(&"x".repeat(MAX_TABLE_BYTES + 1), &["1:1…is longer than"]);
        let many = CaseTable::parse(&source("a.test", &"x\n".repeat(1_000))).unwrap_err();
        assert_eq!(many.len(), MAX_TABLE_FAULTS);
    }

    #[test]
    fn the_default_instant_is_a_monday_noon() {
        assert_eq!(
            SystemTime::UNIX_EPOCH + DEFAULT_NOW,
            humantime::parse_rfc3339("2026-01-05T12:00:00Z").unwrap()
        );
        assert_eq!(instant("2026-11-23T03:00Z"), instant("2026-11-23T03:00:00Z"));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "(\\[|\\]|#|/|[ \\t\\r\\n\u{a0}é]|at|from|by|allow|GET|connect|x|spiffe://a/b){0,40}") {
            if let Ok(table) = CaseTable::parse(&source("a.test", &text)) {
                table.run(&Snapshot::deny_all("none"), &Places::default());
            }
        }
    }
}
