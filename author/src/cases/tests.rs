//! Tables as people write them, right and wrong.

use super::*;

const POLICIES: &str = r#"
@id("pay/read") permit (
  principal in Hoplite::Path::"prod.acme/ns/web", action in [Hoplite::Action::"read"], resource in Hoplite::Service::"ledger");
@id("pay/office") permit (principal, action, resource == Hoplite::Route::"ledger:POST /entries")
when { context.conn.src.isInRange(ip("10.20.0.0/16")) && context.conn.dow == "Mon" && context.host == "ledger" };
@id("pay/night") permit (principal, action, resource == Hoplite::Route::"ledger:POST /entries")
when { context.conn.now.toTime() < duration("6h") };
@id("sec/no-bad") forbid (principal in Hoplite::Path::"prod.acme/ns/bad", action, resource);
@id("sec/broken") forbid (principal, action == Hoplite::Action::"DELETE", resource)
when { context.seg.n * 9223372036854775807 > 0 };
@id("db/connect") permit (principal, action == Hoplite::Action::"connect", resource == Hoplite::Service::"postgres");
"#;

pub(super) fn source(name: &str, text: &str) -> Source {
    Source {
        name: name.to_owned(),
        text: text.to_owned(),
    }
}

pub(super) fn snapshot() -> Snapshot {
    let routes = "[ledger]\nroutes = [\"GET /accounts/{id}\", \"POST /entries\"]";
    Snapshot::compile(&[source("a.cedar", POLICIES), source("routes.toml", routes)]).unwrap()
}

/// Runs a table with headers, and a policy that looks at one.
pub(super) fn snapshot_with_headers() -> Snapshot {
    let policy = r#"@id("tenant") permit (principal, action == Hoplite::Action::"PUT", resource)
        when { context.hdr has "x-tenant" && context.hdr["x-tenant"] == "a b" && !(context.hdr has "content-type") };"#;
    Snapshot::compile(&[
        source("a.cedar", &format!("{POLICIES}{policy}")),
        source("headers.toml", "headers = ['x-tenant', 'content-type']"),
        source("routes.toml", "[ledger]\nroutes = [\"POST /entries\"]"),
    ])
    .unwrap()
}

pub(super) fn parse(name: &str, table: &str, snapshot: &Snapshot) -> Result<CaseTable, Vec<Fault>> {
    CaseTable::parse(&source(name, table), snapshot.headers())
}

/// Runs the table and expects each case to come out as it says, unless it says `!`: then that comes out instead.
#[track_caller]
fn check(table: &str) {
    check_of(&snapshot(), table);
}

#[track_caller]
fn check_of(snapshot: &Snapshot, table: &str) {
    let parsed = parse("a.test", table, snapshot).unwrap_or_else(|faults| panic!("{faults:#?}"));
    let results = parsed.run(snapshot, &Places::default());
    assert_eq!(results.len(), parsed.len());
    for result in &results {
        let line = table.lines().nth(result.line - 1).unwrap();
        assert_eq!(result.column, line.len() - line.trim_start().len() + 1);
        match line.split_once('!') {
            None => assert!(result.passed, "{line}\n{result:#?}"),
            Some((_, found)) => {
                assert!(!result.passed, "{line}");
                assert_eq!(result.found, found.trim(), "{line}\n{result:#?}");
            }
        }
    }
}

#[test]
fn a_table_says_what_comes_out() {
    check(
        "
[trust-domain prod.acme]
# who                    does                        expect
/ns/web/sa/shop          GET ledger /accounts/7      allow by pay/read
/ns/web/sa/shop          GET ledger /accounts/7      allow            # without `by`
/ns/web                  GET ledger /x?y=z           allow by pay/read
/ns/web                  POST ledger /entries        no_permit
/ns/bad                  connect postgres            forbid by sec/no-bad
/ns/web                  connect postgres            allow by db/connect
/ns/web                  DELETE ledger /a/b          error by sec/broken
/ns/web                  GET ledger /a%2fb           malformed
/ns/web                  TRACE ledger /              malformed
/ns/web                  OPTIONS ledger *            allow
spiffe://other.org/x     GET ledger /accounts/7      no_permit
spiffe://prod.acme       GET ledger /accounts/7      no_permit

[from 10.20.0.9]
/ns/web                  POST ledger /entries        allow by pay/office
[at 2026-11-23T03:00Z]
/ns/web                  POST ledger /entries        allow by pay/office, pay/night
/ns/web                  POST ledger /entries        allow by pay/night,pay/office
  [ at 2026-11-22T03:00:00Z from ::1 ]  # a Sunday
\t/ns/web\tPOST ledger /entries\tallow by pay/night
[at 2026-11-23T12:00:00Z from 10.20.0.9 host other.example]
/ns/web                  POST ledger /entries        no_permit
[trust-domain other.org]
/ns/web                  GET ledger /accounts/7      no_permit
",
    );
    check("");
    check("# nothing\r\n\r\n");
    check("\u{feff}spiffe://a/b GET ledger / no_permit\r\n");
}

