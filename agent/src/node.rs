//! The node's own identity: joined with a one-time token, renewed at half life, kept on disk.

pub(crate) mod epoch;
pub(crate) mod key;
pub(crate) mod link;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use data_encoding::HEXLOWER;
use hoplite_host::backoff::jitter;
use hoplite_host::clock;
use hoplite_host::files::{self, FileError};
use hoplite_host::shutdown::Shutdown;
use hoplite_identity::{
    CertificateDer, Fingerprint, InvalidSvid, Moment, PeerRole, PeerVerifier, PrivatePkcs8KeyDer, SpiffeId,
    TrustBundle, TrustDomain, X509Svid, pem,
};
use hoplite_wire::ca::node_client::NodeClient;
use hoplite_wire::ca::{self, JoinRequest, ReattestRequest, RenewRequest, SvidResponse};
use ring::digest;
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use zeroize::Zeroizing;

use crate::node::epoch::Epoch;
use crate::node::key::Key;
use crate::node::link::{CaError, CaLink, Credentials, RETRY};
use crate::renewal;

/// The file in the data directory.
pub(crate) const FILE: &str = "node.json";

/// A CA that needs longer to sign one certificate is stuck.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest sleep: clocks are set and machines suspended, and both must be noticed.
const SLEEP_MAX: Duration = Duration::from_secs(10);

/// A CA that said no to the key of an SVID that has ended is asked again after this: an operator may have changed its mind.
const REATTEST_AGAIN: Duration = Duration::from_secs(300);

/// While a token is awaited: how often its file is looked at.
const TOKEN_POLL: Duration = Duration::from_secs(1);

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

/// What is to be done about the node's identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Join,
    Renew,
    /// The SVID has ended, or its authority was revoked; its key may still count.
    Reattest,
    Sleep {
        until: SystemTime,
    },
    /// There is no valid SVID and no unspent token.
    NeedToken,
    /// The SVID is of the future: the clock is wrong.
    ClockBehind,
}

/// All that the next step depends on.
#[derive(Debug, Clone, Copy, Default)]
struct Facts {
    svid: Option<Validity>,
    /// A token is there that has not bought an SVID yet.
    token: bool,
    /// The CA refuses the SVID, though it is valid: the agent was evicted, or the CA founded anew.
    refused: bool,
    /// Nothing vouches for the SVID any more; its key may still count.
    cut_off: bool,
    /// Not before this, after a failure.
    retry_at: Option<SystemTime>,
    /// Until then the CA need not be asked again whether the key of an SVID that has ended counts: it said no.
    no_reattest_before: Option<SystemTime>,
}

/// Which authorities vouch for the own SVID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Vouched {
    Sound,
    /// Only a tainted one: it is renewed at once.
    Tainted,
    /// None: its authority was revoked, and the CA lets it in no more.
    Not,
}

#[derive(Debug, Clone, Copy)]
struct Validity {
    not_before: SystemTime,
    renew_at: SystemTime,
    not_after: SystemTime,
}

/// In memory what is on disk.
#[derive(Debug)]
struct Held {
    disk: OnDisk,
    bundle: Arc<TrustBundle>,
    verifier: Arc<PeerVerifier>,
    /// As in [`Credentials`].
    sound: Option<Arc<PeerVerifier>>,
    svid: Option<Arc<X509Svid>>,
    /// The disk did not take it.
    unsaved: bool,
}

/// The one file, so that a key, its certificate and the bundle change together or not at all.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OnDisk {
    /// Made before the token is tried, so that a try whose answer was lost can be repeated with the same key.
    joining_key: Option<String>,
    key: Option<String>,
    chain: Option<String>,
    bundle: Option<String>,
    bundle_sequence: u64,
    /// Fingerprints of the authorities in it that are tainted.
    #[serde(default)]
    bundle_tainted: Vec<String>,
    /// The keys for JWT-SVIDs in it: a JWK Set.
    #[serde(default)]
    bundle_jwks: String,
    /// SHA-256 of the operator's bundle file when `bundle` was accepted. When that file changes, it counts again.
    first_bundle: String,
    /// SHA-256 of the token that bought the SVID.
    spent_token: Option<String>,
    /// The highest epoch of the CA that was seen.
    #[serde(default)]
    epoch: Epoch,
}

