//! The same for messages of any length: a [`ByteQueue`] that knows who holds its two ends.
//!
//! ```
//! use outlast::{ByteChannel, RecvError, Shared};
//!
//! let here = Shared::<ByteChannel>::with_capacity(64 * 1024)?;
//! let there = Shared::<ByteChannel>::from_fd(here.try_clone_fd()?)?; // as another process would
//! let (sender, receiver) = (here.sender()?, there.receiver()?);
//! sender.send(b"a few bytes")?;
//! drop(sender); // or the death of its process
//! assert_eq!(receiver.recv()?, b"a few bytes");
//! assert_eq!(receiver.recv(), Err(RecvError::Disconnected));
//! # Ok::<(), outlast::Error>(())
//! ```
//!
//! # State
//! As in [`Channel`](super::Channel): two sets of holders, and two bits in the word of the
//! [`ByteQueue`] that says whether it is closed.
//!
//! # Invariants
//! I1 to I4 of [`Channel`](super), where a message is in the hands of another receiver while it is
//! a [`Message`] of that one's: the queue itself does not say that nothing is left as long as one
//! may come back. And
//! - I5. Who has committed a message looks at `NO_RECEIVERS` after that. If the end is gone, he
//!   takes the message back (`Full` to `Done`), or somebody who came meanwhile has it: what was not
//!   sent is received by nobody, however long its room was held.
//!
//! # Ordering
//! As there.
//!
//! # Death
//! As there: first the queue is mended, so that what comes back is there; then handles are taken,
//! bits are set, and all are woken. A sender that is killed between the commit and its look at the
//! bit (I5) has sent: the next receiver finds the message, as others that nobody has received.
#![expect(unsafe_code, reason = "promises that the bytes may be shared")]
use crate::deadline::Deadline;
use crate::error::Fault;
use crate::queue::bytes::{Blocks, ByteQueue, FixedByteQueue, Message, Reservation, Store, Unit};
use crate::queue::ends::{Ends, Hold, Sided};
use crate::queue::{NO_RECEIVERS, NO_SENDERS, RecvFailure, SendFailure};
use crate::queue::{RecvError, RecvTimeoutError, SendError, SendTimeoutError};
use crate::queue::{TryRecvError, TrySendError};
use crate::shareable::{Dead, Field, Layout, Shareable, WithCapacity, at_slice, begin, mix_u64};
use crate::sync::atomic::AtomicU32;
use core::fmt;
use core::marker::PhantomData;
use core::mem::offset_of;
use core::ops::{Deref, DerefMut};
use std::time::{Duration, Instant};

/// A bounded queue of byte messages with two ends to hold: [`ByteSender`]s and [`ByteReceiver`]s.
///
/// As [`ByteQueue`], and when the last sender of all processes is gone, by drop or death, receivers
/// get what is left, and then [`Disconnected`](RecvError::Disconnected); senders get it when the
/// last receiver is gone. An end that nobody has had yet is waited for, and one that was gone can
/// be taken again. 64 processes can hold each end.
///
/// [`Shared::with_capacity`](crate::Shared::with_capacity) creates one for 1 to 1,073,741,568
/// bytes of messages, rounded up to a multiple of 256. To embed one in a struct, see [`FixedByteChannel`].
#[repr(C)]
pub struct ByteChannel<S: Store + ?Sized = [Unit]> {
    senders: Ends,
    receivers: Ends,
    queue: ByteQueue<S>,
}

/// A channel of `BLOCKS` times 64 bytes, to be embedded in a struct declared with
/// [`shared!`](crate::shared).
pub type FixedByteChannel<const BLOCKS: usize> = ByteChannel<Blocks<BLOCKS>>;

