//! A bounded queue for many producers and many consumers.
//!
//! ```
//! use outlast::{Queue, Shared};
//!
//! let here = Shared::<Queue<u64>>::with_capacity(16)?;
//! let there = Shared::<Queue<u64>>::from_fd(here.try_clone_fd()?)?; // as another process would
//! here.send(7)?;
//! assert_eq!(there.recv()?, 7);
//!
//! // Work that must be done even if the worker is killed is acknowledged when it is done:
//! here.send(8)?;
//! let job = there.recv_ack()?;
//! assert_eq!((*job, job.attempts()), (8, 0));
//! job.ack()?;
//! # Ok::<(), outlast::Error>(())
//! ```
//!
//! # State
//! A ring of slots; each has a word of {lap: 40, owner: 12, phase: 4 bits}. Position *p* of the
//! message sequence lies at index *p* mod capacity in lap *p* / capacity.
//!
//! | phase | owner | meaning | next |
//! |---|---|---|---|
//! | `Free` | - | can be written in this lap | `Writing` by a claim |
//! | `Writing` | process | being written | `Full` = the commit of `send`; or `Free` of the next lap, if it is abandoned |
//! | `Full` | - | a message | `Reading` by a claim |
//! | `Reading` | process | being read | `Free` of the next lap = the commit of `recv`; `Orphan` if the reader dies |
//! | `Orphan` | - | a message whose reader died | `Reading` |
//!
//! The in-flight table has 64 cells for messages that `recv_ack` delivered. Each has a word of {use:
//! 40, attempts: 8, owner: 12, state: 4 bits}:
//!
//! | state | owner | meaning | next |
//! |---|---|---|---|
//! | `Free` | - | empty | `Claimed` |
//! | `Claimed` | process | it looks for a message to put here | `Delivered` = the commit of `recv_ack`; or `Free` |
//! | `Delivered` | process | delivered | `Free` = the commit of `ack`; `Returned` by nack, drop or death |
//! | `Returned` | - | to be delivered again | `Delivered`, or `Reading` for a plain `recv` |
//! | `Reading` | process | being copied out | `Free` = the commit; `Returned` if the process dies |
//!
//! # Invariants
//! - I1. A claim names its owner in the instruction that makes it.
//! - I2. The claims of writers follow each other without gaps, and so do those of readers; `tail`
//!   and `head` are hints that may be behind, never ahead.
//! - I3. Some cell is `Returned` or some slot `Orphan` => `returned` != `searched`, or a living
//!   process is about to make it so.
//! - I4. Where a commit leaves more to take (free) and others may be asleep, one more is woken: the
//!   one that the earlier commit woke may have found its way barred by a slower peer and gone back
//!   to sleep.
//! - I5. A thread in `recv_ack` sleeps on `cell_free` if a message is there but no cell, and on
//!   `not_empty` otherwise. Before it goes from one to the other it wakes a sleeper of the one that
//!   it leaves.
//! - I6. The end of any claim (of a slot or a cell, with or without a message) wakes all receivers
//!   of a queue that is closed, or that nobody sends to: the claim may have been all that kept them
//!   from their verdict. A receiver makes no claim before it has seen a message: it would wake
//!   itself without end.
//!
//! # Ordering
//! What was written before `send` is seen after the `recv` of that message: Release store of
//! `Full`, Acquire of the claim. Every commit is followed by a light fence before it is asked
//! whether anybody sleeps (see `signal.rs`), or whether the queue was closed meanwhile: a receiver
//! that says *closed* looked for a message after it saw the flag and passed the heavy fence, so a
//! sender whose message it did not see finds the flag and takes the message back. A commit that is
//! compared with those of others (is all done?) is followed by a full fence.
//!
//! # Death
//! Sender killed before its claim: nothing. Between claim and commit: nothing is sent; recovery
//! frees the slot for the next lap, and readers step over it. After: sent. Receiver killed between
//! claim and commit: `recv` had not returned, so the message goes to another. After the commit: it
//! is gone, with the process that had it; where that matters, `recv_ack`: killed before `ack`'s
//! commit, the message goes to another with `attempts` + 1; after it, it is done. Waiters and wakes
//! that died with their process: recovery moves every wait word and wakes all.
//!
//! The slot protocol is this crate's own, from Vyukov's bounded MPMC queue (per-slot sequence
//! numbers) with the claim moved into the slot.
#![expect(unsafe_code, reason = "a claimed slot is reached by its claimer alone")]

// # Counters
//
// How long each counter lasts at ten million operations a second, and what happens then. Those that
// come round are compared by distance, or for equality. `tests/counters.rs` takes each across its
// end.
//
// | counter | bits | lasts | then |
// |---|---|---|---|
// | lap of a slot, of `head` and `tail` | 40 | 30 hours, for a ring of one slot | comes round. A thread that stops before its claim, for exactly so many laps, claims out of order |
// | lap of a mark of a `ByteQueue` | 40 | 30 hours, for a ring of one block | comes round |
// | lap in a header of a `ByteQueue` | 25 | 3 seconds, for a ring of one block | comes round. Headers of 2^20 laps ago are wiped; a claim of a lap long gone is undone |
// | `returned`, `searched` | 64 | 58,000 years | - |
// | attempts of a message | 8 | 255 deliveries | stays at 255 |
// | uses of a cell for a delivery | 40 | 30 hours | comes round; only the holder compares it |
// | takes of an end of a channel | 31 | 3 minutes | comes round. A look at the holders that lasts exactly so many takes may miss one |
// | handles in a cell of an end | 20 | 1,048,575 handles of a process | a further handle takes another cell; with 64 full ones it is refused |
// | positions of a `Ring` | 64 | 58,000 years | comes round if the capacity is a power of two; otherwise messages are lost |
// | deaths with a role of a `Ring` | 19 | 524,288 deaths | comes round. The other end is not told if it looked exactly so many deaths ago |
// | marks of a `Pipe` | 64 | 58,000 years | comes round: the number of blocks is a power of two |
// | positions of a `Journal` | 64 | 58,000 years | as those of a ring |
// | lap of a slot of a `Journal` | 50 | 3 years, for one record | comes round |
// | sequence of a `Signal` | 32 | 7 minutes of wakes | comes round. A thread that stops between its look and its sleep, for exactly so many wakes, sleeps on |
// | armings of a `Signal` | 31 | 3 minutes of sleeps | comes round. A wake that finds nobody, and stops for exactly so many, hides a sleeper |

pub mod bytes;
pub mod channel;
mod dead_letters;
pub(crate) mod ends;
mod error;
mod in_flight;
pub mod pipe;
pub mod priority;
mod ring;
pub mod spsc;
#[cfg(all(feature = "serde", not(outlast_loom)))]
pub mod value;

pub use bytes::{ByteQueue, FixedByteQueue};
pub use channel::{Channel, Receiver, Sender};
pub use error::{
    RecvError, RecvTimeoutError, SendError, SendTimeoutError, TryRecvError, TrySendError,
};
pub use in_flight::{Delivery, IN_FLIGHT, Loan, Ref};
pub use pipe::{Connection, FixedPipe, Pipe};
pub use priority::PriorityQueue;
pub use ring::Slot;
#[cfg(all(feature = "serde", not(outlast_loom)))]
pub use value::{FixedValueQueue, ValueDelivery, ValueError, ValueQueue};

