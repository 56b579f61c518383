//! The same for messages of several levels: a [`PriorityQueue`] that knows who holds its two ends.
//!
//! ```
//! use outlast::{PriorityChannel, RecvError, Shared};
//!
//! let here = Shared::anonymous(PriorityChannel::<u64, 3, 16>::new())?; // three levels for 16 messages each
//! let there = Shared::<PriorityChannel<u64, 3, 16>>::from_fd(here.try_clone_fd()?)?; // as another process would
//! let (sender, receiver) = (here.sender()?, there.receiver()?);
//! sender.send(0, 7)?;
//! sender.send(2, 8)?;
//! drop(sender); // or the death of its process
//! assert_eq!((receiver.recv()?, receiver.recv()?), ((2, 8), (0, 7)));
//! assert_eq!(receiver.recv(), Err(RecvError::Disconnected));
//! # Ok::<(), outlast::Error>(())
//! ```
//!
//! # State
//! As in [`Channel`](super::Channel): two sets of holders; and the two bits of it, in the word of
//! each level that says whether that is closed. So who sends looks at the word of his own level,
//! and nowhere else.
//!
//! | the levels' bits of an end | meaning |
//! |---|---|
//! | set in none | somebody has the end, or nobody has had it yet |
//! | set in some | somebody is about to set or to clear the others, or was killed at that: then recovery sets them if the end is gone |
//! | set in all | the end was gone when they were set; who sees one asks the holders |
//!
//! # Invariants
//! I1 to I4 of [`Channel`](super), where I1 to I3 are those of each level's bit, and I4 is one of
//! all levels: a receiver is told that nobody can send only when there is nothing in any of them.
//! And
//! - I5. A receiver that finds nothing takes it for the end only if the bits of all levels were
//!   set. With some, it waits with those of an open channel, and who sets the others, or mends what
//!   he left, wakes all.
//! - I6. Receivers sleep on the two signals of all levels, who sends in his level. Who ends a claim
//!   of any level while the bits of all are set wakes all receivers (I5 of
//!   [`PriorityQueue`](crate::queue::priority)): with the bits of some, whoever is at them will.
//!
//! # Ordering
//! As there. The looks of a receiver at all levels come before its look at the holders, and that
//! comes before the one at what is in other hands: what was sent to a level after the first look,
//! by one who then left, is seen at the last.
//!
//! # Death
//! As there: first all levels are mended, then handles are taken, then the bits of all levels are
//! set, then all are woken, in all levels. Killed between the bits of two levels: recovery sets
//! all, if the end is gone. If it is not, some are set in vain, which costs those who see them a
//! look, no more.
#![expect(unsafe_code, reason = "promises that the bytes may be shared")]
use crate::deadline::Deadline;
use crate::error::Fault;
use crate::queue::ends::{Ends, Hold, Look, Sided};
use crate::queue::priority::{Delivery, PriorityQueue};
use crate::queue::{Invalid, NO_RECEIVERS, NO_SENDERS, RecvFailure, SendFailure};
use crate::queue::{RecvError, RecvTimeoutError, SendError, SendTimeoutError};
use crate::queue::{TryRecvError, TrySendError};
use crate::shareable::{Dead, Field, Layout, Plain, Shareable, begin, mix_u64};
use crate::sync::atomic::AtomicU32;
use crate::wait::signal::Signal;
use core::fmt;
use core::mem::offset_of;
use core::ops::Deref;
use std::time::{Duration, Instant};

/// A bounded queue of `LEVELS` levels (1 to 32) for `N` messages each with two ends to hold:
/// [`PrioritySender`]s and [`PriorityReceiver`]s.
///
/// As [`PriorityQueue`], and when the last sender of all processes is gone, by drop or death,
/// receivers get what is left in all levels, and then [`Disconnected`](RecvError::Disconnected);
/// senders get it, with their message, when the last receiver is gone. An end that nobody has had
/// yet is waited for, and one that was gone can be taken again. 64 processes can hold each end.
#[repr(C)]
pub struct PriorityChannel<T: Plain, const LEVELS: usize, const N: usize> {
    senders: Ends,
    receivers: Ends,
    queue: PriorityQueue<T, LEVELS, N>,
}

