//! One thing wrong with a source: where, why, and what to write instead.

use crate::unseen::{is_unseen, seen};
use std::fmt::{self, Write as _};

/// The most characters of a line that are shown on either side of a fault. Some lines are a megabyte long.
const SHOWN_AROUND: usize = 80;

/// One thing wrong with a source. As text it is one line, `ledger.cedar:3:14: reason; help`;
/// [`render`](Self::render) shows the place as well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The source's name.
    pub file: String,
    /// The line, from 1; 0 is the file or directory as a whole.
    pub line: usize,
    /// The character within the line, from 1; 0 as above.
    pub column: usize,
    /// What is wrong, in one line.
    pub reason: String,
    /// What to do about it, in one line.
    pub help: Option<String>,
    /// Boxed: faults are what functions fail with, and should be small.
    excerpt: Option<Box<Excerpt>>,
}

/// The line a fault is in, or the part of it around the fault.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Excerpt {
    /// As it was written.
    text: String,
    /// Where in it the fault starts, in bytes.
    start: usize,
    /// How much of it is at fault, in bytes.
    length: usize,
    /// Whether the line goes on to the left, and to the right.
    cut: (bool, bool),
}

// === impl Fault ===

impl Fault {
    /// The fault at this byte of the text. The message is written as all of Hoplite's are, `what is wrong; what to do`,
    /// and is parted at the first semicolon that is in no backticks.
    pub(crate) fn at(file: &str, text: &str, offset: usize, message: impl AsRef<str>) -> Self {
        let (line, column) = position(text, offset);
        let mut fault = Self::whole(file, message);
        (fault.line, fault.column) = (line, column);
        fault.excerpt = Excerpt::new(text, offset).map(Box::new);
        fault
    }

    /// The fault of a file or directory as a whole. The message is `what is wrong; what to do`.
    pub fn whole(file: impl AsRef<str>, message: impl AsRef<str>) -> Self {
        let (reason, help) = parted(message.as_ref());
        Self {
            file: seen(file.as_ref()),
            line: 0,
            column: 0,
            reason: seen(reason),
            help: help.map(seen),
            excerpt: None,
        }
    }

    /// The same fault with so many bytes underlined, as far as its line goes. Without this it is the word that starts
    /// there.
    pub(crate) fn spanning(mut self, bytes: usize) -> Self {
        if let Some(excerpt) = &mut self.excerpt {
            excerpt.length = bytes;
        }
        self
    }

    /// Reason and help in one line.
    pub fn message(&self) -> String {
        match &self.help {
            Some(help) => format!("{}; {help}", self.reason),
            None => self.reason.clone(),
        }
    }

    /// The fault with the line it is in, as a compiler shows it; several lines, each ended by a newline. What cannot be
    /// seen in the line is shown as an escape, and of a long line the part around the fault.
    ///
    /// ```text
    /// pay/refunds.cedar:3:14: the policy has no `@owner`
    ///   |
    /// 3 | @id("pay/refunds")
    ///   | ^^^
    ///   = help: put `@owner("team")` before it
    /// ```
    pub fn render(&self) -> String {
        let mut page = match self.line {
            0 => format!("{}: {}\n", self.file, self.reason),
            line => format!("{}:{line}:{}: {}\n", self.file, self.column, self.reason),
        };
        let gutter = " ".repeat(self.line.to_string().len());
        if let Some(excerpt) = &self.excerpt {
            let (line, carets) = excerpt.lines();
            let _ = write!(
                page,
                "{gutter} |\n{} | {}\n{gutter} | {carets}\n",
                self.line,
                line.trim_end()
            );
        }
        if let Some(help) = &self.help {
            let _ = writeln!(page, "{gutter} = help: {help}");
        }
        page
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.file, self.message()),
            line => write!(f, "{}:{line}:{}: {}", self.file, self.column, self.message()),
        }
    }
}

impl std::error::Error for Fault {}

// === impl Excerpt ===

impl Excerpt {
    /// Nothing for a blank line: there is nothing to see.
    fn new(text: &str, offset: usize) -> Option<Self> {
        let before = text.get(..offset).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = text.get(line_start..)?.split('\n').next()?.trim_end_matches('\r');
        if line.trim().is_empty() {
            return None;
        }
        let at = (before.len() - line_start).min(line.len());
        let (left, right) = line.split_at_checked(at)?;
        let from = left.char_indices().rev().nth(SHOWN_AROUND).map_or(0, |(at, _)| at);
        let to = right.char_indices().nth(SHOWN_AROUND).map_or(right.len(), |(at, _)| at);
        Some(Self {
            text: line.get(from..at + to)?.to_owned(),
            start: at - from,
            length: word_length(right),
            cut: (from > 0, to < right.len()),
        })
    }

    /// The line as it is shown, and the carets beneath it.
    fn lines(&self) -> (String, String) {
        let (left, right) = self.text.split_at_checked(self.start).unwrap_or((&self.text, ""));
        // The end of a label may lie within a character that is cut.
        let length = (0..=self.length.min(right.len()))
            .rev()
            .find(|&length| right.is_char_boundary(length));
        let (wrong, rest) = right.split_at_checked(length.unwrap_or(0)).unwrap_or((right, ""));
        let mut line = if self.cut.0 { "…".to_owned() } else { String::new() };
        line.extend(left.chars().map(shown));
        let indent = line.chars().count();
        line.extend(wrong.chars().map(shown));
        let width = (line.chars().count() - indent).max(1);
        line.extend(rest.chars().map(shown));
        if self.cut.1 {
            line.push('…');
        }
        (line, " ".repeat(indent) + &"^".repeat(width))
    }
}

