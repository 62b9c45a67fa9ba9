//! How every daemon starts, hardens itself, waits, drains and ends.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};

use crate::liveness::{Answers, Beat, Liveness};
use crate::logging::{self, Format};
use crate::manager::Manager;
use crate::places::Places;
use crate::process::{self, Hardening};
use crate::reload::Reloaded;
use crate::shutdown;

/// What every daemon is started with.
#[derive(Debug, Clone, Args)]
pub struct Arguments {
    /// The configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// The rest.
    #[command(flatten)]
    pub manner: Manner,
}

/// What a daemon is started with of which there is one on a machine: its file has a place.
#[derive(Debug, Clone, Args)]
#[group(skip)] // flattened beside others
pub struct PlacedArguments {
    /// The configuration file (TOML) [default: the one in /etc/hoplite, or in --dir]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Find the file in this directory, as `--dir` of `hoplite ca init` and `hoplite join` made it [env: HOPLITE_DIR]
    // Read by `places`: what stands in the environment must not conflict with a file that is named.
    #[arg(long, value_name = "DIR", conflicts_with = "config")]
    pub dir: Option<PathBuf>,
    /// The rest.
    #[command(flatten)]
    pub manner: Manner,
}

/// How a daemon's process behaves.
#[derive(Debug, Clone, Default, Args)]
#[group(skip)] // flattened beside others
pub struct Manner {
    /// The form of log lines on standard error; `HOPLITE_LOG` says which, for example `info,hoplite_proxy=debug`
    #[arg(long, value_enum, default_value_t)]
    pub log: Format,
    /// Stop when standard input ends: a supervisor holds the other end
    #[arg(long, hide = true)]
    pub supervised: bool,
}

// === impl PlacedArguments ===

impl PlacedArguments {
    /// With the file that is named, or else the one at its place.
    pub fn at(&self, place: impl FnOnce(&Places) -> PathBuf) -> Arguments {
        let config = self.config.clone().unwrap_or_else(|| place(&self.places()));
        Arguments {
            config,
            manner: self.manner.clone(),
        }
    }

    fn places(&self) -> Places {
        match self.dir.clone().or_else(Places::named_dir) {
            Some(dir) => Places::below(dir),
            None => Places::installed(),
        }
    }
}

/// A daemon that serves.
pub trait Daemon {
    /// Why it does not start, or cannot go on.
    type Error: Error + Send + Sync + 'static;

    /// Returns when it ends by itself: well, because whoever it depends on has ended, or because it can do its work no
    /// longer. It goes on refusing until it is stopped. May be dropped at any time, and asked again.
    fn ended(&mut self) -> impl Future<Output = Result<(), Self::Error>>;

    /// Reads the file again and takes over what can be taken over while it serves. After an error everything is as it was.
    fn reload(&mut self, file: &Path) -> impl Future<Output = Result<Reloaded, Self::Error>>;

    /// Ends when every thread that works beside the runtime which runs this has answered; never, if one hangs. The runtime itself
    /// is asked anyway.
    fn answers(&self) -> Answers {
        Box::pin(std::future::ready(()))
    }

    /// What it does now, in one line, for whoever asks the service manager.
    fn status(&self) -> String;

    /// Takes nothing new, lets what is under way finish for a bounded time, then ends the rest. `why` is how it ended by
    /// itself, or nothing but good when it is told to stop.
    fn stop(self, why: &Result<(), Self::Error>) -> impl Future<Output = ()>;
}

/// What sets one daemon's process apart from another's.
#[derive(Debug, Clone, Copy)]
pub struct Process {
    /// How far it closes itself to others of the same user.
    pub hardening: Hardening,
    /// The runtime's threads.
    pub threads: Threads,
}

/// The threads of a daemon's runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// The one that is there: what is served has threads of its own.
    One,
    /// Two: work of the processor (a signature, the compilation of a bundle) must not hold up those who wait for a word.
    Two,
}

