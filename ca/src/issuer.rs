//! Who gets a certificate, and for how long: the one place that mints.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use hoplite_host::clock;
use hoplite_identity::{CertificateDer, Entry, SpiffeId};
use hoplite_telemetry::{Counter, Exposition, Family, Histogram, Kind};
use tokio::sync::watch;

use crate::authority::jwt::JwtSigner;
use crate::authority::x509::{Authority, Serial};
use crate::issuance::jwt::{JwtMintError, JwtSigning, MintedJwt};
use crate::issuance::{MintError, Minted, SubjectKey, Template, mint};

/// Kinds of certificates, times results.
const KINDS_MAX: usize = 20;

/// Certificates and JWT-SVIDs are told apart by this.
const JWT: &str = "jwt";

/// What most certificates are for.
const WORKLOAD: &str = "workload";

/// The authority that signs here, and how long lives what it signs. It alone takes the two and entropy together.
/// Clones are the same one.
#[derive(Debug, Clone)]
pub(crate) struct Issuer {
    signing: Arc<watch::Sender<Arc<Signing>>>,
    lives: Arc<RwLock<Lives>>,
    jwt: JwtSigning,
    issued: Family<2, Counter>,
    took: Family<1, Histogram>,
}

/// The authority that signs, and what is shown of it.
#[derive(Debug)]
pub(crate) struct Signing {
    pub(crate) authority: Authority,
    /// Its certificate, and after it those by which whoever knows only an older authority believes it.
    pub(crate) shown: Vec<CertificateDer<'static>>,
}

/// How long certificates live.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lives {
    pub(crate) agent: Duration,
    pub(crate) operator: Duration,
    /// Of entries that do not say, and of the CA itself.
    pub(crate) x509: Duration,
    /// Of JWT-SVIDs of entries that do not say.
    pub(crate) jwt: Duration,
    /// How long after its end an agent's certificate still proves its key.
    pub(crate) reattest_within: Duration,
}

// === impl Issuer ===

impl Issuer {
    pub(crate) fn new(authority: Authority, lives: Lives) -> Self {
        let mut shown = vec![authority.certificate().clone()];
        if authority.is_under() {
            shown = authority.below_the_root();
            shown.push(authority.root().clone());
        }
        let signing = Signing { shown, authority };
        Self {
            signing: Arc::new(watch::Sender::new(Arc::new(signing))),
            lives: Arc::new(RwLock::new(lives)),
            jwt: JwtSigning::default(),
            issued: Family::new(["kind!", "result!"], KINDS_MAX),
            took: Family::new(["kind!"], KINDS_MAX),
        }
    }

    /// With what signs JWT-SVIDs.
    pub(crate) fn with_jwt(self, jwt: JwtSigning) -> Self {
        Self { jwt, ..self }
    }

    /// What is issued from now on lives so long.
    pub(crate) fn set_lives(&self, lives: Lives) {
        *self.lives.write().unwrap_or_else(PoisonError::into_inner) = lives;
    }

