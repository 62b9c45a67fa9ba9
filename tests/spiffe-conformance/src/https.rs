//! A bundle endpoint judged (F-1 to F-5, B-2): who it is, how it speaks, and what it serves.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{AlertDescription, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::bundle::{self, Bundle, Set};
use crate::clause::Id;
use crate::der::{self, Unreadable};
use crate::findings::{Findings, Outcome};
use crate::workload::chain;
use crate::x509::{self, Shown};

/// Nobody's bundle is larger.
const BODY_BYTES_MAX: usize = 16 << 20;

const REDIRECTS_MAX: usize = 3;

/// How an endpoint proves who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// By a certificate of the web.
    Web,
    /// By an X.509-SVID.
    Spiffe,
}

/// A bundle endpoint, and what was agreed about it.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// Where the bundle is.
    pub url: String,
    /// How it proves who it is.
    pub profile: Profile,
    /// Whose bundle it serves.
    pub trust_domain: String,
    /// Who it is, with https_spiffe.
    pub spiffe_id: Option<String>,
    /// DER certificates that vouch for it: of its trust domain with https_spiffe, of the web with https_web.
    pub authorities: Option<Vec<Vec<u8>>>,
}

/// What a GET gave.
struct Got {
    status: StatusCode,
    content_type: Option<String>,
    location: Option<String>,
    body: Vec<u8>,
    chain: Vec<CertificateDer<'static>>,
}

/// Why a GET gave nothing.
enum Failed {
    /// There is nobody, or nobody who speaks TLS 1.3.
    Unreachable(String),
    /// It wants to see a certificate.
    WantsCertificate(String),
    /// It does not speak HTTP.
    Broken(String),
}

/// Judges an endpoint.
pub(crate) async fn judge(findings: &mut Findings, endpoint: &Endpoint, patience: Duration, clock: fn() -> SystemTime) {
    let mut url = endpoint.url.clone();
    let mut is_redirected = false;
    for _ in 0..=REDIRECTS_MAX {
        let (uri, host, port) = match parts(&url) {
            Ok(parts) => parts,
            Err(why) => {
                findings.fail(if is_redirected { Id::F5a } else { Id::F2 }, format!("`{url}` {why}"));
                return;
            }
        };
        findings.pass(if is_redirected { Id::F5a } else { Id::F2 });
        let Some(got) = fetch(findings, &uri, &host, port, patience).await else {
            return;
        };
        judge_old_versions(findings, &host, port, patience).await;
        judge_server(findings, endpoint, &host, &got.chain, clock());
        if got.status.is_redirection() {
            is_redirected = true;
            let is_temporary = matches!(got.status.as_u16(), 302 | 303 | 307);
            findings.check(Id::F5b, is_temporary, || {
                format!("`{url}` redirects with {}", got.status)
            });
            match got.location {
                Some(location) => url = absolute(&uri, &location),
                None => {
                    findings.fail(
                        Id::F5a,
                        format!("`{url}` redirects with {}, and does not say where", got.status),
                    );
                    return;
                }
            }
            continue;
        }
        if !is_redirected {
            findings.not_applicable(Id::F5a, "the endpoint does not redirect");
            findings.not_applicable(Id::F5b, "the endpoint does not redirect");
        }
        judge_answer(findings, endpoint, &url, &got);
        if got.status == StatusCode::OK {
            let bundle = bundle::judge(
                findings,
                &format!("`{url}`"),
                &got.body,
                Set::Bundle,
                Some(&endpoint.trust_domain),
            );
            judge_self_serving(findings, endpoint, &got.chain, &bundle);
            if let Ok(again) = get(&uri, &host, port, patience).await {
                judge_sequence(findings, &bundle, &got.body, &again.body);
            }
        }
        return;
    }
    findings.fail(
        Id::F5a,
        format!("`{}` redirects more than {REDIRECTS_MAX} times", endpoint.url),
    );
}

