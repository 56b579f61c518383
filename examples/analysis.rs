//! Mean, variance and histogram of 100 million numbers in shared memory, by several processes.
//!
//! ```text
//! cargo run --release --example analysis -- [--millions 1|10|100] [--workers N] [--kill-one-every-ms MS]
//! ```
//!
//! The numbers lie in one array that all processes map. Nothing is copied, and no process has a
//! copy of its own. Jobs are chunks of the array. A worker stores the result of a chunk under the
//! chunk's number, and then acknowledges the job. If it is killed in between, another worker stores
//! the same result again. The chunks, and the order in which their results are combined, do not
//! depend on which worker computed which chunk. The result is therefore the same, bit by bit, as
//! that of one process alone.
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a number becomes the index of a bin; the outermost bins take the numbers beyond"
)]
mod crew;

use crew::{Crew, Options, TICK, report, role, this_program};
use outlast::{CommandExt as _, FixedQueue, Shared};
use std::error::Error;
use std::fmt::Write as _;
use std::process::ExitCode;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::time::Instant;

/// The number of numbers in a chunk.
const CHUNK: usize = 10_000;
/// The number of chunks of 100 million numbers.
const CHUNKS: usize = 10_000;
/// The number of bins of the histogram. They reach from -4 to 4, and the outermost bins include the
/// numbers beyond.
const BINS: usize = 16;

/// The numbers: `f64`, as bits. The length is part of the type, so no process can open the segment
/// with another length.
type Numbers<const N: usize> = [AtomicU64; N];

outlast::shared! {
    struct Plan {
        jobs: FixedQueue<usize, 64>,
        results: [Cell; CHUNKS],
    }

    /// The result of a chunk. It may be written several times, with the same content.
    struct Cell { mean: AtomicU64, squares: AtomicU64, bins: [AtomicU64; BINS], done: AtomicU64 }
}

/// Count, mean, sum of squared distances from the mean, and histogram.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Summary {
    count: f64,
    mean: f64,
    squares: f64,
    bins: [u64; BINS],
}

impl Summary {
    const EMPTY: Self = Summary { count: 0.0, mean: 0.0, squares: 0.0, bins: [0; BINS] };

    fn of(chunk: &[AtomicU64]) -> Self {
        let numbers = || chunk.iter().map(|bits| f64::from_bits(bits.load(Relaxed)));
        let mut summary = Summary { count: chunk.len() as f64, ..Self::EMPTY };
        summary.mean = numbers().sum::<f64>() / summary.count;
        for number in numbers() {
            summary.squares += (number - summary.mean).powi(2);
            let bin = (number + 4.0) * (BINS as f64 / 8.0); // a cast saturates
            summary.bins[(bin as usize).min(BINS - 1)] += 1;
        }
        summary
    }

    /// Combines two summaries, by the formula of Chan, Golub and LeVeque.
    fn and(self, other: Self) -> Self {
        let count = self.count + other.count;
        let apart = other.mean - self.mean;
        let mean = self.mean + apart * other.count / count;
        let between = apart * apart * self.count * other.count / count;
        let squares = self.squares + other.squares + between;
        let bins = std::array::from_fn(|i| self.bins[i] + other.bins[i]);
        Summary { count, mean, squares, bins }
    }

    fn store(&self, cell: &Cell) {
        cell.mean.store(self.mean.to_bits(), Relaxed);
        cell.squares.store(self.squares.to_bits(), Relaxed);
        cell.bins.iter().zip(self.bins).for_each(|(to, bin)| to.store(bin, Relaxed));
        cell.done.store(1, Release);
    }

    fn load(cell: &Cell) -> Option<Self> {
        let number = |bits: &AtomicU64| f64::from_bits(bits.load(Relaxed));
        (cell.done.load(Acquire) == 1).then(|| Summary {
            count: CHUNK as f64,
            mean: number(&cell.mean),
            squares: number(&cell.squares),
            bins: std::array::from_fn(|i| cell.bins[i].load(Relaxed)),
        })
    }
}

