//! What a daemon keeps and reads: directories, their modes and owners, secrets, policies, and the disks they lie on.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use hoplite_decision::{FilesError, check_hand, read_policies};
use hoplite_host::clock;
use hoplite_host::config::Span;
use hoplite_host::files::open_regular;
use hoplite_host::hand;
use hoplite_identity::{TrustBundle, TrustDomain, pem};
use hoplite_policy::Snapshot;
use rustix::fs::{StatVfsMountFlags, statvfs};
use zeroize::Zeroizing;

use super::finding::{Finding, denied, fail, ok, unseen, warn};
use super::part::Part;
use crate::output::count;

/// Directories below a daemon's own that are looked into: a store's, and its values'.
const DEEP: usize = 3;

/// Of an authority's life: what is left when somebody has to think of the next one.
const LIFE_LEFT: u32 = 4;

/// With less than this a day's records or a bundle may not fit …
const BYTES_FEW: u64 = 1 << 30;

/// … and with this nothing does.
const BYTES_NONE: u64 = 16 << 20;

/// A log makes a file a day; a store a handful.
const INODES_FEW: u64 = 1_000;

/// Files in a directory of ours with a secret in them.
const SECRETS: [&str; 5] = ["authority.key", "jwt.key", "node.json", "supply.head", "supply.key"];

/// Directories, secrets and policies of one daemon.
pub(super) fn look(part: &Part) -> Vec<Finding> {
    let mut found = Vec::new();
    for dir in directories(part) {
        found.push(directory(&dir));
        found.extend(whose(&dir, part));
        if is_closed(&dir) {
            found.extend(fs::metadata(&dir).is_ok().then(|| unlooked(&dir)));
            continue; // nobody knows what lies there
        }
        found.extend(read_only(&dir));
        found.extend(SECRETS.iter().filter_map(|name| secret(&dir.join(name))));
        found.extend(loose(&dir));
    }
    match part {
        Part::Ca(ca) => {
            if !is_closed(&ca.data_dir) {
                found.extend(signing_key(&ca.data_dir));
            }
            found.extend(
                ca.admin_policy_dir
                    .as_deref()
                    .map(|directory| admin_policies(directory, user(part))),
            );
            found.extend(trusted(&ca.data_dir.join("bundle.pem"), &ca.trust_domain, "the CA"));
        }
        Part::Agent(agent) => {
            found.extend(agent.join_token_file.as_deref().and_then(secret));
            found.push(bundle(&agent.trust_bundle, &agent.trust_domain));
            let node = agent.data_dir.join("node.json");
            found.extend(trusted(&node, &agent.trust_domain, "the agent"));
            let directory = agent
                .authorization
                .as_ref()
                .and_then(|table| table.policy_dir.as_deref());
            found.extend(directory.map(|directory| policies(directory, user(part))));
        }
        Part::Proxy(proxy) => {
            let directory = proxy.policy_dir.as_deref();
            found.extend(directory.map(|directory| policies(directory, user(part))));
        }
    }
    found
}

