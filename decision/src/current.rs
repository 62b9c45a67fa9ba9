//! Which policy is in force: whole snapshots, swapped at once, from a directory or from signed bundles.
//!
//! A directory is for one machine and for the time before the first bundle. From the first bundle on only bundles count:
//! a file on the node can no longer change what the security team has signed. Whatever is refused leaves the old policy in
//! force and is named in the status.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use hoplite_host::clock;
use hoplite_identity::TrustDomain;
use hoplite_policy::bundle::{Refused, Stage};
use hoplite_policy::holding::{
    Examined, HeldGrant, Holding, KeptPolicy, NotRestored, NotTaken, PolicyTrust, Unreadable,
};
use hoplite_policy::{Fault, Snapshot, Source};
use hoplite_seal::{Hash, SignerChain};
use hoplite_telemetry::Contact;
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::directory::{Directory, Follower};
use crate::files_error::FilesError;
use crate::keeper::{DirectoryKeeper, Keeper};
use crate::policy_files::has_policies;
use crate::signers::Signers;

/// What could not be kept is tried again after this time: a disk may be full for a while.
const KEEP_AGAIN: Duration = Duration::from_secs(5);

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
    /// The version of the signers that are followed; none where the configuration names them, or nobody is believed.
    pub signers_version: Option<u64>,
    /// What somebody has to look at, until it is mended: an unsigned directory decides though there is a signed bundle, or
    /// signers were offered that do not follow those before.
    pub alarms: Vec<String>,
}

/// The policy in force, where it came from, and who wants to hear of changes.
pub struct CurrentPolicy {
    current: ArcSwap<InForce>,
    parts: Mutex<Parts>,
    epoch: watch::Sender<u64>,
    /// With who sends signed policy.
    contact: Contact,
    /// Counts how often a configuration has said anew whom to believe.
    believed: watch::Sender<u64>,
    /// Of its own, so that whoever asks does not wait for a compilation.
    status: Mutex<PolicyStatus>,
}

