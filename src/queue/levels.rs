//! The implementation of queues: one or more rings of slots, called levels, and the verbs on them.
//!
//! [`Queue`](super::Queue) has one level, and [`PriorityQueue`](super::PriorityQueue) has several.
//! All levels share the signals on which receivers sleep, the in-flight table, and the word that
//! says whether the queue is closed. Each level has its own slots, and a signal on which its
//! senders sleep.
//!
//! # State
//! Each level is a ring of slots. The word of a slot is {lap: 40, owner: 12, phase: 4 bits}.
//! Position *p* of the sequence of messages lies at index *p* mod capacity in lap *p* / capacity.
//!
//! | phase | owner | meaning | next |
//! |---|---|---|---|
//! | `Free` | - | free for a message of this lap | `Writing` by a claim |
//! | `Writing` | process | being written | `Full` = the commit of `send`; or `Free` of the next lap, if the sender drops it or dies |
//! | `Full` | - | a message | `Reading` by a claim |
//! | `Reading` | process | being read | `Free` of the next lap = the commit of `recv`; `Moved` = the commit of `recv_ack`; `Returned` if the reader dies |
//! | `Returned` | - | a message to be received again: its reader died, or left it | `Reading` |
//! | `Moved` | (an entry) | the message is in that entry of the in-flight table | `Free` of the next lap |
//!
//! After the slots of all levels comes the in-flight table, for messages that `recv_ack` delivered.
//! Its entries are slots as well. The word of an entry is {use: 35, level: 5, attempts: 8, owner:
//! 12, state: 4 bits}.
//!
//! | state | owner | meaning | next |
//! |---|---|---|---|
//! | `Free` | - | empty | `Claimed` |
//! | `Claimed` | process | its owner looks for a message to put here | `Delivered`, or `Free` |
//! | `Delivered` | process | delivered | `Free` = the commit of `ack`; `Returned` by nack, drop or death |
//! | `Returned` | - | to be delivered again | `Delivered`, or `Reading` for a plain `recv` |
//! | `Reading` | process | being read by a plain `recv` | `Free` = the commit; `Returned` if the process dies |
//!
//! # Invariants
//! - I1. A claim names its owner in the instruction that makes it.
//! - I2. The claims of the writers of a level follow each other without gaps, and so do those of
//!   its readers. `tail` and `head` are hints that may be behind, never ahead.
//! - I3. If an entry or a slot of a level is `Returned`, then `returned` != `searched` in that
//!   level, or a living process is about to make it so.
//! - I4. A thread whose commit leaves another message to receive, or another free slot, wakes one
//!   more thread, if one may sleep. The thread that the earlier commit woke may have found a slower
//!   peer in its way, and gone back to sleep.
//! - I5. A thread in `recv_ack` sleeps on `in_flight_free` if a message is there but no entry is
//!   free, and on `not_empty` otherwise. Before the thread goes from one signal to the other, it
//!   wakes another sleeper of the first signal.
//! - I6. The end of any claim (of a slot or an entry, with or without a message) wakes all
//!   receivers of a queue that is closed, or that has no senders. They may have waited for the end
//!   of just this claim. A receiver makes no claim before it has seen a message. Otherwise it would
//!   wake itself without end.
//! - I7. While a slot is `Moved` to an entry, the entry is `Claimed` or `Delivered` for that
//!   message. The thread that moved the message, or the recovery after its death, frees the slot
//!   before it returns.
//!
//! # Ordering
//! Writes made before `send` are visible to the thread whose `recv` returns that message: Release
//! store of `Full`, Acquire of the claim. After each commit comes a light fence, before the look at
//! the sleepers (see `signal.rs`) and at the flag of a closed queue. A receiver that reports
//! *closed* has looked for a message after it saw the flag and passed the heavy fence. A sender
//! whose message it did not see therefore sees the flag, and takes the message back. A commit after
//! which a thread asks whether all work is done (`notify_if_idle`) is followed by a full fence.
//!
//! # Death
//! If a sender is killed before its claim, nothing happens. If it is killed between claim and
//! commit, nothing is sent: recovery frees the slot for the next lap, and readers skip it. After
//! the commit, the message is sent.
//!
//! If a receiver is killed between claim and commit, it has not returned from `recv`, and another
//! receiver gets the message. `recv_ack` first claims an entry and a slot, and copies the message.
//! Its commit makes the slot `Moved`. If the process is killed then, recovery completes the move,
//! and returns the message to the queue like any delivery of the dead process.
//!
//! Wakes may be lost with the process that should have sent them. So recovery changes every wait
//! word and wakes all threads.
//!
//! The slot protocol is this crate's own, from Vyukov's bounded MPMC queue (per-slot sequence
//! numbers) with the claim moved into the slot.
#![expect(unsafe_code, reason = "a claimed slot is reached by its claimer alone")]
use super::in_flight::{DeliveryState, DeliveryWord, IN_FLIGHT};
use super::ring::{
    ClaimError, End, Found, MAX_CAPACITY, MAX_IN_FLIGHT, Phase, Position, Slot, entry_of, is_in,
    lap_of, moved, owner_of, state,
};
use super::verbs::{QueueState, wait_for};
use super::{CLOSED, Failure, LIGHT, Line, NO_RECEIVERS, NO_SENDERS};
use crate::deadline::Deadline;
use crate::error::Fault;
use crate::segment::{become_known, identify};
use crate::shareable::{Dead, Plain, SEED, mix_u64};
use crate::sync::UnsafeCell;
use crate::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use crate::sync::atomic::{AtomicU32, AtomicU64, fence};
use crate::sys::hooks;
use crate::wait::signal::Signal;
use core::marker::PhantomData;
use core::mem::{MaybeUninit, offset_of};

