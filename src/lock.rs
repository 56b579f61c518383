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
//! # State
//! The word is a robust word (`wait/robust/futex.rs` has its table): free, owned by a thread
//! id, or marked by the kernel. Beside it lies the *poison*, which only the owner touches:
//!
//! | poison | meaning |
//! |---|---|
//! | 0 | the value is as its last owner meant to leave it |
//! | `PANICKED` | an owner panicked |
//! | `DIED` | an owner was killed, or its thread ended, while it held the lock |
//!
//! # Invariants
//! - I1. The value and the poison are touched by the owner of the word only.
//! - I2. A word that was taken from the dead => the poison is `DIED` before the guard is given out.
//!   (If the new owner dies in between, the word is marked once more.)
//!
//! # Ordering
//! `lock` happens after the `unlock` before it: an Acquire of the word pairs with its Release, or
//! with the kernel's change of it.
//!
//! # Death
//! The kernel itself releases the word, at every instruction; nobody else has to notice. Whoever
//! takes it next gets [`LockError::OwnerDied`] with the guard inside, and so does everyone after,
//! until [`LockGuard::mark_consistent`]. A sleeper that dies leaves nothing behind.
#![expect(unsafe_code, reason = "the value is reached through the lock's promise of exclusion")]
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

/// Mutual exclusion around a value, for any number of processes.
///
/// Faster than `std::sync::Mutex` when nobody else wants it, fair to no one, and released by the
/// kernel when its owner dies.
///
/// A thread that forgets a guard ([`core::mem::forget`]) owns the lock until it ends. A lock that
/// is taken again by the thread that holds it is an error, not a deadlock. Not async-signal-safe.
#[repr(C, align(64))]
#[doc(alias = "Mutex")]
pub struct Lock<T: Plain> {
    pub(crate) word: RobustWord,
    pub(crate) value: UnsafeCell<T>,
}

// SAFETY: the value is reached by the owner of the word only, and `Plain` data may be used by any
// thread.
unsafe impl<T: Plain> Sync for Lock<T> {}
// SAFETY: a lock that nobody refers to is plain data.
unsafe impl<T: Plain> Send for Lock<T> {}

/// Holds a [`Lock`] until dropped.
///
/// It belongs to the thread that took it. In a process made by `fork` a copied guard must not be
/// used; dropping it there does nothing.
#[must_use = "the lock is released at once if the guard is not kept"]
pub struct LockGuard<'a, T: Plain> {
    pub(crate) lock: &'a Lock<T>,
    /// Who took it. (To ask again costs 1.5 ns.)
    pub(crate) me: Thread,
    /// The thread was panicking already when it took the lock.
    panicking: bool,
    /// The kernel knows the owner as a thread: the guard stays there.
    not_send: PhantomData<*const ()>,
}

// SAFETY: a shared guard gives `&T` only, and `Plain` data may be read by any thread.
unsafe impl<T: Plain> Sync for LockGuard<'_, T> {}

/// The thread that holds a lock, for people to read.
///
/// It keeps the id of the thread only. Each method that tells of the process, and each formatting,
/// reads `/proc`, which takes some microseconds. They tell nothing of a thread that has ended, and
/// the kernel may give the id to a new thread.
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

/// What taking a lock gives.
pub type LockResult<'a, T> = Result<LockGuard<'a, T>, LockError<LockGuard<'a, T>>>;

impl<T: Plain> Lock<T> {
    /// A free lock around `value`, to be moved into shared memory.
    ///
    /// It works from when it lies in a segment.
    pub fn new(value: T) -> Self {
        Lock { word: RobustWord::new(), value: UnsafeCell::new(value) }
    }

    verbs! {
        /// Acquires the lock, blocking until it is available.
        ///
        /// # Errors
        /// - [`LockError::OwnerDied`], [`LockError::Poisoned`]: the lock is acquired, the guard is
        ///   inside, and the value may be half changed.
        /// - [`LockError::WouldDeadlock`]: this thread has it.
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
    fn accept(&self, taken: Result<(Taken, Thread), Refused>) -> LockResult<'_, T> {
        match taken {
            Ok((Taken::Clean, me)) => self.guard(me),
            Ok((Taken::FromTheDead, me)) => {
                self.poison().store(DIED, Relaxed); // keeps I2
                self.guard(me)
            }
            Err(refused) => Err(LockError::refused(refused, core::ptr::from_ref(self).addr())),
        }
    }

