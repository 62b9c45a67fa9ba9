//! What is different between two sets of policies, by what they mean: policies, routes, headers, whose folder is whose; and the
//! forbids of the one that the other does not surely keep.

use crate::replay::covers;
use crate::view::{Places, PolicyView, meanings};
use crate::wider::{Forbids, NewRoutes};
use hoplite_policy::files::MODULES_FILE;
use hoplite_policy::text::{Modules, Team};
use hoplite_policy::{Snapshot, Source};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};

/// A set of policies, compiled, with the files it was made from.
#[derive(Debug, Clone, Copy)]
pub struct PolicySet<'a> {
    /// Compiled.
    pub snapshot: &'a Snapshot,
    /// Its files.
    pub sources: &'a [Source],
}

/// What is different between two sets.
#[derive(Debug, Default)]
pub struct Difference {
    added: Vec<PolicyView>,
    removed: Vec<PolicyView>,
    changed: Vec<(PolicyView, Vec<Change>)>,
    routes_added: BTreeSet<String>,
    routes_removed: BTreeSet<String>,
    headers_added: BTreeSet<String>,
    headers_removed: BTreeSet<String>,
    modules: Vec<ModuleChange>,
    lost: Vec<LostForbid>,
}

/// One difference, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Whose: an owner, a module, a service, a file.
    pub owner: String,
    /// One line or more.
    pub text: String,
}

/// One part of a policy before and after.
#[derive(Debug, PartialEq, Eq)]
struct Change {
    part: &'static str,
    before: String,
    after: String,
}

/// A forbid that stopped something and does not surely stop all of it any more. A replay need not see it: what was stopped
/// may not have happened yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LostForbid {
    /// Its `@id`, in the set before.
    pub id: String,
    /// What became of it.
    pub why: Lost,
}

/// What became of a forbid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// There is none of its id, nor one that stops as much.
    Removed,
    /// The policy of its id permits.
    Permits,
    /// It was changed, and need not stop all that it did.
    Changed,
    /// Proxies enforce it from directories of their own, whose place the first revision takes.
    Local,
    /// It stands as it was, and new routes may take requests away from the one it is about.
    Routes,
}

/// A module before and after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModuleChange {
    /// The folder; `modules.toml` if there is no such file any more, so that everybody may speak of everything.
    pub name: String,
    /// Whose it was, over what.
    before: Option<Holds>,
    after: Option<Holds>,
    /// Whether its owner may now speak of something he could not speak of.
    pub widens: bool,
}

/// An owner, and the services; none is all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Holds {
    owner: String,
    services: Option<BTreeSet<String>>,
}

// === impl Difference ===

impl Difference {
    /// What the second set has, lacks and means otherwise than the first.
    pub fn of(before: PolicySet<'_>, after: PolicySet<'_>) -> Self {
        let (old, new) = (before.snapshot, after.snapshot);
        let (old_meanings, new_meanings) = (meanings(old), meanings(new));
        let mut difference = Self::default();
        let old_views = PolicyView::all(old, &Places::of(before.sources));
        for view in &old_views {
            if !new_meanings.contains_key(&view.id) {
                difference.removed.push(view.clone());
            }
        }
        for view in PolicyView::all(new, &Places::of(after.sources)) {
            match old_views.binary_search_by(|old| old.id.cmp(&view.id)) {
                Ok(at) if old_meanings.get(&view.id) != new_meanings.get(&view.id) => {
                    if let Some(old) = old_views.get(at) {
                        let changes = changes(old, &view);
                        difference.changed.push((view, changes));
                    }
                }
                Ok(_) => {}
                Err(_) => difference.added.push(view),
            }
        }
        let [old_routes, new_routes] = [old, new].map(routes);
        difference.routes_added = &new_routes - &old_routes;
        difference.routes_removed = &old_routes - &new_routes;
        let [old_headers, new_headers] = [old, new].map(headers);
        difference.headers_added = &new_headers - &old_headers;
        difference.headers_removed = &old_headers - &new_headers;
        difference.modules = module_changes(before.sources, after.sources);
        difference.lost = lost(old, new, &new_meanings);
        difference
    }

    /// Adds forbids that are enforced without having been published, and that the second set does not have.
    #[must_use]
    pub fn without(mut self, local: impl IntoIterator<Item = String>) -> Self {
        let lost = local.into_iter().map(|id| LostForbid { id, why: Lost::Local });
        self.lost.extend(lost);
        self
    }

