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
//! # Which type?
//! A [`Ring`] is the fastest queue of this crate. It has two *ends*: at any time at most one
//! [`Producer`] and one [`Consumer`], in any two processes or threads. Use a
//! [`Queue`](crate::Queue) if several threads send or several receive, or if messages must be
//! acknowledged. Use a [`Pipe`](crate::Pipe) for messages of any length, in both directions.
//!
//! # Death
//! If the producer's process is killed before the commit of `send`, nothing is sent. After it, the
//! message is sent. If the consumer's process is killed before the commit of `recv`, the message
//! stays in the ring. After it, the message is lost with the process.
//!
//! The end of a dead process is free again as soon as another process has noticed the death. A
//! successor continues after the last commit.
//!
//! The other end is told once of each death: a consumer when the ring is empty
//! ([`RecvError::PeerDied`]), a producer when the ring is full ([`SendError::PeerDied`]). If it
//! calls the verb again, it waits for the successor. It also waits, without an error, for an end
//! that was dropped, that no process has taken yet, or whose process has exited cleanly.
#![expect(unsafe_code, reason = "slots belong to one end at a time")]

// # How it works
//
// | word | meaning | written by |
// |---|---|---|
// | `tail` | number of messages ever sent | the producer; the store is the commit of `send` |
// | `head` | number of messages ever received | the consumer; the store is the commit of `recv` |
// | role of each end: {deaths: 19, died: 1, owner: 12 bits} | number of owners that died, whether the last owner died, the process that has the role (0: none) | the process that takes or drops the role; recovery |
// | `told` of each end | the count of deaths that the other end was told | the other end |
// | `closed` | nothing more can be sent | any process |
//
// Message number *n* is in slot *n* mod capacity.
//
// Invariants:
// - I1. The instruction that takes a role also names its owner. Only the owner gives the role up or
//   passes it on to a stand-in, or recovery takes the role away when the owner is dead.
// - I2. `head` <= `tail` <= `head` + capacity.
// - I3. The slots from `head` to `tail` belong to the consumer, the others to the producer. Neither
//   end touches the slots of the other.
// - I4. An end reports *closed* or *peer died* only if it looked again after it had seen that, and
//   found nothing.
//
// Ordering: `tail` is stored with Release and loaded with Acquire, so writes made before `send` are
// visible after the `recv` of that message. `head` gives slots back in the same way. Each end keeps
// its own position and the last known position of the other end in its own memory. It loads the
// other end's cache line only when that is used up. Every commit is followed by a light fence
// before the look whether the other end sleeps (see `signal.rs`). Without that fence, a sleep that
// begins at this moment would not be noticed. The sleeper pays for the heavy fence.

mod consumer;
mod end;
mod producer;

pub use super::{
    RecvError, RecvTimeoutError, SendError, SendTimeoutError, TryRecvError, TrySendError,
};
pub use consumer::{Consumer, ReadChunk};
pub use producer::{Producer, WriteChunk};

use crate::error::Fault;
use crate::queue::{LIGHT, Line};
use crate::segment::{become_known, identify};
use crate::shareable::{Dead, Field, Layout, Plain, Shareable, WithCapacity};
use crate::shareable::{begin, both_shareable, mix_u64};
use crate::shared::Shared;
use crate::sync::UnsafeCell;
use crate::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use crate::sync::atomic::{AtomicU32, AtomicU64, fence};
use crate::sys::hooks;
use crate::wait::signal::Signal;
use crate::wait::verbs::verbs;
use core::fmt;
use core::mem::{MaybeUninit, offset_of};
use core::ops::Deref;
use end::End;
use thiserror::Error;

/// The largest capacity.
const MAX_CAPACITY: usize = u32::MAX as usize;

