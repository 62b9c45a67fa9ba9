//! One fetch of a foreign bundle: the name is looked up, an address that may be dialled is dialled, and what answers proves who it is
//! before anything is asked of it.
//!
//! No redirect is followed: an endpoint is where an operator said it is. What is read is bounded, in bytes and in time.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hoplite_identity::{BUNDLE_DOCUMENT_BYTES_MAX, Excerpt, PeerRejected, tls};
use http::header::{ACCEPT, CONTENT_TYPE, HOST, LOCATION, USER_AGENT};
use http::{Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, ClientConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::federation::egress::{self, BundleUrl, Network};

/// All of it together: looking up, connecting, and reading to the end.
const FETCH_MAX: Duration = Duration::from_secs(10);

/// Each address that a name means is tried for so long.
const CONNECT_MAX: Duration = Duration::from_secs(3);

/// Of one name, so many addresses are looked at.
const ADDRESSES_MAX: usize = 8;

/// The head of an answer.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// The name in the TLS hello where it means nothing.
const PLACEHOLDER_NAME: &str = "hoplite.invalid";

/// Why nothing was fetched. The text is for operators, and quotes no more of the answer than its status and type.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("`{host}` cannot be looked up: {source}")]
    Lookup { host: String, source: io::Error },
    #[error("`{0}` means no address")]
    NoAddress(String),
    #[error(
        "`{host}` means {address}, which is {why}: it is not dialled, so that nobody reaches through this CA what is not in the open; if the \
         endpoint is really there, name its range with `--allow-network`"
    )]
    Forbidden {
        host: String,
        address: IpAddr,
        why: &'static str,
    },
    #[error("cannot connect to {address}: {reason}")]
    Connect { address: SocketAddr, reason: String },
    #[error("whoever answers at {address} is not the endpoint: {reason}")]
    Peer { address: SocketAddr, reason: String },
    #[error("the endpoint does not speak HTTP as it should: {0}")]
    Http(#[from] hyper::Error),
    #[error("the endpoint redirects to `{0}`, which is not followed: give the bundle's own address")]
    Redirect(Excerpt),
    #[error("the endpoint answered {0}")]
    Status(StatusCode),
    #[error("the endpoint answered with `{0}` and not with JSON: is it the bundle's address?")]
    ContentType(Excerpt),
    #[error("the answer is longer than {BUNDLE_DOCUMENT_BYTES_MAX} bytes")]
    TooLong,
    #[error("the answer broke off: {0}")]
    BrokeOff(String),
    #[error("the endpoint took longer than {} seconds", FETCH_MAX.as_secs())]
    Timeout,
}

/// Where to go and whom to expect.
pub(crate) struct Target {
    pub(crate) url: BundleUrl,
    pub(crate) allowed: Vec<Network>,
    /// Verifies who answers: by name, or by SPIFFE ID.
    pub(crate) tls: Arc<ClientConfig>,
    /// Whether the name counts in the handshake.
    pub(crate) by_name: bool,
}

// === impl Target ===

impl Target {
    /// The bytes of the document.
    pub(crate) async fn fetch(&self) -> Result<Bytes, FetchError> {
        let fetched = tokio::time::timeout(FETCH_MAX, self.exchange()).await;
        fetched.unwrap_or(Err(FetchError::Timeout))
    }

    async fn exchange(&self) -> Result<Bytes, FetchError> {
        let addresses = self.addresses().await?;
        let (stream, address) = connect(&addresses).await?;
        let peer = |reason: String| FetchError::Peer { address, reason };
        let name = match self.by_name {
            true => ServerName::try_from(self.url.host().to_owned()),
            false => ServerName::try_from(PLACEHOLDER_NAME.to_owned()),
        };
        let name = name.map_err(|error| peer(error.to_string()))?;
        let connecting = TlsConnector::from(Arc::clone(&self.tls)).connect(name, stream);
        let stream = connecting.await.map_err(|error| peer(reason(&error)))?;
        ask(stream, self.request()).await
    }

    fn request(&self) -> Request<Empty<Bytes>> {
        let mut request = Request::new(Empty::new());
        *request.version_mut() = Version::HTTP_11;
        // An address was checked letter by letter when it was taken; one that is none here asks for the root.
        *request.uri_mut() = self.url.path().parse().unwrap_or_default();
        let headers = request.headers_mut();
        if let Ok(host) = self.url.authority().parse() {
            headers.insert(HOST, host);
        }
        headers.insert(ACCEPT, http::HeaderValue::from_static("application/json"));
        headers.insert(USER_AGENT, http::HeaderValue::from_static("hoplite"));
        request
    }

    /// What the name means, if all that is dialled of it may be.
    async fn addresses(&self) -> Result<Vec<SocketAddr>, FetchError> {
        let (host, port) = (self.url.host(), self.url.port());
        let found = tokio::net::lookup_host((host, port)).await;
        let found = found.map_err(|source| FetchError::Lookup {
            host: host.to_owned(),
            source,
        })?;
        let (mut dialled, mut forbidden) = (Vec::new(), None);
        for address in found.take(ADDRESSES_MAX) {
            match egress::refused(address.ip(), &self.allowed) {
                None => dialled.push(address),
                Some(why) => forbidden = forbidden.or(Some((address.ip(), why))),
            }
        }
        match (dialled.is_empty(), forbidden) {
            (false, _) => Ok(dialled),
            (true, Some((address, why))) => Err(FetchError::Forbidden {
                host: host.to_owned(),
                address,
                why,
            }),
            (true, None) => Err(FetchError::NoAddress(host.to_owned())),
        }
    }
}

