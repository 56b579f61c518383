//! A pipeline: producer, two stages and consumer are processes, with bounded queues between them.
//!
//! ```text
//! cargo run --release --example pipeline -- [--items N] [--workers N] [--kill-one-every-ms MS]
//! ```
//!
//! Each of the two stages in the middle has as many processes as `--workers` says. All processes
//! meet at a barrier before they begin, and end when an event is set. A killed process is replaced,
//! and no item is lost: a stage acknowledges an item after the result is in the next queue. If the
//! stage is killed in between, its successor sends the result again. Items are numbered, so the
//! consumer takes each item once. The producer keeps its progress in shared memory.
mod crew;

use crew::{Crew, Options, TICK, report, role, this_program};
use outlast::{
    Barrier, CommandExt as _, Event, FixedQueue, Queue, RecvTimeoutError, SendTimeoutError, Shared,
};
use std::error::Error;
use std::process::ExitCode;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::time::{Duration, Instant};

/// The largest number of items.
const MOST: usize = 1 << 20;
/// How long a process waits before it checks whether it must stop.
const PATIENCE: Duration = Duration::from_millis(20);

outlast::plain! {
    /// The messages of the queues.
    struct Item { number: usize, value: u64 }
}

outlast::shared! {
    struct Pipeline {
        start: Barrier,
        stop: Event,
        items: AtomicUsize,
        /// The number of items that the producer has sent.
        produced: AtomicUsize,
        raw: FixedQueue<Item, 64>,
        hashed: FixedQueue<Item, 64>,
        folded: FixedQueue<Item, 64>,
        consumed: AtomicUsize,
        duplicates: AtomicU64,
    }
}

/// For each item that the consumer has got, its value plus one. 0 means that it has not come.
type Consumed = [AtomicU64; MOST];