/// Whether this user may not look into it.
pub(super) fn is_closed(dir: &Path) -> bool {
    fs::read_dir(dir).is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

fn unlooked(dir: &Path) -> Finding {
    unseen(
        "secret",
        format!("{}: this user may not look what lies there", dir.display()),
        "run this as the daemon's user or as root",
    )
}

/// None for a disk that can be written.
fn read_only(dir: &Path) -> Option<Finding> {
    let stat = statvfs(dir).ok()?;
    stat.f_flag.contains(StatVfsMountFlags::RDONLY).then(|| {
        fail(
            "directory",
            format!(
                "{} lies on a disk that is mounted read-only: its daemon cannot write there",
                dir.display()
            ),
            "mount it for writing (mount -o remount,rw), or name another directory in the daemon's file",
        )
    })
}

/// Those that a daemon writes.
fn directories(part: &Part) -> Vec<PathBuf> {
    match part {
        Part::Ca(ca) => std::iter::once(ca.data_dir.clone())
            .chain(ca.audit_dir.clone())
            .collect(),
        Part::Agent(agent) => {
            let of_table = agent.authorization.iter();
            let of_table = of_table.flat_map(|table| [table.audit_dir.clone(), table.state_dir.clone()]);
            std::iter::once(agent.data_dir.clone()).chain(of_table).collect()
        }
        Part::Proxy(proxy) => vec![proxy.audit_dir.clone(), proxy.state_dir.clone()],
    }
}

pub(super) fn directory(dir: &Path) -> Finding {
    let shown = dir.display().to_string();
    let metadata = match fs::metadata(dir) {
        Ok(metadata) => metadata,
        Err(error) => return denied("directory", &shown, &error),
    };
    if !metadata.is_dir() {
        return fail(
            "directory",
            format!("{shown} is no directory"),
            "move it away; the daemon makes one",
        );
    }
    let (mode, uid) = (metadata.mode() & 0o7777, metadata.uid());
    let seen = format!("{shown} has mode {mode:04o} and belongs to user {uid}");
    if mode & 0o022 != 0 {
        fail("directory", seen, format!("others may write in it: chmod 700 {shown}"))
    } else if mode & 0o077 != 0 {
        warn("directory", seen, format!("others may look into it: chmod 700 {shown}"))
    } else {
        ok("directory", seen)
    }
}

/// None for one that is not there.
pub(super) fn secret(file: &Path) -> Option<Finding> {
    let shown = file.display().to_string();
    let metadata = match fs::metadata(file) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(error) => return Some(denied("secret", &shown, &error)),
    };
    let mode = metadata.mode() & 0o7777;
    let seen = format!("{shown} has mode {mode:04o} and belongs to user {}", metadata.uid());
    let parent = file.parent().and_then(|dir| fs::metadata(dir).ok());
    Some(if mode & 0o077 != 0 {
        fail(
            "secret",
            seen,
            format!("others may read it: chmod 600 {shown}, and replace what is in it if they did"),
        )
    } else if parent.is_some_and(|parent| parent.uid() != metadata.uid() && parent.mode() & 0o077 == 0) {
        fail(
            "secret",
            seen,
            "its directory is another user's: chown both to the daemon's user",
        )
    } else {
        ok("secret", seen)
    })
}

/// Whether the key is there by which the CA signs; none where no CA was founded yet.
pub(super) fn signing_key(data_dir: &Path) -> Option<Finding> {
    let file = data_dir.join("authority.key");
    let shown = file.display().to_string();
    match open_regular(&file).and_then(io::read_to_string).map(Zeroizing::new) {
        Ok(text) if has_key(&text) => None,
        Ok(_) => Some(fail(
            "signing key",
            format!("no key is in {shown}"),
            "the CA would not start with it; bring the file back from a backup (hoplite ca restore)",
        )),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let others = ["store", "bundle.pem"].map(|name| data_dir.join(name));
            let other = others.iter().find(|file| file.exists())?;
            Some(fail(
                "signing key",
                format!("{shown} is gone, though {} is there", other.display()),
                "the CA cannot sign nor start without it; bring it back from a backup (hoplite ca restore)",
            ))
        }
        Err(error) => Some(denied("signing key", &shown, &error)),
    }
}

fn has_key(text: &str) -> bool {
    let end = "-----END PRIVATE KEY-----";
    let first = text.split_inclusive(end).next().unwrap_or_default();
    pem::private_key(first.trim_start()).is_ok()
}

/// When the last of the authorities ends that a file names, as PEM or in the member `bundle` of JSON; none for a file that cannot be read,
/// which others say.
pub(super) fn trusted(file: &Path, trust_domain: &TrustDomain, who: &str) -> Option<Finding> {
    let text = open_regular(file).and_then(io::read_to_string).ok()?;
    let kept = serde_json::from_str::<serde_json::Value>(&text).ok();
    let pem = match &kept {
        Some(kept) => kept.get("bundle")?.as_str()?,
        None => &text,
    };
    let bundle = TrustBundle::from_pem(trust_domain.clone(), pem, 0).ok()?;
    let (begins, ends) = bundle.longest()?;
    Some(authority(who, begins, ends, clock::now()))
}

