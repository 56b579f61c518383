//! Messages that nobody gets done: after so many deliveries they go to another queue.
//!
//! For messages of fixed size only: what a [`ByteQueue`](super::ByteQueue) holds has no count of
//! deliveries (see [there](super::bytes)).
//!
//! # Death
//! A message is sent to the other queue first, and acknowledged here then. Killed between the two,
//! it is in both: it comes back here, and is buried once more by whoever gets it next. It is never
//! lost, and what is done with buried messages must bear to be done twice.
use super::channel::Channel;
use super::channel::priority::{PriorityChannel, PriorityReceiver};
use super::{Delivery, Never, PriorityQueue, Queue, Receiver, priority};
use super::{RecvError, RecvTimeoutError, TryRecvError};
use crate::deadline::Deadline;
use crate::error::Fault;
use crate::shareable::Plain;
use core::ops::Deref;
use std::time::{Duration, Instant};

/// A message that is to be acknowledged.
trait Counted: Deref {
    fn attempts(&self) -> u32;
    fn done(self) -> Result<(), Fault>;
}

impl<T: Plain> Counted for Delivery<'_, T> {
    fn attempts(&self) -> u32 {
        self.attempts()
    }
    fn done(self) -> Result<(), Fault> {
        self.ack().map(drop)
    }
}

impl<T: Plain> Counted for priority::Delivery<'_, T> {
    fn attempts(&self) -> u32 {
        self.attempts()
    }
    fn done(self) -> Result<(), Fault> {
        self.ack().map(drop)
    }
}

/// The next one that was not delivered `limit` times; the others are buried.
fn bury<D: Counted<Target: Plain>>(
    limit: u32,
    dead_letters: &Queue<D::Target>,
    next: impl Fn() -> Result<Option<D>, Never>,
) -> Result<Option<D>, Never> {
    // (Otherwise a queue that is its own other one would bury what it holds for ever.)
    let limit = limit.max(1);
    loop {
        let Some(delivery) = next()? else { return Ok(None) };
        if delivery.attempts() < limit || dead_letters.try_send(*delivery).is_err() {
            return Ok(Some(delivery));
        }
        delivery.done().map_err(Never::Failed)?;
    }
}

