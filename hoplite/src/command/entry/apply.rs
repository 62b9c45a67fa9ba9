//! `hoplite entry apply`: what is registered becomes like a file; first the whole plan, then one commit, or as few as will do.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use hoplite_author::{EntryFile, EntryText, Life};
use hoplite_host::config::{Span, printable};
use hoplite_wire::ca::applied_entry::Action;
use hoplite_wire::ca::{
    AppliedEntry, ApplyEntriesRequest, ApplyEntriesResponse, DeleteEntriesRequest, Entry, ListEntriesRequest,
};
use serde_json::json;
use tonic::Code;

use crate::command::admin::{self, ListArgs};
use crate::command::entry::{DELETED_AT_ONCE, Ttl, parent_text, selector_text, warn_of_unknown};
use crate::command::reach::CaArgs;
use crate::output::capped::All;
use crate::output::{Output, count, failed, failure, print, print_json};

/// Entries in each commit of a list that is too much for one: a fraction of a second each. Fewer when they are long.
const PART: usize = 2_000;

/// The exit code of a plan that could not be made, so that 1 can say that it was, and is not empty.
const COULD_NOT: u8 = 2;

/// With it the command ends when it would change something.
const WOULD_CHANGE: u8 = 1;

pub(super) const HELP: &str = "Examples:\n  hoplite entry apply entries.toml --dry-run\n  \
    hoplite entry apply entries.toml --owner infra --prune\n\nThe file:\n  [[entry]]\n  \
    spiffe_id = \"spiffe://demo.hoplite/billing\"\n  parent = \"spiffe://demo.hoplite/hoplite/agent/local\"\n  \
    selectors = [\"unix:uid:1000\"]\n  ttl = \"1h\"                        # these five may be left out\n  jwt_ttl = \"5m\"\n  \
    dns_names = [\"billing.internal\"]\n  federates_with = [\"partner.example\"]\n  hint = \"internal\"\n\nA SPIFFE ID may be a template, \"spiffe://demo.hoplite/user/{unix:user}\", and \
    needs no selectors then.\nAn entry is known by SPIFFE ID, parent and selectors. All is done in \
    one commit, so nobody sees half of it; a list\nthat is too long for one is said to be, and goes in parts.\n\nExit codes: 0 it is done, \
    or there is nothing to do; 1 it failed, and with --dry-run: something would be done;\n2 with --dry-run: the plan cannot be made.";

#[derive(Debug, Args)]
pub(crate) struct ApplyArgs {
    /// The file
    file: PathBuf,
    /// Whose list this is: written to each entry; one that is another owner's is refused
    #[arg(long, value_name = "NAME")]
    owner: Option<String>,
    /// Delete what is this owner's and not in the file
    #[arg(long, requires = "owner")]
    prune: bool,
    /// Only show what would be done; exit 1 if that is anything, 2 if it cannot be told
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    list: ListArgs,
    #[command(flatten)]
    all: All,
}

/// What is to be done, or was.
#[derive(Debug, Default)]
struct Plan {
    /// One for each of the file, in order.
    steps: Vec<AppliedEntry>,
    deleted: Vec<Entry>,
    unknown_parents: BTreeSet<String>,
    /// In how many commits; 0 when nothing was done.
    commits: usize,
}

/// One file on its way to one CA.
struct Application<'a> {
    args: &'a ApplyArgs,
    owner: String,
    entries: Vec<Entry>,
}

pub(super) fn run(args: &ApplyArgs) -> ExitCode {
    match applied(args) {
        Ok(code) => code,
        Err(error) => {
            let code = if args.dry_run { COULD_NOT } else { 1 };
            failure(&error, code);
            ExitCode::from(code)
        }
    }
}

fn applied(args: &ApplyArgs) -> anyhow::Result<ExitCode> {
    let application = Application::read(args)?;
    let plan = match application.at_once(args.dry_run)? {
        Some(plan) => plan,
        None => application.in_parts()?,
    };
    application.show(&plan)?;
    Ok(match plan.refused() {
        0 if !args.dry_run || plan.changes() == 0 => ExitCode::SUCCESS,
        0 => ExitCode::from(WOULD_CHANGE),
        _ if args.dry_run => ExitCode::from(COULD_NOT),
        _ => ExitCode::FAILURE,
    })
}

