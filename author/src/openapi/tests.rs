//! Documents and the routes that come of them.

use super::*;

fn import(text: &str) -> Result<ImportedRoutes, Vec<Fault>> {
    let source = Source {
        name: "api.yaml".to_owned(),
        text: text.to_owned(),
    };
    routes_from_openapi(&"ledger".parse().unwrap(), &[source], &Selection::default())
}

/// The routes of a document, one a line, and after them the warnings as `line:column: reason`.
#[track_caller]
fn check(text: &str, routes: &[&str], warnings: &[&str]) {
    let found = import(text).unwrap_or_else(|faults| panic!("{faults:#?}"));
    assert_eq!(found.routes, routes, "{text}");
    let said: Vec<_> = found.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(said.len(), warnings.len(), "{text}: {said:#?}");
    for (said, expected) in said.iter().zip(warnings) {
        let (place, reason) = expected.split_once('…').unwrap();
        assert!(
            said.starts_with(&format!("api.yaml:{place}: ")) && said.contains(reason),
            "{said}\nis not {expected}"
        );
    }
}

#[track_caller]
fn refused(text: &str, expected: &str) {
    let faults = import(text).expect_err("it must be refused");
    let fault = faults[0].to_string();
    let (place, reason) = expected.split_once('…').unwrap();
    assert!(
        fault.starts_with(&format!("api.yaml:{place}: ")) && fault.contains(reason),
        "{fault}\nis not {expected}"
    );
}

const LEDGER: &str = "\
openapi: 3.0.3
info: {title: Ledger, version: '1'}
servers:
  - url: https://api.acme.example/v1/
paths:
  /accounts/{account.id}:
    summary: An account
    parameters: []
    get: {responses: {}}
    head: {responses: {}}
  /accounts/{id}/:
    get: {responses: {}}
    delete: {responses: {}}
  /entries:
    post: {responses: {}}
    x-owner: pay
";

#[test]
fn operations_become_routes_in_the_order_of_the_document() {
    check(
        LEDGER,
        &[
            "GET /v1/accounts/{account_id}",
            "HEAD /v1/accounts/{account_id}",
            "DELETE /v1/accounts/{id}",
            "POST /v1/entries",
        ],
        &[],
    );
}

#[test]
fn json_is_read_as_well() {
    check(
        r#"{"openapi": "3.1.0", "paths": {"/caf\u00e9/{id}": {"get": {}}, "/": {"options": {}}}}"#,
        &["GET /caf%C3%A9/{id}", "OPTIONS /"],
        &[],
    );
    check(
        "{\"openapi\": \"3.1.0\", \"paths\": {\"/\\ud83d\\ude00\": {\"get\": {}}, \"/a\": {\"get\": {}}}}",
        &["GET /a"],
        &["1:32…is left out: the request target holds a control character"],
    );
}

#[test]
fn servers_put_their_paths_before() {
    let with = |servers: &str| format!("openapi: 3.1.0\nservers: {servers}\npaths: {{/a: {{get: {{}}}}}}\n");
    for (servers, routes) in [
        ("[]", &["GET /a"] as &[&str]),
        ("[{url: /}]", &["GET /a"]),
        ("[{url: 'https://x.example'}]", &["GET /a"]),
        ("[{url: /v1}]", &["GET /v1/a"]),
        ("[{url: '//x.example/v1/'}]", &["GET /v1/a"]),
        (
            "[{url: 'https://{host}/v1', variables: {host: {default: x}}}]",
            &["GET /v1/a"],
        ),
        (
            "[{url: 'https://a/v1'}, {url: 'https://b/v1'}, {url: 'https://b/v2'}]",
            &["GET /v1/a", "GET /v2/a"],
        ),
    ] {
        check(&with(servers), routes, &[]);
    }
    check(
        &with("[{url: '/{v}', variables: {v: {default: v2, enum: [v1, v2]}}}]"),
        &["GET /v2/a"],
        &["2:17…its default `v2` was taken"],
    );
    check(&with("[{url: v1}]"), &["GET /v1/a"], &["2:17…was read as `/v1`"]);
    for url in [
        "[{url: '/{v}'}, {url: /w}]",
        "[{url: '/{v}', variables: {v: {enum: [a]}}}, {url: /w}]",
        "[{url: '/{v}', variables: {v: {default: '{w}'}, w: {default: x}}}, {url: /w}]",
    ] {
        let found = import(&with(url)).unwrap();
        assert_eq!(found.routes, ["GET /w/a"], "{url}");
        let told = found.warnings.last().unwrap().to_string();
        assert!(told.contains("without a plain default"), "{url}: {told}");
    }
    check(&with("[{url: 'https://{host}/v1'}]"), &["GET /v1/a"], &[]);
    check(
        "openapi: 3.0.0\nservers: [{url: /all}]\npaths:\n  /a:\n    servers: [{url: /item}]\n    get: {}\n    post: {servers: [{url: /op}]}\n",
        &["GET /item/a", "POST /op/a"],
        &[],
    );
}

