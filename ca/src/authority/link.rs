//! Another Hoplite CA as the upstream authority, of the same trust domain: this CA is nested under it.
//!
//! This CA is a workload there: an agent of the CA above runs on its machine and gives it the SVID of its entry `/hoplite/nested/<name>`. By
//! that it is known to the CA above, and by the trust bundle that comes with it that one is known here.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use hoplite_identity::{CertificateDer, HostPort, InvalidBundle, Moment, PeerVerifier, TrustBundle, TrustDomain, tls};
use hoplite_wire::ca::nested_client::NestedClient;
use hoplite_wire::ca::{self as wire, SignAuthorityRequest};
use hoplite_wire::{BadTrustBundle, FetchError, WorkloadApi, channel, trust_bundle};
use serde::Deserialize;
use tokio::time::timeout;
use tonic::Status;
use tonic::transport::Channel;

use crate::authority::trust::Certified;

/// The agent answers from memory, and the CA above signs once: whoever needs longer is away.
const PATIENCE: Duration = Duration::from_secs(10);

/// Reasons of others, in our log and on our screens.
const REASON_CHARS_MAX: usize = 200;

/// Where the CA above is, and who says there who this one is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HopliteUpstream {
    /// Where it answers, `host:port`; several if it is several CAs over one database. They are tried in this order.
    pub addresses: Vec<HostPort>,
    /// The socket of an agent of it on this machine, `unix:///…`.
    pub workload_api: String,
}

/// The way to the CA above. Clones are the same one.
#[derive(Debug, Clone)]
pub(crate) struct Link(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    settings: HopliteUpstream,
    trust_domain: TrustDomain,
    away: Mutex<Option<Away>>,
}

/// Since when it cannot be asked, and why.
#[derive(Debug, Clone)]
struct Away {
    since: SystemTime,
    reason: String,
}

/// A connection to the CA above.
pub(crate) struct Connected {
    pub(crate) client: NestedClient<Channel>,
    /// When a newer SVID is to be shown.
    pub(crate) renew_at: SystemTime,
}

/// Why the CA above does not do what is asked. One sentence for the operator.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// No identity came.
    #[error(
        "an agent of the CA above has to run on this machine, and at `{socket}` it gives this CA no identity: {source}"
    )]
    Agent {
        /// Where.
        socket: String,
        /// Why not.
        source: FetchError,
    },
    /// There is one, of something else.
    #[error(
        "the agent at `{0}` gives this CA no SVID of `/hoplite/nested/<name>`; register one for this process at the CA above: \
         docs/guide/nested-cas.md"
    )]
    NoSvid(String),
    /// Nobody answers.
    #[error("no CA above answers at {addresses}: {reason}")]
    Away {
        /// Where it was tried.
        addresses: String,
        /// What the last one gave.
        reason: String,
    },
    /// It says no.
    #[error("the CA above refuses: {0}")]
    Refused(String),
    /// What it says cannot be used.
    #[error("the CA above gives what cannot be used: {0}")]
    Answer(String),
}

// === impl LinkError ===

impl From<Status> for LinkError {
    fn from(status: Status) -> Self {
        let text: String = status.message().chars().take(REASON_CHARS_MAX).collect();
        match status.code() {
            tonic::Code::Unavailable
            | tonic::Code::Unknown
            | tonic::Code::Cancelled
            | tonic::Code::DeadlineExceeded => Self::Away {
                addresses: "its address".to_owned(),
                reason: text,
            },
            _ => Self::Refused(text),
        }
    }
}

impl From<BadTrustBundle> for LinkError {
    fn from(error: BadTrustBundle) -> Self {
        Self::Answer(error.to_string())
    }
}

impl From<InvalidBundle> for LinkError {
    fn from(error: InvalidBundle) -> Self {
        Self::Answer(error.to_string())
    }
}

// === impl Link ===

impl Link {
    pub(crate) fn new(settings: HopliteUpstream, trust_domain: TrustDomain) -> Self {
        Self(Arc::new(Shared {
            settings,
            trust_domain,
            away: Mutex::default(),
        }))
    }

