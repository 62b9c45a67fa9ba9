//! The node's secrets and whom it trusts: in memory, in one file, and renewed by calls to the CA.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use data_encoding::HEXLOWER;
use hoplite_host::backoff::jitter;
use hoplite_host::clock;
use hoplite_host::files::{self, FileError};
use hoplite_identity::{Fingerprint, HostPort, PeerRole, PeerVerifier, SpiffeId, TrustBundle, TrustDomain};
use hoplite_wire::ca::node_client::NodeClient;
use hoplite_wire::ca::{self, JoinRequest, ReattestRequest, RenewRequest, SvidResponse};
use ring::digest;
use tokio::sync::watch;
use zeroize::Zeroizing;

use crate::node::epoch::Epoch;
use crate::node::held::{self, Held, OnDisk};
use crate::node::key::Key;
use crate::node::link::{self, CaError, CaLink, Credentials};
use crate::node::step::Validity;
use crate::proofs::JoinSettings;

/// The file in the data directory.
pub(crate) const FILE: &str = "node.json";

/// A CA that needs longer to sign one certificate is stuck.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// A CA may have to ask others before it believes a proof.
const ATTEST_TIMEOUT: Duration = Duration::from_secs(20);

/// How a new SVID was come by.
#[derive(Clone, Copy)]
enum How<'a> {
    Joined(&'a Token),
    Attested,
    /// By the key of the one before.
    Renewed,
}

/// The node's secrets and what vouches for whom, in memory and on disk.
#[derive(Debug)]
pub(crate) struct Keeper {
    path: PathBuf,
    trust_domain: TrustDomain,
    held: Mutex<Held>,
    credentials: watch::Sender<Option<Arc<Credentials>>>,
}

/// Why the node's own files cannot be used. One sentence for the operator.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The first trust bundle cannot be used.
    #[error("`{file}` is no trust bundle: {reason}; fetch it anew with `hoplite bundle show`", file = .file.display())]
    TrustBundle {
        /// The operator's file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// There is none.
    #[error(
        "there is no trust bundle `{}`: this machine has not joined, or its agent was purged; `hoplite join` joins it", .0.display()
    )]
    NoTrustBundle(PathBuf),
    /// What is held cannot be kept.
    #[error("the node's identity is not on the disk: {0}")]
    NotWritten(String),
    /// What was kept here is damaged, or somebody else's.
    #[error("`{file}` cannot be used: {reason}; move it away and join with a new token", file = .file.display())]
    State {
        /// The agent's file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// Which authorities vouch for the own SVID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Vouched {
    Sound,
    /// Only a tainted one: it is renewed at once.
    Tainted,
    /// None: its authority was revoked, and the CA lets it in no more.
    Not,
}

/// A one-time token. Its text is in no message and no `Debug`.
pub(crate) struct Token(Zeroizing<String>);
// === impl Keeper ===

