//! The tokens that are at hand: whose, for whom, and until when. Pure.
//!
//! A token serves until its end. From half of its life on, and once the trust bundle has changed, another one is asked for.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use hoplite_identity::EntryId;
use hoplite_identity::jwt::JwtAuthorities;
use ring::digest::{Context, SHA256};
use zeroize::Zeroizing;

use crate::supply::named::NamedEntry;

/// Tokens of all entries together: some 10 MB.
const TOKENS_MAX: usize = 4096;

/// Tokens of one entry. Who asks for more audiences than this has the oldest of its own forgotten, and nobody else's.
const TOKENS_PER_ENTRY_MAX: usize = 64;

/// For whom a token is: a digest of all names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Audience([u8; 32]);

/// One token. Its text is in no message and no `Debug`.
#[derive(Clone)]
pub(crate) struct Token {
    pub(crate) text: std::sync::Arc<Zeroizing<String>>,
    pub(crate) kid: String,
    pub(crate) expires_at: SystemTime,
}

/// All that are at hand.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    by_entry: HashMap<EntryId, Vec<Held>>,
    count: usize,
    /// Grows with every use.
    clock: u64,
}

/// What is at hand for one entry and audience.
#[derive(Debug, Clone)]
pub(crate) enum AtHand {
    /// A token that need not be replaced yet.
    Fresh(Token),
    /// One that serves if there is no other.
    Aged(Token),
    Nothing,
}

#[derive(Debug)]
struct Held {
    audience: Audience,
    token: Token,
    /// Of the entry that it was minted for.
    revision: u64,
    /// Of the trust bundle of then.
    sequence: u64,
    renew_at: SystemTime,
    used: u64,
}

// === impl Audience ===

impl Audience {
    /// Of these names, in whatever order.
    pub(crate) fn of(names: &[String]) -> Self {
        let mut sorted: Vec<&String> = names.iter().collect();
        sorted.sort();
        sorted.dedup();
        let mut context = Context::new(&SHA256);
        for name in sorted {
            context.update(&(name.len() as u64).to_be_bytes());
            context.update(name.as_bytes());
        }
        let mut digest = [0; 32];
        digest.copy_from_slice(context.finish().as_ref());
        Self(digest)
    }
}

// === impl Cache ===

impl Cache {
    /// What is at hand of this entry as it is registered now, and vouched for by these keys of the bundle with this number.
    pub(crate) fn look(
        &mut self,
        entry: &NamedEntry,
        audience: Audience,
        (keys, sequence): (&JwtAuthorities, u64),
        now: SystemTime,
    ) -> AtHand {
        self.clock += 1;
        let clock = self.clock;
        let Some(held) = self.by_entry.get_mut(&entry.id) else {
            return AtHand::Nothing;
        };
        let before = held.len();
        held.retain(|held| {
            held.revision == entry.revision && now < held.token.expires_at && keys.get(&held.token.kid).is_some()
        });
        self.count -= before - held.len();
        let found = held.iter_mut().find(|held| held.audience == audience);
        let at_hand = match found {
            Some(held) => {
                held.used = clock;
                // Of a clock that was set back it is not known how old anything is.
                let rests = held.renew_at.duration_since(now).unwrap_or_default();
                let life = held.token.expires_at.duration_since(now).unwrap_or_default();
                match held.sequence == sequence && !rests.is_zero() && rests <= life {
                    true => AtHand::Fresh(held.token.clone()),
                    false => AtHand::Aged(held.token.clone()),
                }
            }
            None => AtHand::Nothing,
        };
        if held.is_empty() {
            self.by_entry.remove(&entry.id);
        }
        at_hand
    }

    /// Keeps one, in the place of the one before.
    pub(crate) fn keep(
        &mut self,
        entry: &NamedEntry,
        audience: Audience,
        token: &Token,
        sequence: u64,
        now: SystemTime,
    ) {
        self.clock += 1;
        let life = token.expires_at.duration_since(now).unwrap_or(Duration::ZERO);
        let new = Held {
            audience,
            token: token.clone(),
            revision: entry.revision,
            sequence,
            renew_at: now + life / 2,
            used: self.clock,
        };
        let held = self.by_entry.entry(entry.id.clone()).or_default();
        if let Some(before) = held.iter_mut().find(|held| held.audience == audience) {
            *before = new;
            return;
        }
        held.push(new);
        self.count += 1;
        if held.len() > TOKENS_PER_ENTRY_MAX {
            self.count -= usize::from(forget_oldest(held));
        }
        if self.count > TOKENS_MAX {
            self.make_room(now);
        }
    }

