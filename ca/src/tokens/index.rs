//! The tokens' part of the index: which there are, and which of them have had their time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use crate::record::{self, BadRecord, Mutation};
use crate::tokens::token::{ID_DIGITS, Token};

/// Expired tokens that one new token clears away: more than ever come in its time, few enough for one commit.
const CLEARED_MAX: usize = 64;

/// All tokens by name, and their names by their ends, at one revision. A new token would else have to read every other one.
#[derive(Debug, Default)]
pub(crate) struct TokenIndex {
    tokens: BTreeMap<String, Token>,
    by_end: BTreeSet<(u64, String)>,
}

// === impl TokenIndex ===

impl TokenIndex {
    /// One write of the store.
    pub(crate) fn put(&mut self, mutation: Mutation<'_>) -> Result<(), BadRecord> {
        let Some((name, token)) = mutation.of::<Token>()? else {
            return Ok(());
        };
        if let Some((name, token)) = self.tokens.remove_entry(name) {
            self.by_end.remove(&(token.expires_at, name));
        }
        if let Some(token) = token {
            self.by_end.insert((token.expires_at, name.to_owned()));
            self.tokens.insert(name.to_owned(), token);
        }
        Ok(())
    }

    /// All invitations by name, those that end first first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Token)> {
        self.by_end
            .iter()
            .filter_map(|(_, name)| Some((name.as_str(), self.tokens.get(name)?)))
            .filter(|(_, token)| token.is_invitation())
    }

    /// The name of the invitation with this id, and the token.
    pub(crate) fn of_id(&self, id: &str) -> Option<(&str, &Token)> {
        let (name, token) = self.tokens.range(id.to_owned()..).next()?;
        (id.len() == ID_DIGITS && name.starts_with(id) && token.is_invitation()).then_some((name, token))
    }

    /// How many may still be used.
    pub(crate) fn open(&self, now: SystemTime) -> u64 {
        self.iter().filter(|(_, token)| token.is_open(now)).count() as u64
    }

    /// Some that can be cleared away, the oldest first. An expired token stays one, so this holds at any later commit.
    pub(crate) fn expired(&self, now: SystemTime) -> Vec<String> {
        let now = record::unix_seconds(now);
        let expired = self.by_end.iter().take_while(|(end, _)| *end <= now);
        expired.take(CLEARED_MAX).map(|(_, name)| name.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Record;
    use hoplite_identity::SpiffeId;
    use std::time::{Duration, UNIX_EPOCH};

    fn put(index: &mut TokenIndex, name: &str, end: Option<u64>) {
        let admits = SpiffeId::parse("spiffe://prod.example/hoplite/agent/n1").unwrap();
        let key = record::key::<Token>(name);
        let token = end.map(|end| record::encode(&key, &Token::new(admits, end)).unwrap());
        let mutation = Mutation {
            key: &key,
            value: token.as_deref(),
            revision: 1,
        };
        assert!(key.starts_with(Token::PREFIX));
        index.put(mutation).unwrap();
    }

    #[test]
    fn those_that_have_had_their_time_the_oldest_first() {
        let mut index = TokenIndex::default();
        for (name, end) in [("c", 30), ("a", 20), ("b", 10), ("d", 40)] {
            put(&mut index, name, Some(end));
        }
        let check = |index: &TokenIndex, now: u64, expected: &[&str]| {
            assert_eq!(index.expired(UNIX_EPOCH + Duration::from_secs(now)), expected, "{now}");
        };
        check(&index, 9, &[]);
        check(&index, 10, &["b"]);
        check(&index, 30, &["b", "a", "c"]);
        put(&mut index, "a", None);
        put(&mut index, "b", Some(50)); // written again, as when it is used
        check(&index, 49, &["c", "d"]);
        let names: Vec<&str> = index.iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["c", "d", "b"], "by their ends");
        let at = |now: u64| UNIX_EPOCH + Duration::from_secs(now);
        assert_eq!([29, 30, 49, 50].map(|now| index.open(at(now))), [3, 2, 1, 0]);
        for n in 0..2 * CLEARED_MAX {
            put(&mut index, &format!("n{n}"), Some(1));
        }
        assert_eq!(index.expired(UNIX_EPOCH + Duration::from_secs(2)).len(), CLEARED_MAX);
    }

    #[test]
    fn an_id_names_one_token_wholly() {
        let mut index = TokenIndex::default();
        let one = "00112233445566778899aabbccddeeff";
        for name in [&format!("{one}01"), &format!("{}00", "0".repeat(32)), "ff"] {
            put(&mut index, name, Some(10));
        }
        let found = |id: &str| index.of_id(id).map(|(name, _)| name.len());
        assert_eq!(found(one), Some(34));
        for id in [
            "",
            "0011",
            &one.replace("ee", "ef"),
            &format!("{one}01"),
            "ff",
            &"f".repeat(32),
        ] {
            assert_eq!(found(id), None, "{id}");
        }
    }
}
