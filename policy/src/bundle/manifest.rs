//! The manifest: what a bundle says of itself, and what is signed.

use super::{KIND, Refused, Unbuildable};
use crate::source::{
    BREAK_GLASS_MODULE, FILE_NAME_BYTES_MAX, HEADERS_FILE, MODULES_FILE, ROUTES_FILE, TOTAL_BYTES_MAX,
};
use hoplite_identity::TrustDomain;
use hoplite_seal::cbor::{self, at_most};
use hoplite_seal::{BLOBS_MAX, Envelope, Hash, SealBroken};
use minicbor::{Decode, Encode};
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The longest note.
pub const MAX_NOTE_BYTES: usize = 1_024;
/// The feature that marks a bundle as a shadow: an engine that does not know it must not enforce such a bundle.
pub const CRITICAL_SHADOW: &str = "shadow";
/// The feature of a bundle that selects headers: an engine that does not know it would read no header, and could not see
/// what a forbid is to stop.
pub const CRITICAL_HEADERS: &str = "headers";
/// Every critical feature this engine knows.
pub const KNOWN_CRITICAL: &[&str] = &[CRITICAL_HEADERS, CRITICAL_SHADOW];

pub(super) const FORMAT: u32 = 1;
/// More features than an engine could reasonably have to know at once.
const MAX_CRITICAL: usize = 32;
const MAX_CRITICAL_BYTES: usize = 64;
/// 9999-12-31T23:59:59Z, the last second RFC 3339 can write.
pub(crate) const LAST_SECOND: u64 = 253_402_300_799;

/// What a bundle says of itself. Signed.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Manifest {
    #[n(0)]
    pub(super) format: u32,
    /// The trust domain it is for.
    #[n(1)]
    pub trust_domain: String,
    /// From 1, rising; live bundles and shadows count together.
    #[n(2)]
    pub revision: u64,
    /// The digest of the manifest it follows.
    #[n(3)]
    pub parent: Option<Hash>,
    /// When it was made, in seconds since 1970.
    #[n(4)]
    pub created: u64,
    /// From when it is stale, in seconds since 1970.
    #[n(5)]
    pub expires: u64,
    /// The oldest engine that may use it.
    #[n(6)]
    pub min_engine: EngineVersion,
    /// Features that an engine must know to use it; sorted, distinct.
    #[cbor(n(7), decode_with = "at_most::<_, _, MAX_CRITICAL>")]
    pub critical: Vec<String>,
    /// What it is for.
    #[n(8)]
    pub stage: Stage,
    /// SHA-256 of the schema it was checked against, without the headers that its files select. An engine checks policies
    /// against its own, so this is for people.
    #[n(9)]
    pub schema: Hash,
    /// Its files, sorted by name.
    #[cbor(n(10), decode_with = "at_most::<_, _, BLOBS_MAX>")]
    pub files: Vec<ManifestFile>,
    /// How many policies are in the files.
    #[n(11)]
    pub policies: u64,
    /// What its author says of the change.
    #[n(12)]
    pub note: Option<String>,
}

/// One file of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ManifestFile {
    /// `pay/ledger.cedar`: at most one folder.
    #[n(0)]
    pub name: String,
    /// The digest of its content.
    #[n(1)]
    pub sha256: Hash,
    /// The length of its content.
    #[n(2)]
    pub bytes: u64,
}

/// What a bundle is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(index_only)]
pub enum Stage {
    /// It decides.
    #[n(0)]
    Live,
    /// It is evaluated beside the live one and never decides.
    #[n(1)]
    Shadow,
}

/// The version of what evaluates policies: `0.1.0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct EngineVersion {
    /// Rises when what was legal no longer is.
    #[n(0)]
    pub major: u32,
    /// Rises with what a bundle may need.
    #[n(1)]
    pub minor: u32,
    /// Rises with every other release.
    #[n(2)]
    pub patch: u32,
}

/// What decides whether the rest of a manifest can be understood at all. Whatever else newer formats hold is skipped.
#[derive(Decode)]
#[cbor(map)]
struct Preface {
    #[n(0)]
    format: u32,
    #[n(6)]
    min_engine: EngineVersion,
    #[cbor(n(7), decode_with = "at_most::<_, _, MAX_CRITICAL>")]
    critical: Vec<String>,
}

