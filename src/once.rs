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
use crate::error::{Fault, TimeoutError};
use crate::segment::contains;
use crate::shareable::{Layout, Plain, Shareable, begin, fields, mix_u64};
use crate::sync::UnsafeCell;
use crate::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use crate::sys::Change;
use crate::sys::robust::Thread;
use crate::wait::operation::{self, Armed, Operation};
use crate::wait::robust::{Refused, RobustWord};
use crate::wait::verbs::{Verb, verbs};
use crate::wait::{TimedOut, WaitWord};
use core::fmt;
use core::mem::MaybeUninit;
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
    /// Another thread is making the value, and the call does not block.
    #[error("another thread is making the value")]
    WouldBlock,
    /// Another thread did not finish the value before the deadline.
    #[error("another thread was making the value until the deadline")]
    TimedOut,
    /// See there.
    #[error(transparent)]
    Failed(#[from] Fault),
}

impl Once {
    verbs! {
        /// Runs `f`, unless a call has run to its end already. Blocks while another thread runs its
        /// function.
        ///
        /// # Errors
        /// [`OnceError::WouldDeadlock`] if called by `f` itself; see [`OnceError`].
        pub fn call_once(&self, f: impl FnOnce()) -> Result<(), OnceError>
            = |deadline| {
                let f = || {
                    f();
                    Ok::<_, OnceError>(())
                };
                self.get_until(f, deadline).map(|&()| ())
            };
        try_call_once -> Result<(), OnceError>, else Err(OnceError::WouldBlock);
        call_once_timeout, call_once_deadline -> Result<(), OnceError>,
            else Err(OnceError::TimedOut);
    }
}

impl<T: Plain> OnceCell<T> {
    /// A cell without a value, to be moved into shared memory.
    #[must_use]
    pub fn new() -> Self {
        Self::with(0, MaybeUninit::zeroed())
    }

