//! The table of mappings in the model. Every thread is a process and a peer, and all memory is
//! shared.
use crate::error::Fault;
use crate::sync::is_dead;
use crate::sys::robust::id;

/// Returns the owner tag of the calling thread.
pub(crate) fn identify(_address: usize) -> Result<u32, Fault> {
    Ok(id())
}

/// Returns the ids of the process and of the thread, which are the same.
pub(crate) fn current_ids() -> (u32, u32) {
    (id(), id())
}

/// Does nothing: no process forks.
pub(crate) fn attach_in_child(_address: usize) {}

/// Runs `act`: every process has one thread.
pub(crate) fn one_at_a_time<R>(act: impl FnOnce() -> R) -> R {
    act()
}

/// Returns `true`: all memory is shared.
pub(crate) fn contains(_address: usize) -> bool {
    true
}

/// Returns another count in a killed thread. No process forks, but what a killed thread owns must
/// not be released while it unwinds: so it counts as a copy.
pub(crate) fn forks() -> u32 {
    u32::from(is_dead())
}
