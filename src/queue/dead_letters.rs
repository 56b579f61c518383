//! Dead letters: a message that was delivered too often goes to another queue.
//!
//! # Death
//! A receiver first sends the message to the other queue, and then acknowledges it here. If the
//! receiver is killed between the two, the message is in both queues, and the next receiver sends
//! it to the other queue once more. No message is lost. The process that reads dead letters must
//! expect to see one twice.
use super::bytes::{self, ByteQueue, Store};
use super::channel::kind::{AsPriorityQueue, AsQueue};
use super::{Channel, Delivery, PriorityQueue, Queue, Receiver, RecvFailure};
use super::{RecvError, RecvTimeoutError, TryRecvError};
use crate::deadline::Deadline;
use crate::error::Fault;
use crate::shareable::{Plain, Shareable};
use core::ops::Deref;
use std::time::{Duration, Instant};

/// A message that is to be acknowledged.
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

/// A queue that takes the messages that were delivered too often.
pub(super) trait DeadLetters<D> {
    /// Returns `false` if it is full or closed.
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

/// Gives the next message that was delivered less than `limit` times. Sends the others to
/// `dead_letters`.
pub(super) fn next_live<D: Counted>(
    limit: u32,
    dead_letters: &(impl DeadLetters<D> + ?Sized),
    next: impl Fn() -> Result<Option<D>, RecvFailure>,
) -> Result<Option<D>, RecvFailure> {
    // Otherwise a queue that is its own queue of dead letters would be an endless loop.
    let limit = limit.max(1);
    loop {
        let Some(delivery) = next()? else { return Ok(None) };
        if delivery.attempts() < limit || !dead_letters.take(&delivery) {
            return Ok(Some(delivery));
        }
        delivery.done().map_err(RecvFailure::Failed)?;
    }
}

/// For what delivers messages by `deliver_now` and `deliver_until`.
macro_rules! dead_letter_verbs {
    ($(#[$example:meta])* [$($generics:tt)*]
        $receiver:ty, $delivery:ty, $letters:ty $(where $($bounds:tt)+)?) => {
        impl<$($generics)*> $receiver $(where $($bounds)+)? {
            /// Like [`recv_ack`](Self::recv_ack), but sends a message that was delivered `limit`
            /// times without an acknowledgement to `dead_letters`, and acknowledges it here.
            ///
            /// A message that kills every worker therefore does not circulate for ever. Each
            /// message is delivered once at least: a limit of 0 means 1. If `dead_letters` is full
            /// or closed, the message is delivered all the same. A receiver that is killed while it
            /// moves a message may leave it in both queues.
            ///
            $(#[$example])*
            ///
            /// # Errors
            /// As [`recv_ack`](Self::recv_ack).
            pub fn recv_ack_or_dead_letter(
                &self,
                limit: u32,
                dead_letters: &$letters,
            ) -> Result<$delivery, RecvError> {
                let next = || self.deliver_until(Deadline::NEVER);
                RecvFailure::for_ever(next_live(limit, dead_letters, next))
            }

            /// As [`recv_ack_or_dead_letter`](Self::recv_ack_or_dead_letter), if a message and a
            /// cell for it are there. Never blocks.
            ///
            /// # Errors
            /// As [`try_recv_ack`](Self::try_recv_ack).
            pub fn try_recv_ack_or_dead_letter(
                &self,
                limit: u32,
                dead_letters: &$letters,
            ) -> Result<$delivery, TryRecvError> {
                RecvFailure::at_once(next_live(limit, dead_letters, || self.deliver_now()))
            }

            /// As [`recv_ack_or_dead_letter`](Self::recv_ack_or_dead_letter), waiting at most
            /// `timeout`.
            ///
            /// # Errors
            /// As [`recv_ack_timeout`](Self::recv_ack_timeout).
            pub fn recv_ack_or_dead_letter_timeout(
                &self,
                limit: u32,
                dead_letters: &$letters,
                timeout: Duration,
            ) -> Result<$delivery, RecvTimeoutError> {
                let deadline = Deadline::after(timeout);
                RecvFailure::in_time(next_live(limit, dead_letters, || self.deliver_until(deadline)))
            }

            /// As [`recv_ack_or_dead_letter`](Self::recv_ack_or_dead_letter), waiting until
            /// `deadline` at most.
            ///
            /// # Errors
            /// As [`recv_ack_deadline`](Self::recv_ack_deadline).
            pub fn recv_ack_or_dead_letter_deadline(
                &self,
                limit: u32,
                dead_letters: &$letters,
                deadline: Instant,
            ) -> Result<$delivery, RecvTimeoutError> {
                let deadline = Deadline::at(deadline);
                RecvFailure::in_time(next_live(limit, dead_letters, || self.deliver_until(deadline)))
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
    /// ```
    /// use outlast::{Channel, Queue, Shared};
    ///
    /// let here = Shared::<Channel<Queue<u64>>>::with_capacity(4)?;
    /// let dead_letters = Shared::<Queue<u64>>::with_capacity(4)?;
    /// let (sender, receiver) = (here.sender()?, here.receiver()?);
    /// sender.send(666)?;
    /// sender.send(7)?;
    /// for _ in 0..2 {
    ///     let job = receiver.recv_ack_or_dead_letter(2, &dead_letters)?;
    ///     assert_eq!(*job, 666);
    ///     drop(job); // in vain: it comes back
    /// }
    /// assert_eq!(receiver.recv_ack_or_dead_letter(2, &dead_letters)?.ack()?, 7);
    /// assert_eq!(dead_letters.drain(), [666]);
    /// # Ok::<(), outlast::Error>(())
    /// ```
    [T: Plain, S: ?Sized, H: Deref<Target = Channel<Queue<T, S>>>]
    Receiver<Queue<T, S>, H>, Delivery<'_, T>, Queue<T> where Queue<T, S>: AsQueue<T>
}

dead_letter_verbs! {
    /// ```
    /// use outlast::{PriorityQueue, Queue, Shared};
    ///
    /// let jobs = Shared::<PriorityQueue<u64, 2>>::with_capacity(16)?;
    /// let there = Shared::<PriorityQueue<u64, 2>>::from_fd(jobs.try_clone_fd()?)?; // as another process would
    /// let dead_letters = Shared::<Queue<u64>>::with_capacity(16)?;
    /// jobs.send(1, 666)?;
    /// drop(there.recv_ack()?); // it fails
    /// drop(there.recv_ack()?); // and again
    /// jobs.send(0, 7)?;
    /// assert_eq!(*there.recv_ack_or_dead_letter(2, &dead_letters)?, 7);
    /// assert_eq!(dead_letters.recv()?, 666); // without its level
    /// # Ok::<(), outlast::Error>(())
    /// ```
    [T: Plain, const LEVELS: usize] PriorityQueue<T, LEVELS>, Delivery<'_, T, LEVELS>, Queue<T>
}

dead_letter_verbs! {
    /// ```
    /// use outlast::{Channel, PriorityQueue, Queue, Shared};
    ///
    /// type Jobs = Channel<PriorityQueue<u64, 2>>;
    /// let here = Shared::<Jobs>::with_capacity(16)?;
    /// let there = Shared::<Jobs>::from_fd(here.try_clone_fd()?)?; // as another process would
    /// let dead_letters = Shared::<Queue<u64>>::with_capacity(16)?;
    /// let (sender, receiver) = (here.sender()?, there.receiver()?);
    /// sender.send(1, 666)?;
    /// drop(receiver.recv_ack()?); // it fails
    /// sender.send(0, 7)?;
    /// assert_eq!(*receiver.recv_ack_or_dead_letter(1, &dead_letters)?, 7);
    /// assert_eq!(dead_letters.recv()?, 666); // without its level
    /// # Ok::<(), outlast::Error>(())
    /// ```
    [T: Plain, const LEVELS: usize, S: ?Sized, H: Deref<Target = Channel<PriorityQueue<T, LEVELS, S>>>]
    Receiver<PriorityQueue<T, LEVELS, S>, H>, Delivery<'_, T, LEVELS>, Queue<T>
    where PriorityQueue<T, LEVELS, S>: AsPriorityQueue<T, LEVELS>
}

dead_letter_verbs! {
    /// ```
    /// use outlast::{ByteQueue, Shared};
    ///
    /// let jobs = Shared::<ByteQueue>::with_capacity(4096)?;
    /// let there = Shared::<ByteQueue>::from_fd(jobs.try_clone_fd()?)?; // as another process would
    /// let dead_letters = Shared::<ByteQueue>::with_capacity(4096)?;
    /// jobs.send(b"kills")?;
    /// drop(there.recv_ack()?); // it fails
    /// jobs.send(b"works")?;
    /// assert_eq!(&*there.recv_ack_or_dead_letter(1, &*dead_letters)?, b"works");
    /// assert_eq!(dead_letters.recv()?, b"kills");
    /// # Ok::<(), outlast::Error>(())
    /// ```
    [S: Store + ?Sized]
    ByteQueue<S>, bytes::Delivery<'_>, ByteQueue<impl Store + ?Sized>
}

dead_letter_verbs! {
    /// ```
    /// use outlast::{ByteQueue, Channel, Shared};
    ///
    /// let here = Shared::<Channel<ByteQueue>>::with_capacity(4096)?;
    /// let there = Shared::<Channel<ByteQueue>>::from_fd(here.try_clone_fd()?)?; // as another process would
    /// let dead_letters = Shared::<ByteQueue>::with_capacity(4096)?;
    /// let (sender, receiver) = (here.sender()?, there.receiver()?);
    /// sender.send(b"kills")?;
    /// drop(receiver.recv_ack()?); // it fails
    /// sender.send(b"works")?;
    /// assert_eq!(&*receiver.recv_ack_or_dead_letter(1, &*dead_letters)?, b"works");
    /// assert_eq!(dead_letters.recv()?, b"kills");
    /// # Ok::<(), outlast::Error>(())
    /// ```
    [S: Store + ?Sized, H: Deref<Target = Channel<ByteQueue<S>>>]
    Receiver<ByteQueue<S>, H>, bytes::Delivery<'_>, ByteQueue<impl Store + ?Sized>
    where ByteQueue<S>: Shareable
}
