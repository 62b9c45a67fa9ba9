//! `hoplite policy fmt`: one layout for all policies, and nothing changed but the layout.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use hoplite_author::format;
use hoplite_host::files;
use serde_json::json;

use crate::output::{Output, print, print_json};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The directory of policies
    directory: PathBuf,
    /// Write nothing; name the files that would change, and exit 1 if there are any
    #[arg(long)]
    check: bool,
    /// The form of the answer
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let directory = args.directory.display();
    let mut sources = super::sources(&args.directory)?;
    sources.retain(|source| source.name.ends_with(".cedar"));
    let (mut changes, mut refused) = (Vec::new(), String::new());
    for source in &sources {
        match format(source) {
            Ok(text) if text == source.text => {}
            Ok(text) => changes.push((source, text)),
            Err(faults) => {
                for fault in faults {
                    let _ = writeln!(refused, "{directory}/{}", fault.render());
                }
            }
        }
    }
    // Everything that can fail comes before anything is written.
    if !refused.is_empty() {
        print(&refused)?;
        anyhow::bail!("not every file can be formatted; nothing was changed");
    }
    let show = |text: String| match args.output {
        Output::Table => print(&text),
        Output::Json => Ok(()),
    };
    for (source, text) in &changes {
        let path = args.directory.join(&source.name);
        if args.check {
            show(format!("{} would change\n", path.display()))?;
            continue;
        }
        // Somebody may have saved it since it was read; their text must not be lost.
        if files::read_text(&path)? != source.text {
            anyhow::bail!("`{}` was changed in between; format again", path.display());
        }
        files::rewrite(&path, text.as_bytes())?;
        show(format!("{}\n", path.display()))?;
    }
    let verb = if args.check { "would change" } else { "changed" };
    show(format!("{} of {} files {verb}\n", changes.len(), sources.len()))?;
    if args.output == Output::Json {
        let files: Vec<_> = changes.iter().map(|(source, _)| &source.name).collect();
        print_json(&json!({"files": sources.len(), "changed": files, "written": !args.check}))?;
    }
    Ok(if args.check && !changes.is_empty() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}
