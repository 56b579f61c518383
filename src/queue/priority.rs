//! A queue of several levels: what is more urgent is received first.
//!
//! ```
//! use outlast::{PriorityQueue, Shared};
//!
//! let here = Shared::<PriorityQueue<u64, 3>>::with_capacity(16)?; // three levels for 16 messages each
//! let there = Shared::<PriorityQueue<u64, 3>>::from_fd(here.try_clone_fd()?)?; // as another process would
//! here.send(0, 7)?;
//! here.send(2, 8)?;
//! assert_eq!((there.recv()?, there.recv()?), ((2, 8), (0, 7)));
//! # Ok::<(), outlast::Error>(())
//! ```
//!
//! # Death
//! As that of [`Queue`](crate::Queue), of which it is the general case: `levels.rs` tells how it
//! works.
#![expect(unsafe_code, reason = "promises that the bytes may be shared")]
use super::error::{RecvFailure, SendFailure};
use super::levels::{FixedSlots, Invalid, Levels, queue_shareable, slots_for};
use super::{CLOSED, Delivery, IN_FLIGHT, Slot};
use super::{RecvError, RecvTimeoutError, TryRecvError};
use super::{SendError, SendTimeoutError, TrySendError};
use crate::deadline::Deadline;
use crate::error::Fault;
use crate::shareable::{
    Dead, Field, Layout, Plain, Shareable, WithCapacity, at_slice, begin, mix_u64,
};
use core::fmt;
use core::ops::Deref;
use core::ptr::NonNull;
use std::time::{Duration, Instant};

/// A bounded queue of `LEVELS` levels (1 to 32) whose capacity is chosen when it is created.
///
/// A message of a level with a larger number is received before any of a smaller one. Within a
/// level, first in, first out, with the exceptions of [`Queue`](crate::Queue). A receiver chooses
/// from the messages that were sent before it asks. A message behind one that is still being
/// written does not count yet. Each level has its own slots, so that urgent messages find room
/// among others.
///
/// [`Shared::with_capacity`](crate::Shared::with_capacity) creates one for 1 to 16,777,215 messages
/// of each level. To embed one in a struct, see [`FixedPriorityQueue`].
#[repr(transparent)]
pub struct PriorityQueue<T: Plain, const LEVELS: usize, S: ?Sized = [Slot<T>]> {
    pub(super) core: Levels<T, LEVELS, S>,
}

/// A queue of `LEVELS` levels of `N` slots each, to be embedded in a struct declared with
/// [`shared!`](crate::shared).
///
/// At most `ENTRIES` of its messages can be delivered and unacknowledged at a time. It dereferences
/// to [`PriorityQueue`], which has the verbs.
pub type FixedPriorityQueue<
    T,
    const LEVELS: usize,
    const N: usize,
    const ENTRIES: usize = IN_FLIGHT,
> = PriorityQueue<T, LEVELS, FixedSlots<T, LEVELS, N, ENTRIES>>;

impl<T: Plain, const LEVELS: usize, const N: usize, const ENTRIES: usize>
    FixedPriorityQueue<T, LEVELS, N, ENTRIES>
{
    /// An empty queue, to be moved into shared memory.
    ///
    /// Other than 1 to 32 levels, or a capacity of 0, do not compile.
    #[must_use]
    #[expect(
        clippy::new_without_default,
        reason = "zero-filled memory is the default, and needs no value"
    )]
    pub fn new() -> Self {
        PriorityQueue { core: Levels::new() }
    }
}

// ------------------------------------------------------------------ sending
impl<T: Plain, const LEVELS: usize> PriorityQueue<T, LEVELS> {
    /// Sends a message of level `priority`, blocking while no slot of that level is free.
    ///
    /// # Errors
    /// Gives the message back if the queue is closed, if this process cannot become a peer, or,
    /// with [`Fault::NoSuchLevel`], if there is no such level.
    #[doc(alias = "push")]
    #[doc(alias = "put")]
    #[inline]
    pub fn send(&self, priority: usize, message: T) -> Result<(), SendError<T>> {
        self.core.send_until(priority, message, Deadline::NEVER).map_err(SendFailure::for_ever)
    }

