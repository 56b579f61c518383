//! Waiting: words in shared memory, operations that sleep on them, and the forms of each verb.

pub(crate) mod operation;
pub(crate) mod robust;
pub(crate) mod signal;
pub(crate) mod spin;
pub(crate) mod verbs;

use crate::deadline::Deadline;
use crate::sync::atomic::AtomicU32;
use crate::sys::{Change, Parker, Wake, Watch};
use thiserror::Error;

/// The deadline passed before what was waited for happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("timed out")]
pub struct TimedOut;

/// A shared word and what is needed to wait on it.
#[repr(C)]
#[derive(Debug, Default)]
pub(crate) struct WaitWord {
    pub(crate) value: AtomicU32,
    parker: Parker,
}

impl WaitWord {
    pub(crate) fn new(value: u32) -> Self {
        WaitWord { value: AtomicU32::new(value), parker: Parker::default() }
    }

    /// Makes the word usable where it lies. Its value stays.
    pub(crate) fn place(&self) {
        self.parker.place();
    }

    /// Sleeps until `deadline`, unless the word is no longer `seen`. May return for no reason.
    pub(crate) fn park(&self, seen: u32, deadline: Deadline) -> Wake {
        self.parker.park(&self.value, seen, deadline)
    }

    /// Like `park`, but the thread sleeps only while the word beside has its value, too. Wakes are
    /// for this word.
    #[cfg(any(not(outlast_pthread), outlast_loom))]
    pub(crate) fn park_beside(&self, seen: u32, beside: Watch<'_>, deadline: Deadline) -> Wake {
        self.parker.park_beside(&self.value, seen, beside, deadline)
    }

    /// Sleeps, for a while at most, until the word is no longer `seen` or one of the others has
    /// changed. May return for no reason.
    #[cfg(not(outlast_loom))]
    pub(crate) fn sleep_any(&self, seen: u32, others: &[Watch<'_>]) {
        self.parker.park_any(&self.value, seen, others);
    }

    /// Wakes up to `n` sleepers; how many there were.
    pub(crate) fn wake(&self, n: u32) -> usize {
        self.parker.unpark(&self.value, n)
    }

    /// Changes the word and wakes up to `n` sleepers, in one step that a kill cannot split.
    pub(crate) fn change_and_wake(&self, change: Change, n: u32) -> usize {
        self.parker.change_and_unpark(&self.value, &self.value, change, n)
    }

    /// The same, but changes the word `beside` this one.
    #[cfg(any(not(outlast_pthread), outlast_loom))]
    pub(crate) fn change_beside_and_wake(
        &self,
        beside: &AtomicU32,
        change: Change,
        n: u32,
    ) -> usize {
        self.parker.change_and_unpark(&self.value, beside, change, n)
    }
}
