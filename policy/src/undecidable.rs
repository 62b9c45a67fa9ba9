//! Why no policy can be asked about a request: then the decision is an error, never an allow.

use hoplite_identity::{InvalidSpiffeId, ServiceName, SpiffeId};
use std::error::Error;
use std::sync::Arc;

/// Why no policy can be asked. Cloning shares what is behind it.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Undecidable {
    /// There is no policy to ask; the reason is the snapshot's.
    #[error("{0}")]
    NoPolicy(String),
    /// Cedar does not take what it was given.
    #[error(transparent)]
    Cedar(Arc<dyn Error + Send + Sync>),
    /// The entities of the call do not go together.
    #[error("the entities could not be built: {0}")]
    Entities(#[source] Arc<dyn Error + Send + Sync>),
    /// Cedar took a value and does not say what it is.
    #[error("the value is not known")]
    UnknownValue,
    /// The caller cannot be one.
    #[error(transparent)]
    Caller(#[from] InvalidSpiffeId),
    /// Only the name of the call is known.
    #[error("what surrounds the call is not known")]
    NoContext,
    /// The route is another service's.
    #[error("the route `{route}` does not belong to the service `{service}`")]
    ForeignRoute {
        /// The route.
        route: String,
        /// The service that is called.
        service: ServiceName,
    },
    /// The schema of some rules does not have the word.
    #[error("the schema has no `{0}`")]
    NoWord(String),
    /// The schema does not have the action.
    #[error("the schema has no action `{0}`")]
    NoAction(&'static str),
    /// The caller is an agent, an operator or the CA itself.
    #[error("`{0}` is a name of Hoplite's own parts, which call no services")]
    Reserved(SpiffeId),
    /// A policy about a group left out would not be asked.
    #[error("the caller's SPIFFE ID has more than {0} path segments")]
    TooManyGroups(usize),
    /// To take a header of which nothing is known for absent could open a door that a forbid holds shut.
    #[error(
        "a policy on this looks at headers, and whoever asks did not say what `{0}` is; let it tell the request's headers"
    )]
    HeaderNotTold(String),
}

// === impl Undecidable ===

impl Undecidable {
    /// What Cedar says.
    pub(crate) fn cedar(error: impl Error + Send + Sync + 'static) -> Self {
        Self::Cedar(Arc::new(error))
    }
}
