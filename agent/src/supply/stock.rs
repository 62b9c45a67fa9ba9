//! What is wanted, what is there, what is due: the pure part of the supplier.
//!
//! It keeps a calendar, so that a change, a renewal or an expiry costs the same however many entries there are.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hoplite_host::backoff::Backoff;
use hoplite_identity::{BundleSet, EntryId, PeerVerifier, Selector, TrustBundle, X509Svid};

use crate::kept::record::SvidRecord;
use crate::node::link::RETRY;
use crate::renewal;
use crate::supply::agenda::{AT_ONCE, Agenda};
use crate::supply::changes::Changed;
use crate::supply::foreign::Foreign;
use crate::supply::held::HeldSvid;
use crate::supply::named::{NamedEntry, Registered, Template};
use crate::supply::shelf::{Restock, Supplied};

/// SVIDs asked for in one call: enough to make the round trip cheap, few enough to be answered at once.
const BATCH: usize = 200;

/// The longest sleep: clocks are set and machines suspended, and both must be noticed.
pub(crate) const SLEEP_MAX: Duration = Duration::from_secs(10);

/// Names of templates of one node: a process can make no more of them than users, pods and units that there are.
const NAMES_MAX: usize = 100_000;

/// A name that nobody uses is looked at again no sooner than this.
const REST_MIN: Duration = Duration::from_secs(1);

/// An SVID under an authority that was tainted meanwhile is replaced after this.
const TAINT_REST: Duration = Duration::from_secs(1);

/// All entries of this node and their SVIDs.
#[derive(Debug)]
pub(crate) struct Stock {
    wanted: HashMap<EntryId, Wanted>,
    agenda: Agenda,
    /// The ends of the SVIDs that are on the shelves.
    ends: BTreeSet<(SystemTime, EntryId)>,
    bundle: Option<Arc<TrustBundle>>,
    /// By that bundle.
    verifier: Option<Arc<PeerVerifier>>,
    /// Of the authorities that are not tainted; none while none is.
    sound: Option<Arc<PeerVerifier>>,
    /// Those whose SVID only a tainted authority vouches for.
    tainted: BTreeSet<EntryId>,
    /// From the disk: those whose entry was not named yet.
    restored: HashMap<EntryId, SvidRecord>,
    /// From the disk: names of templates; none for those that are over.
    restored_names: BTreeMap<EntryId, Option<Arc<NamedEntry>>>,
    templates: BTreeMap<EntryId, Arc<Template>>,
    /// The names of each template, which are among what is wanted.
    names: BTreeMap<EntryId, BTreeSet<EntryId>>,
    /// How many there are of all.
    names_count: usize,
    /// Names that are wanted no more, since they were asked for.
    forgotten: Vec<EntryId>,
    template_news: BTreeSet<EntryId>,
    dismissed: Option<Arc<str>>,
    /// Those that somebody waits for.
    asked: BTreeSet<EntryId>,
    /// What the shelves do not have yet.
    news: BTreeSet<EntryId>,
    is_bundle_news: bool,
    foreign: Arc<Foreign>,
    is_foreign_news: bool,
    /// When it was last looked at.
    looked: SystemTime,
    /// Whether the clock was set back so far that something is placed by what holds now only.
    is_set_back: bool,
}

/// An entry, and how far its SVID is.
#[derive(Debug)]
struct Wanted {
    entry: Arc<NamedEntry>,
    minted: Option<Minted>,
    failed: Option<Failed>,
    /// Its place in the agenda.
    due: SystemTime,
}

/// An SVID and the entry it was minted for.
#[derive(Debug)]
struct Minted {
    entry: Arc<NamedEntry>,
    svid: Arc<HeldSvid>,
    renew_at: SystemTime,
    /// Its renewal is late, as everybody's after an outage.
    late: bool,
    /// A name that nobody has used since: whether it is to be renewed is looked at again then.
    rests_until: Option<SystemTime>,
}

/// Failures in a row for one entry.
#[derive(Debug)]
struct Failed {
    backoff: Backoff,
    retry_at: SystemTime,
    /// Why, the last time.
    why: Arc<str>,
}