use crate::deadline::Deadline;
use crate::error::Fault;
use crate::segment::{become_known, forks, identify};
use crate::shareable::{
    Dead, Field, Layout, Plain, SEED, Shareable, WithCapacity, begin, mix_u64, slice_shareable,
};
use crate::sync::UnsafeCell;
use crate::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use crate::sync::atomic::{AtomicU32, AtomicU64, fence};
use crate::sys::hooks;
use crate::wait::signal::Signal;
use core::fmt;
use core::mem::{MaybeUninit, offset_of};
use core::ops::Deref;
use in_flight::{DeliveryState, DeliveryWord, InFlight};
use ring::{ClaimError, End, MAX_CAPACITY, Phase, Position, is_in, lap_of, owner_of, state};
use std::time::{Duration, Instant};

/// A bounded queue whose capacity is chosen when it is created.
///
/// First in, first out, except that a message whose receiver died, or gave it back, comes out of
/// order. Any number of processes and threads may send and receive.
///
/// [`Shared::with_capacity`](crate::Shared::with_capacity) creates one for 1 to 16,777,215
/// messages. To embed one in a struct, see [`FixedQueue`].
#[repr(C)]
#[doc(alias = "JoinableQueue")]
#[doc(alias = "channel")]
pub struct Queue<T: Plain, S: ?Sized = [Slot<T>]> {
    tail: Line,
    head: Line,
    shared: Rare,
    cells: [InFlight<T>; IN_FLIGHT],
    slots: S,
}

/// A queue of `N` slots, to be embedded in a struct declared with [`shared!`](crate::shared).
///
/// Dereferences to [`Queue`], which has the verbs.
pub type FixedQueue<T, const N: usize> = Queue<T, [Slot<T>; N]>;

/// Who commits pays for no fence.
const LIGHT: bool = true;

/// A hint in a line of its own.
#[repr(C, align(128))]
#[derive(Debug)]
struct Line(AtomicU64);

/// What is read by all and written rarely.
#[repr(C, align(128))]
#[derive(Debug)]
struct Rare {
    /// A message can be received.
    not_empty: Signal<LIGHT>,
    /// A slot is free.
    not_full: Signal<LIGHT>,
    /// A cell is free.
    cell_free: Signal<LIGHT>,
    /// A message is done with.
    idle: Signal<LIGHT>,
    /// `CLOSED`, `NO_RECEIVERS`, `NO_SENDERS`.
    ended: AtomicU32,
    /// Counts messages that came back.
    returned: AtomicU64,
    /// The count up to which somebody has looked for them in vain.
    searched: AtomicU64,
}

/// Of `ended`: nothing more can be sent.
const CLOSED: u32 = 1;
/// Of `ended`, for a [`Channel`]: senders are to ask whether anybody can receive.
const NO_RECEIVERS: u32 = 2;
/// Of `ended`, for a [`Channel`]: receivers that find nothing are to ask whether anybody can send.
const NO_SENDERS: u32 = 4;

// SAFETY: values are reached through claims only, which exclude each other, and `Plain` data may be
// used by any thread.
unsafe impl<T: Plain, S: ?Sized> Sync for Queue<T, S> {}
// SAFETY: a queue that nobody refers to is plain data.
unsafe impl<T: Plain, S: ?Sized> Send for Queue<T, S> {}

impl<T: Plain, const N: usize> FixedQueue<T, N> {
    /// An empty queue, to be moved into shared memory.
    ///
    /// A capacity of 0, or of more than 16,777,215, does not compile.
    #[must_use]
    #[expect(
        clippy::new_without_default,
        reason = "zero-filled memory is the default, and needs no value"
    )]
    pub fn new() -> Self {
        const { assert!(N > 0 && N <= MAX_CAPACITY, "a queue holds 1 to 16,777,215 messages") }
        Queue {
            tail: Line(AtomicU64::new(0)),
            head: Line(AtomicU64::new(0)),
            shared: Rare {
                not_empty: Signal::new(),
                not_full: Signal::new(),
                cell_free: Signal::new(),
                idle: Signal::new(),
                ended: AtomicU32::new(0),
                returned: AtomicU64::new(0),
                searched: AtomicU64::new(0),
            },
            cells: core::array::from_fn(|_| InFlight::new()),
            slots: core::array::from_fn(|_| Slot::new()),
        }
    }
}

impl<T: Plain, const N: usize> FixedQueue<T, N> {
    const FIELDS: [Field; 2] = {
        let (cells, slots) = (offset_of!(Self, cells), offset_of!(Self, slots));
        [
            Field { name: "cells", offset: cells, count: IN_FLIGHT, layout: T::layout },
            Field { name: "slots", offset: slots, count: N, layout: T::layout },
        ]
    };
}

impl<T: Plain, const N: usize> Deref for FixedQueue<T, N> {
    type Target = Queue<T>;
    #[inline(always)]
    fn deref(&self) -> &Queue<T> {
        self
    }
}

/// Keeps a forked child from what its parent holds: the parent may have given it to others.
#[inline(always)]
fn assert_ours(made_at: u32) {
    if made_at != forks() {
        not_ours();
    }
}

/// Refuses a type with invalid bit patterns, to be called at compile time where a value is reached
/// in shared memory: a peer can change its bytes after a check.
const fn assert_in_place<T: Plain>() {
    assert!(T::ANY_BITS, "a value in place may hold any bits: not for types with invalid values");
}

#[cold]
#[inline(never)]
fn not_ours() -> ! {
    panic!("{}", Fault::Forked)
}

/// Why an attempt to send came to nothing.
enum SendFailure {
    Full,
    /// Or nobody can receive, where a [`Channel`] has said so.
    Closed,
    Disconnected,
    Failed(Fault),
}

/// Why an attempt to receive came to nothing for good.
enum RecvFailure {
    /// Or nobody can send, where a [`Channel`] has said so.
    Closed,
    Disconnected,
    Failed(Fault),
}

impl RecvFailure {
    fn for_ever<R>(received: Result<Option<R>, RecvFailure>) -> Result<R, RecvError> {
        match received {
            Ok(Some(message)) => Ok(message),
            Err(RecvFailure::Failed(fault)) => Err(RecvError::Failed(fault)),
            Ok(None) | Err(RecvFailure::Closed) => Err(RecvError::Closed),
            Err(RecvFailure::Disconnected) => Err(RecvError::Disconnected),
        }
    }

    fn at_once<R>(received: Result<Option<R>, RecvFailure>) -> Result<R, TryRecvError> {
        match received {
            Ok(Some(message)) => Ok(message),
            Ok(None) => Err(TryRecvError::Empty),
            Err(RecvFailure::Closed) => Err(TryRecvError::Closed),
            Err(RecvFailure::Disconnected) => Err(TryRecvError::Disconnected),
            Err(RecvFailure::Failed(fault)) => Err(TryRecvError::Failed(fault)),
        }
    }

    fn in_time<R>(received: Result<Option<R>, RecvFailure>) -> Result<R, RecvTimeoutError> {
        match received {
            Ok(Some(message)) => Ok(message),
            Ok(None) => Err(RecvTimeoutError::TimedOut),
            Err(RecvFailure::Closed) => Err(RecvTimeoutError::Closed),
            Err(RecvFailure::Disconnected) => Err(RecvTimeoutError::Disconnected),
            Err(RecvFailure::Failed(fault)) => Err(RecvTimeoutError::Failed(fault)),
        }
    }
}

impl SendFailure {
    fn for_ever<T>((message, unsent): (T, SendFailure)) -> SendError<T> {
        match unsent {
            SendFailure::Failed(fault) => SendError::Failed(message, fault),
            SendFailure::Full | SendFailure::Closed => SendError::Closed(message),
            SendFailure::Disconnected => SendError::Disconnected(message),
        }
    }

