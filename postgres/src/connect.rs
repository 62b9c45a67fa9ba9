//! One connection: to the first server of the list that takes writes, as the settings say.

use std::path::Path;
use std::time::Duration;

use hoplite_host::files;
use hoplite_store::StoreError;
use tokio::time::timeout;
use tokio_postgres::config::{SslMode, TargetSessionAttrs};
use tokio_postgres::{Client, Config, Connection, Socket};
use zeroize::Zeroizing;

use crate::failure::Failure;
use crate::settings::{Host, PORT, Settings, Tls, unbracketed};
use crate::tls::{Encrypted, Rustls};

/// One server that says nothing must not keep us from the next.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// A peer that acknowledges nothing for this long is gone.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(3);

/// An idle connection is asked this often whether anybody is there.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// What makes a session ours. A replica that is cut off within a transaction holds the row that all others wait for: the server
/// itself lets it go.
const SESSION: &str = "
    SET statement_timeout = '60s';
    SET lock_timeout = '6s';
    SET idle_in_transaction_session_timeout = '4s';
    SET default_transaction_isolation = 'read committed';
    SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off';
";

/// Makes connections.
pub(crate) struct Connector {
    pub(crate) settings: Settings,
    pub(crate) location: String,
    tls: Rustls,
}

/// What drives a connection; the notifications come out of it.
pub(crate) type Driver = Connection<Socket, Encrypted<Socket>>;

// === impl Connector ===

impl Connector {
    /// Reads the authorities.
    pub(crate) fn new(settings: Settings) -> Result<Self, StoreError> {
        let location = settings.location();
        let tls = match (&settings.tls, &settings.tls_ca) {
            (Tls::VerifyFull, Some(path)) => Rustls::open(path).map_err(|e| e.to_string()),
            _ => Rustls::none().map_err(|e| e.to_string()),
        };
        let tls = tls.map_err(|problem| StoreError::Io {
            location: location.clone(),
            action: "verify the server",
            problem,
            remedy: "name the PEM file of the server's authorities",
        })?;
        Ok(Self {
            settings,
            location,
            tls,
        })
    }

    /// Connects to the first that takes writes. The error is the first server's that was there, or the last one's.
    pub(crate) async fn connect(&self) -> Result<(Client, Driver), Failure> {
        let mut failed = None;
        for host in &self.settings.hosts {
            let connecting = self.connect_to(host);
            let failure = match timeout(CONNECT_TIMEOUT, connecting).await {
                Ok(Ok(connected)) => return Ok(connected),
                Ok(Err(failure)) => failure,
                Err(_) => Failure::away(format!("{host} does not answer")),
            };
            if !matches!(failed, Some(Failure::Refused { .. })) {
                failed = Some(failure);
            }
        }
        Err(failed.unwrap_or_else(|| Failure::away("no server is named")))
    }

    async fn connect_to(&self, host: &Host) -> Result<(Client, Driver), Failure> {
        let mut config = Config::new();
        config
            .user(&self.settings.user)
            .dbname(&self.settings.database)
            .application_name("hoplite-ca")
            .target_session_attrs(TargetSessionAttrs::ReadWrite)
            .keepalives_idle(KEEPALIVE)
            .tcp_user_timeout(UNACKNOWLEDGED_MAX);
        match host {
            Host::Tcp(address) => {
                config.host(unbracketed(address)).port(address.port());
                config.ssl_mode(match self.settings.tls {
                    Tls::VerifyFull => SslMode::Require,
                    Tls::None => SslMode::Disable,
                });
            }
            Host::Socket(directory) => {
                config.host_path(directory).port(PORT).ssl_mode(SslMode::Disable);
            }
        }
        if let Some(path) = &self.settings.password_file {
            config.password(password(path)?.as_bytes());
        }
        Ok(config.connect(self.tls.clone()).await?)
    }

    /// Says what makes a session ours: the driver must be running.
    pub(crate) async fn settle(&self, client: &Client) -> Result<(), Failure> {
        let schema = &self.settings.schema;
        client
            .batch_execute(&format!("SET search_path TO \"{schema}\"; {SESSION}"))
            .await?;
        Ok(())
    }
}

/// A line's end is not part of it.
fn password(path: &Path) -> Result<Zeroizing<String>, Failure> {
    let refused = |problem: String| Failure::Refused {
        problem,
        remedy: "write the role's password into `password_file`",
    };
    let bytes = Zeroizing::new(files::read_private(path).map_err(|e| refused(e.to_string()))?);
    let text = std::str::from_utf8(&bytes).map_err(|_| refused(format!("`{}` is not text", path.display())))?;
    Ok(Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned()))
}
