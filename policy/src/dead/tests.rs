//! Every dead word is refused by what loads policies, with line, column, caret and remedy.

use crate::snapshot::Snapshot;
use crate::snapshot::tests::sources;

const ROUTES: &str = "[ledger]\nroutes = [\"GET /accounts/{id}\", \"GET /health\"]";
const WHO: &str = r#"principal in Hoplite::Path::"prod.acme/ns/pay""#;
const WHAT: &str = r#"resource in Hoplite::Service::"ledger""#;
const GET: &str = r#"action == Hoplite::Action::"GET""#;

/// A policy in three lines: its id, its scope, its conditions. The expectation is `line:column` and, after `…`, a part of the
/// message; empty if nothing is dead.
#[track_caller]
fn policy(effect: &str, scope: &str, conditions: &str, expected: &str) {
    let text = format!("@id(\"x\")\n{effect} ({scope})\n{conditions};");
    let files = [
        ("a.cedar", text.as_str()),
        ("headers.toml", "headers = [\"x-tenant\"]"),
        ("routes.toml", ROUTES),
    ];
    let found = Snapshot::compile(&sources(&files)).err().unwrap_or_default();
    if expected.is_empty() {
        assert_eq!(found, [], "{text}");
        return;
    }
    let (place, message) = expected.split_once('…').unwrap();
    let [fault] = found.as_slice() else {
        panic!("{text}\n{found:#?}")
    };
    let line = fault.to_string();
    assert!(
        line.starts_with(&format!("a.cedar:{place}: ")) && line.contains(message),
        "{line}\nis not {expected}"
    );
    assert!(
        fault.help.is_some() && fault.render().contains('^'),
        "{}",
        fault.render()
    );
}

/// A forbid and a permit of `GET` with this condition, which starts at column 8 of line 3.
#[track_caller]
fn when(condition: &str, expected: &str) {
    for effect in ["permit", "forbid"] {
        policy(
            effect,
            &format!("{WHO}, {GET}, {WHAT}"),
            &format!("when {{ {condition} }}"),
            expected,
        );
    }
}

#[test]
fn names() {
    for (principal, expected) in [
        (
            "principal == Hoplite::Workload::\"prod.acme/ns/pay\"",
            "2:22…no workload is called",
        ),
        (
            "principal == Hoplite::Workload::\"spiffe://prod.acme\"",
            "2:22…which is a trust domain",
        ),
        (
            "principal == Hoplite::Workload::\"spiffe://Prod.acme/x\"",
            "2:22…no workload is called",
        ),
        (
            "principal == Hoplite::Workload::\"spiffe://prod.acme/x/\"",
            "2:22…no workload is called",
        ),
        (
            "principal in Hoplite::Path::\"spiffe://prod.acme/ns\"",
            "2:22…no workload is below",
        ),
        (
            "principal in Hoplite::Path::\"prod.acme/ns/\"",
            "2:22…no workload is below",
        ),
        (
            "principal in Hoplite::Path::\"Prod.acme/ns\"",
            "2:22…no workload is below",
        ),
        (
            "principal in Hoplite::Path::\"prod.acme/ns/*\"",
            "2:22…no workload is below",
        ),
        (
            "principal in Hoplite::Path::\"prod.acme\"",
            "2:22…Hoplite::TrustDomain::\"prod.acme\"",
        ),
        (
            "principal in Hoplite::TrustDomain::\"prod acme\"",
            "2:22…no trust domain `prod acme`",
        ),
        (
            "principal in Hoplite::TrustDomain::\"prod.acme/\"",
            "2:22…no trust domain `prod.acme/`",
        ),
        (
            "principal in Hoplite::TrustDomain::\"Prod.Acme\"",
            "2:22…no trust domain `Prod.Acme`",
        ),
    ] {
        for effect in ["permit", "forbid"] {
            policy(effect, &format!("{principal}, {GET}, {WHAT}"), "", expected);
        }
    }
    let deep = format!("principal in Hoplite::Path::\"prod.acme{}\"", "/a".repeat(65));
    policy(
        "forbid",
        &format!("{deep}, {GET}, {WHAT}"),
        "",
        "2:22…more than 64 segments",
    );
    when(
        "!(principal in Hoplite::Path::\"prod.acme/\")",
        "3:23…no workload is below",
    );
    when("!(principal in Hoplite::Path::\"prod.acme/x\")", "");
}

