//! A bounded ring for one producer and one consumer.
//!
//! ```
//! use outlast::{Shared, spsc::Ring};
//!
//! let here = Shared::<Ring<u64>>::with_capacity(16)?;
//! let there = Shared::<Ring<u64>>::from_fd(here.try_clone_fd()?)?; // as another process would
//! let (producer, consumer) = (here.producer()?, there.consumer()?);
//! producer.send(7)?;
//! producer.send_batch(&[8, 9])?;
//! assert_eq!((consumer.recv(), consumer.recv()), (Ok(7), Ok(8)));
//!
//! // Another consumer goes on where this one ended, whether it was dropped or killed:
//! drop(consumer);
//! assert_eq!(there.consumer()?.recv(), Ok(9));
//! # Ok::<(), outlast::Error>(())
//! ```
//!
//! # State
//! | word | meaning | written by |
//! |---|---|---|
//! | `tail` | messages ever sent | the producer; the store is the commit of `send` |
//! | `head` | messages ever received | the consumer; the store is the commit of `recv` |
//! | role of each end: {deaths: 19, died: 1, owner: 12 bits} | the process that has it (0: none), whether the last one died with it, how many did | who takes and drops it; recovery |
//! | `told` of each end | the count of deaths that the other end was told | the other end |
//! | `closed` | nothing more is sent | anybody |
//!
//! The message number *n* lies in slot *n* mod capacity.
//!
//! # Invariants
//! - I1. A role names its owner in the instruction that takes it; only its owner, or recovery when
//!   the owner is dead, gives it up.
//! - I2. `head` <= `tail` <= `head` + capacity.
//! - I3. Slots from `head` to `tail` are the consumer's, the others the producer's: neither touches
//!   those of the other.
//! - I4. An end says *closed* or *peer died* only if it found nothing after it had seen that.
//!
//! # Ordering
//! What was written before `send` is seen after the `recv` of that message: Release store of
//! `tail`, Acquire load. In the same way `head` gives slots back. Each end keeps its own position,
//! and what it last saw of the other's, to itself, and looks at the other's line only when that is
//! used up. Every commit, of one message or of many, is followed by a light fence before it is
//! asked whether the other end sleeps (see `signal.rs`): without it, a sleep that begins at that
//! moment would not be noticed. The heavy one is the sleeper's.
//!
//! # Death
//! Killed before its commit: nothing was sent, or the message is still there. After: it was sent,
//! or is gone with the process that had it. Recovery gives the role up, counts the death and wakes
//! everybody. A successor goes on at the last commit. The other end is told once, when it finds
//! nothing more to receive (no free slot): [`RecvError::PeerDied`]; then it can wait for the
//! successor. An end that was never taken, or was dropped, or whose process ended by itself, is
//! waited for.
#![expect(unsafe_code, reason = "slots belong to one end at a time")]

mod consumer;
mod end;
mod error;
mod producer;

pub use super::{
    RecvError, RecvTimeoutError, SendError, SendTimeoutError, TryRecvError, TrySendError,
};
pub use consumer::{Consumer, ReadChunk};
pub use error::RoleError;
pub use producer::{Producer, WriteChunk};

use crate::deadline::Deadline;
use crate::error::Fault;
use crate::queue::LIGHT;
use crate::segment::{become_known, forks, identify};
use crate::shareable::{
    Dead, Field, Layout, Plain, Shareable, WithCapacity, begin, mix_u64, slice_shareable,
};
use crate::shared::Shared;
use crate::sync::UnsafeCell;
use crate::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use crate::sync::atomic::{AtomicU32, AtomicU64, fence};
use crate::sys::hooks;
use crate::wait::signal::Signal;
use core::fmt;
use core::mem::{MaybeUninit, offset_of};
use core::ops::Deref;
use end::End;
use std::time::{Duration, Instant};

/// The largest capacity.
const MAX_CAPACITY: usize = u32::MAX as usize;

