//! Mutual exclusion around a value.
//!
//! ```
//! use outlast::{Lock, Shared};
//!
//! let here = Shared::anonymous(Lock::new(1_u64))?;
//! let there = Shared::<Lock<u64>>::from_fd(here.try_clone_fd()?)?; // as another process would
//! *there.lock()? += 41;
//! assert_eq!(*here.lock()?, 42);
//! # Ok::<(), outlast::Error>(())
//! ```
//!
//! # Which lock
//! - [`Lock`] is the usual choice.
//! - [`ReentrantLock`](crate::ReentrantLock): a thread that holds the lock can acquire it again.
//! - [`RwLock`](crate::RwLock): many threads can read at the same time.
//! - [`LockedSlice`](crate::LockedSlice): guards an array whose length is chosen at run time.
//! - [`OwnedSemaphore`](crate::OwnedSemaphore) with one permit: belongs to a process, so that one
//!   thread can acquire it and another can release it.
//!
//! # Death
//! The kernel releases the lock of a thread that ends, at whatever instruction the thread is
//! killed. The next owner gets [`LockError::OwnerDied`] with the guard inside. So does every later
//! owner, until one of them calls [`LockGuard::mark_consistent`]. A thread that is killed while it
//! waits leaves nothing behind.
#![expect(unsafe_code, reason = "the value is reached through the lock's promise of exclusion")]

// # How it works
// The word is a robust word: free, owned by a thread id, or marked by the kernel
// (`wait/robust/futex.rs` has its table). Beside the word lies the *poison*, which only the owner
// of the word touches:
//
// | poison | meaning |
// |---|---|
// | 0 | the value is as its last owner meant to leave it |
// | `PANICKED` | an owner panicked |
// | `DIED` | an owner was killed, or its thread ended, while it held the lock |
//
// Invariants:
// - I1. Only the owner of the word touches the value and the poison.
// - I2. If a word is taken from a dead owner, the poison is `DIED` before the guard is returned.
//   (If the new owner dies before that, the kernel marks the word again.)
//
// Ordering: acquiring the lock happens after the release before it. An Acquire of the word pairs
// with the owner's Release, or with the kernel's change of the word.
use crate::deadline::Deadline;
use crate::error::Fault;
use crate::segment::{attach_in_child, contains};
use crate::shareable::{Layout, Plain, Shareable, begin, fields, mix_u64};
use crate::sync::UnsafeCell;
use crate::sync::atomic::AtomicU32;
use crate::sync::atomic::Ordering::Relaxed;
use crate::sys::process_of;
use crate::sys::robust::Thread;
use crate::wait::robust::{Refused, RobustWord, Taken};
use crate::wait::verbs::{Verb, verbs};
use core::fmt;
use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::num::NonZeroU32;
use core::ops::{Deref, DerefMut};

pub(crate) const CLEAN: u32 = 0;
pub(crate) const PANICKED: u32 = 1;
pub(crate) const DIED: u32 = 2;

/// A lock around a value, for any number of processes.
///
/// It is faster than `std::sync::Mutex` if no other thread wants it. The kernel releases it when
/// its owner dies. It is not fair: a newcomer may overtake waiting threads.
///
/// A thread that holds the lock and acquires it again gets an error and does not deadlock. A thread
/// that forgets a guard ([`core::mem::forget`]) holds the lock until the thread ends. Nothing here
/// is async-signal-safe.
#[repr(C, align(64))]
#[doc(alias = "Mutex")]
pub struct Lock<T: Plain> {
    pub(crate) word: RobustWord,
    pub(crate) value: UnsafeCell<T>,
}

// SAFETY: only the owner of the word reaches the value, and any thread may use `Plain` data.
unsafe impl<T: Plain> Sync for Lock<T> {}
// SAFETY: a lock to which nothing refers is plain data.
unsafe impl<T: Plain> Send for Lock<T> {}

