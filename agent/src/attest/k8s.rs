//! What the kubelet knows of the pod that a process is in: namespace, service account, container, image.
//!
//! The container is known by its control group, which its runtime has named; the kubelet of this node says which pod has that
//! container. A list is kept, and asked for again only for a container that is not in it: so whoever calls often costs the kubelet
//! nothing, and a container that has just begun is waited for, for a while.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use hoplite_host::clock;
use hoplite_host::config::ConfigError;
use hoplite_host::files;
use hoplite_identity::{SelectorKind, pem, tls};
use hoplite_wire::https::{Fetch, FetchFailed, HttpsUrl};
use rustls::{ClientConfig, RootCertStore};
use serde::Deserialize;
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use crate::attest::cgroup::Placement;
use crate::attest::found::{Attestation, Unknown};

/// The kubelet lists a container within this after it has begun.
const PATIENCE: Duration = Duration::from_secs(5);

/// The kubelet is asked at most this often.
const AGAIN: Duration = Duration::from_millis(500);

/// One question.
const ANSWER_PATIENCE: Duration = Duration::from_secs(3);

/// The longest list, in bytes. A node has some hundred pods of some ten kilobytes.
const PODS_BYTES_MAX: usize = 32 << 20;

/// Section `[kubernetes]`: where the kubelet of this node is, and how it is known.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KubernetesSettings {
    /// Its address, `https://127.0.0.1:10250` when left out.
    #[serde(default = "kubelet")]
    pub kubelet: String,
    /// The authorities by which it is known, PEM.
    pub ca: PathBuf,
    /// The name in its certificate, where that is not the host of its address: the node's.
    #[serde(default)]
    pub server_name: Option<String>,
    /// The token that it takes, read anew each time.
    #[serde(default = "account_token")]
    pub token_file: PathBuf,
    /// The node's name: pods of another count for nothing.
    pub node: String,
}

fn kubelet() -> String {
    "https://127.0.0.1:10250".to_owned()
}

fn account_token() -> PathBuf {
    "/var/run/secrets/kubernetes.io/serviceaccount/token".into()
}

/// The kubelet, and what it said last.
pub(crate) struct Kubelet {
    url: HttpsUrl,
    tls: Arc<ClientConfig>,
    settings: KubernetesSettings,
    held: RwLock<Held>,
    /// One asks at a time; the others wait for its answer.
    asking: Mutex<()>,
}

#[derive(Default, Clone)]
struct Held {
    containers: Arc<HashMap<String, Container>>,
    asked: Option<Instant>,
    /// Why the last answer was none.
    failed: Option<String>,
}

/// What is known of one container.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Container {
    /// A pod of a file has the digest of that for its uid on the node, and another one in the cluster.
    uids: Vec<String>,
    selectors: Vec<(SelectorKind, String)>,
}

