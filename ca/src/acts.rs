//! What is done at this CA, in a log of its own: who did what to what, from where and by which policy. It is written before the
//! act, and what became of it is on the disk before anybody hears of it. The log is chained as decision logs are.

pub(crate) mod written;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hoplite_audit::{Class, Control, DecisionId, Issuance, Options, Recordable, Recorder, RecorderError, Stage};
use hoplite_host::clock;
use hoplite_host::daemon::one_line;
use hoplite_identity::{CertificateDer, EntryId};
use hoplite_seal::Hash;

use crate::acts::written::{Settled, Written};
use crate::config::Config;
use crate::entries::names::Named;
use crate::issuance::Minted;
use crate::issuance::authority::MintedAuthority;
use crate::issuance::jwt::MintedJwt;

/// The recorder's name: it stands in the id of every record.
const NAME: &str = "ca";

/// Beside the store: how far the log had come, so that one that is gone or older is noticed.
const NOTE: &str = "ca-log";

/// Of each text of a record. What is longer is cut, and its digest kept: callers send lists of any length.
const TEXT_BYTES_MAX: usize = 1_024;

/// Who does what nobody asked for.
const OWN: &str = "hoplite-ca";

/// Below the data directory, where the configuration does not say where else.
const DIR: &str = "audit";

/// How often it is tried whether a log that failed can be written again.
const TRY_EVERY: Duration = Duration::from_secs(1);

/// Writes down what is done. Where that fails, nothing is done until it can be written again. Clones write into the same log.
#[derive(Debug, Clone)]
pub(crate) struct Acts(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    place: Place,
    state: Mutex<State>,
}

/// Where the log lies.
#[derive(Debug)]
struct Place {
    dir: PathBuf,
    note: PathBuf,
}

#[derive(Debug)]
enum State {
    Writes(Recorder),
    /// The disk was full, or somebody has touched the log.
    Failed {
        error: RecorderError,
        tried: Instant,
    },
}

/// One act, and what is known of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Act {
    pub(crate) actor: String,
    pub(crate) action: &'static str,
    pub(crate) subject: String,
    /// An IP address; none on the CA's own socket.
    pub(crate) source: Option<String>,
    /// The policies that permitted it.
    pub(crate) by: Vec<String>,
    pub(crate) detail: BTreeMap<String, String>,
}

/// How a certificate came to be asked for.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    /// By its SPIFFE ID.
    pub(crate) requester: String,
    /// By what call.
    pub(crate) how: &'static str,
    /// An IP address; none on the CA's own socket.
    pub(crate) source: Option<String>,
}

