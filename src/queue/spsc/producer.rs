//! The end that sends.
use super::end::{End, Nothing};
use super::{Ring, Slot};
use super::{SendError, SendTimeoutError, TrySendError};
use crate::deadline::Deadline;
use crate::queue::assert_in_place;
use crate::shareable::Plain;
use crate::shared::Shared;
use crate::wait::verbs::{Verb, verbs};
use core::fmt;
use core::mem::MaybeUninit;
use core::ops::Deref;

/// The end of a [`Ring`] that sends.
///
/// It belongs to the process: it may be sent to another thread, and is given up when it is dropped
/// or the process dies. A copy made by `fork` can do nothing.
///
/// Made by [`Ring::producer`] it borrows the ring; made by
/// [`Shared::producer`](crate::Shared::producer) it keeps the ring mapped.
///
/// ```compile_fail,E0277
/// fn shared_by_threads<T: Sync>() {}
/// shared_by_threads::<outlast::spsc::Producer<u64>>();
/// ```
pub struct Producer<T: Plain, R: Deref<Target = Ring<T>> = Shared<Ring<T>>> {
    end: End<T, R, true>,
}

/// Free slots, to be written in place.
///
/// [`commit`](Self::commit) sends them. Dropped otherwise, or if the process is killed, nothing is
/// sent.
#[must_use = "a chunk that is dropped sends nothing"]
pub struct WriteChunk<'p, T: Plain, R: Deref<Target = Ring<T>> = Shared<Ring<T>>> {
    end: &'p mut End<T, R, true>,
    len: usize,
}

impl<T: Plain, R: Deref<Target = Ring<T>>> Producer<T, R> {
    pub(super) fn new(end: End<T, R, true>) -> Self {
        Producer { end }
    }

    /// The ring.
    #[must_use]
    pub fn ring(&self) -> &Ring<T> {
        &self.end.ring
    }

    /// Whether the producer before this one died.
    #[must_use]
    pub fn predecessor_died(&self) -> bool {
        self.end.inherited
    }

    verbs! {
        /// Sends a message, blocking until a slot is free.
        ///
        /// # Errors
        /// Gives the message back if the ring is closed; if it is full and the consumer has died
        /// (told once a death: call again to wait for the next consumer); or if this is a copy made
        /// by `fork`.
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

        /// Sends messages, as many at a time as slots are free, blocking until all are sent.
        ///
        /// # Errors
        /// As [`send`](Self::send), with the number of messages that were sent before.
        pub fn send_batch(&self, messages: &[T]) -> Result<(), SendError<usize>>
            = |deadline| self.send_all(messages, deadline);
        send_batch_timeout, send_batch_deadline -> Result<(), SendTimeoutError<usize>>,
            else Err(SendTimeoutError::TimedOut(sent));
    }

    fn send_all(&self, messages: &[T], deadline: Deadline) -> Result<(), (usize, Nothing)> {
        let mut sent = 0;
        while sent < messages.len() {
            let left = &messages[sent..];
            let room = self.end.room_until(deadline);
            let room = room.and_then(|room| self.end.most(room, left.len()));
            sent += self.put_many(&left[..room.map_err(|nothing| (sent, nothing))?]);
        }
        Ok(())
    }

    /// Sends as many of the messages as slots are free; how many. Never blocks.
    ///
    /// # Errors
    /// As [`try_send`](Self::try_send), if it is none.
    pub fn try_send_batch(&self, messages: &[T]) -> Result<usize, TrySendError<()>> {
        if messages.is_empty() {
            return Ok(0);
        }
        let room = self.end.room().and_then(|room| self.end.most(room, messages.len()));
        let room = room.map_err(|nothing| ((), nothing))?;
        Ok(self.put_many(&messages[..room]))
    }

    verbs! {
        /// Takes up to `most` free slots to be written in place, blocking until there is one.
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

    fn chunk(
        &mut self,
        most: usize,
        deadline: Deadline,
    ) -> Result<WriteChunk<'_, T, R>, ((), Nothing)> {
        let len = self.end.room_until(deadline).and_then(|room| self.end.most(room, most));
        Ok(WriteChunk { len: len.map_err(|nothing| ((), nothing))?, end: &mut self.end })
    }

    /// Closes the ring for good: see [`Ring::close`].
    pub fn close(&self) {
        self.end.ring.close();
    }

    #[inline(always)]
    fn put(&self, message: T) {
        write(self.end.slot(), message);
        self.end.advance(1);
    }

    /// As many as there is room for.
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

/// Sending a message.
struct Send<'p, T: Plain, R: Deref<Target = Ring<T>>> {
    producer: &'p Producer<T, R>,
    message: T,
}

impl<T: Plain, R: Deref<Target = Ring<T>>> Verb for Send<'_, T, R> {
    type Output = Result<(), (T, Nothing)>;

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
        let room = self.producer.end.room_until(deadline);
        let sent = room.map(|_| self.producer.put(self.message));
        Nothing::in_time(sent, |nothing| (self.message, nothing))
    }
}

/// Writes a slot of the producer's.
#[inline(always)]
#[expect(unsafe_code, reason = "slots belong to one end at a time")]
fn write<T: Plain>(slot: &Slot<T>, message: T) {
    // SAFETY: only called for slots between the bound and the producer's position, which are the
    // producer's (I3).
    slot.0.with_mut(|value| unsafe { value.write(MaybeUninit::new(message)) });
}

impl<T: Plain, R: Deref<Target = Ring<T>>> WriteChunk<'_, T, R> {
    /// How many slots.
    #[must_use]
    #[expect(
        clippy::len_without_is_empty,
        reason = "a chunk has a slot, unless none was asked for"
    )]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Writes slot `i`.
    ///
    /// # Panics
    /// If there are not as many, or in a copy made by `fork`.
    pub fn set(&mut self, i: usize, message: T) {
        self.end.assert_ours();
        assert!(i < self.len, "slot {i} of {}", self.len);
        let (first, second) = self.end.runs(self.len);
        write(first.get(i).unwrap_or_else(|| &second[i - first.len()]), message);
    }

    /// The slots, in two runs of which the second is often empty: they hold what earlier messages
    /// left.
    ///
    /// Only for types of which any bits are a value.
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

    /// Sends what was written to the first `n` slots; at most all.
    ///
    /// # Errors
    /// If the ring was closed meanwhile, or this process was forked after the chunk was taken.
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
    // SAFETY: as many slots, each of them a `T` in a cell, which are the producer's (I3); the chunk
    // is borrowed exclusively for as long as the slice; any bits are a `T`.
    unsafe { core::slice::from_raw_parts_mut(at, slots.len()) }
}

impl<T: Plain, R: Deref<Target = Ring<T>>> fmt::Debug for Producer<T, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer").field("ring", &self.ring()).finish_non_exhaustive()
    }
}

impl<T: Plain, R: Deref<Target = Ring<T>>> fmt::Debug for WriteChunk<'_, T, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteChunk").field("len", &self.len).finish_non_exhaustive()
    }
}
