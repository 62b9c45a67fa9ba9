//! `hoplite policy publish` and `rollback`: checked, tested, replayed, signed, and then in force on every proxy.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use hoplite_identity::TrustDomain;
use hoplite_policy::{
    Bundle, BundleContents, EngineVersion, Hash, MAX_BUNDLE_BYTES, Meta, SigningKey, Snapshot, Source, Stage, lint,
};
use hoplite_wire::ca::{
    ClearShadowRequest, GetPolicyRequest, ListPoliciesRequest, PublishPolicyRequest, PublishedPolicy,
    ShowPolicyRequest, ShowPolicyResponse,
};
use serde_json::{Value, json};

use super::key::KeyArgs;
use super::replay::{page, with_progress};
use super::test::{TestReport, tables};
use super::{AuditArgs, sources};
use crate::command::admin::CaArgs;
use crate::output::{Output, Table, print, print_json};
use crate::replay::{Replayed, Who, parts};

/// A bundle is published anew before this has passed, or every record says `stale`.
const EXPIRES: &str = "90d";

#[derive(Debug, clap::Args)]
pub(crate) struct PublishArgs {
    /// The directory of the policies
    directory: PathBuf,
    /// What changes, in one line, for those who read the history
    #[arg(long)]
    note: Option<String>,
    /// Try the policies beside those in force, on real traffic, without deciding anything
    #[arg(long)]
    shadow: bool,
    /// Accept that decisions flip for this `principal × route`; `*` stands for any text; may be repeated
    #[arg(long, value_name = "PATTERN")]
    accept: Vec<String>,
    /// Replay the decisions since then: a length of time ago (`7d`) or a moment
    #[arg(long, value_parser = crate::command::audit::moment, default_value = "7d")]
    since: SystemTime,
    #[command(flatten)]
    audit: AuditArgs,
    #[command(flatten)]
    sign: SignArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct RollbackArgs {
    /// The revision whose content comes back, as a new revision [default: the one before that in force]
    revision: Option<u64>,
    #[command(flatten)]
    sign: SignArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct HistoryArgs {
    #[command(flatten)]
    ca: CaArgs,
    /// The form of the answer
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Debug, clap::Args)]
struct SignArgs {
    /// When every record begins to say that the policy is stale
    #[arg(long, value_name = "SPAN", default_value = EXPIRES, value_parser = humantime::parse_duration)]
    expires: Duration,
    #[command(flatten)]
    key: KeyArgs,
    #[command(flatten)]
    ca: CaArgs,
    /// The form of the answer
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// What was done so far, said as it is done.
struct Steps {
    shown: bool,
    done: Vec<Value>,
}

pub(crate) fn publish(args: &PublishArgs) -> anyhow::Result<ExitCode> {
    if let Some(pattern) = args.accept.iter().find(|pattern| parts(pattern).is_none()) {
        bail!("`{pattern}` names no flips; write `PRINCIPAL × ROUTE`, with `*` for any text");
    }
    let mut steps = Steps::new(args.sign.output);
    let sources = sources(&args.directory)?;
    let Some(snapshot) = checked(&mut steps, args, &sources)? else {
        return Ok(ExitCode::FAILURE);
    };
    if !tested(&mut steps, args, &snapshot)? || !replayed(&mut steps, args, &snapshot)? {
        return Ok(ExitCode::FAILURE);
    }
    let stage = if args.shadow { Stage::Shadow } else { Stage::Live };
    send(&mut steps, &args.sign, &sources, stage, args.note.clone())?;
    Ok(ExitCode::SUCCESS)
}

/// Parse, strict validation, ownership, lint.
fn checked(steps: &mut Steps, args: &PublishArgs, sources: &[Source]) -> anyhow::Result<Option<Snapshot>> {
    let (snapshot, faults) = match Snapshot::compile(sources) {
        Ok(snapshot) => (Some(snapshot), lint(sources)),
        Err(faults) => (None, faults),
    };
    let snapshot = snapshot.filter(|_| faults.is_empty());
    let text = match &snapshot {
        Some(snapshot) => format!("{} policies in {} files", snapshot.policy_ids().len(), sources.len()),
        None => {
            let shown = args.directory.display();
            let mut text = String::new();
            for fault in &faults {
                let _ = writeln!(text, "{shown}/{}", fault.render());
            }
            text
        }
    };
    steps.say("check", snapshot.is_some(), &text)?;
    Ok(snapshot)
}

/// The tables beside the policies.
fn tested(steps: &mut Steps, args: &PublishArgs, snapshot: &Snapshot) -> anyhow::Result<bool> {
    let tables = tables(&args.directory)?;
    if tables.is_empty() {
        steps.say(
            "test",
            true,
            "there are no test tables; write some, see `hoplite policy test --help`",
        )?;
        return Ok(true);
    }
    let report = TestReport::new(&tables, snapshot);
    let text = if report.passed() {
        format!("{} cases as expected", report.cases())
    } else {
        report.text()
    };
    steps.say("test", report.passed(), &text)?;
    Ok(report.passed())
}

/// What the new policies would have decided of late. Each flip must have been accepted by name.
fn replayed(steps: &mut Steps, args: &PublishArgs, snapshot: &Snapshot) -> anyhow::Result<bool> {
    let Some(logs) = args.audit.logs_if_any(args.sign.ca.dir())? else {
        steps.say(
            "replay",
            true,
            "there are no decision logs here; say where with --audit",
        )?;
        return Ok(true);
    };
    let replayed = with_progress(&logs, args.since, snapshot, 3)?;
    let open = unaccepted(&replayed, &args.accept);
    // A shadow decides nothing: what it would flip is what it is tried for.
    let good = args.shadow || (open == 0 && replayed.ungrouped == 0 && replayed.damaged == 0);
    let mut text = match replayed.flips {
        0 => format!("{} decisions, none would flip", replayed.records),
        flips if good => format!("{} decisions, {flips} would flip, all accepted", replayed.records),
        _ => page(&replayed, args.since),
    };
    if !good {
        let _ = write!(
            text,
            "\n{open} groups of flips are not accepted; change the policies, or name them: --accept 'PRINCIPAL × ROUTE'"
        );
    }
    steps.say("replay", good, &text)?;
    Ok(good)
}

fn unaccepted(replayed: &Replayed, accept: &[String]) -> usize {
    let accepted = |who: &Who| accept.iter().any(|pattern| who.is_meant_by(pattern));
    replayed.groups().iter().filter(|(who, _)| !accepted(who)).count()
}

/// Signs the files as the next revision and gives them to the CA.
fn send(
    steps: &mut Steps,
    args: &SignArgs,
    sources: &[Source],
    stage: Stage,
    note: Option<String>,
) -> anyhow::Result<()> {
    let key = args.key.read(args.ca.dir())?;
    let state = args
        .ca
        .call(async |mut ca| Ok(ca.show_policy(ShowPolicyRequest {}).await?.into_inner()))?;
    let bundle = signed(&key, &state, sources, stage, note, args.expires)?;
    let (bytes, signer) = (bundle.len(), key.signer().name().to_owned());
    steps.say("sign", true, &format!("by {signer}, {bytes} bytes"))?;
    let request = PublishPolicyRequest {
        bundle,
        expected_revision: state.highest_revision,
    };
    let answer = args
        .ca
        .call(async |mut ca| Ok(ca.publish_policy(request).await?.into_inner()))?;
    let what = if stage == Stage::Shadow {
        "tried as shadow"
    } else {
        "in force"
    };
    steps.say(
        "publish",
        true,
        &format!("revision {}, {what}; see `hoplite policy status`", answer.revision),
    )?;
    steps.end(answer.revision)
}

fn signed(
    key: &SigningKey,
    state: &ShowPolicyResponse,
    sources: &[Source],
    stage: Stage,
    note: Option<String>,
    expires: Duration,
) -> anyhow::Result<Vec<u8>> {
    if !state.signers.iter().any(|name| name == key.signer().name()) {
        bail!(
            "the CA does not trust the signer `{}` (it trusts: {}); add `{}` to `policy_signers` of CA, agents and proxies",
            key.signer().name(),
            state.signers.join(", "),
            key.signer()
        );
    }
    let parent = match &state.highest_manifest_sha256[..] {
        [] => None,
        digest => Some(Hash::from_slice(digest).context("the CA names a manifest by no SHA-256")?),
    };
    let now = SystemTime::now();
    let meta = Meta {
        trust_domain: TrustDomain::parse(&state.trust_domain)?,
        revision: state.highest_revision + 1,
        parent,
        created: now,
        expires: now + expires,
        min_engine: EngineVersion::THIS,
        critical: Vec::new(),
        stage,
        note,
    };
    Ok(Bundle::build(sources, meta)?.sign(&[key])?)
}

pub(crate) fn rollback(args: &RollbackArgs) -> anyhow::Result<ExitCode> {
    let mut steps = Steps::new(args.sign.output);
    let ca = &args.sign.ca;
    let state = ca.call(async |mut ca| Ok(ca.show_policy(ShowPolicyRequest {}).await?.into_inner()))?;
    let live = state
        .live
        .context("nothing was published yet, so there is nothing to go back from")?;
    let revision = match args.revision {
        Some(revision) => revision,
        None => {
            let history =
                ca.call(async |mut ca| Ok(ca.list_policies(ListPoliciesRequest::default()).await?.into_inner()))?;
            let before = history
                .policies
                .iter()
                .find(|p| p.stage == "live" && p.revision < live.revision);
            before
                .context("no live revision lies before the one in force")?
                .revision
        }
    };
    let old = ca.call(async |mut ca| Ok(ca.get_policy(GetPolicyRequest { revision }).await?.into_inner()))?;
    if old.bundle.is_empty() {
        bail!("of revision {revision} only the manifest is kept; publish its files from where you keep them");
    }
    let old = BundleContents::danger_read_unverified(&old.bundle, MAX_BUNDLE_BYTES)?;
    // It was signed once, but this program may be stricter than the one that signed it.
    if let Err(faults) = Snapshot::compile(old.sources()) {
        let first = faults.first().map(ToString::to_string).unwrap_or_default();
        bail!("revision {revision} no longer compiles: {first}");
    }
    steps.say(
        "fetch",
        true,
        &format!("revision {revision}, {} files", old.sources().len()),
    )?;
    let note = format!("back to revision {revision}");
    send(&mut steps, &args.sign, old.sources(), Stage::Live, Some(note))?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn history(args: &HistoryArgs) -> anyhow::Result<ExitCode> {
    let history = args
        .ca
        .call(async |mut ca| Ok(ca.list_policies(ListPoliciesRequest::default()).await?.into_inner()))?;
    if args.output == Output::Json {
        let all: Vec<Value> = history.policies.iter().map(listed).collect();
        print_json(&all)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(&[
        "REVISION",
        "STAGE",
        "POLICIES",
        "SIGNED BY",
        "PUBLISHED",
        "EXPIRES",
        "NOTE",
    ]);
    for policy in &history.policies {
        table.row([
            policy.revision.to_string(),
            policy.stage.clone(),
            policy.policies.to_string(),
            policy.signed_by.join(", "),
            rfc3339(policy.published_at_unix),
            rfc3339(policy.expires_at_unix),
            policy.note.clone(),
        ]);
    }
    table.print()?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn clear_shadow(args: &HistoryArgs) -> anyhow::Result<ExitCode> {
    let answer = args
        .ca
        .call(async |mut ca| Ok(ca.clear_shadow(ClearShadowRequest {}).await?.into_inner()))?;
    match (args.output, answer.cleared) {
        (Output::Json, cleared) => print_json(&json!({"cleared": cleared}))?,
        (Output::Table, true) => print("the shadow is no longer tried\n")?,
        (Output::Table, false) => print("there was no shadow\n")?,
    }
    Ok(ExitCode::SUCCESS)
}

fn listed(policy: &PublishedPolicy) -> Value {
    json!({
        "revision": policy.revision,
        "stage": policy.stage,
        "policies": policy.policies,
        "files": policy.files,
        "bytes": policy.bytes,
        "signed_by": policy.signed_by,
        "created": rfc3339(policy.created_at_unix),
        "published": rfc3339(policy.published_at_unix),
        "expires": rfc3339(policy.expires_at_unix),
        "note": policy.note,
    })
}

pub(super) fn rfc3339(seconds: i64) -> String {
    let since = Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
    humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + since).to_string()
}

// === impl Steps ===

impl Steps {
    fn new(output: Output) -> Self {
        Self {
            shown: output != Output::Json,
            done: Vec::new(),
        }
    }

    fn say(&mut self, step: &str, good: bool, text: &str) -> anyhow::Result<()> {
        self.done.push(json!({"step": step, "ok": good, "text": text}));
        if self.shown {
            let verdict = if good { "ok" } else { "FAILED" };
            let text = text.trim_end().replace('\n', "\n                 ");
            print(&format!("{step:<8} {verdict:<6}  {text}\n"))?;
        } else if !good {
            print_json(&json!({"ok": false, "steps": self.done}))?;
        }
        Ok(())
    }

    fn end(&self, revision: u64) -> anyhow::Result<()> {
        if !self.shown {
            print_json(&json!({"ok": true, "revision": revision, "steps": self.done}))?;
        }
        Ok(())
    }
}
