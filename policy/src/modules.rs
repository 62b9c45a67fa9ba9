//! Which team may decide about which service: a folder of policies is a module, and `modules.toml` says whose it is.
//!
//! ```toml
//! [pay]
//! owner = "team-pay"
//! services = ["ledger", "refunds"]
//!
//! [guard-rails]
//! owner = "security"
//! security = true
//! ```
//!
//! What a policy is about is read from its scope alone, so the check needs no request and cannot be talked round: in a
//! team's module every policy, permit or forbid, has a resource that is `==` or `in` one of its services or their routes,
//! and the module's owner as `@owner`. A security module may speak of everything. Each service has one owner.

use crate::anatomy::Anatomy;
use crate::cedar::annotation;
use crate::fault::{Fault, Text, check_mark};
use crate::ids::ID_BYTES_MAX;
use crate::schema::VOCABULARY;
use crate::source::{BREAK_GLASS_MODULE, FILE_NAME_BYTES_MAX, MODULES_FILE, Source};
use crate::statement::Statement;
use crate::unseen::is_unseen;
use cedar_policy::{Effect, Policy, PrincipalConstraint, ResourceConstraint};
use hoplite_identity::ServiceName;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use toml::Spanned;

/// The owner who may permit without a scope where there are no modules to say who that is.
pub const SECURITY_OWNER: &str = "security";

/// The modules of a policy set.
#[derive(Debug, Clone, Default)]
pub struct Modules {
    /// `None` where there is no `modules.toml`: then no file may be in a folder.
    by_name: Option<BTreeMap<String, Module>>,
}

#[derive(Debug, Clone)]
struct Module {
    owner: String,
    /// `None` is security: everything.
    services: Option<BTreeSet<ServiceName>>,
}

/// On whose behalf a file speaks.
#[derive(Debug, Clone, Copy)]
pub enum Team<'a> {
    /// There are no modules.
    Anyone,
    /// A grant's: a permit to somebody at one service.
    Grant,
    /// A module of this name with this owner, over everything or over these services.
    Module {
        /// Its name.
        name: &'a str,
        /// Who owns it.
        owner: &'a str,
        /// What it is over; `None` is everything.
        services: Option<&'a BTreeSet<ServiceName>>,
    },
}

/// Why a policy file may not be called what it is called.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoTeam {
    /// Folders lie in folders.
    #[error("`{0}` is deeper than one folder; move it up")]
    TooDeep(String),
    /// A folder, and nobody says whose it is.
    #[error("the folder `{0}` is a module and there is no `{MODULES_FILE}`; write one that says whose it is")]
    NoModules(String),
    /// A file outside the modules that there are.
    #[error("there is a `{MODULES_FILE}` and `{0}` is in no module; move it into the folder of one")]
    NoModule(String),
    /// A folder of which the modules do not speak.
    #[error("`{MODULES_FILE}` knows no module `{0}`; add `[{0}]` with its `owner` and `services`")]
    UnknownModule(String),
    /// It is no name of a file or folder of policies.
    #[error(
        "`{0}` cannot be a policy file or module; rename it, without `/`, `\\`, control characters and a dot in front"
    )]
    Name(String),
}

/// Why a policy is not its module's to write.
#[derive(Debug, thiserror::Error)]
enum NotIts {
    #[error(
        "the module `{module}` may not speak of every service; write `resource in Hoplite::Service::\"{example}\"`"
    )]
    Everything { module: String, example: String },
    #[error("the service `{service}` is not the module `{module}`'s; ask its owner, or change `{MODULES_FILE}`")]
    Service { service: String, module: String },
    #[error(
        "the module `{module}` may speak of its own services only; write `resource in Hoplite::Service::\"{example}\"`"
    )]
    NoService { module: String, example: String },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Section {
    owner: Spanned<String>,
    services: Option<Vec<Spanned<String>>>,
    #[serde(default)]
    security: bool,
}

// === impl Modules ===

impl Modules {
    /// The modules that the sources' `modules.toml` tells of.
    ///
    /// # Errors
    /// As [`parse`](Self::parse).
    pub fn of(sources: &[&Source]) -> Result<Self, Vec<Fault>> {
        match sources.iter().find(|source| source.name == MODULES_FILE) {
            Some(source) => Self::parse(&source.text),
            None => Ok(Self::default()),
        }
    }

