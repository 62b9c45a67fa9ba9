//! Why a bundle cannot be made, and why one is not accepted.

use super::engine::{CRITICAL_HEADERS, EngineVersion, FORMAT};
use crate::calendar::rfc3339;
use crate::source::{HEADERS_FILE, TOTAL_BYTES_MAX};
use hoplite_identity::InvalidSpiffeId;
use hoplite_seal::{BLOBS_MAX, SealBroken, cbor};

/// The longest note.
pub const NOTE_BYTES_MAX: usize = 1_024;
pub(super) const NAME_RULE: &str = "a name is `routes.toml`, `modules.toml`, `headers.toml`, `name.cedar` or `module/name.cedar` in letters, digits, `.`, `_` and `-`, starts with no dot and has at most 255 bytes; rename the file";

/// Why no bundle can be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unbuildable {
    /// The name of a file cannot be used.
    #[error("`{0}` cannot be in a bundle: {NAME_RULE}")]
    FileName(String),
    /// Two files have one name.
    #[error("two files are named `{0}`; rename one")]
    SameName(String),
    /// Something that its [`Meta`](super::Meta) says cannot be used.
    #[error(transparent)]
    Manifest(#[from] BadManifest),
}

/// Why a bundle is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// Its size, form or signatures.
    #[error("the bundle is refused: {0}; {remedy}", remedy = remedy(.0))]
    Seal(#[from] SealBroken),
    /// Its manifest.
    #[error("the bundle is refused: it is not whole: {0}; publish it again")]
    Manifest(#[from] BadManifest),
    /// Its contents are not those that the manifest names.
    #[error("the bundle is refused: it is not whole: {0}; publish it again")]
    Contents(#[from] BadContents),
    /// It is for somebody else.
    #[error("the bundle is refused: it is for the trust domain `{got}`, and this is `{own}`; publish it there")]
    WrongTrustDomain {
        /// This one.
        own: String,
        /// Its own.
        got: String,
    },
    /// Something older than what is known. Somebody may be replaying it.
    #[error(
        "the bundle is refused: revision {got} is lower than {have}, which was accepted before; to go back, publish the old content as a new revision"
    )]
    LowerRevision {
        /// The highest so far.
        have: u64,
        /// Its own.
        got: u64,
    },
    /// Not a fault: this very bundle was accepted before.
    #[error("the bundle of revision {0} is the one already accepted")]
    AlreadyHave(u64),
    /// Two different bundles claim one revision. Somebody signed twice.
    #[error(
        "the bundle is refused: another bundle of revision {0} was accepted before; find out who signed two, and publish the right one as a new revision"
    )]
    Conflict(u64),
    /// It was stale before it came.
    #[error("the bundle is refused: it expired at {at}; publish it again", at = rfc3339(*.0))]
    Expired(u64),
    /// It needs a feature that this engine does not know.
    #[error("the bundle is refused: it needs `{0}`, which this engine does not know; upgrade this program first")]
    UnknownCritical(String),
    /// It needs a newer engine.
    #[error("the bundle is refused: it needs engine {needs}, and this is {this}; upgrade this program first")]
    NewerEngine {
        /// The oldest that would do.
        needs: EngineVersion,
        /// This one.
        this: EngineVersion,
    },
    /// Its manifest has a newer form.
    #[error("the bundle is refused: its format {0} is newer than {FORMAT}; upgrade this program first")]
    NewerFormat(u32),
    /// A file's content is missing, is not the one that was signed, or nobody asked for it.
    #[error("the bundle is refused: the content of `{0}` is missing or not the one that was signed; publish it again")]
    BlobMismatch(String),
}

/// What is wrong with a manifest, or with what one is made of.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadManifest {
    /// It is no CBOR of a manifest.
    #[error(transparent)]
    Cbor(cbor::Malformed),
    /// It has another text.
    #[error("its manifest is not in the one form that is accepted")]
    OtherForm,
    /// Its form is another.
    #[error("its format is {0}")]
    Format(u32),
    /// Its trust domain is not a valid name.
    #[error(transparent)]
    TrustDomain(#[from] InvalidSpiffeId),
    /// It has no revision.
    #[error("revision 0 is not used; revisions start at 1")]
    NoRevision,
    /// Its end cannot be.
    #[error("it expires before it was made, or after the year 9999; choose another end")]
    End,
    /// Its features are no sorted set.
    #[error("its critical features are out of order, doubled or too many")]
    CriticalOrder,
    /// A feature has no feature's name.
    #[error("`{0}` is not a critical feature; use 1 to 64 of a-z, 0-9 and `-`")]
    Critical(String),
    /// Stage and features do not say the same.
    #[error("a shadow, and only a shadow, has the critical feature `shadow`")]
    Shadow,
    /// Files and features do not say the same.
    #[error("a bundle with `{HEADERS_FILE}`, and no other, has the critical feature `{CRITICAL_HEADERS}`")]
    Headers,
    /// The note cannot be shown in one line.
    #[error("the note is empty, longer than {NOTE_BYTES_MAX} bytes or has control characters; write one line")]
    Note,
    /// More files than an envelope carries.
    #[error("it has more than {BLOBS_MAX} files; put several policies into one")]
    TooManyFiles,
    /// More text than a snapshot takes.
    #[error("its files have more than {TOTAL_BYTES_MAX} bytes together; remove policies")]
    TooManyBytes,
    /// Its files are no sorted set.
    #[error("its files are out of order or doubled")]
    FileOrder,
    /// A file has a name that is not safe.
    #[error("`{0}` is not a file's name")]
    FileName(String),
}

/// How the contents of a bundle differ from what its manifest says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadContents {
    /// They are no sorted set.
    #[error("its contents are out of order or doubled")]
    Order,
    /// A file is no text.
    #[error("`{0}` is not UTF-8")]
    NotUtf8(String),
    /// The policies are not as many.
    #[error("it has more or fewer policies than its manifest says")]
    PolicyCount,
}

/// What to do about signed policy that cannot be believed.
pub(crate) fn remedy(broken: &SealBroken) -> &'static str {
    match broken {
        SealBroken::TooLarge { .. } => "publish less, or raise the limit everywhere",
        SealBroken::Unsigned => "sign it with a trusted key",
        SealBroken::UnknownSigner(_) => "add the key to `policy_signers`, or have a trusted signer publish",
        SealBroken::TooFewSigners { .. } => "have more of them sign it",
        _ => "publish it again",
    }
}

/// A stranger's text, short and without control characters.
pub(super) fn shown(text: &str) -> String {
    text.escape_debug().take(80).collect()
}
