//! Who makes authorities take their turns: time, and people who ask for it.
//!
//! What may happen is decided by the authorities' course, on all that the store holds of them. Here a step is asked for, the
//! keys are made before it and forgotten after it, and the issuer signs with whoever is the active one.

mod jwt;

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use hoplite_host::clock;
use hoplite_identity::{CertificateDer, Moment};
use tokio::sync::Mutex;

use crate::acts::Acts;
use crate::authority::course::{Course, CourseError, Due, Life, Name, State, short};
use crate::authority::signer::Keyring;
use crate::authority::trust::Trusted;
use crate::authority::writes::{Step, Stepped, TrustError, What, Word};
use crate::authority::x509::{Authority, AuthorityError};
use crate::fleet::Fleet;
use crate::issuer::{Issuer, Signing};
use crate::record;
use crate::registry::Registry;
use crate::write::WriteError;

/// How often it is looked what is due. It costs a look into memory.
const LOOK: Duration = Duration::from_secs(1);

/// The same warning is logged again after this.
const SAID_AGAIN: Duration = Duration::from_secs(3600);

/// Somebody who asks waits at most so long for agents to know a successor; it waits for less itself.
const WAIT_MAX: Duration = Duration::from_secs(45);

/// How often it is looked whether they do.
const WAIT_LOOK: Duration = Duration::from_millis(100);

/// Old authorities that the CA's own chain speaks for.
const SHOWN_MAX: usize = 3;

/// The turns of authorities. Clones are the same ones.
#[derive(Clone)]
pub(crate) struct Rotation(Arc<Shared>);