#[test]
fn resources() {
    for (resource, expected) in [
        ("resource in Hoplite::Service::\"led ger\"", "2:103…not a service name"),
        ("resource in Hoplite::Service::\"Ledger\"", "2:103…not a service name"),
        (
            "resource == Hoplite::Route::\"ledger:GET /acounts/{id}\"",
            "2:103…no route `ledger:GET /acounts/{id}`; add it",
        ),
        ("resource == Hoplite::Route::\"ledger\"", "2:103…no route `ledger`"),
        (
            "resource == Hoplite::Route::\"ledger:GET /accounts/:id\"",
            "2:103…write `ledger:GET /accounts/{id}`",
        ),
        (
            "resource == Hoplite::Route::\"ledger:GET /accounts/*\"",
            "2:103…write `ledger:GET /accounts/{id}`",
        ),
        (
            "resource == Hoplite::Route::\"ledger:GET /accounts/{account}\"",
            "2:103…write `ledger:GET /accounts/{id}`",
        ),
        (
            "resource == Hoplite::Route::\"ledger:get /health\"",
            "2:103…write `ledger:GET /health`",
        ),
        (
            "resource == Hoplite::Route::\"ledger:GET /health/\"",
            "2:103…write `ledger:GET /health`",
        ),
        ("resource == Hoplite::Route::\"ledger:GET /health\"", ""),
        ("resource == Hoplite::Route::\"ledger:unmatched\"", ""),
    ] {
        for effect in ["permit", "forbid"] {
            policy(effect, &format!("{WHO}, {GET}, {resource}"), "", expected);
        }
    }
    policy(
        "forbid",
        &format!("{WHO}, action == Hoplite::Action::\"get\", {WHAT}"),
        "",
        "2:67…unrecognized action",
    );
}

#[test]
fn policies_that_apply_to_nothing() {
    for (scope, expected) in [
        (
            format!("{WHO}, {GET}, resource == Hoplite::Service::\"ledger\""),
            "2:57…an HTTP request is to a route",
        ),
        (
            format!(
                "{WHO}, action == Hoplite::Action::\"connect\", resource == Hoplite::Route::\"ledger:GET /health\""
            ),
            "2:57…`connect` is to a service",
        ),
        (
            format!("principal == Hoplite::Path::\"prod.acme/ns\", {GET}, {WHAT}"),
            "2:53…for a path or trust domain write `in`",
        ),
    ] {
        policy("permit", &scope, "", expected);
        policy("forbid", &scope, "", expected);
    }
    when("context.seg.n == 1 && false", "2:1…false for every request");
    let scope = format!("{WHO}, {GET}, {WHAT}");
    policy(
        "forbid",
        &scope,
        "unless { principal is Hoplite::Workload }",
        "2:1…can never apply",
    );
}

#[test]
fn attributes_that_nothing_has() {
    for (condition, expected) in [
        (
            "context has path",
            "3:20…no `context.path`, so this is never so; `context` has `conn`, `host`, `seg`",
        ),
        ("context has path && context.seg.n > 1", "3:20…no `context.path`"),
        // Where Cedar itself finds nothing, since the whole may hold.
        ("context has path || context.seg.n > 1", "3:20…no `context.path`"),
        ("!(context has path)", "3:22…no `context.path`"),
        (
            "context.seg has s4",
            "3:24…`context.seg` has `n`, `s0`, `s1`, `s2`, `s3`",
        ),
        ("context.conn has source", "3:25…no `context.conn.source`"),
        ("context has seg.s7", "3:24…no `context.seg.s7`"),
        ("principal has team", "3:22…`principal` has no attributes"),
        (
            "context.hdr has \"x-tennant\"",
            "3:24…select the header in `headers.toml`",
        ),
        ("context.hdr has \"X-Tenant\"", "3:24…select the header"),
        (
            "context.hdr has \"x-tenant\" && context.hdr[\"x-tenant\"] == \"acme\"",
            "",
        ),
        ("context has host && context.host == \"ledger\"", ""),
    ] {
        when(condition, expected);
    }
    let text = "@id(\"x\") permit (principal, action, resource) when { !(context has hdr) };";
    let found = Snapshot::compile(&sources(&[("a.cedar", text)])).unwrap_err();
    assert!(found[0].to_string().contains("no `context.hdr`"), "{found:?}");
}

