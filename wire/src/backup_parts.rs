//! The parts of a backup in a row: each after its length, so that they are written and read as they come.

use std::io::{self, Read, Write};

use prost::Message;

use crate::ca::BackupPart;

/// The longest part: a commit's values, and what surrounds them.
pub const BACKUP_PART_BYTES_MAX: usize = 16 << 20;

/// A varint of 64 bits is no longer.
const LENGTH_BYTES_MAX: usize = 10;

/// Writes a part.
///
/// # Errors
/// As of what it is written to.
pub fn write_part(to: &mut impl Write, part: &BackupPart) -> io::Result<()> {
    to.write_all(&part.encode_length_delimited_to_vec())
}

/// Reads the next part; `None` where there is none any more.
///
/// # Errors
/// As of what is read, and `InvalidData` when that is no part.
pub fn read_part(from: &mut impl Read) -> io::Result<Option<BackupPart>> {
    let Some(length) = length(from)? else { return Ok(None) };
    if length > BACKUP_PART_BYTES_MAX {
        return Err(invalid("a part is too long"));
    }
    let mut bytes = Vec::with_capacity(length);
    from.take(length as u64).read_to_end(&mut bytes)?;
    if bytes.len() < length {
        return Err(invalid("a part is cut off"));
    }
    BackupPart::decode(bytes.as_slice())
        .map(Some)
        .map_err(|_| invalid("a part cannot be read"))
}

fn length(from: &mut impl Read) -> io::Result<Option<usize>> {
    let mut bytes = Vec::with_capacity(LENGTH_BYTES_MAX);
    while bytes.len() < LENGTH_BYTES_MAX && from.by_ref().take(1).read_to_end(&mut bytes)? == 1 {
        if bytes.last().is_some_and(|byte| *byte < 0x80) {
            let length = prost::decode_length_delimiter(bytes.as_slice());
            return length.map(Some).map_err(|_| invalid("a length cannot be read"));
        }
    }
    match bytes.is_empty() {
        true => Ok(None),
        false => Err(invalid("a length is cut off")),
    }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::backup_part::Part;
    use crate::ca::{BackupFile, BackupLarge};

    #[test]
    fn parts_come_back_and_cuts_are_told() {
        let part = |part: Part| BackupPart { part: Some(part) };
        let parts = [
            part(Part::File(BackupFile::default())),
            part(Part::Large(BackupLarge {
                piece: vec![7; 300],
                ..BackupLarge::default()
            })),
        ];
        let mut bytes = Vec::new();
        for part in &parts {
            write_part(&mut bytes, part).unwrap();
        }
        let mut from = bytes.as_slice();
        for part in &parts {
            assert_eq!(read_part(&mut from).unwrap().as_ref(), Some(part));
        }
        assert_eq!(read_part(&mut from).unwrap(), None);
        for cut in 1..bytes.len() {
            let mut from = &bytes[..cut];
            let all: io::Result<Vec<_>> = std::iter::from_fn(|| read_part(&mut from).transpose()).collect();
            assert!(all.is_err() || all.is_ok_and(|all| all.len() == 1), "cut at {cut}");
        }
        assert!(read_part(&mut [0xff; 20].as_slice()).is_err());
        assert!(read_part(&mut [0xff, 0xff, 0xff, 0x7f].as_slice()).is_err(), "too long");
    }
}
