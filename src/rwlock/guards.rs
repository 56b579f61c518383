//! The guards of an [`RwLock`].
#![expect(unsafe_code, reason = "the value is reached through the lock's promise of exclusion")]
use super::acquire::further_guards;
use super::{ReadResult, RwLock, WriteResult};
use crate::error::Fault;
use crate::lock::{CLEAN, LockError, MarkConsistent, PANICKED, PoisonCause};
use crate::shareable::Plain;
use crate::sync::atomic::Ordering::{Relaxed, Release, SeqCst};
use crate::sync::compiler_fence;
use crate::sys::robust::Thread;
use crate::wait::robust::RobustWord;
use core::fmt;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};

/// Holds an [`RwLock`] for reading, and releases it when dropped.
///
/// A guard belongs to the thread that acquired the lock. A process made by `fork` must not use its
/// copy of a guard; dropping the copy does nothing.
#[must_use = "the lock is released immediately if the guard is not kept"]
pub struct ReadGuard<'a, T: Plain> {
    lock: &'a RwLock<T>,
    /// The word that this thread owns: a slot, or the writer word.
    word: &'a RobustWord,
    me: Thread,
    /// The kernel knows the owner as a thread, so the guard stays in that thread.
    not_send: PhantomData<*const ()>,
}

/// Holds an [`RwLock`] for writing, and releases it when dropped.
///
/// A guard belongs to the thread that acquired the lock. A process made by `fork` must not use its
/// copy of a guard; dropping the copy does nothing.
#[must_use = "the lock is released immediately if the guard is not kept"]
pub struct WriteGuard<'a, T: Plain> {
    lock: &'a RwLock<T>,
    me: Thread,
    /// Whether the thread was already panicking when it acquired the lock.
    panicking: bool,
    /// The kernel knows the owner as a thread, so the guard stays in that thread.
    not_send: PhantomData<*const ()>,
}

// SAFETY: a guard for reading gives only `&T`, and any thread may read `Plain` data.
unsafe impl<T: Plain> Sync for ReadGuard<'_, T> {}
// SAFETY: a shared guard gives only `&T`, and any thread may read `Plain` data.
unsafe impl<T: Plain> Sync for WriteGuard<'_, T> {}

impl<T: Plain> RwLock<T> {
    /// The guard of a word that this thread has just taken, as I2 demands.
    #[inline(always)]
    pub(super) fn reader<'a>(&'a self, word: &'a RobustWord, me: Thread) -> ReadResult<'a, T> {
        if T::ANY_BITS && self.poison().load(Relaxed) == CLEAN {
            Ok(ReadGuard { lock: self, word, me, not_send: PhantomData })
        } else {
            rebuilt(self.check_reader(word, me))
        }
    }

    #[cold]
    fn check_reader<'a>(&'a self, word: &'a RobustWord, me: Thread) -> ReadResult<'a, T> {
        self.check(ReadGuard { lock: self, word, me, not_send: PhantomData })
    }

    /// The guard of the writer word. No living thread owns a slot.
    #[inline(always)]
    pub(super) fn writer(&self, me: Thread) -> WriteResult<'_, T> {
        let panicking = std::thread::panicking();
        let guard = WriteGuard { lock: self, me, panicking, not_send: PhantomData };
        self.inside().store(1, Relaxed);
        compiler_fence(SeqCst); // keeps I1, even if this thread is killed here
        if T::ANY_BITS && self.poison().load(Relaxed) == CLEAN {
            Ok(guard)
        } else {
            self.check(guard)
        }
    }

    fn check<G>(&self, guard: G) -> Result<G, LockError<G>> {
        // SAFETY: the value lies in the lock, aligned and readable, and the guard keeps all other
        // writers out.
        if !self.value.with(|value| unsafe { T::is_valid(value) }) {
            return Err(LockError::Failed(Fault::Corrupt));
        }
        PoisonCause::judge(self.poison().load(Relaxed), guard)
    }
}

