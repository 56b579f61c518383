//! A place where processes wait for each other.
//!
//! ```
//! use outlast::{Barrier, Shared};
//!
//! let here = Shared::anonymous(Barrier::new(2))?;
//! let there = Shared::<Barrier>::from_fd(here.try_clone_fd()?)?; // as another process would
//! let other = std::thread::spawn(move || there.wait().map(|arrival| arrival.index()));
//! let mine = here.wait()?.index();
//! assert_eq!(mine + other.join().unwrap()?, 1); // 0 and 1
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # State
//! One word of 64 bits: {generation: 36, gone: 12, before: 1, cause: 3, arrived: 12}.
//!
//! | cause | meaning | next |
//! |---|---|---|
//! | 0 | so many have arrived of this generation | the next generation, by the last arrival or by `reset` |
//! | not 0 | broken, for that reason | the next generation, by `reset` |
//!
//! *Before* says that the generation before this one ended broken.
//!
//! *Gone* is how many parties a [shrinking](Barrier::shrinking) barrier has lost. When it grows,
//! nobody has arrived, and those who wait arrive once more. With any other barrier it counts the
//! deaths that recovery has dealt with.
//!
//! Beside it: a signal for sleepers; which of the last generations ended broken; and a cell for
//! each process that has waited here, its *parties*: {gone after it: 16, leaving: 1, owner tag:
//! 12}, how many of its threads are inside `wait`, how many there have been at a time, and its
//! process id once it is dead.
//!
//! # Invariants
//! - I1. An arrival, the completion of a generation, its breaking and a reset are one exchange of
//!   the word each. So each generation either completes or breaks, and all who arrived in it are
//!   told the same. No state lies between two steps of a verb: a waiter that has been told of a
//!   reset finds the next generation.
//! - I2. A generation that ended broken is *before* the next one, and is written down before the
//!   word moves on from that; a completed one never is. A waiter that finds the word moved on asks
//!   there. (What is written down is not overwritten by a generation shortly before it; one that
//!   has slept through eight resets is told that it passed.)
//! - I3. A process whose thread has arrived has one cell with its tag, and no second one: its
//!   threads look through all cells before they claim one, and claim one at a time.
//! - I4. Recovery writes into the cell of the dead what *gone* will be, before it is. *Gone* moves
//!   by the exchange that breaks the generation or takes the parties off. So the next process that
//!   takes up an interrupted recovery finds out whether that has happened, and a death counts once.
//!   No other loss is begun before.
//! - I5. A process is a peer before it changes the word.
//!
//! # Ordering
//! What any party wrote before `wait` is seen by all parties after it: every arrival is a Release
//! of the word and an Acquire, and so is the completion.
//!
//! # Death
//! A process is a party from its first `wait` until it [leaves](Barrier::leave), or ends by itself
//! outside of `wait`. Killed anywhere in between, it breaks the generation that is under way, at
//! once, and the error names it. A generation that was complete stays so. Killed between a change
//! and its wake: recovery wakes everybody. Then it stays broken until [`reset`](Barrier::reset), as
//! in Python and Java.
//!
//! A [shrinking](Barrier::shrinking) barrier goes on without it instead: whether the dead had
//! arrived in this generation cannot be told at every instruction, so nobody has, and all the
//! living do so again.
use crate::deadline::Deadline;
use crate::error::Fault;
use crate::segment::{become_known, identify, one_at_a_time};
use crate::shareable::{Dead, Layout, Shareable, begin};
use crate::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use crate::sync::atomic::{AtomicU32, AtomicU64};
use crate::sys::hooks;
use crate::wait::TimedOut;
use crate::wait::signal::Signal;
use crate::wait::verbs::verbs;
use core::fmt;
use thiserror::Error;

/// The most parties that a [`Barrier`] waits for: 4,095.
pub const MAX_PARTIES: u32 = 0xfff;
/// The most processes that can be parties of one [`Barrier`] at a time, each with any number of
/// threads.
pub const MAX_PROCESSES: usize = 64;

const ARRIVED: u64 = 0xfff;
const CAUSE_AT: u32 = 12;
const CAUSE: u64 = 0x7 << CAUSE_AT;
/// The generation before this one ended broken.
const BEFORE: u64 = 1 << 15;
const GONE_AT: u32 = 16;
const GONE: u64 = 0xfff << GONE_AT;
const GENERATION_AT: u32 = 28;