/// For what delivers messages by `deliver_now` and `deliver_until`.
macro_rules! buries {
    ($(#[$example:meta])* [$($generics:tt)*] $receiver:ty, $delivery:ty) => {
        impl<$($generics)*> $receiver {
            /// As [`recv_ack`](Self::recv_ack), except that a message that was delivered `limit`
            /// times and not acknowledged is sent to `dead_letters` instead, and counts as done
            /// here.
            ///
            /// So a message that kills each worker does not go on for ever. Each is delivered once
            /// at least: a limit of 0 is one of 1. If the other queue is full or closed, the
            /// message is delivered all the same. Somebody who is killed while he buries a message
            /// may leave it in both queues.
            ///
            $(#[$example])*
            ///
            /// # Errors
            /// As [`recv_ack`](Self::recv_ack).
            pub fn recv_ack_or_bury(
                &self,
                limit: u32,
                dead_letters: &Queue<T>,
            ) -> Result<$delivery, RecvError> {
                let next = || self.deliver_until(Deadline::NEVER);
                Never::for_ever(bury(limit, dead_letters, next))
            }

            /// As [`recv_ack_or_bury`](Self::recv_ack_or_bury), if a message and a cell for it are
            /// there. Never blocks.
            ///
            /// # Errors
            /// As [`try_recv_ack`](Self::try_recv_ack).
            pub fn try_recv_ack_or_bury(
                &self,
                limit: u32,
                dead_letters: &Queue<T>,
            ) -> Result<$delivery, TryRecvError> {
                Never::at_once(bury(limit, dead_letters, || self.deliver_now()))
            }

            /// As [`recv_ack_or_bury`](Self::recv_ack_or_bury), waiting at most `timeout`.
            ///
            /// # Errors
            /// As [`recv_ack_timeout`](Self::recv_ack_timeout).
            pub fn recv_ack_or_bury_timeout(
                &self,
                limit: u32,
                dead_letters: &Queue<T>,
                timeout: Duration,
            ) -> Result<$delivery, RecvTimeoutError> {
                let deadline = Deadline::after(timeout);
                Never::in_time(bury(limit, dead_letters, || self.deliver_until(deadline)))
            }

            /// As [`recv_ack_or_bury`](Self::recv_ack_or_bury), waiting until `deadline` at most.
            ///
            /// # Errors
            /// As [`recv_ack_deadline`](Self::recv_ack_deadline).
            pub fn recv_ack_or_bury_deadline(
                &self,
                limit: u32,
                dead_letters: &Queue<T>,
                deadline: Instant,
            ) -> Result<$delivery, RecvTimeoutError> {
                let deadline = Deadline::at(deadline);
                Never::in_time(bury(limit, dead_letters, || self.deliver_until(deadline)))
            }
        }
    };
}

buries! {
    /// ```
    /// use outlast::{Queue, Shared};
    ///
    /// let jobs = Shared::<Queue<u64>>::anonymous_queue(16)?;
    /// let there = Shared::<Queue<u64>>::from_fd(jobs.try_clone_fd()?)?; // as another process would
    /// let dead_letters = Shared::<Queue<u64>>::anonymous_queue(16)?;
    /// jobs.send(666)?;
    /// drop(there.recv_ack()?); // it fails
    /// drop(there.recv_ack()?); // and again
    /// jobs.send(7)?;
    /// assert_eq!(*there.recv_ack_or_bury(2, &dead_letters)?, 7);
    /// assert_eq!(dead_letters.recv()?, 666);
    /// # Ok::<(), outlast::Error>(())
    /// ```
    [T: Plain] Queue<T>, Delivery<'_, T>
}

buries! {
    /// ```
    /// use outlast::{Channel, Queue, Shared};
    ///
    /// let here = Shared::<Channel<u64>>::anonymous_channel(4)?;
    /// let dead_letters = Shared::<Queue<u64>>::anonymous_queue(4)?;
    /// let (sender, receiver) = (here.sender()?, here.receiver()?);
    /// sender.send(666)?;
    /// sender.send(7)?;
    /// for _ in 0..2 {
    ///     let job = receiver.recv_ack_or_bury(2, &dead_letters)?;
    ///     assert_eq!(*job, 666);
    ///     drop(job); // in vain: it comes back
    /// }
    /// assert_eq!(receiver.recv_ack_or_bury(2, &dead_letters)?.ack()?, 7);
    /// assert_eq!(dead_letters.drain(), [666]);
    /// # Ok::<(), outlast::Error>(())
    /// ```
    [T: Plain, C: Deref<Target = Channel<T>>] Receiver<T, C>, Delivery<'_, T>
}

buries! {
    /// ```
    /// use outlast::{PriorityQueue, Queue, Shared};
    ///
    /// let jobs = Shared::anonymous(PriorityQueue::<u64, 2, 16>::new())?;
    /// let there = Shared::<PriorityQueue<u64, 2, 16>>::from_fd(jobs.try_clone_fd()?)?; // as another process would
    /// let dead_letters = Shared::<Queue<u64>>::anonymous_queue(16)?;
    /// jobs.send(1, 666)?;
    /// drop(there.recv_ack()?); // it fails
    /// drop(there.recv_ack()?); // and again
    /// jobs.send(0, 7)?;
    /// assert_eq!(*there.recv_ack_or_bury(2, &dead_letters)?, 7);
    /// assert_eq!(dead_letters.recv()?, 666); // without its level
    /// # Ok::<(), outlast::Error>(())
    /// ```
    [T: Plain, const LEVELS: usize, const N: usize] PriorityQueue<T, LEVELS, N>, priority::Delivery<'_, T>
}

buries! {
    /// ```
    /// use outlast::{PriorityChannel, Queue, Shared};
    ///
    /// let here = Shared::anonymous(PriorityChannel::<u64, 2, 16>::new())?;
    /// let there = Shared::<PriorityChannel<u64, 2, 16>>::from_fd(here.try_clone_fd()?)?; // as another process would
    /// let dead_letters = Shared::<Queue<u64>>::anonymous_queue(16)?;
    /// let (sender, receiver) = (here.sender()?, there.receiver()?);
    /// sender.send(1, 666)?;
    /// drop(receiver.recv_ack()?); // it fails
    /// sender.send(0, 7)?;
    /// assert_eq!(*receiver.recv_ack_or_bury(1, &dead_letters)?, 7);
    /// assert_eq!(dead_letters.recv()?, 666); // without its level
    /// # Ok::<(), outlast::Error>(())
    /// ```
    [T: Plain, const LEVELS: usize, const N: usize, C: Deref<Target = PriorityChannel<T, LEVELS, N>>]
    PriorityReceiver<T, LEVELS, N, C>, priority::Delivery<'_, T>
}
