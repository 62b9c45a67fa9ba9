//! Completions and manual pages as their readers take them.

use std::fs;
use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use crate::support::{hoplite, skip};

/// Runs a program if it is there; `true` under `CI`, where it must be.
fn judge(test: &str, program: &str, arguments: &[&str], input: &str) -> Option<Output> {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let Ok(mut child) = command.spawn() else {
        skip(test, &format!("peer {program} is not installed"));
        return None;
    };
    let mut stdin = child.stdin.take().unwrap();
    let text = input.to_owned();
    let writing = std::thread::spawn(move || {
        let _ = stdin.write_all(text.as_bytes());
    });
    let output = child.wait_with_output().unwrap();
    writing.join().unwrap();
    Some(output)
}

fn completions(shell: &str) -> String {
    let printed = hoplite(&["completions", shell]);
    assert!(printed.status.success(), "{printed:?}");
    String::from_utf8(printed.stdout).unwrap()
}

#[test]
fn bash_completes_commands_and_flags() {
    let script = format!(
        "{}\nask() {{ COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _hoplite hoplite \"${{@: -1}}\" \"${{@: -2:1}}\"; echo \"${{COMPREPLY[*]}}\"; }}\n\
         ask hoplite pol\nask hoplite policy rep\nask hoplite ca run --co\nask hoplite completions z\ncomplete -p hoplite\n",
        completions("bash")
    );
    let test = "bash_completes_commands_and_flags";
    let Some(said) = judge(test, "bash", &["--norc"], &script) else {
        return;
    };
    let lines = String::from_utf8(said.stdout).unwrap();
    let lines: Vec<&str> = lines.lines().collect();
    assert_eq!(lines[..4], ["policy", "replay", "--config", "zsh"], "{lines:?}");
    assert!(lines[4].contains("-F _hoplite") && said.stderr.is_empty(), "{lines:?}");
}

#[test]
fn zsh_and_fish_take_theirs() {
    let test = "zsh_and_fish_take_theirs";
    if let Some(said) = judge(test, "zsh", &["-n"], &completions("zsh")) {
        assert!(said.status.success() && said.stderr.is_empty(), "{said:?}");
    }
    let ask = format!("{}\ncomplete --do-complete 'hoplite pol'\n", completions("fish"));
    if let Some(said) = judge(test, "fish", &["--no-config"], &ask) {
        let lines = String::from_utf8(said.stdout).unwrap();
        assert!(
            lines.starts_with("policy\tCheck policies"),
            "{lines} {}",
            String::from_utf8_lossy(&said.stderr)
        );
    }
}

#[test]
fn manual_pages_are_those_of_every_command() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("man1");
    let written = hoplite(&["man", "--dir", at.to_str().unwrap()]);
    assert!(written.status.success() && written.stdout.is_empty(), "{written:?}");
    let mut pages: Vec<String> = fs::read_dir(&at)
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    pages.sort();
    for expected in [
        "hoplite.1",
        "hoplite-ca.1",
        "hoplite-ca-run.1",
        "hoplite-policy-replay.1",
        "hoplite-man.1",
    ] {
        assert!(
            pages.iter().any(|page| page == expected),
            "{expected} is missing from {pages:?}"
        );
    }
    assert!(
        !pages.iter().any(|page| page.contains("demo-service")),
        "what is hidden has no page"
    );
    let top = hoplite(&["man"]).stdout;
    assert_eq!(
        top,
        fs::read(at.join("hoplite.1")).unwrap(),
        "without a directory that of `hoplite` is shown"
    );

    for page in &pages {
        let text = fs::read_to_string(at.join(page)).unwrap();
        let test = "manual_pages_are_those_of_every_command";
        let Some(said) = judge(test, "mandoc", &["-T", "lint", "-W", "error"], &text) else {
            return;
        };
        assert!(
            said.status.success(),
            "{page}: {}",
            String::from_utf8_lossy(&said.stdout)
        );
        let Some(shown) = judge(test, "mandoc", &["-T", "ascii"], &text) else {
            return;
        };
        let shown = String::from_utf8_lossy(&shown.stdout).replace('\u{8}', "");
        assert!(shown.len() > 200, "{page}: {shown}");
    }

    let refused = hoplite(&["man", "--dir", "/dev/null/man"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1));
    assert!(said.contains("cannot make the directory `/dev/null/man`"), "{said}");
}
