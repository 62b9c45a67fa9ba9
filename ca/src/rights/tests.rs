//! Which role may do what, as a table; and that there is an action for each RPC.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::entries::entry::tests::{parse, sample};
use crate::operators::operator::Operator;
use hoplite_identity::Entry;

fn domain() -> TrustDomain {
    TrustDomain::parse("prod.example").unwrap()
}

fn default() -> Held {
    Rights::open(Rights::read(None).unwrap(), domain()).now()
}

fn operator(roles: &[&str], paths: &[&str]) -> Who {
    let set = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<BTreeSet<_>>();
    Who::Operator(Arc::new(Operator::invited("ann".into(), set(roles), set(paths))))
}

#[test]
fn every_rpc_has_an_action_and_every_action_is_an_rpc() {
    let proto = include_str!("../../../wire/proto/hoplite/ca.proto");
    let admin = proto
        .split("service Admin {")
        .nth(1)
        .unwrap()
        .split("\n}")
        .next()
        .unwrap();
    let rpcs: BTreeSet<&str> = admin
        .lines()
        .filter_map(|line| line.trim().strip_prefix("rpc ")?.split('(').next())
        .collect();
    let is_rpc = |action: &&Action| action.is_rpc();
    let actions: BTreeSet<&str> = Action::ALL.iter().filter(is_rpc).map(|action| action.name()).collect();
    assert_eq!(actions, rpcs, "a new RPC needs a line in rights/action.rs");
    let words = default().actions();
    let groups: BTreeSet<&String> = words.values().flatten().collect();
    let of_schema: BTreeSet<&str> = words
        .keys()
        .filter(|action| !groups.contains(action))
        .map(String::as_str)
        .filter(|action| *action != Action::RegisterNestedCa.name())
        .collect();
    assert_eq!(of_schema, rpcs, "a new RPC needs an action in admin/admin.cedarschema");
    for action in rpcs {
        assert!(words[action].contains("all"), "`{action}` is in no group");
    }
    for action in Action::ALL.iter().filter(is_rpc) {
        assert_eq!(
            Action::of_path(&format!("{}{}", action::SERVICE, action.name())),
            Some(*action)
        );
    }
    assert_eq!(Action::of_path("/hoplite.ca.v1.Admin/Nothing"), None);
    assert_eq!(Action::of_path("/hoplite.ca.v1.Admin/RegisterNestedCa"), None);
    assert_eq!(Action::of_path("/hoplite.ca.v1.Node/Join"), None);
}

