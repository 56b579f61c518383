//! Mutual exclusion that a thread may enter again while it is inside.
//!
//! ```
//! use outlast::{ReentrantLock, Shared};
//!
//! let here = Shared::anonymous(ReentrantLock::new(1_u64))?;
//! let there = Shared::<ReentrantLock<u64>>::from_fd(here.try_clone_fd()?)?; // as another process would
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
//! # State
//! A [`Lock`], and beside its poison the *depth*, which only the owner touches:
//!
//! | word | depth | meaning |
//! |---|---|---|
//! | not owned | any | free; the depth is what the last owner left |
//! | owned | 0 | taken, by one who has not counted yet |
//! | owned | n | its owner has n guards |
//!
//! # Invariants
//! - I1. Value, poison and depth are touched by the owner of the word only.
//! - I2. A word taken from nobody => the depth is 1 before the guard is given out, whatever it was.
//! - I3. The word is given up by the guard that finds a depth of 1 (or 0, which only a broken peer
//!   writes).
//! - I4. No reference to the value is ever given out: another guard of the same thread could change
//!   what it refers to. Guards copy the value, in and out.
//! - I5. All guards of one owner were taken through one mapping. The depth cannot tell two mappings
//!   apart, and the word is given up only through the one through which it was taken.
//!
//! # Ordering
//! That of the word: taking it is an Acquire, giving it up a Release. The depth is a matter between
//! the owner and itself.
//!
//! # Death
//! As with [`Lock`]: the kernel releases the word, and the next owner gets
//! [`LockError::OwnerDied`]. The depth of the dead is forgotten (I2), wherever in its counting it
//! died.
#![expect(unsafe_code, reason = "the value is reached through the lock's promise of exclusion")]
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

/// Mutual exclusion around a value, for any number of processes, that its owner may take again.
///
/// A thread that has the lock gets it at once, and gives it up with the last of its guards, in
/// whatever order they go. The value is copied in and out ([`get`](ReentrantLockGuard::get),
/// [`set`](ReentrantLockGuard::set)), as with a [`Cell`](core::cell::Cell): where there may be two
/// guards, neither can give a reference.
///
/// Deaths and panics are told as by [`Lock`], to every taking, the owner's own included, until
/// [`mark_consistent`](ReentrantLockGuard::mark_consistent). Not async-signal-safe.
#[repr(C)]
#[doc(alias = "RLock")]
pub struct ReentrantLock<T: Plain> {
    lock: Lock<T>,
}

/// Holds a [`ReentrantLock`], or one level of it, until dropped.
///
/// It belongs to the thread that took it, down to references to it:
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
/// In a process made by `fork` a copied guard must not be used; dropping it there does nothing.
#[must_use = "the lock is released at once if the guard is not kept"]
pub struct ReentrantLockGuard<'a, T: Plain> {
    /// Gives the word up, if this guard is to do it.
    inner: ManuallyDrop<LockGuard<'a, T>>,
    /// The count of forks when it was made.
    forks: u32,
    /// Another thread with a reference could change the value.
    not_sync: PhantomData<*const ()>,
}

/// What taking a reentrant lock gives.
pub type ReentrantLockResult<'a, T> =
    Result<ReentrantLockGuard<'a, T>, LockError<ReentrantLockGuard<'a, T>>>;

impl<T: Plain> ReentrantLock<T> {
    /// A free lock around `value`, to be moved into shared memory.
    ///
    /// It works from when it lies in a segment.
    pub fn new(value: T) -> Self {
        ReentrantLock { lock: Lock::new(value) }
    }

    verbs! {
        /// Acquires the lock, blocking until it is available; or acquires it once more, if this
        /// thread has it.
        ///
        /// # Errors
        /// - [`LockError::OwnerDied`], [`LockError::Poisoned`]: the lock is acquired, the guard is
        ///   inside, and the value may be half changed.
        /// - [`LockError::WouldDeadlock`]: this thread has it through another mapping of the
        ///   segment.
        /// - [`LockError::Failed`]: see [`Fault`]; [`Fault::TooDeep`] if this thread has acquired
        ///   it `u32::MAX` times.
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

    /// One level deeper.
    #[inline]
    fn again(&self, me: Thread) -> ReentrantLockResult<'_, T> {
        let depth = depth_of(&self.lock);
        let Some(deeper) = depth.load(Relaxed).checked_add(1) else {
            return Err(LockError::Failed(Fault::TooDeep));
        };
        match self.lock.guard(me) {
            // The value's bytes are none of the type: the lock is given up, as `Lock` does it, with
            // all its levels.
            Err(LockError::Failed(fault)) => Err(LockError::Failed(fault)),
            taken => {
                depth.store(deeper, Relaxed);
                wrap(taken)
            }
        }
    }

