//! Nodes of a Kubernetes cluster, by the projected service-account token of the agent's pod.

use std::path::PathBuf;
use std::time::SystemTime;

use hoplite_identity::SelectorKind;
use hoplite_identity::jwt::Expected;
use serde::Deserialize;

use crate::attestors::jwks::{IssuerKeys, KeySettings};
use crate::attestors::oidc::LONGEST;
use crate::attestors::{Attest, BadSetting, Node, NotProven, Proven, Shown, claims, selector};

/// Service accounts of agents in one cluster.
const ACCOUNTS_MAX: usize = 32;

/// `kind = "k8s"`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct K8sSettings {
    /// By which agents ask for it; `k8s` when left out. One for each cluster.
    #[serde(default)]
    pub name: Option<String>,
    /// What its nodes are called, `prod-{k8s:node}`; `NAME-{identity}` when left out.
    #[serde(default)]
    pub node: Option<String>,
    /// The cluster's `--service-account-issuer`.
    pub issuer: String,
    /// The `audience` of the projected volume.
    pub audience: String,
    /// The agents' service accounts, `NAMESPACE/NAME`.
    pub service_accounts: Vec<String>,
    /// The cluster's JWK Set, `https://API-SERVER/openid/v1/jwks`.
    #[serde(default)]
    pub jwks_url: Option<String>,
    /// The authorities by which that server is known, PEM: the cluster's `ca.crt`.
    #[serde(default)]
    pub jwks_ca: Option<PathBuf>,
    /// A token that is sent to that server, where it answers nobody without one.
    #[serde(default)]
    pub jwks_token_file: Option<PathBuf>,
    /// The cluster's JWK Set as a file, in place of `jwks_url`.
    #[serde(default)]
    pub jwks_file: Option<PathBuf>,
}

/// The attestor.
pub(crate) struct K8s {
    issuer: String,
    audience: String,
    service_accounts: Vec<String>,
    keys: IssuerKeys,
}

/// The private claims of a bound token (KEP-1205, KEP-4193). Others are passed over.
#[derive(Debug, Deserialize)]
struct Bound {
    namespace: String,
    serviceaccount: Object,
    pod: Option<Object>,
    node: Option<Object>,
}

#[derive(Debug, Deserialize)]
struct Object {
    name: String,
    uid: Option<String>,
}

// === impl K8sSettings ===

impl K8sSettings {
    pub(crate) fn open(&self) -> Result<K8s, BadSetting> {
        let bad = |key: &'static str, value: &str, reason: &str| BadSetting {
            key,
            value: value.to_owned(),
            reason: reason.to_owned(),
        };
        for (key, value) in [("issuer", &self.issuer), ("audience", &self.audience)] {
            if value.is_empty() {
                return Err(bad(key, value, "write what the tokens say, letter by letter"));
            }
        }
        if !(1..=ACCOUNTS_MAX).contains(&self.service_accounts.len()) {
            let reason = "every pod that gets a token would be a node; write the agents' own, for example [\"hoplite/hoplite-agent\"], at most 32";
            return Err(bad("service_accounts", "", reason));
        }
        let is_pair = |account: &&String| {
            let parts = account.split_once('/');
            parts.is_some_and(|(ns, name)| {
                selector(SelectorKind::K8sNs, ns).is_some() && selector(SelectorKind::K8sSa, name).is_some()
            })
        };
        if let Some(wrong) = self.service_accounts.iter().find(|account| !is_pair(account)) {
            return Err(bad(
                "service_accounts",
                wrong,
                "write NAMESPACE/NAME, for example \"hoplite/hoplite-agent\"",
            ));
        }
        let keys = IssuerKeys::open(KeySettings {
            file: self.jwks_file.as_ref(),
            url: self.jwks_url.as_deref(),
            authorities: self.jwks_ca.as_ref(),
            token_file: self.jwks_token_file.as_ref(),
        })?;
        Ok(K8s {
            issuer: self.issuer.clone(),
            audience: self.audience.clone(),
            service_accounts: self.service_accounts.clone(),
            keys,
        })
    }
}

// === impl K8s ===

#[tonic::async_trait]
impl Attest for K8s {
    async fn attest(&self, shown: Shown<'_>, _: &mut dyn Node, now: SystemTime) -> Result<Proven, NotProven> {
        let token = claims::token(shown.proof).ok_or(NotProven::Malformed("token"))?;
        let expected = Expected {
            issuer: &self.issuer,
            audience: &self.audience,
            longest: LONGEST,
        };
        let token = self.keys.verify(token, expected, now).await?;
        let refused =
            |reason: String| NotProven::Refused(format!("the token is `{}`'s, and {reason}", token.subject()));
        let bound = token
            .claims()
            .get("kubernetes.io")
            .cloned()
            .map(serde_json::from_value::<Bound>);
        let Some(Ok(bound)) = bound else {
            return Err(refused(
                "is no projected service-account token: it has no claim `kubernetes.io`".to_owned(),
            ));
        };
        let account = format!("{}/{}", bound.namespace, bound.serviceaccount.name);
        if token.subject()
            != format!(
                "system:serviceaccount:{}:{}",
                bound.namespace, bound.serviceaccount.name
            )
        {
            return Err(refused(format!("its claim `kubernetes.io` says `{account}`")));
        }
        if !self.service_accounts.contains(&account) {
            return Err(refused(format!("`{account}` is not in `service_accounts`")));
        }
        let pod = bound
            .pod
            .as_ref()
            .and_then(|pod| Some((pod.name.as_str(), pod.uid.as_deref()?)));
        let Some((pod_name, pod_uid)) = pod else {
            return Err(refused(
                "is bound to no pod; mount it with a projected volume".to_owned(),
            ));
        };
        let node = bound.node.as_ref();
        let selectors = [
            selector(SelectorKind::K8sNs, &bound.namespace),
            selector(SelectorKind::K8sSa, &bound.serviceaccount.name),
            selector(SelectorKind::K8sPodName, pod_name),
            selector(SelectorKind::K8sPodUid, pod_uid),
            node.and_then(|node| selector(SelectorKind::K8sNode, &node.name)),
        ];
        // The machine, where the cluster says it; else its agent's pod. A machine that is made anew under an old name is another.
        let uid = node.and_then(|node| node.uid.clone());
        let identity = match uid {
            Some(uid) => vec!["node".to_owned(), uid],
            None => vec!["pod".to_owned(), pod_uid.to_owned()],
        };
        Ok(Proven {
            identity,
            selectors: selectors.into_iter().flatten().collect(),
            bearer: Some(claims::bearer(&token)),
        })
    }
}
