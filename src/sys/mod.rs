//! The operating system, and nothing else: the only place that names `libc`.
//!
//! Parking on a word is the contract that backends share. A backend is one file that defines
//! `Parker`, which lies beside the word, with five operations:
//!
//! - `place()`: makes it usable where it lies, from any bytes.
//! - `park(&word, expected, deadline) -> Wake`: returns at once unless `word == expected`; may
//!   return for no reason.
//! - `unpark(&word, n) -> usize`: wakes up to `n` threads parked on the word; how many there were.
//! - `park_any(&word, expected, others)`: the same, without a deadline; returns as well when
//!   another word changes or is woken, and after a while at the latest. (`wake_all` is the wake for
//!   words without a `Parker`.)
//! - `change_and_unpark(&word, &changed, change, n) -> usize`: changes a word, this or another one,
//!   and wakes, in one step that a kill cannot split.
//!
//! The one for robust futexes has a sixth:
//! - `park_beside(&word, expected, beside, deadline) -> Wake`: as `park`, and returns at once
//!   unless the word beside has its value, too. Of that and a `change_and_unpark` of the word
//!   beside, the one that comes second sees the other.
//!
//! An unpark that follows a change of the word is never lost.

#[cfg(not(outlast_loom))]
mod clock;
#[cfg_attr(any(outlast_loom, outlast_pthread), path = "fence_full.rs")]
pub(crate) mod fence;
#[cfg(not(outlast_loom))]
pub(crate) mod file;
#[cfg_attr(not(outlast_hooks), path = "no_hooks.rs")]
pub(crate) mod hooks;
#[cfg_attr(outlast_loom, path = "model.rs")]
#[cfg_attr(all(outlast_pthread, not(outlast_loom)), path = "pthread.rs")]
#[cfg_attr(not(any(outlast_loom, outlast_pthread)), path = "futex.rs")]
mod parker;
#[cfg(all(feature = "process", not(outlast_loom)))]
pub(crate) mod process;
#[cfg_attr(outlast_loom, path = "robust_model.rs")]
#[cfg_attr(all(outlast_pthread, not(outlast_loom)), path = "robust_pthread.rs")]
#[cfg_attr(not(any(outlast_loom, outlast_pthread)), path = "robust_futex.rs")]
pub(crate) mod robust;
#[cfg(all(feature = "process", not(outlast_loom)))]
pub(crate) mod signal;
#[cfg(not(outlast_loom))]
pub(crate) mod signal_mask;
#[cfg_attr(any(outlast_loom, not(target_arch = "x86_64")), path = "stopwatch_clock.rs")]
pub(crate) mod stopwatch;
#[cfg(not(outlast_loom))]
pub(crate) mod thread;

pub(crate) use parker::Parker;
#[cfg(not(outlast_loom))]
pub(crate) use parker::{BACKEND, wake_all};
#[cfg(not(outlast_loom))]
pub(crate) use thread::{cpus, process_of};

/// The model's threads take turns.
#[cfg(outlast_loom)]
pub(crate) fn cpus() -> usize {
    1
}

/// The model's threads have no process.
#[cfg(outlast_loom)]
pub(crate) fn process_of(_tid: u32) -> Option<(u32, Option<String>)> {
    None
}

/// A word, and the value at which to sleep on it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Watch<'a> {
    pub(crate) word: &'a crate::sync::atomic::AtomicU32,
    pub(crate) expected: u32,
}

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
    #[cfg_attr(
        any(outlast_loom, outlast_pthread),
        expect(dead_code, reason = "for the tokens of robust futexes")
    )]
    Clear,
    /// Sets the lowest bit, leaving the others.
    OrOne,
    /// Adds one.
    AddOne,
    /// Clears the two lowest bits, leaving the others.
    ClearLowestTwo,
}
