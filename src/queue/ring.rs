//! One ring of slots: how a slot is claimed, committed and passed over.
//!
//! A queue has such a ring for each of its priority levels. Senders claim free slots at its tail,
//! receivers claim messages at its head. The phases of a slot and the invariants are in
//! `levels.rs`.
use crate::error::Fault;
use crate::shareable::Plain;
use crate::sync::UnsafeCell;
use crate::sync::atomic::AtomicU64;
use crate::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use crate::sys::hooks;
use core::mem::MaybeUninit;

/// The largest capacity: a position stores the index in 24 bits.
pub(crate) const MAX_CAPACITY: usize = (1 << INDEX_BITS) - 1;

const INDEX_BITS: u32 = 24;
const LAP_BITS: u32 = 40;
const LAPS: u64 = (1 << LAP_BITS) - 1;

/// The largest number of entries of an in-flight table: the word of a slot stores the index of an
/// entry in 20 bits.
pub(crate) const MAX_IN_FLIGHT: usize = (1 << 20) - 1;

/// The phase of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Free = 0,
    Writing = 1,
    Full = 2,
    Reading = 3,
    Returned = 4,
    Moved = 5,
}

/// The word of a slot in phase `phase` of lap `lap`, claimed by the process slot `owner`. An owner
/// of 0 means that no process has claimed it.
pub(crate) const fn state(lap: u64, owner: u32, phase: Phase) -> u64 {
    ((lap & LAPS) << 16) | (((owner & 0xfff) as u64) << 4) | phase as u64
}

/// The word of a slot whose message has moved to entry `entry` of the in-flight table.
pub(crate) const fn moved(lap: u64, entry: usize) -> u64 {
    let entry = entry as u64;
    state(lap, 0, Phase::Moved) | (entry & 0xfff) << 4 | ((entry >> 12) & 0xff) << 56
}

/// The entry in the word of a slot in phase `Moved`.
pub(crate) const fn entry_of(state: u64) -> usize {
    ((((state >> 4) & 0xfff) | (state >> 56) << 12) & 0xf_ffff) as usize
}

/// The owner in a slot's word.
pub(crate) const fn owner_of(state: u64) -> u32 {
    ((state >> 4) & 0xfff) as u32
}

/// Whether a slot's word is in `phase`.
pub(crate) const fn is_in(state: u64, phase: Phase) -> bool {
    state & 0xf == phase as u64
}

/// The lap in a slot's word.
pub(crate) const fn lap_of(state: u64) -> u64 {
    (state >> 16) & LAPS
}

/// How many laps `a` is ahead of `b`. Laps wrap around, so the shorter way counts.
#[expect(clippy::cast_possible_wrap, reason = "the topmost bit of the difference is its sign")]
const fn ahead(a: u64, b: u64) -> i64 {
    (a.wrapping_sub(b) << (64 - LAP_BITS)) as i64 >> (64 - LAP_BITS)
}

/// A place in the endless sequence of slots, or of the blocks of a byte queue: a lap, and an index
/// into the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) lap: u64,
    pub(crate) index: usize,
}

impl Position {
    #[inline(always)]
    pub(crate) fn decode(bits: u64) -> Self {
        Position { lap: bits >> INDEX_BITS, index: (bits & ((1 << INDEX_BITS) - 1)) as usize }
    }

    #[inline(always)]
    pub(crate) fn encode(self) -> u64 {
        (self.lap << INDEX_BITS) | self.index as u64
    }

    /// The position `steps` further on; the beginning of the next lap if that is past the end.
    #[inline(always)]
    pub(crate) fn after(self, steps: usize, capacity: usize) -> Self {
        match self.index + steps {
            index if index < capacity => Position { lap: self.lap, index },
            _ => Position { lap: self.lap.wrapping_add(1) & LAPS, index: 0 },
        }
    }

    /// How many positions this one is after `earlier`, or `None` if it is before. A distance of
    /// more than two laps is reported as more than any ring has.
    #[inline(always)]
    pub(crate) fn since(self, earlier: Position, capacity: usize) -> Option<usize> {
        match ahead(self.lap, earlier.lap) {
            0 => self.index.checked_sub(earlier.index),
            1 => Some((capacity + self.index).wrapping_sub(earlier.index)),
            2.. => Some(usize::MAX >> 1),
            _ => None,
        }
    }

