//! The keys of a token issuer: from a file, or from a web server, and fetched again when a token names one that is not known.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

use hoplite_host::clock;
use hoplite_host::files::{self, FileError};
use hoplite_identity::jwt::{Expected, ForeignKeys, ForeignRejected, ForeignToken, InvalidForeignKeys, verify_foreign};
use hoplite_identity::{pem, tls};
use hoplite_wire::https::{Fetch, FetchFailed, HttpsUrl};
use rustls::{ClientConfig, RootCertStore};
use tokio::sync::Mutex;

use crate::attestors::{BadSetting, NotProven};

/// Keys are asked for again at the first token after this: one that the issuer has withdrawn counts no longer than that.
const FRESH: Duration = Duration::from_secs(300);

/// A token with a key that is not known has keys asked for at most this often: anybody can send one.
const AGAIN: Duration = Duration::from_secs(10);

/// While the issuer does not answer, keys count for this long.
const STALE_MAX: Duration = Duration::from_secs(3600);

/// An issuer that takes longer is away.
const PATIENCE: Duration = Duration::from_secs(5);

/// Real key sets have some kilobytes.
const JWKS_BYTES_MAX: usize = 256 << 10;

/// The authorities of the web, where Debian's `ca-certificates` has them.
const WEB_AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Where keys come from, as the configuration says it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KeySettings<'a> {
    pub(crate) file: Option<&'a PathBuf>,
    pub(crate) url: Option<&'a str>,
    pub(crate) authorities: Option<&'a PathBuf>,
    pub(crate) token_file: Option<&'a PathBuf>,
}

/// The keys of one issuer.
pub(crate) struct IssuerKeys {
    source: Source,
    held: RwLock<Held>,
    /// One asks at a time; the others wait for its answer.
    asking: Mutex<()>,
}

