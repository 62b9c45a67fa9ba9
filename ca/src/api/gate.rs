//! The gate before the admin API: who calls, over which way, and whether there is anything that they may call; asked before a byte
//! of what they send is read.

use std::convert::Infallible;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::SystemTime;

use hoplite_host::clock;
use hoplite_host::refusals::Refusals;
use hoplite_identity::{SpiffeId, VerifiedPeer};
use hoplite_wire::Begins;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;

use crate::acts::{Act, Acts};
use crate::api::status::ours;
use crate::listener::AgentCaller;
use crate::operators::operator::{NoOperator, authorize};
use crate::registry::Registry;
use crate::rights::action::Action;
use crate::rights::words::{Way, Who};
use crate::rights::{Held, Rights};

/// Who may pass. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Gate(Arc<Shared>);

struct Shared {
    registry: Registry,
    rights: Rights,
    acts: Acts,
    /// By who was refused, and what.
    refusals: Refusals<(String, &'static str)>,
}

/// Whoever is at the other end of a connection to the admin API.
pub(crate) trait Calls: Begins {
    /// Who it is, if somebody of whom the policies can be asked.
    fn who(&self, gate: &Gate) -> Result<Who, Status>;

    /// How it came.
    fn way(&self) -> Way;

    /// The certificate that it showed.
    fn shown(&self) -> Option<Shown>;

    /// As the log names it when it is not known who it is.
    fn stranger(&self) -> String;
}

/// A certificate that was shown.
#[derive(Debug, Clone)]
pub(crate) struct Shown {
    pub(crate) spiffe_id: SpiffeId,
    pub(crate) serial: String,
    pub(crate) not_after: SystemTime,
}

/// A call that has passed. In the extensions of its request; only a [`Guard`] makes one.
#[derive(Clone)]
pub(crate) struct Admitted {
    pub(super) who: Who,
    pub(super) action: Action,
    pub(super) way: Way,
    pub(super) held: Held,
    pub(super) shown: Option<Shown>,
    pub(super) gate: Gate,
}

/// The admin API behind its gate, for callers of this kind.
pub(crate) struct Guard<S, C> {
    service: S,
    gate: Gate,
    _caller: PhantomData<fn() -> C>,
}

// === impl Gate ===

impl Gate {
    pub(crate) fn new(registry: Registry, rights: Rights, acts: Acts) -> Self {
        Self(Arc::new(Shared {
            registry,
            rights,
            acts,
            refusals: Refusals::default(),
        }))
    }

    /// Whether the owner of a verified certificate is an agent, a nested CA, or somebody who may call anything of the admin API, so that
    /// its connection may last.
    pub(crate) fn is_known(&self, peer: &VerifiedPeer) -> bool {
        let id = peer.spiffe_id();
        // Whoever signs under a nested CA could call itself an agent here.
        let is_ours = self.0.registry.index().authority.is_own(peer.signer());
        if is_ours && (id.is_agent() || id.nested_ca().is_some()) {
            return true;
        }
        let who = self.who(Some(peer));
        who.is_ok_and(|who| self.0.rights.now().may_call(&who))
    }

    /// Who shows this certificate.
    fn who(&self, peer: Option<&VerifiedPeer>) -> Result<Who, NoOperator> {
        let peer = peer.ok_or(NoOperator::NoCertificate)?;
        let (id, now) = (peer.spiffe_id(), clock::now());
        // Whoever signs under a nested CA could call itself whatever a policy here speaks of.
        if !self.0.registry.index().authority.is_own(peer.signer()) {
            return Err(NoOperator::NotOfThisCa(id.clone()));
        }
        if !id.is_reserved() {
            return if now < peer.not_after() {
                Ok(Who::Workload(id.clone()))
            } else {
                Err(NoOperator::Expired {
                    not_after: peer.not_after().into(),
                    now: now.into(),
                })
            };
        }
        let index = self.0.registry.index();
        let operator = id.operator().and_then(|name| index.operators.get(name));
        authorize(operator, peer.leaf(), now).map(|operator| Who::Operator(Arc::clone(operator)))
    }

