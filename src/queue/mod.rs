//! A bounded queue for many producers and many consumers.
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
//! # Death
//! If a sender is killed before its `send` returns, the message may have been sent or not; nothing
//! is sent in part, and the others carry on. If a receiver is killed before its `recv` returns, the
//! message goes to another receiver. If it is killed later, the message is lost with it.
//!
//! Where that matters, receive with [`Queue::recv_ack`]: a message that is not acknowledged when
//! its receiver dies is delivered to another one, which sees one attempt more.
//!
//! How it works is told in `levels.rs`.
#![expect(unsafe_code, reason = "promises that the bytes may be shared")]

// # Counters
//
// How long each counter lasts at ten million operations a second, and what happens then. Those that
// come round are compared by distance, or for equality. `tests/counters.rs` takes each across its
// end.
//
// | counter | bits | lasts | then |
// |---|---|---|---|
// | lap of a slot, of `head` and `tail` | 40 | 30 hours, for a ring of one slot | comes round. A thread that stops before its claim, for exactly so many laps, claims out of order |
// | lap of a mark of a `ByteQueue` | 40 | 30 hours, for a ring of one block | comes round |
// | lap in a header of a `ByteQueue` | 25 | 3 seconds, for a ring of one block | comes round. Headers of 2^20 laps ago are wiped; a claim of a lap long gone is undone |
// | `returned`, `searched` | 64 | 58,000 years | - |
// | attempts of a message | 8 | 255 deliveries | stays at 255 |
// | uses of an entry of the in-flight table | 35 | 57 minutes | comes round; only its owner compares it |
// | takes of an end of a channel | 31 | 3 minutes | comes round. A look at the holders that lasts exactly so many takes may miss one |
// | handles in a cell of an end | 20 | 1,048,575 handles of a process | a further handle takes another cell; with 64 full ones it is refused |
// | positions of a `Ring` | 64 | 58,000 years | comes round if the capacity is a power of two; otherwise messages are lost |
// | deaths with a role of a `Ring` | 19 | 524,288 deaths | comes round. The other end is not told if it looked exactly so many deaths ago |
// | marks of a `Pipe` | 64 | 58,000 years | comes round: the number of blocks is a power of two |
// | positions of a `Journal` | 64 | 58,000 years | as those of a ring |
// | lap of a slot of a `Journal` | 50 | 3 years, for one record | comes round |
// | sequence of a `Signal` | 32 | 7 minutes of wakes | comes round. A thread that stops between its look and its sleep, for exactly so many wakes, sleeps on |
// | armings of a `Signal` | 31 | 3 minutes of sleeps | comes round. A wake that finds nobody, and stops for exactly so many, hides a sleeper |

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

pub use bytes::{ByteQueue, FixedByteQueue};
pub use channel::{Channel, Receiver, Sender};
pub use error::{
    RecvError, RecvTimeoutError, SendError, SendTimeoutError, TryRecvError, TrySendError,
};
pub use handles::{Delivery, Loan, Ref};
pub use in_flight::IN_FLIGHT;
pub use levels::FixedSlots;
pub use pipe::{Connection, FixedPipe, Pipe};
pub use priority::{FixedPriorityQueue, PriorityQueue};
pub use ring::Slot;
#[cfg(all(feature = "serde", not(outlast_loom)))]
pub use value::{FixedValueQueue, ValueDelivery, ValueError, ValueQueue};

use crate::deadline::Deadline;
use crate::error::Fault;
use crate::segment::forks;
use crate::shareable::{
    Dead, Field, Layout, Plain, Shareable, WithCapacity, at_slice, begin, mix_u64,
};
use crate::sync::atomic::AtomicU64;
use core::fmt;
use core::ops::Deref;
use core::ptr::NonNull;
use error::{RecvFailure, SendFailure, after_sent};
use levels::{Invalid, Levels, queue_shareable, slots_for};
use std::time::{Duration, Instant};

/// A bounded queue whose capacity is chosen when it is created.
///
/// First in, first out, except that a message whose receiver died, or gave it back, comes out of
/// order. Any number of processes and threads may send and receive.
///
/// [`Shared::with_capacity`](crate::Shared::with_capacity) creates one for 1 to 16,777,215
/// messages. To embed one in a struct, see [`FixedQueue`].
#[repr(transparent)]
#[doc(alias = "JoinableQueue")]
#[doc(alias = "channel")]
pub struct Queue<T: Plain, S: ?Sized = [Slot<T>]> {
    pub(in crate::queue) core: Levels<T, 1, S>,
}

