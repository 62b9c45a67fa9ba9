//! Who may and who may not pass for the CA that a fingerprint names.

use super::*;
use crate::testing::{Shape, TestAuthority};
use crate::tls::{ClientAuth, server_config};
use crate::{PrivatePkcs8KeyDer, X509Svid};
use rustls::{ClientConnection, ProtocolVersion, ServerConnection};

const HOUR: Duration = Duration::from_secs(3600);
const CA: &str = "/hoplite/ca";

type Chain = Vec<CertificateDer<'static>>;

fn root(authority: &TestAuthority) -> CertificateDer<'static> {
    authority.bundle().authorities()[0].clone()
}

/// What a CA of this authority shows.
fn chain(authority: &TestAuthority, path: &str) -> Chain {
    [authority.svid(path, HOUR).chain(), &[root(authority)]].concat()
}

fn introduced_as(pinned: &CertificateDer<'_>, chain: &[CertificateDer<'_>]) -> Result<TrustBundle, NotIntroduced> {
    introduce(Fingerprint::of(pinned), chain, SystemTime::now())
}

#[test]
fn the_ca_of_that_authority_is_believed_and_nothing_but_its_authority_comes_of_it() {
    let authority = TestAuthority::new("prod.example");
    let bundle = introduced_as(&root(&authority), &chain(&authority, CA)).unwrap();
    assert_eq!(bundle.trust_domain().as_str(), "prod.example");
    assert_eq!((bundle.authorities(), bundle.sequence()), (&[root(&authority)][..], 0));
    // What comes after it changes nothing: older authorities stand there.
    let stranger = root(&TestAuthority::new("prod.example"));
    let longer = [&chain(&authority, CA)[..], std::slice::from_ref(&stranger)].concat();
    let bundle = introduced_as(&root(&authority), &longer).unwrap();
    assert_eq!(bundle.authorities(), [root(&authority)]);
    // Nor is that other one believed by what the first has signed.
    assert!(introduced_as(&stranger, &longer).is_err());
    // With an authority between, which the bundle does not hold.
    let below = authority.intermediate();
    let bundle = introduced_as(&root(&authority), &chain(&below, CA)).unwrap();
    assert_eq!(bundle.authorities(), [root(&authority)]);
}

#[test]
fn nobody_else_is_believed() {
    let authority = TestAuthority::new("prod.example");
    let stranger = TestAuthority::new("prod.example");
    let (good, theirs) = (chain(&authority, CA), chain(&stranger, CA));
    let check = |what: &str, pinned: &CertificateDer<'_>, chain: &[CertificateDer<'_>], expected: &str| {
        let error = introduced_as(pinned, chain).expect_err(what).to_string();
        assert!(error.contains(expected), "{what}: {error}");
    };
    let own = root(&authority);
    check("no chain", &own, &[], "showed no certificate");
    check("another root", &own, &theirs, "its authority has the fingerprint");
    check(
        "the right root, wrong way round",
        &own,
        &[good[1].clone(), good[0].clone()],
        "is a CA certificate",
    );
    check(
        "the leaf alone, pinned",
        &good[0],
        &good[..1],
        "is no authority: it is not a CA",
    );
    check("the root alone", &own, &good[1..], "is a CA certificate");
    // Known by everybody who was ever in a handshake: its certificate proves nothing, its key would.
    let posing = [theirs[0].clone(), own.clone()];
    check(
        "a stranger's leaf before the right root",
        &own,
        &posing,
        "no authority in the trust bundle",
    );
    let posing = [theirs[0].clone(), theirs[1].clone(), own.clone()];
    check(
        "and before its own, too",
        &own,
        &posing,
        "no authority in the trust bundle",
    );
    for path in ["/hoplite/agent/n1", "/ledger", "/hoplite/ca/2", "/hoplite"] {
        check(
            path,
            &own,
            &chain(&authority, path),
            "not `spiffe://prod.example/hoplite/ca`",
        );
    }
    let elsewhere = authority.shaped(CA, Shape::OtherTrustDomain).chain;
    check(
        "another trust domain's CA",
        &own,
        &[&elsewhere[..], std::slice::from_ref(&own)].concat(),
        "`other.example`",
    );
    let broken = authority.shaped(CA, Shape::BrokenSignature).chain;
    check(
        "a broken signature",
        &own,
        &[&broken[..], std::slice::from_ref(&own)].concat(),
        "signature",
    );
    let crowd = [vec![good[0].clone()], vec![own.clone(); 8]].concat();
    check("a crowd", &own, &crowd, "more than 8");
    check(
        "no certificate at all",
        &vec![1, 2, 3].into(),
        &[vec![1, 2, 3].into()],
        "malformed",
    );
}

