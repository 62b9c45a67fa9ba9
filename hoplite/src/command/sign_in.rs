//! Where this user has signed in as an operator: a directory for each trust domain, with certificate and key, trust bundle, and
//! where the CA is.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, bail};
use hoplite_host::clock;
use hoplite_host::files;
use hoplite_identity::{CertificateDer, HostPort, Moment, PrivatePkcs8KeyDer, TrustBundle, TrustDomain, X509Svid, pem};
use hoplite_wire::ca as wire;
use hoplite_wire::ca::admin_client::AdminClient;
use serde::{Deserialize, Serialize};

use crate::command::dial::network;

/// Certificates and key in one file, so that they change together.
const IDENTITY: &str = "operator.pem";

const BUNDLE: &str = "bundle.pem";

const CA: &str = "ca.json";

/// The trust domain of the newest sign-in, which commands use when nothing is said.
const CURRENT: &str = "current";

/// One sign-in.
#[derive(Clone)]
pub(crate) struct SignIn {
    pub(crate) address: HostPort,
    pub(crate) svid: Arc<X509Svid>,
    pub(crate) bundle: TrustBundle,
}

/// What stands in `ca.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Ca {
    address: HostPort,
    bundle_sequence: u64,
}

/// `$XDG_CONFIG_HOME/hoplite`, or `~/.config/hoplite`.
fn root() -> anyhow::Result<PathBuf> {
    let dir = |name: &str| std::env::var_os(name).filter(|dir| !dir.is_empty()).map(PathBuf::from);
    match (dir("XDG_CONFIG_HOME"), dir("HOME")) {
        (Some(config), _) => Ok(config.join("hoplite")),
        (None, Some(home)) => Ok(home.join(".config/hoplite")),
        (None, None) => {
            bail!("neither XDG_CONFIG_HOME nor HOME is set, so there is no place for what `hoplite login` gets")
        }
    }
}

/// The directory of the sign-in at a trust domain. The name is chosen by whoever runs that CA.
fn dir_of(trust_domain: &TrustDomain) -> anyhow::Result<PathBuf> {
    let name = trust_domain.as_str();
    if name.starts_with('.') {
        bail!("the trust domain `{name}` has a name that no directory may have here; nothing was written");
    }
    Ok(root()?.join(name))
}

/// `; there is one at …`, or nothing: where this user has signed in.
pub(crate) fn known() -> anyhow::Result<String> {
    let all: Vec<String> = SignIn::all()?
        .iter()
        .map(|sign_in| format!("`{}` ({})", sign_in.address, sign_in.trust_domain()))
        .collect();
    Ok(match all.is_empty() {
        true => String::new(),
        false => format!(", only at {}", all.join(", ")),
    })
}

// === impl SignIn ===

impl SignIn {
    /// From what the CA answered.
    pub(crate) fn new(
        address: HostPort,
        pair: &rcgen::KeyPair,
        answer: wire::SvidResponse,
        held: TrustBundle,
    ) -> anyhow::Result<Self> {
        let chain = answer.chain.into_iter().map(CertificateDer::from).collect();
        let svid = X509Svid::from_parts(chain, PrivatePkcs8KeyDer::from(pair.serialize_der()))
            .context("the CA sent a certificate that cannot be used")?;
        let bundle = newer(held, answer.bundle)?;
        Ok(Self {
            address,
            svid: Arc::new(svid),
            bundle,
        })
    }

    pub(crate) fn trust_domain(&self) -> &TrustDomain {
        self.svid.spiffe_id().trust_domain()
    }

    /// The operator's name.
    pub(crate) fn name(&self) -> &str {
        self.svid.spiffe_id().operator().unwrap_or_default()
    }

