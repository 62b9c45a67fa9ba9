//! Keeps child processes running: starts them, says when one died, starts it again, and stops them in order.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use hoplite_agent::Launcher;
use hoplite_host::backoff::{Backoff, jitter};
use hoplite_host::clock;
use hoplite_host::shutdown::{self, Shutdown, Stopper};
use hoplite_identity::ServiceName;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::output::{one_line, part, plain};

/// A child that dies again and again is started more and more slowly…
const RESTART: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
/// …and one that lived this long has a clean slate.
const STABLE_AFTER: Duration = Duration::from_secs(10);
/// A little more than a proxy takes to drain; then it is killed.
const STOP_WITHIN: Duration = Duration::from_secs(12);

/// An agent that takes longer to take note of a process is stuck, and must not hold up the others.
const AGENT_ANSWERS_WITHIN: Duration = Duration::from_secs(2);

/// What to run.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    /// What people call it, and its log file.
    pub(crate) name: String,
    pub(crate) arguments: Vec<String>,
    pub(crate) log: PathBuf,
    pub(crate) role: Role,
}

/// What a child is to the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Role {
    /// It is the agent: its standard input is the launcher channel.
    Agent,
    /// A workload: the agent is told its process under this name.
    Workload(&'static str),
    /// Neither.
    Other,
}

/// All children, in groups that start in order and stop in reverse.
pub(crate) struct Supervisor {
    groups: Vec<Group>,
    launches: Arc<Launches>,
    /// The first thing that went wrong before the mesh was up.
    failure: watch::Sender<Option<String>>,
    /// From here on a death is an event, not a failure to start.
    up: watch::Sender<bool>,
    events: Events,
}

struct Group {
    stopper: Stopper,
    tasks: JoinSet<()>,
}

/// Which processes we launched under which name, and the channel on which the agent is told. The channel has no name in
/// the file system: only the agent's parent, which we are, holds its other end.
#[derive(Default)]
struct Launches(Mutex<LaunchState>);

#[derive(Default)]
struct LaunchState {
    launcher: Option<Launcher>,
    pids: BTreeMap<&'static str, u32>,
}

/// What the person at the terminal is told.
#[derive(Clone)]
pub(crate) struct Events {
    colour: bool,
}

// === impl Supervisor ===

impl Supervisor {
    pub(crate) fn new() -> Self {
        Self {
            groups: Vec::new(),
            launches: Arc::default(),
            failure: watch::Sender::new(None),
            up: watch::Sender::new(false),
            events: Events {
                colour: anstream::AutoStream::choice(&std::io::stderr()) != anstream::ColorChoice::Never,
            },
        }
    }

    /// Starts children and keeps them running until their group is stopped.
    pub(crate) fn start(&mut self, specs: Vec<Spec>) {
        let (stopper, shutdown) = shutdown::channel();
        let mut tasks = JoinSet::new();
        for spec in specs {
            let keeper = Keeper {
                spec,
                shutdown: shutdown.clone(),
                launches: Arc::clone(&self.launches),
                failure: self.failure.clone(),
                up: self.up.subscribe(),
                events: self.events.clone(),
            };
            tasks.spawn(keeper.keep());
        }
        self.groups.push(Group { stopper, tasks });
    }

    /// Names a process of ours that is no child, such as this one.
    pub(crate) async fn launch(&self, name: &'static str, pid: u32) -> anyhow::Result<()> {
        let launches = Arc::clone(&self.launches);
        tokio::task::spawn_blocking(move || launches.started(name, pid)).await?
    }

    /// Waits for `ready`, unless a child fails first.
    pub(crate) async fn unless_failed<T>(&self, ready: impl Future<Output = T>) -> anyhow::Result<T> {
        let mut failure = self.failure.subscribe();
        tokio::select! {
            value = ready => Ok(value),
            Ok(failed) = failure.wait_for(Option::is_some) => anyhow::bail!("{}", failed.as_deref().unwrap_or_default()),
        }
    }

    /// The mesh is up: from now on a child that dies is started again.
    pub(crate) fn declare_up(&self) {
        self.up.send_replace(true);
    }

    /// Where the person at the terminal is told.
    pub(crate) fn events(&self) -> &Events {
        &self.events
    }

