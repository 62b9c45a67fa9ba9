//! What a daemon does at SIGHUP: it reads its file again, takes over what it can while it serves, and says what it did.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::config::{self, ConfigError};

/// Every setting of a file by its full name, as `x509_ttl` or `outbound.ledger.connect_to`, with its text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings(BTreeMap<String, String>);

/// What came of reading the file again.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// Settings that are in force now.
    pub taken: Vec<String>,
    /// Settings that differ from what is in force, and come in force with the next start.
    pub left: Vec<String>,
}

// === impl Settings ===

impl Settings {
    /// Reads them. Whether they can be used is not asked.
    ///
    /// # Errors
    /// The file cannot be read, or is no TOML.
    pub fn read(file: &Path) -> Result<Self, ConfigError> {
        let table: toml::Table = config::load(file)?;
        let mut settings = Self::default();
        settings.add_table("", &table);
        Ok(settings)
    }

    /// Takes over, of what differs in `next`, what `take` says it has taken; the rest is left for the next start, and told
    /// again the next time.
    pub fn reload(&mut self, next: &Self, mut take: impl FnMut(&str) -> bool) -> Reloaded {
        let names: BTreeSet<&String> = self.0.keys().chain(next.0.keys()).collect();
        let differing: Vec<String> = names
            .into_iter()
            .filter(|name| self.0.get(*name) != next.0.get(*name))
            .cloned()
            .collect();
        let (taken, left): (Vec<_>, Vec<_>) = differing.into_iter().partition(|name| take(name));
        for name in &taken {
            match next.0.get(name) {
                Some(value) => self.0.insert(name.clone(), value.clone()),
                None => self.0.remove(name),
            };
        }
        Reloaded { taken, left }
    }

    fn add_table(&mut self, prefix: &str, table: &toml::Table) {
        for (key, value) in table {
            let name = if prefix.is_empty() {
                key.clone()
            } else {
                format!("{prefix}.{key}")
            };
            self.add(name, value);
        }
    }

    fn add(&mut self, name: String, value: &toml::Value) {
        match value {
            toml::Value::Table(table) => self.add_table(&name, table),
            toml::Value::Array(items) if items.iter().any(toml::Value::is_table) => {
                let mut seen = BTreeMap::<&str, usize>::new();
                for (index, item) in items.iter().enumerate() {
                    // A listener is known by its name, wherever it stands; the second of a name by its number, too.
                    let known = ["name", "service"].into_iter().find_map(|key| item.get(key)?.as_str());
                    let times = seen.entry(known.unwrap_or_default()).or_default();
                    *times += 1;
                    let which = match (known, *times) {
                        (Some(known), 1) => known.to_owned(),
                        (Some(known), times) => format!("{known}#{times}"),
                        (None, _) => index.to_string(),
                    };
                    self.add(format!("{name}.{which}"), item);
                }
            }
            value => {
                self.0.insert(name, value.to_string());
            }
        }
    }
}

// === impl Reloaded ===

impl Reloaded {
    /// Says it in the log.
    pub(crate) fn say(&self, file: &Path) {
        let (file, taken, left) = (file.display(), self.taken.join(", "), self.left.join(", "));
        match (self.taken.is_empty(), self.left.is_empty()) {
            (true, true) => tracing::info!(notice = true, %file, "SIGHUP: nothing differs from what is in force"),
            (false, true) => tracing::info!(notice = true, %file, taken, "SIGHUP: all that differed is in force now"),
            (_, false) => tracing::warn!(
                notice = true,
                %file,
                taken,
                left,
                "SIGHUP: what is left comes in force with the next start only: start this daemon again"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str) -> Settings {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.toml");
        std::fs::write(&file, text).unwrap();
        Settings::read(&file).unwrap()
    }

    #[test]
    fn what_differs_is_taken_or_told_until_it_is() {
        let mut running = settings(
            "name = \"orders\"\nworkers = 1\n[[outbound]]\nname = \"a\"\nconnect_to = \"h:1\"\n[[outbound]]\nname = \"b\"\nconnect_to = \"h:2\"\n",
        );
        let next = settings(
            "workers = 2\nname = \"orders\"\n[[outbound]]\nname = \"b\"\nconnect_to = \"h:3\"\n[[outbound]]\nname = \"c\"\nconnect_to = \"h:1\"\n",
        );
        let take = |name: &str| name == "outbound.b.connect_to";
        let expected = Reloaded {
            taken: vec!["outbound.b.connect_to".to_owned()],
            left: [
                "outbound.a.connect_to",
                "outbound.a.name",
                "outbound.c.connect_to",
                "outbound.c.name",
                "workers",
            ]
            .map(str::to_owned)
            .to_vec(),
        };
        assert_eq!(running.reload(&next, take), expected);
        let again = running.reload(&next, take);
        assert_eq!((again.taken.len(), again.left), (0, expected.left));
        assert_eq!(
            running.reload(&running.clone(), |_| panic!("nothing differs")),
            Reloaded::default()
        );
    }
}
