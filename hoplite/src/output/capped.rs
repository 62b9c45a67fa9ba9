//! Findings for people: the first of them, and how many more there are, by whose they are. Programs get all by `--output json`.

use std::collections::BTreeMap;

use super::thousands;

/// More are shown with `--all`: whoever made them mends these first.
const FINDINGS_SHOWN_MAX: usize = 50;

/// Whose findings are counted apart; those of others are counted together.
const OWNERS_SHOWN_MAX: usize = 10;

/// What every command takes that may find thousands of things.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub(crate) struct All {
    /// Show every finding to people, however many there are
    #[arg(long)]
    all: bool,
}

/// Findings as they are told.
#[derive(Debug)]
pub(crate) struct Capped {
    text: String,
    room: usize,
    more: BTreeMap<String, u64>,
}

// === impl All ===

impl All {
    pub(crate) fn is_said(self) -> bool {
        self.all
    }

    pub(crate) fn capped(self) -> Capped {
        Capped {
            text: String::new(),
            room: if self.all { usize::MAX } else { FINDINGS_SHOWN_MAX },
            more: BTreeMap::new(),
        }
    }
}

// === impl Capped ===

impl Capped {
    /// One more of this owner, folder or service.
    pub(crate) fn add(&mut self, owner: &str, text: &str) {
        if self.room == 0 {
            *self.more.entry(owner.to_owned()).or_default() += 1;
        } else {
            self.room -= 1;
            self.text.push_str(text);
        }
    }

    /// All that is shown.
    pub(crate) fn end(mut self) -> String {
        let all: u64 = self.more.values().sum();
        if all == 0 {
            return self.text;
        }
        let mut owners: Vec<(&String, &u64)> = self.more.iter().collect();
        owners.sort_by(|(a, most), (b, more)| more.cmp(most).then(a.cmp(b)));
        let rest: u64 = owners.iter().skip(OWNERS_SHOWN_MAX).map(|(_, count)| **count).sum();
        let named = owners.iter().take(OWNERS_SHOWN_MAX);
        let mut parts: Vec<String> = named
            .map(|(owner, count)| format!("{} in {owner}", thousands(**count)))
            .collect();
        if rest > 0 {
            parts.push(format!("{} elsewhere", thousands(rest)));
        }
        let line = format!("and {} more: {}; --all shows them\n", thousands(all), parts.join(", "));
        self.text.push_str(&line);
        self.text
    }
}

/// The folder that a file is in, or the file itself: in a set with modules a folder is somebody's.
pub(crate) fn folder(file: &str) -> &str {
    file.split_once('/').map_or(file, |(folder, _)| folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(all: bool, findings: usize, owners: usize) -> String {
        let mut capped = All { all }.capped();
        for number in 0..findings {
            capped.add(&format!("team-{:02}", number % owners), &format!("{number}\n"));
        }
        capped.end()
    }

    #[test]
    fn the_first_are_shown_and_the_others_counted_by_whose_they_are() {
        assert_eq!(told(false, FINDINGS_SHOWN_MAX, 3), told(true, FINDINGS_SHOWN_MAX, 3));
        let text = told(false, 5_000, 2);
        assert_eq!(text.lines().count(), FINDINGS_SHOWN_MAX + 1);
        assert!(
            text.ends_with("\n49\nand 4 950 more: 2 475 in team-00, 2 475 in team-01; --all shows them\n"),
            "{text}"
        );
        assert!(
            told(false, 5_000, 50).ends_with("99 in team-09, 3 960 elsewhere; --all shows them\n"),
            "{}",
            told(false, 5_000, 50)
        );
        assert_eq!(told(true, 5_000, 2).lines().count(), 5_000);
        assert_eq!((folder("pay/a.cedar"), folder("a.cedar")), ("pay", "a.cedar"));
    }
}
