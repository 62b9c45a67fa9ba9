//! The holding through offers, grants, time, restarts and damage; then through random steps of all of them.

use std::cell::LazyCell;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::bundle::Meta;
use crate::grant::{GrantDraft, GrantScope};
use crate::people::{key, trusted};
use crate::source::Source;

fn domain() -> TrustDomain {
    TrustDomain::parse("prod.example").unwrap()
}

fn trust() -> Option<PolicyTrust> {
    Some(PolicyTrust::new(trusted(&["alice", "bob"]), domain()))
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
}

/// A bundle that lives for 100 seconds; `note` makes another one of the same revision.
fn bundle(revision: u64, stage: Stage, note: Option<&str>, by: &str) -> Vec<u8> {
    let source = Source {
        name: "a.cedar".to_owned(),
        text: "@id(\"a\") permit (principal, action, resource);".to_owned(),
    };
    let meta = Meta {
        trust_domain: domain(),
        revision,
        parent: None,
        created: at(0),
        expires: at(100),
        min_engine: EngineVersion::THIS,
        critical: Vec::new(),
        stage,
        note: note.map(str::to_owned),
    };
    Bundle::build(&[source], meta).unwrap().sign(&[&key(by)]).unwrap()
}

fn live(revision: u64) -> Vec<u8> {
    bundle(revision, Stage::Live, None, "alice")
}

fn shadow(revision: u64) -> Vec<u8> {
    bundle(revision, Stage::Shadow, None, "alice")
}

fn grant(id: &str, until: u64) -> Vec<u8> {
    let scope = GrantScope::Path("prod.example/ops".to_owned());
    let times = (at(0), at(until));
    let draft = GrantDraft::new(
        &domain(),
        id,
        "INC-1",
        "why",
        scope,
        &"ledger".parse().unwrap(),
        times,
        at(0),
    )
    .unwrap();
    GrantDraft::sign_too(&draft.sign(&key("alice")).unwrap(), &key("bob")).unwrap()
}

/// What a keeper would find after it has written all of it.
fn kept(holding: &Holding) -> KeptPolicy {
    let bytes = |held: Option<&HeldBundle>| held.map(|held| Ok(held.bytes().to_vec()));
    KeptPolicy {
        state: Some(Ok(holding.state())),
        live: bytes(holding.live()),
        shadow: bytes(holding.shadow()),
    }
}

fn restored(kept: KeptPolicy) -> (Holding, Vec<NotRestored>) {
    Holding::restore(trust(), kept, at(1))
}

fn offer(holding: &mut Holding, bytes: &[u8], now: u64) -> Result<u64, String> {
    let examined = holding.examine(bytes, at(now)).map_err(|error| error.to_string())?;
    Ok(holding.take(examined).unwrap().revision())
}

fn revisions(holding: &Holding) -> (Option<u64>, Option<u64>) {
    let revision = |held: Option<&HeldBundle>| held.map(HeldBundle::revision);
    (revision(holding.live()), revision(holding.shadow()))
}

#[test]
fn what_is_wrong_changes_nothing() {
    let mut holding = Holding::new(trust());
    assert_eq!(offer(&mut holding, &live(5), 0), Ok(5));
    for (bytes, now, expected) in [
        (live(4), 0, "revision 4 is lower than 5"),
        (live(5), 0, "already accepted"),
        (
            bundle(5, Stage::Live, Some("x"), "bob"),
            0,
            "another bundle of revision 5",
        ),
        (bundle(6, Stage::Live, None, "mallory"), 0, "`mallory`"),
        (live(6), 100, "expired"),
        (b"no bundle".to_vec(), 0, "refused"),
    ] {
        let error = offer(&mut holding, &bytes, now).unwrap_err();
        assert!(error.contains(expected), "{error}");
        assert_eq!(revisions(&holding), (Some(5), None));
    }
    let nobody = Holding::new(None).examine(&live(1), at(0)).unwrap_err();
    assert_eq!(nobody, NotTaken::NoSigner);
}

