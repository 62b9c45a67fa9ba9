//! What people and scripts get to see: tables or JSON on standard output, one-line errors.

use std::fmt::Write as _;
use std::io;

use clap::ValueEnum;
use hoplite_host::daemon;
use serde::Serialize;
use serde_json::Value;

/// Longer lines are cut where [`cut`] is used.
const SHOWN_CHARS: usize = 160;

/// The form of a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Output {
    /// Aligned columns for people
    #[default]
    Table,
    /// One JSON document for scripts
    Json,
}

/// Columns under their headings.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

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

/// Writes a value as indented JSON.
pub(crate) fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    Ok(print(&format!("{}\n", serde_json::to_string_pretty(value)?))?)
}

/// A part of a JSON document by its pointer, `/policy/revision`; null when it is not there.
pub(crate) fn part<'a>(document: &'a Value, pointer: &str) -> &'a Value {
    document.pointer(pointer).unwrap_or(&Value::Null)
}

/// A JSON value as people read it: text without quotes.
pub(crate) fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// A line as people read it: what is longer than a wide terminal is cut, for the policy it comes from has all of it.
pub(crate) fn cut(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((at, _)) => format!("{}…", text.get(..at).unwrap_or(text)),
        None => text.to_owned(),
    }
}

/// An error and its causes in one line, each cause once.
pub(crate) fn one_line(error: &anyhow::Error) -> String {
    daemon::one_line(error.as_ref())
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

// === impl Table ===

impl Table {
    pub(crate) fn new(headings: &[&str]) -> Self {
        Self {
            rows: vec![headings.iter().map(|h| (*h).to_owned()).collect()],
        }
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    pub(crate) fn print(&self) -> Result<(), StdoutError> {
        print(&self.to_string())
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut widths: Vec<usize> = Vec::new();
        for row in &self.rows {
            widths.resize(widths.len().max(row.len()), 0);
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.chars().count().max(*width);
            }
        }
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                let _ = write!(line, "{cell:<width$}  ");
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_and_lines_do_not_trail() {
        let mut table = Table::new(&["NAME", "X"]);
        table.row(["a long one".to_owned(), "1".to_owned()]);
        table.row(["b".to_owned(), String::new()]);
        assert_eq!(table.to_string(), "NAME        X\na long one  1\nb\n");
    }

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

    #[test]
    fn an_error_is_one_line_without_repetition() {
        let error = anyhow::anyhow!("inner\nsecond")
            .context("outer: inner, second")
            .context("top");
        assert_eq!(one_line(&error), "top: outer: inner, second");
    }
}
