//! Work for several CPUs in an asynchronous program. The runtime stays responsive, and giving up a
//! task stops the process that runs it.
//!
//! ```text
//! cargo run --release --features pool --example async_workers
//! ```
//!
//! The program counts primes in worker processes, while a clock ticks on the runtime's only thread.
//! All workers are killed once, in the middle of a count, and the count is repeated. One task
//! panics. Another task never ends: the program cancels it after 200 ms, which kills its process.
use outlast::pool::{Pool, Task, TaskError};
use std::io::{self, Write as _};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::time::{interval, timeout};

/// The number of primes below 2,000,000.
const PRIMES: usize = 148_933;

static TICKS: AtomicU32 = AtomicU32::new(0);

/// Counts the primes in `from..to`.
fn primes((from, to): (u64, u64)) -> usize {
    let is_prime =
        |n: &u64| *n > 1 && (2..).take_while(|d| d * d <= *n).all(|d| !n.is_multiple_of(d));
    (from..to).filter(is_prime).count()
}

/// Counts primes slowly enough that the worker can be killed meanwhile.
fn slow_primes((from, to): (u64, u64)) -> usize {
    std::thread::sleep(Duration::from_millis(400));
    primes((from, to))
}

fn fails(number: u64) -> u64 {
    panic!("{number} is not what it should be")
}

fn for_ever((): ()) {
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn main() -> Result<(), outlast::Error> {
    outlast::process::init(); // before there are other threads, and so before the runtime
    let pool = Pool::builder().workers(2).build()?;
    tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(run(&pool))?;
    pool.join();
    Ok(())
}

async fn run(pool: &Pool) -> Result<(), outlast::Error> {
    let clock = tokio::spawn(async {
        let mut interval = interval(Duration::from_millis(10));
        loop {
            interval.tick().await;
            TICKS.fetch_add(1, Relaxed);
        }
    });

    let start = Instant::now();
    let parts: Vec<Task<usize>> =
        (0..20).map(|i| pool.submit(primes, (i * 100_000, (i + 1) * 100_000))).collect();
    let mut sum = 0;
    for part in parts {
        sum += part.await?;
    }
    assert_eq!(sum, PRIMES);
    say(format_args!("{sum} primes below 2,000,000, in {:.2} s", start.elapsed().as_secs_f64()))?;

    let slow = pool.submit(slow_primes, (0, 1_000));
    while pool.stats().running == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for pid in pool.pids() {
        kill(pid)?;
    }
    say(format_args!("{} primes below 1,000, after a crash", slow.await?))?;

    match pool.submit(fails, 41).await {
        Err(TaskError::Panicked { message, location, .. }) => {
            say(format_args!("a panic, at {location}: {message}"))?;
        }
        other => say(format_args!("no panic: {other:?}"))?,
    }

    let mut endless = pool.submit(for_ever, ());
    if timeout(Duration::from_millis(200), &mut endless).await.is_err() {
        let cancelled = endless.cancel();
        say(format_args!("given up: {cancelled}; {:?}", endless.await))?;
    }

    clock.abort();
    let seconds = start.elapsed().as_secs_f64();
    say(format_args!(
        "meanwhile the runtime ticked {} times in {seconds:.2} s; workers lost: {}",
        TICKS.load(Relaxed),
        pool.stats().lost
    ))?;
    Ok(())
}

fn say(what: std::fmt::Arguments<'_>) -> io::Result<()> {
    writeln!(io::stdout(), "{what}")
}

/// Kills a process, as an operator or the OOM killer would.
fn kill(pid: u32) -> io::Result<()> {
    std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().map(drop)
}