    /// Whether both mean the same.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty()
            && self.removed.is_empty()
            && self.changed.is_empty()
            && self.routes_added.is_empty()
            && self.routes_removed.is_empty()
            && self.headers_added.is_empty()
            && self.headers_removed.is_empty()
            && self.modules.is_empty()
    }

    /// The forbids that do not surely stop all they stopped, and that nobody has named.
    pub fn lost_unless<'a>(&'a self, accepted: &'a [String]) -> impl Iterator<Item = &'a LostForbid> {
        let named = |lost: &LostForbid| accepted.iter().any(|pattern| covers(pattern, &lost.id));
        self.lost.iter().filter(move |lost| !named(lost))
    }

    /// The modules whose owner gains something, and that nobody has named.
    pub fn widened_unless<'a>(&'a self, accepted: &'a [String]) -> impl Iterator<Item = &'a ModuleChange> {
        let named = |module: &ModuleChange| accepted.iter().any(|pattern| covers(pattern, &module.name));
        self.modules
            .iter()
            .filter(move |module| module.widens && !named(module))
    }

    /// How many of each, in one line.
    pub fn counted(&self) -> String {
        let mut line = format!(
            "{} added, {} removed, {} changed; {} routes added, {} removed",
            self.added.len(),
            self.removed.len(),
            self.changed.len(),
            self.routes_added.len(),
            self.routes_removed.len()
        );
        let headers = self.headers_added.len() + self.headers_removed.len();
        for (count, what) in [(headers, "headers"), (self.modules.len(), "modules")] {
            if count > 0 {
                let _ = write!(line, "; {count} {what} changed");
            }
        }
        line
    }

    /// All of it, for people.
    pub fn page(&self) -> String {
        if self.is_empty() {
            return "They mean the same.\n".to_owned();
        }
        format!("{}{}\n", self.listed(), self.counted())
    }

    /// Each of them, for people.
    pub fn listed(&self) -> String {
        self.findings().into_iter().map(|finding| finding.text).collect()
    }

    /// Each of them, and whose it is.
    pub fn findings(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut add = |owner: &str, text: String| {
            findings.push(Finding {
                owner: owner.to_owned(),
                text,
            });
        };
        for (mark, views) in [("+", &self.added), ("-", &self.removed)] {
            for view in views {
                let mut page = format!("{mark} {}\n", title(view));
                let _ = writeln!(page, "    {}, {}, {}", view.principal, view.action, view.resource);
                for condition in &view.conditions {
                    let _ = writeln!(page, "    when {condition}");
                }
                add(owner_of(view), page);
            }
        }
        for (view, changes) in &self.changed {
            let mut page = format!("~ {}\n", title(view));
            for change in changes {
                let _ = writeln!(page, "    {}", change.part);
                for (mark, text) in [("-", &change.before), ("+", &change.after)] {
                    if !text.is_empty() {
                        let _ = writeln!(page, "      {mark} {text}");
                    }
                }
            }
            add(owner_of(view), page);
        }
        for (what, added, removed) in [
            ("route", &self.routes_added, &self.routes_removed),
            ("header", &self.headers_added, &self.headers_removed),
        ] {
            for (mark, names) in [("+", added), ("-", removed)] {
                for name in names {
                    let owner = name.split_once(':').map_or("headers.toml", |(service, _)| service);
                    add(owner, format!("{mark} {what} {name}\n"));
                }
            }
        }
        for module in &self.modules {
            add(&module.name, format!("{module}\n"));
        }
        for lost in &self.lost {
            let owner = lost.id.split_once('/').map_or(lost.id.as_str(), |(owner, _)| owner);
            add(owner, format!("! forbid {}: {}\n", lost.id, lost.why));
        }
        findings
    }

    /// All of it, for scripts.
    pub fn json(&self) -> Value {
        let view = |view: &PolicyView| {
            json!({
                "id": view.id, "effect": view.effect.as_str(), "principal": view.principal, "action": view.action,
                "resource": view.resource, "conditions": view.conditions, "annotations": view.annotations,
                "place": view.place.as_ref().map(ToString::to_string),
            })
        };
        let change = |change: &Change| json!({"part": change.part, "before": change.before, "after": change.after});
        let changed = self.changed.iter().map(|(policy, changes)| {
            let changes: Vec<Value> = changes.iter().map(change).collect();
            json!({"id": policy.id, "effect": policy.effect.as_str(), "changes": changes})
        });
        let holds = |holds: &Holds| json!({"owner": holds.owner, "services": holds.services});
        let modules = self.modules.iter().map(|module| {
            json!({
                "module": module.name, "before": module.before.as_ref().map(holds),
                "after": module.after.as_ref().map(holds), "widens": module.widens,
            })
        });
        let lost = self
            .lost
            .iter()
            .map(|lost| json!({"id": lost.id, "why": lost.why.to_string()}));
        json!({
            "added": self.added.iter().map(view).collect::<Vec<_>>(),
            "removed": self.removed.iter().map(view).collect::<Vec<_>>(),
            "changed": changed.collect::<Vec<_>>(),
            "routes_added": self.routes_added, "routes_removed": self.routes_removed,
            "headers_added": self.headers_added, "headers_removed": self.headers_removed,
            "modules": modules.collect::<Vec<_>>(), "lost_forbids": lost.collect::<Vec<_>>(),
        })
    }
}

