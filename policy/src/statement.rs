//! Cuts a policy file into its policies, so that each is parsed, bounded and blamed on its own.
//!
//! Cedar ends every policy with `;` and uses it nowhere else, so strings and comments are all one has to know.

/// The text of one policy within its file: from its first character that is no space or comment to its `;`, or to
/// the end of the file when the `;` is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Statement<'a> {
    /// Where in the file it starts, in bytes.
    pub(crate) offset: usize,
    pub(crate) text: &'a str,
    /// How deep its brackets nest.
    pub(crate) depth: usize,
}

/// The statements of a file, in order.
pub(crate) fn statements(text: &str) -> Vec<Statement<'_>> {
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    let mut at = 0;
    let mut open: Option<Open> = None;
    while let Some(&byte) = bytes.get(at) {
        let rest = bytes.get(at..).unwrap_or_default();
        let length = match byte {
            byte if byte.is_ascii_whitespace() => 1,
            b'/' if rest.starts_with(b"//") => rest
                .iter()
                .position(|b| matches!(b, b'\n' | b'\r'))
                .unwrap_or(rest.len()),
            _ => {
                let statement = open.get_or_insert(Open {
                    offset: at,
                    depth: 0,
                    deepest: 0,
                });
                statement.take(byte);
                token_length(rest)
            }
        };
        at += length;
        if byte == b';'
            && let Some(statement) = open.take()
        {
            found.push(statement.close(text, at));
        }
    }
    found.extend(open.map(|statement| statement.close(text, text.trim_end().len())));
    found
}

/// A whole string, or a single byte of anything else.
fn token_length(rest: &[u8]) -> usize {
    let Some((b'"', string)) = rest.split_first() else {
        return 1;
    };
    let mut escaped = false;
    let end = string.iter().position(|&b| {
        let closes = b == b'"' && !escaped;
        escaped = b == b'\\' && !escaped;
        closes
    });
    end.map_or(rest.len(), |end| end + 2)
}

/// A statement whose end is not yet found.
struct Open {
    offset: usize,
    depth: usize,
    deepest: usize,
}

// === impl Open ===

impl Open {
    fn take(&mut self, byte: u8) {
        match byte {
            b'(' | b'[' | b'{' => self.depth += 1,
            b')' | b']' | b'}' => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
        self.deepest = self.deepest.max(self.depth);
    }

    fn close(self, text: &str, end: usize) -> Statement<'_> {
        let text = text.get(self.offset..end).unwrap_or_default();
        Statement {
            offset: self.offset,
            text,
            depth: self.deepest,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_cut_at_each_semicolon_outside_strings_and_comments() {
        for (text, expected) in [
            ("", vec![]),
            (" \n// permit;\n", vec![]),
            ("a;b;", vec![(0, "a;"), (2, "b;")]),
            ("// one; two\na; // b;\nc;", vec![(12, "a;"), (21, "c;")]),
            ("a \";\" b;", vec![(0, "a \";\" b;")]),
            (r#"a "\";" b;"#, vec![(0, r#"a "\";" b;"#)]),
            (r#"a "\\"; b;"#, vec![(0, r#"a "\\";"#), (8, "b;")]),
            ("a \"//\"; b;", vec![(0, "a \"//\";"), (8, "b;")]),
            ("a // \"\r; b;", vec![(0, "a // \"\r;"), (9, "b;")]),
            ("a; b \n ", vec![(0, "a;"), (3, "b")]),
            ("a \"unclosed; b", vec![(0, "a \"unclosed; b")]),
            (";", vec![(0, ";")]),
            ("é; ü;", vec![(0, "é;"), (4, "ü;")]),
        ] {
            let found: Vec<_> = statements(text).iter().map(|s| (s.offset, s.text)).collect();
            assert_eq!(found, expected, "{text:?}");
        }
    }

    #[test]
    fn depth_counts_brackets_outside_strings() {
        for (text, expected) in [
            ("a;", 0),
            ("((a));", 2),
            ("([{}]);", 3),
            ("\"(((\";", 0),
            ("()()();", 1),
            (")))(;", 1),
        ] {
            assert_eq!(statements(text)[0].depth, expected, "{text:?}");
        }
    }
}
