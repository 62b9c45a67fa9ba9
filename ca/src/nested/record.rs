//! What the store holds of a nested CA.

use hoplite_identity::{EntryId, KeyDigest};
use serde::{Deserialize, Serialize};

use crate::record::Record;

/// Authorities of one nested CA that have not ended. It needs two, and one more for each time that somebody turns them by hand.
pub(crate) const AUTHORITIES_MAX: usize = 16;

/// Authorities of one nested CA that have ended and are remembered, the newest.
const ENDED_MAX: usize = 32;

/// For so long, in seconds. A clock that was ahead and comes back must not make good again what was revoked.
const ENDED_KEPT: u64 = 30 * 86_400;

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
    /// It had ended when it was last looked at, and is in no list.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) ended: bool,
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
        let revoked = self.authorities.iter().filter(|signed| signed.revoked && !signed.ended);
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
        let left = (self.authorities.iter()).filter(|signed| signed.not_after.saturating_add(ENDED_KEPT) > now);
        let mut authorities: Vec<Signed> = left
            .map(|signed| Signed {
                revoked: signed.revoked || !vouched(signed),
                ended: signed.not_after <= now,
                ..signed.clone()
            })
            .collect();
        let ended = authorities.iter().filter(|signed| signed.ended).count();
        let mut surplus = ended.saturating_sub(ENDED_MAX);
        authorities.retain(|signed| {
            let goes = signed.ended && surplus > 0;
            surplus -= usize::from(goes);
            !goes
        });
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
            ended: false,
        }
    }

    #[test]
    fn what_is_left_of_a_nested_ca() {
        const FORGOTTEN: u64 = 20 + ENDED_KEPT;
        // What is left: the end of each, `-` if it is revoked, `.` if it has ended.
        let check = |authorities: Vec<Signed>, now: u64, there: &[&str], left: &str, keys: bool| {
            let jwt = vec!["04aa".to_owned()];
            let nested = NestedCa { authorities, jwt };
            let vouches = |id: &EntryId| there.contains(&id.as_str());
            let after = nested.after(now, vouches);
            let told = |signed: &Signed| {
                let mark = |is: bool, mark: &'static str| if is { mark } else { "" };
                format!(
                    "{}{}{}",
                    signed.not_after,
                    mark(signed.revoked, "-"),
                    mark(signed.ended, ".")
                )
            };
            let found: Vec<String> = after.authorities.iter().map(told).collect();
            assert_eq!((found.join(" ").as_str(), !after.jwt.is_empty()), (left, keys));
            assert_eq!(
                nested.is_due(now, vouches),
                after != nested || after.authorities.is_empty()
            );
            assert_eq!(after.after(now, vouches), after, "nothing is done twice");
            // Nothing comes back with an entry of another id.
            assert!(after.after(now, |_| true).in_force(now).count() <= after.in_force(now).count());
        };
        let two = || vec![signed("a", 10, false), signed("b", 20, false)];
        check(two(), 5, &["a", "b"], "10 20", true);
        check(two(), 10, &["a", "b"], "10. 20", true);
        check(two(), 5, &["b"], "10- 20", true);
        check(two(), 5, &[], "10- 20-", false);
        check(two(), 15, &[], "10-. 20-", false);
        check(two(), 20, &["a", "b"], "10. 20.", false);
        check(two(), FORGOTTEN - 10, &["a", "b"], "20.", false);
        check(two(), FORGOTTEN, &["a", "b"], "", false);
        check(vec![signed("a", 10, true)], 5, &["a"], "10-", false);
    }

    /// A clock that was ahead comes back: what was revoked is so again, and stays in the list until its end.
    #[test]
    fn what_was_revoked_stays_so_after_a_clock_that_was_ahead() {
        let nested = NestedCa {
            authorities: vec![signed("a", 100, true), signed("b", 100, false)],
            jwt: Vec::new(),
        };
        let all = |_: &EntryId| true;
        let ahead = nested.after(1_000, all);
        assert_eq!((ahead.revoked_keys().count(), ahead.in_force(1_000).count()), (0, 0));
        assert_eq!(ahead.after(50, all), nested);
        // Of many the newest are remembered, and none that counts gives way to them.
        let many = (1..=100).map(|end| signed("a", end, false)).collect();
        let many = NestedCa {
            authorities: many,
            ..nested
        };
        let after = many.after(90, all);
        let ends: Vec<u64> = after.authorities.iter().map(|signed| signed.not_after).collect();
        let kept = 90 - u64::try_from(ENDED_MAX).unwrap();
        assert_eq!(ends, (kept + 1..=100).collect::<Vec<_>>());
    }
}