enum Source {
    File(PathBuf),
    Web {
        url: HttpsUrl,
        tls: Arc<ClientConfig>,
        token_file: Option<PathBuf>,
    },
}

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
enum NoKeys {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Fetch(#[from] FetchFailed),
    #[error(transparent)]
    Keys(#[from] InvalidForeignKeys),
}

#[derive(Default, Clone)]
struct Held {
    keys: Option<Arc<ForeignKeys>>,
    /// When they came.
    at: Option<Instant>,
    /// When they were asked for last, with whatever result.
    asked: Option<Instant>,
}

// === impl IssuerKeys ===

impl IssuerKeys {
    /// Of what the configuration says. A file is read at once.
    pub(crate) fn open(settings: KeySettings<'_>) -> Result<Self, BadSetting> {
        let source = match (settings.file, settings.url) {
            (Some(file), None) => Source::File(file.clone()),
            (None, Some(url)) => {
                let parsed = url
                    .parse()
                    .map_err(|error: hoplite_wire::https::InvalidHttpsUrl| bad("jwks_url", url, &error.to_string()))?;
                Source::Web {
                    url: parsed,
                    tls: web(settings.authorities)?,
                    token_file: settings.token_file.cloned(),
                }
            }
            (Some(_), Some(url)) => return Err(bad("jwks_url", url, "write either `jwks_file` or `jwks_url`")),
            (None, None) => {
                return Err(bad(
                    "jwks_url",
                    "",
                    "write where the issuer's keys are: `jwks_url`, or `jwks_file`",
                ));
            }
        };
        let keys = Self {
            source,
            held: RwLock::default(),
            asking: Mutex::default(),
        };
        if let Source::File(file) = &keys.source {
            let read =
                read(file).map_err(|reason| bad("jwks_file", &file.display().to_string(), &reason.to_string()))?;
            keys.take(Ok(read), clock::moment());
        }
        Ok(keys)
    }

    /// Believes a token, perhaps by keys that are fetched for it.
    pub(crate) async fn verify(
        &self,
        token: &str,
        expected: Expected<'_>,
        now: SystemTime,
    ) -> Result<ForeignToken, NotProven> {
        let refused = |error: ForeignRejected| NotProven::Refused(format!("the token is not believed: {error}"));
        let keys = self.fresh(false).await?;
        match verify_foreign(token, expected, &keys, now) {
            Err(ForeignRejected::NoSuchKey) => {
                let keys = self.fresh(true).await?;
                verify_foreign(token, expected, &keys, now).map_err(refused)
            }
            verified => verified.map_err(refused),
        }
    }

    /// The keys, asked for again if the last time was long ago, or if one is looked for that is not among them.
    async fn fresh(&self, looks_for_another: bool) -> Result<Arc<ForeignKeys>, NotProven> {
        let is_due = |held: &Held| {
            let now = clock::moment();
            let since = |moment: Instant| now.saturating_duration_since(moment);
            let is_resting = held.asked.is_some_and(|asked| since(asked) < AGAIN);
            let is_old = held.at.is_none_or(|at| since(at) >= FRESH);
            !is_resting && (looks_for_another || is_old)
        };
        if is_due(&self.held()) {
            let _asking = self.asking.lock().await;
            // Whoever asked meanwhile asked for us, too.
            if is_due(&self.held()) {
                self.begin(clock::moment());
                let fetched = self.fetch().await;
                self.take(fetched, clock::moment());
            }
        }
        let held = self.held();
        let counts = |at: &Instant| clock::moment().saturating_duration_since(*at) < STALE_MAX;
        match (held.keys, held.at.filter(counts)) {
            (Some(keys), Some(_)) => Ok(keys),
            _ => Err(NotProven::Unavailable(
                "the keys of the token's issuer cannot be had".to_owned(),
            )),
        }
    }

    async fn fetch(&self) -> Result<ForeignKeys, NoKeys> {
        match &self.source {
            Source::File(file) => read(file),
            Source::Web { url, tls, token_file } => {
                let token = match token_file {
                    Some(file) => {
                        let bytes = files::read_private(file)?;
                        Some(zeroize::Zeroizing::new(
                            String::from_utf8_lossy(&bytes).trim().to_owned(),
                        ))
                    }
                    None => None,
                };
                let fetch = Fetch {
                    url,
                    tls: Arc::clone(tls),
                    server_name: None,
                    bearer: token.as_deref().map(String::as_str),
                    patience: PATIENCE,
                    bytes_max: JWKS_BYTES_MAX,
                };
                Ok(ForeignKeys::from_jwks(&fetch.get().await?)?)
            }
        }
    }

    fn begin(&self, now: Instant) {
        self.held.write().unwrap_or_else(PoisonError::into_inner).asked = Some(now);
    }

    fn take(&self, fetched: Result<ForeignKeys, NoKeys>, now: Instant) {
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        match fetched {
            Ok(keys) => {
                let is_news = held.keys.as_deref() != Some(&keys);
                if is_news {
                    let kids: Vec<&str> = keys.key_ids().collect();
                    tracing::info!(source = self.source.shown(), ?kids, "new keys of a token issuer");
                }
                held.keys = Some(Arc::new(keys));
                held.at = Some(now);
            }
            Err(reason) => tracing::error!(
                source = self.source.shown(),
                %reason,
                "the keys of a token issuer cannot be read; those of before count for an hour"
            ),
        }
    }

    fn held(&self) -> Held {
        self.held.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

// === impl Source ===

impl Source {
    fn shown(&self) -> String {
        match self {
            Self::File(file) => file.display().to_string(),
            Self::Web { url, .. } => url.to_string(),
        }
    }
}

fn bad(key: &'static str, value: &str, reason: &str) -> BadSetting {
    BadSetting {
        key,
        value: value.to_owned(),
        reason: reason.to_owned(),
    }
}

fn read(file: &std::path::Path) -> Result<ForeignKeys, NoKeys> {
    let text = files::read_trusted_text(file)?;
    Ok(ForeignKeys::from_jwks(text.as_bytes())?)
}

/// TLS by these authorities.
fn web(authorities: Option<&PathBuf>) -> Result<Arc<ClientConfig>, BadSetting> {
    let default = PathBuf::from(WEB_AUTHORITIES);
    let file = authorities.unwrap_or(&default);
    let unusable = |reason: &str| bad("jwks_ca", &file.display().to_string(), reason);
    let text = files::read_text(file).map_err(|error| unusable(&error.to_string()))?;
    let certificates = pem::certificates(&text).map_err(|error| unusable(&error.to_string()))?;
    let mut roots = RootCertStore::empty();
    let (taken, _) = roots.add_parsable_certificates(certificates);
    if taken == 0 {
        return Err(unusable("it holds no certificate of an authority"));
    }
    tls::web_client_config(roots, &[b"http/1.1"]).map_err(|error| unusable(&error.to_string()))
}
