//! `hoplite policy publish` and `hoplite policy rollback`: policies on their way to every proxy.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use hoplite_author::publication::{Accepted, Checked, NotReplayed, NotTested, Ready, Signed, Terms, Tested};
use hoplite_author::replay::{Flip, parts};
use hoplite_host::clock;
use hoplite_identity::TrustDomain;
use hoplite_policy::Source;
use hoplite_policy::bundle::{Acceptance, Bundle, BundleContents, EngineVersion, KNOWN_CRITICAL, ManifestFile, Stage};
use hoplite_seal::{Hash, SigningKey, TrustedSigners};
use hoplite_wire::ca::{
    GetPolicyRequest, PublishPolicyRequest, PublishedPolicy, ShowPolicyRequest, ShowPolicyResponse,
};
use serde_json::{Map, Value, json};

use super::check::listed;
use super::key::KeyArgs;
use super::test::tables;
use super::{AuditArgs, history, replay, sources, test};
use crate::command::admin::{CaArgs, ListArgs};
use crate::output::{Output, print, print_json};

/// The most groups that a refusal names for `--accept`, for each way an answer can flip.
const UNACCEPTED_SHOWN: usize = 10;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The directory of the policies
    directory: PathBuf,
    /// What changes, for those who read the history
    #[arg(long)]
    note: Option<String>,
    /// After how long the proxies call these policies stale
    #[arg(long, value_name = "TIME", default_value = "30d", value_parser = humantime::parse_duration)]
    expires: Duration,
    /// Only try them beside those in force; no answer changes
    #[arg(long)]
    shadow: bool,
    /// Answers that may flip: `allow PRINCIPAL × ROUTE`, or `deny` for what was allowed; `*` stands for any text; may be repeated
    #[arg(long, value_name = "PATTERN", value_parser = pattern)]
    accept: Vec<String>,
    /// Publish also if the decision log is damaged, or none of its decisions can be made again
    #[arg(long)]
    accept_unreplayed: bool,
    /// From when on logged decisions are replayed
    #[arg(long, value_parser = crate::command::audit::moment, default_value = "7d")]
    since: SystemTime,
    #[command(flatten)]
    audit: AuditArgs,
    #[command(flatten)]
    key: KeyArgs,
    #[command(flatten)]
    list: ListArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct RollbackArgs {
    /// The revision whose content comes back [default: the live one before the content in force was first published]
    revision: Option<u64>,
    /// Why, for those who read the history
    #[arg(long)]
    note: Option<String>,
    /// After how long the proxies call these policies stale
    #[arg(long, value_name = "TIME", default_value = "30d", value_parser = humantime::parse_duration)]
    expires: Duration,
    /// Who signed that revision, if not you: `NAME=ed25519:KEY`; may be repeated
    #[arg(long, value_name = "SIGNER")]
    trust: Vec<String>,
    #[command(flatten)]
    key: KeyArgs,
    #[command(flatten)]
    list: ListArgs,
}

/// What was done, step by step: told as it happens, or in one document at the end.
struct Steps {
    output: Output,
    done: Vec<Value>,
    /// What else the document has.
    facts: Map<String, Value>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut steps = Steps::new(args.list.output);
    let published = published(args, &mut steps)?;
    steps.end(published)
}

/// Whether it came to the end; if not, the steps say why.
fn published(args: &Args, steps: &mut Steps) -> anyhow::Result<bool> {
    // Before the work that takes long. Whoever publishes in the meantime is noticed: this is what was seen.
    let key = args.key.load(args.list.ca.mesh())?;
    let state = trusting(state(&args.list.ca)?, &key)?;
    let trust_domain = signing_for(&state, &args.key, steps)?;
    let sources = sources(&args.directory)?;
    let Some(checked) = checked(&sources, args, steps)? else {
        return Ok(false);
    };
    let Some(tested) = tested(checked, args, steps)? else {
        return Ok(false);
    };
    let Some(ready) = replayed(tested, args, steps)? else {
        return Ok(false);
    };
    let meta = (trust_domain, args.expires, args.note.clone());
    send(&args.list.ca, &state, &key, ready, meta, steps)?;
    Ok(true)
}

// === impl Steps ===

impl Steps {
    fn new(output: Output) -> Self {
        Self {
            output,
            done: Vec::new(),
            facts: Map::new(),
        }
    }

    fn done(&mut self, step: &str, what: &str) -> anyhow::Result<()> {
        self.step(step, what, true)
    }

