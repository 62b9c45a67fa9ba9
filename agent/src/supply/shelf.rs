//! What callers may be given, by their selectors: entries, their SVIDs, the trust bundles.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::SystemTime;

use hoplite_identity::{BundleSet, EntryId, NoName, Selector};
use tokio::sync::Notify;

use crate::supply::crowds::{Crowds, Place};
use crate::supply::foreign::Foreign;
use crate::supply::held::HeldSvid;
use crate::supply::named::{NamedEntry, Template};
use crate::supply::templates::Templates;

/// A shelf that has grown to twice this, four times this and so on is looked through for entries that lie better elsewhere.
const SHELF_LOOKED_THROUGH: usize = 64;

/// So many changes are put on the shelves at once: some hundred microseconds for which callers wait.
const PUT_AT_ONCE: usize = 256;

/// Names of templates that were refused last, for those who ask why: a look at each for every name that changes.
const REFUSED_NAMES_MAX: usize = 64;

/// Everything that callers may be given now. A change of one entry costs the same however many there are.
#[derive(Debug, Default)]
pub(crate) struct Supply {
    shelves: RwLock<Shelves>,
    /// Entries whose SVIDs somebody waits for.
    asked: Mutex<BTreeMap<EntryId, Arc<NamedEntry>>>,
    /// That somebody does.
    bell: Notify,
    /// Who hears of changes.
    crowds: Crowds,
    /// The CA issues nothing now: what is missing will not be there in a moment.
    is_dry: AtomicBool,
}

/// An entry and its SVID.
#[derive(Debug, Clone)]
pub(crate) struct Supplied {
    pub(crate) entry: Arc<NamedEntry>,
    /// None while it is being minted, or when it expired while the CA was away.
    pub(crate) svid: Option<Arc<HeldSvid>>,
    /// Why there was none when the CA was asked last, in one line; one that is missing comes in a moment otherwise.
    pub(crate) refused: Option<Arc<str>>,
}

/// What one caller may be given, at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Fitting {
    /// The default identity first.
    pub(crate) supplied: Vec<Supplied>,
    pub(crate) bundles: Arc<BundleSet>,
    /// Templates that it fits and that give it no name, and why.
    pub(crate) unnamed: Vec<(EntryId, NoName)>,
}

/// What is new on the shelves.
#[derive(Debug, Default)]
pub(crate) struct Restock {
    /// `None` for what went.
    pub(crate) entries: Vec<(EntryId, Option<Supplied>)>,
    /// Likewise.
    pub(crate) templates: Vec<(EntryId, Option<Arc<Template>>)>,
    /// If they changed.
    pub(crate) bundles: Option<BundleSet>,
    /// What is held of foreign trust domains, if that changed.
    pub(crate) foreign: Option<Arc<Foreign>>,
    /// The CA's word when it has dismissed this node, so that nobody is given anything.
    pub(crate) dismissed: Option<Arc<str>>,
    /// How many SVIDs are under a tainted authority still.
    pub(crate) tainted: usize,
}

#[derive(Debug, Default)]
struct Shelves {
    entries: HashMap<EntryId, Placed>,
    /// What gives names to those who come; the names are among the entries.
    templates: Templates,
    /// Each entry lies under the one of its selectors that was the rarest, so that a look-up sees few candidates.
    shelves: HashMap<Selector, HashSet<EntryId>>,
    /// How many entries have a selector.
    frequency: HashMap<Selector, usize>,
    /// Of names of templates, why they were refused last: such a name is soon forgotten, and somebody asks later.
    refused_names: VecDeque<(EntryId, Arc<str>)>,
    /// The ends of all SVIDs.
    ends: BTreeSet<(SystemTime, EntryId)>,
    /// What everybody is given.
    bundles: Arc<BundleSet>,
    foreign: Arc<Foreign>,
    dismissed: Option<Arc<str>>,
    tainted: usize,
}

#[derive(Debug)]
struct Placed {
    supplied: Supplied,
    /// None for one without selectors, which fits nobody.
    shelf: Option<Selector>,
}

// === impl Supplied ===

impl Supplied {
    /// The order of the default identity (W-10), an explicit rule: of all that a caller matches, first come those registered as
    /// default; of these, or of all when there is none, the entry with the most selectors, the most specific one; then the oldest;
    /// then by SPIFFE ID.
    pub(crate) fn order(&self, other: &Self) -> Ordering {
        let (a, b) = (&self.entry, &other.entry);
        let default = b.is_default.cmp(&a.is_default);
        let specific = || b.selectors.len().cmp(&a.selectors.len());
        let older = || a.created_at.cmp(&b.created_at);
        let name = || (&a.spiffe_id, &a.id).cmp(&(&b.spiffe_id, &b.id));
        default.then_with(specific).then_with(older).then_with(name)
    }

