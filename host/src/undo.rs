//! What a command takes back when a signal ends it: a file that is not whole, a terminal that does not show what is typed.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError, mpsc};

use tokio::signal::unix::{Signal, SignalKind, signal};

type Step = Box<dyn FnOnce() + Send>;

static STEPS: Mutex<BTreeMap<u64, Step>> = Mutex::new(BTreeMap::new());
static NEXT: AtomicU64 = AtomicU64::new(0);
static IS_WATCHING: AtomicBool = AtomicBool::new(false);

/// What is taken back when a signal ends the process. Dropping it keeps what was done.
#[derive(Debug)]
pub struct Undo(u64);

/// Notes what a signal is to take back: before it is done, so that nothing is in between.
pub fn at_signal(step: impl FnOnce() + Send + 'static) -> Undo {
    let number = NEXT.fetch_add(1, Relaxed);
    let mut steps = STEPS.lock().unwrap_or_else(PoisonError::into_inner);
    steps.insert(number, Box::new(step));
    Undo(number)
}

/// From here on a signal that ends this process does so after what is to be taken back. For commands: a daemon stops by itself.
///
/// # Errors
/// The system refuses; signals end the process as before.
pub fn watch() -> io::Result<()> {
    if IS_WATCHING.swap(true, Relaxed) {
        return Ok(());
    }
    let (ready, begun) = mpsc::sync_channel(1);
    let waiting = move || match Signals::new() {
        Ok((runtime, mut signals)) => {
            let _ = ready.send(Ok(()));
            let number = runtime.block_on(signals.first());
            // Nobody gets the lock any more: what is not done by now is not begun.
            let mut steps = STEPS.lock().unwrap_or_else(PoisonError::into_inner);
            for (_, step) in std::mem::take(&mut *steps) {
                step();
            }
            #[expect(
                clippy::disallowed_methods,
                reason = "a signal ends the process, whatever the other threads do"
            )]
            std::process::exit(128 + number)
        }
        Err(error) => drop(ready.send(Err(error))),
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(waiting)?;
    begun.recv().unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// Those by which people and service managers end a command.
struct Signals([Signal; 4]);

// === impl Signals ===

impl Signals {
    fn new() -> io::Result<(tokio::runtime::Runtime, Self)> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let within = runtime.enter();
        let signals = Self([
            signal(SignalKind::hangup())?,
            signal(SignalKind::interrupt())?,
            signal(SignalKind::quit())?,
            signal(SignalKind::terminate())?,
        ]);
        drop(within);
        Ok((runtime, signals))
    }

    async fn first(&mut self) -> i32 {
        let [hangup, interrupt, quit, terminate] = &mut self.0;
        let kind = tokio::select! {
            _ = hangup.recv() => SignalKind::hangup(),
            _ = interrupt.recv() => SignalKind::interrupt(),
            _ = quit.recv() => SignalKind::quit(),
            _ = terminate.recv() => SignalKind::terminate(),
        };
        kind.as_raw_value()
    }
}

// === impl Undo ===

impl Drop for Undo {
    fn drop(&mut self) {
        STEPS.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::io::{BufRead, BufReader};
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::{Command, Stdio};

    use crate::files::Unfinished;

    /// In a process of its own, which a signal ends.
    #[test]
    fn a_signal_leaves_nothing_that_is_not_whole() {
        if let Some(dir) = std::env::var_os("HOPLITE_UNFINISHED") {
            watch().unwrap();
            let mut file = Unfinished::begin(&std::path::Path::new(&dir).join("backup"), false).unwrap();
            file.write_all(b"half").unwrap();
            println!("\nbegun");
            std::thread::sleep(std::time::Duration::from_secs(60));
            std::process::exit(1);
        }
        for (name, code) in [("HUP", 129), ("INT", 130), ("QUIT", 131), ("TERM", 143)] {
            let dir = tempfile::tempdir().unwrap();
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args([
                    "--exact",
                    "undo::tests::a_signal_leaves_nothing_that_is_not_whole",
                    "--nocapture",
                ])
                .env("HOPLITE_UNFINISHED", dir.path())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            assert!(lines.any(|line| line.unwrap() == "begun"));
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
            let signalled = Command::new("kill")
                .arg(format!("-{name}"))
                .arg(child.id().to_string())
                .status();
            assert!(signalled.unwrap().success());
            let status = child.wait().unwrap();
            assert_eq!((status.code(), status.signal()), (Some(code), None), "{name}");
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "{name}");
        }
    }
}