    fn at_once<T>((message, unsent): (T, SendFailure)) -> TrySendError<T> {
        match unsent {
            SendFailure::Full => TrySendError::Full(message),
            SendFailure::Closed => TrySendError::Closed(message),
            SendFailure::Disconnected => TrySendError::Disconnected(message),
            SendFailure::Failed(fault) => TrySendError::Failed(message, fault),
        }
    }

    fn in_time<T>((message, unsent): (T, SendFailure)) -> SendTimeoutError<T> {
        match unsent {
            SendFailure::Full => SendTimeoutError::TimedOut(message),
            SendFailure::Closed => SendTimeoutError::Closed(message),
            SendFailure::Disconnected => SendTimeoutError::Disconnected(message),
            SendFailure::Failed(fault) => SendTimeoutError::Failed(message, fault),
        }
    }
}

/// A number of messages sent for an error that gave the message back.
fn after_sent<T>(error: SendError<T>, sent: usize) -> SendError<usize> {
    match error {
        SendError::Closed(_) => SendError::Closed(sent),
        SendError::Disconnected(_) => SendError::Disconnected(sent),
        SendError::PeerDied(_) => SendError::PeerDied(sent),
        SendError::Failed(_, fault) => SendError::Failed(sent, fault),
    }
}

// ------------------------------------------------------------------ sending
impl<T: Plain> Queue<T> {
    /// Sends a message, waiting for a free slot as long as it takes.
    ///
    /// # Errors
    /// Gives the message back if the queue is closed, or if this process cannot become a peer.
    #[doc(alias = "push")]
    #[doc(alias = "put")]
    #[inline]
    pub fn send(&self, message: T) -> Result<(), SendError<T>> {
        self.send_until(message, Deadline::NEVER).map_err(SendFailure::for_ever)
    }

    /// Sends a message if a slot is free. Never blocks.
    ///
    /// # Errors
    /// Gives the message back if the queue is full or closed, or if this process cannot become a
    /// peer.
    #[doc(alias = "try_push")]
    #[doc(alias = "put_nowait")]
    #[inline]
    pub fn try_send(&self, message: T) -> Result<(), TrySendError<T>> {
        self.push(&message).map_err(|unsent| SendFailure::at_once((message, unsent)))
    }

    /// Sends a message, waiting for a free slot at most `timeout`.
    ///
    /// # Errors
    /// Gives the message back if that takes too long, if the queue is closed, or if this process
    /// cannot become a peer.
    pub fn send_timeout(&self, message: T, timeout: Duration) -> Result<(), SendTimeoutError<T>> {
        self.send_before(message, Deadline::after(timeout))
    }

    /// Sends a message, waiting for a free slot until `deadline` at most. A slot that is free is
    /// used even if that has passed.
    ///
    /// # Errors
    /// As [`send_timeout`](Self::send_timeout).
    pub fn send_deadline(&self, message: T, deadline: Instant) -> Result<(), SendTimeoutError<T>> {
        self.send_before(message, Deadline::at(deadline))
    }

    fn send_before(&self, message: T, deadline: Deadline) -> Result<(), SendTimeoutError<T>> {
        self.send_until(message, deadline).map_err(SendFailure::in_time)
    }

    /// Sends messages one after the other, waiting for free slots as long as it takes.
    ///
    /// # Errors
    /// As [`send`](Self::send), with the number of messages that were sent before.
    pub fn send_batch(&self, messages: &[T]) -> Result<(), SendError<usize>> {
        for (sent, message) in messages.iter().enumerate() {
            self.send(*message).map_err(|error| after_sent(error, sent))?;
        }
        Ok(())
    }

    /// Takes a free slot to be written in place, waiting for one as long as it takes.
    ///
    /// Only for types of which any bits are a value: before it is written, it holds what an earlier
    /// message left.
    ///
    /// ```
    /// use outlast::{Queue, Shared};
    ///
    /// let here = Shared::<Queue<[u64; 128]>>::with_capacity(4)?;
    /// let there = Shared::<Queue<[u64; 128]>>::from_fd(here.try_clone_fd()?)?; // as another process would
    /// let mut loan = here.loan()?;
    /// loan.fill(7); // where it will be read
    /// loan.send()?;
    /// assert_eq!(there.recv_ref()?[127], 7);
    /// # Ok::<(), outlast::Error>(())
    /// ```
    ///
    /// # Errors
    /// If the queue is closed, or this process cannot become a peer.
    #[inline]
    pub fn loan(&self) -> Result<Loan<'_, T>, SendError<()>> {
        let lent = match self.try_loan() {
            Err(TrySendError::Full(())) => self.loan_slow(),
            lent => lent,
        };
        lent.map_err(|error| match error {
            TrySendError::Failed((), fault) => SendError::Failed((), fault),
            _ => SendError::Closed(()),
        })
    }

    #[cold]
    fn loan_slow(&self) -> Result<Loan<'_, T>, TrySendError<()>> {
        let attempt = || match self.try_loan() {
            Err(TrySendError::Full(())) => None,
            lent => Some(lent),
        };
        self.shared.not_full.wait(Deadline::NEVER, attempt).unwrap_or(Err(TrySendError::Full(())))
    }

    /// Takes a free slot to be written in place. Never blocks.
    ///
    /// # Errors
    /// If the queue is full or closed, or this process cannot become a peer.
    #[inline]
    pub fn try_loan(&self) -> Result<Loan<'_, T>, TrySendError<()>> {
        let forks = forks();
        let owner = self.identify().map_err(|fault| TrySendError::Failed((), fault))?;
        if self.is_closed() {
            return Err(TrySendError::Closed(()));
        }
        match self.tail().claim_free(owner) {
            Ok(at) => Ok(Loan { queue: self, at, owner, forks }),
            Err(ClaimError::Corrupt) => Err(TrySendError::Failed((), Fault::Corrupt)),
            Err(ClaimError::Unavailable | ClaimError::Pending) => Err(TrySendError::Full(())),
        }
    }

    #[inline(always)]
    fn send_until(&self, message: T, deadline: Deadline) -> Result<(), (T, SendFailure)> {
        match self.push(&message) {
            Ok(()) => Ok(()),
            Err(SendFailure::Full) => self.send_slow(message, deadline),
            Err(unsent) => Err((message, unsent)),
        }
    }

    /// By value: a message whose address was needed would be written to the stack first, which the
    /// claim waits for.
    #[cold]
    #[inline(never)]
    fn send_slow(&self, message: T, deadline: Deadline) -> Result<(), (T, SendFailure)> {
        let attempt = || match self.push(&message) {
            Err(SendFailure::Full) => None,
            done => Some(done),
        };
        let more = |_: &Result<(), SendFailure>| self.tail().find_free().is_ok();
        let waited = self.shared.not_full.wait_for_many(deadline, attempt, more);
        let sent = waited.unwrap_or(Err(SendFailure::Full));
        sent.map_err(|unsent| (message, unsent))
    }

    #[inline(always)]
    fn push(&self, message: &T) -> Result<(), SendFailure> {
        let owner = self.identify().map_err(SendFailure::Failed)?;
        if self.has_ended(CLOSED | NO_RECEIVERS) {
            return Err(SendFailure::Closed);
        }
        match self.tail().claim_free(owner) {
            Ok(at) => {
                let slot = &self.slots[at.index];
                // SAFETY: the slot is claimed for this call; nobody else reads or writes its value.
                slot.value.with_mut(|value| unsafe { value.write(MaybeUninit::new(*message)) });
                if self.publish(at, owner) { Ok(()) } else { Err(SendFailure::Closed) }
            }
            Err(ClaimError::Corrupt) => Err(SendFailure::Failed(Fault::Corrupt)),
            Err(ClaimError::Unavailable | ClaimError::Pending) => Err(SendFailure::Full),
        }
    }

    /// Commits a claimed slot; false if the queue was closed, or nobody left to receive, before
    /// anybody could.
    #[inline(always)]
    fn publish(&self, at: Position, owner: u32) -> bool {
        self.slots[at.index].publish(at.lap);
        Signal::<LIGHT>::fence_after_change();
        let rare = &self.shared;
        if rare.not_empty.is_armed()
            || rare.not_full.is_armed()
            || self.has_ended(CLOSED | NO_RECEIVERS)
        {
            return self.after_publish(at, owner);
        }
        true
    }

    #[cold]
    fn after_publish(&self, at: Position, owner: u32) -> bool {
        let slot = &self.slots[at.index];
        if self.has_ended(CLOSED | NO_RECEIVERS) {
            let (full, writing) =
                (state(at.lap, 0, Phase::Full), state(at.lap, owner, Phase::Writing));
            if slot.state.compare_exchange(full, writing, AcqRel, Relaxed).is_ok() {
                slot.free(at.lap);
                self.after_abort();
                return false;
            }
        }
        self.shared.not_empty.notify(1);
        if self.shared.not_full.is_armed() && self.tail().find_free().is_ok() {
            self.shared.not_full.notify(1); // keeps I4
        }
        true
    }

    /// After a claimed slot was given up without a message: readers may pass it, writers will find
    /// it in the next lap.
    #[cold]
    fn after_abort(&self) {
        fence(SeqCst);
        self.shared.not_empty.notify(1);
        self.shared.not_full.notify(1);
        self.notify_if_idle();
        self.notify_of_quiet(); // keeps I6
    }
}