    /// Whether one that is missing comes in a moment.
    pub(crate) fn is_coming(&self) -> bool {
        self.refused.is_none()
    }

    /// Whether no caller could tell the one from the other.
    fn is_same(&self, other: &Self) -> bool {
        let svids = match (&self.svid, &other.svid) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        };
        svids && self.refused == other.refused && self.entry == other.entry
    }

    fn end(&self) -> Option<SystemTime> {
        self.svid.as_ref().map(|svid| svid.not_after())
    }
}

// === impl Supply ===

impl Supply {
    /// All of it at once.
    #[cfg(test)]
    pub(crate) fn new(entries: Vec<Supplied>, bundles: BundleSet) -> Self {
        let supply = Self::default();
        supply.replace(entries, bundles);
        supply
    }

    /// This, and nothing of what was there.
    #[cfg(test)]
    pub(crate) fn replace(&self, entries: Vec<Supplied>, bundles: BundleSet) {
        let there = self.all().into_iter().map(|gone| (gone.entry.id.clone(), None));
        let mut now: std::collections::BTreeMap<_, _> = there.collect();
        now.extend(entries.into_iter().map(|new| (new.entry.id.clone(), Some(new))));
        self.put(Restock {
            entries: now.into_iter().collect(),
            bundles: Some(bundles),
            ..Restock::default()
        });
    }

    /// Puts what is new in its place. Answers whether any caller could tell.
    pub(crate) fn put(&self, news: Restock) -> bool {
        let mut changed = Vec::new();
        let mut entries = news.entries.into_iter().peekable();
        let mut shelves = self.shelves.write().unwrap_or_else(PoisonError::into_inner);
        let mut concerns_all = shelves.dismissed != news.dismissed;
        shelves.dismissed = news.dismissed;
        shelves.tainted = news.tainted;
        if let Some(bundles) = news.bundles.filter(|bundles| *bundles != *shelves.bundles) {
            shelves.bundles = Arc::new(bundles);
            concerns_all = true;
        }
        if let Some(foreign) = news.foreign.filter(|foreign| *foreign != shelves.foreign) {
            shelves.foreign = foreign;
            concerns_all = true;
        }
        // Nobody may see another bundle with the SVIDs of before. Otherwise one piece after another, so that callers need
        // not wait for all of them.
        let at_once = if concerns_all { usize::MAX } else { PUT_AT_ONCE };
        // Whom a template is for is not looked for: it seldom changes, and whoever is woken for nothing is told nothing.
        concerns_all |= !news.templates.is_empty();
        for (id, template) in news.templates {
            shelves.templates.put(&id, template);
        }
        loop {
            for (id, supplied) in entries.by_ref().take(at_once) {
                shelves.put(&id, supplied, &mut changed);
            }
            drop(shelves);
            if entries.peek().is_none() {
                break;
            }
            shelves = self.shelves.write().unwrap_or_else(PoisonError::into_inner);
        }
        let is_new = concerns_all || !changed.is_empty();
        // After the change, so that whoever is woken finds it.
        match concerns_all {
            true => self.crowds.tell_all(),
            false => self.crowds.tell(changed.iter().map(Arc::as_ref)),
        }
        is_new
    }

    /// A place among those with these selectors, who hear of what they may have.
    pub(crate) fn join(&self, selectors: &BTreeSet<Selector>) -> Place {
        self.crowds.join(selectors)
    }

    /// The entries whose every selector is among these, and the bundles of the same moment.
    pub(crate) fn matching(&self, selectors: &BTreeSet<Selector>) -> Fitting {
        let shelves = self.shelves();
        let candidates = selectors
            .iter()
            .filter_map(|selector| shelves.shelves.get(selector))
            .flatten();
        let candidates = candidates.filter_map(|id| Some(&shelves.entries.get(id)?.supplied));
        let fitting = candidates.filter(|supplied| supplied.entry.selectors.is_subset(selectors));
        let mut supplied: Vec<Supplied> = fitting.cloned().collect();
        let mut unnamed = Vec::new();
        for template in shelves.templates.fitting(selectors) {
            match template.named(selectors) {
                // Among those above.
                Ok(named) if shelves.entries.contains_key(&named.id) => {}
                Ok(named) => supplied.push(Supplied {
                    entry: Arc::new(named),
                    svid: None,
                    refused: None,
                }),
                Err(reason) => unnamed.push((template.id.clone(), reason)),
            }
        }
        supplied.sort_by(Supplied::order);
        let entries = supplied.iter().map(|supplied| &*supplied.entry);
        let bundles = shelves.foreign.beside(&shelves.bundles, entries);
        Fitting {
            supplied,
            bundles,
            unnamed,
        }
    }

