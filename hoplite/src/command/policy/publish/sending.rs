//! The last steps of a publication: signed, and given to the CA.

use std::time::{Duration, SystemTime};

use anyhow::Context;
use hoplite_author::publication::{Ready, Signed, Terms};
use hoplite_host::clock;
use hoplite_identity::TrustDomain;
use hoplite_policy::bundle::{Bundle, Stage};
use hoplite_seal::{Hash, SigningKey, TrustedSigners};
use hoplite_wire::ca::{PublishPolicyRequest, ShowPolicyResponse};

use super::in_force::verified;
use super::steps::Steps;
use crate::command::policy::key::KeyArgs;
use crate::command::policy::published::state;
use crate::command::reach::CaArgs;

/// Who signs, for which trust domain, and after what the CA has.
pub(crate) struct Office<'a> {
    pub(crate) ca: &'a CaArgs,
    pub(crate) key: SigningKey,
    pub(crate) state: ShowPolicyResponse,
    pub(crate) trust_domain: TrustDomain,
}

/// What is decided of a revision besides its files.
pub(crate) struct Meta {
    /// After how long it is stale.
    pub(crate) expires: Duration,
    pub(crate) note: Option<String>,
    /// Its revision is above this; 0 for that of the CA.
    pub(crate) above: u64,
}

// === impl Office ===

impl<'a> Office<'a> {
    /// Asks the CA, before the work that takes long: whoever publishes in the meantime is noticed, since this is what was seen.
    /// The trust domain is said before anything is signed: the CA names it, and whoever holds two keys or two sockets may have
    /// meant another.
    pub(crate) fn open(ca: &'a CaArgs, args: &KeyArgs, steps: &mut Steps) -> anyhow::Result<Self> {
        let key = args.load(ca.mesh())?;
        let state = state(ca)?;
        let name = key.signer().name();
        anyhow::ensure!(
            state.signers.iter().any(|signer| signer == name),
            "the CA trusts no signer `{name}`, only {}; put `{}` into its `policy_signers`",
            if state.signers.is_empty() {
                "nobody".to_owned()
            } else {
                state.signers.join(", ")
            },
            key.signer()
        );
        let trust_domain = args.trust_domain(&state.trust_domain)?;
        steps.fact("trust_domain", trust_domain.as_str());
        steps.show(&format!("for      the trust domain {}\n", trust_domain.as_str()))?;
        Ok(Self {
            ca,
            key,
            state,
            trust_domain,
        })
    }

    /// The shadow that is tried now, if there is one that this person can verify.
    pub(crate) fn shadow(&self, signers: &TrustedSigners, now: SystemTime) -> Option<Bundle> {
        let shadow = self.state.shadow.as_ref()?;
        verified(self.ca, shadow.revision, signers, &self.trust_domain, now).ok()
    }

    /// Says that there is nothing to publish, and which revision has it already.
    pub(crate) fn unchanged(&self, same: &Bundle, steps: &mut Steps) -> anyhow::Result<u64> {
        let revision = same.manifest().revision;
        steps.fact("changed", false);
        steps.fact("revision", revision);
        let what = format!("nothing changed: revision {revision} has these very files; --renew publishes them again");
        steps.done("publish", &what)?;
        Ok(revision)
    }

    /// Signs and sends the next revision, and says which it is.
    pub(crate) fn send(&self, ready: Ready<'_>, meta: Meta, steps: &mut Steps) -> anyhow::Result<u64> {
        let now = clock::now();
        let Signed {
            revision,
            stage,
            manifest,
            bundle,
        } = ready.sign(
            &self.key,
            Terms {
                trust_domain: self.trust_domain.clone(),
                highest_revision: self.state.highest_revision,
                above: meta.above,
                parent: Hash::from_slice(&self.state.highest_manifest_sha256),
                created: now,
                expires: now.checked_add(meta.expires).context("--expires is too long")?,
                note: meta.note,
            },
        )?;
        let (bytes, name) = (bundle.len(), self.key.signer().name());
        steps.done(
            "sign",
            &format!("revision {revision}, {bytes} bytes, manifest {manifest}, by {name}"),
        )?;
        let request = PublishPolicyRequest {
            bundle,
            expected_revision: self.state.highest_revision,
        };
        let published = self
            .ca
            .call(async |mut ca| Ok(ca.publish_policy(request.clone()).await?.into_inner().revision))?;
        let (stage, what) = match stage {
            Stage::Live => ("live", "in force on every proxy as it arrives"),
            Stage::Shadow => ("shadow", "tried beside the policies in force; no answer changes"),
        };
        steps.fact("changed", true);
        steps.fact("revision", published);
        steps.fact("stage", stage);
        steps.fact("manifest", manifest.to_string());
        steps.fact("bytes", bytes);
        steps.fact("signed_by", name);
        steps.done("publish", &format!("revision {published} is with the CA: {what}"))?;
        Ok(published)
    }
}