/// A queue of `N` slots, to be embedded in a struct declared with [`shared!`](crate::shared).
///
/// At most `ENTRIES` of its messages can be delivered and unacknowledged at a time. It dereferences
/// to [`Queue`], which has the verbs.
pub type FixedQueue<T, const N: usize, const ENTRIES: usize = IN_FLIGHT> =
    Queue<T, FixedSlots<T, 1, N, ENTRIES>>;

/// A notifier pays for no fence.
const LIGHT: bool = true;

/// A hint in a line of its own.
#[repr(C, align(128))]
#[derive(Debug)]
struct Line(AtomicU64);

/// Of `ended`: nothing more can be sent.
const CLOSED: u32 = 1;
/// Of `ended`, for a [`Channel`]: senders are to ask whether anybody can receive.
const NO_RECEIVERS: u32 = 2;
/// Of `ended`, for a [`Channel`]: receivers that find nothing are to ask whether anybody can send.
const NO_SENDERS: u32 = 4;

impl<T: Plain, const N: usize, const ENTRIES: usize> FixedQueue<T, N, ENTRIES> {
    /// An empty queue, to be moved into shared memory.
    ///
    /// A capacity of 0, or of more than 16,777,215, does not compile.
    #[must_use]
    #[expect(
        clippy::new_without_default,
        reason = "zero-filled memory is the default, and needs no value"
    )]
    pub fn new() -> Self {
        Queue { core: Levels::new() }
    }
}

/// Keeps a forked child from what its parent holds: the parent may have given it to others.
#[inline(always)]
fn assert_ours(made_at: u32) {
    if made_at != forks() {
        not_ours();
    }
}

/// Refuses a type with invalid bit patterns, to be called at compile time where a value is reached
/// in shared memory: a peer can change its bytes after a check.
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
    /// Sends a message, blocking while no slot is free.
    ///
    /// # Errors
    /// Gives the message back if the queue is closed, or if this process cannot become a peer.
    #[doc(alias = "push")]
    #[doc(alias = "put")]
    #[inline]
    pub fn send(&self, message: T) -> Result<(), SendError<T>> {
        self.core.send_until(0, message, Deadline::NEVER).map_err(SendFailure::for_ever)
    }

    /// Like [`send`](Self::send), but returns immediately if it would block.
    ///
    /// # Errors
    /// As [`send`](Self::send), and [`TrySendError::Full`] if it would block.
    #[doc(alias = "try_push")]
    #[doc(alias = "put_nowait")]
    #[inline]
    pub fn try_send(&self, message: T) -> Result<(), TrySendError<T>> {
        self.core.push(0, &message).map_err(|failure| SendFailure::at_once((message, failure)))
    }

    /// Like [`send`](Self::send), but blocks for at most `timeout`.
    ///
    /// # Errors
    /// As [`send`](Self::send), and [`SendTimeoutError::TimedOut`] if it times out.
    pub fn send_timeout(&self, message: T, timeout: Duration) -> Result<(), SendTimeoutError<T>> {
        let deadline = Deadline::after(timeout);
        self.core.send_until(0, message, deadline).map_err(SendFailure::in_time)
    }

    /// Like [`send`](Self::send), but blocks until `deadline` at the latest. If that has passed, it
    /// still tries once.
    ///
    /// # Errors
    /// As [`send`](Self::send), and [`SendTimeoutError::TimedOut`] if it times out.
    pub fn send_deadline(&self, message: T, deadline: Instant) -> Result<(), SendTimeoutError<T>> {
        let deadline = Deadline::at(deadline);
        self.core.send_until(0, message, deadline).map_err(SendFailure::in_time)
    }

    /// Sends messages one after the other, blocking while no slot is free.
    ///
    /// # Errors
    /// As [`send`](Self::send), with the number of messages that were sent before.
    pub fn send_batch(&self, messages: &[T]) -> Result<(), SendError<usize>> {
        for (sent, message) in messages.iter().enumerate() {
            self.send(*message).map_err(|error| after_sent(error, sent))?;
        }
        Ok(())
    }

    /// Takes a free slot to be written in place, blocking until one is free.
    ///
    /// Only for types of which any bits are a value: before it is written, it holds the bytes of an
    /// earlier message.
    ///
    /// ```
    /// use outlast::{Queue, Shared};
    ///
    /// let here = Shared::<Queue<[u64; 128]>>::with_capacity(4)?;
    /// let there = Shared::<Queue<[u64; 128]>>::from_fd(here.try_clone_fd()?)?; // as another process would
    /// let mut loan = here.loan()?;
    /// loan.fill(7); // where it will be read
    /// loan.send()?;
    /// assert_eq!(there.recv_ref()?[127], 7);
    /// # Ok::<(), outlast::Error>(())
    /// ```
    ///
    /// # Errors
    /// If the queue is closed, or this process cannot become a peer.
    #[inline]
    pub fn loan(&self) -> Result<Loan<'_, T>, SendError<()>> {
        let lent = match self.core.try_loan(0) {
            Err(SendFailure::Full) => self.core.loan_until(0, Deadline::NEVER),
            lent => lent,
        };
        lent.map_err(|failure| SendFailure::for_ever(((), failure)))
    }

    /// Like [`loan`](Self::loan), but returns immediately if it would block.
    ///
    /// # Errors
    /// As [`loan`](Self::loan), and [`TrySendError::Full`] if it would block.
    #[inline]
    pub fn try_loan(&self) -> Result<Loan<'_, T>, TrySendError<()>> {
        self.core.try_loan(0).map_err(|failure| SendFailure::at_once(((), failure)))
    }
}

