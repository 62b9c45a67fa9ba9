//! Who makes authorities take their turns: time, and people who ask for it.
//!
//! What may happen is decided by the authorities' course, on all that the store holds of them. Here a step is asked for, the
//! keys are made before it and forgotten after it, and the issuer signs with whoever is the active one. All of that is the same for
//! each kind of keys; what differs is in one file for each.

mod jwt;
mod x509;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

use hoplite_host::backoff::{Backoff, jitter};
use hoplite_host::clock;
use hoplite_identity::Moment;
use tokio::sync::Mutex;

use crate::acts::Acts;
use crate::authority::course::{Course, CourseError, Due, Life, Name, State, short};
use crate::authority::index::AuthorityIndex;
use crate::authority::jwt::JwtTrusted;
use crate::authority::keyring::Keyring;
use crate::authority::taking::{Taking, TrustError, Word};
use crate::authority::trust::Trusted;
use crate::authority::writes::{New, Step, Stepped, What};
use crate::authority::x509::{AuthorityError, Maker};
use crate::fleet::Fleet;
use crate::issuer::Issuer;
use crate::nested::writes::{NestedError, Sweep};
use crate::record;
use crate::registry::Registry;
use crate::write::WriteError;

/// How often it is looked what is due. It costs a look into memory.
const LOOK: Duration = Duration::from_secs(1);

/// When a successor that could not be made is made again: soon, since its predecessor ends, and not so often that it costs anything.
const MADE_AGAIN: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(5));

/// The same warning is logged again after this.
const SAID_AGAIN: Duration = Duration::from_secs(3600);

/// Somebody who asks waits at most so long for agents to know a successor; it waits for less itself.
const WAIT_MAX: Duration = Duration::from_secs(45);

/// How often it is looked whether they do.
const WAIT_LOOK: Duration = Duration::from_millis(100);

/// The turns of authorities. Clones are the same ones.
#[derive(Clone)]
pub(crate) struct Rotation(Arc<Shared>);

struct Shared {
    registry: Registry,
    issuer: Issuer,
    acts: Acts,
    fleet: Fleet,
    maker: Maker,
    jwt_keyring: Keyring,
    plan: RwLock<Plan>,
    /// One step at a time: the file of keys changes with it.
    working: Mutex<()>,
    /// How one is made whose making failed, or that is of no use.
    making: std::sync::Mutex<Making>,
}

/// What failed is not tried again each second: it may be others who sign.
#[derive(Debug)]
struct Making {
    retry: Backoff,
    not_before: Option<Instant>,
}

/// What the configuration says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Plan {
    /// The life of an authority that is made.
    pub(crate) ttl: Duration,
    /// Whether time alone prepares and activates.
    pub(crate) rotates: bool,
    /// The same of the keys for JWT-SVIDs.
    pub(crate) jwt_rotates: bool,
}

/// A kind of authorities that takes turns: what is its own.
pub(crate) trait Kind: Taking {
    const WORDS: Words;

    /// The records of them all.
    fn all(index: &AuthorityIndex) -> &BTreeMap<Name, Self>;

    fn course(index: &AuthorityIndex) -> &Course;

    /// Whether time alone prepares and activates.
    fn rotates(plan: Plan) -> bool;

    /// Where its keys are.
    fn keyring(with: &Parts) -> &Keyring;

    /// Its public key.
    fn public(&self, name: &str) -> Option<Vec<u8>>;

    /// Makes one more, whose key is in its place.
    fn make(with: &Parts, ttl: Duration, now: SystemTime) -> Result<New<Self>, AuthorityError>;

    /// What the one that signs says of its successor, whose key is there.
    fn word(with: &Parts, all: &BTreeMap<Name, Self>, successor: &str) -> Result<Option<Word>, AuthorityError>;

    /// Those that are to sign nothing any more, before their time.
    fn unsound(_: &AuthorityIndex) -> BTreeSet<Name> {
        BTreeSet::new()
    }

    /// Has this one sign. Answers whether another one did until now; none when all is as it was.
    fn follow(with: &Parts, all: &BTreeMap<Name, Self>, name: &str) -> Result<Option<bool>, AuthorityError>;

    /// The one that signs here.
    fn signs(issuer: &Issuer) -> Option<Name>;

    /// Completes what people are shown.
    fn show(_: &Rotation, _: &Self, _: &mut Shown, _: SystemTime) {}
}

