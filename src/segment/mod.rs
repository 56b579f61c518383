//! Segments: memory that several processes map, who they are, and where this process is in it.

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
