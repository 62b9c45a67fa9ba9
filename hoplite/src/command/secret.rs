//! A passphrase: from a file, or asked on the terminal, where it is not shown. Never from the command line.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use hoplite_ca::backup::Passphrase;
use hoplite_host::files;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

/// Where a passphrase comes from.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct SecretArgs {
    /// Read the passphrase, or a random key, from the first line of this file, of mode 0600 [default: asked on the terminal]
    #[arg(long, value_name = "FILE", visible_alias = "passphrase-file")]
    key_file: Option<PathBuf>,
}

impl SecretArgs {
    /// Asked twice where it is a new one.
    pub(crate) fn passphrase(&self, file: &Path, is_new: bool) -> anyhow::Result<Passphrase> {
        if let Some(file) = &self.key_file {
            let bytes = Zeroizing::new(files::read_private(file)?);
            let text = std::str::from_utf8(&bytes).ok();
            let line = text.and_then(|text| text.lines().next()).unwrap_or_default();
            return Passphrase::new(line).with_context(|| format!("`{}` cannot be used", file.display()));
        }
        let first = ask(&format!("passphrase of `{}`: ", file.display()))?;
        if is_new && *first != *ask("the same again: ")? {
            bail!("the two differ; nothing was done");
        }
        Ok(Passphrase::new(&first)?)
    }
}

/// Asks on the terminal, whatever standard input and output are.
fn ask(prompt: &str) -> anyhow::Result<Zeroizing<String>> {
    let mut terminal = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/tty")
        .context("there is no terminal to ask for the passphrase; name a file that has it with --key-file FILE")?;
    terminal.write_all(prompt.as_bytes())?;
    let before = tcgetattr(&terminal)?;
    let mut silent = before.clone();
    silent.local_modes -= LocalModes::ECHO;
    silent.local_modes |= LocalModes::ECHONL;
    tcsetattr(&terminal, OptionalActions::Flush, &silent)?;
    let restored = Restored(terminal.try_clone()?, before);
    let mut line = Zeroizing::new(String::new());
    BufReader::new(terminal).read_line(&mut line)?;
    drop(restored);
    Ok(line)
}

/// The terminal shows again what is typed.
struct Restored(std::fs::File, Termios);

impl Drop for Restored {
    fn drop(&mut self) {
        let _ = tcsetattr(&self.0, OptionalActions::Flush, &self.1);
    }
}
