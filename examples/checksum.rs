//! Prints the SHA-256 of every file under a folder, computed by a pool of processes.
//!
//! ```text
//! cargo run --release --example checksum -- [DIR] [--workers N] [--kill-one-every-ms MS]
//! ```
//!
//! The output is that of `find DIR -type f | LC_ALL=C sort | xargs sha256sum`. The pool is two queues and an event in
//! one anonymous segment, handed to workers that are this same program. A worker acknowledges a job only when its
//! result is in the other queue: whenever it is killed, another one gets the file. With `--kill-one-every-ms`
//! this program kills its own workers, and the output stays the same.
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use outlast::{
    CommandExt as _, Error, Event, FixedQueue, Options, RecvTimeoutError, SendTimeoutError, Shared,
    TrySendError,
};
use sha2::{Digest, Sha256};
use std::ffi::{OsStr, OsString};
use std::fmt::{self, Write as _};
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt as _, ExitStatusExt, parent_id};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread::available_parallelism;
use std::time::{Duration, Instant, SystemTime};

const HELP: &str = "\
Prints the SHA-256 of every regular file under DIR (default: the current folder),
computed by a pool of processes, as `sha256sum` would print it, sorted by path.

Usage: checksum [OPTIONS] [DIR]

Options:
  --workers N              worker processes, 1 to 128 (default: one for each CPU)
  --kill-one-every-ms MS   every MS milliseconds, kill a random worker with SIGKILL;
                           not before another file is done, so that large ones get done
  -h, --help               this text

Exit status: 0, 1 if a file or folder could not be read, 2 if an argument makes
no sense, 130 if interrupted (then no line is printed at all).
";

/// The longest path that the system takes, with its final NUL.
const PATH_MAX: usize = 4_096;
/// A segment serves 256 processes at a time, and the place of a dead one is free a moment later only.
const MOST_WORKERS: u32 = 128;
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
    let done = match Task::parse(std::env::args_os().skip(1)) {
        Ok(Task::Checksum(task)) => checksum(&task),
        Ok(Task::Work { parent }) => work(parent),
        Ok(Task::Help) => io::stdout()
            .write_all(HELP.as_bytes())
            .or_else(unless_nobody_reads)
            .map(|()| ExitCode::SUCCESS)
            .map_err(Error::from),
        Err(misuse) => {
            complain(format_args!("{misuse}; see --help"));
            return ExitCode::from(2);
        }
    };
    done.unwrap_or_else(|error| {
        complain(error);
        ExitCode::FAILURE
    })
}

fn complain(what: impl fmt::Display) {
    writeln!(io::stderr(), "checksum: {what}").ok();
}

// ---------------------------------------------------------------- arguments
enum Task {
    Help,
    Checksum(Checksum),
    /// What the parent starts.
    Work {
        parent: u32,
    },
}

struct Checksum {
    dir: PathBuf,
    workers: u32,
    kill_every: Option<Duration>,
}

impl Task {
    fn parse(mut args: impl Iterator<Item = OsString>) -> Result<Self, String> {
        let cpus = available_parallelism().map_or(1, usize::from);
        let workers = u32::try_from(cpus).unwrap_or(MOST_WORKERS).min(MOST_WORKERS);
        let mut task = Checksum { dir: PathBuf::from("."), workers, kill_every: None };
        let mut dirs = Vec::new();
        let mut only_dirs = false;
        while let Some(arg) = args.next() {
            let text = arg.to_str().unwrap_or_default();
            if only_dirs || !text.starts_with('-') {
                dirs.push(arg);
                continue;
            }
            let (option, attached) = match text.split_once('=') {
                Some((option, value)) => (option, Some(value.to_owned())),
                None => (text, None),
            };
            let mut number = |range: std::ops::RangeInclusive<u32>| {
                attached
                    .clone()
                    .or_else(|| args.next()?.into_string().ok())
                    .and_then(|value| value.parse().ok())
                    .filter(|number| range.contains(number))
                    .ok_or_else(|| {
                        format!("{option} takes a number, {} to {}", range.start(), range.end())
                    })
            };
            match option {
                "--workers" => task.workers = number(1..=MOST_WORKERS)?,
                "--kill-one-every-ms" => {
                    let every = number(1..=u32::MAX)?;
                    task.kill_every = Some(Duration::from_millis(every.into()));
                }
                "--worker" => return Ok(Task::Work { parent: number(1..=u32::MAX)? }),
                "-h" | "--help" => return Ok(Task::Help),
                "--" => only_dirs = true,
                _ => return Err(format!("unknown option {arg:?}")),
            }
        }
        if dirs.len() > 1 {
            return Err("one folder at a time".into());
        }
        if let Some(dir) = dirs.pop() {
            task.dir = dir.into();
        }
        Ok(Task::Checksum(task))
    }
}

