//! The in-flight table: messages that were delivered and are not acknowledged.
//!
//! A message that is received with `recv_ack` moves from the ring to a cell of this table, so that a
//! slow worker does not hold up the ring.
use super::ring::{Position, Slot};
use super::{Place, Queue, assert_in_place, assert_ours};
use crate::error::Fault;
use crate::segment::forks;
use crate::shareable::Plain;
use crate::sync::UnsafeCell;
use crate::sync::atomic::AtomicU64;
use crate::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use core::fmt;
use core::mem::{ManuallyDrop, MaybeUninit};
use core::ops::Deref;

/// How many messages of one queue can be delivered and unacknowledged at a time: 64.
pub const IN_FLIGHT: usize = crate::sync::IN_FLIGHT;

/// The state of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeliveryState {
    /// Empty.
    Free = 0,
    /// Claimed by a process that looks for a message to put into it.
    Claimed = 1,
    /// Delivered to a process, not acknowledged.
    Delivered = 2,
    /// To be delivered again.
    Returned = 3,
    /// Being taken by a plain `recv`.
    Reading = 4,
}

/// A cell's word: how often it was used, attempts, owner and state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DeliveryWord(pub(crate) u64);

impl DeliveryWord {
    pub(crate) fn is_in(self, state: DeliveryState) -> bool {
        self.0 & 0xf == state as u64
    }
    pub(crate) fn owner(self) -> u32 {
        ((self.0 >> 4) & 0xfff) as u32
    }
    pub(crate) fn attempts(self) -> u32 {
        ((self.0 >> 16) & 0xff) as u32
    }
    pub(crate) fn to(self, state: DeliveryState, owner: u32) -> Self {
        DeliveryWord((self.0 & !0xffff) | (u64::from(owner & 0xfff) << 4) | state as u64)
    }
    /// One attempt more; 255 stands for all beyond.
    pub(crate) fn tried(self) -> Self {
        if self.attempts() == 255 { self } else { DeliveryWord(self.0 + (1 << 16)) }
    }
    /// Empty, for the next message: no attempts, and a number that no earlier use had.
    pub(crate) fn freed(self) -> Self {
        DeliveryWord((self.0 & !0xff_ffff).wrapping_add(1 << 24))
    }
}

/// One cell.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct InFlight<T> {
    pub(crate) state: AtomicU64,
    /// Where in the ring the message came from: valid while `Delivered`.
    pub(crate) origin: AtomicU64,
    pub(crate) value: UnsafeCell<MaybeUninit<T>>,
}

impl<T> InFlight<T> {
    pub(crate) fn new() -> Self {
        InFlight {
            state: AtomicU64::new(0),
            origin: AtomicU64::new(0),
            value: UnsafeCell::new(MaybeUninit::uninit()),
        }
    }

    pub(crate) fn load(&self) -> DeliveryWord {
        DeliveryWord(self.state.load(Acquire))
    }

    pub(crate) fn exchange(&self, from: DeliveryWord, to: DeliveryWord) -> bool {
        self.state.compare_exchange(from.0, to.0, AcqRel, Relaxed).is_ok()
    }
}

/// A message that has been received, and must be acknowledged.
///
/// Dereferences to the message. [`ack`](Self::ack) says that the work is done; a delivery that is
/// dropped otherwise, or whose process is killed, goes back and is delivered again. It belongs to
/// the process, not the thread, and may be sent between threads.
///
/// # Panics
/// A copy in a process made by `fork` panics when the message is read.
#[must_use = "a delivery that is dropped is delivered again"]
pub struct Delivery<'a, T: Plain> {
    pub(super) queue: &'a Queue<T>,
    pub(super) cell: usize,
    pub(super) state: DeliveryWord,
    pub(super) forks: u32,
    /// A checked copy, for types with invalid bit patterns. Other types are read in the cell.
    pub(super) copy: Option<Box<T>>,
}

impl<T: Plain> Delivery<'_, T> {
    /// How often this message was delivered before without being acknowledged; 255 stands for more.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.state.attempts()
    }

    /// Acknowledges the message, which is gone for good, and gives its value.
    ///
    /// # Errors
    /// [`Fault::Forked`] in a process made by `fork` after the delivery; [`Fault::Corrupt`] if the
    /// memory says that the delivery is not ours.
    #[doc(alias = "task_done")]
    pub fn ack(self) -> Result<T, Fault> {
        self.settle().map(|(value, _)| value)
    }

    /// The same, and what [`Queue::free_cell`] gives.
    pub(super) fn settle(self) -> Result<(T, bool), Fault> {
        let mut delivery = ManuallyDrop::new(self);
        let copy = delivery.copy.take();
        if delivery.forks != forks() {
            return Err(Fault::Forked);
        }
        let value = copy.map_or_else(|| *delivery.value(), |copy| *copy);
        Ok((value, delivery.queue.free_cell(delivery.cell, delivery.state)?))
    }

    /// Gives the message back, to be delivered again with one attempt more. The same as dropping
    /// it.
    pub fn nack(self) {}
}

