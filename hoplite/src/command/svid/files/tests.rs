//! What is in the directory, at every moment.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Parser;
use hoplite_identity::testing::TestAuthority;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use super::*;

#[derive(Parser)]
struct Line {
    #[arg(long)]
    write: bool,
    #[command(flatten)]
    layout: Layout,
}

fn layout(more: &[&str]) -> Result<Layout, clap::Error> {
    Line::try_parse_from([&["x", "--write"], more].concat()).map(|line| line.layout)
}

/// The set as a careful reader has it: one look at the link, and then everything from there. None for a reader so slow that two
/// sets came meanwhile, and its own is gone.
fn read(dir: &Path) -> Option<X509Svid> {
    let set = dir.join(fs::read_link(dir.join(DATA)).ok()?);
    let text = |name: &str| fs::read(set.join(name)).ok();
    let (chain, key, _) = (text("svid.pem")?, text("svid_key.pem")?, text("bundle.pem")?);
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&chain).map(Result::unwrap).collect();
    let key = PrivatePkcs8KeyDer::from_pem_slice(&key).unwrap();
    Some(X509Svid::from_parts(chain, key).unwrap())
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_reader_never_finds_a_key_of_another_certificate() {
    let authority = TestAuthority::new("prod.example");
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("tls");
    let files = Files::open(&at, &layout(&[]).unwrap()).unwrap();
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut seen = 0;
            while !ended.load(Ordering::Relaxed) {
                seen += usize::from(read(&at).is_some());
            }
            seen
        });
        for n in 0..40 {
            let svid = authority.svid(&format!("/n{n}"), Duration::from_secs(60));
            files.put(&svid, &authority.bundles()).unwrap();
            assert_eq!(read(&at).unwrap().spiffe_id(), svid.spiffe_id());
        }
        ended.store(true, Ordering::Relaxed);
        assert!(reader.join().unwrap() > 0);
    });
    // The last, and the one before it for whoever is reading it.
    let names = names(&at);
    assert_eq!(
        names.iter().filter(|name| name.starts_with(SET)).count(),
        2,
        "{names:?}"
    );
    assert_eq!(names.len(), 6, "{names:?}");

    let last = authority.svid("/last", Duration::from_secs(60));
    assert!(!files.has(&last, &authority.bundles()) && !files.is_told());
    files.put(&last, &authority.bundles()).unwrap();
    files.told().unwrap();
    assert!(files.has(&last, &authority.bundles()) && files.is_told());
    assert!(!files.has(&last, &TestAuthority::new("prod.example").bundles()));
    fs::set_permissions(at.join("svid_key.pem"), Permissions::from_mode(0o400)).unwrap();
    assert!(!files.has(&last, &authority.bundles()), "it has another mode");
    files.put(&last, &authority.bundles()).unwrap();
    assert!(
        files.has(&last, &authority.bundles()) && !files.is_told(),
        "it is another set"
    );

    files.withdraw().unwrap();
    assert!(!files.is_told());
    for name in ["svid.pem", "svid_key.pem", "bundle.pem"] {
        let error = File::open(at.join(name)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound, "{name}");
    }
    files.withdraw().unwrap();
    files
        .put(&authority.svid("/again", Duration::from_secs(60)), &authority.bundles())
        .unwrap();
    assert!(File::open(at.join("svid.pem")).is_ok());
}

#[test]
fn files_have_the_names_modes_and_owners_that_were_asked_for() {
    let authority = TestAuthority::new("prod.example");
    let svid = authority.svid("/a", Duration::from_secs(60));
    let mode = |path: PathBuf| fs::metadata(path).unwrap().mode() & 0o7777;
    let dir = tempfile::tempdir().unwrap();
    Files::open(dir.path(), &layout(&[]).unwrap())
        .unwrap()
        .put(&svid, &authority.bundles())
        .unwrap();
    let modes = ["svid.pem", "svid_key.pem", "bundle.pem"].map(|name| mode(dir.path().join(name)));
    assert_eq!(modes, [0o644, 0o600, 0o644]);

    let own = fs::metadata(dir.path()).unwrap();
    let owner = format!("{}:{}", own.uid(), own.gid());
    let asked = layout(&[
        "--cert-file",
        "tls.crt",
        "--key-file",
        "tls.key",
        "--bundle-file",
        "ca.crt",
        "--cert-mode",
        "440",
        "--key-mode",
        "0640",
        "--owner",
        &owner,
    ]);
    let dir = tempfile::tempdir().unwrap();
    Files::open(dir.path(), &asked.unwrap())
        .unwrap()
        .put(&svid, &authority.bundles())
        .unwrap();
    let modes = ["tls.crt", "tls.key", "ca.crt"].map(|name| mode(dir.path().join(name)));
    assert_eq!(modes, [0o440, 0o640, 0o440]);

    for (option, value, reason) in [
        ("--key-mode", "644", "everybody could read the key"),
        ("--key-mode", "660", "nobody else write"),
        ("--cert-mode", "999", "octal"),
        ("--cert-mode", "044", "lets its owner read"),
        ("--key-file", "a/b", "has no `/`"),
        ("--key-file", "..data", "does not begin with `..`"),
        ("--owner", "nobody-of-that-name", "names no `nobody-of-that-name`"),
        ("--owner", "0:nobody-of-that-name", "`/etc/group` names no"),
    ] {
        let said = layout(&[option, value]).unwrap_err().to_string();
        assert!(said.contains(reason), "{option} {value}: {said}");
    }
    assert_eq!(id_of("root", Path::new("/etc/passwd")).unwrap(), (0, Some(0)));
    let twice = layout(&["--key-file", "svid.pem"]).unwrap();
    let error = Files::open(dir.path(), &twice).unwrap_err().to_string();
    assert!(error.contains("two of the files have one name"), "{error}");
}

