//! rustls configurations: TLS 1.3 only, post-quantum key exchange first, no resumption, no tickets, no early data.

use crate::{PeerRejected, PeerRole, PeerVerifier, SpiffeId, VerifiedPeer, X509Svid};
use rustls::{ClientConfig, CommonState, ServerConfig};
use std::sync::Arc;
use std::time::SystemTime;

/// Whether a server insists on a client certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth {
    Required,
    /// for the CA's join call only: a certificate, if shown, is verified all the same
    Optional,
}

/// For a server that shows `svid` and verifies clients.
pub fn server_config(
    svid: &X509Svid,
    verifier: Arc<PeerVerifier>,
    client_auth: ClientAuth,
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, rustls::Error> {
    todo!()
}
/// For a client that shows `svid` (none only while joining) and accepts exactly `expected`.
pub fn client_config(
    svid: Option<&X509Svid>,
    verifier: Arc<PeerVerifier>,
    expected: SpiffeId,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, rustls::Error> {
    todo!()
}
/// After the handshake: the evidence. Verifies again rather than trusting that the right verifier was installed.
pub fn verified_peer(
    verifier: &PeerVerifier,
    connection: &CommonState,
    role: PeerRole,
    now: SystemTime,
) -> Result<VerifiedPeer, PeerRejected> {
    todo!()
}
/// The verifier's reason inside a failed handshake's error, if that is what failed; a missing client certificate too.
pub fn rejection(error: &rustls::Error) -> Option<PeerRejected> {
    todo!()
}
