//! The process in the model: every thread is a peer of its own, and all memory is shared.
use crate::error::Fault;

/// The owner tag of the calling thread.
pub(crate) fn identify(_address: usize) -> Result<u32, Fault> {
    Ok(crate::sys::robust::id())
}

/// Everything is shared.
pub(crate) fn contains(_address: usize) -> bool {
    true
}

/// Nobody forks.
pub(crate) fn forks() -> u32 {
    0
}
