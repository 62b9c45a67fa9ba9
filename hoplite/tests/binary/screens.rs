//! What terminals show in docs/screens is what the binary shows: captured anew, and compared word by word, numbers and times aside.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::machine;
use crate::reader::shape;

/// A screen without what differs from run to run.
fn words(screen: &str) -> Vec<String> {
    let word = |word: &str| {
        let shape = shape(word);
        let mut word = String::new();
        for c in shape.chars() {
            // `12`, `#` and `1.5` are a number.
            let c = if c.is_ascii_digit() { '#' } else { c };
            if !(c == '#' && word.ends_with('#')) {
                word.push(c);
            }
        }
        word.replace("#.#", "#")
    };
    screen.split_whitespace().map(word).collect()
}

#[test]
fn screens_are_what_a_terminal_shows() {
    let test = "screens_are_what_a_terminal_shows";
    if !machine::possible(test) {
        return;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let committed = root.join("docs/screens");
    let dir = tempfile::tempdir().unwrap();
    let captured = Command::new(committed.join("capture"))
        .arg(env!("CARGO_BIN_EXE_hoplite"))
        .arg(dir.path())
        .output()
        .unwrap();
    assert!(captured.status.success(), "{captured:?}");
    let approve = std::env::var_os("HOPLITE_APPROVE").is_some();
    let mut compared = 0;
    for entry in fs::read_dir(dir.path()).unwrap().flatten() {
        let name = entry.file_name();
        let (now, before) = (fs::read_to_string(entry.path()).unwrap(), committed.join(&name));
        let columns: usize = if name.to_str().unwrap().ends_with("-80.txt") {
            80
        } else {
            120
        };
        let is_text = name.to_str().unwrap().ends_with(".txt");
        let too_long = now
            .lines()
            .filter(|_| is_text)
            .skip(1)
            .find(|line| line.chars().count() > columns);
        assert_eq!(too_long, None, "{name:?} has a line of more than {columns} columns");
        if approve {
            fs::write(before, now).unwrap();
            continue;
        }
        let shown = fs::read_to_string(&before).unwrap_or_default();
        assert_eq!(
            words(&shown),
            words(&now),
            "{name:?} is no longer what a terminal shows; HOPLITE_APPROVE=1 writes it anew:\n{now}"
        );
        compared += 1;
    }
    assert!(approve || compared == 12, "{compared} screens");
}

#[test]
fn numbers_are_aside() {
    assert_eq!(words("up after 0.72 s, 49 ok"), words("up after 11.2 s, 5 ok"));
    assert_eq!(words("of process 12 (hoplite)"), words("of  process\n4711 (hoplite)"));
    assert_ne!(words("1 ok"), words("1 failed"));
}