/// A character as it is shown within a line.
fn shown(c: char) -> String {
    match c {
        '\t' => "    ".to_owned(),
        c if is_unseen(c) => c.escape_unicode().to_string(),
        c => c.to_string(),
    }
}

/// How long the word is that a text starts with: a name with its namespace or `@`, a string, or one character.
fn word_length(text: &str) -> usize {
    let mut chars = text.chars();
    let is_word = |c: char| c.is_alphanumeric() || matches!(c, '_' | ':');
    match chars.next() {
        Some('"') => text
            .char_indices()
            .skip(1)
            .find(|&(at, c)| c == '"' && !text.get(..at).unwrap_or_default().ends_with('\\'))
            .map_or(text.len(), |(at, _)| at + 1),
        Some(first) if first == '@' || is_word(first) => {
            let rest = chars.as_str();
            first.len_utf8() + rest.find(|c| !is_word(c)).unwrap_or(rest.len())
        }
        first => first.map_or(0, char::len_utf8),
    }
}

/// Line and column, both from 1, of a byte offset; an offset past the end is the end.
pub(crate) fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.bytes().filter(|&b| b == b'\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    (line, column)
}

/// A message in its two parts.
fn parted(message: &str) -> (&str, Option<&str>) {
    let mut quoted = false;
    for (at, c) in message.char_indices() {
        quoted ^= c == '`';
        if c == ';' && !quoted && message.get(at..).is_some_and(|rest| rest.starts_with("; ")) {
            return (message.get(..at).unwrap_or(message), message.get(at + 2..));
        }
    }
    (message, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_characters_from_one() {
        for (text, offset, expected) in [
            ("", 0, (1, 1)),
            ("abc", 2, (1, 3)),
            ("a\nb", 1, (1, 2)),
            ("a\nb", 2, (2, 1)),
            ("é\né!", 5, (2, 2)),
            ("ab\n", 99, (2, 1)),
        ] {
            assert_eq!(position(text, offset), expected, "{text:?} at {offset}");
        }
    }

    #[test]
    fn messages_are_parted_outside_backticks() {
        for (message, expected) in [
            ("wrong", ("wrong", None)),
            ("wrong; do this; or that", ("wrong", Some("do this; or that"))),
            (
                "`a; b` is wrong; write `c; d`",
                ("`a; b` is wrong", Some("write `c; d`")),
            ),
            ("end each with `;`", ("end each with `;`", None)),
        ] {
            assert_eq!(parted(message), expected);
        }
    }

    #[test]
    fn a_fault_shows_its_line() {
        let check = |text: &str, offset: usize, length: Option<usize>, expected: &str| {
            let fault = Fault::at("a.cedar", text, offset, "it is wrong; write another");
            let fault = match length {
                Some(length) => fault.spanning(length),
                None => fault,
            };
            assert!(!fault.to_string().contains('\n'));
            assert_eq!(fault.render(), expected, "{text:?} at {offset}");
        };
        check(
            "one;\n  @id(\"two\") three",
            7,
            None,
            "a.cedar:2:3: it is wrong\n  |\n2 |   @id(\"two\") three\n  |   ^^^\n  = help: write another\n",
        );
        check(
            "like \"a \\\" b\" c",
            5,
            None,
            "a.cedar:1:6: it is wrong\n  |\n1 | like \"a \\\" b\" c\n  |      ^^^^^^^^\n  = help: write another\n",
        );
        check(
            "a\tb\u{202e}c d\r\nnext",
            2,
            Some(5),
            "a.cedar:1:3: it is wrong\n  |\n1 | a    b\\u{202e}c d\n  |      ^^^^^^^^^^\n  = help: write another\n",
        );
        check(
            "ab",
            2,
            None,
            "a.cedar:1:3: it is wrong\n  |\n1 | ab\n  |   ^\n  = help: write another\n",
        );
        check(
            "é b\nmore",
            3,
            Some(99),
            "a.cedar:1:3: it is wrong\n  |\n1 | é b\n  |   ^\n  = help: write another\n",
        );
        check("", 0, None, "a.cedar:1:1: it is wrong\n  = help: write another\n");
        check("a\n \n", 2, None, "a.cedar:2:1: it is wrong\n  = help: write another\n");
        assert_eq!(
            Fault::whole("dir", "it is away").render(),
            "dir: it is away\n",
            "no line at all"
        );
    }

    #[test]
    fn of_a_long_line_the_part_around_the_fault_is_shown() {
        let text = format!("{}wrong{}", "<".repeat(1_000_000), ">".repeat(1_000_000));
        let page = Fault::at("a.cedar", &text, 1_000_000, "no").render();
        assert!(page.len() < 600, "{} bytes", page.len());
        let lines: Vec<_> = page.lines().collect();
        let column = lines[3].find('^').unwrap() - "  | ".len();
        assert!(lines[2].starts_with("1 | …<") && lines[2].ends_with(">…"), "{page}");
        let shown: String = lines[2].chars().skip("1 | ".len() + column).take(5).collect();
        assert_eq!(shown, "wrong");
        assert!(
            lines[3].ends_with("^^^^^") && lines[3].matches('^').count() == 5,
            "{page}"
        );
    }

    #[test]
    fn nothing_in_a_fault_can_move_the_terminal() {
        let fault = Fault::at("\u{1b}.cedar", "x", 0, "`\u{1b}[2J\u{202e}` is wrong; no \u{200b}");
        assert!(!fault.render().chars().any(|c| c != '\n' && is_unseen(c)), "{fault}");
        assert!(!fault.to_string().chars().any(is_unseen), "{fault}");
    }
}