/// A bounded ring for one producer and one consumer, whose capacity is chosen when it is created.
///
/// First in, first out. [`producer`](Self::producer) and [`consumer`](Self::consumer) give its
/// ends, one of each at a time.
///
/// [`Shared::with_capacity`](crate::Shared::with_capacity) creates one for 1 to 4,294,967,295
/// messages. To embed one in a struct, see [`FixedRing`].
#[repr(C)]
#[doc(alias = "Pipe")]
#[doc(alias = "channel")]
pub struct Ring<T: Plain, S: ?Sized = [Slot<T>]> {
    tail: Line,
    head: Line,
    rare: Rare,
    /// `T` is in `S` only.
    _payload: core::marker::PhantomData<T>,
    slots: S,
}

/// A ring of `N` slots, to be embedded in a struct declared with [`shared!`](crate::shared).
///
/// Dereferences to [`Ring`], which has the verbs.
pub type FixedRing<T, const N: usize> = Ring<T, [Slot<T>; N]>;

/// One place for a message.
#[repr(transparent)]
#[derive(Debug)]
pub struct Slot<T>(UnsafeCell<MaybeUninit<T>>);

/// A position in a line of its own, and in that of its neighbour, which the CPU fetches with it.
#[repr(C, align(128))]
#[derive(Debug)]
struct Line(AtomicU64);

/// What is read by both and written rarely.
#[repr(C, align(128))]
#[derive(Debug)]
struct Rare {
    /// A message can be received. At most the consumer sleeps here.
    not_empty: Signal<LIGHT>,
    /// A slot is free. At most the producer sleeps here.
    not_full: Signal<LIGHT>,
    /// A role is free.
    vacant: Signal<LIGHT>,
    closed: AtomicU32,
    producer: Role,
    consumer: Role,
}

/// Who is one of the ends.
#[repr(C)]
#[derive(Debug)]
struct Role {
    word: AtomicU32,
    /// The count of deaths that the other end knows of.
    told: AtomicU32,
}

const OWNER: u32 = 0xfff;
/// The last owner died with the role.
const DIED: u32 = 1 << 12;
/// One death.
const DEATH: u32 = 1 << 13;
const DEATHS: u32 = !(DEATH - 1);

impl Role {
    fn new() -> Self {
        Role { word: AtomicU32::new(0), told: AtomicU32::new(0) }
    }

    /// Makes `tag` the owner, if there is none; whether the last one died.
    fn take(&self, tag: u32) -> Option<bool> {
        let free = |word: u32| (word & OWNER == 0).then_some(word & DEATHS | tag & OWNER);
        // One instruction: keeps I1. It comes after all that the last owner did.
        self.word.fetch_update(AcqRel, Acquire, free).ok().map(|word| word & DIED != 0)
    }

    /// Gives it up, if `tag` has it.
    fn give_up(&self, tag: u32) {
        let given = |word: u32| (word & OWNER == tag).then_some(word & DEATHS);
        self.word.fetch_update(AcqRel, Relaxed, given).ok();
    }

    /// The owner `tag` is dead: counted once, as it is the owner no more.
    fn bury(&self, tag: u32) {
        let mended =
            |word: u32| (word & OWNER == tag).then_some((word & DEATHS).wrapping_add(DEATH) | DIED);
        self.word.fetch_update(AcqRel, Relaxed, mended).ok();
    }
}

// SAFETY: slots are reached by one end at a time (I3), of which there is one each (I1), and `Plain`
// data may be used by any thread.
unsafe impl<T: Plain, S: ?Sized> Sync for Ring<T, S> {}
// SAFETY: a ring that nobody refers to is plain data.
unsafe impl<T: Plain, S: ?Sized> Send for Ring<T, S> {}

impl<T: Plain, const N: usize> FixedRing<T, N> {
    const FIELDS: [Field; 1] = {
        let offset = offset_of!(Self, slots);
        [Field { name: "slots", offset, count: N, layout: T::layout }]
    };

