//! Places for connections and streams, bounded in total and for each source, and given to newcomers in a fair way.
//!
//! A connection comes as a *newcomer*: it has shown nothing yet. Once it has shown what makes it worth keeping (a complete
//! handshake, a first request) it *settles*. The bounds are for those who have settled; an eighth more is kept for
//! newcomers. So there is always room for one more newcomer: where there is no free place, the oldest newcomer of the source
//! that holds most loses its own. Newcomers never take a place from one that has settled. Who settles when all places are
//! taken gets that of the one idle for longest, again of the source that holds most; when none is idle it is refused.
//!
//! Strangers who say nothing therefore keep nobody out, however many they are and wherever they come from: from the
//! same address too, somebody who goes on to speak has to be quick only in comparison to a thousand others who came later.

mod rank;

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::clock;
use rank::Rank;

/// One more place is kept for newcomers for so many that have settled.
const SETTLED_PER_NEWCOMER: usize = 8;

/// Newcomers that lose their places at once when the system has no descriptor left.
const RELIEF: usize = 64;

/// Who is refused may try again as fast as it can; the log need not say it as often.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// Who takes a place, as far as the kernel says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// A process, by its pid.
    Process(i32),
    /// A user, by its uid: all its processes together.
    User(u32),
    /// An address. Of IPv6 a prefix of 64 bits, because one host may take any address below it.
    Address(IpAddr),
}

/// How many places there are for those who have settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// For all together.
    pub total: usize,
    /// For one process, so that one cannot take them all.
    pub per_process: usize,
    /// For all processes of one user, so that a user with many of them cannot take them all either.
    pub per_user: usize,
    /// For one address.
    pub per_address: usize,
}

/// Places; clones share them.
#[derive(Debug, Clone)]
pub struct Slots(Arc<Shared>);

/// A place, given back when dropped. Whoever holds it waits for [`Slot::evicted`], and ends then.
#[derive(Debug)]
pub struct Slot {
    holder: Arc<Holder>,
    slots: Arc<Shared>,
}

/// Something is under way at a place: as long as it is, the place is not idle.
#[derive(Debug)]
pub struct Busy(Arc<Holder>);

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// All are taken.
    #[error("all {0} places are taken, and none is idle")]
    Total(usize),
    /// The source has as many as one may have.
    #[error("{0} holds {1} places, as many as one may, and none is idle")]
    Source(Source, usize),
    /// It had one, and has lost it.
    #[error("its place was given to another")]
    Evicted,
}

/// What the bounds have done since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Newcomers that lost their places to later ones.
    pub newcomers_evicted: u64,
    /// Idle ones that lost their places to others that settled.
    pub idle_evicted: u64,
    /// Those that found no place.
    pub refused: u64,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Told whenever a place is given back.
    gone: Notify,
}

#[derive(Debug)]
struct State {
    /// For the log.
    name: Arc<str>,
    bounds: Bounds,
    newcomers: Rank<Source, Arc<Holder>>,
    settled: Rank<Source, Arc<Holder>>,
    /// Who holds a [`Slot`], among them those that were evicted and have not ended yet.
    open: usize,
    came: u64,
    counts: Counts,
    told: Option<Instant>,
    untold: u64,
}

#[derive(Debug)]
struct Holder {
    /// From the widest to the narrowest.
    path: Box<[Source]>,
    came: u64,
    began: Instant,
    settled: AtomicBool,
    evicted: AtomicBool,
    under_way: AtomicUsize,
    /// Nanoseconds since `began`.
    idle_since: AtomicU64,
    waiting: Mutex<Option<Waker>>,
}

// === impl Source ===

impl Source {
    /// The source of a connection from this address.
    pub fn address(ip: IpAddr) -> Self {
        Self::Address(match ip.to_canonical() {
            IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & (u128::MAX << 64))),
            ip @ IpAddr::V4(_) => ip,
        })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process(pid) => write!(f, "process {pid}"),
            Self::User(uid) => write!(f, "user {uid}"),
            Self::Address(ip) => write!(f, "address {ip}"),
        }
    }
}

// === impl Bounds ===

impl Bounds {
    /// Of a Unix socket.
    pub const fn local(total: usize, per_process: usize, per_user: usize) -> Self {
        Self {
            total,
            per_process,
            per_user,
            per_address: total,
        }
    }

    /// Of a TCP port.
    pub const fn network(total: usize, per_address: usize) -> Self {
        Self {
            total,
            per_process: total,
            per_user: total,
            per_address,
        }
    }

    /// The same, in proportion, with no more than so many in all: for a system that has no more descriptors.
    #[must_use]
    pub fn at_most(self, total: usize) -> Self {
        if self.total <= total {
            return self;
        }
        let scaled = |bound: usize| (bound.saturating_mul(total) / self.total.max(1)).max(1);
        Self {
            total: total.max(1),
            per_process: scaled(self.per_process),
            per_user: scaled(self.per_user),
            per_address: scaled(self.per_address),
        }
    }

