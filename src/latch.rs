//! A countdown that lets every waiter through once it reaches zero.
//!
//! ```
//! use outlast::{Latch, Shared};
//!
//! let here = Shared::anonymous(Latch::new(1))?;
//! let there = Shared::<Latch>::from_fd(here.try_clone_fd()?)?; // as another process would
//! let task = there.join(1)?; // this process promises to count down once
//! here.count_down(1);
//! assert_eq!((here.remaining(), here.is_open()), (1, false));
//! task.done();
//! here.wait()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Use a [`Latch`] to wait once until a known amount of work is done. To meet again and again, use
//! a [`Barrier`](crate::Barrier). To wait until queued work is done, use
//! [`Queue::join`](crate::Queue::join).
//!
//! # Death
//! A process that joins the latch as a [`Member`] owes a number of counts. If it is killed before
//! it has counted them down, the latch fails, or recovery counts down the rest: the creator of the
//! latch chooses by [`OnDeath`]. The anonymous count has no owner: what a killed process did not
//! count down stays.

// # How it works
// - A word of 64 bits: bit 0 `OPEN`, bit 1 `FAILED`, and above them the number of joins so far.
// - The *anonymous* count, which any process may count down.
// - 64 cells of {owed: 32, unused: 20, owner: 12 bits}: what a process has promised (0: free).
//
// What remains is the sum of the anonymous count and of what all cells owe.
//
// Invariants:
// - I1. What is owed is stored in one place, and each change of it is one exchange. So the change
//   counts for its owner and for the sum at the same time.
// - I2. `OPEN` is set only if nothing remained at a moment since the last join. It is set by an
//   exchange of the word that was read before the sum, and a join fills its cell before it changes
//   the word. A join that finds the word open takes its promise back and fails.
// - I3. If nothing remains, the latch is open, or a thread is about to look. That thread has
//   counted down, or recovers a process that had.
// - I4. `OPEN` and `FAILED` are never cleared.
//
// Ordering: writes made before `count_down` or `done` are visible to every thread that finds the
// latch open. Every change is a Release and every look an Acquire, and the thread that opens the
// latch has seen all changes.
//
// Death: recovery counts down what a killed process owed, or makes the latch fail. If the process
// was killed between its last count and the opening, or between the opening and the wake, recovery
// opens the latch and wakes the waiters.
use crate::deadline::Deadline;
use crate::error::Fault;
use crate::segment::{become_known, forks, identify};
use crate::shareable::{Dead, Layout, Shareable, begin};
use crate::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, SeqCst};
use crate::sync::atomic::{AtomicU32, AtomicU64, fence};
use crate::wait::operation::{self, Armed, Operation};
use crate::wait::signal::Signal;
use crate::wait::verbs::{Verb, verbs};
use core::fmt;
use thiserror::Error;

/// The maximum number of [members](Member) that a [`Latch`] has at a time.
pub const MAX_MEMBERS: usize = 64;

const OPEN: u64 = 1;
const FAILED: u64 = 2;
/// One join, in the word.
const JOIN: u64 = 4;

const OWNER: u64 = 0xfff;
const OWED_AT: u32 = 32;

/// What happens if a member of a [`Latch`] dies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnDeath {
    /// The latch fails: every thread that waits, now or later, gets [`LatchError::MemberDied`].
    #[default]
    Fail,
    /// What the member owed is counted down in its place.
    CountDown,
}

/// A countdown, for any number of processes, that lets every waiter through once it reaches zero.
///
/// It makes no system call unless a thread sleeps.
#[repr(C)]
#[doc(alias = "CountDownLatch")]
#[doc(alias = "WaitGroup")]
pub struct Latch {
    state: AtomicU64,
    signal: Signal,
    anonymous: AtomicU32,
    counts_down: AtomicU32,
    /// The process id of the member that made it fail.
    dead_pid: AtomicU32,
    cells: [AtomicU64; MAX_MEMBERS],
}

/// The promise of this process to count down a [`Latch`]. Dropping it counts down what is still
/// owed.
///
/// Another thread may drop it. In a process made by `fork`, a copy does nothing.
#[must_use = "what is owed is counted down immediately if this is not kept"]
#[derive(Debug)]
pub struct Member<'a> {
    latch: &'a Latch,
    cell: &'a AtomicU64,
    owner: u64,
    /// The number of forks when this was made.
    forks: u32,
}

/// Why a call of a [`Latch`] failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum LatchError {
    /// A member was killed before it had counted down what it owed.
    #[error("process {pid} died before it had counted down the latch")]
    MemberDied {
        /// The process id of the member.
        pid: u32,
    },
    /// The latch is already open: no process can join it.
    #[error("the latch is already open")]
    Open,
    /// The call failed for another reason.
    #[error(transparent)]
    Failed(#[from] Fault),
}

