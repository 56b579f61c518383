//! A bounded queue of byte messages of any length, written and read in place.
//!
//! ```
//! use outlast::{ByteQueue, Shared};
//!
//! let here = Shared::<ByteQueue>::with_capacity(64 * 1024)?;
//! let there = Shared::<ByteQueue>::from_fd(here.try_clone_fd()?)?; // as another process would
//! here.send(b"a few bytes")?;
//! assert_eq!(there.recv()?, b"a few bytes");
//!
//! // Without a copy on either side:
//! let mut frame = here.loan(30_000)?;
//! frame.fill(7);
//! frame.send()?;
//! let frame = there.recv_ref()?;
//! assert_eq!((frame.len(), frame[29_999]), (30_000, 7));
//! drop(frame); // received; if its process is killed before, another receives it
//!
//! // Work that must be done even if the worker is killed is acknowledged when it is done:
//! here.send(b"a job")?;
//! let job = there.recv_ack()?;
//! assert_eq!((&*job, job.attempts()), (&b"a job"[..], 0));
//! job.ack()?;
//! here.join()?; // returns when every message is received and acknowledged
//! # Ok::<(), outlast::Error>(())
//! ```
//!
//! # Which verb receives
//! | verb | copies | if the receiver is killed | deliveries |
//! |---|---|---|---|
//! | [`recv`](ByteQueue::recv) | once | the message is lost after `recv` has returned | not counted |
//! | [`recv_ref`](ByteQueue::recv_ref) | never | the message is received again | not counted |
//! | [`recv_ack`](ByteQueue::recv_ack) | once | the message is delivered again | [`attempts`](Delivery::attempts) |
//!
//! A message that kills every process that reads it comes back each time. To stop that, use
//! [`recv_ack_or_dead_letter`](ByteQueue::recv_ack_or_dead_letter): it sends a message that was
//! delivered too often to another queue.
//!
//! # When to use another type
//! - For plain data of one type, use a [`Queue`](super::Queue). For values that `serde` can encode,
//!   use a `ValueQueue`.
//! - A message that is longer than the queue is refused ([`Fault::TooLong`]). Send it through a
//!   [`Pipe`](super::Pipe), which sends long messages in parts. Or put the data into a segment of
//!   its own, and send the name of the segment.
//!
//! # Death
//! If a sender is killed before `send` has claimed room, nothing happens. If it is killed between
//! the claim and the commit, nothing is sent, and receivers skip the record. After the commit, the
//! message is sent.
//!
//! If a receiver is killed between the claim and the commit of its reception, another receiver gets
//! the message. With `recv_ref`, the commit comes when the [`Ref`] is dropped. After the commit,
//! the message is lost with the process that received it.
//!
//! If a process is killed while it holds a [`Delivery`], the message is delivered to another
//! process, with one attempt more. After the commit of `ack`, the message is done.
//!
//! Recovery wakes all waiting threads, so no wake is lost with the process that should have sent
//! it.
#![expect(unsafe_code, reason = "the blocks of a record are reached by its claimer alone")]

// # State
//
// A ring of blocks of 64 bytes. A message takes a run of at least one block, called its record. The
// header of the first block has a word of {lap: 25, extent in blocks: 24, owner: 12, phase: 3
// bits}, and the length in bytes.
//
// | phase | owner | meaning | next |
// |---|---|---|---|
// | `Free` | - | no message begins here | `Writing`; or `Done` for the rest of the ring, if it is too short for the next message |
// | `Writing` | process | being written | `Full` = the commit of `send`; or `Done`, if the sender drops it or dies |
// | `Full` | - | a message | `Reading` by a claim |
// | `Reading` | process | being read | `Done` = the commit of `recv`; `Orphan` if it is given back, or its reader dies |
// | `Orphan` | - | a message to be received again | `Reading` |
// | `Done` | - | room for later messages | a header of an earlier lap counts as `Free` |
//
// Messages that `recv_ack` has delivered are in an area of their own, which is as large as the
// ring: see `in_flight.rs`.
//
// Three marks are positions in the ring: `freed` <= `head` <= `tail` <= `freed` + capacity.
//
// # Invariants
//
// - I1. A claim names its owner, and its extent, in the instruction that makes it.
// - I2. A record begins where the record before it ends, and nowhere else. A sender that claims the
//   block at `tail` in its lap therefore claims all blocks up to the end of its record, provided
//   that they lie before `freed` + capacity.
// - I3. Each mark is moved by a compare-exchange over one record (`freed`: over several), by the
//   extent that the header states. Any process may move it. So a mark never goes back, and a
//   process that dies before it has moved a mark holds up no other. `freed` moves only to places
//   where `head` has been. All three marks lie on the chain of records. This is checked when a
//   segment is opened: marks elsewhere could give two claims the same blocks.
// - I4. If a record, in the ring or in flight, is an `Orphan`, then `returned` != `searched`, or a
//   living process is about to make it so.
// - I5. A receiver whose claim leaves another message to be claimed wakes one more receiver, if one
//   sleeps. The receiver that the commit of that message woke may have found a slower sender in its
//   way, and gone back to sleep.
// - I6. A thread that sleeps in `join`, or for room in flight, has set `WATCHED` before its last
//   look. So the end of each later claim wakes it. The message that has no room may be gone by
//   then, and the next message may need less room.
// - I7. A message that moves to the in-flight area is `Delivered` there before its record is
//   `Done`, and the record says where the message went. So a thread that looks at the ring and then
//   at the area sees the message, and recovery delivers it once.
// - I8. Messages that came back in the in-flight area are delivered before messages that came back
//   in the ring. A message of the ring needs room in the area. The messages of the area could
//   occupy all of that room while no process holds a delivery whose end would wake a receiver.
//
// # Ordering
//
// Writes made before the commit of a message are visible after its claim: Release store of `Full`,
// Acquire load. `Done` gives the blocks back in the same way, and `freed` passes on what its writer
// saw of them. A light fence follows every change, before the look at the sleepers (see
// `signal.rs`) and at the flag of a closed queue. A receiver that reports *closed* has looked for
// claims after it saw the flag and passed the heavy fence. A sender whose claim the receiver did
// not see therefore sees the flag, and drops its claim.
//
// # Why long messages are not sent in parts
//
// A sender of parts would keep out all other senders and receivers until the last part is received.
// A receiver would have to free the first part to get the last: after its death, the message could
// not be given back.
//
// The protocol is this crate's own: that of `Queue`, with the extent of the record in the claim.

