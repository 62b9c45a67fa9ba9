//! A kubelet's stand-in: TLS, a token, and the real schema of `/pods`.

use super::*;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};

const POD: &str = "0f0a6e2c-6f9a-4a0c-9e0e-5f8f7b1d2c3a";
const TOKEN: &str = "kubelets-own";

fn id() -> String {
    "c0ffee00".repeat(8)
}

/// As a kubelet 1.31 answers, but for what nobody reads.
fn pods(ids: &[&str], node: &str) -> String {
    let statuses: Vec<_> = ids
        .iter()
        .map(|id| {
            serde_json::json!({
                "name": "billing", "ready": true, "restartCount": 0, "started": true,
                "state": {"running": {"startedAt": "2026-11-28T10:00:00Z"}}, "lastState": {},
                "image": "registry.example/billing:1.4", "imageID": "registry.example/billing@sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
                "containerID": format!("containerd://{id}")
            })
        })
        .collect();
    serde_json::json!({
        "kind": "PodList", "apiVersion": "v1", "metadata": {},
        "items": [
            {"metadata": {"name": "waiting", "namespace": "payments", "uid": "1b1b", "creationTimestamp": null},
             "spec": {"nodeName": node, "containers": [{"name": "a", "image": "b", "resources": {}}]},
             "status": {"phase": "Pending", "containerStatuses": [{"name": "a", "state": {"waiting": {}}, "image": "b", "imageID": "", "restartCount": 0}]}},
            {"metadata": {"name": "billing-0", "namespace": "payments", "uid": POD, "labels": {"app": "billing"}, "annotations": {"kubernetes.io/config.source": "api"}},
             "spec": {"nodeName": node, "serviceAccountName": "billing", "serviceAccount": "billing", "containers": [{"name": "billing", "image": "registry.example/billing:1.4"}]},
             "status": {"phase": "Running", "podIP": "10.0.0.7", "qosClass": "Burstable", "containerStatuses": statuses}}
        ]
    })
    .to_string()
}

struct StandIn {
    address: SocketAddr,
    authority: String,
    asked: Arc<AtomicUsize>,
}

/// Answers the n-th question by `answer`; without the token 401.
fn stand_in(answer: impl Fn(usize) -> String + Send + 'static) -> StandIn {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf: rcgen::Certificate = CertificateParams::new(vec!["worker-7".to_owned()])
        .unwrap()
        .signed_by(&key, &authority)
        .unwrap();
    let chain = vec![CertificateDer::from(leaf.der().to_vec())];
    let config =
        tls::web_server_config(chain, PrivateKeyDer::Pkcs8(key.serialize_der().into()), &[b"http/1.1"]).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let stand_in = StandIn {
        address: listener.local_addr().unwrap(),
        authority: pem::write_certificates(&[authority.as_ref().der().clone()]),
        asked: Arc::clone(&asked),
    };
    std::thread::spawn(move || {
        for tcp in listener.incoming() {
            let (Ok(mut tcp), Ok(mut tls)) = (tcp, rustls::ServerConnection::new(Arc::clone(&config))) else {
                continue;
            };
            let mut stream = rustls::Stream::new(&mut tls, &mut tcp);
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read == 1) {
                head.push(byte[0]);
            }
            let head = String::from_utf8_lossy(&head).to_lowercase();
            if head.is_empty() {
                continue;
            }
            let is_known =
                head.contains(&format!("authorization: bearer {TOKEN}\r\n")) && head.starts_with("get /pods ");
            let (status, body) = match is_known {
                true => ("200 OK", answer(asked.fetch_add(1, Ordering::SeqCst))),
                false => ("401 Unauthorized", "Unauthorized".to_owned()),
            };
            let _ = write!(
                stream,
                "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            let _ = stream.flush();
        }
    });
    stand_in
}

