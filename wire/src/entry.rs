//! Registration entries on the wire: the protobuf messages, and the one type that CA and agent share.

use std::collections::BTreeSet;
use std::fmt::Display;

use hoplite_identity::{
    Entry, EntryId, EntryName, InvalidEntry, InvalidEntryName, InvalidSelector, NodeGroup, Parent, RegisteredEntry,
    Selector, SpiffeId, TrustDomain,
};

use crate::ca;

impl TryFrom<ca::Selector> for Selector {
    type Error = InvalidSelector;

    fn try_from(message: ca::Selector) -> Result<Self, InvalidSelector> {
        match message.kind.parse() {
            Ok(kind) => Self::new(kind, &message.value),
            // As one text: whoever parted it elsewhere is told the nearest that exists.
            Err(unknown) => match Self::parse(&format!("{}:{}", message.kind, message.value)) {
                Ok(_) => Err(unknown),
                Err(error) => Err(error),
            },
        }
    }
}

impl From<&Selector> for ca::Selector {
    fn from(selector: &Selector) -> Self {
        Self {
            kind: selector.kind().as_str().to_owned(),
            value: selector.value().to_owned(),
        }
    }
}

/// What an operator wants registered. `id` and `revision` in it mean nothing.
impl TryFrom<ca::Entry> for Entry {
    type Error = InvalidEntry;

    fn try_from(message: ca::Entry) -> Result<Self, InvalidEntry> {
        let selectors = message.selectors.into_iter().map(Selector::try_from);
        let parent = match (message.parent_id.as_str(), message.node_selectors) {
            ("", none) if none.is_empty() => return Err(InvalidEntry::Parent("neither given")),
            (agent, none) if none.is_empty() => Parent::Agent(SpiffeId::parse(agent).map_err(InvalidEntry::ParentId)?),
            ("", of_nodes) => {
                let of_nodes = of_nodes.into_iter().map(Selector::try_from);
                let of_nodes = of_nodes.collect::<Result<_, _>>().map_err(InvalidEntry::NodeSelector)?;
                Parent::Group(NodeGroup::new(of_nodes)?)
            }
            _ => return Err(InvalidEntry::Parent("both given")),
        };
        Ok(Self {
            spiffe_id: name(&message.spiffe_id)?,
            parent,
            selectors: selectors.collect::<Result<BTreeSet<_>, _>>()?,
            x509_ttl: message.x509_ttl_seconds,
            hint: message.hint,
            dns_names: message.dns_names,
            created_at: u64::try_from(message.created_at_unix).unwrap_or(0),
            owner: message.owner,
            jwt_ttl: message.jwt_ttl_seconds,
            is_default: message.is_default,
            federates_with: domains(&message.federates_with)?,
        })
    }
}

/// A SPIFFE ID, or a template of some.
fn name(text: &str) -> Result<EntryName, InvalidEntry> {
    let field = "spiffe_id";
    EntryName::parse(text).map_err(|invalid| match invalid {
        InvalidEntryName::SpiffeId(reason) => InvalidEntry::SpiffeId { field, reason },
        InvalidEntryName::Template(reason) => InvalidEntry::Template(reason),
    })
}

/// Foreign trust domains, by their names.
fn domains(names: &[String]) -> Result<BTreeSet<TrustDomain>, InvalidEntry> {
    let field = "federates_with";
    let parsed = names.iter().map(|name| TrustDomain::parse(name));
    let parsed: Result<_, _> = parsed.collect();
    parsed.map_err(|reason| InvalidEntry::SpiffeId { field, reason })
}

/// What the CA says is registered.
impl TryFrom<ca::Entry> for RegisteredEntry {
    type Error = InvalidEntry;

    fn try_from(message: ca::Entry) -> Result<Self, InvalidEntry> {
        Ok(Self {
            id: EntryId::parse(&message.id)?,
            revision: message.revision,
            entry: message.try_into()?,
        })
    }
}

impl From<&RegisteredEntry> for ca::Entry {
    fn from(registered: &RegisteredEntry) -> Self {
        entry_message(&registered.id, &registered.entry, registered.revision)
    }
}