    fn with(state: u32, value: MaybeUninit<T>) -> Self {
        OnceCell {
            word: RobustWord::new(),
            state: WaitWord::new(state),
            value: UnsafeCell::new(value),
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

    verbs! {
        /// Returns the value, made by `f` if there is none. Blocks while another thread makes it.
        ///
        /// If that thread is killed, or panics, the function of the next one is run.
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
        /// [`OnceError::WouldDeadlock`] if called by `f` itself; [`Fault::Forked`] if `f` has
        /// forked, in the child, whose value is dropped; see [`OnceError`].
        ///
        /// # Panics
        /// If the cell does not lie in shared memory; or if `f` does.
        #[inline]
        pub fn get_or_init(&self, f: impl FnOnce() -> T) -> Result<&T, OnceError>
            = |deadline| self.get_until(|| Ok::<_, OnceError>(f()), deadline);
        #[inline]
        try_get_or_init -> Result<&T, OnceError>, else Err(OnceError::WouldBlock);
        /// The time that `f` takes does not count.
        #[inline]
        get_or_init_timeout, get_or_init_deadline -> Result<&T, OnceError>,
            else Err(OnceError::TimedOut);

        /// Returns the value, made by `f` if there is none, like
        /// [`get_or_init`](Self::get_or_init). If `f` fails, there is still no value.
        ///
        /// # Errors
        /// As [`get_or_init`](Self::get_or_init), and what `f` returns.
        ///
        /// # Panics
        /// As [`get_or_init`](Self::get_or_init).
        #[inline]
        pub fn get_or_try_init<E: From<OnceError>>(
            &self, f: impl FnOnce() -> Result<T, E>
        ) -> Result<&T, E> = |deadline| self.get_until(f, deadline);
        #[inline]
        try_get_or_try_init -> Result<&T, E>, else Err(OnceError::WouldBlock);
        /// The time that `f` takes does not count.
        #[inline]
        get_or_try_init_timeout, get_or_try_init_deadline -> Result<&T, E>,
            else Err(OnceError::TimedOut);

        /// Sets the value, if there is none. Blocks while another thread makes it.
        ///
        /// # Errors
        /// Gives the value back if there is one already, or if the attempt failed.
        ///
        /// # Panics
        /// If the cell does not lie in shared memory.
        pub fn set(&self, value: T) -> Result<(), T> = |deadline| self.set_until(value, deadline);
        try_set -> Result<(), T>, else Err(value);
        set_timeout, set_deadline -> Result<(), T>, else Err(value);
    }

    #[inline]
    fn get_until<E: From<OnceError>>(
        &self,
        f: impl FnOnce() -> Result<T, E>,
        deadline: Deadline,
    ) -> Result<&T, E> {
        if !self.is_completed() {
            self.init(f, deadline)?;
        }
        self.value().map_err(|fault| OnceError::Failed(fault).into())
    }

    fn set_until(&self, value: T, deadline: Deadline) -> Result<(), T> {
        let mut was_set = false;
        let set = self.get_until(
            || {
                was_set = true;
                Ok::<_, OnceError>(value)
            },
            deadline,
        );
        if set.is_ok() && was_set { Ok(()) } else { Err(value) }
    }

    #[cold]
    fn init<E: From<OnceError>>(
        &self,
        f: impl FnOnce() -> Result<T, E>,
        deadline: Deadline,
    ) -> Result<(), E> {
        let me = self.begin(deadline)?;
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

    fn begin(&self, deadline: Deadline) -> Result<Thread, OnceError> {
        match self.word.take_until(deadline) {
            Ok(Ok((_, me))) => Ok(me),
            Ok(Err(Refused::Mine)) => Err(OnceError::WouldDeadlock),
            Ok(Err(Refused::Failed(fault))) => Err(OnceError::Failed(fault)),
            Ok(Err(Refused::Busy)) | Err(TimedOut) if deadline.is_now() => {
                Err(OnceError::WouldBlock)
            }
            Ok(Err(Refused::Busy)) | Err(TimedOut) => Err(OnceError::TimedOut),
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

    verbs! {
        /// Blocks until there is a value, and returns it. Makes none.
        ///
        /// # Errors
        /// [`Fault::Corrupt`] if its bytes are no value of the type.
        pub fn wait(&self) -> Result<&T, Fault> = Wait(self);
        wait_timeout, wait_deadline -> Result<&T, TimeoutError>, else Err(TimeoutError::TimedOut);
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

/// Waiting for a value.
struct Wait<'a, T: Plain>(&'a OnceCell<T>);

impl<'a, T: Plain> Verb for Wait<'a, T> {
    type Output = Result<&'a T, Fault>;
    #[inline]
    fn fast(&mut self) -> Option<Self::Output> {
        self.0.get().transpose()
    }
    fn wait(&mut self, deadline: Deadline) -> Option<Self::Output> {
        operation::wait(self, deadline)
    }
}

impl<'a, T: Plain> Operation<'a> for Wait<'a, T> {
    fn key(&self) -> usize {
        core::ptr::from_ref(&self.0.state).addr()
    }
    fn arm(&mut self) -> Armed<'a, Self::Output> {
        let word = &self.0.state;
        let seen = word.value.load(Relaxed);
        match seen & DONE {
            0 => Armed::on_state(word, seen, seen | WAITERS), // keeps I2
            _ => Armed::Retry,
        }
    }
}

/// The turn to make the value, given up when dropped.
struct Turn<'a> {
    word: &'a RobustWord,
    me: Thread,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.word.unlock(self.me);
    }
}

// SAFETY: `repr(C)`; words, for which any bytes will do, and plain data that is checked before
// it is reached; no `Drop`, as `Plain` is `Copy`.
unsafe impl<T: Plain> Shareable for OnceCell<T> {
    const FINGERPRINT: u64 = mix_u64(begin::<Self>(b"OnceCell 1"), T::FINGERPRINT);
    const NEEDS_PEERS: bool = false;
    crate::__sized_shareable!();
    fn layout() -> Layout {
        Layout::of::<Self>("OnceCell", fields!(Plain: value: T))
    }
    fn place(&self) {
        self.word.place();
        self.state.place();
    }
    fn in_use(&self, ours: &dyn Fn(u32) -> bool) -> bool {
        self.word.is_owned_by_one_of(ours)
    }
}

impl<T: Plain> Default for OnceCell<T> {
    fn default() -> Self {
        OnceCell::new()
    }
}

/// A cell that has its value from the beginning.
impl<T: Plain> From<T> for OnceCell<T> {
    fn from(value: T) -> Self {
        OnceCell::with(DONE, MaybeUninit::new(value))
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
