//! Handles of claimed records: room to write a message in place, and messages to read in place. A
//! handle can move to any thread of its process. It is inert in a forked child.
#![expect(unsafe_code, reason = "the blocks of a record are reached by its claimer alone")]
use crate::error::Fault;
use crate::queue::bytes::View;
use crate::queue::bytes::records::Claim;
use crate::queue::ends::Ends;
use crate::queue::{SendError, assert_ours, error::Failure};
use crate::segment::forks;
use core::fmt;
use core::mem::ManuallyDrop;
use core::ops::{Deref, DerefMut};

/// Room in a [`ByteQueue`](super::ByteQueue), to write a message in place.
///
/// It dereferences to the bytes of the message. Before they are written, they are bytes of earlier
/// messages. [`send`](Self::send) sends the message. If the loan is dropped instead, or its process
/// is killed, nothing is sent. Later messages are not received before the loan is sent or dropped,
/// so keep it for a short time only.
///
/// # Panics
/// A copy in a process made by `fork` panics when it is read or written.
#[must_use = "a loan that is dropped sends nothing"]
pub struct Loan<'a> {
    pub(super) view: View<'a>,
    pub(super) claim: Claim,
    pub(super) len: usize,
    pub(super) forks: u32,
    /// In a channel, the receivers' end: it may be gone when the message is sent.
    pub(in crate::queue) receivers: Option<&'a Ends>,
}

/// A received message, to be read in place.
///
/// It dereferences to the bytes of the message. Dropping it consumes the message. If the process is
/// killed before that, another receiver gets the message. Its room, and that of all later messages,
/// does not become free before the drop, so keep it for a short time only.
///
/// # Panics
/// A copy in a process made by `fork` panics when the message is read.
#[must_use = "a message that is dropped is consumed"]
pub struct Ref<'a> {
    pub(super) view: View<'a>,
    pub(super) claim: Claim,
    pub(super) len: usize,
    pub(super) forks: u32,
}

/// A received message that must be acknowledged.
///
/// It dereferences to the bytes of the message. [`ack`](Self::ack) says that the work is done. If
/// the delivery is dropped without it, or its process is killed, the message is delivered again. A
/// delivery belongs to the process, not to the thread, and can move between threads. It does not
/// hold up the queue.
///
/// # Panics
/// A copy in a process made by `fork` panics when the message is read.
#[must_use = "a delivery that is dropped is delivered again"]
pub struct Delivery<'a> {
    pub(super) view: View<'a>,
    pub(super) claim: Claim,
    pub(super) len: usize,
    pub(super) forks: u32,
}

impl Loan<'_> {
    /// Sends the message.
    ///
    /// A message whose loan was taken before the queue was closed is still sent.
    ///
    /// ```
    /// use outlast::{ByteQueue, Channel, SendError, Shared};
    ///
    /// let here = Shared::<Channel<ByteQueue>>::with_capacity(4096)?;
    /// // As another process would:
    /// let there = Shared::<Channel<ByteQueue>>::from_fd(here.try_clone_fd()?)?;
    /// let (sender, receiver) = (here.sender()?, there.receiver()?);
    /// let loan = sender.loan(100)?;
    /// drop(receiver); // the last one
    /// assert_eq!(loan.send(), Err(SendError::Disconnected(())));
    /// assert!(there.is_empty());
    /// # Ok::<(), outlast::Error>(())
    /// ```
    ///
    /// # Errors
    /// In a channel, [`SendError::Disconnected`] if the last receiver is gone, or
    /// [`SendError::Closed`] if the channel is closed as well. No receiver gets the message then.
    /// [`Fault::Forked`] in the child of a fork: the loan belongs to the parent.
    #[doc(alias = "commit")]
    #[inline(always)]
    pub fn send(self) -> Result<(), SendError<()>> {
        let len = self.len;
        self.send_len(len)
    }

    /// Sends the first `len` bytes as the message. If `len` is larger than the loan, sends all
    /// bytes.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    #[inline(always)]
    pub fn send_len(self, len: usize) -> Result<(), SendError<()>> {
        Ok(self.publish(len)?)
    }

    /// Writes and sends a message that is as long as the loan.
    #[inline(always)]
    pub(in crate::queue) fn write(mut self, message: &[u8]) -> Result<(), Failure> {
        self.copy_from_slice(message);
        self.publish(message.len())
    }

    #[inline(always)]
    pub(in crate::queue) fn publish(self, len: usize) -> Result<(), Failure> {
        if self.forks != forks() {
            return Err(Fault::Forked.into());
        }
        let loan = ManuallyDrop::new(self);
        loan.view.publish(loan.claim, len.min(loan.len) as u64, loan.receivers)
    }
}