/// A handle of the senders' end of a [`ByteChannel`].
///
/// Clones are further handles. Made by [`ByteChannel::sender`] it borrows the channel; made by
/// [`Shared::sender`](crate::Shared::sender) it keeps it, and can move into a thread. In a process
/// made by `fork` a copied one does nothing: the child makes its own.
#[must_use = "the end is given up at once if this is not kept"]
pub struct ByteSender<C: Deref<Target = ByteChannel<S>>, S: Store + ?Sized = [Unit]> {
    hold: Hold,
    channel: C,
    store: PhantomData<fn(&S)>,
}

/// A handle of the receivers' end of a [`ByteChannel`].
///
/// Clones are further handles, and a message goes to one of them. Made by [`ByteChannel::receiver`]
/// it borrows the channel; made by [`Shared::receiver`](crate::Shared::receiver) it keeps it, and
/// can move into a thread. In a process made by `fork` a copied one does nothing: the child makes
/// its own.
#[must_use = "the end is given up at once if this is not kept"]
pub struct ByteReceiver<C: Deref<Target = ByteChannel<S>>, S: Store + ?Sized = [Unit]> {
    hold: Hold,
    channel: C,
    store: PhantomData<fn(&S)>,
}

impl<const BLOCKS: usize> FixedByteChannel<BLOCKS> {
    /// An empty channel whose ends nobody has had, to be moved into shared memory.
    ///
    /// No block, or more than 16,777,215, does not compile.
    #[must_use]
    #[expect(
        clippy::new_without_default,
        reason = "zero-filled memory is the default, and needs no value"
    )]
    pub fn new() -> Self {
        ByteChannel { senders: Ends::new(), receivers: Ends::new(), queue: FixedByteQueue::new() }
    }

    const FIELDS: [Field; 1] = [Field {
        name: "queue",
        offset: offset_of!(Self, queue),
        count: 1,
        layout: <FixedByteQueue<BLOCKS> as Shareable>::layout,
    }];
}

impl<S: Store + ?Sized> ByteChannel<S> {
    /// A handle of the senders' end. All of a process's handles count as one.
    ///
    /// # Errors
    /// [`Fault::TooManyPeers`] if 64 other processes have one; see [`Fault`].
    pub fn sender(&self) -> Result<ByteSender<&Self, S>, Fault> {
        ByteSender::of(self)
    }

    /// A handle of the receivers' end. All of a process's handles count as one.
    ///
    /// # Errors
    /// [`Fault::TooManyPeers`] if 64 other processes have one; see [`Fault`].
    pub fn receiver(&self) -> Result<ByteReceiver<&Self, S>, Fault> {
        ByteReceiver::of(self)
    }

    /// How many processes have the senders' end. May change at any moment.
    #[must_use]
    pub fn senders(&self) -> usize {
        self.senders.count()
    }

    /// How many processes have the receivers' end. May change at any moment.
    #[must_use]
    pub fn receivers(&self) -> usize {
        self.receivers.count()
    }

    /// As [`ByteQueue::capacity`].
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.queue.capacity()
    }

    /// As [`ByteQueue::len`].
    #[must_use]
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// As [`ByteQueue::is_empty`].
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Closes the channel for good: nothing more can be sent; what is there can be received.
    ///
    /// Everybody who waits is woken. What comes of a closed channel is `Closed`, whoever is left.
    pub fn close(&self) {
        self.queue.close();
    }

    /// Whether the channel is closed, as against left by everybody at one end.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.queue.is_closed()
    }

    fn mend(&self, dead: &Dead) {
        self.queue.view().recover(dead);
        self.bereave(dead); // keeps I1
        self.queue.rare.wake_everybody();
    }
}

impl<S: Store + ?Sized> Sided for ByteChannel<S> {
    fn side(&self, bit: u32) -> &Ends {
        if bit == NO_SENDERS { &self.senders } else { &self.receivers }
    }
    fn ended(&self) -> impl Iterator<Item = &AtomicU32> + Clone {
        core::iter::once(&self.queue.rare.ended)
    }
    fn tell(&self, bit: u32) {
        let rare = &self.queue.rare;
        let waiting = if bit == NO_SENDERS { &rare.not_empty } else { &rare.not_full };
        waiting.notify_all();
    }
}

