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

/// The deadline passed before the wait was over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("timed out")]
pub struct TimedOut;

/// A shared word that threads can sleep on.
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

    /// Initialises the word in place. Its value stays.
    pub(crate) fn place(&self) {
        self.parker.place();
    }

    /// Sleeps until `deadline`, unless the value is no longer `seen`. May return for no reason.
    pub(crate) fn park(&self, seen: u32, deadline: Deadline) -> Wake {
        self.parker.park(&self.value, seen, deadline)
    }

    /// Like `park`, but sleeps only while a second word, `beside`, has its expected value as well.
    /// Only a wake of this word ends the sleep.
    #[cfg(any(not(outlast_pthread), outlast_loom))]
    pub(crate) fn park_beside(&self, seen: u32, beside: Watch<'_>, deadline: Deadline) -> Wake {
        self.parker.park_beside(&self.value, seen, beside, deadline)
    }

    /// Sleeps until the value is no longer `seen` or one of the other words has changed, for a
    /// limited time. May return for no reason.
    #[cfg(not(outlast_loom))]
    pub(crate) fn sleep_any(&self, seen: u32, others: &[Watch<'_>]) {
        self.parker.park_any(&self.value, seen, others);
    }

    /// Wakes up to `n` sleepers. Returns the number of threads that it woke.
    pub(crate) fn wake(&self, n: u32) -> usize {
        self.parker.unpark(&self.value, n)
    }

    /// Changes the word and wakes up to `n` sleepers. A kill cannot come between the two.
    pub(crate) fn change_and_wake(&self, change: Change, n: u32) -> usize {
        self.parker.change_and_unpark(&self.value, &self.value, change, n)
    }

    /// Changes the word `beside` and wakes up to `n` sleepers of this one, in the same way.
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
