//! With a real software TPM: what it makes is believed, and what it did not make is not.

use proptest::prelude::*;

use crate::testing::{SoftKey, SoftTpm, possible};
use crate::{
    Answer, AttestationKey, Challenge, Credential, Endorsement, EndorsementKey, InvalidKey, Malformed, NodeTpm,
    NotAnswered, bound,
};

fn keys(tpm: &NodeTpm<crate::Device>) -> (AttestationKey, EndorsementKey) {
    let [attestation, endorsement] = tpm.shown();
    (
        AttestationKey::from_public(&attestation).unwrap(),
        EndorsementKey::from_public(&endorsement).unwrap(),
    )
}

#[test]
fn a_tpm_answers_for_its_two_keys_and_for_one_request() {
    if !possible("tpm_answers") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let soft = SoftTpm::start(directory.path());
    for which in [Endorsement::P256, Endorsement::Rsa2048] {
        // More often than a TPM has room for keys: what was loaded is freed.
        for _ in 0..3 {
            let mut tpm = NodeTpm::prepare(soft.device(), Some(which)).unwrap();
            let (attestation, endorsement) = keys(&tpm);
            assert_eq!(endorsement.is_rsa(), which == Endorsement::Rsa2048);
            let credential = Credential::make(&endorsement, &attestation).unwrap();
            let answer = tpm.answer(&credential.challenge.encode(), b"request").unwrap();
            let answer = Answer::parse(&answer).unwrap();
            assert_eq!(answer.verify(&attestation, &credential.secret, b"request"), Ok(()));
            assert_eq!(
                answer.verify(&attestation, &credential.secret, b"another"),
                Err(NotAnswered::Other)
            );
            assert_eq!(
                answer.verify(&attestation, &[0; 32], b"request"),
                Err(NotAnswered::Other)
            );
            let other = AttestationKey::from_public(&SoftKey::new(0, 0).public()).unwrap();
            assert_eq!(
                answer.verify(&other, &credential.secret, b"request"),
                Err(NotAnswered::Signature)
            );
        }
    }
}

#[test]
fn a_credential_is_for_two_keys_in_one_tpm() {
    if !possible("tpm_credential") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (one, two) = (
        SoftTpm::start(&directory.path().join("1")),
        SoftTpm::start(&directory.path().join("2")),
    );
    let mut first = NodeTpm::prepare(one.device(), Some(Endorsement::P256)).unwrap();
    let second = NodeTpm::prepare(two.device(), Some(Endorsement::P256)).unwrap();
    let ((attestation, endorsement), (other_attestation, other_endorsement)) = (keys(&first), keys(&second));
    assert_ne!(endorsement.sha256(), other_endorsement.sha256());
    let forged = SoftKey::new(0, 0);
    let software = AttestationKey::from_public(&forged.public()).unwrap();
    for (what, credential) in [
        ("the other TPM's", Credential::make(&other_endorsement, &attestation)),
        ("the other's key", Credential::make(&endorsement, &other_attestation)),
        ("a key in no TPM", Credential::make(&endorsement, &software)),
    ] {
        let refused = first
            .answer(&credential.unwrap().challenge.encode(), b"request")
            .unwrap_err();
        assert!(
            refused.to_string().contains("refuses TPM2_ActivateCredential"),
            "{what}: {refused}"
        );
    }
    // Nor for a public area that somebody loads without its private part.
    let credential = Credential::make(&endorsement, &software).unwrap();
    drop(first);
    let refused = one.refuses_to_activate(&forged.public(), &credential.challenge.encode());
    assert!(refused.contains("refuses TPM2_ActivateCredential"), "{refused}");
}

#[test]
fn certificates_are_read_where_makers_put_them() {
    if !possible("tpm_certificates") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let soft = SoftTpm::start(directory.path());
    let prepared = |which| NodeTpm::prepare(soft.device(), which).unwrap();
    let tpm = prepared(None);
    assert!(keys(&tpm).1.is_rsa() && tpm.certificate().is_none());
    drop(tpm);
    // A long one, and one with something behind it.
    let certificate: Vec<u8> = [&[0x30, 0x82, 0x05, 0x14], [5; 1300].as_slice(), &[0xff; 40]].concat();
    soft.keep_certificate(false, &certificate);
    let tpm = prepared(None);
    assert!(!keys(&tpm).1.is_rsa());
    assert_eq!(tpm.certificate(), certificate.get(..1304));
    drop(tpm);
    assert_eq!(prepared(Some(Endorsement::Rsa2048)).certificate(), None);
}

