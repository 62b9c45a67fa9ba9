//! Two files: a log of sealed changes, and a small head that says which log counts, and up to where.
//!
//! | file | content |
//! |---|---|
//! | `supply.head` | magic, version, file id, name of the key, owner; sealed: length and number of frames of the log |
//! | `supply-<id>.log` | frames: length, nonce, sealed batch of changes |
//!
//! A change is appended, and counts when the head, which is replaced whole, vouches for it: what a crash left behind it is
//! written over. So a change costs what it is long, however much else is kept. What later changes have replaced is left out
//! when the log is written anew, which happens when that is more than half of it. Whatever is not exactly what was written is
//! [`Unusable`]: nothing of it counts.

use std::collections::HashMap;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use hoplite_host::files::{self, FileError};
use prost::bytes::Bytes;
use prost::{DecodeError, Message};
use ring::aead::{Aad, LessSafeKey, NONCE_LEN, Nonce};
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

use crate::kept::key::{KeyName, StorageKey};
use crate::kept::record::{Batch, Change, Position, RawBatch, RawChange, SvidRecord};

/// The root of what is kept.
pub(crate) const HEAD: &str = "supply.head";

/// How the logs' names begin and end.
const LOG: (&str, &str) = ("supply-", ".log");

const MAGIC: &[u8; 15] = b"hoplite supply\n";

/// Of both files. Another one is not read.
const VERSION: u8 = 1;

const FILE_ID_LEN: usize = 16;

const TAG_LEN: usize = 16;

/// What is sealed at once.
const FRAME_BYTES: usize = 256 << 10;

/// Below this a log is not worth to be written anew.
const WASTE_BYTES_MIN: u64 = 1 << 20;

/// The log that is written to.
pub(crate) struct Log {
    dir: PathBuf,
    file: File,
    file_id: [u8; FILE_ID_LEN],
    key: LessSafeKey,
    key_name: KeyName,
    owner: String,
    bytes: u64,
    frames: u64,
    /// What each entry takes of it: what was registered, and the SVID.
    live: HashMap<Box<str>, [u32; 2]>,
    live_bytes: u64,
    written: u64,
}

/// All that counts, as parts of what was read, which is wiped when the last of them goes.
#[derive(Debug, Default)]
pub(crate) struct Content {
    /// By the entry's id.
    pub(crate) entries: HashMap<Bytes, Slot>,
    pub(crate) position: Position,
    pub(crate) foreign: Option<hoplite_wire::ca::Foreign>,
}

/// What is kept of one entry, not looked at yet.
#[derive(Clone, Default)]
pub(crate) struct Slot {
    entry: Option<Bytes>,
    svid: Option<Bytes>,
}

/// Why nothing of what is kept counts.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unusable {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("`{HEAD}` is not what an agent writes")]
    Foreign,
    #[error("`{HEAD}` has the format {0}, and this agent reads {VERSION}: another version of the agent wrote it")]
    Version(u8),
    #[error("it belongs to `{0}`")]
    OtherNode(String),
    #[error("it was sealed with another key than the one at hand")]
    OtherKey,
    #[error("`{HEAD}` is damaged")]
    Head,
    #[error(
        "there is no `{HEAD}`, without which the log beside it says nothing: it was removed, or the first start was cut short"
    )]
    NoHead,
    #[error("`{log}` is shorter than it was")]
    Short { log: String },
    #[error("frame {frame} of `{log}` is damaged")]
    Frame { log: String, frame: u64 },
}

/// Why a change is not on the disk.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotKept {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("cannot write `{log}`: {source}")]
    Log { log: String, source: io::Error },
    #[error("what is kept cannot be read back: {0}")]
    Unusable(#[from] Unusable),
    #[error("the system gives no random bytes, or the cipher fails")]
    Cipher,
}

/// What a head says.
struct Head {
    file_id: [u8; FILE_ID_LEN],
    bytes: u64,
    frames: u64,
}

// === impl Log ===

