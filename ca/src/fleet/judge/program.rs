//! What is asked of any program, agent or proxy: that its certificate is renewed, and that it is the build that most run.

use data_encoding::HEXLOWER;
use hoplite_wire::report::Program;

use super::moments::{moment, unix};
use super::norm::Norm;
use super::trouble::{Kind, Level};

/// Digests and reasons in a sentence.
const DIGEST_CHARS: usize = 12;

/// SVIDs are renewed by themselves, at half of their lives: one is worth a word only when that did not happen.
pub(super) fn about_svid(norm: &Norm<'_>, begins: i64, ends: i64, tell: &mut impl FnMut(Kind, Level, String)) {
    let left = ends.saturating_sub(unix(norm.now));
    let text = match (ends, left) {
        (..=0, _) => return,
        (_, ..=0) => format!("its SVID has ended at {}; the agent's log says why", moment(ends)),
        _ if left < ends.saturating_sub(begins) / 4 => format!(
            "its SVID ends at {} and should have been renewed at half of its life; the agent's log says why",
            moment(ends)
        ),
        _ => return,
    };
    tell(Kind::Ends, Level::Wrong, text);
}

pub(super) fn about_program(
    norm: &Norm<'_>,
    kind: &str,
    program: &Program,
    tell: &mut impl FnMut(Kind, Level, String),
) {
    if is_older(&program.version, norm.version) {
        let text = format!(
            "runs version {}, and the CA {}; {}",
            program.version,
            norm.version,
            if kind == "agent" {
                "upgrade the agent"
            } else {
                "upgrade it"
            }
        );
        return tell(Kind::OldVersion, Level::Notice, text);
    }
    let usual = norm.usual.get(&(kind.to_owned(), program.target.clone()));
    if let Some(usual) = usual.filter(|usual| !program.sha256.is_empty() && usual.sha256 != program.sha256) {
        let text = format!(
            "runs another build of {} ({}) than most ({} of {})",
            program.version,
            short(&program.sha256),
            short(&usual.sha256),
            usual.version
        );
        tell(Kind::OtherBuild, Level::Notice, text);
    }
}

/// Whether one version is before another; one that cannot be read is not.
pub(super) fn is_older(version: &str, than: &str) -> bool {
    let parts = |text: &str| -> Option<Vec<u64>> {
        let core = text.split(['-', '+']).next()?;
        core.split('.').map(|part| part.parse().ok()).collect()
    };
    matches!((parts(version), parts(than)), (Some(version), Some(than)) if version < than)
}

pub(super) fn short(digest: &[u8]) -> String {
    let hex = HEXLOWER.encode(digest);
    hex.get(..DIGEST_CHARS).unwrap_or(&hex).to_owned()
}
