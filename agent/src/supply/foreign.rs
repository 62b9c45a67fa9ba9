//! What this node holds of foreign trust domains, and which of its workloads are given what of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use hoplite_identity::{BundleSet, FederationSet, InvalidBundle, PathPrefix, TrustBundle, TrustDomain};
use hoplite_wire::ca;

use crate::supply::named::NamedEntry;

/// Foreign bundles and federation sets, as the CA said last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Foreign {
    bundles: BTreeMap<TrustDomain, Held>,
    /// By name.
    sets: BTreeMap<String, FederationSet>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Held {
    /// Of the CA's store.
    revision: u64,
    bundle: Arc<TrustBundle>,
}

/// The CA takes this node to hold a bundle that it does not hold.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NotHeld(pub(crate) String);

// === impl Foreign ===

impl Foreign {
    /// After what the CA says. What cannot be used is said and left out: it vouches for nobody then.
    pub(crate) fn after(&self, message: ca::Foreign, own: &TrustDomain) -> Result<Self, NotHeld> {
        let mut next = Self::default();
        for part in message.bundles {
            let revision = part.revision;
            let Ok(domain) = TrustDomain::parse(&part.trust_domain) else {
                unusable(&part.trust_domain, &"it is no name of a trust domain");
                continue;
            };
            let held = match part.bundle {
                None => match self.bundles.get(&domain).filter(|held| held.revision == revision) {
                    Some(held) => held.clone(),
                    None => return Err(NotHeld(domain.to_string())),
                },
                // Nobody but the own authorities vouches for the own trust domain.
                Some(_) if domain == *own => {
                    unusable(domain.as_str(), &"it is the own trust domain's");
                    continue;
                }
                Some(message) => match parse(&domain, message) {
                    Ok(bundle) => Held {
                        revision,
                        bundle: Arc::new(bundle),
                    },
                    Err(error) => {
                        unusable(domain.as_str(), &error);
                        continue;
                    }
                },
            };
            next.bundles.insert(domain, held);
        }
        for set in message.sets {
            let domains = set.trust_domains.iter().map(|name| TrustDomain::parse(name));
            match (PathPrefix::parse(&set.prefix), domains.collect()) {
                (Ok(prefix), Ok(trust_domains)) => {
                    let known = FederationSet { prefix, trust_domains };
                    next.sets.insert(set.name, known);
                }
                _ => tracing::error!(set = set.name, "this federation set cannot be used"),
            }
        }
        Ok(next)
    }

    /// As it is kept on the disk.
    pub(crate) fn message(&self) -> ca::Foreign {
        let bundles = self.bundles.iter().map(|(domain, held)| ca::ForeignBundle {
            trust_domain: domain.to_string(),
            revision: held.revision,
            bundle: Some(ca::Bundle {
                trust_domain: domain.to_string(),
                authorities: held.bundle.authorities().iter().map(|der| der.to_vec()).collect(),
                sequence: held.bundle.sequence(),
                jwks: held.bundle.jwt().to_jwks(),
                ..ca::Bundle::default()
            }),
        });
        let sets = self.sets.iter().map(|(name, set)| ca::FederationSet {
            name: name.clone(),
            prefix: set.prefix.to_string(),
            trust_domains: set.trust_domains.iter().map(ToString::to_string).collect(),
        });
        ca::Foreign {
            bundles: bundles.collect(),
            sets: sets.collect(),
        }
    }

    /// These bundles, and those of foreign trust domains that a workload with these entries is to verify.
    pub(crate) fn beside<'a>(
        &self,
        own: &Arc<BundleSet>,
        entries: impl Iterator<Item = &'a NamedEntry> + Clone,
    ) -> Arc<BundleSet> {
        let federates = |domain: &TrustDomain| {
            let mut entries = entries.clone();
            entries.any(|entry| {
                let mut sets = self.sets.values();
                entry.federates_with.contains(domain) || sets.any(|set| set.federates(&entry.spiffe_id, domain))
            })
        };
        let mut foreign = self.bundles.iter().filter(|(domain, _)| federates(domain)).peekable();
        if foreign.peek().is_none() {
            return Arc::clone(own); // nearly always
        }
        let mut all = BundleSet::clone(own);
        for (_, held) in foreign {
            all.insert(Arc::clone(&held.bundle));
        }
        Arc::new(all)
    }
}

fn parse(domain: &TrustDomain, message: ca::Bundle) -> Result<TrustBundle, Box<dyn std::error::Error>> {
    if message.trust_domain != domain.as_str() {
        return Err(format!("it is the one of `{}`", message.trust_domain.escape_default()).into());
    }
    let authorities = message.authorities.into_iter().map(Into::into).collect();
    let bundle = TrustBundle::new(domain.clone(), authorities, message.sequence);
    let bundle = bundle.map_err(|error: InvalidBundle| error.to_string())?;
    Ok(bundle.with_jwt(hoplite_wire::jwt_authorities(&message.jwks)?))
}