#[test]
fn what_was_examined_before_another_was_taken_is_looked_at_again() {
    let mut holding = Holding::new(trust());
    let five = holding.examine(&live(5), at(0)).unwrap();
    let again = holding.examine(&live(5), at(0)).unwrap();
    let six = holding.examine(&live(6), at(0)).unwrap();
    holding.take(five).unwrap();
    assert!(matches!(holding.take(again), Err(Refused::AlreadyHave(5))));
    holding.take(six).unwrap();
    let late = Holding::new(trust()).examine(&live(5), at(0)).unwrap();
    assert!(matches!(
        holding.take(late),
        Err(Refused::LowerRevision { have: 6, got: 5 })
    ));
    assert_eq!(revisions(&holding), (Some(6), None));
}

#[test]
fn another_holding_takes_what_was_verified_once() {
    let (mut one, mut other) = (Holding::new(trust()), Holding::new(trust()));
    let held = one.take(one.examine(&live(5), at(0)).unwrap()).unwrap();
    let examined = other.examine_held(&held).unwrap();
    assert_eq!(
        other.take(examined).unwrap().bytes().as_ptr(),
        held.bytes().as_ptr(),
        "the same one"
    );
    assert!(matches!(other.examine_held(&held), Err(Refused::AlreadyHave(5))));
}

#[test]
fn a_kept_shadow_never_comes_up_live() {
    let mut holding = Holding::new(trust());
    offer(&mut holding, &live(1), 0).unwrap();
    let mut kept = kept(&holding);
    kept.live = Some(Ok(shadow(2)));
    let (holding, lost) = restored(kept);
    assert_eq!(revisions(&holding), (None, None));
    assert!(matches!(lost[..], [NotRestored::OtherStage(Stage::Shadow)]), "{lost:?}");
    assert!(holding.lost(Stage::Live).is_some() && holding.ever_signed());
}

#[test]
fn what_was_accepted_outlives_its_end_its_signer_and_damage() {
    let mut before = Holding::new(trust());
    offer(&mut before, &live(5), 0).unwrap();
    let (holding, lost) = Holding::restore(trust(), kept(&before), at(1_000_000));
    assert_eq!(
        (revisions(&holding), lost.len()),
        ((Some(5), None), 0),
        "expired, and held"
    );

    let alice_left = Some(PolicyTrust::new(trusted(&["bob"]), domain()));
    type Change = fn(&mut KeptPolicy);
    let cases: [(Option<PolicyTrust>, Change, &str); 6] = [
        (alice_left, |_| (), "`alice`"),
        (None, |_| (), "`policy_signers` is empty"),
        (trust(), |kept| kept.live = Some(Ok(b"spoilt".to_vec())), "refused"),
        (
            trust(),
            |kept| kept.live = Some(Err(Unreadable::of("mode 0644"))),
            "mode 0644",
        ),
        (trust(), |kept| kept.live = None, "is gone"),
        (trust(), |kept| kept.live = Some(Ok(live(4))), "lower than 5"),
    ];
    for (trust, change, expected) in cases {
        let mut kept = kept(&before);
        change(&mut kept);
        let believes = trust.is_some();
        let (mut holding, lost) = Holding::restore(trust, kept, at(1));
        assert!(lost[0].to_string().contains(expected), "{lost:?}");
        assert_eq!(revisions(&holding), (None, None));
        assert!(holding.ever_signed(), "a directory does not count again");
        if believes && expected != "`alice`" {
            assert!(offer(&mut holding, &live(4), 1).unwrap_err().contains("lower than 5"));
            assert_eq!(offer(&mut holding, &live(5), 1), Ok(5), "welcome again");
            assert_eq!(holding.lost(Stage::Live), None);
        }
    }

    // The process died between bundle and state: the bundle counts. The state is damaged: so it does then.
    for state in [Some(Ok(before.state())), Some(Ok(b"{".to_vec())), None] {
        let kept = KeptPolicy {
            state,
            live: Some(Ok(live(9))),
            shadow: None,
        };
        let (mut holding, _) = restored(kept);
        assert_eq!(revisions(&holding), (Some(9), None));
        assert!(offer(&mut holding, &live(8), 1).unwrap_err().contains("lower than 9"));
    }
    let doubtful = KeptPolicy {
        state: Some(Ok(b"{".to_vec())),
        ..KeptPolicy::default()
    };
    let (mut holding, lost) = restored(doubtful);
    assert!(matches!(lost[..], [NotRestored::State(_)]), "{lost:?}");
    assert!(holding.ever_signed(), "a directory does not count when nobody knows");
    assert_eq!(offer(&mut holding, &live(1), 1), Ok(1));
    let twin = KeptPolicy {
        live: Some(Ok(bundle(5, Stage::Live, Some("x"), "bob"))),
        ..kept(&before)
    };
    assert!(restored(twin).1[0].to_string().contains("another bundle of revision 5"));
}

