//! The daemons that should run: whether their sockets are there, who may use them, whether they answer, and what they say.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use hoplite_host::clock;
use hoplite_host::files::open_regular;
use hoplite_host::socket::is_gone;
use hoplite_identity::{Leaf, Moment, pem};
use hoplite_wire::agent::Kept;
use hoplite_wire::ca::{Federation, ListAuthoritiesRequest, ListAuthoritiesResponse, ListFederationsRequest};
use serde_json::Value;
use tokio::time::timeout;

use super::finding::{CHECK_MAX, Finding, denied, fail, ok, unseen, warn};
use super::part::Part;
use crate::command::{diagnosis, reach};
use crate::output::{count, part, plain};

/// An SVID that ends so soon should have been renewed: the shortest lives are some seconds, and then this is no news.
const ENDS_SOON: Duration = Duration::from_secs(60);

/// Whether a daemon runs, as far as its socket tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lives {
    Yes,
    No,
    Unknown,
}

/// One daemon's socket, and what it says when it is asked.
pub(super) async fn look(part: &Part, findings: &mut Vec<Finding>) -> Lives {
    let (path, modes) = match part {
        Part::Ca(ca) => (&ca.admin_socket, 0o600),
        Part::Agent(agent) => (&agent.socket, agent.socket_mode.unwrap_or(0o666)),
        Part::Proxy(proxy) => (&proxy.admin_socket, 0o600),
    };
    let (finding, lives) = socket(path, modes, part);
    findings.push(finding);
    if lives != Lives::Yes {
        return lives;
    }
    let answered = timeout(CHECK_MAX, ask(part, findings)).await;
    if answered.is_err() {
        let seen = format!("{} does not answer at {}", part.name(), path.display());
        findings.push(fail("answer", seen, "look at its log, and at the load of the machine"));
    }
    Lives::Yes
}

/// Whether it is there, whose it is and who may open it.
pub(super) fn socket(path: &Path, mode: u32, of: &Part) -> (Finding, Lives) {
    let shown = path.display().to_string();
    let start = match of {
        Part::Ca(_) => "hoplite ca run",
        Part::Agent(_) => "hoplite agent run",
        Part::Proxy(_) => "hoplite proxy run",
    };
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let seen = format!("{shown} is not there: {} does not run", of.name());
            return (fail("socket", seen, format!("start it ({start})")), Lives::No);
        }
        Err(error) => return (denied("socket", &shown, &error), Lives::Unknown),
    };
    let own = metadata.mode() & 0o777;
    let seen = format!("{shown} has mode {own:04o} and belongs to user {}", metadata.uid());
    match is_gone(path) {
        Ok(true) => {
            let seen = format!("{shown} was left behind: {} is gone", of.name());
            (
                fail("socket", seen, format!("start it ({start}), which replaces it")),
                Lives::No,
            )
        }
        Err(error) => (denied("socket", &seen, &error), Lives::Unknown),
        Ok(false) if own != mode => (
            warn(
                "socket",
                seen,
                format!("its mode should be {mode:04o}: somebody has changed it, so start the daemon again"),
            ),
            Lives::Yes,
        ),
        Ok(false) => (ok("socket", seen), Lives::Yes),
    }
}

