//! A lock that its owner can acquire again.
//!
//! ```
//! use outlast::{ReentrantLock, Shared};
//!
//! let here = Shared::anonymous(ReentrantLock::new(1_u64))?;
//! // As another process would:
//! let there = Shared::<ReentrantLock<u64>>::from_fd(here.try_clone_fd()?)?;
//! let outer = there.lock()?;
//! let inner = there.lock()?; // the same thread: one level deeper
//! inner.set(41);
//! assert_eq!(inner.depth(), 2);
//! drop(inner);
//! outer.update(|value| value + 1);
//! drop(outer);
//! assert_eq!(here.lock()?.get(), 42);
//! # Ok::<(), outlast::Error>(())
//! ```
//!
//! Use a [`ReentrantLock`] if a function that holds the lock calls another one that acquires it. If
//! that cannot happen, use a [`Lock`]: its guard gives a reference to the value.
//!
//! # Death
//! As with a [`Lock`]: the kernel releases the lock, and the next owner gets
//! [`LockError::OwnerDied`]. However many guards the dead owner had, they are gone.
#![expect(unsafe_code, reason = "the value is reached through the lock's promise of exclusion")]

// # How it works
// A `Lock`, and beside its poison the *depth*, which only the owner touches:
//
// | word | depth | meaning |
// |---|---|---|
// | not owned | any | free; the depth is what the last owner left |
// | owned | 0 | owned by a thread that has not counted yet |
// | owned | n | the owner has n guards |
//
// Invariants:
// - I1. Only the owner of the word touches the value, the poison and the depth.
// - I2. If a thread takes the word that it did not own, the depth is 1 before the guard is
//   returned, whatever it was.
// - I3. The guard that finds a depth of 1 releases the word. (Or a depth of 0, which only a faulty
//   peer writes.)
// - I4. No reference to the value is ever given out: another guard of the same thread could change
//   the value under it. Guards copy the value in and out.
// - I5. All guards of one owner were made through one mapping. The depth cannot tell two mappings
//   apart, and the word is released only through the mapping through which it was taken.
//
// Ordering: as for the word, taking it is an Acquire and releasing it a Release. Only the owner
// reads and writes the depth.
//
// Death: at whatever instruction the owner was killed, the next owner sets the depth anew (I2).
use crate::deadline::Deadline;
use crate::error::Fault;
use crate::lock::{
    Holder, Lock, LockError, LockGuard, LockResult, MarkConsistent, PoisonCause, Take,
};
use crate::segment::forks;
use crate::shareable::{Layout, Plain, Shareable, begin, fields, mix_u64};
use crate::sync::atomic::AtomicU32;
use crate::sync::atomic::Ordering::Relaxed;
use crate::sys::robust::Thread;
use crate::wait::verbs::{Verb, verbs};
use core::fmt;
use core::marker::PhantomData;
use core::mem::ManuallyDrop;

/// A lock around a value, for any number of processes, that its owner can acquire again.
///
/// A thread that holds the lock acquires it again immediately. It releases the lock with the last
/// of its guards, in whatever order they are dropped. Guards copy the value in and out
/// ([`get`](ReentrantLockGuard::get), [`set`](ReentrantLockGuard::set)), as a
/// [`Cell`](core::cell::Cell) does: a thread can have two guards, so neither can give a reference.
///
/// Deaths and panics are reported as by [`Lock`], whenever the lock is acquired, also to a thread
/// that already holds it, until [`mark_consistent`](ReentrantLockGuard::mark_consistent). Nothing
/// here is async-signal-safe.
#[repr(C)]
#[doc(alias = "RLock")]
pub struct ReentrantLock<T: Plain> {
    lock: Lock<T>,
}

/// Holds one level of a [`ReentrantLock`], and releases it when dropped.
///
/// A guard belongs to the thread that acquired the lock. Neither the guard nor a reference to it
/// can move to another thread:
///
/// ```compile_fail,E0277
/// fn shared<T: Sync>() {}
/// shared::<outlast::ReentrantLockGuard<'_, u64>>();
/// ```
/// ```compile_fail,E0277
/// fn sent<T: Send>() {}
/// sent::<outlast::ReentrantLockGuard<'_, u64>>();
/// ```
///
/// A process made by `fork` must not use its copy of a guard; dropping the copy does nothing.
#[must_use = "the lock is released immediately if the guard is not kept"]
pub struct ReentrantLockGuard<'a, T: Plain> {
    /// Releases the word, if this is the last guard.
    inner: ManuallyDrop<LockGuard<'a, T>>,
    /// The number of forks when this was made.
    forks: u32,
    /// Another thread could change the value through a reference to the guard.
    not_sync: PhantomData<*const ()>,
}

