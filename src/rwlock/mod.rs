//! One writer or many readers around a value.
//!
//! ```
//! use outlast::{RwLock, Shared};
//!
//! let here = Shared::anonymous(RwLock::new(1_u64))?;
//! let there = Shared::<RwLock<u64>>::from_fd(here.try_clone_fd()?)?; // as another process would
//! *there.write()? += 41;
//! let (first, second) = (here.read()?, here.read()?); // both at once
//! assert_eq!(*first + *second, 84);
//! # Ok::<(), outlast::Error>(())
//! ```
//!
//! # State
//! All words are robust words (`wait/robust/futex.rs` has their table): the *writer word*, and one
//! word for each of 32 *slots*. An owned slot is a reader.
//!
//! | writer word | `inside` | meaning |
//! |---|---|---|
//! | free | 0 | a slot is all that a reader needs |
//! | owned | 0 | a writer that waits for the readers in the slots; or a reader that takes a slot under it, or reads without one |
//! | owned | 1 | a writer, alone |
//! | marked | 0 | the owner ended, and had changed nothing |
//! | marked | 1 | a writer ended before it was done |
//!
//! Beside the writer word lies the *poison*, as in `lock.rs`. Beside every word lies how many more
//! guards its owner has on it (`again`).
//!
//! # Invariants
//! - I1. The value is written by the owner of the writer word only, with `inside` set.
//! - I2. A reader owns a slot that it took when the writer word was free, or while it owned that
//!   itself; or it still owns the writer word, with `inside` clear.
//! - I3. `inside` is set only after every slot was seen without a living owner, in a time since the
//!   writer word was taken. Whoever takes a slot later sees the writer word owned, and gives the
//!   slot up.
//! - I4. The writer word was taken from the dead, and `inside` is set => the poison is `DIED`
//!   before `inside` is cleared, and that is before anybody else gets a guard.
//! - I5. `again` is 0 in a word that is free. What a dead owner left there is cleared by whoever
//!   takes the word next.
//! - I6. Only the owner of the writer word sleeps on a slot, and only if it is a writer, which has
//!   no slot. All others sleep on the writer word. So whoever is slept for does not sleep on this
//!   lock.
//! - I7. All guards on one word were taken through one mapping. `again` cannot tell two mappings
//!   apart, and a word is given up only through the one through which it was taken.
//!
//! # Ordering
//! A reader takes a slot and then looks at the writer word; a writer takes the writer word and then
//! looks at the slots. One of the two must see the other (I3): the exchanges and the looks are
//! `SeqCst`, or have a `SeqCst` fence between them where the exchange is on a slow way. A writer
//! acquires what a reader released with its slot, a reader what a writer released with the writer
//! word.
//!
//! # Death
//! The kernel releases every word, at every instruction. A dead reader leaves a marked slot, which
//! counts as free. A dead writer leaves the marked writer word. That sends every reader and writer
//! the slow way, and the first of them records the poison if `inside` says that the value was being
//! changed. A writer that died while it waited for readers, and a reader that died while it owned
//! the writer word, leave no poison.
#![expect(unsafe_code, reason = "the value is reached through the lock's promise of exclusion")]
mod guards;
mod taking;

pub use guards::{ReadGuard, WriteGuard};

use guards::apart;

use crate::deadline::Deadline;
use crate::lock::{CLEAN, Holder, LockError, PoisonCause};
use crate::shareable::{Layout, Plain, Shareable, begin, fields, mix_u64};
use crate::sync::atomic::AtomicU32;
use crate::sync::atomic::Ordering::Relaxed;
use crate::sync::{READERS, UnsafeCell};
use crate::wait::robust::RobustWord;
use crate::wait::verbs::{Verb, verbs};
use core::fmt;

/// One writer or many readers around a value, for any number of processes.
///
/// Up to 32 readers take it, and give it up, without writing to memory that another of them writes
/// to. A reader beyond those gets in as well, but as long as it reads, whoever comes later waits
/// for it.
///
/// A writer that waits keeps new readers waiting, so that readers who come and go cannot keep it
/// out. Readers and writers that wait get their turn in no certain order. A reader that dies
/// changes nothing; the death of a writer is told to all who come after it, as by a
/// [`Lock`](crate::Lock).
///
/// A thread may read again while it reads, also while a writer waits: it gets in at once. There is
/// no way from reading to writing: two readers that both waited to become the writer would wait for
/// each other. Give up the read guard, take the lock for writing, and look again. The way back is
/// [`WriteGuard::downgrade`].
///
/// A thread that forgets a guard ([`core::mem::forget`]) has the lock until it ends. Takes 2,112
/// bytes and the value. Not async-signal-safe.
#[repr(C, align(64))]
#[doc(alias = "shared_mutex")]
#[doc(alias = "pthread_rwlock")]
pub struct RwLock<T: Plain> {
    writer: RobustWord,
    slots: [Slot; READERS],
    value: UnsafeCell<T>,
}

