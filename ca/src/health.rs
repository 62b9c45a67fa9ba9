//! Whether the CA can do its work now, for gRPC's health protocol.

use std::sync::Arc;
use std::time::Duration;

use hoplite_host::shutdown::Shutdown;
use hoplite_telemetry::Site;
use hoplite_wire::health::Readiness;

/// How often it is looked whether that has changed, for those who watch.
const LOOK: Duration = Duration::from_secs(1);

/// The CA is ready when nothing keeps `/ready` from saying so.
#[derive(Debug, Clone)]
pub(crate) struct SiteReadiness {
    pub(crate) site: Arc<Site>,
    pub(crate) shutdown: Shutdown,
}

impl Readiness for SiteReadiness {
    fn is_ready(&mut self) -> bool {
        !self.shutdown.is_stopping() && self.site.unready().is_empty()
    }

    async fn changed(&mut self) -> bool {
        tokio::select! {
            () = tokio::time::sleep(LOOK) => true,
            () = self.shutdown.wait() => false,
        }
    }
}