/// Holds a [`Lock`], and releases it when dropped.
///
/// A guard belongs to the thread that acquired the lock. A process made by `fork` must not use its
/// copy of a guard; dropping the copy does nothing.
#[must_use = "the lock is released immediately if the guard is not kept"]
pub struct LockGuard<'a, T: Plain> {
    pub(crate) lock: &'a Lock<T>,
    /// The thread that acquired the lock. (Asking again would cost 1.5 ns.)
    pub(crate) me: Thread,
    /// Whether the thread was already panicking when it acquired the lock.
    panicking: bool,
    /// The kernel knows the owner as a thread, so the guard stays in that thread.
    not_send: PhantomData<*const ()>,
}

// SAFETY: a shared guard gives only `&T`, and any thread may read `Plain` data.
unsafe impl<T: Plain> Sync for LockGuard<'_, T> {}

/// The thread that holds a lock, for messages to people.
///
/// A `Holder` is only a thread id. [`pid`](Self::pid), [`process_name`](Self::process_name) and the
/// formatting look the process up in `/proc`, which takes some microseconds. They find nothing if
/// the thread has ended. The kernel can then give the same id to a new thread.
///
/// ```
/// use outlast::{Lock, Shared};
///
/// let here = Shared::anonymous(Lock::new(0_u64))?;
/// let there = Shared::<Lock<u64>>::from_fd(here.try_clone_fd()?)?; // as another process would
/// assert_eq!(there.holder(), None);
/// let guard = here.lock()?;
/// let holder = there.holder().expect("a thread of this process");
/// assert_eq!(holder.pid(), Some(std::process::id()));
/// println!("locked by {holder}"); // "locked by thread 4711 of process 4710 (app)"
/// # drop(guard);
/// # Ok::<(), outlast::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Holder {
    thread_id: NonZeroU32,
}

impl Holder {
    #[cold]
    pub(crate) fn of(word: &RobustWord) -> Option<Self> {
        let thread_id = NonZeroU32::new(word.owner()?)?;
        Some(Holder { thread_id })
    }

    /// Returns the kernel's id of the thread.
    #[must_use]
    pub fn thread_id(self) -> u32 {
        self.thread_id.get()
    }

    /// Returns the id of the thread's process, if `/proc` shows the thread.
    #[must_use]
    pub fn pid(self) -> Option<u32> {
        process_of(self.thread_id()).map(|(pid, _)| pid)
    }

    /// Returns the name of the thread's process, if `/proc` shows it.
    #[must_use]
    pub fn process_name(self) -> Option<String> {
        process_of(self.thread_id()).and_then(|(_, name)| name)
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "thread {}", self.thread_id)?;
        match process_of(self.thread_id()) {
            Some((pid, Some(name))) => write!(f, " of process {pid} ({name})"),
            Some((pid, None)) => write!(f, " of process {pid}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Holder({self})")
    }
}

/// The result of acquiring a [`Lock`].
pub type LockResult<'a, T> = Result<LockGuard<'a, T>, LockError<LockGuard<'a, T>>>;

impl<T: Plain> Lock<T> {
    /// Creates a lock around `value`, to be moved into shared memory.
    ///
    /// The lock can be used once it has been placed in a segment.
    pub fn new(value: T) -> Self {
        Lock { word: RobustWord::new(), value: UnsafeCell::new(value) }
    }

    verbs! {
        /// Acquires the lock, blocking until it is available.
        ///
        /// # Errors
        /// - [`LockError::OwnerDied`], [`LockError::Poisoned`]: the lock is acquired, the guard is
        ///   inside, and the value may be half changed.
        /// - [`LockError::WouldDeadlock`]: this thread holds the lock.
        /// - [`LockError::Failed`]: see [`Fault`].
        ///
        /// # Panics
        /// If the lock does not lie in shared memory.
        #[inline]
        #[doc(alias = "acquire")]
        pub fn lock(&self) -> LockResult<'_, T> = Take(self);
        #[inline]
        try_lock -> LockResult<'_, T>, else Err(LockError::WouldBlock);
        #[inline]
        lock_timeout, lock_deadline -> LockResult<'_, T>,
            else Err(LockError::TimedOut(Holder::of(&self.word)));
    }

