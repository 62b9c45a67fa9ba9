//! Why a command failed: a sentence for people, and one JSON object for programs that asked for JSON.

use std::ffi::OsString;
use std::sync::OnceLock;

use hoplite_host::config::printable;
use serde_json::json;

use super::lines::{COLUMNS_MIN, one_line, wrapped};

/// Set once, before anything can fail.
static FOR_PROGRAMS: OnceLock<bool> = OnceLock::new();

/// Whether failures are told in JSON from now on.
pub(crate) fn set_for_programs(wanted: bool) {
    let _ = FOR_PROGRAMS.set(wanted);
}

/// Whether a program reads the answer: `--output json` or `jsonl` stands on the command line. It is known before the command line
/// is understood, so that what is wrong with that is told in the same form.
pub(crate) fn asks_for_json(arguments: impl Iterator<Item = OsString>) -> bool {
    let mut arguments = arguments.filter_map(|argument| argument.into_string().ok());
    let mut is_json = false;
    while let Some(argument) = arguments.next().filter(|argument| argument != "--") {
        let form = match argument.strip_prefix("--output=") {
            Some(form) => Some(form.to_owned()),
            None if argument == "--output" => arguments.next(),
            None => None,
        };
        is_json = form.map_or(is_json, |form| form == "json" || form == "jsonl");
    }
    is_json
}

/// Says why a command failed, which is to exit with this code: to people on lines that fit their terminal, elsewhere on one line.
pub(crate) fn failure(error: &anyhow::Error, exit: u8) {
    let causes: Vec<String> = error.chain().map(ToString::to_string).collect();
    tell(&one_line(error), &causes, exit);
}

/// Says what failed, where a sentence is all that is known.
pub(crate) fn failed(text: &str, exit: u8) {
    tell(text, &[text.to_owned()], exit);
}

/// What is wrong with the command line, as far as a program needs it.
pub(crate) fn wrong_usage(error: &clap::Error) {
    let text = error.render().to_string();
    let said = text.split("\n\nUsage:").next().unwrap_or_default();
    let said = said.split("\n\nFor more information").next().unwrap_or_default();
    let words: Vec<&str> = said.trim_start_matches("error: ").split_whitespace().collect();
    failed(&words.join(" "), 2);
}

fn tell(text: &str, causes: &[String], exit: u8) {
    if FOR_PROGRAMS.get().is_some_and(|wanted| *wanted) {
        hoplite_host::tell!("{}", document(text, causes, exit));
        return;
    }
    let text = &printable(text.chars());
    let width = terminal_size::terminal_size_of(std::io::stderr()).map(|(width, _)| usize::from(width.0));
    match width {
        Some(width @ COLUMNS_MIN..) => hoplite_host::tell::text(&wrapped("error: ", 2, text, width)),
        _ => hoplite_host::tell!("error: {text}"),
    }
}

fn document(text: &str, causes: &[String], exit: u8) -> String {
    json!({"error": text, "causes": causes, "exit": exit}).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_for_json_is_known_by_the_command_line() {
        let check = |line: &str, expected: bool| {
            let arguments = line.split(' ').map(OsString::from);
            assert_eq!(asks_for_json(arguments), expected, "{line}");
        };
        check("hoplite entry list", false);
        check("hoplite entry list --output json", true);
        check("hoplite entry list --output=jsonl", true);
        check("hoplite entry list --output table", false);
        check("hoplite entry list --output csv --output json", true);
        check("hoplite svid fetch --exec -- --output json", false);
        check("hoplite entry list --output", false);
        check("hoplite token create --node --output json --ttl=x", true);
    }

    #[test]
    fn a_failure_is_one_object_on_one_line() {
        let error = anyhow::anyhow!("the disk\nis full").context("cannot write `a`");
        let causes: Vec<String> = error.chain().map(ToString::to_string).collect();
        let text = document(&one_line(&error), &causes, 3);
        assert_eq!(text.lines().count(), 1);
        let read: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            read,
            json!({"error": "cannot write `a`: the disk, is full", "causes": ["cannot write `a`", "the disk\nis full"], "exit": 3})
        );
    }
}
