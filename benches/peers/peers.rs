//! The primitives beside those of other crates.
#[path = "../support/mod.rs"]
mod support;

use crossbeam_queue::ArrayQueue;
use outlast::{Lock, Queue, Shared};
use support::{ALONE, Bench, Contest};

const CAPACITY: usize = 1_024;

fn lock_alone(contest: &mut Contest<'_>) {
    let ours = Shared::anonymous(Lock::new(0_u64)).expect("memory");
    contest.alone("outlast::Lock", move |n| {
        let lock: &Lock<u64> = &ours;
        for _ in 0..n {
            *lock.lock().expect("nobody died") += 1;
        }
    });
    let parking_lot = parking_lot::Mutex::new(0_u64);
    contest.alone("parking_lot::Mutex", move |n| {
        for _ in 0..n {
            *parking_lot.lock() += 1;
        }
    });
}

fn queue_alone(contest: &mut Contest<'_>) {
    let ours = Shared::<Queue<u64>>::anonymous_queue(CAPACITY).expect("memory");
    contest.alone("outlast::Queue", move |n| {
        let queue: &Queue<u64> = &ours;
        for i in 0..n {
            queue.send(i).expect("open");
            assert_eq!(queue.recv(), Ok(i));
        }
    });
    let crossbeam = ArrayQueue::new(CAPACITY);
    contest.alone("crossbeam ArrayQueue", move |n| {
        for i in 0..n {
            crossbeam.push(i).expect("room");
            assert_eq!(crossbeam.pop(), Some(i));
        }
    });
    contest.bar(1.6);
}

fn main() {
    let bench = Bench::from_args();
    bench.contest("queue alone: push and pop", ALONE, 61, queue_alone);
    bench.contest("lock alone", ALONE, 61, lock_alone);
}
