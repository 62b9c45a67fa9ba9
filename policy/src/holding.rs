//! What is held of signed policy: the live bundle, the shadow, the grants, and what was ever accepted.
//!
//! A state machine over values, for all who hold policy: the agent, which hands it on, and the decision point, which
//! decides by it. The time is an argument. Whoever holds policy first examines what is offered, tries whether it can be
//! used, and then takes it: what is refused on the way changes nothing.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::SystemTime;

use hoplite_identity::TrustDomain;
use hoplite_seal::{Hash, TrustedSigners, cbor};
use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};

use crate::bundle::{
    Acceptance, BUNDLE_BYTES_MAX, Bundle, BundleContents, EngineVersion, KNOWN_CRITICAL, Manifest, Refused, Seen,
    Stage, in_order,
};
use crate::calendar::instant;
use crate::grant::{Grant, GrantRefused};

mod not_restored;
mod slots;

pub use not_restored::{NotRestored, Unreadable};
pub use slots::{BundleRef, Ended, GrantRef, Slots};

/// Grants held at once; a CA has fewer.
pub const GRANTS_HELD_MAX: usize = 256;

/// The form of the state; an unknown one is not read.
const FORMAT: u32 = 1;

/// Whose policy is believed, and for what.
#[derive(Debug, Clone)]
pub struct PolicyTrust {
    /// The security team's keys.
    pub signers: TrustedSigners,
    /// Whose policies these have to be.
    pub trust_domain: TrustDomain,
    /// The longest bundle that is accepted.
    pub max_bytes: usize,
    /// The engine that decides here: [`PolicyTrust::new`] says this one; tests say others.
    pub engine: EngineVersion,
    /// The features it knows.
    pub known_critical: &'static [&'static str],
}

/// A bundle that was verified, as it came. Made only by [`PolicyTrust`] and a [`Holding`]; clones are the same one.
#[derive(Clone)]
pub struct HeldBundle(Arc<(Bundle, Vec<u8>)>);

/// A grant that was verified, as it came. Made only by [`PolicyTrust`] and a [`Holding`]; clones are the same one.
#[derive(Clone)]
pub struct HeldGrant(Arc<(Grant, Vec<u8>)>);

/// What is held, in memory. A clone is a copy at one moment, and shares the bundles.
#[derive(Debug, Clone, Default)]
pub struct Holding {
    /// Without it nothing is taken.
    trust: Option<PolicyTrust>,
    slots: Slots<HeldBundle, HeldGrant>,
}

/// A bundle that may be taken: it was verified, and it follows what was accepted before.
#[derive(Debug)]
#[must_use]
pub struct Examined(HeldBundle);

/// What somebody found where the holding was kept: `None` for what is not there, an error for what cannot be read.
#[derive(Debug, Clone, Default)]
pub struct KeptPolicy {
    /// What [`Holding::state`] wrote.
    pub state: Option<Result<Vec<u8>, Unreadable>>,
    /// The live bundle.
    pub live: Option<Result<Vec<u8>, Unreadable>>,
    /// The shadow.
    pub shadow: Option<Result<Vec<u8>, Unreadable>>,
}

/// Why a bundle that was offered is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotTaken {
    /// Nobody's signature counts here.
    #[error("a policy bundle came, but no signer is trusted here; name the security team's keys in `policy_signers`")]
    NoSigner,
    /// It is refused, or held already.
    #[error(transparent)]
    Refused(#[from] Refused),
}

/// What [`Holding::state`] writes.
#[derive(Encode, Decode)]
#[cbor(map)]
struct State {
    #[n(0)]
    format: u32,
    #[n(1)]
    live: Option<KeptSeen>,
    #[n(2)]
    shadow: Option<KeptSeen>,
    #[n(3)]
    grants: Vec<ByteVec>,
}

#[derive(Encode, Decode)]
#[cbor(map)]
struct KeptSeen {
    #[n(0)]
    revision: u64,
    #[n(1)]
    manifest: Hash,
}

// === impl PolicyTrust ===

impl PolicyTrust {
    /// Trust of this engine in these signers.
    pub fn new(signers: TrustedSigners, trust_domain: TrustDomain) -> Self {
        Self {
            signers,
            trust_domain,
            max_bytes: BUNDLE_BYTES_MAX,
            engine: EngineVersion::THIS,
            known_critical: KNOWN_CRITICAL,
        }
    }

    /// Verifies a bundle that is new. Whether it follows what was accepted before is asked of [`Slots`].
    ///
    /// # Errors
    /// Why it is refused, whatever came before it.
    pub fn open(&self, bytes: &[u8], now: SystemTime) -> Result<HeldBundle, Refused> {
        Ok(HeldBundle::new(
            Bundle::open(bytes, &self.acceptance(None, now))?,
            bytes,
        ))
    }

