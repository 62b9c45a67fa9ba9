//! The running program as others are told of it: version, digest of the binary, and the system beneath.

use std::fs::File;
use std::io::Read;
use std::sync::OnceLock;

use ring::digest::{Context, SHA256};

/// One program on one machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Of all crates of the workspace.
    pub version: &'static str,
    /// SHA-256 of `/proc/self/exe`: also of a file that was replaced since. None where it cannot be read.
    pub sha256: Option<[u8; 32]>,
    /// `x86_64-linux`.
    pub target: String,
    /// `Linux 6.12.41`.
    pub kernel: String,
    /// As the distribution names itself; empty where it does not.
    pub os: String,
}

// === impl Program ===

impl Program {
    /// This one. The first call reads the whole binary: make it where that holds up nobody.
    pub fn this() -> &'static Self {
        static THIS: OnceLock<Program> = OnceLock::new();
        THIS.get_or_init(|| {
            let read = |file: &str| std::fs::read_to_string(file).unwrap_or_default().trim().to_owned();
            Self {
                version: env!("CARGO_PKG_VERSION"),
                sha256: digest().ok(),
                target: format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
                kernel: format!(
                    "{} {}",
                    read("/proc/sys/kernel/ostype"),
                    read("/proc/sys/kernel/osrelease")
                ),
                os: distribution(&read("/etc/os-release")),
            }
        })
    }
}

fn digest() -> std::io::Result<[u8; 32]> {
    let mut binary = File::open("/proc/self/exe")?;
    let mut context = Context::new(&SHA256);
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = binary.read(&mut buffer)?;
        let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else {
            break;
        };
        context.update(bytes);
    }
    let mut bytes = [0; 32];
    bytes.copy_from_slice(context.finish().as_ref());
    Ok(bytes)
}

/// `PRETTY_NAME` of an `os-release` file.
fn distribution(text: &str) -> String {
    let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.unwrap_or_default().trim().trim_matches(['"', '\'']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_program_is_known() {
        let this = Program::this();
        let file = std::fs::read("/proc/self/exe").unwrap();
        let expected = ring::digest::digest(&SHA256, &file);
        assert_eq!(this.sha256.unwrap().as_slice(), expected.as_ref());
        assert!(
            this.kernel.starts_with("Linux ") && this.target.ends_with("-linux"),
            "{this:?}"
        );
        assert_eq!(
            distribution("ID=x\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n"),
            "Debian GNU/Linux 12"
        );
        assert_eq!(distribution("ID=x\n"), "");
    }
}
