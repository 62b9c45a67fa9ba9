//! The turns of the keys for JWT-SVIDs. Time alone has them take these, also where people do it for the X.509 authorities: nobody
//! outside has such a key pinned. Not where other CAs need the key and have it by hand.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use crate::authority::course::{Course, Name};
use crate::authority::index::AuthorityIndex;
use crate::authority::jwt::{JwtSigner, JwtTrusted};
use crate::authority::keyring::Keyring;
use crate::authority::taking::Word;
use crate::authority::writes::New;
use crate::authority::x509::AuthorityError;
use crate::issuer::Issuer;
use crate::rotation::{Kind, Parts, Plan, Words};

// === impl JwtTrusted ===

impl Kind for JwtTrusted {
    const WORDS: Words = Words {
        prepared: "JwtKeyPrepared",
        signs: "JwtKeySigns",
        leaves: "JwtKeyLeaves",
        noun: "a key for JWT-SVIDs",
    };

    fn all(index: &AuthorityIndex) -> &BTreeMap<Name, Self> {
        index.jwt()
    }

    fn course(index: &AuthorityIndex) -> &Course {
        index.jwt_course()
    }

    fn rotates(plan: Plan) -> bool {
        plan.jwt_rotates
    }

    fn keyring(with: &Parts) -> &Keyring {
        &with.jwt_keyring
    }

    fn public(&self, _: &str) -> Option<Vec<u8>> {
        Some(Self::public(self))
    }

    fn make(with: &Parts, ttl: Duration, now: SystemTime) -> Result<New<Self>, AuthorityError> {
        JwtSigner::make(&with.jwt_keyring, ttl, now).map(|(_, new)| new)
    }

    /// Nobody has one pinned.
    fn word(_: &Parts, _: &BTreeMap<Name, Self>, _: &str) -> Result<Option<Word>, AuthorityError> {
        Ok(None)
    }

    fn follow(with: &Parts, all: &BTreeMap<Name, Self>, name: &str) -> Result<Option<bool>, AuthorityError> {
        if Self::signs(&with.issuer).as_deref() == Some(name) {
            return Ok(None);
        }
        let place = || with.jwt_keyring.place();
        let signer = JwtSigner::held(&with.jwt_keyring, all, name)?;
        let signer = signer.ok_or_else(|| AuthorityError::KeyMissing { place: place() })?;
        with.issuer.sign_jwt_with(signer);
        Ok(Some(true))
    }

    fn signs(issuer: &Issuer) -> Option<Name> {
        issuer.jwt_kid()
    }
}
