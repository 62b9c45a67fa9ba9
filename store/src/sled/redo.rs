//! A commit of many writes, kept whole in a file of its own while sled takes it in parts.
//!
//! sled keeps each earlier version of the pages that a batch touches until that batch has ended: some five kilobytes for each
//! write, 130 MiB for 14 000 registrations at once, which the allocator then has and the system never gets back. So a commit of many
//! writes goes into sled as several batches, of which only the last says that there is a new revision. That it is one commit all
//! the same is this file's doing. It is on the disk before the first part, and whoever opens a store and finds it carries the commit
//! out from its beginning; a write that is there already is the same write. It goes once the commit is on the disk.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use super::dir::StoreDir;
use super::format::{Meta, take};

/// What becomes of one item of sled's: its name, and what it holds then; `None` when it goes.
pub(super) type Item = (Vec<u8>, Option<Vec<u8>>);

/// What stands in place of an item's length when it goes.
const GONE: u32 = u32::MAX;

/// A commit that was begun.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Redo {
    /// What the store is at when it is carried out.
    pub(super) meta: Meta,
    pub(super) items: Vec<Item>,
}

/// Where one may lie.
pub(super) struct RedoFile {
    directory: PathBuf,
}

// === impl RedoFile ===

impl RedoFile {
    pub(super) fn of(directory: &StoreDir) -> Self {
        Self {
            directory: directory.path().to_owned(),
        }
    }

    /// Keeps a commit. On the disk when this returns: it is written under another name first, so under its own it is whole.
    pub(super) fn write(&self, meta: &Meta, items: &[Item]) -> io::Result<()> {
        let unfinished = self.directory.join("redo.tmp");
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&unfinished)?;
        let mut file = Summed {
            to: BufWriter::new(file),
            sum: 0,
        };
        file.part(&meta.encode())?;
        for (name, item) in items {
            file.part(name)?;
            match item {
                Some(item) => file.part(item)?,
                None => file.put(&GONE.to_be_bytes())?,
            }
        }
        let sum = file.sum.to_be_bytes();
        file.put(&sum)?;
        file.to.into_inner()?.sync_all()?;
        fs::rename(unfinished, self.path())?;
        File::open(&self.directory)?.sync_all()
    }

    /// The commit that was kept, if one was. The error says what is wrong with it: no death leaves half of one.
    pub(super) fn read(&self) -> io::Result<Option<Redo>> {
        let bytes = match fs::read(self.path()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read?,
        };
        let redo =
            decode(&bytes).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the redo file cannot be read"))?;
        Ok(Some(redo))
    }

    /// Forgets it. A file that comes back after a loss of power is of a commit that is there, and is known by its revision.
    pub(super) fn remove(&self) -> io::Result<()> {
        match fs::remove_file(self.path()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.join("redo")
    }
}

// === Encoding: parts with their lengths before them, and a checksum over all of it ===

struct Summed {
    to: BufWriter<File>,
    sum: u32,
}

impl Summed {
    fn part(&mut self, bytes: &[u8]) -> io::Result<()> {
        let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        self.put(&length.to_be_bytes())?;
        self.put(bytes)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sum = crc32c::crc32c_append(self.sum, bytes);
        self.to.write_all(bytes)
    }
}

fn decode(bytes: &[u8]) -> Option<Redo> {
    let (mut body, sum) = bytes.split_last_chunk::<4>()?;
    if crc32c::crc32c(body) != u32::from_be_bytes(*sum) {
        return None;
    }
    let meta = Meta::decode(part(&mut body)??).ok()?;
    let mut items = Vec::new();
    while !body.is_empty() {
        let name = part(&mut body)??.to_vec();
        items.push((name, part(&mut body)?.map(<[u8]>::to_vec)));
    }
    Some(Redo { meta, items })
}

/// The next part; within it `None` for what goes.
fn part<'a>(body: &mut &'a [u8]) -> Option<Option<&'a [u8]>> {
    let length = u32::from_be_bytes(take(body)?);
    if length == GONE {
        return Some(None);
    }
    let (part, rest) = body.split_at_checked(usize::try_from(length).ok()?)?;
    *body = rest;
    Some(Some(part))
}

#[cfg(test)]
mod tests {
    use super::super::format::Digest;
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_is_kept_comes_back_whole_or_not_at_all() {
        let at = tempfile::tempdir().unwrap();
        let file = RedoFile::of(&StoreDir::make(at.path()).unwrap());
        assert_eq!(file.read().unwrap(), None);
        file.remove().unwrap();
        let meta = Meta {
            revision: 7,
            contents: Digest { count: 2, sum: 3 },
        };
        let items = vec![
            (b"da".to_vec(), Some(b"1".to_vec())),
            (b"db".to_vec(), None),
            (b"dc".to_vec(), Some(Vec::new())),
        ];
        file.write(&meta, &items).unwrap();
        assert_eq!(file.read().unwrap(), Some(Redo { meta, items }));
        assert_eq!(file.path().metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let whole = fs::read(file.path()).unwrap();
        for at in 0..whole.len() {
            assert!(decode(&whole[..at]).is_none(), "cut at {at}");
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            assert!(decode(&bytes).is_none(), "flipped at {at}");
        }
        // One that was not finished is none, and the next is written over it.
        fs::rename(file.path(), at.path().join("redo.tmp")).unwrap();
        assert_eq!(file.read().unwrap(), None);
        file.write(&meta, &[]).unwrap();
        assert_eq!(file.read().unwrap().unwrap().items, []);
        file.remove().unwrap();
        assert_eq!(file.read().unwrap(), None);
    }
}
