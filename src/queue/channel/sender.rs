//! The senders' end.
use super::kind::{AsBytes, AsPriorityQueue, AsQueue};
use super::{Channel, Kind};
use crate::deadline::Deadline;
use crate::error::Fault;
use crate::queue::bytes::{ByteQueue, Reservation, Store};
use crate::queue::ends::{Ends, Hold};
use crate::queue::{NO_SENDERS, PriorityQueue, Queue, SendFailure, after_sent};
use crate::queue::{SendError, SendTimeoutError, TrySendError};
use crate::shareable::{Plain, Shareable};
use crate::shared::Shared;
use core::fmt;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use std::time::{Duration, Instant};

/// A handle of the senders' end of a [`Channel`].
///
/// A clone is a further handle. [`Shared::sender`] makes a handle that keeps the channel mapped, so
/// that it can be a field of a struct (`Sender<Queue<u64>>`) and move to another thread.
/// [`Channel::sender`] makes one that borrows the channel. In the child of a `fork`, a copied
/// handle does nothing: the child takes its own.
#[must_use = "the end is given up immediately if this is not kept"]
pub struct Sender<C: Kind + ?Sized, H: Deref<Target = Channel<C>> = Shared<Channel<C>>> {
    hold: Hold,
    channel: H,
    kind: PhantomData<fn(&C)>,
}

