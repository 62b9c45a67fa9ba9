//! What kinds of trouble there are; each has a name that scripts may rely on.

/// How much it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// Worth knowing, as in the middle of an upgrade.
    Notice,
    /// Somebody has to do something.
    Wrong,
}

/// What kinds of trouble there are, the worst last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    Cut,
    OtherBuild,
    OldVersion,
    Readmitted,
    Grants,
    Clock,
    WithoutSvid,
    NotInStep,
    Ends,
    PointSilent,
    PointEnded,
    PolicyBehind,
    PolicyRefused,
    PolicyStale,
    RecordsLost,
    RecordFailures,
    NotHeard,
    Silent,
    PolicyAlarm,
    DeniesAll,
    UnsignedDirectory,
    ForeignPolicy,
    ForeignIdentity,
    OtherEpoch,
    TwoHolders,
}

/// One thing wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trouble {
    pub(crate) kind: Kind,
    pub(crate) level: Level,
    /// The name of who decides; empty for the node.
    pub(crate) point: String,
    pub(crate) text: String,
}

// === impl Kind ===

impl Kind {
    /// The name in answers and filters.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Cut => "cut",
            Self::OtherBuild => "other-build",
            Self::OldVersion => "old-version",
            Self::Readmitted => "readmitted",
            Self::Grants => "break-glass",
            Self::Clock => "clock",
            Self::WithoutSvid => "without-svid",
            Self::NotInStep => "not-in-step",
            Self::Ends => "ends",
            Self::PointSilent => "proxy-silent",
            Self::PointEnded => "proxy-ended",
            Self::PolicyBehind => "policy-behind",
            Self::PolicyRefused => "policy-refused",
            Self::PolicyStale => "policy-stale",
            Self::RecordsLost => "records-lost",
            Self::RecordFailures => "record-failures",
            Self::NotHeard => "not-heard",
            Self::Silent => "silent",
            Self::PolicyAlarm => "policy-alarm",
            Self::DeniesAll => "denies-all",
            Self::UnsignedDirectory => "unsigned-directory",
            Self::ForeignPolicy => "foreign-policy",
            Self::ForeignIdentity => "foreign-identity",
            Self::OtherEpoch => "other-epoch",
            Self::TwoHolders => "two-holders",
        }
    }
}

// === impl Level ===

impl Level {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Notice => "notice",
            Self::Wrong => "wrong",
        }
    }
}
