//! A value that is made once, by whoever comes first and lives.
//!
//! ```
//! use outlast::{OnceCell, Shared};
//!
//! let here = Shared::anonymous(OnceCell::<u64>::new())?;
//! let there = Shared::<OnceCell<u64>>::from_fd(here.try_clone_fd()?)?; // as another process would
//! assert_eq!(here.get()?, None);
//! assert_eq!(*there.get_or_init(|| 42)?, 42);
//! assert_eq!(*here.get_or_init(|| unreachable!("it is there"))?, 42);
//! # Ok::<(), outlast::Error>(())
//! ```
//!
//! # State
//! A robust word, owned by the one that makes the value (`wait/robust` has its table), and a word
//! of two bits:
//!
//! | `DONE` | `WAITERS` | meaning |
//! |---|---|---|
//! | 0 | 0 | no value |
//! | 0 | 1 | no value, and somebody may be asleep until there is one |
//! | 1 | any | the value is there, for good |
//!
//! # Invariants
//! - I1. The value is written by the owner of the robust word only, and only without `DONE`. With
//!   it, nobody writes it any more.
//! - I2. A thread asleep on the word => `WAITERS`; and the step to `DONE` with `WAITERS` wakes
//!   everybody in the same system call.
//!
//! # Ordering
//! The value is seen by whoever sees `DONE`: Release, or the kernel's fence, and Acquire.
//!
//! # Death
//! Before `DONE` an initialiser that is killed leaves no value: the kernel gives the robust word to
//! the next, whose function is run. (So functions may run more than once, but one of them only to
//! its end.) After it: the value is there. A sleeper leaves a stale bit.
#![expect(unsafe_code, reason = "the value is reached by the rules of I1")]
use crate::deadline::Deadline;
use crate::error::Fault;
use crate::segment::contains;
use crate::shareable::{Field, Layout, Plain, Shareable, begin, mix_u64};
use crate::sync::UnsafeCell;
use crate::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use crate::sys::Change;
use crate::sys::robust::Thread;
use crate::wait::robust::{Refused, RobustWord};
use crate::wait::{Look, Step, TimedOut, WaitWord};
use core::fmt;
use core::mem::MaybeUninit;
use std::time::{Duration, Instant};
use thiserror::Error;

const DONE: u32 = 1;
const WAITERS: u32 = 2;

/// A value that is made once.
#[repr(C, align(64))]
#[doc(alias = "OnceLock")]
pub struct OnceCell<T: Plain> {
    word: RobustWord,
    state: WaitWord,
    value: UnsafeCell<MaybeUninit<T>>,
}

/// Something that is done once.
pub type Once = OnceCell<()>;

// SAFETY: the value is written by one thread, and read after that; `Plain` data may be used by any
// thread.
unsafe impl<T: Plain> Sync for OnceCell<T> {}
// SAFETY: a cell that nobody refers to is plain data.
unsafe impl<T: Plain> Send for OnceCell<T> {}

/// Why there is no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum OnceError {
    /// The calling thread is just making it.
    #[error("this thread is making the value already")]
    WouldDeadlock,
    /// See there.
    #[error(transparent)]
    Failed(#[from] Fault),
}

impl Once {
    /// Runs `f`, if nobody has done so to its end; if another thread is at it, waits for that.
    ///
    /// # Errors
    /// [`OnceError::WouldDeadlock`] if called by `f` itself; see [`OnceError`].
    pub fn call_once(&self, f: impl FnOnce()) -> Result<(), OnceError> {
        self.get_or_init(f).map(|&()| ())
    }
}