/// A queue of one or more levels. The module docs say how it works.
#[repr(C)]
pub(crate) struct Levels<T: Plain, const LEVELS: usize, S: ?Sized = [Slot<T>]> {
    of: PhantomData<T>,
    hints: [Hints; LEVELS],
    pub(super) control: Control<LEVELS>,
    /// The slots of level 0, of level 1, and so on, and then the entries of the in-flight table.
    slots: S,
}

/// Hints at the two ends of a level.
#[repr(C)]
#[derive(Debug)]
struct Hints {
    tail: Line,
    head: Line,
}

/// Words that every thread reads, and that are rarely written.
#[repr(C, align(128))]
#[derive(Debug)]
pub(super) struct Control<const LEVELS: usize> {
    /// A message can be received.
    pub(super) not_empty: Signal<LIGHT>,
    /// An entry of the in-flight table can be used.
    pub(super) in_flight_free: Signal<LIGHT>,
    /// Every message is received and acknowledged.
    idle: Signal<LIGHT>,
    /// `CLOSED`, `NO_RECEIVERS`, `NO_SENDERS`.
    pub(super) ended: AtomicU32,
    /// The number of slots of each level. The other slots are entries of the in-flight table.
    capacity: AtomicU32,
    levels: [LevelControl; LEVELS],
}

/// The part of `Control` that each level has for itself.
#[repr(C)]
#[derive(Debug)]
struct LevelControl {
    /// A slot is free.
    not_full: Signal<LIGHT>,
    /// Counts messages that came back.
    returned: AtomicU64,
    /// The count of `returned` up to which a receiver has looked for them in vain.
    searched: AtomicU64,
}

/// The slots of a queue whose capacity is chosen at compile time.
#[repr(C)]
#[derive(Debug)]
pub struct FixedSlots<T, const LEVELS: usize, const N: usize, const ENTRIES: usize> {
    rings: [[Slot<T>; N]; LEVELS],
    entries: [Slot<T>; ENTRIES],
}

impl<T: Plain, const LEVELS: usize, const N: usize, const ENTRIES: usize>
    Levels<T, LEVELS, FixedSlots<T, LEVELS, N, ENTRIES>>
{
    pub(super) fn new() -> Self {
        const {
            assert!(LEVELS >= 1 && LEVELS <= 32, "a queue has 1 to 32 levels");
            assert!(N >= 1 && N <= MAX_CAPACITY, "a level holds 1 to 16,777,215 messages");
            assert!(
                ENTRIES >= 1 && ENTRIES <= MAX_IN_FLIGHT,
                "1 to 1,048,575 messages can be unacknowledged"
            );
        }
        let slot = |_| Slot::new();
        Levels {
            of: PhantomData,
            hints: core::array::from_fn(|_| Hints {
                tail: Line(AtomicU64::new(0)),
                head: Line(AtomicU64::new(0)),
            }),
            control: Control {
                not_empty: Signal::new(),
                in_flight_free: Signal::new(),
                idle: Signal::new(),
                ended: AtomicU32::new(0),
                capacity: AtomicU32::new(word(N)),
                levels: core::array::from_fn(|_| LevelControl {
                    not_full: Signal::new(),
                    returned: AtomicU64::new(0),
                    searched: AtomicU64::new(0),
                }),
            },
            slots: FixedSlots {
                rings: core::array::from_fn(|_| core::array::from_fn(slot)),
                entries: core::array::from_fn(slot),
            },
        }
    }
}

impl<T: Plain, const LEVELS: usize, const N: usize, const ENTRIES: usize>
    Levels<T, LEVELS, FixedSlots<T, LEVELS, N, ENTRIES>>
{
    pub(super) const SLOTS: usize = offset_of!(Self, slots);
    pub(super) const ENTRIES: usize = offset_of!(Self, slots.entries);
}

/// The number of slots of a queue for `capacity` messages of each level and `in_flight`
/// unacknowledged ones, with the entries of the in-flight table. `None` if a number is out of
/// range.
pub(crate) fn slots_for<const LEVELS: usize>(capacity: usize, in_flight: usize) -> Option<usize> {
    let fits = (1..=MAX_CAPACITY).contains(&capacity) && (1..=MAX_IN_FLIGHT).contains(&in_flight);
    fits.then(|| capacity * LEVELS + in_flight)
}

/// A capacity as it is stored in the queue.
fn word(capacity: usize) -> u32 {
    u32::try_from(capacity).unwrap_or(u32::MAX)
}

impl<T: Plain, const LEVELS: usize> Levels<T, LEVELS> {
    pub(super) fn size(slots: usize) -> Option<usize> {
        type One<T, const LEVELS: usize> = Levels<T, LEVELS, FixedSlots<T, LEVELS, 1, 1>>;
        let end = size_of::<Slot<T>>().checked_mul(slots)?.checked_add(One::<T, LEVELS>::SLOTS)?;
        let size = end.checked_next_multiple_of(align_of::<One<T, LEVELS>>())?;
        isize::try_from(size).ok().map(|_| size)
    }

    /// Initialises the queue in place. Each level gets `capacity` slots, unless `set_in_flight` has
    /// chosen another number.
    pub(super) fn place(&self, capacity: usize) {
        self.control.capacity.compare_exchange(0, word(capacity), Relaxed, Relaxed).ok();
        self.signals().for_each(Signal::place);
    }

    /// The capacity of each level if the in-flight table has the usual size.
    pub(super) fn usual_capacity(&self) -> usize {
        self.slots.len().saturating_sub(IN_FLIGHT) / LEVELS
    }

    /// Chooses the size of the in-flight table. To be called before `place`.
    pub(super) fn set_in_flight(&self, in_flight: usize) {
        let capacity = self.slots.len().saturating_sub(in_flight) / LEVELS;
        self.control.capacity.store(word(capacity), Relaxed);
    }