mod handles;
mod in_flight;
mod memory;
mod records;

pub use handles::{Delivery, Loan, Ref};
// Not a part of the interface. Hidden rather than private, so that a function can be generic over
// both forms of a queue.
#[doc(hidden)]
pub use memory::Store;

use crate::deadline::Deadline;
use crate::error::Fault;
use crate::queue::ends::Ends;
use crate::queue::in_flight::deliver_until;
use crate::queue::ring::ClaimError;
use crate::queue::verbs::{QueueState, receiving, state, wait_for};
use crate::queue::{CLOSED, Failure, LIGHT, NO_RECEIVERS, NO_SENDERS};
use crate::queue::{RecvError, RecvTimeoutError, SendError, SendTimeoutError};
use crate::queue::{TryRecvError, TrySendError};
use crate::segment::{become_known, forks, identify};
use crate::shareable::{Dead, Field, Layout, Shareable, WithCapacity, at_slice, begin, mix_u64};
use crate::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use crate::sync::atomic::fence;
use crate::sync::atomic::{AtomicU32, AtomicU64};
use crate::sys::hooks;
use crate::wait::signal::Signal;
use crate::wait::verbs::verbs;
use core::fmt;
use core::mem::offset_of;
use core::ops::ControlFlow;
use in_flight::InFlight;
use memory::{Block, Parts};
pub(in crate::queue) use memory::{Blocks, Unit};
pub(crate) use records::BLOCK;
use records::{Claim, Header, MAX_BLOCKS, Marks, Phase, Records, State};

/// A bounded queue of byte messages, whose capacity is chosen when it is created.
///
/// Messages are received in the order in which they were sent. A message whose receiver has died,
/// or has given it back, is received again, out of that order. Any number of processes and threads
/// may send and receive.
///
/// A message takes its length rounded up to a multiple of 64 bytes, and at least 64. It may be as
/// long as the capacity. A message of more than half of the capacity may have to wait until the
/// queue is empty.
///
/// Messages that were received with [`recv_ack`](Self::recv_ack) and are not yet acknowledged are
/// in an area of their own, which is as large as the queue. The memory of a queue is therefore
/// about two and a half times its capacity.
///
/// [`Shared::with_capacity`](crate::Shared::with_capacity) creates one for 1 to 1,073,741,568 bytes
/// of messages, rounded up to a multiple of 256. To embed one in a struct, see [`FixedByteQueue`].
#[repr(C)]
#[doc(alias = "ring buffer")]
#[doc(alias = "bbqueue")]
pub struct ByteQueue<S: Store + ?Sized = [Unit]> {
    marks: Marks,
    pub(in crate::queue) rare: Rare,
    slots: S,
}

/// A byte queue with a capacity of `BLOCKS` times 64 bytes, to be embedded in a struct declared
/// with [`shared!`](crate::shared).
pub type FixedByteQueue<const BLOCKS: usize> = ByteQueue<Blocks<BLOCKS>>;

/// Words that every thread reads, and that are rarely written.
#[repr(C, align(128))]
#[derive(Debug)]
pub(in crate::queue) struct Rare {
    /// A message can be received.
    pub(in crate::queue) not_empty: Signal<LIGHT>,
    /// Room has become free.
    pub(in crate::queue) not_full: Signal<LIGHT>,
    /// Blocks of the in-flight area have become free, or another message is the next one.
    in_flight_free: Signal<LIGHT>,
    /// Every message is received and acknowledged.
    idle: Signal<LIGHT>,
    /// `CLOSED`, `NO_RECEIVERS`, `NO_SENDERS`, `WATCHED`.
    pub(in crate::queue) ended: AtomicU32,
    /// The number of leading blocks of the in-flight area that contains every block ever claimed.
    in_flight_used: AtomicU32,
    /// Counts messages that came back.
    returned: AtomicU64,
    /// The count of `returned` up to which a receiver has looked for them in vain.
    searched: AtomicU64,
}

/// A bit of `ended`: a thread has waited in `join`, or for room in the in-flight area. The release
/// of a record must look whether a thread waits there now.
const WATCHED: u32 = 8;

/// The number of units is a multiple of this, so that the headers fill whole blocks.
pub(crate) const GRAIN: usize = BLOCK / size_of::<Header>();