#[test]
fn what_an_attestation_key_may_do() {
    let check = |without: u32, with: u32, expected: &str| {
        let read = AttestationKey::from_public(&SoftKey::new(without, with).public());
        let said = read.map_or_else(|error| error.to_string(), |_| "ok".to_owned());
        assert!(said.contains(expected), "{without:x} {with:x}: {said}");
    };
    check(0, 0, "ok");
    check(1 << 1, 0, "fixedTPM");
    check(1 << 4, 0, "fixedParent");
    check(1 << 5, 0, "sensitiveDataOrigin");
    check(1 << 16, 0, "restricted");
    check(1 << 18, 0, "sign");
    check(1 << 18, 1 << 17, "sign");
    check(0, 1 << 17, "0x00070472");
    check(0, 1 << 7, "0x000504f2");

    let mut other = SoftKey::new(0, 0).public();
    other[12] ^= 1;
    assert_eq!(AttestationKey::from_public(&other), Err(InvalidKey::Purpose));
}

/// The digest is that of the key's DER, which OpenSSL and tpm2-tools give too: here of a key whose digest OpenSSL gave.
#[test]
fn an_endorsement_key_has_the_digest_of_its_encoding() {
    let template = crate::public::endorsement_template(false);
    let read = EndorsementKey::from_public(&template).unwrap();
    assert_eq!(read.spki().len(), 91);
    assert_eq!(read.key_bits(), [&[4], [0; 64].as_slice()].concat());
    // The template of RSA has no modulus.
    assert!(EndorsementKey::from_public(&crate::public::endorsement_template(true)).is_err());
    let mut public = crate::public::endorsement_template(true);
    let at = public.len() - 256;
    public[at] = 0x80;
    let read = EndorsementKey::from_public(&public).unwrap();
    assert_eq!((read.spki().len(), read.key_bits().len()), (294, 270));
    assert!(read.spki().ends_with(&read.key_bits()));
    // A byte of another template.
    for at in [1, 3, 5, 7, 9, 12, 43, 45, 47, 49, 51] {
        let mut other = public.clone();
        other[at] ^= 0x40;
        assert!(EndorsementKey::from_public(&other).is_err(), "{at}");
    }
}

#[test]
fn answers_that_are_no_quote() {
    let key = SoftKey::new(0, 0);
    let public = AttestationKey::from_public(&key.public()).unwrap();
    let good = key.quote(&bound(&[7; 32], b"request"));
    assert_eq!(
        Answer::parse(&good).unwrap().verify(&public, &[7; 32], b"request"),
        Ok(())
    );
    let attest_length = usize::from(u16::from_be_bytes([good[0], good[1]]));
    let attest = &good[2..2 + attest_length];
    let quote = Malformed("a quote");
    for (what, changed, expected) in [
        ("not made by a TPM", [&[0xfe], &attest[1..]].concat(), quote),
        (
            "another statement",
            [&attest[..5], &[0x17], &attest[6..]].concat(),
            quote,
        ),
        ("cut off", attest[..attest.len() - 1].to_vec(), quote),
        ("with more", [attest, &[0]].concat(), quote),
        ("nothing", Vec::new(), quote),
    ] {
        assert_eq!(Answer::parse(&key.sign(&changed)), Err(expected), "{what}");
    }
    for at in 0..good.len() {
        let mut changed = good.clone();
        changed[at] ^= 1;
        let verified = Answer::parse(&changed).map(|answer| answer.verify(&public, &[7; 32], b"request"));
        assert!(
            verified.is_err() || verified.is_ok_and(|verified| verified.is_err()),
            "{at}"
        );
    }
}

proptest! {
    #[test]
    fn nothing_that_is_sent_is_too_much(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = (AttestationKey::from_public(&bytes), EndorsementKey::from_public(&bytes), Answer::parse(&bytes));
        if let Ok(challenge) = Challenge::parse(&bytes) {
            prop_assert_eq!(challenge.encode(), bytes);
        }
    }

    /// Endorsement keys that are no points give no credential, and no panic.
    #[test]
    fn numbers_that_are_no_key(x in any::<[u8; 32]>(), y in any::<[u8; 32]>()) {
        let mut public = crate::public::endorsement_template(false);
        let at = public.len() - 68;
        public.truncate(at);
        let public = [public.as_slice(), &[0, 32], &x, &[0, 32], &y].concat();
        let endorsement = EndorsementKey::from_public(&public).unwrap();
        let attestation = AttestationKey::from_public(&SoftKey::new(0, 0).public()).unwrap();
        prop_assert!(Credential::make(&endorsement, &attestation).is_err());
    }
}
