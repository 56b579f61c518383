//! The receivers' end.
use super::kind::Deliver;
use super::{Channel, Kind};
use crate::deadline::Deadline;
use crate::error::Fault;
use crate::queue::bytes::{ByteQueue, Message, Store};
use crate::queue::ends::Hold;
use crate::queue::levels::Invalid;
use crate::queue::{NO_RECEIVERS, RecvFailure};
use crate::queue::{RecvError, RecvTimeoutError, TryRecvError};
use crate::shareable::Shareable;
use crate::shared::Shared;
use core::fmt;
use core::marker::PhantomData;
use core::ops::Deref;
use std::time::{Duration, Instant};

/// A handle of the receivers' end of a [`Channel`].
///
/// A clone is a further handle; each message goes to one of them. [`Shared::receiver`] makes a
/// handle that keeps the channel mapped, so that it can be a field of a struct
/// (`Receiver<Queue<u64>>`) and move to another thread. [`Channel::receiver`] makes one that
/// borrows the channel. In the child of a `fork`, a copied handle does nothing: the child takes its
/// own.
#[must_use = "the end is given up immediately if this is not kept"]
pub struct Receiver<C: Kind + ?Sized, H: Deref<Target = Channel<C>> = Shared<Channel<C>>> {
    hold: Hold,
    channel: H,
    kind: PhantomData<fn(&C)>,
}

impl<C: Kind + ?Sized, H: Deref<Target = Channel<C>>> Receiver<C, H> {
    /// Takes a handle that keeps `channel`, a pointer to the channel.
    ///
    /// # Errors
    /// As [`Channel::receiver`].
    pub fn of(channel: H) -> Result<Self, Fault> {
        Ok(Receiver { hold: channel.receivers.hold()?, channel, kind: PhantomData })
    }

    /// The pointer to the channel.
    #[cfg_attr(outlast_loom, expect(dead_code, reason = "no programs are started in the model"))]
    pub(crate) fn pointer(&self) -> &H {
        &self.channel
    }

    /// Has the process slot or stand-in `owner` hold the end as well.
    #[cfg_attr(outlast_loom, expect(dead_code, reason = "no programs are started in the model"))]
    pub(crate) fn hold_for(&self, owner: u32) -> Result<(), Fault> {
        self.hold.check()?;
        self.channel.receivers.hold_for(owner).map(drop)
    }

    /// Returns the channel.
    pub fn channel(&self) -> &Channel<C> {
        &self.channel
    }

    /// Receives a message, blocking until one is available. From a queue of several levels it
    /// receives the most urgent message, with its level.
    ///
    /// If the process is killed after `recv` has returned, the message is lost with it;
    /// [`recv_ack`](Self::recv_ack) prevents that.
    ///
    /// # Errors
    /// If the channel is empty, and closed or its last sender gone; if this process cannot become a
    /// peer; or if the message is no value of its type (it is consumed).
    #[inline]
    pub fn recv(&self) -> Result<C::Received, RecvError> {
        RecvFailure::for_ever(self.recv_until(Deadline::NEVER))
    }

    /// Like [`recv`](Self::recv), but never blocks.
    ///
    /// # Errors
    /// As [`recv`](Self::recv), and `Empty` if no message is available, or if none can come any
    /// more except from another receiver that is just receiving the last one.
    #[inline]
    pub fn try_recv(&self) -> Result<C::Received, TryRecvError> {
        RecvFailure::at_once(self.recv_now(Invalid::Consumed))
    }

    /// Like [`recv`](Self::recv), but blocks at most `timeout`.
    ///
    /// # Errors
    /// As [`recv`](Self::recv), and if it times out.
    pub fn recv_timeout(&self, timeout: Duration) -> Result<C::Received, RecvTimeoutError> {
        RecvFailure::in_time(self.recv_until(Deadline::after(timeout)))
    }

    /// Like [`recv`](Self::recv), but blocks until `deadline` at most. An available message is
    /// received even if `deadline` has passed.
    ///
    /// # Errors
    /// As [`recv_timeout`](Self::recv_timeout).
    pub fn recv_deadline(&self, deadline: Instant) -> Result<C::Received, RecvTimeoutError> {
        RecvFailure::in_time(self.recv_until(Deadline::at(deadline)))
    }

