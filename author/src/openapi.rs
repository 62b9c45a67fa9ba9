//! Reads a service's routes out of its OpenAPI documents (3.0 or 3.1, YAML or JSON).
//!
//! What a route cannot say is left out with a warning that says what to do, never approximated: a route that is wider
//! than the document would let a policy permit more than its author read.

use crate::yaml::{DOCUMENT_NODES_MAX, Node, Position, read};
use hoplite_identity::ServiceName;
use hoplite_policy::limits::{PATH_BYTES_MAX, ROUTES_PER_SERVICE_MAX};
use hoplite_policy::text::{CanonicalPath, WrittenParameter};
use hoplite_policy::{Ambiguous, BadTemplate, Fault, RouteTable, Source};
use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;

/// The operations of a path item that become routes. `trace` is refused by every proxy.
const METHODS: [&str; 7] = ["get", "put", "post", "delete", "options", "head", "patch"];
/// The most warnings told: each costs a walk through the document to its place.
const WARNINGS_MAX: usize = 100;
/// The most entries looked at, those that references lead to counted each time: as many as a document without references
/// can have.
const STEPS_MAX: usize = DOCUMENT_NODES_MAX;
/// What one route costs, in entries looked at.
const ROUTE_STEPS: usize = 20;
/// The longest URL of a server, with its variables' values.
const SERVER_BYTES_MAX: usize = PATH_BYTES_MAX;
/// The most references from one path item to the next.
const REFERENCES_MAX: usize = 8;

/// The routes of one service as a document describes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportedRoutes {
    /// The service's name.
    pub service: ServiceName,
    /// The routes in the document's order, each once, as `routes.toml` writes them.
    pub routes: Vec<String>,
    /// Every operation that was selected and is in no route, by method and path as written; where its methods are not known,
    /// by its path.
    pub left_out: Vec<String>,
    /// How many operations were not selected.
    pub unselected: usize,
    /// What of the documents is not in the routes, or not as written, and what to do about it.
    pub warnings: Vec<Fault>,
}

/// Which operations of the documents are imported: all, or those that have one of the tags, below one of the prefixes.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Paths with their servers' base paths, whole segments: `/v1/accounts`.
    pub prefixes: Vec<String>,
    /// Tags of operations.
    pub tags: Vec<String>,
}

/// Reads the routes of a service out of its OpenAPI documents, servers' base paths included.
///
/// # Errors
/// A document cannot be read or is no OpenAPI 3.0 or 3.1; or all of them together describe no route that is selected, or too
/// many.
pub fn routes_from_openapi(
    service: &ServiceName,
    documents: &[Source],
    selection: &Selection,
) -> Result<ImportedRoutes, Vec<Fault>> {
    let mut gathered = Gathered::default();
    let mut warnings = Vec::new();
    for document in documents {
        let fault = |place: Position, reason: String| place.fault(&document.name, &document.text, reason);
        let root = read(&document.text).map_err(|(place, reason)| vec![fault(place, reason)])?;
        check_version(&root).map_err(|(place, reason)| vec![fault(place, reason)])?;
        let mut import = Import {
            root: &root,
            service,
            selection,
            gathered: &mut gathered,
            warnings: Vec::new(),
            steps: 0,
        };
        let whole = root.get("paths").map_or(Ok(()), |paths| import.paths(paths));
        whole.map_err(|reason| vec![fault(Position::START, reason.to_string())])?;
        warnings.extend(import.warnings.into_iter().map(|(place, reason)| fault(place, reason)));
    }
    let first = documents.first().map_or("", |document| &document.name);
    for (what, words) in [("prefix", &selection.prefixes), ("tag", &selection.tags)] {
        for word in words
            .iter()
            .filter(|word| !gathered.used.contains(&(what, (*word).clone())))
        {
            let reason = format!(
                "no operation has the {what} `{}`; mend it, or leave it out",
                shown(word)
            );
            warnings.push(Fault::whole(first, reason));
        }
    }
    let found = ImportedRoutes {
        service: service.clone(),
        routes: gathered.routes,
        left_out: gathered.left_out,
        unselected: gathered.unselected,
        warnings,
    };
    if found.routes.is_empty() {
        let reason = match found.unselected {
            0 => "the document describes no route; is it the right one?".to_owned(),
            others => format!("none of {others} operations is selected; mend `--prefix` or `--tag`"),
        };
        let document = documents.first();
        let place = document.map_or_else(
            || Fault::whole("", &reason),
            |document| Position::START.fault(&document.name, &document.text, &reason),
        );
        return Err([vec![place], found.warnings].concat());
    }
    // Cannot fail while every route passed `RouteTable::check_line`; the file that people get is what is checked.
    RouteTable::parse(&found.section())?;
    Ok(found)
}

