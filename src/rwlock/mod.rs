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
//! # Which lock
//! Use an [`RwLock`] if threads mostly read, and hold the lock for long enough that others wait for
//! it. For short sections a [`Lock`](crate::Lock) is faster and 2 KiB smaller.
//!
//! # Death
//! The kernel releases what a thread held, at whatever instruction the thread is killed. The death
//! of a reader changes nothing. If a writer is killed while it may be changing the value, the next
//! owner and every later one get [`LockError::OwnerDied`], until one of them calls
//! [`WriteGuard::mark_consistent`]. A writer that is killed while it still waits for readers leaves
//! no poison.
#![expect(unsafe_code, reason = "the value is reached through the lock's promise of exclusion")]

// # How it works
// All words are robust words (`wait/robust/futex.rs` has their table): the *writer word*, and one
// word for each of 32 *slots*. A thread that owns a slot is a reader.
//
// | writer word | `inside` | meaning |
// |---|---|---|
// | free | 0 | a reader needs only a slot |
// | owned | 0 | the owner is a writer that waits for the readers in the slots, or a reader that takes a slot under the word, or a reader without a slot |
// | owned | 1 | the owner is a writer, and no other thread has the lock |
// | marked | 0 | the owner ended and had changed nothing |
// | marked | 1 | a writer ended before it had released the lock |
//
// Beside the writer word lies the *poison*, as in `lock.rs`. Beside every word lies the number of
// further guards that its owner has on it (`further_guards`).
//
// Invariants:
// - I1. Only the owner of the writer word writes the value, and only while `inside` is set.
// - I2. A reader owns a slot that it took while the writer word was free, or while it owned the
//   writer word itself. Or it still owns the writer word, with `inside` clear.
// - I3. `inside` is set only after every slot has been seen without a living owner, since the
//   writer word was taken. A thread that takes a slot later sees that the writer word is owned, and
//   releases the slot.
// - I4. If the writer word was taken from a dead owner and `inside` is set, the poison is `DIED`
//   before `inside` is cleared. `inside` is cleared before another thread gets a guard.
// - I5. `further_guards` is 0 in a word that is free. The next owner clears what a dead owner left
//   there.
// - I6. Only the owner of the writer word sleeps on a slot, and only if it is a writer without a
//   slot. All others sleep on the writer word. So a thread that others wait for does not sleep on
//   this lock.
// - I7. All guards on one word were made through one mapping. `further_guards` cannot tell two
//   mappings apart, and a word is released only through the mapping through which it was taken.
//
// Ordering: a reader takes a slot and then looks at the writer word. A writer takes the writer word
// and then looks at the slots. One of the two must see the other (I3), so the exchanges and the
// looks are `SeqCst`; where the exchange is on a slow path, a `SeqCst` fence separates the two. A
// writer acquires what a reader released with its slot. A reader acquires what a writer released
// with the writer word.
//
// Death: the kernel marks every word of a dead owner. A marked slot counts as free. A marked writer
// word sends every reader and writer to the slow path. The first of them records the poison if
// `inside` says that the value was being changed. A reader that died while it owned the writer word
// leaves no poison.
mod acquire;
mod guards;

pub use guards::{ReadGuard, WriteGuard};

use guards::rebuilt;

use crate::deadline::Deadline;
use crate::lock::{CLEAN, Holder, LockError, PoisonCause};
use crate::shareable::{Layout, Plain, Shareable, begin, fields, mix_u64};
use crate::sync::atomic::AtomicU32;
use crate::sync::atomic::Ordering::Relaxed;
use crate::sync::{READERS, UnsafeCell};
use crate::wait::robust::RobustWord;
use crate::wait::verbs::{Verb, verbs};
use core::fmt;

/// A lock around a value that one writer or many readers hold, for any number of processes.
///
/// Up to 32 readers acquire and release the lock without writing to memory that another of them
/// writes to. A further reader is admitted as well, but threads that come later wait until it has
/// finished.
///
/// New readers wait while a writer waits, so that a stream of readers cannot keep a writer out.
/// Waiting readers and writers get the lock in no particular order. A reader that dies changes
/// nothing. The death of a writer is reported to all later owners, as by a [`Lock`](crate::Lock).
///
/// A thread that reads can acquire the lock for reading again. It does not wait, even if a writer
/// waits. A read guard cannot become a write guard: two readers that both waited to become the
/// writer would wait for each other. Drop the read guard, acquire the lock for writing, and look at
/// the value again. [`WriteGuard::downgrade`] turns a write guard into a read guard.
///
/// A thread that forgets a guard ([`core::mem::forget`]) holds the lock until the thread ends. The
/// lock takes 2,112 bytes and the value. Nothing here is async-signal-safe.
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

