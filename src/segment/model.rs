//! The process in the model: every thread is a peer of its own, and all memory is shared.
use crate::error::Fault;
use crate::sync::is_dead;
use crate::sys::robust::id;

/// The owner tag of the calling thread.
pub(crate) fn identify(_address: usize) -> Result<u32, Fault> {
    Ok(id())
}

/// Process and thread are the same.
pub(crate) fn who() -> (u32, u32) {
    (id(), id())
}

/// Nobody forks.
pub(crate) fn introduce(_address: usize) {}

/// Every process has one thread.
pub(crate) fn one_at_a_time<R>(act: impl FnOnce() -> R) -> R {
    act()
}

/// Everything is shared.
pub(crate) fn contains(_address: usize) -> bool {
    true
}

/// Nobody forks. But what a killed thread holds is not given up while it unwinds, as if it were a
/// copy.
pub(crate) fn forks() -> u32 {
    u32::from(is_dead())
}