/// A one-time token. Its text is in no message and no `Debug`.
pub(crate) struct Token(Zeroizing<String>);

/// Keeps the node's identity until the agent stops.
pub(crate) async fn run(
    keeper: Arc<Keeper>,
    link: CaLink,
    token_files: watch::Receiver<Option<PathBuf>>,
    mut shutdown: Shutdown,
) {
    let mut backoff = RETRY;
    let mut facts = Facts {
        svid: keeper.validity(),
        ..Facts::default()
    };
    let mut said = None;
    let mut news = keeper.credentials();
    let mut distrusted = link.distrusted();
    loop {
        news.mark_unchanged();
        keeper.save_again();
        let vouched = keeper.vouched();
        let was_tainted = vouched == Some(Vouched::Tainted);
        if was_tainted {
            facts.svid = facts.svid.map(|svid| Validity {
                renew_at: UNIX_EPOCH,
                ..svid
            });
        }
        if vouched == Some(Vouched::Not) && !facts.cut_off {
            tracing::error!("the authority of this node's SVID counts no more, and so the CA does not let it in by it");
        }
        facts.cut_off = vouched == Some(Vouched::Not) || keeper.is_serial(distrusted.borrow_and_update().as_deref());
        let token_file = token_files.borrow().clone();
        let token = token_file.as_deref().and_then(|file| keeper.unspent_token(file));
        facts.token = token.is_some();
        link.troubles().node_ends(facts.svid.map(|svid| svid.not_after));
        let now = clock::now();
        let step = facts.next(now);
        if said != Some(step) {
            say(step, token_file.as_deref(), facts.svid, now);
            said = Some(step);
        }
        let work = async {
            match (step, token) {
                (Step::Join, Some(token)) => Some(keeper.join(&link, &token).await),
                (Step::Renew, _) => Some(keeper.renew(&link).await),
                (Step::Reattest, _) => Some(keeper.reattest(&link).await),
                (Step::Sleep { until }, _) => {
                    tokio::time::sleep(until.duration_since(now).unwrap_or_default().min(SLEEP_MAX)).await;
                    None
                }
                (Step::Join | Step::NeedToken | Step::ClockBehind, _) => {
                    tokio::time::sleep(TOKEN_POLL).await;
                    None
                }
            }
        };
        let outcome = tokio::select! {
            outcome = work => outcome,
            // Another trust bundle may ask for another SVID.
            Ok(()) = news.changed(), if !matches!(step, Step::Join | Step::Renew | Step::Reattest) => None,
            () = link.when_refused() => {
                facts.refused = true;
                None
            }
            Ok(()) = distrusted.changed(), if step != Step::Reattest => None,
            () = shutdown.wait() => return,
        };
        if let Some(outcome) = &outcome {
            link.troubles().node(outcome.as_ref().err().and_then(CaError::trouble));
            let kind = match step {
                Step::Join => "join",
                Step::Reattest => "reattest",
                _ => "renew",
            };
            link.metrics().asked(kind, outcome.is_ok());
        }
        match outcome {
            None if (facts.refused || step == Step::NeedToken) && keeper.take_over() => {
                backoff.succeeded();
                facts = Facts {
                    svid: keeper.validity(),
                    ..Facts::default()
                };
                tracing::info!(notice = true, "this node has joined anew");
            }
            None => {}
            Some(Ok(())) => {
                let crowd = backoff.is_failing() || step == Step::Join;
                backoff.succeeded();
                // What everybody renews because of a taint is a crowd, too.
                let issued = |svid: Validity| svid.just_issued(clock::now(), (crowd || was_tainted).then(jitter));
                // A CA that signs with a tainted authority is not asked again without a rest.
                let is_tainted = keeper.vouched() == Some(Vouched::Tainted);
                facts = Facts {
                    svid: keeper.validity().map(issued),
                    retry_at: is_tainted.then(|| clock::now() + backoff.failed(jitter())),
                    ..Facts::default()
                };
            }
            Some(Err(error)) => {
                facts.refused |= step == Step::Renew && matches!(error, CaError::Refused(_) | CaError::Dismissed(_));
                if step == Step::Reattest && matches!(error, CaError::Refused(_) | CaError::Dismissed(_)) {
                    facts.no_reattest_before = Some(clock::now() + REATTEST_AGAIN);
                }
                if let (Step::Reattest, CaError::Dismissed(reason)) = (step, &error) {
                    link.dismissed(reason);
                }
                facts.retry_at = Some(clock::now() + backoff.failed(jitter()));
                complain(step, &error, facts.svid);
            }
        }
    }
}

