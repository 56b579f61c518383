//! The end that receives.
use super::end::{End, Nothing};
use super::{RecvError, RecvTimeoutError, TryRecvError};
use super::{Ring, Slot};
use crate::deadline::Deadline;
use crate::error::Fault;
use crate::queue::assert_in_place;
use crate::shareable::Plain;
use crate::shared::Shared;
use crate::wait::verbs::{Verb, verbs};
use core::fmt;
use core::mem::MaybeUninit;
use core::ops::Deref;

/// The end of a [`Ring`] that receives.
///
/// It belongs to the process: it may be sent to another thread, and is given up when it is dropped
/// or the process dies. A copy made by `fork` can do nothing.
///
/// Made by [`Ring::consumer`] it borrows the ring; made by
/// [`Shared::consumer`](crate::Shared::consumer) it keeps the ring mapped.
///
/// ```compile_fail,E0277
/// fn shared_by_threads<T: Sync>() {}
/// shared_by_threads::<outlast::spsc::Consumer<u64>>();
/// ```
pub struct Consumer<T: Plain, R: Deref<Target = Ring<T>> = Shared<Ring<T>>> {
    end: End<T, R, false>,
}

/// Messages in their places, to be read there.
///
/// [`consume`](Self::consume) gives their slots back. Dropped otherwise, or if the process is
/// killed, all are received again.
#[must_use = "a chunk that is dropped consumes nothing"]
pub struct ReadChunk<'c, T: Plain, R: Deref<Target = Ring<T>> = Shared<Ring<T>>> {
    end: &'c mut End<T, R, false>,
    len: usize,
}

impl<T: Plain, R: Deref<Target = Ring<T>>> Consumer<T, R> {
    pub(super) fn new(end: End<T, R, false>) -> Self {
        Consumer { end }
    }

    /// The ring.
    #[must_use]
    pub fn ring(&self) -> &Ring<T> {
        &self.end.ring
    }

    /// Whether the consumer before this one died.
    #[must_use]
    pub fn predecessor_died(&self) -> bool {
        self.end.inherited
    }

    verbs! {
        /// Receives a message, blocking until one is available.
        ///
        /// # Errors
        /// If the ring is empty and closed; if it is empty and the producer has died (told once a
        /// death: call again to wait for the next producer); if this is a copy made by `fork`; or
        /// if the message is no value of the type (it is consumed).
        #[doc(alias = "pop")]
        #[doc(alias = "get")]
        #[inline]
        pub fn recv(&self) -> Result<T, RecvError> = Recv(self);
        #[doc(alias = "try_pop")]
        #[doc(alias = "get_nowait")]
        #[inline]
        try_recv -> Result<T, TryRecvError>, else Err(TryRecvError::Empty);
        recv_timeout, recv_deadline -> Result<T, RecvTimeoutError>,
            else Err(RecvTimeoutError::TimedOut);

        /// Appends up to `most` messages to `to`, and returns their number. Blocks only if the ring
        /// is empty.
        ///
        /// # Errors
        /// As [`recv`](Self::recv), if there is no message at all.
        pub fn recv_batch(&self, to: &mut Vec<T>, most: usize) -> Result<usize, RecvError>
            = |deadline| self.append(to, most, deadline);
        try_recv_batch -> Result<usize, TryRecvError>, else Err(TryRecvError::Empty);
        recv_batch_timeout, recv_batch_deadline -> Result<usize, RecvTimeoutError>,
            else Err(RecvTimeoutError::TimedOut);

        /// Copies messages to the beginning of `to`, as many as there are and fit, and returns
        /// their number. Blocks only if the ring is empty.
        ///
        /// # Errors
        /// As [`recv`](Self::recv), if there is no message at all.
        pub fn recv_into(&self, to: &mut [T]) -> Result<usize, RecvError>
            = |deadline| self.copy_into(to, deadline);
        try_recv_into -> Result<usize, TryRecvError>, else Err(TryRecvError::Empty);
        recv_into_timeout, recv_into_deadline -> Result<usize, RecvTimeoutError>,
            else Err(RecvTimeoutError::TimedOut);

        /// Takes up to `most` messages to be read in place, blocking until there is one.
        ///
        /// # Errors
        /// As [`recv`](Self::recv).
        pub fn read_chunk(&mut self, most: usize) -> Result<ReadChunk<'_, T, R>, RecvError>
            = |deadline| self.chunk(most, deadline);
        try_read_chunk -> Result<ReadChunk<'_, T, R>, TryRecvError>,
            else Err(TryRecvError::Empty);
        read_chunk_timeout, read_chunk_deadline -> Result<ReadChunk<'_, T, R>, RecvTimeoutError>,
            else Err(RecvTimeoutError::TimedOut);
    }