    /// Connects with the SVID of now.
    pub(crate) async fn connect(&self) -> Result<Connected, LinkError> {
        let HopliteUpstream {
            addresses,
            workload_api,
        } = &self.0.settings;
        let of_agent = |source| LinkError::Agent {
            socket: workload_api.clone(),
            source,
        };
        let fetched = timeout(PATIENCE, async { WorkloadApi::open(workload_api).await?.next().await }).await;
        let silent = |_| {
            of_agent(FetchError::Unavailable(format!(
                "it is silent for {} s",
                PATIENCE.as_secs()
            )))
        };
        let identity = fetched.map_err(silent)?.map_err(of_agent)?;
        let is_ours =
            |id: &hoplite_identity::SpiffeId| id.nested_ca().is_some() && id.trust_domain() == &self.0.trust_domain;
        let svid = identity.svids.iter().find(|svid| is_ours(svid.spiffe_id()));
        let svid = svid.ok_or_else(|| LinkError::NoSvid(workload_api.clone()))?;
        let verifier = Arc::new(PeerVerifier::new(identity.bundles)?);
        let ca = self.0.trust_domain.ca();
        let config = tls::client_config(Some(svid), verifier, ca, &[b"h2"]);
        let config = config.map_err(|error| LinkError::Answer(error.to_string()))?;
        let mut reason = "none is named".to_owned();
        for address in addresses {
            match timeout(PATIENCE, channel::tls(address.to_string(), Arc::clone(&config))).await {
                Ok(Ok(channel)) => {
                    return Ok(Connected {
                        client: NestedClient::new(channel),
                        renew_at: svid.renew_at(0.0),
                    });
                }
                Ok(Err(error)) => reason = innermost(&error),
                Err(_) => reason = format!("nothing within {} s", PATIENCE.as_secs()),
            }
        }
        Err(LinkError::Away {
            addresses: self.addresses(),
            reason,
        })
    }

    /// Its trust bundle, as it sends it.
    pub(crate) fn bundle(&self, message: wire::Bundle) -> Result<TrustBundle, LinkError> {
        Ok(trust_bundle(message, &self.0.trust_domain)?)
    }

    async fn signed(&self, csr: Vec<u8>, ttl_seconds: u64) -> Result<Certified, LinkError> {
        let Connected { mut client, .. } = self.connect().await?;
        let request = SignAuthorityRequest { csr, ttl_seconds };
        let answer = timeout(PATIENCE, client.sign_authority(request)).await;
        let silent = |_| LinkError::Away {
            addresses: self.addresses(),
            reason: format!("it does not sign within {} s", PATIENCE.as_secs()),
        };
        let answer = answer.map_err(silent)??.into_inner();
        let useless = |what: &str| LinkError::Answer(what.to_owned());
        let bundle = self.bundle(answer.bundle.ok_or_else(|| useless("no trust bundle"))?)?;
        let root = CertificateDer::from(answer.root);
        if !bundle.authorities().contains(&root) {
            return Err(useless(
                "an authority under a root that its own trust bundle does not have",
            ));
        }
        let mut chain = answer.chain.into_iter().map(CertificateDer::from);
        let certificate = chain.next().ok_or_else(|| useless("no authority"))?;
        let above: Vec<_> = chain.collect();
        // By the first one this CA is known to those who join.
        let others = bundle.authorities().iter().filter(|other| **other != root).cloned();
        Ok(Certified {
            certificate,
            above,
            roots: std::iter::once(root.clone()).chain(others).collect(),
            is_nested: true,
        })
    }

    fn addresses(&self) -> String {
        let addresses = self.0.settings.addresses.iter().map(|address| format!("`{address}`"));
        addresses.collect::<Vec<_>>().join(", ")
    }

    /// It can be asked.
    pub(crate) fn is_back(&self) {
        *self.0.away.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// It cannot.
    pub(crate) fn is_away(&self, reason: String, now: SystemTime) {
        let mut away = self.0.away.lock().unwrap_or_else(PoisonError::into_inner);
        let since = away.as_ref().map_or(now, |away| away.since);
        *away = Some(Away { since, reason });
    }
}

impl Link {
    /// Has an authority signed for the key of this request. In a thread of its own: whoever asks may be in a runtime, or in none.
    pub(crate) fn ask(&self, csr: Vec<u8>, ttl_seconds: u64) -> Result<Certified, LinkError> {
        let ask = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime
                .map_err(|error| LinkError::Answer(error.to_string()))?
                .block_on(self.signed(csr, ttl_seconds))
        };
        let asked = std::thread::scope(|scope| scope.spawn(ask).join());
        asked.map_err(|_| LinkError::Answer("the thread that asked has died".to_owned()))?
    }

    /// Since when it cannot be asked, and why.
    pub(crate) fn away(&self) -> Option<String> {
        let away = self.0.away.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        let since = Moment::from(away.since);
        Some(format!("since {since}: {}", away.reason))
    }
}

/// What lies at the bottom of an error says most.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string().chars().take(REASON_CHARS_MAX).collect()
}
