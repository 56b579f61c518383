//! Bounded queues for any number of senders and receivers, and their relatives.
//!
//! ```
//! use outlast::{Queue, Shared};
//!
//! let here = Shared::<Queue<u64>>::with_capacity(16)?;
//! let there = Shared::<Queue<u64>>::from_fd(here.try_clone_fd()?)?; // as another process would
//! here.send(7)?;
//! assert_eq!(there.recv()?, 7);
//!
//! // Work that must be done even if the worker is killed is acknowledged when it is done:
//! here.send(8)?;
//! let job = there.recv_ack()?;
//! assert_eq!((*job, job.attempts()), (8, 0));
//! job.ack()?;
//! # Ok::<(), outlast::Error>(())
//! ```
//!
//! # Which queue
//! | messages | type |
//! |---|---|
//! | plain data | [`Queue`] |
//! | plain data, the most urgent first | [`PriorityQueue`] |
//! | bytes of any length | [`ByteQueue`] |
//! | values of any type that `serde` can encode | `ValueQueue`, with the feature `serde` |
//! | any of these, if each side must learn that the other one is gone | a [`Channel`] of the queue |
//! | in both directions, between two sides | a [`Pipe`] |
//! | from one sender to one receiver, as fast as possible | a [`Ring`](spsc::Ring) |
//!
//! # Death
//! If a sender is killed before its `send` returns, the message is sent whole or not at all, and
//! the others carry on. If a receiver is killed before its `recv` returns, the message goes to
//! another receiver. If it is killed later, the message is lost with it.
//!
//! If no message may be lost, receive with [`Queue::recv_ack`]. If a receiver dies before it has
//! acknowledged a message, the message is delivered to another receiver, which sees one attempt
//! more.
#![expect(unsafe_code, reason = "promises that the bytes may be shared")]

// `levels.rs` says how a queue works.
//
// # Counters
//
// The table shows how long each counter lasts at ten million operations a second, and what happens
// then. Counters that wrap around are compared by distance, or for equality. `tests/counters.rs`
// takes each counter across its end.
//
// | counter | bits | lasts | then |
// |---|---|---|---|
// | lap of a slot, of `head` and `tail` | 40 | 30 hours, for a ring of one slot | wraps around. A thread that stops before its claim, for exactly so many laps, claims out of order |
// | lap of a mark of a `ByteQueue` | 40 | 30 hours, for a ring of one block | wraps around |
// | lap in a header of a `ByteQueue` | 25 | 3 seconds, for a ring of one block | wraps around. Headers of 2^20 laps ago are wiped. A claim of a lap that is long past is undone |
// | `returned`, `searched` | 64 | 58,000 years | - |
// | attempts of a message | 8 | 255 deliveries | stays at 255 |
// | uses of an entry of the in-flight table | 35 | 57 minutes | wraps around; only its owner compares it |
// | takes of an end of a channel | 31 | 3 minutes | wraps around. A look at the holders that lasts exactly so many takes may miss one |
// | handles in a cell of an end | 20 | 1,048,575 handles of a process | a further handle takes another cell; with 64 full ones it is refused |
// | positions of a `Ring` | 64 | 58,000 years | wraps around if the capacity is a power of two; otherwise messages are lost |
// | deaths with a role of a `Ring` | 19 | 524,288 deaths | wraps around. The other end is not told if it looked exactly so many deaths ago |
// | marks of a `Pipe` | 64 | 58,000 years | wraps around: the number of blocks is a power of two |
// | positions of a `Journal` | 64 | 58,000 years | as those of a ring |
// | lap of a slot of a `Journal` | 50 | 3 years, for one record | wraps around |
// | sequence of a `Signal` | 32 | 7 minutes of wakes | wraps around. A thread that stops between its look and its sleep, for exactly so many wakes, sleeps on |
// | armings of a `Signal` | 31 | 3 minutes of sleeps | wraps around. A wake that finds no sleeper, and stops for exactly so many, hides a later sleeper |

