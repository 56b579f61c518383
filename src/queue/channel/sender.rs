//! The senders' end of a channel.
use super::kind::{AsBytes, AsLevels};
use super::{Channel, Kind};
use crate::deadline::Deadline;
use crate::error::Fault;
use crate::queue::bytes::{ByteQueue, Loan, Store};
use crate::queue::ends::Hold;
use crate::queue::{Failure, NO_SENDERS, PriorityQueue, Queue, send_each};
use crate::queue::{SendError, SendTimeoutError, TrySendError};
use crate::shareable::{Plain, Shareable};
use crate::shared::Shared;
use crate::wait::verbs::verbs;
use core::fmt;
use core::marker::PhantomData;
use core::ops::Deref;

/// A handle of the senders' end of a [`Channel`].
///
/// A clone is a further handle.
///
/// [`Shared::sender`] makes a handle that keeps the channel mapped, so it can be a field of a
/// struct (`Sender<Queue<u64>>`) and move to another thread. [`Channel::sender`] makes a handle
/// that borrows the channel. In the child of a `fork`, a copied handle is inert: the child must
/// take a handle of its own.
#[must_use = "the end is given up immediately if this is not kept"]
pub struct Sender<C: Kind + ?Sized, H: Deref<Target = Channel<C>> = Shared<Channel<C>>> {
    hold: Hold,
    channel: H,
    kind: PhantomData<fn(&C)>,
}

impl<C: Kind + ?Sized, H: Deref<Target = Channel<C>>> Sender<C, H> {
    /// Takes a handle of the senders' end. The handle keeps `channel`, a pointer to the channel.
    ///
    /// # Errors
    /// As [`Channel::sender`].
    pub fn of(channel: H) -> Result<Self, Fault> {
        Ok(Sender { hold: channel.senders.hold()?, channel, kind: PhantomData })
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
        self.channel.senders.hold_for(owner).map(drop)
    }

    /// Returns the channel.
    pub fn channel(&self) -> &Channel<C> {
        &self.channel
    }

    /// Returns `true` if both are handles of the same channel.
    pub fn same_channel(&self, other: &Self) -> bool {
        core::ptr::addr_eq(self.channel(), other.channel())
    }

    #[inline(always)]
    fn push_until<T: Plain, const LEVELS: usize>(
        &self,
        level: usize,
        message: T,
        deadline: Deadline,
    ) -> Result<(), (T, Failure)>
    where
        C: AsLevels<T, LEVELS>,
    {
        if let Err(fault) = self.hold.check() {
            return Err((message, fault.into()));
        }
        match self.channel.queue.levels().push(level, &message) {
            Ok(()) => Ok(()),
            Err(Failure::Closed) => self.push_slow(level, message, deadline),
            Err(Failure::Unavailable) if !deadline.is_now() => {
                self.push_slow(level, message, deadline)
            }
            Err(failure) => Err((message, failure)),
        }
    }

    /// Takes the message by value, for the same reason as `Levels::send_slow`.
    #[cold]
    #[inline(never)]
    fn push_slow<T: Plain, const LEVELS: usize>(
        &self,
        level: usize,
        message: T,
        deadline: Deadline,
    ) -> Result<(), (T, Failure)>
    where
        C: AsLevels<T, LEVELS>,
    {
        let queue = self.channel.queue.levels();
        self.channel.send_to_holders(message, |message| queue.send_slow(level, message, deadline))
    }
}

/// Plain data.
impl<T: Plain, S: ?Sized, H: Deref<Target = Channel<Queue<T, S>>>> Sender<Queue<T, S>, H>
where
    Queue<T, S>: AsLevels<T, 1>,
{
    verbs! {
        /// Sends a message, blocking while no slot is free.
        ///
        /// # Errors
        /// Gives the message back if the channel is closed, if the last receiver is gone, or if
        /// this process cannot become a peer.
        #[inline]
        pub fn send(&self, message: T) -> Result<(), SendError<T>>
            = |deadline| self.push_until(0, message, deadline);
        #[inline]
        try_send -> Result<(), TrySendError<T>>, else Err(TrySendError::Full(message));
        send_timeout, send_deadline -> Result<(), SendTimeoutError<T>>,
            else Err(SendTimeoutError::TimedOut(message));

        /// Sends messages one after the other, blocking while no slot is free.
        ///
        /// # Errors
        /// As [`send`](Self::send). The error holds the number of messages that were sent before
        /// it.
        pub fn send_batch(&self, messages: &[T]) -> Result<(), SendError<usize>>
            = |deadline| send_each(messages, |message| self.push_until(0, message, deadline));
        try_send_batch -> Result<(), TrySendError<usize>>, else Err(TrySendError::Full(sent));
        send_batch_timeout, send_batch_deadline -> Result<(), SendTimeoutError<usize>>,
            else Err(SendTimeoutError::TimedOut(sent));
    }
}

