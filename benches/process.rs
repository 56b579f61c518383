//! The cost of starting two processes that each run a function and return its value, beside what
//! the system offers.
use criterion::Criterion;
use outlast::process::{self, Process};
use std::process::Command;
use std::time::Duration;

fn double(x: u64) -> u64 {
    x * 2
}

fn start(c: &mut Criterion) {
    let mut group = c.benchmark_group("process");
    group.sample_size(50).measurement_time(Duration::from_secs(2));
    group.bench_function("spawn 2, all there", |b| {
        b.iter(|| {
            let processes = [0, 1].map(|x| Process::spawn(double, x).unwrap());
            drop(processes);
        });
    });
    group.bench_function("spawn 2 and join", |b| {
        b.iter(|| {
            let processes = [0, 1].map(|x| Process::spawn(double, x).unwrap());
            processes.map(|process| process.join().unwrap())
        });
    });
    group.bench_function("1 MiB there and back", |b| {
        fn same(text: String) -> String {
            text
        }
        let text = "x".repeat(1 << 20);
        b.iter(|| Process::spawn(same, text.clone()).unwrap().join().unwrap().len());
    });
    group.bench_function("std::process::Command, 2 of /bin/true", |b| {
        b.iter(|| {
            let children = [0, 1].map(|_| Command::new("/bin/true").spawn().unwrap());
            children.map(|mut child| child.wait().unwrap())
        });
    });
    group.bench_function("std::thread::spawn 2 and join", |b| {
        b.iter(|| [0, 1].map(|x| std::thread::spawn(move || double(x))).map(|t| t.join().unwrap()));
    });
    group.finish();
}

fn main() {
    process::init();
    let mut criterion = Criterion::default().configure_from_args();
    start(&mut criterion);
    criterion.final_summary();
}
