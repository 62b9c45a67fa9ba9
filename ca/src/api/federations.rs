//! What is asked about foreign trust domains: which there are, one more, its bundle, one less, and the sets.

use std::sync::Arc;

use hoplite_host::clock;
use hoplite_identity::{
    BUNDLE_DOCUMENT_BYTES_MAX, BundleDocument, FEDERATES_WITH_MAX, FederationSet, PathPrefix, SpiffeId, TrustBundle,
    TrustDomain, check_set_name,
};
use hoplite_wire::ca as wire;
use tonic::Status;

use crate::api::admin_call::{AdminCall, Done};
use crate::api::messages::{self, unix_i64};
use crate::api::status::{Blame, ours};
use crate::federation::egress::{BundleUrl, Network};
use crate::federation::keeper::{Federation, RefreshError, Shown};
use crate::federation::records::{Endpoint, Federated, Profile};
use crate::federation::writes::{DeleteSet, End, Federate, FederationError, PutSet, Take};
use crate::record::unix_seconds;
use crate::registry::Registry;
use crate::rights::words::What;

/// Ranges of addresses that one endpoint may need.
const NETWORKS_MAX: usize = 16;

/// Federations' part of the admin API.
pub(super) struct Federations {
    registry: Registry,
    federation: Federation,
}

// === impl Federations ===

impl Federations {
    pub(super) fn new(registry: Registry, federation: Federation) -> Self {
        Self { registry, federation }
    }

    pub(super) fn list(&self) -> wire::ListFederationsResponse {
        let federations = self.federation.shown(clock::now());
        let index = self.registry.index();
        let sets = index.federation.sets();
        wire::ListFederationsResponse {
            federations: federations.iter().map(|shown| message(shown, false)).collect(),
            sets: sets.map(|(name, set)| messages::federation_set(name, set)).collect(),
        }
    }

    pub(super) async fn add(
        &self,
        call: &AdminCall,
        asked: wire::AddFederationRequest,
    ) -> Result<Done<wire::Federation>, Status> {
        let domain = domain(&asked.trust_domain)?;
        let endpoint = endpoint(&asked)?;
        let first = match asked.bundle.is_empty() {
            true => None,
            false => Some(document(&domain, &asked.bundle)?),
        };
        if endpoint.is_none() && first.is_none() {
            let text = "say where the bundle is with `--url`, or give it with `--bundle`";
            return Err(Status::invalid_argument(text));
        }
        let allowed = call.may(What::TrustDomain)?;
        let is_fetched = endpoint.is_some();
        let notes = [
            ("url", asked.url),
            ("profile", asked.profile),
            ("allow_networks", asked.allow_networks.join(" ")),
        ];
        let now = unix_seconds(clock::now());
        let federate = Federate {
            domain: domain.clone(),
            federated: Federated { endpoint, since: now },
            first,
            own: self.own()?,
            now,
        };
        let is_new = self.registry.write(federate).await?;
        if is_fetched {
            // That it fails is part of what is answered.
            let _ = self.federation.refresh(&domain).await;
        }
        Ok(allowed.done(self.one(&domain, !is_new)?).noting(notes))
    }

    pub(super) async fn refresh(&self, call: &AdminCall, name: &str) -> Result<Done<wire::Federation>, Status> {
        let domain = domain(name)?;
        let allowed = call.may(What::TrustDomain)?;
        let taken = self.federation.refresh(&domain).await?;
        Ok(allowed.done(self.one(&domain, !taken.is_new)?))
    }

    pub(super) async fn delete(&self, call: &AdminCall, name: &str) -> Result<Done<wire::Federation>, Status> {
        let domain = domain(name)?;
        let allowed = call.may(What::TrustDomain)?;
        let before = self.one(&domain, false).unwrap_or_else(|_| wire::Federation {
            trust_domain: domain.to_string(),
            ..wire::Federation::default()
        });
        self.registry.write(End { domain }).await?;
        Ok(allowed.done(before))
    }