/// What a kind works with.
#[derive(Clone)]
pub(crate) struct Parts {
    issuer: Issuer,
    maker: Maker,
    jwt_keyring: Keyring,
}

/// What a kind is called in the CA's log.
pub(crate) struct Words {
    prepared: &'static str,
    signs: &'static str,
    leaves: &'static str,
    /// For people.
    noun: &'static str,
}

/// One authority at one moment, for people.
#[derive(Debug, Clone)]
pub(crate) struct Shown {
    pub(crate) name: Name,
    pub(crate) life: Life,
    pub(crate) not_before: SystemTime,
    pub(crate) agents: Vec<String>,
    pub(crate) operators: Vec<String>,
    pub(crate) svids: u64,
    /// When time alone takes it further, and to what.
    pub(crate) next: Option<(u64, &'static str)>,
}

/// Why a step was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RotationError {
    #[error(transparent)]
    Write(#[from] WriteError<TrustError>),
    /// Its key or its certificate cannot be made or had.
    #[error("the CA cannot make or use the authority's key: {0}")]
    Authority(#[from] AuthorityError),
    #[error(transparent)]
    Course(#[from] CourseError),
    /// Something would be cut off.
    #[error(
        "the authority `{name}` cannot be revoked yet: {what}; look again with `hoplite authority list`, or revoke it all the same with `--force`"
    )]
    InUse { name: String, what: String },
    #[error("the CA is stopping; try again")]
    Stopping,
}

/// What may have to wait until agents know a successor.
#[derive(Debug, Clone, Copy)]
enum Asked {
    Activate,
    Taint,
}

/// What was said last, and when.
#[derive(Debug, Default)]
struct Said(Option<(String, std::time::Instant)>);

// === impl Rotation ===

impl Rotation {
    pub(crate) fn new(
        registry: Registry,
        issuer: Issuer,
        acts: Acts,
        fleet: Fleet,
        (maker, jwt_keyring): (Maker, Keyring),
        plan: Plan,
    ) -> Self {
        Self(Arc::new(Shared {
            registry,
            issuer,
            acts,
            fleet,
            maker,
            jwt_keyring,
            plan: RwLock::new(plan),
            working: Mutex::default(),
            making: std::sync::Mutex::new(Making {
                retry: MADE_AGAIN,
                not_before: None,
            }),
        }))
    }

    /// Authorities that are made from now on are made by this.
    pub(crate) fn set_plan(&self, plan: Plan) {
        *self.0.plan.write().unwrap_or_else(PoisonError::into_inner) = plan;
    }

