//! The cost of a lock: alone, inside another one, and contended, beside `std::sync::Mutex` and the
//! two process-shared mutexes of POSIX.
mod support;

use criterion::Criterion;
use outlast::{Lock, Shared};
use std::sync::Mutex;
use support::pthread::{Kind, Pthread};
use support::scenes::{World, contend};
use support::{ALONE, Bench, Contest, TOGETHER};

fn shared_lock() -> Shared<Lock<u64>> {
    Shared::anonymous(Lock::new(0)).expect("memory")
}

fn alone(contest: &mut Contest<'_>) {
    let ours = shared_lock();
    contest.alone("outlast::Lock", move |n| {
        let lock: &Lock<u64> = &ours;
        for _ in 0..n {
            *lock.lock().expect("no owner died") += 1;
        }
    });
    let std = Mutex::new(0_u64);
    contest.alone("std::sync::Mutex", move |n| {
        for _ in 0..n {
            *std.lock().expect("no owner panicked") += 1;
        }
    });
    contest.bar(1.15);
    let robust = Pthread::new(Kind::Robust);
    contest.alone("pthread, process-shared, robust", move |n| {
        (0..n).for_each(|_| robust.with(|value| *value += 1));
    });
    contest.bar(0.6);
    let plain = Pthread::new(Kind::Plain);
    contest.alone("pthread, process-shared", move |n| {
        (0..n).for_each(|_| plain.with(|value| *value += 1));
    });
}

fn nested(contest: &mut Contest<'_>) {
    let (outer, inner) = (shared_lock(), shared_lock());
    contest.alone("outlast::Lock", move |n| {
        let (outer, inner): (&Lock<u64>, &Lock<u64>) = (&outer, &inner);
        for _ in 0..n {
            let mut first = outer.lock().expect("no owner died");
            *inner.lock().expect("no owner died") += 1;
            *first += 1;
        }
    });
    let (outer, inner) = (Mutex::new(0_u64), Mutex::new(0_u64));
    contest.alone("std::sync::Mutex", move |n| {
        for _ in 0..n {
            let mut first = outer.lock().expect("no owner panicked");
            *inner.lock().expect("no owner panicked") += 1;
            *first += 1;
        }
    });
    for (name, kind) in [
        ("pthread, process-shared, robust", Kind::Robust),
        ("pthread, process-shared", Kind::Plain),
    ] {
        let (outer, inner) = (Pthread::new(kind), Pthread::new(kind));
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
        let value = || ours.lock().expect("no owner died");
        let count = || core::mem::take(&mut *value());
        contend(World::Processes, workers, effort, || *value() += 1, count)
    });
    for (name, kind) in [
        ("pthread, process-shared, robust", Kind::Robust),
        ("pthread, process-shared", Kind::Plain),
    ] {
        let mutex = Pthread::new(kind);
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
        let value = || mutex.lock().expect("no owner panicked");
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
        bencher.iter(|| *lock.lock().expect("no owner died") += 1);
    });
    criterion.final_summary();
}
