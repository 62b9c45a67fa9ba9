//! What was done, step by step: told as it happens, or in one document at the end.

use std::process::ExitCode;

use serde_json::{Map, Value, json};

use crate::output::{Output, print_json, print_page};

/// The exit code of a publication that the CA has, and that a proxy does not follow.
const NOT_FOLLOWED: u8 = 3;

/// How a publication ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It is in force as far as was asked for, or nothing had to change.
    Well,
    /// Nothing was published; the steps say why.
    NotPublished,
    /// The CA has it, and not everybody who was waited for follows.
    NotFollowed,
}

pub(crate) struct Steps {
    output: Output,
    done: Vec<Value>,
    /// What else the document has.
    facts: Map<String, Value>,
}

// === impl Steps ===

impl Steps {
    pub(crate) fn new(output: Output) -> Self {
        Self {
            output,
            done: Vec::new(),
            facts: Map::new(),
        }
    }

    pub(crate) fn done(&mut self, step: &str, what: &str) -> anyhow::Result<()> {
        self.step(step, what, true)
    }

    /// The last one.
    pub(crate) fn failed(&mut self, step: &str, what: &str) -> anyhow::Result<()> {
        self.step(step, &format!("FAILED: {what}; nothing was published"), false)
    }

    /// The last one, after the CA has it.
    pub(crate) fn behind(&mut self, step: &str, what: &str) -> anyhow::Result<()> {
        self.step(step, &format!("FAILED: {what}"), false)
    }

    fn step(&mut self, step: &str, what: &str, ok: bool) -> anyhow::Result<()> {
        self.done.push(json!({"step": step, "ok": ok, "said": what}));
        self.show(&format!("{step:<8} {what}\n"))
    }

    /// For people only.
    pub(crate) fn show(&self, text: &str) -> anyhow::Result<()> {
        match self.output {
            Output::Table => print_page(text),
            Output::Json => Ok(()),
        }
    }

    /// For scripts only.
    pub(crate) fn fact(&mut self, name: &str, value: impl Into<Value>) {
        self.facts.insert(name.to_owned(), value.into());
    }

    pub(crate) fn end(mut self, ended: Ended) -> anyhow::Result<ExitCode> {
        if self.output == Output::Json {
            self.facts.insert("ok".to_owned(), (ended == Ended::Well).into());
            self.facts.entry("changed").or_insert(false.into());
            self.facts.insert("steps".to_owned(), self.done.into());
            print_json(&self.facts)?;
        }
        Ok(match ended {
            Ended::Well => ExitCode::SUCCESS,
            Ended::NotPublished => ExitCode::FAILURE,
            Ended::NotFollowed => ExitCode::from(NOT_FOLLOWED),
        })
    }
}