#[test]
fn what_others_put_there_stays_and_what_a_crash_left_goes() {
    let authority = TestAuthority::new("prod.example");
    let svid = authority.svid("/a", Duration::from_secs(60));
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    let open = |more: &[&str]| Files::open(at, &layout(more).unwrap());
    let refused = |reason: &str| {
        let error = format!("{:#}", open(&[]).unwrap_err());
        assert!(error.contains(reason), "{error}");
    };
    fs::write(at.join("svid_key.pem"), "somebody's only copy").unwrap();
    refused("was not written by this command; move it away");
    fs::remove_file(at.join("svid_key.pem")).unwrap();
    symlink("/etc/hostname", at.join("bundle.pem")).unwrap();
    refused("was not written by this command");
    fs::remove_file(at.join("bundle.pem")).unwrap();

    fs::create_dir(at.join("..set-crash")).unwrap();
    fs::write(at.join("..set-crash/svid_key.pem"), "half").unwrap();
    symlink("..set-crash", at.join("..next-crash")).unwrap();
    fs::write(at.join("README"), "ours").unwrap();
    let files = open(&[]).unwrap();
    let error = open(&["--key-file", "other.pem"]).unwrap_err().to_string();
    assert!(error.contains("another `hoplite svid` writes into"), "{error}");
    files.put(&svid, &authority.bundles()).unwrap();
    let left = names(at);
    assert!(
        !left.iter().any(|name| name.contains("crash")) && left.contains(&"README".to_owned()),
        "{left:?}"
    );

    fs::set_permissions(at, Permissions::from_mode(0o777)).unwrap();
    drop(files);
    refused("chmod go-w");
    if rustix::process::geteuid().is_root() {
        fs::set_permissions(at, Permissions::from_mode(0o755)).unwrap();
        std::os::unix::fs::chown(at, Some(65534), None).unwrap();
        refused("belongs to user 65534");
    }
}

/// Whose a directory was at the start may become another's: what is written goes where it was to go, or nowhere.
#[test]
fn another_directory_of_the_same_name_gets_nothing() {
    let authority = TestAuthority::new("prod.example");
    let (dir, victim) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let at = dir.path().join("tls");
    let files = Files::open(&at, &layout(&[]).unwrap()).unwrap();
    let svid = authority.svid("/ledger", Duration::from_secs(60));
    fs::rename(&at, dir.path().join("old")).unwrap();
    for replace in [true, false] {
        match replace {
            true => symlink(victim.path(), &at).unwrap(),
            false => {
                fs::remove_file(&at).unwrap();
                fs::create_dir(&at).unwrap();
            }
        }
        let error = files.put(&svid, &authority.bundles()).unwrap_err();
        assert!(error.to_string().contains("no longer the directory"), "{error:#}");
        assert!(names(victim.path()).is_empty() && names(&at).is_empty());
    }
    fs::remove_dir(&at).unwrap();
    fs::rename(dir.path().join("old"), &at).unwrap();
    files.put(&svid, &authority.bundles()).unwrap();
    assert!(read(&at).is_some());
}

#[test]
fn nobody_else_may_write_in_a_directory_above() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("tls");
    fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
    let error = Files::open(&at, &layout(&[]).unwrap()).unwrap_err();
    assert!(error.to_string().contains("others may write in"), "{error:#}");
    fs::set_permissions(dir.path(), Permissions::from_mode(0o1777)).unwrap();
    Files::open(&at, &layout(&[]).unwrap()).unwrap();
}

#[test]
fn each_foreign_trust_domain_has_a_file_for_as_long_as_it_is_one() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("svid");
    let files = Files::open(&place, &layout(&[]).unwrap()).unwrap();
    let (authority, partner) = (
        TestAuthority::new("prod.example"),
        TestAuthority::new("partner.example"),
    );
    let svid = authority.svid("/web", Duration::from_secs(60));
    let both: BundleSet = [authority.bundle(), partner.bundle()].into_iter().collect();
    files.put(&svid, &both).unwrap();
    let foreign = place.join("bundle.partner.example.pem");
    assert_eq!(fs::read_to_string(&foreign).unwrap(), partner.bundle().to_pem());
    assert!(files.has(&svid, &both) && !files.has(&svid, &authority.bundles()));
    files.put(&svid, &authority.bundles()).unwrap();
    assert!(fs::symlink_metadata(&foreign).is_err(), "the link went with it");
    assert!(files.has(&svid, &authority.bundles()) && !files.has(&svid, &both));
}