// ------------------------------------------------------------------ sending
impl<C: Deref<Target = ByteChannel<S>>, S: Store + ?Sized> ByteSender<C, S> {
    /// A handle that keeps whatever leads to the channel.
    ///
    /// # Errors
    /// As [`ByteChannel::sender`].
    pub fn of(channel: C) -> Result<Self, Fault> {
        Ok(ByteSender { hold: channel.senders.hold()?, channel, store: PhantomData })
    }

    /// The channel.
    pub fn channel(&self) -> &ByteChannel<S> {
        &self.channel
    }

    /// Sends a message, waiting for room as long as it takes.
    ///
    /// # Errors
    /// As [`ByteQueue::send`], and if the last receiver is gone.
    #[inline]
    pub fn send(&self, message: &[u8]) -> Result<(), SendError<()>> {
        self.reserve(message.len())
            .and_then(|room| room.send(message).map_err(|why| SendFailure::for_ever(((), why))))
    }

    /// Sends a message if there is room. Never blocks.
    ///
    /// # Errors
    /// As [`send`](Self::send), and if there is no room now.
    #[inline]
    pub fn try_send(&self, message: &[u8]) -> Result<(), TrySendError<()>> {
        self.try_reserve(message.len())
            .and_then(|room| room.send(message).map_err(|why| SendFailure::at_once(((), why))))
    }

    /// Sends a message, waiting for room at most `timeout`.
    ///
    /// # Errors
    /// As [`send`](Self::send), and if that takes too long.
    pub fn send_timeout(
        &self,
        message: &[u8],
        timeout: Duration,
    ) -> Result<(), SendTimeoutError<()>> {
        self.reserve_timeout(message.len(), timeout)
            .and_then(|room| room.send(message).map_err(|why| SendFailure::in_time(((), why))))
    }

    /// Sends a message, waiting for room until `deadline` at most. Room that there is is used even
    /// if that has passed.
    ///
    /// # Errors
    /// As [`send_timeout`](Self::send_timeout).
    pub fn send_deadline(
        &self,
        message: &[u8],
        deadline: Instant,
    ) -> Result<(), SendTimeoutError<()>> {
        self.reserve_deadline(message.len(), deadline)
            .and_then(|room| room.send(message).map_err(|why| SendFailure::in_time(((), why))))
    }

    /// Takes room for a message of `len` bytes, to be written in place, waiting for it as long as
    /// it takes.
    ///
    /// As [`ByteQueue::reserve`], but to nobody it is not [committed](Room::commit).
    ///
    /// # Errors
    /// As [`send`](Self::send).
    #[inline]
    pub fn reserve(&self, len: usize) -> Result<Room<'_>, SendError<()>> {
        self.room_until(len, Deadline::NEVER).map_err(|why| SendFailure::for_ever(((), why)))
    }

    /// Takes room for a message of `len` bytes, if there is any. Never blocks.
    ///
    /// # Errors
    /// As [`try_send`](Self::try_send).
    #[inline]
    pub fn try_reserve(&self, len: usize) -> Result<Room<'_>, TrySendError<()>> {
        let room = self.hold.check().map_err(SendFailure::Failed);
        match room.and_then(|()| self.channel.queue.view().claim_room(len)) {
            Err(SendFailure::Closed) => self.room_until(len, Deadline::after(Duration::ZERO)),
            room => room.map(|room| Room { room, receivers: &self.channel.receivers }),
        }
        .map_err(|why| SendFailure::at_once(((), why)))
    }

    /// Takes room for a message of `len` bytes, waiting for it at most `timeout`.
    ///
    /// # Errors
    /// As [`send_timeout`](Self::send_timeout).
    pub fn reserve_timeout(
        &self,
        len: usize,
        timeout: Duration,
    ) -> Result<Room<'_>, SendTimeoutError<()>> {
        let room = self.room_until(len, Deadline::after(timeout));
        room.map_err(|why| SendFailure::in_time(((), why)))
    }

    /// Takes room for a message of `len` bytes, waiting for it until `deadline` at most.
    ///
    /// # Errors
    /// As [`send_timeout`](Self::send_timeout).
    pub fn reserve_deadline(
        &self,
        len: usize,
        deadline: Instant,
    ) -> Result<Room<'_>, SendTimeoutError<()>> {
        let room = self.room_until(len, Deadline::at(deadline));
        room.map_err(|why| SendFailure::in_time(((), why)))
    }

    /// Whether both are handles of the same channel.
    pub fn same_channel(&self, other: &Self) -> bool {
        core::ptr::addr_eq(self.channel(), other.channel())
    }

    #[inline(always)]
    fn room_until(&self, len: usize, deadline: Deadline) -> Result<Room<'_>, SendFailure> {
        self.hold.check().map_err(SendFailure::Failed)?;
        let channel = self.channel();
        loop {
            match channel.queue.view().reserve_until(len, deadline) {
                Err(SendFailure::Closed) if !channel.is_closed() => {
                    if channel.is_cut_off(NO_RECEIVERS) {
                        return Err(SendFailure::Disconnected);
                    }
                }
                done => {
                    return done.map(|room| Room { room, receivers: &channel.receivers });
                }
            }
        }
    }
}

