//! Who gets a certificate, and for how long: the one place that mints.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::{Duration, SystemTime};

use hoplite_host::clock;
use hoplite_identity::{CertificateDer, Entry, RegisteredEntry, Selector, SpiffeId, TrustDomain};
use hoplite_telemetry::{Counter, Exposition, Family, Histogram, Kind};
use tokio::sync::watch;

use crate::authority::jwt::JwtSigner;
use crate::authority::x509::{Authority, Serial};
use crate::entries::names::{Named, Names, NotNamed};
use crate::issuance::authority::{MintAuthorityError, MintedAuthority, mint_authority};
use crate::issuance::jwt::{JwtMintError, JwtSigning, MintedJwt};
use crate::issuance::{MintError, Minted, ReadBack, SubjectKey, Template, mint};

/// Kinds of certificates, times results.
const KINDS_MAX: usize = 20;

/// Certificates and JWT-SVIDs are told apart by this.
const JWT: &str = "jwt";

/// Authorities of nested CAs.
const NESTED: &str = "nested";

/// What most certificates are for.
const WORKLOAD: &str = "workload";

/// Of so many certificates of workloads one is verified by its signature, too: which one, nobody knows before.
const VERIFIED_EVERY: u8 = 16;

/// The authority that signs here, and how long lives what it signs. It alone takes the two and entropy together.
/// Clones are the same one.
#[derive(Debug, Clone)]
pub(crate) struct Issuer {
    signing: Arc<watch::Sender<Arc<Signing>>>,
    lives: Arc<RwLock<Lives>>,
    proofs: Arc<Proofs>,
    jwt: JwtSigning,
    names: Names,
    issued: Family<2, Counter>,
    took: Family<1, Histogram>,
}

/// What a workload is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SvidKind {
    X509,
    Jwt,
}

/// The authority that signs, and what is shown of it.
#[derive(Debug)]
pub(crate) struct Signing {
    pub(crate) authority: Authority,
    /// Its certificate, and after it those by which whoever knows only an older authority believes it.
    pub(crate) shown: Vec<CertificateDer<'static>>,
}

/// What is known of the signatures that are made here.
///
/// A signer that is at fault (a flipped bit in the key, a faulty processor) makes signatures that are none, and each of them
/// tells something of the key to whoever has the certificate. None of them would be believed; and an agent verifies what it gets.
/// So what matters is that a fault is found, and ends the signing, before many have left. See docs/decisions/0014-supply.md.
#[derive(Debug, Default)]
struct Proofs {
    /// Whose last signature that was looked at was good. Each begins with one.
    sound: Mutex<Weak<Signing>>,
    /// One was bad: from now on each is verified.
    is_suspect: AtomicBool,
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
    /// How many names of one template an agent may have in use.
    pub(crate) template_names_per_node: usize,
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
            proofs: Arc::default(),
            jwt: JwtSigning::default(),
            names: Names::new(lives.template_names_per_node),
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
        self.names.set_max(lives.template_names_per_node);
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

    /// The name of a workload of this entry, which its agent may have, by what the agent attested of it. For one SVID of the kind.
    pub(crate) fn name(
        &self,
        agent: &SpiffeId,
        registered: Arc<RegisteredEntry>,
        values: BTreeSet<Selector>,
        kind: SvidKind,
        now: SystemTime,
    ) -> Result<Named, NotNamed> {
        let life = match kind {
            SvidKind::X509 => self.ttl(&registered),
            SvidKind::Jwt => self.jwt_ttl(&registered),
        };
        self.names.name(agent, registered, values, (now, now + life))
    }