/// Does the work of the first stage: a slow hash.
fn hash(item: Item) -> Item {
    let mix = |hash: u64, _| (hash ^ hash >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    Item { value: (0..200).fold(item.value + 1, mix), ..item }
}

/// Does the work of the second stage: halves the number of bits.
fn fold(item: Item) -> Item {
    Item { value: item.value >> 32 ^ item.value & 0xffff_ffff, ..item }
}

fn main() -> ExitCode {
    report(match role() {
        None => Options::parse(&[("--items", 200_000)]).map_err(Into::into).and_then(|o| run(&o)),
        Some(role) => work(&role).map(|()| String::new()),
    })
}

fn work(role: &str) -> Result<(), Box<dyn Error>> {
    let pipeline = Shared::<Pipeline>::inherited("pipeline")?;
    let (role, replacement) = role.split_once(' ').ok_or("no role")?;
    if replacement == "false" {
        pipeline.start.wait()?; // a replacement does not wait: its predecessor has
    }
    match role {
        "producer" => produce(&pipeline),
        "hash" => stage(&pipeline, &pipeline.raw, hash, &pipeline.hashed),
        "fold" => stage(&pipeline, &pipeline.hashed, fold, &pipeline.folded),
        _ => consume(&pipeline, &Shared::<Consumed>::inherited("consumed")?[..]),
    }
}

fn produce(pipeline: &Pipeline) -> Result<(), Box<dyn Error>> {
    let first = pipeline.produced.load(Acquire);
    for number in first..pipeline.items.load(Relaxed) {
        if !send(pipeline, &pipeline.raw, Item { number, value: number as u64 })? {
            return Ok(());
        }
        // If this process is killed before this line, the next producer sends the item again.
        pipeline.produced.store(number + 1, Release);
    }
    pipeline.stop.wait()?;
    Ok(())
}

fn stage(
    pipeline: &Pipeline,
    from: &Queue<Item>,
    work: fn(Item) -> Item,
    to: &Queue<Item>,
) -> Result<(), Box<dyn Error>> {
    while !pipeline.stop.is_set() {
        let item = match from.recv_ack_timeout(PATIENCE) {
            Ok(item) => item,
            Err(RecvTimeoutError::TimedOut) => continue,
            Err(error) => return Err(error.into()),
        };
        if !send(pipeline, to, work(*item))? {
            break;
        }
        item.ack()?; // its result is in the next queue
    }
    Ok(())
}

fn consume(pipeline: &Pipeline, consumed: &[AtomicU64]) -> Result<(), Box<dyn Error>> {
    // There is one consumer at a time. Its predecessor may have been killed before it had counted.
    let all = &consumed[..pipeline.items.load(Relaxed)];
    let mut count = all.iter().filter(|place| place.load(Acquire) != 0).count();
    loop {
        pipeline.consumed.store(count, Release);
        if pipeline.stop.is_set() {
            return Ok(());
        }
        let item = match pipeline.folded.recv_ack_timeout(PATIENCE) {
            Ok(item) => item,
            Err(RecvTimeoutError::TimedOut) => continue,
            Err(error) => return Err(error.into()),
        };
        let place = all.get(item.number).ok_or("a number that nobody produced")?;
        // This store is the commit: the item is consumed.
        match place.swap(item.value + 1, Release) {
            0 => count += 1,
            _ => drop(pipeline.duplicates.fetch_add(1, Relaxed)),
        }
        item.ack()?;
    }
}

/// Sends an item. Returns `false` if the pipeline has stopped meanwhile.
fn send(pipeline: &Pipeline, to: &Queue<Item>, item: Item) -> Result<bool, Box<dyn Error>> {
    loop {
        match to.send_timeout(item, PATIENCE) {
            Ok(()) => return Ok(true),
            Err(SendTimeoutError::TimedOut(_)) if !pipeline.stop.is_set() => {}
            Err(SendTimeoutError::TimedOut(_)) => return Ok(false),
            Err(_) => return Err("cannot send".into()),
        }
    }
}

fn run(options: &Options) -> Result<String, Box<dyn Error>> {
    let (items, workers) = (options.get("--items"), options.get("--workers"));
    if items > MOST {
        return Err(format!("--items: up to {MOST}").into());
    }
    // The producer, the consumer, `workers` processes for each of two stages, and this process.
    let parties = 2 + 2 * workers + 1;
    if parties > 64 {
        return Err("--workers: up to 30, as a barrier has parties in 64 processes".into());
    }
    let pipeline = Shared::anonymous(Pipeline {
        start: Barrier::new(u32::try_from(parties)?),
        stop: Event::manual(false),
        items: AtomicUsize::new(items),
        produced: AtomicUsize::new(0),
        raw: FixedQueue::new(),
        hashed: FixedQueue::new(),
        folded: FixedQueue::new(),
        consumed: AtomicUsize::new(0),
        duplicates: AtomicU64::new(0),
    })?;
    // In a segment of its own, and initialised in place: zero-filled memory is the right initial
    // value, and is too large for a stack.
    let consumed = outlast::Options::new().anonymous_with(|_: &Consumed| {})?;
    let (shared, shared_consumed) = (pipeline.clone(), consumed.clone());
    let mut crew = Crew::start(options, parties - 1, move |number, replacement| {
        let role = match number {
            0 => "producer",
            1 => "consumer",
            number if number % 2 == 0 => "hash",
            _ => "fold",
        };
        let mut command = this_program(&format!("{role} {replacement}"))?;
        command.share("pipeline", &shared).share("consumed", &shared_consumed);
        Ok(command)
    })?;
    pipeline.start.wait()?; // until all processes have started
    let start = Instant::now();
    loop {
        let done = pipeline.consumed.load(Acquire);
        if done == items {
            break;
        }
        crew.tend(done)?;
        std::thread::sleep(TICK);
    }
    let took = start.elapsed().as_secs_f64();
    pipeline.stop.set();
    let lost = crew.finish()?;

    for (number, place) in consumed[..items].iter().enumerate() {
        let expected = fold(hash(Item { number, value: number as u64 })).value;
        if place.load(Acquire) != expected + 1 {
            return Err(format!("item {number} is wrong").into());
        }
    }
    let duplicates = pipeline.duplicates.load(Relaxed);
    let rate = items as f64 / took;
    Ok(format!(
        "all {items} items came out once, in {took:.2} s ({rate:.0} a second), workers lost: {lost}, duplicates dropped: {duplicates}"
    ))
}
