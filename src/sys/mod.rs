//! The operating system, and nothing else: the only place that names `libc`.
//!
//! Parking on a word is the contract that backends share. A backend is one file that defines
//! `Parker`, which lies beside the word, with four operations:
//!
//! - `place()`: makes it usable where it lies, from any bytes.
//! - `park(&word, expected, deadline) -> Wake`: returns at once unless `word == expected`; may
//!   return for no reason.
//! - `unpark(&word, n) -> usize`: wakes up to `n` threads parked on the word; how many there were.
//! - `change_and_unpark(&word, change, n) -> usize`: changes the word and wakes, in one step that
//!   a kill cannot split.
//!
//! An unpark that follows a change of the word is never lost.

#[cfg(not(outlast_loom))]
pub(crate) mod file;
#[cfg(not(outlast_loom))]
#[path = "futex.rs"]
mod parker;
#[cfg(outlast_loom)]
#[path = "model.rs"]
mod parker;
#[cfg(not(outlast_loom))]
pub(crate) mod robust;
#[cfg(outlast_loom)]
#[path = "robust_model.rs"]
pub(crate) mod robust;
#[cfg(not(outlast_loom))]
pub(crate) mod thread;

pub(crate) use parker::Parker;
#[cfg(not(outlast_loom))]
pub(crate) use parker::{Watch, wait_any, wake_all};

/// Why `park` came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wake {
    /// Woken, or the word had another value, or a signal handler ran, or no reason at all.
    Woken,
    /// The deadline passed.
    TimedOut,
}

/// What `change_and_unpark` does to the word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Stores zero.
    Clear,
    /// Stores the topmost bit alone.
    SetTopBit,
    /// Sets the lowest bit, leaving the others.
    OrOne,
    /// Adds one.
    AddOne,
    /// Clears the two lowest bits, leaving the others.
    ClearLowestTwo,
}
