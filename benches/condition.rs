//! The cost of a condition: a turn goes to another process and comes back, beside the condition of
//! POSIX and a bare futex.
#![expect(unsafe_code, reason = "calls pthread_*")]
mod support;

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::sync::atomic::AtomicU64;
use criterion::Criterion;
use outlast::{Condition, Lock, Shared, Spin};
use std::time::Duration;
use support::futex::Futex;
use support::scenes::ping_pong;
use support::{Bench, Contest, TOGETHER, group};

outlast::shared! {
    /// Whose turn it is.
    struct Turns { turn: Lock<u64>, changed: [Condition; 2] }
}

fn ours(contest: &mut Contest<'_>, name: &str, spin: Spin) {
    contest.counted(name, move |trips| {
        let changed = [Condition::new(), Condition::new()];
        let turns = Shared::anonymous(Turns { turn: Lock::new(0), changed }).expect("memory");
        let warm_up = || {
            spin.set();
            let turn = turns.turn.lock().expect("all live");
            drop(turns.changed[0].wait_timeout(turn, Duration::ZERO).expect("a peer"));
        };
        let set = |i: usize| {
            *turns.turn.lock().expect("all live") |= 1 << i;
            turns.changed[i].notify_one();
        };
        let wait = |i: usize| {
            let turn = turns.turn.lock().expect("all live");
            let turn = turns.changed[i].wait_while(turn, |turn| *turn & (1 << i) == 0);
            *turn.expect("all live") &= !(1 << i);
        };
        ping_pong(trips, warm_up, set, wait)
    });
}

/// A turn guarded by a process-shared mutex of POSIX, and a condition for each side.
struct Posix {
    mutex: *mut libc::pthread_mutex_t,
    changed: [*mut libc::pthread_cond_t; 2],
    turn: UnsafeCell<*mut u64>,
}

// SAFETY: made to be used by several threads, and never unmapped; the turn is reached under the
// mutex.
unsafe impl Sync for Posix {}

fn room<const WORDS: usize>() -> *mut u64 {
    let room: &'static [AtomicU64; WORDS] = group::plain_shared();
    room.as_ptr().cast_mut().cast()
}

impl Posix {
    fn new() -> Self {
        let mutex = room::<8>().cast::<libc::pthread_mutex_t>();
        let changed = [(); 2].map(|()| room::<8>().cast::<libc::pthread_cond_t>());
        let mut attributes = MaybeUninit::<libc::pthread_mutexattr_t>::uninit();
        let attributes = attributes.as_mut_ptr();
        // SAFETY: makes attributes in a live variable.
        let mut failed = unsafe { libc::pthread_mutexattr_init(attributes) };
        // SAFETY: changes attributes that have been made.
        failed |=
            unsafe { libc::pthread_mutexattr_setpshared(attributes, libc::PTHREAD_PROCESS_SHARED) };
        // SAFETY: makes a mutex in fresh memory that has room for it, aligned to a page.
        failed |= unsafe { libc::pthread_mutex_init(mutex, attributes) };
        let mut attributes = MaybeUninit::<libc::pthread_condattr_t>::uninit();
        let attributes = attributes.as_mut_ptr();
        // SAFETY: makes attributes in a live variable.
        failed |= unsafe { libc::pthread_condattr_init(attributes) };
        // SAFETY: changes attributes that have been made.
        failed |=
            unsafe { libc::pthread_condattr_setpshared(attributes, libc::PTHREAD_PROCESS_SHARED) };
        for condition in changed {
            // SAFETY: as for the mutex.
            failed |= unsafe { libc::pthread_cond_init(condition, attributes) };
        }
        assert_eq!(failed, 0, "process-shared");
        Posix { mutex, changed, turn: UnsafeCell::new(room::<1>()) }
    }

    fn locked(&self, act: impl FnOnce(*mut u64)) {
        // SAFETY: made by `new`.
        unsafe { libc::pthread_mutex_lock(self.mutex) };
        // SAFETY: the pointer itself is never written.
        act(unsafe { *self.turn.get() });
        // SAFETY: taken above.
        unsafe { libc::pthread_mutex_unlock(self.mutex) };
    }

    fn set(&self, i: usize) {
        // SAFETY: under the mutex.
        self.locked(|turn| unsafe { *turn |= 1 << i });
        // SAFETY: made by `new`.
        unsafe { libc::pthread_cond_signal(self.changed[i]) };
    }

    fn wait(&self, i: usize) {
        self.locked(|turn| {
            loop {
                // SAFETY: under the mutex.
                let seen = unsafe { *turn };
                if seen & (1 << i) != 0 {
                    break;
                }
                // SAFETY: made by `new`, and the mutex is this thread's.
                unsafe { libc::pthread_cond_wait(self.changed[i], self.mutex) };
            }
            // SAFETY: under the mutex.
            unsafe { *turn &= !(1 << i) };
        });
    }
}

fn parked(contest: &mut Contest<'_>) {
    ours(contest, "outlast::Condition", Spin::Never);
    contest.counted("futex, no lock", |trips| {
        let words = [(); 2].map(|()| Futex::new());
        ping_pong(trips, || {}, |i| words[i].set(), |i| words[i].wait())
    });
    contest.bar(1.1);
    contest.counted("pthread_cond_t", |trips| {
        let posix = Posix::new();
        ping_pong(trips, || {}, |i| posix.set(i), |i| posix.wait(i))
    });
}

fn main() {
    let bench = Bench::from_args();
    bench.contest("condition, round trip, parked", TOGETHER, 21, parked);
    bench.contest("condition, round trip, hot", TOGETHER, 21, |contest| {
        ours(contest, "outlast::Condition", Spin::Adaptive);
    });

    // For comparison with earlier runs of the same program, which criterion keeps.
    let mut criterion = Criterion::default().configure_from_args();
    let condition = Shared::anonymous(Condition::new()).expect("memory");
    criterion.bench_function("Condition, notify_one, no waiter", |bencher| {
        bencher.iter(|| condition.notify_one());
    });
    criterion.final_summary();
}