#[test]
fn only_a_highest_authority_can_be_pinned() {
    let authority = TestAuthority::named("prod.example", "one");
    for below in [authority.intermediate(), authority.intermediate_named("one")] {
        let svid = below.svid(CA, HOUR);
        let error = introduced_as(&svid.chain()[1], svid.chain()).unwrap_err();
        assert_eq!(error, NotIntroduced::NotSelfSigned);
    }
    let weak = authority.authority_without_key_cert_sign();
    let shown = [authority.svid(CA, HOUR).chain(), std::slice::from_ref(&weak)].concat();
    let error = introduced_as(&weak, &shown).unwrap_err();
    assert_eq!(error, NotIntroduced::NotAnAuthority(InvalidAuthority::NoKeyCertSign));
    for (uris, expected) in [
        (&[][..], "no URI"),
        (&["spiffe://a", "spiffe://b"][..], "2 URIs"),
        (&["spiffe://a/b"][..], "has a path"),
    ] {
        let odd = TestAuthority::naming("prod.example", uris);
        let error = introduced_as(&root(&odd), &chain(&odd, CA)).unwrap_err().to_string();
        assert!(
            error.contains("names no trust domain") && error.contains(expected),
            "{error}"
        );
    }
}

#[test]
fn a_wrong_clock_is_told_with_both_times() {
    let authority = TestAuthority::new("prod.example");
    let (shown, now) = (chain(&authority, CA), SystemTime::now());
    let at = |now| {
        introduce(Fingerprint::of(&shown[1]), &shown, now)
            .unwrap_err()
            .to_string()
    };
    let year = 365 * 24 * HOUR;
    let (early, late) = (at(now - year), at(now + year));
    assert!(
        early.contains("valid only from") && early.contains("the clock here says"),
        "{early}"
    );
    assert!(
        late.contains("expired at") && late.contains("the clock here says"),
        "{late}"
    );
}

/// A client that was told this fingerprint, and a server that shows this.
fn handshake(fingerprint: Fingerprint, server: &X509Svid) -> (ClientConnection, Option<Error>) {
    let verifier = Arc::new(PeerVerifier::new(BundleSet::default()).unwrap());
    let server = server_config(server, verifier, ClientAuth::Optional, &[b"h2"]).unwrap();
    let client = client_config(fingerprint, &[b"h2"]).unwrap();
    let mut server = ServerConnection::new(server).unwrap();
    let mut client = ClientConnection::new(client, ServerName::try_from("ignored.invalid").unwrap()).unwrap();
    for _ in 0..4 {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        let mut bytes = bytes.as_slice();
        while !bytes.is_empty() {
            server.read_tls(&mut bytes).unwrap();
            let _ = server.process_new_packets();
        }
        let mut bytes = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut bytes).unwrap();
        }
        let mut bytes = bytes.as_slice();
        while !bytes.is_empty() {
            client.read_tls(&mut bytes).unwrap();
            if let Err(error) = client.process_new_packets() {
                return (client, Some(error));
            }
        }
    }
    (client, None)
}

fn shows(chain: Chain, key: &PrivatePkcs8KeyDer<'_>) -> X509Svid {
    X509Svid::from_parts(chain, key.clone_key()).unwrap()
}

#[test]
fn the_handshake_asks_for_tls_1_3_and_the_key_of_the_leaf() {
    let authority = TestAuthority::new("prod.example");
    let own = authority.svid(CA, HOUR);
    let shown = [own.chain(), &[root(&authority)]].concat();
    let fingerprint = Fingerprint::of(&shown[1]);
    let (client, error) = handshake(fingerprint, &shows(shown.clone(), own.key()));
    assert_eq!((error, client.is_handshaking()), (None, false));
    assert_eq!(client.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    let bundle = introduced(fingerprint, &client, SystemTime::now()).unwrap();
    assert_eq!(bundle.authorities(), &shown[1..]);

    // A CA that shows its leaf alone, as an older one does, and one of another authority.
    let stranger = TestAuthority::new("prod.example");
    let theirs = stranger.svid(CA, HOUR);
    let others = [
        shows(shown[..1].to_vec(), own.key()),
        shows([theirs.chain(), &[root(&stranger)]].concat(), theirs.key()),
    ];
    for other in others {
        let (client, error) = handshake(fingerprint, &other);
        let reason = error.as_ref().and_then(refusal);
        assert!(
            matches!(reason, Some(NotIntroduced::OtherAuthority { .. })),
            "{error:?}"
        );
        assert!(introduced(fingerprint, &client, SystemTime::now()).is_err());
    }
}

#[test]
fn tls_1_2_is_refused() {
    let client = client_config(Fingerprint::of_der(b""), &[b"h2"]).unwrap();
    let mut client = ClientConnection::new(client, ServerName::try_from("ignored.invalid").unwrap()).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    // ServerHello: TLS 1.2, a random number, no session, ECDHE-ECDSA-AES128-GCM, no compression, no extension.
    let body = [&[3, 3][..], &[7; 32], &[0, 0xc0, 0x2b, 0]].concat();
    let length = u8::try_from(body.len()).unwrap();
    let record = [&[22, 3, 3, 0, length + 4, 2, 0, 0, length][..], &body].concat();
    client.read_tls(&mut record.as_slice()).unwrap();
    let error = client.process_new_packets().unwrap_err();
    assert!(matches!(error, Error::PeerIncompatible(_)), "{error:?}");
}
