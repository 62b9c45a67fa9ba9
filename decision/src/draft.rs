//! What is known of a call before policy is asked, and the one place where that becomes a record.

use std::iter;
#[cfg(test)]
use std::time::SystemTime;

use hoplite_audit::{Outcome, Phase, Record};
use hoplite_host::clock;
use hoplite_identity::{ServiceName, SpiffeId, VerifiedPeer};
use hoplite_policy::limits::METHOD_BYTES_MAX;
use hoplite_policy::{Ambiguous, Caller, CanonicalRequest, SelectedHeaders};
use http::StatusCode;

/// What a decision point is told of a call, besides what is asked for.
#[derive(Debug)]
pub struct Facts<'a> {
    /// What is being decided.
    pub phase: Phase,
    /// The service that is called.
    pub service: &'a ServiceName,
    /// Who calls, and the evidence for it.
    pub witness: Witness<'a>,
    /// Where the call comes from, `ip:port`, if that is known.
    pub source: Option<String>,
    /// The trace that the call belongs to.
    pub trace_id: Option<String>,
}

/// Who has verified the caller's certificate.
#[derive(Debug, Clone, Copy)]
pub enum Witness<'a> {
    /// This process: it has ended the TLS connection itself.
    Own {
        /// The evidence.
        peer: &'a VerifiedPeer,
        /// Version and key exchange.
        tls: &'a str,
    },
    /// Another process, whose word counts.
    Other {
        /// Who calls, as it says.
        caller: Caller<'a>,
        /// Who says so.
        by: &'a SpiffeId,
    },
    /// Nobody: it is the service that this process speaks for, as whom it calls others.
    Service {
        /// As whom.
        own: &'a SpiffeId,
    },
}

/// What a decision point is told of somebody without an identity.
#[derive(Debug)]
pub struct Stranger<'a> {
    /// The service that is called.
    pub service: &'a ServiceName,
    /// Who has met the stranger, where it was not this process.
    pub vouched_by: Option<&'a SpiffeId>,
    /// Where the call comes from, if that is known.
    pub source: Option<String>,
    /// The trace that the call belongs to.
    pub trace_id: Option<String>,
}

/// Why a call is refused without asking policy.
#[derive(Debug)]
pub struct Unasked {
    /// What the caller is told.
    pub status: StatusCode,
    /// What the record says: [`Outcome::Unauthenticated`], [`Outcome::Malformed`], or an error of ours.
    pub outcome: Outcome,
    /// From a fixed set.
    pub code: &'static str,
    /// For the record.
    pub reason: String,
}

/// What can be asked for, and is granted as it was asked for: an [`HttpRequest`], or an [`Opaque`] connection.
pub trait Asked: Send + Sync {
    /// What goes on of the request, besides what policy reads.
    type Rest: HeaderFields;

    /// The request; none for a connection.
    fn http(&self) -> Option<&HttpRequest<Self::Rest>>;

    /// The request, so that the selected headers can be read into it.
    fn http_mut(&mut self) -> Option<&mut HttpRequest<Self::Rest>>;
}

/// The header fields of a request as they are forwarded.
pub trait HeaderFields: Send + Sync {
    /// All of them, each with its value; none where nobody told us any.
    fn fields(&self) -> Option<impl Iterator<Item = (&str, &[u8])>>;
}

/// A request: how it is read, and the rest of it that goes on.
#[derive(Debug)]
pub struct HttpRequest<F> {
    /// The one reading of it. Its selected headers are those of the policy that judged it.
    pub canonical: CanonicalRequest,
    /// Its header fields.
    pub rest: F,
}

/// A connection that is carried as bytes, whatever they are.
#[derive(Debug)]
pub struct Opaque<S>(pub S);

/// No header fields at all: the rest of a connection.
#[derive(Debug, Clone, Copy)]
pub enum NoFields {}

/// A record that is begun: what is known of a call. Until policy was asked it says that nothing was decided.
#[must_use = "what is neither judged nor refused is not recorded"]
#[derive(Debug)]
pub struct Draft<'a> {
    pub(crate) record: Record,
    pub(crate) caller: Caller<'a>,
    pub(crate) service: &'a ServiceName,
}

// === impl Witness ===

impl<'a> Witness<'a> {
    fn caller(self) -> Caller<'a> {
        match self {
            Self::Own { peer, .. } => peer.into(),
            Self::Other { caller, .. } => caller,
            Self::Service { own } => Caller::danger_vouched_for(own),
        }
    }
}

// === impl Stranger ===

impl Stranger<'_> {
    pub(crate) fn record(self, unasked: &Unasked) -> Record {
        let mut record = Record::new(Phase::Handshake, unasked.outcome, self.service.as_str(), clock::now());
        record.vouched_by = self.vouched_by.map(ToString::to_string);
        record.source = self.source;
        record.trace_id = self.trace_id;
        record.reason = Some(unasked.recorded());
        record
    }
}

// === impl Unasked ===

