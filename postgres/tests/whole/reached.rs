//! How the server is reached: that it goes away and comes back, passwords, and TLS.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::time::{Duration, Instant};

use data_encoding::BASE64;
use hoplite_postgres::testing::possible;
use hoplite_postgres::{PostgresStore, Settings, Tls};
use hoplite_store::{Batch, CommitError, Store, StoreError};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use crate::own;

const SOON: Duration = Duration::from_secs(30);

#[test]
fn a_server_that_goes_away_and_comes_back_costs_nothing_but_the_time() {
    if !possible("a_server_that_goes_away_and_comes_back_costs_nothing_but_the_time") {
        return;
    }
    let mut own = own("");
    let settings = own.server.settings();
    let store = PostgresStore::open(&settings).unwrap();
    let mut watch = store.watch(0).unwrap();
    store.commit(Batch::new().put("k", "1")).unwrap();
    watch.next(SOON).unwrap().unwrap();
    own.server.kill();
    let began = Instant::now();
    let refused = store.commit(Batch::new().put("k", "2"));
    let Err(CommitError::Store(error @ StoreError::Away { .. })) = refused else {
        panic!("{refused:?}")
    };
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    while store.away().is_none() {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(error.to_string().contains(&settings.location()), "{error}");
    assert!(matches!(store.get(b"k"), Err(StoreError::Away { .. })));
    let gone = PostgresStore::open(&settings).err().unwrap();
    assert!(matches!(gone, StoreError::Away { .. }), "{gone}");
    assert!(
        watch.next(Duration::from_millis(10)).unwrap().is_none(),
        "the watch waits"
    );
    own.server.begin();
    while store.away().is_some() {
        std::thread::sleep(Duration::from_millis(10));
    }
    // Its connections are all dead; nobody notices.
    assert_eq!(store.get(b"k").unwrap().unwrap().value, b"1");
    assert_eq!(store.commit(Batch::new().put("k", "2")).unwrap(), 2);
    assert_eq!(watch.next(SOON).unwrap().unwrap().revision, 2);
    let other = PostgresStore::open(&settings).unwrap();
    other.commit(Batch::new().put("k", "3")).unwrap();
    assert_eq!(watch.next(SOON).unwrap().unwrap().revision, 3);
    assert_eq!(store.away(), None);
}

#[test]
fn connections_that_the_server_closed_are_no_failure() {
    if !possible("connections_that_the_server_closed_are_no_failure") {
        return;
    }
    let own = own("");
    let settings = own.server.settings();
    let store = PostgresStore::open(&settings).unwrap();
    for n in 1..20 {
        // It waits until they are gone: one that ends while it commits leaves open what became of that.
        own.server
            .sql("SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity WHERE application_name = 'hoplite-ca' AND state = 'idle'");
        assert_eq!(store.commit(Batch::new().put("k", n.to_string())).unwrap(), n);
    }
}

/// An authority of a test's own, and what it certifies.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = pem("CERTIFICATE", params.self_signed(&key).unwrap().der());
        Self {
            pem,
            issuer: Issuer::new(params, key),
        }
    }

    /// Certificate and key for a name, as files that only the server reads.
    fn certify(&self, name: &str, dir: &Path) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let (certificate, key) = (
            pem("CERTIFICATE", certificate.der()),
            pem("PRIVATE KEY", &key.serialize_der()),
        );
        for (file, text) in [("server.crt", certificate), ("server.key", key)] {
            let path = dir.join(file);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            if fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0) {
                chown(&path, Some(65534), Some(65534)).unwrap();
            }
        }
    }
}

fn pem(kind: &str, der: &[u8]) -> String {
    format!("-----BEGIN {kind}-----\n{}\n-----END {kind}-----\n", BASE64.encode(der))
}