    pub(crate) fn plan(&self) -> Plan {
        *self.0.plan.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what is due, until another authority signs whose key is not here.
    pub(crate) async fn run(self) {
        let mut said = Said::default();
        let mut steps = clock::steps();
        {
            // Of a step that a crash cut short, or of a restore.
            let _working = self.0.working.lock().await;
            let forgotten = self.forget_keys::<Trusted>().await;
            if let Err(error) = forgotten.and(self.forget_keys::<JwtTrusted>().await) {
                tracing::warn!(%error, "keys that sign no more cannot be removed");
            }
        }
        loop {
            let keyring = self.0.maker.keyring.clone();
            let _ = blocking(move || keyring.look()).await; // what comes of it is in the warning
            let now = clock::now();
            if let Some(warning) = self.warning(now).filter(|warning| said.is_due(warning)) {
                tracing::error!(notice = true, warning, "authority");
            }
            if let Err(error) = self.sweep_nested(now).await.map_err(|error| error.to_string())
                && said.is_due(&error)
            {
                tracing::error!(
                    notice = true,
                    error,
                    "what is left of nested CAs cannot be cleared away; it is tried again"
                );
            }
            let turned = self.turn::<Trusted>(now).await;
            if let Err(error) = turned.and(self.turn::<JwtTrusted>(now).await) {
                if self.lacks_the_key(&error) {
                    tracing::error!(
                        target: "hoplite::audit",
                        %error,
                        "another authority signs now, and this CA has not its key: it ends, and must not sign with the one before; copy `authority.key` and `jwt.key` from the CA that \
                         made it, and start this one again"
                    );
                    return;
                }
                let error = error.to_string();
                if said.is_due(&error) {
                    tracing::error!(
                        notice = true,
                        error,
                        "the authorities cannot take their turns; it is tried again"
                    );
                }
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                Ok(()) = steps.changed() => {}
            }
        }
    }

    /// All that is due by now.
    async fn turn<K: Kind>(&self, now: SystemTime) -> Result<(), RotationError> {
        let _working = self.0.working.lock().await;
        self.follow::<K>().await?;
        self.displaced::<K>(now).await?;
        loop {
            let rotates = K::rotates(self.plan());
            let Some(due) = self.course::<K>().due(now, rotates, self.is_known(now)) else {
                return Ok(());
            };
            match due {
                Due::Leave(_) => {
                    let stepped = self.step::<K>(What::Leave, now).await?;
                    for name in &stepped.gone {
                        self.0.acts.own_act(K::WORDS.leaves, name.clone(), []);
                        tracing::info!(target: "hoplite::audit", authority = name, "{} has ended and left the trust bundle", K::WORDS.noun);
                    }
                }
                Due::Prepare if !self.may_make() => return Ok(()),
                Due::Prepare => drop(self.prepared::<K>(now, false).await?),
                Due::Activate(name) => drop(self.activated::<K>(&name, now).await?),
            }
        }
    }

    /// Where the one that signs is not to any more, another one does, which is made if there is none.
    async fn displaced<K: Kind>(&self, now: SystemTime) -> Result<(), RotationError> {
        let (course, unsound) = {
            let index = self.0.registry.index();
            (K::course(&index.authority).clone(), K::unsound(&index.authority))
        };
        let signs = course.active().map(|(name, _)| name);
        if !K::rotates(self.plan()) || !signs.is_some_and(|name| unsound.contains(name)) {
            return Ok(());
        }
        let sound = course
            .in_state(State::Prepared)
            .filter(|(name, _)| !unsound.contains(*name));
        let Some((next, _)) = sound.min_by_key(|(_, life)| life.made) else {
            if self.may_make() {
                self.prepared::<K>(now, true).await?;
                // It may be as unsound: then the next one waits.
                self.made_in_vain();
            }
            return Ok(());
        };
        match self.activated::<K>(next, now).await {
            Err(error) if !error.is_only_early() => Err(error),
            _ => Ok(()),
        }
    }

    fn may_make(&self) -> bool {
        let making = self.0.making.lock().unwrap_or_else(PoisonError::into_inner);
        making.not_before.is_none_or(|at| clock::moment() >= at)
    }

    fn made_in_vain(&self) {
        let mut making = self.0.making.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = making.retry.failed(jitter());
        making.not_before = Some(clock::moment() + wait);
    }

    fn made(&self) {
        let mut making = self.0.making.lock().unwrap_or_else(PoisonError::into_inner);
        *making = Making {
            retry: MADE_AGAIN,
            not_before: None,
        };
    }

    /// Revokes the authorities of nested CAs whose entry has gone, and forgets those that have ended.
    async fn sweep_nested(&self, now: SystemTime) -> Result<(), WriteError<NestedError>> {
        let is_due = {
            let index = self.0.registry.index();
            let seconds = record::unix_seconds(now);
            index.authority.nested().iter().any(|(name, nested)| {
                nested.is_due(seconds, |entry| {
                    let entry = index.entries.get(entry.as_str());
                    entry.is_some_and(|entry| entry.spiffe_id.nested_ca() == Some(name))
                })
            })
        };
        if !is_due {
            return Ok(());
        }
        for (name, revoked) in self.0.registry.write(Sweep { now }).await? {
            let serial = revoked.serial.clone();
            tracing::warn!(target: "hoplite::audit", name, serial, "the authority of a nested CA is revoked: its entry has gone");
            let detail = [("serial", serial), ("key", revoked.key), ("entry", revoked.entry)];
            self.0.acts.own_act("RevokeNestedAuthority", name, detail);
        }
        Ok(())
    }

    /// What somebody has to do about authorities.
    pub(crate) fn warning(&self, now: SystemTime) -> Option<String> {
        if let Some(away) = self.0.maker.keyring.away() {
            return Some(format!(
                "nothing can be signed, neither certificates nor JWT-SVIDs: {away}; the CA goes on by itself once it is back"
            ));
        }
        let course = self.course::<Trusted>();
        if !course.lacks_successor(now) {
            return self.above_is_away();
        }
        let (_, life) = course.active()?;
        let remedy = match self.plan().rotates {
            true => "the CA makes one by itself as soon as it can, and its log says why it cannot",
            false => {
                "`authority_rotates` is off, so run `hoplite authority prepare`, and `hoplite authority activate` some time after it"
            }
        };
        Some(format!(
            "the authority ends at {} and has no successor; then nothing in the trust domain is valid any more: {remedy}",
            Moment(i64::try_from(life.not_after).unwrap_or(i64::MAX))
        ))
    }

    /// Why nothing is heard of the CA above.
    fn above_is_away(&self) -> Option<String> {
        let away = self.0.maker.upstream.as_ref()?.away()?;
        Some(format!(
            "the CA above cannot be asked, {away}; what is valid stays so, and until it is back no authority is signed here and nothing is heard of \
             its trust bundle"
        ))
    }

    /// Whether a key for JWT-SVIDs, and no X.509 authority, is called so.
    pub(crate) fn is_jwt(&self, prefix: &str) -> bool {
        let index = self.0.registry.index();
        index.authority.course().find(prefix).is_err() && index.authority.jwt_course().find(prefix).is_ok()
    }

    /// Makes one more, by hand.
    pub(crate) async fn prepare<K: Kind>(&self) -> Result<(Name, Stepped), RotationError> {
        let _working = self.0.working.lock().await;
        self.prepared::<K>(clock::now(), true).await
    }

    /// Has it sign; of several that are prepared the first, if none is named. Waits until agents know it.
    pub(crate) async fn activate<K: Kind>(&self, prefix: &str) -> Result<(Name, Stepped), RotationError> {
        let course = self.course::<K>();
        let name = match prefix {
            "" => course.prepared().ok_or(CourseError::NonePrepared)?.0.clone(),
            prefix => course.find(prefix)?,
        };
        let stepped = self.patiently::<K>(Asked::Activate, &name).await?;
        Ok((name, stepped))
    }

    /// Has all replaced that it signed. If it signs still, its successor does so first, which is made if there is none.
    pub(crate) async fn taint<K: Kind>(&self, prefix: &str) -> Result<(Name, Stepped), RotationError> {
        let course = self.course::<K>();
        let name = course.find(prefix)?;
        let signs = course.active().is_some_and(|(active, _)| *active == name);
        if signs && course.prepared().is_none() {
            let _working = self.0.working.lock().await;
            self.prepared::<K>(clock::now(), false).await?;
        }
        let stepped = self.patiently::<K>(Asked::Taint, &name).await?;
        Ok((name, stepped))
    }

    /// Takes it out of the trust bundle. Not while something is under it, unless that is said.
    pub(crate) async fn revoke<K: Kind>(&self, prefix: &str, force: bool) -> Result<(Name, Stepped), RotationError> {
        let name = self.course::<K>().find(prefix)?;
        let now = clock::now();
        let shown = self.shown::<K>(now).into_iter().find(|shown| shown.name == name);
        if let Some(shown) = shown.filter(|shown| shown.life.state == State::Tainted && !force) {
            let unheard =
                || "not all agents in contact have said what is under it still, and it would be cut off".to_owned();
            // Of tokens nobody says under which key they are.
            let is_said = K::WORDS.prepared != JwtTrusted::WORDS.prepared;
            if let Some(what) = shown
                .in_use()
                .or_else(|| (is_said && !self.is_known(now)).then(unheard))
            {
                return Err(RotationError::InUse {
                    name: short(&name),
                    what,
                });
            }
        }
        let _working = self.0.working.lock().await;
        let stepped = self.step::<K>(What::Revoke { name: name.clone() }, now).await?;
        self.follow::<K>().await?;
        Ok((name, stepped))
    }

    /// All of them: the one that signs first, then those that will, then those that did.
    pub(crate) fn shown<K: Kind>(&self, now: SystemTime) -> Vec<Shown> {
        let (course, records) = {
            let index = self.0.registry.index();
            (K::course(&index.authority).clone(), K::all(&index.authority).clone())
        };
        let rotates = K::rotates(self.plan());
        let mut all: Vec<Shown> = Vec::new();
        for (name, life) in &course.0 {
            let mut shown = Shown {
                name: name.clone(),
                life: *life,
                not_before: record::from_unix_seconds(life.made),
                agents: Vec::new(),
                operators: Vec::new(),
                svids: 0,
                next: next(&course, life, rotates),
            };
            if let Some(record) = records.get(name) {
                K::show(self, record, &mut shown, now);
            }
            all.push(shown);
        }
        all.sort_by_key(Shown::place);
        all
    }

    /// The trust bundle's sequence number.
    pub(crate) fn sequence(&self) -> u64 {
        self.0
            .registry
            .index()
            .authority
            .bundle()
            .map_or(0, |bundle| bundle.sequence())
    }

    fn course<K: Kind>(&self) -> Course {
        K::course(&self.0.registry.index().authority).clone()
    }

    fn is_known(&self, now: SystemTime) -> bool {
        self.0.fleet.known_bundle(now) >= self.sequence()
    }

    fn parts(&self) -> Parts {
        Parts {
            issuer: self.0.issuer.clone(),
            maker: self.0.maker.clone(),
            jwt_keyring: self.0.jwt_keyring.clone(),
        }
    }

    /// What a kind's keys are worked on with, and its records.
    fn all<K: Kind>(&self) -> (Parts, BTreeMap<Name, K>) {
        let all = K::all(&self.0.registry.index().authority).clone();
        (self.parts(), all)
    }

    async fn step<K: Kind>(&self, what: What<K>, now: SystemTime) -> Result<Stepped, RotationError> {
        let known = self.0.fleet.known_bundle(now);
        Ok(self.0.registry.write(Step { what, now, known }).await?)
    }

    /// Again and again, while all that is lacking is that agents know.
    async fn patiently<K: Kind>(&self, asked: Asked, name: &str) -> Result<Stepped, RotationError> {
        let since = clock::moment();
        loop {
            let attempt = {
                let _working = self.0.working.lock().await;
                match asked {
                    Asked::Activate => self.activated::<K>(name, clock::now()).await,
                    Asked::Taint => self.tainted::<K>(name, clock::now()).await,
                }
            };
            match attempt {
                Err(error) if error.is_only_early() && since.elapsed() < WAIT_MAX => {}
                outcome => return outcome,
            }
            tokio::time::sleep(WAIT_LOOK).await;
        }
    }

    async fn prepared<K: Kind>(&self, now: SystemTime, by_hand: bool) -> Result<(Name, Stepped), RotationError> {
        let (parts, ttl) = (self.parts(), self.plan().ttl);
        let new = match blocking(move || K::make(&parts, ttl, now)).await? {
            Ok(new) => new,
            Err(error) => {
                self.made_in_vain();
                // Its key was there before the certificate that it did not get.
                self.forget_keys::<K>().await?;
                return Err(error.into());
            }
        };
        if !by_hand {
            self.made();
        }
        let (name, not_after) = (K::name(&new.made), Moment::from(new.not_after).to_string());
        let stepped = self.step::<K>(What::Prepare { new, by_hand }, now).await;
        if stepped.as_ref().is_ok_and(|stepped| stepped.is_new) {
            let detail = [("not_after", not_after.clone())];
            self.0.acts.own_act(K::WORDS.prepared, name.clone(), detail);
            tracing::info!(target: "hoplite::audit", authority = name, not_after, "{} is prepared: it is in the trust bundle and signs later", K::WORDS.noun);
        } else {
            // Somebody else was faster, or it was refused: its key is for nothing.
            self.forget_keys::<K>().await?;
        }
        Ok((name, stepped?))
    }

    async fn activated<K: Kind>(&self, name: &str, now: SystemTime) -> Result<Stepped, RotationError> {
        let is_prepared = self
            .course::<K>()
            .0
            .get(name)
            .is_some_and(|life| life.state == State::Prepared);
        let word = match is_prepared {
            true => self.word::<K>(name).await?,
            false => None,
        };
        let name = name.to_owned();
        let stepped = self.step::<K>(What::Activate { name, word }, now).await?;
        self.follow::<K>().await?;
        Ok(stepped)
    }

    async fn tainted<K: Kind>(&self, name: &str, now: SystemTime) -> Result<Stepped, RotationError> {
        let course = self.course::<K>();
        let next = course.prepared().map(|(next, _)| next.clone());
        let signs = course.active().is_some_and(|(active, _)| active == name);
        // Of its successor it is known before the step that its key is there.
        let word = match next.filter(|_| signs) {
            Some(next) => self.word::<K>(&next).await?,
            None => None,
        };
        let name = name.to_owned();
        let stepped = self.step::<K>(What::Taint { name, word }, now).await?;
        self.follow::<K>().await?;
        Ok(stepped)
    }

    async fn word<K: Kind>(&self, successor: &str) -> Result<Option<Word>, RotationError> {
        let ((parts, all), successor) = (self.all::<K>(), successor.to_owned());
        Ok(blocking(move || K::word(&parts, &all, &successor)).await??)
    }

    /// Whether another replica has another authority sign, whose key is not here.
    fn lacks_the_key(&self, error: &RotationError) -> bool {
        let is_missing = matches!(
            error,
            RotationError::Authority(AuthorityError::KeyMissing { .. } | AuthorityError::KeyMismatch { .. })
        );
        is_missing && (self.is_another::<Trusted>() || self.is_another::<JwtTrusted>())
    }

    /// Whether another one is to sign than does.
    fn is_another<K: Kind>(&self) -> bool {
        let course = self.course::<K>();
        let active = course.active().map(|(name, _)| name.clone());
        active.is_some() && active != K::signs(&self.0.issuer)
    }

    /// Signs with the active one.
    async fn follow<K: Kind>(&self) -> Result<(), RotationError> {
        let Some(name) = self.course::<K>().active().map(|(name, _)| name.clone()) else {
            return Ok(());
        };
        let ((parts, all), active) = (self.all::<K>(), name.clone());
        let Some(is_another) = blocking(move || K::follow(&parts, &all, &active)).await?? else {
            return Ok(());
        };
        if is_another {
            self.0.acts.own_act(K::WORDS.signs, name.clone(), []);
            tracing::info!(target: "hoplite::audit", authority = name, "{} signs that did not before", K::WORDS.noun);
        }
        self.forget_keys::<K>().await
    }

    /// What signs no more, and will not, is no secret worth keeping.
    async fn forget_keys<K: Kind>(&self) -> Result<(), RotationError> {
        let (parts, all) = self.all::<K>();
        let needed: Vec<Vec<u8>> = all
            .iter()
            .filter(|(_, one)| one.life().state.has_key())
            .filter_map(|(name, one)| one.public(name))
            .collect();
        let kept = blocking(move || K::keyring(&parts).keep(|point| needed.iter().any(|needed| needed == point)));
        Ok(kept.await?.map_err(AuthorityError::from)?)
    }
}

/// Some milliseconds on the disk would hold up everybody else on this thread.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, RotationError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| RotationError::Stopping)
}

fn next(course: &Course, life: &Life, rotates: bool) -> Option<(u64, &'static str)> {
    match life.state {
        State::Active if !rotates => None,
        State::Active if course.prepared().is_none() => Some((life.prepares_at(), "prepare")),
        State::Active => None,
        State::Prepared if !rotates => None,
        State::Prepared => course.active().map(|(_, active)| (active.hands_over_at(), "activate")),
        State::Old | State::Tainted | State::Revoked => Some((life.not_after, "leave")),
    }
}

// === impl Shown ===

impl Shown {
    /// Its place in a list: the one that signs first, then those that will, then those that did.
    fn place(&self) -> (u8, u64) {
        let rank = match self.life.state {
            State::Active => 0,
            State::Prepared => 1,
            State::Old => 2,
            State::Tainted => 3,
            State::Revoked => 4,
        };
        (rank, self.life.made)
    }

