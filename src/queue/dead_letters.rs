//! Dead letters: a message that was delivered too often goes to another queue.
//!
//! # Death
//! A receiver first sends the message to the other queue, and then acknowledges it here. If the
//! receiver is killed between the two, the message is in both queues, and the next receiver sends
//! it to the other queue once more. No message is lost. The process that reads dead letters must
//! expect to see one twice.
use super::bytes::{self, ByteQueue, Store};
use super::channel::kind::AsLevels;
use super::{Channel, Delivery, Failure, PriorityQueue, Queue, Receiver};
use super::{RecvError, RecvTimeoutError, TryRecvError};
use crate::error::Fault;
use crate::shareable::{Plain, Shareable};
use core::ops::Deref;

/// A delivery that counts its attempts.
pub(super) trait Counted {
    fn attempts(&self) -> u32;
    fn done(self) -> Result<(), Fault>;
}

impl<T: Plain, const LEVELS: usize> Counted for Delivery<'_, T, LEVELS> {
    fn attempts(&self) -> u32 {
        self.attempts()
    }
    fn done(self) -> Result<(), Fault> {
        self.ack().map(drop)
    }
}

impl Counted for bytes::Delivery<'_> {
    fn attempts(&self) -> u32 {
        self.attempts()
    }
    fn done(self) -> Result<(), Fault> {
        self.ack()
    }
}

/// A queue for the messages of another queue that were delivered too often.
pub(super) trait DeadLetters<D> {
    /// Sends a copy of the message to this queue. Returns `false` if it is full or closed.
    fn take(&self, delivery: &D) -> bool;
}

impl<T: Plain, D: Deref<Target = T>> DeadLetters<D> for Queue<T> {
    fn take(&self, delivery: &D) -> bool {
        self.try_send(**delivery).is_ok()
    }
}

impl<S: Store + ?Sized> DeadLetters<bytes::Delivery<'_>> for ByteQueue<S> {
    fn take(&self, delivery: &bytes::Delivery<'_>) -> bool {
        self.try_send(delivery).is_ok()
    }
}

/// Returns the next message that was delivered less than `limit` times. Sends the messages before
/// it to `dead_letters`.
pub(super) fn next_live<D: Counted>(
    limit: u32,
    dead_letters: &(impl DeadLetters<D> + ?Sized),
    next: impl Fn() -> Result<D, Failure>,
) -> Result<D, Failure> {
    // With a limit of 0, a queue that is its own dead-letter queue would never deliver a message.
    let limit = limit.max(1);
    loop {
        let delivery = next()?;
        if delivery.attempts() < limit || !dead_letters.take(&delivery) {
            return Ok(delivery);
        }
        delivery.done()?;
    }
}

