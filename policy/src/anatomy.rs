//! Where the parts of a policy stand in its text. What they mean is Cedar's to say; a tree that it made tells no places.

use crate::statement::token_length;
use cedar_policy::{PolicySet, pst};
use std::ops::Range;
use std::sync::Arc;

/// Bytes within the text of a policy.
pub type Span = Range<usize>;

/// The words, strings and signs of one policy, in order, without comments.
#[derive(Debug)]
pub struct Anatomy<'a> {
    tokens: Vec<Token<'a>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Token<'a> {
    offset: usize,
    text: &'a str,
}

// === impl Anatomy ===

impl<'a> Anatomy<'a> {
    /// Of the text of a policy that Cedar can parse; of any other the places mean nothing.
    pub fn of(text: &'a str) -> Self {
        let mut tokens = Vec::new();
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            let offset = text.len() - rest.len();
            let is_word = |c: char| c.is_alphanumeric() || c == '_';
            let (length, is_token) = match first {
                space if space.is_whitespace() => (space.len_utf8(), false),
                '/' if rest.starts_with("//") => (rest.find(['\n', '\r']).unwrap_or(rest.len()), false),
                word if is_word(word) => (rest.find(|c| !is_word(c)).unwrap_or(rest.len()), true),
                _ if ["::", "==", "!=", "<=", ">=", "&&", "||"]
                    .iter()
                    .any(|sign| rest.starts_with(sign)) =>
                {
                    (2, true)
                }
                _ => (token_length(first, rest), true),
            };
            if is_token {
                let text = rest.get(..length).unwrap_or(rest);
                tokens.push(Token { offset, text });
            }
            rest = rest.get(length..).unwrap_or_default();
        }
        Self { tokens }
    }

    /// An annotation, `@owner("team-pay")`, whole.
    pub fn annotation(&self, name: &str) -> Option<Span> {
        let head = self.effect_index()?;
        let at = self
            .tokens
            .get(..head)?
            .windows(2)
            .position(|pair| matches!(pair, [at, word] if at.text == "@" && word.text == name))?;
        let valued = self.tokens.get(at + 2).is_some_and(|token| token.text == "(");
        let last = self.tokens.get(if valued { at + 4 } else { at + 1 })?;
        Some(self.tokens.get(at)?.offset..last.end())
    }

    /// `permit` or `forbid`.
    pub fn effect(&self) -> Option<Span> {
        self.tokens.get(self.effect_index()?).map(Token::span)
    }

    /// The scope's words for `principal`, `action` or `resource`: the variable and its constraint.
    pub fn scope(&self, variable: &str) -> Option<Span> {
        let tokens = self.tokens.get(self.effect_index()?..)?;
        let mut depth = 0_usize;
        let mut found: Option<Span> = None;
        for token in tokens {
            match token.text {
                "(" | "[" => depth += 1,
                ")" | "]" => depth = depth.saturating_sub(1),
                _ => {}
            }
            let ends = depth == 0 && token.text == ")" || depth == 1 && token.text == ",";
            match &mut found {
                Some(span) if ends => return Some(span.clone()),
                Some(span) => span.end = token.end(),
                None if depth == 1 && token.text == variable => found = Some(token.span()),
                None if depth == 0 && token.text == ")" => return None,
                None => {}
            }
        }
        None
    }

    /// The name `Hoplite::Service::"ledger"` with this type, in this or another spelling of its string.
    pub fn entity(&self, type_name: &str, id: &str) -> Option<Span> {
        let words = type_name.split("::").count() * 2;
        self.tokens.iter().enumerate().find_map(|(at, token)| {
            let start = at.checked_sub(words)?;
            let written: String = self.tokens.get(start..at)?.iter().map(|token| token.text).collect();
            (written.strip_suffix("::") == Some(type_name) && string(token.text).as_deref() == Some(id))
                .then(|| self.tokens.get(start).map(|first| first.offset..token.end()))?
        })
    }

    /// The first string of this value, in this or another spelling.
    pub fn string(&self, value: &str) -> Option<Span> {
        self.tokens
            .iter()
            .find(|token| string(token.text).as_deref() == Some(value))
            .map(Token::span)
    }

    /// The first string of this value after the scope; the scope has names, which are strings too.
    pub fn condition_string(&self, value: &str) -> Option<Span> {
        let scope = self.scope("resource")?.end;
        self.tokens
            .iter()
            .find(|token| token.offset >= scope && string(token.text).as_deref() == Some(value))
            .map(Token::span)
    }

    /// The first place where this name, a word or a string, stands behind this word, up to the end of a dotted name.
    pub fn after(&self, word: &str, name: &str) -> Option<Span> {
        let is_name = |token: &Token<'_>| token.text == name || string(token.text).as_deref() == Some(name);
        self.tokens.iter().enumerate().find_map(|(at, token)| {
            let rest = self.tokens.get(at + 1..).filter(|_| token.text == word)?;
            // `has a.b.c` is one test.
            let dotted = rest
                .iter()
                .enumerate()
                .take_while(|(n, token)| n % 2 == 0 || token.text == ".");
            dotted
                .map(|(_, token)| token)
                .find(|token| is_name(token))
                .map(Token::span)
        })
    }

    /// The first `like "…"` with this pattern.
    pub fn pattern(&self, value: &[pst::PatternElem]) -> Option<Span> {
        self.tokens.windows(2).find_map(|pair| match pair {
            [like, string] if like.text == "like" => {
                (pattern(string.text).as_deref() == Some(value)).then(|| like.offset..string.end())
            }
            _ => None,
        })
    }

    /// The `nth` of these signs or words, from 0, after the scope.
    pub fn nth(&self, text: &str, nth: usize) -> Option<Span> {
        let scope = self.scope("resource")?.end;
        self.tokens
            .iter()
            .filter(|token| token.offset >= scope && token.text == text)
            .nth(nth)
            .map(Token::span)
    }

    /// All of it in one line, one space where there are spaces or a comment. Strings stay as they are, but for characters
    /// that would end the line.
    pub fn one_line(&self) -> String {
        let mut line = String::new();
        let mut end = None;
        for token in &self.tokens {
            if end.is_some_and(|end| end < token.offset) {
                line.push(' ');
            }
            for c in token.text.chars() {
                if c.is_control() {
                    line.extend(c.escape_debug());
                } else {
                    line.push(c);
                }
            }
            end = Some(token.end());
        }
        line
    }

    fn effect_index(&self) -> Option<usize> {
        let mut before = "";
        self.tokens.iter().position(|token| {
            let found = matches!(token.text, "permit" | "forbid") && before != "@";
            before = token.text;
            found
        })
    }
}

