//! What invitations say of this CA: where it is, and by which fingerprint it is known.

use std::net::SocketAddr;

use hoplite_identity::{Fingerprint, HostPort};
use tonic::Status;

use crate::issuer::Issuer;

/// What invitations say of this CA.
#[derive(Debug, Clone)]
pub(crate) struct Invites {
    /// Where agents connect, as the system says it.
    pub(crate) listen: SocketAddr,
    /// How they reach that, as the configuration says it.
    pub(crate) advertise: Option<HostPort>,
    /// By whose authority it is known.
    pub(crate) issuer: Issuer,
}

// === impl Invites ===

impl Invites {
    /// That of the authority that signs now, or of the root above it.
    pub(super) fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(self.issuer.signing().authority.root())
    }

    /// How nodes reach this CA: as the operator says, or else as the configuration does.
    pub(super) fn address(&self, wanted: &str) -> Result<HostPort, Status> {
        if !wanted.is_empty() {
            return HostPort::parse(wanted).map_err(|e| Status::invalid_argument(format!("`address`: {e}")));
        }
        match &self.advertise {
            Some(address) => Ok(address.clone()),
            None => HostPort::try_from(self.listen).map_err(|_| {
                Status::failed_precondition(format!(
                    "this CA listens on `{}`, every address of its machine, and does not know by which one other machines reach it: set \
                     `advertise = \"HOST:{}\"` in its configuration, or say it with `--address HOST:{}`; no token was made",
                    self.listen,
                    self.listen.port(),
                    self.listen.port()
                ))
            }),
        }
    }
}