// ---------------------------------------------------------------- receiving
impl<T: Plain> Queue<T> {
    /// Receives a message, waiting for one as long as it takes.
    ///
    /// A process that is killed after `recv` has returned takes the message with it: where that
    /// matters, see [`recv_ack`](Self::recv_ack).
    ///
    /// # Errors
    /// If the queue is closed and empty, if this process cannot become a peer, or if what came out
    /// is no value of the type (it is consumed).
    #[doc(alias = "pop")]
    #[doc(alias = "get")]
    #[inline]
    pub fn recv(&self) -> Result<T, RecvError> {
        self.pop().map_or_else(
            || RecvFailure::for_ever(self.take_until(Deadline::NEVER, Invalid::Consumed)),
            Ok,
        )
    }

    /// Receives a message if there is one. Never blocks.
    ///
    /// # Errors
    /// As [`recv`](Self::recv), and if the queue is empty.
    #[doc(alias = "try_pop")]
    #[doc(alias = "get_nowait")]
    #[inline]
    pub fn try_recv(&self) -> Result<T, TryRecvError> {
        self.pop().map_or_else(|| RecvFailure::at_once(self.take(Invalid::Consumed)), Ok)
    }

    /// Receives a message, waiting for one at most `timeout`.
    ///
    /// # Errors
    /// As [`recv`](Self::recv), and if that takes too long.
    pub fn recv_timeout(&self, timeout: Duration) -> Result<T, RecvTimeoutError> {
        RecvFailure::in_time(self.take_until(Deadline::after(timeout), Invalid::Consumed))
    }

    /// Receives a message, waiting for one until `deadline` at most. A message that is there is
    /// received even if that has passed.
    ///
    /// # Errors
    /// As [`recv_timeout`](Self::recv_timeout).
    pub fn recv_deadline(&self, deadline: Instant) -> Result<T, RecvTimeoutError> {
        RecvFailure::in_time(self.take_until(Deadline::at(deadline), Invalid::Consumed))
    }

    /// Receives a message that counts as done only when it is acknowledged, waiting for one as long
    /// as it takes.
    ///
    /// If this process is killed before, or drops the delivery, it goes to another receiver. At
    /// most [`IN_FLIGHT`] messages of a queue can be unacknowledged at a time; beyond that, this
    /// waits for an acknowledgement.
    ///
    /// ```
    /// use outlast::{Queue, Shared};
    /// use std::time::Duration;
    ///
    /// let here = Shared::<Queue<u64>>::with_capacity(4)?;
    /// let there = Shared::<Queue<u64>>::from_fd(here.try_clone_fd()?)?; // as another process would
    /// here.send(7)?;
    /// drop(there.recv_ack()?); // not acknowledged
    /// let job = there.recv_ack()?;
    /// assert_eq!((*job, job.attempts()), (7, 1));
    /// assert!(!here.join_timeout(Duration::ZERO)?);
    /// job.ack()?;
    /// assert!(here.join_timeout(Duration::ZERO)?);
    /// # Ok::<(), outlast::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`recv`](Self::recv). Note that a queue can be closed and empty while other processes
    /// hold deliveries that may come back: [`join`](Self::join) first, then [`close`](Self::close).
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

