//! `hoplite policy matrix`: who can call what, at a glance: callers down, services across.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::bail;
use hoplite_audit::{Query, read_log};
use hoplite_author::{Deed, Possible, possible, services};
use hoplite_identity::{ServiceName, SpiffeId};
use hoplite_policy::{Route, Snapshot};
use serde_json::{Map, Value, json};

use super::{AuditArgs, PoliciesArgs, compile, names_in};
use crate::command::admin;
use crate::command::reach::CaArgs;
use crate::output::waiting::Waiting;
use crate::output::{Cell, Column, Form, Listing, Table, moment, print, verdict};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    policies: PoliciesArgs,
    /// The callers: a file of SPIFFE IDs, one a line [default: those that are registered with the CA]
    #[arg(long, value_name = "FILE")]
    among: Option<PathBuf>,
    /// The callers: whoever called since this moment, by the decision logs
    #[arg(long, value_name = "MOMENT", value_parser = moment::parse, conflicts_with = "among")]
    seen_since: Option<SystemTime>,
    #[command(flatten)]
    audit: AuditArgs,
    #[command(flatten)]
    ca: CaArgs,
    #[command(flatten)]
    form: Form,
}

/// What one caller can do to one service: how many of its deeds, each a method on a route, or a connection.
#[derive(Debug, Default, Clone, Copy)]
struct Reach {
    always: usize,
    depends: usize,
    never: usize,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let snapshot = compile(&args.policies.sources(&args.ca)?)?;
    let callers = args.callers()?;
    if callers.is_empty() {
        bail!("there is no caller to ask about; name some with --among FILE or --seen-since MOMENT");
    }
    let callers = super::who::parsed(&callers)?;
    super::who::tell_of_unnamed(&snapshot, &callers);
    let waiting = Waiting::new("deciding who can call what");
    let services: Vec<ServiceName> = services(&snapshot).into_iter().collect();
    let mut rows = Vec::new();
    for caller in callers {
        let mut reaches = Vec::new();
        for service in &services {
            reaches.push(reach(&snapshot, &caller, service)?);
        }
        rows.push((caller, reaches));
    }
    drop(waiting);
    if args.form.is_table() {
        let mut table =
            Table::new(std::iter::once("CALLER".to_owned()).chain(services.iter().map(ToString::to_string)));
        for (caller, reaches) in &rows {
            let mut cells = vec![Cell::new(caller.as_str(), anstyle::Style::new())];
            cells.extend(
                reaches
                    .iter()
                    .map(|reach| Cell::new(&reach.text(), verdict(reach.word()))),
            );
            table.row(cells);
        }
        print(&table.render(args.form.width(), crate::output::coloured()))?;
        print("\nall: everything; some: so many of the ways to call it; if: on conditions;\n-: nothing\n")?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut listing = Listing::new(&[Column::new("CALLER", "caller")]);
    for (caller, reaches) in &rows {
        let cells = services.iter().zip(reaches);
        let cells: Map<String, Value> = cells
            .map(|(service, reach)| (service.to_string(), reach.listed()))
            .collect();
        listing.row(json!({"caller": caller.as_str(), "services": cells}));
    }
    listing.print(args.form)?;
    Ok(ExitCode::SUCCESS)
}

fn reach(snapshot: &Snapshot, caller: &SpiffeId, service: &ServiceName) -> anyhow::Result<Reach> {
    let mut reach = Reach::default();
    let routes: Vec<(Route, Option<String>)> = snapshot
        .routes()
        .of(service)
        .map(|(route, method)| (route.clone(), method.map(str::to_owned)))
        .collect();
    let mut deeds = vec![Deed::Connect(service.clone())];
    for (route, only) in routes.into_iter().chain([(Route::unmatched(service), None)]) {
        let methods = super::who::METHODS.into_iter();
        let methods = methods.filter(|method| {
            only.as_deref()
                .is_none_or(|only| super::who::action_of(only) == *method)
        });
        deeds.extend(methods.map(|method| Deed::Route(method.to_owned(), route.clone())));
    }
    for deed in &deeds {
        match possible(snapshot, caller, deed)? {
            Possible::Always(_) => reach.always += 1,
            Possible::Depends(_) => reach.depends += 1,
            Possible::Never(_) => reach.never += 1,
        }
    }
    Ok(reach)
}

// === impl Reach ===

impl Reach {
    fn all(self) -> usize {
        self.always + self.depends + self.never
    }

    /// For colour.
    fn word(self) -> &'static str {
        match (self.always, self.depends) {
            (0, 0) => "",
            (0, _) => "depends",
            _ => "yes",
        }
    }

    fn text(self) -> String {
        match (self.always, self.depends) {
            (0, 0) => "-".to_owned(),
            (always, 0) if always == self.all() => "all".to_owned(),
            (0, depends) => format!("if {depends}/{}", self.all()),
            (always, 0) => format!("some {always}/{}", self.all()),
            (always, depends) => format!("some {always}/{}, if {depends}", self.all()),
        }
    }

    fn listed(self) -> Value {
        json!({"always": self.always, "depends": self.depends, "never": self.never})
    }
}

// === impl Args ===

impl Args {
    /// Their SPIFFE IDs, each once.
    fn callers(&self) -> anyhow::Result<BTreeSet<String>> {
        if let Some(file) = &self.among {
            return Ok(names_in(file)?.into_iter().collect());
        }
        let Some(since) = self.seen_since else {
            return Ok(admin::registered(&self.ca)?.into_iter().collect());
        };
        let query = Query {
            since: Some(since),
            ..Query::default()
        };
        let _waiting = Waiting::new("reading decision logs");
        let mut callers = BTreeSet::new();
        for log in self.audit.logs(self.ca.mesh())? {
            for record in read_log(&log, &query)? {
                callers.extend(record?.principal);
            }
        }
        Ok(callers)
    }
}