impl Keeper {
    /// Opens the data directory, or begins one.
    pub(crate) fn open(data_dir: &Path, trust_domain: &TrustDomain, first_bundle: &Path) -> Result<Self, NodeError> {
        let unusable = |reason: String| NodeError::TrustBundle {
            file: first_bundle.to_owned(),
            reason,
        };
        // One that may not be looked at is another matter, and is told by who reads it.
        if matches!(first_bundle.try_exists(), Ok(false)) {
            return Err(NodeError::NoTrustBundle(first_bundle.to_owned()));
        }
        let first_text = files::read_text(first_bundle)?;
        let first = TrustBundle::from_pem(trust_domain.clone(), &first_text, 0).map_err(|e| unusable(e.to_string()))?;
        if first.authorities().is_empty() {
            return Err(unusable("it has no certificate in it".to_owned()));
        }
        files::private_dir(data_dir)?;
        let path = data_dir.join(FILE);
        let mut disk: OnDisk = match files::read_private(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| NodeError::State {
                file: path.clone(),
                // The error's text may quote what it read, and what it read may be a key.
                reason: format!("line {} is not what the agent writes", e.line()),
            })?,
            Err(error) if error.is_not_found() => OnDisk::default(),
            Err(error) => return Err(error.into()),
        };
        let first_digest = sha256(first_text.as_bytes());
        if disk.first_bundle != first_digest {
            // The operator knows better than what the former CA said.
            disk.bundle = None;
            disk.bundle_sequence = 0;
            disk.bundle_tainted = Vec::new();
            disk.bundle_tainted_keys = Vec::new();
            disk.bundle_revoked_keys = Vec::new();
            disk.bundle_jwks = String::new();
            disk.first_bundle = first_digest;
        }
        let held = Held::read(disk, first, trust_domain).map_err(|reason| NodeError::State {
            file: path.clone(),
            reason: reason.to_string(),
        })?;
        let keeper = Self {
            path,
            trust_domain: trust_domain.clone(),
            held: Mutex::new(held),
            credentials: watch::Sender::new(None),
        };
        keeper.publish(&keeper.held());
        Ok(keeper)
    }

    pub(crate) fn credentials(&self) -> watch::Receiver<Option<Arc<Credentials>>> {
        self.credentials.subscribe()
    }

    /// Takes over the CA's word on whom to trust. One that is older than what is held is refused.
    pub(crate) fn adopt_bundle(&self, message: ca::Bundle) -> Result<(), CaError> {
        let bundle = link::parse_bundle(message, &self.trust_domain)?;
        let mut held = self.held();
        if held.adopt(bundle)? {
            self.save(&mut held);
            self.publish(&held);
        }
        Ok(())
    }

    /// The digest of the operator's trust bundle, and the bundle of now.
    pub(crate) fn bundles(&self) -> (String, Arc<TrustBundle>) {
        let held = self.held();
        (held.disk.first_bundle.clone(), Arc::clone(&held.bundle))
    }

    /// Takes over a trust bundle that was kept with the supply, when it is newer than the one held: then an older copy of
    /// [`FILE`] was put back, which must not bring back an authority that has gone.
    pub(crate) fn catch_up(&self, kept: ca::Bundle) {
        let held = self.bundles().1;
        if kept.sequence <= held.sequence() {
            return;
        }
        tracing::error!(
            held = held.sequence(),
            kept = kept.sequence,
            "`{FILE}` is older than what this node has seen: an older copy was put back; the newest trust bundle counts"
        );
        if let Err(error) = self.adopt_bundle(kept) {
            tracing::error!(%error, "the newest trust bundle that this node has seen cannot be used");
        }
    }

    /// The highest epoch of the CA that was seen.
    pub(crate) fn epoch(&self) -> Epoch {
        self.held().disk.epoch
    }

    /// Notes a higher epoch. A lower one is refused: somebody restored the CA since, and this is the one from before.
    pub(crate) fn adopt_epoch(&self, epoch: Epoch) -> Result<(), CaError> {
        let mut held = self.held();
        let before = held.disk.epoch;
        if epoch < before {
            return Err(CaError::Answer(format!(
                "it is of epoch {epoch}, and this node has followed {before}, the one of a later restore, or of one by a clock that was ahead; stop the older CA, or make it again with `hoplite ca restore --after {}`",
                before.number
            )));
        }
        if epoch > before {
            tracing::warn!(target: "hoplite::audit", notice = true, %epoch, %before, "the CA was restored from a backup; its new epoch is followed");
            held.disk.epoch = epoch;
            self.save(&mut held);
        }
        Ok(())
    }

    /// The token in the file, unless it bought an SVID already.
    pub(super) fn unspent_token(&self, file: &Path) -> Option<Token> {
        let text = match files::read_private(file) {
            Ok(bytes) => String::from_utf8(bytes).unwrap_or_default(),
            Err(error) if error.is_not_found() => return None,
            Err(error) => {
                tracing::error!("{error}");
                return None;
            }
        };
        let token = Token::of_file(&text);
        let spent = self.held().disk.spent_token.as_ref() == Some(&token.digest());
        (!token.0.is_empty() && !spent).then_some(token)
    }

    /// Trades the token for an SVID. May be repeated: the key stays the same until it succeeded.
    pub(crate) async fn join(&self, link: &CaLink, token: &Token) -> Result<(), CaError> {
        let key = self.joining_key()?;
        let verifier = Arc::clone(&self.held().verifier);
        let mut client = NodeClient::new(link.dial(None, verifier).await?);
        let request = JoinRequest {
            token: token.0.to_string(),
            csr: key.csr()?,
        };
        let response = tokio::time::timeout(CALL_TIMEOUT, client.join(request))
            .await
            .map_err(|_| CaError::Timeout)??;
        self.accept(response.into_inner(), key, How::Joined(token))?;
        link.learn(self.addresses());
        Ok(())
    }

    /// Trades a proof of who this node is for an SVID. May be repeated: the key stays the same until it succeeded.
    pub(crate) async fn attest(&self, link: &CaLink, proof: &JoinSettings) -> Result<(), CaError> {
        let key = self.joining_key()?;
        let verifier = Arc::clone(&self.held().verifier);
        let mut client = NodeClient::new(link.dial(None, verifier).await?);
        let attesting = proof.attest(&mut client, key.csr()?);
        let response = tokio::time::timeout(ATTEST_TIMEOUT, attesting).await;
        self.accept(response.map_err(|_| CaError::Timeout)??, key, How::Attested)?;
        link.learn(self.addresses());
        Ok(())
    }

    pub(super) async fn renew(&self, link: &CaLink) -> Result<(), CaError> {
        let key = Key::generate()?;
        let (svid, verifier) = {
            let held = self.held();
            (held.svid.clone(), Arc::clone(&held.verifier))
        };
        let mut client = NodeClient::new(link.dial(svid.as_deref(), verifier).await?);
        let request = RenewRequest { csr: key.csr()? };
        let response = tokio::time::timeout(CALL_TIMEOUT, client.renew(request))
            .await
            .map_err(|_| CaError::Timeout)??;
        self.accept(response.into_inner(), key, How::Renewed)?;
        link.learn(self.addresses());
        Ok(())
    }

    /// Comes back by the key of an SVID that has ended.
    pub(super) async fn reattest(&self, link: &CaLink) -> Result<(), CaError> {
        let (svid, verifier) = {
            let held = self.held();
            (held.svid.clone(), Arc::clone(&held.verifier))
        };
        let Some(svid) = svid else {
            return Err(CaError::Answer("not asked, because there is no SVID".to_owned()));
        };
        let key = Key::from_pkcs8(svid.key())?;
        let mut client = NodeClient::new(link.dial(None, verifier).await?);
        let request = ReattestRequest {
            chain: svid.chain().iter().map(|certificate| certificate.to_vec()).collect(),
            csr: key.csr()?,
        };
        let response = tokio::time::timeout(CALL_TIMEOUT, client.reattest(request))
            .await
            .map_err(|_| CaError::Timeout)??;
        self.accept(response.into_inner(), key, How::Renewed)?;
        link.learn(self.addresses());
        Ok(())
    }

    /// The key to join with, on disk before it is first used.
    fn joining_key(&self) -> Result<Key, CaError> {
        let mut held = self.held();
        if let Some(pem) = &held.disk.joining_key {
            return Ok(Key::from_pem(pem)?);
        }
        let key = Key::generate()?;
        held.disk.joining_key = Some(key.to_pem().to_string());
        if let Err(error) = self.write(&held) {
            held.disk.joining_key = None;
            return Err(CaError::Answer(format!("not asked, because {error}")));
        }
        Ok(key)
    }

    /// The addresses of CAs that the CA has named.
    pub(crate) fn addresses(&self) -> Vec<HostPort> {
        let held = self.held();
        let parsed = held
            .disk
            .ca_addresses
            .iter()
            .filter_map(|text| HostPort::parse(text).ok());
        parsed.collect()
    }

    /// Checks that what came is what was asked for, and keeps it.
    fn accept(&self, response: SvidResponse, key: Key, how: How<'_>) -> Result<(), CaError> {
        let svid = held::svid(response.chain.into_iter().map(Into::into).collect(), key.into_pkcs8())?;
        let bundle = response
            .bundle
            .map(|message| link::parse_bundle(message, &self.trust_domain))
            .transpose()?;
        let mut held = self.held();
        let is_agent = svid.spiffe_id().trust_domain() == &self.trust_domain && svid.spiffe_id().is_agent();
        let renewed_as_other = matches!(how, How::Renewed)
            && held
                .svid
                .as_ref()
                .is_some_and(|current| current.spiffe_id() != svid.spiffe_id());
        if !is_agent || renewed_as_other {
            return Err(CaError::Answer(format!(
                "an SVID for `{}`, which this agent is not",
                svid.spiffe_id()
            )));
        }
        if let Some(bundle) = bundle
            && held.adopt(bundle)?
        {
            self.save(&mut held);
            self.publish(&held);
        }
        held.verifier.verify(svid.chain(), PeerRole::Client, clock::now())?;
        tracing::info!(spiffe_id = %svid.spiffe_id(), serial = svid.leaf().serial(), "the node has a new SVID");
        held.disk.key = Some(svid.key_pem().as_str().to_owned());
        held.disk.chain = Some(svid.chain_pem());
        held.disk.ca_addresses = response.addresses;
        match how {
            How::Joined(token) => {
                held.disk.joining_key = None;
                held.disk.spent_token = Some(token.digest());
            }
            How::Attested => held.disk.joining_key = None,
            How::Renewed => {}
        }
        held.svid = Some(Arc::new(svid));
        self.save(&mut held);
        self.publish(&held);
        Ok(())
    }

    /// What the trust bundle says of the own SVID, whatever its time.
    pub(super) fn vouched(&self) -> Option<Vouched> {
        let held = self.held();
        let svid = held.svid.as_ref()?;
        let by = |verifier: &PeerVerifier| {
            let when = svid.moment_of_life(clock::now());
            verifier.verify(svid.chain(), PeerRole::Client, when).is_ok()
        };
        Some(match (by(&held.verifier), held.sound.as_deref().is_none_or(by)) {
            (false, _) => Vouched::Not,
            (true, false) => Vouched::Tainted,
            (true, true) => Vouched::Sound,
        })
    }

    /// Whether the own SVID has this serial number.
    pub(super) fn is_serial(&self, serial: Option<&str>) -> bool {
        let held = self.held();
        let own = held.svid.as_ref().map(|svid| svid.leaf().serial());
        serial.is_some() && own == serial
    }

    pub(super) fn validity(&self) -> Option<Validity> {
        self.held().svid.as_ref().map(|svid| Validity {
            not_before: svid.leaf().not_before(),
            renew_at: svid.renew_at(jitter()),
            not_after: svid.leaf().not_after(),
        })
    }

    /// What the node is, by what it holds.
    pub(crate) fn membership(&self) -> Option<Membership> {
        let held = self.held();
        let svid = held.svid.as_ref()?;
        Some(Membership {
            spiffe_id: svid.spiffe_id().clone(),
            not_before: svid.leaf().not_before(),
            not_after: svid.leaf().not_after(),
            authorities: held.bundle.authorities().iter().map(Fingerprint::of).collect(),
        })
    }

    /// For those who end at once: what is held is on the disk.
    pub(crate) fn ensure_saved(&self) -> Result<(), NodeError> {
        self.write(&self.held())
            .map_err(|error| NodeError::NotWritten(error.to_string()))
    }

    /// Takes over an SVID that somebody put on the disk: `hoplite join` beside a running agent. Whether it did.
    pub(super) fn take_over(&self) -> bool {
        let newer = || {
            let disk: OnDisk = serde_json::from_slice(&files::read_private(&self.path).ok()?).ok()?;
            let mut held = self.held();
            if disk.chain.is_none() || disk.chain == held.disk.chain {
                return None;
            }
            let bundle = disk.bundle.as_ref()?;
            let bundle = TrustBundle::from_pem(self.trust_domain.clone(), bundle, disk.bundle_sequence).ok()?;
            *held = Held::read(disk, bundle, &self.trust_domain).ok()?;
            held.svid.as_ref()?;
            self.publish(&held);
            Some(())
        };
        newer().is_some()
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, held: &Held) -> Result<(), NotWritten> {
        let bytes = serde_json::to_vec_pretty(&held.disk)?;
        Ok(files::write_private(&self.path, &bytes)?)
    }

    /// A full disk must not take the identity away; it costs a new token if the agent is restarted before there is room.
    fn save(&self, held: &mut Held) {
        let written = self.write(held);
        held.unsaved = written.is_err();
        if let Err(error) = written {
            tracing::error!(
                %error,
                "the node's identity is not on disk and would be lost by a restart"
            );
        }
    }

    /// Tries again what could not be written, without a word as long as it fails.
    pub(super) fn save_again(&self) {
        let mut held = self.held();
        if held.unsaved && self.write(&held).is_ok() {
            held.unsaved = false;
            tracing::info!("the node's identity is on the disk now");
        }
    }

    fn publish(&self, held: &Held) {
        self.credentials.send_replace(held.svid.as_ref().map(|svid| {
            Arc::new(Credentials {
                svid: Arc::clone(svid),
                bundle: Arc::clone(&held.bundle),
                verifier: Arc::clone(&held.verifier),
                sound: held.sound.clone(),
            })
        }));
    }
}

