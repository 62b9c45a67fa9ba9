//! What is asked about authorities: which there are, one more, the next one, a taint, a revocation.

use hoplite_host::clock;
use hoplite_wire::ca as wire;
use tonic::Status;

use crate::api::admin_call::{AdminCall, Done};
use crate::api::messages::unix_i64;
use crate::api::status::{Blame, ours};
use crate::authority::course::Name;
use crate::authority::jwt::JwtTrusted;
use crate::authority::signer::SignerError;
use crate::authority::trust::Trusted;
use crate::authority::writes::Stepped;
use crate::authority::x509::AuthorityError;
use crate::record::unix_seconds;
use crate::rights::words::What;
use crate::rotation::{Rotation, RotationError, Shown};

/// Names that are listed of those under an authority.
const NAMED_MAX: usize = 20;

/// The authorities' part of the admin API.
pub(super) struct Authorities(Rotation);

// === impl Authorities ===

impl Authorities {
    pub(super) fn new(rotation: Rotation) -> Self {
        Self(rotation)
    }

    pub(super) fn list(&self) -> wire::ListAuthoritiesResponse {
        let (now, sequence) = (clock::now(), self.0.sequence());
        let authorities = self
            .0
            .shown::<Trusted>(now)
            .into_iter()
            .map(|shown| message(shown, sequence, false));
        wire::ListAuthoritiesResponse {
            authorities: authorities.collect(),
            warning: self.0.warning(now).unwrap_or_default(),
            rotates: self.0.plan().rotates,
            jwt: (self.0.shown::<JwtTrusted>(clock::now()).into_iter())
                .map(|shown| message(shown, sequence, false))
                .collect(),
        }
    }

    pub(super) async fn prepare(
        &self,
        call: &AdminCall,
        asked: wire::PrepareAuthorityRequest,
    ) -> Result<Done<wire::Authority>, Status> {
        let allowed = call.may(What::TrustDomain)?;
        let prepared = match asked.jwt {
            true => self.0.prepare::<JwtTrusted>().await?,
            false => self.0.prepare::<Trusted>().await?,
        };
        Ok(allowed.done(self.answer(prepared)?))
    }

    pub(super) async fn activate(
        &self,
        call: &AdminCall,
        asked: &wire::AuthorityRequest,
    ) -> Result<Done<wire::Authority>, Status> {
        let allowed = call.may(What::TrustDomain)?;
        let activated = match asked.jwt || self.0.is_jwt(&asked.fingerprint) {
            true => self.0.activate::<JwtTrusted>(&asked.fingerprint).await?,
            false => self.0.activate::<Trusted>(&asked.fingerprint).await?,
        };
        Ok(allowed.done(self.answer(activated)?))
    }

    pub(super) async fn taint(
        &self,
        call: &AdminCall,
        asked: &wire::AuthorityRequest,
    ) -> Result<Done<wire::Authority>, Status> {
        let allowed = call.may(What::TrustDomain)?;
        let tainted = match self.0.is_jwt(&asked.fingerprint) {
            true => self.0.taint::<JwtTrusted>(&asked.fingerprint).await?,
            false => self.0.taint::<Trusted>(&asked.fingerprint).await?,
        };
        Ok(allowed.done(self.answer(tainted)?))
    }

    pub(super) async fn revoke(
        &self,
        call: &AdminCall,
        asked: &wire::AuthorityRequest,
    ) -> Result<Done<wire::Authority>, Status> {
        let allowed = call.may(What::TrustDomain)?;
        let revoked = match self.0.is_jwt(&asked.fingerprint) {
            true => self.0.revoke::<JwtTrusted>(&asked.fingerprint, asked.force).await?,
            false => self.0.revoke::<Trusted>(&asked.fingerprint, asked.force).await?,
        };
        Ok(allowed.done(self.answer(revoked)?))
    }

    /// What became of this one.
    fn answer(&self, (name, stepped): (Name, Stepped)) -> Result<wire::Authority, Status> {
        let mut all = self
            .0
            .shown::<Trusted>(clock::now())
            .into_iter()
            .chain(self.0.shown::<JwtTrusted>(clock::now()));
        let shown = all.find(|shown| shown.name == name);
        let shown = shown.ok_or_else(|| ours(&"an authority is not there after its step"))?;
        Ok(message(shown, stepped.sequence, !stepped.is_new))
    }
}

fn message(shown: Shown, sequence: u64, was_so: bool) -> wire::Authority {
    let count = |of: &[String]| u32::try_from(of.len()).unwrap_or(u32::MAX);
    let (next_unix, next) = shown.next.map_or((0, ""), |(at, what)| (unix_i64(at), what));
    let named = |mut names: Vec<String>| {
        names.truncate(NAMED_MAX);
        names
    };
    wire::Authority {
        state: shown.life.state.as_str().to_owned(),
        since_unix: unix_i64(shown.life.since),
        not_before_unix: unix_i64(unix_seconds(shown.not_before)),
        not_after_unix: unix_i64(shown.life.not_after),
        agents: count(&shown.agents),
        operators: count(&shown.operators),
        agent_ids: named(shown.agents),
        operator_names: named(shown.operators),
        svids: shown.svids,
        next_unix,
        next: next.to_owned(),
        was_so,
        sequence,
        fingerprint: shown.name,
    }
}

impl From<RotationError> for Status {
    fn from(error: RotationError) -> Self {
        let text = error.to_string();
        match error {
            RotationError::Write(error) => error.into(),
            RotationError::Course(error) => error.status(),
            RotationError::InUse { .. } => Self::failed_precondition(text),
            // A full disk, mostly, of which the operator is to know.
            RotationError::Authority(AuthorityError::Key(
                SignerError::File(_) | SignerError::Token(_) | SignerError::NoSecret { .. } | SignerError::Sealing(_),
            )) => Self::failed_precondition(text),
            // Files of the operator's.
            RotationError::Authority(AuthorityError::Upstream(_)) => Self::failed_precondition(text),
            RotationError::Authority(_) | RotationError::Stopping => ours(&text),
        }
    }
}