// ---------------------------------------------------------------- receiving
impl<T: Plain> Queue<T> {
    /// Receives a message, blocking until one is available.
    ///
    /// If this process is killed after `recv` has returned, the message is lost. Where that
    /// matters, see [`recv_ack`](Self::recv_ack).
    ///
    /// # Errors
    /// If the queue is closed and empty, if this process cannot become a peer, or if the message is
    /// no value of the type (it is consumed).
    #[doc(alias = "pop")]
    #[doc(alias = "get")]
    #[inline]
    pub fn recv(&self) -> Result<T, RecvError> {
        self.pop().map_or_else(
            || RecvFailure::for_ever(self.take_until(Deadline::NEVER, Invalid::Consumed)),
            Ok,
        )
    }

    /// Like [`recv`](Self::recv), but returns immediately if it would block.
    ///
    /// # Errors
    /// As [`recv`](Self::recv), and [`TryRecvError::Empty`] if it would block.
    #[doc(alias = "try_pop")]
    #[doc(alias = "get_nowait")]
    #[inline]
    pub fn try_recv(&self) -> Result<T, TryRecvError> {
        self.pop().map_or_else(|| RecvFailure::at_once(self.take(Invalid::Consumed)), Ok)
    }

    /// Like [`recv`](Self::recv), but blocks for at most `timeout`.
    ///
    /// # Errors
    /// As [`recv`](Self::recv), and [`RecvTimeoutError::TimedOut`] if it times out.
    pub fn recv_timeout(&self, timeout: Duration) -> Result<T, RecvTimeoutError> {
        RecvFailure::in_time(self.take_until(Deadline::after(timeout), Invalid::Consumed))
    }

    /// Like [`recv`](Self::recv), but blocks until `deadline` at the latest. If that has passed, it
    /// still tries once.
    ///
    /// # Errors
    /// As [`recv`](Self::recv), and [`RecvTimeoutError::TimedOut`] if it times out.
    pub fn recv_deadline(&self, deadline: Instant) -> Result<T, RecvTimeoutError> {
        RecvFailure::in_time(self.take_until(Deadline::at(deadline), Invalid::Consumed))
    }