pub mod bytes;
pub mod channel;
mod dead_letters;
pub(crate) mod ends;
mod error;
mod handles;
mod in_flight;
mod levels;
pub mod pipe;
pub mod priority;
mod ring;
pub mod spsc;
#[cfg(all(feature = "serde", not(outlast_loom)))]
pub mod value;
mod verbs;

pub use bytes::{ByteQueue, FixedByteQueue};
pub use channel::{Channel, Receiver, Sender};
pub use error::{
    RecvError, RecvTimeoutError, SendError, SendTimeoutError, TryRecvError, TrySendError,
};
pub use handles::{Delivery, Loan, Ref};
pub use in_flight::IN_FLIGHT;
pub(crate) use levels::FixedSlots;
pub use pipe::{Connection, FixedPipe, Pipe};
pub use priority::{FixedPriorityQueue, PriorityQueue};
pub(crate) use ring::Slot;
#[cfg(all(feature = "serde", not(outlast_loom)))]
pub use value::{FixedValueQueue, ValueDelivery, ValueError, ValueQueue};

use crate::deadline::Deadline;
use crate::error::Fault;
use crate::segment::forks;
use crate::shareable::{
    Dead, Field, Layout, Plain, Shareable, WithCapacity, at_slice, begin, mix_u64,
};
use crate::sync::atomic::AtomicU64;
use crate::wait::verbs::verbs;
use core::fmt;
use core::ops::Deref;
use core::ptr::NonNull;
use error::Failure;
use levels::{Invalid, Levels, queue_shareable, slots_for};
use verbs::{QueueState as _, receiving, state};

/// A bounded queue whose capacity is chosen when it is created.
///
/// Messages are received in the order in which they were sent. A message whose receiver has died,
/// or has given it back, is received again, out of that order. Any number of processes and threads
/// may send and receive.
///
/// [`Shared::with_capacity`](crate::Shared::with_capacity) creates one for 1 to 16,777,215
/// messages. To embed one in a struct, see [`FixedQueue`].
#[repr(transparent)]
#[doc(alias = "JoinableQueue")]
#[doc(alias = "channel")]
pub struct Queue<T: Plain, S: ?Sized = [Slot<T>]> {
    pub(in crate::queue) core: Levels<T, 1, S>,
}

/// A [`Queue`] for `N` messages, to be embedded in a struct declared with
/// [`shared!`](crate::shared).
///
/// At most `ENTRIES` messages can be delivered and unacknowledged at a time. The type dereferences
/// to [`Queue`], which has the verbs.
pub type FixedQueue<T, const N: usize, const ENTRIES: usize = IN_FLIGHT> =
    Queue<T, FixedSlots<T, 1, N, ENTRIES>>;

/// The kind of `Signal` in all queues: a thread that notifies uses only a light fence.
const LIGHT: bool = true;

/// A hint, in a cache line of its own.
#[repr(C, align(128))]
#[derive(Debug)]
struct Line(AtomicU64);

/// A bit of `ended`: nothing more can be sent.
const CLOSED: u32 = 1;
/// A bit of `ended`, for a [`Channel`]: senders must look whether the receivers' end has holders.
const NO_RECEIVERS: u32 = 2;
/// A bit of `ended`, for a [`Channel`]: receivers that find no message must look whether the
/// senders' end has holders.
const NO_SENDERS: u32 = 4;

impl<T: Plain, const N: usize, const ENTRIES: usize> FixedQueue<T, N, ENTRIES> {
    /// Creates an empty queue, to be moved into shared memory.
    ///
    /// It compiles only for a capacity of 1 to 16,777,215 messages.
    #[must_use]
    #[expect(
        clippy::new_without_default,
        reason = "zero-filled memory is the default, and needs no value"
    )]
    pub fn new() -> Self {
        Queue { core: Levels::new() }
    }
}