// === impl Application ===

impl<'a> Application<'a> {
    fn read(args: &'a ApplyArgs) -> anyhow::Result<Self> {
        let file: EntryFile = hoplite_host::config::load(&args.file)?;
        let path = args.file.display();
        if file.entry.is_none() && args.prune {
            bail!(
                "`{path}` says nothing about entries, so --prune would delete all of `{}`; if that is meant, write \
                 `entry = []`",
                args.owner.as_deref().unwrap_or_default()
            );
        }
        let mut entries = Vec::new();
        for (place, text) in (1..).zip(file.entry.unwrap_or_default()) {
            let id = text.spiffe_id.clone();
            entries.push(message(text).with_context(|| format!("{path}: entry {place}, `{id}`"))?);
        }
        Ok(Self {
            args,
            owner: args.owner.clone().unwrap_or_default(),
            entries,
        })
    }

    fn ca(&self) -> &CaArgs {
        &self.args.list.ca
    }

    /// None when it is too much for one call or one commit.
    fn apply(&self, entries: &[Entry], prune: bool, dry_run: bool) -> anyhow::Result<Option<ApplyEntriesResponse>> {
        let request = ApplyEntriesRequest {
            entries: entries.to_vec(),
            owner: self.owner.clone(),
            prune,
            dry_run,
        };
        self.ca().call(async |mut ca| match ca.apply_entries(request).await {
            Ok(response) => Ok(Some(response.into_inner())),
            Err(status) if status.code() == Code::OutOfRange => Ok(None),
            Err(status) => Err(status),
        })
    }

    fn at_once(&self, dry_run: bool) -> anyhow::Result<Option<Plan>> {
        let Some(response) = self.apply(&self.entries, self.args.prune, dry_run)? else {
            return Ok(None);
        };
        let mut plan = Plan::default();
        plan.take(response, !dry_run);
        Ok(Some(plan))
    }

    /// First all of it as a plan, so that what is refused is known before anything is done.
    fn in_parts(&self) -> anyhow::Result<Plan> {
        hoplite_host::tell!(
            "{} entries are too much for one commit: they go in parts of at most {PART}, and who looks meanwhile sees some of them",
            self.entries.len()
        );
        let surplus = self.surplus()?;
        let mut plan = Plan::default();
        for part in self.entries.chunks(PART) {
            let response = self.apply(part, false, true)?;
            let response = response.with_context(|| format!("{} entries are too much for one call", part.len()))?;
            plan.take(response, false);
        }
        plan.deleted.clone_from(&surplus);
        if self.args.dry_run || plan.refused() > 0 {
            return Ok(plan);
        }
        let mut done = Plan::default();
        let so_far = |done: &Plan| {
            format!(
                "stopped after {} of {} entries, in {} commits, with nothing deleted; run the command again, and it goes on from there",
                done.steps.len(),
                self.entries.len(),
                done.commits
            )
        };
        let (mut rest, mut size) = (self.entries.as_slice(), PART);
        while !rest.is_empty() {
            let (part, after) = rest.split_at(size.min(rest.len()));
            match self.apply(part, false, false).with_context(|| so_far(&done))? {
                Some(response) => {
                    done.take(response, true);
                    rest = after;
                }
                None if size > 1 => size /= 2,
                None => bail!("{}: this one entry is too much for a commit", so_far(&done)),
            }
            if done.refused() > 0 {
                failed(&so_far(&done), 1);
                return Ok(done);
            }
        }
        // What is new is there before what is old goes.
        for part in surplus.chunks(DELETED_AT_ONCE) {
            let request = DeleteEntriesRequest {
                ids: part.iter().map(|entry| entry.id.clone()).collect(),
            };
            // Whose error says that it is gone already is gone all the same.
            self.ca()
                .call(async |mut ca| Ok(ca.delete_entries(request.clone()).await?))
                .with_context(|| {
                    let (deleted, all) = (done.deleted.len(), surplus.len());
                    format!("stopped after all entries and {deleted} of {all} deletions; run the command again, and it goes on from there")
                })?;
            done.commits += 1;
            done.deleted.extend_from_slice(part);
        }
        Ok(done)
    }

