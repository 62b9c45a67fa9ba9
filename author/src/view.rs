//! A policy as people see it: what its scope says, its conditions, and where in which file it stands.

use crate::conjunct::{Stretch, conjuncts, stretch_of};
use cedar_policy::{ActionConstraint, EntityUid, Policy, PrincipalConstraint, ResourceConstraint};
use hoplite_policy::text::{Text, statements};
use hoplite_policy::{Snapshot, Source};
use std::collections::{BTreeMap, HashMap};
use std::fmt;

/// What a policy does where it applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Effect {
    /// It lets through what no forbid stops.
    Permit,
    /// It stops.
    Forbid,
}

/// Where in which file, both from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The source's name.
    pub file: String,
    /// The line.
    pub line: usize,
    /// The character within the line.
    pub column: usize,
}

/// Where the policies of some sources stand. A snapshot itself does not keep it.
#[derive(Debug, Default)]
pub struct Places<'a> {
    texts: Vec<Text<'a>>,
    /// By the text of the policy, which holds its id and is therefore unique; which of the texts it is in, and where.
    statements: HashMap<&'a str, (usize, usize)>,
}

/// A policy in words that can be searched for in its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyView {
    /// Its `@id`.
    pub id: String,
    /// What it does.
    pub effect: Effect,
    /// Every annotation but `@id`.
    pub annotations: BTreeMap<String, String>,
    /// `principal in Hoplite::Path::"prod.acme/ns/web"`; just `principal` is anybody.
    pub principal: String,
    /// As above, of the action.
    pub action: String,
    /// As above, of the resource.
    pub resource: String,
    /// All of them have to hold.
    pub conditions: Vec<String>,
    /// Where it stands, if that is known.
    pub place: Option<Place>,
}

// === impl Effect ===

impl Effect {
    /// The word for it in policies.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Permit => "permit",
            Self::Forbid => "forbid",
        }
    }
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl From<cedar_policy::Effect> for Effect {
    fn from(effect: cedar_policy::Effect) -> Self {
        match effect {
            cedar_policy::Effect::Permit => Self::Permit,
            cedar_policy::Effect::Forbid => Self::Forbid,
        }
    }
}

// === impl Place ===

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

// === impl Places ===

impl<'a> Places<'a> {
    /// The places of the policies in these sources.
    pub fn of(sources: &'a [Source]) -> Self {
        let policies = sources.iter().filter(|source| source.name.ends_with(".cedar"));
        let texts: Vec<Text<'a>> = policies.map(|source| Text::new(&source.name, &source.text)).collect();
        let found = texts.iter().enumerate().flat_map(|(number, text)| {
            let statements = statements(text.text).into_iter();
            statements.map(move |statement| (statement.text, (number, statement.offset)))
        });
        Self {
            statements: found.collect(),
            texts,
        }
    }

    pub(crate) fn place(&self, stretch: Option<Stretch>) -> Option<Place> {
        let stretch = stretch?;
        let (number, offset) = self.statements.get(&*stretch.statement)?;
        let text = self.texts.get(*number)?;
        let (line, column) = text.position(offset.saturating_add(stretch.offset));
        Some(Place {
            file: text.file.to_owned(),
            line,
            column,
        })
    }
}

// === impl PolicyView ===

impl PolicyView {
    /// Every policy of a snapshot, sorted by id. `places` may be of other sources or empty; then nothing is said of where.
    pub fn all(snapshot: &Snapshot, places: &Places<'_>) -> Vec<Self> {
        let mut views: Vec<_> = snapshot.policies().map(|policy| Self::of(policy, places)).collect();
        views.sort_by(|a, b| a.id.cmp(&b.id));
        views
    }

    pub(crate) fn of(policy: &Policy, places: &Places<'_>) -> Self {
        let annotations = policy.annotations().filter(|(name, _)| *name != "id");
        Self {
            id: policy.id().to_string(),
            effect: policy.effect().into(),
            annotations: annotations
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            principal: principal_scope(policy),
            action: action_scope(policy),
            resource: resource_scope(policy),
            conditions: conjuncts(policy).into_iter().map(|conjunct| conjunct.text).collect(),
            place: places.place(stretch_of(policy)),
        }
    }

    /// Who owns it, if it says so.
    pub fn owner(&self) -> Option<&str> {
        self.annotations.get("owner").map(String::as_str)
    }
}

/// What each policy of a snapshot means, by id: equal for two policies that differ only in spaces and comments.
pub(crate) fn meanings(snapshot: &Snapshot) -> BTreeMap<String, String> {
    let policies = snapshot.policies().map(|policy| {
        let meaning = policy
            .to_json()
            .map_or_else(|_| policy.to_string(), |json| json.to_string());
        (policy.id().to_string(), meaning)
    });
    policies.collect()
}

