//! The cost of reading a value that was made once, and of making it, beside the standard library.
mod support;

use core::hint::black_box;
use outlast::{OnceCell, Options, Shared};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use support::{ALONE, Bench, Contest, Outcome};

const CELLS: usize = 1_024;

outlast::shared! {
    struct Cells { cells: [OnceCell<u64>; CELLS] }
}

fn made(contest: &mut Contest<'_>) {
    let ours = Shared::anonymous(OnceCell::new()).expect("memory");
    contest.alone("outlast::OnceCell", move |n| {
        let cell: &OnceCell<u64> = &ours;
        for _ in 0..n {
            black_box(*black_box(cell).get_or_init(|| 1).expect("no owner died"));
        }
    });
    let std = OnceLock::new();
    contest.alone("std::sync::OnceLock (threads)", move |n| {
        for _ in 0..n {
            black_box(*black_box(&std).get_or_init(|| 1_u64));
        }
    });
}

/// So many cells are filled; those of each thousand are made outside of the time taken.
fn fill<C>(n: u64, cells: impl Fn() -> C, fill: impl Fn(&C, usize)) -> Outcome {
    let (mut time, mut left) = (Duration::ZERO, usize::try_from(n).expect("it fits"));
    while left > 0 {
        let (fresh, count) = (cells(), left.min(CELLS));
        let began = Instant::now();
        (0..count).for_each(|i| fill(&fresh, i));
        time += began.elapsed();
        left -= count;
    }
    Outcome { operations: n, time, disturbed: false }
}

fn make(contest: &mut Contest<'_>) {
    contest.counted("outlast::OnceCell", |n| {
        let cells = || Options::new().anonymous_with(|_: &Cells| {}).expect("memory");
        fill(n, cells, |cells: &Shared<Cells>, i| {
            black_box(cells.cells[i].get_or_init(|| 1).expect("no owner died"));
        })
    });
    contest.counted("std::sync::OnceLock (threads)", |n| {
        let cells = || (0..CELLS).map(|_| OnceLock::new()).collect();
        fill(n, cells, |cells: &Vec<OnceLock<u64>>, i| {
            black_box(cells[i].get_or_init(|| 1));
        })
    });
}

fn main() {
    let bench = Bench::from_args();
    bench.contest("once: a value that is there", ALONE, 61, made);
    bench.contest("once: a value that is made", ALONE, 61, make);
}