    /// Verifies a grant.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn open_grant(&self, bytes: &[u8], now: SystemTime) -> Result<HeldGrant, GrantRefused> {
        let grant = Grant::open(bytes, &self.signers, &self.trust_domain, now)?;
        Ok(HeldGrant(Arc::new((grant, bytes.to_vec()))))
    }

    /// What is known when a bundle arrives now, and this is the newest of its stage.
    pub fn acceptance(&self, highest_seen: Option<Seen>, now: SystemTime) -> Acceptance<'_> {
        Acceptance {
            signers: &self.signers,
            trust_domain: &self.trust_domain,
            highest_seen,
            now,
            engine_version: self.engine,
            known_critical: self.known_critical,
            max_bytes: self.max_bytes,
        }
    }
}

// === impl HeldBundle ===

impl HeldBundle {
    fn new(bundle: Bundle, bytes: &[u8]) -> Self {
        Self(Arc::new((bundle, bytes.to_vec())))
    }

    /// As it travels.
    pub fn bytes(&self) -> &[u8] {
        &self.0.1
    }

    /// Its revision.
    pub fn revision(&self) -> u64 {
        self.manifest().revision
    }

    /// What it is for.
    pub fn stage(&self) -> Stage {
        self.manifest().stage
    }

    /// From when it is stale.
    pub fn expires(&self) -> SystemTime {
        instant(self.manifest().expires)
    }
}

impl BundleRef for HeldBundle {
    fn stage(&self) -> Stage {
        self.stage()
    }

    fn seen(&self) -> Seen {
        (**self).seen()
    }

    fn expires(&self) -> SystemTime {
        self.expires()
    }
}

impl Deref for HeldBundle {
    type Target = BundleContents;

    fn deref(&self) -> &BundleContents {
        &self.0.0
    }
}

impl AsRef<[u8]> for HeldBundle {
    fn as_ref(&self) -> &[u8] {
        self.bytes()
    }
}

/// A manifest's digest is the name of its bundle, and of no other.
impl PartialEq for HeldBundle {
    fn eq(&self, other: &Self) -> bool {
        self.seen() == other.seen()
    }
}

impl Eq for HeldBundle {}

impl fmt::Debug for HeldBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HeldBundle({}, {} bytes)", self.revision(), self.bytes().len())
    }
}

// === impl HeldGrant ===

impl HeldGrant {
    /// As it travels.
    pub fn bytes(&self) -> &[u8] {
        &self.0.1
    }
}

impl GrantRef for HeldGrant {
    fn until(&self) -> SystemTime {
        (**self).until()
    }
}

impl Deref for HeldGrant {
    type Target = Grant;

    fn deref(&self) -> &Grant {
        &self.0.0
    }
}

impl PartialEq for HeldGrant {
    fn eq(&self, other: &Self) -> bool {
        self.bytes() == other.bytes()
    }
}

impl Eq for HeldGrant {}

impl fmt::Debug for HeldGrant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HeldGrant({})", self.draft().id)
    }
}

// === impl Examined ===

impl Examined {
    /// The bundle, which is not held yet.
    pub fn bundle(&self) -> &HeldBundle {
        &self.0
    }
}

// === impl Holding ===

impl Holding {
    /// Nothing yet.
    pub fn new(trust: Option<PolicyTrust>) -> Self {
        Self {
            trust,
            ..Self::default()
        }
    }

    /// Goes on with what was kept. All of it is verified again, since a disk is believed no more than the wire; but it may
    /// have expired since. What cannot be used is left out and told.
    pub fn restore(trust: Option<PolicyTrust>, kept: KeptPolicy, now: SystemTime) -> (Self, Vec<NotRestored>) {
        let mut holding = Self::new(trust);
        let mut lost = Vec::new();
        let state = kept.state.and_then(|state| {
            let read = state.and_then(|bytes| State::decode(&bytes));
            read.inspect_err(|why| lost.push(NotRestored::State(why.0.clone())))
                .ok()
        });
        let (live, shadow, grants) = match state {
            Some(state) => (state.live, state.shadow, state.grants),
            None => (None, None, Vec::new()),
        };
        let shadow_was_cleared = kept.shadow.is_none();
        for (stage, seen, bytes) in [(Stage::Live, live, kept.live), (Stage::Shadow, shadow, kept.shadow)] {
            let seen = seen.map(|KeptSeen { revision, manifest }| Seen { revision, manifest });
            let opened = match bytes {
                Some(Ok(bytes)) => holding.open_kept(stage, seen, &bytes, now).map(Some),
                Some(Err(why)) => Err(NotRestored::Unreadable(why.to_string())),
                None if seen.is_some() => Err(NotRestored::Missing),
                None => Ok(None),
            };
            holding.slots.restore(stage, seen, opened);
        }
        if shadow_was_cleared {
            // What a shadow leaves behind is how high it was.
            holding.slots.set_lost(Stage::Shadow, None);
        }
        if let ([damaged], None, None) = (&lost[..], holding.live(), holding.lost(Stage::Live)) {
            // A live bundle may have been accepted: only another one ends the doubt.
            holding.slots.set_lost(Stage::Live, Some(damaged.clone()));
            lost.clear();
        }
        lost.extend(
            [Stage::Live, Stage::Shadow]
                .into_iter()
                .filter_map(|stage| holding.lost(stage).cloned()),
        );
        let (grants, refused) = holding.examine_grants(grants.iter().map(|grant| grant.as_slice()), now);
        holding.take_grants(grants);
        lost.extend(refused.into_iter().map(NotRestored::Grant));
        (holding, lost)
    }