/// Panics in a forked child that uses a handle of its parent. The parent may have given back what
/// the handle stands for.
#[inline(always)]
fn assert_ours(made_at: u32) {
    if made_at != forks() {
        not_ours();
    }
}

/// Refuses a type with invalid bit patterns. To be called at compile time, where a value is used in
/// shared memory: a peer could change its bytes after a check.
const fn assert_in_place<T: Plain>() {
    assert!(T::ANY_BITS, "a value in place may hold any bits: not for types with invalid values");
}

#[cold]
#[inline(never)]
fn not_ours() -> ! {
    panic!("{}", Fault::Forked)
}

// ------------------------------------------------------------------ sending
impl<T: Plain> Queue<T> {
    verbs! {
        /// Sends a message, blocking while no slot is free.
        ///
        /// # Errors
        /// Gives the message back if the queue is closed, or if this process cannot become a peer.
        #[doc(alias = "push")]
        #[doc(alias = "put")]
        #[inline]
        pub fn send(&self, message: T) -> Result<(), SendError<T>>
            = |deadline| self.core.send_until(0, message, deadline);
        #[doc(alias = "try_push")]
        #[doc(alias = "put_nowait")]
        #[inline]
        try_send -> Result<(), TrySendError<T>>, else Err(TrySendError::Full(message));
        send_timeout, send_deadline -> Result<(), SendTimeoutError<T>>,
            else Err(SendTimeoutError::TimedOut(message));

        /// Sends messages one after the other, blocking while no slot is free.
        ///
        /// # Errors
        /// As [`send`](Self::send). The error holds the number of messages that were sent before
        /// it.
        pub fn send_batch(&self, messages: &[T]) -> Result<(), SendError<usize>>
            = |deadline| send_each(messages, |message| self.core.send_until(0, message, deadline));
        try_send_batch -> Result<(), TrySendError<usize>>, else Err(TrySendError::Full(sent));
        send_batch_timeout, send_batch_deadline -> Result<(), SendTimeoutError<usize>>,
            else Err(SendTimeoutError::TimedOut(sent));

        /// Takes a free slot, to write a message in place, blocking until a slot is free.
        ///
        /// It compiles only for types for which any bits are a valid value: before the slot is
        /// written, it holds the bytes of an earlier message.
        ///
        /// ```
        /// use outlast::{Queue, Shared};
        ///
        /// let here = Shared::<Queue<[u64; 128]>>::with_capacity(4)?;
        /// // As another process would:
        /// let there = Shared::<Queue<[u64; 128]>>::from_fd(here.try_clone_fd()?)?;
        /// let mut loan = here.loan()?;
        /// loan.fill(7); // where it will be read
        /// loan.send()?;
        /// assert_eq!(there.recv_ref()?[127], 7);
        /// # Ok::<(), outlast::Error>(())
        /// ```
        ///
        /// # Errors
        /// Fails if the queue is closed, or this process cannot become a peer.
        #[inline]
        pub fn loan(&self) -> Result<Loan<'_, T>, SendError<()>>
            = |deadline| self.core.loan_until(0, deadline);
        #[inline]
        try_loan -> Result<Loan<'_, T>, TrySendError<()>>, else Err(TrySendError::Full(()));
        loan_timeout, loan_deadline -> Result<Loan<'_, T>, SendTimeoutError<()>>,
            else Err(SendTimeoutError::TimedOut(()));
    }
}

/// Sends messages until one fails. The error holds the number of messages before that one.
fn send_each<T: Plain>(
    messages: &[T],
    send: impl Fn(T) -> Result<(), (T, Failure)>,
) -> Result<(), (usize, Failure)> {
    let mut numbered = messages.iter().enumerate();
    numbered.try_for_each(|(sent, &message)| send(message).map_err(|(_, failure)| (sent, failure)))
}

