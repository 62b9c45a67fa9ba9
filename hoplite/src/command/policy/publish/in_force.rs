//! The set of policies in force, with proof: the CA only keeps it, and somebody whom this person trusts has signed it.

use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use hoplite_author::gap::Gap;
use hoplite_author::replay::Baseline;
use hoplite_identity::TrustDomain;
use hoplite_policy::bundle::{Acceptance, BUNDLE_BYTES_MAX, Bundle, EngineVersion, KNOWN_CRITICAL, Stage};
use hoplite_policy::{Snapshot, Source};
use hoplite_seal::{Signer, SigningKey, TrustedSigners};
use hoplite_wire::ca::ShowPolicyResponse;
use serde_json::json;

use super::steps::Steps;
use crate::command::MeshDir;
use crate::command::policy::published::kept;
use crate::command::reach::CaArgs;

/// The most that is read of a mesh's `ca.toml`.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// Whose signatures this person believes.
#[derive(Debug, clap::Args)]
pub(crate) struct TrustArgs {
    /// Who signed what is in force, or what comes back, if not you: `NAME=ed25519:KEY`; may be repeated [default: also the `policy_signers` of the mesh in --dir]
    #[arg(long, value_name = "SIGNER", env = "HOPLITE_POLICY_TRUST", value_delimiter = ',')]
    trust: Vec<String>,
}

/// What a publication is compared with.
pub(crate) enum InForce {
    /// No live revision was ever published: each proxy goes by its own directory, or denies all.
    Nothing,
    /// This one.
    Set {
        bundle: Box<Bundle>,
        snapshot: Box<Snapshot>,
    },
    /// This one, which this program cannot compile; why.
    Unusable { bundle: Box<Bundle>, fault: String },
}

// === impl TrustArgs ===

impl TrustArgs {
    /// The key's own signer, those named, and those of the mesh.
    pub(crate) fn signers(
        &self,
        key: &SigningKey,
        mesh: &MeshDir,
        trust_domain: &TrustDomain,
    ) -> anyhow::Result<TrustedSigners> {
        let named: Vec<Signer> = self.trust.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
        let mut signers: Vec<Signer> = vec![key.signer().clone()];
        signers.extend(named.into_iter().filter(|signer| signer != key.signer()));
        // Those named come first: who says whom he trusts is not overruled by a file.
        for signer in of_mesh(&mesh.path()?, trust_domain) {
            let more = signers.iter().cloned().chain([signer]).collect::<Vec<_>>();
            if TrustedSigners::new(more.clone()).is_ok() {
                signers = more;
            }
        }
        Ok(TrustedSigners::new(signers)?)
    }
}

/// The `policy_signers` of the CA of a mesh on this machine, if it is this trust domain's. Its files are this user's, as the
/// keys beside them; what cannot be read there trusts nobody.
fn of_mesh(dir: &Path, trust_domain: &TrustDomain) -> Vec<Signer> {
    let path = dir.join("config/ca.toml");
    let is_small = std::fs::metadata(&path).is_ok_and(|file| file.is_file() && file.len() <= CONFIG_BYTES_MAX);
    let text = Some(path)
        .filter(|_| is_small)
        .and_then(|path| std::fs::read_to_string(path).ok());
    let Some(config) = text.and_then(|text| text.parse::<toml_edit::DocumentMut>().ok()) else {
        return Vec::new();
    };
    if config.get("trust_domain").and_then(|name| name.as_str()) != Some(trust_domain.as_str()) {
        return Vec::new();
    }
    let listed = config.get("policy_signers").and_then(|signers| signers.as_array());
    let texts = listed.into_iter().flatten().filter_map(|signer| signer.as_str());
    texts.filter_map(|text| text.parse().ok()).collect()
}

// === impl InForce ===

impl InForce {
    /// The live bundle that the CA names, verified.
    pub(crate) fn obtain(
        ca: &CaArgs,
        state: &ShowPolicyResponse,
        signers: &TrustedSigners,
        trust_domain: &TrustDomain,
        now: SystemTime,
    ) -> anyhow::Result<Self> {
        let Some(live) = &state.live else {
            return Ok(Self::Nothing);
        };
        let bundle = Box::new(verified(ca, live.revision, signers, trust_domain, now)?);
        let manifest = bundle.manifest_hash().0;
        anyhow::ensure!(
            bundle.manifest().stage == Stage::Live && manifest.as_slice() == live.manifest_sha256.as_slice(),
            "the CA gave another bundle than the one it names as in force, revision {}; ask whoever runs it",
            live.revision
        );
        Ok(match Snapshot::compile(bundle.sources()) {
            Ok(snapshot) => Self::Set {
                bundle,
                snapshot: Box::new(snapshot),
            },
            Err(faults) => Self::Unusable {
                fault: faults.first().map(ToString::to_string).unwrap_or_default(),
                bundle,
            },
        })
    }