impl Log {
    /// What was kept for this node; `None` when nothing was.
    pub(crate) fn open(dir: &Path, key: &StorageKey, owner: &str) -> Result<Option<(Self, Content)>, Unusable> {
        let Some(head) = Head::read(dir, key, owner)? else {
            return match logs(dir).next() {
                Some(_) => Err(Unusable::NoHead),
                None => Ok(None),
            };
        };
        let name = log_name(&head.file_id);
        let damaged = |frame| Unusable::Frame {
            log: name.clone(),
            frame,
        };
        let (cipher, key_name) = (key.for_file(&head.file_id, owner), key.name());
        let (cipher, key_name) = cipher.zip(key_name).ok_or(Unusable::Head)?;
        // Read by name once more than written: a link or another mode is refused.
        let mut bytes = Zeroizing::new(files::read_own(&dir.join(&name))?);
        let length = usize::try_from(head.bytes).unwrap_or(usize::MAX);
        if bytes.len() < length {
            return Err(Unusable::Short { log: name });
        }
        bytes.truncate(length);
        let file = open_log(&dir.join(&name), false).map_err(|_| Unusable::Short { log: name.clone() })?;
        let mut log = Self {
            dir: dir.to_owned(),
            file,
            file_id: head.file_id,
            key: cipher,
            key_name,
            owner: owner.to_owned(),
            bytes: head.bytes,
            frames: head.frames,
            live: HashMap::new(),
            live_bytes: 0,
            written: 0,
        };
        let mut content = Content::default();
        let (mut rest, mut frame, mut plains) = (bytes.as_mut_slice(), 0, Vec::new());
        while !rest.is_empty() {
            let begin = length - rest.len() + size_of::<u32>() + NONCE_LEN;
            let (length, after) = rest.split_first_chunk_mut::<4>().ok_or_else(|| damaged(frame))?;
            let length = u32::from_be_bytes(*length) as usize;
            let (sealed, after) = after.split_at_mut_checked(length).ok_or_else(|| damaged(frame))?;
            let (nonce, sealed) = sealed
                .split_first_chunk_mut::<NONCE_LEN>()
                .ok_or_else(|| damaged(frame))?;
            let nonce = Nonce::assume_unique_for_key(*nonce);
            let plain = log.key.open_in_place(nonce, Aad::from(log.aad(frame)), sealed);
            let plain = plain.map_err(|_| damaged(frame))?;
            plains.push(Range {
                start: begin,
                end: begin + plain.len(),
            });
            rest = after;
            frame += 1;
        }
        if frame != head.frames {
            return Err(damaged(frame));
        }
        // From here on it is shared, and wiped with the last of it.
        let bytes = Bytes::from_owner(bytes);
        for (frame, plain) in (0..).zip(plains) {
            let batch = RawBatch::decode(bytes.slice(plain)).map_err(|_| damaged(frame))?;
            for raw in batch.changes {
                let long = raw.len();
                let change = RawChange::decode(raw).map_err(|_| damaged(frame))?;
                let id = std::str::from_utf8(&change.entry_id).map_err(|_| damaged(frame))?;
                log.count(id, change.gone, change.svid.is_some(), long);
                content.take(change);
            }
        }
        log.sweep();
        Ok(Some((log, content)))
    }

    /// Begins anew with nothing kept; whatever was is gone.
    pub(crate) fn create(dir: &Path, key: &StorageKey, owner: &str) -> Result<Self, NotKept> {
        let mut file_id = [0; FILE_ID_LEN];
        SystemRandom::new().fill(&mut file_id).map_err(|_| NotKept::Cipher)?;
        let (cipher, key_name) = (key.for_file(&file_id, owner), key.name());
        let (cipher, key_name) = cipher.zip(key_name).ok_or(NotKept::Cipher)?;
        let name = log_name(&file_id);
        let file = open_log(&dir.join(&name), true).map_err(|source| NotKept::Log { log: name, source })?;
        Ok(Self {
            dir: dir.to_owned(),
            file,
            file_id,
            key: cipher,
            key_name,
            owner: owner.to_owned(),
            bytes: 0,
            frames: 0,
            live: HashMap::new(),
            live_bytes: 0,
            written: 0,
        })
    }