    /// Reads the text of `modules.toml`.
    ///
    /// # Errors
    /// Every fault in it: bad TOML, unknown keys, malformed names, a module over nothing, a service with two owners.
    pub fn parse(text: &str) -> Result<Self, Vec<Fault>> {
        let source = Text::new(MODULES_FILE, text);
        let fault = |span: Range<usize>, reason: String| source.fault(span.start, reason).spanning(span.len());
        check_mark(&source)?;
        let sections: BTreeMap<Spanned<String>, Section> = toml::from_str(text).map_err(|error| {
            let reason = error.message().trim_end().replace('\n', "; ");
            vec![fault(error.span().unwrap_or_default(), reason)]
        })?;
        let mut faults = Vec::new();
        let mut owners: HashMap<ServiceName, String> = HashMap::new();
        let mut by_name = BTreeMap::new();
        for (name, section) in sections {
            if let Err(reason) = check_part(name.as_ref()) {
                faults.push(fault(name.span(), reason.to_string()));
            }
            if name.as_ref() == BREAK_GLASS_MODULE {
                let reason = format!("`{BREAK_GLASS_MODULE}` is for grants; give the module another name");
                faults.push(fault(name.span(), reason));
            }
            let owner = section.owner.as_ref();
            if owner.is_empty()
                || owner.len() > ID_BYTES_MAX
                || owner.chars().any(|c| is_unseen(c) || c.is_whitespace())
            {
                let reason = format!("an owner is 1 to {ID_BYTES_MAX} bytes without spaces; write one like `team-pay`");
                faults.push(fault(section.owner.span(), reason));
            }
            let services = match (section.services, section.security) {
                (None, true) => None,
                (Some(services), false) if !services.is_empty() => {
                    let mut names = BTreeSet::new();
                    for service in &services {
                        let name = match ServiceName::parse(service.as_ref()) {
                            Ok(name) => name,
                            Err(invalid) => {
                                faults.push(fault(service.span(), invalid.to_string()));
                                continue;
                            }
                        };
                        let first = owners.entry(name.clone()).or_insert_with(|| owner.clone());
                        if first != owner {
                            let reason = format!("`{name}` is already `{first}`'s; give it to one owner");
                            faults.push(fault(service.span(), reason));
                        }
                        names.insert(name);
                    }
                    Some(names)
                }
                (Some(_), true) => {
                    let reason = "a security module is over every service; leave out `services`".to_owned();
                    faults.push(fault(name.span(), reason));
                    None
                }
                (_, false) => {
                    let reason = format!(
                        "the module `{}` is over nothing; write `services = [\"ledger\"]`, or `security = true`",
                        name.as_ref()
                    );
                    faults.push(fault(name.span(), reason));
                    None
                }
            };
            let owner = section.owner.into_inner();
            by_name.insert(name.into_inner(), Module { owner, services });
        }
        if faults.is_empty() {
            Ok(Self { by_name: Some(by_name) })
        } else {
            Err(faults)
        }
    }

    /// Every module; none where there is no table of them.
    pub fn teams(&self) -> Option<impl Iterator<Item = Team<'_>>> {
        let modules = self.by_name.as_ref()?.iter();
        Some(modules.map(|(name, module)| Team::Module {
            name,
            owner: &module.owner,
            services: module.services.as_ref(),
        }))
    }

    /// The services that modules are over, security's left out: it is over everything.
    pub fn services(&self) -> impl Iterator<Item = &ServiceName> {
        let modules = self.by_name.iter().flat_map(BTreeMap::values);
        modules.flat_map(|module| module.services.iter().flatten())
    }

    /// On whose behalf the source of this name speaks.
    ///
    /// # Errors
    /// Why a policy file may not be called so.
    pub fn team<'a>(&'a self, source: &'a str) -> Result<Team<'a>, NoTeam> {
        let (module, file) = match source.split_once('/') {
            Some((module, file)) => (Some(module), file),
            None => (None, source),
        };
        if file.contains('/') {
            return Err(NoTeam::TooDeep(source.to_owned()));
        }
        check_part(file)?;
        if module == Some(BREAK_GLASS_MODULE) {
            return Ok(Team::Grant);
        }
        match (&self.by_name, module) {
            (None, None) => Ok(Team::Anyone),
            (None, Some(name)) => Err(NoTeam::NoModules(name.to_owned())),
            (Some(_), None) => Err(NoTeam::NoModule(file.to_owned())),
            (Some(modules), Some(name)) => {
                check_part(name)?;
                let module = modules
                    .get(name)
                    .ok_or_else(|| NoTeam::UnknownModule(name.to_owned()))?;
                Ok(Team::Module {
                    name,
                    owner: &module.owner,
                    services: module.services.as_ref(),
                })
            }
        }
    }
}

