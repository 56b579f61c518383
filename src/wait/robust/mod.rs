//! The robust word: a lock word that the kernel releases when its owner dies.
//!
//! `Lock`, the tokens of the peer table and the control lock are built on it. Both backends show
//! its state as the same number. Both tell the next owner that the last one died.

#[cfg_attr(all(outlast_pthread, not(outlast_loom)), path = "pthread.rs")]
#[cfg_attr(not(all(outlast_pthread, not(outlast_loom))), path = "futex.rs")]
mod imp;

pub(crate) use imp::RobustWord;

use crate::error::Fault;
use std::time::Duration;

/// A thread may be asleep.
pub(crate) const WAITERS: u32 = 1 << 31;
/// The owner ended while owning the word.
pub(crate) const OWNER_DIED: u32 = 1 << 30;
/// The thread id of the owner.
pub(crate) const OWNER: u32 = OWNER_DIED - 1;
/// The value of a word before it is placed. No thread has this id: the highest one is 2^22.
pub(crate) const UNPLACED: u32 = OWNER;

/// How long a thread waits for an owner before it checks whether that owner exists.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);

/// What happened to the last owner of a word that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// The last owner released the word.
    Clean,
    /// The last owner died.
    FromTheDead,
}

/// Why a word was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Another thread owns it.
    Busy,
    /// The calling thread owns it.
    Mine,
    /// The word has not been placed: it holds a value that no thread writes.
    Unplaced,
    /// The attempt failed for this reason.
    Failed(Fault),
}

impl RobustWord {
    /// Returns the id of the thread that owns the word.
    pub(crate) fn owner(&self) -> Option<u32> {
        let owner = self.value() & OWNER;
        (owner != 0 && owner != UNPLACED).then_some(owner)
    }

    /// Returns whether a word of this value is marked: its owner has ended, and runs no more
    /// instructions of the program.
    pub(crate) fn is_marked(value: u32) -> bool {
        value & OWNER_DIED != 0 && value & OWNER == 0
    }

    /// Returns whether a thread for which `ours` returns `true` owns the word.
    pub(crate) fn is_owned_by_one_of(&self, ours: &dyn Fn(u32) -> bool) -> bool {
        let owner = self.value() & OWNER;
        owner != 0 && ours(owner)
    }
}