    /// How many positions this one is after `earlier`, from 0 to `capacity`.
    pub(crate) fn distance(self, earlier: Position, capacity: usize) -> usize {
        self.since(earlier, capacity).map_or(0, |distance| distance.min(capacity))
    }
}

/// Room for one message: a slot of a ring, or an entry of the in-flight table.
#[repr(C)]
#[derive(Debug)]
pub struct Slot<T> {
    pub(crate) state: AtomicU64,
    pub(crate) value: UnsafeCell<MaybeUninit<T>>,
}

// SAFETY: the value is reached through claims only, which exclude each other, and any thread may
// use `Plain` data.
#[expect(unsafe_code, reason = "a claimed slot is reached by its claimer alone")]
unsafe impl<T: Plain> Sync for Slot<T> {}

impl<T> Slot<T> {
    pub(crate) fn new() -> Self {
        Slot { state: AtomicU64::new(0), value: UnsafeCell::new(MaybeUninit::uninit()) }
    }
}

/// Why a claim failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClaimError {
    /// No room for a message is free, or no message is there.
    Unavailable,
    /// The next message is being written.
    Pending,
    /// No peer that follows the protocol leaves the ring like this.
    Corrupt,
}

/// For the tail: a slot in lap *s* proves that the tail has passed the same slot in lap *s* - 1.
const WRITERS: u64 = 1;
/// For the head: a slot in lap *s* proves that the head has passed the same slot in lap *s* - 2.
const READERS: u64 = 2;

/// One end of the ring: the tail, where senders claim slots, or the head, where receivers do.
///
/// `hint` is the position of the next slot to claim, or an earlier one: a thread stores it after
/// its claim. The claims of one end follow each other without gaps, so a walk forward from the hint
/// finds the next slot to claim.
///
/// A slot that is laps ahead of the walk shows how far the walk can jump. Let slot *i* be in lap
/// *s*. A sender has then claimed position (*s* - 1, *i*), which means two things:
/// - The tail has passed that position.
/// - The position a lap earlier, (*s* - 2, *i*), was received or given up, and so was every
///   position before it: the head has passed them. It may not have passed (*s* - 1, *i*) itself:
///   the sender may have given its slot up while earlier messages are still to be received.
pub(crate) struct End<'a, T> {
    pub(crate) hint: &'a AtomicU64,
    /// All slots of the queue.
    pub(crate) slots: &'a [Slot<T>],
    /// The index of the first slot of this ring.
    pub(crate) first: usize,
    /// The number of slots of this ring.
    pub(crate) capacity: usize,
}

/// A slot that was claimed or found, and its lap.
#[derive(Debug)]
pub(crate) struct Found<'a, T> {
    pub(crate) slot: &'a Slot<T>,
    pub(crate) lap: u64,
}

impl<T> Clone for Found<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Found<'_, T> {}