/// Why there is no list of pods.
#[derive(Debug, thiserror::Error)]
enum NoPods {
    #[error(transparent)]
    Token(#[from] files::FileError),
    #[error(transparent)]
    Fetch(#[from] FetchFailed),
    #[error("it is no list of pods: {0}")]
    Parse(#[from] serde_json::Error),
}

/// The kubelet's answer, `v1.PodList`: the part that is looked at.
#[derive(Deserialize)]
struct PodList {
    #[serde(default)]
    items: Option<Vec<Pod>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Pod {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: PodStatus,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
    namespace: String,
    uid: String,
    #[serde(default)]
    annotations: Option<HashMap<String, String>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    node_name: Option<String>,
    service_account_name: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodStatus {
    container_statuses: Option<Vec<ContainerStatus>>,
    init_container_statuses: Option<Vec<ContainerStatus>>,
    ephemeral_container_statuses: Option<Vec<ContainerStatus>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerStatus {
    name: String,
    #[serde(rename = "containerID")]
    container_id: Option<String>,
    image: Option<String>,
    #[serde(rename = "imageID")]
    image_id: Option<String>,
}

// === impl Kubelet ===

impl Kubelet {
    /// Of what the configuration says.
    ///
    /// # Errors
    /// The address is none, or the authorities cannot be read.
    pub(crate) fn open(settings: &KubernetesSettings, file: &Path) -> Result<Self, ConfigError> {
        let unusable = |key: &str, value: &str, reason: String| {
            ConfigError::unusable(file, &format!("kubernetes.{key}"), format_args!("\"{value}\""), reason)
        };
        let address = format!("{}/pods", settings.kubelet.trim_end_matches('/'));
        let url = address
            .parse::<HttpsUrl>()
            .map_err(|error| unusable("kubelet", &settings.kubelet, error.to_string()))?;
        let bad_ca = |reason: String| unusable("ca", &settings.ca.display().to_string(), reason);
        let text = files::read_text(&settings.ca).map_err(|error| bad_ca(error.to_string()))?;
        let mut roots = RootCertStore::empty();
        for certificate in pem::certificates(&text).map_err(|error| bad_ca(error.to_string()))? {
            roots.add(certificate).map_err(|error| bad_ca(error.to_string()))?;
        }
        if roots.is_empty() {
            return Err(bad_ca("it holds no certificate".to_owned()));
        }
        let tls = tls::web_client_config(roots, &[b"http/1.1"]).map_err(|error| bad_ca(error.to_string()))?;
        Ok(Self {
            url,
            tls,
            settings: settings.clone(),
            held: RwLock::default(),
            asking: Mutex::default(),
        })
    }

    /// What the kubelet says of the container that the process is in; nothing of one that is in none of its pods.
    pub(super) async fn attest(&self, place: &Result<Placement, Unknown>, seen: &mut Attestation) {
        let Ok(Placement {
            container: Some(id),
            pod: Some(pod),
            ..
        }) = place
        else {
            return;
        };
        match self.container(id, pod).await {
            Ok(container) => {
                for (kind, value) in container.selectors {
                    seen.add(kind, Ok(value));
                }
            }
            Err(reason) => seen.add(SelectorKind::K8sNs, Err(reason)),
        }
    }

    /// The container of this id, in the pod of this uid. One that is not listed yet is waited for.
    async fn container(&self, id: &str, pod: &str) -> Result<Container, Unknown> {
        let began = clock::moment();
        loop {
            let held = self.held();
            if let Some(container) = held.containers.get(id) {
                // The runtime and the kubelet do not agree: neither is believed.
                return match container.uids.iter().any(|uid| uid == pod) {
                    true => Ok(container.clone()),
                    false => Err(Unknown::Kubelet(
                        "has this container in another pod than its control group says".to_owned(),
                    )),
                };
            }
            let now = clock::moment();
            if now.saturating_duration_since(began) >= PATIENCE {
                let reason = held
                    .failed
                    .unwrap_or_else(|| "does not know this container of this node".to_owned());
                return Err(Unknown::Kubelet(reason));
            }
            let rests = held
                .asked
                .map(|asked| AGAIN.saturating_sub(now.saturating_duration_since(asked)));
            match rests.filter(|rests| !rests.is_zero()) {
                Some(rests) => tokio::time::sleep(rests).await,
                None => self.ask().await,
            }
        }
    }

    async fn ask(&self) {
        let before = self.held().asked;
        let _asking = self.asking.lock().await;
        if self.held().asked != before {
            return; // somebody asked meanwhile
        }
        let answer = self.pods().await;
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        held.asked = Some(clock::moment());
        match answer {
            Ok(containers) => {
                held.containers = Arc::new(containers);
                held.failed = None;
            }
            Err(reason) => {
                tracing::warn!(
                    kubelet = self.url.as_str(),
                    %reason,
                    "the kubelet's list of pods cannot be had"
                );
                held.failed = Some(format!("cannot be asked: {reason}"));
            }
        }
    }

    async fn pods(&self) -> Result<HashMap<String, Container>, NoPods> {
        // Its mode is not asked for: the kubelet makes it, and who has it may list pods.
        let token = files::read_text(&self.settings.token_file)?;
        let token = Zeroizing::new(token.trim().to_owned());
        let fetch = Fetch {
            url: &self.url,
            tls: Arc::clone(&self.tls),
            server_name: self.settings.server_name.as_deref(),
            bearer: Some(&token),
            patience: ANSWER_PATIENCE,
            bytes_max: PODS_BYTES_MAX,
        };
        Ok(containers(&fetch.get().await?, &self.settings.node)?)
    }

    fn held(&self) -> Held {
        self.held.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl std::fmt::Debug for Kubelet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kubelet")
            .field("url", &self.url.as_str())
            .finish_non_exhaustive()
    }
}

/// The containers of this node's pods, by id.
fn containers(json: &[u8], node: &str) -> Result<HashMap<String, Container>, serde_json::Error> {
    let list: PodList = serde_json::from_slice(json)?;
    let mut found = HashMap::new();
    let of_node = |pod: &Pod| pod.spec.node_name.as_deref() == Some(node);
    for pod in list.items.unwrap_or_default().into_iter().filter(of_node) {
        let Pod { metadata, spec, status } = pod;
        let of_file = metadata
            .annotations
            .and_then(|mut all| all.remove("kubernetes.io/config.hash"));
        let uids: Vec<String> = [Some(metadata.uid.clone()), of_file].into_iter().flatten().collect();
        let all = [
            status.container_statuses,
            status.init_container_statuses,
            status.ephemeral_container_statuses,
        ];
        for container in all.into_iter().flatten().flatten() {
            let Some((_, id)) = container.container_id.as_deref().and_then(|id| id.split_once("://")) else {
                continue; // it has not begun
            };
            let account = spec.service_account_name.clone().filter(|name| !name.is_empty());
            let image_id = container
                .image_id
                .map(|id| id.trim_start_matches("docker-pullable://").to_owned());
            let selectors = [
                (SelectorKind::K8sNs, Some(metadata.namespace.clone())),
                (SelectorKind::K8sSa, account),
                (SelectorKind::K8sPodName, Some(metadata.name.clone())),
                (SelectorKind::K8sContainerName, Some(container.name)),
                (
                    SelectorKind::K8sImage,
                    container.image.filter(|image| !image.is_empty()),
                ),
                (SelectorKind::K8sImage, image_id.filter(|image| !image.is_empty())),
            ];
            let selectors = selectors
                .into_iter()
                .filter_map(|(kind, value)| Some((kind, value?)))
                .collect();
            let uids = uids.clone();
            found.insert(id.to_owned(), Container { uids, selectors });
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