// ---------------------------------------------------------------- receiving
receiving! {
    impl [T: Plain] Queue<T>;
    invalid: "a message that is not a valid value of its type";
    /// # Errors
    /// Fails if the queue is closed and empty, if this process cannot become a peer, or if the
    /// message is not a valid value of its type. Such a message is consumed.
    recv -> T;
    /// Up to [`in_flight_capacity`](Self::in_flight_capacity) messages can be unacknowledged at a
    /// time: [`IN_FLIGHT`], unless the creator of the queue has chosen another number. Beyond that,
    /// `recv_ack` blocks until a message is acknowledged.
    ///
    /// ```
    /// use outlast::{Queue, Shared};
    ///
    /// let here = Shared::<Queue<u64>>::with_capacity(4)?;
    /// let there = Shared::<Queue<u64>>::from_fd(here.try_clone_fd()?)?; // as another process would
    /// here.send(7)?;
    /// drop(there.recv_ack()?); // not acknowledged
    /// let job = there.recv_ack()?;
    /// assert_eq!((*job, job.attempts()), (7, 1));
    /// assert!(!here.try_join()?);
    /// job.ack()?;
    /// assert!(here.try_join()?);
    /// # Ok::<(), outlast::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`recv`](Self::recv). A queue can be closed and empty while other processes hold
    /// deliveries that may come back: call [`join`](Self::join) before [`close`](Self::close).
    recv_ack -> Delivery<'_, T>;
    /// ```
    /// use outlast::{Queue, Shared};
    ///
    /// let here = Shared::<Queue<u64>>::with_capacity(4)?;
    /// let there = Shared::<Queue<u64>>::from_fd(here.try_clone_fd()?)?; // as another process would
    /// here.send_batch(&[1, 2, 3])?;
    /// here.close();
    /// assert_eq!(there.iter().sum::<u64>(), 6);
    /// # Ok::<(), outlast::Error>(())
    /// ```
    iter;
}

impl<T: Plain> Queue<T> {
    verbs! {
        /// Receives a message to be read in place, blocking until one is available.
        ///
        /// The message is consumed when the [`Ref`] is dropped. If the process is killed before
        /// that, another receiver gets it.
        ///
        /// It compiles only for types for which any bits are a valid value. For other types, use
        /// [`recv`](Self::recv), which copies a message and checks the copy.
        ///
        /// # Errors
        /// As [`recv`](Self::recv).
        #[inline]
        pub fn recv_ref(&self) -> Result<Ref<'_, T>, RecvError>
            = |deadline| self.core.claim_ref_until(deadline);
        #[inline]
        try_recv_ref -> Result<Ref<'_, T>, TryRecvError>, else Err(TryRecvError::Empty);
        recv_ref_timeout, recv_ref_deadline -> Result<Ref<'_, T>, RecvTimeoutError>,
            else Err(RecvTimeoutError::TimedOut);
    }

    #[inline(always)]
    fn recv_until(&self, deadline: Deadline) -> Result<T, Failure> {
        self.core.take_until(deadline).map(|(_, message)| message)
    }

    #[inline(always)]
    fn recv_valid(&self) -> Result<T, Failure> {
        self.core.take_now(Invalid::Left).map(|(_, message)| message)
    }

    fn deliver_until(&self, deadline: Deadline) -> Result<Delivery<'_, T>, Failure> {
        self.core.deliver_until(deadline)
    }

    /// Returns `true` if no slot is free. The result may change at any moment.
    #[must_use]
    #[doc(alias = "full")]
    pub fn is_full(&self) -> bool {
        self.core.is_full(0)
    }
}

state! {
    impl [T: Plain] Queue<T>;
    |queue| queue.core;
    /// Returns how many messages the queue can hold at a time.
    capacity;
    /// Returns how many messages can be delivered and unacknowledged at a time.
    in_flight_capacity;
}

queue_shareable!(Queue [] 1, "Queue", b"Queue 2");