    /// The first level, whatever the depth says.
    #[inline(always)]
    fn first<'a>(&'a self, taken: LockResult<'a, T>) -> ReentrantLockResult<'a, T> {
        if let Ok(_) | Err(LockError::OwnerDied(_) | LockError::Poisoned(_)) = taken {
            depth_of(&self.lock).store(1, Relaxed); // keeps I2
        }
        wrap(taken)
    }

    /// Whether the value may be half changed: see [`poison_cause`](Self::poison_cause).
    #[must_use]
    pub fn is_poisoned(&self) -> bool {
        self.lock.is_poisoned()
    }

    /// What happened to an owner before it was done, if it is not mended yet. May change at any
    /// moment.
    #[must_use]
    pub fn poison_cause(&self) -> Option<PoisonCause> {
        self.lock.poison_cause()
    }

    /// Returns whether a thread holds the lock. May change at any moment.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.lock.is_locked()
    }

    /// Returns whether the calling thread holds the lock, through whichever mapping.
    #[must_use]
    pub fn is_held_by_me(&self) -> bool {
        self.lock.is_held_by_me()
    }

    /// Returns the thread that holds the lock, as [`Lock::holder`] does.
    #[must_use]
    pub fn holder(&self) -> Option<Holder> {
        self.lock.holder()
    }

    /// Declares the value sound, whatever happened to its last owners.
    ///
    /// Better, where the guard is at hand: [`ReentrantLockGuard::mark_consistent`].
    pub fn clear_poison(&self) {
        self.lock.clear_poison();
    }

    /// The value, which nobody else can reach yet.
    pub fn get_mut(&mut self) -> &mut T {
        self.lock.get_mut()
    }
}

/// Going one level deeper into a lock, or taking it.
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
            return Some(self.0.again(me));
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

/// How many guards the owner has. The poison is the note before it.
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
    /// The value.
    ///
    /// # Panics
    /// If this thread does not have the lock: in a forked child, or after a
    /// [`Condition`](crate::Condition) could not take it again.
    #[inline]
    #[must_use]
    pub fn get(&self) -> T {
        self.assert_held();
        // SAFETY: this thread owns the word (I1), the value was checked when the guard was made,
        // and nothing writes meanwhile.
        self.inner.lock.value.with(|value| unsafe { value.read() })
    }

    /// Changes the value.
    ///
    /// # Panics
    /// As [`get`](Self::get).
    #[inline]
    pub fn set(&self, value: T) {
        self.assert_held();
        // SAFETY: this thread owns the word (I1), and nobody has a reference (I4).
        self.inner.lock.value.with_mut(|at| unsafe { at.write(value) });
    }

    /// Changes the value to what `change` makes of it; which that is.
    ///
    /// If `change` takes the lock again and sets the value, that is overwritten by what it returns.
    ///
    /// # Panics
    /// As [`get`](Self::get).
    #[inline]
    pub fn update(&self, change: impl FnOnce(T) -> T) -> T {
        let value = change(self.get());
        self.set(value);
        value
    }

    /// How many guards of the lock this thread has.
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

    /// Declares the value sound again, after the death or panic of an owner.
    pub fn mark_consistent(&self) {
        if self.is_held() {
            self.inner.lock.clear_poison();
        }
    }

    /// Whether the guard is still what it was made for: it is no copy made by fork, and the lock is
    /// not lost.
    #[inline(always)]
    pub(crate) fn is_held(&self) -> bool {
        self.forks == forks() && self.inner.lock.word.is_held_by(self.inner.me)
    }

    #[inline(always)]
    fn assert_held(&self) {
        assert!(self.is_held(), "this thread does not have the lock any more");
    }

    /// Gives the lock up for a while, with all its levels; what [`take_again`](Self::take_again)
    /// needs.
    pub(crate) fn give_up(self) -> (&'a Lock<T>, bool, u32) {
        let depth = depth_of(self.inner.lock).load(Relaxed);
        let mut guard = ManuallyDrop::new(self);
        // SAFETY: the guard around it is neither used nor dropped again.
        let inner = unsafe { ManuallyDrop::take(&mut guard.inner) };
        let (lock, panicking) = inner.give_up();
        (lock, panicking, depth)
    }

    /// Takes the lock again, with as many levels as before.
    pub(crate) fn take_again(
        (lock, panicking, depth): (&'a Lock<T>, bool, u32),
    ) -> ReentrantLockResult<'a, T> {
        let taken = lock.take_again(panicking);
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
            return; // the parent's
        }
        let depth = depth_of(self.inner.lock);
        let levels = depth.load(Relaxed);
        if levels > 1 && self.inner.lock.word.is_held_by(self.inner.me) {
            self.inner.notice_panic();
            depth.store(levels - 1, Relaxed);
        } else {
            // SAFETY: dropped once, here. (keeps I3)
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