/// How long there is somebody to sign: everything ends with the last authority.
pub(super) fn authority(who: &str, begins: SystemTime, ends: SystemTime, now: SystemTime) -> Finding {
    let shown = humantime::format_rfc3339_seconds(ends);
    let life = ends.duration_since(begins).unwrap_or_default();
    match ends.duration_since(now) {
        Err(_) => fail(
            "trust",
            format!("the last authority that {who} trusts ended at {shown}: no SVID counts any more"),
            "`hoplite ca run --new-authority` makes another one, and every agent joins anew: docs/guide/bad-day.md",
        ),
        Ok(left) if left < life / LIFE_LEFT => warn(
            "trust",
            format!(
                "the last authority that {who} trusts ends at {shown}, in {}: less than a quarter of its life is left",
                match left.as_secs() / 86_400 {
                    0 | 1 => Span(Duration::from_secs(left.as_secs())).to_string(),
                    days => count(days, "day"),
                }
            ),
            "the next one must come before that (hoplite authority list, prepare); docs/guide/authorities.md says how",
        ),
        Ok(_) => ok("trust", format!("the last authority that {who} trusts ends at {shown}")),
    }
}

/// Files in a daemon's directory that others may read or write, where its own are for it alone; none when there are none.
pub(super) fn loose(dir: &Path) -> Option<Finding> {
    let mut found = Vec::new();
    gather(dir, DEEP, &mut found);
    let (first, worst) = found.iter().max_by_key(|(_, mode)| mode & 0o022)?;
    let seen = format!(
        "others may open {} below {}, such as {} (mode {worst:04o})",
        count(found.len() as u64, "file"),
        dir.display(),
        first.display()
    );
    let remedy = format!("chmod -R go= {}", dir.display());
    Some(match worst & 0o022 {
        0 => warn("modes", seen, remedy),
        _ => fail("modes", seen, remedy),
    })
}

fn gather(dir: &Path, deep: usize, found: &mut Vec<(PathBuf, u32)>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let Ok(metadata) = entry.metadata() else { continue };
        let (path, mode) = (entry.path(), metadata.mode() & 0o7777);
        if SECRETS.iter().any(|secret| path.ends_with(secret)) {
            continue; // told by itself
        }
        // Trust bundles are for everybody to read, and nobody to write.
        let is_public = path.extension().is_some_and(|ending| ending == "pem");
        let closed = if is_public { 0o022 } else { 0o077 };
        if (metadata.is_file() || metadata.is_dir()) && mode & closed != 0 {
            found.push((path.clone(), mode));
        }
        if metadata.is_dir() && deep > 0 {
            gather(&path, deep - 1, found);
        }
    }
}

pub(super) fn bundle(file: &Path, trust_domain: &TrustDomain) -> Finding {
    let shown = file.display().to_string();
    let text = match open_regular(file).and_then(io::read_to_string) {
        Ok(text) => text,
        Err(error) => return denied("trust bundle", &shown, &error),
    };
    match TrustBundle::from_pem(trust_domain.clone(), &text, 0) {
        Ok(bundle) if bundle.authorities().is_empty() => fail(
            "trust bundle",
            format!("{shown} is empty"),
            "fetch it: hoplite bundle show",
        ),
        Ok(_) => ok("trust bundle", shown),
        Err(error) => fail(
            "trust bundle",
            format!("{shown}: {error}"),
            "the agent would not start with it; fetch it: hoplite bundle show",
        ),
    }
}

