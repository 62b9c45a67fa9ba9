//! `hoplite svid fetch|watch --write`: an SVID in files, once or kept fresh until told to stop.
//!
//! What happens to the files: while the agent is away they stay; where it refuses the identity for longer than
//! [`REFUSED_GRACE`] they go, since a program that starts now must not have it; what cannot be written or told is tried again.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use hoplite_host::backoff::{Backoff, jitter};
use hoplite_host::{clock, shutdown};
use hoplite_identity::{BundleSet, SpiffeId, X509Svid};
use hoplite_wire::{FetchError, Identity, WorkloadApi};
use serde_json::json;

use super::files::{Files, Layout};
use super::telling::{Listeners, Telling, Untold};
use crate::output::{Form, one_line, print};

/// How long an agent may refuse before the files go: an entry that is deleted and made anew costs nobody the files.
const REFUSED_GRACE: Duration = Duration::from_secs(5);

/// How soon something is tried again, and how seldom at most.
const AGAIN: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));

/// Which SVID, and where it is written.
#[derive(Debug, clap::Args)]
pub(crate) struct WriteArgs {
    /// Write certificate chain, key and trust bundle into files of this directory, as a set
    #[arg(long, value_name = "DIR")]
    write: Option<PathBuf>,
    /// Of several SVIDs the one with this SPIFFE ID [default: the agent's first]
    #[arg(long, value_name = "ID", conflicts_with = "hint")]
    spiffe_id: Option<SpiffeId>,
    /// Of several SVIDs the one whose entry has this hint
    #[arg(long)]
    hint: Option<String>,
    #[command(flatten)]
    layout: Layout,
}

/// What is in the files.
struct Written {
    chain: String,
    bundles: BundleSet,
    not_after: SystemTime,
}

struct Keeper<'a> {
    args: &'a WriteArgs,
    files: Files,
    telling: Telling,
    form: Form,
    written: Option<Written>,
    /// What came and is not in the files yet.
    pending: Option<(X509Svid, BundleSet)>,
    /// Whether somebody has to be told.
    untold: bool,
    /// Since when the agent refuses.
    refused: Option<SystemTime>,
    /// What was said last of what goes wrong.
    said: Option<String>,
}

// === impl WriteArgs ===

impl WriteArgs {
    /// Where to, if anywhere.
    pub(crate) fn dir(&self) -> Option<&Path> {
        self.write.as_deref()
    }

    /// Of what came only the SVID that was named, if one was.
    pub(crate) fn named(&self, identity: Identity) -> Result<Identity, FetchError> {
        if self.spiffe_id.is_none() && self.hint.is_none() {
            return Ok(identity);
        }
        let (svid, bundles) = self.choose(identity)?;
        Ok(Identity {
            svids: vec![svid],
            hints: vec![self.hint.clone().unwrap_or_default()],
            bundles,
        })
    }

    /// The SVID that is wanted, with its trust domain's bundle and those of foreign ones.
    fn choose(&self, identity: Identity) -> Result<(X509Svid, BundleSet), FetchError> {
        let Identity { svids, hints, bundles } = identity;
        let names: Vec<String> = svids.iter().map(|svid| svid.spiffe_id().to_string()).collect();
        let chosen = svids.into_iter().zip(hints).find(|(svid, hint)| {
            self.spiffe_id.as_ref().is_none_or(|id| id == svid.spiffe_id())
                && self.hint.as_ref().is_none_or(|wanted| wanted == hint)
        });
        let asked = match (&self.spiffe_id, &self.hint) {
            (Some(id), _) => format!("of `{id}`"),
            (None, hint) => format!("with the hint `{}`", hint.as_deref().unwrap_or_default()),
        };
        let (svid, _) = chosen.ok_or_else(|| {
            FetchError::Denied(format!(
                "it gives no SVID {asked} to this process, but {}",
                names.join(", ")
            ))
        })?;
        if bundles.get(svid.spiffe_id().trust_domain()).is_none() {
            return Err(FetchError::Unavailable(
                "there is no bundle of its trust domain".to_owned(),
            ));
        }
        Ok((svid, bundles))
    }
}

