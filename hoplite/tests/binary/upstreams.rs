//! A CA under the authority of a company: OpenSSL makes that, and verifies what comes of it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::keys::Ca;
use crate::support::{hoplite, until};

/// A company's authorities, in one directory.
struct Company(PathBuf);

// === impl Company ===

impl Company {
    /// A root with an RSA key, as companies have them, and an intermediate with these extensions for the CA.
    fn found(root: &Path, name: &str, extensions: &str, days: &str) -> Self {
        let dir = root.join(name);
        fs::create_dir_all(&dir).unwrap();
        let company = Self(dir);
        company.openssl(&[
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            "root.key",
            "-out",
            "root.pem",
            "-days",
            "3650",
            "-subj",
            "/C=DE/O=Example AG/CN=Example Root",
            "-addext",
            "basicConstraints=critical,CA:TRUE",
            "-addext",
            "keyUsage=critical,keyCertSign,cRLSign",
        ]);
        company.issue("ca", extensions, days);
        company
    }

    fn issue(&self, name: &str, extensions: &str, days: &str) {
        fs::write(
            self.0.join("extensions"),
            format!("{extensions}\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"),
        )
        .unwrap();
        let (key, csr, pem) = (format!("{name}.key"), format!("{name}.csr"), format!("{name}.pem"));
        self.openssl(&[
            "genpkey",
            "-algorithm",
            "EC",
            "-pkeyopt",
            "ec_paramgen_curve:P-384",
            "-out",
            &key,
        ]);
        self.openssl(&[
            "req",
            "-new",
            "-key",
            &key,
            "-subj",
            "/C=DE/O=Example AG/CN=Example Machines",
            "-out",
            &csr,
        ]);
        self.openssl(&[
            "x509",
            "-req",
            "-in",
            &csr,
            "-CA",
            "root.pem",
            "-CAkey",
            "root.key",
            "-CAcreateserial",
            "-days",
            days,
            "-extfile",
            "extensions",
            "-out",
            &pem,
        ]);
        fs::set_permissions(self.0.join(&key), fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn openssl(&self, words: &[&str]) -> String {
        let said = Command::new("openssl")
            .args(words)
            .current_dir(&self.0)
            .output()
            .unwrap();
        assert!(
            said.status.success(),
            "{words:?}: {}",
            String::from_utf8_lossy(&said.stderr)
        );
        String::from_utf8(said.stdout).unwrap()
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    /// The CA's section about it.
    fn section(&self) -> String {
        format!(
            "[upstream]\nkind = \"disk\"\ncertificate = \"{}\"\nkey = \"{}\"\nroots = \"{}\"\n",
            self.file("ca.pem"),
            self.file("ca.key"),
            self.file("root.pem")
        )
    }
}

const MAY_SIGN: &str = "basicConstraints=critical,CA:TRUE,pathlen:1\nkeyUsage=critical,keyCertSign,cRLSign";

#[test]
fn a_ca_under_a_company_is_believed_by_its_root() {
    let root = tempfile::tempdir().unwrap();
    let company = Company::found(root.path(), "company", MAY_SIGN, "400");
    let mut ca = Ca::at(root.path(), "ca");
    let said = ca.init(&[("--upstream", &company.section())]);
    assert!(said.status.success(), "{said:?}");
    ca.run();
    // Members trust the company's root, and nothing else; so does who joins, by its fingerprint.
    let trusted = fs::read_to_string(format!("{}/ca/bundle.pem", ca.dir)).unwrap();
    assert_eq!(
        trusted.trim(),
        fs::read_to_string(company.0.join("root.pem")).unwrap().trim()
    );
    let before = ca.json(&["token", "create", "--node", "late"])["invitation"]
        .as_str()
        .unwrap()
        .to_owned();
    let node = ca.node(root.path(), "n1");
    ca.register("app", "n1");
    node.has("app");

    // The company's authority is younger than what certificates are back-dated by, and the agent takes that for no fault.
    let log = fs::read_to_string(ca.log()).unwrap();
    assert!(!log.contains("reattest"), "{log}");

    // OpenSSL verifies all of it: leaf, the CA's authority, the company's.
    let verify = |files: &str| {
        let directory = root.path().join(files);
        let said = hoplite(&[
            "svid",
            "fetch",
            "--write",
            directory.to_str().unwrap(),
            "--dir",
            &node.dir,
        ]);
        assert!(said.status.success(), "{said:?}");
        let chain = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path());
        let chain = chain
            .into_iter()
            .find(|path| fs::read_to_string(path).is_ok_and(|text| text.matches("BEGIN CERTIFICATE").count() > 1));
        let chain = chain.expect("the SVID's file has its chain").display().to_string();
        let said = company.openssl(&[
            "verify",
            "-x509_strict",
            "-purpose",
            "sslserver",
            "-CAfile",
            "root.pem",
            "-untrusted",
            &chain,
            &chain,
        ]);
        assert!(said.contains("OK"), "{said}");
        company.openssl(&["x509", "-in", &chain, "-noout", "-issuer", "-serial"])
    };
    let first = verify("first");

    // The next authority is under it too, and an invitation of before is good still.
    assert!(ca.ask(&["authority", "prepare"]).status.success());
    let said = ca.ask(&["authority", "activate"]);
    assert!(said.status.success(), "{said:?}");
    until("another certificate under another authority", || {
        (verify("second") != first).then_some(())
    });
    let late = root.path().join("late").display().to_string();
    let said = hoplite(&["join", &before, "--dir", &late]);
    assert!(said.status.success(), "{said:?}");

    // What the old one signed is replaced after its taint, and then counts for nothing.
    let old = ca.json(&["authority", "list"]);
    let old = old
        .as_array()
        .unwrap()
        .iter()
        .find(|one| one["state"] == "old")
        .unwrap()["fingerprint"]
        .as_str()
        .unwrap()
        .to_owned();
    let said = ca.ask(&["authority", "taint", &old]);
    assert!(said.status.success(), "{said:?}");
    let said = until("nothing needs it any more", || {
        let said = ca.ask(&["authority", "revoke", &old]);
        said.status.success().then_some(said)
    });
    assert!(said.status.success());
    node.has("app");
    // A restart finds all of it.
    ca.stop();
    ca.run();
    ca.register("later", "n1");
    node.has("later");
}

#[test]
fn what_a_company_does_not_allow_is_refused_at_the_start_with_the_remedy() {
    let root = tempfile::tempdir().unwrap();
    let check =
        |name: &str, extensions: &str, days: &str, change: &dyn Fn(&Company, String) -> String, expected: &[&str]| {
            let company = Company::found(root.path(), name, extensions, days);
            let ca = Ca::at(root.path(), &format!("{name}-ca"));
            let said = ca.init(&[("--upstream", &change(&company, company.section()))]);
            let told = String::from_utf8_lossy(&said.stderr).into_owned();
            assert!(!said.status.success(), "{name}: {said:?}");
            for part in expected {
                assert!(told.contains(part), "{name}: `{part}` is missing from `{told}`");
            }
            assert!(!told.contains("BEGIN"), "{told}");
            assert!(
                !Path::new(&ca.dir).join("ca").exists(),
                "{name}: a CA that was refused leaves a directory"
            );
        };
    let as_it_is = |_: &Company, section: String| section;
    check(
        "short-path",
        "basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign",
        "400",
        &as_it_is,
        &["path length 0", "1 or more"],
    );
    check(
        "no-ca",
        "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature",
        "400",
        &as_it_is,
        &["CA:TRUE"],
    );
    let elsewhere = format!("{MAY_SIGN}\nnameConstraints=critical,permitted;URI:other.example");
    check("elsewhere", &elsewhere, "400", &as_it_is, &["name constraints"]);
    check("ends", MAY_SIGN, "1", &as_it_is, &["ends at", "x509_ttl"]);
    check(
        "no-root",
        MAY_SIGN,
        "400",
        &|company, section| {
            section
                .replace(&company.file("root.pem"), &company.file("ca.pem"))
                .replace("roots = ", "# ")
        },
        &["is no root", "roots"],
    );
    check(
        "other-root",
        MAY_SIGN,
        "400",
        &|company, section| {
            company.openssl(&[
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-keyout",
                "o.key",
                "-out",
                "other.pem",
                "-days",
                "9",
                "-subj",
                "/CN=Other",
            ]);
            section.replace("root.pem", "other.pem")
        },
        &["root"],
    );
    check(
        "other-key",
        MAY_SIGN,
        "400",
        &|_, section| section.replace("ca.key", "root.key"),
        &["is not the key"],
    );
    check(
        "encrypted",
        MAY_SIGN,
        "400",
        &|company, section| {
            company.openssl(&[
                "pkcs8",
                "-topk8",
                "-in",
                "ca.key",
                "-out",
                "sealed.key",
                "-passout",
                "pass:x",
            ]);
            fs::set_permissions(company.0.join("sealed.key"), fs::Permissions::from_mode(0o600)).unwrap();
            section.replace("ca.key", "sealed.key")
        },
        &["PKCS#8", "openssl pkcs8"],
    );
    check(
        "here-only",
        MAY_SIGN,
        "400",
        &|company, section| section.replace(&company.file("ca.key"), "here-only/ca.key"),
        &["`here-only/ca.key`", "write `/"],
    );
    check(
        "no-certificate",
        MAY_SIGN,
        "400",
        &|company, section| section.replace(&company.file("ca.pem"), &company.file("extensions")),
        &["no section `CERTIFICATE`"],
    );
    // What it advises can be done.
    let ends = Company::found(root.path(), "soon", MAY_SIGN, "1");
    let settings = "x509_ttl = \"10m\"\nagent_ttl = \"10m\"\n";
    let said = Ca::at(root.path(), "soon-ca").init(&[("--settings", settings), ("--upstream", &ends.section())]);
    assert!(said.status.success(), "{said:?}");
    // One that permits the trust domain is no hindrance.
    let here = format!("{MAY_SIGN}\nnameConstraints=critical,permitted;URI:test.example");
    let company = Company::found(root.path(), "here", &here, "400");
    let said = Ca::at(root.path(), "here-ca").init(&[("--upstream", &company.section())]);
    assert!(said.status.success(), "{said:?}");
}