#[test]
fn texts_that_no_request_has() {
    for (condition, expected) in [
        ("context.host == \"Ledger.acme\"", "3:24…write `ledger.acme`"),
        ("context.host != \"ledger.acme:8443\"", "3:24…write `ledger.acme`"),
        ("\"ledger.\" == context.host", "3:8…write `ledger`"),
        ("[\"ledger\", \"LEDGER\"].contains(context.host)", "3:19…write `ledger`"),
        ("context.host == \"https://ledger\"", "3:24…no request has the host"),
        (
            "if context.host == \"/a\" then true else false",
            "3:27…no request has the host `/a`",
        ),
        ("context.host like \"*.Acme\"", "3:21…in lower case"),
        ("context.host like \"*:8443\"", "3:21…without port"),
        ("context.host like \"*.acme.internal\"", ""),
        ("context.conn.dow == \"Monday\"", "3:28…`Monday` is no day of the week"),
        ("[\"Sat\", \"sun\"].contains(context.conn.dow)", "3:16…`sun` is no day"),
        ("context.conn.dow like \"Satur*\"", "3:25…no day"),
        ("[\"Sat\", \"Sun\"].contains(context.conn.dow)", ""),
        (
            "context.seg has s0 && context.seg.s0 == \"a/b\"",
            "3:48…no request has the segment `a/b`",
        ),
        (
            "context.seg has s0 && !(\"/a\" != context.seg.s0)",
            "3:32…no request has the segment",
        ),
        (
            "context.seg has s0 && context.seg.s0 == \"..\"",
            "3:48…no request has the segment `..`",
        ),
        ("context.seg has s0 && context.seg.s0 == \"\"", "3:48…never empty"),
        (
            "context.seg has s0 && context.seg.s0 like \"admin/*\"",
            "3:45…no request has the segment",
        ),
        ("context.seg has s0 && context.seg.s0 == \"admin\"", ""),
        (
            "context.hdr has \"x-tenant\" && context.hdr[\"x-tenant\"] == \"a, b\"",
            "3:65…without comma",
        ),
        (
            "context.hdr has \"x-tenant\" && context.hdr[\"x-tenant\"] == \" a\"",
            "3:65…visible ASCII",
        ),
    ] {
        when(condition, expected);
    }
}

