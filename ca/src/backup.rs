//! A backup and its restore: all that a CA has as of one revision, in one encrypted file, and a CA made of it again.

mod contents;
mod database;
pub(crate) mod files;
mod restore;
mod restoring;
mod sealed;
pub(crate) mod source;

pub use contents::{BadBackup, Summary, check};
pub use database::DatabaseError;
pub use restore::{LaterBans, RestoreError, Restored, restore};
pub use sealed::{BadPassphrase, Opening, Passphrase, SealError, Sealing};
