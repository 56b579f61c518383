//! Handles of messages: messages that must be acknowledged, and messages that are written or read
//! in place.
use super::error::Failure;
use super::in_flight::{DeliveryWord, deliver_until};
use super::levels::{Levels, Place};
use super::ring::{ClaimError, Found, Slot};
use super::verbs::QueueState as _;
use super::{SendError, assert_in_place, assert_ours};
use crate::deadline::Deadline;
use crate::error::Fault;
use crate::segment::forks;
use crate::shareable::Plain;
use core::fmt;
use core::mem::ManuallyDrop;
use core::ops::{Deref, DerefMut};

impl<T: Plain, const LEVELS: usize> Levels<T, LEVELS> {
    /// Claims a free slot, to be written in place.
    #[inline(always)]
    pub(super) fn try_loan(&self, level: usize) -> Result<Loan<'_, T, LEVELS>, Failure> {
        let forks = forks();
        let (at, owner) = self.claim_free(level)?;
        Ok(Loan { queue: self, level, at, owner, forks })
    }

    #[inline(always)]
    pub(super) fn loan_until(
        &self,
        level: usize,
        deadline: Deadline,
    ) -> Result<Loan<'_, T, LEVELS>, Failure> {
        self.wait_for_slot(level, deadline, || self.try_loan(level))
    }

    /// Claims the next message where it is.
    #[inline(always)]
    pub(super) fn claim_ref_until(
        &self,
        deadline: Deadline,
    ) -> Result<Ref<'_, T, LEVELS>, Failure> {
        const { assert_in_place::<T>() }
        self.wait_for_message(deadline, || {
            let forks = forks();
            let owner = self.identify()?;
            let place = self.look(|| self.claim_next(owner))?;
            Ok(Ref { queue: self, place, forks })
        })
    }

    /// Delivers a message, or fails with `TooManyInFlight` if one is there but no entry for it
    /// until the deadline.
    #[inline(always)]
    pub(super) fn deliver_until(
        &self,
        deadline: Deadline,
    ) -> Result<Delivery<'_, T, LEVELS>, Failure> {
        deliver_until(self.receivers(), deadline, || self.deliver())
    }

    /// One attempt.
    #[inline(always)]
    fn deliver(&self) -> Result<Delivery<'_, T, LEVELS>, Failure> {
        let forks = forks();
        let owner = self.identify()?;
        // The end of a claim in vain wakes other threads, this one as well: without a message there
        // is no claim.
        let (entry, word) = loop {
            self.look(|| self.find_next())?;
            let Some((i, claimed)) = self.claim_entry(owner) else {
                // A message that came back has an entry already.
                match self.claim_returned_entry(owner, |_| true) {
                    Some(Place::Entry(entry, reading)) => {
                        break self.deliver_again(entry, reading, owner)?;
                    }
                    _ => return Err(Failure::TooManyInFlight),
                }
            };
            match self.claim_next(owner) {
                Ok(Place::Slot(level, at)) => {
                    break self.move_to(i, claimed, level, at, owner);
                }
                Ok(Place::Entry(entry, reading)) => {
                    self.free_entry(self.entry(i), claimed)?;
                    break self.deliver_again(entry, reading, owner)?;
                }
                Err(error) => {
                    self.free_entry(self.entry(i), claimed)?;
                    if error == ClaimError::Corrupt {
                        return Err(Fault::Corrupt.into());
                    }
                    // Another receiver was faster: the message that the look found is gone.
                }
            }
        };
        let copy = match T::ANY_BITS {
            true => None,
            false => match Self::read(&entry.value) {
                Ok(value) => Some(Box::new(value)),
                Err(fault) => {
                    self.free_entry(entry, word)?;
                    return Err(fault.into());
                }
            },
        };
        Ok(Delivery { queue: self, entry, word, forks, copy })
    }
}

/// A message that has been received, and must be acknowledged.
///
/// Dereferences to the message. [`ack`](Self::ack) says that the work is done. A delivery that is
/// dropped without it, or whose process is killed, is delivered again. It belongs to the process,
/// not to the thread, and may be sent between threads.
///
/// `LEVELS` is the number of levels of the [`PriorityQueue`](super::PriorityQueue) that it comes
/// from, or 1.
///
/// # Panics
/// A copy in a process made by `fork` panics when the message is read.
#[must_use = "a delivery that is dropped is delivered again"]
pub struct Delivery<'a, T: Plain, const LEVELS: usize = 1> {
    queue: &'a Levels<T, LEVELS>,
    entry: &'a Slot<T>,
    word: DeliveryWord,
    forks: u32,
    /// A checked copy, for types with invalid bit patterns. Other types are read in the entry.
    copy: Option<Box<T>>,
}

impl<T: Plain, const LEVELS: usize> Delivery<'_, T, LEVELS> {
    /// The level of the message: 0 if the queue has no levels.
    #[must_use]
    pub fn priority(&self) -> usize {
        self.word.level()
    }

    /// How often this message was delivered before without an acknowledgement; 255 stands for more.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.word.attempts()
    }

    /// Acknowledges the message, which then is gone, and returns its value.
    ///
    /// # Errors
    /// [`Fault::Forked`] in a process made by `fork` after the delivery; [`Fault::Corrupt`] if the
    /// memory says that another process has the message.
    #[doc(alias = "task_done")]
    pub fn ack(self) -> Result<T, Fault> {
        let mut delivery = ManuallyDrop::new(self);
        let copy = delivery.copy.take();
        if delivery.forks != forks() {
            return Err(Fault::Forked);
        }
        let value = copy.map_or_else(|| *delivery.value(), |copy| *copy);
        delivery.queue.free_entry(delivery.entry, delivery.word)?;
        Ok(value)
    }

    /// Gives the message back, to be delivered again with one attempt more. A drop does the same.
    pub fn nack(self) {}
}