impl<const BLOCKS: usize> FixedByteQueue<BLOCKS> {
    /// Creates an empty queue, to be moved into shared memory.
    ///
    /// It compiles only for 1 to 16,777,215 blocks.
    #[must_use]
    #[expect(
        clippy::new_without_default,
        reason = "zero-filled memory is the default, and needs no value"
    )]
    pub fn new() -> Self {
        const { assert!(BLOCKS > 0 && BLOCKS <= MAX_BLOCKS, "a queue has 1 to 16,777,215 blocks") }
        ByteQueue {
            marks: Marks::new(),
            rare: Rare {
                not_empty: Signal::new(),
                not_full: Signal::new(),
                in_flight_free: Signal::new(),
                idle: Signal::new(),
                ended: AtomicU32::new(0),
                in_flight_used: AtomicU32::new(0),
                returned: AtomicU64::new(0),
                searched: AtomicU64::new(0),
            },
            slots: Blocks {
                headers: core::array::from_fn(|_| core::array::from_fn(|_| Header::new())),
                blocks: core::array::from_fn(|_| core::array::from_fn(|_| Block::new())),
            },
        }
    }

    const FIELDS: [Field; 1] = {
        let offset = offset_of!(Self, slots);
        [Field { name: "blocks", offset, count: BLOCKS, layout: u64::layout }]
    };
}

impl<S: Store + ?Sized> ByteQueue<S> {
    verbs! {
        /// Sends a message, blocking until there is room.
        ///
        /// # Errors
        /// Fails if the queue is closed, if the message is longer than the capacity
        /// ([`Fault::TooLong`]), or if this process cannot become a peer.
        #[doc(alias = "push")]
        #[doc(alias = "put")]
        #[inline]
        pub fn send(&self, message: &[u8]) -> Result<(), SendError<()>>
            = |deadline| self.loan_until(message.len(), deadline).and_then(|r| r.write(message));
        #[doc(alias = "try_push")]
        #[doc(alias = "put_nowait")]
        #[inline]
        try_send -> Result<(), TrySendError<()>>, else Err(TrySendError::Full(()));
        send_timeout, send_deadline -> Result<(), SendTimeoutError<()>>,
            else Err(SendTimeoutError::TimedOut(()));

        /// Takes room for a message of `len` bytes, to be written in place, blocking until there
        /// is room.
        ///
        /// [`Loan::send`] sends the message. Later messages are not received before the loan is
        /// sent or dropped, so keep it for a short time only.
        ///
        /// ```
        /// use outlast::{ByteQueue, Shared};
        ///
        /// let here = Shared::<ByteQueue>::with_capacity(4096)?;
        /// let there = Shared::<ByteQueue>::from_fd(here.try_clone_fd()?)?; // as another process would
        /// let mut loan = here.loan(100)?;
        /// loan[..5].copy_from_slice(b"short");
        /// loan.send_len(5)?;
        /// assert_eq!(&*there.recv_ref()?, b"short");
        /// # Ok::<(), outlast::Error>(())
        /// ```
        ///
        /// # Errors
        /// As [`send`](Self::send).
        #[doc(alias = "reserve")]
        #[doc(alias = "grant")]
        #[inline]
        pub fn loan(&self, len: usize) -> Result<Loan<'_>, SendError<()>>
            = |deadline| self.loan_until(len, deadline);
        #[inline]
        try_loan -> Result<Loan<'_>, TrySendError<()>>, else Err(TrySendError::Full(()));
        loan_timeout, loan_deadline -> Result<Loan<'_>, SendTimeoutError<()>>,
            else Err(SendTimeoutError::TimedOut(()));

        /// Receives a message to be read in place, blocking until one is available.
        ///
        /// The message is consumed when the [`Ref`] is dropped. If the process is killed before
        /// that, another receiver gets it.
        ///
        /// # Errors
        /// As [`recv`](Self::recv).
        #[inline]
        pub fn recv_ref(&self) -> Result<Ref<'_>, RecvError>
            = |deadline| self.view().recv_until(deadline);
        #[inline]
        try_recv_ref -> Result<Ref<'_>, TryRecvError>, else Err(TryRecvError::Empty);
        recv_ref_timeout, recv_ref_deadline -> Result<Ref<'_>, RecvTimeoutError>,
            else Err(RecvTimeoutError::TimedOut);

        /// Appends a message to `buffer` and returns its length. Blocks until one is available.
        ///
        /// # Errors
        /// As [`recv`](Self::recv).
        pub fn recv_into(&self, buffer: &mut Vec<u8>) -> Result<usize, RecvError>
            = |deadline| self.view().recv_until(deadline).map(|message| message.append_to(buffer));
        try_recv_into -> Result<usize, TryRecvError>, else Err(TryRecvError::Empty);
        recv_into_timeout, recv_into_deadline -> Result<usize, RecvTimeoutError>,
            else Err(RecvTimeoutError::TimedOut);
    }