    /// Receives a message to be read in place, waiting for one as long as it takes.
    ///
    /// Only for types of which any bits are a value; others are copied and checked by
    /// [`recv`](Self::recv).
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    #[inline]
    pub fn recv_ref(&self) -> Result<Ref<'_, T>, RecvError> {
        const { assert_in_place::<T>() }
        RecvFailure::for_ever(self.peek_until(Deadline::NEVER))
    }

    /// Receives a message to be read in place, if there is one. Never blocks.
    ///
    /// # Errors
    /// As [`try_recv`](Self::try_recv).
    #[inline]
    pub fn try_recv_ref(&self) -> Result<Ref<'_, T>, TryRecvError> {
        const { assert_in_place::<T>() }
        RecvFailure::at_once(self.peek())
    }

    /// Appends at most `most` messages to `to`, waiting only for the first; how many it were.
    ///
    /// A batch ends before a message that is no value of the type: the next reception reports that.
    ///
    /// # Errors
    /// As [`recv`](Self::recv), if there is none at all.
    pub fn recv_batch(&self, to: &mut Vec<T>, most: usize) -> Result<usize, RecvError> {
        if most == 0 {
            return Ok(0);
        }
        to.push(self.recv()?);
        let more = self.try_iter().take(most - 1);
        let before = to.len();
        to.extend(more);
        Ok(1 + to.len() - before)
    }

    /// Messages until the queue is closed and empty, or cannot be used, waiting for each.
    ///
    /// ```
    /// use outlast::{Queue, Shared};
    ///
    /// let here = Shared::<Queue<u64>>::with_capacity(4)?;
    /// let there = Shared::<Queue<u64>>::from_fd(here.try_clone_fd()?)?; // as another process would
    /// here.send_batch(&[1, 2, 3])?;
    /// here.close();
    /// assert_eq!(there.iter().sum::<u64>(), 6);
    /// # Ok::<(), outlast::Error>(())
    /// ```
    ///
    /// A message that is no value of the type ends the iteration and is consumed: a later iteration
    /// goes on behind it. [`recv`](Self::recv) reports it.
    pub fn iter(&self) -> impl Iterator<Item = T> + '_ {
        let next = || self.take_until(Deadline::NEVER, Invalid::Consumed);
        core::iter::from_fn(move || self.pop().or_else(|| next().ok().flatten()))
    }

    /// The messages that are there, without waiting.
    ///
    /// It ends before a message that is no value of the type: the next `recv` reports that.
    #[doc(alias = "drain")]
    pub fn try_iter(&self) -> impl Iterator<Item = T> + '_ {
        let next = || self.take(Invalid::Left).ok().flatten();
        core::iter::from_fn(move || self.pop().or_else(next))
    }

    /// Takes out all messages that are there, to be looked at or thrown away.
    #[must_use]
    pub fn drain(&self) -> Vec<T> {
        self.try_iter().collect()
    }

    /// The usual way, short enough that the message and its claim stay in registers. `None` if this
    /// is another case.
    #[inline(always)]
    fn pop(&self) -> Option<T> {
        let owner = self.identify().ok()?;
        if !T::ANY_BITS || self.may_have_returned() {
            return None;
        }
        let at = self.head().claim_full(owner).ok()?;
        // SAFETY: the slot is claimed for this call: nobody writes it; any bits are a value.
        let message = self.slots[at.index].value.with(|value| unsafe { value.cast::<T>().read() });
        self.release(at);
        Some(message)
    }

    #[cold]
    #[inline(never)]
    fn take_until(&self, deadline: Deadline, invalid: Invalid) -> Result<Option<T>, RecvFailure> {
        self.receive_until(deadline, || self.take(invalid))
    }

    fn peek_until(&self, deadline: Deadline) -> Result<Option<Ref<'_, T>>, RecvFailure> {
        self.receive_until(deadline, || self.peek())
    }

    /// Repeats `attempt` until it gives something, or the deadline has passed.
    fn receive_until<R>(
        &self,
        deadline: Deadline,
        mut attempt: impl FnMut() -> Result<Option<R>, RecvFailure>,
    ) -> Result<Option<R>, RecvFailure> {
        match attempt() {
            Ok(None) => {
                let more = |_: &Result<R, RecvFailure>| self.head().find_full().is_ok();
                let attempt = || attempt().transpose();
                let waited = self.shared.not_empty.wait_for_many(deadline, attempt, more);
                waited.map_or(Ok(None), |done| done.map(Some))
            }
            done => done,
        }
    }

    /// Claims the next message, wherever it is.
    #[inline(always)]
    fn claim(&self, owner: u32, verdict: Verdict) -> Result<Option<Place>, RecvFailure> {
        match self.claim_next(owner) {
            Ok(place) => Ok(Some(place)),
            Err(ClaimError::Unavailable) => match verdict {
                Verdict::Due if self.has_ended(CLOSED | NO_SENDERS) => self.claim_last(owner),
                Verdict::Due | Verdict::Deferred => Ok(None),
                Verdict::Given => Err(RecvFailure::Closed),
            },
            Err(ClaimError::Pending) => Ok(None),
            Err(ClaimError::Corrupt) => Err(RecvFailure::Failed(Fault::Corrupt)),
        }
    }

    #[inline(always)]
    fn claim_next(&self, owner: u32) -> Result<Place, ClaimError> {
        if self.may_have_returned()
            && let Some(place) = self.claim_returned(owner)
        {
            return Ok(place);
        }
        self.head().claim_full(owner).map(Place::Slot)
    }

    /// The last look at a closed queue: whoever commits after the fence sees the flag, and what was
    /// committed before it is seen here.
    #[cold]
    fn claim_last(&self, owner: u32) -> Result<Option<Place>, RecvFailure> {
        Signal::<LIGHT>::fence_before_verdict();
        self.claim(owner, Verdict::Given)
    }

    /// Claims a message that came back.
    #[cold]
    fn claim_returned(&self, owner: u32) -> Option<Place> {
        let before = self.shared.searched.load(Relaxed);
        let returned = self.shared.returned.load(Acquire);
        if let Some((i, taken)) = self.claim_ready(owner) {
            return Some(Place::InFlight(i, taken));
        }
        for (index, slot) in self.slots.iter().enumerate() {
            let seen = slot.state.load(Acquire);
            let lap = lap_of(seen);
            let taken = state(lap, owner, Phase::Reading);
            if is_in(seen, Phase::Orphan)
                && slot.state.compare_exchange(seen, taken, Acquire, Relaxed).is_ok()
            {
                return Some(Place::Slot(Position { lap, index }));
            }
        }
        self.shared.searched.compare_exchange(before, returned, Relaxed, Relaxed).ok(); // keeps I3
        None
    }

    /// Claims a message that waits in a cell to be delivered again.
    fn claim_ready(&self, owner: u32) -> Option<(usize, DeliveryWord)> {
        self.cells.iter().enumerate().find_map(|(i, cell)| {
            let seen = cell.load();
            let taken = seen.to(DeliveryState::Reading, owner);
            (seen.is_in(DeliveryState::Returned) && cell.exchange(seen, taken))
                .then_some((i, taken))
        })
    }

    /// Frees a cell that this process has claimed or holds: the commit of `ack`. Whether receivers
    /// may have waited for that, as nothing more can be sent.
    fn free_cell(&self, i: usize, mine: DeliveryWord) -> Result<bool, Fault> {
        if !self.cells[i].exchange(mine, mine.freed()) {
            return Err(Fault::Corrupt);
        }
        fence(SeqCst);
        self.shared.cell_free.notify(1);
        self.notify_if_idle();
        Ok(self.notify_of_quiet())
    }

    /// Gives a held message back to be delivered again.
    #[cold]
    fn return_cell(&self, i: usize, mine: DeliveryWord) {
        if self.cells[i].exchange(mine, mine.to(DeliveryState::Returned, 0).tried()) {
            self.announce_returned();
        }
    }

    fn announce_returned(&self) {
        self.shared.returned.fetch_add(1, Release); // keeps I3
        fence(SeqCst);
        self.shared.not_empty.notify(1);
        self.shared.cell_free.notify(1); // who waits for a cell can have this one
    }

    /// Claims the next message where it is.
    #[inline(always)]
    fn peek(&self) -> Result<Option<Ref<'_, T>>, RecvFailure> {
        self.peek_for(Verdict::Due)
    }

    #[inline(always)]
    fn peek_for(&self, verdict: Verdict) -> Result<Option<Ref<'_, T>>, RecvFailure> {
        let forks = forks();
        let owner = self.identify().map_err(RecvFailure::Failed)?;
        let place = self.claim(owner, verdict)?;
        Ok(place.map(|place| Ref { queue: self, place, forks }))
    }

    /// Receives the next message.
    #[inline(always)]
    fn take(&self, invalid: Invalid) -> Result<Option<T>, RecvFailure> {
        self.take_for(Verdict::Due, invalid)
    }

    #[inline(always)]
    fn take_for(&self, verdict: Verdict, invalid: Invalid) -> Result<Option<T>, RecvFailure> {
        let owner = self.identify().map_err(RecvFailure::Failed)?;
        let Some(place) = self.claim(owner, verdict)? else { return Ok(None) };
        let message = Self::read(self.value_at(place));
        if message.is_err() && invalid == Invalid::Left {
            self.put_back(place);
        } else {
            self.finish(place);
        }
        message.map(Some).map_err(RecvFailure::Failed)
    }

    /// Copies a message that this call has claimed, and checks the copy: bytes that change after
    /// the check make no invalid value.
    #[inline(always)]
    fn read(message: &UnsafeCell<MaybeUninit<T>>) -> Result<T, Fault> {
        let mut copy = MaybeUninit::uninit();
        // SAFETY: the message is aligned and readable, and the copy is this call's own.
        message.with(|value| unsafe { value.copy_to_nonoverlapping(&raw mut copy, 1) });
        // SAFETY: the copy is aligned, and its bytes are initialised, as all shared memory is.
        if T::ANY_BITS || unsafe { T::is_valid(copy.as_ptr()) } {
            // SAFETY: these bytes are a `T`.
            Ok(unsafe { copy.assume_init() })
        } else {
            Err(Fault::Corrupt)
        }
    }

    #[inline(always)]
    fn value_at(&self, place: Place) -> &UnsafeCell<MaybeUninit<T>> {
        match place {
            Place::Slot(at) => &self.slots[at.index].value,
            Place::InFlight(i, _) => &self.cells[i].value,
        }
    }

    /// Commits the reception of a claimed message.
    #[inline(always)]
    fn finish(&self, place: Place) {
        match place {
            Place::Slot(at) => self.release(at),
            // Only damaged memory can have another word there, and then nothing is ours to free.
            Place::InFlight(i, taken) => _ = self.free_cell(i, taken),
        }
    }

    /// Leaves a claimed message to the next receiver.
    #[cold]
    fn put_back(&self, place: Place) {
        match place {
            Place::Slot(at) => {
                let orphan = state(at.lap, 0, Phase::Orphan);
                self.slots[at.index].state.store(orphan, Release);
            }
            Place::InFlight(i, taken) => {
                _ = self.cells[i].exchange(taken, taken.to(DeliveryState::Returned, 0))
            }
        }
        self.announce_returned();
    }

    /// Commits the reception of the message in a claimed slot.
    #[inline(always)]
    fn release(&self, at: Position) {
        self.slots[at.index].free(at.lap);
        Signal::<LIGHT>::fence_after_change();
        let rare = &self.shared;
        if Signal::are_armed([&rare.not_full, &rare.not_empty, &rare.cell_free, &rare.idle]) {
            self.after_release();
        }
    }

    #[cold]
    fn after_release(&self) {
        self.shared.not_full.notify(1);
        self.notify_if_idle();
        if self.shared.not_empty.is_armed() && self.head().find_full().is_ok() {
            self.shared.not_empty.notify(1); // keeps I4
        }
        self.notify_of_quiet(); // keeps I6
    }

    /// Wakes all receivers if nothing more can be sent. To be called after the end of each claim: a
    /// receiver may wait until nothing is under way, or for a cell for the message that is gone
    /// now.
    #[inline]
    fn notify_of_quiet(&self) -> bool {
        let over = self.has_ended(CLOSED | NO_SENDERS);
        if over {
            self.receivers().into_iter().for_each(|signal| signal.notify(u32::MAX));
        }
        over
    }

    /// Whether nothing is in the ring, and nothing in the hands of others that would come back if
    /// they died now. To be asked when nobody sends. What is delivered does not count for a process
    /// that holds deliveries itself: such would wait for each other.
    fn is_quiet(&self, owner: u32) -> bool {
        Self::are_quiet([self].into_iter(), owner)
    }

    /// The same of several, to which nobody sends.
    fn are_quiet(mut queues: impl Iterator<Item = impl Deref<Target = Self>>, owner: u32) -> bool {
        let held = queues.try_fold((false, false), |(ours, held), queue| {
            let (more_ours, more) = queue.find_held(owner)?;
            Some((ours | more_ours, held | more))
        });
        held.is_some_and(|(ours, held)| ours || !held)
    }

    /// Whether a delivery is held by `owner`, and by anybody, if nothing else is there or under
    /// way.
    fn find_held(&self, owner: u32) -> Option<(bool, bool)> {
        let empty = |slot: &Slot<T>| is_in(slot.state.load(Acquire), Phase::Free);
        // A message goes from its slot to a cell, not the other way.
        if !self.slots.iter().all(empty) {
            return None;
        }
        let (mut ours, mut held) = (false, false);
        for cell in &self.cells {
            let seen = cell.load();
            if seen.is_in(DeliveryState::Delivered) {
                ours |= seen.owner() == owner;
                held = true;
            } else if !seen.is_in(DeliveryState::Free) {
                return None;
            }
        }
        Some((ours, held))
    }
}