    /// Appends up to `max` messages to `buffer` and returns their number. Blocks only if the
    /// channel is empty.
    ///
    /// # Errors
    /// As [`recv`](Self::recv), if there is no message.
    pub fn recv_batch(
        &self,
        buffer: &mut Vec<C::Received>,
        max: usize,
    ) -> Result<usize, RecvError> {
        if max == 0 {
            return Ok(0);
        }
        let before = buffer.len();
        buffer.push(self.recv()?);
        buffer.extend(self.try_iter().take(max - 1));
        Ok(buffer.len() - before)
    }

    /// Iterates over the messages until none can come any more, and blocks until each is available.
    /// A `for` loop over `&receiver` does the same.
    ///
    /// A message that is no value of its type ends the iteration and is consumed: a later iteration
    /// continues behind it. [`recv`](Self::recv) reports it.
    ///
    /// ```
    /// use outlast::{Channel, Queue, Shared};
    ///
    /// let channel = Shared::<Channel<Queue<u64>>>::with_capacity(4)?;
    /// let receiver = channel.receiver()?;
    /// channel.sender()?.send_batch(&[7, 8])?; // and leaves
    /// let mut sum = 0;
    /// for message in &receiver {
    ///     sum += message;
    /// }
    /// assert_eq!(sum, 15);
    /// # Ok::<(), outlast::Error>(())
    /// ```
    pub fn iter(&self) -> Iter<'_, C, H> {
        Iter(self)
    }

    /// Iterates over the messages that are available, without blocking.
    ///
    /// It ends before a message that is no value of its type: the next `recv` reports that.
    pub fn try_iter(&self) -> impl Iterator<Item = C::Received> + '_ {
        core::iter::from_fn(|| self.recv_now(Invalid::Left).ok().flatten())
    }

    /// Returns `true` if both are handles of the same channel.
    pub fn same_channel(&self, other: &Self) -> bool {
        core::ptr::addr_eq(self.channel(), other.channel())
    }

    #[inline(always)]
    fn recv_now(&self, invalid: Invalid) -> Result<Option<C::Received>, RecvFailure> {
        self.hold.check().map_err(RecvFailure::Failed)?;
        match self.channel.queue.take(invalid) {
            Err(RecvFailure::Closed) => self.end_now(invalid),
            done => done,
        }
    }

    #[inline(always)]
    fn recv_until(&self, deadline: Deadline) -> Result<Option<C::Received>, RecvFailure> {
        self.hold.check().map_err(RecvFailure::Failed)?;
        match self.channel.queue.take_usual() {
            Ok(None) | Err(RecvFailure::Closed) => self.recv_slow(deadline),
            done => done,
        }
    }

    #[cold]
    #[inline(never)]
    fn end_now(&self, invalid: Invalid) -> Result<Option<C::Received>, RecvFailure> {
        let now = Deadline::after(Duration::ZERO);
        self.channel.receive_to_the_end(now, || self.channel.queue.take(invalid))
    }

    #[cold]
    #[inline(never)]
    fn recv_slow(&self, deadline: Deadline) -> Result<Option<C::Received>, RecvFailure> {
        self.channel.receive_to_the_end(deadline, || self.channel.queue.take_until(deadline))
    }
}

