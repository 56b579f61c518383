//! The receivers' end.
use super::Channel;
use crate::deadline::Deadline;
use crate::error::Fault;
use crate::queue::NO_RECEIVERS;
use crate::queue::ends::{Hold, Look, Sided as _};
use crate::queue::{Delivery, Invalid, RecvFailure};
use crate::queue::{RecvError, RecvTimeoutError, TryRecvError};
use crate::shareable::Plain;
use core::fmt;
use core::ops::Deref;
use std::time::{Duration, Instant};

/// A handle of the receivers' end of a [`Channel`].
///
/// Clones are further handles, and a message goes to one of them. Made by [`Channel::receiver`] it
/// borrows the channel; made by [`Shared::receiver`](crate::Shared::receiver) it keeps it, and can
/// move into a thread. In a process made by `fork` a copied one does nothing: the child makes its
/// own.
#[must_use = "the end is given up at once if this is not kept"]
pub struct Receiver<T: Plain, C: Deref<Target = Channel<T>>> {
    hold: Hold,
    channel: C,
}

impl<T: Plain, C: Deref<Target = Channel<T>>> Receiver<T, C> {
    /// A handle that keeps whatever leads to the channel.
    ///
    /// # Errors
    /// As [`Channel::receiver`].
    pub fn of(channel: C) -> Result<Self, Fault> {
        Ok(Receiver { hold: channel.receivers.hold()?, channel })
    }

    /// The channel.
    pub fn channel(&self) -> &Channel<T> {
        &self.channel
    }

    /// Receives a message, waiting for one as long as it takes.
    ///
    /// A process that is killed after `recv` has returned takes the message with it: where that
    /// matters, see [`recv_ack`](Self::recv_ack).
    ///
    /// # Errors
    /// If the channel is empty and closed, or the last sender gone, if this process cannot become a
    /// peer, or if what came out is no value of the type (it is consumed).
    #[inline]
    pub fn recv(&self) -> Result<T, RecvError> {
        RecvFailure::for_ever(self.pop_until(Deadline::NEVER, Invalid::Consumed))
    }

    /// Receives a message if there is one. Never blocks.
    ///
    /// # Errors
    /// As [`recv`](Self::recv), and if the channel is empty. For the moment in which another
    /// receives the last message that is what it gives, too, when nobody can send.
    #[inline]
    pub fn try_recv(&self) -> Result<T, TryRecvError> {
        RecvFailure::at_once(self.try_pop(Invalid::Consumed))
    }

    /// Receives a message, waiting for one at most `timeout`.
    ///
    /// # Errors
    /// As [`recv`](Self::recv), and if that takes too long.
    pub fn recv_timeout(&self, timeout: Duration) -> Result<T, RecvTimeoutError> {
        RecvFailure::in_time(self.pop_until(Deadline::after(timeout), Invalid::Consumed))
    }

    /// Receives a message, waiting for one until `deadline` at most. A message that is there is
    /// received even if that has passed.
    ///
    /// # Errors
    /// As [`recv_timeout`](Self::recv_timeout).
    pub fn recv_deadline(&self, deadline: Instant) -> Result<T, RecvTimeoutError> {
        RecvFailure::in_time(self.pop_until(Deadline::at(deadline), Invalid::Consumed))
    }

