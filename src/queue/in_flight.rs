//! The in-flight table: messages that were delivered and are not acknowledged.
//!
//! A message that is received with `recv_ack` moves from the ring to an entry of this table, so that
//! a slow worker does not hold up the ring.
use super::ring::Slot;
use crate::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

/// How many messages of a queue can be delivered and unacknowledged at a time, unless its creator
/// chooses another number: 64.
pub const IN_FLIGHT: usize = crate::sync::IN_FLIGHT;

/// The state of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeliveryState {
    /// Empty.
    Free = 0,
    /// Claimed by a process that looks for a message to put into it.
    Claimed = 1,
    /// Delivered to a process, not acknowledged.
    Delivered = 2,
    /// To be delivered again.
    Returned = 3,
    /// Being taken by a plain `recv`.
    Reading = 4,
}

/// The word of an entry: how often it was used, level of the message, attempts, owner and state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DeliveryWord(pub(crate) u64);

const ATTEMPT: u64 = 1 << 16;
const LEVEL_SHIFT: u32 = 24;
const USE: u64 = 1 << 29;

impl DeliveryWord {
    pub(crate) fn is_in(self, state: DeliveryState) -> bool {
        self.0 & 0xf == state as u64
    }
    pub(crate) fn owner(self) -> u32 {
        ((self.0 >> 4) & 0xfff) as u32
    }
    pub(crate) fn attempts(self) -> u32 {
        ((self.0 >> 16) & 0xff) as u32
    }
    pub(crate) fn level(self) -> usize {
        ((self.0 >> LEVEL_SHIFT) & 0x1f) as usize
    }
    pub(crate) fn to(self, state: DeliveryState, owner: u32) -> Self {
        DeliveryWord((self.0 & !(ATTEMPT - 1)) | (u64::from(owner & 0xfff) << 4) | state as u64)
    }
    /// The word of a claimed entry after a message of `level` was delivered in it.
    pub(crate) fn delivered(self, level: usize, owner: u32) -> Self {
        DeliveryWord(self.to(DeliveryState::Delivered, owner).0 | (level as u64) << LEVEL_SHIFT)
    }
    /// One attempt more; 255 stands for all beyond.
    pub(crate) fn tried(self) -> Self {
        if self.attempts() == 255 { self } else { DeliveryWord(self.0 + ATTEMPT) }
    }
    /// Empty, for the next message: no attempts, and a number that no earlier use had.
    pub(crate) fn freed(self) -> Self {
        DeliveryWord((self.0 & !(USE - 1)).wrapping_add(USE))
    }
}

/// What a slot does as an entry of the table.
impl<T> Slot<T> {
    pub(crate) fn delivery(&self) -> DeliveryWord {
        DeliveryWord(self.state.load(Acquire))
    }

    pub(crate) fn exchange(&self, from: DeliveryWord, to: DeliveryWord) -> bool {
        self.state.compare_exchange(from.0, to.0, AcqRel, Relaxed).is_ok()
    }
}
