//! Every store that is built here passes the conformance suite.

use hoplite_store::conformance::KEEP;
use hoplite_store::{MemoryStore, SledStore};

hoplite_store::conformance!(memory, || Box::new(MemoryStore::keeping(KEEP)));

hoplite_store::conformance!(sled, {
    let directory = tempfile::tempdir().unwrap();
    let mut opened = 0;
    move || {
        opened += 1;
        let directory = directory.path().join(opened.to_string());
        Box::new(SledStore::open_keeping(&directory, KEEP).unwrap())
    }
});