/// Writes once.
pub(crate) async fn once(args: &WriteArgs, address: &str, dir: &Path, form: Form) -> anyhow::Result<ExitCode> {
    let identity = async { WorkloadApi::open(address).await?.next().await };
    let chosen = identity.await.and_then(|identity| args.choose(identity));
    let (svid, bundles) = chosen.with_context(|| format!("nothing was written into `{}`", dir.display()))?;
    let files = Files::open(dir, &args.layout)?;
    files.put(&svid, &bundles)?;
    // Whoever ran this knows; a watch that comes later has nothing to tell of it.
    files.told()?;
    print(&report(&svid, &files, None, form))?;
    Ok(ExitCode::SUCCESS)
}

/// Writes whenever there is something new, until told to stop.
pub(crate) async fn keep(
    args: &WriteArgs,
    listeners: &Listeners,
    address: &str,
    dir: &Path,
    form: Form,
) -> anyhow::Result<ExitCode> {
    let mut keeper = Keeper {
        args,
        telling: listeners.find()?,
        files: Files::open(dir, &args.layout)?,
        form,
        written: None,
        pending: None,
        untold: false,
        refused: None,
        said: None,
    };
    tokio::select! {
        told = shutdown::terminated() => {
            told?;
            Ok(ExitCode::SUCCESS)
        }
        failed = keeper.run(address) => Err(failed),
    }
}

fn time(at: SystemTime) -> String {
    humantime::format_rfc3339_seconds(at).to_string()
}

/// One line about a set that was written.
fn report(svid: &X509Svid, files: &Files, told: Option<&str>, form: Form) -> String {
    let (id, until, dir) = (svid.spiffe_id(), time(svid.leaf().not_after()), files.dir().display());
    if form.is_json() {
        let line = json!({
            "spiffe_id": id.to_string(), "serial": svid.leaf().serial(), "not_after": until,
            "written": dir.to_string(), "told": told,
        });
        return format!("{line}\n");
    }
    let told = told.map(|told| format!("; {told}")).unwrap_or_default();
    format!("{id} until {until} is in {dir}{told}\n")
}

// === impl Written ===

impl Written {
    fn of(svid: &X509Svid, bundles: &BundleSet) -> Self {
        Self {
            chain: svid.chain_pem(),
            bundles: bundles.clone(),
            not_after: svid.leaf().not_after(),
        }
    }
}

// === impl Keeper ===

