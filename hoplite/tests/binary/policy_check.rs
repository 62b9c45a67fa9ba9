//! `hoplite policy check` and `fmt` as people and their pipelines run them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::Value;

use crate::support::{Ca, hoplite};

pub(crate) const GOOD: &str = "@id(\"ledger/reads\")\n@owner(\"team-ledger\")\npermit (\n  principal in Hoplite::Path::\"prod.acme/shop\",\n  \
                    action in [Hoplite::Action::\"read\"],\n  resource in Hoplite::Service::\"ledger\"\n);\n";

/// Names and contents.
type Files<'a> = &'a [(&'a str, &'a [u8])];

/// Writes the files into a new directory.
fn directory(files: Files<'_>) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    dir
}

/// Exit code, and all that was said.
fn policy(verb: &str, dir: &Path, more: &[&str]) -> (Option<i32>, String) {
    let output = hoplite(&[&["policy", verb, dir.to_str().unwrap()], more].concat());
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8(said).unwrap();
    for noise in ["panicked", "overflow", "stack backtrace"] {
        assert!(!said.contains(noise), "{said}");
    }
    (output.status.code(), said)
}

#[test]
fn the_demo_is_good() {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/policies");
    let (code, said) = policy("check", &demo, &[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("5 policies in 5 files: all good"), "{said}");
}

#[test]
fn a_fault_is_shown_in_its_line() {
    let dir = directory(&[
        ("a.cedar", GOOD.as_bytes()),
        (
            "b.cedar",
            GOOD.replace("ledger/reads", "b")
                .replace("@owner(\"team-ledger\")\n", "")
                .as_bytes(),
        ),
    ]);
    let (code, said) = policy("check", dir.path(), &[]);
    assert_eq!(code, Some(1));
    let expected = format!(
        "{}/b.cedar:1:1: the policy has no `@owner`\n  |\n1 | @id(\"b\")\n  | ^^^^^^^^\n  \
         = help: put `@owner(\"team\")` before it, naming who answers for it\n\n1 warning in 2 files; \
         a proxy loads this, and `publish` does not sign it\n",
        dir.path().display()
    );
    assert_eq!(said, expected);

    let (code, said) = policy("check", dir.path(), &["--output", "json"]);
    assert_eq!(code, Some(1));
    let answer: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(answer["ok"], false);
    assert_eq!(answer["policies"], 2, "it compiles");
    let fault = &answer["faults"][0];
    assert_eq!(
        (&fault["file"], &fault["line"], &fault["column"]),
        (&"b.cedar".into(), &1.into(), &1.into())
    );
    assert_eq!(fault["reason"], "the policy has no `@owner`");
    assert_eq!(fault["level"], "warning");
    assert!(fault["help"].as_str().unwrap().starts_with("put `@owner"));

    fs::remove_file(dir.path().join("b.cedar")).unwrap();
    let (code, said) = policy("check", dir.path(), &["--output", "json"]);
    let answer: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(
        (code, &answer["ok"], &answer["faults"]),
        (Some(0), &true.into(), &Value::Array(Vec::new()))
    );
}

/// What a check calls an error is what nothing loads; a warning is what would be loaded.
#[test]
fn errors_are_told_from_warnings() {
    let forbid = |condition: &str| {
        format!("{GOOD}@id(\"f\") @owner(\"x\") forbid (principal, action, resource) when {{ {condition} }};\n")
    };
    let routes: &[u8] = b"[ledger]\nroutes = []\n";
    let check = |policy: &str, level: &str, expected: &str| {
        let dir = directory(&[("a.cedar", policy.as_bytes()), ("routes.toml", routes)]);
        let (code, said) = policy_json(dir.path());
        let fault = &said["faults"][0];
        assert_eq!(code, Some(1), "{said:#}");
        assert_eq!(
            (&fault["level"], &fault["line"]),
            (&level.into(), &8.into()),
            "{said:#}"
        );
        assert!(fault["reason"].as_str().unwrap().contains(expected), "{said:#}");
        let sources = hoplite_policy::Source {
            name: "a.cedar".to_owned(),
            text: policy.to_owned(),
        };
        assert_eq!(
            hoplite_policy::Snapshot::compile(&[sources]).is_err(),
            level == "error",
            "{policy}"
        );
    };
    check(&forbid("context has path"), "error", "no `context.path`");
    check(
        &forbid("context has host && context.host == \"Ledger:8443\""),
        "error",
        "no request has the host",
    );
    check(&forbid("context.conn.dow == \"Monday\""), "error", "no day of the week");
    let stranger = GOOD
        .replace("ledger/reads", "f")
        .replace("::\"ledger\"", "::\"legder\"")
        .replace('\n', " ");
    check(&format!("{GOOD}{stranger}\n"), "warning", "names the service `legder`");

    let dir = directory(&[("a.cedar", GOOD.as_bytes()), ("who", b"spiffe://prod.acme/shop/web\n")]);
    let who = dir.path().join("who").display().to_string();
    assert_eq!(policy("check", dir.path(), &["--registered", &who]).0, Some(0));
    fs::write(dir.path().join("who"), "spiffe://prod.acme/shopping\n").unwrap();
    let (code, said) = policy("check", dir.path(), &["--registered", &who]);
    assert!(
        code == Some(1) && said.contains("a.cedar:4:16: nobody is registered as `prod.acme/shop`"),
        "{said}"
    );

    let marked: Vec<u8> = [0xff, 0xfe]
        .into_iter()
        .chain(GOOD.encode_utf16().flat_map(u16::to_le_bytes))
        .collect();
    let dir = directory(&[("a.cedar", &marked)]);
    let (code, said) = policy("check", dir.path(), &[]);
    assert!(
        code != Some(0) && said.contains("`a.cedar` is UTF-16, as its byte order mark says; save it as UTF-8"),
        "{said}"
    );
}

fn policy_json(dir: &Path) -> (Option<i32>, Value) {
    let (code, said) = policy("check", dir, &["--output", "json"]);
    (code, serde_json::from_str(&said).unwrap())
}

#[test]
fn what_is_too_much_is_refused() {
    let long = format!(
        "{GOOD}@id(\"l\") permit (principal, action, resource) when {{ {} }};",
        "true || ".repeat(1_300) + "true"
    );
    let string = GOOD.replace("prod.acme/shop", &"x".repeat(1_000_000));
    let unclosed = format!("{GOOD}@id(\"{}", "x".repeat(1_000_000));
    let deep = |open: &str, close: &str, depth: usize| {
        format!(
            "{GOOD}@id(\"d\") permit (principal, action, resource) when {{ {}true{} }};",
            open.repeat(depth),
            close.repeat(depth)
        )
    };
    let (brackets, deepest) = (deep("(", ")", 40), deep("[", "]", 4_900));
    let chain = format!(
        "{GOOD}@id(\"c\") permit (principal, action, resource) when {{ {}true }};",
        "!".repeat(9_000)
    );
    let bytes = [GOOD.as_bytes(), b"\n// \xc3\x28\n"].concat();
    let upper = GOOD.replace("ledger/reads", "Ledger/Reads");
    let huge = "//".repeat(3_000_000);
    let large = "// nothing but this\n".repeat(200_000);
    let cases: &[(Files<'_>, &str)] = &[
        (
            &[("a.cedar", long.as_bytes())],
            "a.cedar:8:1: the policy is longer than 10000 bytes",
        ),
        (
            &[("a.cedar", string.as_bytes())],
            "a.cedar:1:1: the policy is longer than 10000 bytes",
        ),
        (
            &[("a.cedar", unclosed.as_bytes())],
            "a.cedar:8:1: the policy is longer than 10000 bytes",
        ),
        (
            &[("a.cedar", brackets.as_bytes())],
            "a.cedar:8:1: the policy nests deeper than 32",
        ),
        (
            &[("a.cedar", deepest.as_bytes())],
            "a.cedar:8:1: the policy nests deeper than 32",
        ),
        (
            &[("a.cedar", chain.as_bytes())],
            "a.cedar:8:1: the policy chains more than 400",
        ),
        (
            &[("a.cedar", &bytes)],
            "`a.cedar` is not UTF-8 in line 9; save it as UTF-8",
        ),
        (
            &[("a.cedar", GOOD.as_bytes()), ("b.cedar", GOOD.as_bytes())],
            "b.cedar:1:1: the `@id` `ledger/reads` is already used at a.cedar:1:1",
        ),
        (
            &[("a.cedar", GOOD.as_bytes()), ("b.cedar", upper.as_bytes())],
            "b.cedar:1:1: the `@id` `Ledger/Reads` differs only by case from `ledger/reads` at a.cedar:1:1",
        ),
        (
            &[
                ("a.cedar", GOOD.as_bytes()),
                ("c1.cedar", large.as_bytes()),
                ("c2.cedar", large.as_bytes()),
                ("c3.cedar", large.as_bytes()),
                ("c4.cedar", large.as_bytes()),
                ("c5.cedar", large.as_bytes()),
                ("c6.cedar", large.as_bytes()),
                ("c7.cedar", large.as_bytes()),
                ("c8.cedar", large.as_bytes()),
                ("c9.cedar", large.as_bytes()),
            ],
            "the sources up to this one exceed 33554432 bytes",
        ),
        (
            &[("a.cedar", huge.as_bytes())],
            "`a.cedar` has 6000000 bytes, more than 4194304; split it",
        ),
        (
            &[("a.cedar", GOOD.as_bytes()), ("pay/deep/b.cedar", b"")],
            "`pay/deep` is a folder within a module",
        ),
    ];
    for (files, expected) in cases {
        let dir = directory(files);
        for more in [&[][..], &["--output", "json"]] {
            let (code, said) = policy("check", dir.path(), more);
            assert_eq!(code, Some(1), "{expected}");
            assert!(said.len() < 4_000, "{expected}: {} bytes", said.len());
            if more.is_empty() {
                assert!(said.contains(expected), "`{expected}` is not in\n{said}");
            }
        }
    }
}

#[test]
fn a_module_speaks_of_its_own_services() {
    let modules = "[ledger]\nowner = \"team-ledger\"\nservices = [\"ledger\"]\n[pay]\nowner = \"team-pay\"\nservices = [\"pay\"]\n";
    let stolen = GOOD
        .replace("team-ledger", "team-pay")
        .replace("ledger/reads", "pay/reads");
    let dir = directory(&[
        ("modules.toml", modules.as_bytes()),
        ("ledger/a.cedar", GOOD.as_bytes()),
        ("pay/a.cedar", stolen.as_bytes()),
    ]);
    let (code, said) = policy("check", dir.path(), &[]);
    assert_eq!(code, Some(1));
    assert!(
        said.contains("/pay/a.cedar:6:3: the service `ledger` is not the module `pay`'s")
            && said.contains("6 |   resource in Hoplite::Service::\"ledger\"\n  |   ^^^^^^^^^^^^^"),
        "{said}"
    );
}

#[test]
fn fmt_changes_the_layout_and_nothing_else() {
    let loose = format!(
        "// a comment\n{}",
        GOOD.replace("\n  ", "  ").replace(" in ", "  in   ")
    );
    let routes = "[ledger]\nroutes = [   \"GET /\" ]\n";
    let modules = "[m]\nowner = \"team-ledger\"\nservices = [\"ledger\"]\n";
    let dir = directory(&[
        ("modules.toml", modules.as_bytes()),
        ("m/loose.cedar", loose.as_bytes()),
        ("m/tidy.cedar", GOOD.replace("ledger/reads", "t").as_bytes()),
        ("routes.toml", routes.as_bytes()),
    ]);
    let file = dir.path().join("m/loose.cedar");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    let revision = |more: &[&str]| {
        let (_, said) = policy("check", dir.path(), more);
        serde_json::from_str::<Value>(&said).unwrap()["policies"].clone()
    };
    let before = revision(&["--output", "json"]);

    let (code, said) = policy("fmt", dir.path(), &["--check"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("m/loose.cedar would change\n1 of 2 files would change"),
        "{said}"
    );
    assert_eq!(fs::read_to_string(&file).unwrap(), loose, "nothing was written");

    let (code, said) = policy("fmt", dir.path(), &[]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(fs::read_to_string(&file).unwrap(), format!("// a comment\n{GOOD}"));
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
    assert_eq!(fs::read_to_string(dir.path().join("routes.toml")).unwrap(), routes);
    assert_eq!(revision(&["--output", "json"]), before);
    let (code, said) = policy("fmt", dir.path(), &["--check"]);
    assert_eq!((code, said.as_str()), (Some(0), "0 of 2 files would change\n"));

    // One broken file: none is touched.
    fs::write(&file, &loose).unwrap();
    fs::write(dir.path().join("m/broken.cedar"), "permit (").unwrap();
    let (code, said) = policy("fmt", dir.path(), &[]);
    assert_eq!(code, Some(1));
    assert!(
        said.contains("m/broken.cedar:1:9: unexpected end of input") && said.contains("nothing was changed"),
        "{said}"
    );
    assert_eq!(fs::read_to_string(&file).unwrap(), loose);
}

#[test]
fn selected_headers_have_a_schema_and_are_explained() {
    let tenant = GOOD.replace(
        "\n);",
        "\n)\nwhen { context.hdr has \"x-tenant\" && context.hdr[\"x-tenant\"] == \"acme\" };",
    );
    let table =
        "[trust-domain prod.acme]\n/shop/web GET ledger / x-tenant=acme allow\n/shop/web GET ledger / no_permit\n";
    let dir = directory(&[
        ("a.cedar", tenant.as_bytes()),
        ("a.test", table.as_bytes()),
        ("headers.toml", b"headers = [\"x-tenant\"]\n"),
    ]);
    for (verb, expected) in [
        ("check", "good"),
        ("test", "2 cases"),
        ("schema", "\"x-tenant\"?: String"),
    ] {
        let (code, said) = policy(verb, dir.path(), &[]);
        assert!(code == Some(0) && said.contains(expected), "{verb}: {said}");
    }
    let explain = |header: &[&str]| {
        let path = dir.path().to_str().unwrap();
        let ask = [
            "policy",
            "explain",
            "--as",
            "spiffe://prod.acme/shop/web",
            "--do",
            "GET ledger /",
            "--policies",
            path,
        ];
        let output = hoplite(&[&ask, header].concat());
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
    };
    for (header, expected) in [
        (&["--header", "x-tenant: acme"][..], "\nallow by ledger/reads"),
        (&["--header", "X-Tenant: b"], "context.hdr[\"x-tenant\"] is \"b\""),
        (&[], "x-tenant: (absent)"),
        (&["--header", "x-tenant: a,b"], "is refused before policy is asked"),
        (&["--header", "cookie: a"], "does not select `cookie`"),
    ] {
        let said = explain(header);
        assert!(said.contains(expected), "{header:?}: {said}");
    }
    fs::write(dir.path().join("headers.toml"), "headers = [\"cookie\"]\n").unwrap();
    for verb in ["check", "schema"] {
        let (code, said) = policy(verb, dir.path(), &[]);
        assert!(
            code == Some(1) && said.contains("headers.toml:1:12: `cookie` cannot be selected"),
            "{verb}: {said}"
        );
    }
}

/// The CA itself is asked who is registered, all of them.
#[test]
fn workloads_that_the_ca_does_not_know_are_named() {
    let ca = Ca::start();
    let dir = directory(&[("a.cedar", GOOD.as_bytes())]);
    let at = dir.path().to_str().unwrap();
    let check = |more: &[&str]| {
        let output = ca.tool(&[&["policy", "check", at, "--registered"], more].concat());
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        (output.status.code(), said)
    };
    let apply = |text: &str| {
        let file = ca.dir().join("entries.toml");
        fs::write(&file, text).unwrap();
        let applied = ca.tool(&["entry", "apply", file.to_str().unwrap(), "--owner", "test", "--prune"]);
        assert!(applied.status.success(), "{applied:?}");
    };
    let entries = |names: &mut dyn Iterator<Item = String>| -> String {
        names
            .map(|name| {
                format!(
                    "[[entry]]\nspiffe_id = \"spiffe://test.example{name}\"\nparent = \"spiffe://test.example/hoplite/agent/n\"\n\
                     selectors = [\"unix:uid:1\"]\n"
                )
            })
            .collect()
    };
    // Nobody at all; somebody whose name begins like it; and then the one, last of many.
    let (code, said) = check(&[]);
    assert!(
        code == Some(1) && said.contains("a.cedar:4:16: nobody is registered as `prod.acme/shop`, or below it"),
        "{said}"
    );
    // Twelve of them, so that it shows if only a part of the entries were asked for.
    let own: String = (0..12)
        .map(|n| {
            let shop = format!("test.example/shop{n}");
            GOOD.replace("prod.acme/shop", &shop)
                .replace("ledger/reads", &format!("ledger/reads-{n}"))
        })
        .collect();
    fs::write(dir.path().join("a.cedar"), &own).unwrap();
    apply(&entries(&mut ["/shop0ping".to_owned()].into_iter()));
    let (code, said) = check(&["--output", "json"]);
    let told: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(
        (code, &told["faults"][0]["level"], &told["ok"]),
        (Some(1), &"warning".into(), &false.into())
    );
    // More than a message has bytes where nobody says how many it may have.
    let names: Vec<String> = (0..30).map(|n| format!("n{n}.{0}.{0}.{0}", "x".repeat(60))).collect();
    let many = entries(&mut (0..900).map(|n| format!("/a/{n}\"\ndns_names = {names:?} # ")));
    apply(&(many + &entries(&mut (0..12).map(|n| format!("/shop{n}/web")))));
    let (code, said) = check(&[]);
    assert_eq!(code, Some(0), "{said}");
    // Who leaves is missed again, and without the CA nothing is said to be good.
    apply(&entries(&mut ["/a/1".to_owned()].into_iter()));
    assert_eq!(check(&[]).0, Some(1));
    let gone = ca.dir().join("gone.sock");
    let output = hoplite(&[
        "policy",
        "check",
        at,
        "--registered",
        "--ca-socket",
        gone.to_str().unwrap(),
    ]);
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(output.status.code() == Some(1) && said.contains("gone.sock"), "{said}");
    assert!(!said.contains("are good"), "{said}");
}
