//! State under a lock that a forked child does not inherit.
#![expect(unsafe_code, reason = "follows a pointer to memory that is never freed")]
use crate::sync::atomic::AtomicPtr;
use crate::sync::atomic::Ordering::{AcqRel, Acquire};
use std::process;
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A value under a lock. Each process has a value of its own, which is the default at first.
///
/// An ordinary lock may be held by another thread at a fork. The child does not have that thread,
/// so the lock would never be released there.
pub(super) struct PerProcess<T> {
    current: AtomicPtr<Owned<T>>,
}

struct Owned<T> {
    /// The process whose value it is.
    pid: u32,
    value: Mutex<T>,
}

impl<T: Default + Send + 'static> PerProcess<T> {
    pub(super) const fn new() -> Self {
        PerProcess { current: AtomicPtr::new(ptr::null_mut()) }
    }

    /// Locks the value of this process.
    pub(super) fn lock(&self) -> MutexGuard<'static, T> {
        let pid = process::id();
        let mut seen = self.current.load(Acquire);
        loop {
            // SAFETY: the pointer is null, or leads to an `Owned` that is leaked below.
            let owned: Option<&'static Owned<T>> = unsafe { seen.as_ref() };
            if let Some(owned) = owned.filter(|owned| owned.pid == pid) {
                // A panic of a caller leaves a valid value.
                return owned.value.lock().unwrap_or_else(PoisonError::into_inner);
            }
            let new: *mut _ = Box::leak(Box::new(Owned { pid, value: Mutex::default() }));
            match self.current.compare_exchange(seen, new, AcqRel, Acquire) {
                Ok(_) => {
                    seen = new;
                    // Closes the descriptors of the parent's value, unless its lock is held.
                    if let Some(Ok(mut parents)) = owned.map(|owned| owned.value.try_lock()) {
                        drop(core::mem::take(&mut *parents));
                    }
                }
                Err(now) => seen = now,
            }
        }
    }
}