impl<C: Kind + ?Sized, H: Deref<Target = Channel<C>>> Sender<C, H> {
    /// Takes a handle that keeps `channel`, a pointer to the channel.
    ///
    /// # Errors
    /// As [`Channel::sender`].
    pub fn of(channel: H) -> Result<Self, Fault> {
        Ok(Sender { hold: channel.senders.hold()?, channel, kind: PhantomData })
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
    fn check(&self) -> Result<(), SendFailure> {
        self.hold.check().map_err(SendFailure::Failed)
    }
}

/// Plain data.
impl<T: Plain, S: ?Sized, H: Deref<Target = Channel<Queue<T, S>>>> Sender<Queue<T, S>, H>
where
    Queue<T, S>: AsQueue<T>,
{
    /// Sends a message, blocking until a slot is free.
    ///
    /// # Errors
    /// Gives the message back if the channel is closed, if the last receiver is gone, or if this
    /// process cannot become a peer.
    #[inline]
    pub fn send(&self, message: T) -> Result<(), SendError<T>> {
        self.send_until(message, Deadline::NEVER).map_err(SendFailure::for_ever)
    }

    /// Like [`send`](Self::send), but never blocks.
    ///
    /// # Errors
    /// As [`send`](Self::send), and if the channel is full.
    #[inline]
    pub fn try_send(&self, message: T) -> Result<(), TrySendError<T>> {
        match self.check().and_then(|()| self.queue().core.push(0, &message)) {
            Err(SendFailure::Closed) => self.send_slow(message, Deadline::after(Duration::ZERO)),
            sent => sent.map_err(|failure| (message, failure)),
        }
        .map_err(SendFailure::at_once)
    }

    /// Like [`send`](Self::send), but blocks at most `timeout`.
    ///
    /// # Errors
    /// As [`send`](Self::send), and if it times out.
    pub fn send_timeout(&self, message: T, timeout: Duration) -> Result<(), SendTimeoutError<T>> {
        self.send_until(message, Deadline::after(timeout)).map_err(SendFailure::in_time)
    }

    /// Like [`send`](Self::send), but blocks until `deadline` at most. A free slot is used even if
    /// `deadline` has passed.
    ///
    /// # Errors
    /// As [`send_timeout`](Self::send_timeout).
    pub fn send_deadline(&self, message: T, deadline: Instant) -> Result<(), SendTimeoutError<T>> {
        self.send_until(message, Deadline::at(deadline)).map_err(SendFailure::in_time)
    }

    /// Sends messages one after the other, blocking until there is a free slot for each.
    ///
    /// # Errors
    /// As [`send`](Self::send), with the number of messages that were sent before.
    pub fn send_batch(&self, messages: &[T]) -> Result<(), SendError<usize>> {
        for (sent, message) in messages.iter().enumerate() {
            self.send(*message).map_err(|error| after_sent(error, sent))?;
        }
        Ok(())
    }

    #[inline(always)]
    fn queue(&self) -> &Queue<T> {
        self.channel.queue.as_queue()
    }

    #[inline(always)]
    fn send_until(&self, message: T, deadline: Deadline) -> Result<(), (T, SendFailure)> {
        if let Err(failure) = self.check() {
            return Err((message, failure));
        }
        match self.queue().core.push(0, &message) {
            Ok(()) => Ok(()),
            Err(_) => self.send_slow(message, deadline),
        }
    }

    /// By value, as that of the queue.
    #[cold]
    #[inline(never)]
    fn send_slow(&self, message: T, deadline: Deadline) -> Result<(), (T, SendFailure)> {
        let queue = self.queue();
        let send = |message| queue.core.send_slow(0, message, deadline);
        self.channel.send_to_holders(message, || queue.is_closed(), send)
    }
}

/// Plain data, each message with its level.
impl<T, const LEVELS: usize, S: ?Sized, H> Sender<PriorityQueue<T, LEVELS, S>, H>
where
    T: Plain,
    PriorityQueue<T, LEVELS, S>: AsPriorityQueue<T, LEVELS>,
    H: Deref<Target = Channel<PriorityQueue<T, LEVELS, S>>>,
{
    /// Sends a message of level `priority`, blocking until a slot of that level is free.
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
    /// process cannot become a peer, or, with [`Fault::NoSuchLevel`], if there is no such level.
    #[inline]
    pub fn send(&self, priority: usize, message: T) -> Result<(), SendError<T>> {
        self.send_until(priority, message, Deadline::NEVER).map_err(SendFailure::for_ever)
    }

    /// Like [`send`](Self::send), but never blocks.
    ///
    /// # Errors
    /// As [`send`](Self::send), and if the level is full.
    #[inline]
    pub fn try_send(&self, priority: usize, message: T) -> Result<(), TrySendError<T>> {
        match self
            .check()
            .and_then(|()| self.channel.queue.as_queue().core.push(priority, &message))
        {
            Err(SendFailure::Closed) => {
                self.send_slow(priority, message, Deadline::after(Duration::ZERO))
            }
            sent => sent.map_err(|failure| (message, failure)),
        }
        .map_err(SendFailure::at_once)
    }

    /// Like [`send`](Self::send), but blocks at most `timeout`.
    ///
    /// # Errors
    /// As [`send`](Self::send), and if it times out.
    pub fn send_timeout(
        &self,
        priority: usize,
        message: T,
        timeout: Duration,
    ) -> Result<(), SendTimeoutError<T>> {
        self.send_until(priority, message, Deadline::after(timeout)).map_err(SendFailure::in_time)
    }

    /// Like [`send`](Self::send), but blocks until `deadline` at most. A free slot is used even if
    /// `deadline` has passed.
    ///
    /// # Errors
    /// As [`send_timeout`](Self::send_timeout).
    pub fn send_deadline(
        &self,
        priority: usize,
        message: T,
        deadline: Instant,
    ) -> Result<(), SendTimeoutError<T>> {
        self.send_until(priority, message, Deadline::at(deadline)).map_err(SendFailure::in_time)
    }

    #[inline(always)]
    fn send_until(
        &self,
        priority: usize,
        message: T,
        deadline: Deadline,
    ) -> Result<(), (T, SendFailure)> {
        if let Err(failure) = self.check() {
            return Err((message, failure));
        }
        match self.channel.queue.as_queue().core.push(priority, &message) {
            Ok(()) => Ok(()),
            Err(_) => self.send_slow(priority, message, deadline),
        }
    }

    /// By value, as that of the queue.
    #[cold]
    #[inline(never)]
    fn send_slow(
        &self,
        priority: usize,
        message: T,
        deadline: Deadline,
    ) -> Result<(), (T, SendFailure)> {
        let queue = self.channel.queue.as_queue();
        let send = |message| queue.core.send_slow(priority, message, deadline);
        self.channel.send_to_holders(message, || queue.is_closed(), send)
    }
}

/// Messages of bytes.
impl<S: Store + ?Sized, H: Deref<Target = Channel<ByteQueue<S>>>> Sender<ByteQueue<S>, H>
where
    ByteQueue<S>: Shareable,
{
    /// Sends a message, blocking until there is room.
    ///
    /// ```
    /// use outlast::{ByteQueue, Channel, RecvError, Shared};
    ///
    /// let here = Shared::<Channel<ByteQueue>>::with_capacity(64 * 1024)?;
    /// let there = Shared::<Channel<ByteQueue>>::from_fd(here.try_clone_fd()?)?; // as another process would
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
    pub fn send(&self, message: &[u8]) -> Result<(), SendError<()>> {
        let sent = self.room_until(message.len(), Deadline::NEVER).and_then(|r| r.send(message));
        sent.map_err(|failure| SendFailure::for_ever(((), failure)))
    }

    /// Like [`send`](Self::send), but never blocks.
    ///
    /// # Errors
    /// As [`send`](Self::send), and if there is no room.
    #[inline]
    pub fn try_send(&self, message: &[u8]) -> Result<(), TrySendError<()>> {
        let sent = self.room_now(message.len()).and_then(|room| room.send(message));
        sent.map_err(|failure| SendFailure::at_once(((), failure)))
    }

    /// Like [`send`](Self::send), but blocks at most `timeout`.
    ///
    /// # Errors
    /// As [`send`](Self::send), and if it times out.
    pub fn send_timeout(
        &self,
        message: &[u8],
        timeout: Duration,
    ) -> Result<(), SendTimeoutError<()>> {
        self.send_before(message, Deadline::after(timeout))
    }

    /// Like [`send`](Self::send), but blocks until `deadline` at most. Free room is used even if
    /// `deadline` has passed.
    ///
    /// # Errors
    /// As [`send_timeout`](Self::send_timeout).
    pub fn send_deadline(
        &self,
        message: &[u8],
        deadline: Instant,
    ) -> Result<(), SendTimeoutError<()>> {
        self.send_before(message, Deadline::at(deadline))
    }

    fn send_before(&self, message: &[u8], deadline: Deadline) -> Result<(), SendTimeoutError<()>> {
        let sent = self.room_until(message.len(), deadline).and_then(|room| room.send(message));
        sent.map_err(|failure| SendFailure::in_time(((), failure)))
    }

    /// Reserves room for a message of `len` bytes, to be written in place, blocking until there is
    /// room.
    ///
    /// See [`ByteQueue::reserve`]. [`Room::commit`] fails if the last receiver has gone meanwhile.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    #[inline]
    pub fn reserve(&self, len: usize) -> Result<Room<'_>, SendError<()>> {
        self.room_until(len, Deadline::NEVER)
            .map_err(|failure| SendFailure::for_ever(((), failure)))
    }

