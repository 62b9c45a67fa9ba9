//! A span: one hop of a request, as a collector keeps it.

use std::fmt;
use std::time::{Duration, SystemTime};

use crate::context::Context;

/// Longer texts are cut: whoever chooses one must not choose what a span costs.
const TEXT_BYTES_MAX: usize = 1 << 10;

/// What a hop says of itself; more is left out.
const ATTRIBUTES_MAX: usize = 40;

/// On which side of the call the hop is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It answers a caller.
    Server,
    /// It calls.
    Client,
}

/// What an attribute says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A text.
    Text(String),
    /// A number.
    Number(i64),
}

/// One hop.
#[derive(Debug, Clone)]
#[cfg_attr(not(feature = "export"), expect(dead_code, reason = "nothing is sent"))]
pub struct Span {
    pub(crate) context: Context,
    /// Whose child it is; none at the root.
    pub(crate) parent: Option<u64>,
    pub(crate) state: String,
    pub(crate) kind: Kind,
    pub(crate) name: String,
    pub(crate) began: SystemTime,
    pub(crate) took: Duration,
    pub(crate) attributes: Vec<(&'static str, Value)>,
    pub(crate) has_failed: bool,
}

// === impl Span ===

impl Span {
    /// On which side it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// How it is called so far.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its name: of few, so that a collector can group by it.
    pub fn named(&mut self, name: impl Into<String>) {
        self.name = cut(name.into());
    }

    /// Says something of it. Said again, the last counts.
    pub fn put(&mut self, key: &'static str, value: impl Into<Value>) {
        let value = match value.into() {
            Value::Text(text) => Value::Text(cut(text)),
            number @ Value::Number(_) => number,
        };
        if let Some((_, known)) = self.attributes.iter_mut().find(|(known, _)| *known == key) {
            *known = value;
        } else if self.attributes.len() < ATTRIBUTES_MAX {
            self.attributes.push((key, value));
        }
    }

    /// Whether that was said of it.
    pub fn says(&self, key: &'static str) -> bool {
        self.attributes.iter().any(|(known, _)| *known == key)
    }

    /// It has failed, by a word of few.
    pub fn failed(&mut self, kind: impl Into<Value>) {
        self.has_failed = true;
        self.put("error.type", kind);
    }
}

/// For logs and tests: its name, and what is said of it.
impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        for (key, value) in &self.attributes {
            match value {
                Value::Text(text) => write!(f, " {key}={text}")?,
                Value::Number(number) => write!(f, " {key}={number}")?,
            }
        }
        Ok(())
    }
}

// === impl Value ===

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<u16> for Value {
    fn from(number: u16) -> Self {
        Self::Number(number.into())
    }
}

fn cut(text: String) -> String {
    cut_to(text, TEXT_BYTES_MAX)
}

/// At most so many bytes of it, to where a letter ends.
pub(crate) fn cut_to(mut text: String, bytes: usize) -> String {
    if text.len() > bytes {
        let end = (0..=bytes).rev().find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or_default());
    }
    text
}