    #[cold]
    fn result_of(&self, taken: Result<(Taken, Thread), Refused>) -> LockResult<'_, T> {
        match taken {
            Ok((Taken::Clean, me)) => self.guard(me),
            Ok((Taken::FromTheDead, me)) => {
                self.poison().store(DIED, Relaxed); // keeps I2
                self.guard(me)
            }
            Err(refused) => Err(LockError::refused(refused, core::ptr::from_ref(self).addr())),
        }
    }

    /// The guard of a word that this thread has just taken.
    #[inline(always)]
    pub(crate) fn guard(&self, me: Thread) -> LockResult<'_, T> {
        let panicking = std::thread::panicking();
        let guard = LockGuard { lock: self, me, panicking, not_send: PhantomData };
        if self.poison().load(Relaxed) == CLEAN && T::ANY_BITS { Ok(guard) } else { guard.check() }
    }

    fn poison(&self) -> &AtomicU32 {
        &self.word.note[0]
    }

    /// Returns `true` if the value may be half changed. See [`poison_cause`](Self::poison_cause).
    #[must_use]
    pub fn is_poisoned(&self) -> bool {
        self.poison_cause().is_some()
    }

    /// Returns what happened to an owner that may have left the value half changed.
    ///
    /// Returns `None` if the value is consistent. The answer may change at any moment.
    #[must_use]
    pub fn poison_cause(&self) -> Option<PoisonCause> {
        let died = || RobustWord::is_marked(self.word.value()).then_some(PoisonCause::OwnerDied);
        PoisonCause::of(self.poison().load(Relaxed)).or_else(died)
    }

    /// Returns `true` if a thread holds the lock. The answer may change at any moment.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.word.owner().is_some()
    }

    /// Returns `true` if the calling thread holds the lock, through any mapping of the segment.
    #[must_use]
    pub fn is_held_by_me(&self) -> bool {
        Thread::current().is_ok_and(|me| self.word.is_held_by(me))
    }

    /// Returns the thread that holds the lock. The answer may change at any moment.
    #[must_use]
    pub fn holder(&self) -> Option<Holder> {
        Holder::of(&self.word)
    }

    /// Declares the value consistent, whatever happened to its last owners.
    ///
    /// A caller that has a guard calls [`LockGuard::mark_consistent`] instead.
    pub fn clear_poison(&self) {
        self.poison().store(CLEAN, Relaxed);
    }

    /// Acquires the lock again after [`LockGuard::release_for_wait`].
    pub(crate) fn acquire_after_wait(&self, panicking: bool) -> LockResult<'_, T> {
        let mut taken = self.lock();
        if let Ok(guard) | Err(LockError::OwnerDied(guard) | LockError::Poisoned(guard)) =
            &mut taken
        {
            guard.panicking = panicking;
        }
        taken
    }

    /// Returns the value. The exclusive reference proves that no other thread can reach it yet.
    pub fn get_mut(&mut self) -> &mut T {
        // SAFETY: `&mut self` is exclusive, and a value that was moved in is valid.
        self.value.with_mut(|value| unsafe { &mut *value })
    }
}

/// The verb of [`Lock::lock`].
pub(crate) struct Take<'a, T: Plain>(pub(crate) &'a Lock<T>);

impl<'a, T: Plain> Take<'a, T> {
    #[cold]
    fn attempt_slow(&self) -> Option<LockResult<'a, T>> {
        attach_in_child(core::ptr::from_ref(self.0).addr());
        match self.0.word.try_take() {
            Err(Refused::Busy) => None,
            taken => Some(self.0.result_of(taken)),
        }
    }
}

impl<'a, T: Plain> Verb for Take<'a, T> {
    type Output = LockResult<'a, T>;

    #[inline(always)]
    fn fast(&mut self) -> Option<Self::Output> {
        let me = self.0.word.try_take_fast()?;
        Some(self.0.guard(me))
    }

    #[inline(always)]
    fn fast_or<R>(
        self,
        done: impl FnOnce(Self::Output) -> R,
        otherwise: impl FnOnce(Self) -> R,
    ) -> R {
        match self.0.word.try_take_fast() {
            Some(me) => done(self.0.guard(me)),
            None => otherwise(self),
        }
    }