const ABORTED: u64 = 1 << CAUSE_AT;
const TIMED_OUT: u64 = 2 << CAUSE_AT;
const DIED: u64 = 3 << CAUSE_AT;

/// How many generations that ended broken are remembered.
const REMEMBERED: usize = 8;

/// In a cell's word: recovery has begun to deal with the death; above it, what *gone* is then.
const LEAVING: u32 = 1 << 12;
const TARGET_AT: u32 = 16;

/// A place where as many threads as it has parties wait for each other, again and again.
///
/// The threads may be of one process or of many. No system call is made unless somebody sleeps.
#[repr(C, align(64))]
pub struct Barrier {
    state: AtomicU64,
    signal: Signal,
    parties: AtomicU32,
    /// All ones if it goes on without the dead, or else 0.
    shrinks: AtomicU32,
    /// Who broke it by dying: its process id.
    culprit: AtomicU32,
    /// The last generation that ended broken, of those with this remainder: its number, and 1 in
    /// bit 0.
    broken: [AtomicU64; REMEMBERED],
    cells: [Cell; MAX_PROCESSES],
}

/// A process, in a line of its own.
#[repr(C, align(64))]
#[derive(Debug)]
struct Cell {
    word: AtomicU32,
    inside: AtomicU32,
    /// The most threads that have been inside at a time: as many parties does the process stand
    /// for.
    most: AtomicU32,
    /// Written by recovery.
    pid: AtomicU32,
}

impl Cell {
    /// Gives it to another process. The word last: until then the work is visible.
    fn clear(&self) {
        self.inside.store(0, Relaxed);
        self.most.store(0, Relaxed);
        self.word.store(0, Release);
    }
}

/// What `wait` gives to each of the parties.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    index: u32,
    is_leader: bool,
}

impl Arrival {
    /// How many of this generation had arrived before: each of 0 to parties - 1 is given to one.
    #[must_use]
    pub fn index(self) -> u32 {
        self.index
    }

    /// Whether this is the one that came last, and let the others go.
    #[must_use]
    pub fn is_leader(self) -> bool {
        self.is_leader
    }
}

/// Why a generation ended before all had arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BrokenCause {
    /// Somebody called [`abort`](Barrier::abort).
    Aborted,
    /// One of the parties did not want to wait longer.
    TimedOut,
    /// Somebody called [`reset`](Barrier::reset) while others waited; or it was broken and has been
    /// reset since.
    Reset,
    /// A party was killed.
    PeerDied {
        /// Its process id.
        pid: u32,
    },
}

/// Why `wait` gave no [`Arrival`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum BarrierError {
    /// Not all have come, and no more will be waited for.
    #[error("the barrier is broken ({0:?})")]
    Broken(BrokenCause),
    /// The deadline passed before all had come. That has broken the barrier for the others.
    #[error("timed out")]
    TimedOut,
    /// See there; nobody else has been told of this arrival.
    #[error(transparent)]
    Failed(#[from] Fault),
}

/// How a wait came to its end.
enum Ended {
    Complete,
    Broken(BrokenCause),
    /// Fewer are waited for, and this is the state: arrive again.
    Shrunk(u64),
}

impl Barrier {
    /// A barrier for `parties` threads, to be moved into shared memory.
    ///
    /// # Panics
    /// If that is 0 or more than [`MAX_PARTIES`].
    #[must_use]
    pub fn new(parties: u32) -> Self {
        Self::with(parties, false)
    }

    /// A barrier that goes on with fewer parties when one is killed, instead of breaking.
    ///
    /// A process stands for as many parties as threads of it have been in `wait` at a time; with
    /// its death the barrier loses these, until one is left. All others who wait go on waiting, for
    /// fewer. Their [index](Arrival::index) is counted anew; who was the last of those who were
    /// missing may be [leader](Arrival::is_leader). As with other barriers, a process counts from
    /// its first `wait` on.
    ///
    /// # Panics
    /// As [`new`](Self::new).
    #[must_use]
    pub fn shrinking(parties: u32) -> Self {
        Self::with(parties, true)
    }

    fn with(parties: u32, shrinks: bool) -> Self {
        assert!((1..=MAX_PARTIES).contains(&parties), "a barrier has 1 to 4,095 parties");
        Barrier {
            state: AtomicU64::new(0),
            signal: Signal::new(),
            parties: AtomicU32::new(parties),
            shrinks: AtomicU32::new(if shrinks { u32::MAX } else { 0 }),
            culprit: AtomicU32::new(0),
            broken: core::array::from_fn(|_| AtomicU64::new(0)),
            cells: core::array::from_fn(|_| Cell {
                word: AtomicU32::new(0),
                inside: AtomicU32::new(0),
                most: AtomicU32::new(0),
                pid: AtomicU32::new(0),
            }),
        }
    }