/// A name for this process, which no other ever has. Without randomness there is none.
pub(crate) fn process_name() -> Vec<u8> {
    let mut name = vec![0; 16];
    match SystemRandom::new().fill(&mut name) {
        Ok(()) => name,
        Err(_) => Vec::new(),
    }
}

/// A node that waits for a human must say for what.
fn say(step: Step, token_file: Option<&Path>, svid: Option<Validity>, now: SystemTime) {
    match (step, token_file) {
        (Step::NeedToken, Some(file)) => tracing::warn!(
            "this node has no valid SVID and no unused token; put one from `hoplite token create` into `{}`",
            file.display()
        ),
        (Step::NeedToken, None) => tracing::error!(
            "this node has no valid SVID; run `hoplite join` with an invitation from `hoplite token create`, and this agent goes on with what it brings"
        ),
        (Step::ClockBehind, _) => {
            let starts = svid.map(|svid| Moment::from(svid.not_before).to_string());
            tracing::error!(
                starts,
                now = %Moment::from(now),
                "this machine's clock is before the start of the node's certificate; set this clock, or the CA's"
            );
        }
        (Step::Reattest, _) => tracing::warn!(
            "this node's SVID has ended, or its authority counts no more; the CA is asked whether it may come back by the key of it, without a token"
        ),
        (Step::Join | Step::Renew | Step::Sleep { .. }, _) => {}
    }
}

/// The less life is left, the louder.
fn complain(step: Step, error: &CaError, svid: Option<Validity>) {
    let left = svid
        .and_then(|svid| svid.not_after.duration_since(clock::now()).ok())
        .map(|left| left.as_secs());
    match (step, left) {
        (Step::Renew, Some(seconds_left)) => {
            tracing::warn!(%error, seconds_left, "cannot renew the node's SVID; it stays in use while it is valid");
        }
        (Step::Reattest, _) => {
            tracing::error!(%error, "the node's SVID counts no more, and the CA does not let it in by its key");
        }
        (Step::Renew, None) => tracing::error!(%error, "cannot renew the node's SVID, and it has expired"),
        _ => tracing::error!(%error, "cannot join the trust domain"),
    }
}

// === impl Facts ===

impl Facts {
    fn next(&self, now: SystemTime) -> Step {
        let resting = self.retry_at.filter(|at| RETRY.rests(*at, now));
        let counts = |svid: &Validity| now < svid.not_after && !self.cut_off;
        let Some(svid) = self.svid.filter(counts) else {
            return match (self.token, resting) {
                (false, _) if self.svid.is_none() || self.is_refused_for_good(now) => Step::NeedToken,
                (_, Some(until)) => Step::Sleep { until },
                (false, None) => Step::Reattest,
                (true, None) => Step::Join,
            };
        };
        if now < svid.not_before && !self.token {
            return Step::ClockBehind;
        }
        if let Some(until) = resting {
            return Step::Sleep { until };
        }
        if (self.refused || now < svid.not_before) && self.token {
            return Step::Join;
        }
        if now < svid.renew_at {
            Step::Sleep { until: svid.renew_at }
        } else {
            Step::Renew
        }
    }
}

impl Facts {
    /// However the clock is set: not for longer than that.
    fn is_refused_for_good(&self, now: SystemTime) -> bool {
        let left = self
            .no_reattest_before
            .and_then(|before| before.duration_since(now).ok());
        left.is_some_and(|left| !left.is_zero() && left <= REATTEST_AGAIN)
    }
}

// === impl Validity ===

impl Validity {
    /// However far our clock is ahead of the CA's: what has just been issued is not due at once. With `crowd`, in 0..=1, it was
    /// asked for by many at the same time.
    fn just_issued(self, now: SystemTime, crowd: Option<f64>) -> Self {
        let renew_at = match crowd {
            Some(jitter) => renewal::after_a_crowd(self.not_after, now, jitter),
            None => renewal::in_time(self.renew_at, self.not_after, now),
        };
        Self { renew_at, ..self }
    }
}

