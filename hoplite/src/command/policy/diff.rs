//! `hoplite policy diff`: what is different between two sets of policies, by what they mean.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::Context;
use hoplite_author::replay::{Baseline, Comparison};
use hoplite_author::{Places, PolicyView, meanings};
use hoplite_policy::bundle::{BUNDLE_BYTES_MAX, BundleContents};
use hoplite_policy::{Snapshot, Source};
use serde_json::{Value, json};

use super::{AuditArgs, compile, published, replay, sources};
use crate::command::admin::CaArgs;
use crate::output::{Output, print, print_json};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The old policies: a directory, a bundle's file, or the number of a revision that the CA keeps
    old: String,
    /// The new ones
    new: String,
    /// Also decide the requests of the log from then on by both, and say which answers differ: a length of time ago or a moment
    #[arg(long, value_parser = crate::command::audit::moment)]
    since: Option<SystemTime>,
    #[command(flatten)]
    audit: AuditArgs,
    #[command(flatten)]
    ca: CaArgs,
    /// The form of the answer
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// What is different between two sets.
#[derive(Debug, Default)]
struct Difference {
    added: Vec<PolicyView>,
    removed: Vec<PolicyView>,
    changed: Vec<(PolicyView, Vec<Change>)>,
    routes_added: BTreeSet<String>,
    routes_removed: BTreeSet<String>,
    headers_added: BTreeSet<String>,
    headers_removed: BTreeSet<String>,
}