    verbs! {
        /// Blocks until as many threads have arrived as the barrier has parties.
        ///
        /// # Errors
        /// [`BarrierError::Broken`] if that cannot happen any more; [`BarrierError::Failed`], with
        /// [`Fault::TooManyPeers`] if more than [`MAX_PROCESSES`] processes are parties.
        pub fn wait(&self) -> Result<Arrival, BarrierError>
            = |deadline| self.wait_until(deadline);
        /// If it times out, the barrier is broken.
        wait_timeout, wait_deadline -> Result<Arrival, BarrierError>,
            else Err(BarrierError::TimedOut);
    }

    fn wait_until(&self, deadline: Deadline) -> Result<Arrival, BarrierError> {
        let cell = self.cell()?; // keeps I3
        let inside = cell.inside.fetch_add(1, Relaxed).wrapping_add(1);
        if inside > cell.most.load(Relaxed) {
            cell.most.fetch_max(inside, Relaxed);
        }
        let result = self.arrive_and_wait(deadline);
        cell.inside.fetch_sub(1, Relaxed);
        result
    }

    fn arrive_and_wait(&self, deadline: Deadline) -> Result<Arrival, BarrierError> {
        let mut seen = self.state.load(Acquire);
        let mut mine = None;
        loop {
            if let Some(generation) = mine.filter(|&generation| seen >> GENERATION_AT != generation)
            {
                if self.was_broken(generation, seen) {
                    return Err(BarrierError::Broken(BrokenCause::Reset));
                }
                // The generation was complete without this thread, which belongs to the next one.
                mine = None;
            }
            if seen & CAUSE != 0 {
                return Err(BarrierError::Broken(self.cause(seen)));
            }
            let is_leader = (seen & ARRIVED) + 1 >= u64::from(self.left(seen));
            let next = if is_leader { self.following(seen) } else { seen + 1 };
            if let Err(now) = self.state.compare_exchange(seen, next, AcqRel, Acquire) {
                seen = now;
                continue;
            }
            // Fits: it is at most `ARRIVED`.
            let arrival = Arrival { index: u32::try_from(seen & ARRIVED).unwrap_or(0), is_leader };
            if is_leader {
                self.signal.notify_all();
                return Ok(arrival);
            }
            let ended = match self.signal.wait(deadline, || self.outcome(next)) {
                Ok(ended) => ended,
                Err(TimedOut) if self.break_for(TIMED_OUT, Some(seen >> GENERATION_AT)) => {
                    return Err(BarrierError::TimedOut);
                }
                // It ended at the last moment.
                Err(TimedOut) => self.outcome(next).unwrap_or(Ended::Complete),
            };
            match ended {
                Ended::Complete => return Ok(arrival),
                Ended::Broken(cause) => return Err(BarrierError::Broken(cause)),
                Ended::Shrunk(now) => {
                    mine = Some(seen >> GENERATION_AT);
                    seen = now;
                }
            }
        }
    }

    /// How the wait that began in this state ended, if it has.
    fn outcome(&self, began: u64) -> Option<Ended> {
        let seen = self.state.load(Acquire);
        let generation = began >> GENERATION_AT;
        if seen >> GENERATION_AT != generation {
            let reset = Ended::Broken(BrokenCause::Reset);
            return Some(if self.was_broken(generation, seen) { reset } else { Ended::Complete });
        }
        if seen & CAUSE != 0 {
            return Some(Ended::Broken(self.cause(seen)));
        }
        (seen & GONE != began & GONE).then_some(Ended::Shrunk(seen))
    }

    /// Whether a generation that is over in the state `seen` ended broken (I2).
    fn was_broken(&self, generation: u64, seen: u64) -> bool {
        if generation == before(seen) {
            return seen & BEFORE != 0;
        }
        self.remembered(generation).load(Relaxed) == stamp(generation)
    }

    fn cause(&self, seen: u64) -> BrokenCause {
        match seen & CAUSE {
            ABORTED => BrokenCause::Aborted,
            TIMED_OUT => BrokenCause::TimedOut,
            DIED => BrokenCause::PeerDied { pid: self.culprit.load(Relaxed) },
            _ => BrokenCause::Reset,
        }
    }

