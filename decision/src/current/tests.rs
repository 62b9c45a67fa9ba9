//! The feed through directories, bundles, shadows, grants, restarts and refusals.

use std::fs;
use std::time::Duration;

use hoplite_policy::bundle::{Draft, Meta};
use hoplite_policy::grant::{GrantDraft, GrantScope};
use hoplite_seal::SigningKey;
use zeroize::Zeroizing;

use hoplite_identity::TrustDomain;
use hoplite_policy::bundle::{Bundle, EngineVersion};
use hoplite_policy::holding::PolicyTrust;
use hoplite_seal::TrustedSigners;

use super::*;

const FIRST: &str = "@id(\"first\") permit (principal, action, resource);";
const OTHER: &str = "@id(\"other\") permit (principal, action, resource);";

fn key(name: &str) -> SigningKey {
    let mut seed = [7; 32];
    seed[..name.len()].copy_from_slice(name.as_bytes());
    SigningKey::from_seed(name, Zeroizing::new(seed)).unwrap()
}

fn trust_domain() -> TrustDomain {
    TrustDomain::parse("prod.acme").unwrap()
}

fn trust() -> PolicyTrust {
    let signers = ["alice", "bob"].map(|name| key(name).signer().clone());
    PolicyTrust::new(TrustedSigners::new(signers).unwrap(), trust_domain())
}

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn later(seconds: u64) -> SystemTime {
    now() + Duration::from_secs(seconds)
}

fn draft(revision: u64, stage: Stage, text: &str) -> Draft {
    let source = Source {
        name: "a.cedar".to_owned(),
        text: text.to_owned(),
    };
    let meta = Meta {
        trust_domain: trust_domain(),
        revision,
        parent: None,
        created: now(),
        expires: later(100),
        min_engine: EngineVersion::THIS,
        critical: Vec::new(),
        stage,
        note: None,
    };
    Bundle::build(&[source], meta).unwrap()
}

fn bundle(revision: u64, stage: Stage, text: &str) -> Vec<u8> {
    draft(revision, stage, text).sign(&[&key("alice")]).unwrap()
}

fn look(directory: &mut Directory, feed: &CurrentPolicy) {
    directory.look(|path, sources| feed.offer_directory(path, sources, SystemTime::now()));
}

fn ids(snapshot: &Snapshot) -> Vec<&str> {
    snapshot.policy_ids().collect()
}

/// The ids in force, and the revision of their bundle.
fn live(feed: &CurrentPolicy) -> (Vec<String>, Option<u64>) {
    let in_force = feed.in_force();
    let ids = ids(in_force.live()).into_iter().map(str::to_owned).collect();
    (ids, in_force.bundle_revision())
}

fn is_live(feed: &CurrentPolicy, id: &str, revision: u64) {
    assert_eq!(live(feed), (vec![id.to_owned()], Some(revision)));
}

#[test]
fn a_bundle_replaces_another_only_when_it_is_signed_newer_and_understood() {
    let state = tempfile::tempdir().unwrap();
    let feed = CurrentPolicy::new(state.path(), Some(trust()), now());
    assert!(feed.in_force().live().deny_all_reason().is_some());
    feed.offer(&bundle(5, Stage::Live, FIRST), now()).unwrap();
    is_live(&feed, "first", 5);
    let mut epoch = feed.subscribe();
    epoch.borrow_and_update();

    let mallory = draft(6, Stage::Live, OTHER).sign(&[&key("mallory")]).unwrap();
    for (bytes, at, reason) in [
        (mallory, now(), "`mallory`"),
        (bundle(4, Stage::Live, OTHER), now(), "lower than 5"),
        (bundle(5, Stage::Live, OTHER), now(), "another bundle of revision 5"),
        (bundle(6, Stage::Live, OTHER), later(100), "expired"),
        (bundle(6, Stage::Live, "permit ("), now(), "a.cedar:1"),
        (b"no bundle".to_vec(), now(), "bundle"),
    ] {
        let refused = feed.offer(&bytes, at).unwrap_err().to_string();
        assert!(refused.contains(reason), "{refused}");
        is_live(&feed, "first", 5);
        assert!(
            feed.status().faults[0].reason.contains(reason),
            "{:?}",
            feed.status().faults
        );
    }
    assert!(!epoch.has_changed().unwrap(), "nothing was announced");
    feed.offer(&bundle(5, Stage::Live, FIRST), now()).unwrap();
    feed.offer(&bundle(6, Stage::Live, OTHER), now()).unwrap();
    is_live(&feed, "other", 6);
    assert!(epoch.has_changed().unwrap() && feed.status().faults.is_empty());
    assert_eq!(
        (feed.revisions(), feed.status().signed_by),
        ((6, 0), vec!["alice".to_owned()])
    );
}