#[test]
fn grants_are_held_once_and_go_at_their_end() {
    let mut holding = Holding::new(trust());
    let (one, two) = (grant("one", 10), grant("two", 20));
    let alone = GrantDraft::sign_too(&one, &key("alice")).unwrap();
    let mallory = bundle(1, Stage::Live, None, "mallory");
    let offered = [&one, &two, &one, &alone, &mallory].map(|bytes| bytes.as_slice());
    let (sound, refused) = holding.examine_grants(offered, at(0));
    assert_eq!(
        (sound.len(), refused.len()),
        (2, 1),
        "twice is once, and a bundle is no grant"
    );
    holding.take_grants(sound);
    assert_eq!(holding.next_end(at(0)), Some(at(10)));
    assert!(holding.end_what_is_over(at(9)).grants.is_empty());
    let (restarted, _) = Holding::restore(trust(), kept(&holding), at(10));
    assert_eq!(restarted.grants().len(), 1, "over while nobody looked");
    assert_eq!(holding.end_what_is_over(at(10)).grants[0].draft().id, "one");
    assert_eq!((holding.grants().len(), holding.next_end(at(10))), (1, Some(at(20))));
    let (sound, refused) = holding.examine_grants([one.as_slice()], at(10));
    assert!(sound.is_empty() && refused.is_empty(), "over, and no fault");
    let many: Vec<Vec<u8>> = (0..GRANTS_HELD_MAX + 3).map(|n| grant(&format!("g{n}"), 50)).collect();
    assert_eq!(
        holding.examine_grants(many.iter().map(Vec::as_slice), at(0)).0.len(),
        GRANTS_HELD_MAX
    );
}

#[test]
fn an_expiry_is_said_once_for_each_bundle() {
    let mut holding = Holding::new(trust());
    offer(&mut holding, &live(1), 0).unwrap();
    assert_eq!(holding.next_end(at(0)), Some(at(100)));
    assert!(holding.end_what_is_over(at(99)).expired.is_none());
    assert_eq!(holding.end_what_is_over(at(100)).expired.unwrap().revision(), 1);
    assert!(holding.end_what_is_over(at(101)).expired.is_none());
    assert_eq!(
        (holding.next_end(at(100)), revisions(&holding)),
        (None, (Some(1), None))
    );
}

