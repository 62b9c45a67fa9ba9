//! Reads YAML or JSON that somebody else wrote into a tree, within bounds.
//!
//! Anchors are followed, so that a document that describes real services can be read; what a document *amounts to* once
//! they are, is what the bounds count. "A billion laughs" is refused at the alias that is too much.

use hoplite_policy::Fault;
use hoplite_policy::limits::PATH_BYTES_MAX;
use saphyr_parser::{Event, Parser, Span};
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

/// The longest document; the largest public descriptions of services have some 12 MB.
pub(crate) const DOCUMENT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The most values of a document, those that an alias stands for counted each time.
pub(crate) const DOCUMENT_NODES_MAX: usize = 1_000_000;
/// The deepest nesting, aliases followed: a tree this deep is walked and dropped on any stack.
pub(crate) const DOCUMENT_DEPTH_MAX: usize = 100;

/// The longest key: a merge gives a mapping the keys of others, each of which may be many times in a document.
const KEY_BYTES_MAX: usize = PATH_BYTES_MAX;

/// Where something stands: the number of characters before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position(usize);

/// What is wrong with a document, and where.
pub(crate) type Wrong = (Position, String);

/// A value and where it stands.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) place: Position,
    pub(crate) value: Value,
    /// How many values it amounts to, itself included.
    nodes: usize,
    /// How many levels it has, itself included.
    height: usize,
}

/// What a node is. Numbers, booleans and null are the text that stands there.
#[derive(Debug)]
pub(crate) enum Value {
    Scalar(String),
    Sequence(Vec<Rc<Node>>),
    Mapping(Vec<Pair>),
}

/// A key of a mapping and what it leads to.
#[derive(Debug, Clone)]
pub(crate) struct Pair {
    pub(crate) key: Rc<str>,
    pub(crate) place: Position,
    pub(crate) node: Rc<Node>,
}

/// Reads one document.
///
/// # Errors
/// The first fault: no YAML, more than one document, a bound, a key that is no text or comes twice.
pub(crate) fn read(text: &str) -> Result<Rc<Node>, Wrong> {
    if text.len() > DOCUMENT_BYTES_MAX {
        let reason = format!("the document is longer than {DOCUMENT_BYTES_MAX} bytes; split it");
        return Err((Position::START, reason));
    }
    let mut builder = Builder::default();
    for event in Parser::new_from_str(&without_surrogates(text)) {
        let (event, span) = event.map_err(|error| {
            let place = Position(error.marker().index());
            (place, format!("this is neither YAML nor JSON: {}", error.info()))
        })?;
        builder.take(event, span)?;
    }
    let empty = || {
        (
            Position::START,
            "the document is empty; is it the right file?".to_owned(),
        )
    };
    builder.root.ok_or_else(empty)
}