/// A handle of the senders' end of a [`PriorityChannel`].
///
/// Clones are further handles. Made by [`PriorityChannel::sender`] it borrows the channel; made by
/// [`Shared::sender`](crate::Shared::sender) it keeps it, and can move into a thread. In a process
/// made by `fork` a copied one does nothing: the child makes its own.
#[must_use = "the end is given up at once if this is not kept"]
pub struct PrioritySender<T: Plain, const LEVELS: usize, const N: usize, C>
where
    C: Deref<Target = PriorityChannel<T, LEVELS, N>>,
{
    hold: Hold,
    channel: C,
}

/// A handle of the receivers' end of a [`PriorityChannel`].
///
/// Clones are further handles, and a message goes to one of them. Made by
/// [`PriorityChannel::receiver`] it borrows the channel; made by
/// [`Shared::receiver`](crate::Shared::receiver) it keeps it, and can move into a thread. In a
/// process made by `fork` a copied one does nothing: the child makes its own.
#[must_use = "the end is given up at once if this is not kept"]
pub struct PriorityReceiver<T: Plain, const LEVELS: usize, const N: usize, C>
where
    C: Deref<Target = PriorityChannel<T, LEVELS, N>>,
{
    hold: Hold,
    channel: C,
}

impl<T: Plain, const LEVELS: usize, const N: usize> PriorityChannel<T, LEVELS, N> {
    /// An empty channel whose ends nobody has had, to be moved into shared memory.
    ///
    /// Other than 1 to 32 levels, or a capacity of 0, do not compile.
    #[must_use]
    #[expect(
        clippy::new_without_default,
        reason = "zero-filled memory is the default, and needs no value"
    )]
    pub fn new() -> Self {
        PriorityChannel {
            senders: Ends::new(),
            receivers: Ends::new(),
            queue: PriorityQueue::new(),
        }
    }

    /// A handle of the senders' end. All of a process's handles count as one.
    ///
    /// # Errors
    /// [`Fault::TooManyPeers`] if 64 other processes have one; see [`Fault`].
    pub fn sender(&self) -> Result<PrioritySender<T, LEVELS, N, &Self>, Fault> {
        PrioritySender::of(self)
    }

    /// A handle of the receivers' end. All of a process's handles count as one.
    ///
    /// # Errors
    /// [`Fault::TooManyPeers`] if 64 other processes have one; see [`Fault`].
    pub fn receiver(&self) -> Result<PriorityReceiver<T, LEVELS, N, &Self>, Fault> {
        PriorityReceiver::of(self)
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

    /// How many levels there are.
    #[must_use]
    pub fn levels(&self) -> usize {
        LEVELS
    }

    /// How many messages can be in one level at a time.
    #[must_use]
    pub fn capacity(&self) -> usize {
        N
    }

    /// As [`PriorityQueue::len`].
    #[must_use]
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// As [`PriorityQueue::len_of`].
    #[must_use]
    pub fn len_of(&self, priority: usize) -> usize {
        self.queue.len_of(priority)
    }

    /// Whether there is nothing to receive. May change at any moment.
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

    /// As [`PriorityQueue::join`].
    ///
    /// # Errors
    /// If this process cannot become a peer.
    pub fn join(&self) -> Result<(), Fault> {
        self.queue.join()
    }

    /// As [`PriorityQueue::join_timeout`].
    ///
    /// # Errors
    /// If this process cannot become a peer.
    pub fn join_timeout(&self, timeout: Duration) -> Result<bool, Fault> {
        self.queue.join_timeout(timeout)
    }

    /// As [`PriorityQueue::join_deadline`].
    ///
    /// # Errors
    /// If this process cannot become a peer.
    pub fn join_deadline(&self, deadline: Instant) -> Result<bool, Fault> {
        self.queue.join_deadline(deadline)
    }

    const FIELDS: [Field; 1] = [Field {
        name: "queue",
        offset: offset_of!(Self, queue),
        count: 1,
        layout: <PriorityQueue<T, LEVELS, N> as Shareable>::layout,
    }];
}

