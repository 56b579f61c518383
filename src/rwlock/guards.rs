//! What holds a lock.
#![expect(unsafe_code, reason = "the value is reached through the lock's promise of exclusion")]
use super::taking::again;
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

/// Holds an [`RwLock`] for reading until dropped.
///
/// It belongs to the thread that took it. In a process made by `fork` a copied guard must not be
/// used; dropping it there does nothing.
#[must_use = "the lock is released at once if the guard is not kept"]
pub struct ReadGuard<'a, T: Plain> {
    lock: &'a RwLock<T>,
    /// A slot, or the writer word.
    word: &'a RobustWord,
    me: Thread,
    /// The kernel knows the owner as a thread: the guard stays there.
    not_send: PhantomData<*const ()>,
}

/// Holds an [`RwLock`] for writing until dropped.
///
/// It belongs to the thread that took it. In a process made by `fork` a copied guard must not be
/// used; dropping it there does nothing.
#[must_use = "the lock is released at once if the guard is not kept"]
pub struct WriteGuard<'a, T: Plain> {
    lock: &'a RwLock<T>,
    me: Thread,
    /// The thread was panicking already when it took the lock.
    panicking: bool,
    /// The kernel knows the owner as a thread: the guard stays there.
    not_send: PhantomData<*const ()>,
}

// SAFETY: a guard for reading gives `&T` only, and `Plain` data may be read by any thread.
unsafe impl<T: Plain> Sync for ReadGuard<'_, T> {}
// SAFETY: a shared guard gives `&T` only, and `Plain` data may be read by any thread.
unsafe impl<T: Plain> Sync for WriteGuard<'_, T> {}

impl<T: Plain> RwLock<T> {
    /// The guard of a word just taken, as I2 says.
    #[inline(always)]
    pub(super) fn reader<'a>(&'a self, word: &'a RobustWord, me: Thread) -> ReadResult<'a, T> {
        if T::ANY_BITS && self.poison().load(Relaxed) == CLEAN {
            Ok(ReadGuard { lock: self, word, me, not_send: PhantomData })
        } else {
            apart(self.inspect_reader(word, me))
        }
    }

    #[cold]
    fn inspect_reader<'a>(&'a self, word: &'a RobustWord, me: Thread) -> ReadResult<'a, T> {
        self.inspect(ReadGuard { lock: self, word, me, not_send: PhantomData })
    }

    /// The guard of the writer word, when nobody is in a slot.
    #[inline(always)]
    pub(super) fn writer(&self, me: Thread) -> WriteResult<'_, T> {
        let panicking = std::thread::panicking();
        let guard = WriteGuard { lock: self, me, panicking, not_send: PhantomData };
        self.inside().store(1, Relaxed);
        compiler_fence(SeqCst); // keeps I1, for one who dies
        if T::ANY_BITS && self.poison().load(Relaxed) == CLEAN {
            Ok(guard)
        } else {
            self.inspect(guard)
        }
    }

    fn inspect<G>(&self, guard: G) -> Result<G, LockError<G>> {
        // SAFETY: the value lies in the lock, aligned and readable, and the guard keeps writers
        // out, or all others.
        if !self.value.with(|value| unsafe { T::is_valid(value) }) {
            return Err(LockError::Failed(Fault::Corrupt));
        }
        PoisonCause::judge(self.poison().load(Relaxed), guard)
    }
}

/// The same, moved out of the memory that a call on the slow way has filled, so that a guard made
/// on the fast way stays in registers: through memory it is 4 ns slower.
#[inline(always)]
pub(super) fn apart<T: Plain>(taken: ReadResult<'_, T>) -> ReadResult<'_, T> {
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
    /// Declares the value sound again, after the death or panic of a writer.
    pub fn mark_consistent(&mut self) {
        self.lock.clear_poison();
    }

    /// Goes on as a reader: others may read from here on, and nobody can have written in between.
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
        // From here on this thread is a reader that owns the writer word (I2). What was copied by
        // fork never was one.
        let slot = if is_owner { lock.take_slot(me) } else { None };
        if slot.is_some() {
            lock.writer.unlock(me);
        }
        let word = slot.unwrap_or(&lock.writer);
        ReadGuard { lock, word, me, not_send: PhantomData }
    }

    /// The value is as it is to stay; whether this guard had it.
    #[inline]
    fn end(&self) -> bool {
        // In a forked child the lock is still the parent's.
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

/// For a guard of `word` that `me` took.
#[cold]
fn drop_reader_slow(word: &RobustWord, me: Thread) {
    // In a forked child the word is still the parent's.
    if word.is_still(me) {
        let more = again(word).load(Relaxed);
        if more > 0 {
            return again(word).store(more - 1, Relaxed);
        }
    }
    word.unlock(me);
}

impl<T: Plain> Drop for ReadGuard<'_, T> {
    #[inline(always)]
    fn drop(&mut self) {
        if !self.word.try_unlock_if(self.me, || again(self.word).load(Relaxed) == 0) {
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
        // SAFETY: nobody writes while this guard lives (I1 to I3), and the value was checked when
        // the guard was made.
        self.lock.value.with(|value| unsafe { &*value })
    }
}

impl<T: Plain> Deref for WriteGuard<'_, T> {
    type Target = T;
    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: nobody else is at the value (I1 to I3), which was checked when the guard was
        // made.
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
