//! A sign of life for whoever waits at a terminal.

use std::io::{IsTerminal as _, Write as _};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use hoplite_host::clock;

/// What takes less needs no sign.
const FIRST: Duration = Duration::from_secs(1);

/// How often the sign changes.
const TICK: Duration = Duration::from_millis(200);

/// While it lives, the terminal says from the second second on what is waited for and how long; then the line is empty again. Nothing
/// is said where nobody looks.
pub(crate) struct Waiting {
    running: Option<(SyncSender<()>, JoinHandle<()>)>,
}

// === impl Waiting ===

impl Waiting {
    /// For example `reading decision logs`.
    pub(crate) fn new(what: &'static str) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self { running: None };
        }
        let (stop, stopped) = sync_channel(0);
        let begun = clock::moment();
        let thread = std::thread::spawn(move || {
            let mut pause = FIRST;
            while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                let _ = write!(std::io::stderr(), "\r\x1b[K{what} … {} s", begun.elapsed().as_secs());
                pause = TICK;
            }
            if pause == TICK {
                let _ = write!(std::io::stderr(), "\r\x1b[K");
            }
        });
        Self {
            running: Some((stop, thread)),
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            drop(stop);
            let _ = thread.join();
        }
    }
}