/// To the first of these that answers: the addresses themselves, so that nothing is looked up a second time.
async fn connect(addresses: &[SocketAddr]) -> Result<(TcpStream, SocketAddr), FetchError> {
    let mut failed = None;
    for &address in addresses {
        let reason = match tokio::time::timeout(CONNECT_MAX, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok((stream, address)),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer in time".to_owned(),
        };
        failed = failed.or(Some(FetchError::Connect { address, reason }));
    }
    Err(failed.unwrap_or(FetchError::NoAddress(String::new())))
}

/// Asks on a connection, and reads the answer to its end.
async fn ask(stream: impl AsyncRead + AsyncWrite + Unpin, request: Request<Empty<Bytes>>) -> Result<Bytes, FetchError> {
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(HEAD_BYTES_MAX)
        .handshake(TokioIo::new(stream))
        .await?;
    let mut connection = pin!(connection);
    let mut exchange = pin!(async {
        let answer = sender.send_request(request).await?;
        read(answer).await
    });
    // It ends with the exchange, or with its time. An endpoint that has closed, even without a word, may have said everything before; if it
    // has not, the answer is cut off.
    tokio::select! {
        biased;
        answer = &mut exchange => answer,
        _ = &mut connection => exchange.await,
    }
}

async fn read(answer: Response<Incoming>) -> Result<Bytes, FetchError> {
    let status = answer.status();
    let text = |name| {
        let value = answer.headers().get(name).map(http::HeaderValue::as_bytes);
        value.map(|value| String::from_utf8_lossy(value).into_owned())
    };
    if status.is_redirection() {
        return Err(FetchError::Redirect(Excerpt::of(&text(LOCATION).unwrap_or_default())));
    }
    if status != StatusCode::OK {
        return Err(FetchError::Status(status));
    }
    // F-3: SHOULD; so none is no fault, and another one is.
    if let Some(kind) = text(CONTENT_TYPE).filter(|kind| !is_json(kind)) {
        return Err(FetchError::ContentType(Excerpt::of(&kind)));
    }
    let body = Limited::new(answer.into_body(), BUNDLE_DOCUMENT_BYTES_MAX);
    let collected = body
        .collect()
        .await
        .map_err(|error| match error.is::<LengthLimitError>() {
            true => FetchError::TooLong,
            false => FetchError::BrokeOff(error.to_string()),
        })?;
    Ok(collected.to_bytes())
}

fn is_json(kind: &str) -> bool {
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    kind == "application/json" || (kind.starts_with("application/") && kind.ends_with("+json"))
}

/// Why a handshake failed, in the words of whoever refused.
fn reason(error: &io::Error) -> String {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner.and_then(tls::rejection) {
        Some(PeerRejected::UnexpectedPeer { expected, found }) => {
            format!("it is `{found}`, and `{expected}` is expected")
        }
        Some(rejected) => rejected.to_string(),
        None => match inner {
            Some(
                rustls::Error::AlertReceived(AlertDescription::ProtocolVersion) | rustls::Error::PeerIncompatible(_),
            ) => {
                format!("it does not speak TLS 1.3 as it is spoken here ({error})")
            }
            _ => error.to_string(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// What comes of an endpoint that answers this and closes.
    async fn answered(answer: String) -> Result<Bytes, FetchError> {
        let (own, mut theirs) = tokio::io::duplex(1 << 20);
        tokio::spawn(async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(theirs.read_u8().await.unwrap());
            }
            theirs.write_all(answer.as_bytes()).await.unwrap();
        });
        ask(own, Request::new(Empty::new())).await
    }

    #[tokio::test]
    async fn only_a_whole_document_is_taken_and_only_from_here() {
        let ok = |head: &str, body: &str| format!("HTTP/1.1 200 OK\r\n{head}\r\n{body}");
        let taken = |length: usize| {
            ok(
                &format!("content-length: {length}\r\ncontent-type: application/json\r\n"),
                "{}",
            )
        };
        assert_eq!(answered(taken(2)).await.unwrap(), "{}");
        assert!(matches!(answered(taken(3)).await, Err(FetchError::BrokeOff(_))));
        let elsewhere = "HTTP/1.1 302 Found\r\nlocation: https://169.254.169.254/keys\r\ncontent-length: 0\r\n\r\n";
        match answered(elsewhere.to_owned()).await {
            Err(FetchError::Redirect(to)) => assert_eq!(to.to_string(), "https://169.254.169.254/keys"),
            other => panic!("{other:?}"),
        }
        let gone = answered("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_owned());
        assert!(matches!(gone.await, Err(FetchError::Status(StatusCode::NOT_FOUND))));
        let page = answered(ok("content-type: text/html\r\ncontent-length: 2\r\n", "{}"));
        assert!(matches!(page.await, Err(FetchError::ContentType(_))));
        let long = BUNDLE_DOCUMENT_BYTES_MAX + 1;
        let long = answered(ok(&format!("content-length: {long}\r\n"), &" ".repeat(long)));
        assert!(matches!(long.await, Err(FetchError::TooLong)));
    }

    #[test]
    fn content_types() {
        let check = |kind: &str, expected: bool| assert_eq!(is_json(kind), expected, "{kind}");
        check("application/json", true);
        check("Application/JSON; charset=utf-8", true);
        check("application/jwk-set+json", true);
        check("text/html", false);
        check("text/json+json", false);
        check("application/jsonp", false);
        check("", false);
    }
}