    fn remembered(&self, generation: u64) -> &AtomicU64 {
        // The remainder of a small number.
        &self.broken[usize::try_from(generation).unwrap_or(0) % REMEMBERED]
    }

    /// The state after this generation if it completes. Keeps I2.
    fn following(&self, seen: u64) -> u64 {
        if seen & BEFORE != 0 {
            self.remember(before(seen));
        }
        (((seen >> GENERATION_AT).wrapping_add(1)) << GENERATION_AT) | (seen & GONE)
    }

    /// Writes down that the generation ended broken, unless a later one has been there since.
    #[cold]
    fn remember(&self, generation: u64) {
        let stamp = stamp(generation);
        let later =
            |old: u64| old & 1 != 0 && (1..1 << 20).contains(&(old >> 1).wrapping_sub(generation));
        let newer = |old: u64| (!later(old)).then_some(stamp);
        self.remembered(generation).fetch_update(Relaxed, Relaxed, newer).ok();
    }

    /// Breaks the generation that is under way (or this one); whether it was whole until then.
    fn break_for(&self, cause: u64, generation: Option<u64>) -> bool {
        let mut seen = self.state.load(Acquire);
        loop {
            let is_other = generation.is_some_and(|generation| seen >> GENERATION_AT != generation);
            if is_other || seen & CAUSE != 0 {
                return false;
            }
            match self.state.compare_exchange(seen, seen | cause, AcqRel, Acquire) {
                Ok(_) => break,
                Err(now) => seen = now,
            }
        }
        self.signal.notify_all();
        true
    }

    /// Breaks the barrier: all who wait, and all who come, get [`BrokenCause::Aborted`] until it is
    /// [`reset`](Self::reset).
    ///
    /// ```
    /// use outlast::{Barrier, BarrierError, Shared};
    ///
    /// let here = Shared::anonymous(Barrier::new(2))?;
    /// let there = Shared::<Barrier>::from_fd(here.try_clone_fd()?)?; // as another process would
    /// here.abort();
    /// assert!(matches!(there.wait(), Err(BarrierError::Broken(_))));
    /// there.reset();
    /// assert!(!here.is_broken());
    /// # Ok::<(), outlast::Error>(())
    /// ```
    pub fn abort(&self) {
        become_known(core::ptr::from_ref(self).addr()); // keeps I5
        self.break_for(ABORTED, None);
    }

    /// Makes the barrier whole and empty again. Each thread that waits gets [`BrokenCause::Reset`],
    /// once.
    pub fn reset(&self) {
        become_known(core::ptr::from_ref(self).addr()); // keeps I5
        let is_needed = |seen: u64| seen & (CAUSE | ARRIVED) != 0;
        let next = |seen| is_needed(seen).then(|| self.following(seen) | BEFORE);
        if self.state.fetch_update(AcqRel, Acquire, next).is_ok() {
            self.signal.notify_all();
        }
    }

    /// Whether the barrier is broken. May change at any moment.
    #[must_use]
    #[doc(alias = "broken")]
    pub fn is_broken(&self) -> bool {
        self.state.load(Acquire) & CAUSE != 0
    }

    /// How many threads it waits for.
    #[must_use]
    pub fn parties(&self) -> u32 {
        self.left(self.state.load(Relaxed))
    }

    /// How many parties are left in this state: at least one.
    fn left(&self, seen: u64) -> u32 {
        let parties = self.parties.load(Relaxed).clamp(1, MAX_PARTIES);
        parties.saturating_sub(gone(seen) & self.shrinks.load(Relaxed)).max(1)
    }

    /// How many are waiting. May change at any moment.
    #[must_use]
    #[doc(alias = "n_waiting")]
    pub fn waiting(&self) -> u32 {
        let seen = self.state.load(Acquire);
        if seen & CAUSE != 0 { 0 } else { u32::try_from(seen & ARRIVED).unwrap_or(0) }
    }

    /// This process is no party any more: its end breaks nothing. None of its threads may be
    /// waiting.
    ///
    /// # Errors
    /// If this process cannot become a peer of the segment: see [`Fault`].
    pub fn leave(&self) -> Result<(), Fault> {
        let tag = identify(core::ptr::from_ref(self).addr())?;
        for cell in &self.cells {
            if cell.word.load(Relaxed) == tag {
                cell.most.store(0, Relaxed);
                cell.word.compare_exchange(tag, 0, Release, Relaxed).ok();
            }
        }
        Ok(())
    }

