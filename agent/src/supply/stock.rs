//! What is wanted, what is there, what is due: the pure part of the supplier.
//!
//! It keeps a calendar, so that a change, a renewal or an expiry costs the same however many entries there are.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hoplite_host::backoff::Backoff;
use hoplite_identity::{BundleSet, EntryId, PeerVerifier, RegisteredEntry, TrustBundle, X509Svid};

use crate::kept::record::SvidRecord;
use crate::node::link::RETRY;
use crate::renewal;
use crate::supply::changes::Changed;
use crate::supply::held::HeldSvid;
use crate::supply::shelf::{Restock, Supplied};

/// SVIDs asked for in one call: enough to make the round trip cheap, few enough to be answered at once.
const BATCH: usize = 200;

/// The longest sleep: clocks are set and machines suspended, and both must be noticed.
pub(crate) const SLEEP_MAX: Duration = Duration::from_secs(10);

/// An SVID under an authority that was tainted meanwhile is replaced after this.
const TAINT_REST: Duration = Duration::from_secs(1);

/// A thing to do is due from this on: long ago.
const AT_ONCE: SystemTime = UNIX_EPOCH;

/// All entries of this node and their SVIDs.
#[derive(Debug)]
pub(crate) struct Stock {
    wanted: HashMap<EntryId, Wanted>,
    /// When each entry is to be looked at next, once for each.
    agenda: BTreeSet<(SystemTime, EntryId)>,
    /// The ends of the SVIDs that are on the shelves.
    ends: BTreeSet<(SystemTime, EntryId)>,
    bundle: Option<Arc<TrustBundle>>,
    /// Of the authorities that are not tainted; none while none is.
    sound: Option<Arc<PeerVerifier>>,
    /// Those whose SVID only a tainted authority vouches for.
    tainted: BTreeSet<EntryId>,
    /// From the disk: those whose entry was not named yet.
    restored: HashMap<EntryId, SvidRecord>,
    dismissed: Option<Arc<str>>,
    /// Those that somebody waits for.
    asked: BTreeSet<EntryId>,
    /// What the shelves do not have yet.
    news: BTreeSet<EntryId>,
    is_bundle_news: bool,
    /// When it was last looked at.
    looked: SystemTime,
    /// Whether the clock was set back so far that something is placed by what holds now only.
    is_set_back: bool,
}

/// An entry, and how far its SVID is.
#[derive(Debug)]
struct Wanted {
    entry: Arc<RegisteredEntry>,
    minted: Option<Minted>,
    failed: Option<Failed>,
    /// Its place in the agenda.
    due: SystemTime,
}

/// An SVID and the entry it was minted for.
#[derive(Debug)]
struct Minted {
    entry: Arc<RegisteredEntry>,
    svid: Arc<HeldSvid>,
    renew_at: SystemTime,
    /// Its renewal is late, as everybody's after an outage.
    late: bool,
}

/// Failures in a row for one entry.
#[derive(Debug)]
struct Failed {
    backoff: Backoff,
    retry_at: SystemTime,
}

// === impl Stock ===

impl Default for Stock {
    fn default() -> Self {
        Self {
            wanted: HashMap::new(),
            agenda: BTreeSet::new(),
            ends: BTreeSet::new(),
            bundle: None,
            sound: None,
            tainted: BTreeSet::new(),
            restored: HashMap::new(),
            dismissed: None,
            asked: BTreeSet::new(),
            news: BTreeSet::new(),
            is_bundle_news: false,
            looked: UNIX_EPOCH,
            is_set_back: false,
        }
    }
}

impl Stock {
    /// What is registered from now on. What is no longer is forgotten, its key with it.
    pub(crate) fn want(&mut self, changed: Changed) {
        for (id, entry) in changed {
            match entry {
                Some(entry) => self.enter(entry),
                None => self.strike(&id),
            }
            self.news.insert(id);
        }
    }

