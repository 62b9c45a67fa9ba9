//! What was kept, for those who come before all of it is taken over: of it only what they ask for is looked at.
//!
//! To open, check and place each of ten thousand entries takes some hundred milliseconds; to find those of one caller takes none.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use hoplite_identity::{BundleSet, PeerVerifier, RegisteredEntry, Selector, TrustBundle, TrustDomain};
use hoplite_wire::ca;
use prost::Message;
use prost::bytes::Bytes;

use crate::kept::log::{Content, Slot};
use crate::kept::record::RawEntry;
use crate::supply::foreign::Foreign;
use crate::supply::held::HeldSvid;
use crate::supply::named::{NamedEntry, Registered};
use crate::supply::shelf::{Fitting, Supplied};
use crate::supply::templates::Templates;

/// What was kept of each entry, by one of its selectors.
pub(crate) struct Early {
    slots: HashMap<Bytes, Vec<Slot>>,
    templates: Templates,
    /// What was kept of each name of a template.
    names: HashMap<Bytes, Slot>,
    trust_domain: TrustDomain,
    verifier: Arc<PeerVerifier>,
    bundles: Arc<BundleSet>,
    foreign: Foreign,
}

// === impl Early ===

impl Early {
    /// Of what was read. It is verified by the newest bundle, as everything is that is handed out.
    pub(crate) fn new(
        content: &Content,
        trust_domain: TrustDomain,
        bundle: &TrustBundle,
        verifier: Arc<PeerVerifier>,
    ) -> Self {
        let mut slots: HashMap<Bytes, Vec<Slot>> = HashMap::with_capacity(content.entries.len());
        let (mut templates, mut names) = (Templates::default(), HashMap::new());
        for (key, slot) in &content.entries {
            let entry = slot.raw_entry().cloned().map(RawEntry::decode);
            let Some(Ok(RawEntry {
                id,
                spiffe_id,
                mut selectors,
            })) = entry
            else {
                continue;
            };
            if id != *key {
                names.insert(key.clone(), slot.clone());
                continue;
            }
            if spiffe_id.contains(&b'{') {
                if let Some(Registered::Template(template)) = registered(slot, &trust_domain) {
                    templates.put(&template.id.clone(), Some(template));
                }
                continue;
            }
            // Of its selectors the last: those that few have, such as a path, come after those that many have.
            if let Some(selector) = selectors.pop() {
                slots.entry(selector).or_default().push(slot.clone());
            }
        }
        let foreign = content.foreign.clone().unwrap_or_default();
        Self {
            slots,
            templates,
            names,
            foreign: Foreign::default().after(foreign, &trust_domain).unwrap_or_default(),
            trust_domain,
            verifier,
            bundles: Arc::new(BundleSet::from_iter([bundle.clone()])),
        }
    }

    /// The entries whose every selector is among these.
    pub(crate) fn matching(&self, selectors: &BTreeSet<Selector>) -> Fitting {
        let slots = selectors
            .iter()
            .filter_map(|selector| self.slots.get(&raw(selector)[..]));
        let supplied = slots.flatten().filter_map(|slot| self.supplied(slot));
        let fits = |supplied: &Supplied| supplied.entry.selectors.is_subset(selectors);
        let mut supplied: Vec<Supplied> = supplied.filter(fits).collect();
        let mut unnamed = Vec::new();
        for template in self.templates.fitting(selectors) {
            match template.named(selectors) {
                Ok(named) => supplied.push(self.supplied_of(self.names.get(named.id.as_bytes()), named.into())),
                Err(reason) => unnamed.push((template.id.clone(), reason)),
            }
        }
        supplied.sort_by(Supplied::order);
        let entries = supplied.iter().map(|supplied| &*supplied.entry);
        let bundles = self.foreign.beside(&self.bundles, entries);
        Fitting {
            supplied,
            bundles,
            unnamed,
        }
    }

