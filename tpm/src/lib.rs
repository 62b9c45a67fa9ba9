//! TPM 2.0: how a machine shows which one it is, and how that is believed.
//!
//! The chip of a machine has an *endorsement key* that never leaves it and that its maker has certified. That key only decrypts. So a
//! node shows it together with an *attestation key* that it has had made in the chip, and whoever verifies encrypts a secret to the
//! endorsement key which the chip gives away only where that very attestation key is ([`Credential::make`], TPM2_MakeCredential). The
//! node answers with a quote by the attestation key over the secret and its signing request ([`Answer::verify`]): one round trip says
//! that both keys are in one chip, and for which request.
//!
//! [`NodeTpm`] is the node's side, over anything that takes commands: `/dev/tpmrm0`, or the socket of a software TPM. The other side
//! ([`EndorsementKey`], [`AttestationKey`], [`Credential`], [`Answer`]) needs no TPM. Structures are those of the TCG's *TPM 2.0
//! Library*, part 2; default keys those of the *EK Credential Profile for TPM Family 2.0*.

mod bytes;
mod commands;
mod credential;
mod device;
mod node;
mod public;
mod quote;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;

pub use bytes::Malformed;
pub use commands::TpmError;
pub use credential::{Challenge, Credential, NoCredential, SECRET_BYTES};
pub use device::Device;
pub use node::{Endorsement, NodeTpm};
pub use public::{AttestationKey, EndorsementKey, InvalidKey};
pub use quote::{Answer, NotAnswered, bound};
