//! A fence between two threads of which each pays for itself: see `fence.rs`, whose contract this
//! keeps.
use crate::sync::atomic::{Ordering::SeqCst, fence};

#[cfg_attr(outlast_loom, expect(dead_code, reason = "the model has one process"))]
pub(crate) fn adopt() {}

#[inline(always)]
pub(crate) fn light() {
    fence(SeqCst);
}

pub(crate) const CERTAIN: bool = true;

pub(crate) fn heavy() {
    fence(SeqCst);
}
