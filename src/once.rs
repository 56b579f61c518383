//! A value that is made once, by one of many processes.
//!
//! ```
//! use outlast::{OnceCell, Shared};
//!
//! let here = Shared::anonymous(OnceCell::<u64>::new())?;
//! // As another process would:
//! let there = Shared::<OnceCell<u64>>::from_fd(here.try_clone_fd()?)?;
//! assert_eq!(here.get()?, None);
//! assert_eq!(*there.get_or_init(|| 42)?, 42);
//! assert_eq!(*here.get_or_init(|| unreachable!("it is there"))?, 42);
//! # Ok::<(), outlast::Error>(())
//! ```
//!
//! Use a [`OnceCell`] for a value that all processes share and that never changes, such as a
//! configuration. Use [`Once`] for work that is done once. For a value that changes, use a
//! [`Lock`](crate::Lock).
//!
//! # Death
//! If a process is killed while it makes the value, there is no value, and the function of the next
//! thread runs. So more than one function may begin, but only one of them runs to its end. A value
//! that was made stays.
#![expect(unsafe_code, reason = "the value is reached by the rules of I1")]

// # How it works
// The state is a robust word, which the thread that makes the value owns (`wait/robust` has its
// table), and a word of two bits:
//
// | `DONE` | `WAITERS` | meaning |
// |---|---|---|
// | 0 | 0 | there is no value |
// | 0 | 1 | there is no value, and threads may be asleep until there is one |
// | 1 | any | there is a value, which never changes |
//
// Invariants:
// - I1. Only the owner of the robust word writes the value, and only before `DONE` is set. After
//   that no thread writes it.
// - I2. If a thread is asleep on the word, `WAITERS` is set. The step to `DONE` with `WAITERS`
//   wakes every sleeper in the same system call.
//
// Ordering: a thread that sees `DONE` sees the value: Release, or the kernel's fence, and Acquire.
//
// Death: before `DONE`, the kernel passes the robust word of a killed thread on to the next. A
// sleeper that is killed leaves a stale bit.
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

/// A cell in shared memory whose value is made once.
#[repr(C, align(64))]
#[doc(alias = "OnceLock")]
pub struct OnceCell<T: Plain> {
    word: RobustWord,
    state: WaitWord,
    value: UnsafeCell<MaybeUninit<T>>,
}

/// Work that is done once, by one of many processes.
pub type Once = OnceCell<()>;

// SAFETY: one thread writes the value, and others read it only after that; any thread may use
// `Plain` data.
unsafe impl<T: Plain> Sync for OnceCell<T> {}
// SAFETY: a cell to which nothing refers is plain data.
unsafe impl<T: Plain> Send for OnceCell<T> {}

/// Why there is no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum OnceError {
    /// The calling thread is making the value: the call is inside its own function.
    #[error("this thread is already making the value")]
    WouldDeadlock,
    /// Another thread is making the value, and the call does not block.
    #[error("another thread is making the value")]
    WouldBlock,
    /// Another thread was making the value and did not finish it in time.
    #[error("timed out: another thread is still making the value")]
    TimedOut,
    /// The call failed for another reason.
    #[error(transparent)]
    Failed(#[from] Fault),
}