/// The parts of a URL that obeys F-2.
fn parts(url: &str) -> Result<(Uri, String, u16), Unreadable> {
    let uri: Uri = url.parse().map_err(|error| Unreadable(format!("is no URL: {error}")))?;
    if uri.scheme_str() != Some("https") {
        return Err(Unreadable("does not have the scheme `https`".to_owned()));
    }
    let authority = uri
        .authority()
        .map(|authority| authority.as_str().to_owned())
        .unwrap_or_default();
    if authority.contains('@') {
        return Err(Unreadable("has a user".to_owned()));
    }
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    if host.is_empty() {
        return Err(Unreadable("has no host".to_owned()));
    }
    let port = uri.port_u16().unwrap_or(443);
    Ok((uri, host, port))
}

fn absolute(from: &Uri, location: &str) -> String {
    match from.authority() {
        Some(authority) if location.starts_with('/') && !location.starts_with("//") => {
            format!("https://{authority}{location}")
        }
        _ => location.to_owned(),
    }
}

async fn fetch(findings: &mut Findings, uri: &Uri, host: &str, port: u16, patience: Duration) -> Option<Got> {
    match get(uri, host, port, patience).await {
        Ok(got) => {
            findings.pass(Id::F1a);
            Some(got)
        }
        Err(Failed::Unreachable(why)) => {
            findings.fail(Id::F1a, format!("`{uri}` cannot be reached: {why}"));
            None
        }
        Err(Failed::WantsCertificate(why)) => {
            findings.pass(Id::F1a);
            findings.fail(Id::F3c, format!("`{uri}` demands a certificate: {why}"));
            None
        }
        Err(Failed::Broken(why)) => {
            findings.pass(Id::F1a);
            findings.fail(Id::F3a, format!("`{uri}`: {why}"));
            None
        }
    }
}

async fn get(uri: &Uri, host: &str, port: u16, patience: Duration) -> Result<Got, Failed> {
    let got = timeout(patience, exchange(uri, host, port));
    got.await.unwrap_or_else(|_| {
        Err(Failed::Unreachable(format!(
            "no answer within {} s",
            patience.as_secs()
        )))
    })
}

async fn exchange(uri: &Uri, host: &str, port: u16) -> Result<Got, Failed> {
    let unreachable = |error: &dyn std::error::Error| Failed::Unreachable(chain(error));
    let broken = |error: &dyn std::error::Error| match chain(error) {
        why if why.contains("CertificateRequired") => Failed::WantsCertificate(why),
        why => Failed::Broken(why),
    };
    let tcp = TcpStream::connect((host, port))
        .await
        .map_err(|error| unreachable(&error))?;
    let name = ServerName::try_from(host.to_owned()).map_err(|error| unreachable(&error))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| unreachable(&error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(JudgedLater(provider)))
        .with_no_client_auth();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await;
    let stream = stream.map_err(|error| match error.get_ref().and_then(|inner| inner.downcast_ref()) {
        Some(rustls::Error::AlertReceived(AlertDescription::CertificateRequired)) => {
            Failed::WantsCertificate(error.to_string())
        }
        _ => unreachable(&error),
    })?;
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let certificates = certificates.iter().map(|der| der.clone().into_owned()).collect();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| broken(&error))?;
    let driver = tokio::spawn(connection);
    let target = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let authority = uri.authority().map_or(host, http::uri::Authority::as_str);
    let request = Request::get(target)
        .header("host", authority)
        .header("accept", "application/json")
        .body(Empty::<bytes::Bytes>::new())
        .map_err(|error| broken(&error))?;
    let answer = match sender.send_request(request).await {
        Ok(answer) => answer,
        Err(error) => {
            // What ended the connection says more than that it has ended.
            let why = driver.await.ok().and_then(Result::err);
            return Err(why.map_or_else(|| broken(&error), |why| broken(&why)));
        }
    };
    let header = |name: &str| {
        let value = answer.headers().get(name)?.to_str().ok()?;
        Some(value.to_owned())
    };
    let (content_type, location, status) = (header("content-type"), header("location"), answer.status());
    let body = Limited::new(answer.into_body(), BODY_BYTES_MAX).collect().await;
    let body = body
        .map_err(|error| Failed::Broken(chain(error.as_ref())))?
        .to_bytes()
        .to_vec();
    Ok(Got {
        status,
        content_type,
        location,
        body,
        chain: certificates,
    })
}