// === impl ImportedRoutes ===

impl ImportedRoutes {
    /// The service's section of `routes.toml`.
    pub fn section(&self) -> String {
        // A dot in a bare key would begin a table within a table.
        let quote = if self.service.as_str().contains('.') { "\"" } else { "" };
        let mut text = format!("[{quote}{}{quote}]\nroutes = [\n", self.service);
        for route in &self.routes {
            // A TOML string is quoted as TOML does it.
            text.push_str(&format!("    {},\n", toml::Value::from(route.as_str())));
        }
        text.push_str("]\n");
        text
    }
}

fn check_version(root: &Node) -> Result<(), (Position, String)> {
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

/// What several documents amount to.
#[derive(Default)]
struct Gathered {
    /// Routes already there, without the names of their parameters.
    seen: HashSet<String>,
    routes: Vec<String>,
    left_out: Vec<String>,
    unselected: usize,
    /// The prefixes and tags that some operation has.
    used: HashSet<(&'static str, String)>,
}

/// A walk through one document.
struct Import<'a> {
    root: &'a Rc<Node>,
    service: &'a ServiceName,
    selection: &'a Selection,
    gathered: &'a mut Gathered,
    warnings: Vec<(Position, String)>,
    steps: usize,
}

/// Why a document is not looked at any further.
#[derive(Debug, thiserror::Error)]
enum TooMuch {
    #[error("the document amounts to more than can be read, about {STEPS_MAX} entries; split it, or leave out servers")]
    Steps,
    #[error(
        "the document describes more routes than the {ROUTES_PER_SERVICE_MAX} a service may have; split the service, or \
         import what is called by `--prefix` or `--tag`"
    )]
    Routes,
}

/// Why a path or a server is not taken.
#[derive(Debug, thiserror::Error)]
enum LeftOut {
    #[error("a route is a path, and knows neither query nor fragment; name the path alone")]
    NoPath,
    #[error("{0}; rename it")]
    Ambiguous(Ambiguous),
    #[error("it is not in canonical form, which is like `{0}`; write it so")]
    NotCanonical(String),
    #[error(
        "a segment of a route has one parameter, and `{0}` has more; if every value of that segment may be reached alike, \
         add the route by hand with `{{name}}` in its place"
    )]
    TwoInOne(String),
    #[error("`{0}` holds a brace that begins or ends no parameter; mend it")]
    NoParameter(String),
    #[error(
        "the server's `url` is longer than {SERVER_BYTES_MAX} bytes once its variables have their values; it is left out"
    )]
    LongServer,
    #[error(transparent)]
    Template(#[from] BadTemplate),
}

// === impl Import ===