    fn enter(&mut self, entry: Arc<RegisteredEntry>) {
        let id = entry.id.clone();
        let Some(wanted) = self.wanted.get_mut(&id) else {
            self.agenda.insert((AT_ONCE, id.clone()));
            let wanted = Wanted {
                entry,
                minted: None,
                failed: None,
                due: AT_ONCE,
            };
            self.wanted.insert(id, wanted);
            return;
        };
        if wanted.entry != entry {
            wanted.failed = None;
        }
        let is_other = |minted: &mut Minted| minted.entry.spiffe_id != entry.spiffe_id;
        let other = wanted.minted.take_if(is_other);
        wanted.entry = entry;
        if let Some(minted) = other {
            self.ends.remove(&(minted.end(), id.clone()));
        }
        self.plan(&id);
    }

    fn strike(&mut self, id: &EntryId) {
        self.asked.remove(id);
        self.tainted.remove(id);
        if let Some(wanted) = self.wanted.remove(id) {
            self.agenda.remove(&(wanted.due, id.clone()));
            if let Some(minted) = wanted.minted {
                self.ends.remove(&(minted.end(), id.clone()));
            }
        }
    }

    /// The bundle of now. What it no longer vouches for is not handed out any more; what is vouched for by tainted
    /// authorities only, which `sound` leaves out, is replaced at once and handed out until then.
    pub(crate) fn trust(
        &mut self,
        bundle: &Arc<TrustBundle>,
        verifier: &Arc<PeerVerifier>,
        sound: Option<&Arc<PeerVerifier>>,
        now: SystemTime,
    ) {
        if self.bundle.as_ref() == Some(bundle) {
            return;
        }
        // That one more is trusted changes nothing for what is there.
        let has_all = self.bundle.as_ref().is_some_and(|before| bundle.has_all_of(before));
        let is_foreign = |minted: &mut Minted| {
            let is_settled = has_all && minted.svid.is_opened();
            !is_settled && !minted.svid.is_vouched_for(verifier, now)
        };
        self.sound = sound.cloned();
        self.tainted.clear();
        let mut moved = Vec::new();
        for (id, wanted) in &mut self.wanted {
            if let Some(minted) = wanted.minted.take_if(is_foreign) {
                self.ends.remove(&(minted.end(), id.clone()));
                moved.push(id.clone());
            }
            let (Some(minted), Some(sound)) = (&mut wanted.minted, sound) else {
                continue;
            };
            if !minted.svid.is_sound(sound, now) {
                minted.renew_at = AT_ONCE;
                self.tainted.insert(id.clone());
                moved.push(id.clone());
            }
        }
        for id in moved {
            self.plan(&id);
            self.news.insert(id);
        }
        self.bundle = Some(Arc::clone(bundle));
        self.is_bundle_news = true;
    }

    /// The next batch of entries to have minted: first what somebody waits for, then what is due for the longest.
    pub(crate) fn due(&mut self, asked: BTreeSet<EntryId>, now: SystemTime) -> Vec<Arc<RegisteredEntry>> {
        self.notice(now);
        for id in asked {
            // One from the disk may have turned out to be none when it was asked for.
            self.plan(&id);
            self.asked.insert(id);
        }
        let is_due = |wanted: &&Wanted| wanted.due <= now;
        let asked_for = self.asked.iter().filter_map(|id| self.wanted.get(id)).filter(is_due);
        let others = self.agenda.iter().take_while(|(due, _)| *due <= now);
        let others = others
            .filter(|(_, id)| !self.asked.contains(id))
            .filter_map(|(_, id)| self.wanted.get(id));
        let due = asked_for.chain(others).take(BATCH);
        due.map(|wanted| Arc::clone(&wanted.entry)).collect()
    }