    fn append(&self, to: &mut Vec<T>, most: usize, deadline: Deadline) -> Result<usize, Nothing> {
        if most == 0 {
            return Ok(0);
        }
        let room = self.end.room_until(deadline)?;
        let n = self.end.most(room, most)?;
        to.reserve(n);
        let before = to.len();
        let received = self.copy_to(&mut to.spare_capacity_mut()[..n]);
        // SAFETY: there is room for them, and so many messages were written to the beginning of it.
        #[expect(unsafe_code, reason = "messages are copied to where they stay")]
        unsafe {
            to.set_len(before + received);
        }
        self.received(received)
    }

    fn copy_into(&self, to: &mut [T], deadline: Deadline) -> Result<usize, Nothing> {
        if to.is_empty() {
            return Ok(0);
        }
        let room = self.end.room_until(deadline)?;
        let n = self.end.most(room, to.len())?;
        let to = &mut to[..n];
        if T::ANY_BITS {
            let room: *mut [T] = to;
            // SAFETY: as many places, borrowed exclusively; whatever bytes come to lie there are a
            // `T`.
            #[expect(unsafe_code, reason = "messages are copied to where they stay")]
            let room = unsafe { &mut *(room as *mut [MaybeUninit<T>]) };
            return self.received(self.copy_to(room));
        }
        // What is no value must not come to lie there.
        let (first, second) = self.end.runs(n);
        let messages = first.iter().chain(second).map_while(|slot| read(slot).ok());
        let received = to.iter_mut().zip(messages).map(|(to, message)| *to = message).count();
        self.received(received)
    }

    fn chunk(&mut self, most: usize, deadline: Deadline) -> Result<ReadChunk<'_, T, R>, Nothing> {
        let room = self.end.room_until(deadline)?;
        let len = self.valid(self.end.most(room, most)?).map_err(Nothing::Failed)?;
        Ok(ReadChunk { end: &mut self.end, len })
    }

    /// Messages until the ring is closed and empty, its producer has died, or it cannot be used,
    /// waiting for each.
    ///
    /// A message that is no value of the type ends the iteration and is consumed: a later iteration
    /// goes on behind it. [`recv`](Self::recv) reports it.
    pub fn iter(&self) -> impl Iterator<Item = T> + '_ {
        core::iter::from_fn(|| self.recv().ok())
    }

    /// Closes the ring for good: see [`Ring::close`].
    pub fn close(&self) {
        self.end.ring.close();
    }

    /// Copies the next message, and consumes it.
    #[inline(always)]
    fn get(&self) -> Result<T, Fault> {
        let message = read(self.end.slot());
        self.end.advance(1);
        message
    }

    /// Copies as many messages as there is room for, of which there are as many, up to the first
    /// that is no value; how many.
    fn copy_to(&self, room: &mut [MaybeUninit<T>]) -> usize {
        let (first, second) = self.end.runs(room.len());
        let (to_first, to_second) = room.split_at_mut(first.len());
        match copy_all(first, to_first) {
            all if all == first.len() => all + copy_all(second, to_second),
            some => some,
        }
    }

    /// Consumes messages that were copied. If there are none, the next one is no value: that is
    /// consumed.
    fn received(&self, n: usize) -> Result<usize, Nothing> {
        if n == 0 {
            return self.get().map(|_| 0).map_err(Nothing::Failed);
        }
        self.end.advance(n);
        Ok(n)
    }

    /// How many of the next `n` messages are values, before the first that is none. That is
    /// consumed if it is the next.
    fn valid(&self, n: usize) -> Result<usize, Fault> {
        if T::ANY_BITS || n == 0 {
            return Ok(n);
        }
        let (first, second) = self.end.runs(n);
        match first.iter().chain(second).take_while(|slot| read(slot).is_ok()).count() {
            0 => self.get().map(|_| 0),
            valid => Ok(valid),
        }
    }
}

/// Receiving a message.
struct Recv<'c, T: Plain, R: Deref<Target = Ring<T>>>(&'c Consumer<T, R>);

