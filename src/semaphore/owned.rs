//! A semaphore whose permits belong to a process, and come back when it ends.
//!
//! ```
//! use outlast::{OwnedSemaphore, Shared};
//!
//! let here = Shared::anonymous(OwnedSemaphore::new(2))?;
//! // As another process would:
//! let there = Shared::<OwnedSemaphore>::from_fd(here.try_clone_fd()?)?;
//! let permit = there.acquire()?;
//! assert_eq!(here.available(), 1);
//! drop(permit);
//! assert_eq!(here.available(), 2);
//! # Ok::<(), outlast::Error>(())
//! ```
//!
//! # Death
//! Recovery frees the permits of a killed process, usually within a millisecond. A process that is
//! killed in `acquire` or in a release has either done it or not.

// # How it works
// The state is the total number of permits, which never changes; 64 cells of {held: 32, unused: 20,
// owner: 12 bits}, one for each process that holds permits (0: free); and a robust word that a
// thread owns while it acquires permits.
//
// Invariants:
// - I1. The available permits are the total less the sum of all cells. No other number counts them.
// - I2. A cell grows only under the robust word, and only by permits that are available. So the sum
//   of the cells is never more than the total.
// - I3. A cell shrinks by an exchange of its own, without the robust word. Then every sleeper is
//   woken.
// - I4. Permits are released to a cell only while it has their owner's tag.
//
// Ordering: writes made before a permit was released are visible to the thread that acquires it
// next: Release and Acquire of the cell.
//
// Death: one exchange of a cell that names its owner acquires a permit, and another releases it. A
// process that is killed with the robust word has changed nothing else, and the kernel passes the
// word on. If it is killed before its wake, recovery wakes every sleeper.
use crate::deadline::Deadline;
use crate::error::{Fault, TimeoutError};
use crate::segment::{forks, identify};
use crate::shareable::{Dead, Layout, Shareable, begin};
use crate::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use crate::sync::atomic::{AtomicU32, AtomicU64};
use crate::sys::robust::Thread;
use crate::wait::operation::{self, Armed, Operation};
use crate::wait::robust::{Refused, RobustWord};
use crate::wait::signal::Signal;
use crate::wait::verbs::{Verb, verbs};
use core::fmt;

/// The maximum number of processes that hold permits of one [`OwnedSemaphore`] at a time.
pub const MAX_HOLDERS: usize = 64;

const TAG: u64 = 0xfff;
const HELD_AT: u32 = 32;

/// A number of permits that processes hold. They come back when their process ends, by whatever
/// means.
///
/// It is made for limiting the use of something: only the holder of a permit can release it. It is
/// not fair, and slower than a [`Semaphore`](super::Semaphore), which does not know the holders.
#[repr(C, align(64))]
pub struct OwnedSemaphore {
    word: RobustWord,
    total: AtomicU32,
    signal: Signal,
    cells: [AtomicU64; MAX_HOLDERS],
}

/// Permits that this process holds. They are released when this is dropped, or when the process
/// ends.
///
/// Another thread may drop it. In a process made by `fork`, a copy does nothing.
#[must_use = "the permits are released immediately if this is not kept"]
#[derive(Debug)]
pub struct OwnedPermit<'a> {
    semaphore: &'a OwnedSemaphore,
    cell: &'a AtomicU64,
    /// The owner of the cell when the permits were acquired.
    owner: u64,
    n: u32,
    /// The number of forks when this was made.
    forks: u32,
}