fn main() -> ExitCode {
    report(match role() {
        None => Options::parse(&[("--millions", 100)]).map_err(Into::into).and_then(|options| {
            match options.get("--millions") {
                1 => analyse::<1_000_000>(&options),
                10 => analyse::<10_000_000>(&options),
                100 => analyse::<100_000_000>(&options),
                _ => Err("--millions: 1, 10 or 100".into()),
            }
        }),
        Some(millions) => match millions.as_str() {
            "1" => work::<1_000_000>(),
            "10" => work::<10_000_000>(),
            _ => work::<100_000_000>(),
        },
    })
}

fn work<const N: usize>() -> Result<String, Box<dyn Error>> {
    let plan = Shared::<Plan>::inherited("plan")?;
    let numbers = Shared::<Numbers<N>>::inherited("numbers")?;
    while let Ok(job) = plan.jobs.recv_ack() {
        let chunk = &numbers[*job * CHUNK..][..CHUNK];
        Summary::of(chunk).store(&plan.results[*job]);
        job.ack()?; // the result is stored, so this process may die from here on
    }
    Ok(String::new())
}

fn analyse<const N: usize>(options: &Options) -> Result<String, Box<dyn Error>> {
    // Initialised in place: the array would not fit on a stack. Memory takes no room before it is
    // written.
    let numbers = outlast::Options::new().anonymous_with(fill::<N>)?;
    let plan = outlast::Options::new().anonymous_with(|_: &Plan| {})?;

    // A second mapping, as each worker has one: the first access to memory through a mapping costs
    // about as much as the addition.
    let fresh = Shared::<Numbers<N>>::from_fd(numbers.try_clone_fd()?)?;
    let start = Instant::now();
    let alone = fresh.chunks(CHUNK).map(Summary::of).fold(Summary::EMPTY, Summary::and);
    let alone_took = start.elapsed().as_secs_f64();

    let (shared_plan, shared_numbers) = (plan.clone(), numbers.clone());
    let mut crew = Crew::start(options, options.get("--workers"), move |_, _| {
        let mut command = this_program(&(N / 1_000_000).to_string())?;
        command.share("plan", &shared_plan).share("numbers", &shared_numbers);
        Ok(command)
    })?;
    let start = Instant::now();
    let mut next = 0;
    while next < N / CHUNK || !plan.jobs.join_timeout(TICK)? {
        if next < N / CHUNK && plan.jobs.send_timeout(next, TICK).is_ok() {
            next += 1;
        }
        crew.tend(next)?;
    }
    let took = start.elapsed().as_secs_f64();
    // Closed only now: a job that a dead worker leaves needs another worker.
    plan.jobs.close();
    let lost = crew.finish()?;

    let results = plan.results[..N / CHUNK].iter().map(Summary::load);
    let together = results.collect::<Option<Vec<_>>>().ok_or("a chunk has no result")?;
    let together = together.into_iter().fold(Summary::EMPTY, Summary::and);
    if together != alone {
        return Err(format!("{together:?}\nis not {alone:?}").into());
    }
    let mut text = String::new();
    let most = together.bins.iter().copied().max().unwrap_or(1).max(1);
    for (i, &bin) in together.bins.iter().enumerate() {
        let from = i as f64 * 8.0 / BINS as f64 - 4.0;
        writeln!(text, "{from:5.1} {bin:9} {:#<1$}", "", (bin * 50 / most) as usize)?;
    }
    let (mean, variance) = (together.mean, together.squares / together.count);
    writeln!(
        text,
        "mean {mean:+.9}, variance {variance:.9}, of {N} numbers: the same bits as alone"
    )?;
    let speed_up = alone_took / took;
    write!(
        text,
        "{alone_took:.3} s alone, {took:.3} s by workers ({speed_up:.2} times as fast), workers lost: {lost}"
    )?;
    Ok(text)
}

/// Writes numbers with approximately a normal distribution: sums of twelve random ones.
fn fill<const N: usize>(numbers: &Numbers<N>) {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for number in numbers {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        // Twelve pieces of five bits, each with a mean of 15.5.
        let sum: u64 = (0..12).map(|i| random >> (5 * i) & 31).sum();
        number.store(((sum as f64 - 186.0) / 32.0).to_bits(), Relaxed);
    }
}
