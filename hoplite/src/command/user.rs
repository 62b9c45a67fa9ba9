//! A user of this machine, by name or number.

use std::fmt;
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

// === impl User ===

impl User {
    /// The one in a line of `/etc/passwd`.
    fn of_line(line: &str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let mut number = || fields.nth(1)?.parse().ok();
        let uid = number()?;
        let gid = fields.next()?.parse().ok()?;
        Some(Self {
            uid,
            gid,
            name: Some(name.to_owned()),
        })
    }

    fn find(text: &str, wanted: &str) -> Option<Self> {
        let mut users = text.lines().filter_map(Self::of_line);
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