impl OwnedSemaphore {
    /// Creates a semaphore of `permits`, to be moved into shared memory.
    #[must_use]
    pub fn new(permits: u32) -> Self {
        OwnedSemaphore {
            word: RobustWord::new(),
            total: AtomicU32::new(permits),
            signal: Signal::new(),
            cells: core::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    verbs! {
        /// Acquires a permit, blocking until one is available.
        ///
        /// # Errors
        /// [`Fault::TooManyPeers`] if [`MAX_HOLDERS`] other processes hold permits. Otherwise see
        /// [`Fault`].
        pub fn acquire(&self) -> Result<OwnedPermit<'_>, Fault> = TakePermits::new(self, 1);
        /// It also returns `Ok(None)` while another thread is just acquiring permits.
        try_acquire -> Result<Option<OwnedPermit<'_>>, Fault>, else Ok(None);
        acquire_timeout, acquire_deadline -> Result<OwnedPermit<'_>, TimeoutError>,
            else Err(TimeoutError::TimedOut);

        /// Acquires `n` permits, blocking until all of them are available at the same time. Blocks
        /// forever if the semaphore has fewer permits in all.
        ///
        /// ```
        /// use outlast::{OwnedSemaphore, Shared};
        ///
        /// let here = Shared::anonymous(OwnedSemaphore::new(3))?;
        /// // As another process would:
        /// let there = Shared::<OwnedSemaphore>::from_fd(here.try_clone_fd()?)?;
        /// let two = here.acquire_many(2)?;
        /// assert!(there.try_acquire_many(2)?.is_none());
        /// drop(two); // or the end of this process, by whatever means
        /// assert_eq!(there.available(), 3);
        /// # Ok::<(), outlast::Error>(())
        /// ```
        ///
        /// # Errors
        /// As [`acquire`](Self::acquire).
        pub fn acquire_many(&self, n: u32) -> Result<OwnedPermit<'_>, Fault>
            = TakePermits::new(self, n);
        /// It also returns `Ok(None)` while another thread is just acquiring permits.
        try_acquire_many -> Result<Option<OwnedPermit<'_>>, Fault>, else Ok(None);
        acquire_many_timeout, acquire_many_deadline -> Result<OwnedPermit<'_>, TimeoutError>,
            else Err(TimeoutError::TimedOut);
    }

    /// Acquires `n` permits under the robust word, if as many are available. Keeps I2.
    fn attempt(
        &self,
        tag: u32,
        n: u32,
        deadline: Deadline,
    ) -> Result<Option<OwnedPermit<'_>>, Fault> {
        let me = match self.word.try_take_fast() {
            Some(me) => me,
            None => match self.take_word(deadline)? {
                Some(me) => me,
                None => return Ok(None),
            },
        };
        let taken = self.take(tag, n);
        self.word.unlock(me);
        taken
    }

    #[cold]
    fn take_word(&self, deadline: Deadline) -> Result<Option<Thread>, Fault> {
        let taken = self.word.take_until(deadline).unwrap_or(Err(Refused::Busy));
        match taken {
            // A dead owner of the word left the cells whole: it changed at most one, in one step.
            Ok((_, me)) => Ok(Some(me)),
            Err(Refused::Busy) => Ok(None),
            Err(Refused::Failed(fault)) => Err(fault),
            Err(Refused::Mine | Refused::Unplaced) => Err(Fault::Corrupt),
        }
    }

    fn take(&self, tag: u32, n: u32) -> Result<Option<OwnedPermit<'_>>, Fault> {
        let owner = u64::from(tag) & TAG;
        let (mut held, mut mine, mut free) = (0, None, None);
        for cell in &self.cells {
            let seen = cell.load(Acquire);
            held += seen >> HELD_AT;
            if seen & TAG == owner {
                mine = mine.or(Some(cell));
            } else if seen == 0 {
                free = free.or(Some(cell));
            }
        }
        if self.available_beside(held) < n {
            return Ok(None);
        }
        let cell = mine.or(free).ok_or(Fault::TooManyPeers)?;
        let more = u64::from(n) << HELD_AT;
        let mut seen = cell.load(Relaxed);
        while let Err(now) =
            cell.compare_exchange(seen, (seen | owner).wrapping_add(more), AcqRel, Relaxed)
        {
            seen = now; // another thread of this process has released permits
        }
        Ok(Some(OwnedPermit { semaphore: self, cell, owner, n, forks: forks() }))
    }

    /// Returns the number of permits that no process holds. It may change at any moment.
    #[must_use]
    pub fn available(&self) -> u32 {
        self.available_beside(self.cells.iter().map(|cell| cell.load(Acquire) >> HELD_AT).sum())
    }

