//! Reads a service's routes out of its OpenAPI document (3.0 or 3.1, YAML or JSON).
//!
//! What a route cannot say is left out with a warning that says what to do, never approximated: a route that is wider
//! than the document would let a policy permit more than its author read.

use crate::canonical::CanonicalPath;
use crate::fault::Fault;
use crate::routes::{MAX_ROUTES_PER_SERVICE, RouteTable, check_route, check_service_name};
use crate::snapshot::Source;
use crate::yaml::{Node, Place, read};
use std::cmp::Ordering;
use std::collections::{BTreeMap, HashSet};
use std::rc::Rc;

/// The operations of a path item that become routes. `trace` is refused by every proxy.
const METHODS: [&str; 7] = ["get", "put", "post", "delete", "options", "head", "patch"];
/// The most warnings told: each costs a walk through the document to its place.
const MAX_WARNINGS: usize = 100;
/// The most references from one path item to the next.
const MAX_REFERENCES: usize = 8;

/// The routes of one service as a document describes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportedRoutes {
    /// The service's name.
    pub service: String,
    /// The routes in the document's order, each once, as `routes.toml` writes them.
    pub routes: Vec<String>,
    /// What of the document is not in the routes, or not as written, and what to do about it.
    pub warnings: Vec<Fault>,
}

/// Reads the routes of a service out of an OpenAPI document, servers' base paths included.
///
/// # Errors
/// The document cannot be read, is no OpenAPI 3.0 or 3.1, or describes no route, or too many.
pub fn routes_from_openapi(service: &str, document: &Source) -> Result<ImportedRoutes, Vec<Fault>> {
    let fault = |place, reason: String| vec![fault(document, place, reason)];
    check_service_name(service).map_err(|reason| fault(Place::START, reason))?;
    let root = read(&document.text).map_err(|(place, reason)| fault(place, reason))?;
    check_version(&root).map_err(|(place, reason)| fault(place, reason))?;
    let mut import = Import {
        document,
        root: &root,
        seen: HashSet::new(),
        found: ImportedRoutes {
            service: service.to_owned(),
            routes: Vec::new(),
            warnings: Vec::new(),
        },
    };
    if let Some(paths) = root.get("paths") {
        import.paths(paths);
    }
    let found = import.found;
    if found.routes.is_empty() {
        let reason = "the document describes no route; is it the right one?".to_owned();
        return Err([fault(Place::START, reason), found.warnings].concat());
    }
    if found.routes.len() > MAX_ROUTES_PER_SERVICE {
        let reason = format!(
            "the document describes {} routes and a service may have {MAX_ROUTES_PER_SERVICE}; split the service, or \
             leave out what nobody calls",
            found.routes.len()
        );
        return Err(fault(Place::START, reason));
    }
    // Cannot fail while every route passed `check_route`; the file that people get is what is checked.
    RouteTable::parse(&found.section())?;
    Ok(found)
}

// === impl ImportedRoutes ===

impl ImportedRoutes {
    /// The service's section of `routes.toml`.
    pub fn section(&self) -> String {
        // A dot in a bare key would begin a table within a table.
        let quote = if self.service.contains('.') { "\"" } else { "" };
        let mut text = format!("[{quote}{}{quote}]\nroutes = [\n", self.service);
        for route in &self.routes {
            // A TOML string is quoted as TOML does it.
            text.push_str(&format!("    {},\n", toml::Value::from(route.as_str())));
        }
        text.push_str("]\n");
        text
    }
}

fn fault(document: &Source, place: Place, reason: String) -> Fault {
    place.fault(&document.name, &document.text, reason)
}

fn check_version(root: &Node) -> Result<(), (Place, String)> {
    if let Some(version) = root.get("swagger") {
        let reason = "this is Swagger 2.0; convert it to OpenAPI 3, for example with `swagger2openapi`".to_owned();
        return Err((version.place, reason));
    }
    let Some(version) = root.get("openapi") else {
        return Err((
            root.place,
            "there is no `openapi` version; is this an OpenAPI document?".to_owned(),
        ));
    };
    match version.text() {
        Some(text) if ["3.0", "3.1"].iter().any(|known| is_release_of(text, known)) => Ok(()),
        text => {
            let text = text.unwrap_or_default().escape_debug();
            Err((
                version.place,
                format!("OpenAPI `{text}` is not known; write it as 3.0 or 3.1"),
            ))
        }
    }
}

/// Whether `3.0.3` is a release of `3.0`.
fn is_release_of(text: &str, version: &str) -> bool {
    text.strip_prefix(version)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// A walk through one document.
struct Import<'a> {
    document: &'a Source,
    root: &'a Rc<Node>,
    /// Routes already there, without the names of their parameters.
    seen: HashSet<String>,
    found: ImportedRoutes,
}

// === impl Import ===