    /// Like [`reserve`](Self::reserve), but never blocks.
    ///
    /// # Errors
    /// As [`try_send`](Self::try_send).
    #[inline]
    pub fn try_reserve(&self, len: usize) -> Result<Room<'_>, TrySendError<()>> {
        self.room_now(len).map_err(|failure| SendFailure::at_once(((), failure)))
    }

    /// Like [`reserve`](Self::reserve), but blocks at most `timeout`.
    ///
    /// # Errors
    /// As [`send_timeout`](Self::send_timeout).
    pub fn reserve_timeout(
        &self,
        len: usize,
        timeout: Duration,
    ) -> Result<Room<'_>, SendTimeoutError<()>> {
        let room = self.room_until(len, Deadline::after(timeout));
        room.map_err(|failure| SendFailure::in_time(((), failure)))
    }

    /// Like [`reserve`](Self::reserve), but blocks until `deadline` at most.
    ///
    /// # Errors
    /// As [`send_timeout`](Self::send_timeout).
    pub fn reserve_deadline(
        &self,
        len: usize,
        deadline: Instant,
    ) -> Result<Room<'_>, SendTimeoutError<()>> {
        let room = self.room_until(len, Deadline::at(deadline));
        room.map_err(|failure| SendFailure::in_time(((), failure)))
    }
}

