//! The cost of a read-write lock, beside that of the standard library and the process-shared one of
//! POSIX.
#![expect(unsafe_code, reason = "calls pthread_rwlock_*")]
mod support;

use core::mem::MaybeUninit;
use core::sync::atomic::AtomicU64;
use outlast::{RwLock, Shared};
use support::{ALONE, Bench, Contest, group};

/// A process-shared lock of POSIX.
struct Posix(*mut libc::pthread_rwlock_t);

// SAFETY: it is made to be used by several threads, and is never unmapped.
unsafe impl Sync for Posix {}
// SAFETY: as above.
unsafe impl Send for Posix {}

impl Posix {
    fn new() -> Self {
        let room: &'static [AtomicU64; size_of::<libc::pthread_rwlock_t>().div_ceil(8)] =
            group::plain_shared();
        let lock = room.as_ptr().cast_mut().cast::<libc::pthread_rwlock_t>();
        let mut attributes = MaybeUninit::<libc::pthread_rwlockattr_t>::uninit();
        let attributes = attributes.as_mut_ptr();
        // SAFETY: makes attributes in a live variable.
        let mut failed = unsafe { libc::pthread_rwlockattr_init(attributes) };
        // SAFETY: changes attributes that have been made.
        failed |= unsafe {
            libc::pthread_rwlockattr_setpshared(attributes, libc::PTHREAD_PROCESS_SHARED)
        };
        // SAFETY: makes a lock in fresh memory of that size, aligned to a page.
        failed |= unsafe { libc::pthread_rwlock_init(lock, attributes) };
        assert_eq!(failed, 0, "a process-shared lock");
        Posix(lock)
    }

    #[inline(always)]
    fn read(&self) {
        // SAFETY: made by `new`.
        unsafe { libc::pthread_rwlock_rdlock(self.0) };
        // SAFETY: taken just now.
        unsafe { libc::pthread_rwlock_unlock(self.0) };
    }
}

fn read_alone(contest: &mut Contest<'_>) {
    let ours = Shared::anonymous(RwLock::new(1_u64)).expect("memory");
    contest.alone("outlast::RwLock", move |n| {
        let lock: &RwLock<u64> = &ours;
        for _ in 0..n {
            core::hint::black_box(*lock.read().expect("no owner died"));
        }
    });
    let std = std::sync::RwLock::new(1_u64);
    contest.alone("std::sync::RwLock", move |n| {
        for _ in 0..n {
            core::hint::black_box(*std.read().expect("no owner panicked"));
        }
    });
    contest.bar(1.1);
    let posix = Posix::new();
    contest.alone("pthread_rwlock_t", move |n| {
        let posix = &posix;
        (0..n).for_each(|_| posix.read());
    });
}

fn write_alone(contest: &mut Contest<'_>) {
    let ours = Shared::anonymous(RwLock::new(1_u64)).expect("memory");
    contest.alone("outlast::RwLock", move |n| {
        let lock: &RwLock<u64> = &ours;
        for _ in 0..n {
            *lock.write().expect("no owner died") += 1;
        }
    });
    let std = std::sync::RwLock::new(1_u64);
    contest.alone("std::sync::RwLock", move |n| {
        for _ in 0..n {
            *std.write().expect("no owner panicked") += 1;
        }
    });
}

fn main() {
    let bench = Bench::from_args();
    bench.contest("read lock alone", ALONE, 61, read_alone);
    bench.contest("write lock alone", ALONE, 61, write_alone);
}