impl Import<'_> {
    fn warn(&mut self, place: Place, reason: impl Into<String>) {
        let last = match self.found.warnings.len().cmp(&MAX_WARNINGS) {
            Ordering::Less => reason.into(),
            Ordering::Equal => format!("and more; {MAX_WARNINGS} warnings are enough to begin with"),
            Ordering::Greater => return,
        };
        let warning = fault(self.document, place, last);
        if !self.found.warnings.contains(&warning) {
            self.found.warnings.push(warning);
        }
    }

    fn paths(&mut self, paths: &Node) {
        let root = Rc::clone(self.root);
        let everywhere = self.bases(root.get("servers")).unwrap_or_else(|| vec![String::new()]);
        for entry in paths.entries() {
            if entry.key.starts_with("x-") {
                continue;
            }
            if !entry.key.starts_with('/') {
                self.warn(
                    entry.place,
                    format!(
                        "the path `{}` does not start with `/`; it is left out",
                        shown(&entry.key)
                    ),
                );
                continue;
            }
            let Some(item) = self.resolved(&entry.node) else {
                continue;
            };
            let here = self.bases(item.get("servers")).unwrap_or_else(|| everywhere.clone());
            for operation in item.entries() {
                let method = operation.key.as_str();
                if METHODS.contains(&method) {
                    let bases = self
                        .bases(operation.node.get("servers"))
                        .unwrap_or_else(|| here.clone());
                    for base in &bases {
                        self.route(method, base, &entry.key, entry.place);
                    }
                } else if method == "trace" {
                    self.warn(operation.place, "`trace` is left out; no proxy serves it");
                } else if !matches!(method, "summary" | "description" | "servers" | "parameters" | "$ref")
                    && !method.starts_with("x-")
                {
                    let reason = format!("`{}` is no operation of OpenAPI 3.1; it is left out", shown(method));
                    self.warn(operation.place, reason);
                }
            }
        }
    }

    /// The path item itself, or what it refers to within the document.
    fn resolved(&mut self, item: &Rc<Node>) -> Option<Rc<Node>> {
        let mut item = Rc::clone(item);
        for _ in 0..MAX_REFERENCES {
            let Some(reference) = item.get("$ref").cloned() else {
                return Some(item);
            };
            let target = reference.text().unwrap_or_default();
            let next = target.strip_prefix("#/").and_then(|pointer| self.pointed(pointer));
            let Some(next) = next else {
                let reason = format!(
                    "`$ref` to `{}` leads out of the document or nowhere; bundle the document into one file first, for \
                     example with `redocly bundle`",
                    shown(target)
                );
                self.warn(reference.place, reason);
                return None;
            };
            item = next;
        }
        self.warn(
            item.place,
            format!("more than {MAX_REFERENCES} `$ref`s lead from one to the next; shorten the chain"),
        );
        None
    }

    fn pointed(&self, pointer: &str) -> Option<Rc<Node>> {
        pointer.split('/').try_fold(Rc::clone(self.root), |node, step| {
            let step = step.replace("~1", "/").replace("~0", "~");
            node.get(&step).cloned()
        })
    }

    /// The paths that a list of servers puts before every path, each once; `None` where there is no list.
    fn bases(&mut self, servers: Option<&Rc<Node>>) -> Option<Vec<String>> {
        let servers = servers.filter(|servers| !servers.items().is_empty())?;
        let mut bases: Vec<String> = Vec::new();
        for server in servers.items() {
            let Some(url) = server.get("url").filter(|url| url.text().is_some()) else {
                self.warn(server.place, "the server has no `url`; it is left out");
                continue;
            };
            let base = self.base(server, url);
            if !bases.contains(&base) {
                bases.push(base);
            }
        }
        Some(bases)
    }

    /// The path of a server's URL without its last slash.
    fn base(&mut self, server: &Node, url: &Node) -> String {
        let mut text = url.text().unwrap_or_default().to_owned();
        let variables = server
            .get("variables")
            .map(|node| node.entries().to_vec())
            .unwrap_or_default();
        for variable in variables {
            let slot = format!("{{{}}}", variable.key);
            let default = variable
                .node
                .get("default")
                .and_then(|node| node.text().map(str::to_owned));
            let Some(default) = default.filter(|_| text.contains(&slot)) else {
                continue;
            };
            let in_path = path_of(&text).contains(&slot);
            text = text.replace(&slot, &default);
            if in_path {
                let reason = format!(
                    "the server's path holds the variable `{}`; its default `{}` was taken, add the routes of other \
                     values by hand",
                    shown(&slot),
                    shown(&default)
                );
                self.warn(url.place, reason);
            }
        }
        let path = path_of(&text);
        if !path.is_empty() && !path.starts_with('/') {
            let reason = format!(
                "the server's path `{0}` is relative; it was read as `/{0}`",
                shown(path)
            );
            let path = format!("/{}", path.trim_start_matches("./").trim_end_matches('/'));
            self.warn(url.place, reason);
            return path;
        }
        path.trim_end_matches('/').to_owned()
    }

    fn route(&mut self, method: &str, base: &str, path: &str, place: Place) {
        let whole = format!("{base}{path}");
        match template(&whole).and_then(|template| {
            let route = format!("{} {template}", method.to_uppercase());
            check_route(&self.found.service, &route).map(|()| (route, template))
        }) {
            Ok((route, template)) => {
                if self.seen.insert(format!("{method} {}", without_names(&template))) {
                    self.found.routes.push(route);
                }
            }
            Err(reason) => self.warn(place, format!("`{}` is left out: {reason}", shown(&whole))),
        }
    }
}

