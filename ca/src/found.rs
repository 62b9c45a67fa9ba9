//! Founding a trust domain without serving it: its directory, its store and its authority.

use std::path::Path;
use std::time::SystemTime;

use hoplite_host::{clock, files};
use hoplite_identity::Fingerprint;
use hoplite_store::{SledStore, Store};

use crate::Config;
use crate::authority::x509::Authority;
use crate::founding::{self, Founding};
use crate::index::Index;
use crate::registry::FollowError;
use crate::server::{BUNDLE_FILE, StartError};

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
    let store_dir = config.data_dir.join("store");
    founding::check_store(&config.data_dir, &store_dir, Founding::WhereNoneWas)?;
    let store = SledStore::open(&store_dir)?;
    let ttl = config.authority_ttl.0;
    let authority = Authority::open(&store, &config.data_dir, &config.trust_domain, ttl, clock::now())?;
    founding::check_revision(&config.data_dir, &store_dir, store.revision(), Founding::WhereNoneWas)?;
    let index = Index::new(&store.snapshot()?).map_err(FollowError::from)?;
    drop(store);
    let founded = Founded {
        fingerprint: Fingerprint::of(authority.certificate()),
        not_after: authority.not_after(),
    };
    let bundle = index.authority.bundle().ok_or(FollowError::NoAuthority)?;
    files::write_public(&config.data_dir.join(BUNDLE_FILE), bundle.to_pem().as_bytes())?;
    files::give_to_owner(&config.data_dir)?;
    Ok(founded)
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
