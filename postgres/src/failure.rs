//! What goes wrong between us and the server, by whose matter it is.

use std::error::Error as _;
use std::fmt;

use hoplite_store::StoreError;
use tokio_postgres::error::SqlState;

/// Why a statement was not answered.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The server, or the way to it, went away; or it takes no writes now. Another connection may do better.
    Away {
        problem: String,
        /// A commit was sent: nobody can say whether it was made.
        is_sent: bool,
    },
    /// It is there, and refuses.
    Refused { problem: String, remedy: &'static str },
    /// What is there is not what was written there.
    Damaged(String),
    /// It is not the store that was opened, or an older copy of it.
    Another(String),
}

// === impl Failure ===

impl Failure {
    pub(crate) fn away(problem: impl fmt::Display) -> Self {
        let problem = problem.to_string();
        Self::Away {
            problem,
            is_sent: false,
        }
    }

    /// Of something that may have been a commit's.
    pub(crate) fn sent(self) -> Self {
        match self {
            Self::Away { problem, .. } => Self::Away { problem, is_sent: true },
            other => other,
        }
    }

    /// Whether a connection that was idle for a while may be all that was wrong.
    pub(crate) fn may_be_tried_again(&self) -> bool {
        matches!(self, Self::Away { is_sent: false, .. })
    }

    /// As whoever uses the store is told.
    pub(crate) fn told(self, location: &str, action: &'static str) -> StoreError {
        let location = location.to_owned();
        match self {
            Self::Away { problem, .. } => StoreError::Away { location, problem },
            Self::Refused { problem, remedy } => StoreError::Io {
                location,
                action,
                problem,
                remedy,
            },
            Self::Damaged(problem) => StoreError::Damaged { location, problem },
            Self::Another(_) => StoreError::Stopped { location },
        }
    }
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        let Some(said) = error.as_db_error() else {
            // Its own words are a kind (`error connecting to server`); the reason lies beneath.
            let mut problem = error.to_string();
            let mut beneath = error.source();
            while let Some(cause) = beneath {
                let cause_text = cause.to_string();
                if !problem.contains(&cause_text) {
                    problem = format!("{problem}: {cause_text}");
                }
                beneath = cause.source();
            }
            return Self::away(problem);
        };
        let problem = format!("{} (SQLSTATE {})", said.message(), said.code().code());
        let code = said.code();
        let remedy = match code.code().get(..2).unwrap_or_default() {
            "08" | "40" | "57" => return Self::away(problem),
            _ if [
                &SqlState::READ_ONLY_SQL_TRANSACTION,
                &SqlState::LOCK_NOT_AVAILABLE,
                &SqlState::TOO_MANY_CONNECTIONS,
                &SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
            ]
            .contains(&code) =>
            {
                return Self::away(problem);
            }
            "28" => "check `user`, `password_file` and the server's pg_hba.conf",
            "3D" => "make the database, or name another one by `database`",
            "53" => "give the server more room",
            "42" if *code == SqlState::INSUFFICIENT_PRIVILEGE => {
                "make the schema the role's own: `CREATE SCHEMA … AUTHORIZATION …`"
            }
            _ => "see the server's log",
        };
        Self::Refused { problem, remedy }
    }
}