#[expect(unsafe_code, reason = "a held cell is reached by its holder alone")]
impl<T: Plain> Delivery<'_, T> {
    fn value(&self) -> &T {
        if let Some(copy) = &self.copy {
            return copy;
        }
        // SAFETY: the cell is held for this delivery until it is acknowledged or dropped; any bits
        // are a `T`, or there was a copy.
        self.queue.cells[self.cell].value.with(|value| unsafe { &*value.cast() })
    }
}

impl<T: Plain> Deref for Delivery<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        assert_ours(self.forks);
        self.value()
    }
}

impl<T: Plain> Drop for Delivery<'_, T> {
    fn drop(&mut self) {
        if self.forks == forks() {
            self.queue.return_cell(self.cell, self.state);
        }
    }
}

impl<T: Plain + fmt::Debug> fmt::Debug for Delivery<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut delivery = f.debug_struct("Delivery");
        if self.forks == forks() {
            delivery.field("value", self.value());
        }
        delivery.field("attempts", &self.attempts()).finish()
    }
}

/// A free slot, to be written in place.
///
/// [`send`](Self::send) gives it to the receivers. Dropped otherwise, or if the process is killed,
/// nothing is sent; its place in the ring is free again when the messages before it have been
/// received. Messages sent after it was made wait for it: keep it short.
///
/// # Panics
/// A copy in a process made by `fork` panics when it is read or written.
#[must_use = "a loan that is dropped sends nothing"]
pub struct Loan<'a, T: Plain> {
    pub(super) queue: &'a Queue<T>,
    pub(super) at: Position,
    pub(super) owner: u32,
    pub(super) forks: u32,
}

impl<T: Plain> Loan<'_, T> {
    /// Sends what was written.
    ///
    /// # Errors
    /// If the queue was closed meanwhile, or this process was forked after the loan was made.
    pub fn send(self) -> Result<(), super::SendError<()>> {
        let loan = ManuallyDrop::new(self);
        if loan.forks != forks() {
            return Err(super::SendError::Failed((), Fault::Forked));
        }
        if loan.queue.publish(loan.at, loan.owner) {
            Ok(())
        } else {
            Err(super::SendError::Closed(()))
        }
    }

    fn slot(&self) -> &Slot<T> {
        &self.queue.slots[self.at.index]
    }
}

#[expect(unsafe_code, reason = "a claimed slot is reached by its claimer alone")]
impl<T: Plain> Deref for Loan<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        const { assert_in_place::<T>() }
        assert_ours(self.forks);
        // SAFETY: the claim of the slot is ours until `send` or drop, and any bits are a `T`.
        self.slot().value.with(|value| unsafe { &*value.cast() })
    }
}

#[expect(unsafe_code, reason = "a claimed slot is reached by its claimer alone")]
impl<T: Plain> core::ops::DerefMut for Loan<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        const { assert_in_place::<T>() }
        assert_ours(self.forks);
        // SAFETY: as above, and the loan is borrowed exclusively.
        self.slot().value.with_mut(|value| unsafe { &mut *value.cast() })
    }
}

impl<T: Plain> Drop for Loan<'_, T> {
    fn drop(&mut self) {
        if self.forks == forks() {
            self.slot().free(self.at.lap);
            self.queue.after_abort();
        }
    }
}

impl<T: Plain> fmt::Debug for Loan<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loan").field("at", &self.at).finish_non_exhaustive()
    }
}

/// A message in its place, to be read there.
///
/// Dropped, it is consumed; if the process is killed before that, it is delivered to another. Its
/// slot is not free before, and the ring stops there a lap later: keep it short.
///
/// # Panics
/// A copy in a process made by `fork` panics when the message is read.
#[must_use = "a message that is dropped is consumed"]
pub struct Ref<'a, T: Plain> {
    pub(super) queue: &'a Queue<T>,
    pub(super) place: Place,
    pub(super) forks: u32,
}

#[expect(unsafe_code, reason = "a claimed slot is reached by its claimer alone")]
impl<T: Plain> Deref for Ref<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        assert_ours(self.forks);
        // SAFETY: the claim is ours until drop; `recv_ref` compiles only for types of which any
        // bits are a value.
        self.queue.value_at(self.place).with(|value| unsafe { &*value.cast() })
    }
}

impl<T: Plain> Drop for Ref<'_, T> {
    fn drop(&mut self) {
        if self.forks == forks() {
            self.queue.finish(self.place);
        }
    }
}

impl<T: Plain> fmt::Debug for Ref<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ref").field("place", &self.place).finish_non_exhaustive()
    }
}