/// The forbids of a set that another does not surely keep.
fn lost(before: &Snapshot, after: &Snapshot, meanings_after: &BTreeMap<String, String>) -> Vec<LostForbid> {
    let (old, new) = (Forbids::of(before), Forbids::of(after));
    let meanings_before = meanings(before);
    let routes = NewRoutes::between(before, after);
    let lost = old.iter().filter(|(id, forbid)| !new.keep(id, forbid, &routes));
    lost.map(|(id, _)| {
        let is_forbid = new.iter().any(|(other, _)| other == id);
        let why = match meanings_after.get(id) {
            None => Lost::Removed,
            Some(_) if !is_forbid => Lost::Permits,
            Some(meaning) if meanings_before.get(id) == Some(meaning) => Lost::Routes,
            Some(_) => Lost::Changed,
        };
        LostForbid { id: id.to_owned(), why }
    })
    .collect()
}

/// Whose it is; where nobody says so, the file that it stands in.
fn owner_of(view: &PolicyView) -> &str {
    let place = || view.place.as_ref().map(|place| place.file.as_str());
    view.owner().or_else(place).unwrap_or("no file")
}

fn title(view: &PolicyView) -> String {
    let owner = view.owner().map(|owner| format!("   {owner}")).unwrap_or_default();
    let place = view
        .place
        .as_ref()
        .map(|place| format!("   {place}"))
        .unwrap_or_default();
    format!("{} {}{owner}{place}", view.effect, view.id)
}

fn changes(old: &PolicyView, new: &PolicyView) -> Vec<Change> {
    let listed = |conditions: &[String]| conditions.join(" && ");
    let annotations = |view: &PolicyView| {
        let each = view
            .annotations
            .iter()
            .map(|(name, value)| format!("@{name}({value:?})"));
        each.collect::<Vec<_>>().join(" ")
    };
    let parts = [
        ("effect", old.effect.to_string(), new.effect.to_string()),
        ("principal", old.principal.clone(), new.principal.clone()),
        ("action", old.action.clone(), new.action.clone()),
        ("resource", old.resource.clone(), new.resource.clone()),
        ("conditions", listed(&old.conditions), listed(&new.conditions)),
        ("annotations", annotations(old), annotations(new)),
    ];
    let changed = parts.into_iter().filter(|(_, before, after)| before != after);
    changed
        .map(|(part, before, after)| Change { part, before, after })
        .collect()
}

fn routes(snapshot: &Snapshot) -> BTreeSet<String> {
    let table = snapshot.routes();
    let routes = table.services().flat_map(|service| table.of(service));
    routes.map(|(route, _)| route.as_str().to_owned()).collect()
}

fn headers(snapshot: &Snapshot) -> BTreeSet<String> {
    snapshot.headers().iter().map(str::to_owned).collect()
}

/// The modules of these files, by name; nothing where there is no table, or none that can be read.
fn modules(sources: &[Source]) -> Option<BTreeMap<String, Holds>> {
    let sources: Vec<&Source> = sources.iter().collect();
    let modules = Modules::of(&sources).ok()?;
    let holds = |team: Team<'_>| match team {
        Team::Module { name, owner, services } => Some((
            name.to_owned(),
            Holds {
                owner: owner.to_owned(),
                services: services.map(|services| services.iter().map(ToString::to_string).collect()),
            },
        )),
        Team::Anyone | Team::Grant => None,
    };
    Some(modules.teams()?.filter_map(holds).collect())
}

