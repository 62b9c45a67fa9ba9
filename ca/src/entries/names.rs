//! What a workload of an entry is called, by values that its agent attested; and how many names an agent may have of one template.
//!
//! An agent names values and never the name. They are its word for what runs on its node, as the selectors are by which it picks an
//! entry: a node that is somebody else's says what it likes. What bounds it is the template's prefix, and the number of names that are
//! in use at once. They are counted in memory, by this CA: a restart begins at nothing, and several CAs count each for itself.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use hoplite_identity::{EntryId, Expansion, NoName, RegisteredEntry, Selector, SpiffeId};
use hoplite_telemetry::{Counter, Exposition, Kind};
use ring::digest::{SHA256, digest};

/// What is over is looked for when there are twice as many as after the last look, and so many at least.
const LOOKED_THROUGH: usize = 1024;

/// A name as it is counted. Two that are one here, which nobody finds, would be counted as one.
type NameDigest = [u8; 16];

/// The names that are in use, of all agents. Clones are the same ones.
#[derive(Debug, Clone)]
pub(crate) struct Names(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    in_use: Mutex<InUse>,
    max: AtomicUsize,
    refused: Counter,
}

#[derive(Debug, Default)]
struct InUse {
    /// When the last SVID of each ends.
    by_share: HashMap<(SpiffeId, EntryId), HashMap<NameDigest, SystemTime>>,
    count: usize,
    /// How many there were after the last look.
    left: usize,
}

/// An entry, and the name of one workload of it, within its agent's bound. Nothing is signed for an entry without one.
#[derive(Debug, Clone)]
pub(crate) struct Named {
    registered: Arc<RegisteredEntry>,
    name: Expansion,
}

/// Why there is no name. Each is the requester's to mend, or its operator's.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotNamed {
    #[error(transparent)]
    NoName(#[from] NoName),
    #[error(
        "this node has {max} names of the template `{template}` in use, and that is the most that `template_names_per_node` of the CA's \
         configuration allows; a name is free again when its last SVID has ended"
    )]
    TooMany { max: usize, template: String },
}

// === impl Names ===

impl Names {
    /// At most so many of one agent and template.
    pub(crate) fn new(max: usize) -> Self {
        Self(Arc::new(Shared {
            in_use: Mutex::default(),
            max: AtomicUsize::new(max),
            refused: Counter::default(),
        }))
    }

    /// From now on at most so many. What is in use stays so.
    pub(crate) fn set_max(&self, max: usize) {
        self.0.max.store(max, Relaxed);
    }

    /// The name that an entry, which the agent may have, gives by these values. It is in use until this end at least.
    pub(crate) fn name(
        &self,
        agent: &SpiffeId,
        registered: Arc<RegisteredEntry>,
        values: BTreeSet<Selector>,
        (now, end): (SystemTime, SystemTime),
    ) -> Result<Named, NotNamed> {
        let name = registered.name(values)?;
        if let Some(template) = registered.spiffe_id.template() {
            let max = self.0.max.load(Relaxed);
            let share = (agent.clone(), registered.id.clone());
            if !self.lock().takes(share, digest_of(name.spiffe_id()), (now, end), max) {
                self.0.refused.inc();
                let template = template.to_string();
                return Err(NotNamed::TooMany { max, template });
            }
        }
        Ok(Named { registered, name })
    }

    /// Adds what is in use to what is shown.
    pub(crate) fn register(&self, to: &mut Exposition) {
        to.register(
            "template_names_refused",
            "Names of templates that were refused, because their node has as many as it may",
            self.0.refused.clone(),
        );
        let names = self.clone();
        to.sampled(
            Kind::Gauge,
            "template_names",
            "Names of templates in use, of all nodes together",
            move |to| to.put(names.lock().count as u64),
        );
    }

    fn lock(&self) -> MutexGuard<'_, InUse> {
        self.0.in_use.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn digest_of(name: &SpiffeId) -> NameDigest {
    let mut first = NameDigest::default();
    let whole = digest(&SHA256, name.as_str().as_bytes());
    first.iter_mut().zip(whole.as_ref()).for_each(|(to, from)| *to = *from);
    first
}

// === impl InUse ===

impl InUse {
    /// Whether one more name has a place, or this one has it already.
    fn takes(
        &mut self,
        share: (SpiffeId, EntryId),
        name: NameDigest,
        (now, end): (SystemTime, SystemTime),
        max: usize,
    ) -> bool {
        if self.count >= LOOKED_THROUGH.max(2 * self.left) {
            self.look_through(now);
        }
        let of_share = self.by_share.entry(share).or_default();
        if let Some(known) = of_share.get_mut(&name) {
            *known = end.max(*known);
            return true;
        }
        if of_share.len() >= max {
            let before = of_share.len();
            of_share.retain(|_, end| now < *end);
            self.count -= before - of_share.len();
        }
        let is_free = of_share.len() < max;
        if is_free {
            of_share.insert(name, end);
            self.count += 1;
        }
        is_free
    }