/// Why a bundle that was offered is not in force.
#[derive(Debug, thiserror::Error)]
pub enum NotInForce {
    /// It is not believed.
    #[error(transparent)]
    NotTaken(#[from] NotTaken),
    /// Its policies cannot be enforced.
    #[error(transparent)]
    Unusable(#[from] Unusable),
}

/// Why a directory cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryUnusable {
    /// Its files cannot be read.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// Its policies cannot be enforced.
    #[error(transparent)]
    Unusable(#[from] Unusable),
}

/// What is wrong with policies: the first fault, and how many more there are.
#[derive(Debug, thiserror::Error)]
#[error("{}", told(.0))]
pub struct Unusable(Vec<Fault>);

/// What is in force, in parts: each may be replaced while the others stay.
struct Parts {
    holding: Holding,
    /// The agent's own decisions have none: what they hold is what the agent keeps.
    keeper: Option<Keeper>,
    /// The keeper could not write all of it down yet.
    unkept: bool,
    /// The last good files of the directory.
    directory: Option<Vec<Source>>,
    directory_keeper: DirectoryKeeper,
    /// Which directory is followed. What another one says came too late.
    following: Option<PathBuf>,
    /// Whom to believe, where the configuration does not say it.
    signers: Option<Signers>,
    /// Others are believed than when what is held was verified.
    doubted: bool,
    /// Why there is a signed bundle and the directory decides all the same.
    unsigned_because: Option<String>,
    /// Why signers that were offered are not followed.
    signers_refused: Option<String>,
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

// === impl CurrentPolicy ===

impl CurrentPolicy {
    /// Goes on with what `state_dir` has kept, and waits for bundles. Without one, everything is denied.
    pub fn new(state_dir: &Path, trust: Option<PolicyTrust>, now: SystemTime) -> Self {
        Self::open(state_dir, trust, None, now)
    }

    /// As [`new`](Self::new), for whoever is told by nobody's configuration whom to believe: the signers that the agent
    /// names first, kept in `state_dir`, and from then on whomever a quorum of those before has signed for.
    pub fn following_signers(state_dir: &Path, now: SystemTime) -> Self {
        let signers = match Signers::open(state_dir, None) {
            Ok((signers, doubt)) => {
                if let Some(doubt) = doubt {
                    error!(notice = true, "{doubt}");
                }
                Some(signers)
            }
            Err(bad) => {
                error!(notice = true, "{bad}");
                None
            }
        };
        let trust = signers.as_ref().and_then(Signers::trust);
        Self::open(state_dir, trust, signers, now)
    }

    fn open(state_dir: &Path, trust: Option<PolicyTrust>, signers: Option<Signers>, now: SystemTime) -> Self {
        let (keeper, kept) = match Keeper::open(state_dir) {
            Ok((keeper, kept)) => (Some(keeper), kept),
            Err(error) => {
                warn!(
                    notice = true,
                    %error,
                    "what was kept of signed policy cannot be read: what comes now is in force, and is not kept until `state_dir` is mended and this process started again"
                );
                // Nobody knows what was accepted, so nothing unsigned may decide.
                let live = Some(Err(Unreadable::of(error)));
                (
                    None,
                    KeptPolicy {
                        live,
                        ..KeptPolicy::default()
                    },
                )
            }
        };
        let (holding, lost) = Holding::restore(trust, kept, now);
        for why in lost {
            warn!(notice = true, "signed policy that was kept is not used: {why}");
        }
        Self::begin(state_dir, holding, keeper, signers, now)
    }

    /// Begins with what another holding of this process has verified and keeps, and is told of its changes by
    /// [`follow_holding`](Self::follow_holding). In `state_dir` lies the last good directory.
    pub fn beside(state_dir: &Path, holding: Holding, now: SystemTime) -> Self {
        Self::begin(state_dir, holding, None, None, now)
    }

    fn begin(
        state_dir: &Path,
        holding: Holding,
        keeper: Option<Keeper>,
        signers: Option<Signers>,
        now: SystemTime,
    ) -> Self {
        let nothing = Snapshot::deny_all("no policy has been loaded yet");
        let policy = Self {
            current: ArcSwap::from_pointee(InForce {
                live: Arc::new(nothing),
                shadow: None,
                bundle: None,
            }),
            parts: Mutex::new(Parts {
                holding,
                keeper,
                unkept: false,
                directory: None,
                directory_keeper: DirectoryKeeper::new(state_dir),
                following: None,
                signers,
                doubted: false,
                unsigned_because: None,
                signers_refused: None,
            }),
            status: Mutex::new(PolicyStatus {
                loaded_at: now,
                faults: Vec::new(),
                grants: Vec::new(),
                signed_by: Vec::new(),
                signers_version: None,
                alarms: Vec::new(),
            }),
            epoch: watch::Sender::new(0),
            contact: Contact::default(),
            believed: watch::Sender::new(0),
        };
        policy.go_on(&mut policy.parts(), now);
        policy.tell_alarms(&policy.parts());
        policy
    }

    /// Brings in force what is held from before.
    fn go_on(&self, parts: &mut Parts, now: SystemTime) {
        if !parts.holding.ever_signed() {
            return;
        }
        let held = match (parts.holding.live(), parts.holding.lost(Stage::Live)) {
            (Some(live), _) => self
                .compile(Some(live.sources()), parts.holding.grants())
                .map_err(|unusable| unusable.to_string()),
            (None, Some(lost)) => Err(lost.to_string()),
            (None, None) => Err("it is gone".to_owned()),
        };
        let live = held.unwrap_or_else(|reason| {
            // Not the directory: whoever can spoil one file must not be able to choose the policy.
            Snapshot::deny_all(format!("the kept bundle cannot be used: {reason}"))
        });
        let shadow = parts.holding.shadow().map(|shadow| live.recompile(shadow.sources()));
        // One that cannot be tried is as good as none.
        let shadow = shadow.and_then(Result::ok).map(Arc::new);
        self.swap(parts, Arc::new(live), shadow, now);
    }

    /// Loads the directory and follows it on a thread of its own, until there is a bundle. If the directory is missing or
    /// broken, its last good content goes on; without one, everything is denied and the reason said. The directory followed
    /// before has no say from then on.
    ///
    /// # Errors
    /// There is no thread for it.
    pub fn follow(self: &Arc<Self>, directory: PathBuf) -> io::Result<Follower> {
        let policy = self.clone();
        let before = self.parts().following.replace(directory.clone());
        let following =
            Directory::new(directory).follow(move |path, sources| policy.offer_directory(path, sources, clock::now()));
        following.inspect_err(|_| self.parts().following = before)
    }

    /// Whether the files of a directory could be followed now. Nothing changes.
    ///
    /// # Errors
    /// They cannot be read, or not be in force.
    pub fn try_directory(&self, directory: &Path) -> Result<(), DirectoryUnusable> {
        let sources = Directory::new(directory.to_owned()).read()?;
        if !has_policies(&sources) {
            return Err(FilesError::NoPolicies(directory.to_owned()).into());
        }
        let grants = self.parts().holding.grants().to_vec();
        self.compile(Some(&sources), &grants)?;
        Ok(())
    }

    /// The configuration says anew whom to believe. What is held is verified again, and what others had signed comes again.
    pub fn believe(&self, trust: PolicyTrust, now: SystemTime) {
        let mut parts = self.parts();
        let names: Vec<&str> = trust.signers.names().collect();
        warn!(notice = true, signers = ?names, "signers of policy: the configuration names these from now on");
        parts.holding.believe(trust);
        (parts.signers, parts.signers_refused, parts.doubted) = (None, None, false);
        let gone = parts.holding.doubt(now);
        self.let_go(&mut parts, &gone, now);
        self.tell_alarms(&parts);
        drop(parts);
        self.believed.send_modify(|times| *times += 1);
    }

    /// Changes when the configuration says anew whom to believe.
    pub(crate) fn believed(&self) -> watch::Receiver<u64> {
        self.believed.subscribe()
    }

    /// Something else than policy has changed by which is decided: whatever was let in is decided again.
    pub(crate) fn decide_anew(&self) {
        self.epoch.send_modify(|epoch| *epoch += 1);
    }

    /// What is in force.
    pub fn in_force(&self) -> Arc<InForce> {
        self.current.load_full()
    }

    /// With who sends signed policy.
    pub fn contact(&self) -> &Contact {
        &self.contact
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

    /// The version and the digest of the signers that are followed; nothing where there are none.
    pub fn signers(&self) -> Option<(u64, Hash)> {
        let parts = self.parts();
        let chain = parts.signers.as_ref()?.chain()?;
        Some((chain.version(), chain.digest()))
    }

    /// The revisions of the live and the shadow bundle that are held; 0 for none.
    pub fn revisions(&self) -> (u64, u64) {
        let holding = &self.parts().holding;
        let revision = |stage| holding.bundle(stage).map_or(0, |bundle| bundle.revision());
        (revision(Stage::Live), revision(Stage::Shadow))
    }

    /// Verifies, compiles and puts in force a bundle, live or shadow as it says itself.
    ///
    /// # Errors
    /// Why not; the old one stays, and the status says it too. A bundle that is held already is no error.
    pub fn offer(&self, bytes: &[u8], now: SystemTime) -> Result<(), NotInForce> {
        self.accept(|holding| holding.examine(bytes, now), now)
    }

    /// Signer sets, in a row. Where nobody was believed yet they are the first; otherwise they must follow. What is held
    /// is verified again by [`doubt`](Self::doubt), after the bundles that came with them.
    pub fn offer_signers(&self, sets: &[impl AsRef<[u8]>], trust_domain: &TrustDomain) {
        let mut parts = self.parts();
        let Some(signers) = &mut parts.signers else {
            return; // the configuration says whom to believe
        };
        let first = signers.trust().is_none();
        match signers.follow(sets, trust_domain) {
            Ok(changed) => {
                parts.signers_refused = None;
                let trust = parts.signers.as_ref().and_then(Signers::trust);
                if let (true, Some(trust)) = (changed, trust) {
                    let version = parts
                        .signers
                        .as_ref()
                        .and_then(Signers::chain)
                        .map(SignerChain::version);
                    let names: Vec<&str> = trust.signers.names().collect();
                    if first {
                        info!(version, signers = ?names, "signers of policy: these are the first");
                    } else {
                        warn!(notice = true, version, signers = ?names, "signers of policy: these are believed from now on");
                    }
                    parts.holding.believe(trust);
                    parts.doubted = true;
                    parts.keep();
                }
            }
            Err(refused) => {
                error!(
                    notice = true,
                    "ALARM: signers of policy were offered and are not followed: {refused}"
                );
                parts.signers_refused = Some(format!("signers were offered and are not followed: {refused}"));
            }
        }
        self.tell_alarms(&parts);
    }

    /// Verifies again what is held, if others are believed than before.
    pub fn doubt(&self, now: SystemTime) {
        let mut parts = self.parts();
        if !std::mem::take(&mut parts.doubted) {
            return;
        }
        let gone = parts.holding.doubt(now);
        self.let_go(&mut parts, &gone, now);
    }

    /// Brings in force what is left after these were let go of.
    fn let_go(&self, parts: &mut Parts, gone: &[NotRestored], now: SystemTime) {
        if gone.is_empty() {
            return;
        }
        for why in gone {
            error!(
                notice = true,
                "signed policy that was in force is not believed any more: {why}"
            );
        }
        if parts.holding.ever_signed() {
            self.go_on(parts, now);
        } else {
            // Beside a directory there are only grants to go.
            let left = parts.holding.grants().to_vec();
            let _ = self.replace_grants(parts, left, now);
        }
        parts.keep();
    }

    /// Puts in force what another holding of this process holds. Nothing is verified again; what cannot be enforced is
    /// refused, and the status says so.
    pub fn follow_holding(&self, held: &Holding, now: SystemTime) {
        let mut parts = self.parts();
        let gone = parts.holding.follow_losses(held);
        self.let_go(&mut parts, &gone, now);
        drop(parts);
        for bundle in [held.live(), held.shadow()].into_iter().flatten() {
            // Refusals are in the log and in the status.
            let _ = self.accept(|own| own.examine_held(bundle).map_err(NotTaken::from), now);
        }
        if held.shadow().is_none() {
            self.clear_shadow(now);
        }
        self.take_grants(held.grants().to_vec(), now);
    }

    /// Examines a bundle, compiles it beside what else is held, and only then takes it: there is nothing to put back.
    fn accept(
        &self,
        examine: impl FnOnce(&Holding) -> Result<Examined, NotTaken>,
        now: SystemTime,
    ) -> Result<(), NotInForce> {
        // INVARIANT: one offer at a time; what was seen last cannot change between the check and the swap.
        let mut parts = self.parts();
        let accepted = match examine(&parts.holding) {
            Ok(examined) => self.take(&mut parts, examined, now),
            Err(NotTaken::Refused(Refused::AlreadyHave(_))) => Ok(()),
            Err(refused) => Err(refused.into()),
        };
        if let Err(refused) = &accepted
            && !parts.holding.ever_signed()
        {
            // From the first signed bundle on a directory has no say; this process only does not believe it.
            let why = format!("there is a signed bundle, and an unsigned directory decides here: {refused}");
            if parts.unsigned_because.as_ref() != Some(&why) {
                error!(notice = true, "ALARM: {why}");
            }
            parts.unsigned_because = Some(why);
            self.tell_alarms(&parts);
        }
        drop(parts);
        accepted.inspect_err(|refused| self.refuse("bundle", &refused.to_string()))
    }

    fn take(&self, parts: &mut Parts, examined: Examined, now: SystemTime) -> Result<(), NotInForce> {
        let in_force = self.in_force();
        let sources = examined.bundle().sources();
        let (live, shadow) = match examined.bundle().stage() {
            Stage::Live => {
                let live = self.compile(Some(sources), parts.holding.grants())?;
                (Arc::new(live), in_force.shadow.clone())
            }
            // It is mostly what is in force.
            Stage::Shadow => {
                let shadow = in_force.live.recompile(sources).map_err(Unusable)?;
                (in_force.live.clone(), Some(Arc::new(shadow)))
            }
        };
        parts.holding.take(examined).map_err(NotTaken::from)?;
        self.swap(parts, live, shadow, now);
        Ok(())
    }

    /// There is no shadow any more.
    pub fn clear_shadow(&self, now: SystemTime) {
        let mut parts = self.parts();
        if parts.holding.clear_shadow() {
            let live = self.in_force().live.clone();
            self.swap(&mut parts, live, None, now);
        }
    }

    /// All break-glass grants there are. One that is refused is left out and named in the status.
    pub fn offer_grants(&self, grants: &[impl AsRef<[u8]>], now: SystemTime) {
        let (sound, refused) = self
            .parts()
            .holding
            .examine_grants(grants.iter().map(AsRef::as_ref), now);
        self.take_grants(sound, now);
        for reason in refused {
            self.refuse("grant", &reason.to_string());
        }
    }

    fn take_grants(&self, grants: Vec<HeldGrant>, now: SystemTime) {
        let mut parts = self.parts();
        if grants == parts.holding.grants() {
            return;
        }
        for grant in grants.iter().filter(|grant| !parts.holding.grants().contains(grant)) {
            let (id, signed_by) = (&grant.draft().id, grant.signed_by().join(" and "));
            let until = humantime::format_rfc3339_seconds(grant.until()).to_string();
            warn!(notice = true, id, signed_by, until, "BREAK-GLASS: a grant is in force");
        }
        let replaced = self.replace_grants(&mut parts, grants, now);
        drop(parts);
        if let Err(unusable) = replaced {
            self.refuse("grant", &unusable.to_string());
        }
    }

    /// Takes the grants away that are over, announces that the bundle has expired, keeps what could not be kept before, and
    /// says when to look again. Permits end by themselves then, but only for who is decided then: what was let in before hears of it as of any
    /// change.
    pub(crate) fn end_what_is_over(&self, now: SystemTime) -> Option<SystemTime> {
        let mut parts = self.parts();
        let ended = parts.holding.end_what_is_over(now);
        for grant in &ended.grants {
            let id = &grant.draft().id;
            warn!(notice = true, id, "BREAK-GLASS: a grant has ended");
        }
        let mut unusable = None;
        if !ended.grants.is_empty() {
            let left = parts.holding.grants().to_vec();
            unusable = self.replace_grants(&mut parts, left, now).err();
        }
        if let Some(expired) = ended.expired {
            // Where a stale policy denies, this is what ends what it let in.
            warn!(
                notice = true,
                bundle = expired.revision(),
                "the policy bundle has expired; publish a new one"
            );
            self.epoch.send_modify(|epoch| *epoch += 1);
        }
        if parts.unkept {
            parts.keep();
        }
        let again = parts.unkept.then(|| now + KEEP_AGAIN);
        let next = parts.holding.next_end(now).into_iter().chain(again).min();
        drop(parts);
        if let Some(unusable) = unusable {
            self.refuse("grant", &unusable.to_string());
        }
        next
    }

    /// Puts these grants in the place of those there are. When that cannot be, those of before that are among them stay:
    /// what was taken back is over in any case, and if there is no policy without it, everything is denied.
    fn replace_grants(&self, parts: &mut Parts, grants: Vec<HeldGrant>, now: SystemTime) -> Result<(), Unusable> {
        let shadow = self.in_force().shadow.clone();
        let before = parts.holding.grants().to_vec();
        let unusable = match self.compile(parts.sources(), &grants) {
            Ok(snapshot) => {
                parts.holding.take_grants(grants);
                self.swap(parts, Arc::new(snapshot), shadow, now);
                return Ok(());
            }
            Err(unusable) => unusable,
        };
        let mut stay = before.clone();
        stay.retain(|grant| grants.contains(grant));
        // Nothing was taken back, unless it had ended before: then what is in force has it still.
        if stay.len() == before.len() && grants.len() > before.len() {
            return Err(unusable);
        }
        let snapshot = self.compile(parts.sources(), &stay).unwrap_or_else(|_| {
            stay.clear();
            Snapshot::deny_all("the policy cannot be compiled without a grant that was taken back")
        });
        parts.holding.take_grants(stay);
        self.swap(parts, Arc::new(snapshot), shadow, now);
        Err(unusable)
    }

    /// The directory's files of the moment, or why they cannot be read.
    pub(crate) fn offer_directory(&self, path: &Path, sources: Result<Vec<Source>, FilesError>, now: SystemTime) {
        let mut parts = self.parts();
        if parts.following.as_deref().is_some_and(|followed| followed != path) {
            return;
        }
        if parts.holding.ever_signed() {
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
                parts.directory_keeper.forget();
                parts.directory = None;
                let nothing = Snapshot::deny_all(FilesError::NoPolicies(path.to_owned()).to_string());
                return self.swap(&mut parts, Arc::new(nothing), shadow, now);
            }
            Ok(sources) => match self.compile(Some(&sources), parts.holding.grants()) {
                Ok(snapshot) => {
                    parts.directory_keeper.keep(&sources);
                    parts.directory = Some(sources);
                    return self.swap(&mut parts, Arc::new(snapshot), shadow, now);
                }
                Err(Unusable(faults)) => faults,
            },
            Err(error) => vec![Fault::whole(path.display().to_string(), error.to_string())],
        };
        if parts.directory.is_none() {
            // At start the last one kept, or one that denies everything and can say why.
            let kept = parts.directory_keeper.read();
            let compiled = kept
                .as_deref()
                .map(|kept| self.compile(Some(kept), parts.holding.grants()));
            let snapshot = match compiled {
                Some(Ok(snapshot)) => {
                    parts.directory = kept;
                    snapshot
                }
                _ => {
                    let first = faults.first().map(ToString::to_string).unwrap_or_default();
                    Snapshot::deny_all(format!("the policy set is rejected: {first}"))
                }
            };
            self.swap(&mut parts, Arc::new(snapshot), shadow, now);
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

    /// A live policy of these files, with a permit for each grant.
    fn compile(&self, sources: Option<&[Source]>, grants: &[HeldGrant]) -> Result<Snapshot, Unusable> {
        let Some(sources) = sources else {
            return Ok(Snapshot::deny_all("no policy has been loaded yet"));
        };
        let before = self.in_force();
        let compiled = if grants.is_empty() {
            before.live.recompile(sources)
        } else {
            let grants = grants.iter().map(|grant| grant.policy_source());
            let all: Vec<_> = sources.iter().cloned().chain(grants).collect();
            before.live.recompile(&all)
        };
        compiled.map_err(Unusable)
    }

    /// Puts in force what was compiled, keeps what is held, and tells everybody.
    fn swap(&self, parts: &mut Parts, live: Arc<Snapshot>, shadow: Option<Arc<Snapshot>>, now: SystemTime) {
        let before = self.in_force();
        let live = if Arc::ptr_eq(&live, &before.live) {
            live
        } else {
            let (revision, policies) = (live.revision(), live.policy_ids().len());
            let bundle = parts.holding.live().map(|bundle| bundle.revision());
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
        let bundle = parts.holding.live().map(|bundle| BundleFacts {
            revision: bundle.revision(),
            manifest: bundle.manifest_hash().0,
            expires: bundle.expires(),
        });
        let grants = parts.holding.grants().iter();
        if parts.holding.ever_signed() {
            parts.unsigned_because = None;
        }
        *self.told() = PolicyStatus {
            signers_version: parts.signers_version(),
            alarms: parts.alarms(),
            loaded_at: now,
            faults: Vec::new(),
            grants: grants.map(|grant| (grant.policy_id(), grant.until())).collect(),
            signed_by: parts
                .holding
                .live()
                .map(|bundle| bundle.signed_by().to_vec())
                .unwrap_or_default(),
        };
        // INVARIANT: in force before announced. A connection that subscribed before it was decided hears of every
        // snapshot that its decision did not see.
        self.current.store(Arc::new(InForce { live, shadow, bundle }));
        self.epoch.send_modify(|epoch| *epoch += 1);
        parts.keep();
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

    fn tell_alarms(&self, parts: &Parts) {
        let mut status = self.told();
        status.signers_version = parts.signers_version();
        status.alarms = parts.alarms();
    }

    fn parts(&self) -> MutexGuard<'_, Parts> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn told(&self) -> MutexGuard<'_, PolicyStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for CurrentPolicy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("CurrentPolicy")
            .field(&self.in_force().live.revision())
            .finish()
    }
}

// === impl Parts ===

impl Parts {
    /// What decides, without the grants.
    fn sources(&self) -> Option<&[Source]> {
        let live = self.holding.live().map(|bundle| bundle.sources());
        live.or(self.directory.as_deref().filter(|_| !self.holding.ever_signed()))
    }

    fn signers_version(&self) -> Option<u64> {
        self.signers.as_ref().and_then(Signers::chain).map(SignerChain::version)
    }

    fn alarms(&self) -> Vec<String> {
        self.unsigned_because
            .iter()
            .chain(&self.signers_refused)
            .cloned()
            .collect()
    }

    /// What cannot be kept is in force all the same, and is kept with the next change or the next look at the clock.
    fn keep(&mut self) {
        let signers = self.signers.as_mut().map_or(Ok(()), Signers::keep);
        let holding = self.keeper.as_mut().map_or(Ok(()), |keeper| keeper.keep(&self.holding));
        let kept = signers.and(holding);
        let before = std::mem::replace(&mut self.unkept, kept.is_err());
        match kept {
            // Once is enough: it is tried every few seconds.
            Err(error) if !before => warn!(
                notice = true,
                %error,
                "the policy in force is not kept for the next start; it is tried again every few seconds"
            ),
            Ok(()) if before => info!(notice = true, "the policy in force is kept again for the next start"),
            _ => {}
        }
    }
}

fn told(faults: &[Fault]) -> String {
    let first = faults.first().map(ToString::to_string).unwrap_or_default();
    match faults.len().saturating_sub(1) {
        0 => first,
        more => format!("{first} (and {more} more)"),
    }
}

#[cfg(test)]
mod tests;
