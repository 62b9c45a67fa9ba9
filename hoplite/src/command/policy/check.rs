//! `hoplite policy check`: everything that can be said of policies before they are in force.
//!
//! An error is what nothing loads: `publish`, the CA, agents and proxies refuse it as this does. A warning is what they would
//! load; it fails a check and a publication all the same.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use hoplite_author::{lint, unregistered};
use hoplite_decision::PolicyFiles;
use hoplite_identity::EntryName;
use hoplite_policy::{Fault, Snapshot, Source};
use serde_json::{Value, json};

use crate::command::admin;
use crate::command::reach::CaArgs;
use crate::output::capped::{All, folder};
use crate::output::report::{self, Checked, ReportOutput, Wrong};
use crate::output::{count, print, print_json};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The directory: *.cedar, routes.toml, headers.toml, and modules.toml with a folder for each module
    directory: PathBuf,
    /// Warn of workloads that nobody is registered as: at the CA, or in a file of SPIFFE IDs, one a line
    #[arg(long, value_name = "FILE", num_args = 0..=1)]
    registered: Option<Option<PathBuf>>,
    #[command(flatten)]
    ca: CaArgs,
    /// The form of the answer
    #[arg(long, value_enum, default_value_t)]
    output: ReportOutput,
    #[command(flatten)]
    all: All,
}

/// How bad a fault is.
#[derive(Debug, Clone, Copy)]
enum Level {
    Error,
    Warning,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let registered = args.registered(&args.ca)?;
    let PolicyFiles { sources, named } = super::policy_files(&args.directory)?;
    let beside: Vec<String> = named.iter().map(ToString::to_string).collect();
    let files = sources.len();
    let (snapshot, level, faults) = match Snapshot::compile(&sources) {
        Ok(snapshot) => {
            let mut warnings = lint(&sources);
            if let Some(registered) = &registered {
                warnings.extend(unregistered(&sources, registered));
                warnings.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
            }
            (Some(snapshot), Level::Warning, warnings)
        }
        Err(faults) => (None, Level::Error, faults),
    };
    let policies = snapshot.as_ref().map(|snapshot| snapshot.policy_ids().count());
    let revision = snapshot.as_ref().map(Snapshot::revision);
    if let ReportOutput::Junit | ReportOutput::Sarif = args.output {
        let names = sources.iter().map(|source| source.name.as_str());
        let checked = checked(names, level, &faults);
        match args.output {
            ReportOutput::Junit => print(&report::junit("policy check", &checked))?,
            _ => print_json(&report::sarif(&checked))?,
        }
    } else if args.output == ReportOutput::Json {
        let listed: Vec<Value> = faults.iter().map(|fault| level.listed(fault)).collect();
        print_json(&json!({
            "ok": faults.is_empty(), "files": files, "policies": policies, "revision": revision, "faults": listed,
            "beside": beside,
        }))?;
    } else if let (Some(policies), Some(revision), true) = (policies, revision, faults.is_empty()) {
        let beside: String = beside.iter().map(|named| format!("beside: {named}\n")).collect();
        let (policies, files) = (count(policies as u64, "policy"), count(files as u64, "file"));
        print(&format!(
            "{beside}{policies} in {files}: all good; revision {revision}\n"
        ))?;
    } else {
        // A path that an editor or a terminal can follow.
        let directory = args.directory.display();
        let mut text = String::new();
        for named in &beside {
            let _ = writeln!(text, "beside: {named}");
        }
        let mut findings = args.all.capped();
        for fault in &faults {
            findings.add(folder(&fault.file), &format!("{directory}/{}\n", fault.render()));
        }
        text.push_str(&findings.end());
        let _ = writeln!(
            text,
            "{} in {}; {}",
            count(faults.len() as u64, level.as_str()),
            count(files as u64, "file"),
            level.meaning()
        );
        print(&text)?;
    }
    Ok(if faults.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Every file of policies that do not compile, and why.
pub(super) fn not_loaded(sources: &[Source], faults: &[Fault]) -> Vec<Checked> {
    checked(sources.iter().map(|source| source.name.as_str()), Level::Error, faults)
}

/// Every file, and what is wrong in it.
fn checked<'a>(names: impl Iterator<Item = &'a str>, level: Level, faults: &'a [Fault]) -> Vec<Checked> {
    let mut files: Vec<&str> = names.chain(faults.iter().map(|fault| fault.file.as_str())).collect();
    files.sort_unstable();
    files.dedup();
    let mut checked = Vec::new();
    for file in files {
        let of_file: Vec<&Fault> = faults.iter().filter(|fault| fault.file == file).collect();
        let one = |name: String, wrong| Checked {
            file: file.to_owned(),
            name,
            wrong,
        };
        if of_file.is_empty() {
            checked.push(one("is good".to_owned(), None));
        }
        for fault in of_file {
            let wrong = Wrong {
                level: level.as_str(),
                rule: level.rule(),
                message: fault.message(),
                line: fault.line,
                column: fault.column,
            };
            checked.push(one(format!("line {}", fault.line), Some(wrong)));
        }
    }
    checked
}

// === impl Args ===

impl Args {
    /// Who is registered, if that is asked about.
    fn registered(&self, ca: &CaArgs) -> anyhow::Result<Option<Vec<EntryName>>> {
        let lines = match &self.registered {
            None => return Ok(None),
            Some(None) => admin::registered_names(ca)?,
            Some(Some(file)) => super::names_in(file)?,
        };
        let parsed = lines.iter().map(|line| {
            EntryName::parse(line)
                .with_context(|| format!("`{line}` is not a SPIFFE ID, nor a template; write one on each line"))
        });
        parsed.collect::<anyhow::Result<_>>().map(Some)
    }
}

// === impl Level ===

impl Level {
    fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }

    fn rule(self) -> &'static str {
        match self {
            Self::Error => "policy/does-not-load",
            Self::Warning => "policy/lint",
        }
    }

    fn meaning(self) -> &'static str {
        match self {
            Self::Error => "no proxy loads this",
            Self::Warning => "a proxy loads this, and `publish` does not sign it",
        }
    }

    fn listed(self, fault: &Fault) -> Value {
        let mut listed = listed(fault);
        if let Some(fields) = listed.as_object_mut() {
            fields.insert("level".to_owned(), self.as_str().into());
        }
        listed
    }
}

pub(super) fn listed(fault: &Fault) -> Value {
    json!({
        "file": fault.file, "line": fault.line, "column": fault.column, "reason": fault.reason, "help": fault.help,
    })
}
