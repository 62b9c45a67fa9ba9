//! What a log had reached, noted elsewhere: a log that is gone, or was put back from an older copy, is not begun anew
//! without a word.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use crate::error::{RecorderError, io_error, private};
use crate::id::BootId;

/// The last boot of a log, as a file outside of its directory says it. One line each: the directory, the place, the boot.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct LastBoot {
    directory: String,
    pub(crate) place: u64,
    pub(crate) boot: BootId,
}

/// Longer than any such file.
const BYTES_MAX: usize = 16 << 10;

// === impl LastBoot ===

impl LastBoot {
    pub(crate) fn new(directory: &Path, place: u64, boot: BootId) -> Self {
        Self {
            directory: directory.display().to_string(),
            place,
            boot,
        }
    }

    /// Refuses a log that has not what the note says: it reaches to `place`, and its boot there is `boot`. Where nothing is
    /// noted, or of another directory, every log will do.
    pub(crate) fn check(note: &Path, directory: &Path, place: u64, boot: BootId) -> Result<(), RecorderError> {
        let text = match fs::read_to_string(note) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(io_error(directory, "read the note of its last boot", &error)),
        };
        let behind = |noted: String| RecorderError::Behind {
            directory: directory.display().to_string(),
            noted,
            note: note.display().to_string(),
        };
        let noted = Self::parse(&text).ok_or_else(|| behind("a note that cannot be read".to_owned()))?;
        let has_it = place > noted.place || (place, boot) == (noted.place, noted.boot);
        if noted.directory == directory.display().to_string() && !has_it {
            return Err(behind(format!("boot `{}` in place {}", noted.boot, noted.place)));
        }
        Ok(())
    }

    /// Notes it: on the disk when this returns.
    pub(crate) fn write(&self, note: &Path) -> io::Result<()> {
        let next = note.with_extension("next");
        let mut file = private().create(true).truncate(true).open(&next)?;
        writeln!(file, "{}\n{}\n{}", self.directory, self.place, self.boot)?;
        file.sync_all()?;
        fs::rename(&next, note)?;
        match note.parent() {
            Some(parent) => fs::File::open(parent)?.sync_all(),
            None => Ok(()),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        // From the end: a path may hold a line feed.
        let mut lines = text
            .get(..text.len().min(BYTES_MAX))?
            .strip_suffix('\n')?
            .rsplitn(3, '\n');
        let boot = u64::from_str_radix(lines.next()?, 16).ok()?;
        let place = lines.next()?.parse().ok()?;
        Some(Self {
            directory: lines.next()?.to_owned(),
            place,
            boot: BootId::from_bits(boot),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{SMALL, files};
    use crate::{Options, Recorder, Repair};

    fn open(directory: &Path, note: &Path) -> Result<Repair, RecorderError> {
        let options = Options { ..SMALL };
        Recorder::open_noted(directory, "ledger", options, note).map(|(_, repair)| repair)
    }

    /// A proxy that its supervisor starts again must not find an empty directory good enough.
    #[test]
    fn a_log_that_is_gone_is_not_begun_anew() {
        let parent = tempfile::tempdir().unwrap();
        let (directory, note) = (parent.path().join("log"), parent.path().join("state"));
        let aside = parent.path().join("aside");
        open(&directory, &note).unwrap();
        open(&directory, &note).unwrap();

        fs::rename(&directory, &aside).unwrap();
        for _ in 0..2 {
            let error = open(&directory, &note).unwrap_err();
            assert!(matches!(error, RecorderError::Behind { .. }), "{error}");
            let text = error.to_string();
            for part in [directory.to_str().unwrap(), note.to_str().unwrap(), "in place 2"] {
                assert!(text.contains(part), "`{part}` is missing from `{text}`");
            }
        }
        assert_eq!(files(&directory), Vec::<String>::new(), "nothing is begun");

        // It is back.
        fs::remove_dir_all(&directory).unwrap();
        fs::rename(&aside, &directory).unwrap();
        assert_eq!(open(&directory, &note).unwrap(), Repair::default());

        // An operator accepts the loss, or has chosen another directory.
        fs::remove_dir_all(&directory).unwrap();
        fs::remove_file(&note).unwrap();
        open(&directory, &note).unwrap();
        open(&parent.path().join("elsewhere"), &note).unwrap();
        open(&parent.path().join("elsewhere"), &note).unwrap();
    }

    #[test]
    fn an_older_copy_is_told_apart() {
        let parent = tempfile::tempdir().unwrap();
        let (directory, note) = (parent.path().join("log"), parent.path().join("state"));
        open(&directory, &note).unwrap();
        let older = crate::testing::copy(&directory);
        open(&directory, &note).unwrap();
        fs::remove_dir_all(&directory).unwrap();
        fs::rename(older.path(), &directory).unwrap();
        let error = open(&directory, &note).unwrap_err();
        assert!(matches!(error, RecorderError::Behind { .. }), "{error}");
    }

    #[test]
    fn notes_survive_being_written() {
        let parent = tempfile::tempdir().unwrap();
        let note = parent.path().join("state");
        let last = LastBoot::new(Path::new("/var/a\nb"), 7, BootId::from_bits(0xabc));
        last.write(&note).unwrap();
        assert_eq!(LastBoot::parse(&fs::read_to_string(&note).unwrap()), Some(last));
        fs::write(&note, "/var/log\n7\n").unwrap();
        let error = LastBoot::check(&note, Path::new("/var/log"), 9, BootId::from_bits(1)).unwrap_err();
        assert!(error.to_string().contains("cannot be read"), "{error}");
    }
}