    /// The guard of a word just taken.
    #[inline(always)]
    pub(crate) fn guard(&self, me: Thread) -> LockResult<'_, T> {
        let panicking = std::thread::panicking();
        let guard = LockGuard { lock: self, me, panicking, not_send: PhantomData };
        if self.poison().load(Relaxed) == CLEAN && T::ANY_BITS {
            Ok(guard)
        } else {
            guard.inspect()
        }
    }

    fn poison(&self) -> &AtomicU32 {
        &self.word.note[0]
    }

    /// Whether the value may be half changed: see [`poison_cause`](Self::poison_cause).
    #[must_use]
    pub fn is_poisoned(&self) -> bool {
        self.poison_cause().is_some()
    }

    /// What happened to an owner before it was done, if it is not mended yet. May change at any
    /// moment.
    #[must_use]
    pub fn poison_cause(&self) -> Option<PoisonCause> {
        let died = || RobustWord::is_marked(self.word.value()).then_some(PoisonCause::OwnerDied);
        PoisonCause::of(self.poison().load(Relaxed)).or_else(died)
    }

    /// Returns whether a thread holds the lock. May change at any moment.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.word.owner().is_some()
    }

    /// Returns whether the calling thread holds the lock, through whichever mapping.
    #[must_use]
    pub fn is_held_by_me(&self) -> bool {
        Thread::current().is_ok_and(|me| self.word.is_held_by(me))
    }

    /// Returns the thread that holds the lock, to be shown to people. May change at any moment.
    #[must_use]
    pub fn holder(&self) -> Option<Holder> {
        Holder::of(&self.word)
    }

    /// Declares the value sound, whatever happened to its last owners.
    ///
    /// Better, where the guard is at hand: [`LockGuard::mark_consistent`].
    pub fn clear_poison(&self) {
        self.poison().store(CLEAN, Relaxed);
    }

    /// Takes the lock again after [`LockGuard::give_up`].
    pub(crate) fn take_again(&self, panicking: bool) -> LockResult<'_, T> {
        let mut taken = self.lock();
        if let Ok(guard) | Err(LockError::OwnerDied(guard) | LockError::Poisoned(guard)) =
            &mut taken
        {
            guard.panicking = panicking;
        }
        taken
    }

    /// The value, which nobody else can reach yet.
    pub fn get_mut(&mut self) -> &mut T {
        // SAFETY: `&mut self` is exclusive, and a value that was moved in is valid.
        self.value.with_mut(|value| unsafe { &mut *value })
    }
}

/// Taking a lock.
pub(crate) struct Take<'a, T: Plain>(pub(crate) &'a Lock<T>);

impl<'a, T: Plain> Take<'a, T> {
    #[cold]
    fn attempt_slow(&self) -> Option<LockResult<'a, T>> {
        attach_in_child(core::ptr::from_ref(self.0).addr());
        match self.0.word.try_take() {
            Err(Refused::Busy) => None,
            taken => Some(self.0.accept(taken)),
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
        self.0.word.take_until(deadline).ok().map(|taken| self.0.accept(taken))
    }
}

impl<'a, T: Plain> LockGuard<'a, T> {
    /// Declares the value sound again, after the death or panic of an owner.
    ///
    /// ```
    /// use outlast::{Lock, LockError, Shared};
    ///
    /// let here = Shared::anonymous(Lock::new([0_u64; 2]))?; // two numbers that should be equal
    /// let there = here.clone();
    /// let owner = std::thread::spawn(move || {
    ///     let mut guard = there.lock().unwrap();
    ///     guard[0] += 1;
    ///     core::mem::forget(guard); // to the lock, the end of a thread is what the death of a process is
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
    fn inspect(self) -> LockResult<'a, T> {
        // SAFETY: the value lies in the lock, aligned and readable, and we own the word.
        if !self.lock.value.with(|value| unsafe { T::is_valid(value) }) {
            return Err(LockError::Failed(Fault::Corrupt));
        }
        let poison = self.lock.poison().load(Relaxed);
        PoisonCause::judge(poison, self)
    }

    /// Gives the lock up for a while, with no word about a panic; what [`Lock::take_again`] needs.
    pub(crate) fn give_up(self) -> (&'a Lock<T>, bool) {
        let guard = ManuallyDrop::new(self);
        guard.lock.word.unlock(guard.me);
        (guard.lock, guard.panicking)
    }

    /// Has the lock poisoned if a panic has begun since it was taken.
    #[inline(always)]
    pub(crate) fn notice_panic(&self) {
        if !self.panicking && std::thread::panicking() {
            self.poison();
        }
    }

    #[cold]
    fn poison(&self) {
        // In a forked child the lock is still the parent's.
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
        self.notice_panic();
        self.lock.word.unlock(self.me);
    }
}