/// The path of a URL or URL reference, without query and fragment.
fn path_of(url: &str) -> &str {
    let rest = match url.split_once("://") {
        Some((_, rest)) => rest.find('/').and_then(|at| rest.get(at..)).unwrap_or_default(),
        // `//host/path` has the scheme of the document.
        None => match url.strip_prefix("//") {
            Some(rest) => rest.find('/').and_then(|at| rest.get(at..)).unwrap_or_default(),
            None => url,
        },
    };
    rest.split(['?', '#']).next().unwrap_or_default()
}

/// A path template in the spelling of `routes.toml`.
fn template(path: &str) -> Result<String, String> {
    if path.contains(['?', '#']) {
        return Err("a route is a path, and knows neither query nor fragment; name the path alone".to_owned());
    }
    let path = if path.len() > 1 {
        path.strip_suffix('/').unwrap_or(path)
    } else {
        path
    };
    let mut names: BTreeMap<String, usize> = BTreeMap::new();
    let mut parameters = Vec::new();
    let mut stand_ins = Vec::new();
    for segment in path.split('/') {
        let Some(name) = parameter(segment)? else {
            parameters.push(None);
            stand_ins.push(segment);
            continue;
        };
        // Names are for people: what TOML-minded `RouteTable` would refuse is spelt otherwise, and a second one counted.
        let name: String = name
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' })
            .collect();
        let uses = names.entry(name.clone()).or_default();
        *uses += 1;
        parameters.push(Some(if *uses == 1 {
            format!("{{{name}}}")
        } else {
            format!("{{{name}_{uses}}}")
        }));
        stand_ins.push("x");
    }
    let canonical = CanonicalPath::parse(stand_ins.join("/").as_bytes()).map_err(|why| format!("{why}; rename it"))?;
    let segments: Vec<&str> = canonical.text.split('/').collect();
    if segments.len() != parameters.len() {
        return Err(format!(
            "it is not in canonical form, which is like `{}`; write it so",
            canonical.text
        ));
    }
    let written: Vec<&str> = segments
        .iter()
        .zip(&parameters)
        .map(|(literal, parameter)| parameter.as_deref().unwrap_or(literal))
        .collect();
    Ok(written.join("/"))
}

/// The name of a segment that is one parameter; `None` for a literal.
fn parameter(segment: &str) -> Result<Option<&str>, String> {
    if !segment.contains(['{', '}']) {
        return Ok(None);
    }
    let name = segment.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
    match name.filter(|name| !name.is_empty() && !name.contains(['{', '}'])) {
        Some(name) => Ok(Some(name)),
        None => Err(format!(
            "a parameter is a whole segment, and `{}` is only part of one; if every value of that segment may be reached \
             alike, add the route by hand with `{{name}}` in its place",
            shown(segment)
        )),
    }
}

/// The template as it is compared: two that differ only in names cover the same requests.
fn without_names(template: &str) -> String {
    let segments: Vec<&str> = template
        .split('/')
        .map(|segment| if segment.starts_with('{') { "{}" } else { segment })
        .collect();
    segments.join("/")
}

/// A stranger's text within a sentence: one line, no longer than people read.
fn shown(text: &str) -> String {
    const SHOWN: usize = 120;
    text.chars().take(SHOWN).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn import(text: &str) -> Result<ImportedRoutes, Vec<Fault>> {
        let source = Source {
            name: "api.yaml".to_owned(),
            text: text.to_owned(),
        };
        routes_from_openapi("ledger", &source)
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
            &["GET /x/{id}/y/{id_2}", "GET /ok"],
            &[
                "3:3…`{name}.json` is only part of one",
                "4:3…`{a}.{b}` is only part of one",
                "5:3…`a{b}` is only part of one",
                "6:3…`{}` is only part of one",
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
    fn references_within_the_document_are_followed() {
        check(
            "\
openapi: 3.1.0
paths:
  /a: {$ref: '#/components/pathItems/a~1b'}
  /b: {$ref: 'other.yaml#/a'}
  /c: {$ref: '#/components/pathItems/loop'}
components:
  pathItems:
    a/b: {get: {}}
    loop: {$ref: '#/components/pathItems/loop'}
",
            &["GET /a"],
            &["4:14…leads out of the document", "9:11…more than 8 `$ref`s"],
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
            "openapi: 3.0.0\npaths: {'/a{b}': {get: {}}}\n",
            "1:1…describes no route",
        );
        refused("just text", "1:1…no `openapi` version");
        let many: String = (0..=MAX_ROUTES_PER_SERVICE)
            .map(|n| format!("  /r{n}: {{get: {{}}}}\n"))
            .collect();
        refused(&format!("openapi: 3.0.0\npaths:\n{many}"), "1:1…describes 1001 routes");
        let faults = routes_from_openapi(
            "a:b",
            &Source {
                name: "x".to_owned(),
                text: LEDGER.to_owned(),
            },
        );
        assert!(faults.unwrap_err()[0].reason.contains("not a service name"));
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
}