// === impl Stock ===

impl Default for Stock {
    fn default() -> Self {
        Self {
            wanted: HashMap::new(),
            agenda: Agenda::default(),
            ends: BTreeSet::new(),
            bundle: None,
            verifier: None,
            sound: None,
            tainted: BTreeSet::new(),
            restored: HashMap::new(),
            restored_names: BTreeMap::new(),
            templates: BTreeMap::new(),
            names: BTreeMap::new(),
            names_count: 0,
            forgotten: Vec::new(),
            template_news: BTreeSet::new(),
            dismissed: None,
            asked: BTreeSet::new(),
            news: BTreeSet::new(),
            is_bundle_news: false,
            foreign: Arc::default(),
            is_foreign_news: false,
            looked: UNIX_EPOCH,
            is_set_back: false,
        }
    }
}

impl Stock {
    /// What is registered from now on. What is no longer is forgotten, its key with it.
    pub(crate) fn want(&mut self, changed: Changed) {
        for (id, entry) in changed {
            match entry {
                Some(Registered::Named(entry)) => {
                    self.put_template(&id, None);
                    self.enter(entry);
                }
                Some(Registered::Template(template)) => {
                    self.strike(&id);
                    self.put_template(&id, Some(template));
                }
                None => {
                    self.strike(&id);
                    self.put_template(&id, None);
                }
            }
            self.news.insert(id);
        }
    }

    /// A template as it is now. Its names become what it makes of them; those that it gives no more are forgotten.
    fn put_template(&mut self, id: &EntryId, template: Option<Arc<Template>>) {
        for name in self.names.get(id).cloned().unwrap_or_default() {
            let was = self.wanted.get(&name).map(|wanted| Arc::clone(&wanted.entry));
            let fits = |template: &&Arc<Template>| was.as_ref().is_some_and(|was| template.fits(&was.selectors));
            let now = template.as_ref().filter(fits).zip(was.as_ref());
            let now = now.and_then(|(template, was)| template.named(&was.selectors).ok());
            match now.filter(|now| now.id == name) {
                Some(now) => self.enter(Arc::new(now)),
                None => self.strike(&name),
            }
            self.news.insert(name);
        }
        let is_news = match template {
            Some(template) => self.templates.insert(id.clone(), Arc::clone(&template)) != Some(template),
            None => self.templates.remove(id).is_some(),
        };
        if is_news {
            self.template_news.insert(id.clone());
        }
    }

    /// Takes on a name that somebody came with, if its template gives it still and there are not too many.
    fn take_on(&mut self, entry: &Arc<NamedEntry>) {
        let Some(origin) = entry.origin.as_ref().filter(|_| !self.wanted.contains_key(&entry.id)) else {
            return;
        };
        let Some(template) = self.templates.get(&origin.template) else {
            return;
        };
        if !template.named(&entry.selectors).is_ok_and(|now| now == **entry) {
            return; // whoever asked is woken, and asks for what it is now
        }
        if self.names_count >= NAMES_MAX {
            tracing::warn!(names = NAMES_MAX, spiffe_id = %entry.spiffe_id, "this node has too many names of templates; one more has to wait");
            return;
        }
        self.enter(Arc::clone(entry));
        self.news.insert(entry.id.clone());
    }

    /// Of names of templates: one that nobody has used since its SVID was minted, and that nobody waits for, is not renewed, and forgotten
    /// at its end; one that the CA refused, when nobody waits for it any more.
    pub(crate) fn rest_unused(&mut self, now: SystemTime, is_awaited: impl Fn(&BTreeSet<Selector>) -> bool) {
        self.notice(now);
        let due: Vec<EntryId> = match self.names_count {
            0 => return,
            _ => self
                .agenda
                .overdue(now)
                .filter(|id| self.is_name(id))
                .cloned()
                .collect(),
        };
        for id in due {
            let Some(wanted) = self.wanted.get_mut(&id) else {
                continue;
            };
            let is_new = wanted.minted.is_none() && wanted.failed.is_none();
            let is_used = wanted.minted.as_ref().is_some_and(|minted| minted.svid.is_used());
            if is_new
                || is_used
                || self.asked.contains(&id)
                || self.tainted.contains(&id)
                || is_awaited(&wanted.entry.selectors)
            {
                continue;
            }
            let left = wanted.minted.as_mut().filter(|minted| now < minted.end());
            match left {
                Some(minted) => {
                    // Again and again: whoever comes meanwhile has it renewed before its end.
                    let left = minted.end().duration_since(now).unwrap_or_default();
                    minted.rests_until = Some(now + REST_MIN.max(left / 4).min(left));
                    wanted.failed = None;
                    self.plan(&id);
                }
                None => {
                    self.strike(&id);
                    self.news.insert(id);
                }
            }
        }
    }