    /// Takes in an SVID, and says when it is to be renewed.
    pub(crate) fn minted(
        &mut self,
        entry: &Arc<RegisteredEntry>,
        svid: &Arc<X509Svid>,
        now: SystemTime,
        jitter: f64,
    ) -> SystemTime {
        self.notice(now);
        let not_after = svid.leaf().not_after();
        let before = self.wanted.get(&entry.id).and_then(|wanted| wanted.minted.as_ref());
        // What is replaced because of a taint is asked for by everybody at the same moment.
        let in_time = before.is_some_and(|before| !before.late) && !self.tainted.contains(&entry.id);
        let mut renew_at = match in_time {
            true => renewal::in_time(svid.renew_at(jitter), not_after, now),
            false => renewal::after_a_crowd(not_after, now, jitter),
        };
        let held = HeldSvid::new(Arc::clone(svid));
        let is_tainted = self.sound.as_ref().is_some_and(|sound| !held.is_sound(sound, now));
        if is_tainted {
            // The CA has not heard of the taint itself: it is asked again, not at once.
            renew_at = renew_at.min(now + TAINT_REST);
        }
        let Some(wanted) = self.wanted.get_mut(&entry.id) else {
            return renew_at; // it was deleted meanwhile
        };
        let minted = Minted {
            entry: Arc::clone(entry),
            svid: Arc::new(held),
            renew_at,
            late: false,
        };
        match is_tainted {
            true => self.tainted.insert(entry.id.clone()),
            false => self.tainted.remove(&entry.id),
        };
        let end = minted.end();
        wanted.failed = None;
        self.asked.remove(&entry.id);
        if let Some(old) = wanted.minted.replace(minted) {
            self.ends.remove(&(old.end(), entry.id.clone()));
        }
        self.ends.insert((end, entry.id.clone()));
        self.news.insert(entry.id.clone());
        self.plan(&entry.id);
        renew_at
    }

    /// What an earlier agent kept; `restore` takes in what of it is wanted.
    pub(crate) fn remember(&mut self, restored: HashMap<EntryId, SvidRecord>) {
        self.restored = restored;
    }

    /// Takes in what an earlier agent kept of what is wanted, and forgets the rest of it. Whether there was any.
    pub(crate) fn restore(&mut self, verifier: &Arc<PeerVerifier>) -> bool {
        let had_some = !self.restored.is_empty();
        for (id, record) in std::mem::take(&mut self.restored) {
            let Some(wanted) = self.wanted.get_mut(&id).filter(|wanted| wanted.minted.is_none()) else {
                continue;
            };
            let minted = Minted {
                entry: Arc::clone(&wanted.entry),
                renew_at: UNIX_EPOCH + Duration::from_secs(record.renew_at),
                svid: Arc::new(HeldSvid::kept(record, verifier)),
                late: false,
            };
            self.ends.insert((minted.end(), id.clone()));
            wanted.minted = Some(minted);
            self.plan(&id);
            self.news.insert(id);
        }
        had_some
    }

    /// The CA is back: what should have been renewed meanwhile, and still counts, is renewed within a while.
    pub(crate) fn catch_up(&mut self, now: SystemTime, mut jitter: impl FnMut() -> f64) {
        self.notice(now);
        let overdue: Vec<EntryId> = (self.agenda.iter())
            .take_while(|(due, _)| *due <= now)
            .map(|(_, id)| id.clone())
            .collect();
        for id in overdue {
            let minted = self.wanted.get_mut(&id).and_then(|wanted| wanted.minted.as_mut());
            if let Some(minted) = minted.filter(|minted| minted.renew_at <= now && now < minted.end()) {
                minted.renew_at = renewal::catch_up(minted.end(), now, jitter());
                minted.late = true;
                self.plan(&id);
            }
        }
    }

    /// The CA's word when it has dismissed this node; nobody is given anything then.
    pub(crate) fn dismiss(&mut self, dismissed: Option<&Arc<str>>) {
        if self.dismissed.as_ref() != dismissed {
            self.dismissed = dismissed.cloned();
            self.is_bundle_news = true;
        }
    }

    pub(crate) fn failed(&mut self, entry: &RegisteredEntry, now: SystemTime, jitter: f64) {
        self.notice(now);
        let Some(wanted) = self.wanted.get_mut(&entry.id) else {
            return;
        };
        let failed = wanted.failed.get_or_insert(Failed {
            backoff: RETRY,
            retry_at: now,
        });
        failed.retry_at = now + failed.backoff.failed(jitter);
        self.asked.remove(&entry.id);
        self.plan(&entry.id);
    }

    /// How long the SVID at hand will still do.
    pub(crate) fn expires(&self, entry: &RegisteredEntry, now: SystemTime) -> Option<Duration> {
        let minted = self.wanted.get(&entry.id)?.minted.as_ref()?;
        minted.end().duration_since(now).ok()
    }

    /// How long there will be nothing to do: nothing due, nothing that expires.
    pub(crate) fn idle(&self, now: SystemTime) -> Duration {
        let next = [self.agenda.first(), self.ends.first()].into_iter().flatten();
        let next = next.map(|(at, _)| at.duration_since(now).unwrap_or_default());
        next.min().unwrap_or(SLEEP_MAX).min(SLEEP_MAX)
    }

