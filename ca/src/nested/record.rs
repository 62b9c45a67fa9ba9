//! What the store holds of a nested CA.

use hoplite_identity::{EntryId, KeyDigest};
use serde::{Deserialize, Serialize};

use crate::record::Record;

/// Authorities of one nested CA that have not ended. It needs two, and one more for each time that somebody turns them by hand.
pub(crate) const AUTHORITIES_MAX: usize = 16;

/// Keys for JWT-SVIDs of one nested CA: each is in every trust bundle.
pub(crate) const JWT_KEYS_MAX: usize = 8;

/// A nested CA.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NestedCa {
    /// In the order in which they were signed.
    pub(crate) authorities: Vec<Signed>,
    /// Its keys for JWT-SVIDs: uncompressed points of P-256, hexadecimal.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) jwt: Vec<String>,
}

/// An authority that was signed for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Signed {
    /// SHA-256 of its SubjectPublicKeyInfo, hexadecimal.
    pub(crate) key: String,
    /// Lower-case hex.
    pub(crate) serial: String,
    /// The entry that vouched for it.
    pub(crate) entry: String,
    /// Unix seconds.
    pub(crate) not_after: u64,
    /// It vouches for nobody any more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) revoked: bool,
}

impl Record for NestedCa {
    /// Their names are their names.
    const PREFIX: &'static str = "nested/";
    const COUNTED: bool = true;
}

// === impl NestedCa ===

impl NestedCa {
    /// Those that count at a moment, in Unix seconds.
    pub(crate) fn in_force(&self, now: u64) -> impl Iterator<Item = &Signed> {
        (self.authorities.iter()).filter(move |signed| !signed.revoked && signed.not_after > now)
    }

    /// The keys of those that count no more and have not ended.
    pub(crate) fn revoked_keys(&self) -> impl Iterator<Item = KeyDigest> {
        let revoked = self.authorities.iter().filter(|signed| signed.revoked);
        revoked.filter_map(|signed| signed.key.parse().ok())
    }

    /// What others see of it.
    pub(crate) fn seen(&self) -> (Vec<KeyDigest>, &[String]) {
        (self.revoked_keys().collect(), &self.jwt)
    }

    /// Whether something of it has had its time, or is vouched for by no entry any more.
    pub(crate) fn is_due(&self, now: u64, vouches: impl Fn(&EntryId) -> bool) -> bool {
        self.authorities.is_empty() || self.after(now, vouches) != *self
    }

    /// What is left of it. `vouches` says whether an entry is there still.
    pub(crate) fn after(&self, now: u64, vouches: impl Fn(&EntryId) -> bool) -> Self {
        let vouched = |signed: &Signed| EntryId::parse(&signed.entry).is_ok_and(|entry| vouches(&entry));
        let left = self.authorities.iter().filter(|signed| signed.not_after > now);
        let authorities: Vec<Signed> = left
            .map(|signed| Signed {
                revoked: signed.revoked || !vouched(signed),
                ..signed.clone()
            })
            .collect();
        let left = Self {
            authorities,
            jwt: Vec::new(),
        };
        // A CA that can sign nothing vouches for no token either.
        let jwt = match left.in_force(now).next() {
            Some(_) => self.jwt.clone(),
            None => Vec::new(),
        };
        Self { jwt, ..left }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed(entry: &str, not_after: u64, revoked: bool) -> Signed {
        Signed {
            key: "ab".repeat(32),
            serial: format!("{not_after}"),
            entry: entry.to_owned(),
            not_after,
            revoked,
        }
    }

    #[test]
    fn what_is_left_of_a_nested_ca() {
        let check = |authorities: Vec<Signed>, now: u64, there: &[&str], left: &[(u64, bool)], keys: bool| {
            let jwt = vec!["04aa".to_owned()];
            let nested = NestedCa { authorities, jwt };
            let vouches = |id: &EntryId| there.contains(&id.as_str());
            let after = nested.after(now, vouches);
            let found: Vec<_> = after
                .authorities
                .iter()
                .map(|signed| (signed.not_after, signed.revoked))
                .collect();
            assert_eq!((found.as_slice(), !after.jwt.is_empty()), (left, keys));
            assert_eq!(
                nested.is_due(now, vouches),
                after != nested || after.authorities.is_empty()
            );
            assert_eq!(after.after(now, vouches), after, "nothing is done twice");
            // Nothing comes back with an entry of another id.
            assert!(after.after(now, |_| true).in_force(now).count() <= after.in_force(now).count());
        };
        let two = || vec![signed("a", 10, false), signed("b", 20, false)];
        check(two(), 5, &["a", "b"], &[(10, false), (20, false)], true);
        check(two(), 10, &["a", "b"], &[(20, false)], true);
        check(two(), 5, &["b"], &[(10, true), (20, false)], true);
        check(two(), 5, &[], &[(10, true), (20, true)], false);
        check(two(), 15, &[], &[(20, true)], false);
        check(two(), 20, &["a", "b"], &[], false);
        check(vec![signed("a", 10, true)], 5, &["a"], &[(10, true)], false);
    }
}