/// An entry with its id and the revision that wrote it, whatever its name is.
pub fn entry_message<Name: Display>(id: &EntryId, entry: &Entry<Name>, revision: u64) -> ca::Entry {
    ca::Entry {
        id: id.to_string(),
        spiffe_id: entry.spiffe_id.to_string(),
        parent_id: entry.parent.agent().map(ToString::to_string).unwrap_or_default(),
        node_selectors: (entry.parent.group().into_iter())
            .flat_map(|group| group.iter().map(ca::Selector::from))
            .collect(),
        is_default: entry.is_default,
        selectors: entry.selectors.iter().map(ca::Selector::from).collect(),
        x509_ttl_seconds: entry.x509_ttl,
        hint: entry.hint.clone(),
        dns_names: entry.dns_names.clone(),
        revision,
        created_at_unix: i64::try_from(entry.created_at).unwrap_or(i64::MAX),
        owner: entry.owner.clone(),
        jwt_ttl_seconds: entry.jwt_ttl,
        federates_with: entry.federates_with.iter().map(ToString::to_string).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hoplite_identity::SelectorKind;

    fn message(selectors: &[(&str, &str)]) -> ca::Entry {
        let selector = |(kind, value): &(&str, &str)| ca::Selector {
            kind: (*kind).into(),
            value: (*value).into(),
        };
        ca::Entry {
            id: "e".into(),
            spiffe_id: "spiffe://prod.example/a".into(),
            parent_id: "spiffe://prod.example/hoplite/agent/n1".into(),
            selectors: selectors.iter().map(selector).collect(),
            created_at_unix: 7,
            revision: 3,
            ..ca::Entry::default()
        }
    }

    #[test]
    fn an_entry_comes_back_with_its_selectors_in_their_order() {
        let sorted: Vec<Selector> = SelectorKind::ALL.map(|kind| kind.example().parse().unwrap()).into();
        let mut texts: Vec<_> = sorted
            .iter()
            .map(|selector| (selector.kind().as_str(), selector.value()))
            .collect();
        let canonical = message(&texts);
        texts.reverse();
        texts.push(texts[0]);
        let registered = RegisteredEntry::try_from(message(&texts)).unwrap();
        assert_eq!(registered.selectors.iter().cloned().collect::<Vec<_>>(), sorted);
        assert_eq!(ca::Entry::from(&registered), canonical);
        let of_group = ca::Entry {
            parent_id: String::new(),
            node_selectors: message(&[("node:name", "n1"), ("token:label", "web")]).selectors,
            is_default: true,
            ..canonical
        };
        let registered = RegisteredEntry::try_from(of_group.clone()).unwrap();
        assert_eq!(ca::Entry::from(&registered), of_group);
        let template = ca::Entry {
            spiffe_id: "spiffe://prod.example/k8s/{k8s:ns}/{k8s:sa}".into(),
            selectors: Vec::new(),
            ..of_group
        };
        let registered = RegisteredEntry::try_from(template.clone()).unwrap();
        assert_eq!(ca::Entry::from(&registered), template);
    }

    #[test]
    fn what_cannot_be_read_is_named_by_its_field() {
        let check = |change: &dyn Fn(&mut ca::Entry), expected: &str| {
            let mut message = message(&[("unix:uid", "1")]);
            change(&mut message);
            let error =
                RegisteredEntry::try_from(message).map_or_else(|error| error.to_string(), |_| "good".to_owned());
            assert!(error.contains(expected), "expected `{expected}`, got `{error}`");
        };
        let one = |kind: &'static str, value: &'static str| {
            move |e: &mut ca::Entry| e.selectors = message(&[(kind, value)]).selectors
        };
        check(&|_| (), "good");
        check(&|e| e.created_at_unix = -1, "good");
        check(&|e| e.id.clear(), "`id`: `` is not an entry's id");
        check(
            &|e| e.spiffe_id = "nonsense".into(),
            "`spiffe_id`: `nonsense` does not start",
        );
        check(
            &|e| e.spiffe_id = "spiffe://prod.example/{unix:user}".into(),
            "`spiffe_id`: `spiffe://prod.example/{unix:user}` has a placeholder in its trust domain or first segment",
        );
        check(&|e| e.parent_id.clear(), "`parent_id`, `node_selectors`: neither given");
        check(
            &|e| e.parent_id = "n1".into(),
            "write `spiffe://<trust domain>/hoplite/agent/<node>`",
        );
        let nodes = |texts: &'static [(&str, &str)]| {
            move |e: &mut ca::Entry| {
                e.parent_id.clear();
                e.node_selectors = message(texts).selectors;
            }
        };
        check(&nodes(&[("token:label", "web"), ("node:name", "n1")]), "good");
        check(
            &nodes(&[("label", "web")]),
            "`node_selectors`: `label` is no selector kind",
        );
        check(
            &nodes(&[("unix:uid", "1")]),
            "`node_selectors`: no node has `unix:uid:1`",
        );
        check(
            &|e| e.node_selectors = message(&[("token:label", "web")]).selectors,
            "both given; name either",
        );
        check(&one("", ""), "`selectors`: `` is no selector kind");
        check(&one("unix:uidd", "1"), "did you mean `unix:uid:1`?");
        check(&one("unix", "uidd:1"), "did you mean `unix:uid:1`?");
        check(&one("uid", "0"), "did you mean `unix:uid:0`?");
        // Parted in the wrong place: what is listed as `unix:uid:0` must be the selector that is attested.
        check(&one("unix", "uid:0"), "`unix` is no selector kind");
        check(&one("unix:uid", "root"), "did you mean `unix:user:root`?");
        check(&one("unix:path", "./x"), "an absolute path");
        check(&one("unix:uid", ""), "has no value");
    }
}