// === impl Team ===

impl Team<'_> {
    /// Whether this owner may permit without a scope.
    pub fn is_security(self, owner: Option<&str>) -> bool {
        match self {
            Team::Anyone | Team::Grant => owner == Some(SECURITY_OWNER),
            Team::Module { services, .. } => services.is_none(),
        }
    }

    /// What of a policy is not this team's to say.
    pub(crate) fn check(
        self,
        policy: &Policy,
        statement: &Statement<'_>,
        fault: &dyn Fn(usize, String) -> Fault,
    ) -> Vec<Fault> {
        let mut faults = Vec::new();
        let id = annotation(policy, "id").unwrap_or_default();
        let reserved = id
            .split_once('/')
            // In lower case as ids are compared, or a grant could find its id taken.
            .is_some_and(|(first, _)| first.to_lowercase() == BREAK_GLASS_MODULE);
        if !matches!(self, Team::Grant) && reserved {
            // It would be taken for a grant in every record, and keep a grant of that name out.
            let span = Anatomy::of(statement.text).annotation("id").unwrap_or(0..0);
            let reason = format!("ids that begin with `{BREAK_GLASS_MODULE}/` are those of grants; write another");
            faults.push(fault(span.start, reason));
        }
        let (name, owner, services) = match self {
            Team::Anyone => return faults,
            Team::Grant => {
                let whom = matches!(
                    policy.principal_constraint(),
                    PrincipalConstraint::Eq(_) | PrincipalConstraint::In(_)
                );
                let what = matches!(policy.resource_constraint(), ResourceConstraint::In(uid) if *uid.type_name() == VOCABULARY.service);
                if !(policy.effect() == Effect::Permit && reserved && whom && what) {
                    let reason = format!(
                        "this is no grant, and `{BREAK_GLASS_MODULE}` is for grants; put the policy into another folder"
                    );
                    faults.push(fault(0, reason));
                }
                return faults;
            }
            Team::Module { name, owner, services } => (name, owner, services),
        };
        let written = annotation(policy, "owner");
        if written != Some(owner) {
            let reason = match written {
                None => format!("the policy has no `@owner`; put `@owner(\"{owner}\")` before it"),
                Some(written) => format!("the module `{name}` is not `{written}`'s; write `@owner(\"{owner}\")`"),
            };
            let span = Anatomy::of(statement.text).annotation("owner").unwrap_or(0..0);
            let found = fault(span.start, reason);
            faults.push(if span.is_empty() {
                found
            } else {
                found.spanning(span.len())
            });
        }
        if let Some(services) = services
            && let Err(reason) = within(services, name, &policy.resource_constraint())
        {
            let span = Anatomy::of(statement.text).scope("resource").unwrap_or(0..0);
            faults.push(fault(span.start, reason.to_string()).spanning(span.len()));
        }
        faults
    }
}

/// Whether a scope's resource is one of the services, or a route of one.
fn within(services: &BTreeSet<ServiceName>, module: &str, resource: &ResourceConstraint) -> Result<(), NotIts> {
    let module = module.to_owned();
    let example = services.first().map_or("", ServiceName::as_str).to_owned();
    let (ResourceConstraint::Eq(uid) | ResourceConstraint::In(uid) | ResourceConstraint::IsIn(_, uid)) = resource
    else {
        return Err(NotIts::Everything { module, example });
    };
    let id = uid.id().unescaped();
    let service = if *uid.type_name() == VOCABULARY.service {
        Some(id)
    } else if *uid.type_name() == VOCABULARY.route {
        // A service's name has no colon, so the first one ends it.
        id.split_once(':').map(|(service, _)| service)
    } else {
        None
    };
    match service {
        Some(service) if services.contains(service) => Ok(()),
        Some(service) => Err(NotIts::Service {
            service: service.to_owned(),
            module,
        }),
        None => Err(NotIts::NoService { module, example }),
    }
}