    /// An empty ring, to be moved into shared memory.
    ///
    /// A capacity of 0, or of more than 4,294,967,295, does not compile.
    #[must_use]
    #[expect(
        clippy::new_without_default,
        reason = "zero-filled memory is the default, and needs no value"
    )]
    pub fn new() -> Self {
        const { assert!(N > 0 && N <= MAX_CAPACITY, "a ring holds 1 to 4,294,967,295 messages") }
        Ring {
            tail: Line(AtomicU64::new(0)),
            head: Line(AtomicU64::new(0)),
            rare: Rare {
                not_empty: Signal::new(),
                not_full: Signal::new(),
                vacant: Signal::new(),
                closed: AtomicU32::new(0),
                producer: Role::new(),
                consumer: Role::new(),
            },
            _payload: core::marker::PhantomData,
            slots: core::array::from_fn(|_| Slot(UnsafeCell::new(MaybeUninit::uninit()))),
        }
    }
}

impl<T: Plain, const N: usize> Deref for FixedRing<T, N> {
    type Target = Ring<T>;
    #[inline(always)]
    fn deref(&self) -> &Ring<T> {
        self
    }
}

impl<T: Plain> Ring<T> {
    /// Becomes the producer. Never blocks.
    ///
    /// The role belongs to this process until the [`Producer`] is dropped or the process dies.
    ///
    /// # Errors
    /// [`RoleError::Taken`] if there is one, in this process or another (a dead one is one until
    /// its death is noticed: [`producer_timeout`](Self::producer_timeout) waits for that); if this
    /// process cannot become a peer.
    #[doc(alias = "try_producer")]
    pub fn producer(&self) -> Result<Producer<T, &Self>, RoleError> {
        Ok(Producer::new(take(self, None)?))
    }

    /// Becomes the producer, waiting at most `timeout` for the present one to go.
    ///
    /// # Errors
    /// [`RoleError::TimedOut`] if there still is one; if this process cannot become a peer.
    pub fn producer_timeout(&self, timeout: Duration) -> Result<Producer<T, &Self>, RoleError> {
        Ok(Producer::new(take(self, Some(Deadline::after(timeout)))?))
    }

    /// Becomes the producer, waiting until `deadline` at most for the present one to go.
    ///
    /// # Errors
    /// [`RoleError::TimedOut`] if there still is one; if this process cannot become a peer.
    pub fn producer_deadline(&self, deadline: Instant) -> Result<Producer<T, &Self>, RoleError> {
        Ok(Producer::new(take(self, Some(Deadline::at(deadline)))?))
    }

    /// Becomes the consumer. Never blocks.
    ///
    /// The role belongs to this process until the [`Consumer`] is dropped or the process dies.
    ///
    /// # Errors
    /// As [`producer`](Self::producer).
    #[doc(alias = "try_consumer")]
    pub fn consumer(&self) -> Result<Consumer<T, &Self>, RoleError> {
        Ok(Consumer::new(take(self, None)?))
    }

    /// Becomes the consumer, waiting at most `timeout` for the present one to go.
    ///
    /// # Errors
    /// [`RoleError::TimedOut`] if there still is one; if this process cannot become a peer.
    pub fn consumer_timeout(&self, timeout: Duration) -> Result<Consumer<T, &Self>, RoleError> {
        Ok(Consumer::new(take(self, Some(Deadline::after(timeout)))?))
    }

    /// Becomes the consumer, waiting until `deadline` at most for the present one to go.
    ///
    /// # Errors
    /// [`RoleError::TimedOut`] if there still is one; if this process cannot become a peer.
    pub fn consumer_deadline(&self, deadline: Instant) -> Result<Consumer<T, &Self>, RoleError> {
        Ok(Consumer::new(take(self, Some(Deadline::at(deadline)))?))
    }

    /// How many messages the ring can hold.
    #[must_use]
    #[inline(always)]
    pub fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// How many messages are in the ring. May change at any moment.
    #[must_use]
    #[doc(alias = "qsize")]
    pub fn len(&self) -> usize {
        let head = self.head.0.load(Acquire);
        let len = self.tail.0.load(Acquire).wrapping_sub(head);
        usize::try_from(len).unwrap_or(usize::MAX).min(self.capacity())
    }

