//! Bundle endpoints over HTTPS: each clause that they can break, broken.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use http::{Request, Response};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::SanType;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::maker::{Authority, TokenKey, bundle};
use crate::{Endpoint, Limits, Outcome, Profile, Targets, judge};

const LIMITS: Limits = Limits {
    patience: Duration::from_secs(5),
    delay: Duration::from_secs(5),
    watch: Duration::ZERO,
};

/// An endpoint, and what was agreed about it.
struct Scene {
    bodies: Vec<Value>,
    raw: Option<Vec<u8>>,
    status: u16,
    kind: &'static str,
    location: Option<&'static str>,
    /// That the server wants to see a certificate.
    wants_certificate: bool,
    /// That it goes on with hellos of old versions.
    speaks_old: bool,
    /// That it speaks no TLS at all.
    plain: bool,
    leaf: (Vec<u8>, Vec<u8>),
    authority: Authority,
    agreed: Endpoint,
}

impl Scene {
    fn new(profile: Profile) -> Self {
        let authority = Authority::new("own.test", |_| ());
        let localhost = |params: &mut rcgen::CertificateParams| {
            params.subject_alt_names.push(SanType::IpAddress([127, 0, 0, 1].into()));
        };
        Self {
            bodies: vec![bundle(&[authority.jwk(), TokenKey::new().jwk()])],
            raw: None,
            status: 200,
            kind: "application/json",
            location: None,
            wants_certificate: false,
            speaks_old: false,
            plain: false,
            leaf: authority.leaf("/endpoint", localhost),
            agreed: Endpoint {
                url: "https://ADDRESS/bundle".to_owned(),
                profile,
                trust_domain: "own.test".to_owned(),
                spiffe_id: (profile == Profile::Spiffe).then(|| "spiffe://own.test/endpoint".to_owned()),
                authorities: Some(vec![authority.der.clone()]),
            },
            authority,
        }
    }