    fn is_name(&self, id: &EntryId) -> bool {
        self.wanted.get(id).is_some_and(|wanted| wanted.entry.origin.is_some())
    }

    /// Names that are wanted no more, once.
    pub(crate) fn take_forgotten(&mut self) -> Vec<EntryId> {
        // One that was asked for since is wanted again.
        let mut gone = std::mem::take(&mut self.forgotten);
        gone.retain(|id| !self.wanted.contains_key(id));
        gone
    }

    fn enter(&mut self, entry: Arc<NamedEntry>) {
        let id = entry.id.clone();
        let Some(wanted) = self.wanted.get_mut(&id) else {
            if let Some(origin) = &entry.origin {
                self.names
                    .entry(origin.template.clone())
                    .or_default()
                    .insert(id.clone());
                self.names_count += 1;
            }
            self.agenda.insert(AT_ONCE, &id);
            let wanted = Wanted {
                entry,
                minted: None,
                failed: None,
                due: AT_ONCE,
            };
            self.wanted.insert(id, wanted);
            return;
        };
        if wanted.entry != entry {
            wanted.failed = None;
        }
        let is_other = |minted: &mut Minted| minted.entry.spiffe_id != entry.spiffe_id;
        let other = wanted.minted.take_if(is_other);
        wanted.entry = entry;
        if let Some(minted) = other {
            self.ends.remove(&(minted.end(), id.clone()));
        }
        self.plan(&id);
    }

    fn strike(&mut self, id: &EntryId) {
        self.asked.remove(id);
        self.tainted.remove(id);
        if let Some(wanted) = self.wanted.remove(id) {
            self.agenda.remove(wanted.due, id);
            if let Some(minted) = wanted.minted {
                self.ends.remove(&(minted.end(), id.clone()));
            }
            if let Some(origin) = &wanted.entry.origin {
                self.names_count -= 1;
                self.forgotten.push(id.clone());
                if let Some(names) = self.names.get_mut(&origin.template) {
                    names.remove(id);
                    if names.is_empty() {
                        self.names.remove(&origin.template);
                    }
                }
            }
        }
    }

    /// The bundle of now. What it no longer vouches for is not handed out any more; what is vouched for by tainted
    /// authorities only, which `sound` leaves out, is replaced at once and handed out until then.
    pub(crate) fn trust(
        &mut self,
        bundle: &Arc<TrustBundle>,
        verifier: &Arc<PeerVerifier>,
        sound: Option<&Arc<PeerVerifier>>,
        now: SystemTime,
    ) {
        if self.bundle.as_ref() == Some(bundle) {
            return;
        }
        // That one more is trusted changes nothing for what is there.
        let has_all = self.bundle.as_ref().is_some_and(|before| bundle.has_all_of(before));
        // What was read at the start is judged when somebody asks for it; what an authority was taken away from, now.
        let looks = self.bundle.is_some() && !has_all;
        let is_foreign = |minted: &mut Minted| {
            let is_settled = has_all && minted.svid.is_opened();
            !is_settled && !minted.svid.is_vouched_for(verifier, now, looks)
        };
        (self.verifier, self.sound) = (Some(Arc::clone(verifier)), sound.cloned());
        self.tainted.clear();
        let mut moved = Vec::new();
        for (id, wanted) in &mut self.wanted {
            if let Some(minted) = wanted.minted.take_if(is_foreign) {
                self.ends.remove(&(minted.end(), id.clone()));
                moved.push(id.clone());
            }
            let (Some(minted), Some(sound)) = (&mut wanted.minted, sound) else {
                continue;
            };
            if !minted.svid.is_sound(sound, now) {
                minted.renew_at = AT_ONCE;
                minted.rests_until = None;
                self.tainted.insert(id.clone());
                moved.push(id.clone());
            }
        }
        for id in moved {
            self.plan(&id);
            self.news.insert(id);
        }
        self.bundle = Some(Arc::clone(bundle));
        self.is_bundle_news = true;
    }

