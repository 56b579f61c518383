//! A gate that opens when everything that was to be done is done.
//!
//! ```
//! use outlast::{Latch, Shared};
//!
//! let here = Shared::anonymous(Latch::new(1))?;
//! let there = Shared::<Latch>::from_fd(here.try_clone_fd()?)?; // as another process would
//! let task = there.join(1)?; // this process will do one thing more
//! here.count_down(1);
//! assert_eq!((here.remaining(), here.is_open()), (1, false));
//! task.done();
//! here.wait()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # State
//! - A word of 64 bits: bit 0 `OPEN`, bit 1 `FAILED`, and above them how often somebody has joined.
//! - The *anonymous* count, which anybody may count down.
//! - 64 cells of {owed: 32, unused: 20, owner: 12 bits}: what a process has promised. 0 is free.
//!
//! What remains is the sum of the anonymous count and of what all cells owe.
//!
//! # Invariants
//! - I1. What is owed stands in one place, and each change of it is one exchange: it counts for its
//!   owner and for the sum at once.
//! - I2. `OPEN` is set only if nothing remained at a moment since the last join: it is set by an
//!   exchange of the word that was read before the sum, and a join fills its cell before it changes
//!   the word. A join that finds the word open takes its promise back, and fails.
//! - I3. Nothing remains => it is open, or somebody who counted down, or recovers one that did, is
//!   about to look.
//! - I4. `OPEN` and `FAILED` stay for ever.
//!
//! # Ordering
//! What was written before `count_down` or `done` is seen by whoever finds the latch open: every
//! change is a Release, every look an Acquire, and the opener has seen all changes.
//!
//! # Death
//! What a killed process owed is counted down by recovery, or makes the latch fail, as was chosen.
//! Killed between its last count and the opening, or between that and the wake: recovery does it.
//! The anonymous count has no owner: what a killed process did not count down stays.
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

/// The most [members](Member) that a [`Latch`] has at a time.
pub const MAX_MEMBERS: usize = 64;

const OPEN: u64 = 1;
const FAILED: u64 = 2;
/// One join.
const JOIN: u64 = 4;

const OWNER: u64 = 0xfff;
const OWED_AT: u32 = 32;

/// What the death of a member means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnDeath {
    /// The latch fails: all who wait, and all who come, get [`LatchError::MemberDied`].
    #[default]
    Fail,
    /// What it owed is counted down, as if it had done it.
    CountDown,
}

/// A gate that opens once, when so much has been counted down.
///
/// No system call is made unless somebody sleeps.
#[repr(C)]
#[doc(alias = "CountDownLatch")]
#[doc(alias = "WaitGroup")]
pub struct Latch {
    state: AtomicU64,
    signal: Signal,
    anonymous: AtomicU32,
    counts_down: AtomicU32,
    /// The process id of the member that made it fail.
    culprit: AtomicU32,
    cells: [AtomicU64; MAX_MEMBERS],
}

/// A promise of this process's, kept when dropped.
///
/// May be dropped by another thread. In a process made by `fork` a copied one does nothing.
#[must_use = "the promise is kept at once if this is not"]
#[derive(Debug)]
pub struct Member<'a> {
    latch: &'a Latch,
    cell: &'a AtomicU64,
    owner: u64,
    /// The count of forks when it was made.
    forks: u32,
}

/// Why a latch does not let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum LatchError {
    /// A member was killed before it had done what it owed.
    #[error("process {pid} died before it had done its part")]
    MemberDied {
        /// Its process id.
        pid: u32,
    },
    /// It is open already: nobody can join any more.
    #[error("the latch is open")]
    Open,
    /// See there.
    #[error(transparent)]
    Failed(#[from] Fault),
}

impl Latch {
    /// A latch that opens when so much has been counted down, to be moved into shared memory. With
    /// 0 it opens when its first members have done their part.
    #[must_use]
    pub fn new(count: u32) -> Self {
        Self::with(count, OnDeath::Fail)
    }

