//! Who is believed to be who: the clauses of the X.509-SVID standard, each with the chains that break it.

use super::*;
use crate::testing::{Shape, Shown, TestAuthority};
use proptest::prelude::*;

const HOUR: Duration = Duration::from_secs(3600);
const ROLES: [PeerRole; 2] = [PeerRole::Client, PeerRole::Server];

fn verifier(bundles: BundleSet) -> PeerVerifier {
    PeerVerifier::new(bundles).unwrap()
}

/// `Ok` with the path of the SPIFFE ID, or `Err` with the code; the same in both roles.
fn outcome(verifier: &PeerVerifier, chain: &[CertificateDer<'_>], now: SystemTime) -> Result<String, &'static str> {
    let [one, other] = ROLES.map(|role| verifier.verify(chain, role, now).map_err(|reason| reason.code()));
    assert_eq!(one, other);
    one.map(|peer| peer.spiffe_id().path().to_owned())
}

fn check(table: &[(Shape, Result<&str, &'static str>)]) {
    let ca = TestAuthority::new("example.org");
    let verifier = verifier(ca.bundles());
    for (shape, expected) in table {
        let Shown { chain, .. } = ca.shaped("/web", *shape);
        let found = outcome(&verifier, &chain, SystemTime::now());
        assert_eq!(found.as_deref(), expected.as_deref(), "{shape:?}");
    }
}

#[test]
fn x_1_exactly_one_uri_san() {
    check(&[
        (Shape::Good, Ok("/web")),
        (Shape::DnsSanToo, Ok("/web")),
        (Shape::TwoUriSans, Err("several_spiffe_ids")),
        (Shape::SameUriSanTwice, Err("several_spiffe_ids")),
        (Shape::CommonNameOnly, Err("no_spiffe_id")),
        (Shape::DnsSanOnly, Err("no_spiffe_id")),
        (Shape::HttpsUriSan, Err("no_spiffe_id")),
        (Shape::UpperCaseScheme, Err("no_spiffe_id")),
    ]);
}

/// An authority under the one in the bundle is tainted, and revoked, by its key.
#[test]
fn an_authority_below_the_bundle_is_revoked_by_its_key() {
    let root = TestAuthority::new("example.org");
    let (one, other) = (root.intermediate_named("one"), root.intermediate_named("other"));
    let of = |authority: &TestAuthority| {
        let svid = authority.svid("/web", HOUR);
        let key = KeyDigest::of(&svid.chain()[1]).unwrap();
        (svid, key)
    };
    let ((by_one, key), (by_other, _)) = (of(&one), of(&other));
    let outcomes = |bundle: &TrustBundle| {
        let verifier = verifier(BundleSet::from_iter([bundle.clone()]));
        [&by_one, &by_other].map(|svid| outcome(&verifier, svid.chain(), SystemTime::now()))
    };
    let good = || Ok("/web".to_owned());
    let plain = root.bundle();
    assert_eq!(outcomes(&plain), [good(), good()]);
    let tainted = plain.clone().with_keys([key], []);
    assert_eq!((outcomes(&tainted), tainted.has_tainted()), ([good(), good()], true));
    assert_eq!(outcomes(&tainted.sound()), [Err("revoked_authority"), good()]);
    let revoked = plain.clone().with_keys([], [key]);
    assert_eq!(outcomes(&revoked), [Err("revoked_authority"), good()]);
    assert!(plain.has_all_of(&revoked) && !revoked.has_all_of(&plain));
    // The same, shown with certificates that have nothing to do with it.
    let mut chain = by_other.chain().to_vec();
    chain.push(by_one.chain()[1].clone());
    let held = verifier(BundleSet::from_iter([revoked]));
    assert_eq!(outcome(&held, &chain, SystemTime::now()), good());
}

/// Whoever reads it sees at once which of two clocks is wrong.
#[test]
fn a_time_that_does_not_fit_is_told_with_both_clocks() {
    let authority = TestAuthority::new("prod.example");
    let start = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let svid = authority.svid_valid("/web", start, start + HOUR);
    let verifier = verifier(authority.bundles());
    for (now, said) in [
        (
            start - Duration::from_secs(90),
            ["2027-01-15T08:00:00Z", "2027-01-15T07:58:30Z", "only from"],
        ),
        (
            start + 2 * HOUR,
            ["2027-01-15T09:00:00Z", "2027-01-15T10:00:00Z", "expired"],
        ),
    ] {
        let text = verifier
            .verify(svid.chain(), PeerRole::Client, now)
            .unwrap_err()
            .to_string();
        assert!(said.iter().all(|part| text.contains(part)), "{text}");
    }
    assert_eq!(Moment(-1).to_string(), "1970-01-01T00:00:00Z");
    assert_eq!(Moment(i64::MAX).to_string(), "9999-12-31T23:59:59Z");
}

#[test]
fn x_2_a_leaf_names_a_workload() {
    check(&[(Shape::TrustDomainId, Err("trust_domain_id"))]);
}

#[test]
fn x_3_san_is_critical_if_the_subject_is_empty() {
    check(&[
        (Shape::EmptySubject, Ok("/web")),
        (Shape::EmptySubjectSanNotCritical, Err("malformed")),
    ]);
}

#[test]
fn x_4_key_usage() {
    check(&[
        (Shape::NoKeyUsage, Err("wrong_key_usage")),
        (Shape::NoDigitalSignature, Err("wrong_key_usage")),
        (Shape::KeyUsageNotCritical, Err("wrong_key_usage")),
        (Shape::CrlSign, Err("wrong_key_usage")),
        (Shape::KeyCertSign, Err("not_a_leaf")),
        (Shape::IntermediateWithoutKeyCertSign, Err("not_an_authority")),
    ]);
}

#[test]
fn x_5_basic_constraints() {
    check(&[
        (Shape::CaLeaf, Err("not_a_leaf")),
        (Shape::UnreadableBasicConstraints, Err("malformed")),
        (Shape::Intermediate, Ok("/web")),
        (Shape::IntermediateWithoutCa, Err("not_an_authority")),
    ]);
}

#[test]
fn x_6_extended_key_usage() {
    check(&[
        (Shape::NoExtendedKeyUsage, Ok("/web")),
        (Shape::OnlyServerAuth, Err("wrong_extended_key_usage")),
        (Shape::OnlyClientAuth, Err("wrong_extended_key_usage")),
    ]);
}

#[test]
fn x_7_an_authority_does_not_authenticate() {
    let ca = TestAuthority::new("example.org");
    let root = ca.bundle().authorities()[0].clone();
    assert_eq!(
        outcome(&verifier(ca.bundles()), &[root], SystemTime::now()),
        Err("not_a_leaf")
    );
}

#[test]
fn x_8_uri_name_constraints_are_never_ignored() {
    let now = SystemTime::now();
    let ca = TestAuthority::new("example.org");
    let verifier = verifier(ca.bundles());
    for (permitted, excluded, expected) in [
        (&["example.org"][..], &[][..], Ok("/web")),
        (&["other.example", "example.org"], &[], Ok("/web")),
        (&[], &["other.example"], Ok("/web")),
        (&["other.example"], &[], Err("invalid_path")),
        (&["example.org"], &["example.org"], Err("invalid_path")),
        (&[".example.org"], &[], Err("invalid_path")),
        (&[""], &[], Err("invalid_path")),
    ] {
        let constrained = ca.constrained(permitted, excluded);
        let chain = constrained.svid("/web", HOUR).chain().to_vec();
        let found = outcome(&verifier, &chain, now);
        assert_eq!(found.as_deref(), expected.as_deref(), "{permitted:?} {excluded:?}");
        // It binds what is further below, too, wherever its certificate stands among those shown.
        let below = constrained.intermediate().svid("/web", HOUR);
        let mut chain = below.chain().to_vec();
        assert_eq!(
            outcome(&verifier, &chain, now).as_deref(),
            expected.as_deref(),
            "below {permitted:?}"
        );
        chain.swap(1, 2);
        assert_eq!(
            outcome(&verifier, &chain, now).as_deref(),
            expected.as_deref(),
            "below {permitted:?}"
        );
    }
}

/// The form that webpki is shown, shown by a peer: it is the original, and constrained as that.
#[test]
fn x_8_a_renamed_certificate_is_no_way_around() {
    let ca = TestAuthority::new("example.org");
    let verifier = verifier(ca.bundles());
    let now = SystemTime::now();
    for (permitted, with_original) in [(&["other.example"][..], "invalid_path"), (&["example.org"], "")] {
        let chain = ca.constrained(permitted, &[]).svid("/web", HOUR).chain().to_vec();
        let renamed = Renamed::of(&chain[1]).unwrap().der;
        // Alone, nobody signed it.
        let alone = [chain[0].clone(), renamed.clone()];
        assert_eq!(outcome(&verifier, &alone, now), Err("bad_signature"));
        for chain in [
            [chain[0].clone(), renamed.clone(), chain[1].clone()],
            [chain[0].clone(), chain[1].clone(), renamed.clone()],
        ] {
            let found = outcome(&verifier, &chain, now).err().unwrap_or_default();
            assert_eq!(found, with_original, "{permitted:?}");
        }
        // Nor with another signature behind it, so that its bytes are nobody's.
        let mut other = renamed.to_vec();
        *other.last_mut().unwrap() ^= 1;
        let chain = [chain[0].clone(), other.into(), chain[1].clone()];
        let found = outcome(&verifier, &chain, now).err().unwrap_or_default();
        assert_eq!(found, with_original, "{permitted:?}");
    }
}

#[test]
fn x_8_the_constraints_of_an_authority_of_the_bundle() {
    let now = SystemTime::now();
    for (permitted, expected) in [("example.org", Ok("/web")), ("other.example", Err("invalid_path"))] {
        let ca = TestAuthority::new("example.org").constrained(&[permitted], &[]);
        let svid = ca.svid("/web", HOUR);
        let anchor = svid.chain()[1].clone();
        let bundle = TrustBundle::new(ca.trust_domain(), vec![anchor], 1).unwrap();
        let found = outcome(&verifier([bundle].into_iter().collect()), svid.chain(), now);
        assert_eq!(found.as_deref(), expected.as_deref(), "{permitted}");
    }
}

/// Namesakes have other keys: their wrong signatures are not the reason.
#[test]
fn x_9_the_reason_is_that_of_the_path_that_can_be_meant() {
    let now = SystemTime::now();
    let [ca, namesake] = [(); 2].map(|()| TestAuthority::named("example.org", "one name"));
    let both = [namesake.bundle().to_der(), ca.bundle().to_der()].concat();
    let bundle = TrustBundle::from_der(ca.trust_domain(), &both, 2).unwrap();
    let verifier = verifier([bundle].into_iter().collect());
    assert_eq!(
        outcome(&verifier, ca.svid("/web", HOUR).chain(), now),
        Ok("/web".to_owned())
    );
    for (shape, expected) in [
        (Shape::IntermediateWithoutKeyCertSign, "not_an_authority"),
        (Shape::IntermediateWithoutCa, "not_an_authority"),
        (Shape::Expired, "expired"),
        (Shape::BrokenSignature, "bad_signature"),
        (Shape::SelfSigned, "unknown_authority"),
    ] {
        let Shown { chain, .. } = ca.shaped("/web", shape);
        assert_eq!(outcome(&verifier, &chain, now), Err(expected), "{shape:?}");
    }
    let constrained = ca.constrained(&["other.example"], &[]);
    assert_eq!(
        outcome(&verifier, constrained.svid("/web", HOUR).chain(), now),
        Err("invalid_path")
    );
    // Every authority has the one name. Self-issued ones count for a path length with us (RFC 5280 6.1.4 (l) spares them).
    let below = ca.childless("one name").intermediate_named("one name");
    let chain = below.svid("/web", HOUR).chain().to_vec();
    let reason = verifier.verify(&chain, PeerRole::Client, now).unwrap_err();
    assert!(reason.to_string().contains("path length"), "{reason}");
    let for_servers = ca.for_servers("one name");
    let chain = for_servers.svid("/web", HOUR).chain().to_vec();
    let reason = verifier.verify(&chain, PeerRole::Client, now).unwrap_err();
    assert_eq!(reason.code(), "wrong_extended_key_usage");
    assert!(verifier.verify(&chain, PeerRole::Server, now).is_ok());
}

#[test]
fn x_9_path_and_dates() {
    check(&[
        (Shape::SelfSigned, Err("unknown_authority")),
        (Shape::Expired, Err("expired")),
        (Shape::NotYetValid, Err("not_yet_valid")),
        (Shape::BrokenSignature, Err("bad_signature")),
        (Shape::Fillers, Ok("/web")),
        (Shape::OtherTrustDomain, Err("unknown_trust_domain")),
    ]);
}

#[test]
fn x_9_each_peer_against_the_bundle_of_its_own_trust_domain_only() {
    let (ours, theirs) = (TestAuthority::new("example.org"), TestAuthority::new("other.example"));
    let verifier = verifier([ours.bundle(), theirs.bundle()].into_iter().collect());
    let now = SystemTime::now();
    assert_eq!(
        outcome(&verifier, ours.svid("/web", HOUR).chain(), now),
        Ok("/web".to_owned())
    );
    assert_eq!(
        outcome(&verifier, theirs.svid("/web", HOUR).chain(), now),
        Ok("/web".to_owned())
    );
    // Both authorities are known, but this one signs for somebody else's trust domain.
    let Shown { chain, .. } = ours.shaped("/web", Shape::OtherTrustDomain);
    assert_eq!(
        Leaf::parse(&chain[0]).unwrap().spiffe_id().trust_domain(),
        &theirs.trust_domain()
    );
    assert_eq!(outcome(&verifier, &chain, now), Err("unknown_authority"));
    // Nor does the right authority help as a certificate of the chain.
    let chain = [
        chain[0].clone(),
        theirs.bundle().authorities()[0].clone(),
        ours.bundle().authorities()[0].clone(),
    ];
    assert_eq!(outcome(&verifier, &chain, now), Err("unknown_authority"));
}

#[test]
fn x_9_identity_is_the_leafs() {
    let ca = TestAuthority::new("example.org");
    let (web, admin, stranger) = (
        ca.svid("/web", HOUR),
        ca.svid("/admin", HOUR),
        TestAuthority::new("example.org").svid("/web", HOUR),
    );
    let verifier = verifier(ca.bundles());
    let chain = [web.chain()[0].clone(), admin.chain()[0].clone()];
    assert_eq!(outcome(&verifier, &chain, SystemTime::now()), Ok("/web".to_owned()));
    let chain = [stranger.chain()[0].clone(), web.chain()[0].clone()];
    assert_eq!(outcome(&verifier, &chain, SystemTime::now()), Err("unknown_authority"));
}

#[test]
fn x_9_any_authority_of_the_bundle_will_do_and_none_trusts_nobody() {
    let [old, new, stranger] = [(); 3].map(|()| TestAuthority::new("example.org"));
    let both = [old.bundle().to_der(), new.bundle().to_der()].concat();
    let both = TrustBundle::from_der(old.trust_domain(), &both, 2).unwrap();
    let none = TrustBundle::new(old.trust_domain(), Vec::new(), 3).unwrap();
    let (both, none) = (
        verifier([both].into_iter().collect()),
        verifier([none].into_iter().collect()),
    );
    let nothing = verifier(BundleSet::default());
    let now = SystemTime::now();
    for (authority, expected) in [
        (&old, Ok("/a".to_owned())),
        (&new, Ok("/a".to_owned())),
        (&stranger, Err("unknown_authority")),
    ] {
        let svid = authority.svid("/a", HOUR);
        assert_eq!(outcome(&both, svid.chain(), now), expected);
        assert_eq!(outcome(&none, svid.chain(), now), Err("unknown_authority"));
        assert_eq!(outcome(&nothing, svid.chain(), now), Err("unknown_trust_domain"));
    }
}

#[test]
fn x_9_time_is_an_argument_and_authorities_end_too() {
    let ca = TestAuthority::new("example.org");
    let verifier = verifier(ca.bundles());
    let svid = ca.svid("/web", HOUR);
    let second = Duration::from_secs(1);
    let (first, last) = (svid.leaf().not_before(), svid.leaf().not_after());
    for (now, expected) in [
        (UNIX_EPOCH, Err("not_yet_valid")),
        (UNIX_EPOCH - second, Err("not_yet_valid")),
        (first - second, Err("not_yet_valid")),
        (first, Ok("/web".to_owned())),
        (last, Ok("/web".to_owned())),
        (last + second, Err("expired")),
    ] {
        assert_eq!(outcome(&verifier, svid.chain(), now), expected, "{now:?}");
    }
    // A leaf older than its authority is not valid before it, and one that outlives it dies with it.
    let now = SystemTime::now();
    let svid = ca.svid_valid("/web", now - HOUR, now + HOUR);
    assert_eq!(outcome(&verifier, svid.chain(), now - HOUR / 2), Err("not_yet_valid"));
    let svid = ca.svid("/web", TestAuthority::LIFE + HOUR);
    let end = now + TestAuthority::LIFE + Duration::from_secs(60);
    assert_eq!(outcome(&verifier, svid.chain(), end), Err("expired"));
}

#[test]
fn caps_come_before_work() {
    let ca = TestAuthority::new("example.org");
    let verifier = verifier(ca.bundles());
    let now = SystemTime::now();
    let leaf = ca.svid("/web", HOUR).chain()[0].clone();
    assert_eq!(outcome(&verifier, &[], now), Err("no_certificate"));
    assert_eq!(
        outcome(&verifier, &vec![leaf.clone(); CHAIN_MAX], now),
        Ok("/web".to_owned())
    );
    assert_eq!(
        outcome(&verifier, &vec![leaf.clone(); CHAIN_MAX + 1], now),
        Err("malformed")
    );
    let large = CertificateDer::from(vec![0x30; CERTIFICATE_BYTES_MAX + 1]);
    assert_eq!(
        outcome(&verifier, &[leaf.clone(), large.clone()], now),
        Err("malformed")
    );
    let reason = verifier
        .verify(&[large], PeerRole::Client, now)
        .unwrap_err()
        .to_string();
    assert!(
        reason.ends_with("16385 bytes are more than the 16384 a certificate may have"),
        "{reason}"
    );
    let longer = CertificateDer::from([&leaf, &[0_u8][..]].concat());
    assert_eq!(outcome(&verifier, &[longer], now), Err("malformed"));
}

#[test]
fn evidence_tells_who_it_is() {
    let ca = TestAuthority::new("example.org");
    let peer = ca.peer("/web");
    assert_eq!(
        (peer.serial(), peer.not_after()),
        (peer.leaf().serial(), peer.leaf().not_after())
    );
    let web = peer.spiffe_id().clone();
    assert_eq!(peer.clone().require(&web).as_ref(), Ok(&peer));
    let expected = ca.trust_domain().member("/db").unwrap();
    assert_eq!(
        peer.require(&expected),
        Err(PeerRejected::UnexpectedPeer { expected, found: web })
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_changed_byte_is_overlooked_and_none_panics(place in any::<prop::sample::Index>(), flip in 1_u8..) {
        let ca = TestAuthority::new("example.org");
        let mut der = ca.svid("/web", HOUR).chain()[0].to_vec();
        let place = place.index(der.len());
        der[place] ^= flip;
        let chain = [CertificateDer::from(der)];
        // The reasons of the two roles may differ: the extended key usage is read only up to what is asked of it.
        for role in ROLES {
            prop_assert!(verifier(ca.bundles()).verify(&chain, role, SystemTime::now()).is_err());
        }
    }
}