    /// Whether the capacity fits the number of slots.
    pub(super) fn is_sound(&self) -> bool {
        let in_flight = self.ring_len().checked_mul(LEVELS);
        let in_flight = in_flight.and_then(|rings| self.slots.len().checked_sub(rings));
        let slots = in_flight.and_then(|n| slots_for::<LEVELS>(self.ring_len(), n));
        slots == Some(self.slots.len())
    }

    // ------------------------------------------------------------ the parts
    /// The number of slots of each level.
    #[inline(always)]
    fn ring_len(&self) -> usize {
        self.control.capacity.load(Relaxed) as usize
    }

    #[inline(always)]
    fn first(&self, level: usize) -> usize {
        if LEVELS == 1 { 0 } else { self.ring_len().wrapping_mul(level) }
    }

    fn ring(&self, level: usize) -> &[Slot<T>] {
        let first = self.first(level);
        self.slots.get(first..first.wrapping_add(self.ring_len())).unwrap_or_default()
    }

    /// The in-flight table. `entry` counts its entries from the last one.
    fn entries(&self) -> &[Slot<T>] {
        self.slots.get(self.ring_len().wrapping_mul(LEVELS)..).unwrap_or_default()
    }

    #[inline(always)]
    fn end<'a>(&'a self, level: usize, hint: &'a Line) -> End<'a, T> {
        let (first, capacity) = (self.first(level), self.ring_len());
        End { hint: &hint.0, slots: &self.slots, first, capacity }
    }

    #[inline(always)]
    fn tail(&self, level: usize) -> End<'_, T> {
        self.end(level, &self.hints[level].tail)
    }

    #[inline(always)]
    fn head(&self, level: usize) -> End<'_, T> {
        self.end(level, &self.hints[level].head)
    }

    #[inline(always)]
    pub(super) fn identify(&self) -> Result<u32, Fault> {
        identify(core::ptr::from_ref(&self.hints).addr())
    }

    #[inline(always)]
    pub(super) fn has_ended(&self, how: u32) -> bool {
        self.control.ended.load(Relaxed) & how != 0
    }

    /// Tries each level, the most urgent first.
    #[inline(always)]
    fn by_urgency<R>(
        &self,
        attempt: impl Fn(usize) -> Result<R, ClaimError>,
    ) -> Result<R, ClaimError> {
        let mut error = ClaimError::Unavailable;
        for level in (0..LEVELS).rev() {
            match attempt(level) {
                Err(ClaimError::Unavailable) => {}
                Err(ClaimError::Pending) => error = ClaimError::Pending,
                done => return done,
            }
        }
        Err(error)
    }

    fn signals(&self) -> impl Iterator<Item = &Signal<LIGHT>> {
        self.receivers().into_iter().chain([&self.control.idle]).chain(self.not_full())
    }

    fn not_full(&self) -> impl Iterator<Item = &Signal<LIGHT>> {
        self.control.levels.iter().map(|level| &level.not_full)
    }
}

// ------------------------------------------------------------------ sending
impl<T: Plain, const LEVELS: usize> Levels<T, LEVELS> {
    #[inline(always)]
    pub(super) fn send_until(
        &self,
        level: usize,
        message: T,
        deadline: Deadline,
    ) -> Result<(), (T, Failure)> {
        match self.push(level, &message) {
            Ok(()) => Ok(()),
            Err(Failure::Unavailable) if !deadline.is_now() => {
                self.send_slow(level, message, deadline)
            }
            Err(failure) => Err((message, failure)),
        }
    }

    /// Takes the message by value. If the caller passed its address, the message would be written
    /// to the stack first, and the claim would wait for that write.
    #[cold]
    #[inline(never)]
    pub(super) fn send_slow(
        &self,
        level: usize,
        message: T,
        deadline: Deadline,
    ) -> Result<(), (T, Failure)> {
        let sent = self.wait_for_slot(level, deadline, || self.push(level, &message));
        sent.map_err(|failure| (message, failure))
    }

    /// Repeats `attempt` until it does not fail for want of a slot, or the deadline has passed.
    #[inline(always)]
    pub(super) fn wait_for_slot<R>(
        &self,
        level: usize,
        deadline: Deadline,
        attempt: impl Fn() -> Result<R, Failure>,
    ) -> Result<R, Failure> {
        // The level exists: otherwise the first attempt would have failed with another error.
        let signal = || &self.control.levels[level].not_full;
        wait_for(deadline, attempt, signal, || self.tail(level).find_free().is_ok())
    }

    /// Claims a free slot.
    #[inline(always)]
    pub(super) fn claim_free(&self, level: usize) -> Result<(Found<'_, T>, u32), Failure> {
        let owner = self.identify()?;
        if level >= LEVELS {
            return Err(Fault::NoSuchLevel.into());
        }
        if self.has_ended(CLOSED | NO_RECEIVERS) {
            return Err(Failure::Closed);
        }
        Ok((self.tail(level).claim_free(owner)?, owner))
    }

    #[inline(always)]
    pub(super) fn push(&self, level: usize, message: &T) -> Result<(), Failure> {
        let (at, owner) = self.claim_free(level)?;
        // SAFETY: this call has claimed the slot, so no other thread reads or writes its value.
        at.slot.value.with_mut(|value| unsafe { value.write(MaybeUninit::new(*message)) });
        if self.publish(level, at, owner) { Ok(()) } else { Err(Failure::Closed) }
    }

