//! Which policy is in force: whole snapshots, swapped at once, from a directory or from signed bundles.
//!
//! A directory is for one machine and for the time before the first bundle. From the first bundle on only bundles count:
//! a file on the node can no longer change what the security team has signed. Whatever is refused leaves the old policy in
//! force and is named in the status.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;
use std::{io, mem};

use arc_swap::ArcSwap;
use hoplite_identity::TrustDomain;
use hoplite_policy::bundle::{
    Acceptance, BUNDLE_BYTES_MAX, Bundle, EngineVersion, KNOWN_CRITICAL, Manifest, Refused, Seen, Stage,
};
use hoplite_policy::grant::{Grant, GrantRefused};
use hoplite_policy::{Fault, Snapshot, Source};
use hoplite_seal::TrustedSigners;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::directory::{Directory, Follower};
use crate::keeper::Kept;
use crate::policy_files::{has_policies, no_policies};

/// Whose bundles are believed, and for what.
#[derive(Debug, Clone)]
pub struct BundleTrust {
    /// The security team's keys.
    pub signers: TrustedSigners,
    /// Whose policies these have to be.
    pub trust_domain: TrustDomain,
    /// The engine that decides here: [`BundleTrust::new`] says this one; tests say others.
    pub engine: EngineVersion,
    /// The features it knows.
    pub known_critical: &'static [&'static str],
}

/// All that is in force at one moment.
#[derive(Debug)]
pub struct InForce {
    live: Arc<Snapshot>,
    shadow: Option<Arc<Snapshot>>,
    bundle: Option<BundleFacts>,
}

/// What records say of a bundle.
#[derive(Debug, Clone, Copy)]
struct BundleFacts {
    revision: u64,
    manifest: [u8; 32],
    expires: SystemTime,
}

/// For people.
#[derive(Debug, Clone)]
pub struct PolicyStatus {
    /// When what is in force was put there.
    pub loaded_at: SystemTime,
    /// What was refused since, or keeps the files of the moment from being in force; empty when nothing does.
    pub faults: Vec<Fault>,
    /// The ids of the break-glass grants in force, each with its end.
    pub grants: Vec<(String, SystemTime)>,
    /// Who signed the bundle in force.
    pub signed_by: Vec<String>,
}

/// What is in force, where it came from, and who wants to hear of changes.
pub struct PolicyFeed {
    current: ArcSwap<InForce>,
    parts: Mutex<Parts>,
    epoch: watch::Sender<u64>,
    /// Of its own, so that whoever asks does not wait for a compilation.
    status: Mutex<PolicyStatus>,
    kept: Kept,
    trust: Option<BundleTrust>,
}

/// What is in force, in parts: each may be replaced while the others stay.
struct Parts {
    /// The last good files of the directory.
    directory: Option<Vec<Source>>,
    live: Option<Bundle>,
    shadow: Option<Bundle>,
    shadow_seen: Option<Seen>,
    grants: Vec<Grant>,
    /// The revision whose expiry was announced.
    expired: Option<u64>,
}

// === impl BundleTrust ===

impl BundleTrust {
    /// Trust of this engine in these signers.
    pub fn new(signers: TrustedSigners, trust_domain: TrustDomain) -> Self {
        Self {
            signers,
            trust_domain,
            engine: EngineVersion::THIS,
            known_critical: KNOWN_CRITICAL,
        }
    }

    fn acceptance(&self, highest_seen: Option<Seen>, now: SystemTime) -> Acceptance<'_> {
        Acceptance {
            signers: &self.signers,
            trust_domain: &self.trust_domain,
            highest_seen,
            now,
            engine_version: self.engine,
            known_critical: self.known_critical,
            max_bytes: BUNDLE_BYTES_MAX,
        }
    }
}

// === impl InForce ===

impl InForce {
    /// The policy that decides.
    pub fn live(&self) -> &Arc<Snapshot> {
        &self.live
    }

    /// The policy that is tried beside it, and decides nothing.
    pub fn shadow(&self) -> Option<&Arc<Snapshot>> {
        self.shadow.as_ref()
    }