    #[inline(always)]
    fn attempt(&mut self) -> Option<Self::Output> {
        match self.0.word.try_take_fast() {
            Some(me) => Some(self.0.guard(me)),
            None => self.attempt_slow(),
        }
    }

    fn wait(&mut self, deadline: Deadline) -> Option<Self::Output> {
        attach_in_child(core::ptr::from_ref(self.0).addr());
        self.0.word.take_until(deadline).ok().map(|taken| self.0.result_of(taken))
    }
}

impl<'a, T: Plain> LockGuard<'a, T> {
    /// Declares the value consistent again after the death or panic of an owner.
    ///
    /// ```
    /// use outlast::{Lock, LockError, Shared};
    ///
    /// let here = Shared::anonymous(Lock::new([0_u64; 2]))?; // two numbers that should be equal
    /// let there = here.clone();
    /// let owner = std::thread::spawn(move || {
    ///     let mut guard = there.lock().unwrap();
    ///     guard[0] += 1;
    ///     core::mem::forget(guard); // a thread that ends with the lock counts as dead
    /// });
    /// owner.join().unwrap();
    /// match here.lock() {
    ///     Err(LockError::OwnerDied(mut guard)) => {
    ///         guard[1] = guard[0];
    ///         guard.mark_consistent();
    ///     }
    ///     other => panic!("{other:?}"),
    /// }
    /// assert_eq!(*here.lock()?, [1, 1]);
    /// # Ok::<(), outlast::Error>(())
    /// ```
    pub fn mark_consistent(&mut self) {
        self.lock.clear_poison();
    }

    #[cold]
    fn check(self) -> LockResult<'a, T> {
        // SAFETY: the value lies in the lock, aligned and readable, and this thread owns the word.
        if !self.lock.value.with(|value| unsafe { T::is_valid(value) }) {
            return Err(LockError::Failed(Fault::Corrupt));
        }
        let poison = self.lock.poison().load(Relaxed);
        PoisonCause::judge(poison, self)
    }

    /// Releases the lock for a while, without checking for a panic. Returns what
    /// [`Lock::acquire_after_wait`] needs.
    pub(crate) fn release_for_wait(self) -> (&'a Lock<T>, bool) {
        let guard = ManuallyDrop::new(self);
        guard.lock.word.unlock(guard.me);
        (guard.lock, guard.panicking)
    }

    /// Poisons the lock if a panic has begun since the lock was acquired.
    #[inline(always)]
    pub(crate) fn poison_if_panicking(&self) {
        if !self.panicking && std::thread::panicking() {
            self.poison();
        }
    }

    #[cold]
    fn poison(&self) {
        // In a forked child, the lock is still the parent's.
        if self.lock.word.is_mine() {
            self.lock.poison().store(PANICKED, Relaxed);
        }
    }
}

impl<T: Plain> Deref for LockGuard<'_, T> {
    type Target = T;
    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: this thread owns the word (I1), and the value was checked when the guard was
        // made.
        self.lock.value.with(|value| unsafe { &*value })
    }
}

impl<T: Plain> DerefMut for LockGuard<'_, T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above, and the guard is borrowed exclusively.
        self.lock.value.with_mut(|value| unsafe { &mut *value })
    }
}

impl<T: Plain> Drop for LockGuard<'_, T> {
    #[inline(always)]
    fn drop(&mut self) {
        self.poison_if_panicking();
        self.lock.word.unlock(self.me);
    }
}

// SAFETY: `repr(C)`; a robust word, for which any bytes are valid, and plain data, which is checked
// before it is reached; no `Drop`, because `Plain` is `Copy`.
unsafe impl<T: Plain> Shareable for Lock<T> {
    const FINGERPRINT: u64 = mix_u64(begin::<Self>(b"Lock 1"), T::FINGERPRINT);
    const NEEDS_PEERS: bool = false;
    crate::__sized_shareable!();
    fn layout() -> Layout {
        Layout::of::<Self>("Lock", fields!(Plain: value: T))
    }
    fn place(&self) {
        self.word.place();
    }
    fn in_use(&self, ours: &dyn Fn(u32) -> bool) -> bool {
        self.word.is_owned_by_one_of(ours)
    }
}

