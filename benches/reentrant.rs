//! The cost of a reentrant lock, alone and at a further level, beside that of POSIX.
mod support;

use outlast::{ReentrantLock, Shared};
use support::pthread::{Kind, Pthread};
use support::{ALONE, Bench, Contest};

fn alone(contest: &mut Contest<'_>) {
    let ours = Shared::anonymous(ReentrantLock::new(0_u64)).expect("memory");
    contest.alone("outlast::ReentrantLock", move |n| {
        let lock: &ReentrantLock<u64> = &ours;
        for _ in 0..n {
            lock.lock().expect("no owner died").update(|x| x + 1);
        }
    });
    let posix = Pthread::new(Kind::RobustRecursive);
    contest.alone("pthread, robust, recursive", move |n| {
        (0..n).for_each(|_| posix.with(|value| *value += 1));
    });
}

/// Each round at the first level, and once more at the second.
fn again(contest: &mut Contest<'_>) {
    let ours = Shared::anonymous(ReentrantLock::new(0_u64)).expect("memory");
    contest.alone("outlast::ReentrantLock", move |n| {
        let lock: &ReentrantLock<u64> = &ours;
        for _ in 0..n {
            let _outer = lock.lock().expect("no owner died");
            lock.lock().expect("no owner died").update(|x| x + 1);
        }
    });
    let posix = Pthread::new(Kind::RobustRecursive);
    contest.alone("pthread, robust, recursive", move |n| {
        (0..n).for_each(|_| posix.with(|_| posix.with(|value| *value += 1)));
    });
}

fn main() {
    let bench = Bench::from_args();
    bench.contest("reentrant lock alone", ALONE, 61, alone);
    bench.contest("reentrant lock, at two levels", ALONE, 61, again);
}
