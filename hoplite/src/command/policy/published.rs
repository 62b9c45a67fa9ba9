//! What the CA has of policy: its state, and the bundles it keeps.

use std::path::Path;

use anyhow::{Context, bail};
use hoplite_policy::Source;
use hoplite_policy::bundle::{BUNDLE_BYTES_MAX, BundleContents, ManifestFile};
use hoplite_wire::ca::{GetPolicyRequest, ShowPolicyRequest, ShowPolicyResponse};

use crate::command::reach::CaArgs;

/// What the CA has, and whom it trusts.
pub(crate) fn state(ca: &CaArgs) -> anyhow::Result<ShowPolicyResponse> {
    ca.call(async |mut ca| Ok(ca.show_policy(ShowPolicyRequest {}).await?.into_inner()))
}

/// A signed bundle that the CA still keeps.
pub(crate) fn kept(ca: &CaArgs, revision: u64) -> anyhow::Result<Vec<u8>> {
    let answer = ca.call(async |mut ca| Ok(ca.get_policy(GetPolicyRequest { revision }).await?.into_inner()))?;
    if answer.bundle.is_empty() {
        bail!("the CA keeps only the manifest of revision {revision}; publish the directory it came from");
    }
    Ok(answer.bundle)
}

/// The files of a revision, by name and digest. Nobody has to believe it.
pub(crate) fn content(ca: &CaArgs, revision: u64) -> anyhow::Result<Vec<ManifestFile>> {
    let bundle = BundleContents::danger_read_unverified(&kept(ca, revision)?, BUNDLE_BYTES_MAX)?;
    Ok(bundle.manifest().files.clone())
}

/// The policies of a revision. Only shown: nothing is enforced by what is read here.
pub(crate) fn sources(ca: &CaArgs, revision: u64) -> anyhow::Result<Vec<Source>> {
    unverified(&kept(ca, revision)?)
}

/// The policies of a directory, of a bundle's file, or of a revision that the CA keeps.
pub(crate) fn read(what: &str, ca: &CaArgs) -> anyhow::Result<Vec<Source>> {
    let path = Path::new(what);
    if path.is_dir() {
        return super::sources(path);
    }
    if path.is_file() {
        return unverified(&std::fs::read(path).with_context(|| format!("cannot read `{what}`"))?);
    }
    let revision = what.parse().ok().with_context(|| {
        format!("`{what}` is neither a directory, nor the file of a bundle, nor the number of a revision")
    })?;
    sources(ca, revision)
}

fn unverified(bundle: &[u8]) -> anyhow::Result<Vec<Source>> {
    let bundle = BundleContents::danger_read_unverified(bundle, BUNDLE_BYTES_MAX)?;
    Ok(bundle.sources().to_vec())
}