    /// Deals with the deaths that recovery, this one or one that was interrupted, has found (I4).
    fn finish_losses(&self) {
        let shrinks = self.shrinks.load(Relaxed) != 0;
        for cell in &self.cells {
            let word = cell.word.load(Acquire);
            if word & LEAVING == 0 {
                continue;
            }
            hooks::pause("barrier: a death noted, not dealt with");
            let target = u64::from(word >> TARGET_AT) << GONE_AT & GONE;
            let lose = |seen: u64| {
                let next = (seen & !GONE) | target;
                if seen == next {
                    return None; // it has happened
                }
                Some(match seen & CAUSE {
                    _ if shrinks => next & !ARRIVED,
                    0 => {
                        self.culprit.store(cell.pid.load(Relaxed), Relaxed);
                        next | DIED
                    }
                    _ => next,
                })
            };
            self.state.fetch_update(AcqRel, Acquire, lose).ok();
            hooks::pause("barrier: a death dealt with, the cell not free");
            cell.clear();
        }
    }

    /// This process's cell.
    fn cell(&self) -> Result<&Cell, Fault> {
        let tag = identify(core::ptr::from_ref(self).addr())?;
        self.find(tag, tag).map_or_else(|| self.claim(tag), Ok)
    }

    /// The first cell with this word, of those in the order in which the process with this tag
    /// looks.
    fn find(&self, tag: u32, word: u32) -> Option<&Cell> {
        let first = tag as usize;
        let order = (0..MAX_PROCESSES).map(|i| &self.cells[(first + i) % MAX_PROCESSES]);
        { order }.find(|cell| cell.word.load(Relaxed) == word)
    }

    /// A cell for this process. Keeps I3.
    #[cold]
    fn claim(&self, tag: u32) -> Result<&Cell, Fault> {
        one_at_a_time(|| {
            loop {
                if let Some(cell) = self.find(tag, tag) {
                    return Ok(cell); // another thread's claim
                }
                hooks::pause("barrier: about to claim a cell");
                let cell = self.find(tag, 0).ok_or(Fault::TooManyPeers)?;
                if cell.word.compare_exchange(0, tag, AcqRel, Relaxed).is_ok() {
                    return Ok(cell);
                }
            }
        })
    }
}

/// The generation before this one.
fn before(seen: u64) -> u64 {
    (seen >> GENERATION_AT).wrapping_sub(1) & (u64::MAX >> GENERATION_AT)
}

/// How many parties have been lost, or the number of deaths.
fn gone(seen: u64) -> u32 {
    // Fits: 12 bits.
    u32::try_from((seen & GONE) >> GONE_AT).unwrap_or(0)
}

/// What says that a generation ended broken.
fn stamp(generation: u64) -> u64 {
    (generation << 1) | 1
}

// SAFETY: `repr(C)`; atomics, for which any bytes will do.
#[expect(unsafe_code, reason = "promises that the bytes may be shared")]
unsafe impl Shareable for Barrier {
    const FINGERPRINT: u64 = begin::<Self>(b"Barrier 1");
    const NEEDS_PEERS: bool = true;
    crate::__sized_shareable!();
    fn layout() -> Layout {
        Layout::of::<Self>("Barrier", &[])
    }
    fn place(&self) {
        self.signal.place();
    }
    fn recover(&self, dead: &Dead) {
        self.finish_losses();
        let is_theirs = |cell: &&Cell| cell.word.load(Acquire) == dead.tag;
        for cell in self.cells.iter().filter(is_theirs) {
            let inside = cell.inside.load(Relaxed);
            if dead.clean && inside == 0 {
                cell.clear();
                continue;
            }
            let seen = self.state.load(Relaxed);
            let lost = if self.shrinks.load(Relaxed) == 0 {
                1 // death
            } else {
                let parties = cell.most.load(Relaxed).max(inside).clamp(1, MAX_PARTIES);
                parties.min(self.left(seen) - 1)
            };
            let target = (gone(seen) + lost) & MAX_PARTIES;
            cell.pid.store(dead.pid, Relaxed);
            cell.word.store(dead.tag | LEAVING | (target << TARGET_AT), Release); // keeps I4
            self.finish_losses();
        }
        self.signal.wake_all();
    }
}

impl fmt::Debug for Barrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Barrier")
            .field("state", &format_args!("{:#018x}", self.state.load(Relaxed)))
            .field("parties", &self.parties())
            .finish_non_exhaustive()
    }
}
