//! What a process says on standard error, where nobody may be listening: a reader who left, a full disk. That ends no process and fails no call.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};

use tracing_subscriber::fmt::MakeWriter;

static LOST: AtomicU64 = AtomicU64::new(0);

/// Says a line on standard error, as `eprintln!` does; one that cannot be written is counted, and that is all.
#[macro_export]
macro_rules! tell {
    ($($words:tt)*) => { $crate::tell::line(::std::format_args!($($words)*)) };
}

/// Says one line; [`tell!`](crate::tell!) makes it.
pub fn line(words: std::fmt::Arguments<'_>) {
    text(&format!("{words}\n"));
}

/// Says this as it is: lines of somebody else's layout, or a question that is answered on the same line.
pub fn text(text: &str) {
    let _ = StandardError.write(text.as_bytes());
}

/// How many lines, of [`tell!`](crate::tell!) and of the log, could not be written since the process began.
pub fn lost() -> u64 {
    LOST.load(Ordering::Relaxed)
}

/// Standard error, which takes everything; what it cannot write is lost and counted. Who logs must not fail for want of a log.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StandardError;

// === impl StandardError ===

impl Write for StandardError {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if io::stderr().lock().write_all(bytes).is_err() {
            LOST.fetch_add(1, Ordering::Relaxed);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for StandardError {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        *self
    }
}
