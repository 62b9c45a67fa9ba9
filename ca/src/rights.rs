//! Who may do what to this CA: Cedar policies, of the directory that the operator names or of this program.

pub(crate) mod action;
pub(crate) mod files;
pub(crate) mod words;

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use hoplite_host::hand;
use hoplite_identity::TrustDomain;
use hoplite_policy::Source;
use hoplite_policy::rules::{Fact, Rules, Ruling, Thing};
use hoplite_seal::Hash;

use crate::rights::action::Action;
use crate::rights::files::RightsError;
use crate::rights::words::{Way, What, Who};

/// What the policies speak of.
pub(crate) const SCHEMA: &str = include_str!("../admin/admin.cedarschema");

/// Those in force where nothing else is said.
const DEFAULT: &str = include_str!("../admin/default.cedar");

/// As faults in it are told.
const DEFAULT_NAME: &str = "default.cedar";

/// The rights in force. Clones are the same ones.
#[derive(Debug, Clone)]
pub(crate) struct Rights(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    trust_domain: TrustDomain,
    rules: RwLock<Arc<Rules>>,
}

/// Admin policies that were read and can be used.
#[derive(Debug)]
pub(crate) struct ReadRules {
    rules: Rules,
    /// Of their texts.
    digest: Hash,
}

/// The rights as they were when a call began.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    trust_domain: TrustDomain,
    rules: Arc<Rules>,
}

/// Why somebody may not do something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{who} may not do `{action}` to {what}: {why}")]
pub(crate) struct Refused {
    who: String,
    action: &'static str,
    what: String,
    why: String,
}

/// Whether a CA that runs as this user could go by the admin policies of a directory, for tools that look at it from outside.
///
/// # Errors
/// Why it could not.
pub fn check_admin_policies(directory: &Path, user: u32) -> Result<(), RightsError> {
    Rights::read_by(Some(directory), user).map(drop)
}

// === impl Rights ===

impl Rights {
    /// Those of a directory, or those of this program.
    pub(crate) fn open(read: ReadRules, trust_domain: TrustDomain) -> Self {
        let rules = RwLock::new(Arc::new(read.rules));
        Self(Arc::new(Shared { trust_domain, rules }))
    }

    /// Reads those of a directory, or those of this program. Where they cannot be used, those that are in force stay.
    pub(crate) fn read(directory: Option<&Path>) -> Result<ReadRules, RightsError> {
        Self::read_by(directory, hand::own_user())
    }

    fn read_by(directory: Option<&Path>, user: u32) -> Result<ReadRules, RightsError> {
        let sources = match directory {
            Some(directory) => files::read(directory, user)?,
            None => vec![Source {
                name: DEFAULT_NAME.to_owned(),
                text: DEFAULT.to_owned(),
            }],
        };
        let mut texts = String::new();
        for Source { name, text } in &sources {
            texts.push_str(&format!("{name}\n{}\n{text}", text.len()));
        }
        let rules = Rules::compile(SCHEMA, &sources).map_err(|faults| RightsError::faults(directory, &faults))?;
        let digest = Hash::of(texts.as_bytes());
        Ok(ReadRules { rules, digest })
    }

    /// From now on these count.
    pub(crate) fn take(&self, read: ReadRules) {
        tracing::info!(target: "hoplite::audit", policies = read.rules.len(), "the admin policies were read again");
        *self.0.rules.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(read.rules);
    }

    /// What the trust domain is called.
    pub(crate) fn trust_domain(&self) -> &TrustDomain {
        &self.0.trust_domain
    }

    /// Those in force now.
    pub(crate) fn now(&self) -> Held {
        let rules = Arc::clone(&self.0.rules.read().unwrap_or_else(PoisonError::into_inner));
        Held {
            trust_domain: self.0.trust_domain.clone(),
            rules,
        }
    }
}

impl ReadRules {
    /// SHA-256 of their names and texts, hex.
    pub(crate) fn digest(&self) -> String {
        self.digest.to_string()
    }
}

// === impl Held ===

impl Held {
    /// Whether there is anything at all to which this may be done. Without this a call is refused before its body is read.
    pub(crate) fn may_ever(&self, who: &Who, action: Action) -> Result<(), Refused> {
        let thing = who.thing(&self.trust_domain);
        if self.rules.may_ever(&thing, action.name()) {
            return Ok(());
        }
        let what = "anything".to_owned();
        Err(refused(who, action, what, Ruling::NotPermitted))
    }