/// Room for messages of bytes, also for those of a queue that has a [`ByteQueue`] inside.
impl<C: AsBytes + ?Sized, H: Deref<Target = Channel<C>>> Sender<C, H> {
    #[inline(always)]
    pub(in crate::queue) fn room_now(&self, len: usize) -> Result<Room<'_>, SendFailure> {
        self.check()?;
        match self.channel.queue.view().claim_room(len) {
            Err(SendFailure::Closed) => self.room_slow(len, Deadline::after(Duration::ZERO)),
            done => done.map(|room| self.room(room)),
        }
    }

    #[inline(always)]
    pub(in crate::queue) fn room_until(
        &self,
        len: usize,
        deadline: Deadline,
    ) -> Result<Room<'_>, SendFailure> {
        self.check()?;
        match self.channel.queue.view().claim_room(len) {
            Err(SendFailure::Full | SendFailure::Closed) => self.room_slow(len, deadline),
            done => done.map(|room| self.room(room)),
        }
    }

    #[cold]
    #[inline(never)]
    fn room_slow(&self, len: usize, deadline: Deadline) -> Result<Room<'_>, SendFailure> {
        let queue = &self.channel.queue;
        let reserve =
            |()| queue.view().reserve_until(len, deadline).map_err(|failure| ((), failure));
        let reserved = self.channel.send_to_holders((), || queue.is_closed(), reserve);
        reserved.map(|room| self.room(room)).map_err(|((), failure)| failure)
    }

    #[inline(always)]
    fn room<'a>(&'a self, room: Reservation<'a>) -> Room<'a> {
        Room { room, receivers: &self.channel.receivers }
    }
}

/// Room for a message in a channel of bytes, to be written in place. It holds bytes of earlier
/// messages.
///
/// [`commit`](Self::commit) sends the message. If the room is dropped, or the process is killed
/// before, nothing is sent.
#[must_use = "room that is dropped sends nothing"]
pub struct Room<'a> {
    room: Reservation<'a>,
    receivers: &'a Ends,
}

impl Room<'_> {
    /// Sends the message.
    ///
    /// A message whose room was reserved before the channel was closed is still sent.
    ///
    /// ```
    /// use outlast::{ByteQueue, Channel, SendError, Shared};
    ///
    /// let here = Shared::<Channel<ByteQueue>>::with_capacity(4096)?;
    /// let there = Shared::<Channel<ByteQueue>>::from_fd(here.try_clone_fd()?)?; // as another process would
    /// let (sender, receiver) = (here.sender()?, there.receiver()?);
    /// let room = sender.reserve(100)?;
    /// drop(receiver); // the last one
    /// assert_eq!(room.commit(), Err(SendError::Disconnected(())));
    /// assert!(there.is_empty());
    /// # Ok::<(), outlast::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`SendError::Disconnected`] if the last receiver is gone, or [`SendError::Closed`] if the
    /// channel is closed as well; then no receiver gets the message. [`Fault::Forked`] in the child
    /// of a fork: the room is its parent's.
    #[inline(always)]
    pub fn commit(self) -> Result<(), SendError<()>> {
        let len = self.room.len;
        self.commit_len(len)
    }

    /// Sends the first `len` bytes of it, at most all.
    ///
    /// # Errors
    /// As [`commit`](Self::commit).
    #[inline(always)]
    pub fn commit_len(self, len: usize) -> Result<(), SendError<()>> {
        self.publish(len).map_err(|failure| SendFailure::for_ever(((), failure)))
    }

    #[inline(always)]
    pub(in crate::queue) fn publish(self, len: usize) -> Result<(), SendFailure> {
        self.room.commit_to(self.receivers, len)
    }

    /// Writes and sends a message that is as long as the room.
    #[inline(always)]
    fn send(mut self, message: &[u8]) -> Result<(), SendFailure> {
        self.copy_from_slice(message);
        self.publish(message.len())
    }
}

impl Deref for Room<'_> {
    type Target = [u8];
    #[inline(always)]
    fn deref(&self) -> &[u8] {
        &self.room
    }
}

impl DerefMut for Room<'_> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.room
    }
}

impl fmt::Debug for Room<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Room").field("len", &self.room.len).finish_non_exhaustive()
    }
}

impl<C: Kind + ?Sized, H: Deref<Target = Channel<C>> + Clone> Clone for Sender<C, H> {
    /// Takes a further handle. If this process has a million handles already, there is no place
    /// for another one: all verbs of the clone then fail with [`Fault::TooManyPeers`].
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