impl Latch {
    /// Creates a latch that opens when `count` has been counted down, to be moved into shared
    /// memory. With a `count` of 0 it opens when its first members have done their part.
    ///
    /// If a member dies, the latch fails.
    #[must_use]
    pub fn new(count: u32) -> Self {
        Self::with(count, OnDeath::Fail)
    }

    /// Like [`new`](Self::new), with the choice of what happens if a member dies.
    #[must_use]
    pub fn with(count: u32, on_death: OnDeath) -> Self {
        Latch {
            state: AtomicU64::new(0),
            signal: Signal::new(),
            anonymous: AtomicU32::new(count),
            counts_down: AtomicU32::new(u32::from(on_death == OnDeath::CountDown)),
            dead_pid: AtomicU32::new(0),
            cells: core::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    /// Adds `n` to the count, which this process promises to count down.
    ///
    /// ```
    /// use outlast::{Latch, Shared};
    ///
    /// let here = Shared::anonymous(Latch::new(0))?;
    /// let there = Shared::<Latch>::from_fd(here.try_clone_fd()?)?; // as another process would
    /// let member = there.join(2)?;
    /// member.count_down();
    /// assert_eq!((member.owed(), here.is_open()), (1, false));
    /// member.done();
    /// here.wait()?;
    /// # Ok::<(), outlast::Error>(())
    /// ```
    ///
    /// # Errors
    /// - [`LatchError::Open`], [`LatchError::MemberDied`]: the latch is already open or has failed.
    /// - [`LatchError::Failed`]: see [`Fault`]. [`Fault::TooManyPeers`] if there are
    ///   [`MAX_MEMBERS`] members.
    pub fn join(&self, n: u32) -> Result<Member<'_>, LatchError> {
        let tag = identify(core::ptr::from_ref(self).addr())?;
        let owner = u64::from(tag) & OWNER;
        let promise = (u64::from(n) << OWED_AT) | owner;
        let free = |cell: &&AtomicU64| {
            cell.load(Relaxed) == 0 && cell.compare_exchange(0, promise, AcqRel, Relaxed).is_ok()
        };
        let cell = self.cells.iter().find(free).ok_or(Fault::TooManyPeers)?;
        let seen = self.state.fetch_add(JOIN, AcqRel); // keeps I2
        if seen & (OPEN | FAILED) != 0 {
            cell.compare_exchange(promise, 0, AcqRel, Relaxed).ok();
            return Err(self.result_in(seen).err().unwrap_or(LatchError::Open));
        }
        Ok(Member { latch: self, cell, owner, forks: forks() })
    }

    /// Counts the anonymous count down by `n`, or by what remains of it if that is less.
    pub fn count_down(&self, n: u32) {
        become_known(core::ptr::from_ref(self).addr());
        let mut seen = self.anonymous.load(Relaxed);
        while let Err(now) =
            self.anonymous.compare_exchange(seen, seen.saturating_sub(n), AcqRel, Relaxed)
        {
            seen = now;
        }
        self.open_if_done();
    }

    verbs! {
        /// Counts down by one, and blocks until the latch is open.
        ///
        /// # Errors
        /// As [`wait`](Self::wait).
        pub fn arrive_and_wait(&self) -> Result<(), LatchError> = {
            self.count_down(1);
            Wait(self)
        };
        /// The count stays counted down if it times out.
        arrive_and_wait_timeout, arrive_and_wait_deadline -> Result<bool, LatchError>,
            else Ok(false);
    }

    /// Returns what remains to be counted down. It may change at any moment.
    #[must_use]
    pub fn remaining(&self) -> u64 {
        let owed: u64 = self.cells.iter().map(|cell| cell.load(Acquire) >> OWED_AT).sum();
        u64::from(self.anonymous.load(Acquire)) + owed
    }

    /// Returns `true` if the latch is open.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.state.load(Acquire) & OPEN != 0
    }

    verbs! {
        /// Blocks until the latch is open.
        ///
        /// # Errors
        /// - [`LatchError::MemberDied`]: the latch has failed, and will never open.
        /// - [`LatchError::Failed`]: this process cannot become a peer of the segment.
        pub fn wait(&self) -> Result<(), LatchError> = Wait(self);
        try_wait -> Result<bool, LatchError>, else Ok(false);
        wait_timeout, wait_deadline -> Result<bool, LatchError>, else Ok(false);
    }

    /// The result of a wait in the state `seen`, which is open or failed.
    fn result_in(&self, seen: u64) -> Result<(), LatchError> {
        if seen & OPEN != 0 {
            return Ok(());
        }
        Err(LatchError::MemberDied { pid: self.dead_pid.load(Relaxed) })
    }