/// What is not written here is refused.
#[test]
fn roles_and_what_they_may() {
    let held = default();
    let source = Way::Network(Ipv4Addr::LOCALHOST.into());
    let entry = |path: &str| parse(sample(path, "n1")).unwrap();
    let (pay, other, beside) = (entry("/ns/pay/web"), entry("/ns/shop/web"), entry("/ns/payroll"));
    let agent = domain().agent("n1").unwrap();
    let may = |who: &Who| -> String {
        let done = |action: &Action| {
            let what: &[(&str, What<'_>)] = match action.name() {
                "CreateToken" | "BanAgent" | "EvictAgent" => &[("", What::Agent(&agent))],
                "DeleteToken" => &[("agent's", What::Agent(&agent)), ("operator's", What::Operator("bob"))],
                "CreateOperatorToken" | "BanOperator" | "RemoveOperator" => &[("", What::Operator("bob"))],
                "CreateEntries" | "UpdateEntries" | "ApplyEntries" | "DeleteEntries" => &[
                    ("pay", What::Entry(&pay)),
                    ("other", What::Entry(&other)),
                    ("beside", What::Entry(&beside)),
                ],
                "RegisterNestedCa" => &[("", What::Entry(&pay))],
                "ListEntries" => &[
                    ("", What::TrustDomain),
                    ("pay", What::Entry(&pay)),
                    ("other", What::Entry(&other)),
                ],
                _ => &[("", What::TrustDomain)],
            };
            let permitted: Vec<&str> = what
                .iter()
                .filter(|(_, what)| held.ask(who, *action, *what, source).is_ok())
                .map(|(name, _)| *name)
                .collect();
            assert!(
                permitted.is_empty() || held.may_ever(who, *action).is_ok(),
                "{who}: {action:?}"
            );
            match permitted.len() {
                0 => None,
                all if all == what.len() => Some(action.name().to_owned()),
                _ => Some(format!("{}({})", action.name(), permitted.join(","))),
            }
        };
        Action::ALL.iter().filter_map(done).collect::<Vec<_>>().join(" ")
    };
    let everything = Action::ALL
        .iter()
        .map(|action| action.name())
        .collect::<Vec<_>>()
        .join(" ");
    let check = |who: &Who, expected: &str| assert_eq!(may(who), expected, "{who:?}");
    check(&Who::Local { uid: 0 }, &everything);
    check(&operator(&["admin"], &[]), &everything);
    check(&operator(&[], &[]), "RenewOperator SignOut WhoAmI");
    check(&operator(&["local"], &[]), &everything); // why nobody can be given it: see `Operator::check_role`
    check(
        &operator(&["auditor"], &[]),
        "GetPolicy ListAgents ListAuthorities ListEntries ListFederations ListGrants ListOperators ListPolicies ListReports ListSigners ListTokens \
         RenewOperator ShowBundle ShowForeignBundle ShowMesh ShowPolicy ShowReport SignOut WhoAmI",
    );
    check(
        &operator(&["policy"], &[]),
        "AddGrant ClearShadow GetPolicy ListAgents ListAuthorities ListEntries ListFederations ListGrants ListOperators ListPolicies ListReports \
         ListSigners ListTokens PublishPolicy RenewOperator RevokeGrant ShowBundle ShowForeignBundle ShowMesh ShowPolicy ShowReport SignOut WhoAmI",
    );
    check(
        &operator(&["nodes"], &[]),
        "BanAgent CreateToken DeleteToken(agent's) EvictAgent ListAgents ListEntries ListReports ListTokens RenewOperator ShowBundle ShowMesh ShowReport \
         SignOut WhoAmI",
    );
    check(
        &operator(&["entries"], &["/ns/pay"]),
        "ApplyEntries(pay) CreateEntries(pay) DeleteEntries(pay) ListAgents ListEntries(pay) RenewOperator ShowBundle \
         SignOut UpdateEntries(pay) WhoAmI",
    );
    // Paths without the role, and the role without paths, are nothing.
    check(&operator(&[], &["/ns/pay"]), "RenewOperator SignOut WhoAmI");
    check(
        &operator(&["entries"], &[]),
        "ListAgents RenewOperator ShowBundle SignOut WhoAmI",
    );
    let workload = |path: &str| Who::Workload(domain().member(path).unwrap());
    check(&workload("/ci/deploy"), "");
    check(&workload("/admin"), "");
}

#[test]
fn what_is_said_of_a_refusal() {
    let held = default();
    let (pay, shop) = (
        parse(sample("/ns/pay/web", "n1")).unwrap(),
        parse(sample("/ns/shop", "n1")).unwrap(),
    );
    let who = operator(&["entries"], &["/ns/pay"]);
    let asked = [What::Entry(&pay), What::Entry(&shop)];
    let refused = held
        .ask_all(&who, Action::CreateEntries, asked, Way::Socket)
        .unwrap_err()
        .to_string();
    for part in [
        "operator `ann`",
        "`CreateEntries`",
        "/ns/shop",
        "no admin policy permits it",
    ] {
        assert!(refused.contains(part), "`{part}` is missing from `{refused}`");
    }
    let by = held.ask_all(&who, Action::CreateEntries, [What::Entry(&pay)], Way::Socket);
    assert_eq!(by.unwrap(), ["entries/below-its-paths"]);
    let refused = held
        .may_ever(&operator(&["auditor"], &[]), Action::PublishPolicy)
        .unwrap_err();
    assert!(refused.to_string().contains("`PublishPolicy`"), "{refused}");
}

#[test]
fn a_directory_in_place_of_the_default() {
    let dir = tempfile::tempdir().unwrap();
    fs_mode(dir.path(), 0o755);
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        fs_mode(&path, 0o644);
    };
    let open = || Rights::read(Some(dir.path())).map(|read| Rights::open(read, domain()));
    let refused = |expected: &[&str]| {
        let error = open().unwrap_err().to_string();
        for part in expected {
            assert!(error.contains(part), "`{part}` is missing from `{error}`");
        }
    };
    refused(&["no `*.cedar` file"]);
    write("a.cedar", "permit (principal, action, resource);");
    refused(&["a.cedar:1:1", "@id"]);
    write(
        "a.cedar",
        "@id(\"ci\") permit (principal == Admin::Workload::\"spiffe://prod.example/ci/deploy\", \
         action == Admin::Action::\"PublishPolicy\", resource);\n\
         @id(\"no\") forbid (principal, action == Admin::Action::\"PublishPolicy\", resource) when { context.way == \"socket\" };",
    );
    let rights = open().unwrap();
    let ci = Who::Workload(domain().member("/ci/deploy").unwrap());
    let source = Way::Network(Ipv4Addr::LOCALHOST.into());
    let ask = |way: Way| rights.now().ask(&ci, Action::PublishPolicy, What::TrustDomain, way);
    assert_eq!(ask(source).unwrap(), ["ci"]);
    let forbidden = ask(Way::Socket).unwrap_err().to_string();
    assert!(forbidden.contains("`no` forbids it"), "{forbidden}");
    assert!(rights.now().may_ever(&Who::Local { uid: 0 }, Action::WhoAmI).is_err());
    assert!(rights.now().may_call(&ci) && !rights.now().may_call(&Who::Local { uid: 0 }));
    // What does not compile leaves what is in force.
    write(
        "b.cedar",
        "@id(\"b\") permit (principal, action == Admin::Action::\"Publish\", resource);",
    );
    assert!(
        Rights::read(Some(dir.path()))
            .map(drop)
            .unwrap_err()
            .to_string()
            .contains("b.cedar:1")
    );
    assert_eq!(ask(source).unwrap(), ["ci"]);
    std::fs::remove_file(dir.path().join("b.cedar")).unwrap();
    fs_mode(&dir.path().join("a.cedar"), 0o666);
    refused(&["a.cedar", "can be written by others"]);
    fs_mode(&dir.path().join("a.cedar"), 0o644);
    fs_mode(dir.path(), 0o777);
    refused(&["can be written by others"]);
}

