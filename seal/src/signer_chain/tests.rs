//! The chain over changes, forgeries, gaps, forks and restarts.

use proptest::prelude::*;

use super::*;
use crate::signer::tests::{key, trusted};
use crate::signer_set::SignerSet;

const PEOPLE: [&str; 4] = ["alice", "bob", "carol", "dave"];

fn domain() -> TrustDomain {
    TrustDomain::parse("prod.example").unwrap()
}

fn named(names: &[&str]) -> SignerChain {
    SignerChain::configured(&domain(), &trusted(names)).unwrap()
}

/// The set after the newest, signed by these.
fn next(chain: &SignerChain, names: &[&str], quorum: Option<u32>, by: &[&str]) -> Vec<u8> {
    let draft = SignerSet::after(chain.newest(), &trusted(names), quorum)
        .unwrap()
        .encode();
    by.iter()
        .fold(draft, |bytes, name| SignerSet::sign_too(&bytes, &key(name)).unwrap())
}

fn all(chain: &SignerChain) -> Vec<Vec<u8>> {
    chain.since(0).map(<[u8]>::to_vec).collect()
}

/// What the CA has: alice and bob, then carol instead of bob, then alice alone.
fn three() -> SignerChain {
    let mut chain = named(&["alice", "bob"]);
    for (names, by) in [
        (vec!["alice", "carol"], ["alice", "bob"]),
        (vec!["alice"], ["alice", "carol"]),
    ] {
        let set = next(&chain, &names, None, &by);
        assert!(chain.follow(&[set]).unwrap());
    }
    chain
}

#[test]
fn a_set_follows_when_a_quorum_of_the_one_before_has_signed_it() {
    let one = named(&["alice", "bob"]);
    let check = |bytes: Vec<u8>, expected: &str| {
        let mut chain = one.clone();
        match chain.follow(&[bytes]) {
            Ok(changed) => assert!(changed && expected.is_empty(), "{expected}"),
            Err(why) => {
                assert!(!expected.is_empty() && why.to_string().contains(expected), "{why}");
                assert_eq!(chain, one, "nothing has changed");
            }
        }
    };
    let new = ["alice", "carol"];
    check(next(&one, &new, None, &["alice", "bob"]), "");
    check(next(&one, &new, None, &[]), "nobody signed it");
    check(next(&one, &new, None, &["alice"]), "only `alice` signed it, and 2");
    check(
        next(&one, &new, None, &["alice", "carol"]),
        "`carol` signed it and is not trusted",
    );
    check(next(&one, &new, None, &["alice", "mallory"]), "`mallory`");
    let two = three();
    let third = two.since(3).next().unwrap().to_vec();
    check(third, "gap");
    let foreign = SignerChain::configured(
        &TrustDomain::parse("other.example").unwrap(),
        &trusted(&["alice", "bob"]),
    );
    check(next(&foreign.unwrap(), &new, None, &["alice", "bob"]), "another one");
    check(b"no set".to_vec(), "not whole");
}

#[test]
fn nothing_goes_back_branches_off_or_is_left_out() {
    let chain = three();
    let older = &all(&chain)[..2];
    let mut node = chain.clone();
    assert_eq!(node.follow(older).unwrap_err(), NotFollowed::Lower { have: 3, got: 2 });
    let empty: [&[u8]; 0] = [];
    assert_eq!(node.follow(&empty).unwrap_err(), NotFollowed::Nothing);

    let mut fork = SignerChain::linked(read(older).unwrap()).unwrap();
    let other = next(&fork, &["alice", "dave"], None, &["alice", "carol"]);
    assert!(fork.follow(&[other]).unwrap());
    assert_eq!(node.follow(&all(&fork)).unwrap_err(), NotFollowed::Fork(3));
    let later = next(&fork, &["dave"], None, &["alice", "dave"]);
    assert!(fork.follow(&[later]).unwrap());
    assert_eq!(node.follow(&all(&fork)).unwrap_err(), NotFollowed::Fork(3));
    assert_eq!(
        node.follow(&all(&fork)[3..]).unwrap_err(),
        NotFollowed::Fork(3),
        "nor is its end alone"
    );
    assert_eq!(node, chain);

    let mut yesterday = SignerChain::linked(read(&all(&chain)[..1]).unwrap()).unwrap();
    assert!(matches!(
        yesterday.follow(&all(&chain)[2..]),
        Err(NotFollowed::Gap { have: 1, got: 3 })
    ));
    assert!(yesterday.follow(&all(&chain)).unwrap(), "it walks forward");
    assert_eq!(yesterday, chain);
    assert!(!yesterday.follow(&all(&chain)).unwrap(), "and is there");
}

