//! A reader who follows a page of the documentation: types each block into a shell, and compares what it shows with what is printed.
//!
//! - `sh` blocks are run as they stand, one after the other in one shell. No command may fail, but the one of `exits=N`.
//! - a block that ends with `&` is left running; where the text after it has "It runs when it says `X`", that is waited for.
//! - `sh stays until="X"` has a terminal of its own, and is left running once it says so.
//! - `sh ctrl-c` is stopped after a moment.
//! - `console` blocks are commands behind `$ ` or `# `, each with what it prints below it; so is a block with the word `output`, for the
//!   block before it.
//! - another block with a file's name is written into that file, or with `append` after what it has.
//! - `not-run="reason"` is not run.
//!
//! A reader replaces what a page can only give an example of: an invitation (`TOKEN@…#…`, or with `…`), an id that ends in `…`, and a decision's
//! id stand for the newest that was printed of their kind.
//!
//! What is printed is compared word by word. Times, durations, and hexadecimal words of eight or more digits are one like another, and `…` on a page
//! stands for anything.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Stdio};
use std::time::{Duration, Instant};

use crate::machine::Machine;
use crate::page::{self, Block};

/// Nothing on a page takes longer, debug build and busy machine included.
const PATIENCE: Duration = Duration::from_secs(120);

/// A reader with a page, and a shell on each machine.
pub(crate) struct Reader<'m> {
    page: &'static str,
    shells: Vec<Shell<'m>>,
    /// All that was printed, the newest last.
    printed: String,
    /// What the block before printed.
    last: String,
    /// What did not come out as the page says.
    pub(crate) wrong: Vec<String>,
    /// How many blocks were run, without those that only prepare.
    pub(crate) ran: usize,
}

struct Shell<'m> {
    machine: &'m Machine,
    child: Child,
    stdin: ChildStdin,
    files: usize,
}

/// What a script came to.
struct Ran {
    said: String,
    /// `status command` of each command that failed.
    failed: Vec<String>,
}

// === impl Reader ===

impl<'m> Reader<'m> {
    pub(crate) fn new(page: &'static str, machines: impl IntoIterator<Item = &'m Machine>) -> Self {
        Self {
            page,
            shells: machines.into_iter().map(Shell::start).collect(),
            printed: String::new(),
            last: String::new(),
            wrong: Vec::new(),
            ran: 0,
        }
    }

    /// Follows the page to its end.
    pub(crate) fn follow(&mut self) {
        for block in page::blocks(self.page) {
            self.take(&block);
        }
    }

    /// Follows the page, which must be true.
    pub(crate) fn believe(mut self) -> usize {
        self.follow();
        assert!(
            self.wrong.is_empty(),
            "{} is wrong:\n\n{}",
            self.page,
            self.wrong.join("\n\n")
        );
        assert!(self.ran > 0, "{} has nothing to run", self.page);
        self.ran
    }

    fn take(&mut self, block: &Block) {
        if block.setting("not-run").is_some() {
            return;
        }
        if block.is_shell() {
            self.ran += usize::from(!block.has("before"));
            self.run(block);
        } else if block.has("output") {
            let last = self.last.clone();
            self.compare(block, "what is printed", &block.text, &last);
        } else if let Some(file) = block.words.iter().find(|word| word.contains(['.', '/'])) {
            // By its shell: what lies outside the home is the machine's own.
            let machine = self.shell(block).machine;
            let draft = machine.file("draft");
            fs::write(&draft, &block.text).unwrap();
            let how = if block.has("append") { ">>" } else { ">" };
            let ran = machine.run(&format!(
                "mkdir -p \"$(dirname {file})\" && cat {} {how}{file}",
                draft.display()
            ));
            assert!(ran.status.success(), "{}: {ran:?}", block.place);
        }
    }

