//! Certificate, key and trust bundle in a directory, for programs that read files: all of one moment, or none.
//!
//! ```text
//! DIR/svid.pem      -> ..data/svid.pem          what programs are told to read
//! DIR/svid_key.pem  -> ..data/svid_key.pem
//! DIR/bundle.pem    -> ..data/bundle.pem
//! DIR/bundle.partner.example.pem -> …           of each foreign trust domain that the workload is to verify
//! DIR/..data        -> ..set-Xk2p9A             the only thing that ever changes, by one rename
//! DIR/..set-Xk2p9A/                             a set: written, on the disk, and then never touched
//! DIR/..told        -> ..set-Xk2p9A             the set that programs know of, for whoever writes here next
//! ```
//!
//! It is the layout of Kubernetes' volumes. The set before stays until the next one comes, for whoever is reading it.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown, symlink};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use anyhow::Context;
use hoplite_host::files;
use hoplite_identity::{BundleSet, TrustBundle, TrustDomain, X509Svid};
use rustix::fs::{FlockOperation, flock};

use crate::command::user::id_of;

/// The link to the set that counts.
const DATA: &str = "..data";
/// The link to the set that programs have been told of.
const TOLD: &str = "..told";
/// How names of sets begin.
const SET: &str = "..set-";
/// How names of links begin that are about to become [`DATA`].
const NEXT: &str = "..next-";

/// What the files are called, and whose they are.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Layout {
    /// The file of the certificate chain, leaf first
    #[arg(long, value_name = "NAME", default_value = "svid.pem", requires = "write")]
    cert_file: FileName,
    /// The file of the private key, PKCS#8
    #[arg(long, value_name = "NAME", default_value = "svid_key.pem", requires = "write")]
    key_file: FileName,
    /// The file of the trust bundle of the SVID's own trust domain; that of another has its name before the ending
    #[arg(long, value_name = "NAME", default_value = "bundle.pem", requires = "write")]
    bundle_file: FileName,
    /// The mode of certificate and bundle
    #[arg(long, value_name = "OCTAL", default_value = "644", requires = "write")]
    cert_mode: Mode,
    /// The mode of the key; nobody but its owner and group may read it
    #[arg(long, value_name = "OCTAL", default_value = "600", value_parser = key_mode, requires = "write")]
    key_mode: Mode,
    /// Whose the files are, by names of /etc/passwd and /etc/group or by numbers [default: who runs this]
    #[arg(long, value_name = "USER[:GROUP]", requires = "write")]
    owner: Option<Owner>,
}

/// A file's name: no path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileName(String);

/// A file's mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mode(u32);

/// A user and a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    uid: u32,
    gid: Option<u32>,
}

/// A directory that one process writes sets into.
#[derive(Debug)]
pub(crate) struct Files {
    /// As people name it.
    dir: PathBuf,
    /// The directory itself, whatever becomes of its name.
    place: PathBuf,
    layout: Layout,
    /// Locked, so that nobody else writes here.
    handle: File,
}

// === impl Files ===

impl Files {
    /// Takes the directory, and makes it if it is not there.
    pub(crate) fn open(dir: &Path, layout: &Layout) -> anyhow::Result<Self> {
        let dir = std::path::absolute(dir)?;
        let names = layout.names();
        if names
            .iter()
            .enumerate()
            .any(|(at, name)| names.iter().take(at).any(|other| other == name))
        {
            anyhow::bail!("two of the files have one name; give each its own");
        }
        // Readers of other users pass through it; what is secret is the key's own mode.
        if !dir.exists() {
            let made = DirBuilder::new().recursive(true).mode(0o755).create(&dir);
            made.with_context(|| format!("cannot make the directory `{}`", dir.display()))?;
        }
        files::private_dir(&dir)?;
        let handle = File::open(&dir).with_context(|| format!("cannot open `{}`", dir.display()))?;
        is_nobody_elses(&dir, &handle.metadata()?)?;
        for parent in dir.ancestors().skip(1) {
            nobody_replaces(parent, &dir)?;
        }
        let place = PathBuf::from(format!("/proc/self/fd/{}", handle.as_raw_fd()));
        if flock(&handle, FlockOperation::NonBlockingLockExclusive).is_err() {
            anyhow::bail!(
                "another `hoplite svid` writes into `{}`; stop it, or choose another directory",
                dir.display()
            );
        }
        let files = Self {
            dir,
            place,
            layout: layout.clone(),
            handle,
        };
        for name in names {
            files.check_free(name)?;
        }
        Ok(files)
    }