#[test]
fn a_row_may_have_headers() {
    check_of(
        &snapshot_with_headers(),
        "
[trust-domain prod.acme]
/web   PUT ledger / x-tenant=\"a b\"                          allow by tenant
/web   PUT ledger /  x-tenant=\"a b\"   allow   # a \" in a comment
/web   PUT ledger / x-tenant=\"a # b\"                        no_permit
/web   PUT ledger / x-tenant=a                               no_permit
/web   PUT ledger /                                          no_permit
/web   PUT ledger / content-type=a/b;c=d x-tenant=\"a b\"     no_permit
/web   PUT ledger / x-tenant=\"a b\" x-tenant=\"a b\"         malformed
/web   PUT ledger / x-tenant=a,b                             malformed
/web   PUT ledger / x-tenant=                                malformed
/web   PUT ledger /?a=b x-tenant=\"a b\"                      allow by tenant
/web   PUT ledger /a=b                                       no_permit
",
    );
}

#[test]
fn a_case_that_fails_says_what_came_out() {
    check(
        "
[trust-domain prod.acme]
/ns/web    GET ledger /accounts/7      no_permit              #! allow by pay/read
/ns/web    GET ledger /accounts/7      allow by pay/night     #! allow by pay/read
/ns/web    GET ledger /accounts/7      malformed              #! allow by pay/read
/ns/web    GET ledger /a%2fb           allow                  #! malformed
/ns/bad    GET ledger /accounts/7      no_permit              #! forbid by sec/no-bad
/ns/web    DELETE ledger /a/b          forbid                 #! error by sec/broken
/ns/web    PUT ledger /a/b             allow by pay/read      #! no_permit
",
    );
}

#[test]
fn what_nearly_decided_is_told_of_what_fails() {
    let routes = "[ledger]\nroutes = [\"POST /entries\"]";
    let policies = [source("a.cedar", POLICIES), source("routes.toml", routes)];
    let snapshot = Snapshot::compile(&policies).unwrap();
    let table = "[trust-domain prod.acme]\n/ns/web GET ledger / no_permit\n/ns/web PUT ledger / allow by pay/read\n\
                 /ns/web GET ledger / allow by pay/read";
    let results = parse("a.test", table, &snapshot)
        .unwrap()
        .run(&snapshot, &Places::of(&policies));
    let nearly: Vec<_> = results.iter().map(|result| result.why.get(1..).unwrap()).collect();
    assert!(nearly[0].is_empty() && nearly[2].is_empty(), "{nearly:?}");
    let near = "permit `pay/read` is about another action (a.cedar:2:1): ";
    assert!(nearly[1].iter().any(|line| line.starts_with(near)), "{nearly:?}");

    let snapshot = super::tests::snapshot();
    let failing = "spiffe://prod.acme/ns/pay POST ledger /entries allow\n".repeat(EXPLAINED_MAX + 1);
    let results = parse("a.test", &failing, &snapshot)
        .unwrap()
        .run(&snapshot, &Places::default());
    let office =
        "permit `pay/office` does not apply: context.conn.src.isInRange(ip(\"10.20.0.0/16\")), context.conn.src is ";
    let told = |result: &CaseResult| result.why.iter().any(|line| line.starts_with(office));
    assert!(told(&results[0]), "{:#?}", results[0]);
    assert!(told(&results[EXPLAINED_MAX - 1]) && !told(&results[EXPLAINED_MAX]));
}

#[test]
fn the_reasons_are_told() {
    let table = "[trust-domain prod.acme]\n/ns/web DELETE ledger /a/b allow by pay/raed\n/x GET ledger /a;b allow";
    let results = parse("a.test", table, &snapshot())
        .unwrap()
        .run(&snapshot(), &Places::default());
    let [decided, malformed] = &results[..] else {
        panic!("{results:?}")
    };
    assert_eq!(decided.case, "/ns/web DELETE ledger /a/b");
    let why = decided.why.join("\n");
    for part in [
        "the route is `ledger:unmatched`",
        "a forbid could not be evaluated: `sec/broken`",
        "not evaluated: sec/broken: ",
        "no policy has the `@id` `pay/raed`",
    ] {
        assert!(why.contains(part), "{part} is missing from {why}");
    }
    assert_eq!(malformed.why, ["the path holds a `;` parameter"]);
}