/// The result of acquiring a [`ReentrantLock`].
pub type ReentrantLockResult<'a, T> =
    Result<ReentrantLockGuard<'a, T>, LockError<ReentrantLockGuard<'a, T>>>;

impl<T: Plain> ReentrantLock<T> {
    /// Creates a lock around `value`, to be moved into shared memory.
    ///
    /// The lock can be used once it has been placed in a segment.
    pub fn new(value: T) -> Self {
        ReentrantLock { lock: Lock::new(value) }
    }

    verbs! {
        /// Acquires the lock, blocking until it is available. Acquires it again immediately if this
        /// thread holds it.
        ///
        /// # Errors
        /// - [`LockError::OwnerDied`], [`LockError::Poisoned`]: the lock is acquired, the guard is
        ///   inside, and the value may be half changed.
        /// - [`LockError::WouldDeadlock`]: this thread holds the lock through another mapping of
        ///   the segment.
        /// - [`LockError::Failed`]: see [`Fault`]. [`Fault::TooDeep`] if this thread has acquired
        ///   the lock `u32::MAX` times.
        ///
        /// # Panics
        /// If the lock does not lie in shared memory.
        #[inline]
        #[doc(alias = "acquire")]
        pub fn lock(&self) -> ReentrantLockResult<'_, T> = Enter(self);
        #[inline]
        try_lock -> ReentrantLockResult<'_, T>, else Err(LockError::WouldBlock);
        #[inline]
        lock_timeout, lock_deadline -> ReentrantLockResult<'_, T>,
            else Err(LockError::TimedOut(Holder::of(&self.lock.word)));
    }

    /// Makes a further guard for the owner.
    #[inline]
    fn one_deeper(&self, me: Thread) -> ReentrantLockResult<'_, T> {
        let depth = depth_of(&self.lock);
        let Some(deeper) = depth.load(Relaxed).checked_add(1) else {
            return Err(LockError::Failed(Fault::TooDeep));
        };
        match self.lock.guard(me) {
            // The bytes are not a valid value of the type: the lock is released with all its
            // levels, as `Lock` does.
            Err(LockError::Failed(fault)) => Err(LockError::Failed(fault)),
            taken => {
                depth.store(deeper, Relaxed);
                wrap(taken)
            }
        }
    }

    /// Makes the first guard of a new owner, whatever the depth says.
    #[inline(always)]
    fn first<'a>(&'a self, taken: LockResult<'a, T>) -> ReentrantLockResult<'a, T> {
        if let Ok(_) | Err(LockError::OwnerDied(_) | LockError::Poisoned(_)) = taken {
            depth_of(&self.lock).store(1, Relaxed); // keeps I2
        }
        wrap(taken)
    }

    /// Returns `true` if the value may be half changed. See [`poison_cause`](Self::poison_cause).
    #[must_use]
    pub fn is_poisoned(&self) -> bool {
        self.lock.is_poisoned()
    }

    /// Returns what happened to an owner that may have left the value half changed.
    ///
    /// Returns `None` if the value is consistent. The answer may change at any moment.
    #[must_use]
    pub fn poison_cause(&self) -> Option<PoisonCause> {
        self.lock.poison_cause()
    }

    /// Returns `true` if a thread holds the lock. The answer may change at any moment.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.lock.is_locked()
    }

    /// Returns `true` if the calling thread holds the lock, through any mapping of the segment.
    #[must_use]
    pub fn is_held_by_me(&self) -> bool {
        self.lock.is_held_by_me()
    }

    /// Returns the thread that holds the lock, as [`Lock::holder`] does.
    #[must_use]
    pub fn holder(&self) -> Option<Holder> {
        self.lock.holder()
    }

    /// Declares the value consistent, whatever happened to its last owners.
    ///
    /// A caller that has a guard calls [`ReentrantLockGuard::mark_consistent`] instead.
    pub fn clear_poison(&self) {
        self.lock.clear_poison();
    }

    /// Returns the value. The exclusive reference proves that no other thread can reach it yet.
    pub fn get_mut(&mut self) -> &mut T {
        self.lock.get_mut()
    }
}

