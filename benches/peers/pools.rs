//! Pools of processes beside Python's, and beside rayon's threads, which need neither messages nor
//! processes: the floor. Without a `python3` its rivals are left out.
#[path = "../support/mod.rs"]
mod support;

use core::cell::RefCell;
use core::hint::black_box;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::Relaxed;
use outlast::pool::Pool;
use rayon::prelude::*;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};
use support::futex::Futex;
use support::{Bench, Contest, Outcome, TOGETHER, group, say};

const WORKERS: usize = 2;

/// So long between two calls that all workers sleep.
const PAUSE: Duration = Duration::from_millis(2);

/// A slice, without its pauses: short, since how cold a machine's caches are changes within the
/// second.
const MOSTLY_PAUSE: Duration = Duration::from_micros(500);

/// Answers lines of "what, how many times" with the nanoseconds that took.
const SCRIPT: &str = "
import concurrent.futures as cf, multiprocessing as mp, sys, time
def f(x): return x + 1
def calls(n, call, pause):
    total = 0
    for _ in range(n):
        if pause: time.sleep(pause)
        began = time.perf_counter_ns()
        call()
        total += time.perf_counter_ns() - began
    return total
def started(n, make, use):
    total = 0
    for _ in range(n):
        began = time.perf_counter_ns()
        with make(2) as made:
            use(made)
            total += time.perf_counter_ns() - began
    return total
def starts_pool():
    with mp.Pool(2) as pool: pool.map(f, range(2), 1)
def starts_executor():
    with cf.ProcessPoolExecutor(2) as executor: list(executor.map(f, range(2)))
