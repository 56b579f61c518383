//! A meeting point: a fixed number of threads wait for each other, again and again.
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
//! Use a [`Barrier`] if the same threads meet after each step of their work. To wait once until
//! work is done, use a [`Latch`](crate::Latch).
//!
//! # Death
//! A process is a party from its first `wait` until it [leaves](Barrier::leave), or until it exits
//! while none of its threads is in `wait`. If it is killed while it is a party, it immediately
//! breaks the generation that is under way, and the error names it. A generation that was complete
//! stays complete. The barrier stays broken until [`reset`](Barrier::reset), as in Python and Java.
//!
//! A [shrinking](Barrier::shrinking) barrier goes on without the dead process.

// # How it works
// The state is one word of 64 bits: {generation: 36, gone: 12, before: 1, cause: 3, arrived: 12}.
//
// | cause | meaning | next |
// |---|---|---|
// | 0 | `arrived` threads have arrived in this generation | the next generation, by the last arrival or by `reset` |
// | not 0 | the generation is broken, for that reason | the next generation, by `reset` |
//
// *Before* says that the previous generation ended broken.
//
// *Gone* is the number of parties that a shrinking barrier has lost. When it grows, `arrived`
// becomes 0 and the waiting threads arrive once more: at some instructions it cannot be told
// whether a dead process had arrived. In any other barrier, *gone* counts the deaths that recovery
// has dealt with.
//
// Beside the word lie a signal for sleepers; the last generations that ended broken; and a cell for
// each process that has waited here. A cell has a word {gone after it: 16, leaving: 1, owner tag:
// 12}, the number of its threads inside `wait`, the maximum of that number (the *parties* for which
// the process stands), and its process id once it is dead.
//
// Invariants:
// - I1. An arrival, the completion of a generation, its breaking and a reset are one exchange of
//   the word each. So each generation either completes or breaks, and all threads that arrived in
//   it are told the same. No state lies between two steps of a verb: a waiter that has been told of
//   a reset finds the next generation.
// - I2. A generation that ended broken is marked as *before* in the next one, and is recorded in
//   `broken` before the word moves on from that one. A completed generation is neither. A waiter
//   that finds that the word has moved on looks there. (An earlier generation does not overwrite
//   the record of a later one. A waiter that has slept through eight resets is told that its
//   generation was completed.)
// - I3. A process one of whose threads has arrived has exactly one cell with its tag: its threads
//   look through all cells before they claim one, and only one of them claims at a time.
// - I4. Recovery writes the new value of *gone* into the cell of the dead before it changes *gone*.
//   *Gone* changes by the exchange that breaks the generation, or takes the parties off. So a
//   process that continues an interrupted recovery finds out whether that has happened, and each
//   death counts once. Recovery begins no other loss before that.
// - I5. A process is a peer before it changes the word.
//
// Ordering: writes that any party made before `wait` are visible to all parties after it. Every
// arrival is a Release of the word and an Acquire, and so is the completion.
//
// Death: if a process is killed between a change and its wake, recovery wakes every sleeper.
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

/// The maximum number of parties of a [`Barrier`]: 4,095.
pub const MAX_PARTIES: u32 = 0xfff;
/// The maximum number of processes that are parties of one [`Barrier`] at a time. Each can have any
/// number of threads.
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

/// The number of records of generations that ended broken.
const RECORDS: usize = 8;

/// In a cell's word: recovery has begun to deal with the death. Above it is the new value of
/// *gone*.
const LEAVING: u32 = 1 << 12;
const TARGET_AT: u32 = 16;

/// A meeting point: as many threads as it has parties wait for each other, again and again.
///
/// The threads may belong to one process or to many. It makes no system call unless a thread
/// sleeps.
#[repr(C, align(64))]
pub struct Barrier {
    state: AtomicU64,
    signal: Signal,
    parties: AtomicU32,
    /// All ones if the barrier goes on without the dead, otherwise 0.
    shrinks: AtomicU32,
    /// The process id of the process that broke the barrier by dying.
    dead_pid: AtomicU32,
    /// For each remainder, the last generation that ended broken: its number, and 1 in bit 0.
    broken: [AtomicU64; RECORDS],
    cells: [Cell; MAX_PROCESSES],
}