/// The verb of [`ReentrantLock::lock`].
struct Enter<'a, T: Plain>(&'a ReentrantLock<T>);

impl<'a, T: Plain> Enter<'a, T> {
    #[cold]
    fn attempt_slow(&self) -> Option<ReentrantLockResult<'a, T>> {
        Take(&self.0.lock).attempt().map(|taken| self.0.first(taken))
    }
}

impl<'a, T: Plain> Verb for Enter<'a, T> {
    type Output = ReentrantLockResult<'a, T>;

    #[inline(always)]
    fn fast(&mut self) -> Option<Self::Output> {
        if let Some(me) = self.0.lock.word.held() {
            return Some(self.0.one_deeper(me));
        }
        let me = self.0.lock.word.try_take_fast()?;
        Some(self.0.first(self.0.lock.guard(me)))
    }

    #[inline(always)]
    fn attempt(&mut self) -> Option<Self::Output> {
        match self.fast() {
            Some(done) => Some(done),
            None => self.attempt_slow(),
        }
    }

    fn wait(&mut self, deadline: Deadline) -> Option<Self::Output> {
        Take(&self.0.lock).wait(deadline).map(|taken| self.0.first(taken))
    }
}

/// The number of guards of the owner. The poison is the note before it.
fn depth_of<T: Plain>(lock: &Lock<T>) -> &AtomicU32 {
    &lock.word.note[1]
}

#[inline(always)]
fn wrap<T: Plain>(taken: LockResult<'_, T>) -> ReentrantLockResult<'_, T> {
    let wrap = |guard| ReentrantLockGuard {
        inner: ManuallyDrop::new(guard),
        forks: forks(),
        not_sync: PhantomData,
    };
    match taken {
        Ok(guard) => Ok(wrap(guard)),
        Err(error) => Err(error.map(wrap)),
    }
}

impl<T: Plain> MarkConsistent for ReentrantLockGuard<'_, T> {
    fn mark_consistent(&mut self) {
        ReentrantLockGuard::mark_consistent(self);
    }
}

impl<'a, T: Plain> ReentrantLockGuard<'a, T> {
    /// Returns a copy of the value.
    ///
    /// # Panics
    /// If this thread does not hold the lock: in a forked child, or after a
    /// [`Condition`](crate::Condition) could not acquire it again.
    #[inline]
    #[must_use]
    pub fn get(&self) -> T {
        self.assert_held();
        // SAFETY: this thread owns the word (I1), the value was checked when the guard was made,
        // and nothing writes meanwhile.
        self.inner.lock.value.with(|value| unsafe { value.read() })
    }

    /// Sets the value.
    ///
    /// # Panics
    /// As [`get`](Self::get).
    #[inline]
    pub fn set(&self, value: T) {
        self.assert_held();
        // SAFETY: this thread owns the word (I1), and there are no references (I4).
        self.inner.lock.value.with_mut(|at| unsafe { at.write(value) });
    }

    /// Sets the value to what `change` returns for it, and returns the new value.
    ///
    /// If `change` acquires the lock again and sets the value, what it returns overwrites that.
    ///
    /// # Panics
    /// As [`get`](Self::get).
    #[inline]
    pub fn update(&self, change: impl FnOnce(T) -> T) -> T {
        let value = change(self.get());
        self.set(value);
        value
    }

    /// Returns the number of guards of the lock that this thread has.
    ///
    /// ```
    /// use outlast::{ReentrantLock, Shared};
    ///
    /// let here = Shared::anonymous(ReentrantLock::new(1_u64))?;
    /// let outer = here.lock()?;
    /// let inner = here.lock()?;
    /// assert_eq!(inner.depth(), 2);
    /// drop(inner);
    /// assert_eq!(outer.depth(), 1);
    /// # Ok::<(), outlast::Error>(())
    /// ```
    #[must_use]
    pub fn depth(&self) -> u32 {
        if self.is_held() { depth_of(self.inner.lock).load(Relaxed) } else { 0 }
    }

