//! The store of several CAs: the key-value trait with revisions on PostgreSQL. See docs/decisions/0012-replicas.md.
//!
//! One row, `state`, holds the revision. Every commit locks it, checks its conditions against what it then sees, writes, and
//! raises it: so commits come one after the other, whichever replica makes them, and readers see whole ones. A notification is a
//! wake-up and carries nothing; a look once a second makes up for those that are lost.

mod commit;
mod connect;
mod failure;
mod filling;
mod listen;
mod rows;
mod schema;
mod session;
mod settings;
mod shared;
mod store;
#[cfg(feature = "testing")]
pub mod testing;
mod tls;

pub use filling::Filling;
pub use settings::{Host, InvalidHost, Settings, Tls};
pub use store::PostgresStore;
