//! Why a process has the identities that it has, or none: for operators of the node, and for each process about itself.

use std::sync::Arc;

use hoplite_decision::reporting::unix;
use hoplite_host::clock;
use hoplite_identity::Selector;
use hoplite_wire::agent::diagnosis_server::Diagnosis;
use hoplite_wire::agent::{
    AgentStatus, Candidate, Kept, Missing, RefusalCount, ShowStatusRequest, WhyRequest, WhyResponse,
};
use tonic::{Request, Response, Status};

use crate::attest::other::{self, NoProcess};
use crate::attest::{Attestation, LocalProcess};
use crate::socket::admission::{admit, check_header};
use crate::socket::session::Sessions;
use crate::supply::near::{Lack, Near};

/// Entries that nearly fit and are told: people read them.
const NEAR_MAX: usize = 10;

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct DiagnosisService {
    sessions: Sessions,
    /// Who runs the agent may ask about everybody.
    own_uid: u32,
}

/// What a caller may be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asker {
    /// Everything about every process of the node.
    Operator,
    /// About itself, and of entries only those that it fits or shares something with: the others' are not its business.
    Workload,
}

// === impl DiagnosisService ===

impl DiagnosisService {
    pub(crate) fn new(sessions: Sessions) -> Self {
        let own_uid = rustix::process::geteuid().as_raw();
        Self { sessions, own_uid }
    }
}

#[tonic::async_trait]
impl Diagnosis for DiagnosisService {
    async fn why(&self, request: Request<WhyRequest>) -> Result<Response<WhyResponse>, Status> {
        check_header(&request)?;
        let (caller, _slot) = admit(request.extensions())?;
        let asker = Asker::of(caller.uid, self.own_uid);
        let process = match request.get_ref().pid {
            pid if pid == 0 || pid == caller.pid => Arc::clone(&caller),
            pid if asker == Asker::Operator => Arc::new(other::process(pid)?),
            _ => return Err(only_operators(&caller, self.own_uid)),
        };
        let Some(supply) = self.sessions.supply.borrow().clone() else {
            return Err(Status::unavailable(
                "the agent has not heard from its CA since it started, so it knows no entry; its log says why",
            ));
        };
        let seen = self.sessions.attestor.attest(&process).await;
        let seen = seen.map_err(|_| Status::not_found(NoProcess::Absent(process.pid).to_string()))?;
        let nearest = supply.nearest(&seen.selectors, NEAR_MAX);
        let candidates = nearest
            .iter()
            .filter(|near| asker == Asker::Operator || near.concerns(&seen.selectors))
            .map(|near| candidate(near, &seen));
        Ok(Response::new(WhyResponse {
            pid: process.pid,
            candidates: candidates.collect(),
            selectors: texts(&seen.selectors),
            unknown: seen.unknown,
            entries: count(supply.registered()),
        }))
    }

    async fn show_status(&self, request: Request<ShowStatusRequest>) -> Result<Response<AgentStatus>, Status> {
        check_header(&request)?;
        let (caller, _slot) = admit(request.extensions())?;
        if Asker::of(caller.uid, self.own_uid) != Asker::Operator {
            return Err(only_operators(&caller, self.own_uid));
        }
        let supply = self.sessions.supply.borrow().clone();
        let refusals = self.sessions.refused.counts();
        let kept = self.sessions.kept.state();
        let heard = self.sessions.kept.heard();
        let dismissed = supply.as_ref().and_then(|supply| supply.dismissed());
        let troubles = self.sessions.troubles.now(clock::now());
        Ok(Response::new(AgentStatus {
            in_step: heard.is_some() && troubles.is_empty(),
            troubles,
            heard_at_unix: heard.or(kept.restored).map_or(0, unix),
            from_disk: heard.is_none() && kept.restored.is_some(),
            dismissed: dismissed.as_deref().unwrap_or_default().to_owned(),
            kept: Some(Kept {
                key: kept.key.to_owned(),
                key_text: kept.key_text,
                failure: kept.failure.unwrap_or_default(),
                doubt: kept.doubt.unwrap_or_default(),
                written_at_unix: kept.written.map_or(0, unix),
                waiting: kept.waiting,
            }),
            entries: count(supply.as_ref().map_or(0, |supply| supply.len())),
            without_svid: count(supply.as_ref().map_or(0, |supply| supply.without_svid())),
            peer_process: self.sessions.peer_process.to_string(),
            refusals: refusals
                .map(|(cause, count)| RefusalCount {
                    cause: cause.to_owned(),
                    count,
                })
                .into(),
        }))
    }
}

fn only_operators(caller: &LocalProcess, own_uid: u32) -> Status {
    let LocalProcess { pid, uid, .. } = caller;
    Status::permission_denied(format!(
        "process {pid} of user {uid} may ask about itself only; the agent's own user ({own_uid}) and root may ask about others"
    ))
}

fn candidate(near: &Near, seen: &Attestation) -> Candidate {
    Candidate {
        entry_id: near.id.to_string(),
        spiffe_id: near.name.clone(),
        selectors: texts(&near.selectors),
        missing: near.missing.iter().map(|lack| missing(lack, seen)).collect(),
        has_svid: near.absence.is_none(),
        absence: match near.missing.is_empty() {
            true => near.absence.as_ref().map(ToString::to_string).unwrap_or_default(),
            false => String::new(),
        },
    }
}