/// What a node that has an SVID is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// The agent's.
    pub spiffe_id: SpiffeId,
    /// The start of its SVID.
    pub not_before: SystemTime,
    /// The end of its SVID. The agent renews it before.
    pub not_after: SystemTime,
    /// The authorities by which it knows its CA.
    pub authorities: Vec<Fingerprint>,
}

/// Why the node's identity is not on disk.
#[derive(Debug, thiserror::Error)]
enum NotWritten {
    #[error(transparent)]
    Encode(#[from] serde_json::Error),
    #[error(transparent)]
    File(#[from] FileError),
}

// === impl Token ===

impl Token {
    pub(crate) fn new(text: &str) -> Self {
        Self(Zeroizing::new(text.to_owned()))
    }

    /// What a token file holds: the token, the invitation that has it before its `@`, or the line `hoplite join INVITATION`, as
    /// `hoplite token create` prints them.
    fn of_file(text: &str) -> Self {
        let word = text.split_whitespace().next_back().unwrap_or_default();
        Self::new(word.split('@').next().unwrap_or_default())
    }

    fn digest(&self) -> String {
        sha256(self.0.as_bytes())
    }
}

fn sha256(bytes: &[u8]) -> String {
    HEXLOWER.encode(digest::digest(&digest::SHA256, bytes).as_ref())
}

#[cfg(test)]
mod tests;