/// F-3.
fn judge_answer(findings: &mut Findings, endpoint: &Endpoint, url: &str, got: &Got) {
    let wants = matches!(got.status.as_u16(), 401 | 403 | 407);
    findings.check(Id::F3c, !wants, || format!("`{url}` answers {}", got.status));
    findings.check(Id::F3a, got.status == StatusCode::OK, || {
        format!("`{url}` answers {}", got.status)
    });
    if got.status != StatusCode::OK {
        return;
    }
    findings.check(Id::F3a, str::from_utf8(&got.body).is_ok(), || {
        format!("the bundle of `{}` is not UTF-8", endpoint.trust_domain)
    });
    let kind = got.content_type.as_deref().unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or_default().trim();
    findings.check(Id::F3b, essence.eq_ignore_ascii_case("application/json"), || {
        format!("the content type is `{kind}`")
    });
}

/// F-1: hellos of old versions.
async fn judge_old_versions(findings: &mut Findings, host: &str, port: u16, patience: Duration) {
    for (name, minor) in [("1.0", 1), ("1.1", 2)] {
        let said = async {
            let mut tcp = TcpStream::connect((host, port)).await?;
            tcp.write_all(&hello(minor)).await?;
            let mut head = [0; 6];
            let count = tcp.read(&mut head).await?;
            std::io::Result::Ok(head.get(..count).unwrap_or_default().to_vec())
        };
        match timeout(patience, said).await {
            // A handshake record: the server goes on.
            Ok(Ok(said)) if said.first() == Some(&0x16) => findings.fail(Id::F1b, format!("it speaks TLS {name}")),
            Ok(_) => findings.pass(Id::F1b),
            Err(_) => findings.skip(
                Id::F1b,
                format!("a hello of TLS {name} is neither answered nor refused"),
            ),
        }
    }
}

/// A ClientHello of TLS 1.`minor - 1`, with the suites of that time.
fn hello(minor: u8) -> Vec<u8> {
    let suites = [0xc0, 0x13, 0xc0, 0x14, 0xc0, 0x09, 0xc0, 0x0a, 0x00, 0x2f, 0x00, 0x35];
    // supported_groups P-256 and P-384, ec_point_formats uncompressed.
    let extensions = [0, 10, 0, 6, 0, 4, 0, 23, 0, 24, 0, 11, 0, 2, 1, 0];
    let mut body = vec![3, minor];
    body.extend([0x5a; 32]);
    body.extend([0, 0, suites.len() as u8]);
    body.extend(suites);
    body.extend([1, 0, 0, extensions.len() as u8]);
    body.extend(extensions);
    let mut handshake = vec![1, 0, 0, body.len() as u8];
    handshake.extend(body);
    let mut record = vec![0x16, 3, 1, 0, handshake.len() as u8];
    record.extend(handshake);
    record
}