/// A process that is a party, in a cache line of its own.
#[repr(C, align(64))]
#[derive(Debug)]
struct Cell {
    word: AtomicU32,
    inside: AtomicU32,
    /// The maximum number of threads that have been inside at the same time. The process stands for
    /// as many parties.
    max_inside: AtomicU32,
    /// Written by recovery.
    pid: AtomicU32,
}

impl Cell {
    /// Frees the cell. The word is last: until then, recovery can be continued.
    fn clear(&self) {
        self.inside.store(0, Relaxed);
        self.max_inside.store(0, Relaxed);
        self.word.store(0, Release);
    }
}

/// What [`Barrier::wait`] returns to each party.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    index: u32,
    is_leader: bool,
}

impl Arrival {
    /// Returns the number of threads of this generation that had arrived before this one: a
    /// different number from 0 to parties - 1 for each.
    #[must_use]
    pub fn index(self) -> u32 {
        self.index
    }

    /// Returns `true` for the thread that arrived last and let the others go.
    #[must_use]
    pub fn is_leader(self) -> bool {
        self.is_leader
    }
}

/// Why a generation ended before all parties had arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BrokenCause {
    /// A process called [`abort`](Barrier::abort).
    Aborted,
    /// The wait of a party timed out.
    TimedOut,
    /// A process called [`reset`](Barrier::reset) while this thread waited. Or the barrier was
    /// broken, and has been reset since.
    Reset,
    /// A party was killed.
    PeerDied {
        /// The process id of the party.
        pid: u32,
    },
}

impl fmt::Display for BrokenCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BrokenCause::Aborted => f.write_str("a process called `abort`"),
            BrokenCause::TimedOut => f.write_str("the wait of a party timed out"),
            BrokenCause::Reset => f.write_str("it was reset"),
            BrokenCause::PeerDied { pid } => write!(f, "process {pid} died"),
        }
    }
}

/// Why [`Barrier::wait`] returned no [`Arrival`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum BarrierError {
    /// The barrier is broken: not all parties have arrived, and it waits for no more.
    #[error("the barrier is broken ({0}): `reset` makes it usable again")]
    Broken(BrokenCause),
    /// The call timed out before all parties had arrived. That has broken the barrier for the
    /// others.
    #[error("timed out before all parties had arrived")]
    TimedOut,
    /// The call failed for another reason. This thread has not arrived.
    #[error(transparent)]
    Failed(#[from] Fault),
}

/// How a wait ended.
enum Ended {
    Complete,
    Broken(BrokenCause),
    /// The barrier has lost parties, and this is its state: the thread arrives again.
    Shrunk(u64),
}

impl Barrier {
    /// Creates a barrier for `parties` threads, to be moved into shared memory.
    ///
    /// # Panics
    /// If `parties` is 0 or more than [`MAX_PARTIES`].
    #[must_use]
    pub fn new(parties: u32) -> Self {
        Self::with(parties, false)
    }