    /// Commits a claimed slot. Returns `false` if the message was taken back: the queue was closed,
    /// or the last receiver left, before a receiver could take it.
    #[inline(always)]
    pub(super) fn publish(&self, level: usize, at: Found<'_, T>, owner: u32) -> bool {
        at.slot.publish(at.lap);
        Signal::<LIGHT>::fence_after_change();
        let control = &self.control;
        if control.not_empty.is_armed()
            || control.levels[level].not_full.is_armed()
            || self.has_ended(CLOSED | NO_RECEIVERS)
        {
            return self.after_publish(level, at, owner);
        }
        true
    }

    #[cold]
    fn after_publish(&self, level: usize, at: Found<'_, T>, owner: u32) -> bool {
        if self.has_ended(CLOSED | NO_RECEIVERS) {
            let (full, writing) =
                (state(at.lap, 0, Phase::Full), state(at.lap, owner, Phase::Writing));
            if at.slot.state.compare_exchange(full, writing, AcqRel, Relaxed).is_ok() {
                at.slot.free(at.lap);
                self.after_abort(level);
                return false;
            }
        }
        self.control.not_empty.notify(1);
        let not_full = &self.control.levels[level].not_full;
        if not_full.is_armed() && self.tail(level).find_free().is_ok() {
            not_full.notify(1); // keeps I4
        }
        true
    }

    /// Wakes the threads that a slot may have held up. To be called after a claimed slot was given
    /// up without a message: readers can now skip it, and writers find it in the next lap.
    #[cold]
    pub(super) fn after_abort(&self, level: usize) {
        fence(SeqCst);
        self.control.not_empty.notify(1);
        self.control.levels[level].not_full.notify(1);
        self.notify_if_idle();
        self.notify_if_ended(); // keeps I6
    }
}

// ---------------------------------------------------------------- receiving
/// What to do with a message that is not a valid value of its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Invalid {
    /// It is consumed, and the caller gets an error.
    Consumed,
    /// It is left to the next receiver, because the caller cannot report it. Only for attempts that
    /// do not wait: a loop of attempts that wait would find the same message each time.
    Left,
}

/// The place where a message was claimed.
#[derive(Debug)]
pub(super) enum Place<'a, T> {
    /// In a slot of a level.
    Slot(usize, Found<'a, T>),
    /// In an entry of the in-flight table.
    Entry(&'a Slot<T>, DeliveryWord),
}

impl<T> Clone for Place<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Place<'_, T> {}

impl<T> Place<'_, T> {
    #[inline(always)]
    pub(super) fn level(self) -> usize {
        match self {
            Place::Slot(level, _) => level,
            Place::Entry(_, word) => word.level(),
        }
    }

    #[inline(always)]
    pub(super) fn value(&self) -> &UnsafeCell<MaybeUninit<T>> {
        match self {
            Place::Slot(_, at) => &at.slot.value,
            Place::Entry(entry, _) => &entry.value,
        }
    }
}

impl<T: Plain, const LEVELS: usize> Levels<T, LEVELS> {
    /// Receives the next message. The code of the usual case is short enough that the message and
    /// its claim stay in registers.
    #[inline(always)]
    pub(super) fn take_until(&self, deadline: Deadline) -> Result<(usize, T), Failure> {
        self.take_usual().map_or_else(|| self.take_slow(deadline, Invalid::Consumed), Ok)
    }

    /// Like `take_until`, but never blocks.
    #[inline(always)]
    pub(super) fn take_now(&self, invalid: Invalid) -> Result<(usize, T), Failure> {
        self.take_usual().map_or_else(|| self.take_slow(Deadline::NOW, invalid), Ok)
    }

    /// Receives the next message in the usual case. Returns `None` in every other case.
    #[inline(always)]
    pub(super) fn take_usual(&self) -> Option<(usize, T)> {
        let owner = self.identify().ok()?;
        if !T::ANY_BITS {
            return None;
        }
        let claim = |level: usize| {
            if self.may_have_returned(level) {
                return Err(ClaimError::Corrupt); // not the usual case
            }
            self.head(level).claim_full(owner).map(|at| (level, at))
        };
        let (level, at) = self.by_urgency(claim).ok()?;
        // SAFETY: this call has claimed the slot, so no other thread writes it. Any bits are a `T`.
        let message = at.slot.value.with(|value| unsafe { value.cast::<T>().read() });
        self.free_slot(level, at);
        Some((level, message))
    }

    #[cold]
    #[inline(never)]
    pub(super) fn take_slow(
        &self,
        deadline: Deadline,
        invalid: Invalid,
    ) -> Result<(usize, T), Failure> {
        self.wait_for_message(deadline, || self.take(invalid))
    }

    /// Repeats `attempt` until it does not fail for want of a message, or the deadline has passed.
    #[inline(always)]
    pub(super) fn wait_for_message<R>(
        &self,
        deadline: Deadline,
        attempt: impl Fn() -> Result<R, Failure>,
    ) -> Result<R, Failure> {
        let signal = || &self.control.not_empty;
        wait_for(deadline, attempt, signal, || self.find_full().is_ok())
    }

    fn take(&self, invalid: Invalid) -> Result<(usize, T), Failure> {
        let owner = self.identify()?;
        let place = self.find_or_closed(|| self.claim_next(owner))?;
        let message = Self::read(place.value());
        if message.is_err() && invalid == Invalid::Left {
            self.put_back(place);
        } else {
            self.finish(place);
        }
        Ok((place.level(), message?))
    }

    /// Looks for a message with `find`. If there is none, and nothing more can be sent, looks once
    /// more behind a fence. A sender that commits after the fence sees the flag, and a message that
    /// was committed before the fence is seen here.
    #[inline(always)]
    pub(super) fn find_or_closed<R>(
        &self,
        find: impl Fn() -> Result<R, ClaimError>,
    ) -> Result<R, Failure> {
        match find() {
            Err(ClaimError::Unavailable) if self.has_ended(CLOSED | NO_SENDERS) => {
                self.find_last(find)
            }
            found => found.map_err(Failure::from),
        }
    }

