//! Calls of functions in a worker.
use super::chunk::{Outcome, status};
use super::segment::RESOURCE_TIMEOUT;
use crate::process::wire::is_disconnected;
use crate::process::worker::{self, Entry, Failure, catch};
use crate::segment::forks;
use crate::sys::process::exit_now;
use core::time::Duration;
use std::io;
use std::time::Instant;

/// Ends the calling process if it is a copy that the user's function has forked. The messages and
/// the results belong to the worker.
#[inline]
pub(super) fn end_if_copy(before: u32, panicked: bool) {
    if forks() != before {
        exit_now(if panicked { 101 } else { 0 });
    }
}

/// Repeats a call that fails for lack of descriptors or memory until [`RESOURCE_TIMEOUT`] has
/// elapsed, and returns the last error then. A closed socket is an error immediately.
#[cold]
pub(super) fn retry<R>(mut call: impl FnMut() -> io::Result<R>) -> io::Result<R> {
    const PAUSE: Duration = Duration::from_millis(5);
    let mut since = None;
    loop {
        match call() {
            Err(error)
                if !is_disconnected(&error)
                    && since.get_or_insert_with(Instant::now).elapsed() < RESOURCE_TIMEOUT =>
            {
                std::thread::sleep(PAUSE);
            }
            other => return other,
        }
    }
}

/// Calls a function by its numbers, which the owner sent.
pub(super) fn run(
    entry: u64,
    function: u64,
    argument: &[u8],
    result: &mut Vec<u8>,
) -> Result<(), Failure> {
    let (call, function) = resolve(entry, function)?;
    call(function, argument, result)
}

/// Returns the entry and the function with these numbers, which the owner sent.
#[expect(unsafe_code, reason = "calls a function by its number")]
pub(super) fn resolve(entry: u64, function: u64) -> Result<(Entry, usize), Failure> {
    // SAFETY: the owner made the numbers with `numbers`, and runs the same executable: this process
    // is a fork of it.
    unsafe { worker::resolve(entry, function) }
}

/// Runs a call and returns its outcome.
pub(super) fn run_call(entry: u64, function: u64, argument: &[u8]) -> Outcome {
    let (before, mut value) = (forks(), Vec::new());
    let outcome = catch(|| run(entry, function, argument, &mut value));
    end_if_copy(before, outcome.is_err());
    match outcome {
        Ok(Ok(())) => Outcome::Large(status::VALUE, value),
        Ok(Err(Failure::Argument(text))) => Outcome::Large(status::ARGUMENT, text.into_bytes()),
        Ok(Err(Failure::Encode(text))) => Outcome::Large(status::ENCODE, text.into_bytes()),
        Err(panic) => {
            let panic = postcard::to_allocvec::<worker::Panic>(&panic).unwrap_or_default();
            Outcome::Large(status::PANICKED, panic)
        }
    }
}