    /// What is held of foreign trust domains now.
    pub(crate) fn federate(&mut self, foreign: &Arc<Foreign>) {
        if self.foreign != *foreign {
            self.foreign = Arc::clone(foreign);
            self.is_foreign_news = true;
        }
    }

    /// The next batch of entries to have minted: first what somebody waits for, then what is to be renewed, then the rest.
    pub(crate) fn due(&mut self, asked: BTreeMap<EntryId, Arc<NamedEntry>>, now: SystemTime) -> Vec<Arc<NamedEntry>> {
        self.notice(now);
        for (id, entry) in asked {
            self.take_on(&entry);
            // One from the disk may have turned out to be none when it was asked for.
            self.plan(&id);
            // There may be too many to take on one more.
            if self.wanted.contains_key(&id) {
                self.asked.insert(id);
            }
        }
        let is_due = |wanted: &&Wanted| wanted.due <= now;
        let asked_for = self.asked.iter().filter_map(|id| self.wanted.get(id)).filter(is_due);
        let others = self.agenda.overdue(now).filter(|id| !self.asked.contains(*id));
        let others = others.filter_map(|id| self.wanted.get(id));
        let due = asked_for.chain(others).take(BATCH);
        due.map(|wanted| Arc::clone(&wanted.entry)).collect()
    }

    /// Takes in an SVID, and says when it is to be renewed.
    pub(crate) fn minted(
        &mut self,
        entry: &Arc<NamedEntry>,
        svid: &Arc<X509Svid>,
        now: SystemTime,
        jitter: f64,
    ) -> SystemTime {
        self.notice(now);
        let not_after = svid.leaf().not_after();
        let before = self.wanted.get(&entry.id).and_then(|wanted| wanted.minted.as_ref());
        // What is replaced because of a taint is asked for by everybody at the same moment.
        let in_time = before.is_some_and(|before| !before.late) && !self.tainted.contains(&entry.id);
        let mut renew_at = match in_time {
            true => renewal::in_time(svid.renew_at(jitter), not_after, now),
            false => renewal::after_a_crowd(not_after, now, jitter),
        };
        // Most of what is minted is for nobody who is there.
        let is_used = self.asked.contains(&entry.id) || before.is_some_and(|before| before.svid.is_opened());
        let held = match &self.verifier {
            Some(verifier) if !is_used => HeldSvid::closed(svid, verifier),
            _ => HeldSvid::new(Arc::clone(svid)),
        };
        let is_tainted = self.sound.as_ref().is_some_and(|sound| !held.is_sound(sound, now));
        if is_tainted {
            // The CA has not heard of the taint itself: it is asked again, not at once.
            renew_at = renew_at.min(now + TAINT_REST);
        }
        let Some(wanted) = self.wanted.get_mut(&entry.id) else {
            return renew_at; // it was deleted meanwhile
        };
        let minted = Minted {
            entry: Arc::clone(entry),
            svid: Arc::new(held),
            renew_at,
            late: false,
            rests_until: None,
        };
        match is_tainted {
            true => self.tainted.insert(entry.id.clone()),
            false => self.tainted.remove(&entry.id),
        };
        let end = minted.end();
        wanted.failed = None;
        self.asked.remove(&entry.id);
        if let Some(old) = wanted.minted.replace(minted) {
            self.ends.remove(&(old.end(), entry.id.clone()));
        }
        self.ends.insert((end, entry.id.clone()));
        self.news.insert(entry.id.clone());
        self.plan(&entry.id);
        renew_at
    }

