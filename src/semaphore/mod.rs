//! A number of permits that threads acquire and release.
//!
//! ```
//! use outlast::{Semaphore, Shared};
//!
//! let here = Shared::anonymous(Semaphore::new(2))?;
//! let there = Shared::<Semaphore>::from_fd(here.try_clone_fd()?)?; // as another process would
//! let one = here.acquire()?;
//! there.acquire()?.forget(); // stays acquired
//! assert!(there.try_acquire().is_none());
//! drop(one);
//! assert_eq!(there.available(), 1);
//! there.release(1)?; // any process may: permits have no owner
//! assert_eq!(here.available(), 2);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Which semaphore
//! - [`Semaphore`] is for signalling: any process may release permits, and permits have no owner.
//! - [`OwnedSemaphore`] limits the use of something: permits belong to a process and come back when
//!   it ends.
//!
//! # Death
//! Permits of a [`Semaphore`] have no owner. A permit that a killed process had acquired stays
//! acquired, as with POSIX and Python. A process that is killed in `acquire` or `release` has
//! either done it or not, and the other waiting threads get what was released.
//!
//! The permits of an [`OwnedSemaphore`] come back when the process that holds them is killed.

// # How it works
// The state is one word: bit 0 `WAITERS`, bit 1 `MANY`, and the number of permits in the other 30
// bits. Beside it lies the ceiling plus one (0: no ceiling), which never changes.
//
// | `MANY` | `WAITERS` | meaning |
// |---|---|---|
// | 0 | 0 | no thread is asleep |
// | 0 | 1 | threads may be asleep, each for one permit |
// | 1 | 1 | a thread may be asleep for more than one permit |
//
// Invariants:
// - I1. If a thread is asleep, `WAITERS` is set. If one is asleep for more than one permit, `MANY`
//   is set. (Both may be set while no thread is asleep, which costs a system call.)
// - I2. The bits are cleared only together with waking every sleeper, in one system call. If a
//   plain exchange of the word cleared them, they could be missing for a thread that falls asleep
//   at that very value.
// - I3. If permits were released and a thread that could acquire them is asleep, then a woken
//   thread, or the thread that released them, is about to look. With `MANY` every sleeper is woken:
//   a thread that wants more permits than there are would swallow the wake of a thread that does
//   not. Without `MANY`, a release wakes as many threads as it makes permits. Each of them acquires
//   one, or finds that other threads have acquired all.
//
// Ordering: writes made before `release` are visible to the thread whose `acquire` takes those
// permits. Both are exchanges of the word, a Release and an Acquire, and so is every step between.
//
// Death: an acquire and a release take effect at their exchange of the word. A process may be
// killed between that exchange and its wake, or after it was woken and before it acquired. Then
// recovery wakes every sleeper. So that recovery takes place, a thread that releases permits to
// sleepers becomes a peer first. A sleeper that is killed leaves a stale bit.
mod owned;

pub use owned::{MAX_HOLDERS, OwnedPermit, OwnedSemaphore};

use crate::deadline::Deadline;
use crate::error::{Fault, TimeoutError};
use crate::segment::{become_known, forks, identify};
use crate::shareable::{Dead, Layout, Shareable, begin};
use crate::sync::atomic::AtomicU32;
use crate::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use crate::sys::{Change, hooks};
use crate::wait::WaitWord;
use crate::wait::operation::{self, Armed, Operation};
use crate::wait::verbs::{Verb, verbs};
use core::fmt;
use thiserror::Error;

const WAITERS: u32 = 1;
const MANY: u32 = 2;
const FLAGS: u32 = WAITERS | MANY;
/// One permit.
const ONE: u32 = 4;

/// The most permits that a [`Semaphore`] counts: 1,073,741,823.
pub const MAX_PERMITS: u32 = u32::MAX / ONE;

/// A number of permits for any number of processes.
///
/// It is made for signalling: any process may release permits, and what a killed process had
/// acquired stays acquired. It is not fair: a newcomer may overtake waiting threads. It makes no
/// system call unless a thread waits.
#[repr(C)]
#[doc(alias = "BoundedSemaphore")]
pub struct Semaphore {
    word: WaitWord,
    /// The ceiling plus one, or 0 if there is none.
    ceiling: AtomicU32,
}

/// Acquired permits, which are released when this is dropped.
///
/// Another thread may drop it. In a process made by `fork`, a copy does nothing.
#[must_use = "the permits are released immediately if this is not kept"]
#[derive(Debug)]
pub struct Permit<'a> {
    semaphore: &'a Semaphore,
    n: u32,
    /// The word as the acquire left it. Mostly it is still the same at the release, and guessing it
    /// is faster than reading it.
    left: u32,
    /// The number of forks when this was made.
    forks: u32,
}

/// A release would make more permits than the semaphore can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the release would make more permits than the semaphore can have")]
pub struct ReleaseError;