fn module_changes(before: &[Source], after: &[Source]) -> Vec<ModuleChange> {
    let (before, after) = match (modules(before), modules(after)) {
        (None, None) => return Vec::new(),
        // Everybody could speak of everything: nobody gains.
        (None, Some(after)) => {
            let added = after.into_iter().map(|(name, holds)| ModuleChange {
                name,
                before: None,
                after: Some(holds),
                widens: false,
            });
            return added.collect();
        }
        (Some(before), None) => {
            let removed = before.into_iter().map(|(name, holds)| ModuleChange {
                name,
                before: Some(holds),
                after: None,
                widens: false,
            });
            let everybody = ModuleChange {
                name: MODULES_FILE.to_owned(),
                before: None,
                after: None,
                widens: true,
            };
            return removed.chain([everybody]).collect();
        }
        (Some(before), Some(after)) => (before, after),
    };
    let could_speak = |holds: &Holds| {
        let own: Vec<&Holds> = before.values().filter(|other| other.owner == holds.owner).collect();
        own.iter().any(|own| own.services.is_none())
            || holds.services.as_ref().is_some_and(|services| {
                let had = |service: &String| {
                    own.iter()
                        .any(|own| own.services.as_ref().is_some_and(|all| all.contains(service)))
                };
                services.iter().all(had)
            })
    };
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let changed = names.into_iter().filter(|name| before.get(*name) != after.get(*name));
    changed
        .map(|name| ModuleChange {
            name: name.clone(),
            before: before.get(name).cloned(),
            after: after.get(name).cloned(),
            widens: after.get(name).is_some_and(|holds| !could_speak(holds)),
        })
        .collect()
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Removed => "it is gone",
            Self::Permits => "it is a permit now",
            Self::Changed => "it was changed, and need not stop all that it stopped",
            Self::Local => "proxies have it in directories of their own, and this set has not",
            Self::Routes => "requests that it stopped may have another route now",
        })
    }
}

impl fmt::Display for ModuleChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.name;
        match (&self.before, &self.after) {
            (None, None) => write!(f, "- {name}: anybody's policy may be about anything")?,
            (None, Some(after)) => write!(f, "+ module {name}: {after}")?,
            (Some(before), None) => write!(f, "- module {name}: {before}")?,
            (Some(before), Some(after)) => write!(f, "~ module {name}: {before}, now {after}")?,
        }
        f.write_str(if self.widens { "   gains" } else { "" })
    }
}