impl Import<'_> {
    fn warn(&mut self, place: Position, reason: impl Into<String>) {
        let last = match self.warnings.len().cmp(&WARNINGS_MAX) {
            Ordering::Less => reason.into(),
            Ordering::Equal => format!("and more; {WARNINGS_MAX} warnings are enough to begin with"),
            Ordering::Greater => return,
        };
        let warning = (place, last);
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }

    /// INVARIANT: whatever is looked at is counted here first. References lead to one thing many times, and every server
    /// is one more path for every operation.
    fn step(&mut self, steps: usize) -> Result<(), TooMuch> {
        self.steps = self.steps.saturating_add(steps);
        if self.steps > STEPS_MAX {
            return Err(TooMuch::Steps);
        }
        Ok(())
    }

    fn paths(&mut self, paths: &Node) -> Result<(), TooMuch> {
        let root = Rc::clone(self.root);
        let everywhere = self.bases(root.get("servers"))?.unwrap_or_else(|| vec![String::new()]);
        for entry in paths.entries() {
            self.step(1)?;
            if entry.key.starts_with("x-") {
                continue;
            }
            if !entry.key.starts_with('/') {
                let reason = format!(
                    "the path `{}` does not start with `/`; it is left out",
                    shown(&entry.key)
                );
                self.warn(entry.place, reason);
                self.gathered.left_out.push(shown(&entry.key));
                continue;
            }
            let Some(item) = self.resolved(&entry.node)? else {
                self.gathered.left_out.push(shown(&entry.key));
                continue;
            };
            let own = self.bases(item.get("servers"))?;
            let here = own.as_ref().unwrap_or(&everywhere);
            for operation in item.entries() {
                self.step(1 + operation.node.entries().len())?;
                let method = &*operation.key;
                let has_tag = self.has_tag(&operation.node)?;
                if METHODS.contains(&method) {
                    let own = self.bases(operation.node.get("servers"))?;
                    let bases = own.as_ref().unwrap_or(here);
                    // Why no server is left, their own warnings say.
                    if bases.is_empty() {
                        self.leave_out(method, &entry.key);
                    }
                    for base in bases {
                        self.step(ROUTE_STEPS)?;
                        if has_tag && self.has_prefix(&format!("{base}{}", entry.key)) {
                            self.route(method, base, &entry.key, entry.place)?;
                        } else {
                            self.gathered.unselected += 1;
                        }
                    }
                } else if method == "trace" {
                    self.leave_out(method, &entry.key);
                    self.warn(operation.place, "`trace` is left out; no proxy serves it");
                } else if !matches!(method, "summary" | "description" | "servers" | "parameters" | "$ref")
                    && !method.starts_with("x-")
                {
                    self.leave_out(method, &entry.key);
                    let reason = format!("`{}` is no operation of OpenAPI 3.1; it is left out", shown(method));
                    self.warn(operation.place, reason);
                }
            }
        }
        Ok(())
    }

    /// The path item itself, or what it refers to within the document.
    fn resolved(&mut self, item: &Rc<Node>) -> Result<Option<Rc<Node>>, TooMuch> {
        let mut item = Rc::clone(item);
        for _ in 0..REFERENCES_MAX {
            let Some(reference) = item.get("$ref").cloned() else {
                return Ok(Some(item));
            };
            for beside in item.entries() {
                self.step(1)?;
                let key = &*beside.key;
                if METHODS.contains(&key) || key == "servers" {
                    let reason = format!("`{key}` beside a `$ref` is left out; move it to where the `$ref` leads");
                    self.warn(beside.place, reason);
                    if key != "servers" {
                        self.leave_out(key, "beside a `$ref`");
                    }
                }
            }
            let target = reference.text().unwrap_or_default();
            let next = target.strip_prefix("#/").map(|pointer| self.pointed(pointer));
            let Some(next) = next.transpose()?.flatten() else {
                let reason = format!(
                    "`$ref` to `{}` leads out of the document or nowhere; bundle the document into one file first, for \
                     example with `redocly bundle`",
                    shown(target)
                );
                self.warn(reference.place, reason);
                return Ok(None);
            };
            item = next;
        }
        self.warn(
            item.place,
            format!("more than {REFERENCES_MAX} `$ref`s lead from one to the next; shorten the chain"),
        );
        Ok(None)
    }

    fn pointed(&mut self, pointer: &str) -> Result<Option<Rc<Node>>, TooMuch> {
        let mut node = Rc::clone(self.root);
        if pointer.len() > PATH_BYTES_MAX {
            return Ok(None);
        }
        for step in pointer.split('/') {
            let step = step.replace("~1", "/").replace("~0", "~");
            let mut found = None;
            for entry in node.entries() {
                self.step(1)?;
                if *entry.key == step {
                    found = Some(Rc::clone(&entry.node));
                    break;
                }
            }
            match found {
                Some(next) => node = next,
                None => return Ok(None),
            }
        }
        Ok(Some(node))
    }

    /// The paths that a list of servers puts before every path, each once; `None` where there is no list.
    fn bases(&mut self, servers: Option<&Rc<Node>>) -> Result<Option<Vec<String>>, TooMuch> {
        let Some(servers) = servers.filter(|servers| !servers.items().is_empty()) else {
            return Ok(None);
        };
        let mut bases: Vec<String> = Vec::new();
        let mut seen = HashSet::new();
        for server in servers.items() {
            self.step(1 + server.entries().len())?;
            let Some(url) = server.get("url").filter(|url| url.text().is_some()) else {
                self.warn(server.place, "the server has no `url`; it is left out");
                continue;
            };
            if let Some(base) = self.base(server, url)?
                && seen.insert(base.clone())
            {
                bases.push(base);
            }
        }
        Ok(Some(bases))
    }

    /// The path of a server's URL without its last slash; nothing where that is not known.
    fn base(&mut self, server: &Node, url: &Node) -> Result<Option<String>, TooMuch> {
        let mut defaults: HashMap<&str, &str> = HashMap::new();
        for variable in server.get("variables").map_or(&[][..], |node| node.entries()) {
            self.step(1 + variable.node.entries().len())?;
            let default = variable.node.get("default").and_then(|node| node.text());
            defaults.extend(default.map(|default| (&*variable.key, default)));
        }
        let written = url.text().unwrap_or_default();
        self.step(written.len().min(SERVER_BYTES_MAX))?;
        let (text, taken) = match substituted(written, &defaults) {
            Ok(done) => done,
            Err(reason) => {
                self.warn(url.place, reason.to_string());
                return Ok(None);
            }
        };
        for name in taken
            .iter()
            .filter(|name| path_of(written).contains(&format!("{{{name}}}")))
        {
            let reason = format!(
                "the server's path holds the variable `{{{}}}`; its default `{}` was taken, add the routes of other values \
                 by hand",
                shown(name),
                shown(defaults.get(name).copied().unwrap_or_default())
            );
            self.warn(url.place, reason);
        }
        let path = path_of(&text);
        if path.contains(['{', '}']) {
            let reason = format!(
                "the server's path `{}` has a variable without a plain default, so it is not known which path it is; the \
                 server is left out: give the variable a `default`",
                shown(path)
            );
            self.warn(url.place, reason);
            return Ok(None);
        }
        if !path.is_empty() && !path.starts_with('/') {
            let reason = format!(
                "the server's path `{0}` is relative; it was read as `/{0}`",
                shown(path)
            );
            let path = format!("/{}", path.trim_start_matches("./").trim_end_matches('/'));
            self.warn(url.place, reason);
            return Ok(Some(path));
        }
        Ok(Some(path.trim_end_matches('/').to_owned()))
    }

    fn leave_out(&mut self, method: &str, path: &str) {
        let name = format!("{} {}", shown(&method.to_uppercase()), shown(path));
        self.gathered.left_out.push(name);
    }

    /// Whether an operation has one of the tags that are wanted.
    fn has_tag(&mut self, operation: &Node) -> Result<bool, TooMuch> {
        let wanted = &self.selection.tags;
        if wanted.is_empty() {
            return Ok(true);
        }
        let tags = operation.get("tags").map_or(&[][..], |tags| tags.items());
        self.step(tags.len())?;
        let mut has = false;
        for tag in tags.iter().filter_map(|tag| tag.text()) {
            if let Some(tag) = self.selection.tags.iter().find(|wanted| *wanted == tag) {
                self.gathered.used.insert(("tag", tag.clone()));
                has = true;
            }
        }
        Ok(has)
    }

    /// Whether a path is below one of the prefixes that are wanted.
    fn has_prefix(&mut self, path: &str) -> bool {
        let below = |prefix: &str| {
            let rest = path.strip_prefix(prefix.trim_end_matches('/'));
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let mut wanted = self.selection.prefixes.iter();
        match wanted.find(|prefix| below(prefix)) {
            Some(prefix) => {
                self.gathered.used.insert(("prefix", prefix.clone()));
                true
            }
            None => self.selection.prefixes.is_empty(),
        }
    }

    fn route(&mut self, method: &str, base: &str, path: &str, place: Position) -> Result<(), TooMuch> {
        let whole = format!("{base}{path}");
        match template(&whole).and_then(|template| {
            let route = format!("{} {template}", method.to_uppercase());
            RouteTable::check_line(self.service, &route)?;
            Ok((route, template))
        }) {
            Ok((route, template)) => {
                if self
                    .gathered
                    .seen
                    .insert(format!("{method} {}", without_names(&template)))
                {
                    self.gathered.routes.push(route);
                }
            }
            Err(reason) => {
                self.leave_out(method, &whole);
                self.warn(place, format!("`{}` is left out: {reason}", shown(&whole)));
            }
        }
        if self.gathered.routes.len() > ROUTES_PER_SERVICE_MAX {
            return Err(TooMuch::Routes);
        }
        Ok(())
    }
}