    /// Creates a barrier that goes on with fewer parties if a process is killed, instead of
    /// breaking.
    ///
    /// A process stands for as many parties as threads of it have been in `wait` at the same time.
    /// The barrier loses these parties when the process dies, but keeps at least one. All other
    /// waiting threads go on waiting, for fewer parties. Their [indices](Arrival::index) are
    /// assigned anew, and a thread that waited before may become the
    /// [leader](Arrival::is_leader). As with other barriers, a process counts from its first `wait`
    /// on.
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
            dead_pid: AtomicU32::new(0),
            broken: core::array::from_fn(|_| AtomicU64::new(0)),
            cells: core::array::from_fn(|_| Cell {
                word: AtomicU32::new(0),
                inside: AtomicU32::new(0),
                max_inside: AtomicU32::new(0),
                pid: AtomicU32::new(0),
            }),
        }
    }

    verbs! {
        /// Blocks until as many threads have arrived as the barrier has parties.
        ///
        /// # Errors
        /// - [`BarrierError::Broken`]: not all parties can arrive any more.
        /// - [`BarrierError::Failed`]: see [`Fault`]. [`Fault::TooManyPeers`] if more than
        ///   [`MAX_PROCESSES`] processes are parties.
        pub fn wait(&self) -> Result<Arrival, BarrierError>
            = |deadline| self.wait_until(deadline);
        /// If it times out, the barrier breaks.
        wait_timeout, wait_deadline -> Result<Arrival, BarrierError>,
            else Err(BarrierError::TimedOut);
    }

    fn wait_until(&self, deadline: Deadline) -> Result<Arrival, BarrierError> {
        let cell = self.cell()?; // keeps I3
        let inside = cell.inside.fetch_add(1, Relaxed).wrapping_add(1);
        if inside > cell.max_inside.load(Relaxed) {
            cell.max_inside.fetch_max(inside, Relaxed);
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
                mine = None; // it completed without this thread, which now arrives in the next one
            }
            if seen & CAUSE != 0 {
                return Err(BarrierError::Broken(self.cause(seen)));
            }
            let is_leader = (seen & ARRIVED) + 1 >= u64::from(self.parties_in(seen));
            let next = if is_leader { self.next_generation(seen) } else { seen + 1 };
            if let Err(now) = self.state.compare_exchange(seen, next, AcqRel, Acquire) {
                seen = now;
                continue;
            }
            // It fits: it is at most `ARRIVED`.
            let arrival = Arrival { index: u32::try_from(seen & ARRIVED).unwrap_or(0), is_leader };
            if is_leader {
                self.signal.notify_all();
                return Ok(arrival);
            }
            let ended = match self.signal.wait(deadline, || self.outcome(next)) {
                Ok(ended) => ended,
                Err(TimedOut) if self.break_generation(TIMED_OUT, Some(seen >> GENERATION_AT)) => {
                    return Err(BarrierError::TimedOut);
                }
                // The generation ended at the last moment.
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

    /// How the wait that began in the state `began` ended, if it has ended.
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

    /// Whether a generation that has ended in the state `seen` ended broken (I2).
    fn was_broken(&self, generation: u64, seen: u64) -> bool {
        if generation == before(seen) {
            return seen & BEFORE != 0;
        }
        self.record_of(generation).load(Relaxed) == record(generation)
    }

    fn cause(&self, seen: u64) -> BrokenCause {
        match seen & CAUSE {
            ABORTED => BrokenCause::Aborted,
            TIMED_OUT => BrokenCause::TimedOut,
            DIED => BrokenCause::PeerDied { pid: self.dead_pid.load(Relaxed) },
            _ => BrokenCause::Reset,
        }
    }

    fn record_of(&self, generation: u64) -> &AtomicU64 {
        // A generation has 36 bits, so this does not fail.
        &self.broken[usize::try_from(generation).unwrap_or(0) % RECORDS]
    }

    /// The first state of the next generation. Keeps I2.
    fn next_generation(&self, seen: u64) -> u64 {
        if seen & BEFORE != 0 {
            self.record_broken(before(seen));
        }
        (((seen >> GENERATION_AT).wrapping_add(1)) << GENERATION_AT) | (seen & GONE)
    }

    /// Records that the generation ended broken, unless a later one is recorded in its place.
    #[cold]
    fn record_broken(&self, generation: u64) {
        let record = record(generation);
        let later =
            |old: u64| old & 1 != 0 && (1..1 << 20).contains(&(old >> 1).wrapping_sub(generation));
        let newer = |old: u64| (!later(old)).then_some(record);
        self.record_of(generation).fetch_update(Relaxed, Relaxed, newer).ok();
    }

    /// Breaks the current generation if it is `generation`, or in any case if that is `None`.
    /// Returns `true` if it was not broken before.
    fn break_generation(&self, cause: u64, generation: Option<u64>) -> bool {
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

    /// Breaks the barrier: every thread that waits, now or later, gets [`BrokenCause::Aborted`]
    /// until the barrier is [`reset`](Self::reset).
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
        self.break_generation(ABORTED, None);
    }

    /// Makes the barrier whole and empty again. Each waiting thread gets [`BrokenCause::Reset`]
    /// once.
    pub fn reset(&self) {
        become_known(core::ptr::from_ref(self).addr()); // keeps I5
        let is_needed = |seen: u64| seen & (CAUSE | ARRIVED) != 0;
        let next = |seen| is_needed(seen).then(|| self.next_generation(seen) | BEFORE);
        if self.state.fetch_update(AcqRel, Acquire, next).is_ok() {
            self.signal.notify_all();
        }
    }

    /// Returns `true` if the barrier is broken. The answer may change at any moment.
    #[must_use]
    #[doc(alias = "broken")]
    pub fn is_broken(&self) -> bool {
        self.state.load(Acquire) & CAUSE != 0
    }

    /// Returns the number of threads for which the barrier waits.
    #[must_use]
    pub fn parties(&self) -> u32 {
        self.parties_in(self.state.load(Relaxed))
    }

    /// The number of parties in the state `seen`: at least one.
    fn parties_in(&self, seen: u64) -> u32 {
        let parties = self.parties.load(Relaxed).clamp(1, MAX_PARTIES);
        parties.saturating_sub(gone(seen) & self.shrinks.load(Relaxed)).max(1)
    }

    /// Returns the number of waiting threads. It may change at any moment.
    #[must_use]
    #[doc(alias = "n_waiting")]
    pub fn waiting(&self) -> u32 {
        let seen = self.state.load(Acquire);
        if seen & CAUSE != 0 { 0 } else { u32::try_from(seen & ARRIVED).unwrap_or(0) }
    }

    /// Removes this process from the parties, so that its end breaks nothing. None of its threads
    /// may be waiting.
    ///
    /// # Errors
    /// If this process cannot become a peer of the segment: see [`Fault`].
    pub fn leave(&self) -> Result<(), Fault> {
        let tag = identify(core::ptr::from_ref(self).addr())?;
        for cell in &self.cells {
            if cell.word.load(Relaxed) == tag {
                cell.max_inside.store(0, Relaxed);
                cell.word.compare_exchange(tag, 0, Release, Relaxed).ok();
            }
        }
        Ok(())
    }

    /// Deals with the deaths that this recovery, or an interrupted one, has recorded (I4).
    fn finish_recovery(&self) {
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
                    return None; // an interrupted recovery has done it
                }
                Some(match seen & CAUSE {
                    _ if shrinks => next & !ARRIVED,
                    0 => {
                        self.dead_pid.store(cell.pid.load(Relaxed), Relaxed);
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

    /// The cell of this process.
    fn cell(&self) -> Result<&Cell, Fault> {
        let tag = identify(core::ptr::from_ref(self).addr())?;
        self.find(tag, tag).map_or_else(|| self.claim(tag), Ok)
    }

    /// The first cell whose word is `word`, in the order in which the process with the tag `tag`
    /// looks.
    fn find(&self, tag: u32, word: u32) -> Option<&Cell> {
        let first = tag as usize;
        let order = (0..MAX_PROCESSES).map(|i| &self.cells[(first + i) % MAX_PROCESSES]);
        { order }.find(|cell| cell.word.load(Relaxed) == word)
    }

    /// Claims a cell for this process. Keeps I3.
    #[cold]
    fn claim(&self, tag: u32) -> Result<&Cell, Fault> {
        one_at_a_time(|| {
            loop {
                if let Some(cell) = self.find(tag, tag) {
                    return Ok(cell); // another thread has claimed it
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

/// The number of lost parties, or of deaths.
fn gone(seen: u64) -> u32 {
    // 12 bits fit.
    u32::try_from((seen & GONE) >> GONE_AT).unwrap_or(0)
}

/// The record of a generation that ended broken.
fn record(generation: u64) -> u64 {
    (generation << 1) | 1
}

// SAFETY: `repr(C)`; atomics, for which any bytes are valid.
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
        self.finish_recovery();
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
                let parties = cell.max_inside.load(Relaxed).max(inside).clamp(1, MAX_PARTIES);
                parties.min(self.parties_in(seen) - 1)
            };
            let target = (gone(seen) + lost) & MAX_PARTIES;
            cell.pid.store(dead.pid, Relaxed);
            cell.word.store(dead.tag | LEAVING | (target << TARGET_AT), Release); // keeps I4
            self.finish_recovery();
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
