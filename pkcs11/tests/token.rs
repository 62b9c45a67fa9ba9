//! A SoftHSM token: keys that are made in it sign, do not leave it, and come back with it.

#![cfg(not(target_env = "musl"))]
#![expect(clippy::disallowed_methods, reason = "a test waits by the system's clock")]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use hoplite_pkcs11::testing::{SoftToken, possible};
use hoplite_pkcs11::{Settings, Token};
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};

const NAME: &str = "keys_are_made_there_sign_there_and_come_back_with_it";

/// SoftHSM is told of its directory by a variable, so the test is a process of its own; and one, as a module is begun once in a process.
#[test]
fn keys_are_made_there_sign_there_and_come_back_with_it() {
    if !possible(NAME) {
        return;
    }
    let Some(conf) = std::env::var_os("SOFTHSM2_CONF") else {
        let dir = tempfile::tempdir().unwrap();
        let soft = SoftToken::make(dir.path());
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", NAME, "--nocapture"]);
        let done = command.env("SOFTHSM2_CONF", &soft.config).status().unwrap();
        assert!(done.success());
        return;
    };
    let dir = Path::new(&conf).parent().unwrap();
    let soft = SoftToken::at(dir);
    let token = Token::open(&soft.settings).unwrap();
    assert!(token.keys("authority").unwrap().is_empty());
    let (one, two) = (token.make("authority").unwrap(), token.make("authority").unwrap());
    token.make("jwt").unwrap();
    let verifies = |key: &hoplite_pkcs11::TokenKey, signature: &[u8]| {
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key.point())
            .verify(b"message", signature)
            .expect("its own signature");
    };
    for key in [&one, &two] {
        verifies(key, &key.sign(b"message").unwrap());
    }
    // Another process finds them by their label.
    let mut found = Token::open(&soft.settings).unwrap().keys("authority").unwrap();
    found.sort_by_key(|key| key.point() != one.point());
    assert_eq!(
        (found.len(), found[0].point(), found[1].point()),
        (2, one.point(), two.point())
    );
    verifies(&one, &found[0].sign(b"message").unwrap());

    // Its absence is said, and ends by itself.
    soft.pull();
    let error = one.sign(b"message").unwrap_err();
    assert!(error.to_string().contains("says"), "{error}");
    assert!(token.away().is_some());
    let again = one.sign(b"message").unwrap_err();
    assert_eq!(again, error, "it rests");
    soft.plug();
    let began = std::time::Instant::now();
    let signature = loop {
        match one.sign(b"message") {
            Ok(signature) => break signature,
            Err(error) => assert!(began.elapsed() < Duration::from_secs(20), "{error}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    verifies(&one, &signature);
    assert_eq!(token.away(), None);

    token.forget(&two).unwrap();
    assert_eq!(token.keys("authority").unwrap().len(), 1);

    let check = |settings: Settings, expected: &str| {
        let error = Token::open(&settings).unwrap_err().to_string();
        assert!(error.contains(expected) && !error.contains("4711"), "{error}");
    };
    let other = |change: &dyn Fn(&mut Settings)| {
        let mut settings = soft.settings.clone();
        change(&mut settings);
        settings
    };
    check(other(&|s| s.token = "another".into()), "there are `hoplite`");
    check(other(&|s| s.module = "/lib/none.so".into()), "/lib/none.so");
    check(other(&|s| s.pin_file = dir.join("none")), "none");
}
