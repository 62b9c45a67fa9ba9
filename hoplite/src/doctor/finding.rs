//! What was found: how something is, what was seen of it, and what to do.

use std::time::Duration;

use hoplite_host::daemon::one_line;
use serde::Serialize;

/// One check takes milliseconds; a disk or a name server that is away takes for ever.
pub(super) const CHECK_MAX: Duration = Duration::from_secs(4);

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) enum Verdict {
    #[serde(rename = "ok")]
    Ok,
    /// It works, and somebody should look at it.
    #[serde(rename = "warn")]
    Warn,
    #[serde(rename = "FAIL")]
    Fail,
    /// This user may not see it, or there is nothing to see it by.
    #[serde(rename = "unseen")]
    Unseen,
}

// === impl Verdict ===

impl Verdict {
    /// As people read it, and in JSON.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
            Self::Unseen => "unseen",
        }
    }
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    pub(crate) verdict: Verdict,
    pub(crate) check: &'static str,
    pub(crate) seen: String,
    pub(crate) remedy: Option<String>,
}

pub(crate) fn ok(check: &'static str, seen: impl Into<String>) -> Finding {
    Finding {
        verdict: Verdict::Ok,
        check,
        seen: seen.into(),
        remedy: None,
    }
}

pub(crate) fn warn(check: &'static str, seen: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding {
        verdict: Verdict::Warn,
        remedy: Some(remedy.into()),
        ..ok(check, seen)
    }
}

pub(crate) fn fail(check: &'static str, seen: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding {
        verdict: Verdict::Fail,
        remedy: Some(remedy.into()),
        ..ok(check, seen)
    }
}

pub(crate) fn unseen(check: &'static str, seen: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding {
        verdict: Verdict::Unseen,
        remedy: Some(remedy.into()),
        ..ok(check, seen)
    }
}

/// Of an error that most often is one of permission.
pub(crate) fn denied(check: &'static str, what: &str, error: &std::io::Error) -> Finding {
    let seen = format!("{what}: {}", one_line(error));
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => unseen(check, seen, "run this as the daemon's user or as root"),
        std::io::ErrorKind::NotFound => fail(
            check,
            seen,
            "start the daemon, which makes it, or mend the path in its file",
        ),
        _ => fail(check, seen, "look at the disk below it"),
    }
}