    fn supplied(&self, slot: &Slot) -> Option<Supplied> {
        match registered(slot, &self.trust_domain)? {
            Registered::Named(entry) => Some(self.supplied_of(Some(slot), entry)),
            Registered::Template(_) => None,
        }
    }

    /// An entry with the SVID that was kept, if that is its own.
    fn supplied_of(&self, slot: Option<&Slot>, entry: Arc<NamedEntry>) -> Supplied {
        let svid = slot.and_then(Slot::svid).and_then(Result::ok);
        let svid = svid.filter(|svid| svid.spiffe_id == entry.spiffe_id.as_str());
        Supplied {
            entry,
            svid: svid.map(|svid| Arc::new(HeldSvid::kept(svid, &self.verifier))),
            refused: None,
        }
    }
}

/// What is kept, if it can be served.
fn registered(slot: &Slot, trust_domain: &TrustDomain) -> Option<Registered> {
    let entry = RegisteredEntry::try_from(slot.entry()?.ok()?).ok()?;
    entry.check(trust_domain).ok()?;
    Some(entry.into())
}

/// A selector as it is written down.
fn raw(selector: &Selector) -> Vec<u8> {
    let message = ca::Selector {
        kind: selector.kind().as_str().to_owned(),
        value: selector.value().to_owned(),
    };
    message.encode_to_vec()
}

impl fmt::Debug for Early {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Early").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kept::key::StorageKey;
    use crate::kept::log::Log;
    use crate::kept::record::{Change, SvidRecord, unix};
    use crate::kept::restored::Restored;
    use crate::supply::testing::{entry, template};
    use hoplite_identity::testing::TestAuthority;
    use std::time::{Duration, SystemTime};

    const OWNER: &str = "spiffe://prod.example/hoplite/agent/n1";

    /// Workloads under `/wide` are given the bundle of this authority.
    fn federated(partner: &TestAuthority) -> ca::Foreign {
        let domain = partner.trust_domain().to_string();
        let authorities = partner.bundle().authorities().iter().map(|der| der.to_vec()).collect();
        ca::Foreign {
            bundles: vec![ca::ForeignBundle {
                trust_domain: domain.clone(),
                revision: 1,
                bundle: Some(ca::Bundle {
                    trust_domain: domain.clone(),
                    authorities,
                    sequence: 1,
                    ..ca::Bundle::default()
                }),
            }],
            sets: vec![ca::FederationSet {
                name: "partners".to_owned(),
                prefix: "/wide".to_owned(),
                trust_domains: vec![domain],
            }],
        }
    }

