//! The ring of slots of one level: claims, commits, and slots that are passed over.
use crate::error::Fault;
use crate::shareable::Plain;
use crate::sync::UnsafeCell;
use crate::sync::atomic::AtomicU64;
use crate::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use crate::sys::hooks;
use core::mem::MaybeUninit;

/// The largest capacity: a position keeps the index in 24 bits.
pub(crate) const MAX_CAPACITY: usize = (1 << INDEX_BITS) - 1;

const INDEX_BITS: u32 = 24;
const LAP_BITS: u32 = 40;

/// The largest number of entries of an in-flight table: the word of a slot keeps the index of one
/// in 20 bits.
pub(crate) const MAX_IN_FLIGHT: usize = (1 << 20) - 1;

/// What a slot is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Free = 0,
    Writing = 1,
    Full = 2,
    Reading = 3,
    Returned = 4,
    Moved = 5,
}

/// The word of a slot in phase `phase` of lap `lap`, claimed by `owner` (0: by nobody).
pub(crate) const fn state(lap: u64, owner: u32, phase: Phase) -> u64 {
    ((lap & ((1 << LAP_BITS) - 1)) << 16) | (((owner & 0xfff) as u64) << 4) | phase as u64
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
    (state >> 16) & ((1 << LAP_BITS) - 1)
}

/// How many laps `a` is ahead of `b`, counted round the clock.
#[expect(clippy::cast_possible_wrap, reason = "the topmost bit of the difference is its sign")]
const fn ahead(a: u64, b: u64) -> i64 {
    (a.wrapping_sub(b) << (64 - LAP_BITS)) as i64 >> (64 - LAP_BITS)
}

/// A place in the endless sequence of messages: a lap, and an index into the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) lap: u64,
    pub(crate) index: usize,
}

impl Position {
    pub(crate) fn decode(bits: u64) -> Self {
        Position { lap: bits >> INDEX_BITS, index: (bits & ((1 << INDEX_BITS) - 1)) as usize }
    }

    pub(crate) fn encode(self) -> u64 {
        (self.lap << INDEX_BITS) | self.index as u64
    }

    #[inline(always)]
    fn next(self, capacity: usize) -> Self {
        if self.index + 1 < capacity {
            Position { lap: self.lap, index: self.index + 1 }
        } else {
            Position { lap: self.lap.wrapping_add(1) & ((1 << LAP_BITS) - 1), index: 0 }
        }
    }

    /// The position after the one at this index, `laps` before `lap`.
    fn after(self, lap: u64, laps: u64, capacity: usize) -> Self {
        let lap = lap.wrapping_sub(laps) & ((1 << LAP_BITS) - 1);
        Position { lap, index: self.index }.next(capacity)
    }

    /// How many positions this one is after `earlier`, at most `capacity`.
    pub(crate) fn distance(self, earlier: Position, capacity: usize) -> usize {
        match ahead(self.lap, earlier.lap) {
            0 => self.index.saturating_sub(earlier.index),
            1 => (capacity + self.index).saturating_sub(earlier.index).min(capacity),
            laps if laps > 1 => capacity,
            _ => 0,
        }
    }
}

/// A place for a message: in a ring, or an entry of the in-flight table.
#[repr(C)]
#[derive(Debug)]
pub struct Slot<T> {
    pub(crate) state: AtomicU64,
    pub(crate) value: UnsafeCell<MaybeUninit<T>>,
}

// SAFETY: its value is reached through claims only, which exclude each other, and `Plain` data may
// be used by any thread.
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

/// One end of the ring: a hint at its position, and the slots.
///
/// The hint may be stale, never ahead: it is stored after a claim, and the claims of one end follow
/// each other without gaps. So walking forward from it finds the next slot to claim. A slot that is
/// laps ahead of the walk allows to jump. To the writers' end: if slot *i* is in lap *s*, position
/// (*s* - 1, *i*) was claimed by a writer, and so was all before it. To the readers' end: that
/// position may have been given up unwritten, ahead of messages that are still to be read; but for
/// a writer to claim it, position (*s* - 2, *i*) must have been done with, and all before it.
pub(crate) struct End<'a, T> {
    pub(crate) hint: &'a AtomicU64,
    /// All slots of the queue.
    pub(crate) slots: &'a [Slot<T>],
    /// The index of the first slot of this ring, and the number of its slots.
    pub(crate) first: usize,
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

/// How many laps before its own a slot proves an end to have passed.
const WRITERS: u64 = 1;
const READERS: u64 = 2;