/// A reader's word, in a cache line of its own.
#[repr(C, align(64))]
#[derive(Debug)]
struct Slot(RobustWord);

// SAFETY: the value is written by the writer alone (I1), and `Plain` data may be used by any
// thread.
unsafe impl<T: Plain> Sync for RwLock<T> {}
// SAFETY: a lock that nobody refers to is plain data.
unsafe impl<T: Plain> Send for RwLock<T> {}

/// What taking a lock for reading gives.
pub type ReadResult<'a, T> = Result<ReadGuard<'a, T>, LockError<ReadGuard<'a, T>>>;
/// What taking a lock for writing gives.
pub type WriteResult<'a, T> = Result<WriteGuard<'a, T>, LockError<WriteGuard<'a, T>>>;

impl<T: Plain> RwLock<T> {
    /// A free lock around `value`, to be moved into shared memory.
    ///
    /// It works from when it lies in a segment.
    pub fn new(value: T) -> Self {
        RwLock {
            writer: RobustWord::new(),
            slots: core::array::from_fn(|_| Slot(RobustWord::new())),
            value: UnsafeCell::new(value),
        }
    }

    verbs! {
        /// Acquires the lock for reading, blocking until no writer has it or waits for it.
        ///
        /// # Errors
        /// - [`LockError::OwnerDied`], [`LockError::Poisoned`]: the lock is acquired, the guard is
        ///   inside, and the value may be half changed.
        /// - [`LockError::WouldDeadlock`]: this thread has it for writing, or has it through
        ///   another mapping of the segment.
        /// - [`LockError::Failed`]: see [`Fault`](crate::Fault).
        ///
        /// # Panics
        /// If the lock does not lie in shared memory.
        #[inline]
        #[doc(alias = "rdlock")]
        pub fn read(&self) -> ReadResult<'_, T> = Read(self);
        /// It also fails while a writer waits, and for the moment in which a waiting thread
        /// acquires the lock.
        #[inline]
        try_read -> ReadResult<'_, T>, else Err(LockError::WouldBlock);
        #[inline]
        read_timeout, read_deadline -> ReadResult<'_, T>,
            else Err(LockError::TimedOut(self.first_holder()));

        /// Acquires the lock for writing, blocking until no other thread has it.
        ///
        /// # Errors
        /// - [`LockError::OwnerDied`], [`LockError::Poisoned`]: the lock is acquired, the guard is
        ///   inside, and the value may be half changed.
        /// - [`LockError::WouldDeadlock`]: this thread has it, for reading or writing.
        /// - [`LockError::Failed`]: see [`Fault`](crate::Fault).
        ///
        /// # Panics
        /// If the lock does not lie in shared memory.
        #[inline]
        #[doc(alias = "wrlock")]
        pub fn write(&self) -> WriteResult<'_, T> = Write(self);
        /// It also fails for the moment in which another thread tries to acquire the lock, even if
        /// that thread fails.
        #[inline]
        try_write -> WriteResult<'_, T>, else Err(LockError::WouldBlock);
        #[inline]
        write_timeout, write_deadline -> WriteResult<'_, T>,
            else Err(LockError::TimedOut(self.first_holder()));
    }

    /// The writer word, and then the slots.
    fn words(&self) -> impl Iterator<Item = &RobustWord> {
        core::iter::once(&self.writer).chain(self.slots.iter().map(|slot| &slot.0))
    }

    fn poison(&self) -> &AtomicU32 {
        &self.writer.note[0]
    }

    /// Whether a writer is, or was when it died, at the value.
    fn inside(&self) -> &AtomicU32 {
        &self.writer.note[1]
    }

    /// Whether the value may be half changed: see [`poison_cause`](Self::poison_cause).
    #[must_use]
    pub fn is_poisoned(&self) -> bool {
        self.poison_cause().is_some()
    }

    /// What happened to a writer before it was done, if it is not mended yet. May change at any
    /// moment.
    #[must_use]
    pub fn poison_cause(&self) -> Option<PoisonCause> {
        let died = || {
            let died =
                RobustWord::is_marked(self.writer.value()) && self.inside().load(Relaxed) != 0;
            died.then_some(PoisonCause::OwnerDied)
        };
        PoisonCause::of(self.poison().load(Relaxed)).or_else(died)
    }

