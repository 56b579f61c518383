//! A word that the kernel gives back when its owner dies.
//!
//! `Lock`, the tokens of the peer table and the recovery lock stand on it. Both backends show it as
//! the same number, and give it up to the next taker with the word that its owner died.

#[cfg_attr(all(outlast_pthread, not(outlast_loom)), path = "pthread.rs")]
#[cfg_attr(not(all(outlast_pthread, not(outlast_loom))), path = "futex.rs")]
mod imp;

pub(crate) use imp::RobustWord;

use crate::error::Fault;
use std::time::Duration;

/// Somebody may be asleep.
pub(crate) const WAITERS: u32 = 1 << 31;
/// The owner ended while owning the word.
pub(crate) const OWNER_DIED: u32 = 1 << 30;
/// The owner's thread id.
pub(crate) const OWNER: u32 = OWNER_DIED - 1;
/// No thread's id, and more than the kernel's highest (2^22).
pub(crate) const UNPLACED: u32 = OWNER;

/// How long a thread waits for an owner before it asks whether that owner exists.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);

/// How a robust word came into our hands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// Its last owner gave it up.
    Clean,
    /// Its last owner died.
    FromTheDead,
}

/// Why it did not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Another thread has it.
    Busy,
    /// The calling thread has it.
    Mine,
    /// It was never placed, or never will be: it holds what no thread writes.
    Unplaced,
    /// See there.
    Failed(Fault),
}

impl RobustWord {
    /// The thread that owns the word.
    pub(crate) fn owner(&self) -> Option<u32> {
        let owner = self.value() & OWNER;
        (owner != 0 && owner != UNPLACED).then_some(owner)
    }

    /// Whether the kernel has marked the word that showed this value: its owner has left user mode
    /// for good.
    pub(crate) fn is_marked(value: u32) -> bool {
        value & OWNER_DIED != 0 && value & OWNER == 0
    }

    /// Whether a thread for which `ours` answers yes owns the word.
    pub(crate) fn is_owned_by_one_of(&self, ours: &dyn Fn(u32) -> bool) -> bool {
        let owner = self.value() & OWNER;
        owner != 0 && ours(owner)
    }
}
