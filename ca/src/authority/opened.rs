//! All that signs at a CA, found or made at its start.

use std::time::SystemTime;

use hoplite_store::Store;

use crate::Config;
use crate::authority::jwt::JwtSigner;
use crate::authority::keyring::{Keyring, Keyrings};
use crate::authority::x509::{Authority, AuthorityError, Maker};
use crate::founding::Founding;

/// What signs here, and what its successors are made by.
pub(crate) struct Authorities {
    pub(crate) maker: Maker,
    pub(crate) jwt_keyring: Keyring,
    pub(crate) authority: Authority,
    pub(crate) jwt: JwtSigner,
}

// === impl Authorities ===

impl Authorities {
    /// Finds the keys that sign, or makes them at the first start. Where the authority has ended, another one takes its place only if that is
    /// `founding`: a clock that is wrong must not do it.
    pub(crate) fn open(
        config: &Config,
        store: &dyn Store,
        founding: Founding,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        let Keyrings { x509, jwt: jwt_keyring } = Keyrings::open(config)?;
        let (maker, ttl) = (Maker::new(config, x509), config.authority_ttl.0);
        if founding == Founding::NewAuthority {
            maker.replace_ended(store, ttl, now)?;
        }
        let authority = maker.open(store, ttl, now)?;
        let is_by_hand = config.store.is_shared() && !config.keys.are_shared();
        let jwt = JwtSigner::open(store, is_by_hand, &jwt_keyring, ttl, now)?;
        Ok(Self {
            maker,
            jwt_keyring,
            authority,
            jwt,
        })
    }
}