    /// Whose it is.
    pub(crate) fn owner(&self) -> &str {
        &self.owner
    }

    /// Adds changes: on the disk and counted when this returns, or as it was before.
    pub(crate) fn append(
        &mut self,
        changes: impl IntoIterator<Item = Change>,
        key: &StorageKey,
    ) -> Result<(), NotKept> {
        let mut changes = changes.into_iter().peekable();
        if changes.peek().is_none() {
            return Ok(());
        }
        self.write(changes)?;
        self.vouch()?;
        self.sweep();
        if self.bytes > WASTE_BYTES_MIN + 2 * self.live_bytes {
            self.write_anew(key)?;
        }
        Ok(())
    }

    /// Removes whatever of it lies in a directory, and names what was there.
    pub(crate) fn remove(dir: &Path) -> Result<Vec<PathBuf>, FileError> {
        let mut there = vec![dir.join(HEAD)];
        there.extend(logs(dir));
        there.retain(|path| path.symlink_metadata().is_ok());
        for path in &there {
            files::remove(path)?;
        }
        Ok(there)
    }

    /// The bytes that were written by this one.
    #[cfg(test)]
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// Each change is made when its frame is, and gone after it: all of a large agent's at once would be twenty megabytes.
    fn write(&mut self, changes: impl IntoIterator<Item = Change>) -> Result<(), NotKept> {
        let failed = |source, log: &Self| NotKept::Log {
            log: log_name(&log.file_id),
            source,
        };
        let (mut at, mut frames, mut batch, mut long) = (self.bytes, self.frames, Batch::default(), 0);
        let mut changes = changes.into_iter().peekable();
        while let Some(change) = changes.next() {
            long += change.encoded_len();
            batch.changes.push(change);
            if long < FRAME_BYTES && changes.peek().is_some() {
                continue;
            }
            let frame = self.seal(&batch, frames)?;
            self.file.write_all_at(&frame, at).map_err(|e| failed(e, self))?;
            at += frame.len() as u64;
            frames += 1;
            long = 0;
            for mut change in batch.changes.drain(..) {
                self.count(
                    &change.entry_id,
                    change.gone,
                    change.svid.is_some(),
                    change.encoded_len(),
                );
                if let Some(svid) = &mut change.svid {
                    svid.wipe();
                }
            }
        }
        self.file.sync_data().map_err(|e| failed(e, self))?;
        self.written += at - self.bytes;
        (self.bytes, self.frames) = (at, frames);
        Ok(())
    }

    fn seal(&self, batch: &Batch, frame: u64) -> Result<Vec<u8>, NotKept> {
        let nonce = nonce()?;
        let plain = Zeroizing::new(batch.encode_to_vec());
        // Room for all of it, so that no copy is left behind unsealed.
        let mut frame_bytes = Vec::with_capacity(4 + NONCE_LEN + plain.len() + TAG_LEN);
        let length = u32::try_from(NONCE_LEN + plain.len() + TAG_LEN).map_err(|_| NotKept::Cipher)?;
        frame_bytes.extend_from_slice(&length.to_be_bytes());
        frame_bytes.extend_from_slice(&nonce);
        frame_bytes.extend_from_slice(&plain);
        let (_, sealed) = frame_bytes.split_at_mut(4 + NONCE_LEN);
        let (aad, nonce) = (Aad::from(self.aad(frame)), Nonce::assume_unique_for_key(nonce));
        let tag = self.key.seal_in_place_separate_tag(nonce, aad, sealed);
        let tag = tag.map_err(|_| NotKept::Cipher)?;
        frame_bytes.extend_from_slice(tag.as_ref());
        Ok(frame_bytes)
    }