impl Ref<'_> {
    /// Appends the message to `buffer` and returns its length. The message is consumed.
    pub(in crate::queue) fn append_to(self, buffer: &mut Vec<u8>) -> usize {
        buffer.extend_from_slice(&self);
        self.len
    }

    /// Gives the message back. Any receiver can receive it again.
    ///
    /// # Errors
    /// [`Fault::Forked`] in the child of a fork: the message belongs to the parent.
    #[doc(alias = "nack")]
    pub fn give_back(self) -> Result<(), Fault> {
        if self.forks != forks() {
            return Err(Fault::Forked);
        }
        self.view.give_back(self.claim);
        core::mem::forget(self);
        Ok(())
    }
}

impl Delivery<'_> {
    /// Returns how often this message was delivered before without being acknowledged. The number
    /// 255 stands for 255 or more.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.claim.state.attempts()
    }

    /// Acknowledges the message, which removes it from the queue.
    ///
    /// # Errors
    /// [`Fault::Forked`] in a process made by `fork` after the delivery. [`Fault::Corrupt`] if the
    /// memory says that this process does not hold the delivery.
    #[doc(alias = "task_done")]
    pub fn ack(self) -> Result<(), Fault> {
        let delivery = ManuallyDrop::new(self);
        if delivery.forks != forks() {
            return Err(Fault::Forked);
        }
        if delivery.view.consume(delivery.claim) { Ok(()) } else { Err(Fault::Corrupt) }
    }

    /// Gives the message back, to be delivered again with one attempt more. Dropping the delivery
    /// has the same effect.
    pub fn nack(self) {}
}

/// Copies the blocks of one record to another. The same call has claimed both.
pub(super) fn copy(view: View<'_>, from: usize, to: usize, extent: usize) {
    let blocks = |first: usize| view.parts.blocks().get(first..first + extent).unwrap_or(&[]);
    let (from, to) = (blocks(from), blocks(to));
    let len = from.len().min(to.len());
    // SAFETY: both slices have at least `len` blocks. They do not overlap, because one is in the
    // ring and the other in the in-flight area. Their bytes lie in cells, and no other thread reads
    // or writes the bytes of a claimed record (I1, I2).
    unsafe { from.as_ptr().copy_to_nonoverlapping(to.as_ptr().cast_mut(), len) }
}

/// The start of a claimed record's bytes, and `len`, limited to the bytes that the record has. In
/// damaged memory, a claim of blocks that do not exist has no bytes.
#[inline(always)]
fn bytes(view: View<'_>, claim: Claim, len: usize) -> (*mut u8, usize) {
    let blocks =
        view.parts.blocks().get(claim.index..claim.index + claim.state.extent()).unwrap_or(&[]);
    (blocks.as_ptr().cast_mut().cast(), len.min(size_of_val(blocks)))
}

impl Deref for Loan<'_> {
    type Target = [u8];
    #[inline(always)]
    fn deref(&self) -> &[u8] {
        assert_ours(self.forks);
        let (start, len) = bytes(self.view, self.claim, self.len);
        // SAFETY: `len` bytes lie in blocks of the record, which this loan owns until it is sent or
        // dropped (I1, I2).
        unsafe { core::slice::from_raw_parts(start, len) }
    }
}

impl DerefMut for Loan<'_> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [u8] {
        assert_ours(self.forks);
        let (start, len) = bytes(self.view, self.claim, self.len);
        // SAFETY: as above. The bytes lie in cells, and the loan is borrowed exclusively.
        unsafe { core::slice::from_raw_parts_mut(start, len) }
    }
}

impl Deref for Ref<'_> {
    type Target = [u8];
    #[inline(always)]
    fn deref(&self) -> &[u8] {
        assert_ours(self.forks);
        let (start, len) = bytes(self.view, self.claim, self.len);
        // SAFETY: `len` bytes lie in blocks of the record, which no thread writes before this
        // `Ref` is dropped or given back (I1, I2).
        unsafe { core::slice::from_raw_parts(start, len) }
    }
}

impl Deref for Delivery<'_> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        assert_ours(self.forks);
        let (start, len) = bytes(self.view, self.claim, self.len);
        // SAFETY: `len` bytes lie in blocks of the run, which no thread writes before the delivery
        // is acknowledged or given back (I1, A1).
        unsafe { core::slice::from_raw_parts(start, len) }
    }
}

impl Drop for Loan<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        if self.forks == forks() {
            self.view.abandon(self.claim);
        }
    }
}

impl Drop for Ref<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        if self.forks == forks() {
            self.view.release(self.claim);
        }
    }
}

impl Drop for Delivery<'_> {
    fn drop(&mut self) {
        if self.forks == forks() {
            let Claim { index, state } = self.claim;
            self.view.give_back(Claim { index, state: state.tried() });
        }
    }
}

impl fmt::Debug for Loan<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loan").field("len", &self.len).finish_non_exhaustive()
    }
}

impl fmt::Debug for Ref<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut message = f.debug_tuple("Ref");
        if self.forks == forks() {
            message.field(&&**self);
        }
        message.finish()
    }
}

impl fmt::Debug for Delivery<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut delivery = f.debug_struct("Delivery");
        if self.forks == forks() {
            delivery.field("message", &&**self);
        }
        delivery.field("attempts", &self.attempts()).finish()
    }
}