    /// For those who have settled below the last of these sources.
    fn of(&self, prefix: &[Source]) -> usize {
        match prefix.last() {
            None => self.total,
            Some(Source::Process(_)) => self.per_process,
            Some(Source::User(_)) => self.per_user,
            Some(Source::Address(_)) => self.per_address,
        }
    }

    /// … and for newcomers as well.
    fn with_newcomers(&self, prefix: &[Source]) -> usize {
        let settled = self.of(prefix);
        settled.saturating_add((settled / SETTLED_PER_NEWCOMER).max(1))
    }
}

// === impl Slots ===

impl Slots {
    /// As many free places as the bounds say. `name` is for the log.
    pub fn new(name: impl Into<Arc<str>>, bounds: Bounds) -> Self {
        Self(Arc::new(Shared {
            state: Mutex::new(State::new(name.into(), bounds)),
            gone: Notify::new(),
        }))
    }

    /// From now on these bounds count, under this name. Who holds a place keeps it, and as long as more are held than may
    /// be, none is given.
    pub fn change(&self, name: impl Into<Arc<str>>, bounds: Bounds) {
        let mut state = self.0.state();
        (state.name, state.bounds) = (name.into(), bounds);
    }

    /// Whether both are the same places.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// A newcomer's place. The sources go from the widest to the narrowest: a user, and its process.
    ///
    /// # Errors
    /// [`Full`], where the bounds leave no room for newcomers at all.
    pub fn admit(&self, path: &[Source]) -> Result<Slot, Full> {
        let mut state = self.0.state();
        for prefix in prefixes(path) {
            let held = state.newcomers.count(prefix) + state.settled.count(prefix);
            if held < state.bounds.with_newcomers(prefix) {
                continue;
            }
            let Some(victim) = state.newcomers.oldest_of_biggest(prefix).cloned() else {
                return Err(state.refuse(prefix));
            };
            state.counts.newcomers_evicted += 1;
            state.evict(&victim);
            state.tell("a connection that had shown nothing yet was closed for a new one");
        }
        let holder = state.add(path, false);
        drop(state);
        Ok(Slot {
            holder,
            slots: self.0.clone(),
        })
    }

    /// A place of one who has settled, for which nobody else loses one.
    ///
    /// # Errors
    /// [`Full`], and which bound it is.
    pub fn take(&self, path: &[Source]) -> Result<Slot, Full> {
        let mut state = self.0.state();
        if let Some(prefix) = prefixes(path).find(|prefix| state.settled.count(prefix) >= state.bounds.of(prefix)) {
            return Err(state.refuse(prefix));
        }
        let holder = state.add(path, true);
        drop(state);
        Ok(Slot {
            holder,
            slots: self.0.clone(),
        })
    }

    /// Some newcomers lose their places without another's taking them. False if there are none.
    pub fn relieve(&self) -> bool {
        let mut state = self.0.state();
        let mut relieved = false;
        for _ in 0..RELIEF {
            let Some(victim) = state.newcomers.oldest_of_biggest(&[]).cloned() else {
                break;
            };
            state.counts.newcomers_evicted += 1;
            state.evict(&victim);
            relieved = true;
        }
        relieved
    }

    /// How many places are taken.
    pub fn open(&self) -> usize {
        self.0.state().open
    }

    /// What the bounds have done since the start.
    pub fn counts(&self) -> Counts {
        self.0.state().counts
    }

    /// Returns once every place was given back, for those who admit nobody any more.
    pub async fn drained(&self) {
        loop {
            let mut gone = std::pin::pin!(self.0.gone.notified());
            gone.as_mut().enable();
            if self.0.state().open == 0 {
                return;
            }
            gone.await;
        }
    }
}

/// All of the sources, then all but the narrowest, and so on to none, which stands for everybody.
fn prefixes(path: &[Source]) -> impl Iterator<Item = &[Source]> {
    (0..=path.len()).rev().filter_map(|length| path.get(..length))
}

// === impl Shared ===

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl State ===

impl State {
    fn new(name: Arc<str>, bounds: Bounds) -> Self {
        Self {
            name,
            bounds,
            newcomers: Rank::default(),
            settled: Rank::default(),
            open: 0,
            came: 0,
            counts: Counts::default(),
            told: None,
            untold: 0,
        }
    }

    fn add(&mut self, path: &[Source], settled: bool) -> Arc<Holder> {
        self.came += 1;
        self.open += 1;
        let holder = Arc::new(Holder {
            path: path.into(),
            came: self.came,
            began: clock::moment(),
            settled: AtomicBool::new(settled),
            evicted: AtomicBool::new(false),
            under_way: AtomicUsize::new(0),
            idle_since: AtomicU64::new(0),
            waiting: Mutex::default(),
        });
        let rank = if settled {
            &mut self.settled
        } else {
            &mut self.newcomers
        };
        rank.insert(path, holder.came, holder.clone());
        holder
    }

