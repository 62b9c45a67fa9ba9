//! The container that a process is in, and its pod, as the runtime called their control groups.

use hoplite_identity::SelectorKind;

use crate::attest::cgroup::Placement;
use crate::attest::found::{Attestation, Unknown};

pub(super) fn attest(place: &Result<Placement, Unknown>, seen: &mut Attestation) {
    match place {
        Ok(place) => {
            for (kind, id) in [
                (SelectorKind::ContainerId, &place.container),
                (SelectorKind::K8sPodUid, &place.pod),
            ] {
                if let Some(id) = id {
                    seen.add(kind, Ok(id.clone()));
                }
            }
        }
        Err(reason) => seen.add(SelectorKind::ContainerId, Err(reason.clone())),
    }
}
