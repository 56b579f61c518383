//! The cost of a task: of many at a time, of one message each, and of one alone that is waited for.
use criterion::{Criterion, Throughput};
use outlast::pool::Pool;
use std::time::{Duration, Instant};

fn trivial(x: u64) -> u64 {
    x + 1
}

/// About a millisecond of work.
fn busy(x: u64) -> u64 {
    let end = Instant::now() + Duration::from_millis(1);
    while Instant::now() < end {
        std::hint::spin_loop();
    }
    x
}

fn many(c: &mut Criterion, pool: &Pool) {
    const TASKS: u64 = 1_000_000;
    let mut group = c.benchmark_group("pool, many");
    group.sample_size(10).throughput(Throughput::Elements(TASKS));
    group.bench_function("map", |b| {
        b.iter(|| pool.map(trivial, 0..TASKS).map(Result::unwrap).sum::<u64>());
    });
    group.bench_function("map_unordered", |b| {
        b.iter(|| pool.map_unordered(trivial, 0..TASKS).map(Result::unwrap).sum::<u64>());
    });
    group.throughput(Throughput::Elements(100_000));
    group.bench_function("submit, then join each", |b| {
        b.iter(|| {
            let tasks: Vec<_> = (0..100_000).map(|x| pool.submit(trivial, x)).collect();
            tasks.iter().map(|task| task.join().unwrap()).sum::<u64>()
        });
    });
    group.throughput(Throughput::Elements(200));
    group.bench_function("map of 1 ms each", |b| {
        b.iter(|| pool.map(busy, 0..200).map(Result::unwrap).sum::<u64>());
    });
    group.finish();
}

fn one(c: &mut Criterion, pool: &Pool) {
    let mut group = c.benchmark_group("pool, one");
    group.measurement_time(Duration::from_secs(3));
    group.bench_function("apply, hot", |b| b.iter(|| pool.apply(trivial, 1).unwrap()));
    group.bench_function("apply, parked", |b| {
        b.iter_custom(|times| {
            let mut all = Duration::ZERO;
            for _ in 0..times {
                std::thread::sleep(Duration::from_millis(2));
                let start = Instant::now();
                pool.apply(trivial, 1).unwrap();
                all += start.elapsed();
            }
            all
        });
    });
    group.sample_size(10);
    group.bench_function("apply, 1 MiB there and back", |b| {
        fn same(text: String) -> String {
            text
        }
        let text = "x".repeat(1 << 20);
        b.iter(|| pool.apply(same, text.clone()).unwrap().len());
    });
    group.bench_function("a pool of 2, started and ended", |b| {
        b.iter(|| Pool::builder().workers(2).build().unwrap());
    });
    group.finish();
}

fn main() {
    outlast::process::init();
    let mut criterion = Criterion::default().configure_from_args();
    let pool = Pool::builder().workers(2).build().expect("a pool");
    many(&mut criterion, &pool);
    one(&mut criterion, &pool);
    criterion.final_summary();
}