    /// Forgets what nobody may be given any more.
    pub(crate) fn retain(&mut self, now: SystemTime, is_held: impl Fn(&EntryId, u64) -> bool) {
        for (id, held) in &mut self.by_entry {
            held.retain(|held| now < held.token.expires_at && is_held(id, held.revision));
        }
        self.by_entry.retain(|_, held| !held.is_empty());
        self.count = self.by_entry.values().map(Vec::len).sum();
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        *self = Self {
            clock: self.clock,
            ..Self::default()
        };
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// What has ended goes; if nothing has, then the oldest of the entry that has most.
    fn make_room(&mut self, now: SystemTime) {
        self.retain(now, |_, _| true);
        while self.count > TOKENS_MAX
            && let Some(held) = self.by_entry.values_mut().max_by_key(|held| held.len())
        {
            self.count -= usize::from(forget_oldest(held));
        }
    }
}

fn forget_oldest(held: &mut Vec<Held>) -> bool {
    let oldest = held.iter().enumerate().min_by_key(|(_, held)| held.used);
    match oldest.map(|(place, _)| place) {
        Some(place) => {
            held.swap_remove(place);
            true
        }
        None => false,
    }
}

// === impl Token ===

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token").field("kid", &self.kid).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supply::testing::{entry, with};
    use hoplite_identity::SpiffeId;
    use hoplite_identity::jwt::JwtKey;
    use std::time::UNIX_EPOCH;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
    }

    fn keys(kids: &[&str]) -> JwtAuthorities {
        let mut point = vec![4; 65];
        point[64] = 9;
        let key = JwtKey::p256(&point).unwrap();
        JwtAuthorities::new(kids.iter().map(|kid| ((*kid).to_owned(), key.clone()))).unwrap()
    }

    fn registered(path: &str) -> NamedEntry {
        entry(
            path,
            &SpiffeId::parse(&format!("spiffe://prod.example{path}")).unwrap(),
            &[],
        )
    }

    fn token(text: &str, kid: &str, end: u64) -> Token {
        Token {
            text: std::sync::Arc::new(Zeroizing::new(text.to_owned())),
            kid: kid.to_owned(),
            expires_at: at(end),
        }
    }

    fn names(names: &[&str]) -> Audience {
        Audience::of(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
    }

    fn shown(at_hand: AtHand) -> String {
        match at_hand {
            AtHand::Fresh(token) => format!("fresh {}", **token.text),
            AtHand::Aged(token) => format!("aged {}", **token.text),
            AtHand::Nothing => "nothing".to_owned(),
        }
    }

    #[test]
    fn a_token_serves_until_its_end_and_is_replaced_from_half_of_its_life_on() {
        let (mut cache, web, known) = (Cache::default(), registered("/web"), keys(&["k"]));
        let a = names(&["a", "b"]);
        cache.keep(&web, a, &token("one", "k", 100), 1, at(0));
        let mut check = |audience: Audience, keys: &JwtAuthorities, sequence: u64, now: u64, expected: &str| {
            assert_eq!(
                shown(cache.look(&web, audience, (keys, sequence), at(now))),
                expected,
                "{now}"
            );
        };
        check(a, &known, 1, 0, "fresh one");
        check(names(&["b", "a", "b"]), &known, 1, 49, "fresh one");
        check(names(&["a"]), &known, 1, 1, "nothing");
        check(names(&["ab"]), &known, 1, 1, "nothing");
        check(a, &known, 1, 50, "aged one");
        check(a, &known, 2, 1, "aged one");
        check(a, &known, 1, 99, "aged one");
        check(a, &known, 1, 100, "nothing");
        check(a, &known, 1, 0, "nothing");
        // Its key counts no more, or it is another entry.
        cache.keep(&web, a, &token("one", "k", 100), 1, at(0));
        assert_eq!(shown(cache.look(&web, a, (&keys(&["l"]), 1), at(1))), "nothing");
        cache.keep(&web, a, &token("one", "k", 100), 1, at(0));
        let mut changed = with(registered("/web"), |entry| entry.hint = "x".to_owned());
        changed.revision += 1;
        assert_eq!(shown(cache.look(&changed, a, (&known, 1), at(1))), "nothing");
        assert_eq!(cache.len(), 0);
        cache.keep(&web, a, &token("one", "k", 100), 1, at(0));
        cache.retain(at(1), |id, revision| *id == web.id && revision == web.revision);
        assert_eq!(cache.len(), 1);
        cache.retain(at(1), |_, _| false);
        assert_eq!(cache.len(), 0);
        assert!(!format!("{:?}", token("secret", "k", 1)).contains("secret"));
    }

    #[test]
    fn who_asks_for_many_audiences_pays_for_it_alone() {
        let (mut cache, known) = (Cache::default(), keys(&["k"]));
        let (greedy, modest) = (registered("/greedy"), registered("/modest"));
        cache.keep(&modest, names(&["a"]), &token("mine", "k", 100), 1, at(0));
        for n in 0..10 * TOKENS_PER_ENTRY_MAX {
            cache.keep(&greedy, names(&[&n.to_string()]), &token("x", "k", 100), 1, at(0));
        }
        assert_eq!(cache.len(), TOKENS_PER_ENTRY_MAX + 1);
        for n in 0..TOKENS_MAX {
            cache.keep(
                &registered(&format!("/w{n}")),
                names(&["a"]),
                &token("x", "k", 100),
                1,
                at(0),
            );
        }
        assert_eq!(cache.len(), TOKENS_MAX);
        assert_eq!(
            shown(cache.look(&modest, names(&["a"]), (&known, 1), at(1))),
            "fresh mine"
        );
        // Those that have ended go first.
        cache.keep(&greedy, names(&["new"]), &token("x", "k", 300), 1, at(200));
        assert_eq!(cache.len(), 1);
    }
}
