//! Sentences as lines: one, or as many as a terminal is narrow.

use hoplite_host::daemon;

/// A terminal narrower than this breaks its lines itself.
pub(crate) const COLUMNS_MIN: usize = 40;

/// An error and its causes in one line, each cause once.
pub(crate) fn one_line(error: &anyhow::Error) -> String {
    daemon::one_line(error.as_ref())
}

/// Words in lines of at most so many columns, all but the first indented.
pub(crate) fn wrapped(first: &str, indent: usize, text: &str, columns: usize) -> String {
    let (mut lines, mut line, mut is_empty) = (String::new(), first.to_owned(), true);
    for word in text.split_whitespace() {
        if !is_empty && line.chars().count() + 1 + word.chars().count() > columns {
            lines.push_str(&line);
            lines.push('\n');
            line = " ".repeat(indent);
            is_empty = true;
        }
        if !is_empty {
            line.push(' ');
        }
        line.push_str(word);
        is_empty = false;
    }
    lines + &line + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_fit() {
        assert_eq!(wrapped("  a  ", 5, "one two three", 12), "  a  one two\n     three\n");
        assert_eq!(wrapped("", 2, "toolongforthis", 5), "toolongforthis\n");
    }

    #[test]
    fn an_error_is_one_line_without_repetition() {
        let error = anyhow::anyhow!("inner\nsecond")
            .context("outer: inner, second")
            .context("top");
        assert_eq!(one_line(&error), "top: outer: inner, second");
    }
}