impl<'a, T> End<'a, T> {
    /// Claims the next free slot for writing. The instruction that claims it also names its owner.
    #[inline(always)]
    pub(crate) fn claim_free(&self, owner: u32) -> Result<Found<'a, T>, ClaimError> {
        self.walk::<WRITERS>(Some(owner))
    }

    /// Claims the next message for reading.
    #[inline(always)]
    pub(crate) fn claim_full(&self, owner: u32) -> Result<Found<'a, T>, ClaimError> {
        self.walk::<READERS>(Some(owner))
    }

    /// Finds the next free slot without claiming it.
    pub(crate) fn find_free(&self) -> Result<Found<'a, T>, ClaimError> {
        self.walk::<WRITERS>(None)
    }

    /// Finds the next message without claiming it.
    pub(crate) fn find_full(&self) -> Result<Found<'a, T>, ClaimError> {
        self.walk::<READERS>(None)
    }

    /// Walks from the hint to the first slot that this end can use, and claims it for `owner` if
    /// there is one. Only the common case is inlined: the hint leads to that slot.
    #[inline(always)]
    fn walk<const LAPS_BEHIND: u64>(&self, owner: Option<u32>) -> Result<Found<'a, T>, ClaimError> {
        let at = Position::decode(self.hint.load(Relaxed));
        match self.slots.get(self.first.wrapping_add(at.index)) {
            Some(slot)
                if slot.state.load(Acquire) == usable::<LAPS_BEHIND>(at.lap)
                    && self.claim::<LAPS_BEHIND>(slot, at, owner) =>
            {
                Ok(Found { slot, lap: at.lap })
            }
            _ => self.walk_on::<LAPS_BEHIND>(owner),
        }
    }

    /// Claims a slot that this end can use; does nothing without an owner.
    #[inline(always)]
    fn claim<const LAPS_BEHIND: u64>(
        &self,
        slot: &Slot<T>,
        at: Position,
        owner: Option<u32>,
    ) -> bool {
        let Some(owner) = owner else { return true };
        let phase = if LAPS_BEHIND == READERS { Phase::Reading } else { Phase::Writing };
        let (from, to) = (usable::<LAPS_BEHIND>(at.lap), state(at.lap, owner, phase));
        let done = slot.state.compare_exchange(from, to, Acquire, Relaxed).is_ok();
        if done {
            hooks::pause("ring: a slot claimed");
            self.hint.store(at.after(1, self.capacity).encode(), Relaxed);
        }
        done
    }

    #[cold]
    #[inline(never)]
    fn walk_on<const LAPS_BEHIND: u64>(
        &self,
        owner: Option<u32>,
    ) -> Result<Found<'a, T>, ClaimError> {
        let capacity = self.capacity;
        let round = 3 * capacity.min(self.slots.len()) + 64;
        let mut at = Position::decode(self.hint.load(Relaxed));
        let mut probes = 0;
        loop {
            let slot = self.slots.get(self.first.wrapping_add(at.index));
            let Some(slot) = slot else { return Err(ClaimError::Corrupt) };
            let seen = slot.state.load(Acquire);
            let laps = ahead(lap_of(seen), at.lap);
            let is_next_message = laps == 0 && LAPS_BEHIND == READERS;
            if seen == usable::<LAPS_BEHIND>(at.lap) {
                if self.claim::<LAPS_BEHIND>(slot, at, owner) {
                    return Ok(Found { slot, lap: at.lap });
                }
            } else if laps < 0 || is_next_message && is_in(seen, Phase::Free) {
                return Err(ClaimError::Unavailable);
            } else if is_next_message && is_in(seen, Phase::Writing) {
                return Err(ClaimError::Pending);
            } else {
                if laps.unsigned_abs() >= LAPS_BEHIND {
                    at.lap = lap_of(seen).wrapping_sub(LAPS_BEHIND) & LAPS;
                }
                at = at.after(1, capacity);
            }
            probes += 1;
            if probes % round == 0 {
                if probes == 64 * round {
                    return Err(ClaimError::Corrupt);
                }
                // Other threads may have gone round the ring many times. Their hints show it.
                at = Position::decode(self.hint.load(Relaxed));
            }
        }
    }
}

/// The word of a slot that can be claimed in `lap` by this end.
#[inline(always)]
const fn usable<const LAPS_BEHIND: u64>(lap: u64) -> u64 {
    state(lap, 0, if LAPS_BEHIND == READERS { Phase::Full } else { Phase::Free })
}

impl<T: Copy> Slot<T> {
    /// Commits the message in a claimed slot: receivers can claim it.
    #[inline(always)]
    pub(crate) fn publish(&self, lap: u64) {
        self.state.store(state(lap, 0, Phase::Full), Release);
    }

    /// Frees a claimed slot for the next lap, whether its message was read or never written.
    #[inline(always)]
    pub(crate) fn free(&self, lap: u64) {
        self.state.store(state(lap.wrapping_add(1), 0, Phase::Free), Release);
    }
}

impl From<ClaimError> for Fault {
    fn from(_: ClaimError) -> Self {
        Fault::Corrupt
    }
}
