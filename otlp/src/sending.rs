//! Sending, from its start to the flush at the end.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use hoplite_host::shutdown::{self, Stopper};
use hoplite_telemetry::Site;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::warn;

use crate::known::{ByIdentity, OtlpError};
use crate::sent::Sent;
use crate::settings::{OtlpSettings, Ratio};
use crate::tracer::Queue;

/// How long the stop of a daemon waits for what is not sent yet.
const FLUSH_MAX: Duration = Duration::from_secs(2);

/// Settings of which all that can be wrong was looked at.
#[derive(Debug, Clone)]
pub struct Prepared {
    settings: OtlpSettings,
    #[cfg(feature = "export")]
    known: crate::collector::Known,
}

/// What is needed to send.
pub struct Sender {
    /// Where to, and how often.
    pub prepared: Prepared,
    /// Which program this is: `hoplite-proxy`.
    pub service: &'static str,
    /// Which of them: its name, or the node's.
    pub instance: String,
    /// What `/metrics` is read from.
    pub site: Arc<Site>,
    /// Of a daemon that makes spans.
    pub spans: Option<Queue>,
    /// For a collector that has a SPIFFE ID.
    pub identity: ByIdentity,
    /// Where it is counted.
    pub sent: Sent,
}

/// Sending, for as long as this lives.
pub struct Sending {
    stopper: Stopper,
    tasks: JoinSet<()>,
}

// === impl Prepared ===

impl Prepared {
    /// Reads what the settings name. Whether the collector is there is not asked.
    ///
    /// # Errors
    /// What is wrong with the settings.
    #[cfg(feature = "export")]
    pub fn new(settings: &OtlpSettings) -> Result<Self, OtlpError> {
        Ok(Self {
            settings: settings.clone(),
            known: crate::collector::known(settings)?,
        })
    }

    /// This program cannot send.
    ///
    /// # Errors
    /// Always.
    #[cfg(not(feature = "export"))]
    pub fn new(_: &OtlpSettings) -> Result<Self, OtlpError> {
        Err(OtlpError::NotBuilt)
    }

    /// Whether a proxy makes spans.
    pub fn makes_spans(&self) -> bool {
        self.settings.makes_spans()
    }

    /// The part of new traces that is sampled.
    pub fn sampled(&self) -> Ratio {
        self.settings.sampled()
    }
}

// === impl Sender ===

impl Sender {
    /// Begins. Whenever the collector is there it gets what there is.
    #[cfg(feature = "export")]
    pub fn start(self) -> Sending {
        use crate::collector::dial;
        use crate::encoding::Origin;
        use crate::signals::{Metrics, Signal, Spans};

        let Prepared { settings, known } = self.prepared;
        let (stopper, stop) = shutdown::channel();
        let channel = dial(&settings, known, self.identity);
        let origin = Arc::new(Origin::new(self.service, self.instance));
        let signal = |name| {
            let endpoint = settings.endpoint.to_string();
            Signal::new(name, endpoint, settings.timeout.0, self.sent.clone(), stop.clone())
        };
        let mut tasks = JoinSet::new();
        if settings.metrics {
            let metrics = Metrics::new(channel.clone(), signal("metrics"), origin.clone(), self.site);
            tasks.spawn(metrics.send(settings.interval.0));
        }
        let traces = self.spans.is_some();
        if let Some(queue) = self.spans {
            let spans = Spans::new(channel, signal("traces"), origin, queue);
            tasks.spawn(spans.send());
        }
        tracing::info!(endpoint = %settings.endpoint, metrics = settings.metrics, traces, "sending by OTLP");
        Sending { stopper, tasks }
    }

    /// Nothing is prepared in a program that cannot send.
    #[cfg(not(feature = "export"))]
    pub fn start(self) -> Sending {
        let (stopper, _) = shutdown::channel();
        Sending {
            stopper,
            tasks: JoinSet::new(),
        }
    }
}

/// How this machine calls itself: which of all agents it is.
pub fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => "unknown".to_owned(),
        name => name.to_owned(),
    }
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender")
            .field("prepared", &self.prepared)
            .finish_non_exhaustive()
    }
}

// === impl Sending ===

impl Sending {
    /// Sends what there still is, unless that takes too long.
    pub async fn stop(mut self) {
        self.stopper.stop();
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        if timeout(FLUSH_MAX, ended).await.is_err() {
            warn!("the collector takes too long: what is not sent yet is dropped");
        }
    }
}

impl fmt::Debug for Sending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sending").finish_non_exhaustive()
    }
}
