//! What was checked, for the programs of others: JUnit's XML for those that show tests, SARIF 2.1.0 for those that mark lines.

use std::fmt::Write as _;

use clap::ValueEnum;
use serde_json::{Value, json};

/// The form of a report about files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum ReportOutput {
    /// Text for people
    #[default]
    Table,
    /// One JSON document for scripts
    Json,
    /// JUnit's XML, as CI systems show it
    Junit,
    /// SARIF 2.1.0, as code hosts mark lines with it
    Sarif,
}

/// One thing that was checked.
#[derive(Debug, Clone)]
pub(crate) struct Checked {
    /// The file.
    pub(crate) file: String,
    /// What was checked in it.
    pub(crate) name: String,
    /// What is wrong, if anything.
    pub(crate) wrong: Option<Wrong>,
}

/// What is wrong, and where.
#[derive(Debug, Clone)]
pub(crate) struct Wrong {
    /// SARIF's level: `error` or `warning`.
    pub(crate) level: &'static str,
    /// The kind of thing, which SARIF calls a rule.
    pub(crate) rule: &'static str,
    pub(crate) message: String,
    /// From 1; 0 is the file as a whole.
    pub(crate) line: usize,
    /// From 1.
    pub(crate) column: usize,
}

/// One suite a file, in the order in which they come; valid by the schema that CI systems share (`errors` is demanded there).
pub(crate) fn junit(name: &str, all: &[Checked]) -> String {
    let failures = |checked: &[&Checked]| checked.iter().filter(|each| each.wrong.is_some()).count();
    let every: Vec<&Checked> = all.iter().collect();
    let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let _ = writeln!(
        text,
        "<testsuites name=\"{}\" tests=\"{}\" failures=\"{}\" errors=\"0\">",
        xml(name),
        every.len(),
        failures(&every)
    );
    for suite in every.chunk_by(|a, b| a.file == b.file) {
        let file = suite.first().map(|each| xml(&each.file)).unwrap_or_default();
        let _ = writeln!(
            text,
            "  <testsuite name=\"{file}\" tests=\"{}\" failures=\"{}\" errors=\"0\">",
            suite.len(),
            failures(suite)
        );
        for each in suite {
            let _ = write!(text, "    <testcase classname=\"{file}\" name=\"{}\"", xml(&each.name));
            match &each.wrong {
                None => text.push_str("/>\n"),
                Some(wrong) => {
                    let message = xml(&wrong.message);
                    let place = format!("{file}:{}:{}", wrong.line, wrong.column);
                    let _ = writeln!(
                        text,
                        "><failure type=\"{}\" message=\"{message}\">{place}: {message}</failure></testcase>",
                        wrong.level
                    );
                }
            }
        }
        text.push_str("  </testsuite>\n");
    }
    text.push_str("</testsuites>\n");
    text
}

/// Only what is wrong; paths are relative to the directory that was checked.
pub(crate) fn sarif(all: &[Checked]) -> Value {
    let wrong = all.iter().filter_map(|each| Some((each, each.wrong.as_ref()?)));
    let mut rules: Vec<&str> = wrong.clone().map(|(_, wrong)| wrong.rule).collect();
    rules.sort_unstable();
    rules.dedup();
    let rules: Vec<Value> = rules.iter().map(|rule| json!({"id": rule})).collect();
    let results: Vec<Value> = wrong
        .map(|(each, wrong)| {
            // A file as a whole has no line, and lines begin at 1.
            let region = (wrong.line > 0).then(|| json!({"startLine": wrong.line, "startColumn": wrong.column.max(1)}));
            let mut place = json!({"artifactLocation": {"uri": uri(&each.file), "uriBaseId": "POLICIES"}});
            if let (Some(region), Some(fields)) = (region, place.as_object_mut()) {
                fields.insert("region".to_owned(), region);
            }
            json!({
                "ruleId": wrong.rule, "level": wrong.level, "message": {"text": wrong.message},
                "locations": [{"physicalLocation": place}],
            })
        })
        .collect();
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": {"driver": {"name": "hoplite", "version": env!("CARGO_PKG_VERSION"), "rules": rules}},
            "columnKind": "unicodeCodePoints",
            "results": results,
        }],
    })
}

/// A relative reference (RFC 3986 4.2) of a path.
fn uri(path: &str) -> String {
    let mut text = String::new();
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

/// Text between tags or quotes; what XML 1.0 cannot hold at all is a replacement character.
fn xml(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' => out.push_str("&#10;"),
            '\t' => out.push_str("&#9;"),
            '\r' => out.push_str("&#13;"),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked() -> Vec<Checked> {
        let wrong = Wrong {
            level: "error",
            rule: "policy/fault",
            message: "`a < b` & \"c\"\u{1}".to_owned(),
            line: 3,
            column: 0,
        };
        vec![
            Checked {
                file: "a b.cedar".to_owned(),
                name: "loads".to_owned(),
                wrong: Some(wrong),
            },
            Checked {
                file: "ü.cedar".to_owned(),
                name: "loads".to_owned(),
                wrong: None,
            },
        ]
    }

    #[test]
    fn junit_holds_any_text() {
        let text = junit("policy check", &checked());
        for line in [
            "<testsuites name=\"policy check\" tests=\"2\" failures=\"1\" errors=\"0\">",
            "  <testsuite name=\"a b.cedar\" tests=\"1\" failures=\"1\" errors=\"0\">",
            "  <testsuite name=\"ü.cedar\" tests=\"1\" failures=\"0\" errors=\"0\">",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing from {text}");
        }
        assert!(
            text.contains("a b.cedar:3:0: `a &lt; b` &amp; &quot;c&quot;\u{fffd}</failure>"),
            "{text}"
        );
    }

    #[test]
    fn sarif_points_at_lines() {
        let sarif = sarif(&checked());
        let result = &sarif["runs"][0]["results"][0];
        assert_eq!(sarif["runs"][0]["results"].as_array().map(Vec::len), Some(1));
        let place = &result["locations"][0]["physicalLocation"];
        assert_eq!(place["artifactLocation"]["uri"], "a%20b.cedar");
        assert_eq!(place["region"], json!({"startLine": 3, "startColumn": 1}));
        assert_eq!(
            sarif["runs"][0]["tool"]["driver"]["rules"],
            json!([{"id": "policy/fault"}])
        );
    }
}
