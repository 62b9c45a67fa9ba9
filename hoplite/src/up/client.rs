//! The clients of `--check`: one with an identity, and those that must be refused.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use bytes::Bytes;
use hoplite_identity::{BundleSet, CertificateDer, PeerVerifier, PrivatePkcs8KeyDer, SpiffeId, X509Svid, tls};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// No call in the checks takes longer, or it has failed.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: String,
    pub(crate) decision: Option<String>,
}

/// One HTTP/2 request over mutual TLS on a connection of its own.
pub(crate) async fn call(
    address: SocketAddr,
    expected: &str,
    svid: Option<&X509Svid>,
    bundles: &BundleSet,
    (method, path, body): (Method, &str, &str),
) -> anyhow::Result<Answer> {
    let verifier = Arc::new(PeerVerifier::new(bundles.clone())?);
    let config = tls::client_config(svid, verifier, SpiffeId::parse(expected)?, &[b"h2"])?;
    let request = Request::builder()
        .method(method)
        .uri(format!("https://edge.invalid{path}"))
        .body(Full::new(Bytes::from(body.to_owned())))?;
    let call = async {
        let tcp = TcpStream::connect(address).await?;
        let stream = TlsConnector::from(config)
            .connect(ServerName::try_from("edge.invalid")?, tcp)
            .await?;
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let response = sender.send_request(request).await;
        let answer = match response {
            Ok(response) => {
                let (head, body) = response.into_parts();
                let body = body.collect().await?.to_bytes();
                let decision = head
                    .headers
                    .get("x-hoplite-decision")
                    .and_then(|value| value.to_str().ok());
                Ok(Answer {
                    status: head.status,
                    body: String::from_utf8_lossy(&body).into_owned(),
                    decision: decision.map(str::to_owned),
                })
            }
            // In TLS 1.3 a refused client certificate shows only now, as the connection's end.
            Err(error) => Err(anyhow::Error::from(error)),
        };
        connection.abort();
        answer
    };
    tokio::time::timeout(CALL_TIMEOUT, call).await.context("no answer")?
}

/// One plain HTTP request to a demo service, as curl would make it.
pub(crate) async fn call_plain(address: SocketAddr, path: &str) -> anyhow::Result<Answer> {
    let call = async {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(TcpStream::connect(address).await?)).await?;
        tokio::spawn(connection);
        let request = Request::builder()
            .uri(path)
            .header("host", address.to_string())
            .body(Full::<Bytes>::default())?;
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        let decision = head
            .headers
            .get("x-hoplite-decision")
            .and_then(|value| value.to_str().ok());
        Ok::<_, anyhow::Error>(Answer {
            status: head.status,
            body: String::from_utf8_lossy(&body).into_owned(),
            decision: decision.map(str::to_owned),
        })
    };
    tokio::time::timeout(CALL_TIMEOUT, call).await.context("no answer")?
}

/// Speaks plain HTTP to a listener that wants TLS. Fails, as it should, when no HTTP answer comes.
pub(crate) async fn speak_plaintext(address: SocketAddr) -> anyhow::Result<()> {
    let speak = async {
        let mut stream = TcpStream::connect(address).await?;
        stream
            .write_all(b"GET /orders/42 HTTP/1.1\r\nhost: edge\r\n\r\n")
            .await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        if answer.starts_with(b"HTTP/") {
            Ok(())
        } else {
            bail!("the connection was closed")
        }
    };
    tokio::time::timeout(CALL_TIMEOUT, speak).await.context("no answer")?
}

/// An SVID that looks right in every way, but from a CA that nobody here trusts.
pub(crate) fn foreign_svid(spiffe_id: &str, now: SystemTime) -> anyhow::Result<X509Svid> {
    let validity = |params: &mut CertificateParams| {
        params.not_before = (now - Duration::from_secs(60)).into();
        params.not_after = (now + Duration::from_secs(3600)).into();
    };
    let named = |name: &str| {
        let mut subject = DistinguishedName::new();
        subject.push(DnType::CommonName, name);
        subject
    };
    let mut authority = CertificateParams::default();
    authority.distinguished_name = named("a foreign authority");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    validity(&mut authority);
    let issuer = Issuer::new(authority, KeyPair::generate()?);

    let mut leaf = CertificateParams::default();
    leaf.distinguished_name = named("an impostor");
    leaf.subject_alt_names = vec![SanType::URI(spiffe_id.try_into()?)];
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    validity(&mut leaf);
    let key = KeyPair::generate()?;
    let certificate = leaf.signed_by(&key, &issuer)?;
    let chain = vec![CertificateDer::from(certificate.der().to_vec())];
    Ok(X509Svid::from_parts(
        chain,
        PrivatePkcs8KeyDer::from(key.serialize_der()),
    )?)
}