/// A URL with the defaults of its variables in their places, and whose they are. What stands in a default is taken as it
/// is: one that named others, and they others, would be as long as somebody likes.
fn substituted<'a>(url: &'a str, defaults: &HashMap<&str, &str>) -> Result<(String, Vec<&'a str>), LeftOut> {
    let (mut text, mut taken) = (String::new(), Vec::new());
    let mut rest = url;
    while text.len() + rest.len() <= SERVER_BYTES_MAX {
        let (before, slot) = rest
            .split_once('{')
            .map_or((rest, None), |(before, slot)| (before, Some(slot)));
        text.push_str(before);
        let Some(slot) = slot else { return Ok((text, taken)) };
        let known = slot
            .split_once('}')
            .and_then(|(name, after)| Some((name, *defaults.get(name)?, after)));
        rest = match known {
            Some((_, default, _)) if default.len() > SERVER_BYTES_MAX => break,
            Some((name, default, after)) => {
                text.push_str(default);
                if !taken.contains(&name) {
                    taken.push(name);
                }
                after
            }
            None => {
                text.push('{');
                slot
            }
        };
    }
    Err(LeftOut::LongServer)
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
fn template(path: &str) -> Result<String, LeftOut> {
    if path.contains(['?', '#']) {
        return Err(LeftOut::NoPath);
    }
    let path = if path.len() > 1 {
        path.strip_suffix('/').unwrap_or(path)
    } else {
        path
    };
    let mut names: BTreeMap<String, usize> = BTreeMap::new();
    let mut written = Vec::new();
    let mut stand_ins = Vec::new();
    for segment in path.split('/') {
        let Some(parameter) = parameter(segment)? else {
            written.push(None);
            stand_ins.push(segment.to_owned());
            continue;
        };
        // Names are for people: what TOML-minded `RouteTable` would refuse is spelt otherwise, and a second one counted.
        let name: String = parameter
            .name
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' })
            .collect();
        let uses = names.entry(name.clone()).or_default();
        *uses += 1;
        let name = if *uses == 1 { name } else { format!("{name}_{uses}") };
        let part = |text| CanonicalPath::part(text).map_err(LeftOut::Ambiguous);
        written.push(Some(format!(
            "{}{{{name}}}{}",
            part(parameter.before)?,
            part(parameter.after)?
        )));
        stand_ins.push(parameter.with("x"));
    }
    let canonical = CanonicalPath::parse(stand_ins.join("/").as_bytes()).map_err(LeftOut::Ambiguous)?;
    let segments: Vec<&str> = canonical.text.split('/').collect();
    if segments.len() != written.len() {
        return Err(LeftOut::NotCanonical(canonical.text));
    }
    let whole: Vec<&str> = segments
        .iter()
        .zip(&written)
        .map(|(literal, parameter)| parameter.as_deref().unwrap_or(literal))
        .collect();
    Ok(whole.join("/"))
}

/// The parameter of a segment; `None` for a literal.
fn parameter(segment: &str) -> Result<Option<WrittenParameter<'_>>, LeftOut> {
    if !segment.contains(['{', '}']) {
        return Ok(None);
    }
    let parameter = WrittenParameter::of(segment).filter(|parameter| !parameter.name.is_empty());
    match parameter {
        Some(parameter) if WrittenParameter::of(parameter.after).is_some() => Err(LeftOut::TwoInOne(shown(segment))),
        Some(parameter)
            if ![parameter.before, parameter.name, parameter.after]
                .concat()
                .contains(['{', '}']) =>
        {
            Ok(Some(parameter))
        }
        _ => Err(LeftOut::NoParameter(shown(segment))),
    }
}

/// The template as it is compared: two that differ only in names cover the same requests.
fn without_names(template: &str) -> String {
    let segments: Vec<String> = template
        .split('/')
        .map(|segment| {
            WrittenParameter::of(segment).map_or_else(|| segment.to_owned(), |parameter| parameter.with("{}"))
        })
        .collect();
    segments.join("/")
}

/// A stranger's text within a sentence: one line, no longer than people read.
fn shown(text: &str) -> String {
    const SHOWN: usize = 120;
    text.chars().take(SHOWN).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests;
