//! A token that somebody else has put into a file: a kubelet, a cloud's agent, a build service.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use hoplite_host::files;

use crate::proofs::{NoProof, Proof};

/// The longest token, in bytes.
const TOKEN_BYTES_MAX: u64 = 16 << 10;

/// The token in the file, as it is now. The kubelet's file is a link to one that others of the pod's group may read, so its mode
/// is not asked for: whoever reads it can show it, and it counts for one key.
pub(super) fn proof(path: &Path) -> Result<Proof, NoProof> {
    let unusable = |reason: String| NoProof::Unusable {
        file: path.to_owned(),
        reason,
    };
    let real = path
        .canonicalize()
        .map_err(|error| unusable(format!("cannot be read: {error}")))?;
    let file: File = files::open_regular(&real).map_err(|error| unusable(format!("cannot be read: {error}")))?;
    let mut text = String::new();
    let read = file.take(TOKEN_BYTES_MAX + 1).read_to_string(&mut text);
    read.map_err(|error| unusable(format!("cannot be read: {error}")))?;
    let token = text.trim();
    match token.len() {
        0 => Err(unusable("is empty".to_owned())),
        length if length as u64 > TOKEN_BYTES_MAX => Err(unusable("is longer than a token: 16384 bytes".to_owned())),
        _ => Ok(Proof {
            shown: vec![token.as_bytes().to_vec()],
            key: None,
        }),
    }
}