    #[test]
    fn who_comes_early_is_told_what_is_its_own_and_nothing_else() {
        let authority = TestAuthority::new("prod.example");
        let (dir, domain) = (tempfile::tempdir().unwrap(), authority.trust_domain());
        let partner = TestAuthority::new("partner.example");
        let key = StorageKey::open(None, dir.path()).unwrap();
        let mut log = Log::create(dir.path(), &key, OWNER).unwrap();
        let path = |name: &str| format!("/{name}");
        let registered = |name: &str, selectors: &[&str]| {
            let selectors: Vec<_> = selectors.iter().map(|text| (*text).to_owned()).collect();
            let entry = entry(name, &domain.member(&path(name)).unwrap(), &selectors);
            Change {
                entry_id: name.to_owned(),
                entry: Some(entry.message()),
                ..Change::default()
            }
        };
        let svid = |name: &str, of: &str| {
            let svid = authority.svid(&path(of), Duration::from_secs(3600));
            let record = SvidRecord {
                spiffe_id: svid.spiffe_id().to_string(),
                chain: svid.chain().iter().map(|certificate| certificate.to_vec()).collect(),
                key: svid.key().secret_pkcs8_der().to_vec(),
                not_before: unix(svid.leaf().not_before()),
                not_after: unix(svid.leaf().not_after()),
                ..SvidRecord::default()
            };
            Change {
                entry_id: name.to_owned(),
                svid: Some(record),
                ..Change::default()
            }
        };
        let gone = Change {
            entry_id: "gone".to_owned(),
            gone: true,
            ..Change::default()
        };
        let template = template("by-user", "/user/{unix:user}", &["unix:uid:5"]);
        let ann = ["unix:uid:5", "unix:user:ann"].map(|text| text.parse().unwrap());
        let ann = template.named(&ann.into()).unwrap();
        let changes = vec![
            registered("wide", &["unix:uid:1"]),
            registered("narrow", &["unix:uid:1", "unix:path:/x"]),
            registered("other", &["unix:uid:2"]),
            registered("bare", &["unix:path:/x"]),
            registered("renamed", &["unix:uid:3"]),
            registered("gone", &["unix:uid:1"]),
            svid("wide", "wide"),
            svid("narrow", "narrow"),
            svid("other", "other"),
            svid("renamed", "another"),
            svid("gone", "gone"),
            gone,
            Change {
                entry_id: "by-user".to_owned(),
                entry: Some(Registered::Template(Arc::new(template.clone())).message()),
                ..Change::default()
            },
            Change {
                entry_id: ann.id.to_string(),
                entry: Some(ann.message()),
                ..Change::default()
            },
            svid(ann.id.as_str(), "user/ann"),
            Change {
                foreign: Some(federated(&partner)),
                ..Change::default()
            },
        ];
        log.append(changes, &key).unwrap();
        let (_, content) = Log::open(dir.path(), &key, OWNER).unwrap().unwrap();
        let verifier = Arc::new(PeerVerifier::new(authority.bundles()).unwrap());
        // All of it, as the supply takes it over.
        let (_, again) = Log::open(dir.path(), &key, OWNER).unwrap().unwrap();
        let restored = Restored::of(again, &domain, SystemTime::now());
        assert!(restored.entries.contains_key("by-user") && !restored.entries.contains_key(&ann.id));
        assert_eq!(
            restored
                .take_names()
                .into_values()
                .flatten()
                .map(Arc::unwrap_or_clone)
                .collect::<Vec<_>>(),
            std::slice::from_ref(&ann)
        );
        assert!(restored.take_svids().contains_key(&ann.id));
        let early = Early::new(&content, domain.clone(), &authority.bundle(), verifier);
        let check = |selectors: &[&str], expected: &[(&str, bool)]| {
            let selectors = selectors.iter().map(|text| text.parse().unwrap()).collect();
            let fitting = early.matching(&selectors);
            let found = fitting.supplied.iter().map(|supplied| {
                let svid = supplied.svid.as_ref().and_then(|svid| svid.get(SystemTime::now()));
                if let Some(svid) = svid {
                    assert_eq!(svid.spiffe_id(), &supplied.entry.spiffe_id);
                }
                (supplied.entry.id.as_str(), svid.is_some())
            });
            assert_eq!(found.collect::<Vec<_>>(), expected, "{selectors:?}");
            // Of the partner's bundle who is in a set, from the first answer on.
            let is_in_set = expected.iter().any(|(name, _)| *name == "wide");
            let is_given = fitting.bundles.get(&partner.trust_domain()).is_some();
            assert_eq!(is_given, is_in_set, "{selectors:?}");
        };
        check(
            &["unix:uid:1", "unix:path:/x"],
            &[("narrow", true), ("bare", false), ("wide", true)],
        );
        check(&["unix:uid:1"], &[("wide", true)]);
        check(&["unix:uid:2", "unix:gid:1"], &[("other", true)]);
        check(&["unix:uid:3"], &[("renamed", false)]);
        check(&["unix:uid:5", "unix:user:ann"], &[(ann.id.as_str(), true)]);
        let bob = template.named(&["unix:uid:5", "unix:user:bob"].map(|text| text.parse().unwrap()).into());
        check(&["unix:uid:5", "unix:user:bob"], &[(bob.unwrap().id.as_str(), false)]);
        check(&["unix:uid:5"], &[]);
        check(&["unix:uid:4"], &[]);
        check(&[], &[]);
    }
}