    /// The last one.
    fn failed(&mut self, step: &str, what: &str) -> anyhow::Result<()> {
        self.step(step, &format!("FAILED: {what}; nothing was published"), false)
    }

    fn step(&mut self, step: &str, what: &str, ok: bool) -> anyhow::Result<()> {
        self.done.push(json!({"step": step, "ok": ok, "said": what}));
        self.show(&format!("{step:<8} {what}\n"))
    }

    /// For people only.
    fn show(&self, text: &str) -> anyhow::Result<()> {
        match self.output {
            Output::Table => Ok(print(text)?),
            Output::Json => Ok(()),
        }
    }

    /// For scripts only.
    fn fact(&mut self, name: &str, value: impl Into<Value>) {
        self.facts.insert(name.to_owned(), value.into());
    }

    fn end(mut self, ok: bool) -> anyhow::Result<ExitCode> {
        if self.output == Output::Json {
            self.facts.insert("ok".to_owned(), ok.into());
            self.facts.insert("steps".to_owned(), self.done.into());
            print_json(&self.facts)?;
        }
        Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn checked<'a>(sources: &'a [Source], args: &Args, steps: &mut Steps) -> anyhow::Result<Option<Checked<'a>>> {
    let directory = args.directory.display();
    match Checked::new(sources) {
        Ok(checked) => {
            let (policies, files) = (checked.snapshot().policy_ids().len(), sources.len());
            steps.done("check", &format!("{policies} policies in {files} files are good"))?;
            Ok(Some(checked))
        }
        Err(faults) => {
            for fault in &faults {
                steps.show(&format!("{directory}/{}\n", fault.render()))?;
            }
            steps.fact("faults", faults.iter().map(listed).collect::<Vec<_>>());
            steps.failed("check", &format!("{} faults", faults.len()))?;
            Ok(None)
        }
    }
}

fn tested<'a>(checked: Checked<'a>, args: &Args, steps: &mut Steps) -> anyhow::Result<Option<Tested<'a>>> {
    let tables = tables(&args.directory)?;
    match checked.test(&tables) {
        Ok((tested, report)) => {
            let (cases, tables) = (report.cases(), tables.len());
            steps.done("test", &format!("{cases} cases in {tables} tables are good"))?;
            Ok(Some(tested))
        }
        Err(NotTested::NoCase) => {
            let what = "there is no case to test; write one line per request into a file that ends in `.test`, like \
                        `spiffe://prod.acme/ns/web GET ledger /accounts/7 allow`";
            steps.failed("test", what)?;
            Ok(None)
        }
        Err(NotTested::Failed(report)) => {
            steps.show(&test::text(&report))?;
            steps.fact("tests", test::as_json(&report));
            steps.failed("test", "cases came out otherwise")?;
            Ok(None)
        }
    }
}

fn replayed<'a>(tested: Tested<'a>, args: &Args, steps: &mut Steps) -> anyhow::Result<Option<Ready<'a>>> {
    let accepted = Accepted {
        patterns: &args.accept,
        unreplayed: args.accept_unreplayed,
    };
    let Some(logs) = args.audit.logs_if_any(args.list.ca.mesh())? else {
        steps.done(
            "replay",
            "there are no decision logs here; --audit says where, and nothing was replayed",
        )?;
        return Ok(if args.shadow {
            Some(tested.shadow())
        } else {
            tested.live(None, accepted).ok()
        });
    };
    let replayed = replay::with_progress(&logs, args.since, tested.snapshot(), 3)?;
    steps.fact("replay", replay::as_json(&replayed, tested.snapshot(), args.since));
    let thousands = replay::thousands;
    let flips = replayed.flips.total();
    let counted = format!(
        "{} of {} decisions replayed",
        thousands(replayed.replayed()),
        thousands(replayed.records)
    );
    if args.shadow {
        if flips > 0 {
            steps.show(&replay::page(&replayed, args.since))?;
        }
        let flips = thousands(flips);
        steps.done(
            "replay",
            &format!("{counted}, {flips} would flip; a shadow changes no answer"),
        )?;
        return Ok(Some(tested.shadow()));
    }
    match tested.live(Some(&replayed), accepted) {
        Ok(ready) => {
            let what = match flips {
                0 => "none would flip".to_owned(),
                flips => format!("{} will flip, all accepted", thousands(flips)),
            };
            steps.done("replay", &format!("{counted}, {what}"))?;
            Ok(Some(ready))
        }
        Err(NotReplayed::Gap(gap)) => {
            steps.show(&replay::page(&replayed, args.since))?;
            steps.failed(
                "replay",
                &format!("{counted}: {gap}; --accept-unreplayed publishes all the same"),
            )?;
            Ok(None)
        }
        Err(NotReplayed::Flips(unaccepted)) => {
            steps.show(&replay::page(&replayed, args.since))?;
            steps.failed("replay", &format!("{counted}, and answers would flip"))?;
            show_unaccepted(&unaccepted, steps)?;
            Ok(None)
        }
    }
}