    pub(super) async fn set_bundle(
        &self,
        call: &AdminCall,
        asked: wire::SetForeignBundleRequest,
    ) -> Result<Done<wire::Federation>, Status> {
        let domain = domain(&asked.trust_domain)?;
        let document = document(&domain, &asked.bundle)?;
        let allowed = call.may(What::TrustDomain)?;
        let take = Take {
            domain: domain.clone(),
            document,
            by_hand: true,
            own: self.own()?,
            now: unix_seconds(clock::now()),
        };
        let taken = self.registry.write(take).await?;
        // What its endpoint says to it is worth knowing at once.
        self.federation.ask_soon(&domain);
        let notes = [("sequence", taken.sequence.to_string())];
        Ok(allowed.done(self.one(&domain, !taken.is_new)?).noting(notes))
    }

    pub(super) fn show_bundle(&self, name: &str) -> Result<wire::Bundle, Status> {
        let domain = domain(name)?;
        {
            let index = self.registry.index();
            if let Some((_, bundle)) = index.federation.bundle(&domain) {
                return Ok(messages::bundle(bundle));
            }
        }
        // One that was never had may be on its way.
        let shown = self.federation.shown(clock::now());
        let missing = shown.into_iter().find(|shown| shown.trust_domain == domain);
        Err(match missing.and_then(|shown| shown.warning) {
            Some(warning) => Status::failed_precondition(warning),
            None => FederationError::NoSuch(domain).status(),
        })
    }

    pub(super) async fn put_set(
        &self,
        call: &AdminCall,
        asked: wire::FederationSet,
    ) -> Result<Done<wire::FederationSetResponse>, Status> {
        let bad = |error: String| Status::invalid_argument(error);
        check_set_name(&asked.name).map_err(|error| bad(error.to_string()))?;
        let prefix = PathPrefix::parse(&asked.prefix).map_err(|error| bad(error.to_string()))?;
        let domains = asked.trust_domains.iter().map(|name| domain(name));
        let set = FederationSet {
            prefix,
            trust_domains: domains.collect::<Result<_, _>>()?,
        };
        let count = set.trust_domains.len();
        if !(1..=FEDERATES_WITH_MAX).contains(&count) {
            return Err(bad(format!(
                "{count} trust domains; a set has 1 to {FEDERATES_WITH_MAX}"
            )));
        }
        let own = self.own()?;
        if set.trust_domains.contains(own.trust_domain()) {
            return Err(FederationError::Own(own.trust_domain().clone()).status());
        }
        let allowed = call.may(What::TrustDomain)?;
        let notes = [
            ("prefix", asked.prefix),
            ("trust_domains", asked.trust_domains.join(" ")),
        ];
        let put = PutSet { name: asked.name, set };
        let is_new = self.registry.write(put).await?;
        Ok(allowed
            .done(wire::FederationSetResponse { was_so: !is_new })
            .noting(notes))
    }

    pub(super) async fn delete_set(
        &self,
        call: &AdminCall,
        name: String,
    ) -> Result<Done<wire::FederationSetResponse>, Status> {
        let allowed = call.may(What::TrustDomain)?;
        self.registry.write(DeleteSet { name }).await?;
        Ok(allowed.done(wire::FederationSetResponse { was_so: false }))
    }

    fn own(&self) -> Result<Arc<TrustBundle>, Status> {
        let own = self.registry.index().authority.bundle().cloned();
        own.ok_or_else(|| ours(&"there is no trust bundle"))
    }

    fn one(&self, domain: &TrustDomain, was_so: bool) -> Result<wire::Federation, Status> {
        let shown = self.federation.shown(clock::now());
        let found = shown.iter().find(|shown| shown.trust_domain == *domain);
        found
            .map(|shown| message(shown, was_so))
            .ok_or_else(|| FederationError::NoSuch(domain.clone()).status())
    }
}

fn domain(name: &str) -> Result<TrustDomain, Status> {
    TrustDomain::parse(name).map_err(|error| Status::invalid_argument(error.to_string()))
}

fn document(domain: &TrustDomain, bytes: &[u8]) -> Result<BundleDocument, Status> {
    if bytes.len() > BUNDLE_DOCUMENT_BYTES_MAX {
        let text = format!("the bundle is longer than {BUNDLE_DOCUMENT_BYTES_MAX} bytes");
        return Err(Status::invalid_argument(text));
    }
    BundleDocument::parse_file(domain.clone(), bytes).map_err(|error| Status::invalid_argument(error.to_string()))
}