    async fn failed(mut self) -> Vec<String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        self.agreed.url = self.agreed.url.replace("ADDRESS", &address.to_string());
        let targets = Targets {
            endpoint: Some(self.agreed.clone()),
            ..Targets::default()
        };
        tokio::spawn(Arc::new(self).serve(listener, address));
        let verdicts = judge(&targets, &[], LIMITS, SystemTime::now).await.verdicts();
        let failed = verdicts.iter().filter(|verdict| verdict.outcome == Outcome::Fail);
        failed
            .map(|verdict| format!("{} {:?}", verdict.clause.name, verdict.details))
            .collect()
    }

    async fn serve(self: Arc<Self>, listener: TcpListener, address: SocketAddr) {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(self.authority.der.clone())).unwrap();
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .unwrap();
        let config = match self.wants_certificate {
            true => config.unwrap().with_client_cert_verifier(verifier),
            false => config.unwrap().with_no_client_auth(),
        };
        let (leaf, key) = self.leaf.clone();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key));
        let config = config.with_single_cert(vec![CertificateDer::from(leaf)], key).unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let asked = Arc::new(AtomicUsize::new(0));
        while let Ok((mut tcp, _)) = listener.accept().await {
            let (scene, acceptor, asked) = (Arc::clone(&self), acceptor.clone(), Arc::clone(&asked));
            tokio::spawn(async move {
                let mut hello = [0; 11];
                let _ = tcp.peek(&mut hello).await;
                if scene.plain || (scene.speaks_old && hello[10] < 3) {
                    let said: &[u8] = if scene.plain {
                        b"HTTP/1.1 200 OK\r\n\r\n"
                    } else {
                        &[0x16, 3, 2, 0, 1, 2]
                    };
                    let _ = tcp.write_all(said).await;
                    return;
                }
                let Ok(stream) = acceptor.accept(tcp).await else { return };
                let service = service_fn(move |request| {
                    let number = asked.fetch_add(1, Ordering::Relaxed);
                    let answer = scene.answer(&request, number, address);
                    async move { Ok::<_, Infallible>(answer) }
                });
                let serving = hyper::server::conn::http1::Builder::new();
                let _ = serving.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    }

    fn answer(&self, request: &Request<Incoming>, number: usize, address: SocketAddr) -> Response<Full<Bytes>> {
        let is_moved = request.uri().path() == "/moved";
        let mut answer = Response::builder().header("content-type", self.kind);
        if let Some(location) = self.location.filter(|_| !is_moved) {
            answer = answer.header("location", location.replace("ADDRESS", &address.to_string()));
        }
        let body = self
            .bodies
            .get(number)
            .or(self.bodies.last())
            .unwrap()
            .to_string()
            .into_bytes();
        let status = if is_moved { 200 } else { self.status };
        answer
            .status(status)
            .body(Full::from(self.raw.clone().unwrap_or(body)))
            .unwrap()
    }
}

/// A clause, the profile under which it is broken, and how.
type Fault = (&'static str, Profile, fn(&mut Scene));

const FAULTS: &[Fault] = &[
    ("F-1a", Profile::Spiffe, |scene| scene.plain = true),
    ("F-1b", Profile::Spiffe, |scene| scene.speaks_old = true),
    ("F-2", Profile::Spiffe, |scene| {
        scene.agreed.url = "http://ADDRESS/bundle".to_owned()
    }),
    ("F-2", Profile::Web, |scene| {
        scene.agreed.url = "https://user@ADDRESS/bundle".to_owned()
    }),
    ("F-3a", Profile::Spiffe, |scene| scene.status = 404),
    ("F-3a", Profile::Spiffe, |scene| {
        scene.raw = Some(vec![b'"', 0xff, b'"'])
    }),
    ("F-3b", Profile::Spiffe, |scene| scene.kind = "text/plain"),
    ("F-3c", Profile::Spiffe, |scene| scene.wants_certificate = true),
    ("F-3c", Profile::Web, |scene| scene.status = 401),
    ("F-4a", Profile::Spiffe, |scene| {
        scene.agreed.spiffe_id = Some("spiffe://own.test/other".to_owned())
    }),
    ("F-4a", Profile::Spiffe, |scene| {
        scene.agreed.authorities = Some(vec![Authority::new("own.test", |_| ()).der]);
    }),
    ("F-4a", Profile::Spiffe, |scene| {
        scene.leaf = scene.authority.leaf("/endpoint", |params| {
            params.not_after = (SystemTime::now() - Duration::from_secs(5)).into();
        });
    }),
    ("F-4b", Profile::Web, |scene| {
        scene.agreed.authorities = Some(vec![Authority::new("web", |_| ()).der])
    }),
    ("F-4b", Profile::Web, |scene| {
        scene.leaf = scene.authority.leaf("/endpoint", |_| ())
    }),
    ("F-4c", Profile::Spiffe, |scene| {
        scene.bodies = vec![bundle(&[Authority::new("own.test", |_| ()).jwk()])];
    }),
    ("F-5a", Profile::Web, |scene| {
        (scene.status, scene.location) = (302, Some("http://ADDRESS/moved"))
    }),
    ("F-5a", Profile::Web, |scene| {
        (scene.status, scene.location) = (302, Some("https://u:p@ADDRESS/moved"))
    }),
    ("F-5a", Profile::Web, |scene| scene.status = 302),
    ("F-5a", Profile::Web, |scene| {
        (scene.status, scene.location) = (302, Some("/bundle"))
    }),
    ("F-5b", Profile::Web, |scene| {
        (scene.status, scene.location) = (301, Some("/moved"))
    }),
    ("B-2c", Profile::Spiffe, |scene| {
        let mut second = scene.bodies[0].clone();
        second["spiffe_sequence"] = json!(6);
        scene.bodies.push(second);
    }),
    ("B-2c", Profile::Spiffe, |scene| {
        scene.bodies.push(bundle(&[scene.authority.jwk()]))
    }),
    ("B-1a", Profile::Web, |scene| scene.bodies = vec![json!([])]),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn good_endpoints_keep_every_clause() {
    for profile in [Profile::Spiffe, Profile::Web] {
        assert_eq!(Scene::new(profile).failed().await, Vec::<String>::new(), "{profile:?}");
        let mut moved = Scene::new(profile);
        (moved.status, moved.location) = (307, Some("https://ADDRESS/moved"));
        assert_eq!(moved.failed().await, Vec::<String>::new(), "{profile:?}, redirected");
    }
    let mut newer = Scene::new(Profile::Spiffe);
    let mut second = bundle(&[newer.authority.jwk()]);
    second["spiffe_sequence"] = json!(8);
    newer.bodies.push(second);
    assert_eq!(
        newer.failed().await,
        Vec::<String>::new(),
        "a newer bundle has a higher number"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_clause_that_an_endpoint_can_break_is_found_broken() {
    for (number, (name, profile, fault)) in FAULTS.iter().enumerate() {
        let mut scene = Scene::new(*profile);
        fault(&mut scene);
        let found = scene.failed().await;
        let is_found = found.iter().any(|said| said.starts_with(&format!("{name} ")));
        assert!(is_found, "fault {number} of {name} was not found: {found:?}");
    }
}

/// Each clause that this table names.
pub(super) fn covered() -> Vec<&'static str> {
    FAULTS.iter().map(|(name, ..)| *name).collect()
}