    #[inline(always)]
    fn loan_until(&self, len: usize, deadline: Deadline) -> Result<Loan<'_>, Failure> {
        self.view().loan_until(len, deadline)
    }

    #[inline(always)]
    pub(in crate::queue) fn recv_until(&self, deadline: Deadline) -> Result<Vec<u8>, Failure> {
        self.view().recv_until(deadline).map(|message| message.to_vec())
    }

    /// Any bytes are a message, so no message is invalid.
    fn recv_valid(&self) -> Result<Vec<u8>, Failure> {
        self.recv_until(Deadline::NOW)
    }

    pub(in crate::queue) fn deliver_until(
        &self,
        deadline: Deadline,
    ) -> Result<Delivery<'_>, Failure> {
        self.view().deliver_until(deadline)
    }

    #[inline(always)]
    pub(in crate::queue) fn view(&self) -> View<'_> {
        View { rare: &self.rare, marks: &self.marks, parts: self.slots.parts() }
    }

    const BASE: u64 = begin::<FixedByteQueue<1>>(b"ByteQueue 1");
}

receiving! {
    impl [S: Store + ?Sized] ByteQueue<S>;
    /// # Errors
    /// Fails if the queue is closed and no message is left or may come back, if this process cannot
    /// become a peer, or if the message is damaged. Such a message is consumed.
    recv -> Vec<u8>;
    /// An unacknowledged message does not hold up the queue. It moves to an area of its own, which
    /// has room for [`in_flight_capacity`](Self::in_flight_capacity) bytes. If there is no room for
    /// the next message, this call blocks until others are acknowledged. A message of more than
    /// half of the capacity may have to wait until all others are acknowledged.
    ///
    /// ```
    /// use outlast::{ByteQueue, Shared};
    ///
    /// let here = Shared::<ByteQueue>::with_capacity(4096)?;
    /// let there = Shared::<ByteQueue>::from_fd(here.try_clone_fd()?)?; // as another process would
    /// here.send(b"a job of any length")?;
    /// drop(there.recv_ack()?); // not acknowledged
    /// let job = there.recv_ack()?;
    /// assert_eq!((&*job, job.attempts()), (&b"a job of any length"[..], 1));
    /// assert!(!here.try_join()?);
    /// job.ack()?;
    /// assert!(here.try_join()?);
    /// # Ok::<(), outlast::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    recv_ack -> Delivery<'_>;
    iter;
}

state! {
    impl [S: Store + ?Sized] ByteQueue<S>;
    |queue| queue.view();
    /// Returns how many bytes of messages can be in the queue at a time. The length of each message
    /// counts as rounded up to a multiple of 64.
    capacity;
    /// Returns how many bytes of messages can be delivered and unacknowledged at a time, counted as
    /// for [`capacity`](Self::capacity).
    in_flight_capacity;
}

impl Rare {
    #[inline(always)]
    fn has_ended(&self, how: u32) -> bool {
        self.ended.load(Relaxed) & how != 0
    }

    /// Makes each later release of a record look whether a thread waits.
    #[cold]
    fn watch(&self) {
        if !self.has_ended(WATCHED) {
            self.ended.fetch_or(WATCHED, AcqRel);
        }
    }

    fn signals(&self) -> [&Signal<LIGHT>; 4] {
        [&self.not_empty, &self.not_full, &self.in_flight_free, &self.idle]
    }
}

/// A reference to a queue that does not depend on the type of its memory.
#[derive(Clone, Copy, Debug)]
pub(in crate::queue) struct View<'a> {
    rare: &'a Rare,
    marks: &'a Marks,
    parts: Parts<'a>,
}

/// The next message for a delivery.
enum Next {
    /// The message was in the in-flight area, and is delivered now.
    Delivered(Claim),
    /// The message is in the ring, not claimed, and has this number of blocks.
    InRing(usize),
}