/// Room for a message in a channel, to be written in place: bytes that hold what earlier messages
/// left.
///
/// [`commit`](Self::commit) sends it. Dropped otherwise, or if the process is killed, nothing is
/// sent.
#[must_use = "room that is dropped sends nothing"]
pub struct Room<'a> {
    room: Reservation<'a>,
    receivers: &'a Ends,
}

impl Room<'_> {
    /// Sends the message.
    ///
    /// One for which room was taken before the channel was closed is still sent.
    ///
    /// ```
    /// use outlast::{ByteChannel, SendError, Shared};
    ///
    /// let here = Shared::<ByteChannel>::with_capacity(4096)?;
    /// let there = Shared::<ByteChannel>::from_fd(here.try_clone_fd()?)?; // as another process would
    /// let (sender, receiver) = (here.sender()?, there.receiver()?);
    /// let room = sender.reserve(100)?;
    /// drop(receiver); // the last one
    /// assert_eq!(room.commit(), Err(SendError::Disconnected(())));
    /// assert!(there.is_empty());
    /// # Ok::<(), outlast::Error>(())
    /// ```
    ///
    /// # Errors
    /// If the last receiver is gone, [`SendError::Disconnected`], or [`SendError::Closed`] if the
    /// channel is closed as well; then nobody receives it. [`Fault::Forked`] in the child of a
    /// fork: the room is its parent's.
    #[inline(always)]
    pub fn commit(self) -> Result<(), SendError<()>> {
        let len = self.room.len;
        self.commit_len(len)
    }

    /// Sends the first `len` bytes of it; at most all.
    ///
    /// # Errors
    /// As [`commit`](Self::commit).
    #[inline(always)]
    pub fn commit_len(self, len: usize) -> Result<(), SendError<()>> {
        self.publish(len).map_err(|why| SendFailure::for_ever(((), why)))
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

// ---------------------------------------------------------------- receiving
impl<C: Deref<Target = ByteChannel<S>>, S: Store + ?Sized> ByteReceiver<C, S> {
    /// A handle that keeps whatever leads to the channel.
    ///
    /// # Errors
    /// As [`ByteChannel::receiver`].
    pub fn of(channel: C) -> Result<Self, Fault> {
        Ok(ByteReceiver { hold: channel.receivers.hold()?, channel, store: PhantomData })
    }

    /// The channel.
    pub fn channel(&self) -> &ByteChannel<S> {
        &self.channel
    }

    /// Receives a message, waiting for one as long as it takes.
    ///
    /// # Errors
    /// As [`ByteQueue::recv`], and if nothing is left, and the last sender gone.
    #[inline]
    pub fn recv(&self) -> Result<Vec<u8>, RecvError> {
        self.recv_ref().map(|message| message.to_vec())
    }

    /// Receives a message if there is one. Never blocks.
    ///
    /// # Errors
    /// As [`recv`](Self::recv), and if there is none now.
    #[inline]
    pub fn try_recv(&self) -> Result<Vec<u8>, TryRecvError> {
        self.try_recv_ref().map(|message| message.to_vec())
    }

    /// Receives a message, waiting for one at most `timeout`.
    ///
    /// # Errors
    /// As [`recv`](Self::recv), and if that takes too long.
    pub fn recv_timeout(&self, timeout: Duration) -> Result<Vec<u8>, RecvTimeoutError> {
        self.recv_ref_timeout(timeout).map(|message| message.to_vec())
    }

    /// Receives a message, waiting for one until `deadline` at most. A message that is there is
    /// received even if that has passed.
    ///
    /// # Errors
    /// As [`recv_timeout`](Self::recv_timeout).
    pub fn recv_deadline(&self, deadline: Instant) -> Result<Vec<u8>, RecvTimeoutError> {
        self.recv_ref_deadline(deadline).map(|message| message.to_vec())
    }

    /// Receives a message to the end of `to`, waiting for one as long as it takes; its length.
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    pub fn recv_into(&self, to: &mut Vec<u8>) -> Result<usize, RecvError> {
        let message = self.recv_ref()?;
        to.extend_from_slice(&message);
        Ok(message.len())
    }

    /// Receives a message to be read in place, waiting for one as long as it takes.
    ///
    /// It is consumed when the [`Message`] is dropped. If the process is killed before, another
    /// receives it; no other is told before that nothing is left.
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    #[inline]
    pub fn recv_ref(&self) -> Result<Message<'_>, RecvError> {
        RecvFailure::for_ever(self.message_until(Deadline::NEVER))
    }

    /// Receives a message to be read in place, if there is one. Never blocks.
    ///
    /// # Errors
    /// As [`try_recv`](Self::try_recv).
    #[inline]
    pub fn try_recv_ref(&self) -> Result<Message<'_>, TryRecvError> {
        RecvFailure::at_once(self.message_until(Deadline::after(Duration::ZERO)))
    }

    /// Receives a message to be read in place, waiting for one at most `timeout`.
    ///
    /// # Errors
    /// As [`recv_timeout`](Self::recv_timeout).
    pub fn recv_ref_timeout(&self, timeout: Duration) -> Result<Message<'_>, RecvTimeoutError> {
        RecvFailure::in_time(self.message_until(Deadline::after(timeout)))
    }

    /// Receives a message to be read in place, waiting for one until `deadline` at most.
    ///
    /// # Errors
    /// As [`recv_timeout`](Self::recv_timeout).
    pub fn recv_ref_deadline(&self, deadline: Instant) -> Result<Message<'_>, RecvTimeoutError> {
        RecvFailure::in_time(self.message_until(Deadline::at(deadline)))
    }

    /// Messages until nothing more can come, waiting for each. A `for` loop over `&receiver` does
    /// the same.
    ///
    /// ```
    /// use outlast::{ByteChannel, Shared};
    ///
    /// let channel = Shared::<ByteChannel>::with_capacity(4096)?;
    /// let receiver = channel.receiver()?;
    /// channel.sender()?.send(b"ab")?; // and leaves
    /// assert_eq!(receiver.iter().flatten().collect::<Vec<u8>>(), b"ab");
    /// # Ok::<(), outlast::Error>(())
    /// ```
    pub fn iter(&self) -> Iter<'_, C, S> {
        Iter(self)
    }

    /// The messages that are there, without waiting.
    pub fn try_iter(&self) -> impl Iterator<Item = Vec<u8>> + '_ {
        core::iter::from_fn(|| self.try_recv().ok())
    }

    /// Whether both are handles of the same channel.
    pub fn same_channel(&self, other: &Self) -> bool {
        core::ptr::addr_eq(self.channel(), other.channel())
    }

    #[inline(always)]
    fn message_until(&self, deadline: Deadline) -> Result<Option<Message<'_>>, RecvFailure> {
        self.hold.check().map_err(RecvFailure::Failed)?;
        match self.channel.queue.view().recv_until(deadline) {
            Err(RecvFailure::Closed) => self.to_the_end(deadline),
            done => done,
        }
    }

    /// Nothing is there, and the queue is closed or the senders' bit set: until it is clear what
    /// that means.
    #[cold]
    #[inline(never)]
    fn to_the_end(&self, deadline: Deadline) -> Result<Option<Message<'_>>, RecvFailure> {
        let (channel, queue) = (self.channel(), self.channel.queue.view());
        loop {
            if channel.is_closed() {
                return queue.recv_until(deadline);
            }
            // If nobody is left, this is after the last that they sent: keeps I4.
            if channel.is_cut_off(NO_SENDERS) {
                match queue.claim_message() {
                    Err(RecvFailure::Closed) if channel.is_closed() => continue,
                    Err(RecvFailure::Closed) => return Err(RecvFailure::Disconnected),
                    Ok(None) => {} // another has one, which may come back
                    done => return done,
                }
            }
            match queue.recv_until(deadline) {
                Err(RecvFailure::Closed) => {}
                done => return done,
            }
        }
    }
}