/// F-2: address and profile are both said.
fn endpoint(asked: &wire::AddFederationRequest) -> Result<Option<Endpoint>, Status> {
    let bad = |text: String| Status::invalid_argument(text);
    if asked.url.is_empty() {
        let is_said =
            !asked.profile.is_empty() || !asked.endpoint_spiffe_id.is_empty() || !asked.allow_networks.is_empty();
        return match is_said {
            true => Err(bad("what is said of an endpoint needs its address: `--url`".to_owned())),
            false => Ok(None),
        };
    }
    let url = BundleUrl::parse(&asked.url).map_err(|error| bad(error.to_string()))?;
    let profile = match (asked.profile.as_str(), asked.endpoint_spiffe_id.as_str()) {
        ("https_web", "") => Profile::HttpsWeb,
        ("https_web", _) => {
            return Err(bad(
                "an endpoint of profile `https_web` is known by its name; leave its SPIFFE ID out".to_owned(),
            ));
        }
        ("https_spiffe", "") => {
            return Err(bad(
                "an endpoint of profile `https_spiffe` is known by its SPIFFE ID; name that".to_owned(),
            ));
        }
        ("https_spiffe", id) => {
            let id = SpiffeId::parse(id).map_err(|error| bad(error.to_string()))?;
            if id.is_trust_domain() {
                return Err(bad(format!("`{id}` has no path; no endpoint can show it")));
            }
            Profile::HttpsSpiffe(id)
        }
        (other, _) => {
            let text = format!(
                "`{}` is no profile; write `https_web` or `https_spiffe`",
                other.escape_default()
            );
            return Err(bad(text));
        }
    };
    if asked.allow_networks.len() > NETWORKS_MAX {
        return Err(bad(format!(
            "{} ranges of addresses; at most {NETWORKS_MAX}",
            asked.allow_networks.len()
        )));
    }
    let allowed = asked.allow_networks.iter().map(|text| text.parse::<Network>());
    let allowed = allowed
        .collect::<Result<_, _>>()
        .map_err(|error| bad(error.to_string()))?;
    Ok(Some(Endpoint { url, profile, allowed }))
}

fn message(shown: &Shown, was_so: bool) -> wire::Federation {
    let count = |of: usize| u32::try_from(of).unwrap_or(u32::MAX);
    let unix = |at: Option<std::time::SystemTime>| at.map_or(0, |at| unix_i64(unix_seconds(at)));
    let endpoint = shown.federated.endpoint.as_ref();
    wire::Federation {
        trust_domain: shown.trust_domain.to_string(),
        url: endpoint.map(|endpoint| endpoint.url.to_string()).unwrap_or_default(),
        profile: endpoint.map_or("", |endpoint| endpoint.profile.as_str()).to_owned(),
        endpoint_spiffe_id: endpoint
            .and_then(|endpoint| endpoint.profile.spiffe_id())
            .map(ToString::to_string)
            .unwrap_or_default(),
        allow_networks: endpoint
            .map(|endpoint| endpoint.allowed.iter().map(ToString::to_string).collect())
            .unwrap_or_default(),
        state: shown.state.as_str().to_owned(),
        sequence: shown.sequence,
        authorities: count(shown.authorities),
        jwt_authorities: count(shown.jwt_authorities),
        not_after_unix: unix(shown.not_after),
        refreshed_unix: unix_i64(shown.refreshed),
        next_unix: unix(shown.next),
        refresh_seconds: u32::try_from(shown.refresh.as_secs()).unwrap_or(u32::MAX),
        failure: shown.failure.clone(),
        failed_unix: unix_i64(shown.failed),
        entries: count(shown.entries),
        sets: count(shown.sets),
        was_so,
    }
}

impl From<RefreshError> for Status {
    fn from(error: RefreshError) -> Self {
        let text = error.to_string();
        match error {
            RefreshError::Write(error) => error.into(),
            RefreshError::Fetch(_) | RefreshError::Document(_) | RefreshError::Web(_) => {
                Self::failed_precondition(text)
            }
            RefreshError::Verifier(_) | RefreshError::Tls(_) | RefreshError::Stopping => ours(&text),
        }
    }
}