    /// All there are, by trust domain.
    pub(crate) fn all() -> anyhow::Result<Vec<Self>> {
        let root = root()?;
        let mut found = Vec::new();
        let Ok(entries) = fs::read_dir(&root) else {
            return Ok(found);
        };
        let mut dirs: Vec<PathBuf> = entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.is_dir())
            .collect();
        dirs.sort();
        for dir in dirs.iter().filter(|dir| dir.join(IDENTITY).exists()) {
            found.push(Self::read(dir)?);
        }
        Ok(found)
    }

    /// That at a CA, by its address or its trust domain.
    pub(crate) fn at(ca: &str) -> anyhow::Result<Option<Self>> {
        let mut all = Self::all()?;
        let is_meant = |sign_in: &Self| sign_in.address.as_str() == ca || sign_in.trust_domain().as_str() == ca;
        if let Some(position) = all.iter().position(is_meant) {
            return Ok(Some(all.swap_remove(position)));
        }
        // Without its port, where that can mean one only.
        let mut of_host = all.into_iter().filter(|sign_in| sign_in.address.host() == ca);
        Ok(of_host.next().filter(|_| of_host.next().is_none()))
    }

    /// The newest.
    pub(crate) fn current() -> anyhow::Result<Option<Self>> {
        let root = root()?;
        let Ok(trust_domain) = fs::read_to_string(root.join(CURRENT)) else {
            return Ok(None);
        };
        // A name of a file, wherever it came from.
        let Ok(trust_domain) = TrustDomain::parse(trust_domain.trim()) else {
            return Ok(None);
        };
        let dir = dir_of(&trust_domain)?;
        dir.join(IDENTITY).exists().then(|| Self::read(&dir)).transpose()
    }

    fn read(dir: &Path) -> anyhow::Result<Self> {
        let read = || -> anyhow::Result<Self> {
            let identity = zeroize::Zeroizing::new(files::read_private(&dir.join(IDENTITY))?);
            let identity = std::str::from_utf8(&identity).context("it is no text")?;
            let at = identity
                .find("-----BEGIN PRIVATE KEY-----")
                .context("it has no private key")?;
            let (chain, key) = identity.split_at(at);
            let svid = X509Svid::from_parts(pem::certificates(chain)?, pem::private_key(key)?.to_vec().into())?;
            let ca: Ca = serde_json::from_str(&files::read_text(&dir.join(CA))?)?;
            let bundle = files::read_text(&dir.join(BUNDLE))?;
            let trust_domain = svid.spiffe_id().trust_domain().clone();
            let bundle = TrustBundle::from_pem(trust_domain, &bundle, ca.bundle_sequence)?;
            Ok(Self {
                address: ca.address,
                svid: Arc::new(svid),
                bundle,
            })
        };
        read().with_context(|| {
            format!(
                "what `hoplite login` left in `{}` cannot be used; remove that directory and sign in anew",
                dir.display()
            )
        })
    }

    /// Puts it in the place of the one at the same trust domain.
    pub(crate) fn save(&self) -> anyhow::Result<PathBuf> {
        let dir = dir_of(self.trust_domain())?;
        files::private_dir(&dir)?;
        let ca = Ca {
            address: self.address.clone(),
            bundle_sequence: self.bundle.sequence(),
        };
        // The identity last: without it there is no sign-in, with it there is a whole one.
        files::write_public(&dir.join(CA), serde_json::to_string_pretty(&ca)?.as_bytes())?;
        files::write_public(&dir.join(BUNDLE), self.bundle.to_pem().as_bytes())?;
        let identity = zeroize::Zeroizing::new(format!("{}{}", self.svid.chain_pem(), *self.svid.key_pem()));
        files::write_private(&dir.join(IDENTITY), identity.as_bytes())?;
        Ok(dir)
    }

    /// Commands use this one from now on, when nothing is said.
    pub(crate) fn make_current(&self) -> anyhow::Result<()> {
        let text = format!("{}\n", self.trust_domain());
        Ok(files::write_public(&root()?.join(CURRENT), text.as_bytes())?)
    }

    /// Forgets it.
    pub(crate) fn remove(&self) -> anyhow::Result<()> {
        let (root, dir) = (root()?, dir_of(self.trust_domain())?);
        for name in [IDENTITY, CA, BUNDLE] {
            files::remove(&dir.join(name))?;
        }
        let _ = fs::remove_dir(&dir); // somebody may have put something there
        let current = fs::read_to_string(root.join(CURRENT)).unwrap_or_default();
        if current.trim() == self.trust_domain().as_str() {
            files::remove(&root.join(CURRENT))?;
        }
        Ok(())
    }

    /// Whether it can be used by this clock.
    pub(crate) fn check(&self, now: SystemTime) -> anyhow::Result<()> {
        let (leaf, name, domain) = (self.svid.leaf(), self.name(), self.trust_domain());
        let (from, until) = (leaf.not_before(), leaf.not_after());
        if now >= until {
            bail!(
                "the sign-in of operator `{name}` at `{domain}` ended at {}, and this clock says {}; ask for a new invitation and run \
                 `hoplite login INVITATION`",
                Moment::from(until),
                Moment::from(now)
            );
        }
        if now < from {
            bail!(
                "the sign-in of operator `{name}` at `{domain}` begins only at {}, and this clock says {}: set this clock",
                Moment::from(from),
                Moment::from(now)
            );
        }
        Ok(())
    }

    /// This one, or one with a newer certificate when half of its life is over. Without an answer it is used as long as it lasts.
    pub(crate) async fn fresh(&self) -> Self {
        if clock::now() < self.svid.renew_at(0.0) {
            return self.clone();
        }
        self.renewed().await
    }

    /// One with a newer certificate, or this one if there is none.
    pub(crate) async fn renewed(&self) -> Self {
        match self.prolonged().await {
            Ok(newer) => newer,
            Err(error) => {
                hoplite_host::tell!(
                    "note: the sign-in at `{}` ends at {} and was not prolonged: {error}",
                    self.trust_domain(),
                    Moment::from(self.svid.leaf().not_after())
                );
                self.clone()
            }
        }
    }

    async fn prolonged(&self) -> anyhow::Result<Self> {
        let bundles = hoplite_identity::BundleSet::from_iter([self.bundle.clone()]);
        let channel = network(&self.address, &self.svid, bundles).await?;
        let pair = rcgen::KeyPair::generate()?;
        let csr = rcgen::CertificateParams::default().serialize_request(&pair)?;
        let request = wire::RenewRequest {
            csr: csr.der().to_vec(),
        };
        let answer = AdminClient::new(channel).renew_operator(request).await;
        let answer = answer.map_err(|status| anyhow::anyhow!("{}", status.message()))?;
        let newer = Self::new(self.address.clone(), &pair, answer.into_inner(), self.bundle.clone())?;
        newer.save()?;
        Ok(newer)
    }

    /// Tells the CA that it is over.
    pub(crate) async fn sign_out(&self) -> anyhow::Result<()> {
        self.check(clock::now())?;
        let bundles = hoplite_identity::BundleSet::from_iter([self.bundle.clone()]);
        let channel = network(&self.address, &self.svid, bundles).await?;
        let told = AdminClient::new(channel).sign_out(wire::SignOutRequest {}).await;
        match told {
            Ok(_) => Ok(()),
            // It knows already.
            Err(status) if status.code() == tonic::Code::Unauthenticated => Ok(()),
            Err(status) => Err(anyhow::anyhow!("{}", status.message())),
        }
    }

    /// With the trust bundle that the CA has now.
    pub(crate) fn learn(&mut self, bundle: Option<wire::Bundle>) -> anyhow::Result<()> {
        let held = self.bundle.sequence();
        self.bundle = newer(self.bundle.clone(), bundle)?;
        if self.bundle.sequence() != held {
            self.save()?;
        }
        Ok(())
    }
}

/// The newer of the bundle that is held and the one that the CA sent, which is of the same trust domain.
fn newer(held: TrustBundle, sent: Option<wire::Bundle>) -> anyhow::Result<TrustBundle> {
    let Some(sent) = sent.filter(|sent| sent.sequence > held.sequence()) else {
        return Ok(held);
    };
    if sent.trust_domain != held.trust_domain().as_str() {
        bail!(
            "the CA sent the trust bundle of `{}`, and is of `{}`",
            sent.trust_domain,
            held.trust_domain()
        );
    }
    let authorities = sent.authorities.into_iter().map(CertificateDer::from).collect();
    Ok(TrustBundle::new(
        held.trust_domain().clone(),
        authorities,
        sent.sequence,
    )?)
}
