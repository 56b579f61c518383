//! The cost of a log record for its writer, beside a write to a pipe and a line to `/dev/null`.
mod support;

use criterion::Criterion;
use outlast::Shared;
use outlast::log::{FixedJournal, Level};
use std::fs::OpenOptions;
use std::io::{Read as _, Write as _};
use support::{ALONE, Bench, Contest};

const MESSAGE: &str = "the disk is 93 % full: 4711 files";

type Journal = FixedJournal<1_024>;

fn journal() -> Shared<Journal> {
    outlast::Options::new().anonymous_with(|_: &Journal| {}).expect("memory")
}

fn alone(contest: &mut Contest<'_>) {
    let shared = journal();
    contest.alone("outlast::log::Journal: write", move |n| {
        for _ in 0..n {
            shared.write(Level::Info, "bench", MESSAGE).expect("a peer");
        }
    });
    let shared = journal();
    contest.alone("outlast::log::Journal: write_args, a number", move |n| {
        for i in 0..n {
            let message = format_args!("the disk is 93 % full: {i} files");
            shared.write_args(Level::Info, "bench", message).expect("a peer");
        }
    });
    let shared = journal();
    contest.alone("outlast::log::Journal: write, and read it", move |n| {
        let mut records = shared.records();
        for _ in 0..n {
            shared.write(Level::Info, "bench", MESSAGE).expect("a peer");
            records.try_next().expect("a record");
        }
    });
    contest.alone("the time alone", |n| {
        for _ in 0..n {
            std::hint::black_box(std::time::SystemTime::now());
        }
    });
    let (mut reader, mut writer) = std::io::pipe().expect("a pipe");
    let line = format!("INFO bench: {MESSAGE}\n");
    contest.alone("pipe: write, and read it", move |n| {
        let mut room = [0; 256];
        for _ in 0..n {
            writer.write_all(line.as_bytes()).expect("a reader");
            assert_eq!(reader.read(&mut room).expect("a line"), line.len());
        }
    });
    let mut null = OpenOptions::new().write(true).open("/dev/null").expect("/dev/null");
    contest.alone("/dev/null: a formatted line", move |n| {
        for _ in 0..n {
            // In one call, as the lock of `stderr` and its buffer would be more.
            let line = format!("INFO {} bench: {MESSAGE}\n", std::process::id());
            null.write_all(line.as_bytes()).expect("/dev/null");
        }
    });
}

fn main() {
    let bench = Bench::from_args();
    bench.contest("log alone", ALONE, 61, alone);

    // For comparison with earlier runs of the same program, which criterion keeps.
    let mut criterion = Criterion::default().configure_from_args();
    let shared = journal();
    criterion.bench_function("Journal, write", |bencher| {
        bencher.iter(|| shared.write(Level::Info, "bench", MESSAGE));
    });
    criterion.final_summary();
}
