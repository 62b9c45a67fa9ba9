//! A CA made of a backup: beside where it will be, until it is whole.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fs::{self, File};
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use hoplite_host::config::ConfigError;
use hoplite_host::files::{self, FileError};
use hoplite_host::give;
use hoplite_host::undo::{self, Undo};
use hoplite_identity::{Moment, SpiffeId, TrustDomain};
use hoplite_store::{Filling, LargeError, LargeId, SledStore, Store, StoreError, Versioned};
use ring::rand::{SecureRandom, SystemRandom};

use crate::Config;
use crate::authority::keyring::Keyrings;
use crate::authority::taking::TrustError;
use crate::authority::x509::{AuthorityError, Maker};
use crate::backup::contents::{self, BadBackup, Head, Receive, Summary};
use crate::backup::database::{self, DatabaseError};
use crate::backup::files::{self as beside, SCRATCH};
use crate::backup::restoring::{self, Facts, RevokeAuthorities};
use crate::backup::sealed::Passphrase;
use crate::config::StoreConfig;
use crate::index::Index;
use crate::record::BadRecord;
use crate::write::{self, WriteError};

/// How far the clock may be behind the one of the CA that made the backup.
const CLOCK_BEHIND_MAX: Duration = Duration::from_secs(60);

/// Epochs and trust bundles are numbered by the second since 1970, and a restore begins above: the last second of the year 9999, where
/// the dates of X.509 end. A higher one is a typing error, or milliseconds, and agents would follow nothing lower ever after.
const AFTER_MAX: u64 = 253_402_300_799;

/// A signal's attempts to remove what is not whole, while it is written still.
const REMOVALS_MAX: usize = 1_000;

/// What the operator says of bans and evictions after the backup. There is no way not to say it.
#[derive(Debug, Clone)]
pub enum LaterBans {
    /// There were none.
    None,
    /// These: agents and operators. They stay out.
    These(BTreeSet<SpiffeId>),
}

/// What was made.
#[derive(Debug, Clone)]
pub struct Restored {
    /// What the backup holds.
    pub summary: Summary,
    /// The new epoch.
    pub epoch: u64,
    /// The CA's configuration says that it lies here.
    pub data_dir: PathBuf,
    /// Agents that the backup knows.
    pub agents: usize,
    /// Tokens that are void.
    pub tokens: usize,
    /// Operators who have to sign in anew.
    pub operators: usize,
    /// Those of the operator's list.
    pub banned: usize,
    /// SHA-256 of the certificates of authorities that count no more by the operator's word.
    pub revoked: Vec<String>,
    /// That of the authority which signs.
    pub signs: String,
    /// It was made just now: whoever has joined before does not know it.
    pub is_fresh: bool,
    /// The policy in force; what is enforced may be newer.
    pub policy_revision: Option<u64>,
    /// The signer set; a newer one may be known to nodes.
    pub signers_version: Option<u64>,
}