    fn open_kept(
        &self,
        stage: Stage,
        seen: Option<Seen>,
        bytes: &[u8],
        now: SystemTime,
    ) -> Result<HeldBundle, NotRestored> {
        let trust = self.trust.as_ref().ok_or(NotRestored::NoSigner)?;
        let bundle = Bundle::open_kept(bytes, &trust.acceptance(None, now))?;
        if bundle.manifest().stage != stage {
            return Err(NotRestored::OtherStage(bundle.manifest().stage));
        }
        // Somebody may have put an older file in its place: what was accepted later must not be undone.
        match in_order(seen, bundle.seen()) {
            Ok(()) | Err(Refused::AlreadyHave(_)) => Ok(HeldBundle::new(bundle, bytes)),
            Err(refused) => Err(refused.into()),
        }
    }

    /// Verifies a bundle that came from somewhere, live or shadow as it says itself. Nothing changes yet.
    ///
    /// # Errors
    /// Why it may not be taken; [`Refused::AlreadyHave`] among it, which is no fault.
    pub fn examine(&self, bytes: &[u8], now: SystemTime) -> Result<Examined, NotTaken> {
        let trust = self.trust.as_ref().ok_or(NotTaken::NoSigner)?;
        let claimed = Manifest::danger_of_bundle(bytes, trust.max_bytes)?;
        let bundle = match Bundle::open(bytes, &trust.acceptance(self.seen(claimed.stage), now)) {
            // What was kept of it is damaged or gone: it was accepted once, and is welcome again.
            Err(Refused::AlreadyHave(_)) if self.bundle(claimed.stage).is_none() => {
                Bundle::open_kept(bytes, &trust.acceptance(None, now))?
            }
            opened => opened?,
        };
        Ok(Examined(HeldBundle::new(bundle, bytes)))
    }

    /// Looks at a bundle that another holding of this process has verified, with the same trust. It is not verified again,
    /// and it may have expired since. Nothing changes yet.
    ///
    /// # Errors
    /// It does not follow what was accepted before; [`Refused::AlreadyHave`] among it, which is no fault.
    pub fn examine_held(&self, bundle: &HeldBundle) -> Result<Examined, Refused> {
        self.slots.follows(bundle.stage(), bundle.seen())?;
        Ok(Examined(bundle.clone()))
    }

    /// Takes a bundle. From here on nothing older is accepted.
    ///
    /// # Errors
    /// Since it was examined another one was taken that it does not follow. Nothing changes then.
    pub fn take(&mut self, Examined(bundle): Examined) -> Result<HeldBundle, Refused> {
        self.slots.take(bundle.clone())?;
        Ok(bundle)
    }

    /// There is no shadow any more. Whether there was one.
    pub fn clear_shadow(&mut self) -> bool {
        self.slots.clear_shadow()
    }

    /// Believes others from now on, in what comes. What is held stays until [`doubt`](Self::doubt): a bundle that they have
    /// signed may come with them.
    pub fn believe(&mut self, trust: PolicyTrust) {
        self.trust = Some(trust);
    }

    /// Verifies again what is held, by whoever is believed now, and lets go of what is not believed any more. It may have
    /// expired since. What went, each in its own words.
    pub fn doubt(&mut self, now: SystemTime) -> Vec<NotRestored> {
        let mut gone = Vec::new();
        for stage in [Stage::Live, Stage::Shadow] {
            let Some(held) = self.bundle(stage).cloned() else {
                continue;
            };
            if let Err(why) = self.open_kept(stage, self.seen(stage), held.bytes(), now) {
                gone.push(why.clone());
                self.slots.restore(stage, self.seen(stage), Err(why));
            }
        }
        let grants = self.grants().to_vec();
        // None is held, so that none is taken for known.
        self.take_grants(Vec::new());
        let (grants, refused) = self.examine_grants(grants.iter().map(HeldGrant::bytes), now);
        self.take_grants(grants);
        gone.extend(refused.into_iter().map(NotRestored::Grant));
        gone
    }