    /// The same, with another choice of what the death of a member means.
    #[must_use]
    pub fn with(count: u32, on_death: OnDeath) -> Self {
        Latch {
            state: AtomicU64::new(0),
            signal: Signal::new(),
            anonymous: AtomicU32::new(count),
            counts_down: AtomicU32::new(u32::from(on_death == OnDeath::CountDown)),
            culprit: AtomicU32::new(0),
            cells: core::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    /// Promises `n` counts more, which this process owes from here on.
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
    /// [`LatchError::Open`] or [`LatchError::MemberDied`] if it is too late;
    /// [`LatchError::Failed`], with [`Fault::TooManyPeers`] if there are [`MAX_MEMBERS`] members.
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
            return Err(self.verdict(seen).err().unwrap_or(LatchError::Open));
        }
        Ok(Member { latch: self, cell, owner, forks: forks() })
    }

    /// Counts down by `n`, without a promise; or by what remains, if that is less.
    pub fn count_down(&self, n: u32) {
        become_known(core::ptr::from_ref(self).addr());
        let mut seen = self.anonymous.load(Relaxed);
        while let Err(now) =
            self.anonymous.compare_exchange(seen, seen.saturating_sub(n), AcqRel, Relaxed)
        {
            seen = now;
        }
        self.look();
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

    /// Returns how much is still to be counted down. That may change at any moment.
    #[must_use]
    pub fn remaining(&self) -> u64 {
        let owed: u64 = self.cells.iter().map(|cell| cell.load(Acquire) >> OWED_AT).sum();
        u64::from(self.anonymous.load(Acquire)) + owed
    }

    /// Returns whether the latch is open.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.state.load(Acquire) & OPEN != 0
    }

    verbs! {
        /// Blocks until the latch is open.
        ///
        /// # Errors
        /// [`LatchError::MemberDied`] if it never will be; [`LatchError::Failed`] if this process
        /// cannot become a peer of the segment.
        pub fn wait(&self) -> Result<(), LatchError> = Wait(self);
        try_wait -> Result<bool, LatchError>, else Ok(false);
        wait_timeout, wait_deadline -> Result<bool, LatchError>, else Ok(false);
    }

    /// What a state says that is open or failed.
    fn verdict(&self, seen: u64) -> Result<(), LatchError> {
        if seen & OPEN != 0 {
            return Ok(());
        }
        Err(LatchError::MemberDied { pid: self.culprit.load(Relaxed) })
    }

    /// Opens the latch if nothing remains. Keeps I3.
    fn look(&self) {
        // Of two who count down different places, one sees what the other has done.
        fence(SeqCst);
        let mut seen = self.state.load(Acquire);
        while seen & (OPEN | FAILED) == 0 && self.remaining() == 0 {
            match self.state.compare_exchange(seen, seen | OPEN, AcqRel, Acquire) {
                Ok(_) => return self.signal.notify_all(),
                Err(now) => seen = now, // somebody has joined: keeps I2
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

/// Waiting until a latch is open.
struct Wait<'a>(&'a Latch);

impl Verb for Wait<'_> {
    type Output = Result<(), LatchError>;
    #[inline]
    fn fast(&mut self) -> Option<Self::Output> {
        let seen = self.0.state.load(Acquire);
        (seen & (OPEN | FAILED) != 0).then(|| self.0.verdict(seen))
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
    /// Counts down one of the counts that are owed, if there is one left.
    pub fn count_down(&self) {
        self.pay(|owed| owed.saturating_sub(1));
    }

    /// All is done.
    pub fn done(self) {}

    /// How much is still owed.
    #[must_use]
    pub fn owed(&self) -> u32 {
        // The upper half of a number.
        u32::try_from(self.cell.load(Relaxed) >> OWED_AT).unwrap_or(0)
    }

    fn pay(&self, left: impl Fn(u64) -> u64) {
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
        self.latch.look();
    }
}

impl Drop for Member<'_> {
    fn drop(&mut self) {
        if self.forks == forks() {
            self.pay(|_| 0);
            // Free only now: another's promise must not be taken for ours.
            self.cell.compare_exchange(self.owner, 0, AcqRel, Relaxed).ok();
            self.latch.look();
        }
    }
}

// SAFETY: `repr(C)`; atomics, for which any bytes will do.
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
                    self.culprit.store(dead.pid, Relaxed);
                }
                self.fail();
            }
            // Last: until then the promise is there to be seen by the next recoverer.
            cell.compare_exchange(seen, 0, AcqRel, Relaxed).ok();
        }
        self.look();
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