/// JSON writes characters outside the basic plane as two escapes, which is no YAML. Nothing asked of a document needs
/// such a character, but what cannot be read must not be mistaken for something else: NUL stands in for each half, in
/// as many bytes, and no path may hold it.
fn without_surrogates(text: &str) -> Cow<'_, str> {
    if !text.trim_start_matches('\u{feff}').trim_start().starts_with('{') || !text.contains("\\u") {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        let (before, escape) = rest.split_at(at);
        out.push_str(before);
        let surrogate = escape.get(2..4).is_some_and(|hex| {
            hex.starts_with(['d', 'D'])
                && hex.ends_with(['8', '9', 'a', 'b', 'c', 'd', 'e', 'f', 'A', 'B', 'C', 'D', 'E', 'F'])
        });
        let (taken, replacement) = match escape.get(..6) {
            Some(whole) if escape.starts_with("\\u") && surrogate => (whole, "\\u0000"),
            // A backslash and what it escapes, so that the second of two backslashes starts nothing.
            _ => {
                let length = 1 + escape.chars().nth(1).map_or(0, char::len_utf8);
                let taken = escape.get(..length).unwrap_or(escape);
                (taken, taken)
            }
        };
        out.push_str(replacement);
        rest = escape.get(taken.len()..).unwrap_or_default();
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// The tree as it grows from the parser's events.
#[derive(Default)]
struct Builder {
    nodes: usize,
    /// A node is anchored once it is complete, so no alias can lead back into itself.
    anchors: HashMap<usize, Rc<Node>>,
    open: Vec<Open>,
    root: Option<Rc<Node>>,
}

/// A sequence or mapping whose end has not come.
struct Open {
    place: Position,
    anchor: usize,
    inner: Inner,
}

enum Inner {
    Sequence(Vec<Rc<Node>>),
    Mapping {
        entries: Vec<Pair>,
        key: Option<(Rc<str>, Position)>,
        keys: HashSet<Rc<str>>,
        /// What `<<` names.
        merged: Vec<Rc<Node>>,
    },
}

// === impl Position ===

impl Position {
    pub(crate) const START: Self = Self(0);

    /// The fault at this place of the text that was read.
    pub(crate) fn fault(self, file: &str, text: &str, reason: impl Into<String>) -> Fault {
        let offset = text.char_indices().nth(self.0).map_or(text.len(), |(offset, _)| offset);
        Fault::at(file, text, offset, reason.into())
    }
}

// === impl Node ===

impl Node {
    /// What a mapping has under a key.
    pub(crate) fn get(&self, key: &str) -> Option<&Rc<Self>> {
        self.entries()
            .iter()
            .find(|entry| &*entry.key == key)
            .map(|entry| &entry.node)
    }

    /// The entries of a mapping, in the order of the text; none for anything else.
    pub(crate) fn entries(&self) -> &[Pair] {
        match &self.value {
            Value::Mapping(entries) => entries,
            Value::Scalar(_) | Value::Sequence(_) => &[],
        }
    }

    /// The items of a sequence; none for anything else.
    pub(crate) fn items(&self) -> &[Rc<Self>] {
        match &self.value {
            Value::Sequence(items) => items,
            Value::Scalar(_) | Value::Mapping(_) => &[],
        }
    }

    /// The text of a scalar.
    pub(crate) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar(text) => Some(text),
            Value::Sequence(_) | Value::Mapping(_) => None,
        }
    }
}

// === impl Builder ===