/// Whether what a running daemon keeps is its own user's, who its socket belongs to.
fn whose(dir: &Path, part: &Part) -> Option<Finding> {
    let (kept, socket) = (fs::metadata(dir).ok()?, fs::symlink_metadata(part.socket()).ok()?);
    (kept.uid() != socket.uid()).then(|| {
        fail(
            "directory",
            format!(
                "{} belongs to user {}, and {} runs as user {}",
                dir.display(),
                kept.uid(),
                part.name(),
                socket.uid()
            ),
            format!(
                "whoever that is has what lies there: look who gave it away, then `chown -R {} {}`",
                socket.uid(),
                dir.display()
            ),
        )
    })
}

/// Who a daemon runs as: whose its socket is, or, when it does not run, what it keeps; else whoever asks.
fn user(part: &Part) -> u32 {
    let kept = directories(part);
    let kept = kept.iter().find_map(|dir| fs::metadata(dir).ok());
    let socket = fs::symlink_metadata(part.socket()).ok();
    socket.or(kept).map_or_else(hand::own_user, |found| found.uid())
}

/// What the CA would refuse to start with, or to take over.
pub(super) fn admin_policies(dir: &Path, user: u32) -> Finding {
    match hoplite_ca::check_admin_policies(dir, user) {
        Ok(()) => ok("policies", format!("{}: the admin policies are good", dir.display())),
        Err(error) => fail(
            "policies",
            error.to_string(),
            "the CA would not start with them; docs/reference/admin-policy.md",
        ),
    }
}

pub(super) fn policies(dir: &Path, user: u32) -> Finding {
    let shown = dir.display();
    if let Err(FilesError::OtherHand(other)) = check_hand(dir, user) {
        return fail(
            "policies",
            format!("others may write here: {other}"),
            "until then its daemon refuses what lies there, and goes on by the policies that it has",
        );
    }
    let read = match read_policies(dir) {
        Ok(read) => read,
        Err(error) => return fail("policies", error.to_string(), "see docs/reference/policy-files.md"),
    };
    match Snapshot::compile(&read.sources) {
        Ok(snapshot) => {
            let good = match snapshot.policy_ids().count() {
                1 => "1 policy is good".to_owned(),
                count => format!("{count} policies are good"),
            };
            ok("policies", format!("{shown}: {good}"))
        }
        Err(faults) => {
            let first = faults.first().map(ToString::to_string).unwrap_or_default();
            fail(
                "policies",
                format!("{shown}: {first}"),
                format!("hoplite policy check {shown} shows all"),
            )
        }
    }
}

/// The disks that all of them need, each once.
pub(super) fn disks(parts: &[Part]) -> Vec<Finding> {
    let mut by_device = BTreeMap::new();
    for dir in parts.iter().flat_map(directories) {
        // One that is yet to be made lies on its parent's.
        let there = dir
            .ancestors()
            .find_map(|dir| Some((fs::metadata(dir).ok()?.dev(), dir.to_owned())));
        if let Some((device, dir)) = there {
            by_device.entry(device).or_insert(dir);
        }
    }
    by_device.into_values().map(|dir| disk(&dir)).collect()
}

fn disk(dir: &Path) -> Finding {
    let shown = dir.display().to_string();
    match statvfs(dir) {
        Ok(stat) => {
            let bytes = stat.f_bavail.saturating_mul(stat.f_frsize);
            // A file system that does not count them has none to lack.
            let inodes = (stat.f_files > 0).then_some(stat.f_favail);
            space(&shown, bytes, inodes)
        }
        Err(error) => unseen("disk", format!("{shown}: {error}"), "look at it with df"),
    }
}

pub(super) fn space(shown: &str, bytes: u64, inodes: Option<u64>) -> Finding {
    let free = format!("{} MiB free below {shown}", bytes >> 20);
    let remedy = "make room: a full disk stops CA and log, and nothing is permitted unrecorded";
    match inodes {
        Some(0) => fail("disk", format!("{free}, and no inode"), remedy),
        Some(few) if few < INODES_FEW => warn("disk", format!("{free}, and {few} inodes"), remedy),
        _ if bytes < BYTES_NONE => fail("disk", free, remedy),
        _ if bytes < BYTES_FEW => warn("disk", free, remedy),
        _ => ok("disk", free),
    }
}
