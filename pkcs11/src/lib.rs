//! Keys in hardware: P-256 keys of a PKCS#11 token, which sign there and never leave it.

mod settings;
#[cfg(feature = "testing")]
pub mod testing;
#[cfg(not(target_env = "musl"))]
mod token;
#[cfg(target_env = "musl")]
#[path = "absent.rs"]
mod token;

pub use settings::Settings;
pub use token::{Token, TokenKey};

/// Why a token does not do what it is asked for. The PIN is in none of these.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// The module is no PKCS#11 module, or cannot be loaded.
    #[error(
        "the PKCS#11 module `{module}` cannot be used: {problem}; see that `keys.module` names the one of this machine's token"
    )]
    Module {
        /// Its file.
        module: String,
        /// What the system or the module says.
        problem: String,
    },
    /// The token is away, or does not let anybody in.
    #[error("the PKCS#11 token `{token}` cannot be used: {problem}")]
    Away {
        /// Its label.
        token: String,
        /// What the module says, and what to do.
        problem: String,
    },
    /// The PIN cannot be read.
    #[error("the PIN of the PKCS#11 token cannot be read: {0}")]
    Pin(String),
    /// This program cannot load modules.
    #[error(
        "this program is a static one, which cannot load a PKCS#11 module; run the one of the Debian package or of the image for glibc, or \
         write `kind = \"file\"`"
    )]
    Static,
}