    /// Believes whom another holding of this process believes, and lets go of what that one has let go of.
    pub fn follow_losses(&mut self, other: &Self) -> Vec<NotRestored> {
        self.trust.clone_from(&other.trust);
        let mut gone = Vec::new();
        for stage in [Stage::Live, Stage::Shadow] {
            if let (Some(why), Some(_)) = (other.lost(stage), self.bundle(stage)) {
                gone.push(why.clone());
                self.slots.restore(stage, self.seen(stage), Err(why.clone()));
            }
        }
        gone
    }

    /// Verifies grants: those that hold, each once, and why others do not. One that is over is neither: it was told of when
    /// it began, and its end stands in it. What is held already is not verified again. Nothing changes yet.
    pub fn examine_grants<'a>(
        &self,
        grants: impl IntoIterator<Item = &'a [u8]>,
        now: SystemTime,
    ) -> (Vec<HeldGrant>, Vec<GrantRefused>) {
        let (mut sound, mut refused) = (Vec::<HeldGrant>::new(), Vec::new());
        let Some(trust) = &self.trust else {
            return (sound, refused);
        };
        for bytes in grants.into_iter().take(GRANTS_HELD_MAX) {
            if sound.iter().any(|grant| grant.bytes() == bytes) {
                continue;
            }
            if let Some(held) = self.grants().iter().find(|held| held.bytes() == bytes) {
                sound.extend((!held.is_over(now)).then(|| held.clone()));
                continue;
            }
            match trust.open_grant(bytes, now) {
                Ok(grant) => sound.push(grant),
                Err(GrantRefused::Expired(_)) => {}
                Err(why) => refused.push(why),
            }
        }
        (sound, refused)
    }

    /// Holds these grants and no others.
    pub fn take_grants(&mut self, grants: Vec<HeldGrant>) {
        self.slots.take_grants(grants);
    }

    /// Lets go of the grants that are over, and says, once for each bundle, that the live one has expired.
    pub fn end_what_is_over(&mut self, now: SystemTime) -> Ended<HeldBundle, HeldGrant> {
        self.slots.end_what_is_over(now)
    }

    /// When something will be over next; none when nothing will.
    pub fn next_end(&self, now: SystemTime) -> Option<SystemTime> {
        self.slots.next_end(now)
    }

    /// What a keeper writes beside the bundles: what was accepted last, and the grants.
    pub fn state(&self) -> Vec<u8> {
        let kept = |seen: Option<Seen>| seen.map(|Seen { revision, manifest }| KeptSeen { revision, manifest });
        cbor::encode(&State {
            format: FORMAT,
            live: kept(self.seen(Stage::Live)),
            shadow: kept(self.seen(Stage::Shadow)),
            grants: self
                .grants()
                .iter()
                .map(|grant| grant.bytes().to_vec().into())
                .collect(),
        })
    }

    /// The bundle that decides, if there is one.
    pub fn live(&self) -> Option<&HeldBundle> {
        self.bundle(Stage::Live)
    }

    /// The bundle that is tried beside it, if there is one.
    pub fn shadow(&self) -> Option<&HeldBundle> {
        self.bundle(Stage::Shadow)
    }

    /// The bundle of a stage.
    pub fn bundle(&self, stage: Stage) -> Option<&HeldBundle> {
        self.slots.bundle(stage)
    }

    /// The highest of a stage that was ever accepted.
    pub fn seen(&self, stage: Stage) -> Option<Seen> {
        self.slots.seen(stage)
    }

    /// Why the bundle of a stage that was kept is not held; until one is taken.
    pub fn lost(&self, stage: Stage) -> Option<&NotRestored> {
        self.slots.lost(stage)
    }

    /// Whether a live bundle was ever accepted, held or not: from then on nothing unsigned decides.
    pub fn ever_signed(&self) -> bool {
        self.seen(Stage::Live).is_some() || self.lost(Stage::Live).is_some()
    }

    /// The grants, those among them that have yet to begin.
    pub fn grants(&self) -> &[HeldGrant] {
        self.slots.grants()
    }

    /// Whose policy is taken; nobody's when there is none.
    pub fn trust(&self) -> Option<&PolicyTrust> {
        self.trust.as_ref()
    }
}

// === impl State ===

impl State {
    fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
        let state: Self = cbor::decode(bytes).map_err(Unreadable::of)?;
        match state.format {
            FORMAT => Ok(state),
            other => Err(Unreadable(format!(
                "it has format {other}, and this version reads {FORMAT}"
            ))),
        }
    }
}

#[cfg(test)]
mod tests;
