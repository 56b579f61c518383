//! The code that `checksum` and `custom_pool` share, which is all but the pool: arguments, the walk
//! through the folder, the progress bar, and the output in the format of `sha256sum`.
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use outlast::process::Stop;
use outlast::{Error, Event, Shareable, Shared};
use sha2::{Digest as _, Sha256};
use std::ffi::OsString;
use std::fmt::{self, Write as _};
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::available_parallelism;
use std::time::{Duration, Instant, SystemTime};

const HELP: &str = "\
Prints the SHA-256 of every regular file under DIR (default: the current folder),
computed by a pool of processes, as `sha256sum` would print it, sorted by path.

Options, before or after DIR:
  --workers N              worker processes, 1 to 128 (default: one for each CPU)
  --kill-one-every-ms MS   every MS milliseconds, kill a random worker with SIGKILL, but
                           only if another file is done since the last kill, so that
                           large files get done
  -h, --help               this text

Exit status: 0, 1 if a file or folder could not be read, 2 if an argument is invalid.
If it is interrupted by Ctrl-C or SIGTERM, the program finishes the files that are begun,
prints no sums, and ends by that signal (exit status 130 or 143 in a shell). A second
signal ends it immediately.
";

/// A segment has 256 process slots, and that of a dead worker becomes free a moment after its
/// death.
const MOST_WORKERS: u32 = 128;

/// The parsed arguments.
pub(crate) struct Request {
    dir: PathBuf,
    pub(crate) workers: u32,
    pub(crate) kill_every: Option<Duration>,
}

/// The results so far.
#[derive(Default)]
pub(crate) struct Tally {
    sums: Vec<Option<Sum>>,
    pub(crate) done: usize,
    pub(crate) bytes: u64,
    /// How many files were begun by more than one worker, and how many workers were killed.
    pub(crate) redelivered: u64,
    pub(crate) lost: u64,
}

/// The result of a file: 0 or the error number, the length, and the digest.
pub(crate) type Sum = (i32, u64, [u8; 32]);

/// Runs the program. `read_all` has workers read the files until the event is set.
pub(crate) fn run<T: ?Sized + Shareable + Sync + 'static>(
    stop: Result<Stop<T>, Error>,
    event: fn(&T) -> &Event,
    read_all: impl FnOnce(&Request, &[PathBuf], &Shared<T>) -> Result<Tally, Error>,
) -> ExitCode {
    let request = match Request::parse(std::env::args_os().skip(1)) {
        Ok(Some(request)) => request,
        Ok(None) => {
            let written = io::stdout().write_all(HELP.as_bytes()).or_else(unless_nobody_reads);
            return if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        }
        Err(misuse) => {
            complain(format_args!("{misuse}; see --help"));
            return ExitCode::from(2);
        }
    };
    let done = stop.and_then(|stop| sum_up(&request, &stop, event(&stop), read_all));
    done.unwrap_or_else(|error| {
        complain(error);
        ExitCode::FAILURE
    })
}

fn sum_up<T: ?Sized + Shareable + Sync + 'static>(
    request: &Request,
    stop: &Stop<T>,
    event: &Event,
    read_all: impl FnOnce(&Request, &[PathBuf], &Shared<T>) -> Result<Tally, Error>,
) -> Result<ExitCode, Error> {
    let start = Instant::now();
    let (files, mut failed) = walk(&request.dir, event);
    let walked = !event.is_set();
    let tally = if walked { read_all(request, &files, stop)? } else { Tally::default() };
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
    if !complete {
        Stop::reraise(stop);
    }
    Ok(if complete && !failed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn complain(what: impl fmt::Display) {
    let name = std::env::args_os().next().map(PathBuf::from);
    let name = name.as_deref().and_then(Path::file_name).unwrap_or_default();
    writeln!(io::stderr(), "{}: {what}", name.display()).ok();
}

// ---------------------------------------------------------------- arguments
impl Request {
    /// Returns `None` if the user asks for help.
    fn parse(mut args: impl Iterator<Item = OsString>) -> Result<Option<Self>, String> {
        let cpus = available_parallelism().map_or(1, usize::from);
        let workers = u32::try_from(cpus).unwrap_or(MOST_WORKERS).min(MOST_WORKERS);
        let mut request = Request { dir: PathBuf::from("."), workers, kill_every: None };
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
                "--workers" => request.workers = number(1..=MOST_WORKERS)?,
                "--kill-one-every-ms" => {
                    let every = number(1..=u32::MAX)?;
                    request.kill_every = Some(Duration::from_millis(every.into()));
                }
                "-h" | "--help" => return Ok(None),
                "--" => only_dirs = true,
                _ => return Err(format!("unknown option {arg:?}")),
            }
        }
        if dirs.len() > 1 {
            return Err("one folder at a time".into());
        }
        if let Some(dir) = dirs.pop() {
            request.dir = dir.into();
        }
        Ok(Some(request))
    }
}