    #[cold]
    fn find_last<R>(&self, find: impl Fn() -> Result<R, ClaimError>) -> Result<R, Failure> {
        Signal::<LIGHT>::fence_before_verdict();
        find().map_err(|error| match error {
            ClaimError::Unavailable => Failure::Closed,
            error => error.into(),
        })
    }

    /// Claims the next message, in a slot or in an entry.
    #[inline(always)]
    pub(super) fn claim_next(&self, owner: u32) -> Result<Place<'_, T>, ClaimError> {
        self.by_urgency(|level| {
            if self.may_have_returned(level)
                && let Some(place) = self.claim_returned(level, owner)
            {
                return Ok(place);
            }
            self.head(level).claim_full(owner).map(|at| Place::Slot(level, at))
        })
    }

    /// Looks for the next message without claiming it.
    pub(super) fn find_next(&self) -> Result<(), ClaimError> {
        self.by_urgency(|level| match self.may_have_returned(level) && self.has_returned(level) {
            true => Ok(()),
            false => self.head(level).find_full().map(drop),
        })
    }

    /// Looks for a message in the rings of all levels.
    fn find_full(&self) -> Result<(), ClaimError> {
        self.by_urgency(|level| self.head(level).find_full().map(drop))
    }

    #[inline(always)]
    fn may_have_returned(&self, level: usize) -> bool {
        let control = &self.control.levels[level];
        control.returned.load(Acquire) != control.searched.load(Relaxed)
    }

    /// Whether a message of the level came back.
    fn has_returned(&self, level: usize) -> bool {
        self.find_returned(level, || self.holds_returned(level).then_some(())).is_some()
    }

    fn holds_returned(&self, level: usize) -> bool {
        self.entries().iter().any(|entry| Self::is_returned(entry.delivery(), level))
            || self.ring(level).iter().any(Self::is_returned_slot)
    }

    /// Claims a message of the level that came back.
    #[cold]
    fn claim_returned(&self, level: usize, owner: u32) -> Option<Place<'_, T>> {
        self.find_returned(level, || {
            self.claim_returned_entry(owner, |word| Self::is_returned(word, level)).or_else(|| {
                self.ring(level).iter().find_map(|slot| {
                    let seen = slot.state.load(Acquire);
                    let lap = lap_of(seen);
                    let reading = state(lap, owner, Phase::Reading);
                    let claimed = is_in(seen, Phase::Returned)
                        && slot.state.compare_exchange(seen, reading, Acquire, Relaxed).is_ok();
                    claimed.then_some(Place::Slot(level, Found { slot, lap }))
                })
            })
        })
    }

    /// Runs `search` for messages that came back. If it finds none, stores that in `searched`.
    fn find_returned<R>(&self, level: usize, search: impl FnOnce() -> Option<R>) -> Option<R> {
        let control = &self.control.levels[level];
        let before = control.searched.load(Relaxed);
        let returned = control.returned.load(Acquire);
        if before == returned {
            return None;
        }
        let found = search();
        if found.is_none() {
            control.searched.compare_exchange(before, returned, Relaxed, Relaxed).ok(); // keeps I3
        }
        found
    }

    /// Claims a message that came back to an entry. `fits` says which entries count.
    pub(super) fn claim_returned_entry(
        &self,
        owner: u32,
        fits: impl Fn(DeliveryWord) -> bool,
    ) -> Option<Place<'_, T>> {
        self.entries().iter().find_map(|entry| {
            let seen = entry.delivery();
            let reading = seen.to(DeliveryState::Reading, owner);
            let claimed =
                fits(seen) && seen.is_in(DeliveryState::Returned) && entry.exchange(seen, reading);
            claimed.then_some(Place::Entry(entry, reading))
        })
    }

    fn is_returned(word: DeliveryWord, level: usize) -> bool {
        word.is_in(DeliveryState::Returned) && (LEVELS == 1 || word.level() == level)
    }

    fn is_returned_slot(slot: &Slot<T>) -> bool {
        is_in(slot.state.load(Acquire), Phase::Returned)
    }

    /// Copies a message that this call has claimed, and checks the copy. So bytes that a peer
    /// changes after the check cannot make an invalid value.
    #[inline(always)]
    pub(super) fn read(message: &UnsafeCell<MaybeUninit<T>>) -> Result<T, Fault> {
        let mut copy = MaybeUninit::uninit();
        // SAFETY: the message is aligned and readable, and the copy is a local variable.
        message.with(|value| unsafe { value.copy_to_nonoverlapping(&raw mut copy, 1) });
        // SAFETY: the copy is aligned, and its bytes are initialised, like all shared memory.
        if T::ANY_BITS || unsafe { T::is_valid(copy.as_ptr()) } {
            // SAFETY: the bytes of the copy are a valid `T`.
            Ok(unsafe { copy.assume_init() })
        } else {
            Err(Fault::Corrupt)
        }
    }

    /// Commits the reception of a claimed message.
    #[inline(always)]
    pub(super) fn finish(&self, place: Place<'_, T>) {
        match place {
            Place::Slot(level, at) => self.free_slot(level, at),
            // The word differs only in damaged memory. Then there is nothing to free.
            Place::Entry(entry, reading) => _ = self.free_entry(entry, reading),
        }
    }

    /// Leaves a claimed message to the next receiver.
    #[cold]
    fn put_back(&self, place: Place<'_, T>) {
        match place {
            Place::Slot(_, at) => {
                let returned = state(at.lap, 0, Phase::Returned);
                at.slot.state.store(returned, Release);
            }
            Place::Entry(entry, reading) => {
                entry.exchange(reading, reading.to(DeliveryState::Returned, 0));
            }
        }
        self.announce_returned(place.level());
    }

    fn announce_returned(&self, level: usize) {
        // In damaged memory, the level may not exist.
        if let Some(control) = self.control.levels.get(level) {
            control.returned.fetch_add(1, Release); // keeps I3
        }
        fence(SeqCst);
        self.control.not_empty.notify(1);
        self.control.in_flight_free.notify(1); // a delivery can use the entry of the message
    }

    /// Frees a claimed slot: the commit of `recv`.
    #[inline(always)]
    fn free_slot(&self, level: usize, at: Found<'_, T>) {
        at.slot.free(at.lap);
        Signal::<LIGHT>::fence_after_change();
        let control = &self.control;
        let not_full = &control.levels[level].not_full;
        if Signal::are_armed([not_full, &control.not_empty, &control.in_flight_free, &control.idle])
        {
            self.after_free(level);
        }
    }

    #[cold]
    fn after_free(&self, level: usize) {
        self.control.levels[level].not_full.notify(1);
        self.notify_if_idle();
        if self.control.not_empty.is_armed() && self.find_full().is_ok() {
            self.control.not_empty.notify(1); // keeps I4
        }
        self.notify_if_ended(); // keeps I6
    }

    /// Wakes all receivers if nothing more can be sent. To be called after the end of each claim. A
    /// receiver may wait until no claim is left, or for an entry for a message that is now gone.
    #[inline]
    fn notify_if_ended(&self) {
        if self.has_ended(CLOSED | NO_SENDERS) {
            self.receivers().into_iter().for_each(|signal| signal.notify(u32::MAX));
        }
    }
}

