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

/// A page whose lines are all of at most so many columns. What goes over stands below where its line's text begins: after the name of the line,
/// which two spaces or more end, or else two columns in.
pub(crate) fn folded(page: &str, columns: usize) -> String {
    let mut text = String::new();
    for line in page.lines() {
        if columns < COLUMNS_MIN || line.chars().count() <= columns {
            text.push_str(line);
            text.push('\n');
            continue;
        }
        let margin = line.len() - line.trim_start().len();
        let (_, inner) = line.split_at(margin);
        let name = inner
            .find("  ")
            .map(|end| inner.len() - inner.split_at(end).1.trim_start().len());
        let named = name.filter(|name| margin + name < columns / 2);
        let (first, rest) = line.split_at(margin + named.unwrap_or(0));
        let indent = named.map_or(margin + 2, |_| first.chars().count());
        text.push_str(&wrapped(first, indent, rest, columns));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_fits_and_keeps_its_margins() {
        let page = "short\nmay    one two three four five six seven eight nine\n  a sentence that is longer than forty columns are\n";
        let expected = "short\nmay    one two three four five six seven\n       eight nine\n  a sentence that is longer than forty\n    columns are\n";
        assert_eq!(folded(page, 40), expected);
        assert_eq!(folded(page, 5), page, "a terminal that narrow breaks lines itself");
    }

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