#[test]
fn signers_that_were_only_named_find_their_place() {
    let chain = three();
    // This node was set up with what is the second set by now.
    let mut node = named(&["alice", "carol"]);
    let two = &all(&chain)[..2];
    assert!(
        !node.follow(two).unwrap(),
        "nobody has signed anything that follows yet"
    );
    assert_eq!(node, named(&["alice", "carol"]));
    assert!(node.follow(&all(&chain)).unwrap());
    assert_eq!((node.version(), node.digest()), (3, chain.digest()));
    let strangers = named(&["dave", "bob"]).follow(&all(&chain)).unwrap_err();
    assert_eq!(strangers, NotFollowed::Fork(1));

    // Whoever has their names and not their signatures gets nowhere.
    let mut made_up = named(&["alice", "bob"]);
    let set = next(&made_up, &["alice", "carol"], None, &["alice", "bob"]);
    made_up.follow(&[set]).unwrap();
    let bytes = next(&made_up, &["mallory"], None, &["alice"]);
    let offered = [all(&made_up), vec![bytes]].concat();
    let mut node = named(&["alice", "carol"]);
    assert!(node.follow(&offered).is_err());
    assert_eq!(node, named(&["alice", "carol"]));
}

#[test]
fn what_comes_first_must_be_a_chain_of_this_trust_domain() {
    let chain = three();
    assert_eq!(SignerChain::on_first_use(&domain(), &all(&chain)).unwrap(), chain);
    let other = TrustDomain::parse("other.example").unwrap();
    let error = SignerChain::on_first_use(&other, &all(&chain)).unwrap_err();
    assert!(error.to_string().contains("`prod.example`"), "{error}");
    let unsigned = next(&chain, &["mallory"], None, &[]);
    let error = SignerChain::on_first_use(&domain(), &[all(&chain), vec![unsigned]].concat()).unwrap_err();
    assert!(matches!(error, NotFollowed::Bad { version: 4, .. }), "{error}");
}

#[test]
fn a_chain_is_kept_whole_or_not_at_all() {
    let chain = three();
    assert_eq!(SignerChain::restore(&chain.encode()).unwrap(), chain);
    let mut bytes = chain.encode();
    assert!(SignerChain::restore(&bytes[..bytes.len() - 1]).is_err());
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    assert!(
        SignerChain::restore(&bytes).is_err(),
        "a signature that no longer holds"
    );
}

#[derive(Debug, Clone)]
struct Change {
    members: Vec<bool>,
    quorum: Option<u32>,
    /// Who of all people signs, the stranger at the end.
    by: Vec<bool>,
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let people = || proptest::collection::vec(any::<bool>(), PEOPLE.len() + 1);
    let change = (people(), proptest::option::of(1..4u32), people()).prop_map(|(members, quorum, by)| Change {
        members,
        quorum,
        by,
    });
    proptest::collection::vec(change, 1..12)
}

fn chosen(which: &[bool]) -> Vec<&'static str> {
    let all = PEOPLE.into_iter().chain(["mallory"]);
    all.zip(which)
        .filter_map(|(name, chosen)| chosen.then_some(name))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whoever follows from any earlier set comes to the same newest one; a change counts only with a quorum's signatures.
    #[test]
    fn a_chain_grows_by_quorums_alone(changes in changes(), from in any::<prop::sample::Index>(), cut in any::<prop::sample::Index>()) {
        let mut chain = named(&["alice", "bob", "carol"]);
        let mut states = vec![chain.clone()];
        for Change { members, quorum, by } in changes {
            let (members, by) = (chosen(&members), chosen(&by));
            let Ok(draft) = SignerSet::after(chain.newest(), &trusted(&members), quorum) else { continue };
            let bytes = by.iter().fold(draft.encode(), |bytes, name| SignerSet::sign_too(&bytes, &key(name)).unwrap());
            let trusted_now: Vec<String> = chain.newest().signers().names().map(str::to_owned).collect();
            let only_trusted = by.iter().all(|name| trusted_now.iter().any(|known| known == name));
            let enough = by.len() >= chain.newest().quorum() as usize;
            let before = chain.clone();
            let followed = chain.follow(&[bytes]).is_ok();
            prop_assert_eq!(followed, only_trusted && enough);
            if followed {
                prop_assert_eq!(chain.version(), before.version() + 1);
                states.push(chain.clone());
            } else {
                prop_assert_eq!(&chain, &before);
            }
        }
        let sets = all(&chain);
        let mut late = from.get(&states).clone();
        let had = late.version();
        late.follow(&sets).unwrap();
        prop_assert_eq!(&late, &chain);
        prop_assert_eq!(&SignerChain::restore(&chain.encode()).unwrap(), &chain);
        // A part of it leads to a part of it, or nowhere.
        let mut partly = from.get(&states).clone();
        let upto = cut.index(sets.len()) + 1;
        match partly.follow(&sets[..upto]) {
            Ok(_) => prop_assert_eq!(partly.version(), had.max(upto as u64)),
            Err(NotFollowed::Lower { .. }) => prop_assert!((upto as u64) < had),
            Err(why) => prop_assert!(false, "{}", why),
        }
    }

    /// One bit of what travels, changed: nothing that is believed comes of it.
    #[test]
    fn a_changed_bit_changes_nobody(at in any::<prop::sample::Index>(), bit in 0..8u32) {
        let chain = three();
        let mut sets = all(&chain);
        let which = 1 + at.index(sets.len() - 1);
        let byte = at.index(sets[which].len());
        sets[which][byte] ^= 1 << bit;
        let mut node = named(&["alice", "bob"]);
        prop_assert!(node.follow(&sets).is_err());
        prop_assert_eq!(node, named(&["alice", "bob"]));
    }
}