/// Nothing can be written down, so nothing may be done.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the CA cannot write down what is done: {0}")]
pub struct Unwritten(#[from] RecorderError);

/// Why there is no log to begin with.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the CA's log in `{dir}` cannot be written: {source}")]
pub struct ActsError {
    /// The log's directory.
    pub dir: PathBuf,
    /// Why.
    pub source: RecorderError,
}

// === impl Acts ===

impl Acts {
    /// The log that the configuration names, made if there is none.
    pub(crate) fn open(config: &Config) -> Result<Self, ActsError> {
        let place = Place {
            dir: config.audit_dir.clone().unwrap_or_else(|| config.data_dir.join(DIR)),
            note: config.data_dir.join(NOTE),
        };
        let recorder = place.open().map_err(|source| ActsError {
            dir: place.dir.clone(),
            source,
        })?;
        Ok(Self(Arc::new(Shared {
            place,
            state: Mutex::new(State::Writes(recorder)),
        })))
    }

    /// Why nothing can be written down, asked whenever somebody wants to know; none while it can, or once the log is closed. Nothing
    /// is held open by it.
    pub(crate) fn unwritten(&self) -> impl Fn() -> Option<String> + Send + Sync + use<> {
        let held = Arc::downgrade(&self.0);
        move || {
            let acts = Self(held.upgrade()?);
            // One that failed is tried again, so that it is known without a caller when there is room again.
            let failed = match acts.recorder() {
                Ok(recorder) => recorder.failure().inspect(|error| acts.fail(error))?,
                Err(Unwritten(error)) => error,
            };
            Some(one_line(&failed))
        }
    }

    /// The CA itself did this, by admin policies with this digest.
    pub(crate) fn own(&self, action: &'static str, admin_policies: String) -> Result<(), ActsError> {
        let act = Act {
            actor: OWN.to_owned(),
            action,
            detail: [
                ("admin_policies".to_owned(), admin_policies),
                ("version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
            ]
            .into(),
            ..Act::default()
        };
        self.done(act, None).map(drop).map_err(|Unwritten(source)| ActsError {
            dir: self.0.place.dir.clone(),
            source,
        })
    }

    /// It is about to be done. A killed process loses this no more; what follows names it.
    pub(crate) fn begin(&self, act: Act) -> Result<Written, Unwritten> {
        self.write(act, Stage::Begun, None, None)
    }

    /// It was done.
    pub(crate) fn done(&self, act: Act, began: Option<Written>) -> Result<Written, Unwritten> {
        self.write(act, Stage::Done, None, began)
    }

    /// It was not done.
    pub(crate) fn refused(&self, act: Act, reason: &str, began: Option<Written>) -> Result<Written, Unwritten> {
        self.write(act, Stage::Refused, Some(reason), began)
    }

    /// Something that the CA does of its own accord. Where it cannot be written, the log of the process says so.
    pub(crate) fn own_act<const N: usize>(&self, action: &'static str, subject: String, detail: [(&str, String); N]) {
        let act = Act {
            actor: OWN.to_owned(),
            action,
            subject,
            detail: detail.map(|(name, text)| (name.to_owned(), text)).into(),
            ..Act::default()
        };
        if let Err(error) = self.done(act, None) {
            tracing::error!(target: "hoplite::audit", action, %error, "what the CA did of its own accord is not in its log");
        }
    }

    /// A certificate that was asked for, once its record is on the disk.
    pub(crate) async fn release(
        &self,
        minted: Minted,
        asked: Asked,
    ) -> Result<Vec<CertificateDer<'static>>, Unwritten> {
        let written = self.issued(&minted, asked, None)?;
        Ok(minted.leaves(&self.settled([written]).await?))
    }

    /// The CA's own certificate. Blocks until its record is on the disk.
    pub(crate) fn release_own(&self, minted: Minted) -> Result<Vec<CertificateDer<'static>>, Unwritten> {
        let asked = Asked {
            requester: minted.leaf.spiffe_id().to_string(),
            how: "own",
            source: None,
        };
        let written = self.issued(&minted, asked, None)?;
        written.recorder.wait_durable(written.seq)?;
        Ok(minted.leaves(&Settled::new()))
    }

    /// A JWT-SVID was made, and is about to leave.
    pub(crate) fn issued_jwt(&self, minted: &MintedJwt, asked: Asked, named: &Named) -> Result<Written, Unwritten> {
        let Asked { requester, how, source } = asked;
        self.issuance(Issuance {
            id: DecisionId::default(),
            at: clock::now(),
            subject: named.spiffe_id().to_string(),
            serial: minted.digest(),
            not_after: minted.expires_at,
            requester,
            entry: Some(named.registered().id.to_string()),
            authority: Some(minted.kid.clone()),
            how: how.to_owned(),
            source,
            values: values_of(named),
        })
    }

    /// A certificate was made, and is about to leave.
    pub(crate) fn issued(&self, minted: &Minted, asked: Asked, named: Option<&Named>) -> Result<Written, Unwritten> {
        let Minted { leaf, authority, .. } = minted;
        let Asked { requester, how, source } = asked;
        self.issuance(Issuance {
            id: DecisionId::default(),
            at: clock::now(),
            subject: leaf.spiffe_id().to_string(),
            serial: leaf.serial().to_owned(),
            not_after: leaf.not_after(),
            requester,
            entry: named.map(|named| named.registered().id.to_string()),
            authority: Some(authority.clone()),
            how: how.to_owned(),
            source,
            values: named.map(values_of).unwrap_or_default(),
        })
    }

    /// An authority of a nested CA was made, and is about to leave.
    pub(crate) fn issued_authority(
        &self,
        minted: &MintedAuthority,
        asked: Asked,
        entry: &EntryId,
    ) -> Result<Written, Unwritten> {
        let Asked { requester, how, source } = asked;
        self.issuance(Issuance {
            id: DecisionId::default(),
            at: clock::now(),
            subject: requester.clone(),
            serial: minted.serial.clone(),
            not_after: minted.not_after,
            requester,
            entry: Some(entry.to_string()),
            authority: Some(minted.authority.clone()),
            how: how.to_owned(),
            source,
            values: Vec::new(),
        })
    }

    fn issuance(&self, mut issuance: Issuance) -> Result<Written, Unwritten> {
        // Whoever answers waits for the last of a batch, which flushes all.
        self.append(&mut issuance, Class::Full)
    }

    /// Ends when these records, and what was written before them, are on the disk.
    pub(crate) async fn settled(&self, all: impl IntoIterator<Item = Written>) -> Result<Settled, Unwritten> {
        let all: Vec<Written> = all.into_iter().collect();
        // The last first: what was written before it is on the disk with it.
        for written in all.iter().rev() {
            written.recorder.durable(written.seq).await?;
        }
        Ok(Settled::new())
    }

    fn append<R: Recordable>(&self, record: &mut R, class: Class) -> Result<Written, Unwritten> {
        let recorder = self.recorder()?;
        match recorder.append(record, class) {
            Ok(appended) => Ok(Written {
                recorder,
                seq: appended.seq,
            }),
            Err(error) => {
                if recorder.failure().is_some() {
                    self.fail(&error);
                }
                Err(error.into())
            }
        }
    }

    /// The one that writes, or that writes again.
    fn recorder(&self) -> Result<Recorder, Unwritten> {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (error, tried) = match &*state {
            State::Writes(recorder) => return Ok(recorder.clone()),
            State::Failed { error, tried } => (error.clone(), *tried),
        };
        let now = clock::moment();
        // A directory that is gone is put back by whoever took it: none is made in its place.
        if now.saturating_duration_since(tried) < TRY_EVERY || !self.0.place.dir.is_dir() {
            return Err(error.into());
        }
        match self.0.place.open() {
            Ok(recorder) => {
                tracing::warn!(
                    notice = true,
                    "the CA's log can be written again, so the CA does what it is asked"
                );
                *state = State::Writes(recorder.clone());
                Ok(recorder)
            }
            Err(next) => {
                // Whoever waits for a record of before has the log still.
                let error = match next {
                    RecorderError::InUse { .. } => error,
                    next => next,
                };
                *state = State::Failed {
                    error: error.clone(),
                    tried: now,
                };
                Err(error.into())
            }
        }
    }

    fn fail(&self, error: &RecorderError) {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(&*state, State::Writes(_)) {
            tracing::error!(notice = true, %error, "ALARM: what is done can be written down no longer, so nothing is done and nothing issued");
            *state = State::Failed {
                error: error.clone(),
                tried: clock::moment(),
            };
        }
    }

    fn write(
        &self,
        act: Act,
        stage: Stage,
        reason: Option<&str>,
        began: Option<Written>,
    ) -> Result<Written, Unwritten> {
        let Act {
            actor,
            action,
            subject,
            source,
            by,
            detail,
        } = act;
        // A log that was opened anew meanwhile counts from 0 again: its records name none of before.
        let began = match (began, &*self.0.state.lock().unwrap_or_else(PoisonError::into_inner)) {
            (Some(began), State::Writes(now)) if began.recorder.boot() == now.boot() => Some(began.seq),
            _ => None,
        };
        let mut control = Control {
            id: DecisionId::default(),
            at: clock::now(),
            actor: bounded(actor),
            action: action.to_owned(),
            subject: bounded(subject),
            stage,
            reason: reason.map(|reason| bounded(reason.to_owned())),
            source,
            by: by.into_iter().map(bounded).collect(),
            began,
            detail: detail.into_iter().map(|(name, text)| (name, bounded(text))).collect(),
        };
        let class = match stage {
            Stage::Begun => Class::Full,
            Stage::Done | Stage::Refused => Class::Must,
        };
        self.append(&mut control, class)
    }
}

