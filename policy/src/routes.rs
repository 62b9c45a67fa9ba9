//! A service's routes are data: a small file maps method and path template to a route that policies name.
//!
//! ```toml
//! [ledger]
//! routes = ["GET /accounts/{id}", "POST /entries", "* /health"]
//! ```
//!
//! A template is compared with the decoded segments of the canonical request, so neither a trailing slash nor an
//! escape nor a dot segment leads past a route. `*` stands for any method; a parameter for one segment, or for the part of
//! one that other letters leave, as in `{id}.json`.

mod pattern;

pub use pattern::{BadTemplate, RoutePattern, WrittenParameter};

use crate::canonical::CanonicalRequest;
use crate::fault::{Fault, Text, check_mark};
use crate::source::{ROUTES_FILE, Source};
use hoplite_identity::ServiceName;
use serde::Deserialize;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use toml::Spanned;

/// The most routes of one service. The largest public descriptions of services have some 1 300 operations; a request is
/// compared, one by one, with those that have as many segments as it.
pub const ROUTES_PER_SERVICE_MAX: usize = 4_000;

/// A route's name, for example `ledger:GET /accounts/{id}` or `ledger:unmatched`. Made by a [`RouteTable`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Route {
    name: Arc<str>,
    service: ServiceName,
}

/// The routes of every service, from the text of `routes.toml`.
#[derive(Debug, Clone, Default)]
pub struct RouteTable {
    services: HashMap<ServiceName, Templates>,
}

/// The routes of one service.
#[derive(Debug, Clone, Default)]
struct Templates {
    /// Most specific first.
    sorted: Vec<Template>,
    /// By number of segments, the places in that order.
    by_segments: HashMap<usize, Vec<usize>>,
}

/// `GET /accounts/{id}`, parsed.
#[derive(Debug, Clone)]
struct Template {
    route: Route,
    pattern: RoutePattern,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Section {
    routes: Vec<Spanned<String>>,
}

// === impl Route ===

impl Route {
    fn new(service: &ServiceName, what: impl fmt::Display) -> Self {
        Self {
            name: format!("{service}:{what}").into(),
            service: service.clone(),
        }
    }

    /// The route of everything that no line of `routes.toml` covers.
    pub fn unmatched(service: &ServiceName) -> Self {
        Self::new(service, "unmatched")
    }

    /// The whole name, as policies and records say it.
    pub fn as_str(&self) -> &str {
        &self.name
    }

