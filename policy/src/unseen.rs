//! Characters that a reader does not see, or that change the order of what he sees: they are shown as escapes.

use std::fmt::Write as _;

/// Whether a character is invisible or reorders its neighbours: controls, bidirectional marks, zero-width characters,
/// tags and variation selectors. Line feeds, carriage returns and tabs count as well; see [`hides`].
pub(crate) fn is_unseen(c: char) -> bool {
    c.is_control() || hides(c)
}

/// Whether a character may make a text look like another. Unicode's bidirectional controls (UAX #9), default ignorable
/// and format characters (UAX #44), which no policy needs.
pub fn hides(c: char) -> bool {
    reorders(c)
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200d}' | '\u{2028}' | '\u{2029}' | '\u{2060}'..='\u{2065}' | '\u{206a}'..='\u{206f}'
            | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}'
            | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
        || (c.is_control() && !matches!(c, '\n' | '\r' | '\t'))
}

/// Whether a character changes the direction of the text around it.
pub(crate) fn reorders(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The text with each such character as `\u{202e}`. Quotes and backslashes stay as they are.
pub(crate) fn seen(text: &str) -> String {
    let mut seen = String::with_capacity(text.len());
    for c in text.chars() {
        if is_unseen(c) {
            let _ = write!(seen, "{}", c.escape_unicode());
        } else {
            seen.push(c);
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_seen_is_escaped() {
        for (text, expected) in [
            ("plain, \"quoted\" \\ é 漢", "plain, \"quoted\" \\ é 漢"),
            ("a\u{202e}b\u{2066}", "a\\u{202e}b\\u{2066}"),
            ("pay\u{200b}ments\u{feff}", "pay\\u{200b}ments\\u{feff}"),
            ("\u{1b}[31m\n", "\\u{1b}[31m\\u{a}"),
        ] {
            assert_eq!(seen(text), expected, "{text:?}");
        }
        assert!("\n\r\t".chars().all(|c| is_unseen(c) && !hides(c)));
    }
}