impl<T: Plain, const LEVELS: usize, const N: usize> Sided for PriorityChannel<T, LEVELS, N> {
    fn side(&self, bit: u32) -> &Ends {
        if bit == NO_SENDERS { &self.senders } else { &self.receivers }
    }
    fn ended(&self) -> impl Iterator<Item = &AtomicU32> + Clone {
        self.queue.levels.iter().map(|level| &level.shared.ended)
    }
    fn tell(&self, bit: u32) {
        if bit == NO_SENDERS {
            self.queue.signals().into_iter().for_each(Signal::notify_all);
        } else {
            self.queue.levels.iter().for_each(|level| level.shared.not_full.notify_all());
        }
    }
}

// ------------------------------------------------------------------ sending
impl<T: Plain, const LEVELS: usize, const N: usize, C> PrioritySender<T, LEVELS, N, C>
where
    C: Deref<Target = PriorityChannel<T, LEVELS, N>>,
{
    /// A handle that keeps whatever leads to the channel.
    ///
    /// # Errors
    /// As [`PriorityChannel::sender`].
    pub fn of(channel: C) -> Result<Self, Fault> {
        Ok(PrioritySender { hold: channel.senders.hold()?, channel })
    }

    /// The channel.
    pub fn channel(&self) -> &PriorityChannel<T, LEVELS, N> {
        &self.channel
    }

    /// Sends a message of level `priority`, waiting for a free slot of that level as long as it
    /// takes.
    ///
    /// ```
    /// use outlast::{Fault, PriorityChannel, SendError, Shared};
    ///
    /// let here = Shared::anonymous(PriorityChannel::<u64, 2, 16>::new())?;
    /// let there = Shared::<PriorityChannel<u64, 2, 16>>::from_fd(here.try_clone_fd()?)?; // as another process would
    /// let (sender, receiver) = (here.sender()?, there.receiver()?);
    /// assert_eq!(sender.send(2, 7), Err(SendError::Failed(7, Fault::NoSuchLevel)));
    /// sender.send(1, 7)?;
    /// drop(receiver); // the last one
    /// assert_eq!(sender.send(0, 8), Err(SendError::Disconnected(8)));
    /// # Ok::<(), outlast::Error>(())
    /// ```
    ///
    /// # Errors
    /// Gives the message back if the channel is closed, or the last receiver gone, if this process
    /// cannot become a peer, or, with [`Fault::NoSuchLevel`], if there is no such level.
    #[inline]
    pub fn send(&self, priority: usize, message: T) -> Result<(), SendError<T>> {
        self.send_until(priority, message, Deadline::NEVER).map_err(SendFailure::for_ever)
    }

    /// Sends a message if a slot of its level is free. Never blocks.
    ///
    /// # Errors
    /// As [`send`](Self::send), and if the level is full.
    #[inline]
    pub fn try_send(&self, priority: usize, message: T) -> Result<(), TrySendError<T>> {
        match self.check(priority).and_then(|()| self.channel.queue.push(priority, &message)) {
            Err(SendFailure::Closed) => {
                self.send_slow(priority, message, Deadline::after(Duration::ZERO))
            }
            pushed => pushed.map_err(|unsent| (message, unsent)),
        }
        .map_err(SendFailure::at_once)
    }

    /// Sends a message, waiting for a free slot of its level at most `timeout`.
    ///
    /// # Errors
    /// As [`send`](Self::send), and if that takes too long.
    pub fn send_timeout(
        &self,
        priority: usize,
        message: T,
        timeout: Duration,
    ) -> Result<(), SendTimeoutError<T>> {
        self.send_until(priority, message, Deadline::after(timeout)).map_err(SendFailure::in_time)
    }

    /// Sends a message, waiting for a free slot of its level until `deadline` at most. A slot that
    /// is free is used even if that has passed.
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

    /// Whether both are handles of the same channel.
    pub fn same_channel(&self, other: &Self) -> bool {
        core::ptr::eq(self.channel(), other.channel())
    }

    #[inline(always)]
    fn check(&self, priority: usize) -> Result<(), SendFailure> {
        self.hold.check().map_err(SendFailure::Failed)?;
        if priority < LEVELS { Ok(()) } else { Err(SendFailure::Failed(Fault::NoSuchLevel)) }
    }

    #[inline(always)]
    fn send_until(
        &self,
        priority: usize,
        message: T,
        deadline: Deadline,
    ) -> Result<(), (T, SendFailure)> {
        if let Err(unsent) = self.check(priority) {
            return Err((message, unsent));
        }
        match self.channel.queue.push(priority, &message) {
            Ok(()) => Ok(()),
            Err(_) => self.send_slow(priority, message, deadline),
        }
    }

    /// By value, as the queue's.
    #[cold]
    #[inline(never)]
    fn send_slow(
        &self,
        priority: usize,
        mut message: T,
        deadline: Deadline,
    ) -> Result<(), (T, SendFailure)> {
        // The word that refused it: others may say otherwise, for a moment, or as they are damaged.
        let level = &self.channel.queue.levels[priority];
        loop {
            match self.channel.queue.send_until(priority, message, deadline) {
                Err((back, SendFailure::Closed)) if !level.is_closed() => {
                    if self.channel.is_cut_off(NO_RECEIVERS) {
                        return Err((back, SendFailure::Disconnected));
                    }
                    message = back;
                }
                done => return done,
            }
        }
    }
}

