//! Users and groups of this machine, by name or number.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, bail};
use hoplite_host::files;

/// Where the system keeps them.
const FILE: &str = "/etc/passwd";

/// A user, and the group that a process of theirs has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    name: Option<String>,
}

/// A line of `/etc/passwd` or `/etc/group`.
struct Named<'a> {
    name: &'a str,
    id: u32,
    /// The fourth column where it is a number: a user's own group.
    group: Option<u32>,
}

/// The id of a name in a table of the system, `/etc/passwd` or `/etc/group`, and the group that a user of that name has. A
/// number is its own id, of no known group.
///
/// # Errors
/// The table cannot be read, or has no such name.
pub(crate) fn id_of(name: &str, table: &Path) -> anyhow::Result<(u32, Option<u32>)> {
    if let Ok(id) = name.parse() {
        return Ok((id, None));
    }
    let text = files::read_text(table)?;
    let found = named(&text).find(|line| line.name == name);
    found
        .map(|line| (line.id, line.group))
        .with_context(|| format!("`{}` names no `{name}`; give its number", table.display()))
}

/// The lines that name somebody; others are passed over, as the system does.
fn named(text: &str) -> impl Iterator<Item = Named<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let id = fields.nth(1)?.parse().ok()?;
        let group = fields.next().and_then(|group| group.parse().ok());
        Some(Named { name, id, group })
    })
}

// === impl User ===

impl User {
    fn find(text: &str, wanted: &str) -> Option<Self> {
        let user = |line: Named<'_>| {
            Some(Self {
                uid: line.id,
                gid: line.group?,
                name: Some(line.name.to_owned()),
            })
        };
        let mut users = named(text).filter_map(user);
        match wanted.parse::<u32>() {
            // One without a name is a user like any other, alone in a group of that number.
            Ok(uid) => users.find(|user| user.uid == uid).or(Some(Self {
                uid,
                gid: uid,
                name: None,
            })),
            Err(_) => users.find(|user| user.name.as_deref() == Some(wanted)),
        }
    }
}

impl FromStr for User {
    type Err = anyhow::Error;

    fn from_str(wanted: &str) -> anyhow::Result<Self> {
        if wanted.is_empty() {
            bail!("a user has a name or a number");
        }
        let text = match wanted.parse::<u32>() {
            // Without the file numbers are numbers still.
            Ok(_) => files::read_text(FILE.as_ref()).unwrap_or_default(),
            Err(_) => files::read_text(FILE.as_ref())?,
        };
        Self::find(&text, wanted).with_context(|| {
            format!("there is no user `{wanted}` on this machine; `useradd --system {wanted}` makes one")
        })
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{name} ({})", self.uid),
            None => write!(f, "{}", self.uid),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/bash\n# nothing\n\nledger:x:991:990::/:/usr/sbin/nologin\nbad:x:y:1::/:\n";

    #[test]
    fn by_name_or_number() {
        let check = |wanted: &str, expected: Option<(u32, u32, &str)>| {
            let found = User::find(PASSWD, wanted);
            let found = found.as_ref().map(|user| (user.uid, user.gid, user.to_string()));
            assert_eq!(
                found,
                expected.map(|(uid, gid, shown)| (uid, gid, shown.to_owned())),
                "{wanted}"
            );
        };
        check("ledger", Some((991, 990, "ledger (991)")));
        check("991", Some((991, 990, "ledger (991)")));
        check("4242", Some((4242, 4242, "4242")));
        check("bad", None);
        check("billing", None);
    }
}