// ------------------------------------------------------ the in-flight table
impl<T: Plain, const LEVELS: usize> Levels<T, LEVELS> {
    /// Claims a free entry, and returns its number and its word.
    pub(super) fn claim_entry(&self, owner: u32) -> Option<(usize, DeliveryWord)> {
        let n = self.entries().len();
        let first = owner as usize * 7; // peers start their search at different entries
        (0..n).map(|i| (first + i) % n).find_map(|i| {
            let entry = self.entry(i);
            let seen = entry.delivery();
            let claimed = seen.to(DeliveryState::Claimed, owner);
            (seen.is_in(DeliveryState::Free) && entry.exchange(seen, claimed))
                .then_some((i, claimed))
        })
    }

    #[inline(always)]
    pub(super) fn entry(&self, i: usize) -> &Slot<T> {
        &self.slots[self.slots.len().wrapping_sub(1 + i)]
    }

    /// Moves a message from its slot to an entry, both claimed by this call.
    pub(super) fn move_to(
        &self,
        i: usize,
        claimed: DeliveryWord,
        level: usize,
        at: Found<'_, T>,
        owner: u32,
    ) -> (&Slot<T>, DeliveryWord) {
        let entry = self.entry(i);
        at.slot.value.with(|from| {
            // SAFETY: this call has claimed the slot and the entry, so no other thread reads or
            // writes their values. The two do not overlap.
            entry.value.with_mut(|to| unsafe { from.copy_to_nonoverlapping(to, 1) });
        });
        at.slot.state.store(moved(at.lap, i), Release); // the commit
        let delivered = claimed.delivered(level, owner);
        entry.state.store(delivered.0, Release);
        self.free_slot(level, at);
        (entry, delivered)
    }

    /// Delivers the message of an entry that this call has claimed. The message stays in the entry.
    #[cold]
    pub(super) fn deliver_again<'a>(
        &self,
        entry: &'a Slot<T>,
        reading: DeliveryWord,
        owner: u32,
    ) -> Result<(&'a Slot<T>, DeliveryWord), Failure> {
        let delivered = reading.to(DeliveryState::Delivered, owner);
        if !entry.exchange(reading, delivered) {
            return Err(Fault::Corrupt.into());
        }
        fence(SeqCst);
        self.notify_if_ended(); // keeps I6
        Ok((entry, delivered))
    }

    /// Frees an entry that this process has claimed, or whose message was delivered to it: the
    /// commit of `ack`.
    pub(super) fn free_entry(&self, entry: &Slot<T>, mine: DeliveryWord) -> Result<(), Fault> {
        if !entry.exchange(mine, mine.freed()) {
            return Err(Fault::Corrupt);
        }
        fence(SeqCst);
        self.control.in_flight_free.notify(1);
        self.notify_if_idle();
        self.notify_if_ended();
        Ok(())
    }

    /// Gives a delivered message back to be delivered again.
    #[cold]
    pub(super) fn return_entry(&self, entry: &Slot<T>, mine: DeliveryWord) {
        if entry.exchange(mine, mine.to(DeliveryState::Returned, 0).tried()) {
            self.announce_returned(mine.level());
        }
    }
}

// --------------------------------------------------- state, join and closing
impl<T: Plain, const LEVELS: usize> Levels<T, LEVELS> {
    pub(super) fn len_of(&self, level: usize) -> usize {
        let Some(hints) = self.hints.get(level) else { return 0 };
        let hint = |hint: &Line| Position::decode(hint.0.load(Relaxed));
        let (head, tail) = (hint(&hints.head), hint(&hints.tail));
        let ring = self.ring(level);
        let from_head = ring.iter().cycle().skip(head.index.min(ring.len()));
        // One more than the hints say: a claim may not have moved its hint yet.
        let places = (tail.distance(head, ring.len()) + 1).min(ring.len());
        from_head.take(places).filter(|slot| is_in(slot.state.load(Relaxed), Phase::Full)).count()
    }

    pub(super) fn is_full(&self, level: usize) -> bool {
        self.tail(level).find_free().is_err()
    }