    /// What is new for the shelves: nothing that has expired lies there.
    pub(crate) fn restock(&mut self, now: SystemTime) -> Restock {
        self.notice(now);
        while let Some((end, _)) = self.ends.first()
            && *end <= now
            && let Some((_, id)) = self.ends.pop_first()
        {
            self.news.insert(id);
        }
        let news = std::mem::take(&mut self.news);
        let entries = news.into_iter().map(|id| {
            let supplied = self.wanted.get(&id).map(|wanted| wanted.supplied(now));
            (id, supplied)
        });
        let entries = entries.collect();
        let bundle = self.bundle.as_ref().filter(|_| self.dismissed.is_none());
        let bundle = std::mem::take(&mut self.is_bundle_news).then_some(bundle);
        Restock {
            entries,
            bundles: bundle.map(|bundle| bundle.cloned().into_iter().collect::<BundleSet>()),
            dismissed: self.dismissed.clone(),
            tainted: self.tainted.len(),
        }
    }

    /// Of a clock that was set back nothing is where it was: what had expired is valid again, what is valid may not be yet,
    /// and what rests would rest for long.
    fn notice(&mut self, now: SystemTime) {
        if now < self.looked || self.is_set_back && now != self.looked {
            self.is_set_back = false;
            self.agenda.clear();
            self.ends.clear();
            for (id, wanted) in &mut self.wanted {
                let is_too_early = wanted.is_too_early(now);
                self.is_set_back |= is_too_early;
                wanted.due = match is_too_early {
                    true => AT_ONCE,
                    false => wanted.due(),
                };
                self.agenda.insert((wanted.due, id.clone()));
                self.ends
                    .extend(wanted.minted.as_ref().map(|minted| (minted.end(), id.clone())));
                self.news.insert(id.clone());
            }
        }
        self.looked = now;
    }

    /// Puts an entry where it belongs in the agenda.
    fn plan(&mut self, id: &EntryId) {
        let Some(wanted) = self.wanted.get_mut(id) else { return };
        let due = match self.is_set_back && wanted.is_too_early(self.looked) {
            true => AT_ONCE,
            false => wanted.due(),
        };
        if due != wanted.due {
            self.agenda.remove(&(wanted.due, id.clone()));
            self.agenda.insert((due, id.clone()));
            wanted.due = due;
        }
    }
}

// === impl Wanted ===

impl Wanted {
    /// When something is to be done about it.
    fn due(&self) -> SystemTime {
        match (&self.failed, &self.minted) {
            (Some(failed), _) => failed.retry_at,
            (None, Some(minted)) if minted.is_good_for(&self.entry) => minted.renew_at,
            (None, _) => AT_ONCE,
        }
    }

    /// Whether its times were reckoned by a clock that has been set back since.
    fn is_too_early(&self, now: SystemTime) -> bool {
        match (&self.failed, &self.minted) {
            (Some(failed), _) => !failed.backoff.rests(failed.retry_at, now),
            (None, Some(minted)) => minted.svid.not_before() > now,
            (None, None) => false,
        }
    }

    fn supplied(&self, now: SystemTime) -> Supplied {
        let valid = self.minted.as_ref();
        let valid = valid.filter(|minted| now < minted.end() && minted.svid.may_be_used());
        Supplied {
            entry: Arc::clone(&self.entry),
            svid: valid.map(|minted| Arc::clone(&minted.svid)),
        }
    }
}

// === impl Minted ===

impl Minted {
    fn end(&self) -> SystemTime {
        self.svid.not_after()
    }