    /// Stops the groups, last started first, each when the one before has ended.
    pub(crate) async fn stop(mut self) {
        while let Some(mut group) = self.groups.pop() {
            group.stopper.stop();
            while group.tasks.join_next().await.is_some() {}
        }
    }
}

/// One child's keeper.
struct Keeper {
    spec: Spec,
    shutdown: Shutdown,
    launches: Arc<Launches>,
    failure: watch::Sender<Option<String>>,
    up: watch::Receiver<bool>,
    events: Events,
}

// === impl Keeper ===

impl Keeper {
    async fn keep(mut self) {
        let mut backoff = RESTART;
        loop {
            let started = clock::moment();
            let ended = match self.run().await {
                Ok(None) => return, // stopped as asked
                Ok(Some((pid, status, last_words))) => format!("pid {pid} {}{last_words}", describe(status)),
                Err(error) => format!("cannot be started: {}", one_line(&error)),
            };
            if !*self.up.borrow() {
                let failed = format!("{}: {ended}", self.spec.name);
                self.failure
                    .send_if_modified(|failure| failure.is_none().then(|| *failure = Some(failed)).is_some());
                return;
            }
            if started.elapsed() > STABLE_AFTER {
                backoff.succeeded();
            }
            self.events
                .say(&self.spec.name, "WARN", &format!("{ended}; starting it again"));
            tokio::select! {
                () = self.shutdown.wait() => return,
                () = tokio::time::sleep(backoff.failed(jitter())) => {}
            }
        }
    }

    /// Runs the child once. `None` when it was stopped as asked; otherwise its pid, how it ended and what it said last.
    async fn run(&mut self) -> anyhow::Result<Option<(u32, ExitStatus, String)>> {
        let (mut child, stdin) = self.spawn()?;
        let pid = child.id().unwrap_or_default();
        // `wait` would close it, and its end tells the child that we are gone.
        let _bond = child.stdin.take();
        let log = OpenOptions::new().create(true).append(true).open(&self.spec.log);
        let log = log.with_context(|| format!("cannot write `{}`", self.spec.log.display()))?;
        let last_words = Arc::new(Mutex::new(String::new()));
        let reader = child.stderr.take().map(|stderr| {
            let teller = Teller {
                name: self.spec.name.clone(),
                up: self.up.clone(),
                events: self.events.clone(),
            };
            tokio::spawn(teller.follow(stderr, log, Arc::clone(&last_words)))
        });
        self.tell_agent(pid, stdin).await;
        let status = tokio::select! {
            status = child.wait() => status,
            () = self.shutdown.wait() => {
                stop(&mut child).await;
                return Ok(None);
            }
        };
        // Reaped, so its number may become somebody else's: an agent that starts now must not hear of it.
        if let Role::Workload(name) = self.spec.role {
            self.launches.ended(name, pid);
        }
        let status = status?;
        if let Some(reader) = reader {
            let _ = tokio::time::timeout(Duration::from_millis(200), reader).await;
        }
        let last_words = last_words.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(Some((pid, status, last_words)))
    }

    /// The agent gets one end of a socket pair as its standard input; everybody else a pipe that ends when we end.
    fn spawn(&self) -> anyhow::Result<(Child, Option<UnixStream>)> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(&self.spec.arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        // They are for us: a child is nobody to the service manager that may have started us.
        for variable in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"] {
            command.env_remove(variable);
        }
        // As their units do: packaging/systemd.
        if !matches!(self.spec.role, Role::Workload(_)) {
            command.env("MALLOC_ARENA_MAX", "2");
        }
        // Ctrl-C at the terminal reaches us alone; we stop the children in order.
        command.process_group(0);
        let ours = if self.spec.role == Role::Agent {
            let (ours, theirs) = UnixStream::pair()?;
            command.stdin(Stdio::from(OwnedFd::from(theirs)));
            Some(ours)
        } else {
            command.stdin(Stdio::piped());
            None
        };
        Ok((command.spawn()?, ours))
    }

    async fn tell_agent(&self, pid: u32, stdin: Option<UnixStream>) {
        let launches = Arc::clone(&self.launches);
        let told = match (&self.spec.role, stdin) {
            (Role::Workload(name), _) => {
                let name = *name;
                tokio::task::spawn_blocking(move || launches.started(name, pid)).await
            }
            (_, Some(stream)) => tokio::task::spawn_blocking(move || launches.agent_started(stream)).await,
            _ => return,
        };
        if let Ok(Err(error)) = told {
            self.events.say(
                &self.spec.name,
                "WARN",
                &format!("the agent was not told of this process: {error}"),
            );
        }
    }
}

