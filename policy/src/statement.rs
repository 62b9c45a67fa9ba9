//! Cuts a policy file into its policies, so that each is parsed, bounded and blamed on its own.
//!
//! Cedar ends every policy with `;` and uses it nowhere else, so strings and comments are all one has to know.

/// The text of one policy within its file: from its first character that is no space or comment to its `;`, or to
/// the end of the file when the `;` is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statement<'a> {
    /// Where in the file it starts, in bytes.
    pub offset: usize,
    /// Its text, its `;` included.
    pub text: &'a str,
    /// How deep its brackets nest.
    pub depth: usize,
    /// An upper bound, within a factor, of the depth of its longest expression: operators between two commas or
    /// semicolons, brackets followed inwards.
    pub chain: usize,
}

/// The statements of a file, in order.
pub fn statements(text: &str) -> Vec<Statement<'_>> {
    let mut found = Vec::new();
    let mut open: Option<Open> = None;
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let at = text.len() - rest.len();
        let length = match first {
            // As Cedar has it, any white space of Unicode.
            space if space.is_whitespace() => space.len_utf8(),
            '/' if rest.starts_with("//") => rest.find(['\n', '\r']).unwrap_or(rest.len()),
            _ => {
                open.get_or_insert_with(|| Open::at(at)).take(rest.as_bytes());
                token_length(first, rest)
            }
        };
        rest = rest.get(length..).unwrap_or_default();
        if first == ';' {
            found.extend(open.take().map(|statement| statement.close(text, at + length)));
        }
    }
    found.extend(open.map(|statement| statement.close(text, text.trim_end().len())));
    found
}

/// A whole string, or a single character of anything else.
pub fn token_length(first: char, rest: &str) -> usize {
    if first != '"' {
        return first.len_utf8();
    }
    let mut escaped = false;
    let closing = rest.bytes().skip(1).position(|b| {
        let closes = b == b'"' && !escaped;
        escaped = b == b'\\' && !escaped;
        closes
    });
    closing.map_or(rest.len(), |closing| closing + 2)
}

/// A statement whose end is not yet found.
struct Open {
    offset: usize,
    deepest: usize,
    /// The brackets that are open, outermost first, and the statement itself.
    outer: Vec<Level>,
    level: Level,
}

/// What was seen between one pair of brackets: operators since the last comma, the longest chain within brackets
/// since then, and the longest of all.
#[derive(Default)]
struct Level {
    operators: usize,
    inner: usize,
    chain: usize,
}

// === impl Open ===

impl Open {
    fn at(offset: usize) -> Self {
        Self {
            offset,
            deepest: 0,
            outer: Vec::new(),
            level: Level::default(),
        }
    }

    fn take(&mut self, rest: &[u8]) {
        match rest.first() {
            Some(b'(' | b'[' | b'{') => {
                self.level.operators += 1;
                self.outer.push(std::mem::take(&mut self.level));
                self.deepest = self.deepest.max(self.outer.len());
            }
            Some(b')' | b']' | b'}') => {
                if let Some(outer) = self.outer.pop() {
                    self.level.end_item();
                    let inner = std::mem::replace(&mut self.level, outer).chain;
                    self.level.inner = self.level.inner.max(inner);
                }
            }
            Some(b',') => self.level.end_item(),
            Some(b'.' | b'+' | b'-' | b'*' | b'!' | b'&' | b'|') => self.level.operators += 1,
            Some(b'i') if rest.starts_with(b"if") => self.level.operators += 1,
            _ => {}
        }
    }

    fn close(mut self, text: &str, end: usize) -> Statement<'_> {
        // Brackets may be missing: what is still open counts as closed here.
        while !self.outer.is_empty() {
            self.take(b")");
        }
        self.level.end_item();
        let text = text.get(self.offset..end).unwrap_or_default();
        Statement {
            offset: self.offset,
            text,
            depth: self.deepest,
            chain: self.level.chain,
        }
    }
}

// === impl Level ===

impl Level {
    fn end_item(&mut self) {
        self.chain = self.chain.max(self.operators + self.inner);
        self.operators = 0;
        self.inner = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cedar_policy::PolicySet;
    use proptest::prelude::*;

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

    #[test]
    fn chains_count_operators_between_commas_and_follow_brackets() {
        for (text, expected) in [
            ("a;", 0),
            ("a.b.c;", 2),
            ("\"a.b.c\";", 0),
            ("f(a.b, c.d.e, f);", 3),
            ("a[b][c][d];", 3),
            ("a + (b + (c + d));", 5),
            ("if a then b else if c then d else e;", 2),
            ("[ip(a), ip(b), ip(c)];", 2),
            ("(a.b.c", 3),
        ] {
            assert_eq!(statements(text)[0].chain, expected, "{text:?}");
        }
    }

    /// What Cedar makes of a text: how many policies, or that it cannot be read.
    fn policies(text: &str) -> Option<usize> {
        text.parse().ok().map(|set: PolicySet| set.num_of_policies())
    }

    const PIECES: [&str; 16] = [
        "permit (principal, action, resource)",
        "forbid (principal, action, resource)",
        " when { \"//;\" == \"\\\";\" }",
        " unless { 1 / 2 }",
        "@id(\"a;b\")",
        "@id(\"\\\\\")",
        ";",
        ";\n",
        "\"",
        "// c;\n",
        "// \"\r",
        "//",
        "\u{a0}",
        "\u{b}",
        "é",
        " ",
    ];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn cedar_cuts_in_the_same_places(pieces in proptest::collection::vec(proptest::sample::select(&PIECES[..]), 0..8)) {
            let text = pieces.concat();
            let each: Option<Vec<usize>> = statements(&text).iter().map(|s| policies(s.text)).collect();
            let each = each.filter(|counts| counts.iter().all(|&count| count == 1));
            prop_assert_eq!(policies(&text), each.map(|counts| counts.len()), "{:?}", text);
        }

        #[test]
        fn any_text_is_cut(text in ".*") {
            for statement in statements(&text) {
                prop_assert!(!statement.text.is_empty() && text[statement.offset..].starts_with(statement.text));
            }
        }
    }
}