    /// Puts a set in the place of the one before. Where it fails, the one before stays.
    pub(crate) fn put(&self, svid: &X509Svid, bundles: &BundleSet) -> anyhow::Result<()> {
        self.still_ours()?;
        self.written(svid, bundles).with_context(|| {
            format!(
                "cannot write into `{}`; what was there before stays; check the directory and free space",
                self.dir.display()
            )
        })
    }

    fn written(&self, svid: &X509Svid, bundles: &BundleSet) -> anyhow::Result<()> {
        let Layout {
            cert_file,
            key_file,
            cert_mode,
            key_mode,
            ..
        } = &self.layout;
        let before = fs::read_link(self.place.join(DATA)).ok();
        let set = tempfile::Builder::new().prefix(SET).tempdir_in(&self.place)?;
        self.write(set.path(), cert_file, svid.chain_pem().as_bytes(), *cert_mode)?;
        self.write(set.path(), key_file, svid.key_pem().as_bytes(), *key_mode)?;
        let bundles = self.layout.bundles(svid, bundles);
        for (name, pem) in &bundles {
            self.write(set.path(), name, pem.as_bytes(), *cert_mode)?;
        }
        fs::set_permissions(set.path(), Permissions::from_mode(0o755))?;
        File::open(set.path())?.sync_all()?;

        let name = set.path().file_name().context("a set has a name")?.to_owned();
        self.point(DATA, Path::new(&name))?;
        // From here on readers have it.
        let _ = set.keep();
        for name in [cert_file, key_file]
            .into_iter()
            .chain(bundles.iter().map(|(name, _)| name))
        {
            self.link(name)?;
        }
        self.unlink_gone()?;
        self.handle.sync_all()?;
        self.sweep(&[Some(name.into()), before])?;
        Ok(())
    }

    /// Whether just this is there, as it was asked for.
    pub(crate) fn has(&self, svid: &X509Svid, bundles: &BundleSet) -> bool {
        let Layout {
            cert_file,
            key_file,
            cert_mode,
            key_mode,
            owner,
            ..
        } = &self.layout;
        let (chain, key) = (svid.chain_pem(), svid.key_pem());
        let bundles = self.layout.bundles(svid, bundles);
        let count = fs::read_dir(self.place.join(DATA)).map_or(0, Iterator::count);
        let is_there = |name: &FileName, text: &str, mode: &Mode| {
            let path = self.place.join(&name.0);
            let is_ours = !self.check_free(name).unwrap_or(true);
            let asked = fs::metadata(&path).is_ok_and(|found| {
                let owned = owner
                    .is_none_or(|owner| owner.uid == found.uid() && owner.gid.is_none_or(|gid| gid == found.gid()));
                found.mode() & 0o7777 == mode.0 && owned
            });
            is_ours && asked && fs::read(&path).is_ok_and(|bytes| bytes == text.as_bytes())
        };
        is_there(cert_file, &chain, cert_mode)
            && is_there(key_file, &key, key_mode)
            && bundles.iter().all(|(name, pem)| is_there(name, pem, cert_mode))
            // And no trust domain besides.
            && count == bundles.len() + 2
    }

    /// Whether programs know of the set that is there.
    pub(crate) fn is_told(&self) -> bool {
        let [data, told] = [DATA, TOLD].map(|name| fs::read_link(self.place.join(name)).ok());
        data.is_some() && data == told
    }

    /// Programs know of the set that is there.
    pub(crate) fn told(&self) -> anyhow::Result<()> {
        let set = fs::read_link(self.place.join(DATA))?;
        self.point(TOLD, &set)?;
        self.handle.sync_all()?;
        Ok(())
    }