impl Builder {
    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), Wrong> {
        let place = Position(span.start.index());
        match event {
            Event::Scalar(text, _, anchor, _) => {
                if self.is_key() {
                    return self.key(&text, place);
                }
                self.complete(place, anchor, Value::Scalar(text.into_owned()))
            }
            Event::SequenceStart(anchor, _) => self.begin(place, anchor, Inner::Sequence(Vec::new())),
            Event::MappingStart(anchor, _) => {
                let inner = Inner::Mapping {
                    entries: Vec::new(),
                    key: None,
                    keys: HashSet::new(),
                    merged: Vec::new(),
                };
                self.begin(place, anchor, inner)
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(open) => {
                    let value = match open.inner {
                        Inner::Sequence(items) => Value::Sequence(items),
                        Inner::Mapping {
                            mut entries,
                            mut keys,
                            merged,
                            ..
                        } => {
                            for entry in merged.iter().flat_map(|node| node.entries()) {
                                if keys.insert(Rc::clone(&entry.key)) {
                                    entries.push(entry.clone());
                                }
                            }
                            Value::Mapping(entries)
                        }
                    };
                    self.complete(open.place, open.anchor, value)
                }
                None => Ok(()),
            },
            Event::Alias(anchor) => {
                if self.is_key() {
                    return Err((place, "a key must be text, not an alias; write it out".to_owned()));
                }
                let node = self.anchors.get(&anchor).cloned();
                let node = node.ok_or_else(|| {
                    (
                        place,
                        "the alias lies within what it stands for; write it out".to_owned(),
                    )
                })?;
                self.bound(place, node.nodes, node.height)?;
                self.put(node);
                Ok(())
            }
            Event::DocumentStart(_) if self.root.is_some() => {
                Err((place, "there is more than one document; keep one".to_owned()))
            }
            _ => Ok(()),
        }
    }

    /// Whether the next node is a key.
    fn is_key(&self) -> bool {
        matches!(
            self.open.last(),
            Some(Open {
                inner: Inner::Mapping { key: None, .. },
                ..
            })
        )
    }

    fn key(&mut self, text: &str, place: Position) -> Result<(), Wrong> {
        if text.len() > KEY_BYTES_MAX {
            return Err((
                place,
                format!("the key is longer than {KEY_BYTES_MAX} bytes; shorten it"),
            ));
        }
        let text: Rc<str> = text.into();
        let mut twice = false;
        if let Some(Open {
            inner: Inner::Mapping { key, keys, .. },
            ..
        }) = self.open.last_mut()
        {
            twice = !keys.insert(Rc::clone(&text));
            *key = Some((Rc::clone(&text), place));
        }
        if twice {
            let text = text.escape_debug();
            return Err((
                place,
                format!("the key `{text}` comes twice in one mapping; remove one"),
            ));
        }
        Ok(())
    }

    fn begin(&mut self, place: Position, anchor: usize, inner: Inner) -> Result<(), Wrong> {
        if self.is_key() {
            return Err((place, "a key must be text; write it as one word".to_owned()));
        }
        self.bound(place, 0, 1)?;
        self.open.push(Open { place, anchor, inner });
        Ok(())
    }

    fn complete(&mut self, place: Position, anchor: usize, value: Value) -> Result<(), Wrong> {
        self.bound(place, 1, 1)?;
        let below = |node: &Rc<Node>| (node.nodes, node.height);
        let below: Vec<_> = match &value {
            Value::Scalar(_) => Vec::new(),
            Value::Sequence(items) => items.iter().map(below).collect(),
            Value::Mapping(entries) => entries.iter().map(|entry| below(&entry.node)).collect(),
        };
        let node = Rc::new(Node {
            place,
            value,
            nodes: below.iter().fold(1, |sum, (nodes, _)| sum.saturating_add(*nodes)),
            height: 1 + below.iter().map(|(_, height)| *height).max().unwrap_or(0),
        });
        if anchor != 0 {
            self.anchors.insert(anchor, Rc::clone(&node));
        }
        self.put(node);
        Ok(())
    }

    /// INVARIANT: whatever enters the tree is counted here first, an alias as all that it stands for.
    fn bound(&mut self, place: Position, nodes: usize, height: usize) -> Result<(), Wrong> {
        self.nodes = self.nodes.saturating_add(nodes);
        if self.nodes > DOCUMENT_NODES_MAX {
            let reason = format!("the document amounts to more than {DOCUMENT_NODES_MAX} values; split it");
            return Err((place, reason));
        }
        if self.open.len().saturating_add(height) > DOCUMENT_DEPTH_MAX {
            let reason = format!("the document nests deeper than {DOCUMENT_DEPTH_MAX} levels; flatten it");
            return Err((place, reason));
        }
        Ok(())
    }

    fn put(&mut self, node: Rc<Node>) {
        match self.open.last_mut().map(|open| &mut open.inner) {
            None => self.root = Some(node),
            Some(Inner::Sequence(items)) => items.push(node),
            Some(Inner::Mapping {
                entries, key, merged, ..
            }) => match key.take() {
                Some((key, _)) if &*key == "<<" && node.text().is_none() => {
                    merged.extend(node.items().iter().cloned());
                    merged.push(node);
                }
                Some((key, place)) => entries.push(Pair { key, place, node }),
                None => {}
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tree on one line.
    fn plain(node: &Node) -> String {
        match &node.value {
            Value::Scalar(text) => text.clone(),
            Value::Sequence(items) => format!("[{}]", items.iter().map(|n| plain(n)).collect::<Vec<_>>().join(" ")),
            Value::Mapping(entries) => {
                let entries: Vec<_> = entries
                    .iter()
                    .map(|e| format!("{}={}", e.key, plain(&e.node)))
                    .collect();
                format!("{{{}}}", entries.join(" "))
            }
        }
    }

    #[test]
    fn yaml_and_json_give_the_same_tree() {
        for (text, expected) in [
            ("a: 1\nb: [x, 'y z']\n", "{a=1 b=[x y z]}"),
            ("{\n\t\"a\": 1,\n\t\"b\":[\"x\",\"y z\"]}", "{a=1 b=[x y z]}"),
            ("{\"a\\/b\": \"\\u00e9\", \"c\":\"\\\\ud83d\"}", "{a/b=é c=\\ud83d}"),
            ("{\"a\": \"\\ud83d\\uDE00!\"}", "{a=\0\0!}"),
            ("\u{feff}a: b", "{a=b}"),
            ("a: &x [1, 2]\nb: *x\n", "{a=[1 2] b=[1 2]}"),
            (
                "a: &x {p: 1, q: 2}\nb:\n  <<: *x\n  p: 3\n",
                "{a={p=1 q=2} b={p=3 q=2}}",
            ),
            (
                "a: &x {p: 1}\nb: &y {q: 2}\nc: {<<: [*x, *y], r: 3}\n",
                "{a={p=1} b={q=2} c={r=3 p=1 q=2}}",
            ),
        ] {
            assert_eq!(plain(&read(text).unwrap()), expected, "{text}");
        }
    }

    #[track_caller]
    fn refused(text: &str, expected: &str) {
        let fault = read(text)
            .map_err(|(place, reason)| place.fault("x.yaml", text, reason))
            .unwrap_err()
            .to_string();
        let (place, reason) = expected.split_once('…').unwrap();
        assert!(
            fault.starts_with(&format!("x.yaml:{place}: ")) && fault.contains(reason),
            "{fault}\nis not {expected}"
        );
    }

    #[test]
    fn what_cannot_be_read_in_one_way_is_refused() {
        refused("", "1:1…is empty");
        refused("a: [1\n", "2:1…neither YAML nor JSON");
        refused("a: 1\nb: 2\na: 3\n", "3:1…`a` comes twice");
        refused("{\"a\":1, \"a\":2}", "1:9…`a` comes twice");
        refused("a: 1\n---\nb: 2\n", "2:1…more than one document");
        refused("? [a]\n: b\n", "1:3…a key must be text");
        refused("a: &x b\n*x : c\n", "2:1…a key must be text");
        refused("a: *x\n", "1:4…unknown anchor");
        refused("a: &x [*x]\n", "1:8…write it out");
        refused(
            &format!("? {}\n: 1\n", "k".repeat(8_193)),
            "1:3…the key is longer than 8192 bytes",
        );
    }

    #[test]
    fn a_billion_laughs_are_refused_and_so_is_a_ladder() {
        let mut laughs = "a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]\n".to_owned();
        for level in 1..10 {
            let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
            laughs.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
        }
        refused(&laughs, "6:45…amounts to more than");
        // Not many values, but each rung one level deeper: dropping it must not need a stack of its own.
        let mut ladder = "a0: &a0 [x]\n".to_owned();
        for rung in 1..100_000 {
            ladder.push_str(&format!("a{rung}: &a{rung} [*a{}]\n", rung - 1));
        }
        refused(&ladder, "99:12…nests deeper than 100");
        refused(&"- ".repeat(200), "1:201…nests deeper than 100");
        refused(&"[".repeat(200), "1:101…nests deeper than 100");
        refused(&"a".repeat(DOCUMENT_BYTES_MAX + 1), "1:1…is longer than");
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "[\\[\\]{}:,&*?|>'\"\\- \\n\\tab\\\\ud8<]{0,60}") {
            let _ = read(&text);
        }
    }
}