fn missing(lack: &Lack, seen: &Attestation) -> Missing {
    let kind = match lack {
        Lack::Selector(selector) => selector.kind(),
        Lack::Value(kind) => *kind,
        Lack::Name(reason) => {
            return Missing {
                selector: "a name".to_owned(),
                instead: String::new(),
                reason: reason.to_string(),
            };
        }
    };
    let instead = seen.selectors.iter().find(|other| other.kind() == kind);
    let unknown = || {
        // `unix:path (permission denied)` without the kind, which stands before it already.
        let text = seen.unknown.iter().find_map(|text| text.strip_prefix(kind.as_str()));
        match text {
            Some(reason) => reason.trim_matches([' ', '(', ')']).to_owned(),
            None => "the process has none of this kind".to_owned(),
        }
    };
    Missing {
        selector: lack.to_string(),
        instead: instead.map(ToString::to_string).unwrap_or_default(),
        reason: instead.map_or_else(unknown, |_| String::new()),
    }
}

fn texts<'a>(selectors: impl IntoIterator<Item = &'a Selector>) -> Vec<String> {
    selectors.into_iter().map(ToString::to_string).collect()
}

fn count(entries: usize) -> u32 {
    u32::try_from(entries).unwrap_or(u32::MAX)
}

// === impl Asker ===

impl Asker {
    fn of(uid: u32, own_uid: u32) -> Self {
        match uid == own_uid || uid == 0 {
            true => Self::Operator,
            false => Self::Workload,
        }
    }
}

impl From<NoProcess> for Status {
    fn from(error: NoProcess) -> Self {
        let text = error.to_string();
        match error {
            NoProcess::Absent(_) => Self::not_found(text),
            NoProcess::Unreadable(..) | NoProcess::NoUser(_) => Self::failed_precondition(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::socket::admission::HEADER;
    use crate::testing::{World, own};
    use hoplite_wire::agent::diagnosis_client::DiagnosisClient;
    use std::process::{Command, Stdio};
    use tonic::Code;

    fn asked<T>(message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert(HEADER, "true".parse().unwrap());
        request
    }

    #[test]
    fn who_may_ask() {
        assert_eq!(Asker::of(0, 1000), Asker::Operator);
        assert_eq!(Asker::of(1000, 1000), Asker::Operator);
        assert_eq!(Asker::of(1001, 1000), Asker::Workload);
    }

    #[tokio::test]
    async fn another_process_is_explained() {
        let world = World::start();
        let mut client = DiagnosisClient::new(world.dial().await);
        let before = client.why(asked(WhyRequest { pid: 0 })).await.unwrap_err();
        assert_eq!(before.code(), Code::Unavailable, "{before:?}");

        let user = own();
        world.publish([
            world.entry("/fits", std::slice::from_ref(&user)),
            world.entry("/near", &[user.clone(), "unix:path:/opt/other".into()]),
            world.entry("/launched", &[user.clone(), "launch:name:edge".into()]),
        ]);
        let mut child = Command::new("/bin/sleep")
            .arg("60")
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let why = client.why(asked(WhyRequest { pid })).await.unwrap().into_inner();
        assert_eq!((why.pid, why.entries), (pid, 3));
        assert!(why.selectors.contains(&user), "{why:?}");
        let told: Vec<_> = why
            .candidates
            .iter()
            .map(|c| (c.spiffe_id.rsplit('/').next().unwrap(), c.missing.len(), c.has_svid))
            .collect();
        assert_eq!(told, [("fits", 0, true), ("launched", 1, true), ("near", 1, true)]);
        let of = |n: usize| &why.candidates[n].missing[0];
        assert_eq!((&*of(1).selector, &*of(1).instead), ("launch:name:edge", ""));
        assert_eq!(of(1).reason, "the process has none of this kind");
        let path = std::fs::canonicalize("/bin/sleep").unwrap();
        assert_eq!(of(2).instead, format!("unix:path:{}", path.display()));

        child.kill().unwrap();
        child.wait().unwrap();
        let gone = client.why(asked(WhyRequest { pid })).await.unwrap_err();
        assert_eq!(gone.code(), Code::NotFound, "{gone:?}");
        let bare = client.why(WhyRequest { pid: 0 }).await.unwrap_err();
        assert_eq!(bare.code(), Code::InvalidArgument);
    }

    #[tokio::test]
    async fn the_status_counts_what_was_refused() {
        use hoplite_wire::sds::DiscoveryRequest;
        use hoplite_wire::sds::secret_discovery_service_client::SecretDiscoveryServiceClient;

        let world = World::start();
        world.publish([world.entry("/web", &[own()])]);
        let channel = world.dial().await;
        let mut sds = SecretDiscoveryServiceClient::new(channel.clone());
        for names in [["default", "misspelt"], ["misspelt", "ROOTCA"]] {
            let request = DiscoveryRequest {
                resource_names: names.map(str::to_owned).into(),
                ..DiscoveryRequest::default()
            };
            sds.fetch_secrets(request).await.unwrap();
        }
        let many = DiscoveryRequest {
            resource_names: vec!["a".to_owned(); 2_000],
            ..DiscoveryRequest::default()
        };
        sds.fetch_secrets(many).await.unwrap_err();
        let mut client = DiagnosisClient::new(channel);
        let status = client
            .show_status(asked(ShowStatusRequest {}))
            .await
            .unwrap()
            .into_inner();
        assert_eq!((status.in_step, status.entries, status.without_svid), (true, 1, 0));
        let count = |cause: &str| status.refusals.iter().find(|r| r.cause == cause).unwrap().count;
        assert_eq!((count("unknown secret"), count("call beyond a bound")), (2, 1));
    }
}
