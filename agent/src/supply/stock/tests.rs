//! What the stock does about each entry, by a clock that the test runs.

use super::*;
use crate::supply::shelf::Supply;
use crate::supply::testing::{entry, template, with};
use hoplite_identity::testing::TestAuthority;
use hoplite_identity::{Entry, Fingerprint, SpiffeId};
use proptest::prelude::*;
use std::collections::BTreeMap;

const HOUR: Duration = Duration::from_secs(3600);

fn id(path: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://prod.example{path}")).unwrap()
}

fn wanted(entries: impl IntoIterator<Item = NamedEntry>) -> Changed {
    let entries = entries.into_iter();
    entries.map(|entry| (entry.id.clone(), Some(entry.into()))).collect()
}

fn ids(entries: &[Arc<NamedEntry>]) -> Vec<&str> {
    entries.iter().map(|entry| entry.id.as_str()).collect()
}

impl Stock {
    fn due_now(&mut self, now: SystemTime) -> Vec<Arc<NamedEntry>> {
        self.due(BTreeMap::new(), now)
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
    let verifier = |bundle: &TrustBundle| Arc::new(PeerVerifier::new(BundleSet::from_iter([bundle.clone()])).unwrap());
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
            stock.failed(&due, "refused", now, 0.0);
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
    stock.failed(&e, "refused", now, 0.0);
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
    let check = |change: &dyn Fn(&mut Entry<SpiffeId>), served: bool, due: bool| {
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
    stock.failed(&e, "refused", SystemTime::now(), 0.0);
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
    let asked = ["450", "460", "gone"].map(|text| {
        let entry = entry(text, &id("/a"), &[]);
        (entry.id.clone(), Arc::new(entry))
    });
    let asked = asked.into();
    let first = stock.due(asked, now);
    assert_eq!((first.len(), &ids(&first)[..3]), (BATCH, &["450", "460", "000"][..]));
    for entry in &first {
        stock.failed(entry, "refused", now, 0.0);
    }
    assert_eq!(ids(&stock.due_now(now))[0], "198");
}

#[test]
fn what_will_end_is_renewed_before_what_is_new_and_after_what_is_waited_for() {
    let authority = TestAuthority::new("prod.example");
    let mut stock = Stock::default();
    stock.want(wanted([entry("z-old", &id("/a"), &[])]));
    let start = SystemTime::now();
    let old = stock.due_now(start).pop().unwrap();
    stock.minted(&old, &Arc::new(authority.svid("/a", HOUR)), start, 0.0);
    stock.want(wanted((0..500).map(|n| entry(&format!("{n:03}"), &id("/a"), &[]))));
    assert_eq!(ids(&stock.due_now(start))[0], "000");
    let late = start + HOUR * 3 / 4;
    assert_eq!(ids(&stock.due_now(late))[..2], ["z-old", "000"]);
    let asked = [entry("450", &id("/a"), &[])].map(|entry| (entry.id.clone(), Arc::new(entry)));
    let asked = BTreeMap::from(asked);
    assert_eq!(ids(&stock.due(asked, late))[..3], ["450", "z-old", "000"]);
}

#[test]
fn what_the_ca_refused_is_not_coming_until_it_changes() {
    let mut stock = Stock::default();
    let e = entry("e", &id("/a"), &[]);
    stock.want(wanted([e.clone()]));
    let now = SystemTime::now();
    let is_coming = |stock: &mut Stock| {
        let news = stock.restock(now).entries;
        news.first().map(|(_, supplied)| supplied.as_ref().unwrap().is_coming())
    };
    assert_eq!(is_coming(&mut stock), Some(true));
    stock.failed(&e, "refused", now, 0.0);
    assert_eq!(is_coming(&mut stock), Some(false), "whoever waits is told at once");
    stock.want(wanted([with(e, |e| e.hint = "h".into())]));
    assert_eq!(is_coming(&mut stock), Some(true));
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

fn attested(texts: &[&str]) -> BTreeSet<Selector> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// A template of `/user/NAME` is registered; who comes with a name has it asked for.
fn with_a_template() -> (Stock, Template) {
    let template = template("t", "/user/{unix:user}", &["unix:gid:7"]);
    let mut stock = Stock::default();
    let registered = Registered::Template(Arc::new(template.clone()));
    stock.want(Changed::from([(template.id.clone(), Some(registered))]));
    (stock, template)
}

fn asked(template: &Template, user: &str) -> BTreeMap<EntryId, Arc<NamedEntry>> {
    let user = format!("unix:user:{user}");
    let named = template.named(&attested(&["unix:gid:7", &user])).unwrap();
    [(named.id.clone(), Arc::new(named))].into()
}

#[test]
fn a_name_is_taken_on_when_somebody_comes_with_it_and_goes_with_its_template() {
    let (mut stock, template) = with_a_template();
    let now = SystemTime::now();
    assert!(stock.due_now(now).is_empty(), "a template itself has no SVID");
    assert_eq!(stock.restock(now).templates.len(), 1);
    let due = stock.due(asked(&template, "ann"), now);
    assert_eq!(due[0].spiffe_id.path(), "/user/ann");
    assert_eq!(stock.due(asked(&template, "ann"), now).len(), 1, "once");
    assert_eq!((stock.names_count, stock.names.len()), (1, 1));
    // By a template that is another one by now nothing is taken on; whoever asks is woken.
    let other = crate::supply::testing::template("t", "/people/{unix:user}", &["unix:gid:7"]);
    stock.want(Changed::from([(
        other.id.clone(),
        Some(Registered::Template(Arc::new(other.clone()))),
    )]));
    assert_eq!(
        stock.due(asked(&template, "bob"), now)[0].spiffe_id.path(),
        "/people/ann"
    );
    assert_eq!(stock.names_count, 1, "bob is none, and ann is called otherwise");
    // Whom it is not for any more has nothing.
    let narrower = crate::supply::testing::template("t", "/people/{unix:user}", &["unix:gid:7", "unix:uid:1"]);
    stock.want(Changed::from([(
        narrower.id.clone(),
        Some(Registered::Template(Arc::new(narrower))),
    )]));
    assert!(stock.due_now(now).is_empty() && stock.names.is_empty());
    assert_eq!((stock.names_count, stock.take_forgotten().len()), (0, 1));
    stock.want(Changed::from([(
        other.id.clone(),
        Some(Registered::Template(Arc::new(other.clone()))),
    )]));
    assert_eq!(stock.due(asked(&other, "ann"), now).len(), 1);
    stock.want(Changed::from([(other.id.clone(), None)]));
    assert!(stock.wanted.is_empty() && stock.templates.is_empty() && stock.due_now(now).is_empty());
}

#[test]
fn a_name_that_nobody_uses_is_not_renewed_and_forgotten_at_its_end() {
    let authority = TestAuthority::new("prod.example");
    let nobody = |_: &BTreeSet<Selector>| false;
    let run = |uses_at: Option<u64>, is_awaited: bool| {
        let (mut stock, template) = with_a_template();
        let now = SystemTime::now();
        let ann = stock.due(asked(&template, "ann"), now).remove(0);
        stock.rest_unused(now, nobody);
        assert!(stock.wanted.contains_key(&ann.id), "it was asked for");
        stock.minted(&ann, &Arc::new(authority.svid("/user/ann", HOUR)), now, 0.0);
        let mut minted_again = None;
        for minute in 1..=61 {
            let now = now + Duration::from_secs(60 * minute);
            if uses_at == Some(minute) {
                stock.wanted[&ann.id].minted.as_ref().unwrap().svid.get(now).unwrap();
            }
            stock.restock(now);
            stock.rest_unused(now, |_| is_awaited);
            if !stock.due_now(now).is_empty() {
                minted_again = Some(minute);
                break;
            }
        }
        (minted_again, stock.names_count)
    };
    assert_eq!(run(None, false), (None, 0), "forgotten");
    let half = run(Some(1), false).0.unwrap();
    assert!((28..=35).contains(&half), "renewed in time: {half}");
    assert_eq!(run(None, true).0, Some(half), "somebody waits for changes");
    let late = run(Some(45), false).0.unwrap();
    assert!((45..58).contains(&late), "before its end: {late}");
}

#[test]
fn a_name_that_the_ca_refuses_is_tried_while_somebody_waits_for_it() {
    for is_awaited in [true, false] {
        let (mut stock, template) = with_a_template();
        let now = SystemTime::now();
        let ann = stock.due(asked(&template, "ann"), now).remove(0);
        stock.failed(&ann, "refused", now, 0.0);
        let later = now + HOUR;
        stock.rest_unused(later, |_| is_awaited);
        assert_eq!(stock.due_now(later).len(), usize::from(is_awaited));
        assert_eq!(stock.names_count, usize::from(is_awaited));
    }
}

/// What there is, in the plainest way: for the test below.
#[derive(Default)]
struct Model {
    wanted: BTreeMap<EntryId, Arc<NamedEntry>>,
    minted: BTreeMap<EntryId, Made>,
    rests: BTreeMap<EntryId, SystemTime>,
}

struct Made {
    made_for: Arc<NamedEntry>,
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
        let is_due = |(id, entry): &(&EntryId, &Arc<NamedEntry>)| {
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
                    let change = |entry: &mut Entry<SpiffeId>| {
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
                    stock.want(Changed::from([(name, Some(Registered::Named(registered)))]));
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
                        stock.failed(entry, "refused", now, 0.0);
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
