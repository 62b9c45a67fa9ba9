//! A kernel without SO_PEERPIDFD, as Debian 12's: the mesh runs, knows callers by number, and says so. A filter on system
//! calls takes the option away, for the whole mesh.

use std::process::{Command, Stdio};

use crate::support::{PATIENCE, Up};

/// `getsockopt(…, SO_PEERPIDFD)` fails as on a kernel that does not know the option; all else is as it is.
const WITHOUT_PEERPIDFD: &str = r#"
import ctypes, os, platform, struct, sys
getsockopt = {"x86_64": 55, "aarch64": 209}[platform.machine()]
instructions = [
    (0x20, 0, 0, 0),            # the number of the call
    (0x15, 0, 3, getsockopt),
    (0x20, 0, 0, 32),           # its third argument, the lower half
    (0x15, 0, 1, 77),           # SO_PEERPIDFD
    (0x06, 0, 0, 0x00050000 | 92),  # ENOPROTOOPT
    (0x06, 0, 0, 0x7fff0000),   # allowed
]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *i) for i in instructions))
program = struct.pack("HxxxxxxP", len(instructions), ctypes.addressof(code))
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, program, 0, 0):
    sys.exit("no filter: %s" % os.strerror(ctypes.get_errno()))
os.execv(sys.argv[1], sys.argv[1:])
"#;

fn old_kernel() -> Command {
    let mut command = Command::new("python3");
    command.args(["-c", WITHOUT_PEERPIDFD, env!("CARGO_BIN_EXE_hoplite")]);
    command
}

#[test]
fn up_falls_back_and_says_so() {
    let possible = Command::new("python3")
        .args(["-c", WITHOUT_PEERPIDFD, "/bin/true"])
        .stdin(Stdio::null())
        .status();
    if !possible.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED up_falls_back_and_says_so: no filter on system calls can be had here");
        assert!(std::env::var_os("CI").is_none(), "CI must be able to");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut up = Up::start_by(old_kernel(), dir.path());
    assert_eq!((up.get("/orders/42").status, up.get("/ledger/42").status), (200, 403));
    up.sees("Callers are known by process number");
    let status = up.tool(&["agent", "status"]);
    assert!(
        String::from_utf8_lossy(&status.stdout).contains("peer_process = \"pid\""),
        "{status:?}"
    );
    assert_eq!(up.json(&["agent", "status"])["peer_process"], "pid");
    assert!(up.interrupt().success());

    // Whoever wants the kernel's word and nothing else is told what to do instead.
    let refused = Command::new("timeout")
        .arg(PATIENCE.as_secs().to_string())
        .args(["python3", "-c", WITHOUT_PEERPIDFD, env!("CARGO_BIN_EXE_hoplite")])
        .args(["up", "--peer-process", "kernel", "--dir"])
        .arg(dir.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(
        said.contains("peer_process = \"pid\"") && said.contains("threat-model"),
        "{said}"
    );

    // The doctor says it, too.
    let file = dir.path().join("config/agent.toml").display().to_string();
    let doctor = Command::new("python3")
        .args([
            "-c",
            WITHOUT_PEERPIDFD,
            env!("CARGO_BIN_EXE_hoplite"),
            "doctor",
            "--config",
            &file,
        ])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&doctor.stdout);
    assert!(said.contains("cannot say which process calls"), "{said}");
}

#[test]
fn a_kernel_that_can_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(dir.path());
    if hoplite_host::peer_process::PeerProcess::Kernel
        .ensure_possible()
        .is_err()
    {
        eprintln!("SKIPPED a_kernel_that_can_is_asked: this one cannot");
        return;
    }
    assert!(!up.terminal().contains("Callers are known by process number"));
    assert_eq!(up.json(&["agent", "status"])["peer_process"], "kernel");
}
