//! A pool of one's own: the program `checksum`, with workers that are this same program, and queues
//! between.
//!
//! ```text
//! cargo run --release --example custom_pool -- [DIR] [--workers N] [--kill-one-every-ms MS]
//! ```
//!
//! For what `Pool` does not: workers that are other programs, another order of the jobs, results in
//! parts. The pool is two queues and an event in one anonymous segment. A worker acknowledges a job
//! only when its result is in the other queue: whenever it is killed, another one gets the file.
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

/// The longest path that the system takes, with its final NUL.
const PATH_MAX: usize = 4_096;
/// How often the parent looks for dead workers and for a signal, if no result keeps it busy.
const TICK: Duration = Duration::from_millis(20);
/// How long a worker waits until it looks whether its parent is still there.
const PATIENCE: Duration = Duration::from_millis(500);

outlast::plain! {
    /// A file to be read.
    struct Job {
        index: usize,
        path_len: usize,
        path: [u8; PATH_MAX],
    }

    /// What became of it.
    struct Outcome {
        index: usize,
        /// 0, or the error number of what went wrong.
        errno: i32,
        /// How many workers had lost the job before.
        attempts: u32,
        bytes: u64,
        digest: [u8; 32],
    }
}

outlast::shared! {
    /// All that the processes share.
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
    // Zero-filled memory is an empty pool.
    let pool = Options::new().anonymous_with(|_: &Pool| {})?;
    Ok(Stop::on_signals_in(pool, |pool| &pool.stop)?)
}

// --------------------------------------------------------------- the parent
/// Has the workers read all files, unless the event is set.
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
    /// `None` if the path is longer than the system takes.
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
        // A second one comes of a worker that was killed between `send` and `ack`.
        if tally.note(self.index, (self.errno, self.bytes, self.digest)) {
            tally.redelivered += u64::from(self.attempts > 0);
        }
    }
}

/// The worker processes; dropping it ends them.
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
                return Err(io::Error::other(format!("a worker gave up: {status}")));
            }
        }
        Ok(())
    }

    /// Lets them end; how many were killed in all, the last ones perhaps a moment ago.
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
        // Here, work that can crash would give up on a job that has cost too many workers:
        // `job.attempts()`.
        let (errno, bytes, digest) = sums::sum(job.path());
        let outcome = Outcome { index: job.index, errno, attempts: job.attempts(), bytes, digest };
        // First the result, then the acknowledgement: the other way round, a kill in between would
        // lose the file.
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