// SAFETY: `repr(C)`; a robust word, for which any bytes will do, and plain data that is checked
// before it is reached; no `Drop`, as `Plain` is `Copy`.
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

/// What left a lock's value in doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PoisonCause {
    /// An owner was killed, or its thread ended, while it held the lock.
    OwnerDied,
    /// An owner panicked while it held the lock.
    Panicked,
}

impl PoisonCause {
    /// What a poison stands for.
    pub(crate) fn of(poison: u32) -> Option<Self> {
        match poison {
            CLEAN => None,
            PANICKED => Some(PoisonCause::Panicked),
            _ => Some(PoisonCause::OwnerDied),
        }
    }

    /// The guard of a lock that has this poison, as its taker gets it.
    pub(crate) fn judge<G>(poison: u32, guard: G) -> Result<G, LockError<G>> {
        match Self::of(poison) {
            None => Ok(guard),
            Some(PoisonCause::Panicked) => Err(LockError::Poisoned(guard)),
            Some(PoisonCause::OwnerDied) => Err(LockError::OwnerDied(guard)),
        }
    }
}

/// A guard by which the value can be declared sound: what [`LockError::recover`] needs.
///
/// Implemented by [`LockGuard`], [`WriteGuard`](crate::WriteGuard) and
/// [`ReentrantLockGuard`](crate::ReentrantLockGuard).
pub trait MarkConsistent {
    /// Declares the value sound again, after the death or panic of an owner.
    fn mark_consistent(&mut self);
}

impl<T: Plain> MarkConsistent for LockGuard<'_, T> {
    fn mark_consistent(&mut self) {
        LockGuard::mark_consistent(self);
    }
}

/// Why a lock was not simply taken. `G` is the guard.
///
/// Two errors are equal if they say the same of the lock: neither guards nor holders are compared.
#[non_exhaustive]
pub enum LockError<G> {
    /// The lock is taken; an owner before was killed, or its thread ended, and the value may be
    /// half changed.
    OwnerDied(G),
    /// The lock is taken; an owner before panicked, and the value may be half changed.
    Poisoned(G),
    /// Another thread has the lock, and the call does not block.
    WouldBlock,
    /// Another thread kept the lock past the deadline: the holder at that moment, if there was one.
    TimedOut(Option<Holder>),
    /// The calling thread has the lock already.
    WouldDeadlock,
    /// The attempt failed.
    Failed(Fault),
}

impl<G: MarkConsistent> LockError<G> {
    /// Returns the guard if the lock is taken, and declares the value sound.
    ///
    /// This is for values that are valid after every instruction of their owner, such as a counter.
    ///
    /// ```
    /// use outlast::{Lock, LockError, Shared};
    ///
    /// let here = Shared::anonymous(Lock::new(41_u64))?;
    /// let there = here.clone();
    /// let owner = std::thread::spawn(move || core::mem::forget(there.lock().unwrap()));
    /// owner.join().unwrap(); // the thread has ended and held the lock
    /// *here.lock().or_else(LockError::recover)? += 1;
    /// assert_eq!(*here.lock()?, 42); // no error: the value is sound
    /// # Ok::<(), outlast::Error>(())
    /// ```
    ///
    /// # Errors
    /// The error itself if the lock is not taken.
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
    /// The guard, if the lock is taken in spite of all.
    pub fn into_guard(self) -> Option<G> {
        match self {
            LockError::OwnerDied(guard) | LockError::Poisoned(guard) => Some(guard),
            _ => None,
        }
    }

    /// That the word of the lock at this address was not taken.
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

    /// The same with another guard.
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

    /// What left the value in doubt, if that is what this error says.
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
            LockError::WouldBlock => f.write_str("another thread has the lock"),
            LockError::TimedOut(Some(holder)) => {
                write!(f, "{holder} kept the lock past the deadline")
            }
            LockError::TimedOut(None) => f.write_str("the lock stayed taken past the deadline"),
            LockError::WouldDeadlock => f.write_str("this thread has the lock already"),
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

/// Chooses for this process whether every lock enters the kernel's robust list at once.
///
/// By default a thread's only lock stays out of the list (see `sys::robust` in the source), which
/// saves some nanoseconds. A section that itself takes a *pthread robust mutex*, or a lock of
/// another version of this crate, makes the kernel forget a lock that is not listed: programs that
/// do so call `set_eager(true)` before their first lock.
pub fn set_eager(eager: bool) {
    crate::sys::robust::set_eager(eager);
}