#[test]
fn an_engine_that_does_not_know_shadows_refuses_one_and_does_not_enforce_it() {
    let state = tempfile::tempdir().unwrap();
    let old = PolicyTrust {
        known_critical: &[],
        ..trust()
    };
    let feed = CurrentPolicy::new(state.path(), Some(old), now());
    feed.offer(&bundle(1, Stage::Live, FIRST), now()).unwrap();
    let refused = feed
        .offer(&bundle(2, Stage::Shadow, OTHER), now())
        .unwrap_err()
        .to_string();
    assert!(refused.contains("`shadow`"), "{refused}");
    is_live(&feed, "first", 1);
    assert!(feed.in_force().shadow().is_none());
}

#[test]
fn a_shadow_lies_beside_what_is_in_force() {
    let state = tempfile::tempdir().unwrap();
    let feed = CurrentPolicy::new(state.path(), Some(trust()), now());
    feed.offer(&bundle(1, Stage::Live, FIRST), now()).unwrap();
    let before = feed.in_force();
    feed.offer(&bundle(2, Stage::Shadow, OTHER), now()).unwrap();
    assert!(Arc::ptr_eq(before.live(), feed.in_force().live()), "not compiled again");
    assert_eq!(ids(feed.in_force().shadow().unwrap()), ["other"]);
    feed.offer(&bundle(1, Stage::Shadow, FIRST), now()).unwrap_err();
    feed.offer(&bundle(3, Stage::Live, OTHER), now()).unwrap();
    assert!(
        feed.in_force().shadow().is_some(),
        "a new live policy leaves the shadow"
    );
    assert_eq!(feed.revisions(), (3, 2));
    feed.clear_shadow(now());
    assert!(feed.in_force().shadow().is_none());
    is_live(&feed, "other", 3);
}

#[test]
fn the_last_bundle_outlives_a_restart_and_its_end_and_nothing_older_comes_back() {
    let (state, policies) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let start = |trust| CurrentPolicy::new(state.path(), trust, later(500));
    CurrentPolicy::new(state.path(), Some(trust()), now())
        .offer(&bundle(5, Stage::Live, FIRST), now())
        .unwrap();

    let feed = start(Some(trust()));
    is_live(&feed, "first", 5);
    assert!(feed.in_force().stale(later(100)) && !feed.in_force().stale(later(99)));
    assert!(feed.offer(&bundle(4, Stage::Live, OTHER), now()).is_err());

    // From the first bundle on the directory does not count.
    fs::write(policies.path().join("b.cedar"), OTHER).unwrap();
    look(&mut Directory::new(policies.path().to_owned()), &feed);
    is_live(&feed, "first", 5);

    // What cannot be believed any more denies, and the directory is no way round that.
    for trust in [None, Some(PolicyTrust::new(TrustedSigners::default(), trust_domain()))] {
        let feed = start(trust);
        look(&mut Directory::new(policies.path().to_owned()), &feed);
        assert!(
            feed.in_force()
                .live()
                .deny_all_reason()
                .unwrap()
                .contains("kept bundle")
        );
    }
    fs::write(state.path().join("policy-live.bundle"), b"spoilt").unwrap();
    let feed = start(Some(trust()));
    assert!(
        feed.in_force()
            .live()
            .deny_all_reason()
            .unwrap()
            .contains("kept bundle")
    );
    feed.offer(&bundle(6, Stage::Live, OTHER), now()).unwrap();
    is_live(&feed, "other", 6);
}