    /// Lets a call through, or says why not.
    fn admit(&self, caller: &impl Calls, path: &str) -> Result<Admitted, Status> {
        let who = caller
            .who(self)
            .inspect_err(|status| self.tell(&caller.stranger(), caller.way().source(), "any", status))?;
        let held = self.0.rights.now();
        let Some(action) = Action::of_path(path) else {
            if !held.may_call(&who) {
                let text = format!("{who} may not call the admin API: no admin policy speaks of it");
                let status = Status::permission_denied(text);
                self.tell(&self.actor(&who), caller.way().source(), "any", &status);
                return Err(status);
            }
            let text = "this CA has no such call; is the command newer than the CA? `hoplite --version` shows its own";
            return Err(Status::unimplemented(text));
        };
        if let Err(refused) = held.may_ever(&who, action) {
            let status = Status::permission_denied(refused.to_string());
            self.tell(&self.actor(&who), caller.way().source(), action.name(), &status);
            return Err(status);
        }
        Ok(Admitted {
            who,
            action,
            way: caller.way(),
            held,
            shown: caller.shown(),
            gate: self.clone(),
        })
    }

    /// Where it is written down what is done.
    pub(super) fn acts(&self) -> &Acts {
        &self.0.acts
    }

    /// As the log of what is done names somebody.
    pub(super) fn actor(&self, who: &Who) -> String {
        who.actor(self.0.rights.trust_domain())
    }

    /// One line and one record in a while for each cause: whoever is refused may try again as fast as it can.
    pub(super) fn tell(&self, who: &str, source: Option<String>, action: &'static str, status: &Status) {
        if let Some(refused) = self.0.refusals.count((who.to_owned(), action), clock::moment()) {
            let reason = status.message();
            tracing::warn!(target: "hoplite::audit", who, action, refused, outcome = "denied", reason, "admin");
            let act = Act {
                actor: who.to_owned(),
                action,
                source,
                detail: [("refusals".to_owned(), refused.to_string())].into(),
                ..Act::default()
            };
            // Nothing rests on it: whoever was refused stays refused, and the CA ends where it can write no more.
            let _ = self.0.acts.refused(act, reason, None);
        }
    }
}

// === impl AgentCaller ===

impl Calls for AgentCaller {
    fn who(&self, gate: &Gate) -> Result<Who, Status> {
        Ok(gate.who(self.peer.as_ref())?)
    }

    fn way(&self) -> Way {
        Way::Network(self.address.ip())
    }

    fn shown(&self) -> Option<Shown> {
        self.peer.as_ref().map(|peer| Shown {
            spiffe_id: peer.spiffe_id().clone(),
            serial: peer.serial().to_owned(),
            not_after: peer.not_after(),
        })
    }

    fn stranger(&self) -> String {
        match &self.peer {
            Some(peer) => peer.spiffe_id().to_string(),
            None => self.address.ip().to_string(),
        }
    }
}

// === impl Guard ===

impl<S, C> Guard<S, C> {
    pub(crate) fn new(service: S, gate: Gate) -> Self {
        Self {
            service,
            gate,
            _caller: PhantomData,
        }
    }
}

impl<S: Clone, C> Clone for Guard<S, C> {
    fn clone(&self) -> Self {
        Self::new(self.service.clone(), self.gate.clone())
    }
}

impl<S: NamedService, C> NamedService for Guard<S, C> {
    const NAME: &'static str = S::NAME;
}

impl<S, C> Service<http::Request<Body>> for Guard<S, C>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible, Future: Send + 'static>,
    C: Calls,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let caller = request.extensions().get::<C>();
        let admitted = match caller {
            Some(caller) => self.gate.admit(caller, request.uri().path()),
            None => Err(ours(&"the caller of this connection is not known")),
        };
        match admitted {
            Ok(admitted) => {
                request.extensions_mut().insert(admitted);
                Box::pin(self.service.call(request))
            }
            Err(status) => Box::pin(std::future::ready(Ok(status.into_http()))),
        }
    }
}