    fn shell(&mut self, block: &Block) -> &mut Shell<'m> {
        let named = self.shells.iter().position(|shell| block.has(shell.machine.name));
        self.shells.get_mut(named.unwrap_or(0)).unwrap()
    }

    fn run(&mut self, block: &Block) {
        let columns = block.setting("columns").map(ToOwned::to_owned);
        let columns = columns.map_or("unset COLUMNS".to_owned(), |columns| {
            format!("export COLUMNS={columns}")
        });
        if block.language == "console" {
            let steps = steps(&block.text);
            assert!(!steps.is_empty(), "{}: no line begins with `$ ` or `# `", block.place);
            let end = steps.len() - 1;
            for (number, (command, shows)) in steps.into_iter().enumerate() {
                let exits = block.setting("exits").filter(|_| number == end);
                let said = self.script(block, &columns, &command, exits);
                if !shows.trim().is_empty() {
                    self.compare(block, &command, &shows, &said);
                }
            }
        } else if block.text.trim_end().ends_with('&') || block.has("stays") {
            let mut text = self.stand_ins(block.text.trim_end());
            if block.has("stays") {
                text = format!("{{\n{text}\n}} &");
            }
            let says = block.after.split("It runs when it says `").nth(1);
            let says = says.map(|rest| rest.split('`').next().unwrap().to_owned());
            let says = says.or(block.setting("until").map(ToOwned::to_owned));
            match self
                .shell(block)
                .leave(&format!("{columns}\n{text}"), says.as_deref().unwrap_or_default())
            {
                Ok(said) => self.printed.push_str(&said),
                Err(why) => self.wrong.push(format!("{}: {text}\n{why}", block.place)),
            }
        } else {
            self.script(block, &columns, &block.text, block.setting("exits"));
        }
    }

    fn script(&mut self, block: &Block, columns: &str, text: &str, exits: Option<&str>) -> String {
        let stopped = block.has("ctrl-c");
        let text = self.stand_ins(text);
        let text = if stopped {
            format!("timeout --signal=INT 3 {text}")
        } else {
            text
        };
        let ran = match self.shell(block).run(&format!("{columns}\n{text}")) {
            Ok(ran) => ran,
            Err(why) => panic!("{}: {why}\n{text}\nBefore it:\n{}", block.place, self.wrong.join("\n")),
        };
        let failed: Vec<&str> = ran.failed.iter().filter_map(|line| line.split(' ').next()).collect();
        let expected: Vec<&str> = exits.into_iter().chain(stopped.then_some("124")).collect();
        if failed != expected {
            let failed = ran.failed.join("\n  ");
            self.wrong.push(format!(
                "{}:\n{}\nfailed, expected {expected:?}:\n  {failed}\nsaid:\n{}",
                block.place,
                text.trim_end(),
                ran.said
            ));
        }
        if stopped && ran.said.trim().is_empty() {
            self.wrong.push(format!("{}: nothing was shown", block.place));
        }
        self.printed.push_str(&ran.said);
        self.last.clone_from(&ran.said);
        ran.said
    }

    fn compare(&mut self, block: &Block, what: &str, expected: &str, said: &str) {
        if !is_shown(expected, said) {
            self.wrong.push(format!(
                "{}: {what}\nthe page shows:\n{expected}\nprinted is:\n{said}",
                block.place
            ));
        }
    }

    /// The text with the newest of each kind in the place of the examples.
    fn stand_ins(&self, text: &str) -> String {
        let words = text.split_inclusive(|c: char| c.is_whitespace() || "'\"`".contains(c));
        words
            .map(|word| {
                let bare = word.trim_end_matches(|c: char| c.is_whitespace() || "'\"`".contains(c));
                match newest(&self.printed, bare) {
                    Some(newest) => word.replacen(bare, &newest, 1),
                    None => word.to_owned(),
                }
            })
            .collect()
    }
}

/// The newest that was printed of the kind that this is an example of.
fn newest(printed: &str, example: &str) -> Option<String> {
    let last = |is_one: &dyn Fn(&str) -> bool, apart: &dyn Fn(char) -> bool| {
        let found = printed.split(apart).rfind(|word| is_one(word));
        found.map(ToOwned::to_owned)
    };
    let apart = |c: char| !c.is_ascii_alphanumeric() && c != '-';
    if let (Some((_, _)), true) = (example.split_once('@'), example.contains('#')) {
        let is_invitation = |word: &str| {
            let token = word.split_once('@').map(|(token, _)| token);
            word.contains('#') && token.is_some_and(|token| token.len() == 64 && is_hex(token))
        };
        return last(&is_invitation, &char::is_whitespace);
    }
    if let Some(begin) = example.strip_suffix('…') {
        return (begin.len() > 2 && is_hex(begin)).then(|| last(&|word| word.len() == 32 && is_hex(word), &apart))?;
    }
    let (name, _) = decision(example)?;
    last(&|word| decision(word).is_some_and(|(known, _)| known == name), &apart)
}

