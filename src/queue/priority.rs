//! A queue of several levels: what is more urgent is received first.
//!
//! ```
//! use outlast::{PriorityQueue, Shared};
//!
//! let here = Shared::anonymous(PriorityQueue::<u64, 3, 16>::new())?; // three levels for 16 messages each
//! let there = Shared::<PriorityQueue<u64, 3, 16>>::from_fd(here.try_clone_fd()?)?; // as another process would
//! here.send(0, 7)?;
//! here.send(2, 8)?;
//! assert_eq!((there.recv()?, there.recv()?), ((2, 8), (0, 7)));
//! # Ok::<(), outlast::Error>(())
//! ```
//!
//! # State
//! A [`Queue`] for each level, whose states are all there are; and two signals for the receivers of
//! all levels, who sleep nowhere else. Senders sleep in their level, until it has a free slot.
//!
//! # Invariants
//! - I1. Whoever makes a message available in a level, or ends what barred one (a send, a delivery
//!   that is given back, a recovery), then asks whether anybody sleeps on `arrived`, and wakes one.
//! - I2. Where a receiver has taken a message, others may be asleep, and there is more in any
//!   level, it wakes one more: the one that the earlier wake was for may have found its way barred
//!   by a slower sender, and gone back to sleep.
//! - I3. A receiver that found a message, but no cell to be delivered in, passes its wake on before
//!   it sleeps on `cell_free`. It is woken there by what frees a cell, and by new messages, which
//!   may be in a level that has cells.
//! - I4. Some level is closed => level 0 is. Recovery closes the others, if who closed them was
//!   killed half-way.
//! - I5. The end of any claim (a reception, a send that is taken back, an acknowledgement, a cell
//!   taken in vain) wakes all receivers if nothing more can be sent to any level, because the queue
//!   is closed or, in a [`Channel`](super::Channel), nobody sends: they may wait
//!   for what becomes of the claim. An attempt that claims nothing wakes nobody: a receiver that
//!   looks before it sleeps would wake itself without end.
//!
//! # Ordering
//! As in each level. The commit in a level is followed by a light fence, and the question who
//! sleeps comes after that; a receiver arms, fences for all, and looks at all levels once more.
//! That nothing comes any more is said after one heavy fence for all levels, too, and asked only
//! when all are empty: what is left in a low one is not to wait for that at each of those above.
//!
//! # Death
//! As in each level. Killed between a commit and its wake, or as the one who was woken: recovery
//! wakes all.
use super::{
    CLOSED, DeliveryFailure, FixedQueue, Invalid, LIGHT, NO_SENDERS, Queue, RecvFailure,
    SendFailure, Verdict,
};
use crate::deadline::Deadline;
use crate::error::Fault;
use crate::queue::{
    RecvError, RecvTimeoutError, SendError, SendTimeoutError, TryRecvError, TrySendError,
};
use crate::segment::become_known;
use crate::shareable::{Dead, Field, Layout, Plain, Shareable, begin, mix_u64};
use crate::sync::atomic::Ordering::{Release, SeqCst};
use crate::sync::atomic::fence;
use crate::sys::hooks;
use crate::wait::signal::Signal;
use core::fmt;
use core::mem::{ManuallyDrop, offset_of};
use core::ops::Deref;
use std::time::{Duration, Instant};

/// A bounded queue of `LEVELS` levels (1 to 32) for `N` messages each.
///
/// A message of a level with a larger number is received before any of a smaller one; within a
/// level, first in, first out, with the exceptions of [`Queue`]. What was sent before a receiver
/// asks is what it chooses from; a message behind one that is still being written does not count
/// yet. Each level has its own slots, so that what is urgent finds room among what is not.
#[repr(C)]
pub struct PriorityQueue<T: Plain, const LEVELS: usize, const N: usize> {
    /// A message can be received.
    pub(super) arrived: Signal<LIGHT>,
    /// A cell is free.
    pub(super) cell_free: Signal<LIGHT>,
    pub(super) levels: [FixedQueue<T, N>; LEVELS],
}

/// A message that has been received from a [`PriorityQueue`], and must be acknowledged.
///
/// As [`Delivery`](super::Delivery).
#[must_use = "a delivery that is dropped is delivered again"]
pub struct Delivery<'a, T: Plain> {
    inner: ManuallyDrop<super::Delivery<'a, T>>,
    level: usize,
    signals: [&'a Signal<LIGHT>; 2],
}