#[test]
fn what_could_not_be_kept_is_in_force_and_is_kept_at_a_later_look() {
    let state = tempfile::tempdir().unwrap();
    let feed = CurrentPolicy::new(state.path(), Some(trust()), now());
    let file = state.path().join("policy-live.bundle");
    fs::create_dir(&file).unwrap();
    feed.offer(&bundle(1, Stage::Live, FIRST), now()).unwrap();
    is_live(&feed, "first", 1);
    let again = feed.end_what_is_over(now()).unwrap();
    assert!(again < later(100), "before the bundle's own end: {again:?}");
    fs::remove_dir(&file).unwrap();
    assert_eq!(feed.end_what_is_over(again), Some(later(100)), "it is kept");
    drop(feed);
    is_live(&CurrentPolicy::new(state.path(), Some(trust()), now()), "first", 1);
}

#[test]
fn a_bundle_takes_over_from_a_directory() {
    let (state, policies) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(policies.path().join("a.cedar"), FIRST).unwrap();
    let feed = CurrentPolicy::new(state.path(), Some(trust()), now());
    let mut directory = Directory::new(policies.path().to_owned());
    look(&mut directory, &feed);
    assert_eq!(live(&feed), (vec!["first".to_owned()], None));
    feed.offer(&bundle(1, Stage::Live, OTHER), now()).unwrap();
    is_live(&feed, "other", 1);
    fs::write(policies.path().join("a.cedar"), "permit (").unwrap();
    look(&mut directory, &feed);
    look(&mut directory, &feed);
    is_live(&feed, "other", 1);
}

fn grant(by: [&str; 2]) -> Vec<u8> {
    let principal = GrantScope::Workload("spiffe://prod.acme/ops".to_owned());
    let draft = GrantDraft::new(
        &trust_domain(),
        "inc-1",
        "INC-1",
        "stuck",
        principal,
        &"ledger".parse().unwrap(),
        (now(), later(3600)),
        now(),
    );
    let once = draft.unwrap().sign(&key(by[0])).unwrap();
    GrantDraft::sign_too(&once, &key(by[1])).unwrap()
}

#[test]
fn a_grant_is_in_force_as_long_as_it_is_offered() {
    let state = tempfile::tempdir().unwrap();
    let feed = CurrentPolicy::new(state.path(), Some(trust()), now());
    feed.offer(&bundle(1, Stage::Live, FIRST), now()).unwrap();
    for (signers, refused) in [
        (["alice", "alice"], "only `alice`"),
        (["alice", "mallory"], "`mallory`"),
    ] {
        feed.offer_grants(&[grant(signers)], now());
        is_live(&feed, "first", 1);
        assert!(
            feed.status().faults[0].reason.contains(refused),
            "{:?}",
            feed.status().faults
        );
    }
    feed.offer_grants(&[grant(["alice", "bob"])], now());
    assert_eq!(live(&feed).0, ["break-glass/inc-1", "first"]);
    assert_eq!(feed.status().grants, [("break-glass/inc-1".to_owned(), later(3600))]);
    feed.offer(&bundle(2, Stage::Live, OTHER), now()).unwrap();
    assert_eq!(
        live(&feed).0,
        ["break-glass/inc-1", "other"],
        "a new bundle leaves the grant"
    );
    feed.offer_grants(&[] as &[Vec<u8>], now());
    is_live(&feed, "other", 2);
}