async fn ask(of: &Part, findings: &mut Vec<Finding>) {
    match of {
        Part::Ca(ca) => match ca_answers(&ca.admin_socket).await {
            Ok((answer, federations)) => {
                let trusted = answer
                    .authorities
                    .iter()
                    .filter(|authority| authority.state != "revoked")
                    .count();
                findings.push(ok("answer", format!("the CA answers, and has {trusted} in its bundle")));
                findings.push(signs(&answer, clock::now()));
                findings.extend(federations.iter().map(federated));
            }
            Err(error) => findings.push(refused("the CA", &error.to_string())),
        },
        Part::Agent(agent) => {
            let status = diagnosis::ask_status(&agent.socket).await;
            findings.extend(status.iter().filter_map(|status| kept(status.kept.as_ref()?)));
            findings.push(match status {
                Ok(status) if !status.dismissed.is_empty() => fail(
                    "answer",
                    format!("the CA has dismissed this node: {}", status.dismissed),
                    "join it with a new token (hoplite token create, hoplite join), or take it out (hoplite agent purge)",
                ),
                Ok(status) if !status.troubles.is_empty() => fail(
                    "answer",
                    status.troubles.join("; "),
                    "its log has more; docs/guide/bad-day.md says what to do",
                ),
                Ok(status) if status.from_disk => warn(
                    "answer",
                    format!(
                        "the agent serves {} from its disk, and has not heard from its CA since it started",
                        count(status.entries.into(), "entry")
                    ),
                    "its log says why; the lines `upstream` and `CA` below may",
                ),
                Ok(status) if !status.in_step => fail(
                    "answer",
                    "the agent has not heard from its CA since it started",
                    "its log says why; the lines `upstream` and `CA` below may",
                ),
                Ok(status) if status.without_svid > 0 => fail(
                    "answer",
                    format!(
                        "the agent lacks the SVIDs of {} of {} entries",
                        status.without_svid, status.entries
                    ),
                    "its log says why",
                ),
                Ok(status) => ok(
                    "answer",
                    format!(
                        "the agent has {} and all their SVIDs (peer_process = \"{}\")",
                        count(status.entries.into(), "entry"),
                        status.peer_process
                    ),
                ),
                Err(error) => refused("the agent", &error.to_string()),
            });
            findings.push(node_svid(&agent.data_dir.join("node.json"), clock::now()));
        }
        Part::Proxy(proxy) => match hoplite_proxy::admin_status(&proxy.admin_socket).await {
            Ok(status) => {
                findings.push(proxy_svid(&proxy.name, &status, clock::now()));
                findings.push(policy(&proxy.name, &status));
            }
            Err(error) => findings.push(refused(&of.name(), &error.to_string())),
        },
    }
}

/// What the agent keeps for a start without its CA.
fn kept(kept: &Kept) -> Option<Finding> {
    let remedy = "its log says more; without it a restart needs the CA";
    Some(match (kept.key.as_str(), kept.failure.as_str(), kept.doubt.as_str()) {
        ("", "", _) => return None,
        ("", failure, _) => warn(
            "kept",
            format!("the agent keeps no SVID on the disk: {failure}"),
            remedy,
        ),
        (_, "", "") => ok(
            "kept",
            format!("SVIDs are sealed on the disk; their key is {}", kept.key_text),
        ),
        (_, "", doubt) => warn(
            "kept",
            format!("what was kept before the start was not used: {doubt}"),
            remedy,
        ),
        (_, failure, _) => warn(
            "kept",
            format!("the last change is not kept on the disk: {failure}"),
            remedy,
        ),
    })
}

async fn ca_answers(socket: &Path) -> anyhow::Result<(ListAuthoritiesResponse, Vec<Federation>)> {
    let mut ca = reach::connect(socket).await?;
    let authorities = ca.list_authorities(ListAuthoritiesRequest {}).await?.into_inner();
    // An older CA has none.
    let federations = ca.list_federations(ListFederationsRequest {}).await;
    let federations = federations.map(|answer| answer.into_inner().federations);
    Ok((authorities, federations.unwrap_or_default()))
}

/// How it stands with the bundle of a foreign trust domain.
pub(super) fn federated(federation: &Federation) -> Finding {
    let Federation {
        trust_domain,
        state,
        failure,
        ..
    } = federation;
    let because = match failure.as_str() {
        "" => String::new(),
        failure => format!(": {failure}"),
    };
    let seen = format!("the trust bundle of {trust_domain} is {state}{because}");
    let remedy = "hoplite federation show, and docs/guide/federation.md";
    match state.as_str() {
        "fresh" | "by_hand" => ok("federation", seen),
        "stale" => warn("federation", seen, remedy),
        _ => fail("federation", seen, remedy),
    }
}

/// The end of the one that signs, and whether another comes after it.
pub(super) fn signs(answer: &ListAuthoritiesResponse, now: SystemTime) -> Finding {
    let signs = answer.authorities.iter().find(|authority| authority.state == "active");
    let end = signs.map_or(0, |authority| authority.not_after_unix);
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let remedy = "hoplite authority list, prepare, activate: docs/guide/authorities.md";
    match answer.warning.as_str() {
        _ if u64::try_from(end).unwrap_or_default() <= now.as_secs() => fail(
            "authority",
            format!("the one that signs ended at {}: nothing is issued", Moment(end)),
            remedy,
        ),
        "" => ok("authority", format!("the one that signs ends at {}", Moment(end))),
        warning => warn("authority", warning, remedy),
    }
}

