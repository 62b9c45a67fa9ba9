//! The store on a real PostgreSQL server, which each run starts for itself.

#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod reached;
mod replicas;
mod suites;

use std::sync::{Arc, Mutex, Weak};

use hoplite_postgres::testing::Server;

/// A server and its directory.
pub(crate) struct Own {
    pub(crate) server: Server,
    pub(crate) _dir: tempfile::TempDir,
}

/// One server for the tests that run at a time; it ends with the last of them. None where there is no PostgreSQL.
pub(crate) fn shared(test: &str) -> Option<Arc<Own>> {
    static SHARED: Mutex<Weak<Own>> = Mutex::new(Weak::new());
    if !hoplite_postgres::testing::possible(test) {
        return None;
    }
    let mut shared = SHARED.lock().unwrap();
    Some(shared.upgrade().unwrap_or_else(|| {
        let own = Arc::new(own(""));
        *shared = Arc::downgrade(&own);
        own
    }))
}

/// A server for one test.
pub(crate) fn own(configuration: &str) -> Own {
    let dir = tempfile::tempdir().unwrap();
    Own {
        server: Server::start_with(dir.path(), configuration),
        _dir: dir,
    }
}
