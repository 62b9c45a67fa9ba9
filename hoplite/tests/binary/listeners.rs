//! SIGHUP at a proxy: listeners come, change and go, and so do rules, policies and signers, and no call is harmed.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use serde_json::{Value, json};

use crate::support::{Answer, PATIENCE, Up, edit, hoplite, until};

const ANYBODY: &str = "@id(\"anybody\") permit (principal, action, resource);\n";

/// A service that answers `/wait` when it is let, and everything else at once, with its name.
struct Slow {
    port: u16,
    /// The heads of requests, as they come.
    asked: Receiver<String>,
    answer: Sender<()>,
}

/// A call under way.
struct Call(JoinHandle<std::io::Result<Answer>>);

impl Slow {
    fn start(name: &'static str) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let ((was_asked, asked), (answer, may_answer)) = (channel(), channel::<()>());
        let may_answer = std::sync::Arc::new(std::sync::Mutex::new(may_answer));
        thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let (was_asked, may_answer) = (was_asked.clone(), may_answer.clone());
                thread::spawn(move || {
                    let mut head = [0; 4096];
                    while let Ok(length @ 1..) = stream.read(&mut head) {
                        let head = String::from_utf8_lossy(head.get(..length).unwrap()).into_owned();
                        let waits = head.starts_with("GET /wait");
                        let _ = was_asked.send(head);
                        if waits && may_answer.lock().unwrap().recv().is_err() {
                            return;
                        }
                        let length = name.len();
                        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{name}");
                        if stream.write_all(answer.as_bytes()).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { port, asked, answer }
    }

    /// A call of `/wait` at a port, when it has reached the service.
    fn call(&self, port: u16) -> Call {
        let call = Call(thread::spawn(move || Up::get_at(port, "/wait")));
        while !self.asked.recv_timeout(PATIENCE).unwrap().starts_with("GET /wait") {}
        call
    }
}

impl Call {
    fn answer(self) -> Answer {
        self.0.join().unwrap().unwrap()
    }
}

fn inbound(port: u16, forward_to: u16) -> String {
    format!(
        "\n[[inbound]]\nlisten = \"127.0.0.1:{port}\"\nservice = \"slow\"\nprotocol = \"http\"\nforward_to = \"127.0.0.1:{forward_to}\"\n"
    )
}

fn outbound(port: u16, connect_to: u16) -> String {
    format!(
        "\n[[outbound]]\nname = \"slow\"\nlisten = \"127.0.0.1:{port}\"\nprotocol = \"http\"\nconnect_to = \"127.0.0.1:{connect_to}\"\n\
         expect = \"spiffe://demo.hoplite/shop/orders\"\n"
    )
}

fn is_refused(port: u16) -> Option<()> {
    let error = TcpStream::connect(("127.0.0.1", port)).err()?;
    (error.kind() == std::io::ErrorKind::ConnectionRefused).then_some(())
}

fn answers(port: u16, body: &str) {
    until(&format!("`{body}` answers at {port}"), || {
        Up::get_at(port, "/")
            .ok()
            .filter(|answer| answer.body == body)
            .map(drop)
    });
}

/// Asks once more on a connection that stays open.
fn ask_again(stream: &mut TcpStream) -> u16 {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
        .write_all(b"GET /orders/42 HTTP/1.1\r\nhost: orders\r\n\r\n")
        .unwrap();
    let mut text = String::new();
    let mut bytes = [0; 4096];
    // The body of a demo service ends in a brace and a newline, and comes soon after the head.
    while !text.trim_end().ends_with('}') {
        let length = stream.read(&mut bytes).unwrap();
        assert!(length > 0, "it was closed after {text:?}");
        text.push_str(&String::from_utf8_lossy(bytes.get(..length).unwrap()));
    }
    text.split(' ').nth(1).unwrap().parse().unwrap()
}

#[test]
fn listeners_come_change_and_go_and_no_call_is_harmed() {
    let dir = tempfile::tempdir().unwrap();
    let mut up = Up::start(dir.path());
    fs::write(up.dir.join("policies/anybody.cedar"), ANYBODY).unwrap();
    let (slow, other) = (Slow::start("slow"), Slow::start("other"));
    let [behind, here, there, elsewhere] = [4, 5, 6, 7].map(|offset| up.base + offset);
    let pids = up.processes();
    let original = fs::read_to_string(up.dir.join("config/edge.toml")).unwrap();
    let mut kept = TcpStream::connect(("127.0.0.1", up.base + 21)).unwrap();
    assert_eq!(ask_again(&mut kept), 200);

    // They come.
    edit(&up, "orders", |text| text + &inbound(behind, slow.port));
    up.sees("listener added");
    edit(&up, "edge", |text| text + &outbound(here, behind));
    answers(here, "slow");

    // One moves: who is there finishes there.
    let call = slow.call(here);
    edit(&up, "edge", |_| original.clone() + &outbound(there, behind));
    until("the address before is free", || is_refused(here));
    answers(there, "slow");
    slow.answer.send(()).unwrap();
    assert_eq!(call.answer().status, 200);

    // The service behind one moves: the next call goes there, and the one under way comes back from here.
    let call = slow.call(there);
    let to = |port: u16| format!("127.0.0.1:{port}\"");
    edit(&up, "orders", |text| text.replace(&to(slow.port), &to(other.port)));
    answers(there, "other");
    slow.answer.send(()).unwrap();
    assert_eq!(call.answer().body, "slow");
    edit(&up, "orders", |text| text.replace(&to(other.port), &to(slow.port)));
    answers(there, "slow");

    // What needs an address that is taken is refused as a whole: the peer that would be called is the one of before, too.
    let taken = TcpListener::bind(("127.0.0.1", elsewhere)).unwrap();
    let before = up.json(&["policy", "status"]);
    let wrong = |text: String| text.replace("/shop/orders\"", "/shop/nobody\"");
    edit(&up, "edge", |text| {
        wrong(text) + &outbound(elsewhere, behind).replace("\"slow\"", "\"more\"")
    });
    up.sees(&format!("`outbound.listen = 127.0.0.1:{elsewhere}`: cannot listen on"));
    assert!(up.terminal().contains("edge.toml"), "{}", up.terminal());
    assert_eq!(up.get("/orders/42").status, 200);
    let listeners = |status: &Value| json!([status[0]["inbound"], status[0]["outbound"]]);
    assert_eq!(listeners(&up.json(&["policy", "status"])), listeners(&before));
    drop(taken);

    // Another service on the same address: the socket stays, so that nobody who connects meanwhile is refused.
    let call = slow.call(there);
    edit(&up, "edge", |_| {
        original.clone() + &outbound(there, behind).replace("\"slow\"", "\"renamed\"")
    });
    for _ in 0..20 {
        assert_eq!(Up::get_at(there, "/").unwrap().body, "slow", "no moment without it");
    }
    up.sees("listener changed");
    slow.answer.send(()).unwrap();
    assert_eq!(call.answer().status, 200);

    // They go.
    let call = slow.call(there);
    edit(&up, "edge", |_| original.clone());
    until("it is gone", || is_refused(there));
    slow.answer.send(()).unwrap();
    assert_eq!(call.answer().status, 200);
    edit(&up, "orders", |text| text.replace(&inbound(behind, slow.port), ""));
    until("it is gone too", || is_refused(behind));

    assert_eq!(ask_again(&mut kept), 200, "a connection outlives changes of others");
    assert_eq!(up.processes(), pids, "nobody was started again");
    assert!(up.interrupt().success());
}

#[test]
fn a_call_that_outlives_its_listener_is_ended_after_the_grace() {
    let dir = tempfile::tempdir().unwrap();
    let mut up = Up::start(dir.path());
    fs::write(up.dir.join("policies/anybody.cedar"), ANYBODY).unwrap();
    let slow = Slow::start("slow");
    let [behind, here] = [4, 5].map(|offset| up.base + offset);
    edit(&up, "orders", |text| text + &inbound(behind, slow.port));
    edit(&up, "edge", |text| text + &outbound(here, behind));
    answers(here, "slow");
    let call = slow.call(here);
    edit(&up, "edge", |text| text.replace(&outbound(here, behind), ""));
    up.sees("were still open after 10 s and are closed");
    let ended = call.0.join().unwrap().unwrap();
    assert_eq!((ended.status, &*ended.body), (0, ""), "{ended:?}");
}

#[test]
fn rules_and_policies_follow_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut up = Up::start(dir.path());
    fs::write(up.dir.join("policies/anybody.cedar"), ANYBODY).unwrap();
    let slow = Slow::start("slow");
    let [behind, here] = [4, 5].map(|offset| up.base + offset);
    edit(&up, "orders", |text| text + &inbound(behind, slow.port));
    edit(&up, "edge", |text| text + &outbound(here, behind));
    answers(here, "slow");
    while slow.asked.try_recv().is_ok() {}

    // A header that is removed from now on.
    let secret = || {
        let mut stream = TcpStream::connect(("127.0.0.1", here)).unwrap();
        stream
            .write_all(b"GET / HTTP/1.1\r\nhost: slow\r\nx-secret: 1\r\nconnection: close\r\n\r\n")
            .unwrap();
        stream.read_to_string(&mut String::new()).unwrap();
        slow.asked.recv_timeout(PATIENCE).unwrap().contains("x-secret")
    };
    assert!(secret());
    edit(&up, "orders", |text| {
        format!("removed_headers = [\"x-secret\"]\n{text}")
    });
    up.sees("taken=removed_headers");
    assert!(!secret());

    // A limit, too.
    edit(&up, "orders", |text| text + "\n[limits]\nresponse_head = \"1s\"\n");
    up.sees("taken=limits.response_head");
    let late = slow.call(here).answer();
    assert_eq!(late.status, 504, "{late:?}");

    // Another directory of policies; one that cannot be used changes nothing.
    assert_eq!(up.get("/ledger/42").status, 403);
    let (policies, other) = (up.dir.join("policies"), up.dir.join("others"));
    let names = |text: String| text.replace(&format!("{}\"", policies.display()), &format!("{}\"", other.display()));
    edit(&up, "ledger", names);
    up.sees("`policy_dir = ");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("anybody.cedar"), "permit (").unwrap();
    edit(&up, "ledger", names);
    up.sees("anybody.cedar:1");
    assert_eq!(up.get("/ledger/42").status, 403, "those of before are in force");
    fs::write(other.join("anybody.cedar"), ANYBODY).unwrap();
    edit(&up, "ledger", names);
    up.sees("taken=policy_dir");
    assert_eq!(up.get("/ledger/42").status, 200);
    // It is followed, and the one of before is not.
    fs::write(
        policies.join("stop.cedar"),
        "@id(\"stop\") forbid (principal, action, resource);\n",
    )
    .unwrap();
    fs::write(
        other.join("anybody.cedar"),
        "@id(\"nobody\") forbid (principal, action, resource);\n",
    )
    .unwrap();
    until("the other directory is followed", || {
        (up.get("/ledger/42").status == 403).then_some(())
    });
    let status = up.json(&["policy", "status"]);
    let ledger = status
        .as_array()
        .unwrap()
        .iter()
        .find(|proxy| proxy["name"] == "ledger")
        .unwrap();
    assert_eq!(ledger["policy"]["policies"], 1, "{ledger:#}");
}

#[test]
fn whoever_signs_follows_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut up = Up::start(dir.path());
    let policies = up.dir.join("policies").display().to_string();
    assert_eq!(up.get("/ledger/42").status, 403);
    let published = up.tool(&["policy", "publish", &policies, "--wait"]);
    assert!(published.status.success(), "{published:?}");
    let signer = |name: &str| {
        let key = up.dir.join(format!("keys/{name}.key")).display().to_string();
        let shown = hoplite(&["policy", "key", "show", &key]);
        String::from_utf8(shown.stdout).unwrap().trim().to_owned()
    };
    let mallory = up.dir.join("keys/mallory.key").display().to_string();
    assert!(hoplite(&["policy", "key", "create", &mallory]).status.success());
    let [alice, bob, mallory] = ["alice", "bob", "mallory"].map(signer);
    let believes = |text: &str, signers: &[&String]| {
        let signers: Vec<String> = signers.iter().map(|signer| format!("\"{signer}\"")).collect();
        let mut lines: Vec<&str> = text
            .lines()
            .filter(|line| !line.starts_with("policy_signers"))
            .collect();
        let line = format!("policy_signers = [{}]", signers.join(", "));
        lines.insert(0, &line);
        lines.join("\n") + "\n"
    };