// === impl Token ===

impl Token<'_> {
    fn end(&self) -> usize {
        self.offset + self.text.len()
    }

    fn span(&self) -> Span {
        self.offset..self.end()
    }
}

/// What Cedar takes a token for, if it is a string.
fn string(token: &str) -> Option<String> {
    match &*condition(token)? {
        pst::Expr::Literal(pst::Literal::String(value)) => Some(value.to_string()),
        _ => None,
    }
}

/// What Cedar takes a token for, if it is a pattern.
fn pattern(token: &str) -> Option<Vec<pst::PatternElem>> {
    match &*condition(&format!("\"\" like {token}"))? {
        pst::Expr::Like { pattern, .. } => Some(pattern.clone()),
        _ => None,
    }
}

fn condition(text: &str) -> Option<Arc<pst::Expr>> {
    if !text.ends_with('"') {
        return None;
    }
    let policy = format!("permit (principal, action, resource) when {{ {text} }};");
    let policies: PolicySet = policy.parse().ok()?;
    let policy = policies.policies().next()?.to_pst().ok()?;
    match policy.body().clauses().first()? {
        pst::Clause::When(condition) | pst::Clause::Unless(condition) => Some(Arc::clone(condition)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = r#"// @owner("comment")
@permit("resource")
@id ( "a" )
forbid ( // resource
  principal is Hoplite::Workload in Hoplite::Path::"a,)b",
  action in [Hoplite::Action::"GET", Hoplite::Action::"POST"],
  resource in Hoplite::Service::"l\x65dger"
) when { principal == resource && context.host like "a\*b*" && 1 + 2 - 3 == 0 && context.host == "\u{61}" };"#;

    #[test]
    fn every_part_is_found_where_it_stands() {
        let anatomy = Anatomy::of(POLICY);
        let like = |pattern: &str| {
            use pst::PatternElem::{Char, Wildcard};
            let elements: Vec<_> = pattern
                .chars()
                .map(|c| match c {
                    '*' => Wildcard,
                    '+' => Char('*'),
                    c => Char(c),
                })
                .collect();
            anatomy.pattern(&elements)
        };
        for (span, expected) in [
            (anatomy.annotation("id"), Some(r#"@id ( "a" )"#)),
            (anatomy.annotation("owner"), None),
            (anatomy.effect(), Some("forbid")),
            (
                anatomy.scope("principal"),
                Some(r#"principal is Hoplite::Workload in Hoplite::Path::"a,)b""#),
            ),
            (
                anatomy.scope("action"),
                Some(r#"action in [Hoplite::Action::"GET", Hoplite::Action::"POST"]"#),
            ),
            (
                anatomy.scope("resource"),
                Some(r#"resource in Hoplite::Service::"l\x65dger""#),
            ),
            (anatomy.scope("context"), None),
            (
                anatomy.entity("Hoplite::Service", "ledger"),
                Some(r#"Hoplite::Service::"l\x65dger""#),
            ),
            (anatomy.entity("Hoplite::Route", "ledger"), None),
            (anatomy.string("a"), Some(r#""a""#)),
            (like("a+b*"), Some(r#"like "a\*b*""#)),
            (like("a*b*"), None),
            (anatomy.nth("+", 0), Some("+")),
            (anatomy.nth("+", 1), None),
        ] {
            assert_eq!(span.map(|span| &POLICY[span]), expected);
        }
        let Span { start, .. } = anatomy.nth("principal", 0).unwrap();
        assert!(start > POLICY.find("when").unwrap());
    }

    #[test]
    fn a_scope_without_constraints_is_three_words() {
        let anatomy = Anatomy::of("permit(principal,action,resource);");
        for variable in ["principal", "action", "resource"] {
            let place = anatomy.scope(variable).unwrap();
            assert_eq!(&"permit(principal,action,resource);"[place], variable);
        }
    }
}