fn principal_scope(policy: &Policy) -> String {
    match policy.principal_constraint() {
        PrincipalConstraint::Any => "principal".to_owned(),
        PrincipalConstraint::Is(name) => format!("principal is {name}"),
        PrincipalConstraint::Eq(uid) => format!("principal == {uid}"),
        PrincipalConstraint::In(uid) => format!("principal in {uid}"),
        PrincipalConstraint::IsIn(name, uid) => format!("principal is {name} in {uid}"),
    }
}

fn action_scope(policy: &Policy) -> String {
    match policy.action_constraint() {
        ActionConstraint::Any => "action".to_owned(),
        ActionConstraint::Eq(uid) => format!("action == {uid}"),
        ActionConstraint::In(uids) => match uids.as_slice() {
            [uid] => format!("action in {uid}"),
            uids => {
                let uids: Vec<_> = uids.iter().map(EntityUid::to_string).collect();
                format!("action in [{}]", uids.join(", "))
            }
        },
    }
}

fn resource_scope(policy: &Policy) -> String {
    match policy.resource_constraint() {
        ResourceConstraint::Any => "resource".to_owned(),
        ResourceConstraint::Is(name) => format!("resource is {name}"),
        ResourceConstraint::Eq(uid) => format!("resource == {uid}"),
        ResourceConstraint::In(uid) => format!("resource in {uid}"),
        ResourceConstraint::IsIn(name, uid) => format!("resource is {name} in {uid}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(text: &str) -> (Snapshot, Vec<Source>) {
        let sources = vec![Source {
            name: "pay.cedar".to_owned(),
            text: text.to_owned(),
        }];
        (Snapshot::compile(&sources).unwrap(), sources)
    }

    #[test]
    fn a_policy_is_shown_as_it_is_written() {
        let (snapshot, sources) = snapshot(
            "// first\n@id(\"a\") @owner(\"pay\")\npermit(principal in Hoplite::Path::\"x/ns/pay\",\n action in \
             [Hoplite::Action::\"read\", Hoplite::Action::\"POST\"],\n resource is Hoplite::Route in Hoplite::Service::\"ledger\")\n\
             when { context.seg.n == 2 &&\n  (context.host like \"l*\" && resource is Hoplite::Route in Hoplite::Service::\"ledger\") }\n\
             unless { context.host == // why\n \"b--c\" };\n@id(\"b\") forbid(principal, action, resource);",
        );
        let [a, b] = <[_; 2]>::try_from(PolicyView::all(&snapshot, &Places::of(&sources))).unwrap();
        assert_eq!(
            (a.effect, a.owner(), a.place.as_ref().unwrap().to_string().as_str()),
            (Effect::Permit, Some("pay"), "pay.cedar:2:1")
        );
        assert_eq!(a.principal, "principal in Hoplite::Path::\"x/ns/pay\"");
        assert_eq!(
            a.action,
            "action in [Hoplite::Action::\"read\", Hoplite::Action::\"POST\"]"
        );
        assert_eq!(a.resource, "resource is Hoplite::Route in Hoplite::Service::\"ledger\"");
        assert_eq!(
            a.conditions,
            [
                "context.seg.n == 2",
                "context.host like \"l*\"",
                "resource is Hoplite::Route in Hoplite::Service::\"ledger\"",
                "unless { context.host == \"b--c\" }",
            ]
        );
        assert_eq!(
            (b.principal.as_str(), b.action.as_str(), b.resource.as_str()),
            ("principal", "action", "resource")
        );
        assert_eq!(b.place.unwrap().to_string(), "pay.cedar:10:1");
        assert!(
            PolicyView::all(&snapshot, &Places::default())
                .iter()
                .all(|view| view.place.is_none())
        );
    }

    #[test]
    fn spaces_and_comments_mean_nothing() {
        let meaning = |text: &str| meanings(&snapshot(text).0);
        let a = meaning("@id(\"a\") permit(principal, action, resource) when { context.conn.dow == \"Mon\" };");
        let check = |text: &str, same: bool| assert_eq!(meaning(text) == a, same, "{text}");
        check(
            "// why\n@id(\"a\")\npermit (principal,action,resource)\nwhen {\n context.conn.dow==\"Mon\" // Monday\n};",
            true,
        );
        check(
            "@id(\"a\") permit(principal, action, resource) when { context.conn.dow == \"Tue\" };",
            false,
        );
        check(
            "@id(\"a\") forbid(principal, action, resource) when { context.conn.dow == \"Mon\" };",
            false,
        );
        check(
            "@id(\"a\") @owner(\"x\") permit(principal, action, resource) when { context.conn.dow == \"Mon\" };",
            false,
        );
        check("@id(\"a\") permit(principal, action, resource);", false);
    }
}
