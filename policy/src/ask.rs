//! Questions that open nothing: tests, explanations and replays ask what would be decided.

use crate::decide::{Decision, decide_as_given, decide_uncounted, unknown_header};
use crate::evaluate::CallFacts;
use crate::request::{AuthzRequest, Caller, Transport};
use crate::undecidable::Undecidable;
use crate::{CanonicalRequest, Route, Snapshot};
use cedar_policy::Context;
use hoplite_identity::{ServiceName, SpiffeId};
use std::net::IpAddr;
use std::time::SystemTime;

/// A request as people suppose one.
#[derive(Debug, Clone)]
pub struct Ask {
    /// Who would call.
    pub principal: SpiffeId,
    /// The service that would be called.
    pub service: ServiceName,
    /// What would be asked of it.
    pub what: Asked,
    /// The address it would come from.
    pub source: IpAddr,
    /// When; policies see the whole second.
    pub now: SystemTime,
}

/// What would be asked of the service.
#[derive(Debug, Clone)]
pub enum Asked {
    /// An L4 connection.
    Connect,
    /// An HTTP request; its route is that of the snapshot's route table. It should be read with the headers that the
    /// snapshot selects, see [`WhatIf::lacks_a_header`].
    Http(CanonicalRequest),
}

/// What would be decided. It holds a decision and never gives it away, so that no [`Permit`](crate::Permit) can come of
/// it:
///
/// ```compile_fail
/// fn open(supposed: hoplite_policy::WhatIf) -> hoplite_policy::Permit {
///     supposed.decision().permit().unwrap()
/// }
/// ```
#[derive(Debug)]
pub struct WhatIf {
    request: AuthzRequest,
    decision: Decision,
    route: Option<Route>,
    lacks_a_header: bool,
}

/// What would be decided of a call whose entities and context somebody else gave. As [`WhatIf`], it never gives its decision
/// away.
#[derive(Debug)]
pub struct WhatIfGiven(Decision);

// === impl Snapshot ===

impl Snapshot {
    /// What would be decided. Nothing is counted.
    pub fn what_if(&self, ask: &Ask) -> WhatIf {
        let transport = Transport::new(ask.source);
        self.what_if_on(ask, &transport)
    }

    /// What would be decided from an address whose transport is at hand, for many questions: making one costs more than a decision.
    pub fn what_if_on(&self, ask: &Ask, transport: &Transport) -> WhatIf {
        let (route, request) = ask.request(self, transport);
        let unknown = self
            .evaluator()
            .ok()
            .and_then(|evaluator| unknown_header(self, evaluator, &request).ok().flatten());
        WhatIf {
            lacks_a_header: unknown.is_some(),
            decision: decide_uncounted(self, &request),
            request,
            route,
        }
    }

    /// What would be decided of a call whose entities and context somebody else gives, as Cedar's own tests do: by every
    /// policy, as it is written.
    pub fn what_if_given(&self, facts: &CallFacts, context: &Context) -> WhatIfGiven {
        WhatIfGiven(decide_as_given(self, facts, context))
    }
}

// === impl Ask ===

impl Ask {
    fn request(&self, snapshot: &Snapshot, transport: &Transport) -> (Option<Route>, AuthzRequest) {
        let caller = Caller::supposed(&self.principal);
        match &self.what {
            Asked::Connect => (None, AuthzRequest::connect(caller, &self.service, transport, self.now)),
            Asked::Http(http) => {
                let route = snapshot.routes().route(&self.service, http);
                let request = AuthzRequest::http(caller, &self.service, &route, http, transport, self.now);
                (Some(route), request)
            }
        }
    }

    /// What Cedar would be asked, without asking it.
    ///
    /// # Errors
    /// Why no policy can be asked about this.
    pub fn facts(&self, snapshot: &Snapshot) -> Result<(CallFacts, Context), Undecidable> {
        let (_, request) = self.request(snapshot, &Transport::new(self.source));
        Ok((request.call()?, request.context()?))
    }
}

// === impl WhatIf ===

impl WhatIf {
    /// The decision that would be made.
    pub fn decision(&self) -> &Decision {
        &self.decision
    }

    /// Whether the answer may depend on a header of which nothing is known. The decision is an error then.
    pub fn lacks_a_header(&self) -> bool {
        self.lacks_a_header
    }

    /// The action's name: `connect`, a method, or `other`.
    pub fn action(&self) -> &'static str {
        self.request.action()
    }

    /// The route the request would have; none for a connection.
    pub fn route(&self) -> Option<&Route> {
        self.route.as_ref()
    }

    /// Who would do what to what, as Cedar is asked.
    ///
    /// # Errors
    /// Why no policy can be asked: then the decision is an error that says so.
    pub fn facts(&self) -> Result<CallFacts, Undecidable> {
        self.request.call()
    }

    /// Under which circumstances, as Cedar is asked.
    ///
    /// # Errors
    /// As [`facts`](Self::facts).
    pub fn context(&self) -> Result<Context, Undecidable> {
        self.request.context()
    }
}

// === impl WhatIfGiven ===

impl WhatIfGiven {
    /// The decision that would be made.
    pub fn decision(&self) -> &Decision {
        &self.0
    }
}