    /// Forgets what is over, of agents that are gone too.
    fn look_through(&mut self, now: SystemTime) {
        self.by_share.retain(|_, of_share| {
            of_share.retain(|_, end| now < *end);
            !of_share.is_empty()
        });
        self.count = self.by_share.values().map(HashMap::len).sum();
        self.left = self.count;
    }
}

// === impl Named ===

impl Named {
    /// What is registered.
    pub(crate) fn registered(&self) -> &RegisteredEntry {
        &self.registered
    }

    /// The name.
    pub(crate) fn spiffe_id(&self) -> &SpiffeId {
        self.name.spiffe_id()
    }

    /// The values that it is made of, none where the entry is no template.
    pub(crate) fn values(&self) -> &BTreeSet<Selector> {
        self.name.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entries::entry::tests::{parse, sample};
    use std::time::{Duration, UNIX_EPOCH};

    fn registered(path: &str) -> Arc<RegisteredEntry> {
        Arc::new(RegisteredEntry {
            id: EntryId::parse("e").unwrap(),
            entry: parse(sample(path, "n1")).unwrap(),
            revision: 1,
        })
    }

    fn agent(node: &str) -> SpiffeId {
        SpiffeId::parse(&format!("spiffe://prod.example/hoplite/agent/{node}")).unwrap()
    }

    /// Asks for a name at a second, for an SVID of ten seconds.
    fn ask(names: &Names, node: &str, path: &str, values: &[&str], second: u64) -> String {
        let now = UNIX_EPOCH + Duration::from_secs(second);
        let values = values.iter().map(|text| text.parse().unwrap()).collect();
        let named = names.name(
            &agent(node),
            registered(path),
            values,
            (now, now + Duration::from_secs(10)),
        );
        named.map_or_else(|error| error.to_string(), |named| named.spiffe_id().path().to_owned())
    }

    #[test]
    fn the_ca_makes_the_name_of_values_and_of_nothing_else() {
        let names = Names::new(1000);
        let check = |path: &str, values: &[&str], expected: &str| {
            let found = ask(&names, "n1", path, values, 0);
            assert!(
                found.contains(expected),
                "{path} {values:?}: expected `{expected}`, got `{found}`"
            );
        };
        check("/orders", &[], "/orders");
        check(
            "/orders",
            &["unix:user:ann"],
            "`spiffe://prod.example/orders` has no place for `unix:user:ann`",
        );
        let by_user = "/user/{unix:user}";
        check(by_user, &["unix:user:ann"], "/user/ann");
        check(by_user, &["unix:user:../hoplite/ca"], "cannot stand in a SPIFFE ID");
        check(by_user, &[], "needs a value of `unix:user`");
        check(by_user, &["unix:user:ann", "unix:user:bob"], "there are several");
        check(
            by_user,
            &["unix:user:ann", "unix:gid:7"],
            "has no place for `unix:gid:7`",
        );
        // The entry is for `unix:uid:1000`.
        check("/uid/{unix:uid}", &["unix:uid:1000"], "/uid/1000");
        check(
            "/uid/{unix:uid}",
            &["unix:uid:1001"],
            "the entry is for processes with `unix:uid:1000`, and not `unix:uid:1001`",
        );
    }

    #[test]
    fn names_in_use_are_bounded_for_each_node_and_free_again_after_their_end() {
        let names = Names::new(2);
        let path = "/user/{unix:user}";
        let ask = |node: &str, user: &str, second| ask(&names, node, path, &[&format!("unix:user:{user}")], second);
        assert_eq!(ask("n1", "ann", 0), "/user/ann");
        assert_eq!(ask("n1", "bob", 5), "/user/bob");
        let refused = ask("n1", "cyd", 9);
        assert!(
            refused.contains("has 2 names of the template") && refused.contains("template_names_per_node"),
            "{refused}"
        );
        assert_eq!(names.0.refused.get(), 1);
        // Another node, and what is in use already, have their places.
        assert_eq!(ask("n2", "cyd", 9), "/user/cyd");
        assert_eq!(ask("n1", "bob", 9), "/user/bob");
        assert_eq!(ask("n1", "cyd", 10), "/user/cyd", "ann's has ended");
        assert!(ask("n1", "ann", 11).contains("has 2 names"));
        assert_eq!(names.lock().count, 3);
        names.set_max(3);
        assert_eq!(ask("n1", "ann", 11), "/user/ann");
    }

    #[test]
    fn what_is_over_is_forgotten_of_nodes_that_are_gone_too() {
        let names = Names::new(1000);
        for n in 0..LOOKED_THROUGH {
            ask(&names, &format!("n{n}"), "/user/{unix:user}", &["unix:user:ann"], 0);
        }
        assert_eq!(names.lock().count, LOOKED_THROUGH);
        ask(&names, "last", "/user/{unix:user}", &["unix:user:ann"], 10);
        let in_use = names.lock();
        assert_eq!((in_use.count, in_use.by_share.len()), (1, 1));
    }
}