#[derive(Debug, Clone)]
enum Step {
    Offer {
        revision: u64,
        stage: Stage,
        twin: bool,
        stranger: bool,
    },
    Grants(Vec<usize>),
    Clear,
    Wait(u64),
    Restart,
    /// The bundles were written, the state was not.
    Crash,
    /// Somebody moves what lies on the disk about.
    Swap,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let stage = prop_oneof![Just(Stage::Live), Just(Stage::Shadow)];
    let offer =
        (1..6u64, stage, any::<bool>(), proptest::bool::weighted(0.1)).prop_map(|(revision, stage, twin, stranger)| {
            Step::Offer {
                revision,
                stage,
                twin,
                stranger,
            }
        });
    let step = prop_oneof![
        6 => offer,
        2 => proptest::collection::vec(0..4usize, 0..4).prop_map(Step::Grants),
        1 => Just(Step::Clear),
        2 => (1..60u64).prop_map(Step::Wait),
        2 => Just(Step::Restart),
        1 => Just(Step::Crash),
        1 => Just(Step::Swap),
    ];
    proptest::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn it_never_goes_back_and_a_restart_changes_nothing(steps in steps()) {
        let mut bundles = std::collections::BTreeMap::new();
        let grants = LazyCell::new(|| [10, 40, 90, 200].map(|until| grant(&format!("g{until}"), until)));
        let mut holding = Holding::new(trust());
        let mut on_disk = kept(&holding);
        let (mut now, mut highest, mut said) = (0, [0_u64; 2], Vec::new());
        for step in steps {
            let before = holding.clone();
            match step.clone() {
                Step::Offer { revision, stage, twin, stranger } => {
                    let bytes = bundles.entry((revision, stage == Stage::Shadow, twin, stranger)).or_insert_with(|| {
                        bundle(revision, stage, twin.then_some("twin"), if stranger { "mallory" } else { "bob" })
                    });
                    let taken = offer(&mut holding, bytes, now).is_ok();
                    let own = &mut highest[usize::from(stage == Stage::Shadow)];
                    let welcome = before.bundle(stage).is_none() && before.seen(stage).is_some_and(|seen| {
                        seen == BundleContents::danger_read_unverified(bytes, BUNDLE_BYTES_MAX).unwrap().seen()
                    });
                    prop_assert_eq!(taken, !stranger && (welcome || (revision > *own && now < 100)));
                    if taken {
                        *own = revision;
                        prop_assert_eq!(holding.bundle(stage).unwrap().bytes(), &bytes[..]);
                    }
                }
                Step::Grants(which) => {
                    let offered = which.iter().map(|at| grants[*at].as_slice());
                    let (sound, refused) = holding.examine_grants(offered, at(now));
                    prop_assert!(refused.is_empty());
                    holding.take_grants(sound);
                }
                Step::Clear => {
                    prop_assert_eq!(holding.clear_shadow(), before.shadow().is_some());
                }
                Step::Wait(seconds) => {
                    now += seconds;
                    let ended = holding.end_what_is_over(at(now));
                    if let Some(expired) = ended.expired {
                        prop_assert!(now >= 100 && !said.contains(&expired.revision()));
                        said.push(expired.revision());
                    }
                    prop_assert!(ended.grants.iter().all(|grant| grant.until() <= at(now)));
                }
                Step::Restart => {
                    let (next, lost) = Holding::restore(trust(), on_disk.clone(), at(now));
                    let missing = before.live().is_none() && before.seen(Stage::Live).is_some();
                    prop_assert_eq!(lost.len(), usize::from(missing), "{:?}", lost);
                    holding = next;
                    said.clear();
                    prop_assert_eq!(revisions(&holding), revisions(&before));
                    prop_assert_eq!(holding.live(), before.live());
                    prop_assert_eq!(holding.shadow(), before.shadow());
                    prop_assert_eq!(holding.grants(), before.grants());
                }
                Step::Crash => {
                    on_disk.state = None;
                    (holding, _) = Holding::restore(trust(), on_disk.clone(), at(now));
                    said.clear();
                    prop_assert_eq!(holding.live(), before.live());
                    // How high a shadow was that is gone is all that is forgotten.
                    highest[1] = holding.seen(Stage::Shadow).map_or(0, |seen| seen.revision);
                    if holding.live().is_none() {
                        highest[0] = 0;
                    }
                }
                Step::Swap => {
                    let swapped = KeptPolicy { live: on_disk.shadow.clone(), ..on_disk.clone() };
                    let (next, _) = Holding::restore(trust(), swapped, at(now));
                    prop_assert!(next.live().is_none(), "a shadow, or nothing");
                    prop_assert!(next.ever_signed() || before.seen(Stage::Live).is_none() && before.shadow().is_none());
                    holding = next;
                    said.clear();
                }
            }
            for (stage, highest) in [(Stage::Live, highest[0]), (Stage::Shadow, highest[1])] {
                prop_assert_eq!(holding.seen(stage).map_or(0, |seen| seen.revision), highest);
                if let Some(held) = holding.bundle(stage) {
                    prop_assert_eq!((held.stage(), held.revision()), (stage, highest));
                }
            }
            if !matches!(step, Step::Grants(_)) {
                let known = |grant: &HeldGrant| before.grants().contains(grant);
                prop_assert!(holding.grants().iter().all(known), "no grant comes back");
            }
            on_disk = kept(&holding);
        }
    }
}