/// Writes the verb for a type with `deliver_until(deadline)`.
macro_rules! dead_letter_verbs {
    ($(#[$example:meta])* [$($generics:tt)*]
        $receiver:ty, $delivery:ty, $letters:ty $(where $($bounds:tt)+)?) => {
        impl<$($generics)*> $receiver $(where $($bounds)+)? {
            $crate::wait::verbs::verbs! {
                /// Like [`recv_ack`](Self::recv_ack), but sends a message that was delivered
                /// `limit` times without an acknowledgement to `dead_letters`, and acknowledges it
                /// here.
                ///
                /// Without this, a message that kills every worker would be delivered again and
                /// again. Each message is delivered at least once: a limit of 0 means 1. If
                /// `dead_letters` is full or closed, the message is delivered nevertheless. If a
                /// receiver is killed while it moves a message, the message may be in both queues.
                ///
                $(#[$example])*
                ///
                /// # Errors
                /// As [`recv_ack`](Self::recv_ack).
                pub fn recv_ack_or_dead_letter(&self, limit: u32, dead_letters: &$letters)
                    -> Result<$delivery, RecvError>
                    = |deadline| next_live(limit, dead_letters, || self.deliver_until(deadline));
                /// If a message is available, but there is no room for another delivery, returns
                /// [`TryRecvError::TooManyInFlight`].
                try_recv_ack_or_dead_letter -> Result<$delivery, TryRecvError>,
                    else Err(TryRecvError::Empty);
                /// If it times out while a message is available but there is no room for another
                /// delivery, returns [`RecvTimeoutError::TooManyInFlight`].
                recv_ack_or_dead_letter_timeout, recv_ack_or_dead_letter_deadline
                    -> Result<$delivery, RecvTimeoutError>, else Err(RecvTimeoutError::TimedOut);
            }
        }
    };
}
pub(super) use dead_letter_verbs;

super::dead_letters::dead_letter_verbs! {
    /// ```
    /// use outlast::{Queue, Shared};
    ///
    /// let jobs = Shared::<Queue<u64>>::with_capacity(16)?;
    /// let there = Shared::<Queue<u64>>::from_fd(jobs.try_clone_fd()?)?; // as another process would
    /// let dead_letters = Shared::<Queue<u64>>::with_capacity(16)?;
    /// jobs.send(666)?;
    /// drop(there.recv_ack()?); // it fails
    /// drop(there.recv_ack()?); // and again
    /// jobs.send(7)?;
    /// assert_eq!(*there.recv_ack_or_dead_letter(2, &dead_letters)?, 7);
    /// assert_eq!(dead_letters.recv()?, 666);
    /// # Ok::<(), outlast::Error>(())
    /// ```
    [T: Plain] Queue<T>, Delivery<'_, T>, Queue<T>
}

dead_letter_verbs! {
    /// A dead letter does not keep its level.
    [T: Plain, const LEVELS: usize] PriorityQueue<T, LEVELS>, Delivery<'_, T, LEVELS>, Queue<T>
}

dead_letter_verbs! {
    [S: Store + ?Sized] ByteQueue<S>, bytes::Delivery<'_>, ByteQueue<impl Store + ?Sized>
}

dead_letter_verbs! {
    /// ```
    /// use outlast::{Channel, Queue, Shared};
    ///
    /// let here = Shared::<Channel<Queue<u64>>>::with_capacity(4)?;
    /// // As another process would:
    /// let there = Shared::<Channel<Queue<u64>>>::from_fd(here.try_clone_fd()?)?;
    /// let dead_letters = Shared::<Queue<u64>>::with_capacity(4)?;
    /// let (sender, receiver) = (here.sender()?, there.receiver()?);
    /// sender.send_batch(&[666, 7])?;
    /// drop(receiver.recv_ack_or_dead_letter(1, &dead_letters)?); // it fails
    /// assert_eq!(receiver.recv_ack_or_dead_letter(1, &dead_letters)?.ack()?, 7);
    /// assert_eq!(dead_letters.drain(), [666]);
    /// # Ok::<(), outlast::Error>(())
    /// ```
    [T: Plain, S: ?Sized, H: Deref<Target = Channel<Queue<T, S>>>]
    Receiver<Queue<T, S>, H>, Delivery<'_, T>, Queue<T> where Queue<T, S>: AsLevels<T, 1>
}

dead_letter_verbs! {
    /// A dead letter does not keep its level.
    [T: Plain, const LEVELS: usize, S: ?Sized, H: Deref<Target = Channel<PriorityQueue<T, LEVELS, S>>>]
    Receiver<PriorityQueue<T, LEVELS, S>, H>, Delivery<'_, T, LEVELS>, Queue<T>
    where PriorityQueue<T, LEVELS, S>: AsLevels<T, LEVELS>
}

dead_letter_verbs! {
    [S: Store + ?Sized, H: Deref<Target = Channel<ByteQueue<S>>>]
    Receiver<ByteQueue<S>, H>, bytes::Delivery<'_>, ByteQueue<impl Store + ?Sized>
    where ByteQueue<S>: Shareable
}