    /// Each frame has its place in one file.
    fn aad(&self, frame: u64) -> Vec<u8> {
        [&b"frame"[..], &self.file_id, &frame.to_be_bytes()].concat()
    }

    /// Puts the head in its place: from now on this log counts, up to here.
    fn vouch(&self) -> Result<(), NotKept> {
        let clear = clear(&self.file_id, &self.key_name, &self.owner);
        let mut sealed = [self.bytes.to_be_bytes(), self.frames.to_be_bytes()].concat();
        let nonce = nonce()?;
        let tag = self.key.seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from([&b"head"[..], &clear].concat()),
            &mut sealed,
        );
        let tag = tag.map_err(|_| NotKept::Cipher)?;
        let head = [&clear, &nonce[..], &sealed, tag.as_ref()].concat();
        Ok(files::write_private(&self.dir.join(HEAD), &head)?)
    }

    /// Without what has been replaced.
    fn write_anew(&mut self, key: &StorageKey) -> Result<(), NotKept> {
        let Some((_, content)) = Self::open(&self.dir, key, &self.owner)? else {
            return Ok(()); // it was removed
        };
        let mut anew = Self::create(&self.dir, key, &self.owner)?;
        anew.write(content.into_changes())?;
        anew.vouch()?;
        anew.sweep();
        anew.written += self.written;
        *self = anew;
        Ok(())
    }

    /// A change of so many bytes counts in place of the one before it.
    fn count(&mut self, id: &str, is_gone: bool, is_svid: bool, long: usize) {
        if id.is_empty() {
            return;
        }
        if is_gone {
            let gone = self.live.remove(id).unwrap_or_default();
            self.live_bytes -= gone.into_iter().map(u64::from).sum::<u64>();
            return;
        }
        let [entry, svid] = match self.live.get_mut(id) {
            Some(slot) => slot,
            None => self.live.entry(id.into()).or_default(),
        };
        let of = if is_svid { svid } else { entry };
        let long = u32::try_from(long).unwrap_or(u32::MAX);
        self.live_bytes = self.live_bytes - u64::from(*of) + u64::from(long);
        *of = long;
    }

    /// Removes the logs that count no more.
    fn sweep(&self) {
        let own = self.dir.join(log_name(&self.file_id));
        for log in logs(&self.dir).filter(|log| *log != own) {
            if let Err(error) = files::remove(&log) {
                tracing::warn!(%error, "what was kept before is not removed yet");
            }
        }
    }
}

fn open_log(path: &Path, anew: bool) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(anew)
        .mode(0o600)
        .open(path)
}

fn log_name(file_id: &[u8; FILE_ID_LEN]) -> String {
    format!("{}{}{}", LOG.0, HEXLOWER.encode(file_id), LOG.1)
}

/// Whether a file is a log, by its name.
pub(crate) fn is_log(name: &str) -> bool {
    name.starts_with(LOG.0) && name.ends_with(LOG.1)
}

/// Logs in a directory, whichever counts.
fn logs(dir: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        is_log(&name).then(|| entry.path())
    })
}

fn nonce() -> Result<[u8; NONCE_LEN], NotKept> {
    let mut nonce = [0; NONCE_LEN];
    SystemRandom::new().fill(&mut nonce).map_err(|_| NotKept::Cipher)?;
    Ok(nonce)
}

/// The part of a head that anybody may read.
fn clear(file_id: &[u8; FILE_ID_LEN], key_name: &KeyName, owner: &str) -> Vec<u8> {
    let long = u16::try_from(owner.len()).unwrap_or(u16::MAX).to_be_bytes();
    [MAGIC, &[VERSION][..], file_id, key_name, &long, owner.as_bytes()].concat()
}

// === impl Head ===

