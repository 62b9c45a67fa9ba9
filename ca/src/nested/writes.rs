//! What is written of nested CAs: an authority that was signed, the keys that one publishes, and what has had its time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use hoplite_identity::{Entry, EntryId};

use crate::authority::taking::TrustError;
use crate::authority::trust::Trust;
use crate::nested::record::{AUTHORITIES_MAX, NestedCa, Signed};
use crate::record;
use crate::write::{Changes, ReadError, View, Write};

/// Why nothing is written of a nested CA.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NestedError {
    #[error(
        "no entry of `/hoplite/nested/{0}` is registered any more; an operator registers one with `hoplite entry create`"
    )]
    NotRegistered(String),
    #[error(
        "{AUTHORITIES_MAX} authorities of `/hoplite/nested/{0}` have not ended yet, and no more are signed; wait for the end of one, or have \
         its entry deleted and registered anew, which revokes all of them"
    )]
    TooMany(String),
    #[error("`/hoplite/nested/{0}` has no authority here that counts, so it publishes no key; have one signed first")]
    NoAuthority(String),
    #[error(transparent)]
    Trust(#[from] TrustError),
}

/// Notes an authority before it leaves, if its entry is there still.
pub(crate) struct NoteSigned {
    pub(crate) name: String,
    pub(crate) entry: EntryId,
    pub(crate) signed: Signed,
    pub(crate) now: SystemTime,
}

/// Puts the keys for JWT-SVIDs of a nested CA in the place of those that it published before. Answers whether others see a change.
pub(crate) struct PublishKeys {
    pub(crate) name: String,
    pub(crate) entry: EntryId,
    /// Points, hexadecimal; each once, in order.
    pub(crate) points: BTreeSet<String>,
    pub(crate) now: SystemTime,
}

/// Forgets what has ended, and revokes what no entry vouches for any more. Answers with what is revoked now, by nested CA.
pub(crate) struct Sweep {
    pub(crate) now: SystemTime,
}

fn registered(entry: Option<Entry>, name: &str) -> Result<Entry, NestedError> {
    entry
        .filter(|entry| entry.spiffe_id.nested_ca() == Some(name))
        .ok_or_else(|| NestedError::NotRegistered(name.to_owned()))
}

// === impl NoteSigned ===

impl Write for NoteSigned {
    type Reads = (Option<Entry>, Option<NestedCa>);
    type Answer = ();
    type Error = NestedError;

    fn read(&self, view: &mut View<'_>) -> Result<Self::Reads, ReadError> {
        Ok((view.one(&self.entry)?, view.one(&self.name)?))
    }

    fn decide(&self, (entry, nested): Self::Reads) -> Result<(Changes, ()), NestedError> {
        registered(entry, &self.name)?;
        let mut nested = nested.unwrap_or_default();
        let now = record::unix_seconds(self.now);
        if nested.in_force(now).count() >= AUTHORITIES_MAX {
            return Err(NestedError::TooMany(self.name.clone()));
        }
        nested.authorities.push(self.signed.clone());
        Ok((Changes::none().put(&self.name, &nested), ()))
    }
}

// === impl PublishKeys ===

impl Write for PublishKeys {
    type Reads = (Option<Trust>, Option<Entry>, Option<NestedCa>);
    type Answer = bool;
    type Error = NestedError;

    fn read(&self, view: &mut View<'_>) -> Result<Self::Reads, ReadError> {
        Ok((view.one("")?, view.one(&self.entry)?, view.one(&self.name)?))
    }

    fn decide(&self, (trust, entry, nested): Self::Reads) -> Result<(Changes, bool), NestedError> {
        let trust = trust.ok_or(TrustError::NotFounded)?;
        registered(entry, &self.name)?;
        let nested = nested.unwrap_or_default();
        if nested.in_force(record::unix_seconds(self.now)).next().is_none() {
            return Err(NestedError::NoAuthority(self.name.clone()));
        }
        if nested.jwt.iter().eq(&self.points) {
            return Ok((Changes::none(), false));
        }
        let jwt = self.points.iter().cloned().collect();
        let nested = NestedCa { jwt, ..nested };
        let changes = Changes::none().put(&self.name, &nested).put("", &trust.grown());
        Ok((changes, true))
    }
}

// === impl Sweep ===

impl Write for Sweep {
    /// All of them, and of the entries by which they are vouched for those that are there, by the name that each gives.
    type Reads = (Option<Trust>, BTreeMap<String, NestedCa>, BTreeMap<String, String>);
    type Answer = Vec<(String, Signed)>;
    type Error = NestedError;

    fn read(&self, view: &mut View<'_>) -> Result<Self::Reads, ReadError> {
        let trust = view.one("")?;
        let all: BTreeMap<String, NestedCa> = view.all()?;
        let mut there = BTreeMap::new();
        let signed = all.values().flat_map(|nested| &nested.authorities);
        for signed in signed.filter(|signed| !signed.revoked) {
            if let Some(entry) = view.one::<Entry>(&signed.entry)? {
                let name = entry.spiffe_id.nested_ca().unwrap_or_default().to_owned();
                there.insert(signed.entry.clone(), name);
            }
        }
        Ok((trust, all, there))
    }

    fn decide(&self, (trust, all, there): Self::Reads) -> Result<(Changes, Self::Answer), NestedError> {
        let trust = trust.ok_or(TrustError::NotFounded)?;
        let now = record::unix_seconds(self.now);
        let (mut changes, mut revoked, mut is_seen) = (Changes::none(), Vec::new(), false);
        for (name, nested) in &all {
            let after = nested.after(now, |entry| there.get(entry.as_str()) == Some(name));
            is_seen |= after.seen() != nested.seen();
            let was = |signed: &Signed| {
                let mut before = nested.authorities.iter().filter(|before| before.revoked);
                before.any(|before| before.serial == signed.serial)
            };
            let new = after.authorities.iter().filter(|signed| signed.revoked && !was(signed));
            revoked.extend(new.map(|signed| (name.clone(), signed.clone())));
            if after.authorities.is_empty() {
                changes = changes.delete::<NestedCa>(name);
            } else if after != *nested {
                changes = changes.put(name, &after);
            }
        }
        if is_seen {
            changes = changes.put("", &trust.grown());
        }
        Ok((changes, revoked))
    }
}