    /// What would be cut off with it.
    fn in_use(&self) -> Option<String> {
        let some = |of: &[String]| {
            let more = if of.len() > 3 { ", …" } else { "" };
            format!(
                "{}{more}",
                of.iter().take(3).map(String::as_str).collect::<Vec<_>>().join(", ")
            )
        };
        let mut parts = Vec::new();
        if !self.agents.is_empty() {
            parts.push(format!(
                "the certificates of {} agents ({})",
                self.agents.len(),
                some(&self.agents)
            ));
        }
        if self.svids > 0 {
            parts.push(format!("{} SVIDs of workloads", self.svids));
        }
        (!parts.is_empty()).then(|| format!("{} are under it still, and would be cut off", parts.join(" and ")))
    }
}

// === impl RotationError ===

impl RotationError {
    fn is_only_early(&self) -> bool {
        matches!(
            self,
            Self::Write(WriteError::Refused(TrustError::Course(CourseError::NotKnown { .. })))
                | Self::Course(CourseError::NotKnown { .. })
        )
    }
}

// === impl Said ===

impl Said {
    fn is_due(&mut self, text: &str) -> bool {
        let is_due = self
            .0
            .as_ref()
            .is_none_or(|(said, at)| said != text || at.elapsed() >= SAID_AGAIN);
        if is_due {
            self.0 = Some((text.to_owned(), clock::moment()));
        }
        is_due
    }
}