    /// What is the owner's and not in the file, for a file that goes in parts. Says also if the file has an entry twice, which
    /// no part could see.
    fn surplus(&self) -> anyhow::Result<Vec<Entry>> {
        let subject = |entry: &Entry| hoplite_identity::Entry::try_from(entry.clone()).map(|entry| entry.subject());
        let mut listed = BTreeSet::new();
        for (place, entry) in (1..).zip(&self.entries) {
            let id = &entry.spiffe_id;
            if !listed.insert(subject(entry).with_context(|| format!("entry {place}, `{id}`"))?) {
                bail!("entry {place}, `{id}`: the list has this SPIFFE ID, parent and selectors twice");
            }
        }
        if !self.args.prune {
            return Ok(Vec::new());
        }
        let asked = ListEntriesRequest {
            owner: self.owner.clone(),
            ..ListEntriesRequest::default()
        };
        let mut surplus = admin::entries(self.ca(), asked)?;
        surplus.retain(|entry| subject(entry).is_ok_and(|subject| !listed.contains(&subject)));
        Ok(surplus)
    }

    fn show(&self, plan: &Plan) -> anyhow::Result<()> {
        let mut refusals = self.args.all.capped();
        for (place, (entry, step)) in (1..).zip(self.entries.iter().zip(&plan.steps)) {
            if !step.error.is_empty() {
                let text = format!("error: entry {place}, `{}`: {}\n", entry.spiffe_id, step.error);
                refusals.add(&parent_text(entry), &printable(text.chars()));
            }
        }
        hoplite_host::tell::text(&refusals.end());
        let unknown: Vec<String> = plan.unknown_parents.iter().cloned().collect();
        warn_of_unknown(&unknown);
        let refused = plan.refused();
        if refused > 0 && plan.commits == 0 {
            let code = if self.args.dry_run { COULD_NOT } else { 1 };
            failed(
                &format!(
                    "{refused} of {} entries are refused, so nothing was done",
                    self.entries.len()
                ),
                code,
            );
        }
        match self.args.list.output {
            Output::Json => self.show_json(plan, &unknown),
            Output::Table if refused > 0 => Ok(()),
            Output::Table => self.show_text(plan),
        }
    }

    fn show_text(&self, plan: &Plan) -> anyhow::Result<()> {
        let mut findings = self.args.all.capped();
        for (entry, step) in self.entries.iter().zip(&plan.steps) {
            let (spiffe_id, parent) = (&entry.spiffe_id, parent_text(entry));
            match step.action() {
                Action::Created => {
                    let selectors: Vec<String> = entry.selectors.iter().map(selector_text).collect();
                    findings.add(&parent, &format!("create  {spiffe_id}  {}\n", selectors.join(" ")));
                }
                Action::Updated => {
                    let differences = step.differences.join("; ");
                    findings.add(&parent, &format!("update  {spiffe_id}  {}  {differences}\n", step.id));
                }
                Action::Unchanged | Action::Refused => {}
            }
        }
        // What is deleted is not hidden by what is created.
        let mut text = findings.end();
        let mut deletions = self.args.all.capped();
        for entry in &plan.deleted {
            let Entry { id, spiffe_id, .. } = entry;
            deletions.add(&parent_text(entry), &format!("delete  {spiffe_id}  {id}\n"));
        }
        text += &deletions.end();
        let (changes, entries) = (plan.changes(), self.entries.len());
        let counted = format!(
            "{} created, {} updated, {} deleted, {} unchanged",
            plan.count(Action::Created),
            plan.count(Action::Updated),
            plan.deleted.len(),
            plan.count(Action::Unchanged)
        );
        text += &match (changes, self.args.dry_run, plan.commits) {
            (0, ..) => format!(
                "0 changes: what is registered is as the file says ({})\n",
                count(entries as u64, "entry")
            ),
            (_, true, _) => format!(
                "{} would be made: {counted}; nothing was done\n",
                count(changes as u64, "change")
            ),
            (_, false, 1) => format!("{}, in one commit: {counted}\n", count(changes as u64, "change")),
            (_, false, commits) => format!("{}, in {commits} commits: {counted}\n", count(changes as u64, "change")),
        };
        Ok(print(&text)?)
    }

