//! A queue of several levels. More urgent messages are received first.
//!
//! ```
//! use outlast::{PriorityQueue, Shared};
//!
//! let here = Shared::<PriorityQueue<u64, 3>>::with_capacity(16)?; // 16 messages in each level
//! // As another process would:
//! let there = Shared::<PriorityQueue<u64, 3>>::from_fd(here.try_clone_fd()?)?;
//! here.send(0, 7)?;
//! here.send(2, 8)?;
//! assert_eq!((there.recv()?, there.recv()?), ((2, 8), (0, 7)));
//! # Ok::<(), outlast::Error>(())
//! ```
//!
//! # Death
//! As with a [`Queue`](crate::Queue), which is the case of one level.
#![expect(unsafe_code, reason = "promises that the bytes may be shared")]
// `levels.rs` says how a queue works.
use super::error::Failure;
use super::levels::{FixedSlots, Invalid, Levels, queue_shareable, slots_for};
use super::verbs::{QueueState as _, receiving, state};
use super::{Delivery, IN_FLIGHT, Slot};
use super::{RecvError, RecvTimeoutError, TryRecvError};
use super::{SendError, SendTimeoutError, TrySendError};
use crate::deadline::Deadline;
use crate::error::Fault;
use crate::shareable::{
    Dead, Field, Layout, Plain, Shareable, WithCapacity, at_slice, begin, mix_u64,
};
use crate::wait::verbs::verbs;
use core::fmt;
use core::ops::Deref;
use core::ptr::NonNull;

/// A bounded queue of `LEVELS` levels (1 to 32) whose capacity is chosen when it is created.
///
/// A message of a level with a larger number is received before any message of a smaller level.
/// Within a level, messages are received in the order in which they were sent, with the exceptions
/// of [`Queue`](crate::Queue).
///
/// A receiver chooses from the messages that were sent before its call. A message behind another
/// one that is still being written does not count yet. Each level has its own slots, so an urgent
/// message finds room even if the other levels are full.
///
/// [`Shared::with_capacity`](crate::Shared::with_capacity) creates one for 1 to 16,777,215 messages
/// of each level. To embed one in a struct, see [`FixedPriorityQueue`].
#[repr(transparent)]
pub struct PriorityQueue<T: Plain, const LEVELS: usize, S: ?Sized = [Slot<T>]> {
    pub(super) core: Levels<T, LEVELS, S>,
}

/// A [`PriorityQueue`] for `N` messages of each level, to be embedded in a struct declared with
/// [`shared!`](crate::shared).
///
/// At most `ENTRIES` messages can be delivered and unacknowledged at a time. The type dereferences
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
    /// Creates an empty queue, to be moved into shared memory.
    ///
    /// It compiles only for 1 to 32 levels, and for 1 to 16,777,215 messages of each level.
    #[must_use]
    #[expect(
        clippy::new_without_default,
        reason = "zero-filled memory is the default, and needs no value"
    )]
    pub fn new() -> Self {
        PriorityQueue { core: Levels::new() }
    }
}

impl<T: Plain, const LEVELS: usize> PriorityQueue<T, LEVELS> {
    verbs! {
        /// Sends a message of level `priority`, blocking while no slot of that level is free.
        ///
        /// # Errors
        /// Gives the message back if the queue is closed, if this process cannot become a peer, or,
        /// with [`Fault::NoSuchLevel`], if there is no such level.
        #[doc(alias = "push")]
        #[doc(alias = "put")]
        #[inline]
        pub fn send(&self, priority: usize, message: T) -> Result<(), SendError<T>>
            = |deadline| self.core.send_until(priority, message, deadline);
        #[doc(alias = "put_nowait")]
        #[inline]
        try_send -> Result<(), TrySendError<T>>, else Err(TrySendError::Full(message));
        send_timeout, send_deadline -> Result<(), SendTimeoutError<T>>,
            else Err(SendTimeoutError::TimedOut(message));
    }

    #[inline(always)]
    fn recv_until(&self, deadline: Deadline) -> Result<(usize, T), Failure> {
        self.core.take_until(deadline)
    }

    #[inline(always)]
    fn recv_valid(&self) -> Result<(usize, T), Failure> {
        self.core.take_now(Invalid::Left)
    }

    pub(super) fn deliver_until(
        &self,
        deadline: Deadline,
    ) -> Result<Delivery<'_, T, LEVELS>, Failure> {
        self.core.deliver_until(deadline)
    }

    /// Returns the number of levels.
    #[must_use]
    pub fn levels(&self) -> usize {
        LEVELS
    }

    /// Returns the number of messages of level `priority` that can be received, or 0 if there is no
    /// such level.
    #[must_use]
    pub fn len_of(&self, priority: usize) -> usize {
        self.core.len_of(priority)
    }
}

receiving! {
    impl [T: Plain, const LEVELS: usize] PriorityQueue<T, LEVELS>;
    invalid: "a message that is not a valid value of its type";
    /// Returns the most urgent message and its level.
    ///
    /// # Errors
    /// Fails if the queue is closed and empty, if this process cannot become a peer, or if the
    /// message is not a valid value of its type. Such a message is consumed.
    recv -> (usize, T);
    /// Delivers the most urgent message, as [`Queue::recv_ack`](crate::Queue::recv_ack) does. The
    /// unacknowledged messages of all levels count together.
    ///
    /// ```
    /// use outlast::{PriorityQueue, Shared};
    ///
    /// let here = Shared::<PriorityQueue<u64, 2>>::with_capacity(16)?;
    /// // As another process would:
    /// let there = Shared::<PriorityQueue<u64, 2>>::from_fd(here.try_clone_fd()?)?;
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
    recv_ack -> Delivery<'_, T, LEVELS>;
    iter;
}

state! {
    impl [T: Plain, const LEVELS: usize] PriorityQueue<T, LEVELS>;
    |queue| queue.core;
    /// Returns how many messages each level can hold at a time.
    capacity;
    /// Returns how many messages of all levels can be delivered and unacknowledged at a time.
    in_flight_capacity;
}

queue_shareable!(PriorityQueue [LEVELS] LEVELS, "PriorityQueue", b"PriorityQueue 2");