// === impl Keeper ===

impl Keeper {
    /// Opens the data directory, or begins one.
    pub(crate) fn open(data_dir: &Path, trust_domain: &TrustDomain, first_bundle: &Path) -> Result<Self, NodeError> {
        let unusable = |reason: String| NodeError::TrustBundle {
            file: first_bundle.to_owned(),
            reason,
        };
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
    fn unspent_token(&self, file: &Path) -> Option<Token> {
        let text = match files::read_private(file) {
            Ok(bytes) => String::from_utf8(bytes).unwrap_or_default(),
            Err(error) if error.is_not_found() => return None,
            Err(error) => {
                tracing::error!("{error}");
                return None;
            }
        };
        let token = Token::new(text.trim());
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
        self.accept(response.into_inner(), key, Some(token))
    }

    async fn renew(&self, link: &CaLink) -> Result<(), CaError> {
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
        self.accept(response.into_inner(), key, None)
    }

    /// Comes back by the key of an SVID that has ended.
    async fn reattest(&self, link: &CaLink) -> Result<(), CaError> {
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
        self.accept(response.into_inner(), key, None)
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

    /// Checks that what came is what was asked for, and keeps it.
    fn accept(&self, response: SvidResponse, key: Key, token: Option<&Token>) -> Result<(), CaError> {
        let svid = svid(response.chain.into_iter().map(Into::into).collect(), key.into_pkcs8())?;
        let bundle = response
            .bundle
            .map(|message| link::parse_bundle(message, &self.trust_domain))
            .transpose()?;
        let mut held = self.held();
        let is_agent = svid.spiffe_id().trust_domain() == &self.trust_domain && svid.spiffe_id().is_agent();
        let renewed_as_other = token.is_none()
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
        if let Some(token) = token {
            held.disk.joining_key = None;
            held.disk.spent_token = Some(token.digest());
        }
        held.svid = Some(Arc::new(svid));
        self.save(&mut held);
        self.publish(&held);
        Ok(())
    }

    /// What the trust bundle says of the own SVID, whatever its time.
    fn vouched(&self) -> Option<Vouched> {
        let held = self.held();
        let svid = held.svid.as_ref()?;
        let by = |verifier: &PeerVerifier| {
            verifier
                .verify(svid.chain(), PeerRole::Client, svid.leaf().not_before())
                .is_ok()
        };
        Some(match (by(&held.verifier), held.sound.as_deref().is_none_or(by)) {
            (false, _) => Vouched::Not,
            (true, false) => Vouched::Tainted,
            (true, true) => Vouched::Sound,
        })
    }

    /// Whether the own SVID has this serial number.
    fn is_serial(&self, serial: Option<&str>) -> bool {
        let held = self.held();
        let own = held.svid.as_ref().map(|svid| svid.leaf().serial());
        serial.is_some() && own == serial
    }

    fn validity(&self) -> Option<Validity> {
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
    fn take_over(&self) -> bool {
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
    fn save_again(&self) {
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

/// What is wrong with what is on disk, for the operator.
#[derive(Debug, thiserror::Error)]
enum Damaged {
    #[error("its trust bundle is damaged: {0}")]
    Bundle(String),
    #[error("it has a key without a certificate, or the other way round")]
    Half,
    #[error("it belongs to the trust domain `{0}`")]
    Foreign(TrustDomain),
    #[error("its certificate chain is damaged")]
    Chain,
    #[error("its key is damaged")]
    Key,
    #[error("its SVID is damaged: {0}")]
    Svid(#[source] InvalidSvid),
}

// === impl Held ===

impl Held {
    /// Parses what is on disk; the error is for the operator.
    fn read(mut disk: OnDisk, first: TrustBundle, trust_domain: &TrustDomain) -> Result<Self, Damaged> {
        let bundle = match &disk.bundle {
            Some(pem) => TrustBundle::from_pem(trust_domain.clone(), pem, disk.bundle_sequence)
                .map_err(|e| Damaged::Bundle(e.to_string()))?
                .with_tainted(disk.bundle_tainted.iter().filter_map(|text| text.parse().ok()))
                .with_jwt(link::jwt_authorities(&disk.bundle_jwks).map_err(|e| Damaged::Bundle(e.to_string()))?),
            None => first,
        };
        let svid = match (&disk.key, &disk.chain) {
            (Some(key), Some(chain)) => Some(parse_svid(key, chain)?),
            (None, None) => None,
            _ => return Err(Damaged::Half),
        };
        if let Some(svid) = svid
            .as_ref()
            .filter(|svid| svid.spiffe_id().trust_domain() != trust_domain)
        {
            return Err(Damaged::Foreign(svid.spiffe_id().trust_domain().clone()));
        }
        let bundle = Arc::new(bundle);
        let verifier = link::verifier(&bundle).map_err(|e| Damaged::Bundle(e.to_string()))?;
        let sound = link::sound(&bundle).map_err(|e| Damaged::Bundle(e.to_string()))?;
        // After the operator's file named a CA that was founded anew: that one lets the old SVID into no connection, and
        // so never says that it refuses it. Without it the agent joins at once. Its time is another matter.
        let is_ours = |svid: &X509Svid| {
            let when = svid.leaf().not_before();
            verifier.verify(svid.chain(), PeerRole::Client, when).is_ok()
        };
        // What the CA itself said later is another matter: then the key still counts there, see [`Step::Reattest`].
        let svid = svid.filter(|svid| disk.bundle.is_some() || is_ours(svid));
        if svid.is_none() && disk.chain.is_some() {
            tracing::warn!("the trust bundle does not vouch for this node's SVID; it is not used any more");
            (disk.key, disk.chain) = (None, None);
        }
        Ok(Self {
            disk,
            bundle,
            verifier,
            sound,
            svid: svid.map(Arc::new),
            unsaved: false,
        })
    }

    /// Whether it is news.
    fn adopt(&mut self, bundle: TrustBundle) -> Result<bool, CaError> {
        if bundle.sequence() < self.bundle.sequence() {
            let (got, held) = (bundle.sequence(), self.bundle.sequence());
            return Err(CaError::Answer(format!(
                "trust bundle {got}, which is older than {held}, the one held; if the CA was restored by a right clock after one that was ahead, \
                 make it again with `hoplite ca restore --after {held}`"
            )));
        }
        if *self.bundle == bundle {
            return Ok(false);
        }
        let bundle = Arc::new(bundle);
        (self.verifier, self.sound) = (link::verifier(&bundle)?, link::sound(&bundle)?);
        let gone = (self.bundle.authorities().iter()).filter(|authority| !bundle.authorities().contains(authority));
        for authority in gone {
            tracing::warn!(authority = %Fingerprint::of(authority), "this authority of the trust domain counts no more");
        }
        tracing::info!(
            sequence = bundle.sequence(),
            authorities = bundle.authorities().len(),
            tainted = bundle.tainted().len(),
            "new trust bundle"
        );
        self.disk.bundle = Some(bundle.to_pem());
        self.disk.bundle_sequence = bundle.sequence();
        self.disk.bundle_jwks = bundle.jwt().to_jwks();
        self.disk.bundle_tainted = bundle.tainted().iter().map(ToString::to_string).collect();
        self.bundle = bundle;
        Ok(true)
    }
}

fn svid(chain: Vec<CertificateDer<'static>>, key: PrivatePkcs8KeyDer<'static>) -> Result<X509Svid, InvalidSvid> {
    X509Svid::from_parts(chain, key)
}

fn parse_svid(key: &str, chain: &str) -> Result<X509Svid, Damaged> {
    let chain = pem::certificates(chain).map_err(|_| Damaged::Chain)?;
    let key = pem::private_key(key).map_err(|_| Damaged::Key)?;
    svid(chain, key.to_vec().into()).map_err(Damaged::Svid)
}

// === impl OnDisk ===

impl std::fmt::Debug for OnDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OnDisk").finish_non_exhaustive()
    }
}

// === impl Token ===

impl Token {
    pub(crate) fn new(text: &str) -> Self {
        Self(Zeroizing::new(text.to_owned()))
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