// === impl Place ===

impl Place {
    fn open(&self) -> Result<Recorder, RecorderError> {
        let (recorder, repair) = Recorder::open_noted(&self.dir, NAME, Options::default(), &self.note)?;
        if repair.missing > 0 {
            tracing::error!(
                notice = true,
                records = repair.missing,
                "the CA's log has lost records that were on the disk"
            );
        } else if repair.torn_bytes > 0 {
            tracing::warn!(
                bytes = repair.torn_bytes,
                "the CA's log ended in an unfinished record, which was never acknowledged"
            );
        }
        Ok(recorder)
    }
}

fn bounded(text: String) -> String {
    if text.len() <= TEXT_BYTES_MAX {
        return text;
    }
    let ends = text.char_indices().map(|(at, _)| at);
    let end = ends.take_while(|at| *at <= TEXT_BYTES_MAX).last().unwrap_or_default();
    let kept = text.get(..end).unwrap_or_default();
    format!("{kept}… ({} bytes, SHA-256 {})", text.len(), Hash::of(text.as_bytes()))
}

/// As a record has them.
fn values_of(named: &Named) -> Vec<String> {
    named.values().iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_at_a_character_and_named() {
        let short = "é".repeat(TEXT_BYTES_MAX / 2);
        assert_eq!(bounded(short.clone()), short);
        let long = format!("a{}", "é".repeat(100_000));
        let cut = bounded(long.clone());
        assert!(cut.len() < TEXT_BYTES_MAX + 120, "{}", cut.len());
        assert!(cut.ends_with(&format!("é… (200001 bytes, SHA-256 {})", Hash::of(long.as_bytes()))));
    }
}