    /// For a workload: its name, and every other field from its entry.
    pub(crate) fn workload(&self, named: &Named, key: &SubjectKey, now: SystemTime) -> Result<Minted, MintError> {
        let entry = &named.registered().entry;
        let template = Template {
            spiffe_id: named.spiffe_id(),
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

    /// An authority for a nested CA.
    pub(crate) fn nested_authority(
        &self,
        trust_domain: &TrustDomain,
        key: &SubjectKey,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<MintedAuthority, MintAuthorityError> {
        let started = clock::moment();
        let serial = Serial::random().map_err(|e| MintError::Unbuildable(e.to_string()));
        let signing = self.signing();
        let minted = match serial {
            Ok(serial) => mint_authority(&signing.authority, trust_domain, key, serial, ttl, now),
            Err(error) => Err(error.into()),
        };
        let result = match &minted {
            Ok(_) => "issued",
            Err(MintAuthorityError::MayNot) => "refused",
            Err(MintAuthorityError::Mint(_)) => "failed",
        };
        self.issued.get([NESTED, result]).inc();
        self.took.get([NESTED]).observe(started.elapsed());
        minted
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
        named: &Named,
        audience: &[String],
        now: SystemTime,
    ) -> Result<MintedJwt, JwtMintError> {
        let started = clock::moment();
        let ttl = self.jwt_ttl(named.registered());
        let minted = self.jwt.mint(named.spiffe_id(), ttl, audience, now);
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
        self.names.register(to);
    }

    /// The life of a workload's certificates.
    pub(crate) fn ttl(&self, entry: &Entry) -> Duration {
        entry.ttl(self.lives().x509)
    }

    fn jwt_ttl(&self, entry: &Entry) -> Duration {
        match entry.jwt_ttl {
            0 => self.lives().jwt,
            seconds => Duration::from_secs(seconds.into()),
        }
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
        signing: &Arc<Signing>,
        kind: &'static str,
        template: &Template<'_>,
        key: &SubjectKey,
        now: SystemTime,
    ) -> Result<Minted, MintError> {
        let started = clock::moment();
        let serial = Serial::random().map_err(|e| MintError::Unbuildable(e.to_string()));
        let minted = serial.and_then(|serial| {
            let much = match kind == WORKLOAD && self.proofs.may_trust(signing, serial) {
                true => ReadBack::Text,
                false => ReadBack::Whole,
            };
            let minted = mint(&signing.authority, template, key, serial, now, much);
            if much == ReadBack::Whole {
                self.proofs.note(signing, &minted);
            }
            minted
        });
        let result = if minted.is_ok() { "issued" } else { "failed" };
        self.issued.get([kind, result]).inc();
        self.took.get([kind]).observe(started.elapsed());
        minted
    }
}

// === impl Proofs ===

impl Proofs {
    /// Whether this signature need not be verified. `serial` is random, so no fault can be aimed at those that are not.
    fn may_trust(&self, signing: &Arc<Signing>, serial: Serial) -> bool {
        let is_sound = std::ptr::eq(self.sound().as_ptr(), Arc::as_ptr(signing));
        let is_drawn = serial.as_bytes().last().is_none_or(|last| last % VERIFIED_EVERY == 0);
        is_sound && !is_drawn && !self.is_suspect.load(Relaxed)
    }

    fn note(&self, signing: &Arc<Signing>, minted: &Result<Minted, MintError>) {
        match minted {
            Ok(_) => *self.sound() = Arc::downgrade(signing),
            Err(MintError::Signature) if !self.is_suspect.swap(true, Relaxed) => tracing::error!(
                target: "hoplite::audit",
                notice = true,
                authority = signing.authority.name(),
                "ALARM: the authority's signer made a signature that is none; from now on each is verified before it leaves. The key, or \
                 this machine's memory or processor, is faulty: stop this CA and look at it"
            ),
            Err(_) => {}
        }
    }

    fn sound(&self) -> MutexGuard<'_, Weak<Signing>> {
        self.sound.lock().unwrap_or_else(PoisonError::into_inner)
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

#[cfg(test)]
mod tests {
    use super::*;
    use hoplite_identity::TrustDomain;
    use rcgen::KeyPair;

    const HOUR: Duration = Duration::from_secs(3600);

    fn signing() -> Arc<Signing> {
        let domain = TrustDomain::parse("prod.example").unwrap();
        let authority = Authority::ephemeral(&domain, SystemTime::now(), HOUR);
        let shown = Vec::new();
        Arc::new(Signing { authority, shown })
    }

    fn minted(signing: &Signing) -> Result<Minted, MintError> {
        let id = SpiffeId::parse("spiffe://prod.example/a").unwrap();
        let key = SubjectKey::of_pair(&KeyPair::generate().unwrap());
        let (serial, now) = (Serial::random().unwrap(), SystemTime::now());
        mint(
            &signing.authority,
            &unnamed(&id, HOUR / 2),
            &key,
            serial,
            now,
            ReadBack::Whole,
        )
    }

    /// The first of each authority, some at random of all that follow, and every one after a bad one.
    #[test]
    fn signatures_are_verified_at_first_now_and_then_and_always_after_a_fault() {
        let (proofs, one, two) = (Proofs::default(), signing(), signing());
        let serial = |last| Serial::from_entropy([last; 16]);
        let all = || (0..=u8::MAX).map(serial);
        assert!(!all().any(|serial| proofs.may_trust(&one, serial)), "its first");
        proofs.note(&one, &minted(&one));
        assert_eq!(all().filter(|serial| !proofs.may_trust(&one, *serial)).count(), 16);
        assert!(
            !all().any(|serial| proofs.may_trust(&two, serial)),
            "the first of another"
        );
        proofs.note(&two, &minted(&two));
        assert!(all().any(|serial| proofs.may_trust(&two, serial)));
        // Of a time at which it is not valid: that is no fault of the signer's.
        proofs.note(&two, &Err(MintError::AuthorityNotValid));
        assert!(all().any(|serial| proofs.may_trust(&two, serial)));
        proofs.note(&two, &Err(MintError::Signature));
        proofs.note(&two, &minted(&two));
        assert!(!all().any(|serial| proofs.may_trust(&two, serial)));
    }
}