#[test]
fn what_a_route_cannot_say_is_left_out_aloud() {
    check(
        "\
openapi: 3.1.0
paths:
  /files/{name}.json: {get: {}}
  '/{a}.{b}': {get: {}}
  /a{b}: {get: {}}
  /{}: {get: {}}
  /x/{id}/y/{id}: {get: {}}
  '/a?b=c': {get: {}}
  '/#Action=Run': {post: {}}
  /a;v=1: {get: {}}
  /a//b: {get: {}}
  /a/../b: {get: {}}
  a: {get: {}}
  x-more: {get: {}}
  /ok: {trace: {}, query: {}, get: {}}
",
        &["GET /files/{name}.json", "GET /a{b}", "GET /x/{id}/y/{id_2}", "GET /ok"],
        &[
            "4:3…one parameter, and `{a}.{b}` has more",
            "6:3…`{}` holds a brace that begins or ends no parameter",
            "8:3…neither query nor fragment",
            "9:3…neither query nor fragment",
            "10:3…holds a `;` parameter; rename it",
            "11:3…like `/a/b`",
            "12:3…like `/b`",
            "13:3…does not start with `/`",
            "15:9…`trace` is left out",
            "15:20…`query` is no operation",
        ],
    );
}

#[test]
fn a_parameter_may_be_part_of_a_segment() {
    check(
        "\
openapi: 3.1.0
paths:
  /Accounts/{Sid}/Calls/{Sid}.json: {get: {}, post: {}}
  /Accounts/{AccountSid}/Calls/{CallSid}.json: {get: {}}
  /Accounts/{AccountSid}/Calls/{CallSid}: {get: {}}
  /users('{user-id}'): {get: {}}
  /jobs/{job.id}:cancel: {post: {}}
  /café-{x}é/y: {get: {}}
  /.{x}: {get: {}}
  /{a}-{b}-{c}: {get: {}}
  '/{a}}': {get: {}}
  '/x}{a}': {get: {}}
  '/%4{a}': {get: {}}
",
        &[
            "GET /Accounts/{Sid}/Calls/{Sid_2}.json",
            "POST /Accounts/{Sid}/Calls/{Sid_2}.json",
            "GET /Accounts/{AccountSid}/Calls/{CallSid}",
            "GET /users('{user-id}')",
            "POST /jobs/{job_id}:cancel",
            "GET /caf%C3%A9-{x}%C3%A9/y",
            "GET /.{x}",
        ],
        &[
            "10:3…`{a}-{b}-{c}` has more",
            "11:3…`{a}}` holds a brace",
            "12:3…`x}{a}` holds a brace",
            "13:3…without two hexadecimal digits",
        ],
    );
}

#[test]
fn references_within_the_document_are_followed() {
    check(
        "\
openapi: 3.1.0
paths:
  /a: {$ref: '#/components/pathItems/a~1b'}
  /b: {$ref: 'other.yaml#/a'}
  /c: {$ref: '#/components/pathItems/loop'}
  /d: {$ref: '#/components/pathItems/a~1b', post: {}, summary: s}
components:
  pathItems:
    a/b: {get: {}}
    loop: {$ref: '#/components/pathItems/loop'}
",
        &["GET /a", "GET /d"],
        &[
            "4:14…leads out of the document",
            "10:11…more than 8 `$ref`s",
            "6:45…`post` beside a `$ref`",
        ],
    );
}

