//! Access to the operating system. Only this module uses `libc`.
//!
//! A *backend* is how threads sleep on a word and wake each other. Each backend is one file that
//! defines a `Parker`, which lies beside the word. It has five operations:
//!
//! - `place()` initialises it in place. Any bytes may lie there before.
//! - `park(&word, expected, deadline) -> Wake` sleeps until the word is woken. It returns
//!   immediately unless `word == expected`, and may return for no reason.
//! - `unpark(&word, n) -> usize` wakes up to `n` threads that sleep on the word, and returns their
//!   number.
//! - `park_any(&word, expected, others)` sleeps like `park`, without a deadline. It also returns
//!   when another word changes or is woken, and after a limited time. `wake_all` wakes the sleepers
//!   of a word without a `Parker`.
//! - `change_and_unpark(&word, &changed, change, n) -> usize` changes a word, this one or another,
//!   and wakes the sleepers of this one. A kill cannot come between the two.
//!
//! The backend for robust futexes has a sixth operation:
//! - `park_beside(&word, expected, beside, deadline) -> Wake` sleeps like `park`. It also returns
//!   immediately unless the word `beside` has its expected value. It is ordered with each
//!   `change_and_unpark` that changes `beside`: the later of the two sees the other.
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

/// Returns 1: the threads of the model take turns.
#[cfg(outlast_loom)]
pub(crate) fn cpus() -> usize {
    1
}

/// Returns `None`: the threads of the model have no process.
#[cfg(outlast_loom)]
pub(crate) fn process_of(_tid: u32) -> Option<(u32, Option<String>)> {
    None
}

/// A word, and the value at which a thread sleeps on it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Watch<'a> {
    pub(crate) word: &'a crate::sync::atomic::AtomicU32,
    pub(crate) expected: u32,
}

/// Why `park` returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wake {
    /// The thread was woken, the word had another value, a signal handler ran, or for no reason.
    Woken,
    /// The deadline passed.
    TimedOut,
}

/// How `change_and_unpark` changes the word.
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
