//! A lock around an array whose length is chosen at run time.
//!
//! ```
//! use outlast::{LockedSlice, Shared};
//!
//! let here = Shared::<LockedSlice<f64>>::with_capacity(1_000)?;
//! let there = Shared::<LockedSlice<f64>>::from_fd(here.try_clone_fd()?)?; // as another process would
//! here.lock()?.fill(0.5);
//! assert_eq!(there.lock()?.iter().sum::<f64>(), 500.0);
//! # Ok::<(), outlast::Error>(())
//! ```
//!
//! # Death
//! As of a [`Lock`]: the kernel releases the lock, and the next owner is told.
//!
//! # How it works
//! A `Lock` around nothing, and the elements behind it. Only the owner of the lock touches them.
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

/// Mutual exclusion around an array whose length is chosen when it is created.
///
/// [`Shared::with_capacity`](crate::Shared::with_capacity) creates one of zero-filled elements. It
/// cannot be embedded in a struct: there, and for any length that is known at compile time, use
/// `Lock<[T; N]>`. If zero is no value of the type, as of an enum that begins with 1, each call
/// fails with [`Fault::Corrupt`].
///
/// Everything else is as for a [`Lock`].
#[repr(C)]
#[doc(alias = "Array")]
pub struct LockedSlice<T: Plain> {
    lock: Lock<()>,
    slots: [UnsafeCell<T>],
}

/// The same with one element, for its layout.
#[repr(C)]
struct One<T: Plain> {
    lock: Lock<()>,
    slots: [UnsafeCell<T>; 1],
}

// SAFETY: the elements are reached by the owner of the lock only, and `Plain` data may be used by
// any thread.
unsafe impl<T: Plain> Sync for LockedSlice<T> {}

// A panic while the lock is held poisons it.
impl<T: Plain> core::panic::RefUnwindSafe for LockedSlice<T> {}

/// Holds a [`LockedSlice`] until dropped.
///
/// It belongs to the thread that took it, as a [`LockGuard`] does.
#[must_use = "the lock is released immediately if the guard is not kept"]
pub struct LockedSliceGuard<'a, T: Plain> {
    slice: &'a LockedSlice<T>,
    lock: LockGuard<'a, ()>,
}

/// What acquiring the lock of a slice gives.
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

    /// The number of elements.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "it has an element")]
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// What happened to an owner before it was done, if it is not mended yet. May change at any
    /// moment.
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
        if T::ANY_BITS { taken } else { self.inspect(taken) }
    }

    #[cold]
    fn inspect<'a>(&'a self, taken: LockedSliceResult<'a, T>) -> LockedSliceResult<'a, T> {
        // SAFETY: the element lies in the slice, aligned and readable, and this thread owns the
        // lock if there is a guard, which alone asks.
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
    /// Declares the elements sound again, after the death or panic of an owner.
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
        // SAFETY: so many cells, each of which is laid out as its `T`; this thread owns the lock,
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

// SAFETY: `repr(C)`; a lock, and plain data that is checked before it is reached; the number of
// elements is the pointer's, which `at` got from the checked header.
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