/// A bounded ring for one producer and one consumer. Its capacity is chosen at creation.
///
/// Messages are received in the order in which they were sent. [`producer`](Self::producer) and
/// [`consumer`](Self::consumer) take the two ends. Each end has one owner at a time.
///
/// [`Shared::with_capacity`](crate::Shared::with_capacity) creates a ring for 1 to 4,294,967,295
/// messages. To embed one in a struct, see [`FixedRing`].
#[repr(C)]
#[doc(alias = "Pipe")]
#[doc(alias = "channel")]
pub struct Ring<T: Plain, S: ?Sized = [Slot<T>]> {
    tail: Line,
    head: Line,
    rare: Rare,
    /// `T` occurs only in `S`.
    _payload: core::marker::PhantomData<T>,
    slots: S,
}

/// A ring of `N` slots, to be embedded in a struct declared with [`shared!`](crate::shared).
///
/// It dereferences to [`Ring`], which has the methods.
pub type FixedRing<T, const N: usize> = Ring<T, [Slot<T>; N]>;

use slot::Slot;

/// `Slot` is public, because public types have it as a parameter, but nobody else can name it.
mod slot {
    use crate::sync::UnsafeCell;
    use core::mem::MaybeUninit;

    /// Room for one message.
    #[repr(transparent)]
    #[derive(Debug)]
    pub struct Slot<T>(pub(super) UnsafeCell<MaybeUninit<T>>);
}

/// What both ends read, and what is rarely written.
#[repr(C, align(128))]
#[derive(Debug)]
struct Rare {
    /// A message can be received. Only the consumer sleeps here.
    not_empty: Signal<LIGHT>,
    /// A slot is free. Only the producer sleeps here.
    not_full: Signal<LIGHT>,
    /// A role is free.
    vacant: Signal<LIGHT>,
    closed: AtomicU32,
    producer: Role,
    consumer: Role,
}

/// The role of the producer or of the consumer: which process has it.
#[repr(C)]
#[derive(Debug)]
struct Role {
    word: AtomicU32,
    /// The count of deaths that the other end was told.
    told: AtomicU32,
}

const OWNER: u32 = 0xfff;
/// The last owner died while it had the role.
const DIED: u32 = 1 << 12;
/// One death.
const DEATH: u32 = 1 << 13;
const DEATHS: u32 = !(DEATH - 1);

impl Role {
    fn new() -> Self {
        Role { word: AtomicU32::new(0), told: AtomicU32::new(0) }
    }

    /// Makes the process `tag` the owner if the role is free. Returns whether the last owner died.
    fn take(&self, tag: u32) -> Option<bool> {
        let taken = |word: u32| (word & OWNER == 0).then_some(word & DEATHS | tag & OWNER);
        // A single instruction keeps I1. Acquire: it comes after all that the last owner did.
        self.word.fetch_update(AcqRel, Acquire, taken).ok().map(|word| word & DIED != 0)
    }

    /// Takes the role away from `tag`, if that is the owner: because it gives the role up, or
    /// because it `died`. A death is counted once, as the dead process is the owner no longer.
    fn leave(&self, tag: u32, died: bool) {
        let deaths = |word: u32| match died {
            true => (word & DEATHS).wrapping_add(DEATH) | DIED,
            false => word & DEATHS,
        };
        let left = |word: u32| (word & OWNER == tag).then(|| deaths(word));
        self.word.fetch_update(AcqRel, Relaxed, left).ok();
    }

    /// Makes the process or stand-in `to` the owner in place of `from`. Returns `false` if `from`
    /// is not the owner.
    fn pass_on(&self, from: u32, to: u32) -> bool {
        let passed = |word: u32| (word & OWNER == from).then_some(word & !OWNER | to & OWNER);
        self.word.fetch_update(AcqRel, Acquire, passed).is_ok()
    }
}

// SAFETY: a slot is reached by one end at a time (I3), each end has one owner (I1), and any thread
// may use `Plain` data.
unsafe impl<T: Plain, S: ?Sized> Sync for Ring<T, S> {}
// SAFETY: a ring without references to it is plain data.
unsafe impl<T: Plain, S: ?Sized> Send for Ring<T, S> {}