/// Plain data, each message with its level.
impl<T, const LEVELS: usize, S: ?Sized, H> Sender<PriorityQueue<T, LEVELS, S>, H>
where
    T: Plain,
    PriorityQueue<T, LEVELS, S>: AsLevels<T, LEVELS>,
    H: Deref<Target = Channel<PriorityQueue<T, LEVELS, S>>>,
{
    verbs! {
        /// Sends a message of level `priority`, blocking while no slot of that level is free.
        ///
        /// ```
        /// use outlast::{Channel, Fault, PriorityQueue, SendError, Shared};
        ///
        /// type Jobs = Channel<PriorityQueue<u64, 2>>;
        /// let here = Shared::<Jobs>::with_capacity(16)?; // two levels for 16 messages each
        /// let there = Shared::<Jobs>::from_fd(here.try_clone_fd()?)?; // as another process would
        /// let (sender, receiver) = (here.sender()?, there.receiver()?);
        /// assert_eq!(sender.send(2, 7), Err(SendError::Failed(7, Fault::NoSuchLevel)));
        /// sender.send(0, 7)?;
        /// sender.send(1, 8)?;
        /// assert_eq!((receiver.recv()?, receiver.recv()?), ((1, 8), (0, 7)));
        /// drop(receiver); // the last one
        /// assert_eq!(sender.send(0, 9), Err(SendError::Disconnected(9)));
        /// # Ok::<(), outlast::Error>(())
        /// ```
        ///
        /// # Errors
        /// Gives the message back if the channel is closed, if the last receiver is gone, if this
        /// process cannot become a peer, or, with [`Fault::NoSuchLevel`], if there is no such
        /// level.
        #[inline]
        pub fn send(&self, priority: usize, message: T) -> Result<(), SendError<T>>
            = |deadline| self.push_until(priority, message, deadline);
        #[inline]
        try_send -> Result<(), TrySendError<T>>, else Err(TrySendError::Full(message));
        send_timeout, send_deadline -> Result<(), SendTimeoutError<T>>,
            else Err(SendTimeoutError::TimedOut(message));
    }
}

/// Byte messages.
impl<S: Store + ?Sized, H: Deref<Target = Channel<ByteQueue<S>>>> Sender<ByteQueue<S>, H>
where
    ByteQueue<S>: Shareable,
{
    verbs! {
        /// Sends a message, blocking until there is room.
        ///
        /// ```
        /// use outlast::{ByteQueue, Channel, RecvError, Shared};
        ///
        /// let here = Shared::<Channel<ByteQueue>>::with_capacity(64 * 1024)?;
        /// // As another process would:
        /// let there = Shared::<Channel<ByteQueue>>::from_fd(here.try_clone_fd()?)?;
        /// let (sender, receiver) = (here.sender()?, there.receiver()?);
        /// sender.send(b"a few bytes")?;
        /// drop(sender); // or the death of its process
        /// assert_eq!(receiver.recv()?, b"a few bytes");
        /// assert_eq!(receiver.recv(), Err(RecvError::Disconnected));
        /// # Ok::<(), outlast::Error>(())
        /// ```
        ///
        /// # Errors
        /// As [`ByteQueue::send`], and if the last receiver is gone.
        #[inline]
        pub fn send(&self, message: &[u8]) -> Result<(), SendError<()>>
            = |deadline| self.loan_until(message.len(), deadline).and_then(|r| r.write(message));
        #[inline]
        try_send -> Result<(), TrySendError<()>>, else Err(TrySendError::Full(()));
        send_timeout, send_deadline -> Result<(), SendTimeoutError<()>>,
            else Err(SendTimeoutError::TimedOut(()));

        /// Takes room for a message of `len` bytes, to be written in place, blocking until there
        /// is room.
        ///
        /// See [`ByteQueue::loan`]. [`Loan::send`] fails if the last receiver has gone in the
        /// meantime.
        ///
        /// # Errors
        /// As [`send`](Self::send).
        #[doc(alias = "reserve")]
        #[doc(alias = "grant")]
        #[inline]
        pub fn loan(&self, len: usize) -> Result<Loan<'_>, SendError<()>>
            = |deadline| self.loan_until(len, deadline);
        #[inline]
        try_loan -> Result<Loan<'_>, TrySendError<()>>, else Err(TrySendError::Full(()));
        loan_timeout, loan_deadline -> Result<Loan<'_>, SendTimeoutError<()>>,
            else Err(SendTimeoutError::TimedOut(()));
    }
}

/// Room for byte messages, and for the messages of a queue that has a [`ByteQueue`] inside.
impl<C: AsBytes + ?Sized, H: Deref<Target = Channel<C>>> Sender<C, H> {
    #[inline(always)]
    pub(in crate::queue) fn loan_until(
        &self,
        len: usize,
        deadline: Deadline,
    ) -> Result<Loan<'_>, Failure> {
        self.hold.check()?;
        let mut loan = match self.channel.queue.view().loan_until(len, deadline) {
            Err(Failure::Closed) => self.loan_slow(len, deadline)?,
            done => done?,
        };
        loan.receivers = Some(&self.channel.receivers);
        Ok(loan)
    }

    #[cold]
    #[inline(never)]
    fn loan_slow(&self, len: usize, deadline: Deadline) -> Result<Loan<'_>, Failure> {
        let queue = self.channel.queue.view();
        let take = |()| queue.loan_until(len, deadline).map_err(|failure| ((), failure));
        self.channel.send_to_holders((), take).map_err(|((), failure)| failure)
    }
}

impl<C: Kind + ?Sized, H: Deref<Target = Channel<C>> + Clone> Clone for Sender<C, H> {
    /// Takes a further handle. If this process has a million handles already, there is no room for
    /// another one. All verbs of the clone then fail with [`Fault::TooManyPeers`].
    fn clone(&self) -> Self {
        let hold = self.channel.senders.again(&self.hold);
        Sender { hold, channel: self.channel.clone(), kind: PhantomData }
    }
}

impl<C: Kind + ?Sized, H: Deref<Target = Channel<C>>> Drop for Sender<C, H> {
    fn drop(&mut self) {
        self.channel.give_back(&self.hold, NO_SENDERS);
    }
}

impl<C: Kind + ?Sized, H: Deref<Target = Channel<C>>> fmt::Debug for Sender<C, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sender").field(&self.channel()).finish()
    }
}
