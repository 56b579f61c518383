//! A lock around an array whose length is chosen at run time.
//!
//! ```
//! use outlast::{LockedSlice, Shared};
//!
//! let here = Shared::<LockedSlice<f64>>::with_capacity(1_000)?;
//! // As another process would:
//! let there = Shared::<LockedSlice<f64>>::from_fd(here.try_clone_fd()?)?;
//! here.lock()?.fill(0.5);
//! assert_eq!(there.lock()?.iter().sum::<f64>(), 500.0);
//! # Ok::<(), outlast::Error>(())
//! ```
//!
//! # Death
//! As with a [`Lock`]: the kernel releases the lock, and the next owner gets
//! [`LockError::OwnerDied`].
//!
//! # How it works
//! A `Lock` around nothing, followed by the elements. Only the owner of the lock touches them.
#![expect(unsafe_code, reason = "the elements are reached through the lock's promise of exclusion")]
use crate::deadline::Deadline;
use crate::error::Fault;
use crate::lock::{
    Holder, Lock, LockError, LockGuard, LockResult, MarkConsistent, PoisonCause, Take,
};
use crate::shareable::{
    Field, Layout, Plain, Shareable, WithCapacity, begin, mix_u64, slice_shareable,
};
use crate::wait::verbs::{Verb, verbs};
use core::cell::UnsafeCell;
use core::fmt;
use core::ops::{Deref, DerefMut};

/// A lock around an array whose length is chosen at creation, for any number of processes.
///
/// [`Shared::with_capacity`](crate::Shared::with_capacity) creates one with zero-filled elements.
/// If zero is not a valid value of the type, as with an enum that begins with 1, each call fails
/// with [`Fault::Corrupt`]. A `LockedSlice` cannot be a field of a struct. There, and wherever the
/// length is known at compile time, use `Lock<[T; N]>`.
///
/// Everything else is as for a [`Lock`].
#[repr(C)]
#[doc(alias = "Array")]
pub struct LockedSlice<T: Plain> {
    lock: Lock<()>,
    slots: [UnsafeCell<T>],
}

/// A [`LockedSlice`] of one element, for its layout.
#[repr(C)]
struct One<T: Plain> {
    lock: Lock<()>,
    slots: [UnsafeCell<T>; 1],
}

// SAFETY: only the owner of the lock reaches the elements, and any thread may use `Plain` data.
unsafe impl<T: Plain> Sync for LockedSlice<T> {}

// A panic while the lock is held poisons it.
impl<T: Plain> core::panic::RefUnwindSafe for LockedSlice<T> {}

/// Holds a [`LockedSlice`], and releases it when dropped.
///
/// A guard belongs to the thread that acquired the lock, as a [`LockGuard`] does.
#[must_use = "the lock is released immediately if the guard is not kept"]
pub struct LockedSliceGuard<'a, T: Plain> {
    slice: &'a LockedSlice<T>,
    lock: LockGuard<'a, ()>,
}

/// The result of acquiring a [`LockedSlice`].
pub type LockedSliceResult<'a, T> =
    Result<LockedSliceGuard<'a, T>, LockError<LockedSliceGuard<'a, T>>>;

impl<T: Plain> LockedSlice<T> {
    verbs! {
        /// Acquires the lock, blocking until it is available.
        ///
        /// # Errors
        /// As [`Lock::lock`].
        #[inline]
        #[doc(alias = "acquire")]
        pub fn lock(&self) -> LockedSliceResult<'_, T> = TakeSlice(self);
        #[inline]
        try_lock -> LockedSliceResult<'_, T>, else Err(LockError::WouldBlock);
        #[inline]
        lock_timeout, lock_deadline -> LockedSliceResult<'_, T>,
            else Err(LockError::TimedOut(Holder::of(&self.lock.word)));
    }

    /// Returns the number of elements.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "there is at least one element")]
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Returns what happened to an owner that may have left the elements half changed.
    ///
    /// Returns `None` if they are consistent. The answer may change at any moment.
    #[must_use]
    pub fn poison_cause(&self) -> Option<PoisonCause> {
        self.lock.poison_cause()
    }