#[test]
fn other_documents_are_refused() {
    refused("swagger: '2.0'\npaths: {}\n", "1:10…convert it to OpenAPI 3");
    refused("openapi: 4.0.0\npaths: {}\n", "1:10…`4.0.0` is not known");
    refused("openapi: 3.10.0\npaths: {}\n", "1:10…is not known");
    refused("a: b\n", "1:1…no `openapi` version");
    refused("openapi: 3.0.0\n", "1:1…describes no route");
    refused(
        "openapi: 3.0.0\npaths: {'/{a}{b}': {get: {}}}\n",
        "1:1…describes no route",
    );
    refused("just text", "1:1…no `openapi` version");
    let many: String = (0..=ROUTES_PER_SERVICE_MAX)
        .map(|n| format!("  /r{n}: {{get: {{}}}}\n"))
        .collect();
    refused(
        &format!("openapi: 3.0.0\npaths:\n{many}"),
        "1:1…more routes than the 4000",
    );
}

fn selected(texts: &[&str], prefixes: &[&str], tags: &[&str]) -> Result<ImportedRoutes, Vec<Fault>> {
    let documents: Vec<Source> = texts
        .iter()
        .enumerate()
        .map(|(n, text)| Source {
            name: format!("{n}.yaml"),
            text: (*text).to_owned(),
        })
        .collect();
    let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    let selection = Selection {
        prefixes: owned(prefixes),
        tags: owned(tags),
    };
    routes_from_openapi(&"ledger".parse().unwrap(), &documents, &selection)
}

#[test]
fn several_documents_describe_one_service() {
    const A: &str = r#"{"openapi": "3.0.3", "paths": {"/api/v1/pods": {"get": {}}, "/version/": {"get": {}}}}"#;
    const B: &str =
        r#"{"openapi": "3.0.3", "paths": {"/apis/apps/v1/deployments": {"get": {}}, "/version": {"get": {}}}}"#;
    let found = selected(&[A, B], &[], &[]).unwrap();
    assert_eq!(
        found.routes,
        ["GET /api/v1/pods", "GET /version", "GET /apis/apps/v1/deployments"],
        "what both describe is one route"
    );
    let faults = selected(&[A, "a: b"], &[], &[]).unwrap_err();
    assert!(faults[0].to_string().starts_with("1.yaml:1:1: "), "{faults:?}");
}

#[test]
fn operations_are_selected_by_prefix_and_tag() {
    let text = "openapi: 3.0.0\nservers: [{url: /v1}]\npaths:\n  /repos/{a}: {get: {tags: [repos]}, delete: {tags: [admin, repos]}}\n  \
                    /reposits: {get: {tags: [other]}}\n";
    let check = |prefixes: &[&str], tags: &[&str], routes: &[&str], unselected: usize| {
        let found = selected(&[text], prefixes, tags).unwrap();
        assert_eq!(
            (&found.routes[..], found.unselected),
            (
                &routes.iter().map(|r| (*r).to_owned()).collect::<Vec<_>>()[..],
                unselected
            )
        );
        assert_eq!(found.warnings, []);
    };
    check(&["/v1/repos"], &[], &["GET /v1/repos/{a}", "DELETE /v1/repos/{a}"], 1);
    check(
        &["/v1/repos/", "/v1/reposits"],
        &["other", "admin"],
        &["DELETE /v1/repos/{a}", "GET /v1/reposits"],
        1,
    );
    check(&[], &["admin"], &["DELETE /v1/repos/{a}"], 2);
    let found = selected(&[text], &[], &["admin", "admni"]).unwrap();
    assert!(
        found.warnings[0]
            .to_string()
            .contains("no operation has the tag `admni`"),
        "{found:?}"
    );
    let faults = selected(&[text], &["/repos"], &[]).unwrap_err();
    assert!(
        faults[0].to_string().contains("none of 3 operations is selected"),
        "{faults:?}"
    );
}