    fn lives(&self) -> Lives {
        *self.lives.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long after its end an agent's certificate still proves its key.
    pub(crate) fn reattest_within(&self) -> Duration {
        self.lives().reattest_within
    }

    /// What signs now.
    pub(crate) fn signing(&self) -> Arc<Signing> {
        self.signing.borrow().clone()
    }

    /// What signs, now and after each change.
    pub(crate) fn changes(&self) -> watch::Receiver<Arc<Signing>> {
        self.signing.subscribe()
    }

    /// This signs from now on.
    pub(crate) fn sign_with(&self, signing: Signing) {
        self.signing.send_replace(Arc::new(signing));
    }

    /// For an agent.
    pub(crate) fn agent(&self, id: &SpiffeId, key: &SubjectKey, now: SystemTime) -> Result<Minted, MintError> {
        self.mint("agent", &unnamed(id, self.lives().agent), key, now)
    }

    /// For an operator, who may have no more left than this.
    pub(crate) fn operator(
        &self,
        id: &SpiffeId,
        left: Option<Duration>,
        key: &SubjectKey,
        now: SystemTime,
    ) -> Result<Minted, MintError> {
        let life = self.lives().operator;
        let ttl = left.map_or(life, |left| left.min(life));
        self.mint("operator", &unnamed(id, ttl), key, now)
    }

    /// For a workload: every field from its entry.
    pub(crate) fn workload(&self, entry: &Entry, key: &SubjectKey, now: SystemTime) -> Result<Minted, MintError> {
        let template = Template {
            spiffe_id: &entry.spiffe_id,
            dns_names: &entry.dns_names,
            common_name: entry.common_name(),
            ttl: self.ttl(entry),
        };
        self.mint(WORKLOAD, &template, key, now)
    }

    /// For the CA's own server: the whole chain, down to the authority by whose fingerprint it is known to those who have no
    /// trust bundle yet.
    pub(crate) fn own(
        &self,
        id: &SpiffeId,
        key: &SubjectKey,
        now: SystemTime,
    ) -> Result<(Minted, Arc<Signing>), MintError> {
        let signing = self.signing();
        let minted = self.mint_by(&signing, "ca", &unnamed(id, self.lives().x509), key, now)?;
        Ok((minted, signing))
    }

    /// The key id of what signs JWT-SVIDs now.
    pub(crate) fn jwt_kid(&self) -> Option<String> {
        self.jwt.kid()
    }

    /// This signs JWT-SVIDs from now on.
    pub(crate) fn sign_jwt_with(&self, signer: JwtSigner) {
        self.jwt.sign_with(signer);
    }

    /// A JWT-SVID for a workload.
    pub(crate) fn jwt_svid(
        &self,
        entry: &Entry,
        audience: &[String],
        now: SystemTime,
    ) -> Result<MintedJwt, JwtMintError> {
        let started = clock::moment();
        let ttl = match entry.jwt_ttl {
            0 => self.lives().jwt,
            seconds => Duration::from_secs(seconds.into()),
        };
        let minted = self.jwt.mint(entry, ttl, audience, now);
        let result = match &minted {
            Ok(_) => "issued",
            Err(JwtMintError::Audience(_)) => "refused",
            Err(_) => "failed",
        };
        self.issued.get([JWT, result]).inc();
        self.took.get([JWT]).observe(started.elapsed());
        minted
    }

    /// A JWT-SVID was asked for and not made.
    pub(crate) fn refused_jwt(&self) {
        self.issued.get([JWT, "refused"]).inc();
    }

    /// A workload's certificate was asked for and not made.
    pub(crate) fn refused_workload(&self) {
        self.issued.get([WORKLOAD, "refused"]).inc();
    }

    /// Adds what was issued to what is shown.
    pub(crate) fn register(&self, to: &mut Exposition) {
        to.register(
            "issued",
            "Certificates and JWT-SVIDs asked for, by kind and whether they were issued",
            self.issued.clone(),
        );
        let issuer = self.clone();
        to.sampled(
            Kind::Gauge,
            "signer_away",
            "1 while the hardware that holds the authority's key cannot be used: nothing is issued",
            move |to| to.put(u64::from(issuer.signing().authority.away().is_some())),
        );
        to.register(
            "issue_duration_seconds",
            "What making a certificate or a JWT-SVID takes",
            self.took.clone(),
        );
    }

    /// The life of a workload's certificates.
    pub(crate) fn ttl(&self, entry: &Entry) -> Duration {
        entry.ttl(self.lives().x509)
    }

    fn mint(
        &self,
        kind: &'static str,
        template: &Template<'_>,
        key: &SubjectKey,
        now: SystemTime,
    ) -> Result<Minted, MintError> {
        self.mint_by(&self.signing(), kind, template, key, now)
    }

    fn mint_by(
        &self,
        signing: &Signing,
        kind: &'static str,
        template: &Template<'_>,
        key: &SubjectKey,
        now: SystemTime,
    ) -> Result<Minted, MintError> {
        let started = clock::moment();
        let serial = Serial::random().map_err(|e| MintError::Unbuildable(e.to_string()));
        let minted = serial.and_then(|serial| mint(&signing.authority, template, key, serial, now));
        let result = if minted.is_ok() { "issued" } else { "failed" };
        self.issued.get([kind, result]).inc();
        self.took.get([kind]).observe(started.elapsed());
        minted
    }
}

/// A certificate with no name but its SPIFFE ID.
fn unnamed(spiffe_id: &SpiffeId, ttl: Duration) -> Template<'_> {
    Template {
        spiffe_id,
        dns_names: &[],
        common_name: None,
        ttl,
    }
}
