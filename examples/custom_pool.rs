//! The program `checksum` with a pool of its own, made of queues. The workers run this same
//! program.
//!
//! ```text
//! cargo run --release --example custom_pool -- [DIR] [--workers N] [--kill-one-every-ms MS]
//! ```
//!
//! Such a pool is useful where `Pool` does not fit: for workers that are other programs, for
//! another order of the jobs, or for results in parts. The pool is two queues and an event in one
//! anonymous segment. A worker acknowledges a job after its result is in the other queue. Whenever
//! a worker is killed, another worker gets its file.
mod sums;

use outlast::process::Stop;
use outlast::{
    CommandExt as _, Error, Event, FixedQueue, Options, RecvTimeoutError, SendTimeoutError, Shared,
    TrySendError,
};
use std::ffi::OsStr;
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt as _, ExitStatusExt, parent_id};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;
use sums::{Bar, Killer, Request, Tally};

/// The longest path that the system accepts, with its final NUL.
const PATH_MAX: usize = 4_096;
/// How often the parent looks for dead workers and for a signal while no result comes.
const TICK: Duration = Duration::from_millis(20);
/// How long a worker waits before it checks whether its parent is alive.
const PATIENCE: Duration = Duration::from_millis(500);

outlast::plain! {
    /// A file to be read.
    struct Job {
        index: usize,
        path_len: usize,
        path: [u8; PATH_MAX],
    }

    /// The result of a job.
    struct Outcome {
        index: usize,
        /// 0, or the error number.
        errno: i32,
        /// How many workers had died at the job before.
        attempts: u32,
        bytes: u64,
        digest: [u8; 32],
    }
}

outlast::shared! {
    /// The data that the processes share.
    struct Pool {
        jobs: FixedQueue<Job, 64>,
        results: FixedQueue<Outcome, 64>,
        stop: Event,
    }
}

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() == Some("--worker") {
        let parent = args.next().and_then(|number| number.parse().ok());
        return work(parent.unwrap_or(0)).unwrap_or_else(|error| {
            writeln!(io::stderr(), "a worker: {error}").ok();
            ExitCode::FAILURE
        });
    }
    sums::run(pool(), |pool| &pool.stop, read_all)
}

fn pool() -> Result<Stop<Pool>, Error> {
    // Zero-filled memory is a valid, empty pool.
    let pool = Options::new().anonymous_with(|_: &Pool| {})?;
    Ok(Stop::on_signals_in(pool, |pool| &pool.stop)?)
}

// --------------------------------------------------------------- the parent
/// Has the workers read all files. Stops early if the event is set.
fn read_all(request: &Request, files: &[PathBuf], pool: &Shared<Pool>) -> Result<Tally, Error> {
    let mut tally = Tally::of(files.len());
    let mut workers = Workers::start(pool, files.len().min(request.workers as usize))?;
    let mut killer = request.kill_every.map(Killer::new);
    let bar = Bar::new(files.len());
    let mut queued = 0;
    while tally.done < files.len() && !pool.stop.is_set() {
        while let Some(path) = files.get(queued) {
            match Job::new(queued, path) {
                None => drop(tally.note(queued, (libc::ENAMETOOLONG, 0, [0; 32]))),
                Some(job) => match pool.jobs.try_send(job) {
                    Ok(()) => {}
                    Err(TrySendError::Full(_)) => break,
                    Err(error) => return Err(error.into()),
                },
            }
            queued += 1;
        }
        if let Some(killer) = &mut killer
            && let Some(victim) = killer.strikes(workers.running.len(), tally.done)
        {
            workers.running[victim].kill()?;
        }
        workers.replace_lost()?;
        let pause = request.kill_every.map_or(TICK, |every| every.min(TICK));
        match pool.results.recv_timeout(pause) {
            Ok(outcome) => outcome.note(&mut tally),
            Err(RecvTimeoutError::TimedOut) => {}
            Err(error) => return Err(error.into()),
        }
        pool.results.try_iter().for_each(|outcome| outcome.note(&mut tally));
        bar.show(&tally);
    }
    tally.lost = workers.end();
    Ok(tally)
}

