//! What a restore changes of what was backed up: the epoch rises, and what may have been used, ended or forbidden since is void.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::time::SystemTime;

use hoplite_identity::SpiffeId;
use hoplite_store::{Revision, Store};

use crate::agents::agent::Agent;
use crate::authority::course::{Life, Name, State};
use crate::authority::taking::{Taking, TrustError};
use crate::authority::trust::{Trust, Trusted};
use crate::authority::writes::New;
use crate::epoch::{Epoch, EpochName};
use crate::operators::operator::Operator;
use crate::record::unix_seconds;
use crate::tokens::token::Token;
use crate::write::{self, Changes, ReadError, View, Write, WriteError};

/// Records changed in one commit.
const CHANGES_MAX: usize = 1_000;

/// What became of it, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Changed {
    pub(crate) epoch: EpochName,
    pub(crate) tokens: usize,
    pub(crate) operators: usize,
    pub(crate) agents: usize,
    /// Agents and operators.
    pub(crate) banned: usize,
}

/// What is known of the backup and of this restore.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub(crate) begun_at: SystemTime,
    pub(crate) revision: Revision,
    pub(crate) banned: BTreeSet<SpiffeId>,
    /// What agents follow: an epoch, or the number of a trust bundle.
    pub(crate) after: u64,
    pub(crate) tie: u64,
    pub(crate) now: SystemTime,
}

/// Does it, in a store that nobody else has open: the epoch last.
pub(crate) fn change(store: &dyn Store, facts: &Facts) -> Result<Changed, WriteError<Infallible>> {
    // Whether one was used since nobody knows: none works again.
    let tokens = all::<Token>(store)?;
    for names in Vec::from_iter(tokens.keys().cloned()).chunks(CHANGES_MAX) {
        write::commit(store, &Forget(names.to_vec()))?;
    }
    // A sign-out, a removal or a machine that was lost since is not known either: everybody signs in anew. Roles and bans stay.
    let operators = all::<Operator>(store)?;
    let banned: BTreeSet<String> = facts
        .banned
        .iter()
        .filter_map(SpiffeId::operator)
        .map(str::to_owned)
        .collect();
    // Whoever is banned is among them, though the backup does not know the name.
    let names = BTreeSet::from_iter(operators.keys().chain(&banned).cloned());
    for names in Vec::from_iter(names).chunks(CHANGES_MAX) {
        let (names, banned) = (names.to_vec(), banned.clone());
        write::commit(store, &SignOutAll { names, banned })?;
    }
    let agents: Vec<_> = facts.banned.iter().filter(|id| id.is_agent()).cloned().collect();
    for ids in agents.chunks(CHANGES_MAX) {
        write::commit(store, &BanAll(ids.to_vec()))?;
    }
    let (epoch, _) = write::commit(store, &Begin(facts.clone()))?;
    Ok(Changed {
        epoch,
        tokens: tokens.len(),
        operators: operators.len(),
        agents: all::<Agent>(store)?.len(),
        banned: facts.banned.len(),
    })
}

fn all<R: crate::record::Record>(store: &dyn Store) -> Result<BTreeMap<String, R>, ReadError> {
    View::new(store).passing::<R>()
}

/// Takes authorities out of the trust bundle that were tainted or revoked after the backup, and has another one sign if one of them
/// did. Nobody else has the store open, and no agent follows it yet: nothing waits until somebody knows the other one.
pub(crate) struct RevokeAuthorities {
    pub(crate) names: BTreeSet<Name>,
    /// Who signs instead when no prepared one is left.
    pub(crate) fresh: Option<New<Trusted>>,
    pub(crate) now: SystemTime,
}

// === impl RevokeAuthorities ===

impl RevokeAuthorities {
    /// Whether one has to be made for it.
    pub(crate) fn needs_fresh(course: &crate::authority::course::Course, names: &BTreeSet<Name>) -> bool {
        let is_left = |state| course.in_state(state).any(|(name, _)| !names.contains(name));
        !is_left(State::Active) && !is_left(State::Prepared)
    }
}

impl Write for RevokeAuthorities {
    type Reads = (Option<Trust>, BTreeMap<String, Trusted>);
    /// Who signs.
    type Answer = Name;
    type Error = TrustError;

    fn read(&self, view: &mut View<'_>) -> Result<Self::Reads, ReadError> {
        Ok((view.one("")?, view.all()?))
    }

