//! `hoplite doctor`: looks at one machine, and says of each thing whether it is well, what was seen and what to do.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anstyle::Style;

use crate::command::MeshDir;
use crate::doctor::finding::{Finding, Verdict};
use crate::doctor::{self, Scope};
use crate::output::{Column, Form, Listing, coloured, print, verdict};

/// What stands in a row of CSV first.
const COLUMNS: [Column; 4] = [
    Column::new("VERDICT", "verdict"),
    Column::new("CHECK", "check"),
    Column::new("SEEN", "seen"),
    Column::new("REMEDY", "remedy"),
];

/// Columns before what was seen: the verdict and the check.
const INDENT: usize = 23;

/// Narrower than this nothing is folded.
const WIDTH_MIN: usize = 40;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  hoplite doctor\n  hoplite doctor --config /etc/hoplite/agent.toml --output json\n\n\
    Looks at the files in /etc/hoplite and at those that `hoplite run` wrote, else at the mesh of `hoplite up`. Needs no root, and says what it could not see.\n\
    Exit codes: 0 nothing failed, 1 something did, 2 wrong usage."
)]
pub(crate) struct Args {
    /// A configuration file of a CA, an agent or a proxy; may be repeated, and then only these are looked at
    #[arg(long = "config", value_name = "FILE")]
    configs: Vec<PathBuf>,
    #[command(flatten)]
    dir: MeshDir,
    #[command(flatten)]
    form: Form,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let scope = args.scope()?;
    let runtime = super::runtime()?;
    let findings = runtime.block_on(doctor::examine(scope));
    // A name server that does not answer holds up nobody.
    runtime.shutdown_background();
    let count = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count();
    let [well, warned, failed, unseen] = [Verdict::Ok, Verdict::Warn, Verdict::Fail, Verdict::Unseen].map(count);
    if args.form.is_table() {
        let width = args.form.width().filter(|width| *width >= WIDTH_MIN);
        print(&findings.iter().map(|finding| line(finding, width)).collect::<String>())?;
        hoplite_host::tell!("{well} ok, {warned} to look at, {failed} failed, {unseen} not seen");
    } else {
        let mut listing = Listing::new(&COLUMNS);
        findings.into_iter().for_each(|finding| listing.row(finding));
        listing.print(args.form)?;
    }
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// A line for people, folded between words where it would be wider; what to do stands below.
fn line(finding: &Finding, width: Option<usize>) -> String {
    let word = finding.verdict.word();
    let style = if coloured() { verdict(word) } else { Style::new() };
    let mut text = format!("{style}{word:<6}{style:#}  {:<13}  ", finding.check);
    fold(&mut text, &finding.seen, width);
    if let Some(remedy) = &finding.remedy {
        let _ = write!(text, "{:INDENT$}", "");
        fold(&mut text, &format!("→ {remedy}"), width);
    }
    text
}

/// Writes words behind what is there, and begins a line below [`INDENT`] where the next one would not fit.
fn fold(text: &mut String, words: &str, width: Option<usize>) {
    let mut column = INDENT;
    for (index, word) in words.split(' ').enumerate() {
        let length = word.chars().count();
        if index > 0 && width.is_some_and(|width| column + 1 + length > width) {
            let _ = write!(text, "\n{:INDENT$}", "");
            column = INDENT;
        } else if index > 0 {
            text.push(' ');
            column += 1;
        }
        text.push_str(word);
        column += length;
    }
    text.push('\n');
}

// === impl Args ===

impl Args {
    /// The files that were named; else those of the mesh that was, of the machine, or of this user's mesh.
    fn scope(&self) -> anyhow::Result<Scope> {
        if !self.configs.is_empty() {
            return Ok(Scope::of(self.configs.clone()));
        }
        let machine = self.dir.of_machine();
        let files = match machine.configs {
            Err(error) if self.dir.is_given() && machine.closed.is_empty() => return Err(error),
            configs => configs.unwrap_or_default(),
        };
        Ok(Scope::with(files, machine.closed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_no_wider_than_it_may_be() {
        let finding = Finding {
            verdict: Verdict::Fail,
            check: "socket",
            seen: "/run/hoplite/proxy/a.sock is not there: the proxy `a` does not run".to_owned(),
            remedy: Some("start it (hoplite proxy run)".to_owned()),
        };
        let folded = line(&finding, Some(60));
        assert!(folded.lines().all(|line| line.chars().count() <= 60), "{folded}");
        assert_eq!(folded.lines().count(), 3, "{folded}");
        assert!(
            folded.starts_with("FAIL    socket         /run/hoplite/proxy/a.sock is not\n"),
            "{folded}"
        );
        assert_eq!(line(&finding, None).lines().count(), 2);
    }
}
