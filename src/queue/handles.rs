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
            let place = self.find_or_closed(|| self.claim_next(owner))?;
            Ok(Ref { queue: self, place, forks })
        })
    }

    /// Delivers a message. Fails with `TooManyInFlight` if a message is available at the deadline
    /// but no entry of the in-flight table is free.
    #[inline(always)]
    pub(super) fn deliver_until(
        &self,
        deadline: Deadline,
    ) -> Result<Delivery<'_, T, LEVELS>, Failure> {
        deliver_until(self.receivers(), deadline, || self.deliver())
    }

    /// Makes one attempt of `deliver_until`.
    #[inline(always)]
    fn deliver(&self) -> Result<Delivery<'_, T, LEVELS>, Failure> {
        let forks = forks();
        let owner = self.identify()?;
        // An entry is claimed only after a message was seen (I6): the end of a claim in vain wakes
        // other threads, and could wake this thread without end.
        let (entry, word) = loop {
            self.find_or_closed(|| self.find_next())?;
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

/// A received message that must be acknowledged.
///
/// It dereferences to the message. [`ack`](Self::ack) says that the work is done. If the delivery
/// is dropped without it, or its process is killed, the message is delivered again. A delivery
/// belongs to the process, not to the thread, and can move between threads.
///
/// `LEVELS` is the number of levels of its [`PriorityQueue`](super::PriorityQueue), and 1 for a
/// [`Queue`](super::Queue).
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
    /// Returns the level of the message: 0 if the queue has no levels.
    #[must_use]
    pub fn priority(&self) -> usize {
        self.word.level()
    }

    /// Returns how often this message was delivered before without being acknowledged. The number
    /// 255 stands for 255 or more.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.word.attempts()
    }

    /// Acknowledges the message, which removes it from the queue, and returns its value.
    ///
    /// # Errors
    /// [`Fault::Forked`] in a process made by `fork` after the delivery. [`Fault::Corrupt`] if the
    /// memory says that this process does not hold the delivery.
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

    /// Gives the message back, to be delivered again with one attempt more. Dropping the delivery
    /// has the same effect.
    pub fn nack(self) {}
}

#[expect(unsafe_code, reason = "only the process that holds a delivery reaches its entry")]
impl<T: Plain, const LEVELS: usize> Delivery<'_, T, LEVELS> {
    fn value(&self) -> &T {
        if let Some(copy) = &self.copy {
            return copy;
        }
        // SAFETY: the entry belongs to this delivery until it is acknowledged or dropped. Any bits
        // are a `T`: otherwise there would be a copy.
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

/// A free slot of a queue, to write a message in place.
///
/// It dereferences to the value of the slot. [`send`](Self::send) sends the message. If the loan is
/// dropped instead, or its process is killed, nothing is sent. The slot can then be used again
/// after the messages before it have been received. Later messages are not received before the loan
/// is sent or dropped, so keep it for a short time only.
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
    /// [`SendError::Closed`] if the queue has been closed. [`Fault::Forked`] in a process made by
    /// `fork` after the loan was taken.
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
        // SAFETY: this loan owns the claim of the slot until `send` or drop, and any bits are a
        // `T`.
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

/// A received message, to be read in place.
///
/// It dereferences to the message. Dropping it consumes the message. If the process is killed
/// before that, another receiver gets the message. Its slot does not become free before the drop,
/// and senders wait at that slot one lap later, so keep it for a short time only.
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
    /// Returns the level of the message: 0 if the queue has no levels.
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
        // SAFETY: this `Ref` owns the claim until it is dropped. `recv_ref` compiles only for types
        // for which any bits are a valid value.
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