    /// Receives a message that must be acknowledged, blocking until one is available.
    ///
    /// If this process is killed before it acknowledges the message, or drops the delivery, another
    /// receiver gets it. [`IN_FLIGHT`] messages of a queue can be unacknowledged at a time, or as
    /// many as its creator has chosen. Beyond that, `recv_ack` blocks until one is acknowledged.
    ///
    /// ```
    /// use outlast::{Queue, Shared};
    /// use std::time::Duration;
    ///
    /// let here = Shared::<Queue<u64>>::with_capacity(4)?;
    /// let there = Shared::<Queue<u64>>::from_fd(here.try_clone_fd()?)?; // as another process would
    /// here.send(7)?;
    /// drop(there.recv_ack()?); // not acknowledged
    /// let job = there.recv_ack()?;
    /// assert_eq!((*job, job.attempts()), (7, 1));
    /// assert!(!here.join_timeout(Duration::ZERO)?);
    /// job.ack()?;
    /// assert!(here.join_timeout(Duration::ZERO)?);
    /// # Ok::<(), outlast::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`recv`](Self::recv). A queue can be closed and empty while other processes hold
    /// deliveries that may come back: call [`join`](Self::join) before [`close`](Self::close).
    pub fn recv_ack(&self) -> Result<Delivery<'_, T>, RecvError> {
        RecvFailure::for_ever(self.core.deliver_until(Deadline::NEVER))
    }

    /// Like [`recv_ack`](Self::recv_ack), but returns immediately if it would block.
    ///
    /// # Errors
    /// As [`recv_ack`](Self::recv_ack), and if it would block: [`TryRecvError::Empty`] without a
    /// message, [`TryRecvError::TooManyInFlight`] if too many are unacknowledged.
    pub fn try_recv_ack(&self) -> Result<Delivery<'_, T>, TryRecvError> {
        RecvFailure::at_once(self.core.deliver())
    }

    /// Like [`recv_ack`](Self::recv_ack), but blocks for at most `timeout`.
    ///
    /// # Errors
    /// As [`recv_ack`](Self::recv_ack), and if it times out: [`RecvTimeoutError::TimedOut`] without
    /// a message, [`RecvTimeoutError::TooManyInFlight`] if too many are unacknowledged.
    pub fn recv_ack_timeout(&self, timeout: Duration) -> Result<Delivery<'_, T>, RecvTimeoutError> {
        RecvFailure::in_time(self.core.deliver_until(Deadline::after(timeout)))
    }

    /// Like [`recv_ack`](Self::recv_ack), but blocks until `deadline` at the latest. If that has
    /// passed, it still tries once.
    ///
    /// # Errors
    /// As [`recv_ack_timeout`](Self::recv_ack_timeout).
    pub fn recv_ack_deadline(
        &self,
        deadline: Instant,
    ) -> Result<Delivery<'_, T>, RecvTimeoutError> {
        RecvFailure::in_time(self.core.deliver_until(Deadline::at(deadline)))
    }

    /// Receives a message to be read in place, blocking until one is available.
    ///
    /// Only for types of which any bits are a value; others are copied and checked by
    /// [`recv`](Self::recv).
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    #[inline]
    pub fn recv_ref(&self) -> Result<Ref<'_, T>, RecvError> {
        const { assert_in_place::<T>() }
        RecvFailure::for_ever(match self.core.claim_ref() {
            Ok(None) => self.core.claim_ref_until(Deadline::NEVER),
            claimed => claimed,
        })
    }

    /// Like [`recv_ref`](Self::recv_ref), but returns immediately if it would block.
    ///
    /// # Errors
    /// As [`recv_ref`](Self::recv_ref), and [`TryRecvError::Empty`] if it would block.
    #[inline]
    pub fn try_recv_ref(&self) -> Result<Ref<'_, T>, TryRecvError> {
        const { assert_in_place::<T>() }
        RecvFailure::at_once(self.core.claim_ref())
    }

    /// Appends up to `max` messages to `buffer` and returns their number. Blocks only if the queue
    /// is empty.
    ///
    /// A batch ends before a message that is no value of the type: the next reception reports that.
    ///
    /// # Errors
    /// As [`recv`](Self::recv), if there is no message at all.
    pub fn recv_batch(&self, buffer: &mut Vec<T>, max: usize) -> Result<usize, RecvError> {
        if max == 0 {
            return Ok(0);
        }
        buffer.push(self.recv()?);
        let before = buffer.len();
        buffer.extend(self.try_iter().take(max - 1));
        Ok(1 + buffer.len() - before)
    }

    /// Iterates over messages until the queue is closed and empty, or cannot be used, blocking for
    /// each.
    ///
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
    ///
    /// A message that is no value of the type ends the iteration and is consumed: a later iteration
    /// goes on behind it. [`recv`](Self::recv) reports it.
    pub fn iter(&self) -> impl Iterator<Item = T> + '_ {
        let next = || self.take_until(Deadline::NEVER, Invalid::Consumed);
        core::iter::from_fn(move || self.pop().or_else(|| next().ok().flatten()))
    }

    /// Iterates over the messages that are there, without blocking.
    ///
    /// It ends before a message that is no value of the type: the next `recv` reports that.
    #[doc(alias = "drain")]
    pub fn try_iter(&self) -> impl Iterator<Item = T> + '_ {
        let next = || self.take(Invalid::Left).ok().flatten();
        core::iter::from_fn(move || self.pop().or_else(next))
    }

    /// Receives all messages that are there.
    #[must_use]
    pub fn drain(&self) -> Vec<T> {
        self.try_iter().collect()
    }

    #[inline(always)]
    fn pop(&self) -> Option<T> {
        self.core.take_usual().map(|(_, message)| message)
    }

    #[inline(always)]
    fn take(&self, invalid: Invalid) -> Result<Option<T>, RecvFailure> {
        self.core.take(invalid).map(|taken| taken.map(|(_, message)| message))
    }

    #[inline(always)]
    fn take_until(&self, deadline: Deadline, invalid: Invalid) -> Result<Option<T>, RecvFailure> {
        let taken = self.core.take_until(deadline, invalid);
        taken.map(|taken| taken.map(|(_, message)| message))
    }
}