impl<'a, T> End<'a, T> {
    /// Claims the next free slot for writing: the claim names its owner in the same instruction.
    #[inline(always)]
    pub(crate) fn claim_free(&self, owner: u32) -> Result<Found<'a, T>, ClaimError> {
        self.walk(
            WRITERS,
            |at| state(at.lap, 0, Phase::Free),
            |at| Some(state(at.lap, owner, Phase::Writing)),
            |_, _| None,
        )
    }

    /// Claims the next message for reading.
    #[inline(always)]
    pub(crate) fn claim_full(&self, owner: u32) -> Result<Found<'a, T>, ClaimError> {
        self.walk(
            READERS,
            |at| state(at.lap, 0, Phase::Full),
            |at| Some(state(at.lap, owner, Phase::Reading)),
            Self::before_full,
        )
    }

    /// Where the next free slot is, without claiming it.
    pub(crate) fn find_free(&self) -> Result<Found<'a, T>, ClaimError> {
        self.walk(WRITERS, |at| state(at.lap, 0, Phase::Free), |_| None, |_, _| None)
    }

    /// Where the next message is, without claiming it.
    pub(crate) fn find_full(&self) -> Result<Found<'a, T>, ClaimError> {
        self.walk(READERS, |at| state(at.lap, 0, Phase::Full), |_| None, Self::before_full)
    }

    /// A reader does not pass a slot that is still free or being written in its lap.
    fn before_full(at: Position, seen: u64) -> Option<ClaimError> {
        if seen == state(at.lap, 0, Phase::Free) {
            Some(ClaimError::Unavailable)
        } else if is_in(seen, Phase::Writing) {
            Some(ClaimError::Pending)
        } else {
            None
        }
    }

    /// Walks from the hint to the first slot that is as `wanted`, and makes it as `claimed` says.
    /// The common case alone is inlined: the slot at the hint is the one.
    #[inline(always)]
    fn walk(
        &self,
        behind: u64,
        wanted: impl Fn(Position) -> u64,
        claimed: impl Fn(Position) -> Option<u64>,
        stop: impl Fn(Position, u64) -> Option<ClaimError>,
    ) -> Result<Found<'a, T>, ClaimError> {
        let at = Position::decode(self.hint.load(Relaxed));
        match self.slots.get(self.first.wrapping_add(at.index)) {
            Some(slot)
                if slot.state.load(Acquire) == wanted(at)
                    && self.claim(slot, at, wanted(at), claimed(at)) =>
            {
                Ok(Found { slot, lap: at.lap })
            }
            _ => self.walk_on(behind, wanted, claimed, stop),
        }
    }

    /// Makes a slot that was `seen` as `claimed` says, if that says anything.
    #[inline(always)]
    fn claim(&self, slot: &Slot<T>, at: Position, seen: u64, claimed: Option<u64>) -> bool {
        let Some(claimed) = claimed else { return true };
        let done = slot.state.compare_exchange(seen, claimed, Acquire, Relaxed).is_ok();
        if done {
            hooks::pause("ring: a slot claimed");
            self.hint.store(at.next(self.capacity).encode(), Relaxed);
        }
        done
    }

    #[cold]
    #[inline(never)]
    fn walk_on(
        &self,
        behind: u64,
        wanted: impl Fn(Position) -> u64,
        claimed: impl Fn(Position) -> Option<u64>,
        stop: impl Fn(Position, u64) -> Option<ClaimError>,
    ) -> Result<Found<'a, T>, ClaimError> {
        let capacity = self.capacity;
        let round = 3 * capacity.min(self.slots.len()) + 64;
        let mut at = Position::decode(self.hint.load(Relaxed));
        let mut probes = 0;
        loop {
            let slot = self.slots.get(self.first.wrapping_add(at.index));
            let Some(slot) = slot else { return Err(ClaimError::Corrupt) };
            let seen = slot.state.load(Acquire);
            if seen == wanted(at) {
                if self.claim(slot, at, seen, claimed(at)) {
                    return Ok(Found { slot, lap: at.lap });
                }
            } else {
                let lap = lap_of(seen);
                match ahead(lap, at.lap) {
                    ..0 => return Err(ClaimError::Unavailable),
                    0 => match stop(at, seen) {
                        Some(error) => return Err(error),
                        None => at = at.next(capacity),
                    },
                    laps if laps.unsigned_abs() < behind => at = at.next(capacity),
                    _ => at = at.after(lap, behind, capacity),
                }
            }
            probes += 1;
            if probes % round == 0 {
                if probes == 64 * round {
                    return Err(ClaimError::Corrupt);
                }
                // Others may have gone round the ring many times meanwhile; their hints show it.
                at = Position::decode(self.hint.load(Relaxed));
            }
        }
    }
}

impl<T: Copy> Slot<T> {
    /// Gives a claimed slot to the readers.
    #[inline(always)]
    pub(crate) fn publish(&self, lap: u64) {
        self.state.store(state(lap, 0, Phase::Full), Release);
    }

    /// Gives a claimed slot to the writers of the next lap, whether it was read or never written.
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