    fn available_beside(&self, held: u64) -> u32 {
        u32::try_from(u64::from(self.permits()).saturating_sub(held)).unwrap_or(0)
    }

    /// Returns the total number of permits.
    #[must_use]
    pub fn permits(&self) -> u32 {
        self.total.load(Relaxed)
    }
}

/// The verb of [`OwnedSemaphore::acquire`].
struct TakePermits<'a> {
    semaphore: &'a OwnedSemaphore,
    n: u32,
    /// The time until which an attempt waits for the robust word.
    deadline: Deadline,
}

impl<'a> TakePermits<'a> {
    fn new(semaphore: &'a OwnedSemaphore, n: u32) -> Self {
        TakePermits { semaphore, n, deadline: Deadline::NOW }
    }
}

impl<'a> Verb for TakePermits<'a> {
    type Output = Result<OwnedPermit<'a>, Fault>;
    const HAS_FAST_PATH: bool = false;

    fn attempt(&mut self) -> Option<Self::Output> {
        match identify(core::ptr::from_ref(self.semaphore).addr()) {
            Ok(tag) => self.semaphore.attempt(tag, self.n, self.deadline).transpose(),
            Err(fault) => Some(Err(fault)),
        }
    }

    fn wait(&mut self, deadline: Deadline) -> Option<Self::Output> {
        self.deadline = deadline;
        self.attempt().or_else(|| operation::wait(self, deadline))
    }
}

impl<'a> Operation<'a> for TakePermits<'a> {
    fn key(&self) -> usize {
        self.semaphore.signal.key()
    }

    fn arm(&mut self) -> Armed<'a, Self::Output> {
        Armed::Sleep(self.semaphore.signal.arm())
    }
}

impl OwnedPermit<'_> {
    /// Returns the number of permits.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.n
    }

    /// Keeps the permits until this process ends or drops its last handle of the segment.
    ///
    /// After that, other processes can acquire them.
    pub fn forget(self) {
        core::mem::forget(self);
    }
}

impl Drop for OwnedPermit<'_> {
    fn drop(&mut self) {
        if self.forks != forks() {
            return;
        }
        let less = u64::from(self.n) << HELD_AT;
        // Without permits the cell is free for another process.
        let left = |seen: u64| match seen.saturating_sub(less) {
            left if left >> HELD_AT == 0 => 0,
            left => left,
        };
        let left = |seen: u64| (seen & TAG == self.owner).then(|| left(seen)); // keeps I4
        if self.cell.fetch_update(AcqRel, Relaxed, left).is_ok() {
            // Wakes every waiter: a waiter that needs more permits than are available would consume
            // the wake of another.
            self.semaphore.signal.notify_all();
        }
    }
}

// SAFETY: `repr(C)`; a robust word and atomics, for which any bytes are valid.
#[expect(unsafe_code, reason = "promises that the bytes may be shared")]
unsafe impl Shareable for OwnedSemaphore {
    const FINGERPRINT: u64 = begin::<Self>(b"OwnedSemaphore 1");
    const NEEDS_PEERS: bool = true;
    crate::__sized_shareable!();
    fn layout() -> Layout {
        Layout::of::<Self>("OwnedSemaphore", &[])
    }
    fn place(&self) {
        self.word.place();
        self.signal.place();
    }
    fn recover(&self, dead: &Dead) {
        for cell in &self.cells {
            let seen = cell.load(Acquire);
            if seen & TAG == u64::from(dead.tag) {
                cell.compare_exchange(seen, 0, AcqRel, Relaxed).ok();
            }
        }
        self.signal.wake_all();
    }
    fn in_use(&self, ours: &dyn Fn(u32) -> bool) -> bool {
        self.word.is_owned_by_one_of(ours)
    }
}

impl fmt::Debug for OwnedSemaphore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnedSemaphore")
            .field("word", &format_args!("{:#010x}", self.word.value()))
            .field("permits", &self.permits())
            .field("available", &self.available())
            .finish()
    }
}