/// Why a daemon has failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DaemonError<E: Error + 'static> {
    /// The process cannot be hardened, and must not hold secrets then.
    #[error("cannot harden the process: {0}")]
    Hardening(#[source] io::Error),
    /// The system refused a thread.
    #[error("the system refused a thread: {0}")]
    Thread(#[source] io::Error),
    /// The system lets no signals be handled.
    #[error("cannot wait for signals: {0}")]
    Signals(#[source] io::Error),
    /// Its own reason.
    #[error(transparent)]
    Daemon(#[from] E),
}

/// Runs a daemon until SIGTERM, SIGINT or its own end. `start` is called in its runtime once the process is hardened, and
/// reads the configuration first.
///
/// # Errors
/// [`DaemonError`]: it did not start, or could not go on. A stop as asked is no error.
pub fn run<D, S>(
    arguments: &Arguments,
    process: Process,
    start: impl FnOnce() -> S,
) -> Result<(), DaemonError<D::Error>>
where
    D: Daemon,
    S: Future<Output = Result<D, D::Error>>,
{
    logging::init(arguments.manner.log);
    process::name_as_called();
    process::harden(process.hardening).map_err(DaemonError::Hardening)?;
    if arguments.manner.supervised {
        end_with_stdin().map_err(DaemonError::Thread)?;
    }
    let mut runtime = match process.threads {
        Threads::One => runtime::Builder::new_current_thread(),
        Threads::Two => runtime::Builder::new_multi_thread(),
    };
    if process.threads == Threads::Two {
        runtime.worker_threads(2);
    }
    let runtime = runtime.enable_all().build().map_err(DaemonError::Thread)?;
    runtime.block_on(live(&arguments.config, &Manager::of_this_process(), start()))
}

async fn live<D: Daemon>(
    file: &Path,
    manager: &Manager,
    start: impl Future<Output = Result<D, D::Error>>,
) -> Result<(), DaemonError<D::Error>> {
    // Before the start, which may wait for others: it must be possible to stop that too.
    let mut terminated = std::pin::pin!(shutdown::terminated());
    // Unhandled it would end the process.
    let mut hangup = signal(SignalKind::hangup()).map_err(DaemonError::Signals)?;
    manager.starting("starting; the log says what it waits for");
    let mut daemon = tokio::select! {
        biased;
        stopped = terminated.as_mut() => return stopped.map_err(DaemonError::Signals),
        started = start => started.inspect_err(|error| manager.stopping(&one_line(error)))?,
    };
    manager.ready(&daemon.status());
    let mut liveness = Liveness::new(manager.watchdog());
    let why = loop {
        tokio::select! {
            stopped = terminated.as_mut() => {
                stopped.map_err(DaemonError::Signals)?;
                break Ok(());
            }
            ended = daemon.ended() => break ended,
            Some(()) = hangup.recv() => {
                manager.reloading();
                tokio::select! {
                    () = read_again(&mut daemon, file) => {}
                    // It may wait for others, and is of no use any more.
                    stopped = terminated.as_mut() => {
                        stopped.map_err(DaemonError::Signals)?;
                        break Ok(());
                    }
                }
                manager.ready(&daemon.status());
            }
            beat = liveness.beat() => match beat {
                Beat::Due => liveness.ask(daemon.answers()),
                Beat::Alive => manager.alive(&daemon.status()),
            },
        }
    };
    tracing::info!("stopping");
    match &why {
        Ok(()) => manager.stopping("stopping; what is under way may finish"),
        Err(error) => manager.stopping(&one_line(error)),
    }
    daemon.stop(&why).await;
    Ok(why?)
}

async fn read_again<D: Daemon>(daemon: &mut D, file: &Path) {
    match daemon.reload(file).await {
        Ok(reloaded) => reloaded.say(file),
        Err(error) => tracing::error!(
            notice = true,
            error = one_line(&error),
            "SIGHUP: the file cannot be used, so everything stays as it is"
        ),
    }
}

/// Ends this process when its standard input ends.
///
/// # Errors
/// The system refused a thread.
pub fn end_with_stdin() -> io::Result<()> {
    std::thread::Builder::new().name("supervisor".to_owned()).spawn(|| {
        process::wait_for_stdin_to_end();
        #[expect(
            clippy::disallowed_methods,
            reason = "a read of standard input cannot be cancelled; nothing is being written"
        )]
        std::process::exit(0);
    })?;
    Ok(())
}

/// The exit code of a process whose only work was a daemon. A failure is its last words on standard error, one line for
/// the operator, whatever the form of the log.
pub fn exit_code<E: Error + 'static>(result: Result<(), DaemonError<E>>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            crate::tell!("error: {}", one_line(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error with its causes, as far as its own words do not have them already.
pub fn one_line(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let words = error.to_string().replace('\n', ", ");
        if !text.contains(&words) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&words);
        }
        next = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    #[derive(Debug, thiserror::Error)]
    #[error("the disk\nis full")]
    struct Broken;

    /// Says what happens to it.
    struct Sample {
        ends: Option<Result<(), Broken>>,
        heard: Arc<Mutex<Vec<&'static str>>>,
    }

    impl Daemon for Sample {
        type Error = Broken;

        async fn ended(&mut self) -> Result<(), Broken> {
            match self.ends.take() {
                Some(end) => end,
                None => std::future::pending().await,
            }
        }

        async fn reload(&mut self, file: &Path) -> Result<Reloaded, Broken> {
            self.heard.lock().unwrap().push("read again");
            if file == Path::new("bad.toml") {
                return Err(Broken);
            }
            Ok(Reloaded::default())
        }

        fn status(&self) -> String {
            "serves".to_owned()
        }

        async fn stop(self, why: &Result<(), Broken>) {
            self.heard
                .lock()
                .unwrap()
                .push(if why.is_ok() { "drained" } else { "ended soon" });
        }
    }

    fn term() {
        say(rustix::process::Signal::TERM);
    }

    fn say(signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::getpid(), signal).unwrap();
    }

    /// One test, because a signal is for the whole process.
    #[tokio::test]
    async fn a_daemon_is_drained_however_it_ends() {
        let (heard, good) = (Arc::new(Mutex::new(Vec::new())), Path::new("good.toml"));
        let silent = Manager::default();
        let sample = |ends| Sample {
            ends,
            heard: Arc::clone(&heard),
        };
        assert!(matches!(
            live::<Sample>(good, &silent, async { Err(Broken) }).await,
            Err(DaemonError::Daemon(Broken))
        ));
        assert!(heard.lock().unwrap().is_empty(), "what did not start is not stopped");

        let failed = live(good, &silent, async { Ok(sample(Some(Err(Broken)))) }).await;
        assert_eq!(one_line(&failed.unwrap_err()), "the disk, is full");
        live(good, &silent, async { Ok(sample(Some(Ok(())))) }).await.unwrap();
        assert_eq!(*heard.lock().unwrap(), ["ended soon", "drained"]);

        // The handler stays installed, so that a signal does not end the test.
        let (running, ()) = tokio::join!(live(good, &silent, async { Ok(sample(None)) }), async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            term();
        });
        running.unwrap();
        assert_eq!(heard.lock().unwrap().len(), 3);

        // Asked to read its file again it serves on, whatever the file says, until it is told to stop.
        for file in ["good.toml", "bad.toml"] {
            heard.lock().unwrap().clear();
            let heard = Arc::clone(&heard);
            let (running, ()) = tokio::join!(live(Path::new(file), &silent, async { Ok(sample(None)) }), async move {
                tokio::time::sleep(Duration::from_millis(100)).await;
                say(rustix::process::Signal::HUP);
                while heard.lock().unwrap().is_empty() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                term();
            });
            running.unwrap();
        }
        assert_eq!(*heard.lock().unwrap(), ["read again", "drained"]);
        heard.lock().unwrap().push("");

        let (starting, ()) = tokio::join!(live::<Sample>(good, &silent, std::future::pending()), async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            term();
        });
        starting.unwrap();
        assert_eq!(
            heard.lock().unwrap().len(),
            3,
            "what waits for others can be stopped too"
        );
    }
}
