//! Standard output: the one place that forgives a reader who left.

use std::io;

/// Whether anybody reads what is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reader {
    There,
    /// They left, as in `| head`: there is nothing wrong, and nothing more to say.
    Gone,
}

/// Standard output cannot be written, though its reader is there. Of a socket or a file that fails there is never one.
#[derive(Debug)]
pub(crate) struct StdoutError(io::Error);

/// Writes text to standard output. A reader who left changes nothing: what a command ends with is what came of it, read or
/// not.
pub(crate) fn print(text: &str) -> Result<(), StdoutError> {
    print_while_read(text).map(drop)
}

/// Writes text to standard output, and says whether the next will be read; for commands that print for ever.
pub(crate) fn print_while_read(text: &str) -> Result<Reader, StdoutError> {
    write_to(io::stdout().lock(), text)
}

/// The one place that forgives an error: here it can only be that of the output itself.
fn write_to(mut output: impl io::Write, text: &str) -> Result<Reader, StdoutError> {
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Ok(()) => Ok(Reader::There),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Reader::Gone),
        Err(error) => Err(StdoutError(error)),
    }
}

// === impl StdoutError ===

impl std::fmt::Display for StdoutError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cannot write to standard output: {}", self.0)
    }
}

impl std::error::Error for StdoutError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An output whose every write fails.
    struct Failing(io::ErrorKind);

    impl io::Write for Failing {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Err(self.0.into())
        }
    }

    #[test]
    fn only_a_reader_who_left_is_forgiven() {
        assert_eq!(write_to(Vec::new(), "a").unwrap(), Reader::There);
        assert_eq!(write_to(Failing(io::ErrorKind::BrokenPipe), "a").unwrap(), Reader::Gone);
        let full = write_to(Failing(io::ErrorKind::StorageFull), "a").unwrap_err();
        assert_eq!(full.to_string(), "cannot write to standard output: no storage space");
    }
}