    /// With whose answers new ones are compared.
    pub(crate) fn baseline(&self) -> Baseline<'_> {
        match self {
            Self::Set { snapshot, .. } => Baseline::Set(snapshot),
            Self::Nothing | Self::Unusable { .. } => Baseline::Recorded,
        }
    }

    /// The policies in force, compiled, if there are any that can be.
    pub(crate) fn snapshot(&self) -> Option<&Snapshot> {
        match self {
            Self::Set { snapshot, .. } => Some(snapshot),
            Self::Nothing | Self::Unusable { .. } => None,
        }
    }

    /// Why nothing can be compared with what is in force.
    pub(crate) fn gap(&self) -> Option<Gap> {
        match self {
            Self::Unusable { bundle, fault } => Some(Gap::NotComparable(format!(
                "this program cannot compile revision {}: {fault}",
                bundle.manifest().revision
            ))),
            Self::Nothing | Self::Set { .. } => None,
        }
    }

    /// Its files.
    pub(crate) fn sources(&self) -> &[Source] {
        self.bundle().map_or(&[], |bundle| bundle.sources())
    }

    /// What is in force, if it is these very files and has more than half of its time before it. After that the same files are
    /// published again: a set that nobody renews becomes stale.
    pub(crate) fn unchanged(&self, sources: &[Source], now: SystemTime) -> Option<&Bundle> {
        self.bundle()
            .filter(|bundle| has_files(bundle, sources) && is_young(bundle, now))
    }

    pub(crate) fn bundle(&self) -> Option<&Bundle> {
        match self {
            Self::Set { bundle, .. } | Self::Unusable { bundle, .. } => Some(bundle),
            Self::Nothing => None,
        }
    }

    /// Says with what a publication is compared.
    pub(crate) fn show(&self, steps: &mut Steps) -> anyhow::Result<()> {
        let (revision, said) = match self.bundle() {
            Some(bundle) => {
                let (revision, people) = (bundle.manifest().revision, bundle.signed_by().join(", "));
                (json!(revision), format!("revision {revision}, in force, signed by {people}"))
            }
            None => (
                json!(null),
                "no live revision yet: until the first, each proxy goes by its own `policy_dir` or denies all, and what \
                 it answered is in its log; answers are compared with those"
                    .to_owned(),
            ),
        };
        steps.fact("in_force", revision);
        steps.show(&format!("against  {said}\n"))
    }
}

/// Whether a bundle has these files and no others.
pub(crate) fn has_files(bundle: &Bundle, sources: &[Source]) -> bool {
    let mut sources: Vec<&Source> = sources.iter().collect();
    sources.sort_by(|a, b| a.name.cmp(&b.name));
    let held = bundle.sources();
    held.len() == sources.len()
        && held
            .iter()
            .zip(sources)
            .all(|(held, source)| (&held.name, &held.text) == (&source.name, &source.text))
}

/// Whether less than half of a bundle's time has passed.
pub(crate) fn is_young(bundle: &Bundle, now: SystemTime) -> bool {
    let manifest = bundle.manifest();
    let half = manifest.created.midpoint(manifest.expires);
    now < SystemTime::UNIX_EPOCH + Duration::from_secs(half)
}

/// A revision that the CA keeps, if somebody who is trusted has signed it.
pub(crate) fn verified(
    ca: &CaArgs,
    revision: u64,
    signers: &TrustedSigners,
    trust_domain: &TrustDomain,
    now: SystemTime,
) -> anyhow::Result<Bundle> {
    let acceptance = Acceptance {
        signers,
        trust_domain,
        highest_seen: None,
        now,
        engine_version: EngineVersion::THIS,
        known_critical: KNOWN_CRITICAL,
        max_bytes: BUNDLE_BYTES_MAX,
    };
    // INVARIANT: what is compared with, or signed anew, was signed by somebody this person trusts. The CA only kept it.
    let bundle = Bundle::open_kept(&kept(ca, revision)?, &acceptance).with_context(|| {
        format!("revision {revision} is not proved; if somebody else signed it, say who with --trust NAME=ed25519:KEY")
    })?;
    anyhow::ensure!(
        bundle.manifest().revision == revision,
        "the CA gave revision {} for {revision}; ask whoever runs it",
        bundle.manifest().revision
    );
    Ok(bundle)
}

#[cfg(test)]
mod tests {
    use hoplite_policy::bundle::Meta;

    use super::*;

    #[test]
    fn the_same_files_are_published_again_at_half_of_their_time() {
        let at = |seconds: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds);
        let source = |name: &str, text: &str| Source {
            name: name.to_owned(),
            text: text.to_owned(),
        };
        let files = [source("b.cedar", "// b"), source("a.cedar", "// a")];
        let key = SigningKey::from_seed("alice", [7; 32].into()).unwrap();
        let trust_domain = TrustDomain::parse("x").unwrap();
        let meta = Meta {
            trust_domain: trust_domain.clone(),
            revision: 1,
            parent: None,
            created: at(0),
            expires: at(100),
            min_engine: EngineVersion::THIS,
            critical: Vec::new(),
            stage: Stage::Live,
            note: None,
        };
        let bytes = Bundle::build(&files, meta).unwrap().sign(&[&key]).unwrap();
        let acceptance = Acceptance {
            signers: &TrustedSigners::new([key.signer().clone()]).unwrap(),
            trust_domain: &trust_domain,
            highest_seen: None,
            now: at(0),
            engine_version: EngineVersion::THIS,
            known_critical: KNOWN_CRITICAL,
            max_bytes: BUNDLE_BYTES_MAX,
        };
        let in_force = InForce::Unusable {
            bundle: Box::new(Bundle::open_kept(&bytes, &acceptance).unwrap()),
            fault: String::new(),
        };
        let unchanged = |files: &[Source], now| in_force.unchanged(files, at(now)).is_some();
        assert!(unchanged(&files, 0) && unchanged(&files, 49));
        assert!(!unchanged(&files, 50) && !unchanged(&files, 101));
        assert!(!unchanged(&files[..1], 0));
        assert!(!unchanged(&[files[0].clone(), source("a.cedar", "// A")], 0));
    }
}