    /// Whether anybody waits for changes who has all of these.
    pub(crate) fn is_awaited(&self, selectors: &BTreeSet<Selector>) -> bool {
        self.crowds.has(selectors)
    }

    /// The templates.
    pub(crate) fn templates(&self) -> Vec<Arc<Template>> {
        self.shelves().templates.all().cloned().collect()
    }

    /// All of them, in the order of the default identity. It copies and sorts them, so it is not for every call.
    pub(crate) fn all(&self) -> Vec<Supplied> {
        let mut all: Vec<_> = self
            .shelves()
            .entries
            .values()
            .map(|placed| placed.supplied.clone())
            .collect();
        all.sort_by(Supplied::order);
        all
    }

    /// Why nobody is given anything, when the CA has dismissed this node.
    pub(crate) fn dismissed(&self) -> Option<Arc<str>> {
        self.shelves().dismissed.clone()
    }

    /// Whether this entry is registered as it was at this revision.
    pub(crate) fn holds(&self, id: &EntryId, revision: u64) -> bool {
        let shelves = self.shelves();
        let placed = shelves.entries.get(id);
        placed.is_some_and(|placed| placed.supplied.entry.revision == revision)
    }

    /// Whether this name of a template is there.
    pub(crate) fn holds_name(&self, id: &EntryId) -> bool {
        self.shelves().entries.contains_key(id)
    }

    /// Why this name of a template was refused when somebody asked for it last, if it was.
    pub(crate) fn refusal(&self, id: &EntryId) -> Option<Arc<str>> {
        let shelves = self.shelves();
        let found = shelves.refused_names.iter().find(|(name, _)| name == id);
        found.map(|(_, why)| Arc::clone(why))
    }

    /// How many entries are registered: a template is one, whatever names it gives. It counts them, so it is not for every call.
    pub(crate) fn registered(&self) -> usize {
        let shelves = self.shelves();
        let of_one_name = |placed: &&Placed| placed.supplied.entry.origin.is_none();
        shelves.entries.values().filter(of_one_name).count() + shelves.templates.all().count()
    }

    /// How many names there are for which an SVID is kept: of entries that have one, and those that templates gave.
    pub(crate) fn len(&self) -> usize {
        self.shelves().entries.len()
    }

    /// How many of them lack their SVID.
    pub(crate) fn without_svid(&self) -> usize {
        let shelves = self.shelves();
        shelves.entries.len().saturating_sub(shelves.ends.len())
    }

    /// How many SVIDs are under a tainted authority still.
    pub(crate) fn tainted(&self) -> usize {
        self.shelves().tainted
    }

    /// When the first of the SVIDs ends.
    pub(crate) fn first_end(&self) -> Option<SystemTime> {
        self.shelves().ends.first().map(|(end, _)| *end)
    }

    /// Whether the CA issues what is missing.
    pub(crate) fn is_dry(&self) -> bool {
        self.is_dry.load(Relaxed)
    }

    /// Whether the CA has stopped to issue, or issues again.
    pub(crate) fn set_dry(&self, is_dry: bool) {
        self.is_dry.store(is_dry, Relaxed);
    }

    /// Somebody waits for these SVIDs: they are minted first. A template's name may be one that nobody had before.
    pub(crate) fn ask_for(&self, entries: impl Iterator<Item = Arc<NamedEntry>>) {
        self.asked
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(entries.map(|entry| (entry.id.clone(), entry)));
        self.bell.notify_one();
    }

    /// Returns when somebody asks.
    pub(crate) async fn is_asked(&self) {
        self.bell.notified().await;
    }