// SAFETY: only the writer writes the value (I1), and any thread may use `Plain` data.
unsafe impl<T: Plain> Sync for RwLock<T> {}
// SAFETY: a lock to which nothing refers is plain data.
unsafe impl<T: Plain> Send for RwLock<T> {}

/// The result of acquiring an [`RwLock`] for reading.
pub type ReadResult<'a, T> = Result<ReadGuard<'a, T>, LockError<ReadGuard<'a, T>>>;
/// The result of acquiring an [`RwLock`] for writing.
pub type WriteResult<'a, T> = Result<WriteGuard<'a, T>, LockError<WriteGuard<'a, T>>>;

impl<T: Plain> RwLock<T> {
    /// Creates a lock around `value`, to be moved into shared memory.
    ///
    /// The lock can be used once it has been placed in a segment.
    pub fn new(value: T) -> Self {
        RwLock {
            writer: RobustWord::new(),
            slots: core::array::from_fn(|_| Slot(RobustWord::new())),
            value: UnsafeCell::new(value),
        }
    }

    verbs! {
        /// Acquires the lock for reading, blocking until no writer holds it or waits for it.
        ///
        /// # Errors
        /// - [`LockError::OwnerDied`], [`LockError::Poisoned`]: the lock is acquired, the guard is
        ///   inside, and the value may be half changed.
        /// - [`LockError::WouldDeadlock`]: this thread holds the lock for writing, or holds it
        ///   through another mapping of the segment.
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

        /// Acquires the lock for writing, blocking until no other thread holds it.
        ///
        /// # Errors
        /// As [`read`](Self::read). [`LockError::WouldDeadlock`] if this thread holds the lock for
        /// reading or writing.
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

    /// The writer word, followed by the slots.
    fn words(&self) -> impl Iterator<Item = &RobustWord> {
        core::iter::once(&self.writer).chain(self.slots.iter().map(|slot| &slot.0))
    }

    fn poison(&self) -> &AtomicU32 {
        &self.writer.note[0]
    }

    /// 1 while a writer may change the value. A writer that dies leaves it as it was.
    fn inside(&self) -> &AtomicU32 {
        &self.writer.note[1]
    }

    /// Returns `true` if the value may be half changed. See [`poison_cause`](Self::poison_cause).
    #[must_use]
    pub fn is_poisoned(&self) -> bool {
        self.poison_cause().is_some()
    }

    /// Returns what happened to a writer that may have left the value half changed.
    ///
    /// Returns `None` if the value is consistent. The answer may change at any moment.
    #[must_use]
    pub fn poison_cause(&self) -> Option<PoisonCause> {
        let died = || {
            let died =
                RobustWord::is_marked(self.writer.value()) && self.inside().load(Relaxed) != 0;
            died.then_some(PoisonCause::OwnerDied)
        };
        PoisonCause::of(self.poison().load(Relaxed)).or_else(died)
    }

    /// Returns `true` if a thread holds the lock for reading or writing. The answer may change at
    /// any moment.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.words().any(|word| word.owner().is_some())
    }

    #[cold]
    fn first_holder(&self) -> Option<Holder> {
        self.words().find_map(Holder::of)
    }

    /// Returns the threads that hold the lock, the writer first. The answer may change at any
    /// moment.
    #[must_use]
    pub fn holders(&self) -> Vec<Holder> {
        self.words().filter_map(Holder::of).collect()
    }

    /// Declares the value consistent, whatever happened to its last writers.
    ///
    /// A caller that has a guard calls [`WriteGuard::mark_consistent`] instead.
    pub fn clear_poison(&self) {
        self.poison().store(CLEAN, Relaxed);
    }

    /// Returns the value. The exclusive reference proves that no other thread can reach it yet.
    pub fn get_mut(&mut self) -> &mut T {
        // SAFETY: `&mut self` is exclusive, and a value that was moved in is valid.
        self.value.with_mut(|value| unsafe { &mut *value })
    }
}

/// The verb of [`RwLock::read`].
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
        in_time(rebuilt(self.0.read_slow(deadline)))
    }
}

/// The verb of [`RwLock::write`].
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

/// `None` if other threads held the lock until the deadline.
fn in_time<G>(taken: Result<G, LockError<G>>) -> Option<Result<G, LockError<G>>> {
    match taken {
        Err(LockError::WouldBlock) => None,
        taken => Some(taken),
    }
}

// SAFETY: `repr(C)`; robust words, for which any bytes are valid, and plain data, which is checked
// before it is reached; no `Drop`, because `Plain` is `Copy`.
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