impl<T: Plain, const N: usize> FixedRing<T, N> {
    const FIELDS: [Field; 1] = {
        let offset = offset_of!(Self, slots);
        [Field { name: "slots", offset, count: N, layout: T::layout }]
    };

    /// Creates an empty ring, to be moved into shared memory.
    ///
    /// A capacity of 0 or of more than 4,294,967,295 does not compile.
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

impl<T: Plain> Ring<T> {
    verbs! {
        /// Takes the end of the producer, blocking until it is free.
        ///
        /// The end belongs to this process until the [`Producer`] is dropped or the process dies.
        /// If a process with the end is killed, the end is free once another process has noticed
        /// the death. A thread that has the end itself would block for ever.
        ///
        /// # Errors
        /// If this process cannot become a peer.
        pub fn producer(&self) -> Result<Producer<T, &Self>, RoleError>
            = |deadline| End::take(self, deadline).map(Producer::new);
        try_producer -> Result<Producer<T, &Self>, RoleError>, else Err(RoleError::Taken);
        producer_timeout, producer_deadline -> Result<Producer<T, &Self>, RoleError>,
            else Err(RoleError::TimedOut);

        /// Takes the end of the consumer, blocking until it is free.
        ///
        /// The end belongs to this process until the [`Consumer`] is dropped or the process dies.
        /// If a process with the end is killed, the end is free once another process has noticed
        /// the death. A thread that has the end itself would block for ever.
        ///
        /// # Errors
        /// If this process cannot become a peer.
        pub fn consumer(&self) -> Result<Consumer<T, &Self>, RoleError>
            = |deadline| End::take(self, deadline).map(Consumer::new);
        try_consumer -> Result<Consumer<T, &Self>, RoleError>, else Err(RoleError::Taken);
        consumer_timeout, consumer_deadline -> Result<Consumer<T, &Self>, RoleError>,
            else Err(RoleError::TimedOut);
    }

    /// Returns the number of messages that the ring can hold.
    #[must_use]
    #[inline(always)]
    pub fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// Returns the number of messages in the ring. It may change at any moment.
    #[must_use]
    #[doc(alias = "qsize")]
    pub fn len(&self) -> usize {
        let head = self.head.0.load(Acquire);
        let len = self.tail.0.load(Acquire).wrapping_sub(head);
        usize::try_from(len).unwrap_or(usize::MAX).min(self.capacity())
    }

    /// Returns `true` if no message is in the ring. It may change at any moment.
    #[must_use]
    #[doc(alias = "empty")]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns `true` if no slot is free. It may change at any moment.
    #[must_use]
    #[doc(alias = "full")]
    pub fn is_full(&self) -> bool {
        self.len() == self.capacity()
    }

    /// Returns the number of messages ever sent. A producer continues with the message of that
    /// number.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.tail.0.load(Acquire)
    }

    /// Returns the number of messages ever received. A consumer continues with the message of that
    /// number.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.head.0.load(Acquire)
    }

    /// Closes the ring: nothing more can be sent, and the messages in it can be received.
    ///
    /// Every waiting thread is woken. A closed ring cannot be opened again. If another thread sends
    /// at the same moment, the message may be stored after the consumer was told that the ring is
    /// closed and empty. That cannot happen if the producer closes the ring.
    pub fn close(&self) {
        become_known(core::ptr::from_ref(self).addr());
        self.rare.closed.store(1, Release);
        hooks::pause("queue: closed, and nobody is woken");
        self.wake_everybody();
    }

    /// Returns `true` if the ring is closed.
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

    const BASE: u64 = mix_u64(begin::<FixedRing<T, 1>>(b"spsc::Ring 1"), T::FINGERPRINT);
}

