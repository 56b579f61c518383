//! Segments: memory that several processes map. Their headers, their names, and their users.

#[cfg(not(outlast_loom))]
pub(crate) mod header;
#[cfg(not(outlast_loom))]
#[path = "table.rs"]
mod imp;
#[cfg(outlast_loom)]
#[path = "model.rs"]
mod imp;
#[cfg(not(outlast_loom))]
pub(crate) mod memory;
#[cfg(not(outlast_loom))]
pub(crate) mod names;
#[cfg(not(outlast_loom))]
pub(crate) mod peers;

pub(crate) use imp::*;
#[cfg(not(outlast_loom))]
pub use imp::{forks, leave};

/// Makes this process a peer of the segment that `address` lies in, before a change that other
/// threads wait for. If this process is killed between the change and the wake, recovery wakes
/// those threads.
///
/// If it cannot become a peer, the caller makes the change anyway. Then a kill before the wake is
/// not noticed.
pub(crate) fn become_known(address: usize) {
    identify(address).ok();
}
