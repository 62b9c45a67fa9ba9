//! Fetching one document over HTTPS from a server of somebody else's: a key set, a list of pods. TLS 1.3 by authorities that the
//! operator names; no redirects, no cookies, no connection that is kept; an end to how long it takes and how long the answer is.

use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::body::Body;
use hyper::header::{ACCEPT, AUTHORIZATION, HOST, HeaderValue, USER_AGENT};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// The longest address, in bytes.
const URL_BYTES_MAX: usize = 2048;

/// The port of `https`.
const PORT: u16 = 443;

/// The address of a document: `https://HOST[:PORT]/PATH`, without a user, and without a fragment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpsUrl {
    text: String,
    /// As it is dialled: an IPv6 address without its brackets.
    host: String,
    port: u16,
    authority: String,
    path: String,
}

/// A text that is no such address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "it is no address of a document: write `https://HOST/PATH`, without a user and a fragment, at most {URL_BYTES_MAX} characters"
)]
pub struct InvalidHttpsUrl;

/// What is fetched, from whom, and within which bounds.
#[derive(Debug, Clone)]
pub struct Fetch<'a> {
    /// Where.
    pub url: &'a HttpsUrl,
    /// By which authorities its server is known.
    pub tls: Arc<ClientConfig>,
    /// The name that the server's certificate has to have; the host of the address where there is none.
    pub server_name: Option<&'a str>,
    /// A token that is sent along.
    pub bearer: Option<&'a str>,
    /// How long all of it may take.
    pub patience: Duration,
    /// The longest answer, in bytes.
    pub bytes_max: usize,
}

/// Why there is no document.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchFailed {
    /// It took too long.
    #[error("no answer within {} s", .0.as_secs())]
    Late(Duration),
    /// The name is none, or the token cannot be sent.
    #[error("it cannot be asked: {0}")]
    Request(String),
    /// There is no connection.
    #[error("no connection: {0}")]
    Connect(#[source] io::Error),
    /// The server is not believed, or speaks something else.
    #[error("no TLS: {0}")]
    Tls(#[source] io::Error),
    /// It broke off.
    #[error("it broke off: {0}")]
    Broken(String),
    /// It answered something else. Where it would send us, we do not go.
    #[error("it answered {0}")]
    Status(StatusCode),
    /// More than is read.
    #[error("the answer is longer than {0} bytes")]
    TooLong(usize),
}

// === impl HttpsUrl ===

impl HttpsUrl {
    /// The whole text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The host, an IPv6 address without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }
}

impl FromStr for HttpsUrl {
    type Err = InvalidHttpsUrl;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > URL_BYTES_MAX || text.contains('#') {
            return Err(InvalidHttpsUrl);
        }
        let uri = Uri::try_from(text).map_err(|_| InvalidHttpsUrl)?;
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'));
        let (Some("https"), Some(authority)) = (uri.scheme_str(), authority) else {
            return Err(InvalidHttpsUrl);
        };
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let has_port = authority.as_str().len() > authority.host().len();
        let port = match (has_port, authority.port_u16()) {
            (false, _) => PORT,
            (true, Some(port @ 1..)) => port,
            (true, _) => return Err(InvalidHttpsUrl),
        };
        if host.is_empty() {
            return Err(InvalidHttpsUrl);
        }
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        Ok(Self {
            text: text.to_owned(),
            host: host.to_owned(),
            port,
            authority: authority.as_str().to_owned(),
            path: path.to_owned(),
        })
    }
}

impl fmt::Display for HttpsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

// === impl Fetch ===

impl Fetch<'_> {
    /// The document, if the server answers 200 and with no more than is taken.
    ///
    /// # Errors
    /// [`FetchFailed`], for the log: its words are about somebody else's server.
    pub async fn get(self) -> Result<Bytes, FetchFailed> {
        let patience = self.patience;
        let got = timeout(patience, self.get_in_time()).await;
        got.unwrap_or(Err(FetchFailed::Late(patience)))
    }

    async fn get_in_time(self) -> Result<Bytes, FetchFailed> {
        let url = self.url;
        let asked = |reason: &dyn fmt::Display| FetchFailed::Request(reason.to_string());
        let name = ServerName::try_from(self.server_name.unwrap_or(&url.host)).map_err(|e| asked(&e))?;
        let mut request = Request::get(&url.path)
            .header(HOST, &url.authority)
            .header(ACCEPT, "application/json")
            .header(USER_AGENT, concat!("hoplite/", env!("CARGO_PKG_VERSION")));
        if let Some(bearer) = self.bearer {
            let mut value =
                HeaderValue::try_from(format!("Bearer {bearer}")).map_err(|_| asked(&"its token is no token"))?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        let request = request.body(Empty::<Bytes>::new()).map_err(|e| asked(&e))?;
        let tcp = TcpStream::connect((url.host.as_str(), url.port))
            .await
            .map_err(FetchFailed::Connect)?;
        let stream = TlsConnector::from(self.tls)
            .connect(name.to_owned(), tcp)
            .await
            .map_err(FetchFailed::Tls)?;
        let broken = |error: hyper::Error| FetchFailed::Broken(error.to_string());
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        let asking = async move {
            let response = sender.send_request(request).await.map_err(broken)?;
            if response.status() != StatusCode::OK {
                return Err(FetchFailed::Status(response.status()));
            }
            if response.body().size_hint().lower() > self.bytes_max as u64 {
                return Err(FetchFailed::TooLong(self.bytes_max));
            }
            let body = Limited::new(response.into_body(), self.bytes_max).collect().await;
            let body = body.map_err(|error| match error.is::<LengthLimitError>() {
                true => FetchFailed::TooLong(self.bytes_max),
                false => FetchFailed::Broken(error.to_string()),
            })?;
            Ok(body.to_bytes())
        };
        tokio::pin!(asking);
        tokio::pin!(connection);
        // The connection lives as long as the question, and no task of it stays behind. A server that closes without a word, as many do, may have
        // said everything before; if it has not, the answer is cut off.
        tokio::select! {
            biased;
            answer = &mut asking => answer,
            _ = &mut connection => asking.await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let check = |text: &str, expected: Option<(&str, u16, &str)>| {
            let parsed = text.parse::<HttpsUrl>().ok();
            let found = parsed
                .as_ref()
                .map(|url| (url.host.as_str(), url.port, url.path.as_str()));
            assert_eq!(found, expected, "{text}");
        };
        check(
            "https://id.example.org/keys?x=1",
            Some(("id.example.org", 443, "/keys?x=1")),
        );
        check("https://id.example.org", Some(("id.example.org", 443, "/")));
        check(
            "https://127.0.0.1:6443/openid/v1/jwks",
            Some(("127.0.0.1", 6443, "/openid/v1/jwks")),
        );
        check("https://[::1]:6443/a", Some(("::1", 6443, "/a")));
        for bad in [
            "",
            "http://id.example.org/keys",
            "file:///etc/passwd",
            "https://",
            "https://me:pw@id.example.org/keys",
            "https://id.example.org/keys#a",
            "https://id.example.org:0/keys",
            "https://id.example.org:99999/keys",
            "https://id.example.org:/keys",
            "/keys",
            "id.example.org/keys",
            &format!("https://id.example.org/{}", "a".repeat(URL_BYTES_MAX)),
        ] {
            check(bad, None);
        }
    }
}
