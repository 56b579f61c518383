//! The cost of counting a latch down, and of passing it when it is open, beside a latch for threads
//! made from the standard library.
mod support;

use core::hint::black_box;
use outlast::{Latch, Shared};
use std::sync::{Condvar, Mutex};
use support::{ALONE, Bench, Contest};

/// A latch made from the standard library.
struct Counter {
    left: Mutex<u64>,
    open: Condvar,
}

impl Counter {
    fn new(left: u64) -> Self {
        Counter { left: Mutex::new(left), open: Condvar::new() }
    }

    fn count_down(&self) {
        let mut left = self.left.lock().expect("no owner panicked");
        *left -= 1;
        if *left == 0 {
            self.open.notify_all();
        }
    }

    fn wait(&self) {
        let left = self.left.lock().expect("no owner panicked");
        drop(self.open.wait_while(left, |left| *left > 0).expect("no owner panicked"));
    }
}

/// It does not open: there is more to count down than is done here.
fn count_down(contest: &mut Contest<'_>) {
    let ours = Shared::anonymous(Latch::new(u32::MAX)).expect("memory");
    contest.alone("outlast::Latch", move |n| {
        let latch: &Latch = &ours;
        (0..n).for_each(|_| latch.count_down(1));
        assert!(!latch.is_open());
    });
    let threads = Counter::new(u64::MAX);
    contest.alone("Mutex and Condvar (threads)", move |n| {
        (0..n).for_each(|_| threads.count_down());
    });
}

fn pass(contest: &mut Contest<'_>) {
    let ours = Shared::anonymous(Latch::new(1)).expect("memory");
    ours.count_down(1);
    contest.alone("outlast::Latch", move |n| {
        for _ in 0..n {
            black_box::<&Latch>(&ours).wait().expect("it is open");
        }
    });
    let threads = Counter::new(1);
    threads.count_down();
    contest.alone("Mutex and Condvar (threads)", move |n| {
        (0..n).for_each(|_| threads.wait());
    });
}

fn main() {
    let bench = Bench::from_args();
    bench.contest("latch, count down", ALONE, 61, count_down);
    bench.contest("latch, pass when open", ALONE, 61, pass);
}
