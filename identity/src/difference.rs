//! In what an entry differs from one that is asked for, field by field, as people read it and as a command would change it.

use std::fmt;

use crate::{Entry, Parent};

/// One field that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Its name on the command line and in files.
    pub field: &'static str,
    /// What is registered.
    pub from: String,
    /// What is asked for.
    pub to: String,
    /// What makes `hoplite entry update ID` change it.
    pub flags: String,
}

impl Entry {
    /// In what this entry, which is registered, differs from one that is asked for. Empty when registering that would
    /// change nothing; when it was registered does not count.
    pub fn differences(&self, asked: &Self) -> Vec<Difference> {
        let selectors = |entry: &Self| -> Vec<String> { entry.selectors.iter().map(ToString::to_string).collect() };
        let mut found = Vec::new();
        let mut compare = |field: &'static str, (from, to): (String, String), flags: String| {
            if from != to {
                found.push(Difference { field, from, to, flags });
            }
        };
        let ids = (self.spiffe_id.to_string(), asked.spiffe_id.to_string());
        compare(
            "spiffe_id",
            ids,
            format!("--spiffe-id {}", quoted(asked.spiffe_id.as_str())),
        );
        let parents = (self.parent.to_string(), asked.parent.to_string());
        let flags = match &asked.parent {
            Parent::Agent(agent) => format!("--parent {agent}"),
            Parent::Group(group) => {
                let texts: Vec<String> = group.iter().map(ToString::to_string).collect();
                repeated("--node-selector", &texts)
            }
        };
        compare("parent", parents, flags);
        let (from, to) = (selectors(self), selectors(asked));
        let flags = repeated("--selector", &to);
        compare("selectors", (listed(&from), listed(&to)), flags);
        let ttl = |seconds: u32| match seconds {
            0 => "default".to_owned(),
            seconds => format!("{seconds}s"),
        };
        let (from, to) = (ttl(self.x509_ttl), ttl(asked.x509_ttl));
        compare("ttl", (from, to.clone()), format!("--ttl {to}"));
        let (from, to) = (ttl(self.jwt_ttl), ttl(asked.jwt_ttl));
        compare("jwt_ttl", (from, to.clone()), format!("--jwt-ttl {to}"));
        let flags = match asked.dns_names.is_empty() {
            true => "--no-dns-names".to_owned(),
            false => repeated("--dns-name", &asked.dns_names),
        };
        compare("dns_names", (listed(&self.dns_names), listed(&asked.dns_names)), flags);
        let domains = |entry: &Self| -> Vec<String> { entry.federates_with.iter().map(ToString::to_string).collect() };
        let (from, to) = (domains(self), domains(asked));
        let flags = match to.is_empty() {
            true => "--no-federation".to_owned(),
            false => repeated("--federates-with", &to),
        };
        compare("federates_with", (listed(&from), listed(&to)), flags);
        let hints = (worded(&self.hint), worded(&asked.hint));
        compare("hint", hints, format!("--hint {}", quoted(&asked.hint)));
        let defaults = (self.is_default.to_string(), asked.is_default.to_string());
        compare("default", defaults, format!("--default {}", asked.is_default));
        let owners = (worded(&self.owner), worded(&asked.owner));
        compare("owner", owners, format!("--owner {}", quoted(&asked.owner)));
        found
    }
}

fn repeated(flag: &str, values: &[String]) -> String {
    let each: Vec<String> = values.iter().map(|value| format!("{flag} {}", quoted(value))).collect();
    each.join(" ")
}

fn listed(values: &[String]) -> String {
    match values.is_empty() {
        true => "none".to_owned(),
        false => values.join(" "),
    }
}

fn worded(text: &str) -> String {
    match text {
        "" => "none".to_owned(),
        text => format!("`{text}`"),
    }
}

/// As a shell takes it for one word.
fn quoted(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._/:-".contains(&byte);
    match !text.is_empty() && text.bytes().all(is_plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

// === impl Difference ===

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} → {}", self.field, self.from, self.to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NodeGroup, SpiffeId};
    use std::collections::BTreeSet;

    #[test]
    fn each_field_is_told_with_what_changes_it() {
        let id = |path: &str| SpiffeId::parse(&format!("spiffe://prod.example{path}")).unwrap();
        let entry = Entry {
            spiffe_id: id("/a").into(),
            parent: Parent::Agent(id("/hoplite/agent/n1")),
            selectors: ["unix:uid:1".parse().unwrap()].into(),
            x509_ttl: 0,
            hint: String::new(),
            dns_names: vec!["a".into()],
            created_at: 7,
            owner: String::new(),
            jwt_ttl: 0,
            is_default: false,
            federates_with: BTreeSet::new(),
        };
        let check = |change: &dyn Fn(&mut Entry), text: &str, flags: &str| {
            let mut asked = entry.clone();
            change(&mut asked);
            let found = entry.differences(&asked);
            let told: Vec<_> = found.iter().map(ToString::to_string).collect();
            assert_eq!(told, text.split_terminator('\n').collect::<Vec<_>>());
            assert_eq!(found.first().map_or("", |one| one.flags.as_str()), flags);
        };
        check(&|_| (), "", "");
        check(&|e| e.created_at = 9, "", "");
        check(
            &|e| e.spiffe_id = id("/b").into(),
            "spiffe_id: spiffe://prod.example/a → spiffe://prod.example/b",
            "--spiffe-id spiffe://prod.example/b",
        );
        check(
            &|e| e.parent = Parent::Agent(id("/hoplite/agent/n2")),
            "parent: spiffe://prod.example/hoplite/agent/n1 → spiffe://prod.example/hoplite/agent/n2",
            "--parent spiffe://prod.example/hoplite/agent/n2",
        );
        check(
            &|e| e.selectors.extend(["unix:path:/a b".parse().unwrap()]),
            "selectors: unix:uid:1 → unix:path:/a b unix:uid:1",
            "--selector 'unix:path:/a b' --selector unix:uid:1",
        );
        check(&|e| e.x509_ttl = 60, "ttl: default → 60s", "--ttl 60s");
        check(&|e| e.jwt_ttl = 60, "jwt_ttl: default → 60s", "--jwt-ttl 60s");
        let partner = || crate::TrustDomain::parse("partner.example").unwrap();
        check(
            &|e| e.federates_with = [partner()].into(),
            "federates_with: none → partner.example",
            "--federates-with partner.example",
        );
        check(
            &|e| e.dns_names.push("b".into()),
            "dns_names: a → a b",
            "--dns-name a --dns-name b",
        );
        check(&|e| e.dns_names.clear(), "dns_names: a → none", "--no-dns-names");
        check(&|e| e.hint = "it's".into(), "hint: none → `it's`", r"--hint 'it'\''s'");
        check(&|e| e.owner = "infra".into(), "owner: none → `infra`", "--owner infra");
        check(&|e| e.is_default = true, "default: false → true", "--default true");
        let group = ["token:label:web".parse().unwrap(), "node:name:n1".parse().unwrap()];
        check(
            &|e| e.parent = Parent::Group(NodeGroup::new(group.clone().into()).unwrap()),
            "parent: spiffe://prod.example/hoplite/agent/n1 → node:name:n1 token:label:web",
            "--node-selector node:name:n1 --node-selector token:label:web",
        );
    }
}