impl Head {
    fn read(dir: &Path, key: &StorageKey, owner: &str) -> Result<Option<Self>, Unusable> {
        let bytes = match files::read_own(&dir.join(HEAD)) {
            Ok(bytes) => bytes,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let rest = bytes.strip_prefix(MAGIC).ok_or(Unusable::Foreign)?;
        let (version, rest) = rest.split_first().ok_or(Unusable::Foreign)?;
        if *version != VERSION {
            return Err(Unusable::Version(*version));
        }
        let parts = || {
            let (file_id, rest) = rest.split_first_chunk::<FILE_ID_LEN>()?;
            let (key_name, rest) = rest.split_first_chunk::<{ size_of::<KeyName>() }>()?;
            let (long, rest) = rest.split_first_chunk::<2>()?;
            let (of, rest) = rest.split_at_checked(u16::from_be_bytes(*long).into())?;
            let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
            Some((
                *file_id,
                key_name,
                std::str::from_utf8(of).ok()?,
                *nonce,
                sealed.to_vec(),
            ))
        };
        let (file_id, key_name, of, nonce, mut sealed) = parts().ok_or(Unusable::Head)?;
        if of != owner {
            return Err(Unusable::OtherNode(of.chars().take(200).collect()));
        }
        if Some(*key_name) != key.name() {
            return Err(Unusable::OtherKey);
        }
        let cipher = key.for_file(&file_id, owner).ok_or(Unusable::Head)?;
        let clear = clear(&file_id, key_name, owner);
        let aad = Aad::from([&b"head"[..], &clear].concat());
        let plain = cipher.open_in_place(Nonce::assume_unique_for_key(nonce), aad, &mut sealed);
        let plain = plain.map_err(|_| Unusable::Head)?;
        let number = |at: &[u8]| at.try_into().map(u64::from_be_bytes).map_err(|_| Unusable::Head);
        let (bytes, frames) = plain.split_at_checked(8).ok_or(Unusable::Head)?;
        Ok(Some(Self {
            file_id,
            bytes: number(bytes)?,
            frames: number(frames)?,
        }))
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log")
            .field("owner", &self.owner)
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

// === impl Content ===

impl Content {
    fn take(&mut self, change: RawChange) {
        if let Some(position) = change.position {
            self.position = position;
        }
        if change.foreign.is_some() {
            self.foreign = change.foreign;
        }
        if change.gone {
            self.entries.remove(&change.entry_id);
        } else if change.entry.is_some() || change.svid.is_some() {
            let slot = self.entries.entry(change.entry_id).or_default();
            slot.entry = change.entry.or(slot.entry.take());
            slot.svid = change.svid.or(slot.svid.take());
        }
    }

    /// What cannot be read is left out: it could not be used either.
    fn into_changes(self) -> impl Iterator<Item = Change> {
        let rest = Change {
            foreign: self.foreign,
            position: Some(self.position),
            ..Change::default()
        };
        let entries = self.entries.into_iter().flat_map(|(id, slot)| {
            let of = |change| Change {
                entry_id: String::from_utf8_lossy(&id).into_owned(),
                ..change
            };
            let entry = slot.entry().and_then(Result::ok).map(|entry| Change {
                entry: Some(entry),
                ..Change::default()
            });
            let svid = slot.svid().and_then(Result::ok).map(|svid| Change {
                svid: Some(svid),
                ..Change::default()
            });
            [entry.map(of), svid.map(of)].into_iter().flatten()
        });
        entries.chain([rest])
    }
}

// === impl Slot ===

impl Slot {
    /// As it was registered, if it was.
    pub(crate) fn entry(&self) -> Option<Result<hoplite_wire::ca::Entry, DecodeError>> {
        self.entry.clone().map(hoplite_wire::ca::Entry::decode)
    }

    /// Its SVID, if there was one.
    pub(crate) fn svid(&self) -> Option<Result<SvidRecord, DecodeError>> {
        self.svid.clone().map(SvidRecord::decode)
    }

    /// As it was registered, not looked at.
    pub(crate) fn raw_entry(&self) -> Option<&Bytes> {
        self.entry.as_ref()
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