impl<C: Deliver + ?Sized, H: Deref<Target = Channel<C>>> Receiver<C, H> {
    /// Receives a message that counts as done only when it is acknowledged, blocking until one is
    /// available. See [`Queue::recv_ack`](crate::Queue::recv_ack).
    ///
    /// ```
    /// use outlast::{Channel, PriorityQueue, RecvError, Shared};
    ///
    /// type Jobs = Channel<PriorityQueue<u64, 2>>;
    /// let here = Shared::<Jobs>::with_capacity(16)?;
    /// let there = Shared::<Jobs>::from_fd(here.try_clone_fd()?)?; // as another process would
    /// let receiver = there.receiver()?;
    /// here.sender()?.send(1, 7)?; // and leaves
    /// drop(receiver.recv_ack()?); // not acknowledged: the message comes back
    /// let job = receiver.recv_ack()?;
    /// assert_eq!((*job, job.priority(), job.attempts()), (7, 1, 1));
    /// job.ack()?;
    /// assert_eq!(receiver.recv_ack().unwrap_err(), RecvError::Disconnected);
    /// # Ok::<(), outlast::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`recv`](Self::recv). While other processes hold deliveries that may come back, only a
    /// process that holds one itself is told that the last sender is gone; the others wait until
    /// these deliveries are acknowledged or come back.
    pub fn recv_ack(&self) -> Result<C::Delivery<'_>, RecvError> {
        RecvFailure::for_ever(self.deliver_until(Deadline::NEVER))
    }

    /// Like [`recv_ack`](Self::recv_ack), but never blocks.
    ///
    /// # Errors
    /// As [`try_recv`](Self::try_recv).
    pub fn try_recv_ack(&self) -> Result<C::Delivery<'_>, TryRecvError> {
        RecvFailure::at_once(self.deliver_now())
    }

    /// Like [`recv_ack`](Self::recv_ack), but blocks at most `timeout`.
    ///
    /// # Errors
    /// As [`recv_ack`](Self::recv_ack), and if it times out.
    pub fn recv_ack_timeout(&self, timeout: Duration) -> Result<C::Delivery<'_>, RecvTimeoutError> {
        RecvFailure::in_time(self.deliver_until(Deadline::after(timeout)))
    }

    /// Like [`recv_ack`](Self::recv_ack), but blocks until `deadline` at most.
    ///
    /// # Errors
    /// As [`recv_ack_timeout`](Self::recv_ack_timeout).
    pub fn recv_ack_deadline(
        &self,
        deadline: Instant,
    ) -> Result<C::Delivery<'_>, RecvTimeoutError> {
        RecvFailure::in_time(self.deliver_until(Deadline::at(deadline)))
    }

    pub(in crate::queue) fn deliver_now(&self) -> Result<Option<C::Delivery<'_>>, RecvFailure> {
        self.hold.check().map_err(RecvFailure::Failed)?;
        let now = Deadline::after(Duration::ZERO);
        self.channel.receive_to_the_end(now, || self.channel.queue.deliver_now())
    }

    pub(in crate::queue) fn deliver_until(
        &self,
        deadline: Deadline,
    ) -> Result<Option<C::Delivery<'_>>, RecvFailure> {
        self.hold.check().map_err(RecvFailure::Failed)?;
        self.channel.receive_to_the_end(deadline, || self.channel.queue.deliver_until(deadline))
    }
}