/// Receives until nothing more can come: made by [`ByteReceiver::iter`].
#[derive(Debug)]
pub struct Iter<'a, C: Deref<Target = ByteChannel<S>>, S: Store + ?Sized = [Unit]>(
    &'a ByteReceiver<C, S>,
);

impl<C: Deref<Target = ByteChannel<S>>, S: Store + ?Sized> Iterator for Iter<'_, C, S> {
    type Item = Vec<u8>;
    fn next(&mut self) -> Option<Vec<u8>> {
        self.0.recv().ok()
    }
}

impl<'a, C: Deref<Target = ByteChannel<S>>, S: Store + ?Sized> IntoIterator
    for &'a ByteReceiver<C, S>
{
    type Item = Vec<u8>;
    type IntoIter = Iter<'a, C, S>;
    fn into_iter(self) -> Iter<'a, C, S> {
        self.iter()
    }
}

/// Receives all, until nothing more can come: made by `ByteReceiver::into_iter`.
#[derive(Debug)]
pub struct IntoIter<C: Deref<Target = ByteChannel<S>>, S: Store + ?Sized = [Unit]>(
    ByteReceiver<C, S>,
);

impl<C: Deref<Target = ByteChannel<S>>, S: Store + ?Sized> Iterator for IntoIter<C, S> {
    type Item = Vec<u8>;
    fn next(&mut self) -> Option<Vec<u8>> {
        self.0.recv().ok()
    }
}