impl<'a> View<'a> {
    #[inline(always)]
    fn records(self) -> Records<'a> {
        Records { marks: self.marks, headers: self.parts.ring() }
    }

    #[inline(always)]
    fn in_flight(self) -> InFlight<'a> {
        InFlight { headers: self.parts.in_flight(), used: &self.rare.in_flight_used }
    }

    #[inline(always)]
    pub(in crate::queue) fn loan_until(
        self,
        len: usize,
        deadline: Deadline,
    ) -> Result<Loan<'a>, Failure> {
        wait_for(deadline, || self.claim_free(len), || &self.rare.not_full, || false)
    }

    /// Claims room for a message of `len` bytes.
    #[inline(always)]
    fn claim_free(self, len: usize) -> Result<Loan<'a>, Failure> {
        let forks = forks();
        let owner = self.identify()?;
        if self.rare.has_ended(CLOSED | NO_RECEIVERS) {
            return Err(Failure::Closed);
        }
        let extent = len.div_ceil(BLOCK).max(1);
        if extent > self.parts.count {
            return Err(Fault::TooLong.into());
        }
        match self.records().claim_free(extent, owner) {
            Ok(claim) => {
                let loan = Loan { view: self, claim, len, forks, receivers: None };
                Signal::<LIGHT>::fence_after_change();
                // The queue may have been closed meanwhile, and a receiver that did not see this
                // claim has reported so: then the loan is dropped, and with it the claim.
                if self.rare.has_ended(CLOSED | NO_RECEIVERS) {
                    Err(Failure::Closed)
                } else {
                    Ok(loan)
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Makes a claimed record a message. In a channel, whose end is `receivers`, takes the message
    /// back if no receiver is left, unless a receiver has it already.
    #[inline(always)]
    fn publish(self, claim: Claim, len: u64, receivers: Option<&Ends>) -> Result<(), Failure> {
        let header = &self.records().headers[claim.index];
        header.set_len(len);
        header.store(claim.state.to(Phase::Full, 0)); // the commit
        Signal::<LIGHT>::fence_after_change();
        if self.rare.not_empty.is_armed() {
            self.rare.not_empty.notify(1);
        }
        match receivers {
            Some(receivers) if self.rare.has_ended(NO_RECEIVERS) => {
                self.take_back(receivers, claim)
            }
            _ => Ok(()),
        }
    }

    #[cold]
    fn take_back(self, receivers: &Ends, claim: Claim) -> Result<(), Failure> {
        let (full, done) = (claim.state.to(Phase::Full, 0), claim.state.to(Phase::Done, 0));
        let ended = &self.rare.ended;
        let gone = receivers.confirm_gone(ended, NO_RECEIVERS, || self.rare.not_full.notify_all());
        if !gone || !self.records().headers[claim.index].exchange(full, done) {
            return Ok(());
        }
        self.after_abort();
        Err(if self.rare.has_ended(CLOSED) { Failure::Closed } else { Failure::Disconnected })
    }

    /// Gives up a claimed record without a message.
    #[cold]
    fn abandon(self, claim: Claim) {
        self.records().headers[claim.index].store(claim.state.to(Phase::Done, 0));
        self.after_abort();
    }

    #[cold]
    fn after_abort(self) {
        fence(SeqCst);
        let over = self.rare.has_ended(CLOSED | NO_SENDERS);
        self.rare.not_empty.notify(if over { u32::MAX } else { 1 });
        self.rare.not_full.notify(u32::MAX);
        self.notify_if_idle();
    }

    #[inline(always)]
    pub(in crate::queue) fn recv_until(self, deadline: Deadline) -> Result<Ref<'a>, Failure> {
        wait_for(deadline, || self.claim_message(), || &self.rare.not_empty, || false)
    }

    #[inline(always)]
    fn claim_message(self) -> Result<Ref<'a>, Failure> {
        let forks = forks();
        let owner = self.identify()?;
        let claim = self.find_or_closed(owner, || self.claim_next(owner))?;
        self.after_claim();
        let len = self.stated_len(claim);
        let message = Ref { view: self, claim, len, forks };
        if len <= claim.state.extent() * BLOCK {
            Ok(message)
        } else {
            Err(Fault::Corrupt.into()) // and the message is consumed
        }
    }

    #[inline(always)]
    fn after_claim(self) {
        Signal::<LIGHT>::fence_after_change();
        if self.rare.not_empty.is_armed() && self.records().find_full().is_ok() {
            self.rare.not_empty.notify(1); // keeps I5
        }
    }

    /// The length of a claimed message as its header states it. The caller must check it.
    #[inline(always)]
    fn stated_len(self, claim: Claim) -> usize {
        let stated = self.header(claim.index).map_or(u64::MAX, Header::len);
        usize::try_from(stated).unwrap_or(usize::MAX)
    }

    /// The header at the index of a claim, in the ring or in the in-flight area.
    #[inline(always)]
    fn header(self, index: usize) -> Option<&'a Header> {
        self.records().headers.get(index).or_else(|| self.in_flight().header(index))
    }

    #[inline(always)]
    fn claim_next(self, owner: u32) -> Result<Claim, ClaimError> {
        if self.may_have_returned()
            && let Some(claim) = self.claim_returned(owner)
        {
            return Ok(claim);
        }
        self.records().claim_full(owner)
    }

    /// Looks for a message with `find`. If there is none, and nothing more can be sent, looks once
    /// more behind a fence. A sender that claims after the fence sees the flag, and a claim that
    /// was made before the fence is seen here.
    #[inline(always)]
    fn find_or_closed<R>(
        self,
        owner: u32,
        find: impl Fn() -> Result<R, ClaimError>,
    ) -> Result<R, Failure> {
        match find() {
            Err(ClaimError::Unavailable) if self.rare.has_ended(CLOSED | NO_SENDERS) => {
                self.find_last(owner, find)
            }
            found => found.map_err(Failure::from),
        }
    }

    #[cold]
    fn find_last<R>(
        self,
        owner: u32,
        find: impl Fn() -> Result<R, ClaimError>,
    ) -> Result<R, Failure> {
        Signal::<LIGHT>::fence_before_verdict();
        find().map_err(|error| match error {
            ClaimError::Unavailable if !self.may_come_back(owner) => Failure::Closed,
            error => error.into(),
        })
    }

    /// Whether another process has a message that comes back if that process dies. A process that
    /// has one itself does not wait for the others: two such processes would wait for each other.
    fn may_come_back(self, owner: u32) -> bool {
        let (mut ours, mut others) = (false, false);
        let look = |_: &Header, claim: Claim| {
            let state = claim.state;
            let is_held = state.is_in(Phase::Reading) || state.is_in(Phase::Delivered);
            ours |= is_held && state.owner() == owner;
            others |= state.is_in(Phase::Orphan) || is_held && state.owner() != owner;
            ControlFlow::Continue(())
        };
        self.visit(look).is_ok() && others && !ours
    }

    #[inline(always)]
    fn may_have_returned(self) -> bool {
        self.rare.returned.load(Acquire) != self.rare.searched.load(Relaxed)
    }

    /// Claims a message that came back.
    #[cold]
    fn claim_returned(self, owner: u32) -> Option<Claim> {
        self.search_returned(|header, Claim { index, state }| {
            let taken = state.to(Phase::Reading, owner);
            header.exchange(state, taken).then_some(Claim { index, state: taken })
        })
    }

    /// Calls `take` for each message that came back until it takes one. The messages of the
    /// in-flight area come first, which keeps I8.
    #[cold]
    fn search_returned<R>(self, take: impl Fn(&Header, Claim) -> Option<R>) -> Option<R> {
        let before = self.rare.searched.load(Relaxed);
        let returned = self.rare.returned.load(Acquire);
        let mut taken = None;
        let mut look = |header: &Header, claim: Claim| {
            if taken.is_none() && claim.state.is_in(Phase::Orphan) {
                taken = take(header, claim);
            }
            if taken.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        self.in_flight().visit(&mut look);
        let is_sound = self.records().visit(look).is_ok();
        if taken.is_none() && is_sound {
            // Keeps I4.
            self.rare.searched.compare_exchange(before, returned, Relaxed, Relaxed).ok();
        }
        taken
    }

    /// Calls `visit` for the records of the ring that are not `Done`, and then for those of the
    /// in-flight area. A message moves from the ring to the area, never back.
    fn visit(
        self,
        mut visit: impl FnMut(&Header, Claim) -> ControlFlow<()>,
    ) -> Result<(), ClaimError> {
        let mut is_over = false;
        self.records().visit(|header, claim| {
            let flow = visit(header, claim);
            is_over = flow.is_break();
            flow
        })?;
        if !is_over {
            self.in_flight().visit(visit);
        }
        Ok(())
    }

    /// Commits the reception of a claimed message.
    #[inline(always)]
    fn release(self, claim: Claim) {
        let Some(header) = self.records().headers.get(claim.index) else {
            self.consume(claim);
            return;
        };
        header.store(claim.state.to(Phase::Done, 0)); // the commit
        Signal::<LIGHT>::fence_after_change();
        if self.rare.not_full.is_armed() || self.rare.has_ended(CLOSED | NO_SENDERS | WATCHED) {
            self.after_release();
        }
    }

    /// Frees a message in the in-flight area that this process holds. Returns `false` if the memory
    /// says that this process does not hold it.
    #[cold]
    fn consume(self, claim: Claim) -> bool {
        let is_ours = self.in_flight().consume(claim);
        if is_ours {
            fence(SeqCst);
            self.after_release();
        }
        is_ours
    }

    #[cold]
    fn after_release(self) {
        // All threads are woken, because they wait for room of different lengths.
        self.rare.not_full.notify(u32::MAX);
        self.rare.in_flight_free.notify(u32::MAX);
        if self.rare.has_ended(CLOSED | NO_SENDERS) {
            // Receivers may wait to learn whether this message comes back.
            self.rare.not_empty.notify(u32::MAX);
        }
        self.notify_if_idle();
    }

    /// Gives a claimed message back, to be received again.
    #[cold]
    fn give_back(self, claim: Claim) {
        if let Some(header) = self.header(claim.index) {
            header.store(claim.state.to(Phase::Orphan, 0));
        }
        self.rare.returned.fetch_add(1, Release); // keeps I4
        fence(SeqCst);
        self.rare.not_empty.notify(1);
        self.rare.in_flight_free.notify(u32::MAX); // its delivery may need no room there
    }

    pub(in crate::queue) fn deliver_until(
        self,
        deadline: Deadline,
    ) -> Result<Delivery<'a>, Failure> {
        deliver_until(self.receivers(), deadline, || {
            let delivered = self.deliver();
            if let Err(Failure::TooManyInFlight) = delivered
                && !deadline.is_now()
            {
                self.rare.watch(); // keeps I6
            }
            delivered
        })
    }

    fn deliver(self) -> Result<Delivery<'a>, Failure> {
        let forks = forks();
        let owner = self.identify()?;
        let claim = loop {
            let next = self.find_or_closed(owner, || self.find_for_delivery(owner));
            let extent = match next? {
                Next::Delivered(claim) => break claim,
                Next::InRing(extent) => extent,
            };
            // Blocks are claimed before the message. Otherwise a claimed message for which there is
            // no room would have to be given back.
            let wake = || self.after_vain_claim();
            let Some(first) = self.in_flight().claim(extent, owner, wake) else {
                return Err(Failure::TooManyInFlight);
            };
            let claimed = self.claim_next(owner);
            // Another receiver may have taken the message that was found.
            let kept = match claimed {
                Ok(claim) if self.is_in_flight(claim) || claim.state.extent() > extent => 0,
                Ok(claim) => claim.state.extent(),
                Err(_) => 0,
            };
            if kept < extent {
                self.in_flight().free(first + kept, extent - kept);
                self.after_vain_claim();
            }
            match claimed {
                Ok(claim) => {
                    self.after_claim();
                    if kept > 0 {
                        break self.move_to(first, claim, owner);
                    } else if self.is_in_flight(claim) {
                        break self.deliver_in_place(claim, owner);
                    }
                    self.give_back(claim); // it is longer than the found one
                }
                Err(ClaimError::Corrupt) => return Err(Failure::Failed(Fault::Corrupt)),
                // Another receiver was faster.
                Err(ClaimError::Unavailable | ClaimError::Pending) => {}
            }
        };
        let len = self.stated_len(claim);
        let delivery = Delivery { view: self, claim, len, forks };
        if len <= claim.state.extent() * BLOCK {
            Ok(delivery)
        } else {
            delivery.ack()?; // consumed, as by `recv`
            Err(Fault::Corrupt.into())
        }
    }

    /// Looks for the next message. Delivers it if that needs no room in the in-flight area, and
    /// otherwise only finds it.
    fn find_for_delivery(self, owner: u32) -> Result<Next, ClaimError> {
        let take = |header: &Header, claim: Claim| {
            if !self.is_in_flight(claim) {
                return Some(Next::InRing(claim.state.extent()));
            }
            let state = claim.state.to(Phase::Delivered, owner);
            let taken = header.exchange(claim.state, state); // the commit
            taken.then_some(Next::Delivered(Claim { state, ..claim }))
        };
        if self.may_have_returned()
            && let Some(next) = self.search_returned(take)
        {
            return Ok(next);
        }
        self.records().find_full().map(Next::InRing)
    }

    fn is_in_flight(self, claim: Claim) -> bool {
        self.in_flight().header(claim.index).is_some()
    }

    /// Delivers a message that came back in the in-flight area and that this call has claimed.
    fn deliver_in_place(self, claim: Claim, owner: u32) -> Claim {
        let state = claim.state.to(Phase::Delivered, owner);
        if let Some(header) = self.in_flight().header(claim.index) {
            header.store(state); // the commit
        }
        Claim { state, ..claim }
    }

    /// Moves a message from the ring to as many blocks of the in-flight area, all claimed by this
    /// call.
    fn move_to(self, first: usize, from: Claim, owner: u32) -> Claim {
        let extent = from.state.extent();
        let state = State::delivered(extent, owner);
        if let (Some(source), Some(target)) = (self.header(from.index), self.header(first)) {
            handles::copy(self, from.index, first, extent);
            target.set_len(source.len());
            source.set_moved(first);
            hooks::pause("byte queue: a message is copied, and not yet delivered");
            target.store(state); // the commit
        }
        self.release(from);
        Claim { index: first, state }
    }

    /// Wakes the threads that wait for room in the in-flight area. To be called after a claim of
    /// blocks that were then freed without a message.
    #[cold]
    fn after_vain_claim(self) {
        fence(SeqCst);
        self.rare.in_flight_free.notify(u32::MAX);
    }

    /// Wakes the threads that wait in `join` if every message is done. If two processes make the
    /// last changes at the same time, one of them sees both: each fences after its own change.
    fn notify_if_idle(self) {
        if !self.rare.idle.is_armed() {
            return;
        }
        fence(SeqCst);
        if self.is_idle() {
            self.rare.idle.notify(u32::MAX);
        }
    }

    /// Whether there was a moment at which every message was received and acknowledged.
    ///
    /// First, every record of the ring is `Done`, so no message moves to the in-flight area any
    /// more. Then the area is empty. Then the end of the ring shows that nothing was sent
    /// meanwhile.
    fn is_idle(self) -> bool {
        let first = self.records().end_if_done();
        fence(SeqCst);
        let mut is_empty = true;
        self.in_flight().visit(|_, claim| {
            is_empty = claim.state.is_in(Phase::Writing);
            if is_empty { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        fence(SeqCst);
        first.is_some() && is_empty && first == self.records().end_if_done()
    }

    fn count(self, counts: impl Fn(Claim) -> bool) -> usize {
        let mut count = 0;
        let look = |_: &Header, claim: Claim| {
            count += usize::from(counts(claim));
            ControlFlow::Continue(())
        };
        self.visit(look).ok();
        count
    }

    pub(in crate::queue) fn is_sound(self) -> bool {
        self.records().is_sound() && self.in_flight().is_sound()
    }

    #[inline(always)]
    fn identify(self) -> Result<u32, Fault> {
        identify(core::ptr::from_ref(self.rare).addr())
    }

    /// Whether the message of this record, which the dead process was reading, had already moved to
    /// the in-flight area.
    fn has_moved(self, header: &Header, dead: &Dead) -> bool {
        let moved = header.moved().and_then(|index| self.in_flight().header(index));
        let state = moved.map_or(State::FREE, Header::load);
        let has_moved = state.is_in(Phase::Delivered) && state.owner() == dead.tag;
        if !has_moved {
            header.forget_moved();
        }
        has_moved
    }
}

impl<'a> QueueState<'a> for View<'a> {
    fn capacity(self) -> usize {
        self.parts.count * BLOCK
    }

    fn in_flight_capacity(self) -> usize {
        self.parts.count * BLOCK
    }

    fn len(self) -> usize {
        self.count(|claim| claim.state.is_in(Phase::Full) || claim.state.is_in(Phase::Orphan))
    }

    fn is_empty(self) -> bool {
        let has_returned = || self.count(|claim| claim.state.is_in(Phase::Orphan)) > 0;
        !matches!(self.records().find_full(), Ok(_) | Err(ClaimError::Pending))
            && (!self.may_have_returned() || !has_returned())
    }

    fn close(self) {
        become_known(core::ptr::from_ref(self.rare).addr());
        self.rare.ended.fetch_or(CLOSED, Release);
        hooks::pause("queue: closed, and nobody is woken");
        fence(SeqCst);
        self.wake_all_waiters();
    }

    #[inline(always)]
    fn is_closed(self) -> bool {
        self.rare.has_ended(CLOSED)
    }

    fn join_until(self, deadline: Deadline) -> Result<bool, Fault> {
        self.identify()?;
        if !deadline.is_now() {
            self.rare.watch(); // keeps I6
        }
        Ok(self.rare.idle.wait(deadline, || self.is_idle().then_some(())).is_ok())
    }

    fn ended(self) -> &'a AtomicU32 {
        &self.rare.ended
    }

    fn receivers(self) -> [&'a Signal<LIGHT>; 2] {
        [&self.rare.not_empty, &self.rare.in_flight_free]
    }

    fn wake_senders(self) {
        self.rare.not_full.notify_all();
    }

    fn may_have_message(self) -> bool {
        let found = self.records().find_full();
        self.may_have_returned()
            || !matches!(found, Err(ClaimError::Unavailable | ClaimError::Pending))
    }

    #[cold]
    fn is_quiet(self) -> bool {
        Signal::<LIGHT>::fence_before_verdict();
        let may_come_back = || self.identify().is_ok_and(|owner| self.may_come_back(owner));
        let is_empty = matches!(self.records().find_full(), Err(ClaimError::Unavailable));
        !self.may_have_returned() && is_empty && !may_come_back()
    }

    fn repair(self, dead: &Dead) {
        let mut returned = false;
        let repair = |header: &Header, Claim { state, .. }: Claim| {
            if state.owner() == dead.tag {
                let repaired = match () {
                    () if state.is_in(Phase::Writing) => state.to(Phase::Done, 0),
                    () if state.is_in(Phase::Reading) && self.has_moved(header, dead) => {
                        state.to(Phase::Done, 0)
                    }
                    () if state.is_in(Phase::Reading) => state.to(Phase::Orphan, 0),
                    () => state,
                };
                header.exchange(state, repaired);
            }
            // It may be a record that an earlier recovery, or a process that gave it back, has not
            // announced.
            returned |= header.load().is_in(Phase::Orphan);
            ControlFlow::Continue(())
        };
        self.records().visit(repair).ok(); // in damaged memory, it ends at the damage
        self.in_flight().visit(|header, Claim { state, .. }| {
            if state.owner() == dead.tag {
                let back = state.to(Phase::Orphan, 0);
                let repaired = match () {
                    () if state.is_in(Phase::Writing) => State::FREE,
                    () if state.is_in(Phase::Reading) => back,
                    // A process that left without a crash did not fail because of the message.
                    () if state.is_in(Phase::Delivered) && dead.clean => back,
                    () if state.is_in(Phase::Delivered) => back.tried(),
                    () => state,
                };
                header.exchange(state, repaired);
            }
            returned |= header.load().is_in(Phase::Orphan);
            ControlFlow::Continue(())
        });
        if returned {
            self.rare.returned.fetch_add(1, Release); // keeps I4
        }
        fence(SeqCst);
    }

    fn wake_all_waiters(self) {
        self.rare.signals().into_iter().for_each(Signal::wake_all);
    }
}

