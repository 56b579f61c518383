//! The process-shared mutexes of POSIX.
#![expect(unsafe_code, reason = "calls pthread_mutex_*")]
use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::sync::atomic::AtomicU64;

/// A process-shared mutex of POSIX around a number.
pub(crate) struct Pthread {
    mutex: &'static UnsafeCell<libc::pthread_mutex_t>,
    value: &'static UnsafeCell<u64>,
}

/// Whether the next owner is told of a death, and whether the owner may lock it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Plain,
    Robust,
    RobustRecursive,
}

// SAFETY: a process-shared mutex is made for it, and the value is touched by its owner only.
unsafe impl Sync for Pthread {}

impl Pthread {
    pub(crate) fn new(kind: Kind) -> Self {
        /// Room for a mutex, and a number behind it.
        const WORDS: usize = size_of::<libc::pthread_mutex_t>() / 8 + 1;
        let room: &'static [AtomicU64; WORDS] = super::group::plain_shared();
        // SAFETY: fresh memory, aligned to a page, of which only this call knows. It is never
        // unmapped.
        let mutex = unsafe { &*room.as_ptr().cast::<UnsafeCell<libc::pthread_mutex_t>>() };
        let value = room[WORDS - 1].as_ptr().cast::<UnsafeCell<u64>>();
        // SAFETY: as above; the last word, which the mutex does not use.
        let value = unsafe { &*value };
        let mut attributes = MaybeUninit::<libc::pthread_mutexattr_t>::uninit();
        let attributes = attributes.as_mut_ptr();
        // SAFETY: makes attributes in a live variable.
        let mut failed = unsafe { libc::pthread_mutexattr_init(attributes) };
        // SAFETY: changes attributes that have been made.
        failed |=
            unsafe { libc::pthread_mutexattr_setpshared(attributes, libc::PTHREAD_PROCESS_SHARED) };
        if kind != Kind::Plain {
            // SAFETY: as above.
            failed |= unsafe {
                libc::pthread_mutexattr_setrobust(attributes, libc::PTHREAD_MUTEX_ROBUST)
            };
        }
        if kind == Kind::RobustRecursive {
            // SAFETY: as above.
            failed |= unsafe {
                libc::pthread_mutexattr_settype(attributes, libc::PTHREAD_MUTEX_RECURSIVE)
            };
        }
        // SAFETY: makes a mutex in memory that is used for nothing else.
        failed |= unsafe { libc::pthread_mutex_init(mutex.get(), attributes) };
        assert_eq!(failed, 0, "a process-shared mutex");
        Pthread { mutex, value }
    }

    #[inline(always)]
    pub(crate) fn with(&self, body: impl FnOnce(&mut u64)) {
        // SAFETY: the mutex was made by `new` and is never destroyed.
        let failed = unsafe { libc::pthread_mutex_lock(self.mutex.get()) };
        assert_eq!(failed, 0, "pthread_mutex_lock");
        // SAFETY: the mutex is held, and a benchmark that locks it again touches the value at its
        // innermost level only.
        body(unsafe { &mut *self.value.get() });
        // SAFETY: held by this thread.
        unsafe { libc::pthread_mutex_unlock(self.mutex.get()) };
    }
}