impl Job {
    /// Returns `None` if the path is longer than the system accepts.
    fn new(index: usize, path: &Path) -> Option<Self> {
        let bytes = path.as_os_str().as_bytes();
        let mut job = Job { index, path_len: bytes.len(), path: [0; PATH_MAX] };
        job.path.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(job)
    }

    fn path(&self) -> &Path {
        let bytes = self.path.get(..self.path_len).unwrap_or_default();
        Path::new(OsStr::from_bytes(bytes))
    }
}

impl Outcome {
    fn note(&self, tally: &mut Tally) {
        // There is a second result if a worker was killed between `send` and `ack`.
        if tally.note(self.index, (self.errno, self.bytes, self.digest)) {
            tally.redelivered += u64::from(self.attempts > 0);
        }
    }
}

/// The worker processes. Dropping it ends them.
struct Workers<'a> {
    pool: &'a Pool,
    command: Command,
    running: Vec<Child>,
    /// How many were killed.
    lost: u64,
}

impl<'a> Workers<'a> {
    fn start(pool: &'a Shared<Pool>, number: usize) -> io::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["--worker", &std::process::id().to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .process_group(0) // the terminal's Ctrl-C is for the parent
            .share("pool", pool);
        let mut workers = Workers { pool, command, running: Vec::new(), lost: 0 };
        for _ in 0..number {
            workers.running.push(workers.command.spawn()?);
        }
        Ok(workers)
    }

    fn replace_lost(&mut self) -> io::Result<()> {
        for worker in &mut self.running {
            let Some(status) = worker.try_wait()? else { continue };
            if status.signal().is_some() {
                self.lost += 1;
                *worker = self.command.spawn()?;
            } else if !status.success() {
                return Err(io::Error::other(format!("a worker failed: {status}")));
            }
        }
        Ok(())
    }

    /// Lets the workers end. Returns how many were killed, including those of the last moment.
    fn end(&mut self) -> u64 {
        self.pool.jobs.close();
        self.pool.results.close();
        for mut worker in self.running.drain(..) {
            let killed = worker.wait().is_ok_and(|status| status.signal().is_some());
            self.lost += u64::from(killed);
        }
        self.lost
    }
}

impl Drop for Workers<'_> {
    fn drop(&mut self) {
        self.end();
    }
}

// --------------------------------------------------------------- the worker
fn work(parent: u32) -> Result<ExitCode, Error> {
    let pool = Shared::<Pool>::inherited("pool")?;
    while !pool.stop.is_set() {
        if parent_id() != parent {
            return Ok(ExitCode::FAILURE);
        }
        let job = match pool.jobs.recv_ack_timeout(PATIENCE) {
            Ok(job) => job,
            Err(RecvTimeoutError::TimedOut) => continue,
            Err(RecvTimeoutError::Closed) => break,
            Err(error) => return Err(error.into()),
        };
        // If a job can crash its worker, this is the place to reject a job that has killed too many
        // workers: see `job.attempts()`.
        let (errno, bytes, digest) = sums::sum(job.path());
        let outcome = Outcome { index: job.index, errno, attempts: job.attempts(), bytes, digest };
        // The result is sent before the acknowledgement. In the other order, a kill in between
        // would lose the file.
        while let Err(error) = pool.results.send_timeout(outcome, PATIENCE) {
            match error {
                SendTimeoutError::TimedOut(_) if parent_id() == parent => {}
                SendTimeoutError::TimedOut(_) => return Ok(ExitCode::FAILURE),
                SendTimeoutError::Closed(_) => return Ok(ExitCode::SUCCESS),
                error => return Err(error.into()),
            }
        }
        job.ack()?;
    }
    Ok(ExitCode::SUCCESS)
}