impl fmt::Display for Holds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} over ", self.owner)?;
        match &self.services {
            None => f.write_str("everything"),
            Some(services) => f.write_str(&services.iter().cloned().collect::<Vec<_>>().join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::sources;

    fn difference(old: &[(&str, &str)], new: &[(&str, &str)]) -> Difference {
        let (old, new) = (sources(old), sources(new));
        let (before, after) = (Snapshot::compile(&old).unwrap(), Snapshot::compile(&new).unwrap());
        let set = |snapshot, sources| PolicySet { snapshot, sources };
        Difference::of(set(&before, &old), set(&after, &new))
    }

    fn page(old: (&str, &str), new: (&str, &str)) -> String {
        let [old, new] = [old, new].map(|(policies, routes)| [("a.cedar", policies), ("routes.toml", routes)]);
        difference(&old, &new).page()
    }

    #[test]
    fn meaning_is_compared_and_not_text() {
        let a = "@id(\"a\") permit(principal in Hoplite::Path::\"x/a\", action, resource) when { context.conn.dow == \"Mon\" };";
        let spaced = "// a comment\n@id(\"a\")\npermit ( principal in Hoplite::Path::\"x/a\", action, resource )\nwhen { context.conn.dow==\"Mon\" };";
        assert_eq!(page((a, ""), (spaced, "")), "They mean the same.\n");
        let changed = "@id(\"a\") @owner(\"pay\") permit(principal in Hoplite::Path::\"x/b\", action, resource) when { context.conn.dow == \"Tue\" };\n@id(\"b\") forbid(principal, action, resource);";
        assert_eq!(
            page(
                (a, "[l]\nroutes = [\"GET /a\"]"),
                (changed, "[l]\nroutes = [\"GET /b\"]")
            ),
            "+ forbid b   a.cedar:2:1\n    principal, action, resource\n~ permit a   pay   a.cedar:1:1\n    principal\n      \
             - principal in Hoplite::Path::\"x/a\"\n      + principal in Hoplite::Path::\"x/b\"\n    conditions\n      \
             - context.conn.dow == \"Mon\"\n      + context.conn.dow == \"Tue\"\n    annotations\n      + @owner(\"pay\")\n\
             + route l:GET /b\n- route l:GET /a\n1 added, 0 removed, 1 changed; 1 routes added, 1 removed\n"
        );
    }

    #[test]
    fn a_forbid_that_is_not_surely_kept_is_named_until_somebody_accepts_it() {
        let forbids = "@id(\"s/gone\") forbid(principal in Hoplite::Path::\"x/a\", action, resource);\n\
                       @id(\"s/turned\") forbid(principal in Hoplite::Path::\"x/b\", action, resource);\n\
                       @id(\"s/narrow\") forbid(principal in Hoplite::Path::\"x/c\", action, resource);\n\
                       @id(\"s/route\") forbid(principal, action, resource == Hoplite::Route::\"l:GET /{id}\");\n\
                       @id(\"s/kept\") @owner(\"old\") forbid(principal in Hoplite::Path::\"x/d\", action, resource);\n\
                       @id(\"p\") permit(principal, action, resource);";
        let changed = "@id(\"s/turned\") permit(principal in Hoplite::Path::\"x/b\", action, resource);\n\
                       @id(\"s/narrow\") forbid(principal in Hoplite::Path::\"x/c\", action, resource) when { context.conn.dow == \"Mon\" };\n\
                       @id(\"s/route\") forbid(principal, action, resource == Hoplite::Route::\"l:GET /{id}\");\n\
                       @id(\"s/kept\") @owner(\"new\") forbid(principal in Hoplite::Path::\"x/d\", action, resource);";
        let table = |routes: &str| format!("[l]\nroutes = [{routes}]");
        let (old, new) = (table("\"GET /{id}\""), table("\"GET /{id}\", \"GET /self\""));
        let difference = difference(
            &[("a.cedar", forbids), ("routes.toml", &old)],
            &[("a.cedar", changed), ("routes.toml", &new)],
        );
        let lost = |accepted: &[&str]| -> Vec<(String, Lost)> {
            let accepted: Vec<String> = accepted.iter().map(|id| (*id).to_owned()).collect();
            let lost = difference.lost_unless(&accepted);
            lost.map(|lost| (lost.id.clone(), lost.why)).collect()
        };
        let all = [
            ("s/gone", Lost::Removed),
            ("s/narrow", Lost::Changed),
            ("s/route", Lost::Routes),
            ("s/turned", Lost::Permits),
        ];
        let all = all.map(|(id, why)| (id.to_owned(), why));
        assert_eq!(lost(&[]), all);
        assert_eq!(lost(&["s/gone", "s/gon", "narrow"]), all[1..]);
        assert_eq!(lost(&["s/*"]), []);
        assert!(
            difference.page().contains("! forbid s/gone: it is gone\n"),
            "{}",
            difference.page()
        );
        assert_eq!(difference.json()["lost_forbids"][2]["id"], "s/route");
    }

    #[test]
    fn an_owner_who_gains_is_named() {
        const BEFORE: &str = "[pay]\nowner = \"team-pay\"\nservices = [\"ledger\", \"refunds\"]\n[web]\nowner = \"team-web\"\nservices = [\"shop\"]\n\
                              [rails]\nowner = \"security\"\nsecurity = true\n";
        let policy = "@id(\"x\") @owner(\"security\") forbid(principal, action, resource);";
        let check = |after: &str, expected: &[&str]| {
            let after: Vec<(&str, &str)> = match after {
                "" => vec![],
                after => vec![("modules.toml", after), ("rails/a.cedar", policy)],
            };
            let difference = difference(&[("modules.toml", BEFORE), ("rails/a.cedar", policy)], &after);
            let widened: Vec<_> = difference.widened_unless(&[]).map(ToString::to_string).collect();
            assert_eq!(widened, expected);
        };
        check(BEFORE, &[]);
        check(
            &BEFORE.replace("\"shop\"", "\"shop\", \"cart\""),
            &["~ module web: team-web over shop, now team-web over cart, shop   gains"],
        );
        check(&BEFORE.replace(", \"refunds\"", ""), &[]);
        check(
            &BEFORE.replace("owner = \"team-pay\"", "owner = \"team-web\""),
            &["~ module pay: team-pay over ledger, refunds, now team-web over ledger, refunds   gains"],
        );
        check(
            &BEFORE.replace("services = [\"shop\"]", "security = true"),
            &["~ module web: team-web over shop, now team-web over everything   gains"],
        );
        check(
            &format!("{BEFORE}[batch]\nowner = \"team-pay\"\nservices = [\"ledger\"]\n"),
            &[],
        );
        check(
            &format!("{BEFORE}[batch]\nowner = \"team-new\"\nservices = [\"orders\"]\n"),
            &["+ module batch: team-new over orders   gains"],
        );
        check("", &["- modules.toml: anybody's policy may be about anything   gains"]);
        // Where there were none, everybody could.
        let added = difference(&[], &[("modules.toml", BEFORE), ("rails/a.cedar", policy)]);
        assert_eq!(added.widened_unless(&[]).count(), 0);
        assert!(added.page().contains("+ module pay: team-pay over ledger, refunds\n"));
    }
}