#[test]
fn a_server_is_known_by_its_certificate_and_we_by_a_password() {
    if !possible("a_server_is_known_by_its_certificate_and_we_by_a_password") {
        return;
    }
    let mut own = own("");
    let plain = own.server.settings();
    own.server.sql("CREATE ROLE ca LOGIN PASSWORD 'one: two'");
    own.server.sql("CREATE DATABASE ca OWNER ca");
    let files = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = files.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    };
    let (ours, others) = (Authority::new(), Authority::new());
    let (good, wrong) = (write("password", "one: two\n"), write("wrong", "hunter2"));
    let (ca, other_ca) = (write("ca.pem", &ours.pem), write("other.pem", &others.pem));
    let settings = Settings {
        hosts: vec![format!("localhost:{}", own.server.port()).parse().unwrap()],
        database: "ca".into(),
        user: "ca".into(),
        schema: "hoplite".into(),
        password_file: Some(good.clone()),
        tls: Tls::VerifyFull,
        tls_ca: Some(ca.clone()),
    };
    let with = |change: &dyn Fn(&mut Settings)| {
        let mut settings = settings.clone();
        change(&mut settings);
        PostgresStore::open(&settings).map(|store| store.revision())
    };
    let check = |change: &dyn Fn(&mut Settings), expected: &str| {
        let said = with(change).map_or_else(|e| e.to_string(), |_| "good".to_owned());
        assert!(said.contains(expected), "expected `{expected}`, got `{said}`");
        for secret in ["one: two", "hunter2"] {
            assert!(!said.contains(secret), "{said}");
        }
    };
    // A server without TLS is not talked to.
    check(&|_| (), "server does not support TLS");
    let data = own._dir.path().join("data");
    ours.certify("localhost", &data);
    fs::write(
        data.join("pg_hba.conf"),
        "local all hoplite trust\nhost all hoplite 127.0.0.1/32 trust\nhostssl all ca 127.0.0.1/32 scram-sha-256\n",
    )
    .unwrap();
    let auto = data.join("postgresql.auto.conf");
    let text = fs::read_to_string(&auto).unwrap();
    fs::write(&auto, format!("{text}ssl = on\n")).unwrap();
    own.server.kill();
    own.server.begin();
    check(&|_| (), "good");
    check(
        &|s| s.password_file = Some(wrong.clone()),
        "password authentication failed",
    );
    check(&|s| s.password_file = None, "password");
    check(&|s| s.password_file = Some(files.path().join("none")), "password_file");
    check(&|s| s.database = "other".into(), "make the database");
    check(&|s| s.tls_ca = Some(other_ca.clone()), "invalid peer certificate");
    check(&|s| s.tls_ca = Some(good.clone()), "holds no certificate");
    check(
        &|s| s.hosts = vec![format!("127.0.0.1:{}", own.server.port()).parse().unwrap()],
        "not valid for name",
    );
    check(&|s| (s.tls, s.tls_ca) = (Tls::None, None), "pg_hba.conf");
    fs::set_permissions(&good, fs::Permissions::from_mode(0o644)).unwrap();
    check(&|_| (), "lets others in");
    fs::set_permissions(&good, fs::Permissions::from_mode(0o600)).unwrap();
    // The first that takes writes is taken.
    check(&|s| s.hosts.insert(0, "127.0.0.1:1".parse().unwrap()), "good");
    // A role that may do nothing is told what it needs.
    own.server.sql("CREATE ROLE poor LOGIN PASSWORD 'one: two'");
    let poor = |s: &mut Settings| (s.user, s.database, s.schema) = ("poor".into(), "postgres".into(), "poor".into());
    fs::write(
        data.join("pg_hba.conf"),
        "local all hoplite trust\nhostssl all all 127.0.0.1/32 scram-sha-256\n",
    )
    .unwrap();
    own.server.sql("SELECT pg_reload_conf()");
    check(&poor, "make the schema the role's own");
    drop(plain);
}

#[test]
fn a_server_that_forgets_is_not_used() {
    if !possible("a_server_that_forgets_is_not_used") {
        return;
    }
    let own = own("fsync = off");
    let error = PostgresStore::open(&own.server.settings()).err().unwrap().to_string();
    assert!(error.contains("`fsync = off`"), "{error}");
    // Only for this role, which is put right.
    own.server.sql("ALTER SYSTEM SET fsync = on");
    own.server.sql("ALTER ROLE hoplite SET synchronous_commit = off");
    own.server.sql("SELECT pg_reload_conf()");
}

#[test]
fn a_unix_socket_needs_no_tls() {
    let Some(own) = crate::shared("a_unix_socket_needs_no_tls") else {
        return;
    };
    let settings = Settings {
        hosts: vec![own._dir.path().to_str().unwrap().parse().unwrap()],
        tls: Tls::VerifyFull,
        ..own.server.settings()
    };
    settings.check(Path::new("ca.toml")).unwrap();
    let error = PostgresStore::open(&settings).err().unwrap();
    // Ours listens on another port, which is in the socket's name.
    assert!(matches!(error, StoreError::Away { .. }), "{error}");
}