impl Semaphore {
    /// Creates a semaphore of `permits`, to be moved into shared memory.
    ///
    /// # Panics
    /// If `permits` is more than [`MAX_PERMITS`].
    #[must_use]
    pub fn new(permits: u32) -> Self {
        Semaphore { word: WaitWord::new(word_of(permits)), ceiling: AtomicU32::new(0) }
    }

    /// Creates a semaphore whose ceiling is its initial number of permits: a release that would
    /// make more fails.
    ///
    /// # Panics
    /// If `permits` is more than [`MAX_PERMITS`].
    #[must_use]
    pub fn bounded(permits: u32) -> Self {
        Self::with_ceiling(permits, permits)
    }

    /// Creates a semaphore of `permits`, for which a release that would make more than `ceiling`
    /// fails.
    ///
    /// ```
    /// use outlast::{Semaphore, Shared};
    ///
    /// let here = Shared::anonymous(Semaphore::with_ceiling(0, 2))?; // starts empty
    /// let there = Shared::<Semaphore>::from_fd(here.try_clone_fd()?)?; // as another process would
    /// there.release(2)?;
    /// assert!(there.release(1).is_err());
    /// assert_eq!(here.available(), 2);
    /// # Ok::<(), outlast::Error>(())
    /// ```
    ///
    /// # Panics
    /// If `permits` is more than `ceiling`, or `ceiling` is more than [`MAX_PERMITS`].
    #[must_use]
    pub fn with_ceiling(permits: u32, ceiling: u32) -> Self {
        assert!(permits <= ceiling, "a semaphore has no more permits than its ceiling");
        assert!(ceiling <= MAX_PERMITS, "a semaphore has at most 1,073,741,823 permits");
        Semaphore { word: WaitWord::new(word_of(permits)), ceiling: AtomicU32::new(ceiling + 1) }
    }

    verbs! {
        /// Acquires a permit, blocking until one is available.
        ///
        /// # Errors
        /// If this process cannot become a peer of the segment: see [`Fault`].
        #[inline]
        pub fn acquire(&self) -> Result<Permit<'_>, Fault> = TakePermits { semaphore: self, n: 1 };
        #[inline]
        try_acquire -> Option<Permit<'_>>, else None;
        acquire_timeout, acquire_deadline -> Result<Permit<'_>, TimeoutError>,
            else Err(TimeoutError::TimedOut);

        /// Acquires `n` permits, blocking until all of them are available at the same time. Threads
        /// that want fewer may acquire theirs before.
        ///
        /// ```
        /// use outlast::{Semaphore, Shared};
        ///
        /// let here = Shared::anonymous(Semaphore::new(3))?;
        /// let there = Shared::<Semaphore>::from_fd(here.try_clone_fd()?)?; // as another process would
        /// let two = here.acquire_many(2)?;
        /// assert!(there.try_acquire_many(2).is_none());
        /// drop(two);
        /// assert_eq!(there.available(), 3);
        /// # Ok::<(), outlast::Error>(())
        /// ```
        ///
        /// # Errors
        /// As [`acquire`](Self::acquire).
        #[inline]
        pub fn acquire_many(&self, n: u32) -> Result<Permit<'_>, Fault>
            = TakePermits { semaphore: self, n };
        #[inline]
        try_acquire_many -> Option<Permit<'_>>, else None;
        acquire_many_timeout, acquire_many_deadline -> Result<Permit<'_>, TimeoutError>,
            else Err(TimeoutError::TimedOut);
    }