/// What becomes of a message that is no value of its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Invalid {
    /// It is consumed, and the caller is told.
    Consumed,
    /// It is left to the next receiver, since the caller cannot report it. Only for attempts that
    /// do not wait: a loop of those that wait would end at the same message each time.
    Left,
}

/// What a look that finds nothing means in a queue to which nobody sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// That there is to be a last one.
    Due,
    /// Nothing: the caller sees to the last one.
    Deferred,
    /// That there is nothing: this is the last one, behind the fence.
    Given,
}

/// Why there is no delivery yet, or ever.
enum DeliveryFailure {
    /// All cells are taken.
    TooManyInFlight,
    Recv(RecvFailure),
}

impl DeliveryFailure {
    /// What it is to one who does not wait: no cell is no message.
    fn at_once<D>(delivered: Result<Option<D>, DeliveryFailure>) -> Result<Option<D>, RecvFailure> {
        match delivered {
            Ok(delivery) => Ok(delivery),
            Err(DeliveryFailure::TooManyInFlight) => Ok(None),
            Err(DeliveryFailure::Recv(never)) => Err(never),
        }
    }
}

// --------------------------------------------------- acknowledged delivery
impl<T: Plain> Queue<T> {
    fn deliver_until(&self, deadline: Deadline) -> Result<Option<Delivery<'_, T>>, RecvFailure> {
        deliver_until(self.receivers(), deadline, || self.deliver())
    }

    /// Where receivers sleep: until a message comes, and until a cell is free.
    pub(in crate::queue) fn receivers(&self) -> [&Signal<LIGHT>; 2] {
        [&self.shared.not_empty, &self.shared.cell_free]
    }

    /// Whether a delivery can use the cell: it is free, or holds a message that came back.
    fn is_takeable(cell: &InFlight<T>) -> bool {
        let seen = cell.load();
        seen.is_in(DeliveryState::Free) || seen.is_in(DeliveryState::Returned)
    }

    fn deliver(&self) -> Result<Option<Delivery<'_, T>>, DeliveryFailure> {
        self.deliver_for(Verdict::Due, || {})
    }

    fn deliver_now(&self) -> Result<Option<Delivery<'_, T>>, RecvFailure> {
        DeliveryFailure::at_once(self.deliver())
    }

    /// One attempt. `in_vain` is called after each claim of a cell for which there was no message.
    #[inline(always)]
    fn deliver_for(
        &self,
        verdict: Verdict,
        in_vain: impl Fn(),
    ) -> Result<Option<Delivery<'_, T>>, DeliveryFailure> {
        let forks = forks();
        let never = |fault| DeliveryFailure::Recv(RecvFailure::Failed(fault));
        let owner = self.identify().map_err(never)?;
        // A cell is claimed before the message, and the end of a claim in vain wakes others, this
        // thread as well: without a message there is no claim.
        let (cell, state) = loop {
            if !self.look(verdict).map_err(DeliveryFailure::Recv)? {
                return Ok(None);
            }
            // What came back needs no further cell: all of them may be full of such.
            if self.may_have_returned()
                && let Some((i, leaving)) = self.claim_ready(owner)
            {
                break self.hold_returned(i, leaving, owner).map_err(never)?;
            }
            let Some((i, taking)) = self.claim_cell(owner) else {
                return Err(DeliveryFailure::TooManyInFlight);
            };
            match self.claim_next(owner) {
                Ok(Place::Slot(at)) => break self.hold(at, i, taking, owner),
                Ok(Place::InFlight(from, leaving)) => {
                    self.free_cell(i, taking).map_err(never)?;
                    break self.hold_returned(from, leaving, owner).map_err(never)?;
                }
                Err(nothing) => {
                    self.free_cell(i, taking).map_err(never)?;
                    in_vain();
                    if let ClaimError::Corrupt = nothing {
                        return Err(never(Fault::Corrupt));
                    }
                    // Another receiver was faster: the message that the look found is gone.
                }
            }
        };
        let copy = match T::ANY_BITS {
            true => None,
            false => match Self::read(&self.cells[cell].value) {
                Ok(value) => Some(Box::new(value)),
                Err(fault) => {
                    self.free_cell(cell, state).map_err(never)?;
                    return Err(never(fault));
                }
            },
        };
        Ok(Some(Delivery { queue: self, cell, state, forks, copy }))
    }

    /// Whether a message is there, without a claim; [`claim`](Self::claim) does the same with one.
    #[inline(always)]
    fn look(&self, verdict: Verdict) -> Result<bool, RecvFailure> {
        if self.may_have_returned() && self.has_returned() {
            return Ok(true);
        }
        match self.head().find_full() {
            Ok(_) => Ok(true),
            Err(ClaimError::Unavailable) => match verdict {
                Verdict::Due if self.has_ended(CLOSED | NO_SENDERS) => self.look_last(),
                Verdict::Due | Verdict::Deferred => Ok(false),
                Verdict::Given => Err(RecvFailure::Closed),
            },
            Err(ClaimError::Pending) => Ok(false),
            Err(ClaimError::Corrupt) => Err(RecvFailure::Failed(Fault::Corrupt)),
        }
    }

    /// As [`claim_last`](Self::claim_last).
    #[cold]
    fn look_last(&self) -> Result<bool, RecvFailure> {
        Signal::<LIGHT>::fence_before_verdict();
        self.look(Verdict::Given)
    }

    /// Moves a message from its slot to a cell, both claimed by this call.
    fn hold(
        &self,
        at: Position,
        i: usize,
        taking: DeliveryWord,
        owner: u32,
    ) -> (usize, DeliveryWord) {
        let cell = &self.cells[i];
        cell.origin.store(at.encode(), Relaxed);
        self.slots[at.index].value.with(|from| {
            // SAFETY: slot and cell are claimed for this call: nobody else reads or writes their
            // values, which do not overlap.
            cell.value.with_mut(|to| unsafe { from.copy_to_nonoverlapping(to, 1) });
        });
        let held = taking.to(DeliveryState::Delivered, owner);
        cell.state.store(held.0, Release); // the commit
        self.release(at);
        (i, held)
    }

    /// Delivers the message in a cell that this call has claimed; it stays there.
    #[cold]
    fn hold_returned(
        &self,
        i: usize,
        leaving: DeliveryWord,
        owner: u32,
    ) -> Result<(usize, DeliveryWord), Fault> {
        let cell = &self.cells[i];
        cell.origin.store(NOWHERE, Relaxed);
        let held = leaving.to(DeliveryState::Delivered, owner);
        if !cell.exchange(leaving, held) {
            return Err(Fault::Corrupt);
        }
        fence(SeqCst);
        self.notify_of_quiet(); // keeps I6
        Ok((i, held))
    }

    fn may_have_returned(&self) -> bool {
        self.shared.returned.load(Acquire) != self.shared.searched.load(Relaxed)
    }

    fn may_have_message(&self) -> bool {
        self.may_have_returned()
            || !matches!(
                self.head().find_full(),
                Err(ClaimError::Unavailable | ClaimError::Pending)
            )
    }

    fn claim_cell(&self, owner: u32) -> Option<(usize, DeliveryWord)> {
        let first = owner as usize * 7; // neighbours start apart
        (0..IN_FLIGHT).map(|i| (first + i) % IN_FLIGHT).find_map(|i| {
            let seen = self.cells[i].load();
            let taking = seen.to(DeliveryState::Claimed, owner);
            (seen.is_in(DeliveryState::Free) && self.cells[i].exchange(seen, taking))
                .then_some((i, taking))
        })
    }

    /// Waits until every message that was sent has been received and, where it was delivered by
    /// `recv_ack`, acknowledged.
    ///
    /// Work that a dead process held counts as undone until another has acknowledged it.
    ///
    /// # Errors
    /// If this process cannot become a peer.
    pub fn join(&self) -> Result<(), Fault> {
        self.join_until(Deadline::NEVER).map(drop)
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

    fn join_until(&self, deadline: Deadline) -> Result<bool, Fault> {
        self.identify()?;
        Ok(self.shared.idle.wait(deadline, || self.is_idle().then_some(())).is_ok())
    }

    /// Wakes those who wait in `join`, if all is done. Of two that make the last changes at the
    /// same time, one sees both: each fences after its own.
    fn notify_if_idle(&self) {
        if !self.shared.idle.is_armed() {
            return;
        }
        fence(SeqCst);
        if self.is_idle() {
            self.shared.idle.notify(u32::MAX);
        }
    }

    /// Whether all slots and cells were free at one moment: two equal looks, with laps that never
    /// come back, are a picture of that moment.
    fn is_idle(&self) -> bool {
        let look = || {
            let slots = self
                .slots
                .iter()
                .map(|slot| slot.state.load(Acquire))
                .try_fold(SEED, |hash, seen| {
                    is_in(seen, Phase::Free).then(|| mix_u64(hash, seen))
                })?;
            self.cells.iter().map(InFlight::load).try_fold(slots, |hash, seen| {
                seen.is_in(DeliveryState::Free).then(|| mix_u64(hash, seen.0))
            })
        };
        let first = look();
        fence(SeqCst);
        first.is_some() && first == look()
    }
}