async fn stop(child: &mut Child) {
    if let Some(pid) = child
        .id()
        .and_then(|pid| i32::try_from(pid).ok())
        .and_then(Pid::from_raw)
    {
        let _ = kill_process(pid, Signal::TERM);
    }
    if tokio::time::timeout(STOP_WITHIN, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with code {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

/// Copies a child's log lines to its file, and those that a person should see to the terminal.
struct Teller {
    name: String,
    up: watch::Receiver<bool>,
    events: Events,
}

// === impl Teller ===

impl Teller {
    async fn follow(self, stderr: impl AsyncRead + Unpin, mut log: File, last_words: Arc<Mutex<String>>) {
        let mut stderr = BufReader::new(stderr);
        let mut bytes = Vec::new();
        // By bytes: a child that writes what is not UTF-8 must still be read, or it would block.
        while let Ok(1..) = stderr.read_until(b'\n', &mut bytes).await {
            let line = String::from_utf8_lossy(&bytes).trim_end().to_owned();
            bytes.clear();
            let _ = writeln!(log, "{line}");
            match serde_json::from_str::<Value>(&line) {
                Ok(event) => self.tell(&event),
                // Not a log line: the last thing a failing child says before it exits.
                Err(_) => {
                    let words = line.strip_prefix("error: ").unwrap_or(&line);
                    *last_words.lock().unwrap_or_else(PoisonError::into_inner) = format!(": {words}");
                }
            }
        }
    }

    /// Troubles always; what goes well only once the picture stands, which says that it did.
    fn tell(&self, event: &Value) {
        let level = part(event, "/level").as_str().unwrap_or("INFO");
        let trouble = matches!(level, "WARN" | "ERROR");
        if trouble || (part(event, "/notice") == true && *self.up.borrow()) {
            self.events.say(&self.name, level, &sentence(event));
        }
    }
}

/// The message of a log event with its fields.
fn sentence(event: &Value) -> String {
    let mut text = part(event, "/message").as_str().unwrap_or_default().to_owned();
    for (key, value) in event.as_object().into_iter().flatten() {
        if !matches!(key.as_str(), "message" | "level" | "timestamp" | "target" | "notice") {
            text.push_str(&format!("  {key}={}", plain(value)));
        }
    }
    text
}

// === impl Launches ===

impl Launches {
    /// A workload process has started.
    fn started(&self, name: &'static str, pid: u32) -> anyhow::Result<()> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.pids.insert(name, pid);
        match &mut state.launcher {
            Some(launcher) => Ok(launcher.launch(&ServiceName::parse(name)?, pid)?),
            None => Ok(()), // told when the agent starts
        }
    }

    /// A workload process is no more.
    fn ended(&self, name: &'static str, pid: u32) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.pids.get(name) == Some(&pid) {
            state.pids.remove(name);
        }
    }

    /// A new agent knows nothing yet of those that run already.
    fn agent_started(&self, stream: UnixStream) -> anyhow::Result<()> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        stream.set_read_timeout(Some(AGENT_ANSWERS_WITHIN))?;
        let launcher = Launcher::new(stream);
        let pids = state.pids.clone();
        let launcher = state.launcher.insert(launcher);
        let mut outcome = Ok(());
        for (name, pid) in pids {
            // A workload that died meanwhile is no reason to keep the others from the agent.
            let told = ServiceName::parse(name).map(|name| launcher.launch(&name, pid));
            if let Err(error) = told? {
                outcome = Err(error.into());
            }
        }
        outcome
    }
}

// === impl Events ===

impl Events {
    pub(crate) fn say(&self, name: &str, level: &str, text: &str) {
        let at = humantime::format_rfc3339_seconds(clock::now()).to_string();
        let clock = at.get(11..19).unwrap_or_default();
        let (on, off) = match (self.colour, level) {
            (true, "ERROR") => ("\x1b[31m", "\x1b[0m"),
            (true, "WARN") => ("\x1b[33m", "\x1b[0m"),
            _ => ("", ""),
        };
        hoplite_host::tell!("{clock}  {name:<14}  {on}{text}{off}");
    }
}