fn kubelet(stand_in: &StandIn, token: &str, name: &str) -> (tempfile::TempDir, Kubelet) {
    let dir = tempfile::tempdir().unwrap();
    let (ca, token_file) = (dir.path().join("ca.pem"), dir.path().join("token"));
    std::fs::write(&ca, &stand_in.authority).unwrap();
    std::fs::write(&token_file, format!("{token}\n")).unwrap();
    let settings = KubernetesSettings {
        kubelet: format!("https://{}", stand_in.address),
        ca,
        server_name: Some(name.to_owned()),
        token_file,
        node: "worker-7".to_owned(),
    };
    let kubelet = Kubelet::open(&settings, Path::new("agent.toml")).unwrap();
    (dir, kubelet)
}

async fn seen(kubelet: &Kubelet, container: &str, pod: &str) -> Attestation {
    let mut seen = Attestation::default();
    let place = Placement {
        container: Some(container.to_owned()),
        pod: Some(pod.to_owned()),
        ..Placement::default()
    };
    kubelet.attest(&Ok(place), &mut seen).await;
    seen
}

fn texts(seen: &Attestation) -> Vec<String> {
    seen.selectors.iter().map(ToString::to_string).collect()
}

#[tokio::test]
async fn a_container_is_what_the_kubelet_says_and_is_asked_for_once() {
    // At first the list lacks it: the process is faster than the kubelet.
    let stand_in = stand_in(|question| match question {
        0 => pods(&[], "worker-7"),
        _ => pods(&[&id()], "worker-7"),
    });
    let (_dir, kubelet) = kubelet(&stand_in, TOKEN, "worker-7");
    let found = seen(&kubelet, &id(), POD).await;
    assert_eq!(
        texts(&found),
        [
            "k8s:container-name:billing",
            "k8s:image:registry.example/billing:1.4",
            "k8s:image:registry.example/billing@sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            "k8s:ns:payments",
            "k8s:pod-name:billing-0",
            "k8s:sa:billing",
        ],
        "{:?}",
        found.unknown
    );
    for _ in 0..10 {
        assert_eq!(seen(&kubelet, &id(), POD).await, found);
    }
    assert_eq!(stand_in.asked.load(Ordering::SeqCst), 2);
    let other = seen(&kubelet, &id(), "1b1b").await;
    assert!(
        other.selectors.is_empty() && other.unknown[0].contains("in another pod"),
        "{other:?}"
    );
    let mut nothing = Attestation::default();
    kubelet.attest(&Ok(Placement::default()), &mut nothing).await;
    assert_eq!(nothing, Attestation::default());
}

#[tokio::test]
async fn what_the_kubelet_does_not_vouch_for_is_not_known() {
    let check = async |stand_in: StandIn, token: &str, name: &str, expected: &str| {
        let (_dir, kubelet) = kubelet(&stand_in, token, name);
        let found = seen(&kubelet, &id(), POD).await;
        assert!(found.selectors.is_empty(), "{found:?}");
        assert!(
            found.unknown[0].starts_with("k8s:ns (the kubelet ") && found.unknown[0].contains(expected),
            "{found:?}"
        );
        assert!(
            stand_in.asked.load(Ordering::SeqCst) <= 12,
            "it is not asked all the time"
        );
    };
    let all = || pods(&[&id()], "worker-7");
    let of_another = || pods(&[&id()], "worker-8");
    tokio::join!(
        check(
            stand_in(move |_| of_another()),
            TOKEN,
            "worker-7",
            "does not know this container of this node"
        ),
        check(
            stand_in(|_| pods(&[], "worker-7")),
            TOKEN,
            "worker-7",
            "does not know this container"
        ),
        check(stand_in(move |_| all()), "another", "worker-7", "it answered 401"),
        check(stand_in(|_| pods(&[&id()], "worker-7")), TOKEN, "worker-8", "no TLS"),
        check(
            stand_in(|_| "<html>".to_owned()),
            TOKEN,
            "worker-7",
            "it is no list of pods"
        ),
        check(
            stand_in(|_| " ".repeat(PODS_BYTES_MAX + 1)),
            TOKEN,
            "worker-7",
            "longer than"
        ),
    );
}
