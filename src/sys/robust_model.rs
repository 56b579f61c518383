//! The robust list in the model: threads have ids and never die.
use crate::error::Fault;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// No list, no links.
#[derive(Debug, Default)]
pub(crate) struct Links;

impl Links {
    pub(crate) fn reset(&self) {}
}

/// Nothing is listed, eagerly or not.
pub(crate) fn set_eager(_eager: bool) {}

/// The calling thread as owner of robust words.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Thread {
    tid: u32,
}

impl Thread {
    pub(crate) fn fast() -> Option<Thread> {
        Some(Thread { tid: id() })
    }
    pub(crate) fn current() -> Result<Thread, Fault> {
        Ok(Thread { tid: id() })
    }
    pub(crate) fn tid(self) -> u32 {
        self.tid
    }
    pub(crate) fn begin(self, _links: &Links) -> Result<(), Fault> {
        Ok(())
    }
    pub(crate) fn end(self) {}
    pub(crate) fn is_pending(self, _links: &Links) -> bool {
        true
    }
    pub(crate) fn is_eager(self) -> bool {
        false
    }
    pub(crate) fn link(self, _links: &Links) -> Result<(), Fault> {
        Ok(())
    }
    pub(crate) fn unlink(self, _links: &Links) {}
}

/// A number that no other thread of the model has.
pub(crate) fn id() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loom::thread_local! {
        static ID: u32 = NEXT.fetch_add(1, Relaxed) % 4_000 + 1;
    }
    ID.with(|id| *id)
}