// === impl Manifest ===

impl Manifest {
    /// The manifest these bytes are, unless it needs what is not there.
    pub(super) fn read(body: &[u8], engine: EngineVersion, known_critical: &[&str]) -> Result<Self, Refused> {
        let malformed = |why: String| Refused::Seal(SealBroken::Malformed(why));
        let preface: Preface = cbor::decode_lenient(body).map_err(|why| malformed(why.to_string()))?;
        if preface.format > FORMAT {
            return Err(Refused::NewerFormat(preface.format));
        }
        if preface.min_engine > engine {
            return Err(Refused::NewerEngine {
                needs: preface.min_engine,
                this: engine,
            });
        }
        if let Some(unknown) = preface
            .critical
            .iter()
            .find(|feature| !known_critical.contains(&feature.as_str()))
        {
            return Err(Refused::UnknownCritical(
                unknown.escape_debug().take(MAX_CRITICAL_BYTES).collect(),
            ));
        }
        let manifest: Self = cbor::decode(body).map_err(|why| {
            malformed(match why {
                cbor::Malformed::OtherForm => "its manifest is not in the one form that is accepted".to_owned(),
                why => why.to_string(),
            })
        })?;
        manifest.check().map_err(malformed)?;
        Ok(manifest)
    }

    /// A manifest as the CA's history lists it, by itself. Nothing in it is verified.
    ///
    /// # Errors
    /// It is no manifest, or needs an engine newer than this.
    pub fn danger_read_unverified(bytes: &[u8]) -> Result<Self, Refused> {
        Self::read(bytes, EngineVersion::THIS, KNOWN_CRITICAL)
    }

    /// The manifest of a bundle that nobody has to believe, without a look at its files.
    ///
    /// # Errors
    /// It is no bundle, or needs an engine newer than this.
    pub fn danger_of_bundle(bytes: &[u8], max_bytes: usize) -> Result<Self, Refused> {
        Self::danger_read_unverified(&Envelope::decode(KIND, bytes, max_bytes)?.body())
    }

    /// The bytes that are signed, without what stands before them.
    pub fn encode(&self) -> Vec<u8> {
        cbor::encode(self)
    }

    /// The rules that need nothing else.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.format != FORMAT {
            return Err(format!("its format is {}", self.format));
        }
        TrustDomain::parse(&self.trust_domain).map_err(|error| error.to_string())?;
        if self.revision == 0 {
            return Err("revision 0 is none; revisions start at 1".to_owned());
        }
        if self.expires <= self.created || self.expires > LAST_SECOND {
            return Err("it expires before it was made, or after the year 9999; choose another end".to_owned());
        }
        let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let is_feature = |name: &String| (1..=MAX_CRITICAL_BYTES).contains(&name.len()) && name.bytes().all(word);
        if self.critical.len() > MAX_CRITICAL || !self.critical.is_sorted_by(|a, b| a < b) {
            return Err("its critical features are out of order, doubled or too many".to_owned());
        }
        if let Some(bad) = self.critical.iter().find(|name| !is_feature(name)) {
            let bad: String = bad.escape_debug().take(MAX_CRITICAL_BYTES).collect();
            return Err(format!(
                "`{bad}` is not a critical feature; use 1 to 64 of a-z, 0-9 and `-`"
            ));
        }
        let has_feature = |name: &str| self.critical.iter().any(|feature| feature == name);
        if (self.stage == Stage::Shadow) != has_feature(CRITICAL_SHADOW) {
            return Err("a shadow, and only a shadow, has the critical feature `shadow`".to_owned());
        }
        if self.files.iter().any(|file| file.name == HEADERS_FILE) != has_feature(CRITICAL_HEADERS) {
            return Err(format!(
                "a bundle with `{HEADERS_FILE}`, and only such a one, has the critical feature `{CRITICAL_HEADERS}`"
            ));
        }
        if let Some(note) = &self.note
            && (note.is_empty() || note.len() > MAX_NOTE_BYTES || note.chars().any(char::is_control))
        {
            return Err(format!(
                "the note is empty, longer than {MAX_NOTE_BYTES} bytes or has control characters; write one line"
            ));
        }
        if self.files.len() > BLOBS_MAX {
            return Err(format!(
                "it has more than {BLOBS_MAX} files; put several policies into one"
            ));
        }
        // Many files may have one content, which is in the bundle once: what it amounts to is bounded here.
        let bytes = self.files.iter().map(|file| file.bytes);
        if bytes.fold(0, u64::saturating_add) > TOTAL_BYTES_MAX as u64 {
            return Err(format!(
                "its files have more than {TOTAL_BYTES_MAX} bytes together; remove policies"
            ));
        }
        if !self.files.is_sorted_by(|a, b| a.name < b.name) {
            return Err("its files are out of order or doubled".to_owned());
        }
        match self.files.iter().find(|file| !is_file_name(&file.name)) {
            Some(bad) => Err(format!("`{}` is not a file's name", shown(&bad.name))),
            None => Ok(()),
        }
    }
}

