//! Test tables: what a policy should say to a list of requests, written the way people like to write it.
//!
//! ```text
//! [trust-domain prod.acme]
//! # who              does                       expect
//! /ns/web/sa/shop    GET ledger /accounts/7     allow by pay/read
//! /ns/web/sa/shop    POST ledger /entries       no_permit
//! /ns/bad            connect postgres           forbid by sec/no-bad
//!
//! /ns/web/sa/shop    GET ledger / x-tenant=acme content-type="text/plain; charset=utf-8" allow
//!
//! [from 10.20.0.9 at 2026-11-23T03:00:00Z]      # for the lines that follow
//! spiffe://other.org/x    GET ledger /          no_permit
//! ```
//!
//! Headers are those that the policies select; one that is not written is absent.
//! Settings in brackets hold until they are changed. Nothing is taken from the machine the table is run on: without
//! settings a call comes from 127.0.0.1 at noon of Monday, 5 January 2026, and its host is the service's name.
//!
//! A source that ends in `.json` is read as Cedar's own tests (`cedar run-tests`).

mod case;
mod run_tests;

use crate::view::Places;
use case::{Case, Expected, Question, Word, Wrong};
use hoplite_identity::{InvalidSpiffeId, ServiceName, SpiffeId, TrustDomain};
use hoplite_policy::files::HEADERS_FILE;
use hoplite_policy::text::Text;
use hoplite_policy::{Ambiguous, Ask, Asked, CanonicalRequest, Fault, SelectedHeaders, Snapshot, Source, Verdict};
use std::fmt;
use std::net::{AddrParseError, IpAddr, Ipv4Addr};
use std::time::{Duration, SystemTime};

pub use case::CaseResult;

/// The longest table; some 50 000 cases.
pub const TABLE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The most faults told of one table.
const TABLE_FAULTS_MAX: usize = 100;
/// Cases that are explained, of those that fail: it takes a look at every policy.
const EXPLAINED_MAX: usize = 100;
/// When a call is made unless the table says: 2026-01-05T12:00:00Z, a Monday.
const DEFAULT_NOW: Duration = Duration::from_secs(1_767_614_400);

/// A table of cases, read and ready to be asked of any snapshot.
#[derive(Debug, Clone)]
pub struct CaseTable {
    name: String,
    cases: Vec<Case>,
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

// === impl CaseTable ===

impl CaseTable {
    /// Reads a table, or Cedar's tests where the name ends in `.json`, for policies that select these headers. A table
    /// without cases is legal.
    ///
    /// # Errors
    /// Every fault, in the order of the text. Nothing of a table with a fault can be run.
    pub fn parse(source: &Source, headers: &SelectedHeaders) -> Result<Self, Vec<Fault>> {
        if source.text.len() > TABLE_BYTES_MAX {
            let reason = format!("the table is longer than {TABLE_BYTES_MAX} bytes; split it");
            return Err(vec![Fault::at(&source.name, "", 0, reason)]);
        }
        let cases = if source.name.ends_with(".json") {
            run_tests::parse(&source.text, headers)
        } else {
            rows(&source.text, headers)
        };
        match cases {
            Ok(cases) => Ok(Self {
                name: source.name.clone(),
                cases,
            }),
            Err(wrong) => {
                let text = Text::new(&source.name, &source.text);
                let told = wrong.into_iter().take(TABLE_FAULTS_MAX);
                Err(told.map(|(offset, reason)| text.fault(offset, reason)).collect())
            }
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
            let result = case.run(snapshot, (failed < EXPLAINED_MAX).then_some(places));
            failed += usize::from(!result.passed);
            result
        });
        results.collect()
    }
}

/// The cases of a plain table.
fn rows(text: &str, headers: &SelectedHeaders) -> Result<Vec<Case>, Vec<Wrong>> {
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
        match settings.case((number + 1, column), &tokens, headers) {
            Ok(case) => cases.push(case),
            Err(fault) => wrong.push(fault),
        }
    }
    if wrong.is_empty() { Ok(cases) } else { Err(wrong) }
}