    fn show_json(&self, plan: &Plan, unknown: &[String]) -> anyhow::Result<()> {
        let of = |action: Action| {
            let both = self.entries.iter().zip(&plan.steps);
            both.filter(move |(_, step)| step.action() == action)
        };
        let created: Vec<_> = of(Action::Created)
            .map(|(entry, step)| json!({"id": step.id, "spiffe_id": entry.spiffe_id, "parent": parent_text(entry)}))
            .collect();
        let updated: Vec<_> = of(Action::Updated)
            .map(|(entry, step)| json!({"id": step.id, "spiffe_id": entry.spiffe_id, "differences": step.differences}))
            .collect();
        let deleted: Vec<_> = plan
            .deleted
            .iter()
            .map(|entry| json!({"id": entry.id, "spiffe_id": entry.spiffe_id, "parent": parent_text(entry)}))
            .collect();
        let errors: Vec<_> = (1..)
            .zip(self.entries.iter().zip(&plan.steps))
            .filter(|(_, (_, step))| !step.error.is_empty())
            .map(|(place, (entry, step))| json!({"entry": place, "spiffe_id": entry.spiffe_id, "error": step.error}))
            .collect();
        print_json(&json!({
            "dry_run": self.args.dry_run,
            "changes": plan.changes(),
            "commits": plan.commits,
            "created": created,
            "updated": updated,
            "deleted": deleted,
            "unchanged": plan.count(Action::Unchanged),
            "unknown_parents": unknown,
            "errors": errors,
        }))
    }
}

// === impl Plan ===

impl Plan {
    fn take(&mut self, response: ApplyEntriesResponse, is_done: bool) {
        let mut part = Self {
            steps: response.results,
            deleted: response.deleted,
            ..Self::default()
        };
        // Whoever refused one did nothing, and whoever had nothing to do made no commit.
        self.commits += usize::from(is_done && part.refused() == 0 && part.changes() > 0);
        self.steps.append(&mut part.steps);
        self.deleted.append(&mut part.deleted);
        self.unknown_parents.extend(response.unknown_parents);
    }

    fn count(&self, action: Action) -> usize {
        self.steps.iter().filter(|step| step.action() == action).count()
    }

    fn changes(&self) -> usize {
        self.count(Action::Created) + self.count(Action::Updated) + self.deleted.len()
    }

    fn refused(&self) -> usize {
        self.steps.iter().filter(|step| !step.error.is_empty()).count()
    }
}

fn message(text: EntryText) -> anyhow::Result<Entry> {
    let ttl = |name: &str, life: Option<Life>| {
        let ttl = life.map_or(Ok(Ttl(0)), |life| Ttl::try_from(Span(life.0)));
        ttl.map(|ttl| ttl.0)
            .map_err(|reason| anyhow::anyhow!("`{name}`: {reason}"))
    };
    Ok(Entry {
        spiffe_id: text.spiffe_id,
        parent_id: text.parent,
        node_selectors: text.node_selectors.iter().map(Into::into).collect(),
        is_default: text.default,
        selectors: text.selectors.iter().map(Into::into).collect(),
        x509_ttl_seconds: ttl("ttl", text.ttl)?,
        jwt_ttl_seconds: ttl("jwt_ttl", text.jwt_ttl)?,
        hint: text.hint,
        dns_names: text.dns_names,
        federates_with: text.federates_with,
        ..Entry::default()
    })
}