    fn remove(&mut self, holder: &Holder) {
        let rank = if holder.settled.load(Relaxed) {
            &mut self.settled
        } else {
            &mut self.newcomers
        };
        rank.remove(&holder.path, holder.came);
    }

    fn evict(&mut self, holder: &Holder) {
        self.remove(holder);
        holder.evicted.store(true, SeqCst);
        let waker = holder.waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn settle(&mut self, holder: &Arc<Holder>) -> Result<(), Full> {
        if holder.evicted.load(SeqCst) {
            return Err(Full::Evicted);
        }
        if holder.settled.load(Relaxed) {
            return Ok(());
        }
        for prefix in prefixes(&holder.path) {
            if self.settled.count(prefix) < self.bounds.of(prefix) {
                continue;
            }
            // It takes from nobody who holds fewer than those whom it belongs to.
            let own = holder
                .path
                .get(..=prefix.len())
                .map_or(0, |own| self.settled.count(own));
            let idlest = self.settled.least_of_biggest(prefix, own, &|other| other.idle_since());
            let Some(victim) = idlest.cloned() else {
                return Err(self.refuse(prefix));
            };
            self.counts.idle_evicted += 1;
            self.evict(&victim);
            self.tell("an idle connection was closed for a new one");
        }
        self.remove(holder);
        holder.settled.store(true, Relaxed);
        self.settled.insert(&holder.path, holder.came, holder.clone());
        Ok(())
    }

    fn refuse(&mut self, prefix: &[Source]) -> Full {
        let bound = self.bounds.of(prefix);
        let full = match prefix.last() {
            Some(source) => Full::Source(*source, bound),
            None => Full::Total(bound),
        };
        self.counts.refused += 1;
        self.tell(format_args!("a connection was refused: {full}"));
        full
    }

    /// One line, and how often it was so since the last one.
    fn tell(&mut self, what: impl fmt::Display) {
        self.untold += 1;
        let now = clock::moment();
        if self
            .told
            .is_some_and(|told| now.saturating_duration_since(told) < TOLD_EVERY)
        {
            return;
        }
        tracing::warn!(
            socket = &*self.name,
            times = self.untold,
            "all places are taken: {what}"
        );
        self.told = Some(now);
        self.untold = 0;
    }
}

// === impl Holder ===

impl Holder {
    /// Since when nothing is under way; none if something is.
    fn idle_since(&self) -> Option<Instant> {
        let idle = Duration::from_nanos(self.idle_since.load(Relaxed));
        (self.under_way.load(Relaxed) == 0).then(|| self.began + idle)
    }

    fn touch(&self) {
        let nanos = clock::moment().saturating_duration_since(self.began).as_nanos();
        self.idle_since.store(u64::try_from(nanos).unwrap_or(u64::MAX), Relaxed);
    }
}

// === impl Slot ===

impl Slot {
    /// It has shown what makes it worth keeping. Once is enough; again does nothing.
    ///
    /// # Errors
    /// [`Full`]: all places are taken, and none is idle.
    pub fn settle(&self) -> Result<(), Full> {
        if self.holder.settled.load(Relaxed) && !self.is_evicted() {
            return Ok(());
        }
        self.slots.state().settle(&self.holder)
    }

    /// Something begins, and lasts as long as what is returned.
    pub fn begin(&self) -> Busy {
        self.holder.under_way.fetch_add(1, Relaxed);
        Busy(self.holder.clone())
    }

    /// Something happened: it is idle since now.
    pub fn touch(&self) {
        self.holder.touch();
    }

    /// For how long nothing has been under way; none if something is.
    pub fn idle_for(&self) -> Option<Duration> {
        let since = self.holder.idle_since()?;
        Some(clock::moment().saturating_duration_since(since))
    }

    /// Whether its place was given to another.
    pub fn is_evicted(&self) -> bool {
        self.holder.evicted.load(SeqCst)
    }

    /// Whether it has settled.
    pub fn is_settled(&self) -> bool {
        self.holder.settled.load(Relaxed)
    }

    /// Ready once its place was given to another. One task at a time is woken: the last that asked.
    pub fn poll_evicted(&self, context: &Context<'_>) -> Poll<()> {
        // INVARIANT: the waker is there before it is looked, so that one of both is noticed.
        match &mut *self.holder.waiting.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(waker) => waker.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
        if self.is_evicted() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    /// Returns once its place was given to another.
    pub async fn evicted(&self) {
        std::future::poll_fn(|context| self.poll_evicted(context)).await;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = self.slots.state();
        state.open -= 1;
        if !self.is_evicted() {
            state.remove(&self.holder);
        }
        drop(state);
        self.slots.gone.notify_waiters();
    }
}

// === impl Busy ===

impl Drop for Busy {
    fn drop(&mut self) {
        if self.0.under_way.fetch_sub(1, Relaxed) == 1 {
            self.0.touch();
        }
    }
}

#[cfg(test)]
mod tests;