    #[inline(always)]
    fn take(&self, seen: u32, n: u32) -> Result<Permit<'_>, u32> {
        let left = seen - n * ONE;
        self.word.value.compare_exchange(seen, left, Acquire, Relaxed)?;
        Ok(Permit { semaphore: self, n, left, forks: forks() })
    }

    /// Adds `n` permits, and wakes threads that can acquire them.
    ///
    /// Any process may call this, whether it has acquired permits or not.
    ///
    /// ```
    /// use outlast::{Semaphore, Shared};
    ///
    /// let here = Shared::anonymous(Semaphore::bounded(1))?;
    /// let there = Shared::<Semaphore>::from_fd(here.try_clone_fd()?)?; // as another process would
    /// here.acquire()?.forget(); // another process will release it
    /// assert_eq!(there.available(), 0);
    /// there.release(1).unwrap();
    /// assert!(there.release(1).is_err(), "one too many");
    /// # Ok::<(), outlast::Error>(())
    /// ```
    ///
    /// # Errors
    /// If there would be more permits than the ceiling of the semaphore, or more than
    /// [`MAX_PERMITS`]. Then none is added.
    #[inline]
    #[doc(alias = "post")]
    pub fn release(&self, n: u32) -> Result<(), ReleaseError> {
        self.release_from(self.word.value.load(Relaxed), n)
    }

    /// Like `release`, for a word that is believed to be `seen`.
    #[inline(always)]
    fn release_from(&self, seen: u32, n: u32) -> Result<(), ReleaseError> {
        // Mostly there is no ceiling, and the number is far from the maximum.
        let is_far = self.ceiling.load(Relaxed) == 0 && (seen | n) < 1 << 28;
        if seen & FLAGS == 0
            && (is_far || n <= self.room(seen))
            && self.word.value.compare_exchange(seen, seen + n * ONE, AcqRel, Relaxed).is_ok()
        {
            return Ok(());
        }
        self.release_slow(n)
    }

    /// The number of permits that can be added to a word that was `seen`.
    #[inline(always)]
    fn room(&self, seen: u32) -> u32 {
        // Without a ceiling this wraps round.
        let ceiling = self.ceiling.load(Relaxed).wrapping_sub(1).min(MAX_PERMITS);
        ceiling.saturating_sub(seen / ONE)
    }

    #[cold]
    fn release_slow(&self, n: u32) -> Result<(), ReleaseError> {
        let mut seen = self.word.value.load(Relaxed);
        loop {
            if n > self.room(seen) {
                return Err(ReleaseError);
            }
            if seen & FLAGS != 0 {
                become_known(core::ptr::from_ref(self).addr());
            }
            match self.word.value.compare_exchange(seen, seen + n * ONE, AcqRel, Relaxed) {
                Ok(_) => break,
                Err(now) => seen = now,
            }
        }
        if seen & FLAGS != 0 && n > 0 {
            self.wake(seen, n);
        }
        Ok(())
    }

    /// Wakes sleepers after `n` permits were added to a word that was `seen`. Keeps I2 and I3.
    #[cold]
    fn wake(&self, seen: u32, n: u32) {
        hooks::pause("semaphore: released, nobody woken yet");
        // If fewer threads were woken than permits were added, no thread is left asleep, and the
        // bits are stale.
        let some_are_left = seen & MANY == 0 && self.word.wake(n) >= n as usize;
        if !some_are_left {
            self.word.change_and_wake(Change::ClearLowestTwo, u32::MAX);
        }
    }

    /// Returns the number of available permits. It may change at any moment.
    #[must_use]
    #[doc(alias = "value")]
    pub fn available(&self) -> u32 {
        self.word.value.load(Acquire) / ONE
    }
}

/// The verb of [`Semaphore::acquire`].
struct TakePermits<'a> {
    semaphore: &'a Semaphore,
    n: u32,
}

impl<'a> Verb for TakePermits<'a> {
    type Output = Result<Permit<'a>, Fault>;

    #[inline(always)]
    fn fast(&mut self) -> Option<Self::Output> {
        let mut seen = self.semaphore.word.value.load(Relaxed);
        while seen / ONE >= self.n {
            match self.semaphore.take(seen, self.n) {
                Ok(permit) => return Some(Ok(permit)),
                Err(now) => seen = now,
            }
        }
        None
    }

    fn wait(&mut self, deadline: Deadline) -> Option<Self::Output> {
        operation::wait(self, deadline)
    }
}

impl<'a> Operation<'a> for TakePermits<'a> {
    fn key(&self) -> usize {
        core::ptr::from_ref(self.semaphore).addr()
    }

    fn arm(&mut self) -> Armed<'a, Self::Output> {
        if let Err(fault) = identify(self.key()) {
            return Armed::Done(Err(fault));
        }
        let word = &self.semaphore.word;
        let seen = word.value.load(Relaxed);
        let announced = seen | if self.n > 1 { FLAGS } else { WAITERS };
        match seen / ONE < self.n {
            true => Armed::on_state(word, seen, announced), // keeps I1
            false => Armed::Retry,
        }
    }
}

fn word_of(permits: u32) -> u32 {
    assert!(permits <= MAX_PERMITS, "a semaphore has at most 1,073,741,823 permits");
    permits * ONE
}

impl Permit<'_> {
    /// Returns the number of permits.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.n
    }

    /// Leaves the permits acquired until a process [releases](Semaphore::release) as many.
    pub fn forget(self) {
        core::mem::forget(self);
    }
}

impl Drop for Permit<'_> {
    #[inline]
    fn drop(&mut self) {
        if self.forks == forks() {
            // If others have released so many permits that the ceiling is reached, none is due.
            self.semaphore.release_from(self.left, self.n).ok();
        }
    }
}

// SAFETY: `repr(C)`; atomics, for which any bytes are valid.
#[expect(unsafe_code, reason = "promises that the bytes may be shared")]
unsafe impl Shareable for Semaphore {
    const FINGERPRINT: u64 = begin::<Self>(b"Semaphore 2");
    const NEEDS_PEERS: bool = true;
    crate::__sized_shareable!();
    fn layout() -> Layout {
        Layout::of::<Self>("Semaphore", &[])
    }
    fn place(&self) {
        self.word.place();
    }
    fn recover(&self, _dead: &Dead) {
        self.word.wake(u32::MAX);
    }
}

impl fmt::Debug for Semaphore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Semaphore")
            .field("word", &format_args!("{:#010x}", self.word.value.load(Relaxed)))
            .field("ceiling", &self.ceiling.load(Relaxed).checked_sub(1))
            .finish()
    }
}
