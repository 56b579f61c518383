//! A runner for tests whose `main` must begin with `outlast::process::init()`: one test after the
//! other, each under a watchdog.
#![allow(dead_code, clippy::allow_attributes, reason = "each test file uses a part of it")]
use std::env;
use std::io::Write as _;
use std::panic::catch_unwind;
use std::process::{Command, ExitCode};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// How long a test waits for what must happen. It is long because the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);
/// How long a whole test may take, and how long one may take that is to do more than usual.
const LIMIT: Duration = Duration::from_secs(180);
const LONG: Duration = Duration::from_secs(3_600);
/// The environment variable that names the part of a program that was started to play one.
const PART: &str = "OUTLAST_TEST_PART";

pub(crate) type Test = (&'static str, fn());

pub(crate) fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// Runs the tests whose names contain one of the arguments, like the usual runner.
pub(crate) fn run(tests: &[Test], parts: &[Test]) -> ExitCode {
    if let Ok(part) = env::var(PART) {
        let (_, play) = parts.iter().find(|(name, _)| *name == part).expect("a known part");
        play();
        return ExitCode::SUCCESS;
    }
    let mut arguments: Vec<String> = env::args().skip(1).collect();
    let exact = arguments.iter().any(|argument| argument == "--exact");
    let list = arguments.iter().any(|argument| argument == "--list");
    // Options of the usual runner, and their values, which are numbers.
    arguments.retain(|argument| !argument.starts_with('-') && argument.parse::<u32>().is_err());
    let wanted = |name: &str| {
        let fits =
            |filter: &String| if exact { name == filter } else { name.contains(filter.as_str()) };
        arguments.is_empty() || arguments.iter().any(fits)
    };
    let (mut passed, mut failed) = (0, Vec::new());
    let mut out = std::io::stdout();
    let limit = if env::var_os("STRIDE").is_some() { LONG } else { LIMIT };
    for &(name, test) in tests.iter().filter(|(name, _)| wanted(name)) {
        if list {
            writeln!(out, "{name}: test").unwrap();
            continue;
        }
        write!(out, "test {name} ... ").unwrap();
        out.flush().unwrap();
        let start = Instant::now();
        let (done, watch) = channel::<()>();
        let watchdog = std::thread::spawn(move || {
            if watch.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                eprintln!("\n{name} hangs");
                std::process::abort();
            }
        });
        let outcome = catch_unwind(test);
        drop(done);
        watchdog.join().unwrap();
        let seconds = start.elapsed().as_secs_f64();
        match outcome {
            Ok(()) => {
                passed += 1;
                writeln!(out, "ok ({seconds:.2} s)").unwrap();
            }
            Err(_) => {
                failed.push(name);
                writeln!(out, "FAILED ({seconds:.2} s)").unwrap();
            }
        }
    }
    if list {
        return ExitCode::SUCCESS;
    }
    let word = if failed.is_empty() { "ok" } else { "FAILED" };
    writeln!(out, "\ntest result: {word}. {passed} passed; {} failed {failed:?}\n", failed.len())
        .unwrap();
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A command that starts this program to play a part.
pub(crate) fn part(name: &str) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command.env(PART, name);
    command
}

#[track_caller]
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(ms(2));
    }
}

/// Whether the process runs: not ended, not a zombie.
pub(crate) fn runs(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state follows the name, which is in brackets.
    stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(" Z"))
}

/// The children of a process.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(child) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let rest = stat.rsplit(')').next().unwrap_or_default();
        if rest.split_whitespace().nth(1) == Some(pid.to_string().as_str()) {
            found.push(child);
        }
    }
    found
}

/// How many descriptors this process has open.
pub(crate) fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// Sets how many descriptors this process may have. Returns the limit before.
#[expect(unsafe_code, reason = "system calls")]
pub(crate) fn limit_descriptors(to: u64) -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes to the live variable.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) }, 0);
    let before = limit.rlim_cur;
    limit.rlim_cur = to.min(limit.rlim_max);
    // SAFETY: reads the live variable.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
    before
}

/// Holds all descriptors that this process may have, until it is dropped.
pub(crate) struct AllDescriptors(Vec<std::fs::File>, u64);

impl AllDescriptors {
    pub(crate) fn take() -> Self {
        let before = limit_descriptors(256);
        let mut files = Vec::new();
        while let Ok(file) = std::fs::File::open("/dev/null") {
            files.push(file);
        }
        AllDescriptors(files, before)
    }
}

impl Drop for AllDescriptors {
    fn drop(&mut self) {
        self.0.clear();
        limit_descriptors(self.1);
    }
}

#[expect(unsafe_code, reason = "a system call")]
pub(crate) fn kill(pid: u32) {
    // SAFETY: takes no pointers.
    unsafe { libc::kill(pid.cast_signed(), libc::SIGKILL) };
}