/// Why the value of a lock may be half changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PoisonCause {
    /// An owner was killed, or its thread ended, while it held the lock.
    OwnerDied,
    /// An owner panicked while it held the lock.
    Panicked,
}

impl PoisonCause {
    /// The meaning of a poison.
    pub(crate) fn of(poison: u32) -> Option<Self> {
        match poison {
            CLEAN => None,
            PANICKED => Some(PoisonCause::Panicked),
            _ => Some(PoisonCause::OwnerDied),
        }
    }

    /// Returns `guard` as the new owner of a lock with this poison gets it.
    pub(crate) fn judge<G>(poison: u32, guard: G) -> Result<G, LockError<G>> {
        match Self::of(poison) {
            None => Ok(guard),
            Some(PoisonCause::Panicked) => Err(LockError::Poisoned(guard)),
            Some(PoisonCause::OwnerDied) => Err(LockError::OwnerDied(guard)),
        }
    }
}

/// A guard that can declare its value consistent, as [`LockError::recover`] does.
///
/// It is implemented by [`LockGuard`], [`WriteGuard`](crate::WriteGuard) and
/// [`ReentrantLockGuard`](crate::ReentrantLockGuard).
pub trait MarkConsistent {
    /// Declares the value consistent again after the death or panic of an owner.
    fn mark_consistent(&mut self);
}

impl<T: Plain> MarkConsistent for LockGuard<'_, T> {
    fn mark_consistent(&mut self) {
        LockGuard::mark_consistent(self);
    }
}

/// Why acquiring a lock did not simply return a guard. `G` is the type of the guard.
///
/// Two errors are equal if they are of the same variant, and for `Failed` if the faults are equal.
/// Guards and holders are not compared.
#[non_exhaustive]
pub enum LockError<G> {
    /// The lock is acquired. An earlier owner was killed, or its thread ended, and the value may be
    /// half changed.
    OwnerDied(G),
    /// The lock is acquired. An earlier owner panicked, and the value may be half changed.
    Poisoned(G),
    /// Another thread holds the lock, and the call does not block.
    WouldBlock,
    /// The call timed out. Contains the holder of the lock at that moment, if there was one.
    TimedOut(Option<Holder>),
    /// The calling thread already holds the lock.
    WouldDeadlock,
    /// The lock could not be acquired for another reason.
    Failed(Fault),
}

impl<G: MarkConsistent> LockError<G> {
    /// Returns the guard if the lock is acquired, and declares the value consistent.
    ///
    /// Use it for values that are valid after every instruction of their owner, such as a counter.
    ///
    /// ```
    /// use outlast::{Lock, LockError, Shared};
    ///
    /// let here = Shared::anonymous(Lock::new(41_u64))?;
    /// let there = here.clone();
    /// let owner = std::thread::spawn(move || core::mem::forget(there.lock().unwrap()));
    /// owner.join().unwrap(); // the thread has ended and held the lock
    /// *here.lock().or_else(LockError::recover)? += 1;
    /// assert_eq!(*here.lock()?, 42); // no error: the value is consistent
    /// # Ok::<(), outlast::Error>(())
    /// ```
    ///
    /// # Errors
    /// Returns the error itself if the lock is not acquired.
    pub fn recover(self) -> Result<G, Self> {
        match self {
            LockError::OwnerDied(mut guard) | LockError::Poisoned(mut guard) => {
                guard.mark_consistent();
                Ok(guard)
            }
            other => Err(other),
        }
    }
}

impl<G> LockError<G> {
    /// Returns the guard, if the lock is acquired in spite of the error.
    pub fn into_guard(self) -> Option<G> {
        match self {
            LockError::OwnerDied(guard) | LockError::Poisoned(guard) => Some(guard),
            _ => None,
        }
    }