    /// Takes away what is there: who reads a file finds none.
    pub(crate) fn withdraw(&self) -> anyhow::Result<()> {
        files::remove(&self.place.join(DATA))?;
        files::remove(&self.place.join(TOLD))?;
        self.sweep(&[])?;
        Ok(())
    }

    /// Where they are.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether the name still leads to the directory that was taken, and that is still nobody else's.
    fn still_ours(&self) -> anyhow::Result<()> {
        let (there, taken) = (fs::metadata(&self.dir), self.handle.metadata()?);
        if !there.is_ok_and(|there| (there.dev(), there.ino()) == (taken.dev(), taken.ino())) {
            anyhow::bail!(
                "`{}` is no longer the directory that was taken at the start, so nothing was written; put it back, or run this again",
                self.dir.display()
            );
        }
        is_nobody_elses(&self.dir, &taken)
    }

    /// Makes a link lead to a set, by one rename.
    fn point(&self, link: &str, set: &Path) -> io::Result<()> {
        let next = self.place.join(format!("{NEXT}{}", set.display()));
        symlink(set, &next)?;
        fs::rename(&next, self.place.join(link)).inspect_err(|_| {
            let _ = fs::remove_file(&next);
        })
    }

    /// A file with its owner and mode before its content is there for anybody to open.
    fn write(&self, set: &Path, name: &FileName, bytes: &[u8], mode: Mode) -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(set.join(&name.0))?;
        if let Some(owner) = self.layout.owner {
            fchown(&file, Some(owner.uid), owner.gid).map_err(|error| match error.kind() {
                io::ErrorKind::PermissionDenied => io::Error::new(
                    error.kind(),
                    "only root may give a file to another user, and to a group that is not the caller's own: run it as root, or \
                     leave out --owner",
                ),
                _ => error,
            })?;
        }
        file.set_permissions(Permissions::from_mode(mode.0))?;
        file.write_all(bytes)?;
        file.sync_all()
    }

    /// Whether a name is ours to use: nothing has it, or our own link.
    fn check_free(&self, name: &FileName) -> anyhow::Result<bool> {
        let path = self.dir.join(&name.0);
        let place = self.place.join(&name.0);
        match fs::symlink_metadata(&place) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            Ok(_) if fs::read_link(&place).is_ok_and(|target| target == Path::new(DATA).join(&name.0)) => Ok(false),
            Ok(_) => anyhow::bail!(
                "`{}` is there and was not written by this command; move it away, or choose another name",
                path.display()
            ),
            Err(error) => Err(error).with_context(|| format!("cannot look at `{}`", path.display())),
        }
    }

    fn link(&self, name: &FileName) -> anyhow::Result<()> {
        if self.check_free(name)? {
            symlink(Path::new(DATA).join(&name.0), self.place.join(&name.0))?;
        }
        Ok(())
    }

    /// Removes our links to files that the set does not have: of trust domains that are federated with no more.
    fn unlink_gone(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.place)? {
            let path = entry?.path();
            let Some(name) = path.file_name() else { continue };
            let is_ours = fs::read_link(&path).is_ok_and(|target| target == Path::new(DATA).join(name));
            if is_ours && !path.exists() {
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }

    /// Removes every set but these, and links that never became the one.
    fn sweep(&self, kept: &[Option<PathBuf>]) -> io::Result<()> {
        for entry in fs::read_dir(&self.place)? {
            let entry = entry?;
            let name = entry.file_name();
            let text = name.to_string_lossy();
            let is_kept = kept.iter().flatten().any(|kept| kept.as_os_str() == name);
            if text.starts_with(SET) && !is_kept {
                fs::remove_dir_all(entry.path())?;
            } else if text.starts_with(NEXT) {
                fs::remove_file(entry.path())?;
            }
        }
        self.handle.sync_all()
    }
}