// --------------------------------------------------- state, join and closing
impl<T: Plain> Queue<T> {
    /// How many messages can be in the queue at a time.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.core.capacity()
    }

    /// How many messages can be delivered and unacknowledged at a time.
    #[must_use]
    pub fn in_flight_capacity(&self) -> usize {
        self.core.entries().len()
    }

    /// How many messages are in the queue, without those that were delivered and are not
    /// acknowledged, or that came back. May change at any moment. Takes time in proportion.
    #[must_use]
    #[doc(alias = "qsize")]
    pub fn len(&self) -> usize {
        self.core.len(0)
    }

    /// Whether there is nothing to receive. May change at any moment.
    #[must_use]
    #[doc(alias = "empty")]
    pub fn is_empty(&self) -> bool {
        self.core.is_empty()
    }

    /// Whether no slot is free. May change at any moment.
    #[must_use]
    #[doc(alias = "full")]
    pub fn is_full(&self) -> bool {
        self.core.is_full(0)
    }

    /// Blocks until every message that was sent has been received and, where it was delivered by
    /// `recv_ack`, acknowledged.
    ///
    /// Work that a dead process held counts as undone until another process has acknowledged it.
    ///
    /// # Errors
    /// If this process cannot become a peer.
    pub fn join(&self) -> Result<(), Fault> {
        self.core.join_until(Deadline::NEVER).map(drop)
    }

    /// Like [`join`](Self::join), but blocks for at most `timeout`. Returns `Ok(false)` if it times
    /// out.
    ///
    /// # Errors
    /// As [`join`](Self::join).
    pub fn join_timeout(&self, timeout: Duration) -> Result<bool, Fault> {
        self.core.join_until(Deadline::after(timeout))
    }

    /// Like [`join`](Self::join), but blocks until `deadline` at the latest. Returns `Ok(false)` if
    /// it times out.
    ///
    /// # Errors
    /// As [`join`](Self::join).
    pub fn join_deadline(&self, deadline: Instant) -> Result<bool, Fault> {
        self.core.join_until(Deadline::at(deadline))
    }

    /// Closes the queue: nothing more can be sent, and the messages in it can be received.
    ///
    /// Every waiting thread is woken. A closed queue cannot be opened again.
    pub fn close(&self) {
        self.core.close();
    }

    /// Whether the queue is closed.
    #[must_use]
    #[inline(always)]
    pub fn is_closed(&self) -> bool {
        self.core.has_ended(CLOSED)
    }
}

queue_shareable!(Queue [] 1, "Queue", b"Queue 2");

impl<T: Plain> Queue<T> {
    fn deliver_now(&self) -> Result<Option<Delivery<'_, T>>, RecvFailure> {
        self.core.deliver()
    }
    fn deliver_until(&self, deadline: Deadline) -> Result<Option<Delivery<'_, T>>, RecvFailure> {
        self.core.deliver_until(deadline)
    }
}