#[test]
fn a_grant_goes_at_its_end_and_everybody_hears_of_it() {
    let state = tempfile::tempdir().unwrap();
    let feed = CurrentPolicy::new(state.path(), Some(trust()), now());
    feed.offer(&bundle(1, Stage::Live, FIRST), now()).unwrap();
    assert_eq!(feed.end_what_is_over(now()), Some(later(100)), "the bundle's own end");
    let both = [grant(["alice", "bob"])];
    feed.offer_grants(&both, now());
    let epoch = feed.epoch();
    assert_eq!(feed.end_what_is_over(later(99)), Some(later(100)));
    assert_eq!(feed.epoch(), epoch, "nothing has changed");
    assert_eq!(feed.end_what_is_over(later(100)), Some(later(3600)));
    assert_eq!(
        feed.epoch(),
        epoch + 1,
        "where a stale policy denies, it does so from now on"
    );
    assert_eq!(feed.end_what_is_over(later(3599)), Some(later(3600)));
    assert_eq!(feed.epoch(), epoch + 1, "that is said once");
    assert_eq!(feed.end_what_is_over(later(3600)), None);
    assert_eq!(feed.epoch(), epoch + 2);
    is_live(&feed, "first", 1);
    assert!(feed.status().grants.is_empty());

    // The agent may go on sending it: it is over, and no fault.
    feed.offer_grants(&both, later(3601));
    is_live(&feed, "first", 1);
    assert!(feed.status().faults.is_empty(), "{:?}", feed.status().faults);
}

#[test]
fn the_last_good_policy_outlives_a_restart_but_not_its_removal() {
    let (policies, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = policies.path().join("a.cedar");
    let start = || {
        let feed = CurrentPolicy::new(state.path(), None, SystemTime::now());
        let mut directory = Directory::new(policies.path().to_owned());
        look(&mut directory, &feed);
        (feed, directory)
    };
    let in_force = |feed: &CurrentPolicy| {
        (
            feed.in_force().live.deny_all_reason().is_none(),
            feed.status().faults.len(),
        )
    };

    fs::write(&file, "permit (").unwrap();
    assert_eq!(in_force(&start().0), (false, 1), "nothing was ever good");
    fs::write(&file, "@id(\"a\") permit (principal, action, resource);").unwrap();
    let (feed, _) = start();
    let revision = feed.in_force().live.revision().to_owned();
    assert_eq!(in_force(&feed), (true, 0));

    fs::write(&file, "permit (").unwrap();
    let (feed, mut directory) = start();
    assert_eq!(
        in_force(&feed),
        (true, 1),
        "the last good one, and what is wrong with the files"
    );
    assert_eq!(feed.in_force().live.revision(), revision);

    fs::remove_file(&file).unwrap();
    look(&mut directory, &feed);
    look(&mut directory, &feed);
    assert_eq!(in_force(&feed), (false, 0), "taken away on purpose");
    fs::write(&file, "permit (").unwrap();
    assert_eq!(in_force(&start().0), (false, 1), "it does not come back");
}

#[test]
fn a_kept_shadow_does_not_decide() {
    let state = tempfile::tempdir().unwrap();
    let feed = CurrentPolicy::new(state.path(), Some(trust()), now());
    feed.offer(&bundle(1, Stage::Live, FIRST), now()).unwrap();
    drop(feed);
    let kept = walk(state.path());
    assert_eq!(kept.len(), 2, "the bundle and the state: {kept:?}");
    fs::write(state.path().join("policy-live.bundle"), bundle(2, Stage::Shadow, OTHER)).unwrap();
    let feed = CurrentPolicy::new(state.path(), Some(trust()), now());
    let reason = feed.in_force().live().deny_all_reason().map(str::to_owned);
    assert!(reason.is_some_and(|reason| reason.contains("may not decide")));
}

fn walk(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.is_file()).collect()
}

#[test]
fn a_shadow_outlives_an_edit_of_the_directory() {
    let (state, policies) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let feed = CurrentPolicy::new(state.path(), Some(trust()), now());
    let source = |text: &str| {
        Ok(vec![Source {
            name: "a.cedar".to_owned(),
            text: text.to_owned(),
        }])
    };
    feed.offer_directory(policies.path(), source(FIRST), now());
    feed.offer(&bundle(1, Stage::Shadow, OTHER), now()).unwrap();
    feed.offer_directory(policies.path(), source(OTHER), now());
    assert_eq!(ids(feed.in_force().live()), ["other"]);
    assert!(feed.in_force().shadow().is_some());
}
