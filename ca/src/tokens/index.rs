//! The tokens' part of the index: which of them have had their time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use crate::record::{self, BadRecord, Mutation};
use crate::tokens::token::Token;

/// Expired tokens that one new token clears away: more than ever come in its time, few enough for one commit.
const CLEARED_MAX: usize = 64;

/// The names of all tokens by their ends, at one revision. A new token would else have to read every other one.
#[derive(Debug, Default)]
pub(crate) struct TokenIndex {
    ends: BTreeMap<String, u64>,
    by_end: BTreeSet<(u64, String)>,
}

// === impl TokenIndex ===

impl TokenIndex {
    /// One write of the store.
    pub(crate) fn put(&mut self, mutation: Mutation<'_>) -> Result<(), BadRecord> {
        let Some((name, token)) = mutation.of::<Token>()? else {
            return Ok(());
        };
        if let Some((name, end)) = self.ends.remove_entry(name) {
            self.by_end.remove(&(end, name));
        }
        if let Some(token) = token {
            self.ends.insert(name.to_owned(), token.expires_at);
            self.by_end.insert((token.expires_at, name.to_owned()));
        }
        Ok(())
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
        for n in 0..2 * CLEARED_MAX {
            put(&mut index, &format!("n{n}"), Some(1));
        }
        assert_eq!(index.expired(UNIX_EPOCH + Duration::from_secs(2)).len(), CLEARED_MAX);
    }
}