    /// Returns whether a thread holds the lock, for reading or writing. May change at any moment.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.words().any(|word| word.owner().is_some())
    }

    #[cold]
    fn first_holder(&self) -> Option<Holder> {
        self.words().find_map(Holder::of)
    }

    /// Returns the threads that hold the lock, the writer first, to be shown to people. May change
    /// at any moment.
    #[must_use]
    pub fn holders(&self) -> Vec<Holder> {
        self.words().filter_map(Holder::of).collect()
    }

    /// Declares the value sound, whatever happened to its last writers.
    ///
    /// Better, where the guard is at hand: [`WriteGuard::mark_consistent`].
    pub fn clear_poison(&self) {
        self.poison().store(CLEAN, Relaxed);
    }

    /// The value, which nobody else can reach yet.
    pub fn get_mut(&mut self) -> &mut T {
        // SAFETY: `&mut self` is exclusive, and a value that was moved in is valid.
        self.value.with_mut(|value| unsafe { &mut *value })
    }
}

/// Taking a lock for reading.
struct Read<'a, T: Plain>(&'a RwLock<T>);

impl<'a, T: Plain> Verb for Read<'a, T> {
    type Output = ReadResult<'a, T>;

    #[inline(always)]
    fn fast(&mut self) -> Option<Self::Output> {
        let (slot, me) = self.0.read_fast()?;
        Some(self.0.reader(slot, me))
    }

    #[inline(always)]
    fn fast_or<R>(
        self,
        done: impl FnOnce(Self::Output) -> R,
        otherwise: impl FnOnce(Self) -> R,
    ) -> R {
        match self.0.read_fast() {
            Some((slot, me)) => done(self.0.reader(slot, me)),
            None => otherwise(self),
        }
    }

    #[inline(always)]
    fn attempt(&mut self) -> Option<Self::Output> {
        match self.0.read_fast() {
            Some((slot, me)) => Some(self.0.reader(slot, me)),
            None => self.wait(Deadline::NOW),
        }
    }

    #[cold]
    fn wait(&mut self, deadline: Deadline) -> Option<Self::Output> {
        in_time(apart(self.0.read_slow(deadline)))
    }
}

/// Taking a lock for writing.
struct Write<'a, T: Plain>(&'a RwLock<T>);

impl<'a, T: Plain> Verb for Write<'a, T> {
    type Output = WriteResult<'a, T>;

    #[inline(always)]
    fn fast(&mut self) -> Option<Self::Output> {
        let me = self.0.write_fast()?;
        Some(self.0.writer(me))
    }

    #[inline(always)]
    fn fast_or<R>(
        self,
        done: impl FnOnce(Self::Output) -> R,
        otherwise: impl FnOnce(Self) -> R,
    ) -> R {
        match self.0.write_fast() {
            Some(me) => done(self.0.writer(me)),
            None => otherwise(self),
        }
    }

    #[inline(always)]
    fn attempt(&mut self) -> Option<Self::Output> {
        match self.0.write_fast() {
            Some(me) => Some(self.0.writer(me)),
            None => self.wait(Deadline::NOW),
        }
    }

    #[cold]
    fn wait(&mut self, deadline: Deadline) -> Option<Self::Output> {
        in_time(self.0.write_slow(deadline))
    }
}

/// An output, unless other threads kept the lock.
fn in_time<G>(taken: Result<G, LockError<G>>) -> Option<Result<G, LockError<G>>> {
    match taken {
        Err(LockError::WouldBlock) => None,
        taken => Some(taken),
    }
}

// SAFETY: `repr(C)`; robust words, for which any bytes will do, and plain data that is checked
// before it is reached; no `Drop`, as `Plain` is `Copy`.
unsafe impl<T: Plain> Shareable for RwLock<T> {
    const FINGERPRINT: u64 = mix_u64(begin::<Self>(b"RwLock 1"), T::FINGERPRINT);
    const NEEDS_PEERS: bool = false;
    crate::__sized_shareable!();
    fn layout() -> Layout {
        Layout::of::<Self>("RwLock", fields!(Plain: value: T))
    }
    fn place(&self) {
        self.words().for_each(RobustWord::place);
    }
    fn in_use(&self, ours: &dyn Fn(u32) -> bool) -> bool {
        self.words().any(|word| word.is_owned_by_one_of(ours))
    }
}

impl<T: Plain + Default> Default for RwLock<T> {
    fn default() -> Self {
        RwLock::new(T::default())
    }
}

impl<T: Plain> From<T> for RwLock<T> {
    fn from(value: T) -> Self {
        RwLock::new(value)
    }
}

impl<T: Plain + fmt::Debug> fmt::Debug for RwLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slots = self.slots.iter().enumerate().map(|(i, slot)| (i, slot.0.value()));
        let mut shown = f.debug_struct("RwLock");
        shown.field("writer", &format_args!("{:#010x}", self.writer.value()));
        shown.field("inside", &(self.inside().load(Relaxed) != 0));
        for (i, value) in slots.filter(|&(_, value)| value != 0) {
            shown.field(&format!("slot {i}"), &format_args!("{value:#010x}"));
        }
        shown.field("poison", &self.poison_cause());
        shown.finish_non_exhaustive()
    }
}
