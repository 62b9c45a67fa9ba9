//! What a node keeps and shows, over a CA that answers as told.

use super::*;
use hoplite_identity::X509Svid;
use hoplite_identity::testing::TestAuthority;

const DAY: Duration = Duration::from_secs(86_400);

struct World {
    directory: tempfile::TempDir,
    authority: TestAuthority,
}

impl World {
    fn new() -> Self {
        let world = Self {
            directory: tempfile::tempdir().unwrap(),
            authority: TestAuthority::new("prod.example"),
        };
        std::fs::write(world.bundle_file(), world.authority.bundle().to_pem()).unwrap();
        world
    }

    fn bundle_file(&self) -> PathBuf {
        self.directory.path().join("bundle.pem")
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn open(&self) -> Result<Keeper, String> {
        Keeper::open(&self.data(), &self.authority.trust_domain(), &self.bundle_file()).map_err(|e| e.to_string())
    }

    fn wire_bundle(&self, sequence: u64) -> ca::Bundle {
        let authorities = self
            .authority
            .bundle()
            .authorities()
            .iter()
            .map(|a| a.to_vec())
            .collect();
        ca::Bundle {
            trust_domain: "prod.example".into(),
            authorities,
            sequence,
            ..ca::Bundle::default()
        }
    }
}

/// What the CA would answer with this SVID.
fn answer(svid: &X509Svid, bundle: Option<ca::Bundle>) -> (SvidResponse, Key) {
    let chain = svid.chain().iter().map(|c| c.to_vec()).collect();
    (
        SvidResponse {
            chain,
            bundle,
            ..SvidResponse::default()
        },
        Key::from_pkcs8(svid.key()).unwrap(),
    )
}

#[test]
fn identity_bundle_and_spent_token_survive_a_restart() {
    let world = World::new();
    let keeper = world.open().unwrap();
    assert!(keeper.credentials().borrow().is_none());
    let token = Token::new("secret");
    let joining = keeper.joining_key().unwrap().to_pem();
    assert_eq!(
        world.open().unwrap().joining_key().unwrap().to_pem(),
        joining,
        "a retry uses the same key"
    );

    let svid = world.authority.svid("/hoplite/agent/n1", DAY);
    let (response, key) = answer(&svid, Some(world.wire_bundle(3)));
    keeper.accept(response, key, How::Joined(&token)).unwrap();
    let keeper = world.open().unwrap();
    let credentials = keeper.credentials().borrow().clone().unwrap();
    assert_eq!(
        (credentials.svid.leaf(), credentials.bundle.sequence()),
        (svid.leaf(), 3)
    );
    assert_ne!(
        keeper.joining_key().unwrap().to_pem(),
        joining,
        "the next join is another"
    );

    let file = world.directory.path().join("token");
    let unspent = |text: &str| {
        files::write_private(&file, text.as_bytes()).unwrap();
        keeper.unspent_token(&file).map(|t| t.0)
    };
    assert_eq!(unspent("secret\n"), None);
    assert_eq!(unspent(" \n"), None);
    assert_eq!(unspent(" fresh\n").as_deref().map(String::as_str), Some("fresh"));
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    assert!(
        keeper.unspent_token(&file).is_none(),
        "a token that others may have read"
    );
    assert!(keeper.unspent_token(Path::new("/nowhere")).is_none());

    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(world.data().join(FILE)).unwrap());
    assert_eq!(mode & 0o777, 0o600);
    assert!(!format!("{keeper:?}").contains("PRIVATE"));
}

