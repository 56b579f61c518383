//! Code that several examples share: workers that run the same program, and options that are
//! numbers. Lost workers are replaced, and an option makes the parent kill workers.
#![allow(dead_code, clippy::allow_attributes, reason = "each example uses a part of it")]
use std::collections::HashMap;
use std::io::{self, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _, parent_id};
use std::process::{Child, Command, ExitCode};
use std::time::{Duration, Instant};

/// How often a parent checks its workers.
pub(crate) const TICK: Duration = Duration::from_millis(2);
/// A segment has 256 process slots, and that of a dead worker becomes free a moment after its
/// death.
const MOST_WORKERS: u64 = 64;

/// The numbers given as `--name N`, or their defaults.
#[derive(Debug)]
pub(crate) struct Options(HashMap<&'static str, u64>);

impl Options {
    /// Parses the arguments. `known` has the names with their defaults. `--workers` and
    /// `--kill-one-every-ms` (0: never) are always known.
    pub(crate) fn parse(known: &[(&'static str, u64)]) -> Result<Self, String> {
        let common = [("--workers", 2), ("--kill-one-every-ms", 0)];
        let mut options: HashMap<_, _> = common.into_iter().chain(known.iter().copied()).collect();
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            let names = options.keys().copied().collect::<Vec<_>>().join(" N, ");
            let place = options.iter_mut().find(|(name, _)| **name == arg);
            let unknown = || format!("unknown option {arg}; the options are {names} N");
            let (_, place) = place.ok_or_else(unknown)?;
            let number = args.next().and_then(|number| number.parse().ok());
            *place = number.ok_or_else(|| format!("{arg} takes a number"))?;
        }
        if !(1..=MOST_WORKERS).contains(&options["--workers"]) {
            return Err(format!("--workers: 1 to {MOST_WORKERS}"));
        }
        Ok(Options(options))
    }

    /// Returns the number given as `name`.
    pub(crate) fn get(&self, name: &str) -> usize {
        usize::try_from(self.0[name]).unwrap_or(usize::MAX)
    }
}

/// The workers. Dropping it kills those that still run.
pub(crate) struct Crew {
    /// Returns the command that starts the worker of this number. The second argument is `true` if
    /// the worker replaces a lost one.
    command: Box<dyn Fn(usize, bool) -> io::Result<Command>>,
    running: Vec<Child>,
    /// How many workers were lost.
    pub lost: usize,
    kill_every: Duration,
    next_kill: Instant,
    next_look: Instant,
    /// How much was done at the last kill.
    done: usize,
    random: u64,
}

impl Crew {
    /// Starts `size` workers. The options say how often one is killed.
    pub(crate) fn start(
        options: &Options,
        size: usize,
        command: impl Fn(usize, bool) -> io::Result<Command> + 'static,
    ) -> io::Result<Self> {
        let kill_every = Duration::from_millis(options.0["--kill-one-every-ms"]);
        let mut crew = Crew {
            command: Box::new(command),
            running: Vec::new(),
            lost: 0,
            kill_every,
            next_kill: Instant::now() + kill_every,
            next_look: Instant::now(),
            done: 0,
            random: u64::from(std::process::id()) << 20 | 1,
        };
        for number in 0..size {
            crew.running.push((crew.command)(number, false)?.spawn()?);
        }
        Ok(crew)
    }

    /// Replaces lost workers, and kills one if it is time. No worker is killed before more is
    /// `done` than at the last kill, so that work gets done even if it takes longer than the time
    /// between kills.
    pub(crate) fn tend(&mut self, done: usize) -> io::Result<()> {
        let now = Instant::now();
        if now < self.next_look {
            return Ok(());
        }
        self.next_look = now + TICK / 2;
        for (number, worker) in self.running.iter_mut().enumerate() {
            let Some(status) = worker.try_wait()? else { continue };
            if status.signal().is_none() {
                return Err(io::Error::other(format!("a worker failed: {status}")));
            }
            self.lost += 1;
            *worker = (self.command)(number, true)?.spawn()?;
        }
        if !self.kill_every.is_zero() && now >= self.next_kill && done != self.done {
            self.next_kill = now + self.kill_every;
            self.done = done;
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            let victim = (self.random >> 32) as usize % self.running.len();
            self.running[victim].kill()?;
        }
        Ok(())
    }

    /// Waits for the workers, which have been told to end. Returns how many were lost.
    pub(crate) fn finish(mut self) -> io::Result<usize> {
        for mut worker in std::mem::take(&mut self.running) {
            let status = worker.wait()?;
            self.lost += usize::from(status.signal().is_some());
            if status.code().is_some_and(|code| code != 0) {
                return Err(io::Error::other(format!("a worker failed: {status}")));
            }
        }
        Ok(self.lost)
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        for worker in &mut self.running {
            worker.kill().and_then(|()| worker.wait()).ok();
        }
    }
}

/// Returns a command that runs this program as a worker. The worker has a process group of its own,
/// because the terminal's Ctrl-C is for the parent.
pub(crate) fn this_program(role: &str) -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.process_group(0).env("EXAMPLE_ROLE", role);
    command.env("EXAMPLE_PARENT", std::process::id().to_string());
    Ok(command)
}

/// Returns the role in which this process was started, or `None` if the user started it. A worker
/// ends with its parent.
pub(crate) fn role() -> Option<String> {
    let role = std::env::var("EXAMPLE_ROLE").ok()?;
    let parent = std::env::var("EXAMPLE_PARENT").ok()?.parse().ok()?;
    std::thread::spawn(move || {
        while parent_id() == parent {
            std::thread::sleep(Duration::from_millis(200));
        }
        std::process::exit(1);
    });
    Some(role)
}

/// Prints the outcome, and returns the exit code.
pub(crate) fn report(done: Result<String, Box<dyn std::error::Error>>) -> ExitCode {
    match done {
        Ok(text) => {
            let written = if text.is_empty() { Ok(()) } else { writeln!(io::stdout(), "{text}") };
            if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            writeln!(io::stderr(), "{error}").ok();
            ExitCode::FAILURE
        }
    }
}