impl Unasked {
    /// It is not known who calls.
    pub fn unauthenticated(code: &'static str, reason: impl Into<String>) -> Self {
        Self {
            status: StatusCode::UNAUTHORIZED,
            outcome: Outcome::Unauthenticated,
            code,
            reason: reason.into(),
        }
    }

    /// What is asked for can be read in no way, or in more than one.
    pub fn malformed(code: &'static str, reason: impl Into<String>) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            outcome: Outcome::Malformed,
            code,
            reason: reason.into(),
        }
    }

    /// With another status.
    #[must_use]
    pub fn with_status(self, status: StatusCode) -> Self {
        Self { status, ..self }
    }

    fn recorded(&self) -> String {
        format!("{}: {}", self.code, self.reason)
    }
}

impl From<Ambiguous> for Unasked {
    fn from(ambiguous: Ambiguous) -> Self {
        Self::malformed(ambiguous.code(), ambiguous.to_string()).with_status(status_of(&ambiguous))
    }
}

pub(crate) fn status_of(ambiguous: &Ambiguous) -> StatusCode {
    StatusCode::from_u16(ambiguous.status()).unwrap_or(StatusCode::BAD_REQUEST)
}

// === impl HttpRequest ===

impl<F: HeaderFields> HttpRequest<F> {
    /// Reads the selected headers. Where none is selected or none are known, nothing is known of any.
    pub(crate) fn read_headers(&mut self, selected: &SelectedHeaders) -> Result<(), Ambiguous> {
        match self.rest.fields() {
            Some(fields) if !selected.is_empty() => self.canonical.read_headers(selected, fields),
            _ => Ok(()),
        }
    }

    /// The request as another policy reads it, which selects headers of its own. None where it would be no other.
    pub(crate) fn read_again(&self, selected: &SelectedHeaders) -> Option<Result<CanonicalRequest, Ambiguous>> {
        let fields = self.rest.fields().filter(|_| !selected.is_empty())?;
        Some(self.canonical.clone().with_headers(selected, fields))
    }
}

impl<F: HeaderFields> Asked for HttpRequest<F> {
    type Rest = F;

    fn http(&self) -> Option<&Self> {
        Some(self)
    }

    fn http_mut(&mut self) -> Option<&mut Self> {
        Some(self)
    }
}

/// A request, or a connection of which whoever asks keeps the bytes to himself.
impl<F: HeaderFields> Asked for Option<HttpRequest<F>> {
    type Rest = F;

    fn http(&self) -> Option<&HttpRequest<F>> {
        self.as_ref()
    }

    fn http_mut(&mut self) -> Option<&mut HttpRequest<F>> {
        self.as_mut()
    }
}

// === impl Opaque ===

impl<S: Send + Sync> Asked for Opaque<S> {
    type Rest = NoFields;

    fn http(&self) -> Option<&HttpRequest<NoFields>> {
        None
    }

    fn http_mut(&mut self) -> Option<&mut HttpRequest<NoFields>> {
        None
    }
}

impl HeaderFields for NoFields {
    fn fields(&self) -> Option<impl Iterator<Item = (&str, &[u8])>> {
        None::<iter::Empty<_>>
    }
}

// === impl Draft ===

impl<'a> Draft<'a> {
    /// Begins the record of a call.
    pub fn new(facts: Facts<'a>) -> Self {
        let Facts {
            phase,
            service,
            witness,
            source,
            trace_id,
        } = facts;
        // Whatever else it comes to is said where it is decided; until then the record says that nothing was.
        let mut record = Record::new(phase, Outcome::Error, service.as_str(), clock::now());
        let caller = witness.caller();
        record.principal = Some(caller.id().to_string());
        match witness {
            Witness::Own { peer, tls } => {
                record.peer_serial = Some(peer.serial().to_owned());
                record.peer_not_after = Some(peer.not_after());
                record.tls = Some(tls.to_owned());
            }
            Witness::Other { by, .. } => record.vouched_by = Some(by.to_string()),
            Witness::Service { .. } => {}
        }
        record.source = source;
        record.trace_id = trace_id;
        Self {
            record,
            caller,
            service,
        }
    }

    /// Says what is asked for: the method as it was sent, whatever it is, or `connect`.
    pub fn action(mut self, action: &str) -> Self {
        let bounded = if action.len() <= METHOD_BYTES_MAX {
            action
        } else {
            "other"
        };
        bounded.clone_into(&mut self.record.action);
        self
    }

    /// As of another moment than now.
    #[cfg(test)]
    pub(crate) fn at(mut self, moment: SystemTime) -> Self {
        self.record.at = moment;
        self
    }

    /// Says which request it is about, where policy is not asked about it.
    pub fn about(mut self, request: &CanonicalRequest) -> Self {
        self.record.host = Some(request.host().to_owned());
        self.record.path = Some(request.path().to_owned());
        self
    }

    /// The record of a refusal without asking policy.
    pub(crate) fn refused(mut self, unasked: &Unasked) -> Record {
        self.record.outcome = unasked.outcome;
        self.record.reason = Some(unasked.recorded());
        self.record
    }
}
