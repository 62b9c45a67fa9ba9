//! The turns of the keys for JWT-SVIDs: the same course as that of the X.509 authorities, at the same half and last sixth of a life.

use std::time::SystemTime;

use hoplite_host::clock;

use crate::authority::course::{Course, CourseError, Due, Life, Name, State};
use crate::authority::jwt::{JwtSigner, JwtStep, JwtTrusted, JwtWhat};
use crate::authority::signer::Keyring;
use crate::authority::writes::Stepped;
use crate::authority::x509::AuthorityError;
use crate::record;
use crate::rotation::{Rotation, RotationError, Shown, WAIT_LOOK, WAIT_MAX, blocking, next};

// === impl Rotation ===

impl Rotation {
    /// All that is due by now of the keys for JWT-SVIDs. Time alone has them take their turns, also where people do it for the
    /// X.509 authorities: nobody outside has such a key pinned. Not where other CAs need the key.
    pub(super) async fn turn_jwt(&self, now: SystemTime) -> Result<(), RotationError> {
        let _working = self.0.working.lock().await;
        self.follow_jwt().await?;
        loop {
            let Some(due) = self.jwt_course().due(now, self.plan().jwt_rotates, self.is_known(now)) else {
                return Ok(());
            };
            match due {
                Due::Leave(_) => {
                    for kid in &self.step_jwt(JwtWhat::Leave, now).await?.gone {
                        self.0.acts.own_act("JwtKeyLeaves", kid.clone(), []);
                        tracing::info!(target: "hoplite::audit", kid, "a key for JWT-SVIDs has ended and left the trust bundle");
                    }
                }
                Due::Prepare => drop(self.prepared_jwt(now, false).await?),
                Due::Activate(name) => {
                    self.step_jwt(JwtWhat::Activate { name }, now).await?;
                    self.follow_jwt().await?;
                }
            }
        }
    }

    /// Whether a key for JWT-SVIDs, and no X.509 authority, is called so.
    pub(crate) fn is_jwt(&self, prefix: &str) -> bool {
        let index = self.0.registry.index();
        index.authority.course().find(prefix).is_err() && index.authority.jwt_course().find(prefix).is_ok()
    }

    /// Makes one more, by hand.
    pub(crate) async fn prepare_jwt(&self) -> Result<(Name, Stepped), RotationError> {
        let _working = self.0.working.lock().await;
        self.prepared_jwt(clock::now(), true).await
    }

    /// Has it sign; of several that are prepared the first, if none is named. Waits until agents know it.
    pub(crate) async fn activate_jwt(&self, prefix: &str) -> Result<(Name, Stepped), RotationError> {
        let course = self.jwt_course();
        let name = match prefix {
            "" => course.prepared().ok_or(CourseError::NonePrepared)?.0.clone(),
            prefix => course.find(prefix)?,
        };
        let stepped = self.patiently_jwt(JwtWhat::Activate { name: name.clone() }).await?;
        Ok((name, stepped))
    }

    /// Has all tokens replaced that it signed. If it signs still, its successor does so first, which is made if there is none.
    pub(crate) async fn taint_jwt(&self, prefix: &str) -> Result<(Name, Stepped), RotationError> {
        let course = self.jwt_course();
        let name = course.find(prefix)?;
        if course.active().is_some_and(|(active, _)| *active == name) && course.prepared().is_none() {
            let _working = self.0.working.lock().await;
            self.prepared_jwt(clock::now(), false).await?;
        }
        let stepped = self.patiently_jwt(JwtWhat::Taint { name: name.clone() }).await?;
        Ok((name, stepped))
    }

    /// Takes it out of the trust bundle: no token that it signed is believed any more.
    pub(crate) async fn revoke_jwt(&self, prefix: &str) -> Result<(Name, Stepped), RotationError> {
        let name = self.jwt_course().find(prefix)?;
        let _working = self.0.working.lock().await;
        let what = JwtWhat::Revoke { name: name.clone() };
        let stepped = self.step_jwt(what, clock::now()).await?;
        self.follow_jwt().await?;
        Ok((name, stepped))
    }

