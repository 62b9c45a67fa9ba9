//! `hoplite entry why` and `hoplite agent status`: what the agent of this node says of a process, and of itself.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use hoplite_wire::agent::diagnosis_client::DiagnosisClient;
use hoplite_wire::agent::{AgentStatus, Candidate, Kept, Missing, ShowStatusRequest, WhyRequest, WhyResponse};
use hoplite_wire::{FetchError, channel};
use serde_json::{Value, json};
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::command::admin::rfc3339;
use crate::command::svid::{AnswerArgs, SocketArgs};
use crate::output::waiting::Waiting;
use crate::output::{Output, count, print_json, print_page};

#[derive(Debug, Args)]
pub(crate) struct WhyArgs {
    /// The process, by its pid on this node
    #[arg(long, value_parser = clap::value_parser!(i32).range(1..))]
    pid: i32,
    #[command(flatten)]
    agent: AnswerArgs,
}

/// Exit 1 when the process has no identity: that is the answer people wait for.
pub(crate) fn why(args: &WhyArgs) -> anyhow::Result<ExitCode> {
    let request = WhyRequest { pid: args.pid };
    let why = call(&args.agent.socket, async |mut agent| {
        Ok(agent.why(for_agent(request)).await?.into_inner())
    })?;
    match args.agent.output {
        Output::Json => print_json(&why_json(&why))?,
        Output::Table => print_page(&why_text(&why))?,
    }
    let has_one = why
        .candidates
        .iter()
        .any(|candidate| candidate.fits() && candidate.has_svid);
    Ok(if has_one { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

pub(crate) fn status(args: &AnswerArgs) -> anyhow::Result<ExitCode> {
    let status = call(&args.socket, async |mut agent| {
        Ok(agent.show_status(for_agent(ShowStatusRequest {})).await?.into_inner())
    })?;
    match args.output {
        Output::Json => print_json(&status_json(&status))?,
        Output::Table => print_page(&status_text(&status))?,
    }
    let is_kept = status.kept.as_ref().is_none_or(|kept| kept.failure.is_empty());
    let is_good = status.in_step && status.without_svid == 0 && status.dismissed.is_empty() && is_kept;
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn call<T>(
    socket: &SocketArgs,
    rpc: impl AsyncFnOnce(DiagnosisClient<Channel>) -> Result<T, Status>,
) -> anyhow::Result<T> {
    let path = socket.path()?;
    let _waiting = Waiting::new("asking the agent");
    super::runtime()?.block_on(async {
        let channel = channel::unix(&path).await.map_err(|error| {
            let text = format!("no agent answers at `{}`; is it running?", path.display());
            anyhow::Error::new(error).context(text)
        })?;
        let answer = rpc(DiagnosisClient::new(channel)).await;
        answer.map_err(|status| match FetchError::no_answer(&path, &status) {
            Some(error) => error.into(),
            None => anyhow::anyhow!("the agent refused: {}", status.message()),
        })
    })
}

/// What the agent at a socket says of itself.
///
/// # Errors
/// It does not answer, or not to this user.
pub(crate) async fn ask_status(socket: &Path) -> anyhow::Result<AgentStatus> {
    let channel = channel::unix(socket).await?;
    let answer = DiagnosisClient::new(channel)
        .show_status(for_agent(ShowStatusRequest {}))
        .await;
    let answer = answer.map_err(|status| match FetchError::no_answer(socket, &status) {
        Some(error) => error.into(),
        None => anyhow::anyhow!("{}", status.message()),
    })?;
    Ok(answer.into_inner())
}

/// With what a browser, tricked into calling a local socket, cannot send.
fn for_agent<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request
        .metadata_mut()
        .insert("workload.spiffe.io", MetadataValue::from_static("true"));
    request
}

fn why_text(why: &WhyResponse) -> String {
    let mut text = format!("process {} has\n", why.pid);
    for selector in &why.selectors {
        let _ = writeln!(text, "  {selector}");
    }
    if !why.unknown.is_empty() {
        let _ = writeln!(text, "not known: {}", why.unknown.join(", "));
    }
    text.push('\n');
    for candidate in &why.candidates {
        candidate.tell(&mut text);
    }
    let fits = why.candidates.iter().any(Candidate::fits);
    match (fits, why.entries) {
        (true, _) => {}
        (false, 0) => text.push_str(
            "no entry is registered under this node's agent; does `parent` name it? `hoplite entry list` shows where each is\n",
        ),
        (false, entries) => {
            let _ = writeln!(
                text,
                "no entry fits, of {entries} under this node's agent; one under another parent is not seen here, `hoplite entry list` \
                 shows them all"
            );
        }
    }
    text
}

fn why_json(why: &WhyResponse) -> Value {
    let missing = |missing: &Missing| json!({"selector": missing.selector, "instead": missing.instead, "reason": missing.reason, "remedy": missing.remedy()});
    let candidates: Vec<Value> = why
        .candidates
        .iter()
        .map(|candidate| {
            json!({
                "id": candidate.entry_id, "spiffe_id": candidate.spiffe_id, "selectors": candidate.selectors,
                "fits": candidate.fits(), "has_svid": candidate.has_svid,
                "absence": (!candidate.absence.is_empty()).then_some(&candidate.absence),
                "missing": candidate.missing.iter().map(missing).collect::<Vec<_>>(),
                "remedy": candidate.update(),
            })
        })
        .collect();
    json!({
        "pid": why.pid, "selectors": why.selectors, "unknown": why.unknown, "entries": why.entries, "candidates": candidates,
    })
}

fn status_text(status: &AgentStatus) -> String {
    let held = format!(
        "{}, {} without SVID\n",
        count(status.entries.into(), "entry"),
        status.without_svid
    );
    let mut text = if !status.dismissed.is_empty() {
        format!(
            "the CA has dismissed this node, and nobody is given anything: {}\n",
            status.dismissed
        )
    } else if status.in_step || (!status.from_disk && status.heard_at_unix > 0) {
        held
    } else if status.from_disk {
        let heard = rfc3339(status.heard_at_unix);
        format!(
            "{held}from the disk: the CA was heard last at {heard}, and not since the start; the agent's log says why\n"
        )
    } else {
        "the agent has not heard from its CA since it started; its log says why\n".to_owned()
    };
    for trouble in &status.troubles {
        let _ = writeln!(text, "TROUBLE: {trouble}");
    }
    let callers = match status.peer_process.as_str() {
        "" => "this command is newer than the agent, which does not say how",
        "kernel" => "by the kernel's word",
        _ => "by process number, user and group; docs/threat-model.md says what that leaves open",
    };
    let _ = writeln!(
        text,
        "callers known {callers} (peer_process = \"{}\")",
        status.peer_process
    );
    if let Some(kept) = status.kept.as_ref().filter(|_| status.dismissed.is_empty()) {
        text.push_str(&kept_text(kept));
    }
    for refusal in &status.refusals {
        let _ = writeln!(text, "refused  {:<28} {}", refusal.cause, refusal.count);
    }
    text
}

/// What is kept for a start without the CA.
fn kept_text(kept: &Kept) -> String {
    let mut text = match (kept.key.as_str(), kept.written_at_unix) {
        ("", _) => format!("nothing is kept on the disk: {}\n", kept.failure),
        (_, 0) => format!(
            "kept on the disk, and not changed since the start; its key is {}\n",
            kept.key_text
        ),
        (_, at) => format!(
            "kept on the disk, last at {}; its key is {}\n",
            rfc3339(at),
            kept.key_text
        ),
    };
    if !kept.key.is_empty() && !kept.failure.is_empty() {
        let _ = writeln!(text, "the last change is not kept: {}", kept.failure);
    }
    if !kept.doubt.is_empty() {
        let _ = writeln!(text, "what was kept before the start was not used: {}", kept.doubt);
    }
    text
}

fn status_json(status: &AgentStatus) -> Value {
    let moment = |unix: i64| (unix != 0).then(|| rfc3339(unix));
    let kept = status.kept.clone().unwrap_or_default();
    let refusals = status
        .refusals
        .iter()
        .map(|refusal| (refusal.cause.clone(), refusal.count.into()));
    json!({
        "in_step": status.in_step, "entries": status.entries, "without_svid": status.without_svid,
        "peer_process": status.peer_process, "dismissed": status.dismissed, "troubles": status.troubles,
        "from_disk": status.from_disk, "heard_at": moment(status.heard_at_unix),
        "kept": {
            "key": kept.key, "failure": kept.failure, "doubt": kept.doubt, "written_at": moment(kept.written_at_unix),
            "waiting": kept.waiting,
        },
        "refused": refusals.collect::<serde_json::Map<_, Value>>(),
    })
}

/// What people are told of an entry.
trait Explained {
    fn fits(&self) -> bool;
    fn tell(&self, text: &mut String);
    /// The command that would make it fit, if it is meant to: none where the process lacks something altogether.
    fn update(&self) -> Option<String>;
}

/// What people are told of a selector that the process does not have.
trait Remedied {
    fn remedy(&self) -> String;
}

// === impl Candidate ===

impl Explained for Candidate {
    fn fits(&self) -> bool {
        self.missing.is_empty()
    }

    fn tell(&self, text: &mut String) {
        let (id, spiffe_id) = (&self.entry_id, &self.spiffe_id);
        let _ = match (self.fits(), self.has_svid) {
            (true, true) => writeln!(text, "fits    {spiffe_id}  {id}"),
            (true, false) => writeln!(
                text,
                "fits    {spiffe_id}  {id}\n        {}",
                match self.absence.as_str() {
                    "" => "its SVID is not issued yet; the agent's log says why",
                    absence => absence,
                }
            ),
            (false, _) => writeln!(text, "nearly  {spiffe_id}  {id}"),
        };
        for missing in &self.missing {
            let _ = writeln!(text, "        {}", missing.remedy());
        }
        if let Some(update) = self.update() {
            let _ = writeln!(text, "        if this process is meant: {update}");
        }
    }

    fn update(&self) -> Option<String> {
        if self.fits() || self.missing.iter().any(|missing| missing.instead.is_empty()) {
            return None;
        }
        let mut command = format!("hoplite entry update {}", self.entry_id);
        for selector in &self.selectors {
            let missing = self.missing.iter().find(|missing| missing.selector == *selector);
            let selector = missing.map_or(selector, |missing| &missing.instead);
            let _ = write!(command, " --selector '{}'", selector.replace('\'', "'\\''"));
        }
        Some(command)
    }
}

// === impl Missing ===

impl Remedied for Missing {
    fn remedy(&self) -> String {
        let Self {
            selector,
            instead,
            reason,
        } = self;
        if !instead.is_empty() {
            return format!("it demands {selector}, and the process has {instead}");
        }
        if !selector.contains(':') {
            return format!("it gives this process no name: {reason}");
        }
        let remedy = match selector.split(':').next() {
            Some("launch") => "only a supervisor that started the agent with `--launcher-stdin` gives it",
            _ => "let the agent find it out, or register the process by something else",
        };
        format!("it demands {selector}, which is not known of the process: {reason}; {remedy}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told_with_what_to_do() {
        let missing = |selector: &str, instead: &str, reason: &str| Missing {
            selector: selector.into(),
            instead: instead.into(),
            reason: reason.into(),
        };
        let candidate = |missing: Vec<Missing>| Candidate {
            entry_id: "3f2a".into(),
            spiffe_id: "spiffe://prod.example/a".into(),
            selectors: vec!["unix:path:/a".into(), "unix:uid:1".into()],
            missing,
            has_svid: true,
            absence: String::new(),
        };
        let why = |candidates: Vec<Candidate>, entries: u32| WhyResponse {
            pid: 7,
            selectors: vec!["unix:uid:2".into()],
            unknown: vec!["unix:path (permission denied)".into()],
            candidates,
            entries,
        };
        let check = |why: WhyResponse, parts: &[&str]| {
            let text = why_text(&why);
            for part in parts {
                assert!(text.contains(part), "`{part}` is missing from:\n{text}");
            }
        };
        check(
            why(vec![], 0),
            &[
                "process 7 has\n  unix:uid:2\n",
                "not known: unix:path (permission denied)",
                "does `parent` name it?",
            ],
        );
        check(
            why(vec![candidate(vec![])], 1),
            &["fits    spiffe://prod.example/a  3f2a"],
        );
        let without = |absence: &str| Candidate {
            has_svid: false,
            absence: absence.into(),
            ..candidate(vec![])
        };
        check(
            why(vec![without("nobody asks for it")], 1),
            &["fits    spiffe://prod.example/a  3f2a\n        nobody asks for it\n"],
        );
        assert_eq!(why_json(&why(vec![without("x")], 1))["candidates"][0]["absence"], "x");
        check(why(vec![without("")], 1), &["not issued yet; the agent's log says why"]); // an agent of before
        let other = || missing("unix:uid:1", "unix:uid:2", "");
        check(
            why(vec![candidate(vec![other()])], 3),
            &[
                "nearly  spiffe://prod.example/a  3f2a",
                "it demands unix:uid:1, and the process has unix:uid:2",
                "hoplite entry update 3f2a --selector 'unix:path:/a' --selector 'unix:uid:2'",
                "no entry fits, of 3",
            ],
        );
        let unknown = missing("unix:path:/a", "", "permission denied");
        let both = why(vec![candidate(vec![other(), unknown])], 3);
        assert!(both.candidates[0].update().is_none(), "nothing to put in its place");
        check(
            both,
            &["which is not known of the process: permission denied; let the agent find it out"],
        );
    }
}