#[test]
fn numbers_times_and_addresses_that_no_request_has() {
    let now = "context.conn.now";
    for (condition, expected) in [
        ("context.seg.n == 65", "3:25…`context.seg.n` is from 0 to 64"),
        ("context.seg.n < 0", "3:24…from 0 to 64"),
        ("context.seg.n > 100", "3:24…from 0 to 64"),
        ("-1 == context.seg.n", "3:9…from 0 to 64"),
        ("context.seg.n > -1", ""),
        ("context.seg.n >= 3", ""),
        (&format!("{now}.toTime().toHours() == 24"), "3:47…from 0 to 23"),
        (&format!("{now}.toTime().toHours() >= 25"), "3:47…from 0 to 23"),
        (&format!("{now}.toTime().toHours() <= 23"), ""),
        (
            &format!("{now}.toTime() > duration(\"25h\")"),
            "3:45…from 0h to 23h59m59s",
        ),
        (
            &format!("{now}.toTime() == duration(\"8h500ms\")"),
            "3:46…in whole seconds",
        ),
        (&format!("{now}.toTime() < duration(\"24h\")"), ""),
        (&format!("{now}.toTime() >= duration(\"0h\")"), ""),
        (
            &format!("{now}.offset(duration(\"1h\")).toTime() > duration(\"30h\")"),
            "3:68…from 0h",
        ),
        (
            &format!("{now}.toDate() == datetime(\"2027-01-31T08:00:00Z\")"),
            "3:46…is midnight",
        ),
        (&format!("{now}.toDate() == datetime(\"2027-01-31\")"), ""),
        (
            &format!("{now} == datetime(\"2027-01-31T08:00:00.250Z\")"),
            "3:37…in whole seconds",
        ),
        (&format!("{now} < datetime(\"1927-01-31\")"), "3:36…from the year 1970"),
        (
            "context.conn.src == ip(\"10.0.0.0/8\")",
            "3:31…isInRange(ip(\"10.0.0.0/8\"))",
        ),
        ("context.conn.src == ip(\"::ffff:a00:1\")", "3:31…write it as IPv4"),
        (
            "context.conn.src.isInRange(ip(\"::ffff:a00:0/104\"))",
            "3:38…write it as IPv4",
        ),
        ("context.conn.src == ip(\"10.0.0.1\")", ""),
        ("context.conn.src.isInRange(ip(\"::/0\"))", ""),
    ] {
        when(condition, expected);
    }
    // These Cedar itself refuses: times as texts, an hour that is none, an address that is none.
    for condition in [
        "context.conn.now == \"2027-01-31\"",
        "context.conn.now < datetime(\"2027-01-31T25:00:00Z\")",
        "context.conn.src == \"10.0.0.1\"",
        "context.conn.src.isInRange(ip(\"10.0.0.256\"))",
    ] {
        let text = format!("@id(\"x\") permit ({WHO}, {GET}, {WHAT}) when {{ {condition} }};");
        assert!(
            Snapshot::compile(&sources(&[("a.cedar", &text)])).is_err(),
            "{condition}"
        );
    }
}

#[test]
fn a_route_that_goes_is_missed_by_policies_that_stay() {
    let policy = format!("@id(\"x\") permit ({WHO}, {GET}, resource == Hoplite::Route::\"ledger:GET /health\");");
    let with = |routes: &str| sources(&[("a.cedar", &policy), ("routes.toml", routes)]);
    let before = Snapshot::compile(&with(ROUTES)).unwrap();
    assert!(before.recompile(&with(ROUTES)).is_ok());
    let after = before
        .recompile(&with("[ledger]\nroutes = [\"GET /healthz\"]"))
        .unwrap_err();
    assert!(
        after[0].to_string().contains("no route `ledger:GET /health`"),
        "{after:?}"
    );
}

#[test]
fn a_byte_order_mark_is_named() {
    let policy = format!("@id(\"x\") permit ({WHO}, {GET}, {WHAT});");
    let good = [
        ("a.cedar", policy.as_str()),
        ("headers.toml", "headers = [\"x-tenant\"]"),
        ("m/b.cedar", ""),
        ("routes.toml", ROUTES),
    ];
    for name in ["a.cedar", "headers.toml", "routes.toml", "modules.toml"] {
        let marked = format!(
            "\u{feff}{}",
            good.iter().find(|file| file.0 == name).map_or("", |file| file.1)
        );
        let mut files: Vec<_> = good
            .iter()
            .filter(|file| file.0 != name && !file.0.starts_with("m/"))
            .copied()
            .collect();
        files.push((name, &marked));
        let found = Snapshot::compile(&sources(&files)).unwrap_err();
        assert_eq!(found.len(), 1, "{name}: {found:?}");
        let line = found[0].to_string();
        assert!(
            line.starts_with(&format!("{name}:1:1: the file begins with a byte order mark"))
                && line.contains("save it as UTF-8"),
            "{line}"
        );
    }
}