    /// Whether there is nothing to receive. May change at any moment.
    #[must_use]
    #[doc(alias = "empty")]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether no slot is free. May change at any moment.
    #[must_use]
    #[doc(alias = "full")]
    pub fn is_full(&self) -> bool {
        self.len() == self.capacity()
    }

    /// How many messages were ever sent. A producer goes on with the message of that number.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.tail.0.load(Acquire)
    }

    /// How many messages were ever received. A consumer goes on with the message of that number.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.head.0.load(Acquire)
    }

    /// Closes the ring for good: nothing more can be sent; what is there can be received.
    ///
    /// Everybody who waits is woken. A message that is sent at the same moment by another thread
    /// may come to lie in the ring after the consumer was told that it is closed and empty; closing
    /// by the producer leaves no such doubt.
    pub fn close(&self) {
        become_known(core::ptr::from_ref(self).addr());
        self.rare.closed.store(1, Release);
        hooks::pause("queue: closed, and nobody is woken");
        self.wake_everybody();
    }

    /// Whether the ring is closed.
    #[must_use]
    #[inline(always)]
    pub fn is_closed(&self) -> bool {
        self.rare.closed.load(Acquire) != 0
    }

    #[inline(always)]
    fn identify(&self) -> Result<u32, Fault> {
        identify(core::ptr::from_ref(&self.tail).addr())
    }

    #[inline(always)]
    fn role(&self, sends: bool) -> &Role {
        if sends { &self.rare.producer } else { &self.rare.consumer }
    }

    fn signals(&self) -> [&Signal<LIGHT>; 3] {
        [&self.rare.not_empty, &self.rare.not_full, &self.rare.vacant]
    }

    fn wake_everybody(&self) {
        fence(SeqCst);
        self.signals().into_iter().for_each(Signal::wake_all);
    }

    /// Whether I2 holds, so that the ends have different slots.
    fn is_sound(&self) -> bool {
        let head = self.head.0.load(Acquire); // before `tail`, which may only have moved on meanwhile
        let len = self.tail.0.load(Acquire).wrapping_sub(head);
        len <= self.capacity() as u64 || self.head.0.load(Acquire) != head
    }

    fn mend(&self, dead: &Dead) {
        for role in [&self.rare.producer, &self.rare.consumer] {
            if dead.clean { role.give_up(dead.tag) } else { role.bury(dead.tag) }
        }
        // Also for a wake that died with its process after its commit.
        self.wake_everybody();
    }

    const BASE: u64 = mix_u64(begin::<FixedRing<T, 1>>(b"spsc::Ring 1"), T::FINGERPRINT);
}

/// Takes the role of the producer (`SENDS`) or of the consumer, waiting until `deadline` for the
/// present owner to go. Without a deadline, it does not wait.
fn take<T: Plain, R: Deref<Target = Ring<T>>, const SENDS: bool>(
    ring: R,
    deadline: Option<Deadline>,
) -> Result<End<T, R, SENDS>, RoleError> {
    let forks = forks();
    let tag = ring.identify().map_err(RoleError::Failed)?;
    let role = ring.role(SENDS);
    let wait = || ring.rare.vacant.wait(deadline?, || role.take(tag)).ok();
    let late = if deadline.is_some() { RoleError::TimedOut } else { RoleError::Taken };
    let inherited = role.take(tag).or_else(wait).ok_or(late)?;
    Ok(End::new(ring, tag, forks, inherited))
}

/// Ends that keep the ring mapped, and may go to any thread.
impl<T: Plain> Shared<Ring<T>> {
    /// Becomes the producer, with an end that keeps the ring mapped. Never blocks.
    ///
    /// # Errors
    /// As [`Ring::producer`].
    pub fn producer(&self) -> Result<Producer<T>, RoleError> {
        Ok(Producer::new(take(self.clone(), None)?))
    }

    /// Becomes the producer, with an end that keeps the ring mapped, waiting at most `timeout` for
    /// the present one to go.
    ///
    /// # Errors
    /// As [`Ring::producer_timeout`].
    pub fn producer_timeout(&self, timeout: Duration) -> Result<Producer<T>, RoleError> {
        Ok(Producer::new(take(self.clone(), Some(Deadline::after(timeout)))?))
    }