    // A proxy: its list is final. What others have signed is not believed any more, and comes again when they are.
    edit(&up, "orders", |text| believes(&text, &[&mallory]));
    up.sees("taken=policy_signers");
    until("what alice signed is not believed", || {
        (up.get("/orders/42").status != 200).then_some(())
    });
    edit(&up, "orders", |text| believes(&text, &[&alice, &bob]));
    until("it is again", || (up.get("/orders/42").status == 200).then_some(()));

    // An agent: its own first list.
    edit(&up, "agent", |text| believes(&text, &[&mallory]));
    up.sees("`policy_signers` names others than the signers that were followed here");
    up.sees("signed policy that was held is not believed any more");
    edit(&up, "agent", |text| believes(&text, &[&alice, &bob]));
    let agent = up.dir.join("logs/agent.log");
    until("the agent takes what they signed", || {
        let log = fs::read_to_string(&agent).unwrap();
        let (_, since) = log.rsplit_once("not believed any more")?;
        since.contains("policy is accepted").then_some(())
    });
    assert_eq!(up.get("/orders/42").status, 200);

    // A CA: until people have signed for others, its list can be another.
    edit(&up, "ca", |text| believes(&text, &[&alice, &mallory]));
    until("the CA takes them", || {
        let output = up.tool(&["policy", "signers", "list"]);
        String::from_utf8_lossy(&output.stdout)
            .contains("mallory")
            .then_some(())
    });
}