#[expect(unsafe_code, reason = "an entry is reached by the process alone that it was delivered to")]
impl<T: Plain, const LEVELS: usize> Delivery<'_, T, LEVELS> {
    fn value(&self) -> &T {
        if let Some(copy) = &self.copy {
            return copy;
        }
        // SAFETY: the entry is this delivery's until it is acknowledged or dropped; any bits are a
        // `T`, or there was a copy.
        self.entry.value.with(|value| unsafe { &*value.cast() })
    }
}

impl<T: Plain, const LEVELS: usize> Deref for Delivery<'_, T, LEVELS> {
    type Target = T;
    fn deref(&self) -> &T {
        assert_ours(self.forks);
        self.value()
    }
}

impl<T: Plain, const LEVELS: usize> Drop for Delivery<'_, T, LEVELS> {
    fn drop(&mut self) {
        if self.forks == forks() {
            self.queue.return_entry(self.entry, self.word);
        }
    }
}

impl<T: Plain + fmt::Debug, const LEVELS: usize> fmt::Debug for Delivery<'_, T, LEVELS> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut delivery = f.debug_struct("Delivery");
        if self.forks == forks() {
            delivery.field("value", self.value());
        }
        if LEVELS > 1 {
            delivery.field("priority", &self.priority());
        }
        delivery.field("attempts", &self.attempts()).finish()
    }
}

/// A free slot, to be written in place.
///
/// [`send`](Self::send) gives it to the receivers. If it is dropped without that, or the process is
/// killed, nothing is sent, and its place in the ring is free again when the messages before it
/// have been received. Messages that are sent later wait for it: keep it for a short time only.
///
/// # Panics
/// A copy in a process made by `fork` panics when it is read or written.
#[must_use = "a loan that is dropped sends nothing"]
pub struct Loan<'a, T: Plain, const LEVELS: usize = 1> {
    queue: &'a Levels<T, LEVELS>,
    level: usize,
    at: Found<'a, T>,
    owner: u32,
    forks: u32,
}

impl<T: Plain, const LEVELS: usize> Loan<'_, T, LEVELS> {
    /// Sends the message that was written.
    ///
    /// # Errors
    /// If the queue has been closed, or this process was forked after the loan was made.
    pub fn send(self) -> Result<(), SendError<()>> {
        let loan = ManuallyDrop::new(self);
        if loan.forks != forks() {
            return Err(SendError::Failed((), Fault::Forked));
        }
        match loan.queue.publish(loan.level, loan.at, loan.owner) {
            true => Ok(()),
            false => Err(SendError::Closed(())),
        }
    }
}

#[expect(unsafe_code, reason = "a claimed slot is reached by its claimer alone")]
impl<T: Plain, const LEVELS: usize> Deref for Loan<'_, T, LEVELS> {
    type Target = T;
    fn deref(&self) -> &T {
        const { assert_in_place::<T>() }
        assert_ours(self.forks);
        // SAFETY: the claim of the slot is ours until `send` or drop, and any bits are a `T`.
        self.at.slot.value.with(|value| unsafe { &*value.cast() })
    }
}

#[expect(unsafe_code, reason = "a claimed slot is reached by its claimer alone")]
impl<T: Plain, const LEVELS: usize> DerefMut for Loan<'_, T, LEVELS> {
    fn deref_mut(&mut self) -> &mut T {
        const { assert_in_place::<T>() }
        assert_ours(self.forks);
        // SAFETY: as above, and the loan is borrowed exclusively.
        self.at.slot.value.with_mut(|value| unsafe { &mut *value.cast() })
    }
}

impl<T: Plain, const LEVELS: usize> Drop for Loan<'_, T, LEVELS> {
    fn drop(&mut self) {
        if self.forks == forks() {
            self.at.slot.free(self.at.lap);
            self.queue.after_abort(self.level);
        }
    }
}

impl<T: Plain, const LEVELS: usize> fmt::Debug for Loan<'_, T, LEVELS> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loan").field("lap", &self.at.lap).finish_non_exhaustive()
    }
}

/// A message in its place, to be read there.
///
/// A drop consumes it. If the process is killed before that, the message is delivered to another
/// receiver. Its slot is not free before, and the ring stops there a lap later: keep it for a short
/// time only.
///
/// # Panics
/// A copy in a process made by `fork` panics when the message is read.
#[must_use = "a message that is dropped is consumed"]
pub struct Ref<'a, T: Plain, const LEVELS: usize = 1> {
    queue: &'a Levels<T, LEVELS>,
    place: Place<'a, T>,
    forks: u32,
}

impl<T: Plain, const LEVELS: usize> Ref<'_, T, LEVELS> {
    /// The level of the message: 0 if the queue has no levels.
    #[must_use]
    pub fn priority(&self) -> usize {
        self.place.level()
    }
}

#[expect(unsafe_code, reason = "a claimed slot is reached by its claimer alone")]
impl<T: Plain, const LEVELS: usize> Deref for Ref<'_, T, LEVELS> {
    type Target = T;
    fn deref(&self) -> &T {
        assert_ours(self.forks);
        // SAFETY: the claim is ours until drop; `recv_ref` compiles only for types of which any
        // bits are a value.
        self.place.value().with(|value| unsafe { &*value.cast() })
    }
}

impl<T: Plain, const LEVELS: usize> Drop for Ref<'_, T, LEVELS> {
    fn drop(&mut self) {
        if self.forks == forks() {
            self.queue.finish(self.place);
        }
    }
}

impl<T: Plain, const LEVELS: usize> fmt::Debug for Ref<'_, T, LEVELS> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ref").field("priority", &self.priority()).finish_non_exhaustive()
    }
}