/// Messages of bytes, read in place.
impl<S: Store + ?Sized, H: Deref<Target = Channel<ByteQueue<S>>>> Receiver<ByteQueue<S>, H>
where
    ByteQueue<S>: Shareable,
{
    /// Receives a message to the end of `buffer` and returns its length. Blocks until a message is
    /// available.
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    pub fn recv_into(&self, buffer: &mut Vec<u8>) -> Result<usize, RecvError> {
        let message = self.recv_ref()?;
        buffer.extend_from_slice(&message);
        Ok(message.len())
    }

    /// Receives a message to be read in place, blocking until one is available.
    ///
    /// It is consumed when the [`Message`] is dropped. If the process is killed before, another
    /// receiver gets it; until then no other receiver is told that none can come.
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    #[inline]
    pub fn recv_ref(&self) -> Result<Message<'_>, RecvError> {
        RecvFailure::for_ever(self.message_until(Deadline::NEVER))
    }

    /// Like [`recv_ref`](Self::recv_ref), but never blocks.
    ///
    /// # Errors
    /// As [`try_recv`](Self::try_recv).
    #[inline]
    pub fn try_recv_ref(&self) -> Result<Message<'_>, TryRecvError> {
        self.hold.check().map_err(TryRecvError::Failed)?;
        RecvFailure::at_once(match self.channel.queue.view().claim_message() {
            Err(RecvFailure::Closed) => self.message_slow(Deadline::after(Duration::ZERO)),
            done => done,
        })
    }

    /// Like [`recv_ref`](Self::recv_ref), but blocks at most `timeout`.
    ///
    /// # Errors
    /// As [`recv_timeout`](Self::recv_timeout).
    pub fn recv_ref_timeout(&self, timeout: Duration) -> Result<Message<'_>, RecvTimeoutError> {
        RecvFailure::in_time(self.message_until(Deadline::after(timeout)))
    }

    /// Like [`recv_ref`](Self::recv_ref), but blocks until `deadline` at most.
    ///
    /// # Errors
    /// As [`recv_timeout`](Self::recv_timeout).
    pub fn recv_ref_deadline(&self, deadline: Instant) -> Result<Message<'_>, RecvTimeoutError> {
        RecvFailure::in_time(self.message_until(Deadline::at(deadline)))
    }

    #[inline(always)]
    fn message_until(&self, deadline: Deadline) -> Result<Option<Message<'_>>, RecvFailure> {
        self.hold.check().map_err(RecvFailure::Failed)?;
        match self.channel.queue.view().claim_message() {
            Ok(None) | Err(RecvFailure::Closed) => self.message_slow(deadline),
            done => done,
        }
    }

    #[cold]
    #[inline(never)]
    fn message_slow(&self, deadline: Deadline) -> Result<Option<Message<'_>>, RecvFailure> {
        let queue = self.channel.queue.view();
        self.channel.receive_to_the_end(deadline, || queue.recv_until(deadline))
    }
}

/// Iterates over messages by reference to a receiver: made by [`Receiver::iter`].
#[derive(Debug)]
pub struct Iter<'a, C: Kind + ?Sized, H: Deref<Target = Channel<C>>>(&'a Receiver<C, H>);

impl<C: Kind + ?Sized, H: Deref<Target = Channel<C>>> Iterator for Iter<'_, C, H> {
    type Item = C::Received;
    fn next(&mut self) -> Option<C::Received> {
        self.0.recv().ok()
    }
}

impl<'a, C: Kind + ?Sized, H: Deref<Target = Channel<C>>> IntoIterator for &'a Receiver<C, H> {
    type Item = C::Received;
    type IntoIter = Iter<'a, C, H>;
    fn into_iter(self) -> Iter<'a, C, H> {
        self.iter()
    }
}

/// Iterates over messages and owns the receiver: made by `Receiver::into_iter`.
#[derive(Debug)]
pub struct IntoIter<C: Kind + ?Sized, H: Deref<Target = Channel<C>>>(Receiver<C, H>);

impl<C: Kind + ?Sized, H: Deref<Target = Channel<C>>> Iterator for IntoIter<C, H> {
    type Item = C::Received;
    fn next(&mut self) -> Option<C::Received> {
        self.0.recv().ok()
    }
}

impl<C: Kind + ?Sized, H: Deref<Target = Channel<C>>> IntoIterator for Receiver<C, H> {
    type Item = C::Received;
    type IntoIter = IntoIter<C, H>;
    fn into_iter(self) -> IntoIter<C, H> {
        IntoIter(self)
    }
}

impl<C: Kind + ?Sized, H: Deref<Target = Channel<C>> + Clone> Clone for Receiver<C, H> {
    /// Takes a further handle. If this process has a million handles already, there is no place
    /// for another one: all verbs of the clone then fail with [`Fault::TooManyPeers`].
    fn clone(&self) -> Self {
        let hold = self.channel.receivers.again(&self.hold);
        Receiver { hold, channel: self.channel.clone(), kind: PhantomData }
    }
}

impl<C: Kind + ?Sized, H: Deref<Target = Channel<C>>> Drop for Receiver<C, H> {
    fn drop(&mut self) {
        self.channel.give_back(&self.hold, NO_RECEIVERS);
    }
}

impl<C: Kind + ?Sized, H: Deref<Target = Channel<C>>> fmt::Debug for Receiver<C, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Receiver").field(&self.channel()).finish()
    }
}