/// Ends that keep the ring mapped, and can move to any thread.
impl<T: Plain> Shared<Ring<T>> {
    verbs! {
        /// Takes the end of the producer, blocking until it is free. The end keeps the ring mapped.
        ///
        /// # Errors
        /// As [`Ring::producer`].
        pub fn producer(&self) -> Result<Producer<T>, RoleError>
            = |deadline| End::take(self.clone(), deadline).map(Producer::new);
        try_producer -> Result<Producer<T>, RoleError>, else Err(RoleError::Taken);
        producer_timeout, producer_deadline -> Result<Producer<T>, RoleError>,
            else Err(RoleError::TimedOut);

        /// Takes the end of the consumer, blocking until it is free. The end keeps the ring mapped.
        ///
        /// # Errors
        /// As [`Ring::consumer`].
        pub fn consumer(&self) -> Result<Consumer<T>, RoleError>
            = |deadline| End::take(self.clone(), deadline).map(Consumer::new);
        try_consumer -> Result<Consumer<T>, RoleError>, else Err(RoleError::Taken);
        consumer_timeout, consumer_deadline -> Result<Consumer<T>, RoleError>,
            else Err(RoleError::TimedOut);
    }
}

/// Why an end of the ring was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RoleError {
    /// A process has it.
    #[error("this end of the ring is taken: `producer` and `consumer` wait until it is free")]
    Taken,
    /// A process kept it past the deadline.
    #[error("another process kept this end of the ring past the deadline")]
    TimedOut,
    /// The attempt failed.
    #[error("{0}")]
    Failed(#[source] Fault),
}

/// What both ends and their chunks have.
macro_rules! common_methods {
    ($($End:ident, $Chunk:ident, $name:literal;)*) => {$(
        impl<T: Plain, R: Deref<Target = Ring<T>>> $End<T, R> {
            /// Returns the ring.
            #[must_use]
            pub fn ring(&self) -> &Ring<T> {
                &self.end.ring
            }

            #[doc = concat!("Returns `true` if the ", $name, " before this one died.")]
            #[must_use]
            pub fn predecessor_died(&self) -> bool {
                self.end.predecessor_died
            }

            /// Closes the ring: see [`Ring::close`].
            pub fn close(&self) {
                self.end.ring.close();
            }
        }

        impl<T: Plain, R: Deref<Target = Ring<T>>> fmt::Debug for $End<T, R> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let mut all = f.debug_struct(stringify!($End));
                all.field("ring", &self.ring()).finish_non_exhaustive()
            }
        }

        impl<T: Plain, R: Deref<Target = Ring<T>>> $Chunk<'_, T, R> {
            /// Returns the number of slots.
            #[must_use]
            #[expect(
                clippy::len_without_is_empty,
                reason = "a chunk has a slot, unless none was asked for"
            )]
            pub fn len(&self) -> usize {
                self.len
            }
        }

        impl<T: Plain, R: Deref<Target = Ring<T>>> fmt::Debug for $Chunk<'_, T, R> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let mut all = f.debug_struct(stringify!($Chunk));
                all.field("len", &self.len).finish_non_exhaustive()
            }
        }
    )*};
}
common_methods! {
    Producer, WriteChunk, "producer";
    Consumer, ReadChunk, "consumer";
}

// SAFETY: `repr(C)`; atomics, for which any bytes are valid, and plain data that is checked before
// use; indices are each end's own and bounds-checked; no `Drop`, as `Plain` is `Copy`.
both_shareable! {
    [T: Plain,] Ring<T>, [N] FixedRing<T, N>, "Ring", FixedRing<T, 1>, Slot<T>, MAX_CAPACITY;
    fn place(&self) {
        self.signals().into_iter().for_each(Signal::place);
    }
    fn recover(&self, dead: &Dead) {
        self.rare.producer.leave(dead.tag, !dead.clean);
        self.rare.consumer.leave(dead.tag, !dead.clean);
        // In any case: the process may have died between a commit and its wake.
        self.wake_everybody();
    }
    // I2: no slot belongs to both ends.
    fn is_sound(&self) -> bool {
        let head = self.head.0.load(Acquire); // before `tail`, which may then only be further on
        let len = self.tail.0.load(Acquire).wrapping_sub(head);
        len <= self.capacity() as u64 || self.head.0.load(Acquire) != head
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
