//! What a queue costs.
mod support;

use criterion::Criterion;
use outlast::{Queue, Shared};
use support::{ALONE, Bench, Contest};

const CAPACITY: usize = 1_024;

fn queue() -> Shared<Queue<u64>> {
    Shared::<Queue<u64>>::anonymous_queue(CAPACITY).expect("memory")
}

fn alone(contest: &mut Contest<'_>) {
    let ours = queue();
    contest.alone("outlast::Queue", move |n| {
        let queue: &Queue<u64> = &ours;
        for i in 0..n {
            queue.send(i).expect("open");
            assert_eq!(queue.recv(), Ok(i));
        }
    });
}

fn main() {
    let bench = Bench::from_args();
    bench.contest("queue alone: send and recv", ALONE, 61, alone);
    let mut criterion = Criterion::default().configure_from_args();
    let queue = queue();
    criterion.bench_function("Queue, alone", |bencher| {
        bencher.iter(|| (queue.send(1), queue.recv()));
    });
    criterion.final_summary();
}