// ---------------------------------------------------------------- receiving
impl<T: Plain, const LEVELS: usize, const N: usize, C> PriorityReceiver<T, LEVELS, N, C>
where
    C: Deref<Target = PriorityChannel<T, LEVELS, N>>,
{
    /// A handle that keeps whatever leads to the channel.
    ///
    /// # Errors
    /// As [`PriorityChannel::receiver`].
    pub fn of(channel: C) -> Result<Self, Fault> {
        Ok(PriorityReceiver { hold: channel.receivers.hold()?, channel })
    }

    /// The channel.
    pub fn channel(&self) -> &PriorityChannel<T, LEVELS, N> {
        &self.channel
    }

    /// Receives the most urgent message with its level, waiting for one as long as it takes.
    ///
    /// A process that is killed after `recv` has returned takes the message with it: where that
    /// matters, see [`recv_ack`](Self::recv_ack).
    ///
    /// # Errors
    /// If the channel is empty and closed, or the last sender gone, if this process cannot become a
    /// peer, or if what came out is no value of the type (it is consumed).
    #[inline]
    pub fn recv(&self) -> Result<(usize, T), RecvError> {
        RecvFailure::for_ever(self.recv_until(Deadline::NEVER, Invalid::Consumed))
    }

    /// Receives the most urgent message if there is one. Never blocks.
    ///
    /// # Errors
    /// As [`recv`](Self::recv), and if the channel is empty. For the moment in which another
    /// receives the last message that is what it gives, too, when nobody can send.
    #[inline]
    pub fn try_recv(&self) -> Result<(usize, T), TryRecvError> {
        RecvFailure::at_once(self.try_take(Invalid::Consumed))
    }

    /// Receives the most urgent message, waiting for one at most `timeout`.
    ///
    /// # Errors
    /// As [`recv`](Self::recv), and if that takes too long.
    pub fn recv_timeout(&self, timeout: Duration) -> Result<(usize, T), RecvTimeoutError> {
        RecvFailure::in_time(self.recv_until(Deadline::after(timeout), Invalid::Consumed))
    }

    /// Receives the most urgent message, waiting for one until `deadline` at most. A message that
    /// is there is received even if that has passed.
    ///
    /// # Errors
    /// As [`recv_timeout`](Self::recv_timeout).
    pub fn recv_deadline(&self, deadline: Instant) -> Result<(usize, T), RecvTimeoutError> {
        RecvFailure::in_time(self.recv_until(Deadline::at(deadline), Invalid::Consumed))
    }

    /// As [`PriorityQueue::recv_ack`].
    ///
    /// ```
    /// use outlast::{PriorityChannel, RecvError, Shared};
    ///
    /// let here = Shared::anonymous(PriorityChannel::<u64, 2, 16>::new())?;
    /// let there = Shared::<PriorityChannel<u64, 2, 16>>::from_fd(here.try_clone_fd()?)?; // as another process would
    /// let receiver = there.receiver()?;
    /// here.sender()?.send(1, 7)?; // and leaves
    /// drop(receiver.recv_ack()?); // in vain: it comes back
    /// let job = receiver.recv_ack()?;
    /// assert_eq!((*job, job.priority(), job.attempts()), (7, 1, 1));
    /// job.ack()?;
    /// assert_eq!(receiver.recv_ack().unwrap_err(), RecvError::Disconnected);
    /// # Ok::<(), outlast::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`recv`](Self::recv). While others hold deliveries that may come back, only a process
    /// that holds some itself, of any level, is told that nobody is left to send; the others wait
    /// for what becomes of them.
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

    /// Messages with their levels until nothing more can come, waiting for each. A `for` loop over
    /// `&receiver` does the same.
    ///
    /// A message that is no value of the type ends the iteration and is consumed: a later iteration
    /// goes on behind it. [`recv`](Self::recv) reports it.
    ///
    /// ```
    /// use outlast::{PriorityChannel, Shared};
    ///
    /// let here = Shared::anonymous(PriorityChannel::<u64, 2, 16>::new())?;
    /// let there = Shared::<PriorityChannel<u64, 2, 16>>::from_fd(here.try_clone_fd()?)?; // as another process would
    /// let (sender, receiver) = (here.sender()?, there.receiver()?);
    /// sender.send(0, 7)?;
    /// sender.send(1, 8)?;
    /// drop(sender);
    /// assert_eq!(receiver.iter().collect::<Vec<_>>(), [(1, 8), (0, 7)]);
    /// # Ok::<(), outlast::Error>(())
    /// ```
    pub fn iter(&self) -> Iter<'_, T, LEVELS, N, C> {
        Iter(self)
    }

    /// The messages that are there, without waiting. It ends before a message that is no value of
    /// the type: the next `recv` reports that.
    pub fn try_iter(&self) -> impl Iterator<Item = (usize, T)> + '_ {
        core::iter::from_fn(|| self.try_take(Invalid::Left).ok().flatten())
    }

    /// Whether both are handles of the same channel.
    pub fn same_channel(&self, other: &Self) -> bool {
        core::ptr::eq(self.channel(), other.channel())
    }

    #[inline(always)]
    fn take(&self, invalid: Invalid) -> Result<Option<(usize, T)>, RecvFailure> {
        self.hold.check().map_err(RecvFailure::Failed)?;
        self.channel.queue.take(invalid)
    }

    #[inline(always)]
    fn try_take(&self, invalid: Invalid) -> Result<Option<(usize, T)>, RecvFailure> {
        match self.take(invalid) {
            Err(RecvFailure::Closed) => self.recv_slow(Deadline::after(Duration::ZERO), invalid),
            done => done,
        }
    }

    #[inline(always)]
    fn recv_until(
        &self,
        deadline: Deadline,
        invalid: Invalid,
    ) -> Result<Option<(usize, T)>, RecvFailure> {
        match self.take(invalid) {
            Ok(None) | Err(RecvFailure::Closed) => self.recv_slow(deadline, invalid),
            done => done,
        }
    }

    #[cold]
    #[inline(never)]
    fn recv_slow(
        &self,
        deadline: Deadline,
        invalid: Invalid,
    ) -> Result<Option<(usize, T)>, RecvFailure> {
        self.to_the_end(deadline, || self.channel.queue.recv_until(deadline, invalid))
    }

    /// For iterators that wait. A message that is no value is consumed: left there, it would end
    /// each further loop as well.
    fn next_value(&self) -> Option<(usize, T)> {
        self.recv_until(Deadline::NEVER, Invalid::Consumed).ok().flatten()
    }

    pub(in crate::queue) fn deliver_now(&self) -> Result<Option<Delivery<'_, T>>, RecvFailure> {
        self.to_the_end(Deadline::after(Duration::ZERO), || self.channel.queue.deliver_now())
    }

    pub(in crate::queue) fn deliver_until(
        &self,
        deadline: Deadline,
    ) -> Result<Option<Delivery<'_, T>>, RecvFailure> {
        self.to_the_end(deadline, || self.channel.queue.deliver_until(deadline))
    }

    /// As that of [`Receiver`](super::Receiver), over all levels.
    fn to_the_end<R>(
        &self,
        deadline: Deadline,
        receive: impl Fn() -> Result<Option<R>, RecvFailure>,
    ) -> Result<Option<R>, RecvFailure> {
        self.hold.check().map_err(RecvFailure::Failed)?;
        let queue = &self.channel.queue;
        let look = Look {
            is_closed: &|| queue.is_closed(),
            is_quiet: &|| queue.is_quiet(),
            may_have_message: &|| queue.may_have_message(),
            arrived: &queue.arrived,
        };
        self.channel.to_the_end(look, deadline, receive)
    }
}