    /// What an earlier agent kept; `restore` takes in what of it is wanted.
    pub(crate) fn remember(
        &mut self,
        restored: HashMap<EntryId, SvidRecord>,
        names: BTreeMap<EntryId, Option<Arc<NamedEntry>>>,
    ) {
        (self.restored, self.restored_names) = (restored, names);
    }

    /// Takes in what an earlier agent kept of what is wanted, and forgets the rest of it. Whether there was any.
    pub(crate) fn restore(&mut self, verifier: &Arc<PeerVerifier>) -> bool {
        let had_some = !self.restored.is_empty();
        for (id, name) in std::mem::take(&mut self.restored_names) {
            name.iter().for_each(|name| self.take_on(name));
            if !self.wanted.contains_key(&id) {
                self.forgotten.push(id);
            }
        }
        for (id, record) in std::mem::take(&mut self.restored) {
            let Some(wanted) = self.wanted.get_mut(&id).filter(|wanted| wanted.minted.is_none()) else {
                continue;
            };
            let minted = Minted {
                entry: Arc::clone(&wanted.entry),
                renew_at: UNIX_EPOCH + Duration::from_secs(record.renew_at),
                svid: Arc::new(HeldSvid::kept(record, verifier)),
                late: false,
                rests_until: None,
            };
            self.ends.insert((minted.end(), id.clone()));
            wanted.minted = Some(minted);
            self.plan(&id);
            self.news.insert(id);
        }
        had_some
    }

    /// The CA is back: what should have been renewed meanwhile, and still counts, is renewed within a while.
    pub(crate) fn catch_up(&mut self, now: SystemTime, mut jitter: impl FnMut() -> f64) {
        self.notice(now);
        let overdue: Vec<EntryId> = self.agenda.overdue(now).cloned().collect();
        for id in overdue {
            let minted = self.wanted.get_mut(&id).and_then(|wanted| wanted.minted.as_mut());
            if let Some(minted) = minted.filter(|minted| minted.renew_at <= now && now < minted.end()) {
                minted.renew_at = renewal::catch_up(minted.end(), now, jitter());
                minted.rests_until = None;
                minted.late = true;
                self.plan(&id);
            }
        }
    }

    /// The CA's word when it has dismissed this node; nobody is given anything then.
    pub(crate) fn dismiss(&mut self, dismissed: Option<&Arc<str>>) {
        if self.dismissed.as_ref() != dismissed {
            self.dismissed = dismissed.cloned();
            self.is_bundle_news = true;
        }
    }

    /// There is no SVID, and why, in one line.
    pub(crate) fn failed(&mut self, entry: &NamedEntry, why: &str, now: SystemTime, jitter: f64) {
        self.notice(now);
        let Some(wanted) = self.wanted.get_mut(&entry.id) else {
            return;
        };
        let failed = wanted.failed.get_or_insert(Failed {
            backoff: RETRY,
            retry_at: now,
            why: Arc::default(),
        });
        if *failed.why != *why {
            failed.why = why.into();
        }
        failed.retry_at = now + failed.backoff.failed(jitter);
        self.asked.remove(&entry.id);
        // Whoever waits for it is told that it does not come.
        self.news.insert(entry.id.clone());
        self.plan(&entry.id);
    }

    /// How long the SVID at hand will still do.
    pub(crate) fn expires(&self, entry: &NamedEntry, now: SystemTime) -> Option<Duration> {
        let minted = self.wanted.get(&entry.id)?.minted.as_ref()?;
        minted.end().duration_since(now).ok()
    }

    /// How long there will be nothing to do: nothing due, nothing that expires.
    pub(crate) fn idle(&self, now: SystemTime) -> Duration {
        let end = self.ends.first();
        let end = end.map(|(end, _)| end.duration_since(now).unwrap_or_default());
        let next = [self.agenda.idle(now), end].into_iter().flatten();
        next.fold(SLEEP_MAX, Duration::min)
    }

