//! What a lock costs: alone, beside another one, and contended, beside `std::sync::Mutex` and the two
//! process-shared mutexes of POSIX.
#![expect(unsafe_code, reason = "calls pthread_mutex_*")]
mod support;

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::sync::atomic::AtomicU64;
use criterion::Criterion;
use outlast::{Lock, Shared};
use std::sync::Mutex;
use support::scenes::{World, contend};
use support::{ALONE, Bench, Contest, TOGETHER, group};

/// A process-shared mutex of POSIX around a number.
struct Pthread {
    mutex: &'static UnsafeCell<libc::pthread_mutex_t>,
    value: &'static UnsafeCell<u64>,
}

// SAFETY: a process-shared mutex is made for it, and the value is touched by its owner only.
unsafe impl Sync for Pthread {}

impl Pthread {
    fn new(robust: bool) -> Self {
        /// Room for a mutex, and a number behind it.
        const WORDS: usize = size_of::<libc::pthread_mutex_t>() / 8 + 1;
        let room: &'static [AtomicU64; WORDS] = group::plain_shared();
        // SAFETY: fresh memory, aligned to a page, of which only this call knows. It is never unmapped.
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
        let kind = if robust { libc::PTHREAD_MUTEX_ROBUST } else { libc::PTHREAD_MUTEX_STALLED };
        // SAFETY: as above.
        failed |= unsafe { libc::pthread_mutexattr_setrobust(attributes, kind) };
        // SAFETY: makes a mutex in memory that is used for nothing else.
        failed |= unsafe { libc::pthread_mutex_init(mutex.get(), attributes) };
        assert_eq!(failed, 0, "a process-shared mutex");
        Pthread { mutex, value }
    }

    #[inline(always)]
    fn with(&self, body: impl FnOnce(&mut u64)) {
        // SAFETY: the mutex was made by `new` and is never destroyed.
        let failed = unsafe { libc::pthread_mutex_lock(self.mutex.get()) };
        assert_eq!(failed, 0, "pthread_mutex_lock");
        // SAFETY: the mutex is held, so nobody else refers to the value.
        body(unsafe { &mut *self.value.get() });
        // SAFETY: held by this thread.
        unsafe { libc::pthread_mutex_unlock(self.mutex.get()) };
    }
}

fn shared_lock() -> Shared<Lock<u64>> {
    Shared::anonymous(Lock::new(0)).expect("memory")
}

fn alone(contest: &mut Contest<'_>) {
    let ours = shared_lock();
    contest.alone("outlast::Lock", move |n| {
        let lock: &Lock<u64> = &ours;
        for _ in 0..n {
            *lock.lock().expect("nobody died") += 1;
        }
    });
    let std = Mutex::new(0_u64);
    contest.alone("std::sync::Mutex", move |n| {
        for _ in 0..n {
            *std.lock().expect("nobody panicked") += 1;
        }
    });
    contest.bar(1.15);
    let robust = Pthread::new(true);
    contest.alone("pthread, process-shared, robust", move |n| {
        (0..n).for_each(|_| robust.with(|value| *value += 1));
    });
    contest.bar(0.6);
    let plain = Pthread::new(false);
    contest.alone("pthread, process-shared", move |n| {
        (0..n).for_each(|_| plain.with(|value| *value += 1));
    });
}

fn nested(contest: &mut Contest<'_>) {
    let (outer, inner) = (shared_lock(), shared_lock());
    contest.alone("outlast::Lock", move |n| {
        let (outer, inner): (&Lock<u64>, &Lock<u64>) = (&outer, &inner);
        for _ in 0..n {
            let mut first = outer.lock().expect("nobody died");
            *inner.lock().expect("nobody died") += 1;
            *first += 1;
        }
    });
    let (outer, inner) = (Mutex::new(0_u64), Mutex::new(0_u64));
    contest.alone("std::sync::Mutex", move |n| {
        for _ in 0..n {
            let mut first = outer.lock().expect("nobody panicked");
            *inner.lock().expect("nobody panicked") += 1;
            *first += 1;
        }
    });
    for (name, robust) in
        [("pthread, process-shared, robust", true), ("pthread, process-shared", false)]
    {
        let (outer, inner) = (Pthread::new(robust), Pthread::new(robust));
        contest.alone(name, move |n| {
            for _ in 0..n {
                outer.with(|first| {
                    inner.with(|second| *second += 1);
                    *first += 1;
                });
            }
        });
    }
}

fn contended(contest: &mut Contest<'_>, workers: usize) {
    let ours = shared_lock();
    contest.rival("outlast::Lock", move |effort| {
        let value = || ours.lock().expect("nobody died");
        let count = || core::mem::take(&mut *value());
        contend(World::Processes, workers, effort, || *value() += 1, count)
    });
    for (name, robust) in
        [("pthread, process-shared, robust", true), ("pthread, process-shared", false)]
    {
        let mutex = Pthread::new(robust);
        contest.rival(name, move |effort| {
            let count = || {
                let mut count = 0;
                mutex.with(|value| count = core::mem::take(value));
                count
            };
            contend(World::Processes, workers, effort, || mutex.with(|value| *value += 1), count)
        });
    }
    let mutex = Mutex::new(0_u64);
    contest.rival("std::sync::Mutex (threads)", move |effort| {
        let value = || mutex.lock().expect("nobody panicked");
        let count = || core::mem::take(&mut *value());
        contend(World::Threads, workers, effort, || *value() += 1, count)
    });
}

fn main() {
    let bench = Bench::from_args();
    bench.contest("lock alone", ALONE, 61, alone);
    bench.contest("lock nested in another", ALONE, 61, nested);
    bench.contest("lock contended, 2 processes", TOGETHER, 11, |contest| contended(contest, 2));
    bench.contest("lock contended, 4 processes", TOGETHER, 11, |contest| contended(contest, 4));

    // For comparison with earlier runs of the same program, which criterion keeps.
    let mut criterion = Criterion::default().configure_from_args();
    let lock = shared_lock();
    criterion.bench_function("Lock, alone", |bencher| {
        bencher.iter(|| *lock.lock().expect("nobody died") += 1);
    });
    criterion.final_summary();
}