/// Receives until nothing more can come: made by [`PriorityReceiver::iter`].
#[derive(Debug)]
pub struct Iter<'a, T: Plain, const LEVELS: usize, const N: usize, C>(
    &'a PriorityReceiver<T, LEVELS, N, C>,
)
where
    C: Deref<Target = PriorityChannel<T, LEVELS, N>>;

impl<T: Plain, const LEVELS: usize, const N: usize, C> Iterator for Iter<'_, T, LEVELS, N, C>
where
    C: Deref<Target = PriorityChannel<T, LEVELS, N>>,
{
    type Item = (usize, T);
    fn next(&mut self) -> Option<(usize, T)> {
        self.0.next_value()
    }
}

impl<'a, T: Plain, const LEVELS: usize, const N: usize, C> IntoIterator
    for &'a PriorityReceiver<T, LEVELS, N, C>
where
    C: Deref<Target = PriorityChannel<T, LEVELS, N>>,
{
    type Item = (usize, T);
    type IntoIter = Iter<'a, T, LEVELS, N, C>;
    fn into_iter(self) -> Iter<'a, T, LEVELS, N, C> {
        self.iter()
    }
}

/// Receives all, until nothing more can come: made by `PriorityReceiver::into_iter`.
#[derive(Debug)]
pub struct IntoIter<T: Plain, const LEVELS: usize, const N: usize, C>(
    PriorityReceiver<T, LEVELS, N, C>,
)
where
    C: Deref<Target = PriorityChannel<T, LEVELS, N>>;