/// What to say to accept the groups of flips that nobody accepted.
fn show_unaccepted(unaccepted: &[(Flip, String)], steps: &mut Steps) -> anyhow::Result<()> {
    let patterns: Vec<&String> = unaccepted.iter().map(|(_, pattern)| pattern).collect();
    steps.fact("unaccepted", json!(patterns));
    steps.show("If that is meant, accept it:\n")?;
    for flip in Flip::ALL {
        let mut of_flip = unaccepted.iter().filter(|(other, _)| *other == flip);
        for (_, pattern) in of_flip.by_ref().take(UNACCEPTED_SHOWN) {
            steps.show(&format!("  --accept '{pattern}'\n"))?;
        }
        let more = of_flip.count();
        if more > 0 {
            let way = flip.as_str();
            steps.show(&format!("  and {more} more groups {way}; `*` stands for any text\n"))?;
        }
    }
    Ok(())
}

/// The trust domain that is signed for, said before anything is signed. The CA names it, and whoever holds two keys or two
/// sockets may have meant another.
fn signing_for(state: &ShowPolicyResponse, key: &KeyArgs, steps: &mut Steps) -> anyhow::Result<TrustDomain> {
    let trust_domain = key.trust_domain(&state.trust_domain)?;
    steps.fact("trust_domain", trust_domain.as_str());
    steps.show(&format!("for      the trust domain {}\n", trust_domain.as_str()))?;
    Ok(trust_domain)
}

/// Signs and sends the next revision.
fn send(
    ca: &CaArgs,
    state: &ShowPolicyResponse,
    key: &SigningKey,
    ready: Ready<'_>,
    (trust_domain, expires, note): (TrustDomain, Duration, Option<String>),
    steps: &mut Steps,
) -> anyhow::Result<()> {
    let now = clock::now();
    let Signed {
        revision,
        stage,
        manifest,
        bundle,
    } = ready.sign(
        key,
        Terms {
            trust_domain,
            highest_revision: state.highest_revision,
            parent: Hash::from_slice(&state.highest_manifest_sha256),
            created: now,
            expires: now.checked_add(expires).context("--expires is too long")?,
            note,
        },
    )?;
    let bytes = bundle.len();
    steps.done(
        "sign",
        &format!(
            "revision {revision}, {bytes} bytes, manifest {manifest}, by {}",
            key.signer().name()
        ),
    )?;
    let request = PublishPolicyRequest {
        bundle,
        expected_revision: state.highest_revision,
    };
    let published = ca.call(async |mut ca| Ok(ca.publish_policy(request.clone()).await?.into_inner().revision))?;
    let (stage, what) = match stage {
        Stage::Live => ("live", "in force on every proxy as it arrives"),
        Stage::Shadow => ("shadow", "tried beside the policies in force; no answer changes"),
    };
    steps.fact("revision", published);
    steps.fact("stage", stage);
    steps.fact("manifest", manifest.to_string());
    steps.fact("bytes", bytes);
    steps.fact("signed_by", key.signer().name());
    steps.done("publish", &format!("revision {published} is with the CA: {what}"))?;
    Ok(())
}

/// The CA's state, if it trusts the key.
fn trusting(state: ShowPolicyResponse, key: &SigningKey) -> anyhow::Result<ShowPolicyResponse> {
    let name = key.signer().name();
    anyhow::ensure!(
        state.signers.iter().any(|signer| signer == name),
        "the CA trusts no signer `{name}`, only {}; put `{}` into its `policy_signers`",
        if state.signers.is_empty() {
            "nobody".to_owned()
        } else {
            state.signers.join(", ")
        },
        key.signer()
    );
    Ok(state)
}

/// What the CA has, and whom it trusts.
pub(crate) fn state(ca: &CaArgs) -> anyhow::Result<ShowPolicyResponse> {
    ca.call(async |mut ca| Ok(ca.show_policy(ShowPolicyRequest {}).await?.into_inner()))
}

