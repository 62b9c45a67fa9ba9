//! SIGHUP: what changed in a file is taken over, or named; nothing ends, and a file that cannot be used changes nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::support::{Up, edit, until};

#[test]
fn files_are_read_again_without_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut up = Up::start(dir.path());
    let pids = up.processes();
    assert_eq!(up.get("/orders/42").status, 200);

    // A proxy calls another peer: one that is not who it expects, and then the right one again.
    let (right, wrong) = ("/shop/orders\"", "/shop/nobody\"");
    edit(&up, "edge", |text| text.replace(right, wrong));
    up.sees("taken=outbound.orders.expect");
    until("another peer is expected", || {
        (up.get("/orders/42").status == 502).then_some(())
    });
    edit(&up, "edge", |text| text.replace(wrong, right));
    until("the right one is expected again", || {
        (up.get("/orders/42").status == 200).then_some(())
    });

    // What cannot be taken over is named, each time until the next start; what can is taken beside it.
    let ports = [up.base + 11, up.base + 20].map(|port| format!("127.0.0.1:{port}\""));
    edit(&up, "edge", |text| {
        format!("workers = 2\n{}", text.replace(&ports[0], &ports[1]))
    });
    up.sees("taken=inbound.edge.listen  left=workers");
    edit(&up, "ca", |text| format!("x509_ttl = \"30m\"\n{text}"));
    until("the CA says so", || {
        let log = fs::read_to_string(up.dir.join("logs/ca.log")).unwrap();
        log.contains("\"taken\":\"x509_ttl\"").then_some(())
    });
    let socket = up.dir.join("run/agent.sock");
    edit(&up, "agent", |text| {
        text.replace("0o600", "0o660").replace("/agent\"", "/other\"")
    });
    up.sees("taken=socket_mode  left=data_dir");
    assert_eq!(fs::metadata(socket).unwrap().permissions().mode() & 0o777, 0o660);
    edit(&up, "agent", |text| text.replace("/other\"", "/agent\""));

    // A file that cannot be used changes nothing.
    for name in ["ca", "agent", "edge"] {
        edit(&up, name, |text| format!("colour = \"blue\"\n{text}"));
    }
    until("all say so", || {
        (up.terminal().matches("so everything stays as it is").count() >= 3).then_some(())
    });
    assert!(up.terminal().contains("colour"), "{}", up.terminal());
    assert_eq!(up.get("/orders/42").status, 200);
    assert_eq!(up.processes(), pids, "nobody was started again");
    assert!(up.interrupt().success());
}