fn fs_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// Whoever may register everything else, even below `/hoplite`, makes no CA by that.
#[test]
fn a_nested_ca_needs_a_right_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let text = "@id(\"editor\") permit (principal in Admin::Role::\"editor\", action in Admin::Action::\"entries\", resource);\n\
                @id(\"nested\") permit (principal in Admin::Role::\"regions\", action == Admin::Action::\"RegisterNestedCa\", resource);";
    std::fs::write(dir.path().join("a.cedar"), text).unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    std::fs::set_permissions(dir.path().join("a.cedar"), std::fs::Permissions::from_mode(0o600)).unwrap();
    let held = Rights::open(Rights::read(Some(dir.path())).unwrap(), domain()).now();
    let (nested, plain) = (
        parse(sample("/hoplite/nested/eu", "n1")).unwrap(),
        parse(sample("/orders", "n1")).unwrap(),
    );
    let (editor, both) = (
        operator(&["editor"], &["/hoplite"]),
        operator(&["editor", "regions"], &[]),
    );
    for action in Action::ALL.iter().copied().filter(|action| action.changes_entries()) {
        let ask = |who: &Who, entry: &Entry| held.ask(who, action, What::Entry(entry), Way::Socket);
        assert_eq!(ask(&editor, &plain).unwrap(), ["editor"], "{action:?}");
        let refused = ask(&editor, &nested).unwrap_err().to_string();
        assert!(refused.contains("`RegisterNestedCa`"), "{refused}");
        // Many at once, and what a write asks for each entry: there is no way round.
        let all = [What::Entry(&plain), What::Entry(&nested)];
        assert!(held.ask_all(&editor, action, all, Way::Socket).is_err(), "{action:?}");
        assert_eq!(held.always(&editor, action), None, "{action:?}");
        assert_eq!(ask(&both, &nested).unwrap(), ["editor", "nested"], "{action:?}");
        assert!(ask(&operator(&["regions"], &[]), &nested).is_err(), "{action:?}");
        assert!(held.always(&both, action).is_some(), "{action:?}");
    }
}

/// A template may name what lies beneath its prefix, and a policy can know one by that.
#[test]
fn a_policy_knows_a_template() {
    let dir = tempfile::tempdir().unwrap();
    let text = "@id(\"editor\") permit (principal in Admin::Role::\"editor\", action in Admin::Action::\"entries\", resource);\n\
                @id(\"above-ci\") forbid (principal, action, resource is Admin::Entry)\n\
                when { resource.is_template && resource in Admin::Path::\"prod.example/ns\" };";
    std::fs::write(dir.path().join("a.cedar"), text).unwrap();
    fs_mode(dir.path(), 0o700);
    fs_mode(&dir.path().join("a.cedar"), 0o600);
    let held = Rights::open(Rights::read(Some(dir.path())).unwrap(), domain()).now();
    let editor = operator(&["editor"], &[]);
    let ask = |path: &str| {
        let entry = parse(sample(path, "n1")).unwrap();
        held.ask(&editor, Action::CreateEntries, What::Entry(&entry), Way::Socket)
    };
    ask("/ns/ci").unwrap();
    ask("/user/{unix:user}").unwrap();
    let refused = ask("/ns/{unix:user}").unwrap_err().to_string();
    assert!(refused.contains("`above-ci` forbids it"), "{refused}");
}
