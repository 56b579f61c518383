//! The end that sends.
use super::end::End;
use super::{Ring, Slot};
use super::{SendError, SendTimeoutError, TrySendError};
use crate::deadline::Deadline;
use crate::error::Fault;
use crate::queue::{Failure, assert_in_place};
use crate::shareable::Plain;
use crate::shared::Shared;
use crate::wait::verbs::{Verb, verbs};
use core::mem::MaybeUninit;
use core::ops::Deref;

/// The end of a [`Ring`] that sends.
///
/// The end belongs to the process and can move to another thread, but only one thread at a time can
/// use it. The process gives it up by dropping it or by dying. A copy made by `fork` does nothing.
///
/// [`Ring::producer`] gives an end that borrows the ring;
/// [`Shared::producer`](crate::Shared::producer) gives an end that keeps the ring mapped.
/// [`CommandExt::hand_over`](crate::CommandExt::hand_over) hands such an end to a child process.
///
/// ```compile_fail,E0277
/// fn shared_by_threads<T: Sync>() {}
/// shared_by_threads::<outlast::spsc::Producer<u64>>();
/// ```
pub struct Producer<T: Plain, R: Deref<Target = Ring<T>> = Shared<Ring<T>>> {
    pub(super) end: End<T, R, true>,
}

/// Free slots to be written in place.
///
/// [`commit`](Self::commit) sends them. Nothing is sent if the chunk is dropped without a commit,
/// or if the process is killed before it.
#[must_use = "a chunk that is dropped sends nothing"]
pub struct WriteChunk<'p, T: Plain, R: Deref<Target = Ring<T>> = Shared<Ring<T>>> {
    pub(super) end: &'p mut End<T, R, true>,
    pub(super) len: usize,
}

#[cfg_attr(outlast_loom, expect(dead_code, reason = "no programs are started in the model"))]
impl<T: Plain> Producer<T> {
    /// Returns the handle that the end owns.
    pub(crate) fn pointer(&self) -> &Shared<Ring<T>> {
        &self.end.ring
    }

    /// Passes the role on to the stand-in `owner`.
    pub(crate) fn hold_for(self, owner: u32) -> Result<(), Fault> {
        self.end.hold_for(owner)
    }

    /// Takes the role over from the stand-in `from`.
    pub(crate) fn taken_from(ring: Shared<Ring<T>>, from: u32) -> Result<Self, Fault> {
        End::take_over(ring, from).map(Producer::new)
    }
}

impl<T: Plain, R: Deref<Target = Ring<T>>> Producer<T, R> {
    pub(super) fn new(end: End<T, R, true>) -> Self {
        Producer { end }
    }

    verbs! {
        /// Sends a message, blocking until a slot is free.
        ///
        /// # Errors
        /// Gives the message back if the ring is closed, if this end is a copy made by `fork`, or
        /// if the ring is full and the consumer has died. That is reported once for each death: a
        /// further call waits for the next consumer.
        #[doc(alias = "push")]
        #[doc(alias = "put")]
        #[inline]
        pub fn send(&self, message: T) -> Result<(), SendError<T>> = Send { producer: self, message };
        #[doc(alias = "try_push")]
        #[doc(alias = "put_nowait")]
        #[inline]
        try_send -> Result<(), TrySendError<T>>, else Err(TrySendError::Full(message));
        send_timeout, send_deadline -> Result<(), SendTimeoutError<T>>,
            else Err(SendTimeoutError::TimedOut(message));

        /// Sends messages, blocking until all are sent. It commits as many at a time as slots are
        /// free.
        ///
        /// # Errors
        /// As [`send`](Self::send), with the number of messages that were sent before the failure.
        pub fn send_batch(&self, messages: &[T]) -> Result<(), SendError<usize>>
            = |deadline| self.send_all(messages, deadline);
        send_batch_timeout, send_batch_deadline -> Result<(), SendTimeoutError<usize>>,
            else Err(SendTimeoutError::TimedOut(sent));
    }

    fn send_all(&self, messages: &[T], deadline: Deadline) -> Result<(), (usize, Failure)> {
        let mut sent = 0;
        while sent < messages.len() {
            let left = &messages[sent..];
            let room = self.end.room_for(left.len(), deadline);
            sent += self.put_many(&left[..room.map_err(|failure| (sent, failure))?]);
        }
        Ok(())
    }

    /// Sends as many of the messages as slots are free, and returns their number. Never blocks.
    ///
    /// # Errors
    /// As [`try_send`](Self::try_send), if it sends no message.
    pub fn try_send_batch(&self, messages: &[T]) -> Result<usize, TrySendError<()>> {
        if messages.is_empty() {
            return Ok(0);
        }
        let room = self.end.room_for(messages.len(), Deadline::NOW);
        Ok(self.put_many(&messages[..room?]))
    }

