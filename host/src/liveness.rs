//! Whether this process does its work: every thread of the runtime moves, and whoever works beside it has answered.

use std::pin::Pin;
use std::time::Duration;

use tokio::runtime::{Handle, RuntimeMetrics};
use tokio::time::{Instant, sleep_until};

/// Ends when every thread that works beside the daemon's own runtime has answered; never, if one does not.
pub type Answers = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Asks at half of the time after which a manager takes the process for dead. Nothing that hangs can answer: the question
/// goes through the runtimes that do the work.
pub(crate) struct Liveness {
    /// How often it is asked; nobody wants to know if none.
    period: Option<Duration>,
    next: Instant,
    asked: Option<Answers>,
    threads: Threads,
}

/// What has to happen next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Beat {
    /// It is time to ask: call [`Liveness::ask`].
    Due,
    /// Everybody has answered.
    Alive,
}

/// How far each thread of the runtime was when it was last looked at.
struct Threads(Vec<Progress>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Progress {
    /// Times that it went to sleep and woke up: odd while it sleeps.
    turns: u64,
    /// Counted as it goes on from task to task.
    busy: Duration,
}

// === impl Liveness ===

impl Liveness {
    pub(crate) fn new(watchdog: Option<Duration>) -> Self {
        let period = watchdog.map(|watchdog| watchdog / 2);
        Self {
            period,
            next: Instant::now() + period.unwrap_or_default(),
            asked: None,
            threads: Threads(Vec::new()),
        }
    }

    /// May be dropped at any time, and asked again.
    pub(crate) async fn beat(&mut self) -> Beat {
        let Some(period) = self.period else {
            return std::future::pending().await;
        };
        loop {
            let Some(answers) = &mut self.asked else {
                sleep_until(self.next).await;
                return Beat::Due;
            };
            answers.await;
            self.asked = None;
            if self.threads.all_moved(&Handle::current().metrics()) {
                self.next = Instant::now() + period;
                return Beat::Alive;
            }
            // It may be at one long piece of work: there is another look before the manager's time is over.
            self.next = Instant::now() + period / 4;
        }
    }

    /// Asks this runtime, and those who answer by `answers`.
    pub(crate) fn ask(&mut self, answers: Answers) {
        self.asked = Some(Box::pin(async move {
            // A task of its own: it is run by a thread that takes tasks, which the one that asks may not be.
            if tokio::spawn(async {}).await.is_err() {
                std::future::pending().await
            }
            answers.await;
        }));
    }
}

// === impl Threads ===

impl Threads {
    /// Whether each sleeps, or has gone on since the last look. A thread that is in one and the same task has not.
    fn all_moved(&mut self, metrics: &RuntimeMetrics) -> bool {
        let now: Vec<Progress> = (0..metrics.num_workers())
            .map(|worker| Progress {
                turns: metrics.worker_park_unpark_count(worker),
                busy: metrics.worker_total_busy_duration(worker),
            })
            .collect();
        let stuck = now.iter().zip(&self.0).any(|(now, before)| now.is_stuck_since(before));
        self.0 = now;
        !stuck
    }
}

impl Progress {
    fn is_stuck_since(&self, before: &Self) -> bool {
        self.turns.is_multiple_of(2) && self == before
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// A worker of a runtime of two hangs in one task: the other runs on, and the process still does not pass for alive.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn one_hung_thread_of_two_is_seen() {
        let mut liveness = Liveness::new(Some(Duration::from_millis(100)));
        assert_eq!(liveness.beat().await, Beat::Due);
        liveness.ask(Box::pin(std::future::ready(())));
        assert_eq!(liveness.beat().await, Beat::Alive);

        let (go, wait) = mpsc::sync_channel::<()>(0);
        let (hangs, hung) = mpsc::sync_channel::<()>(1);
        let stuck = tokio::spawn(async move {
            hangs.send(()).unwrap();
            let _ = wait.recv();
        });
        tokio::task::spawn_blocking(move || hung.recv()).await.unwrap().unwrap();
        // The first look after it may still see the turn with which it began.
        for _ in 0..2 {
            assert_eq!(liveness.beat().await, Beat::Due);
            liveness.ask(Box::pin(std::future::ready(())));
            let _ = tokio::time::timeout(Duration::from_millis(20), async {
                while liveness.asked.is_some() {
                    tokio::select! { biased; _ = liveness.beat() => {}, () = tokio::time::sleep(Duration::from_millis(5)) => {} }
                }
            })
            .await;
        }
        let answered = tokio::time::timeout(Duration::from_millis(400), alive(&mut liveness)).await;
        assert!(answered.is_err(), "one thread stands");

        go.send(()).unwrap();
        stuck.await.unwrap();
        tokio::time::timeout(Duration::from_secs(10), alive(&mut liveness))
            .await
            .expect("it goes on");
    }

    async fn alive(liveness: &mut Liveness) {
        while liveness.beat().await != Beat::Alive {
            liveness.ask(Box::pin(std::future::ready(())));
        }
    }

    #[tokio::test]
    async fn who_does_not_answer_is_not_alive() {
        let mut liveness = Liveness::new(Some(Duration::from_millis(20)));
        assert_eq!(liveness.beat().await, Beat::Due);
        let (answer, answered) = tokio::sync::oneshot::channel::<()>();
        liveness.ask(Box::pin(async {
            let _ = answered.await;
        }));
        let silent = tokio::time::timeout(Duration::from_millis(100), liveness.beat()).await;
        assert!(silent.is_err());
        answer.send(()).unwrap();
        assert_eq!(liveness.beat().await, Beat::Alive, "asked once, answered late");
    }
}
