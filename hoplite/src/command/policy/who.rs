//! `hoplite policy who-can` and `hoplite policy what-can`: who may do something, and what somebody may do.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use hoplite_author::{Deed, Effect, Places, PolicyView, Possible, about, named_callers, names_of, possible, services};
use hoplite_identity::{ServiceName, SpiffeId};
use hoplite_policy::{CanonicalRequest, Route, Snapshot, Source};
use serde_json::{Value, json};

use super::{PoliciesArgs, compile, names_in};
use crate::command::admin;
use crate::command::reach::CaArgs;
use crate::output::{Column, Form, Listing, nearest, print, verdict};

/// The methods that policies tell apart; `other` is asked as one that has no action of its own.
pub(super) const METHODS: [&str; 8] = ["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "other"];

#[derive(Debug, clap::Args)]
pub(crate) struct WhoArgs {
    /// `connect`, or a method: GET, POST, …
    action: String,
    /// The service
    service: ServiceName,
    /// The path of the request [default: any route of the service]
    path: Option<String>,
    #[command(flatten)]
    policies: PoliciesArgs,
    /// A file of SPIFFE IDs, one a line: say yes or no for each
    #[arg(long, value_name = "FILE")]
    among: Option<PathBuf>,
    /// Say yes or no for each workload that is registered with the CA
    #[arg(long, conflicts_with = "among")]
    registered: bool,
    #[command(flatten)]
    ca: CaArgs,
    #[command(flatten)]
    form: Form,
}

#[derive(Debug, clap::Args)]
pub(crate) struct WhatArgs {
    /// The caller
    #[arg(value_name = "SPIFFE-ID")]
    principal: String,
    #[command(flatten)]
    policies: PoliciesArgs,
    #[command(flatten)]
    ca: CaArgs,
    #[command(flatten)]
    form: Form,
}

pub(crate) fn who(args: &WhoArgs) -> anyhow::Result<ExitCode> {
    let sources = args.policies.sources(&args.ca)?;
    let snapshot = compile(&sources)?;
    tell_of_unknown(&snapshot, &args.service);
    let deeds = deeds(args, &snapshot)?;
    let workloads = match (&args.among, args.registered) {
        (Some(file), _) => Some(names_in(file)?),
        (None, true) => Some(admin::registered(&args.ca)?),
        (None, false) => None,
    };
    match workloads {
        Some(workloads) => among(&snapshot, &deeds, workloads, args.form),
        None => by_policies(&snapshot, &sources, &deeds, args.form),
    }
}

/// A service that neither a route nor a policy names may be a typing error. That is said, and the answer stands.
pub(super) fn tell_of_unknown(snapshot: &Snapshot, service: &ServiceName) {
    const NAMED_MAX: usize = 10;
    let known = services(snapshot);
    if known.contains(service) {
        return;
    }
    let names: Vec<_> = known.iter().take(NAMED_MAX).map(|name| format!("`{name}`")).collect();
    let more = match known.len() > NAMED_MAX {
        true => " and more",
        false => "",
    };
    hoplite_host::tell!(
        "note: no route and no policy names the service `{service}`; those that are named: {}{more}",
        names.join(", ")
    );
}

/// Callers that no policy names, nor a path they are in, may be typing errors: what they may do is what anybody may. That is said, and the
/// answer stands.
pub(super) fn tell_of_unnamed(snapshot: &Snapshot, callers: &[SpiffeId]) {
    const TOLD_MAX: usize = 5;
    let named = named_callers(snapshot);
    let names = callers.iter().map(|caller| (caller, names_of(caller)));
    let unnamed: Vec<_> = names.filter(|(_, names)| names.is_disjoint(&named)).collect();
    for (caller, names) in unnamed.iter().take(TOLD_MAX) {
        let near = names.iter().find_map(|name| nearest(name, &named));
        let near = near.map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
        hoplite_host::tell!("note: no policy names the caller `{caller}`, nor a path it is in{near}");
    }
    if unnamed.len() > TOLD_MAX {
        hoplite_host::tell!("note: no policy names {} more callers", unnamed.len() - TOLD_MAX);
    }
}

fn deeds(args: &WhoArgs, snapshot: &Snapshot) -> anyhow::Result<Vec<Deed>> {
    let (action, service) = (args.action.as_str(), &args.service);
    match (action, &args.path) {
        ("connect", None) => Ok(vec![Deed::Connect(service.clone())]),
        ("connect", Some(path)) => bail!("a connection has no path; leave out `{path}`"),
        (method, Some(path)) => {
            let request = CanonicalRequest::parse(method, &[service.as_str().as_bytes()], path.as_bytes())
                .with_context(|| format!("`{method} {path}` is refused before policy is asked"))?;
            Ok(vec![Deed::Request(service.clone(), request)])
        }
        (method, None) => {
            anyhow::ensure!(
                METHODS.contains(&method),
                "`{method}` is not an action; use connect, {}",
                METHODS.join(", ")
            );
            let routes = snapshot.routes().of(service);
            let routes = routes.filter(|(_, only)| only.is_none_or(|only| action_of(only) == method));
            let routes = routes
                .map(|(route, _)| route.clone())
                .chain([Route::unmatched(service)]);
            Ok(routes.map(|route| Deed::Route(method.to_owned(), route)).collect())
        }
    }
}

fn name(deed: &Deed) -> String {
    match deed {
        Deed::Connect(service) => format!("connect {service}"),
        Deed::Route(method, route) => format!("{method} on {route}"),
        Deed::Request(service, request) => format!("{} {service} {}", request.method(), request.path()),
    }
}

/// Who, in the words of the policies.
fn by_policies(snapshot: &Snapshot, sources: &[Source], deeds: &[Deed], form: Form) -> anyhow::Result<ExitCode> {
    let places = Places::of(sources);
    let mut listing = Listing::new(&[Column::new("WHAT", "deed")]);
    let mut page = String::new();
    let mut last: Option<Vec<PolicyView>> = None;
    for deed in deeds {
        let policies = about(snapshot, deed, &places)?;
        let _ = writeln!(page, "{}", name(deed));
        if last.as_ref() == Some(&policies) {
            page.push_str("  the same\n");
        } else {
            show_policies(&mut page, &policies);
        }
        listing.row(json!({"deed": name(deed), "policies": policies.iter().map(view).collect::<Vec<_>>()}));
        last = Some(policies);
    }
    if form.is_table() {
        print(&page)?;
    } else {
        listing.print(form)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn show_policies(page: &mut String, policies: &[PolicyView]) {
    if !policies.iter().any(|policy| policy.effect == Effect::Permit) {
        page.push_str("  nobody: no permit covers it\n");
        return;
    }
    for (effect, heading) in [
        (Effect::Permit, "  permitted:"),
        (Effect::Forbid, "  unless forbidden:"),
    ] {
        let of_effect: Vec<_> = policies.iter().filter(|policy| policy.effect == effect).collect();
        if !of_effect.is_empty() {
            let _ = writeln!(page, "{heading}");
        }
        for policy in of_effect {
            let who = match policy.principal.as_str() {
                "principal" => "anybody",
                scope => scope,
            };
            let place = policy
                .place
                .as_ref()
                .map(|place| format!("   {place}"))
                .unwrap_or_default();
            let _ = writeln!(page, "    {who}   ({}){place}", policy.id);
            for (number, condition) in policy.conditions.iter().enumerate() {
                let word = if number == 0 { "if" } else { "and" };
                let _ = writeln!(page, "      {word:>3} {condition}");
            }
        }
    }
}

fn view(policy: &PolicyView) -> Value {
    json!({
        "id": policy.id, "effect": policy.effect.as_str(), "principal": policy.principal,
        "conditions": policy.conditions, "place": policy.place.as_ref().map(ToString::to_string),
        "owner": policy.owner(),
    })
}

/// Workloads as they were written.
pub(super) fn parsed<'a>(workloads: impl IntoIterator<Item = &'a String>) -> anyhow::Result<Vec<SpiffeId>> {
    let parse =
        |workload: &String| SpiffeId::parse(workload).with_context(|| format!("`{workload}` is not a SPIFFE ID"));
    workloads.into_iter().map(parse).collect()
}

/// Whether it can be, for people.
const CAN: Column = Column::new("CAN", "can").coloured(verdict);

/// By which policies, or why not.
const WHY: Column = Column::new("WHY", "why");

/// Yes or no for each workload.
fn among(snapshot: &Snapshot, deeds: &[Deed], workloads: Vec<String>, form: Form) -> anyhow::Result<ExitCode> {
    let workloads = parsed(&workloads)?;
    tell_of_unnamed(snapshot, &workloads);
    let mut rows = Vec::new();
    for workload in &workloads {
        for deed in deeds {
            rows.push((workload.as_str(), name(deed), possible(snapshot, workload, deed)?));
        }
    }
    let mut listing = Listing::new(&[
        CAN,
        Column::new("WORKLOAD", "workload"),
        Column::new("WHAT", "deed"),
        WHY,
    ]);
    for (workload, deed, possible) in &rows {
        let (can, why) = words(possible);
        listing.row(json!({"can": can, "workload": workload, "deed": deed, "why": why, "answer": as_json(possible)}));
    }
    listing.print(form)?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn what(args: &WhatArgs) -> anyhow::Result<ExitCode> {
    let id = SpiffeId::parse(&args.principal).with_context(|| format!("`{}` is not a SPIFFE ID", args.principal))?;
    let snapshot = compile(&args.policies.sources(&args.ca)?)?;
    tell_of_unnamed(&snapshot, std::slice::from_ref(&id));
    let mut rows = Vec::new();
    for service in services(&snapshot) {
        let connect = Deed::Connect(service.clone());
        rows.push((
            service.to_string(),
            "connect".to_owned(),
            possible(&snapshot, &id, &connect)?,
        ));
        let routes = snapshot.routes().of(&service);
        let routes = routes.map(|(route, method)| (route.clone(), method));
        for (route, only) in routes.chain([(Route::unmatched(&service), None)]) {
            // Methods that have the same answer share a line.
            let mut answers: Vec<(Vec<&str>, Possible)> = Vec::new();
            for method in METHODS
                .into_iter()
                .filter(|method| only.is_none_or(|only| action_of(only) == *method))
            {
                let deed = Deed::Route(method.to_owned(), route.clone());
                let possible = possible(&snapshot, &id, &deed)?;
                match answers.iter_mut().find(|(_, other)| *other == possible) {
                    Some((methods, _)) => methods.push(method),
                    None => answers.push((vec![method], possible)),
                }
            }
            for (methods, possible) in answers {
                rows.push((route.as_str().to_owned(), methods.join(" "), possible));
            }
        }
    }
    let mut listing = Listing::new(&[
        CAN,
        Column::new("ACTION", "actions"),
        Column::new("RESOURCE", "resource"),
        WHY,
    ]);
    let mut never: BTreeMap<&str, usize> = BTreeMap::new();
    for (resource, actions, possible) in &rows {
        // What nothing speaks of is most of everything; to people it is only counted.
        if args.form.is_table() && *possible == Possible::Never(Vec::new()) {
            *never.entry(resource.split(':').next().unwrap_or_default()).or_default() += 1;
            continue;
        }
        let actions = actions.split(' ').collect::<Vec<_>>();
        let (can, why) = words(possible);
        listing.row(
            json!({"can": can, "resource": resource, "actions": actions, "why": why, "answer": as_json(possible)}),
        );
    }
    listing.print(args.form)?;
    let services: Vec<&str> = never.keys().copied().collect();
    if !services.is_empty() {
        print(&format!("Nothing else is permitted on {}.\n", services.join(", ")))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn action_of(method: &str) -> &str {
    if METHODS.contains(&method) { method } else { "other" }
}

fn words(possible: &Possible) -> (&'static str, String) {
    match possible {
        Possible::Always(by) => ("yes", by.join(", ")),
        Possible::Never(by) if by.is_empty() => ("no", "nothing permits it".to_owned()),
        Possible::Never(by) => ("no", format!("forbidden by {}", by.join(", "))),
        Possible::Depends(on) => {
            let parts = on.iter().map(|on| {
                let conditions = on.conditions.join(" and ");
                match (on.effect, conditions.is_empty()) {
                    (Effect::Permit, true) => on.id.clone(),
                    (Effect::Permit, false) => format!("{} if {conditions}", on.id),
                    (Effect::Forbid, _) => format!("not if {} ({conditions})", on.id),
                }
            });
            ("depends", parts.collect::<Vec<_>>().join("; "))
        }
    }
}

fn as_json(possible: &Possible) -> Value {
    match possible {
        Possible::Always(by) => json!({"can": "yes", "by": by}),
        Possible::Never(by) => json!({"can": "no", "by": by}),
        Possible::Depends(on) => {
            let on: Vec<Value> = on
                .iter()
                .map(|on| json!({"id": on.id, "effect": on.effect.as_str(), "conditions": on.conditions}))
                .collect();
            json!({"can": "depends", "on": on})
        }
    }
}
