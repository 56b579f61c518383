//! The same functions as in `fence.rs`, where each of the two threads passes a full fence.
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