    /// All of them: the one that signs first, then those that will, then those that did.
    pub(crate) fn shown_jwt(&self) -> Vec<Shown> {
        let course = self.jwt_course();
        let one = |(name, life): (&Name, &Life)| Shown {
            name: name.clone(),
            life: *life,
            not_before: record::from_unix_seconds(life.made),
            agents: Vec::new(),
            operators: Vec::new(),
            svids: 0,
            next: next(&course, life, self.plan().jwt_rotates),
        };
        let mut all: Vec<Shown> = course.0.iter().map(one).collect();
        all.sort_by_key(Shown::place);
        all
    }

    /// Again and again, while all that is lacking is that agents know.
    async fn patiently_jwt(&self, what: JwtWhat) -> Result<Stepped, RotationError> {
        let since = clock::moment();
        loop {
            let attempt = {
                let _working = self.0.working.lock().await;
                self.step_jwt(what.clone(), clock::now()).await
            };
            match attempt {
                Err(error) if error.is_only_early() && since.elapsed() < WAIT_MAX => {}
                outcome => {
                    let _working = self.0.working.lock().await;
                    self.follow_jwt().await?;
                    return outcome;
                }
            }
            tokio::time::sleep(WAIT_LOOK).await;
        }
    }

    fn jwt_course(&self) -> Course {
        self.0.registry.index().authority.jwt_course().clone()
    }

    async fn prepared_jwt(&self, now: SystemTime, by_hand: bool) -> Result<(Name, Stepped), RotationError> {
        let (keyring, ttl) = (self.jwt_keyring(), self.plan().ttl);
        let (point, not_after) = blocking(move || JwtSigner::make(&keyring, ttl, now)).await??;
        let kid = JwtTrusted::name_of(&point);
        let name = kid.clone();
        let what = JwtWhat::Prepare {
            point,
            not_after,
            by_hand,
        };
        let stepped = self.step_jwt(what, now).await;
        if stepped.as_ref().is_ok_and(|stepped| stepped.is_new) {
            self.0.acts.own_act("JwtKeyPrepared", kid.clone(), []);
            tracing::info!(target: "hoplite::audit", kid, "a key for JWT-SVIDs is prepared: it is in the trust bundle and signs later");
        } else {
            // Somebody else was faster, or it was refused: the key is for nothing.
            self.forget_jwt_keys().await?;
        }
        Ok((name, stepped?))
    }

    async fn step_jwt(&self, what: JwtWhat, now: SystemTime) -> Result<Stepped, RotationError> {
        let known = self.0.fleet.known_bundle(now);
        Ok(self.0.registry.write(JwtStep { what, now, known }).await?)
    }

    /// Signs with the active one.
    async fn follow_jwt(&self) -> Result<(), RotationError> {
        let (name, trusted): (Name, _) = {
            let index = self.0.registry.index();
            let Some((name, _)) = index.authority.jwt_course().active() else {
                return Ok(());
            };
            (name.clone(), index.authority.jwt().clone())
        };
        if self.0.issuer.jwt_kid().as_ref() == Some(&name) {
            return Ok(());
        }
        let (keyring, kid) = (self.jwt_keyring(), name.clone());
        let signer = blocking(move || JwtSigner::held(&keyring, &trusted, &kid)).await??;
        let path = || self.jwt_keyring().path().to_owned();
        let signer = signer.ok_or_else(|| AuthorityError::KeyMissing { path: path() })?;
        self.0.issuer.sign_jwt_with(signer);
        self.0.acts.own_act("JwtKeySigns", name.to_owned(), []);
        tracing::info!(target: "hoplite::audit", kid = name, "another key signs JWT-SVIDs");
        self.forget_jwt_keys().await
    }

    /// What signs no more, and will not, is no secret worth keeping.
    async fn forget_jwt_keys(&self) -> Result<(), RotationError> {
        let mut needed = self.0.registry.index().authority.jwt().clone();
        needed.retain(|_, trusted| matches!(trusted.life.state, State::Active | State::Prepared));
        let keyring = self.jwt_keyring();
        let kept = blocking(move || keyring.keep(|signer| needed.values().any(|trusted| trusted.is_of(signer))));
        Ok(kept.await?.map_err(AuthorityError::from)?)
    }

    fn jwt_keyring(&self) -> Keyring {
        self.0.jwt_keyring.clone()
    }
}