// SAFETY: the type is `repr(C)` and consists of atomics, for which any bytes are valid, and of
// bytes. Indices are bounds-checked. It has no `Drop`.
unsafe impl<const BLOCKS: usize> Shareable for FixedByteQueue<BLOCKS> {
    const FINGERPRINT: u64 = mix_u64(ByteQueue::<[Unit]>::BASE, BLOCKS as u64);
    const NEEDS_PEERS: bool = true;
    crate::__sized_shareable!();
    fn layout() -> Layout {
        Layout::of::<Self>("FixedByteQueue", const { &Self::FIELDS })
    }
    fn place(&self) {
        self.rare.signals().into_iter().for_each(Signal::place);
    }
    fn recover(&self, dead: &Dead) {
        self.view().repair(dead);
        self.view().wake_all_waiters();
    }
    fn is_sound(&self) -> bool {
        self.view().is_sound()
    }
}

// SAFETY: as above. The number of units is that of the pointer, which `at` got from the checked
// header, and which `size` has approved.
unsafe impl Shareable for ByteQueue {
    const FINGERPRINT: u64 = ByteQueue::<[Unit]>::BASE;
    const NEEDS_PEERS: bool = true;
    const ALIGN: usize = align_of::<FixedByteQueue<1>>();
    fn layout() -> Layout {
        let (size, align) = (offset_of!(FixedByteQueue<1>, slots), Self::ALIGN);
        Layout { name: "ByteQueue", size, align, fields: const { &FixedByteQueue::<1>::FIELDS } }
    }
    fn size(len: usize) -> Option<usize> {
        if len == 0 || len > MAX_BLOCKS || !len.is_multiple_of(GRAIN) {
            return None;
        }
        let end = size_of::<Unit>()
            .checked_mul(len)?
            .checked_add(offset_of!(FixedByteQueue<1>, slots))?;
        end.checked_next_multiple_of(Self::ALIGN).filter(|&size| isize::try_from(size).is_ok())
    }
    at_slice!();
    fn place(&self) {
        self.rare.signals().into_iter().for_each(Signal::place);
    }
    fn recover(&self, dead: &Dead) {
        self.view().repair(dead);
        self.view().wake_all_waiters();
    }
    fn is_sound(&self) -> bool {
        self.view().is_sound()
    }
}

impl WithCapacity for ByteQueue {
    fn units(capacity: usize) -> Option<usize> {
        capacity.div_ceil(BLOCK).checked_next_multiple_of(GRAIN)
    }
}

impl<S: Store + ?Sized> fmt::Debug for ByteQueue<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ByteQueue")
            .field("capacity", &self.capacity())
            .field("len", &self.len())
            .field("closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}
