//! Messages that nobody gets done: after so many deliveries they go to another queue.
//!
//! For messages of fixed size only: what a [`ByteQueue`](super::ByteQueue) holds has no count of deliveries (see [there](super::bytes)).
//!
//! # Death
//! A message is sent to the other queue first, and acknowledged here then. Killed between the two, it is in both: it comes back
//! here, and is buried once more by whoever gets it next. It is never lost, and what
//! is done with buried messages must bear to be done twice.
use super::{Delivery, Never, Queue, RecvError, RecvTimeoutError, TryRecvError, Undelivered};
use crate::deadline::Deadline;
use crate::shareable::Plain;
use std::time::{Duration, Instant};

impl<T: Plain> Queue<T> {
    /// As [`recv_ack`](Self::recv_ack), except that a message that was delivered `limit` times and not acknowledged is sent to
    /// `dead_letters` instead, and counts as done here.
    ///
    /// So a message that kills each worker does not go on for ever. Each is delivered once at least: a limit of 0 is one of 1. If the other queue is full or closed, the message is
    /// delivered all the same. Somebody who is killed while he buries a message may leave it in both queues.
    ///
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
    ///
    /// # Errors
    /// As [`recv_ack`](Self::recv_ack).
    pub fn recv_ack_or_bury(
        &self,
        limit: u32,
        dead_letters: &Queue<T>,
    ) -> Result<Delivery<'_, T>, RecvError> {
        let next = || self.deliver_until(Deadline::NEVER);
        Never::for_ever(Self::bury(limit, dead_letters, next))
    }

    /// As [`recv_ack_or_bury`](Self::recv_ack_or_bury), if a message and a cell for it are there. Never blocks.
    ///
    /// # Errors
    /// As [`try_recv_ack`](Self::try_recv_ack).
    pub fn try_recv_ack_or_bury(
        &self,
        limit: u32,
        dead_letters: &Queue<T>,
    ) -> Result<Delivery<'_, T>, TryRecvError> {
        let next = || Undelivered::at_once(self.deliver());
        Never::at_once(Self::bury(limit, dead_letters, next))
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
    ) -> Result<Delivery<'_, T>, RecvTimeoutError> {
        let deadline = Deadline::after(timeout);
        let next = || self.deliver_until(deadline);
        Never::in_time(Self::bury(limit, dead_letters, next))
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
    ) -> Result<Delivery<'_, T>, RecvTimeoutError> {
        let next = || self.deliver_until(Deadline::at(deadline));
        Never::in_time(Self::bury(limit, dead_letters, next))
    }

    pub(super) fn bury<'a>(
        limit: u32,
        dead_letters: &Queue<T>,
        next: impl Fn() -> Result<Option<Delivery<'a, T>>, Never>,
    ) -> Result<Option<Delivery<'a, T>>, Never> {
        // (Otherwise a queue that is its own other one would bury what it holds for ever.)
        let limit = limit.max(1);
        loop {
            let Some(delivery) = next()? else { return Ok(None) };
            if delivery.attempts() < limit || dead_letters.try_send(*delivery).is_err() {
                return Ok(Some(delivery));
            }
            delivery.ack().map_err(Never::Failed)?;
        }
    }
}
