//! The systemd unit that a process runs in. Units of a user's own systemd are another kind: whoever has an account calls them as he
//! likes, and imitates none of the system's by that.

use hoplite_identity::SelectorKind;

use crate::attest::cgroup::Placement;
use crate::attest::found::{Attestation, Unknown};

pub(super) fn attest(place: &Result<Placement, Unknown>, seen: &mut Attestation) {
    match place {
        Ok(place) => {
            for (kind, unit) in [
                (SelectorKind::SystemdUnit, &place.unit),
                (SelectorKind::SystemdUserUnit, &place.user_unit),
            ] {
                if let Some(unit) = unit {
                    seen.add(kind, Ok(unit.clone()));
                }
            }
        }
        Err(reason) => seen.add(SelectorKind::SystemdUnit, Err(reason.clone())),
    }
}
