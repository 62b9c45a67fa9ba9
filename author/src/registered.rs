//! Names that meet nobody: workloads of policies that nobody has registered, and callers that no policy names. Legal, often early, and more
//! often misspelt.

use cedar_policy::EntityUid;
use hoplite_identity::{EntryName, SpiffeId, SpiffeIdTemplate};
use hoplite_policy::text::{
    Anatomy, COMPILE_STACK_BYTES, FAULTS_MAX, Text, VOCABULARY, enough, on_stack, parse, statements,
};
use hoplite_policy::{Fault, Snapshot, Source};
use std::collections::BTreeSet;

/// The workloads, paths and trust domains in policies that hold nobody of these. A name that a template could give is somebody's. For
/// sources that compile.
pub fn unregistered(sources: &[Source], registered: &[EntryName]) -> Vec<Fault> {
    on_stack(COMPILE_STACK_BYTES, || look(sources, registered)).unwrap_or_else(|error| {
        let file = sources.first().map_or("", |source| &source.name);
        vec![Fault::whole(
            file,
            format!("the policies could not be checked: {error}; try again"),
        )]
    })
}

fn look(sources: &[Source], registered: &[EntryName]) -> Vec<Fault> {
    let held = Held::of(registered);
    let mut faults = Vec::new();
    for source in sources.iter().filter(|source| source.name.ends_with(".cedar")) {
        let text = Text::new(&source.name, &source.text);
        for statement in statements(&source.text) {
            let Ok(policy) = parse(&statement, &|_, reason| Fault::whole(&source.name, reason)) else {
                continue;
            };
            let mut names = policy.entity_literals();
            names.sort_by_cached_key(ToString::to_string);
            names.dedup();
            for uid in names.iter().filter(|uid| !held.has(uid)) {
                let (kind, id) = (uid.type_name().to_string(), uid.id().unescaped());
                let span = Anatomy::of(statement.text).entity(&kind, id).unwrap_or(0..0);
                let message = format!(
                    "nobody is registered as `{id}`, or below it; mend the name, or register who it is for with `hoplite entry \
                     create`"
                );
                let fault = text.fault(statement.offset + span.start, message);
                faults.push(fault.spanning(span.len()));
            }
            if faults.len() > FAULTS_MAX {
                return enough(faults, &source.name);
            }
        }
    }
    faults
}

/// The workloads and paths that policies name, as they write them: what a caller can be found by.
pub fn named_callers(snapshot: &Snapshot) -> BTreeSet<String> {
    let names = snapshot.policies().flat_map(|policy| policy.entity_literals());
    let names = names.filter(|uid| [&VOCABULARY.workload, &VOCABULARY.path].contains(&uid.type_name()));
    names.map(|uid| uid.id().unescaped().to_owned()).collect()
}

/// The names by which policies can name this workload: itself, and each path it is in.
pub fn names_of(caller: &SpiffeId) -> BTreeSet<String> {
    let held = Held::of(&[caller.clone().into()]);
    held.workloads.into_iter().chain(held.paths).collect()
}

/// Everything that the registered are, or are in, as policies name it.
struct Held {
    workloads: BTreeSet<String>,
    paths: BTreeSet<String>,
    trust_domains: BTreeSet<String>,
    /// What gives names that are not known here.
    templates: Vec<SpiffeIdTemplate>,
}

// === impl Held ===

impl Held {
    fn of(registered: &[EntryName]) -> Self {
        let mut held = Self {
            workloads: BTreeSet::new(),
            paths: BTreeSet::new(),
            trust_domains: BTreeSet::new(),
            templates: Vec::new(),
        };
        for name in registered {
            match name {
                EntryName::Id(id) => drop(held.workloads.insert(id.as_str().to_owned())),
                EntryName::Template(template) => held.templates.push(template.clone()),
            }
            let id = name.fixed();
            held.trust_domains.insert(id.trust_domain().as_str().to_owned());
            let mut path = id.trust_domain().as_str().to_owned();
            for segment in id.segments() {
                path.push('/');
                path.push_str(segment);
                held.paths.insert(path.clone());
            }
        }
        held
    }