fn is_hex(word: &str) -> bool {
    word.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// The recorder's name and the rest of a decision's id.
fn decision(word: &str) -> Option<(&str, &str)> {
    let (start, number) = word.rsplit_once('-')?;
    let (name, run) = start.rsplit_once('-')?;
    let is_one = run.len() == 16 && is_hex(run) && !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    is_one.then_some((name, run))
}

/// The commands of a console, each with what it shows.
fn steps(text: &str) -> Vec<(String, String)> {
    let mut steps: Vec<(String, String)> = Vec::new();
    let mut goes_on = false;
    for line in text.lines() {
        let command = line.strip_prefix("$ ").or_else(|| line.strip_prefix("# "));
        match (command, steps.last_mut()) {
            (Some(command), _) => steps.push((command.to_owned(), String::new())),
            (None, Some((command, _))) if goes_on => {
                command.push('\n');
                command.push_str(line);
            }
            (None, Some((_, shows))) => {
                shows.push_str(line);
                shows.push('\n');
            }
            (None, None) => panic!("a console begins with a command: {text}"),
        }
        goes_on = line.ends_with('\\');
    }
    steps
}

// === what is printed ===

/// Whether this is what a page shows.
pub(crate) fn is_shown(page: &str, printed: &str) -> bool {
    let words = |text: &str| -> Vec<String> { text.split_whitespace().map(shape).collect() };
    matches(&words(page), &words(printed))
}

fn matches(page: &[String], printed: &[String]) -> bool {
    match (page.split_first(), printed.split_first()) {
        (None, None) => true,
        (None, Some(_)) => false,
        (Some((first, rest)), _) if first == "…" => {
            (0..=printed.len()).any(|skipped| matches(rest, printed.get(skipped..).unwrap()))
        }
        (Some(_), None) => false,
        (Some((first, rest)), Some((word, more))) => fits(first, word) && matches(rest, more),
    }
}

/// With `…` for anything within a word.
fn fits(page: &str, word: &str) -> bool {
    let Some((before, after)) = page.split_once('…') else {
        return page == word;
    };
    word.strip_prefix(before)
        .is_some_and(|rest| (0..=rest.len()).any(|at| rest.get(at..).is_some_and(|rest| fits(after, rest))))
}

/// A word without what differs from run to run.
pub(crate) fn shape(word: &str) -> String {
    let mut shape = String::new();
    let mut part = String::new();
    let flush = |part: &mut String, shape: &mut String| {
        match decision(part) {
            Some((name, _)) => {
                shape.push_str(name);
                shape.push_str("-#");
            }
            None => shape.push_str(if varies(part) { "#" } else { part.as_str() }),
        }
        part.clear();
    };
    for c in word.chars() {
        if c.is_ascii_alphanumeric() || "-:.+".contains(c) {
            part.push(c);
        } else {
            flush(&mut part, &mut shape);
            shape.push(c);
        }
    }
    flush(&mut part, &mut shape);
    shape
}

fn varies(part: &str) -> bool {
    let part = part.trim_end_matches(['.', ':']);
    let digits = part.bytes().filter(u8::is_ascii_digit).count();
    let is_digest = part.len() >= 8 && is_hex(part) && digits > 0;
    let is_time = digits >= 4
        && part.bytes().all(|b| b.is_ascii_digit() || b"-:.+TZ".contains(&b))
        && part.matches([':', '-']).count() >= 2;
    let unit = part.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let is_duration =
        digits > 0 && unit.len() < part.len() && matches!(unit, "us" | "ms" | "s" | "m" | "min" | "h" | "d");
    is_digest || is_time || is_duration
}

// === impl Shell ===

impl<'m> Shell<'m> {
    fn start(machine: &'m Machine) -> Self {
        // On a terminal curl shows no progress.
        fs::write(machine.home.join(".curlrc"), "silent\nshow-error\n").unwrap();
        let log = machine.file("shell");
        let out = File::create(&log).unwrap();
        let mut child = machine
            .shell("exec bash")
            .env("HOPLITE_TIME_ZONE", "utc")
            .stdin(Stdio::piped())
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        writeln!(stdin, "set -uo pipefail; cd ~; NEWLINE=$'\\n'").unwrap();
        Self {
            machine,
            child,
            stdin,
            files: 0,
        }
    }

    /// Sends a script and what is to be done with it, and waits for its end.
    fn send(&mut self, script: &str, how: impl Fn(&Path) -> String) -> Result<PathBuf, String> {
        self.files += 1;
        let file = self.machine.home.join(format!(".typed.{}", self.files));
        fs::write(&file, format!("{script}\n")).unwrap();
        let at = file.display();
        let (line, done) = (how(&file), file.with_extension(format!("{}.done", self.files)));
        writeln!(
            self.stdin,
            "trap 'echo \"$? ${{BASH_COMMAND%%$NEWLINE*}}\" >>{at}.failed' ERR; {line}; trap - ERR; touch {}",
            done.display()
        )
        .map_err(|error| format!("the shell is gone: {error}"))?;
        let deadline = Instant::now() + PATIENCE;
        while !done.exists() {
            let ended = self.child.try_wait().unwrap();
            let said = || fs::read_to_string(format!("{at}.said")).unwrap_or_default();
            if let Some(ended) = ended {
                return Err(format!("the shell ended with {ended}: {}", said()));
            }
            if Instant::now() > deadline {
                return Err(format!("it did not end within {PATIENCE:?}: {}", said()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(file)
    }

    /// Runs a script to its end, in the shell itself, so that what it sets stays.
    fn run(&mut self, script: &str) -> Result<Ran, String> {
        let file = self.send(script, |file| {
            format!(". {at} </dev/null >{at}.said 2>&1", at = file.display())
        })?;
        let read = |end: &str| fs::read_to_string(format!("{}.{end}", file.display())).unwrap_or_default();
        Ok(Ran {
            said: read("said"),
            // The reading of the script has failed, too, where its last command has.
            failed: read("failed")
                .lines()
                .filter(|line| !line.contains(". /"))
                .map(ToOwned::to_owned)
                .collect(),
        })
    }

    /// Leaves something running that says this. What it has said by then comes back.
    fn leave(&mut self, script: &str, says: &str) -> Result<String, String> {
        let file = self.send(script, |file| {
            format!(". {at} </dev/null >{at}.said 2>&1", at = file.display())
        })?;
        let said = || fs::read_to_string(format!("{}.said", file.display())).unwrap_or_default();
        let deadline = Instant::now() + PATIENCE;
        while !said().contains(says) {
            if Instant::now() > deadline {
                return Err(format!("it never said `{says}`:\n{}", said()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(said())
    }
}

impl Drop for Shell<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn what_is_shown_is_compared_by_words() {
    let check =
        |page: &str, printed: &str, expected: bool| assert_eq!(is_shown(page, printed), expected, "{page} / {printed}");
    check("GET 200", "GET  200\n", true);
    check("GET 200", "GET 201", false);
    check("GET 200", "GET 200 OK", false);
    check(
        "up 43s, ends 2027-11-28 14:45:15, in 364d",
        "up 2s, ends 2027-11-29 15:00:01, in\n 363d",
        true,
    );
    check(
        "\"decision\":\"ledger-2c8e51b85a61535e-1\"}",
        "\"decision\":\"ledger-0c8e51b85a61535f-17\"}",
        true,
    );
    check(
        "\"decision\":\"ledger-2c8e51b85a61535e-1\"}",
        "\"decision\":\"orders-0c8e51b85a61535f-17\"}",
        false,
    );
    check("version 0.1.0 (7ad876101795)", "version 0.1.0 (0ad876101795)", true);
    check("a … d", "a b c d", true);
    check("a … d", "a b c", false);
    check("Linux 6.…-x says", "Linux 6.18.4-x says", true);
}

#[test]
fn an_example_stands_for_the_newest_of_its_kind() {
    let token = |digit: &str| format!("{}@10.0.0.1:7443#{}", digit.repeat(64), digit.repeat(64));
    let printed = format!(
        "hoplite join {}\nhoplite join {}\n{}\n{{\"decision\":\"ledger-2c8e51b85a61535e-1\"}} edge-2c8e51b85a61535e-9",
        token("a"),
        token("b"),
        "c".repeat(32)
    );
    let check =
        |example: &str, expected: Option<&str>| assert_eq!(newest(&printed, example).as_deref(), expected, "{example}");
    check("TOKEN@10.0.0.1:7443#FINGERPRINT", Some(&token("b")));
    check("5f0c…@ca:7443#9b1e…", Some(&token("b")));
    check("3f2a…", Some(&"c".repeat(32)));
    check("ledger-9f3c2a7be1d04455-1", Some("ledger-2c8e51b85a61535e-1"));
    check("orders-9f3c2a7be1d04455-1", None);
    check("http://127.0.0.1:7701/orders/42", None);
}