// === impl Stage ===

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Live => "live",
            Self::Shadow => "shadow",
        })
    }
}

// === impl EngineVersion ===

impl EngineVersion {
    /// The engine in this program.
    pub const THIS: Self = Self {
        major: number(env!("CARGO_PKG_VERSION_MAJOR")),
        minor: number(env!("CARGO_PKG_VERSION_MINOR")),
        patch: number(env!("CARGO_PKG_VERSION_PATCH")),
    };
}

const fn number(text: &str) -> u32 {
    match u32::from_str_radix(text, 10) {
        Ok(number) => number,
        Err(_) => 0,
    }
}

impl FromStr for EngineVersion {
    type Err = Unbuildable;

    fn from_str(text: &str) -> Result<Self, Unbuildable> {
        let parse = || {
            let mut numbers = text.split('.').map(|part| part.parse::<u32>().ok());
            let version = Self {
                major: numbers.next()??,
                minor: numbers.next()??,
                patch: numbers.next()??,
            };
            (numbers.next().is_none() && version.to_string() == text).then_some(version)
        };
        parse()
            .ok_or_else(|| Unbuildable::Meta(format!("`{}` is not a version; write for example `0.1.0`", shown(text))))
    }
}

impl fmt::Display for EngineVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// The files that are no policies.
const TABLES: [&str; 3] = [ROUTES_FILE, MODULES_FILE, HEADERS_FILE];
pub(super) const NAME_RULE: &str = "a name is `routes.toml`, `modules.toml`, `headers.toml`, `name.cedar` or `module/name.cedar` in letters, digits, `.`, `_` and `-`, starts with no dot and has at most 255 bytes; rename the file";

/// A name that is safe on every disk: no way up or out, nothing hidden, at most one folder deep.
pub(super) fn is_file_name(name: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    let part = |part: &str| !part.is_empty() && !part.starts_with('.') && part.bytes().all(word);
    let known = match name.split_once('/') {
        None => part(name) && (name.ends_with(".cedar") || TABLES.contains(&name)),
        // What lies in the grants' folder answers to no module: only a grant, which two people signed, may put it there.
        Some((folder, file)) => folder != BREAK_GLASS_MODULE && part(folder) && part(file) && file.ends_with(".cedar"),
    };
    known && name.len() <= FILE_NAME_BYTES_MAX
}

pub(super) fn shown(text: &str) -> String {
    text.escape_debug().take(80).collect()
}

/// Whole seconds since 1970; a clock before that is taken to it.
pub(crate) fn seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// The instant, if it can be written down; the last that can, if not.
pub(crate) fn instant(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds.min(LAST_SECOND))
}

pub(crate) fn rfc3339(seconds: u64) -> String {
    humantime::format_rfc3339_seconds(instant(seconds)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_three_numbers() {
        let check = |text: &str, good: bool| assert_eq!(text.parse::<EngineVersion>().is_ok(), good, "{text}");
        check("0.1.0", true);
        check("1.20.300", true);
        for bad in [
            "",
            "1",
            "1.2",
            "1.2.3.4",
            "1.2.x",
            "01.2.3",
            "+1.2.3",
            "1.2.99999999999",
        ] {
            check(bad, false);
        }
        assert_eq!(EngineVersion::THIS.to_string(), env!("CARGO_PKG_VERSION"));
        assert!("0.10.0".parse::<EngineVersion>().unwrap() > "0.9.9".parse().unwrap());
    }
}