fn unusable(domain: &str, reason: &dyn std::fmt::Display) {
    tracing::error!(trust_domain = %domain.escape_debug(), %reason, "this foreign trust bundle cannot be used: it vouches for nobody");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supply::testing::{entry, with};
    use hoplite_identity::testing::TestAuthority;

    fn domain(name: &str) -> TrustDomain {
        TrustDomain::parse(name).unwrap()
    }

    fn part(name: &str, revision: u64, authority: Option<&TestAuthority>) -> ca::ForeignBundle {
        let bundle = authority.map(|authority| ca::Bundle {
            trust_domain: authority.trust_domain().to_string(),
            authorities: vec![authority.bundle().authorities()[0].to_vec()],
            sequence: 1,
            ..ca::Bundle::default()
        });
        ca::ForeignBundle {
            trust_domain: name.to_owned(),
            revision,
            bundle,
        }
    }

    fn message(bundles: Vec<ca::ForeignBundle>, sets: &[(&str, &str)]) -> ca::Foreign {
        let sets = sets.iter().map(|(prefix, name)| ca::FederationSet {
            name: "s".to_owned() + &prefix.replace('/', "-"),
            prefix: (*prefix).to_owned(),
            trust_domains: vec![(*name).to_owned()],
        });
        let sets = sets.collect();
        ca::Foreign { bundles, sets }
    }

    #[test]
    fn a_workload_is_given_what_its_entries_name_and_no_more() {
        let [own, a, b, c] = ["prod.example", "a.example", "b.example", "c.example"].map(TestAuthority::new);
        let all = message(
            vec![
                part("a.example", 1, Some(&a)),
                part("b.example", 2, Some(&b)),
                part("c.example", 3, Some(&c)),
            ],
            &[("/", "a.example"), ("/pay", "b.example")],
        );
        let foreign = Foreign::default().after(all, &own.trust_domain()).unwrap();
        let bundles: Arc<BundleSet> = Arc::new(own.bundles());
        let check = |paths: &[&str], named: &[&str], expected: &[&str]| {
            let entries: Vec<_> = paths
                .iter()
                .map(|path| {
                    let id = own.trust_domain().member(path).unwrap();
                    with(entry("e", &id, &[]), |entry| {
                        entry.federates_with = named.iter().map(|name| domain(name)).collect();
                    })
                })
                .collect();
            let given = foreign.beside(&bundles, entries.iter());
            let names: Vec<_> = given.iter().map(|bundle| bundle.trust_domain().to_string()).collect();
            assert_eq!(names, expected, "{paths:?} {named:?}");
        };
        check(&["/web"], &[], &["a.example", "prod.example"]);
        check(&["/pay/api"], &[], &["a.example", "b.example", "prod.example"]);
        check(&["/web"], &["c.example"], &["a.example", "c.example", "prod.example"]);
        check(&["/web", "/pay"], &[], &["a.example", "b.example", "prod.example"]);
        check(&["/web"], &["unknown.example"], &["a.example", "prod.example"]);
    }

    #[test]
    fn only_what_is_held_may_be_left_out() {
        let own = domain("prod.example");
        let [a, b] = ["a.example", "b.example"].map(TestAuthority::new);
        let both = message(
            vec![part("a.example", 1, Some(&a)), part("b.example", 2, Some(&b))],
            &[],
        );
        let foreign = Foreign::default().after(both, &own).unwrap();
        assert_eq!(Foreign::default().after(foreign.message(), &own).as_ref(), Ok(&foreign));
        let next = foreign
            .after(message(vec![part("a.example", 1, None)], &[]), &own)
            .unwrap();
        assert_eq!(next.bundles.len(), 1, "what is not named is gone");
        let newer = foreign.after(message(vec![part("a.example", 3, None)], &[]), &own);
        assert_eq!(newer, Err(NotHeld("a.example".to_owned())));
    }

    #[test]
    fn what_cannot_be_used_vouches_for_nobody() {
        let own = domain("prod.example");
        let [a, ours] = ["a.example", "prod.example"].map(TestAuthority::new);
        let mut bad = part("b.example", 1, Some(&a));
        bad.bundle.as_mut().unwrap().trust_domain = "b.example".to_owned();
        bad.bundle.as_mut().unwrap().authorities = vec![b"no".to_vec()];
        for part in [
            part("prod.example", 1, Some(&ours)),
            part("b.example", 1, Some(&a)),
            bad,
            part("A", 1, Some(&a)),
        ] {
            let foreign = Foreign::default().after(message(vec![part], &[]), &own).unwrap();
            assert_eq!(foreign.bundles.len(), 0);
        }
    }
}
