//! A number of permits, to be taken and given back.
//!
//! ```
//! use outlast::{Semaphore, Shared};
//!
//! let here = Shared::anonymous(Semaphore::new(2))?;
//! let there = Shared::<Semaphore>::from_fd(here.try_clone_fd()?)?; // as another process would
//! let one = here.acquire()?;
//! there.acquire()?.forget(); // taken for good
//! assert!(there.try_acquire().is_none());
//! drop(one);
//! assert_eq!(there.available(), 1);
//! there.release(1)?; // by anybody: permits have no owner
//! assert_eq!(here.available(), 2);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # State
//! One word: bit 0 `WAITERS`, bit 1 `MANY`, and the number of permits in the other 30 bits. Beside
//! it, unchanged from birth, the ceiling plus one (0: none).
//!
//! | `MANY` | `WAITERS` | meaning |
//! |---|---|---|
//! | 0 | 0 | nobody asleep |
//! | 0 | 1 | somebody may be asleep, for one permit each |
//! | 1 | 1 | somebody may be asleep for more than one |
//!
//! # Invariants
//! - I1. A thread asleep => `WAITERS`; one asleep for more than one permit => `MANY`. (Both may be
//!   set with nobody asleep: a wasted system call.)
//! - I2. The bits are cleared only together with waking everybody, in one system call: cleared by
//!   an exchange of the word, they could be missing for one who fell asleep at that very value.
//! - I3. Permits were released and somebody who could take them is asleep => a woken thread, or the
//!   one that released them, is about to look. With `MANY` all are woken: one that wants more than
//!   there is would swallow the wake of one that does not. Without, as many are woken as permits
//!   came, and each takes one or finds that others have taken all.
//!
//! # Ordering
//! What was written before `release` is seen after the `acquire` that takes those permits: Release
//! and Acquire of the word, which every step in between changes by an exchange.
//!
//! # Death
//! Permits have no owner: one that a process took before it was killed stays taken, as with POSIX
//! and Python. An acquire takes effect at its exchange of the word, a release likewise. Killed
//! between that and its wake, or woken and killed before it took: recovery wakes everybody; so that
//! there is one, who releases to sleepers becomes a peer before. A sleeper that is killed leaves a
//! stale bit.
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
/// Made for signalling: whoever likes may release, and what a killed process has taken stays taken.
/// Fair to no one. No system call is made unless somebody waits.
#[repr(C)]
#[doc(alias = "BoundedSemaphore")]
pub struct Semaphore {
    word: WaitWord,
    /// The ceiling plus one, or 0 if there is none.
    ceiling: AtomicU32,
}

/// Permits, given back when dropped.
///
/// May be dropped by another thread. In a process made by `fork` a copied one does nothing.
#[must_use = "the permits are given back at once if this is not kept"]
#[derive(Debug)]
pub struct Permit<'a> {
    semaphore: &'a Semaphore,
    n: u32,
    /// The word as it was left, and mostly still is when they are given back: to guess it is faster
    /// than to look.
    left: u32,
    /// The count of forks when it was made.
    forks: u32,
}

/// A release that would have made more permits than there can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("more permits would be released than the semaphore holds")]
pub struct ReleaseError;

impl Semaphore {
    /// A semaphore of `permits`, to be moved into shared memory.
    ///
    /// # Panics
    /// If that is more than [`MAX_PERMITS`].
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
        /// that want fewer may be served meanwhile.
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

    /// Makes `n` more permits, and wakes those who can take them.
    ///
    /// Any process may, whether it has taken some or not.
    ///
    /// ```
    /// use outlast::{Semaphore, Shared};
    ///
    /// let here = Shared::anonymous(Semaphore::bounded(1))?;
    /// let there = Shared::<Semaphore>::from_fd(here.try_clone_fd()?)?; // as another process would
    /// here.acquire()?.forget(); // another one is to give it back
    /// assert_eq!(there.available(), 0);
    /// there.release(1).unwrap();
    /// assert!(there.release(1).is_err(), "one too many");
    /// # Ok::<(), outlast::Error>(())
    /// ```
    ///
    /// # Errors
    /// If there would be more than the ceiling of a [`bounded`](Self::bounded) semaphore, or than
    /// [`MAX_PERMITS`]; then none is made.
    #[inline]
    #[doc(alias = "post")]
    pub fn release(&self, n: u32) -> Result<(), ReleaseError> {
        self.release_from(self.word.value.load(Relaxed), n)
    }

    /// The same, if the word was `seen`, or so is the guess.
    #[inline(always)]
    fn release_from(&self, seen: u32, n: u32) -> Result<(), ReleaseError> {
        // Mostly there is no limit, or none near.
        let is_far = self.ceiling.load(Relaxed) == 0 && (seen | n) < 1 << 28;
        if seen & FLAGS == 0
            && (is_far || n <= self.room(seen))
            && self.word.value.compare_exchange(seen, seen + n * ONE, AcqRel, Relaxed).is_ok()
        {
            return Ok(());
        }
        self.release_slow(n)
    }

    /// How many permits can be released to a word that was `seen`.
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

    /// Keeps I2 and I3, after `n` permits were added to a word that was `seen`.
    #[cold]
    fn wake(&self, seen: u32, n: u32) {
        hooks::pause("semaphore: released, nobody woken yet");
        // Fewer woken than permits came: nobody is left asleep, and the bits are stale.
        let some_are_left = seen & MANY == 0 && self.word.wake(n) >= n as usize;
        if !some_are_left {
            self.word.change_and_wake(Change::ClearLowestTwo, u32::MAX);
        }
    }

    /// How many permits there are. May change at any moment.
    #[must_use]
    #[doc(alias = "value")]
    pub fn available(&self) -> u32 {
        self.word.value.load(Acquire) / ONE
    }
}

/// Taking permits.
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
    /// How many permits these are.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.n
    }

    /// Keeps the permits taken for good, or until somebody [releases](Semaphore::release) as many.
    pub fn forget(self) {
        core::mem::forget(self);
    }
}

impl Drop for Permit<'_> {
    #[inline]
    fn drop(&mut self) {
        if self.forks == forks() {
            // If others have released so many that there is no room, there is nothing to give back.
            self.semaphore.release_from(self.left, self.n).ok();
        }
    }
}

// SAFETY: `repr(C)`; atomics, for which any bytes will do.
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
