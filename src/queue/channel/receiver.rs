//! The receivers' end of a channel.
use super::{Channel, Kind};
use crate::deadline::Deadline;
use crate::error::Fault;
use crate::queue::bytes::{ByteQueue, Ref, Store};
use crate::queue::ends::Hold;
use crate::queue::verbs::receiving;
use crate::queue::{Failure, NO_RECEIVERS};
use crate::queue::{RecvError, RecvTimeoutError, TryRecvError};
use crate::shareable::Shareable;
use crate::shared::Shared;
use crate::wait::verbs::verbs;
use core::fmt;
use core::marker::PhantomData;
use core::ops::Deref;

/// A handle of the receivers' end of a [`Channel`].
///
/// A clone is a further handle. Each message goes to one handle only.
///
/// [`Shared::receiver`] makes a handle that keeps the channel mapped, so it can be a field of a
/// struct (`Receiver<Queue<u64>>`) and move to another thread. [`Channel::receiver`] makes a handle
/// that borrows the channel. In the child of a `fork`, a copied handle is inert: the child must
/// take a handle of its own.
#[must_use = "the end is given up immediately if this is not kept"]
pub struct Receiver<C: Kind + ?Sized, H: Deref<Target = Channel<C>> = Shared<Channel<C>>> {
    hold: Hold,
    channel: H,
    kind: PhantomData<fn(&C)>,
}

impl<C: Kind + ?Sized, H: Deref<Target = Channel<C>>> Receiver<C, H> {
    /// Takes a handle of the receivers' end. The handle keeps `channel`, a pointer to the channel.
    ///
    /// # Errors
    /// As [`Channel::receiver`].
    pub fn of(channel: H) -> Result<Self, Fault> {
        Ok(Receiver { hold: channel.receivers.hold()?, channel, kind: PhantomData })
    }

    /// The pointer to the channel that this handle was made from.
    #[cfg_attr(outlast_loom, expect(dead_code, reason = "no programs are started in the model"))]
    pub(crate) fn pointer(&self) -> &H {
        &self.channel
    }

    /// Makes the process slot or stand-in `owner` a holder of the end as well.
    #[cfg_attr(outlast_loom, expect(dead_code, reason = "no programs are started in the model"))]
    pub(crate) fn hold_for(&self, owner: u32) -> Result<(), Fault> {
        self.hold.check()?;
        self.channel.receivers.hold_for(owner).map(drop)
    }

    /// Returns the channel.
    pub fn channel(&self) -> &Channel<C> {
        &self.channel
    }

    /// Iterates over messages, blocking for each one, until no further message can come. A `for`
    /// loop over `&receiver` does the same.
    ///
    /// A message that is not a valid value of its type ends the iteration and is consumed. A later
    /// iteration continues after it. [`recv`](Self::recv) reports such a message as an error.
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

    /// Returns `true` if both are handles of the same channel.
    pub fn same_channel(&self, other: &Self) -> bool {
        core::ptr::addr_eq(self.channel(), other.channel())
    }

    /// Receives with `receive`, which fails with `Closed` if there is no message and the senders'
    /// bit is set.
    #[inline(always)]
    fn receive<'a, R>(
        &'a self,
        deadline: Deadline,
        receive: impl Fn(&'a C) -> Result<R, Failure>,
    ) -> Result<R, Failure> {
        self.hold.check()?;
        match receive(&self.channel.queue) {
            Err(Failure::Closed) => self.receive_to_the_end(deadline, receive),
            done => done,
        }
    }

    #[cold]
    #[inline(never)]
    fn receive_to_the_end<'a, R>(
        &'a self,
        deadline: Deadline,
        receive: impl Fn(&'a C) -> Result<R, Failure>,
    ) -> Result<R, Failure> {
        self.channel.receive_to_the_end(deadline, || receive(&self.channel.queue))
    }

    #[inline(always)]
    fn recv_until(&self, deadline: Deadline) -> Result<C::Received, Failure> {
        self.hold.check()?;
        match self.channel.queue.take_usual() {
            Some(message) => Ok(message),
            None => self.receive(deadline, |queue| queue.take_until(deadline)),
        }
    }

    #[inline(always)]
    fn recv_valid(&self) -> Result<C::Received, Failure> {
        self.receive(Deadline::NOW, C::take_valid)
    }

    pub(in crate::queue) fn deliver_until(
        &self,
        deadline: Deadline,
    ) -> Result<C::Delivery<'_>, Failure> {
        self.receive(deadline, |queue| queue.deliver_until(deadline))
    }
}

receiving! {
    impl [C: Kind + ?Sized, H: Deref<Target = Channel<C>>] Receiver<C, H>;
    invalid: "a message that is not a valid value of its type";
    /// If the queue has several levels, returns the most urgent message and its level.
    ///
    /// # Errors
    /// Fails if the channel is empty and either closed or without senders, if this process cannot
    /// become a peer, or if the message is not a valid value of its type. Such a message is
    /// consumed. While another receiver takes the last message, [`try_recv`](Self::try_recv)
    /// reports an empty channel.
    recv -> C::Received;
    /// See [`Queue::recv_ack`](crate::Queue::recv_ack).
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
    /// process that holds a delivery itself gets [`RecvError::Disconnected`]. Other processes wait
    /// until these deliveries are acknowledged or come back.
    recv_ack -> C::Delivery<'_>;
}

/// Byte messages, read in place.
impl<S: Store + ?Sized, H: Deref<Target = Channel<ByteQueue<S>>>> Receiver<ByteQueue<S>, H>
where
    ByteQueue<S>: Shareable,
{
    verbs! {
        /// Appends a message to `buffer` and returns its length. Blocks until one is available.
        ///
        /// # Errors
        /// As [`recv`](Self::recv).
        pub fn recv_into(&self, buffer: &mut Vec<u8>) -> Result<usize, RecvError>
            = |deadline| self.message_until(deadline).map(|message| message.append_to(buffer));
        try_recv_into -> Result<usize, TryRecvError>, else Err(TryRecvError::Empty);
        recv_into_timeout, recv_into_deadline -> Result<usize, RecvTimeoutError>,
            else Err(RecvTimeoutError::TimedOut);

        /// Receives a message to be read in place, blocking until one is available.
        ///
        /// The message is consumed when the [`Ref`] is dropped. If the process is killed before
        /// that, another receiver gets it. Until then, no other receiver gets `Disconnected`.
        ///
        /// # Errors
        /// As [`recv`](Self::recv).
        #[inline]
        pub fn recv_ref(&self) -> Result<Ref<'_>, RecvError>
            = |deadline| self.message_until(deadline);
        #[inline]
        try_recv_ref -> Result<Ref<'_>, TryRecvError>, else Err(TryRecvError::Empty);
        recv_ref_timeout, recv_ref_deadline -> Result<Ref<'_>, RecvTimeoutError>,
            else Err(RecvTimeoutError::TimedOut);
    }

    #[inline(always)]
    fn message_until(&self, deadline: Deadline) -> Result<Ref<'_>, Failure> {
        self.receive(deadline, |queue| queue.view().recv_until(deadline))
    }
}

/// Iterates over messages and borrows the receiver: made by [`Receiver::iter`].
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
    /// Takes a further handle. If this process has a million handles already, there is no room for
    /// another one. All verbs of the clone then fail with [`Fault::TooManyPeers`].
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
