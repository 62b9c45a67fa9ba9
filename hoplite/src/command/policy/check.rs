//! `hoplite policy check`: everything that can be said of policies before they are in force.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use hoplite_author::lint;
use hoplite_decision::PolicyFiles;
use hoplite_policy::{Fault, Snapshot};
use serde_json::{Value, json};

use crate::output::{Output, print, print_json};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The directory: *.cedar, routes.toml, headers.toml, and modules.toml with a folder for each module
    directory: PathBuf,
    /// The form of the answer
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let PolicyFiles { sources, named } = super::policy_files(&args.directory)?;
    let beside: Vec<String> = named.iter().map(ToString::to_string).collect();
    let files = sources.len();
    let (snapshot, faults) = match Snapshot::compile(&sources) {
        Ok(snapshot) => (Some(snapshot), lint(&sources)),
        Err(faults) => (None, faults),
    };
    let policies = snapshot.as_ref().map(|snapshot| snapshot.policy_ids().count());
    let revision = snapshot.as_ref().map(Snapshot::revision);
    if args.output == Output::Json {
        let listed: Vec<Value> = faults.iter().map(listed).collect();
        print_json(&json!({
            "ok": faults.is_empty(), "files": files, "policies": policies, "revision": revision, "faults": listed,
            "beside": beside,
        }))?;
    } else if let (Some(policies), Some(revision), true) = (policies, revision, faults.is_empty()) {
        let beside: String = beside.iter().map(|named| format!("beside: {named}\n")).collect();
        print(&format!(
            "{beside}{policies} policies in {files} files are good; revision {revision}\n"
        ))?;
    } else {
        // A path that an editor or a terminal can follow.
        let directory = args.directory.display();
        let mut text = String::new();
        for named in &beside {
            let _ = writeln!(text, "beside: {named}");
        }
        for fault in &faults {
            let _ = writeln!(text, "{directory}/{}", fault.render());
        }
        let plural = if faults.len() == 1 { "" } else { "s" };
        let _ = writeln!(text, "{} fault{plural} in {files} files", faults.len());
        print(&text)?;
    }
    Ok(if faults.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

pub(super) fn listed(fault: &Fault) -> Value {
    json!({
        "file": fault.file, "line": fault.line, "column": fault.column, "reason": fault.reason, "help": fault.help,
    })
}
