//! Prints the SHA-256 of every file under a folder, computed by a pool of processes.
//!
//! ```text
//! cargo run --release --example checksum -- [DIR] [--workers N] [--kill-one-every-ms MS]
//! ```
//!
//! The output is that of `find DIR -type f | LC_ALL=C sort | xargs sha256sum`. With
//! `--kill-one-every-ms`, the program kills its own workers. The `Pool` replaces them and reads
//! their files again, and the output stays the same. Ctrl-C stops the program cleanly. The example
//! `custom_pool` does the same with a pool made of queues.
mod sums;

use outlast::pool::{OnStop, Pool, TaskError};
use outlast::process::{self, Stop};
use outlast::{Error, Event, Shared};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use sums::{Bar, Killer, Request, Sum, Tally};

fn main() -> ExitCode {
    process::init(); // first of all
    sums::run(Stop::on_signals().map_err(Error::from), |stop| stop, read_all)
}

/// Sums one file, in a worker. The path is passed as bytes, because `serde` accepts only paths in
/// UTF-8.
fn read((index, path): (usize, Vec<u8>)) -> (usize, Sum) {
    (index, sums::sum(Path::new(OsStr::from_bytes(&path))))
}

/// Has the workers read all files. Once the event is set, they finish only the files that they have
/// begun.
fn read_all(request: &Request, files: &[PathBuf], stop: &Shared<Event>) -> Result<Tally, Error> {
    let workers = files.len().clamp(1, request.workers as usize);
    let retries = if request.kill_every.is_some() { u32::MAX } else { 2 };
    let pool =
        Pool::builder().workers(workers).retries(retries).stop(stop, OnStop::Drop).build()?;
    let mut killer = request.kill_every.map(Killer::new);
    let mut tally = Tally::of(files.len());
    let bar = Bar::new(files.len());
    let paths = files.iter().map(|path| path.as_os_str().as_bytes().to_vec());
    for result in pool.map_unordered(read, paths.enumerate()) {
        match result {
            Ok((index, sum)) => tally.note(index, sum),
            Err(TaskError::Stopped) => continue, // no worker has begun this file
            Err(error) => return Err(error.into()),
        };
        bar.show(&tally);
        if let Some(killer) = &mut killer {
            let pids = pool.pids();
            killer.strikes(pids.len(), tally.done).into_iter().for_each(|i| kill(pids[i]));
        }
    }
    pool.join();
    let stats = pool.stats();
    (tally.lost, tally.redelivered) = (stats.lost, stats.retried);
    Ok(tally)
}

#[expect(unsafe_code, reason = "a system call")]
fn kill(pid: u32) {
    // SAFETY: takes no pointers.
    unsafe { libc::kill(pid.cast_signed(), libc::SIGKILL) };
}
