//! The cost of a semaphore without contention, beside the process-shared one of POSIX.
#![expect(unsafe_code, reason = "calls sem_*")]
mod support;

use core::sync::atomic::AtomicU64;
use criterion::Criterion;
use outlast::{OwnedSemaphore, Semaphore, Shared};
use support::{ALONE, Bench, Contest, group};

/// A process-shared semaphore of POSIX.
struct Posix(*mut libc::sem_t);

// SAFETY: it is made to be used by several threads, and is never unmapped.
unsafe impl Sync for Posix {}
// SAFETY: as above.
unsafe impl Send for Posix {}

impl Posix {
    fn new(permits: u32) -> Self {
        let room: &'static [AtomicU64; size_of::<libc::sem_t>().div_ceil(8)] =
            group::plain_shared();
        let semaphore = room.as_ptr().cast_mut().cast::<libc::sem_t>();
        // SAFETY: fresh memory of that size, aligned to a page.
        let made = unsafe { libc::sem_init(semaphore, 1, permits) };
        assert_eq!(made, 0, "sem_init");
        Posix(semaphore)
    }

    #[inline(always)]
    fn take_and_give_back(&self) {
        // SAFETY: made by `new`.
        let taken = unsafe { libc::sem_wait(self.0) };
        assert_eq!(taken, 0, "sem_wait");
        // SAFETY: made by `new`.
        unsafe { libc::sem_post(self.0) };
    }
}

fn alone(contest: &mut Contest<'_>) {
    let ours = Shared::anonymous(Semaphore::new(3)).expect("memory");
    contest.alone("outlast::Semaphore", move |n| {
        let semaphore: &Semaphore = &ours;
        for _ in 0..n {
            drop(semaphore.acquire().expect("a permit"));
        }
    });
    let posix = Posix::new(3);
    contest.alone("sem_t", move |n| {
        let posix = &posix;
        (0..n).for_each(|_| posix.take_and_give_back());
    });
    contest.bar(1.0);
    let owned = Shared::anonymous(OwnedSemaphore::new(3)).expect("memory");
    contest.alone("outlast::OwnedSemaphore", move |n| {
        for _ in 0..n {
            drop(owned.acquire().expect("a permit"));
        }
    });
}

fn main() {
    let bench = Bench::from_args();
    bench.contest("semaphore alone: acquire, release", ALONE, 61, alone);

    // For comparison with earlier runs of the same program, which criterion keeps.
    let mut criterion = Criterion::default().configure_from_args();
    let semaphore = Shared::anonymous(Semaphore::new(1)).expect("memory");
    criterion.bench_function("Semaphore, acquire and release", |bencher| {
        bencher.iter(|| drop(semaphore.acquire().expect("a permit")));
    });
    criterion.final_summary();
}
