//! The manifest: what a bundle says of itself, and what is signed.

use super::engine::{CRITICAL_HEADERS, CRITICAL_SHADOW, EngineVersion, FORMAT, KNOWN_CRITICAL};
use super::refused::{BadManifest, NOTE_BYTES_MAX, Refused, shown};
use crate::calendar::LAST_SECOND;
use crate::source::{
    BREAK_GLASS_MODULE, FILE_NAME_BYTES_MAX, HEADERS_FILE, MODULES_FILE, ROUTES_FILE, TOTAL_BYTES_MAX,
};
use hoplite_identity::TrustDomain;
use hoplite_seal::cbor::{self, at_most};
use hoplite_seal::{BLOBS_MAX, Envelope, Hash, Kind};
use minicbor::{Decode, Encode};
use std::fmt;

/// What stands in the envelope, and before everything that is signed.
pub(super) const KIND: Kind = Kind::new("hoplite policy bundle v1");

/// More features than an engine could reasonably have to know at once.
const CRITICAL_MAX: usize = 32;
const CRITICAL_BYTES_MAX: usize = 64;

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
    #[cbor(n(7), decode_with = "at_most::<_, _, CRITICAL_MAX>")]
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

/// What decides whether the rest of a manifest can be understood at all. Whatever else newer formats hold is skipped.
#[derive(Decode)]
#[cbor(map)]
struct Preface {
    #[n(0)]
    format: u32,
    #[n(6)]
    min_engine: EngineVersion,
    #[cbor(n(7), decode_with = "at_most::<_, _, CRITICAL_MAX>")]
    critical: Vec<String>,
}

// === impl Manifest ===

impl Manifest {
    /// The manifest these bytes are, unless it needs what is not there.
    pub(super) fn read(body: &[u8], engine: EngineVersion, known_critical: &[&str]) -> Result<Self, Refused> {
        let preface: Preface = cbor::decode_lenient(body).map_err(BadManifest::Cbor)?;
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
                unknown.escape_debug().take(CRITICAL_BYTES_MAX).collect(),
            ));
        }
        let manifest: Self = cbor::decode(body).map_err(|why| match why {
            cbor::Malformed::OtherForm => BadManifest::OtherForm,
            why => BadManifest::Cbor(why),
        })?;
        manifest.check()?;
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
        Self::danger_read_unverified(Envelope::decode(KIND, bytes, max_bytes)?.body())
    }

    /// The bytes that are signed, without what stands before them.
    pub fn encode(&self) -> Vec<u8> {
        cbor::encode(self)
    }

    /// The rules that need nothing else.
    pub(super) fn check(&self) -> Result<(), BadManifest> {
        if self.format != FORMAT {
            return Err(BadManifest::Format(self.format));
        }
        TrustDomain::parse(&self.trust_domain)?;
        if self.revision == 0 {
            return Err(BadManifest::NoRevision);
        }
        if self.expires <= self.created || self.expires > LAST_SECOND {
            return Err(BadManifest::End);
        }
        let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let is_feature = |name: &String| (1..=CRITICAL_BYTES_MAX).contains(&name.len()) && name.bytes().all(word);
        if self.critical.len() > CRITICAL_MAX || !self.critical.is_sorted_by(|a, b| a < b) {
            return Err(BadManifest::CriticalOrder);
        }
        if let Some(bad) = self.critical.iter().find(|name| !is_feature(name)) {
            return Err(BadManifest::Critical(
                bad.escape_debug().take(CRITICAL_BYTES_MAX).collect(),
            ));
        }
        let has_feature = |name: &str| self.critical.iter().any(|feature| feature == name);
        if (self.stage == Stage::Shadow) != has_feature(CRITICAL_SHADOW) {
            return Err(BadManifest::Shadow);
        }
        if self.files.iter().any(|file| file.name == HEADERS_FILE) != has_feature(CRITICAL_HEADERS) {
            return Err(BadManifest::Headers);
        }
        if let Some(note) = &self.note
            && (note.is_empty() || note.len() > NOTE_BYTES_MAX || note.chars().any(char::is_control))
        {
            return Err(BadManifest::Note);
        }
        if self.files.len() > BLOBS_MAX {
            return Err(BadManifest::TooManyFiles);
        }
        // Many files may have one content, which is in the bundle once: what it amounts to is bounded here.
        let bytes = self.files.iter().map(|file| file.bytes);
        if bytes.fold(0, u64::saturating_add) > TOTAL_BYTES_MAX as u64 {
            return Err(BadManifest::TooManyBytes);
        }
        if !self.files.is_sorted_by(|a, b| a.name < b.name) {
            return Err(BadManifest::FileOrder);
        }
        match self.files.iter().find(|file| !is_file_name(&file.name)) {
            Some(bad) => Err(BadManifest::FileName(shown(&bad.name))),
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

/// The files that are no policies.
const TABLES: [&str; 3] = [ROUTES_FILE, MODULES_FILE, HEADERS_FILE];
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