    /// Whether it can be used, and is what a new one would be.
    fn is_good_for(&self, entry: &RegisteredEntry) -> bool {
        self.svid.may_be_used() && self.entry.has_same_certificate(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supply::shelf::Supply;
    use crate::supply::testing::{entry, with};
    use hoplite_identity::testing::TestAuthority;
    use hoplite_identity::{Entry, Fingerprint, SpiffeId};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const HOUR: Duration = Duration::from_secs(3600);

    fn id(path: &str) -> SpiffeId {
        SpiffeId::parse(&format!("spiffe://prod.example{path}")).unwrap()
    }

    fn wanted(entries: impl IntoIterator<Item = RegisteredEntry>) -> Changed {
        let entries = entries.into_iter();
        entries.map(|entry| (entry.id.clone(), Some(Arc::new(entry)))).collect()
    }

    fn ids(entries: &[Arc<RegisteredEntry>]) -> Vec<&str> {
        entries.iter().map(|entry| entry.id.as_str()).collect()
    }

    impl Stock {
        fn due_now(&mut self, now: SystemTime) -> Vec<Arc<RegisteredEntry>> {
            self.due(BTreeSet::new(), now)
        }

        /// Whether the entry `e` has an SVID on the shelves.
        fn serves(&mut self, now: SystemTime) -> bool {
            self.news.extend(self.wanted.keys().cloned());
            let on_shelves = self.restock(now).entries;
            on_shelves
                .iter()
                .any(|(_, supplied)| supplied.as_ref().is_some_and(|supplied| supplied.svid.is_some()))
        }

        fn held(&self) -> &Minted {
            self.wanted["e"].minted.as_ref().unwrap()
        }
    }

    #[test]
    fn what_is_under_a_tainted_authority_is_served_and_replaced_at_once() {
        let (old, new) = (TestAuthority::new("prod.example"), TestAuthority::new("prod.example"));
        let both = [old.bundle(), new.bundle()].map(|bundle| bundle.authorities()[0].clone());
        let both = TrustBundle::new(old.trust_domain(), both.to_vec(), 2).unwrap();
        let tainted = both.clone().with_tainted([Fingerprint::of(&both.authorities()[0])]);
        let verifier =
            |bundle: &TrustBundle| Arc::new(PeerVerifier::new(BundleSet::from_iter([bundle.clone()])).unwrap());
        let now = SystemTime::now();
        let mut stock = Stock::default();
        stock.want(wanted([entry("e", &id("/a"), &[])]));
        stock.trust(&Arc::new(both.clone()), &verifier(&both), None, now);
        let e = stock.due_now(now).pop().unwrap();
        let svid = |authority: &TestAuthority| Arc::new(authority.svid("/a", HOUR));
        stock.minted(&e, &svid(&old), now, 0.0);
        assert!(stock.due_now(now).is_empty() && stock.serves(now));
        let sound = verifier(&tainted.sound());
        stock.trust(&Arc::new(tainted.clone()), &verifier(&tainted), Some(&sound), now);
        assert!(stock.serves(now), "it is good until then");
        assert_eq!((ids(&stock.due_now(now)), stock.idle(now)), (vec!["e"], Duration::ZERO));
        // A CA that signs with it still is not asked without a rest.
        stock.minted(&e, &svid(&old), now, 0.0);
        assert!(stock.due_now(now).is_empty() && stock.tainted.len() == 1);
        let later = now + TAINT_REST;
        assert_eq!(ids(&stock.due_now(later)), ["e"]);
        stock.minted(&e, &svid(&new), later, 0.0);
        assert!(stock.due_now(later).is_empty() && stock.tainted.is_empty());
        // Revoked: what is under it goes.
        stock.minted(&e, &svid(&old), later, 0.0);
        let alone = TrustBundle::new(old.trust_domain(), new.bundle().authorities().to_vec(), 4).unwrap();
        stock.trust(&Arc::new(alone.clone()), &verifier(&alone), None, later);
        assert!(!stock.serves(later));
    }

    #[test]
    fn svids_are_renewed_at_half_life_and_kept_when_that_fails() {
        let authority = TestAuthority::new("prod.example");
        let mut stock = Stock::default();
        stock.want(wanted([entry("e", &id("/a"), &[])]));
        let start = SystemTime::now();
        let e = stock.due_now(start).pop().unwrap();
        stock.minted(&e, &Arc::new(authority.svid("/a", HOUR)), SystemTime::now(), 0.0);
        assert!(stock.due_now(start).is_empty());
        let (renew_at, not_after) = (stock.held().renew_at, stock.held().end());
        assert!(start + HOUR / 3 < renew_at && renew_at < start + HOUR * 2 / 3);
        assert_eq!(stock.idle(start), SLEEP_MAX);
        assert_eq!(stock.idle(renew_at - Duration::from_secs(1)), Duration::from_secs(1));

        let (mut now, mut tries) = (renew_at, 0);
        while now < not_after {
            assert!(stock.serves(now), "still valid, so still served");
            if let Some(due) = stock.due_now(now).pop() {
                stock.failed(&due, now, 0.0);
                tries += 1;
                assert!(stock.due_now(now).is_empty(), "it rests first");
            }
            now += stock.idle(now).max(Duration::from_millis(1));
        }
        assert!((100..1000).contains(&tries), "{tries}");
        assert!(!stock.serves(not_after), "an expired SVID is never served");
        let due = stock.due_now(not_after + Duration::from_secs(60)).pop().unwrap();
        stock.minted(&due, &Arc::new(authority.svid("/a", HOUR)), SystemTime::now(), 0.0);
        assert!(stock.wanted["e"].failed.is_none() && stock.due_now(start).is_empty());
    }

    #[test]
    fn a_clock_that_is_set_back_makes_no_entry_rest_for_longer() {
        let mut stock = Stock::default();
        stock.want(wanted([entry("e", &id("/a"), &[])]));
        let now = SystemTime::now();
        let e = stock.due_now(now).pop().unwrap();
        stock.failed(&e, now, 0.0);
        assert!(stock.due_now(now).is_empty());
        assert_eq!(ids(&stock.due_now(now - HOUR)), ["e"]);
    }

    #[test]
    fn a_clock_that_is_set_back_makes_what_had_expired_good_again_and_what_is_not_valid_yet_due() {
        let authority = TestAuthority::new("prod.example");
        let mut stock = Stock::default();
        stock.want(wanted([entry("e", &id("/a"), &[])]));
        let start = SystemTime::now();
        let e = stock.due_now(start).pop().unwrap();
        stock.minted(&e, &Arc::new(authority.svid("/a", HOUR)), start, 0.0);
        assert!(
            stock.restock(start + 2 * HOUR).entries[0]
                .1
                .as_ref()
                .unwrap()
                .svid
                .is_none()
        );
        assert!(stock.restock(start).entries[0].1.as_ref().unwrap().svid.is_some());
        assert!(stock.due_now(start).is_empty());
        assert_eq!(ids(&stock.due_now(start - 2 * HOUR)), ["e"]);
    }

    #[test]
    fn what_an_entry_change_means_for_its_svid() {
        let authority = TestAuthority::new("prod.example");
        let original = entry("e", &id("/a"), &["unix:uid:1".into()]);
        let check = |change: &dyn Fn(&mut Entry), served: bool, due: bool| {
            let mut stock = Stock::default();
            stock.want(wanted([original.clone()]));
            let svid = Arc::new(authority.svid("/a", HOUR));
            stock.minted(&Arc::new(original.clone()), &svid, SystemTime::now(), 0.0);
            let mut changed = with(original.clone(), change);
            changed.revision = 2;
            stock.want(wanted([changed]));
            let now = SystemTime::now();
            assert_eq!((stock.serves(now), !stock.due_now(now).is_empty()), (served, due));
        };
        check(&|_| {}, true, false);
        check(&|e| e.hint = "h".into(), true, true);
        check(&|e| e.hint = "h".repeat(65), true, false);
        check(&|e| e.selectors.clear(), true, false);
        check(&|e| e.x509_ttl = 7200, true, true);
        check(&|e| e.dns_names = vec!["a".into()], true, true);
        check(&|e| e.spiffe_id = id("/b"), false, true);
    }

    #[test]
    fn deleted_entries_are_forgotten_with_their_keys() {
        let authority = TestAuthority::new("prod.example");
        let mut stock = Stock::default();
        let e = Arc::new(entry("e", &id("/a"), &[]));
        stock.want(wanted([(*e).clone()]));
        stock.minted(&e, &Arc::new(authority.svid("/a", HOUR)), SystemTime::now(), 0.0);
        stock.failed(&e, SystemTime::now(), 0.0);
        stock.want(Changed::from([(e.id.clone(), None)]));
        assert!(stock.wanted.is_empty() && stock.agenda.is_empty() && stock.ends.is_empty());
        assert!(stock.restock(SystemTime::now()).entries[0].1.is_none());
        stock.minted(&e, &Arc::new(authority.svid("/a", HOUR)), SystemTime::now(), 0.0);
        assert!(stock.ends.is_empty(), "it came too late");
    }

    #[test]
    fn batches_are_bounded_and_begin_with_what_is_waited_for() {
        let mut stock = Stock::default();
        stock.want(wanted((0..500).map(|n| entry(&format!("{n:03}"), &id("/a"), &[]))));
        let now = SystemTime::now();
        let first = stock.due_now(now);
        assert_eq!((first.len(), ids(&first)[0]), (BATCH, "000"));
        let asked = ["450", "460", "gone"].map(|text| EntryId::parse(text).unwrap()).into();
        let first = stock.due(asked, now);
        assert_eq!((first.len(), &ids(&first)[..3]), (BATCH, &["450", "460", "000"][..]));
        for entry in &first {
            stock.failed(entry, now, 0.0);
        }
        assert_eq!(ids(&stock.due_now(now))[0], "198");
    }

    #[test]
    fn a_bundle_that_no_longer_vouches_takes_the_svid_away() {
        let (old, new) = (TestAuthority::new("prod.example"), TestAuthority::new("prod.example"));
        let verifier = |authority: &TestAuthority| Arc::new(PeerVerifier::new(authority.bundles()).unwrap());
        let now = SystemTime::now();
        let mut stock = Stock::default();
        let e = Arc::new(entry("e", &id("/a"), &[]));
        stock.want(wanted([(*e).clone()]));
        stock.trust(&Arc::new(old.bundle()), &verifier(&old), None, now);
        stock.minted(&e, &Arc::new(old.svid("/a", HOUR)), SystemTime::now(), 0.0);
        stock.trust(&Arc::new(old.bundle()), &verifier(&old), None, now);
        assert!(stock.serves(now));
        stock.trust(&Arc::new(new.bundle()), &verifier(&new), None, now);
        assert!(!stock.serves(now) && stock.due_now(now).len() == 1);
    }

    #[test]
    fn callers_are_told_only_what_they_could_tell() {
        let authority = TestAuthority::new("prod.example");
        let (mut stock, supply) = (Stock::default(), Supply::default());
        let e = Arc::new(entry("e", &id("/a"), &[]));
        let now = SystemTime::now();
        stock.want(wanted([(*e).clone()]));
        let tells = |stock: &mut Stock| supply.put(stock.restock(now));
        assert!(tells(&mut stock));
        assert!(!tells(&mut stock));
        stock.want(wanted([(*e).clone()]));
        assert!(!tells(&mut stock), "as of an update of all there is");
        stock.minted(&e, &Arc::new(authority.svid("/a", HOUR)), SystemTime::now(), 0.0);
        assert!(tells(&mut stock) && !tells(&mut stock));
        stock.minted(&e, &Arc::new(authority.svid("/a", HOUR)), SystemTime::now(), 0.0);
        assert!(tells(&mut stock), "renewed");
        let verifier = Arc::new(PeerVerifier::new(authority.bundles()).unwrap());
        stock.trust(&Arc::new(authority.bundle()), &verifier, None, now);
        assert!(tells(&mut stock) && !tells(&mut stock), "another bundle");
    }

    /// What there is, in the plainest way: for the test below.
    #[derive(Default)]
    struct Model {
        wanted: BTreeMap<EntryId, Arc<RegisteredEntry>>,
        minted: BTreeMap<EntryId, Made>,
        rests: BTreeMap<EntryId, SystemTime>,
    }

    struct Made {
        made_for: Arc<RegisteredEntry>,
        serial: String,
        valid: std::ops::Range<SystemTime>,
        renew_at: SystemTime,
    }

    impl Model {
        fn supply(&self, now: SystemTime) -> Vec<(EntryId, u64, Option<String>)> {
            let supplied = self.wanted.iter().map(|(id, entry)| {
                let valid = self.minted.get(id).filter(|made| now < made.valid.end);
                (id.clone(), entry.revision, valid.map(|made| made.serial.clone()))
            });
            supplied.collect()
        }

        fn due(&self, now: SystemTime) -> BTreeSet<EntryId> {
            let is_due = |(id, entry): &(&EntryId, &Arc<RegisteredEntry>)| {
                let is_good = |made: &Made| {
                    now < made.renew_at && made.valid.start <= now && made.made_for.has_same_certificate(entry)
                };
                // What failed is tried until it succeeds.
                match self.rests.get(*id) {
                    Some(until) => !RETRY.rests(*until, now),
                    None => !self.minted.get(*id).is_some_and(is_good),
                }
            };
            self.wanted.iter().filter(is_due).map(|(id, _)| id.clone()).collect()
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever comes, changes, goes, is minted or fails while the clock runs on or back: what is kept up is what a look
        /// at everything finds.
        #[test]
        fn what_is_kept_up_is_what_a_look_at_everything_finds(
            steps in proptest::collection::vec((0usize..5, 0u8..9, 0u64..3, -30i64..90), 1..80),
        ) {
            let authority = TestAuthority::new("prod.example");
            let start = SystemTime::now();
            let (mut stock, supply, mut model) = (Stock::default(), Supply::default(), Model::default());
            let (mut minutes, mut on_shelves) = (0i64, false);
            for (revision, (which, what, how, passes)) in steps.into_iter().enumerate() {
                minutes += passes;
                let minute = Duration::from_secs(60);
                let now = match u32::try_from(minutes) {
                    Ok(ahead) => start + minute * ahead,
                    Err(_) => start - minute * u32::try_from(-minutes).unwrap(),
                };
                let name = EntryId::parse(&format!("e{which}")).unwrap();
                match what {
                    0..3 => {
                        let change = |entry: &mut Entry| {
                            entry.spiffe_id = id(&format!("/{}", how % 2));
                            entry.x509_ttl = if how == 2 { 7 } else { 3600 };
                        };
                        let mut registered = with(entry(name.as_str(), &id("/0"), &[]), change);
                        registered.revision = revision as u64;
                        let registered = Arc::new(registered);
                        let other = |made: &Made| made.made_for.spiffe_id != registered.spiffe_id;
                        if model.minted.get(&name).is_some_and(other) {
                            model.minted.remove(&name);
                        }
                        model.rests.remove(&name);
                        model.wanted.insert(name.clone(), Arc::clone(&registered));
                        stock.want(Changed::from([(name, Some(registered))]));
                    }
                    3 => {
                        model.wanted.remove(&name);
                        model.minted.remove(&name);
                        model.rests.remove(&name);
                        stock.want(Changed::from([(name, None)]));
                    }
                    4 => {
                        // Only what is due is tried.
                        let is_due = model.due(now).contains(&name);
                        if let Some(entry) = model.wanted.get(&name).filter(|_| is_due) {
                            stock.failed(entry, now, 0.0);
                            model.rests.insert(name.clone(), stock.wanted[&name].failed.as_ref().unwrap().retry_at);
                        }
                    }
                    _ => {
                        if let Some(entry) = model.wanted.get(&name) {
                            let svid = authority.svid_valid(entry.spiffe_id.path(), now - minute, now + HOUR);
                            let (serial, valid) = {
                                let leaf = svid.leaf();
                                (leaf.serial().to_owned(), leaf.not_before()..leaf.not_after())
                            };
                            stock.minted(entry, &Arc::new(svid), now, 0.0);
                            let made = Made {
                                made_for: Arc::clone(entry),
                                serial,
                                valid,
                                renew_at: stock.wanted[&name].minted.as_ref().unwrap().renew_at,
                            };
                            model.minted.insert(name.clone(), made);
                            model.rests.remove(&name);
                        }
                    }
                }
                if how == 1 {
                    continue; // several changes at once
                }
                on_shelves |= supply.put(stock.restock(now));
                let mut served: Vec<_> = supply.all().into_iter().map(|supplied| {
                    let svid = supplied.svid.map(|svid| Arc::clone(svid.get(UNIX_EPOCH).unwrap()));
                    let serial = svid.map(|svid| svid.leaf().serial().to_owned());
                    (supplied.entry.id.clone(), supplied.entry.revision, serial)
                }).collect();
                served.sort();
                prop_assert_eq!(&served, &model.supply(now));
                let without = served.iter().filter(|(_, _, serial)| serial.is_none()).count();
                prop_assert_eq!(supply.without_svid(), without);
                let due: BTreeSet<_> = stock.due_now(now).iter().map(|entry| entry.id.clone()).collect();
                prop_assert_eq!(due, model.due(now));
            }
            prop_assume!(on_shelves);
        }
    }
}