impl<C: Deref<Target = ByteChannel<S>>, S: Store + ?Sized> IntoIterator for ByteReceiver<C, S> {
    type Item = Vec<u8>;
    type IntoIter = IntoIter<C, S>;
    fn into_iter(self) -> IntoIter<C, S> {
        IntoIter(self)
    }
}

// ------------------------------------------------------------------- handles
impl<C: Deref<Target = ByteChannel<S>> + Clone, S: Store + ?Sized> Clone for ByteSender<C, S> {
    /// A further handle. If there is no place for it, with a million of this process's already, all
    /// it gives is [`Fault::TooManyPeers`].
    fn clone(&self) -> Self {
        let hold = self.channel.senders.again(&self.hold);
        ByteSender { hold, channel: self.channel.clone(), store: PhantomData }
    }
}

impl<C: Deref<Target = ByteChannel<S>> + Clone, S: Store + ?Sized> Clone for ByteReceiver<C, S> {
    /// A further handle. If there is no place for it, with a million of this process's already, all
    /// it gives is [`Fault::TooManyPeers`].
    fn clone(&self) -> Self {
        let hold = self.channel.receivers.again(&self.hold);
        ByteReceiver { hold, channel: self.channel.clone(), store: PhantomData }
    }
}

impl<C: Deref<Target = ByteChannel<S>>, S: Store + ?Sized> Drop for ByteSender<C, S> {
    fn drop(&mut self) {
        self.channel.give_back(&self.hold, NO_SENDERS);
    }
}