// ----------------------------------------------------------------- the walk
/// The regular files under `root` as `find` names them, in the order of their bytes, and whether
/// something could not be read.
fn walk(root: &Path, stop: &Event) -> (Vec<PathBuf>, bool) {
    let mut files = Vec::new();
    let mut folders = Vec::new();
    let mut failed = false;
    let mut fail = |path: &Path, error: io::Error| {
        complain(format_args!("{path:?}: {error}"));
        failed = true;
    };
    match fs::symlink_metadata(root) {
        Ok(metadata) if metadata.is_dir() => folders.push(root.to_path_buf()),
        Ok(metadata) if metadata.is_file() => files.push(root.to_path_buf()),
        Ok(_) => {}
        Err(error) => fail(root, error),
    }
    while let Some(folder) = folders.pop()
        && !stop.is_set()
    {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) => {
                fail(&folder, error);
                continue;
            }
        };
        for entry in entries {
            match entry.and_then(|entry| Ok((entry.path(), entry.file_type()?))) {
                Ok((path, kind)) if kind.is_dir() => folders.push(path),
                Ok((path, kind)) if kind.is_file() => files.push(path),
                Ok(_) => {}
                Err(error) => fail(&folder, error),
            }
        }
    }
    // Not as paths: these compare part by part.
    files.sort_unstable_by(|a, b| a.as_os_str().cmp(b.as_os_str()));
    (files, failed)
}

// --------------------------------------------------------------- the parent
fn checksum(task: &Checksum) -> Result<ExitCode, Error> {
    let start = Instant::now();
    // Zero-filled memory is an empty pool.
    let pool = Options::new().anonymous_with(|_: &Pool| {})?;
    let signalled = pool.clone();
    ctrlc::set_handler(move || signalled.stop.set()).map_err(io::Error::other)?;

    let (files, mut failed) = walk(&task.dir, &pool.stop);
    let walked = !pool.stop.is_set();
    let tally = if walked { run(task, &pool, &files)? } else { Tally::default() };
    let complete = walked && tally.done == files.len();
    if complete {
        failed |= !print(&files, &tally)?;
    } else {
        complain(format_args!("interrupted after {} of {} files", tally.done, files.len()));
    }

    let seconds = start.elapsed().as_secs_f64();
    let megabytes = tally.bytes as f64 / 1e6;
    complain(format_args!(
        "{} files, {megabytes:.1} MB in {seconds:.2} s ({:.1} MB/s), workers lost: {}, files redelivered: {}",
        tally.done,
        megabytes / seconds,
        tally.lost,
        tally.redelivered
    ));
    Ok(match (complete, failed) {
        (false, _) => ExitCode::from(130),
        (true, true) => ExitCode::FAILURE,
        (true, false) => ExitCode::SUCCESS,
    })
}

/// What is known so far.
#[derive(Default)]
struct Tally {
    outcomes: Vec<Option<Outcome>>,
    done: usize,
    bytes: u64,
    redelivered: usize,
    lost: usize,
}

impl Tally {
    fn note(&mut self, outcome: Outcome) {
        // A second one comes of a worker that was killed between `send` and `ack`.
        if let Some(place @ None) = self.outcomes.get_mut(outcome.index) {
            *place = Some(outcome);
            self.done += 1;
            self.bytes += outcome.bytes;
            self.redelivered += usize::from(outcome.attempts > 0);
        }
    }
}

/// Has the workers read all files, unless a signal comes.
fn run(task: &Checksum, pool: &Shared<Pool>, files: &[PathBuf]) -> Result<Tally, Error> {
    let mut tally = Tally { outcomes: vec![None; files.len()], ..Tally::default() };
    let mut workers = Workers::start(pool, files.len().min(task.workers as usize))?;
    let mut killer = task.kill_every.map(Killer::new);
    let bar = progress_bar(files.len());
    let mut queued = 0;
    while tally.done < files.len() && !pool.stop.is_set() {
        while let Some(path) = files.get(queued) {
            match Job::new(queued, path) {
                None => tally.note(Outcome::failed(queued, libc::ENAMETOOLONG)),
                Some(job) => match pool.jobs.try_send(job) {
                    Ok(()) => {}
                    Err(TrySendError::Full(_)) => break,
                    Err(error) => return Err(error.into()),
                },
            }
            queued += 1;
        }
        if let Some(killer) = &mut killer {
            killer.strike(&mut workers, tally.done)?;
        }
        workers.replace_lost()?;
        let pause = task.kill_every.map_or(TICK, |every| every.min(TICK));
        match pool.results.recv_timeout(pause) {
            Ok(outcome) => tally.note(outcome),
            Err(RecvTimeoutError::TimedOut) => {}
            Err(error) => return Err(error.into()),
        }
        pool.results.try_iter().for_each(|outcome| tally.note(outcome));
        bar.set_message(HumanBytes(tally.bytes).to_string());
        bar.set_position(tally.done as u64);
    }
    bar.finish_and_clear();
    tally.lost = workers.lost;
    Ok(tally)
}