impl Keeper<'_> {
    /// Goes on until it makes no sense any more.
    async fn run(&mut self, address: &str) -> anyhow::Error {
        let mut backoff = AGAIN;
        loop {
            let ended = match WorkloadApi::open(address).await {
                Ok(api) => self.follow(api, &mut backoff).await,
                Err(error) => Err(error.into()),
            };
            let Err(error) = ended;
            match error.downcast::<FetchError>() {
                Ok(error @ FetchError::Address(_)) => return error.into(),
                Ok(FetchError::Denied(why)) => self.is_refused(&why),
                Ok(error) => self.is_away(&error),
                Err(other) => return other,
            }
            tokio::time::sleep(backoff.failed(jitter())).await;
        }
    }

    /// Takes what comes on one stream, and tries again what did not work, until the stream ends.
    async fn follow(
        &mut self,
        mut api: WorkloadApi,
        backoff: &mut Backoff,
    ) -> anyhow::Result<std::convert::Infallible> {
        let (mut again, mut wait) = (AGAIN, Duration::ZERO);
        loop {
            let is_due = self.pending.is_some() || self.untold;
            tokio::select! {
                next = api.next() => {
                    let chosen = self.args.choose(next?)?;
                    backoff.succeeded();
                    (again, wait) = (AGAIN, Duration::ZERO);
                    self.take(chosen);
                }
                () = tokio::time::sleep(wait), if is_due => {
                    wait = if self.act().await? { Duration::ZERO } else { again.failed(jitter()) };
                }
            }
        }
    }

    fn take(&mut self, (svid, bundles): (X509Svid, BundleSet)) {
        self.refused = None;
        if self.written.is_none() && self.files.has(&svid, &bundles) {
            // Written by whoever was here before. What they had no time to tell is told now.
            let _ = print(&report(&svid, &self.files, None, self.form));
            self.written = Some(Written::of(&svid, &bundles));
            self.untold = !self.telling.is_empty() && !self.files.is_told();
        }
        let is_new = self
            .written
            .as_ref()
            .is_none_or(|written| written.chain != svid.chain_pem() || written.bundles != bundles);
        self.pending = is_new.then_some((svid, bundles));
        if !is_new {
            self.said = None;
        }
    }

    /// Writes what is pending, and tells who has not been told. Whether all is done.
    async fn act(&mut self) -> anyhow::Result<bool> {
        if let Some((svid, bundles)) = &self.pending {
            if let Err(error) = self.files.put(svid, bundles) {
                self.warn(one_line(&error));
                return Ok(false);
            }
            self.written = Some(Written::of(svid, bundles));
            self.untold = !self.telling.is_empty();
        }
        let told = if self.untold {
            match self.telling.tell(self.files.dir()).await {
                Ok(told) => Some(told),
                Err(gone @ Untold::Gone(_)) => return Err(gone.into()),
                Err(untold) => {
                    self.say_written(None);
                    self.warn(format!("{untold}; it is tried again"));
                    return Ok(false);
                }
            }
        } else {
            None
        };
        if self.untold
            && let Err(error) = self.files.told()
        {
            // They are told once more when the next one begins.
            self.warn(one_line(&error));
        }
        self.untold = false;
        self.said = None;
        if self.pending.is_none() {
            hoplite_host::tell!("at last: {}", told.unwrap_or_default());
            return Ok(true);
        }
        self.say_written(told.as_deref());
        Ok(true)
    }

    fn say_written(&mut self, told: Option<&str>) {
        if let Some((svid, _)) = self.pending.take() {
            // It goes on for the files' sake, whoever reads this.
            let _ = print(&report(&svid, &self.files, told, self.form));
        }
    }

    /// The files stay, and everybody may know how long they are good.
    fn is_away(&mut self, error: &FetchError) {
        let files = match &self.written {
            Some(written) if written.not_after > clock::now() => {
                format!("the files stay, and are good until {}", time(written.not_after))
            }
            Some(written) => format!("the files stay, and ended at {}", time(written.not_after)),
            None => format!("nothing has been written into `{}` yet", self.files.dir().display()),
        };
        self.warn(format!("{error}; {files}"));
    }

    /// Nobody who starts now shall have the identity.
    fn is_refused(&mut self, why: &str) {
        let now = clock::now();
        let since = *self.refused.get_or_insert(now);
        if now.duration_since(since).is_ok_and(|passed| passed < REFUSED_GRACE) {
            let grace = humantime::format_duration(REFUSED_GRACE);
            return self.warn(format!(
                "the agent refused an identity: {why}; unless it gives one, the files go in {grace}"
            ));
        }
        match self.files.withdraw() {
            Ok(()) => {
                self.written = None;
                self.pending = None;
                self.untold = false;
                let dir = self.files.dir().display().to_string();
                self.warn(format!(
                    "the agent refused an identity: {why}; certificate, key and bundle were removed from `{dir}`"
                ));
            }
            Err(error) => self.warn(format!(
                "the agent refused an identity, and the files cannot be removed: {}",
                one_line(&error)
            )),
        }
    }

    /// Once, until something else is to be said.
    fn warn(&mut self, text: String) {
        if self.said.as_ref() != Some(&text) {
            hoplite_host::tell!("warning: {text}");
            self.said = Some(text);
        }
    }
}
