//! The named points of `hooks.rs` in ordinary builds, where they compile to nothing.
use std::time::Duration;

/// A point at which tests can stop, kill or delay this process.
#[inline(always)]
pub(crate) fn pause(_point: &'static str) {}

/// Returns the length of the sleep before a second look, which only tests change.
#[inline(always)]
pub(crate) fn second_look(length: Duration) -> Duration {
    length
}

/// The length of a sentinel's second look, which only tests change.
#[cfg_attr(outlast_loom, expect(dead_code, reason = "the model has no sentinels"))]
#[inline(always)]
pub(crate) fn sentinel_look(length: Duration) -> Duration {
    length
}