impl<T: Plain, R: Deref<Target = Ring<T>>> Verb for Recv<'_, T, R> {
    type Output = Result<T, Nothing>;

    #[inline(always)]
    fn fast(&mut self) -> Option<Self::Output> {
        self.0.end.is_ready().then(|| self.0.get().map_err(Nothing::Failed))
    }

    #[inline(always)]
    fn attempt(&mut self) -> Option<Self::Output> {
        self.fast().or_else(|| self.wait(Deadline::NOW))
    }

    fn wait(&mut self, deadline: Deadline) -> Option<Self::Output> {
        let room = self.0.end.room_until(deadline);
        let received = room.and_then(|_| self.0.get().map_err(Nothing::Failed));
        Nothing::in_time(received, core::convert::identity)
    }
}

/// Copies what is in a slot of the consumer's.
#[inline(always)]
#[expect(unsafe_code, reason = "slots belong to one end at a time")]
fn read<T: Plain>(slot: &Slot<T>) -> Result<T, Fault> {
    let mut copy = MaybeUninit::uninit();
    if copy_one(slot, &mut copy) {
        // SAFETY: these bytes were found to be a `T`.
        Ok(unsafe { copy.assume_init() })
    } else {
        Err(Fault::Corrupt)
    }
}

/// Copies what is in a slot of the consumer's to where it stays; whether it is a value.
#[inline(always)]
#[expect(unsafe_code, reason = "slots belong to one end at a time")]
fn copy_one<T: Plain>(slot: &Slot<T>, to: &mut MaybeUninit<T>) -> bool {
    // SAFETY: only called for slots between the consumer's position and the bound, which are the
    // consumer's (I3), and so are no part of what is borrowed exclusively.
    slot.0.with(|message| unsafe { message.copy_to_nonoverlapping(to, 1) });
    // SAFETY: the copy is aligned, as long as a `T`, and all of its bytes came from shared memory,
    // which holds some.
    T::ANY_BITS || unsafe { T::is_valid(to.as_ptr()) }
}

/// Copies slots of the consumer's, up to the first that holds no value; how many.
#[inline(always)]
fn copy_all<T: Plain>(slots: &[Slot<T>], to: &mut [MaybeUninit<T>]) -> usize {
    slots
        .iter()
        .zip(to)
        .map(|(slot, to)| copy_one(slot, to))
        .take_while(|is_value| *is_value)
        .count()
}

impl<T: Plain, R: Deref<Target = Ring<T>>> ReadChunk<'_, T, R> {
    /// How many messages.
    #[must_use]
    #[expect(
        clippy::len_without_is_empty,
        reason = "a chunk has a message, unless none was asked for"
    )]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Message `i`.
    ///
    /// # Panics
    /// In a copy made by `fork`.
    #[must_use]
    pub fn get(&self, i: usize) -> Option<T> {
        self.end.assert_ours();
        let (first, second) = self.end.runs(self.len);
        let slot = first.get(i).or_else(|| second.get(i.checked_sub(first.len())?));
        slot.and_then(|slot| read(slot).ok())
    }

    /// The messages, in two runs of which the second is often empty.
    ///
    /// Only for types of which any bits are a value; [`get`](Self::get) copies and checks others.
    ///
    /// # Panics
    /// In a copy made by `fork`.
    #[must_use]
    pub fn as_slices(&self) -> (&[T], &[T]) {
        const { assert_in_place::<T>() }
        self.end.assert_ours();
        let (first, second) = self.end.runs(self.len);
        (slice(first), slice(second))
    }

    /// Consumes the first `n` messages; at most all.
    ///
    /// # Errors
    /// If this process was forked after the chunk was taken.
    pub fn consume(self, n: usize) -> Result<(), Fault> {
        self.end.check()?;
        if n > 0 && self.len > 0 {
            self.end.advance(n.min(self.len));
        }
        Ok(())
    }
}

#[expect(unsafe_code, reason = "slots belong to one end at a time")]
fn slice<T: Plain>(slots: &[Slot<T>]) -> &[T] {
    const { assert!(size_of::<Slot<T>>() == size_of::<T>()) }
    // SAFETY: as many slots, each of them a `T` in a cell, which are the consumer's (I3) for as
    // long as the chunk is borrowed; any bits are a `T`.
    unsafe { core::slice::from_raw_parts(slots.as_ptr().cast(), slots.len()) }
}

impl<T: Plain, R: Deref<Target = Ring<T>>> fmt::Debug for Consumer<T, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").field("ring", &self.ring()).finish_non_exhaustive()
    }
}

impl<T: Plain, R: Deref<Target = Ring<T>>> fmt::Debug for ReadChunk<'_, T, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadChunk").field("len", &self.len).finish_non_exhaustive()
    }
}