impl<T: Plain, const LEVELS: usize, const N: usize, C> Iterator for IntoIter<T, LEVELS, N, C>
where
    C: Deref<Target = PriorityChannel<T, LEVELS, N>>,
{
    type Item = (usize, T);
    fn next(&mut self) -> Option<(usize, T)> {
        self.0.next_value()
    }
}

impl<T: Plain, const LEVELS: usize, const N: usize, C> IntoIterator
    for PriorityReceiver<T, LEVELS, N, C>
where
    C: Deref<Target = PriorityChannel<T, LEVELS, N>>,
{
    type Item = (usize, T);
    type IntoIter = IntoIter<T, LEVELS, N, C>;
    fn into_iter(self) -> IntoIter<T, LEVELS, N, C> {
        IntoIter(self)
    }
}

// ------------------------------------------------------------------- handles
impl<T: Plain, const LEVELS: usize, const N: usize, C> Clone for PrioritySender<T, LEVELS, N, C>
where
    C: Deref<Target = PriorityChannel<T, LEVELS, N>> + Clone,
{
    /// A further handle. If there is no place for it, with a million of this process's already, all
    /// it gives is [`Fault::TooManyPeers`].
    fn clone(&self) -> Self {
        let hold = self.channel.senders.again(&self.hold);
        PrioritySender { hold, channel: self.channel.clone() }
    }
}