fn refused(who: &str, error: &str) -> Finding {
    let seen = format!("{who}: {error}");
    let lower = error.to_lowercase();
    match lower.contains("permission") || lower.contains("own user") || lower.contains("may ask") {
        true => unseen("answer", seen, "run this as the daemon's user or as root"),
        false => fail("answer", seen, "look at its log"),
    }
}

/// The agent's own.
fn node_svid(file: &Path, now: SystemTime) -> Finding {
    let shown = file.display().to_string();
    let bytes = match open_regular(file).and_then(std::io::read_to_string) {
        Ok(bytes) => bytes,
        // Whether the file is there nobody knows who may not look.
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            return denied("SVID", "the agent's own", &error);
        }
        Err(error) => return denied("SVID", &shown, &error),
    };
    let kept: Value = serde_json::from_str(&bytes).unwrap_or_default();
    let chain = part(&kept, "/chain").as_str().unwrap_or_default();
    let leaf = pem::certificates(chain)
        .ok()
        .and_then(|chain| Leaf::parse(chain.first()?).ok());
    match leaf {
        Some(leaf) => ends("the agent's own", leaf.not_after(), now),
        None => fail(
            "SVID",
            format!("{shown} has none: the node has not joined"),
            "give it a token: hoplite token create",
        ),
    }
}

fn proxy_svid(name: &str, status: &Value, now: SystemTime) -> Finding {
    let end = part(status, "/svid_not_after").as_str();
    match end.and_then(|end| humantime::parse_rfc3339(end).ok()) {
        Some(end) => ends(&format!("of the proxy `{name}`"), end, now),
        None => fail(
            "SVID",
            format!("the proxy `{name}` waits for its first"),
            "register it (`hoplite entry create`); `hoplite entry why --pid PID` says what is missing",
        ),
    }
}

pub(super) fn ends(whose: &str, end: SystemTime, now: SystemTime) -> Finding {
    let shown = humantime::format_rfc3339_seconds(end);
    match end.duration_since(now) {
        Err(_) => fail(
            "SVID",
            format!("{whose} ended at {shown}"),
            "its renewal fails: look at the agent's log, and at the clock",
        ),
        Ok(left) if left < ENDS_SOON => warn(
            "SVID",
            format!("{whose} ends at {shown}, in {} s", left.as_secs()),
            "short lives end soon always; else its renewal fails, and the agent's log says why",
        ),
        Ok(_) => ok("SVID", format!("{whose} ends at {shown}")),
    }
}

/// `a.cedar:7:3: why`, as far as it is known.
fn fault(told: &Value) -> String {
    let reason = plain(part(told, "/reason"));
    let place = ["/file", "/line", "/column"].map(|key| plain(part(told, key)));
    let known = place
        .iter()
        .take_while(|part| !part.is_empty() && *part != "-" && *part != "0");
    let known: Vec<&str> = known.map(String::as_str).collect();
    match known.is_empty() {
        true if reason.is_empty() => plain(told),
        true => reason,
        false => format!("{}: {reason}", known.join(":")),
    }
}

pub(super) fn policy(name: &str, status: &Value) -> Finding {
    let alarms = part(status, "/policy/alarms").as_array().map_or(0, Vec::len);
    let faults = part(status, "/policy/faults").as_array().map_or(0, Vec::len);
    let first = |list: &str| plain(part(status, list));
    let remedy = "hoplite policy status says all";
    if part(status, "/policy/in_force") != "live" {
        let why = first("/policy/reason");
        return fail("policy", format!("the proxy `{name}` denies everything: {why}"), remedy);
    }
    if alarms > 0 {
        let alarm = first("/policy/alarms/0");
        return fail(
            "policy",
            format!("the proxy `{name}` has {alarms} alarms: {alarm}"),
            remedy,
        );
    }
    if faults > 0 {
        return warn(
            "policy",
            format!(
                "the proxy `{name}` holds on to old policies: {}",
                fault(part(status, "/policy/faults/0"))
            ),
            remedy,
        );
    }
    if part(status, "/policy/stale") == true {
        return warn(
            "policy",
            format!("the policy of the proxy `{name}` has expired"),
            "publish it anew",
        );
    }
    ok(
        "policy",
        format!(
            "the proxy `{name}` decides by revision {}",
            plain(part(status, "/policy/revision"))
        ),
    )
}