/// Checks the name of a file or folder of policies.
fn check_part(name: &str) -> Result<(), NoTeam> {
    let bad = |c: char| is_unseen(c) || c == '/' || c == '\\';
    if name.is_empty() || name.starts_with('.') || name.len() > FILE_NAME_BYTES_MAX || name.chars().any(bad) {
        return Err(NoTeam::Name(name.chars().take(80).collect()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::Snapshot;
    use crate::snapshot::tests::sources;

    const MODULES: &str = r#"
[pay]
owner = "team-pay"
services = ["ledger", "refunds"]
[pay-batch]
owner = "team-pay"
services = ["ledger"]
[guard-rails]
owner = "security"
security = true
"#;

    /// Each expectation is `file:line:column` and, after `…`, a part of the message.
    #[track_caller]
    fn check(files: &[(&str, &str)], expected: &[&str]) {
        let faults = Snapshot::compile(&sources(files)).err().unwrap_or_default();
        let faults: Vec<_> = faults.iter().map(ToString::to_string).collect();
        assert_eq!(faults.len(), expected.len(), "{faults:#?}");
        for (fault, expected) in faults.iter().zip(expected) {
            let (place, reason) = expected.split_once('…').unwrap();
            assert!(
                fault.starts_with(&format!("{place}: ")) && fault.contains(reason),
                "{fault}\nis not {expected}"
            );
        }
    }

    /// A permit of the module `pay` with this resource.
    #[track_caller]
    fn scope(resource: &str, expected: &[&str]) {
        for effect in ["permit", "forbid"] {
            let text = format!("@id(\"x\")\n@owner(\"team-pay\")\n{effect} (principal, action,\n{resource});");
            let routes =
                "[ledger]\nroutes = []\n[refunds]\nroutes = [\"POST /r/{ab}\"]\n[orders]\nroutes = [\"GET /ledger:\"]";
            let files = [
                ("modules.toml", MODULES),
                ("pay/a.cedar", &text),
                ("routes.toml", routes),
            ];
            check(&files, expected);
        }
    }

    #[test]
    fn a_team_speaks_of_its_own_services_only() {
        scope(r#"resource in Hoplite::Service::"ledger""#, &[]);
        scope(r#"resource == Hoplite::Route::"refunds:POST /r/{ab}""#, &[]);
        scope(r#"resource is Hoplite::Route in Hoplite::Service::"ledger""#, &[]);
        scope("resource", &["pay/a.cedar:4:1…may not speak of every service"]);
        scope(
            "resource is Hoplite::Route",
            &["pay/a.cedar:4:1…write `resource in Hoplite::Service::\"ledger\"`"],
        );
        scope(
            r#"resource in Hoplite::Service::"orders""#,
            &["pay/a.cedar:4:1…`orders` is not the module `pay`'s"],
        );
        scope(
            r#"resource == Hoplite::Route::"orders:GET /ledger:""#,
            &["pay/a.cedar:4:1…`orders` is not the module `pay`'s"],
        );
        scope(
            r#"resource == Hoplite::Route::"ledger""#,
            &[
                "pay/a.cedar:4:13…no route `ledger`",
                "pay/a.cedar:4:1…its own services only",
            ],
        );
        scope(
            r#"resource in Hoplite::Service::"Ledger""#,
            &[
                "pay/a.cedar:4:13…`Ledger` is not a service name",
                "pay/a.cedar:4:1…`Ledger` is not",
            ],
        );
        // A condition does not narrow a scope: it may be wrong.
        scope(
            "resource) when { resource in Hoplite::Service::\"ledger\" }; //",
            &["pay/a.cedar:4:1…every service"],
        );
    }

    #[test]
    fn the_owner_is_the_module_s() {
        let policy = |owner: &str| {
            format!("@id(\"x\")\n{owner} permit (principal, action, resource in Hoplite::Service::\"ledger\");")
        };
        for (file, owner, expected) in [
            ("pay/a.cedar", "@owner(\"team-pay\")", &[][..]),
            ("pay-batch/a.cedar", "@owner(\"team-pay\")", &[]),
            ("guard-rails/a.cedar", "@owner(\"security\")", &[]),
            (
                "pay/a.cedar",
                "",
                &["pay/a.cedar:1:1…put `@owner(\"team-pay\")` before it"],
            ),
            (
                "pay/a.cedar",
                "@owner(\"security\")",
                &["pay/a.cedar:2:1…the module `pay` is not `security`'s"],
            ),
            (
                "guard-rails/a.cedar",
                "@owner(\"team-pay\")",
                &["guard-rails/a.cedar:2:1…not `team-pay`'s"],
            ),
        ] {
            check(&[("modules.toml", MODULES), (file, &policy(owner))], expected);
        }
    }

    #[test]
    fn security_speaks_of_everything() {
        let text = "@id(\"x\") @owner(\"security\") forbid (principal, action, resource);";
        check(&[("modules.toml", MODULES), ("guard-rails/a.cedar", text)], &[]);
    }

    #[test]
    fn a_file_is_in_a_module_or_there_are_none() {
        let text = "@id(\"x\") permit (principal, action, resource);";
        check(&[("a.cedar", text)], &[]);
        check(
            &[("pay/a.cedar", text)],
            &["pay/a.cedar:1:1…there is no `modules.toml`"],
        );
        check(
            &[("a.cedar", text), ("modules.toml", MODULES)],
            &["a.cedar:1:1…`a.cedar` is in no module"],
        );
        check(
            &[("modules.toml", MODULES), ("other/a.cedar", text)],
            &["other/a.cedar:1:1…knows no module `other`"],
        );
        check(
            &[("modules.toml", MODULES), ("pay/deep/a.cedar", text)],
            &["pay/deep/a.cedar:1:1…deeper than one folder"],
        );
        for bad in ["/a.cedar", "../a.cedar", "pay/.a.cedar", "pay/a\\b.cedar", ".cedar"] {
            let sources = [Source {
                name: bad.to_owned(),
                text: text.to_owned(),
            }];
            assert!(Snapshot::compile(&sources).is_err(), "{bad}");
        }
        check(
            &[("modules.toml", MODULES), ("pay/routes.toml", "")],
            &["pay/routes.toml:1:1…neither"],
        );
    }

    #[test]
    fn grants_stand_beside_the_modules() {
        let grant = |id: &str, effect: &str, principal: &str| {
            format!(
                "@id(\"{id}\") @owner(\"security\") {effect} (principal{principal}, action, resource in Hoplite::Service::\"x\");"
            )
        };
        let ops = " in Hoplite::Path::\"prod.acme/ops\"";
        let good = grant("break-glass/a", "permit", ops);
        check(&[("break-glass/a.cedar", &good)], &[]);
        check(&[("break-glass/a.cedar", &good), ("modules.toml", MODULES)], &[]);
        for bad in [
            grant("break-glass/a", "forbid", ops),
            grant("break-glass/a", "permit", ""),
            grant("other/a", "permit", ops),
        ] {
            check(&[("break-glass/a.cedar", &bad)], &["break-glass/a.cedar:1:1…no grant"]);
        }
        check(
            &[("a.cedar", &grant("Break-Glass/a", "permit", ops))],
            &["a.cedar:1:1…are those of grants"],
        );
        // The Kelvin sign, whose lower case is `k`.
        check(
            &[("a.cedar", &grant("Brea\u{212a}-Glass/a", "permit", ops))],
            &["a.cedar:1:1…`\\u{212a}`", "a.cedar:1:1…are those of grants"],
        );
        check(
            &[("modules.toml", "[break-glass]\nowner = \"a\"\nsecurity = true")],
            &["modules.toml:1:2…is for grants"],
        );
    }

    #[test]
    fn faults_of_the_table_name_line_and_column() {
        for (text, expected) in [
            ("[pay", &["modules.toml:1:5…"][..]),
            ("[pay]\nowner = \"a\"", &["modules.toml:1:2…over nothing"]),
            (
                "[pay]\nowner = \"a\"\nservices = []",
                &["modules.toml:1:2…over nothing"],
            ),
            ("[pay]\nservices = [\"a\"]", &["modules.toml:1:1…missing field `owner`"]),
            (
                "[pay]\nowner = \"a\"\nteam = 1",
                &["modules.toml:3:1…unknown field `team`"],
            ),
            (
                "[pay]\nowner = \"a b\"\nservices = [\"a\", \"b:c\"]",
                &[
                    "modules.toml:2:9…without spaces",
                    "modules.toml:3:18…not a service name",
                ],
            ),
            (
                "[pay]\nowner = \"a\"\nsecurity = true\nservices = [\"a\"]",
                &["modules.toml:1:2…leave out `services`"],
            ),
            (
                "[a]\nowner = \"a\"\nservices = [\"x\"]\n[b]\nowner = \"b\"\nservices = [\"x\"]",
                &["modules.toml:6:13…already `a`'s"],
            ),
            (
                "[\"a/b\"]\nowner = \"a\"\nsecurity = true",
                &["modules.toml:1:2…cannot be"],
            ),
        ] {
            check(&[("modules.toml", text)], expected);
        }
    }
}