    /// The revision of the bundle it came in; none for a directory.
    pub fn bundle_revision(&self) -> Option<u64> {
        self.bundle.map(|bundle| bundle.revision)
    }

    /// SHA-256 of that bundle's manifest.
    pub fn bundle_manifest(&self) -> Option<[u8; 32]> {
        self.bundle.map(|bundle| bundle.manifest)
    }

    /// From when it is stale; never for a directory.
    pub fn expires(&self) -> Option<SystemTime> {
        self.bundle.map(|bundle| bundle.expires)
    }

    /// Whether it has expired. It stays in force, and says so in every record.
    pub fn stale(&self, now: SystemTime) -> bool {
        self.expires().is_some_and(|expires| now >= expires)
    }
}

// === impl PolicyFeed ===

impl PolicyFeed {
    /// A feed that goes on with what `state_dir` has kept, and waits for bundles. Without one, everything is denied.
    pub fn new(state_dir: &Path, trust: Option<BundleTrust>, now: SystemTime) -> Self {
        let nothing = Snapshot::deny_all("no policy has been loaded yet");
        let feed = Self {
            current: ArcSwap::from_pointee(InForce {
                live: Arc::new(nothing),
                shadow: None,
                bundle: None,
            }),
            parts: Mutex::new(Parts {
                directory: None,
                live: None,
                shadow: None,
                shadow_seen: None,
                grants: Vec::new(),
                expired: None,
            }),
            status: Mutex::new(PolicyStatus {
                loaded_at: now,
                faults: Vec::new(),
                grants: Vec::new(),
                signed_by: Vec::new(),
            }),
            epoch: watch::Sender::new(0),
            kept: Kept::new(state_dir),
            trust,
        };
        feed.go_on_with_kept_bundle(now);
        feed
    }

    /// Loads the directory and follows it on a thread of its own, until there is a bundle. If the directory is missing or
    /// broken, its last good content goes on; without one, everything is denied and the reason said.
    pub fn follow(self: &Arc<Self>, directory: PathBuf) -> io::Result<Follower> {
        Directory::new(directory).follow(self.clone())
    }

    /// What is in force.
    pub fn in_force(&self) -> Arc<InForce> {
        self.current.load_full()
    }

    /// Counts what came in force. What was decided after this was asked, was decided by a policy at least as new.
    pub fn epoch(&self) -> u64 {
        *self.epoch.borrow()
    }