    /// Declares the value consistent again after the death or panic of an owner.
    pub fn mark_consistent(&self) {
        if self.is_held() {
            self.inner.lock.clear_poison();
        }
    }

    /// Whether this thread still holds the lock: the guard is not a copy made by `fork`, and the
    /// lock was not lost.
    #[inline(always)]
    pub(crate) fn is_held(&self) -> bool {
        self.forks == forks() && self.inner.lock.word.is_held_by(self.inner.me)
    }

    #[inline(always)]
    fn assert_held(&self) {
        assert!(self.is_held(), "this thread does not hold the lock any more");
    }

    /// Releases the lock for a while, with all its levels. Returns what
    /// [`acquire_after_wait`](Self::acquire_after_wait) needs.
    pub(crate) fn release_for_wait(self) -> (&'a Lock<T>, bool, u32) {
        let depth = depth_of(self.inner.lock).load(Relaxed);
        let mut guard = ManuallyDrop::new(self);
        // SAFETY: the guard around it is neither used nor dropped again.
        let inner = unsafe { ManuallyDrop::take(&mut guard.inner) };
        let (lock, panicking) = inner.release_for_wait();
        (lock, panicking, depth)
    }

    /// Acquires the lock again, with as many levels as before.
    pub(crate) fn acquire_after_wait(
        (lock, panicking, depth): (&'a Lock<T>, bool, u32),
    ) -> ReentrantLockResult<'a, T> {
        let taken = lock.acquire_after_wait(panicking);
        if let Ok(_) | Err(LockError::OwnerDied(_) | LockError::Poisoned(_)) = taken {
            depth_of(lock).store(depth, Relaxed);
        }
        wrap(taken)
    }
}

impl<T: Plain> Drop for ReentrantLockGuard<'_, T> {
    #[inline(always)]
    fn drop(&mut self) {
        if self.forks != forks() {
            return; // the guard belongs to the parent
        }
        let depth = depth_of(self.inner.lock);
        let levels = depth.load(Relaxed);
        if levels > 1 && self.inner.lock.word.is_held_by(self.inner.me) {
            self.inner.poison_if_panicking();
            depth.store(levels - 1, Relaxed);
        } else {
            // SAFETY: the inner guard is dropped only here, once. (keeps I3)
            unsafe { ManuallyDrop::drop(&mut self.inner) };
        }
    }
}

// SAFETY: `repr(C)`; a lock, and nothing else.
unsafe impl<T: Plain> Shareable for ReentrantLock<T> {
    const FINGERPRINT: u64 = mix_u64(begin::<Self>(b"ReentrantLock 1"), T::FINGERPRINT);
    const NEEDS_PEERS: bool = false;
    crate::__sized_shareable!();
    fn layout() -> Layout {
        Layout::of::<Self>("ReentrantLock", fields!(Shareable: lock: Lock<T>))
    }
    fn place(&self) {
        self.lock.place();
    }
    fn in_use(&self, ours: &dyn Fn(u32) -> bool) -> bool {
        self.lock.in_use(ours)
    }
}

impl<T: Plain + Default> Default for ReentrantLock<T> {
    fn default() -> Self {
        ReentrantLock::new(T::default())
    }
}

impl<T: Plain> From<T> for ReentrantLock<T> {
    fn from(value: T) -> Self {
        ReentrantLock::new(value)
    }
}

impl<T: Plain> fmt::Debug for ReentrantLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("ReentrantLock");
        shown.field("word", &format_args!("{:#010x}", self.lock.word.value()));
        shown.field("depth", &depth_of(&self.lock).load(Relaxed));
        shown.field("poison", &self.poison_cause());
        shown.finish_non_exhaustive()
    }
}

impl<T: Plain + fmt::Debug> fmt::Debug for ReentrantLockGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_held() { self.get().fmt(f) } else { f.write_str("<not held>") }
    }
}

impl<T: Plain + fmt::Display> fmt::Display for ReentrantLockGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_held() { self.get().fmt(f) } else { f.write_str("<not held>") }
    }
}