#[test]
fn what_the_ca_sends_must_be_what_was_asked_for() {
    let world = World::new();
    let foreign = TestAuthority::new("prod.example");
    let other = TestAuthority::new("other.example");
    let check = |svid: &X509Svid, bundle: Option<ca::Bundle>, own_key: bool, joining: bool, expected: &str| {
        std::fs::remove_dir_all(world.data()).ok();
        let keeper = world.open().unwrap();
        let token = Token::new("t");
        let (response, key) = answer(
            &world.authority.svid("/hoplite/agent/n1", DAY),
            Some(world.wire_bundle(5)),
        );
        keeper.accept(response, key, How::Joined(&token)).unwrap();
        let (response, key) = answer(svid, bundle);
        let key = if own_key { key } else { Key::generate().unwrap() };
        match keeper.accept(response, key, if joining { How::Joined(&token) } else { How::Renewed }) {
            Ok(()) => assert_eq!(expected, ""),
            Err(error) => {
                assert!(
                    !expected.is_empty() && error.to_string().contains(expected),
                    "{expected}: {error}"
                );
                let held = world.open().unwrap().held().svid.as_ref().unwrap().spiffe_id().clone();
                assert_eq!(held.path(), "/hoplite/agent/n1", "what was held stays");
            }
        }
    };
    let n1 = world.authority.svid("/hoplite/agent/n1", DAY);
    check(&n1, None, true, false, "");
    check(&n1, Some(world.wire_bundle(6)), true, false, "");
    check(&n1, Some(world.wire_bundle(4)), true, false, "older than 5");
    check(&n1, None, false, false, "bad SVID");
    check(&world.authority.svid("/hoplite/agent/n2", DAY), None, true, true, "");
    check(
        &world.authority.svid("/hoplite/agent/n2", DAY),
        None,
        true,
        false,
        "which this agent is not",
    );
    check(
        &world.authority.svid("/hoplite/ca", DAY),
        None,
        true,
        true,
        "which this agent is not",
    );
    check(
        &world.authority.svid("/web", DAY),
        None,
        true,
        true,
        "which this agent is not",
    );
    check(
        &other.svid("/hoplite/agent/n1", DAY),
        None,
        true,
        true,
        "which this agent is not",
    );
    check(
        &foreign.svid("/hoplite/agent/n1", DAY),
        None,
        true,
        true,
        "does not vouch",
    );
}

#[test]
fn bundles_only_grow_newer_until_the_operator_says_otherwise() {
    let world = World::new();
    let keeper = world.open().unwrap();
    keeper.adopt_bundle(world.wire_bundle(2)).unwrap();
    keeper.adopt_bundle(world.wire_bundle(2)).unwrap();
    assert!(
        keeper
            .adopt_bundle(world.wire_bundle(1))
            .unwrap_err()
            .to_string()
            .contains("older")
    );
    let keeper = world.open().unwrap();
    assert_eq!(keeper.held().bundle.sequence(), 2);

    let (response, key) = answer(&world.authority.svid("/hoplite/agent/n1", DAY), None);
    keeper.accept(response, key, How::Joined(&Token::new("spent"))).unwrap();
    assert!(world.open().unwrap().credentials().borrow().is_some());
    let refounded = TestAuthority::new("prod.example");
    std::fs::write(world.bundle_file(), refounded.bundle().to_pem()).unwrap();
    let keeper = world.open().unwrap();
    assert_eq!(keeper.held().bundle.authorities(), refounded.bundle().authorities());
    assert_eq!(keeper.held().bundle.sequence(), 0);
    assert!(
        keeper.validity().is_none(),
        "the former CA's SVID would only be in the way"
    );
    assert!(keeper.credentials().borrow().is_none());
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let world = World::new();
    let check = |bundle: Option<&str>, state: Option<&str>, expected: &str| {
        match bundle {
            Some(text) => std::fs::write(world.bundle_file(), text).unwrap(),
            None => drop(std::fs::remove_file(world.bundle_file())),
        }
        std::fs::remove_dir_all(world.data()).ok();
        if let Some(text) = state {
            files::private_dir(&world.data()).unwrap();
            files::write_private(&world.data().join(FILE), text.as_bytes()).unwrap();
        }
        let error = world.open().map(drop).unwrap_err();
        assert!(
            error.contains(expected) && !error.contains("SECRET") && !error.contains('\n'),
            "{expected}: {error}"
        );
    };
    let good = world.authority.bundle().to_pem();
    check(None, None, "bundle.pem");
    check(Some(""), None, "is no trust bundle");
    check(Some("hello"), None, "is no trust bundle");
    check(Some(&good[..good.len() / 2]), None, "is no trust bundle");
    check(Some(&good), Some(""), "line");
    check(Some(&good), Some("{\"key\": \"SECRET"), "line 1");
    check(Some(&good), Some("{\"SECRET\": 1}"), "line 1");
    let state = |key: &str, chain: &str| {
        let disk = OnDisk {
            key: Some(key.into()),
            chain: Some(chain.into()),
            ..OnDisk::default()
        };
        serde_json::to_string(&disk).unwrap()
    };
    let other = TestAuthority::new("other.example").svid("/hoplite/agent/n", DAY);
    check(
        Some(&good),
        Some(&state("SECRET", &other.chain_pem())),
        "key is damaged",
    );
    check(Some(&good), Some(&state(&other.key_pem(), "x")), "chain is damaged");
    check(
        Some(&good),
        Some(&state(&other.key_pem(), &other.chain_pem())),
        "belongs to the trust domain `other.example`",
    );
    let keyless = serde_json::to_string(&OnDisk {
        chain: Some("x".into()),
        ..OnDisk::default()
    })
    .unwrap();
    check(Some(&good), Some(&keyless), "without");
}
