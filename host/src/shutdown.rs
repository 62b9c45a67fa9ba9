//! One signal that everything stops by.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Triggers the stop. Dropping it triggers it too: what owns a service owns its life.
#[derive(Debug)]
pub struct Stopper(watch::Sender<bool>);

/// Waits for the stop; clones wait for the same one.
#[derive(Debug, Clone)]
pub struct Shutdown(watch::Receiver<bool>);

/// A new signal and its receiver.
pub fn channel() -> (Stopper, Shutdown) {
    let (sender, receiver) = watch::channel(false);
    (Stopper(sender), Shutdown(receiver))
}

/// Returns at SIGINT or SIGTERM.
pub async fn terminated() -> std::io::Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

// === impl Stopper ===

impl Stopper {
    /// Triggers the stop.
    pub fn stop(&self) {
        let _ = self.0.send(true);
    }
}

// === impl Shutdown ===

impl Shutdown {
    /// Whether the stop has been triggered.
    pub fn is_stopping(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }

    /// Returns once the stop has been triggered.
    pub async fn wait(&mut self) {
        let _ = self.0.wait_for(|stop| *stop).await;
    }
}