    /// Like [`send`](Self::send), but returns immediately if it would block.
    ///
    /// # Errors
    /// As [`send`](Self::send), and [`TrySendError::Full`] if it would block.
    #[doc(alias = "put_nowait")]
    #[inline]
    pub fn try_send(&self, priority: usize, message: T) -> Result<(), TrySendError<T>> {
        let pushed = self.core.push(priority, &message);
        pushed.map_err(|failure| SendFailure::at_once((message, failure)))
    }

    /// Like [`send`](Self::send), but blocks for at most `timeout`.
    ///
    /// # Errors
    /// As [`send`](Self::send), and [`SendTimeoutError::TimedOut`] if it times out.
    pub fn send_timeout(
        &self,
        priority: usize,
        message: T,
        timeout: Duration,
    ) -> Result<(), SendTimeoutError<T>> {
        let deadline = Deadline::after(timeout);
        self.core.send_until(priority, message, deadline).map_err(SendFailure::in_time)
    }

    /// Like [`send`](Self::send), but blocks until `deadline` at the latest. If that has passed, it
    /// still tries once.
    ///
    /// # Errors
    /// As [`send`](Self::send), and [`SendTimeoutError::TimedOut`] if it times out.
    pub fn send_deadline(
        &self,
        priority: usize,
        message: T,
        deadline: Instant,
    ) -> Result<(), SendTimeoutError<T>> {
        let deadline = Deadline::at(deadline);
        self.core.send_until(priority, message, deadline).map_err(SendFailure::in_time)
    }
}

// ---------------------------------------------------------------- receiving
impl<T: Plain, const LEVELS: usize> PriorityQueue<T, LEVELS> {
    /// Receives the most urgent message with its level, blocking until one is available.
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
    pub fn recv(&self) -> Result<(usize, T), RecvError> {
        self.core.take_usual().map_or_else(
            || RecvFailure::for_ever(self.core.take_until(Deadline::NEVER, Invalid::Consumed)),
            Ok,
        )
    }

    /// Like [`recv`](Self::recv), but returns immediately if it would block.
    ///
    /// # Errors
    /// As [`recv`](Self::recv), and [`TryRecvError::Empty`] if it would block.
    #[doc(alias = "get_nowait")]
    #[inline]
    pub fn try_recv(&self) -> Result<(usize, T), TryRecvError> {
        RecvFailure::at_once(self.core.take(Invalid::Consumed))
    }

    /// Like [`recv`](Self::recv), but blocks for at most `timeout`.
    ///
    /// # Errors
    /// As [`recv`](Self::recv), and [`RecvTimeoutError::TimedOut`] if it times out.
    pub fn recv_timeout(&self, timeout: Duration) -> Result<(usize, T), RecvTimeoutError> {
        RecvFailure::in_time(self.core.take_until(Deadline::after(timeout), Invalid::Consumed))
    }

    /// Like [`recv`](Self::recv), but blocks until `deadline` at the latest. If that has passed, it
    /// still tries once.
    ///
    /// # Errors
    /// As [`recv`](Self::recv), and [`RecvTimeoutError::TimedOut`] if it times out.
    pub fn recv_deadline(&self, deadline: Instant) -> Result<(usize, T), RecvTimeoutError> {
        RecvFailure::in_time(self.core.take_until(Deadline::at(deadline), Invalid::Consumed))
    }

