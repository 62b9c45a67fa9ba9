//! A passphrase: from a file, or asked on the terminal, where it is not shown. Never from the command line.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use hoplite_ca::backup::Passphrase;
use hoplite_host::files;
use hoplite_host::undo::{self, Undo};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

/// Nobody remembers a longer one, and a key is shorter.
const LINE_BYTES_MAX: u64 = 4 << 10;

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
            let Ok(text) = std::str::from_utf8(&bytes) else {
                bail!(
                    "`{}` cannot be used: it is no text; `openssl rand -hex 32` makes a good key",
                    file.display()
                );
            };
            let line = text.lines().next().unwrap_or_default();
            if line.len() as u64 > LINE_BYTES_MAX {
                bail!(
                    "`{}` cannot be used: its first line is longer than {LINE_BYTES_MAX} bytes",
                    file.display()
                );
            }
            return Passphrase::new(line).with_context(|| format!("`{}` cannot be used", file.display()));
        }
        let first = ask(&format!("passphrase of `{}`: ", file.display()))?;
        let passphrase = Passphrase::new(&first)?;
        if is_new && *first != *ask("the same again: ")? {
            bail!("the two differ; nothing was done");
        }
        Ok(passphrase)
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
    undo::watch().context("cannot wait for signals")?;
    let (again, shown) = (terminal.try_clone()?, before.clone());
    let undo = undo::at_signal(move || {
        let _ = tcsetattr(&again, OptionalActions::Flush, &shown);
    });
    let restored = Restored(terminal.try_clone()?, before, undo);
    tcsetattr(&terminal, OptionalActions::Flush, &silent)?;
    let mut line = Zeroizing::new(String::new());
    BufReader::new(terminal.take(LINE_BYTES_MAX)).read_line(&mut line)?;
    drop(restored);
    if line.is_empty() {
        bail!("no passphrase was given; nothing was done");
    }
    if line.len() as u64 == LINE_BYTES_MAX {
        bail!("a passphrase has at most {LINE_BYTES_MAX} bytes; nothing was done");
    }
    Ok(line)
}

/// The terminal shows again what is typed.
struct Restored(
    std::fs::File,
    Termios,
    #[expect(dead_code, reason = "a signal shows it, too")] Undo,
);

impl Drop for Restored {
    fn drop(&mut self) {
        let _ = tcsetattr(&self.0, OptionalActions::Flush, &self.1);
    }
}