/// F-4a and F-4b.
fn judge_server(
    findings: &mut Findings,
    endpoint: &Endpoint,
    host: &str,
    shown: &[CertificateDer<'static>],
    now: SystemTime,
) {
    match endpoint.profile {
        Profile::Web => {
            findings.not_applicable(Id::F4a, "the profile is https_web");
            findings.not_applicable(Id::F4c, "the profile is https_web");
            let Some(roots) = &endpoint.authorities else {
                findings.skip(
                    Id::F4b,
                    "the roots of the web are not at hand: name a file with `--web-roots`",
                );
                return;
            };
            match is_of_the_web(host, shown, roots, now) {
                Ok(()) => findings.pass(Id::F4b),
                Err(why) => findings.fail(Id::F4b, why),
            }
        }
        Profile::Spiffe => {
            findings.not_applicable(Id::F4b, "the profile is https_spiffe");
            let chain: Result<Vec<_>, _> = shown.iter().map(|der| der::certificate(der)).collect();
            let authorities = endpoint.authorities.as_ref();
            let authorities: Option<Result<Vec<_>, _>> =
                authorities.map(|all| all.iter().map(|der| der::certificate(der)).collect());
            let (chain, authorities) = match (chain, authorities.transpose()) {
                (Ok(chain), Ok(authorities)) => (chain, authorities),
                (Err(why), _) | (_, Err(why)) => {
                    findings.fail(Id::F4a, format!("the certificate of the endpoint: {why}"));
                    return;
                }
            };
            let is_known = authorities.is_some();
            let mut inside = Findings::only(&[]);
            let what = "the certificate of the endpoint";
            let shown = Shown {
                what,
                chain,
                authorities,
                foreign: Vec::new(),
            };
            let id = x509::judge(&mut inside, &shown, now);
            let verdicts = inside.verdicts();
            let broken = verdicts
                .iter()
                .filter(|verdict| verdict.clause.matches("X-9") && verdict.outcome == Outcome::Fail);
            for verdict in broken {
                findings.fail(Id::F4a, verdict.details.join("; "));
            }
            findings.take(inside, &[Id::X9c, Id::X8]);
            match &endpoint.spiffe_id {
                Some(agreed) if id.as_ref() != Some(agreed) => {
                    findings.fail(Id::F4a, format!("the endpoint is {id:?}, and `{agreed}` was agreed"));
                }
                Some(_) if is_known => findings.pass(Id::F4a),
                Some(_) => {
                    findings.skip(
                        Id::F4a,
                        "nobody said who vouches for the endpoint: name a file with `--endpoint-bundle`",
                    );
                }
                None => findings.skip(Id::F4a, "nobody said who the endpoint is: name it with `--endpoint-id`"),
            }
        }
    }
}

fn is_of_the_web(
    host: &str,
    shown: &[CertificateDer<'static>],
    roots: &[Vec<u8>],
    now: SystemTime,
) -> Result<(), Unreadable> {
    let unreadable = |error: &dyn std::error::Error| Unreadable(chain(error));
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(roots.iter().map(|der| CertificateDer::from(der.clone())));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider).build();
    let verifier = verifier.map_err(|error| unreadable(&error))?;
    let name = ServerName::try_from(host.to_owned()).map_err(|error| unreadable(&error))?;
    let (leaf, between) = shown
        .split_first()
        .ok_or_else(|| Unreadable("it shows no certificate".to_owned()))?;
    let now = UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap_or_default());
    let verified = verifier.verify_server_cert(leaf, between, &name, &[], now);
    verified.map(drop).map_err(|error| unreadable(&error))
}

/// F-4c: whoever asks next has only this bundle.
fn judge_self_serving(
    findings: &mut Findings,
    endpoint: &Endpoint,
    shown: &[CertificateDer<'static>],
    bundle: &Bundle,
) {
    if endpoint.profile == Profile::Web {
        return;
    }
    let id = endpoint.spiffe_id.as_deref().and_then(crate::spiffe_id::parts);
    if id.is_none_or(|id| id.trust_domain != endpoint.trust_domain) {
        findings.not_applicable(Id::F4c, "the endpoint is of another trust domain than the bundle");
        return;
    }
    let read = |all: &[Vec<u8>]| {
        all.iter()
            .map(|der| der::certificate(der).ok())
            .collect::<Option<Vec<_>>>()
            .is_some()
    };
    let chain: Option<Vec<_>> = shown.iter().map(|der| der::certificate(der).ok()).collect();
    let authorities: Vec<_> = bundle
        .x509
        .iter()
        .filter_map(|der| der::certificate(der).ok())
        .collect();
    let is_vouched = read(&bundle.x509) && chain.is_some_and(|chain| crate::path::find(&chain, &authorities).is_ok());
    findings.check(Id::F4c, is_vouched, || {
        "the bundle that was fetched does not vouch for the endpoint: whoever asks again is refused".to_owned()
    });
}

/// B-2c.
fn judge_sequence(findings: &mut Findings, first: &Bundle, body: &[u8], again: &[u8]) {
    let mut nobody = Findings::default();
    let second = bundle::judge(&mut nobody, "the second answer", again, Set::Bundle, None);
    match (first.sequence, second.sequence) {
        (Some(before), Some(after)) => {
            let is_same = (&first.x509, &first.jwt) == (&second.x509, &second.jwt) || body == again;
            findings.check(Id::B2c, after >= before && (is_same || after != before), || {
                format!(
                    "the sequence is {before}, then {after}, and the keys are {}",
                    if is_same { "the same" } else { "others" }
                )
            });
        }
        _ => findings.not_applicable(Id::B2c, "the bundle has no sequence number"),
    }
}

/// Takes any certificate: what it is worth is judged afterwards, clause by clause.
#[derive(Debug)]
struct JudgedLater(Arc<CryptoProvider>);

impl ServerCertVerifier for JudgedLater {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
