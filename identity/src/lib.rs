//! Who someone is: SPIFFE IDs, SVIDs, trust bundles and the one peer verifier.
//!
//! Everything here is a value or a pure function of values: no socket, no file, no clock, no runtime.
//! `now` is an argument wherever time matters. The crate's security argument is one type:
//! [`VerifiedPeer`] can be made only by [`PeerVerifier`], so code that holds one holds the proof that
//! the peer showed a certificate chain its *own* trust domain's bundle vouches for.

#![cfg_attr(test, expect(clippy::disallowed_methods, reason = "a test's now is its own"))]

mod bundle;
mod bundle_document;
mod difference;
mod entry;
mod entry_sum;
mod federation;
mod fingerprint;
pub mod introduction;
mod invitation;
pub mod jwt;
mod node_group;
pub mod pem;
mod possession;
mod profile;
mod reserved;
mod selector;
mod service;
mod signing_request;
mod spiffe_id;
mod svid;
mod template;
pub mod tls;
mod verify;

#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use bundle::{BundleSet, InvalidBundle, TrustBundle};
pub use bundle_document::{BUNDLE_DOCUMENT_BYTES_MAX, BundleDocument};
pub use difference::Difference;
pub use entry::{Entry, EntryId, InvalidEntry, InvalidEntryId, JWT_TTL, RegisteredEntry, check_owner};
pub use entry_sum::EntrySum;
pub use federation::{
    FEDERATES_WITH_MAX, FederationSet, InvalidPathPrefix, InvalidSetName, PathPrefix, check_set_name,
};
pub use fingerprint::{Fingerprint, InvalidFingerprint, KeyDigest};
pub use introduction::NotIntroduced;
pub use invitation::{HostPort, InvalidHostPort, InvalidInvitation, Invitation, TOKEN_BYTES_MAX};
pub use node_group::{InvalidNodeGroup, NODE_SELECTORS_MAX, NodeGroup, Parent, node_name};
pub use possession::{CHALLENGE_BYTES, proof_of_possession};
pub use profile::{InvalidAuthority, InvalidSvid, Leaf};
pub use reserved::{InvalidNestedCa, InvalidNode, InvalidOperator, NODE_NAME_BYTES_MAX, RESERVED};
pub use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
pub use selector::{InvalidSelector, SELECTOR_VALUE_BYTES_MAX, Selector, SelectorKind};
pub use service::{InvalidServiceName, SERVICE_NAME_BYTES_MAX, ServiceName};
pub use signing_request::{InvalidSigningRequest, KeyKind, SIGNING_REQUEST_BYTES_MAX, SigningRequest};
pub use spiffe_id::{Excerpt, InvalidSpiffeId, SpiffeId, TrustDomain};
pub use svid::X509Svid;
pub use template::{EntryName, Expansion, InvalidEntryName, InvalidTemplate, NoName, SpiffeIdTemplate};
pub use verify::{Moment, PeerRejected, PeerRole, PeerVerifier, VerifiedPeer};