    fn decide(&self, (trust, mut trusted): Self::Reads) -> Result<(Changes, Name), TrustError> {
        let trust = trust.ok_or(TrustError::NotFounded)?;
        if let Some(fresh) = &self.fresh {
            let life = Life::new(State::Prepared, self.now, fresh.not_after);
            let record = Trusted::new_one(&trust.trust_domain, &fresh.made, life, fresh.sealed.clone())?;
            trusted.insert(Trusted::name(&fresh.made), record);
        }
        for (name, trusted) in &mut trusted {
            if self.names.contains(name) {
                trusted.live(Life {
                    state: State::Revoked,
                    since: unix_seconds(self.now),
                    ..trusted.life
                });
            }
        }
        let course = crate::authority::taking::course(&trusted);
        let next = course
            .active()
            .or_else(|| course.prepared())
            .map(|(name, _)| name.clone());
        let active = next.ok_or(TrustError::NotFounded)?;
        if let Some(signs) = trusted.get_mut(&active) {
            (signs.life.state, signs.life.since) = (State::Active, unix_seconds(self.now));
        }
        let changes = trusted
            .iter()
            .fold(Changes::none(), |changes, (name, trusted)| changes.put(name, trusted));
        Ok((changes, active))
    }
}

struct Forget(Vec<String>);

impl Write for Forget {
    type Reads = ();
    type Answer = ();
    type Error = Infallible;

    fn read(&self, _: &mut View<'_>) -> Result<(), ReadError> {
        Ok(())
    }

    fn decide(&self, (): ()) -> Result<(Changes, ()), Infallible> {
        let changes = self.0.iter();
        Ok((
            changes.fold(Changes::none(), |changes, name| changes.delete::<Token>(name)),
            (),
        ))
    }
}

struct SignOutAll {
    names: Vec<String>,
    /// Names, too.
    banned: BTreeSet<String>,
}

impl Write for SignOutAll {
    type Reads = Vec<(String, Option<Operator>)>;
    type Answer = ();
    type Error = Infallible;

    fn read(&self, view: &mut View<'_>) -> Result<Self::Reads, ReadError> {
        let read = self.names.iter().map(|name| Ok((name.clone(), view.one(name)?)));
        read.collect()
    }

    fn decide(&self, operators: Self::Reads) -> Result<(Changes, ()), Infallible> {
        let changes = operators
            .into_iter()
            .fold(Changes::none(), |changes, (name, operator)| {
                let operator =
                    operator.unwrap_or_else(|| Operator::invited(name.clone(), BTreeSet::new(), BTreeSet::new()));
                let operator = operator.signed_out_everywhere(self.banned.contains(&name));
                changes.put(&name, &operator)
            });
        Ok((changes, ()))
    }
}

struct BanAll(Vec<SpiffeId>);

impl Write for BanAll {
    type Reads = Vec<(SpiffeId, Option<Agent>)>;
    type Answer = ();
    type Error = Infallible;

    fn read(&self, view: &mut View<'_>) -> Result<Self::Reads, ReadError> {
        let read = self.0.iter().map(|id| Ok((id.clone(), view.one(id.as_str())?)));
        read.collect()
    }

    fn decide(&self, agents: Self::Reads) -> Result<(Changes, ()), Infallible> {
        let changes = agents.into_iter().fold(Changes::none(), |changes, (id, agent)| {
            let banned = match agent {
                Some(agent) => agent.banned(),
                // It joined after the backup: what it holds would let it in.
                None => Agent::banned_unseen(id.clone()),
            };
            changes.put(id.as_str(), &banned)
        });
        Ok((changes, ()))
    }
}

struct Begin(Facts);

impl Write for Begin {
    type Reads = (Option<Epoch>, Option<Trust>);
    type Answer = EpochName;
    type Error = Infallible;

    fn read(&self, view: &mut View<'_>) -> Result<Self::Reads, ReadError> {
        Ok((view.one("")?, view.one("")?))
    }

    fn decide(&self, (before, trust): Self::Reads) -> Result<(Changes, EpochName), Infallible> {
        let Facts {
            begun_at,
            revision,
            tie,
            after,
            now,
            ..
        } = self.0;
        let epoch = Epoch::after(before.as_ref(), after, begun_at, revision, tie, now);
        let changes = Changes::none().put("", &epoch);
        // What agents hold of the trust bundle may be newer by its number, and must not be taken for it.
        let changes = match trust {
            Some(trust) => {
                let sequence = epoch.name.number.max(trust.sequence.saturating_add(1));
                changes.put("", &Trust { sequence, ..trust })
            }
            None => changes,
        };
        Ok((changes, epoch.name))
    }
}