/// Waits for a delivery, of a queue or of several levels, whose receivers sleep on two signals:
/// `arrived` until a message comes, `cell_free` while one is there but no cell for it.
///
/// This thread sleeps on one signal only, and the wake that ends its sleep may be the only one for
/// what it does not take. So it wakes another sleeper of the signal that it leaves: a message is
/// received by a thread that needs no cell, and a cell is used by a thread that finds a message.
/// (If it slept on both, two such threads would wake each other without end.)
#[inline(always)]
fn deliver_until<D>(
    signals: [&Signal<LIGHT>; 2],
    deadline: Deadline,
    deliver: impl Fn() -> Result<Option<D>, DeliveryFailure>,
) -> Result<Option<D>, RecvFailure> {
    match deliver() {
        Ok(None) | Err(DeliveryFailure::TooManyInFlight) => {
            wait_for_delivery(signals, deadline, deliver)
        }
        Ok(delivery) => Ok(delivery),
        Err(DeliveryFailure::Recv(never)) => Err(never),
    }
}

#[cold]
#[inline(never)]
fn wait_for_delivery<D>(
    [arrived, cell_free]: [&Signal<LIGHT>; 2],
    deadline: Deadline,
    deliver: impl Fn() -> Result<Option<D>, DeliveryFailure>,
) -> Result<Option<D>, RecvFailure> {
    let mut barred = false;
    loop {
        let signal = if barred { cell_free } else { arrived };
        let attempt = || match deliver() {
            Ok(None) if !barred => None,
            Err(DeliveryFailure::TooManyInFlight) if barred => None,
            done => Some(done),
        };
        match signal.wait(deadline, attempt) {
            Ok(Ok(Some(delivery))) => return Ok(Some(delivery)),
            Ok(Ok(None)) => barred = false,
            Ok(Err(DeliveryFailure::TooManyInFlight)) => barred = true,
            Ok(Err(DeliveryFailure::Recv(never))) => return Err(never),
            Err(_) => return Ok(None),
        }
        signal.notify(1); // keeps I5
    }
}

/// Where a message was claimed.
#[derive(Clone, Copy, Debug)]
enum Place {
    Slot(Position),
    InFlight(usize, DeliveryWord),
}