struct Shared {
    registry: Registry,
    issuer: Issuer,
    acts: Acts,
    fleet: Fleet,
    keyring: Keyring,
    jwt_keyring: Keyring,
    plan: RwLock<Plan>,
    /// One step at a time: the file of keys changes with it.
    working: Mutex<()>,
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
        (keyring, jwt_keyring): (Keyring, Keyring),
        plan: Plan,
    ) -> Self {
        Self(Arc::new(Shared {
            registry,
            issuer,
            acts,
            fleet,
            keyring,
            jwt_keyring,
            plan: RwLock::new(plan),
            working: Mutex::default(),
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
            if let Err(error) = self.forget_keys().await {
                tracing::warn!(%error, "keys that sign no more cannot be removed");
            }
        }
        loop {
            let now = clock::now();
            if let Some(warning) = self.warning(now).filter(|warning| said.is_due(warning)) {
                tracing::error!(notice = true, warning, "authority");
            }
            if let Err(error) = self.turn(now).await.and(self.turn_jwt(now).await) {
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
    async fn turn(&self, now: SystemTime) -> Result<(), RotationError> {
        let _working = self.0.working.lock().await;
        self.follow().await?;
        loop {
            let rotates = self.plan().rotates;
            let Some(due) = self.course().due(now, rotates, self.is_known(now)) else {
                return Ok(());
            };
            match due {
                Due::Leave(_) => {
                    let stepped = self.step(What::Leave, now).await?;
                    for name in &stepped.gone {
                        self.0.acts.own_act("AuthorityLeaves", name.clone(), []);
                        tracing::info!(target: "hoplite::audit", authority = name, "an authority has ended and left the trust bundle");
                    }
                }
                Due::Prepare => drop(self.prepared(now, false).await?),
                Due::Activate(name) => drop(self.activated(&name, now).await?),
            }
        }
    }

    /// What somebody has to do about authorities.
    pub(crate) fn warning(&self, now: SystemTime) -> Option<String> {
        let course = self.course();
        if !course.lacks_successor(now) {
            return None;
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

    /// Makes one more, by hand.
    pub(crate) async fn prepare(&self) -> Result<(Name, Stepped), RotationError> {
        let _working = self.0.working.lock().await;
        self.prepared(clock::now(), true).await
    }

    /// Has it sign; of several that are prepared the first, if none is named. Waits until agents know it.
    pub(crate) async fn activate(&self, prefix: &str) -> Result<(Name, Stepped), RotationError> {
        let course = self.course();
        let name = match prefix {
            "" => course.prepared().ok_or(CourseError::NonePrepared)?.0.clone(),
            prefix => course.find(prefix)?,
        };
        let stepped = self.patiently(Asked::Activate, &name).await?;
        Ok((name, stepped))
    }

    /// Has all replaced that it signed. If it signs still, its successor does so first, which is made if there is none.
    pub(crate) async fn taint(&self, prefix: &str) -> Result<(Name, Stepped), RotationError> {
        let course = self.course();
        let name = course.find(prefix)?;
        let signs = course.active().is_some_and(|(active, _)| *active == name);
        if signs && course.prepared().is_none() {
            let _working = self.0.working.lock().await;
            self.prepared(clock::now(), false).await?;
        }
        let stepped = self.patiently(Asked::Taint, &name).await?;
        Ok((name, stepped))
    }

    /// Takes it out of the trust bundle. Not while something is under it, unless that is said.
    pub(crate) async fn revoke(&self, prefix: &str, force: bool) -> Result<(Name, Stepped), RotationError> {
        let name = self.course().find(prefix)?;
        let now = clock::now();
        let shown = self.shown(now).into_iter().find(|shown| shown.name == name);
        if let Some(shown) = shown.filter(|shown| shown.life.state == State::Tainted && !force) {
            let unheard =
                || "not all agents in contact have said what is under it still, and it would be cut off".to_owned();
            if let Some(what) = shown.in_use().or_else(|| (!self.is_known(now)).then(unheard)) {
                return Err(RotationError::InUse {
                    name: short(&name),
                    what,
                });
            }
        }
        let _working = self.0.working.lock().await;
        let stepped = self.step(What::Revoke { name: name.clone() }, now).await?;
        self.follow().await?;
        Ok((name, stepped))
    }

    /// All of them: the one that signs first, then those that will, then those that did.
    pub(crate) fn shown(&self, now: SystemTime) -> Vec<Shown> {
        let rotates = self.plan().rotates;
        let index = self.0.registry.index();
        let course = index.authority.course();
        let mut all: Vec<Shown> = Vec::new();
        for (name, life) in &course.0 {
            let certificate = index
                .authority
                .get(name)
                .and_then(|trusted| trusted.certificate(name).ok());
            let about = certificate.as_ref().and_then(Authority::about);
            let key = about
                .as_ref()
                .map(|(key, _)| key.as_str())
                .filter(|key| !key.is_empty());
            let is_live = |end: u64| end > record::unix_seconds(now);
            let agents = index.agents.iter().filter(|agent| {
                let used = agent.used();
                !agent.banned && Some(used.authority.as_str()) == key && is_live(used.not_after)
            });
            let operators = index
                .operators
                .iter()
                .filter(|operator| key.is_some_and(|key| operator.is_under(key, now)));
            all.push(Shown {
                agents: agents.map(|agent| agent.spiffe_id.to_string()).collect(),
                operators: operators.map(|operator| operator.name.clone()).collect(),
                svids: match life.state {
                    State::Tainted => self.0.fleet.svids_tainted(),
                    _ => 0,
                },
                next: next(course, life, rotates),
                not_before: about.map_or(record::from_unix_seconds(life.made), |(_, not_before)| not_before),
                name: name.clone(),
                life: *life,
            });
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

    fn course(&self) -> Course {
        self.0.registry.index().authority.course().clone()
    }

    fn is_known(&self, now: SystemTime) -> bool {
        self.0.fleet.known_bundle(now) >= self.sequence()
    }

    async fn step(&self, what: What, now: SystemTime) -> Result<Stepped, RotationError> {
        let known = self.0.fleet.known_bundle(now);
        Ok(self.0.registry.write(Step { what, now, known }).await?)
    }

    /// Again and again, while all that is lacking is that agents know.
    async fn patiently(&self, asked: Asked, name: &str) -> Result<Stepped, RotationError> {
        let since = clock::moment();
        loop {
            let attempt = {
                let _working = self.0.working.lock().await;
                match asked {
                    Asked::Activate => self.activated(name, clock::now()).await,
                    Asked::Taint => self.tainted(name, clock::now()).await,
                }
            };
            match attempt {
                Err(error) if error.is_only_early() && since.elapsed() < WAIT_MAX => {}
                outcome => return outcome,
            }
            tokio::time::sleep(WAIT_LOOK).await;
        }
    }

    async fn prepared(&self, now: SystemTime, by_hand: bool) -> Result<(Name, Stepped), RotationError> {
        let (keyring, ttl) = (self.0.keyring.clone(), self.plan().ttl);
        let trust_domain = self.0.registry.bundles().borrow().trust_domain().clone();
        let made = blocking(move || Authority::make(&keyring, &trust_domain, ttl, now)).await??;
        let name = made.name();
        let what = What::Prepare {
            certificate: made.certificate().clone(),
            not_after: made.not_after(),
            by_hand,
        };
        let stepped = self.step(what, now).await;
        if stepped.as_ref().is_ok_and(|stepped| stepped.is_new) {
            let not_after = Moment::from(made.not_after()).to_string();
            let detail = [("not_after", not_after.clone())];
            self.0.acts.own_act("AuthorityPrepared", name.clone(), detail);
            tracing::info!(target: "hoplite::audit", authority = name, not_after, "an authority is prepared: it is in the trust bundle and signs later");
        } else {
            // Somebody else was faster, or it was refused: its key is for nothing.
            self.forget_keys().await?;
        }
        Ok((name, stepped?))
    }

    async fn activated(&self, name: &str, now: SystemTime) -> Result<Stepped, RotationError> {
        let is_prepared = self
            .course()
            .0
            .get(name)
            .is_some_and(|life| life.state == State::Prepared);
        let word = match is_prepared {
            true => Some(self.word(name).await?),
            false => None,
        };
        let name = name.to_owned();
        let stepped = self.step(What::Activate { name, word }, now).await?;
        self.follow().await?;
        Ok(stepped)
    }

    async fn tainted(&self, name: &str, now: SystemTime) -> Result<Stepped, RotationError> {
        let course = self.course();
        let next = course.prepared().map(|(next, _)| next.clone());
        let signs = course.active().is_some_and(|(active, _)| active == name);
        // Of its successor it is known before the step that its key is there.
        let word = match next.filter(|_| signs) {
            Some(next) => Some(self.word(&next).await?),
            None => None,
        };
        let name = name.to_owned();
        let stepped = self.step(What::Taint { name, word }, now).await?;
        self.follow().await?;
        Ok(stepped)
    }

    /// What the one that signs says of its successor, whose key is there.
    async fn word(&self, successor: &str) -> Result<Word, RotationError> {
        let signing = self.0.issuer.signing();
        let (keyring, certificate) = (self.0.keyring.clone(), self.certificate(successor)?);
        let word = blocking(move || {
            let successor = Authority::with_key(&keyring, certificate)?;
            signing.authority.vouch(&successor).map(|certificate| Word {
                by: signing.authority.name(),
                certificate,
            })
        });
        Ok(word.await??)
    }

    fn certificate(&self, name: &str) -> Result<CertificateDer<'static>, RotationError> {
        let index = self.0.registry.index();
        let trusted = index
            .authority
            .get(name)
            .ok_or_else(|| CourseError::NoSuch(short(name)))?;
        let certificate = trusted.certificate(name);
        certificate.map_err(|error| AuthorityError::Certificate(error.to_string()).into())
    }

    /// Whether another replica has another authority sign, whose key is not here.
    fn lacks_the_key(&self, error: &RotationError) -> bool {
        let is_missing = matches!(
            error,
            RotationError::Authority(AuthorityError::KeyMissing { .. } | AuthorityError::KeyMismatch { .. })
        );
        let course = self.course();
        let active = course.active().map(|(name, _)| name);
        let jwt = self
            .0
            .registry
            .index()
            .authority
            .jwt_course()
            .active()
            .map(|(name, _)| name.clone());
        is_missing
            && (active.is_some_and(|active| *active != self.0.issuer.signing().authority.name())
                || jwt.is_some_and(|kid| self.0.issuer.jwt_kid() != Some(kid)))
    }

    /// Signs with the active one, and shows those that speak for it.
    async fn follow(&self) -> Result<(), RotationError> {
        let Some((name, _)) = self.course().active().map(|(name, life)| (name.clone(), *life)) else {
            return Ok(());
        };
        let certificate = self.certificate(&name)?;
        let shown = self.chain(&certificate);
        let signing = self.0.issuer.signing();
        if signing.shown == shown && signing.authority.certificate() == &certificate {
            return Ok(());
        }
        let is_other = signing.authority.certificate() != &certificate;
        let keyring = self.0.keyring.clone();
        let authority = blocking(move || Authority::with_key(&keyring, certificate)).await??;
        self.0.issuer.sign_with(Signing { authority, shown });
        if is_other {
            self.0.acts.own_act("AuthoritySigns", name.clone(), []);
            tracing::info!(target: "hoplite::audit", authority = name, "another authority signs");
        }
        self.forget_keys().await
    }

    /// The active one, and each old one that spoke for the one before in this list.
    fn chain(&self, active: &CertificateDer<'static>) -> Vec<CertificateDer<'static>> {
        let index = self.0.registry.index();
        let mut old: Vec<(&Name, &Life)> = index.authority.course().in_state(State::Old).collect();
        old.sort_by_key(|(_, life)| std::cmp::Reverse(life.since));
        let mut chain = vec![active.clone()];
        for (name, _) in old.into_iter().take(SHOWN_MAX) {
            let Some(trusted) = index.authority.get(name) else {
                continue;
            };
            let (Some(word), Ok(certificate)) = (trusted.vouches(), trusted.certificate(name)) else {
                continue;
            };
            if chain.last().is_some_and(|last| Authority::has_subject_of(&word, last)) {
                chain.extend([word, certificate]);
            }
        }
        chain
    }

    /// What signs no more, and will not, is no secret worth keeping.
    async fn forget_keys(&self) -> Result<(), RotationError> {
        let needed: Vec<CertificateDer<'static>> = {
            let index = self.0.registry.index();
            let course = index.authority.course();
            let needed = course.in_state(State::Active).chain(course.in_state(State::Prepared));
            let needed = needed.filter_map(|(name, _)| Trusted::certificate(index.authority.get(name)?, name).ok());
            needed.collect()
        };
        let keyring = self.0.keyring.clone();
        let kept = blocking(move || {
            keyring.keep(|signer| needed.iter().any(|certificate| Authority::is_of(certificate, signer)))
        });
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