    /// Opens the latch if nothing remains. Keeps I3.
    fn open_if_done(&self) {
        // If two threads count down different places, one of them sees what the other has done.
        fence(SeqCst);
        let mut seen = self.state.load(Acquire);
        while seen & (OPEN | FAILED) == 0 && self.remaining() == 0 {
            match self.state.compare_exchange(seen, seen | OPEN, AcqRel, Acquire) {
                Ok(_) => return self.signal.notify_all(),
                Err(now) => seen = now, // another process has joined: keeps I2
            }
        }
    }

    fn fail(&self) {
        let mut seen = self.state.load(Acquire);
        while seen & (OPEN | FAILED) == 0 {
            match self.state.compare_exchange(seen, seen | FAILED, AcqRel, Acquire) {
                Ok(_) => return self.signal.notify_all(),
                Err(now) => seen = now,
            }
        }
    }
}

/// The verb of [`Latch::wait`].
struct Wait<'a>(&'a Latch);

impl Verb for Wait<'_> {
    type Output = Result<(), LatchError>;
    #[inline]
    fn fast(&mut self) -> Option<Self::Output> {
        let seen = self.0.state.load(Acquire);
        (seen & (OPEN | FAILED) != 0).then(|| self.0.result_in(seen))
    }
    fn wait(&mut self, deadline: Deadline) -> Option<Self::Output> {
        operation::wait(self, deadline)
    }
}

impl<'a> Operation<'a> for Wait<'a> {
    fn key(&self) -> usize {
        self.0.signal.key()
    }
    fn arm(&mut self) -> Armed<'a, Self::Output> {
        match identify(core::ptr::from_ref(self.0).addr()) {
            Ok(_) => Armed::Sleep(self.0.signal.arm()),
            Err(fault) => Armed::Done(Err(LatchError::Failed(fault))),
        }
    }
}

impl Member<'_> {
    /// Counts down by one of what is owed, if anything is left.
    pub fn count_down(&self) {
        self.change_owed(|owed| owed.saturating_sub(1));
    }

    /// Counts down all that is still owed, like dropping.
    pub fn done(self) {}

    /// Returns what is still owed.
    #[must_use]
    pub fn owed(&self) -> u32 {
        // The upper half of a number.
        u32::try_from(self.cell.load(Relaxed) >> OWED_AT).unwrap_or(0)
    }

    fn change_owed(&self, left: impl Fn(u64) -> u64) {
        if self.forks != forks() {
            return;
        }
        let mut seen = self.cell.load(Relaxed);
        loop {
            let owed = seen >> OWED_AT;
            if seen & OWNER != self.owner || owed == 0 {
                return;
            }
            let next = (left(owed) << OWED_AT) | self.owner;
            match self.cell.compare_exchange(seen, next, AcqRel, Relaxed) {
                Ok(_) => break,
                Err(now) => seen = now,
            }
        }
        self.latch.open_if_done();
    }
}

impl Drop for Member<'_> {
    fn drop(&mut self) {
        if self.forks == forks() {
            self.change_owed(|_| 0);
            // The cell is freed only now: another promise must not be taken for this one.
            self.cell.compare_exchange(self.owner, 0, AcqRel, Relaxed).ok();
            self.latch.open_if_done();
        }
    }
}

// SAFETY: `repr(C)`; atomics, for which any bytes are valid.
#[expect(unsafe_code, reason = "promises that the bytes may be shared")]
unsafe impl Shareable for Latch {
    const FINGERPRINT: u64 = begin::<Self>(b"Latch 1");
    const NEEDS_PEERS: bool = true;
    crate::__sized_shareable!();
    fn layout() -> Layout {
        Layout::of::<Self>("Latch", &[])
    }
    fn place(&self) {
        self.signal.place();
    }
    fn recover(&self, dead: &Dead) {
        for cell in &self.cells {
            let seen = cell.load(Acquire);
            if seen & OWNER != u64::from(dead.tag) {
                continue;
            }
            if seen >> OWED_AT != 0 && self.counts_down.load(Relaxed) == 0 {
                if self.state.load(Acquire) & (OPEN | FAILED) == 0 {
                    self.dead_pid.store(dead.pid, Relaxed);
                }
                self.fail();
            }
            // Last: until then the next process that recovers this death still finds the promise.
            cell.compare_exchange(seen, 0, AcqRel, Relaxed).ok();
        }
        self.open_if_done();
        self.signal.wake_all();
    }
}

impl fmt::Debug for Latch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Latch")
            .field("state", &format_args!("{:#x}", self.state.load(Relaxed)))
            .field("remaining", &self.remaining())
            .finish()
    }
}