/// The origin of a message that is in no slot.
const NOWHERE: u64 = u64::MAX;

// ------------------------------------------------------- state and closing
impl<T: Plain> Queue<T> {
    /// How many messages can be in the ring at a time.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// How many messages are in the ring, without those that were delivered and are not
    /// acknowledged, or that came back. May change at any moment. Takes time in proportion.
    #[must_use]
    #[doc(alias = "qsize")]
    pub fn len(&self) -> usize {
        let hint = |end: End<'_, T>| Position::decode(end.hint.load(Relaxed));
        let (head, tail) = (hint(self.head()), hint(self.tail()));
        let capacity = self.capacity();
        let from_head = self.slots.iter().cycle().skip(head.index.min(capacity));
        // One more than the hints say: a claim's hint may be yet to come.
        let places = (tail.distance(head, capacity) + 1).min(capacity);
        from_head.take(places).filter(|slot| is_in(slot.state.load(Relaxed), Phase::Full)).count()
    }

    /// Whether there is nothing to receive. May change at any moment.
    #[must_use]
    #[doc(alias = "empty")]
    pub fn is_empty(&self) -> bool {
        !matches!(self.head().find_full(), Ok(_) | Err(ClaimError::Pending)) && !self.has_returned()
    }

    /// Whether a message that came back waits to be taken.
    fn has_returned(&self) -> bool {
        let before = self.shared.searched.load(Relaxed);
        let returned = self.shared.returned.load(Acquire);
        if before == returned {
            return false;
        }
        let found = self.cells.iter().any(|cell| cell.load().is_in(DeliveryState::Returned))
            || self.slots.iter().any(|slot| is_in(slot.state.load(Acquire), Phase::Orphan));
        if !found {
            self.shared.searched.compare_exchange(before, returned, Relaxed, Relaxed).ok(); // keeps I3
        }
        found
    }

    /// Whether no slot is free. May change at any moment.
    #[must_use]
    #[doc(alias = "full")]
    pub fn is_full(&self) -> bool {
        self.tail().find_free().is_err()
    }

    /// Closes the queue for good: nothing more can be sent; what is there can be received.
    ///
    /// Everybody who waits is woken.
    pub fn close(&self) {
        become_known(core::ptr::from_ref(self).addr());
        self.shared.ended.fetch_or(CLOSED, Release);
        hooks::pause("queue: closed, and nobody is woken");
        fence(SeqCst);
        self.wake_everybody();
    }

    /// Whether the queue is closed.
    #[must_use]
    #[inline(always)]
    pub fn is_closed(&self) -> bool {
        self.has_ended(CLOSED)
    }

    #[inline(always)]
    fn has_ended(&self, how: u32) -> bool {
        self.shared.ended.load(Relaxed) & how != 0
    }

    fn signals(&self) -> [&Signal<LIGHT>; 4] {
        let rare = &self.shared;
        [&rare.not_empty, &rare.not_full, &rare.cell_free, &rare.idle]
    }

    fn wake_everybody(&self) {
        self.signals().into_iter().for_each(Signal::wake_all);
    }

    #[inline(always)]
    fn identify(&self) -> Result<u32, Fault> {
        identify(core::ptr::from_ref(&self.tail).addr())
    }

    #[inline(always)]
    fn tail(&self) -> End<'_, T> {
        End { hint: &self.tail.0, slots: &self.slots }
    }

    #[inline(always)]
    fn head(&self) -> End<'_, T> {
        End { hint: &self.head.0, slots: &self.slots }
    }

    /// Mends what the owner `dead.tag` had claimed. Cells first: a message that is in a cell must
    /// not be delivered from its slot as well.
    fn mend(&self, dead: &Dead) {
        let mut returned = false;
        for cell in &self.cells {
            let seen = cell.load();
            if seen.owner() == dead.tag {
                if seen.is_in(DeliveryState::Claimed) {
                    cell.exchange(seen, seen.freed());
                } else if seen.is_in(DeliveryState::Delivered) {
                    let origin = cell.origin.load(Relaxed);
                    let at = Position::decode(origin);
                    if let Some(slot) = self.slots.get(at.index).filter(|_| origin != NOWHERE) {
                        let reading = state(at.lap, dead.tag, Phase::Reading);
                        let free = state(at.lap.wrapping_add(1), 0, Phase::Free);
                        slot.state.compare_exchange(reading, free, AcqRel, Relaxed).ok();
                    }
                    let ready = seen.to(DeliveryState::Returned, 0);
                    // Who left by itself did not fail at the message.
                    cell.exchange(seen, if dead.clean { ready } else { ready.tried() });
                } else if seen.is_in(DeliveryState::Reading) {
                    cell.exchange(seen, seen.to(DeliveryState::Returned, 0));
                }
            }
            // Also one that an earlier recoverer, or a process that gave it back, left unannounced.
            returned |= cell.load().is_in(DeliveryState::Returned);
        }
        for slot in &self.slots {
            let seen = slot.state.load(Acquire);
            let lap = lap_of(seen);
            if owner_of(seen) == dead.tag {
                let mended = if is_in(seen, Phase::Writing) {
                    state(lap.wrapping_add(1), 0, Phase::Free)
                } else if is_in(seen, Phase::Reading) {
                    state(lap, 0, Phase::Orphan)
                } else {
                    seen
                };
                slot.state.compare_exchange(seen, mended, AcqRel, Relaxed).ok();
            }
            returned |= is_in(slot.state.load(Relaxed), Phase::Orphan);
        }
        if returned {
            self.shared.returned.fetch_add(1, Release); // keeps I3
        }
        fence(SeqCst);
    }

    const BASE: u64 = mix_u64(begin::<FixedQueue<T, 1>>(b"Queue 1"), T::FINGERPRINT);
}

// SAFETY: `repr(C)`; atomics, for which any bytes will do, and plain data that is checked before it
// is used; indices are bounds-checked; no `Drop`, as `Plain` is `Copy`.
unsafe impl<T: Plain, const N: usize> Shareable for FixedQueue<T, N> {
    const FINGERPRINT: u64 = mix_u64(Queue::<T>::BASE, N as u64);
    const NEEDS_PEERS: bool = true;
    crate::__sized_shareable!();
    fn layout() -> Layout {
        Layout::of::<Self>("FixedQueue", const { &Self::FIELDS })
    }
    fn place(&self) {
        self.signals().into_iter().for_each(Signal::place);
    }
    fn recover(&self, dead: &Dead) {
        self.mend(dead);
        self.wake_everybody();
    }
}

// SAFETY: as above; the number of slots is the pointer's, which `at` got from the checked header.
unsafe impl<T: Plain> Shareable for Queue<T> {
    const FINGERPRINT: u64 = Queue::<T>::BASE;
    const NEEDS_PEERS: bool = true;
    fn layout() -> Layout {
        let (size, align) = (offset_of!(FixedQueue<T, 1>, slots), Self::ALIGN);
        Layout { name: "Queue", size, align, fields: const { &FixedQueue::<T, 1>::FIELDS } }
    }
    slice_shareable!(FixedQueue<T, 1>, Slot<T>, MAX_CAPACITY);
    fn place(&self) {
        self.signals().into_iter().for_each(Signal::place);
    }
    fn recover(&self, dead: &Dead) {
        self.mend(dead);
        self.wake_everybody();
    }
}

impl<T: Plain> WithCapacity for Queue<T> {}

impl<T: Plain> fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("capacity", &self.capacity())
            .field("len", &self.len())
            .field("closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}

impl<T: Plain, const N: usize> fmt::Debug for FixedQueue<T, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