// ----------------------------------------------------------------- the walk
/// Returns the regular files under `root` as `find` names them, in the order of their bytes, and
/// whether a file or folder could not be read.
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
    // Paths would be compared part by part.
    files.sort_unstable_by(|a, b| a.as_os_str().cmp(b.as_os_str()));
    (files, failed)
}

// ----------------------------------------------------------------- the work
/// Reads a file, and returns its result.
pub(crate) fn sum(path: &Path) -> Sum {
    let mut hasher = Sha256::new();
    let mut bytes = 0;
    let mut read = || {
        let mut buffer = [0; 64 * 1024];
        let mut file = File::open(path)?;
        loop {
            match file.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(read) => {
                    hasher.update(&buffer[..read]);
                    bytes += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    };
    match read() {
        Ok(()) => (0, bytes, hasher.finalize().into()),
        Err(error) => (error.raw_os_error().unwrap_or(libc::EIO), 0, [0; 32]),
    }
}

impl Tally {
    pub(crate) fn of(files: usize) -> Self {
        Tally { sums: vec![None; files], ..Tally::default() }
    }

    /// Adds the result of a file. Returns `false` if it was known already.
    pub(crate) fn note(&mut self, index: usize, sum: Sum) -> bool {
        let Some(place @ None) = self.sums.get_mut(index) else { return false };
        *place = Some(sum);
        self.done += 1;
        self.bytes += sum.1;
        true
    }
}

/// Decides when to kill a worker, to show that it does no harm.
pub(crate) struct Killer {
    every: Duration,
    next: Instant,
    /// How many files were done at the last kill.
    done: usize,
    random: u64,
}

impl Killer {
    pub(crate) fn new(every: Duration) -> Self {
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let random = u64::from(now.subsec_nanos()) << 32 | u64::from(std::process::id());
        Killer { every, next: Instant::now() + every, done: 0, random }
    }

    /// Returns which of `workers` to kill now, if any.
    pub(crate) fn strikes(&mut self, workers: usize, done: usize) -> Option<usize> {
        let now = Instant::now();
        if now < self.next {
            return None;
        }
        self.next = now + self.every;
        if done == self.done {
            return None; // otherwise a file that takes longer than `every` would never be done
        }
        self.done = done;
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        ((self.random >> 32) as usize).checked_rem(workers)
    }
}

// --------------------------------------------------------------- the output
/// A progress bar on standard error, if that is a terminal.
pub(crate) struct Bar(ProgressBar);

impl Bar {
    pub(crate) fn new(files: usize) -> Self {
        let style = "{bar:40} {pos}/{len} files, {msg}, {elapsed} ({eta} left)";
        let style =
            ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
        Bar(ProgressBar::new(files as u64).with_style(style))
    }

    pub(crate) fn show(&self, tally: &Tally) {
        self.0.set_message(HumanBytes(tally.bytes).to_string());
        self.0.set_position(tally.done as u64);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Prints a line for each file. Returns `false` if a file could not be read.
fn print(files: &[PathBuf], tally: &Tally) -> io::Result<bool> {
    let mut out = BufWriter::new(io::stdout().lock());
    let mut all = true;
    for (path, &(errno, _, digest)) in files.iter().zip(tally.sums.iter().flatten()) {
        if errno == 0 {
            if let Err(error) = out.write_all(&line(path, &digest)) {
                return unless_nobody_reads(error).map(|()| all);
            }
        } else {
            all = false;
            complain(format_args!("{path:?}: {}", io::Error::from_raw_os_error(errno)));
        }
    }
    out.flush().or_else(unless_nobody_reads).map(|()| all)
}

/// Returns a line in the format of `sha256sum`. A name with a line break is escaped, and the line
/// then begins with a backslash.
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

/// Ignores the error of a reader that has ended early, such as `head`.
fn unless_nobody_reads(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::BrokenPipe { Ok(()) } else { Err(error) }
}