impl<T: Plain> OnceCell<T> {
    /// A cell without a value, to be moved into shared memory.
    #[must_use]
    #[expect(
        clippy::new_without_default,
        reason = "zero-filled memory is the default, and needs no value"
    )]
    pub fn new() -> Self {
        OnceCell {
            word: RobustWord::new(),
            state: WaitWord::new(0),
            value: UnsafeCell::new(MaybeUninit::zeroed()),
        }
    }

    /// The value, if there is one. Never blocks.
    ///
    /// # Errors
    /// [`Fault::Corrupt`] if its bytes are no value of the type.
    #[inline]
    pub fn get(&self) -> Result<Option<&T>, Fault> {
        if self.is_completed() { self.value().map(Some) } else { Ok(None) }
    }

    /// Whether there is a value.
    #[must_use]
    #[inline]
    pub fn is_completed(&self) -> bool {
        self.state.value.load(Acquire) & DONE != 0
    }

    /// The value, made by `f` if there is none; if another thread is just making it, waits for
    /// that.
    ///
    /// If that one is killed, or panics, the next one's function is run.
    ///
    /// ```
    /// use outlast::{OnceCell, Shared};
    ///
    /// let here = Shared::anonymous(OnceCell::<u64>::new())?;
    /// let there = Shared::<OnceCell<u64>>::from_fd(here.try_clone_fd()?)?; // as another process would
    /// assert_eq!(here.get_or_init(|| 42)?, &42);
    /// assert_eq!(there.get_or_init(|| unreachable!("it is there"))?, &42);
    /// # Ok::<(), outlast::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`OnceError::WouldDeadlock`] if called by `f` itself; [`Fault::Forked`] if `f` has forked,
    /// in the child, whose value is dropped; see [`OnceError`].
    ///
    /// # Panics
    /// If the cell does not lie in shared memory; or if `f` does.
    #[inline]
    pub fn get_or_init(&self, f: impl FnOnce() -> T) -> Result<&T, OnceError> {
        self.get_or_try_init(|| Ok(f()))
    }

    /// The same, with a function that may fail: then there is still no value.
    ///
    /// # Errors
    /// As [`get_or_init`](Self::get_or_init), and what `f` says.
    ///
    /// # Panics
    /// As [`get_or_init`](Self::get_or_init).
    #[inline]
    pub fn get_or_try_init<E: From<OnceError>>(
        &self,
        f: impl FnOnce() -> Result<T, E>,
    ) -> Result<&T, E> {
        if !self.is_completed() {
            self.init(f)?;
        }
        self.value().map_err(|fault| OnceError::Failed(fault).into())
    }

    #[cold]
    fn init<E: From<OnceError>>(&self, f: impl FnOnce() -> Result<T, E>) -> Result<(), E> {
        let me = self.begin()?;
        let turn = Turn { word: &self.word, me };
        if !self.is_completed() {
            let value = f()?;
            if !self.word.is_still(me) {
                // `f` has forked, and this is the child: the turn is the parent's (I1).
                return Err(OnceError::Failed(Fault::Forked).into());
            }
            // Nobody reads before `DONE` (I1). SAFETY: this thread owns the word, and there is no
            // `DONE`: nobody else is at the value.
            self.value.with_mut(|at| unsafe { at.write(MaybeUninit::new(value)) });
            self.complete();
        }
        drop(turn);
        Ok(())
    }

    fn begin(&self) -> Result<Thread, OnceError> {
        match self.word.take_until(Deadline::NEVER) {
            Ok(Ok((_, me))) => Ok(me),
            Ok(Err(Refused::Mine)) => Err(OnceError::WouldDeadlock),
            Ok(Err(Refused::Failed(fault))) => Err(OnceError::Failed(fault)),
            Ok(Err(Refused::Busy)) | Err(TimedOut) => Err(OnceError::Failed(Fault::Busy)),
            Ok(Err(Refused::Unplaced)) => {
                let at = core::ptr::from_ref(self).addr();
                assert!(contains(at), "the cell does not lie in shared memory");
                Err(OnceError::Failed(Fault::Corrupt))
            }
        }
    }

    /// Keeps I2.
    fn complete(&self) {
        if self.state.value.compare_exchange(0, DONE, Release, Relaxed).is_err() {
            self.state.change_and_wake(Change::OrOne, u32::MAX);
        }
    }

    /// Sets the value, if there is none. If another thread is just making it, waits for that.
    ///
    /// # Errors
    /// Gives the value back if there is one already, or if it could not even be tried.
    ///
    /// # Panics
    /// If the cell does not lie in shared memory.
    pub fn set(&self, value: T) -> Result<(), T> {
        let mut was_set = false;
        let set = self.get_or_init(|| {
            was_set = true;
            value
        });
        if set.is_ok() && was_set { Ok(()) } else { Err(value) }
    }

    /// Waits until there is a value, whoever makes it, as long as it takes.
    ///
    /// # Errors
    /// [`Fault::Corrupt`] if its bytes are no value of the type.
    pub fn wait(&self) -> Result<&T, Fault> {
        self.wait_until(Deadline::NEVER)?.ok_or(Fault::Corrupt) // no deadline passes
    }

    /// Waits until there is a value, at most `timeout`.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn wait_timeout(&self, timeout: Duration) -> Result<Option<&T>, Fault> {
        self.wait_until(Deadline::after(timeout))
    }

    /// Waits until there is a value, until `deadline` at most.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn wait_deadline(&self, deadline: Instant) -> Result<Option<&T>, Fault> {
        self.wait_until(Deadline::at(deadline))
    }

    fn wait_until(&self, deadline: Deadline) -> Result<Option<&T>, Fault> {
        let waited = self.state.wait_until(deadline, |seen, look| {
            if seen & DONE != 0 {
                return Step::Done(());
            }
            if look == Look::Glance || seen & WAITERS != 0 {
                return Step::Sleep(seen);
            }
            match self.state.value.compare_exchange(seen, seen | WAITERS, Relaxed, Relaxed) {
                Ok(_) => Step::Sleep(seen | WAITERS),
                Err(_) => Step::Retry,
            }
        });
        match waited {
            Ok(()) => self.value().map(Some),
            Err(TimedOut) => Ok(None),
        }
    }

    /// The value, which is there.
    #[inline(always)]
    fn value(&self) -> Result<&T, Fault> {
        self.value.with(|at| {
            let at = at.cast::<T>();
            // SAFETY: it lies in the cell, aligned and readable.
            if T::ANY_BITS || unsafe { T::is_valid(at) } {
                // SAFETY: as above, a valid value, and nobody writes it after `DONE` (I1).
                Ok(unsafe { &*at })
            } else {
                Err(Fault::Corrupt)
            }
        })
    }
}

