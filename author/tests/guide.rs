//! Executes the guides: every policy on their pages compiles, passes the lint and its test table, and is needed by it.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests: a panic is how they fail")]

use hoplite_author::{CaseTable, Places, lint};
use hoplite_policy::{Snapshot, Source};

#[path = "../../tests/page/mod.rs"]
mod page;

/// A section of a page and its fenced blocks, each with its language.
struct Section {
    heading: String,
    blocks: Vec<(String, String)>,
}

fn sections(name: &str) -> Vec<Section> {
    let mut sections: Vec<Section> = Vec::new();
    for block in page::blocks(&format!("docs/guide/{name}")) {
        if sections.last().is_none_or(|section| section.heading != block.section) {
            sections.push(Section {
                heading: block.section,
                blocks: Vec::new(),
            });
        }
        sections.last_mut().unwrap().blocks.push((block.language, block.text));
    }
    sections
}

impl Section {
    fn blocks(&self, language: &str) -> Vec<&str> {
        let blocks = self.blocks.iter().filter(|(of, _)| of == language);
        blocks.map(|(_, text)| text.as_str()).collect()
    }

    /// The sources as a reader would save them.
    fn sources(&self, policies: &str) -> Vec<Source> {
        let (headers, routes): (Vec<_>, Vec<_>) = self
            .blocks("toml")
            .into_iter()
            .partition(|text| text.starts_with("headers ="));
        assert!(
            headers.len() < 2 && routes.len() < 2,
            "{}: one table of each kind is enough",
            self.heading
        );
        let named = [("recipe.cedar", policies)].into_iter();
        let named = named.chain(routes.into_iter().map(|text| ("routes.toml", text)));
        named
            .chain(headers.into_iter().map(|text| ("headers.toml", text)))
            .map(|(name, text)| Source {
                name: name.to_owned(),
                text: text.to_owned(),
            })
            .collect()
    }

    /// The cases that do not come out as the table says.
    fn failures(&self, policies: &str) -> Vec<String> {
        let snapshot =
            Snapshot::compile(&self.sources(policies)).unwrap_or_else(|faults| panic!("{}: {faults:#?}", self.heading));
        let mut failures = Vec::new();
        for text in self.blocks("test") {
            let source = Source {
                name: "recipe.test".to_owned(),
                text: text.to_owned(),
            };
            let table = CaseTable::parse(&source, snapshot.headers())
                .unwrap_or_else(|faults| panic!("{}: {faults:#?}", self.heading));
            assert!(table.len() > 1, "{}: one case shows little", self.heading);
            let results = table
                .run(&snapshot, &Places::default())
                .into_iter()
                .filter(|result| !result.passed);
            failures.extend(results.map(|result| format!("{result:?}")));
        }
        failures
    }

    /// Compiles, lints and tests the section, then takes each policy away and expects the table to notice.
    fn execute(&self) {
        let policies = self.blocks("cedar").join("\n");
        let heading = &self.heading;
        assert!(!policies.is_empty(), "{heading}: a table without a policy");
        assert_eq!(self.failures(&policies), [] as [String; 0], "{heading}");
        let faults = lint(&self.sources(&policies));
        assert!(faults.is_empty(), "{heading}: {faults:#?}");

        // No policy of a guide holds a semicolon in a text.
        let each: Vec<&str> = policies
            .split_inclusive(';')
            .filter(|text| text.contains("@id"))
            .collect();
        let ids = Snapshot::compile(&self.sources(&policies)).unwrap().policy_ids().len();
        assert_eq!(each.len(), ids, "{heading}");
        for gone in &each {
            let rest: String = each.iter().filter(|text| text != &gone).copied().collect();
            assert_ne!(
                self.failures(&rest),
                [] as [String; 0],
                "{heading}: nothing notices that this is gone:{gone}"
            );
        }
    }
}

#[track_caller]
fn execute(name: &str, least: usize) {
    let sections = sections(name);
    let tested: Vec<_> = sections
        .iter()
        .filter(|section| !section.blocks("test").is_empty())
        .collect();
    for section in &sections {
        let shown = !section.blocks("cedar").is_empty();
        assert_eq!(
            shown,
            tested.iter().any(|t| t.heading == section.heading),
            "{}",
            section.heading
        );
    }
    assert!(tested.len() >= least, "{name} has {} cases", tested.len());
    for section in tested {
        section.execute();
    }
}

#[test]
fn the_cookbook_is_executed() {
    execute("policy-cookbook.md", 15);
}

#[test]
fn the_first_policy_is_executed() {
    execute("write-your-first-policy.md", 3);
}