/// Why there is no CA of it. Nothing was changed, unless it says so.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The file cannot be used.
    #[error(transparent)]
    Backup(#[from] BadBackup),
    /// Something is there.
    #[error(
        "`data_dir = {directory}` is not empty, `{found}` is in it: a restore replaces nothing; move it away first, and keep it until all is well",
        directory = .directory.display()
    )]
    Used {
        /// The data directory.
        directory: PathBuf,
        /// What is in it.
        found: String,
    },
    /// The database does not take it.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// A CA answers where the restored one would.
    #[error("a CA runs and listens on `{socket}`: stop it first; two CAs of one trust domain must not run side by side", socket = .socket.display())]
    Running {
        /// Its socket.
        socket: PathBuf,
    },
    /// Another restore is at work.
    #[error("another `hoplite ca restore` is at work in `{scratch}`: wait until it has ended", scratch = .scratch.display())]
    Restoring {
        /// Where.
        scratch: PathBuf,
    },
    /// Of another trust domain.
    #[error("the backup is of `{found}`, and the configuration says `trust_domain = {expected}`")]
    OtherTrustDomain {
        /// The configuration's.
        expected: TrustDomain,
        /// The backup's.
        found: TrustDomain,
    },
    /// The clock is wrong.
    #[error(
        "the clock says {now}, and the backup was begun at {begun_at}; set the clock, by which the new epoch is named"
    )]
    Clock {
        /// What it says.
        now: Moment,
        /// When the backup was begun.
        begun_at: Moment,
    },
    /// No epoch that agents follow.
    #[error(
        "`--after {0}` is no epoch and no number of a trust bundle: those are seconds since 1970, and {AFTER_MAX} is the highest that is taken, \
         the end of the year 9999, so that every later one is higher; name the number that `hoplite agent status` shows on a node"
    )]
    After(u64),
    /// It has no trust bundle.
    #[error("there is no authority in the backup; use another one")]
    NoAuthority,
    /// The ids are of others.
    #[error("`{0}` is neither an agent nor an operator of `{1}`; write for example `spiffe://{1}/hoplite/agent/NODE`")]
    NotAnAgent(SpiffeId, TrustDomain),
    /// What is to be revoked is not there.
    #[error(
        "no authority in the backup has a fingerprint that begins with `{0}`, or several have; `hoplite ca restore FILE --check` shows them. One that was made after the backup needs no word: \
         nothing trusts it here"
    )]
    NoSuchAuthority(String),
    /// One of them cannot be revoked.
    #[error("an authority cannot be revoked: {0}")]
    Revoke(#[from] WriteError<TrustError>),
    /// A file cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The directory cannot be read.
    #[error("cannot read `{directory}`: {source}", directory = .directory.display())]
    Directory {
        /// The data directory.
        directory: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The store cannot be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A large value cannot be written.
    #[error(transparent)]
    Large(#[from] LargeError),
    /// What is in it is not what this program writes.
    #[error(transparent)]
    Record(#[from] BadRecord),
    /// The new epoch cannot be noted.
    #[error("the new epoch cannot be noted: {0}")]
    Write(#[from] WriteError<Infallible>),
    /// The authority cannot sign.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// No random numbers.
    #[error("the system gives no random numbers")]
    Random,
}

/// Makes a CA of a backup in the data directory of this configuration, which must be empty. It is a new epoch: agents follow it
/// though its revision is lower than what they have seen. Its epoch, and the number of its trust bundle, are higher than `after`:
/// 0, or what agents name that followed another restore, of a clock that was ahead.
/// `revoked` are the beginnings of the fingerprints of authorities that were tainted or revoked after the backup, which would
/// vouch for peers again.
///
/// # Errors
/// [`RestoreError`]. Whatever was written is removed again.
pub fn restore(
    config: &Config,
    file: &Path,
    passphrase: &Passphrase,
    later_bans: &LaterBans,
    after: u64,
    revoked: &[String],
    now: SystemTime,
) -> Result<Restored, RestoreError> {
    config.check(Path::new("configuration"))?;
    check_after(after)?;
    if let StoreConfig::Postgres(settings) = &config.store {
        database::ensure_empty(settings)?;
    }
    let banned = match later_bans {
        LaterBans::None => BTreeSet::new(),
        LaterBans::These(banned) => banned.clone(),
    };
    let is_ours =
        |id: &&SpiffeId| id.trust_domain() == &config.trust_domain && (id.is_agent() || id.operator().is_some());
    if let Some(other) = banned.iter().find(|id| !is_ours(id)) {
        return Err(RestoreError::NotAnAgent(other.clone(), config.trust_domain.clone()));
    }
    if UnixStream::connect(&config.admin_socket).is_ok() {
        let socket = config.admin_socket.clone();
        return Err(RestoreError::Running { socket });
    }
    let mut tie = [0; 8];
    SystemRandom::new().fill(&mut tie).map_err(|_| RestoreError::Random)?;
    let was_there = config.data_dir.exists();
    files::private_dir_among_others(&config.data_dir)?;
    ensure_empty(&config.data_dir)?;
    let mut scratch = Scratch::begin(config.data_dir.join(SCRATCH))?;
    let made = make(config, file, passphrase, &scratch.path, revoked, now, |summary| Facts {
        begun_at: summary.begun_at,
        revision: summary.revision,
        banned,
        after,
        tie: u64::from_be_bytes(tie),
        now,
    });
    let made = match made {
        Ok(made) => made,
        Err(error) => {
            drop(scratch);
            if !was_there {
                let _ = fs::remove_dir(&config.data_dir); // it was not there before
            }
            return Err(error);
        }
    };
    if let StoreConfig::Postgres(settings) = &config.store {
        // It was filled here so that whatever fails does so before the database has anything of it.
        let store_dir = scratch.path.join("store");
        database::fill(settings, &SledStore::open(&store_dir)?, now)?;
        files::remove_dir(&store_dir)?;
    }
    // The store last: without it no CA starts here, and with it all is there.
    let mut names = Vec::new();
    for entry in fs::read_dir(&scratch.path).map_err(directory(&scratch.path))? {
        names.push(entry.map_err(directory(&scratch.path))?.file_name());
    }
    names.sort_by_key(|name| name == "store");
    scratch.undo = None; // from here on it is quicker to end than to go back
    for name in names {
        files::rename(&scratch.path.join(&name), &config.data_dir.join(&name))?;
    }
    drop(scratch);
    give::to_owner(&config.data_dir)?;
    Ok(made)
}

/// Whether it leaves room for every epoch, and every trust bundle, that is to come.
fn check_after(after: u64) -> Result<(), RestoreError> {
    match after {
        0..=AFTER_MAX => Ok(()),
        _ => Err(RestoreError::After(after)),
    }
}

/// Fills the scratch directory, and looks at what came of it as the CA will.
fn make(
    config: &Config,
    file: &Path,
    passphrase: &Passphrase,
    scratch: &Path,
    revoked: &[String],
    now: SystemTime,
    facts: impl FnOnce(&Summary) -> Facts,
) -> Result<Restored, RestoreError> {
    let store_dir = scratch.join("store");
    let mut making = Making {
        config,
        now,
        scratch,
        store: Filling::begin(&store_dir)?,
    };
    let summary = contents::receive(file, passphrase, &mut making)?;
    let facts = facts(&summary);
    making.store.finish(summary.revision)?;
    let store = SledStore::open(&store_dir)?;
    let index = Index::new(&store.snapshot()?)?;
    if index.authority.bundle().is_none() {
        return Err(RestoreError::NoAuthority);
    }
    let ttl = config.authority_ttl.0;
    let keyring = Keyrings::open(config).map_err(AuthorityError::from)?.x509;
    let maker = Maker::new(config, keyring.in_directory(scratch));
    let course = index.authority.course();
    let find = |prefix: &String| {
        course
            .find(prefix)
            .map_err(|_| RestoreError::NoSuchAuthority(prefix.clone()))
    };
    let names = revoked.iter().map(find).collect::<Result<BTreeSet<_>, _>>()?;
    let is_fresh = !names.is_empty() && RevokeAuthorities::needs_fresh(course, &names);
    if !names.is_empty() {
        let fresh = match is_fresh {
            true => Some(maker.make(ttl, now)?.1),
            false => None,
        };
        let revoke = RevokeAuthorities {
            names: names.clone(),
            fresh,
            now,
        };
        write::commit(&store, &revoke)?;
    }
    let signs = maker.open(&store, ttl, facts.now)?;
    let changed = restoring::change(&store, &facts)?;
    Ok(Restored {
        epoch: changed.epoch.number,
        data_dir: config.data_dir.clone(),
        agents: changed.agents,
        tokens: changed.tokens,
        operators: changed.operators,
        banned: changed.banned,
        revoked: names.into_iter().collect(),
        signs: signs.name(),
        is_fresh,
        policy_revision: index.policy.head().live,
        signers_version: index.policy.signers().map(|chain| chain.version()),
        summary,
    })
}

fn ensure_empty(data_dir: &Path) -> Result<(), RestoreError> {
    for entry in fs::read_dir(data_dir).map_err(directory(data_dir))? {
        let name = entry.map_err(directory(data_dir))?.file_name();
        if name == SCRATCH {
            // Of one that was broken off: nothing of it counts.
            let scratch = data_dir.join(SCRATCH);
            match files::is_locked(&scratch) {
                true => return Err(RestoreError::Restoring { scratch }),
                false => files::remove_dir(&scratch)?,
            }
        } else if name != "lost+found" {
            return Err(RestoreError::Used {
                directory: data_dir.to_owned(),
                found: name.to_string_lossy().into_owned(),
            });
        }
    }
    Ok(())
}

fn directory(path: &Path) -> impl FnOnce(io::Error) -> RestoreError {
    let directory = path.to_owned();
    move |source| RestoreError::Directory { directory, source }
}

/// The directory of what is not whole. Dropping it removes it, as does a signal.
struct Scratch {
    path: PathBuf,
    undo: Option<Undo>,
    /// Of another restore, and of a CA, it is known by that that this one is at work.
    _alone: File,
}

impl Scratch {
    fn begin(path: PathBuf) -> Result<Self, RestoreError> {
        files::private_dir(&path)?;
        let Some(alone) = files::lock_dir(&path).map_err(directory(&path))? else {
            return Err(RestoreError::Restoring { scratch: path });
        };
        let left = path.clone();
        let undo = undo::at_signal(move || {
            // Somebody may be writing in it.
            for _ in 0..REMOVALS_MAX {
                match fs::remove_dir_all(&left) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {}
                    _ => break,
                }
            }
        });
        Ok(Self {
            path,
            undo: Some(undo),
            _alone: alone,
        })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path); // where that fails no CA starts, and says so
    }
}

struct Making<'a> {
    config: &'a Config,
    now: SystemTime,
    scratch: &'a Path,
    store: Filling,
}

impl Receive for Making<'_> {
    type Error = RestoreError;

    fn head(&mut self, head: &Head) -> Result<(), RestoreError> {
        if head.trust_domain != self.config.trust_domain {
            return Err(RestoreError::OtherTrustDomain {
                expected: self.config.trust_domain.clone(),
                found: head.trust_domain.clone(),
            });
        }
        if self.now + CLOCK_BEHIND_MAX < head.begun_at {
            return Err(RestoreError::Clock {
                now: self.now.into(),
                begun_at: head.begun_at.into(),
            });
        }
        Ok(())
    }

    fn value(&mut self, key: &[u8], held: Option<&Versioned>) -> Result<(), RestoreError> {
        match held {
            Some(held) => self.store.put(key, held)?,
            None => self.store.delete(key)?,
        }
        Ok(())
    }

    fn large(&mut self, _: &LargeId, bytes: &[u8]) -> Result<(), RestoreError> {
        self.store.put_large(bytes, self.now)?;
        Ok(())
    }

    fn file(&mut self, path: &str, bytes: &[u8]) -> Result<(), RestoreError> {
        Ok(beside::write(self.scratch, path, bytes)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restore_begins_where_there_is_room_above() {
        for (after, is_good) in [
            (0, true),
            (1_800_000_000, true),
            (AFTER_MAX, true),
            (AFTER_MAX + 1, false),
            (1_800_000_000_000, false),
            (u64::MAX, false),
        ] {
            match check_after(after) {
                Ok(()) => assert!(is_good, "{after}"),
                Err(error) => {
                    let said = error.to_string();
                    assert!(!is_good && said.contains(&format!("--after {after}")), "{said}");
                    assert!(said.contains("hoplite agent status"), "{said}");
                }
            }
        }
    }
}
