//! Steady requests in the background, each of which must succeed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use tokio::task::JoinHandle;

use crate::client::PlainClient;

/// Twenty a second: enough to hit every change, few enough to leave the machine to the tests beside this one.
const EVERY: Duration = Duration::from_millis(50);

/// A plain client that calls twenty times a second over a kept connection. Dropping it stops it.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Tally>,
}

/// What became of the requests.
#[derive(Debug, Default)]
pub struct Tally {
    /// How many were made.
    pub sent: u32,
    /// What went wrong, and after how many seconds.
    pub failures: Vec<String>,
}

// === impl Load ===

impl Load {
    /// Begins; every answer must have this status.
    pub fn start(address: SocketAddr, method: Method, path: &'static str, expected: StatusCode) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            let (started, mut client, mut tally) = (Instant::now(), PlainClient::new(address), Tally::default());
            let mut ticks = tokio::time::interval(EVERY);
            while !stopped.load(Ordering::Relaxed) {
                ticks.tick().await;
                tally.sent += 1;
                let fault = match client.call(method.clone(), path).await {
                    Ok(answer) if answer.status == expected => continue,
                    Ok(answer) => format!("{} {}", answer.status, answer.body.trim_end()),
                    Err(error) => error.to_string(),
                };
                tally
                    .failures
                    .push(format!("after {:.2} s: {fault}", started.elapsed().as_secs_f64()));
            }
            tally
        });
        Self { stop, task }
    }

    /// Ends it, and tells.
    pub async fn stop(mut self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        (&mut self.task).await.unwrap()
    }

    /// Ends it.
    ///
    /// # Panics
    /// If any request failed, or there were fewer than `least`.
    pub async fn finish(self, least: u32) {
        let tally = self.stop().await;
        assert!(
            tally.failures.is_empty(),
            "{} of {} requests failed: {:#?}",
            tally.failures.len(),
            tally.sent,
            tally.failures
        );
        assert!(tally.sent >= least, "only {} requests were made", tally.sent);
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
