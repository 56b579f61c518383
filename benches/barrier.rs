//! The cost of a barrier between processes, beside the process-shared barrier of POSIX.
#![expect(unsafe_code, reason = "calls pthread_barrier_*")]
mod support;

use core::mem::MaybeUninit;
use core::sync::atomic::AtomicU64;
use criterion::Criterion;
use outlast::{Barrier, Shared};
use support::{Bench, Contest, Outcome, TOGETHER, group};

/// A process-shared barrier of POSIX.
struct Posix(*mut libc::pthread_barrier_t);

// SAFETY: it is made to be used by several threads, and is never unmapped.
unsafe impl Sync for Posix {}
// SAFETY: as above.
unsafe impl Send for Posix {}

impl Posix {
    fn new(parties: u32) -> Self {
        let room: &'static [AtomicU64; size_of::<libc::pthread_barrier_t>().div_ceil(8)] =
            group::plain_shared();
        let barrier = room.as_ptr().cast_mut().cast::<libc::pthread_barrier_t>();
        let mut attributes = MaybeUninit::<libc::pthread_barrierattr_t>::uninit();
        let attributes = attributes.as_mut_ptr();
        // SAFETY: makes attributes in a live variable.
        let mut failed = unsafe { libc::pthread_barrierattr_init(attributes) };
        // SAFETY: changes attributes that have been made.
        failed |= unsafe {
            libc::pthread_barrierattr_setpshared(attributes, libc::PTHREAD_PROCESS_SHARED)
        };
        // SAFETY: makes a barrier in fresh memory of that size, aligned to a page.
        failed |= unsafe { libc::pthread_barrier_init(barrier, attributes, parties) };
        assert_eq!(failed, 0, "a process-shared barrier");
        Posix(barrier)
    }

    fn wait(&self) {
        // SAFETY: made by `new`.
        unsafe { libc::pthread_barrier_wait(self.0) };
    }
}

/// So many generations.
fn rounds(parties: usize, rounds: u64, wait: impl Fn() + Sync) -> Outcome {
    group::processes(parties, None, |i, stage| {
        wait(); // to warm up
        stage.start();
        (0..rounds).for_each(|_| wait());
        if i == 0 { rounds } else { 0 }
    })
}

fn meet(contest: &mut Contest<'_>, parties: u32, bar: f64) {
    let count = parties as usize;
    contest.counted("outlast::Barrier", move |n| {
        let ours = Shared::anonymous(Barrier::new(parties)).expect("memory");
        rounds(count, n, || {
            ours.wait().expect("all live");
        })
    });
    contest.counted("pthread_barrier_t", move |n| {
        let posix = Posix::new(parties);
        rounds(count, n, || posix.wait())
    });
    contest.bar(bar);
}

fn main() {
    let bench = Bench::from_args();
    bench.contest("barrier, 2 processes", TOGETHER, 11, |contest| meet(contest, 2, 1.0 / 50.0));
    bench.contest("barrier, 4 processes", TOGETHER, 11, |contest| meet(contest, 4, 1.0 / 3.0));

    // For comparison with earlier runs of the same program, which criterion keeps.
    let mut criterion = Criterion::default().configure_from_args();
    let barrier = Shared::anonymous(Barrier::new(1)).expect("memory");
    criterion.bench_function("Barrier, one party", |bencher| bencher.iter(|| barrier.wait()));
    criterion.final_summary();
}
