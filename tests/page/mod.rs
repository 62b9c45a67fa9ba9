//! A page of the documentation as its tests read it: fenced blocks in order, and what the words behind each fence say.
//!
//! After the language stand a name (`n1`), a file (`policies/ledger.cedar`), or settings: `not-run="reason"`, `exits=1`, `columns=80`.

use std::path::Path;

/// One fenced block.
#[derive(Debug, Clone)]
pub(crate) struct Block {
    /// Where it begins, for messages: `docs/guide/files.md:43`.
    pub(crate) place: String,
    /// The heading above it.
    pub(crate) section: String,
    pub(crate) language: String,
    /// What stands behind the language and is no setting.
    pub(crate) words: Vec<String>,
    pub(crate) settings: Vec<(String, String)>,
    pub(crate) text: String,
    /// What is written between it and the next.
    pub(crate) after: String,
}

/// The blocks of a page, by its path in the repository.
pub(crate) fn blocks(page: &str) -> Vec<Block> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(page);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    read(page, &text)
}

fn read(page: &str, text: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut section = String::new();
    // How far the fence is set in: as far are its lines.
    let mut open: Option<usize> = None;
    for (number, line) in text.lines().enumerate() {
        let bare = line.trim_start();
        match (open, bare.strip_prefix("```"), blocks.last_mut()) {
            (Some(_), Some(rest), _) => {
                assert_eq!(rest, "", "{page}:{}: what ends a block ends its line", number + 1);
                open = None;
            }
            (None, Some(info), _) => {
                open = Some(line.len() - bare.len());
                let place = format!("{page}:{}", number + 1);
                blocks.push(Block::begin(place, section.clone(), info));
            }
            (Some(indent), None, Some(block)) => {
                block.text.push_str(line.get(indent..).unwrap_or_default());
                block.text.push('\n');
            }
            (_, None, last) => {
                if let Some(heading) = line.strip_prefix('#') {
                    section = heading.trim_start_matches('#').trim().to_owned();
                }
                if let Some(block) = last {
                    block.after.push_str(line);
                    block.after.push('\n');
                }
            }
        }
    }
    assert!(open.is_none(), "{page}: a block has no end");
    blocks
}

// === impl Block ===

impl Block {
    fn begin(place: String, section: String, info: &str) -> Self {
        let mut words = Vec::new();
        let mut settings = Vec::new();
        let mut rest = info.trim();
        while !rest.is_empty() {
            let end = match (rest.find("=\""), rest.find(' ')) {
                (Some(quote), space) if space.is_none_or(|space| quote < space) => {
                    let closing = rest[quote + 2..]
                        .find('"')
                        .unwrap_or_else(|| panic!("{place}: no end of {rest}"));
                    quote + 2 + closing + 1
                }
                (_, Some(space)) => space,
                (_, None) => rest.len(),
            };
            let (word, more) = rest.split_at(end);
            match word.split_once('=') {
                Some((name, value)) => settings.push((name.to_owned(), value.trim_matches('"').to_owned())),
                None => words.push(word.to_owned()),
            }
            rest = more.trim_start();
        }
        let language = if words.is_empty() {
            String::new()
        } else {
            words.remove(0)
        };
        Self {
            place,
            section,
            language,
            words,
            settings,
            text: String::new(),
            after: String::new(),
        }
    }

    pub(crate) fn setting(&self, name: &str) -> Option<&str> {
        let found = self.settings.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    pub(crate) fn has(&self, word: &str) -> bool {
        self.words.iter().any(|known| known == word)
    }

    /// What a reader types.
    pub(crate) fn is_shell(&self) -> bool {
        matches!(self.language.as_str(), "sh" | "bash" | "shell" | "console")
    }
}

#[test]
fn a_page_is_read() {
    let page = "# A\n\n1. One:\n\n   ```sh n1 exits=1 not-run=\"needs a desktop\"\n   a\n     b\n   ```\n\nSaid.\n## B\n```\nc\n```\n";
    let [one, two] = read("p.md", page).try_into().unwrap();
    assert_eq!(
        (one.place.as_str(), one.section.as_str(), one.language.as_str()),
        ("p.md:5", "A", "sh")
    );
    assert_eq!(
        (one.words.as_slice(), one.text.as_str()),
        (&["n1".to_owned()][..], "a\n  b\n")
    );
    assert_eq!(
        (one.setting("exits"), one.setting("not-run")),
        (Some("1"), Some("needs a desktop"))
    );
    assert!(one.after.contains("Said.") && one.is_shell() && one.has("n1"));
    assert_eq!(
        (two.section.as_str(), two.language.as_str(), two.text.as_str()),
        ("B", "", "c\n")
    );
}
