//! One attestation over the wire: what a node shows, a challenge perhaps, and its first SVID.

use std::time::Duration;

use hoplite_host::clock;
use hoplite_identity::SpiffeId;
use hoplite_wire::ca as wire;
use hoplite_wire::ca::attest_request::Step as Says;
use hoplite_wire::ca::attest_response::Step as Answers;
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use crate::api::status::Blame;
use crate::attestors::admit::{Admit, NotAdmitted};
use crate::attestors::{Attestor, Attestors, Node, NotProven, PROOF_BYTES_MAX, Shown};
use crate::issuance::{Minted, SubjectKey};
use crate::issuer::Issuer;
use crate::registry::Registry;
use crate::write::WriteError;

/// From the first word to the last. Keys of an issuer may have to be fetched in between.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);

/// The longest answer to a challenge, in bytes: a signature.
const ANSWER_BYTES_MAX: usize = 8 << 10;

/// What one exchange has to do with.
pub(crate) struct Attesting {
    pub(crate) attestors: Attestors,
    pub(crate) registry: Registry,
    pub(crate) issuer: Issuer,
}

/// What became of it, for the log.
pub(crate) struct Attested {
    /// The attestor and its kind, if there is one of that name.
    pub(crate) attestor: Option<(String, &'static str)>,
    /// Who the node is, as far as that was found out.
    pub(crate) agent: Option<SpiffeId>,
    /// The digest of its identity, and what was attested.
    pub(crate) identity: String,
    pub(crate) selectors: String,
    pub(crate) result: Result<Minted, Refusal>,
}

/// Why not: for the log, and for the peer.
pub(crate) struct Refusal {
    pub(crate) reason: String,
    pub(crate) status: Status,
}

/// The two directions of the stream.
pub(crate) struct Line {
    requests: Streaming<wire::AttestRequest>,
    answers: mpsc::Sender<Result<wire::AttestResponse, Status>>,
}

// === impl Line ===

impl Line {
    pub(crate) fn new(
        requests: Streaming<wire::AttestRequest>,
        answers: mpsc::Sender<Result<wire::AttestResponse, Status>>,
    ) -> Self {
        Self { requests, answers }
    }

    async fn hears(&mut self) -> Option<Says> {
        self.requests.message().await.ok().flatten()?.step
    }

    pub(crate) async fn says(&self, step: Result<Answers, Status>) {
        let response = step.map(|step| wire::AttestResponse { step: Some(step) });
        let _ = self.answers.send(response).await; // a node that hung up hears nothing
    }
}

#[tonic::async_trait]
impl Node for Line {
    async fn challenge(&mut self, challenge: Vec<u8>) -> Option<Vec<u8>> {
        self.says(Ok(Answers::Challenge(challenge))).await;
        match self.hears().await {
            Some(Says::Answer(answer)) => Some(answer).filter(|answer| answer.len() <= ANSWER_BYTES_MAX),
            Some(Says::Begin(_)) | None => None,
        }
    }
}

// === impl Refusal ===

impl Refusal {
    fn of(status: Status) -> Self {
        Self {
            reason: status.message().to_owned(),
            status,
        }
    }
}

impl From<NotProven> for Refusal {
    fn from(error: NotProven) -> Self {
        let short = error.short();
        Self {
            reason: error.to_string(),
            status: match error {
                NotProven::Malformed(_) => Status::invalid_argument(short),
                NotProven::Refused(_) => Status::permission_denied(short),
                NotProven::Unavailable(_) => Status::unavailable(short),
            },
        }
    }
}

impl From<WriteError<NotAdmitted>> for Refusal {
    fn from(error: WriteError<NotAdmitted>) -> Self {
        Self {
            reason: error.to_string(),
            status: error.into(),
        }
    }
}

impl Blame for NotAdmitted {
    fn status(&self) -> Status {
        match self {
            Self::Mint(_) => Status::unavailable(self.short()),
            _ => Status::permission_denied(self.short()),
        }
    }
}

// === impl Attesting ===

impl Attesting {
    /// Hears what the node shows, and decides. Never longer than [`PATIENCE`].
    pub(crate) async fn run(&self, line: &mut Line) -> Attested {
        let mut attested = Attested {
            attestor: None,
            agent: None,
            identity: String::new(),
            selectors: String::new(),
            result: Err(Refusal::of(Status::deadline_exceeded("this took too long"))),
        };
        let decided = tokio::time::timeout(PATIENCE, self.decide(line, &mut attested)).await;
        if let Ok(decided) = decided {
            attested.result = decided;
        }
        attested
    }

    async fn decide(&self, line: &mut Line, attested: &mut Attested) -> Result<Minted, Refusal> {
        let Some(Says::Begin(begin)) = line.hears().await else {
            return Err(Refusal::of(Status::unauthenticated(
                "the first message says which attestor, and shows a proof",
            )));
        };
        if begin.proof.iter().map(Vec::len).sum::<usize>() > PROOF_BYTES_MAX {
            return Err(Refusal::of(Status::invalid_argument(
                "the proof is longer than 65536 bytes",
            )));
        }
        let Some(attestor) = self
            .attestors
            .get(&begin.attestor)
            .filter(|attestor| attestor.kind == begin.kind)
        else {
            let what = format!("{} of kind {}", begin.attestor, begin.kind);
            let what: String = what.escape_debug().take(160).collect();
            return Err(Refusal {
                reason: format!(
                    "this CA has no attestor `{what}`; it stands in `[[attestor]]` of its configuration, and here in `[join]`"
                ),
                status: Status::not_found(
                    "this CA has no attestor of this name and kind; compare `[join]` with the CA's configuration",
                ),
            });
        };
        attested.attestor = Some((attestor.name.clone(), attestor.kind));
        let key = SubjectKey::from_csr(&begin.csr).map_err(|error| Refusal::of(error.into()))?;
        self.attest(attestor, &begin, key, line, attested).await
    }

    async fn attest(
        &self,
        attestor: &Attestor,
        begin: &wire::AttestBegin,
        key: SubjectKey,
        line: &mut Line,
        attested: &mut Attested,
    ) -> Result<Minted, Refusal> {
        let shown = Shown {
            proof: &begin.proof,
            csr: &begin.csr,
        };
        let proven = attestor.attest(shown, line, clock::now()).await?;
        let trust_domain = self
            .registry
            .index()
            .authority
            .bundle()
            .map(|bundle| bundle.trust_domain().clone());
        let trust_domain = trust_domain.ok_or_else(|| Refusal::of(Status::unavailable("there is no trust bundle")))?;
        let texts: Vec<String> = proven.selectors.iter().map(ToString::to_string).collect();
        attested.selectors = texts.join(" ");
        let (agent, identity) = attestor.names(&trust_domain, &proven)?;
        attested.agent = Some(agent.clone());
        attested.identity.clone_from(&identity);
        let (issuer, now) = (self.issuer.clone(), clock::now());
        let expired = self.registry.index().tokens.expired(now);
        let admit = Admit {
            agent,
            by: attestor.name.clone(),
            identity,
            selectors: proven.selectors,
            bearer: proven.bearer,
            key: key.fingerprint(),
            now,
            expired,
            mint: move |agent: &SpiffeId| issuer.agent(agent, &key, now),
        };
        Ok(self.registry.write(admit).await?)
    }
}