    /// The service it belongs to.
    pub fn service(&self) -> &ServiceName {
        &self.service
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

// === impl RouteTable ===

impl RouteTable {
    /// The routes that the sources' `routes.toml` tells of.
    ///
    /// # Errors
    /// As [`parse`](Self::parse).
    pub fn of_sources(sources: &[&Source]) -> Result<Self, Vec<Fault>> {
        match sources.iter().find(|source| source.name == ROUTES_FILE) {
            Some(source) => Self::parse(&source.text),
            None => Ok(Self::default()),
        }
    }

    /// Reads the text of `routes.toml`.
    ///
    /// # Errors
    /// Every fault in it: bad TOML, unknown keys, malformed services or templates, and templates that are the same
    /// or differ only in the names of their parameters.
    pub fn parse(text: &str) -> Result<Self, Vec<Fault>> {
        let source = Text::new(ROUTES_FILE, text);
        let fault =
            |span: Option<Range<usize>>, reason: String| source.fault(span.map_or(0, |span| span.start), reason);
        check_mark(&source)?;
        let sections: BTreeMap<Spanned<String>, Section> = toml::from_str(text)
            .map_err(|error| vec![fault(error.span(), error.message().trim_end().replace('\n', "; "))])?;

        let mut faults = Vec::new();
        let mut services = HashMap::new();
        for (service, section) in sections {
            let name = match ServiceName::parse(service.as_ref()) {
                Ok(name) => name,
                Err(invalid) => {
                    faults.push(fault(Some(service.span()), invalid.to_string()));
                    continue;
                }
            };
            if section.routes.len() > ROUTES_PER_SERVICE_MAX {
                let reason = format!("`{name}` has more than {ROUTES_PER_SERVICE_MAX} routes");
                faults.push(fault(Some(service.span()), reason));
                continue;
            }
            let mut templates: Vec<Template> = Vec::with_capacity(section.routes.len());
            let mut known: HashMap<RoutePattern, usize> = HashMap::new();
            for route in &section.routes {
                match Template::parse(&name, route.as_ref()) {
                    Ok(template) => match known.entry(template.pattern.clone()) {
                        Entry::Occupied(first) => {
                            let Some(other) = templates.get(*first.get()) else {
                                continue;
                            };
                            let reason = format!(
                                "`{}` covers the same requests as `{}`; remove one of them",
                                template.route, other.route
                            );
                            faults.push(fault(Some(route.span()), reason));
                        }
                        Entry::Vacant(place) => {
                            place.insert(templates.len());
                            templates.push(template);
                        }
                    },
                    Err(reason) => faults.push(fault(Some(route.span()), reason.to_string())),
                }
            }
            services.insert(name, Templates::new(templates));
        }
        if faults.is_empty() {
            Ok(Self { services })
        } else {
            Err(faults)
        }
    }

    /// Whether a request can be given the route of this name: one that is in the table, or the unmatched of any service.
    pub fn has(&self, name: &str) -> bool {
        name.split_once(':').is_some_and(|(service, what)| {
            let templates = self.services.get(service).map_or(&[] as &[_], |of| &of.sorted);
            let unmatched = what == "unmatched" && ServiceName::check(service).is_ok();
            unmatched || templates.iter().any(|template| template.route.as_str() == name)
        })
    }

    /// The route that somebody meant who wrote another, if there is one: of the same service, with a parameter where theirs has
    /// `:id`, `<id>`, `*` or another name.
    pub(crate) fn meant(&self, name: &str) -> Option<&Route> {
        let (service, what) = name.split_once(':')?;
        let alike = |what: &str| {
            let (method, path) = what.split_once(' ')?;
            let segments = path.trim_end_matches('/').split('/');
            let path: Vec<String> = segments
                .map(|segment| {
                    let written = WrittenParameter::of(segment).map(|parameter| (parameter.before, parameter.after));
                    written
                        .or_else(|| parameter_elsewhere(segment))
                        .map_or_else(|| segment.to_owned(), |(before, after)| format!("{before}{{}}{after}"))
                })
                .collect();
            Some((method.to_ascii_uppercase(), path.join("/")))
        };
        let wanted = alike(what)?;
        self.services
            .get(service)?
            .sorted
            .iter()
            .map(|template| &template.route)
            .find(|route| {
                let (_, what) = route.as_str().split_once(':').unwrap_or_default();
                alike(what).as_ref() == Some(&wanted)
            })
    }

    /// The routes of a text, each with the place of a segment that is taken by its letters and would be a parameter
    /// elsewhere. Nothing of a text that is no route table.
    pub fn literals(text: &str) -> Vec<(Range<usize>, String)> {
        let sections: BTreeMap<Spanned<String>, Section> = toml::from_str(text).unwrap_or_default();
        let routes = sections.values().flat_map(|section| &section.routes);
        let odd = |route: &Spanned<String>| {
            let (_, path) = route.as_ref().split_once(' ')?;
            let segment = path.split('/').find(|segment| parameter_elsewhere(segment).is_some())?;
            Some((route.span(), segment.to_owned()))
        };
        routes.filter_map(odd).collect()
    }

    /// Whether a table would take this line for a service.
    ///
    /// # Errors
    /// Why it would not.
    pub fn check_line(service: &ServiceName, line: &str) -> Result<(), BadTemplate> {
        Template::parse(service, line).map(drop)
    }

    /// The services that have routes, in no order.
    pub fn services(&self) -> impl Iterator<Item = &ServiceName> {
        self.services.keys()
    }

    /// The routes of a service, most specific first, each with its method; none is any method.
    pub fn of(&self, service: &ServiceName) -> impl Iterator<Item = (&Route, Option<&str>)> {
        let templates = self.services.get(service).map_or(&[] as &[_], |of| &of.sorted);
        templates
            .iter()
            .map(|template| (&template.route, template.pattern.method()))
    }

    /// The most specific route that covers the request. Of two templates the first segment that differs decides: a literal
    /// before a parameter, then the parameter with more letters around it, then with more before it; of two alike the one
    /// that names the method. [`Route::unmatched`] when none does.
    pub fn route(&self, service: &ServiceName, request: &CanonicalRequest) -> Route {
        self.services
            .get(service)
            .and_then(|templates| templates.covering(request))
            .map_or_else(|| Route::unmatched(service), |template| template.route.clone())
    }
}

// === impl Templates ===

impl Templates {
    fn new(mut sorted: Vec<Template>) -> Self {
        sorted.sort_by(|a, b| a.pattern.precedence(&b.pattern));
        let mut by_segments: HashMap<usize, Vec<usize>> = HashMap::new();
        for (place, template) in sorted.iter().enumerate() {
            by_segments.entry(template.pattern.length()).or_default().push(place);
        }
        Self { sorted, by_segments }
    }

    /// The first that covers the request.
    fn covering(&self, request: &CanonicalRequest) -> Option<&Template> {
        let places = self.by_segments.get(&request.segments().len())?.iter();
        let mut templates = places.filter_map(|place| self.sorted.get(*place));
        templates.find(|template| template.pattern.covers(request))
    }
}

/// What of a segment is how others write a parameter: `:id`, `<id>`, `*`, `**`, `$id`; what stands before it and after.
fn parameter_elsewhere(segment: &str) -> Option<(&str, &str)> {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    if matches!(segment, "*" | "**") {
        return Some(("", ""));
    }
    if let Some(rest) = segment.strip_prefix([':', '$']) {
        let end = rest.bytes().position(|b| !is_word(b)).unwrap_or(rest.len());
        let (name, after) = rest.split_at_checked(end)?;
        // A name ends at the end or at a dot, as in `:id.json`.
        return (!name.is_empty() && (after.is_empty() || after.starts_with('.'))).then_some(("", after));
    }
    let (before, rest) = segment.split_once('<')?;
    let (name, after) = rest.split_once('>')?;
    (!name.is_empty() && name.bytes().all(is_word)).then_some((before, after))
}

// === impl Template ===

impl Template {
    fn parse(service: &ServiceName, text: &str) -> Result<Self, BadTemplate> {
        Ok(Self {
            pattern: RoutePattern::parse(text)?,
            route: Route::new(service, text),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTES: &str = r#"
[ledger]
routes = [
    "GET /accounts/{id}", "GET /accounts/{id}/entries", "GET /accounts/self", "POST /entries", "* /health",
    "GET /health", "GET /", "GET /{kind}/summary", "POST /v1/{name}", "POST /v1/all:reset", "GET /caf%C3%A9",
]
[orders]
routes = []
"#;

    fn route(method: &str, target: &str) -> String {
        let request = CanonicalRequest::parse(method, &[b"ledger"], target.as_bytes()).unwrap();
        RouteTable::parse(ROUTES)
            .unwrap()
            .route(&"ledger".parse().unwrap(), &request)
            .as_str()
            .to_owned()
    }

    #[test]
    fn the_most_specific_route_wins() {
        for (method, target, expected) in [
            ("GET", "/accounts/7", "ledger:GET /accounts/{id}"),
            ("GET", "/accounts/self", "ledger:GET /accounts/self"),
            ("GET", "/accounts/summary", "ledger:GET /accounts/{id}"),
            ("GET", "/orders/summary", "ledger:GET /{kind}/summary"),
            ("GET", "/accounts/7/entries", "ledger:GET /accounts/{id}/entries"),
            ("GET", "/health", "ledger:GET /health"),
            ("DELETE", "/health", "ledger:* /health"),
            ("GET", "/", "ledger:GET /"),
            ("GET", "/caf%c3%a9", "ledger:GET /caf%C3%A9"),
            ("POST", "/accounts/7", "ledger:unmatched"),
            ("HEAD", "/accounts/7", "ledger:unmatched"),
            ("GET", "/accounts", "ledger:unmatched"),
            ("GET", "/Accounts/7", "ledger:unmatched"),
            ("OPTIONS", "*", "ledger:unmatched"),
        ] {
            assert_eq!(route(method, target), expected, "{method} {target}");
        }
    }

    /// Of two that cover a request: a literal, the parameter with more letters around it, the one with more before it.
    #[test]
    fn letters_around_a_parameter_make_a_route_more_specific() {
        let table = RouteTable::parse(
            "[a]\nroutes = ['GET /{id}', 'GET /{id}.json', 'GET /all.json', 'GET /{id}.min.json', 'GET /min{x}', 'GET /min.{x}', \
             'GET /{id}.json/x', 'GET /{id}/x', '* /v{n}', 'POST /{id}']",
        )
        .unwrap();
        for (method, path, expected) in [
            ("GET", "/7", "GET /{id}"),
            ("GET", "/7.json", "GET /{id}.json"),
            ("GET", "/.json", "GET /{id}"),
            ("GET", "/all.json", "GET /all.json"),
            ("GET", "/7.min.json", "GET /{id}.min.json"),
            ("GET", "/minute", "GET /min{x}"),
            ("GET", "/min.x", "GET /min.{x}"),
            // Five letters after it, four before it; three before it.
            ("GET", "/min.json", "GET /{id}.json"),
            ("GET", "/minx.json", "GET /{id}.json"),
            ("GET", "/7.json/x", "GET /{id}.json/x"),
            ("GET", "/7/x", "GET /{id}/x"),
            // A segment decides before a method.
            ("POST", "/v1", "* /v{n}"),
            ("POST", "/1", "POST /{id}"),
        ] {
            let request = CanonicalRequest::parse(method, &[b"a"], path.as_bytes()).unwrap();
            let found = table.route(&"a".parse().unwrap(), &request);
            assert_eq!(found.as_str(), format!("a:{expected}"), "{method} {path}");
        }
        let table = RouteTable::parse("[a]\nroutes = ['GET /{x}-ab', 'GET /ab-{x}']").unwrap();
        let request = CanonicalRequest::parse("GET", &[b"a"], b"/ab-ab-ab").unwrap();
        assert_eq!(table.route(&"a".parse().unwrap(), &request).as_str(), "a:GET /ab-{x}");
    }

    #[test]
    fn another_spelling_of_a_parameter_is_understood() {
        let table = RouteTable::parse("[a]\nroutes = ['GET /calls/{sid}.json', 'GET /v{n}/x']").unwrap();
        for (written, meant) in [
            ("a:get /calls/:sid.json", Some("a:GET /calls/{sid}.json")),
            ("a:GET /calls/<sid>.json/", Some("a:GET /calls/{sid}.json")),
            ("a:GET /calls/{id}.json", Some("a:GET /calls/{sid}.json")),
            ("a:GET /v<n>/x", Some("a:GET /v{n}/x")),
            ("a:GET /calls/{id}.xml", None),
            ("a:GET /calls/{sid}", None),
        ] {
            assert_eq!(table.meant(written).map(Route::as_str), meant, "{written}");
        }
        let odd =
            RouteTable::literals("[a]\nroutes = ['GET /a/:id.json', 'GET /x<n>', 'POST /all:reset', 'GET /:a-b:c']");
        let odd: Vec<&str> = odd.iter().map(|(_, segment)| segment.as_str()).collect();
        assert_eq!(odd, [":id.json", "x<n>"]);
    }

    proptest::proptest! {
        /// A reader that tries every way to read a segment, and the one of its routes that nothing is more specific than.
        #[test]
        fn the_route_is_the_one_that_a_naive_reader_finds(
            routes in proptest::collection::vec("(GET|\\*) /([ab]|[ab]{0,2}\\{p\\}[ab]{0,2})(/([ab]|[ab]{0,1}\\{q\\}[ab]{0,1}))?", 1..8),
            path in "/[ab]{1,4}(/[ab]{1,3})?",
        ) {
            let around = |segment: &str| segment.split_once(['{']).map(|(before, rest)| (before.to_owned(), rest[2..].to_owned()));
            let reads = |route: &str| {
                let segments: Vec<&str> = route.split('/').skip(1).collect();
                let asked: Vec<&str> = path.split('/').skip(1).collect();
                segments.len() == asked.len() && segments.iter().zip(&asked).all(|(segment, asked)| match around(segment) {
                    None => segment == asked,
                    Some((before, after)) => {
                        (1..asked.len() + 1).any(|length| {
                            (0..asked.len()).any(|start| {
                                asked.get(start..start + length).is_some_and(|value| format!("{before}{value}{after}") == **asked)
                            })
                        })
                    }
                })
            };
            let more_specific = |one: &str, other: &str| {
                for (one, other) in one.split('/').skip(1).zip(other.split('/').skip(1)) {
                    match (around(one), around(other)) {
                        (None, Some(_)) => return true,
                        (Some(_), None) => return false,
                        (Some((before, after)), Some((other_before, other_after))) => {
                            let letters = (before.len() + after.len(), before.len());
                            let other_letters = (other_before.len() + other_after.len(), other_before.len());
                            if letters != other_letters {
                                return letters > other_letters;
                            }
                        }
                        (None, None) => {}
                    }
                }
                !one.starts_with('*') && other.starts_with('*')
            };
            let mut routes = routes;
            routes.sort();
            routes.dedup();
            let table = RouteTable::parse(&format!("[a]\nroutes = {routes:?}")).unwrap();
            let covering: Vec<&String> = routes.iter().filter(|route| reads(route)).collect();
            let best: Vec<&&String> = covering.iter().filter(|one| !covering.iter().any(|other| more_specific(other, one))).collect();
            let request = CanonicalRequest::parse("GET", &[b"a"], path.as_bytes()).unwrap();
            let found = table.route(&"a".parse().unwrap(), &request);
            match best[..] {
                [] => proptest::prop_assert_eq!(found.as_str(), "a:unmatched"),
                [only] => proptest::prop_assert_eq!(found.as_str(), format!("a:{only}")),
                ref several => proptest::prop_assert!(false, "{:?} are equally specific for {}", several, path),
            }
        }
    }

    #[test]
    fn no_spelling_leads_past_a_route() {
        for target in [
            "/accounts/self/",
            "//accounts/self",
            "/x/../accounts/self",
            "/accounts/s%65lf",
            "/./accounts/self?a",
        ] {
            assert_eq!(route("GET", target), "ledger:GET /accounts/self", "{target}");
        }
        assert_eq!(route("POST", "/v1/all%3Areset"), "ledger:POST /v1/all:reset");
    }

    #[test]
    fn a_service_without_routes_is_unmatched() {
        let request = CanonicalRequest::parse("GET", &[b"x"], b"/").unwrap();
        let table = RouteTable::parse(ROUTES).unwrap();
        for service in ["orders", "nobody"] {
            let service = ServiceName::parse(service).unwrap();
            let route = table.route(&service, &request);
            assert_eq!(route, Route::unmatched(&service));
            assert_eq!(route.service(), &service);
        }
    }

    #[test]
    fn faults_name_line_and_column() {
        let check = |text: &str, expected: &[&str]| {
            let faults = RouteTable::parse(text).unwrap_err();
            let faults: Vec<_> = faults.iter().map(ToString::to_string).collect();
            assert_eq!(faults.len(), expected.len(), "{text}: {faults:#?}");
            for (fault, expected) in faults.iter().zip(expected) {
                let (start, end) = expected.split_once('…').unwrap();
                assert!(
                    fault.starts_with(&format!("routes.toml:{start}")) && fault.contains(end),
                    "{fault}"
                );
            }
        };
        check("[ledger\n", &["1:8…"]);
        check("[a]\nroute = []", &["2:1…unknown field `route`"]);
        check("[a]\nroutes = [7]", &["2:11…expected a string"]);
        check("[a]\nroutes = \"GET /\"", &["2:10…expected a sequence"]);
        check("[a]\n", &["1:1…missing field `routes`"]);
        check("[a]\nroutes = []\n[a]\nroutes = []", &["3:2…duplicate key"]);
        check("[a]\nroutes = [\"GET /a\\nb\"]", &["2:11…in `GET /a\\nb`"]);
        check("[\"a\\nb\"]\nroutes = []", &["1:2…`a\\nb` is not a service name"]);
        check("[\"a:b\"]\nroutes = []", &["1:2…not a service name"]);
        // No proxy could be configured to have these.
        check(
            "[Ledger]\nroutes = []",
            &["1:2…`Ledger` is not a service name; use 1 to 64"],
        );
        check(
            &format!("[{}]\nroutes = []", "a".repeat(65)),
            &["1:2…not a service name"],
        );
        check(
            "[a]\nroutes = [\n  \"GET/x\",\n  \"get /x\",\n  \"TRACE /x\",\n  \"GET x\",\n  \"GET /x/\",\n  \"GET /{}\"]",
            &[
                "3:3…not a route",
                "4:3…upper-case",
                "5:3…not forwarded",
                "6:3…start with `/`",
                "7:3…leave out the last slash",
                "8:3…not a parameter",
            ],
        );
        check(
            "[a]\nroutes = [\"GET  /\", \"GET /a//b\", \"GET /{a}{b}\", \"GET /%61\", \"GET /a%2fb\", \"GET /{a}/{a}\"]",
            &[
                "2:11…start with `/`",
                "2:21…like `/a/b`",
                "2:34…two parameters",
                "2:49…like `/a`",
                "2:61…encoded slash",
                "2:75…twice",
            ],
        );
        check(
            "[a]\nroutes = [\"GET /x\", \"GET /x\", \"GET /{a}\", \"GET /{b}\", \"* /x\", \"* /x\", \"* /{a}.x\", \"* /{b}.x\"]",
            &[
                "2:21…the same requests as `a:GET /x`",
                "2:43…as `a:GET /{a}`",
                "2:63…as `a:* /x`",
                "2:83…as `a:* /{a}.x`",
            ],
        );
    }
}
