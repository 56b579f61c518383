//! The end that receives.
use super::end::End;
use super::{RecvError, RecvTimeoutError, TryRecvError};
use super::{Ring, Slot};
use crate::deadline::Deadline;
use crate::error::Fault;
use crate::queue::{Failure, assert_in_place};
use crate::shareable::Plain;
use crate::shared::Shared;
use crate::wait::verbs::{Verb, verbs};
use core::mem::MaybeUninit;
use core::ops::Deref;

/// The end of a [`Ring`] that receives.
///
/// The end belongs to the process and can move to another thread, but only one thread at a time can
/// use it. The process gives it up by dropping it or by dying. A copy made by `fork` does nothing.
///
/// [`Ring::consumer`] gives an end that borrows the ring;
/// [`Shared::consumer`](crate::Shared::consumer) gives an end that keeps the ring mapped.
/// [`CommandExt::hand_over`](crate::CommandExt::hand_over) hands such an end to a child process.
///
/// ```compile_fail,E0277
/// fn shared_by_threads<T: Sync>() {}
/// shared_by_threads::<outlast::spsc::Consumer<u64>>();
/// ```
pub struct Consumer<T: Plain, R: Deref<Target = Ring<T>> = Shared<Ring<T>>> {
    pub(super) end: End<T, R, false>,
}

/// Messages to be read in place.
///
/// [`consume`](Self::consume) frees their slots. If the chunk is dropped without that, or if the
/// process is killed before it, all of the messages are received again.
#[must_use = "a chunk that is dropped consumes nothing"]
pub struct ReadChunk<'c, T: Plain, R: Deref<Target = Ring<T>> = Shared<Ring<T>>> {
    pub(super) end: &'c mut End<T, R, false>,
    pub(super) len: usize,
}

#[cfg_attr(outlast_loom, expect(dead_code, reason = "no programs are started in the model"))]
impl<T: Plain> Consumer<T> {
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
        End::take_over(ring, from).map(Consumer::new)
    }
}

impl<T: Plain, R: Deref<Target = Ring<T>>> Consumer<T, R> {
    pub(super) fn new(end: End<T, R, false>) -> Self {
        Consumer { end }
    }

    verbs! {
        /// Receives a message, blocking until one is available.
        ///
        /// # Errors
        /// If the ring is closed and empty, if this end is a copy made by `fork`, if the message is
        /// not a value of the type (it is consumed), or if the ring is empty and the producer has
        /// died. That is reported once for each death: a further call waits for the next producer.
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

        /// Copies messages to the beginning of `to`, until that is full or the ring is empty, and
        /// returns their number. Blocks only if the ring is empty.
        ///
        /// # Errors
        /// As [`recv`](Self::recv), if there is no message at all.
        pub fn recv_into(&self, to: &mut [T]) -> Result<usize, RecvError>
            = |deadline| self.copy_into(to, deadline);
        try_recv_into -> Result<usize, TryRecvError>, else Err(TryRecvError::Empty);
        recv_into_timeout, recv_into_deadline -> Result<usize, RecvTimeoutError>,
            else Err(RecvTimeoutError::TimedOut);

        /// Takes up to `most` messages to be read in place, blocking until one is available.
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

    fn append(&self, to: &mut Vec<T>, most: usize, deadline: Deadline) -> Result<usize, Failure> {
        if most == 0 {
            return Ok(0);
        }
        let n = self.end.room_for(most, deadline)?;
        to.reserve(n);
        let before = to.len();
        let received = self.copy(&mut to.spare_capacity_mut()[..n], copy_one);
        // SAFETY: `received` messages were written behind the old length.
        #[expect(unsafe_code, reason = "messages are copied to where they stay")]
        unsafe {
            to.set_len(before + received);
        }
        self.received(received)
    }

    fn copy_into(&self, to: &mut [T], deadline: Deadline) -> Result<usize, Failure> {
        if to.is_empty() {
            return Ok(0);
        }
        let n = self.end.room_for(to.len(), deadline)?;
        // Only values of the type may be written to `to`.
        let copy_one = |slot: &_, to: &mut T| read(slot).map(|message| *to = message).is_ok();
        self.received(self.copy(&mut to[..n], copy_one))
    }

    fn chunk(&mut self, most: usize, deadline: Deadline) -> Result<ReadChunk<'_, T, R>, Failure> {
        let mut len = self.end.room_for(most, deadline)?;
        if !T::ANY_BITS && len > 0 {
            let (first, second) = self.end.runs(len);
            let valid = first.iter().chain(second).take_while(|slot| read(slot).is_ok());
            len = valid.count();
            if len == 0 {
                self.get()?; // consumes what is not a value
            }
        }
        Ok(ReadChunk { end: &mut self.end, len })
    }