impl<T: Plain, const LEVELS: usize, const N: usize> PriorityQueue<T, LEVELS, N> {
    const CHECKED: () = assert!(LEVELS >= 1 && LEVELS <= 32, "there are 1 to 32 levels");

    /// An empty queue, to be moved into shared memory.
    ///
    /// Other than 1 to 32 levels, or a capacity of 0, do not compile.
    #[must_use]
    #[expect(
        clippy::new_without_default,
        reason = "zero-filled memory is the default, and needs no value"
    )]
    pub fn new() -> Self {
        const { Self::CHECKED }
        PriorityQueue {
            arrived: Signal::new(),
            cell_free: Signal::new(),
            levels: core::array::from_fn(|_| FixedQueue::new()),
        }
    }

    /// Sends a message of level `priority`, waiting for a free slot of that level as long as it
    /// takes.
    ///
    /// # Errors
    /// Gives the message back if the queue is closed, if this process cannot become a peer, or,
    /// with [`Fault::NoSuchLevel`], if there is no such level.
    #[doc(alias = "push")]
    #[doc(alias = "put")]
    pub fn send(&self, priority: usize, message: T) -> Result<(), SendError<T>> {
        self.send_until(priority, message, Deadline::NEVER).map_err(SendFailure::for_ever)
    }

    /// Sends a message if a slot of its level is free. Never blocks.
    ///
    /// # Errors
    /// As [`send`](Self::send), and if the level is full.
    #[doc(alias = "put_nowait")]
    pub fn try_send(&self, priority: usize, message: T) -> Result<(), TrySendError<T>> {
        self.push(priority, &message).map_err(|unsent| SendFailure::at_once((message, unsent)))
    }

    #[inline(always)]
    pub(super) fn push(&self, priority: usize, message: &T) -> Result<(), SendFailure> {
        let level = self.levels.get(priority).ok_or(SendFailure::Failed(Fault::NoSuchLevel))?;
        let sent = level.push(message);
        self.after_send(sent.as_ref().err());
        sent
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

    pub(super) fn send_until(
        &self,
        priority: usize,
        message: T,
        deadline: Deadline,
    ) -> Result<(), (T, SendFailure)> {
        let Some(level) = self.levels.get(priority) else {
            return Err((message, SendFailure::Failed(Fault::NoSuchLevel)));
        };
        let sent = level.send_until(message, deadline);
        self.after_send(sent.as_ref().err().map(|(_, unsent)| unsent));
        sent
    }

    /// A send has committed, and fenced lightly; or has given up a slot, as the queue was closed or
    /// nobody left to receive, that barred others.
    #[inline(always)]
    fn after_send(&self, unsent: Option<&SendFailure>) {
        if self.arrived.is_armed() || self.cell_free.is_armed() {
            self.wake_for_send(matches!(unsent, None | Some(SendFailure::Closed)));
        }
    }

    #[cold]
    fn wake_for_send(&self, moved: bool) {
        if moved {
            self.arrived.notify(1); // keeps I1
            self.cell_free.notify(1); // keeps I3
            self.notify_of_quiet(); // keeps I5
        }
    }

    /// Receives the most urgent message with its level, waiting for one as long as it takes.
    ///
    /// A process that is killed after `recv` has returned takes the message with it: where that
    /// matters, see [`recv_ack`](Self::recv_ack).
    ///
    /// # Errors
    /// If the queue is closed and empty, if this process cannot become a peer, or if what came out
    /// is no value of the type (it is consumed).
    #[doc(alias = "pop")]
    #[doc(alias = "get")]
    pub fn recv(&self) -> Result<(usize, T), RecvError> {
        RecvFailure::for_ever(self.recv_until(Deadline::NEVER, Invalid::Consumed))
    }

    /// Receives the most urgent message if there is one. Never blocks.
    ///
    /// # Errors
    /// As [`recv`](Self::recv), and if the queue is empty.
    #[doc(alias = "get_nowait")]
    pub fn try_recv(&self) -> Result<(usize, T), TryRecvError> {
        RecvFailure::at_once(self.take(Invalid::Consumed))
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

    /// Receives the most urgent message, which counts as done only when it is acknowledged.
    ///
    /// As [`Queue::recv_ack`]. At most [`IN_FLIGHT`](super::IN_FLIGHT) messages of each level can
    /// be unacknowledged at a time; beyond that, a level is passed by.
    ///
    /// ```
    /// use outlast::{PriorityQueue, Shared};
    ///
    /// let here = Shared::anonymous(PriorityQueue::<u64, 2, 16>::new())?;
    /// let there = Shared::<PriorityQueue<u64, 2, 16>>::from_fd(here.try_clone_fd()?)?; // as another process would
    /// here.send(0, 1)?;
    /// here.send(1, 2)?;
    /// let urgent = there.recv_ack()?;
    /// assert_eq!((*urgent, urgent.priority()), (2, 1));
    /// urgent.ack()?;
    /// assert_eq!(there.len(), 1);
    /// # Ok::<(), outlast::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
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

    /// Messages until the queue is closed and empty, or cannot be used, waiting for each.
    ///
    /// A message that is no value of the type ends the iteration and is consumed: a later iteration
    /// goes on behind it. [`recv`](Self::recv) reports it.
    pub fn iter(&self) -> impl Iterator<Item = (usize, T)> + '_ {
        let next = || self.recv_until(Deadline::NEVER, Invalid::Consumed);
        core::iter::from_fn(move || next().ok().flatten())
    }

    /// The messages that are there, without waiting.
    ///
    /// It ends before a message that is no value of the type: the next `recv` reports that.
    #[doc(alias = "drain")]
    pub fn try_iter(&self) -> impl Iterator<Item = (usize, T)> + '_ {
        core::iter::from_fn(|| self.take(Invalid::Left).ok().flatten())
    }

    pub(super) fn recv_until(
        &self,
        deadline: Deadline,
        invalid: Invalid,
    ) -> Result<Option<(usize, T)>, RecvFailure> {
        match self.take(invalid) {
            Ok(None) => self.recv_slow(deadline, invalid),
            done => done,
        }
    }

    #[cold]
    fn recv_slow(
        &self,
        deadline: Deadline,
        invalid: Invalid,
    ) -> Result<Option<(usize, T)>, RecvFailure> {
        let waited = self.arrived.wait(deadline, || self.take(invalid).transpose());
        waited.map_or(Ok(None), |done| done.map(Some))
    }

    /// The levels, the most urgent first.
    fn descend(&self) -> impl Iterator<Item = (usize, &Queue<T>)> {
        self.levels.iter().map(|level| &**level).enumerate().rev()
    }

    /// Whether nobody sends to any of the levels. Behind the fence that this comes with, whoever
    /// finds nothing in them can say so.
    fn is_over(&self) -> bool {
        let over = self.levels.iter().all(|level| level.has_ended(CLOSED | NO_SENDERS));
        if over {
            Signal::<LIGHT>::fence_before_verdict();
        }
        over
    }

    #[inline]
    pub(super) fn take(&self, invalid: Invalid) -> Result<Option<(usize, T)>, RecvFailure> {
        match self.take_for(Verdict::Deferred, invalid) {
            Ok(None) if self.is_over() => self.take_for(Verdict::Given, invalid),
            done => done,
        }
    }

    #[inline(always)]
    fn take_for(
        &self,
        verdict: Verdict,
        invalid: Invalid,
    ) -> Result<Option<(usize, T)>, RecvFailure> {
        let mut open = false;
        for (priority, level) in self.descend() {
            match level.take_for(verdict, invalid) {
                Ok(Some(message)) => {
                    self.pass_on();
                    return Ok(Some((priority, message)));
                }
                Ok(None) => open = true,
                Err(RecvFailure::Failed(fault)) => {
                    self.pass_on(); // it may have been a message, or is one that was left
                    return Err(RecvFailure::Failed(fault));
                }
                Err(RecvFailure::Closed | RecvFailure::Disconnected) => {}
            }
        }
        if open { Ok(None) } else { Err(RecvFailure::Closed) }
    }

    pub(super) fn deliver(&self) -> Result<Option<Delivery<'_, T>>, DeliveryFailure> {
        match self.deliver_for(Verdict::Deferred) {
            Ok(None) if self.is_over() => self.deliver_for(Verdict::Given),
            done => done,
        }
    }

    pub(super) fn deliver_now(&self) -> Result<Option<Delivery<'_, T>>, RecvFailure> {
        DeliveryFailure::at_once(self.deliver())
    }

    fn deliver_for(&self, verdict: Verdict) -> Result<Option<Delivery<'_, T>>, DeliveryFailure> {
        let (mut open, mut barred) = (verdict == Verdict::Deferred, false);
        for (priority, level) in self.descend() {
            match level.deliver_for(verdict, || self.notify_of_quiet()) {
                Ok(Some(inner)) => {
                    fence(SeqCst); // not all of its commits are followed by one
                    self.pass_on();
                    let inner = ManuallyDrop::new(inner);
                    return Ok(Some(Delivery { inner, level: priority, signals: self.signals() }));
                }
                Ok(None) => open = true,
                Err(DeliveryFailure::TooManyInFlight) => barred = true,
                Err(DeliveryFailure::Recv(RecvFailure::Failed(fault))) => {
                    self.pass_on(); // it may have been a message
                    return Err(DeliveryFailure::Recv(RecvFailure::Failed(fault)));
                }
                Err(DeliveryFailure::Recv(_)) => {}
            }
        }
        match (barred, open) {
            (true, _) => Err(DeliveryFailure::TooManyInFlight),
            (false, true) => Ok(None),
            (false, false) => Err(DeliveryFailure::Recv(RecvFailure::Closed)),
        }
    }

    pub(super) fn deliver_until(
        &self,
        deadline: Deadline,
    ) -> Result<Option<Delivery<'_, T>>, RecvFailure> {
        super::deliver_until(self.signals(), deadline, || self.deliver())
    }

    /// Whether there are messages, but no cell in any of their levels.
    fn is_barred(&self) -> bool {
        let mut waiting = self.levels.iter().filter(|level| level.may_have_message()).peekable();
        waiting.peek().is_some() && !waiting.any(|level| level.cells.iter().any(Queue::is_takeable))
    }

    /// After a message was taken, which was followed by a light fence at least.
    #[inline(always)]
    fn pass_on(&self) {
        if self.arrived.is_armed() || self.cell_free.is_armed() {
            self.wake_for_more();
        }
    }

    #[cold]
    fn wake_for_more(&self) {
        if self.may_have_message() {
            self.arrived.notify(1); // keeps I2
            if !self.is_barred() {
                self.cell_free.notify(1); // what it was told of may have been left
            }
        }
        self.notify_of_quiet();
    }

    /// As the levels do for receivers of their own, who do not sleep there: keeps I5.
    fn notify_of_quiet(&self) {
        if self.levels.iter().all(|level| level.has_ended(CLOSED | NO_SENDERS)) {
            self.signals().into_iter().for_each(|signal| signal.notify(u32::MAX));
        }
    }

    /// As [`Queue::is_quiet`], of all levels: a process that holds a delivery of any does not wait
    /// for others'.
    pub(super) fn is_quiet(&self) -> bool {
        let levels = self.levels.iter().map(|level| &**level);
        self.levels[0].identify().is_ok_and(|owner| Queue::are_quiet(levels, owner))
    }

    pub(super) fn may_have_message(&self) -> bool {
        self.levels.iter().any(|level| level.may_have_message())
    }

    /// Where receivers sleep.
    pub(super) fn signals(&self) -> [&Signal<LIGHT>; 2] {
        [&self.arrived, &self.cell_free]
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

    /// How many messages are there: the sum of all levels. As [`Queue::len`].
    #[must_use]
    #[doc(alias = "qsize")]
    pub fn len(&self) -> usize {
        self.levels.iter().map(|level| level.len()).sum()
    }

    /// How many messages are in level `priority`; none if there is no such level. As
    /// [`Queue::len`].
    #[must_use]
    pub fn len_of(&self, priority: usize) -> usize {
        self.levels.get(priority).map_or(0, |level| level.len())
    }

    /// Whether there is nothing to receive. May change at any moment.
    #[must_use]
    #[doc(alias = "empty")]
    pub fn is_empty(&self) -> bool {
        self.levels.iter().all(|level| level.is_empty())
    }

    /// Closes the queue for good: nothing more can be sent; what is there can be received.
    ///
    /// Everybody who waits is woken.
    pub fn close(&self) {
        become_known(core::ptr::from_ref(self).addr());
        self.close_levels();
        hooks::pause("queue: closed, and nobody is woken");
        self.wake_everybody();
    }

    fn close_levels(&self) {
        for level in &self.levels {
            level.shared.ended.fetch_or(CLOSED, Release); // level 0 first: keeps I4
        }
        fence(SeqCst);
    }

    /// Whether the queue is closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.levels.first().is_some_and(|level| level.is_closed())
    }

    /// Waits until every message that was sent before has been received and, where it was delivered
    /// by `recv_ack`, acknowledged.
    ///
    /// Work that a dead process held counts as undone until another has acknowledged it.
    ///
    /// # Errors
    /// If this process cannot become a peer.
    pub fn join(&self) -> Result<(), Fault> {
        self.levels.iter().try_for_each(|level| level.join())
    }

    /// As [`join`](Self::join), at most `timeout`; whether all was done.
    ///
    /// # Errors
    /// If this process cannot become a peer.
    pub fn join_timeout(&self, timeout: Duration) -> Result<bool, Fault> {
        self.join_until(Deadline::after(timeout))
    }

    /// As [`join`](Self::join), until `deadline` at most; whether all was done.
    ///
    /// # Errors
    /// If this process cannot become a peer.
    pub fn join_deadline(&self, deadline: Instant) -> Result<bool, Fault> {
        self.join_until(Deadline::at(deadline))
    }

    pub(super) fn join_until(&self, deadline: Deadline) -> Result<bool, Fault> {
        for level in &self.levels {
            if !level.join_until(deadline)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    pub(super) fn wake_everybody(&self) {
        self.levels.iter().for_each(|level| level.wake_everybody());
        self.signals().into_iter().for_each(Signal::wake_all);
    }

    /// Mends what `dead` had claimed. Then everybody is to be woken.
    pub(super) fn mend(&self, dead: &Dead) {
        if self.is_closed() {
            self.close_levels(); // keeps I4
        }
        self.levels.iter().for_each(|level| level.mend(dead));
    }

    const FIELDS: [Field; 1] = [Field {
        name: "levels",
        offset: offset_of!(Self, levels),
        count: LEVELS,
        layout: <FixedQueue<T, N> as Shareable>::layout,
    }];
}

impl<T: Plain> Delivery<'_, T> {
    /// The message's level.
    #[must_use]
    pub fn priority(&self) -> usize {
        self.level
    }

    /// How often this message was delivered before without being acknowledged; 255 stands for more.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.inner.attempts()
    }

    /// Acknowledges the message, which is gone for good, and gives its value.
    ///
    /// # Errors
    /// As [`Delivery::ack`](super::Delivery::ack).
    #[doc(alias = "task_done")]
    pub fn ack(self) -> Result<T, Fault> {
        let mut delivery = ManuallyDrop::new(self);
        let (value, left) = delivery.take().settle()?;
        // A fence was behind the commit.
        if left {
            delivery.signals.into_iter().for_each(|signal| signal.notify(u32::MAX)); // keeps I5
        } else {
            delivery.signals[1].notify(1); // keeps I3
        }
        Ok(value)
    }

    /// Gives the message back, to be delivered again with one attempt more. The same as dropping
    /// it.
    pub fn nack(self) {}
}