/// One part of a policy before and after.
#[derive(Debug, PartialEq, Eq)]
struct Change {
    part: &'static str,
    before: String,
    after: String,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let (old, new) = (read(&args.old, &args.ca)?, read(&args.new, &args.ca)?);
    let before = compile(&old).with_context(|| format!("the policies of `{}`", args.old))?;
    let after = compile(&new).with_context(|| format!("the policies of `{}`", args.new))?;
    let difference = Difference::of((&before, &Places::of(&old)), (&after, &Places::of(&new)));
    let comparison = Comparison {
        before: Baseline::Set(&before),
        after: &after,
        trust_domain: None,
        examples: 3,
    };
    let replayed = match args.since {
        Some(since) => {
            let replayed = replay::with_progress(&args.audit.logs(args.ca.mesh())?, since, &comparison);
            replay::readable(&replayed)?;
            Some((since, replayed))
        }
        None => None,
    };
    if args.output == Output::Json {
        let replayed = replayed.as_ref();
        let replayed = replayed.map(|(since, replayed)| replay::as_json(replayed, &comparison, *since));
        print_json(&json!({
            "old": before.revision(), "new": after.revision(), "difference": difference.json(), "replay": replayed,
        }))?;
    } else {
        let mut page = difference.page();
        if let Some((since, replayed)) = &replayed {
            let _ = write!(
                page,
                "\nBy the old policies, and by the new ones:\n{}",
                replay::page(replayed, *since)
            );
        }
        print(&page)?;
    }
    Ok(if difference.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn read(what: &str, ca: &CaArgs) -> anyhow::Result<Vec<Source>> {
    let path = Path::new(what);
    if path.is_dir() {
        return sources(path);
    }
    let bytes = if path.is_file() {
        std::fs::read(path).with_context(|| format!("cannot read `{what}`"))?
    } else {
        let revision = what.parse().ok().with_context(|| {
            format!("`{what}` is neither a directory, nor the file of a bundle, nor the number of a revision")
        })?;
        published::kept(ca, revision)?
    };
    // Only shown; nothing is enforced by what is read here.
    let bundle = BundleContents::danger_read_unverified(&bytes, BUNDLE_BYTES_MAX)?;
    Ok(bundle.sources().to_vec())
}

// === impl Difference ===

impl Difference {
    fn of((before, old): (&Snapshot, &Places<'_>), (after, new): (&Snapshot, &Places<'_>)) -> Self {
        let (old_meanings, new_meanings) = (meanings(before), meanings(after));
        let mut difference = Self::default();
        let old_views = PolicyView::all(before, old);
        for view in &old_views {
            if !new_meanings.contains_key(&view.id) {
                difference.removed.push(view.clone());
            }
        }
        for view in PolicyView::all(after, new) {
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
        let (old, new) = (routes(before), routes(after));
        difference.routes_added = new.difference(&old).cloned().collect();
        difference.routes_removed = old.difference(&new).cloned().collect();
        let [old, new] = [before, after].map(|snapshot| snapshot.headers().iter().map(str::to_owned).collect());
        let (old, new): (BTreeSet<String>, BTreeSet<String>) = (old, new);
        difference.headers_added = &new - &old;
        difference.headers_removed = &old - &new;
        difference
    }

    fn is_empty(&self) -> bool {
        self.added.is_empty()
            && self.removed.is_empty()
            && self.changed.is_empty()
            && self.routes_added.is_empty()
            && self.routes_removed.is_empty()
            && self.headers_added.is_empty()
            && self.headers_removed.is_empty()
    }

    fn page(&self) -> String {
        if self.is_empty() {
            return "They mean the same.\n".to_owned();
        }
        let mut page = String::new();
        for (mark, views) in [("+", &self.added), ("-", &self.removed)] {
            for view in views {
                let _ = writeln!(page, "{mark} {}", title(view));
                let _ = writeln!(page, "    {}, {}, {}", view.principal, view.action, view.resource);
                for condition in &view.conditions {
                    let _ = writeln!(page, "    when {condition}");
                }
            }
        }
        for (view, changes) in &self.changed {
            let _ = writeln!(page, "~ {}", title(view));
            for change in changes {
                let _ = writeln!(page, "    {}", change.part);
                for (mark, text) in [("-", &change.before), ("+", &change.after)] {
                    if !text.is_empty() {
                        let _ = writeln!(page, "      {mark} {text}");
                    }
                }
            }
        }
        for (mark, routes) in [("+", &self.routes_added), ("-", &self.routes_removed)] {
            for route in routes {
                let _ = writeln!(page, "{mark} route {route}");
            }
        }
        for (mark, headers) in [("+", &self.headers_added), ("-", &self.headers_removed)] {
            for header in headers {
                let _ = writeln!(page, "{mark} header {header}");
            }
        }
        let _ = writeln!(
            page,
            "{} added, {} removed, {} changed; {} routes added, {} removed",
            self.added.len(),
            self.removed.len(),
            self.changed.len(),
            self.routes_added.len(),
            self.routes_removed.len()
        );
        page
    }

    fn json(&self) -> Value {
        let view = |view: &PolicyView| {
            json!({
                "id": view.id, "effect": view.effect.as_str(), "principal": view.principal, "action": view.action,
                "resource": view.resource, "conditions": view.conditions, "annotations": view.annotations,
                "place": view.place.as_ref().map(ToString::to_string),
            })
        };
        let changed: Vec<Value> = self
            .changed
            .iter()
            .map(|(policy, changes)| {
                let changes: Vec<Value> = changes
                    .iter()
                    .map(|change| json!({"part": change.part, "before": change.before, "after": change.after}))
                    .collect();
                json!({"id": policy.id, "changes": changes})
            })
            .collect();
        json!({
            "added": self.added.iter().map(view).collect::<Vec<_>>(),
            "removed": self.removed.iter().map(view).collect::<Vec<_>>(),
            "changed": changed, "routes_added": self.routes_added, "routes_removed": self.routes_removed,
            "headers_added": self.headers_added, "headers_removed": self.headers_removed,
        })
    }
}

fn title(view: &PolicyView) -> String {
    let place = view
        .place
        .as_ref()
        .map(|place| format!("   {place}"))
        .unwrap_or_default();
    format!("{} {}{place}", view.effect, view.id)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn difference(old: (&str, &str), new: (&str, &str)) -> String {
        let sources = |(policies, routes): (&str, &str)| {
            [("a.cedar", policies), ("routes.toml", routes)].map(|(name, text)| Source {
                name: name.to_owned(),
                text: text.to_owned(),
            })
        };
        let (old, new) = (sources(old), sources(new));
        let (before, after) = (Snapshot::compile(&old).unwrap(), Snapshot::compile(&new).unwrap());
        Difference::of((&before, &Places::of(&old)), (&after, &Places::of(&new))).page()
    }

    #[test]
    fn meaning_is_compared_and_not_text() {
        let a = "@id(\"a\") permit(principal in Hoplite::Path::\"x/a\", action, resource) when { context.conn.dow == \"Mon\" };";
        let spaced = "// a comment\n@id(\"a\")\npermit ( principal in Hoplite::Path::\"x/a\", action, resource )\nwhen { context.conn.dow==\"Mon\" };";
        assert_eq!(difference((a, ""), (spaced, "")), "They mean the same.\n");
        let changed = "@id(\"a\") @owner(\"pay\") permit(principal in Hoplite::Path::\"x/b\", action, resource) when { context.conn.dow == \"Tue\" };\n@id(\"b\") forbid(principal, action, resource);";
        assert_eq!(
            difference(
                (a, "[l]\nroutes = [\"GET /a\"]"),
                (changed, "[l]\nroutes = [\"GET /b\"]")
            ),
            "+ forbid b   a.cedar:2:1\n    principal, action, resource\n~ permit a   a.cedar:1:1\n    principal\n      \
             - principal in Hoplite::Path::\"x/a\"\n      + principal in Hoplite::Path::\"x/b\"\n    conditions\n      \
             - context.conn.dow == \"Mon\"\n      + context.conn.dow == \"Tue\"\n    annotations\n      + @owner(\"pay\")\n\
             + route l:GET /b\n- route l:GET /a\n1 added, 0 removed, 1 changed; 1 routes added, 1 removed\n"
        );
    }
}