#[test]
fn a_broken_snapshot_passes_no_table_that_expects_otherwise() {
    let table = "spiffe://a/b GET x / no_permit\nspiffe://a/b GET x / error";
    let table = parse("a.test", table, &snapshot()).unwrap();
    let passed: Vec<_> = table
        .run(&Snapshot::deny_all("broken"), &Places::default())
        .iter()
        .map(|r| r.passed)
        .collect();
    assert_eq!(passed, [false, true]);
}

/// Each expectation is `line:column` and, after `…`, a part of the reason.
#[track_caller]
fn faults(table: &str, expected: &[&str]) {
    let faults = parse("a.test", table, &snapshot_with_headers()).expect_err("it must be refused");
    let faults: Vec<_> = faults.iter().map(ToString::to_string).collect();
    assert_eq!(faults.len(), expected.len(), "{faults:#?}");
    for (fault, expected) in faults.iter().zip(expected) {
        let (place, reason) = expected.split_once('…').unwrap();
        assert!(
            fault.starts_with(&format!("a.test:{place}: ")) && fault.contains(reason),
            "{fault}\nis not {expected}"
        );
        assert!(
            fault.contains("; ") || fault.contains("upper case"),
            "{fault} does not say what to do"
        );
    }
}

#[test]
fn what_is_unknown_is_refused_with_the_remedy() {
    faults(
        "
/ns/web GET ledger / allow
web GET ledger / allow
[trust-domain prod.acme]
/ns//web GET ledger / allow
/ns/web get ledger / allow
/ns/web read ledger allow
/ns/web GET led/ger / allow
/ns/web GET ledger allow
/ns/web connect ledger / allow
/ns/web GET ledger / deny
/ns/web GET ledger / Allow
/ns/web GET ledger / allow pay/read
/ns/web GET ledger / allow by
/ns/web GET ledger / no_permit by pay/read
/ns/web GET ledger /
/ns/web GET ledger # allow
/ns/web GET
  /ns/web
",
        &[
            "2:1…`/ns/web` has no trust domain",
            "3:1…write a caller as",
            "5:1…empty path segment",
            "6:9…`get` is neither `connect` nor a method, which is in upper case like `GET`",
            "7:9…`read` is neither",
            "8:13…not a service name",
            "9:20…`allow` is no path",
            "10:24…`/` is no outcome",
            "11:22…`deny` is no outcome; write `allow`, `forbid`",
            "12:22…`Allow` is no outcome",
            "13:28…`pay/read` does not belong here",
            "14:28…has no policy after it",
            "15:32…does not go with `no_permit`",
            "16:21…no outcome",
            "17:19…no path",
            "18:12…no service",
            "19:10…no method",
        ],
    );
    faults(
        "[]\n[ ]\n[from]\n[from 10.0.0.300]\n[at noon]\n[at 2026-11-23T03:00:00+01:00]\n[trustdomain a]\n[trust-domain A]\n[host a/b]\n[from ::1\n[from ::1 at]",
        &[
            "1:1…no setting in the brackets",
            "2:1…no setting in the brackets",
            "3:2…`from` has no value; write it like `[from 10.20.0.9]`",
            "4:7…`10.0.0.300` is no value for `from`",
            "5:5…`noon` is no value for `at`",
            "6:5…is no value for `at`",
            "7:2…`trustdomain` is no setting; there are",
            "8:15…is no value for `trust-domain`",
            "9:7…is no value for `host`",
            "10:1…have no end",
            "11:11…`at` has no value",
        ],
    );
    faults(
        "spiffe://a/b GET ledger / x-tennant=a allow\nspiffe://a/b GET ledger / x-tenant=\"a allow\nspiffe://a/b connect db x-tenant=a allow\nspiffe://a/b GET ledger / allow x-tenant=a",
        &[
            "1:27…`x-tennant=a` is no header that `headers.toml` selects",
            "2:27…has no closing",
            "3:25…is no outcome",
            "4:33…does not belong here",
        ],
    );
    faults(&"x".repeat(TABLE_BYTES_MAX + 1), &["1:1…is longer than"]);
    let many = parse("a.test", &"x\n".repeat(1_000), &snapshot()).unwrap_err();
    assert_eq!(many.len(), TABLE_FAULTS_MAX);
}

#[test]
fn the_default_instant_is_a_monday_noon() {
    assert_eq!(
        SystemTime::UNIX_EPOCH + DEFAULT_NOW,
        humantime::parse_rfc3339("2026-01-05T12:00:00Z").unwrap()
    );
    assert_eq!(instant("2026-11-23T03:00Z"), instant("2026-11-23T03:00:00Z"));
}

proptest::proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "(\\[|\\]|#|/|[ \\t\\r\\n\u{a0}é]|at|from|by|allow|GET|connect|x|spiffe://a/b){0,40}") {
        if let Ok(table) = parse("a.test", &text, &Snapshot::deny_all("none")) {
            table.run(&Snapshot::deny_all("none"), &Places::default());
        }
    }
}