pool, executor = mp.Pool(2), cf.ProcessPoolExecutor(2)
one = lambda: pool.apply(f, (1,))
other = lambda: executor.submit(f, 1).result()
what = {
    'pool.map': lambda n: calls(1, lambda: pool.map(f, range(n)), 0),
    'executor.map': lambda n: calls(
        1, lambda: list(executor.map(f, range(n), chunksize=max(1, n // 8))), 0),
    'pool.imap': lambda n: calls(1, lambda: list(pool.imap(f, range(n))), 0),
    'executor.submit': lambda n: calls(1, lambda: [t.result() for t in [executor.submit(f, i) for i in range(n)]], 0),
    'pool.apply': lambda n: calls(n, one, 0),
    'executor.submit, result': lambda n: calls(n, other, 0),
    'pool.apply, parked': lambda n: calls(n, one, 0.002),
    'executor.submit, result, parked': lambda n: calls(n, other, 0.002),
    'Pool(2), until all work': lambda n: started(n, mp.Pool, lambda pool: pool.map(f, range(2), 1)),
    'ProcessPoolExecutor(2), until all work': lambda n: started(n, cf.ProcessPoolExecutor, lambda executor: list(executor.map(f, range(2)))),
    'Pool(2)': lambda n: calls(n, starts_pool, 0),
    'ProcessPoolExecutor(2)': lambda n: calls(n, starts_executor, 0),
}
for line in sys.stdin:
    name, _, n = line.strip().rpartition(' ')
    print(what[name](int(n)), flush=True)
";

struct Python {
    child: Child,
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
}

impl Python {
    fn start() -> Option<RefCell<Self>> {
        let mut command = Command::new("python3");
        command.args(["-c", SCRIPT]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().ok()?;
        let (to, from) = (child.stdin.take(), BufReader::new(child.stdout.take()?));
        Some(RefCell::new(Python { child, to, from }))
    }

    fn time(&mut self, what: &str, times: u64) -> Outcome {
        let to = self.to.as_mut().expect("open until the drop");
        writeln!(to, "{what} {times}").expect("it runs");
        let mut line = String::new();
        self.from.read_line(&mut line).expect("it answers");
        let nanoseconds = line.trim().parse().expect("a number");
        outcome(times, Duration::from_nanos(nanoseconds))
    }
}

impl Drop for Python {
    /// It ends by itself, and its workers with it, when nothing more is asked.
    fn drop(&mut self) {
        self.to = None;
        self.child.wait().ok();
    }
}

fn outcome(operations: u64, time: Duration) -> Outcome {
    Outcome { operations, time, disturbed: false }
}

fn timed(operations: u64, work: impl FnOnce()) -> Outcome {
    let began = Instant::now();
    work();
    outcome(operations, began.elapsed())
}

/// So many calls one after the other, with a pause before each that does not count.
fn parked(times: u64, mut call: impl FnMut()) -> Outcome {
    let mut time = Duration::ZERO;
    for _ in 0..times {
        std::thread::sleep(PAUSE);
        time += timed(1, &mut call).time;
    }
    outcome(times, time)
}

/// A process that answers, as long as the pool lives: a fork in between would cost both.
struct Echo {
    there: Futex,
    back: Futex,
    over: &'static AtomicU32,
    child: libc::pid_t,
}

impl Echo {
    fn start() -> Self {
        let (there, back) = (Futex::new(), Futex::new());
        let over: &AtomicU32 = group::plain_shared();
        let child = group::fork(|| {
            while over.load(Relaxed) == 0 {
                there.wait();
                back.set();
            }
        });
        Echo { there, back, over, child }
    }

    fn call(&self) {
        self.there.set();
        self.back.wait();
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.over.store(1, Relaxed);
        self.call();
        assert!(group::wait(self.child));
    }
}

fn trivial(x: u64) -> u64 {
    x + 1
}

/// All rivals.
struct Field {
    pool: Pool,
    threads: rayon::ThreadPool,
    python: Option<RefCell<Python>>,
}

impl Field {
    /// Enters those of Python's that do the same.
    fn enter_python<'a>(&'a self, contest: &mut Contest<'a>, whats: &[&'static str]) {
        let Some(python) = &self.python else { return };
        for &what in whats {
            let name = format!("python {what}");
            contest.counted(&name, move |n| python.borrow_mut().time(what, n));
        }
    }

    fn many<'a>(&'a self, contest: &mut Contest<'a>) {
        contest.counted("outlast Pool::map", |n| {
            timed(n, || {
                let sum: u64 = self.pool.map(trivial, 0..n).map(|x| x.expect("no panic")).sum();
                assert_eq!(sum, (1..=n).sum());
            })
        });
        contest.limit(Duration::from_nanos(200));
        self.enter_python(contest, &["pool.map", "executor.map"]);
        contest.counted("rayon (threads)", |n| {
            timed(n, || {
                let work = || (0..n).into_par_iter().map(|x| black_box(trivial(x))).sum();
                let sum: u64 = self.threads.install(work);
                assert_eq!(sum, (1..=n).sum());
            })
        });
    }

    fn each<'a>(&'a self, contest: &mut Contest<'a>) {
        contest.counted("outlast Pool::submit, join", |n| {
            timed(n, || {
                let tasks: Vec<_> = (0..n).map(|x| self.pool.submit(trivial, x)).collect();
                let sum: u64 = tasks.iter().map(|task| task.join().expect("no panic")).sum();
                assert_eq!(sum, (1..=n).sum());
            })
        });
        contest.limit(Duration::from_nanos(3_333));
        self.enter_python(contest, &["pool.imap", "executor.submit"]);
        contest.counted("rayon, spawn each (threads)", |n| {
            timed(n, || {
                self.threads.scope(|scope| {
                    (0..n).for_each(|x| scope.spawn(move |_| _ = black_box(trivial(x))));
                });
            })
        });
    }

    fn hot<'a>(&'a self, contest: &mut Contest<'a>) {
        contest.counted("outlast Pool::apply", |n| {
            let call = || assert_eq!(self.pool.apply(trivial, 1).expect("no panic"), 2);
            timed(n, || (0..n).for_each(|_| call()))
        });
        contest.limit(Duration::from_micros(5));
        self.enter_python(contest, &["pool.apply", "executor.submit, result"]);
        contest.counted("rayon, install (threads)", |n| {
            timed(n, || (0..n).for_each(|x| _ = self.threads.install(|| black_box(trivial(x)))))
        });
    }

    fn parked<'a>(&'a self, contest: &mut Contest<'a>) {
        contest.counted("outlast Pool::apply", |n| {
            parked(n, || assert_eq!(self.pool.apply(trivial, 1).expect("no panic"), 2))
        });
        contest.limit(Duration::from_micros(60));
        let echo = Echo::start();
        contest.counted("futex, there and back", move |n| parked(n, || echo.call()));
        contest.bar(1.4);
        self.enter_python(contest, &["pool.apply, parked", "executor.submit, result, parked"]);
    }

    /// Started, and ended outside of the time taken.
    fn start<'a>(&'a self, contest: &mut Contest<'a>) {
        contest.counted("outlast Pool of 2, until all work", |n| {
            let mut time = Duration::ZERO;
            for _ in 0..n {
                let began = Instant::now();
                let pool = Pool::builder().workers(WORKERS).build().expect("processes");
                assert_eq!(pool.map(trivial, 0..2).count(), 2);
                time += began.elapsed();
                drop(pool);
            }
            outcome(n, time)
        });
        contest.limit(Duration::from_millis(2));
        self.enter_python(
            contest,
            &["Pool(2), until all work", "ProcessPoolExecutor(2), until all work"],
        );
    }

    /// Started, used by each worker, and ended.
    fn start_and_end<'a>(&'a self, contest: &mut Contest<'a>) {
        contest.counted("outlast Pool of 2", |n| {
            timed(n, || {
                for _ in 0..n {
                    let pool = Pool::builder().workers(WORKERS).build().expect("processes");
                    assert_eq!(pool.map(trivial, 0..2).count(), 2);
                }
            })
        });
        self.enter_python(contest, &["Pool(2)", "ProcessPoolExecutor(2)"]);
    }
}

fn main() {
    outlast::process::init();
    let bench = Bench::from_args();
    let field = Field {
        pool: Pool::builder().workers(WORKERS).build().expect("processes"),
        threads: rayon::ThreadPoolBuilder::new().num_threads(WORKERS).build().expect("threads"),
        python: Python::start(),
    };
    if field.python.is_none() {
        say("no python3: its pools are left out\n");
    }
    bench.contest("pool, many trivial tasks", TOGETHER, 11, |contest| field.many(contest));
    bench.contest("pool, a message each", TOGETHER, 11, |contest| field.each(contest));
    bench.contest("pool, one call, hot", TOGETHER, 11, |contest| field.hot(contest));
    bench.contest("pool, one call, parked", MOSTLY_PAUSE, 101, |contest| field.parked(contest));
    bench.contest("pool, started", TOGETHER, 11, |contest| field.start(contest));
    bench.contest("pool, started and ended", TOGETHER, 11, |contest| field.start_and_end(contest));
}