/// Whose a directory is may put links in the way of whoever writes there.
fn is_nobody_elses(dir: &Path, found: &fs::Metadata) -> anyhow::Result<()> {
    let (uid, own) = (found.uid(), rustix::process::geteuid().as_raw());
    if uid != own && uid != 0 {
        anyhow::bail!(
            "`{}` belongs to user {uid}, who could put other files in the way; `chown` it to user {own} (the files' own user is `--owner`)",
            dir.display()
        );
    }
    Ok(())
}

/// Who may write in a directory above may put another in the place of this one.
fn nobody_replaces(parent: &Path, dir: &Path) -> anyhow::Result<()> {
    const STICKY: u32 = 0o1000;
    let found = fs::metadata(parent).with_context(|| format!("cannot look at `{}`", parent.display()))?;
    let own = rustix::process::geteuid().as_raw();
    let is_others = found.uid() != 0 && found.uid() != own;
    if is_others || found.mode() & 0o022 != 0 && found.mode() & STICKY == 0 {
        anyhow::bail!(
            "others may write in `{}` (mode {:04o}, of user {}) and so put another directory in the place of `{}`; choose one below \
             directories that only root and user {own} may write",
            parent.display(),
            found.mode() & 0o7777,
            found.uid(),
            dir.display()
        );
    }
    Ok(())
}

// === impl Layout ===

impl Layout {
    fn names(&self) -> [&FileName; 3] {
        [&self.cert_file, &self.key_file, &self.bundle_file]
    }

    /// The files of trust bundles and what is in them: that of the SVID's own trust domain, and one of each other.
    fn bundles(&self, svid: &X509Svid, bundles: &BundleSet) -> Vec<(FileName, String)> {
        let own = svid.spiffe_id().trust_domain();
        let named = |bundle: &Arc<TrustBundle>| {
            let domain = bundle.trust_domain();
            let name = match domain == own {
                true => self.bundle_file.clone(),
                false => self.bundle_file.of(domain),
            };
            (name, bundle.to_pem())
        };
        bundles.iter().map(named).collect()
    }
}

// === impl FileName ===

impl FileName {
    /// `bundle.pem` of a foreign trust domain is `bundle.partner.example.pem`.
    fn of(&self, domain: &TrustDomain) -> Self {
        Self(match self.0.rsplit_once('.') {
            Some((stem, ending)) if !stem.is_empty() => format!("{stem}.{domain}.{ending}"),
            _ => format!("{}.{domain}", self.0),
        })
    }
}

impl FromStr for FileName {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        const NAME_BYTES_MAX: usize = 128;
        let is_name =
            !text.is_empty() && text.len() <= NAME_BYTES_MAX && !text.contains(|c: char| c == '/' || c.is_control());
        if !is_name || text == "." || text.starts_with("..") {
            anyhow::bail!(
                "a file's name has no `/` and no control character, does not begin with `..`, and is at most {NAME_BYTES_MAX} bytes long"
            );
        }
        Ok(Self(text.to_owned()))
    }
}

// === impl Mode ===

impl FromStr for Mode {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        match u32::from_str_radix(text, 8) {
            Ok(mode) if mode <= 0o777 && mode & 0o400 != 0 && mode & 0o022 == 0 => Ok(Self(mode)),
            _ => anyhow::bail!("a mode is octal, lets its owner read and nobody else write: 644, 640, 600"),
        }
    }
}

/// A mode for a key.
fn key_mode(text: &str) -> anyhow::Result<Mode> {
    let mode: Mode = text.parse()?;
    if mode.0 & 0o007 != 0 {
        anyhow::bail!("everybody could read the key; 600, or 640 for a group");
    }
    Ok(mode)
}

// === impl Owner ===

impl FromStr for Owner {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        let (uid, own) = id_of(user, Path::new("/etc/passwd"))?;
        if uid == u32::MAX {
            anyhow::bail!("{uid} is no user: to the system it means nobody in particular");
        }
        let gid = group.map(|group| id_of(group, Path::new("/etc/group"))).transpose()?;
        Ok(Self {
            uid,
            gid: gid.map(|(gid, _)| gid).or(own),
        })
    }
}

#[cfg(test)]
mod tests;