    /// Iterates over messages, blocking for each, until the ring is closed and empty, the producer
    /// has died, or the ring cannot be used.
    ///
    /// A message that is not a value of the type ends the iteration and is consumed. A later
    /// iteration continues after it. [`recv`](Self::recv) reports it.
    pub fn iter(&self) -> impl Iterator<Item = T> + '_ {
        core::iter::from_fn(|| self.recv().ok())
    }

    /// Copies and consumes the next message.
    #[inline(always)]
    fn get(&self) -> Result<T, Fault> {
        let message = read(self.end.slot());
        self.end.advance(1);
        message
    }

    /// Copies messages, which must be there, with `copy_one` to `to`, up to the first that is not a
    /// value of the type. Returns their number.
    #[inline(always)]
    fn copy<D>(&self, to: &mut [D], copy_one: impl Fn(&Slot<T>, &mut D) -> bool) -> usize {
        let (first, second) = self.end.runs(to.len());
        let (to_first, to_second) = to.split_at_mut(first.len());
        match copy_run(first, to_first, &copy_one) {
            all if all == first.len() => all + copy_run(second, to_second, &copy_one),
            some => some,
        }
    }

    /// Consumes `n` messages, which were copied. If `n` is 0, the next message is not a value of
    /// the type: consumes that one, and fails.
    fn received(&self, n: usize) -> Result<usize, Failure> {
        match n {
            0 => drop(self.get()?),
            n => self.end.advance(n),
        }
        Ok(n)
    }
}

/// A call of `recv` that has not begun.
struct Recv<'c, T: Plain, R: Deref<Target = Ring<T>>>(&'c Consumer<T, R>);

impl<T: Plain, R: Deref<Target = Ring<T>>> Verb for Recv<'_, T, R> {
    type Output = Result<T, Failure>;

    #[inline(always)]
    fn fast(&mut self) -> Option<Self::Output> {
        self.0.end.is_ready().then(|| self.0.get().map_err(Failure::Failed))
    }

    #[inline(always)]
    fn attempt(&mut self) -> Option<Self::Output> {
        self.fast().or_else(|| self.wait(Deadline::NOW))
    }

    fn wait(&mut self, deadline: Deadline) -> Option<Self::Output> {
        Some(match self.0.end.room_until(deadline) {
            Ok(_) => self.0.get().map_err(Failure::Failed),
            Err(Failure::Unavailable) => return None,
            Err(failure) => Err(failure),
        })
    }
}

/// Copies the message in a slot that belongs to the consumer.
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

/// Copies the bytes in a slot that belongs to the consumer. Returns whether they are a value of the
/// type.
#[inline(always)]
#[expect(unsafe_code, reason = "slots belong to one end at a time")]
fn copy_one<T: Plain>(slot: &Slot<T>, to: &mut MaybeUninit<T>) -> bool {
    // SAFETY: it is only called for slots from the consumer's position to its bound, which belong
    // to the consumer (I3), so `to`, which is borrowed exclusively, is no part of them.
    slot.0.with(|message| unsafe { message.copy_to_nonoverlapping(to, 1) });
    // SAFETY: the copy is aligned and as long as a `T`. All of its bytes are initialised, as those
    // of shared memory are.
    T::ANY_BITS || unsafe { T::is_valid(to.as_ptr()) }
}

/// Copies messages up to the first that is not a value of the type. Returns their number.
#[inline(always)]
fn copy_run<T: Plain, D>(
    slots: &[Slot<T>],
    to: &mut [D],
    copy_one: &impl Fn(&Slot<T>, &mut D) -> bool,
) -> usize {
    let copied = slots.iter().zip(to).map(|(slot, to)| copy_one(slot, to));
    copied.take_while(|is_value| *is_value).count()
}

impl<T: Plain, R: Deref<Target = Ring<T>>> ReadChunk<'_, T, R> {
    /// Returns message `i`, or `None` if the chunk has fewer messages.
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

    /// Returns the messages as two slices, of which the second is often empty.
    ///
    /// Only for types for which any bits are a value. [`get`](Self::get) copies and checks others.
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

    /// Consumes the first `n` messages, or all if there are fewer.
    ///
    /// # Errors
    /// In a process that was forked after the chunk was taken.
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
    // SAFETY: these slots, each of them a `T` in a cell, belong to the consumer (I3) for as long as
    // the chunk is borrowed; any bits are a `T`.
    unsafe { core::slice::from_raw_parts(slots.as_ptr().cast(), slots.len()) }
}
