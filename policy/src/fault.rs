//! One thing wrong with a source: where, why, and what to write instead.

use crate::unseen::{is_unseen, seen};
use std::fmt::{self, Write as _};
use std::sync::OnceLock;

/// The most characters of a line that are shown on either side of a fault. Some lines are a megabyte long.
const SHOWN_AROUND: usize = 80;

/// The most faults told of one set of sources: whoever made more mends these first.
pub const FAULTS_MAX: usize = 1_000;
/// How much of a text is walked through to find a line and column in it.
const STEP_BYTES: usize = 1_024;

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

/// A text in which places are found: the first costs a walk through all of it, every further one next to nothing.
#[derive(Debug)]
pub struct Text<'a> {
    /// The source's name.
    pub file: &'a str,
    /// All of it.
    pub text: &'a str,
    /// One every [`STEP_BYTES`].
    marks: OnceLock<Vec<Mark>>,
}

/// The line and column of a byte.
#[derive(Debug, Clone, Copy)]
struct Mark {
    offset: usize,
    line: usize,
    column: usize,
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
    pub fn at(file: &str, text: &str, offset: usize, message: impl AsRef<str>) -> Self {
        Text::new(file, text).fault(offset, message)
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

    /// This fault with so many bytes underlined, as far as its line goes. Without this it is the word that starts
    /// there.
    #[must_use]
    pub fn spanning(mut self, bytes: usize) -> Self {
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

/// Refuses a text that begins with a byte order mark: editors put it there, nobody sees it, and it makes a first word
/// unknown.
pub(crate) fn check_mark(text: &Text<'_>) -> Result<(), Vec<Fault>> {
    if text.text.starts_with('\u{feff}') {
        let reason = "the file begins with a byte order mark (U+FEFF); save it as UTF-8 without one";
        return Err(vec![text.fault(0, reason)]);
    }
    Ok(())
}

/// These faults and that there are more.
pub fn enough(mut faults: Vec<Fault>, file: &str) -> Vec<Fault> {
    faults.truncate(FAULTS_MAX);
    let message = format!("there are more than {FAULTS_MAX} faults up to this file; mend these first");
    faults.push(Fault::whole(file, message));
    faults
}

// === impl Text ===

impl<'a> Text<'a> {
    /// The text of the source of this name.
    pub fn new(file: &'a str, text: &'a str) -> Self {
        Self {
            file,
            text,
            marks: OnceLock::new(),
        }
    }

    /// As [`Fault::at`].
    pub fn fault(&self, offset: usize, message: impl AsRef<str>) -> Fault {
        let mut fault = Fault::whole(self.file, message);
        (fault.line, fault.column) = self.position(offset);
        fault.excerpt = Excerpt::new(self.text, offset).map(Box::new);
        fault
    }

    /// Line and column, both from 1, of a byte offset; an offset past the end is the end.
    pub fn position(&self, offset: usize) -> (usize, usize) {
        let marks = self.marks.get_or_init(|| marks(self.text));
        let after = marks.partition_point(|mark| mark.offset <= offset);
        let mark = after.checked_sub(1).and_then(|last| marks.get(last));
        let mark = mark.copied().unwrap_or(Mark::START);
        let between = self.text.get(mark.offset..offset);
        let between = between.or_else(|| self.text.get(mark.offset..)).unwrap_or_default();
        let Mark { line, column, .. } = between.chars().fold(mark, Mark::past);
        (line, column)
    }
}

fn marks(text: &str) -> Vec<Mark> {
    let mut marks = vec![Mark::START];
    let mut here = Mark::START;
    let mut next = STEP_BYTES;
    for c in text.chars() {
        if here.offset >= next {
            marks.push(here);
            next = here.offset + STEP_BYTES;
        }
        here = here.past(c);
    }
    marks
}

// === impl Mark ===

impl Mark {
    const START: Self = Self {
        offset: 0,
        line: 1,
        column: 1,
    };

    fn past(self, c: char) -> Self {
        let (line, column) = match c {
            '\n' => (self.line + 1, 1),
            _ => (self.line, self.column + 1),
        };
        Self {
            offset: self.offset + c.len_utf8(),
            line,
            column,
        }
    }
}

// === impl Excerpt ===

impl Excerpt {
    /// Nothing for a blank line: there is nothing to see. No more of the text is looked at than is shown.
    fn new(text: &str, offset: usize) -> Option<Self> {
        let before = text.get(..offset).unwrap_or(text);
        let after = text.get(before.len()..)?;
        let left = before.char_indices().rev().take_while(|&(_, c)| c != '\n');
        let from = left.take(SHOWN_AROUND).last().map_or(before.len(), |(at, _)| at);
        let right = after.char_indices().take_while(|&(_, c)| c != '\n');
        let to = right.take(SHOWN_AROUND).last().map_or(0, |(at, c)| at + c.len_utf8());
        let (earlier, left) = before.split_at_checked(from)?;
        let (right, later) = after.split_at_checked(to)?;
        let right = right.trim_end_matches('\r');
        if left.trim().is_empty() && right.trim().is_empty() {
            return None;
        }
        Some(Self {
            text: [left, right].concat(),
            start: left.len(),
            length: word_length(right),
            cut: (
                !earlier.is_empty() && !earlier.ends_with('\n'),
                !later.is_empty() && !later.starts_with(['\r', '\n']),
            ),
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
            assert_eq!(Text::new("", text).position(offset), expected, "{text:?} at {offset}");
        }
    }

    #[test]
    fn positions_in_a_long_text_are_those_of_counting() {
        let line = |n: usize| {
            format!(
                "{}{}\n",
                "é".repeat(n % 97),
                "x".repeat(if n == 9 { 5_000 } else { n % 31 })
            )
        };
        let long: String = (0..400).map(line).collect();
        let text = Text::new("", &long);
        for (offset, _) in long.char_indices().chain([(long.len(), ' ')]) {
            let before = &long[..offset];
            let column = before.rsplit('\n').next().unwrap().chars().count() + 1;
            assert_eq!(
                text.position(offset),
                (before.matches('\n').count() + 1, column),
                "{offset}"
            );
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