impl Once {
    verbs! {
        /// Runs `f`, unless a call has already run its function to the end. Blocks while another
        /// thread runs its function.
        ///
        /// # Errors
        /// [`OnceError::WouldDeadlock`] if `f` itself calls this. Otherwise see [`OnceError`].
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
    /// Creates a cell without a value, to be moved into shared memory.
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

    /// Returns the value, if there is one. Never blocks.
    ///
    /// # Errors
    /// [`Fault::Corrupt`] if the bytes are not a valid value of the type.
    #[inline]
    pub fn get(&self) -> Result<Option<&T>, Fault> {
        if self.is_completed() { self.value().map(Some) } else { Ok(None) }
    }

    /// Returns `true` if there is a value.
    #[must_use]
    #[inline]
    pub fn is_completed(&self) -> bool {
        self.state.value.load(Acquire) & DONE != 0
    }

    verbs! {
        /// Returns the value, and calls `f` to make it if there is none. Blocks while another
        /// thread makes it.
        ///
        /// If that thread is killed or panics, the function of the next thread runs.
        ///
        /// ```
        /// use outlast::{OnceCell, Shared};
        ///
        /// let here = Shared::anonymous(OnceCell::<u64>::new())?;
        /// // As another process would:
        /// let there = Shared::<OnceCell<u64>>::from_fd(here.try_clone_fd()?)?;
        /// assert_eq!(here.get_or_init(|| 42)?, &42);
        /// assert_eq!(there.get_or_init(|| unreachable!("it is there"))?, &42);
        /// # Ok::<(), outlast::Error>(())
        /// ```
        ///
        /// # Errors
        /// [`OnceError::WouldDeadlock`] if `f` itself calls this. [`Fault::Forked`] in the child if
        /// `f` forks; the child's value is dropped. Otherwise see [`OnceError`].
        ///
        /// # Panics
        /// If the cell does not lie in shared memory, or if `f` panics.
        #[inline]
        pub fn get_or_init(&self, f: impl FnOnce() -> T) -> Result<&T, OnceError>
            = |deadline| self.get_until(|| Ok::<_, OnceError>(f()), deadline);
        #[inline]
        try_get_or_init -> Result<&T, OnceError>, else Err(OnceError::WouldBlock);
        /// The time limit does not apply to `f`.
        #[inline]
        get_or_init_timeout, get_or_init_deadline -> Result<&T, OnceError>,
            else Err(OnceError::TimedOut);

        /// Returns the value, and calls `f` to make it if there is none, like
        /// [`get_or_init`](Self::get_or_init). If `f` fails, there is still no value.
        ///
        /// # Errors
        /// As [`get_or_init`](Self::get_or_init), and the error that `f` returns.
        ///
        /// # Panics
        /// As [`get_or_init`](Self::get_or_init).
        #[inline]
        pub fn get_or_try_init<E: From<OnceError>>(
            &self, f: impl FnOnce() -> Result<T, E>
        ) -> Result<&T, E> = |deadline| self.get_until(f, deadline);
        #[inline]
        try_get_or_try_init -> Result<&T, E>, else Err(OnceError::WouldBlock);
        /// The time limit does not apply to `f`.
        #[inline]
        get_or_try_init_timeout, get_or_try_init_deadline -> Result<&T, E>,
            else Err(OnceError::TimedOut);

        /// Sets the value if there is none. Blocks while another thread makes it.
        ///
        /// # Errors
        /// Gives `value` back if there is already a value, or if the call fails.
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
        let me = self.take_turn(deadline)?;
        let turn = Turn { word: &self.word, me };
        if !self.is_completed() {
            let value = f()?;
            if !self.word.is_still(me) {
                // `f` has forked, and this is the child: the turn belongs to the parent (I1).
                return Err(OnceError::Failed(Fault::Forked).into());
            }
            // SAFETY: this thread owns the word, and `DONE` is not set: no other thread reads or
            // writes the value (I1).
            self.value.with_mut(|at| unsafe { at.write(MaybeUninit::new(value)) });
            self.complete();
        }
        drop(turn);
        Ok(())
    }

    fn take_turn(&self, deadline: Deadline) -> Result<Thread, OnceError> {
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

    /// Sets `DONE` and wakes every sleeper. Keeps I2.
    fn complete(&self) {
        if self.state.value.compare_exchange(0, DONE, Release, Relaxed).is_err() {
            self.state.change_and_wake(Change::OrOne, u32::MAX);
        }
    }

    verbs! {
        /// Blocks until another thread has made the value, and returns it.
        ///
        /// # Errors
        /// [`Fault::Corrupt`] if the bytes are not a valid value of the type.
        pub fn wait(&self) -> Result<&T, Fault> = Wait(self);
        wait_timeout, wait_deadline -> Result<&T, TimeoutError>, else Err(TimeoutError::TimedOut);
    }

    /// The value, if `DONE` is set.
    #[inline(always)]
    fn value(&self) -> Result<&T, Fault> {
        self.value.with(|at| {
            let at = at.cast::<T>();
            // SAFETY: the value lies in the cell, aligned and readable.
            if T::ANY_BITS || unsafe { T::is_valid(at) } {
                // SAFETY: as above; the value is valid, and no thread writes it after `DONE` (I1).
                Ok(unsafe { &*at })
            } else {
                Err(Fault::Corrupt)
            }
        })
    }
}

/// The verb of [`OnceCell::wait`].
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

/// The turn to make the value. Dropping it releases the robust word.
struct Turn<'a> {
    word: &'a RobustWord,
    me: Thread,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.word.unlock(self.me);
    }
}

// SAFETY: `repr(C)`; words, for which any bytes are valid, and plain data, which is checked before
// it is reached; no `Drop`, because `Plain` is `Copy`.
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

/// Creates a cell that already has its value.
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