    /// What is new for the shelves: nothing that has expired lies there.
    pub(crate) fn restock(&mut self, now: SystemTime) -> Restock {
        self.notice(now);
        while let Some((end, _)) = self.ends.first()
            && *end <= now
            && let Some((_, id)) = self.ends.pop_first()
        {
            self.news.insert(id);
        }
        let news = std::mem::take(&mut self.news);
        let entries = news.into_iter().map(|id| {
            let supplied = self.wanted.get(&id).map(|wanted| wanted.supplied(now));
            (id, supplied)
        });
        let entries = entries.collect();
        let template_news = std::mem::take(&mut self.template_news).into_iter();
        let templates = template_news.map(|id| (id.clone(), self.templates.get(&id).cloned()));
        let templates = templates.collect();
        let bundle = self.bundle.as_ref().filter(|_| self.dismissed.is_none());
        let bundle = std::mem::take(&mut self.is_bundle_news).then_some(bundle);
        Restock {
            entries,
            templates,
            bundles: bundle.map(|bundle| bundle.cloned().into_iter().collect::<BundleSet>()),
            foreign: std::mem::take(&mut self.is_foreign_news).then(|| Arc::clone(&self.foreign)),
            dismissed: self.dismissed.clone(),
            tainted: self.tainted.len(),
        }
    }

    /// Of a clock that was set back nothing is where it was: what had expired is valid again, what is valid may not be yet,
    /// and what rests would rest for long.
    fn notice(&mut self, now: SystemTime) {
        if now < self.looked || self.is_set_back && now != self.looked {
            self.is_set_back = false;
            self.agenda.clear();
            self.ends.clear();
            for (id, wanted) in &mut self.wanted {
                let is_too_early = wanted.is_too_early(now);
                self.is_set_back |= is_too_early;
                wanted.due = match is_too_early {
                    true => AT_ONCE,
                    false => wanted.due(),
                };
                self.agenda.insert(wanted.due, id);
                self.ends
                    .extend(wanted.minted.as_ref().map(|minted| (minted.end(), id.clone())));
                self.news.insert(id.clone());
            }
        }
        self.looked = now;
    }

    /// Puts an entry where it belongs in the agenda.
    fn plan(&mut self, id: &EntryId) {
        let Some(wanted) = self.wanted.get_mut(id) else { return };
        let due = match self.is_set_back && wanted.is_too_early(self.looked) {
            true => AT_ONCE,
            false => wanted.due(),
        };
        if due != wanted.due {
            self.agenda.remove(wanted.due, id);
            self.agenda.insert(due, id);
            wanted.due = due;
        }
    }
}

// === impl Wanted ===

impl Wanted {
    /// When something is to be done about it.
    fn due(&self) -> SystemTime {
        match (&self.failed, &self.minted) {
            (Some(failed), _) => failed.retry_at,
            (None, Some(minted)) if minted.is_good_for(&self.entry) => minted.rests_until.unwrap_or(minted.renew_at),
            (None, _) => AT_ONCE,
        }
    }

    /// Whether its times were reckoned by a clock that has been set back since.
    fn is_too_early(&self, now: SystemTime) -> bool {
        match (&self.failed, &self.minted) {
            (Some(failed), _) => !failed.backoff.rests(failed.retry_at, now),
            (None, Some(minted)) => minted.svid.not_before() > now,
            (None, None) => false,
        }
    }

    fn supplied(&self, now: SystemTime) -> Supplied {
        let valid = self.minted.as_ref();
        let valid = valid.filter(|minted| now < minted.end() && minted.svid.may_be_used());
        Supplied {
            entry: Arc::clone(&self.entry),
            svid: valid.map(|minted| Arc::clone(&minted.svid)),
            refused: self.failed.as_ref().map(|failed| Arc::clone(&failed.why)),
        }
    }
}

// === impl Minted ===

impl Minted {
    fn end(&self) -> SystemTime {
        self.svid.not_after()
    }

    /// Whether it can be used, and is what a new one would be.
    fn is_good_for(&self, entry: &NamedEntry) -> bool {
        self.svid.may_be_used() && self.entry.has_same_certificate(entry)
    }
}

#[cfg(test)]
mod tests;
