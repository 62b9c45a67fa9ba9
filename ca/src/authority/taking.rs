//! What takes the course of authorities, of whatever kind its keys are.

use std::collections::BTreeMap;
use std::fmt;

use hoplite_identity::jwt::InvalidJwk;
use hoplite_identity::{CertificateDer, InvalidBundle, TrustDomain};

use crate::authority::course::{Course, CourseError, Life, Name};
use crate::record::Record;

/// A kind of authorities: its records take the course that all of them take.
pub(crate) trait Taking: Record + Clone + PartialEq + fmt::Debug + Send + Sync + 'static {
    /// What one is made of.
    type Made: Clone + fmt::Debug + Send + Sync + 'static;

    /// What it is called.
    fn name(made: &Self::Made) -> Name;

    /// One more, with its key if the store keeps that.
    fn new_one(
        trust_domain: &TrustDomain,
        made: &Self::Made,
        life: Life,
        sealed: Option<String>,
    ) -> Result<Self, TrustError>;

    fn life(&self) -> Life;

    /// It is there now. Whoever signs no more needs no key.
    fn live(&mut self, life: Life);

    /// Keeps the word of one.
    fn speak(_: &mut BTreeMap<Name, Self>, _: &Word) {}
}

/// The course of these.
pub(crate) fn course<K: Taking>(all: &BTreeMap<Name, K>) -> Course {
    Course(all.iter().map(|(name, one)| (name.clone(), one.life())).collect())
}

/// What the one that signs says of its successor: a certificate of its key.
#[derive(Debug, Clone)]
pub(crate) struct Word {
    pub(crate) by: Name,
    pub(crate) certificate: CertificateDer<'static>,
}

/// Why nothing was written of an authority.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TrustError {
    /// Another process founded one.
    #[error("there is an authority already; stop the other CA that uses this data directory")]
    Founded,
    /// Members could not be verified with it.
    #[error(transparent)]
    Certificate(#[from] InvalidBundle),
    /// It is no key for JWT-SVIDs.
    #[error("the key for JWT-SVIDs cannot be used: {0}")]
    Key(#[from] InvalidJwk),
    /// Nothing it could stand beside.
    #[error("there is no authority yet; start the CA first")]
    NotFounded,
    /// It is not its turn.
    #[error(transparent)]
    Course(#[from] CourseError),
}