    /// What was asked for since the last time.
    pub(crate) fn asked(&self) -> BTreeMap<EntryId, Arc<NamedEntry>> {
        std::mem::take(&mut self.asked.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn shelves(&self) -> RwLockReadGuard<'_, Shelves> {
        self.shelves.read().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Shelves ===

impl Shelves {
    /// One entry as it is now. When it was otherwise, both are added to what changed.
    fn put(&mut self, id: &EntryId, supplied: Option<Supplied>, changed: &mut Vec<Arc<NamedEntry>>) {
        if let Some(supplied) = &supplied {
            self.note_refusal(id, supplied);
        }
        let is_same = match (self.entries.get(id), &supplied) {
            (Some(placed), Some(supplied)) => placed.supplied.is_same(supplied),
            (None, None) => true,
            _ => false,
        };
        if is_same {
            return;
        }
        let old = self.entries.remove(id);
        let both = [old.as_ref().map(|placed| &placed.supplied), supplied.as_ref()];
        changed.extend(both.into_iter().flatten().map(|supplied| Arc::clone(&supplied.entry)));
        if let Some(end) = old.as_ref().and_then(|placed| placed.supplied.end()) {
            self.ends.remove(&(end, id.clone()));
        }
        if let Some(end) = supplied.as_ref().and_then(Supplied::end) {
            self.ends.insert((end, id.clone()));
        }
        match (old, supplied) {
            // Most changes are of SVIDs: then it lies where it lay.
            (Some(Placed { supplied: was, shelf }), Some(supplied))
                if was.entry.selectors == supplied.entry.selectors =>
            {
                self.entries.insert(id.clone(), Placed { supplied, shelf });
            }
            (old, supplied) => {
                if let Some(old) = old {
                    self.take_off(id, &old);
                }
                if let Some(supplied) = supplied {
                    self.place(id, supplied);
                }
            }
        }
    }

    fn note_refusal(&mut self, id: &EntryId, supplied: &Supplied) {
        if supplied.entry.origin.is_none() || (supplied.svid.is_none() && supplied.is_coming()) {
            return; // an entry stays, with what is said of it; and nothing is known yet of what is coming
        }
        self.refused_names.retain(|(name, _)| name != id);
        if let Some(why) = &supplied.refused {
            self.refused_names.push_back((id.clone(), Arc::clone(why)));
            if self.refused_names.len() > REFUSED_NAMES_MAX {
                self.refused_names.pop_front();
            }
        }
    }

    fn place(&mut self, id: &EntryId, supplied: Supplied) {
        for selector in &supplied.entry.selectors {
            *self.frequency.entry(selector.clone()).or_default() += 1;
        }
        let shelf = self.rarest(&supplied.entry);
        self.entries.insert(
            id.clone(),
            Placed {
                supplied,
                shelf: shelf.clone(),
            },
        );
        let Some(shelf) = shelf else { return };
        let lying = self.shelves.entry(shelf.clone()).or_default();
        lying.insert(id.clone());
        if lying.len() > SHELF_LOOKED_THROUGH && lying.len().is_power_of_two() {
            self.look_through(&shelf);
        }
    }

    fn take_off(&mut self, id: &EntryId, placed: &Placed) {
        for selector in &placed.supplied.entry.selectors {
            if let Some(count) = self.frequency.get_mut(selector) {
                *count -= 1;
                if *count == 0 {
                    self.frequency.remove(selector);
                }
            }
        }
        let Some(shelf) = &placed.shelf else { return };
        if let Some(lying) = self.shelves.get_mut(shelf) {
            lying.remove(id);
            if lying.is_empty() {
                self.shelves.remove(shelf);
            }
        }
    }

    /// Where an entry lies best, as things are now.
    fn rarest(&self, entry: &NamedEntry) -> Option<Selector> {
        let frequency = |selector: &&Selector| self.frequency.get(*selector);
        entry.selectors.iter().min_by_key(frequency).cloned()
    }

    /// A selector that was rare when the first entries came may be everybody's by now. Done as often as a shelf doubles, so
    /// each entry pays for a few of these looks at most.
    fn look_through(&mut self, shelf: &Selector) {
        let lying: Vec<EntryId> = self.shelves.get(shelf).into_iter().flatten().cloned().collect();
        for id in lying {
            let better = self
                .entries
                .get(&id)
                .and_then(|placed| self.rarest(&placed.supplied.entry));
            let Some(better) = better.filter(|better| better != shelf) else {
                continue;
            };
            if let Some(lying) = self.shelves.get_mut(shelf) {
                lying.remove(&id);
            }
            self.shelves.entry(better.clone()).or_default().insert(id.clone());
            if let Some(placed) = self.entries.get_mut(&id) {
                placed.shelf = Some(better);
            }
        }
        if self.shelves.get(shelf).is_some_and(HashSet::is_empty) {
            self.shelves.remove(shelf);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supply::testing::{entry, template, with};
    use hoplite_identity::SpiffeId;
    use proptest::prelude::*;

    fn id(path: &str) -> SpiffeId {
        SpiffeId::parse(&format!("spiffe://prod.example{path}")).unwrap()
    }

    fn bare(entry: NamedEntry) -> Supplied {
        Supplied {
            entry: Arc::new(entry),
            svid: None,
            refused: None,
        }
    }

    fn names(fitting: &Fitting) -> Vec<&str> {
        fitting
            .supplied
            .iter()
            .map(|supplied| supplied.entry.id.as_str())
            .collect()
    }

    #[test]
    fn w_10_the_default_identity_is_an_explicit_rule() {
        let make = |name: &str, path: &str, selectors: &[&str], created| {
            let selectors: Vec<_> = selectors.iter().map(|s| (*s).to_owned()).collect();
            bare(with(entry(name, &id(path), &selectors), |entry| {
                entry.created_at = created
            }))
        };
        let supply = Supply::new(
            vec![
                make("young", "/a", &["unix:uid:1"], 9),
                make("old-b", "/b", &["unix:uid:1"], 1),
                make("old-a", "/a", &["unix:gid:1"], 1),
                make("specific", "/z", &["unix:uid:1", "unix:path:/x"], 99),
                make("other", "/o", &["unix:uid:2"], 0),
            ],
            BundleSet::default(),
        );
        let check = |selectors: &[&str], expected: &[&str]| {
            let selectors = selectors.iter().map(|text| text.parse().unwrap()).collect();
            assert_eq!(names(&supply.matching(&selectors)), expected, "{selectors:?}");
        };
        check(
            &["unix:uid:1", "unix:gid:1", "unix:path:/x"],
            &["specific", "old-a", "old-b", "young"],
        );
        check(&["unix:uid:1"], &["old-b", "young"]);
        check(&["unix:path:/x"], &[]);
        check(&["unix:uid:2", "unix:uid:3"], &["other"]);
        check(&[], &[]);
    }

    #[test]
    fn a_template_gives_each_caller_its_own_name_or_says_why_not() {
        let supply = Supply::default();
        let template = Arc::new(template("t", "/user/{unix:user}", &["unix:gid:7"]));
        assert!(supply.put(Restock {
            templates: vec![(template.id.clone(), Some(Arc::clone(&template)))],
            ..Restock::default()
        }));
        let fitting = |user: &str| {
            let selectors = ["unix:gid:7".to_owned(), format!("unix:user:{user}")].map(|text| text.parse().unwrap());
            let fitting = supply.matching(&selectors.into());
            let paths = fitting
                .supplied
                .iter()
                .map(|supplied| supplied.entry.spiffe_id.path().to_owned());
            (paths.collect::<Vec<_>>(), fitting)
        };
        let (paths, ann) = fitting("ann");
        assert_eq!(paths, ["/user/ann"]);
        supply.ask_for(ann.supplied.iter().map(|supplied| Arc::clone(&supplied.entry)));
        assert_eq!(supply.asked().len(), 1);
        supply.put(Restock {
            entries: ann
                .supplied
                .into_iter()
                .map(|supplied| (supplied.entry.id.clone(), Some(supplied)))
                .collect(),
            ..Restock::default()
        });
        assert_eq!(fitting("ann").0, ["/user/ann"], "once");
        assert_eq!(
            (supply.registered(), supply.len()),
            (1, 1),
            "a template and its name are one entry"
        );
        assert_eq!(fitting("bob").0, ["/user/bob"]);
        let (none, odd) = fitting("svc-$");
        assert!(none.is_empty() && odd.unnamed[0].1.to_string().contains("`unix:user:svc-$` cannot stand"));
    }

    #[test]
    fn why_a_name_was_refused_is_known_after_it_is_forgotten_within_a_bound() {
        let supply = Supply::default();
        let template = template("t", "/user/{unix:user}", &[]);
        let named = |user: String| {
            let attested = [format!("unix:user:{user}").parse().unwrap()].into();
            template.named(&attested).unwrap()
        };
        let put = |entry: &NamedEntry, supplied: Option<Supplied>| {
            supply.put(Restock {
                entries: vec![(entry.id.clone(), supplied)],
                ..Restock::default()
            })
        };
        let refused = |entry: &NamedEntry, why: &str| Supplied {
            refused: Some(why.into()),
            ..bare(entry.clone())
        };
        let ann = named("ann".to_owned());
        assert!(supply.refusal(&ann.id).is_none());
        put(&ann, Some(refused(&ann, "too many")));
        put(&ann, None);
        assert_eq!(supply.refusal(&ann.id).as_deref(), Some("too many"));
        put(&ann, Some(bare(ann.clone())));
        assert!(
            supply.refusal(&ann.id).is_some(),
            "it is asked for again, and nothing is known yet"
        );
        put(&ann, Some(refused(&ann, "still")));
        assert_eq!(supply.refusal(&ann.id).as_deref(), Some("still"));
        for n in 0..REFUSED_NAMES_MAX {
            let other = named(format!("u{n}"));
            put(&other, Some(refused(&other, "too many")));
        }
        assert!(supply.refusal(&ann.id).is_none());
        assert_eq!(supply.shelves().refused_names.len(), REFUSED_NAMES_MAX);
    }

    #[test]
    fn a_shelf_that_was_rare_is_looked_through_when_it_grows() {
        let supply = Supply::default();
        let put = |n: usize, selectors: [String; 2]| {
            let entry = entry(&format!("e{n}"), &id("/a"), &selectors);
            supply.put(Restock {
                entries: vec![(entry.id.clone(), Some(bare(entry)))],
                ..Restock::default()
            })
        };
        // By these `unix:uid:1` is the rarer one, so what comes next lies there, until it is the commoner one.
        for n in 0..2000 {
            assert!(put(n, ["unix:gid:7".to_owned(), format!("unix:path:/{n}")]));
        }
        for n in 2000..2600 {
            put(n, ["unix:gid:7".to_owned(), "unix:uid:1".to_owned()]);
        }
        for n in 2600..6000 {
            put(n, ["unix:uid:1".to_owned(), format!("unix:path:/{n}")]);
        }
        let shelves = supply.shelves();
        let longest = shelves.shelves.values().map(HashSet::len).max().unwrap();
        // 600 have nothing rarer than one of the two.
        assert!(longest <= 600, "{longest}");
        let lying: usize = shelves.shelves.values().map(HashSet::len).sum();
        assert_eq!((lying, shelves.entries.len()), (6000, 6000));
    }

    proptest! {
        /// Whatever comes, changes and goes: the shelves are a shortcut, never a different answer, and nothing is left over.
        #[test]
        fn what_is_kept_up_finds_what_a_scan_finds(
            steps in proptest::collection::vec(
                (0u8..12, proptest::option::of((proptest::collection::btree_set(0u8..8, 1..4), 0u64..3))), 0..80,
            ),
            caller in proptest::collection::btree_set(0u8..8, 0..8),
        ) {
            let selector = |n: &u8| Selector::parse(&format!("unix:gid:{n}")).unwrap();
            let (supply, mut held) = (Supply::default(), BTreeMap::new());
            let selectors: BTreeSet<_> = caller.iter().map(selector).collect();
            for (n, step) in steps {
                let name = EntryId::parse(&format!("e{n}")).unwrap();
                let now = step.map(|(set, created)| {
                    with(entry(name.as_str(), &id("/a"), &[]), |entry| {
                        entry.selectors = set.iter().map(selector).collect();
                        entry.created_at = created;
                    })
                });
                let was = match now.clone() {
                    Some(entry) => held.insert(name.clone(), entry),
                    None => held.remove(&name),
                };
                let is_new = supply.put(Restock { entries: vec![(name, now.clone().map(bare))], ..Restock::default() });
                prop_assert_eq!(is_new, was != now);
                let mut expected: Vec<_> =
                    held.values().filter(|entry| entry.selectors.is_subset(&selectors)).cloned().map(bare).collect();
                expected.sort_by(Supplied::order);
                let expected: Vec<_> = expected.iter().map(|supplied| supplied.entry.id.as_str()).collect();
                let found = supply.matching(&selectors);
                prop_assert_eq!(names(&found), expected);
                let anew = Supply::new(held.values().cloned().map(bare).collect(), BundleSet::default());
                prop_assert_eq!(&supply.shelves().frequency, &anew.shelves().frequency);
                let lying: usize = supply.shelves().shelves.values().map(HashSet::len).sum();
                prop_assert_eq!((lying, supply.len()), (held.len(), held.len()));
            }
        }
    }
}