    /// As [`Queue::recv_ack`](crate::Queue::recv_ack).
    ///
    /// # Errors
    /// As [`recv`](Self::recv). While others hold deliveries that may come back, only a process
    /// that holds some itself is told that nobody is left to send; the others wait for what becomes
    /// of them.
    pub fn recv_ack(&self) -> Result<Delivery<'_, T>, RecvError> {
        RecvFailure::for_ever(self.deliver_until(Deadline::NEVER))
    }

    /// As [`recv_ack`](Self::recv_ack), if a message and a cell for it are there. Never blocks.
    ///
    /// # Errors
    /// As [`try_recv`](Self::try_recv).
    pub fn try_recv_ack(&self) -> Result<Delivery<'_, T>, TryRecvError> {
        RecvFailure::at_once(self.deliver_now())
    }

    /// As [`recv_ack`](Self::recv_ack), waiting at most `timeout`.
    ///
    /// # Errors
    /// As [`recv_timeout`](Self::recv_timeout).
    pub fn recv_ack_timeout(&self, timeout: Duration) -> Result<Delivery<'_, T>, RecvTimeoutError> {
        RecvFailure::in_time(self.deliver_until(Deadline::after(timeout)))
    }

    /// As [`recv_ack`](Self::recv_ack), waiting until `deadline` at most.
    ///
    /// # Errors
    /// As [`recv_timeout`](Self::recv_timeout).
    pub fn recv_ack_deadline(
        &self,
        deadline: Instant,
    ) -> Result<Delivery<'_, T>, RecvTimeoutError> {
        RecvFailure::in_time(self.deliver_until(Deadline::at(deadline)))
    }

    /// Appends at most `most` messages to `to`, waiting only for the first; how many it were.
    ///
    /// # Errors
    /// As [`recv`](Self::recv), if there is none at all.
    pub fn recv_batch(&self, to: &mut Vec<T>, most: usize) -> Result<usize, RecvError> {
        if most == 0 {
            return Ok(0);
        }
        to.push(self.recv()?);
        let before = to.len();
        to.extend(self.try_iter().take(most - 1));
        Ok(1 + to.len() - before)
    }

    /// Messages until nothing more can come, waiting for each. A `for` loop over `&receiver` does
    /// the same.
    ///
    /// A message that is no value of the type ends the iteration and is consumed: a later iteration
    /// goes on behind it. [`recv`](Self::recv) reports it.
    ///
    /// ```
    /// use outlast::{Channel, Shared};
    ///
    /// let channel = Shared::<Channel<u64>>::with_capacity(4)?;
    /// let receiver = channel.receiver()?;
    /// channel.sender()?.send_batch(&[7, 8])?; // and leaves
    /// let mut sum = 0;
    /// for message in &receiver {
    ///     sum += message;
    /// }
    /// assert_eq!(sum, 15);
    /// # Ok::<(), outlast::Error>(())
    /// ```
    pub fn iter(&self) -> Iter<'_, T, C> {
        Iter(self)
    }

    /// The messages that are there, without waiting.
    ///
    /// It ends before a message that is no value of the type: the next `recv` reports that.
    pub fn try_iter(&self) -> impl Iterator<Item = T> + '_ {
        core::iter::from_fn(|| self.try_pop(Invalid::Left).ok().flatten())
    }

    /// Whether both are handles of the same channel.
    pub fn same_channel(&self, other: &Self) -> bool {
        core::ptr::eq(self.channel(), other.channel())
    }

    #[inline(always)]
    fn try_pop(&self, invalid: Invalid) -> Result<Option<T>, RecvFailure> {
        self.hold.check().map_err(RecvFailure::Failed)?;
        match self.channel.queue.take(invalid) {
            Err(RecvFailure::Closed) => self.pop_slow(Deadline::after(Duration::ZERO), invalid),
            done => done,
        }
    }

    #[inline(always)]
    fn pop_until(&self, deadline: Deadline, invalid: Invalid) -> Result<Option<T>, RecvFailure> {
        self.hold.check().map_err(RecvFailure::Failed)?;
        self.channel
            .queue
            .pop()
            .map_or_else(|| self.pop_slow(deadline, invalid), |message| Ok(Some(message)))
    }

    #[cold]
    #[inline(never)]
    fn pop_slow(&self, deadline: Deadline, invalid: Invalid) -> Result<Option<T>, RecvFailure> {
        let queue = &self.channel.queue;
        self.to_the_end(deadline, || queue.take_until(deadline, invalid))
    }

    /// For iterators that wait. A message that is no value is consumed: left there, it would end
    /// each further loop as well.
    fn next_value(&self) -> Option<T> {
        self.pop_until(Deadline::NEVER, Invalid::Consumed).ok().flatten()
    }

    pub(in crate::queue) fn deliver_now(&self) -> Result<Option<Delivery<'_, T>>, RecvFailure> {
        self.hold.check().map_err(RecvFailure::Failed)?;
        self.to_the_end(Deadline::after(Duration::ZERO), || self.channel.queue.deliver_now())
    }

    pub(in crate::queue) fn deliver_until(
        &self,
        deadline: Deadline,
    ) -> Result<Option<Delivery<'_, T>>, RecvFailure> {
        self.hold.check().map_err(RecvFailure::Failed)?;
        self.to_the_end(deadline, || self.channel.queue.deliver_until(deadline))
    }

    /// `receive`, which gives `Closed` when it finds nothing and the senders' bit set, until it is
    /// clear what that means.
    fn to_the_end<R>(
        &self,
        deadline: Deadline,
        receive: impl Fn() -> Result<Option<R>, RecvFailure>,
    ) -> Result<Option<R>, RecvFailure> {
        let queue = &self.channel.queue;
        let look = Look {
            is_closed: &|| queue.is_closed(),
            is_quiet: &|| queue.identify().is_ok_and(|owner| queue.is_quiet(owner)),
            may_have_message: &|| queue.may_have_message(),
            arrived: &queue.shared.not_empty,
        };
        self.channel.to_the_end(look, deadline, receive)
    }
}

/// Receives until nothing more can come: made by [`Receiver::iter`].
#[derive(Debug)]
pub struct Iter<'a, T: Plain, C: Deref<Target = Channel<T>>>(&'a Receiver<T, C>);

impl<T: Plain, C: Deref<Target = Channel<T>>> Iterator for Iter<'_, T, C> {
    type Item = T;
    fn next(&mut self) -> Option<T> {
        self.0.next_value()
    }
}

impl<'a, T: Plain, C: Deref<Target = Channel<T>>> IntoIterator for &'a Receiver<T, C> {
    type Item = T;
    type IntoIter = Iter<'a, T, C>;
    fn into_iter(self) -> Iter<'a, T, C> {
        self.iter()
    }
}

/// Receives all, until nothing more can come: made by `Receiver::into_iter`.
#[derive(Debug)]
pub struct IntoIter<T: Plain, C: Deref<Target = Channel<T>>>(Receiver<T, C>);

impl<T: Plain, C: Deref<Target = Channel<T>>> Iterator for IntoIter<T, C> {
    type Item = T;
    fn next(&mut self) -> Option<T> {
        self.0.next_value()
    }
}

impl<T: Plain, C: Deref<Target = Channel<T>>> IntoIterator for Receiver<T, C> {
    type Item = T;
    type IntoIter = IntoIter<T, C>;
    fn into_iter(self) -> IntoIter<T, C> {
        IntoIter(self)
    }
}

impl<T: Plain, C: Deref<Target = Channel<T>> + Clone> Clone for Receiver<T, C> {
    /// A further handle. If there is no place for it, with a million of this process's already, all
    /// it gives is [`Fault::TooManyPeers`].
    fn clone(&self) -> Self {
        Receiver { hold: self.channel.receivers.again(&self.hold), channel: self.channel.clone() }
    }
}

impl<T: Plain, C: Deref<Target = Channel<T>>> Drop for Receiver<T, C> {
    fn drop(&mut self) {
        self.channel.give_back(&self.hold, NO_RECEIVERS);
    }
}

impl<T: Plain, C: Deref<Target = Channel<T>>> fmt::Debug for Receiver<T, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Receiver").field(&self.channel()).finish()
    }
}