    /// Wakes the threads in `join` if every message is done. If two threads make the last changes
    /// at the same time, one of them sees both: each fences after its own change.
    fn notify_if_idle(&self) {
        if !self.control.idle.is_armed() {
            return;
        }
        fence(SeqCst);
        if self.is_idle() {
            self.control.idle.notify(u32::MAX);
        }
    }

    /// Whether all slots and entries were free at one moment. Two equal looks prove that, because
    /// laps and uses only grow. (`Free` is the same number for slots and entries.)
    fn is_idle(&self) -> bool {
        let look = || {
            self.slots
                .iter()
                .map(|slot| slot.state.load(Acquire))
                .try_fold(SEED, |hash, seen| is_in(seen, Phase::Free).then(|| mix_u64(hash, seen)))
        };
        let first = look();
        fence(SeqCst);
        first.is_some() && first == look()
    }

    fn repair_slot(&self, slot: &Slot<T>, level: usize, dead: &Dead) {
        let seen = slot.state.load(Acquire);
        let lap = lap_of(seen);
        let free = state(lap.wrapping_add(1), 0, Phase::Free);
        let repaired = if is_in(seen, Phase::Moved) {
            let entry = self.entry(entry_of(seen).min(self.slots.len() - 1));
            let word = entry.delivery();
            if word.owner() != dead.tag {
                return;
            }
            if word.is_in(DeliveryState::Claimed) {
                entry.exchange(word, word.delivered(level, dead.tag)); // keeps I7
            }
            free
        } else if owner_of(seen) != dead.tag {
            return;
        } else if is_in(seen, Phase::Writing) {
            free
        } else if is_in(seen, Phase::Reading) {
            state(lap, 0, Phase::Returned)
        } else {
            return;
        };
        slot.state.compare_exchange(seen, repaired, AcqRel, Relaxed).ok();
    }
}

impl<'a, T: Plain, const LEVELS: usize> QueueState<'a> for &'a Levels<T, LEVELS> {
    /// The number of messages that each level can hold.
    fn capacity(self) -> usize {
        self.ring_len()
    }

    fn in_flight_capacity(self) -> usize {
        self.entries().len()
    }

    fn len(self) -> usize {
        (0..LEVELS).map(|level| self.len_of(level)).sum()
    }

    fn is_empty(self) -> bool {
        (0..LEVELS).all(|level| {
            !matches!(self.head(level).find_full(), Ok(_) | Err(ClaimError::Pending))
                && !self.has_returned(level)
        })
    }

    fn close(self) {
        become_known(core::ptr::from_ref(self).addr());
        self.control.ended.fetch_or(CLOSED, Release);
        hooks::pause("queue: closed, and nobody is woken");
        fence(SeqCst);
        self.wake_all_waiters();
    }

    #[inline(always)]
    fn is_closed(self) -> bool {
        self.has_ended(CLOSED)
    }

    fn join_until(self, deadline: Deadline) -> Result<bool, Fault> {
        self.identify()?;
        Ok(self.control.idle.wait(deadline, || self.is_idle().then_some(())).is_ok())
    }

    fn ended(self) -> &'a AtomicU32 {
        &self.control.ended
    }

    fn receivers(self) -> [&'a Signal<LIGHT>; 2] {
        [&self.control.not_empty, &self.control.in_flight_free]
    }

    fn wake_senders(self) {
        self.not_full().for_each(Signal::notify_all);
    }

    fn may_have_message(self) -> bool {
        !matches!(
            self.by_urgency(|level| match self.may_have_returned(level) {
                true => Ok(()),
                false => self.head(level).find_full().map(drop),
            }),
            Err(ClaimError::Unavailable | ClaimError::Pending)
        )
    }

    fn is_quiet(self) -> bool {
        let Ok(owner) = self.identify() else { return false };
        let rings = self.slots.len() - self.entries().len();
        let is_free = |slot: &Slot<T>| is_in(slot.state.load(Acquire), Phase::Free);
        // A message moves from a slot to an entry, never back.
        if !self.slots[..rings].iter().all(is_free) {
            return false;
        }
        let (mut ours, mut delivered) = (false, false);
        for entry in self.entries() {
            let seen = entry.delivery();
            if seen.is_in(DeliveryState::Delivered) {
                ours |= seen.owner() == owner;
                delivered = true;
            } else if !seen.is_in(DeliveryState::Free) {
                return false;
            }
        }
        ours || !delivered
    }

    /// Repairs the slots first: a message that has moved to an entry must not be delivered from its
    /// slot as well.
    fn repair(self, dead: &Dead) {
        let entries = self.entries();
        for level in 0..LEVELS {
            self.ring(level).iter().for_each(|slot| self.repair_slot(slot, level, dead));
        }
        for entry in entries {
            let seen = entry.delivery();
            if seen.owner() == dead.tag {
                let returned = seen.to(DeliveryState::Returned, 0);
                if seen.is_in(DeliveryState::Claimed) {
                    entry.exchange(seen, seen.freed());
                } else if seen.is_in(DeliveryState::Delivered) {
                    // A process that left without a crash did not fail because of the message.
                    entry.exchange(seen, if dead.clean { returned } else { returned.tried() });
                } else if seen.is_in(DeliveryState::Reading) {
                    entry.exchange(seen, returned);
                }
            }
        }
        // Also messages that an earlier recovery, or a process that gave them back, has not
        // announced.
        for (level, control) in self.control.levels.iter().enumerate() {
            if self.holds_returned(level) {
                control.returned.fetch_add(1, Release); // keeps I3
            }
        }
        fence(SeqCst);
    }

    fn wake_all_waiters(self) {
        self.signals().for_each(Signal::wake_all);
    }
}