/// The turn to make the value, given up when dropped.
struct Turn<'a> {
    word: &'a RobustWord,
    me: Thread,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.word.give_up(self.me);
    }
}

// SAFETY: `repr(C)`; words, for which any bytes will do, and plain data that is checked before
// it is reached; no `Drop`, as `Plain` is `Copy`.
unsafe impl<T: Plain> Shareable for OnceCell<T> {
    const FINGERPRINT: u64 = mix_u64(begin::<Self>(b"OnceCell 1"), T::FINGERPRINT);
    const NEEDS_PEERS: bool = false;
    crate::__sized_shareable!();
    fn layout() -> Layout {
        Layout::of::<Self>(
            "OnceCell",
            const {
                let offset = core::mem::offset_of!(Self, value);
                &[Field { name: "value", offset, count: 1, layout: T::layout }]
            },
        )
    }
    fn place(&self) {
        self.word.place();
        self.state.place();
    }
    fn in_use(&self, ours: &dyn Fn(u32) -> bool) -> bool {
        self.word.is_owned_by_one_of(ours)
    }
}

impl<T: Plain + fmt::Debug> fmt::Debug for OnceCell<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("OnceCell");
        shown.field("word", &format_args!("{:#010x}", self.word.value()));
        shown.field("state", &self.state.value.load(Relaxed));
        shown.finish_non_exhaustive()
    }
}