fn progress_bar(files: usize) -> ProgressBar {
    let style = "{bar:40} {pos}/{len} files, {msg}, {elapsed} ({eta} left)";
    let style =
        ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
    // Draws to stderr, if that is a terminal.
    ProgressBar::new(files as u64).with_style(style)
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
    fn failed(index: usize, errno: i32) -> Self {
        Outcome { index, errno, attempts: 0, bytes: 0, digest: [0; 32] }
    }
}

/// The worker processes; dropping it ends them.
struct Workers<'a> {
    pool: &'a Pool,
    command: Command,
    running: Vec<Child>,
    /// How many were killed.
    lost: usize,
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
}

impl Drop for Workers<'_> {
    fn drop(&mut self) {
        self.pool.jobs.close();
        self.pool.results.close();
        for worker in &mut self.running {
            worker.wait().ok();
        }
    }
}

/// Kills workers, to show that it does no harm.
struct Killer {
    every: Duration,
    next: Instant,
    /// How many files were done at the last kill.
    done: usize,
    random: u64,
}

impl Killer {
    fn new(every: Duration) -> Self {
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let random = u64::from(now.subsec_nanos()) << 32 | u64::from(std::process::id());
        Killer { every, next: Instant::now() + every, done: 0, random }
    }

    fn strike(&mut self, workers: &mut Workers<'_>, done: usize) -> io::Result<()> {
        let now = Instant::now();
        if now < self.next {
            return Ok(());
        }
        self.next = now + self.every;
        if done == self.done {
            return Ok(()); // or a file that takes longer than `every` would never be done
        }
        self.done = done;
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let victim = (self.random >> 32) as usize % workers.running.len();
        workers.running[victim].kill()
    }
}

// --------------------------------------------------------------- the worker
fn work(parent: u32) -> Result<ExitCode, Error> {
    let pool = Shared::<Pool>::inherited("pool")?;
    let mut buffer = vec![0; 128 * 1024];
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
        // Here, work that can crash would give up on a job that has cost too many workers: `job.attempts()`.
        let mut outcome = digest(job.path(), &mut buffer).unwrap_or_else(|error| {
            Outcome::failed(job.index, error.raw_os_error().unwrap_or(libc::EIO))
        });
        outcome.index = job.index;
        outcome.attempts = job.attempts();
        // First the result, then the acknowledgement: the other way round, a kill in between would lose the file.
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

fn digest(path: &Path, buffer: &mut [u8]) -> io::Result<Outcome> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut bytes = 0;
    loop {
        match file.read(buffer) {
            Ok(0) => break,
            Ok(read) => {
                hasher.update(&buffer[..read]);
                bytes += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Outcome { index: 0, errno: 0, attempts: 0, bytes, digest: hasher.finalize().into() })
}

// --------------------------------------------------------------- the output
/// Prints a line for each file; false if some could not be read.
fn print(files: &[PathBuf], tally: &Tally) -> io::Result<bool> {
    let mut out = BufWriter::new(io::stdout().lock());
    let mut all = true;
    for (path, outcome) in files.iter().zip(tally.outcomes.iter().flatten()) {
        if outcome.errno == 0 {
            if let Err(error) = out.write_all(&line(path, &outcome.digest)) {
                return unless_nobody_reads(error).map(|()| all);
            }
        } else {
            all = false;
            complain(format_args!("{path:?}: {}", io::Error::from_raw_os_error(outcome.errno)));
        }
    }
    out.flush().or_else(unless_nobody_reads).map(|()| all)
}

/// A line of `sha256sum`: a name that would break the line is escaped, and a backslash in front says so.
fn line(path: &Path, digest: &[u8]) -> Vec<u8> {
    let name = path.as_os_str().as_bytes();
    let mut line = String::with_capacity(80);
    if name.iter().any(|byte| b"\\\n\r".contains(byte)) {
        line.push('\\');
    }
    for byte in digest {
        // Writing to a `String` cannot fail.
        write!(line, "{byte:02x}").unwrap_or_default();
    }
    line.push_str("  ");
    let mut line = line.into_bytes();
    for &byte in name {
        match byte {
            b'\\' => line.extend(b"\\\\"),
            b'\n' => line.extend(b"\\n"),
            b'\r' => line.extend(b"\\r"),
            byte => line.push(byte),
        }
    }
    line.push(b'\n');
    line
}

/// A reader that has seen enough, as `head` has, is no error.
fn unless_nobody_reads(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::BrokenPipe { Ok(()) } else { Err(error) }
}
