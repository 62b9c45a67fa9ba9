//! `hoplite completions` and `hoplite man`: what shells and readers of manuals take, made from the command line itself.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Command, ValueEnum};
use clap_complete::Shell;
use clap_mangen::Man;
use hoplite_host::files;

use crate::output;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  hoplite completions bash >/etc/bash_completion.d/hoplite\n  hoplite completions zsh >~/.zfunc/_hoplite\n  \
                  hoplite completions fish >~/.config/fish/completions/hoplite.fish"
)]
pub(crate) struct CompletionsArgs {
    /// The shell that reads them
    shell: CompletedShell,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  hoplite man | man -l -\n  hoplite man --dir /usr/local/share/man/man1")]
pub(crate) struct ManArgs {
    /// Write a page for every command here, `hoplite-ca-run.1` and so on, instead of showing that of `hoplite`
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// The shells whose completions are tested.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum CompletedShell {
    Bash,
    Zsh,
    Fish,
}

pub(crate) fn completions(args: &CompletionsArgs, mut hoplite: Command) -> anyhow::Result<ExitCode> {
    let shell = match args.shell {
        CompletedShell::Bash => Shell::Bash,
        CompletedShell::Zsh => Shell::Zsh,
        CompletedShell::Fish => Shell::Fish,
    };
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut hoplite, "hoplite", &mut text);
    output::print(&String::from_utf8(text)?)?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn man(args: &ManArgs, hoplite: Command) -> anyhow::Result<ExitCode> {
    let mut hoplite = hoplite.disable_help_subcommand(true);
    hoplite.build();
    match &args.dir {
        None => output::print(&page(&hoplite)?)?,
        Some(dir) => {
            std::fs::create_dir_all(dir).with_context(|| format!("cannot make the directory `{}`", dir.display()))?;
            for command in visible(&hoplite) {
                let file = dir.join(format!("{}.1", title(command)));
                files::write_public(&file, page(command)?.as_bytes())?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A command and all below it, but those that are not for people.
fn visible(command: &Command) -> Vec<&Command> {
    let below = command.get_subcommands().filter(|command| !command.is_hide_set());
    std::iter::once(command).chain(below.flat_map(visible)).collect()
}

/// `hoplite-ca-run`.
fn title(command: &Command) -> &str {
    command.get_display_name().unwrap_or(command.get_name())
}

fn page(command: &Command) -> anyhow::Result<String> {
    let mut text = Vec::new();
    let man = Man::new(command.clone())
        .title(title(command).to_uppercase())
        .manual("Hoplite");
    man.render(&mut text)?;
    Ok(String::from_utf8(text)?)
}