/// The words of a line up to its comment, which starts with a `#` after a space. In a word, spaces between quotes are part
/// of it.
fn tokens(line: &str, start: usize) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut at = start;
    let mut quoted = false;
    let parts = line.split(|c: char| {
        quoted ^= c == '"';
        c.is_whitespace() && !quoted
    });
    for text in parts {
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

/// Why a setting cannot have this value.
#[derive(Debug, thiserror::Error)]
enum BadSetting {
    #[error(transparent)]
    TrustDomain(#[from] InvalidSpiffeId),
    #[error("it is no address")]
    NoAddress(#[from] AddrParseError),
    #[error("it is no instant in UTC")]
    NoInstant,
    #[error(transparent)]
    Host(#[from] Ambiguous),
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

    fn set(&mut self, setting: &str, value: &str) -> Result<(), BadSetting> {
        match setting {
            "trust-domain" => self.trust_domain = Some(TrustDomain::parse(value)?),
            "from" => self.source = value.parse()?,
            "at" => self.now = instant(value).ok_or(BadSetting::NoInstant)?,
            _ => {
                let request = CanonicalRequest::parse("GET", &[value.as_bytes()], b"/")?;
                self.host = Some(request.host().to_owned());
            }
        }
        Ok(())
    }

    /// Reads `who  does  expect`.
    fn case(&self, place: (usize, usize), tokens: &[Token<'_>], headers: &SelectedHeaders) -> Result<Case, Wrong> {
        const FORM: &str = "write a case as `caller METHOD service /path outcome` or `caller connect service outcome`";
        let end = tokens.last().map_or(0, |last| last.offset + last.text.len());
        let missing = |what: &str| (end, format!("the case has no {what}; {FORM}"));
        let mut rest = tokens.iter().copied().peekable();
        let caller = rest.next().ok_or_else(|| missing("caller"))?;
        let principal = self.caller(caller)?;
        let action = rest.next().ok_or_else(|| missing("method"))?;
        let service = rest.next().ok_or_else(|| missing("service"))?;
        let name = ServiceName::parse(service.text).map_err(|invalid| (service.offset, invalid.to_string()))?;
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
            let mut fields = Vec::new();
            while let Some(field) = rest.next_if(|token| token.text.contains('=')) {
                last = field;
                fields.push(field.header(headers)?);
            }
            let host = self.host.as_deref().unwrap_or(service.text);
            CanonicalRequest::parse(action.text, &[host.as_bytes()], target.text.as_bytes())
                .and_then(|request| request.with_headers(headers, fields))
                .map(Asked::Http)
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
                service: name,
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
    if matches!(word, Word::Malformed | Word::Decided(Verdict::NoPermit)) {
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

impl<'a> Token<'a> {
    /// Name and value of `x-tenant=acme` or `content-type="text/plain; charset=utf-8"`.
    fn header(self, selected: &SelectedHeaders) -> Result<(&'a str, &'a [u8]), Wrong> {
        let (name, value) = self.text.split_once('=').unwrap_or((self.text, ""));
        if !selected.iter().any(|header| header == name) {
            return Err(self.wrong(format!(
                "is no header that `{HEADERS_FILE}` selects, so no policy can look at it; add it there, or remove it here"
            )));
        }
        let value = match value.strip_prefix('"') {
            Some(rest) => rest
                .strip_suffix('"')
                .ok_or_else(|| self.wrong("has no closing `\"`; put one behind the value"))?,
            None => value,
        };
        Ok((name, value.as_bytes()))
    }

    fn wrong(self, what: impl fmt::Display) -> Wrong {
        /// The most of a stranger's word that is repeated.
        const SHOWN: usize = 80;
        let shown: String = self.text.chars().take(SHOWN).flat_map(char::escape_debug).collect();
        (self.offset, format!("`{shown}` {what}"))
    }
}

#[cfg(test)]
mod tests;
