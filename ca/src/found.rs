//! Founding a trust domain without serving it: its directory, its store and its authority.

use std::path::Path;
use std::time::SystemTime;

use hoplite_host::{clock, files, give};
use hoplite_identity::Fingerprint;
use zeroize::Zeroizing;

use crate::Config;
use crate::authority::opened::Authorities;
use crate::founding::{self, Founding};
use crate::index::Index;
use crate::registry::FollowError;
use crate::server::{BUNDLE_FILE, StartError};
use crate::storage::Storage;

/// What a trust domain is known by from its first moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Founded {
    /// Of its authority's certificate.
    pub fingerprint: Fingerprint,
    /// The end of that certificate.
    pub not_after: SystemTime,
}

/// Makes what a CA of this configuration needs, if it is not there, and ends: the next start serves with it. What lies in
/// the data directory is given to that directory's owner.
///
/// # Errors
/// As [`start`](crate::start).
pub fn found(config: &Config) -> Result<Founded, StartError> {
    config.check(Path::new("configuration"))?;
    files::private_dir_among_others(&config.data_dir)?;
    let Storage { store, location } = Storage::open(config, Founding::WhereNoneWas)?;
    // Whoever copies the keys for another CA finds that for JWT-SVIDs too.
    let Authorities { authority, .. } = Authorities::open(config, &*store, Founding::WhereNoneWas, clock::now())?;
    founding::check_revision(&config.data_dir, &location, store.revision(), Founding::WhereNoneWas)?;
    let index = Index::new(&store.snapshot()?).map_err(FollowError::from)?;
    drop(store);
    let founded = Founded {
        fingerprint: Fingerprint::of(authority.root()),
        not_after: authority.not_after(),
    };
    let bundle = index.authority.bundle().ok_or(FollowError::NoAuthority)?;
    files::write_public(&config.data_dir.join(BUNDLE_FILE), bundle.to_pem().as_bytes())?;
    give::to_owner(&config.data_dir)?;
    Ok(founded)
}

/// Makes what one more CA over a store that others have needs: the authorities' keys are theirs, and lie in this file and in `jwt.key`
/// beside it. They are checked against the store; where they do not fit, nothing is left behind.
///
/// # Errors
/// As [`start`](crate::start).
pub fn found_replica(config: &Config, authority_key: &Path) -> Result<Founded, StartError> {
    config.check(Path::new("configuration"))?;
    let keys = [
        (authority_key.to_owned(), "authority.key"),
        (authority_key.with_file_name("jwt.key"), "jwt.key"),
    ];
    let mut read = Vec::new();
    for (file, name) in keys {
        read.push((Zeroizing::new(files::read_private(&file)?), config.data_dir.join(name)));
    }
    files::private_dir_among_others(&config.data_dir)?;
    let mut written = Vec::new();
    for (key, path) in read {
        // What is there is another CA's, or this one's: `found` says which.
        if !path.exists() {
            files::write_private(&path, &key)?;
            written.push(path);
        }
    }
    let founded = found(config);
    if founded.is_err() {
        for path in written {
            let _ = std::fs::remove_file(path); // the first failure is the one to tell
        }
    }
    founded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_founded_is_what_serves() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ca.toml");
        let root = dir.path().display();
        let text = format!(
            "trust_domain = \"prod.example\"\ndata_dir = \"{root}/ca\"\nlisten = \"127.0.0.1:0\"\nadmin_socket = \"{root}/run/ca.sock\"\n"
        );
        std::fs::write(&file, text).unwrap();
        let config = Config::load(&file).unwrap();
        let founded = found(&config).unwrap();
        assert_eq!(found(&config).unwrap(), founded, "it is made once");
        let running = crate::start(config.clone()).await.unwrap();
        let bundle = running.bundle();
        assert_eq!(Fingerprint::of(&bundle.authorities()[0]), founded.fingerprint);
        let written = std::fs::read_to_string(dir.path().join("ca/bundle.pem")).unwrap();
        assert_eq!(written, bundle.to_pem());
        let error = found(&config).unwrap_err();
        assert!(matches!(error, StartError::Store(_)), "beside one that runs: {error}");
        running.stop().await;
    }
}