    /// Whether this may call anything.
    pub(crate) fn may_call(&self, who: &Who) -> bool {
        let thing = who.thing(&self.trust_domain);
        Action::ALL
            .iter()
            .any(|action| self.rules.may_ever(&thing, action.name()))
    }

    /// The policies by which this may be done.
    pub(crate) fn ask(&self, who: &Who, action: Action, what: What<'_>, way: Way) -> Result<Vec<String>, Refused> {
        let thing = who.thing(&self.trust_domain);
        self.rulings(&thing, action, what, way)
            .map_err(|(action, ruling)| refused(who, action, what.to_string(), ruling))
    }

    /// Of many: the policies by which all of this may be done. A thousand entries of somebody who may do everything cost no more than
    /// one.
    pub(crate) fn ask_all<'a>(
        &self,
        who: &Who,
        action: Action,
        all: impl IntoIterator<Item = What<'a>>,
        way: Way,
    ) -> Result<Vec<String>, Refused> {
        let thing = who.thing(&self.trust_domain);
        if let Some(by) = self.always(who, action) {
            return Ok(vec![by]);
        }
        let mut by = Vec::new();
        for what in all {
            let ids = self.rulings(&thing, action, what, way);
            by.extend(ids.map_err(|(action, ruling)| refused(who, action, what.to_string(), ruling))?);
            by.sort();
            by.dedup();
        }
        Ok(by)
    }

    /// The policy by which this may be done to anything at all.
    pub(crate) fn always(&self, who: &Who, action: Action) -> Option<String> {
        let thing = who.thing(&self.trust_domain);
        // Among the entries may be one of a nested CA.
        let has_all = !action.changes_entries() || self.rules.always(&thing, Action::RegisterNestedCa.name()).is_some();
        let by = self.rules.always(&thing, action.name()).filter(|_| has_all);
        by.map(str::to_owned)
    }

    /// The roles that policies speak of.
    pub(crate) fn roles(&self) -> Vec<String> {
        self.rules.named("Role").into_iter().collect()
    }

    /// The policies by which this may be done: whoever registers a nested CA makes one that may sign for all of the trust domain, so
    /// that is asked besides. Otherwise what is not permitted, and why.
    fn rulings(&self, who: &Thing, action: Action, what: What<'_>, way: Way) -> Result<Vec<String>, (Action, Ruling)> {
        let besides = match what {
            What::Entry(entry) if entry.spiffe_id.nested_ca().is_some() && action.changes_entries() => {
                Some(Action::RegisterNestedCa)
            }
            _ => None,
        };
        let mut by = Vec::new();
        for action in std::iter::once(action).chain(besides) {
            match self.ruling(who, action, what, way) {
                Ruling::Permitted(ids) => by.extend(ids),
                ruling => return Err((action, ruling)),
            }
        }
        by.sort();
        by.dedup();
        Ok(by)
    }

    fn ruling(&self, who: &Thing, action: Action, what: What<'_>, way: Way) -> Ruling {
        let mut context = vec![("way", Fact::Text(way.name().to_owned()))];
        if let Way::Network(source) = way {
            context.push(("source", Fact::Address(source)));
        }
        self.rules
            .ask(who, action.name(), &what.thing(&self.trust_domain), &context)
    }

    #[cfg(test)]
    pub(crate) fn actions(&self) -> std::collections::BTreeMap<String, std::collections::BTreeSet<String>> {
        self.rules.actions()
    }
}

fn refused(who: &Who, action: Action, what: String, ruling: Ruling) -> Refused {
    let why = match ruling {
        Ruling::Forbidden(by) => format!("the admin policy `{}` forbids it", by.join("`, `")),
        Ruling::Undecided(reason) => {
            tracing::error!(target: "hoplite::audit", %who, action = action.name(), reason, "an admin policy cannot be evaluated");
            format!("the admin policies cannot decide it ({reason}); mend them")
        }
        Ruling::NotPermitted | Ruling::Permitted(_) => {
            "no admin policy permits it; an admin can give another role with `hoplite token create --operator NAME --role ROLE`"
                .to_owned()
        }
    };
    Refused {
        who: who.to_string(),
        action: action.name(),
        what,
        why,
    }
}

#[cfg(test)]
mod tests;