    /// Becomes the producer, with an end that keeps the ring mapped, waiting until `deadline` at
    /// most for the present one to go.
    ///
    /// # Errors
    /// As [`Ring::producer_deadline`].
    pub fn producer_deadline(&self, deadline: Instant) -> Result<Producer<T>, RoleError> {
        Ok(Producer::new(take(self.clone(), Some(Deadline::at(deadline)))?))
    }

    /// Becomes the consumer, with an end that keeps the ring mapped. Never blocks.
    ///
    /// # Errors
    /// As [`Ring::consumer`].
    pub fn consumer(&self) -> Result<Consumer<T>, RoleError> {
        Ok(Consumer::new(take(self.clone(), None)?))
    }

    /// Becomes the consumer, with an end that keeps the ring mapped, waiting at most `timeout` for
    /// the present one to go.
    ///
    /// # Errors
    /// As [`Ring::consumer_timeout`].
    pub fn consumer_timeout(&self, timeout: Duration) -> Result<Consumer<T>, RoleError> {
        Ok(Consumer::new(take(self.clone(), Some(Deadline::after(timeout)))?))
    }

    /// Becomes the consumer, with an end that keeps the ring mapped, waiting until `deadline` at
    /// most for the present one to go.
    ///
    /// # Errors
    /// As [`Ring::consumer_deadline`].
    pub fn consumer_deadline(&self, deadline: Instant) -> Result<Consumer<T>, RoleError> {
        Ok(Consumer::new(take(self.clone(), Some(Deadline::at(deadline)))?))
    }
}

// SAFETY: `repr(C)`; atomics, for which any bytes will do, and plain data that is checked before it
// is used; indices are each end's own and bounds-checked; no `Drop`, as `Plain` is `Copy`.
unsafe impl<T: Plain, const N: usize> Shareable for FixedRing<T, N> {
    const FINGERPRINT: u64 = mix_u64(Ring::<T>::BASE, N as u64);
    const NEEDS_PEERS: bool = true;
    crate::__sized_shareable!();
    fn layout() -> Layout {
        Layout::of::<Self>("FixedRing", const { &Self::FIELDS })
    }
    fn place(&self) {
        self.signals().into_iter().for_each(Signal::place);
    }
    fn recover(&self, dead: &Dead) {
        self.mend(dead);
    }
    fn is_sound(&self) -> bool {
        Ring::is_sound(self)
    }
}

// SAFETY: as above; the number of slots is the pointer's, which `at` got from the checked header.
unsafe impl<T: Plain> Shareable for Ring<T> {
    const FINGERPRINT: u64 = Ring::<T>::BASE;
    const NEEDS_PEERS: bool = true;
    fn layout() -> Layout {
        let (size, align) = (offset_of!(FixedRing<T, 1>, slots), Self::ALIGN);
        Layout { name: "Ring", size, align, fields: const { &FixedRing::<T, 1>::FIELDS } }
    }
    slice_shareable!(FixedRing<T, 1>, Slot<T>, MAX_CAPACITY);
    fn place(&self) {
        self.signals().into_iter().for_each(Signal::place);
    }
    fn recover(&self, dead: &Dead) {
        self.mend(dead);
    }
    fn is_sound(&self) -> bool {
        Ring::is_sound(self)
    }
}

impl<T: Plain> WithCapacity for Ring<T> {}

impl<T: Plain> fmt::Debug for Ring<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let owner = |role: &Role| role.word.load(Relaxed) & OWNER;
        f.debug_struct("Ring")
            .field("capacity", &self.capacity())
            .field("len", &self.len())
            .field("closed", &self.is_closed())
            .field("producer", &owner(&self.rare.producer))
            .field("consumer", &owner(&self.rare.consumer))
            .finish_non_exhaustive()
    }
}

impl<T: Plain, const N: usize> fmt::Debug for FixedRing<T, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
