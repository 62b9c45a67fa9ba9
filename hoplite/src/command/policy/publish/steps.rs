//! What was done, step by step: told as it happens, or in one document at the end.

use std::process::ExitCode;

use serde_json::{Map, Value, json};

use crate::output::{Output, print, print_json};

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

    fn step(&mut self, step: &str, what: &str, ok: bool) -> anyhow::Result<()> {
        self.done.push(json!({"step": step, "ok": ok, "said": what}));
        self.show(&format!("{step:<8} {what}\n"))
    }

    /// For people only.
    pub(crate) fn show(&self, text: &str) -> anyhow::Result<()> {
        match self.output {
            Output::Table => Ok(print(text)?),
            Output::Json => Ok(()),
        }
    }

    /// For scripts only.
    pub(crate) fn fact(&mut self, name: &str, value: impl Into<Value>) {
        self.facts.insert(name.to_owned(), value.into());
    }

    pub(crate) fn end(mut self, ok: bool) -> anyhow::Result<ExitCode> {
        if self.output == Output::Json {
            self.facts.insert("ok".to_owned(), ok.into());
            self.facts.insert("steps".to_owned(), self.done.into());
            print_json(&self.facts)?;
        }
        Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