    /// The error for a word that could not be taken. The lock lies at the address `at`.
    ///
    /// # Panics
    /// If the lock does not lie in shared memory.
    pub(crate) fn refused(refused: Refused, at: usize) -> Self {
        match refused {
            Refused::Busy => LockError::WouldBlock,
            Refused::Mine => LockError::WouldDeadlock,
            Refused::Failed(fault) => LockError::Failed(fault),
            Refused::Unplaced => {
                assert!(contains(at), "the lock does not lie in shared memory");
                LockError::Failed(Fault::Corrupt)
            }
        }
    }

    /// Converts the guard.
    pub(crate) fn map<H>(self, with: impl FnOnce(G) -> H) -> LockError<H> {
        match self {
            LockError::OwnerDied(guard) => LockError::OwnerDied(with(guard)),
            LockError::Poisoned(guard) => LockError::Poisoned(with(guard)),
            LockError::WouldBlock => LockError::WouldBlock,
            LockError::TimedOut(holder) => LockError::TimedOut(holder),
            LockError::WouldDeadlock => LockError::WouldDeadlock,
            LockError::Failed(fault) => LockError::Failed(fault),
        }
    }

    /// Returns why the value may be half changed, if this error says so.
    #[must_use]
    pub fn cause(&self) -> Option<PoisonCause> {
        match self {
            LockError::OwnerDied(_) => Some(PoisonCause::OwnerDied),
            LockError::Poisoned(_) => Some(PoisonCause::Panicked),
            _ => None,
        }
    }
}

impl<G> fmt::Display for LockError<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LockError::OwnerDied(_) => f.write_str("an owner of the lock died while it held it"),
            LockError::Poisoned(_) => f.write_str("an owner of the lock panicked while it held it"),
            LockError::WouldBlock => f.write_str("another thread holds the lock"),
            LockError::TimedOut(Some(holder)) => {
                write!(f, "timed out: {holder} holds the lock")
            }
            LockError::TimedOut(None) => {
                f.write_str("timed out: the lock was not released in time")
            }
            LockError::WouldDeadlock => f.write_str("this thread already holds the lock"),
            LockError::Failed(fault) => fault.fmt(f),
        }
    }
}

impl<G> fmt::Debug for LockError<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            LockError::OwnerDied(_) => "OwnerDied",
            LockError::Poisoned(_) => "Poisoned",
            LockError::WouldBlock => "WouldBlock",
            LockError::TimedOut(holder) => return f.debug_tuple("TimedOut").field(holder).finish(),
            LockError::WouldDeadlock => "WouldDeadlock",
            LockError::Failed(fault) => return f.debug_tuple("Failed").field(fault).finish(),
        };
        f.write_str(name)
    }
}

impl<G> core::error::Error for LockError<G> {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            LockError::Failed(fault) => Some(fault),
            _ => None,
        }
    }
}

impl<G> PartialEq for LockError<G> {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (LockError::Failed(fault), LockError::Failed(other)) => fault == other,
            _ => core::mem::discriminant(self) == core::mem::discriminant(other),
        }
    }
}

impl<G> Eq for LockError<G> {}

impl<T: Plain + Default> Default for Lock<T> {
    fn default() -> Self {
        Lock::new(T::default())
    }
}

impl<T: Plain> From<T> for Lock<T> {
    fn from(value: T) -> Self {
        Lock::new(value)
    }
}

impl<T: Plain + fmt::Debug> fmt::Debug for Lock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Lock");
        shown.field("word", &format_args!("{:#010x}", self.word.value()));
        shown.field("poison", &self.poison_cause());
        shown.finish_non_exhaustive()
    }
}

impl<T: Plain + fmt::Debug> fmt::Debug for LockGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: Plain + fmt::Display> fmt::Display for LockGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// Sets whether this process enters every lock in the kernel's robust list immediately.
///
/// By default a thread that holds only one lock does not enter it in the list (see `sys::robust` in
/// the source). That saves some nanoseconds. The kernel forgets such a lock if the thread acquires
/// a *pthread robust mutex*, or a lock of another version of this crate, while it holds the lock. A
/// program that does this calls `set_eager(true)` before its first lock.
pub fn set_eager(eager: bool) {
    crate::sys::robust::set_eager(eager);
}