    /// Receives the most urgent message, which must be acknowledged, blocking until one is
    /// available.
    ///
    /// As [`Queue::recv_ack`](crate::Queue::recv_ack). The messages of all levels that are
    /// unacknowledged count together.
    ///
    /// ```
    /// use outlast::{PriorityQueue, Shared};
    ///
    /// let here = Shared::<PriorityQueue<u64, 2>>::with_capacity(16)?;
    /// let there = Shared::<PriorityQueue<u64, 2>>::from_fd(here.try_clone_fd()?)?; // as another process would
    /// here.send(0, 1)?;
    /// here.send(1, 2)?;
    /// let urgent = there.recv_ack()?;
    /// assert_eq!((*urgent, urgent.priority()), (2, 1));
    /// urgent.ack()?;
    /// assert_eq!(there.len(), 1);
    /// # Ok::<(), outlast::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    pub fn recv_ack(&self) -> Result<Delivery<'_, T, LEVELS>, RecvError> {
        RecvFailure::for_ever(self.core.deliver_until(Deadline::NEVER))
    }

    /// Like [`recv_ack`](Self::recv_ack), but returns immediately if it would block.
    ///
    /// # Errors
    /// As [`recv_ack`](Self::recv_ack), and if it would block: [`TryRecvError::Empty`] without a
    /// message, [`TryRecvError::TooManyInFlight`] if too many are unacknowledged.
    pub fn try_recv_ack(&self) -> Result<Delivery<'_, T, LEVELS>, TryRecvError> {
        RecvFailure::at_once(self.core.deliver())
    }

    /// Like [`recv_ack`](Self::recv_ack), but blocks for at most `timeout`.
    ///
    /// # Errors
    /// As [`recv_ack`](Self::recv_ack), and if it times out: [`RecvTimeoutError::TimedOut`] without
    /// a message, [`RecvTimeoutError::TooManyInFlight`] if too many are unacknowledged.
    pub fn recv_ack_timeout(
        &self,
        timeout: Duration,
    ) -> Result<Delivery<'_, T, LEVELS>, RecvTimeoutError> {
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
    ) -> Result<Delivery<'_, T, LEVELS>, RecvTimeoutError> {
        RecvFailure::in_time(self.core.deliver_until(Deadline::at(deadline)))
    }

    /// Iterates over messages with their levels until the queue is closed and empty, or cannot be
    /// used, blocking for each.
    ///
    /// A message that is no value of the type ends the iteration and is consumed: a later iteration
    /// goes on behind it. [`recv`](Self::recv) reports it.
    pub fn iter(&self) -> impl Iterator<Item = (usize, T)> + '_ {
        let next = || self.core.take_until(Deadline::NEVER, Invalid::Consumed);
        core::iter::from_fn(move || next().ok().flatten())
    }

    /// Iterates over the messages that are there, without blocking.
    ///
    /// It ends before a message that is no value of the type: the next `recv` reports that.
    #[doc(alias = "drain")]
    pub fn try_iter(&self) -> impl Iterator<Item = (usize, T)> + '_ {
        core::iter::from_fn(|| self.core.take(Invalid::Left).ok().flatten())
    }
}

// --------------------------------------------------- state, join and closing
impl<T: Plain, const LEVELS: usize> PriorityQueue<T, LEVELS> {
    /// How many levels there are.
    #[must_use]
    pub fn levels(&self) -> usize {
        LEVELS
    }

    /// How many messages can be in one level at a time.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.core.capacity()
    }

    /// How many messages of all levels can be delivered and unacknowledged at a time.
    #[must_use]
    pub fn in_flight_capacity(&self) -> usize {
        self.core.entries().len()
    }

    /// How many messages are in all levels. As [`Queue::len`](crate::Queue::len).
    #[must_use]
    #[doc(alias = "qsize")]
    pub fn len(&self) -> usize {
        (0..LEVELS).map(|level| self.core.len(level)).sum()
    }

    /// How many messages are in level `priority`; none if there is no such level. As
    /// [`Queue::len`](crate::Queue::len).
    #[must_use]
    pub fn len_of(&self, priority: usize) -> usize {
        self.core.len(priority)
    }

    /// Whether there is nothing to receive. May change at any moment.
    #[must_use]
    #[doc(alias = "empty")]
    pub fn is_empty(&self) -> bool {
        self.core.is_empty()
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
    pub fn is_closed(&self) -> bool {
        self.core.has_ended(CLOSED)
    }
}

queue_shareable!(PriorityQueue [LEVELS] LEVELS, "PriorityQueue", b"PriorityQueue 2");

impl<T: Plain, const LEVELS: usize> PriorityQueue<T, LEVELS> {
    pub(super) fn deliver_now(&self) -> Result<Option<Delivery<'_, T, LEVELS>>, RecvFailure> {
        self.core.deliver()
    }
    pub(super) fn deliver_until(
        &self,
        deadline: Deadline,
    ) -> Result<Option<Delivery<'_, T, LEVELS>>, RecvFailure> {
        self.core.deliver_until(deadline)
    }
}