impl<C: Deref<Target = ByteChannel<S>>, S: Store + ?Sized> Drop for ByteReceiver<C, S> {
    fn drop(&mut self) {
        self.channel.give_back(&self.hold, NO_RECEIVERS);
    }
}

impl<C: Deref<Target = ByteChannel<S>>, S: Store + ?Sized> fmt::Debug for ByteSender<C, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ByteSender").field(&self.channel()).finish()
    }
}

impl<C: Deref<Target = ByteChannel<S>>, S: Store + ?Sized> fmt::Debug for ByteReceiver<C, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ByteReceiver").field(&self.channel()).finish()
    }
}

const BASE: u64 = begin::<FixedByteChannel<1>>(b"ByteChannel 1");

// SAFETY: `repr(C)`; the parts are shareable; no `Drop`.
unsafe impl<const BLOCKS: usize> Shareable for FixedByteChannel<BLOCKS> {
    const FINGERPRINT: u64 = mix_u64(BASE, BLOCKS as u64);
    const NEEDS_PEERS: bool = true;
    crate::__sized_shareable!();
    fn layout() -> Layout {
        Layout::of::<Self>("FixedByteChannel", const { &Self::FIELDS })
    }
    fn place(&self) {
        Shareable::place(&self.queue);
    }
    fn recover(&self, dead: &Dead) {
        self.mend(dead);
    }
    fn is_sound(&self) -> bool {
        self.queue.view().is_sound()
    }
}

// SAFETY: as above; the number of units is the pointer's, which `at` got from the checked header,
// and the size is that of the queue, behind what lies before it.
unsafe impl Shareable for ByteChannel {
    const FINGERPRINT: u64 = BASE;
    const ALIGN: usize = align_of::<FixedByteChannel<1>>();
    const NEEDS_PEERS: bool = true;
    fn layout() -> Layout {
        let (size, align) = (offset_of!(FixedByteChannel<1>, queue), Self::ALIGN);
        const {
            assert!(
                align_of::<FixedByteChannel<1>>() == align_of::<FixedByteQueue<1>>(),
                "the size of the queue is a multiple of the alignment"
            );
        }
        Layout { name: "ByteChannel", size, align, fields: const { &FIELDS_OF_ANY } }
    }
    fn size(len: usize) -> Option<usize> {
        let queue = <ByteQueue as Shareable>::size(len)?;
        let size = queue.checked_add(offset_of!(FixedByteChannel<1>, queue))?;
        Some(size).filter(|&size| isize::try_from(size).is_ok())
    }
    at_slice!();
    fn place(&self) {
        Shareable::place(&self.queue);
    }
    fn recover(&self, dead: &Dead) {
        self.mend(dead);
    }
    fn is_sound(&self) -> bool {
        self.queue.view().is_sound()
    }
}

impl WithCapacity for ByteChannel {
    fn units(capacity: usize) -> Option<usize> {
        <ByteQueue as WithCapacity>::units(capacity)
    }
}

const FIELDS_OF_ANY: [Field; 1] = [Field {
    name: "queue",
    offset: offset_of!(FixedByteChannel<1>, queue),
    count: 1,
    layout: <ByteQueue as Shareable>::layout,
}];

impl<S: Store + ?Sized> fmt::Debug for ByteChannel<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ByteChannel")
            .field("senders", &self.senders)
            .field("receivers", &self.receivers)
            .field("queue", &&self.queue)
            .finish()
    }
}