    /// Whether a name holds somebody; what is no name of workloads is not looked for.
    fn has(&self, uid: &EntityUid) -> bool {
        let (kind, id) = (uid.type_name(), uid.id().unescaped());
        match () {
            () if *kind == VOCABULARY.workload => {
                self.workloads.contains(id) || self.could(id, SpiffeIdTemplate::could_be)
            }
            () if *kind == VOCABULARY.path => {
                let beneath = SpiffeIdTemplate::could_be_beneath;
                self.paths.contains(id) || self.could(&format!("spiffe://{id}"), beneath)
            }
            () if *kind == VOCABULARY.trust_domain => self.trust_domains.contains(id),
            () => true,
        }
    }

    /// Whether this holds of a template and a name.
    fn could(&self, name: &str, holds: impl Fn(&SpiffeIdTemplate, &SpiffeId) -> bool) -> bool {
        let id = SpiffeId::parse(name);
        id.is_ok_and(|id| self.templates.iter().any(|template| holds(template, &id)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_is_named_by_itself_or_by_a_path_above_it() {
        let named: BTreeSet<String> = ["spiffe://prod.acme/web", "prod.acme/ns/pay"].map(str::to_owned).into();
        let check =
            |id: &str, is: bool| assert_eq!(!names_of(&SpiffeId::parse(id).unwrap()).is_disjoint(&named), is, "{id}");
        check("spiffe://prod.acme/web", true);
        check("spiffe://prod.acme/ns/pay/sa/refunds", true);
        check("spiffe://prod.acme/ns/pay", true);
        check("spiffe://prod.acme/wbe", false);
        check("spiffe://prod.acme/web/below", false);
        check("spiffe://prod.acme/ns/payments", false);
        check("spiffe://other/web", false);
    }

    #[test]
    fn names_that_hold_nobody_are_told() {
        let registered = [
            "spiffe://prod.acme/ns/pay/sa/refunds",
            "spiffe://prod.acme/user/{unix:user}",
        ]
        .map(|name| EntryName::parse(name).unwrap());
        let check = |principal: &str, is_known: bool| {
            let text = format!("@id(\"a\")\npermit ({principal}, action, resource);");
            let sources = [Source {
                name: "a.cedar".to_owned(),
                text,
            }];
            let faults = unregistered(&sources, &registered);
            assert_eq!(faults.is_empty(), is_known, "{principal}: {faults:?}");
            for fault in faults {
                let line = fault.render();
                assert!(
                    line.starts_with("a.cedar:2:22: nobody is registered") && line.contains("^^^"),
                    "{line}"
                );
            }
        };
        check(
            "principal == Hoplite::Workload::\"spiffe://prod.acme/ns/pay/sa/refunds\"",
            true,
        );
        check("principal in Hoplite::Path::\"prod.acme/ns/pay\"", true);
        check("principal in Hoplite::TrustDomain::\"prod.acme\"", true);
        check("principal", true);
        check(
            "principal == Hoplite::Workload::\"spiffe://prod.acme/ns/pay/sa/refund\"",
            false,
        );
        check("principal == Hoplite::Workload::\"spiffe://prod.acme/user/ann\"", true);
        check("principal in Hoplite::Path::\"prod.acme/user\"", true);
        check("principal in Hoplite::Path::\"prod.acme/user/ann\"", true);
        check(
            "principal == Hoplite::Workload::\"spiffe://prod.acme/users/ann\"",
            false,
        );
        check(
            "principal == Hoplite::Workload::\"spiffe://prod.acme/user/ann/x\"",
            false,
        );
        check("principal == Hoplite::Workload::\"spiffe://prod.acme/user\"", false);
        check("principal in Hoplite::Path::\"prod.acme/ns/pa\"", false);
        check("principal in Hoplite::TrustDomain::\"prod.acm\"", false);
    }
}