    #[inline(always)]
    fn wrap<'a>(&'a self, taken: LockResult<'a, ()>) -> LockedSliceResult<'a, T> {
        let taken = match taken {
            Ok(lock) => Ok(LockedSliceGuard { slice: self, lock }),
            Err(error) => Err(error.map(|lock| LockedSliceGuard { slice: self, lock })),
        };
        if T::ANY_BITS { taken } else { self.check(taken) }
    }

    #[cold]
    fn check<'a>(&'a self, taken: LockedSliceResult<'a, T>) -> LockedSliceResult<'a, T> {
        // SAFETY: the element lies in the slice, aligned and readable. This is called only if there
        // is a guard, and then this thread owns the lock.
        let is_valid = |slot: &UnsafeCell<T>| unsafe { T::is_valid(slot.get()) };
        match taken {
            Ok(_) | Err(LockError::OwnerDied(_) | LockError::Poisoned(_))
                if !self.slots.iter().all(is_valid) =>
            {
                Err(LockError::Failed(Fault::Corrupt))
            }
            taken => taken,
        }
    }
}

/// The verb of [`LockedSlice::lock`].
struct TakeSlice<'a, T: Plain>(&'a LockedSlice<T>);

impl<'a, T: Plain> Verb for TakeSlice<'a, T> {
    type Output = LockedSliceResult<'a, T>;

    #[inline(always)]
    fn fast(&mut self) -> Option<Self::Output> {
        Take(&self.0.lock).fast().map(|taken| self.0.wrap(taken))
    }

    #[inline(always)]
    fn attempt(&mut self) -> Option<Self::Output> {
        Take(&self.0.lock).attempt().map(|taken| self.0.wrap(taken))
    }

    fn wait(&mut self, deadline: Deadline) -> Option<Self::Output> {
        Take(&self.0.lock).wait(deadline).map(|taken| self.0.wrap(taken))
    }
}

impl<T: Plain> LockedSliceGuard<'_, T> {
    /// Declares the elements consistent again after the death or panic of an owner.
    pub fn mark_consistent(&mut self) {
        self.lock.mark_consistent();
    }
}

impl<T: Plain> MarkConsistent for LockedSliceGuard<'_, T> {
    fn mark_consistent(&mut self) {
        LockedSliceGuard::mark_consistent(self);
    }
}

impl<T: Plain> Deref for LockedSliceGuard<'_, T> {
    type Target = [T];
    #[inline(always)]
    fn deref(&self) -> &[T] {
        let first = UnsafeCell::raw_get(self.slice.slots.as_ptr());
        // SAFETY: the slice has as many cells, each laid out as its `T`; this thread owns the lock,
        // and the elements were checked when the guard was made.
        unsafe { core::slice::from_raw_parts(first, self.slice.slots.len()) }
    }
}

impl<T: Plain> DerefMut for LockedSliceGuard<'_, T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [T] {
        let first = UnsafeCell::raw_get(self.slice.slots.as_ptr());
        // SAFETY: as above, and the guard is borrowed exclusively.
        unsafe { core::slice::from_raw_parts_mut(first, self.slice.slots.len()) }
    }
}

// SAFETY: `repr(C)`; a lock, and plain data, which is checked before it is reached. The pointer has
// the number of elements, which `at` got from the checked header.
unsafe impl<T: Plain> Shareable for LockedSlice<T> {
    const FINGERPRINT: u64 = mix_u64(begin::<One<T>>(b"LockedSlice 1"), T::FINGERPRINT);
    const NEEDS_PEERS: bool = false;
    slice_shareable!(One<T>, T, usize::MAX);
    fn layout() -> Layout {
        let offset = core::mem::offset_of!(One<T>, slots);
        Layout {
            name: "LockedSlice",
            size: offset,
            align: Self::ALIGN,
            fields: const {
                let offset = core::mem::offset_of!(One<T>, slots);
                &[Field { name: "element", offset, count: 1, layout: T::layout }]
            },
        }
    }
    fn place(&self) {
        self.lock.place();
    }
    fn in_use(&self, ours: &dyn Fn(u32) -> bool) -> bool {
        self.lock.in_use(ours)
    }
}

impl<T: Plain> WithCapacity for LockedSlice<T> {}

impl<T: Plain> fmt::Debug for LockedSlice<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockedSlice").field("len", &self.len()).finish_non_exhaustive()
    }
}

impl<T: Plain + fmt::Debug> fmt::Debug for LockedSliceGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