/// Returns `taken`, moved out of the memory that a call on the slow path has filled. So a guard
/// that is made on the fast path stays in registers; through memory it would be 4 ns slower.
#[inline(always)]
pub(super) fn rebuilt<T: Plain>(taken: ReadResult<'_, T>) -> ReadResult<'_, T> {
    let guard = taken?;
    let (lock, word, me) = (guard.lock, guard.word, guard.me);
    core::mem::forget(guard);
    Ok(ReadGuard { lock, word, me, not_send: PhantomData })
}

impl<T: Plain> MarkConsistent for WriteGuard<'_, T> {
    fn mark_consistent(&mut self) {
        WriteGuard::mark_consistent(self);
    }
}

impl<'a, T: Plain> WriteGuard<'a, T> {
    /// Declares the value consistent again after the death or panic of a writer.
    pub fn mark_consistent(&mut self) {
        self.lock.clear_poison();
    }

    /// Turns the guard into one for reading. Other readers are admitted, and no writer can change
    /// the value in between.
    ///
    /// ```
    /// use outlast::{RwLock, Shared, WriteGuard};
    ///
    /// let here = Shared::anonymous(RwLock::new(0_u64))?;
    /// let there = Shared::<RwLock<u64>>::from_fd(here.try_clone_fd()?)?; // as another process would
    /// let mut writer = here.write()?;
    /// *writer = 42;
    /// let reader = WriteGuard::downgrade(writer);
    /// let other = std::thread::spawn(move || *there.read().unwrap());
    /// assert_eq!((*reader, other.join().unwrap()), (42, 42));
    /// # Ok::<(), outlast::Error>(())
    /// ```
    pub fn downgrade(guard: Self) -> ReadGuard<'a, T> {
        let (lock, me) = (guard.lock, guard.me);
        let is_owner = guard.end();
        core::mem::forget(guard);
        // From here on this thread is a reader that owns the writer word (I2). A guard that `fork`
        // copied owns nothing.
        let slot = if is_owner { lock.take_slot(me) } else { None };
        if slot.is_some() {
            lock.writer.unlock(me);
        }
        let word = slot.unwrap_or(&lock.writer);
        ReadGuard { lock, word, me, not_send: PhantomData }
    }

    /// Notes that this writer changes the value no further. Returns `true` if the guard owned the
    /// lock.
    #[inline]
    fn end(&self) -> bool {
        // In a forked child, the lock is still the parent's.
        let is_owner = self.lock.writer.is_still(self.me);
        if is_owner {
            if !self.panicking && std::thread::panicking() {
                self.lock.poison().store(PANICKED, Relaxed);
            }
            self.lock.inside().store(0, Release); // after the last change
        }
        is_owner
    }
}

/// Drops a guard of `word`, which the thread `me` took.
#[cold]
fn drop_reader_slow(word: &RobustWord, me: Thread) {
    // In a forked child, the word is still the parent's.
    if word.is_still(me) {
        let more = further_guards(word).load(Relaxed);
        if more > 0 {
            return further_guards(word).store(more - 1, Relaxed);
        }
    }
    word.unlock(me);
}

impl<T: Plain> Drop for ReadGuard<'_, T> {
    #[inline(always)]
    fn drop(&mut self) {
        if !self.word.try_unlock_if(self.me, || further_guards(self.word).load(Relaxed) == 0) {
            drop_reader_slow(self.word, self.me);
        }
    }
}

impl<T: Plain> Drop for WriteGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.end();
        self.lock.writer.unlock(self.me);
    }
}

impl<T: Plain> Deref for ReadGuard<'_, T> {
    type Target = T;
    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: no thread writes while this guard lives (I1 to I3), and the value was checked
        // when the guard was made.
        self.lock.value.with(|value| unsafe { &*value })
    }
}

impl<T: Plain> Deref for WriteGuard<'_, T> {
    type Target = T;
    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: no other thread reaches the value (I1 to I3), which was checked when the guard
        // was made.
        self.lock.value.with(|value| unsafe { &*value })
    }
}

impl<T: Plain> DerefMut for WriteGuard<'_, T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above, and the guard is borrowed exclusively.
        self.lock.value.with_mut(|value| unsafe { &mut *value })
    }
}

impl<T: Plain + fmt::Debug> fmt::Debug for ReadGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: Plain + fmt::Display> fmt::Display for ReadGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: Plain + fmt::Debug> fmt::Debug for WriteGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: Plain + fmt::Display> fmt::Display for WriteGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