#[expect(unsafe_code, reason = "the delivery inside is acknowledged or dropped with this one")]
impl<'a, T: Plain> Delivery<'a, T> {
    /// To be called once, by who never uses this again.
    fn take(&mut self) -> super::Delivery<'a, T> {
        // SAFETY: `ack` keeps this from being dropped and does not use it again; else it is only
        // called by drop.
        unsafe { ManuallyDrop::take(&mut self.inner) }
    }
}

impl<T: Plain> Deref for Delivery<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T: Plain> Drop for Delivery<'_, T> {
    fn drop(&mut self) {
        drop(self.take());
        // It can be received again, and the cell is one that a delivery can use: keeps I1.
        self.signals.into_iter().for_each(|signal| signal.notify(1));
    }
}

impl<T: Plain + fmt::Debug> fmt::Debug for Delivery<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("priority", &self.level)
            .field("inner", &*self.inner)
            .finish()
    }
}

// SAFETY: `repr(C)`; the parts are shareable; no `Drop`.
#[expect(unsafe_code, reason = "promises that the bytes may be shared")]
unsafe impl<T: Plain, const LEVELS: usize, const N: usize> Shareable
    for PriorityQueue<T, LEVELS, N>
{
    const FINGERPRINT: u64 = {
        let () = Self::CHECKED;
        mix_u64(
            mix_u64(begin::<Self>(b"PriorityQueue 1"), LEVELS as u64),
            FixedQueue::<T, N>::FINGERPRINT,
        )
    };
    const NEEDS_PEERS: bool = true;
    crate::__sized_shareable!();
    fn layout() -> Layout {
        Layout::of::<Self>("PriorityQueue", const { &Self::FIELDS })
    }
    fn place(&self) {
        self.signals().into_iter().for_each(Signal::place);
        self.levels.iter().for_each(Shareable::place);
    }
    fn recover(&self, dead: &Dead) {
        self.mend(dead);
        self.wake_everybody();
    }
}

impl<T: Plain, const LEVELS: usize, const N: usize> fmt::Debug for PriorityQueue<T, LEVELS, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PriorityQueue")
            .field("levels", &LEVELS)
            .field("capacity", &N)
            .field("len", &self.len())
            .field("closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}