pub(crate) fn rollback(args: &RollbackArgs) -> anyhow::Result<ExitCode> {
    let mut steps = Steps::new(args.list.output);
    let key = args.key.load(args.list.ca.mesh())?;
    let state = trusting(state(&args.list.ca)?, &key)?;
    let trust_domain = signing_for(&state, &args.key, &mut steps)?;
    let revision = match args.revision {
        Some(revision) => revision,
        None => before(&args.list.ca, &state)?,
    };
    let bytes = kept(&args.list.ca, revision)?;
    // INVARIANT: what is signed anew was signed before by somebody this person trusts. The CA only kept it.
    let trusted: Vec<String> = args.trust.iter().cloned().chain([key.signer().to_string()]).collect();
    let signers = TrustedSigners::parse(&trusted)?;
    let bundle = Bundle::open_kept(
        &bytes,
        &Acceptance {
            signers: &signers,
            trust_domain: &trust_domain,
            highest_seen: None,
            now: clock::now(),
            engine_version: EngineVersion::THIS,
            known_critical: KNOWN_CRITICAL,
            max_bytes: hoplite_policy::bundle::BUNDLE_BYTES_MAX,
        },
    )
    .context("if somebody else signed that revision, say who with --trust NAME=ed25519:KEY")?;
    anyhow::ensure!(
        bundle.manifest().revision == revision,
        "the CA gave revision {} for {}; ask whoever runs it",
        bundle.manifest().revision,
        revision
    );
    let (ready, snapshot) = Ready::again(&bundle).map_err(|faults| super::uncompiled(&faults))?;
    steps.fact("content_of", revision);
    steps.done(
        "check",
        &format!(
            "revision {}, signed by {}: {} policies are good",
            revision,
            bundle.signed_by().join(", "),
            snapshot.policy_ids().len()
        ),
    )?;
    let note = args
        .note
        .clone()
        .unwrap_or_else(|| format!("back to revision {revision}"));
    let meta = (trust_domain, args.expires, Some(note));
    send(&args.list.ca, &state, &key, ready, meta, &mut steps)?;
    steps.end(true)
}

/// The last live revision before the content in force was first published. What was published since then has been taken back
/// already: a second rollback in a row must not bring it in force again.
fn before(ca: &CaArgs, state: &ShowPolicyResponse) -> anyhow::Result<u64> {
    let live = state
        .live
        .as_ref()
        .context("nothing was published yet, so there is nothing to go back from")?;
    let mut earlier = history::before(ca, live.revision, None)?;
    earlier.retain(|policy| policy.stage == "live");
    let content = content(ca, live.revision)?;
    let mut target = earlier.first();
    let mut same = None;
    for (at, policy) in earlier.iter().enumerate() {
        if may_equal(policy, live) && self::content(ca, policy.revision)? == content {
            same = Some(policy.revision);
            target = earlier.get(at + 1);
        }
    }
    let said = same.map(|same| format!(", whose content is that of revision {same}"));
    let target = target.with_context(|| {
        format!(
            "no live revision lies before the one in force{}; say which one to go to",
            said.unwrap_or_default()
        )
    })?;
    Ok(target.revision)
}

/// Whether it is worth comparing what two revisions hold. Of one that is not kept nobody can know, nor go back to it.
fn may_equal(one: &PublishedPolicy, other: &PublishedPolicy) -> bool {
    one.kept && (one.policies, one.files) == (other.policies, other.files)
}

/// The files of a revision, by name and digest.
fn content(ca: &CaArgs, revision: u64) -> anyhow::Result<Vec<ManifestFile>> {
    // Only which revision is meant hangs on it: that one is verified before it is signed.
    let bundle =
        BundleContents::danger_read_unverified(&kept(ca, revision)?, hoplite_policy::bundle::BUNDLE_BYTES_MAX)?;
    Ok(bundle.manifest().files.clone())
}

/// A signed bundle that the CA still keeps.
pub(crate) fn kept(ca: &CaArgs, revision: u64) -> anyhow::Result<Vec<u8>> {
    let answer = ca.call(async |mut ca| Ok(ca.get_policy(GetPolicyRequest { revision }).await?.into_inner()))?;
    if answer.bundle.is_empty() {
        bail!("the CA keeps only the manifest of revision {revision}; publish the directory it came from");
    }
    Ok(answer.bundle)
}

fn pattern(text: &str) -> Result<String, String> {
    match parts(text) {
        Some(_) => Ok(text.to_owned()),
        None => Err(
            "write `allow PRINCIPAL × ROUTE` for what becomes allowed, `deny …` for what no longer is, for example \
             `allow spiffe://prod.acme/ns/web/* × ledger:*`"
                .to_owned(),
        ),
    }
}