impl<T: Plain, const LEVELS: usize, const N: usize, C> Clone for PriorityReceiver<T, LEVELS, N, C>
where
    C: Deref<Target = PriorityChannel<T, LEVELS, N>> + Clone,
{
    /// A further handle. If there is no place for it, with a million of this process's already, all
    /// it gives is [`Fault::TooManyPeers`].
    fn clone(&self) -> Self {
        let hold = self.channel.receivers.again(&self.hold);
        PriorityReceiver { hold, channel: self.channel.clone() }
    }
}

impl<T: Plain, const LEVELS: usize, const N: usize, C> Drop for PrioritySender<T, LEVELS, N, C>
where
    C: Deref<Target = PriorityChannel<T, LEVELS, N>>,
{
    fn drop(&mut self) {
        self.channel.give_back(&self.hold, NO_SENDERS);
    }
}

impl<T: Plain, const LEVELS: usize, const N: usize, C> Drop for PriorityReceiver<T, LEVELS, N, C>
where
    C: Deref<Target = PriorityChannel<T, LEVELS, N>>,
{
    fn drop(&mut self) {
        self.channel.give_back(&self.hold, NO_RECEIVERS);
    }
}

impl<T: Plain, const LEVELS: usize, const N: usize, C> fmt::Debug
    for PrioritySender<T, LEVELS, N, C>
where
    C: Deref<Target = PriorityChannel<T, LEVELS, N>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PrioritySender").field(&self.channel()).finish()
    }
}

impl<T: Plain, const LEVELS: usize, const N: usize, C> fmt::Debug
    for PriorityReceiver<T, LEVELS, N, C>
where
    C: Deref<Target = PriorityChannel<T, LEVELS, N>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PriorityReceiver").field(&self.channel()).finish()
    }
}

// SAFETY: `repr(C)`; the parts are shareable; no `Drop`.
unsafe impl<T: Plain, const LEVELS: usize, const N: usize> Shareable
    for PriorityChannel<T, LEVELS, N>
{
    const FINGERPRINT: u64 = mix_u64(
        begin::<Self>(b"PriorityChannel 1"),
        <PriorityQueue<T, LEVELS, N> as Shareable>::FINGERPRINT,
    );
    const NEEDS_PEERS: bool = true;
    crate::__sized_shareable!();
    fn layout() -> Layout {
        Layout::of::<Self>("PriorityChannel", const { &Self::FIELDS })
    }
    fn place(&self) {
        self.queue.place();
    }
    fn recover(&self, dead: &Dead) {
        self.queue.mend(dead);
        self.bereave(dead); // keeps I1
        self.queue.wake_everybody();
    }
}

impl<T: Plain, const LEVELS: usize, const N: usize> fmt::Debug for PriorityChannel<T, LEVELS, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PriorityChannel")
            .field("senders", &self.senders)
            .field("receivers", &self.receivers)
            .field("queue", &self.queue)
            .finish()
    }
}