/// Implements `Shareable` and its companions for [`Queue`](super::Queue) and
/// [`PriorityQueue`](super::PriorityQueue).
macro_rules! queue_shareable {
    ($queue:ident [$($LEVELS:ident)?] $levels:expr, $name:literal, $tag:literal) => {
        impl<T: Plain $(, const $LEVELS: usize)?, const N: usize, const ENTRIES: usize>
            $queue<T $(, $LEVELS)?, FixedSlots<T, $levels, N, ENTRIES>>
        {
            const FIELDS: [Field; 2] = {
                type Fixed<T, const LEVELS: usize, const N: usize, const ENTRIES: usize> =
                    Levels<T, LEVELS, FixedSlots<T, LEVELS, N, ENTRIES>>;
                let slots = Fixed::<T, $levels, N, ENTRIES>::SLOTS;
                let entries = Fixed::<T, $levels, N, ENTRIES>::ENTRIES;
                [
                    Field { name: "slots", offset: slots, count: $levels * N, layout: T::layout },
                    Field { name: "in_flight", offset: entries, count: ENTRIES, layout: T::layout },
                ]
            };
        }

        impl<T: Plain $(, const $LEVELS: usize)?> $queue<T $(, $LEVELS)?> {
            const BASE: u64 = mix_u64(
                begin::<$queue<T $(, $LEVELS)?, FixedSlots<T, $levels, 1, 1>>>($tag),
                T::FINGERPRINT,
            );
            const FIELDS: [Field; 1] = {
                let [slots, _] = $queue::<T $(, $LEVELS)?, FixedSlots<T, $levels, 1, 1>>::FIELDS;
                [Field { count: 1, ..slots }]
            };
        }

        impl<T: Plain $(, const $LEVELS: usize)?, const N: usize, const ENTRIES: usize> Deref
            for $queue<T $(, $LEVELS)?, FixedSlots<T, $levels, N, ENTRIES>>
        {
            type Target = $queue<T $(, $LEVELS)?>;
            #[inline(always)]
            fn deref(&self) -> &Self::Target {
                let at = Self::Target::at(NonNull::from(self).cast(), $levels * N + ENTRIES);
                // SAFETY: both types are `repr(C)` and differ only in the type of their slots. Both
                // have the same number of slots, one after the other.
                unsafe { at.as_ref() }
            }
        }

        // SAFETY: the type is `repr(C)`. It consists of atomics, for which any bytes are valid, and
        // of plain data that is checked before it is used. Indices are bounds-checked. There is no
        // `Drop`, because `Plain` is `Copy`.
        unsafe impl<T: Plain $(, const $LEVELS: usize)?, const N: usize, const ENTRIES: usize>
            Shareable for $queue<T $(, $LEVELS)?, FixedSlots<T, $levels, N, ENTRIES>>
        {
            const FINGERPRINT: u64 =
                mix_u64(mix_u64($queue::<T $(, $LEVELS)?>::BASE, N as u64), ENTRIES as u64);
            const NEEDS_PEERS: bool = true;
            crate::__sized_shareable!();
            fn layout() -> Layout {
                Layout::of::<Self>(concat!("Fixed", $name), const { &Self::FIELDS })
            }
            fn place(&self) {
                (**self).core.place(N);
            }
            fn recover(&self, dead: &Dead) {
                (**self).recover(dead);
            }
            fn is_sound(&self) -> bool {
                self.capacity() == N
            }
        }

        // SAFETY: as above. The number of slots is that of the pointer, which `at` got from the
        // checked header.
        unsafe impl<T: Plain $(, const $LEVELS: usize)?> Shareable for $queue<T $(, $LEVELS)?> {
            const FINGERPRINT: u64 = Self::BASE;
            const ALIGN: usize =
                align_of::<$queue<T $(, $LEVELS)?, FixedSlots<T, $levels, 1, 1>>>();
            const NEEDS_PEERS: bool = true;
            fn layout() -> Layout {
                let size = Self::FIELDS[0].offset;
                Layout { name: $name, size, align: Self::ALIGN, fields: const { &Self::FIELDS } }
            }
            fn size(slots: usize) -> Option<usize> {
                Levels::<T, $levels>::size(slots)
            }
            at_slice!();
            fn place(&self) {
                self.core.place(self.core.usual_capacity());
            }
            fn recover(&self, dead: &Dead) {
                self.core.repair(dead);
                self.core.wake_all_waiters();
            }
            fn is_sound(&self) -> bool {
                self.core.is_sound()
            }
        }

        impl<T: Plain $(, const $LEVELS: usize)?> WithCapacity for $queue<T $(, $LEVELS)?> {
            fn units(capacity: usize) -> Option<usize> {
                slots_for::<$levels>(capacity, IN_FLIGHT)
            }
            fn units_in_flight(capacity: usize, in_flight: usize) -> Option<usize> {
                slots_for::<$levels>(capacity, in_flight)
            }
            fn set_in_flight(&self, in_flight: usize) {
                self.core.set_in_flight(in_flight);
            }
        }

        impl<T: Plain $(, const $LEVELS: usize)?> fmt::Debug for $queue<T $(, $LEVELS)?> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct($name)
                    $(.field("levels", &$LEVELS))?
                    .field("capacity", &self.capacity())
                    .field("len", &self.len())
                    .field("closed", &self.is_closed())
                    .finish_non_exhaustive()
            }
        }

        impl<T: Plain $(, const $LEVELS: usize)?, const N: usize, const ENTRIES: usize> fmt::Debug
            for $queue<T $(, $LEVELS)?, FixedSlots<T, $levels, N, ENTRIES>>
        {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                (**self).fmt(f)
            }
        }
    };
}
pub(super) use queue_shareable;