/// As large as the largest public descriptions of services: 1 300 operations, and those that no route can say are counted.
#[test]
fn a_large_document_is_imported_whole_and_what_is_left_out_is_named() {
    let mut text = String::from("openapi: 3.0.3\npaths:\n");
    for n in 0..650 {
        text.push_str(&format!(
            "  /repos/{{owner}}/{{repo}}/things-{n}/{{id}}: {{get: {{tags: [t{}]}}, delete: {{tags: [t{}]}}}}\n",
            n % 40,
            n % 40
        ));
    }
    for n in 0..150 {
        text.push_str(&format!(
            "  /2010/Accounts/{{Sid}}/Things{n}/{{Sid}}.json: {{get: {{}}}}\n  /compare/{n}/{{a}}...{{b}}: {{get: {{}}}}\n"
        ));
    }
    let found = import(&text).unwrap();
    assert_eq!(
        (found.routes.len(), found.left_out.len(), found.unselected),
        (1_450, 150, 0)
    );
    assert_eq!(found.left_out[149], "GET /compare/149/{a}...{b}");
    let table = RouteTable::parse(&found.section()).unwrap();
    assert_eq!(table.of(&found.service).count(), 1_450);
}

/// Each variable is twice the next: 2⁶⁴ bytes.
#[test]
fn variables_within_variables_do_not_multiply() {
    let variables: Vec<String> = (0..64)
        .map(|n| format!("v{n}: {{default: '{{v{0}}}{{v{0}}}'}}", n + 1))
        .collect();
    let variables = variables.join(", ");
    refused(
        &format!(
            "openapi: 3.1.0\nservers: [{{url: '/{{v0}}', variables: {{{variables}}}}}]\npaths: {{/a: {{get: {{}}}}}}\n"
        ),
        "1:1…describes no route",
    );
    let (slots, long) = ("{v}".repeat(1_000), "x".repeat(1_000_000));
    let faults = import(&format!(
        "openapi: 3.1.0\nservers: [{{url: '/{slots}', variables: {{v: {{default: {long}}}}}}}]\npaths: {{/a: {{get: {{}}}}}}\n"
    ));
    let told = faults.unwrap_err()[1].to_string();
    assert!(told.contains("longer than 8192 bytes"), "{told}");
}

/// A document of some kilobytes may amount to billions of operations: each server is one more of every path, and
/// references lead to one long item.
#[test]
fn what_a_document_amounts_to_is_bounded() {
    let servers: String = (0..4_000).map(|n| format!("  - url: /s{n}/..\n")).collect();
    let paths: String = (0..4_000).map(|n| format!("  /p{n}: {{get: {{}}}}\n")).collect();
    refused(
        &format!("openapi: 3.1.0\nservers:\n{servers}paths:\n{paths}"),
        "1:1…amounts to more than can be read",
    );
    let same: String = (0..4_000)
        .map(|n| format!("  /p{n}: {{$ref: '#/components/pathItems/a'}}\n"))
        .collect();
    let long: String = (0..4_000).map(|n| format!("      x-{n}: 1\n")).collect();
    refused(
        &format!("openapi: 3.1.0\npaths:\n{same}components:\n  pathItems:\n    a:\n{long}"),
        "1:1…amounts to more than can be read",
    );
}

#[test]
fn the_section_reads_back() {
    let found = import(LEDGER).unwrap();
    assert_eq!(
        found.section().lines().take(3).collect::<Vec<_>>(),
        ["[ledger]", "routes = [", "    \"GET /v1/accounts/{account_id}\","]
    );
    RouteTable::parse(&found.section()).unwrap();
}

proptest::proptest! {
    #[test]
    fn whatever_is_imported_is_a_route_table(
        paths in proptest::collection::vec("/[a-c{}./%2e ;é'*|:]{0,8}", 1..6),
    ) {
        let paths: Vec<_> = paths.iter().map(|path| format!("{}: {{\"get\": {{}}}}", serde_json::json!(path))).collect();
        if let Ok(found) = import(&format!("{{\"openapi\": \"3.1.0\", \"paths\": {{{}}}}}", paths.join(", "))) {
            RouteTable::parse(&found.section()).unwrap();
        }
    }
}