    verbs! {
        /// Takes up to `most` free slots to be written in place, blocking until one is free.
        ///
        /// # Errors
        /// As [`send`](Self::send).
        pub fn write_chunk(&mut self, most: usize) -> Result<WriteChunk<'_, T, R>, SendError<()>>
            = |deadline| self.chunk(most, deadline);
        try_write_chunk -> Result<WriteChunk<'_, T, R>, TrySendError<()>>,
            else Err(TrySendError::Full(()));
        write_chunk_timeout, write_chunk_deadline
            -> Result<WriteChunk<'_, T, R>, SendTimeoutError<()>>,
            else Err(SendTimeoutError::TimedOut(()));
    }

    fn chunk(&mut self, most: usize, deadline: Deadline) -> Result<WriteChunk<'_, T, R>, Failure> {
        Ok(WriteChunk { len: self.end.room_for(most, deadline)?, end: &mut self.end })
    }

    #[inline(always)]
    fn put(&self, message: T) {
        write(self.end.slot(), message);
        self.end.advance(1);
    }

    /// Sends messages, for which there must be room, and returns their number.
    fn put_many(&self, messages: &[T]) -> usize {
        let n = messages.len();
        let (first, second) = self.end.runs(n);
        let (to_first, to_second) = messages.split_at(first.len());
        first.iter().zip(to_first).for_each(|(slot, message)| write(slot, *message));
        second.iter().zip(to_second).for_each(|(slot, message)| write(slot, *message));
        self.end.advance(n);
        n
    }
}

/// A call of `send` that has not begun.
struct Send<'p, T: Plain, R: Deref<Target = Ring<T>>> {
    producer: &'p Producer<T, R>,
    message: T,
}

impl<T: Plain, R: Deref<Target = Ring<T>>> Verb for Send<'_, T, R> {
    type Output = Result<(), (T, Failure)>;

    #[inline(always)]
    fn fast(&mut self) -> Option<Self::Output> {
        self.producer.end.is_ready().then(|| {
            self.producer.put(self.message);
            Ok(())
        })
    }

    #[inline(always)]
    fn attempt(&mut self) -> Option<Self::Output> {
        self.fast().or_else(|| self.wait(Deadline::NOW))
    }

    fn wait(&mut self, deadline: Deadline) -> Option<Self::Output> {
        Some(match self.producer.end.room_until(deadline) {
            Ok(_) => {
                self.producer.put(self.message);
                Ok(())
            }
            Err(Failure::Unavailable) => return None,
            Err(failure) => Err((self.message, failure)),
        })
    }
}

/// Writes a slot that belongs to the producer.
#[inline(always)]
#[expect(unsafe_code, reason = "slots belong to one end at a time")]
fn write<T: Plain>(slot: &Slot<T>, message: T) {
    // SAFETY: it is only called for slots from the producer's position to its bound, which belong
    // to the producer (I3).
    slot.0.with_mut(|value| unsafe { value.write(MaybeUninit::new(message)) });
}

impl<T: Plain, R: Deref<Target = Ring<T>>> WriteChunk<'_, T, R> {
    /// Writes slot `i`.
    ///
    /// # Panics
    /// If the chunk has no slot `i`, or in a copy made by `fork`.
    pub fn set(&mut self, i: usize, message: T) {
        self.end.assert_ours();
        assert!(i < self.len, "slot {i} of {}", self.len);
        let (first, second) = self.end.runs(self.len);
        write(first.get(i).unwrap_or_else(|| &second[i - first.len()]), message);
    }

    /// Returns the slots as two slices, of which the second is often empty. Before they are
    /// written, they hold the bytes of earlier messages.
    ///
    /// Only for types for which any bits are a value.
    ///
    /// # Panics
    /// In a copy made by `fork`.
    #[must_use]
    pub fn as_mut_slices(&mut self) -> (&mut [T], &mut [T]) {
        const { assert_in_place::<T>() }
        self.end.assert_ours();
        let (first, second) = self.end.runs(self.len);
        (slice(first), slice(second))
    }

    /// Sends the messages in the first `n` slots, or in all if there are fewer.
    ///
    /// # Errors
    /// If the ring was closed meanwhile, or in a process that was forked after the chunk was taken.
    pub fn commit(self, n: usize) -> Result<(), SendError<()>> {
        self.end.check().map_err(|fault| SendError::Failed((), fault))?;
        if self.end.ring.is_closed() {
            return Err(SendError::Closed(()));
        }
        if n > 0 && self.len > 0 {
            self.end.advance(n.min(self.len));
        }
        Ok(())
    }
}

#[expect(unsafe_code, reason = "slots belong to one end at a time")]
#[expect(clippy::mut_from_ref, reason = "the slots are cells")]
fn slice<T: Plain>(slots: &[Slot<T>]) -> &mut [T] {
    const { assert!(size_of::<Slot<T>>() == size_of::<T>()) }
    let at = slots.as_ptr().cast_mut().cast::<T>();
    // SAFETY: these slots, each of them a `T` in a cell, belong to the producer (I3); the chunk is
    // borrowed exclusively for as long as the slice; any bits are a `T`.
    unsafe { core::slice::from_raw_parts_mut(at, slots.len()) }
}