    /// Changes with everything that comes in force, after it is.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.epoch.subscribe()
    }

    /// For people.
    pub fn status(&self) -> PolicyStatus {
        self.told().clone()
    }

    /// The revisions of the live and the shadow bundle that are held; 0 for none.
    pub fn revisions(&self) -> (u64, u64) {
        let parts = self.parts();
        let revision = |bundle: &Option<Bundle>| bundle.as_ref().map_or(0, |bundle| bundle.manifest().revision);
        (revision(&parts.live), revision(&parts.shadow))
    }

    /// Whether a bundle was ever accepted: then a directory no longer counts.
    pub(crate) fn has_bundle(&self) -> bool {
        self.kept.bundle().is_some()
    }

    /// Verifies, compiles and puts in force a bundle, live or shadow as it says itself.
    ///
    /// # Errors
    /// Why not; the old one stays, and the status says it too. A bundle that is held already is no error.
    pub fn offer(&self, bytes: &[u8], now: SystemTime) -> Result<(), String> {
        let offered = self.accept(bytes, now);
        if let Err(reason) = &offered {
            self.refuse("bundle", reason);
        }
        offered
    }

    fn accept(&self, bytes: &[u8], now: SystemTime) -> Result<(), String> {
        let trust = self.trust.as_ref().ok_or(
            "a policy bundle came, but no signer is trusted here; name the security team's keys in `policy_signers`",
        )?;
        // INVARIANT: one offer at a time; what was seen last cannot change between the check and the swap.
        let mut parts = self.parts();
        let claimed = Manifest::danger_of_bundle(bytes, BUNDLE_BYTES_MAX).map_err(|refused| refused.to_string())?;
        let shadow = claimed.stage == Stage::Shadow;
        let seen = if shadow {
            parts.shadow_seen
        } else {
            parts.live.as_ref().map(|bundle| bundle.seen())
        };
        let bundle = match Bundle::open(bytes, &trust.acceptance(seen, now)) {
            Ok(bundle) => bundle,
            Err(Refused::AlreadyHave(_)) => return Ok(()),
            Err(refused) => return Err(refused.to_string()),
        };
        if shadow {
            // It is mostly what is in force.
            let snapshot = self.in_force().live.recompile(bundle.sources()).map_err(first)?;
            parts.shadow_seen = Some(bundle.seen());
            parts.shadow = Some(bundle);
            let in_force = self.in_force();
            self.swap(&mut parts, in_force.live.clone(), Some(Arc::new(snapshot)), now);
            return Ok(());
        }
        let before = parts.live.replace(bundle);
        match self.compile(&parts) {
            Ok(snapshot) => {
                let shadow = self.in_force().shadow.clone();
                self.kept.keep_bundle(bytes);
                self.swap(&mut parts, Arc::new(snapshot), shadow, now);
                Ok(())
            }
            Err(faults) => {
                parts.live = before;
                Err(first(faults))
            }
        }
    }

    /// There is no shadow any more.
    pub fn clear_shadow(&self, now: SystemTime) {
        let mut parts = self.parts();
        if parts.shadow.take().is_some() {
            let live = self.in_force().live.clone();
            self.swap(&mut parts, live, None, now);
        }
    }

    /// All break-glass grants there are. One that is refused is left out and named in the status.
    pub fn offer_grants(&self, grants: &[impl AsRef<[u8]>], now: SystemTime) {
        let Some(trust) = &self.trust else { return };
        let mut refused = Vec::new();
        let mut opened = Vec::new();
        for bytes in grants {
            match Grant::open(bytes.as_ref(), &trust.signers, &trust.trust_domain, now) {
                Ok(grant) => opened.push(grant),
                // It was told of when it began; its end is in the grant.
                Err(GrantRefused::Expired(_)) => {}
                Err(reason) => refused.push(reason.to_string()),
            }
        }
        let mut parts = self.parts();
        if opened != parts.grants {
            for grant in opened.iter().filter(|grant| !parts.grants.contains(grant)) {
                let (id, signed_by) = (&grant.draft().id, grant.signed_by().join(" and "));
                let until = humantime::format_rfc3339_seconds(grant.until()).to_string();
                warn!(notice = true, id, signed_by, until, "BREAK-GLASS: a grant is in force");
            }
            refused.extend(self.replace_grants(&mut parts, opened, now).err());
        }
        drop(parts);
        for reason in refused {
            self.refuse("grant", &reason);
        }
    }

    /// Takes the grants away that are over, announces that the bundle has expired, and says when the next of these will be.
    /// Permits end by themselves then, but only for who is decided then: what was let in before hears of it as of any
    /// change.
    pub(crate) fn end_what_is_over(&self, now: SystemTime) -> Option<SystemTime> {
        let mut parts = self.parts();
        let (left, over): (Vec<_>, Vec<_>) = parts.grants.iter().cloned().partition(|grant| now < grant.until());
        if !over.is_empty() {
            for grant in &over {
                let id = &grant.draft().id;
                warn!(notice = true, id, "BREAK-GLASS: a grant has ended");
            }
            if let Err(reason) = self.replace_grants(&mut parts, left, now) {
                drop(parts);
                self.refuse("grant", &reason);
                parts = self.parts();
            }
        }
        let bundle = self.in_force().bundle;
        let (expired, left): (Vec<_>, Vec<_>) = bundle.into_iter().partition(|bundle| bundle.expires <= now);
        for bundle in expired {
            // Where a stale policy denies, this is what ends what it let in.
            if parts.expired.replace(bundle.revision) != Some(bundle.revision) {
                warn!(
                    notice = true,
                    bundle = bundle.revision,
                    "the policy bundle has expired; publish a new one"
                );
                self.epoch.send_modify(|epoch| *epoch += 1);
            }
        }
        let expiries = left.iter().map(|bundle| bundle.expires);
        parts.grants.iter().map(Grant::until).chain(expiries).min()
    }

    /// Puts these grants in the place of those there are. When that cannot be, those of before that are among them stay:
    /// what was taken back is over in any case, and if there is no policy without it, everything is denied.
    fn replace_grants(&self, parts: &mut Parts, grants: Vec<Grant>, now: SystemTime) -> Result<(), String> {
        let shadow = self.in_force().shadow.clone();
        let before = mem::replace(&mut parts.grants, grants);
        let faults = match self.compile(parts) {
            Ok(snapshot) => {
                self.swap(parts, Arc::new(snapshot), shadow, now);
                return Ok(());
            }
            Err(faults) => faults,
        };
        let wanted = mem::take(&mut parts.grants);
        let stay: Vec<_> = before.iter().filter(|grant| wanted.contains(grant)).cloned().collect();
        if stay.len() == before.len() {
            parts.grants = before;
        } else {
            parts.grants = stay;
            let snapshot = self.compile(parts).unwrap_or_else(|_| {
                parts.grants.clear();
                Snapshot::deny_all("the policy cannot be compiled without a grant that was taken back")
            });
            self.swap(parts, Arc::new(snapshot), shadow, now);
        }
        Err(first(faults))
    }

    /// The directory's files of the moment, or why they cannot be read.
    pub(crate) fn offer_directory(&self, path: &Path, sources: Result<Vec<Source>, String>, now: SystemTime) {
        let mut parts = self.parts();
        if parts.live.is_some() || self.has_bundle() {
            if sources.is_ok() {
                warn!(
                    directory = %path.display(),
                    "policy comes in signed bundles now; the directory is no longer read: publish what changed there"
                );
            }
            return;
        }
        let shadow = self.in_force().shadow.clone();
        let faults = match sources {
            // Taken away on purpose: then the last good one must not come back either.
            Ok(sources) if !has_policies(&sources) => {
                self.kept.forget_directory();
                parts.directory = None;
                let nothing = Arc::new(Snapshot::deny_all(no_policies(path)));
                return self.swap(&mut parts, nothing, shadow, now);
            }
            Ok(sources) => {
                let before = parts.directory.replace(sources);
                match self.compile(&parts) {
                    Ok(snapshot) => {
                        self.kept.keep_directory(parts.directory.as_deref().unwrap_or_default());
                        return self.swap(&mut parts, Arc::new(snapshot), shadow, now);
                    }
                    Err(faults) => {
                        parts.directory = before;
                        faults
                    }
                }
            }
            Err(reason) => vec![Fault::whole(path.display().to_string(), reason)],
        };
        if parts.directory.is_none() {
            // At start the last one kept, or one that denies everything and can say why.
            parts.directory = self.kept.directory();
            let kept = parts.directory.is_some().then(|| self.compile(&parts));
            match kept {
                Some(Ok(snapshot)) => self.swap(&mut parts, Arc::new(snapshot), shadow, now),
                _ => {
                    parts.directory = None;
                    let first = faults.first().map(ToString::to_string).unwrap_or_default();
                    let nothing = Snapshot::deny_all(format!("the policy set is rejected: {first}"));
                    self.swap(&mut parts, Arc::new(nothing), shadow, now);
                }
            }
        }
        let in_force = self.in_force();
        for fault in &faults {
            warn!(
                notice = true,
                in_force = in_force.live.revision(),
                "policy rejected: {fault}"
            );
        }
        self.told().faults = faults;
    }

    fn go_on_with_kept_bundle(&self, now: SystemTime) {
        let Some(kept) = self.kept.bundle() else { return };
        let opened = kept.and_then(|bytes| {
            let trust = self
                .trust
                .as_ref()
                .ok_or("`policy_signers` is empty, and a bundle has been in force here")?;
            let bundle =
                Bundle::open_kept(&bytes, &trust.acceptance(None, now)).map_err(|refused| refused.to_string())?;
            match bundle.manifest().stage {
                Stage::Live => Ok(bundle),
                stage => Err(format!("it is a {stage} bundle, which may not decide")),
            }
        });
        let mut parts = self.parts();
        let compiled = opened.and_then(|bundle| {
            parts.live = Some(bundle);
            self.compile(&parts).map_err(first)
        });
        let snapshot = compiled.unwrap_or_else(|reason| {
            // Not the directory: whoever can spoil one file must not be able to choose the policy.
            parts.live = None;
            Snapshot::deny_all(format!("the kept bundle cannot be used: {reason}"))
        });
        self.swap(&mut parts, Arc::new(snapshot), None, now);
    }

    /// The live policy of these parts, with a permit for each grant.
    fn compile(&self, parts: &Parts) -> Result<Snapshot, Vec<Fault>> {
        let sources = match (&parts.live, &parts.directory) {
            (Some(bundle), _) => bundle.sources(),
            (None, Some(sources)) => sources,
            (None, None) => return Ok(Snapshot::deny_all("no policy has been loaded yet")),
        };
        let before = self.in_force();
        if parts.grants.is_empty() {
            return before.live.recompile(sources);
        }
        let grants = parts.grants.iter().map(Grant::policy_source);
        before
            .live
            .recompile(&sources.iter().cloned().chain(grants).collect::<Vec<_>>())
    }

    fn swap(&self, parts: &mut Parts, live: Arc<Snapshot>, shadow: Option<Arc<Snapshot>>, now: SystemTime) {
        let before = self.in_force();
        let live = if Arc::ptr_eq(&live, &before.live) {
            live
        } else {
            let (revision, policies) = (live.revision(), live.policy_ids().len());
            let bundle = parts.live.as_ref().map(|bundle| bundle.manifest().revision);
            match live.deny_all_reason() {
                Some(reason) => warn!(notice = true, reason, "every request is denied"),
                None => info!(notice = true, revision, policies, bundle, "policy in force"),
            }
            // Nobody else has it yet, so this does not copy.
            match Arc::try_unwrap(live) {
                Ok(mut live) => {
                    live.count_on(&before.live);
                    Arc::new(live)
                }
                Err(shared) => shared,
            }
        };
        let bundle = parts.live.as_ref().map(|bundle| BundleFacts {
            revision: bundle.manifest().revision,
            manifest: bundle.seen().manifest.0,
            expires: SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(bundle.manifest().expires),
        });
        let grants = parts
            .grants
            .iter()
            .map(|grant| (grant.policy_id(), grant.until()))
            .collect();
        *self.told() = PolicyStatus {
            loaded_at: now,
            faults: Vec::new(),
            grants,
            signed_by: parts
                .live
                .as_ref()
                .map(|bundle| bundle.signed_by().to_vec())
                .unwrap_or_default(),
        };
        // INVARIANT: in force before announced. A connection that subscribed before it was decided hears of every
        // snapshot that its decision did not see.
        self.current.store(Arc::new(InForce { live, shadow, bundle }));
        self.epoch.send_modify(|epoch| *epoch += 1);
    }

    fn refuse(&self, what: &str, reason: &str) {
        warn!(
            notice = true,
            in_force = self.in_force().live.revision(),
            "policy rejected: {reason}"
        );
        let mut status = self.told();
        status.faults.retain(|fault| fault.file != what);
        status.faults.push(Fault::whole(what, reason));
    }

    fn parts(&self) -> MutexGuard<'_, Parts> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn told(&self) -> MutexGuard<'_, PolicyStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn first(faults: Vec<Fault>) -> String {
    let more = faults.len().saturating_sub(1);
    let first = faults
        .into_iter()
        .next()
        .map(|fault| fault.to_string())
        .unwrap_or_default();
    if more == 0 {
        first
    } else {
        format!("{first} (and {more} more)")
    }
}

#[cfg(test)]
mod tests;
